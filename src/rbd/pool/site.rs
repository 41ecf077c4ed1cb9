//! The workers of one site: which one a call goes to, and when a new one is started.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::process::{Order, Outcome, Process};
use super::{Class, Shared, error, lock};
use crate::rbd::error::{RbdError, RbdErrorKind};
use crate::rbd::protocol::{Connection, Reply, Request};

/// Fewest workers of a site in use: one stuck image must never stop the rest.
const MIN_WORKERS: usize = 2;
/// A worker has 64 threads; the rest is for probes.
const MAX_CALLS_PER_WORKER: usize = 60;

pub(super) struct Site {
    shared: Arc<Shared>,
    /// Of the call that came first: names the site in logs.
    name: String,
    state: Mutex<State>,
    short_calls: Semaphore,
    long_calls: Semaphore,
}

#[derive(Default)]
struct State {
    /// Workers for short calls; those that ended or are condemned are dropped when seen.
    workers: Vec<Arc<Process>>,
    /// Idle workers for long calls, each with the number of its idle period.
    idle_long: Vec<(u64, Arc<Process>)>,
    idle_periods: u64,
    /// Workers in a row that died before they answered anything.
    stillborn: u32,
    /// No new worker before this time.
    not_before: Option<Instant>,
}

/// A worker, or when to ask again.
enum Choice {
    Worker(Arc<Process>),
    Later(Instant),
}

impl Site {
    pub(super) fn new(shared: &Arc<Shared>, connection: &Connection) -> Site {
        let settings = &shared.settings;
        let per_worker = settings.calls_per_worker.clamp(1, MAX_CALLS_PER_WORKER);
        Site {
            shared: Arc::clone(shared),
            name: connection.site.clone(),
            state: Mutex::default(),
            short_calls: Semaphore::new(settings.workers_per_site.max(MIN_WORKERS) * per_worker),
            long_calls: Semaphore::new(settings.long_calls_per_site.max(1)),
        }
    }

    /// Runs one request in the right kind of worker.
    pub(super) async fn execute(
        self: Arc<Self>,
        connection: Connection,
        request: Request,
        deadline: Duration,
    ) -> Result<Reply, RbdError> {
        let by = Instant::now() + deadline;
        let long = request.class() == Class::Long;
        let turn = match request.class() {
            // A verdict must not wait behind the calls of a site that hangs.
            Class::Probe => None,
            Class::Short => Some(timeout_at(by, self.short_calls.acquire()).await),
            Class::Long => Some(timeout_at(by, self.long_calls.acquire()).await),
        };
        let timed_out =
            |message| Err(error(RbdErrorKind::TimedOut, request.name(), &connection.site, message));
        if let Some(Err(_)) = turn {
            return timed_out("all workers were busy; the call was not sent");
        }
        loop {
            let choice = self.choose(long);
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
            let bound = if long { Some(deadline) } else { None };
            match worker.call(&connection, &request, by, bound).await {
                // Condemned or dead since it was chosen.
                Outcome::NotSent => {}
                Outcome::Done(result) => {
                    if long {
                        self.rest(worker);
                    }
                    return result;
                }
            }
        }
    }

    /// The least loaded healthy worker; starts one when there is none, and the rest in the background.
    ///
    /// # Errors
    /// The sentence for the operator when none can be started.
    fn choose(self: &Arc<Self>, long: bool) -> Result<Choice, String> {
        let mut state = lock(&self.state);
        state.workers.retain(|w| w.usable());
        state.idle_long.retain(|(_, w)| w.usable());
        let found = if long {
            state.idle_long.pop().map(|(_, worker)| worker)
        } else {
            state.workers.iter().min_by_key(|w| w.load()).cloned()
        };
        let worker = match (found, state.not_before) {
            (Some(worker), _) => worker,
            (None, Some(time)) if !state.may_start() => return Ok(Choice::Later(time)),
            (None, _) => {
                let worker = Process::start(&self.shared, self, &self.name, long)?;
                if !long {
                    state.workers.push(Arc::clone(&worker));
                }
                worker
            }
        };
        let wanted = self.shared.settings.workers_per_site.max(MIN_WORKERS);
        if !long && state.workers.len() < wanted && state.may_start() {
            let site = Arc::clone(self);
            tokio::spawn(async move { site.complete(wanted) });
        }
        Ok(Choice::Worker(worker))
    }

    /// Starts one more worker for short calls, when there are too few.
    fn complete(self: &Arc<Self>, wanted: usize) {
        let mut state = lock(&self.state);
        state.workers.retain(|w| w.usable());
        if state.workers.len() < wanted && state.may_start() {
            // A failure will be told to the next call that finds no worker at all.
            if let Ok(worker) = Process::start(&self.shared, self, &self.name, false) {
                state.workers.push(worker);
            }
        }
    }

    /// Keeps a worker for the next long call, for a while.
    fn rest(self: &Arc<Self>, worker: Arc<Process>) {
        let mut state = lock(&self.state);
        if !worker.usable() {
            return;
        }
        state.idle_periods += 1;
        let period = state.idle_periods;
        state.idle_long.push((period, worker));
        let (site, end) = (Arc::downgrade(self), Instant::now() + self.shared.settings.long_idle);
        tokio::spawn(async move {
            sleep_until(end).await;
            let Some(site) = site.upgrade() else { return };
            for (_, worker) in lock(&site.state).idle_long.extract_if(.., |(p, _)| *p == period) {
                worker.order(Order::Retire);
            }
        });
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
    fn may_start(&self) -> bool {
        self.not_before.is_none_or(|time| time <= Instant::now())
    }
}
