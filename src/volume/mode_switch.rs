//! From mirroring by journal to mirroring by snapshots, or back, under a volume that is in use.
//!
//! Ceph has no such switch: the mirroring ends, with the copy, and begins anew. What a user is promised by `enabled` is
//! a copy to fail over to, so that the row says so again only when the new copy replays; if it does not in time, the
//! volume is as good as one that a failover has left behind, and the same order sets it right. A volume that other
//! mirrored images hang on cannot be switched: their copies hang on its copy.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::image::Place;
use crate::backend::{Backend, DEFAULT_SITE};
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::model::{ReplicationStatus, Volume};
use crate::rbd::RbdError;
use crate::rbd::protocol::{ImageChildren, MirrorInfo};
use crate::rbd::types::{MirrorMode, MirrorState};
use crate::replication::engine::peer_of;

/// How long the new copy may take to replay. Those of large volumes take longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Refuses what Ceph would refuse half-way: to end the mirroring of an image with mirrored clones.
///
/// # Errors
/// `InvalidVolume`; what Ceph answers.
pub(super) async fn require_switchable(place: &Place, volume: &Volume, image: &str) -> Result<()> {
    let ask = ImageChildren { pool: place.pool.clone(), image: image.to_owned(), snap: None };
    for child in place.site.insist(ask).await?.into_iter().filter(|c| !c.trash) {
        let ask = MirrorInfo { pool: child.pool.clone(), image: child.image.clone() };
        let mirrored = match place.site.insist(ask).await {
            Ok(info) => info.state != MirrorState::Disabled,
            Err(e) if e.is_not_found() => false,
            Err(e) => return Err(e.into()),
        };
        if mirrored {
            return Err(Error::new(
                Code::InvalidVolume,
                format!(
                    "The replication of volume {} cannot be switched off, or to another mode, while clones of it \
                     are replicated",
                    volume.id
                ),
            )
            .detail(format!("{}/{} is one of them", child.pool, child.image)));
        }
    }
    Ok(())
}

/// Waits until a copy of `image` replays in the new mode; otherwise answers what is to be said in the row.
pub(super) async fn await_copy(
    backend: &Backend,
    place: &Place,
    image: &str,
    mode: MirrorMode,
) -> Option<VolumeChanges> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut last = None;
        for name in std::iter::once(DEFAULT_SITE.to_owned()).chain(backend.device_names()) {
            if name == place.site.name() {
                continue;
            }
            match replays(backend, &name, place, image, mode).await {
                Ok(true) => return None,
                Ok(false) => last = last.or(Some(format!("the copy on site {name} does not replay"))),
                Err(error) => last = Some(error.to_string()),
            }
        }
        if Instant::now() >= until {
            let by = match mode {
                MirrorMode::Journal => "journal",
                MirrorMode::Snapshot => "snapshots",
            };
            let text = format!(
                "It is mirrored by {by} now, but not yet there: {}. Look at `rbd mirror image status`, then \
                 scoria-manage replication retry --backend {}",
                last.unwrap_or_default(),
                backend.host()
            );
            return Some(VolumeChanges {
                replication_status: Some(Some(ReplicationStatus::FailoverError.as_str().to_owned())),
                replication_extended_status: Some(Some(text.chars().take(255).collect())),
                ..VolumeChanges::default()
            });
        }
        sleep(PAUSE).await;
    }
}

/// Whether the copy on a site replays, and is the new one: a report on the old one outlives it for a while.
async fn replays(
    backend: &Backend,
    site: &str,
    place: &Place,
    image: &str,
    mode: MirrorMode,
) -> std::result::Result<bool, RbdError> {
    let Ok(site) = backend.site(site) else { return Ok(false) };
    let within = backend.config.verdict_timeout;
    let ask = MirrorInfo { pool: place.pool.clone(), image: image.to_owned() };
    let info = match site.call_within(within, ask).await {
        Ok(info) => info,
        Err(e) if e.is_not_found() => return Ok(false),
        Err(e) => return Err(e),
    };
    let new = info.state == MirrorState::Enabled && info.mode == mode && !info.primary;
    Ok(new && peer_of(&site, &place.pool, image, within).await?.replays())
}
