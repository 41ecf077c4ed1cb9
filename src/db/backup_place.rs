//! Backups by the cluster that they are on: what has to be known of them, and done to their rows, before a site is
//! parted from the others or forgotten.
//!
//! A row names the site only where that is a registered one (`service_metadata`, `site`). Of all others the cluster has
//! to be asked.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::backup::BackupRow;
use super::schema::backups;
use super::site_use::BY_CONF;
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

/// A backup that has not said yet where it will be.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct Arriving {
    /// The backup.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// Its pool, if that is known.
    #[diesel(sql_type = Nullable<Text>)]
    pub pool: Option<String>,
}

/// Backups that are being made, have not said yet where, and will go to the site of this name and fsid: with the backup that
/// they continue; else by the type of their volume (`backup:site`); else by the service that makes them, or, before one is
/// chosen, by any that could (`scoria_site_uses`).
///
/// # Errors
/// `Database`.
pub async fn arriving(conn: &mut Conn, name: &str, fsid: &str) -> Result<Vec<Arriving>> {
    Ok(diesel::sql_query(
        "SELECT b.id, NULLIF(b.container, '') AS pool FROM backups b JOIN volumes v ON v.id = b.volume_id \
         LEFT JOIN backups p ON p.id = b.parent_id \
         LEFT JOIN volume_type_extra_specs s ON s.volume_type_id = v.volume_type_id AND s.deleted = 0 \
         AND s.`key` = 'backup:site' AND s.value <> '' \
         WHERE b.deleted = 0 AND b.status = 'creating' AND b.service_metadata IS NULL AND CASE \
         WHEN p.service_metadata LIKE '%\"site\"%' THEN p.service_metadata LIKE ? \
         WHEN p.id IS NULL AND s.value IS NOT NULL THEN s.value IN (?, ?) \
         ELSE EXISTS (SELECT 1 FROM scoria_site_uses u JOIN services h ON h.deleted = 0 \
         AND h.`binary` = 'cinder-backup' AND u.backend = CONCAT(h.host, '#backup') \
         WHERE u.fsid = ? AND (p.id IS NULL OR u.site = ?) AND (b.host IS NULL OR b.host = h.host)) END ORDER BY b.id",
    )
    .bind::<Text, _>(format!("%\"site\": \"{fsid}\"%"))
    .bind::<Text, _>(name)
    .bind::<Text, _>(fsid)
    .bind::<Text, _>(fsid)
    .bind::<Text, _>(BY_CONF)
    .load(conn)
    .await?)
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
