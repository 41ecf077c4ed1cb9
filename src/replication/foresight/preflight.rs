//! Is everything ready to fail over now? Facts in, findings out; nothing is touched and nothing is asked here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Row, SiteView};
use super::finding::{Finding, Findings, Severity};
use super::forecast::{Fate, Forecast};
use super::lag::Lag;
use crate::db::admin::Fields;
use crate::rbd::mirror_survey::{Looked, MirrorPeer, PeerDirection};
use crate::rbd::types::{MirrorMode, PoolMirrorMode};
use crate::replication::orders::MOVES;
use crate::replication::plan::{Reason, Side};
use crate::replication::verdict::Verdict;

/// A site, as the document shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteState {
    /// `default` or a `backend_id`.
    pub name: String,
    /// `source`, `target` or `other`.
    pub role: String,
    /// `alive`, `degraded` or `dead`.
    pub verdict: String,
    /// Mode of the pool: `image`, `pool`, `disabled`; `None` when it could not be read.
    pub pool_mode: Option<String>,
    /// Addresses of its rbd-mirror daemons.
    pub daemons: Vec<String>,
    /// The one that leads them.
    pub leader: Option<String>,
    /// Its peers.
    pub peers: Vec<MirrorPeer>,
    /// Whether the client may fence others there.
    pub may_fence: Option<bool>,
}

/// The document of a preflight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// `host@backend` or `cluster@backend`.
    pub backend: String,
    /// Active site.
    pub from: String,
    /// Where a failover would go.
    pub to: String,
    /// Nothing stands in the way.
    pub ready: bool,
    /// The sites.
    pub sites: Vec<SiteState>,
    /// Volumes by what would become of them.
    pub volumes: BTreeMap<String, usize>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
}

/// Judges the facts. `forecasts` are those of `facts.rows`, in order.
pub(super) fn judge(facts: &Facts, to: &str, forecasts: &[Forecast]) -> Preflight {
    let from = facts.active.as_str();
    let mut findings = Findings::default();
    rows(facts, &mut findings);
    for (name, site) in &facts.sites {
        if name == from || name == to {
            of_site(name, site, name == to, &mut findings);
        }
    }
    capabilities(facts, from, to, &mut findings);
    let mut volumes: BTreeMap<String, usize> = BTreeMap::new();
    for (row, forecast) in facts.rows.iter().zip(forecasts) {
        *volumes.entry(forecast.fate.as_str().to_owned()).or_default() += 1;
        volume(facts, row, forecast, to, &mut findings);
    }
    let findings = findings.list();
    Preflight {
        backend: facts.backend.clone(),
        from: from.to_owned(),
        to: to.to_owned(),
        ready: findings.iter().all(|f| f.severity != Severity::Blocker),
        sites: sites(facts, from, to),
        volumes,
        findings,
    }
}

/// The sites of the document.
pub(super) fn sites(facts: &Facts, from: &str, to: &str) -> Vec<SiteState> {
    let role = |name: &str| match name {
        name if name == to => "target",
        name if name == from => "source",
        _ => "other",
    };
    let mode = |mode: PoolMirrorMode| match mode {
        PoolMirrorMode::Disabled => "disabled",
        PoolMirrorMode::Image => "image",
        PoolMirrorMode::Pool => "pool",
    };
    facts
        .sites
        .iter()
        .map(|(name, site)| {
            let pool = site.pool.as_ref().ok();
            SiteState {
                name: name.clone(),
                role: role(name).to_owned(),
                verdict: site.verdict.as_str().to_owned(),
                pool_mode: pool.map(|p| mode(p.mode).to_owned()),
                daemons: pool.map(|p| p.daemons.clone()).unwrap_or_default(),
                leader: pool.and_then(|p| p.leader.clone()),
                peers: pool.map(|p| p.peers.clone()).unwrap_or_default(),
                may_fence: site.may_fence,
            }
        })
        .collect()
}

/// What rows and journal say.
fn rows(facts: &Facts, findings: &mut Findings) {
    let backend = &facts.backend;
    let stuck = |f: &Fields| !matches!(f.replication_status.as_deref(), Some("enabled" | "failed-over"));
    let all = facts
        .cluster
        .iter()
        .map(|f| ("the cluster", f))
        .chain(facts.services.iter().map(|(host, f)| (host.as_str(), f)));
    for (name, fields) in all.clone().filter(|(_, f)| stuck(f)) {
        let status = fields.replication_status.as_deref().unwrap_or("NULL");
        findings.add(
            Severity::Blocker,
            "row-refused",
            None,
            format!("cinder-api refuses a failover: the row of {name} says {status}"),
            format!("scoria-manage replication reset --backend {backend}"),
        );
    }
    if all.clone().any(|(_, f)| f.frozen) {
        findings.add(
            Severity::Note,
            "frozen",
            None,
            "the backend is frozen",
            "a failover works all the same; thaw it afterwards (cinder thaw-host)",
        );
    }
    for (id, method, _) in facts.open.iter().filter(|(_, method, _)| MOVES.contains(&method.as_str())) {
        findings.add(
            Severity::Blocker,
            "move-open",
            None,
            format!("operation {id} ({method}) is moving volumes of this backend"),
            format!("scoria-manage operation show {id} --follow"),
        );
    }
    let others = facts.open.iter().filter(|(_, method, _)| !MOVES.contains(&method.as_str())).count();
    if others > 0 {
        findings.add(
            Severity::Note,
            "open-operations",
            None,
            format!("{others} other operations are open"),
            "a failover gives them ten seconds to end, and goes on without them; they end after it",
        );
    }
}

/// What one of the two sites says of itself.
fn of_site(name: &str, site: &SiteView, is_target: bool, findings: &mut Findings) {
    match (site.verdict, is_target) {
        (Verdict::Alive, _) => {}
        (Verdict::Dead, true) => findings.add(
            Severity::Blocker,
            "target-dead",
            Some(name),
            "the target site is dead: a failover to it is refused",
            "bring it back, or name another target",
        ),
        (Verdict::Degraded, true) => findings.add(
            Severity::Warning,
            "target-degraded",
            Some(name),
            "the target site answers slowly or in part",
            "look at its health (ceph -s) before you order anything",
        ),
        (Verdict::Dead, false) => findings.add(
            Severity::Warning,
            "source-dead",
            Some(name),
            "the active site is dead: volumes are promoted by force, what had not arrived is lost",
            "fail over if it stays dead; when it returns, resync (docs/scoria-manage.md)",
        ),
        (Verdict::Degraded, false) => findings.add(
            Severity::Warning,
            "source-degraded",
            Some(name),
            "the active site answers slowly or in part: nothing is forced, volumes that cannot be demoted stay",
            "repair it, or stop it for good",
        ),
    }
    let pool = match &site.pool {
        Ok(pool) => pool,
        Err(_) if site.verdict == Verdict::Dead => return,
        Err(reason) => {
            let severity = if is_target { Severity::Blocker } else { Severity::Warning };
            let text = format!("the mirroring of its pool cannot be read: {reason}");
            findings.add(
                severity,
                "pool-unreadable",
                Some(name),
                text,
                "check the pool and the client's caps",
            );
            return;
        }
    };
    let bad = if is_target { Severity::Blocker } else { Severity::Warning };
    match pool.mode {
        PoolMirrorMode::Image => {}
        PoolMirrorMode::Disabled => findings.add(
            bad,
            "pool-not-mirrored",
            Some(name),
            "mirroring of the pool is off",
            "rbd mirror pool enable POOL image, and peers on both sites",
        ),
        PoolMirrorMode::Pool => findings.add(
            Severity::Warning,
            "pool-mode",
            Some(name),
            "the pool is mirrored as a whole, not image by image: every journaled image is",
            "rbd mirror pool enable POOL image",
        ),
    }
    let back = "changes made after a failover will not come back here";
    if pool.daemons.is_empty() {
        let text = if is_target {
            "no rbd-mirror serves the pool: no copy is kept up to date".to_owned()
        } else {
            format!("no rbd-mirror serves the pool: {back}")
        };
        findings.add(bad, "no-daemon", Some(name), text, "start rbd-mirror on that site");
    } else if pool.leader.is_none() {
        findings.add(
            Severity::Warning,
            "no-leader",
            Some(name),
            "none of its rbd-mirror daemons leads: images are given to none of them",
            "look at their logs; restart them",
        );
    }
    let receives = |p: &MirrorPeer| matches!(p.direction, PeerDirection::Receives | PeerDirection::Both);
    if !pool.peers.iter().any(receives) {
        let what = if pool.peers.is_empty() { "has no peer" } else { "only sends to its peers" };
        let text = if is_target {
            format!("the pool {what}: it takes no copies")
        } else {
            format!("the pool {what}: {back}")
        };
        findings.add(bad, "no-peer", Some(name), text, "rbd mirror pool peer bootstrap create/import, rx-tx");
    }
}

/// A forced promotion is worth nothing when the lock of the target's own daemon cannot be broken.
fn capabilities(facts: &Facts, from: &str, to: &str, findings: &mut Findings) {
    let Some(target) = facts.sites.get(to) else { return };
    if target.may_fence != Some(false) {
        return;
    }
    let dead = facts.sites.get(from).is_some_and(|s| s.verdict == Verdict::Dead);
    findings.add(
        if dead { Severity::Blocker } else { Severity::Warning },
        "caps",
        Some(to),
        "the client may not fence others: after a forced promotion volumes would stay read-only, locked by the site's own rbd-mirror",
        "give it the monitor capability 'profile rbd' (ceph auth caps)",
    );
}

/// What one volume needs.
fn volume(facts: &Facts, row: &Row, forecast: &Forecast, to: &str, findings: &mut Findings) {
    let id = row.volume.id.as_str();
    let from = forecast.from.as_str();
    match forecast.fate {
        Fate::Stay | Fate::Lost => {
            let reason = forecast.reason.unwrap_or(Reason::SourceUnreadable);
            findings.about(id, Severity::Blocker, "volume-stays", None, reason.text(), advice(reason));
        }
        Fate::MoveOneWay => findings.about(
            id,
            Severity::Warning,
            "not-linked",
            Some(from),
            "the rbd-mirror of the site that it leaves does not know its copy yet: it is waited for, 45 s at most; \
             without it the image there needs a full copy afterwards",
            "wait, or restart that rbd-mirror",
        ),
        Fate::Promote => findings.about(
            id,
            Severity::Warning,
            "no-primary",
            None,
            "its image is primary nowhere",
            "a failover promotes it; or rbd mirror image promote on the site that serves it",
        ),
        Fate::NotCapable => findings.about(
            id,
            Severity::Warning,
            "not-replicated",
            None,
            "not replicated: out of reach and in error until failback",
            "retype it to a replicated type",
        ),
        Fate::Busy => findings.about(
            id,
            Severity::Note,
            "busy",
            None,
            "being made or deleted: left to its request",
            "wait for it",
        ),
        Fate::Move | Fate::Force | Fate::Already | Fate::Untouched => {}
    }
    if let Some(stray) = row.stray.as_deref().filter(|site| *site != facts.active) {
        findings.about(
            id,
            Severity::Warning,
            "stray",
            Some(stray),
            "still served from there although its backend works elsewhere",
            format!("scoria-manage replication retry --backend {}", facts.backend),
        );
    }
    if !forecast.fate.arrives() || forecast.fate == Fate::Already {
        return;
    }
    copy(facts, row, to, findings);
    source(facts, row, from, findings);
}

/// What its copy on the target says.
fn copy(facts: &Facts, row: &Row, to: &str, findings: &mut Findings) {
    let id = row.volume.id.as_str();
    let Some(target) = facts.sites.get(to) else { return };
    if let Some(owners) = target.owners.get(&row.image) {
        findings.about(
            id,
            Severity::Warning,
            "copy-locked",
            Some(to),
            format!("its copy is locked by {}, which is no rbd-mirror of that site", owners.join(", ")),
            "find out who has it open; a lock of a stranger is never broken, and keeps writers out",
        );
    }
    let Some(Looked::Seen(seen)) = target.images.get(&row.image) else { return };
    let lag = Lag::read(&seen.report);
    if seen.report.info.mode != MirrorMode::Snapshot {
        return;
    }
    match (lag.complete_at, row.rpo_seconds) {
        (None, _) => findings.about(
            id,
            Severity::Warning,
            "no-point",
            Some(to),
            "its copy does not say that it holds a complete mirror snapshot",
            "wait for the next one, or make one: rbd mirror image snapshot",
        ),
        (Some(at), Some(rpo)) if facts.now - at > rpo => findings.about(
            id,
            Severity::Warning,
            "behind",
            Some(to),
            format!("its copy is older than the {rpo} s that its type asks for"),
            "check the schedule, and the link between the sites",
        ),
        (Some(_), _) => {}
    }
}

/// What its image says where it is served.
fn source(facts: &Facts, row: &Row, from: &str, findings: &mut Findings) {
    let id = row.volume.id.as_str();
    let Some(source) = facts.sites.get(from) else { return };
    let Some(Looked::Seen(seen)) = source.images.get(&row.image) else { return };
    if let Some(parent) = &seen.parent {
        match facts.parent_side(from, &parent.pool, &parent.image) {
            Side::Primary | Side::Secondary | Side::Unknown => {}
            Side::Plain | Side::Absent => findings.about(
                id,
                Severity::Warning,
                "parent-not-mirrored",
                Some(from),
                format!("its parent {}/{} is not mirrored", parent.pool, parent.image),
                "rbd flatten, or mirror the parent: the copy cannot be made anew without it",
            ),
        }
    }
    let Ok(pool) = &source.pool else { return };
    let is_snapshot = seen.report.info.mode == MirrorMode::Snapshot;
    if is_snapshot && !pool.scheduled && !pool.scheduled_images.contains(&seen.id) {
        findings.about(
            id,
            Severity::Warning,
            "no-schedule",
            Some(from),
            "mirrored by snapshots, and neither it nor its pool has a schedule for them",
            "rbd mirror snapshot schedule add (one for the whole cluster cannot be seen from here)",
        );
    }
}

/// What to do before a failover so that a volume does not stay behind for this reason.
fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::BothPrimary => {
            "scoria-manage replication resync --discard SITE, for the side whose data you give up"
        }
        Reason::NotMirrored => "scoria-manage replication audit --repair",
        Reason::PeerMissing => "check rbd-mirror of the target site and its peer; is its parent mirrored?",
        Reason::PeerNotReady => "rbd mirror image status on the target site says what its daemon waits for",
        Reason::TargetUnreadable | Reason::TargetSilent => "bring the target site back",
        Reason::SourceUnreadable | Reason::SourceDied => "repair the active site, or stop it for good",
        Reason::DemoteFailed | Reason::PromoteNotAccepted | Reason::NotWritable | Reason::NoPrimary => {
            "rbd mirror image status on both sites"
        }
    }
}
