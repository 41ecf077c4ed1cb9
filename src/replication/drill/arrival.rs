//! Which state of a volume is on the other site with all its data.
//!
//! The name of a snapshot appears on a copy before its data does. By snapshots, the copy says itself which of the
//! primary's mirror snapshots it holds completely. By journal, a snapshot is an entry behind the writes that it shows, so
//! that it is whole as soon as it is there, unless the copy is still being made; that is what its rbd-mirror reports,
//! and a report that is older than the question may be about a copy that has been thrown away since.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backend::Backend;
use crate::db;
use crate::db::drill::{Drill, State};
use crate::error::{Code, Error, Result};
use crate::rbd::protocol::{ImageStat, MirrorInfo, MirrorSnaps, MirrorSnapshot, MirrorStatus, SnapList};
use crate::rbd::types::{MirrorMode, MirrorSnap, MirrorState, Mirroring, Snap};
use crate::rbd::{RbdError, Site};

/// How long a snapshot may be on its way. A first copy takes longer; the drill can be begun again then.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Waiting for the snapshot of one volume of a drill.
pub(super) struct Wait<'a> {
    /// Where the volume is primary.
    pub(super) source: &'a Site,
    /// Where its copy is.
    pub(super) copy: &'a Site,
    /// Names the image and the snapshot.
    pub(super) row: &'a Drill,
}

/// What the copy is to show.
enum Wanted {
    /// This mirror snapshot of the primary, or a later one.
    Mirror(u64),
    /// A report that is later than this one, of the copy with this id.
    Report { after: i64, image: String },
}

impl Wait<'_> {
    /// Returns when the snapshot is on the copy's site with all its data.
    ///
    /// # Errors
    /// `Replication` when it is not there in time, or the drill has been stopped; what Ceph answers on the source.
    pub(super) async fn done(&self, backend: &Backend) -> Result<()> {
        let wanted = self.wanted().await?;
        let until = Instant::now() + PATIENCE;
        loop {
            let last = match self.has_arrived(&wanted).await {
                Ok(true) => return Ok(()),
                Ok(false) => None,
                Err(error) => Some(error),
            };
            if Instant::now() >= until {
                let failure = self.failure(format!("did not arrive within {} s", PATIENCE.as_secs()));
                return Err(match last {
                    Some(error) => failure.caused_by(error),
                    None => failure,
                });
            }
            sleep(PAUSE).await;
            if !self.goes_on(backend).await? {
                return Err(self.failure("is not wanted any more: the test was stopped".to_owned()));
            }
        }
    }

    fn failure(&self, what: String) -> Error {
        let Drill { volume_id, snapshot, .. } = self.row;
        Error::new(
            Code::Replication,
            format!("Snapshot {snapshot} of volume {volume_id} {what} (site {})", self.copy.name()),
        )
    }

    async fn wanted(&self) -> Result<Wanted> {
        let info = mirroring(self.source, self.row).await?;
        if info.state != MirrorState::Enabled || !info.primary {
            return Err(self.failure("cannot leave a site where the volume is not primary".to_owned()));
        }
        let (pool, image) = (self.row.pool.clone(), self.row.image.clone());
        match info.mode {
            MirrorMode::Snapshot => {
                Ok(Wanted::Mirror(self.source.insist(MirrorSnapshot { pool, image }).await?))
            }
            MirrorMode::Journal => {
                let (after, _) = self.report().await?;
                let image = self.copy.insist(ImageStat { pool, image }).await?.id;
                Ok(Wanted::Report { after, image })
            }
        }
    }

    async fn has_arrived(&self, wanted: &Wanted) -> std::result::Result<bool, RbdError> {
        let (pool, image) = (self.row.pool.clone(), self.row.image.clone());
        let whole = match wanted {
            Wanted::Mirror(of) => {
                let ask = MirrorSnaps { pool: pool.clone(), image: image.clone() };
                is_covered(&self.copy.insist(ask).await?, *of)
            }
            Wanted::Report { after, image: id } => {
                let (at, replays) = self.report().await?;
                let ask = ImageStat { pool: pool.clone(), image: image.clone() };
                at > *after && replays && self.copy.insist(ask).await?.id == *id
            }
        };
        let snaps = self.copy.insist(SnapList { pool, image }).await?;
        Ok(whole && snaps.iter().any(|s| s.name == self.row.snapshot))
    }

    /// When the copy's daemon last reported, and whether it replays.
    async fn report(&self) -> std::result::Result<(i64, bool), RbdError> {
        let ask = MirrorStatus { pool: self.row.pool.clone(), image: self.row.image.clone() };
        let local = self.copy.insist(ask).await?.local;
        Ok(local.map_or((0, false), |l| (l.last_update, l.up && l.state == "replaying")))
    }

    async fn goes_on(&self, backend: &Backend) -> Result<bool> {
        let Drill { backend: name, test_id, volume_id, .. } = self.row;
        let rows = backend
            .db
            .read("is a drill wanted", async |conn| {
                db::drill::list(conn, Some(name.as_str()), Some(test_id.as_str())).await
            })
            .await?;
        Ok(rows.iter().any(|row| row.volume_id == *volume_id && row.state != State::Removing.as_str()))
    }
}

async fn mirroring(site: &Site, row: &Drill) -> std::result::Result<Mirroring, RbdError> {
    site.insist(MirrorInfo { pool: row.pool.clone(), image: row.image.clone() }).await
}

/// Whether a copy holds the primary's mirror snapshot `of`, or a later one, with all its data.
fn is_covered(copies: &[MirrorSnap], of: u64) -> bool {
    copies.iter().any(|s| !s.primary && s.complete && s.of >= of)
}

/// The newest user snapshot of a copy that has all its data, when the primary cannot be asked.
///
/// # Errors
/// `Replication` when there is none, or when that is not known.
pub(super) async fn newest(site: &Site, pool: &str, image: &str) -> Result<String> {
    let ask = || (pool.to_owned(), image.to_owned());
    let refusal =
        |why: &str| Error::new(Code::Replication, format!("{pool}/{image} on site {}: {why}", site.name()));
    let (pool_, image_) = ask();
    let mode = site.insist(MirrorInfo { pool: pool_, image: image_ }).await?.mode;
    let (pool_, image_) = ask();
    let snaps = site.insist(SnapList { pool: pool_, image: image_ }).await?;
    let (pool_, image_) = ask();
    let found = match mode {
        MirrorMode::Snapshot => {
            newest_whole(&snaps, &site.insist(MirrorSnaps { pool: pool_, image: image_ }).await?)
        }
        MirrorMode::Journal => {
            let local = site.insist(MirrorStatus { pool: pool_, image: image_ }).await?.local;
            let state = local.map(|l| l.state).unwrap_or_default();
            if state != "replaying" && state != "stopping_replay" {
                return Err(refusal(&format!(
                    "whether its first copy has come through is not known (its rbd-mirror says '{state}')"
                )));
            }
            snaps.iter().max_by_key(|s| s.id)
        }
    };
    found.map(|s| s.name.clone()).ok_or_else(|| refusal("no snapshot has arrived with all its data"))
}

/// rbd-mirror makes the snapshots of a copy first, then its own, and marks that complete when all data of them is
/// there: what is older than a complete one is whole.
fn newest_whole<'a>(snaps: &'a [Snap], copies: &[MirrorSnap]) -> Option<&'a Snap> {
    let whole = copies.iter().filter(|s| !s.primary && s.complete).map(|s| s.id).max()?;
    snaps.iter().filter(|s| s.id < whole).max_by_key(|s| s.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(id: u64, complete: bool, of: u64) -> MirrorSnap {
        MirrorSnap { id, primary: false, complete, of }
    }

    fn snap(id: u64) -> Snap {
        Snap { id, name: format!("s{id}"), size: 1, protected: false }
    }

    #[test]
    fn only_a_complete_copy_covers_a_snapshot() {
        assert!(is_covered(&[copy(3, true, 10)], 10));
        assert!(is_covered(&[copy(3, true, 11)], 10));
        assert!(!is_covered(&[copy(3, true, 9), copy(5, false, 11)], 10));
        assert!(!is_covered(&[MirrorSnap { primary: true, ..copy(3, true, 11) }], 10));
    }

    #[test]
    fn what_came_with_an_incomplete_copy_is_not_used() {
        let snaps = [snap(2), snap(4), snap(6)];
        let newest = |copies: &[MirrorSnap]| newest_whole(&snaps, copies).map(|s| s.id);
        assert_eq!(newest(&[copy(7, true, 10)]), Some(6));
        assert_eq!(newest(&[copy(5, true, 10)]), Some(4), "the last one is on its way");
        assert_eq!(newest(&[copy(3, true, 9), copy(5, false, 10)]), Some(2), "names come before data");
        assert_eq!(newest(&[copy(1, true, 9)]), None);
        assert_eq!(newest(&[copy(7, false, 9)]), None);
        assert_eq!(newest(&[]), None);
    }
}
