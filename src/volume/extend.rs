//! `extend_volume`: the image grows first, then the row; a failure gives the reserved quota back.
//!
//! No error escapes (the request is a cast and the user sees `error_extending` with a message), and the
//! image never shrinks: a repeated or late request finds it large enough.

use tracing::{error, info};

use super::{crash, transition_if_still};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::db::quota;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{GIB, Volume, VolumeEvent};

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Extend {
    /// The volume.
    pub volume_id: String,
    /// New size, GiB.
    pub new_size: i32,
    /// What the API reserved for it.
    pub reservations: Vec<String>,
}

/// Extends the volume.
///
/// # Errors
/// Only when nothing could be recorded; a failed extend is recorded in the row.
pub async fn extend(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Extend,
) -> Result<()> {
    let id = &request.volume_id;
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(id).await;
    let found = backend.db.read("volume to extend", async |conn| db::volume::find(conn, id).await).await?;
    let Some(volume) = found else { return gone(backend, operation, &request).await };
    crash::point("extend_volume:accepted");
    match resize(backend, context, &volume, request.new_size).await {
        Ok(()) => succeed(backend, context, operation, &volume, &request).await,
        Err(failure) if failure.code() == Code::Cancelled => Err(failure),
        Err(failure) => fail(backend, context, operation, &volume, &request, failure).await,
    }
}

/// Ends the request as failed without another try, wherever it was interrupted by a defect.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Extend,
    failure: Error,
) -> Result<()> {
    let id = &request.volume_id;
    let volume = backend.db.read("volume to give up", async |conn| db::volume::get(conn, id).await).await?;
    fail(backend, context, operation, &volume, &request, failure).await
}

async fn resize(backend: &Backend, context: &RequestContext, volume: &Volume, new_size: i32) -> Result<()> {
    backend.notify_volume(context, "resize.start", volume).await;
    backend.require_up()?;
    let gib = u64::try_from(new_size).ok().filter(|gib| *gib > 0).ok_or_else(|| {
        Error::new(Code::InvalidInput, format!("Volume {} cannot be extended to {new_size} GiB", volume.id))
    })?;
    let place = backend.place(volume).await?;
    place.grow(&backend.image_name(volume), gib.saturating_mul(GIB)).await?;
    crash::point("extend_volume:image_resized");
    Ok(())
}

async fn succeed(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    request: &Extend,
) -> Result<()> {
    let project = volume.project_id.clone().or_else(|| context.project_id.clone()).unwrap_or_default();
    let ended = backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            quota::commit(conn, &project, &request.reservations).await?;
            let attached = !db::attachment::list_for_volume(conn, &volume.id).await?.is_empty();
            let event = if attached { VolumeEvent::ExtendedInUse } else { VolumeEvent::Extended };
            let changes = VolumeChanges { size: Some(request.new_size), ..VolumeChanges::default() };
            match db::volume::transition(conn, &volume.id, event, &changes).await {
                // Somebody has set another status: it stays, but the image is as large as it is.
                Err(e) if e.code() == Code::Conflict => {
                    db::volume::update(conn, &volume.id, &changes).await?;
                }
                other => other?,
            }
            db::volume::get(conn, &volume.id).await
        })
        .await;
    let after = match ended {
        Err(e) if e.code() == Code::VolumeNotFound => {
            return gone(backend, operation, request).await;
        }
        ended => ended?,
    };
    backend.allocate(volume.host.as_deref(), i64::from(request.new_size) - i64::from(volume.size));
    info!(volume.id = volume.id, from_gib = volume.size, to_gib = request.new_size, "volume extended");
    backend.notify_volume(context, "resize.end", &after).await;
    Ok(())
}

/// The volume was deleted meanwhile, and what was reserved for it would be missing until it expires.
async fn gone(backend: &Backend, operation: &Operation, request: &Extend) -> Result<()> {
    let refusal =
        Error::new(Code::VolumeNotFound, format!("Volume {} could not be found.", request.volume_id));
    error!(volume.id = request.volume_id, error = %refusal, "volume could not be extended");
    backend
        .journal
        .complete(operation, &Outcome::failed(&refusal), async |conn| {
            quota::roll_back_of_anybody(conn, &request.reservations).await
        })
        .await
}

async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    request: &Extend,
    failure: Error,
) -> Result<()> {
    error!(volume.id = volume.id, error = %failure, "volume could not be extended");
    let detail = Detail::of(failure.code(), Detail::DriverFailedExtend);
    let message = Message::volume(&volume.id, Action::ExtendVolume, detail);
    let project = volume.project_id.clone().or_else(|| context.project_id.clone()).unwrap_or_default();
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            quota::roll_back(conn, &project, &request.reservations).await?;
            transition_if_still(conn, &volume.id, VolumeEvent::ExtendFailed, &VolumeChanges::default())
                .await?;
            db::message::create(conn, context, &message, ttl).await?;
            Ok(())
        })
        .await
}
