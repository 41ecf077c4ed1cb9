//! Which backends, and which backup services, work with which Ceph cluster: what keeps a site from being forgotten, says
//! in which pools its client has to work, and where a backup goes that has not begun yet.

use diesel::mysql::Mysql;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use crate::error::Result;

/// What the rows of a backup service have after its host, as the scope of its operations in the journal.
pub const BACKUP: &str = "#backup";
/// What a backup service calls the cluster of `backup_ceph_conf`.
pub const BY_CONF: &str = "backup_ceph_conf";
/// What it calls the registered site of `backup_site`.
pub const BY_SITE: &str = "backup_site";

/// A backend that works with a site, or a backup service whose backups go there.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct UseRow {
    /// `host@backend`, or `host#backup`.
    #[diesel(sql_type = Text)]
    pub backend: String,
    /// What it is called there: `default` or a `backend_id`; [`BY_CONF`] or [`BY_SITE`].
    #[diesel(sql_type = Text)]
    pub site: String,
    /// The cluster.
    #[diesel(sql_type = Text)]
    pub fsid: String,
    /// Pool of the backend, or of the backups.
    #[diesel(sql_type = Text)]
    pub pool: String,
    /// cephx user without `client.`.
    #[diesel(sql_type = Nullable<Text>)]
    pub client: Option<String>,
}

/// The backends and backup services that work with a site (`None`: with any), as far as they have a service.
///
/// # Errors
/// `Database`.
pub async fn of(conn: &mut Conn, fsid: Option<&str>) -> Result<Vec<UseRow>> {
    Ok(diesel::sql_query(
        "SELECT u.backend, u.site, u.fsid, u.pool, u.client FROM scoria_site_uses u WHERE (? IS NULL OR u.fsid = ?) \
         AND EXISTS (SELECT 1 FROM services s WHERE s.deleted = 0 \
         AND (s.host, s.`binary`) IN ((u.backend, 'cinder-volume'), \
         (IF(u.backend LIKE '%#backup', SUBSTRING_INDEX(u.backend, '#', 1), NULL), 'cinder-backup'))) \
         ORDER BY u.backend LIKE '%#backup', u.backend, u.site",
    )
    .bind::<Nullable<Text>, _>(fsid)
    .bind::<Nullable<Text>, _>(fsid)
    .load(conn)
    .await?)
}

/// Writes down that a backend works with a site.
///
/// # Errors
/// `Database`.
pub async fn put(conn: &mut Conn, row: &UseRow) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO scoria_site_uses (backend, site, fsid, pool, client, recorded_at) \
         VALUES (?, ?, ?, ?, ?, UTC_TIMESTAMP(6)) ON DUPLICATE KEY UPDATE fsid = VALUES(fsid), \
         pool = VALUES(pool), client = VALUES(client), recorded_at = VALUES(recorded_at)",
    )
    .bind::<Text, _>(&row.backend)
    .bind::<Text, _>(&row.site)
    .bind::<Text, _>(&row.fsid)
    .bind::<Text, _>(&row.pool)
    .bind::<Nullable<Text>, _>(&row.client)
    .execute(conn)
    .await?;
    Ok(())
}

/// A backend works with these sites only: what its configuration names no more is forgotten.
///
/// # Errors
/// `Database`.
pub async fn only(conn: &mut Conn, backend: &str, sites: &[String]) -> Result<()> {
    let marks = vec!["?"; sites.len().max(1)].join(",");
    let mut query = diesel::sql_query(format!(
        "DELETE FROM scoria_site_uses WHERE backend = ? AND site NOT IN ({marks})"
    ))
    .into_boxed::<Mysql>()
    .bind::<Text, _>(backend);
    if sites.is_empty() {
        query = query.bind::<Text, _>("");
    }
    for site in sites {
        query = query.bind::<Text, _>(site);
    }
    query.execute(conn).await?;
    Ok(())
}
