//! Another name for a backend, or the volumes of a service host that is no more.
//!
//! Everything that has the old name in it changes in one transaction (`db::rehost`). Before it the backend is stopped,
//! with its work done, since an operation in the journal belongs to a name; after it the old file and the old queues go.
//! Killed before the transaction, the old name serves again until the order is run again; after it, the new one does.

use serde_json::{Value, json};
use tracing::info;

use super::create::last_of;
use super::files::Files;
use super::orders::Rename;
use super::{Backends, blocking, delete, power, text};
use crate::config::check_name;
use crate::db::backend::{self as rows, BackendRow, State, Wanted};
use crate::db::{self, rehost, service};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::Scope;

/// A service with a younger heartbeat is alive.
const ALIVE_SECONDS: i64 = 60;

pub(super) async fn run(b: &Backends, operation: &Operation, order: &Rename) -> Result<Option<Value>> {
    match &order.from {
        Some(from) if order.new_name == order.name => take_over(b, operation, order, from).await,
        Some(_) => Err(Error::new(
            Code::InvalidInput,
            "A backend gets another name or takes over another host's volumes, one after the other",
        )),
        None => rename(b, operation, order).await,
    }
}

async fn rename(b: &Backends, operation: &Operation, order: &Rename) -> Result<Option<Value>> {
    check_name(&order.new_name)?;
    if order.name == order.new_name {
        return Err(Error::new(Code::InvalidInput, "The new name is the old one"));
    }
    // In one order, or two renames that cross would wait for each other.
    let (low, high) = match order.name < order.new_name {
        true => (&order.name, &order.new_name),
        false => (&order.new_name, &order.name),
    };
    let _low = b.locks.local(low).await;
    let _high = b.locks.local(high).await;
    if let Some(changed) = operation.reached::<Value>("moved").await? {
        let row = b.known(&order.new_name).await?;
        return settle(b, operation, order, row, changed).await;
    }
    let row = b.known(&order.name).await?;
    Backends::free(&row)?;
    if !row.has_file() {
        return Err(Error::new(
            Code::Invalid,
            format!(
                "Backend {} is in {}, which is never written: give its section another name there, and then let it take \
                 over with `scoria-manage backend rename {} --from {}`",
                row.name, row.path, order.new_name, row.service
            ),
        ));
    }
    let old = Files::new(&row.path);
    let of = old.clone();
    let missing =
        || Error::new(Code::InvalidInput, format!("The file of backend {} is gone: {}", row.name, row.path));
    let content = blocking(move || of.content()).await??.ok_or_else(missing)?;
    let new_text = text::renamed(&content, &order.name, &order.new_name);
    let path = b.sources.backend_file(&order.new_name)?;
    let fragment = b.sources.fragment(path.clone(), new_text.clone().into_bytes()).await?;
    let config = fragment.accepted(false)?.clone();
    let new = Files::new(&path);
    if let Some(taken) = b.row(&order.new_name).await?
        && !(taken.is(State::New) && taken.checksum == fragment.checksum)
    {
        return Err(Error::new(
            Code::Conflict,
            format!("There is a backend {} on host {} already", taken.name, taken.host),
        ));
    }
    let of = new.clone();
    if blocking(move || of.content()).await??.is_some_and(|text| text != new_text) {
        return Err(Error::new(Code::Conflict, format!("There is a file {} already", path.display())));
    }
    let others = members(b, &row).await?;
    if !others.is_empty() {
        return Err(Error::new(
            Code::Invalid,
            format!(
                "Backend {} is shared with {}: stop and delete it there first, and create it again under its new name",
                row.name,
                others.join(", ")
            ),
        ));
    }
    if order.dry_run {
        let contents = delete::contents_of(b, &row).await?;
        return Ok(Some(json!({
            "backend": order.new_name, "service": config.host, "former": row.service, "contents": contents,
            "dry_run": true,
        })));
    }
    b.runner.stop(&order.name, std::time::Duration::ZERO).await;
    b.runner.point("backend:rename:stopped").await;
    let open = delete::work_of(b, &row).await?;
    if !open.is_empty() {
        if row.wants(Wanted::On) {
            power::serve(b, row.clone()).await?;
        }
        let named: Vec<String> = open.iter().take(10).map(|o| format!("{} {}", o.id, o.method)).collect();
        return Err(Error::new(
            Code::Invalid,
            format!("Backend {} has operations that have not ended: {}", row.name, named.join(", ")),
        ));
    }
    blocking(move || new.write(&new_text)).await??;
    b.runner.point("backend:rename:written").await;
    let mut moved = vec![rehost::Rename { from: Scope::Host(row.service.clone()), to: config.host.clone() }];
    if let (Some(from), Some(to)) = (&row.cluster, &config.cluster) {
        moved.push(rehost::Rename { from: Scope::Cluster(from.clone()), to: to.clone() });
    }
    let named = BackendRow {
        wanted: row.wanted.clone(),
        state: State::Stopped.as_str().to_owned(),
        fsid: row.fsid.clone(),
        ..b.described(&config, &fragment.checksum)?
    };
    let changed = operation
        .write("another name for a backend", async |conn| {
            let mut changed = serde_json::Map::new();
            for one in &moved {
                for (table, count) in rehost::run(conn, one).await? {
                    if count > 0 {
                        changed.insert(table.trim_matches('`').to_owned(), json!(count));
                    }
                }
            }
            rows::delete(conn, &row.host, &row.name).await?;
            rows::put(conn, &named).await?;
            let changed = Value::Object(changed);
            operation.step_in(conn, "moved", &changed).await?;
            Ok(changed)
        })
        .await?;
    b.runner.point("backend:rename:moved").await;
    settle(b, operation, order, named, changed).await
}

/// Hosts that serve the same backend in a Cinder cluster.
async fn members(b: &Backends, row: &BackendRow) -> Result<Vec<String>> {
    let Some(cluster) = &row.cluster else { return Ok(Vec::new()) };
    let all = b.db.read("members of a cluster", async |conn| service::list_for_cluster(conn, cluster).await);
    Ok(all.await?.into_iter().map(|s| s.host).filter(|host| *host != row.service).collect())
}

/// What has the old name still goes, and the new one serves.
async fn settle(
    b: &Backends,
    operation: &Operation,
    order: &Rename,
    row: BackendRow,
    changed: Value,
) -> Result<Option<Value>> {
    // After a crash a service may have taken the old file for a new one.
    let host = b.host.as_str();
    b.runner.stop(&order.name, b.patience).await;
    let old = Files::new(b.sources.backend_file(&order.name)?);
    let id = operation.id();
    blocking(move || old.archive(id)).await??;
    b.runner.point("backend:rename:archived").await;
    let former = |name: &str| name.replace(&format!("@{}", order.new_name), &format!("@{}", order.name));
    let cluster = row.cluster.as_deref().map(former);
    let last = last_of(b, cluster.as_deref()).await?;
    b.runner.delete_queues(&former(&row.service), last).await?;
    let (row, down) = match row.wants(Wanted::On) && b.runner.running(&row.name).is_none() {
        true => power::serve(b, row).await?,
        false => (row, None),
    };
    let answer = json!({
        "backend": row.name, "service": row.service, "host": row.host, "former": former(&row.service),
        "changed": changed, "state": row.state, "down": down, "dry_run": false,
    });
    let outcome = Outcome::succeeded().with_reply(answer);
    b.journal
        .complete(operation, &outcome, async |conn| {
            rows::delete(conn, host, &order.name).await?;
            rows::put(conn, &row).await
        })
        .await?;
    info!(backend = row.service, former = order.name, "a backend has another name");
    Ok(None)
}

/// The volumes, groups and notes of a service host that is no more become this backend's.
async fn take_over(b: &Backends, operation: &Operation, order: &Rename, from: &str) -> Result<Option<Value>> {
    let _one = b.locks.local(&order.name).await;
    let row = b.known(&order.name).await?;
    Backends::free(&row)?;
    if row.service == from || !from.contains('@') || from.contains('#') {
        return Err(Error::new(
            Code::InvalidInput,
            format!("`{}` is no other service host, as host@backend", from.escape_debug()),
        ));
    }
    let former = b.db.read("a service", async |conn| service::find(conn, from).await).await?;
    let heartbeat = former.as_ref().and_then(|s| s.updated_at).map(|at| (db::now() - at).num_seconds());
    if heartbeat.is_some_and(|age| age < ALIVE_SECONDS) {
        return Err(Error::new(
            Code::Conflict,
            format!("Service {from} is alive: stop it, or its volumes would have two masters"),
        ));
    }
    let open = b.journal.open_of_service(from).await?;
    if let Some(first) = open.first() {
        return Err(Error::new(
            Code::Conflict,
            format!(
                "Service {from} has operations that have not ended, such as {} {}",
                first.id, first.method
            ),
        ));
    }
    let of = Scope::Host(from.to_owned());
    let contents = b.db.read("contents of a service", async |conn| db::contents::of(conn, &of).await).await?;
    if order.dry_run {
        return Ok(Some(json!({
            "backend": row.name, "service": row.service, "former": from, "contents": contents, "dry_run": true,
        })));
    }
    let config = b.read(&row).await?;
    let pool = config.backend_name;
    let change = rehost::TakeOver {
        from: from.to_owned(),
        to: row.service.clone(),
        cluster: row.cluster.clone(),
        pool,
    };
    let (name, host) = (row.service.clone(), row.host.clone());
    let changed = operation
        .write("volumes of another host", async |conn| {
            let mut changed = serde_json::Map::new();
            for (table, count) in rehost::take_over(conn, &change).await? {
                if count > 0 {
                    changed.insert(table.trim_matches('`').to_owned(), json!(count));
                }
            }
            Ok(Value::Object(changed))
        })
        .await?;
    b.runner.point("backend:rename:taken").await;
    let answer = json!({
        "backend": row.name, "service": name, "host": host, "former": from, "changed": changed, "dry_run": false,
    });
    Ok(Some(answer))
}
