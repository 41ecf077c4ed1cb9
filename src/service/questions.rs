//! Answers namespaces `backend` and `cluster`: orders for backends are written down, what is known is told.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::backends::{self, Backends, PREFIX, new_label};
use crate::db::label::{self, LabelRow};
use crate::error::{Error, Result};
use crate::rpc::method::{BackendCall, LabelCall};
use crate::rpc::{Accept, Call, Handler, Method, fault};
use crate::service::taken::Taken;

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
            BackendCall::GetOperation { operation } => self.taken().progress(operation).await,
            BackendCall::ListOperations { open } => self.taken().list(open).await,
            BackendCall::CancelOperation { operation } => {
                let row = self.taken().find(operation).await?;
                // What has begun to remove something goes on; what makes something can be taken back.
                let waiting = row.method != "scoria.backend.create";
                let cancelled = b.journal.withdraw(row.id, waiting).await?;
                Ok(json!({"operation": operation, "cancelled": cancelled}))
            }
        }
    }

    fn taken(&self) -> Taken<'_> {
        let (journal, host) = (&self.backends.journal, self.backends.host.as_str());
        Taken { journal, host, prefix: PREFIX, on: "backends" }
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

fn to_value(views: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(views)
        .map_err(|e| Error::internal("A backend cannot be written as JSON").caused_by(e))
}
