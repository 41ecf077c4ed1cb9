//! The contract between a queue and the work behind it. (Filled in below.)

use async_trait::async_trait;
use serde_json::Value;

use crate::error::Result;
use crate::rpc::call::Call;

/// What became of a request that was offered to the journal.
#[derive(Debug)]
pub enum Accept<T> {
    /// It is ours now.
    New(T),
    /// The journal has it already: acknowledge and forget.
    Duplicate,
}

/// Executes requests. Implemented by the service's glue over journal and operations.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// What [`Handler::accept`] hands to [`Handler::run`]: the journal's operation.
    type Operation: Send + 'static;

    /// Puts a request into the journal. Called for journalled requests only, and before the message is
    /// acknowledged.
    ///
    /// # Errors
    /// A transient error leaves the message where it is: it is offered again, for as long as it takes.
    /// Any other error is the answer to the request.
    async fn accept(&self, call: &Call) -> Result<Accept<Self::Operation>>;

    /// Does the work. The result is the answer of a call; for casts it is only logged.
    ///
    /// # Errors
    /// [`crate::error::Code::Cancelled`] sends no answer: the request stays in the journal, and whoever
    /// finishes it will answer.
    async fn run(&self, call: &Call, operation: Option<Self::Operation>) -> Result<Value>;

    /// The answer of a journalled call was delivered, or given up on: its journal entry may forget it.
    async fn replied(&self, call: &Call);
}
