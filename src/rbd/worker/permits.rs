//! How much of what threads hold in memory there is at once, whatever their number.
//!
//! Ten copies with four threads each would hold forty pieces, and librados a second time what it sends and has
//! received. A cluster is no quicker with forty at once than with a dozen.

use std::sync::{Condvar, Mutex, PoisonError};

/// So many at once; the others wait.
pub(super) struct Permits {
    left: Mutex<usize>,
    returned: Condvar,
}

/// One of them, given back when it is dropped.
pub(super) struct Permit<'a>(&'a Permits);

impl Permits {
    /// All of them free.
    pub(super) const fn new(count: usize) -> Permits {
        Permits { left: Mutex::new(count), returned: Condvar::new() }
    }

    /// Waits for one. Whoever has one must not ask for another.
    pub(super) fn take(&self) -> Permit<'_> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left =
            self.returned.wait_while(left, |left| *left == 0).unwrap_or_else(PoisonError::into_inner);
        *left -= 1;
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.left.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn never_more_than_that_many_and_all_get_their_turn() {
        static PERMITS: Permits = Permits::new(3);
        let (now, most, turns) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _permit = PERMITS.take();
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        turns.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(turns.into_inner(), 600);
        assert!((1..=3).contains(&most.into_inner()));
        assert_eq!(*PERMITS.left.lock().unwrap(), 3);
    }
}
