//! `create_group_from_src`: a group whose volumes are clones of a group snapshot's members, or of another
//! group's volumes.
//!
//! All volumes or none: a group of which some volumes are missing is of no use, and upstream's calls it
//! `available`.

use std::collections::{BTreeSet, HashMap};

use chrono::Utc;
use futures::FutureExt;
use tracing::info;

use super::{AT_ONCE, Failed, at_once, give_up, host_here, is_unfinished, read, tell};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::{Group, Volume, VolumeEvent, VolumeType};
use crate::volume::crash;
use crate::volume::create::{self, Create};
use crate::volume::image::{Attempt, Place};
use crate::volume::source::Source;

/// Statuses of a source snapshot (`VALID_CREATE_GROUP_SRC_SNAP_STATUS`).
const SNAPSHOT_SERVES: &[&str] = &["available"];
/// Statuses of a source volume (`VALID_CREATE_GROUP_SRC_GROUP_STATUS`).
const VOLUME_SERVES: &[&str] = &["available"];

/// The arguments of [`create_from_source`].
#[derive(Debug, Clone, Default)]
pub struct FromSource {
    /// The new group; the API has made the rows of its volumes.
    pub group_id: String,
    /// The group snapshot to clone.
    pub group_snapshot_id: Option<String>,
    /// Or the group.
    pub source_group_id: Option<String>,
}

/// One new volume.
struct Member {
    volume: Volume,
    volume_type: VolumeType,
    source: Source,
    /// Its source volume has many writers.
    multiattach: bool,
}

/// Creates the group with all its volumes. One that is gone is a success.
///
/// # Errors
/// Only when nothing could be recorded, or when somebody else goes on with it.
pub async fn create_from_source(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: FromSource,
) -> Result<()> {
    let id = &request.group_id;
    let Some((group, volumes)) = read(backend, id).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    // Those of one that is taken up again were counted with the rows at the start.
    if !operation.is_adopted() {
        for volume in &volumes {
            backend.allocate(volume.host.as_deref(), i64::from(volume.size));
        }
    }
    crash::point("create_group_from_src:accepted");
    let _passage = backend.gate.pass().await;
    let attempt = if operation.is_adopted() { Attempt::Again } else { Attempt::First };
    let failure = match prepare(backend, context, &request, &group, &volumes).await {
        Ok(members) => match create::place(backend, operation).await {
            Ok(place) => {
                match Box::pin(build(backend, context, operation, &group, &members, &place, attempt)).await {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                }
            }
            // The site where the first attempt began is not configured any more.
            Err(failure) if failure.code() == Code::InvalidReplicationTarget => failure,
            Err(failure) => return Err(failure),
        },
        Err(failure) => failure,
    };
    if is_unfinished(&failure) {
        return Err(failure);
    }
    give_up(backend, context, operation, Failed::CreateFromSource(id.clone()), failure).await
}

/// What is to be made of what.
async fn prepare(
    backend: &Backend,
    context: &RequestContext,
    request: &FromSource,
    group: &Group,
    volumes: &[Volume],
) -> Result<Vec<Member>> {
    let (serving, types) = backend
        .db
        .read("sources of a group", async |conn| {
            let serving = sources(conn, request).await?;
            let mut types: HashMap<String, VolumeType> = HashMap::new();
            // A group has a few types, whatever the number of its volumes.
            for id in volumes.iter().map(|v| &v.volume_type_id).collect::<BTreeSet<_>>() {
                types.insert(id.clone(), db::volume_type::get(conn, id).await?);
            }
            Ok((serving, types))
        })
        .await?;
    let members = pair(volumes, &serving, &types)?;
    tell(backend, context, "create.start", group, volumes).await;
    backend.require_up()?;
    Ok(members)
}

/// The sources by their ids, each with whether it has many writers.
async fn sources(conn: &mut db::Conn, request: &FromSource) -> Result<HashMap<String, bool>> {
    let refuse = |what: &str, id: &str, status: &str, valid: &[&str]| {
        Error::new(
            Code::Invalid,
            format!(
                "Group {} cannot be created: {what} {id} is in status {status}, which is none of {}",
                request.group_id,
                valid.join(", ")
            ),
        )
    };
    let gone = |what: &str, id: &str| Error::new(Code::Invalid, format!("{what} {id} could not be found."));
    let mut found = HashMap::new();
    if let Some(id) = &request.group_snapshot_id {
        if db::group_snapshot::find(conn, id).await?.is_none() {
            return Err(gone("GroupSnapshot", id));
        }
        for snapshot in db::snapshot::list_for_group_snapshot(conn, id).await? {
            if !SNAPSHOT_SERVES.contains(&snapshot.status.as_str()) {
                return Err(refuse("snapshot", &snapshot.id, &snapshot.status, SNAPSHOT_SERVES));
            }
            found.insert(snapshot.id, false);
        }
    } else if let Some(id) = &request.source_group_id {
        if db::group::find(conn, id).await?.is_none() {
            return Err(gone("Group", id));
        }
        for volume in db::group::volumes(conn, id).await? {
            if !VOLUME_SERVES.contains(&volume.status.as_str()) {
                return Err(refuse("volume", &volume.id, &volume.status, VOLUME_SERVES));
            }
            found.insert(volume.id, volume.multiattach);
        }
    }
    Ok(found)
}

/// Each volume with its source, which must be one of those asked for.
fn pair(
    volumes: &[Volume],
    serving: &HashMap<String, bool>,
    types: &HashMap<String, VolumeType>,
) -> Result<Vec<Member>> {
    if volumes.is_empty() || volumes.len() != serving.len() {
        return Err(Error::new(Code::InvalidInput, "The volumes of the group do not match its source"));
    }
    volumes
        .iter()
        .map(|volume| {
            let source = Source::of(volume, &Create::default());
            let (multiattach, code) = match &source {
                Source::Snapshot(id) => (serving.get(id), Code::SnapshotNotFound),
                Source::Volume(id) => (serving.get(id), Code::VolumeNotFound),
                Source::Image(_) | Source::Backup(_) | Source::Raw => (None, Code::InvalidInput),
            };
            let (Some(multiattach), Some(volume_type)) = (multiattach, types.get(&volume.volume_type_id))
            else {
                return Err(Error::new(
                    code,
                    format!("The source of volume {} could not be found.", volume.id),
                ));
            };
            Ok(Member {
                volume: volume.clone(),
                volume_type: volume_type.clone(),
                source,
                multiattach: *multiattach,
            })
        })
        .collect()
}

/// Makes all images and records them; removes them again when one of them cannot be made.
async fn build(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group: &Group,
    members: &[Member],
    place: &Place,
    attempt: Attempt,
) -> Result<()> {
    // In one order, so that nobody who needs several of them waits for somebody who waits for him.
    let names: BTreeSet<String> = members.iter().filter_map(|m| m.source.lock()).collect();
    let mut held = Vec::with_capacity(names.len());
    for name in &names {
        held.push(backend.locks.lock(name).await);
    }
    let work = members.iter().map(|m| {
        create::make(backend, context, operation, &m.volume, &m.volume_type, &m.source, place, attempt)
    });
    let results = at_once(work.collect(), AT_ONCE).await;
    crash::point("create_group_from_src:images_created");
    let mut made = Vec::with_capacity(members.len());
    // Images of that name that were there before are somebody's, and stay.
    let (mut foreign, mut first) = (BTreeSet::new(), None);
    for (member, result) in members.iter().zip(results) {
        match result {
            Ok(changes) => made.push((member, changes)),
            Err(failure) if is_unfinished(&failure) => return Err(failure),
            Err(failure) => {
                if create::found_foreign(&failure) {
                    foreign.insert(member.volume.id.as_str());
                }
                first.get_or_insert(failure);
            }
        }
    }
    let failure = match first {
        Some(failure) => failure,
        None => match record(backend, context, operation, group, &made, place).await {
            Ok(()) => return Ok(()),
            Err(failure) if is_unfinished(&failure) => return Err(failure),
            Err(failure) => failure,
        },
    };
    let undoing = members.iter().map(|m| {
        let ours = !foreign.contains(m.volume.id.as_str());
        async move {
            if ours {
                create::undo(backend, &m.volume, place).await;
            }
        }
        .boxed()
    });
    at_once(undoing.collect(), AT_ONCE).await;
    Err(failure)
}

/// The group and all its volumes become `available`, in one transaction.
async fn record(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group: &Group,
    made: &[(&Member, VolumeChanges)],
    place: &Place,
) -> Result<()> {
    let uuid = backend.service()?.uuid;
    let host = host_here(backend, group);
    let after = backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            // Each volume has driver data and image metadata of its own.
            for (member, changes) in made {
                let volume = &member.volume;
                let mut changes = create::overtaken(conn, backend, volume, place, changes).await?;
                changes.launched_at = Some(Some(Utc::now().naive_utc()));
                changes.service_uuid = Some(Some(uuid.clone()));
                changes.shared_targets = Some(Some(false));
                if host.is_some() {
                    changes.host = Some(Some(create::host_here(backend, volume)));
                }
                if member.multiattach {
                    changes.multiattach = Some(true);
                }
                if let Some(from) = member.source.image_metadata(conn).await? {
                    db::volume::copy_glance_metadata(conn, from, &volume.id).await?;
                    changes.bootable = Some(true);
                }
                db::volume::transition(conn, &volume.id, VolumeEvent::Created, &changes).await?;
            }
            if !db::group::created(conn, &group.id, host.as_deref()).await? {
                let text = format!("Group {} was changed while it was created", group.id);
                return Err(Error::new(Code::Conflict, text));
            }
            let after = db::group::find(conn, &group.id).await?;
            Ok((after, db::group::volumes(conn, &group.id).await?))
        })
        .await?;
    info!(group.id = group.id, volumes = made.len(), "group created from its source");
    if let (Some(group), volumes) = after {
        tell(backend, context, "create.end", &group, &volumes).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn volume(id: &str, snapshot: Option<&str>, source: Option<&str>) -> Volume {
        Volume {
            id: id.to_owned(),
            snapshot_id: snapshot.map(str::to_owned),
            source_volid: source.map(str::to_owned),
            volume_type_id: "t".to_owned(),
            ..Volume::default()
        }
    }

    fn refused(volumes: &[Volume], serving: &[&str]) -> Option<Code> {
        let serving = serving.iter().map(|id| ((*id).to_owned(), false)).collect();
        let types = HashMap::from([("t".to_owned(), VolumeType::default())]);
        pair(volumes, &serving, &types).err().map(|e| e.code())
    }

    #[test]
    fn every_volume_needs_a_source_of_the_set() {
        let (a, b) = (volume("a", Some("s1"), None), volume("b", Some("s2"), None));
        assert_eq!(refused(&[a.clone(), b.clone()], &["s1", "s2"]), None);
        assert_eq!(refused(&[a.clone(), b.clone()], &["s1"]), Some(Code::InvalidInput));
        assert_eq!(refused(&[a, b], &["s1", "s3"]), Some(Code::SnapshotNotFound));
        assert_eq!(refused(&[volume("c", None, Some("v"))], &["w"]), Some(Code::VolumeNotFound));
        assert_eq!(refused(&[volume("d", None, None)], &["w"]), Some(Code::InvalidInput));
        assert_eq!(refused(&[], &[]), Some(Code::InvalidInput));
    }

    #[test]
    fn a_clone_of_a_volume_for_many_writers_is_one() {
        let serving = HashMap::from([("v".to_owned(), true)]);
        let types = HashMap::from([("t".to_owned(), VolumeType::default())]);
        let members = pair(&[volume("a", None, Some("v"))], &serving, &types).unwrap();
        assert!(members.iter().all(|m| m.multiattach));
    }
}
