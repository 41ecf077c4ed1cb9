//! Moves many volumes from one site to another at once, and can be killed at any point.
//!
//! For each volume it asks [`plan`] what to do, records the step in the [`Ledger`] *before* acting,
//! acts, and asks again. Volumes are independent of each other: a stuck image delays nobody else, and
//! one loop, bounded by a concurrency limit, serves failover, failback, retry and resume alike. It
//! knows no SQL: rows are `failover`'s business.

mod pause;
mod survey;
mod writable;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use self::pause::Patience;
pub use self::pause::Pause;
use self::survey::Surveyed;
use super::intent::Intent;
use super::judge::Judge;
use super::plan::{Action, Case, Peer, Reason, Side, Step, plan};
use super::verdict::Verdict;
use crate::config::BackendConfig;
use crate::error::Result;
use crate::rbd::protocol::*;
use crate::rbd::types::{MirrorMode, MirrorReport};
use crate::rbd::{RbdError, RbdErrorKind, Site};

/// Where steps are remembered. The real one is the journal; recording returns only when the step would
/// survive a crash, and fails with `Cancelled` when the operation's lease is lost.
#[async_trait]
pub trait Ledger<S>: Send + Sync {
    /// Records the step of one volume.
    async fn record(&self, volume_id: &str, step: &S) -> Result<()>;
}

/// One volume to move.
#[derive(Debug, Clone)]
pub struct Job {
    /// Volume id, for rows and logs.
    pub volume_id: String,
    /// Image name, the same on both sites.
    pub image: String,
    /// Last recorded step; `Pending` for a new operation.
    pub step: Step,
}

/// How long a copy may take to appear and to replay before nothing is touched and the volume is given up.
const PEER: Duration = Duration::from_secs(30);
/// How long the daemon of the side that is left may take to notice a new copy. It is told of it, and looks by
/// itself every `rbd_mirror_image_state_check_interval` (30 s).
const LINK: Duration = Duration::from_secs(45);

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Volumes worked on at once.
    pub concurrency: usize,
    /// One health probe.
    pub verdict: Duration,
    /// Until a copy that does not replay is given up, with nothing touched.
    pub peer: Duration,
    /// Until a copy is promoted although the daemon of the old side is not registered in its journal.
    pub link: Duration,
    /// Until a demotion counts as failed.
    pub demote: Duration,
    /// Until a promotion that is not accepted is undone.
    pub promote: Duration,
    /// Until a forced promotion must accept a writer.
    pub writable: Duration,
}

impl Limits {
    fn of(&self, step: &Step) -> Duration {
        match step {
            Step::Pending => self.peer,
            Step::Demoting => self.demote,
            Step::Promoting | Step::Restoring => self.promote,
            Step::Forcing | Step::Overriding | Step::Opening => self.writable,
            Step::Moved | Step::Failed { .. } => Duration::ZERO,
        }
    }
}

impl From<&BackendConfig> for Limits {
    fn from(config: &BackendConfig) -> Limits {
        Limits {
            concurrency: config.failover_concurrency,
            verdict: config.verdict_timeout,
            peer: PEER,
            link: LINK,
            demote: config.demote_timeout,
            promote: config.promote_timeout,
            writable: config.writable_timeout,
        }
    }
}

/// What `site` says of an image. An error means that it said nothing.
pub async fn look_at(site: &Site, pool: &str, image: &str, within: Duration) -> Result<Side, RbdError> {
    let ask = MirrorInfo { pool: pool.to_owned(), image: image.to_owned() };
    match site.insist_within(within, ask).await {
        Ok(info) => Ok(Side::from(Some(&info))),
        Err(error) if error.is_not_found() => Ok(Side::Absent),
        Err(error) => Err(error),
    }
}

/// Whether the daemon of `site` replays an image, and the copy's peer can follow it.
pub async fn peer_of(site: &Site, pool: &str, image: &str, within: Duration) -> Result<Peer, RbdError> {
    reported_of(site, pool, image, within).await.map(|(peer, _)| peer)
}

/// The same, and when the daemon reported it (seconds since the epoch, by the site's clock; 0 for never).
pub(super) async fn reported_of(
    site: &Site,
    pool: &str,
    image: &str,
    within: Duration,
) -> Result<(Peer, i64), RbdError> {
    let ask = MirrorStatus { pool: pool.to_owned(), image: image.to_owned() };
    let report = match site.call_within(within, ask).await {
        Ok(report) => report,
        Err(error) if error.is_not_found() => return Ok((Peer::NotReplaying, 0)),
        Err(error) => return Err(error),
    };
    Ok((peer_in(&report), report.local.map_or(0, |local| local.last_update)))
}

/// What a report of the copy's side says of the copy.
pub(super) fn peer_in(report: &MirrorReport) -> Peer {
    match (replays(report), report.info.mode) {
        (false, _) => Peer::NotReplaying,
        (true, MirrorMode::Journal) if report.registered.is_empty() => Peer::Unlinked,
        (true, _) => Peer::Replaying,
    }
}

fn replays(report: &MirrorReport) -> bool {
    report.local.as_ref().is_some_and(|l| l.up && l.state == "replaying")
}

/// Most and fewest images of one survey.
const CHUNK: (usize, usize) = (128, 16);
/// How old its answer may be when its image has its turn, before the copy is asked for anew.
const SURVEYED: Duration = Duration::from_secs(15);
/// Time between two looks at both sides of an image whose promotion is tried: a look costs as much as the trial, and
/// hundreds wait at once.
const LOOK: Duration = Duration::from_secs(2);
/// A move of volumes of one pool from `source` to `target`.
pub struct Engine {
    pool: String,
    source: Site,
    target: Site,
    limits: Limits,
    intent: Intent,
    ledger: Arc<dyn Ledger<Step>>,
    source_judge: Judge,
    target_judge: Judge,
    slots: Semaphore,
    patience: Patience,
    /// Daemons whose locks were broken. One at a time, so that fifty volumes behind one daemon break it once.
    broken: Mutex<BTreeSet<String>>,
}

/// What has happened to a volume, or to some.
enum Event<'a> {
    Surveyed(Vec<(Job, Surveyed)>),
    /// It has one of the places.
    Turn(Job, Surveyed, Option<SemaphorePermit<'a>>),
    Ended(String, Step),
}

/// What the engine believes of one image right now.
struct Sight {
    source: Side,
    target: Side,
    peer: Peer,
    /// When both sides were last read.
    looked: Instant,
    /// The source has no daemon that could ever be registered in the copy's journal.
    one_way: bool,
    step: Step,
    since: Instant,
    pause: Pause,
}

impl Engine {
    /// Takes the verdict on both sites.
    pub async fn new(
        pool: &str,
        source: Site,
        target: Site,
        limits: Limits,
        ledger: Arc<dyn Ledger<Step>>,
    ) -> Engine {
        let (source_judge, target_judge) = tokio::join!(
            Judge::new(source.clone(), pool, limits.verdict),
            Judge::new(target.clone(), pool, limits.verdict)
        );
        Engine {
            pool: pool.to_owned(),
            source,
            target,
            limits,
            intent: Intent::Automatic,
            ledger,
            source_judge,
            target_judge,
            slots: Semaphore::new(limits.concurrency.max(1)),
            patience: Patience::default(),
            broken: Mutex::default(),
        }
    }

    /// The same with what an operator says of the source.
    #[must_use]
    pub fn with_intent(self, intent: Intent) -> Engine {
        Engine { intent, ..self }
    }

    /// Verdicts as they stand, (source, target).
    pub async fn verdicts(&self) -> (Verdict, Verdict) {
        (self.source_judge.verdict().await, self.target_judge.verdict().await)
    }

    /// Moves all jobs; answers each volume's final step. Fails only when steps cannot be recorded
    /// any more: then somebody else owns the operation, or the service is going down.
    pub async fn run(&self, jobs: Vec<Job>) -> Result<HashMap<String, Step>> {
        tokio::select! {
            biased;
            outcome = self.run_all(jobs) => outcome,
            (never, _) = async { tokio::join!(self.source_judge.watch(), self.target_judge.watch()) } => match never {},
        }
    }

    /// Images are surveyed a chunk at a time, shortly before their turn, while those before them are moved: what is seen
    /// is fresh, and nobody waits for all.
    async fn run_all(&self, jobs: Vec<Job>) -> Result<HashMap<String, Step>> {
        let (most, fewest) = CHUNK;
        let at_once = self.limits.concurrency.clamp(fewest, most);
        let mut chunks = jobs.chunks(at_once).map(<[Job]>::to_vec);
        let mut running: FuturesUnordered<BoxFuture<'_, Result<Event<'_>>>> = FuturesUnordered::new();
        running.extend(chunks.next().map(|chunk| self.survey(chunk)));
        let (mut surveying, mut waiting) = (1, 0);
        let mut outcome = HashMap::new();
        while let Some(event) = running.next().await {
            match event? {
                Event::Surveyed(chunk) => {
                    surveying -= 1;
                    waiting += chunk.len();
                    running.extend(chunk.into_iter().map(|(job, seen)| self.turn(job, seen)));
                }
                Event::Turn(job, seen, place) => {
                    waiting -= 1;
                    running.push(self.keep_turn(job, seen, place));
                }
                Event::Ended(volume_id, step) => {
                    outcome.insert(volume_id, step);
                }
            }
            // Two, because one may be held up by a stuck image.
            if surveying < 2
                && waiting < at_once
                && let Some(chunk) = chunks.next()
            {
                surveying += 1;
                running.push(self.survey(chunk));
            }
        }
        Ok(outcome)
    }

    fn turn(&self, job: Job, seen: Surveyed) -> BoxFuture<'_, Result<Event<'_>>> {
        // A semaphore that is never closed always grants.
        Box::pin(async move { Ok(Event::Turn(job, seen, self.slots.acquire().await.ok())) })
    }

    /// Moves one volume; its turn ends with it, or when it has taken too long.
    fn keep_turn<'a>(
        &'a self,
        job: Job,
        seen: Surveyed,
        place: Option<SemaphorePermit<'a>>,
    ) -> BoxFuture<'a, Result<Event<'a>>> {
        Box::pin(async move {
            let mut volume = self.volume(job, seen);
            let (id, step) = match timeout(self.patience.now(), &mut volume).await {
                Ok(done) => done?,
                Err(_) => {
                    drop(place);
                    volume.await?
                }
            };
            Ok(Event::Ended(id, step))
        })
    }

    // Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
    fn volume(&self, job: Job, seen: Surveyed) -> BoxFuture<'_, Result<(String, Step)>> {
        Box::pin(async move {
            let started = Instant::now();
            let mut sight = Sight {
                source: seen.source,
                target: seen.target,
                // Daemons die; and what their reports say may be half a minute old to begin with.
                peer: if seen.at.elapsed() < SURVEYED { seen.peer } else { Peer::Unknown },
                looked: seen.at,
                one_way: false,
                step: job.step.clone(),
                since: started,
                pause: Pause::default(),
            };
            loop {
                let (source_verdict, target_verdict) = self.verdicts().await;
                // What was seen before a site died says nothing about what it will be when it is back. (That a
                // demotion or a promotion was acknowledged stays true.)
                if source_verdict == Verdict::Dead && sight.source == Side::Primary {
                    sight.source = Side::Unknown;
                }
                if target_verdict == Verdict::Dead && sight.target == Side::Secondary {
                    sight.target = Side::Unknown;
                }
                let case = Case {
                    intent: self.intent,
                    step: sight.step.clone(),
                    source_verdict,
                    target_verdict,
                    source: sight.source,
                    target: sight.target,
                    peer: sight.peer,
                    expired: sight.since.elapsed() >= self.limits.of(&sight.step),
                    link_expired: sight.one_way || sight.since.elapsed() >= self.limits.link,
                };
                let action = plan(&case);
                debug!(volume.id = job.volume_id, ?case, ?action, "planned");
                if !self.may_force_now(&job, action, &mut sight).await {
                    continue;
                }
                let last = match action {
                    Action::Finish => Some(Step::Moved),
                    Action::Fail(reason) => Some(Step::Failed { reason }),
                    _ => None,
                };
                if let Some(step) = last {
                    if step == Step::Moved && sight.step == Step::Promoting {
                        self.released(&job).await;
                    }
                    if sight.step != step {
                        self.ledger.record(&job.volume_id, &step).await?;
                    }
                    self.report(&job, &step, started);
                    return Ok((job.volume_id, step));
                }
                self.act(&job, action, &mut sight).await?;
            }
        })
    }

    /// What is forced is forced by what is true now: the facts of the plan may be as old as its volume's turn.
    async fn may_force_now(&self, job: &Job, action: Action, sight: &mut Sight) -> bool {
        match (action, self.intent) {
            (Action::ForcePromote, _) => self.source_judge.is_dead_now().await,
            (Action::Override, Intent::Unplanned) => {
                self.look(job, sight).await;
                sight.source == Side::Unknown
                    && sight.target == Side::Secondary
                    && self.source_judge.verdict().await == Verdict::Degraded
            }
            _ => true,
        }
    }

    fn report(&self, job: &Job, step: &Step, started: Instant) {
        let took_ms = started.elapsed().as_millis() as u64;
        if *step == Step::Moved {
            self.patience.took(started.elapsed());
        }
        match step {
            Step::Failed { reason } => warn!(
                volume.id = job.volume_id,
                source = self.source.name(),
                target = self.target.name(),
                took_ms,
                "volume was not moved: {}",
                reason.text()
            ),
            _ => info!(
                volume.id = job.volume_id,
                source = self.source.name(),
                target = self.target.name(),
                took_ms,
                "volume moved"
            ),
        }
    }

    /// Records `step` when it is new, and starts its clock.
    async fn enter(&self, job: &Job, sight: &mut Sight, step: Step) -> Result<()> {
        if sight.step != step {
            self.ledger.record(&job.volume_id, &step).await?;
            sight.step = step;
            sight.since = Instant::now();
            // A promotion is accepted as soon as the copy has seen the demotion.
            sight.pause = if sight.step == Step::Promoting { Pause::eager() } else { Pause::default() };
        }
        Ok(())
    }

    // Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
    fn act<'a>(&'a self, job: &'a Job, action: Action, sight: &'a mut Sight) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (pool, image) = (self.pool.clone(), job.image.clone());
            match action {
                Action::Observe => {
                    sight.pause.rest().await;
                    self.look(job, sight).await;
                }
                Action::WaitForPeer => {
                    if sight.peer != Peer::Unknown {
                        sight.pause.rest().await;
                    }
                    // The source may die while its copy is awaited.
                    let (peer, ()) = tokio::join!(self.peer(job), self.look(job, sight));
                    sight.peer = peer;
                    if peer == Peer::Unlinked {
                        sight.one_way = self.one_way().await;
                    }
                }
                Action::Demote => {
                    if sight.peer == Peer::Unlinked && sight.step == Step::Pending {
                        warn!(
                            volume.id = job.volume_id,
                            source = self.source.name(),
                            "the rbd-mirror of the site that the volume leaves does not know its copy: \
                         the image there will not follow and has to be resynced"
                        );
                    }
                    self.enter(job, sight, Step::Demoting).await?;
                    let demoted =
                        self.source.call_within(self.limits.demote, MirrorDemote { pool, image }).await;
                    match demoted {
                        Ok(()) => sight.source = Side::Secondary,
                        Err(error) => {
                            self.source_judge.doubt(&error).await;
                            self.trouble(job, action, &error);
                            sight.pause.rest().await;
                            sight.source = self.side(&self.source, &self.source_judge, job).await;
                        }
                    }
                }
                Action::Promote => {
                    self.enter(job, sight, Step::Promoting).await?;
                    self.promote_target(job, sight, false).await;
                }
                Action::ForcePromote => {
                    self.enter(job, sight, Step::Forcing).await?;
                    self.promote_target(job, sight, true).await;
                }
                Action::Override => {
                    if sight.step != Step::Overriding {
                        warn!(
                            volume.id = job.volume_id,
                            source = self.source.name(),
                            intent = self.intent.as_str(),
                            "promoting by force beside a site that is not known to be dead, as ordered: \
                         what is written there from now on is lost"
                        );
                    }
                    self.enter(job, sight, Step::Overriding).await?;
                    self.promote_target(job, sight, true).await;
                }
                Action::EnsureWritable => {
                    self.enter(job, sight, Step::Opening).await?;
                    if self.ensure_writable(job).await {
                        self.enter(job, sight, Step::Moved).await?;
                    } else {
                        sight.pause.rest().await;
                        sight.target = self.side(&self.target, &self.target_judge, job).await;
                    }
                }
                Action::Restore => {
                    self.enter(job, sight, Step::Restoring).await?;
                    // The target may have accepted at the last moment: never make a second primary.
                    sight.target = self.side(&self.target, &self.target_judge, job).await;
                    if sight.target == Side::Primary {
                        return Ok(());
                    }
                    match self.source.call(MirrorPromote { pool, image, force: false }).await {
                        Ok(()) => sight.source = Side::Primary,
                        Err(error) => {
                            self.source_judge.doubt(&error).await;
                            self.trouble(job, action, &error);
                            sight.pause.rest().await;
                            sight.source = self.side(&self.source, &self.source_judge, job).await;
                        }
                    }
                }
                Action::Finish | Action::Fail(_) => {}
            }
            Ok(())
        })
    }

    async fn promote_target(&self, job: &Job, sight: &mut Sight, force: bool) {
        let promote = MirrorPromote { pool: self.pool.clone(), image: job.image.clone(), force };
        match self.target.call(promote).await {
            Ok(()) => sight.target = Side::Primary,
            Err(error) => {
                self.target_judge.doubt(&error).await;
                // Busy, and in snapshot mode now and then EROFS, until the demotion has arrived.
                let early = matches!(error.kind, RbdErrorKind::Busy | RbdErrorKind::ReadOnly);
                if !early {
                    let action = if force { Action::ForcePromote } else { Action::Promote };
                    self.trouble(job, action, &error);
                }
                sight.pause.rest().await;
                // The source may have died, and the demotion with it.
                let died = self.source_judge.verdict().await == Verdict::Dead;
                if early && !died && sight.looked.elapsed() < LOOK {
                    return;
                }
                let (source, target) = tokio::join!(
                    self.side(&self.source, &self.source_judge, job),
                    self.side(&self.target, &self.target_judge, job)
                );
                (sight.target, sight.looked) = (target, Instant::now());
                // That it was demoted stays true while it does not answer.
                if source != Side::Unknown || self.source_judge.verdict().await == Verdict::Dead {
                    sight.source = source;
                }
            }
        }
    }

    fn trouble(&self, job: &Job, action: Action, error: &RbdError) {
        debug!(volume.id = job.volume_id, ?action, %error, "step has not succeeded yet");
    }

    async fn look(&self, job: &Job, sight: &mut Sight) {
        (sight.source, sight.target) = tokio::join!(
            self.side(&self.source, &self.source_judge, job),
            self.side(&self.target, &self.target_judge, job)
        );
        sight.looked = Instant::now();
    }

    async fn side(&self, site: &Site, judge: &Judge, job: &Job) -> Side {
        if judge.verdict().await == Verdict::Dead {
            return Side::Unknown;
        }
        match look_at(site, &self.pool, &job.image, self.limits.verdict * 2).await {
            Ok(side) => side,
            Err(error) => {
                judge.doubt(&error).await;
                Side::Unknown
            }
        }
    }

    /// Whether the source's pool is served by no daemon. No answer is no proof.
    async fn one_way(&self) -> bool {
        let ask = MirrorDaemons { pool: self.pool.clone() };
        let found = self.source.call_within(self.limits.verdict * 2, ask).await;
        found.is_ok_and(|daemons| daemons.is_empty())
    }

    async fn peer(&self, job: &Job) -> Peer {
        match peer_of(&self.target, &self.pool, &job.image, self.limits.verdict * 2).await {
            Ok(peer) => peer,
            Err(error) => {
                self.target_judge.doubt(&error).await;
                Peer::NotReplaying
            }
        }
    }
}

/// Why a volume ended where it did; `None` when it moved.
pub fn failure(step: &Step) -> Option<Reason> {
    match step {
        Step::Failed { reason } => Some(*reason),
        _ => None,
    }
}
