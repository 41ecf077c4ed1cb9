//! `scoria-backup`: from configuration to a service that is ready, and from SIGTERM to its end.
//!
//! As for volumes, start-up waits for database and broker as long as it takes, never for Ceph; what is under way at
//! the end stays in the journal, and goes on where it was with the next start.

mod handler;
mod policy;
mod recovery;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

pub use handler::BackupHandler;
use recovery::Recovery;
pub use recovery::finish;

use super::logging::LogHandle;
use super::process::{self, Core, Process};
use crate::backend::peers::{Capabilities, Reporter};
use crate::backup::{Backups, schedule, status, using};
use crate::config::{Config, Sources};
use crate::context::RequestContext;
use crate::db;
use crate::db::site_use::UseRow;
use crate::error::Result;
use crate::rbd::protocol::PoolAccess;
use crate::rpc::{self, Server, synthetic};

/// How long a look at the backup pool may take.
const LOOK: Duration = Duration::from_secs(5);
/// How often a pool that cannot be used is looked at.
const RETRY: Duration = Duration::from_secs(5);
/// How often schedules are looked at.
const SCHEDULES: Duration = Duration::from_secs(5);

/// Runs the service until it is told to stop.
///
/// # Errors
/// What makes serving impossible: an unusable configuration, a database of the wrong schema.
pub async fn run(config: Config, sources: Sources, log: LogHandle) -> Result<()> {
    process::run(&config, &sources, &log, Service::start(&config, &log)).await
}

/// Everything that runs.
struct Service {
    server: Server,
    running: TaskTracker,
    tasks: TaskTracker,
    stop: CancellationToken,
    core: Core,
}

impl Service {
    async fn start(config: &Config, log: &LogHandle) -> Result<Service> {
        let core = Core::start(config).await?;
        let (stop, running, tasks) = (CancellationToken::new(), TaskTracker::new(), TaskTracker::new());
        let mut backups = Backups::new(config, core.journal.clone(), core.peers(), core.ceph());
        backups.stopping = stop.clone();
        let backups = Arc::new(backups);
        let row = register(&backups, config).await?;
        status::at_start(&backups, &RequestContext::admin(), &synthetic::delete_backup).await?;
        let handler =
            Arc::new(BackupHandler::new(backups.clone(), log.clone(), config.executor_thread_pool_size));
        let recovery =
            Recovery { backups: backups.clone(), handler: handler.clone(), running: running.clone() };
        recovery.look().await?;
        let server = core.rpc.serve_backups(&config.host, handler.clone());
        let works = tokio::sync::watch::Sender::new(false);
        tasks.spawn(until(stop.clone(), async move { recovery.watch().await }));
        tasks.spawn(until(stop.clone(), heartbeat(backups.clone(), config.clone(), row, works.subscribe())));
        tasks.spawn(until(stop.clone(), run_schedules(backups.clone(), works.subscribe())));
        tasks.spawn(until(stop.clone(), report(backups, handler, works)));
        tasks.close();
        server.ready().await;
        Ok(Service { server, running, tasks, stop, core })
    }
}

impl Process for Service {
    const NAME: &'static str = "scoria-backup";

    fn core(&self) -> &Core {
        &self.core
    }

    /// A `limit` of zero: operations take as long as they take.
    async fn stop(self, limit: Duration, hurry: impl Future<Output = ()>) {
        self.stop.cancel();
        self.running.close();
        let drained = async {
            self.server.drain(limit).await;
            let rest = if limit.is_zero() { Duration::MAX } else { limit };
            if tokio::time::timeout(rest, self.running.wait()).await.is_err() {
                warn!("stopping with backups under way: they go on when the service starts again");
            }
        };
        tokio::select! {
            () = drained => {}
            () = hurry => warn!("told to stop again: operations under way stay in the journal"),
        }
        self.tasks.wait().await;
        self.core.end().await;
    }
}

/// Runs a loop until told to stop.
async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn register(backups: &Backups, config: &Config) -> Result<i32> {
    let version = format!("{}.{}", rpc::backup::VERSION.0, rpc::backup::VERSION.1);
    let (host, zone) = (config.host.as_str(), config.availability_zone.as_str());
    let row = backups
        .db
        .write("register", async |conn| {
            db::service::register_backup(conn, host, zone, &version, config.enable_new_services).await
        })
        .await?;
    Ok(row.id)
}

/// Keeps the row alive once the pool of backups was seen: as upstream, a service that never could work is down.
async fn heartbeat(
    backups: Arc<Backups>,
    config: Config,
    mut row: i32,
    mut works: tokio::sync::watch::Receiver<bool>,
) {
    if works.wait_for(|works| *works).await.is_err() {
        return;
    }
    let mut ticks = tokio::time::interval(config.report_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let zone = config.availability_zone.as_str();
        let beat =
            backups.db.read("heartbeat", async |conn| db::service::heartbeat(conn, row, zone).await).await;
        match beat {
            Ok(true) => {}
            // Removed by an operator.
            Ok(false) => match register(&backups, &config).await {
                Ok(fresh) => row = fresh,
                Err(error) => error!(%error, "could not register again"),
            },
            Err(error) => error!(%error, "could not write the heartbeat"),
        }
    }
}

/// Runs what is due, while backups can be made: another service may be better off.
async fn run_schedules(backups: Arc<Backups>, mut works: tokio::sync::watch::Receiver<bool>) {
    loop {
        if works.wait_for(|works| *works).await.is_err() {
            return;
        }
        if let Err(error) = schedule::take_due(&backups).await {
            warn!(%error, "could not look which backups are due");
        }
        tokio::time::sleep(SCHEDULES).await;
    }
}

/// Writes down where backups go, when that is not what was written last. A cluster that does not answer is asked again with
/// the next report; until then the row of before stands.
async fn note_use(backups: &Backups, known: &mut Option<UseRow>) {
    let noted = async {
        let now = using::find(backups).await?;
        if known.as_ref() != Some(&now) {
            using::write(backups, &now).await?;
            *known = Some(now);
        }
        Ok::<(), crate::error::Error>(())
    };
    if let Err(error) = noted.await {
        debug!(%error, "where backups go is not written down yet");
    }
}

/// Whether backups can be made where they usually go.
async fn look(backups: &Backups) -> Result<()> {
    let place = backups.usual_place().await?;
    place.site.call_within(LOOK, PoolAccess { pool: place.pool }).await?;
    Ok(())
}

/// Looks whether the pool of backups can be used, and tells the scheduler: periodically, when asked, and soon after
/// that has changed.
async fn report(backups: Arc<Backups>, handler: Arc<BackupHandler>, works: tokio::sync::watch::Sender<bool>) {
    let context = RequestContext::admin();
    let mut known = None;
    loop {
        note_use(&backups, &mut known).await;
        let looked = look(&backups).await;
        let now = looked.is_ok();
        if works.send_replace(now) != now || !now {
            match &looked {
                Ok(()) => info!(pool = backups.config.ceph_pool, "the pool of backups can be used"),
                Err(error) => {
                    warn!(pool = backups.config.ceph_pool, %error, "the pool of backups cannot be used: none are made");
                }
            }
        }
        let report = Capabilities {
            service: Reporter::Backup,
            host: backups.host.clone(),
            cluster: None,
            capabilities: status::report(&backups, now),
        };
        if let Err(error) = backups.peers.scheduler.report_capabilities(&context, report).await {
            warn!(%error, "could not report to the scheduler");
        }
        let pause = if now { backups.config.report_interval } else { RETRY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = handler.wanted.notified() => {}
        }
    }
}
