//! `create_group_snapshot` and `delete_group_snapshot`.
//!
//! The snapshots of a group show one instant of all its volumes, where Ceph can freeze them together; else
//! they are taken one by one, and the user is told. Each is an ordinary snapshot of its volume.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;
use tracing::{info, warn};

use super::{AT_ONCE, Failed, at_once, give_up, is_unfinished};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Level, Message, ResourceType};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::{GroupSnapshot, GroupSnapshotEvent, Snapshot, Volume};
use crate::rbd::types::SnapOf;
use crate::volume::image::{Attempt, Consistency, Place};
use crate::volume::snapshot::{self, delete_with_volume};
use crate::volume::{crash, frozen};

/// A group snapshot and its members.
struct Set {
    row: GroupSnapshot,
    members: Vec<(Snapshot, Volume)>,
}

async fn read(backend: &Backend, id: &str) -> Result<Option<Set>> {
    backend
        .db
        .read("group snapshot and its members", async |conn| {
            let Some(row) = db::group_snapshot::find(conn, id).await? else { return Ok(None) };
            let snapshots = db::snapshot::list_for_group_snapshot(conn, id).await?;
            let ids: BTreeSet<&String> = snapshots.iter().map(|s| &s.volume_id).collect();
            let ids: Vec<String> = ids.into_iter().cloned().collect();
            let volumes = db::volume::get_many(conn, &ids).await?;
            let volumes: BTreeMap<&str, &Volume> = volumes.iter().map(|v| (v.id.as_str(), v)).collect();
            let mut members = Vec::with_capacity(snapshots.len());
            for snapshot in snapshots {
                let Some(volume) = volumes.get(snapshot.volume_id.as_str()) else {
                    let text = format!("Volume {} could not be found.", snapshot.volume_id);
                    return Err(Error::new(Code::VolumeNotFound, text));
                };
                members.push((snapshot, (*volume).clone()));
            }
            Ok(Some(Set { row, members }))
        })
        .await
}

/// Sends `group_snapshot.<suffix>`, and `snapshot.<suffix>` of each member that is given.
async fn tell(
    backend: &Backend,
    context: &RequestContext,
    suffix: &str,
    row: &GroupSnapshot,
    members: &[(Snapshot, Volume)],
) {
    if !backend.peers.notify.enabled() {
        return;
    }
    backend.peers.notify.group_snapshot(context, suffix, backend.host(), row).await;
    for (snapshot, volume) in members {
        backend.notify_snapshot(context, suffix, snapshot, volume).await;
    }
}

/// Takes the snapshots of all members. A group snapshot that is gone is a success.
///
/// # Errors
/// Only when nothing could be recorded, or when somebody else goes on with it.
pub async fn create_snapshot(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
) -> Result<()> {
    let _passage = backend.gate.pass().await;
    let failed = Failed::CreateSnapshot(id.to_owned());
    let set = match read(backend, id).await {
        Ok(Some(set)) => set,
        Ok(None) => return backend.journal.finish(operation, &backend.done()).await,
        Err(failure) if is_unfinished(&failure) => return Err(failure),
        Err(failure) => return give_up(backend, context, operation, failed, failure).await,
    };
    // In one order, so that two group snapshots never wait for each other.
    let volumes: BTreeSet<&str> = set.members.iter().map(|(_, v)| v.id.as_str()).collect();
    let mut held = Vec::with_capacity(volumes.len());
    for volume in volumes {
        held.push(backend.locks.lock(volume).await);
    }
    crash::point("create_group_snapshot:accepted");
    tell(backend, context, "create.start", &set.row, &set.members).await;
    match Box::pin(take(backend, operation, &set)).await {
        Ok(consistency) => created(backend, context, operation, &set, consistency).await,
        Err(failure) if is_unfinished(&failure) => Err(failure),
        Err(failure) => give_up(backend, context, operation, failed, failure).await,
    }
}

async fn take(backend: &Backend, operation: &Operation, set: &Set) -> Result<Consistency> {
    backend.require_up()?;
    let attempt = if operation.is_adopted() { Attempt::Again } else { Attempt::First };
    let mut sites: BTreeMap<String, (Place, Vec<SnapOf>)> = BTreeMap::new();
    for (snapshot, volume) in &set.members {
        let place = backend.place(volume).await?;
        let member = SnapOf { image: backend.image_name(volume), snap: backend.snap_name(&snapshot.id) };
        sites.entry(place.site.name().to_owned()).or_insert((place, Vec::new())).1.push(member);
    }
    let scattered = sites.len() > 1;
    let mut consistency = Consistency::Whole;
    for (place, members) in sites.into_values() {
        match place.snapshot_together(&members, attempt).await? {
            Consistency::Whole => {}
            apart @ Consistency::Apart(_) => consistency = apart,
        }
    }
    carry_over(backend, &set.members).await?;
    if scattered {
        consistency = Consistency::Apart("its volumes are on several sites".to_owned());
    }
    crash::point("create_group_snapshot:taken");
    Ok(consistency)
}

/// Tells the other site what has changed, once for each volume.
async fn carry_over(backend: &Backend, members: &[(Snapshot, Volume)]) -> Result<()> {
    let volumes: BTreeMap<&str, &Volume> = members.iter().map(|(_, v)| (v.id.as_str(), v)).collect();
    let mut work = Vec::new();
    for volume in volumes.into_values() {
        let (place, image) = (backend.place(volume).await?, backend.image_name(volume));
        work.push(async move { snapshot::carry_over(&place, volume, &image).await }.boxed());
    }
    at_once(work, AT_ONCE).await;
    Ok(())
}

async fn created(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    set: &Set,
    consistency: Consistency,
) -> Result<()> {
    let id = &set.row.id;
    // The sentences of the API have none for this; "busy" is what the volumes were.
    let message = Message {
        level: Level::Warning,
        ..Message::about(ResourceType::GroupSnapshot, id, Action::SnapshotCreate, Detail::SnapshotIsBusy)
    };
    let ttl = backend.globals.message_ttl;
    if let Consistency::Apart(why) = &consistency {
        warn!(group_snapshot.id = id, why, "the snapshots of a group are not of one instant");
    }
    let apart = consistency != Consistency::Whole;
    let after = backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            db::group_snapshot::members_created(conn, id).await?;
            db::group::transition_snapshot(conn, id, GroupSnapshotEvent::Created).await?;
            if apart {
                db::message::create(conn, context, &message, ttl).await?;
            }
            let row = db::group_snapshot::find(conn, id).await?;
            Ok((row, db::snapshot::list_for_group_snapshot(conn, id).await?))
        })
        .await?;
    info!(
        group_snapshot.id = id,
        snapshots = set.members.len(),
        consistent = !apart,
        "group snapshot created"
    );
    if let (Some(row), snapshots) = after {
        let volumes: BTreeMap<&str, &Volume> = set.members.iter().map(|(s, v)| (s.id.as_str(), v)).collect();
        let members: Vec<(Snapshot, Volume)> = snapshots
            .into_iter()
            .filter_map(|s| volumes.get(s.id.as_str()).map(|v| (s.clone(), (*v).clone())))
            .collect();
        tell(backend, context, "create.end", &row, &members).await;
    }
    Ok(())
}

/// Deletes the snapshots, each for good, and then the group snapshot. One that is gone already is a success.
///
/// # Errors
/// Only when nothing could be recorded, or when somebody else goes on with it.
pub async fn delete_snapshot(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
) -> Result<()> {
    let _passage = backend.gate.pass().await;
    let failed = |busy| Failed::DeleteSnapshot { id: id.to_owned(), busy };
    let set = match read(backend, id).await {
        Ok(Some(set)) => set,
        Ok(None) => return backend.journal.finish(operation, &backend.done()).await,
        Err(failure) if is_unfinished(&failure) => return Err(failure),
        Err(failure) => return give_up(backend, context, operation, failed(Vec::new()), failure).await,
    };
    crash::point("delete_group_snapshot:accepted");
    if let Err(refusal) = frozen::refuse(backend).await {
        let whole = frozen::left_whole(&refusal, operation);
        let kept = set.members.iter().filter(|_| whole).map(|(s, _)| s.id.clone()).collect();
        return give_up(backend, context, operation, failed(kept), refusal).await;
    }
    tell(backend, context, "delete.start", &set.row, &[]).await;
    if let Err(failure) = backend.require_up() {
        return give_up(backend, context, operation, failed(Vec::new()), failure).await;
    }
    let work = set.members.iter().map(|(snapshot, volume)| {
        async move {
            delete_with_volume(backend, context, operation, snapshot, volume).await?;
            crash::point("delete_group_snapshot:snapshot_deleted");
            Ok(())
        }
        .boxed()
    });
    let results = at_once(work.collect(), AT_ONCE).await;
    let (mut busy, mut first) = (Vec::new(), None);
    for ((snapshot, _), result) in set.members.iter().zip(results) {
        let Err::<(), Error>(failure) = result else { continue };
        if is_unfinished(&failure) {
            return Err(failure);
        }
        warn!(snapshot.id = snapshot.id, error = %failure, "snapshot of a group could not be deleted");
        if failure.code() == Code::SnapshotBusy {
            busy.push(snapshot.id.clone());
        }
        first.get_or_insert(failure);
    }
    carry_over(backend, &set.members).await?;
    if let Some(failure) = first {
        return give_up(backend, context, operation, failed(busy), failure).await;
    }
    backend
        .journal
        .complete(operation, &backend.done(), async |conn| db::group_snapshot::destroy(conn, id).await)
        .await?;
    info!(group_snapshot.id = id, "group snapshot deleted");
    let gone = GroupSnapshot { status: "deleted".to_owned(), ..set.row };
    tell(backend, context, "delete.end", &gone, &[]).await;
    Ok(())
}
