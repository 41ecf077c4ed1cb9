//! Discarding the losing side of a split-brain, by explicit order.
//!
//! After an unplanned failover the old primary comes back with an image that is primary too. Nothing in
//! Scoria throws such a copy away by itself: the operator orders it with `scoria-manage replication
//! resync --backend B --discard SITE`. The order is journaled like any operation, so it survives the
//! process that runs it.

pub mod choice;
pub mod order;
pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::plan::{Action, Case, Reason, Step, plan};
use super::engine::{Ledger, Pause, look_at, reported_of};
use super::plan::{Peer, Side};
use crate::error::Result;
use crate::rbd::Site;
use crate::rbd::protocol::{ImageStat, MirrorDemote, MirrorResync};

/// One volume whose copy is to be discarded.
#[derive(Debug, Clone)]
pub struct Job {
    /// Volume id.
    pub volume_id: String,
    /// Image name.
    pub image: String,
    /// Last recorded step.
    pub step: Step,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Volumes worked on at once.
    pub concurrency: usize,
    /// One question to a site.
    pub answer: Duration,
    /// Until a copy that was found demoted must replay by itself, before it is resynced.
    pub settle: Duration,
    /// Until a demotion counts as failed.
    pub demote: Duration,
    /// Until the new copy must replay.
    pub sync: Duration,
}

/// Resyncs all `jobs` of `pool`: `loser` takes over the content of `keeper`.
pub async fn run(
    pool: &str,
    keeper: &Site,
    loser: &Site,
    limits: Limits,
    ledger: Arc<dyn Ledger<Step>>,
    jobs: Vec<Job>,
) -> Result<HashMap<String, Step>> {
    let slots = Semaphore::new(limits.concurrency.max(1));
    let mut running: FuturesUnordered<_> =
        jobs.into_iter().map(|job| volume(pool, keeper, loser, limits, &*ledger, &slots, job)).collect();
    let mut outcome = HashMap::new();
    while let Some(done) = running.next().await {
        let (volume_id, step) = done?;
        outcome.insert(volume_id, step);
    }
    Ok(outcome)
}

async fn volume(
    pool: &str,
    keeper: &Site,
    loser: &Site,
    limits: Limits,
    ledger: &dyn Ledger<Step>,
    slots: &Semaphore,
    job: Job,
) -> Result<(String, Step)> {
    // A semaphore that is never closed always grants.
    let _slot = slots.acquire().await;
    let (mut step, mut since, mut pause) = (job.step.clone(), Instant::now(), Pause::default());
    let (started, mut told, mut last_word) = (since, false, None);
    loop {
        let (kept, lost) = tokio::join!(
            look_at(keeper, pool, &job.image, limits.answer),
            look_at(loser, pool, &job.image, limits.answer)
        );
        let (kept, lost) = (kept.unwrap_or(Side::Unknown), lost.unwrap_or(Side::Unknown));
        let (mut peer, reported) = match lost {
            Side::Secondary => {
                reported_of(loser, pool, &job.image, limits.answer).await.unwrap_or((Peer::Unknown, 0))
            }
            _ => (Peer::Unknown, 0),
        };
        let limit = match step {
            Step::Pending => limits.settle,
            Step::Demoting => limits.demote,
            Step::Resyncing { .. } => limits.sync,
            Step::Replaying | Step::Failed { .. } => Duration::ZERO,
        };
        // When it cannot be told which copy it is, nothing is ordered.
        let (renewed, ordered) = match &step {
            Step::Resyncing { discarded: Some(old) } if lost == Side::Secondary => {
                match copy_of(loser, pool, &job.image, limits.answer).await {
                    Some(id) => (id != *old, told),
                    None => (false, true),
                }
            }
            _ => (true, told),
        };
        // Reports are kept under the id that both copies share: what stood there when the new copy was first
        // seen may be the last word on the one thrown away.
        if renewed && peer != Peer::Unknown && matches!(step, Step::Resyncing { discarded: Some(_) }) {
            let stale = *last_word.get_or_insert(reported);
            if reported <= stale {
                peer = Peer::Unknown;
            }
        }
        let expired = since.elapsed() >= limit;
        let case = Case { step: step.clone(), keeper: kept, loser: lost, peer, renewed, ordered, expired };
        let action = plan(&case);
        debug!(volume.id = job.volume_id, ?case, ?action, "planned");
        let next = match action {
            Action::Observe => {
                pause.rest().await;
                continue;
            }
            Action::Demote => Step::Demoting,
            Action::Resync => match &step {
                Step::Resyncing { .. } => step.clone(),
                _ => match copy_of(loser, pool, &job.image, limits.answer).await {
                    None if !case.expired => {
                        pause.rest().await;
                        continue;
                    }
                    discarded => Step::Resyncing { discarded },
                },
            },
            Action::Finish => Step::Replaying,
            Action::Fail(reason) => Step::Failed { reason },
        };
        if next != step {
            ledger.record(&job.volume_id, &next).await?;
            (step, since, pause) = (next, Instant::now(), Pause::default());
        }
        let (pool, image) = (pool.to_owned(), job.image.clone());
        let done = match action {
            Action::Demote => loser.call_within(limits.demote, MirrorDemote { pool, image }).await,
            Action::Resync => loser.call(MirrorResync { pool, image }).await,
            Action::Finish | Action::Fail(_) | Action::Observe => {
                report(&job, &step, started);
                return Ok((job.volume_id, step));
            }
        };
        match done {
            Ok(()) => told = action == Action::Resync,
            Err(error) => {
                debug!(volume.id = job.volume_id, ?action, %error, "step has not succeeded yet");
            }
        }
        pause.rest().await;
    }
}

/// Internal id of an image; `None` when the site did not say.
async fn copy_of(site: &Site, pool: &str, image: &str, within: Duration) -> Option<String> {
    let stat = ImageStat { pool: pool.to_owned(), image: image.to_owned() };
    site.call_within(within, stat).await.ok().map(|info| info.id)
}

fn report(job: &Job, step: &Step, started: Instant) {
    let took_ms = started.elapsed().as_millis() as u64;
    match step {
        Step::Failed { reason } => {
            warn!(volume.id = job.volume_id, took_ms, "volume was not resynced: {}", reason.text());
        }
        _ => info!(volume.id = job.volume_id, took_ms, "volume resynced, its copy replays"),
    }
}

/// Why a volume ended where it did; `None` when its copy replays.
pub fn failure(step: &Step) -> Option<Reason> {
    match step {
        Step::Failed { reason } => Some(*reason),
        _ => None,
    }
}
