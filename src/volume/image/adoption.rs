//! Images and snapshots get the names by which Cinder knows them, and back.
//!
//! A rename whose answer was lost cannot be told from one that was never made by its own answer alone; the
//! image's internal id, or the place of the new name in the list of snapshots, says which it was. librbd renames an image in
//! three steps (the new name, the pool's directory, the old name: `operation/RenameRequest.cc`), so that one that was cut
//! short may go by both names.

use tracing::warn;

use super::Place;
use crate::rbd::protocol::*;
use crate::rbd::types::Snap;
use crate::rbd::{RbdError, RbdErrorKind};

/// What the names of backups begin with that are pinned points of a copy: stock takes what begins with `volume-` or
/// `backup.` for its own.
pub const PIN: &str = "scoria-pin-";
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

/// What the objects begin with that hold an image's id by its name (`RBD_ID_PREFIX` of rbd_types.h).
const NAME_OBJECT: &str = "rbd_id.";

impl Place {
    /// Renames the image `from`, whose internal id is `id`, to `to`. Repeatable.
    ///
    /// # Errors
    /// `Exists` when another image has that name; `NotFound` when the image has neither.
    pub async fn rename(&self, from: &str, to: &str, id: &str) -> Result<(), RbdError> {
        if from == to || self.has_only(to, from, id).await? {
            return Ok(());
        }
        let rename = ImageRename { pool: self.pool.clone(), from: from.to_owned(), to: to.to_owned() };
        match self.site.insist(rename.clone()).await {
            Ok(()) => Ok(()),
            Err(e) if may_be_done(&e) && self.has_only(to, from, id).await? => Ok(()),
            // It was cut short, and what it had done is undone.
            Err(e)
                if e.kind == RbdErrorKind::Exists
                    && !self.is_image(to, id).await?
                    && self.is_image(from, id).await? =>
            {
                match self.site.insist(rename).await {
                    Err(again) if again.kind == RbdErrorKind::Exists => Err(e),
                    other => other,
                }
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the image with this id is called `to`. If it is called `from`, too, one of the names is half of one, which the
    /// pool's directory does not have: that is removed.
    async fn has_only(&self, to: &str, from: &str, id: &str) -> Result<bool, RbdError> {
        if !self.is_image(to, id).await? {
            return Ok(false);
        }
        if !self.is_image(from, id).await? {
            return Ok(true);
        }
        let directory = self.site.insist(ImageDirectory { pool: self.pool.clone() }).await?;
        let is_listed = |name: &str| directory.iter().any(|(of, listed)| of == id && listed == name);
        let renamed = is_listed(to) && !is_listed(from);
        let half = if renamed { from } else { to };
        warn!(image = half, id, "a rename was cut short: half a name is removed");
        let object = format!("{NAME_OBJECT}{half}");
        self.site.insist(ObjectRemove { pool: self.pool.clone(), object }).await?;
        Ok(renamed)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Attempt, Shape};
    use super::*;
    use crate::rbd::sim::{Sim, SimConfig};

    #[tokio::test]
    async fn a_rename_that_was_cut_short_is_ended_and_leaves_one_name() {
        for in_directory in [false, true] {
            let sim = Sim::new(SimConfig::default());
            let place = Place { site: sim.site("a"), pool: "volumes".to_owned() };
            let shape = Shape { order: 22, features: 61 };
            place.create("old", 1 << 30, shape, Attempt::First).await.unwrap();
            let id = place.stat("old").await.unwrap().id;
            sim.cut_rename_short("a", "volumes", ("old", "new"), in_directory);
            assert_eq!(sim.images("a", "volumes"), ["new", "old"]);
            place.rename("old", "new", &id).await.unwrap();
            assert_eq!(sim.images("a", "volumes"), ["new"], "{in_directory}");
            assert_eq!(place.stat("new").await.unwrap().id, id);
            place.rename("old", "new", &id).await.unwrap();
            place.create("other", 1 << 30, shape, Attempt::First).await.unwrap();
            let taken = place.rename("new", "other", &id).await.unwrap_err();
            assert_eq!(taken.kind, RbdErrorKind::Exists);
            assert_eq!(sim.images("a", "volumes"), ["new", "other"]);
        }
    }
}
