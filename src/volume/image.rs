//! What volume operations do to RBD images, each as one repeatable function.
//!
//! A process may die between any two calls to Ceph, and a call may time out with its effect unknown. So
//! every function here can be run again from its beginning and ends in the same state: what exists
//! already is accepted when this operation may have made it, what is gone already is accepted as
//! removed. Names and order of steps are those of `cinder/volume/drivers/rbd.py`, because both services
//! share pools.

mod adoption;
mod carry;
mod deferral;
mod header;
mod movement;
mod removal;
mod rollback;
mod together;
mod watchers;

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

pub use deferral::Kept;
pub use together::Consistency;

use crate::rbd::protocol::*;
use crate::rbd::types::{ImageInfo, ImageName, Parent, features};
use crate::rbd::types::{MirrorMode, MirrorState};
use crate::rbd::{RbdError, RbdErrorKind, Site};

pub use adoption::{DRILL, PIN, is_helper_snapshot, is_named_as_backup};
pub use movement::OF_ITSELF;

/// Suffix of the snapshot that a clone of a volume hangs on.
pub const CLONE_SNAP: &str = ".clone_snap";
/// Suffix of an image whose volume is deleted but whose clones still need it.
pub const DELETED: &str = ".deleted";
/// How often a busy image or snapshot is tried, as upstream.
const BUSY_TRIES: u32 = 3;
/// First wait before a busy image is tried again; doubles. Upstream waits 5 and 10 s.
const BUSY_WAIT: Duration = Duration::from_secs(2);
/// How often a call with unknown effect is sent again.
const UNKNOWN_TRIES: u32 = 3;

/// A pool of a site: where one operation works.
#[derive(Clone)]
pub struct Place {
    /// The site that serves the volume now.
    pub site: Site,
    /// `rbd_pool`.
    pub pool: String,
}

/// Options of new images, from the backend's configuration and the client's ceph.conf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// log2 of the object size.
    pub order: u8,
    /// Feature bits.
    pub features: u64,
}

impl Shape {
    /// `order` from `rbd_store_chunk_size` (MiB): floor(log2(chunk)) + 20, as upstream computes it.
    pub fn new(chunk_mib: u32, features: u64) -> Shape {
        Shape { order: 20 + chunk_mib.max(1).ilog2() as u8, features }
    }
}

/// Whether this operation may have run before, so that "exists already" can be its own work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The first time: what exists is somebody else's.
    First,
    /// After a crash or an unknown effect.
    Again,
}

/// What an image looks like that has been made completely.
enum Made<'a> {
    /// Of this many bytes.
    Empty(u64),
    /// A clone of this snapshot in the same pool.
    Clone { parent: &'a str, snap: &'a str },
}

enum Found {
    Whole,
    Half,
    Other,
}

/// Runs `command`; when its effect is unknown, runs it again. On a repetition (or when `attempt` is one)
/// an answer of kind `done` means that it had taken effect already.
async fn repeat<C: Command<Reply = ()> + Clone>(
    site: &Site,
    command: C,
    attempt: Attempt,
    done: RbdErrorKind,
) -> Result<(), RbdError> {
    let mut again = attempt == Attempt::Again;
    let mut tries = 0;
    let since = Instant::now();
    loop {
        tries += 1;
        match site.call(command.clone()).await {
            Ok(()) => return Ok(()),
            Err(e) if again && e.kind == done => return Ok(()),
            Err(e) if e.is_silence() && site.may_be_back(since).await => again = true,
            Err(e) if e.effect_unknown() && tries < UNKNOWN_TRIES && !site.is_given_up() => {
                debug!(ceph.op = C::NAME, error = %e, "effect unknown, asking again");
                again = true;
            }
            Err(e) => return Err(e),
        }
    }
}

impl Place {
    /// See [`Site::briefly`].
    #[must_use]
    pub fn briefly(self) -> Place {
        Place { site: self.site.briefly(), ..self }
    }

    fn image(&self, image: &str) -> ImageStat {
        ImageStat { pool: self.pool.clone(), image: image.to_owned() }
    }

    /// Reads what is known of an image.
    pub async fn stat(&self, image: &str) -> Result<ImageInfo, RbdError> {
        self.site.insist(self.image(image)).await
    }

    /// Creates an empty image of `bytes`.
    pub async fn create(
        &self,
        image: &str,
        bytes: u64,
        shape: Shape,
        attempt: Attempt,
    ) -> Result<(), RbdError> {
        let create = ImageCreate {
            pool: self.pool.clone(),
            image: image.to_owned(),
            size: bytes,
            order: shape.order,
            features: shape.features,
        };
        self.make(create, image, Made::Empty(bytes), attempt).await
    }

    /// Makes an image with `command`. librbd makes it object by object, so what an attempt that was cut
    /// short left may be a name that cannot be opened, or an empty image instead of a clone: what is not
    /// `whole` is removed and made anew. At the first attempt nobody may have the name, which is asked before:
    /// when a worker is lost afterwards, what has it is this attempt's own.
    async fn make<C: Command<Reply = ()> + Clone>(
        &self,
        command: C,
        image: &str,
        whole: Made<'_>,
        attempt: Attempt,
    ) -> Result<(), RbdError> {
        let mut again = attempt == Attempt::Again;
        if !again {
            self.require_free(C::NAME, image).await?;
        }
        let mut tries = 0;
        let since = Instant::now();
        loop {
            tries += 1;
            match self.site.call(command.clone()).await {
                Ok(()) => return Ok(()),
                Err(e) if again && e.kind == RbdErrorKind::Exists => match self.found(image, &whole).await? {
                    Found::Whole => return Ok(()),
                    Found::Half if tries < UNKNOWN_TRIES => {
                        warn!(image, "an attempt that was cut short left half an image: making it anew");
                        self.remove_if_there(image).await?;
                    }
                    Found::Half | Found::Other => return Err(e),
                },
                Err(e) if e.is_silence() && self.site.may_be_back(since).await => again = true,
                Err(e) if e.effect_unknown() && tries < UNKNOWN_TRIES && !self.site.is_given_up() => {
                    debug!(ceph.op = C::NAME, error = %e, "effect unknown, asking again");
                    again = true;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// `Exists`, as `op` would say it, when an image has the name.
    async fn require_free(&self, op: &str, image: &str) -> Result<(), RbdError> {
        match self.site.insist(ImageId { pool: self.pool.clone(), image: image.to_owned() }).await {
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e),
            Ok(id) => Err(RbdError {
                kind: RbdErrorKind::Exists,
                op: op.to_owned(),
                site: self.site.name().to_owned(),
                errno: 0,
                message: format!("{}/{image} exists, its id is {id}", self.pool),
            }),
        }
    }

    /// What an attempt that was cut short left under the name of `image`.
    async fn found(&self, image: &str, whole: &Made<'_>) -> Result<Found, RbdError> {
        let stat = match self.stat(image).await {
            Ok(stat) => stat,
            Err(e) if e.is_not_found() => return Ok(Found::Half),
            Err(e) => return Err(e),
        };
        Ok(match (whole, stat.parent) {
            (Made::Empty(bytes), None) if stat.size == *bytes => Found::Whole,
            (Made::Empty(_), _) => Found::Other,
            // Either cut short, or complete and flattened: the parent's data is still there for another one.
            (Made::Clone { .. }, None) => Found::Half,
            (Made::Clone { parent, snap }, Some(p)) => {
                if p.pool != self.pool || p.image != *parent || p.snap != *snap {
                    Found::Other
                } else if self.children(parent, snap).await?.iter().any(|c| c.image == image) {
                    Found::Whole
                } else {
                    Found::Half // the parent does not know of it, and could lose the snapshot under it
                }
            }
        })
    }

    /// Clones `parent@snap` (same pool) to `image` and makes it `bytes` large.
    pub async fn clone_from(
        &self,
        parent: &str,
        snap: &str,
        image: &str,
        bytes: u64,
        shape: Shape,
        attempt: Attempt,
    ) -> Result<(), RbdError> {
        let stat = self.stat(parent).await?;
        let unit_order = (63 - stat.stripe_unit.max(1).leading_zeros()) as u8;
        let clone = ImageClone {
            pool: self.pool.clone(),
            image: parent.to_owned(),
            snap: snap.to_owned(),
            dest_pool: self.pool.clone(),
            dest: image.to_owned(),
            features: shape.features,
            order: shape.order.max(unit_order),
        };
        self.make(clone, image, Made::Clone { parent, snap }, attempt).await?;
        self.grow(image, bytes).await
    }

    /// Makes an image at least `bytes` large.
    pub async fn grow(&self, image: &str, bytes: u64) -> Result<(), RbdError> {
        if self.stat(image).await?.size < bytes {
            let resize = ImageResize { pool: self.pool.clone(), image: image.to_owned(), size: bytes };
            repeat(&self.site, resize, Attempt::First, RbdErrorKind::Other).await?;
        }
        Ok(())
    }

    /// Copies the parent's data into the image, so that it depends on nobody.
    pub async fn flatten(&self, image: &str) -> Result<(), RbdError> {
        let _place = self.site.place_to_flatten().await;
        let flatten = ImageFlatten { pool: self.pool.clone(), image: image.to_owned() };
        // "Invalid" on an image without parent: flattened already.
        match self.site.insist(flatten).await {
            Err(e) if e.kind == RbdErrorKind::Invalid && self.stat(image).await?.parent.is_none() => Ok(()),
            other => other,
        }
    }

    /// Full copy of an image's data.
    pub async fn copy(
        &self,
        from: &str,
        image: &str,
        shape: Shape,
        attempt: Attempt,
    ) -> Result<(), RbdError> {
        if attempt == Attempt::Again {
            // A copy that was cut short looks like one that is complete: begin anew.
            self.remove_if_there(image).await?;
        }
        let copy = ImageCopy {
            pool: self.pool.clone(),
            image: from.to_owned(),
            snap: None,
            dest_pool: self.pool.clone(),
            dest: image.to_owned(),
            features: shape.features,
            order: shape.order,
        };
        self.site.call(copy).await
    }

    /// Clones a volume's current content: `<image>.clone_snap` on the source, a clone of it, flattened when
    /// the chain of clones has reached `max_depth` (`rbd_max_clone_depth`; 0: full copy).
    pub async fn clone_volume(
        &self,
        source: &str,
        image: &str,
        bytes: u64,
        shape: Shape,
        max_depth: u32,
        attempt: Attempt,
    ) -> Result<(), RbdError> {
        if max_depth == 0 {
            self.copy(source, image, shape, attempt).await?;
            return self.grow(image, bytes).await;
        }
        let snap = format!("{image}{CLONE_SNAP}");
        self.snapshot(source, &snap, attempt).await?;
        let depth = self.clone_depth(source).await?;
        if let Err(e) = self.clone_from(source, &snap, image, bytes, shape, attempt).await {
            self.drop_snapshot_quietly(source, &snap).await;
            return Err(e);
        }
        if depth >= max_depth {
            self.flatten(image).await?;
            self.drop_snapshot_quietly(source, &snap).await;
        }
        Ok(())
    }

    /// Ancestors of an image in a chain of volume clones. Only parents by `<image>.clone_snap` count, as
    /// upstream: clones of snapshots and of glance images begin at 0.
    pub async fn clone_depth(&self, image: &str) -> Result<u32, RbdError> {
        let mut depth = 0;
        let mut current = image.to_owned();
        loop {
            let parent = self.stat(&current).await?.parent;
            let Some(parent) = parent.filter(|p| self.is_helper(p, &current)) else { return Ok(depth) };
            depth += 1;
            current = parent.image;
        }
    }

    /// Whether `image` hangs on `parent` as a clone of a volume, and nothing else does.
    fn is_helper(&self, parent: &Parent, image: &str) -> bool {
        let plain = image.strip_suffix(DELETED).unwrap_or(image);
        parent.pool == self.pool && parent.snap == format!("{plain}{CLONE_SNAP}")
    }

    async fn children(&self, image: &str, snap: &str) -> Result<Vec<ImageName>, RbdError> {
        let ask =
            ImageChildren { pool: self.pool.clone(), image: image.to_owned(), snap: Some(snap.to_owned()) };
        self.site.insist(ask).await
    }

    /// Takes and protects a snapshot.
    pub async fn snapshot(&self, image: &str, snap: &str, attempt: Attempt) -> Result<(), RbdError> {
        let (pool, image, snap) = (self.pool.clone(), image.to_owned(), snap.to_owned());
        let create = SnapCreate { pool, image: image.clone(), snap: snap.clone() };
        repeat(&self.site, create, attempt, RbdErrorKind::Exists).await?;
        self.protect(&image, &snap).await
    }

    /// Protects a snapshot that may be protected already.
    pub async fn protect(&self, image: &str, snap: &str) -> Result<(), RbdError> {
        let protect = SnapProtect { pool: self.pool.clone(), image: image.to_owned(), snap: snap.to_owned() };
        // Protected already is EBUSY: only a former attempt can have done that.
        repeat(&self.site, protect, Attempt::Again, RbdErrorKind::Busy).await
    }

    /// Removes a snapshot; its clones, if any, are flattened first. `Busy` when that does not help.
    pub async fn remove_snapshot(&self, image: &str, snap: &str) -> Result<(), RbdError> {
        let mut wait = BUSY_WAIT;
        for left in (0..BUSY_TRIES).rev() {
            let unprotect =
                SnapUnprotect { pool: self.pool.clone(), image: image.to_owned(), snap: snap.to_owned() };
            match self.site.call(unprotect).await {
                Ok(()) => break,
                // Not protected.
                Err(e) if e.kind == RbdErrorKind::Invalid => break,
                // Neither image nor snapshot: removed already.
                Err(e) if e.is_not_found() => return Ok(()),
                Err(e) if e.kind == RbdErrorKind::Busy && left > 0 => {
                    self.flatten_children(image, Some(snap)).await?;
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                Err(e) if e.effect_unknown() && left > 0 => {}
                Err(e) => return Err(e),
            }
        }
        let remove = SnapRemove { pool: self.pool.clone(), image: image.to_owned(), snap: snap.to_owned() };
        repeat(&self.site, remove, Attempt::Again, RbdErrorKind::NotFound).await
    }

    /// Lets go of a snapshot that stays: it is no longer protected, unless it has clones.
    pub async fn release_snapshot(&self, image: &str, snap: &str) -> Result<(), RbdError> {
        match self.children(image, snap).await {
            Ok(children) if children.is_empty() => {}
            Ok(_) => return Ok(()),
            // Nothing to let go of.
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        }
        let unprotect =
            SnapUnprotect { pool: self.pool.clone(), image: image.to_owned(), snap: snap.to_owned() };
        match self.site.insist(unprotect).await {
            // Not protected; or protected by a clone that has just been made.
            Err(e) if matches!(e.kind, RbdErrorKind::Invalid | RbdErrorKind::Busy) => Ok(()),
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    async fn flatten_children(&self, image: &str, snap: Option<&str>) -> Result<(), RbdError> {
        let ask =
            ImageChildren { pool: self.pool.clone(), image: image.to_owned(), snap: snap.map(str::to_owned) };
        for child in self.site.insist(ask).await? {
            self.flatten_child(&child).await?;
        }
        Ok(())
    }

    /// Gives a clone its parent's data, wherever it is on this site, so that the parent can go. One in the trash as far as
    /// that is possible.
    ///
    /// # Errors
    /// `Busy` for one that is mirrored by snapshots; what Ceph answers.
    pub async fn flatten_child(&self, child: &ImageName) -> Result<(), RbdError> {
        let place = Place { site: self.site.clone(), pool: child.pool.clone() };
        if child.trash {
            place.flatten_in_trash(&child.image).await;
            return Ok(());
        }
        // Ceph 16 silently loses the replica's data when a clone that is mirrored by snapshots is flattened
        // (it reads zeros there while its status says replaying), so such a clone keeps its parent.
        let ask = MirrorInfo { pool: child.pool.clone(), image: child.image.clone() };
        let mirrored = match self.site.call(ask).await {
            Ok(info) => info.state == MirrorState::Enabled && info.mode == MirrorMode::Snapshot,
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        };
        if mirrored {
            return Err(RbdError {
                kind: RbdErrorKind::Busy,
                op: "ImageFlatten".to_owned(),
                site: self.site.name().to_owned(),
                errno: 0,
                message: format!(
                    "{}/{} depends on it and is mirrored by snapshots: flattening it would lose its replica's data",
                    child.pool, child.image
                ),
            });
        }
        match place.flatten(&child.image).await {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    async fn drop_snapshot_quietly(&self, image: &str, snap: &str) {
        if let Err(error) = self.remove_snapshot(image, snap).await {
            warn!(image, snap, %error, "could not remove a helper snapshot; it is removed with its image");
        }
    }

    async fn remove_if_there(&self, image: &str) -> Result<(), RbdError> {
        let remove = ImageRemove { pool: self.pool.clone(), image: image.to_owned() };
        repeat(&self.site, remove, Attempt::Again, RbdErrorKind::NotFound).await
    }
}

/// Feature bits of new images: the client's `rbd_default_features` (number, or names joined by commas), or
/// layering when the option is missing or 0.
pub fn default_features(option: Option<&str>) -> u64 {
    let text = option.unwrap_or_default().trim();
    let bits = match text.parse::<u64>() {
        Ok(bits) => bits,
        Err(_) => text
            .split(',')
            .map(|name| match name.trim() {
                "layering" => features::LAYERING,
                "exclusive-lock" => features::EXCLUSIVE_LOCK,
                "object-map" => features::OBJECT_MAP,
                "fast-diff" => features::FAST_DIFF,
                "deep-flatten" => features::DEEP_FLATTEN,
                "journaling" => features::JOURNALING,
                "data-pool" => features::DATA_POOL,
                _ => 0,
            })
            .sum(),
    };
    if bits == 0 { features::LAYERING } else { bits }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod steps;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_shapes_are_upstreams() {
        assert_eq!(Shape::new(4, 61).order, 22);
        assert_eq!(Shape::new(8, 61).order, 23);
    }

    #[test]
    fn default_features_come_as_number_or_names() {
        assert_eq!(default_features(Some("61")), 61);
        assert_eq!(default_features(Some("layering,exclusive-lock")), 5);
        assert_eq!(default_features(None), features::LAYERING);
        assert_eq!(default_features(Some("0")), features::LAYERING);
    }
}
