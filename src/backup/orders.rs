//! What an operator orders of the backup service through the journal (`scoria-manage backup`): he has no connection to
//! Ceph, the service has.

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::ordered::{self, Create};
use super::restore::exchange::Exchange;
use super::retention::{Reach, apply};
use super::{Backups, audit, cancel, check, is_unsettled, mirror, restore};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::{NewOperation, Operation, Outcome, Request};

/// What the method of every order begins with.
pub const PREFIX: &str = "scoria.backup.";
/// What `backend_host` of every operation of a backup service ends with.
pub const SERVICE: &str = "#backup";
/// Method of [`Order::Create`].
pub const CREATE: &str = "scoria.backup.create";

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", content = "args", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Read a backup and compare it with its checksums; the answer is a [`check::Verdict`].
    Verify {
        /// Which.
        backup: String,
    },
    /// Make backups; the answer says which, once they are made.
    Create(Box<Create>),
    /// Delete what the retention of a volume does not keep; the answer is an [`apply::Applied`].
    ApplyRetention {
        /// Of which volume.
        volume: String,
        /// Also those that came to nothing.
        failed: bool,
        /// Also if the volume is deleted and only its type has a rule.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        deleted_volumes: bool,
    },
    /// The same of all volumes that have backups; the answer is an [`apply::Everywhere`].
    ApplyAllRetention {
        /// Only of volumes of this type, by its id or its name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume_type: Option<String>,
        /// Also those that came to nothing.
        failed: bool,
        /// Also of deleted volumes of which only the type has a rule.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        deleted_volumes: bool,
    },
    /// Stop an operation of this service, and take away what it has made.
    Cancel {
        /// Its number.
        operation: i64,
    },
    /// Compare what is stored with the rows; the answer is an [`audit::Audit`].
    Audit {
        /// Remove orphans.
        repair: bool,
        /// Also those of which there is no row at all, not even a deleted one.
        #[serde(default)]
        purged: bool,
    },
    /// Do for a backup by mirroring what is done in the background; the answer is a [`mirror::settle::Settled`]. The
    /// service orders it of itself.
    Settle {
        /// Which.
        backup: String,
        /// It is to be independent of the copy.
        flatten: bool,
    },
    /// Make a volume that was restored by a clone independent of its backup; the answer is a
    /// [`restore::detach::Detached`]. The service orders it of itself.
    Detach {
        /// The backup.
        backup: String,
        /// The volume.
        volume: String,
        /// By which the volume has got its image.
        exchange: Box<Exchange>,
    },
}

impl Order {
    /// Name in the journal.
    pub fn method(&self) -> &'static str {
        match self {
            Order::Verify { .. } => "scoria.backup.verify",
            Order::Create(_) => CREATE,
            Order::ApplyRetention { .. } => "scoria.backup.apply_retention",
            Order::ApplyAllRetention { .. } => "scoria.backup.apply_all_retention",
            Order::Cancel { .. } => "scoria.backup.cancel",
            Order::Audit { .. } => "scoria.backup.audit",
            Order::Settle { .. } => "scoria.backup.settle",
            Order::Detach { .. } => "scoria.backup.detach",
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
        Order::ApplyRetention { volume, .. } => Some(("Volume".to_owned(), volume.clone())),
        Order::Create(create) => match (&create.volume, &create.group) {
            (Some(volume), _) => Some(("Volume".to_owned(), volume.clone())),
            (None, Some(group)) => Some(("Group".to_owned(), group.clone())),
            (None, None) => None,
        },
        Order::ApplyAllRetention { .. } | Order::Cancel { .. } | Order::Audit { .. } => None,
        // Backup and volume are usable meanwhile, and nobody waits for this: it is not what is being done with them.
        Order::Settle { .. } | Order::Detach { .. } => None,
    };
    Ok(NewOperation {
        unique_id: uuid::Uuid::new_v4().simple().to_string(),
        method,
        backend_host: format!("{host}{SERVICE}"),
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
    match Request::parse(operation.request())?.order {
        Order::Verify { backup } => verify(b, &backup).await,
        Order::Create(create) => Box::pin(ordered::create(b, operation, &create)).await,
        Order::ApplyRetention { volume, failed, deleted_volumes } => {
            let reach = Reach { failed, deleted_volumes };
            to_value(&Box::pin(apply::apply(b, operation, &volume, reach)).await?)
        }
        Order::ApplyAllRetention { volume_type, failed, deleted_volumes } => {
            let reach = Reach { failed, deleted_volumes };
            to_value(&Box::pin(apply::everywhere(b, operation, volume_type.as_deref(), reach)).await?)
        }
        Order::Cancel { operation } => cancel::cancel(b, operation).await,
        Order::Audit { repair, purged } => {
            to_value(&Box::pin(audit::run(b, operation, repair, purged)).await?)
        }
        Order::Settle { backup, flatten } => {
            to_value(&mirror::settle::run(b, operation, &backup, flatten).await?)
        }
        Order::Detach { backup, volume, exchange } => {
            to_value(&Box::pin(restore::detach::run(b, &backup, &volume, &exchange)).await?)
        }
    }
}

async fn verify(b: &Backups, backup: &str) -> Result<serde_json::Value> {
    let row = b.db.read("backup to verify", async |conn| db::backup::get(conn, backup).await).await?;
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
    to_value(&verdict)
}

fn to_value(answer: &impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(answer)
        .map_err(|e| Error::internal("An answer cannot be written as JSON").caused_by(e))
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
        let group = Create { group: Some("g1".to_owned()), ..Create::default() };
        // As services wrote it that knew nothing of deleted volumes.
        let before =
            r#"{"order": "apply_retention", "args": {"volume": "v", "failed": false}, "request_id": "r"}"#;
        assert!(Request::<Order>::parse(before).is_ok());
        for (order, resource) in [
            (Order::Create(Box::new(group)), Some(("Group", "g1"))),
            (
                Order::ApplyRetention { volume: "v1".to_owned(), failed: true, deleted_volumes: false },
                Some(("Volume", "v1")),
            ),
            (
                Order::ApplyAllRetention {
                    volume_type: Some("gold".to_owned()),
                    failed: false,
                    deleted_volumes: true,
                },
                None,
            ),
            (Order::Cancel { operation: 7 }, None),
            (Order::Audit { repair: true, purged: false }, None),
        ] {
            let entry = super::entry("h1", order.clone()).unwrap();
            let named = entry.resource.as_ref().map(|(kind, id)| (kind.as_str(), id.as_str()));
            assert_eq!(named, resource);
            assert!(entry.method.starts_with(PREFIX) && entry.backend_host.ends_with(SERVICE));
            assert_eq!(Request::<Order>::parse(&entry.request).unwrap().order, order);
        }
    }
}
