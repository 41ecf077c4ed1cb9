//! Cancelling what the backup service is doing.
//!
//! A cancellation is an order in the journal of its own: it goes to the service that has the operation, and after a
//! restart both are taken up again. What is cancelled stops at its next part, takes away what it has made, and leaves
//! the statuses that Cinder has for that: a backup is `error`, its volume what it was; a volume that was being filled is
//! `error`, its backup `available`.

use std::time::Duration;

use serde_json::{Value, json};
use tracing::info;

use super::{Backups, ordered, orders};
use crate::error::{Code, Error, Result};
use crate::journal::Listing;

/// Between two looks whether it has ended.
const PERIOD: Duration = Duration::from_millis(300);
/// Requests that can be cancelled.
const METHODS: [&str; 3] = ["create_backup", "continue_backup", "restore_backup"];

/// Whether an operation is one that the backup service can cancel.
///
/// # Errors
/// `InvalidInput`, with what to do instead; also when it has ended.
pub fn check(row: &Listing) -> Result<()> {
    let Listing { id, method, .. } = row;
    let refused =
        |why: String| Err(Error::new(Code::InvalidInput, format!("Operation {id} ({method}) {why}")));
    if row.is_closed() {
        return refused(format!("has ended: {}", row.outcome.as_deref().unwrap_or("closed")));
    }
    if !row.backend_host.ends_with(orders::SERVICE) {
        return refused(
            "is not the backup service's: only backups and restorations can be cancelled".to_owned(),
        );
    }
    if !METHODS.contains(&method.as_str()) && method != orders::CREATE {
        return refused(
            "cannot be cancelled: deletions go on, and the rest ends by itself; only backups and restorations can"
                .to_owned(),
        );
    }
    Ok(())
}

/// Cancels an operation and waits for its end. Answers how that was: it may have succeeded just before.
///
/// # Errors
/// As [`check`]; `Database`.
pub async fn cancel(b: &Backups, number: i64) -> Result<Value> {
    let found = b.journal.find(number).await?;
    let Some(row) = found.filter(|row| row.backend_host == b.journal_host()) else {
        let text =
            format!("There is no operation {number} of the backup service of {}, or it was purged", b.host);
        return Err(Error::new(Code::InvalidInput, text));
    };
    if !row.is_closed() {
        check(&row)?;
        info!(operation.id = number, op = row.method, "an operation is cancelled");
    }
    let mut cancelled = vec![number];
    let row = loop {
        let row = b.journal.find(number).await?;
        match row {
            Some(row) if !row.is_closed() => {}
            ended => break ended,
        }
        // An order of several backups is over when they are; it may be about to write them down.
        for child in ordered::children(b, number).await? {
            if !cancelled.contains(&child) {
                cancelled.push(child);
            }
        }
        cancelled.iter().for_each(|operation| b.running.cancel(*operation));
        b.pause(PERIOD).await?;
    };
    cancelled.iter().for_each(|operation| b.running.forget(*operation));
    let outcome = row.as_ref().and_then(|row| row.outcome.clone());
    Ok(json!({
        "operation": number,
        "cancelled": outcome.as_deref() != Some("succeeded"),
        "outcome": outcome,
        "detail": row.and_then(|row| row.outcome_detail),
    }))
}
