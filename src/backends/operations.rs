//! Carrying orders out: each to its end, whatever happens, with a word to listeners.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::orders::{Order, Request};
use super::{Backends, change, create, delete, power, rename};
use crate::backend::peers::Priority;
use crate::context::RequestContext;
use crate::db::backend::{self as rows, State, Wanted};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};

/// Carries an order out and closes it, with an answer for who asks.
pub async fn run(backends: &Backends, operation: &Operation) {
    info!(operation.id = operation.id(), op = operation.method(), "carrying out an order for a backend");
    let request = match Request::parse(operation.request()) {
        Ok(request) => request,
        Err(e) => return close(backends, operation, &Outcome::failed(&e)).await,
    };
    tell(backends, operation, &request, "start", None).await;
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(carry_out(backends, operation, &request.order)).catch_unwind() => outcome
            .unwrap_or_else(|_| Err(Error::internal("The order hit a defect; the log has the details"))),
        () = operation.lost().cancelled() => return,
    };
    let error = match outcome {
        Ok(answer) => {
            if let Some(answer) = answer {
                close(backends, operation, &Outcome::succeeded().with_reply(answer)).await;
            }
            return tell(backends, operation, &request, "end", None).await;
        }
        // Withdrawn, or somebody else's: what it has made is taken back by the next look.
        Err(e) if e.code() == Code::Cancelled => return,
        Err(e) if matches!(e.code(), Code::Database | Code::Broker) => {
            warn!(operation.id = operation.id(), error = %e, "an order for a backend could not be recorded, it will be taken up again");
            if let Err(error) = backends.journal.give_back(operation).await {
                warn!(operation.id = operation.id(), %error, "nor given back: its lease ends by itself");
            }
            return;
        }
        Err(e) => e,
    };
    error!(
        operation.id = operation.id(),
        backend = request.order.name(),
        %error,
        "an order for a backend failed"
    );
    close(backends, operation, &Outcome::failed(&error)).await;
    tell(backends, operation, &request, "error", Some(&error)).await;
}

async fn close(backends: &Backends, operation: &Operation, outcome: &Outcome) {
    match backends.journal.finish(operation, outcome).await {
        Err(error) if error.code() != Code::Cancelled => {
            error!(%error, "could not close an order for a backend")
        }
        Ok(()) | Err(_) => {}
    }
}

async fn tell(
    backends: &Backends,
    operation: &Operation,
    request: &Request,
    what: &str,
    error: Option<&Error>,
) {
    if request.order.is_dry_run() || !backends.notify.enabled() {
        return;
    }
    let event = format!("scoria.backend.{}.{what}", request.order.verb());
    let publisher = format!("scoria.{}", backends.host);
    let priority = if error.is_some() { Priority::Error } else { Priority::Info };
    let payload = json!({
        "operation": operation.id(),
        "backend": request.order.name(),
        "host": backends.host,
        "reason": error.map(Error::user),
    });
    backends.notify.publish(&RequestContext::admin(), &event, priority, &publisher, payload).await;
}

/// What is answered; `None` when the operation has been closed with it.
async fn carry_out(backends: &Backends, operation: &Operation, order: &Order) -> Result<Option<Value>> {
    match order {
        Order::Create(order) => Box::pin(create::run(backends, operation, order)).await,
        Order::Update(order) => Box::pin(change::update(backends, operation, order)).await,
        Order::Enable(order) => Box::pin(power::start(backends, operation, &order.name, true)).await,
        Order::Start(order) => Box::pin(power::start(backends, operation, &order.name, false)).await,
        Order::Disable(order) => Box::pin(power::disable(backends, operation, order)).await,
        Order::Stop(order) => Box::pin(power::stop(backends, operation, order)).await,
        Order::Delete(order) => Box::pin(delete::run(backends, operation, order)).await,
        Order::Rename(order) => Box::pin(rename::run(backends, operation, order)).await,
    }
}

/// Takes back what orders have made that were withdrawn in the middle.
///
/// # Errors
/// `Database`, `Broker`, `Config`.
pub async fn tidy(backends: &Backends) -> Result<()> {
    let host = backends.host.as_str();
    let found =
        backends.db.read("abandoned backends", async |conn| rows::abandoned(conn, host).await).await?;
    for row in found {
        let _one = backends.locks.local(&row.name).await;
        if row.is(State::Creating) {
            warn!(
                backend = row.service,
                "the order that was making this backend was withdrawn: taking it back"
            );
            create::undo(backends, &row).await?;
            continue;
        }
        let problem = "its deletion was withdrawn; start it, or delete it again";
        warn!(backend = row.service, problem, "a backend was left half removed");
        backends.runner.stop(&row.name, backends.patience).await;
        backends
            .db
            .write("a backend left half removed", async |conn| {
                rows::hand(conn, host, &row.name, State::Stopped, None).await?;
                rows::set(conn, host, &row.name, State::Stopped, Some(Wanted::Off), Some(problem)).await
            })
            .await?;
    }
    Ok(())
}
