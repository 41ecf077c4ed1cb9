//! Which cluster each site of a backend is.
//!
//! Rows speak of sites by the names that a configuration file gives them; the file can be changed while nobody looks,
//! and the names then mean other clusters. What a name has meant is kept here, and changed by an adoption alone.

use std::collections::BTreeMap;

use diesel::OptionalExtension;
use diesel::mysql::Mysql;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use crate::error::Result;

/// A name and the cluster that it stands for.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct SiteRow {
    /// `default` or a `backend_id`.
    #[diesel(sql_type = Text)]
    pub site: String,
    /// The cluster.
    #[diesel(sql_type = Text)]
    pub fsid: String,
    /// The ceph.conf that led there.
    #[diesel(sql_type = Text)]
    pub conf: String,
    /// `None`: the name is in use. Else it is a former one, and this is the present one, or empty.
    #[diesel(sql_type = Nullable<Text>)]
    pub became: Option<String>,
}

/// What is known of a backend's sites.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// All names.
    pub rows: Vec<SiteRow>,
    /// The operation that was the last to adopt; 0: none.
    pub adoption: i64,
}

impl Known {
    /// The cluster that a name stands for.
    pub fn fsid(&self, site: &str) -> Option<&str> {
        self.rows.iter().find(|row| row.site == site).map(|row| row.fsid.as_str())
    }

    /// The same, of names that are in use.
    pub fn expected(&self, site: &str) -> Option<&str> {
        self.rows.iter().find(|row| row.site == site && row.became.is_none()).map(|row| row.fsid.as_str())
    }

    /// Former names, and what their sites are called now.
    pub fn former(&self) -> BTreeMap<String, String> {
        let named = self.rows.iter().filter_map(|row| Some((row.site.clone(), row.became.clone()?)));
        named.filter(|(_, now)| !now.is_empty()).collect()
    }
}

/// Reads what is known of `backend`'s sites.
///
/// # Errors
/// `Database`.
pub async fn known(conn: &mut Conn, backend: &str) -> Result<Known> {
    #[derive(diesel::QueryableByName)]
    struct Adoption {
        #[diesel(sql_type = BigInt)]
        operation_id: i64,
    }
    let adoption: Option<Adoption> =
        diesel::sql_query("SELECT operation_id FROM scoria_adoptions WHERE backend = ?")
            .bind::<Text, _>(backend)
            .get_result(conn)
            .await
            .optional()?;
    let rows = diesel::sql_query(
        "SELECT site, fsid, conf, became FROM scoria_backend_sites WHERE backend = ? ORDER BY site",
    )
    .bind::<Text, _>(backend)
    .load(conn)
    .await?;
    Ok(Known { rows, adoption: adoption.map_or(0, |a| a.operation_id) })
}

/// Whether an adoption has given the site that was called `former` the name `now`.
///
/// # Errors
/// `Database`.
pub async fn became(conn: &mut Conn, backend: &str, former: &str, now: &str) -> Result<bool> {
    Ok(known(conn, backend).await?.former().get(former).is_some_and(|name| name == now))
}

/// A site has said for the first time which cluster it is. What is known already stays.
///
/// # Errors
/// `Database`.
pub async fn learn(conn: &mut Conn, backend: &str, site: &str, fsid: &str, conf: &str) -> Result<()> {
    diesel::sql_query(
        "INSERT IGNORE INTO scoria_backend_sites (backend, site, fsid, conf, recorded_at) \
         VALUES (?, ?, ?, ?, UTC_TIMESTAMP(6))",
    )
    .bind::<Text, _>(backend)
    .bind::<Text, _>(site)
    .bind::<Text, _>(fsid)
    .bind::<Text, _>(conf)
    .execute(conn)
    .await?;
    Ok(())
}

/// From now on the names of `backend`'s sites are these, by the order of this operation.
///
/// # Errors
/// `Database`.
pub async fn replace(conn: &mut Conn, backend: &str, operation: i64, rows: &[SiteRow]) -> Result<()> {
    diesel::sql_query("DELETE FROM scoria_backend_sites WHERE backend = ?")
        .bind::<Text, _>(backend)
        .execute(conn)
        .await?;
    if !rows.is_empty() {
        let marks = vec!["(?, ?, ?, ?, ?, UTC_TIMESTAMP(6))"; rows.len()].join(", ");
        let mut query = diesel::sql_query(format!(
            "INSERT INTO scoria_backend_sites (backend, site, fsid, conf, became, recorded_at) VALUES {marks}"
        ))
        .into_boxed::<Mysql>();
        for row in rows {
            query = query
                .bind::<Text, _>(backend)
                .bind::<Text, _>(&row.site)
                .bind::<Text, _>(&row.fsid)
                .bind::<Text, _>(&row.conf)
                .bind::<Nullable<Text>, _>(&row.became);
        }
        query.execute(conn).await?;
    }
    diesel::sql_query(
        "INSERT INTO scoria_adoptions (backend, operation_id, adopted_at) VALUES (?, ?, UTC_TIMESTAMP(6)) \
         ON DUPLICATE KEY UPDATE operation_id = VALUES(operation_id), adopted_at = VALUES(adopted_at)",
    )
    .bind::<Text, _>(backend)
    .bind::<BigInt, _>(operation)
    .execute(conn)
    .await?;
    Ok(())
}
