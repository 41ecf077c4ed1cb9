//! What a site has left unanswered lately.
//!
//! Only three silent probes in a row make a site dead, and on a site that has been dead for an hour each of them costs
//! the operator a timeout while his volumes are down. But the site is looked at all the time: what those looks met with
//! is remembered here, so that a verdict need not begin at nothing. Whatever the site answers wipes it out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Silence longer ago than this says nothing of now.
const MEMORY: Duration = Duration::from_secs(300);
/// More than anybody asks for.
const MOST: usize = 8;

/// A part of a site that can fall silent by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The monitors: sessions and commands.
    Monitors,
    /// The OSDs of a pool: reads and writes.
    Osds,
}

/// The ends of the probes that a site has not answered since it last answered anything, in order of time.
#[derive(Debug, Default)]
pub struct Silence {
    halves: Mutex<[Vec<Instant>; 2]>,
}

impl Silence {
    /// This half has answered.
    pub fn broken(&self, half: Half) {
        self.with(|halves| halves[half as usize].clear());
    }

    /// The site has answered a call of any kind.
    pub fn broken_whole(&self) {
        self.with(|halves| halves.iter_mut().for_each(Vec::clear));
    }

    /// A probe of this half, begun at `begun`, has ended without an answer. Probes made at the same time are one.
    pub fn lasted(&self, half: Half, begun: Instant) {
        self.with(|halves| {
            let ends = &mut halves[half as usize];
            if ends.last().is_none_or(|end| *end <= begun) {
                ends.push(Instant::now());
            }
            let too_many = ends.len().saturating_sub(MOST);
            ends.drain(..too_many);
        });
    }

    /// How many probes of this half in a row, the last few minutes' ones, have been left unanswered.
    pub fn count(&self, half: Half) -> usize {
        self.with(|halves| halves[half as usize].iter().filter(|end| end.elapsed() < MEMORY).count())
    }

    fn with<T>(&self, act: impl FnOnce(&mut [Vec<Instant>; 2]) -> T) -> T {
        act(&mut self.halves.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::Half::*;
    use super::*;

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn probes_of_one_moment_are_one_and_old_ones_none() {
        let silence = Silence::default();
        let begun = Instant::now();
        pass(5).await;
        silence.lasted(Osds, begun);
        silence.lasted(Osds, begun);
        assert_eq!((silence.count(Osds), silence.count(Monitors)), (1, 0));
        let begun = Instant::now();
        pass(60).await;
        silence.lasted(Osds, begun);
        assert_eq!(silence.count(Osds), 2);
        pass(250).await;
        assert_eq!(silence.count(Osds), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_it() {
        let silence = Silence::default();
        for half in [Osds, Monitors] {
            silence.lasted(half, Instant::now());
        }
        silence.broken(Monitors);
        assert_eq!((silence.count(Osds), silence.count(Monitors)), (1, 0));
        silence.broken_whole();
        assert_eq!(silence.count(Osds), 0);
    }
}
