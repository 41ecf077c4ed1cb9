//! Snapshots of several images that belong together.
//!
//! The user of a group wants to go back to a state that all its volumes had at one instant. Where Ceph
//! cannot freeze all images at once (an image for many writers, a client that does not let go), he gets
//! the snapshots all the same, and is told.

use tracing::{debug, warn};

use super::{Attempt, Place, UNKNOWN_TRIES, repeat};
use crate::rbd::protocol::*;
use crate::rbd::types::SnapOf;
use crate::rbd::{RbdError, RbdErrorKind};

/// How snapshots of several images were taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consistency {
    /// All show the same instant.
    Whole,
    /// One after the other, for this reason.
    Apart(String),
}

impl Place {
    /// Takes and protects the snapshots `members`, if possible as of one instant.
    pub async fn snapshot_together(
        &self,
        members: &[SnapOf],
        attempt: Attempt,
    ) -> Result<Consistency, RbdError> {
        let consistency = self.take_together(members, attempt).await?;
        for m in members {
            self.protect(&m.image, &m.snap).await?;
        }
        Ok(consistency)
    }

    /// Takes the snapshots `members`, if possible as of one instant.
    ///
    /// What a dead attempt has left is removed first: a part of a set is not consistent with the rest, and
    /// nobody can have used it.
    pub async fn take_together(&self, members: &[SnapOf], attempt: Attempt) -> Result<Consistency, RbdError> {
        let together = SnapCreateTogether { pool: self.pool.clone(), members: members.to_vec() };
        let mut leftovers = attempt == Attempt::Again;
        let mut tries = 0;
        let apart = loop {
            tries += 1;
            if leftovers {
                self.remove_snapshots(members).await?;
            }
            match self.site.call(together.clone()).await {
                Ok(()) => break None,
                Err(e) if e.kind == RbdErrorKind::WorkerLost && tries < UNKNOWN_TRIES => {
                    debug!(ceph.op = SnapCreateTogether::NAME, error = %e, "effect unknown, beginning anew");
                    leftovers = true;
                }
                Err(e) if cannot_freeze(e.kind) => break Some(e),
                Err(e) => return Err(e),
            }
        };
        let Some(refusal) = apart else { return Ok(Consistency::Whole) };
        warn!(error = %refusal, "images cannot be frozen together, their snapshots are taken one by one");
        let unknown = refusal.effect_unknown();
        if unknown {
            self.remove_snapshots(members).await?;
        }
        let attempt = if unknown { Attempt::Again } else { attempt };
        for m in members {
            let (pool, image, snap) = (self.pool.clone(), m.image.clone(), m.snap.clone());
            repeat(&self.site, SnapCreate { pool, image, snap }, attempt, RbdErrorKind::Exists).await?;
        }
        Ok(Consistency::Apart(refusal.to_string()))
    }

    /// Removes the snapshots `members` as far as they are there.
    pub async fn remove_snapshots(&self, members: &[SnapOf]) -> Result<(), RbdError> {
        for m in members {
            self.remove_snapshot(&m.image, &m.snap).await?;
        }
        Ok(())
    }
}

/// Refusals of a freeze that say nothing against a snapshot of each image by itself.
fn cannot_freeze(kind: RbdErrorKind) -> bool {
    matches!(
        kind,
        RbdErrorKind::Busy
            | RbdErrorKind::ReadOnly
            | RbdErrorKind::NotSupported
            | RbdErrorKind::Invalid
            | RbdErrorKind::TimedOut
            | RbdErrorKind::WorkerLost
            | RbdErrorKind::Other
    )
}
