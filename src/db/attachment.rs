//! The `volume_attachment` table, and how a volume's status follows from its attachments.

use std::collections::HashMap;

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;

use super::schema::{volume_attachment, volumes};
use super::{Conn, now, volume};
use crate::error::{Code, Error, Result};
use crate::model::transition::{self, VolumeEvent};
use crate::model::{Attachment, AttachmentDraft};

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = volume_attachment, check_for_backend(Mysql))]
struct AttachmentRow {
    id: String,
    volume_id: String,
    instance_uuid: Option<String>,
    attached_host: Option<String>,
    mountpoint: Option<String>,
    attach_time: Option<NaiveDateTime>,
    detach_time: Option<NaiveDateTime>,
    attach_status: Option<String>,
    attach_mode: Option<String>,
    connection_info: Option<String>,
    connector: Option<String>,
    created_at: Option<NaiveDateTime>,
    updated_at: Option<NaiveDateTime>,
}

impl From<AttachmentRow> for Attachment {
    fn from(row: AttachmentRow) -> Attachment {
        // Cinder stores JSON text; what cannot be read is as good as absent.
        let json = |text: Option<String>| text.and_then(|t| serde_json::from_str::<Value>(&t).ok());
        Attachment {
            id: row.id,
            volume_id: row.volume_id,
            instance_uuid: row.instance_uuid,
            attached_host: row.attached_host,
            mountpoint: row.mountpoint,
            attach_time: row.attach_time,
            detach_time: row.detach_time,
            attach_status: row.attach_status,
            attach_mode: row.attach_mode,
            connection_info: json(row.connection_info),
            connector: json(row.connector),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// New values of an attachment's columns. `None` leaves a column alone, `Some(None)` makes it NULL.
/// `connector` and `connection_info` are JSON texts.
#[derive(Debug, Clone, Default, PartialEq, AsChangeset)]
#[diesel(table_name = volume_attachment)]
#[allow(missing_docs)]
pub struct AttachmentChanges {
    pub instance_uuid: Option<Option<String>>,
    pub attached_host: Option<Option<String>>,
    pub mountpoint: Option<Option<String>>,
    pub attach_time: Option<Option<NaiveDateTime>>,
    pub attach_status: Option<String>,
    pub attach_mode: Option<Option<String>>,
    pub connection_info: Option<Option<String>>,
    pub connector: Option<Option<String>>,
}

/// The attachment, unless deleted.
///
/// # Errors
/// `AttachmentNotFound`.
pub async fn get(conn: &mut Conn, id: &str) -> Result<Attachment> {
    find(conn, id).await?.ok_or_else(|| not_found(id))
}

/// The attachments of volumes, by volume.
///
/// # Errors
/// `Database`.
pub async fn list_for_volumes(
    conn: &mut Conn,
    volume_ids: &[String],
) -> Result<HashMap<String, Vec<Attachment>>> {
    let mut found: HashMap<String, Vec<Attachment>> = HashMap::new();
    for chunk in volume_ids.chunks(volume::CHUNK) {
        let rows: Vec<AttachmentRow> = volume_attachment::table
            .filter(volume_attachment::volume_id.eq_any(chunk))
            .filter(volume_attachment::deleted.eq(false))
            .select(AttachmentRow::as_select())
            .order((volume_attachment::created_at, volume_attachment::id))
            .load(conn)
            .await?;
        for row in rows {
            found.entry(row.volume_id.clone()).or_default().push(row.into());
        }
    }
    Ok(found)
}

/// The attachment, `None` when deleted or unknown.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, id: &str) -> Result<Option<Attachment>> {
    let row: Option<AttachmentRow> = volume_attachment::table
        .filter(volume_attachment::id.eq(id))
        .filter(volume_attachment::deleted.eq(false))
        .select(AttachmentRow::as_select())
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(Attachment::from))
}

/// The volume's attachments, oldest first.
///
/// # Errors
/// `Database`.
pub async fn list_for_volume(conn: &mut Conn, volume_id: &str) -> Result<Vec<Attachment>> {
    let rows: Vec<AttachmentRow> = volume_attachment::table
        .filter(volume_attachment::volume_id.eq(volume_id))
        .filter(volume_attachment::deleted.eq(false))
        .select(AttachmentRow::as_select())
        .order((volume_attachment::created_at, volume_attachment::id))
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(Attachment::from).collect())
}

/// Adds an attachment in status `attaching` (`Volume.begin_attach`). Of the draft
/// only the volume is stored; the rest comes with [`attached`].
///
/// # Errors
/// `Database`.
pub async fn create(conn: &mut Conn, draft: &AttachmentDraft) -> Result<Attachment> {
    let id = Uuid::new_v4().to_string();
    diesel::insert_into(volume_attachment::table)
        .values((
            volume_attachment::id.eq(&id),
            volume_attachment::volume_id.eq(&draft.volume_id),
            volume_attachment::attach_status.eq("attaching"),
            volume_attachment::deleted.eq(false),
            volume_attachment::created_at.eq(now()),
        ))
        .execute(conn)
        .await?;
    get(conn, &id).await
}

/// Writes columns; `updated_at` becomes now.
///
/// # Errors
/// `AttachmentNotFound`.
pub async fn update(conn: &mut Conn, id: &str, changes: &AttachmentChanges) -> Result<()> {
    let matched = diesel::update(volume_attachment::table)
        .filter(volume_attachment::id.eq(id))
        .filter(volume_attachment::deleted.eq(false))
        .set((changes, volume_attachment::updated_at.eq(now())))
        .execute(conn)
        .await?;
    if matched == 0 { Err(not_found(id)) } else { Ok(()) }
}

/// How far an attachment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// `attachment_update`: the API completes it later.
    Attaching,
    /// `attach_volume`.
    Attached,
}

/// Records who attaches and puts attachment and volume into the matching status
/// (`cinder.db.api.volume_attached`).
///
/// # Errors
/// `InvalidUuid` when the instance is no uuid; `Conflict` when the volume's status does not allow it;
/// `AttachmentNotFound`; `VolumeNotFound`.
pub async fn attached(conn: &mut Conn, id: &str, draft: &AttachmentDraft, progress: Progress) -> Result<()> {
    if let Some(instance) = &draft.instance_uuid
        && Uuid::try_parse(instance).is_err()
    {
        return Err(Error::new(
            Code::InvalidUuid,
            format!("Expected a uuid but received {}.", instance.escape_debug()),
        ));
    }
    let (attach_status, event) = match progress {
        Progress::Attaching => ("attaching", VolumeEvent::Attaching),
        Progress::Attached => ("attached", VolumeEvent::Attached),
    };
    let changes = AttachmentChanges {
        mountpoint: Some(draft.mountpoint.clone()),
        attach_status: Some(attach_status.to_owned()),
        instance_uuid: Some(draft.instance_uuid.clone()),
        attached_host: Some(draft.attached_host.clone()),
        attach_time: Some(Some(now())),
        attach_mode: Some(draft.attach_mode.clone()),
        ..AttachmentChanges::default()
    };
    update(conn, id, &changes).await?;
    let volume = volume::VolumeChanges {
        attach_status: Some(Some(attach_status.to_owned())),
        ..volume::VolumeChanges::default()
    };
    volume::transition(conn, &draft.volume_id, event, &volume).await
}

/// What became of the volume when an attachment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detached {
    /// The volume's status now.
    pub status: String,
    /// The volume's attach_status now.
    pub attach_status: String,
}

/// Ends an attachment, which may be gone already: soft-deletes it, derives the volume's status from
/// what remains, and forgets `attached_mode` (`Volume.finish_detach`, `volume_detached`).
///
/// The status stays as it is while the volume is migrating or uploading (their own end sets it), and,
/// unlike upstream, when it is one that detaching has no say in, such as `error` after a failover.
///
/// # Errors
/// `VolumeNotFound`.
pub async fn finish_detach(conn: &mut Conn, volume_id: &str, attachment_id: &str) -> Result<Detached> {
    let volume = volume::lock(conn, volume_id).await?;
    destroy(conn, attachment_id).await?;
    let remaining: Vec<Option<String>> = volume_attachment::table
        .filter(volume_attachment::volume_id.eq(volume_id))
        .filter(volume_attachment::deleted.eq(false))
        .select(volume_attachment::attach_status)
        .load(conn)
        .await?;
    let (status, attach_status) = derive_status(remaining.iter().flatten().map(String::as_str));
    let busy =
        volume.status == "uploading" || volume.migration_status.as_deref().is_some_and(|m| !m.is_empty());
    let over = matches!(volume.migration_status.as_deref(), Some("success" | "error"));
    let may_set = attach_status != "detached" || !busy || over;
    let allowed = transition::volume(VolumeEvent::Detached).from.contains(&volume.status.as_str());
    let new_status = (may_set && allowed).then_some(status);
    diesel::update(volumes::table)
        .filter(volumes::id.eq(volume_id))
        .set((
            new_status.map(|s| volumes::status.eq(s)),
            volumes::attach_status.eq(attach_status),
            volumes::updated_at.eq(now()),
        ))
        .execute(conn)
        .await?;
    volume::delete_admin_metadata(conn, volume_id, "attached_mode").await?;
    Ok(Detached {
        status: new_status.map_or(volume.status, str::to_owned),
        attach_status: attach_status.to_owned(),
    })
}

/// Ends a volume's `attaching` or `detaching` whose request is given up: its status follows from the
/// attachments that it has. Any other status is left alone.
///
/// # Errors
/// `Database`.
pub async fn abandon(conn: &mut Conn, volume_id: &str) -> Result<()> {
    let volume = match volume::lock(conn, volume_id).await {
        Err(e) if e.code() == Code::VolumeNotFound => return Ok(()),
        found => found?,
    };
    let event = VolumeEvent::AttachmentAbandoned;
    if !transition::volume(event).from.contains(&volume.status.as_str()) {
        return Ok(());
    }
    let remaining = list_for_volume(conn, volume_id).await?;
    let (status, attach_status) = derive_status(remaining.iter().filter_map(|a| a.attach_status.as_deref()));
    let changes = volume::VolumeChanges {
        attach_status: Some(Some(attach_status.to_owned())),
        ..volume::VolumeChanges::default()
    };
    volume::transition_to(conn, volume_id, event, status, &changes).await?;
    if attach_status == "detached" {
        volume::delete_admin_metadata(conn, volume_id, "attached_mode").await?;
    }
    Ok(())
}

/// Soft-deletes an attachment; `updated_at` becomes now, as upstream's ORM does here. Returns false
/// when it was gone before.
///
/// # Errors
/// `Database`.
pub async fn destroy(conn: &mut Conn, id: &str) -> Result<bool> {
    let at = now();
    let matched = diesel::update(volume_attachment::table)
        .filter(volume_attachment::id.eq(id))
        .filter(volume_attachment::deleted.eq(false))
        .set((
            volume_attachment::detach_time.eq(at),
            volume_attachment::attach_status.eq("detached"),
            volume_attachment::deleted_at.eq(at),
            volume_attachment::deleted.eq(true),
            volume_attachment::updated_at.eq(at),
        ))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// Volume status and attach_status that follow from its attachments' statuses: the alphabetically
/// first that is no error wins (`attached` before `attaching`, `detaching`, `reserved`).
pub fn derive_status<'a>(attachments: impl Iterator<Item = &'a str>) -> (&'a str, &'a str) {
    match attachments.filter(|s| !s.starts_with("error_")).min() {
        None => ("available", "detached"),
        Some("attached") => ("in-use", "attached"),
        Some(other) => (other, other),
    }
}

fn not_found(id: &str) -> Error {
    Error::new(
        Code::AttachmentNotFound,
        format!("Volume attachment could not be found with filter: attachment_id = {id}."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_follows_its_most_attached_attachment() {
        let derive = |list: &'static [&'static str]| derive_status(list.iter().copied());
        assert_eq!(derive(&[]), ("available", "detached"));
        assert_eq!(derive(&["error_attaching"]), ("available", "detached"));
        assert_eq!(derive(&["reserved", "attached", "error_detaching"]), ("in-use", "attached"));
        assert_eq!(derive(&["reserved", "attaching"]), ("attaching", "attaching"));
        assert_eq!(derive(&["reserved", "detaching"]), ("detaching", "detaching"));
        assert_eq!(derive(&["reserved"]), ("reserved", "reserved"));
    }
}
