//! `reimage`: the volume gets the content of an image, in place.
//!
//! Snapshots, mirroring and attachments stay, so the bytes are written over what there is, zeros included, and a
//! request that was cut short is run again as a whole. Until it is done the volume is `downloading`; if it fails
//! the volume is `error`, because nobody can tell what it holds (`cinder/volume/manager.py`, `reimage`). A server
//! that has reserved it is told by nova afterwards: that is a step of its own, so that a crash before it repeats
//! nothing else.

use bytes::Bytes;
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::{error, info};

use super::encryption::KeyChange;
use super::from_image::{self, Metadata};
use super::{compute, crash, encryption, frozen};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db::message::{Action, Detail, Message};
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{GIB, Volume, VolumeEvent};
use crate::openstack::nova;
use crate::rbd::protocol::{ImageExport, ImageImport};
use crate::volume::image::Place;

/// The row has its status back; what is left is to tell nova.
const RECORDED: &str = "recorded";

/// The data of that step.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Recorded {
    servers: Vec<String>,
}

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Reimage {
    /// The volume.
    pub volume_id: String,
    /// The image, as the API knows it.
    pub image_meta: Map<String, Value>,
    /// The snapshot that the image stands for, when it has no data of its own.
    pub snapshot_id: Option<String>,
}

impl Reimage {
    fn image_id(&self) -> &str {
        self.image_meta.get("id").and_then(Value::as_str).unwrap_or_default()
    }
}

/// Writes the image over the volume.
///
/// # Errors
/// Only when nothing could be recorded; a failure is recorded in the row.
pub async fn reimage(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Reimage,
) -> Result<()> {
    let id = &request.volume_id;
    let recorded = match operation.is_adopted() {
        true => operation.reached::<Recorded>(RECORDED).await?,
        false => None,
    };
    let servers = match recorded {
        Some(recorded) => recorded.servers,
        None => match change(backend, context, operation, &request).boxed().await? {
            Some(servers) => servers,
            None => return Ok(()),
        },
    };
    crash::point("reimage:recorded");
    // Nothing is held while nova is waited for.
    let told = compute::tell(backend, context, nova::VolumeEvent::Reimaged, id, &servers).await;
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            if let Some(message) = &told {
                db::message::create(conn, context, message, ttl).await?;
            }
            Ok(())
        })
        .await
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
    fail(backend, context, operation, volume_id, &failure).await
}

/// Answers the servers to be told; `None` when the request has ended.
async fn change(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: &Reimage,
) -> Result<Option<Vec<String>>> {
    let id = &request.volume_id;
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(id).await;
    crash::point("reimage:accepted");
    let made = overwrite(backend, context, request).boxed().await;
    let failure = match made {
        Ok(volume) => match succeed(backend, operation, request, &volume).await {
            Ok(servers) => {
                info!(volume.id = id, image.id = request.image_id(), "volume reimaged");
                return Ok(servers);
            }
            Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound) => e,
            Err(e) => return Err(e),
        },
        // It will be taken up again.
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database) => return Err(e),
        Err(e) => e,
    };
    fail(backend, context, operation, id, &failure).await?;
    Ok(None)
}

async fn overwrite(backend: &Backend, context: &RequestContext, request: &Reimage) -> Result<Volume> {
    let id = &request.volume_id;
    let volume = backend.db.read("volume to reimage", async |conn| db::volume::get(conn, id).await).await?;
    if volume.status != "downloading" {
        return Err(Error::new(
            Code::Conflict,
            format!("Volume {id} is {}, not downloading: its content is left as it is", volume.status),
        ));
    }
    frozen::refuse(backend).await?;
    backend.require_up()?;
    let place = backend.place(&volume).await?;
    let name = backend.image_name(&volume);
    match &request.snapshot_id {
        Some(snapshot_id) => from_snapshot(backend, context, snapshot_id, &volume, &place).boxed().await?,
        None => {
            from_image::overwrite(backend, context, request.image_id(), &volume, &place).boxed().await?;
        }
    }
    place.grow(&name, u64::try_from(volume.size).unwrap_or(0) * GIB).await?;
    crash::point("reimage:written");
    // The other site of a failover that came meanwhile need not have it.
    let volume = backend.db.read("reimaged volume", async |conn| db::volume::get(conn, id).await).await?;
    if backend.place(&volume).await?.site.name() != place.site.name() {
        return Err(Error::new(
            Code::InvalidReplicationTarget,
            format!("The backend of volume {id} failed over while it was reimaged"),
        ));
    }
    Ok(volume)
}

/// Copies a snapshot, which may be another volume's, over the volume (`_revert_to_snapshot_generic`).
async fn from_snapshot(
    backend: &Backend,
    context: &RequestContext,
    snapshot_id: &str,
    volume: &Volume,
    place: &Place,
) -> Result<()> {
    let _lock = backend.locks.lock(&format!("{snapshot_id}-delete_snapshot")).await;
    let parent = backend
        .db
        .read("volume of a snapshot", async |conn| {
            let snapshot = db::snapshot::get(conn, snapshot_id).await?;
            db::volume::get(conn, &snapshot.volume_id).await
        })
        .await?;
    let change = match (&parent.encryption_key_id, &volume.encryption_key_id) {
        (None, None) => None,
        (Some(key), Some(_)) => KeyChange::needed(backend, context, volume, key).boxed().await?,
        (None, Some(_)) | (Some(_), None) => return Err(not_as_encrypted(snapshot_id, volume)),
    };
    let (from, name) = (backend.place(&parent).await?, backend.image_name(volume));
    let (image, snap) = (backend.image_name(&parent), backend.snap_name(snapshot_id));
    let mut header = Bytes::new();
    if parent.encryption_key_id.is_some() {
        // Stock's extension may have taken the room of the volume's header away.
        let room = encryption::room_of(&from.read_head(&image, Some(&snap), 512).await?).unwrap_or(0);
        place.grow(&name, u64::try_from(volume.size).unwrap_or(0) * GIB + room).await?;
        if let Some(change) = change {
            let old = from.read_head(&image, Some(&snap), room).await?;
            let changed = change.apply(&backend.globals.image.conversion_dir, &volume.id, &old).boxed().await;
            header = changed.map_err(|why| not_as_encrypted(snapshot_id, volume).detail(why))?;
        }
    }
    let mut export = from.site.export(ImageExport {
        pool: from.pool.clone(),
        image,
        snap: Some(snap),
        offset: header.len() as u64,
        length: u64::MAX,
    });
    let mut import = place.site.import(ImageImport { pool: place.pool.clone(), image: name, blank: false });
    import.write(0, header).await?;
    while let Some(part) = export.next().await? {
        import.write(part.offset, part.data).await?;
    }
    import.finish().await?;
    Ok(())
}

fn not_as_encrypted(snapshot_id: &str, volume: &Volume) -> Error {
    let text = format!("Snapshot {snapshot_id} is not encrypted as volume {}", volume.id);
    Error::new(Code::InvalidVolume, text)
}

/// The status from before, new image metadata; answers the servers that wait to hear of it.
async fn succeed(
    backend: &Backend,
    operation: &Operation,
    request: &Reimage,
    volume: &Volume,
) -> Result<Option<Vec<String>>> {
    let id = &request.volume_id;
    let before = volume.previous_status.as_deref().unwrap_or("available").to_owned();
    let metadata = from_image::from_fields(request.image_id(), &request.image_meta);
    if before == "reserved" {
        let servers = compute::servers(backend, id).await?;
        let recorded = Recorded { servers };
        operation
            .write("reimaged volume", async |conn| {
                record(conn, id, &before, &metadata).await?;
                operation.step_in(conn, RECORDED, &recorded).await
            })
            .await?;
        return Ok(Some(recorded.servers));
    }
    let done = backend.done();
    backend
        .journal
        .complete(operation, &done, async |conn| record(conn, id, &before, &metadata).await)
        .await?;
    Ok(None)
}

async fn record(conn: &mut Conn, id: &str, status: &str, metadata: &Metadata) -> Result<()> {
    let changes = VolumeChanges { bootable: Some(true), ..VolumeChanges::default() };
    db::volume::transition_to(conn, id, VolumeEvent::Reimaged, status, &changes).await?;
    db::volume::replace_glance_metadata(conn, id, metadata).await
}

async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
    failure: &Error,
) -> Result<()> {
    error!(volume.id = id, error = %failure, "volume could not be reimaged");
    let message =
        Message::volume(id, Action::ReimageVolume, Detail::of(failure.code(), Detail::UnknownError));
    let ttl = backend.globals.message_ttl;
    let changes =
        VolumeChanges { previous_status: Some(Some("downloading".to_owned())), ..VolumeChanges::default() };
    backend
        .journal
        .complete(operation, &Outcome::failed(failure), async |conn| {
            let failed = if frozen::left_whole(failure, operation) {
                let before = db::volume::find(conn, id).await?.and_then(|v| v.previous_status);
                let before = before.unwrap_or_else(|| "available".to_owned());
                let none = VolumeChanges::default();
                db::volume::transition_to(conn, id, VolumeEvent::ReimageRefused, &before, &none).await
            } else {
                db::volume::transition(conn, id, VolumeEvent::ReimageFailed, &changes).await
            };
            match failed {
                Ok(()) => db::message::create(conn, context, &message, ttl).await.map(|_| ()),
                // Somebody has set another status: there is nothing to tell about a request that he has undone.
                Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound) => Ok(()),
                Err(e) => Err(e),
            }
        })
        .await
}
