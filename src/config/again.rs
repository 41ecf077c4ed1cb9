//! One backend's options, read from the files once more while the service runs.

use std::path::PathBuf;

use super::{BackendConfig, Config, Home};
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
        let of = host.to_owned();
        self.find(host, move |backend| backend.host == of).await
    }

    /// The same of the backend of this section in the service's own files.
    ///
    /// # Errors
    /// As [`Sources::backend`].
    pub async fn section(&self, name: &str) -> Result<BackendConfig, Error> {
        let of = name.to_owned();
        self.find(name, move |backend| backend.section == of && backend.home == Home::Main).await
    }

    /// What the service's own files and `backends.d` say by now.
    ///
    /// # Errors
    /// `Config`, as [`Config::load`].
    pub async fn config(&self) -> Result<Config, Error> {
        let sources = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            Config::load(&sources.files, &sources.dirs, std::env::vars()).map(|(config, _)| config)
        });
        read.await.map_err(|e| Error::internal("The configuration could not be read").caused_by(e))?
    }

    async fn find(
        &self,
        called: &str,
        is_it: impl Fn(&BackendConfig) -> bool,
    ) -> Result<BackendConfig, Error> {
        let config = self.config().await?;
        config.backends.into_iter().find(is_it).ok_or_else(|| {
            Error::new(
                Code::Config,
                format!("{} has no backend {called} any more (enabled_backends)", self.shown()),
            )
        })
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
