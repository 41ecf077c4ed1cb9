//! One backend's options, read from the files once more while the service runs.

use std::path::PathBuf;

use super::{BackendConfig, Config};
use crate::error::{Code, Error};

/// Where a configuration was read from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config-file`.
    pub files: Vec<PathBuf>,
    /// `--config-dir`.
    pub dirs: Vec<PathBuf>,
}

impl Sources {
    /// The files, for a message.
    pub fn shown(&self) -> String {
        let all = self.files.iter().chain(&self.dirs);
        all.map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }

    /// What the files say of the backend `host@section` by now. They are read whole, and must be right as a whole:
    /// half of what somebody is writing means nothing.
    ///
    /// # Errors
    /// `Config`, as [`Config::load`], or when they have no such backend any more.
    pub async fn backend(&self, host: &str) -> Result<BackendConfig, Error> {
        let (sources, host) = (self.clone(), host.to_owned());
        let read = tokio::task::spawn_blocking(move || {
            let (config, _) = Config::load(&sources.files, &sources.dirs, std::env::vars())?;
            config.backends.into_iter().find(|backend| backend.host == host).ok_or_else(|| {
                Error::new(
                    Code::Config,
                    format!("{} has no backend {host} any more (enabled_backends)", sources.shown()),
                )
            })
        });
        read.await.map_err(|e| Error::internal("The configuration could not be read").caused_by(e))?
    }
}

impl BackendConfig {
    /// The same backend with the sites of `other`: which clusters they are, how they are reached, and as whom.
    #[must_use]
    pub fn with_sites_of(&self, other: &BackendConfig) -> BackendConfig {
        BackendConfig {
            ceph_conf: other.ceph_conf.clone(),
            cluster_name: other.cluster_name.clone(),
            user: other.user.clone(),
            secret_uuid: other.secret_uuid.clone(),
            connect_timeout: other.connect_timeout,
            replication_connect_timeout: other.replication_connect_timeout,
            replication_devices: other.replication_devices.clone(),
            ..self.clone()
        }
    }
}
