//! How much is worked on at once.
//!
//! Accepting is cheap and never waits; running is not, and ten thousand creations at once would only make
//! each other slow. So what has been accepted waits in order, in the journal, until one that runs has ended.
//! A caller must not wait behind casts that nobody waits for, so calls have places of their own; and what
//! an operator needs on the worst day (a failover above all) never waits for a place.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::rpc::Method;
use crate::rpc::method::BackupCall;

/// Which places a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// None: it is about the service itself, or must not wait for anything.
    Free,
    /// Somebody waits for the answer.
    Call,
    /// Everything else.
    Cast,
}

impl Lane {
    /// The lane of a request.
    pub fn of(method: &Method, is_call: bool) -> Lane {
        match method {
            Method::Failover { .. }
            | Method::FailoverCompleted { .. }
            | Method::FailoverReplication(_)
            | Method::FreezeHost
            | Method::ThawHost
            | Method::PublishServiceCapabilities
            | Method::GetCapabilities { .. }
            | Method::SetLogLevels(_)
            | Method::GetLogLevels(_)
            | Method::Order(_)
            | Method::ReplicationStatus { .. }
            | Method::Question(_)
            | Method::Site(_)
            | Method::BackupPolicy(_)
            | Method::Backend(_)
            | Method::Label(_) => Lane::Free,
            Method::Backup(call) => match **call {
                // `backup_max_operations` counts those that move data.
                BackupCall::Create { .. } | BackupCall::Continue { .. } | BackupCall::Restore { .. } => {
                    Lane::Cast
                }
                BackupCall::Delete { .. } | BackupCall::Import { .. } => Lane::Call,
                BackupCall::Export { .. }
                | BackupCall::ResetStatus { .. }
                | BackupCall::SupportsForceDelete => Lane::Free,
            },
            _ if is_call => Lane::Call,
            _ => Lane::Cast,
        }
    }
}

/// The places of one backend, `executor_thread_pool_size` for calls and as many for casts.
#[derive(Debug)]
pub struct Lanes {
    calls: Semaphore,
    casts: Semaphore,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place<'a>(#[allow(dead_code)] Option<SemaphorePermit<'a>>);

impl Lanes {
    /// `size` places in each lane.
    pub fn new(size: usize) -> Lanes {
        Lanes::of_sizes(size, size)
    }

    /// Lanes of different sizes.
    pub fn of_sizes(calls: usize, casts: usize) -> Lanes {
        let places = |size: usize| Semaphore::new(size.clamp(1, Semaphore::MAX_PERMITS));
        Lanes { calls: places(calls), casts: places(casts) }
    }

    /// Waits for a place; first come, first served.
    pub async fn enter(&self, lane: Lane) -> Place<'_> {
        let places = match lane {
            Lane::Free => return Place(None),
            Lane::Call => &self.calls,
            Lane::Cast => &self.casts,
        };
        // It is never closed, so this cannot fail.
        Place(places.acquire().await.ok())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn casts_wait_in_order_and_nobody_waits_behind_them() {
        let lanes = Lanes::new(2);
        let log = Mutex::new(Vec::new());
        let note = |what: String| log.lock().unwrap_or_else(|e| e.into_inner()).push(what);
        let casts = futures::future::join_all((0..5).map(|n| {
            let (lanes, note) = (&lanes, &note);
            async move {
                let _place = lanes.enter(Lane::Cast).await;
                note(format!("cast {n}"));
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
        }));
        let others = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _call = lanes.enter(Lane::Call).await;
            note("call".to_owned());
            let _free =
                [lanes.enter(Lane::Free).await, lanes.enter(Lane::Free).await, lanes.enter(Lane::Free).await];
            note("free".to_owned());
        };
        let began = tokio::time::Instant::now();
        tokio::join!(casts, others);
        assert_eq!(began.elapsed(), Duration::from_secs(30));
        let log = log.into_inner().unwrap_or_default();
        assert_eq!(log, ["cast 0", "cast 1", "call", "free", "cast 2", "cast 3", "cast 4"]);
    }

    #[test]
    fn a_failover_waits_for_nothing() {
        let failover = Method::Failover { secondary_backend_id: None };
        assert_eq!(Lane::of(&failover, false), Lane::Free);
        assert_eq!(Lane::of(&Method::GetCapabilities { discover: false }, true), Lane::Free);
        let remove = Method::RemoveExport { volume_id: "v".to_owned() };
        assert_eq!((Lane::of(&remove, true), Lane::of(&remove, false)), (Lane::Call, Lane::Cast));
    }
}
