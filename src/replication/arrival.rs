//! Whether a snapshot of a mirrored volume is on the other site with all its data.
//!
//! The name of a snapshot appears on a copy before its data does. By snapshots, the copy says itself which of the
//! primary's mirror snapshots it holds completely. By journal, a snapshot is an entry behind the writes that it shows, so
//! that it is whole as soon as it is there, unless the first copy is still being made: whether it is, the copy's daemon
//! notes in the journal, with the id of its copy, so that one that is thrown away is not taken for the new one. What
//! daemons report of themselves is up to half a minute old, and no gate.

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::rbd::protocol::{ImageInspect, JournalPeers, MirrorInfo, MirrorSnaps, MirrorSnapshot};
use crate::rbd::types::{MirrorMode, MirrorSnap, MirrorState};
use crate::rbd::{RbdError, Site};

/// A snapshot on its way to an image's copy.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// Where the volume is primary.
    pub source: &'a Site,
    /// Where its copy is.
    pub copy: &'a Site,
    /// Pool of both images.
    pub pool: &'a str,
    /// Name of both.
    pub image: &'a str,
    /// The snapshot, which has been taken.
    pub snap: &'a str,
}

/// What brings a snapshot, and the data of it, to the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Covering {
    /// This mirror snapshot of the primary, or a later one.
    Mirror(u64),
    /// The journal.
    Journal,
}

impl Arrival<'_> {
    /// Sees that the snapshot goes on its way. Repeated, it may make another mirror snapshot, which does as well.
    ///
    /// # Errors
    /// `Replication` when the image is not mirrored, or not primary here; what Ceph answers.
    pub async fn begin(&self) -> Result<Covering> {
        let (pool, image) = self.names();
        let info = self.source.insist(MirrorInfo { pool: pool.clone(), image: image.clone() }).await?;
        if info.state != MirrorState::Enabled || !info.primary {
            return Err(Error::new(
                Code::Replication,
                format!(
                    "Snapshot {} of {pool}/{image} cannot leave site {}: the image is not primary there",
                    self.snap,
                    self.source.name()
                ),
            ));
        }
        match info.mode {
            MirrorMode::Snapshot => {
                Ok(Covering::Mirror(self.source.insist(MirrorSnapshot { pool, image }).await?))
            }
            MirrorMode::Journal => Ok(Covering::Journal),
        }
    }

    /// Internal id of the copy that has the snapshot with all its data; `None`: not yet. Whoever uses the copy by its
    /// name asks again afterwards: it is the same copy only if the id is.
    ///
    /// # Errors
    /// What Ceph answers; by snapshots of the copy's site alone.
    pub async fn whole(&self, covering: Covering) -> Result<Option<String>, RbdError> {
        let (pool, image) = self.names();
        let copy = match self.copy.insist(ImageInspect { pool: pool.clone(), image: image.clone() }).await {
            Ok(copy) => copy,
            // A first copy has not begun, or one is thrown away.
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        if !copy.snaps.iter().any(|snap| snap.name == self.snap) {
            return Ok(None);
        }
        let is_whole = match covering {
            Covering::Mirror(of) => match self.copy.insist(MirrorSnaps { pool, image }).await {
                Ok(copies) => is_covered(&copies, of),
                Err(error) if error.is_not_found() => false,
                Err(error) => return Err(error),
            },
            Covering::Journal => {
                let peers = self.source.insist(JournalPeers { pool, image }).await?;
                peers.iter().any(|peer| peer.synced && peer.image_id == copy.info.id)
            }
        };
        Ok(is_whole.then_some(copy.info.id))
    }

    fn names(&self) -> (String, String) {
        (self.pool.to_owned(), self.image.to_owned())
    }
}

/// Whether a copy holds the primary's mirror snapshot `of`, or a later one, with all its data.
fn is_covered(copies: &[MirrorSnap], of: u64) -> bool {
    copies.iter().any(|s| !s.primary && s.complete && s.of >= of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_complete_copy_covers_a_snapshot() {
        let copy = |id: u64, complete: bool, of: u64| MirrorSnap { id, primary: false, complete, of };
        assert!(is_covered(&[copy(3, true, 10)], 10));
        assert!(is_covered(&[copy(3, true, 11)], 10));
        assert!(!is_covered(&[copy(3, true, 9), copy(5, false, 11)], 10));
        assert!(!is_covered(&[MirrorSnap { primary: true, ..copy(3, true, 11) }], 10));
    }
}
