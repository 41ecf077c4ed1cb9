//! Orders that an operator placed into the journal with scoria-manage.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tracing::{error, info, warn};

use super::defect;
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::replication::foresight::{self, affected, repair};
use crate::replication::orders::{Order, Request};
use crate::replication::{adopt, drill, failover, fence, ordered, resync};
use crate::volume::trash;

/// What the method of every order begins with.
pub const PREFIX: &str = "scoria.";

/// Carries an order out and closes it.
pub async fn run(backend: &Backend, operation: &Operation) {
    info!(backend = backend.host(), "carrying out an operator's order");
    let outcome = tokio::select! {
        // A defect ends the order: what it has not moved keeps its status, and it can be given again.
        outcome = AssertUnwindSafe(carry_out(backend, operation)).catch_unwind() => match outcome {
            Ok(outcome) => outcome,
            Err(_) => settle(backend, operation, defect::failure()).await,
        },
        () = operation.lost().cancelled() => return,
    };
    if !backend.journal.holds(operation) {
        return;
    }
    let closed = match outcome {
        Ok(()) => Outcome::succeeded(),
        Err(e) if e.code() == Code::Cancelled => return,
        Err(e) if matches!(e.code(), Code::Database | Code::Broker) => {
            warn!(operation.id = operation.id(), error = %e, "an order could not be recorded, it will be taken up again");
            if let Err(error) = backend.journal.give_back(operation).await {
                warn!(operation.id = operation.id(), %error, "nor given back: its lease ends by itself");
            }
            return;
        }
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
    let request = Request::parse(operation.request())?;
    let context = context(&request);
    match request.order {
        Order::Resync(order) => {
            resync::order::run(backend, operation, &order.discard, order.volumes.as_deref()).await
        }
        Order::Retry(order) => failover::retry(backend, operation, order.volumes.as_deref()).await,
        Order::TestStart(order) => Box::pin(drill::start(backend, operation, &order)).await,
        Order::TestStop(order) => Box::pin(drill::stop(backend, operation, order.id.as_deref())).await,
        Order::Failover(order) => ordered::whole(backend, &context, operation, &order).await,
        Order::Move(order) => ordered::some(backend, &context, operation, &order).await,
        Order::Adopt(order) => adopt::run(backend, &context, operation, &order).await,
        Order::Fence(order) => {
            let only = order.volumes.as_deref();
            fence::lay(backend, operation, &order.site, only, order.seconds).await
        }
        Order::Unfence(order) => fence::lift(backend, operation, &order.site, order.volumes.as_deref()).await,
        Order::Inquire(inquiry) => foresight::answer(backend, operation, &inquiry).await,
        Order::Repair(order) => repair::run(backend, operation, order.volumes.as_deref()).await,
        Order::Refresh(order) => affected::refresh(backend, operation, order.volumes.as_deref()).await,
        Order::PurgeTrash(_) => Box::pin(trash::purge(backend, operation)).await,
        Order::RestoreTrash(order) => Box::pin(trash::restore(backend, operation, &order.volume)).await,
        // Recovery has seen to it before: it needs more than the backend.
        Order::Drain(_) => Ok(()),
    }
}

/// Nothing waits for an order that has hit a defect.
async fn settle(backend: &Backend, operation: &Operation, failure: Error) -> Result<()> {
    let request = Request::parse(operation.request())?;
    ordered::give_up(backend, &context(&request), operation, &request.order, failure).await
}

/// An administrator's, under the order's own request id.
fn context(request: &Request) -> RequestContext {
    let mut fields = RequestContext::admin().to_fields();
    fields.insert("request_id".to_owned(), request.request_id.clone().into());
    RequestContext::from_fields(fields)
}
