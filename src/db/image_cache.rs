//! Volumes that are kept as copies of images (`image_volume_cache_entries`).
//!
//! The table knows no deleted rows: an entry is there, or it is not. It never says that its volume is any good; who
//! uses one looks at the volume's row.

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{Integer, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::schema::image_volume_cache_entries as entries;
use super::{Conn, now};
use crate::error::Result;
use crate::model::Volume;

/// An entry.
#[derive(Debug, Clone, PartialEq, Queryable, Selectable)]
#[diesel(table_name = entries, check_for_backend(Mysql))]
#[allow(missing_docs)]
pub struct Entry {
    pub id: i32,
    pub host: String,
    pub image_id: String,
    /// Of the image when it was copied.
    pub image_updated_at: Option<NaiveDateTime>,
    pub volume_id: String,
    /// GiB.
    pub size: i32,
}

/// Whose cache is meant: that of a volume's Cinder cluster, or else of its host (`_get_query_filters`).
macro_rules! of_owner {
    ($query:expr, $volume:expr) => {{
        let cluster = $volume.cluster_name.as_deref().filter(|c| !c.is_empty());
        let query = $query.into_boxed::<Mysql>();
        match cluster {
            Some(cluster) => query.filter(entries::cluster_name.eq(cluster.to_owned())),
            None => query.filter(entries::host.eq($volume.host.clone().unwrap_or_default())),
        }
    }};
}

/// The entry of an image where `volume` is, whose use is noted (`image_volume_cache_get_and_update_last_used`).
///
/// # Errors
/// `Database`.
pub async fn take(conn: &mut Conn, image_id: &str, volume: &Volume) -> Result<Option<Entry>> {
    let found: Option<Entry> = of_owner!(entries::table, volume)
        .filter(entries::image_id.eq(image_id.to_owned()))
        .order(entries::last_used.desc())
        .select(Entry::as_select())
        .first(conn)
        .await
        .optional()?;
    if let Some(entry) = &found {
        diesel::update(entries::table.filter(entries::id.eq(entry.id)))
            .set(entries::last_used.eq(now()))
            .execute(conn)
            .await?;
    }
    Ok(found)
}

/// All entries where `volume` is, the one that was used last first.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, volume: &Volume) -> Result<Vec<Entry>> {
    Ok(of_owner!(entries::table, volume)
        .order(entries::last_used.desc())
        .select(Entry::as_select())
        .load(conn)
        .await?)
}

/// The entry of a volume.
///
/// # Errors
/// `Database`.
pub async fn of_volume(conn: &mut Conn, volume_id: &str) -> Result<Option<Entry>> {
    Ok(entries::table
        .filter(entries::volume_id.eq(volume_id))
        .select(Entry::as_select())
        .first(conn)
        .await
        .optional()?)
}

/// Adds a volume as the copy of an image.
///
/// # Errors
/// `Database`.
pub async fn add(
    conn: &mut Conn,
    volume: &Volume,
    image_id: &str,
    image_updated_at: Option<NaiveDateTime>,
) -> Result<()> {
    diesel::insert_into(entries::table)
        .values((
            entries::host.eq(volume.host.clone().unwrap_or_default()),
            entries::cluster_name.eq(&volume.cluster_name),
            entries::image_id.eq(image_id),
            entries::image_updated_at.eq(image_updated_at),
            entries::volume_id.eq(&volume.id),
            entries::size.eq(volume.size),
            entries::last_used.eq(now()),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Forgets the entry of a volume; false when there was none.
///
/// # Errors
/// `Database`.
pub async fn remove(conn: &mut Conn, volume_id: &str) -> Result<bool> {
    let removed =
        diesel::delete(entries::table.filter(entries::volume_id.eq(volume_id))).execute(conn).await?;
    Ok(removed > 0)
}

/// The row of a volume that will be the copy of an image: beside `volume`, whose content it gets, and owned by
/// somebody else (`VolumeManager._clone_image_volume`).
///
/// # Errors
/// `Database`.
pub async fn create_volume(
    conn: &mut Conn,
    volume: &Volume,
    new_id: &str,
    gib: i32,
    image_id: &str,
    (project_id, user_id): (&str, &str),
) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO volumes (id, host, cluster_name, availability_zone, status, attach_status, use_quota, \
           volume_type_id, created_at, deleted, user_id, project_id, size, scheduled_at, display_name, \
           display_description, bootable, multiattach, replication_status, source_volid, shared_targets) \
         SELECT ?, host, cluster_name, availability_zone, 'creating', 'detached', 1, volume_type_id, \
           UTC_TIMESTAMP(), 0, ?, ?, ?, scheduled_at, ?, display_description, 0, multiattach, \
           replication_status, id, shared_targets \
         FROM volumes WHERE id = ? AND deleted = 0",
    )
    .bind::<Text, _>(new_id)
    .bind::<Text, _>(user_id)
    .bind::<Text, _>(project_id)
    .bind::<Integer, _>(gib)
    .bind::<Nullable<Text>, _>(Some(format!("image-{image_id}")))
    .bind::<Text, _>(&volume.id)
    .execute(conn)
    .await?;
    Ok(())
}
