//! `retype`: a volume gets another type, where it is if that can be, by moving it if that is allowed.
//!
//! What the user pays for and what the volume is must change together: reserved quota, type and status are
//! written in one transaction, after the image has become what the type asks for. If it cannot become that,
//! it is made again what it was, so that the row stays true (reference volume_rpc.md 2.2, rbd_driver.md 4.9;
//! `cinder/volume/manager.py`, `retype`).

use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::{error, info, warn};

use super::image::Place;
use super::migrate::{self, Destination, Retyping};
use super::reshape::{self, Form};
use super::setup::OF_ONE_WRITER;
use super::{crash, mode_of, mode_switch, project_of};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::db::quota;
use crate::db::volume::VolumeChanges;
use crate::db::volume_type::Content;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{DriverData, ReplicationStatus, Volume, VolumeEvent, backend_of};
use crate::replication::{failover, parent, standing, target};

/// Journal step with the form that the image had before.
const BEFORE: &str = "before";

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Retype {
    /// The volume.
    pub volume_id: String,
    /// Its type from now on.
    pub new_type_id: String,
    /// Where the scheduler wants it; most often where it is.
    pub destination: Destination,
    /// Whether it may be moved (`migration_policy` is not `never`).
    pub may_move: bool,
    /// What the API reserved under the new type.
    pub reservations: Vec<String>,
    /// What it reserved to be given back under the old one.
    pub old_reservations: Vec<String>,
}

/// What is known before anything is changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Before {
    site: String,
    form: Form,
    data: DriverData,
}

/// What came of changing the image where it is.
enum InPlace {
    /// The volume is of the new type, on this site; this belongs into its row.
    Done { site: Option<String>, changes: VolumeChanges, is_mirrored: bool },
    /// It cannot be, and is as it was.
    Impossible(Option<Error>),
    /// It could not be made what it was, either; this is true of it.
    Broken { failure: Error, changes: VolumeChanges },
}

/// Changes the type of the volume.
///
/// # Errors
/// Only when nothing could be recorded; a retype that failed is recorded in the row.
pub async fn retype(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Retype,
) -> Result<()> {
    let id = &request.volume_id;
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(id).await;
    let retyping = Retyping::of(&request);
    if operation.is_adopted() && migrate::has_begun(operation).await? {
        return Box::pin(migrate::go_on(backend, context, operation, id, &request.destination, &retyping))
            .await;
    }
    let found = backend
        .db
        .read("volume to retype", async |conn| {
            let Some(volume) = db::volume::find(conn, id).await? else { return Ok(None) };
            let old = Content::read(conn, &volume.volume_type_id).await?;
            let snapshots = db::snapshot::list_for_volume(conn, id).await?.len();
            Ok(Some((volume, old, snapshots)))
        })
        .await?;
    let Some((volume, old, snapshots)) = found else {
        return migrate::gone(backend, operation, id, &retyping).await;
    };
    crash::point("retype:accepted");
    let new =
        backend.db.read("type to get", async |conn| Content::read(conn, &request.new_type_id).await).await;
    let changed = match new {
        Ok(new) => {
            let changed = Box::pin(in_place(backend, operation, &volume, &old, &new, &request)).await;
            changed.map(|changed| (changed, new))
        }
        Err(failure) => Err(failure),
    };
    let (changed, new) = match changed {
        Ok(changed) => changed,
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database) => return Err(e),
        Err(failure) => {
            return fail(backend, context, operation, &request, failure, &VolumeChanges::default()).await;
        }
    };
    let why = match changed {
        InPlace::Done { site, changes, is_mirrored } => {
            let ended = Ended { site, changes, is_mirrored };
            return succeed(backend, context, operation, &volume, &request, ended).await;
        }
        InPlace::Broken { failure, changes } => {
            return fail(backend, context, operation, &request, failure, &changes).await;
        }
        InPlace::Impossible(why) => why,
    };
    if let Some(failure) = may_move(&volume, snapshots, &request) {
        let failure = match why {
            Some(why) => failure.caused_by(why),
            None => failure,
        };
        return fail(backend, context, operation, &request, failure, &VolumeChanges::default()).await;
    }
    if let Some(why) = why {
        warn!(volume.id = id, error = %why, "volume cannot get its type where it is, moving it");
    }
    // As upstream, the backend may copy only what is the same there in all but its place.
    let place = ["volume_backend_name", "RESKEY:availability_zones"];
    let assisted = !old.limits_differ(&new)
        && old.encryption == new.encryption
        && old.differing(&new).iter().all(|key| place.contains(&key.as_str()));
    let order = migrate::Order { destination: &request.destination, assisted, retyping: Some(&retyping) };
    Box::pin(migrate::begin(backend, context, operation, &volume, order)).await
}

/// Ends the request as failed without another try, wherever it was interrupted by a defect.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Retype,
    failure: Error,
) -> Result<()> {
    if migrate::has_begun(operation).await? {
        let retyping = Retyping::of(&request);
        return migrate::give_up(backend, context, operation, &request.volume_id, Some(&retyping), failure)
            .await;
    }
    let mut truth = VolumeChanges::default();
    if let Some((BEFORE, before)) =
        operation.data::<Before>().await?.as_ref().map(|(name, before)| (name.as_str(), before))
    {
        let id = &request.volume_id;
        let volume =
            backend.db.read("volume to give up", async |conn| db::volume::get(conn, id).await).await?;
        let place = Place { site: backend.site(&before.site)?, pool: backend.config.pool.clone() };
        if let Err((_, changes)) = take_back(backend, &volume, &place, before).await {
            truth = changes;
        }
    }
    fail(backend, context, operation, &request, failure, &truth).await
}

/// Why the volume must not be moved to get its type.
fn may_move(volume: &Volume, snapshots: usize, request: &Retype) -> Option<Error> {
    let replicated = volume
        .replication_status
        .as_deref()
        .is_some_and(|status| !db::failover::NOT_REPLICATED.contains(&status));
    let (code, text) = if !request.may_move {
        (Code::VolumeMigration, "Retype requires migration but is not allowed.")
    } else if snapshots > 0 {
        (Code::InvalidVolume, "Volume must not have snapshots.")
    } else if replicated {
        (Code::InvalidVolume, "Volume must not be replicated.")
    } else {
        return None;
    };
    Some(Error::new(code, text))
}

fn is_ours(backend: &Backend, destination: &Destination) -> bool {
    match &destination.cluster_name {
        Some(cluster) => backend.config.cluster.as_deref() == Some(backend_of(cluster)),
        None => backend_of(&destination.host) == backend.host(),
    }
}

/// Makes the image what the new type asks for, where it is.
async fn in_place(
    backend: &Backend,
    operation: &Operation,
    volume: &Volume,
    old: &Content,
    new: &Content,
    request: &Retype,
) -> Result<InPlace> {
    if old.equals(new) {
        let changes = VolumeChanges::default();
        return Ok(InPlace::Done { site: None, changes, is_mirrored: false });
    }
    if old.encryption != new.encryption || !is_ours(backend, &request.destination) {
        return Ok(InPlace::Impossible(None));
    }
    backend.require_up()?;
    let begun = operation.data::<Before>().await;
    let (place, before) = match begun {
        Ok(Some((name, before))) if name == BEFORE => {
            (Place { site: backend.site(&before.site)?, pool: backend.config.pool.clone() }, before)
        }
        Err(e) if e.code() != Code::Internal => return Err(e),
        _ => {
            let place = backend.place(volume).await?;
            let data = DriverData::parse(volume.replication_driver_data.as_deref());
            let (form, is_primary) = match reshape::form_of(&place, &backend.image_name(volume), data).await {
                Ok(known) => known,
                Err(e) => return Ok(InPlace::Impossible(Some(e.into()))),
            };
            let before = Before { site: place.site.name().to_owned(), form, data };
            match wanted(backend, volume, &before, old, new) {
                Ok(to) if to.mirror != before.form.mirror => {
                    let mut may = may_change_mirroring(backend, volume, &before, is_primary);
                    if may.is_ok() && before.form.mirror.is_some() {
                        let image = backend.image_name(volume);
                        may = mode_switch::require_switchable(&place, volume, &image).await;
                    }
                    if let Err(refusal) = may {
                        return Ok(InPlace::Impossible(Some(refusal)));
                    }
                }
                Ok(_) => {}
                Err(refusal) => return Ok(InPlace::Impossible(Some(refusal))),
            }
            operation.step(BEFORE, &before).await?;
            (place, before)
        }
    };
    crash::point("retype:begun");
    let to = match wanted(backend, volume, &before, old, new) {
        Ok(to) => to,
        Err(refusal) => return Ok(InPlace::Impossible(Some(refusal))),
    };
    let image = backend.image_name(volume);
    if let (None, Some(mode)) = (before.form.mirror, to.mirror) {
        let child = parent::Child { volume_id: &volume.id, image: &image, kind: &new.volume_type, mode };
        match Box::pin(parent::prepare(backend, operation, &place, child)).await {
            Err(e) if matches!(e.code(), Code::Cancelled | Code::Database) => return Err(e),
            Err(refusal) => return Ok(undo(backend, volume, &place, &before, refusal).await),
            Ok(()) => {}
        }
    }
    match reshape::reshape(&place, &image, &to, before.data).await {
        Ok(data) => {
            crash::point("retype:reshaped");
            let mut changes = row_of(backend, volume, &before, &to, data, old, new);
            if let (Some(was), Some(mode)) = (before.form.mirror, to.mirror)
                && was != mode
                && let Some(not_yet) = mode_switch::await_copy(backend, &place, &image, mode).await
            {
                changes.replication_status = not_yet.replication_status;
                changes.replication_extended_status = not_yet.replication_extended_status;
            }
            let is_mirrored = to.mirror.is_some();
            Ok(InPlace::Done { site: Some(before.site), changes, is_mirrored })
        }
        Err(e) => {
            let failure = failure_of(volume, &before.form, &to).caused_by(e);
            Ok(undo(backend, volume, &place, &before, failure).await)
        }
    }
}

/// The image cannot be what the new type asks for: it is made what it was.
async fn undo(backend: &Backend, volume: &Volume, place: &Place, before: &Before, failure: Error) -> InPlace {
    match take_back(backend, volume, place, before).await {
        Ok(()) => InPlace::Impossible(Some(failure)),
        Err((why, changes)) => {
            error!(volume.id = volume.id, error = %why, "the image of a failed retype is not what it was");
            InPlace::Broken { failure, changes }
        }
    }
}

fn failure_of(volume: &Volume, before: &Form, to: &Form) -> Error {
    if before.mirror == to.mirror {
        return Error::new(Code::VolumeBackend, format!("Volume {}: its image cannot be changed", volume.id));
    }
    let what = if to.mirror.is_some() { "enable" } else { "disable" };
    Error::new(Code::Replication, format!("Failed to {what} replication of volume {}", volume.id))
}

/// The form that the new type asks for.
fn wanted(backend: &Backend, volume: &Volume, before: &Before, old: &Content, new: &Content) -> Result<Form> {
    let kind = &new.volume_type;
    let mirror = match kind.wants_replication() {
        true if kind.wants_multiattach() => {
            return Err(Error::new(
                Code::UnsupportedCombination,
                "Replication and Multiattach are mutually exclusive: change the volume type",
            ));
        }
        true if !backend.is_replicated() => {
            return Err(Error::new(
                Code::Replication,
                format!("Failed to enable replication of volume {}", volume.id),
            )
            .detail(format!("{} has no replication_device", backend.host())));
        }
        true => Some(mode_of(&backend.config, kind)?),
        false => None,
    };
    let now = before.form.features;
    let features = match (kind.wants_multiattach(), saved_features(volume)) {
        (true, _) => now & !OF_ONE_WRITER,
        (false, Some(saved)) => now | (saved & OF_ONE_WRITER),
        (false, None) => now,
    };
    // Limits that no type of ours has set are somebody else's.
    let limited = old.qos.is_some() || new.qos.is_some();
    Ok(Form { features, mirror, limits: limited.then(|| reshape::limits(&new.limits())) })
}

/// The features that the image had before it got many writers.
fn saved_features(volume: &Volume) -> Option<u64> {
    let location: serde_json::Value = serde_json::from_str(volume.provider_location.as_deref()?).ok()?;
    location.get("saved_features")?.as_u64()
}

/// Mirroring is only switched where it is certain which side has the data, and where the row can say what
/// is true afterwards.
fn may_change_mirroring(backend: &Backend, volume: &Volume, before: &Before, is_primary: bool) -> Result<()> {
    let status = volume.replication_status.as_deref();
    let settled = matches!(status, None | Some("enabled" | "failed-over" | "disabled" | "not-capable"));
    let at_home = before.site == backend.active_name();
    if settled && at_home && (is_primary || before.form.mirror.is_none()) {
        return Ok(());
    }
    Err(Error::new(
        Code::InvalidVolume,
        format!("The replication of volume {} cannot be changed until it has been repaired", volume.id),
    )
    .detail(format!(
        "replication_status is {}, it is served from site {} and the backend works on {}",
        status.unwrap_or("NULL"),
        before.site,
        backend.active_name()
    )))
}

/// What is to be written of a volume whose image has become `to`.
fn row_of(
    backend: &Backend,
    volume: &Volume,
    before: &Before,
    to: &Form,
    data: Option<DriverData>,
    old: &Content,
    new: &Content,
) -> VolumeChanges {
    let mut changes = VolumeChanges::default();
    let names_it = |content: &Content| content.volume_type.extra_specs.contains_key("replication_enabled");
    let claims = volume
        .replication_status
        .as_deref()
        .and_then(ReplicationStatus::parse)
        .is_some_and(ReplicationStatus::means_mirrored);
    match to.mirror {
        Some(_) => {
            if !claims {
                changes.replication_status = Some(Some(standing::settled(&before.site).as_str().to_owned()));
            }
            if data.is_some() || before.form.mirror != to.mirror {
                // Also when the enabling was done by an attempt that a crash ended: it is known what was added.
                let data = data.unwrap_or_else(|| added_by(to.features));
                changes.replication_driver_data = Some(Some(data.to_text()));
            }
        }
        None if before.form.mirror.is_some() || claims => {
            changes.replication_status = Some(Some(ReplicationStatus::Disabled.as_str().to_owned()));
            changes.replication_driver_data = Some(None);
            changes.replication_extended_status = Some(None);
        }
        None if backend.is_replicated() || names_it(old) || names_it(new) => {
            changes.replication_status = Some(Some(ReplicationStatus::Disabled.as_str().to_owned()));
        }
        None => {}
    }
    match (new.volume_type.wants_multiattach(), saved_features(volume)) {
        (true, None) => {
            let location = json!({ "saved_features": before.form.features });
            changes.provider_location = Some(Some(location.to_string()));
        }
        (false, Some(_)) => changes.provider_location = Some(None),
        (true, Some(_)) | (false, None) => {}
    }
    changes
}

/// What enabling mirroring remembers of an image of these features.
fn added_by(features: u64) -> DriverData {
    use crate::rbd::types::features::{EXCLUSIVE_LOCK, JOURNALING};
    DriverData {
        had_exclusive_lock: features & EXCLUSIVE_LOCK != 0,
        had_journaling: features & JOURNALING != 0,
    }
}

/// Makes the image what it was. When that fails too, answers with the error what is true of it now.
async fn take_back(
    backend: &Backend,
    volume: &Volume,
    place: &Place,
    before: &Before,
) -> std::result::Result<(), (Error, VolumeChanges)> {
    let image = backend.image_name(volume);
    let why = match reshape::reshape(place, &image, &before.form, before.data).await {
        Ok(_) => return Ok(()),
        Err(e) => e,
    };
    let mut changes = VolumeChanges::default();
    match reshape::form_of(place, &image, before.data).await {
        Ok((now, _)) if now.mirror.is_some() == before.form.mirror.is_some() => {}
        Ok((now, _)) => {
            let status = match now.mirror {
                Some(_) => {
                    let data = added_by(before.form.features);
                    changes.replication_driver_data = Some(Some(data.to_text()));
                    standing::settled(&before.site)
                }
                None => {
                    changes.replication_driver_data = Some(None);
                    ReplicationStatus::Disabled
                }
            };
            changes.replication_status = Some(Some(status.as_str().to_owned()));
        }
        Err(e) => {
            warn!(volume.id = volume.id, error = %e, "it is not known whether the image is mirrored: an audit tells");
        }
    }
    Err((why.into(), changes))
}

/// How the image has come out of it.
struct Ended {
    /// Where it was changed; `None` when nothing was to be changed.
    site: Option<String>,
    changes: VolumeChanges,
    is_mirrored: bool,
}

async fn succeed(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    request: &Retype,
    ended: Ended,
) -> Result<()> {
    let id = &volume.id;
    let project = project_of(volume, context);
    let closed = backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            quota::commit(conn, &project, &request.old_reservations).await?;
            quota::commit(conn, &project, &request.reservations).await?;
            let now = db::volume::lock(conn, id).await?;
            let changes = VolumeChanges {
                volume_type_id: Some(request.new_type_id.clone()),
                host: Some(Some(request.destination.host.clone())),
                cluster_name: Some(request.destination.cluster_name.clone()),
                ..where_it_is(conn, backend, id, &ended).await?
            };
            let status = db::moving::status_before(conn, &now).await?;
            match db::volume::transition_to(conn, id, VolumeEvent::Retyped, &status, &changes).await {
                // Somebody has set another status: it stays, but the volume is of the type that it is of.
                Err(e) if e.code() == Code::Conflict => db::volume::update(conn, id, &changes).await?,
                other => other?,
            }
            db::moving::set_type_of_snapshots(conn, id, &request.new_type_id).await?;
            db::volume::get(conn, id).await
        })
        .await;
    let after = match closed {
        Err(e) if e.code() == Code::VolumeNotFound => {
            return migrate::gone(backend, operation, id, &Retyping::of(request)).await;
        }
        closed => closed?,
    };
    info!(volume.id = id, from_type = volume.volume_type_id, to_type = request.new_type_id, "volume retyped");
    backend.notify_volume(context, "retype", &after).await;
    backend.want_report();
    backend.schedules_wanted.notify_one();
    Ok(())
}

/// What to write when the backend has moved to another site meanwhile: as for a volume that was created
/// then, it is served from where it is. The row that says which site is active is locked, so that a failover
/// that ends now sees this volume, or we see the failover.
async fn where_it_is(
    conn: &mut db::Conn,
    backend: &Backend,
    id: &str,
    ended: &Ended,
) -> Result<VolumeChanges> {
    let changes = ended.changes.clone();
    let Some(site) = ended.site.as_ref().filter(|_| backend.is_replicated()) else { return Ok(changes) };
    if changes.replication_status.is_none() {
        return Ok(changes);
    }
    let service = backend.service()?.id;
    let active = db::service::hold_active(conn, service, backend.config.cluster.as_deref()).await?;
    let active = active.map_or_else(|| backend.active_name(), |id| target::active(Some(&id)).to_owned());
    let ids = [id.to_owned()];
    if active == *site {
        if ended.is_mirrored {
            db::stray::forget(conn, &ids).await?;
        }
        return Ok(changes);
    }
    warn!(volume.id = id, site, active, "the backend failed over while the volume was retyped");
    db::stray::record(conn, &ids, site).await?;
    if !ended.is_mirrored {
        return Ok(changes);
    }
    Ok(VolumeChanges {
        replication_status: Some(Some(ReplicationStatus::FailoverError.as_str().to_owned())),
        replication_extended_status: Some(Some(failover::made_meanwhile(backend.host(), site))),
        ..changes
    })
}

/// The volume gets its status back, and both lists of reservations are cancelled.
async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: &Retype,
    failure: Error,
    truth: &VolumeChanges,
) -> Result<()> {
    let id = &request.volume_id;
    error!(volume.id = id, error = %failure, "volume could not be retyped");
    let message = Message::volume(id, Action::Unnamed, Detail::of(failure.code(), Detail::UnknownError));
    let ttl = backend.globals.message_ttl;
    let reservations = [request.old_reservations.as_slice(), request.reservations.as_slice()];
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            let volume = match db::volume::lock(conn, id).await {
                Err(e) if e.code() == Code::VolumeNotFound => None,
                found => Some(found?),
            };
            let Some(volume) = volume else {
                for uuids in reservations {
                    quota::roll_back_of_anybody(conn, uuids).await?;
                }
                return Ok(());
            };
            let project = project_of(&volume, context);
            for uuids in reservations {
                quota::roll_back(conn, &project, uuids).await?;
            }
            let status = db::moving::status_before(conn, &volume).await?;
            let event = VolumeEvent::RetypeAborted;
            match db::volume::transition_to(conn, id, event, &status, truth).await {
                Err(e) if e.code() == Code::Conflict => db::volume::update(conn, id, truth).await,
                Err(e) => Err(e),
                Ok(()) => db::message::create(conn, context, &message, ttl).await.map(|_| ()),
            }
        })
        .await
}
