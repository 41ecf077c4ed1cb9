//! Replication of generic volume groups: the API has put the group and its members into a replication status
//! that nothing but the end of the request changes, so every end is conditional on it.
//!
//! What somebody else has changed meanwhile (a failover of the whole backend, an administrator) stays. All
//! functions here are meant for one transaction with the end of the operation.

use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::schema::{groups, volumes};
use super::volume::{CHUNK, VolumeChanges};
use super::{Conn, InScope, group, now, scope_condition};
use crate::error::Result;
use crate::model::{GroupEvent, ReplicationStatus, Scope};

/// Changes those volumes of `ids` that still wait in the replication status `waiting`. Returns how many did.
///
/// # Errors
/// `Database`.
pub async fn settle_volumes(
    conn: &mut Conn,
    ids: &[String],
    waiting: ReplicationStatus,
    changes: &VolumeChanges,
) -> Result<usize> {
    let mut changed = 0;
    for chunk in ids.chunks(CHUNK) {
        changed += diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .filter(volumes::replication_status.eq(waiting.as_str()))
            .set((changes, volumes::updated_at.eq(now())))
            .execute(conn)
            .await?;
    }
    Ok(changed)
}

/// Gives the group its replication status, and with [`GroupEvent::ReplicationFailed`] the status `error`, if it
/// still waits in `waiting`. Returns whether it did.
///
/// # Errors
/// `Database`.
pub async fn settle_group(
    conn: &mut Conn,
    id: &str,
    waiting: ReplicationStatus,
    event: GroupEvent,
    to: ReplicationStatus,
) -> Result<bool> {
    let found = group::lock(conn, id).await?;
    if found.and_then(|g| g.replication_status).as_deref() != Some(waiting.as_str()) {
        return Ok(false);
    }
    group::transition(conn, id, event, Some(to)).await
}

/// Mirrored members of groups whose replication failed: some may be on one site and some on another.
///
/// # Errors
/// `Database`.
pub async fn members_of_failed(conn: &mut Conn, scope: &Scope) -> Result<Vec<String>> {
    let error = ReplicationStatus::Error.as_str();
    Ok(volumes::table
        .inner_join(groups::table.on(groups::id.nullable().eq(volumes::group_id)))
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .filter(volumes::replication_driver_data.is_not_null())
        .filter(groups::deleted.eq(false))
        .filter(groups::replication_status.eq(error))
        .select(volumes::id)
        .order(volumes::id)
        .load(conn)
        .await?)
}

/// Groups whose failover had failed and whose members are all on one side again: they are as good as before.
///
/// # Errors
/// `Database`.
pub async fn reunite(conn: &mut Conn, scope: &Scope) -> Result<()> {
    let (condition, binds) = scope_condition("g", scope);
    let error = ReplicationStatus::Error.as_str();
    for status in [ReplicationStatus::Enabled, ReplicationStatus::FailedOver] {
        let status = status.as_str();
        let member = "SELECT 1 FROM volumes v WHERE v.group_id = g.id AND v.deleted = 0";
        let mut query = diesel::sql_query(format!(
            "UPDATE `groups` g SET g.status = IF(g.status = 'error', 'available', g.status), \
             g.replication_status = '{status}', g.updated_at = UTC_TIMESTAMP() \
             WHERE g.deleted = 0 AND g.replication_status = '{error}' AND EXISTS ({member}) \
             AND NOT EXISTS ({member} AND NOT (v.replication_status <=> '{status}')) AND {condition}"
        ))
        .into_boxed::<Mysql>();
        for bind in &binds {
            query = query.bind::<Text, _>(bind);
        }
        query.execute(conn).await?;
    }
    Ok(())
}
