//! Moving a volume within one Ceph cluster: to another backend of its pool, or to another pool.
//!
//! In the same pool the image is where it is to be, and only the row changes. To another pool Ceph copies it
//! under the same name. The original is deleted when the row says where the copy is, not before: a crash, or a
//! deletion that fails, may leave an image too many, never a row without one. What is in use is not
//! copied: nobody would notice what is written meanwhile (reference rbd_driver.md 4.9).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use super::crash;
use super::image::{Attempt, Place};
use super::migrate::{Job, MOVED, TO_POOL};
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::model::{Service, Volume, VolumeEvent};
use crate::rbd::RbdErrorKind;
use crate::rbd::types::Parent;

/// How Ceph can move a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It is there already.
    Row,
    /// By copying its image to this pool.
    Pool(String),
    /// Not at all, for this reason.
    None(&'static str),
}

/// `location_info` of a backend's capabilities: `cluster:conf:fsid:user:pool`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) cluster_name: String,
    pub(super) conf: String,
    pub(super) fsid: String,
    /// `None`: no cephx.
    pub(super) user: Option<String>,
    pub(super) pool: String,
}

impl Location {
    /// Reads it; `None` unless the destination is a backend of Ceph that says where it is.
    pub(super) fn of(job: &Job<'_>) -> Option<Location> {
        let capability = |key: &str| job.destination.capabilities.get(key).and_then(Value::as_str);
        if capability("storage_protocol") != Some("ceph") {
            return None;
        }
        Location::parse(capability("location_info")?)
    }

    fn parse(text: &str) -> Option<Location> {
        let parts: Vec<&str> = text.split(':').collect();
        let [cluster_name, conf, fsid, user, pool] = parts.as_slice() else { return None };
        Some(Location {
            cluster_name: (*cluster_name).to_owned(),
            conf: (*conf).to_owned(),
            fsid: (*fsid).to_owned(),
            user: (*user != "None" && !user.is_empty()).then(|| (*user).to_owned()),
            pool: (*pool).to_owned(),
        })
    }
}

/// What is still to be deleted of a volume that has moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Left {
    site: String,
    image: String,
    /// What the image was cloned from.
    helpers: Vec<Parent>,
    /// GiB that this backend has allocated no longer.
    size: i32,
    host: Option<String>,
}

/// How Ceph can move the volume, which nobody has attached.
pub(super) async fn way(job: &Job<'_>, volume: &Volume) -> Result<Way> {
    if !["available", "retyping", "maintenance", "in-use"].contains(&volume.status.as_str()) {
        return Ok(Way::None("only available or in-use volumes are"));
    }
    let Some(location) = Location::of(job) else { return Ok(Way::None("the destination is not known")) };
    let place = job.backend.place(volume).await?;
    if job.backend.facts(&place.site).await?.fsid != location.fsid {
        return Ok(Way::None("the destination is another cluster"));
    }
    if location.pool == place.pool {
        return Ok(Way::Row);
    }
    if volume.status == "in-use" {
        return Ok(Way::None("it is in use"));
    }
    let id = &volume.id;
    let snapshots = job
        .backend
        .db
        .read("snapshots of a volume", async |conn| db::snapshot::list_for_volume(conn, id).await)
        .await?;
    if !snapshots.is_empty() {
        return Err(Error::new(Code::InvalidVolume, "Volume must not have snapshots."));
    }
    Ok(Way::Pool(location.pool))
}

/// The volume is another backend's from now on.
pub(super) async fn change_row(job: &Job<'_>) -> Result<()> {
    let service = job.service().await?;
    let before = job
        .backend
        .journal
        .complete(job.operation, &job.backend.done(), async |conn| switch(conn, job, &service).await)
        .await?;
    job.backend.allocate(before.host.as_deref(), -i64::from(before.size));
    job.finish().await
}

/// Copies the image to `pool` and makes it the volume's.
///
/// # Errors
/// `NotSupported` when our client has no access to that pool.
pub(super) async fn copy(job: &Job<'_>, volume: &Volume, pool: &str) -> Result<()> {
    job.operation.step(TO_POOL, &pool).await?;
    crash::point("migrate_volume:copying");
    copy_to(job, volume, pool, Attempt::First).await
}

/// The same after a crash.
pub(super) async fn copy_again(job: &Job<'_>, volume: &Volume, pool: &str) -> Result<()> {
    copy_to(job, volume, pool, Attempt::Again).await
}

async fn copy_to(job: &Job<'_>, volume: &Volume, pool: &str, attempt: Attempt) -> Result<()> {
    let backend = job.backend;
    let service = job.service().await?;
    let from = backend.place(volume).await?;
    let to = Place { site: from.site.clone(), pool: pool.to_owned() };
    let image = backend.image_name(volume);
    from.refuse_watched(&image).await?;
    if let Err(e) = from.copy_to(&to, &image, attempt).await {
        if e.kind == RbdErrorKind::Permission {
            return Err(Error::new(Code::NotSupported, format!("No access to pool {pool}")).caused_by(e));
        }
        return Err(Error::new(
            Code::VolumeMigration,
            format!("Volume {} could not be copied to pool {pool}", volume.id),
        )
        .caused_by(e));
    }
    crash::point("migrate_volume:copied");
    let switched = match from.refuse_watched(&image).await {
        Ok(()) => point_to_copy(job, volume, &from, &image, &service).await,
        Err(e) => Err(e.into()),
    };
    match switched {
        Ok(left) => {
            crash::point("migrate_volume:moved");
            leave(job, left).await
        }
        // Somebody else will go on with it.
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database) => Err(e),
        Err(failure) => {
            if let Err(error) = to.undo_create(&image, None).await {
                warn!(volume.id = volume.id, pool, %error, "could not remove the copy of a failed migration");
            }
            Err(failure)
        }
    }
}

async fn point_to_copy(
    job: &Job<'_>,
    volume: &Volume,
    from: &Place,
    image: &str,
    service: &Service,
) -> Result<Left> {
    let found = from.inspect(image).await?;
    let left = Left {
        site: from.site.name().to_owned(),
        image: image.to_owned(),
        helpers: from.helpers(image, found.as_ref()).await?,
        size: volume.size,
        host: volume.host.clone(),
    };
    job.operation
        .write("volume moved", async |conn| {
            switch(conn, job, service).await?;
            job.operation.step_in(conn, MOVED, &left).await
        })
        .await?;
    Ok(left)
}

/// Deletes the original. If that fails the volume has moved all the same, and the image is left to the operator.
pub(super) async fn leave(job: &Job<'_>, left: Left) -> Result<()> {
    let backend = job.backend;
    let place = Place { site: backend.site(&left.site)?, pool: backend.config.pool.clone() };
    let deleted = match place.inspect(&left.image).await {
        Ok(found) => place.delete(&left.image, found.as_ref(), None, &left.helpers).await,
        Err(e) => Err(e),
    };
    if let Err(error) = deleted {
        warn!(
            volume.id = job.volume_id, pool = place.pool, image = left.image, %error,
            "the volume has moved, but its former image could not be deleted: remove it with `rbd rm`"
        );
    }
    crash::point("migrate_volume:left");
    backend.allocate(left.host.as_deref(), -i64::from(left.size));
    job.finish().await
}

/// The row says where the volume is from now on; what a retype has reserved counts. Answers the row of before.
async fn switch(conn: &mut Conn, job: &Job<'_>, service: &Service) -> Result<Volume> {
    let volume = job.lock(conn).await?;
    let to = job.placement(service);
    let changes = VolumeChanges {
        host: Some(Some(to.host.to_owned())),
        cluster_name: Some(to.cluster_name.map(str::to_owned)),
        availability_zone: Some(Some(to.availability_zone.to_owned())),
        service_uuid: Some(Some(service.uuid.clone())),
        migration_status: Some(Some("success".to_owned())),
        previous_status: Some(Some(volume.status.clone())),
        volume_type_id: job.retyping.map(|r| r.new_type_id.clone()),
        ..VolumeChanges::default()
    };
    if matches!(volume.status.as_str(), "retyping" | "maintenance") {
        let status = db::moving::status_before(conn, &volume).await?;
        db::volume::transition_to(conn, &volume.id, VolumeEvent::Migrated, &status, &changes).await?;
    } else {
        db::volume::update(conn, &volume.id, &changes).await?;
    }
    db::stray::forget(conn, std::slice::from_ref(&volume.id)).await?;
    if let Some(retyping) = job.retyping {
        db::moving::set_type_of_snapshots(conn, &volume.id, &retyping.new_type_id).await?;
    }
    job.commit(conn, &volume).await?;
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_has_five_parts() {
        let location = Location::parse("ceph:/etc/ceph/a.conf:f-s-i-d:cinder:volumes");
        let expected = Location {
            cluster_name: "ceph".into(),
            conf: "/etc/ceph/a.conf".into(),
            fsid: "f-s-i-d".into(),
            user: Some("cinder".into()),
            pool: "volumes".into(),
        };
        assert_eq!(location, Some(expected));
        assert_eq!(Location::parse("ceph:c:f:None:p").and_then(|l| l.user), None);
        for wrong in ["", "a:b:c:d", "a:b:c:d:e:f"] {
            assert_eq!(Location::parse(wrong), None, "{wrong}");
        }
    }
}
