//! Runs an operation to each of its calls, kills it there, resumes it, and looks at the result.
//!
//! "Nothing accepted is lost" is a claim about every instant, so it is tried at every instant that can
//! be told apart: before and after the effect of each call to Ceph, and in the midst of those that make
//! or remove an image.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::future::Future;
use std::io::Write;

use super::tear::Torn;
use super::{Sim, When};

/// What is killed at a crash point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// The service: the running future is dropped, and the operation is run again as a resumption.
    Service,
    /// Only the worker under the call: the operation sees `WorkerLost` and must cope by itself.
    Worker,
}

/// How often the operation has been started in this world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The first time.
    First,
    /// After a crash.
    Resumed,
}

/// Counts schedules (orders of calls, crashes, deaths and returns) that a test has run to their end, in the file that
/// `SCORIA_SCHEDULES` names: `tools/test` tells their sum.
pub fn explored(schedules: usize) {
    let Some(path) = std::env::var_os("SCORIA_SCHEDULES") else { return };
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    // One write, so that tests in other processes do not come between. A count that is lost hurts nobody.
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = file.write_all(format!("{schedules} {test}\n").as_bytes());
    }
}

/// Kills `run` at each of its calls to Ceph, before, in the midst of, and after the call's effect.
///
/// `build` makes a fresh world with what the operation needs (`W`: rows, journal, anything); `run`
/// carries the operation out in it, or resumes it; `check` looks at the end. An uninterrupted run tells
/// how many calls there are. Panics with the crash point and the call log when the uninterrupted or a resumed run fails;
/// `check` panics by itself. Answers the number of crash points tried.
///
/// A task that `run` spawned and did not await gets no answers any more after the crash; one that makes
/// its first call only after the restart is not recognised as dead.
pub async fn for_every_crash_point<W, E, B, BF, R, RF, C, CF>(
    killed: Killed,
    build: B,
    run: R,
    check: C,
) -> usize
where
    W: Clone,
    E: Display,
    B: Fn() -> BF,
    BF: Future<Output = (Sim, W)>,
    R: Fn(Sim, W, Attempt) -> RF,
    RF: Future<Output = Result<(), E>>,
    C: Fn(Sim, W) -> CF,
    CF: Future<Output = ()>,
{
    let (sim, world) = build().await;
    sim.clear_log();
    if let Err(e) = run(sim.clone(), world.clone(), Attempt::First).await {
        panic!("the operation fails even undisturbed: {e}\n{}", sim.log_text());
    }
    let calls: Vec<String> = sim.log().iter().map(|call| call.request.to_string()).collect();
    check(sim, world).await;

    let mut points = 0;
    for (k, request) in (1..).zip(&calls) {
        let midway = Torn::can(request).then_some(When::Midway);
        for when in [When::Before, When::After].into_iter().chain(midway) {
            let (sim, world) = build().await;
            sim.clear_log();
            let _report = Report { killed, k, when, sim: sim.clone() };
            match killed {
                Killed::Service => sim.kill_at(k, when),
                Killed::Worker => sim.lose_worker_at(k, when),
            }
            let first = run(sim.clone(), world.clone(), Attempt::First);
            let ended = match killed {
                // A killed process runs no clean-up, so the future is dropped where it is.
                Killed::Service => tokio::select! {
                    biased;
                    () = sim.crashed() => None,
                    result = first => Some(result),
                },
                Killed::Worker => Some(first.await),
            };
            points += 1;
            match ended {
                // Concurrency may need fewer calls than the first run; then there was no crash.
                Some(Ok(())) => {}
                Some(Err(e)) if killed == Killed::Worker => {
                    panic!("did not survive the loss of a worker: {e}")
                }
                Some(Err(e)) => panic!("failed before the crash: {e}"),
                None => {
                    sim.restart();
                    if let Err(e) = run(sim.clone(), world.clone(), Attempt::Resumed).await {
                        panic!("resumption failed: {e}");
                    }
                }
            }
            check(sim.clone(), world).await;
        }
    }
    explored(points);
    points
}

/// Says which crash point it was, when something panics in its scope.
struct Report {
    killed: Killed,
    k: usize,
    when: When,
    sim: Sim,
}

impl Drop for Report {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "crash point: {:?} killed {:?} the effect of call {}\n{}",
                self.killed,
                self.when,
                self.k,
                self.sim.log_text()
            );
        }
    }
}
