//! Two images of a volume change places: the one that it has, and the one that it is to have.
//!
//! The old image gets a name of ours, then the new one gets the volume's. In between the volume has none, so all that is
//! needed to go either way is in the journal before: both images by their internal ids, and where they are. Whoever comes
//! after a crash, or after a failure that could not be tidied up at once, looks which of them has the volume's name, and
//! puts right what is left.

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::backup::{Backups, images};
use crate::rbd::protocol::Connection;
use crate::rbd::{RbdError, RbdErrorKind, Site};
use crate::volume::crash;
use crate::volume::image::Place;

/// What the names of images begin with that are to take a volume's place, or have lost it.
const NEW: &str = "scoria-new-";
const OLD: &str = "scoria-old-";

/// An exchange, as it is written down before it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The volume's own client, on the site where its image is.
    connection: Connection,
    /// Which cluster that is.
    fsid: String,
    pool: String,
    /// Name of the volume's image.
    image: String,
    /// Id of the image that it has.
    old: String,
    /// Id of the one that it is to have; `None`: that is not made yet.
    pub(super) new: Option<String>,
    /// Makes the names of ours unique: number of the operation.
    operation: i64,
}

/// Which image has the volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// The one that it had.
    Old,
    /// The one that it was to have.
    New,
    /// None of the two: the volume was deleted meanwhile, or another image has its name.
    Neither,
}

impl Exchange {
    /// Of the image `image` with the id `old` in `place`, which is in the cluster `fsid`.
    pub(super) fn new(place: &Place, fsid: String, image: &str, old: String, operation: i64) -> Exchange {
        Exchange {
            connection: place.site.connection().clone(),
            fsid,
            pool: place.pool.clone(),
            image: image.to_owned(),
            old,
            new: None,
            operation,
        }
    }

    /// Where both images are, whatever site serves the volume by now.
    pub(in crate::backup) fn place(&self, b: &Backups) -> Place {
        let site = Site::new(b.ceph.clone(), self.connection.clone());
        site.identity().expect(Some(&self.fsid));
        Place { site, pool: self.pool.clone() }
    }

    /// Name of the volume's image.
    pub(in crate::backup) fn image(&self) -> &str {
        &self.image
    }

    /// Name of the new image until it gets the volume's.
    pub(super) fn new_name(&self) -> String {
        format!("{NEW}{}.{}", self.image, self.operation)
    }

    /// Name of the old image after it has lost the volume's.
    fn old_name(&self) -> String {
        format!("{OLD}{}.{}", self.image, self.operation)
    }

    /// Gives the new image the volume's name. Repeatable.
    ///
    /// # Errors
    /// What Ceph answers: then [`Exchange::put_right`] is due.
    pub(super) async fn carry_out(&self, place: &Place, new: &str) -> Result<(), RbdError> {
        if !is_named(place, &self.image, new).await? {
            place.rename(&self.image, &self.old_name(), &self.old).await?;
            crash::point("restore_backup:moved_away");
            place.rename(&self.new_name(), &self.image, new).await?;
        }
        crash::point("restore_backup:exchanged");
        Ok(())
    }

    /// Ends what was begun: an exchange that has happened stays, of any other nothing does. Answers which image the volume
    /// has; what is left of the other one is removed. Repeatable.
    ///
    /// # Errors
    /// What Ceph answers.
    pub(in crate::backup) async fn put_right(&self, place: &Place) -> Result<Stands, RbdError> {
        if let Some(new) = &self.new
            && is_named(place, &self.image, new).await?
        {
            // Nobody can name the new one by its former name any more.
            place.clear_away(&self.old_name()).await?;
            return Ok(Stands::New);
        }
        let stands = match place.rename(&self.old_name(), &self.image, &self.old).await {
            Ok(()) => Stands::Old,
            Err(error) if matches!(error.kind, RbdErrorKind::NotFound | RbdErrorKind::Exists) => {
                warn!(image = self.image, %error, "the image that a volume had before a restoration is not put back");
                Stands::Neither
            }
            Err(error) => return Err(error),
        };
        images::remove_image(place, &self.new_name()).await?;
        Ok(stands)
    }

    /// Removes both images as far as they have names of ours: nobody needs the volume any more.
    ///
    /// # Errors
    /// What Ceph answers.
    pub(in crate::backup) async fn clear_away(&self, place: &Place) -> Result<(), RbdError> {
        place.clear_away(&self.old_name()).await?;
        place.clear_away(&self.new_name()).await
    }

    /// Takes the old image away that was put back while the volume was being deleted.
    ///
    /// # Errors
    /// What Ceph answers.
    pub(in crate::backup) async fn take_back(&self, place: &Place) -> Result<(), RbdError> {
        if is_named(place, &self.image, &self.old).await? {
            place.clear_away(&self.image).await?;
        }
        Ok(())
    }

    /// Whether the volume has the new image.
    ///
    /// # Errors
    /// What Ceph answers.
    pub(in crate::backup) async fn has_happened(&self, place: &Place) -> Result<bool, RbdError> {
        match &self.new {
            Some(new) => is_named(place, &self.image, new).await,
            None => Ok(false),
        }
    }
}

async fn is_named(place: &Place, image: &str, id: &str) -> Result<bool, RbdError> {
    match place.stat(image).await {
        Ok(info) => Ok(info.id == id),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}
