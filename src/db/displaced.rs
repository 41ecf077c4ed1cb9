//! What a failover put into `error` because it stayed behind, and how it was before.
//!
//! Upstream errors volumes that are not replicated and never restores them; and its `previous_status` is
//! overwritten by the next attempt. These rows keep the first truth, for volumes and snapshots, until a
//! failback restores it. Sets, not loops: a backend may have thousands.

use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::{Conn, scope_condition};
use crate::error::Result;
use crate::model::Scope;
use crate::model::transition::{
    BEING_MADE_OR_DELETED, INTERRUPTED_BROKEN, INTERRUPTED_WHOLE, SNAPSHOT_INTERRUPTED_WHOLE,
};

/// Remembers the volumes that a failover of `scope` leaves behind, and their snapshots, as they are now. What
/// is remembered already, or in `error` for another reason, is left as it is, and what is being made or
/// deleted to its request.
///
/// # Errors
/// `Database`.
pub async fn remember(conn: &mut Conn, scope: &Scope) -> Result<()> {
    let (condition, binds) = scope_condition("v", scope);
    let busy = listed(BEING_MADE_OR_DELETED);
    let behind =
        format!("v.deleted = 0 AND v.replication_status IN ('disabled', 'not-capable') AND {condition}");
    let volumes = format!(
        "INSERT IGNORE INTO scoria_displaced (resource_type, resource_id, status, replication_status, recorded_at) \
         SELECT 'volume', v.id, v.status, v.replication_status, UTC_TIMESTAMP(6) FROM volumes v \
         WHERE {behind} AND v.status <> 'error' AND v.status NOT IN ({busy})"
    );
    let snapshots = format!(
        "INSERT IGNORE INTO scoria_displaced (resource_type, resource_id, status, replication_status, recorded_at) \
         SELECT 'snapshot', s.id, s.status, NULL, UTC_TIMESTAMP(6) FROM snapshots s JOIN volumes v ON v.id = s.volume_id \
         WHERE s.deleted = 0 AND s.status <> 'error' AND s.status NOT IN ({busy}) \
         AND v.status NOT IN ({busy}) AND {behind}"
    );
    for sql in [volumes, snapshots] {
        run(conn, sql, &binds).await?;
    }
    Ok(())
}

/// Gives everything of `scope` that is remembered its status back, unless somebody has changed it since. Where
/// that was the status of a request under way, nobody would ever end it: it gets what such a request leaves.
///
/// # Errors
/// `Database`.
pub async fn restore(conn: &mut Conn, scope: &Scope) -> Result<()> {
    let (condition, binds) = scope_condition("v", scope);
    let (volume, snapshot) = (settled("d.status", "v.id"), settled_snapshot("d.status"));
    let statements = [
        format!(
            "UPDATE snapshots s JOIN scoria_displaced d ON d.resource_type = 'snapshot' AND d.resource_id = s.id \
             JOIN volumes v ON v.id = s.volume_id SET s.status = {snapshot}, s.updated_at = UTC_TIMESTAMP() \
             WHERE s.deleted = 0 AND s.status = 'error' AND {condition}"
        ),
        format!(
            "UPDATE volumes v JOIN scoria_displaced d ON d.resource_type = 'volume' AND d.resource_id = v.id \
             SET v.status = {volume}, v.replication_status = d.replication_status, v.previous_status = NULL, \
             v.updated_at = UTC_TIMESTAMP() \
             WHERE v.deleted = 0 AND v.status = 'error' AND v.replication_status = 'not-capable' AND {condition}"
        ),
        format!(
            "DELETE d FROM scoria_displaced d JOIN snapshots s ON d.resource_type = 'snapshot' AND d.resource_id = s.id \
             JOIN volumes v ON v.id = s.volume_id WHERE {condition}"
        ),
        format!(
            "DELETE d FROM scoria_displaced d JOIN volumes v ON d.resource_type = 'volume' AND d.resource_id = v.id \
             WHERE {condition}"
        ),
    ];
    for sql in statements {
        run(conn, sql, &binds).await?;
    }
    Ok(())
}

/// SQL: the status of a volume that had `status` when a failover interrupted whoever worked on it.
pub(super) fn settled(status: &str, volume_id: &str) -> String {
    let (whole, broken) = (listed(INTERRUPTED_WHOLE), listed(INTERRUPTED_BROKEN));
    format!(
        "CASE WHEN {status} IN ({whole}) THEN IF(EXISTS (SELECT 1 FROM volume_attachment a \
         WHERE a.volume_id = {volume_id} AND a.deleted = 0 AND a.attach_status = 'attached'), 'in-use', 'available') \
         WHEN {status} IN ({broken}) THEN 'error' ELSE {status} END"
    )
}

fn settled_snapshot(status: &str) -> String {
    let (whole, broken) = (listed(SNAPSHOT_INTERRUPTED_WHOLE), listed(BEING_MADE_OR_DELETED));
    format!(
        "CASE WHEN {status} IN ({whole}) THEN 'available' WHEN {status} IN ({broken}) THEN 'error' \
         ELSE {status} END"
    )
}

/// Statuses of our own tables as a list of SQL texts.
fn listed(statuses: &[&str]) -> String {
    statuses.iter().map(|s| format!("'{s}'")).collect::<Vec<_>>().join(", ")
}

async fn run(conn: &mut Conn, sql: String, binds: &[String; 2]) -> Result<()> {
    diesel::sql_query(sql).bind::<Text, _>(&binds[0]).bind::<Text, _>(&binds[1]).execute(conn).await?;
    Ok(())
}
