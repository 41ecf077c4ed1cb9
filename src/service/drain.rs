//! Emptying the journal of a backend before somebody else serves it (`scoria-manage operation drain`).
//!
//! The order is an operation like others, so it survives this service: one that starts with it takes no
//! request in the first place. It ends when nothing else is open, and the backend then takes no requests until
//! the service is started again. What cannot end now (its site does not answer) keeps it open.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::intake::Intake;
use crate::backend::Backend;
use crate::error::{Code, Result};
use crate::journal::{ListingFilter, Operation, Outcome};
use crate::replication::orders::DRAIN;

/// Between two looks at the journal.
const PERIOD: Duration = Duration::from_millis(500);

/// Carries the order out. The intake has been closed when the order was found.
pub(super) async fn run(
    backend: &Backend,
    intake: &Intake,
    operation: &Operation,
    stopping: &CancellationToken,
) {
    info!(backend = backend.host(), "draining: what is open is finished, no request is taken");
    tokio::select! {
        () = stopping.cancelled() => return,
        () = intake.settled() => {}
    }
    loop {
        tokio::select! {
            // The next start finds the order again.
            () = stopping.cancelled() => return,
            () = operation.lost().cancelled() => return intake.reopen(),
            () = tokio::time::sleep(PERIOD) => {}
        }
        match look(backend, operation).await {
            Ok(Look::Open) => {}
            Ok(Look::Withdrawn) => {
                info!(backend = backend.host(), "the order to drain was withdrawn: requests are taken again");
                return intake.reopen();
            }
            Ok(Look::Empty) => match backend.journal.finish(operation, &Outcome::succeeded()).await {
                Ok(()) => {
                    info!(
                        backend = backend.host(),
                        "drained: nothing is open, and no request is taken until this service is started again"
                    );
                    return;
                }
                Err(error) if error.code() == Code::Cancelled => {}
                Err(error) => error!(%error, "could not close the order to drain"),
            },
            Err(error) => warn!(backend = backend.host(), %error, "could not look what is still open"),
        }
    }
}

enum Look {
    Open,
    Empty,
    Withdrawn,
}

async fn look(backend: &Backend, operation: &Operation) -> Result<Look> {
    let journal = &backend.journal;
    match journal.find(operation.id()).await? {
        Some(own) if !own.is_closed() => {}
        _ => return Ok(Look::Withdrawn),
    }
    // All backends of this process end together: until then the order can be withdrawn from all of them.
    let orders =
        ListingFilter { open_only: true, method: Some(DRAIN.to_owned()), ..ListingFilter::default() };
    let ours = journal.owner().instance;
    for order in journal.list(&orders).await?.iter().filter(|o| o.owner == ours) {
        let open = journal.open_of_service(&order.backend_host).await?;
        if open.iter().any(|o| o.method != DRAIN) {
            return Ok(Look::Open);
        }
    }
    Ok(Look::Empty)
}
