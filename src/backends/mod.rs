//! The backends of a host while its service runs: made, changed, stopped, renamed and removed by order.
//!
//! A platform makes a backend from its UI and expects it to serve within seconds, without a word to the others. There is
//! one kind of backend: a section of the service's own files and a file of `backends.d` are read by the same code, started
//! by the same code, and have a row each in `scoria_backends`, which says what is wanted of them. What differs is who
//! writes: `cinder.conf` is its operator's alone, a file of `backends.d` is also ours.
//!
//! Each order is an operation in the journal of the *host*. It changes three things that cannot change together: a row,
//! a file, and what runs. So the row comes first and names the operation that has the backend in hand; killed anywhere,
//! the order is run again, and every step finds what it has done before. An order that ends without success takes back
//! what it has made: a backend is there, or it is not.
//!
//! What runs is behind [`Runner`], which `service` implements: here nothing knows of queues or tasks.

pub mod boot;
mod change;
mod create;
mod delete;
mod files;
mod list;
mod mark;
mod operations;
mod orders;
mod power;
mod rename;
mod text;
mod validate;
mod view;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

pub use change::{Change, LIVE, difference};
pub use files::Files;
pub use list::all_hosts;
pub use mark::new_label;
pub use operations::{run, tidy};
pub use orders::{
    Create, Delete, Disable, Named, Options, Order, PREFIX, Rename, Request, Stop, Update, submit,
};
pub use view::{View, all, one};
pub use watch::Watcher;

use crate::backend::locks::NamedLocks;
use crate::backend::peers::Notify;
use crate::config::{BackendConfig, Fragment, Home, Sources};
use crate::db::backend::{self as rows, BackendRow, State, Wanted};
use crate::db::{Db, label};
use crate::error::{Code, Error, Result};
use crate::journal::Journal;
use crate::model::Scope;
use crate::rbd::protocol::{Connection, Fsid, PoolStats};
use crate::rbd::{Ceph, Site};

/// Upper limit of one attempt to connect to a cluster that may be anywhere, in seconds.
const CONNECT: u32 = 10;
/// How long a look at a cluster may take.
const LOOK: Duration = Duration::from_secs(15);

/// How a backend has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// `None`: it is up and the scheduler has been told. Else why it is down; it serves what can be served then.
    pub down: Option<String>,
}

/// Whatever serves backends.
#[async_trait]
pub trait Runner: Send + Sync + 'static {
    /// Serves a backend; returns when its queues are consumed and the scheduler has its first report. One that runs
    /// already is left alone.
    ///
    /// # Errors
    /// `Database` for what waiting does not cure.
    async fn start(&self, config: &BackendConfig) -> Result<Started>;

    /// Takes no more requests for a backend, waits for those in flight (at most for `limit`; zero: as long as they
    /// take), and ends its heartbeat. True when nothing is in flight any more, also when it was not running.
    async fn stop(&self, name: &str, limit: Duration) -> bool;

    /// Gives a running backend options that it can take without a restart.
    fn apply(&self, config: &BackendConfig);

    /// The options by which a backend runs; `None` when it does not.
    fn running(&self, name: &str) -> Option<BackendConfig>;

    /// Closes what a look has opened at the clusters of a backend, unless one that runs works by it.
    fn release(&self, config: &BackendConfig);

    /// Removes the queues of a backend that is not served any more; those of its Cinder cluster, too, when this was the
    /// last member.
    ///
    /// # Errors
    /// `Broker`.
    async fn delete_queues(&self, service: &str, cluster: Option<&str>) -> Result<()>;

    /// Asks the same method of namespace `backend` of another host.
    ///
    /// # Errors
    /// `Broker`, `DeadlineExceeded` when it has not answered in time; what it answered.
    async fn ask(&self, host: &str, method: &str, args: Value, limit: Duration) -> Result<Value>;

    /// Waits until a scheduler says that it may place volumes in this pool (`host@backend#pool`, or
    /// `cluster@backend#pool`); false when none has
    /// said so within `limit`.
    async fn placeable(&self, pool: &str, limit: Duration) -> bool;

    /// Passes a point at which a test may kill.
    async fn point(&self, name: &'static str) {
        crate::volume::crash::point(name);
    }
}

/// What orders for backends work with, on one host.
pub struct Backends {
    /// `[DEFAULT] host`.
    pub host: String,
    /// The service's own files.
    pub sources: Sources,
    /// Cinder's database.
    pub db: Db,
    /// The journal.
    pub journal: Journal,
    /// Workers.
    pub ceph: Arc<dyn Ceph>,
    /// Who is told.
    pub notify: Arc<dyn Notify>,
    /// Who serves them.
    pub runner: Arc<dyn Runner>,
    /// How long work in flight is waited for, when nobody says (`graceful_shutdown_timeout`; zero: no limit).
    pub patience: Duration,
    /// One order at a time for each name.
    locks: NamedLocks,
}

impl Backends {
    /// On the host `host`.
    pub fn new(
        host: &str,
        sources: Sources,
        journal: Journal,
        ceph: Arc<dyn Ceph>,
        notify: Arc<dyn Notify>,
        runner: Arc<dyn Runner>,
        patience: Duration,
    ) -> Backends {
        let locks = NamedLocks::new(None, &journal);
        let db = journal.db().clone();
        Backends { host: host.to_owned(), sources, db, journal, ceph, notify, runner, patience, locks }
    }

    /// The row of a backend of this host.
    async fn row(&self, name: &str) -> Result<Option<BackendRow>> {
        self.db.read("a backend", async |conn| rows::find(conn, &self.host, name).await).await
    }

    /// The same; a name that there is none of is the caller's mistake.
    async fn known(&self, name: &str) -> Result<BackendRow> {
        let all = self.db.read("backends", async |conn| rows::list(conn, Some(&self.host)).await).await?;
        let names: Vec<&str> = all.iter().map(|row| row.name.as_str()).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let missing = || {
            Error::new(
                Code::InvalidInput,
                format!("There is no backend {name} on host {}; its backends are: {known}", self.host),
            )
        };
        all.iter().find(|row| row.name == name).cloned().ok_or_else(missing)
    }

    /// Fails while another operation has the backend in hand.
    fn free(row: &BackendRow) -> Result<()> {
        if row.is_in_hand() {
            let id = row.operation_id.unwrap_or_default();
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "Backend {} is in the hands of operation {id} ({}); wait for its end",
                    row.name, row.state
                ),
            ));
        }
        Ok(())
    }

    /// Writes how a backend is.
    async fn note(
        &self,
        name: &str,
        state: State,
        wanted: Option<Wanted>,
        problem: Option<&str>,
    ) -> Result<()> {
        let set = self.db.write("state of a backend", async |conn| {
            rows::set(conn, &self.host, name, state, wanted, problem).await
        });
        set.await.map(drop)
    }

    /// The options of a backend as its file says now.
    ///
    /// # Errors
    /// `InvalidInput` or `Config` with what is wrong with the file.
    async fn read(&self, row: &BackendRow) -> Result<BackendConfig> {
        if !row.has_file() {
            return self.sources.section(&row.name).await;
        }
        let fragment = self.fragment(row.path.clone().into()).await?;
        fragment.accepted(false).cloned()
    }

    /// A file of `backends.d` as it is now.
    async fn fragment(&self, path: std::path::PathBuf) -> Result<Fragment> {
        let of = path.clone();
        let content = blocking(move || std::fs::read(&of)).await?.map_err(|e| {
            Error::new(
                Code::InvalidInput,
                format!("The service cannot read {} ({})", path.display(), e.kind()),
            )
        })?;
        self.sources.fragment(path, content).await
    }

    /// Looks whether a backend could work: its files, its cluster, its pool. Answers the cluster's fsid.
    ///
    /// # Errors
    /// `InvalidInput` for a file that cannot be read or a pool that is not there; what Ceph answers.
    async fn probe(&self, config: &BackendConfig) -> Result<String> {
        for connection in crate::backend::connections(config) {
            if !connection.conf.as_os_str().is_empty() {
                let path = connection.conf.clone();
                let opened = blocking(move || std::fs::File::open(&path)).await?;
                opened.map_err(|e| {
                    Error::new(
                        Code::InvalidInput,
                        format!(
                            "The service cannot read {} of site {} of backend {} ({})",
                            connection.conf.display(),
                            connection.site,
                            config.section,
                            e.kind()
                        ),
                    )
                })?;
            }
        }
        let Some(primary) = crate::backend::connections(config).into_iter().next() else {
            return Err(Error::internal("A backend has a primary site"));
        };
        let limit = primary.connect_timeout.unwrap_or(CONNECT).min(CONNECT);
        let site = Site::new(self.ceph.clone(), Connection { connect_timeout: Some(limit), ..primary });
        let wrong = |what: &str, e: crate::rbd::RbdError| {
            Error::new(
                Code::InvalidInput,
                format!(
                    "Backend {} cannot work: {what} (conf {}, client.{})",
                    config.section,
                    config.ceph_conf.display(),
                    config.user.as_deref().unwrap_or("admin")
                ),
            )
            .caused_by(e)
        };
        let fsid = site
            .call_within(LOOK, Fsid {})
            .await
            .map_err(|e| wrong("its Ceph cluster does not answer, or the keyring cannot be read", e))?;
        site.call_within(LOOK, PoolStats { pool: config.pool.clone() }).await.map_err(|e| {
            wrong(&format!("pool {} is not there, or the client may not use it", config.pool), e)
        })?;
        Ok(fsid)
    }

    /// Fails when the mark of a backend is none that is known.
    async fn marked(&self, config: &BackendConfig) -> Result<()> {
        let Some(id) = &config.label else { return Ok(()) };
        if self.db.read("a label", async |conn| label::exists(conn, id).await).await? {
            return Ok(());
        }
        Err(Error::new(
            Code::InvalidInput,
            format!(
                "There is no cluster label {id} (host_cluster_id of backend {}); make it first: scoria-manage cluster \
                 label create {id}",
                config.section
            ),
        ))
    }

    /// Fails when another member of the backend's Cinder cluster serves it with other options.
    async fn joins(&self, config: &BackendConfig) -> Result<()> {
        let differing = self.strangers(config).await?;
        let Some((host, keys)) = differing.into_iter().next() else { return Ok(()) };
        Err(Error::new(
            Code::Conflict,
            format!(
                "Backend {} is shared with host {host} in Cinder cluster {}, which has other values of: {}. Members of a \
                 cluster serve the same: use the same options",
                config.section,
                config.cluster.as_deref().unwrap_or_default(),
                keys.join(", ")
            ),
        ))
    }

    /// Hosts that share a backend and have other options, with the names of those.
    async fn strangers(&self, config: &BackendConfig) -> Result<Vec<(String, Vec<String>)>> {
        let Some(cluster) = &config.cluster else { return Ok(Vec::new()) };
        let all = self.db.read("backends", async |conn| rows::list(conn, None).await).await?;
        let ours = config.values.fingerprints();
        let shared = all.iter().filter(|row| {
            row.host != self.host && row.cluster.as_ref() == Some(cluster) && !row.wants(Wanted::New)
        });
        Ok(shared
            .filter_map(|row| {
                let theirs: BTreeMap<String, String> = serde_json::from_str(&row.fingerprints).ok()?;
                // What only a newer or older program knows is not compared.
                let keys: Vec<String> = ours
                    .iter()
                    .filter(|(key, hash)| theirs.get(*key).is_some_and(|other| other != *hash))
                    .map(|(key, _)| key.clone())
                    .collect();
                (!keys.is_empty()).then(|| (row.host.clone(), keys))
            })
            .collect())
    }

    /// The row that says what a backend is, before anything has happened to it.
    fn described(&self, config: &BackendConfig, checksum: &str) -> Result<BackendRow> {
        let (origin, path) = match &config.home {
            Home::File(path) => (rows::FILE, path.display().to_string()),
            Home::Main => (rows::MAIN, self.sources.shown()),
        };
        let fingerprints = serde_json::to_string(&config.values.fingerprints())
            .map_err(|e| Error::internal("Hashes cannot be written as JSON").caused_by(e))?;
        Ok(BackendRow {
            host: self.host.clone(),
            name: config.section.clone(),
            service: config.host.clone(),
            origin: origin.to_owned(),
            path: path.chars().take(1000).collect(),
            checksum: checksum.to_owned(),
            fingerprints,
            fsid: None,
            pool: config.pool.clone(),
            cluster: config.cluster.clone(),
            label: config.label.clone(),
            wanted: Wanted::On.as_str().to_owned(),
            state: State::Stopped.as_str().to_owned(),
            operation_id: None,
            problem: None,
            created_at: chrono::NaiveDateTime::default(),
        })
    }
}

/// Whose volumes a backend has.
fn scope_of(service: &str, cluster: Option<&str>) -> Scope {
    match cluster {
        Some(name) => Scope::Cluster(name.to_owned()),
        None => Scope::Host(service.to_owned()),
    }
}

/// Runs something that waits for a disk where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("Work on files of backends was dropped").caused_by(e))
}
