//! What scoria-volume and scoria-backup have in common as processes: the parts that both start with, signals, the
//! service manager, and the order in which all of it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::clients::Clients;
use super::logging::LogHandle;
use super::pins;
use crate::backend::Peers;
use crate::config::{Config, LogConfig, Sources};
use crate::db::{Db, migration};
use crate::error::{Code, Error, Result};
use crate::journal::{Journal, JournalOptions, Owner};
use crate::rbd::Ceph;
use crate::rbd::pool::{Settings, WorkerPool};
use crate::rpc::{self, Notifier, Rpc};

/// How long notifications that wait for the broker may delay the end.
const FLUSH: Duration = Duration::from_secs(5);
/// How often the journal is purged.
const PURGE: Duration = Duration::from_secs(600);

/// A service as a process.
pub(super) trait Process: Sized {
    /// The program.
    const NAME: &'static str;

    /// What it has in common with the others.
    fn core(&self) -> &Core;

    /// The configuration is to be read again, beside that of the log.
    fn read_again(&self) {}

    /// Lets operations finish for `limit`, or until `hurry`, and ends.
    async fn stop(self, limit: Duration, hurry: impl Future<Output = ()>);
}

/// Starts a service, and runs it until it is told to stop.
///
/// # Errors
/// Those of `start`.
pub(super) async fn run<P: Process>(
    config: &Config,
    sources: &Sources,
    log: &LogHandle,
    start: impl Future<Output = Result<P>>,
) -> Result<()> {
    let mut signals = Signals::new()?;
    // The start waits for a database or a broker that is away, for as long as it takes.
    let started = tokio::select! {
        started = start => started,
        () = signals.stop::<P>(sources, log, None) => {
            info!("told to stop before the service was ready");
            return Ok(());
        }
    };
    let service = started?;
    info!(host = config.host, "{} serves", P::NAME);
    notify(&[sd_notify::NotifyState::Ready]);
    let watchdog = tokio::spawn(watchdog(service.core().stopping.clone()));
    signals.stop(sources, log, Some(&service)).await;
    info!("stopping: no new requests, those in flight finish");
    notify(&[sd_notify::NotifyState::Stopping]);
    service.stop(config.graceful_shutdown_timeout, signals.stop::<P>(sources, log, None)).await;
    watchdog.abort();
    info!("{} has stopped", P::NAME);
    Ok(())
}

/// Database, journal, broker and workers, and what keeps them in order.
pub(super) struct Core {
    pub(super) journal: Journal,
    pub(super) rpc: Rpc,
    pub(super) notifier: Arc<Notifier>,
    pub(super) pool: Arc<WorkerPool>,
    pub(super) clients: Arc<rpc::Peers>,
    /// Cancelled when all operations have ended.
    stopping: CancellationToken,
    housekeeping: [JoinHandle<()>; 4],
}

impl Core {
    /// Waits for the database. May be dropped at any time.
    ///
    /// # Errors
    /// What makes serving impossible: an unusable configuration, a database of the wrong schema.
    pub(super) async fn start(config: &Config) -> Result<Core> {
        let stopping = CancellationToken::new();
        let db = Db::connect(&config.database);
        migration::run(&db).await?;
        let journal =
            Journal::new(db.clone(), Owner::new(config.host.clone()), JournalOptions::from(&config.scoria));
        let rpc = Rpc::new(&config.rabbit, &config.control_exchange)?;
        let notifier =
            Arc::new(Notifier::start(&config.notifications, rpc.publisher(), &config.control_exchange)?);
        let pool = workers(config, &journal, &stopping)?;
        let clients = Arc::new(rpc::Peers::new(rpc.publisher().clone()));
        pins::read(&db, &clients).await?;
        let housekeeping = [
            tokio::spawn(lease(journal.clone(), stopping.clone())),
            tokio::spawn(kill_on_loss(journal.clone(), pool.clone(), stopping.clone())),
            tokio::spawn(purge(journal.clone(), stopping.clone())),
            tokio::spawn(pins::keep(db, clients.clone(), stopping.clone())),
        ];
        Ok(Core { journal, rpc, notifier, pool, clients, stopping, housekeeping })
    }

    pub(super) fn ceph(&self) -> Arc<dyn Ceph> {
        self.pool.clone()
    }

    pub(super) fn peers(&self) -> Peers {
        Peers {
            notify: self.notifier.clone(),
            scheduler: self.clients.clone(),
            volumes: self.clients.clone(),
            backups: self.clients.clone(),
        }
    }

    /// After the last operation.
    pub(super) async fn end(self) {
        self.stopping.cancel();
        self.pool.shutdown(Duration::from_secs(1)).await;
        for task in self.housekeeping {
            task.abort();
        }
        self.notifier.flush(FLUSH).await;
        self.rpc.close().await;
    }
}

fn workers(config: &Config, journal: &Journal, stopping: &CancellationToken) -> Result<Arc<WorkerPool>> {
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

async fn lease(journal: Journal, stopping: CancellationToken) {
    journal.lease_loop(stopping).await;
}

/// An owner that lost its lease kills its workers before anything else: somebody may be working on the
/// same images already (design, invariant 1).
async fn kill_on_loss(journal: Journal, pool: Arc<WorkerPool>, stopping: CancellationToken) {
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

async fn purge(journal: Journal, stopping: CancellationToken) {
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
async fn watchdog(stopping: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(period / 2) => {}
        }
        notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
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

struct Signals {
    hup: Signal,
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let listen = |kind| {
            signal(kind).map_err(|e| Error::new(Code::Config, "Cannot listen for signals").caused_by(e))
        };
        Ok(Signals {
            hup: listen(SignalKind::hangup())?,
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
        })
    }

    /// Returns when told to stop; reads log options, and what else the service wants, again when told so.
    async fn stop<P: Process>(&mut self, sources: &Sources, log: &LogHandle, service: Option<&P>) {
        loop {
            tokio::select! {
                _ = self.hup.recv() => {
                    reload(sources, log);
                    if let Some(service) = service {
                        service.read_again();
                    }
                }
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
            }
        }
    }
}
