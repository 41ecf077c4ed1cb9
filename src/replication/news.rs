//! What listeners hear of a failover, of an adoption, and of copies that fall behind: volume by volume.
//!
//! Upstream tells of the failover of a group, and nothing of a backend's, on the day when an auditor or a billing
//! system wants to know most. Here every volume is told of, in upstream's words (`failover_replication.start`,
//! `.end`), and those that stayed behind (`.error`). None of it is in the way of the failover: a task of its own
//! reads the rows, some hundred at a time, and hands them to the queue of notifications. What is to be told is
//! taken from what the journal has recorded.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::Mutex;
use tracing::warn;

use super::failover::Decision;
use super::plan::Step;
use crate::backend::Backend;
use crate::backend::peers::{Notify, Priority};
use crate::context::RequestContext;
use crate::db::{self, Db};
use crate::error::Error;
use crate::journal::{Ending, Operation, Outcome};
use crate::model::{Service, Volume};
use crate::volume::group::tell_volume;

/// Volumes read at once.
const CHUNK: usize = 500;

/// Tasks take turns in the order in which they were started, so that no end is told before its beginning.
static TURN: Mutex<()> = Mutex::const_new(());

/// Tells listeners, without a backend at hand.
#[derive(Clone)]
pub(super) struct Herald {
    db: Db,
    notify: Arc<dyn Notify>,
    host: String,
    context: RequestContext,
}

impl Herald {
    pub(super) fn new(backend: &Backend, context: &RequestContext) -> Herald {
        Herald {
            db: backend.db.clone(),
            notify: backend.peers.notify.clone(),
            host: backend.host().to_owned(),
            context: context.clone(),
        }
    }

    /// Sends `volume.<suffix>` of each of these volumes, as its row is now.
    pub(super) async fn volumes(&self, suffix: &str, ids: &[String]) {
        for chunk in ids.chunks(CHUNK) {
            let read = self.db.read("volumes to tell of", async |conn| {
                let volumes = db::volume::get_many(conn, chunk).await?;
                Ok((volumes, db::group_snapshot::usages(conn, chunk).await?))
            });
            match read.await {
                Ok((volumes, usages)) => {
                    for volume in &volumes {
                        let (notify, host) = (&*self.notify, self.host.as_str());
                        tell_volume(notify, &self.context, suffix, host, volume, &usages).await;
                    }
                }
                Err(error) => {
                    warn!(volumes = chunk.len(), suffix, %error, "could not read what notifications tell");
                }
            }
        }
    }

    /// Sends `service.<event>`.
    async fn service(&self, event: &str, priority: Priority, payload: Map<String, Value>) {
        let (event, publisher) = (format!("service.{event}"), format!("service.{}", self.host));
        self.notify.publish(&self.context, &event, priority, &publisher, Value::Object(payload)).await;
    }
}

/// The volumes of an operation are on their way.
pub(super) fn begun(backend: &Backend, context: &RequestContext, decision: &Decision, volumes: &[Volume]) {
    if !backend.peers.notify.enabled() {
        return;
    }
    let herald = Herald::new(backend, context);
    let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
    let mut payload = row(backend);
    payload.insert("source".to_owned(), json!(decision.source));
    payload.insert("target".to_owned(), json!(decision.target));
    payload.insert("volumes".to_owned(), json!(ids.len()));
    tokio::spawn(async move {
        let _turn = TURN.lock().await;
        herald.service("failover.start", Priority::Info, payload).await;
        herald.volumes("failover_replication.start", &ids).await;
    });
}

/// The operation is over, and the rows say how.
pub(super) fn over(backend: &Backend, context: &RequestContext, operation: &Operation, outcome: &Outcome) {
    if !backend.peers.notify.enabled() {
        return;
    }
    let herald = Herald::new(backend, context);
    let operation = operation.clone();
    let mut payload = row(backend);
    payload.insert("detail".to_owned(), json!(outcome.detail));
    let (what, priority) = match outcome.ending {
        Ending::Failed => ("failover.error", Priority::Error),
        _ => ("failover.end", Priority::Info),
    };
    tokio::spawn(async move {
        let _turn = TURN.lock().await;
        let (mut moved, mut left) = (Vec::new(), Vec::new());
        match operation.items().await {
            Ok(items) => {
                for item in items {
                    match item.parse::<Step>() {
                        Ok(Step::Moved) => moved.push(item.resource_id),
                        _ => left.push(item.resource_id),
                    }
                }
            }
            Err(error) => warn!(%error, "could not read which volumes a failover has moved"),
        }
        herald.volumes("failover_replication.end", &moved).await;
        herald.volumes("failover_replication.error", &left).await;
        payload.insert("volumes".to_owned(), json!({"moved": moved.len(), "failed": left.len()}));
        herald.service(what, priority, payload).await;
    });
}

/// These volumes were left behind by the failover of their group.
pub(super) fn left(backend: &Backend, context: &RequestContext, ids: Vec<String>) {
    if ids.is_empty() || !backend.peers.notify.enabled() {
        return;
    }
    let herald = Herald::new(backend, context);
    tokio::spawn(async move {
        let _turn = TURN.lock().await;
        herald.volumes("failover_replication.error", &ids).await;
    });
}

/// The active site is going to be the backend's own.
pub(super) fn adopting(backend: &Backend, context: &RequestContext) {
    let site = backend.active_name();
    tell(backend, context, "adopt.start", Priority::Info, json!({"site": site}), Vec::new());
}

/// It is: these volumes are at home there, and those were given up.
pub(super) fn adopted(
    backend: &Backend,
    context: &RequestContext,
    detail: &str,
    served: Vec<String>,
    behind: Vec<String>,
) {
    let count = json!({"adopted": served.len(), "left_behind": behind.len()});
    let more = json!({"detail": detail, "volumes": count});
    let volumes = vec![("adopt.end", served), ("adopt.error", behind)];
    tell(backend, context, "adopt.end", Priority::Info, more, volumes);
}

/// Nothing was adopted.
pub(super) fn not_adopted(backend: &Backend, context: &RequestContext, why: &Error) {
    tell(backend, context, "adopt.error", Priority::Error, json!({"detail": why.user()}), Vec::new());
}

/// Sends what happened to these volumes, and `service.<event>` with the service's row and `more`.
fn tell(
    backend: &Backend,
    context: &RequestContext,
    event: &'static str,
    priority: Priority,
    more: Value,
    volumes: Vec<(&'static str, Vec<String>)>,
) {
    if !backend.peers.notify.enabled() {
        return;
    }
    let herald = Herald::new(backend, context);
    let mut payload = row(backend);
    if let Value::Object(more) = more {
        payload.extend(more);
    }
    tokio::spawn(async move {
        let _turn = TURN.lock().await;
        for (suffix, ids) in volumes {
            herald.volumes(suffix, &ids).await;
        }
        herald.service(event, priority, payload).await;
    });
}

/// The service's row as it was last read or written.
fn row(backend: &Backend) -> Map<String, Value> {
    let service = backend.service().unwrap_or_else(|_| Service::default());
    let mut map = Map::new();
    let mut set = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    set("binary", json!("cinder-volume"));
    set("host", json!(backend.host()));
    set("cluster", json!(backend.config.cluster));
    set("replication_status", json!(service.replication_status));
    set("active_backend_id", json!(service.active_backend_id));
    set("frozen", json!(service.frozen));
    set("disabled", json!(service.disabled));
    set("disabled_reason", json!(service.disabled_reason));
    map
}
