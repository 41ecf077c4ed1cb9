//! Removing copies on a site that goes, as many as the operator has agreed to lose, and none that something needs.

use tracing::info;

use super::census::{Census, Image, human};
use super::orders::Purge;
use super::pair::End;
use crate::error::{Code, Error, Result};
use crate::rbd::protocol::*;
use crate::rbd::{RbdErrorKind, Site};

/// What became of the copies.
#[derive(Debug, Default)]
pub(super) struct Purged {
    /// Removed.
    pub(super) removed: Vec<String>,
    /// Kept for its clones.
    pub(super) kept: Vec<String>,
    /// Kept, since it has no original.
    pub(super) orphans: Vec<String>,
}

/// Fails when there are more copies than the operator was told of.
///
/// # Errors
/// `Conflict`.
pub(super) fn check(census: &Census, agreed: Purge) -> Result<()> {
    let copies: Vec<&Image> = census.copies().collect();
    let bytes: u64 = copies.iter().map(|image| image.size).sum();
    if copies.len() as u64 <= agreed.copies && bytes <= agreed.bytes {
        return Ok(());
    }
    Err(Error::new(
        Code::Conflict,
        format!(
            "There are {} copies of {} by now, and {} of {} were agreed to: look again, nothing was removed",
            copies.len(),
            human(bytes),
            agreed.copies,
            human(agreed.bytes)
        ),
    ))
}

/// Removes the copies on `there` whose originals are on `here`.
pub(super) async fn purge(here: &End, there: &End, copies: &[Image]) -> Result<Purged> {
    let mut purged = Purged::default();
    let mut left: Vec<&Image> = copies.iter().collect();
    // A mirrored clone goes before its parent: as many rounds as clones are deep.
    loop {
        let (before, mut parents) = (left.len(), Vec::new());
        purged.kept.clear();
        for copy in left {
            if !one(here, there, copy, &mut purged).await? {
                parents.push(copy);
            }
        }
        if parents.is_empty() || parents.len() == before {
            return Ok(purged);
        }
        left = parents;
    }
}

/// Removes one copy, unless something needs it. False: it has clones still.
async fn one(here: &End, there: &End, copy: &Image, purged: &mut Purged) -> Result<bool> {
    let name = format!("{}/{}", copy.pool, copy.name);
    // Asked again: a clone may have been made since.
    let children = ImageChildren { pool: copy.pool.clone(), image: copy.name.clone(), snap: None };
    match there.site.insist(children).await {
        Ok(children) if children.is_empty() => {}
        Ok(children) => {
            purged.kept.push(format!("{name}: it has {} clones", children.len()));
            return Ok(false);
        }
        Err(e) if e.kind == RbdErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(there.explain(e)),
    }
    let stat = ImageStat { pool: copy.pool.clone(), image: copy.name.clone() };
    match here.site.insist(stat).await {
        Ok(_) => {}
        Err(e) if e.kind == RbdErrorKind::NotFound => {
            purged.orphans.push(format!("{name}: its original is gone, it is the only one left"));
            return Ok(true);
        }
        Err(e) => return Err(here.explain(e)),
    }
    let removed = remove(&there.site, copy).await;
    removed.map_err(|e| there.explain(e))?;
    crate::volume::crash::point("link:purged");
    info!(site = there.row.name, image = name, op = "disconnect", "a copy was removed");
    purged.removed.push(name);
    Ok(true)
}

/// Removes one, with its snapshots. Gone already is a success at each step.
async fn remove(site: &Site, copy: &Image) -> std::result::Result<(), crate::rbd::RbdError> {
    fn gone<T: Default>(
        answer: std::result::Result<T, crate::rbd::RbdError>,
    ) -> std::result::Result<T, crate::rbd::RbdError> {
        match answer {
            Err(e) if e.kind == RbdErrorKind::NotFound => Ok(T::default()),
            other => other,
        }
    }
    let (pool, image) = (copy.pool.clone(), copy.name.clone());
    let disable = MirrorDisable { pool: pool.clone(), image: image.clone(), force: true };
    gone(site.insist(disable).await)?;
    let list = SnapList { pool: pool.clone(), image: image.clone() };
    for snap in gone(site.insist(list).await)? {
        if snap.protected {
            let unprotect =
                SnapUnprotect { pool: pool.clone(), image: image.clone(), snap: snap.name.clone() };
            match site.insist(unprotect).await {
                // Not protected any more, by an attempt whose answer was lost.
                Err(e) if e.kind == RbdErrorKind::Invalid => {}
                other => gone(other)?,
            }
        }
        let drop = SnapRemove { pool: pool.clone(), image: image.clone(), snap: snap.name };
        gone(site.insist(drop).await)?;
    }
    let points = SyncPointsRemove { pool: pool.clone(), image: image.clone() };
    gone(site.insist(points).await)?;
    gone(site.insist(ImageRemove { pool, image }).await)
}
