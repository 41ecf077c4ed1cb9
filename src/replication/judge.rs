//! The verdict on one site as it stands, for all volumes of an operation at once.
//!
//! A verdict on a dead site takes three timeouts, so it is taken once and shared. But an operation takes
//! minutes, and sites die and return meanwhile: it is retaken when a call fails in silence, and when a
//! look at the site contradicts it.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::{Mutex, RwLock};
use tokio::time::{Instant, sleep};

use super::verdict::{self, Verdict};
use crate::rbd::{RbdError, RbdErrorKind, Site};

/// How old a verdict may be before a call that failed on its site asks for a new one.
const VERDICT_AGE: Duration = Duration::from_secs(2);
/// How long ago a dead site may have been asked last, when something is forced because it is dead.
const SILENCE_AGE: Duration = Duration::from_secs(3);
/// Pause between two looks at a site. A change is noticed within a probe and this, and confirmed by a verdict.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// The verdict on a site, retaken when a call on the site fails, by one volume for all.
pub(super) struct Judge {
    site: Site,
    pool: String,
    timeout: Duration,
    held: RwLock<Held>,
    taking: Mutex<()>,
    looking: Mutex<()>,
}

struct Held {
    verdict: Verdict,
    taken: Instant,
    /// When the last probe ended that bears out that the site is dead; none when it is not, or when it has
    /// answered since and a new verdict is being taken.
    silent: Option<Instant>,
}

impl Held {
    fn new(verdict: Verdict) -> Held {
        let now = Instant::now();
        Held { verdict, taken: now, silent: (verdict == Verdict::Dead).then_some(now) }
    }

    /// Whether the site is dead by what is known; `None` when that is too old to force anything.
    fn is_dead(&self) -> Option<bool> {
        match self.verdict {
            Verdict::Alive | Verdict::Degraded => Some(false),
            Verdict::Dead => self.silent.filter(|s| s.elapsed() < SILENCE_AGE).map(|_| true),
        }
    }
}

impl Judge {
    pub(super) async fn new(site: Site, pool: &str, timeout: Duration) -> Judge {
        let verdict = verdict::take(&site, pool, timeout).await;
        Judge {
            site,
            pool: pool.to_owned(),
            timeout,
            held: RwLock::new(Held::new(verdict)),
            taking: Mutex::new(()),
            looking: Mutex::new(()),
        }
    }

    pub(super) async fn verdict(&self) -> Verdict {
        self.held.read().await.verdict
    }

    /// Whether the site is dead now, or was seconds ago: to be asked before anything is forced, because the
    /// verdict may be as old as whatever held its volume up. All who ask share one look, normally the one
    /// that [`Judge::watch`] is having.
    pub(super) async fn is_dead_now(&self) -> bool {
        let known = self.held.read().await.is_dead();
        if let Some(dead) = known {
            return dead;
        }
        let _one_for_all = self.looking.lock().await;
        let known = self.held.read().await.is_dead();
        match known {
            Some(dead) => dead,
            None => {
                self.look().await;
                self.verdict().await == Verdict::Dead
            }
        }
    }

    /// Called after `error` on this site: silence may mean that the site has died since.
    pub(super) async fn doubt(&self, error: &RbdError) {
        if !matches!(
            error.kind,
            RbdErrorKind::TimedOut | RbdErrorKind::Unreachable | RbdErrorKind::WorkerLost
        ) {
            return;
        }
        let _one_at_a_time = self.taking.lock().await;
        if self.held.read().await.taken.elapsed() < VERDICT_AGE {
            return;
        }
        self.retake().await;
    }

    async fn retake(&self) {
        let verdict = verdict::take(&self.site, &self.pool, self.timeout).await;
        *self.held.write().await = Held::new(verdict);
    }

    /// Watches the site for as long as it is polled. One that comes back: no calls are sent to a dead site, so
    /// no error would tell, and nothing may be forced on a verdict that is not true any more. And one that dies
    /// without any call failing: images that are open go on working while all monitors are gone.
    pub(super) async fn watch(&self) -> Infallible {
        loop {
            sleep(WATCH_PAUSE).await;
            let _one_for_all = self.looking.lock().await;
            self.look().await;
        }
    }

    /// One probe of each half; a new verdict when it contradicts the one that is held.
    async fn look(&self) {
        let answers = verdict::answers(&self.site, &self.pool, self.timeout).await;
        let dead = {
            let mut held = self.held.write().await;
            let dead = held.verdict == Verdict::Dead;
            // Nothing is forced while the new verdict is taken, which may last three timeouts.
            held.silent = (dead && !answers).then(Instant::now);
            dead
        };
        if answers == dead {
            let _one_at_a_time = self.taking.lock().await;
            self.retake().await;
        }
    }
}
