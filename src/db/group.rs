//! Generic volume groups and their snapshots: statuses of the group and, in one statement each, of its
//! members.
//!
//! Cinder writes a group's members one by one; a crash in between leaves a group that contradicts its
//! volumes. All functions here are meant for one transaction.

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::failover::Group;
use super::schema::{group_snapshots, group_volume_type_mapping, groups, snapshots, volumes};
use super::volume::{CHUNK, VolumeChanges, VolumeRow};
use super::{Conn, now};
use crate::error::Result;
use crate::model::transition::{self, GroupEvent, GroupSnapshotEvent, SnapshotEvent, VolumeEvent};
use crate::model::{self, ReplicationStatus, Volume};

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = groups, check_for_backend(Mysql))]
struct GroupRow {
    id: String,
    user_id: Option<String>,
    project_id: Option<String>,
    cluster_name: Option<String>,
    host: Option<String>,
    availability_zone: Option<String>,
    name: Option<String>,
    description: Option<String>,
    group_type_id: Option<String>,
    status: Option<String>,
    group_snapshot_id: Option<String>,
    source_group_id: Option<String>,
    replication_status: Option<String>,
    created_at: Option<NaiveDateTime>,
    updated_at: Option<NaiveDateTime>,
}

/// The group, without its volume types; `None` when deleted or unknown.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, id: &str) -> Result<Option<model::Group>> {
    let row: Option<GroupRow> = groups::table
        .filter(groups::id.eq(id))
        .filter(groups::deleted.eq(false))
        .select(GroupRow::as_select())
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(|row| model::Group {
        id: row.id,
        user_id: row.user_id,
        project_id: row.project_id,
        cluster_name: row.cluster_name,
        host: row.host,
        availability_zone: row.availability_zone,
        name: row.name,
        description: row.description,
        group_type_id: row.group_type_id,
        volume_type_ids: Vec::new(),
        status: row.status.unwrap_or_default(),
        group_snapshot_id: row.group_snapshot_id,
        source_group_id: row.source_group_id,
        replication_status: row.replication_status,
        created_at: row.created_at,
        updated_at: row.updated_at,
    }))
}

/// The volumes of the group, in the order of their ids.
///
/// # Errors
/// `Database`.
pub async fn volumes(conn: &mut Conn, id: &str) -> Result<Vec<Volume>> {
    let rows: Vec<VolumeRow> = volumes::table
        .filter(volumes::group_id.eq(id))
        .filter(volumes::deleted.eq(false))
        .select(VolumeRow::as_select())
        .order(volumes::id)
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(Volume::from).collect())
}

/// The group has come into being: [`GroupEvent::Created`], with the time and, in a Cinder cluster, the host
/// that it was made on. Returns false as [`transition()`] does.
///
/// # Errors
/// `Database`.
pub async fn created(conn: &mut Conn, id: &str, host: Option<&str>) -> Result<bool> {
    if !transition(conn, id, GroupEvent::Created, None).await? {
        return Ok(false);
    }
    diesel::update(groups::table)
        .filter(groups::id.eq(id))
        .set((groups::created_at.eq(now()), host.map(|h| groups::host.eq(h))))
        .execute(conn)
        .await?;
    Ok(true)
}

/// Puts those volumes of `ids` that are in one of `statuses` and in no other group into group `id`, or takes
/// them out of it. Returns how many there were.
///
/// # Errors
/// `Database`.
pub async fn move_volumes(
    conn: &mut Conn,
    id: &str,
    ids: &[String],
    statuses: &[&str],
    into: bool,
) -> Result<usize> {
    let group_id = into.then_some(id);
    let mut moved = 0;
    for chunk in ids.chunks(CHUNK) {
        moved += diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .filter(volumes::status.eq_any(statuses.to_vec()))
            .filter(volumes::group_id.is_null().or(volumes::group_id.eq(id)))
            .set((volumes::group_id.eq(group_id), volumes::updated_at.eq(now())))
            .execute(conn)
            .await?;
    }
    Ok(moved)
}

/// Soft-deletes the group with its volume types (`group_destroy`); `updated_at` stays. Its volumes are the
/// caller's. Returns false when it was deleted before.
///
/// # Errors
/// `Database`.
pub async fn destroy(conn: &mut Conn, id: &str) -> Result<bool> {
    let at = now();
    let matched = diesel::update(groups::table)
        .filter(groups::id.eq(id))
        .filter(groups::deleted.eq(false))
        .set((groups::status.eq("deleted"), groups::deleted_at.eq(at), groups::deleted.eq(true)))
        .execute(conn)
        .await?;
    diesel::update(group_volume_type_mapping::table)
        .filter(group_volume_type_mapping::group_id.eq(id))
        .filter(group_volume_type_mapping::deleted.eq(false))
        .set((group_volume_type_mapping::deleted.eq(true), group_volume_type_mapping::deleted_at.eq(at)))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// The group with its row locked until the transaction ends; `None` when deleted or unknown.
///
/// # Errors
/// `Database`.
pub async fn lock(conn: &mut Conn, id: &str) -> Result<Option<Group>> {
    let row: Option<(String, Option<String>, Option<String>)> = groups::table
        .filter(groups::id.eq(id))
        .filter(groups::deleted.eq(false))
        .select((groups::id, groups::status, groups::replication_status))
        .for_update()
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(|(id, status, replication_status)| Group { id, status, replication_status }))
}

/// Lets `event` happen to the group, with a new replication status if given. Returns false when it is gone or in a status that the event does not
/// expect: somebody has changed it meanwhile.
///
/// # Errors
/// `Database`.
pub async fn transition(
    conn: &mut Conn,
    id: &str,
    event: GroupEvent,
    replication: Option<ReplicationStatus>,
) -> Result<bool> {
    let arrow = transition::group(event);
    let mut update = diesel::update(groups::table)
        .filter(groups::id.eq(id))
        .filter(groups::deleted.eq(false))
        .into_boxed();
    if !arrow.from.is_empty() {
        update = update.filter(groups::status.eq_any(arrow.from.to_vec()));
    }
    let matched = update
        .set((
            arrow.to.map(|s| groups::status.eq(s)),
            replication.map(|r| groups::replication_status.eq(r.as_str())),
            groups::updated_at.eq(now()),
        ))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// As [`transition()`], for a snapshot of a group.
///
/// # Errors
/// `Database`.
pub async fn transition_snapshot(conn: &mut Conn, id: &str, event: GroupSnapshotEvent) -> Result<bool> {
    let arrow = transition::group_snapshot(event);
    let mut update = diesel::update(group_snapshots::table)
        .filter(group_snapshots::id.eq(id))
        .filter(group_snapshots::deleted.eq(false))
        .into_boxed();
    if !arrow.from.is_empty() {
        update = update.filter(group_snapshots::status.eq_any(arrow.from.to_vec()));
    }
    let matched = update
        .set((arrow.to.map(|s| group_snapshots::status.eq(s)), group_snapshots::updated_at.eq(now())))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// Lets `event` happen to every volume of the group whose status allows it, and, when given, whose
/// replication status is `replication`. Returns how many changed.
///
/// # Errors
/// `Database`.
pub async fn transition_volumes(
    conn: &mut Conn,
    group_id: &str,
    event: VolumeEvent,
    replication: Option<&str>,
    changes: &VolumeChanges,
) -> Result<usize> {
    let arrow = transition::volume(event);
    let mut update = diesel::update(volumes::table)
        .filter(volumes::group_id.eq(group_id))
        .filter(volumes::deleted.eq(false))
        .into_boxed::<Mysql>();
    if !arrow.from.is_empty() {
        update = update.filter(volumes::status.eq_any(arrow.from.to_vec()));
    }
    if let Some(status) = replication {
        update = update.filter(volumes::replication_status.eq(status));
    }
    Ok(update
        .set((arrow.to.map(|s| volumes::status.eq(s)), changes, volumes::updated_at.eq(now())))
        .execute(conn)
        .await?)
}

/// Lets `event` happen to every snapshot of the group snapshot whose status allows it. Returns how many
/// changed.
///
/// # Errors
/// `Database`.
pub async fn transition_snapshots(
    conn: &mut Conn,
    group_snapshot_id: &str,
    event: SnapshotEvent,
) -> Result<usize> {
    let arrow = transition::snapshot(event);
    let mut update = diesel::update(snapshots::table)
        .filter(snapshots::group_snapshot_id.eq(group_snapshot_id))
        .filter(snapshots::deleted.eq(false))
        .into_boxed::<Mysql>();
    if !arrow.from.is_empty() {
        update = update.filter(snapshots::status.eq_any(arrow.from.to_vec()));
    }
    Ok(update
        .set((arrow.to.map(|s| snapshots::status.eq(s)), snapshots::updated_at.eq(now())))
        .execute(conn)
        .await?)
}
