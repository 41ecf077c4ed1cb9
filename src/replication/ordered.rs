//! A failover that an operator orders from Scoria itself, with the tool or over RPC, and not through cinder-api.
//!
//! cinder-api may be down on the day when it is needed. What it would have written before it cast the request is
//! written here, on the same conditions; from then on it is the same failover.

use super::failover::{self, failover_as};
use super::group::{self, Wish};
use super::{orders, set};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db::failing_over::{self, Marked};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::volume::crash;

/// The whole backend: as `cinder failover-host` does it.
///
/// # Errors
/// `Conflict` when the rows do not accept a failover; then as [`failover::failover`].
pub async fn whole(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    order: &orders::Failover,
) -> Result<()> {
    // Past its first step the rows may say anything.
    if operation.last_step().await?.is_none() {
        let service = backend.service()?.id;
        let cluster = backend.config.cluster.as_deref();
        let again = operation.is_adopted();
        let marked = operation
            .write("backend begins to fail over", async |conn| {
                failing_over::backend(conn, service, cluster, again).await
            })
            .await?;
        if let Marked::Refused(status) = marked {
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "Backend {} is {status}: nothing was done; if no failover is under way, scoria-manage \
                     replication reset makes it accept one",
                    backend.host()
                ),
            ));
        }
        crash::point("failover:marked");
    }
    let done = failover_as(backend, context, operation, order.target.as_deref(), order.intent);
    Box::pin(done).await?;
    backend.want_report();
    Ok(())
}

/// Some volumes, or the members of a group.
///
/// # Errors
/// What was refused before anything was touched; `Cancelled` and `Database`.
pub async fn some(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    order: &orders::Move,
) -> Result<()> {
    match (&order.group, &order.volumes) {
        (Some(id), None) => whole_group(backend, context, operation, id, order).await,
        (None, Some(volumes)) => {
            let (volumes, target, intent) = (volumes.clone(), order.target.clone(), order.intent);
            Box::pin(set::failover(backend, operation, set::Move { volumes, target, intent })).await
        }
        _ => Err(Error::new(Code::BadArguments, "Name volumes or a group, and not both")),
    }
}

async fn whole_group(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
    order: &orders::Move,
) -> Result<()> {
    if operation.last_step().await?.is_none() {
        let again = operation.is_adopted();
        let marked = operation
            .write("group begins to fail over", async |conn| failing_over::whole_group(conn, id, again).await)
            .await?;
        if let Marked::Refused(status) = marked {
            return Err(Error::new(
                Code::Conflict,
                format!("Group {id} has replication_status {status:?}: nothing was done"),
            ));
        }
        crash::point("failover_replication:marked");
    }
    // Attached volumes go too, as they do with their backend: nobody asks twice on such a day.
    let request = group::Failover {
        group_id: id.to_owned(),
        allow_attached: true,
        target: order.target.clone(),
        intent: order.intent,
    };
    Box::pin(group::failover(backend, context, operation, request)).await
}

/// Ends an order whose code has hit a defect, so that nothing waits for it for ever.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    order: &orders::Order,
    failure: Error,
) -> Result<()> {
    match order {
        orders::Order::Failover(_) => failover::give_up(backend, context, operation, failure).await,
        orders::Order::Move(orders::Move { group: Some(id), .. }) => {
            group::give_up(backend, context, operation, id, Wish::Failover, failure).await
        }
        orders::Order::Move(_) => set::give_up(backend, operation, failure).await,
        _ => Err(failure),
    }
}
