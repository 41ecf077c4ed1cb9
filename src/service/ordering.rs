//! Orders that come over RPC instead of from `scoria-manage`, and what there is to ask of a backend's replication.
//!
//! An order is written into the journal like the tool's, and carried out from there like the tool's. The caller has
//! its number, and asks for it again when he wants to know how it went.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db::admin;
use crate::error::Result;
use crate::journal::{NewOperation, Operation, Submitted};
use crate::replication::admission;
use crate::replication::orders::{ALL, Order, Request};

/// Writes the order down; answers `{operation, new, request_id}`. `cast`: the journal's entry of the message that
/// brought it, when nobody waits for the answer.
///
/// # Errors
/// What is wrong with the order; `Database`.
pub(super) async fn take(
    backend: &Backend,
    context: &RequestContext,
    order: &Order,
    cast: Option<&Operation>,
) -> Result<Value> {
    // A cast that is run again has written its order down, or not.
    let unique_id = match cast {
        Some(operation) => format!("order-of-{}", operation.id()),
        None => Uuid::new_v4().simple().to_string(),
    };
    if cast.is_some_and(Operation::is_adopted)
        && let Some(id) = backend.journal.known(&unique_id).await?
    {
        return Ok(answer(id, false, context));
    }
    let order = admission::check(backend, order.clone()).await?;
    let request = Request { order, request_id: context.request_id.clone() };
    let new = NewOperation {
        unique_id,
        method: request.order.method().to_owned(),
        backend_host: backend.host().to_owned(),
        cluster: backend.config.cluster.clone(),
        request: request.to_text()?,
        ..NewOperation::default()
    };
    let (id, fresh) = match backend.journal.submit(&new).await? {
        Submitted::New(id) => (id, true),
        Submitted::Open(id) => (id, false),
    };
    tracing::info!(
        backend = backend.host(),
        operation.id = id,
        method = new.method,
        "an order came over RPC"
    );
    Ok(answer(id, fresh, context))
}

fn answer(id: i64, fresh: bool, context: &RequestContext) -> Value {
    json!({"operation": id, "new": fresh, "request_id": context.request_id})
}

/// Where the backend and its volumes are, what is under way, and how far `operation` is.
///
/// # Errors
/// `Database`.
pub(super) async fn status(backend: &Backend, operation: Option<i64>) -> Result<Value> {
    let scope = backend.scope();
    let (volumes, strays) = backend
        .db
        .read("replication of a backend", async |conn| {
            Ok((admin::replication_counts(conn, &scope).await?, admin::strays(conn, &scope).await?))
        })
        .await?;
    let open = backend.journal.open_methods(&scope, ALL).await?;
    let asked = match operation {
        Some(id) => backend.journal.watch(id).await?,
        None => None,
    };
    let sites: Vec<String> =
        std::iter::once(crate::backend::DEFAULT_SITE.to_owned()).chain(backend.device_names()).collect();
    Ok(json!({
        "backend": backend.host(),
        "active_site": backend.active_name(),
        "sites": sites,
        "volumes": volumes,
        "strays": strays.into_iter().map(|(id, site)| (id, Value::from(site))).collect::<Map<_, _>>(),
        "open": open.iter().map(|o| json!({"operation": o.id, "method": o.method})).collect::<Vec<_>>(),
        "operation": asked.map(|p| json!({
            "operation": p.operation.id,
            "method": p.operation.method,
            "state": p.operation.state,
            "outcome": p.operation.outcome,
            "detail": p.operation.outcome_detail,
            "volumes": p.items.into_iter().map(|(step, n)| (step, Value::from(n))).collect::<Map<_, _>>(),
        })),
    }))
}
