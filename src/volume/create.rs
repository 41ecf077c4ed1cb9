//! `create_volume`: an image appears, is mirrored if its type says so, and the row becomes `available`.
//!
//! Whatever happens in between, the user ends with a volume that works, one in `error` with a message,
//! or one that the scheduler is placing elsewhere; never with a row in `creating` that nobody works on
//! (reference volume_rpc.md 2.2, `cinder/volume/flows/manager/create_volume.py`).

use chrono::Utc;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::image::{Attempt, Place, Shape};
use super::{crash, mode_of, transition_if_still};
use crate::backend::Backend;
use crate::backend::peers::Reschedule;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{GIB, ReplicationStatus, Volume, VolumeEvent, VolumeType, pool_of};
use crate::rbd::{RbdError, RbdErrorKind};
use crate::replication::enable;

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// The volume.
    pub volume_id: String,
    /// `request_spec`'s image.
    pub image_id: Option<String>,
    /// `request_spec`'s backup.
    pub backup_id: Option<String>,
    /// Present when the scheduler is ready to place the volume elsewhere.
    pub reschedule: Option<Reschedule>,
}

/// Where the content of a new volume comes from, in upstream's order of precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Snapshot(String),
    Volume(String),
    Image(String),
    Backup(String),
    Raw,
}

impl Source {
    fn of(volume: &Volume, create: &Create) -> Source {
        if let Some(id) = &volume.snapshot_id {
            Source::Snapshot(id.clone())
        } else if let Some(id) = &volume.source_volid {
            Source::Volume(id.clone())
        } else if let Some(id) = &create.image_id {
            Source::Image(id.clone())
        } else if let Some(id) = &create.backup_id {
            Source::Backup(id.clone())
        } else {
            Source::Raw
        }
    }

    /// The lock that keeps the source from being deleted meanwhile (`cinder/volume/manager.py`).
    fn lock(&self) -> Option<String> {
        match self {
            Source::Snapshot(id) => Some(format!("{id}-delete_snapshot")),
            Source::Volume(id) => Some(format!("{id}-delete_volume")),
            Source::Image(_) | Source::Backup(_) | Source::Raw => None,
        }
    }

    fn message(&self, volume_id: &str, code: Code) -> Message {
        let (action, detail) = match self {
            Source::Image(_) => (Action::CopyImageToVolume, Detail::UnknownError),
            Source::Backup(_) => (Action::BackupRestore, Detail::BackupRestoreError),
            Source::Snapshot(_) | Source::Volume(_) | Source::Raw => {
                (Action::CreateVolumeFromBackend, Detail::DriverFailedCreate)
            }
        };
        Message::volume(volume_id, action, Detail::of(code, detail))
    }
}

/// Journal step before the request is handed back to the scheduler.
const RESCHEDULING: &str = "rescheduling";

/// Creates the volume.
///
/// # Errors
/// What made it fail; row, message and journal have been seen to.
pub async fn create(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    create: Create,
) -> Result<()> {
    let id = &create.volume_id;
    let (mut volume, volume_type) = backend
        .db
        .read("volume to create", async |conn| {
            let volume = db::volume::get(conn, id).await?;
            let volume_type = db::volume_type::get(conn, &volume.volume_type_id).await?;
            Ok((volume, volume_type))
        })
        .await?;
    if operation.is_adopted() && operation.last_step().await?.is_some_and(|s| s.name == RESCHEDULING) {
        return finish_reschedule(backend, context, operation, &volume, &create).await;
    }
    if backend.config.cluster.is_some() {
        follow_to_this_host(backend, operation, &mut volume).await?;
    }
    backend.allocate(volume.host.as_deref(), i64::from(volume.size));
    let source = Source::of(&volume, &create);
    crash::point("create_volume:accepted");
    match build(backend, context, operation, &volume, &volume_type, &source).await {
        Ok(changes) => succeed(backend, context, operation, &volume, &changes).await,
        Err(failure) if failure.code() == Code::Cancelled => Err(failure),
        Err(failure) => fail(backend, context, operation, &volume, &source, &create, failure).await,
    }
}

/// In a Cinder cluster the request may have been placed on another member: the volume is ours now.
async fn follow_to_this_host(backend: &Backend, operation: &Operation, volume: &mut Volume) -> Result<()> {
    let pool = volume.host.as_deref().and_then(pool_of).unwrap_or(&backend.config.backend_name);
    let host = format!("{}#{pool}", backend.host());
    if volume.host.as_deref() == Some(host.as_str()) {
        return Ok(());
    }
    let changes = VolumeChanges { host: Some(Some(host.clone())), ..VolumeChanges::default() };
    let id = volume.id.clone();
    operation
        .write("host of a new volume", async |conn| db::volume::update(conn, &id, &changes).await)
        .await?;
    volume.host = Some(host);
    Ok(())
}

/// Makes the image and answers what to write into the row.
async fn build(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    volume_type: &VolumeType,
    source: &Source,
) -> Result<VolumeChanges> {
    let _passage = backend.gate.pass().await;
    let _source_lock = match source.lock() {
        Some(name) => Some(backend.locks.lock(&name).await),
        None => None,
    };
    backend.require_up()?;
    if volume.encryption_key_id.is_some() {
        return Err(Error::new(
            Code::NotSupported,
            "Encrypted volumes are not supported by this service yet",
        ));
    }
    if volume_type.wants_replication() && volume_type.wants_multiattach() {
        return Err(Error::new(
            Code::UnsupportedCombination,
            "Replication and Multiattach are mutually exclusive: change the volume type",
        ));
    }
    backend.notify_volume(context, "create.start", volume).await;
    let site = backend.active_site()?;
    let shape = backend.shape(&site).await?;
    let place = Place { site, pool: backend.config.pool.clone() };
    let attempt = if operation.is_adopted() { Attempt::Again } else { Attempt::First };
    fill(backend, &place, volume, source, shape, attempt).await?;
    crash::point("create_volume:image_created");
    let mut changes = VolumeChanges::default();
    if volume_type.wants_replication() && backend.is_replicated() {
        let image = backend.image_name(volume);
        let mode = mode_of(&backend.config, volume_type)?;
        let data =
            enable::enable(&place.site, &place.pool, &image, mode, shape.features).await.map_err(|e| {
                Error::new(Code::Replication, format!("Failed to enable replication of volume {}", volume.id))
                    .caused_by(e)
            })?;
        crash::point("create_volume:mirrored");
        let status = match backend.active_name().as_str() {
            crate::backend::DEFAULT_SITE => ReplicationStatus::Enabled,
            _ => ReplicationStatus::FailedOver,
        };
        changes.replication_status = Some(Some(status.as_str().to_owned()));
        changes.replication_driver_data = Some(Some(data.to_text()));
    } else if backend.is_replicated() {
        changes.replication_status = Some(Some(ReplicationStatus::Disabled.as_str().to_owned()));
    }
    Ok(changes)
}

async fn fill(
    backend: &Backend,
    place: &Place,
    volume: &Volume,
    source: &Source,
    shape: Shape,
    attempt: Attempt,
) -> Result<()> {
    let image = backend.image_name(volume);
    let bytes = u64::try_from(volume.size).unwrap_or(0) * GIB;
    match source {
        Source::Raw => place.create(&image, bytes, shape, attempt).await?,
        Source::Snapshot(snapshot_id) => {
            let parent = backend
                .db
                .read("volume of a source snapshot", async |conn| {
                    let snapshot = db::snapshot::get(conn, snapshot_id).await?;
                    db::volume::get(conn, &snapshot.volume_id).await
                })
                .await?;
            let snap = backend.snap_name(snapshot_id);
            place.clone_from(&backend.image_name(&parent), &snap, &image, bytes, shape, attempt).await?;
            if backend.config.flatten_volume_from_snapshot && volume.use_quota {
                place.flatten(&image).await?;
            }
        }
        Source::Volume(source_id) => {
            let parent =
                backend.db.read("source volume", async |conn| db::volume::get(conn, source_id).await).await?;
            // Temporary volumes are never flattened by depth, as upstream.
            let max_depth = match (backend.config.max_clone_depth, volume.use_quota) {
                (0, _) => 0,
                (_, false) => u32::MAX,
                (depth, true) => depth,
            };
            place
                .clone_volume(&backend.image_name(&parent), &image, bytes, shape, max_depth, attempt)
                .await?;
        }
        Source::Image(id) => {
            return Err(Error::new(
                Code::NotSupported,
                format!("Creating a volume from image {id} is not supported by this service yet"),
            ));
        }
        Source::Backup(id) => {
            return Err(Error::new(
                Code::NotSupported,
                format!("Creating a volume from backup {id} is not supported by this service yet"),
            ));
        }
    }
    Ok(())
}

async fn succeed(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    changes: &VolumeChanges,
) -> Result<()> {
    let service = backend.service()?;
    let event = match volume.status.as_str() {
        "migration_target_creating" => VolumeEvent::MigrationTargetCreated,
        _ => VolumeEvent::Created,
    };
    let changes = VolumeChanges {
        launched_at: Some(Some(Utc::now().naive_utc())),
        service_uuid: Some(Some(service.uuid.clone())),
        shared_targets: Some(Some(false)),
        ..changes.clone()
    };
    let ended = backend
        .journal
        .complete(operation, &Outcome::succeeded(), async |conn| {
            db::volume::transition(conn, &volume.id, event, &changes).await?;
            db::worker::release_resource(conn, "Volume", &volume.id, service.id).await?;
            db::volume::get(conn, &volume.id).await
        })
        .await;
    let after = match ended {
        // Its row was removed meanwhile (`cinder-manage volume delete`): nobody would ever delete the image.
        Err(gone) if gone.code() == Code::VolumeNotFound => {
            undo(backend, volume).await;
            return Err(gone);
        }
        ended => ended?,
    };
    info!(volume.id = volume.id, "volume created");
    backend.notify_volume(context, "create.end", &after).await;
    Ok(())
}

/// Errors that another backend would meet too (`no_reschedule_types`).
fn hopeless(code: Code) -> bool {
    matches!(
        code,
        Code::VolumeNotFound
            | Code::SnapshotNotFound
            | Code::VolumeTypeNotFound
            | Code::MetadataCopy
            | Code::UnsupportedCombination
    )
}

async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    source: &Source,
    create: &Create,
    failure: Error,
) -> Result<()> {
    if !found_foreign(&failure) {
        undo(backend, volume).await;
    }
    let message = source.message(&volume.id, failure.code());
    let ttl = backend.globals.message_ttl;
    let service = backend.service()?;
    if create.reschedule.is_some() && !hopeless(failure.code()) {
        let why = failure.operator();
        operation
            .write("give a volume back to the scheduler", async |conn| {
                let changes = VolumeChanges {
                    host: Some(None),
                    scheduled_at: Some(Some(Utc::now().naive_utc())),
                    ..VolumeChanges::default()
                };
                db::volume::transition(conn, &volume.id, VolumeEvent::CreateRescheduled, &changes).await?;
                db::message::create(conn, context, &message, ttl).await?;
                operation.step_in(conn, RESCHEDULING, &why).await
            })
            .await?;
        crash::point("create_volume:rescheduling");
        backend.allocate(volume.host.as_deref(), -i64::from(volume.size));
        warn!(volume.id = volume.id, error = %failure, "volume could not be created here, asking the scheduler again");
        let row = Volume { host: None, ..volume.clone() };
        return finish_reschedule(backend, context, operation, &row, create).await;
    }
    error!(volume.id = volume.id, error = %failure, "volume could not be created");
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            transition_if_still(conn, &volume.id, VolumeEvent::CreateFailed, &VolumeChanges::default())
                .await?;
            db::message::create(conn, context, &message, ttl).await?;
            db::worker::release_resource(conn, "Volume", &volume.id, service.id).await?;
            Ok(())
        })
        .await
}

/// Casts the request back. When the row has a host again, the scheduler has had it already.
async fn finish_reschedule(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    row: &Volume,
    create: &Create,
) -> Result<()> {
    let waiting = row.host.is_none() && row.status == "creating";
    if let Some(mut request) = create.reschedule.clone().filter(|_| waiting) {
        let why = operation.last_step().await?.map_or(Value::Null, |s| s.data);
        if let Some(retry) = request.filter_properties.get_mut("retry").and_then(Value::as_object_mut) {
            retry.insert("exc".to_owned(), json!([why]));
        }
        backend.peers.scheduler.create_volume(context, request).await?;
    }
    crash::point("create_volume:rescheduled");
    backend
        .journal
        .finish(operation, &Outcome { detail: Some("rescheduled".into()), ..Outcome::succeeded() })
        .await
}

/// True when an image of that name was there before the first attempt: it is somebody's, and stays.
fn found_foreign(failure: &Error) -> bool {
    let cause = std::error::Error::source(failure).and_then(|c| c.downcast_ref::<RbdError>());
    cause.is_some_and(|e| e.kind == RbdErrorKind::Exists)
}

/// Removes what was made; a leftover is removed again when the volume in error is deleted.
async fn undo(backend: &Backend, volume: &Volume) {
    let Ok(site) = backend.active_site() else { return };
    let place = Place { site, pool: backend.config.pool.clone() };
    let source = match &volume.source_volid {
        Some(id) => backend.db.read("source volume", async |conn| db::volume::get(conn, id).await).await.ok(),
        None => None,
    };
    let source = source.map(|v| backend.image_name(&v));
    if let Err(error) = place.undo_create(&backend.image_name(volume), source.as_deref()).await {
        warn!(volume.id = volume.id, %error, "could not remove the image of a failed creation");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_found_in_upstreams_order() {
        let request = Create { image_id: Some("i".into()), backup_id: Some("b".into()), ..Create::default() };
        let mut volume = Volume { source_volid: Some("v".into()), ..Volume::default() };
        assert_eq!(Source::of(&volume, &request), Source::Volume("v".into()));
        volume.snapshot_id = Some("s".into());
        assert_eq!(Source::of(&volume, &request).lock().as_deref(), Some("s-delete_snapshot"));
        assert_eq!(Source::of(&Volume::default(), &request), Source::Image("i".into()));
        assert_eq!(Source::of(&Volume::default(), &Create::default()), Source::Raw);
    }
}
