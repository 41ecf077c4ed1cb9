//! `failover_replication`: the members of a group go to another site, and nothing else of their backend does.
//!
//! The engine is that of a backend's failover, with the same proofs before anything is forced. What differs is
//! what follows: the backend stays where it is, so each member's site is recorded beside it, in the transaction
//! that says it has moved. One more group, one volume or any set can be moved in the same way.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::{Set, Wish, group_failed, ids, message, refuse, replication, tell_end};
use crate::backend::Backend;
use crate::backend::locks::NamedGuard;
use crate::context::RequestContext;
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{GroupEvent, ReplicationStatus, Volume};
use crate::replication::failover::{DECIDED, Decision, GRACE, Moved, Whole, advice, move_all, summary};
use crate::replication::fence;
use crate::replication::intent::Intent;
use crate::replication::news;
use crate::replication::standing::settled;
use crate::replication::target;
use crate::volume::crash;
use crate::volume::group::tell;

const WISH: Wish = Wish::Failover;

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Failover {
    /// The group.
    pub group_id: String,
    /// Whether members may be in use.
    pub allow_attached: bool,
    /// `default`, a `backend_id`, or `None` for the first that the group is not on.
    pub target: Option<String>,
    /// What the operator said of the site that they leave.
    pub intent: Intent,
}

/// Moves the members of a group to another site, or back. A group that is gone is a success.
///
/// # Errors
/// Only when nothing could be recorded, or when somebody else goes on with it.
pub async fn failover(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Failover,
) -> Result<()> {
    let id = &request.group_id;
    let _alone = backend.locks.lock("failover").await;
    let Some(set) = Set::read(backend, id, WISH).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    let _held = hold(backend, &set.volumes).await?;
    let Some(set) = Set::read(backend, id, WISH).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    let begun: Option<Decision> = operation.reached(DECIDED).await?;
    // One that has begun is brought to an end, whatever happened to its members since.
    let checked = match &begun {
        Some(_) => Ok(()),
        None => check(&set, request.allow_attached),
    };
    if let Err(refusal) = checked {
        return refuse(backend, context, operation, &set, WISH, refusal).await;
    }
    crash::point("failover_replication:accepted");
    tell(backend, context, WISH.event(false), &set.group, &set.volumes).await;
    let decision = match begun {
        Some(decision) => decision,
        None => match choose(backend, &set, request.target.as_deref()) {
            Ok(target) => {
                let decision = Decision { source: set.active.clone(), target, intent: request.intent };
                operation.step(DECIDED, &decision).await?;
                decision
            }
            Err(refusal) => return refuse(backend, context, operation, &set, WISH, refusal).await,
        },
    };
    info!(
        group.id = id,
        volumes = set.volumes.len(),
        target = decision.target,
        requested = request.target.as_deref().unwrap_or("(the first that it is not on)"),
        "failover of a group begins"
    );
    crash::point("failover_replication:decided");
    let moved = if set.volumes.is_empty() {
        Ok(Moved::default())
    } else {
        let volumes = set.volumes.clone();
        Box::pin(move_all(backend, operation, &decision, volumes, &set.strays, Whole::Set)).await
    };
    let moved = match moved {
        Ok(moved) => moved,
        Err(e) if e.code() == Code::Cancelled || e.is_transient() => return Err(e),
        // What the site is contradicts what the operator said of it.
        Err(refusal) if refusal.code() == Code::InvalidInput => {
            return refuse(backend, context, operation, &set, WISH, refusal).await;
        }
        // Nothing was moved, because the target is dead.
        Err(failure) => return super::give_up(backend, context, operation, id, WISH, failure).await,
    };
    crash::point("failover_replication:all_moved");
    finish(backend, context, operation, &set, &decision, &moved).await
}

fn check(set: &Set, allow_attached: bool) -> Result<()> {
    set.check(WISH)?;
    match set.volumes.iter().find(|v| v.status == "in-use") {
        Some(volume) if !allow_attached => Err(Error::new(
            Code::InvalidVolume,
            format!("Volume {} is attached but allow_attached_volume flag is False.", volume.id),
        )),
        _ => Ok(()),
    }
}

/// Where the group goes. Going to where it is already is no error: what an earlier attempt has left is moved.
fn choose(backend: &Backend, set: &Set, requested: Option<&str>) -> Result<String> {
    let here = set.volumes.first().map_or(set.active.as_str(), |v| set.site_of(v));
    let named = requested.filter(|r| !r.is_empty());
    if backend.is_replicated() && named == Some(here) {
        return Ok(here.to_owned());
    }
    target::choose(&backend.device_names(), here, named)
}

/// Keeps operations away from the members, and from what is made of them, until they have moved. One that hangs
/// on a dead site must not hold up the failover from it: it is given the time that a backend's failover gives.
pub(in crate::replication) async fn hold(backend: &Backend, volumes: &[Volume]) -> Result<Vec<NamedGuard>> {
    let mut names = BTreeSet::new();
    for volume in volumes {
        names.insert(volume.id.clone());
        names.insert(format!("{}-delete_volume", volume.id));
        let snapshots = backend
            .db
            .read("snapshots of volumes to move", async |conn| {
                db::snapshot::list_for_volume(conn, &volume.id).await
            })
            .await?;
        names.extend(snapshots.into_iter().map(|s| format!("{}-delete_snapshot", s.id)));
    }
    let until = Instant::now() + GRACE;
    let mut held = Vec::with_capacity(names.len());
    for name in names {
        match timeout_at(until, backend.locks.lock(&name)).await {
            Ok(guard) => held.push(guard),
            Err(_) => warn!(
                backend = backend.host(),
                lock = name,
                "an operation on a volume that is to be moved does not end: its failover goes on without it"
            ),
        }
    }
    Ok(held)
}

async fn finish(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    set: &Set,
    decision: &Decision,
    moved: &Moved,
) -> Result<()> {
    let id = &set.group.id;
    let detail = summary(moved);
    let failure = (!moved.failed.is_empty()).then(|| {
        Error::new(Code::UnableToFailOver, format!("Failover of group {id} to {}: {detail}", decision.target))
    });
    match &failure {
        None => info!(group.id = id, target = decision.target, "failover of a group is over: {detail}"),
        Some(failure) => {
            tracing::error!(group.id = id, error = %failure, "members of a group were left behind")
        }
    }
    let outcome = match &failure {
        None => Outcome { detail: Some(detail), ..Outcome::succeeded() },
        Some(failure) => Outcome::failed(failure),
    };
    let ttl = backend.globals.message_ttl;
    let status = settled(&decision.target);
    let still_ours = backend
        .journal
        .complete(operation, &outcome, async |conn| {
            write_volumes(conn, backend, decision, moved).await?;
            let Some(failure) = &failure else {
                let event = GroupEvent::ReplicationSettled;
                return db::group_replication::settle_group(conn, id, WISH.waiting(), event, status).await;
            };
            let ours = group_failed(conn, id, WISH).await?;
            if ours {
                db::message::create(conn, context, &message(id, failure), ttl).await?;
            }
            Ok(ours)
        })
        .await?;
    crash::point("failover_replication:written");
    news::left(backend, context, moved.failed.iter().map(|(volume, _, _)| volume.id.clone()).collect());
    if !still_ours {
        warn!(group.id = id, "the group was changed while it was failed over: its row is left alone");
    } else if failure.is_none() {
        tell_end(backend, context, id, WISH).await;
    }
    Ok(())
}

/// Where the members are from now on, and what their rows say of it. The row that tells which site is active is
/// locked, so that a failover of the backend that ends now sees these volumes, or we see that failover.
pub(in crate::replication) async fn write_volumes(
    conn: &mut Conn,
    backend: &Backend,
    decision: &Decision,
    moved: &Moved,
) -> Result<()> {
    let service = backend.service()?.id;
    let active = db::service::hold_active(conn, service, backend.config.cluster.as_deref()).await?;
    let active = active.map_or_else(|| backend.active_name(), |id| target::active(Some(&id)).to_owned());
    let waiting = WISH.waiting();
    let done = ids(&moved.done);
    let changes =
        VolumeChanges { replication_extended_status: Some(None), ..replication(settled(&decision.target)) };
    db::group_replication::settle_volumes(conn, &done, waiting, &changes).await?;
    served_from(conn, &done, &decision.target, &active).await?;

    fence::settle(conn, backend, moved).await?;
    let mut left: BTreeMap<(Option<&str>, String), Vec<String>> = BTreeMap::new();
    for (volume, reason, served) in &moved.failed {
        let text = advice(backend, decision, *reason, served.as_deref());
        left.entry((served.as_deref(), text)).or_default().push(volume.id.clone());
    }
    for ((served, text), ids) in left {
        let extended = Some(Some(text));
        match served {
            Some(site) => {
                let failed = replication(ReplicationStatus::FailoverError);
                let changes = VolumeChanges { replication_extended_status: extended, ..failed };
                db::group_replication::settle_volumes(conn, &ids, waiting, &changes).await?;
                served_from(conn, &ids, site, &active).await?;
            }
            None => {
                db::failover::mark_failed(conn, &ids).await?;
                db::failover::set_extended_status(conn, &ids, extended.flatten().as_deref()).await?;
            }
        }
    }
    Ok(())
}

async fn served_from(conn: &mut Conn, ids: &[String], site: &str, active: &str) -> Result<()> {
    if site == active { db::stray::forget(conn, ids).await } else { db::stray::record(conn, ids, site).await }
}
