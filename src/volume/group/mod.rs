//! Generic volume groups: `create_group` and `update_group` here, the rest one file each.
//!
//! Ceph knows nothing of a group: it is rows, and work on all its members. Upstream's generic code overwrites
//! the status of a member that failed, or destroys its row with the image still there. Here each member that
//! is deleted is gone by itself, each that could not be is there to be deleted again, and a group is
//! `available` only with all its members.

mod delete;
mod from_source;
mod snapshot;

use std::collections::BTreeSet;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use tracing::{error, info, warn};

pub use delete::delete;
pub use from_source::{FromSource, create_from_source};
pub use snapshot::{create_snapshot, delete_snapshot};

use super::crash;
use super::delete::is_ours;
use crate::backend::Backend;
use crate::backend::peers::{Notify, VolumeUsage};
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message, ResourceType};
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{Group, GroupEvent, GroupSnapshotEvent, SnapshotEvent, Volume, VolumeEvent, pool_of};

/// How many members of one group are worked on at once.
pub(crate) const AT_ONCE: usize = 8;
/// Statuses of volumes that may be added (`VALID_ADD_VOL_TO_GROUP_STATUS`).
const MAY_JOIN: &[&str] = &["available", "in-use"];
/// Statuses of volumes that may be removed (`VALID_REMOVE_VOL_FROM_GROUP_STATUS`).
const MAY_LEAVE: &[&str] = &["available", "in-use", "error", "error_deleting"];

/// A request that has failed, and what of its members is known.
#[derive(Debug, Clone)]
pub enum Failed {
    /// `create_group` of this group.
    Create(String),
    /// `create_group_from_src` of this group.
    CreateFromSource(String),
    /// `update_group`.
    Update(Update),
    /// `delete_group`.
    Delete {
        /// The group.
        id: String,
        /// Volumes that are in use and stay as they were.
        busy: Vec<String>,
    },
    /// `create_group_snapshot` of this group snapshot.
    CreateSnapshot(String),
    /// `delete_group_snapshot`.
    DeleteSnapshot {
        /// The group snapshot.
        id: String,
        /// Snapshots that are in use and stay as they were.
        busy: Vec<String>,
    },
}

impl Failed {
    fn message(&self, code: Code) -> Message {
        let group = |id: &str| {
            let detail = Detail::of(code, Detail::UnknownError);
            Message::about(ResourceType::Group, id, Action::Unnamed, detail)
        };
        let snapshot = |id: &str, action: Action, detail: Detail| {
            Message::about(ResourceType::GroupSnapshot, id, action, Detail::of(code, detail))
        };
        match self {
            Failed::Create(id) | Failed::CreateFromSource(id) | Failed::Delete { id, .. } => group(id),
            Failed::Update(update) => group(&update.group_id),
            Failed::CreateSnapshot(id) => snapshot(id, Action::SnapshotCreate, Detail::SnapshotCreateError),
            Failed::DeleteSnapshot { id, .. } => {
                snapshot(id, Action::SnapshotDelete, Detail::SnapshotDeleteError)
            }
        }
    }

    /// Writes the statuses. Those that somebody has changed meanwhile are left alone.
    async fn record(&self, conn: &mut db::Conn) -> Result<()> {
        let none = VolumeChanges::default();
        match self {
            Failed::Create(id) => {
                db::group::transition(conn, id, GroupEvent::CreateFailed, None).await?;
            }
            Failed::CreateFromSource(id) => {
                db::group::transition(conn, id, GroupEvent::CreateFailed, None).await?;
                db::group::transition_volumes(conn, id, VolumeEvent::CreateFailed, None, &none).await?;
            }
            Failed::Update(update) => {
                // The volumes are in steady statuses: they are touched only if the group still waits for us.
                if db::group::transition(conn, &update.group_id, GroupEvent::UpdateFailed, None).await? {
                    let (ids, event) = (update.volumes(), VolumeEvent::GroupUpdateFailed);
                    db::failover::transition_many(conn, &ids, event, &none).await?;
                }
            }
            Failed::Delete { id, busy } => {
                db::group::transition(conn, id, GroupEvent::DeleteFailed, None).await?;
                db::failover::transition_many(conn, busy, VolumeEvent::DeleteBusy, &none).await?;
                db::group::transition_volumes(conn, id, VolumeEvent::GroupDeleteFailed, None, &none).await?;
            }
            Failed::CreateSnapshot(id) => {
                db::group::transition_snapshot(conn, id, GroupSnapshotEvent::CreateFailed).await?;
                db::group::transition_snapshots(conn, id, SnapshotEvent::CreateFailed).await?;
            }
            Failed::DeleteSnapshot { id, busy } => {
                db::group::transition_snapshot(conn, id, GroupSnapshotEvent::DeleteFailed).await?;
                db::snapshot::transition_many(conn, busy, SnapshotEvent::DeleteBusy).await?;
                db::group::transition_snapshots(conn, id, SnapshotEvent::GroupDeleteFailed).await?;
            }
        }
        Ok(())
    }
}

/// Ends the request as failed; also without another try, wherever it was interrupted by a defect.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    failed: Failed,
    failure: Error,
) -> Result<()> {
    let message = failed.message(failure.code());
    let (kind, id) = (message.resource_type.as_str(), message.resource_id.as_str());
    error!(resource.kind = kind, resource.id = id, error = %failure, "{} failed", operation.method());
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            failed.record(conn).await?;
            db::message::create(conn, context, &message, ttl).await?;
            Ok(())
        })
        .await
}

/// True when the operation is to be run again, by us or by somebody else, and nothing is to be recorded.
pub(crate) fn is_unfinished(failure: &Error) -> bool {
    matches!(failure.code(), Code::Cancelled | Code::Database | Code::Broker)
}

/// Works on `limit` members at once; the results are in their order.
pub(crate) async fn at_once<R>(work: Vec<BoxFuture<'_, R>>, limit: usize) -> Vec<R> {
    stream::iter(work).buffered(limit).collect().await
}

/// Sends `group.<suffix>` and `volume.<suffix>` of each volume.
pub(crate) async fn tell(
    backend: &Backend,
    context: &RequestContext,
    suffix: &str,
    group: &Group,
    volumes: &[Volume],
) {
    if !backend.peers.notify.enabled() {
        return;
    }
    backend.peers.notify.group(context, suffix, backend.host(), group).await;
    if volumes.is_empty() {
        return;
    }
    let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
    let read = backend.db.read("usage of volumes", async |conn| db::group_snapshot::usages(conn, &ids).await);
    match read.await {
        Ok(usages) => {
            for volume in volumes {
                let host = backend.host();
                tell_volume(&*backend.peers.notify, context, suffix, host, volume, &usages).await;
            }
        }
        Err(error) => warn!(group.id = group.id, %error, "could not read what notifications tell"),
    }
}

/// Sends `volume.<suffix>` of a member. Unlike a volume's own request, all of them name the service's host.
pub(crate) async fn tell_volume(
    notify: &dyn Notify,
    context: &RequestContext,
    suffix: &str,
    host: &str,
    volume: &Volume,
    usages: &db::group_snapshot::Usages,
) {
    if !notify.enabled() || !volume.use_quota {
        return;
    }
    let usage = VolumeUsage {
        volume,
        metadata: usages.metadata(&volume.id),
        attachments: usages.attachments(&volume.id),
        glance_metadata: usages.glance_metadata(&volume.id),
    };
    notify.volume(context, suffix, host, usage).await;
}

/// The group and its volumes; `None` when it is gone.
async fn read(backend: &Backend, id: &str) -> Result<Option<(Group, Vec<Volume>)>> {
    backend
        .db
        .read("group and its volumes", async |conn| {
            let Some(group) = db::group::find(conn, id).await? else { return Ok(None) };
            let volumes = db::group::volumes(conn, id).await?;
            Ok(Some((group, volumes)))
        })
        .await
}

/// In a Cinder cluster the request may have been placed on another member: the group is ours now.
fn host_here(backend: &Backend, group: &Group) -> Option<String> {
    backend.config.cluster.as_ref()?;
    let pool = group.host.as_deref().and_then(pool_of).unwrap_or(&backend.config.backend_name);
    Some(format!("{}#{pool}", backend.host()))
}

/// Creates the group, which has no volumes yet. One that is gone is a success.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn create(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
) -> Result<()> {
    let Some((group, volumes)) = read(backend, id).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    crash::point("create_group:accepted");
    tell(backend, context, "create.start", &group, &volumes).await;
    if let Err(failure) = backend.require_up() {
        return give_up(backend, context, operation, Failed::Create(id.to_owned()), failure).await;
    }
    let host = host_here(backend, &group);
    let after = backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            let created = db::group::created(conn, id, host.as_deref()).await?;
            Ok(if created { db::group::find(conn, id).await? } else { None })
        })
        .await?;
    let Some(after) = after else {
        warn!(group.id = id, "the group was changed while it was created, and is left alone");
        return Ok(());
    };
    info!(group.id = id, "group created");
    tell(backend, context, "create.end", &after, &volumes).await;
    Ok(())
}

/// The arguments of [`update`].
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// The group.
    pub group_id: String,
    /// Volumes that join it.
    pub add_volumes: Vec<String>,
    /// Volumes that leave it.
    pub remove_volumes: Vec<String>,
}

impl Update {
    fn volumes(&self) -> Vec<String> {
        self.add_volumes.iter().chain(&self.remove_volumes).cloned().collect()
    }

    /// Refuses volumes that are gone, in a wrong status, or not ours.
    fn check(&self, backend: &Backend, volumes: &[Volume]) -> Result<()> {
        let add = self.add_volumes.iter().map(|id| (id, true));
        for (id, joins) in add.chain(self.remove_volumes.iter().map(|id| (id, false))) {
            let Some(volume) = volumes.iter().find(|v| v.id == *id) else {
                return Err(Error::new(Code::VolumeNotFound, format!("Volume {id} could not be found.")));
            };
            let (statuses, verb) = if joins { (MAY_JOIN, "added to") } else { (MAY_LEAVE, "removed from") };
            if !statuses.contains(&volume.status.as_str()) {
                return Err(Error::new(
                    Code::InvalidVolume,
                    format!(
                        "Volume {id} cannot be {verb} group {}: it is in status {}, which is none of {}",
                        self.group_id,
                        volume.status,
                        statuses.join(", ")
                    ),
                ));
            }
            if joins && !is_ours(backend, volume) {
                return Err(Error::new(Code::Invalid, format!("Volume {id} is not local to this node")));
            }
        }
        Ok(())
    }
}

/// Lets volumes join or leave the group: all of them, or none.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn update(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Update,
) -> Result<()> {
    let once = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let request = Update {
        add_volumes: once(&request.add_volumes),
        remove_volumes: once(&request.remove_volumes),
        ..request
    };
    let (id, asked) = (&request.group_id, request.volumes());
    let Some((group, before)) = read(backend, id).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    crash::point("update_group:accepted");
    let volumes = backend
        .db
        .read("volumes of an update", async |conn| db::volume::get_many(conn, &asked).await)
        .await?;
    if let Err(refusal) = request.check(backend, &volumes) {
        return refuse_update(backend, context, operation, id, refusal).await;
    }
    tell(backend, context, "update.start", &group, &before).await;
    if let Err(failure) = backend.require_up() {
        return give_up(backend, context, operation, Failed::Update(request), failure).await;
    }
    let changed = backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            if !db::group::transition(conn, id, GroupEvent::Updated, None).await? {
                return Ok(None);
            }
            let joined = db::group::move_volumes(conn, id, &request.add_volumes, MAY_JOIN, true).await?;
            let left = db::group::move_volumes(conn, id, &request.remove_volumes, MAY_LEAVE, false).await?;
            if (joined, left) != (request.add_volumes.len(), request.remove_volumes.len()) {
                return Err(Error::new(
                    Code::InvalidVolume,
                    format!("Volumes of group {id} were changed while it was updated"),
                ));
            }
            let group = db::group::find(conn, id).await?;
            Ok(Some((group, db::group::volumes(conn, id).await?)))
        })
        .await;
    match changed {
        Ok(Some((Some(group), volumes))) => {
            info!(group.id = id, "group updated");
            tell(backend, context, "update.end", &group, &volumes).await;
            Ok(())
        }
        Ok(_) => {
            warn!(group.id = id, "the group was changed while it was updated, and is left alone");
            Ok(())
        }
        Err(refusal) if refusal.code() == Code::InvalidVolume => {
            refuse_update(backend, context, operation, id, refusal).await
        }
        Err(failure) => Err(failure),
    }
}

/// Nothing has changed, so the group is as good as before; the user is told.
async fn refuse_update(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
    refusal: Error,
) -> Result<()> {
    warn!(group.id = id, error = %refusal, "group is not updated");
    let message = Message::about(ResourceType::Group, id, Action::Unnamed, Detail::VolumeInvalidState);
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &Outcome::failed(&refusal), async |conn| {
            db::group::transition(conn, id, GroupEvent::UpdateRefused, None).await?;
            db::message::create(conn, context, &message, ttl).await?;
            Ok(())
        })
        .await
}
