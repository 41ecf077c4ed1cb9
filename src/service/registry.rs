//! What runs: the backends of this process by name, each started and stopped without a word to the others.
//!
//! They share what is dear: the connections to the broker and to the database, tokens, and the workers, which belong to a
//! (conf, user) and not to a backend. When the last backend that works by one is stopped, its workers end.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tracing::{debug, error, info};

use super::backends::{Periods, Running};
use super::logging::LogHandle;
use super::sites::SiteService;
use crate::backend::locks::{Gate, NamedLocks};
use crate::backend::{Backend, Condition, Globals, Peers, connections};
use crate::backends::{Runner, Started};
use crate::config::BackendConfig;
use crate::error::{Code, Error, Result};
use crate::journal::Journal;
use crate::rbd::Ceph;
use crate::rbd::protocol::Connection;
use crate::rpc::{Caller, Rpc};

/// How long a start waits for the broker.
const TOLD: Duration = Duration::from_secs(60);

/// Between two questions whether the scheduler knows a new backend.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What every backend of the process is made of.
#[derive(Clone)]
pub struct Parts {
    /// Options that are the same for all.
    pub globals: Globals,
    /// The journal.
    pub journal: Journal,
    /// Whom they tell.
    pub peers: Peers,
    /// Workers.
    pub ceph: Arc<dyn Ceph>,
    /// The broker.
    pub rpc: Rpc,
    /// Log levels.
    pub log: LogHandle,
    /// What their tasks go by.
    pub periods: Periods,
}

/// What outlives a restart of a backend.
#[derive(Clone)]
struct Kept {
    locks: Arc<NamedLocks>,
    gate: Gate,
}

/// The backends that run.
pub struct Registry {
    parts: Parts,
    caller: Caller,
    sites: Arc<SiteService>,
    running: Mutex<BTreeMap<String, Arc<Running>>>,
    kept: Mutex<HashMap<String, Kept>>,
    /// Fanout queues of backends that were stopped, by service host.
    fanouts: Mutex<HashMap<String, Vec<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// With no backend.
    pub fn new(parts: Parts, sites: Arc<SiteService>) -> Registry {
        let caller = parts.rpc.caller();
        Registry {
            parts,
            caller,
            sites,
            running: Mutex::default(),
            kept: Mutex::default(),
            fanouts: Mutex::default(),
        }
    }

    /// Starts a backend without waiting for its queues.
    ///
    /// # Errors
    /// `Database` for what waiting does not cure.
    pub async fn begin(&self, config: &BackendConfig) -> Result<Arc<Running>> {
        if let Some(running) = self.get(&config.section) {
            return Ok(running);
        }
        let p = &self.parts;
        let mut backend =
            Backend::new(config.clone(), p.globals.clone(), p.journal.clone(), p.peers.clone(), &p.ceph);
        let kept = lock(&self.kept).get(&config.host).cloned();
        match kept {
            Some(kept) => backend = backend.succeeding(kept.locks, kept.gate),
            None => {
                let kept = Kept { locks: backend.locks.clone(), gate: backend.gate.clone() };
                lock(&self.kept).insert(config.host.clone(), kept);
            }
        }
        // Before anything asks the cluster, so that a look at a site does not take its workers for its own.
        self.sites.follow(config);
        let running = Running::start(Arc::new(backend), &p.rpc, p.log.clone(), p.periods.clone()).await;
        let running = match running {
            Ok(running) => Arc::new(running),
            Err(error) => {
                self.sites.leave(config);
                self.close(config);
                return Err(error);
            }
        };
        lock(&self.running).insert(config.section.clone(), running.clone());
        Ok(running)
    }

    fn get(&self, name: &str) -> Option<Arc<Running>> {
        lock(&self.running).get(name).cloned()
    }

    /// All that run.
    pub fn all(&self) -> Vec<Arc<Running>> {
        lock(&self.running).values().cloned().collect()
    }

    /// Stops all, each with this limit.
    pub async fn drain(&self, limit: Duration) {
        let all = self.all();
        futures::future::join_all(all.iter().map(|running| running.drain(limit))).await;
    }

    /// Ends the workers by which nobody works any more.
    fn close(&self, config: &BackendConfig) {
        let same = |a: &Connection, b: &Connection| {
            (&a.conf, &a.user, &a.cluster_name) == (&b.conf, &b.user, &b.cluster_name)
        };
        let used: Vec<Connection> =
            self.sites.sites().worked().into_iter().map(|worked| worked.connection).collect();
        for connection in connections(config) {
            if !used.iter().any(|other| same(other, &connection)) {
                self.parts.ceph.leave(&connection);
            }
        }
    }
}

#[async_trait]
impl Runner for Registry {
    async fn start(&self, config: &BackendConfig) -> Result<Started> {
        let running = Box::pin(self.begin(config)).await?;
        let serves = async {
            running.ready().await;
            running.told().await;
        };
        if tokio::time::timeout(TOLD, serves).await.is_err() {
            return Err(Error::new(
                Code::Broker,
                format!(
                    "The broker did not let backend {} serve within {} s",
                    config.section,
                    TOLD.as_secs()
                ),
            ));
        }
        let down = match running.backend.condition() {
            Condition::Up => None,
            Condition::Starting => Some("it is still starting".to_owned()),
            Condition::Down { reason } => Some(reason),
        };
        Ok(Started { down })
    }

    async fn stop(&self, name: &str, limit: Duration) -> bool {
        let Some(running) = lock(&self.running).remove(name) else { return true };
        let began = std::time::Instant::now();
        let config = running.backend.config.clone();
        let options = running.backend.sites().options().clone();
        lock(&self.fanouts).insert(config.host.clone(), running.fanouts());
        let quiet = running.drain(limit).await;
        self.sites.leave(&config);
        // Adoption may have given it others than it was started with.
        for config in [&config, &options] {
            self.close(config);
        }
        info!(
            backend = config.host,
            stop_ms = began.elapsed().as_millis() as u64,
            quiet,
            "a backend is not served any more"
        );
        quiet
    }

    fn apply(&self, config: &BackendConfig) {
        match self.get(&config.section) {
            Some(running) => running.backend.take_options(config),
            None => error!(backend = config.host, "a backend that does not run was to take options over"),
        }
    }

    fn running(&self, name: &str) -> Option<BackendConfig> {
        self.get(name).map(|running| running.backend.sites().options().clone())
    }

    fn release(&self, config: &BackendConfig) {
        self.close(config);
    }

    async fn delete_queues(&self, service: &str, cluster: Option<&str>) -> Result<()> {
        let fanouts = lock(&self.fanouts).remove(service).unwrap_or_default();
        lock(&self.kept).remove(service);
        self.parts.rpc.delete_queues(service, &fanouts).await?;
        match cluster {
            Some(name) => self.parts.rpc.delete_queues(name, &[]).await,
            None => Ok(()),
        }
    }

    async fn ask(&self, host: &str, method: &str, args: Value, limit: Duration) -> Result<Value> {
        self.caller.call(host, ("backend", "1.0"), method, args, limit).await
    }

    async fn placeable(&self, pool: &str, limit: Duration) -> bool {
        let until = tokio::time::Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            match self.caller.scheduler_knows(pool, left).await {
                Ok(true) => return true,
                Ok(false) => debug!(pool, "the scheduler does not list it yet"),
                Err(error) => debug!(pool, %error, "the scheduler was asked in vain"),
            }
            if left.is_zero() {
                return false;
            }
            tokio::time::sleep(ASK_AGAIN.min(left)).await;
        }
    }
}
