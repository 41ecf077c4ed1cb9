//! The life of one backend inside the service: its row, its report, its heartbeat, its servers.
//!
//! Each of these is a task of its own, so that a Ceph site that hangs delays the report and nothing else:
//! the heartbeat goes on, a failover is accepted, and the other backends do not notice.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use super::handler::BackendHandler;
use super::intake::Intake;
use super::logging::LogHandle;
use super::recovery::Recovery;
use crate::backend::peers::{Capabilities, Reporter};
use crate::backend::{Backend, Condition};
use crate::config::Config;
use crate::context::RequestContext;
use crate::db;
use crate::db::cluster::ClusterChanges;
use crate::db::service::ServiceChanges;
use crate::error::Result;
use crate::model::ReplicationStatus;
use crate::replication::lag::Watch;
use crate::replication::{fence, orders, schedules, standing, target};
use crate::rpc::{Rpc, synthetic};
use crate::volume::trash::Purge;
use crate::volume::{cleanup, frozen, scratch};

/// How often a backend that is down is tried again.
const RETRY_DOWN: Duration = Duration::from_secs(5);
/// How often sites that are to be fenced are looked at.
const FENCES: Duration = Duration::from_secs(15);

/// How long the start waits for the first answer of a site: long enough for one that is well, short for one
/// that hangs. The report goes on asking.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// How often the schedules of mirror snapshots are compared with what they should be. The manager itself looks for
/// changes once a minute.
const SCHEDULES: Duration = Duration::from_secs(60);

/// What a backend's tasks go by.
#[derive(Debug, Clone)]
pub struct Periods {
    /// `report_interval`.
    pub heartbeat: Duration,
    /// `backend_stats_polling_interval`.
    pub report: Duration,
    /// `enable_new_services`.
    pub enable_new_services: bool,
    /// `executor_thread_pool_size`.
    pub pool_size: usize,
}

impl From<&Config> for Periods {
    fn from(config: &Config) -> Periods {
        Periods {
            heartbeat: config.report_interval,
            report: config.backend_stats_polling_interval,
            enable_new_services: config.enable_new_services,
            pool_size: config.executor_thread_pool_size,
        }
    }
}

/// A backend being served.
pub struct Running {
    /// The backend.
    pub backend: Arc<Backend>,
    intake: Arc<Intake>,
    stop: CancellationToken,
    tasks: TaskTracker,
    recovered: TaskTracker,
    /// True once the scheduler has been told what the backend has.
    told: watch::Receiver<bool>,
}

impl Running {
    /// Registers the backend, finds out where it stands, starts to serve it.
    ///
    /// # Errors
    /// `Database` for what waiting does not cure.
    pub async fn start(
        backend: Arc<Backend>,
        rpc: &Rpc,
        log: LogHandle,
        periods: Periods,
    ) -> Result<Running> {
        standing::enter(&backend, periods.enable_new_services).await?;
        let scope = backend.scope();
        let allocated = backend
            .db
            .read("allocated capacity", async |conn| db::volume::allocated_by_pool(conn, &scope).await)
            .await?;
        backend.set_allocated(allocated);
        if tokio::time::timeout(FIRST_LOOK, backend.refresh_report()).await.is_err() {
            let reason = format!("site {} does not answer yet", backend.active_name());
            backend.set_condition(Condition::Down { reason });
        }
        settle_replication_status(&backend).await?;

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let recovered = TaskTracker::new();
        let handler = Arc::new(BackendHandler::new(backend.clone(), log, periods.pool_size));
        let intake = Arc::new(Intake::new(backend.clone(), handler.clone(), rpc.clone()));
        let recovery = Arc::new(Recovery {
            backend: backend.clone(),
            handler,
            publisher: rpc.publisher().clone(),
            intake: intake.clone(),
            stopping: stop.clone(),
            running: recovered.clone(),
        });
        if let Err(error) = recovery.pay_debts().await {
            warn!(backend = backend.host(), %error, "could not send the answers that a former instance owed");
        }
        if let Err(error) = scratch::sweep(&backend.journal, &backend.globals.image.conversion_dir).await {
            warn!(backend = backend.host(), %error, "could not look for files that a former instance has left");
        }
        recovery.look().await?;
        let context = RequestContext::admin();
        let unfinished = cleanup::at_start(&backend, &context, &synthetic::delete_volume).await?;
        if !unfinished.is_empty() {
            let backend = backend.clone();
            recovered.spawn(async move {
                // A site that is away for a moment must not turn them into `error_deleting`.
                while backend.require_up().is_err() {
                    tokio::time::sleep(RETRY_DOWN).await;
                }
                cleanup::finish(&backend, &context, unfinished).await;
            });
        }
        intake.open();
        tasks.spawn(recovery.watch(stop.clone()));
        tasks.spawn(heartbeat(backend.clone(), periods.clone(), stop.clone()));
        let (tell, told) = watch::channel(false);
        tasks.spawn(report(backend.clone(), periods.report, tell, stop.clone()));
        // Whether there is another site may change while it runs.
        tasks.spawn(keep_schedules(backend.clone(), stop.clone()));
        tasks.spawn(lay_fences(backend.clone(), stop.clone()));
        if backend.config.deferred_deletion {
            tasks.spawn(purge_trash(backend.clone(), stop.clone()));
        }
        if !backend.config.replication_poll_interval.is_zero() {
            tasks.spawn(watch_copies(backend.clone(), stop.clone()));
        }
        tasks.close();
        Ok(Running { backend, intake, stop, tasks, recovered, told })
    }

    /// Returns when the scheduler has been told for the first time.
    pub async fn told(&self) {
        // An error means that it has been stopped.
        let _ = self.told.clone().wait_for(|told| *told).await;
    }

    /// Names of its fanout queues, which with a queue manager outlive it.
    pub fn fanouts(&self) -> Vec<String> {
        self.intake.fanouts()
    }

    /// Returns when all its queues are consumed.
    pub async fn ready(&self) {
        self.intake.ready().await;
    }

    /// True while its queues are consumed.
    pub fn is_ready(&self) -> bool {
        self.intake.is_ready()
    }

    /// Takes no more requests, finishes those in flight within `limit` (zero: no limit), stops the tasks.
    /// What is not finished stays in the journal. True when everything is.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.stop.cancel();
        let drained = self.intake.end(limit).await;
        self.recovered.close();
        let recovered = async { self.recovered.wait().await };
        let rest = if limit.is_zero() { Duration::from_secs(3600) } else { limit };
        let finished = tokio::time::timeout(rest, recovered).await.is_ok();
        if !drained || !finished {
            warn!(
                backend = self.backend.host(),
                operations = self.backend.journal.open_count(),
                "stopping with operations under way: they go on when the service starts again"
            );
        }
        self.tasks.wait().await;
        drained && finished
    }
}

/// `replication_status` of the row at start, from configuration and journal, never from whether Ceph
/// answers: with the primary dead the row must say `enabled`, or cinder-api refuses the failover
/// (`init_host_with_rpc`, reference replication.md 3.6).
async fn settle_replication_status(backend: &Arc<Backend>) -> Result<()> {
    let open = backend.journal.open_methods(&backend.scope(), orders::MOVES).await?;
    let service = backend.service()?;
    // An order that no service has taken yet has not begun.
    let status = if open.iter().any(|o| orders::OF_BACKEND.contains(&o.method.as_str()) && !o.is_waiting()) {
        ReplicationStatus::FailingOver
    } else if target::active(service.active_backend_id.as_deref()) != target::DEFAULT {
        ReplicationStatus::FailedOver
    } else if backend.is_replicated() {
        ReplicationStatus::Enabled
    } else {
        ReplicationStatus::Disabled
    };
    let changes =
        ServiceChanges { replication_status: Some(status.as_str().to_owned()), ..ServiceChanges::default() };
    let cluster = backend.config.cluster.clone();
    let after = backend
        .db
        .write("replication status at start", async |conn| {
            db::service::update(conn, service.id, &changes).await?;
            if let Some(name) = &cluster
                && let Some(row) = db::cluster::find(conn, name).await?
                && row.replication_status.as_deref() != Some("failing-over")
            {
                let changes = ClusterChanges {
                    replication_status: changes.replication_status.clone(),
                    ..ClusterChanges::default()
                };
                db::cluster::update(conn, row.id, &changes).await?;
            }
            db::service::get(conn, service.id).await
        })
        .await?;
    backend.set_service(after);
    Ok(())
}

/// Keeps the row alive: as long as the backend can do anything, which is work on volumes or, when it is
/// replicated, fail over. One that has never come up and cannot fail over is reported down, as upstream.
async fn heartbeat(backend: Arc<Backend>, periods: Periods, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(periods.heartbeat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut silent = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !backend.was_ever_up() && !backend.is_replicated() {
            if !silent && let Condition::Down { reason } = backend.condition() {
                warn!(backend = backend.host(), reason, "no heartbeat: the backend has not come up");
                silent = true;
            }
            continue;
        }
        silent = false;
        if let Err(error) = standing::beat(&backend, periods.enable_new_services).await {
            error!(backend = backend.host(), %error, "could not write the heartbeat, or not follow the cluster");
        }
    }
}

/// Measures and reports to the scheduler: periodically, when asked, and soon after a backend came up.
async fn report(backend: Arc<Backend>, every: Duration, told: watch::Sender<bool>, stop: CancellationToken) {
    let context = RequestContext::admin();
    loop {
        let capabilities = backend.refresh_report().await;
        let report = Capabilities {
            service: Reporter::Volume,
            host: backend.host().to_owned(),
            cluster: backend.config.cluster.clone(),
            capabilities,
        };
        match backend.peers.scheduler.report_capabilities(&context, report).await {
            Ok(()) => drop(told.send_replace(true)),
            Err(error) => {
                warn!(backend = backend.host(), %error, "could not report capabilities to the scheduler");
            }
        }
        let pause = match backend.condition() {
            Condition::Up => every,
            Condition::Starting | Condition::Down { .. } => every.min(RETRY_DOWN),
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            () = backend.report_is_wanted() => {
                // A hundred deletions in a row want one report.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Looks after the schedules of mirror snapshots, now and then and when something has changed.
async fn keep_schedules(backend: Arc<Backend>, stop: CancellationToken) {
    loop {
        let kept = tokio::select! {
            () = stop.cancelled() => return,
            kept = async { if backend.is_replicated() { schedules::keep(&backend).await } else { Ok(()) } } => kept,
        };
        if let Err(error) = kept {
            warn!(backend = backend.host(), %error, "could not look after the schedules of mirror snapshots");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SCHEDULES) => {}
            () = backend.schedules_wanted.notified() => {
                // A hundred creations in a row want one look.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Lays the fences that are wanted on sites that have come back, and looks which still hold.
async fn lay_fences(backend: Arc<Backend>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(FENCES) => {}
        }
        if !backend.is_replicated() {
            continue;
        }
        let done = tokio::select! {
            () = stop.cancelled() => return,
            done = fence::reconcile(&backend) => done,
        };
        if let Err(error) = done {
            warn!(backend = backend.host(), %error, "could not look after the fences");
        }
    }
}

/// Purges the trash of every site each `deferred_deletion_purge_interval`.
async fn purge_trash(backend: Arc<Backend>, stop: CancellationToken) {
    let mut purge = Purge::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backend.config.deferred_deletion_purge_interval) => {}
        }
        // What is in the trash of a frozen backend can still be had back.
        if frozen::is(&backend).await.unwrap_or(true) {
            continue;
        }
        // A removal takes as long as it takes; the end of the service does not wait for it.
        let purged = tokio::select! {
            () = stop.cancelled() => return,
            purged = purge.turn(&backend) => purged,
        };
        if let Err(error) = purged {
            warn!(backend = backend.host(), %error, "could not purge the trash");
        }
    }
}

/// Looks at how far behind the copies are, every `scoria_replication_poll_interval`. Whether the active site answers
/// does not matter: what the others say is worth the more when it does not.
async fn watch_copies(backend: Arc<Backend>, stop: CancellationToken) {
    let period = backend.config.replication_poll_interval;
    let mut watch = Watch::default();
    loop {
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            looked = async { if backend.is_replicated() { watch.turn(&backend, period).await } else { Ok(()) } } => looked,
        };
        if let Err(error) = looked {
            warn!(backend = backend.host(), %error, "could not look at the copies of volumes");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
    }
}
