//! Images and snapshots get the names by which Cinder knows them, and back.
//!
//! A rename whose answer was lost cannot be told from one that was never made by its own answer alone; the
//! image's internal id, or the place of the new name in the list of snapshots, says which it was.

use super::Place;
use crate::rbd::protocol::*;
use crate::rbd::types::Snap;
use crate::rbd::{RbdError, RbdErrorKind};

/// What the names of a drill's clones and snapshots begin with.
pub const DRILL: &str = "scoria-test-";

/// Suffix and parts of the names of snapshots that are not anybody's to manage.
pub fn is_helper_snapshot(name: &str) -> bool {
    name.ends_with(super::CLONE_SNAP) || is_drill_snapshot(name)
}

/// A snapshot that a drill's clone on the other site hangs on. The clone keeps what it needs when it goes.
pub(super) fn is_drill_snapshot(name: &str) -> bool {
    name.starts_with(DRILL)
}

/// A snapshot that cinder-backup compares the next backup with.
pub fn is_named_as_backup(name: &str) -> bool {
    name.starts_with("backup") && name.contains(".snap.")
}

impl Place {
    /// Renames the image `from`, whose internal id is `id`, to `to`. Repeatable.
    ///
    /// # Errors
    /// `Exists` when another image has that name; `NotFound` when the image has neither.
    pub async fn rename(&self, from: &str, to: &str, id: &str) -> Result<(), RbdError> {
        if from == to || self.is_image(to, id).await? {
            return Ok(());
        }
        let (from, to) = (from.to_owned(), to.to_owned());
        let rename = ImageRename { pool: self.pool.clone(), from, to: to.clone() };
        match self.site.insist(rename).await {
            Ok(()) => Ok(()),
            Err(e) if may_be_done(&e) && self.is_image(&to, id).await? => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn is_image(&self, image: &str, id: &str) -> Result<bool, RbdError> {
        match self.stat(image).await {
            Ok(info) => Ok(info.id == id),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The user snapshot of this name, if there is one.
    ///
    /// # Errors
    /// `NotFound` without the image.
    pub async fn find_snapshot(&self, image: &str, snap: &str) -> Result<Option<Snap>, RbdError> {
        let ask = SnapList { pool: self.pool.clone(), image: image.to_owned() };
        Ok(self.site.insist(ask).await?.into_iter().find(|s| s.name == snap))
    }

    /// Renames a snapshot to a name that only this operation gives. Repeatable.
    ///
    /// # Errors
    /// `NotFound` when there is a snapshot of neither name.
    pub async fn rename_snapshot(&self, image: &str, from: &str, to: &str) -> Result<(), RbdError> {
        if from == to || self.find_snapshot(image, to).await?.is_some() {
            return Ok(());
        }
        let rename = SnapRename {
            pool: self.pool.clone(),
            image: image.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        match self.site.insist(rename).await {
            Ok(()) => Ok(()),
            Err(e) if may_be_done(&e) && self.find_snapshot(image, to).await?.is_some() => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn may_be_done(error: &RbdError) -> bool {
    error.effect_unknown() || matches!(error.kind, RbdErrorKind::NotFound | RbdErrorKind::Exists)
}
