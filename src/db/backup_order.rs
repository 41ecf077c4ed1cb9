//! Rows of backups that nobody has asked the API for: they are made, and marked for deletion, as cinder-api does it
//! (`cinder/backup/api.py`, `create`, `delete`).

use chrono::NaiveDateTime;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::backup_work::{self, BackupChanges};
use super::quota::{self, QuotaRules};
use super::schema::{backups, volumes};
use super::volume::{self, VolumeChanges};
use super::{Conn, backup, fitting, now};
use crate::error::{Code, Error, Result};
use crate::model::transition::BackupEvent;
use crate::model::{Backup, VolumeEvent};

/// Characters of a name or description.
const TEXT: usize = 255;

/// A backup to be made.
#[derive(Debug, Clone, Default)]
pub struct NewBackup {
    /// What is backed up.
    pub volume_id: String,
    /// What is backed up already it goes on from.
    pub parent: Option<Backup>,
    /// For people.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Pool; `None`: that of the parent, or where backups usually go.
    pub container: Option<String>,
    /// Who makes it.
    pub host: String,
    /// Availability zone of him.
    pub zone: String,
}

/// Makes the row of a backup of a volume that nobody else works on, counts it, and makes the volume wait
/// (`backing-up`); all for the volume's project and owner. Inside the caller's transaction.
///
/// # Errors
/// `InvalidVolume` when the volume is neither available nor in use, or has no project; `VolumeNotFound`; `OverQuota`;
/// `Database`.
pub async fn begin(conn: &mut Conn, new: &NewBackup, rules: &QuotaRules) -> Result<Backup> {
    let found = volume::lock(conn, &new.volume_id).await?;
    let id = &found.id;
    if !matches!(found.status.as_str(), "available" | "in-use") || found.is_migration_target() {
        return Err(Error::new(
            Code::InvalidVolume,
            format!(
                "Volume {id} to be backed up must be available or in-use, but the current status is \"{}\".",
                found.status
            ),
        ));
    }
    let Some(project) = found.project_id.as_deref() else {
        return Err(Error::new(Code::InvalidVolume, format!("Volume {id} is of no project")));
    };
    let reservations = quota::reserve_backup(conn, project, found.size, rules).await?;
    let at = now();
    let backup_id = Uuid::new_v4().to_string();
    let parent = new.parent.as_ref();
    let container = new.container.clone().or_else(|| parent.and_then(|parent| parent.container.clone()));
    diesel::insert_into(backups::table)
        .values((
            backups::id.eq(&backup_id),
            backups::volume_id.eq(id),
            backups::user_id.eq(&found.user_id),
            backups::project_id.eq(project),
            backups::host.eq(&new.host),
            backups::availability_zone.eq(&new.zone),
            backups::display_name.eq(new.name.as_deref().map(|text| fitting(text, TEXT))),
            backups::display_description.eq(new.description.as_deref().map(|text| fitting(text, TEXT))),
            backups::container.eq(container),
            backups::status.eq("creating"),
            backups::size.eq(found.size),
            backups::object_count.eq(0),
            backups::parent_id.eq(parent.map(|parent| &parent.id)),
            backups::num_dependent_backups.eq(0),
            backups::data_timestamp.eq(at),
            backups::created_at.eq(at),
            backups::deleted.eq(false),
        ))
        .execute(conn)
        .await?;
    let changes =
        VolumeChanges { previous_status: Some(Some(found.status.clone())), ..VolumeChanges::default() };
    volume::transition(conn, id, VolumeEvent::BackupOrdered, &changes).await?;
    quota::commit(conn, project, &reservations).await?;
    backup::get(conn, &backup_id).await
}

/// Marks a backup for deletion by `host`. False when it is gone, or its status is one from which nothing is deleted.
///
/// # Errors
/// `Database`.
pub async fn mark(conn: &mut Conn, id: &str, host: &str) -> Result<bool> {
    let changes = BackupChanges { host: Some(Some(host.to_owned())), ..BackupChanges::default() };
    backup_work::transition(conn, id, BackupEvent::DeleteOrdered, &changes).await
}

/// The backup goes out of its chain: incremental ones that were made on it go on from its parent, whose counter says
/// so. Its own row is the caller's, in the same transaction.
///
/// # Errors
/// `Database`.
pub async fn take_out(conn: &mut Conn, gone: &Backup) -> Result<()> {
    diesel::update(backups::table)
        .filter(backups::parent_id.eq(&gone.id))
        .filter(backups::deleted.eq(false))
        .set((backups::parent_id.eq(&gone.parent_id), backups::updated_at.eq(now())))
        .execute(conn)
        .await?;
    let Some(parent) = &gone.parent_id else { return Ok(()) };
    // It was one itself, and leaves its own behind.
    diesel::sql_query(
        "UPDATE backups SET updated_at = UTC_TIMESTAMP(), \
           num_dependent_backups = GREATEST(COALESCE(num_dependent_backups, 0) - 1, 0) + ? \
         WHERE id = ? AND deleted = 0",
    )
    .bind::<Integer, _>(gone.num_dependent_backups.max(0))
    .bind::<Text, _>(parent)
    .execute(conn)
    .await?;
    Ok(())
}

/// Locks all backups of a volume until the transaction ends, and answers them, the oldest data first, without their
/// metadata.
///
/// # Errors
/// `Database`.
pub async fn lock_all(conn: &mut Conn, volume_id: &str) -> Result<Vec<Backup>> {
    let _: Vec<String> = backups::table
        .filter(backups::volume_id.eq(volume_id))
        .filter(backups::deleted.eq(false))
        .select(backups::id)
        .order(backups::id)
        .for_update()
        .load(conn)
        .await?;
    let mut found = backup_work::list(conn, Some(volume_id)).await?;
    found.sort_by_key(taken_at);
    Ok(found)
}

/// When the data of a backup was what it is, naive UTC: what is told of it, or when its row was made.
pub fn taken_at(backup: &Backup) -> Option<NaiveDateTime> {
    backup.data_timestamp.or(backup.created_at)
}

/// The next volumes of a type after one of them, by their ids; not those that a migration is about to replace others by.
///
/// # Errors
/// `Database`.
pub async fn volumes_of_type(
    conn: &mut Conn,
    volume_type_id: &str,
    after: &str,
    count: usize,
) -> Result<Vec<String>> {
    let is_target = volumes::migration_status.like("target:%");
    Ok(volumes::table
        .filter(volumes::volume_type_id.eq(volume_type_id))
        .filter(volumes::deleted.eq(false))
        .filter(volumes::id.gt(after))
        .filter(volumes::migration_status.is_null().or(diesel::dsl::not(is_target)))
        .select(volumes::id)
        .order(volumes::id)
        .limit(i64::try_from(count).unwrap_or(i64::MAX))
        .load(conn)
        .await?)
}

/// The next volumes that have backups, after one of them, by their ids: also those that are deleted.
///
/// # Errors
/// `Database`.
pub async fn volumes_with_backups(
    conn: &mut Conn,
    volume_type_id: Option<&str>,
    after: &str,
    count: usize,
) -> Result<Vec<String>> {
    let found: Vec<Found> = diesel::sql_query(
        "SELECT DISTINCT b.volume_id AS id FROM backups b \
         WHERE b.deleted = 0 AND b.volume_id > ? AND (? IS NULL OR EXISTS \
           (SELECT 1 FROM volumes v WHERE v.id = b.volume_id AND v.volume_type_id = ?)) \
         ORDER BY id LIMIT ?",
    )
    .bind::<Text, _>(after)
    .bind::<Nullable<Text>, _>(volume_type_id)
    .bind::<Nullable<Text>, _>(volume_type_id)
    .bind::<BigInt, _>(i64::try_from(count).unwrap_or(i64::MAX))
    .load(conn)
    .await?;
    Ok(found.into_iter().map(|row| row.id).collect())
}

#[derive(diesel::QueryableByName)]
struct Found {
    #[diesel(sql_type = Text)]
    id: String,
}
