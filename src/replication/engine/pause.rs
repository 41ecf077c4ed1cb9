//! How long to wait before the same question is asked again.
//!
//! What is awaited comes after milliseconds or after half a minute, and hundreds wait for it at once: asking too often
//! costs the cluster what it needs to get there, asking too seldom costs the operator time.

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
