//! Which of the two methods makes a backup.
//!
//! Both end as a snapshot in a backup pool with an object of metadata and one of checksums beside it, so that
//! restoration, deletion and verification are the same for both; what differs is how the data comes there. *Diff*
//! reads what has changed and writes it ([`super::create`]). *Mirror* lets RBD mirroring carry it, and pins a point of the
//! copy ([`super::mirror`]). The method is chosen once, before anything is made, and is in the journal with the request; the
//! row's `service` says which it was, for ever. A chain is of one method.

use serde::{Deserialize, Serialize};
use tracing::info;

use super::place::Located;
use super::{Backups, names, plan};
use crate::config::BackupMethod;
use crate::error::{Code, Error, Result};
use crate::model::{Backup, Volume};
use crate::rbd::protocol::{Fsid, MirrorInfo};
use crate::rbd::types::{MirrorState, Mirroring};
use crate::rbd::{RbdError, RbdErrorKind};
use crate::volume::image::Place;

/// How a backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// What differs is read and written, as stock does.
    Diff,
    /// RBD mirroring brings it, and a point of the copy is pinned.
    Mirror,
}

impl Method {
    /// That of a backup, by the column `service`.
    pub fn of(service: Option<&str>) -> Method {
        match service {
            Some(names::MIRROR) => Method::Mirror,
            _ => Method::Diff,
        }
    }

    /// What it writes there.
    pub fn service(self) -> &'static str {
        match self {
            Method::Diff => names::DRIVER,
            Method::Mirror => names::MIRROR,
        }
    }
}

/// What was chosen for a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) method: Method,
    /// The backup that it was to continue is of the other method: it becomes one without parent.
    pub(super) forsakes_parent: bool,
}

/// Chooses, by `backup_method`, by the method of the parent, and by whether the volume is mirrored to the site that the
/// backup goes to. Changes nothing: mirroring is never enabled for the sake of a backup.
///
/// # Errors
/// `InvalidVolume` when the method is to be mirror and the volume is not mirrored there, with what to do; as
/// [`Backups::locate`] and [`Backups::destination`]; what Ceph answers.
pub(super) async fn choose(b: &Backups, backup: &Backup, volume: &Volume) -> Result<Choice> {
    let parent = plan::parent(b, backup).await?;
    let former = parent.as_ref().map(|parent| Method::of(parent.service.as_deref()));
    let method = match (b.config.method, former) {
        (BackupMethod::Diff, _) | (BackupMethod::Auto, Some(Method::Diff)) => Method::Diff,
        (wanted, _) => {
            let chain = parent.as_ref().filter(|_| former == Some(Method::Mirror));
            let source = b.locate(volume).await?;
            let (store, _) = b.destination(backup, chain, volume).await?;
            by_mirroring(wanted, &source, &store, volume).await?
        }
    };
    let forsakes_parent = former.is_some_and(|former| former != method);
    info!(backup.id = backup.id, ?method, forsakes_parent, "how a backup is made");
    Ok(Choice { method, forsakes_parent })
}

async fn by_mirroring(
    wanted: BackupMethod,
    source: &Located,
    store: &Place,
    volume: &Volume,
) -> Result<Method> {
    let (here, there) = (source.place.site.insist(Fsid {}).await?, store.site.insist(Fsid {}).await?);
    if here == there {
        // After a failover, for one: a copy in the same cluster is none of mirroring's.
        return Ok(Method::Diff);
    }
    match obstacle(source, store).await? {
        None => Ok(Method::Mirror),
        Some(why) if wanted == BackupMethod::Mirror => Err(Error::new(
            Code::InvalidVolume,
            format!(
                "Volume {} cannot be backed up by mirroring to site {}: {why}. Give it a replicated type, back it up to \
                 a site that it is mirrored to, or set backup_method to auto",
                volume.id,
                store.site.name()
            ),
        )),
        Some(_) => Ok(Method::Diff),
    }
}

/// Why there is no copy of the volume that mirroring keeps on the site of the backups; `None`: there is one.
async fn obstacle(source: &Located, store: &Place) -> Result<Option<String>, RbdError> {
    let Located { place, image } = source;
    let ask = MirrorInfo { pool: place.pool.clone(), image: image.clone() };
    let here = place.site.insist(ask.clone()).await?;
    if here.state != MirrorState::Enabled {
        return Ok(Some("its image is not mirrored".to_owned()));
    }
    if !here.primary {
        return Ok(Some(format!("its image is not primary on site {}", place.site.name())));
    }
    let there = match store.site.insist(ask).await {
        Ok(there) => there,
        Err(error) if error.is_not_found() || error.kind == RbdErrorKind::NoPool => {
            return Ok(Some(format!("there is no copy of it (yet) in pool {}", place.pool)));
        }
        Err(error) => return Err(error),
    };
    Ok(disagreement(&here, &there))
}

fn disagreement(here: &Mirroring, there: &Mirroring) -> Option<String> {
    match there {
        _ if there.state != MirrorState::Enabled || there.global_id != here.global_id => {
            Some("the image of that name there is not its copy".to_owned())
        }
        _ if there.primary => Some("its copy is primary, too".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::types::MirrorMode;

    #[test]
    fn the_row_says_which_method_it_was() {
        for method in [Method::Diff, Method::Mirror] {
            assert_eq!(Method::of(Some(method.service())), method);
        }
        assert_eq!(Method::of(None), Method::Diff);
        assert_eq!(Method::of(Some("cinder.backup.drivers.ceph")), Method::Diff);
    }

    #[test]
    fn only_a_secondary_of_the_same_pair_is_a_copy() {
        let side = |primary: bool, id: &str| Mirroring {
            state: MirrorState::Enabled,
            mode: MirrorMode::Journal,
            primary,
            global_id: id.to_owned(),
        };
        let here = side(true, "g");
        assert_eq!(disagreement(&here, &side(false, "g")), None);
        for other in [
            side(true, "g"),
            side(false, "h"),
            Mirroring { state: MirrorState::Disabled, ..side(false, "g") },
        ] {
            assert!(disagreement(&here, &other).is_some(), "{other:?}");
        }
    }
}
