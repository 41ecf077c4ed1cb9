//! `revert_to_snapshot`: the volume gets back the content of a snapshot, in place.
//!
//! Data is overwritten, so the row is asked first: a volume that somebody has taken out of `reverting`
//! meanwhile may be in use, and its content stays. A revert that was cut short is run again as a whole; until
//! it is done the volume cannot be attached, and if it fails the volume is `error`, because nobody can tell
//! what it holds (`cinder/volume/manager.py`, `revert_to_snapshot`).

use tracing::{error, info};

use super::{crash, frozen};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::db::snapshot::SnapshotChanges;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{GIB, Snapshot, SnapshotEvent, Volume, VolumeEvent};

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Revert {
    /// The volume.
    pub volume_id: String,
    /// The snapshot.
    pub snapshot_id: String,
}

/// Reverts the volume.
///
/// # Errors
/// What made it fail; rows, message and journal have been seen to.
pub async fn revert(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Revert,
) -> Result<()> {
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(&request.volume_id).await;
    // Nobody deletes the snapshot under it (its status alone does not keep an administrator from that).
    let _snapshot_lock = backend.locks.lock(&format!("{}-delete_snapshot", request.snapshot_id)).await;
    let (volume, snapshot) = rows(backend, &request).await?;
    crash::point("revert_to_snapshot:accepted");
    let Some(volume) = volume else {
        let refusal =
            Error::new(Code::VolumeNotFound, format!("Volume {} could not be found.", request.volume_id));
        return fail(backend, context, operation, &request, refusal).await;
    };
    if let Err(refusal) = frozen::refuse(backend).await {
        return fail(backend, context, operation, &request, refusal).await;
    }
    backend.notify_volume(context, "revert.start", &volume).await;
    if let Some(snapshot) = &snapshot {
        backend.notify_snapshot(context, "revert.start", snapshot, &volume).await;
    }
    let failure = match roll_back(backend, &volume, snapshot.as_ref(), &request).await {
        Ok(()) => match succeed(backend, operation, &request).await {
            Ok(()) => {
                info!(volume.id = volume.id, snapshot.id = request.snapshot_id, "volume reverted");
                // It has ended: what is only told must not make it fail.
                if let Ok((Some(volume), snapshot)) = rows(backend, &request).await {
                    tell_end(backend, context, &volume, snapshot.as_ref()).await;
                }
                return Ok(());
            }
            Err(e) if e.code() == Code::Conflict || e.code() == Code::VolumeNotFound => e,
            Err(e) => return Err(e),
        },
        // It will be taken up again.
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database) => return Err(e),
        Err(e) => e,
    };
    // With the statuses that they had, as upstream.
    tell_end(backend, context, &volume, snapshot.as_ref()).await;
    fail(backend, context, operation, &request, failure).await
}

/// Ends the request as failed without another try, wherever it was interrupted by a defect.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Revert,
    failure: Error,
) -> Result<()> {
    fail(backend, context, operation, &request, failure).await
}

async fn rows(backend: &Backend, request: &Revert) -> Result<(Option<Volume>, Option<Snapshot>)> {
    backend
        .db
        .read("volume to revert", async |conn| {
            let volume = db::volume::find(conn, &request.volume_id).await?;
            let snapshot = db::snapshot::find(conn, &request.snapshot_id).await?;
            Ok((volume, snapshot.filter(|s| s.volume_id == request.volume_id)))
        })
        .await
}

async fn tell_end(backend: &Backend, context: &RequestContext, volume: &Volume, snapshot: Option<&Snapshot>) {
    backend.notify_volume(context, "revert.end", volume).await;
    if let Some(snapshot) = snapshot {
        backend.notify_snapshot(context, "revert.end", snapshot, volume).await;
    }
}

async fn roll_back(
    backend: &Backend,
    volume: &Volume,
    snapshot: Option<&Snapshot>,
    request: &Revert,
) -> Result<()> {
    if volume.status != "reverting" {
        return Err(Error::new(
            Code::Conflict,
            format!("Volume {} is {}, not reverting: its content is left as it is", volume.id, volume.status),
        ));
    }
    let Some(snapshot) = snapshot else {
        let id = &request.snapshot_id;
        return Err(Error::new(Code::SnapshotNotFound, format!("Snapshot {id} could not be found.")));
    };
    let place = backend.place_up(volume).await?;
    let (image, snap) = (backend.image_name(volume), backend.snap_name(&snapshot.id));
    // The API reverts to a snapshot of the volume's size only. Should they differ nevertheless, the row is
    // right; an image that is managed need not be a whole number of GiB large, so equal sizes stay as they are.
    let gib = if snapshot.volume_size == volume.size { 0 } else { u64::try_from(volume.size).unwrap_or(0) };
    let bytes = gib.saturating_mul(GIB);
    if volume.encryption_key_id.is_some() {
        place.revert(&image, &snap, 0).await?;
        place.grow_behind_header(&image, bytes).await?;
    } else {
        place.revert(&image, &snap, bytes).await?;
    }
    crash::point("revert_to_snapshot:reverted");
    // The other site of a failover that came meanwhile need not have it.
    let volume =
        backend.db.read("reverted volume", async |conn| db::volume::get(conn, &volume.id).await).await?;
    let now = backend.place(&volume).await?;
    if now.site.name() == place.site.name() {
        return Ok(());
    }
    Err(Error::new(
        Code::InvalidReplicationTarget,
        format!("The backend of volume {} failed over while it was reverted", volume.id),
    ))
}

async fn succeed(backend: &Backend, operation: &Operation, request: &Revert) -> Result<()> {
    backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            let none = VolumeChanges::default();
            db::volume::transition(conn, &request.volume_id, VolumeEvent::Reverted, &none).await?;
            release(conn, &request.snapshot_id).await
        })
        .await
}

/// The snapshot is `available` again, however it went.
async fn release(conn: &mut db::Conn, snapshot_id: &str) -> Result<()> {
    let none = SnapshotChanges::default();
    match db::snapshot::transition(conn, snapshot_id, SnapshotEvent::RevertEnded, &none).await {
        Err(e) if matches!(e.code(), Code::Conflict | Code::SnapshotNotFound) => Ok(()),
        other => other,
    }
}

async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: &Revert,
    failure: Error,
) -> Result<()> {
    let id = &request.volume_id;
    error!(volume.id = id, snapshot.id = request.snapshot_id, error = %failure, "volume could not be reverted");
    let detail = Detail::of(failure.code(), Detail::UnknownError);
    let message = Message::volume(id, Action::Unnamed, detail);
    let ttl = backend.globals.message_ttl;
    let whole = frozen::left_whole(&failure, operation);
    let event = if whole { VolumeEvent::RevertRefused } else { VolumeEvent::RevertFailed };
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            let none = VolumeChanges::default();
            let failed = db::volume::transition(conn, id, event, &none).await;
            release(conn, &request.snapshot_id).await?;
            match failed {
                Ok(()) => db::message::create(conn, context, &message, ttl).await.map(|_| ()),
                // Somebody has set another status: there is nothing to tell about a request that he has undone.
                Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound) => Ok(()),
                Err(e) => Err(e),
            }
        })
        .await
}
