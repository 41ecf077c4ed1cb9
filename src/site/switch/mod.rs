//! Changing the roles of images that Cinder does not know: one, those of a pool, or all of a site become primary where
//! the order says.
//!
//! Both sides' flags are read before anything is done, and again by whoever goes on after a crash: what was demoted is
//! promoted then, here. Nothing is forced unless the other side is dead and the order says so. Volumes are left to the
//! replication engine, which keeps their rows true.

mod plan;
mod turn;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::reach::Reached;
use super::{Sites, owner};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::rbd::Site;
use crate::rbd::mirror_survey::{Looked, MirrorSurveyed};
use crate::rbd::protocol::{ClusterStatus, MirrorInfoMany, MirrorPoolView, MirrorStatusPage, MirrorSurvey};
use crate::rbd::types::{MirrorState, PoolMirrorMode};
use crate::replication::verdict::{self, Verdict};
use plan::{Other, Way, decide, without};

/// Images that one request looks at.
const CHUNK: usize = 128;
/// Images of a page of the list of a pool.
const PAGE: u32 = 500;
/// Images worked on at once.
const AT_ONCE: usize = 16;
/// One probe of another site.
const PROBE: Duration = Duration::from_secs(5);

/// Make images primary on a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchOrder {
    /// The site where they are to be primary.
    pub name: String,
    /// The pool; `None`: all that are mirrored.
    pub pool: Option<String>,
    /// The image; `None`: all of the pool that are no volumes.
    pub image: Option<String>,
    /// By force, where the other side is dead.
    pub unplanned: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What has become of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
enum Fate {
    /// What would be done.
    Planned {
        /// `hand-over`, `promote`, `force`.
        way: String,
    },
    /// Demoted on the other side: to be promoted here.
    Demoted,
    /// Primary here.
    Moved {
        /// By force.
        forced: bool,
    },
    /// It was primary here.
    Already,
    /// A volume.
    Volume {
        /// What to do with it.
        reason: String,
    },
    /// As it was.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

/// One image, and what is known of both its sides.
struct Subject {
    pool: String,
    image: String,
    way: Way,
}

/// Carries an order out.
pub(super) async fn run(sites: &Sites, operation: &Operation, order: &SwitchOrder) -> Result<Value> {
    if order.image.is_some() && order.pool.is_none() {
        return Err(Error::new(Code::InvalidInput, "Say in which pool the image is"));
    }
    let reached = sites.reach(&order.name).await?;
    let others = others(sites, &reached).await?;
    let ended = carry_out(sites, operation, order, &reached, &others).await;
    for site in others.iter().chain([&reached.site]) {
        sites.part(site);
    }
    ended
}

/// The other sites that this host reaches.
async fn others(sites: &Sites, reached: &Reached) -> Result<Vec<Site>> {
    let host = sites.host.as_str();
    let rows = sites.db.read("sites of a host", async |c| db::site::files_on(c, host).await).await?;
    let mut found = Vec::new();
    for row in rows.iter().filter(|row| row.state == "present" && row.fsid != reached.row.fsid) {
        found.push(sites.reach(&row.fsid).await?.site);
    }
    Ok(found)
}

async fn carry_out(
    sites: &Sites,
    operation: &Operation,
    order: &SwitchOrder,
    reached: &Reached,
    others: &[Site],
) -> Result<Value> {
    let target = &reached.site;
    let mut fates: BTreeMap<(String, String), Fate> = BTreeMap::new();
    let mut subjects = Vec::new();
    for pool in pools(target, order).await? {
        let images = match &order.image {
            Some(image) => vec![image.clone()],
            None => mirrored(target, &pool).await?,
        };
        let volumes = owner::volumes(sites, &images).await?;
        for (image, volume) in &volumes {
            let reason = format!(
                "volume {volume} of Cinder: move it by its backend (scoria-manage replication failover --backend BACKEND --to \
                 SITE --volume {volume})"
            );
            if order.image.is_some() {
                return Err(Error::new(Code::Invalid, format!("{pool}/{image} is {reason}")));
            }
            fates.insert((pool.clone(), image.clone()), Fate::Volume { reason });
        }
        let rest: Vec<String> = images.into_iter().filter(|image| !volumes.contains_key(image)).collect();
        subjects.extend(look(target, others, &pool, &rest, order.unplanned).await?);
    }
    let work = futures::stream::iter(subjects)
        .map(|subject| async move {
            let fate = match &subject.way {
                Way::Already => Ok(Fate::Already),
                Way::Refuse(reason) => Ok(Fate::Failed { reason: reason.clone() }),
                way if order.dry_run => Ok(Fate::Planned { way: name(way).to_owned() }),
                way => turn::make(operation, target, others, &subject.pool, &subject.image, way).await,
            };
            fate.map(|fate| ((subject.pool, subject.image), fate))
        })
        .buffer_unordered(AT_ONCE);
    let done: Vec<Result<((String, String), Fate)>> = work.collect().await;
    for one in done {
        let (key, fate) = one?;
        fates.insert(key, fate);
    }
    let failed: Vec<String> = fates
        .iter()
        .filter_map(|((pool, image), fate)| match fate {
            Fate::Failed { reason } => Some(format!("{pool}/{image}: {reason}")),
            _ => None,
        })
        .collect();
    if let (Some(first), false) = (failed.first(), order.dry_run) {
        warn!(site = order.name, failed = failed.len(), "not all images have changed their roles");
        let text = format!(
            "{} of {} images are not primary on site {}; the first: {first}",
            failed.len(),
            fates.len(),
            order.name
        );
        return Err(Error::new(Code::Replication, text));
    }
    info!(
        site = order.name,
        images = fates.len(),
        dry_run = order.dry_run,
        "images have changed their roles"
    );
    let images: Vec<Value> = fates
        .iter()
        .map(|((pool, image), fate)| json!({"pool": pool, "image": image, "fate": fate}))
        .collect();
    Ok(json!({"switched": order.name, "dry_run": order.dry_run, "images": images}))
}

fn name(way: &Way) -> &'static str {
    match way {
        Way::Already => "already",
        Way::HandOver { .. } => "hand-over",
        Way::Promote => "promote",
        Way::Force => "force",
        Way::Refuse(_) => "refuse",
    }
}

/// The pools in question.
async fn pools(target: &Site, order: &SwitchOrder) -> Result<Vec<String>> {
    if let Some(pool) = &order.pool {
        return Ok(vec![pool.clone()]);
    }
    let mut found = Vec::new();
    for pool in target.insist(ClusterStatus {}).await?.pools.into_iter().filter(|p| !p.erasure) {
        match target.insist(MirrorPoolView { pool: pool.name.clone() }).await {
            Ok(view) if view.mode != PoolMirrorMode::Disabled => found.push(pool.name),
            Ok(_) => {}
            Err(e) if e.kind == crate::rbd::RbdErrorKind::Permission => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// All mirrored images of a pool.
async fn mirrored(target: &Site, pool: &str) -> Result<Vec<String>> {
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = target.insist(MirrorStatusPage { pool: pool.to_owned(), after, limit: PAGE }).await?;
        let Some(last) = page.images.last() else { return Ok(names) };
        after = last.id.clone();
        names.extend(page.images.into_iter().map(|image| image.name));
    }
}

/// Reads both sides of images, and decides about each.
async fn look(
    target: &Site,
    others: &[Site],
    pool: &str,
    images: &[String],
    unplanned: bool,
) -> Result<Vec<Subject>> {
    let mut here: Vec<(String, Looked)> = Vec::new();
    for chunk in images.chunks(CHUNK) {
        let looked = target.insist(MirrorSurvey { pool: pool.to_owned(), images: chunk.to_vec() }).await?;
        here.extend(chunk.iter().cloned().zip(looked));
    }
    if here.is_empty() {
        return Ok(Vec::new());
    }
    let verdicts: Vec<Verdict> =
        futures::future::join_all(others.iter().map(|site| verdict::take(site, pool, PROBE))).await;
    let mut subjects = Vec::new();
    for chunk in here.chunks(CHUNK) {
        let names: Vec<String> = chunk.iter().map(|(name, _)| name.clone()).collect();
        let mut there: Vec<Option<Other>> = vec![None; names.len()];
        for (n, site) in others.iter().enumerate() {
            if verdicts.get(n) == Some(&Verdict::Dead) {
                continue;
            }
            let ask = MirrorInfoMany { pool: pool.to_owned(), images: names.clone() };
            // One without the pool has none of its images.
            let halves = match site.insist(ask).await {
                Ok(halves) => halves,
                Err(e) if e.kind == crate::rbd::RbdErrorKind::NoPool => continue,
                Err(e) => return Err(e.into()),
            };
            for ((slot, half), (_, looked)) in there.iter_mut().zip(halves).zip(chunk) {
                let pair = looked.seen().map(|s| &s.report.info.global_id);
                if let Some(info) =
                    half.filter(|h| h.state == MirrorState::Enabled && Some(&h.global_id) == pair)
                {
                    *slot = Some(Other::Has { site: n, info });
                }
            }
        }
        for ((image, looked), other) in chunk.iter().zip(there) {
            let other = other.unwrap_or_else(|| without(&verdicts));
            subjects.push(Subject {
                pool: pool.to_owned(),
                image: image.clone(),
                way: way(image, looked, &other, unplanned),
            });
        }
    }
    Ok(subjects)
}

fn way(image: &str, looked: &Looked, other: &Other, unplanned: bool) -> Way {
    let seen: &MirrorSurveyed = match looked {
        Looked::Absent => return Way::Refuse("there is no such image".to_owned()),
        Looked::Unreadable { reason } => return Way::Refuse(format!("it cannot be opened: {reason}")),
        Looked::Seen(seen) => seen,
    };
    decide(image, seen, other, unplanned)
}
