//! An image's content becomes that of one of its snapshots.
//!
//! Ceph rolls back inside the OSDs, object by object, and puts the snapshot's object map in place of the
//! image's. Journal mirroring replays that on the other side. Snapshot mirroring does not: between two mirror
//! snapshots it copies the objects that the maps call changed, and after a rollback the map calls unchanged
//! what has changed back, so that the other side would keep data from after the snapshot for ever
//! (`object_map/SnapshotRollbackRequest.cc` and `DiffRequest.cc` of librbd, Ceph 16). There the content is
//! written again instead.

use tracing::warn;

use super::Place;
use crate::rbd::RbdError;
use crate::rbd::protocol::*;
use crate::rbd::types::{MirrorMode, MirrorState};

impl Place {
    /// Reverts `image` to `snap` and makes sure that it is `bytes` large: a rollback takes back the size too.
    /// Repeatable.
    ///
    /// # Errors
    /// `NotFound` without the snapshot; `ReadOnly` when the image is not primary here, or its lock cannot be
    /// had.
    pub async fn revert(&self, image: &str, snap: &str, bytes: u64) -> Result<(), RbdError> {
        let (pool, image, snap) = (|| self.pool.clone(), || image.to_owned(), || snap.to_owned());
        let mirroring = self.site.insist(MirrorInfo { pool: pool(), image: image() }).await?;
        let by_snapshots = mirroring.state != MirrorState::Disabled && mirroring.mode == MirrorMode::Snapshot;
        if !by_snapshots {
            self.site.insist(SnapRollback { pool: pool(), image: image(), snap: snap() }).await?;
            return self.grow(&image(), bytes).await;
        }
        self.site.insist(SnapRestore { pool: pool(), image: image(), snap: snap() }).await?;
        self.grow(&image(), bytes).await?;
        // So that a failover from now on finds what the user has been told.
        if let Err(error) = self.site.insist(MirrorSnapshot { pool: pool(), image: image() }).await {
            warn!(image = image(), %error, "the other site learns of a revert with the next mirror snapshot only");
        }
        Ok(())
    }
}
