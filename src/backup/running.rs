//! Which backups are being worked on in this process, so that whoever deletes one can call that off first, and whoever
//! cancels an operation finds it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What is under way, by backup.
#[derive(Debug, Default)]
pub struct Running {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    turns: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    by_backup: HashMap<String, Vec<Entry>>,
    /// Operations that somebody cancels: those that have not begun yet are called off when they do.
    unwanted: HashSet<i64>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// Of the journal; `None` where nobody cancels it by itself.
    operation: Option<i64>,
    token: CancellationToken,
}

/// Work on a backup, until dropped.
#[derive(Debug)]
pub struct Turn {
    shared: Arc<Shared>,
    backup_id: String,
    number: u64,
    token: CancellationToken,
}

impl Turn {
    /// Whether the backup is to be deleted, or the operation was cancelled.
    pub fn is_called_off(&self) -> bool {
        self.token.is_cancelled()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(turns) = state.by_backup.get_mut(&self.backup_id) {
            turns.retain(|entry| entry.number != self.number);
            if turns.is_empty() {
                state.by_backup.remove(&self.backup_id);
            }
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

impl Running {
    /// Work on a backup begins.
    pub fn enter(&self, backup_id: &str) -> Turn {
        self.begin(backup_id, None)
    }

    /// The same by an operation of the journal, which may have been cancelled before.
    pub fn enter_for(&self, backup_id: &str, operation: i64) -> Turn {
        self.begin(backup_id, Some(operation))
    }

    fn begin(&self, backup_id: &str, operation: Option<i64>) -> Turn {
        let token = CancellationToken::new();
        let mut state = self.shared.lock();
        state.next += 1;
        let number = state.next;
        if operation.is_some_and(|id| state.unwanted.contains(&id)) {
            token.cancel();
        }
        let entry = Entry { number, operation, token: token.clone() };
        state.by_backup.entry(backup_id.to_owned()).or_default().push(entry);
        drop(state);
        Turn { shared: self.shared.clone(), backup_id: backup_id.to_owned(), number, token }
    }

    /// Calls an operation off, now or when it begins.
    pub fn cancel(&self, operation: i64) {
        let mut state = self.shared.lock();
        state.unwanted.insert(operation);
        let of_it = state.by_backup.values().flatten().filter(|entry| entry.operation == Some(operation));
        of_it.for_each(|entry| entry.token.cancel());
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// A cancelled operation has ended.
    pub fn forget(&self, operation: i64) {
        self.shared.lock().unwanted.remove(&operation);
    }

    /// Whether an operation was cancelled.
    pub fn is_cancelled(&self, operation: i64) -> bool {
        self.shared.lock().unwanted.contains(&operation)
    }

    /// Returns when an operation is cancelled, which may be never.
    pub async fn cancelled(&self, operation: i64) {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.shared.lock().unwanted.contains(&operation) {
                return;
            }
            changed.await;
        }
    }

    /// Calls off what is under way with a backup, and returns when it has ended.
    pub async fn call_off(&self, backup_id: &str) {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Before it is looked: what ends in between must not be missed.
            changed.as_mut().enable();
            let tokens: Vec<CancellationToken> = {
                let state = self.shared.lock();
                let turns = state.by_backup.get(backup_id);
                turns.into_iter().flatten().map(|entry| entry.token.clone()).collect()
            };
            if tokens.is_empty() {
                return;
            }
            tokens.iter().for_each(CancellationToken::cancel);
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_calls_off_waits_for_all_and_for_nothing_else() {
        let running = Arc::new(Running::default());
        let (first, second, other) = (running.enter("b1"), running.enter("b1"), running.enter("b2"));
        let waiting = {
            let running = running.clone();
            tokio::spawn(async move { running.call_off("b1").await })
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(first.is_called_off() && second.is_called_off() && !other.is_called_off());
        drop(first);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
        running.call_off("b3").await;
        assert!(running.shared.lock().by_backup.len() == 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_operation_ends_alone_also_when_it_has_not_begun() {
        let running = Arc::new(Running::default());
        let (first, second) = (running.enter_for("b1", 1), running.enter_for("b1", 2));
        let waiting = {
            let running = running.clone();
            tokio::spawn(async move { running.cancelled(2).await })
        };
        running.cancel(2);
        waiting.await.unwrap();
        assert!(!first.is_called_off() && second.is_called_off());
        running.cancel(3);
        assert!(running.enter_for("b2", 3).is_called_off());
        running.forget(3);
        assert!(!running.enter_for("b2", 3).is_called_off());
    }
}
