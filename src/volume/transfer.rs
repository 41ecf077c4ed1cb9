//! `accept_transfer`: a volume has another owner.
//!
//! RBD ties nothing in Ceph to the owner of a volume, and the API moves the rows, so there is nothing to update;
//! but whoever accepts a volume that is gone must hear of it (`cinder/volume/manager.py: accept_transfer`).

use tracing::info;

use crate::backend::Backend;
use crate::db;
use crate::error::Result;

/// Answered with null when the volume exists.
///
/// # Errors
/// `VolumeNotFound`.
pub async fn accept(backend: &Backend, volume_id: &str) -> Result<()> {
    backend.db.read("volume to transfer", async |conn| db::volume::get(conn, volume_id).await).await?;
    info!(volume.id = volume_id, "volume transferred");
    Ok(())
}
