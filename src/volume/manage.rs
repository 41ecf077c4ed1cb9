//! `manage_existing`: an image that somebody has made becomes a volume.
//!
//! The image is renamed, so whatever goes wrong afterwards has taken it from its owner: he would not find it
//! under its name, and the volume in `error_managing` is there to be deleted. So all that can be known is
//! checked first, what is taken is written into the journal before the first change, and a failure gives the
//! name back (upstream leaves it, and deleting the failed volume then destroys the image). Size and quota are
//! those that the image turns out to need (`cinder/volume/flows/manager/manage_existing.py`).

use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::{error, info, warn};

use super::image::{Place, Shape};
use super::{crash, create, mode_of, project_of, setup};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::db::quota::{self, Release};
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{DriverData, GIB, ReplicationStatus, Volume, VolumeEvent, VolumeType};
use crate::rbd::protocol::{ImageFeatures, MirrorInfo};
use crate::rbd::types::{MirrorState, features};
use crate::replication::{enable, standing};

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Manage {
    /// The volume's row.
    pub volume_id: String,
    /// `{"source-name": <image>}`.
    pub reference: Map<String, Value>,
}

/// Journal step: what is being taken over.
const TAKEN: &str = "taken";

/// The image as it was before anything was done to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Taken {
    site: String,
    source: String,
    image_id: String,
    gib: i32,
    features: u64,
    mirrored: bool,
    reservations: Vec<String>,
}

/// Manages the image.
///
/// # Errors
/// Only when nothing could be recorded; a failure is recorded in the row.
pub async fn manage(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Manage,
) -> Result<()> {
    let id = &request.volume_id;
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(id).await;
    let taken = if operation.is_adopted() { operation.reached(TAKEN).await? } else { None };
    let found = backend
        .db
        .read("volume to manage", async |conn| {
            let volume = db::volume::get(conn, id).await?;
            let volume_type = db::volume_type::get(conn, &volume.volume_type_id).await?;
            Ok((volume, volume_type))
        })
        .await;
    crash::point("manage_existing:accepted");
    let done = match found {
        Ok((volume, volume_type)) => {
            Box::pin(adopt(backend, context, operation, &volume, &volume_type, &request, taken)).await
        }
        Err(missing) => Err(missing),
    };
    match done {
        Ok(()) => Ok(()),
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database) => Err(e),
        Err(failure) => fail(backend, context, operation, id, failure).await,
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
    fail(backend, context, operation, volume_id, failure).await
}

async fn adopt(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    volume_type: &VolumeType,
    request: &Manage,
    taken: Option<Taken>,
) -> Result<()> {
    if !matches!(volume.status.as_str(), "managing" | "creating") {
        return Err(Error::new(
            Code::Conflict,
            format!("Volume {} is {}, not managing", volume.id, volume.status),
        ));
    }
    backend.notify_volume(context, "manage_existing.start", volume).await;
    backend.require_up()?;
    let taken = match taken {
        Some(taken) => taken,
        None => take(backend, operation, volume, volume_type, request).await?,
    };
    crash::point("manage_existing:taken");
    let place = Place { site: backend.site(&taken.site)?, pool: backend.config.pool.clone() };
    let image = backend.image_name(volume);
    place.rename(&taken.source, &image, &taken.image_id).await?;
    crash::point("manage_existing:renamed");
    let changes = set_up(backend, &place, volume, volume_type, &taken).await?;
    let changes =
        VolumeChanges { size: Some(taken.gib), launched_at: Some(Some(Utc::now().naive_utc())), ..changes };
    let project = project_of(volume, context);
    let after = backend
        .journal
        .complete(operation, &Outcome::succeeded(), async |conn| {
            let changes = create::overtaken(conn, backend, volume, &place, &changes).await?;
            quota::commit(conn, &project, &taken.reservations).await?;
            db::volume::transition(conn, &volume.id, VolumeEvent::Managed, &changes).await?;
            db::volume::get(conn, &volume.id).await
        })
        .await?;
    info!(volume.id = volume.id, image = taken.source, size_gib = taken.gib, "image is managed as a volume");
    backend.allocate(volume.host.as_deref(), i64::from(taken.gib));
    backend.notify_volume(context, "manage_existing.end", &after).await;
    Ok(())
}

/// Checks the image, and remembers it together with the quota that it needs.
async fn take(
    backend: &Backend,
    operation: &Operation,
    volume: &Volume,
    volume_type: &VolumeType,
    request: &Manage,
) -> Result<Taken> {
    if volume_type.wants_replication() && volume_type.wants_multiattach() {
        return Err(Error::new(
            Code::UnsupportedCombination,
            "Replication and Multiattach are mutually exclusive: change the volume type",
        ));
    }
    let source = source_name(&request.reference)?;
    let place = backend.place(volume).await?;
    let info = match place.stat(source).await {
        Ok(info) => info,
        Err(e) if e.is_not_found() => {
            return Err(invalid_reference(source, "Specified RBD image does not exist.").caused_by(e));
        }
        Err(e) => return Err(e.into()),
    };
    refuse_managed(backend, volume, source).await?;
    let mirrored = judge_mirroring(backend, &place, source, volume_type).await?;
    let gib = size_gib(info.size, source)?;
    let rules = &backend.globals.quota;
    let mut taken = Taken {
        site: place.site.name().to_owned(),
        source: source.to_owned(),
        image_id: info.id,
        gib,
        features: info.features,
        mirrored,
        reservations: Vec::new(),
    };
    taken.reservations = operation
        .write("quota of a managed volume", async |conn| {
            let reservations = match volume.project_id.as_deref().filter(|_| volume.use_quota) {
                Some(project) => {
                    quota::check_volume_size(conn, project, gib, rules).await?;
                    quota::reserve(conn, project, gib, &volume.volume_type_id, rules).await?
                }
                None => Vec::new(),
            };
            let step = Taken { reservations, ..taken.clone() };
            operation.step_in(conn, TAKEN, &step).await?;
            Ok(step.reservations)
        })
        .await?;
    Ok(taken)
}

/// `source-name` of a reference.
pub(super) fn source_name(reference: &Map<String, Value>) -> Result<&str> {
    let name = reference.get("source-name").and_then(Value::as_str).filter(|name| !name.is_empty());
    name.ok_or_else(|| {
        let reference = Value::Object(reference.clone()).to_string();
        invalid_reference(&reference, "Reference must contain source-name element.")
    })
}

/// In the words of `ManageExistingInvalidReference`.
pub(super) fn invalid_reference(reference: &str, reason: &str) -> Error {
    Error::new(
        Code::InvalidInput,
        format!("Manage existing volume failed due to invalid backend reference {reference}: {reason}"),
    )
}

/// Whole GiB that hold `bytes`.
pub(super) fn size_gib(bytes: u64, name: &str) -> Result<i32> {
    i32::try_from(bytes.div_ceil(GIB))
        .map_err(|_| Error::new(Code::InvalidInput, format!("{name} is too large: {bytes} bytes")))
}

/// The id in a name that was made by a template such as `volume-%s`.
pub(crate) fn id_in<'a>(name: &'a str, template: &str) -> Option<&'a str> {
    let (before, after) = template.split_once("%s")?;
    name.strip_prefix(before)?.strip_suffix(after).filter(|id| uuid::Uuid::try_parse(id).is_ok())
}

/// The API asks the same, but only for volumes whose image has their own id in its name, and some time ago.
async fn refuse_managed(backend: &Backend, volume: &Volume, source: &str) -> Result<()> {
    let Some(id) = id_in(source, &backend.globals.volume_name_template) else { return Ok(()) };
    let ids = [id.to_owned()];
    let owners = backend
        .db
        .read("volume of an image", async |conn| db::manageable::volumes_by_name(conn, &ids).await)
        .await?;
    match owners.get(id) {
        Some(owner) if *owner != volume.id => Err(Error::new(
            Code::InvalidVolume,
            format!("Unable to manage existing volume. The image {source} is volume {owner} already"),
        )),
        _ => Ok(()),
    }
}

/// Whether the image is mirrored already, in a way that fits what the row will say of it.
async fn judge_mirroring(
    backend: &Backend,
    place: &Place,
    source: &str,
    volume_type: &VolumeType,
) -> Result<bool> {
    let ask = MirrorInfo { pool: place.pool.clone(), image: source.to_owned() };
    let now = place.site.insist(ask).await?;
    if now.state == MirrorState::Disabled {
        return Ok(false);
    }
    let wanted = volume_type.wants_replication() && backend.is_replicated();
    let refusal = if !now.primary {
        "it is a mirrored copy; its primary is on another site"
    } else if !wanted {
        "it is mirrored; take a volume type with replication, or disable its mirroring first"
    } else if now.mode != mode_of(&backend.config, volume_type)? {
        "it is mirrored in another mode than the volume type asks for"
    } else {
        return Ok(true);
    };
    Err(Error::new(Code::InvalidVolume, format!("Image {source} cannot be managed: {refusal}")))
}

/// What the type asks for; answers what belongs into the row.
async fn set_up(
    backend: &Backend,
    place: &Place,
    volume: &Volume,
    volume_type: &VolumeType,
    taken: &Taken,
) -> Result<VolumeChanges> {
    let image = backend.image_name(volume);
    // The shape that the image had: what is switched off for many writers is to come back as it was.
    let shape = Shape { order: 0, features: taken.features };
    let mut changes = setup::from_type(backend, place, &image, volume_type, shape).await?;
    if !backend.is_replicated() {
        return Ok(changes);
    }
    let status = if volume_type.wants_replication() {
        let mode = mode_of(&backend.config, volume_type)?;
        let data =
            enable::enable(&place.site, &place.pool, &image, mode, taken.features).await.map_err(|e| {
                Error::new(Code::Replication, format!("Failed to enable replication of volume {}", volume.id))
                    .caused_by(e)
            })?;
        crash::point("manage_existing:mirrored");
        changes.replication_driver_data = Some(Some(data.to_text()));
        standing::settled(place.site.name())
    } else {
        ReplicationStatus::Disabled
    };
    changes.replication_status = Some(Some(status.as_str().to_owned()));
    Ok(changes)
}

/// Gives the image back under its name, as far as it was taken.
async fn give_back(backend: &Backend, volume_id: &str, name_id: Option<&str>, taken: &Taken) -> Result<()> {
    let place = Place { site: backend.site(&taken.site)?, pool: backend.config.pool.clone() };
    let image = backend.globals.volume_name_template.replace("%s", name_id.unwrap_or(volume_id));
    let now = match place.stat(&image).await {
        Ok(info) if info.id == taken.image_id => info.features,
        Ok(_) => return Ok(()),
        Err(e) if e.is_not_found() => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let ask = MirrorInfo { pool: place.pool.clone(), image: image.clone() };
    let mirrored = place.site.insist(ask).await?.state != MirrorState::Disabled;
    let added = now & !taken.features & (features::EXCLUSIVE_LOCK | features::JOURNALING);
    if !taken.mirrored && (mirrored || added != 0) {
        let data = DriverData {
            had_exclusive_lock: taken.features & features::EXCLUSIVE_LOCK != 0,
            had_journaling: taken.features & features::JOURNALING != 0,
        };
        enable::disable(&place.site, &place.pool, &image, data).await?;
    }
    let lost = taken.features & !now;
    if lost != 0 {
        let (pool, image) = (place.pool.clone(), image.clone());
        place.site.insist(ImageFeatures { pool, image, features: lost, enable: true }).await?;
    }
    place.rename(&image, &taken.source, &taken.image_id).await?;
    Ok(())
}

/// The volume is `error_managing`. It is no longer counted: deleting it gives no quota back, by which upstream
/// loses one volume of quota each time.
async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume_id: &str,
    failure: Error,
) -> Result<()> {
    error!(volume.id = volume_id, error = %failure, "image could not be managed");
    let volume =
        backend.db.read("volume not managed", async |conn| db::volume::find(conn, volume_id).await).await?;
    let taken = operation.reached::<Taken>(TAKEN).await?;
    if let Some(taken) = &taken {
        let name_id = volume.as_ref().and_then(|v| v.name_id.as_deref());
        if let Err(error) = give_back(backend, volume_id, name_id, taken).await {
            warn!(
                volume.id = volume_id, image = taken.source, %error,
                "could not give an image its name back; it is not deleted with the volume"
            );
        }
        crash::point("manage_existing:given_back");
    }
    let detail = match failure.code() {
        Code::OverQuota => Detail::QuotaExceed,
        code => Detail::of(code, Detail::UnknownError),
    };
    let message = Message::volume(volume_id, Action::Unnamed, detail);
    let (ttl, rules) = (backend.globals.message_ttl, &backend.globals.quota);
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            if let Some(taken) = &taken {
                quota::roll_back_of_anybody(conn, &taken.reservations).await?;
            }
            let none = VolumeChanges::default();
            match db::volume::transition(conn, volume_id, VolumeEvent::ManageFailed, &none).await {
                Ok(()) => {}
                Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound) => return Ok(()),
                Err(e) => return Err(e),
            }
            if let Some(volume) = volume.as_ref().filter(|v| v.use_quota)
                && let Some(project) = &volume.project_id
            {
                let release = Release::volume(volume.size, Some(&volume.volume_type_id));
                quota::give_back(conn, project, &release, rules).await?;
            }
            db::message::create(conn, context, &message, ttl).await?;
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_are_rounded_up_and_ids_are_found_in_names() {
        assert_eq!(size_gib(GIB, "i").unwrap(), 1);
        assert_eq!(size_gib(GIB + 1, "i").unwrap(), 2);
        assert_eq!(size_gib(0, "i").unwrap(), 0);
        assert!(size_gib(u64::MAX, "i").is_err());
        let id = "0f0e0d0c-0000-4000-8000-000000000001";
        assert_eq!(id_in(&format!("volume-{id}"), "volume-%s"), Some(id));
        assert_eq!(id_in(&format!("volume-{id}.deleted"), "volume-%s"), None);
        assert_eq!(id_in(&format!("a-{id}-b"), "a-%s-b"), Some(id));
        assert_eq!(id_in("volume-foreign", "volume-%s"), None);
    }

    #[test]
    fn a_reference_names_an_image() {
        let reference = |value: Value| value.as_object().cloned().unwrap_or_default();
        assert_eq!(source_name(&reference(serde_json::json!({"source-name": "i"}))).unwrap(), "i");
        for bad in [
            serde_json::json!({}),
            serde_json::json!({"source-id": "i"}),
            serde_json::json!({"source-name": 1}),
        ] {
            let refusal = source_name(&reference(bad)).unwrap_err();
            assert!(refusal.user().ends_with("Reference must contain source-name element."), "{refusal}");
        }
    }
}
