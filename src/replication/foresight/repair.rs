//! Mends what an audit finds, as far as that is provably safe.
//!
//! Between an audit and its repair anything may happen, so nothing of the audit that the operator has seen is
//! believed: each volume is looked at again under its locks, with no failover under way, and mended at once. A service
//! that dies half way runs the order again, and finds what is left to do in the same way. Only what an image was
//! before it is mirrored could not be found again: that is recorded first.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::audit::{Drift, Mend, compare};
use super::facts::{Need, Row, gather};
use crate::backend::Backend;
use crate::db;
use crate::db::admin::under_way;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Ending, Operation, Outcome};
use crate::model::ReplicationStatus;
use crate::rbd::protocol::ImageStat;
use crate::rbd::types::MirrorMode;
use crate::replication::enable;
use crate::replication::group::{hold, take_back};
use crate::replication::orders::MOVES;
use crate::volume::crash;

/// Volumes that are looked at, and locked, together.
const CHUNK: usize = 32;

/// How far the repair of a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// Its image is to be mirrored, or is already.
    Enabling {
        /// How.
        mode: MirrorMode,
        /// Where.
        site: String,
        /// Features that the image had before.
        before: u64,
    },
    /// Done. Final.
    Repaired {
        /// What.
        what: String,
    },
    /// Not done. Final.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Audits the backend, or `only` these volumes, and mends what can be.
///
/// # Errors
/// `Conflict` while a failover of the backend is open; `Database`; `Cancelled`.
pub fn run<'a>(
    backend: &'a Backend,
    operation: &'a Operation,
    only: Option<&'a [String]>,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let begun: HashMap<String, Step> = operation
            .items()
            .await?
            .into_iter()
            .filter_map(|item| Some((item.resource_id.clone(), item.parse().ok()?)))
            .collect();
        let audit = super::audit(backend, operation.id(), only).await?;
        let mut targets: BTreeSet<String> =
            audit.drifts.iter().filter(|d| d.repair.is_some()).filter_map(|d| d.volume.clone()).collect();
        targets.extend(
            begun.iter().filter(|(_, s)| matches!(s, Step::Enabling { .. })).map(|(id, _)| id.clone()),
        );
        let targets: Vec<String> = targets.into_iter().collect();
        for chunk in targets.chunks(CHUNK) {
            mend_together(backend, operation, chunk, &begun).await?;
        }
        let forgotten = match only {
            None => {
                operation.write("rows about nothing", async |conn| db::audit::forget_gone(conn).await).await?
            }
            Some(_) => 0,
        };
        let mut repaired = 0;
        let mut failed = 0;
        for item in operation.items().await? {
            match item.parse()? {
                Step::Repaired { .. } => repaired += 1,
                Step::Failed { .. } | Step::Enabling { .. } => failed += 1,
            }
        }
        let detail =
            format!("{repaired} volumes repaired, {failed} not, {forgotten} rows about nothing removed");
        info!(backend = backend.host(), "repair is over: {detail}");
        let ending = if failed == 0 { Ending::Succeeded } else { Ending::Failed };
        backend.journal.finish(operation, &Outcome { ending, detail: Some(detail), reply: None }).await
    })
}

/// Looks at some volumes again, under their locks, and mends them.
// Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
fn mend_together<'a>(
    backend: &'a Backend,
    operation: &'a Operation,
    ids: &'a [String],
    begun: &'a HashMap<String, Step>,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        // A failover that comes meanwhile waits for these few, as for any operation.
        let _passage = backend.gate.pass().await;
        let names = ids.iter().flat_map(|id| [id.clone(), format!("{id}-delete_volume")]).collect();
        let _held = hold(backend, names).await;
        if let Some(open) = backend.journal.open_methods(&backend.scope(), MOVES).await?.first() {
            return Err(under_way(open.id));
        }
        let need =
            Need { sites: super::all_sites(backend), only: Some(ids), audit: false, own: operation.id() };
        let facts = gather(backend, &need).await?;
        let audit = compare(&facts, &[]);
        let mut by_volume: BTreeMap<&str, &Drift> = BTreeMap::new();
        for drift in audit.drifts.iter().filter(|d| d.repair.is_some()) {
            if let Some(id) = &drift.volume {
                by_volume.entry(id).or_insert(drift);
            }
        }
        for row in &facts.rows {
            let id = row.volume.id.as_str();
            let drift = by_volume.get(id).copied();
            let step = match mend(backend, operation, row, drift, begun.get(id)).await {
                Ok(Some(step)) => step,
                Ok(None) => continue,
                Err(error) if error.code() == Code::Cancelled || error.is_transient() => return Err(error),
                Err(error) => {
                    warn!(volume.id = id, %error, "a volume could not be repaired");
                    Step::Failed { reason: error.user().to_owned() }
                }
            };
            if let Step::Repaired { what } = &step {
                info!(volume.id = id, what, "volume repaired");
            }
            operation.item_step(id, "repair", &step).await?;
        }
        Ok(())
    })
}

/// Mends one volume; `None` when there is nothing (any more) to mend.
fn mend<'a>(
    backend: &'a Backend,
    operation: &'a Operation,
    row: &'a Row,
    drift: Option<&'a Drift>,
    begun: Option<&'a Step>,
) -> BoxFuture<'a, Result<Option<Step>>> {
    Box::pin(async move {
        let repair = drift.and_then(|d| d.repair.as_ref());
        if let Some(Step::Enabling { mode, site, before }) = begun {
            // Begun before a crash: repeated to its end, whether the image is mirrored by now or not.
            return mirror(backend, operation, row, *mode, site, *before).await.map(Some);
        }
        let Some(repair) = repair else { return Ok(None) };
        let what = repair.text();
        let read = row.volume.replication_status.as_deref();
        let id = &row.volume.id;
        let done = match repair {
            Mend::Mirror { mode, site } => {
                let place = backend.site(site)?;
                let ask = ImageStat { pool: backend.config.pool.clone(), image: row.image.clone() };
                let before = place.insist(ask).await?.features;
                let step = Step::Enabling { mode: *mode, site: site.clone(), before };
                operation.item_step(id, "repair", &step).await?;
                crash::point("repair:enabling");
                return mirror(backend, operation, row, *mode, site, before).await.map(Some);
            }
            Mend::Status { to } => {
                let changes = status(to);
                operation
                    .write("repair", async |conn| db::audit::correct(conn, id, read, &changes).await)
                    .await?
            }
            Mend::Stray { site } => {
                let advice = format!(
                    "primary on {site}; then: scoria-manage replication retry --backend {}",
                    backend.host()
                );
                let changes = VolumeChanges {
                    replication_extended_status: Some(Some(advice.chars().take(255).collect())),
                    ..status(ReplicationStatus::FailoverError.as_str())
                };
                let one = [id.clone()];
                operation
                    .write("repair", async |conn| {
                        let matched = db::audit::correct(conn, id, read, &changes).await?;
                        if matched {
                            db::stray::record(conn, &one, site).await?;
                        }
                        Ok(matched)
                    })
                    .await?
            }
            Mend::Home { to } => home(operation, row, to).await?,
            Mend::Forget => return Ok(None),
        };
        crash::point("repair:written");
        Ok(Some(match done {
            true => Step::Repaired { what },
            false => Step::Failed { reason: "somebody else has changed its row in this moment".to_owned() },
        }))
    })
}

fn status(to: &str) -> VolumeChanges {
    VolumeChanges { replication_status: Some(Some(to.to_owned())), ..VolumeChanges::default() }
}

/// The volume is where its backend is: its row says so again, and it gets the status back that a failover took from it.
async fn home(operation: &Operation, row: &Row, to: &str) -> Result<bool> {
    let read = row.volume.replication_status.as_deref();
    let fallen = row.volume.status == "error" && read == Some(ReplicationStatus::FailoverError.as_str());
    let settled = ReplicationStatus::parse(to).unwrap_or(ReplicationStatus::Enabled);
    let changes = VolumeChanges { replication_extended_status: Some(None), ..status(to) };
    let one = [row.volume.id.clone()];
    operation
        .write("repair", async |conn| {
            if fallen {
                db::failover::recover(conn, &one, settled).await?;
                db::displaced::recover_snapshots(conn, &one).await?;
                db::failover::set_extended_status(conn, &one, None).await?;
            } else if !db::audit::correct(conn, &row.volume.id, read, &changes).await? {
                return Ok(false);
            }
            db::stray::forget(conn, &one).await?;
            Ok(true)
        })
        .await
}

/// Mirrors the image, and writes into the row which features that has added. Repeatable.
async fn mirror(
    backend: &Backend,
    operation: &Operation,
    row: &Row,
    mode: MirrorMode,
    site: &str,
    before: u64,
) -> Result<Step> {
    let place = backend.site(site)?;
    let pool = &backend.config.pool;
    let data = match enable::enable(&place, pool, &row.image, mode, before).await {
        Ok(data) => data,
        Err(error) => {
            take_back(&place, pool, &row.image, before).await;
            let text = format!("Failed to enable replication: {}", error.message);
            return Err(Error::new(Code::Replication, text).caused_by(error));
        }
    };
    crash::point("repair:mirrored");
    let read = row.volume.replication_status.as_deref();
    let changes =
        VolumeChanges { replication_driver_data: Some(Some(data.to_text())), ..VolumeChanges::default() };
    let id = &row.volume.id;
    let matched =
        operation.write("repair", async |conn| db::audit::correct(conn, id, read, &changes).await).await?;
    crash::point("repair:written");
    Ok(match matched {
        true => Step::Repaired { what: Mend::Mirror { mode, site: site.to_owned() }.text() },
        false => Step::Failed { reason: "somebody else has changed its row in this moment".to_owned() },
    })
}
