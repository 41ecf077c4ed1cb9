//! Connecting: the acts of a plan, one after the other, and the rows that say how far it came.

use serde_json::{Value, json};
use tracing::info;

use super::canary;
use super::orders::Connect;
use super::pair::{End, Seen, claim, require_key};
use super::plan::{Act, Begun, On, Plan, Told, plan};
use crate::db::peer_link::{self, LinkRow};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::rbd::RbdError;
use crate::rbd::link::{BOOTSTRAP_USER, Way};
use crate::rbd::protocol::*;
use crate::site::Sites;
use crate::volume::crash;

/// Connects two sites; what is answered, `None` when the operation has been closed with it.
///
/// # Errors
/// `InvalidInput` for what cannot be connected, before anything was changed; `Conflict` for peers, or an operation, in
/// the way; what Ceph answers; `Cancelled` and `Database`.
pub(in crate::site) async fn connect(
    sites: &Sites,
    operation: &Operation,
    order: &Connect,
) -> Result<Option<Value>> {
    order.check()?;
    require_key(sites, operation, &order.admins())?;
    let a = End::open(sites, &order.a, order.admin_a.as_ref()).await?;
    let b = End::open(sites, &order.b, order.admin_b.as_ref()).await?;
    let done = Box::pin(with(sites, operation, order, &a, &b)).await;
    a.leave();
    b.leave();
    done
}

async fn with(
    sites: &Sites,
    operation: &Operation,
    order: &Connect,
    a: &End,
    b: &End,
) -> Result<Option<Value>> {
    a.prove().await?;
    b.prove().await?;
    let rows = sites
        .db
        .read("links of two sites", async |conn| peer_link::list(conn, Some(&a.row.fsid)).await)
        .await?;
    let of_pair = |row: &&LinkRow| is_pair(row, &a.row.fsid, &b.row.fsid);
    let rows: Vec<LinkRow> = rows.iter().filter(of_pair).cloned().collect();
    check_rows(order, a, b, &rows)?;
    let (seen_a, seen_b) = (a.look().await?, b.look().await?);
    let plan = plan(order, &seen_a, &seen_b, &begun(&rows))?;
    let acts: Vec<String> = plan.acts.iter().map(|act| words(act, a, b)).collect();
    if order.dry_run {
        return Ok(Some(answer(order, &plan, &acts, &[])));
    }
    record(operation, order, (&seen_a, &seen_b), &plan).await?;
    crash::point("link:recorded");
    for (n, act) in plan.acts.iter().enumerate() {
        let doing = acts.get(n).map(String::as_str).unwrap_or_default();
        operation.step(&format!("connecting {}/{}", n + 1, acts.len()), &json!({"doing": doing})).await?;
        info!(operation.id = operation.id(), op = "connect", act = doing, "connecting sites");
        carry_out(order, &rows, act, a, b).await?;
        crash::point("link:act");
    }
    let mut proofs = Vec::new();
    for pool in &order.pools {
        operation.step("canary", &json!({"pool": pool})).await?;
        let proof = match order.canary {
            true => Box::pin(canary::fly(sites.patience, operation.id(), order, pool, a, b)).await?,
            false => canary::Proof::not_asked(pool),
        };
        crash::point("link:canary");
        proofs.push(proof);
    }
    let answer = answer(order, &plan, &acts, &proofs);
    let outcome = Outcome::succeeded().with_reply(answer);
    sites
        .journal
        .complete(operation, &outcome, async |conn| {
            for row in peer_link::lock(conn, &a.row.fsid, &b.row.fsid).await? {
                let Some(proof) = proofs.iter().find(|proof| proof.pool == row.pool) else { continue };
                let row = LinkRow { state: "connected".to_owned(), note: Some(proof.text()), ..row };
                peer_link::put(conn, &row).await?;
            }
            Ok(())
        })
        .await?;
    crash::point("link:connected");
    Ok(None)
}

impl Connect {
    /// The administrators' files that it brings.
    pub(in super::super) fn admins(&self) -> Vec<&super::super::orders::Files> {
        self.admin_a.iter().chain(&self.admin_b).collect()
    }
}

fn words(act: &Act, a: &End, b: &End) -> String {
    Told(act, &a.row.name, &b.row.name).to_string()
}

pub(super) fn is_pair(row: &LinkRow, one: &str, other: &str) -> bool {
    (row.fsid_a == one && row.fsid_b == other) || (row.fsid_a == other && row.fsid_b == one)
}

/// What is in the way by the rows.
fn check_rows(order: &Connect, a: &End, b: &End, rows: &[LinkRow]) -> Result<()> {
    for row in rows.iter().filter(|row| order.pools.contains(&row.pool)) {
        let conflict = |text: String| Err(Error::new(Code::Conflict, text));
        if row.state == "disconnecting" {
            return conflict(format!(
                "Pool {} of {} and {} is half disconnected; finish that first (site disconnect)",
                row.pool, a.row.name, b.row.name
            ));
        }
        if row.fsid_a != a.row.fsid && (row.way != "rx-tx" || order.way != Way::RxTx) {
            return conflict(format!(
                "Pool {} is connected the other way, from {} to {}; disconnect it first",
                row.pool, b.row.name, a.row.name
            ));
        }
        if row.state == "connected" && row.way != order.way.as_str() {
            return conflict(format!(
                "Pool {} of {} and {} is connected {}; disconnect it first to connect it {}",
                row.pool,
                a.row.name,
                b.row.name,
                row.way,
                order.way.as_str()
            ));
        }
    }
    Ok(())
}

/// What unfinished attempts have left.
fn begun(rows: &[LinkRow]) -> Begun {
    let open = || rows.iter().filter(|row| row.state == "connecting");
    Begun { makes: open().flat_map(makes).collect(), peers: open().map(|row| row.pool.clone()).collect() }
}

fn makes(row: &LinkRow) -> Vec<(String, String)> {
    serde_json::from_str(&row.makes).unwrap_or_default()
}

/// The user by which `receiver` reaches `source`, when it is one of its own.
fn own_user(receiver: &str) -> String {
    format!("scoria-link-{}", receiver.split('-').next().unwrap_or(receiver))
}

/// Writes down what is meant, before anything is done.
async fn record(operation: &Operation, order: &Connect, (a, b): (&Seen, &Seen), plan: &Plan) -> Result<()> {
    let user = |receiver: &Seen| match order.manual {
        true => own_user(&receiver.fsid),
        false => BOOTSTRAP_USER.to_owned(),
    };
    operation
        .write("links to make", async |conn| {
            let there = peer_link::lock(conn, &a.fsid, &b.fsid).await?;
            claim(conn, &there, operation).await?;
            for pool in &order.pools {
                let former = there.iter().find(|row| row.pool == *pool);
                let data_pool = order.data_pool(pool).map(|(name, _)| name);
                // What an earlier attempt has begun stays begun: half of it may be there.
                let mut makes = former.map(makes).unwrap_or_default();
                let mine =
                    plan.makes.iter().filter(|(_, made)| made == pool || data_pool.as_ref() == Some(made));
                makes.extend(
                    mine.filter(|made| !former.map(self::makes).unwrap_or_default().contains(made)).cloned(),
                );
                let makes = serde_json::to_string(&makes)
                    .map_err(|e| Error::internal("Pools cannot be written as JSON").caused_by(e))?;
                let found = plan.found.contains(pool);
                let row = match former.filter(|row| row.state == "connected" || found) {
                    Some(row) => LinkRow { operation_id: operation.id(), ..row.clone() },
                    None => LinkRow {
                        fsid_a: a.fsid.clone(),
                        fsid_b: b.fsid.clone(),
                        pool: pool.clone(),
                        way: order.way.as_str().to_owned(),
                        mode: order.mode.as_str().to_owned(),
                        method: match (found, order.manual) {
                            (true, _) => "found",
                            (false, true) => "manual",
                            (false, false) => "bootstrap",
                        }
                        .to_owned(),
                        client_a: (!found).then(|| user(b)),
                        client_b: (!found && order.way == Way::RxTx).then(|| user(a)),
                        data_pool,
                        state: "connecting".to_owned(),
                        makes,
                        note: None,
                        operation_id: operation.id(),
                        created_at: chrono::NaiveDateTime::default(),
                        updated_at: chrono::NaiveDateTime::default(),
                    },
                };
                peer_link::put(conn, &row).await?;
            }
            Ok(())
        })
        .await
}

async fn carry_out(order: &Connect, rows: &[LinkRow], act: &Act, a: &End, b: &End) -> Result<()> {
    let end = |on: &On| if *on == On::A { a } else { b };
    let other = |on: &On| if *on == On::A { b } else { a };
    let (at, done): (&End, std::result::Result<(), RbdError>) = match act {
        Act::Profile { on, profile } => {
            let profile = profile.clone();
            (end(on), end(on).site.insist(ErasureProfileSet { profile }).await)
        }
        Act::Pool { on, pool, shape } => {
            let ask = PoolEnsure { pool: pool.clone(), shape: shape.clone() };
            (end(on), end(on).site.insist(ask).await)
        }
        Act::Init { on, pool, data_pool } => {
            let ask = PoolInit { pool: pool.clone(), data_pool: data_pool.clone() };
            (end(on), end(on).site.insist(ask).await)
        }
        Act::Mode { on, pool, mode } => {
            (end(on), end(on).site.insist(MirrorModeSet { pool: pool.clone(), mode: *mode }).await)
        }
        Act::Name { on, name } => (end(on), end(on).site.insist(SiteNameSet { name: name.clone() }).await),
        Act::Peer { on, pool, way } => {
            let (receiver, source) = (end(on), other(on));
            let connection = source.site.connection().clone();
            let done = if order.manual {
                let name = source.site.insist(SiteName {}).await.map_err(|e| source.explain(e))?;
                let ask = PeerAdd {
                    pool: pool.clone(),
                    source: connection,
                    source_name: name.unwrap_or_else(|| source.row.name.clone()),
                    user: own_user(&receiver.row.fsid),
                    pools: readable(order, rows, source).await?,
                };
                receiver.site.insist(ask).await
            } else {
                let ask = PeerBootstrap { pool: pool.clone(), source: connection, way: *way };
                receiver.site.insist(ask).await
            };
            (receiver, done)
        }
    };
    done.map_err(|e| at.explain(e))
}

/// Pools that the user of a link may read on the source: all that connect the two, and those of their data.
async fn readable(order: &Connect, rows: &[LinkRow], source: &End) -> Result<Vec<String>> {
    let there = source.site.insist(ClusterStatus {}).await.map_err(|e| source.explain(e))?.pools;
    let linked = rows.iter().filter(|row| row.method == "manual");
    let mut pools: Vec<String> = linked
        .flat_map(|row| std::iter::once(row.pool.clone()).chain(row.data_pool.clone()))
        .chain(order.pools.iter().cloned())
        .chain(order.pools.iter().filter_map(|pool| order.data_pool(pool).map(|(name, _)| name)))
        .filter(|name| there.iter().any(|pool| pool.name == *name))
        .collect();
    pools.sort();
    pools.dedup();
    Ok(pools)
}

fn answer(order: &Connect, plan: &Plan, acts: &[String], proofs: &[canary::Proof]) -> Value {
    json!({
        "site": order.b,
        "what": "connected",
        "with": order.a,
        "dry_run": order.dry_run,
        "pools": order.pools,
        "acts": acts,
        "found": plan.found,
        "remarks": plan.remarks,
        "proofs": proofs.iter().map(canary::Proof::view).collect::<Vec<_>>(),
    })
}
