//! Replicating images that Cinder does not know: one, or all of a pool.
//!
//! The image is prepared, enabled, and followed until its copy replays on the other side. Each image is a step of its
//! own in the journal; what is enabled is found enabled by whoever goes on. A volume is refused, with the command that
//! does it: its row would not know.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::info;

use super::reach::Reached;
use super::{Sites, item, owner};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::rbd::mirror_survey::{Looked, MirrorSurveyed, PeerDirection};
use crate::rbd::protocol::{ClusterStatus, ImageList, MirrorPoolView, MirrorStatusMany, MirrorSurvey};
use crate::rbd::types::{MirrorMode, MirrorReport, MirrorState, PoolMirrorMode};
use crate::rbd::{RbdErrorKind, Site};
use crate::replication::enable::{enable, mark_added};
use crate::replication::lag::figures::Figures;
use crate::volume::crash;

/// Images that one request looks at.
const CHUNK: usize = 128;
/// Between two looks at the copies. Daemons report every half minute, and at once when a state changes.
const PERIOD: Duration = Duration::from_secs(2);
/// Nothing has moved for so long: it will not by itself.
const PATIENCE: Duration = Duration::from_secs(600);

/// Replicate an image of a pool, or all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicateOrder {
    /// The site where they are primary.
    pub name: String,
    /// The pool.
    pub pool: String,
    /// The image; `None`: all that are no volumes.
    pub image: Option<String>,
    /// How.
    pub mode: MirrorMode,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What is to become of an image, or has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
enum Fate {
    /// To be enabled.
    Pending,
    /// Enabled; its copy is not there yet.
    Enabled {
        /// How much of it.
        percent: Option<i32>,
    },
    /// Its copy follows.
    Replaying,
    /// Left alone.
    Skipped {
        /// Why.
        reason: String,
    },
    /// Not done.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

impl Fate {
    fn is_open(&self) -> bool {
        match self {
            Fate::Pending | Fate::Enabled { .. } => true,
            Fate::Replaying | Fate::Skipped { .. } | Fate::Failed { .. } => false,
        }
    }
}

/// The images in the order in which they are enabled, parents first, with what is to become of each.
type Plan = Vec<(String, Fate)>;

/// Carries an order out.
pub(super) async fn run(sites: &Sites, operation: &Operation, order: &ReplicateOrder) -> Result<Value> {
    let reached = sites.reach(&order.name).await?;
    let ended = Box::pin(carry_out(sites, operation, order, &reached)).await;
    sites.part(&reached.site);
    ended
}

async fn carry_out(
    sites: &Sites,
    operation: &Operation,
    order: &ReplicateOrder,
    reached: &Reached,
) -> Result<Value> {
    let site = &reached.site;
    let to = check_pool(site, order).await?;
    let images = match &order.image {
        Some(image) => vec![image.clone()],
        None => site.insist(ImageList { pool: order.pool.clone() }).await?,
    };
    let volumes = owner::volumes(sites, &images).await?;
    if let Some((image, volume)) = order.image.as_ref().and_then(|image| volumes.get_key_value(image)) {
        return Err(Error::new(Code::Invalid, format!("{}/{image} is {}", order.pool, of_volume(volume))));
    }
    let mut plan = plan(site, order, &images, &volumes, &sites.volume_name).await?;
    if !order.dry_run {
        for (image, fate) in &mut plan {
            if *fate == Fate::Pending {
                *fate = enable_one(site, order, image).await?;
                crash::point("replicate:enabled");
            }
            operation.item_step(&item(image), "image", &*fate).await?;
        }
        follow(site, operation, order, &mut plan).await?;
    }
    let failed: Vec<String> = plan
        .iter()
        .filter_map(|(image, fate)| match fate {
            Fate::Failed { reason } => Some(format!("{image}: {reason}")),
            _ => None,
        })
        .collect();
    if let (Some(first), false) = (failed.first(), order.dry_run) {
        return Err(Error::new(
            Code::Replication,
            format!(
                "{} of {} images are not replicated; the first: {first}. The others are done; give the order again when \
                 that is mended",
                failed.len(),
                plan.len()
            ),
        ));
    }
    let images: Vec<Value> = plan.iter().map(|(image, fate)| json!({"image": image, "fate": fate})).collect();
    Ok(json!({
        "replicated": order.name, "pool": order.pool, "mode": order.mode, "to": to, "dry_run": order.dry_run,
        "images": images,
    }))
}

fn of_volume(volume: &str) -> String {
    format!(
        "volume {volume} of Cinder: give it a replicated type instead (cinder retype --migration-policy never {volume} \
         TYPE), or enable its group (cinder group-enable-replication)"
    )
}

/// Fails unless images of the pool can be mirrored; answers the names of the sites that take copies.
async fn check_pool(site: &Site, order: &ReplicateOrder) -> Result<Vec<String>> {
    let pool = &order.pool;
    let wrong = |text: String| Err(Error::new(Code::Invalid, text));
    let pools = site.insist(ClusterStatus {}).await?.pools;
    let Some(info) = pools.iter().find(|p| p.name == *pool) else {
        let names: Vec<&str> = pools.iter().map(|p| p.name.as_str()).collect();
        return Err(Error::new(
            Code::InvalidInput,
            format!("Site {} has no pool {pool}; it has: {}", order.name, names.join(", ")),
        ));
    };
    if info.erasure {
        return wrong(format!(
            "Pool {pool} is erasure-coded: it holds data of images, never the images themselves. Name the replicated pool \
             that they are in"
        ));
    }
    let view = site.insist(MirrorPoolView { pool: pool.clone() }).await?;
    match view.mode {
        PoolMirrorMode::Disabled => {
            return wrong(format!(
                "Mirroring of pool {pool} is off on site {}; connect it to another first: scoria-manage site connect",
                order.name
            ));
        }
        PoolMirrorMode::Pool if order.mode == MirrorMode::Snapshot => {
            return wrong(format!(
                "Pool {pool} is mirrored as a whole (mode pool), which is by journal only; use --mode journal"
            ));
        }
        PoolMirrorMode::Pool | PoolMirrorMode::Image => {}
    }
    let takers = view.peers.iter().filter(|p| p.direction != PeerDirection::Receives);
    let to: Vec<String> = takers.map(|p| p.site_name.clone()).collect();
    match (to.is_empty(), view.peers.is_empty()) {
        (false, _) => Ok(to),
        (true, true) => wrong(format!(
            "Pool {pool} of site {} has no peer: nobody would take the copies. Connect it first: scoria-manage site connect",
            order.name
        )),
        (true, false) => wrong(format!(
            "Pool {pool} of site {} only receives: give the order for the site that it receives from",
            order.name
        )),
    }
}

/// What is to become of each image.
async fn plan(
    site: &Site,
    order: &ReplicateOrder,
    images: &[String],
    volumes: &HashMap<String, String>,
    template: &str,
) -> Result<Plan> {
    let mut seen: BTreeMap<String, Looked> = BTreeMap::new();
    for chunk in images.chunks(CHUNK) {
        let looked = site.insist(MirrorSurvey { pool: order.pool.clone(), images: chunk.to_vec() }).await?;
        seen.extend(chunk.iter().cloned().zip(looked));
    }
    let mut fates: BTreeMap<String, Fate> = BTreeMap::new();
    for (image, looked) in &seen {
        let fate = match volumes.get(image) {
            Some(volume) => Fate::Skipped { reason: of_volume(volume) },
            None if owner::volume_id(image, template).is_some() => {
                Fate::Skipped { reason: "what a deleted volume has left".to_owned() }
            }
            None => judge(order, looked),
        };
        fates.insert(image.clone(), fate);
    }
    Ok(sorted(&order.pool, &seen, fates, volumes))
}

/// An image by itself.
fn judge(order: &ReplicateOrder, looked: &Looked) -> Fate {
    let seen: &MirrorSurveyed = match looked {
        Looked::Absent => return Fate::Failed { reason: "there is no such image".to_owned() },
        Looked::Unreadable { reason } => {
            return Fate::Failed {
                reason: format!(
                    "it cannot be opened ({reason}); perhaps half of it is gone: scoria-manage rbd half-deleted"
                ),
            };
        }
        Looked::Seen(seen) => seen,
    };
    let info = &seen.report.info;
    match info.state {
        MirrorState::Disabled => Fate::Pending,
        MirrorState::Disabling => {
            Fate::Failed { reason: "its mirroring is being disabled; wait until that is done".to_owned() }
        }
        MirrorState::Enabled if !info.primary => {
            Fate::Skipped { reason: "a copy: it is primary on another site".to_owned() }
        }
        MirrorState::Enabled if info.mode != order.mode => Fate::Failed {
            reason: "it is mirrored in the other mode already; disable that first, or give --mode".to_owned(),
        },
        MirrorState::Enabled => Fate::Enabled { percent: None },
    }
}

/// Parents before children; a child whose parent is not mirrored, and will not be, cannot be either.
fn sorted(
    pool: &str,
    seen: &BTreeMap<String, Looked>,
    mut fates: BTreeMap<String, Fate>,
    volumes: &HashMap<String, String>,
) -> Plan {
    let mut done: BTreeSet<String> = BTreeSet::new();
    let mut plan: Plan = Vec::new();
    // Each round takes those whose parent is done: as many rounds as clones are deep.
    loop {
        let ready: Vec<String> = fates
            .keys()
            .filter(|image| {
                let parent = seen.get(*image).and_then(Looked::seen).and_then(|s| s.parent.as_ref());
                parent.is_none_or(|p| {
                    p.pool != pool || done.contains(&p.image) || !fates.contains_key(&p.image)
                })
            })
            .cloned()
            .collect();
        if ready.is_empty() {
            break;
        }
        for image in ready {
            let Some(mut fate) = fates.remove(&image) else { continue };
            let parent = seen.get(&image).and_then(Looked::seen).and_then(|s| s.parent.as_ref());
            let pending = fate == Fate::Pending;
            if let Some(parent) = parent.filter(|_| pending) {
                let same = (parent.pool == pool)
                    .then(|| plan.iter().find(|(name, _)| *name == parent.image))
                    .flatten();
                let mirrored = match same {
                    Some((_, Fate::Pending | Fate::Enabled { .. } | Fate::Replaying)) => true,
                    Some((_, Fate::Skipped { .. })) => seen
                        .get(&parent.image)
                        .and_then(Looked::seen)
                        .is_some_and(|s| s.report.info.state == MirrorState::Enabled),
                    // Of another pool, or not asked about: Ceph knows.
                    None => true,
                    Some((_, Fate::Failed { .. })) => false,
                };
                if !mirrored {
                    let whose = match volumes.get(&parent.image) {
                        Some(volume) => format!(", which is volume {volume}"),
                        None => String::new(),
                    };
                    fate = Fate::Failed {
                        reason: format!(
                            "it is a clone of {}/{}{whose}, which is not mirrored: replicate that first, or flatten this \
                             (rbd flatten {pool}/{image})",
                            parent.pool, parent.image
                        ),
                    };
                }
            }
            done.insert(image.clone());
            plan.push((image, fate));
        }
    }
    plan
}

async fn enable_one(site: &Site, order: &ReplicateOrder, image: &str) -> Result<Fate> {
    // Whoever ends the mirroring takes away what was added, and no more.
    let enabled = async {
        mark_added(site, &order.pool, image, order.mode).await?;
        enable(site, &order.pool, image, order.mode, 0).await
    };
    match enabled.await {
        Ok(_) => Ok(Fate::Enabled { percent: None }),
        Err(e) => match e.kind {
            RbdErrorKind::TimedOut
            | RbdErrorKind::WorkerLost
            | RbdErrorKind::Unreachable
            | RbdErrorKind::Blocklisted
            | RbdErrorKind::NoPool => Err(e.into()),
            RbdErrorKind::Invalid => Ok(Fate::Failed {
                reason: format!(
                    "Ceph refuses ({}): is it a clone whose parent is not mirrored? Replicate that first, or flatten this",
                    e.message
                ),
            }),
            _ => Ok(Fate::Failed { reason: e.message }),
        },
    }
}

/// What the other side says of a copy.
fn copied(mode: MirrorMode, report: &MirrorReport) -> Fate {
    let open = |percent| Fate::Enabled { percent };
    for peer in &report.peers {
        let figures = Figures::of(&peer.description);
        match (peer.up, peer.state.as_str()) {
            (true, "replaying") => {
                // By snapshots a first copy is called so, too, while it is on its way.
                let first =
                    figures.synced_to.is_none() && (figures.percent.is_some() || figures.newest.is_some());
                let whole = mode == MirrorMode::Journal || !first;
                return if whole { Fate::Replaying } else { open(figures.percent) };
            }
            (true, "error") => {
                let reason = format!("its copy reports an error: {}", peer.description);
                return Fate::Failed { reason };
            }
            _ if figures.percent.is_some() => return open(figures.percent),
            _ => {}
        }
    }
    open(None)
}

/// Waits until the copies follow.
async fn follow(
    site: &Site,
    operation: &Operation,
    order: &ReplicateOrder,
    plan: &mut [(String, Fate)],
) -> Result<()> {
    let mut moved = Instant::now();
    // A copy that is just being made may report an error once.
    let mut suspects: BTreeSet<String> = BTreeSet::new();
    loop {
        let open: Vec<String> =
            plan.iter().filter(|(_, fate)| fate.is_open()).map(|(image, _)| image.clone()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let mut now: HashMap<String, Fate> = HashMap::new();
        for chunk in open.chunks(CHUNK) {
            let ask = MirrorStatusMany { pool: order.pool.clone(), images: chunk.to_vec() };
            let reports = site.insist(ask).await?;
            for (image, report) in chunk.iter().zip(reports) {
                let fate = match report {
                    None => Fate::Failed { reason: "it was removed meanwhile".to_owned() },
                    Some(report) if report.info.state != MirrorState::Enabled => {
                        Fate::Failed { reason: "its mirroring was disabled meanwhile".to_owned() }
                    }
                    Some(report) => copied(order.mode, &report),
                };
                now.insert(image.clone(), fate);
            }
        }
        for (image, fate) in plan.iter_mut() {
            let Some(seen) = now.remove(image) else { continue };
            if matches!(seen, Fate::Failed { .. }) && suspects.insert(image.clone()) {
                continue;
            }
            if seen != *fate {
                moved = Instant::now();
                operation.item_step(&item(image), "image", &seen).await?;
                *fate = seen;
            }
        }
        if moved.elapsed() >= PATIENCE {
            for (image, fate) in plan.iter_mut().filter(|(_, fate)| fate.is_open()) {
                *fate = Fate::Failed {
                    reason: format!(
                        "it is enabled, and for {} s no daemon has said that its copy follows: scoria-manage site daemon \
                         status, on the other site",
                        PATIENCE.as_secs()
                    ),
                };
                operation.item_step(&item(image), "image", &*fate).await?;
            }
            info!(pool = order.pool, "copies have not followed in time");
            return Ok(());
        }
        sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::types::{MirrorSiteStatus, Mirroring, Parent};

    fn looked(parent: Option<&str>, enabled: bool) -> Looked {
        let info = Mirroring {
            state: if enabled { MirrorState::Enabled } else { MirrorState::Disabled },
            mode: MirrorMode::Journal,
            primary: true,
            global_id: String::new(),
        };
        Looked::Seen(Box::new(MirrorSurveyed {
            id: "1".into(),
            features: 61,
            parent: parent.map(|image| Parent { pool: "p".into(), image: image.into(), snap: "s".into() }),
            snaps: vec![],
            watchers: vec![],
            report: MirrorReport::without_reports(info),
        }))
    }

    fn order() -> ReplicateOrder {
        ReplicateOrder {
            name: "a".into(),
            pool: "p".into(),
            image: None,
            mode: MirrorMode::Journal,
            dry_run: false,
        }
    }

    #[test]
    fn parents_come_first_and_a_child_of_what_is_not_mirrored_not_at_all() {
        let seen = BTreeMap::from([
            ("a-grandchild".to_owned(), looked(Some("b-child"), false)),
            ("b-child".to_owned(), looked(Some("c-parent"), false)),
            ("c-parent".to_owned(), looked(None, false)),
            ("d-of-volume".to_owned(), looked(Some("volume"), false)),
            ("e-of-mirrored".to_owned(), looked(Some("mirrored"), false)),
            ("mirrored".to_owned(), looked(None, true)),
            ("volume".to_owned(), looked(None, false)),
        ]);
        let volumes = HashMap::from([("volume".to_owned(), "v1".to_owned())]);
        let fates = seen
            .iter()
            .map(|(image, looked)| match volumes.get(image) {
                Some(volume) => (image.clone(), Fate::Skipped { reason: of_volume(volume) }),
                None => (image.clone(), judge(&order(), looked)),
            })
            .collect();
        let plan = sorted("p", &seen, fates, &volumes);
        let at = |name: &str| plan.iter().position(|(image, _)| image == name).unwrap();
        assert!(at("c-parent") < at("b-child") && at("b-child") < at("a-grandchild"), "{plan:?}");
        assert_eq!(plan[at("a-grandchild")].1, Fate::Pending);
        assert_eq!(plan[at("e-of-mirrored")].1, Fate::Pending);
        let Fate::Failed { reason } = &plan[at("d-of-volume")].1 else { panic!("{plan:?}") };
        assert!(
            reason.contains("clone of p/volume, which is volume v1") && reason.contains("rbd flatten"),
            "{reason}"
        );
        assert_eq!(plan.len(), 7);
    }

    #[test]
    fn a_copy_follows_when_its_daemon_says_so() {
        let Looked::Seen(seen) = looked(None, true) else { unreachable!() };
        let said = |mode, up, state: &str, description: &str| {
            let mut report = seen.report.clone();
            report.peers.push(MirrorSiteStatus {
                mirror_uuid: "u".into(),
                state: state.into(),
                up,
                description: description.into(),
                last_update: 0,
            });
            copied(mode, &report)
        };
        assert_eq!(said(MirrorMode::Journal, true, "replaying", "replaying, {}"), Fate::Replaying);
        assert_eq!(said(MirrorMode::Journal, false, "replaying", ""), Fate::Enabled { percent: None });
        let half = "replaying, {\"replay_state\":\"syncing\",\"syncing_percent\":42}";
        assert_eq!(said(MirrorMode::Snapshot, true, "replaying", half), Fate::Enabled { percent: Some(42) });
        let whole = "replaying, {\"local_snapshot_timestamp\":7,\"remote_snapshot_timestamp\":7,\"replay_state\":\"idle\"}";
        assert_eq!(said(MirrorMode::Snapshot, true, "replaying", whole), Fate::Replaying);
        assert!(matches!(said(MirrorMode::Journal, true, "error", "split"), Fate::Failed { .. }));
    }
}
