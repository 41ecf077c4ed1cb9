//! How long work goes on with a site that answers nothing.
//!
//! Each call to Ceph has a deadline; but an operation makes many calls, and those that may be repeated are, so that a short
//! outage costs nothing. Were each of them patient for itself, an operation would need many minutes to find out that a
//! site is dead. Here is one rule for all: work goes on with a silent site for so long after its last answer, and no
//! longer. What was heard of a site is known to all operations of a service: one that comes to a site which has been
//! silent for all that time asks it once, and briefly.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::error::RbdErrorKind;
use super::protocol::Connection;
use super::{RbdError, Request};

/// How long a site is asked that has been silent for the whole time, and the least that a call gets which is asked again.
const LOOK: Duration = Duration::from_secs(10);
/// Pause before a silent site is asked again: a connection that is refused costs no time.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// When a call that may go on for long was last seen to move on. Told by whoever carries it out.
#[derive(Debug, Clone, Default)]
pub struct Moves(Arc<Mutex<Option<Instant>>>);

impl Moves {
    /// It has moved on.
    pub fn on(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// When that was; `None`: it was not seen to.
    pub fn last(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a service has heard of its sites, and how long it goes on with one that is silent.
#[derive(Debug)]
pub struct Hearing {
    limit: Duration,
    sites: Mutex<HashMap<Key, Heard>>,
}

/// What makes two connections lead to the same site.
type Key = (PathBuf, Option<String>, String);

#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    /// Its last answer, whatever that was.
    answered: Option<Instant>,
    /// It has left a call unanswered since.
    missed: bool,
}

/// The sites that a call needs.
pub(super) struct Needed<'a> {
    pub(super) one: &'a Connection,
    /// Of a command that works on two.
    pub(super) other: Option<Connection>,
}

impl<'a> Needed<'a> {
    pub(super) fn by(one: &'a Connection, request: &Request) -> Needed<'a> {
        Needed { one, other: request.second_site().cloned() }
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        [Some(self.one), self.other.as_ref()].into_iter().flatten().map(key)
    }
}

impl Hearing {
    /// Nothing is known of any site yet.
    pub fn new(limit: Duration) -> Hearing {
        Hearing { limit, sites: Mutex::default() }
    }

    /// Whether a site has been silent for so long, though it was asked, that nobody waits for it any more.
    pub(super) fn has_given_up(&self, site: &Connection) -> bool {
        let heard = self.heard(&key(site));
        heard.missed && self.is_long_ago(heard.answered)
    }

    /// The deadline of a call for somebody who has been waiting for its answer since then.
    pub(super) fn deadline(&self, of: &Needed<'_>, since: Instant, usual: Duration) -> Duration {
        let left = match self.has_given_up(of.one) {
            true => Duration::ZERO,
            false => self.limit.saturating_sub(since.elapsed()),
        };
        usual.min(left.max(LOOK.min(self.limit)))
    }

    /// Whether a call that was not answered is made again by somebody who has been waiting since then.
    pub(super) fn goes_on(&self, of: &Needed<'_>, since: Instant) -> bool {
        since.elapsed() < self.limit && of.keys().all(|key| !self.is_long_ago(self.heard(&key).answered))
    }

    /// Notes what has come of a call.
    pub(super) fn note(&self, of: &Needed<'_>, moved: Option<Instant>, failure: Option<&RbdError>) {
        let mut sites = self.lock();
        if let Some(at) = moved {
            for key in of.keys() {
                let heard = sites.entry(key).or_default();
                heard.answered = heard.answered.max(Some(at));
            }
        }
        let now = Some(Instant::now());
        match failure.map(|failure| failure.kind) {
            None => {
                for key in of.keys() {
                    sites.insert(key, Heard { answered: now, missed: false });
                }
            }
            // The worker's end says nothing of the site.
            Some(RbdErrorKind::WorkerLost) => {}
            // Of two sites nobody knows which one it was.
            Some(_) if of.other.is_some() => {}
            Some(RbdErrorKind::TimedOut | RbdErrorKind::Unreachable) => {
                sites.entry(key(of.one)).or_default().missed = true;
            }
            Some(_) => {
                sites.insert(key(of.one), Heard { answered: now, missed: false });
            }
        }
    }

    fn is_long_ago(&self, answered: Option<Instant>) -> bool {
        answered.is_none_or(|at| at.elapsed() >= self.limit)
    }

    fn heard(&self, key: &Key) -> Heard {
        self.lock().get(key).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Heard>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(connection: &Connection) -> Key {
    (connection.conf.clone(), connection.user.clone(), connection.cluster_name.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::rbd::Site;
    use crate::rbd::protocol::{DeltaCopy, ImageCreate, ImageStat, SnapCreate};
    use crate::rbd::sim::{Fault, Health, Sim, SimConfig, When};
    use crate::rbd::types::Sums;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn stat() -> ImageStat {
        ImageStat { pool: "volumes".into(), image: "v".into() }
    }

    async fn create(site: &Site, pool: &str, image: &str) {
        let (pool, image) = (pool.to_owned(), image.to_owned());
        site.call(ImageCreate { pool, image, size: 1 << 30, order: 22, features: 61 }).await.unwrap();
    }

    /// Sites a and b, each with an image, both heard of just now.
    async fn sites() -> (Sim, Site, Site) {
        let sim = Sim::new(SimConfig::default());
        let hearing = Arc::new(Hearing::new(LIMIT));
        let (a, b) = (sim.site("a").heard_by(&hearing), sim.site("b").heard_by(&hearing));
        create(&a, "volumes", "v").await;
        create(&b, "volumes", "w").await;
        (sim, a, b)
    }

    fn copy(sim: &Sim) -> DeltaCopy {
        DeltaCopy {
            pool: "volumes".into(),
            image: "v".into(),
            snap: None,
            since: None,
            dest_site: sim.connection("b"),
            dest_pool: "volumes".into(),
            dest: "w".into(),
            dest_since: None,
            offset: 0,
            budget: 1 << 30,
            at_least_s: 0,
            sums: Sums::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_site_is_given_up_so_long_after_its_last_answer_and_then_asked_once() {
        for health in [Health::Hung, Health::Dead] {
            let (sim, a, _) = sites().await;
            sim.set_health("a", health);
            let began = Instant::now();
            let error = a.insist(stat()).await.unwrap_err();
            assert_eq!(error.kind, RbdErrorKind::TimedOut);
            let waited = began.elapsed();
            assert!(waited >= LIMIT - secs(1) && waited <= LIMIT + LOOK + PAUSE, "{health:?}: {waited:?}");
            // Whoever comes next, also through another handle, asks once.
            sim.clear_log();
            let (other, began) = (a.clone().briefly(), Instant::now());
            a.insist(stat()).await.unwrap_err();
            other.insist(stat()).await.unwrap_err();
            assert!(began.elapsed() <= 2 * LOOK, "{:?}", began.elapsed());
            assert_eq!(sim.count("ImageStat"), 2);
            assert!(a.is_given_up());
            // When it is back all is as before.
            sim.set_health("a", Health::Alive);
            a.insist(stat()).await.unwrap();
            assert!(!a.is_given_up());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_ends_before_costs_nothing() {
        for health in [Health::Hung, Health::Dead] {
            let (sim, a, _) = sites().await;
            sim.set_health("a", health);
            let back = async {
                tokio::time::sleep(secs(80)).await;
                sim.set_health("a", Health::Alive);
            };
            let (answer, ()) = tokio::join!(a.insist(stat()), back);
            answer.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_site_that_was_never_heard_of_is_asked_once() {
        let sim = Sim::new(SimConfig::default());
        let a = sim.site("a").heard_by(&Arc::new(Hearing::new(LIMIT)));
        sim.set_health("a", Health::Dead);
        let began = Instant::now();
        let error = a.insist(stat()).await.unwrap_err();
        assert_eq!(error.kind, RbdErrorKind::Unreachable);
        assert!(began.elapsed() <= LOOK, "{:?}", began.elapsed());
        assert_eq!(sim.count("ImageStat"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_sticks_while_the_site_lives_is_given_up_all_the_same() {
        let (sim, a, b) = sites().await;
        sim.inject(Fault::on("ImageStat").sticks().always());
        let began = Instant::now();
        let lives = async {
            loop {
                tokio::time::sleep(secs(5)).await;
                let snap = format!("s{}", began.elapsed().as_secs());
                a.call(SnapCreate { pool: "volumes".into(), image: "v".into(), snap }).await.unwrap();
            }
        };
        tokio::select! {
            answer = a.insist(stat()) => assert_eq!(answer.unwrap_err().kind, RbdErrorKind::TimedOut),
            () = lives => {}
        }
        assert!(began.elapsed() <= LIMIT + LOOK, "{:?}", began.elapsed());
        assert!(!a.is_given_up());
        // So is a copy, which may go on for longer as long as it moves on; its one site does not suffer for the other.
        sim.clear_faults();
        a.insist(stat()).await.unwrap();
        sim.inject(Fault::on("DeltaCopy").sticks().always());
        let began = Instant::now();
        assert_eq!(a.insist(copy(&sim)).await.unwrap_err().kind, RbdErrorKind::TimedOut);
        assert!(began.elapsed() <= LIMIT + LOOK, "{:?}", began.elapsed());
        assert!(!a.is_given_up() && !b.is_given_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_is_asked_for_again_when_its_other_site_was_away() {
        let (sim, a, _) = sites().await;
        sim.set_health("b", Health::Dead);
        let back = async {
            tokio::time::sleep(secs(60)).await;
            sim.set_health("b", Health::Alive);
        };
        let (answer, ()) = tokio::join!(a.insist(copy(&sim)), back);
        assert!(answer.unwrap().complete);
        // What is no silence is told at once, as ever.
        for kind in [RbdErrorKind::NoSpace, RbdErrorKind::Permission, RbdErrorKind::Other] {
            sim.inject(Fault::on("DeltaCopy").fails(When::Before, kind));
            assert_eq!(a.insist(copy(&sim)).await.unwrap_err().kind, kind);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_counts_from_where_a_call_was_last_seen_to_move_on() {
        let sim = Sim::new(SimConfig::default());
        let hearing = Hearing::new(LIMIT);
        let connection = sim.connection("a");
        let of = Needed { one: &connection, other: Some(sim.connection("b")) };
        let began = Instant::now();
        tokio::time::advance(secs(500)).await;
        let moves = Moves::default();
        moves.on();
        hearing.note(&of, moves.last(), Some(&silence()));
        assert!(!hearing.goes_on(&of, began), "its caller has waited long enough");
        assert!(hearing.goes_on(&of, moves.last().unwrap()));
        tokio::time::advance(secs(30)).await;
        assert_eq!(hearing.deadline(&of, moves.last().unwrap(), secs(300)), secs(90));
        tokio::time::advance(secs(85)).await;
        assert_eq!(hearing.deadline(&of, moves.last().unwrap(), secs(300)), LOOK);
        tokio::time::advance(secs(5)).await;
        assert!(!hearing.goes_on(&of, moves.last().unwrap()));
        assert!(!hearing.has_given_up(&connection), "it was not asked alone");
    }

    fn silence() -> RbdError {
        RbdError {
            kind: RbdErrorKind::TimedOut,
            op: "DeltaCopy".into(),
            site: "a".into(),
            errno: libc::ETIMEDOUT,
            message: "no answer".into(),
        }
    }
}
