//! Backups by the cluster that they are on: what has to be known of them, and done to their rows, before a site is
//! parted from the others or forgotten.
//!
//! A row names the site only where that is a registered one (`service_metadata`, `site`). Of all others the cluster has
//! to be asked.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::Conn;
use super::backup::BackupRow;
use super::schema::backups;
use super::volume::CHUNK;
use crate::error::Result;
use crate::model::Backup;

/// Backups by cinder-backup's Ceph driver that are on the cluster `fsid` by their rows, or do not say where they are; the
/// oldest first, without their metadata.
///
/// # Errors
/// `Database`.
pub async fn candidates(conn: &mut Conn, fsid: &str) -> Result<Vec<Backup>> {
    let rows: Vec<BackupRow> = backups::table
        .filter(backups::deleted.eq(false))
        .filter(backups::service.is_null().or(backups::service.like("%ceph%")))
        .filter(
            backups::service_metadata
                .is_null()
                .or(backups::service_metadata.not_like("%\"site\"%"))
                .or(backups::service_metadata.like(format!("%\"{fsid}\"%"))),
        )
        .select(BackupRow::as_select())
        .order((backups::created_at, backups::id))
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|row| row.into_model(BTreeMap::new())).collect())
}

/// Backups that are on the registered site `fsid` by their rows: id and GiB.
///
/// # Errors
/// `Database`.
pub async fn on_site(conn: &mut Conn, fsid: &str) -> Result<Vec<(String, i32)>> {
    let rows: Vec<(String, Option<i32>)> = backups::table
        .filter(backups::deleted.eq(false))
        .filter(backups::service_metadata.like(format!("%\"site\": \"{fsid}\"%")))
        .select((backups::id, backups::size))
        .order(backups::id)
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|(id, size)| (id, size.unwrap_or(0))).collect())
}

/// Backups that are being made, have not said yet where, and will go to the registered site of this name and fsid: by the
/// type of their volume (`backup:site`).
///
/// # Errors
/// `Database`.
pub async fn arriving(conn: &mut Conn, name: &str, fsid: &str) -> Result<Vec<String>> {
    #[derive(diesel::QueryableByName)]
    struct Id {
        #[diesel(sql_type = Text)]
        id: String,
    }
    let rows: Vec<Id> = diesel::sql_query(
        "SELECT b.id FROM backups b JOIN volumes v ON v.id = b.volume_id \
         JOIN volume_type_extra_specs s ON s.volume_type_id = v.volume_type_id AND s.deleted = 0 \
         AND s.`key` = 'backup:site' AND s.value IN (?, ?) \
         WHERE b.deleted = 0 AND b.status = 'creating' AND b.service_metadata IS NULL ORDER BY b.id",
    )
    .bind::<Text, _>(name)
    .bind::<Text, _>(fsid)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// What the rows of these backups say, deleted ones left out.
///
/// # Errors
/// `Database`.
pub async fn of_ids(conn: &mut Conn, ids: &[String]) -> Result<Vec<Backup>> {
    let mut found = Vec::with_capacity(ids.len());
    for chunk in ids.chunks(CHUNK) {
        let rows: Vec<BackupRow> = backups::table
            .filter(backups::id.eq_any(chunk))
            .filter(backups::deleted.eq(false))
            .select(BackupRow::as_select())
            .order(backups::id)
            .load(conn)
            .await?;
        found.extend(rows.into_iter().map(|row| row.into_model(BTreeMap::new())));
    }
    Ok(found)
}
