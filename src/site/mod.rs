//! Ceph sites: the clusters that Scoria knows, and how each host reaches them.
//!
//! A backend needs a `ceph.conf` and a key on every host that serves it. Who keeps them by hand learns on the worst
//! day that one of them was never copied, leads to another cluster, or has a client that may not do what a failover
//! takes. A site is such a cluster with a name: it is looked at when it is registered, its client is tried out, and
//! the hosts that lack its files are named. A cluster that a backend's conf leads to is a site by itself.
//!
//! What changes something is an operation in the journal of a *host* (not of a backend: a service has sites before
//! it has backends). Keys never get there: who gives one has it written into a file of mode 0600 first, and the
//! journal has the file's path.

mod caps;
mod compute;
pub mod daemon;
pub mod detective;
mod files;
mod found;
mod given;
pub mod independent;
mod link;
pub mod moving;
mod operations;
mod orders;
mod owner;
mod patience;
mod probe;
mod reach;
pub mod replicate;
pub mod revert;
pub mod schedule;
pub mod switch;
mod view;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Mutex;

pub use caps::{Finding, Gap, judge};
pub use compute::{Secret as LibvirtSecret, client_conf};
pub use files::{CephKey, Draft, Store, read_key};
pub use found::Worked;
pub use given::{Given, Ordered, Parts, submit};
pub use link::{
    BackupsGo, Connect, DataPool, Disconnect, Link, Make, Mode as LinkMode, Purge, admin_files,
    check_erasure, check_replicated, domains, links,
};
pub use operations::run;
pub(crate) use operations::withdrawn;
pub use orders::{Delete, Files, Order, PREFIX, Register, Request, Update};
pub use patience::Patience;
pub use probe::{Pool, Report};
pub use view::{Host, View, all, one};

use crate::backend::peers::{BackupPeers, Notify};
use crate::db::Db;
use crate::error::{Code, Error, Result};
use crate::journal::Journal;
use crate::rbd::Ceph;
use crate::rbd::protocol::Connection;

/// What operations on sites work with, on one host.
pub struct Sites {
    /// `[DEFAULT] host`.
    pub host: String,
    /// Cinder's database.
    pub db: Db,
    /// The journal.
    pub journal: Journal,
    /// Workers.
    pub ceph: Arc<dyn Ceph>,
    /// Who is told.
    pub notify: Arc<dyn Notify>,
    /// Who deletes backups.
    pub backups: Arc<dyn BackupPeers>,
    /// `service_down_time`: how long a backup service may be silent and still be up.
    pub down_time: Duration,
    /// Files that Scoria keeps.
    pub store: Store,
    /// What the backends of this host work with.
    worked: RwLock<Vec<Worked>>,
    /// `volume_name_template`: which images are volumes.
    pub volume_name: String,
    /// How rbd-mirror is run on this host.
    pub programs: daemon::Programs,
    /// How long others are waited for.
    pub patience: Patience,
    /// Held while kept files and their row change, so that what was just installed is not removed as a leftover.
    pub(crate) files: Mutex<()>,
    /// Administrators' files of orders that this process has begun.
    pub(crate) admins: std::sync::Mutex<HashSet<PathBuf>>,
}

impl Sites {
    /// On the host `host`, with files kept in `dir`.
    pub fn new(
        host: &str,
        dir: PathBuf,
        journal: Journal,
        ceph: Arc<dyn Ceph>,
        notify: Arc<dyn Notify>,
        backups: Arc<dyn BackupPeers>,
        worked: Vec<Worked>,
    ) -> Sites {
        Sites {
            host: host.to_owned(),
            db: journal.db().clone(),
            journal,
            ceph,
            notify,
            backups,
            down_time: Duration::from_secs(60),
            volume_name: "volume-%s".to_owned(),
            programs: daemon::Programs::under(dir.join("daemons")),
            patience: Patience::default(),
            store: Store::new(dir),
            worked: RwLock::new(worked),
            files: Mutex::default(),
            admins: std::sync::Mutex::default(),
        }
    }

    /// The same with daemons run by these programs, and kept there.
    #[must_use]
    pub fn running(self, programs: daemon::Programs) -> Sites {
        Sites { programs, ..self }
    }

    /// The same with volumes named by `template` (`volume_name_template`).
    #[must_use]
    pub fn naming(self, template: &str) -> Sites {
        Sites { volume_name: template.to_owned(), ..self }
    }

    /// The same with others waited for as long as that.
    #[must_use]
    pub fn waiting(self, patience: Patience) -> Sites {
        Sites { patience, ..self }
    }

    /// The same with other services taken for dead after this silence (`service_down_time`).
    #[must_use]
    pub fn patient_for(self, down_time: Duration) -> Sites {
        Sites { down_time, ..self }
    }

    /// What the backends of this host work with now.
    pub fn worked(&self) -> Vec<Worked> {
        self.worked.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A backend has these sites from now on; with none it is gone.
    pub fn set_worked(&self, backend: &str, sites: Vec<Worked>) {
        let mut worked = self.worked.write().unwrap_or_else(PoisonError::into_inner);
        worked.retain(|w| w.backend != backend);
        worked.extend(sites);
    }

    /// Removes a draft whose order has ended.
    ///
    /// # Errors
    /// `Internal` when the runtime ends.
    pub async fn discard(&self, files: Files) -> Result<()> {
        let store = self.store.clone();
        blocking(move || store.discard(&files)).await
    }

    /// Whether a backend of this host works by the same client: its workers are not ours to close.
    fn is_shared(&self, connection: &Connection) -> bool {
        let same = |c: &Connection| {
            (&c.conf, &c.user, &c.cluster_name)
                == (&connection.conf, &connection.user, &connection.cluster_name)
        };
        self.worked().iter().any(|worked| same(&worked.connection))
    }
}

/// Runs something that waits for a disk where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("Work on files of sites was dropped").caused_by(e))
}

/// Refuses what cannot be a site's name: it is typed, printed and part of nothing else.
///
/// # Errors
/// `InvalidInput`.
pub fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(good) || name.starts_with(['.', '-']) {
        return Err(Error::new(
            Code::InvalidInput,
            "The name of a site has 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter, a digit or '_'",
        ));
    }
    Ok(())
}

/// A cephx user without `client.`.
///
/// # Errors
/// `InvalidInput` for what cannot be one.
pub fn user_name(text: &str) -> Result<String> {
    let name = text.strip_prefix("client.").unwrap_or(text);
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 200 || !name.chars().all(good) {
        return Err(Error::new(
            Code::InvalidInput,
            "The user is the name of a cephx client, with or without 'client.': letters, digits, '.', '_' and '-'",
        ));
    }
    Ok(name.to_owned())
}

/// A step's resource: names of images may be longer than its column.
pub(crate) fn item(image: &str) -> String {
    match image.len() {
        0..=64 => image.to_owned(),
        _ => {
            let tail: String = image.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
            let head: String = image.chars().take(20).collect();
            let sum = image.bytes().fold(0_u64, |sum, b| sum.wrapping_mul(131).wrapping_add(u64::from(b)));
            let text = format!("{head}~{sum:x}~{tail}");
            text.chars().take(64).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["paris", "site-b", "a.b_c", "_x", "51e0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-x", ".x", "a b", "a/b", "ä", "a\n", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!(user_name("client.cinder").unwrap(), "cinder");
        assert_eq!(user_name("cinder").unwrap(), "cinder");
        assert!(user_name("client.").is_err() && user_name("a]b").is_err());
    }

    #[test]
    fn a_step_has_room_for_any_name() {
        assert_eq!(item("disk"), "disk");
        let (a, b) = ("x".repeat(100), format!("{}y{}", "x".repeat(50), "x".repeat(49)));
        assert!(item(&a).len() <= 64 && item(&a) != item(&b));
    }
}
