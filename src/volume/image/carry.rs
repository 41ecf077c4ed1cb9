//! User snapshots reach the other site.
//!
//! By journal they go by themselves. By snapshots a copy knows only what the last mirror snapshot had, so that a
//! snapshot taken since is lost with the site, and one that was deleted comes back, until the next one is due by
//! schedule. So each of these changes is followed by a mirror snapshot. Ceph keeps a bounded number of them
//! (`rbd_mirroring_max_mirroring_snapshots`) and removes the oldest.

use tracing::warn;

use super::Place;
use crate::rbd::RbdError;
use crate::rbd::protocol::*;
use crate::rbd::types::{MirrorMode, MirrorState};

impl Place {
    /// Makes a mirror snapshot of an image that is mirrored by snapshots and is primary here; answers its id.
    /// `None` for any other image, also one that is gone: there is nothing to do then.
    pub async fn carry_over(&self, image: &str) -> Result<Option<u64>, RbdError> {
        let (pool, image) = (self.pool.clone(), image.to_owned());
        let info = match self.site.insist(MirrorInfo { pool: pool.clone(), image: image.clone() }).await {
            Ok(info) => info,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e),
        };
        if info.state != MirrorState::Enabled || info.mode != MirrorMode::Snapshot || !info.primary {
            return Ok(None);
        }
        match self.site.insist(MirrorSnapshot { pool, image }).await {
            Ok(id) => Ok(Some(id)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The same where the change itself has succeeded, and need not fail because the other site is told later.
    pub async fn carry_over_if_possible(&self, image: &str) {
        if let Err(error) = self.carry_over(image).await {
            warn!(image, %error, "the other site learns of a snapshot with the next mirror snapshot only");
        }
    }
}
