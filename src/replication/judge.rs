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
/// Pause between two looks at a site. A change is noticed within a probe and this, and confirmed by a verdict.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// The verdict on a site, retaken when a call on the site fails, by one volume for all.
pub(super) struct Judge {
    site: Site,
    pool: String,
    timeout: Duration,
    held: RwLock<(Verdict, Instant)>,
    taking: Mutex<()>,
}

impl Judge {
    pub(super) async fn new(site: Site, pool: &str, timeout: Duration) -> Judge {
        let verdict = verdict::take(&site, pool, timeout).await;
        Judge {
            site,
            pool: pool.to_owned(),
            timeout,
            held: RwLock::new((verdict, Instant::now())),
            taking: Mutex::new(()),
        }
    }

    pub(super) async fn verdict(&self) -> Verdict {
        self.held.read().await.0
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
        if self.held.read().await.1.elapsed() < VERDICT_AGE {
            return;
        }
        self.retake().await;
    }

    async fn retake(&self) {
        let verdict = verdict::take(&self.site, &self.pool, self.timeout).await;
        *self.held.write().await = (verdict, Instant::now());
    }

    /// Watches the site for as long as it is polled. One that comes back: no calls are sent to a dead site, so
    /// no error would tell, and nothing may be forced on a verdict that is not true any more. And one that dies
    /// without any call failing: images that are open go on working while all monitors are gone.
    pub(super) async fn watch(&self) -> Infallible {
        loop {
            sleep(WATCH_PAUSE).await;
            let answers = verdict::answers(&self.site, &self.pool, self.timeout).await;
            if answers == (self.verdict().await == Verdict::Dead) {
                let _one_at_a_time = self.taking.lock().await;
                self.retake().await;
            }
        }
    }
}
