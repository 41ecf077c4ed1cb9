//! The `volumes` table and its metadata.
//!
//! A volume's status is written by [`transition()`] alone: a conditional UPDATE rendered from
//! `model::transition`, so that a reset by an administrator or a delete that came in between is never
//! overwritten by a late answer. Everything else about a volume goes through [`update`].

use std::collections::{BTreeMap, HashMap};

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::schema::{volume_admin_metadata, volume_glance_metadata, volume_metadata, volumes};
use super::{Conn, InScope, literal, now};
use crate::error::{Code, Error, Result};
use crate::model::transition::{self, VolumeEvent};
use crate::model::{Scope, Volume};

/// The columns that make a [`Volume`].
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = volumes, check_for_backend(Mysql))]
pub(super) struct VolumeRow {
    id: String,
    name_id: Option<String>,
    user_id: Option<String>,
    project_id: Option<String>,
    use_quota: bool,
    snapshot_id: Option<String>,
    source_volid: Option<String>,
    cluster_name: Option<String>,
    host: Option<String>,
    size: Option<i32>,
    availability_zone: Option<String>,
    status: Option<String>,
    attach_status: Option<String>,
    migration_status: Option<String>,
    previous_status: Option<String>,
    scheduled_at: Option<NaiveDateTime>,
    launched_at: Option<NaiveDateTime>,
    terminated_at: Option<NaiveDateTime>,
    created_at: Option<NaiveDateTime>,
    updated_at: Option<NaiveDateTime>,
    display_name: Option<String>,
    display_description: Option<String>,
    provider_id: Option<String>,
    provider_location: Option<String>,
    provider_auth: Option<String>,
    volume_type_id: String,
    encryption_key_id: Option<String>,
    group_id: Option<String>,
    consistencygroup_id: Option<String>,
    bootable: Option<bool>,
    multiattach: Option<bool>,
    replication_status: Option<String>,
    replication_extended_status: Option<String>,
    replication_driver_data: Option<String>,
    service_uuid: Option<String>,
    shared_targets: Option<bool>,
}

impl From<VolumeRow> for Volume {
    fn from(row: VolumeRow) -> Volume {
        Volume {
            id: row.id,
            name_id: row.name_id,
            user_id: row.user_id,
            project_id: row.project_id,
            use_quota: row.use_quota,
            snapshot_id: row.snapshot_id,
            source_volid: row.source_volid,
            cluster_name: row.cluster_name,
            host: row.host,
            // Cinder loads a NULL integer as 0 (reference objects.md 6.2).
            size: row.size.unwrap_or(0),
            availability_zone: row.availability_zone,
            status: row.status.unwrap_or_default(),
            attach_status: row.attach_status,
            migration_status: row.migration_status,
            previous_status: row.previous_status,
            scheduled_at: row.scheduled_at,
            launched_at: row.launched_at,
            terminated_at: row.terminated_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
            display_name: row.display_name,
            display_description: row.display_description,
            provider_id: row.provider_id,
            provider_location: row.provider_location,
            provider_auth: row.provider_auth,
            volume_type_id: row.volume_type_id,
            encryption_key_id: row.encryption_key_id,
            group_id: row.group_id,
            consistencygroup_id: row.consistencygroup_id,
            bootable: row.bootable.unwrap_or(false),
            multiattach: row.multiattach.unwrap_or(false),
            replication_status: row.replication_status,
            replication_extended_status: row.replication_extended_status,
            replication_driver_data: row.replication_driver_data,
            service_uuid: row.service_uuid,
            shared_targets: row.shared_targets,
        }
    }
}

/// New values of a volume's columns other than `status`. `None` leaves a column alone, `Some(None)`
/// makes it NULL.
#[derive(Debug, Clone, Default, PartialEq, AsChangeset)]
#[diesel(table_name = volumes)]
#[allow(missing_docs)]
pub struct VolumeChanges {
    pub name_id: Option<Option<String>>,
    pub cluster_name: Option<Option<String>>,
    pub host: Option<Option<String>>,
    pub size: Option<i32>,
    pub availability_zone: Option<Option<String>>,
    pub attach_status: Option<Option<String>>,
    pub migration_status: Option<Option<String>>,
    pub previous_status: Option<Option<String>>,
    pub scheduled_at: Option<Option<NaiveDateTime>>,
    pub launched_at: Option<Option<NaiveDateTime>>,
    pub provider_id: Option<Option<String>>,
    pub provider_location: Option<Option<String>>,
    pub volume_type_id: Option<String>,
    pub encryption_key_id: Option<Option<String>>,
    pub group_id: Option<Option<String>>,
    pub consistencygroup_id: Option<Option<String>>,
    pub bootable: Option<bool>,
    pub multiattach: Option<bool>,
    pub replication_status: Option<Option<String>>,
    pub replication_extended_status: Option<Option<String>>,
    pub replication_driver_data: Option<Option<String>>,
    pub service_uuid: Option<Option<String>>,
    pub shared_targets: Option<Option<bool>>,
}

/// The volume, unless deleted.
///
/// # Errors
/// `VolumeNotFound`.
pub async fn get(conn: &mut Conn, id: &str) -> Result<Volume> {
    find(conn, id).await?.ok_or_else(|| not_found(id))
}

/// The volume, `None` when deleted or unknown.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, id: &str) -> Result<Option<Volume>> {
    let row = volumes::table
        .filter(volumes::id.eq(id))
        .filter(volumes::deleted.eq(false))
        .select(VolumeRow::as_select())
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(Volume::from))
}

/// The volumes of `ids` that exist, in no particular order.
///
/// # Errors
/// `Database`.
pub async fn get_many(conn: &mut Conn, ids: &[String]) -> Result<Vec<Volume>> {
    let mut found = Vec::with_capacity(ids.len());
    for chunk in ids.chunks(CHUNK) {
        let rows: Vec<VolumeRow> = volumes::table
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .select(VolumeRow::as_select())
            .load(conn)
            .await?;
        found.extend(rows.into_iter().map(Volume::from));
    }
    Ok(found)
}

/// The volume with its row locked until the transaction ends.
///
/// # Errors
/// `VolumeNotFound`.
pub async fn lock(conn: &mut Conn, id: &str) -> Result<Volume> {
    let row: Option<VolumeRow> = volumes::table
        .filter(volumes::id.eq(id))
        .filter(volumes::deleted.eq(false))
        .select(VolumeRow::as_select())
        .for_update()
        .first(conn)
        .await
        .optional()?;
    row.map(Volume::from).ok_or_else(|| not_found(id))
}

/// Which of a scope's volumes to list.
#[derive(Debug, Clone, Default)]
pub struct VolumeFilter {
    /// Only these statuses; empty: all.
    pub statuses: Vec<String>,
    /// Only these replication statuses (NULL never matches); empty: all.
    pub replication_statuses: Vec<String>,
    /// Only members of this group.
    pub group_id: Option<String>,
    /// Only volumes cloned from this one.
    pub source_volid: Option<String>,
}

/// The volumes of a backend or cluster, in the order of their ids.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, scope: &Scope, filter: &VolumeFilter) -> Result<Vec<Volume>> {
    let mut query = volumes::table
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .select(VolumeRow::as_select())
        .order(volumes::id)
        .into_boxed();
    if !filter.statuses.is_empty() {
        query = query.filter(volumes::status.eq_any(&filter.statuses));
    }
    if !filter.replication_statuses.is_empty() {
        query = query.filter(volumes::replication_status.eq_any(&filter.replication_statuses));
    }
    if let Some(group) = &filter.group_id {
        query = query.filter(volumes::group_id.eq(group));
    }
    if let Some(source) = &filter.source_volid {
        query = query.filter(volumes::source_volid.eq(source));
    }
    let rows: Vec<VolumeRow> = query.load(conn).await?;
    Ok(rows.into_iter().map(Volume::from).collect())
}

/// Lets `event` happen to the volume: its status becomes what the table says, and `changes` are
/// written with it. `updated_at` becomes now.
///
/// # Errors
/// `Conflict` when the volume is in none of the statuses that the event may find; `VolumeNotFound`.
pub async fn transition(
    conn: &mut Conn,
    id: &str,
    event: VolumeEvent,
    changes: &VolumeChanges,
) -> Result<()> {
    let arrow = transition::volume(event);
    apply(conn, id, event, arrow.from, arrow.to, changes).await
}

/// Like [`transition()`], for an event that the table lets happen in any status: the row must be in the
/// one that the caller has found, so that a late end overwrites nothing.
///
/// # Errors
/// As [`transition()`].
pub async fn transition_from(
    conn: &mut Conn,
    id: &str,
    event: VolumeEvent,
    found: &str,
    changes: &VolumeChanges,
) -> Result<()> {
    let arrow = transition::volume(event);
    if !arrow.from.is_empty() {
        return apply(conn, id, event, arrow.from, arrow.to, changes).await;
    }
    apply(conn, id, event, &[found], arrow.to, changes).await
}

/// Like [`transition()`], for an event whose resulting status is decided by the caller (the table has
/// `to: None`): `StillReserved`, `Recovered`, `RetypeAborted`.
///
/// # Errors
/// As [`transition()`]; `Internal` when the table names the status itself.
pub async fn transition_to(
    conn: &mut Conn,
    id: &str,
    event: VolumeEvent,
    status: &str,
    changes: &VolumeChanges,
) -> Result<()> {
    let arrow = transition::volume(event);
    if let Some(fixed) = arrow.to {
        return Err(Error::internal(format!("{event:?} always leads to {fixed}, not to {status}")));
    }
    apply(conn, id, event, arrow.from, Some(status), changes).await
}

async fn apply(
    conn: &mut Conn,
    id: &str,
    event: VolumeEvent,
    from: &[&str],
    to: Option<&str>,
    changes: &VolumeChanges,
) -> Result<()> {
    let mut update = diesel::update(volumes::table)
        .filter(volumes::id.eq(id))
        .filter(volumes::deleted.eq(false))
        .into_boxed();
    if !from.is_empty() {
        update = update.filter(volumes::status.eq_any(from.to_vec()));
    }
    let matched = update
        .set((to.map(|status| volumes::status.eq(status)), changes, volumes::updated_at.eq(now())))
        .execute(conn)
        .await?;
    if matched > 0 {
        return Ok(());
    }
    let volume = get(conn, id).await?;
    Err(Error::new(
        Code::Conflict,
        format!("Volume {id} is in status {}, which does not allow this", volume.status),
    )
    .detail(format!("{event:?} needs one of {from:?}")))
}

/// Writes columns other than `status`; `updated_at` becomes now.
///
/// # Errors
/// `VolumeNotFound`.
pub async fn update(conn: &mut Conn, id: &str, changes: &VolumeChanges) -> Result<()> {
    let matched = diesel::update(volumes::table)
        .filter(volumes::id.eq(id))
        .filter(volumes::deleted.eq(false))
        .set((changes, volumes::updated_at.eq(now())))
        .execute(conn)
        .await?;
    if matched == 0 { Err(not_found(id)) } else { Ok(()) }
}

/// Tables whose rows are soft-deleted with their volume (`VOLUME_DEPENDENT_MODELS`).
const DEPENDENTS: [&str; 6] = [
    "volume_metadata",
    "volume_admin_metadata",
    "transfers",
    "volume_glance_metadata",
    "volume_attachment",
    "snapshots",
];

/// Soft-deletes the volume and everything that hangs on it (`cinder.db.api.volume_destroy`):
/// `updated_at` stays, `migration_status` becomes NULL. Returns false when it was deleted before.
///
/// # Errors
/// `Database`; `InvalidUuid` for an id that no volume can have.
pub async fn destroy(conn: &mut Conn, id: &str) -> Result<bool> {
    let id = literal(id)?;
    let at = now();
    let matched = diesel::update(volumes::table)
        .filter(volumes::id.eq(id))
        .filter(volumes::deleted.eq(false))
        .set((
            volumes::status.eq("deleted"),
            volumes::migration_status.eq(None::<String>),
            volumes::deleted_at.eq(at),
            volumes::deleted.eq(true),
        ))
        .execute(conn)
        .await?;
    // Six small statements in one round trip.
    let at = at.format("%Y-%m-%d %H:%M:%S%.6f");
    let cascade: String = DEPENDENTS
        .iter()
        .map(|table| {
            format!("UPDATE {table} SET deleted_at='{at}', deleted=1 WHERE deleted=0 AND volume_id='{id}';")
        })
        .collect();
    conn.batch_execute(&cascade).await?;
    Ok(matched > 0)
}

/// Points the volumes of a scope at their service (`volume_update_all_by_service`); returns how many
/// changed. Unlike stock, volumes without any service are included.
///
/// # Errors
/// `Database`.
pub async fn set_service_uuid(conn: &mut Conn, scope: &Scope, uuid: &str) -> Result<usize> {
    Ok(diesel::update(volumes::table)
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .filter(volumes::service_uuid.is_null().or(volumes::service_uuid.ne(uuid)))
        .set((volumes::service_uuid.eq(uuid), volumes::updated_at.eq(now())))
        .execute(conn)
        .await?)
}

/// Allocated GiB per `host@backend#pool` over the scope's volumes, counted by the database. Hosts
/// without a pool part are counted under their own name.
///
/// # Errors
/// `Database`.
pub async fn allocated_by_pool(conn: &mut Conn, scope: &Scope) -> Result<HashMap<String, u64>> {
    use diesel::dsl::sql;
    use diesel::sql_types::{BigInt, Nullable};
    let rows: Vec<(Option<String>, Option<i64>)> = volumes::table
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .group_by(volumes::host)
        .select((volumes::host, sql::<Nullable<BigInt>>("CAST(SUM(volumes.size) AS SIGNED)")))
        .load(conn)
        .await?;
    Ok(rows
        .into_iter()
        .filter_map(|(host, gib)| Some((host?, u64::try_from(gib.unwrap_or(0)).unwrap_or(0))))
        .collect())
}

/// User metadata (`volume_metadata`).
///
/// # Errors
/// `Database`.
pub async fn metadata(conn: &mut Conn, volume_id: &str) -> Result<BTreeMap<String, String>> {
    let rows: Vec<(Option<String>, Option<String>)> = volume_metadata::table
        .filter(volume_metadata::volume_id.eq(volume_id))
        .filter(volume_metadata::deleted.eq(false))
        .select((volume_metadata::key, volume_metadata::value))
        .load(conn)
        .await?;
    Ok(to_map(rows))
}

/// Administrative metadata (`readonly`, `attached_mode`).
///
/// # Errors
/// `Database`.
pub async fn admin_metadata(conn: &mut Conn, volume_id: &str) -> Result<BTreeMap<String, String>> {
    let rows: Vec<(Option<String>, Option<String>)> = volume_admin_metadata::table
        .filter(volume_admin_metadata::volume_id.eq(volume_id))
        .filter(volume_admin_metadata::deleted.eq(false))
        .select((volume_admin_metadata::key, volume_admin_metadata::value))
        .load(conn)
        .await?;
    Ok(to_map(rows))
}

/// Metadata of the image the volume was made from (`volume_glance_metadata`).
///
/// # Errors
/// `Database`.
pub async fn glance_metadata(conn: &mut Conn, volume_id: &str) -> Result<BTreeMap<String, String>> {
    let rows: Vec<(Option<String>, Option<String>)> = volume_glance_metadata::table
        .filter(volume_glance_metadata::volume_id.eq(volume_id))
        .filter(volume_glance_metadata::deleted.eq(false))
        .select((volume_glance_metadata::key, volume_glance_metadata::value))
        .load(conn)
        .await?;
    Ok(to_map(rows))
}

/// Sets one key of the administrative metadata.
///
/// # Errors
/// `Database`.
pub async fn set_admin_metadata(conn: &mut Conn, volume_id: &str, key: &str, value: &str) -> Result<()> {
    let updated = diesel::update(volume_admin_metadata::table)
        .filter(volume_admin_metadata::volume_id.eq(volume_id))
        .filter(volume_admin_metadata::deleted.eq(false))
        .filter(volume_admin_metadata::key.eq(key))
        .set((volume_admin_metadata::value.eq(value), volume_admin_metadata::updated_at.eq(now())))
        .execute(conn)
        .await?;
    if updated == 0 {
        diesel::insert_into(volume_admin_metadata::table)
            .values((
                volume_admin_metadata::key.eq(key),
                volume_admin_metadata::value.eq(value),
                volume_admin_metadata::volume_id.eq(volume_id),
                volume_admin_metadata::deleted.eq(false),
                volume_admin_metadata::created_at.eq(now()),
            ))
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// Soft-deletes one key of the administrative metadata; `updated_at` stays.
///
/// # Errors
/// `Database`.
pub async fn delete_admin_metadata(conn: &mut Conn, volume_id: &str, key: &str) -> Result<()> {
    diesel::update(volume_admin_metadata::table)
        .filter(volume_admin_metadata::volume_id.eq(volume_id))
        .filter(volume_admin_metadata::deleted.eq(false))
        .filter(volume_admin_metadata::key.eq(key))
        .set((volume_admin_metadata::deleted.eq(true), volume_admin_metadata::deleted_at.eq(now())))
        .execute(conn)
        .await?;
    Ok(())
}

/// Copies the image metadata of a snapshot or volume onto a new volume
/// (`volume_glance_metadata_copy_to_volume`, `…_copy_from_volume_to_volume`). Returns the number of keys.
///
/// # Errors
/// `Database`.
pub async fn copy_glance_metadata(conn: &mut Conn, from: GlanceSource<'_>, volume_id: &str) -> Result<usize> {
    let query = volume_glance_metadata::table
        .filter(volume_glance_metadata::deleted.eq(false))
        .select((volume_glance_metadata::key, volume_glance_metadata::value));
    let rows: Vec<(Option<String>, Option<String>)> = match from {
        GlanceSource::Volume(id) => query.filter(volume_glance_metadata::volume_id.eq(id)).load(conn).await?,
        GlanceSource::Snapshot(id) => {
            query.filter(volume_glance_metadata::snapshot_id.eq(id)).load(conn).await?
        }
    };
    let pairs = rows.iter().map(|(key, value)| (key.as_deref(), value.as_deref())).collect();
    insert_glance_metadata(conn, volume_id, pairs).await
}

async fn insert_glance_metadata(
    conn: &mut Conn,
    volume_id: &str,
    pairs: Vec<(Option<&str>, Option<&str>)>,
) -> Result<usize> {
    let at = now();
    let values: Vec<_> = pairs
        .into_iter()
        .map(|(key, value)| {
            (
                volume_glance_metadata::volume_id.eq(volume_id),
                volume_glance_metadata::key.eq(key),
                volume_glance_metadata::value.eq(value),
                volume_glance_metadata::deleted.eq(false),
                volume_glance_metadata::created_at.eq(at),
            )
        })
        .collect();
    if values.is_empty() {
        return Ok(0);
    }
    Ok(diesel::insert_into(volume_glance_metadata::table).values(&values).execute(conn).await?)
}

/// Gives a volume this image metadata instead of what it had (`volume_glance_metadata_delete_by_volume`,
/// `…_bulk_create`).
///
/// # Errors
/// `Database`.
pub async fn replace_glance_metadata(
    conn: &mut Conn,
    volume_id: &str,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let at = now();
    diesel::update(volume_glance_metadata::table)
        .filter(volume_glance_metadata::volume_id.eq(volume_id))
        .filter(volume_glance_metadata::deleted.eq(false))
        .set((volume_glance_metadata::deleted.eq(true), volume_glance_metadata::deleted_at.eq(at)))
        .execute(conn)
        .await?;
    let pairs = metadata.iter().map(|(key, value)| (Some(key.as_str()), Some(value.as_str()))).collect();
    insert_glance_metadata(conn, volume_id, pairs).await?;
    Ok(())
}

/// Where image metadata is copied from.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum GlanceSource<'a> {
    Volume(&'a str),
    Snapshot(&'a str),
}

/// How many ids go into one `IN (…)`.
pub(super) const CHUNK: usize = 1000;

pub(super) fn not_found(id: &str) -> Error {
    Error::new(Code::VolumeNotFound, format!("Volume {id} could not be found."))
}

pub(super) fn to_map(rows: Vec<(Option<String>, Option<String>)>) -> BTreeMap<String, String> {
    rows.into_iter().filter_map(|(key, value)| Some((key?, value.unwrap_or_default()))).collect()
}
