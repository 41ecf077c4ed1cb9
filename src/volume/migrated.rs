//! The end of a migration by copying: the volume and the row of its destination change places.
//!
//! From then on the volume's id leads to the copy, and the other row to the original, which its service
//! deletes. The copy was made under another id. It gets the volume's name where that name is free, otherwise
//! the row says under which id to look (`_name_id`). The rows and the image must agree at every instant at
//! which somebody may ask, so the image is renamed just before the one transaction that changes both rows, and
//! named back when that cannot be.
//!
//! Stock does the same in two services: `migrate_volume_completion` runs at the source, which calls
//! `update_migrated_volume` at the destination. Both are served here for such peers and for Nova; a migration of
//! our own needs neither call (reference volume_rpc.md 2.2, rbd_driver.md 4.9).

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::image::{Attempt, Place};
use super::migrate::{self, ABANDONED, Copy, Job, SWAPPED};
use super::pool_move::Location;
use super::{crash, project_of};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::quota::{self, Release};
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Journal, Operation, Outcome};
use crate::model::Volume;

/// Journal step before a copy gets the volume's name, and after it: what to undo.
const RENAMING: &str = "renaming";
/// The rows say so, too.
const UPDATED: &str = "updated";

/// Gives the copy the volume's place.
pub(super) async fn settle(
    job: &Job<'_>,
    volume: &Volume,
    source: &Place,
    dest: &Place,
    copy: &Copy,
    attempt: Attempt,
) -> Result<()> {
    let (id, new_id) = (&volume.id, &copy.new_id);
    let template = &job.backend.globals.volume_name_template;
    let (theirs, ours) = (template.replace("%s", new_id), template.replace("%s", id));
    // Of a volume that stays in its pool the original has the name.
    // The destination has proven to be the cluster that it reports.
    let cluster = job.backend.facts(&source.site).await?.fsid.clone();
    let same_pool = source.pool == dest.pool && Location::of(job).is_some_and(|to| to.fsid == cluster);
    let renamed = !same_pool && dest.take_name(&theirs, &ours, attempt).await?;
    crash::point("migrate_volume:renamed");
    let name_id = (!renamed).then_some(new_id.as_str());
    let swapped = job
        .operation
        .write("migration completed", async |conn| {
            let (volume, target) = db::moving::lock_pair(conn, id, new_id).await?;
            job.lock(conn).await?;
            let status = db::moving::status_before(conn, &volume).await?;
            db::moving::swap(conn, &volume, &target, name_id, &status).await?;
            job.commit(conn, &volume).await?;
            job.operation.step_in(conn, SWAPPED, copy).await
        })
        .await;
    if let Err(failure) = swapped {
        let unrecorded = matches!(failure.code(), Code::Cancelled | Code::Database);
        if renamed
            && !unrecorded
            && let Err(error) = dest.take_name(&ours, &theirs, Attempt::First).await
        {
            warn!(
                volume.id = id, site = dest.site.name(), %error,
                "the copy of a failed migration keeps the volume's name; on that site: \
                 rbd rename {pool}/{ours} {pool}/{theirs}",
                pool = dest.pool
            );
        }
        return Err(failure);
    }
    crash::point("migrate_volume:swapped");
    leave(job, copy).await
}

/// Has the original deleted, which is our own volume under the destination's former id.
pub(super) async fn leave(job: &Job<'_>, copy: &Copy) -> Result<()> {
    migrate::delete_leftover(job.backend, job.context, &copy.new_id).await?;
    crash::point("migrate_volume:left");
    job.finish().await
}

/// The arguments of [`complete`].
#[derive(Debug, Clone, Default)]
pub struct Completion {
    /// The volume.
    pub volume_id: String,
    /// The row of its destination.
    pub new_volume_id: String,
    /// Whether the copy has failed.
    pub failed: bool,
}

/// `migrate_volume_completion`: whoever copied the content (Nova, for an attached volume) is done with it. The copy
/// keeps its own name. Answers the volume's id.
///
/// # Errors
/// `DriverNotInitialized`, `VolumeNotFound`, `InvalidVolume`.
pub async fn complete(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Completion,
) -> Result<String> {
    let (id, new_id) = (&request.volume_id, &request.new_volume_id);
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(id).await;
    let left = Copy { new_id: new_id.clone(), ..Copy::default() };
    let settled = [SWAPPED, ABANDONED];
    let step = operation.last_step().await?.filter(|step| settled.contains(&step.name.as_str()));
    if step.is_none() {
        if let Err(refusal) = backend.require_up() {
            let error = VolumeChanges {
                migration_status: Some(Some("error".to_owned())),
                ..VolumeChanges::default()
            };
            operation
                .write("migration not completed", async |conn| db::volume::update(conn, id, &error).await)
                .await?;
            return Err(refusal);
        }
        crash::point("migrate_volume_completion:accepted");
        operation
            .write("migration completed", async |conn| {
                let (volume, target) = db::moving::lock_pair(conn, id, new_id).await?;
                let given_up = target.status == "deleting";
                if request.failed {
                    // One whose retype has not ended has not counted yet, and will not (`nova_copy.rs`).
                    if !given_up && !Journal::is_open(conn, id, "retype").await? {
                        uncount(backend, context, conn, &volume, &target).await?;
                    }
                    migrate::end_in_error(conn, &volume).await?;
                    migrate::forsake(conn, new_id).await?;
                    return operation.step_in(conn, ABANDONED, &left).await;
                }
                if given_up {
                    let text = format!("The migration of volume {id} was given up before it was completed.");
                    return Err(Error::new(Code::InvalidVolume, text));
                }
                let status = db::moving::status_before(conn, &volume).await?;
                db::moving::swap(conn, &volume, &target, Some(target.name_id()), &status).await?;
                operation.step_in(conn, SWAPPED, &left).await
            })
            .await?;
        crash::point("migrate_volume_completion:swapped");
    }
    migrate::delete_leftover(backend, context, new_id).await?;
    info!(volume.id = id, failed = request.failed, "migration completed");
    backend.want_report();
    Ok(id.clone())
}

/// A retype whose volume nova was to copy has counted already (`nova_copy.rs`, and so stock's); it counts back.
async fn uncount(
    backend: &Backend,
    context: &RequestContext,
    conn: &mut db::Conn,
    volume: &Volume,
    target: &Volume,
) -> Result<()> {
    if volume.volume_type_id == target.volume_type_id || !volume.use_quota {
        return Ok(());
    }
    let (project, rules) = (project_of(volume, context), &backend.globals.quota);
    let gone = Release::volume(volume.size, Some(&target.volume_type_id));
    quota::give_back(conn, &project, &gone, rules).await?;
    let again = Release::used_volume(volume.size, &volume.volume_type_id);
    quota::give_back(conn, &project, &again, rules).await
}

/// What `update_migrated_volume` found, to be restored when its caller has stopped waiting.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Found {
    volume_id: String,
    new_volume_id: String,
    name_id: Option<String>,
    new_name_id: Option<String>,
    location: Option<String>,
    new_location: Option<String>,
    /// From which name to which the image goes; `None`: it keeps its name.
    rename: Option<(String, String)>,
}

/// The arguments of [`update`].
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// The volume, at its source still.
    pub volume_id: String,
    /// The row of its destination, which is here.
    pub new_volume_id: String,
    /// The status that the volume had before the migration.
    pub status: Option<String>,
}

/// `update_migrated_volume`: the copy that is here gets the volume's name, unless somebody has it open, or the
/// name is taken; the volume's row says where to find it.
///
/// # Errors
/// `VolumeNotFound`; `VolumeBackend` when the image cannot be renamed.
pub async fn update(backend: &Backend, operation: &Operation, request: Update) -> Result<()> {
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(&request.new_volume_id).await;
    let begun = operation.last_step().await?;
    if begun.as_ref().is_some_and(|step| step.name == UPDATED) {
        return Ok(());
    }
    let (volume, target) = backend
        .db
        .read("migrated volume", async |conn| {
            let volume = db::volume::get(conn, &request.volume_id).await?;
            Ok((volume, db::volume::get(conn, &request.new_volume_id).await?))
        })
        .await?;
    let template = &backend.globals.volume_name_template;
    let in_use = request.status.as_deref() == Some("in-use");
    let again = begun.is_some();
    let found = match begun {
        Some(step) => step.parse::<Found>()?,
        None => Found {
            volume_id: volume.id.clone(),
            new_volume_id: target.id.clone(),
            name_id: volume.name_id.clone(),
            new_name_id: target.name_id.clone(),
            location: volume.provider_location.clone(),
            new_location: target.provider_location.clone(),
            rename: (!in_use).then(|| (backend.image_name(&target), template.replace("%s", &volume.id))),
        },
    };
    if !again {
        operation.step(RENAMING, &found).await?;
    }
    crash::point("update_migrated_volume:accepted");
    let renamed = match &found.rename {
        Some((from, to)) => {
            let place = backend.place(&target).await?;
            let attempt = if again { Attempt::Again } else { Attempt::First };
            place.take_name(from, to, attempt).await?
        }
        None => false,
    };
    crash::point("update_migrated_volume:renamed");
    // The other row gets what the volume's row says of the original.
    let at_copy = VolumeChanges {
        name_id: Some((!renamed).then(|| target.name_id().to_owned())),
        provider_location: Some(found.new_location.clone()),
        ..VolumeChanges::default()
    };
    let at_original = VolumeChanges {
        name_id: Some(found.name_id.clone()),
        provider_location: Some(found.location.clone()),
        ..VolumeChanges::default()
    };
    operation
        .write("migrated volume", async |conn| {
            db::volume::update(conn, &found.new_volume_id, &at_original).await?;
            db::volume::update(conn, &found.volume_id, &at_copy).await?;
            operation.step_in(conn, UPDATED, &found).await
        })
        .await?;
    info!(volume.id = volume.id, renamed, "migrated volume updated");
    Ok(())
}

/// Ends `migrate_volume_completion` or `update_migrated_volume` that a dead service had begun and whose caller has
/// stopped waiting. Rows that have changed places stay so, and the original is deleted; a copy that only got its
/// new name gets the old one back, since its caller takes the migration for failed.
///
/// # Errors
/// `Cancelled`; `Database`; `Broker`; `VolumeBackend`.
pub async fn roll_back(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    outcome: &Outcome,
) -> Result<()> {
    let Some(step) = operation.last_step().await? else {
        return backend.journal.finish(operation, outcome).await;
    };
    match step.name.as_str() {
        SWAPPED | ABANDONED => {
            migrate::delete_leftover(backend, context, &step.parse::<Copy>()?.new_id).await?;
            backend.journal.finish(operation, outcome).await
        }
        RENAMING | UPDATED => name_back(backend, operation, outcome, &step.parse()?).await,
        _ => backend.journal.finish(operation, outcome).await,
    }
}

async fn name_back(backend: &Backend, operation: &Operation, outcome: &Outcome, found: &Found) -> Result<()> {
    let read = async |conn: &mut db::Conn| {
        Ok((
            db::volume::find(conn, &found.volume_id).await?,
            db::volume::find(conn, &found.new_volume_id).await?,
        ))
    };
    let (volume, target) = backend.db.read("migrated volume", read).await?;
    if let (Some((from, to)), Some(target)) = (&found.rename, &target) {
        let place = backend.place(target).await?;
        // While its own name is there, the other one is not the copy's.
        match place.stat(from).await {
            Ok(_) => {}
            Err(e) if e.is_not_found() => {
                if !place.take_name(to, from, Attempt::Again).await? {
                    return Err(Error::internal("A name that was free is taken"));
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
    let row = |name_id: &Option<String>, location: &Option<String>| VolumeChanges {
        name_id: Some(name_id.clone()),
        provider_location: Some(location.clone()),
        ..VolumeChanges::default()
    };
    let (ours, theirs) = (row(&found.name_id, &found.location), row(&found.new_name_id, &found.new_location));
    backend
        .journal
        .complete(operation, outcome, async |conn| {
            if volume.is_some() {
                db::volume::update(conn, &found.volume_id, &ours).await?;
            }
            if target.is_some() {
                db::volume::update(conn, &found.new_volume_id, &theirs).await?;
            }
            Ok(())
        })
        .await
}
