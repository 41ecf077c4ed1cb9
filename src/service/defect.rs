//! What becomes of a request whose code has panicked.
//!
//! It is accepted, so somebody waits for it: its row is in a status that only its end changes, and its
//! journal entry would keep its lease for as long as the process lives. The first time it is given back and
//! run again from its last step, as after a crash. If that does not help it ends as failed: casts leave the
//! status that Cinder defines for their failure, with a user message; a caller gets the exception, and undoes
//! what it has begun itself.

use tracing::error;

use super::moving;
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::{Error, Result};
use crate::journal::Operation;
use crate::replication::failover;
use crate::rpc::Method;
use crate::volume::{
    create, delete, extend, manage, manage_snapshot, migrate, reimage, revert, snapshot, upload,
};

/// The answer to whoever asked.
pub(super) fn failure() -> Error {
    Error::internal("The request hit a defect; the log has the details")
}

/// Leaves the resources of `method` as its failure does. What is not listed has put nothing into a
/// transitional status, or its caller sees to that.
///
/// # Errors
/// What is to be recorded as the outcome, when the operation is still open.
pub(super) async fn settle(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    method: &Method,
) -> Result<()> {
    error!(operation.id = operation.id(), "a defect again: the request has failed");
    let (b, c, o, f) = (backend, context, operation, failure());
    match method {
        Method::CreateVolume(a) => create::give_up(b, c, o, &a.volume.volume.id, f).await,
        Method::DeleteVolume(a) => {
            let request = delete::Delete {
                volume_id: a.volume.volume.id.clone(),
                unmanage_only: a.unmanage_only,
                cascade: a.cascade,
            };
            delete::give_up(b, c, o, request, f).await
        }
        Method::ExtendVolume(a) => extend::give_up(b, c, o, a.into(), f).await,
        Method::ExtendVolumeCompletion(a) => extend::give_up(b, c, o, a.into(), f).await,
        Method::CreateSnapshot(a) => snapshot::give_up(b, c, o, &a.snapshot.snapshot.id, true, f).await,
        Method::DeleteSnapshot(a) => snapshot::give_up(b, c, o, &a.snapshot.snapshot.id, false, f).await,
        Method::CreateGroup { .. }
        | Method::CreateGroupFromSource(_)
        | Method::UpdateGroup(_)
        | Method::DeleteGroup { .. }
        | Method::CreateGroupSnapshot { .. }
        | Method::DeleteGroupSnapshot { .. }
        | Method::EnableReplication { .. }
        | Method::DisableReplication { .. }
        | Method::FailoverReplication(_) => super::group::give_up(b, c, o, method, f).await,
        Method::RevertToSnapshot(a) => {
            let request = revert::Revert {
                volume_id: a.volume.volume.id.clone(),
                snapshot_id: a.snapshot.snapshot.id.clone(),
            };
            revert::give_up(b, c, o, request, f).await
        }
        Method::Reimage(a) => Box::pin(reimage::give_up(b, c, o, &a.volume.volume.id, f)).await,
        Method::ManageExisting(a) => Box::pin(manage::give_up(b, c, o, &a.volume.volume.id, f)).await,
        Method::ManageExistingSnapshot(a) => {
            Box::pin(manage_snapshot::give_up(b, c, o, &a.snapshot.snapshot.id, f)).await
        }
        Method::CopyVolumeToImage(a) => {
            let request = upload::Upload::new(&a.volume_id, &a.image_meta);
            Box::pin(upload::give_up(b, c, o, request, f)).await
        }
        Method::Retype(a) => moving::give_up_retype(b, c, o, a, f).await,
        Method::MigrateVolume(a) => migrate::give_up_migration(b, c, o, &a.volume.volume.id, f).await,
        Method::GetBackupDevice(a) => super::backups::give_up(b, c, o, a, f).await,
        Method::Failover { .. } => failover::give_up(b, c, o, f).await,
        _ => Err(f),
    }
}
