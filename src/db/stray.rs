//! Volumes that are served from another site than their backend's active one.
//!
//! A failover that cannot move a volume leaves it where it is primary (`failover-error`), and a group that is
//! failed over leaves its backend. Which site that is must survive a restart, and must be right for every
//! operation on the volume: one row each here.

use diesel::OptionalExtension;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::Conn;
use crate::error::Result;

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    volume_id: String,
    #[diesel(sql_type = Text)]
    site: String,
}

/// The site that serves a stray volume; `None` when it is where its backend is.
///
/// # Errors
/// `Database`.
pub async fn site_of(conn: &mut Conn, volume_id: &str) -> Result<Option<String>> {
    let row: Option<Row> = diesel::sql_query("SELECT volume_id, site FROM scoria_strays WHERE volume_id = ?")
        .bind::<Text, _>(volume_id)
        .get_result(conn)
        .await
        .optional()?;
    Ok(row.map(|r| r.site))
}

/// All strays of `ids`, as (volume id, site).
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, ids: &[String]) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for chunk in ids.chunks(500) {
        let marks = vec!["?"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!(
            "SELECT volume_id, site FROM scoria_strays WHERE volume_id IN ({marks})"
        ))
        .into_boxed::<diesel::mysql::Mysql>();
        for id in chunk {
            query = query.bind::<Text, _>(id);
        }
        let rows: Vec<Row> = query.load(conn).await?;
        found.extend(rows.into_iter().map(|r| (r.volume_id, r.site)));
    }
    Ok(found)
}

/// Records where volumes are served from now on.
///
/// # Errors
/// `Database`.
pub async fn record(conn: &mut Conn, ids: &[String], site: &str) -> Result<()> {
    for chunk in ids.chunks(500) {
        let marks = vec!["(?, ?, UTC_TIMESTAMP(6))"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!(
            "INSERT INTO scoria_strays (volume_id, site, recorded_at) VALUES {marks} \
             ON DUPLICATE KEY UPDATE site = VALUES(site), recorded_at = VALUES(recorded_at)"
        ))
        .into_boxed::<diesel::mysql::Mysql>();
        for id in chunk {
            query = query.bind::<Text, _>(id).bind::<Text, _>(site);
        }
        query.execute(conn).await?;
    }
    Ok(())
}

/// These volumes are where their backend is.
///
/// # Errors
/// `Database`.
pub async fn forget(conn: &mut Conn, ids: &[String]) -> Result<()> {
    for chunk in ids.chunks(500) {
        let marks = vec!["?"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!("DELETE FROM scoria_strays WHERE volume_id IN ({marks})"))
            .into_boxed::<diesel::mysql::Mysql>();
        for id in chunk {
            query = query.bind::<Text, _>(id);
        }
        query.execute(conn).await?;
    }
    Ok(())
}
