//! Backups of all volumes of a type: each volume by an order of its own, some at a time.
//!
//! A type may have thousands of volumes, so they are ordered in rounds, by their ids; which round it is, is a step of the journal,
//! written with the orders of that round. After a crash the same orders are waited for. A volume that cannot be backed
//! up keeps no other one from it: the order goes through all, and then says which were not.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;

use super::Backups;
use super::ordered::{Create, wait};
use super::orders::{self, Order};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::{Journal, Operation};
use crate::volume::crash;

/// Step of the journal.
pub(super) const ROUND: &str = "round";
/// Orders of one round: more than are made at once (`backup_max_operations`), so that none waits for a straggler for
/// long.
const AT_ONCE: usize = 32;
/// Reasons that are told.
const REASONS: usize = 10;

/// Where the order is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Round {
    /// The last volume that was ordered.
    after: String,
    /// The orders that are waited for: volume, number.
    pub(super) sent: Vec<(String, i64)>,
    /// Volumes that were backed up.
    made: u64,
    /// Volumes that were not.
    failed: u64,
    /// Why, of the first few.
    reasons: Vec<String>,
}

/// Makes a backup of each volume of a type. Answers how many.
///
/// # Errors
/// `VolumeTypeNotFound`; `InvalidBackup` when some volumes could not be backed up, with the reasons, or the order was
/// cancelled; `Database`, `Cancelled`.
pub(super) async fn run(b: &Backups, operation: &Operation, order: &Create, kind: &str) -> Result<Value> {
    let kind = b.db.read("type of volumes", async |conn| db::volume_type::resolve(conn, kind).await).await?;
    let mut round = operation.reached::<Round>(ROUND).await?.unwrap_or_default();
    loop {
        let numbers: Vec<i64> = round.sent.iter().map(|(_, number)| *number).collect();
        let ended = wait(b, &numbers).await?;
        for ((volume, _), end) in round.sent.iter().zip(&ended) {
            match end.is_good() {
                true => round.made += 1,
                false => {
                    round.failed += 1;
                    if round.reasons.len() < REASONS {
                        round.reasons.push(format!("volume {volume}: {}", end.describe()));
                    }
                }
            }
        }
        round.sent.clear();
        if b.running.is_cancelled(operation.id()) {
            let text = format!("The order was cancelled when {} volumes were backed up", round.made);
            return Err(Error::new(Code::InvalidBackup, text));
        }
        round = next(b, operation, order, &kind.id, &round).await?;
        crash::point("order_backup:round");
        if round.sent.is_empty() {
            break;
        }
    }
    let Round { made, failed, reasons, .. } = round;
    if failed > 0 {
        let more = match failed.saturating_sub(reasons.len() as u64) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let text = format!(
            "{failed} of {} volumes of type {} were not backed up: {}{more}",
            made + failed,
            kind.name,
            reasons.join("; ")
        );
        return Err(Error::new(Code::InvalidBackup, text));
    }
    info!(volume_type = kind.name, volumes = made, "all volumes of a type are backed up");
    Ok(json!({"volume_type": kind.name, "volumes": made}))
}

/// Orders the next volumes, in one transaction with the step that says so.
async fn next(
    b: &Backups,
    operation: &Operation,
    order: &Create,
    kind: &str,
    former: &Round,
) -> Result<Round> {
    operation
        .write("backups of volumes of a type", async |conn| {
            let volumes = db::backup_order::volumes_of_type(conn, kind, &former.after, AT_ONCE).await?;
            let mut round = former.clone();
            for volume in volumes {
                let one = Create {
                    volume: Some(volume.clone()),
                    volume_type: None,
                    // How the run ended is this order's to say.
                    schedule: None,
                    ..order.clone()
                };
                let entry = orders::entry(&b.host, Order::Create(Box::new(one)))?;
                let number = Journal::submit_in(conn, &entry).await?;
                round.after.clone_from(&volume);
                round.sent.push((volume, number));
            }
            operation.step_in(conn, ROUND, &round).await?;
            Ok(round)
        })
        .await
}
