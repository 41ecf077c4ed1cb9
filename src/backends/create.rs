//! A new backend: looked at before anything is made, made in an order in which each step can be found again, and taken
//! back when one fails.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::files::Files;
use super::orders::Create;
use super::{Backends, blocking, text};
use crate::config::{BackendConfig, check_name, check_options};
use crate::db::backend::{self as rows, BackendRow, State, Wanted};
use crate::db::service::{self, ServiceChanges};
use crate::db::{self, backend_type, label};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};

/// A service with a younger heartbeat is alive.
const ALIVE_SECONDS: i64 = 60;

/// How long the scheduler may take to name the new pool.
const SCHEDULER: Duration = Duration::from_secs(10);

/// What the look has found.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Probed {
    fsid: String,
}

pub(super) async fn run(b: &Backends, operation: &Operation, order: &Create) -> Result<Option<Value>> {
    let began = std::time::Instant::now();
    check_name(&order.name)?;
    check_options(order.options.keys().map(String::as_str))?;
    let content = text::new(&order.name, &order.options)?;
    let path = b.sources.backend_file(&order.name)?;
    let _one = b.locks.local(&order.name).await;
    let row = b.row(&order.name).await?;
    let resumed = row.as_ref().is_some_and(|row| row.operation_id == Some(operation.id()));
    if let Some(row) = row.filter(|_| !resumed) {
        return Err(Error::new(
            Code::Conflict,
            format!(
                "There is a backend {} on host {} already ({}, {})",
                row.name, row.host, row.state, row.path
            ),
        ));
    }
    let fragment = b.sources.fragment(path.clone(), content.clone().into_bytes()).await?;
    let config = fragment.accepted(true)?.clone();
    let file = Files::new(&path);
    if !resumed {
        fresh(b, &config, &file).await?;
    }
    b.marked(&config).await?;
    b.joins(&config).await?;
    if let Some(name) = &order.volume_type {
        let backend_name = &config.backend_name;
        let checked =
            b.db.read("a volume type", async |conn| backend_type::check(conn, name, backend_name).await);
        checked.await?;
    }
    let fsid = match operation.reached::<Probed>("probed").await? {
        Some(probed) => probed.fsid,
        None => {
            let probed = b.probe(&config).await;
            if probed.is_err() || order.dry_run {
                b.runner.release(&config);
            }
            probed?
        }
    };
    let answer = json!({
        "backend": config.section,
        "service": config.host,
        "host": b.host,
        "pool": format!("{}#{}", config.host, config.backend_name),
        "path": path,
        "fsid": fsid,
        "availability_zone": config.availability_zone,
        "volume_type": order.volume_type,
        "dry_run": order.dry_run,
    });
    if order.dry_run {
        return Ok(Some(answer));
    }
    let described = BackendRow { fsid: Some(fsid.clone()), ..b.described(&config, &fragment.checksum)? };
    let made = make(b, operation, order, &config, &described, &file, &content).await;
    match made {
        Ok(()) => {
            b.runner.point("backend:create:served").await;
            finish(b, operation, order, &config, described, answer).await?;
            info!(
                backend = config.host,
                create_ms = began.elapsed().as_millis() as u64,
                "a backend was made and serves"
            );
            Ok(None)
        }
        // It is taken up again, or by somebody else.
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database | Code::Broker) => Err(e),
        Err(e) => {
            error!(backend = config.host, error = %e, "a backend could not be made: taking back what there is");
            undo(b, &described).await?;
            Err(e)
        }
    }
}

/// Fails when the name is taken by a file or by a service that lives.
async fn fresh(b: &Backends, config: &BackendConfig, file: &Files) -> Result<()> {
    let of = file.clone();
    if blocking(move || of.content()).await??.is_some() {
        return Err(Error::new(
            Code::Conflict,
            format!(
                "There is a file for backend {} already; enable it, or take the file away",
                config.section
            ),
        ));
    }
    let service = b.db.read("a service", async |conn| service::find(conn, &config.host).await).await?;
    let heartbeat = service.and_then(|s| s.updated_at).map(|at| (db::now() - at).num_seconds());
    if heartbeat.is_some_and(|age| age < ALIVE_SECONDS) {
        return Err(Error::new(
            Code::Conflict,
            format!("A service {} is alive already, of another program or of another host", config.host),
        ));
    }
    Ok(())
}

async fn make(
    b: &Backends,
    operation: &Operation,
    order: &Create,
    config: &BackendConfig,
    described: &BackendRow,
    file: &Files,
    content: &str,
) -> Result<()> {
    let row = BackendRow {
        state: State::Creating.as_str().to_owned(),
        operation_id: Some(operation.id()),
        ..described.clone()
    };
    let fsid = row.fsid.clone().unwrap_or_default();
    operation
        .write("a backend begins", async |conn| {
            if let Some(id) = &row.label
                && !label::hold(conn, id).await?
            {
                let text = format!("Cluster label {id} was deleted meanwhile");
                return Err(Error::new(Code::Conflict, text));
            }
            rows::put(conn, &row).await?;
            operation.step_in(conn, "probed", &Probed { fsid: fsid.clone() }).await
        })
        .await?;
    b.runner.point("backend:create:recorded").await;
    let (of, content) = (file.clone(), content.to_owned());
    blocking(move || of.write(&content)).await??;
    b.runner.point("backend:create:written").await;
    let started = b.runner.start(config).await?;
    b.runner.point("backend:create:started").await;
    if let Some(reason) = started.down {
        return Err(Error::new(
            Code::VolumeBackend,
            format!("Backend {} was started and did not come up", order.name),
        )
        .detail(reason));
    }
    Ok(())
}

async fn finish(
    b: &Backends,
    operation: &Operation,
    order: &Create,
    config: &BackendConfig,
    described: BackendRow,
    mut answer: Value,
) -> Result<()> {
    let service = b.db.read("a service", async |conn| service::find(conn, &config.host).await).await?;
    // The scheduler names no disabled service. Without a scheduler the backend is there all the same: the first that
    // comes asks for everybody's report.
    if order.enabled && service.is_some_and(|service| !service.disabled) {
        // The scheduler knows a member of a Cinder cluster by the cluster's name (`Service.service_topic_queue`).
        let known_as = config.cluster.as_deref().unwrap_or(&config.host);
        let pool = format!("{known_as}#{}", config.backend_name);
        let placeable = b.runner.placeable(&pool, SCHEDULER).await;
        if !placeable {
            warn!(backend = config.host, "no scheduler has named the new backend's pool yet");
        }
        answer["placeable"] = json!(placeable);
    }
    let row = BackendRow {
        state: State::Running.as_str().to_owned(),
        wanted: Wanted::On.as_str().to_owned(),
        ..described
    };
    let outcome = Outcome::succeeded().with_reply(answer);
    let changes = ServiceChanges {
        disabled: Some(!order.enabled),
        disabled_reason: Some((!order.enabled).then(|| "created disabled".to_owned())),
        ..ServiceChanges::default()
    };
    b.journal
        .complete(operation, &outcome, async |conn| {
            rows::put(conn, &row).await?;
            if let Some(service) = service::find(conn, &config.host).await?
                && service.disabled == order.enabled
            {
                service::update(conn, service.id, &changes).await?;
            }
            if let Some(name) = &order.volume_type {
                backend_type::ensure(conn, name, &config.backend_name).await?;
            }
            Ok(())
        })
        .await
}

/// Takes back everything that was made of a backend. Doing it again does no harm.
///
/// # Errors
/// `Database`, `Broker`, `Config`: then it is done again.
pub(super) async fn undo(b: &Backends, row: &BackendRow) -> Result<()> {
    b.runner.stop(&row.name, b.patience).await;
    b.runner.point("backend:undo:stopped").await;
    let cluster = row.cluster.as_deref();
    b.db.write("a backend that was not made", async |conn| rows::retire(conn, &row.service, cluster).await)
        .await?;
    let last = last_of(b, cluster).await?;
    b.runner.delete_queues(&row.service, last).await?;
    let (file, sum) = (Files::new(&row.path), row.checksum.clone());
    blocking(move || file.remove_if(&sum)).await??;
    b.runner.point("backend:undo:removed").await;
    b.db.write("a backend that was not made", async |conn| rows::delete(conn, &row.host, &row.name).await)
        .await
}

/// The Cinder cluster of a backend, when it has no member left.
pub(super) async fn last_of<'a>(b: &Backends, cluster: Option<&'a str>) -> Result<Option<&'a str>> {
    let Some(name) = cluster else { return Ok(None) };
    let members = b.db.read("members of a cluster", async |conn| service::list_for_cluster(conn, name).await);
    Ok(members.await?.is_empty().then_some(name))
}
