//! `delete_volume`, also with `cascade`; `unmanage` is the same without touching Ceph.
//!
//! A user expects the volume gone, its quota back, and nothing else harmed: clones keep working, and a
//! volume that a host still uses is not destroyed but becomes `available` again (reference
//! volume_rpc.md 2.2).

use tracing::{error, info, warn};

use super::image::Place;
use super::{crash, transition_if_still};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::quota::{self, Release};
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{Snapshot, Volume, VolumeEvent, backend_of};
use crate::rbd::RbdErrorKind;
use crate::rbd::types::Parent;

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
    match remove(backend, context, operation, &volume, &request).await {
        Ok(()) => succeed(backend, context, operation, &volume, &request).await,
        Err(failure) if failure.code() == Code::Cancelled => Err(failure),
        Err(failure) => fail(backend, operation, &volume, &request, failure).await,
    }
}

/// Checks, and everything that happens in Ceph.
async fn remove(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    request: &Delete,
) -> Result<()> {
    if volume.attach_status.as_deref() == Some("attached") {
        return Err(Error::new(
            Code::VolumeAttached,
            format!("Volume {} is still attached, detach volume first.", volume.id),
        ));
    }
    let ours = match &backend.config.cluster {
        Some(cluster) => volume.cluster_name.as_deref().map(backend_of) == Some(cluster),
        None => volume.host.as_deref().map(backend_of) == Some(backend.host()),
    };
    if !ours {
        return Err(Error::new(Code::Invalid, format!("Volume {} is not local to this node", volume.id)));
    }
    if request.unmanage_only && request.cascade {
        return Err(Error::new(Code::Invalid, "Unmanage and cascade delete options are mutually exclusive."));
    }
    if request.unmanage_only && volume.encryption_key_id.is_some() {
        return Err(Error::new(Code::Invalid, "Unmanaging encrypted volumes is not supported."));
    }
    let event = if request.unmanage_only { "unmanage.start" } else { "delete.start" };
    backend.notify_volume(context, event, volume).await;
    backend.require_up()?;
    if request.unmanage_only {
        return Ok(());
    }
    let place = backend.place(volume).await?;
    let image = backend.image_name(volume);
    if request.cascade {
        for snapshot in snapshots(backend, volume).await? {
            if snapshot.status != "deleting" {
                return Err(Error::new(
                    Code::InvalidSnapshot,
                    format!(
                        "Volume {} cannot be deleted: its snapshot {} is in status {} instead of deleting",
                        volume.id, snapshot.id, snapshot.status
                    ),
                ));
            }
            place.remove_snapshot(&image, &backend.snap_name(&snapshot.id)).await?;
        }
    }
    let trash = backend.config.deferred_deletion.then_some(backend.config.deferred_deletion_delay);
    let helpers = helpers(operation, &place, &image).await?;
    place.delete(&image, trash, &helpers).await.map_err(|e| {
        if e.kind == RbdErrorKind::Busy {
            Error::new(
                Code::VolumeBusy,
                format!("deleting volume {} that has a watcher or a dependent", volume.id),
            )
            .caused_by(e)
        } else {
            Error::from(e)
        }
    })?;
    crash::point("delete_volume:image_deleted");
    Ok(())
}

/// What the image was cloned from. Once it is gone nothing else would tell which helper snapshots and which
/// parents without a volume it has left behind, so it is remembered first.
async fn helpers(operation: &Operation, place: &Place, image: &str) -> Result<Vec<Parent>> {
    if let Some((name, helpers)) = operation.data::<Vec<Parent>>().await?
        && name == HELPERS
    {
        return Ok(helpers);
    }
    let helpers = place.helpers(image).await?;
    if !helpers.is_empty() {
        operation.step(HELPERS, &helpers).await?;
        crash::point("delete_volume:helpers");
    }
    Ok(helpers)
}

async fn snapshots(backend: &Backend, volume: &Volume) -> Result<Vec<Snapshot>> {
    backend
        .db
        .read("snapshots to delete", async |conn| db::snapshot::list_for_volume(conn, &volume.id).await)
        .await
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
    let cascaded = if request.cascade { snapshots(backend, volume).await? } else { Vec::new() };
    let rules = &backend.globals.quota;
    backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            for snapshot in &cascaded {
                give_back_snapshot(conn, snapshot, rules).await?;
                db::snapshot::destroy(conn, &snapshot.id).await?;
            }
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
            db::worker::release_resource(conn, "Volume", &volume.id, service.id).await?;
            Ok(())
        })
        .await?;
    info!(volume.id = volume.id, unmanaged = request.unmanage_only, "volume deleted");
    backend.allocate(volume.host.as_deref(), -i64::from(volume.size));
    let event = if request.unmanage_only { "unmanage.end" } else { "delete.end" };
    let (metadata, glance_metadata) = usage;
    backend.notify_volume_with(context, event, volume, &metadata, &[], &glance_metadata).await;
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
fn quota_or_log(given_back: Result<()>, id: &str) -> Result<()> {
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
    operation: &Operation,
    volume: &Volume,
    request: &Delete,
    failure: Error,
) -> Result<()> {
    let service = backend.service()?;
    let event = match failure.code() {
        Code::VolumeBusy => VolumeEvent::DeleteBusy,
        _ if request.unmanage_only => VolumeEvent::UnmanageFailed,
        _ => VolumeEvent::DeleteFailed,
    };
    match event {
        VolumeEvent::DeleteBusy => {
            warn!(volume.id = volume.id, error = %failure, "volume is in use, not deleted")
        }
        _ => error!(volume.id = volume.id, error = %failure, "volume could not be deleted"),
    }
    let target = volume.is_migration_target();
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            if target {
                // Nobody would ever see the other half of a migration that is over.
                db::volume::destroy(conn, &volume.id).await?;
            } else {
                transition_if_still(conn, &volume.id, event, &VolumeChanges::default()).await?;
            }
            db::worker::release_resource(conn, "Volume", &volume.id, service.id).await?;
            Ok(())
        })
        .await
}
