//! Which site a backend works on, by its rows, and how the members of a Cinder cluster agree on it.
//!
//! A member that has missed a failover would serve yesterday's data from the old site. Being told
//! (`failover_completed`) is the quick way and may be missed: by a member that was down, or when the broker
//! was. So the cluster's row is the truth, and every member compares itself with it when it starts and at
//! each heartbeat. A backend without a cluster goes by its own row when it starts, and after that by what it
//! knows: a row that was removed meanwhile is made again as it was.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::{error, info, warn};

use super::adopt;
use super::target::{self, DEFAULT};
use crate::backend::Backend;
use crate::backend::locks::NamedGuard;
use crate::context::RequestContext;
use crate::db::cluster::ClusterChanges;
use crate::db::service::{Registration, ServiceChanges};
use crate::db::{self, Conn};
use crate::error::{Code, Result};
use crate::journal::{Ending, Operation, Outcome};
use crate::model::{Cluster, ReplicationStatus, Service};

/// Whoever changes the active site, or decides by a row that he has read, holds this: of two that read and
/// switch at once the slower would switch back.
pub(super) async fn exclusive(backend: &Backend) -> NamedGuard {
    backend.locks.local("active-site").await
}

/// Replication status of volumes, groups and service once `target` is active, and of a mirrored volume whose
/// primary is there.
pub(crate) fn settled(target: &str) -> ReplicationStatus {
    match target {
        DEFAULT => ReplicationStatus::Enabled,
        _ => ReplicationStatus::FailedOver,
    }
}

/// What the row said before the API set `failing-over`.
pub(super) fn unchanged(service: &Service) -> ReplicationStatus {
    settled(target::active(service.active_backend_id.as_deref()))
}

/// The service's row after a failover, value by value as upstream writes it.
pub(super) fn after(target: &str, frozen: bool) -> ServiceChanges {
    let (active, disabled, reason) = match target {
        DEFAULT => ("", frozen, if frozen { "frozen" } else { "" }),
        target => (target, true, "failed-over"),
    };
    ServiceChanges {
        replication_status: Some(settled(target).as_str().to_owned()),
        active_backend_id: Some(Some(active.to_owned())),
        disabled: Some(disabled),
        disabled_reason: Some(Some(reason.to_owned())),
        ..ServiceChanges::default()
    }
}

/// Writes the rows of the service and of its cluster; answers the service's. One that was removed while we
/// run is made again by the next heartbeat, with what is answered here.
pub(super) async fn write(
    conn: &mut Conn,
    service: &Service,
    cluster: Option<&str>,
    changes: &ServiceChanges,
) -> Result<Service> {
    if let Some(name) = cluster
        && let Some(row) = db::cluster::find(conn, name).await?
    {
        let changes = ClusterChanges {
            disabled: changes.disabled,
            disabled_reason: changes.disabled_reason.clone(),
            replication_status: changes.replication_status.clone(),
            active_backend_id: changes.active_backend_id.clone(),
            ..ClusterChanges::default()
        };
        db::cluster::update(conn, row.id, &changes).await?;
    }
    match db::service::update(conn, service.id, changes).await {
        Ok(()) => db::service::get(conn, service.id).await,
        Err(gone) if gone.code() == Code::ServiceNotFound => Ok(with(service, changes)),
        Err(other) => Err(other),
    }
}

fn with(service: &Service, changes: &ServiceChanges) -> Service {
    let mut service = service.clone();
    let c = changes.clone();
    service.disabled = c.disabled.unwrap_or(service.disabled);
    service.disabled_reason = c.disabled_reason.unwrap_or(service.disabled_reason);
    service.replication_status = c.replication_status.or(service.replication_status);
    service.active_backend_id = c.active_backend_id.unwrap_or(service.active_backend_id);
    service
}

/// `freeze_host` and `thaw_host`: the flag is the API's, here only rows are disabled or enabled; those of all
/// members, where upstream's member writes its own only. Thaw enables also after a failover, as upstream
/// (reference replication.md 3.7).
///
/// # Errors
/// `Cancelled` when the operation has another owner; `Database`.
pub async fn freeze(backend: &Backend, operation: &Operation, frozen: bool) -> Result<()> {
    let service = backend.service()?;
    let changes = ServiceChanges {
        disabled: Some(frozen),
        disabled_reason: Some(Some(if frozen { "frozen".to_owned() } else { String::new() })),
        ..ServiceChanges::default()
    };
    let cluster = backend.config.cluster.as_deref();
    let after = operation
        .write("freeze", async |conn| {
            if let Some(name) = cluster {
                for member in db::service::list_for_cluster(conn, name).await? {
                    db::service::update_if(conn, member.id, &[], &changes).await?;
                }
            }
            write(conn, &service, cluster, &changes).await
        })
        .await?;
    backend.set_service(after);
    Ok(())
}

// ---- telling the others ---------------------------------------------------------------------------

/// Journal step with a [`Telling`].
const TELLING: &str = "telling";

/// What the members of a Cinder cluster are told when a failover is over, well or not, and how it ended. It
/// is a step of the operation: a stock member that is never told serves the old site for ever.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Telling {
    updates: Map<String, Value>,
    failed: bool,
    detail: Option<String>,
}

impl Telling {
    pub(super) fn new(changes: &ServiceChanges, outcome: &Outcome) -> Telling {
        Telling {
            updates: updates(changes),
            failed: outcome.ending == Ending::Failed,
            detail: outcome.detail.clone(),
        }
    }

    /// What a former owner of the operation had written down and may not have told.
    pub(super) async fn left(operation: &Operation) -> Result<Option<Telling>> {
        operation.reached(TELLING).await
    }

    pub(super) async fn record(&self, conn: &mut Conn, operation: &Operation) -> Result<()> {
        operation.step_in(conn, TELLING, self).await
    }

    /// Tells them, and closes the operation. While the broker is away it stays open.
    pub(super) async fn tell(
        &self,
        backend: &Backend,
        context: &RequestContext,
        operation: &Operation,
    ) -> Result<()> {
        if let Some(cluster) = &backend.config.cluster {
            backend.peers.volumes.failover_completed(context, cluster, self.updates.clone()).await?;
        }
        let ending = if self.failed { Ending::Failed } else { Ending::Succeeded };
        let outcome = Outcome { ending, detail: self.detail.clone(), reply: None };
        backend.journal.finish(operation, &outcome).await
    }
}

/// Changes as `failover_completed` carries them: what is not among them must not be there, since a site
/// that is null means "choose one" to stock.
fn updates(changes: &ServiceChanges) -> Map<String, Value> {
    let mut map = Map::new();
    if let Some(status) = &changes.replication_status {
        map.insert("replication_status".into(), json!(status));
    }
    if let Some(active) = &changes.active_backend_id {
        map.insert("active_backend_id".into(), json!(active));
    }
    if let Some(disabled) = changes.disabled {
        map.insert("disabled".into(), json!(disabled));
    }
    if let Some(reason) = &changes.disabled_reason {
        map.insert("disabled_reason".into(), json!(reason));
    }
    map
}

// ---- following ------------------------------------------------------------------------------------

/// `failover_completed`: another member of the Cinder cluster has moved the volumes; this one follows.
/// An update without `active_backend_id` (the failover was refused) changes no site, and an empty one means
/// the primary, not "choose for yourself" (reference replication.md 3.5, hazards 1 and 2). One that is late,
/// because the cluster has moved on since, is not obeyed.
///
/// # Errors
/// `Database`; `InvalidReplicationTarget` for a site that this member does not know: its row says `error`,
/// and it serves nothing.
pub async fn completed(backend: &Backend, updates: &Map<String, Value>) -> Result<()> {
    let text = |key: &str| updates.get(key).and_then(Value::as_str).map(str::to_owned);
    let _active = exclusive(backend).await;
    let mut changes = ServiceChanges {
        replication_status: text("replication_status"),
        disabled: updates.get("disabled").and_then(Value::as_bool),
        disabled_reason: updates.contains_key("disabled_reason").then(|| text("disabled_reason")),
        active_backend_id: updates.contains_key("active_backend_id").then(|| text("active_backend_id")),
        ..ServiceChanges::default()
    };
    if let Some(told) = &changes.active_backend_id
        && let Some(cluster) = own_cluster(backend).await?
        && target::active(told.as_deref()) != target::active(cluster.active_backend_id.as_deref())
    {
        warn!(
            backend = backend.host(),
            "told of a failover that is not the last one: following the cluster's row"
        );
        changes = of_cluster(&cluster);
    }
    take(backend, changes).await
}

/// Writes the changes into this member's row, and works on the site that they name.
async fn take(backend: &Backend, mut changes: ServiceChanges) -> Result<()> {
    if let Some(active) = &changes.active_backend_id {
        // What the names of its sites mean may have changed with it.
        adopt::keep_up(backend, target::active(active.as_deref())).await?;
    }
    let switched = match &changes.active_backend_id {
        Some(active) => backend.activate(target::active(active.as_deref())),
        None => Ok(()),
    };
    if let Err(refusal) = &switched {
        error!(backend = backend.host(), error = %refusal, "cannot follow the failover of this cluster");
        changes.disabled = Some(true);
        changes.disabled_reason = Some(Some(refusal.user().chars().take(255).collect()));
        changes.replication_status = Some(ReplicationStatus::Error.as_str().to_owned());
    }
    let service = backend.service()?;
    let after = backend
        .db
        .write("failover completed", async |conn| write(conn, &service, None, &changes).await)
        .await?;
    backend.set_service(after);
    switched
}

async fn own_cluster(backend: &Backend) -> Result<Option<Cluster>> {
    let Some(name) = &backend.config.cluster else { return Ok(None) };
    backend.db.read("cluster of a service", async |conn| db::cluster::find(conn, name).await).await
}

fn of_cluster(cluster: &Cluster) -> ServiceChanges {
    ServiceChanges {
        replication_status: cluster.replication_status.clone(),
        active_backend_id: Some(cluster.active_backend_id.clone()),
        disabled: Some(cluster.disabled),
        disabled_reason: Some(cluster.disabled_reason.clone()),
        ..ServiceChanges::default()
    }
}

/// What a member that has missed a failover must take over from its cluster's row: everything, or, when it
/// was refused, only that it is over. The API sets the cluster's row to `failing-over` before its members'.
fn missed(service: &Service, cluster: &Cluster) -> Option<ServiceChanges> {
    let active = target::active(service.active_backend_id.as_deref());
    if active != target::active(cluster.active_backend_id.as_deref()) {
        return Some(of_cluster(cluster));
    }
    let failing_over = Some(ReplicationStatus::FailingOver.as_str());
    let over = cluster.replication_status.as_deref();
    (service.replication_status.as_deref() == failing_over && over.is_some() && over != failing_over).then(
        || ServiceChanges {
            replication_status: cluster.replication_status.clone(),
            disabled: cluster.disabled.then_some(true),
            ..ServiceChanges::default()
        },
    )
}

// ---- at the start, and at each heartbeat ----------------------------------------------------------

/// Writes the service's row as stock's start-up does, catches up with the cluster, and takes the active
/// site from the row.
///
/// # Errors
/// `Database`.
pub async fn enter(backend: &Backend, enable_new_services: bool) -> Result<()> {
    let _active = exclusive(backend).await;
    let registration = registration(backend, enable_new_services);
    let service = backend
        .db
        .write("register", async |conn| {
            let service = register(conn, &registration).await?;
            let Some(name) = &registration.cluster else { return Ok(service) };
            let cluster = db::cluster::find(conn, name).await?;
            match cluster.and_then(|cluster| missed(&service, &cluster)) {
                Some(changes) => write(conn, &service, None, &changes).await,
                None => Ok(service),
            }
        })
        .await?;
    info!(backend = backend.host(), service.id = service.id, "service registered");
    let active = target::active(service.active_backend_id.as_deref()).to_owned();
    backend.set_service(service);
    let name = backend.scope_name();
    let known =
        backend.db.read("known sites", async |conn| db::backend_site::known(conn, &name).await).await?;
    let sites = backend.sites();
    sites.expect(&known);
    sites.set_adoption(known.adoption);
    // A row that names a site which is no longer configured: upstream stays uninitialised, and so do we.
    let _ = backend.activate(&active);
    Ok(())
}

/// One heartbeat: keeps the row alive, reads what others have written into it, and follows the cluster.
///
/// # Errors
/// `Database`; `InvalidReplicationTarget` as [`completed`].
pub async fn beat(backend: &Backend, enable_new_services: bool) -> Result<()> {
    let id = backend.service()?.id;
    let zone = &backend.config.availability_zone;
    let beaten =
        backend.db.read("heartbeat", async |conn| db::service::heartbeat(conn, id, zone).await).await?;
    if !beaten {
        return again(backend, enable_new_services).await;
    }
    let _active = exclusive(backend).await;
    let service = backend.db.read("own service", async |conn| db::service::get(conn, id).await).await?;
    backend.set_service(service);
    follow(backend).await?;
    if adopt::keep_up(backend, &backend.active_name()).await?
        && let Some(cluster) = own_cluster(backend).await?
    {
        // Its row may say that it could not follow.
        take(backend, of_cluster(&cluster)).await?;
    }
    Ok(())
}

/// The row was removed while we run (`cinder-manage service remove`). Upstream makes a new one and its
/// driver keeps its site; the new row says so here, or the next start would go back to the old primary.
async fn again(backend: &Backend, enable_new_services: bool) -> Result<()> {
    let _active = exclusive(backend).await;
    warn!(backend = backend.host(), "the service's row is gone: making it again");
    let registration = registration(backend, enable_new_services);
    let former = backend.service()?;
    let mut changes = ServiceChanges {
        disabled: Some(former.disabled),
        disabled_reason: Some(former.disabled_reason.clone()),
        ..ServiceChanges::default()
    };
    if registration.cluster.is_none() {
        let active = backend.active_name();
        let written = former.active_backend_id.clone();
        let same = target::active(written.as_deref()) == active;
        changes.active_backend_id = Some(if same { written } else { Some(active) });
        changes.replication_status = former.replication_status.clone();
        changes.frozen = Some(former.frozen);
    }
    let service = backend
        .db
        .write("register again", async |conn| {
            let service = register(conn, &registration).await?;
            write(conn, &service, None, &changes).await
        })
        .await?;
    backend.set_service(service);
    follow(backend).await
}

/// Works on the site that the cluster's row names; without a cluster, on the one it works on.
async fn follow(backend: &Backend) -> Result<()> {
    let Some(cluster) = own_cluster(backend).await? else { return Ok(()) };
    let active = target::active(cluster.active_backend_id.as_deref());
    let changes = match missed(&backend.service()?, &cluster) {
        None if active != backend.active_name() => Some(of_cluster(&cluster)),
        changes => changes,
    };
    let Some(changes) = changes else { return Ok(()) };
    warn!(backend = backend.host(), active, "catching up with a failover of the cluster");
    take(backend, changes).await
}

fn registration(backend: &Backend, enable_new_services: bool) -> Registration {
    Registration {
        host: backend.host().to_owned(),
        cluster: backend.config.cluster.clone(),
        availability_zone: backend.config.availability_zone.clone(),
        enable_new_services,
    }
}

async fn register(conn: &mut Conn, registration: &Registration) -> Result<Service> {
    let registered = db::service::register(conn, registration).await?;
    if registered.added_to_cluster
        && let Some(cluster) = &registration.cluster
    {
        db::service::include_in_cluster(conn, &registration.host, cluster).await?;
    }
    Ok(registered.service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_row_is_upstreams() {
        let over = after("site-b", false);
        assert_eq!(over.active_backend_id, Some(Some("site-b".into())));
        assert_eq!(over.disabled_reason, Some(Some("failed-over".into())));
        assert_eq!(over.replication_status.as_deref(), Some("failed-over"));
        let back = after(DEFAULT, true);
        // Empty, not NULL, after a failback (observed.md).
        assert_eq!(back.active_backend_id, Some(Some(String::new())));
        assert_eq!((back.disabled, back.disabled_reason), (Some(true), Some(Some("frozen".into()))));
        assert_eq!(after(DEFAULT, false).disabled_reason, Some(Some(String::new())));
    }

    #[test]
    fn a_member_takes_from_its_cluster_what_it_has_missed_and_nothing_else() {
        let service = |status: &str, active: Option<&str>| Service {
            replication_status: Some(status.into()),
            active_backend_id: active.map(str::to_owned),
            disabled: true,
            ..Service::default()
        };
        let cluster = |status: &str, active: Option<&str>| Cluster {
            replication_status: Some(status.into()),
            active_backend_id: active.map(str::to_owned),
            ..Cluster::default()
        };
        // Never failed over and failed back are the same; an administrator's `disabled` stays.
        assert_eq!(missed(&service("enabled", None), &cluster("enabled", Some(""))), None);
        assert_eq!(missed(&service("error", Some("b")), &cluster("failed-over", Some("b"))), None);
        assert_eq!(missed(&service("failing-over", None), &cluster("failing-over", None)), None);
        let moved = missed(&service("enabled", None), &cluster("failed-over", Some("b"))).unwrap();
        assert_eq!(moved.active_backend_id, Some(Some("b".into())));
        assert_eq!(moved.replication_status.as_deref(), Some("failed-over"));
        let refused = missed(&service("failing-over", None), &cluster("enabled", None)).unwrap();
        assert_eq!(refused.replication_status.as_deref(), Some("enabled"));
        assert_eq!((refused.active_backend_id, refused.disabled), (None, None));
    }
}
