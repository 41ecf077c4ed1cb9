//! A frozen backend destroys nothing.
//!
//! cinder-api looks whether a backend is frozen when it takes a request, and nobody looks again: what is in the
//! queue by then, what a script casts, and what the API does not ask for at all (a revert, a reimage, the trash)
//! goes on. A backend is frozen because somebody works on its clusters and needs the data as it is, so it is asked
//! here, where data would go, by the row and not by what was read of it last.

use crate::backend::Backend;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;

/// Fails while the backend, or its Cinder cluster, is frozen.
///
/// # Errors
/// `InvalidInput` as cinder-api's refusal; `Database`.
pub(super) async fn refuse(backend: &Backend) -> Result<()> {
    if is(backend).await? {
        return Err(Error::new(
            Code::InvalidInput,
            format!("Backend {} is frozen: nothing on it is deleted or written over", backend.host()),
        ));
    }
    Ok(())
}

/// Whether a refusal of [`refuse`] found its resource untouched. An earlier owner of the operation may have begun, or
/// the service that `cleanup` tidies up after.
pub(super) fn left_whole(refusal: &Error, operation: &Operation) -> bool {
    let begun = operation.is_adopted() || operation.unique_id().starts_with("cleanup-");
    refusal.code() == Code::InvalidInput && !begun
}

/// Whether the backend is frozen, and that is to count.
///
/// # Errors
/// `Database`.
pub async fn is(backend: &Backend) -> Result<bool> {
    if !backend.config.frozen_blocks_deletes {
        return Ok(false);
    }
    let (service, cluster) = (backend.service()?.id, backend.config.cluster.as_deref());
    backend
        .db
        .read("is the backend frozen", async |conn| db::service::is_frozen(conn, service, cluster).await)
        .await
}
