//! Turning mirroring of one image on and off, so that it can be repeated after a crash.
//!
//! Journal mode needs exclusive-lock and journaling; upstream remembers which of them it added in
//! `replication_driver_data` (`cinder/volume/drivers/rbd.py`, `_enable_replication`), and so do we,
//! so that either service can disable what the other enabled. Snapshot mode needs neither. An image that is no volume has
//! no row: what was added to it is a mark on the image itself.

use crate::model::DriverData;
use crate::rbd::protocol::*;
use crate::rbd::types::{MirrorMode, MirrorState, features};
use crate::rbd::{RbdError, RbdErrorKind, Site};

/// Enables mirroring of `image`; answers what to remember. Repeatable: features that are on stay on,
/// an image that is mirrored in the same mode already is left as it is. `before` are the feature bits
/// the image had before the first attempt.
pub async fn enable(
    site: &Site,
    pool: &str,
    image: &str,
    mode: MirrorMode,
    before: u64,
) -> Result<DriverData, RbdError> {
    let data = DriverData {
        had_exclusive_lock: before & features::EXCLUSIVE_LOCK != 0,
        had_journaling: before & features::JOURNALING != 0,
    };
    match mode {
        MirrorMode::Journal => {
            // One at a time and in this order: journaling depends on exclusive-lock.
            for feature in [features::EXCLUSIVE_LOCK, features::JOURNALING] {
                switch_feature(site, pool, image, feature, true).await?;
            }
        }
        MirrorMode::Snapshot => {}
    }
    let ask = MirrorEnable { pool: pool.to_owned(), image: image.to_owned(), mode };
    match site.insist(ask).await {
        Ok(()) => Ok(data),
        Err(error) => {
            // A repeated enable, or one whose answer was lost, is seen in the state.
            let info = MirrorInfo { pool: pool.to_owned(), image: image.to_owned() };
            match site.insist(info).await {
                Ok(info) if info.state == MirrorState::Enabled && info.mode == mode => Ok(data),
                _ => Err(error),
            }
        }
    }
}

/// Disables mirroring and leaves the image with the features that it had before it was enabled. Repeatable.
pub async fn disable(site: &Site, pool: &str, image: &str, data: DriverData) -> Result<(), RbdError> {
    let info = site.insist(MirrorInfo { pool: pool.to_owned(), image: image.to_owned() }).await?;
    if info.state != MirrorState::Disabled {
        site.insist(MirrorDisable { pool: pool.to_owned(), image: image.to_owned(), force: false }).await?;
    }
    // Ceph takes journaling away with the mirroring by journal, whoever had switched it on.
    switch_feature(site, pool, image, features::JOURNALING, data.had_journaling).await?;
    if !data.had_exclusive_lock {
        switch_feature(site, pool, image, features::EXCLUSIVE_LOCK, false).await?;
    }
    Ok(())
}

/// Key of the mark on an image that is no volume: which features were added to have it mirrored.
pub const ADDED: &str = "scoria_mirroring_added";

/// What was added to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// `exclusive-lock`.
    pub exclusive_lock: bool,
    /// `journaling`.
    pub journaling: bool,
}

/// What the mark on an image says; `None`: Scoria has added nothing.
pub async fn added(site: &Site, pool: &str, image: &str) -> Result<Option<Added>, RbdError> {
    let all = site.insist(MetadataList { pool: pool.to_owned(), image: image.to_owned() }).await?;
    Ok(all.into_iter().find(|(key, _)| key == ADDED).map(|(_, value)| Added {
        exclusive_lock: value.split(',').any(|word| word == "exclusive-lock"),
        journaling: value.split(',').any(|word| word == "journaling"),
    }))
}

/// Marks an image with what enabling will add to it, before it does. One that is marked stays so.
pub async fn mark_added(site: &Site, pool: &str, image: &str, mode: MirrorMode) -> Result<(), RbdError> {
    if mode == MirrorMode::Snapshot || added(site, pool, image).await?.is_some() {
        return Ok(());
    }
    let stat = site.insist(ImageStat { pool: pool.to_owned(), image: image.to_owned() }).await?;
    let lacks = |(bit, _): &(u64, &str)| stat.features & bit == 0;
    let all = [(features::EXCLUSIVE_LOCK, "exclusive-lock"), (features::JOURNALING, "journaling")];
    let words: Vec<&str> = all.into_iter().filter(lacks).map(|(_, word)| word).collect();
    if words.is_empty() {
        return Ok(());
    }
    let (pool, image, key) = (pool.to_owned(), image.to_owned(), ADDED.to_owned());
    site.insist(MetadataSet { pool, image, key, value: words.join(",") }).await
}

/// Takes the mark away; none is a success.
pub async fn forget_added(site: &Site, pool: &str, image: &str) -> Result<(), RbdError> {
    let (of, image) = (pool.to_owned(), image.to_owned());
    match site.insist(MetadataRemove { pool: of, image, key: ADDED.to_owned() }).await {
        Err(e) if e.kind == RbdErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Switches one feature on or off. Repeatable.
pub async fn switch_feature(
    site: &Site,
    pool: &str,
    image: &str,
    bit: u64,
    on: bool,
) -> Result<(), RbdError> {
    let stat = site.insist(ImageStat { pool: pool.to_owned(), image: image.to_owned() }).await?;
    if (stat.features & bit != 0) == on {
        return Ok(());
    }
    let switch = ImageFeatures { pool: pool.to_owned(), image: image.to_owned(), features: bit, enable: on };
    match site.insist(switch).await {
        // Enabling what is on (EINVAL) can only come from a repeated call that had taken effect.
        Err(e) if e.kind == RbdErrorKind::Invalid => {
            let stat = site.insist(ImageStat { pool: pool.to_owned(), image: image.to_owned() }).await?;
            if (stat.features & bit != 0) == on { Ok(()) } else { Err(e) }
        }
        other => other,
    }
}
