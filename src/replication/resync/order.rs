//! `scoria-manage replication resync`: which volumes, which side is kept, and what the rows say afterwards.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::plan::Step;
use super::{Job, Limits, failure, run as resync};
use crate::backend::Backend;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::{Ending, Operation, Outcome};
use crate::model::Volume;
use crate::replication::ledger::JournalLedger;
use crate::replication::orders::keeper;

/// One question to a site.
const ANSWER: Duration = Duration::from_secs(10);
/// Until a copy that was found demoted must replay by itself.
const SETTLE: Duration = Duration::from_secs(60);
/// Until a new copy must replay. A full sync of a large volume takes as long as it takes; the order can be
/// given again.
const SYNC: Duration = Duration::from_secs(24 * 3600);

/// Discards the copies on `discard` of the backend's replicated volumes, or of `only` these.
///
/// # Errors
/// `InvalidReplicationTarget` for an unknown site, or one that nothing else could replace.
pub async fn run(
    backend: &Backend,
    operation: &Operation,
    discard: &str,
    only: Option<&[String]>,
) -> Result<()> {
    let loser = backend.site(discard)?;
    let active = backend.active_name();
    let (volumes, strays) = read(backend, only).await?;
    let steps: HashMap<String, Step> = operation
        .items()
        .await?
        .into_iter()
        .filter_map(|item| Some((item.resource_id.clone(), item.parse().ok()?)))
        .collect();
    let mut by_keeper: BTreeMap<String, Vec<Job>> = BTreeMap::new();
    for volume in &volumes {
        let Some(keep) = keeper(discard, &active, strays.get(&volume.id).map(String::as_str)) else {
            return Err(Error::new(
                Code::InvalidReplicationTarget,
                format!(
                    "Site {discard} is the active site of {}: its data is never discarded",
                    backend.host()
                ),
            ));
        };
        let step = steps.get(&volume.id).cloned().unwrap_or(Step::Pending);
        let job = Job { volume_id: volume.id.clone(), image: backend.image_name(volume), step };
        by_keeper.entry(keep.to_owned()).or_default().push(job);
    }
    let limits = Limits {
        concurrency: backend.config.failover_concurrency,
        answer: ANSWER,
        settle: SETTLE,
        demote: backend.config.demote_timeout,
        sync: SYNC,
    };
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for (keep, jobs) in by_keeper {
        warn!(
            backend = backend.host(),
            keep,
            discard,
            volumes = jobs.len(),
            "an operator ordered to discard one side's copies where both were written to"
        );
        let ledger = Arc::new(JournalLedger::new(operation.clone()));
        let outcome =
            resync(&backend.config.pool, &backend.site(&keep)?, &loser, limits, ledger, jobs).await?;
        for (id, step) in outcome {
            match failure(&step) {
                None => done.push(id),
                Some(reason) => failed.push(format!("{id}: {}", reason.text())),
            }
        }
    }
    let detail = format!("{} replaying, {} not{}", done.len(), failed.len(), list(&failed));
    info!(backend = backend.host(), discard, "resync is over: {detail}");
    let ending = if failed.is_empty() { Ending::Succeeded } else { Ending::Failed };
    backend
        .journal
        .complete(operation, &Outcome { ending, detail: Some(detail), reply: None }, async |conn| {
            db::failover::set_extended_status(conn, &done, None).await?;
            Ok(())
        })
        .await
}

fn list(failed: &[String]) -> String {
    if failed.is_empty() { String::new() } else { format!("; {}", failed.join("; ")) }
}

async fn read(backend: &Backend, only: Option<&[String]>) -> Result<(Vec<Volume>, HashMap<String, String>)> {
    let scope = backend.scope();
    backend
        .db
        .read("volumes to resync", async |conn| {
            let mut volumes = db::failover::replicated(conn, &scope).await?;
            volumes.retain(|v| v.replication_status.is_some() && only.is_none_or(|ids| ids.contains(&v.id)));
            let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
            let strays = db::stray::list(conn, &ids).await?.into_iter().collect();
            Ok((volumes, strays))
        })
        .await
}
