//! How the rbd-mirror daemons of a site are, pool by pool, and what follows from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::reach::Reached;
use super::super::{Sites, probe};
use super::unit::{self, UnitState};
use super::{Means, Slot};
use crate::db::mirror_daemon::{self, DaemonRow};
use crate::error::Result;
use crate::rbd::mirror_survey::{MirrorPool, PeerDirection};
use crate::rbd::protocol::{MirrorPoolView, MirrorServices, MirrorStatusPage};
use crate::rbd::types::{MirrorListed, MirrorService, PoolMirrorMode};
use crate::rbd::{RbdErrorKind, Site};
use crate::replication::lag::figures::Figures;

/// Images of a pool that are asked for at once.
const PAGE: u32 = 500;

/// A mirrored pool of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// Its name.
    pub pool: String,
    /// `image` or `pool`.
    pub mode: String,
    /// Names of the sites that it takes copies from.
    pub from: Vec<String>,
    /// Names of the sites that take copies from it.
    pub to: Vec<String>,
    /// Addresses of the daemons that serve it.
    pub daemons: Vec<String>,
    /// The one that leads them.
    pub leader: Option<String>,
    /// Images by what the site's own daemon says of them: `replaying`, `stopped` …; `down` of one that is not served.
    pub images: BTreeMap<String, u64>,
    /// Journal entries that the furthest copy is behind, where daemons say.
    pub entries_behind: Option<i64>,
    /// Seconds that the daemon needs for the slowest copy, where it says.
    pub seconds_until_synced: Option<i64>,
}

/// A daemon that a service of Scoria has to do with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Daemon {
    /// `[DEFAULT] host` of the service.
    pub host: String,
    /// Who runs it.
    pub means: String,
    /// cephx user without `client.`.
    pub client: String,
    /// Unit or placement.
    pub what: String,
    /// `running` or `stopped`.
    pub wanted: String,
    /// A child's state; `None` where somebody else knows it.
    pub state: Option<String>,
    /// A child's process.
    pub pid: Option<i64>,
    /// How often it has ended by itself.
    pub ended: i32,
    /// The end of its log then.
    pub detail: Option<String>,
    /// Where its log is, on its host.
    pub log: Option<String>,
    /// This host's unit, as systemd tells.
    pub unit: Option<UnitState>,
}

/// All that is known of the daemons of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// The site.
    pub site: String,
    /// Its cluster.
    pub fsid: String,
    /// Its mirrored pools.
    pub pools: Vec<PoolView>,
    /// All daemons, as they report to the manager; `None` where the client may not ask.
    pub services: Option<Vec<MirrorService>>,
    /// Those that Scoria has to do with.
    pub ours: Vec<Daemon>,
    /// What is wrong, and what to do.
    pub findings: Vec<String>,
}

/// Looks at the daemons of a site.
///
/// # Errors
/// What Ceph answers; `Database`.
pub(super) async fn standing(sites: &Sites, reached: &Reached) -> Result<Standing> {
    let site = &reached.site;
    let mut pools = Vec::new();
    for name in rbd_pools(sites, reached).await? {
        match site.call(MirrorPoolView { pool: name.clone() }).await {
            Ok(view) if view.mode != PoolMirrorMode::Disabled => pools.push(pool(site, &name, &view).await?),
            Ok(_) => {}
            // Gone since it was listed, or none of ours.
            Err(e) if matches!(e.kind, RbdErrorKind::NoPool | RbdErrorKind::Permission) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let services = match site.call(MirrorServices {}).await {
        Ok(services) => services,
        // A manager that does not answer stops no daemon.
        Err(e) if matches!(e.kind, RbdErrorKind::TimedOut) => None,
        Err(e) => return Err(e.into()),
    };
    let fsid = reached.row.fsid.as_str();
    let rows = sites.db.read("daemons", async |conn| mirror_daemon::of_site(conn, fsid).await).await?;
    let mut ours = Vec::new();
    for row in rows {
        ours.push(daemon(sites, row).await);
    }
    let findings = findings(&reached.row.name, &pools, services.as_deref(), &ours);
    Ok(Standing { site: reached.row.name.clone(), fsid: fsid.to_owned(), pools, services, ours, findings })
}

/// Pools for RBD, as the last look at the site has listed them; asks when there was none.
async fn rbd_pools(sites: &Sites, reached: &Reached) -> Result<Vec<String>> {
    let known: Option<probe::Report> = serde_json::from_str(&reached.row.report).ok();
    let all = match known {
        Some(report) if !report.pools.is_empty() => {
            report.pools.into_iter().map(|p| (p.name, p.applications)).collect::<Vec<_>>()
        }
        _ => {
            let status = reached.site.call(crate::rbd::protocol::ClusterStatus {}).await?;
            status.pools.into_iter().map(|p| (p.name, p.applications)).collect()
        }
    };
    let fsid = reached.row.fsid.as_str();
    let used =
        sites.db.read("uses of a site", async |c| crate::db::site_use::of(c, Some(fsid)).await).await?;
    let mut names: Vec<String> = all
        .into_iter()
        .filter(|(_, uses)| uses.is_empty() || uses.iter().any(|u| u == "rbd"))
        .map(|(name, _)| name)
        .chain(used.into_iter().map(|u| u.pool))
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

async fn pool(site: &Site, name: &str, view: &MirrorPool) -> Result<PoolView> {
    let (mut images, mut entries, mut seconds) = (BTreeMap::new(), None, None);
    let mut after = String::new();
    loop {
        let page = site.call(MirrorStatusPage { pool: name.to_owned(), after, limit: PAGE }).await?;
        let Some(last) = page.images.last() else { break };
        after = last.id.clone();
        for image in &page.images {
            let (state, figures) = said(image);
            *images.entry(state).or_insert(0) += 1;
            entries = entries.max(figures.entries_behind);
            seconds = seconds.max(figures.seconds_until_synced);
        }
    }
    let linked = |wanted: PeerDirection| {
        let peers = view.peers.iter().filter(|p| p.direction == wanted || p.direction == PeerDirection::Both);
        peers.map(|p| p.site_name.clone()).collect()
    };
    Ok(PoolView {
        pool: name.to_owned(),
        mode: if view.mode == PoolMirrorMode::Pool { "pool" } else { "image" }.to_owned(),
        from: linked(PeerDirection::Receives),
        to: linked(PeerDirection::Sends),
        daemons: view.daemons.clone(),
        leader: view.leader.clone(),
        images,
        entries_behind: entries,
        seconds_until_synced: seconds,
    })
}

fn said(image: &MirrorListed) -> (String, Figures) {
    match &image.local {
        Some(local) if local.up => (local.state.clone(), Figures::of(&local.description)),
        Some(_) => ("down".to_owned(), Figures::default()),
        None => ("unknown".to_owned(), Figures::default()),
    }
}

async fn daemon(sites: &Sites, row: DaemonRow) -> Daemon {
    let means = Means::parse(&row.means).ok();
    let here = row.host == sites.host;
    let unit = match means {
        // A systemd that does not answer says so; the rest is worth having all the same.
        Some(Means::Systemd) if here => Some(match unit::state(&sites.programs.systemctl, &row.what).await {
            Ok(state) => state,
            Err(e) => {
                UnitState { unit: row.what.clone(), active: "unknown".into(), sub: e.user().into(), pid: 0 }
            }
        }),
        _ => None,
    };
    let child = means == Some(Means::Child);
    let log = Slot::new(&sites.programs.dir, &row.fsid).log();
    Daemon {
        host: row.host,
        means: row.means,
        client: row.client,
        what: row.what,
        wanted: row.wanted,
        state: child.then_some(row.state),
        pid: row.pid,
        ended: row.ended,
        detail: row.detail,
        log: (child && here).then(|| log.display().to_string()),
        unit,
    }
}

/// What is wrong, in sentences that say what to do. Pure.
fn findings(
    site: &str,
    pools: &[PoolView],
    services: Option<&[MirrorService]>,
    ours: &[Daemon],
) -> Vec<String> {
    let mut found = Vec::new();
    let start = format!("scoria-manage site daemon start {site}");
    for pool in pools {
        let name = &pool.pool;
        match (pool.from.is_empty(), pool.daemons.is_empty()) {
            (false, true) => found.push(format!(
                "no rbd-mirror serves pool {name}, so that nothing arrives from {}; start one: {start} --by child (or systemd, orchestrator)",
                pool.from.join(", ")
            )),
            (true, true) if pool.to.is_empty() => {
                found.push(format!("pool {name} is mirrored and has no peer: nothing comes or goes"));
            }
            // One way: the daemon that is needed is the other side's.
            (true, true) => {}
            (_, false) if pool.leader.is_none() => {
                found.push(format!("no rbd-mirror leads those that serve pool {name}: nothing is copied until one does"));
            }
            (_, false) => {}
        }
        for state in ["error", "down", "unknown"] {
            if let Some(count) = pool.images.get(state).filter(|_| !pool.from.is_empty()) {
                found.push(format!("{count} of the images of pool {name} are in state {state}"));
            }
        }
    }
    let takes = pools.iter().any(|p| !p.from.is_empty());
    if !takes && ours.iter().any(|d| d.wanted == "running") {
        let to: Vec<&str> = pools.iter().flat_map(|p| p.to.iter().map(String::as_str)).collect();
        found.push(match to.first() {
            Some(to) => format!("{site} only sends: its own daemon has nothing to do, that of {to} copies"),
            None => format!("no pool of {site} has a peer: its daemon has nothing to do yet"),
        });
    }
    for service in services.into_iter().flatten() {
        for pool in &service.pools {
            for (level, text) in &pool.callouts {
                found.push(format!(
                    "daemon {} on {}, pool {}: {level}: {text}",
                    service.id, service.host, pool.name
                ));
            }
        }
    }
    for daemon in ours.iter().filter(|d| d.wanted == "running") {
        if let Some(state) = daemon.state.as_deref().filter(|s| !["running", "starting"].contains(s)) {
            found.push(format!(
                "the daemon of host {} is to run and is {state}; it has ended {} times: {}",
                daemon.host,
                daemon.ended,
                daemon.detail.as_deref().unwrap_or("its log says nothing")
            ));
        }
        if let Some(unit) = daemon.unit.as_ref().filter(|u| u.active != "active") {
            found.push(format!("unit {} is to run and is {} ({})", unit.unit, unit.active, unit.sub));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(from: &[&str], to: &[&str], daemons: &[&str], leader: Option<&str>) -> PoolView {
        let all = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        PoolView {
            pool: "volumes".into(),
            mode: "image".into(),
            from: all(from),
            to: all(to),
            daemons: all(daemons),
            leader: leader.map(str::to_owned),
            images: BTreeMap::new(),
            entries_behind: None,
            seconds_until_synced: None,
        }
    }

    fn said(pools: &[PoolView], ours: &[Daemon]) -> Vec<String> {
        findings("paris", pools, None, ours)
    }

    fn child(wanted: &str, state: &str) -> Daemon {
        Daemon {
            host: "node1".into(),
            means: "child".into(),
            client: "rbd-mirror.a".into(),
            what: String::new(),
            wanted: wanted.into(),
            state: Some(state.into()),
            pid: None,
            ended: 3,
            detail: Some("no key".into()),
            log: None,
            unit: None,
        }
    }

    #[test]
    fn a_daemon_is_missed_only_where_something_is_to_arrive() {
        assert!(said(&[view(&["rome"], &[], &["a"], Some("a"))], &[]).is_empty());
        assert!(said(&[view(&[], &["rome"], &[], None)], &[]).is_empty(), "one way: the other side's copies");
        let missing = said(&[view(&["rome"], &["rome"], &[], None)], &[]);
        assert!(missing[0].contains("nothing arrives from rome"), "{missing:?}");
        assert!(missing[0].contains("scoria-manage site daemon start paris --by"), "{missing:?}");
        assert!(said(&[view(&["rome"], &[], &["a"], None)], &[])[0].contains("leads"));
        assert!(said(&[view(&[], &[], &[], None)], &[])[0].contains("no peer"));
    }

    #[test]
    fn a_daemon_of_ours_that_does_not_run_is_told_with_its_last_words() {
        let good = [view(&["rome"], &[], &["a"], Some("a"))];
        assert!(said(&good, &[child("running", "running")]).is_empty());
        assert!(said(&good, &[child("stopped", "stopped")]).is_empty());
        let waiting = said(&good, &[child("running", "waiting")]);
        assert!(waiting[0].contains("has ended 3 times: no key"), "{waiting:?}");
        let idle = said(&[view(&[], &["rome"], &[], None)], &[child("running", "running")]);
        assert!(idle[0].contains("that of rome copies"), "{idle:?}");
    }
}
