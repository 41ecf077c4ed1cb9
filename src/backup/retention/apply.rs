//! Retention applied: what nothing keeps is deleted, by ordinary deletions.
//!
//! One transaction locks the backups of the volume, decides, marks what goes (`deleting`), and writes the deletions and
//! the step of this order; whoever runs it again after a crash finds that step and waits for the same deletions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tracing::info;

use super::many::{self, Looked};
use super::rule::Fate;
use super::{Preview, Reach, of_backups};
use crate::backend::peers::BackupRequest;
use crate::backup::ordered::{Child, context_of, submit, wait};
use crate::backup::{Backups, is_unsettled, names};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::volume::crash;

/// Step of the journal, of the volume.
const DELETING: &str = "deleting";
/// Reasons that are told.
const REASONS: usize = 10;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The volume.
    pub volume_id: String,
    /// The backups that are gone, with the operations that have deleted them.
    pub removed: Vec<Child>,
    /// How many stay.
    pub kept: usize,
}

/// What came of it for many volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Everywhere {
    /// Volumes with backups.
    pub volumes: u64,
    /// The backups that are gone, with the operations that have deleted them.
    pub removed: Vec<Child>,
    /// How many stay.
    pub kept: usize,
}

/// Deletes what the rules of all volumes that have backups do not keep, or of those of a type, volume by volume. One that
/// fails keeps none of the others from it. Run again, it waits for the deletions that it has ordered, as [`apply`] does.
///
/// # Errors
/// `VolumeTypeNotFound`; `InvalidBackup` when it failed for some volumes, with the reasons; `Database`, `Cancelled`.
pub async fn everywhere(
    b: &Backups,
    operation: &Operation,
    volume_type: Option<&str>,
    reach: Reach,
) -> Result<Everywhere> {
    let kind = match volume_type {
        Some(name) => {
            let read = b.db.read("type of volumes", async |conn| db::volume_type::resolve(conn, name).await);
            Some(read.await?.id)
        }
        None => None,
    };
    let mut former = BTreeMap::new();
    for step in operation.items().await? {
        former.insert(step.resource_id.clone(), step.parse::<Applied>()?);
    }
    let (mut all, mut after) = (All::default(), String::new());
    loop {
        let next = b.db.read("volumes with backups", async |conn| {
            many::next(conn, kind.as_deref(), &after, reach).await
        });
        let page = next.await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.volume_id);
        for Looked { volume_id, count, found } in page {
            let applied = match (former.remove(&volume_id), found) {
                (Some(ordered), _) => ended(b, ordered).await,
                (None, Ok(preview)) if preview.going() == 0 => {
                    Ok(Applied { volume_id: volume_id.clone(), removed: Vec::new(), kept: count })
                }
                (None, Ok(_)) => match order(b, operation, &volume_id, reach).await {
                    Ok(ordered) => ended(b, ordered).await,
                    Err(error) => Err(error),
                },
                (None, Err(error)) => Err(error),
            };
            all.add(&volume_id, applied)?;
        }
    }
    // What was ordered before a crash of volumes that have no backup any more.
    for (volume_id, ordered) in former {
        all.add(&volume_id, ended(b, ordered).await)?;
    }
    all.answer()
}

/// What came of it so far.
#[derive(Default)]
struct All {
    done: Everywhere,
    reasons: Vec<String>,
}

impl All {
    fn add(&mut self, volume_id: &str, applied: Result<Applied>) -> Result<()> {
        self.done.volumes += 1;
        match applied {
            Ok(applied) => {
                self.done.removed.extend(applied.removed);
                self.done.kept += applied.kept;
            }
            Err(error) if is_unsettled(&error) => return Err(error),
            Err(error) => self.reasons.push(format!("volume {volume_id}: {}", error.user())),
        }
        Ok(())
    }

    fn answer(self) -> Result<Everywhere> {
        let All { done, reasons } = self;
        if reasons.is_empty() {
            return Ok(done);
        }
        let text = format!(
            "Retention could not be applied to {} of {} volumes: {}",
            reasons.len(),
            done.volumes,
            reasons.iter().take(REASONS).cloned().collect::<Vec<_>>().join("; ")
        );
        Err(Error::new(Code::InvalidBackup, text))
    }
}

/// Deletes what the rule of a volume does not keep. Without a rule nothing goes.
///
/// # Errors
/// `InvalidBackup` when a deletion failed; `InvalidInput` for extra specs that mean nothing; `VolumeNotFound`;
/// `Database`, `Cancelled`.
pub async fn apply(b: &Backups, operation: &Operation, volume_id: &str, reach: Reach) -> Result<Applied> {
    let former = operation.items().await?.into_iter().find(|step| step.resource_id == volume_id);
    let ordered = match former {
        Some(step) => step.parse::<Applied>()?,
        None => order(b, operation, volume_id, reach).await?,
    };
    ended(b, ordered).await
}

/// Waits for the deletions that were ordered of a volume.
async fn ended(b: &Backups, applied: Applied) -> Result<Applied> {
    crash::point("apply_retention:ordered");
    let volume_id = &applied.volume_id;
    let ids: Vec<i64> = applied.removed.iter().map(|child| child.operation).collect();
    let left: Vec<String> = wait(b, &ids)
        .await?
        .into_iter()
        .filter(|ended| !ended.is_good())
        .map(|ended| ended.describe())
        .collect();
    if !left.is_empty() {
        let text = format!(
            "{} of {} backups that retention lets go of volume {volume_id} could not be deleted: {}",
            left.len(),
            ids.len(),
            left.join("; ")
        );
        return Err(Error::new(Code::InvalidBackup, text));
    }
    if !ids.is_empty() {
        info!(volume.id = volume_id, removed = ids.len(), kept = applied.kept, "retention was applied");
    }
    Ok(applied)
}

async fn order(b: &Backups, operation: &Operation, volume_id: &str, reach: Reach) -> Result<Applied> {
    operation
        .write("retention", async |conn| {
            let found = db::backup_order::lock_all(conn, volume_id).await?;
            if found.is_empty() {
                db::volume::get(conn, volume_id).await?;
            }
            let Preview { backups, .. } = of_backups(conn, volume_id, &found, reach).await?;
            let mut removed = Vec::new();
            for verdict in backups.iter().filter(|verdict| verdict.fate == Fate::Removed) {
                let Some(row) = found.iter().find(|row| row.id == verdict.id) else { continue };
                if !names::is_ours(row.service.as_deref())
                    || !db::backup_order::mark(conn, &row.id, &b.host).await?
                {
                    continue;
                }
                let row = db::backup::get(conn, &row.id).await?;
                let context = context_of(&row, None);
                let number = submit(conn, b, &context, BackupRequest::Delete, &row).await?;
                removed.push(Child { backup: row.id, operation: number });
            }
            let applied =
                Applied { volume_id: volume_id.to_owned(), kept: found.len() - removed.len(), removed };
            operation.item_step_in(conn, volume_id, DELETING, &applied).await?;
            Ok(applied)
        })
        .await
}
