//! Which volumes a failover of their backend is about, and where they are.

use std::collections::HashMap;

use crate::backend::Backend;
use crate::db;
use crate::error::Result;
use crate::model::{ReplicationStatus, Volume};

/// The volumes to move: all replicated ones, or only those that an earlier attempt left behind, or tore apart.
pub(super) async fn candidates(backend: &Backend, retry: bool) -> Result<Vec<Volume>> {
    let scope = backend.scope();
    let (volumes, failed) = backend
        .db
        .read("volumes to fail over", async |conn| {
            let failed = db::group_replication::members_of_failed(conn, &scope).await?;
            Ok((db::failover::replicated(conn, &scope).await?, failed))
        })
        .await?;
    Ok(movable(volumes).filter(|v| !retry || is_failover_error(v) || failed.contains(&v.id)).collect())
}

/// Whether an earlier failover has left volumes behind.
pub(super) async fn is_retried(backend: &Backend) -> Result<bool> {
    Ok(!candidates(backend, true).await?.is_empty())
}

/// A row that Cinder has not given a replication status is not mirrored (invariant 4), and one that is being
/// created has no image to move: its request will find out where it belongs.
pub(super) fn movable(volumes: Vec<Volume>) -> impl Iterator<Item = Volume> {
    volumes.into_iter().filter(is_movable)
}

/// See [`movable`].
pub(super) fn is_movable(volume: &Volume) -> bool {
    volume.replication_status.is_some() && !is_being_made(volume)
}

/// Its request is still making its image.
pub(super) fn is_being_made(volume: &Volume) -> bool {
    matches!(volume.status.as_str(), "creating" | "downloading")
}

/// An earlier failover has left it behind.
pub(super) fn is_failover_error(volume: &Volume) -> bool {
    volume.replication_status.as_deref() == Some(ReplicationStatus::FailoverError.as_str())
}

/// Site by volume id, of those that are not where the backend works.
pub(super) async fn strays(backend: &Backend, volumes: &[Volume]) -> Result<HashMap<String, String>> {
    let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
    let found = backend.db.read("stray volumes", async |conn| db::stray::list(conn, &ids).await).await?;
    Ok(found.into_iter().collect())
}
