//! What the backup service does to the `backups` table, and to volumes that it fills.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backup::{self, BackupRow};
use super::schema::{backup_metadata, backups, volume_metadata, volumes};
use super::{Conn, fitting, now};
use crate::error::Result;
use crate::model::Backup;
use crate::model::transition::{self, BackupEvent};

/// Characters that `fail_reason`, `service_metadata` and names hold.
const TEXT: usize = 255;

/// New values of a backup's columns other than `status`. `None` leaves a column alone, `Some(None)` makes it NULL.
#[derive(Debug, Clone, Default, PartialEq, AsChangeset)]
#[diesel(table_name = backups)]
#[allow(missing_docs)]
pub struct BackupChanges {
    pub volume_id: Option<String>,
    pub host: Option<Option<String>>,
    pub availability_zone: Option<Option<String>>,
    pub container: Option<Option<String>>,
    pub parent_id: Option<Option<String>>,
    pub fail_reason: Option<Option<String>>,
    pub size: Option<i32>,
    pub display_name: Option<Option<String>>,
    pub display_description: Option<Option<String>>,
    pub service: Option<Option<String>>,
    pub service_metadata: Option<Option<String>>,
    pub object_count: Option<i32>,
    pub temp_volume_id: Option<Option<String>>,
    pub num_dependent_backups: Option<i32>,
    pub snapshot_id: Option<Option<String>>,
    pub encryption_key_id: Option<Option<String>>,
    pub restore_volume_id: Option<Option<String>>,
}

impl BackupChanges {
    /// Why something failed.
    pub fn because(reason: &str) -> BackupChanges {
        BackupChanges { fail_reason: Some(Some(fitting(reason, TEXT))), ..BackupChanges::default() }
    }
}

/// Lets `event` happen to the backup. Returns false when it is gone, or in a status that the event does not expect:
/// then nothing is written.
///
/// # Errors
/// `Database`.
pub async fn transition(
    conn: &mut Conn,
    id: &str,
    event: BackupEvent,
    changes: &BackupChanges,
) -> Result<bool> {
    let arrow = transition::backup(event);
    let matched = diesel::update(backups::table)
        .filter(backups::id.eq(id))
        .filter(backups::deleted.eq(false))
        .filter(backups::status.eq_any(arrow.from.to_vec()))
        .set((arrow.to.map(|s| backups::status.eq(s)), changes, backups::updated_at.eq(now())))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// Writes columns other than `status`. Returns false when the backup is gone.
///
/// # Errors
/// `Database`.
pub async fn update(conn: &mut Conn, id: &str, changes: &BackupChanges) -> Result<bool> {
    let matched = diesel::update(backups::table)
        .filter(backups::id.eq(id))
        .filter(backups::deleted.eq(false))
        .set((changes, backups::updated_at.eq(now())))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// Sets the status that an administrator asks for (`reset_status`), whatever it is.
///
/// # Errors
/// `Database`.
pub async fn reset(conn: &mut Conn, id: &str, status: &str) -> Result<bool> {
    let matched = diesel::update(backups::table)
        .filter(backups::id.eq(id))
        .filter(backups::deleted.eq(false))
        .set((backups::status.eq(status), backups::updated_at.eq(now())))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// The parent has one more incremental backup (`backup_add_dependent`), or one less, never below zero
/// (`backup_remove_dependent`).
///
/// # Errors
/// `Database`.
pub async fn count_dependent(conn: &mut Conn, parent_id: &str, more: bool) -> Result<()> {
    use diesel::sql_types::Text;
    let change = if more {
        "COALESCE(num_dependent_backups, 0) + 1"
    } else {
        "GREATEST(COALESCE(num_dependent_backups, 0) - 1, 0)"
    };
    diesel::sql_query(format!(
        "UPDATE backups SET num_dependent_backups = {change}, updated_at = UTC_TIMESTAMP() \
         WHERE id = ? AND deleted = 0"
    ))
    .bind::<Text, _>(parent_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Soft-deletes the backup and its metadata (`backup_destroy`): `updated_at` stays. False when it was gone.
///
/// # Errors
/// `Database`.
pub async fn destroy(conn: &mut Conn, id: &str) -> Result<bool> {
    let at = now();
    let matched = diesel::update(backups::table)
        .filter(backups::id.eq(id))
        .filter(backups::deleted.eq(false))
        .set((
            backups::status.eq("deleted"),
            backups::encryption_key_id.eq(None::<String>),
            backups::deleted_at.eq(at),
            backups::deleted.eq(true),
        ))
        .execute(conn)
        .await?;
    diesel::update(backup_metadata::table)
        .filter(backup_metadata::backup_id.eq(id))
        .filter(backup_metadata::deleted.eq(false))
        .set(backup_metadata::deleted.eq(true))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// Backups of a host in one of these statuses, without their metadata.
///
/// # Errors
/// `Database`.
pub async fn of_host(conn: &mut Conn, host: &str, statuses: &[&str]) -> Result<Vec<Backup>> {
    let rows: Vec<BackupRow> = backups::table
        .filter(backups::host.eq(host))
        .filter(backups::deleted.eq(false))
        .filter(backups::status.eq_any(statuses.to_vec()))
        .select(BackupRow::as_select())
        .order(backups::created_at)
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|row| row.into_model(BTreeMap::new())).collect())
}

/// All backups, or those of a volume, the oldest first, without their metadata.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, volume_id: Option<&str>) -> Result<Vec<Backup>> {
    let mut query = backups::table
        .filter(backups::deleted.eq(false))
        .select(BackupRow::as_select())
        .order((backups::created_at, backups::id))
        .into_boxed();
    if let Some(id) = volume_id {
        query = query.filter(backups::volume_id.eq(id));
    }
    let rows: Vec<BackupRow> = query.load(conn).await?;
    Ok(rows.into_iter().map(|row| row.into_model(BTreeMap::new())).collect())
}

/// All backups of these volumes, without their metadata.
///
/// # Errors
/// `Database`.
pub async fn of_volumes(conn: &mut Conn, ids: &[String]) -> Result<Vec<Backup>> {
    let rows: Vec<BackupRow> = backups::table
        .filter(backups::volume_id.eq_any(ids))
        .filter(backups::deleted.eq(false))
        .select(BackupRow::as_select())
        .order((backups::created_at, backups::id))
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|row| row.into_model(BTreeMap::new())).collect())
}

/// From which snapshots backups of a volume were made, as (backup, snapshot).
///
/// # Errors
/// `Database`.
pub async fn snapshots_of(conn: &mut Conn, volume_id: &str) -> Result<Vec<(String, String)>> {
    let rows: Vec<(String, Option<String>)> = backups::table
        .filter(backups::volume_id.eq(volume_id))
        .filter(backups::deleted.eq(false))
        .filter(backups::snapshot_id.is_not_null())
        .select((backups::id, backups::snapshot_id))
        .load(conn)
        .await?;
    Ok(rows.into_iter().filter_map(|(id, snapshot)| Some((id, snapshot?))).collect())
}

/// Whether another backup of the volume itself (of the snapshot, when one is named) is being made: what has the status
/// `backing-up` has it for that one.
///
/// # Errors
/// `Database`.
pub async fn is_another_made(
    conn: &mut Conn,
    volume_id: &str,
    snapshot_id: Option<&str>,
    except: &str,
) -> Result<bool> {
    let query = backups::table
        .filter(backups::volume_id.eq(volume_id))
        .filter(backups::id.ne(except))
        .filter(backups::deleted.eq(false))
        .filter(backups::status.eq("creating"))
        .count();
    let count: i64 = match snapshot_id {
        Some(id) => query.filter(backups::snapshot_id.eq(id)).get_result(conn).await?,
        None => query.filter(backups::snapshot_id.is_null()).get_result(conn).await?,
    };
    Ok(count > 0)
}

/// The parent of a backup, deleted or not, and the deleted row of a backup: for what is told of it at its end.
///
/// # Errors
/// `BackupNotFound` when there never was one; `Database`.
pub async fn get_deleted(conn: &mut Conn, id: &str) -> Result<Backup> {
    match find_deleted(conn, id).await? {
        Some(found) => Ok(found),
        None => backup::get(conn, id).await,
    }
}

/// The same, `None` when there never was one.
///
/// # Errors
/// `Database`.
pub async fn find_deleted(conn: &mut Conn, id: &str) -> Result<Option<Backup>> {
    let row: Option<BackupRow> = backups::table
        .filter(backups::id.eq(id))
        .select(BackupRow::as_select())
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(|row| row.into_model(BTreeMap::new())))
}

/// Gives a volume the name and description of a backed up one.
///
/// # Errors
/// `Database`.
pub async fn name_volume(
    conn: &mut Conn,
    volume_id: &str,
    name: Option<&str>,
    description: Option<&str>,
) -> Result<()> {
    diesel::update(volumes::table)
        .filter(volumes::id.eq(volume_id))
        .filter(volumes::deleted.eq(false))
        .set((
            volumes::display_name.eq(name.map(|text| fitting(text, TEXT))),
            volumes::display_description.eq(description.map(|text| fitting(text, TEXT))),
            volumes::updated_at.eq(now()),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Sets keys of a volume's metadata; with `replace` it has no others afterwards (`volume_metadata_update`).
///
/// # Errors
/// `Database`.
pub async fn set_volume_metadata(
    conn: &mut Conn,
    volume_id: &str,
    metadata: &BTreeMap<String, String>,
    replace: bool,
) -> Result<()> {
    let at = now();
    let mut former = diesel::update(volume_metadata::table)
        .filter(volume_metadata::volume_id.eq(volume_id))
        .filter(volume_metadata::deleted.eq(false))
        .into_boxed();
    if !replace {
        let keys: Vec<&str> = metadata.keys().map(String::as_str).collect();
        former = former.filter(volume_metadata::key.eq_any(keys));
    }
    former.set((volume_metadata::deleted.eq(true), volume_metadata::deleted_at.eq(at))).execute(conn).await?;
    let rows: Vec<_> = metadata
        .iter()
        .map(|(key, value)| {
            (
                volume_metadata::volume_id.eq(volume_id),
                volume_metadata::key.eq(fitting(key, TEXT)),
                volume_metadata::value.eq(fitting(value, TEXT)),
                volume_metadata::deleted.eq(false),
                volume_metadata::created_at.eq(at),
            )
        })
        .collect();
    if !rows.is_empty() {
        diesel::insert_into(volume_metadata::table).values(&rows).execute(conn).await?;
    }
    Ok(())
}
