//! Removes orphans, and nothing else.
//!
//! Between what was found and its removal anything may happen, so that each is looked at again, rows and Ceph. What is
//! removed is a step of the journal: an order that is run again after a crash goes on with what is left, and still tells
//! what has gone.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use tracing::{info, warn};

use super::places::{Places, Spot};
use super::standing::{Named, Standing, named, of_snapshot};
use super::strays::Orphan;
use super::{Audit, Finding, Kind, Removal, go_on};
use crate::backup::{Backups, images, is_unsettled};
use crate::error::Result;
use crate::journal::Operation;
use crate::volume::crash;

/// Step of the journal, of each thing that is gone.
const REMOVED: &str = "removed";

/// Removes what may be removed; the audit says then what was, and why the rest was not.
///
/// # Errors
/// `Database`, `Cancelled`.
pub(super) async fn run(
    b: &Backups,
    operation: &Operation,
    places: &Places,
    purged: bool,
    audit: &mut Audit,
) -> Result<()> {
    let mut left = Vec::new();
    for mut finding in std::mem::take(&mut audit.findings) {
        if !finding.goes(purged) {
            left.push(finding);
            continue;
        }
        go_on(b)?;
        let spot = &places.spots[finding.place];
        match remove(b, spot, &finding, purged).await {
            Ok(None) => {
                operation.item_step(&key(&finding), REMOVED, &finding).await?;
                crash::point("audit_backups:removed");
                info!(
                    kind = finding.kind.as_str(),
                    pool = finding.pool,
                    subject = finding.subject(),
                    "an orphan was removed"
                );
            }
            Ok(Some(why)) => {
                finding.text = format!("{}; it stays: {why}", finding.text);
                left.push(finding);
            }
            Err(error) if is_unsettled(&error) => return Err(error),
            Err(error) => {
                warn!(pool = finding.pool, subject = finding.subject(), %error, "an orphan was not removed");
                finding.text = format!("{}; it could not be removed: {}", finding.text, error.operator());
                left.push(finding);
            }
        }
    }
    audit.findings = left;
    for step in operation.items().await? {
        audit.removed.push(step.parse::<Finding>()?);
    }
    Ok(())
}

/// What a step is about, in as many characters as it may have.
fn key(finding: &Finding) -> String {
    let mut hasher = DefaultHasher::new();
    (finding.kind, &finding.site, &finding.pool, finding.subject()).hash(&mut hasher);
    let backup = finding.backups.first().map_or("", String::as_str);
    format!("{backup}.{:016x}", hasher.finish())
}

/// Removes one thing, unless there is a reason not to.
async fn remove(b: &Backups, spot: &Spot, finding: &Finding, purged: bool) -> Result<Option<String>> {
    let volume = match finding.image.as_deref().map(named) {
        Some(Named::Own { volume, .. } | Named::Legacy { volume }) => Some(volume),
        _ => None,
    };
    // Backups of the volume that this service makes or deletes wait.
    let _held = match &volume {
        Some(volume) => Some(b.locks.local(&format!("backups of {volume}")).await),
        None => None,
    };
    match (finding.kind, &finding.image, &finding.snap, &finding.object) {
        (Kind::OrphanImage, Some(image), _, _) => {
            remove_image(b, spot, image, volume.as_deref(), finding, purged).await
        }
        (Kind::OrphanSnapshot, Some(image), Some(snap), _) => {
            if let Some(why) = belongs(b, &finding.backups, purged).await? {
                return Ok(Some(why));
            }
            images::drop_snapshot(&spot.place, image, snap).await?;
            if spot.volumes {
                spot.place.carry_over_if_possible(image).await;
            }
            Ok(None)
        }
        (Kind::OrphanObject, _, _, Some(object)) => {
            if let Some(why) = belongs(b, &finding.backups, purged).await? {
                return Ok(Some(why));
            }
            images::remove_object(&spot.place, object.clone()).await?;
            Ok(None)
        }
        _ => Ok(Some("it is no orphan".to_owned())),
    }
}

async fn remove_image(
    b: &Backups,
    spot: &Spot,
    image: &str,
    volume: Option<&str>,
    finding: &Finding,
    purged: bool,
) -> Result<Option<String>> {
    let Some(orphan) = Orphan::look(spot, image).await? else { return Ok(None) };
    if orphan.obstacle.is_some() {
        return Ok(orphan.obstacle);
    }
    let mut ids: BTreeSet<String> = finding.backups.iter().cloned().collect();
    ids.extend(orphan.snaps.iter().filter_map(|snap| of_snapshot(snap)).map(str::to_owned));
    let ids: Vec<String> = ids.into_iter().collect();
    if let Some(why) = belongs(b, &ids, purged).await? {
        return Ok(Some(why));
    }
    let volumes: Vec<String> = volume.map(str::to_owned).into_iter().collect();
    let standing = Standing::read(b, &ids, &volumes).await?;
    if volume.is_some_and(|volume| standing.is_base(volume, image)) {
        return Ok(Some("a backup has it as its base now".to_owned()));
    }
    for snap in &orphan.snaps {
        images::drop_snapshot(&spot.place, image, snap).await?;
    }
    crash::point("audit_backups:unsnapped");
    images::remove_image(&spot.place, image).await?;
    Ok(None)
}

/// Why what these backups have had is not to be removed, as the rows are now.
async fn belongs(b: &Backups, ids: &[String], purged: bool) -> Result<Option<String>> {
    let standing = Standing::read(b, ids, &[]).await?;
    if let Some(id) = ids.iter().find(|id| standing.lives(id)) {
        return Ok(Some(format!("backup {id} has a row now, or somebody works on it")));
    }
    let removal = standing.removal(ids.iter().map(String::as_str));
    if removal != Removal::Sure && !purged {
        return Ok(Some("a row is gone that said that the backup is deleted".to_owned()));
    }
    Ok(None)
}
