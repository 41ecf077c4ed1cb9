//! Keeping the service's own daemons as orders want them: started, found again, started again, stopped.
//!
//! It compares rows with the process table, one step at a time: whatever was killed when, the next look goes on from
//! what there is. A daemon that ends by itself is started again, later each time that it has not lived long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::super::{Sites, blocking};
use super::child::{self, Found, Plan, Slot};
use crate::db::mirror_daemon::{self, DaemonRow};
use crate::error::Result;

/// First pause before a daemon that has ended is started again.
const FIRST: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST: Duration = Duration::from_secs(60);
/// A daemon that has lived so long has worked: the next pause is the first again.
const SOUND: Duration = Duration::from_secs(60);
/// A daemon may take so long to end before it is killed. It lets go of locks and says so to its peers.
const GRACE: Duration = Duration::from_secs(10);
/// Lines of a log that are told.
const LINES: usize = 3;

/// What this instance of the service knows of one daemon.
#[derive(Debug, Default)]
struct Minded {
    /// When this instance has started it, or first seen it.
    since: Option<Instant>,
    /// How often in a row it has ended early.
    early: u32,
    /// Not to be started before.
    not_before: Option<Instant>,
    /// When it was told to end.
    told: Option<Instant>,
}

/// What a look at one daemon leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Rest,
    /// Start it.
    Start,
    /// Tell it to end.
    End,
    /// Kill it.
    Kill,
}

/// Looks after the daemons of one host.
pub struct Supervisor {
    sites: Arc<Sites>,
    minded: Mutex<BTreeMap<String, Minded>>,
}

impl Supervisor {
    /// Of the host of `sites`.
    pub fn new(sites: Arc<Sites>) -> Supervisor {
        Supervisor { sites, minded: Mutex::default() }
    }

    /// One look at all daemons of this host, and what follows from it.
    ///
    /// # Errors
    /// `Database`. What a daemon's own files refuse is written into its row.
    pub async fn look(&self) -> Result<()> {
        let host = &self.sites.host;
        let files = self.sites.files.lock().await;
        let rows =
            self.sites.db.read("daemons", async |conn| mirror_daemon::children(conn, host).await).await?;
        let dir = self.sites.programs.dir.clone();
        let known: BTreeSet<String> = rows.iter().map(|row| row.fsid.clone()).collect();
        blocking(move || child::sweep(&dir, &known)).await?;
        drop(files);
        for row in rows {
            let seen = match self.mind(&row).await {
                Ok(seen) => seen,
                Err(e) => {
                    let detail = Some(e.user().chars().take(500).collect());
                    if detail != row.detail {
                        error!(fsid = row.fsid, error = %e, "an rbd-mirror cannot be looked after");
                    }
                    DaemonRow {
                        state: "waiting".into(),
                        pid: None,
                        detail,
                        ended: row.ended.max(1),
                        ..row.clone()
                    }
                }
            };
            if seen != row {
                self.sites.db.write("a daemon", async |conn| mirror_daemon::see(conn, &seen).await).await?;
            }
        }
        Ok(())
    }

    /// Looks at one daemon and takes one step; answers how it is then.
    async fn mind(&self, row: &DaemonRow) -> Result<DaemonRow> {
        let slot = Slot::new(&self.sites.programs.dir, &row.fsid);
        let looking = slot.clone();
        let found = blocking(move || looking.look()).await??;
        let (step, mut seen) = {
            let mut all = self.minded.lock().unwrap_or_else(PoisonError::into_inner);
            decide(row, found, all.entry(row.fsid.clone()).or_default(), Instant::now())
        };
        if seen.ended > row.ended {
            let tailed = slot.clone();
            let tail = blocking(move || tailed.tail(LINES)).await?;
            warn!(
                fsid = row.fsid,
                ended = seen.ended,
                said = tail,
                "an rbd-mirror has ended by itself, and is started again"
            );
            seen.detail = Some(tail).filter(|tail| !tail.is_empty()).or(seen.detail);
        }
        match step {
            Step::Rest => {}
            Step::Start => {
                let plan = Plan {
                    program: self.sites.programs.rbd_mirror.clone(),
                    client: row.client.clone(),
                    generation: row.generation,
                };
                let child = blocking(move || slot.start(&plan)).await??;
                if let Some(mut child) = child {
                    let pid = child.id();
                    info!(fsid = row.fsid, pid, "an rbd-mirror was started");
                    seen.pid = Some(i64::from(pid));
                    // Reaped when it ends; that it has ended is seen by its lock. One that is not is reaped with us.
                    let reaper = std::thread::Builder::new().name("reaper".to_owned());
                    let _ = reaper.spawn(move || child.wait());
                }
            }
            Step::End | Step::Kill => {
                blocking(move || slot.end(step == Step::Kill)).await?;
            }
        }
        Ok(seen)
    }
}

/// What follows from what is wanted and what is there. Pure, but for what is remembered.
fn decide(row: &DaemonRow, found: Found, minded: &mut Minded, now: Instant) -> (Step, DaemonRow) {
    let mut seen = row.clone();
    match found {
        Found::Running { pid, generation } if row.is_wanted() && generation == row.generation => {
            if minded.since.is_none() {
                info!(fsid = row.fsid, pid, "an rbd-mirror runs already, and is looked after from now on");
            }
            let since = *minded.since.get_or_insert(now);
            minded.told = None;
            if now.duration_since(since) >= SOUND {
                minded.early = 0;
            }
            "running".clone_into(&mut seen.state);
            seen.pid = pid.map(i64::from);
            (Step::Rest, seen)
        }
        // One of another generation, or one that is to stop.
        Found::Running { pid, .. } => {
            "stopping".clone_into(&mut seen.state);
            seen.pid = pid.map(i64::from);
            let step = match minded.told {
                None => Step::End,
                Some(told) if now.duration_since(told) >= GRACE => Step::Kill,
                Some(_) => Step::Rest,
            };
            minded.told.get_or_insert(now);
            (step, seen)
        }
        Found::Nothing if row.is_wanted() => {
            seen.pid = None;
            let told = minded.told.take().is_some();
            let ended = minded.since.take().filter(|_| !told);
            if let Some(since) = ended {
                // It has ended by itself.
                if now.duration_since(since) >= SOUND {
                    minded.early = 0;
                }
                let pause = FIRST.saturating_mul(1 << minded.early.min(10)).min(LONGEST);
                minded.early += 1;
                minded.not_before = Some(now + pause);
                seen.ended = row.ended.saturating_add(1);
            }
            if minded.not_before.is_some_and(|at| at > now) {
                "waiting".clone_into(&mut seen.state);
                return (Step::Rest, seen);
            }
            minded.since = Some(now);
            minded.not_before = None;
            "starting".clone_into(&mut seen.state);
            (Step::Start, seen)
        }
        Found::Nothing => {
            *minded = Minded::default();
            "stopped".clone_into(&mut seen.state);
            seen.pid = None;
            (Step::Rest, seen)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(wanted: &str, generation: i64) -> DaemonRow {
        DaemonRow {
            fsid: "f".into(),
            host: "h".into(),
            means: "child".into(),
            client: "rbd-mirror.a".into(),
            what: String::new(),
            wanted: wanted.into(),
            generation,
            state: "stopped".into(),
            pid: None,
            ended: 0,
            detail: None,
        }
    }

    fn running(generation: i64) -> Found {
        Found::Running { pid: Some(42), generation }
    }

    #[test]
    fn what_is_wanted_is_started_and_what_runs_is_left_alone() {
        let (mut minded, now) = (Minded::default(), Instant::now());
        let wanted = row("running", 5);
        let (step, seen) = decide(&wanted, Found::Nothing, &mut minded, now);
        assert_eq!((step, seen.state.as_str()), (Step::Start, "starting"));
        let (step, seen) = decide(&wanted, running(5), &mut minded, now);
        assert_eq!((step, seen.state.as_str(), seen.pid), (Step::Rest, "running", Some(42)));
        // Another instance of the service finds it.
        let (step, seen) = decide(&wanted, running(5), &mut Minded::default(), now);
        assert_eq!((step, seen.state.as_str()), (Step::Rest, "running"));
    }

    #[test]
    fn one_that_ends_is_started_again_later_each_time() {
        let (mut minded, mut now) = (Minded::default(), Instant::now());
        let mut wanted = row("running", 5);
        assert_eq!(decide(&wanted, Found::Nothing, &mut minded, now).0, Step::Start);
        for (n, pause) in [1u64, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
            let (step, seen) = decide(&wanted, Found::Nothing, &mut minded, now);
            assert_eq!((step, seen.state.as_str(), seen.ended), (Step::Rest, "waiting", n as i32 + 1));
            wanted = seen;
            now += Duration::from_secs(pause) - Duration::from_millis(1);
            assert_eq!(decide(&wanted, Found::Nothing, &mut minded, now).0, Step::Rest);
            now += Duration::from_millis(1);
            assert_eq!(decide(&wanted, Found::Nothing, &mut minded, now).0, Step::Start);
        }
        // One that has lived has worked.
        decide(&wanted, running(5), &mut minded, now);
        now += SOUND;
        assert_eq!(decide(&wanted, Found::Nothing, &mut minded, now).1.state, "waiting");
        now += FIRST;
        assert_eq!(decide(&wanted, Found::Nothing, &mut minded, now).0, Step::Start);
    }

    #[test]
    fn one_of_another_generation_makes_room_and_one_that_lingers_is_killed() {
        let (mut minded, mut now) = (Minded::default(), Instant::now());
        let wanted = row("running", 6);
        assert_eq!(decide(&wanted, running(5), &mut minded, now).0, Step::End);
        assert_eq!(decide(&wanted, running(5), &mut minded, now).0, Step::Rest);
        now += GRACE;
        assert_eq!(decide(&wanted, running(5), &mut minded, now).0, Step::Kill);
        let (step, seen) = decide(&wanted, Found::Nothing, &mut minded, now);
        assert_eq!((step, seen.ended), (Step::Start, 0), "at once: it did not end by itself");
        decide(&wanted, running(6), &mut minded, now);
        let stop = row("stopped", 7);
        assert_eq!(decide(&stop, running(6), &mut minded, now).0, Step::End);
        let (step, seen) = decide(&stop, Found::Nothing, &mut minded, now);
        assert_eq!((step, seen.state.as_str(), seen.pid), (Step::Rest, "stopped", None));
    }
}
