//! The `snapshots` table and its metadata. Status changes go through [`transition()`], as for volumes.

use std::collections::{BTreeMap, HashMap};

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::{snapshot_metadata, snapshots, volume_glance_metadata, volumes};
use super::volume::CHUNK;
use super::{Conn, InScope, now};
use crate::error::{Code, Error, Result};
use crate::model::transition::{self, SnapshotEvent};
use crate::model::{Scope, Snapshot};

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = snapshots, check_for_backend(Mysql))]
struct SnapshotRow {
    id: String,
    volume_id: String,
    user_id: Option<String>,
    project_id: Option<String>,
    use_quota: bool,
    status: Option<String>,
    progress: Option<String>,
    volume_size: Option<i32>,
    display_name: Option<String>,
    display_description: Option<String>,
    created_at: Option<NaiveDateTime>,
    updated_at: Option<NaiveDateTime>,
    deleted: Option<bool>,
    encryption_key_id: Option<String>,
    volume_type_id: String,
    group_snapshot_id: Option<String>,
    cgsnapshot_id: Option<String>,
    provider_location: Option<String>,
}

impl SnapshotRow {
    fn into_model(self, metadata: BTreeMap<String, String>) -> Snapshot {
        Snapshot {
            id: self.id,
            volume_id: self.volume_id,
            user_id: self.user_id,
            project_id: self.project_id,
            use_quota: self.use_quota,
            status: self.status.unwrap_or_default(),
            progress: self.progress,
            volume_size: self.volume_size.unwrap_or(0),
            display_name: self.display_name,
            display_description: self.display_description,
            created_at: self.created_at,
            updated_at: self.updated_at,
            deleted: self.deleted.unwrap_or(false),
            encryption_key_id: self.encryption_key_id,
            volume_type_id: self.volume_type_id,
            group_snapshot_id: self.group_snapshot_id,
            cgsnapshot_id: self.cgsnapshot_id,
            provider_location: self.provider_location,
            metadata,
        }
    }
}

/// New values of a snapshot's columns other than `status`. `None` leaves a column alone, `Some(None)`
/// makes it NULL.
#[derive(Debug, Clone, Default, PartialEq, AsChangeset)]
#[diesel(table_name = snapshots)]
#[allow(missing_docs)]
pub struct SnapshotChanges {
    pub progress: Option<Option<String>>,
    pub volume_size: Option<i32>,
    pub volume_type_id: Option<String>,
    pub encryption_key_id: Option<Option<String>>,
    pub provider_location: Option<Option<String>>,
}

/// The snapshot, unless deleted.
///
/// # Errors
/// `SnapshotNotFound`.
pub async fn get(conn: &mut Conn, id: &str) -> Result<Snapshot> {
    find(conn, id).await?.ok_or_else(|| not_found(id))
}

/// The snapshot, `None` when deleted or unknown.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, id: &str) -> Result<Option<Snapshot>> {
    let row: Option<SnapshotRow> = snapshots::table
        .filter(snapshots::id.eq(id))
        .filter(snapshots::deleted.eq(false))
        .select(SnapshotRow::as_select())
        .first(conn)
        .await
        .optional()?;
    match row {
        Some(row) => Ok(with_metadata(conn, vec![row]).await?.pop()),
        None => Ok(None),
    }
}

/// All snapshots of a volume, in the order of their creation.
///
/// # Errors
/// `Database`.
pub async fn list_for_volume(conn: &mut Conn, volume_id: &str) -> Result<Vec<Snapshot>> {
    let rows: Vec<SnapshotRow> = snapshots::table
        .filter(snapshots::volume_id.eq(volume_id))
        .filter(snapshots::deleted.eq(false))
        .select(SnapshotRow::as_select())
        .order((snapshots::created_at, snapshots::id))
        .load(conn)
        .await?;
    with_metadata(conn, rows).await
}

/// The snapshots of a group snapshot, in the order of their ids.
///
/// # Errors
/// `Database`.
pub async fn list_for_group_snapshot(conn: &mut Conn, group_snapshot_id: &str) -> Result<Vec<Snapshot>> {
    let rows: Vec<SnapshotRow> = snapshots::table
        .filter(snapshots::group_snapshot_id.eq(group_snapshot_id))
        .filter(snapshots::deleted.eq(false))
        .select(SnapshotRow::as_select())
        .order(snapshots::id)
        .load(conn)
        .await?;
    with_metadata(conn, rows).await
}

/// Snapshots of the scope's volumes that are in one of `statuses` (empty: any).
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, scope: &Scope, statuses: &[&str]) -> Result<Vec<Snapshot>> {
    let mut query = snapshots::table
        .inner_join(volumes::table.on(volumes::id.eq(snapshots::volume_id)))
        .filter(snapshots::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .select(SnapshotRow::as_select())
        .into_boxed();
    if !statuses.is_empty() {
        query = query.filter(snapshots::status.eq_any(statuses.to_vec()));
    }
    let rows: Vec<SnapshotRow> = query.load(conn).await?;
    with_metadata(conn, rows).await
}

async fn with_metadata(conn: &mut Conn, rows: Vec<SnapshotRow>) -> Result<Vec<Snapshot>> {
    let mut metadata: HashMap<String, BTreeMap<String, String>> = HashMap::new();
    let ids: Vec<&str> = rows.iter().map(|r| r.id.as_str()).collect();
    for chunk in ids.chunks(CHUNK) {
        let pairs: Vec<(String, Option<String>, Option<String>)> = snapshot_metadata::table
            .filter(snapshot_metadata::snapshot_id.eq_any(chunk))
            .filter(snapshot_metadata::deleted.eq(false))
            .select((snapshot_metadata::snapshot_id, snapshot_metadata::key, snapshot_metadata::value))
            .load(conn)
            .await?;
        for (id, key, value) in pairs {
            if let Some(key) = key {
                metadata.entry(id).or_default().insert(key, value.unwrap_or_default());
            }
        }
    }
    Ok(rows
        .into_iter()
        .map(|row| {
            let own = metadata.remove(&row.id).unwrap_or_default();
            row.into_model(own)
        })
        .collect())
}

/// Lets `event` happen to the snapshot; `updated_at` becomes now.
///
/// # Errors
/// `Conflict` when it is in none of the statuses that the event may find; `SnapshotNotFound`.
pub async fn transition(
    conn: &mut Conn,
    id: &str,
    event: SnapshotEvent,
    changes: &SnapshotChanges,
) -> Result<()> {
    let arrow = transition::snapshot(event);
    apply(conn, id, event, arrow.from, arrow.to, changes).await
}

/// Lets `event` happen to every snapshot of `ids` whose status allows it. Returns how many changed.
///
/// # Errors
/// `Database`.
pub async fn transition_many(conn: &mut Conn, ids: &[String], event: SnapshotEvent) -> Result<usize> {
    let arrow = transition::snapshot(event);
    let mut changed = 0;
    for chunk in ids.chunks(CHUNK) {
        let mut update = diesel::update(snapshots::table)
            .filter(snapshots::id.eq_any(chunk))
            .filter(snapshots::deleted.eq(false))
            .into_boxed::<Mysql>();
        if !arrow.from.is_empty() {
            update = update.filter(snapshots::status.eq_any(arrow.from.to_vec()));
        }
        changed += update
            .set((arrow.to.map(|s| snapshots::status.eq(s)), snapshots::updated_at.eq(now())))
            .execute(conn)
            .await?;
    }
    Ok(changed)
}

/// Like [`transition()`], for an event that the table lets happen in any status: the row must be in the
/// one that the caller has found, so that a late end overwrites nothing.
///
/// # Errors
/// As [`transition()`].
pub async fn transition_from(
    conn: &mut Conn,
    id: &str,
    event: SnapshotEvent,
    found: &str,
    changes: &SnapshotChanges,
) -> Result<()> {
    let arrow = transition::snapshot(event);
    if !arrow.from.is_empty() {
        return apply(conn, id, event, arrow.from, arrow.to, changes).await;
    }
    apply(conn, id, event, &[found], arrow.to, changes).await
}

async fn apply(
    conn: &mut Conn,
    id: &str,
    event: SnapshotEvent,
    from: &[&str],
    to: Option<&str>,
    changes: &SnapshotChanges,
) -> Result<()> {
    let mut update = diesel::update(snapshots::table)
        .filter(snapshots::id.eq(id))
        .filter(snapshots::deleted.eq(false))
        .into_boxed();
    if !from.is_empty() {
        update = update.filter(snapshots::status.eq_any(from.to_vec()));
    }
    let matched = update
        .set((to.map(|status| snapshots::status.eq(status)), changes, snapshots::updated_at.eq(now())))
        .execute(conn)
        .await?;
    if matched > 0 {
        return Ok(());
    }
    let snapshot = get(conn, id).await?;
    Err(Error::new(
        Code::Conflict,
        format!("Snapshot {id} is in status {}, which does not allow this", snapshot.status),
    )
    .detail(format!("{event:?} needs one of {from:?}")))
}

/// Writes columns other than `status`; `updated_at` becomes now.
///
/// # Errors
/// `SnapshotNotFound`.
pub async fn update(conn: &mut Conn, id: &str, changes: &SnapshotChanges) -> Result<()> {
    let matched = diesel::update(snapshots::table)
        .filter(snapshots::id.eq(id))
        .filter(snapshots::deleted.eq(false))
        .set((changes, snapshots::updated_at.eq(now())))
        .execute(conn)
        .await?;
    if matched == 0 { Err(not_found(id)) } else { Ok(()) }
}

/// Soft-deletes the snapshot with its metadata and image metadata; `updated_at` stays
/// (`snapshot_destroy`, `volume_glance_metadata_delete_by_snapshot`). Returns false when it was
/// deleted before.
///
/// # Errors
/// `Database`.
pub async fn destroy(conn: &mut Conn, id: &str) -> Result<bool> {
    let at = now();
    diesel::update(volume_glance_metadata::table)
        .filter(volume_glance_metadata::snapshot_id.eq(id))
        .filter(volume_glance_metadata::deleted.eq(false))
        .set((volume_glance_metadata::deleted.eq(true), volume_glance_metadata::deleted_at.eq(at)))
        .execute(conn)
        .await?;
    let matched = diesel::update(snapshots::table)
        .filter(snapshots::id.eq(id))
        .filter(snapshots::deleted.eq(false))
        .set((snapshots::status.eq("deleted"), snapshots::deleted_at.eq(at), snapshots::deleted.eq(true)))
        .execute(conn)
        .await?;
    diesel::update(snapshot_metadata::table)
        .filter(snapshot_metadata::snapshot_id.eq(id))
        .filter(snapshot_metadata::deleted.eq(false))
        .set((snapshot_metadata::deleted.eq(true), snapshot_metadata::deleted_at.eq(at)))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// Copies the volume's image metadata onto its snapshot (`volume_glance_metadata_copy_to_snapshot`).
/// Returns the number of keys.
///
/// # Errors
/// `Database`.
pub async fn copy_glance_metadata(conn: &mut Conn, volume_id: &str, snapshot_id: &str) -> Result<usize> {
    let rows: Vec<(Option<String>, Option<String>)> = volume_glance_metadata::table
        .filter(volume_glance_metadata::volume_id.eq(volume_id))
        .filter(volume_glance_metadata::deleted.eq(false))
        .select((volume_glance_metadata::key, volume_glance_metadata::value))
        .load(conn)
        .await?;
    let at = now();
    let values: Vec<_> = rows
        .iter()
        .map(|(key, value)| {
            (
                volume_glance_metadata::snapshot_id.eq(snapshot_id),
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

fn not_found(id: &str) -> Error {
    Error::new(Code::SnapshotNotFound, format!("Snapshot {id} could not be found."))
}
