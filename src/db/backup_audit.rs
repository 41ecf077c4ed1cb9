//! Rows of backups as an audit compares them with Ceph: whole sets, read at once.

use std::collections::{BTreeMap, HashMap};

use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::backup::BackupRow;
use super::schema::backups;
use super::volume::CHUNK;
use crate::error::Result;
use crate::model::Backup;

/// Where backups are, or were, by their rows.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct Stored {
    /// The registered site, by its fsid; `None`: the cluster of `backup_ceph_conf`.
    #[diesel(sql_type = Nullable<Text>)]
    pub site: Option<String>,
    /// The pool; `None`: where backups usually go.
    #[diesel(sql_type = Nullable<Text>)]
    pub pool: Option<String>,
}

/// The pools that backups by the Ceph driver, or by mirroring, are in, or were in when they were deleted.
///
/// # Errors
/// `Database`.
pub async fn stored(conn: &mut Conn) -> Result<Vec<Stored>> {
    Ok(diesel::sql_query(
        "SELECT DISTINCT IF(JSON_VALID(service_metadata), \
           JSON_UNQUOTE(JSON_EXTRACT(service_metadata, '$.site')), NULL) AS site, NULLIF(container, '') AS pool \
         FROM backups WHERE service LIKE '%ceph%' ORDER BY site, pool",
    )
    .load(conn)
    .await?)
}

/// Which of these backups there are rows of, and whether those are deleted.
///
/// # Errors
/// `Database`.
pub async fn deleted(conn: &mut Conn, ids: &[String]) -> Result<HashMap<String, bool>> {
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in ids.chunks(CHUNK) {
        let rows: Vec<(String, Option<bool>)> = backups::table
            .filter(backups::id.eq_any(chunk))
            .select((backups::id, backups::deleted))
            .load(conn)
            .await?;
        found.extend(rows.into_iter().map(|(id, deleted)| (id, deleted.unwrap_or(false))));
    }
    Ok(found)
}

/// All backups of these volumes that are not deleted, without their metadata.
///
/// # Errors
/// `Database`.
pub async fn of_volumes(conn: &mut Conn, volume_ids: &[String]) -> Result<Vec<Backup>> {
    let mut found = Vec::new();
    for chunk in volume_ids.chunks(CHUNK) {
        let rows: Vec<BackupRow> = backups::table
            .filter(backups::volume_id.eq_any(chunk))
            .filter(backups::deleted.eq(false))
            .select(BackupRow::as_select())
            .order(backups::id)
            .load(conn)
            .await?;
        found.extend(rows.into_iter().map(|row| row.into_model(BTreeMap::new())));
    }
    Ok(found)
}

/// The next backups after one of them, by their ids, whose data should be there, without their metadata.
///
/// # Errors
/// `Database`.
pub async fn whole_after(conn: &mut Conn, after: &str, count: i64) -> Result<Vec<Backup>> {
    let rows: Vec<BackupRow> = backups::table
        .filter(backups::id.gt(after))
        .filter(backups::deleted.eq(false))
        .filter(backups::status.eq_any(["available", "restoring"]))
        .select(BackupRow::as_select())
        .order(backups::id)
        .limit(count)
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|row| row.into_model(BTreeMap::new())).collect())
}
