//! Orders that an operator placed into the journal with scoria-manage.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tracing::{error, info};

use super::defect;
use crate::backend::Backend;
use crate::error::{Code, Result};
use crate::journal::{Operation, Outcome};
use crate::replication::orders::{Order, Request};
use crate::replication::{drill, failover, resync};

/// What the method of every order begins with.
pub const PREFIX: &str = "scoria.";

/// Carries an order out and closes it.
pub async fn run(backend: &Backend, operation: &Operation) {
    info!(backend = backend.host(), "carrying out an operator's order");
    let outcome = tokio::select! {
        // A defect ends the order: what it has not moved keeps its status, and it can be given again.
        outcome = AssertUnwindSafe(carry_out(backend, operation)).catch_unwind() => {
            outcome.unwrap_or_else(|_| Err(defect::failure()))
        }
        () = operation.lost().cancelled() => return,
    };
    if !backend.journal.holds(operation) {
        return;
    }
    let closed = match outcome {
        Ok(()) => Outcome::succeeded(),
        Err(e) if e.code() == Code::Cancelled => return,
        Err(e) => {
            error!(backend = backend.host(), error = %e, "an operator's order failed");
            Outcome::failed(&e)
        }
    };
    if let Err(error) = backend.journal.finish(operation, &closed).await {
        error!(%error, "could not close an operator's order");
    }
}

async fn carry_out(backend: &Backend, operation: &Operation) -> Result<()> {
    match Request::parse(operation.request())?.order {
        Order::Resync(order) => {
            resync::order::run(backend, operation, &order.discard, order.volumes.as_deref()).await
        }
        Order::Retry(order) => failover::retry(backend, operation, order.volumes.as_deref()).await,
        Order::TestStart(order) => Box::pin(drill::start(backend, operation, &order)).await,
        Order::TestStop(order) => Box::pin(drill::stop(backend, operation, order.id.as_deref())).await,
        // Recovery has seen to it before: it needs more than the backend.
        Order::Drain(_) => Ok(()),
    }
}
