//! How long to wait before the same question is asked again.
//!
//! What is awaited comes after milliseconds or after half a minute, and hundreds wait for it at once: asking too often
//! costs the cluster what it needs to get there, asking too seldom costs the operator time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A pause between two looks at the same image: 50 ms, growing by half up to 1 s.
#[derive(Debug)]
pub struct Pause {
    next: Duration,
    /// How long it does not grow.
    eager: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Pause { next: Duration::from_millis(50), eager: Duration::ZERO }
    }
}

impl Pause {
    /// One that begins to grow only after two seconds: for what normally happens before.
    pub(super) fn eager() -> Pause {
        Pause { eager: Duration::from_secs(2), ..Pause::default() }
    }

    /// Waits, and makes the next wait longer.
    pub async fn rest(&mut self) {
        tokio::time::sleep(self.next).await;
        if self.eager.is_zero() {
            self.next = (self.next * 3 / 2).min(Duration::from_secs(1));
        }
        self.eager = self.eager.saturating_sub(self.next);
    }
}

/// How long a volume counts against the concurrency limit.
///
/// One that takes much longer than the others is waiting for something that the limit does not protect (a copy, a
/// daemon, a stuck image), and must not delay those behind it. But when all of them are slow it is the clusters that are
/// busy: to begin more would make them slower still.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Milliseconds that a volume has lately taken; 0 before the first.
    usual: AtomicU64,
}

impl Patience {
    const LEAST: Duration = Duration::from_secs(5);
    const MOST: Duration = Duration::from_secs(60);

    /// For the next volume.
    pub(super) fn now(&self) -> Duration {
        Duration::from_millis(3 * self.usual.load(Ordering::Relaxed)).clamp(Self::LEAST, Self::MOST)
    }

    /// A volume has moved.
    pub(super) fn took(&self, elapsed: Duration) {
        // One of sixteen: a few that waited for something else do not count for much.
        let took = elapsed.min(Self::MOST).as_millis() as u64;
        let next = |usual: u64| if usual == 0 { took } else { (15 * usual + took) / 16 };
        // Never fails: the closure always has a value.
        let _ = self.usual.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |usual| Some(next(usual)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_when_all_are_slow_and_not_for_a_few() {
        let patience = Patience::default();
        assert_eq!(patience.now(), Patience::LEAST);
        for _ in 0..100 {
            patience.took(Duration::from_millis(400));
        }
        patience.took(Duration::from_secs(40));
        assert!(patience.now() < Duration::from_secs(9), "{:?}", patience.now());
        for _ in 0..200 {
            patience.took(Duration::from_secs(4));
        }
        assert!(patience.now() > Duration::from_secs(11), "{:?}", patience.now());
        for _ in 0..200 {
            patience.took(Duration::from_secs(3600));
        }
        assert_eq!(patience.now(), Patience::MOST);
    }
}
