//! Deferred deletion: what a deletion removes waits in the trash first, and can be had back until it is purged.
//!
//! The move ends the image's mirroring, and with that its copies on other sites go: what waits is one image, on the site
//! that served the volume. It is a clone as before, so its parent, and the snapshot that it hangs on, are needed until
//! it is purged; and clones of its own read from it, so it stays as long as they do, whatever its time.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Attempt, BUSY_TRIES, BUSY_WAIT, CLONE_SNAP, Place, repeat};
use crate::rbd::protocol::*;
use crate::rbd::types::{MirrorMode, MirrorState, in_trash};
use crate::rbd::{RbdError, RbdErrorKind};

/// How long rbd-mirror may take to close an image that is no longer mirrored (it takes a tenth of a second), and how
/// often that is looked at.
const LETS_GO: Duration = Duration::from_secs(10);
const LETS_GO_PAUSE: Duration = Duration::from_millis(250);

/// Why an image that is due stays in the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Somebody has it open; or it is not due by the clock of its site.
    InUse,
    /// So many clones read from it; with none, it has snapshots of somebody's making.
    Needed(usize),
}

impl Place {
    /// Moves an image to the trash, from where it is not purged for so long. Repeatable.
    ///
    /// # Errors
    /// `Busy` when somebody has it open, or a clone needs its mirroring.
    pub(super) async fn defer(&self, image: &str, delay: Duration) -> Result<(), RbdError> {
        let mut wait = BUSY_WAIT;
        let mut left = BUSY_TRIES;
        loop {
            left -= 1;
            match self.try_to_defer(image, delay).await {
                Err(e) if e.kind == RbdErrorKind::Busy && left > 0 => {
                    debug!(image, error = %e, "in use, not moved to the trash yet");
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                other => return other,
            }
        }
    }

    async fn try_to_defer(&self, image: &str, delay: Duration) -> Result<(), RbdError> {
        self.free_mirrored_clones(image).await?;
        self.refuse_users(image).await?;
        self.move_to_trash(image, delay).await
    }

    /// One that is gone already is a success.
    pub(super) async fn move_to_trash(&self, image: &str, delay: Duration) -> Result<(), RbdError> {
        let trash = TrashMove { pool: self.pool.clone(), image: image.to_owned(), delay: delay.as_secs() };
        match repeat(&self.site, trash, Attempt::First, RbdErrorKind::NotFound).await {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// A clone that is mirrored needs a parent that is. Any other reads from the trash as well.
    async fn free_mirrored_clones(&self, image: &str) -> Result<(), RbdError> {
        let ask = ImageChildren { pool: self.pool.clone(), image: image.to_owned(), snap: None };
        let children = match self.site.insist(ask).await {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        for child in children.iter().filter(|c| !c.trash) {
            let ask = MirrorInfo { pool: child.pool.clone(), image: child.image.clone() };
            match self.site.insist(ask).await {
                Ok(info) if info.state == MirrorState::Disabled => {}
                Ok(_) => self.flatten_child(child).await?,
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// `Busy` when a client has it open: librbd moves it to the trash all the same, from under a writer, too.
    async fn refuse_users(&self, image: &str) -> Result<(), RbdError> {
        let busy = match self.refuse_open(image).await {
            Err(e) if e.kind == RbdErrorKind::Busy => e,
            Err(e) if e.is_not_found() => return Ok(()),
            other => return other,
        };
        let (pool, image) = (self.pool.clone(), image.to_owned());
        match self.site.insist(MirrorInfo { pool: pool.clone(), image: image.clone() }).await {
            Ok(info) if info.state == MirrorState::Disabled => return Err(busy),
            Ok(_) => {}
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        }
        let ask = MirrorStatus { pool: pool.clone(), image: image.clone() };
        let daemons = match self.site.insist(ask).await {
            Ok(report) => report.peers.iter().filter(|peer| peer.up).count().max(1),
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        };
        // The rbd-mirror of each peer has the image open, too (mirrored by snapshots always, by journal for the first copy),
        // and looks like any client. It lets go when mirroring ends, which is to happen anyway.
        if self.live_watchers(&image).await?.len() > daemons {
            return Err(busy);
        }
        self.site.insist(MirrorDisable { pool, image: image.clone(), force: false }).await?;
        let until = Instant::now() + LETS_GO;
        loop {
            match self.refuse_open(&image).await {
                Err(e) if e.kind == RbdErrorKind::Busy && Instant::now() < until => {
                    tokio::time::sleep(LETS_GO_PAUSE).await;
                }
                Err(e) if e.is_not_found() => return Ok(()),
                other => return other,
            }
        }
    }

    /// Mirrors an image again of which [`Place::delete`] has said that it is in use: that may have been found out
    /// after its mirroring had ended. Repeatable.
    ///
    /// # Errors
    /// What Ceph answers.
    pub async fn mirror_again(&self, image: &str, mode: MirrorMode) -> Result<(), RbdError> {
        let (pool, image) = (self.pool.clone(), image.to_owned());
        let info = self.site.insist(MirrorInfo { pool: pool.clone(), image: image.clone() }).await?;
        if info.state != MirrorState::Disabled {
            return Ok(());
        }
        warn!(image, ?mode, "in use, not deleted: mirroring it again, its copy begins anew");
        self.site.insist(MirrorEnable { pool, image, mode }).await
    }

    /// Gives a clone that waits in the trash its parent's data, or nobody could delete the parent's snapshot meanwhile
    /// (clone format 1). Errors are for the log: whoever asked finds the snapshot in use.
    pub(super) async fn flatten_in_trash(&self, name: &str) {
        let entries = match self.site.insist(TrashList { pool: self.pool.clone() }).await {
            Ok(entries) => entries,
            Err(error) => {
                warn!(pool = self.pool, %error, "could not see what is in the trash");
                return;
            }
        };
        for entry in entries.iter().filter(|e| e.name == name && !e.mirroring) {
            match self.flatten(&in_trash(&entry.id)).await {
                Ok(()) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    warn!(image = name, image.id = entry.id, %error, "could not flatten a clone in the trash")
                }
            }
        }
    }

    /// Removes an image from the trash for good; says why when it stays. One that is gone is a success.
    ///
    /// # Errors
    /// What Ceph answers.
    pub async fn remove_from_trash(&self, id: &str) -> Result<Option<Kept>, RbdError> {
        let (pool, image) = (self.pool.clone(), in_trash(id));
        let mut swept = false;
        loop {
            let remove = TrashRemove { pool: pool.clone(), id: id.to_owned() };
            let error = match self.site.call(remove).await {
                Ok(()) => return Ok(None),
                // Another member of the cluster was faster.
                Err(e) if e.is_not_found() => return Ok(None),
                Err(e) => e,
            };
            match error.kind {
                RbdErrorKind::Busy => return Ok(Some(Kept::InUse)),
                RbdErrorKind::HasSnapshots if !swept => {
                    swept = true;
                    let sweep = SyncPointsRemove { pool: pool.clone(), image: image.clone() };
                    if let Err(error) = self.site.insist(sweep).await
                        && !error.is_not_found()
                    {
                        warn!(image.id = id, %error, "could not remove what interrupted copies have left");
                    }
                }
                RbdErrorKind::HasSnapshots => {
                    let ask = ImageChildren { pool, image, snap: None };
                    let children = match self.site.insist(ask).await {
                        Err(e) if e.is_not_found() => return Ok(None),
                        other => other?,
                    };
                    return Ok(Some(Kept::Needed(children.len())));
                }
                _ => return Err(error),
            }
        }
    }

    /// Sees to an image that has outlived its volume because clones needed it: helper snapshots on which nothing hangs
    /// any more go, and with the last of them the image, to the trash. For what a crash, or cinder-volume, has left.
    ///
    /// # Errors
    /// What Ceph answers.
    pub async fn tidy_parent(&self, image: &str, delay: Duration) -> Result<(), RbdError> {
        let Some(found) = self.inspect(image).await? else { return Ok(()) };
        let mut unused = Vec::new();
        for snap in found.snaps.iter().filter(|s| s.name.ends_with(CLONE_SNAP)) {
            if self.children(image, &snap.name).await?.is_empty() {
                unused.push(&snap.name);
            }
        }
        let goes = unused.len() == found.snaps.len();
        if (!goes && unused.is_empty()) || self.is_copy(image).await? {
            return Ok(());
        }
        for snap in unused {
            self.remove_snapshot(image, snap).await?;
        }
        if goes { self.defer(image, delay).await } else { Ok(()) }
    }

    /// Whether an image is the copy of one on another site: only there its snapshots can be removed.
    ///
    /// # Errors
    /// What Ceph answers.
    pub async fn is_copy(&self, image: &str) -> Result<bool, RbdError> {
        let ask = MirrorInfo { pool: self.pool.clone(), image: image.to_owned() };
        match self.site.insist(ask).await {
            Ok(info) => Ok(info.state != MirrorState::Disabled && !info.primary),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
#[path = "deferral_tests.rs"]
mod tests;
