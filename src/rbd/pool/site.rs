//! The workers of one site: which one a call goes to, and when a new one is started.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::process::{Outcome, Process};
use super::{Class, Duty, Shared, error, lock};
use crate::rbd::error::{RbdError, RbdErrorKind};
use crate::rbd::hearing::Moves;
use crate::rbd::protocol::{Connection, Reply, Request};
use crate::rbd::stream::Flow;

/// Fewest workers of a site in use: one stuck image must never stop the rest.
const MIN_WORKERS: usize = 2;
/// A worker has 64 threads; the rest is for probes.
const MAX_CALLS_PER_WORKER: usize = 60;

pub(super) struct Site {
    shared: Arc<Shared>,
    /// Of the call that came first: names the site in logs.
    name: String,
    state: Mutex<State>,
    short_calls: Arc<Semaphore>,
    removals: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    long_calls: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    /// Workers for short calls; in all these lists those that ended or are condemned are dropped when seen.
    short: Vec<Arc<Process>>,
    /// Workers for removals.
    removal: Vec<Arc<Process>>,
    /// Workers for data that flows.
    stream: Vec<Arc<Process>>,
    /// Workers for copies from image to image.
    copy: Vec<Arc<Process>>,
    /// Idle workers for long calls.
    idle_long: Vec<Arc<Process>>,
    /// Workers in a row that died before they answered anything.
    stillborn: u32,
    /// No new worker before this time.
    not_before: Option<Instant>,
    /// Nobody comes here any more: a worker is kept for as long as it has calls.
    left: bool,
}

/// A call's right to be made, until it is dropped.
pub(super) struct Turn {
    /// When the call is overdue, unless it makes progress.
    by: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

/// How a call goes on until its answer.
pub(super) enum Way {
    /// Data flows.
    Flowing(Flow),
    /// This is told when it moves on.
    Told(Moves),
}

/// A worker, or when to ask again.
enum Choice {
    Worker(Arc<Process>),
    Later(Instant),
}

impl Site {
    pub(super) fn new(shared: &Arc<Shared>, connection: &Connection) -> Site {
        let settings = &shared.settings;
        let calls = |at_once| Arc::new(Semaphore::new(at_once));
        let per_worker = settings.calls_per_worker.clamp(1, MAX_CALLS_PER_WORKER);
        Site {
            shared: Arc::clone(shared),
            name: connection.site.clone(),
            state: Mutex::default(),
            short_calls: calls(settings.workers_per_site.max(MIN_WORKERS) * per_worker),
            removals: calls(settings.removals_per_site.clamp(1, MAX_CALLS_PER_WORKER)),
            streams: calls(settings.streams_per_site.clamp(1, MAX_CALLS_PER_WORKER)),
            copies: calls(settings.copies_per_site.clamp(1, MAX_CALLS_PER_WORKER)),
            long_calls: calls(settings.long_calls_per_site.max(1)),
        }
    }

    /// Waits until a call of this class may be made; `None` when its deadline has passed first. Work on data
    /// waits as long as there is other work that goes on, and its deadline begins then. Apart from
    /// [`Site::execute`], so that a caller who goes away while waiting leaves nothing to be done.
    pub(super) async fn turn(&self, class: Class, deadline: Duration) -> Option<Turn> {
        let by = Instant::now() + deadline;
        let calls = match class {
            // A verdict must not wait behind the calls of a site that hangs.
            Class::Probe => return Some(Turn { by, _permit: None }),
            Class::Short => &self.short_calls,
            Class::Removal => &self.removals,
            Class::Stream => &self.streams,
            Class::Copy => &self.copies,
            Class::Long => &self.long_calls,
        };
        let permit = Arc::clone(calls).acquire_owned();
        // Never closed, so an error cannot be; without a permit there is merely one call more.
        if class.starts_anew_with_progress() {
            let permit = permit.await.ok();
            return Some(Turn { by: Instant::now() + deadline, _permit: permit });
        }
        let permit = timeout_at(by, permit).await.ok()?;
        Some(Turn { by, _permit: permit.ok() })
    }

    /// Runs one request in the right kind of worker.
    pub(super) async fn execute(
        self: Arc<Self>,
        connection: Connection,
        request: Request,
        deadline: Duration,
        turn: Turn,
        mut way: Way,
    ) -> Result<Reply, RbdError> {
        let class = request.class();
        let (duty, by) = (Duty::from(class), turn.by);
        let timed_out =
            |message| Err(error(RbdErrorKind::TimedOut, request.name(), &connection.site, message));
        loop {
            let choice = self.choose(duty);
            let unreachable =
                |message| error(RbdErrorKind::Unreachable, request.name(), &connection.site, message);
            let worker = match choice.map_err(unreachable)? {
                Choice::Worker(worker) => worker,
                Choice::Later(time) if time < by => {
                    sleep_until(time).await;
                    continue;
                }
                Choice::Later(_) => {
                    return timed_out("workers die at once, the next start is later; the call was not sent");
                }
            };
            let bound = class.starts_anew_with_progress().then_some(deadline);
            let outcome = match &mut way {
                Way::Flowing(flow) => worker.stream(&connection, &request, by, deadline, flow).await,
                Way::Told(moves) => worker.call(&connection, &request, by, bound, moves).await,
            };
            match outcome {
                // Condemned or dead since it was chosen.
                Outcome::NotSent => {}
                Outcome::Done(result) => {
                    let mut state = lock(&self.state);
                    if state.left {
                        // Started for a call that came when the others went.
                        worker.part();
                    } else if duty == Duty::Long {
                        state.idle_long.push(worker);
                    }
                    return result;
                }
            }
        }
    }

    /// A healthy worker for this duty, the least loaded of those that share it; starts one when there is none,
    /// and the rest in the background.
    ///
    /// # Errors
    /// The sentence for the operator when none can be started.
    fn choose(self: &Arc<Self>, duty: Duty) -> Result<Choice, String> {
        let mut state = lock(&self.state);
        state.forget_unusable();
        let found = match state.shared(duty) {
            Some(workers) => workers.iter().min_by_key(|w| w.load()).cloned(),
            None => state.idle_long.pop(),
        };
        let worker = match (found, state.not_before) {
            (Some(worker), _) => worker,
            (None, Some(time)) if !state.may_start() => return Ok(Choice::Later(time)),
            (None, _) => self.start(&mut state, duty)?,
        };
        if self.wants_more(&mut state, duty) {
            let site = Arc::clone(self);
            tokio::spawn(async move { site.complete(duty) });
        }
        Ok(Choice::Worker(worker))
    }

    /// Starts one more worker of those that share a duty, when there are too few.
    fn complete(self: &Arc<Self>, duty: Duty) {
        let mut state = lock(&self.state);
        state.forget_unusable();
        if self.wants_more(&mut state, duty) {
            // A failure will be told to the next call that finds no worker at all.
            let _ = self.start(&mut state, duty);
        }
    }

    fn wants_more(&self, state: &mut State, duty: Duty) -> bool {
        let settings = &self.shared.settings;
        let wanted = match duty {
            Duty::Short => settings.workers_per_site.max(MIN_WORKERS),
            Duty::Removal => settings.removal_workers_per_site,
            Duty::Stream => settings.stream_workers_per_site,
            Duty::Copy => settings.copy_workers_per_site,
            Duty::Long => 0,
        };
        let few = state.shared(duty).is_some_and(|workers| workers.len() < wanted);
        few && !state.left && state.may_start()
    }

    fn start(self: &Arc<Self>, state: &mut State, duty: Duty) -> Result<Arc<Process>, String> {
        let worker = Process::start(&self.shared, self, &self.name, duty)?;
        if let Some(workers) = state.shared(duty) {
            workers.push(Arc::clone(&worker));
        }
        Ok(worker)
    }

    /// Ends its workers when their calls have ended; one that a later call starts goes on.
    pub(super) fn retire(&self) {
        let mut state = lock(&self.state);
        state.left = true;
        let lists = [&state.short, &state.removal, &state.stream, &state.copy, &state.idle_long];
        for worker in lists.into_iter().flatten() {
            worker.part();
        }
    }

    /// A worker has answered: starting them works.
    pub(super) fn worker_is_sound(&self) {
        let mut state = lock(&self.state);
        state.stillborn = 0;
        state.not_before = None;
    }

    /// A worker died before it answered anything.
    pub(super) fn worker_was_stillborn(&self) {
        let mut state = lock(&self.state);
        let settings = &self.shared.settings;
        let factor = 1u32 << state.stillborn.min(16);
        let pause = settings.back_off.saturating_mul(factor).min(settings.back_off_max);
        state.stillborn = state.stillborn.saturating_add(1);
        state.not_before = Some(Instant::now() + pause);
    }
}

impl State {
    /// The workers that share a duty; a long call has its worker for itself.
    fn shared(&mut self, duty: Duty) -> Option<&mut Vec<Arc<Process>>> {
        match duty {
            Duty::Short => Some(&mut self.short),
            Duty::Removal => Some(&mut self.removal),
            Duty::Stream => Some(&mut self.stream),
            Duty::Copy => Some(&mut self.copy),
            Duty::Long => None,
        }
    }

    fn forget_unusable(&mut self) {
        for list in
            [&mut self.short, &mut self.removal, &mut self.stream, &mut self.copy, &mut self.idle_long]
        {
            list.retain(|worker| worker.usable());
        }
    }

    fn may_start(&self) -> bool {
        self.not_before.is_none_or(|time| time <= Instant::now())
    }
}
