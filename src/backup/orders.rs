//! What an operator orders of the backup service through the journal (`scoria-manage backup`): he has no connection to
//! Ceph, the service has.

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::{Backups, check, is_unsettled};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::{NewOperation, Operation, Outcome, Request};

/// What the method of every order begins with.
pub const PREFIX: &str = "scoria.backup.";

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", content = "args", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Read a backup and compare it with its checksums; the answer is a [`check::Verdict`].
    Verify {
        /// Which.
        backup: String,
    },
}

impl Order {
    /// Name in the journal.
    pub fn method(&self) -> &'static str {
        match self {
            Order::Verify { .. } => "scoria.backup.verify",
        }
    }
}

/// The entry by which an order is left for the backup service of `host`.
///
/// # Errors
/// `Internal`; cannot fail for these types.
pub fn entry(host: &str, order: Order) -> Result<NewOperation> {
    let method = order.method().to_owned();
    let resource = match &order {
        Order::Verify { backup } => Some(("Backup".to_owned(), backup.clone())),
    };
    Ok(NewOperation {
        unique_id: uuid::Uuid::new_v4().simple().to_string(),
        method,
        backend_host: format!("{host}#backup"),
        request: Request::new(order).to_text()?,
        resource,
        ..NewOperation::default()
    })
}

/// Carries an order out and closes it, with the answer.
pub async fn run(b: &Backups, operation: &Operation) {
    let outcome = tokio::select! {
        outcome = carry_out(b, operation) => outcome,
        () = operation.lost().cancelled() => return,
    };
    let closed = match outcome {
        Ok(answer) => Outcome::succeeded().with_reply(answer),
        Err(error) if is_unsettled(&error) => {
            warn!(operation.id = operation.id(), %error, "an order could not be recorded, it will be taken up again");
            if let Err(error) = b.journal.give_back(operation).await {
                warn!(operation.id = operation.id(), %error, "nor given back: its lease ends by itself");
            }
            return;
        }
        Err(failure) => {
            error!(op = operation.method(), error = %failure, "an operator's order failed");
            Outcome::failed(&failure)
        }
    };
    if let Err(error) = b.journal.finish(operation, &closed).await {
        error!(operation.id = operation.id(), %error, "could not close an operator's order");
    }
}

async fn carry_out(b: &Backups, operation: &Operation) -> Result<serde_json::Value> {
    let Order::Verify { backup } = Request::parse(operation.request())?.order;
    let row = b.db.read("backup to verify", async |conn| db::backup::get(conn, &backup).await).await?;
    if !matches!(row.status.as_str(), "available" | "restoring") {
        let text = format!("Backup {backup} is {}: only one that is available can be verified", row.status);
        return Err(Error::new(Code::InvalidBackup, text));
    }
    let verdict = check::verify(b, &row).await?;
    info!(
        backup.id = backup,
        verdict = verdict.verdict,
        compared_bytes = verdict.compared_bytes,
        unknown_bytes = verdict.unknown_bytes,
        "a backup was verified"
    );
    serde_json::to_value(&verdict)
        .map_err(|e| Error::internal("A verdict cannot be written as JSON").caused_by(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written_and_others_are_refused() {
        let order = Order::Verify { backup: "b1".to_owned() };
        let entry = entry("h1", order.clone()).unwrap();
        assert_eq!(
            (entry.method.as_str(), entry.backend_host.as_str()),
            ("scoria.backup.verify", "h1#backup")
        );
        assert!(entry.method.starts_with(PREFIX));
        assert_eq!(Request::<Order>::parse(&entry.request).unwrap().order, order);
        assert!(Request::<Order>::parse(r#"{"order": "burn", "args": {}, "request_id": "r"}"#).is_err());
    }
}
