//! Snapshots of generic volume groups, and what the notifications of a group's members tell.
//!
//! Status changes are [`super::group::transition_snapshot`]'s.

use std::collections::{BTreeMap, HashMap};

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{Datetime, Text};
use diesel_async::RunQueryDsl;

use super::schema::{group_snapshots, snapshots, volume_glance_metadata, volume_metadata};
use super::volume::CHUNK;
use super::{Conn, now};
use crate::error::Result;
use crate::model::transition::{self, SnapshotEvent};
use crate::model::{Attachment, GroupSnapshot};

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = group_snapshots, check_for_backend(Mysql))]
struct GroupSnapshotRow {
    id: String,
    group_id: String,
    user_id: Option<String>,
    project_id: Option<String>,
    name: Option<String>,
    description: Option<String>,
    status: Option<String>,
    group_type_id: Option<String>,
    created_at: Option<NaiveDateTime>,
}

/// The group snapshot; `None` when deleted or unknown.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, id: &str) -> Result<Option<GroupSnapshot>> {
    let row: Option<GroupSnapshotRow> = group_snapshots::table
        .filter(group_snapshots::id.eq(id))
        .filter(group_snapshots::deleted.eq(false))
        .select(GroupSnapshotRow::as_select())
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(|row| GroupSnapshot {
        id: row.id,
        group_id: row.group_id,
        project_id: row.project_id,
        user_id: row.user_id,
        name: row.name,
        description: row.description,
        status: row.status.unwrap_or_default(),
        group_type_id: row.group_type_id,
        created_at: row.created_at,
    }))
}

/// All snapshots of the group snapshot are there: [`SnapshotEvent::Created`] for each in a status that allows
/// it, with the image metadata of volumes that boot. Returns how many changed.
///
/// # Errors
/// `Database`.
pub async fn members_created(conn: &mut Conn, id: &str) -> Result<usize> {
    let arrow = transition::snapshot(SnapshotEvent::Created);
    diesel::sql_query(
        "INSERT INTO volume_glance_metadata (created_at, deleted, snapshot_id, `key`, value) \
         SELECT ?, 0, s.id, m.`key`, m.value FROM snapshots s \
         JOIN volumes v ON v.id = s.volume_id AND v.bootable = 1 \
         JOIN volume_glance_metadata m ON m.volume_id = v.id AND m.deleted = 0 \
         WHERE s.group_snapshot_id = ? AND s.deleted = 0 AND s.status = 'creating'",
    )
    .bind::<Datetime, _>(now())
    .bind::<Text, _>(id)
    .execute(conn)
    .await?;
    Ok(diesel::update(snapshots::table)
        .filter(snapshots::group_snapshot_id.eq(id))
        .filter(snapshots::deleted.eq(false))
        .filter(snapshots::status.eq_any(arrow.from.to_vec()))
        .set((
            arrow.to.map(|s| snapshots::status.eq(s)),
            snapshots::progress.eq("100%"),
            snapshots::updated_at.eq(now()),
        ))
        .execute(conn)
        .await?)
}

/// Soft-deletes the group snapshot (`group_snapshot_destroy`); `updated_at` stays. Its snapshots are the
/// caller's. Returns false when it was deleted before.
///
/// # Errors
/// `Database`.
pub async fn destroy(conn: &mut Conn, id: &str) -> Result<bool> {
    let matched = diesel::update(group_snapshots::table)
        .filter(group_snapshots::id.eq(id))
        .filter(group_snapshots::deleted.eq(false))
        .set((
            group_snapshots::status.eq("deleted"),
            group_snapshots::deleted_at.eq(now()),
            group_snapshots::deleted.eq(true),
        ))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// What notifications tell of volumes besides their rows.
#[derive(Debug, Clone, Default)]
pub struct Usages {
    metadata: HashMap<String, BTreeMap<String, String>>,
    glance_metadata: HashMap<String, BTreeMap<String, String>>,
    attachments: HashMap<String, Vec<Attachment>>,
    nothing: BTreeMap<String, String>,
}

impl Usages {
    /// User metadata of a volume.
    pub fn metadata(&self, volume_id: &str) -> &BTreeMap<String, String> {
        self.metadata.get(volume_id).unwrap_or(&self.nothing)
    }

    /// Image metadata of a volume.
    pub fn glance_metadata(&self, volume_id: &str) -> &BTreeMap<String, String> {
        self.glance_metadata.get(volume_id).unwrap_or(&self.nothing)
    }

    /// Attachments of a volume.
    pub fn attachments(&self, volume_id: &str) -> &[Attachment] {
        self.attachments.get(volume_id).map_or(&[], Vec::as_slice)
    }
}

/// Reads what notifications tell of all these volumes.
///
/// # Errors
/// `Database`.
pub async fn usages(conn: &mut Conn, volume_ids: &[String]) -> Result<Usages> {
    let mut all = Usages {
        attachments: super::attachment::list_for_volumes(conn, volume_ids).await?,
        ..Usages::default()
    };
    for chunk in volume_ids.chunks(CHUNK) {
        let rows: Vec<(String, Option<String>, Option<String>)> = volume_metadata::table
            .filter(volume_metadata::volume_id.eq_any(chunk))
            .filter(volume_metadata::deleted.eq(false))
            .select((volume_metadata::volume_id, volume_metadata::key, volume_metadata::value))
            .load(conn)
            .await?;
        for (id, key, value) in rows {
            if let Some(key) = key {
                all.metadata.entry(id).or_default().insert(key, value.unwrap_or_default());
            }
        }
        let rows: Vec<(Option<String>, Option<String>, Option<String>)> = volume_glance_metadata::table
            .filter(volume_glance_metadata::volume_id.eq_any(chunk))
            .filter(volume_glance_metadata::deleted.eq(false))
            .select((
                volume_glance_metadata::volume_id,
                volume_glance_metadata::key,
                volume_glance_metadata::value,
            ))
            .load(conn)
            .await?;
        for (id, key, value) in rows {
            if let (Some(id), Some(key)) = (id, key) {
                all.glance_metadata.entry(id).or_default().insert(key, value.unwrap_or_default());
            }
        }
    }
    Ok(all)
}
