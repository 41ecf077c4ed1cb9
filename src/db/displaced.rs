//! What a failover put into `error`, and how it was before.
//!
//! Upstream errors volumes that are not replicated and never restores them; and its `previous_status` is
//! overwritten by the next attempt. These rows keep the first truth, for volumes and snapshots, until a
//! failback restores it. The snapshots of replicated volumes that could not be moved are remembered here
//! too, until their volume comes back: one that was in `error` by itself must stay there. Sets, not loops:
//! a backend may have thousands.

use diesel::mysql::Mysql;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::volume::CHUNK;
use super::{Conn, scope_condition};
use crate::error::Result;
use crate::model::Scope;
use crate::model::transition::{
    BEING_MADE_OR_DELETED, INTERRUPTED_BROKEN, INTERRUPTED_WHOLE, SNAPSHOT_INTERRUPTED_WHOLE,
};

/// Remembers the volumes that a failover of `scope` to `target` leaves behind, and their snapshots, as they are
/// now. What was made on `target` during a former failover ([`others`]) is not left behind. What
/// is remembered already is left as it is, and what is being made or deleted to its request.
///
/// # Errors
/// `Database`.
pub async fn remember(conn: &mut Conn, scope: &Scope, target: &str) -> Result<()> {
    let (condition, binds) = scope_condition("v", scope);
    let busy = listed(BEING_MADE_OR_DELETED);
    let behind = format!(
        "v.deleted = 0 AND v.replication_status IN ('disabled', 'not-capable') AND {condition} \
         AND NOT EXISTS (SELECT 1 FROM scoria_strays t WHERE t.volume_id = v.id AND t.site = ?)"
    );
    let binds = [binds.as_slice(), &[target.to_owned()]].concat();
    let volumes = format!(
        "INSERT IGNORE INTO scoria_displaced (resource_type, resource_id, status, replication_status, recorded_at) \
         SELECT 'volume', v.id, v.status, v.replication_status, UTC_TIMESTAMP(6) FROM volumes v \
         WHERE {behind} AND NOT (v.status = 'error' AND v.replication_status = 'not-capable') \
         AND v.status NOT IN ({busy})"
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

/// Volumes of `scope` that are not replicated, were not left behind by a failover, and are nowhere else than where
/// their backend works: those that were made there after it. One in an error status may have failed before or during
/// the failover (`error_deleting`), with its image where it was: it is not counted.
///
/// # Errors
/// `Database`.
pub async fn others(conn: &mut Conn, scope: &Scope) -> Result<Vec<String>> {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        id: String,
    }
    let (condition, binds) = scope_condition("v", scope);
    let busy = listed(BEING_MADE_OR_DELETED);
    let mut query = diesel::sql_query(format!(
        "SELECT v.id FROM volumes v WHERE v.deleted = 0 AND v.status NOT LIKE 'error%' AND v.status NOT IN ({busy}) \
         AND v.replication_status IN ('disabled', 'not-capable') AND {condition} \
         AND NOT EXISTS (SELECT 1 FROM scoria_displaced d WHERE d.resource_type = 'volume' AND d.resource_id = v.id) \
         AND NOT EXISTS (SELECT 1 FROM scoria_strays s WHERE s.volume_id = v.id)"
    ))
    .into_boxed::<Mysql>();
    for bind in binds {
        query = query.bind::<Text, _>(bind);
    }
    Ok(query.load::<Row>(conn).await?.into_iter().map(|row| row.id).collect())
}

/// Remembers the snapshots of volumes that could not be moved, as they are before [`super::failover::mark_failed`]
/// errors them. What is in `error` already is left out: it was remembered by an earlier try, or is none of ours.
///
/// # Errors
/// `Database`.
pub async fn remember_snapshots(conn: &mut Conn, volume_ids: &[String]) -> Result<()> {
    // A row that is there, of a snapshot that is well, is left from something that an operator has repaired.
    run_for(
        conn,
        "INSERT INTO scoria_displaced (resource_type, resource_id, status, replication_status, recorded_at) \
         SELECT 'snapshot', s.id, s.status, NULL, UTC_TIMESTAMP(6) FROM snapshots s \
         WHERE s.deleted = 0 AND s.status <> 'error' AND s.volume_id IN",
        volume_ids,
        "ON DUPLICATE KEY UPDATE status = VALUES(status), recorded_at = VALUES(recorded_at)",
    )
    .await?;
    Ok(())
}

/// The volumes are back: those of their snapshots that a failover put into `error` get the status that they
/// had, or `available` if that was one of something under way, which is over by now. Returns how many.
///
/// # Errors
/// `Database`.
pub async fn recover_snapshots(conn: &mut Conn, volume_ids: &[String]) -> Result<usize> {
    let before = settled_snapshot("d.status");
    let recovered = run_for(
        conn,
        &format!(
            "UPDATE snapshots s JOIN scoria_displaced d ON d.resource_type = 'snapshot' AND d.resource_id = s.id \
             SET s.status = {before}, s.updated_at = UTC_TIMESTAMP() \
             WHERE s.deleted = 0 AND s.status = 'error' AND s.volume_id IN"
        ),
        volume_ids,
        "",
    )
    .await?;
    run_for(
        conn,
        "DELETE d FROM scoria_displaced d JOIN snapshots s ON d.resource_type = 'snapshot' AND d.resource_id = s.id \
         WHERE s.volume_id IN",
        volume_ids,
        "",
    )
    .await?;
    Ok(recovered)
}

/// Gives everything of `scope` that is remembered its status back, unless somebody has changed it since. Where
/// that was the status of a request under way, nobody would ever end it: it gets what such a request leaves.
/// Snapshots of a volume that could not be moved wait for their volume ([`recover_snapshots`]).
///
/// # Errors
/// `Database`.
pub async fn restore(conn: &mut Conn, scope: &Scope) -> Result<()> {
    let (condition, binds) = scope_condition("v", scope);
    let lost = "v.replication_status <=> 'failover-error'";
    let (volume, snapshot) = (settled("d.status", "v.id"), settled_snapshot("d.status"));
    let statements = [
        format!(
            "UPDATE snapshots s JOIN scoria_displaced d ON d.resource_type = 'snapshot' AND d.resource_id = s.id \
             JOIN volumes v ON v.id = s.volume_id SET s.status = {snapshot}, s.updated_at = UTC_TIMESTAMP() \
             WHERE s.deleted = 0 AND s.status = 'error' AND NOT ({lost}) AND {condition}"
        ),
        format!(
            "UPDATE volumes v JOIN scoria_displaced d ON d.resource_type = 'volume' AND d.resource_id = v.id \
             SET v.status = IF(v.status = 'error', {volume}, v.status), \
             v.replication_status = d.replication_status, v.previous_status = NULL, v.updated_at = UTC_TIMESTAMP() \
             WHERE v.deleted = 0 AND v.replication_status = 'not-capable' AND {condition}"
        ),
        format!(
            "DELETE d FROM scoria_displaced d JOIN snapshots s ON d.resource_type = 'snapshot' AND d.resource_id = s.id \
             JOIN volumes v ON v.id = s.volume_id WHERE NOT ({lost}) AND {condition}"
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

/// `statement (ids…) end`, in pieces.
async fn run_for(conn: &mut Conn, statement: &str, ids: &[String], end: &str) -> Result<usize> {
    let mut changed = 0;
    for chunk in ids.chunks(CHUNK) {
        let marks = vec!["?"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!("{statement} ({marks}) {end}")).into_boxed::<Mysql>();
        for id in chunk {
            query = query.bind::<Text, _>(id);
        }
        changed += query.execute(conn).await?;
    }
    Ok(changed)
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

async fn run(conn: &mut Conn, sql: String, binds: &[String]) -> Result<()> {
    let mut query = diesel::sql_query(sql).into_boxed::<Mysql>();
    for bind in binds {
        query = query.bind::<Text, _>(bind);
    }
    query.execute(conn).await?;
    Ok(())
}
