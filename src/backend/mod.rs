//! One storage backend at run time: what every operation on its volumes needs.
//!
//! A backend is one section of configuration and one service host. It knows its Ceph sites, which of
//! them is active, whether it can serve, what it has allocated, and whom to tell. Operations get it by
//! reference and keep no state of their own, so a failover changes the active site for all of them in one
//! place.

pub mod capacity;
pub mod degraded;
mod facts;
pub mod locks;
mod notify;
pub mod peers;
mod sites;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::config::{BackendConfig, Config, ImageConfig, Sources};
use crate::db::Db;
use crate::db::quota::QuotaRules;
use crate::error::{Code, Error, Result};
use crate::journal::{Journal, Outcome};
use crate::model::{Scope, Service, Volume, pool_of};
use crate::openstack::OpenStack;
use crate::rbd::Ceph;
pub use facts::SiteFacts;
use locks::{Gate, NamedLocks};
use peers::{BackupPeers, Notify, Scheduler, VolumePeers};
pub use sites::{Sites, connections};

/// Name of the configured primary site (`cinder.volume.manager.FAILBACK_SENTINEL`).
pub const DEFAULT_SITE: &str = "default";

/// Whom a backend tells and asks; implemented by `rpc`.
#[derive(Clone)]
pub struct Peers {
    /// Notifications.
    pub notify: Arc<dyn Notify>,
    /// cinder-scheduler.
    pub scheduler: Arc<dyn Scheduler>,
    /// The other volume services.
    pub volumes: Arc<dyn VolumePeers>,
    /// The backup services.
    pub backups: Arc<dyn BackupPeers>,
}

/// Options that are the same for all backends of a process.
#[derive(Debug, Clone)]
pub struct Globals {
    /// `volume_name_template`.
    pub volume_name_template: String,
    /// `snapshot_name_template`.
    pub snapshot_name_template: String,
    /// `message_ttl`.
    pub message_ttl: Duration,
    /// `migration_create_volume_timeout_secs`.
    pub migration_create_timeout: Duration,
    /// `backup_use_same_host`.
    pub backup_use_same_host: bool,
    /// `service_down_time`.
    pub service_down_time: Duration,
    /// `storage_availability_zone`.
    pub availability_zone: String,
    /// Quota options.
    pub quota: QuotaRules,
    /// What is done with images.
    pub image: ImageConfig,
    /// Keystone, glance and nova.
    pub openstack: OpenStack,
    /// The files that all this was read from.
    pub sources: Sources,
}

impl From<&Config> for Globals {
    fn from(config: &Config) -> Globals {
        Globals {
            volume_name_template: config.volume_name_template.clone(),
            snapshot_name_template: config.snapshot_name_template.clone(),
            message_ttl: config.message_ttl,
            migration_create_timeout: config.migration_create_timeout,
            backup_use_same_host: config.backup_use_same_host,
            service_down_time: config.service_down_time,
            availability_zone: config.availability_zone.clone(),
            quota: QuotaRules::from(config),
            image: config.image.clone(),
            openstack: OpenStack::new(&config.openstack),
            sources: config.sources.clone(),
        }
    }
}

/// Whether a backend can work on volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Not yet tried.
    Starting,
    /// The active site answers and has the pool.
    Up,
    /// It does not; failover and administration are served all the same.
    Down {
        /// What is wrong, for the log, `--check-config` and `DriverNotInitialized`.
        reason: String,
    },
}

/// A backend.
pub struct Backend {
    /// Its configuration, as it was at the start. What it says of sites may be outdated: see [`Backend::sites`].
    pub config: BackendConfig,
    /// Options shared by all backends.
    pub globals: Globals,
    /// Cinder's database.
    pub db: Db,
    /// The journal.
    pub journal: Journal,
    /// Whom to tell.
    pub peers: Peers,
    /// Named locks of operations on one resource.
    pub locks: Arc<NamedLocks>,
    /// Keeps operations out while a failover changes the active site.
    pub gate: Gate,
    ceph: Arc<dyn Ceph>,
    flattens: Arc<Semaphore>,
    sites: RwLock<Arc<Sites>>,
    active: RwLock<String>,
    condition: RwLock<Condition>,
    ever_up: AtomicBool,
    service: RwLock<Option<Service>>,
    allocated: Mutex<HashMap<String, i64>>,
    report: RwLock<Map<String, Value>>,
    /// Volumes whose copies are not what they should be.
    pub degraded: degraded::Degraded,
    report_wanted: tokio::sync::Notify,
    /// A volume is mirrored, or otherwise, or by another site than before: schedules of mirror snapshots may be due.
    pub schedules_wanted: tokio::sync::Notify,
}

impl Backend {
    /// A backend over `ceph`; nothing is connected yet.
    pub fn new(
        config: BackendConfig,
        globals: Globals,
        journal: Journal,
        peers: Peers,
        ceph: &Arc<dyn Ceph>,
    ) -> Backend {
        let flattens = match config.concurrent_flatten {
            0 => Semaphore::MAX_PERMITS,
            limit => limit.min(Semaphore::MAX_PERMITS),
        };
        let flattens = Arc::new(Semaphore::new(flattens));
        let sites = Sites::new(config.clone(), ceph, &flattens);
        let report = capacity::capabilities(&config, None, 0);
        let locks = Arc::new(NamedLocks::new(config.cluster.as_deref(), &journal));
        Backend {
            config,
            globals,
            db: journal.db().clone(),
            journal,
            peers,
            locks,
            gate: Gate::default(),
            ceph: ceph.clone(),
            flattens,
            sites: RwLock::new(Arc::new(sites)),
            active: RwLock::new(DEFAULT_SITE.to_owned()),
            condition: RwLock::new(Condition::Starting),
            ever_up: AtomicBool::new(false),
            service: RwLock::new(None),
            allocated: Mutex::new(HashMap::new()),
            report: RwLock::new(report),
            degraded: degraded::Degraded::default(),
            report_wanted: tokio::sync::Notify::new(),
            schedules_wanted: tokio::sync::Notify::new(),
        }
    }

    /// The same with the locks and the gate of one that served this backend before: what that has not ended, and may
    /// go on with, is still waited for.
    #[must_use]
    pub fn succeeding(mut self, locks: Arc<NamedLocks>, gate: Gate) -> Backend {
        self.locks = locks;
        self.gate = gate;
        self
    }

    /// `host@backend`.
    pub fn host(&self) -> &str {
        &self.config.host
    }

    /// `host@backend#pool`: the host of new volumes.
    pub fn pool_host(&self) -> String {
        format!("{}#{}", self.config.host, self.config.backend_name)
    }

    /// Which volumes are this backend's.
    pub fn scope(&self) -> Scope {
        match &self.config.cluster {
            Some(cluster) => Scope::Cluster(cluster.clone()),
            None => Scope::Host(self.config.host.clone()),
        }
    }

    // ---- names --------------------------------------------------------------------------------

    /// Image of a volume.
    pub fn image_name(&self, volume: &Volume) -> String {
        self.globals.volume_name_template.replace("%s", volume.name_id())
    }

    /// RBD snapshot of a snapshot.
    pub fn snap_name(&self, snapshot_id: &str) -> String {
        self.globals.snapshot_name_template.replace("%s", snapshot_id)
    }

    // ---- condition ----------------------------------------------------------------------------

    /// Whether it can work on volumes.
    pub fn condition(&self) -> Condition {
        self.condition.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True once the backend has worked since the service started.
    pub fn was_ever_up(&self) -> bool {
        self.ever_up.load(Ordering::Relaxed)
    }

    /// Changes the condition, and says so once.
    pub fn set_condition(&self, condition: Condition) {
        if condition == Condition::Up {
            self.ever_up.store(true, Ordering::Relaxed);
        }
        let before = {
            let mut held = self.condition.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *held, condition.clone())
        };
        if before == condition {
            return;
        }
        match &condition {
            Condition::Starting => {}
            Condition::Up => info!(backend = self.host(), site = self.active_name(), "backend is up"),
            Condition::Down { reason } => {
                warn!(backend = self.host(), site = self.active_name(), reason, "backend is down");
            }
        }
    }

    /// Fails when the backend has never been able to work on volumes (upstream's "driver not
    /// initialized"). One that has been up and does not answer now is worth trying: each call to Ceph has
    /// its deadline, and a site that is slow for a moment must not turn requests into errors.
    ///
    /// # Errors
    /// `DriverNotInitialized` with the reason.
    pub fn require_up(&self) -> Result<()> {
        let reason = match self.condition() {
            Condition::Up => return Ok(()),
            _ if self.was_ever_up() => return Ok(()),
            Condition::Starting => "it is still starting".to_owned(),
            Condition::Down { reason } => reason,
        };
        Err(Error::new(Code::DriverNotInitialized, "Volume driver not ready.").detail(reason))
    }

    // ---- the service row ----------------------------------------------------------------------

    /// The row in `services` as it was last read.
    ///
    /// # Errors
    /// `DriverNotInitialized` before the service has registered.
    pub fn service(&self) -> Result<Service> {
        let service = self.service.read().unwrap_or_else(PoisonError::into_inner).clone();
        service.ok_or_else(|| Error::new(Code::DriverNotInitialized, "The service has not registered yet"))
    }

    /// Remembers the row.
    pub fn set_service(&self, service: Service) {
        *self.service.write().unwrap_or_else(PoisonError::into_inner) = Some(service);
    }

    // ---- capacity -----------------------------------------------------------------------------

    /// Starts the count of allocated GiB from the database's sums by host.
    pub fn set_allocated(&self, by_host: HashMap<String, u64>) {
        let counted =
            by_host.into_iter().map(|(host, gb)| (host, i64::try_from(gb).unwrap_or(i64::MAX))).collect();
        *self.allocated.lock().unwrap_or_else(PoisonError::into_inner) = counted;
    }

    /// Adds GiB (negative: gives back) to what a volume's pool has allocated.
    pub fn allocate(&self, volume_host: Option<&str>, gb: i64) {
        let host = match volume_host {
            Some(host) if pool_of(host).is_some() => host.to_owned(),
            _ => self.pool_host(),
        };
        let mut allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = allocated.entry(host).or_default();
        *sum = sum.saturating_add(gb).max(0);
    }

    /// GiB allocated in all pools of this backend.
    pub fn allocated_gb(&self) -> u64 {
        let allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        allocated.values().map(|gb| u64::try_from(*gb).unwrap_or(0)).sum()
    }

    /// The capabilities as last reported.
    pub fn report(&self) -> Map<String, Value> {
        let mut report = self.report.read().unwrap_or_else(PoisonError::into_inner).clone();
        report.insert("allocated_capacity_gb".to_owned(), self.allocated_gb().into());
        report
    }

    /// Measures the active site and makes a new report. A site that does not answer makes a report too:
    /// `backend_state: down`.
    pub async fn refresh_report(&self) -> Map<String, Value> {
        let measured = loop {
            let site = self.active_name();
            let measured = self.measure().await;
            // A failover meanwhile: what was measured says nothing of the site that serves now.
            if self.active_name() == site {
                break measured;
            }
        };
        self.set_condition(match &measured {
            Ok(_) => Condition::Up,
            Err(error) => Condition::Down { reason: error.operator() },
        });
        let measured = measured.ok();
        let mut report =
            capacity::capabilities(self.sites().options(), measured.as_ref(), self.allocated_gb());
        self.degraded.report(&mut report);
        *self.report.write().unwrap_or_else(PoisonError::into_inner) = report.clone();
        report
    }

    /// Asks for a report to the scheduler soon: capacity has changed, or somebody asked.
    pub fn want_report(&self) {
        self.report_wanted.notify_one();
    }

    /// Returns when a report is wanted.
    pub async fn report_is_wanted(&self) {
        self.report_wanted.notified().await;
    }

    /// The outcome of an operation that ended as asked.
    pub fn done(&self) -> Outcome {
        Outcome::succeeded()
    }
}
