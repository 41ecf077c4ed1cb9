//! `scoria-volume`: from configuration to a service that is ready, and from SIGTERM to its end.
//!
//! Start-up waits for database and broker as long as it takes and says so, never for Ceph. Its length does
//! not depend on the number of volumes. On SIGTERM no request is taken any more, those in flight finish,
//! and what does not finish in time stays in the journal for the next start.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::backends::Periods;
use super::clients::Clients;
use super::host::HostService;
use super::logging::LogHandle;
use super::pins;
use super::registry::{Parts, Registry};
use super::sites::SiteService;
use crate::backend::{Globals, Peers};
use crate::backends::{Backends, boot};
use crate::config::{Config, LogConfig, Sources};
use crate::db::{Db, migration};
use crate::error::{Code, Error, Result};
use crate::journal::{Journal, JournalOptions, Owner};
use crate::rbd::Ceph;
use crate::rbd::pool::{Settings, WorkerPool};
use crate::rpc::{self, Notifier, Rpc};

/// How long notifications that wait for the broker may delay the end.
pub(super) const FLUSH: Duration = Duration::from_secs(5);
/// How often the journal is purged.
const PURGE: Duration = Duration::from_secs(600);

/// Runs the service until it is told to stop.
///
/// # Errors
/// What makes serving impossible: an unusable configuration, a database of the wrong schema.
pub async fn run(config: Config, sources: Sources, log: LogHandle) -> Result<()> {
    let mut signals = Signals::new()?;
    // The start waits for a database or a broker that is away, for as long as it takes.
    let started = tokio::select! {
        started = Service::start(&config, &sources, &log) => started,
        () = signals.stop(&sources, &log, None) => {
            info!("told to stop before the service was ready");
            return Ok(());
        }
    };
    let service = started?;
    info!(backends = service.registry.all().len(), "scoria-volume serves");
    notify(&[sd_notify::NotifyState::Ready]);
    let watchdog = tokio::spawn(watchdog(service.stopping.clone()));
    signals.stop(&sources, &log, Some(&service.host)).await;
    info!("stopping: no new requests, those in flight finish");
    notify(&[sd_notify::NotifyState::Stopping]);
    service.stop(config.graceful_shutdown_timeout, signals.stop(&sources, &log, None)).await;
    watchdog.abort();
    info!("scoria-volume has stopped");
    Ok(())
}

/// Everything that runs.
struct Service {
    registry: Arc<Registry>,
    host: HostService,
    sites: Arc<SiteService>,
    pool: Arc<WorkerPool>,
    rpc: Rpc,
    notifier: Arc<Notifier>,
    housekeeping: [tokio::task::JoinHandle<()>; 4],
    stopping: CancellationToken,
}

impl Service {
    /// Returns when all backends serve or have been found to be down. May be dropped at any time: what has
    /// begun is in the journal.
    async fn start(config: &Config, sources: &Sources, log: &LogHandle) -> Result<Service> {
        let stopping = CancellationToken::new();
        let db = Db::connect(&config.database);
        migration::run(&db).await?;
        let journal =
            Journal::new(db.clone(), Owner::new(config.host.clone()), JournalOptions::from(&config.scoria));
        let rpc = Rpc::new(&config.rabbit, &config.control_exchange)?;
        let notifier =
            Arc::new(Notifier::start(&config.notifications, rpc.publisher(), &config.control_exchange)?);
        let pool = workers(config, &journal, &stopping)?;
        let ceph: Arc<dyn Ceph> = pool.clone();
        let clients = Arc::new(rpc::Peers::new(rpc.publisher().clone()));
        pins::read(&db, &clients).await?;
        let peers = Peers {
            notify: notifier.clone(),
            scheduler: clients.clone(),
            volumes: clients.clone(),
            backups: clients.clone(),
        };

        let housekeeping = [
            tokio::spawn(lease(journal.clone(), stopping.clone())),
            tokio::spawn(kill_on_loss(journal.clone(), pool.clone(), stopping.clone())),
            tokio::spawn(purge(journal.clone(), stopping.clone())),
            tokio::spawn(pins::keep(db, clients.clone(), stopping.clone())),
        ];
        let sites = Arc::new(SiteService::start(config, &journal, &ceph, notifier.clone(), clients).await?);
        // Made once: all backends share tokens and connections to other services.
        let parts = Parts {
            globals: Globals::from(config),
            journal: journal.clone(),
            peers,
            ceph: ceph.clone(),
            rpc: rpc.clone(),
            log: log.clone(),
            periods: Periods::from(config),
        };
        let registry = Arc::new(Registry::new(parts, sites.clone()));
        let backends = Arc::new(Backends::new(
            &config.host,
            sources.clone(),
            journal,
            ceph,
            notifier.clone(),
            registry.clone(),
            config.graceful_shutdown_timeout,
        ));
        start_all(config, &backends, &registry).await?;
        let host = HostService::start(sites.sites(), &backends, &rpc);
        for backend in registry.all() {
            backend.ready().await;
        }
        host.ready().await;
        Ok(Service { registry, host, sites, pool, rpc, notifier, housekeeping, stopping })
    }

    /// Lets operations finish for `limit`, or until `hurry`.
    async fn stop(self, limit: Duration, hurry: impl Future<Output = ()>) {
        let drained =
            async { tokio::join!(self.host.drain(limit), self.registry.drain(limit), self.sites.end()) };
        tokio::select! {
            _ = drained => {}
            () = hurry => warn!("told to stop again: operations under way stay in the journal"),
        }
        self.stopping.cancel();
        self.pool.shutdown(Duration::from_secs(1)).await;
        for task in self.housekeeping {
            task.abort();
        }
        if let Ok(notifier) = Arc::try_unwrap(self.notifier).map_err(|_| ()) {
            notifier.flush(FLUSH).await;
        }
        self.rpc.close().await;
    }
}

/// Starts the backends that are wanted, all at once. One that cannot be started does not keep the others from it.
async fn start_all(config: &Config, backends: &Backends, registry: &Registry) -> Result<()> {
    let wanted = boot::plan(backends, config).await?;
    let starting = wanted.iter().map(|section| async move { (section, registry.begin(section).await) });
    let mut first = None;
    for (section, outcome) in futures::future::join_all(starting).await {
        if let Err(error) = outcome {
            error!(backend = section.host, %error, "a backend could not be started");
            boot::failed(backends, &section.section, &error).await?;
            first.get_or_insert(error);
        }
    }
    match first {
        Some(error) if registry.all().is_empty() => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn workers(
    config: &Config,
    journal: &Journal,
    stopping: &CancellationToken,
) -> Result<Arc<WorkerPool>> {
    let path = Settings::worker_beside(config.scoria.worker_path.clone()).map_err(|e| {
        Error::new(Code::Config, "The path of this executable is not known; set scoria_worker_path")
            .caused_by(e)
    })?;
    let settings = Settings { workers_per_site: config.scoria.workers_per_site, ..Settings::new(path) };
    let observer = Clients::new(Arc::new(journal.clone()), stopping.clone());
    let pool = Arc::new(WorkerPool::new(settings, Some(observer.clone())));
    observer.of(&pool);
    Ok(pool)
}

pub(super) async fn lease(journal: Journal, stopping: CancellationToken) {
    journal.lease_loop(stopping).await;
}

/// An owner that lost its lease kills its workers before anything else: somebody may be working on the
/// same images already (design, invariant 1).
pub(super) async fn kill_on_loss(journal: Journal, pool: Arc<WorkerPool>, stopping: CancellationToken) {
    let mut losses = journal.losses();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = losses.changed() => if changed.is_err() { return },
        }
        error!("the lease is lost: killing all workers");
        pool.kill_all().await;
    }
}

pub(super) async fn purge(journal: Journal, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(PURGE) => {}
        }
        if let Err(error) = journal.purge().await {
            warn!(%error, "could not purge closed operations");
        }
    }
}

/// Pings systemd's watchdog at half its period, from the runtime that does the work.
pub(super) async fn watchdog(stopping: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(period / 2) => {}
        }
        notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

pub(super) fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "could not notify the service manager");
    }
}

/// SIGHUP: log options are read again and the log file is opened anew (logrotate).
fn reload(sources: &Sources, log: &LogHandle) {
    match LogConfig::load(&sources.files, &sources.dirs, std::env::vars()) {
        Ok((config, problems)) => {
            if let Err(error) = log.apply(&config) {
                error!(%error, "could not apply the log options");
            }
            for problem in problems {
                problem.log();
            }
        }
        Err(error) => error!(%error, "could not read the configuration again; log options are unchanged"),
    }
    log.reopen();
    info!("log options read again");
}

pub(super) struct Signals {
    hup: Signal,
    term: Signal,
    int: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Signals> {
        let listen = |kind| {
            signal(kind).map_err(|e| Error::new(Code::Config, "Cannot listen for signals").caused_by(e))
        };
        Ok(Signals {
            hup: listen(SignalKind::hangup())?,
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
        })
    }

    /// Returns when told to stop; reads log options, and backends, again when told so.
    pub(super) async fn stop(&mut self, sources: &Sources, log: &LogHandle, host: Option<&HostService>) {
        loop {
            tokio::select! {
                _ = self.hup.recv() => {
                    reload(sources, log);
                    if let Some(host) = host {
                        host.read_again();
                    }
                }
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
            }
        }
    }
}
