//! Who has an image open: whether it may be written to, copied as of one instant, or taken away.
//!
//! Ceph tells the address of each client that watches an image's header, and nothing of what that client is. Two kinds
//! are none of a user's: one that was fenced and has not been forgotten yet, and the rbd-mirror of another site. Where an
//! image is mirrored by snapshots, that daemon keeps it open on the primary for as long as it follows it, reads, and never
//! takes its lock (Ceph 16, `rbd_mirror/image_replayer/snapshot/Replayer.cc`). Daemons cannot be told by their addresses, so
//! they are counted.

use super::Place;
use crate::rbd::protocol::{BlocklistList, ImageWatchers, LockOwners, MirrorInfo, MirrorStatus};
use crate::rbd::types::{MirrorMode, MirrorSiteStatus, MirrorState, Watcher};
use crate::rbd::{RbdError, RbdErrorKind};

impl Place {
    /// Somebody who has the image open, and is neither fenced nor, as far as can be told, a daemon that follows it.
    ///
    /// # Errors
    /// What Ceph answers; `NotFound` for an image that is not there.
    pub async fn user_of(&self, image: &str) -> Result<Option<Watcher>, RbdError> {
        let watchers = self.live_watchers(image).await?;
        if watchers.is_empty() || self.only_follow(image, watchers.len()).await? {
            return Ok(None);
        }
        Ok(watchers.into_iter().next())
    }

    /// `Busy` when somebody uses the image ([`Place::user_of`]): what he writes would be missing in a copy.
    ///
    /// # Errors
    /// What Ceph answers.
    pub async fn refuse_watched(&self, image: &str) -> Result<(), RbdError> {
        match self.user_of(image).await? {
            None => Ok(()),
            Some(watcher) => Err(self.open_at(image, &watcher)),
        }
    }

    /// `Busy` when anybody has the image open who is not fenced, daemons included.
    pub(super) async fn refuse_open(&self, image: &str) -> Result<(), RbdError> {
        match self.live_watchers(image).await?.first() {
            None => Ok(()),
            Some(watcher) => Err(self.open_at(image, watcher)),
        }
    }

    /// The watchers that are not fenced.
    pub(super) async fn live_watchers(&self, image: &str) -> Result<Vec<Watcher>, RbdError> {
        let ask = ImageWatchers { pool: self.pool.clone(), image: image.to_owned() };
        let mut watchers = self.site.insist(ask).await?;
        if !watchers.is_empty() {
            let fenced = self.site.insist(BlocklistList {}).await?;
            watchers.retain(|watcher| !fenced.contains(&watcher.address));
        }
        Ok(watchers)
    }

    /// Whether so many watchers need be nobody but the daemons of the image's copies: no more than follow it now by their
    /// own word, and none has its lock.
    async fn only_follow(&self, image: &str, watchers: usize) -> Result<bool, RbdError> {
        let (pool, image) = (self.pool.clone(), image.to_owned());
        let info = self.site.insist(MirrorInfo { pool: pool.clone(), image: image.clone() }).await?;
        if info.state != MirrorState::Enabled || !info.primary || info.mode != MirrorMode::Snapshot {
            return Ok(false);
        }
        let ask = MirrorStatus { pool: pool.clone(), image: image.clone() };
        if watchers > followers(&self.site.insist(ask).await?.peers) {
            return Ok(false);
        }
        Ok(self.site.insist(LockOwners { pool, image }).await?.is_empty())
    }

    fn open_at(&self, image: &str, watcher: &Watcher) -> RbdError {
        RbdError {
            kind: RbdErrorKind::Busy,
            op: "ImageWatchers".to_owned(),
            site: self.site.name().to_owned(),
            errno: 0,
            message: format!("{}/{image} is open at {}", self.pool, watcher.address),
        }
    }
}

/// How many daemons keep a primary open that is mirrored by snapshots, by what they report.
fn followers(peers: &[MirrorSiteStatus]) -> usize {
    let has_it_open =
        |state: &str| matches!(state, "replaying" | "syncing" | "starting_replay" | "stopping_replay");
    peers.iter().filter(|peer| peer.up && has_it_open(&peer.state)).count()
}

#[cfg(test)]
#[path = "watchers_tests.rs"]
mod tests;
