//! Who may work on what at the same time inside one backend.
//!
//! Two rules. Operations on the same volume or snapshot queue behind each other, by the names that
//! Cinder gives its coordination locks (`<id>-delete_volume` and so on), so that a clone never races
//! with the deletion of its source; in a Cinder cluster also those of its other members. And a failover waits for nobody: it closes the gate, gives running
//! work a short while, and goes on; requests that arrive meanwhile wait behind the gate and then run
//! on the new site.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{
    Mutex as AsyncMutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock,
};
use tracing::warn;

use crate::journal::Journal;

/// First and longest pause before another member's lock is asked for again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Mutexes by name. An entry lives as long as somebody holds or awaits it.
#[derive(Debug, Default)]
pub struct NamedLocks {
    locks: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
    /// The Cinder cluster whose members share the locks, and where they do.
    shared: Option<(String, Journal)>,
}

/// Holds a named lock until dropped.
#[derive(Debug)]
pub struct NamedGuard {
    guard: Option<OwnedMutexGuard<()>>,
    /// What the other members of the cluster must be told when it is dropped.
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Shared {
    cluster: String,
    name: String,
    instance: String,
    journal: Journal,
}

impl Drop for NamedGuard {
    fn drop(&mut self) {
        let (Some(guard), Some(shared)) = (self.guard.take(), self.shared.take()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let Shared { cluster, name, instance, journal } = shared;
            if let Err(error) = journal.unlock(&cluster, &name, &instance).await {
                warn!(lock = name, %error, "could not give a lock back: others wait for it until this service has nothing to do");
            }
            // Who waits for it in this process comes after that, or his lock would be given back.
            drop(guard);
        });
    }
}

impl NamedLocks {
    /// Locks of a backend; with a cluster, its other members wait for them too.
    pub fn new(cluster: Option<&str>, journal: &Journal) -> NamedLocks {
        NamedLocks {
            locks: Mutex::default(),
            shared: cluster.map(|cluster| (cluster.to_owned(), journal.clone())),
        }
    }

    /// Waits for the lock `name` of a resource. The caller has an operation in the journal: without one, other
    /// members would take the lock for that of a dead one.
    pub async fn lock(&self, name: &str) -> NamedGuard {
        let mut guard = self.local(name).await;
        let Some((cluster, journal)) = &self.shared else { return guard };
        let mut pause = PAUSE.0;
        let mut failing = false;
        loop {
            match journal.try_lock(cluster, name).await {
                Ok(Some(instance)) => {
                    let (cluster, name) = (cluster.clone(), name.to_owned());
                    let shared = Shared { cluster, name, instance, journal: journal.clone() };
                    guard.shared = Some(shared);
                    return guard;
                }
                Ok(None) => {}
                Err(error) => {
                    if !failing {
                        warn!(lock = name, %error, "could not ask for a lock that this cluster shares");
                    }
                    failing = true;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Waits for the lock `name` of this process, which no other member of a cluster knows.
    pub async fn local(&self, name: &str) -> NamedGuard {
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
        NamedGuard { guard: Some(mutex.lock_owned().await), shared: None }
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
    empty: Option<OwnedRwLockWriteGuard<()>>,
}

impl Closed {
    /// True when everybody who was inside has left.
    pub fn is_empty(&self) -> bool {
        self.empty.is_some()
    }
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
        Closed { _turnstile: turnstile, empty }
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
