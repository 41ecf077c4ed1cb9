//! Generic volume groups and their snapshots: statuses of the group and, in one statement each, of its
//! members.
//!
//! Cinder writes a group's members one by one; a crash in between leaves a group that contradicts its
//! volumes. All functions here are meant for one transaction.

use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::failover::Group;
use super::schema::{group_snapshots, groups, snapshots, volumes};
use super::volume::VolumeChanges;
use super::{Conn, now};
use crate::error::Result;
use crate::model::ReplicationStatus;
use crate::model::transition::{self, GroupEvent, GroupSnapshotEvent, SnapshotEvent, VolumeEvent};

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
