//! A drill: what a failover would find, tried out on clones while everything goes on.
//!
//! Nobody believes in a failover that was never tried, and nobody tries it on what is in use. So `scoria-manage
//! replication test start` makes a writable clone of each volume's copy on the other site, of a state that is known to
//! be there with all its data; the volume, its mirroring and its users notice nothing. While the volume's site answers,
//! that state is taken for the drill: a snapshot, of several volumes as of one instant, and the drill waits until it has
//! arrived (`arrival`). When the site is dead it is the newest snapshot that has arrived before.
//!
//! Each clone is a row of `scoria_tests` from before it is made until nothing is left of it (`removal`), so both orders
//! may be interrupted anywhere, and a drill that was half made can be stopped like any other.

mod arrival;
mod removal;

use std::collections::BTreeMap;

use futures::FutureExt;
use serde_json::json;
use tracing::{info, warn};

use super::engine::look_at;
use super::orders::TestStart;
use super::plan::Side;
use super::verdict::{self, Verdict};
use crate::backend::{Backend, DEFAULT_SITE};
use crate::db;
use crate::db::drill::{Drill, State};
use crate::error::{Code, Error, Result};
use crate::journal::{Ending, Operation, Outcome};
use crate::model::{ReplicationStatus, Scope, Volume};
use crate::rbd::Site;
use crate::rbd::protocol::{CheckWritable, ImageStat, ReplicaClone};
use crate::rbd::types::SnapOf;
use crate::volume::crash;
use crate::volume::group::{at_once, is_unfinished};
use crate::volume::image::{Attempt, Consistency, DRILL, Place};

pub use removal::stop;

/// Held while a drill is made, or removed.
const LOCK: &str = "replication-test";
/// Journal step: the rows are written.
const BEGUN: &str = "begun";

/// Whose drills: the name of a backend in the rows.
pub fn backend_name(scope: &Scope) -> &str {
    match scope {
        Scope::Host(name) | Scope::Cluster(name) => name,
    }
}

/// Makes the clones of a drill.
///
/// # Errors
/// `InvalidVolume` for a volume that is not a replicated one of this backend; `Database`; `Cancelled`. What goes wrong
/// with one volume is in its row.
pub async fn start(backend: &Backend, operation: &Operation, order: &TestStart) -> Result<()> {
    // Nobody removes what is being made.
    let _held = backend.locks.lock(LOCK).await;
    let rows = begin(backend, operation, order).await?;
    crash::point("replication_test:begun");
    let mut by_source: BTreeMap<String, Vec<Drill>> = BTreeMap::new();
    for row in rows.into_iter().filter(|row| State::is_open(&row.state)) {
        by_source.entry(row.source.clone()).or_default().push(row);
    }
    for (source, rows) in by_source {
        let site = backend.site(&source)?;
        let verdict = verdict::take(&site, &backend.config.pool, backend.config.verdict_timeout).await;
        let rows = match verdict {
            // Nothing can have been taken there, so that nothing is left there either.
            Verdict::Dead if !operation.is_adopted() => disown(operation, &order.id, rows).await?,
            Verdict::Dead => rows,
            Verdict::Alive | Verdict::Degraded => {
                snapshot(backend, operation, &site, rows, order.together).await?
            }
        };
        let dead = verdict == Verdict::Dead;
        let work = rows.into_iter().map(|row| one(backend, operation, &site, row, dead).boxed()).collect();
        let results: Vec<Result<()>> = at_once(work, backend.config.failover_concurrency.max(1)).await;
        results.into_iter().collect::<Result<()>>()?;
    }
    finish(backend, operation, &order.id).await
}

/// The rows of the drill, written by the first attempt.
async fn begin(backend: &Backend, operation: &Operation, order: &TestStart) -> Result<Vec<Drill>> {
    let scope = backend.scope();
    let name = backend_name(&scope);
    let known = backend
        .db
        .read("volumes of a drill", async |conn| {
            db::drill::list(conn, Some(name), Some(order.id.as_str())).await
        })
        .await?;
    // None are left when somebody has stopped it since.
    if !known.is_empty() || operation.reached::<()>(BEGUN).await?.is_some() {
        return Ok(known);
    }
    let (volumes, strays) = backend
        .db
        .read("volumes to test", async |conn| {
            let mut volumes = db::failover::replicated(conn, &scope).await?;
            volumes.retain(|v| {
                is_mirrored(v) && order.volumes.as_ref().is_none_or(|wanted| wanted.contains(&v.id))
            });
            let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
            let strays: BTreeMap<String, String> = db::stray::list(conn, &ids).await?.into_iter().collect();
            Ok((volumes, strays))
        })
        .await?;
    if let Some(id) = order.volumes.iter().flatten().find(|id| !volumes.iter().any(|v| v.id == **id)) {
        return Err(Error::new(
            Code::InvalidVolume,
            format!("Volume {id} is not a replicated volume of backend {name}"),
        ));
    }
    let active = backend.active_name();
    let pool = &backend.config.pool;
    let rows: Vec<Drill> = volumes
        .iter()
        .map(|v| Drill {
            test_id: order.id.clone(),
            volume_id: v.id.clone(),
            backend: name.to_owned(),
            source: strays.get(&v.id).unwrap_or(&active).clone(),
            pool: pool.clone(),
            image: backend.image_name(v),
            clone_pool: order.pool.as_ref().unwrap_or(pool).clone(),
            clone: clone_name(&order.id, &v.id),
            snapshot: format!("{DRILL}{}", order.id),
            own_snapshot: true,
            ..Drill::default()
        })
        .collect();
    operation
        .write("a new drill", async |conn| {
            db::drill::begin(conn, &rows).await?;
            operation.step_in(conn, BEGUN, &()).await?;
            db::drill::list(conn, Some(name), Some(order.id.as_str())).await
        })
        .await
}

/// A drill's clone must not look like a volume, whatever the templates of names are.
fn clone_name(test_id: &str, volume_id: &str) -> String {
    format!("{DRILL}{test_id}-{volume_id}")
}

fn is_mirrored(volume: &Volume) -> bool {
    let status = volume.replication_status.as_deref().and_then(ReplicationStatus::parse);
    status.is_some_and(ReplicationStatus::means_mirrored)
}

/// Takes the snapshots of the volumes that have none yet; answers the volumes that go on.
async fn snapshot(
    backend: &Backend,
    operation: &Operation,
    site: &Site,
    rows: Vec<Drill>,
    together: bool,
) -> Result<Vec<Drill>> {
    let (new, mut taken): (Vec<Drill>, Vec<Drill>) =
        rows.into_iter().partition(|row| row.state == State::Making.as_str());
    let looks =
        new.iter().map(|row| look_at(site, &row.pool, &row.image, backend.config.verdict_timeout).boxed());
    let sides = at_once(looks.collect(), backend.config.failover_concurrency.max(1)).await;
    let mut ready = Vec::new();
    for (row, side) in new.into_iter().zip(sides) {
        match side {
            Ok(Side::Primary) => ready.push(row),
            Ok(_) => {
                let why = format!("its image is not primary on site {}", site.name());
                fail(operation, &row, &why).await?;
            }
            Err(error) => fail(operation, &row, &error.to_string()).await?,
        }
    }
    let place = Place { site: site.clone(), pool: backend.config.pool.clone() };
    // What an attempt that was cut short has taken need not be of one instant with the rest.
    let attempt = if operation.is_adopted() { Attempt::Again } else { Attempt::First };
    let sets: Vec<Vec<Drill>> =
        if together { vec![ready] } else { ready.into_iter().map(|row| vec![row]).collect() };
    for set in sets.into_iter().filter(|set| !set.is_empty()) {
        // In the order of their ids, which is the rows': two who take many never wait for each other.
        let mut held = Vec::with_capacity(set.len());
        for row in &set {
            held.push(backend.locks.lock(&row.volume_id).await);
        }
        let members: Vec<SnapOf> =
            set.iter().map(|row| SnapOf { image: row.image.clone(), snap: row.snapshot.clone() }).collect();
        match place.take_together(&members, attempt).await {
            Ok(Consistency::Whole) => {}
            Ok(Consistency::Apart(why)) if members.len() > 1 => {
                warn!(why, "the volumes of a drill are not of one instant");
            }
            Ok(Consistency::Apart(_)) => {}
            Err(error) => {
                for row in &set {
                    fail(operation, row, &error.to_string()).await?;
                }
                continue;
            }
        }
        crash::point("replication_test:taken");
        let ids: Vec<String> = set.iter().map(|row| row.volume_id.clone()).collect();
        let test = set.first().map(|row| row.test_id.clone()).unwrap_or_default();
        operation
            .write("snapshots of a drill", async |conn| {
                db::drill::set_state(conn, &test, &ids, State::Taken, None).await
            })
            .await?;
        taken.extend(set);
    }
    Ok(taken)
}

async fn disown(operation: &Operation, test_id: &str, rows: Vec<Drill>) -> Result<Vec<Drill>> {
    let ids: Vec<String> = rows.iter().map(|row| row.volume_id.clone()).collect();
    operation
        .write("a drill without snapshots", async |conn| db::drill::disown(conn, test_id, &ids).await)
        .await?;
    Ok(rows.into_iter().map(|row| Drill { own_snapshot: false, ..row }).collect())
}

/// Makes the clone of one volume, wherever an earlier attempt has ended.
async fn one(backend: &Backend, operation: &Operation, source: &Site, row: Drill, dead: bool) -> Result<()> {
    match Box::pin(clone_of(backend, operation, source, &row, dead)).await {
        Ok(()) => Ok(()),
        Err(failure) if is_unfinished(&failure) => Err(failure),
        Err(failure) => {
            warn!(volume.id = row.volume_id, test.id = row.test_id, error = %failure, "no clone for the drill");
            fail(operation, &row, &failure.operator()).await
        }
    }
}

async fn clone_of(
    backend: &Backend,
    operation: &Operation,
    source: &Site,
    row: &Drill,
    dead: bool,
) -> Result<()> {
    let mut row = row.clone();
    let mut repeated = row.state == State::Cloning.as_str();
    let site = if repeated {
        backend.site(&row.site)?
    } else {
        let site = copy_site(backend, &row).await?;
        let snapshot_id = if dead && row.state == State::Making.as_str() {
            row.own_snapshot = false;
            row.snapshot = arrival::newest(&site, &row.pool, &row.image).await?;
            cinder_snapshot(backend, &row.snapshot)
        } else if dead {
            return Err(Error::new(
                Code::Replication,
                format!("Site {} died while the snapshot was on its way: begin another test", row.source),
            ));
        } else {
            arrival::Wait { source, copy: &site, row: &row }.done(backend).await?;
            None
        };
        row.site = site.name().to_owned();
        operation
            .write("clone of a drill", async |conn| {
                db::drill::cloning(conn, &row, snapshot_id.as_deref()).await
            })
            .await?;
        site
    };
    crash::point("replication_test:cloning");
    let place = Place { site: site.clone(), pool: row.clone_pool.clone() };
    let stat = site.insist(ImageStat { pool: row.pool.clone(), image: row.image.clone() }).await?;
    let shape = backend.shape(&site).await?;
    let clone = ReplicaClone {
        pool: row.pool.clone(),
        image: row.image.clone(),
        snap: row.snapshot.clone(),
        dest_pool: row.clone_pool.clone(),
        dest: row.clone.clone(),
        features: shape.features,
        order: stat.order,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        if repeated {
            // Nobody has used it yet, and half a clone looks like a whole one.
            place.clear_away(&row.clone).await?;
        }
        match site.call(clone.clone()).await {
            Ok(()) => break,
            Err(e) if e.effect_unknown() && tries < 3 => repeated = true,
            Err(e) => return Err(e.into()),
        }
    }
    crash::point("replication_test:cloned");
    let (pool, image) = (row.clone_pool.clone(), row.clone.clone());
    site.insist(CheckWritable { pool: pool.clone(), image: image.clone() }).await?;
    let size = site.insist(ImageStat { pool, image }).await?.size;
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    operation
        .write("a clone is ready", async |conn| {
            db::drill::ready(conn, &row.test_id, &row.volume_id, size).await?;
            let data = json!({"step": "ready", "site": row.site, "clone": format!("{}/{}", row.clone_pool, row.clone)});
            operation.item_step_in(conn, &row.volume_id, "ready", &data).await
        })
        .await?;
    crash::point("replication_test:ready");
    Ok(())
}

/// The first of the other sites that has a copy.
async fn copy_site(backend: &Backend, row: &Drill) -> Result<Site> {
    let mut silent = Vec::new();
    for name in std::iter::once(DEFAULT_SITE.to_owned()).chain(backend.device_names()) {
        if name == row.source {
            continue;
        }
        let site = backend.site(&name)?;
        match look_at(&site, &row.pool, &row.image, backend.config.verdict_timeout).await {
            Ok(Side::Secondary) => return Ok(site),
            Ok(_) => {}
            Err(error) => silent.push(error.to_string()),
        }
    }
    let failure = Error::new(Code::Replication, format!("There is no copy of volume {}", row.volume_id));
    Err(if silent.is_empty() { failure } else { failure.detail(silent.join("; ")) })
}

/// The id of Cinder's snapshot of this name.
fn cinder_snapshot(backend: &Backend, name: &str) -> Option<String> {
    let (before, after) = backend.globals.snapshot_name_template.split_once("%s")?;
    name.strip_prefix(before)?.strip_suffix(after).map(str::to_owned)
}

async fn fail(operation: &Operation, row: &Drill, why: &str) -> Result<()> {
    let ids = std::slice::from_ref(&row.volume_id);
    operation
        .write("a clone that failed", async |conn| {
            db::drill::set_state(conn, &row.test_id, ids, State::Failed, Some(why)).await?;
            let data = json!({"step": "failed", "reason": why});
            operation.item_step_in(conn, &row.volume_id, "failed", &data).await
        })
        .await
}

async fn finish(backend: &Backend, operation: &Operation, test_id: &str) -> Result<()> {
    let name = backend_name(&backend.scope()).to_owned();
    let rows = backend
        .db
        .read("end of a drill", async |conn| db::drill::list(conn, Some(name.as_str()), Some(test_id)).await)
        .await?;
    let ready = rows.iter().filter(|row| row.state == State::Ready.as_str()).count();
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| row.state == State::Failed.as_str())
        .map(|row| {
            format!("; {}: {}", row.volume_id, row.detail.as_deref().unwrap_or("no reason was recorded"))
        })
        .collect();
    let detail = format!("test {test_id}: {ready} ready, {} failed{}", failed.len(), failed.concat());
    info!(backend = backend.host(), test.id = test_id, "a drill has begun: {detail}");
    let ending = if failed.is_empty() { Ending::Succeeded } else { Ending::Failed };
    backend.journal.finish(operation, &Outcome { ending, detail: Some(detail), reply: None }).await
}
