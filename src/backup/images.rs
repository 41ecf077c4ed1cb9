//! The few calls to Ceph that all operations on backups share, each repeatable.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::names;
use crate::rbd::protocol::*;
use crate::rbd::types::{Copied, Inspection};
use crate::rbd::{RbdError, RbdErrorKind, Site};
use crate::volume::image::Place;

/// How often a busy base is tried, and the pause between, as stock's.
const BUSY_TRIES: u32 = 4;
const BUSY_PAUSE: Duration = Duration::from_secs(5);
/// Bytes that are read for one part, and seconds that it lasts at least: to begin one costs some time, in which nothing is
/// copied. So much a crash or a cancellation costs.
pub(super) const PART: u64 = 256 << 20;
const LASTING: u64 = 5;

/// Bytes of one part: with a limit what may be read in a second, so that the pauses are short.
pub(super) fn budget(limit_mib: u64) -> u64 {
    match limit_mib {
        0 => PART,
        limit => limit.saturating_mul(1 << 20).min(PART),
    }
}

/// Seconds that one part lasts at least: with a limit its bytes say when it ends.
pub(super) fn at_least(limit_mib: u64) -> u64 {
    if limit_mib == 0 { LASTING } else { 0 }
}

/// Waits as long as it takes that `read` bytes since `began` are not more than the limit.
pub(super) async fn pace(limit_mib: u64, read: u64, began: Instant) {
    if limit_mib > 0 {
        let seconds = read as f64 / limit_mib.saturating_mul(1 << 20) as f64;
        tokio::time::sleep_until(began + Duration::from_secs_f64(seconds)).await;
    }
}

/// What is known of an image and its snapshots; `None` when there is no such image.
pub(super) async fn inspect(place: &Place, image: &str) -> Result<Option<Inspection>, RbdError> {
    let ask = ImageInspect { pool: place.pool.clone(), image: image.to_owned() };
    match place.site.insist(ask).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a snapshot whose name is nobody else's.
pub(super) async fn take_snapshot(place: &Place, image: &str, snap: &str) -> Result<(), RbdError> {
    let create = SnapCreate { pool: place.pool.clone(), image: image.to_owned(), snap: snap.to_owned() };
    match place.site.insist(create).await {
        Err(error) if error.kind == RbdErrorKind::Exists => Ok(()),
        // Whether it is there is seen by the next call that names it.
        other => other,
    }
}

/// Removes a snapshot; one that is gone, with its image or alone, is a success.
pub(super) async fn drop_snapshot(place: &Place, image: &str, snap: &str) -> Result<(), RbdError> {
    let remove = SnapRemove { pool: place.pool.clone(), image: image.to_owned(), snap: snap.to_owned() };
    match place.site.insist(remove).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Removes an image without snapshots; one that is gone is a success. A watcher is given a while to go.
pub(super) async fn remove_image(place: &Place, image: &str) -> Result<(), RbdError> {
    let remove = ImageRemove { pool: place.pool.clone(), image: image.to_owned() };
    let mut tries = 1;
    loop {
        match place.site.insist(remove.clone()).await {
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if error.kind == RbdErrorKind::Busy && tries < BUSY_TRIES => {
                info!(image, tries, "the base of backups is busy: it is tried again");
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            other => return other,
        }
    }
}

/// Removes an object; a pool that is gone has none.
pub(super) async fn remove_object(place: &Place, object: String) -> Result<(), RbdError> {
    match place.site.insist(ObjectRemove { pool: place.pool.clone(), object }).await {
        Err(error) if error.kind == RbdErrorKind::NoPool => Ok(()),
        other => other,
    }
}

/// Removes the snapshots of a backup from an image, whatever their time is. Answers the snapshots of backups that are
/// left.
pub(super) async fn forget_backup(place: &Place, image: &str, backup_id: &str) -> Result<usize, RbdError> {
    let Some(found) = inspect(place, image).await? else { return Ok(0) };
    for snap in names::snapshots(&found.snaps, backup_id) {
        drop_snapshot(place, image, &snap.name).await?;
    }
    Ok(found.snaps.iter().filter_map(|s| names::backup_of(&s.name)).filter(|id| *id != backup_id).count())
}

/// Copies the next part. A worker that was lost, or a call that was not answered, has done harm to nothing: the part is
/// asked for again, so that a short outage costs no backup.
pub(super) async fn copy_part(site: &Site, copy: &DeltaCopy) -> Result<Copied, RbdError> {
    site.insist(copy.clone()).await.map_err(|error| match error.is_silence() || error.effect_unknown() {
        true => {
            let message = format!("{}: a site does not answer; when both do, make it again", error.message);
            RbdError { message, ..error }
        }
        false => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept_in_short_steps_and_none_costs_nothing() {
        assert_eq!((budget(0), budget(8), budget(4096)), (PART, 8 << 20, PART));
        let began = Instant::now();
        pace(0, 1 << 40, began).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        pace(8, 4 << 20, began).await;
        assert_eq!(began.elapsed(), Duration::from_millis(500));
        // What has taken longer anyway is not slowed down.
        pace(8, 4 << 20, began).await;
        assert_eq!(began.elapsed(), Duration::from_millis(500));
    }
}
