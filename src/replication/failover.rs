//! `failover_host`, `failover` and failback of a whole backend: the rows around the engine.
//!
//! An operator orders it on the worst day of the year and may kill us half way. So the decision (where
//! from, where to) and every volume's step are in the journal, everything here can be run again from the
//! beginning, and all rows change in one transaction at the end. Nothing is discarded: a volume that
//! cannot be moved safely stays where it is primary, in `failover-error`, with the way out written into its
//! `replication_extended_status` (reference replication.md 3.5).

use futures::future::BoxFuture;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::candidates::{candidates, is_failover_error, is_retried, movable, strays};
use super::engine::{Engine, Job, Limits, failure};
use super::fence;
use super::intent::Intent;
use super::ledger::JournalLedger;
use super::news;
use super::plan::{Reason, ServedFrom, Step};
use super::standing::{self, Telling};
use super::target::{self, DEFAULT};
use super::verdict::Verdict;
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db::service::ServiceChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::journal::{Ending, Operation, Outcome};
use crate::model::{ReplicationStatus, Service, Volume};
use crate::volume::crash;

/// How long running operations may take to leave before a failover goes on without them.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Journal step with the [`Decision`].
pub(super) const DECIDED: &str = "decided";
/// What was decided once for the whole operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Decision {
    /// Site that was active.
    pub(super) source: String,
    /// Site that becomes active, or, when not all volumes of a backend move, that the volumes go to.
    pub(super) target: String,
    /// What the operator said of the source.
    #[serde(default)]
    pub(super) intent: Intent,
}

/// What became of the volumes of an operation.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Primary on the target.
    pub(super) done: Vec<Volume>,
    /// Left behind: volume, why, and the site that serves it (`None`: none).
    pub(super) failed: Vec<(Volume, Reason, Option<String>)>,
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
    failover_as(backend, context, operation, requested, Intent::Automatic).await
}

/// The same with what an operator says of the site that is left.
///
/// # Errors
/// As [`failover`].
pub async fn failover_as(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    requested: Option<&str>,
    intent: Intent,
) -> Result<()> {
    let _alone = backend.locks.local("failover").await;
    if let Some(telling) = Telling::left(operation).await? {
        // Everything was written before a crash: only the others may not have heard of it.
        return telling.tell(backend, context, operation).await;
    }
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
    let decision = match decide(backend, operation, &service, requested, intent).await {
        Ok(decision) => decision,
        Err(refusal) if refusal.code() == Code::Cancelled || refusal.is_transient() => return Err(refusal),
        Err(refusal) => return refuse(backend, context, operation, &service, refusal).await,
    };
    let active = target::active(service.active_backend_id.as_deref());
    if operation.is_adopted() && active != decision.source {
        // Another service has moved the backend while this was interrupted: the row says what is true.
        let reason = format!("the backend has been moved to {active} meanwhile, by another service");
        warn!(backend = backend.host(), reason, "an interrupted failover is given up");
        return backend.journal.finish(operation, &Outcome::abandoned(&reason)).await;
    }
    info!(
        backend = backend.host(),
        source = decision.source,
        target = decision.target,
        requested = requested.unwrap_or("(the first that is not active)"),
        intent = decision.intent.as_str(),
        "failover begins"
    );
    let retry = decision.source == decision.target;
    let volumes = candidates(backend, retry).await?;
    let strays = strays(backend, &volumes).await?;
    news::begun(backend, context, &decision, &volumes);
    let moved = match move_all(backend, operation, &decision, volumes, &strays, Whole::Backend).await {
        Ok(moved) => moved,
        Err(refusal) if refusal.code() == Code::Cancelled || refusal.is_transient() => return Err(refusal),
        Err(refusal) => return refuse(backend, context, operation, &service, refusal).await,
    };
    crash::point("failover:all_moved");
    finish(backend, context, operation, &service, &decision, &moved).await
}

/// Moves volumes in `failover-error`, and the members of groups that a failover has torn apart, to where their backend is active (`scoria-manage replication retry`).
///
/// # Errors
/// As [`failover`].
pub async fn retry(backend: &Backend, operation: &Operation, only: Option<&[String]>) -> Result<()> {
    let _alone = backend.locks.local("failover").await;
    let _closed = backend.gate.close(GRACE).await;
    let active = backend.active_name();
    let decision = Decision { source: active.clone(), target: active, intent: Intent::Automatic };
    let mut volumes = candidates(backend, true).await?;
    volumes.retain(|v| only.is_none_or(|ids| ids.contains(&v.id)));
    let strays = strays(backend, &volumes).await?;
    let context = RequestContext::admin();
    news::begun(backend, &context, &decision, &volumes);
    let moved = move_all(backend, operation, &decision, volumes, &strays, Whole::Backend).await?;
    let outcome = Outcome { detail: Some(summary(&moved)), ..outcome(&moved) };
    backend
        .journal
        .complete(operation, &outcome, async |conn| {
            write_volumes(conn, backend, &decision, &moved).await?;
            db::group_replication::reunite(conn, &backend.scope()).await
        })
        .await?;
    news::over(backend, &context, operation, &outcome);
    Ok(())
}

async fn decide(
    backend: &Backend,
    operation: &Operation,
    service: &Service,
    requested: Option<&str>,
    intent: Intent,
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
            if !is_retried(backend).await? {
                return Err(refusal);
            }
            active.clone()
        }
        chosen => chosen?,
    };
    // Neither may be another cluster than its name stands for. One that is left may be dead: it is not waited for.
    backend.site(&active)?;
    Box::pin(backend.prove(&target)).await?;
    let decision = Decision { source: active, target, intent };
    operation.step(DECIDED, &decision).await?;
    crash::point("failover:decided");
    Ok(decision)
}

/// What the volumes of an operation are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    /// All that a backend has: those that are not replicated stay behind.
    Backend,
    /// A set of volumes that leaves the others where they are.
    Set,
}

/// Runs one engine for each site that volumes come from: normally one, more when an earlier failover left
/// some behind or took some along before.
pub(super) async fn move_all(
    backend: &Backend,
    operation: &Operation,
    decision: &Decision,
    volumes: Vec<Volume>,
    strays: &HashMap<String, String>,
    whole: Whole,
) -> Result<Moved> {
    let steps: HashMap<String, Step> = operation
        .items()
        .await?
        .into_iter()
        .filter_map(|item| Some((item.resource_id.clone(), item.parse().ok()?)))
        .collect();
    let mut by_source: BTreeMap<String, Vec<Volume>> = BTreeMap::new();
    for volume in volumes {
        let source = source_of(backend, decision, strays.get(&volume.id));
        by_source.entry(source).or_default().push(volume);
    }
    if by_source.is_empty() && decision.source != decision.target {
        // Nothing to move, but a switch to a dead site must still be refused.
        by_source.insert(decision.source.clone(), Vec::new());
    }
    let mut moved = Moved::default();
    for (source, volumes) in by_source {
        let limits = Limits::from(&backend.config);
        let ledger = Arc::new(JournalLedger::noting(operation.clone(), fence::note(backend, &source)));
        let engine = Engine::new(
            &backend.config.pool,
            backend.site(&source)?,
            backend.site(&decision.target)?,
            limits,
            ledger,
        )
        .await
        .with_intent(decision.intent);
        let (source_verdict, target_verdict) = engine.verdicts().await;
        // With several sources, what was moved from the first keeps the others from being refused.
        if steps.is_empty() && moved.done.is_empty() && moved.failed.is_empty() {
            decision.intent.admits(source_verdict, &source)?;
        }
        let begun = volumes.iter().any(|v| steps.contains_key(&v.id));
        if target_verdict == Verdict::Dead && !begun {
            return Err(Error::new(
                Code::UnableToFailOver,
                format!("Site {} is dead: nothing was moved to it", decision.target),
            ));
        }
        if whole == Whole::Backend && decision.source != decision.target && decision.target != DEFAULT {
            displace(backend, operation, &decision.target).await?;
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

/// The site that a volume leaves: where it is served.
pub(super) fn source_of(backend: &Backend, decision: &Decision, stray: Option<&String>) -> String {
    match stray.filter(|site| **site != decision.target) {
        Some(site) => site.clone(),
        None if decision.source != decision.target => decision.source.clone(),
        // A retry of a volume that is served nowhere, or on the target already: from the other side.
        None => other_site(backend, &decision.target),
    }
}

/// The site that is not `target`: the primary, or the first device when the primary is meant.
fn other_site(backend: &Backend, target: &str) -> String {
    if target != DEFAULT {
        return DEFAULT.to_owned();
    }
    backend.device_names().into_iter().next().unwrap_or_else(|| DEFAULT.to_owned())
}

/// Volumes that are not replicated stay behind, in `error`, and what they were is remembered.
async fn displace(backend: &Backend, operation: &Operation, target: &str) -> Result<()> {
    let scope = backend.scope();
    let changed = operation
        .write("volumes that stay behind", async |conn| {
            db::displaced::remember(conn, &scope, target).await?;
            db::failover::mark_not_capable(conn, &scope, target).await
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

/// The failover is not done at all: the rows say so as upstream's would.
async fn refuse(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    service: &Service,
    refusal: Error,
) -> Result<()> {
    error!(backend = backend.host(), error = %refusal, "failover refused, nothing was moved");
    let status = match refusal.code() {
        Code::InvalidReplicationTarget | Code::InvalidInput => standing::unchanged(service),
        _ => ReplicationStatus::FailoverError,
    };
    let mut changes =
        ServiceChanges { replication_status: Some(status.as_str().to_owned()), ..ServiceChanges::default() };
    if status == ReplicationStatus::FailoverError {
        changes.disabled = Some(true);
    }
    conclude(backend, context, operation, &changes, &Outcome::failed(&refusal), None).await
}

/// Ends a failover whose operation cannot be carried out: a defect, which another try did not cure.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    failure: Error,
) -> Result<()> {
    let _alone = backend.locks.local("failover").await;
    refuse(backend, context, operation, &backend.service()?, failure).await
}

async fn finish(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    service: &Service,
    decision: &Decision,
    moved: &Moved,
) -> Result<()> {
    let changes = standing::after(&decision.target, service.frozen);
    let detail = summary(moved);
    let outcome = Outcome { detail: Some(detail.clone()), ..outcome(moved) };
    info!(backend = backend.host(), target = decision.target, "failover is over: {detail}");
    conclude(backend, context, operation, &changes, &outcome, Some((decision, moved))).await
}

/// Volumes whose creation ended on the old site while the others were moved. The service's row is ours
/// already, so a creation that ends later finds out by itself (`volume::create`).
async fn leave_late(conn: &mut Conn, backend: &Backend, decision: &Decision, moved: &Moved) -> Result<()> {
    let scope = backend.scope();
    let known: HashSet<&str> =
        moved.done.iter().chain(moved.failed.iter().map(|(v, _, _)| v)).map(|v| v.id.as_str()).collect();
    let late: Vec<String> = movable(db::failover::replicated(conn, &scope).await?)
        .filter(|v| !known.contains(v.id.as_str()) && !is_failover_error(v))
        .map(|v| v.id)
        .collect();
    if !late.is_empty() {
        warn!(
            backend = backend.host(),
            volumes = late.len(),
            "volumes were made while the others were moved"
        );
        db::failover::set_replication_status(conn, &late, ReplicationStatus::FailoverError).await?;
        db::stray::record(conn, &late, &decision.source).await?;
        let advice = made_meanwhile(backend.host(), &decision.source);
        db::failover::set_extended_status(conn, &late, Some(&advice)).await?;
    }
    if decision.target != DEFAULT {
        db::displaced::remember(conn, &scope, &decision.target).await?;
        db::failover::mark_not_capable(conn, &scope, &decision.target).await?;
    }
    Ok(())
}

/// What an operator reads of a volume that was made on `site` while its backend left that site (at most 255
/// characters).
pub fn made_meanwhile(host: &str, site: &str) -> String {
    let text = format!(
        "made while its backend failed over, served from {site}; then: scoria-manage replication retry --backend {host}"
    );
    text.chars().take(255).collect()
}

/// The last transaction of a failover, and what follows from it. In a Cinder cluster the operation ends only
/// when the other members have been told.
async fn conclude(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    changes: &ServiceChanges,
    outcome: &Outcome,
    done: Option<(&Decision, &Moved)>,
) -> Result<()> {
    let telling = backend.config.cluster.as_ref().map(|_| Telling::new(changes, outcome));
    let active = standing::exclusive(backend).await;
    let after = match &telling {
        Some(telling) => {
            operation
                .write("end of a failover", async |conn| {
                    let after = write_rows(conn, backend, changes, done).await?;
                    telling.record(conn, operation).await?;
                    Ok(after)
                })
                .await?
        }
        None => {
            backend
                .journal
                .complete(operation, outcome, async |conn| write_rows(conn, backend, changes, done).await)
                .await?
        }
    };
    backend.set_service(after);
    if let Some((decision, _)) = done {
        backend.activate(&decision.target)?;
    }
    drop(active);
    crash::point("failover:written");
    news::over(backend, context, operation, outcome);
    match telling {
        Some(telling) => telling.tell(backend, context, operation).await,
        None => Ok(()),
    }
}

/// The rows of service and cluster come first: locked, they make creations that end at this moment wait,
/// or us for them, so that either sees the other ([`leave_late`]).
// Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
fn write_rows<'a>(
    conn: &'a mut Conn,
    backend: &'a Backend,
    changes: &'a ServiceChanges,
    done: Option<(&'a Decision, &'a Moved)>,
) -> BoxFuture<'a, Result<Service>> {
    Box::pin(async move {
        // Not the row of the beginning: it may have been removed and made again since.
        let service = backend.service()?;
        let after = standing::write(conn, &service, backend.config.cluster.as_deref(), changes).await?;
        let Some((decision, moved)) = done else { return Ok(after) };
        write_volumes(conn, backend, decision, moved).await?;
        if decision.source != decision.target {
            leave_late(conn, backend, decision, moved).await?;
        }
        let scope = backend.scope();
        if decision.target == DEFAULT && decision.source != DEFAULT {
            // What was made while the backend worked elsewhere, and is not replicated, has its image there.
            let made_there = db::displaced::others(conn, &scope).await?;
            db::stray::record(conn, &made_there, &decision.source).await?;
        }
        if decision.target == DEFAULT {
            db::displaced::restore(conn, &scope).await?;
        }
        let groups = db::failover::replicated_groups(conn, &scope).await?;
        let ids: Vec<String> = groups.into_iter().map(|g| g.id).collect();
        db::failover::set_group_status(conn, &ids, standing::settled(&decision.target)).await?;
        Ok(after)
    })
}

pub(super) fn outcome(moved: &Moved) -> Outcome {
    Outcome {
        ending: if moved.failed.is_empty() { Ending::Succeeded } else { Ending::Failed },
        ..Outcome::succeeded()
    }
}

pub(super) fn summary(moved: &Moved) -> String {
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

async fn write_volumes(conn: &mut Conn, backend: &Backend, decision: &Decision, moved: &Moved) -> Result<()> {
    let ids = |volumes: &[&Volume]| volumes.iter().map(|v| v.id.clone()).collect::<Vec<_>>();
    let status = standing::settled(&decision.target);
    let (fallen, well): (Vec<&Volume>, Vec<&Volume>) = moved.done.iter().partition(|v| {
        v.status == "error"
            && v.replication_status.as_deref() == Some(ReplicationStatus::FailoverError.as_str())
    });
    db::failover::set_replication_status(conn, &ids(&well), status).await?;
    db::failover::recover(conn, &ids(&fallen), status).await?;
    db::displaced::recover_snapshots(conn, &ids(&fallen)).await?;
    let done: Vec<String> = moved.done.iter().map(|v| v.id.clone()).collect();
    db::stray::forget(conn, &done).await?;
    db::failover::set_extended_status(conn, &done, None).await?;
    fence::settle(conn, backend, moved).await?;

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
pub(super) fn advice(backend: &Backend, decision: &Decision, reason: Reason, served: Option<&str>) -> String {
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
