//! Failover changes many rows at once: each function here is one statement for a whole set.
//!
//! Which volumes are replicated is Cinder's own split (reference replication.md 3.5): `disabled` and
//! `not-capable` are not, everything else is, NULL included. The statements may be repeated after a
//! crash: what an earlier run has moved is not moved again, and `previous_status` is not overwritten.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::displaced::settled;
use super::schema::{group_type_specs, groups, snapshots, volumes};
use super::volume::{CHUNK, VolumeRow};
use super::{Conn, InScope, fitting, now};
use crate::error::Result;
use crate::model::transition::{self, BEING_MADE_OR_DELETED, SnapshotEvent, VolumeEvent};
use crate::model::{ReplicationStatus, Scope, Volume};

/// Statuses of volumes that a failover leaves behind.
pub const NOT_REPLICATED: [&str; 2] = ["disabled", "not-capable"];

/// The volumes that a failover moves: everything but `disabled` and `not-capable`, NULL included.
///
/// # Errors
/// `Database`.
pub async fn replicated(conn: &mut Conn, scope: &Scope) -> Result<Vec<Volume>> {
    let rows: Vec<VolumeRow> = volumes::table
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .filter(volumes::replication_status.is_null().or(volumes::replication_status.ne_all(NOT_REPLICATED)))
        .select(VolumeRow::as_select())
        .order(volumes::id)
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(Volume::from).collect())
}

/// Volumes and snapshots that a set operation changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Changed {
    pub volumes: usize,
    pub snapshots: usize,
}

/// The volumes that stay behind when `scope` fails over to `target` go to `error`/`not-capable`, remembering
/// their status; their snapshots go to `error`. What is being made or deleted is left to its request.
///
/// # Errors
/// `Database`.
pub async fn mark_not_capable(conn: &mut Conn, scope: &Scope, target: &str) -> Result<Changed> {
    // Read first: the snapshots' statement must see the set that the volumes' statement changes.
    let ids: Vec<String> = volumes::table
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .filter(volumes::replication_status.eq_any(NOT_REPLICATED))
        .filter(sql::<Bool>(
            "NOT (volumes.status <=> 'error' AND volumes.replication_status = 'not-capable')",
        ))
        .filter(
            sql::<Bool>(
                "NOT EXISTS (SELECT 1 FROM scoria_strays t WHERE t.volume_id = volumes.id AND t.site = ",
            )
            .bind::<Text, _>(target)
            .sql(")"),
        )
        .filter(volumes::status.is_null().or(volumes::status.ne_all(BEING_MADE_OR_DELETED.to_vec())))
        .select(volumes::id)
        .for_update()
        .load(conn)
        .await?;
    lose(conn, &ids).await
}

/// These volumes are out of reach: `error`/`not-capable`, their status remembered in `previous_status`; their
/// snapshots go to `error`.
///
/// # Errors
/// `Database`.
pub async fn lose(conn: &mut Conn, ids: &[String]) -> Result<Changed> {
    let error = transition::volume(VolumeEvent::LostByFailover).to;
    let mut changed = Changed::default();
    for chunk in ids.chunks(CHUNK) {
        changed.volumes += diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .set((
                // MySQL assigns from left to right: the status is saved before it is replaced.
                volumes::previous_status.eq(volumes::status),
                error.map(|s| volumes::status.eq(s)),
                volumes::replication_status.eq(ReplicationStatus::NotCapable.as_str()),
                volumes::updated_at.eq(now()),
            ))
            .execute(conn)
            .await?;
        changed.snapshots += snapshots_of(conn, chunk, SnapshotEvent::LostByFailover).await?;
    }
    Ok(changed)
}

/// Failover of these volumes failed: `error`/`failover-error`, their status remembered, their
/// snapshots remembered and in `error`. A volume that an earlier try marked is left alone.
///
/// # Errors
/// `Database`.
pub async fn mark_failed(conn: &mut Conn, ids: &[String]) -> Result<Changed> {
    super::displaced::remember_snapshots(conn, ids).await?;
    let error = transition::volume(VolumeEvent::FailoverFailed).to;
    let failed = ReplicationStatus::FailoverError.as_str();
    let mut changed = Changed::default();
    for chunk in ids.chunks(CHUNK) {
        changed.volumes += diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .filter(
                sql::<Bool>("NOT (volumes.status <=> 'error' AND volumes.replication_status <=> ")
                    .bind::<Text, _>(failed)
                    .sql(")"),
            )
            .set((
                volumes::previous_status.eq(volumes::status),
                error.map(|s| volumes::status.eq(s)),
                volumes::replication_status.eq(failed),
                volumes::updated_at.eq(now()),
            ))
            .execute(conn)
            .await?;
        changed.snapshots += snapshots_of(conn, chunk, SnapshotEvent::LostByFailover).await?;
    }
    Ok(changed)
}

/// Gives these volumes a replication status and nothing else (`failed-over`, `enabled`,
/// `failover-error` for one that stays served from where it is).
///
/// # Errors
/// `Database`.
pub async fn set_replication_status(conn: &mut Conn, ids: &[String], to: ReplicationStatus) -> Result<usize> {
    let mut changed = 0;
    for chunk in ids.chunks(CHUNK) {
        changed += diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .set((volumes::replication_status.eq(to.as_str()), volumes::updated_at.eq(now())))
            .execute(conn)
            .await?;
    }
    Ok(changed)
}

/// Writes what an operator should know about these volumes' replication (`replication_extended_status`, cut
/// at 255 characters); `None` clears it.
///
/// # Errors
/// `Database`.
pub async fn set_extended_status(conn: &mut Conn, ids: &[String], text: Option<&str>) -> Result<()> {
    let text = text.map(|t| fitting(t, 255));
    for chunk in ids.chunks(CHUNK) {
        diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .set(volumes::replication_extended_status.eq(&text))
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// These volumes, which [`mark_failed`] or [`mark_not_capable`] had put into `error`, are back: they
/// get the status they had (`available` when none was remembered; if somebody was working on them then, what
/// he left) and `to`. Volumes in another status are left alone. Returns the number of volumes; snapshots are
/// [`super::displaced::recover_snapshots`]'s.
///
/// # Errors
/// `Database`.
pub async fn recover(conn: &mut Conn, ids: &[String], to: ReplicationStatus) -> Result<usize> {
    let from = transition::volume(VolumeEvent::Recovered).from;
    let mut changed = 0;
    for chunk in ids.chunks(CHUNK) {
        changed += diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .filter(volumes::status.eq_any(from.to_vec()))
            .set((
                volumes::status.eq(sql::<Nullable<Text>>(&settled(
                    "COALESCE(NULLIF(previous_status, 'error'), 'available')",
                    "volumes.id",
                ))),
                volumes::previous_status.eq(None::<String>),
                volumes::replication_status.eq(to.as_str()),
                volumes::updated_at.eq(now()),
            ))
            .execute(conn)
            .await?;
    }
    Ok(changed)
}

/// Lets `event` happen to every volume of `ids` whose status allows it, in one statement per thousand.
/// Returns how many changed; the caller decides whether fewer than asked is an error.
///
/// # Errors
/// `Database`.
pub async fn transition_many(
    conn: &mut Conn,
    ids: &[String],
    event: VolumeEvent,
    changes: &super::volume::VolumeChanges,
) -> Result<usize> {
    let arrow = transition::volume(event);
    let mut changed = 0;
    for chunk in ids.chunks(CHUNK) {
        let mut update = diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .into_boxed();
        if !arrow.from.is_empty() {
            update = update.filter(volumes::status.eq_any(arrow.from.to_vec()));
        }
        changed += update
            .set((arrow.to.map(|s| volumes::status.eq(s)), changes, volumes::updated_at.eq(now())))
            .execute(conn)
            .await?;
    }
    Ok(changed)
}

async fn snapshots_of(conn: &mut Conn, volume_ids: &[String], event: SnapshotEvent) -> Result<usize> {
    let arrow = transition::snapshot(event);
    let mut update = diesel::update(snapshots::table)
        .filter(snapshots::volume_id.eq_any(volume_ids))
        .filter(snapshots::deleted.eq(false))
        .into_boxed();
    if event == SnapshotEvent::LostByFailover {
        update = update
            .filter(snapshots::status.is_null().or(snapshots::status.ne_all(BEING_MADE_OR_DELETED.to_vec())));
    }
    if !arrow.from.is_empty() {
        update = update.filter(snapshots::status.eq_any(arrow.from.to_vec()));
    }
    Ok(update
        .set((arrow.to.map(|s| snapshots::status.eq(s)), snapshots::updated_at.eq(now())))
        .execute(conn)
        .await?)
}

/// A generic volume group, as far as replication concerns it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Group {
    pub id: String,
    pub status: Option<String>,
    pub replication_status: Option<String>,
}

/// The scope's groups whose type asks for replication (`group_replication_enabled` or
/// `consistent_group_replication_enabled`).
///
/// # Errors
/// `Database`.
pub async fn replicated_groups(conn: &mut Conn, scope: &Scope) -> Result<Vec<Group>> {
    let rows: Vec<(String, Option<String>, Option<String>)> = groups::table
        .inner_join(
            group_type_specs::table.on(group_type_specs::group_type_id.nullable().eq(groups::group_type_id)),
        )
        .filter(groups::deleted.eq(false))
        .filter(InScope::new("groups", scope))
        .filter(group_type_specs::deleted.eq(false))
        .filter(
            group_type_specs::key
                .eq_any(["group_replication_enabled", "consistent_group_replication_enabled"]),
        )
        .filter(group_type_specs::value.eq("<is> True"))
        .select((groups::id, groups::status, groups::replication_status))
        .distinct()
        .load(conn)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(id, status, replication_status)| Group { id, status, replication_status })
        .collect())
}

/// Gives groups a replication status, and `error` as their status when theirs failed.
///
/// # Errors
/// `Database`.
pub async fn set_group_status(conn: &mut Conn, ids: &[String], to: ReplicationStatus) -> Result<usize> {
    let status = match to {
        ReplicationStatus::Error | ReplicationStatus::FailoverError => Some("error"),
        ReplicationStatus::Enabled
        | ReplicationStatus::Disabled
        | ReplicationStatus::NotCapable
        | ReplicationStatus::FailingOver
        | ReplicationStatus::FailedOver
        | ReplicationStatus::Enabling
        | ReplicationStatus::Disabling => None,
    };
    Ok(diesel::update(groups::table)
        .filter(groups::id.eq_any(ids))
        .filter(groups::deleted.eq(false))
        .set((
            groups::replication_status.eq(to.as_str()),
            status.map(|s| groups::status.eq(s)),
            groups::updated_at.eq(now()),
        ))
        .execute(conn)
        .await?)
}
