//! Bringing the content of an image to another pool, or to another cluster.

use tracing::{debug, warn};

use super::{Attempt, Place, UNKNOWN_TRIES};
use crate::rbd::protocol::*;
use crate::rbd::types::features;
use crate::rbd::{RbdError, RbdErrorKind};

/// Features that a copy, or a clone that takes its place, is given when the original has them. The others are of where an image is, not of
/// what it is.
pub const OF_ITSELF: u64 = features::LAYERING
    | features::EXCLUSIVE_LOCK
    | features::OBJECT_MAP
    | features::FAST_DIFF
    | features::DEEP_FLATTEN
    | features::JOURNALING;

impl Place {
    /// Full copy of the head of `image`, with its metadata, under the same name in another pool of this
    /// site. What a copy that was cut short has left is removed, and what this one leaves when it fails.
    pub async fn copy_to(&self, to: &Place, image: &str, attempt: Attempt) -> Result<(), RbdError> {
        let original = self.stat(image).await?;
        let copy = ImageCopy {
            pool: self.pool.clone(),
            image: image.to_owned(),
            snap: None,
            dest_pool: to.pool.clone(),
            dest: image.to_owned(),
            features: original.features & OF_ITSELF,
            order: original.order,
        };
        match attempt {
            Attempt::Again => to.remove_if_there(image).await?,
            // It must not be taken for half a copy of ours below.
            Attempt::First => to.require_free(ImageCopy::NAME, image).await?,
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.site.call(copy.clone()).await {
                Ok(()) => return Ok(()),
                // Somebody else's, since what was ours has been removed.
                Err(e) if e.kind == RbdErrorKind::Exists => return Err(e),
                Err(e) => e,
            };
            if let Err(left) = to.remove_if_there(image).await {
                warn!(image, pool = to.pool, error = %left, "could not remove half a copy");
                return Err(error);
            }
            if !error.effect_unknown() || tries >= UNKNOWN_TRIES {
                return Err(error);
            }
            debug!(image, %error, "a copy was cut short, beginning anew");
        }
    }

    /// Copies `length` bytes from `offset` on into the image `dest`, which has only zeros there, or what an
    /// earlier attempt has copied. Repeatable as long as nobody writes to either.
    pub async fn transfer(
        &self,
        image: &str,
        to: &Place,
        dest: &str,
        offset: u64,
        length: u64,
    ) -> Result<u64, RbdError> {
        let transfer = ImageTransfer {
            pool: self.pool.clone(),
            image: image.to_owned(),
            dest_site: to.site.connection().clone(),
            dest_pool: to.pool.clone(),
            dest: dest.to_owned(),
            offset,
            length,
        };
        self.site.insist(transfer).await
    }

    /// Gives an image the name `to`. False when it keeps its own, because that name is taken.
    pub async fn take_name(&self, from: &str, to: &str, attempt: Attempt) -> Result<bool, RbdError> {
        let rename = ImageRename { pool: self.pool.clone(), from: from.to_owned(), to: to.to_owned() };
        match super::repeat(&self.site, rename, attempt, RbdErrorKind::NotFound).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind == RbdErrorKind::Exists => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
#[path = "movement_tests.rs"]
mod tests;
