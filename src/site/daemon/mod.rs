//! rbd-mirror daemons of sites: by what means they run, and how they are.
//!
//! Without a daemon on the site that receives, nothing is mirrored, and nothing says so where it would be noticed. Who
//! runs daemons differs from cluster to cluster: an orchestrator (cephadm, Rook), systemd on a host, or nobody, in which
//! case the service itself runs one as its child. The means is chosen once, when a daemon is started by command; the
//! other commands know it from the row then. Daemons that somebody else runs are seen all the same.

mod child;
mod order;
mod status;
mod supervisor;
pub(super) mod unit;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use child::{Found, Plan, Slot};
pub use status::{Daemon, PoolView, Standing};
pub use supervisor::Supervisor;

pub(super) use order::run;

use super::orders::Files;
use crate::error::{Code, Error, Result};

/// Who runs a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Means {
    /// The cluster's orchestrator: `ceph orch apply rbd-mirror`.
    Orchestrator,
    /// The host's systemd: `ceph-rbd-mirror@CLIENT`.
    Systemd,
    /// The host's scoria-volume.
    Child,
}

impl Means {
    /// In rows and arguments.
    pub fn as_str(self) -> &'static str {
        match self {
            Means::Orchestrator => "orchestrator",
            Means::Systemd => "systemd",
            Means::Child => "child",
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn parse(text: &str) -> Result<Means> {
        [Means::Orchestrator, Means::Systemd, Means::Child]
            .into_iter()
            .find(|m| m.as_str() == text)
            .ok_or_else(|| {
                Error::new(
                    Code::InvalidInput,
                    "A daemon is run by orchestrator, systemd or child (of this host's scoria-volume)",
                )
            })
    }
}

/// What is to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Say how the daemons of the site are.
    Status,
    /// Start one.
    Start,
    /// Stop it, for good.
    Stop,
    /// Stop it and start it again.
    Restart,
}

impl Action {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Status => "status",
            Action::Start => "start",
            Action::Stop => "stop",
            Action::Restart => "restart",
        }
    }
}

/// An order for the daemon of a site on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonOrder {
    /// The site.
    pub name: String,
    /// What to do.
    pub action: Action,
    /// By what means; `None`: as before.
    pub by: Option<Means>,
    /// Child: conf and key that it is to run with. Orchestrator: those that it is asked by. `None`: the host's own.
    pub files: Option<Files>,
    /// Orchestrator: on which hosts, as `--placement` of `ceph orch apply` has it.
    pub placement: Option<String>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// How daemons are run on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `scoria_mirror_daemon_dir`: a directory each for conf, key, log and lock of the service's own daemons.
    pub dir: PathBuf,
    /// `scoria_mirror_daemon_path`: rbd-mirror.
    pub rbd_mirror: PathBuf,
    /// systemctl.
    pub systemctl: PathBuf,
}

impl Programs {
    /// Those of the search path, with daemons under `dir`.
    pub fn under(dir: PathBuf) -> Programs {
        Programs { dir, rbd_mirror: "rbd-mirror".into(), systemctl: "systemctl".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_read_as_they_are_written() {
        for means in [Means::Orchestrator, Means::Systemd, Means::Child] {
            assert_eq!(Means::parse(means.as_str()).unwrap(), means);
            assert_eq!(serde_json::to_value(means).unwrap(), means.as_str());
        }
        assert_eq!(Means::parse("docker").unwrap_err().code(), Code::InvalidInput);
    }
}
