//! What makes a request safe, whatever it does: its entry in the journal is closed whatever the operation did, or given
//! back to whoever can finish it.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use tracing::warn;

use super::defect;
use crate::error::{Code, Error, Result};
use crate::journal::{self, Journal, NewOperation, Operation, Outcome};
use crate::rpc::{Call, Reply, Resource};

/// The frame around the operations of one handler.
pub(super) struct Frame {
    journal: Journal,
    /// Operations that have panicked and were given back once.
    panicked: Mutex<HashSet<i64>>,
}

impl Frame {
    pub(super) fn new(journal: Journal) -> Frame {
        Frame { journal, panicked: Mutex::default() }
    }

    /// Runs `work` for a request that is in the journal. `settle` ends what a defect has interrupted for the second
    /// time.
    ///
    /// # Errors
    /// What the operation failed with; `Cancelled` when somebody else will finish it.
    pub(super) async fn run<'a>(
        &self,
        call: &Call,
        operation: &Operation,
        work: BoxFuture<'a, Result<Value>>,
        settle: impl FnOnce() -> BoxFuture<'a, Result<()>> + Send,
    ) -> Result<Value> {
        let journal = &self.journal;
        let outcome = tokio::select! {
            // What was lost while it waited must not begin.
            biased;
            () = operation.lost().cancelled() => Err(lost()),
            outcome = AssertUnwindSafe(work).catch_unwind() => match outcome {
                Ok(outcome) => outcome,
                Err(_) => self.recover_from_panic(operation, settle).await,
            },
        };
        if !journal.holds(operation) {
            return outcome;
        }
        match &outcome {
            Err(error) if error.code() == Code::Cancelled => return outcome,
            Err(error) if error.code() == Code::Database || error.code() == Code::Broker => {
                warn!(operation.id = operation.id(), %error, "operation could not be recorded, it will be taken up again");
                journal.give_back(operation).await?;
                return Err(lost());
            }
            _ => {}
        }
        let mut closed = match &outcome {
            Ok(_) => Outcome::succeeded(),
            Err(error) => Outcome::failed(error),
        };
        if call.reply.is_some() {
            closed = closed.with_reply(Reply::new(outcome.as_ref().map(Value::clone)).to_value());
        }
        journal.finish(operation, &closed).await?;
        outcome
    }

    /// The panic itself has been logged by its hook. See [`defect`].
    async fn recover_from_panic<'a>(
        &self,
        operation: &Operation,
        settle: impl FnOnce() -> BoxFuture<'a, Result<()>> + Send,
    ) -> Result<Value> {
        let journal = &self.journal;
        if !journal.holds(operation) {
            // It had ended before: nothing is left to settle.
            return Err(defect::failure());
        }
        let first = self.panicked.lock().unwrap_or_else(PoisonError::into_inner).insert(operation.id());
        if first {
            warn!(operation.id = operation.id(), "operation hit a defect, it will be taken up again");
            journal.give_back(operation).await?;
            return Err(lost());
        }
        match AssertUnwindSafe(settle()).catch_unwind().await {
            Ok(Ok(())) | Err(_) => Err(defect::failure()),
            Ok(Err(error)) => Err(error),
        }
    }
}

fn lost() -> Error {
    Error::new(Code::Cancelled, "The operation is finished by another owner")
}

/// The journal's entry of a request that `host` has received, without cluster and claim.
pub(super) fn entry(call: &Call, host: &str) -> NewOperation {
    let timeout =
        call.deadline.map(|deadline| (deadline - Utc::now().naive_utc()).to_std().unwrap_or(Duration::ZERO));
    NewOperation {
        unique_id: call.unique_id.clone(),
        method: call.name.to_owned(),
        backend_host: host.to_owned(),
        request: call.text.clone(),
        resource: call.method.resource().map(|r: Resource<'_>| (r.kind().to_owned(), r.id().to_owned())),
        reply: call
            .reply
            .as_ref()
            .map(|r| journal::ReplyTo { queue: r.queue.clone(), msg_id: r.msg_id.clone() }),
        timeout,
        ..NewOperation::default()
    }
}
