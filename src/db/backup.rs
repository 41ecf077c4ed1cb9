//! The `backups` table, as far as the volume service has a part in it: it provides what a backup is made
//! from, and begins the restoration of a backup into a volume that it creates. What the backup service does to it is
//! in [`super::backup_work`].

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;

use super::schema::{backup_metadata, backups, services};
use super::{Conn, fitting, now, stray, volume};
use crate::error::{Code, Error, Result};
use crate::model::transition::{self, BackupEvent};
use crate::model::{Backup, Volume};

/// Characters that `fail_reason` holds.
const REASON: usize = 255;
/// `services.binary` of those who make and restore backups.
const BINARY: &str = "cinder-backup";

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = backups, check_for_backend(Mysql))]
pub(super) struct BackupRow {
    id: String,
    user_id: Option<String>,
    project_id: Option<String>,
    volume_id: String,
    host: Option<String>,
    availability_zone: Option<String>,
    container: Option<String>,
    parent_id: Option<String>,
    status: Option<String>,
    fail_reason: Option<String>,
    size: Option<i32>,
    display_name: Option<String>,
    display_description: Option<String>,
    service_metadata: Option<String>,
    service: Option<String>,
    object_count: Option<i32>,
    temp_volume_id: Option<String>,
    temp_snapshot_id: Option<String>,
    num_dependent_backups: Option<i32>,
    snapshot_id: Option<String>,
    data_timestamp: Option<NaiveDateTime>,
    restore_volume_id: Option<String>,
    encryption_key_id: Option<String>,
    created_at: Option<NaiveDateTime>,
    updated_at: Option<NaiveDateTime>,
}

impl BackupRow {
    pub(super) fn into_model(self, metadata: BTreeMap<String, String>) -> Backup {
        Backup {
            id: self.id,
            user_id: self.user_id,
            project_id: self.project_id,
            volume_id: self.volume_id,
            host: self.host,
            availability_zone: self.availability_zone,
            container: self.container,
            parent_id: self.parent_id,
            status: self.status.unwrap_or_default(),
            fail_reason: self.fail_reason,
            size: self.size.unwrap_or(0),
            display_name: self.display_name,
            display_description: self.display_description,
            service_metadata: self.service_metadata,
            service: self.service,
            object_count: self.object_count.unwrap_or(0),
            temp_volume_id: self.temp_volume_id,
            temp_snapshot_id: self.temp_snapshot_id,
            num_dependent_backups: self.num_dependent_backups.unwrap_or(0),
            snapshot_id: self.snapshot_id,
            data_timestamp: self.data_timestamp,
            restore_volume_id: self.restore_volume_id,
            encryption_key_id: self.encryption_key_id,
            created_at: self.created_at,
            updated_at: self.updated_at,
            metadata,
        }
    }
}

/// The backup, unless deleted.
///
/// # Errors
/// `BackupNotFound`.
pub async fn get(conn: &mut Conn, id: &str) -> Result<Backup> {
    find(conn, id).await?.ok_or_else(|| not_found(id))
}

/// The backup, `None` when deleted or unknown.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, id: &str) -> Result<Option<Backup>> {
    let row: Option<BackupRow> = backups::table
        .filter(backups::id.eq(id))
        .filter(backups::deleted.eq(false))
        .select(BackupRow::as_select())
        .first(conn)
        .await
        .optional()?;
    let Some(row) = row else { return Ok(None) };
    let pairs: Vec<(Option<String>, Option<String>)> = backup_metadata::table
        .filter(backup_metadata::backup_id.eq(id))
        .filter(backup_metadata::deleted.eq(false))
        .select((backup_metadata::key, backup_metadata::value))
        .load(conn)
        .await?;
    let metadata = pairs.into_iter().filter_map(|(key, value)| Some((key?, value.unwrap_or_default())));
    Ok(Some(row.into_model(metadata.collect())))
}

/// The backup's status, its row locked until the transaction ends; `None` when it is gone.
///
/// # Errors
/// `Database`.
pub async fn lock_status(conn: &mut Conn, id: &str) -> Result<Option<String>> {
    let status: Option<Option<String>> = backups::table
        .filter(backups::id.eq(id))
        .filter(backups::deleted.eq(false))
        .select(backups::status)
        .for_update()
        .first(conn)
        .await
        .optional()?;
    Ok(status.map(Option::unwrap_or_default))
}

/// Lets `event` happen to the backup and says why. Returns false when it is gone or in a status that the
/// event does not expect.
///
/// # Errors
/// `Database`.
pub async fn fail(conn: &mut Conn, id: &str, event: BackupEvent, reason: &str) -> Result<bool> {
    let arrow = transition::backup(event);
    let matched = diesel::update(backups::table)
        .filter(backups::id.eq(id))
        .filter(backups::deleted.eq(false))
        .filter(backups::status.eq_any(arrow.from.to_vec()))
        .set((
            arrow.to.map(|s| backups::status.eq(s)),
            backups::fail_reason.eq(fitting(reason, REASON)),
            backups::updated_at.eq(now()),
        ))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// Begins the restoration into a volume by the backup service of `host`. Returns false when the backup is gone
/// or in a status in which it cannot be restored.
///
/// # Errors
/// `Database`.
pub async fn begin_restoration(conn: &mut Conn, id: &str, volume_id: &str, host: &str) -> Result<bool> {
    let arrow = transition::backup(BackupEvent::RestorationBegun);
    let matched = diesel::update(backups::table)
        .filter(backups::id.eq(id))
        .filter(backups::deleted.eq(false))
        .filter(backups::status.eq_any(arrow.from.to_vec()))
        .set((
            arrow.to.map(|s| backups::status.eq(s)),
            backups::restore_volume_id.eq(volume_id),
            backups::host.eq(host),
            backups::updated_at.eq(now()),
        ))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// Makes the row of a copy of a volume that lives as long as its backup is being made, and writes into the
/// backup which one it is, so that whoever ends the backup removes it (`_create_temp_volume`).
///
/// # Errors
/// `VolumeNotFound`; `Database`.
pub async fn create_copy(
    conn: &mut Conn,
    backup_id: &str,
    volume_id: &str,
    copy_id: &str,
    owner: (Option<&str>, Option<&str>),
) -> Result<Volume> {
    diesel::sql_query(
        "INSERT INTO volumes (id, host, cluster_name, availability_zone, status, attach_status, use_quota, \
           volume_type_id, created_at, deleted, user_id, project_id, size, display_name, bootable, multiattach, \
           shared_targets) \
         SELECT ?, host, cluster_name, availability_zone, 'creating', 'detached', 0, volume_type_id, \
           UTC_TIMESTAMP(), 0, ?, ?, size, CONCAT('backup-vol-', id), 0, 0, 1 \
         FROM volumes WHERE id = ? AND deleted = 0",
    )
    .bind::<Text, _>(copy_id)
    .bind::<Nullable<Text>, _>(owner.0)
    .bind::<Nullable<Text>, _>(owner.1)
    .bind::<Text, _>(volume_id)
    .execute(conn)
    .await?;
    set_copy(conn, backup_id, Some(copy_id)).await?;
    volume::get(conn, copy_id).await
}

/// Removes the row of such a copy, which has no image any more.
///
/// # Errors
/// `Database`.
pub async fn forget_copy(conn: &mut Conn, backup_id: &str, copy_id: &str) -> Result<()> {
    volume::destroy(conn, copy_id).await?;
    stray::forget(conn, std::slice::from_ref(&copy_id.to_owned())).await?;
    set_copy(conn, backup_id, None).await
}

async fn set_copy(conn: &mut Conn, backup_id: &str, copy_id: Option<&str>) -> Result<()> {
    diesel::update(backups::table)
        .filter(backups::id.eq(backup_id))
        .filter(backups::deleted.eq(false))
        .set((backups::temp_volume_id.eq(copy_id), backups::updated_at.eq(now())))
        .execute(conn)
        .await?;
    Ok(())
}

/// Hosts of the backup services of `zone` (of any, when it is `None` or empty) that are enabled and have been
/// heard of within `down_time` (`_list_backup_services`, `_az_matched`, `Service.is_up`).
///
/// # Errors
/// `Database`.
pub async fn hosts(conn: &mut Conn, zone: Option<&str>, down_time: Duration) -> Result<Vec<String>> {
    let mut query = services::table
        .filter(services::topic.eq(BINARY))
        .filter(services::deleted.eq(false))
        .filter(services::disabled.eq(false))
        .filter(services::updated_at.ge(now() - down_time))
        .select(services::host)
        .order(services::id)
        .into_boxed();
    if let Some(zone) = zone.filter(|z| !z.is_empty()) {
        query = query.filter(services::availability_zone.eq(zone));
    }
    let hosts: Vec<Option<String>> = query.load(conn).await?;
    Ok(hosts.into_iter().flatten().collect())
}

fn not_found(id: &str) -> Error {
    Error::new(Code::BackupNotFound, format!("Backup {id} could not be found."))
}
