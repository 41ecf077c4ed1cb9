//! Retention applied: what nothing keeps is deleted, by ordinary deletions.
//!
//! One transaction locks the backups of the volume, decides, marks what goes (`deleting`), and writes the deletions and
//! the step of this order; whoever runs it again after a crash finds that step and waits for the same deletions.

use serde::{Deserialize, Serialize};
use tracing::info;

use super::rule::Fate;
use super::{Preview, of_backups};
use crate::backend::peers::BackupRequest;
use crate::backup::ordered::{Child, context_of, submit, wait};
use crate::backup::{Backups, names};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::volume::crash;

/// Step of the journal, of the volume.
const DELETING: &str = "deleting";

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

/// Deletes what the rule of a volume does not keep. Without a rule nothing goes.
///
/// # Errors
/// `InvalidBackup` when a deletion failed; `InvalidInput` for extra specs that mean nothing; `VolumeNotFound`;
/// `Database`, `Cancelled`.
pub async fn apply(b: &Backups, operation: &Operation, volume_id: &str, failed: bool) -> Result<Applied> {
    let former = operation.items().await?.into_iter().find(|step| step.resource_id == volume_id);
    let applied = match former {
        Some(step) => step.parse::<Applied>()?,
        None => order(b, operation, volume_id, failed).await?,
    };
    crash::point("apply_retention:ordered");
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

async fn order(b: &Backups, operation: &Operation, volume_id: &str, failed: bool) -> Result<Applied> {
    operation
        .write("retention", async |conn| {
            let found = db::backup_order::lock_all(conn, volume_id).await?;
            if found.is_empty() {
                db::volume::get(conn, volume_id).await?;
            }
            let Preview { backups, .. } = of_backups(conn, volume_id, &found, failed).await?;
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
