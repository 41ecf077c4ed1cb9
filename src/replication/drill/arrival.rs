//! Waiting for the snapshot of a drill, and what there is to use when the primary cannot be asked.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backend::Backend;
use crate::db;
use crate::db::drill::{Drill, State};
use crate::error::{Code, Error, Result};
use crate::rbd::Site;
use crate::rbd::protocol::{MirrorInfo, MirrorSnaps, MirrorStatus, SnapList};
use crate::rbd::types::{MirrorMode, MirrorSnap, Snap};
use crate::replication::arrival::Arrival;

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

impl Wait<'_> {
    /// Returns when the snapshot is on the copy's site with all its data.
    ///
    /// # Errors
    /// `Replication` when it is not there in time, or the drill has been stopped; what Ceph answers on the source.
    pub(super) async fn done(&self, backend: &Backend) -> Result<()> {
        let Drill { pool, image, snapshot: snap, .. } = self.row;
        let arrival = Arrival { source: self.source, copy: self.copy, pool, image, snap };
        let covering = arrival.begin().await?;
        let until = Instant::now() + PATIENCE;
        loop {
            let last = match arrival.whole(covering).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => None,
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
