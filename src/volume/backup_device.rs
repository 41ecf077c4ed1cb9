//! `get_backup_device`: what cinder-backup is to read when it makes a backup.
//!
//! A volume that is attached, or a snapshot, is not read itself: a copy of it is, that lives as long as the
//! backup is being made and that cinder-backup has deleted afterwards. Only its driver for Ceph reads attached
//! volumes as they are, since it takes a snapshot of its own and compares it with that of the backup before
//! (`VolumeDriver.get_backup_device`, `RBDDriver.get_backup_device`; reference backup.md 5.2).
//!
//! Nobody waits for the answer: it is cast to cinder-backup, which goes on then. If there is no device, nobody
//! would ever end the backup, as happens upstream, so it ends here: backup in `error` with a reason, its source
//! as it was, a user message. The copy is written into the backup's row before its image is made; so
//! somebody removes it whoever dies.

use serde_json::Value;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::create;
use super::image::{Attempt, Place};
use super::source::Source;
use super::{crash, transition_if_still};
use crate::backend::Backend;
use crate::backend::peers::{self, ContinueBackup};
use crate::context::RequestContext;
use crate::db;
use crate::db::Conn;
use crate::db::message::{Action, Detail, Message, ResourceType};
use crate::db::moving::status_before;
use crate::db::snapshot::SnapshotChanges;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{BackupEvent, SnapshotEvent, Volume, VolumeEvent, VolumeType};

/// Backup drivers that read attached volumes themselves have this in their class path.
const CEPH_DRIVER: &str = "backup.drivers.ceph";
/// Journal step of the copy.
const COPY: &str = "copy for a backup";

/// The request.
#[derive(Debug, Clone, Default)]
pub struct BackupDevice {
    /// The backup.
    pub backup_id: String,
    /// What is backed up.
    pub volume_id: String,
    /// Or rather this snapshot of it.
    pub snapshot_id: Option<String>,
    /// Class path of the driver that makes the backup.
    pub driver: Option<String>,
    /// Where cinder-backup runs that goes on with it.
    pub host: Option<String>,
    /// The Backup object, to be sent on.
    pub backup: Value,
    /// cinder-backup does not wait: it is told the answer by `continue_backup`.
    pub is_cast: bool,
}

impl BackupDevice {
    /// What is to be copied, if the volume cannot be read itself.
    fn source(&self, volume: &Volume) -> Option<Source> {
        let by_ceph = self.driver.as_deref().is_some_and(|driver| driver.contains(CEPH_DRIVER));
        match &self.snapshot_id {
            Some(id) => Some(Source::Snapshot(id.clone())),
            None if by_ceph => None,
            None => (volume.previous_status.as_deref() == Some("in-use"))
                .then(|| Source::Volume(volume.id.clone())),
        }
    }
}

/// Provides the device. Answers it to a caller who waits, with the operation still open; otherwise cinder-backup
/// has been told, and the operation has ended.
///
/// # Errors
/// For a caller: what made it fail; he ends the backup himself. Else only when nothing could be recorded.
pub async fn provide(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: BackupDevice,
) -> Result<Option<Volume>> {
    let _passage = backend.gate.pass().await;
    crash::point("get_backup_device:accepted");
    let found = find(backend, context, operation, &request).await;
    match found {
        Ok(device) if !request.is_cast => Ok(Some(device)),
        Ok(device) => hand_out(backend, context, operation, request, device).await.map(|()| None),
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database | Code::Broker) => Err(e),
        Err(failure) => give_up(backend, context, operation, request, failure).await.map(|()| None),
    }
}

async fn find(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: &BackupDevice,
) -> Result<Volume> {
    let id = &request.volume_id;
    let volume = backend
        .db
        .read("volume to back up", async |conn| {
            require_creating(&request.backup_id, db::backup::find(conn, &request.backup_id).await?)?;
            db::volume::get(conn, id).await
        })
        .await?;
    match request.source(&volume) {
        Some(source) => Box::pin(copy(backend, context, operation, request, &volume, source)).await,
        None => Ok(volume),
    }
}

/// Of a backup that somebody has ended meanwhile, the device is of no use.
fn require_creating(id: &str, backup: Option<crate::model::Backup>) -> Result<()> {
    match backup {
        Some(backup) if backup.status == "creating" => Ok(()),
        Some(backup) => {
            Err(Error::new(Code::InvalidBackup, format!("Backup {id} is {}, not creating", backup.status)))
        }
        None => Err(Error::new(Code::BackupNotFound, format!("Backup {id} could not be found."))),
    }
}

/// Copies volume or snapshot; the copy's own row says that it is being backed up.
async fn copy(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: &BackupDevice,
    volume: &Volume,
    source: Source,
) -> Result<Volume> {
    // A volume that was moved by itself is copied where it is.
    let place = place_beside(backend, operation, volume).await?;
    let copy = match begun(operation).await? {
        Some(id) => {
            backend.db.read("copy for a backup", async |conn| db::volume::get(conn, &id).await).await?
        }
        None => begin(backend, context, operation, request, volume, &place).await?,
    };
    // Whoever deletes it waits until there is something to delete.
    let _own = backend.locks.lock(&format!("{}-delete_volume", copy.id)).await;
    if copy.status == "backing-up" {
        return Ok(copy);
    }
    let _source_lock = match source.lock() {
        Some(name) => Some(backend.locks.lock(&name).await),
        None => None,
    };
    let volume_type = backend
        .db
        .read("type of a copy", async |conn| db::volume_type::get(conn, &copy.volume_type_id).await)
        .await?;
    let attempt = if operation.is_adopted() { Attempt::Again } else { Attempt::First };
    let changes =
        create::make(backend, context, operation, &copy, &unmirrored(volume_type), &source, &place, attempt)
            .await?;
    crash::point("get_backup_device:copied");
    let copy = operation
        .write("copy for a backup is made", async |conn| {
            // One that was begun on another site is known to be there.
            let changes = match db::stray::site_of(conn, &copy.id).await? {
                Some(_) => changes.clone(),
                None => create::overtaken(conn, backend, &copy, &place, &changes).await?,
            };
            db::volume::transition(conn, &copy.id, VolumeEvent::CopiedForBackup, &changes).await?;
            db::volume::get(conn, &copy.id).await
        })
        .await?;
    info!(backup.id = request.backup_id, volume.id = volume.id, copy.id = copy.id, "copied for a backup");
    Ok(copy)
}

/// Where the copy is made: where its source is served; after a crash, where the first attempt began.
async fn place_beside(backend: &Backend, operation: &Operation, source: &Volume) -> Result<Place> {
    if let Some(place) = create::place_begun(backend, operation).await? {
        return Ok(place);
    }
    let place = backend.place_up(source).await?;
    if backend.is_replicated() {
        operation.step(create::BEGUN, &place.site.name()).await?;
    }
    Ok(place)
}

/// The copy that this operation has begun to make.
async fn begun(operation: &Operation) -> Result<Option<String>> {
    let items = operation.items().await?;
    Ok(items.into_iter().find(|item| item.name == COPY).map(|item| item.resource_id))
}

async fn begin(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: &BackupDevice,
    volume: &Volume,
    place: &Place,
) -> Result<Volume> {
    let id = Uuid::new_v4().to_string();
    let owner = (context.user_id.as_deref(), context.project_id.as_deref());
    let copy = operation
        .write("copy for a backup", async |conn| {
            let copy = db::backup::create_copy(conn, &request.backup_id, &volume.id, &id, owner).await?;
            operation.item_step_in(conn, &id, COPY, &()).await?;
            if place.site.name() != backend.active_name() {
                // Before there is an image: whoever deletes the copy looks for it there.
                db::stray::record(conn, std::slice::from_ref(&id), place.site.name()).await?;
            }
            Ok(copy)
        })
        .await?;
    backend.allocate(copy.host.as_deref(), i64::from(copy.size));
    crash::point("get_backup_device:begun");
    Ok(copy)
}

/// A copy is not mirrored, whatever the type says: it would be sent to the other site only to be deleted
/// there, and a backup that a failover interrupts begins anew anyway.
fn unmirrored(mut volume_type: VolumeType) -> VolumeType {
    volume_type.extra_specs.remove("replication_enabled");
    volume_type
}

/// Tells cinder-backup, and ends the operation. If we die between the two it is told again, with the same id
/// by which it knows the second message; unless it has ended the backup by then.
async fn hand_out(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: BackupDevice,
    device: Volume,
) -> Result<()> {
    info!(backup.id = request.backup_id, volume.id = device.id, "cinder-backup goes on with the backup");
    let temporary = (device.id != request.volume_id).then(|| device.id.clone());
    let order = ContinueBackup {
        unique_id: peers::sent_on(operation.unique_id(), "continue_backup"),
        host: request.host.unwrap_or_default(),
        backup: request.backup,
        temp_volume_id: temporary,
        device,
    };
    backend.peers.backups.continue_backup(context, order).await?;
    crash::point("get_backup_device:handed_out");
    backend.journal.finish(operation, &backend.done()).await
}

/// Ends the request as failed without another try, also where it was interrupted by a defect.
///
/// # Errors
/// For a caller who waits, `failure`; else only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: BackupDevice,
    failure: Error,
) -> Result<()> {
    let id = &request.backup_id;
    let leftover = leftover(backend, operation, &request).await?;
    if !request.is_cast {
        operation.write("copy for a backup", async |conn| leftover.forget(conn, id).await).await?;
        return Err(failure);
    }
    let message =
        Message::about(ResourceType::Backup, id, Action::BackupCreate, Detail::BackupCreateDeviceError);
    let ttl = backend.globals.message_ttl;
    let ended = backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            leftover.forget(conn, id).await?;
            let ended = fail_backup(conn, &request, &failure).await?;
            if ended {
                db::message::create(conn, context, &message, ttl).await?;
            }
            Ok(ended)
        })
        .await?;
    if ended {
        error!(backup.id = id, volume.id = request.volume_id, error = %failure, "no device for a backup: it has failed");
    } else {
        warn!(backup.id = id, error = %failure, "the backup was ended by somebody else meanwhile");
    }
    Ok(())
}

/// The backup says why it failed, and what was to be backed up gets its status back. False when somebody else
/// has ended the backup: then the statuses are his.
async fn fail_backup(conn: &mut Conn, request: &BackupDevice, failure: &Error) -> Result<bool> {
    if !db::backup::fail(conn, &request.backup_id, BackupEvent::DeviceFailed, failure.user()).await? {
        return Ok(false);
    }
    let changed = if let Some(id) = &request.snapshot_id {
        db::snapshot::transition(conn, id, SnapshotEvent::BackupEnded, &SnapshotChanges::default()).await
    } else if let Some(volume) = db::volume::find(conn, &request.volume_id).await? {
        let before = status_before(conn, &volume).await?;
        let changes = VolumeChanges {
            previous_status: Some(Some("error_backing-up".to_owned())),
            ..VolumeChanges::default()
        };
        db::volume::transition_to(conn, &volume.id, VolumeEvent::BackupFailed, &before, &changes).await
    } else {
        Ok(())
    };
    match changed {
        Err(e) if !matches!(e.code(), Code::Conflict | Code::VolumeNotFound | Code::SnapshotNotFound) => {
            Err(e)
        }
        _ => Ok(true),
    }
}

/// Ends the call of somebody who has stopped waiting, after a crash: the copy goes.
///
/// # Errors
/// `Cancelled`; `Database`.
pub async fn roll_back(
    backend: &Backend,
    operation: &Operation,
    request: &BackupDevice,
    outcome: &Outcome,
) -> Result<()> {
    let leftover = leftover(backend, operation, request).await?;
    let id = &request.backup_id;
    backend.journal.complete(operation, outcome, async |conn| leftover.forget(conn, id).await).await
}

/// What is left of a copy that nobody wants.
enum Leftover {
    Nothing,
    /// Its row.
    Row(String),
    /// Its row, and an image that could not be removed: they are deleted by whoever deletes the volume.
    Image(String),
}

impl Leftover {
    async fn forget(&self, conn: &mut Conn, backup_id: &str) -> Result<()> {
        match self {
            Leftover::Nothing => Ok(()),
            Leftover::Row(id) => db::backup::forget_copy(conn, backup_id, id).await,
            Leftover::Image(id) => {
                let none = VolumeChanges::default();
                transition_if_still(conn, id, VolumeEvent::CreateFailed, &none).await
            }
        }
    }
}

/// Removes the image of the copy.
async fn leftover(backend: &Backend, operation: &Operation, request: &BackupDevice) -> Result<Leftover> {
    let Some(id) = begun(operation).await? else { return Ok(Leftover::Nothing) };
    let read = backend.db.read("copy for a backup", async |conn| {
        Ok((db::volume::find(conn, &id).await?, db::volume::find(conn, &request.volume_id).await?))
    });
    let (Some(copy), volume) = read.await? else { return Ok(Leftover::Nothing) };
    // A copy of a snapshot has no helper snapshot.
    let source = volume.filter(|_| request.snapshot_id.is_none()).map(|v| backend.image_name(&v));
    let place = match create::place_begun(backend, operation).await {
        Ok(None) => backend.place(&copy).await,
        Ok(Some(place)) => Ok(place),
        Err(e) => Err(e),
    };
    let removed = match place {
        Ok(place) => {
            place.undo_create(&backend.image_name(&copy), source.as_deref()).await.map_err(Error::from)
        }
        Err(e) if e.code() == Code::InvalidReplicationTarget => Err(e),
        Err(e) => return Err(e),
    };
    match removed {
        Ok(()) => {
            backend.allocate(copy.host.as_deref(), -i64::from(copy.size));
            Ok(Leftover::Row(id))
        }
        Err(error) => {
            warn!(
                volume.id = id, backup.id = request.backup_id, %error,
                "could not remove the copy of a failed backup; delete the volume: cinder force-delete {id}"
            );
            Ok(Leftover::Image(id))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attached_is_copied_unless_cephs_own_driver_reads_it() {
        let volume = |previous: &str| Volume {
            id: "v".to_owned(),
            previous_status: Some(previous.to_owned()),
            ..Volume::default()
        };
        let request = |driver: &str, snapshot: Option<&str>| BackupDevice {
            driver: Some(driver.to_owned()),
            snapshot_id: snapshot.map(str::to_owned),
            ..BackupDevice::default()
        };
        let ceph = "cinder.backup.drivers.ceph.CephBackupDriver";
        let posix = "cinder.backup.drivers.posix.PosixBackupDriver";
        let (idle, in_use) = (volume("available"), volume("in-use"));
        assert_eq!(request(ceph, None).source(&in_use), None);
        assert_eq!(request(posix, None).source(&idle), None);
        assert_eq!(request(posix, None).source(&in_use), Some(Source::Volume("v".into())));
        for driver in [ceph, posix] {
            assert_eq!(request(driver, Some("s")).source(&idle), Some(Source::Snapshot("s".into())));
        }
        assert_eq!(BackupDevice::default().source(&in_use), Some(Source::Volume("v".into())));
    }
}
