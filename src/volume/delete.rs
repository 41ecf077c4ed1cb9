//! `delete_volume`, also with `cascade`; `unmanage` is the same without touching Ceph.
//!
//! A user expects the volume gone, its quota back, and nothing else harmed: clones keep working, and a
//! volume that a host still uses is not destroyed but becomes `available` again (reference
//! volume_rpc.md 2.2). A cascade deletes one snapshot after the other, each for good: when one of them
//! cannot go, those that went are gone in the rows and in the quota too, and the rest is usable.

use tracing::{error, info, warn};

use super::image::Place;
use super::{crash, frozen, mode_of, snapshot};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::quota::{self, Release};
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{ReplicationStatus, Snapshot, SnapshotEvent, Volume, VolumeEvent, backend_of};
use crate::rbd::RbdErrorKind;
use crate::rbd::types::{Inspection, Parent};

/// Journal step with what the image was cloned from.
const HELPERS: &str = "helpers";

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Delete {
    /// The volume.
    pub volume_id: String,
    /// Forget the volume, keep the image.
    pub unmanage_only: bool,
    /// Delete its snapshots first.
    pub cascade: bool,
}

/// Why a volume is not deleted.
struct Failure {
    error: Error,
    /// The snapshot at which a cascade ended.
    snapshot: Option<Snapshot>,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { error: error.into(), snapshot: None }
    }
}

/// Deletes the volume. A volume that is gone already is a success.
///
/// # Errors
/// What made it fail; row and journal have been seen to.
pub async fn delete(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Delete,
) -> Result<()> {
    let id = &request.volume_id;
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(&format!("{id}-delete_volume")).await;
    let found = backend.db.read("volume to delete", async |conn| db::volume::find(conn, id).await).await?;
    let Some(volume) = found else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    crash::point("delete_volume:accepted");
    if !is_ours(backend, &volume) {
        // Its status is for the backend that has it.
        let refusal = Error::new(Code::Invalid, format!("Volume {} is not local to this node", volume.id));
        error!(volume.id = volume.id, error = %refusal, "volume is not deleted");
        return backend.journal.finish(operation, &Outcome::failed(&refusal)).await;
    }
    match remove(backend, context, operation, &volume, &request).await {
        Ok(()) => succeed(backend, context, operation, &volume, &request).await,
        Err(failure) if failure.error.code() == Code::Cancelled => Err(failure.error),
        Err(failure) => fail(backend, context, operation, &volume, &request, failure).await,
    }
}

/// Whether a volume is this backend's, or its cluster's.
pub(crate) fn is_ours(backend: &Backend, volume: &Volume) -> bool {
    match &backend.config.cluster {
        Some(cluster) => volume.cluster_name.as_deref().map(backend_of) == Some(cluster),
        None => volume.host.as_deref().map(backend_of) == Some(backend.host()),
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
    request: Delete,
    failure: Error,
) -> Result<()> {
    let id = &request.volume_id;
    let volume = backend.db.read("volume to give up", async |conn| db::volume::get(conn, id).await).await?;
    fail(backend, context, operation, &volume, &request, failure.into()).await
}

/// Checks, and everything that happens in Ceph.
async fn remove(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    request: &Delete,
) -> std::result::Result<(), Failure> {
    if volume.attach_status.as_deref() == Some("attached") {
        return Err(Error::new(
            Code::VolumeAttached,
            format!("Volume {} is still attached, detach volume first.", volume.id),
        )
        .into());
    }
    if request.unmanage_only && request.cascade {
        let refusal =
            Error::new(Code::Invalid, "Unmanage and cascade delete options are mutually exclusive.");
        return Err(refusal.into());
    }
    if request.unmanage_only && volume.encryption_key_id.is_some() {
        return Err(Error::new(Code::Invalid, "Unmanaging encrypted volumes is not supported.").into());
    }
    // What a migration has left is no volume of anybody's; one whose managing failed has no image of ours.
    let is_volume = !volume.is_migration_target() && volume.status != "error_managing_deleting";
    if is_volume && !request.unmanage_only {
        frozen::refuse(backend).await?;
    }
    let event = if request.unmanage_only { "unmanage.start" } else { "delete.start" };
    backend.notify_volume(context, event, volume).await;
    backend.place_up(volume).await?;
    // A volume that could not be managed has no image, or one that is somebody else's.
    if request.unmanage_only || volume.status == "error_managing_deleting" {
        return Ok(());
    }
    if request.cascade {
        remove_snapshots(backend, context, operation, volume).await?;
    }
    Ok(remove_image(backend, operation, volume, "").await?)
}

/// Removes the volume's image. `item` is the resource whose step of the journal remembers what it was cloned
/// from: empty when the operation is the volume's own.
async fn remove_image(backend: &Backend, operation: &Operation, volume: &Volume, item: &str) -> Result<()> {
    let place = backend.place(volume).await?;
    let image = backend.image_name(volume);
    let deferred = backend.config.deferred_deletion.then_some(backend.config.deferred_deletion_delay);
    // Nobody has deleted anything when a migration clears away what it has left.
    let deferred = deferred.filter(|_| !volume.is_migration_target());
    let found = place.inspect(&image).await?;
    let helpers = helpers(operation, item, &place, &image, found.as_ref()).await?;
    match place.delete(&image, found.as_ref(), deferred, &helpers).await {
        Ok(()) => {}
        Err(e) if e.kind == RbdErrorKind::Busy => {
            if deferred.is_some() && is_mirrored(volume) {
                let of_type = &volume.volume_type_id;
                let kind = backend
                    .db
                    .read("type of a volume in use", async |conn| db::volume_type::get(conn, of_type).await)
                    .await?;
                place.mirror_again(&image, mode_of(&backend.config, &kind)?).await?;
            }
            let text = format!("deleting volume {} that has a watcher or a dependent", volume.id);
            return Err(Error::new(Code::VolumeBusy, text).caused_by(e));
        }
        Err(e) => return Err(e.into()),
    }
    crash::point("delete_volume:image_deleted");
    Ok(())
}

/// Whether its row says that its image is mirrored.
fn is_mirrored(volume: &Volume) -> bool {
    let status = volume.replication_status.as_deref().and_then(ReplicationStatus::parse);
    status.is_some_and(ReplicationStatus::means_mirrored)
}

/// What the image was cloned from. Once it is gone nothing else would tell which helper snapshots and which
/// parents without a volume it has left behind, so it is remembered first.
async fn helpers(
    operation: &Operation,
    item: &str,
    place: &Place,
    image: &str,
    found: Option<&Inspection>,
) -> Result<Vec<Parent>> {
    let step = match item {
        "" => operation.last_step().await?,
        _ if operation.is_adopted() => operation.items().await?.into_iter().find(|s| s.resource_id == item),
        _ => None,
    };
    if let Some(step) = step.filter(|s| s.name == HELPERS) {
        return step.parse();
    }
    let helpers = place.helpers(image, found).await?;
    if !helpers.is_empty() {
        operation.item_step(item, HELPERS, &helpers).await?;
        crash::point("delete_volume:helpers");
    }
    Ok(helpers)
}

/// Deletes a volume of a group that is being deleted, inside the group's operation: its row and its quota go
/// with it, whatever becomes of the other members.
///
/// # Errors
/// What made it fail; the row has not been seen to.
pub(super) async fn delete_with_group(
    backend: &Backend,
    operation: &Operation,
    volume: &Volume,
) -> Result<()> {
    let _lock = backend.locks.lock(&format!("{}-delete_volume", volume.id)).await;
    remove_image(backend, operation, volume, &volume.id).await?;
    let (rules, service_id) = (&backend.globals.quota, backend.service()?.id);
    operation
        .write("volume of a deleted group", async |conn| forget(conn, volume, rules, service_id).await)
        .await?;
    info!(volume.id = volume.id, "volume deleted");
    backend.allocate(volume.host.as_deref(), -i64::from(volume.size));
    Ok(())
}

/// The row goes, and the quota comes back, together.
async fn forget(
    conn: &mut db::Conn,
    volume: &Volume,
    rules: &quota::QuotaRules,
    service_id: i32,
) -> Result<()> {
    // A volume whose managing failed was never counted.
    if volume.use_quota
        && volume.status != "error_managing_deleting"
        && let Some(project) = &volume.project_id
    {
        let release = Release::volume(volume.size, Some(&volume.volume_type_id));
        quota_or_log(quota::give_back(conn, project, &release, rules).await, &volume.id)?;
    }
    db::volume::destroy(conn, &volume.id).await?;
    db::stray::forget(conn, std::slice::from_ref(&volume.id)).await?;
    db::worker::release_resource(conn, "Volume", &volume.id, service_id).await?;
    Ok(())
}

/// Deletes the volume's snapshots one after the other, as `delete_snapshot` does.
async fn remove_snapshots(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
) -> std::result::Result<(), Failure> {
    let snapshots = backend
        .db
        .read("snapshots to delete", async |conn| db::snapshot::list_for_volume(conn, &volume.id).await)
        .await?;
    if let Some(kept) = snapshots.iter().find(|s| s.status != "deleting") {
        return Err(Error::new(
            Code::InvalidSnapshot,
            format!(
                "Volume {} cannot be deleted: its snapshot {} is in status {} instead of deleting",
                volume.id, kept.id, kept.status
            ),
        )
        .into());
    }
    for snapshot in snapshots {
        let deleted = snapshot::delete_with_volume(backend, context, operation, &snapshot, volume).await;
        deleted.map_err(|error| Failure { error, snapshot: Some(snapshot) })?;
        crash::point("delete_volume:snapshot_deleted");
    }
    Ok(())
}

async fn succeed(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    request: &Delete,
) -> Result<()> {
    let service = backend.service()?;
    // What the last notification tells must be read while the rows are there.
    let usage = backend
        .db
        .read("usage of a volume", async |conn| {
            Ok((
                db::volume::metadata(conn, &volume.id).await?,
                db::volume::glance_metadata(conn, &volume.id).await?,
            ))
        })
        .await?;
    let rules = &backend.globals.quota;
    backend
        .journal
        .complete(operation, &backend.done(), async |conn| forget(conn, volume, rules, service.id).await)
        .await?;
    info!(volume.id = volume.id, unmanaged = request.unmanage_only, "volume deleted");
    backend.allocate(volume.host.as_deref(), -i64::from(volume.size));
    let event = if request.unmanage_only { "unmanage.end" } else { "delete.end" };
    let (metadata, glance_metadata) = usage;
    let gone = Volume { status: "deleted".to_owned(), migration_status: None, ..volume.clone() };
    backend.notify_volume_with(context, event, &gone, &metadata, &[], &glance_metadata).await;
    Ok(())
}

/// A snapshot's part of the project's quota.
pub(super) async fn give_back_snapshot(
    conn: &mut db::Conn,
    snapshot: &Snapshot,
    rules: &quota::QuotaRules,
) -> Result<()> {
    if let Some(project) = snapshot.project_id.as_ref().filter(|_| snapshot.use_quota) {
        let release = Release::snapshot(snapshot.volume_size, Some(&snapshot.volume_type_id), rules);
        quota_or_log(quota::give_back(conn, project, &release, rules).await, &snapshot.id)?;
    }
    Ok(())
}

/// Quota never blocks a deletion (as upstream), but a database that fails does.
pub(super) fn quota_or_log(given_back: Result<()>, id: &str) -> Result<()> {
    match given_back {
        Err(e) if !e.is_transient() => {
            warn!(resource.id = id, error = %e, "could not give quota back; `cinder-manage quota sync` does");
            Ok(())
        }
        other => other,
    }
}

async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    request: &Delete,
    failure: Failure,
) -> Result<()> {
    let service = backend.service()?;
    let Failure { error, snapshot } = failure;
    let event = match error.code() {
        Code::VolumeBusy | Code::SnapshotBusy => VolumeEvent::DeleteBusy,
        _ if frozen::left_whole(&error, operation) => VolumeEvent::DeleteBusy,
        _ if request.unmanage_only => VolumeEvent::UnmanageFailed,
        Code::VolumeAttached => VolumeEvent::DeleteRefused,
        _ => VolumeEvent::DeleteFailed,
    };
    match event {
        VolumeEvent::DeleteBusy => {
            warn!(volume.id = volume.id, %error, "volume is in use or frozen, not deleted")
        }
        _ => error!(volume.id = volume.id, %error, "volume could not be deleted"),
    }
    let target = volume.is_migration_target();
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &Outcome::failed(&error), async |conn| {
            if let Some(snapshot) = &snapshot {
                snapshot::record_failure(conn, context, snapshot, &error, ttl).await?;
            }
            if request.cascade && !request.unmanage_only {
                give_snapshots_back(conn, &volume.id).await?;
            }
            if target {
                // Nobody would ever see the other half of a migration that is over.
                db::volume::destroy(conn, &volume.id).await?;
            } else {
                transition_from(conn, volume, event).await?;
            }
            db::worker::release_resource(conn, "Volume", &volume.id, service.id).await?;
            Ok(())
        })
        .await
}

/// The snapshots that a cascade has not come to: upstream leaves them in `deleting`, where nobody works on
/// them and the API refuses to delete the volume again.
async fn give_snapshots_back(conn: &mut db::Conn, volume_id: &str) -> Result<()> {
    for snapshot in db::snapshot::list_for_volume(conn, volume_id).await? {
        if snapshot.status == "deleting" {
            snapshot::transition_if_still(conn, &snapshot.id, SnapshotEvent::DeleteBusy).await?;
        }
    }
    Ok(())
}

/// Like [`super::transition_if_still`], for events that may find any status: the one in which the
/// deletion found the row must be there still.
async fn transition_from(conn: &mut db::Conn, volume: &Volume, event: VolumeEvent) -> Result<()> {
    let changes = VolumeChanges::default();
    match db::volume::transition_from(conn, &volume.id, event, &volume.status, &changes).await {
        Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound) => Ok(()),
        other => other,
    }
}
