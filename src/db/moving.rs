//! Rows of volumes that change their type or their backend.
//!
//! A migration by copying has two rows: the volume's own, and one for its destination, with
//! `migration_status` `target:<id>`. In the end they change places: the volume's row keeps its id and says
//! where the copy is, the other says where the original was, and is deleted with it
//! (`cinder/objects/volume.py`, `finish_volume_migration`). Metadata stays with the volume's row; stock moves
//! it to the other one and back.

use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;

use super::schema::{snapshots, volume_attachment, volumes};
use super::volume::{VolumeChanges, transition, transition_to};
use super::{Conn, attachment, now, stray, volume};
use crate::error::{Code, Error, Result};
use crate::model::{Volume, VolumeEvent};

/// Where a volume is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement<'a> {
    /// `host@backend#pool`.
    pub host: &'a str,
    /// Of the Cinder cluster, if any.
    pub cluster_name: Option<&'a str>,
    /// Of the service there.
    pub availability_zone: &'a str,
}

/// Makes the row of a migration's destination, a copy of the volume's under `new_id`. What says where its
/// content comes from is left out, as is what is only true of the original.
///
/// # Errors
/// `VolumeNotFound`; `Database`.
pub async fn create_target(
    conn: &mut Conn,
    volume_id: &str,
    new_id: &str,
    to: &Placement<'_>,
    new_type_id: Option<&str>,
) -> Result<Volume> {
    // Columns that a row needs, or that the destination's service looks at.
    diesel::sql_query(
        "INSERT INTO volumes (id, host, cluster_name, availability_zone, status, attach_status, migration_status, \
           use_quota, volume_type_id, created_at, updated_at, deleted, ec2_id, user_id, project_id, size, \
           scheduled_at, launched_at, display_name, display_description, bootable, multiattach, \
           replication_status, previous_status, encryption_key_id, shared_targets) \
         SELECT ?, ?, ?, ?, 'creating', 'detached', CONCAT('target:', id), 0, COALESCE(?, volume_type_id), \
           created_at, UTC_TIMESTAMP(), 0, ec2_id, user_id, project_id, size, scheduled_at, launched_at, \
           display_name, display_description, bootable, multiattach, replication_status, previous_status, \
           encryption_key_id, shared_targets \
         FROM volumes WHERE id = ? AND deleted = 0",
    )
    .bind::<Text, _>(new_id)
    .bind::<Text, _>(to.host)
    .bind::<Nullable<Text>, _>(to.cluster_name)
    .bind::<Text, _>(to.availability_zone)
    .bind::<Nullable<Text>, _>(new_type_id)
    .bind::<Text, _>(volume_id)
    .execute(conn)
    .await?;
    match volume::find(conn, new_id).await? {
        Some(target) => Ok(target),
        None => Err(volume::not_found(volume_id)),
    }
}

/// The volume and the row of its migration's destination, both locked.
///
/// # Errors
/// `VolumeNotFound`; `InvalidVolume` when the second is not the destination of the first.
pub async fn lock_pair(conn: &mut Conn, volume_id: &str, new_id: &str) -> Result<(Volume, Volume)> {
    // In one order, whichever is which.
    let (volume, target) = if volume_id < new_id {
        let volume = volume::lock(conn, volume_id).await?;
        (volume, volume::lock(conn, new_id).await?)
    } else {
        let target = volume::lock(conn, new_id).await?;
        (volume::lock(conn, volume_id).await?, target)
    };
    let expected = format!("target:{volume_id}");
    if target.migration_status.as_deref() != Some(expected.as_str()) {
        return Err(Error::new(
            Code::InvalidVolume,
            format!(
                "Destination has migration_status {}, expected {expected}.",
                target.migration_status.as_deref().unwrap_or("None")
            ),
        ));
    }
    Ok((volume, target))
}

/// Lets volume and destination change places. `name_id` is what the image of the volume is named by from now
/// on, `None` when it has been given the volume's own name. The status becomes what it was before
/// the migration (`status`), unless somebody has changed it meanwhile. Both rows must be locked.
///
/// # Errors
/// `Database`.
pub async fn swap(
    conn: &mut Conn,
    volume: &Volume,
    target: &Volume,
    name_id: Option<&str>,
    status: &str,
) -> Result<Volume> {
    // Attachments that Nova has made to the destination while it copied are the volume's.
    diesel::update(volume_attachment::table)
        .filter(volume_attachment::volume_id.eq(&target.id))
        .filter(volume_attachment::deleted.eq(false))
        .set((volume_attachment::volume_id.eq(&volume.id), volume_attachment::updated_at.eq(now())))
        .execute(conn)
        .await?;
    let attachments = attachment::list_for_volume(conn, &volume.id).await?;
    let statuses = attachments.iter().filter_map(|a| a.attach_status.as_deref());
    let (_, attach_status) = attachment::derive_status(statuses);
    let moved = VolumeChanges {
        name_id: Some(name_id.map(str::to_owned)),
        attach_status: Some(Some(attach_status.to_owned())),
        migration_status: Some(Some("success".to_owned())),
        previous_status: Some(Some(volume.status.clone())),
        volume_type_id: Some(target.volume_type_id.clone()),
        ..place_of(target)
    };
    match transition_to(conn, &volume.id, VolumeEvent::Migrated, status, &moved).await {
        Err(e) if e.code() == Code::Conflict => volume::update(conn, &volume.id, &moved).await?,
        other => other?,
    }
    let left = VolumeChanges {
        name_id: Some(Some(volume.name_id().to_owned())),
        attach_status: Some(Some("detached".to_owned())),
        migration_status: Some(Some("deleting".to_owned())),
        previous_status: Some(volume.previous_status.clone()),
        ..place_of(volume)
    };
    transition(conn, &target.id, VolumeEvent::MigrationLeftover, &left).await?;
    // Which site serves the original is asked under the row that leads to it.
    if let Some(site) = stray::site_of(conn, &volume.id).await? {
        stray::forget(conn, std::slice::from_ref(&volume.id)).await?;
        stray::record(conn, std::slice::from_ref(&target.id), &site).await?;
    }
    diesel::update(volumes::table)
        .filter(volumes::id.eq(&target.id))
        .set(volumes::display_description.eq(format!("migration src for {}", volume.id)))
        .execute(conn)
        .await?;
    volume::get(conn, &volume.id).await
}

/// Where a volume's image is, and what it is like there.
fn place_of(volume: &Volume) -> VolumeChanges {
    VolumeChanges {
        host: Some(volume.host.clone()),
        cluster_name: Some(volume.cluster_name.clone()),
        availability_zone: Some(volume.availability_zone.clone()),
        service_uuid: Some(volume.service_uuid.clone()),
        launched_at: Some(volume.launched_at),
        provider_id: Some(volume.provider_id.clone()),
        provider_location: Some(volume.provider_location.clone()),
        replication_status: Some(volume.replication_status.clone()),
        replication_extended_status: Some(volume.replication_extended_status.clone()),
        replication_driver_data: Some(volume.replication_driver_data.clone()),
        shared_targets: Some(volume.shared_targets),
        ..VolumeChanges::default()
    }
}

/// The snapshots of a volume have its new type.
///
/// # Errors
/// `Database`.
pub async fn set_type_of_snapshots(conn: &mut Conn, volume_id: &str, type_id: &str) -> Result<usize> {
    Ok(diesel::update(snapshots::table)
        .filter(snapshots::volume_id.eq(volume_id))
        .filter(snapshots::deleted.eq(false))
        .set((snapshots::volume_type_id.eq(type_id), snapshots::updated_at.eq(now())))
        .execute(conn)
        .await?)
}

/// The status that a volume had before a request took hold of it.
///
/// # Errors
/// `Database`.
pub async fn status_before(conn: &mut Conn, volume: &Volume) -> Result<String> {
    if let Some(status) = volume.previous_status.as_ref().filter(|s| !s.is_empty()) {
        return Ok(status.clone());
    }
    let attached = !attachment::list_for_volume(conn, &volume.id).await?.is_empty();
    Ok(if attached { "in-use" } else { "available" }.to_owned())
}
