//! `create_volume`: an image appears, is mirrored if its type says so, and the row becomes `available`.
//!
//! Whatever happens in between, the user ends with a volume that works, one in `error` with a message,
//! or one that the scheduler is placing elsewhere; never with a row in `creating` that nobody works on
//! (reference volume_rpc.md 2.2, `cinder/volume/flows/manager/create_volume.py`).

use chrono::Utc;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::image::{Attempt, Place, Shape};
use super::source::Source;
use super::{crash, encryption, from_image, mode_of, restore, setup, transition_if_still};
use crate::backend::Backend;
use crate::backend::peers::Reschedule;
use crate::context::RequestContext;
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{GIB, ReplicationStatus, Volume, VolumeEvent, VolumeType, pool_of};
use crate::rbd::{RbdError, RbdErrorKind};
use crate::replication::{enable, failover, parent, standing, target};

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

/// Journal step before the request is handed back to the scheduler.
const RESCHEDULING: &str = "rescheduling";
/// Journal step with the name of the site where the image is being made.
pub(super) const BEGUN: &str = "begun";

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
    if operation.is_adopted()
        && let Some(step) = operation.last_step().await?
    {
        match step.name.as_str() {
            RESCHEDULING => return finish_reschedule(backend, context, operation, &volume, &create).await,
            restore::HANDED_OVER => return restore::ask(backend, context, operation, id).await,
            _ => {}
        }
    }
    if backend.config.cluster.is_some() {
        follow_to_this_host(backend, operation, &mut volume).await?;
    }
    // One that is taken up again has been counted: with the rows at the start, or by its first attempt.
    if !operation.is_adopted() {
        backend.allocate(volume.host.as_deref(), i64::from(volume.size));
    }
    let source = Source::of(&volume, &create);
    crash::point("create_volume:accepted");
    // Until the row says where the volume is: a failover that waits for us finds it, one that does not is
    // found by us.
    let _passage = backend.gate.pass().await;
    let (place, made) = match place(backend, operation).await {
        Ok(place) => {
            let built = build(backend, context, operation, &volume, &volume_type, &source, &place).boxed();
            let made = match built.await {
                Ok(built) => match &source {
                    Source::Backup(id) => {
                        hand_over(backend, context, operation, &volume, id, &place, &built.changes).await
                    }
                    _ => succeed(backend, context, operation, &volume, &source, &place, &built).await,
                },
                Err(e) if matches!(e.code(), Code::Cancelled | Code::Broker) => Err(Unmade::Unrecorded(e)),
                Err(failure) => Err(Unmade::Failed(failure)),
            };
            (Some(place), made)
        }
        Err(failure) if failure.code() == Code::InvalidReplicationTarget => {
            (None, Err(Unmade::Failed(failure)))
        }
        Err(failure) => (None, Err(Unmade::Unrecorded(failure))),
    };
    match made {
        Ok(()) => Ok(()),
        Err(Unmade::Unrecorded(failure)) => Err(failure),
        Err(Unmade::Failed(failure)) => {
            fail(backend, context, operation, &volume, place.as_ref(), &create, failure).await
        }
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
    volume_id: &str,
    failure: Error,
) -> Result<()> {
    let volume =
        backend.db.read("volume to give up", async |conn| db::volume::get(conn, volume_id).await).await?;
    if operation.last_step().await?.is_some_and(|s| s.name == restore::HANDED_OVER) {
        return restore::ask(backend, context, operation, volume_id).await;
    }
    let place = place(backend, operation).await.ok();
    // Not given to the scheduler: another backend would do no better.
    let create = Create { volume_id: volume_id.to_owned(), ..Create::default() };
    fail(backend, context, operation, &volume, place.as_ref(), &create, failure).await
}

/// Why there is no volume in the end.
enum Unmade {
    /// It could not be made, or may not stay: the row will say so.
    Failed(Error),
    /// What was made could not be recorded: nothing is said about it.
    Unrecorded(Error),
}

/// Where the image is made: on the active site; after a crash, where the first attempt began, because its
/// image, or the copy of it on the active site, would look like our own work there.
pub(super) async fn place(backend: &Backend, operation: &Operation) -> Result<Place> {
    if operation.is_adopted()
        && let Some(place) = place_begun(backend, operation).await?
    {
        return Ok(place);
    }
    let site = backend.active_site()?;
    if backend.is_replicated() {
        operation.step(BEGUN, &site.name()).await?;
    }
    Ok(Place { site, pool: backend.config.pool.clone() })
}

/// Where this operation has begun to make its image.
pub(super) async fn place_begun(backend: &Backend, operation: &Operation) -> Result<Option<Place>> {
    if !backend.is_replicated() {
        return Ok(None);
    }
    let Some(site) = operation.reached::<String>(BEGUN).await? else { return Ok(None) };
    Ok(Some(Place { site: backend.site(&site)?, pool: backend.config.pool.clone() }))
}

/// The volume's host with this member of the Cinder cluster in it.
pub(super) fn host_here(backend: &Backend, volume: &Volume) -> String {
    let pool = volume.host.as_deref().and_then(pool_of).unwrap_or(&backend.config.backend_name);
    format!("{}#{pool}", backend.host())
}

/// In a Cinder cluster the request may have been placed on another member: the volume is ours now.
async fn follow_to_this_host(backend: &Backend, operation: &Operation, volume: &mut Volume) -> Result<()> {
    let host = host_here(backend, volume);
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

/// What was made, for the row.
struct Built {
    changes: VolumeChanges,
    /// Of the image that it was made from.
    image_metadata: Option<from_image::Metadata>,
}

/// Makes the image and answers what to write into the row.
async fn build(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    volume_type: &VolumeType,
    source: &Source,
    place: &Place,
) -> Result<Built> {
    let _source_lock = match source.lock() {
        Some(name) => Some(backend.locks.lock(&name).await),
        None => None,
    };
    backend.notify_volume(context, "create.start", volume).await;
    backend.require_up()?;
    let attempt = if operation.is_adopted() { Attempt::Again } else { Attempt::First };
    let Source::Image(image_id) = source else {
        let changes = make(backend, context, operation, volume, volume_type, source, place, attempt).await?;
        return Ok(Built { changes, image_metadata: None });
    };
    setup::require_makeable(volume_type)?;
    let independent = volume_type.wants_replication() && backend.is_replicated();
    let request = from_image::Request { context, operation, volume, image_id, independent };
    let shape = backend.shape(&place.site).await?;
    let (filled, _guard) = from_image::fill(backend, &request, place, shape, attempt).boxed().await?;
    let changes = make(backend, context, operation, volume, volume_type, source, place, attempt).await?;
    if let Some(keep) = &filled.keep {
        let stored = from_image::store(backend, context, operation, volume, volume_type, place, keep);
        stored.boxed().await?;
        let bytes = u64::try_from(volume.size).unwrap_or(0) * GIB;
        place.grow(&backend.image_name(volume), bytes).await?;
    }
    Ok(Built { changes, image_metadata: Some(filled.metadata) })
}

/// Makes the image of a volume whose source is held, as its type asks for, and answers what to write into the row.
#[allow(clippy::too_many_arguments)]
pub(super) fn make<'a>(
    backend: &'a Backend,
    context: &'a RequestContext,
    operation: &'a Operation,
    volume: &'a Volume,
    volume_type: &'a VolumeType,
    source: &'a Source,
    place: &'a Place,
    attempt: Attempt,
) -> BoxFuture<'a, Result<VolumeChanges>> {
    Box::pin(async move {
        setup::require_makeable(volume_type)?;
        let shape = backend.shape(&place.site).await?;
        fill(backend, context, place, volume, source, shape, attempt).await?;
        crash::point("create_volume:image_created");
        let image = backend.image_name(volume);
        let mut changes = setup::from_type(backend, place, &image, volume_type, shape).await?;
        if volume_type.wants_replication() && backend.is_replicated() {
            let mode = mode_of(&backend.config, volume_type)?;
            if matches!(source, Source::Snapshot(_) | Source::Volume(_)) {
                let child = parent::Child { volume_id: &volume.id, image: &image, kind: volume_type, mode };
                Box::pin(parent::prepare(backend, operation, place, child)).await?;
            }
            let data = enable::enable(&place.site, &place.pool, &image, mode, shape.features).await.map_err(
                |e| {
                    Error::new(
                        Code::Replication,
                        format!("Failed to enable replication of volume {}", volume.id),
                    )
                    .caused_by(e)
                },
            )?;
            crash::point("create_volume:mirrored");
            let status = standing::settled(place.site.name());
            changes.replication_status = Some(Some(status.as_str().to_owned()));
            changes.replication_driver_data = Some(Some(data.to_text()));
        } else if backend.is_replicated() {
            changes.replication_status = Some(Some(ReplicationStatus::Disabled.as_str().to_owned()));
        }
        Ok(changes)
    })
}

async fn fill(
    backend: &Backend,
    context: &RequestContext,
    place: &Place,
    volume: &Volume,
    source: &Source,
    shape: Shape,
    attempt: Attempt,
) -> Result<()> {
    let image = backend.image_name(volume);
    let bytes = u64::try_from(volume.size).unwrap_or(0) * GIB;
    let encrypted = volume.encryption_key_id.is_some();
    // What a clone of an encrypted image has of a header is only known when it is there.
    let clone_bytes = if encrypted { 0 } else { bytes };
    match source {
        Source::Raw | Source::Backup(_) if encrypted => {
            Box::pin(encryption::create_image(backend, context, volume, place, bytes, shape, attempt))
                .await?;
        }
        // cinder-backup fills it.
        Source::Raw | Source::Backup(_) => place.create(&image, bytes, shape, attempt).await?,
        Source::Snapshot(snapshot_id) => {
            let parent = backend
                .db
                .read("volume of a source snapshot", async |conn| {
                    let snapshot = db::snapshot::get(conn, snapshot_id).await?;
                    db::volume::get(conn, &snapshot.volume_id).await
                })
                .await?;
            require_beside(backend, place, &parent).await?;
            let snap = backend.snap_name(snapshot_id);
            place
                .clone_from(&backend.image_name(&parent), &snap, &image, clone_bytes, shape, attempt)
                .await?;
            if backend.config.flatten_volume_from_snapshot && volume.use_quota {
                place.flatten(&image).await?;
            }
        }
        Source::Volume(source_id) => {
            let parent =
                backend.db.read("source volume", async |conn| db::volume::get(conn, source_id).await).await?;
            require_beside(backend, place, &parent).await?;
            // Temporary volumes are never flattened by depth, as upstream.
            let max_depth = match (backend.config.max_clone_depth, volume.use_quota) {
                (0, _) => 0,
                (_, false) => u32::MAX,
                (depth, true) => depth,
            };
            place
                .clone_volume(&backend.image_name(&parent), &image, clone_bytes, shape, max_depth, attempt)
                .await?;
        }
        // Made by `from_image` before.
        Source::Image(_) => {}
    }
    if encrypted && matches!(source, Source::Snapshot(_) | Source::Volume(_)) {
        place.grow_behind_header(&image, bytes).await?;
    }
    Ok(())
}

/// A source that a failover left on another site is not copied: what this site has of it may be long out
/// of date, and a copy made over there would be served from here.
async fn require_beside(backend: &Backend, place: &Place, source: &Volume) -> Result<()> {
    let served = backend.place(source).await?;
    if served.site.name() == place.site.name() {
        return Ok(());
    }
    Err(Error::new(
        Code::InvalidVolume,
        format!("Volume {} cannot be copied until it has followed its backend's failover", source.id),
    )
    .detail(format!(
        "it is served from site {}, the copy would be on {}; scoria-manage replication retry --backend {} moves it",
        served.site.name(),
        place.site.name(),
        backend.host()
    )))
}

/// What to write when the backend has moved to another site meanwhile: a mirrored volume stays served from
/// where it was made, as one that a failover could not move; any other has failed. The row that says which
/// site is active is locked, so that a failover that ends now sees this volume, or we see the failover.
pub(super) async fn overtaken(
    conn: &mut Conn,
    backend: &Backend,
    volume: &Volume,
    place: &Place,
    changes: &VolumeChanges,
) -> Result<VolumeChanges> {
    if !backend.is_replicated() {
        return Ok(changes.clone());
    }
    let service = backend.service()?.id;
    let active = db::service::hold_active(conn, service, backend.config.cluster.as_deref()).await?;
    let active = active.map_or_else(|| backend.active_name(), |id| target::active(Some(&id)).to_owned());
    let made_on = place.site.name();
    if active == made_on || db::backend_site::became(conn, &backend.scope_name(), made_on, &active).await? {
        return Ok(changes.clone());
    }
    warn!(volume.id = volume.id, made_on, active, "the backend failed over while the volume was made");
    if changes.replication_driver_data.is_none() {
        return Err(Error::new(
            Code::InvalidReplicationTarget,
            format!("The backend of volume {} failed over while it was made", volume.id),
        ));
    }
    db::stray::record(conn, std::slice::from_ref(&volume.id), made_on).await?;
    Ok(VolumeChanges {
        replication_status: Some(Some(ReplicationStatus::FailoverError.as_str().to_owned())),
        replication_extended_status: Some(Some(failover::made_meanwhile(backend.host(), made_on))),
        ..changes.clone()
    })
}

async fn succeed(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    source: &Source,
    place: &Place,
    built: &Built,
) -> Result<(), Unmade> {
    let service = backend.service().map_err(Unmade::Unrecorded)?;
    let event = match volume.status.as_str() {
        "migration_target_creating" => VolumeEvent::MigrationTargetCreated,
        _ => VolumeEvent::Created,
    };
    let changes = VolumeChanges {
        launched_at: Some(Some(Utc::now().naive_utc())),
        service_uuid: Some(Some(service.uuid.clone())),
        shared_targets: Some(Some(false)),
        ..built.changes.clone()
    };
    let ended = backend
        .journal
        .complete(operation, &Outcome::succeeded(), async |conn| {
            let mut changes = overtaken(conn, backend, volume, place, &changes).await?;
            if let Some(from) = source.image_metadata(conn).await? {
                db::volume::copy_glance_metadata(conn, from, &volume.id).await?;
                changes.bootable = Some(true);
            }
            if let Some(metadata) = &built.image_metadata {
                db::volume::replace_glance_metadata(conn, &volume.id, metadata).await?;
                changes.bootable = Some(true);
            }
            db::volume::transition(conn, &volume.id, event, &changes).await?;
            db::worker::release_resource(conn, "Volume", &volume.id, service.id).await?;
            db::volume::get(conn, &volume.id).await
        })
        .await;
    let after = match ended {
        Ok(after) => after,
        // Its row was removed meanwhile (`cinder-manage volume delete`): nobody would ever delete the image.
        Err(gone) if gone.code() == Code::VolumeNotFound => {
            undo(backend, volume, place).await;
            return Err(Unmade::Unrecorded(gone));
        }
        Err(moved) if moved.code() == Code::InvalidReplicationTarget => return Err(Unmade::Failed(moved)),
        Err(other) => return Err(Unmade::Unrecorded(other)),
    };
    info!(volume.id = volume.id, "volume created");
    if built.changes.replication_driver_data.is_some() {
        backend.schedules_wanted.notify_one();
    }
    backend.notify_volume(context, "create.end", &after).await;
    Ok(())
}

/// The other way to succeed: cinder-backup goes on with the volume.
async fn hand_over(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    backup_id: &str,
    place: &Place,
    changes: &VolumeChanges,
) -> Result<(), Unmade> {
    match restore::hand_over(backend, context, operation, volume, backup_id, place, changes).await {
        // From here on the image is not ours to undo.
        Ok(()) => restore::ask(backend, context, operation, &volume.id).await.map_err(Unmade::Unrecorded),
        Err(gone) if gone.code() == Code::VolumeNotFound => {
            undo(backend, volume, place).await;
            Err(Unmade::Unrecorded(gone))
        }
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database | Code::Conflict) => {
            Err(Unmade::Unrecorded(e))
        }
        Err(failure) => Err(Unmade::Failed(failure)),
    }
}

/// Errors that another backend would meet too (`no_reschedule_types`), and what this service does not serve:
/// its users are told so once, not once for every backend of it.
fn hopeless(code: Code) -> bool {
    matches!(
        code,
        Code::VolumeNotFound
            | Code::SnapshotNotFound
            | Code::VolumeTypeNotFound
            | Code::MetadataCopy
            | Code::NotSupported
            | Code::InvalidVolume
            | Code::BackupNotFound
            | Code::InvalidBackup
            | Code::ServiceNotFound
            | Code::ImageCopy
            | Code::ImageConversionNotAllowed
            | Code::ImageUnacceptable
            | Code::ImageDoesNotFit
            | Code::ImageTooBig
            | Code::ImageSignature
            | Code::InvalidSignatureImage
    )
}

async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    place: Option<&Place>,
    create: &Create,
    failure: Error,
) -> Result<()> {
    if let Some(place) = place.filter(|_| !found_foreign(&failure)) {
        undo(backend, volume, place).await;
    }
    let message = Source::of(volume, create).message(&volume.id, failure.code());
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
                db::worker::hand_over(conn, "Volume", &volume.id, service.id).await?;
                operation.step_in(conn, RESCHEDULING, &why).await
            })
            .await?;
        crash::point("create_volume:rescheduling");
        backend.allocate(volume.host.as_deref(), -i64::from(volume.size));
        warn!(volume.id = volume.id, error = %failure, "volume could not be created here, asking the scheduler again");
        let row = Volume { host: None, status: "creating".to_owned(), ..volume.clone() };
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
pub(super) fn found_foreign(failure: &Error) -> bool {
    let cause = std::error::Error::source(failure).and_then(|c| c.downcast_ref::<RbdError>());
    cause.is_some_and(|e| e.kind == RbdErrorKind::Exists)
}

/// Removes what was made; a leftover is removed again when the volume in error is deleted.
pub(super) async fn undo(backend: &Backend, volume: &Volume, place: &Place) {
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
