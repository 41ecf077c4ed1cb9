//! The end of a drill: its clones go, and then the snapshots that were taken for it.
//!
//! In that order, so that no snapshot is left in hiding under a clone on the other site. The volume may have been
//! failed over, deleted, or its mirroring switched off meanwhile: the snapshot is looked for wherever the volume's
//! image is, and is removed where that can be changed; a copy follows. What cannot be removed now keeps its row.

use std::collections::BTreeMap;

use futures::FutureExt;
use serde_json::json;
use tracing::{info, warn};

use super::{LOCK, backend_name};
use crate::backend::{Backend, DEFAULT_SITE};
use crate::db;
use crate::db::drill::{Drill, State};
use crate::error::{Code, Error, Result};
use crate::journal::{Ending, Operation, Outcome};
use crate::rbd::protocol::SnapList;
use crate::replication::engine::look_at;
use crate::replication::plan::Side;
use crate::volume::crash;
use crate::volume::group::{at_once, is_unfinished};
use crate::volume::image::{DRILL, Place};

/// Removes all that a drill has made; all drills of the backend without `test_id`.
///
/// # Errors
/// `Database`; `Cancelled`. What is in the way of a removal is in the row, which stays.
pub async fn stop(backend: &Backend, operation: &Operation, test_id: Option<&str>) -> Result<()> {
    // Whoever still makes one of them hears of it before he is waited for.
    mark(backend, operation, test_id).await?;
    let _held = backend.locks.lock(LOCK).await;
    let rows = mark(backend, operation, test_id).await?;
    crash::point("replication_test:stopping");
    let work = rows.iter().map(|row| remove(backend, operation, row).boxed()).collect();
    let results: Vec<Result<()>> = at_once(work, backend.config.failover_concurrency.max(1)).await;
    let mut failed = Vec::new();
    for (row, result) in rows.iter().zip(results) {
        let Err(failure) = result else { continue };
        if is_unfinished(&failure) {
            return Err(failure);
        }
        warn!(volume.id = row.volume_id, test.id = row.test_id, error = %failure, "something of a drill is left");
        let why = failure.operator();
        let ids = std::slice::from_ref(&row.volume_id);
        operation
            .write("what is left of a drill", async |conn| {
                db::drill::set_state(conn, &row.test_id, ids, State::Removing, Some(&why)).await?;
                let data = json!({"step": "failed", "reason": why});
                operation.item_step_in(conn, &row.volume_id, "failed", &data).await
            })
            .await?;
        failed.push(format!("; {}: {why}", row.volume_id));
    }
    let detail = format!("{} removed, {} not{}", rows.len() - failed.len(), failed.len(), failed.concat());
    info!(backend = backend.host(), test.id = test_id, "a drill has ended: {detail}");
    let ending = if failed.is_empty() { Ending::Succeeded } else { Ending::Failed };
    backend.journal.finish(operation, &Outcome { ending, detail: Some(detail), reply: None }).await
}

async fn mark(backend: &Backend, operation: &Operation, test_id: Option<&str>) -> Result<Vec<Drill>> {
    let scope = backend.scope();
    let name = backend_name(&scope);
    operation
        .write("drills to stop", async |conn| {
            let rows = db::drill::list(conn, Some(name), test_id).await?;
            let mut tests: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for row in &rows {
                tests.entry(&row.test_id).or_default().push(row.volume_id.clone());
            }
            for (test, ids) in tests {
                db::drill::set_state(conn, test, &ids, State::Removing, None).await?;
            }
            Ok(rows)
        })
        .await
}

async fn remove(backend: &Backend, operation: &Operation, row: &Drill) -> Result<()> {
    if !row.site.is_empty() {
        remove_clone(backend, row).await?;
        crash::point("replication_test:clone_removed");
    }
    if row.own_snapshot {
        remove_snapshot(backend, row).await?;
        crash::point("replication_test:snapshot_removed");
    }
    operation
        .write("end of a drill", async |conn| {
            db::drill::forget(conn, &row.test_id, &row.volume_id).await?;
            operation.item_step_in(conn, &row.volume_id, "removed", &json!({"step": "removed"})).await
        })
        .await
}

async fn remove_clone(backend: &Backend, row: &Drill) -> Result<()> {
    let place = Place { site: backend.site(&row.site)?, pool: row.clone_pool.clone() };
    let list = SnapList { pool: row.clone_pool.clone(), image: row.clone.clone() };
    match place.site.insist(list).await {
        Ok(snaps) => {
            for snap in snaps {
                place.remove_snapshot(&row.clone, &snap.name).await?;
            }
        }
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e.into()),
    }
    Ok(place.clear_away(&row.clone).await?)
}

async fn remove_snapshot(backend: &Backend, row: &Drill) -> Result<()> {
    // Not the one that the clone was made from, should that be another.
    let snap = format!("{DRILL}{}", row.test_id);
    let (mut removed, mut copies, mut silent) = (false, false, Vec::new());
    for name in std::iter::once(DEFAULT_SITE.to_owned()).chain(backend.device_names()) {
        let site = backend.site(&name)?;
        match look_at(&site, &row.pool, &row.image, backend.config.verdict_timeout).await {
            Ok(Side::Primary | Side::Plain) => {
                let place = Place { site, pool: row.pool.clone() };
                place.remove_snapshot(&row.image, &snap).await?;
                place.carry_over_if_possible(&row.image).await;
                removed = true;
            }
            Ok(Side::Secondary) => copies = true,
            Ok(Side::Absent | Side::Unknown) => {}
            Err(error) => silent.push(error.to_string()),
        }
    }
    // A volume that is nowhere has taken its snapshots along.
    if removed || (!copies && silent.is_empty()) {
        return Ok(());
    }
    let why = format!("Snapshot {snap} of {}/{} cannot be removed where it is primary", row.pool, row.image);
    Err(Error::new(Code::Replication, why).detail(if silent.is_empty() {
        "it is primary nowhere at the moment".to_owned()
    } else {
        silent.join("; ")
    }))
}
