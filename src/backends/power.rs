//! Starting and stopping a backend, and whether new volumes may be placed on it.
//!
//! Backends of the service's own files obey these orders, too: what is wanted of them is in their row, and survives a
//! restart. An order says first what is wanted, then makes it so.

use serde_json::{Value, json};

use super::Backends;
use super::orders::{Disable, Stop};
use crate::db::Conn;
use crate::db::backend::{self as rows, BackendRow, State, Wanted};
use crate::db::cluster::{self, ClusterChanges};
use crate::db::service::{self, ServiceChanges};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};

/// Serves a backend; with `enable` new volumes may be placed on it.
pub(super) async fn start(
    b: &Backends,
    operation: &Operation,
    name: &str,
    enable: bool,
) -> Result<Option<Value>> {
    let _one = b.locks.local(name).await;
    let row = b.known(name).await?;
    Backends::free(&row)?;
    let (row, down) = match b.runner.running(name) {
        Some(_) => (BackendRow { state: State::Running.as_str().to_owned(), ..row }, None),
        None => serve(b, row).await?,
    };
    b.runner.point("backend:start:started").await;
    let row = BackendRow { wanted: Wanted::On.as_str().to_owned(), ..row };
    let answer = json!({
        "backend": row.name,
        "service": row.service,
        "host": row.host,
        "state": row.state,
        "down": down,
        "enabled": enable,
    });
    let outcome = Outcome::succeeded().with_reply(answer);
    b.journal
        .complete(operation, &outcome, async |conn| {
            rows::put(conn, &row).await?;
            if enable { schedule(conn, &row, true, None).await } else { Ok(()) }
        })
        .await?;
    Ok(None)
}

/// Starts a backend by what its file says now; answers its row as it is then, and why it is down, if it is.
pub(super) async fn serve(b: &Backends, row: BackendRow) -> Result<(BackendRow, Option<String>)> {
    let config = match b.read(&row).await {
        Ok(config) => config,
        Err(error) => {
            b.note(&row.name, State::Failed, None, Some(&error.operator())).await?;
            return Err(error);
        }
    };
    b.marked(&config).await?;
    b.joins(&config).await?;
    if !row.has_file() && config.host != row.service {
        return Err(Error::new(
            Code::Invalid,
            format!("Backend {} would become service {} instead of {}", row.name, config.host, row.service),
        ));
    }
    let checksum =
        if row.has_file() { b.fragment(row.path.clone().into()).await?.checksum } else { String::new() };
    let started = b.runner.start(&config).await?;
    let served = BackendRow {
        state: State::Running.as_str().to_owned(),
        wanted: row.wanted.clone(),
        ..b.described(&config, &checksum)?
    };
    Ok((served, started.down))
}

/// Serves a backend no more. Its service row stays, and goes down.
pub(super) async fn stop(b: &Backends, operation: &Operation, order: &Stop) -> Result<Option<Value>> {
    let _one = b.locks.local(&order.name).await;
    let row = b.known(&order.name).await?;
    Backends::free(&row)?;
    let state = if row.is(State::New) { State::New } else { State::Stopped };
    let running = if b.runner.running(&order.name).is_some() { State::Running } else { state };
    b.note(&order.name, running, Some(Wanted::Off), row.problem.as_deref()).await?;
    b.runner.point("backend:stop:wanted").await;
    let limit = if order.drain { std::time::Duration::ZERO } else { b.patience };
    let quiet = b.runner.stop(&order.name, limit).await;
    b.runner.point("backend:stop:stopped").await;
    let answer = json!({
        "backend": row.name,
        "service": row.service,
        "host": row.host,
        "state": state.as_str(),
        "work_left": !quiet,
    });
    let outcome = Outcome::succeeded().with_reply(answer);
    let host = b.host.as_str();
    b.journal
        .complete(operation, &outcome, async |conn| {
            rows::set(conn, host, &order.name, state, Some(Wanted::Off), None).await.map(drop)
        })
        .await?;
    Ok(None)
}

/// No new volumes; those that are there are served.
pub(super) async fn disable(b: &Backends, operation: &Operation, order: &Disable) -> Result<Option<Value>> {
    let _one = b.locks.local(&order.name).await;
    let row = b.known(&order.name).await?;
    Backends::free(&row)?;
    let reason = order.reason.as_deref().unwrap_or("disabled by an operator");
    let answer = json!({
        "backend": row.name,
        "service": row.service,
        "host": row.host,
        "state": row.state,
        "disabled_reason": reason,
    });
    let outcome = Outcome::succeeded().with_reply(answer);
    b.journal
        .complete(operation, &outcome, async |conn| schedule(conn, &row, false, Some(reason)).await)
        .await?;
    Ok(None)
}

/// Whether the scheduler may place volumes there: by the service's row, and by its Cinder cluster's.
async fn schedule(conn: &mut Conn, row: &BackendRow, may: bool, reason: Option<&str>) -> Result<()> {
    let Some(found) = service::find(conn, &row.service).await? else {
        return Err(Error::new(
            Code::Invalid,
            format!("Backend {} has no service row: it has never run. Start it first", row.name),
        ));
    };
    if may && found.frozen {
        return Err(Error::new(
            Code::Invalid,
            format!("Backend {} is frozen: thaw it (cinder thaw-host {})", row.name, row.service),
        ));
    }
    let changes = ServiceChanges {
        disabled: Some(!may),
        disabled_reason: Some(reason.map(str::to_owned)),
        ..ServiceChanges::default()
    };
    service::update(conn, found.id, &changes).await?;
    let Some(name) = &row.cluster else { return Ok(()) };
    let Some(shared) = cluster::find(conn, name).await? else { return Ok(()) };
    let changes = ClusterChanges {
        disabled: Some(!may),
        disabled_reason: Some(reason.map(str::to_owned)),
        ..ClusterChanges::default()
    };
    cluster::update(conn, shared.id, &changes).await.map(drop)
}
