//! Answers namespaces `backend` and `cluster`: orders for backends are written down, what is known is told.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::backends::{self, Backends, PREFIX, new_label};
use crate::db::label::{self, LabelRow};
use crate::error::{Code, Error, Result};
use crate::journal::{Listing, ListingFilter};
use crate::rpc::method::{BackendCall, LabelCall};
use crate::rpc::{Accept, Call, Handler, Method, fault};

/// Of one host.
pub struct BackendsHandler {
    /// Its backends.
    pub backends: Arc<Backends>,
}

#[async_trait]
impl Handler for BackendsHandler {
    type Operation = ();

    /// Nothing of the namespaces is journalled as it comes.
    async fn accept(&self, call: &Call) -> Result<Accept<()>> {
        Err(fault::no_such_method(call.name))
    }

    async fn run(&self, call: &Call, _: Option<()>) -> Result<Value> {
        match &call.method {
            Method::Backend(call) => Box::pin(self.answer((**call).clone())).await,
            Method::Label(call) => Box::pin(self.label((**call).clone())).await,
            _ => Err(fault::no_such_method(call.name)),
        }
    }

    async fn replied(&self, _: &Call) {}
}

impl BackendsHandler {
    async fn answer(&self, call: BackendCall) -> Result<Value> {
        let b = &self.backends;
        match call {
            BackendCall::Order { order, id } => {
                if let Some(id) = &id
                    && let Some(operation) = b.journal.known(id).await?
                {
                    return Ok(json!({"operation": operation, "new": false}));
                }
                let (operation, new) = backends::submit(&b.journal, &b.host, order, id).await?;
                tracing::info!(operation.id = operation, "an order for a backend came over RPC");
                Ok(json!({"operation": operation, "new": new}))
            }
            BackendCall::List { all_hosts: false, .. } => to_value(&b.own().await?),
            BackendCall::List { all_hosts: true, limit } => backends::all_hosts(b, limit).await,
            BackendCall::Show { name } => {
                let host = b.host.as_str();
                to_value(
                    &b.db
                        .read("a backend", async |conn| backends::one(conn, Some(host), &name).await)
                        .await?,
                )
            }
            BackendCall::Validate { name, options, update } => b.validate(&name, &options, update).await,
            BackendCall::GetOperation { operation } => self.progress(operation).await,
            BackendCall::ListOperations { open } => {
                let filter = ListingFilter {
                    open_only: open,
                    backend_host: Some(b.host.clone()),
                    ..ListingFilter::default()
                };
                let rows = b.journal.list(&filter).await?;
                Ok(rows.iter().filter(|row| row.method.starts_with(PREFIX)).map(told).collect())
            }
            BackendCall::CancelOperation { operation } => {
                let row = self.of_backends(operation).await?;
                // What has begun to remove something goes on; what makes something can be taken back.
                let waiting = row.method != "scoria.backend.create";
                let cancelled = b.journal.withdraw(row.id, waiting).await?;
                Ok(json!({"operation": operation, "cancelled": cancelled}))
            }
        }
    }

    async fn of_backends(&self, operation: i64) -> Result<Listing> {
        let row = self.backends.journal.find(operation).await?;
        row.filter(|row| row.method.starts_with(PREFIX)).ok_or_else(|| {
            Error::new(
                Code::InvalidInput,
                format!("There is no operation {operation} on backends, or it was purged"),
            )
        })
    }

    async fn progress(&self, operation: i64) -> Result<Value> {
        let row = self.of_backends(operation).await?;
        let journal = &self.backends.journal;
        let step = journal.watch(operation).await?.and_then(|progress| progress.step);
        let mut answer = told(&row);
        if let Value::Object(map) = &mut answer {
            map.insert("step".to_owned(), json!(step));
            map.insert("result".to_owned(), journal.answer_of(operation).await?.unwrap_or(Value::Null));
        }
        Ok(answer)
    }

    async fn label(&self, call: LabelCall) -> Result<Value> {
        let db = &self.backends.db;
        match call {
            LabelCall::Create { id, name, description } => {
                let row = new_label(id, name, description)?;
                db.write("a label", async |conn| label::create(conn, &row).await).await?;
                to_value(&row)
            }
            LabelCall::List => {
                let rows = db.read("labels", async |conn| label::list(conn).await).await?;
                to_value(&rows)
            }
            LabelCall::Show { id } => {
                let (row, bearers) = db
                    .read("a label", async |conn| {
                        let row = label::get(conn, &id).await?;
                        let bearers = label::bearers(conn, &row.id).await?;
                        Ok((row, bearers))
                    })
                    .await?;
                Ok(json!({
                    "id": row.id, "name": row.name, "description": row.description, "backends": bearers,
                }))
            }
            LabelCall::Update { id, name, description } => {
                let row = db
                    .write("a label", async |conn| {
                        let row = label::get(conn, &id).await?;
                        let row = LabelRow {
                            name: name.clone().unwrap_or(row.name),
                            description: description.clone().or(row.description),
                            ..row
                        };
                        label::update(conn, &row).await?;
                        Ok(row)
                    })
                    .await?;
                to_value(&row)
            }
            LabelCall::Delete { id } => {
                db.write("a label", async |conn| {
                    let row = label::get(conn, &id).await?;
                    label::delete(conn, &row.id).await
                })
                .await?;
                Ok(json!({"deleted": id}))
            }
        }
    }
}

/// An operation for its orderer.
fn told(row: &Listing) -> Value {
    json!({
        "operation": row.id,
        "method": row.method.strip_prefix(PREFIX),
        "host": row.backend_host,
        "state": row.state,
        "outcome": row.outcome,
        "detail": row.outcome_detail,
        "accepted_at": row.accepted_at.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "closed_at": row.closed_at.map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string()),
    })
}

fn to_value(views: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(views)
        .map_err(|e| Error::internal("A backend cannot be written as JSON").caused_by(e))
}
