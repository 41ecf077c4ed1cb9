//! Bringing an image that Cinder does not know back to one of its snapshots, by writing only what has changed since.
//!
//! librbd's own rollback visits every object of the image, whether it has changed or not, and is no way for images that
//! are mirrored by snapshots (`volume/image/rollback.rs` says why). Here librbd is asked which bytes have changed, and
//! those are written by ordinary writes, which mirroring of either kind carries over.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Sites, owner};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::rbd::protocol::{MirrorInfo, SnapRevertChanges};
use crate::rbd::types::MirrorState;
use crate::rbd::{RbdError, RbdErrorKind, Site};
use crate::volume::image::Place;

/// How long a client that has died keeps an image open.
const LINGER: Duration = Duration::from_secs(45);
/// Between two tries.
const PERIOD: Duration = Duration::from_secs(1);

/// Revert an image that is closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevertOrder {
    /// The site.
    pub name: String,
    /// The pool.
    pub pool: String,
    /// The image.
    pub image: String,
    /// Its snapshot.
    pub snap: String,
}

/// Carries an order out. Repeatable: what was written back does not differ any more.
pub(super) async fn run(sites: &Sites, operation: &Operation, order: &RevertOrder) -> Result<Value> {
    let RevertOrder { name, pool, image, snap } = order;
    let owners = owner::volumes(sites, std::slice::from_ref(image)).await?;
    if let Some(volume) = owners.get(image) {
        let text = format!(
            "{pool}/{image} is volume {volume} of Cinder: revert it there, to its latest snapshot (cinder \
             revert-to-snapshot SNAPSHOT)"
        );
        return Err(Error::new(Code::Invalid, text));
    }
    let reached = sites.reach(name).await?;
    // The client of an instance that was killed may be seen for half a minute.
    let killed = operation.former().is_some_and(|owner| !owner.instance.is_empty());
    let end = Instant::now() + if killed { LINGER } else { Duration::ZERO };
    let reverted = loop {
        match revert(&reached.site, order).await {
            Err(e) if e.kind == RbdErrorKind::Busy && Instant::now() < end => sleep(PERIOD).await,
            other => break other,
        }
    };
    sites.part(&reached.site);
    let bytes = reverted.map_err(|e| {
        let text = match e.kind {
            RbdErrorKind::Busy => {
                format!("{}: close it first (scoria-manage rbd which-volume {pool}/{image})", e.message)
            }
            RbdErrorKind::ReadOnly => {
                format!(
                    "{}: it is a copy, and is reverted on the site where it is primary (or somebody does not give up its \
                     lock)",
                    e.message
                )
            }
            RbdErrorKind::NotFound | RbdErrorKind::NoPool => {
                format!("There is no {pool}/{image}@{snap} on site {name}: {}", e.message)
            }
            _ => return e.into(),
        };
        Error::new(Code::Invalid, text).caused_by(e)
    })?;
    Ok(json!({"reverted": format!("{pool}/{image}"), "site": name, "snapshot": snap, "bytes": bytes}))
}

async fn revert(site: &Site, order: &RevertOrder) -> Result<u64, RbdError> {
    let (pool, image) = (order.pool.clone(), order.image.clone());
    // Its own site's rbd-mirror has a copy open, which nobody could close.
    let mirroring = site.insist(MirrorInfo { pool: pool.clone(), image: image.clone() }).await?;
    if mirroring.state != MirrorState::Disabled && !mirroring.primary {
        return Err(RbdError {
            kind: RbdErrorKind::ReadOnly,
            op: "MirrorInfo".to_owned(),
            site: site.name().to_owned(),
            errno: 0,
            message: format!("{pool}/{image} is not primary here"),
        });
    }
    let place = Place { site: site.clone(), pool: pool.clone() };
    place.refuse_watched(&image).await?;
    site.insist(SnapRevertChanges { pool, image, snap: order.snap.clone() }).await
}
