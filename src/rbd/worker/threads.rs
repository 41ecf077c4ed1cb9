//! Threads that block in librbd: as many as calls are under way, up to a limit, kept a while for the
//! next ones.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A piece of work. It must not panic.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// An idle thread ends after this time.
const KEEP: Duration = Duration::from_secs(30);

pub(super) struct Threads {
    state: Mutex<State>,
    wake: Condvar,
    max: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    alive: usize,
    /// Threads waiting for work, including those already woken for queued work.
    idle: usize,
}

impl Threads {
    pub(super) fn new(max: usize) -> Threads {
        Threads { state: Mutex::default(), wake: Condvar::new(), max }
    }

    /// Runs `job` on an idle thread, a new one, or (at the limit) the next that becomes free.
    ///
    /// # Errors
    /// When there is no thread at all and none can be started.
    pub(super) fn submit(self: &Arc<Self>, job: Job) -> io::Result<()> {
        let mut state = self.lock();
        state.queue.push_back(job);
        if state.queue.len() <= state.idle {
            self.wake.notify_one();
        } else if state.alive < self.max {
            let threads = Arc::clone(self);
            match thread::Builder::new().name("call".to_owned()).spawn(move || threads.work()) {
                Ok(_) => state.alive += 1,
                Err(e) if state.alive == 0 => return Err(e),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (woken, timeout) =
                self.wake.wait_timeout(state, KEEP).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                state.alive -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::sync::mpsc;

    use super::*;

    #[test]
    fn every_job_runs_and_no_more_than_the_limit_at_once() {
        let threads = Arc::new(Threads::new(3));
        let (started, starts) = mpsc::channel();
        let (done, results) = mpsc::channel();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        for n in 0..10 {
            let (started, done, gate) = (started.clone(), done.clone(), Arc::clone(&gate));
            let job = move || {
                started.send(()).unwrap();
                let open = gate.1.wait_while(gate.0.lock().unwrap(), |open| !*open).unwrap();
                drop(open);
                done.send(n).unwrap();
            };
            threads.submit(Box::new(job)).unwrap();
        }
        for _ in 0..3 {
            starts.recv().unwrap();
        }
        assert_eq!(threads.lock().alive, 3);
        assert_eq!(threads.lock().queue.len(), 7);
        assert!(starts.try_recv().is_err());
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        let mut ran: Vec<i32> = (0..10).map(|_| results.recv().unwrap()).collect();
        ran.sort_unstable();
        assert_eq!(ran, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn an_idle_thread_is_used_again() {
        let threads = Arc::new(Threads::new(8));
        let (done, results) = mpsc::channel();
        for n in 0..20 {
            let done = done.clone();
            threads.submit(Box::new(move || done.send(n).unwrap())).unwrap();
            assert_eq!(results.recv().unwrap(), n);
            while threads.lock().idle == 0 {
                thread::yield_now();
            }
        }
        assert_eq!(threads.lock().alive, 1);
    }
}
