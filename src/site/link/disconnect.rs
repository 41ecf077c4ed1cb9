//! Disconnecting: from mirrored pools to two clusters that do not know each other.
//!
//! The order of things matters. Peers go first: a daemon that still reads from the other side takes the end of an
//! image's mirroring there for its removal, and removes the copy. Then it is waited for the daemons to let go. Only
//! then the mirroring of images ends (`unmirror`), with what it had added to them, and their rows follow. Backups that are
//! on the site that goes are dealt with before all that: what cannot be deleted stops the parting while it costs nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::info;

use super::census::{Census, Image};
use super::connect::is_pair;
use super::orders::Disconnect;
use super::pair::{End, Seen, claim, require_key};
use super::purge::{self, Purged};
use super::stored;
use super::unmirror::end_mirroring;
use crate::db::Conn;
use crate::db::peer_link::{self, LinkRow};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::rbd::RbdErrorKind;
use crate::rbd::link::BOOTSTRAP_USER;
use crate::rbd::mirror_survey::PeerDirection;
use crate::rbd::protocol::*;
use crate::rbd::types::PoolMirrorMode;
use crate::replication::engine::Pause;
use crate::site::{Sites, item};
use crate::volume::crash;
use crate::volume::image::Place;

/// Disconnects two sites; what is answered, `None` when the operation has been closed with it.
///
/// # Errors
/// `Invalid` with a list of what stands in the way; `Conflict` for another operation; what Ceph answers; `Cancelled`
/// and `Database`.
pub(in crate::site) async fn disconnect(
    sites: &Sites,
    operation: &Operation,
    order: &Disconnect,
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

impl Disconnect {
    /// The administrators' files that it brings.
    pub(in super::super) fn admins(&self) -> Vec<&super::super::orders::Files> {
        self.admin_a.iter().chain(&self.admin_b).collect()
    }
}

async fn with(
    sites: &Sites,
    operation: &Operation,
    order: &Disconnect,
    a: &End,
    b: &End,
) -> Result<Option<Value>> {
    let (answer, parted) = part(sites, operation, order, a, b).await?;
    let Some(parted) = parted else { return Ok(Some(answer)) };
    let outcome = Outcome::succeeded().with_reply(answer);
    sites
        .journal
        .complete(operation, &outcome, async |conn| parted.write(conn, a, b, parted.living).await)
        .await?;
    crash::point("link:disconnected");
    Ok(None)
}

/// What has been parted, and is still to be written into the rows of the links.
pub(super) struct Parted {
    pools: Vec<String>,
    living: bool,
    note: Option<String>,
}

impl Parted {
    /// The links go, or stay to be finished.
    pub(super) async fn write(&self, conn: &mut Conn, a: &End, b: &End, whole: bool) -> Result<()> {
        for row in peer_link::lock(conn, &a.row.fsid, &b.row.fsid).await? {
            if !self.pools.contains(&row.pool) {
                continue;
            }
            match whole {
                true => peer_link::delete(conn, &row).await?,
                false => peer_link::put(conn, &LinkRow { note: self.note.clone(), ..row }).await?,
            }
        }
        Ok(())
    }
}

/// Parts two sites; what is answered, and, unless that was a dry run, what is to be written of the links.
pub(super) async fn part(
    sites: &Sites,
    operation: &Operation,
    order: &Disconnect,
    a: &End,
    b: &End,
) -> Result<(Value, Option<Parted>)> {
    if !a.is_alive().await {
        return Err(Error::new(
            Code::InvalidInput,
            format!("Site {}, which is to stay, does not answer; name the one that lives first", a.row.name),
        ));
    }
    a.prove().await?;
    let living = b.is_alive().await.then_some(b);
    if let Some(b) = living {
        b.prove().await?;
    }
    let rows = sites
        .db
        .read("links of two sites", async |conn| peer_link::list(conn, Some(&a.row.fsid)).await)
        .await?;
    let rows: Vec<LinkRow> = rows.into_iter().filter(|row| is_pair(row, &a.row.fsid, &b.row.fsid)).collect();
    if order.delete_backups.is_some() && !order.dry_run {
        stored::resume(sites, operation).await?;
    }
    let seen_a = a.look().await?;
    let seen_b = match living {
        Some(b) => b.look().await?,
        None => unseen(b, &rows, &seen_a),
    };
    let pools = pools(order, &rows, &seen_a, &seen_b)?;
    let whole = order.pools.is_empty();
    let look = async || Census::take(sites, a, b, living.is_some(), &pools, whole).await;
    let mut census = look().await?;
    let mut answer = json!({
        "site": b.row.name, "what": "disconnected", "with": a.row.name, "dry_run": order.dry_run, "pools": pools,
        "alive": living.is_some(), "shared": census.view(),
    });
    if order.dry_run {
        if let Value::Object(map) = &mut answer {
            let refused = census.refuse(order, a, b, living.is_some());
            map.insert("refused".to_owned(), json!(refused.err().map(|e| e.user().to_owned())));
        }
        return Ok((answer, None));
    }
    census.refuse(order, a, b, living.is_some())?;
    if let Some(agreed) = order.purge {
        purge::check(&census, agreed)?;
    }
    let mut left = Vec::new();
    if Box::pin(clear(sites, operation, order, (b, living.is_some()), &mut census, &mut left)).await? {
        // That may have taken hours.
        census = look().await?;
        census.refuse(order, a, b, living.is_some())?;
        if let Some(new) = census.stored.reason(&b.row.name).filter(|_| order.delete_backups.is_some()) {
            let text = format!("{new}. They are new; nothing was parted: disconnect again");
            return Err(Error::new(Code::Conflict, text));
        }
    }
    // Who has lost his user when the other site was dead reads nothing any more.
    let cut = match rows.iter().any(|row| row.state == "disconnecting") {
        true => cut_off(&rows, a, living).await?,
        false => vec![],
    };
    let rows = record(sites, operation, a, b, &pools, &rows).await?;
    crash::point("link:disconnecting");
    let ends: Vec<(&End, &Seen, &Seen)> = match living {
        // The receiver first.
        Some(b) => vec![(b, &seen_b, &seen_a), (a, &seen_a, &seen_b)],
        None => vec![(a, &seen_a, &seen_b)],
    };
    remove_peers(operation, &pools, &ends).await?;
    if living.is_some() {
        for (end, ..) in &ends {
            let_go(operation, sites.patience.let_go, end, &pools, cut.contains(&end.row.fsid)).await?;
        }
        remove_returned(operation, &pools, &ends).await?;
    } else {
        // Nothing is changed on a site that does not answer, so that who reads from it mistakes nothing, and need not be
        // waited for: a daemon whose peer is dead takes minutes to let go. That site's own daemon may live and read
        // here: it loses its user before images here stop being mirrored.
        left.extend(remove_clients(sites, operation, &rows, a, None).await?);
    }
    if order.force {
        end_mirroring(sites, operation, a, living, &census).await?;
    }
    let purged = match (order.purge, living) {
        (Some(_), Some(b)) => {
            operation.step("removing copies", &json!({})).await?;
            let copies: Vec<Image> = census.copies().cloned().collect();
            purge::purge(a, b, &copies).await?
        }
        _ => Purged::default(),
    };
    for (end, ..) in &ends {
        left.extend(disable_pools(operation, end, &pools).await?);
    }
    if living.is_some() {
        left.extend(remove_clients(sites, operation, &rows, a, living).await?);
    }
    crash::point("link:parted");
    let strangers = verify(operation, &pools, &ends).await?;
    if living.is_none() {
        left.push(format!(
            "site {} did not answer: its own peers and users are still there; disconnect again when it is back",
            b.row.name
        ));
    }
    let gone = stored::deleted(operation).await?;
    if let Value::Object(map) = &mut answer {
        map.insert("deleted_backups".to_owned(), json!(gone));
        map.insert("removed".to_owned(), json!(purged.removed));
        map.insert("kept".to_owned(), json!([purged.kept, purged.orphans].concat()));
        map.insert("left".to_owned(), json!(left));
        map.insert("strangers".to_owned(), json!(strangers));
    }
    let parted = Parted { pools, living: living.is_some(), note: left.last().cloned() };
    Ok((answer, Some(parted)))
}

/// Deals with the backups on the site that goes, and with clones of its copies, as the order says; whether anything was
/// done. What stays there is told.
async fn clear(
    sites: &Sites,
    operation: &Operation,
    order: &Disconnect,
    (b, living): (&End, bool),
    census: &mut Census,
    left: &mut Vec<String>,
) -> Result<bool> {
    let there = &b.row.name;
    let stored = std::mem::take(&mut census.stored);
    let mut done = false;
    if let Some(agreed) = order.delete_backups {
        stored.check(agreed)?;
        done = !stored.rows.is_empty();
        Box::pin(stored::delete(sites, operation, stored)).await?;
    } else if let Some(reason) = stored.reason(there) {
        left.push(format!(
            "{reason}: they stay, and are restored from there for as long as site {there} is known"
        ));
    }
    if !order.flatten_backups || !living {
        return Ok(done);
    }
    let clones: Vec<_> = census.copies().flat_map(|image| &image.clones).cloned().collect();
    if !clones.is_empty() {
        operation.step("making clones independent", &json!({"clones": clones.len()})).await?;
    }
    for clone in clones {
        let name = format!("{}/{}", clone.pool, clone.image);
        if clone.trash {
            left.push(format!("{name} in the trash of {there} is a clone of a copy, which stays for it"));
            continue;
        }
        let place = Place { site: b.site.clone(), pool: clone.pool.clone() };
        match place.flatten(&clone.image).await {
            Ok(()) => {}
            Err(e) if e.kind == RbdErrorKind::NotFound => continue,
            Err(e) => return Err(b.explain(e)),
        }
        crash::point("link:flattened");
        operation.item_step(&item(&clone.image), "clone", &json!({"step": "independent"})).await?;
        info!(operation.id = operation.id(), site = there, image = name, "a clone was made independent");
        done = true;
    }
    Ok(done)
}

/// The sites whose daemons have no user on the other one any more.
async fn cut_off(rows: &[LinkRow], a: &End, b: Option<&End>) -> Result<Vec<String>> {
    let Some(b) = b else { return Ok(vec![]) };
    let mut cut = Vec::new();
    for (end, other) in [(a, b), (b, a)] {
        let mut users = vec![BOOTSTRAP_USER.to_owned()];
        users.extend(rows.iter().filter_map(|row| user_on(row, &other.row.fsid)));
        let mut there = false;
        for user in users {
            there |= other.site.insist(ClientExists { user }).await.map_err(|e| other.explain(e))?;
        }
        if !there {
            cut.push(end.row.fsid.clone());
        }
    }
    Ok(cut)
}

/// By whom a link's other site reaches this one.
fn user_on(row: &LinkRow, fsid: &str) -> Option<String> {
    match row.fsid_a == fsid {
        true => row.client_a.clone(),
        false => row.client_b.clone().filter(|_| row.fsid_b == fsid),
    }
}

/// What is known of a site that does not answer: its name towards peers by that of the peer of a pool that a link
/// names, which has one.
pub(super) fn unseen(b: &End, rows: &[LinkRow], a: &Seen) -> Seen {
    let peers = rows.iter().filter_map(|row| a.mirroring.get(&row.pool)).flat_map(|view| &view.peers);
    Seen {
        name: b.row.name.clone(),
        fsid: b.row.fsid.clone(),
        calls_itself: peers.map(|peer| peer.site_name.clone()).next(),
        osds: vec![],
        pools: vec![],
        mirroring: BTreeMap::new(),
    }
}

/// The pools that connect the two, by the rows and by their own word.
fn pools(order: &Disconnect, rows: &[LinkRow], a: &Seen, b: &Seen) -> Result<Vec<String>> {
    let mut all: Vec<String> = rows.iter().map(|row| row.pool.clone()).collect();
    for (seen, other) in [(a, b), (b, a)] {
        for (pool, view) in &seen.mirroring {
            if view.peers.iter().any(|peer| other.is_peer(peer)) {
                all.push(pool.clone());
            }
        }
    }
    all.sort();
    all.dedup();
    if let Some(stranger) = order.pools.iter().find(|pool| !all.contains(pool)) {
        return Err(Error::new(
            Code::InvalidInput,
            format!("Pool {stranger} does not connect {} and {}; these do: {}", a.name, b.name, some(&all)),
        ));
    }
    if all.is_empty() {
        return Err(Error::new(
            Code::InvalidInput,
            format!("Sites {} and {} are strangers already: no pool connects them", a.name, b.name),
        ));
    }
    Ok(if order.pools.is_empty() { all } else { order.pools.clone() })
}

fn some(pools: &[String]) -> String {
    if pools.is_empty() { "none".to_owned() } else { pools.join(", ") }
}

/// Writes down that these links go, those that Scoria has not made included.
async fn record(
    sites: &Sites,
    operation: &Operation,
    a: &End,
    b: &End,
    pools: &[String],
    known: &[LinkRow],
) -> Result<Vec<LinkRow>> {
    let known = known.to_vec();
    operation
        .write("links to part", async |conn| {
            let there = peer_link::lock(conn, &a.row.fsid, &b.row.fsid).await?;
            claim(conn, &there, operation).await?;
            for pool in pools {
                let row = there.iter().chain(&known).find(|row| row.pool == *pool).cloned();
                let row = row.unwrap_or_else(|| LinkRow {
                    fsid_a: a.row.fsid.clone(),
                    fsid_b: b.row.fsid.clone(),
                    pool: pool.clone(),
                    way: "rx-tx".to_owned(),
                    mode: "image".to_owned(),
                    method: "found".to_owned(),
                    client_a: None,
                    client_b: None,
                    data_pool: None,
                    state: String::new(),
                    makes: "[]".to_owned(),
                    note: None,
                    operation_id: 0,
                    created_at: chrono::NaiveDateTime::default(),
                    updated_at: chrono::NaiveDateTime::default(),
                });
                let (state, operation_id) = ("disconnecting".to_owned(), operation.id());
                peer_link::put(conn, &LinkRow { state, operation_id, ..row }).await?;
            }
            Ok(())
        })
        .await?;
    // Those of other pools count, too: their user may be the same.
    sites.db.read("links", async |conn| peer_link::list(conn, None).await).await
}

async fn remove_peers(operation: &Operation, pools: &[String], ends: &[(&End, &Seen, &Seen)]) -> Result<()> {
    operation.step("removing peers", &json!({})).await?;
    for (end, seen, other) in ends {
        for pool in pools {
            let peers = seen.mirroring.get(pool).map(|view| view.peers.as_slice()).unwrap_or_default();
            for peer in peers.iter().filter(|peer| other.is_peer(peer)) {
                let ask = PeerRemove { pool: pool.clone(), uuid: peer.uuid.clone() };
                end.site.insist(ask).await.map_err(|e| end.explain(e))?;
                crash::point("link:peer");
                info!(operation.id = operation.id(), site = end.row.name, pool, "a peer was removed");
            }
        }
    }
    Ok(())
}

/// Removes peers that have come back since: a daemon that runs makes itself known to whom it reads from, now and then.
async fn remove_returned(
    operation: &Operation,
    pools: &[String],
    ends: &[(&End, &Seen, &Seen)],
) -> Result<()> {
    for (end, _, other) in ends {
        for pool in pools {
            let view = match end.site.insist(MirrorPoolView { pool: pool.clone() }).await {
                Err(e) if e.kind == RbdErrorKind::NoPool => continue,
                other => other.map_err(|e| end.explain(e))?,
            };
            for peer in view.peers.iter().filter(|peer| other.is_peer(peer)) {
                let ask = PeerRemove { pool: pool.clone(), uuid: peer.uuid.clone() };
                end.site.insist(ask).await.map_err(|e| end.explain(e))?;
                info!(
                    operation.id = operation.id(),
                    site = end.row.name,
                    pool,
                    "a peer had come back, and was removed"
                );
            }
        }
    }
    Ok(())
}

/// Until no daemon of the site works on the pools for a peer that is gone.
/// One that is `cut` off from the other site, and says of no image that it works on it, is not waited for: it tries to
/// connect to what it may not reach any more, for minutes.
async fn let_go(
    operation: &Operation,
    limit: Duration,
    end: &End,
    pools: &[String],
    cut: bool,
) -> Result<()> {
    operation.step("waiting for daemons", &json!({"site": end.row.name})).await?;
    let (until, mut pause) = (Instant::now() + limit, Pause::default());
    for pool in pools {
        loop {
            let view = match end.site.insist(MirrorPoolView { pool: pool.clone() }).await {
                Err(e) if e.kind == RbdErrorKind::NoPool => break,
                other => other.map_err(|e| end.explain(e))?,
            };
            // Another cluster feeds the pool: its daemon has every reason to be there.
            let fed = view.peers.iter().any(|peer| peer.direction != PeerDirection::Sends);
            if fed || view.daemons.is_empty() || (cut && !replays(end, pool).await?) {
                break;
            }
            if Instant::now() >= until {
                // One that was killed is still registered. What the statuses say is old: never asked before.
                if !replays(end, pool).await? {
                    break;
                }
                return Err(Error::new(
                    Code::Conflict,
                    format!(
                        "rbd-mirror of site {} still works on pool {pool} {} s after its peer was removed; it would take \
                         the end of an image's mirroring for the removal of the image. Stop it, and disconnect again",
                        end.row.name,
                        limit.as_secs()
                    ),
                ));
            }
            pause.rest().await;
        }
    }
    Ok(())
}

/// Whether a daemon says that it works on an image of the pool.
async fn replays(end: &End, pool: &str) -> Result<bool> {
    let ask = MirrorStatusPage { pool: pool.to_owned(), after: String::new(), limit: 500 };
    let page = end.site.insist(ask).await.map_err(|e| end.explain(e))?;
    let works = |state: &str| matches!(state, "replaying" | "syncing" | "starting_replay");
    Ok(page.images.iter().filter_map(|image| image.local.as_ref()).any(|s| s.up && works(&s.state)))
}

/// Pools that nothing is mirrored in any more, and that have no other peers. What stands in the way is told.
async fn disable_pools(operation: &Operation, end: &End, pools: &[String]) -> Result<Vec<String>> {
    operation.step("ending the mirroring of pools", &json!({"site": end.row.name})).await?;
    let mut left = Vec::new();
    for pool in pools {
        let ask = MirrorModeSet { pool: pool.clone(), mode: PoolMirrorMode::Disabled };
        match end.site.insist(ask).await {
            Ok(()) => crash::point("link:mode"),
            Err(e) if e.kind == RbdErrorKind::NoPool => {}
            // With images that are mirrored still librbd 16 answers EINVAL, with peers EBUSY.
            Err(e) if matches!(e.kind, RbdErrorKind::Busy | RbdErrorKind::Invalid) => left.push(format!(
                "pool {pool} of site {} stays mirrored: images there are mirrored still, or copies of others",
                end.row.name
            )),
            Err(e) => return Err(end.explain(e)),
        }
    }
    Ok(left)
}

/// Users by which the two reach each other. That of bootstrap tokens is one for the whole cluster.
async fn remove_clients(
    sites: &Sites,
    operation: &Operation,
    rows: &[LinkRow],
    a: &End,
    b: Option<&End>,
) -> Result<Vec<String>> {
    operation.step("removing users", &json!({})).await?;
    let staying: Vec<&LinkRow> = rows.iter().filter(|row| row.operation_id != operation.id()).collect();
    let mut left = Vec::new();
    for end in std::iter::once(a).chain(b) {
        let of = |row: &LinkRow| user_on(row, &end.row.fsid);
        let mut users: Vec<String> =
            rows.iter().filter(|row| row.operation_id == operation.id()).filter_map(of).collect();
        users.push(BOOTSTRAP_USER.to_owned());
        users.sort();
        users.dedup();
        for user in users {
            let needed = staying.iter().any(|row| of(row).as_ref() == Some(&user));
            let others = user == BOOTSTRAP_USER
                && end.look().await?.mirroring.values().any(|view| !view.peers.is_empty());
            if needed && user != BOOTSTRAP_USER {
                // Of its pools it keeps those that still connect the two.
                let of_user = staying.iter().filter(|row| of(row).as_ref() == Some(&user));
                let mut pools: Vec<String> = of_user
                    .flat_map(|row| std::iter::once(row.pool.clone()).chain(row.data_pool.clone()))
                    .collect();
                pools.sort();
                let ask = ClientPools { user: user.clone(), pools };
                end.site.insist(ask).await.map_err(|e| end.explain(e))?;
                crash::point("link:user-pools");
            }
            if needed || others {
                left.push(format!("client.{user} of site {} stays: other peers have it", end.row.name));
                continue;
            }
            end.site.insist(ClientRemove { user }).await.map_err(|e| end.explain(e))?;
            crash::point("link:user");
        }
    }
    tracing::debug!(host = sites.host, operation.id = operation.id(), "users of a link were removed");
    Ok(left)
}

/// Looks whether the two know each other still; what was found, in words.
async fn verify(
    operation: &Operation,
    pools: &[String],
    ends: &[(&End, &Seen, &Seen)],
) -> Result<Vec<String>> {
    operation.step("verifying", &json!({})).await?;
    let mut told = Vec::new();
    for (end, _, other) in ends.iter().rev() {
        let seen = end.look().await?;
        let knows = |pool: &&String| {
            let view = seen.mirroring.get(*pool);
            view.is_some_and(|view| view.peers.iter().any(|peer| other.is_peer(peer)))
        };
        let all: Vec<&String> = seen.mirroring.keys().filter(knows).collect();
        if let Some(pool) = all.iter().find(|pool| pools.contains(pool)) {
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "Pool {pool} of site {} knows {} again: the other's rbd-mirror runs still and has made itself \
                     known; disconnect again",
                    seen.name, other.name
                ),
            ));
        }
        told.push(match all.is_empty() {
            true => format!("no pool of {} knows {}", seen.name, other.name),
            false => format!("{} knows {} by {} other pools", seen.name, other.name, all.len()),
        });
    }
    Ok(told)
}
