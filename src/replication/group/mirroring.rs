//! `enable_replication` and `disable_replication`: mirroring of every member of a group, on and off again.
//!
//! What an image was like before is written down before the first change, so that a crash does not make
//! features that mirroring has added look like the image's own. A member that fails does not stop the others:
//! each row says what is true of its image.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::{Set, Wish, group_failed, hold, ids, message, refuse, replication, tell_end};
use crate::backend::{Backend, DEFAULT_SITE};
use crate::context::RequestContext;
use crate::db;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome, Step};
use crate::model::{DriverData, GroupEvent, ReplicationStatus, Volume};
use crate::rbd::Site;
use crate::rbd::protocol::{ImageStat, MirrorInfo};
use crate::rbd::types::{MirrorState, features};
use crate::replication::engine::{Pause, look_at};
use crate::replication::plan::Side;
use crate::replication::standing::settled;
use crate::replication::{enable, parent};
use crate::volume::group::{AT_ONCE, at_once, is_unfinished, tell};
use crate::volume::image::Place;
use crate::volume::{crash, mode_of};

/// Journal step of a member with its [`Before`].
const BEFORE: &str = "before";
/// How long the copies on the other sites may take to appear, or to go. Nothing depends on it: it is so that a
/// group which is reported as replicated has copies, wherever that can be known.
const COPIES: Duration = Duration::from_secs(30);

/// What an image was like before its mirroring was switched on.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Before {
    site: String,
    features: u64,
    /// It was mirrored already, and this is what that has added.
    mirrored: Option<DriverData>,
}

/// What came of one member.
struct Switched {
    site: String,
    data: Option<DriverData>,
}

/// Switches mirroring of all members on. A group that is gone is a success.
///
/// # Errors
/// Only when nothing could be recorded, or when somebody else goes on with it.
pub async fn enable(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_id: &str,
) -> Result<()> {
    Box::pin(switch(backend, context, operation, group_id, Wish::Enable)).await
}

/// Switches mirroring of all members off, which removes their copies and gives the images the features back
/// that they had. A group that is gone is a success.
///
/// # Errors
/// As [`enable()`].
pub async fn disable(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_id: &str,
) -> Result<()> {
    Box::pin(switch(backend, context, operation, group_id, Wish::Disable)).await
}

async fn switch(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
    wish: Wish,
) -> Result<()> {
    let _passage = backend.gate.pass().await;
    let Some(set) = Set::read(backend, id, wish).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    let _held = hold(backend, set.volumes.iter().map(|v| v.id.clone()).collect()).await;
    let Some(set) = Set::read(backend, id, wish).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    let begun: BTreeMap<String, Step> =
        operation.items().await?.into_iter().map(|step| (step.resource_id.clone(), step)).collect();
    if begun.is_empty()
        && let Err(refusal) = set.check(wish)
    {
        return refuse(backend, context, operation, &set, wish, refusal).await;
    }
    crash::point("group_mirroring:accepted");
    tell(backend, context, wish.event(false), &set.group, &set.volumes).await;
    let able = backend.require_up().and_then(|()| match backend.is_replicated() || wish == Wish::Disable {
        true => Ok(()),
        false => Err(Error::new(Code::Replication, format!("Failed to enable replication of group {id}"))
            .detail(format!("{} has no replication_device", backend.host()))),
    });
    if let Err(failure) = able {
        return super::give_up(backend, context, operation, id, wish, failure).await;
    }
    let work = set.volumes.iter().map(|volume| {
        let begun = begun.get(&volume.id);
        async move {
            let switched = match wish {
                Wish::Enable => enable_one(backend, operation, volume, begun).await?,
                Wish::Disable | Wish::Failover => disable_one(backend, volume).await?,
            };
            crash::point("group_mirroring:member");
            Ok(switched)
        }
        .boxed()
    });
    let results: Vec<Result<Switched>> = at_once(work.collect(), AT_ONCE).await;
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for (volume, result) in set.volumes.iter().zip(results) {
        match result {
            Ok(switched) => done.push((volume, switched)),
            Err(failure) if is_unfinished(&failure) => return Err(failure),
            Err(failure) => {
                warn!(volume.id = volume.id, error = %failure, "mirroring of a group's member was not switched");
                failed.push((volume, failure));
            }
        }
    }
    await_copies(backend, &done, wish).await;
    crash::point("group_mirroring:switched");
    finish(backend, context, operation, &set, wish, &done, failed).await
}

async fn enable_one(
    backend: &Backend,
    operation: &Operation,
    volume: &Volume,
    begun: Option<&Step>,
) -> Result<Switched> {
    let volume_type = backend
        .db
        .read("type of a member", async |conn| db::volume_type::get(conn, &volume.volume_type_id).await)
        .await?;
    if volume_type.wants_multiattach() {
        return Err(Error::new(
            Code::UnsupportedCombination,
            "Replication and Multiattach are mutually exclusive: change the volume type",
        ));
    }
    let mode = mode_of(&backend.config, &volume_type)?;
    let (pool, image) = (&backend.config.pool, backend.image_name(volume));
    let before = match begun {
        Some(step) => step.parse::<Before>()?,
        None => {
            let site = backend.place(volume).await?.site;
            let info = site.insist(MirrorInfo { pool: pool.clone(), image: image.clone() }).await?;
            let bits = site.insist(ImageStat { pool: pool.clone(), image: image.clone() }).await?.features;
            if info.state == MirrorState::Enabled && !info.primary {
                return Err(not_primary(volume, &site));
            }
            let data = || DriverData::parse(volume.replication_driver_data.as_deref());
            let mirrored = (info.state == MirrorState::Enabled).then(data);
            let before = Before { site: site.name().to_owned(), features: bits, mirrored };
            operation.item_step(&volume.id, BEFORE, &before).await?;
            before
        }
    };
    let site = backend.site(&before.site)?;
    if let Some(data) = before.mirrored {
        return Ok(Switched { site: before.site, data: Some(data) });
    }
    let child = parent::Child { volume_id: &volume.id, image: &image, kind: &volume_type, mode };
    let place = Place { site: site.clone(), pool: pool.clone() };
    Box::pin(parent::prepare(backend, operation, &place, child)).await?;
    let enabled = enable::enable(&site, pool, &image, mode, before.features).await;
    let data = match enabled {
        Ok(data) => data,
        Err(error) => {
            take_back(&site, pool, &image, before.features).await;
            let text = format!("Failed to enable replication of volume {}", volume.id);
            return Err(Error::new(Code::Replication, text).caused_by(error));
        }
    };
    Ok(Switched { site: before.site, data: Some(data) })
}

/// The image gets back the features that it had: its row will not remember which were added.
pub(in crate::replication) async fn take_back(site: &Site, pool: &str, image: &str, before: u64) {
    let data = DriverData {
        had_exclusive_lock: before & features::EXCLUSIVE_LOCK != 0,
        had_journaling: before & features::JOURNALING != 0,
    };
    if let Err(error) = enable::disable(site, pool, image, data).await {
        warn!(image, site = site.name(), %error, "an image that could not be mirrored is not what it was");
    }
}

/// What mirroring has added is in the row until the end, so this may be run again as it is.
async fn disable_one(backend: &Backend, volume: &Volume) -> Result<Switched> {
    let site = backend.place(volume).await?.site;
    let (pool, image) = (&backend.config.pool, backend.image_name(volume));
    let info = site.insist(MirrorInfo { pool: pool.clone(), image: image.clone() }).await?;
    if info.state == MirrorState::Enabled && !info.primary {
        return Err(not_primary(volume, &site));
    }
    if info.state != MirrorState::Disabled || volume.replication_driver_data.is_some() {
        let data = DriverData::parse(volume.replication_driver_data.as_deref());
        enable::disable(&site, pool, &image, data).await.map_err(|e| {
            Error::new(Code::Replication, format!("Failed to disable replication of volume {}", volume.id))
                .caused_by(e)
        })?;
    }
    Ok(Switched { site: site.name().to_owned(), data: None })
}

fn not_primary(volume: &Volume, site: &Site) -> Error {
    Error::new(
        Code::InvalidVolume,
        format!("The replication of volume {} cannot be changed until it has been repaired", volume.id),
    )
    .detail(format!("its image on site {}, which serves it, is not primary", site.name()))
}

/// Waits until the other sites have, or have no longer, a copy of each member, for as long as they answer.
async fn await_copies(backend: &Backend, done: &[(&Volume, Switched)], wish: Wish) {
    let until = Instant::now() + COPIES;
    let mut work = Vec::new();
    for (volume, switched) in done {
        for name in std::iter::once(DEFAULT_SITE.to_owned()).chain(backend.device_names()) {
            if name == switched.site {
                continue;
            }
            let Ok(site) = backend.site(&name) else { continue };
            let image = backend.image_name(volume);
            work.push(
                async move {
                    if timeout_at(until, copy(backend, &site, &image, wish)).await != Ok(true) {
                        warn!(
                            volume.id = volume.id,
                            site = site.name(),
                            "the copy of a group's member is not yet there, or not yet gone: is its rbd-mirror running?"
                        );
                    }
                }
                .boxed(),
            );
        }
    }
    at_once(work, AT_ONCE).await;
}

/// True when the copy is as it is to be, false when its site does not answer.
async fn copy(backend: &Backend, site: &Site, image: &str, wish: Wish) -> bool {
    let mut pause = Pause::default();
    loop {
        match look_at(site, &backend.config.pool, image, backend.config.verdict_timeout).await {
            Ok(side) if (side == Side::Absent) == (wish == Wish::Disable) => return true,
            Ok(_) => pause.rest().await,
            Err(_) => return false,
        }
    }
}

async fn finish(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    set: &Set,
    wish: Wish,
    done: &[(&Volume, Switched)],
    failed: Vec<(&Volume, Error)>,
) -> Result<()> {
    let (id, waiting) = (&set.group.id, wish.waiting());
    let left: Vec<Volume> = failed.iter().map(|(volume, _)| (*volume).clone()).collect();
    let failure = failed.into_iter().next().map(|(_, failure)| failure);
    let outcome = failure.as_ref().map_or_else(Outcome::succeeded, Outcome::failed);
    let group_status = match wish {
        Wish::Disable => ReplicationStatus::Disabled,
        Wish::Enable | Wish::Failover => {
            set.volumes.first().map_or(settled(&set.active), |v| settled(set.site_of(v)))
        }
    };
    let ttl = backend.globals.message_ttl;
    let still_ours = backend
        .journal
        .complete(operation, &outcome, async |conn| {
            for (volume, switched) in done {
                let status = match switched.data {
                    Some(_) => settled(&switched.site),
                    None => ReplicationStatus::Disabled,
                };
                let changes = VolumeChanges {
                    replication_driver_data: Some(switched.data.map(DriverData::to_text)),
                    replication_extended_status: Some(None),
                    ..replication(status)
                };
                let one = [volume.id.clone()];
                db::group_replication::settle_volumes(conn, &one, waiting, &changes).await?;
            }
            let error = replication(ReplicationStatus::Error);
            db::group_replication::settle_volumes(conn, &ids(&left), waiting, &error).await?;
            let Some(failure) = &failure else {
                let event = GroupEvent::ReplicationSettled;
                return db::group_replication::settle_group(conn, id, waiting, event, group_status).await;
            };
            let ours = group_failed(conn, id, wish).await?;
            if ours {
                db::message::create(conn, context, &message(id, failure), ttl).await?;
            }
            Ok(ours)
        })
        .await?;
    match &failure {
        Some(failure) => {
            tracing::error!(group.id = id, error = %failure, "{} failed", operation.method());
        }
        None if !still_ours => {
            warn!(
                group.id = id,
                "the group was changed while its mirroring was switched: its row is left alone"
            );
        }
        None => {
            info!(group.id = id, volumes = done.len(), "{} done", operation.method());
            backend.schedules_wanted.notify_one();
            tell_end(backend, context, id, wish).await;
        }
    }
    Ok(())
}
