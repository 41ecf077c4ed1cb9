//! Making an existing image into one of another volume type: its limits, its features, and its mirroring.
//!
//! What is there is in use, so nothing may be lost on the way, and what was begun must either come to its
//! end or be taken back: the database says of each image whether it is mirrored, and must be right. All that
//! is to be known for that is in a [`Form`], taken before the first change. Every step looks at the image
//! first, so that all of them may be run again after a crash.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::image::Place;
use super::setup::{OF_ONE_WRITER, limit};
use crate::model::DriverData;
use crate::rbd::protocol::*;
use crate::rbd::types::{MirrorMode, MirrorState, features};
use crate::rbd::{RbdError, RbdErrorKind};
use crate::replication::enable;

/// What librbd's limits are called in an image's metadata.
const LIMIT: &str = "conf_rbd_qos_";

/// What an image is like, as far as its volume type has a say in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Form {
    /// Feature bits, without those that its mirroring has added.
    pub(super) features: u64,
    /// How it is mirrored; `None`: not at all.
    pub(super) mirror: Option<MirrorMode>,
    /// Its limits, by metadata key; `None`: nobody has asked, and nobody may change them.
    pub(super) limits: Option<BTreeMap<String, String>>,
}

/// The limits that back-end QoS specs make, by metadata key. Specs that mean nothing to Ceph are left out.
pub(super) fn limits(specs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let known = |(spec, value): (&String, &String)| Some((format!("conf_{}", limit(spec)?), value.clone()));
    specs.iter().filter_map(known).collect()
}

/// The form of an image now, and whether this site is primary, when it is mirrored. `data` tells what its
/// mirroring has added.
pub(super) async fn form_of(place: &Place, image: &str, data: DriverData) -> Result<(Form, bool), RbdError> {
    let info = place.site.insist(MirrorInfo { pool: place.pool.clone(), image: image.to_owned() }).await?;
    let mirror = (info.state != MirrorState::Disabled).then_some(info.mode);
    let mut bits = place.stat(image).await?.features;
    if mirror == Some(MirrorMode::Journal) {
        if !data.had_journaling {
            bits &= !features::JOURNALING;
        }
        if !data.had_exclusive_lock {
            bits &= !features::EXCLUSIVE_LOCK;
        }
    }
    let all = place.site.insist(MetadataList { pool: place.pool.clone(), image: image.to_owned() }).await?;
    let limits = all.into_iter().filter(|(key, _)| is_limit(key)).collect();
    Ok((Form { features: bits, mirror, limits: Some(limits) }, info.primary))
}

/// Gives an image another form. `data` tells what the mirroring that it may have has added. Answers the same
/// of the mirroring that it gets; `None` when it is mirrored no longer, or as before.
pub(super) async fn reshape(
    place: &Place,
    image: &str,
    to: &Form,
    data: DriverData,
) -> Result<Option<DriverData>, RbdError> {
    if let Some(limits) = &to.limits {
        set_limits(place, image, limits).await?;
    }
    let info = place.site.insist(MirrorInfo { pool: place.pool.clone(), image: image.to_owned() }).await?;
    let keeps = info.state == MirrorState::Enabled && to.mirror == Some(info.mode);
    if !keeps && info.state != MirrorState::Disabled {
        enable::disable(&place.site, &place.pool, image, data).await?;
    }
    set_features(place, image, to).await?;
    match to.mirror {
        Some(mode) if !keeps => {
            enable::enable(&place.site, &place.pool, image, mode, to.features).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// Only those that writers have to agree on are switched; mirroring by journal keeps what it needs.
async fn set_features(place: &Place, image: &str, to: &Form) -> Result<(), RbdError> {
    let needed = match to.mirror {
        Some(MirrorMode::Journal) => features::EXCLUSIVE_LOCK | features::JOURNALING,
        _ => 0,
    };
    let now = place.stat(image).await?.features & OF_ONE_WRITER;
    let wanted = to.features & OF_ONE_WRITER;
    let (off, on) = (now & !wanted & !needed, wanted & !now);
    // The lock comes first, and goes last: the others depend on it.
    let lock = on & features::EXCLUSIVE_LOCK;
    for (bits, enable) in [(off, false), (lock, true), (on & !lock, true)] {
        if bits == 0 {
            continue;
        }
        let switch =
            ImageFeatures { pool: place.pool.clone(), image: image.to_owned(), features: bits, enable };
        place.site.insist(switch).await?;
    }
    Ok(())
}

async fn set_limits(place: &Place, image: &str, limits: &BTreeMap<String, String>) -> Result<(), RbdError> {
    let (pool, image) = (&place.pool, image.to_owned());
    let all = place.site.insist(MetadataList { pool: pool.clone(), image: image.clone() }).await?;
    let now: BTreeMap<String, String> = all.into_iter().filter(|(key, _)| is_limit(key)).collect();
    for key in now.keys().filter(|key| !limits.contains_key(*key)) {
        let remove = MetadataRemove { pool: pool.clone(), image: image.clone(), key: key.clone() };
        match place.site.insist(remove).await {
            // Removed by an attempt whose answer was lost.
            Err(e) if e.kind == RbdErrorKind::NotFound => {}
            other => other?,
        }
    }
    for (key, value) in limits.iter().filter(|(key, value)| now.get(*key) != Some(value)) {
        let (key, value) = (key.clone(), value.clone());
        place.site.insist(MetadataSet { pool: pool.clone(), image: image.clone(), key, value }).await?;
    }
    Ok(())
}

/// A limit that Cinder knows: others were set by somebody else and are none of a volume type's business.
fn is_limit(key: &str) -> bool {
    const ENDS: [&str; 4] = ["iops_limit", "bps_limit", "iops_burst", "bps_burst"];
    key.strip_prefix(LIMIT).is_some_and(|rest| {
        let rest = rest.strip_prefix("read_").or_else(|| rest.strip_prefix("write_")).unwrap_or(rest);
        ENDS.contains(&rest)
    })
}

#[cfg(test)]
#[path = "reshape_tests.rs"]
mod tests;
