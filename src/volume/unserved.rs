//! Requests that Cinder's API sends and that this service does not carry out.
//!
//! The API has put the resource into a status that nothing but an answer ends (`downloading` …)
//! and waits for nobody. So each of them ends in the status that `cinder/volume/manager.py` leaves when the
//! driver refuses, with reserved quota returned and a user message: in one transaction with the end of the
//! journalled operation, so a crash before it repeats all and a crash after it nothing.
//! Statuses that somebody has changed meanwhile are left alone.
//!
//! What needs no driver on RBD is done truly: [`accept_transfer`].

use tracing::{error, info, warn};

use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db::message::{Action, Detail, Message};
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn, Work};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::VolumeEvent;

/// What becomes of a request that is not served; a caller that waits gets it as its answer.
pub fn unsupported(method: &str) -> Error {
    Error::new(Code::NotSupported, format!("{method} is not supported by this service yet"))
}

/// Ends the operation as failed, with what `work` changes. `work` answers whether it found the resource in
/// the state that the request had put it into: only then is there a message to write and a `workers` row
/// to drop, since otherwise somebody else has to do with the resource now.
async fn refuse<F>(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    message: &Message,
    work: F,
) -> Result<()>
where
    for<'r> F:
        AsyncFn(&'r mut Conn) -> Result<bool> + Work<&'r mut Conn, Result<bool>, Fut: Send> + Send + Sync,
{
    let failure = unsupported(operation.method());
    let service = backend.service()?;
    let ttl = backend.globals.message_ttl;
    let changed = backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            let changed = work(conn).await?;
            if changed {
                db::message::create(conn, context, message, ttl).await?;
                if let Some((kind, id)) = operation.resource() {
                    db::worker::release_resource(conn, kind, id, service.id).await?;
                }
            }
            Ok(changed)
        })
        .await?;
    let (kind, id) = (message.resource_type.as_str(), message.resource_id.as_str());
    if changed {
        error!(resource.kind = kind, resource.id = id, error = %failure, "request refused, its resource says so");
    } else {
        warn!(
            resource.kind = kind, resource.id = id, error = %failure,
            "request refused; its resource is gone or was changed meanwhile"
        );
    }
    Ok(())
}

/// True when the transition happened, false when the row is gone or in another status.
fn happened(transition: Result<()>) -> Result<bool> {
    match transition {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound | Code::SnapshotNotFound) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

async fn fail_volume(conn: &mut Conn, id: &str, event: VolumeEvent, changes: &VolumeChanges) -> Result<bool> {
    happened(db::volume::transition(conn, id, event, changes).await)
}

/// `reimage`: the volume becomes `error`, with `downloading` remembered as stock does.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn reimage(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume_id: &str,
) -> Result<()> {
    let message = Message::volume(volume_id, Action::ReimageVolume, Detail::UnknownError);
    let changes =
        VolumeChanges { previous_status: Some(Some("downloading".to_owned())), ..VolumeChanges::default() };
    refuse(backend, context, operation, &message, async |conn| {
        fail_volume(conn, volume_id, VolumeEvent::ReimageFailed, &changes).await
    })
    .await
}

/// `accept_transfer`: RBD ties nothing in Ceph to the owner of a volume, and the API moves the rows, so
/// there is nothing to update. Answered with null.
///
/// # Errors
/// `VolumeNotFound`.
pub async fn accept_transfer(backend: &Backend, volume_id: &str) -> Result<()> {
    backend.db.read("volume to transfer", async |conn| db::volume::get(conn, volume_id).await).await?;
    info!(volume.id = volume_id, "volume transferred");
    Ok(())
}
