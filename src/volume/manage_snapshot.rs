//! `manage_existing_snapshot`: a snapshot that somebody has taken of a volume's image becomes one of Cinder's.
//!
//! As for a volume ([`super::manage`]): what is taken is remembered before it is renamed, and a failure gives the
//! name back, because a snapshot in `error` is deleted with what bears its name. The API has counted it with
//! the size of its volume; only the difference is reserved here
//! (`cinder/volume/flows/manager/manage_existing_snapshot.py`).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::{error, info, warn};

use super::image::{Place, is_helper_snapshot, is_named_as_backup};
use super::manage::{id_in, invalid_reference, size_gib, source_name};
use super::{crash, project_of, snapshot};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::db::quota;
use crate::db::snapshot::SnapshotChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{Snapshot, SnapshotEvent, Volume};

/// The request.
#[derive(Debug, Clone, Default)]
pub struct ManageSnapshot {
    /// The snapshot's row.
    pub snapshot_id: String,
    /// `{"source-name": <snapshot>}`.
    pub reference: Map<String, Value>,
}

/// Journal step: what is being taken over.
const TAKEN: &str = "taken";

/// The snapshot as it was before anything was done to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Taken {
    site: String,
    image: String,
    source: String,
    gib: i32,
    protected: bool,
    reservations: Vec<String>,
}

/// Manages the snapshot.
///
/// # Errors
/// Only when nothing could be recorded; a failure is recorded in the row.
pub async fn manage(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: ManageSnapshot,
) -> Result<()> {
    let id = &request.snapshot_id;
    let _passage = backend.gate.pass().await;
    let found = backend
        .db
        .read("snapshot to manage", async |conn| {
            let snapshot = db::snapshot::get(conn, id).await?;
            let volume = db::volume::get(conn, &snapshot.volume_id).await?;
            Ok((snapshot, volume))
        })
        .await;
    crash::point("manage_existing_snapshot:accepted");
    let done = match found {
        Ok((snapshot, volume)) => {
            let _lock = backend.locks.lock(&volume.id).await;
            Box::pin(adopt(backend, context, operation, &snapshot, &volume, &request)).await
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
    snapshot_id: &str,
    failure: Error,
) -> Result<()> {
    fail(backend, context, operation, snapshot_id, failure).await
}

async fn adopt(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    snapshot: &Snapshot,
    volume: &Volume,
    request: &ManageSnapshot,
) -> Result<()> {
    if snapshot.status != "creating" {
        return Err(Error::new(
            Code::Conflict,
            format!("Snapshot {} is {}, not creating", snapshot.id, snapshot.status),
        ));
    }
    backend.notify_snapshot(context, "manage_existing_snapshot.start", snapshot, volume).await;
    backend.require_up()?;
    let known = if operation.is_adopted() { operation.reached(TAKEN).await? } else { None };
    let taken = match known {
        Some(taken) => taken,
        None => take(backend, context, operation, snapshot, volume, request).await?,
    };
    crash::point("manage_existing_snapshot:taken");
    let place = Place { site: backend.site(&taken.site)?, pool: backend.config.pool.clone() };
    let name = backend.snap_name(&snapshot.id);
    place.rename_snapshot(&taken.image, &taken.source, &name).await?;
    crash::point("manage_existing_snapshot:renamed");
    place.protect(&taken.image, &name).await?;
    crash::point("manage_existing_snapshot:protected");
    snapshot::carry_over(&place, volume, &taken.image).await;
    let project = project_of(volume, context);
    let changes = SnapshotChanges { volume_size: Some(taken.gib), ..SnapshotChanges::default() };
    let after = backend
        .journal
        .complete(operation, &Outcome::succeeded(), async |conn| {
            quota::commit(conn, &project, &taken.reservations).await?;
            db::snapshot::transition(conn, &snapshot.id, SnapshotEvent::Created, &changes).await?;
            db::snapshot::get(conn, &snapshot.id).await
        })
        .await?;
    info!(snapshot.id = snapshot.id, volume.id = volume.id, source = taken.source, "snapshot is managed");
    backend.notify_snapshot(context, "manage_existing_snapshot.end", &after, volume).await;
    Ok(())
}

/// Checks the snapshot, and remembers it together with the quota that it needs.
async fn take(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    snapshot: &Snapshot,
    volume: &Volume,
    request: &ManageSnapshot,
) -> Result<Taken> {
    let source = source_name(&request.reference)?;
    let missing = || invalid_reference(source, "Specified snapshot does not exist.");
    let place = backend.place(volume).await?;
    let image = backend.image_name(volume);
    let found = match place.find_snapshot(&image, source).await {
        Ok(found) => found.ok_or_else(missing)?,
        Err(e) if e.is_not_found() => return Err(missing().caused_by(e)),
        Err(e) => return Err(e.into()),
    };
    refuse_managed(backend, snapshot, source).await?;
    let gib = size_gib(found.size, source)?;
    let rules = &backend.globals.quota;
    let counted = snapshot.use_quota && !rules.no_snapshot_gb_quota;
    let project = project_of(volume, context);
    let mut taken = Taken {
        site: place.site.name().to_owned(),
        image,
        source: source.to_owned(),
        gib,
        protected: found.protected,
        reservations: Vec::new(),
    };
    taken.reservations = operation
        .write("quota of a managed snapshot", async |conn| {
            let reservations = if counted {
                let more = gib.saturating_sub(snapshot.volume_size);
                quota::reserve(conn, &project, more, &volume.volume_type_id, rules).await?
            } else {
                Vec::new()
            };
            let step = Taken { reservations, ..taken.clone() };
            operation.step_in(conn, TAKEN, &step).await?;
            Ok(step.reservations)
        })
        .await?;
    Ok(taken)
}

/// Snapshots that are somebody's already: a volume's clone hangs on it, or the next backup is compared with it.
async fn refuse_managed(backend: &Backend, snapshot: &Snapshot, source: &str) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::new(Code::InvalidSnapshot, format!("Unable to manage existing snapshot {source}: {why}")))
    };
    if is_helper_snapshot(source) {
        return refuse("a clone of the volume depends on it");
    }
    if is_named_as_backup(source) {
        return refuse("it belongs to a backup of the volume");
    }
    let Some(id) = id_in(source, &backend.globals.snapshot_name_template) else { return Ok(()) };
    if id == snapshot.id {
        return Ok(());
    }
    let ids = [id.to_owned()];
    let owners = backend
        .db
        .read("owner of a snapshot", async |conn| db::manageable::snapshots_by_name(conn, &ids).await)
        .await?;
    if owners.contains(id) { refuse("it is managed already") } else { Ok(()) }
}

/// Gives the snapshot back under its name, as far as it was taken.
async fn give_back(backend: &Backend, snapshot_id: &str, taken: &Taken) -> Result<()> {
    let place = Place { site: backend.site(&taken.site)?, pool: backend.config.pool.clone() };
    let name = backend.snap_name(snapshot_id);
    match place.find_snapshot(&taken.image, &name).await {
        Ok(Some(_)) => {}
        Ok(None) => return Ok(()),
        Err(e) if e.is_not_found() => return Ok(()),
        Err(e) => return Err(e.into()),
    }
    if !taken.protected {
        place.release_snapshot(&taken.image, &name).await?;
    }
    place.rename_snapshot(&taken.image, &name, &taken.source).await?;
    Ok(())
}

async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    snapshot_id: &str,
    failure: Error,
) -> Result<()> {
    error!(snapshot.id = snapshot_id, error = %failure, "snapshot could not be managed");
    let taken = operation.reached::<Taken>(TAKEN).await?;
    if let Some(taken) = &taken {
        if let Err(error) = give_back(backend, snapshot_id, taken).await {
            warn!(snapshot.id = snapshot_id, source = taken.source, %error, "could not give a snapshot its name back");
        }
        crash::point("manage_existing_snapshot:given_back");
    }
    let detail = match failure.code() {
        Code::OverQuota => Detail::QuotaExceed,
        code => Detail::of(code, Detail::UnknownError),
    };
    let message = Message::snapshot(snapshot_id, Action::Unnamed, detail);
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            if let Some(taken) = &taken {
                quota::roll_back_of_anybody(conn, &taken.reservations).await?;
            }
            let none = SnapshotChanges::default();
            match db::snapshot::transition(conn, snapshot_id, SnapshotEvent::CreateFailed, &none).await {
                Ok(()) => db::message::create(conn, context, &message, ttl).await.map(|_| ()),
                Err(e) if matches!(e.code(), Code::Conflict | Code::SnapshotNotFound) => Ok(()),
                Err(e) => Err(e),
            }
        })
        .await
}
