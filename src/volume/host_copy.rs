//! Moving a volume to a backend that Ceph cannot move it to: another cluster, or another host's pool.
//!
//! The destination's service makes an empty volume, as any other, with its own type, mirroring and limits.
//! Then the content is copied into its image, in pieces, so that a crash costs one piece and not the whole;
//! and the two rows change places ([`super::migrated`]). The destination's site is found by what its backend
//! reports (`location_info`), so this host needs its ceph.conf and keyring, as stock's host does for its copy.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::image::{Attempt, Place};
use super::migrate::{COPIED, COPYING, Copy, Job, TARGET};
use super::pool_move::Location;
use super::{crash, migrated, nova_copy};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::model::{Attachment, Volume, backend_of};
use crate::rbd::protocol::{Connection, Fsid};

/// How often the destination's row is looked at while its service makes the volume.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of the image that one request copies, and that a crash makes us copy again.
const PIECE: u64 = 8 << 30;
/// No smaller than the header of an encrypted volume.
const HEAD: u64 = 4 << 20;

/// Moves a volume that has no row at its destination yet.
pub(super) async fn begin(job: &Job<'_>, volume: &Volume, attachments: &[Attachment]) -> Result<()> {
    require_same_encryption(job, volume).await?;
    // Looked at before anybody is asked to make something.
    if attachments.is_empty() {
        let source = job.backend.place(volume).await?;
        destination(job, &source).await?;
        source.refuse_watched(&job.backend.image_name(volume)).await?;
    } else {
        nova_copy::servers(volume, attachments)?;
    }
    let service = job.service().await?;
    let copy = Copy { new_id: Uuid::new_v4().to_string(), ..Copy::default() };
    job.operation
        .write("destination of a migration", async |conn| {
            job.lock(conn).await?;
            let new_type = job.retyping.map(|r| r.new_type_id.as_str());
            db::moving::create_target(conn, &volume.id, &copy.new_id, &job.placement(&service), new_type)
                .await?;
            job.operation.step_in(conn, TARGET, &copy).await
        })
        .await?;
    crash::point("migrate_volume:target");
    go_on(job, volume, TARGET, copy).await
}

/// What is copied is what lies in the image. Stock's service would copy what can be read with the keys through
/// dm-crypt, which it cannot set up for RBD.
async fn require_same_encryption(job: &Job<'_>, volume: &Volume) -> Result<()> {
    let Some(retyping) = job.retyping else { return Ok(()) };
    let (old, new) = job
        .backend
        .db
        .read("encryption before and after", async |conn| {
            let old = db::volume_type::encryption_of(conn, &volume.volume_type_id).await?;
            Ok((old, db::volume_type::encryption_of(conn, &retyping.new_type_id).await?))
        })
        .await?;
    if old == new {
        return Ok(());
    }
    Err(Error::new(
        Code::VolumeMigration,
        format!("Volume {} cannot be encrypted in another way than it is", volume.id),
    ))
}

/// Goes on after `step`.
pub(super) async fn go_on(job: &Job<'_>, volume: &Volume, step: &str, mut copy: Copy) -> Result<()> {
    if step == TARGET {
        await_target(job, &copy.new_id).await?;
        let id = &volume.id;
        let attachments = async |conn: &mut db::Conn| db::attachment::list_for_volume(conn, id).await;
        if !job.backend.db.read("attachments of a volume", attachments).await?.is_empty() {
            return nova_copy::begin(job, copy).await;
        }
    }
    let source = job.backend.place(volume).await?;
    let dest = destination(job, &source).await?;
    if step == TARGET {
        job.operation.step(COPYING, &copy).await?;
    }
    if step != COPIED {
        fill(job, volume, &source, &dest, &mut copy).await?;
        job.operation.step(COPIED, &copy).await?;
        crash::point("migrate_volume:filled");
    }
    let attempt = if step == COPIED { Attempt::Again } else { Attempt::First };
    migrated::settle(job, volume, &source, &dest, &copy, attempt).await
}

/// The pool of the destination, on a site that answers as the one it claims to be.
async fn destination(job: &Job<'_>, source: &Place) -> Result<Place> {
    let host = &job.destination.host;
    let location = Location::of(job).ok_or_else(|| {
        Error::new(Code::VolumeMigration, format!("It is not known how to reach the storage of {host}"))
            .detail(format!(
                "its capabilities name storage_protocol {} and location_info {}",
                job.destination.capabilities.get("storage_protocol").unwrap_or(&Value::Null),
                job.destination.capabilities.get("location_info").unwrap_or(&Value::Null)
            ))
    })?;
    let site = source.site.elsewhere(Connection {
        site: backend_of(host).to_owned(),
        conf: location.conf.into(),
        cluster_name: location.cluster_name,
        user: location.user,
        connect_timeout: None,
    });
    let unreachable = |e: crate::rbd::RbdError| {
        Error::new(Code::VolumeMigration, format!("The storage of {host} cannot be reached from here"))
            .caused_by(e)
    };
    let fsid = site.insist(Fsid {}).await.map_err(unreachable)?;
    if fsid != location.fsid {
        return Err(Error::new(
            Code::VolumeMigration,
            format!("The ceph.conf that leads to {host} leads elsewhere on this host"),
        )
        .detail(format!("the fsid is {fsid}, {host} reports {}", location.fsid)));
    }
    Ok(Place { site, pool: location.pool })
}

/// Asks the destination's service for the volume and waits until it is there.
async fn await_target(job: &Job<'_>, new_id: &str) -> Result<()> {
    let db = &job.backend.db;
    let read = || db.read("destination of a migration", async |conn| db::volume::find(conn, new_id).await);
    let lost = || Error::new(Code::VolumeMigration, "failed to create new_volume on destination");
    let target = read().await?.ok_or_else(lost)?;
    if target.status == "creating" {
        let to = job.destination.cluster_name.as_deref().unwrap_or(&job.destination.host);
        job.backend.peers.volumes.create_volume(job.context, to, &target).await?;
    }
    crash::point("migrate_volume:asked");
    let until = Instant::now() + job.backend.globals.migration_create_timeout;
    loop {
        match read().await?.map(|target| target.status).as_deref() {
            Some("available") => return Ok(()),
            None | Some("error") => return Err(lost()),
            Some(_) if Instant::now() >= until => {
                return Err(Error::new(Code::VolumeMigration, "timeout creating new_volume on destination"));
            }
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Copies what is not copied yet.
async fn fill(job: &Job<'_>, volume: &Volume, source: &Place, dest: &Place, copy: &mut Copy) -> Result<()> {
    let image = job.backend.image_name(volume);
    let new_image = job.backend.globals.volume_name_template.replace("%s", &copy.new_id);
    let failed = |e: crate::rbd::RbdError| {
        Error::new(Code::VolumeMigration, format!("Volume {} could not be copied", volume.id)).caused_by(e)
    };
    let size = source.stat(&image).await.map_err(failed)?.size;
    let began = Instant::now();
    let mut written = 0;
    if copy.offset == 0 && volume.encryption_key_id.is_some() {
        // It has a header of its own, on which what is zero in ours would not be written.
        dest.grow(&new_image, size).await.map_err(failed)?;
        let head = source.read_head(&image, None, HEAD.min(size)).await.map_err(failed)?;
        dest.write_head(&new_image, &head).await.map_err(failed)?;
    }
    while copy.offset < size {
        let length = PIECE.min(size - copy.offset);
        written += source.transfer(&image, dest, &new_image, copy.offset, length).await.map_err(failed)?;
        copy.offset += length;
        job.operation.step(COPYING, copy).await?;
        crash::point("migrate_volume:copying");
    }
    let copy_ms = began.elapsed().as_millis() as u64;
    info!(volume.id = volume.id, bytes = size, written_bytes = written, copy_ms, "volume copied");
    if let Err(error) = source.refuse_watched(&image).await {
        warn!(volume.id = volume.id, %error, "somebody opened the volume while it was copied");
        return Err(failed(error));
    }
    Ok(())
}
