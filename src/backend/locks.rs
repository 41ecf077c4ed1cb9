//! Who may work on what at the same time inside one backend.
//!
//! Two rules. Operations on the same volume or snapshot queue behind each other, by the names that
//! Cinder gives its coordination locks (`<id>-delete_volume` and so on), so that a clone never races
//! with the deletion of its source. And a failover waits for nobody: it closes the gate, gives running
//! work a short while, and goes on; requests that arrive meanwhile wait behind the gate and then run
//! on the new site.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{
    Mutex as AsyncMutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock,
};

/// Mutexes by name. An entry lives as long as somebody holds or awaits it.
#[derive(Debug, Default)]
pub struct NamedLocks {
    locks: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

/// Holds a named lock until dropped.
#[derive(Debug)]
pub struct NamedGuard {
    _guard: OwnedMutexGuard<()>,
}

impl NamedLocks {
    /// Waits for the lock `name`.
    pub async fn lock(&self, name: &str) -> NamedGuard {
        let mutex = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            if locks.len() > 1024 {
                locks.retain(|_, held| held.strong_count() > 0);
            }
            match locks.get(name).and_then(Weak::upgrade) {
                Some(mutex) => mutex,
                None => {
                    let mutex = Arc::new(AsyncMutex::new(()));
                    locks.insert(name.to_owned(), Arc::downgrade(&mutex));
                    mutex
                }
            }
        };
        NamedGuard { _guard: mutex.lock_owned().await }
    }
}

/// The gate between ordinary operations and a failover.
#[derive(Debug, Default, Clone)]
pub struct Gate {
    gate: Arc<RwLock<()>>,
    turnstile: Arc<AsyncMutex<()>>,
}

/// An ordinary operation inside the gate.
#[derive(Debug)]
pub struct Passage {
    _inside: OwnedRwLockReadGuard<()>,
}

/// A failover: nobody new comes in while it lives.
#[derive(Debug)]
pub struct Closed {
    _turnstile: OwnedMutexGuard<()>,
    _empty: Option<OwnedRwLockWriteGuard<()>>,
}

impl Gate {
    /// Enters; waits while a failover has the gate closed.
    pub async fn pass(&self) -> Passage {
        // Held only while entering: a failover keeps it, and so everybody else out.
        let _entering = self.turnstile.clone().lock_owned().await;
        Passage { _inside: self.gate.clone().read_owned().await }
    }

    /// Closes the gate and gives those inside `grace` to leave. Goes on without them after that: an
    /// operation that hangs on a dead site must not hold up the failover from it.
    pub async fn close(&self, grace: Duration) -> Closed {
        let turnstile = self.turnstile.clone().lock_owned().await;
        let empty = tokio::time::timeout(grace, self.gate.clone().write_owned()).await.ok();
        Closed { _turnstile: turnstile, _empty: empty }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_name_excludes_and_another_does_not() {
        let locks = Arc::new(NamedLocks::default());
        let held = locks.lock("v1-delete_volume").await;
        let _other = locks.lock("v2-delete_volume").await;
        let again = {
            let locks = locks.clone();
            tokio::spawn(async move { locks.lock("v1-delete_volume").await })
        };
        tokio::task::yield_now().await;
        assert!(!again.is_finished());
        drop(held);
        again.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failover_does_not_wait_for_a_stuck_operation_and_keeps_new_ones_out() {
        let gate = Gate::default();
        let stuck = gate.pass().await;
        let closed = gate.close(Duration::from_secs(10)).await;
        let late = {
            let gate = gate.clone();
            tokio::spawn(async move { gate.pass().await })
        };
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!late.is_finished());
        drop(closed);
        late.await.unwrap();
        drop(stuck);
    }
}
