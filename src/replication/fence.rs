//! Keeping the clients of the old primary out, when volumes were taken away from it.
//!
//! After an unplanned failover the dead site comes back with its images primary, and servers that ran there may go
//! on writing to them: what they write is lost when that side is resynced, and nobody tells them. A fence is an
//! entry in the site's OSD blocklist for each client that has such an image open. Never for the site's own
//! rbd-mirror, and never for Scoria's workers.
//!
//! A fence that is wanted is a row (`db::fence`), and [`reconcile`] lays it when the site answers: it may be dead for
//! days. It takes no input and may be repeated.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tracing::{info, warn};

use super::failover::Moved;
use super::ledger::FenceNote;
use super::verdict;
use crate::backend::Backend;
use crate::db::fence::Fence;
use crate::db::{self, Conn, fence};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{Scope, Volume};
use crate::rbd::Site;
use crate::rbd::protocol::{
    BlocklistAdd, BlocklistEntries, BlocklistRemove, ImageWatchers, LockOwners, MirrorDaemons,
};
use crate::volume::crash;

/// How long a fence holds when nobody says: long enough to resync, and it does not outlive its purpose for ever.
pub const SECONDS: u32 = 86_400;
/// How long a site that is back is looked at: its clients come back one by one.
const LOOKED_AT: u32 = 120;
/// One question to a site.
const ANSWER: Duration = Duration::from_secs(10);

/// What a failover from `site` notes of the volumes that it forces, when that is wanted.
pub(super) fn note(backend: &Backend, site: &str) -> Option<FenceNote> {
    let backend_name = name_of(&backend.scope()).to_owned();
    backend.config.fence_on_failover.then(|| FenceNote { backend: backend_name, site: site.to_owned() })
}

/// In the last transaction of a failover: what was noted is wanted now, unless its volume was left behind.
pub(super) async fn settle(conn: &mut Conn, backend: &Backend, moved: &Moved) -> Result<()> {
    let done: Vec<String> = moved.done.iter().map(|v| v.id.clone()).collect();
    let left: Vec<String> = moved.failed.iter().map(|(v, _, _)| v.id.clone()).collect();
    fence::settle(conn, name_of(&backend.scope()), &done, &left).await
}

/// The name under which a backend's fences are kept.
pub fn name_of(scope: &Scope) -> &str {
    match scope {
        Scope::Host(name) | Scope::Cluster(name) => name,
    }
}

/// `replication fence`: the clients of volumes that are served from elsewhere, or of `only` these, are fenced on
/// `site`, now or as soon as it answers.
///
/// # Errors
/// `InvalidReplicationTarget` for an unknown site, or one that serves a volume which was named; `InvalidVolume`.
pub async fn lay(
    backend: &Backend,
    operation: &Operation,
    site: &str,
    only: Option<&[String]>,
    seconds: u32,
) -> Result<()> {
    backend.site(site)?;
    let scope = backend.scope();
    let (found, strays) = backend
        .db
        .read("volumes to fence", async |conn| {
            let found = db::failover::replicated(conn, &scope).await?;
            let ids: Vec<String> = found.iter().map(|v| v.id.clone()).collect();
            Ok((found, db::stray::list(conn, &ids).await?))
        })
        .await?;
    let strays: HashMap<String, String> = strays.into_iter().collect();
    let chosen = choose(&found, &strays, &backend.active_name(), site, only, backend.host())?;
    let name = name_of(&scope);
    operation
        .write("fences wanted", async |conn| fence::want(conn, name, site, &chosen, seconds, false).await)
        .await?;
    crash::point("fence:wanted");
    let answered = look(backend, site).await?;
    let rows = backend.db.read("fences", async |conn| fence::list(conn, name).await).await?;
    let clients: BTreeSet<&str> = rows
        .iter()
        .filter(|r| r.is_laid() && r.site == site && chosen.contains(&r.volume_id))
        .map(|r| r.address.as_str())
        .collect();
    let detail = match answered {
        true => format!("{} clients of {} volumes are fenced on {site}", clients.len(), chosen.len()),
        false => format!(
            "site {site} does not answer: the clients of {} volumes are fenced when it does",
            chosen.len()
        ),
    };
    info!(backend = backend.host(), "{detail}");
    backend.journal.finish(operation, &Outcome { detail: Some(detail), ..Outcome::succeeded() }).await
}

/// The volumes whose clients `site` may be closed to: replicated, and served from elsewhere.
///
/// # Errors
/// As [`lay`].
pub fn choose(
    found: &[Volume],
    strays: &HashMap<String, String>,
    active: &str,
    site: &str,
    only: Option<&[String]>,
    backend: &str,
) -> Result<Vec<String>> {
    let is_here = |id: &String| strays.get(id).map_or(active, String::as_str) == site;
    let known: Vec<String> =
        found.iter().filter(|v| v.replication_status.is_some()).map(|v| v.id.clone()).collect();
    let Some(named) = only else { return Ok(known.into_iter().filter(|id| !is_here(id)).collect()) };
    for id in named {
        if !known.contains(id) {
            let text = format!("Volume {id} is not a replicated volume of backend {backend}");
            return Err(Error::new(Code::InvalidVolume, text));
        }
        if is_here(id) {
            let text = format!("Volume {id} is served from {site}: its clients there are its users");
            return Err(Error::new(Code::InvalidReplicationTarget, text));
        }
    }
    Ok(named.to_vec())
}

/// `replication unfence`: the clients that were fenced because of these volumes (`None`: of any) may come back.
///
/// # Errors
/// `InvalidReplicationTarget` for an unknown site; what its monitors answer.
pub async fn lift(
    backend: &Backend,
    operation: &Operation,
    site: &str,
    only: Option<&[String]>,
) -> Result<()> {
    let ceph = backend.site(site)?;
    let scope = backend.scope();
    let name = name_of(&scope);
    let rows = backend.db.read("fences", async |conn| fence::list(conn, name).await).await?;
    let rows: Vec<Fence> = rows.into_iter().filter(|r| r.site == site).collect();
    let asked = |r: &&Fence| only.is_none_or(|ids| ids.contains(&r.volume_id));
    // One client may have several of the volumes open: it stays out while one of those is still fenced.
    let kept: HashSet<&str> =
        rows.iter().filter(|r| r.is_laid() && !asked(r)).map(|r| r.address.as_str()).collect();
    let gone: BTreeSet<&str> = rows
        .iter()
        .filter(|r| r.is_laid() && asked(r) && !kept.contains(r.address.as_str()))
        .map(|r| r.address.as_str())
        .collect();
    let ids: BTreeSet<String> = rows.iter().filter(asked).map(|r| r.volume_id.clone()).collect();
    let ids: Vec<String> = ids.into_iter().collect();
    // First, or they would be laid again.
    operation.write("fences withdrawn", async |conn| fence::withdraw(conn, name, site, &ids).await).await?;
    for address in &gone {
        let remove = BlocklistRemove { address: (*address).to_owned() };
        match ceph.call_within(ANSWER, remove).await {
            Ok(()) => info!(site, client = address, "unfenced a client"),
            Err(e) if e.is_not_found() => {}
            Err(e) => {
                return Err(Error::from(e).detail(format!("client {address} is still fenced on {site}")));
            }
        }
    }
    crash::point("fence:lifted");
    let detail = format!(
        "{} clients are no longer fenced on {site}, {} because of other volumes",
        gone.len(),
        kept.len()
    );
    let outcome = Outcome { detail: Some(detail), ..Outcome::succeeded() };
    backend
        .journal
        .complete(operation, &outcome, async |conn| fence::forget(conn, name, site, &ids).await)
        .await
}

/// Lays what is wanted on sites that answer, and asks them which fences still hold.
///
/// # Errors
/// `Database`.
pub async fn reconcile(backend: &Backend) -> Result<()> {
    let scope = backend.scope();
    let rows = backend.db.read("fences", async |conn| fence::list(conn, name_of(&scope)).await).await?;
    let sites: BTreeSet<&str> = rows.iter().filter(|r| r.state != "noted").map(|r| r.site.as_str()).collect();
    for site in sites {
        look(backend, site).await?;
    }
    Ok(())
}

/// The same on one site; whether it answers.
async fn look(backend: &Backend, name: &str) -> Result<bool> {
    let Ok(site) = backend.site(name) else { return Ok(false) };
    if !verdict::answers(&site, &backend.config.pool, backend.config.verdict_timeout).await {
        return Ok(false);
    }
    let scope = backend.scope();
    let kept = name_of(&scope).to_owned();
    let rows = backend.db.read("fences", async |conn| fence::list(conn, &kept).await).await?;
    let wanted: Vec<&Fence> = rows.iter().filter(|r| r.site == name && r.is_wanted()).collect();
    if !wanted.is_empty() {
        let seconds = wanted.iter().map(|r| r.seconds).max().unwrap_or_default();
        let ids: Vec<String> = wanted.iter().map(|r| r.volume_id.clone()).collect();
        lay_wanted(backend, &kept, &site, &ids, seconds).await?;
    }
    refresh(backend, &kept, &site).await?;
    Ok(true)
}

async fn lay_wanted(backend: &Backend, kept: &str, site: &Site, ids: &[String], seconds: i32) -> Result<()> {
    let (volumes, strays) = backend
        .db
        .read("volumes to fence", async |conn| {
            Ok((db::volume::get_many(conn, ids).await?, db::stray::list(conn, ids).await?))
        })
        .await?;
    let strays: HashMap<String, String> = strays.into_iter().collect();
    let active = backend.active_name();
    // One that has come back, or is gone, has no clients to keep out.
    let left = |v: &&Volume| strays.get(&v.id).unwrap_or(&active) != site.name();
    let away: Vec<&Volume> = volumes.iter().filter(left).collect();
    let returned: Vec<String> = ids.iter().filter(|id| !away.iter().any(|v| v.id == **id)).cloned().collect();
    let name = site.name().to_owned();
    backend
        .db
        .write("fences of volumes that are back", async |conn| {
            fence::withdraw(conn, kept, &name, &returned).await
        })
        .await?;
    let Some(clients) = clients_of(backend, site, &away).await? else { return Ok(()) };
    backend.db.write("fences", async |conn| fence::laid(conn, kept, &name, &clients, seconds).await).await?;
    crash::point("fence:recorded");
    let mut complete = true;
    let addresses: BTreeSet<&str> = clients.iter().map(|(_, address)| address.as_str()).collect();
    for address in addresses {
        let add =
            BlocklistAdd { address: address.to_owned(), seconds: u32::try_from(seconds).unwrap_or(SECONDS) };
        match site.call_within(ANSWER, add).await {
            Ok(()) => info!(
                site = site.name(),
                client = address,
                seconds,
                "fenced a client of volumes that have left"
            ),
            Err(error) => {
                complete = false;
                warn!(site = site.name(), client = address, %error, "could not fence a client of volumes that have left");
            }
        }
    }
    if complete {
        let ids: Vec<String> = away.iter().map(|v| v.id.clone()).collect();
        backend
            .db
            .write("fences laid", async |conn| fence::answered(conn, kept, &name, &ids, LOOKED_AT).await)
            .await?;
    }
    Ok(())
}

/// Who has the volumes' images open on `site`, (volume, address); `None` when it cannot be told who is whom.
async fn clients_of(
    backend: &Backend,
    site: &Site,
    volumes: &[&Volume],
) -> Result<Option<Vec<(String, String)>>> {
    let pool = &backend.config.pool;
    let daemons = site.call_within(ANSWER, MirrorDaemons { pool: pool.clone() }).await;
    let facts = backend.facts(site).await;
    let (daemons, facts) = match (daemons, facts) {
        (Ok(daemons), Ok(facts)) => (daemons, facts),
        (Err(error), _) => {
            warn!(site = site.name(), %error, "nobody is fenced: cannot tell which clients are rbd-mirror's");
            return Ok(None);
        }
        (_, Err(error)) => {
            warn!(site = site.name(), %error, "nobody is fenced: cannot tell which clients are our own");
            return Ok(None);
        }
    };
    let own =
        backend.db.read("own clients", async |conn| fence::own_clients(conn, &facts.fsid).await).await?;
    let spared: HashSet<String> = daemons.into_iter().chain(own).collect();
    let mut clients = Vec::new();
    for volume in volumes {
        let (pool, image) = (pool.clone(), backend.image_name(volume));
        let watchers = site.call_within(ANSWER, ImageWatchers { pool: pool.clone(), image: image.clone() });
        let owners = site.call_within(ANSWER, LockOwners { pool, image });
        let (watchers, owners) = tokio::join!(watchers, owners);
        let mut addresses = BTreeSet::new();
        match watchers {
            Ok(watchers) => addresses.extend(watchers.into_iter().map(|w| w.address)),
            Err(error) if error.is_not_found() => continue,
            Err(error) => {
                warn!(volume.id = volume.id, site = site.name(), %error, "could not see who has an image open");
                return Ok(None);
            }
        }
        // Without a watch it is a lock that nobody holds any more: a fence does no harm.
        addresses.extend(owners.unwrap_or_default());
        clients.extend(addresses.into_iter().filter(|a| !spared.contains(a)).map(|a| (volume.id.clone(), a)));
    }
    Ok(Some(clients))
}

/// What the cluster says of the fences that were laid: until when they hold, and which have gone.
async fn refresh(backend: &Backend, kept: &str, site: &Site) -> Result<()> {
    let rows = backend.db.read("fences", async |conn| fence::list(conn, kept).await).await?;
    let laid: BTreeMap<&str, Option<&str>> = rows
        .iter()
        .filter(|r| r.site == site.name() && r.is_laid())
        .map(|r| (r.address.as_str(), r.expires.as_deref()))
        .collect();
    if laid.is_empty() {
        return Ok(());
    }
    let entries = match site.call_within(ANSWER, BlocklistEntries {}).await {
        Ok(entries) => entries,
        Err(error) => {
            warn!(site = site.name(), %error, "could not ask which fences hold");
            return Ok(());
        }
    };
    let found: HashMap<String, String> = entries.into_iter().map(|e| (e.address, e.until)).collect();
    let (mut held, mut gone) = (Vec::new(), Vec::new());
    for (address, known) in laid {
        match found.get(address) {
            Some(until) if known == Some(until.as_str()) => {}
            Some(until) => held.push((address.to_owned(), until.clone())),
            None => gone.push(address.to_owned()),
        }
    }
    if held.is_empty() && gone.is_empty() {
        return Ok(());
    }
    let name = site.name();
    backend
        .db
        .write("fences as the site has them", async |conn| fence::seen(conn, kept, name, &held, &gone).await)
        .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_is_served_from_elsewhere_is_closed() {
        let volume = |id: &str| Volume {
            id: id.into(),
            replication_status: Some("failed-over".into()),
            ..Volume::default()
        };
        let found = [volume("a"), volume("b"), Volume { replication_status: None, ..volume("c") }];
        let strays = HashMap::from([("b".to_owned(), "default".to_owned())]);
        let chosen = |only: Option<&[String]>| choose(&found, &strays, "west", "default", only, "h@b");
        assert_eq!(chosen(None).unwrap(), ["a"]);
        assert_eq!(chosen(Some(&["a".to_owned()])).unwrap(), ["a"]);
        for (name, code) in
            [("b", Code::InvalidReplicationTarget), ("c", Code::InvalidVolume), ("d", Code::InvalidVolume)]
        {
            assert_eq!(chosen(Some(&[name.to_owned()])).unwrap_err().code(), code);
        }
    }
}
