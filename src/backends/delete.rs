//! Removing a backend: nothing that somebody still needs, and everything that only it needed.
//!
//! The order of things: no new volumes, then no new requests, then a second look (a volume may have come in between),
//! then the heartbeat ends, and only then the service's row goes: while a heartbeat lives, it would make the row again.
//! Its queues go last, when nobody has a reason to send there.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::create::last_of;
use super::files::Files;
use super::orders::Delete;
use super::{Backends, blocking, scope_of};
use crate::db::backend::{self as rows, BackendRow, State, Wanted};
use crate::db::contents::{self, Contents};
use crate::db::service::{self, ServiceChanges};
use crate::error::{Code, Error, Result};
use crate::journal::{Listing, Operation, Outcome};
use crate::replication::orders::DRAIN;

/// How the backend was before its deletion began.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Before {
    state: String,
    disabled: bool,
    reason: Option<String>,
}

/// The edit by which an operator removes a backend of the service's own files.
pub(super) fn edit_to_remove(row: &BackendRow) -> Error {
    Error::new(
        Code::Invalid,
        format!(
            "Backend {0} is in {1}, which is never written. Stop it (scoria-manage backend stop {0}), take {0} out of \
             enabled_backends, remove the section [{0}] and restart scoria-volume; then remove its service row: \
             cinder-manage service remove cinder-volume {2}",
            row.name, row.path, row.service
        ),
    )
}

pub(super) async fn run(b: &Backends, operation: &Operation, order: &Delete) -> Result<Option<Value>> {
    let began = std::time::Instant::now();
    let _one = b.locks.local(&order.name).await;
    let row = b.known(&order.name).await?;
    let resumed = row.operation_id == Some(operation.id());
    if !resumed {
        Backends::free(&row)?;
    }
    if !row.has_file() {
        return Err(edit_to_remove(&row));
    }
    let (contents, open) = (contents_of(b, &row).await?, work_of(b, &row).await?);
    if !resumed {
        judge(&row, order, &contents, &open)?;
    }
    if order.dry_run {
        return Ok(Some(answer(&row, order, &contents, &open, None)));
    }
    let before = match operation.reached::<Before>("prepared").await? {
        Some(before) => before,
        None => prepare(operation, &row).await?,
    };
    b.runner.point("backend:delete:prepared").await;
    let limit = if order.drain { std::time::Duration::ZERO } else { b.patience };
    let quiet = b.runner.stop(&row.name, limit).await;
    b.runner.point("backend:delete:stopped").await;
    // A volume may have been placed there in the meantime, and its request may wait in the queue.
    let contents = contents_of(b, &row).await?;
    let left = work_of(b, &row).await?;
    if !order.force && (!contents.is_empty() || !left.is_empty() || !quiet) {
        restore(b, &row, &before).await?;
        return Err(refusal(&row, &contents, &left));
    }
    let cluster = row.cluster.as_deref();
    b.db.write("a backend that is removed", async |conn| rows::retire(conn, &row.service, cluster).await)
        .await?;
    b.runner.point("backend:delete:retired").await;
    let last = last_of(b, cluster).await?;
    b.runner.delete_queues(&row.service, last).await?;
    b.runner.point("backend:delete:unqueued").await;
    let (file, id) = (Files::new(&row.path), operation.id());
    let archived = blocking(move || file.archive(id)).await??;
    b.runner.point("backend:delete:archived").await;
    let answer = answer(&row, order, &contents, &left, archived.map(|path| path.display().to_string()));
    let outcome = Outcome::succeeded().with_reply(answer);
    b.journal
        .complete(operation, &outcome, async |conn| rows::delete(conn, &row.host, &row.name).await)
        .await?;
    info!(backend = row.service, delete_ms = began.elapsed().as_millis() as u64, "a backend was removed");
    Ok(None)
}

/// Fails when somebody still needs it.
fn judge(row: &BackendRow, order: &Delete, contents: &Contents, open: &[Listing]) -> Result<()> {
    if order.force || (contents.is_empty() && (open.is_empty() || order.drain)) {
        return Ok(());
    }
    Err(refusal(row, contents, if order.drain { &[] } else { open }))
}

fn refusal(row: &BackendRow, contents: &Contents, open: &[Listing]) -> Error {
    let mut has = Vec::new();
    if !contents.is_empty() {
        has.push(contents.to_string());
    }
    if !open.is_empty() {
        let named: Vec<String> = open.iter().take(10).map(|o| format!("{} {}", o.id, o.method)).collect();
        has.push(format!("{} operations under way ({})", open.len(), named.join(", ")));
    }
    if has.is_empty() {
        has.push("requests under way".to_owned());
    }
    Error::new(
        Code::Invalid,
        format!(
            "Backend {} has {}. Delete or migrate what it has; --drain waits for operations, --force removes the backend \
             and leaves the rows of its volumes as they are",
            row.name,
            has.join("; ")
        ),
    )
}

fn answer(
    row: &BackendRow,
    order: &Delete,
    contents: &Contents,
    open: &[Listing],
    archived: Option<String>,
) -> Value {
    json!({
        "backend": row.name,
        "service": row.service,
        "host": row.host,
        "contents": contents,
        "operations": open.iter().map(|o| json!({"operation": o.id, "method": o.method})).collect::<Vec<_>>(),
        "archived": archived,
        "dry_run": order.dry_run,
    })
}

/// What a backend has. What other members of its Cinder cluster serve on is not among it.
pub(super) async fn contents_of(b: &Backends, row: &BackendRow) -> Result<Contents> {
    let (service, cluster) = (row.service.as_str(), row.cluster.as_deref());
    b.db.read("contents of a backend", async |conn| {
        if let Some(name) = cluster
            && service::list_for_cluster(conn, name).await?.iter().any(|member| member.host != service)
        {
            return Ok(Contents::default());
        }
        contents::of(conn, &scope_of(service, cluster)).await
    })
    .await
}

/// What its service has not ended.
pub(super) async fn work_of(b: &Backends, row: &BackendRow) -> Result<Vec<Listing>> {
    let open = b.journal.open_of_service(&row.service).await?;
    Ok(open.into_iter().filter(|o| o.method != DRAIN).collect())
}

/// The scheduler places nothing there any more.
async fn prepare(operation: &Operation, row: &BackendRow) -> Result<Before> {
    operation
        .write("a backend is being removed", async |conn| {
            let found = service::find(conn, &row.service).await?;
            let before = Before {
                state: row.state.clone(),
                disabled: found.as_ref().is_some_and(|s| s.disabled),
                reason: found.as_ref().and_then(|s| s.disabled_reason.clone()),
            };
            if let Some(service) = found {
                let changes = ServiceChanges {
                    disabled: Some(true),
                    disabled_reason: Some(Some("being deleted".to_owned())),
                    ..ServiceChanges::default()
                };
                service::update(conn, service.id, &changes).await?;
            }
            rows::hand(conn, &row.host, &row.name, State::Deleting, Some(operation.id())).await?;
            operation.step_in(conn, "prepared", &before).await?;
            Ok(before)
        })
        .await
}

/// Puts a backend back that turned out to be needed.
async fn restore(b: &Backends, row: &BackendRow, before: &Before) -> Result<()> {
    let mut state = if row.wants(Wanted::On) { State::Running } else { State::Stopped };
    let mut problem = None;
    if before.state == State::Running.as_str() {
        match b.read(row).await {
            Ok(config) => drop(b.runner.start(&config).await?),
            Err(error) => {
                warn!(backend = row.service, %error, "a backend that is not removed cannot be started again");
                (state, problem) = (State::Failed, Some(error.operator()));
            }
        }
    }
    let changes = ServiceChanges {
        disabled: Some(before.disabled),
        disabled_reason: Some(before.reason.clone()),
        ..ServiceChanges::default()
    };
    b.db.write("a backend that is not removed", async |conn| {
        if let Some(service) = service::find(conn, &row.service).await? {
            service::update(conn, service.id, &changes).await?;
        }
        rows::hand(conn, &row.host, &row.name, state, None).await?;
        rows::set_problem(conn, &row.host, &row.name, problem.as_deref()).await
    })
    .await
}
