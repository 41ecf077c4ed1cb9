//! Doing to one image what was decided.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

use super::Fate;
use super::plan::Way;
use crate::error::Result;
use crate::journal::Operation;
use crate::rbd::protocol::{
    CheckWritable, LockBreak, LockOwners, MirrorDaemons, MirrorDemote, MirrorPromote,
};
use crate::rbd::{RbdError, RbdErrorKind, Site};
use crate::site::item;
use crate::volume::crash;

/// Until a promotion must have been accepted, or a writer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const PERIOD: Duration = Duration::from_millis(500);

/// Turns an image, and answers what has become of it. An error is about the order as a whole: it is taken up again.
pub(super) async fn make(
    operation: &Operation,
    target: &Site,
    others: &[Site],
    pool: &str,
    image: &str,
    way: &Way,
) -> Result<Fate> {
    let key = item(&format!("{pool}/{image}"));
    let fate = match way {
        Way::Already => Fate::Already,
        Way::Refuse(reason) => Fate::Failed { reason: reason.clone() },
        Way::Promote => promoted(target, pool, image, None).await,
        Way::HandOver { from } => {
            let Some(from) = others.get(*from) else {
                return Ok(Fate::Failed { reason: "the other site is not known any more".to_owned() });
            };
            let demote = MirrorDemote { pool: pool.to_owned(), image: image.to_owned() };
            match from.insist(demote).await {
                Ok(()) => {
                    operation.item_step(&key, "image", &Fate::Demoted).await?;
                    crash::point("switch:demoted");
                    promoted(target, pool, image, Some(from)).await
                }
                Err(e) => Fate::Failed {
                    reason: format!("it was not demoted on site {}: {}", from.name(), e.message),
                },
            }
        }
        Way::Force => forced(target, pool, image).await,
    };
    operation.item_step(&key, "image", &fate).await?;
    Ok(fate)
}

/// Promotes without force. Where that is not accepted in time, the side that was demoted is promoted again.
async fn promoted(target: &Site, pool: &str, image: &str, former: Option<&Site>) -> Fate {
    let promote = |force| MirrorPromote { pool: pool.to_owned(), image: image.to_owned(), force };
    let end = Instant::now() + PATIENCE;
    let error: RbdError = loop {
        match target.insist(promote(false)).await {
            Ok(()) => return Fate::Moved { forced: false },
            // The demotion has not arrived yet.
            Err(e) if passes(e.kind) && Instant::now() < end => sleep(PERIOD).await,
            Err(e) => break e,
        }
    };
    let Some(former) = former else {
        return Fate::Failed {
            reason: format!("it is primary nowhere, and is not promoted here: {}", error.message),
        };
    };
    let back = match former.insist(promote(false)).await {
        Ok(()) => format!("it is primary on site {} again", former.name()),
        Err(e) => format!(
            "and it is primary nowhere now, for site {} refuses it, too: {}",
            former.name(),
            e.message
        ),
    };
    Fate::Failed {
        reason: format!(
            "its promotion was not accepted in {} s ({}); {back}",
            PATIENCE.as_secs(),
            error.message
        ),
    }
}

fn passes(kind: RbdErrorKind) -> bool {
    matches!(
        kind,
        RbdErrorKind::Busy | RbdErrorKind::ReadOnly | RbdErrorKind::TimedOut | RbdErrorKind::WorkerLost
    )
}

/// Promotes by force, and proves that a writer is accepted: the site's own rbd-mirror may hold the lock while it waits
/// for its dead peer. Its lock is broken then, and nobody else's.
async fn forced(target: &Site, pool: &str, image: &str) -> Fate {
    let (pool, image) = (pool.to_owned(), image.to_owned());
    let promote = MirrorPromote { pool: pool.clone(), image: image.clone(), force: true };
    let end = Instant::now() + PATIENCE;
    if let Err(e) = target.insist(promote).await {
        return Fate::Failed { reason: format!("it was not promoted: {}", e.message) };
    }
    loop {
        let check = CheckWritable { pool: pool.clone(), image: image.clone() };
        let refused = match target.insist(check).await {
            Ok(()) => return Fate::Moved { forced: true },
            Err(e) => e,
        };
        if Instant::now() >= end {
            return Fate::Failed {
                reason: format!("it is primary here, and takes no writer yet: {}", refused.message),
            };
        }
        let owners =
            target.insist(LockOwners { pool: pool.clone(), image: image.clone() }).await.unwrap_or_default();
        let daemons = target.insist(MirrorDaemons { pool: pool.clone() }).await.unwrap_or_default();
        if let Some(owner) = owners.into_iter().find(|owner| daemons.contains(owner)) {
            info!(
                pool,
                image, owner, "breaking the lock of the site's own rbd-mirror, which waits for its dead peer"
            );
            // Whether it was broken is seen by the next look.
            let _ = target.insist(LockBreak { pool: pool.clone(), image: image.clone(), owner }).await;
        }
        sleep(PERIOD).await;
    }
}
