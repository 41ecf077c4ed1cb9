//! Snapshots of several images as of one instant.
//!
//! What a set of snapshots shows is crash-consistent when there is an instant at which nobody could write to
//! any of the images, and every snapshot was made between that instant and the next write to its image. Each
//! member has a thread that takes the exclusive lock and begins to make the snapshot; librbd then asks the
//! watchers of "quiesce", of which we are one. A member that asks while we own its lock keeps its writers
//! waiting until we answer: the lock goes on request, but not before the snapshot is there. When all have
//! asked, that is the instant, and all get the answer to go on.
//!
//! A writer that got the lock back before its snapshot was begun makes the snapshot itself, on our request,
//! and goes on writing: then all are told to fail, and it is tried anew. So it is when somebody else makes a
//! snapshot of a member meanwhile (mirroring does): nothing tells his question from ours.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::rbd::error::RbdErrorKind;
use crate::rbd::ffi::{Answerer, Cluster, Failure, Image, IoCtx};
use crate::rbd::types::{SnapOf, features};

/// How often it is tried to get all locks at once.
const ROUNDS: u32 = 4;
/// How long the members of one round are waited for. Writers wait meanwhile, so it is short.
const GATHERING: Duration = Duration::from_secs(4);
/// After this time the call answers, whatever its threads are waiting for: before its deadline.
const PATIENCE: Duration = Duration::from_secs(25);

/// Creates the snapshots of all `members`, or none.
///
/// # Errors
/// What the first member failed with; EBUSY when the locks could not be had all at once; ETIMEDOUT when
/// librbd does not answer (then snapshots may be left).
pub(super) fn create(cluster: &Arc<Cluster>, pool: &str, members: &[SnapOf]) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    for _ in 0..ROUNDS {
        if Instant::now() + GATHERING >= end {
            break;
        }
        match round(cluster, pool, members, end)? {
            Outcome::Made => return Ok(()),
            Outcome::Missed => {}
        }
    }
    Err(refusal(pool, "a writer does not let go of its lock", libc::EBUSY))
}

fn refusal(pool: &str, why: &str, errno: i32) -> Failure {
    Failure::new(
        "rbd_snap_create",
        format!("snapshots of several images of {pool}: {why}"),
        -i64::from(errno),
    )
}

enum Outcome {
    Made,
    /// Not all locks were ours at once; no snapshot is left.
    Missed,
}

fn round(cluster: &Arc<Cluster>, pool: &str, members: &[SnapOf], end: Instant) -> Result<Outcome, Failure> {
    let meeting = Arc::new(Meeting::default());
    let (sender, results) = mpsc::channel();
    for (index, member) in members.iter().enumerate() {
        // Threads of their own and not scoped ones: librbd may keep one of them for ever.
        let (cluster, pool_name, member) = (Arc::clone(cluster), pool.to_owned(), member.clone());
        let (theirs, sender) = (Arc::clone(&meeting), sender.clone());
        let begun = thread::Builder::new().name("member".to_owned()).spawn(move || {
            let made = take(&cluster, &pool_name, &member, &theirs);
            if made.is_err() {
                theirs.decide(false);
            }
            // Nobody listens any more when it took too long.
            let _ = sender.send((index, made));
        });
        if begun.is_err() {
            meeting.decide(false);
            return Err(refusal(pool, "no thread could be started", libc::EAGAIN));
        }
    }
    drop(sender);
    let agreed = meeting.gather(members.len(), Instant::now() + GATHERING);
    let results = collect(&results, members.len(), end);
    settle(cluster, pool, members, results, agreed && !meeting.is_spoiled())
}

/// The results of all members that answer before `end`.
fn collect(
    results: &Receiver<(usize, Result<(), Failure>)>,
    count: usize,
    end: Instant,
) -> Vec<Option<Result<(), Failure>>> {
    let mut all: Vec<Option<Result<(), Failure>>> = (0..count).map(|_| None).collect();
    for _ in 0..count {
        match results.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((index, result)) => {
                if let Some(slot) = all.get_mut(index) {
                    *slot = Some(result);
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    all
}

/// All or none: what was made is removed when it is not the whole set.
fn settle(
    cluster: &Arc<Cluster>,
    pool: &str,
    members: &[SnapOf],
    results: Vec<Option<Result<(), Failure>>>,
    agreed: bool,
) -> Result<Outcome, Failure> {
    if agreed && results.iter().all(|r| matches!(r, Some(Ok(())))) {
        return Ok(Outcome::Made);
    }
    let io = IoCtx::open(cluster, pool)?;
    for (member, result) in members.iter().zip(&results) {
        if matches!(result, Some(Ok(()))) {
            Image::open(&io, &member.image)?.remove_snapshot(&member.snap)?;
        }
    }
    if results.iter().any(Option::is_none) {
        return Err(refusal(pool, "librbd does not answer", libc::ETIMEDOUT));
    }
    // "Busy" is what a round that was called off answers, too.
    let failure =
        results.into_iter().flatten().filter_map(Result::err).find(|f| f.kind() != RbdErrorKind::Busy);
    match failure {
        Some(failure) => Err(failure),
        None => Ok(Outcome::Missed),
    }
}

/// One member: ready to make its snapshot, waiting for the others, making it.
fn take(cluster: &Arc<Cluster>, pool: &str, member: &SnapOf, meeting: &Meeting) -> Result<(), Failure> {
    let io = IoCtx::open(cluster, pool)?;
    let image = Image::open(&io, &member.image)?;
    if image.features()? & features::EXCLUSIVE_LOCK == 0 {
        let what = format!("{pool}/{} has no exclusive lock", member.image);
        return Err(Failure::new("rbd_snap_create", what, -i64::from(libc::EOPNOTSUPP)));
    }
    let (sender, events) = mpsc::channel();
    let asked = sender.clone();
    // The receiver lives as long as the watch.
    let watch = image.watch_quiesce(Box::new(move || drop(asked.send(Event::Asked))))?;
    let answerer = watch.answerer();
    // A flush takes the lock as a write does, and changes nothing.
    image.flush()?;
    if meeting.is_over() {
        return Err(refusal(pool, "called off", libc::EBUSY));
    }
    let begun = &AtomicBool::new(false);
    thread::scope(|scope| {
        let answering = move || answer(answerer, &events, begun, meeting);
        let helper = thread::Builder::new().name("answer".to_owned()).spawn_scoped(scope, answering);
        let Ok(helper) = helper else {
            return Err(refusal(pool, "no thread could be started", libc::EAGAIN));
        };
        begun.store(true, Ordering::SeqCst);
        let made = image.create_snapshot_quiesced(&member.snap);
        // One that was never asked for, or failed before, is not part of a set.
        meeting.decide(false);
        end(&sender);
        if helper.join().is_err() {
            return made.and(Err(refusal(pool, "a thread panicked", libc::EIO)));
        }
        made
    })
}

enum Event {
    /// librbd is about to make the snapshot.
    Asked,
    /// The snapshot was made, or not.
    Ended,
}

fn end(events: &Sender<Event>) {
    // The helper may have ended by itself.
    let _ = events.send(Event::Ended);
}

/// Answers librbd for one member: when all members have asked under our locks, the snapshot may be made.
fn answer(answerer: Answerer<'_>, events: &Receiver<Event>, begun: &AtomicBool, meeting: &Meeting) {
    let mut arrived = false;
    while let Ok(Event::Asked) = events.recv() {
        if !begun.load(Ordering::SeqCst) {
            // Somebody else's snapshot, which is none of our business.
            answerer.complete(None);
        } else if arrived {
            // One of both was somebody else's, and it may have been the first.
            meeting.spoil();
            answerer.complete(None);
        } else {
            arrived = true;
            meeting.arrive(answerer.owns_lock().unwrap_or(false));
            let go = meeting.verdict();
            answerer.complete((!go).then_some(libc::EBUSY));
        }
    }
}

/// Where members wait for each other.
#[derive(Default)]
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    here: usize,
    verdict: Option<bool>,
    spoiled: bool,
}

impl Meeting {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A member is ready; without its lock the round is lost.
    fn arrive(&self, owner: bool) {
        if owner {
            self.state().here += 1;
            self.changed.notify_all();
        } else {
            self.decide(false);
        }
    }

    /// The first decision stands.
    fn decide(&self, go: bool) {
        self.state().verdict.get_or_insert(go);
        self.changed.notify_all();
    }

    /// It cannot be told any more whether the snapshots are of one instant.
    fn spoil(&self) {
        self.state().spoiled = true;
        self.decide(false);
    }

    fn is_spoiled(&self) -> bool {
        self.state().spoiled
    }

    fn is_over(&self) -> bool {
        self.state().verdict.is_some()
    }

    /// Waits for `count` members until `end`, and decides.
    fn gather(&self, count: usize, end: Instant) -> bool {
        let mut state = self.state();
        loop {
            if let Some(verdict) = state.verdict {
                return verdict;
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.here == count || left.is_zero() {
                let go = state.here == count;
                state.verdict = Some(go);
                self.changed.notify_all();
                return go;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the decision.
    fn verdict(&self) -> bool {
        let state = self.state();
        let waiting = self.changed.wait_while(state, |s| s.verdict.is_none());
        waiting.unwrap_or_else(PoisonError::into_inner).verdict.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn meet(owners: &[bool], expected: usize, patience: Duration) -> (bool, Vec<bool>) {
        let meeting = Arc::new(Meeting::default());
        let members: Vec<_> = owners
            .iter()
            .map(|owner| {
                let (meeting, owner) = (Arc::clone(&meeting), *owner);
                thread::spawn(move || {
                    meeting.arrive(owner);
                    meeting.verdict()
                })
            })
            .collect();
        let agreed = meeting.gather(expected, Instant::now() + patience);
        (agreed, members.into_iter().map(|m| m.join().unwrap()).collect())
    }

    #[test]
    fn all_go_on_when_all_are_there() {
        assert_eq!(meet(&[true; 3], 3, Duration::from_secs(30)), (true, vec![true; 3]));
        assert_eq!(meet(&[], 0, Duration::from_secs(30)), (true, vec![]));
    }

    #[test]
    fn one_without_its_lock_calls_it_off_for_all() {
        assert_eq!(meet(&[true, false, true], 3, Duration::from_secs(30)), (false, vec![false; 3]));
    }

    #[test]
    fn nobody_is_waited_for_longer_than_said() {
        assert_eq!(meet(&[true; 2], 3, Duration::from_millis(20)), (false, vec![false; 2]));
    }

    #[test]
    fn a_late_failure_changes_no_decision() {
        let meeting = Meeting::default();
        meeting.arrive(true);
        assert!(meeting.gather(1, Instant::now() + Duration::from_secs(30)));
        meeting.decide(false);
        assert!(meeting.verdict());
        assert!(!meeting.is_spoiled());
        meeting.spoil();
        assert!(meeting.verdict() && meeting.is_spoiled(), "what was begun ends, and is not relied on");
    }
}
