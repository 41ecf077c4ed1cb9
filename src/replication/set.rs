//! One volume, or any set of them, goes to another site by itself, and nothing else of its backend does.
//!
//! It is what a group's failover is, without a group: the same engine with the same proofs, and each member's
//! site is recorded beside it. What is different is who gives the order: a person, who named these volumes, so a
//! name that fits nothing is an error and never ignored.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::candidates::strays;
use super::failover::{DECIDED, Decision, Moved, Whole, move_all, outcome, summary};
use super::group::{hold_volumes, write_volumes};
use super::intent::Intent;
use super::standing::settled;
use super::target;
use crate::backend::Backend;
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn, failing_over};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::transition::BEING_MADE_OR_DELETED;
use crate::model::{ReplicationStatus, Volume};
use crate::volume::crash;

/// The request.
#[derive(Debug, Clone)]
pub struct Move {
    /// The volumes.
    pub volumes: Vec<String>,
    /// `default`, a `backend_id`, or `None` for the first that they are not on.
    pub target: Option<String>,
    /// What the operator said of the site that they leave.
    pub intent: Intent,
}

/// The decision, and what the volumes were before they waited.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Begun {
    decision: Decision,
    /// Replication status by volume id.
    before: BTreeMap<String, String>,
}

/// Moves the volumes. Where each of them ended is in its row.
///
/// # Errors
/// What was refused: nothing has been touched then. `Cancelled` and `Database` when somebody goes on with it.
pub async fn failover(backend: &Backend, operation: &Operation, request: Move) -> Result<()> {
    let _alone = backend.locks.lock("failover").await;
    let begun: Option<Begun> = operation.reached(DECIDED).await?;
    let ids = match &begun {
        Some(begun) => begun.before.keys().cloned().collect(),
        None => request.volumes.clone(),
    };
    let volumes = read(backend, &ids).await?;
    let _held = hold_volumes(backend, &volumes).await?;
    crash::point("move:accepted");
    let begun = match begun {
        Some(begun) => begun,
        None => begin(backend, operation, &request).await?,
    };
    crash::point("move:decided");
    // Their rows as they are now that nobody else works on them.
    let ids: Vec<String> = begun.before.keys().cloned().collect();
    let volumes = read(backend, &ids).await?;
    let strays = strays(backend, &volumes).await?;
    let decision = &begun.decision;
    let moved = move_all(backend, operation, decision, volumes, &strays, Whole::Set);
    let moved = match Box::pin(moved).await {
        Ok(moved) => moved,
        Err(e) if e.code() == Code::Cancelled || e.is_transient() => return Err(e),
        Err(refusal) => return give_back(backend, operation, &begun, refusal).await,
    };
    crash::point("move:all_moved");
    finish(backend, operation, &begun, &moved).await
}

async fn read(backend: &Backend, ids: &[String]) -> Result<Vec<Volume>> {
    backend.db.read("volumes to move", async |conn| db::volume::get_many(conn, ids).await).await
}

/// Decides, and lets the volumes wait: one transaction.
async fn begin(backend: &Backend, operation: &Operation, request: &Move) -> Result<Begun> {
    let scope = backend.scope();
    let (found, strays) = backend
        .db
        .read("volumes to move", async |conn| {
            let found = db::failover::replicated(conn, &scope).await?;
            Ok((found, db::stray::list(conn, &request.volumes).await?))
        })
        .await?;
    let strays: HashMap<String, String> = strays.into_iter().collect();
    let active = backend.active_name();
    let target = choose(backend, &request.volumes, &strays, request.target.as_deref())?;
    let chosen = admit(&found, &request.volumes, &strays, &active, &target, backend.host())?;
    let decision = Decision { source: active, target, intent: request.intent };
    info!(
        backend = backend.host(),
        volumes = chosen.len(),
        target = decision.target,
        requested = request.target.as_deref().unwrap_or("(the first that they are not on)"),
        intent = decision.intent.as_str(),
        "volumes are moved by themselves"
    );
    operation
        .write("volumes begin to move", async |conn| {
            let before = failing_over::some_volumes(conn, &chosen).await?;
            if let Some(changed) = chosen.iter().find(|id| !before.contains_key(*id)) {
                return Err(Error::new(
                    Code::Conflict,
                    format!("Volume {changed} was changed by somebody else in this moment; look again"),
                ));
            }
            let begun = Begun { decision: decision.clone(), before };
            operation.step_in(conn, DECIDED, &begun).await?;
            Ok(begun)
        })
        .await
}

/// The site to move volumes to: the one that is named, or the first that the first of them is not on.
///
/// # Errors
/// `InvalidReplicationTarget` as for a backend; where each volume is, is [`admit`]'s to see.
pub fn choose(
    backend: &Backend,
    volumes: &[String],
    strays: &HashMap<String, String>,
    requested: Option<&str>,
) -> Result<String> {
    let active = backend.active_name();
    let here = site_of(volumes.first().map_or("", String::as_str), strays, &active);
    let target = match requested.filter(|t| !t.is_empty()) {
        Some(named) => target::choose(&backend.device_names(), "", Some(named))?,
        None => target::choose(&backend.device_names(), here, None)?,
    };
    backend.site(&target)?;
    Ok(target)
}

fn site_of<'a>(id: &str, strays: &'a HashMap<String, String>, active: &'a str) -> &'a str {
    strays.get(id).map_or(active, String::as_str)
}

/// Which of the volumes that were named have to be moved: all that can be, but those that are on `target` already.
/// `found`: the backend's replicated volumes.
///
/// # Errors
/// `InvalidVolume` for one that is not the backend's, is not mirrored, or is being made, deleted or moved;
/// `InvalidReplicationTarget` when all are there already.
pub fn admit(
    found: &[Volume],
    named: &[String],
    strays: &HashMap<String, String>,
    active: &str,
    target: &str,
    backend: &str,
) -> Result<Vec<String>> {
    let wrong = |text: String| Err(Error::new(Code::InvalidVolume, text));
    let mut chosen = Vec::with_capacity(named.len());
    for id in named {
        let Some(volume) = found.iter().find(|v| v.id == *id) else {
            return wrong(format!("Volume {id} is not a replicated volume of backend {backend}"));
        };
        let status = volume.replication_status.as_deref().and_then(ReplicationStatus::parse);
        let failed = status == Some(ReplicationStatus::FailoverError);
        match status {
            Some(
                ReplicationStatus::Enabled | ReplicationStatus::FailedOver | ReplicationStatus::FailoverError,
            ) => {}
            _ => {
                let status = volume.replication_status.as_deref().unwrap_or("NULL");
                return wrong(format!("Volume {id} cannot be moved: its replication_status is {status}"));
            }
        }
        if BEING_MADE_OR_DELETED.contains(&volume.status.as_str()) {
            return wrong(format!("Volume {id} cannot be moved: it is {}", volume.status));
        }
        if failed || site_of(id, strays, active) != target {
            chosen.push(id.clone());
        }
    }
    if chosen.is_empty() {
        let what = if named.is_empty() { "No volume was named" } else { "The volumes are on it already" };
        return Err(Error::new(Code::InvalidReplicationTarget, format!("Not moved to {target}: {what}")));
    }
    chosen.sort();
    chosen.dedup();
    Ok(chosen)
}

async fn finish(backend: &Backend, operation: &Operation, begun: &Begun, moved: &Moved) -> Result<()> {
    let decision = &begun.decision;
    let detail = summary(moved);
    info!(backend = backend.host(), target = decision.target, "the move of volumes is over: {detail}");
    let failed = ReplicationStatus::FailoverError.as_str();
    // Those that an earlier failover had given up, and that are served again.
    let back: Vec<String> = moved
        .done
        .iter()
        .filter(|v| v.status == "error" && begun.before.get(&v.id).is_some_and(|s| s == failed))
        .map(|v| v.id.clone())
        .collect();
    let outcome = Outcome { detail: Some(detail), ..outcome(moved) };
    let scope = backend.scope();
    backend
        .journal
        .complete(operation, &outcome, async |conn| {
            write_volumes(conn, backend, decision, moved).await?;
            db::failover::recover(conn, &back, settled(&decision.target)).await?;
            db::displaced::recover_snapshots(conn, &back).await?;
            db::group_replication::reunite(conn, &scope).await
        })
        .await?;
    crash::point("move:written");
    Ok(())
}

/// Nothing was moved: every volume is what it was.
async fn give_back(backend: &Backend, operation: &Operation, begun: &Begun, refusal: Error) -> Result<()> {
    error!(backend = backend.host(), error = %refusal, "volumes are not moved, nothing was touched");
    backend
        .journal
        .complete(operation, &Outcome::failed(&refusal), async |conn| settle(conn, &begun.before).await)
        .await
}

async fn settle(conn: &mut Conn, statuses: &BTreeMap<String, String>) -> Result<()> {
    let mut by_status: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (id, status) in statuses {
        by_status.entry(status).or_default().push(id.clone());
    }
    for (status, ids) in by_status {
        let changes =
            VolumeChanges { replication_status: Some(Some(status.to_owned())), ..VolumeChanges::default() };
        let waiting = ReplicationStatus::FailingOver;
        db::group_replication::settle_volumes(conn, &ids, waiting, &changes).await?;
    }
    Ok(())
}

/// Ends the order after a defect. Where a volume is primary is not known then: all that still wait are
/// `failover-error`, and a retry looks.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(backend: &Backend, operation: &Operation, failure: Error) -> Result<()> {
    let begun: Option<Begun> = operation.reached(DECIDED).await?;
    warn!(backend = backend.host(), error = %failure, "the move of volumes was given up");
    let failed = ReplicationStatus::FailoverError.as_str().to_owned();
    let statuses: BTreeMap<String, String> =
        begun.into_iter().flat_map(|b| b.before.into_keys()).map(|id| (id, failed.clone())).collect();
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| settle(conn, &statuses).await)
        .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn volume(id: &str, replication: Option<&str>) -> Volume {
        Volume {
            id: id.into(),
            status: "in-use".into(),
            replication_status: replication.map(str::to_owned),
            ..Volume::default()
        }
    }

    fn chosen(found: &[Volume], named: &[&str], strays: &[(&str, &str)], to: &str) -> Result<Vec<String>> {
        let named: Vec<String> = named.iter().map(|n| (*n).to_owned()).collect();
        let strays = strays.iter().map(|(v, s)| ((*v).to_owned(), (*s).to_owned())).collect();
        admit(found, &named, &strays, "default", to, "node1@ceph")
    }

    #[test]
    fn what_is_there_already_is_not_moved_and_nothing_else_is_refused() {
        let found = [
            volume("a", Some("enabled")),
            volume("b", Some("failed-over")),
            volume("c", Some("failover-error")),
        ];
        let strays = [("b", "west"), ("c", "west")];
        assert_eq!(chosen(&found, &["a", "b", "c"], &strays, "west").unwrap(), ["a", "c"]);
        assert_eq!(chosen(&found, &["a", "b"], &strays, "default").unwrap(), ["b"]);
        let refused = chosen(&found, &["b"], &strays, "west").unwrap_err();
        assert_eq!(refused.code(), Code::InvalidReplicationTarget);
        assert_eq!(chosen(&found, &[], &strays, "west").unwrap_err().code(), Code::InvalidReplicationTarget);
    }

    #[test]
    fn a_name_that_fits_nothing_is_an_error() {
        let making = Volume { status: "creating".into(), ..volume("m", Some("enabled")) };
        let found =
            [volume("a", Some("enabled")), volume("x", None), volume("w", Some("failing-over")), making];
        for name in ["x", "w", "m", "somebody-else's"] {
            assert_eq!(chosen(&found, &["a", name], &[], "west").unwrap_err().code(), Code::InvalidVolume);
        }
    }
}
