//! `create_snapshot` and `delete_snapshot`.

use std::time::Duration;

use tracing::{error, info, warn};

use super::delete::give_back_snapshot;
use super::image::{Attempt, Place};
use super::{crash, frozen};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::db::quota::QuotaRules;
use crate::db::snapshot::SnapshotChanges;
use crate::db::{Conn, Db};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{ReplicationStatus, Snapshot, SnapshotEvent, Volume};

async fn read(db: &Db, id: &str) -> Result<Option<(Snapshot, Volume)>> {
    db.read("snapshot and its volume", async |conn| {
        let Some(snapshot) = db::snapshot::find(conn, id).await? else { return Ok(None) };
        let volume = db::volume::get(conn, &snapshot.volume_id).await?;
        Ok(Some((snapshot, volume)))
    })
    .await
}

/// Takes the snapshot.
///
/// # Errors
/// What made it fail; row, message and journal have been seen to.
pub async fn create(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
) -> Result<()> {
    let _passage = backend.gate.pass().await;
    let Some((snapshot, volume)) = read(&backend.db, id).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    let _lock = backend.locks.lock(&volume.id).await;
    crash::point("create_snapshot:accepted");
    backend.notify_snapshot(context, "create.start", &snapshot, &volume).await;
    match take(backend, operation, &snapshot, &volume).await {
        Ok(()) => created(backend, context, operation, &snapshot, &volume).await,
        Err(failure) if failure.code() == Code::Cancelled => Err(failure),
        Err(failure) => create_failed(backend, context, operation, &snapshot, failure).await,
    }
}

/// Ends the creation, or the deletion, as failed without another try, wherever it was interrupted by a defect.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
    creating: bool,
    failure: Error,
) -> Result<()> {
    let snapshot =
        backend.db.read("snapshot to give up", async |conn| db::snapshot::get(conn, id).await).await?;
    if creating {
        create_failed(backend, context, operation, &snapshot, failure).await
    } else {
        delete_failed(backend, context, operation, &snapshot, failure).await
    }
}

async fn take(backend: &Backend, operation: &Operation, snapshot: &Snapshot, volume: &Volume) -> Result<()> {
    let place = backend.place_up(volume).await?;
    let attempt = if operation.is_adopted() { Attempt::Again } else { Attempt::First };
    let image = backend.image_name(volume);
    place.snapshot(&image, &backend.snap_name(&snapshot.id), attempt).await?;
    crash::point("create_snapshot:taken");
    carry_over(&place, volume, &image).await;
    Ok(())
}

/// Tells the other site what has changed, when the volume is one that may be mirrored by snapshots.
pub(super) async fn carry_over(place: &Place, volume: &Volume, image: &str) {
    let status = volume.replication_status.as_deref().and_then(ReplicationStatus::parse);
    if status.is_some_and(ReplicationStatus::means_mirrored) {
        place.carry_over_if_possible(image).await;
    }
}

async fn created(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    snapshot: &Snapshot,
    volume: &Volume,
) -> Result<()> {
    let service = backend.service()?;
    let changes = SnapshotChanges {
        progress: Some(Some("100%".to_owned())),
        encryption_key_id: Some(volume.encryption_key_id.clone()),
        ..SnapshotChanges::default()
    };
    let after = backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            if volume.bootable {
                db::snapshot::copy_glance_metadata(conn, &volume.id, &snapshot.id).await?;
            }
            db::snapshot::transition(conn, &snapshot.id, SnapshotEvent::Created, &changes).await?;
            db::worker::release_resource(conn, "Snapshot", &snapshot.id, service.id).await?;
            db::snapshot::get(conn, &snapshot.id).await
        })
        .await?;
    info!(snapshot.id = snapshot.id, volume.id = volume.id, "snapshot created");
    backend.notify_snapshot(context, "create.end", &after, volume).await;
    Ok(())
}

async fn create_failed(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    snapshot: &Snapshot,
    failure: Error,
) -> Result<()> {
    error!(snapshot.id = snapshot.id, volume.id = snapshot.volume_id, error = %failure, "snapshot could not be created");
    let service = backend.service()?;
    let detail = Detail::of(failure.code(), Detail::SnapshotCreateError);
    let message = Message::snapshot(&snapshot.id, Action::SnapshotCreate, detail);
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            transition_if_still(conn, &snapshot.id, SnapshotEvent::CreateFailed).await?;
            db::message::create(conn, context, &message, ttl).await?;
            db::worker::release_resource(conn, "Snapshot", &snapshot.id, service.id).await?;
            Ok(())
        })
        .await
}

/// Deletes (or only forgets, with `unmanage_only`) the snapshot.
///
/// # Errors
/// What made it fail; row, message and journal have been seen to.
pub async fn delete(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
    unmanage_only: bool,
) -> Result<()> {
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(&format!("{id}-delete_snapshot")).await;
    let Some((snapshot, volume)) = read(&backend.db, id).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    crash::point("delete_snapshot:accepted");
    if !unmanage_only && let Err(refusal) = frozen::refuse(backend).await {
        return delete_failed(backend, context, operation, &snapshot, refusal).await;
    }
    backend.notify_snapshot(context, "delete.start", &snapshot, &volume).await;
    match remove(backend, &snapshot, &volume, unmanage_only, true).await {
        Ok(()) => deleted(backend, context, operation, &snapshot, &volume).await,
        Err(failure) if failure.code() == Code::Cancelled => Err(failure),
        Err(failure) => delete_failed(backend, context, operation, &snapshot, failure).await,
    }
}

async fn remove(
    backend: &Backend,
    snapshot: &Snapshot,
    volume: &Volume,
    unmanage_only: bool,
    carry: bool,
) -> Result<()> {
    let place = backend.place_up(volume).await?;
    let (image, snap) = (backend.image_name(volume), backend.snap_name(&snapshot.id));
    if unmanage_only {
        return Ok(place.release_snapshot(&image, &snap).await?);
    }
    let removed = place.remove_snapshot(&image, &snap).await;
    removed.map_err(|e| {
        if e.kind == crate::rbd::RbdErrorKind::Busy {
            Error::new(
                Code::SnapshotBusy,
                format!("deleting snapshot {} that has dependent volumes", snapshot.id),
            )
            .caused_by(e)
        } else {
            Error::from(e)
        }
    })?;
    crash::point("delete_snapshot:removed");
    if carry {
        carry_over(&place, volume, &image).await;
    }
    Ok(())
}

/// Deletes a snapshot of a volume that is being deleted with all of them, inside the volume's operation. The other
/// site is not told of each: whoever deletes them all does so once, if the volume stays.
///
/// # Errors
/// What made it fail; the row has not been seen to ([`record_failure`]).
pub(super) async fn delete_with_volume(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    snapshot: &Snapshot,
    volume: &Volume,
) -> Result<()> {
    let _lock = backend.locks.lock(&format!("{}-delete_snapshot", snapshot.id)).await;
    backend.notify_snapshot(context, "delete.start", snapshot, volume).await;
    remove(backend, snapshot, volume, false, false).await?;
    let rules = &backend.globals.quota;
    operation.write("snapshot of a deleted volume", async |conn| forget(conn, snapshot, rules).await).await?;
    tell_deleted(backend, context, snapshot, volume).await;
    Ok(())
}

async fn deleted(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    snapshot: &Snapshot,
    volume: &Volume,
) -> Result<()> {
    let rules = &backend.globals.quota;
    backend
        .journal
        .complete(operation, &backend.done(), async |conn| forget(conn, snapshot, rules).await)
        .await?;
    tell_deleted(backend, context, snapshot, volume).await;
    Ok(())
}

/// The row goes, and the quota comes back, together.
async fn forget(conn: &mut Conn, snapshot: &Snapshot, rules: &QuotaRules) -> Result<()> {
    give_back_snapshot(conn, snapshot, rules).await?;
    db::snapshot::destroy(conn, &snapshot.id).await?;
    Ok(())
}

async fn tell_deleted(backend: &Backend, context: &RequestContext, snapshot: &Snapshot, volume: &Volume) {
    info!(snapshot.id = snapshot.id, volume.id = volume.id, "snapshot deleted");
    let gone = Snapshot { status: "deleted".to_owned(), deleted: true, ..snapshot.clone() };
    backend.notify_snapshot(context, "delete.end", &gone, volume).await;
}

async fn delete_failed(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    snapshot: &Snapshot,
    failure: Error,
) -> Result<()> {
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            if frozen::left_whole(&failure, operation) {
                warn!(snapshot.id = snapshot.id, error = %failure, "snapshot is not deleted");
                transition_if_still(conn, &snapshot.id, SnapshotEvent::DeleteBusy).await?;
                let message =
                    Message::snapshot(&snapshot.id, Action::SnapshotDelete, Detail::SnapshotDeleteError);
                return db::message::create(conn, context, &message, ttl).await.map(|_| ());
            }
            record_failure(conn, context, snapshot, &failure, ttl).await
        })
        .await
}

/// Status and user message of a snapshot that could not be deleted. Its status is left alone when it is not
/// the one that the deletion found.
///
/// # Errors
/// `Database`.
pub(super) async fn record_failure(
    conn: &mut Conn,
    context: &RequestContext,
    snapshot: &Snapshot,
    failure: &Error,
    ttl: Duration,
) -> Result<()> {
    let (event, detail) = match failure.code() {
        Code::SnapshotBusy => {
            warn!(snapshot.id = snapshot.id, error = %failure, "snapshot is in use, not deleted");
            (SnapshotEvent::DeleteBusy, Detail::SnapshotIsBusy)
        }
        code => {
            error!(snapshot.id = snapshot.id, error = %failure, "snapshot could not be deleted");
            (SnapshotEvent::DeleteFailed, Detail::of(code, Detail::SnapshotDeleteError))
        }
    };
    let changes = SnapshotChanges::default();
    match db::snapshot::transition_from(conn, &snapshot.id, event, &snapshot.status, &changes).await {
        Err(e) if matches!(e.code(), Code::Conflict | Code::SnapshotNotFound) => {}
        other => other?,
    }
    let message = Message::snapshot(&snapshot.id, Action::SnapshotDelete, detail);
    db::message::create(conn, context, &message, ttl).await?;
    Ok(())
}

/// As [`super::transition_if_still`], for a snapshot.
pub(super) async fn transition_if_still(conn: &mut Conn, id: &str, event: SnapshotEvent) -> Result<()> {
    match db::snapshot::transition(conn, id, event, &SnapshotChanges::default()).await {
        Err(e) if matches!(e.code(), Code::Conflict | Code::SnapshotNotFound) => Ok(()),
        other => other,
    }
}
