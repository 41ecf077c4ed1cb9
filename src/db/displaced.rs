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

/// Remembers the volumes that a failover of `scope` leaves behind, and their snapshots, as they are now. What
/// is remembered already, or in `error` for another reason, is left as it is.
///
/// # Errors
/// `Database`.
pub async fn remember(conn: &mut Conn, scope: &Scope) -> Result<()> {
    let (condition, binds) = scope_condition("v", scope);
    let behind =
        format!("v.deleted = 0 AND v.replication_status IN ('disabled', 'not-capable') AND {condition}");
    let volumes = format!(
        "INSERT IGNORE INTO scoria_displaced (resource_type, resource_id, status, replication_status, recorded_at) \
         SELECT 'volume', v.id, v.status, v.replication_status, UTC_TIMESTAMP(6) FROM volumes v \
         WHERE {behind} AND v.status <> 'error'"
    );
    let snapshots = format!(
        "INSERT IGNORE INTO scoria_displaced (resource_type, resource_id, status, replication_status, recorded_at) \
         SELECT 'snapshot', s.id, s.status, NULL, UTC_TIMESTAMP(6) FROM snapshots s JOIN volumes v ON v.id = s.volume_id \
         WHERE s.deleted = 0 AND s.status <> 'error' AND {behind}"
    );
    for sql in [volumes, snapshots] {
        run(conn, sql, &binds).await?;
    }
    Ok(())
}

/// Gives everything of `scope` that is remembered its status back, unless somebody has changed it since.
///
/// # Errors
/// `Database`.
pub async fn restore(conn: &mut Conn, scope: &Scope) -> Result<()> {
    let (condition, binds) = scope_condition("v", scope);
    let statements = [
        format!(
            "UPDATE snapshots s JOIN scoria_displaced d ON d.resource_type = 'snapshot' AND d.resource_id = s.id \
             JOIN volumes v ON v.id = s.volume_id SET s.status = d.status, s.updated_at = UTC_TIMESTAMP() \
             WHERE s.deleted = 0 AND s.status = 'error' AND {condition}"
        ),
        format!(
            "UPDATE volumes v JOIN scoria_displaced d ON d.resource_type = 'volume' AND d.resource_id = v.id \
             SET v.status = d.status, v.replication_status = d.replication_status, v.previous_status = NULL, \
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

async fn run(conn: &mut Conn, sql: String, binds: &[String; 2]) -> Result<()> {
    diesel::sql_query(sql).bind::<Text, _>(&binds[0]).bind::<Text, _>(&binds[1]).execute(conn).await?;
    Ok(())
}
