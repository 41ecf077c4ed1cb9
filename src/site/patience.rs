//! How long an order waits for others before it says that they do not do their part.

use std::time::Duration;

/// Limits of waiting. The usual ones are long enough for what each waits for; tests have none of that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until an rbd-mirror that runs must have taken up a pool: it looks for new ones every 30 s by default.
    pub noticed: Duration,
    /// Until the copy of a canary must be there, from then on.
    pub arrived: Duration,
    /// Until the copy must be gone after the original.
    pub gone: Duration,
    /// Until an rbd-mirror must have let go of a pool whose peer was removed: it looks every 30 s by default.
    pub let_go: Duration,
    /// How long all backup services that were asked to delete something may be down.
    pub silent: Duration,
    /// Until a daemon must be as it was ordered.
    pub daemon: Duration,
    /// Nobody takes so long between two objects of an image that he makes or removes.
    pub settled: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            noticed: Duration::from_secs(75),
            arrived: Duration::from_secs(120),
            gone: Duration::from_secs(60),
            let_go: Duration::from_secs(90),
            silent: Duration::from_secs(120),
            daemon: Duration::from_secs(60),
            settled: Duration::from_secs(5),
        }
    }
}
