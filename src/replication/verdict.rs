//! Is a site alive? Answered once, with a deadline, for all volumes of an operation.
//!
//! A dead cluster does not refuse: it hangs. And it can be half dead: monitors that answer while every
//! OSD is stopped, or open images that work while the monitors are gone (lab/facts.md). So monitors and
//! OSDs are probed separately, each within its own deadline, and only a clear answer forces anything.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::rbd::protocol::{ProbeMon, ProbeOsd};
use crate::rbd::silence::Half;
use crate::rbd::{RbdError, RbdErrorKind, Site};

/// What a bounded probe says of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Monitors and OSDs both answer in time.
    Alive,
    /// Answers in part or only sometimes. Never forces anything by itself.
    Degraded,
    /// No monitor quorum, or three read+write probes in a row timed out.
    Dead,
}

impl Verdict {
    /// For logs and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Alive => "alive",
            Verdict::Degraded => "degraded",
            Verdict::Dead => "dead",
        }
    }
}

/// Outcome of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Answered in time.
    Ok,
    /// No answer in time, or no connection to be had.
    Silent,
    /// Answered, but with an error: caps, missing pool. The site lives; its operator has work to do. Also
    /// when it could not be asked for a reason of our own, such as a missing keyring.
    Refused,
    /// The worker died under the question: that says nothing of the site.
    Lost,
}

impl From<&Result<(), RbdError>> for Probe {
    fn from(result: &Result<(), RbdError>) -> Probe {
        match result {
            Ok(()) => Probe::Ok,
            Err(e) => match e.kind {
                RbdErrorKind::TimedOut => Probe::Silent,
                RbdErrorKind::Unreachable if is_silence(e.errno) => Probe::Silent,
                RbdErrorKind::WorkerLost => Probe::Lost,
                RbdErrorKind::Unreachable
                | RbdErrorKind::NotFound
                | RbdErrorKind::NoPool
                | RbdErrorKind::Exists
                | RbdErrorKind::Busy
                | RbdErrorKind::HasSnapshots
                | RbdErrorKind::ReadOnly
                | RbdErrorKind::Invalid
                | RbdErrorKind::NotSupported
                | RbdErrorKind::Permission
                | RbdErrorKind::NoSpace
                | RbdErrorKind::Blocklisted
                | RbdErrorKind::Other => Probe::Refused,
            },
        }
    }
}

/// Whether a connection failed for want of an answer, and not for a conf, a key or a worker that is not there.
fn is_silence(errno: i32) -> bool {
    [libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ENOTCONN, libc::ECONNREFUSED]
        .contains(&errno)
}

/// How often a probe is tried before silence counts as death.
const TRIES: usize = 3;
/// The same with probes whose worker died.
const TRIES_IN_ALL: usize = 6;

/// Judges from the probes made, monitors and OSDs in order of time.
pub fn judge(mon: &[Probe], osd: &[Probe]) -> Verdict {
    let told = |probes: &[Probe]| probes.iter().copied().filter(|p| *p != Probe::Lost).collect::<Vec<_>>();
    let (mon, osd) = (told(mon), told(osd));
    let silent = |probes: &[Probe]| probes.len() >= TRIES && probes.iter().all(|p| *p == Probe::Silent);
    let fine = |probes: &[Probe]| probes.first() == Some(&Probe::Ok);
    if silent(&mon) || silent(&osd) {
        Verdict::Dead
    } else if fine(&mon) && fine(&osd) {
        Verdict::Alive
    } else {
        Verdict::Degraded
    }
}

/// Probes `site` with `pool`, each probe bounded by `timeout`. Takes one round trip on a healthy site,
/// three timeouts on a dead one: both halves are probed at once. What was silent under earlier probes and has not
/// answered since counts, so that a site known to be silent takes one.
pub async fn take(site: &Site, pool: &str, timeout: Duration) -> Verdict {
    let started = Instant::now();
    let (mon, osd) = (probe(site, pool, timeout, Half::Monitors), probe(site, pool, timeout, Half::Osds));
    let (mon, osd) = tokio::join!(mon, osd);
    let verdict = judge(&mon, &osd);
    info!(
        site = site.name(),
        verdict = verdict.as_str(),
        mon = ?mon,
        osd = ?osd,
        took_ms = started.elapsed().as_millis() as u64,
        "took the verdict on a site"
    );
    verdict
}

/// Whether both halves of a site answer one probe each: a cheap look at a site that was dead.
pub async fn answers(site: &Site, pool: &str, timeout: Duration) -> bool {
    let (mon, osd) =
        tokio::join!(once(site, pool, timeout, Half::Monitors), once(site, pool, timeout, Half::Osds));
    mon != Probe::Silent && osd != Probe::Silent
}

async fn probe(site: &Site, pool: &str, timeout: Duration, half: Half) -> Vec<Probe> {
    // One at least is made now: nothing is forced on what was true some minutes ago.
    let earlier = site.silence().count(half).min(TRIES - 1);
    let mut silent = earlier;
    let mut outcomes = Vec::new();
    while silent < TRIES && outcomes.len() < TRIES_IN_ALL {
        let outcome = once(site, pool, timeout, half).await;
        outcomes.push(outcome);
        match outcome {
            Probe::Silent => silent += 1,
            Probe::Lost => {}
            // What was before is over.
            Probe::Ok | Probe::Refused => return outcomes,
        }
    }
    outcomes.splice(0..0, std::iter::repeat_n(Probe::Silent, earlier));
    outcomes
}

async fn once(site: &Site, pool: &str, timeout: Duration, half: Half) -> Probe {
    let begun = Instant::now();
    let answer = match half {
        Half::Monitors => site.call_within(timeout, ProbeMon {}).await.map(|_| ()),
        Half::Osds => site.call_within(timeout, ProbeOsd { pool: pool.to_owned() }).await,
    };
    let outcome = Probe::from(&answer);
    match outcome {
        Probe::Silent => site.silence().lasted(half, begun),
        Probe::Ok | Probe::Refused => site.silence().broken(half),
        Probe::Lost => {}
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::Probe::*;
    use super::*;

    #[test]
    fn one_silent_half_is_death_only_after_three_tries() {
        assert_eq!(judge(&[Ok], &[Ok]), Verdict::Alive);
        assert_eq!(judge(&[Ok], &[Silent, Silent, Silent]), Verdict::Dead);
        assert_eq!(judge(&[Silent, Silent, Silent], &[Ok]), Verdict::Dead);
        assert_eq!(judge(&[Ok], &[Silent, Silent]), Verdict::Degraded);
        assert_eq!(judge(&[Ok], &[Silent, Ok]), Verdict::Degraded);
        assert_eq!(judge(&[Ok], &[Refused]), Verdict::Degraded);
    }

    #[test]
    fn what_is_our_own_fault_is_no_death_of_a_site() {
        let failure = |kind, errno| {
            Probe::from(&Err(RbdError {
                kind,
                op: "ProbeMon".to_owned(),
                site: "default".to_owned(),
                errno,
                message: String::new(),
            }))
        };
        assert_eq!(failure(RbdErrorKind::Unreachable, libc::ETIMEDOUT), Silent);
        assert_eq!(failure(RbdErrorKind::TimedOut, 0), Silent);
        // No keyring; no worker could be started; a worker that died.
        assert_eq!(failure(RbdErrorKind::Unreachable, libc::ENOENT), Refused);
        assert_eq!(failure(RbdErrorKind::Unreachable, 0), Refused);
        assert_eq!(failure(RbdErrorKind::WorkerLost, 0), Lost);
        assert_eq!(judge(&[Ok], &[Lost, Lost, Lost, Lost, Lost, Lost]), Verdict::Degraded);
        assert_eq!(judge(&[Lost, Ok], &[Lost, Ok]), Verdict::Alive);
        assert_eq!(judge(&[Ok], &[Silent, Lost, Silent, Silent]), Verdict::Dead);
        assert_eq!(judge(&[Ok], &[Silent, Lost, Silent, Ok]), Verdict::Degraded);
    }
}
