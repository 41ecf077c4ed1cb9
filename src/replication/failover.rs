//! `failover_host`, `failover` and failback of a whole backend: the rows around the engine.
//!
//! An operator orders it on the worst day of the year and may kill us half way. So the decision (where
//! from, where to) and every volume's step are in the journal, everything here can be run again from the
//! beginning, and all rows change in one transaction at the end. Nothing is discarded: a volume that
//! cannot be moved safely stays where it is primary, in `failover-error`, with the way out written into its
//! `replication_extended_status` (reference replication.md 3.5).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::{error, info, warn};

use super::engine::{Engine, Job, Limits, failure};
use super::ledger::JournalLedger;
use super::plan::{Reason, ServedFrom, Step};
use super::target::{self, DEFAULT};
use super::verdict::Verdict;
use crate::backend::Backend;
use crate::config::BackendConfig;
use crate::context::RequestContext;
use crate::db;
use crate::db::Conn;
use crate::db::cluster::ClusterChanges;
use crate::db::service::ServiceChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{ReplicationStatus, Service, Volume};
use crate::volume::crash;

/// How long running operations may take to leave before a failover goes on without them.
const GRACE: Duration = Duration::from_secs(10);
/// Journal step with the [`Decision`].
const DECIDED: &str = "decided";
/// How long a copy may take to appear and to replay before nothing is touched and the volume is given up.
const PEER: Duration = Duration::from_secs(30);

/// What was decided once for the whole operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Decision {
    /// Site that was active.
    source: String,
    /// Site that becomes active.
    target: String,
}

impl From<&BackendConfig> for Limits {
    fn from(config: &BackendConfig) -> Limits {
        Limits {
            concurrency: config.failover_concurrency,
            verdict: config.verdict_timeout,
            peer: PEER,
            demote: config.demote_timeout,
            promote: config.promote_timeout,
            writable: config.writable_timeout,
        }
    }
}

/// What became of the volumes of an operation.
#[derive(Debug, Default)]
struct Moved {
    /// Primary on the target.
    done: Vec<Volume>,
    /// Left behind: volume, why, and the site that serves it (`None`: none).
    failed: Vec<(Volume, Reason, Option<String>)>,
}

/// Fails the backend over to `requested` (`None`: the first configured target that is not active).
///
/// # Errors
/// Only `Cancelled` and `Database`: a failover that fails has its outcome in the rows, as upstream.
pub async fn failover(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    requested: Option<&str>,
) -> Result<()> {
    let _alone = backend.locks.lock("failover").await;
    let _closed = backend.gate.close(GRACE).await;
    let service = backend
        .db
        .read("service to fail over", async |conn| {
            let id = backend.service()?.id;
            db::service::get(conn, id).await
        })
        .await?;
    backend.set_service(service.clone());
    crash::point("failover:accepted");
    let decision = match decide(backend, operation, &service, requested).await {
        Ok(decision) => decision,
        Err(refusal) if refusal.code() == Code::Cancelled || refusal.is_transient() => return Err(refusal),
        Err(refusal) => return refuse(backend, operation, &service, refusal).await,
    };
    info!(
        backend = backend.host(),
        source = decision.source,
        target = decision.target,
        requested = requested.unwrap_or("(the first that is not active)"),
        "failover begins"
    );
    let retry = decision.source == decision.target;
    let volumes = candidates(backend, retry).await?;
    let strays = strays(backend, &volumes).await?;
    let moved = match move_all(backend, operation, &decision, volumes, &strays).await {
        Ok(moved) => moved,
        Err(refusal) if refusal.code() == Code::Cancelled || refusal.is_transient() => return Err(refusal),
        Err(refusal) => return refuse(backend, operation, &service, refusal).await,
    };
    crash::point("failover:all_moved");
    finish(backend, context, operation, &service, &decision, &moved).await
}

/// Moves volumes in `failover-error` to where their backend is active (`scoria-manage replication retry`).
///
/// # Errors
/// As [`failover`].
pub async fn retry(backend: &Backend, operation: &Operation, only: Option<&[String]>) -> Result<()> {
    let _alone = backend.locks.lock("failover").await;
    let _closed = backend.gate.close(GRACE).await;
    let active = backend.active_name();
    let decision = Decision { source: active.clone(), target: active };
    let mut volumes = candidates(backend, true).await?;
    volumes.retain(|v| only.is_none_or(|ids| ids.contains(&v.id)));
    let strays = strays(backend, &volumes).await?;
    let moved = move_all(backend, operation, &decision, volumes, &strays).await?;
    let detail = summary(&moved);
    backend
        .journal
        .complete(operation, &Outcome { detail: Some(detail), ..outcome(&moved) }, async |conn| {
            write_volumes(conn, backend, &decision, &moved).await
        })
        .await
}

async fn decide(
    backend: &Backend,
    operation: &Operation,
    service: &Service,
    requested: Option<&str>,
) -> Result<Decision> {
    if let Some((name, decision)) = operation.data::<Decision>().await?
        && name == DECIDED
    {
        return Ok(decision);
    }
    let active = target::active(service.active_backend_id.as_deref()).to_owned();
    let target = match target::choose(&backend.device_names(), &active, requested) {
        // Asked for again: what an earlier attempt could not move is tried again.
        Err(refusal) if requested == Some(active.as_str()) && backend.is_replicated() => {
            if candidates(backend, true).await?.is_empty() {
                return Err(refusal);
            }
            active.clone()
        }
        chosen => chosen?,
    };
    backend.site(&target)?;
    let decision = Decision { source: active, target };
    operation.step(DECIDED, &decision).await?;
    crash::point("failover:decided");
    Ok(decision)
}

/// The volumes to move: all replicated ones, or only those that an earlier attempt left behind.
async fn candidates(backend: &Backend, retry: bool) -> Result<Vec<Volume>> {
    let scope = backend.scope();
    let mut volumes = backend
        .db
        .read("volumes to fail over", async |conn| db::failover::replicated(conn, &scope).await)
        .await?;
    // A row that Cinder has not given a replication status is not mirrored (invariant 4), and one that is
    // being created has no image to move: it will be made on the new site.
    volumes.retain(|v| v.replication_status.is_some() && v.status != "creating");
    if retry {
        volumes
            .retain(|v| v.replication_status.as_deref() == Some(ReplicationStatus::FailoverError.as_str()));
    }
    Ok(volumes)
}

async fn strays(backend: &Backend, volumes: &[Volume]) -> Result<HashMap<String, String>> {
    let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
    let found = backend.db.read("stray volumes", async |conn| db::stray::list(conn, &ids).await).await?;
    Ok(found.into_iter().collect())
}

/// Runs one engine for each site that volumes come from: normally one, more when an earlier failover left
/// some behind.
async fn move_all(
    backend: &Backend,
    operation: &Operation,
    decision: &Decision,
    volumes: Vec<Volume>,
    strays: &HashMap<String, String>,
) -> Result<Moved> {
    let steps: HashMap<String, Step> = operation
        .items()
        .await?
        .into_iter()
        .filter_map(|item| Some((item.resource_id.clone(), item.parse().ok()?)))
        .collect();
    let mut by_source: BTreeMap<String, Vec<Volume>> = BTreeMap::new();
    for volume in volumes {
        let stray = strays.get(&volume.id).filter(|site| **site != decision.target);
        let source = match stray {
            Some(site) => site.clone(),
            None if decision.source != decision.target => decision.source.clone(),
            // A retry of a volume that is served nowhere, or on the target already: from the other side.
            None => other_site(backend, &decision.target),
        };
        by_source.entry(source).or_default().push(volume);
    }
    if by_source.is_empty() && decision.source != decision.target {
        // Nothing to move, but a switch to a dead site must still be refused.
        by_source.insert(decision.source.clone(), Vec::new());
    }
    let ledger = Arc::new(JournalLedger::new(operation.clone()));
    let mut moved = Moved::default();
    for (source, volumes) in by_source {
        let limits = Limits::from(&backend.config);
        let engine = Engine::new(
            &backend.config.pool,
            backend.site(&source)?,
            backend.site(&decision.target)?,
            limits,
            ledger.clone(),
        )
        .await;
        let (_, target_verdict) = engine.verdicts().await;
        let begun = volumes.iter().any(|v| steps.contains_key(&v.id));
        if target_verdict == Verdict::Dead && !begun {
            return Err(Error::new(
                Code::UnableToFailOver,
                format!("Site {} is dead: nothing was moved to it", decision.target),
            ));
        }
        if decision.source != decision.target && decision.target != DEFAULT {
            displace(backend, operation).await?;
        }
        let jobs = volumes
            .iter()
            .map(|v| Job {
                volume_id: v.id.clone(),
                image: backend.image_name(v),
                step: steps.get(&v.id).cloned().unwrap_or(Step::Pending),
            })
            .collect();
        let outcome = tokio::select! {
            outcome = engine.run(jobs) => outcome?,
            () = operation.lost().cancelled() => {
                return Err(Error::new(Code::Cancelled, "The failover was taken over by another instance"));
            }
        };
        for volume in volumes {
            match outcome.get(&volume.id).and_then(failure) {
                None => moved.done.push(volume),
                Some(reason) => {
                    let served = match reason.served_from() {
                        ServedFrom::Source => Some(source.clone()),
                        ServedFrom::Target => Some(decision.target.clone()),
                        ServedFrom::Nowhere => None,
                    };
                    moved.failed.push((volume, reason, served));
                }
            }
        }
    }
    Ok(moved)
}

/// The site that is not `target`: the primary, or the first device when the primary is meant.
fn other_site(backend: &Backend, target: &str) -> String {
    if target != DEFAULT {
        return DEFAULT.to_owned();
    }
    backend.device_names().into_iter().next().unwrap_or_else(|| DEFAULT.to_owned())
}

/// Volumes that are not replicated stay behind, in `error`, and what they were is remembered.
async fn displace(backend: &Backend, operation: &Operation) -> Result<()> {
    let scope = backend.scope();
    let changed = operation
        .write("volumes that stay behind", async |conn| {
            db::displaced::remember(conn, &scope).await?;
            db::failover::mark_not_capable(conn, &scope).await
        })
        .await?;
    if changed.volumes > 0 {
        warn!(
            backend = backend.host(),
            volumes = changed.volumes,
            snapshots = changed.snapshots,
            "volumes that are not replicated are out of reach and in error until failback"
        );
    }
    Ok(())
}

/// The failover is not done at all: the row says so as upstream's would.
async fn refuse(backend: &Backend, operation: &Operation, service: &Service, refusal: Error) -> Result<()> {
    error!(backend = backend.host(), error = %refusal, "failover refused, nothing was moved");
    let status = match refusal.code() {
        Code::InvalidReplicationTarget => unchanged(service),
        _ => ReplicationStatus::FailoverError,
    };
    let mut changes =
        ServiceChanges { replication_status: Some(status.as_str().to_owned()), ..ServiceChanges::default() };
    if status == ReplicationStatus::FailoverError {
        changes.disabled = Some(true);
    }
    let cluster = backend.config.cluster.clone();
    let after = backend
        .journal
        .complete(operation, &Outcome::failed(&refusal), async |conn| {
            write_service(conn, service.id, cluster.as_deref(), &changes).await?;
            db::service::get(conn, service.id).await
        })
        .await?;
    backend.set_service(after);
    Ok(())
}

/// What the row said before the API set `failing-over`.
fn unchanged(service: &Service) -> ReplicationStatus {
    match target::active(service.active_backend_id.as_deref()) {
        DEFAULT => ReplicationStatus::Enabled,
        _ => ReplicationStatus::FailedOver,
    }
}

async fn finish(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    service: &Service,
    decision: &Decision,
    moved: &Moved,
) -> Result<()> {
    let changes = service_after(&decision.target, service.frozen);
    let cluster = backend.config.cluster.clone();
    let scope = backend.scope();
    let detail = summary(moved);
    let after = backend
        .journal
        .complete(operation, &Outcome { detail: Some(detail.clone()), ..outcome(moved) }, async |conn| {
            write_volumes(conn, backend, decision, moved).await?;
            if decision.target == DEFAULT {
                db::displaced::restore(conn, &scope).await?;
            }
            let groups = db::failover::replicated_groups(conn, &scope).await?;
            let ids: Vec<String> = groups.into_iter().map(|g| g.id).collect();
            db::failover::set_group_status(conn, &ids, settled(&decision.target)).await?;
            write_service(conn, service.id, cluster.as_deref(), &changes).await?;
            db::service::get(conn, service.id).await
        })
        .await?;
    backend.set_service(after);
    backend.activate(&decision.target)?;
    info!(backend = backend.host(), target = decision.target, "failover is over: {detail}");
    if let Some(cluster) = &backend.config.cluster
        && let Err(error) =
            backend.peers.volumes.failover_completed(context, cluster, updates(&changes)).await
    {
        // Members read the row when they start and when they next report: only the moment is lost.
        warn!(backend = backend.host(), %error, "could not tell the other members that the failover is over");
    }
    Ok(())
}

fn outcome(moved: &Moved) -> Outcome {
    Outcome {
        ending: if moved.failed.is_empty() {
            crate::journal::Ending::Succeeded
        } else {
            crate::journal::Ending::Failed
        },
        ..Outcome::succeeded()
    }
}

fn summary(moved: &Moved) -> String {
    let mut text = format!("{} moved, {} not", moved.done.len(), moved.failed.len());
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, reason, _) in &moved.failed {
        *reasons.entry(reason.text()).or_default() += 1;
    }
    for (reason, count) in reasons {
        text.push_str(&format!("; {count}: {reason}"));
    }
    text
}

/// Replication status of volumes, groups and service once `target` is active.
fn settled(target: &str) -> ReplicationStatus {
    match target {
        DEFAULT => ReplicationStatus::Enabled,
        _ => ReplicationStatus::FailedOver,
    }
}

/// The service's row after a failover, value by value as upstream writes it.
fn service_after(target: &str, frozen: bool) -> ServiceChanges {
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

/// The same as `failover_completed` carries it.
fn updates(changes: &ServiceChanges) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("replication_status".into(), json!(changes.replication_status));
    map.insert("active_backend_id".into(), json!(changes.active_backend_id.clone().flatten()));
    map.insert("disabled".into(), json!(changes.disabled));
    map.insert("disabled_reason".into(), json!(changes.disabled_reason.clone().flatten()));
    map
}

async fn write_service(
    conn: &mut Conn,
    id: i32,
    cluster: Option<&str>,
    changes: &ServiceChanges,
) -> Result<()> {
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
    db::service::update(conn, id, changes).await
}

async fn write_volumes(conn: &mut Conn, backend: &Backend, decision: &Decision, moved: &Moved) -> Result<()> {
    let ids = |volumes: &[&Volume]| volumes.iter().map(|v| v.id.clone()).collect::<Vec<_>>();
    let status = settled(&decision.target);
    let (fallen, well): (Vec<&Volume>, Vec<&Volume>) = moved.done.iter().partition(|v| {
        v.status == "error"
            && v.replication_status.as_deref() == Some(ReplicationStatus::FailoverError.as_str())
    });
    db::failover::set_replication_status(conn, &ids(&well), status).await?;
    db::failover::recover(conn, &ids(&fallen), status).await?;
    db::failover::recover_snapshots(conn, &ids(&fallen)).await?;
    let done: Vec<String> = moved.done.iter().map(|v| v.id.clone()).collect();
    db::stray::forget(conn, &done).await?;
    db::failover::set_extended_status(conn, &done, None).await?;

    let mut by_place: BTreeMap<(Option<&str>, &str), Vec<String>> = BTreeMap::new();
    for (volume, reason, served) in &moved.failed {
        by_place.entry((served.as_deref(), advice_key(*reason))).or_default().push(volume.id.clone());
    }
    for ((served, _), ids) in &by_place {
        match served {
            Some(site) => {
                db::failover::set_replication_status(conn, ids, ReplicationStatus::FailoverError).await?;
                if *site == decision.target {
                    db::stray::forget(conn, ids).await?;
                } else {
                    db::stray::record(conn, ids, site).await?;
                }
            }
            None => {
                db::failover::mark_failed(conn, ids).await?;
            }
        }
    }
    let mut by_advice: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (volume, reason, served) in &moved.failed {
        by_advice
            .entry(advice(backend, decision, *reason, served.as_deref()))
            .or_default()
            .push(volume.id.clone());
    }
    for (text, ids) in by_advice {
        db::failover::set_extended_status(conn, &ids, Some(&text)).await?;
    }
    Ok(())
}

fn advice_key(reason: Reason) -> &'static str {
    reason.text()
}

/// What an operator reads in `replication_extended_status` (at most 255 characters).
fn advice(backend: &Backend, decision: &Decision, reason: Reason, served: Option<&str>) -> String {
    let host = backend.host();
    let command = match reason {
        Reason::BothPrimary => {
            let loser = match served {
                Some(site) if site == decision.target => &decision.source,
                _ => &decision.target,
            };
            format!("scoria-manage replication resync --backend {host} --discard {loser}")
        }
        _ => format!("scoria-manage replication retry --backend {host}"),
    };
    let place = served.map_or_else(String::new, |site| format!(", served from {site}"));
    let mut text = format!("{}{place}; then: {command}", reason.text());
    while text.len() > 255 {
        text.pop();
    }
    text
}

/// `failover_completed`: another member of the Cinder cluster has moved the volumes; this one follows.
/// An update without `active_backend_id` (the failover was refused) changes no site, and an empty one means
/// the primary, not "choose for yourself" (reference replication.md 3.5, hazards 1 and 2).
///
/// # Errors
/// `Database`; `InvalidReplicationTarget` for a site that this member does not know: its row says `error`.
pub async fn completed(backend: &Backend, updates: &Map<String, Value>) -> Result<()> {
    let text = |key: &str| updates.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut changes = ServiceChanges {
        replication_status: text("replication_status"),
        disabled: updates.get("disabled").and_then(Value::as_bool),
        disabled_reason: updates.contains_key("disabled_reason").then(|| text("disabled_reason")),
        active_backend_id: updates.contains_key("active_backend_id").then(|| text("active_backend_id")),
        ..ServiceChanges::default()
    };
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
    let id = backend.service()?.id;
    let after = backend
        .db
        .write("failover completed", async |conn| {
            db::service::update(conn, id, &changes).await?;
            db::service::get(conn, id).await
        })
        .await?;
    backend.set_service(after);
    switched
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_row_is_upstreams() {
        let over = service_after("site-b", false);
        assert_eq!(over.active_backend_id, Some(Some("site-b".into())));
        assert_eq!(over.disabled_reason, Some(Some("failed-over".into())));
        assert_eq!(over.replication_status.as_deref(), Some("failed-over"));
        let back = service_after(DEFAULT, true);
        // Empty, not NULL, after a failback (observed.md).
        assert_eq!(back.active_backend_id, Some(Some(String::new())));
        assert_eq!((back.disabled, back.disabled_reason), (Some(true), Some(Some("frozen".into()))));
        assert_eq!(service_after(DEFAULT, false).disabled_reason, Some(Some(String::new())));
    }
}
