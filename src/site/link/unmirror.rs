//! Ending the mirroring of images, with what was added to them for it, and of their volumes' rows.
//!
//! Ceph takes `journaling` away with the mirroring by journal, whoever had switched it on. In a pool that is mirrored as
//! a whole, images are mirrored because their owner has switched it on: he gets it back. What Scoria has added is in the
//! row of a volume, and in a mark on an image that is none ([`enable::ADDED`]).

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::census::{Census, Image, by_pool, is_mirrored, volume_of};
use super::pair::End;
use super::plan::On;
use crate::db::adoption;
use crate::db::peer_link::Mirrored;
use crate::error::Result;
use crate::journal::Operation;
use crate::model::DriverData;
use crate::rbd::protocol::*;
use crate::rbd::types::{MirrorState, PoolMirrorMode, features};
use crate::rbd::{RbdError, RbdErrorKind};
use crate::replication::enable;
use crate::site::{Sites, item};
use crate::volume::crash;

/// The step of an image whose features are settled after its mirroring has ended.
const FEATURES: &str = "features";

/// What an image is to have when it is not mirrored any more: written down before, since Ceph does not know it then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owed {
    /// On the site that stays.
    here: bool,
    pool: String,
    image: String,
    /// Its owner's journaling comes back.
    journaling: bool,
    /// The exclusive lock that was added goes.
    lock: bool,
}

/// Ends the mirroring of the primaries, children before parents, and makes the rows say so.
pub(super) async fn end_mirroring(
    sites: &Sites,
    operation: &Operation,
    a: &End,
    b: Option<&End>,
    census: &Census,
) -> Result<()> {
    operation.step("ending mirroring", &json!({})).await?;
    for (on, end) in std::iter::once((On::A, a)).chain(b.map(|b| (On::B, b))) {
        let of_end = || census.images.iter().filter(|image| image.on == on);
        let noted: HashSet<String> = operation
            .items()
            .await?
            .into_iter()
            .filter(|step| step.name == FEATURES)
            .map(|step| step.resource_id)
            .collect();
        for (pool, images) in by_pool(of_end()) {
            let mode = end.site.insist(MirrorPoolMode { pool: pool.to_owned() }).await;
            let whole = mode.map_err(|e| end.explain(e))? == PoolMirrorMode::Pool;
            let of_volume = |image: &Image| on == On::A && volume(census, image).is_some();
            for image in images.into_iter().filter(|image| image.primary && !of_volume(image)) {
                // An attempt that goes on finds the image changed.
                if !noted.contains(&item(&image.name)) {
                    note(operation, end, image, whole).await?;
                }
            }
            if whole {
                // In pool mode images cannot be taken out one by one.
                let ask = MirrorModeSet { pool: pool.to_owned(), mode: PoolMirrorMode::Image };
                end.site.insist(ask).await.map_err(|e| end.explain(e))?;
            }
        }
        let mut left: Vec<&Image> = of_end().filter(|image| image.primary).collect();
        while !left.is_empty() {
            let (mut parents, mut last) = (Vec::new(), None);
            for image in &left {
                let volume = volume(census, image).filter(|_| on == On::A);
                match stop(end, image, volume).await {
                    Ok(()) => crash::point("link:stopped"),
                    Err(e) if e.kind == RbdErrorKind::Busy => {
                        parents.push(*image);
                        last = Some(e);
                    }
                    Err(e) => return Err(end.explain(e)),
                }
            }
            // Nothing but parents of mirrored children, and no child went.
            if let Some(e) = last.filter(|_| parents.len() == left.len()) {
                return Err(end.explain(e));
            }
            left = parents;
        }
    }
    give_back(operation, a, b).await?;
    settle(sites, operation, a, census).await
}

/// The volume of an image.
fn volume<'a>(census: &'a Census, image: &Image) -> Option<&'a Mirrored> {
    volume_of(&image.name).and_then(|id| census.volumes.iter().find(|v| v.name_id == id))
}

/// Writes down what the features of an image are to be in the end, where that is not what Ceph leaves.
async fn note(operation: &Operation, end: &End, image: &Image, whole: bool) -> Result<()> {
    let (pool, name) = (image.pool.clone(), image.name.clone());
    let stat = match end.site.insist(ImageStat { pool: pool.clone(), image: name.clone() }).await {
        Err(e) if e.kind == RbdErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| end.explain(e))?,
    };
    let added = enable::added(&end.site, &pool, &name).await.map_err(|e| end.explain(e))?;
    let had = stat.features & features::JOURNALING != 0;
    let journaling = whole && had && !added.is_some_and(|added| added.journaling);
    let lock = added.is_some_and(|added| added.exclusive_lock);
    if !journaling && added.is_none() {
        return Ok(());
    }
    let owed = Owed { here: image.on == On::A, pool, image: name, journaling, lock };
    operation.item_step(&item(&image.name), FEATURES, &owed).await
}

/// Makes the features of images what was written down, this time or by an attempt before.
async fn give_back(operation: &Operation, a: &End, b: Option<&End>) -> Result<()> {
    let owed = operation.items().await?.into_iter().filter(|step| step.name == FEATURES);
    for owed in owed.map(|step| step.parse::<Owed>()) {
        let owed = owed?;
        let Some(end) = (if owed.here { Some(a) } else { b }) else { continue };
        match features_as_owed(end, &owed).await {
            Ok(()) => crash::point("link:features"),
            Err(e) if e.kind == RbdErrorKind::NotFound => {}
            Err(e) => return Err(end.explain(e)),
        }
    }
    Ok(())
}

async fn features_as_owed(end: &End, owed: &Owed) -> std::result::Result<(), RbdError> {
    let (pool, image) = (owed.pool.as_str(), owed.image.as_str());
    let info = end.site.insist(MirrorInfo { pool: pool.to_owned(), image: image.to_owned() }).await?;
    if info.state != MirrorState::Disabled {
        return Ok(());
    }
    if owed.journaling {
        enable::switch_feature(&end.site, pool, image, features::JOURNALING, true).await?;
    }
    if owed.lock {
        match enable::switch_feature(&end.site, pool, image, features::EXCLUSIVE_LOCK, false).await {
            // Somebody has switched something on since that needs it.
            Err(e) if e.kind == RbdErrorKind::Invalid => {}
            other => other?,
        }
    }
    enable::forget_added(&end.site, pool, image).await
}

async fn stop(end: &End, image: &Image, volume: Option<&Mirrored>) -> std::result::Result<(), RbdError> {
    let done = match volume {
        Some(volume) => {
            let data = DriverData::parse(volume.driver_data.as_deref());
            Box::pin(enable::disable(&end.site, &image.pool, &image.name, data)).await
        }
        None => {
            let (pool, image) = (image.pool.clone(), image.name.clone());
            end.site.insist(MirrorDisable { pool, image, force: false }).await
        }
    };
    match done {
        Err(e) if e.kind == RbdErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The rows of volumes whose images are not mirrored any more, by this attempt or one before.
async fn settle(sites: &Sites, operation: &Operation, a: &End, census: &Census) -> Result<()> {
    let uses = sites
        .db
        .read("pools of backends", async |conn| crate::db::site_use::of(conn, Some(&a.row.fsid)).await)
        .await?;
    let mut ids = Vec::new();
    for volume in census.volumes.iter().filter(|volume| is_mirrored(volume)) {
        let known =
            census.images.iter().find(|i| volume_of(&i.name).as_deref() == Some(volume.name_id.as_str()));
        let places: Vec<(String, String)> = match known {
            Some(image) => vec![(image.pool.clone(), image.name.clone())],
            // Its mirroring has ended before: by its usual name, in the pools of the backends that share the sites.
            None => uses
                .iter()
                .filter(|u| census.backends.contains(&u.backend))
                .map(|u| (u.pool.clone(), sites.volume_name.replace("%s", &volume.name_id)))
                .collect(),
        };
        for (pool, image) in places {
            match a.site.insist(MirrorInfo { pool, image }).await {
                Ok(info) if info.state == MirrorState::Disabled => {
                    ids.push(volume.id.clone());
                    break;
                }
                Ok(_) => {}
                Err(e) if e.kind == RbdErrorKind::NotFound => {}
                Err(e) => return Err(a.explain(e)),
            }
        }
    }
    operation
        .write("volumes that are not mirrored any more", async |conn| adoption::alone(conn, &ids).await)
        .await?;
    crash::point("link:rows");
    Ok(())
}
