//! The snapshots that backups by mirroring leave on a volume, and on its copy.
//!
//! A pin needs none of them: it holds on to its own point. The newest one stays, so that this backup can be restored into
//! the volume by what has changed since. What goes from the primary goes from the copy, too: by journal by itself, by
//! snapshots with the next mirror snapshot, which is made at once.

use tracing::warn;

use super::super::place::Located;
use super::super::{Backups, images, names};
use crate::backup::method::Method;
use crate::db;
use crate::error::Result;
use crate::model::Backup;
use crate::rbd::RbdError;
use crate::rbd::types::Snap;

/// Removes the points of a volume's earlier backups by mirroring. What cannot be removed now goes with the next backup.
pub(in crate::backup) async fn prune(b: &Backups, backup: &Backup) {
    let pruned = async {
        let (volume, backups) =
            b.db.read("points of backups", async |conn| {
                let volume = db::volume::find(conn, &backup.volume_id).await?;
                Ok((volume, db::backup_work::list(conn, Some(&backup.volume_id)).await?))
            })
            .await?;
        let Some(volume) = volume else { return Ok(()) };
        let _held = b.locks.local(&format!("backups of {}", volume.id)).await;
        let source = b.locate(&volume).await?.briefly();
        let Some(found) = images::inspect(&source.place, &source.image).await? else { return Ok(()) };
        let old = outlived(&found.snaps, &backups);
        for snap in &old {
            images::drop_snapshot(&source.place, &source.image, &snap.name).await?;
        }
        if !old.is_empty() {
            source.place.carry_over_if_possible(&source.image).await;
        }
        Result::<()>::Ok(())
    };
    if let Err(error) = pruned.await {
        warn!(backup.id = backup.id, %error, "points of earlier backups stay on the volume for now");
    }
}

/// The points of finished backups by mirroring, without the newest.
fn outlived<'a>(snaps: &'a [Snap], backups: &[Backup]) -> Vec<&'a Snap> {
    let is_finished = |id: &str| {
        backups.iter().any(|backup| {
            backup.id == id
                && Method::of(backup.service.as_deref()) == Method::Mirror
                && matches!(backup.status.as_str(), "available" | "restoring")
        })
    };
    let mut points: Vec<&Snap> =
        snaps.iter().filter(|snap| names::backup_of(&snap.name).is_some_and(is_finished)).collect();
    points.sort_unstable_by_key(|snap| snap.id);
    points.pop();
    points
}

/// Removes the point of a backup that is no more.
///
/// # Errors
/// What Ceph answers.
pub(in crate::backup) async fn forget(source: &Located, backup_id: &str) -> Result<(), RbdError> {
    let Some(found) = images::inspect(&source.place, &source.image).await? else { return Ok(()) };
    for snap in names::snapshots(&found.snaps, backup_id) {
        images::drop_snapshot(&source.place, &source.image, &snap.name).await?;
    }
    // Also when nothing was left to remove: a death may have come between the two.
    source.place.carry_over_if_possible(&source.image).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_point_stays_and_so_do_those_of_others() {
        let snap = |id: u64, name: &str| Snap { id, name: name.to_owned(), size: 1, protected: false };
        let backup = |id: &str, method: Method, status: &str| Backup {
            id: id.to_owned(),
            service: Some(method.service().to_owned()),
            status: status.to_owned(),
            ..Backup::default()
        };
        let snaps = [
            snap(7, "backup.b3.snap.3"),
            snap(2, "backup.b1.snap.1"),
            snap(4, "backup.b2.snap.2"),
            snap(5, "backup.d1.snap.1"),
            snap(9, "backup.b4.snap.4"),
            snap(1, "snapshot-1"),
        ];
        let backups = [
            backup("b1", Method::Mirror, "available"),
            backup("b2", Method::Mirror, "restoring"),
            backup("b3", Method::Mirror, "available"),
            backup("b4", Method::Mirror, "creating"),
            backup("d1", Method::Diff, "available"),
        ];
        let names: Vec<u64> = outlived(&snaps, &backups).iter().map(|snap| snap.id).collect();
        assert_eq!(names, [2, 4]);
        assert!(outlived(&snaps, &backups[..1]).is_empty());
        assert!(outlived(&[], &backups).is_empty());
    }
}
