//! Links: pools of two Ceph clusters that mirroring connects, and how far connecting or disconnecting has come.
//!
//! The row is written before anything is done to a cluster, and goes after everything was undone: whatever is half
//! made has a row that says what was meant.

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::sql_types::{BigInt, Datetime, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::scope::scope_condition;
use crate::error::Result;
use crate::model::Scope;

/// A connected pool. The first cluster sends.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct LinkRow {
    /// The sending cluster.
    #[diesel(sql_type = Text)]
    pub fsid_a: String,
    /// The receiving cluster; with `rx-tx` both are both.
    #[diesel(sql_type = Text)]
    pub fsid_b: String,
    /// The pool, of the same name on both.
    #[diesel(sql_type = Text)]
    pub pool: String,
    /// `rx-only` or `rx-tx`.
    #[diesel(sql_type = Text)]
    pub way: String,
    /// `image` or `pool`.
    #[diesel(sql_type = Text)]
    pub mode: String,
    /// `bootstrap`, `manual` or `found`.
    #[diesel(sql_type = Text)]
    pub method: String,
    /// By whom the second reaches the first, without `client.`; `None`: nobody that Scoria has made.
    #[diesel(sql_type = Nullable<Text>)]
    pub client_a: Option<String>,
    /// By whom the first reaches the second.
    #[diesel(sql_type = Nullable<Text>)]
    pub client_b: Option<String>,
    /// Where images of the pool put their data.
    #[diesel(sql_type = Nullable<Text>)]
    pub data_pool: Option<String>,
    /// `connecting`, `connected` or `disconnecting`.
    #[diesel(sql_type = Text)]
    pub state: String,
    /// Pools that connecting has set out to make, JSON.
    #[diesel(sql_type = Text)]
    pub makes: String,
    /// What came of the canary, or what is left to do.
    #[diesel(sql_type = Nullable<Text>)]
    pub note: Option<String>,
    /// The operation that last worked on it.
    #[diesel(sql_type = BigInt)]
    pub operation_id: i64,
    /// UTC.
    #[diesel(sql_type = Datetime)]
    pub created_at: NaiveDateTime,
    /// UTC.
    #[diesel(sql_type = Datetime)]
    pub updated_at: NaiveDateTime,
}

const LINK: &str = "SELECT fsid_a, fsid_b, pool, way, mode, method, client_a, client_b, data_pool, state, makes, note, \
                    operation_id, created_at, updated_at FROM scoria_peer_links";

/// All links; of a cluster when one is named.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, fsid: Option<&str>) -> Result<Vec<LinkRow>> {
    Ok(diesel::sql_query(format!(
        "{LINK} WHERE (? IS NULL OR fsid_a = ? OR fsid_b = ?) ORDER BY fsid_a, fsid_b, pool"
    ))
    .bind::<Nullable<Text>, _>(fsid)
    .bind::<Nullable<Text>, _>(fsid)
    .bind::<Nullable<Text>, _>(fsid)
    .load(conn)
    .await?)
}

/// The links of two clusters, whichever sends, locked until the transaction ends.
///
/// # Errors
/// `Database`.
pub async fn lock(conn: &mut Conn, one: &str, other: &str) -> Result<Vec<LinkRow>> {
    Ok(diesel::sql_query(format!(
        "{LINK} WHERE (fsid_a = ? AND fsid_b = ?) OR (fsid_a = ? AND fsid_b = ?) ORDER BY pool FOR UPDATE"
    ))
    .bind::<Text, _>(one)
    .bind::<Text, _>(other)
    .bind::<Text, _>(other)
    .bind::<Text, _>(one)
    .load(conn)
    .await?)
}

/// Writes a link down, as it is now.
///
/// # Errors
/// `Database`.
pub async fn put(conn: &mut Conn, row: &LinkRow) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO scoria_peer_links (fsid_a, fsid_b, pool, way, mode, method, client_a, client_b, data_pool, state, \
         makes, note, operation_id, created_at, updated_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6)) \
         ON DUPLICATE KEY UPDATE way = VALUES(way), mode = VALUES(mode), method = VALUES(method), \
         client_a = VALUES(client_a), client_b = VALUES(client_b), data_pool = VALUES(data_pool), \
         state = VALUES(state), makes = VALUES(makes), note = VALUES(note), operation_id = VALUES(operation_id), \
         updated_at = VALUES(updated_at)",
    )
    .bind::<Text, _>(&row.fsid_a)
    .bind::<Text, _>(&row.fsid_b)
    .bind::<Text, _>(&row.pool)
    .bind::<Text, _>(&row.way)
    .bind::<Text, _>(&row.mode)
    .bind::<Text, _>(&row.method)
    .bind::<Nullable<Text>, _>(&row.client_a)
    .bind::<Nullable<Text>, _>(&row.client_b)
    .bind::<Nullable<Text>, _>(&row.data_pool)
    .bind::<Text, _>(&row.state)
    .bind::<Text, _>(&row.makes)
    .bind::<Nullable<Text>, _>(row.note.as_ref().map(|note| note.chars().take(1000).collect::<String>()))
    .bind::<BigInt, _>(row.operation_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets a link.
///
/// # Errors
/// `Database`.
pub async fn delete(conn: &mut Conn, row: &LinkRow) -> Result<()> {
    diesel::sql_query("DELETE FROM scoria_peer_links WHERE fsid_a = ? AND fsid_b = ? AND pool = ?")
        .bind::<Text, _>(&row.fsid_a)
        .bind::<Text, _>(&row.fsid_b)
        .bind::<Text, _>(&row.pool)
        .execute(conn)
        .await?;
    Ok(())
}

/// A volume whose image a link mirrors, as far as its row matters to that.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct Mirrored {
    /// Volume.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// Id in the image's name.
    #[diesel(sql_type = Text)]
    pub name_id: String,
    /// Its status.
    #[diesel(sql_type = Text)]
    pub status: String,
    /// `replication_status`.
    #[diesel(sql_type = Text)]
    pub replication_status: String,
    /// `replication_driver_data`.
    #[diesel(sql_type = Nullable<Text>)]
    pub driver_data: Option<String>,
    /// A backup of it runs, or is restored into it.
    #[diesel(sql_type = BigInt)]
    pub backups_running: i64,
}

/// The volumes whose images have one of these ids in their names, and those of `backends` (`host@backend`) that are
/// mirrored by their rows.
///
/// # Errors
/// `Database`.
pub async fn volumes(conn: &mut Conn, name_ids: &[String], backends: &[String]) -> Result<Vec<Mirrored>> {
    const SELECT: &str = "SELECT v.id, COALESCE(v._name_id, v.id) AS name_id, COALESCE(v.status, '') AS status, \
                          COALESCE(v.replication_status, '') AS replication_status, \
                          v.replication_driver_data AS driver_data, \
                          (SELECT COUNT(*) FROM backups b WHERE b.deleted = 0 \
                           AND b.status IN ('creating', 'restoring', 'deleting') \
                           AND (b.volume_id = v.id OR b.restore_volume_id = v.id)) AS backups_running \
                          FROM volumes v WHERE v.deleted = 0";
    let mut found: Vec<Mirrored> = Vec::new();
    for chunk in name_ids.chunks(500) {
        let marks = vec!["?"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!(
            "{SELECT} AND (v._name_id IN ({marks}) OR (v._name_id IS NULL AND v.id IN ({marks})))"
        ))
        .into_boxed::<Mysql>();
        for id in chunk.iter().chain(chunk) {
            query = query.bind::<Text, _>(id.clone());
        }
        found.extend(query.load::<Mirrored>(conn).await?);
    }
    for backend in backends {
        let (condition, binds) = scope_condition("v", &Scope::Host(backend.clone()));
        let mut query = diesel::sql_query(format!(
            "{SELECT} AND v.replication_status IN ('enabled', 'error', 'failed-over', 'failover-error', 'enabling', \
             'disabling', 'failing-over') AND {condition}"
        ))
        .into_boxed::<Mysql>();
        for bind in binds {
            query = query.bind::<Text, _>(bind);
        }
        found.extend(query.load::<Mirrored>(conn).await?);
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found.dedup_by(|a, b| a.id == b.id);
    Ok(found)
}

/// The name of the site that a backend works on: `default`, or a `backend_id`.
///
/// # Errors
/// `Database`.
pub async fn active_site(conn: &mut Conn, backend: &str) -> Result<String> {
    #[derive(diesel::QueryableByName)]
    struct Active {
        #[diesel(sql_type = Text)]
        site: String,
    }
    let rows: Vec<Active> = diesel::sql_query(
        "SELECT COALESCE(NULLIF(active_backend_id, ''), 'default') AS site FROM services \
         WHERE host = ? AND `binary` = 'cinder-volume' AND deleted = 0",
    )
    .bind::<Text, _>(backend)
    .load(conn)
    .await?;
    Ok(rows.into_iter().next().map_or_else(|| "default".to_owned(), |row| row.site))
}
