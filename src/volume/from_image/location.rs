//! Where Glance says that an image lies in Ceph: `rbd://fsid/pool/image/snapshot`.

use super::super::image::{Place, Shape};
use super::inspect::HEAD;
use crate::rbd::protocol::{ImageClone, ImageInspect, ImageRead, ImageRemove};
use crate::rbd::types::ImageInfo;
use crate::rbd::{RbdError, RbdErrorKind};

/// How often a clone whose effect is unknown is made anew.
const TRIES: u32 = 3;

/// A snapshot of an image in some Ceph cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RbdLocation {
    pub(super) fsid: String,
    pub(super) pool: String,
    pub(super) image: String,
    pub(super) snap: String,
}

impl RbdLocation {
    /// `None` for a URL of another kind, or of an image that is no snapshot (`RBDDriver._parse_location`).
    pub(super) fn parse(url: &str) -> Option<RbdLocation> {
        let parts: Vec<String> = url.strip_prefix("rbd://")?.split('/').map(unquoted).collect();
        if parts.iter().any(String::is_empty) {
            return None;
        }
        let [fsid, pool, image, snap] = <[String; 4]>::try_from(parts).ok()?;
        Some(RbdLocation { fsid, pool, image, snap })
    }

    /// The image; `None` when it, or its snapshot, cannot be opened.
    pub(super) async fn look(&self, place: &Place) -> Result<Option<ImageInfo>, RbdError> {
        let ask = ImageInspect { pool: self.pool.clone(), image: self.image.clone() };
        match place.site.insist(ask).await {
            Ok(found) => {
                let snap = found.snaps.iter().find(|s| s.name == self.snap);
                Ok(snap.map(|s| ImageInfo { size: s.size, ..found.info }))
            }
            Err(e) => match e.kind {
                RbdErrorKind::NotFound
                | RbdErrorKind::NoPool
                | RbdErrorKind::Permission
                | RbdErrorKind::Invalid
                | RbdErrorKind::NotSupported => Ok(None),
                _ => Err(e),
            },
        }
    }

    /// Its first bytes.
    pub(super) async fn head(&self, place: &Place) -> Result<Vec<u8>, RbdError> {
        let (pool, image, snap) = (self.pool.clone(), self.image.clone(), Some(self.snap.clone()));
        place.site.insist(ImageRead { pool, image, snap, offset: 0, length: HEAD as u64 }).await
    }

    /// Clones it to an image that does not exist yet. Its objects are no smaller than the parent's, as upstream.
    pub(super) async fn clone_to(
        &self,
        place: &Place,
        name: &str,
        parent: &ImageInfo,
        shape: Shape,
    ) -> Result<(), RbdError> {
        let clone = ImageClone {
            pool: self.pool.clone(),
            image: self.image.clone(),
            snap: self.snap.clone(),
            dest_pool: place.pool.clone(),
            dest: name.to_owned(),
            features: shape.features,
            order: shape.order.max((63 - parent.stripe_unit.max(1).leading_zeros()) as u8),
        };
        let mut tries = 0;
        loop {
            tries += 1;
            match place.site.call(clone.clone()).await {
                Err(e) if e.effect_unknown() && tries < TRIES => {
                    // It may be there, and whole, or in part.
                    let remove = ImageRemove { pool: place.pool.clone(), image: name.to_owned() };
                    match place.site.insist(remove).await {
                        Ok(()) => {}
                        Err(gone) if gone.is_not_found() => {}
                        Err(other) => return Err(other),
                    }
                }
                other => return other,
            }
        }
    }
}

/// Percent-decoded.
fn unquoted(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).filter(|_| *byte == b'%');
        let code =
            code.and_then(|c| std::str::from_utf8(c).ok()).and_then(|c| u8::from_str_radix(c, 16).ok());
        decoded.push(code.unwrap_or(*byte));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_snapshot_in_ceph_is_a_location() {
        let location = RbdLocation::parse("rbd://f-1/images%2Fa/i%20d/snap").unwrap();
        assert_eq!(
            (location.fsid.as_str(), location.pool.as_str(), location.image.as_str(), location.snap.as_str()),
            ("f-1", "images/a", "i d", "snap")
        );
        for other in [
            "file:///var/lib/glance/images/x",
            "rbd://image",
            "rbd://f/images/i",
            "rbd://f/images//snap",
            "rbd://f/images/i/snap/more",
            "",
        ] {
            assert_eq!(RbdLocation::parse(other), None, "{other}");
        }
        assert_eq!(unquoted("100%"), "100%");
    }
}
