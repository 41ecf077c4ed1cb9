//! What rows and clusters say at this moment, read once for a whole backend.
//!
//! A thousand volumes on two sites must take seconds, and a site that hangs must cost its verdict and no more. So
//! images are looked at a hundred a request, several requests at once; a site whose verdict is dead is not asked;
//! and an image that is stuck spoils its request, whose images are then asked for one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};

use crate::backend::Backend;
use crate::db;
use crate::db::admin::Fields;
use crate::db::volume::VolumeFilter;
use crate::error::Result;
use crate::model::{Scope, Volume, VolumeType};
use crate::rbd::mirror_survey::{Looked, MirrorPool};
use crate::rbd::protocol::{ImageList, LockOwners, MayFence, MirrorPoolView, MirrorSurvey};
use crate::rbd::types::MirrorMode;
use crate::rbd::{RbdError, Site};
use crate::replication::plan::Side;
use crate::replication::target;
use crate::replication::verdict::{self, Verdict};
use crate::volume::mode_of;

/// Images looked at in one request.
const CHUNK: usize = 100;
/// Requests of this kind under way on one site.
const REQUESTS: usize = 4;
/// How long one of them may take.
const SURVEY: Duration = Duration::from_secs(10);
/// Images that are asked for one by one at once, when their request failed, and how long each may take.
const SINGLY: usize = 16;
const ONE: Duration = Duration::from_secs(4);

/// A volume by its rows.
#[derive(Debug, Clone)]
pub struct Row {
    /// The row.
    pub volume: Volume,
    /// Name of its image, on every site.
    pub image: String,
    /// Site that serves it although its backend is active elsewhere (or the same: a row that is superfluous).
    pub stray: Option<String>,
    /// How its type wants it mirrored; `None` when it does not.
    pub wanted: Option<MirrorMode>,
    /// `replication:rpo_seconds` of its type.
    pub rpo_seconds: Option<i64>,
    /// RBD snapshots that it should have.
    pub snaps: Vec<String>,
    /// An operation on it is open.
    pub busy: bool,
}

impl Row {
    /// The site that serves it by its rows.
    pub fn served<'a>(&'a self, active: &'a str) -> &'a str {
        self.stray.as_deref().unwrap_or(active)
    }
}

/// What one site says.
#[derive(Debug, Clone)]
pub struct SiteView {
    /// Whether it is alive.
    pub verdict: Verdict,
    /// The pool's mirroring, or why it could not be read.
    pub pool: std::result::Result<MirrorPool, String>,
    /// Whether we may fence clients there; `None` when that could not be asked.
    pub may_fence: Option<bool>,
    /// The images asked for, by name.
    pub images: HashMap<String, Looked>,
    /// Names of all images of the pool; `None` when they were not asked for, or not answered.
    pub names: Option<BTreeSet<String>>,
    /// Who holds the lock of a copy that somebody else than a daemon has open, by image.
    pub owners: HashMap<String, Vec<String>>,
}

impl SiteView {
    /// What it says of an image; nothing when the site was not asked.
    pub fn side(&self, image: &str) -> Side {
        match self.images.get(image) {
            None | Some(Looked::Unreadable { .. }) => Side::Unknown,
            Some(Looked::Absent) => Side::Absent,
            Some(Looked::Seen(seen)) => Side::from(Some(&seen.report.info)),
        }
    }
}

/// Everything that a forecast or an audit rests on.
#[derive(Debug, Clone)]
pub struct Facts {
    /// `host@backend` or `cluster@backend`.
    pub backend: String,
    /// Pool of its images.
    pub pool: String,
    /// Active site by the row.
    pub active: String,
    /// Seconds since the epoch.
    pub now: i64,
    /// Its volumes.
    pub rows: Vec<Row>,
    /// Sites that were looked at.
    pub sites: BTreeMap<String, SiteView>,
    /// Parents of images, by (site, pool, image), where they are not among the images.
    pub parents: HashMap<(String, String, String), Looked>,
    /// Service rows, by host, and the cluster's row.
    pub services: Vec<(String, Fields)>,
    /// The cluster's row.
    pub cluster: Option<Fields>,
    /// Open operations: number, method, resource.
    pub open: Vec<(i64, String, Option<String>)>,
    /// Rows of Scoria's tables about what does not exist any more.
    pub gone: i64,
}

/// What to read.
#[derive(Debug, Clone, Default)]
pub(super) struct Need<'a> {
    /// Names of the sites to look at.
    pub(super) sites: Vec<String>,
    /// Only these volumes; `None`: all.
    pub(super) only: Option<&'a [String]>,
    /// Read what an audit needs besides: snapshots, and the names of all images.
    pub(super) audit: bool,
    /// Our own operation.
    pub(super) own: i64,
}

/// Reads rows, then sites.
///
/// # Errors
/// `Database`; a site that does not answer is a fact, not an error.
pub(super) fn gather<'a>(backend: &'a Backend, need: &'a Need<'a>) -> BoxFuture<'a, Result<Facts>> {
    Box::pin(async move {
        let scope = backend.scope();
        let mut facts = rows(backend, &scope, need).await?;
        let images: Vec<String> = facts.rows.iter().map(|r| r.image.clone()).collect();
        let views = need.sites.iter().map(|name| view(backend, name, &images, need.audit));
        for (name, seen) in need.sites.iter().zip(futures::future::join_all(views).await) {
            facts.sites.insert(name.clone(), seen?);
        }
        parents(backend, &mut facts).await;
        Ok(facts)
    })
}

async fn rows(backend: &Backend, scope: &Scope, need: &Need<'_>) -> Result<Facts> {
    let (volumes, strays, types, snaps, services, cluster, gone) = backend
        .db
        .read("rows to compare with Ceph", async |conn| {
            let mut volumes = db::volume::list(conn, scope, &VolumeFilter::default()).await?;
            volumes.retain(|v| need.only.is_none_or(|ids| ids.contains(&v.id)));
            let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
            let strays: HashMap<String, String> = db::stray::list(conn, &ids).await?.into_iter().collect();
            let kinds: BTreeSet<&String> = volumes.iter().map(|v| &v.volume_type_id).collect();
            let kinds: Vec<String> = kinds.into_iter().cloned().collect();
            let types = db::audit::types(conn, &kinds).await?;
            let snaps = if need.audit { db::audit::snapshots_of(conn, &ids).await? } else { Vec::new() };
            let gone = if need.audit { db::audit::gone(conn).await? } else { 0 };
            let (services, cluster) = match scope {
                Scope::Host(host) => (db::service::find(conn, host).await?.into_iter().collect(), None),
                Scope::Cluster(name) => {
                    (db::service::list_for_cluster(conn, name).await?, db::cluster::find(conn, name).await?)
                }
            };
            Ok((volumes, strays, types, snaps, services, cluster, gone))
        })
        .await?;
    let mut by_volume: HashMap<String, Vec<String>> = HashMap::new();
    for (volume, snapshot) in snaps {
        by_volume.entry(volume).or_default().push(backend.snap_name(&snapshot));
    }
    let open: Vec<(i64, String, Option<String>)> = open(backend, scope, need.own).await?;
    let busy: BTreeSet<&String> = open.iter().filter_map(|(_, _, resource)| resource.as_ref()).collect();
    let rows = volumes
        .into_iter()
        .map(|volume| {
            let of_type: Option<&VolumeType> = types.get(&volume.volume_type_id);
            let replicated = of_type.filter(|t| t.wants_replication());
            Row {
                image: backend.image_name(&volume),
                stray: strays.get(&volume.id).cloned(),
                wanted: replicated.and_then(|t| mode_of(&backend.config, t).ok()),
                rpo_seconds: replicated
                    .and_then(|t| t.extra_specs.get("replication:rpo_seconds")?.trim().parse().ok()),
                snaps: by_volume.remove(&volume.id).unwrap_or_default(),
                busy: busy.contains(&volume.id),
                volume,
            }
        })
        .collect();
    let active = match (&cluster, services.first()) {
        (Some(cluster), _) => target::active(cluster.active_backend_id.as_deref()).to_owned(),
        (None, Some(service)) => target::active(service.active_backend_id.as_deref()).to_owned(),
        (None, None) => backend.active_name(),
    };
    let name = match scope {
        Scope::Host(name) | Scope::Cluster(name) => name.clone(),
    };
    Ok(Facts {
        backend: name,
        pool: backend.config.pool.clone(),
        active,
        now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64),
        rows,
        sites: BTreeMap::new(),
        parents: HashMap::new(),
        services: services.iter().map(|s| (s.host.clone(), s.into())).collect(),
        cluster: cluster.as_ref().map(Into::into),
        open,
        gone,
    })
}

async fn open(backend: &Backend, scope: &Scope, own: i64) -> Result<Vec<(i64, String, Option<String>)>> {
    let all = backend.journal.open_of(scope).await?;
    Ok(all.into_iter().filter(|o| o.id != own).map(|o| (o.id, o.method, o.resource_id)).collect())
}

/// Looks at one site.
// Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
fn view<'a>(
    backend: &'a Backend,
    name: &'a str,
    images: &'a [String],
    names: bool,
) -> BoxFuture<'a, Result<SiteView>> {
    Box::pin(async move {
        let site = backend.site(name)?;
        let pool = &backend.config.pool;
        let verdict = verdict::take(&site, pool, backend.config.verdict_timeout).await;
        if verdict == Verdict::Dead {
            return Ok(SiteView {
                verdict,
                pool: Err("the site does not answer".to_owned()),
                may_fence: None,
                images: HashMap::new(),
                names: None,
                owners: HashMap::new(),
            });
        }
        let all = async {
            if !names {
                return None;
            }
            site.call_within(SURVEY, ImageList { pool: pool.clone() }).await.ok()
        };
        let (seen, may_fence, all, images) = tokio::join!(
            site.call_within(SURVEY, MirrorPoolView { pool: pool.clone() }),
            site.call_within(SURVEY, MayFence {}),
            all,
            survey(&site, pool, images)
        );
        let seen = seen.map_err(|e| e.message);
        let owners = match &seen {
            Ok(seen) => owners(&site, pool, &images, &seen.daemons).await,
            Err(_) => HashMap::new(),
        };
        Ok(SiteView {
            verdict,
            pool: seen,
            may_fence: may_fence.ok(),
            images,
            names: all.map(|all| all.into_iter().collect()),
            owners,
        })
    })
}

/// Looks at many images of a site.
pub(in crate::replication) async fn survey(
    site: &Site,
    pool: &str,
    images: &[String],
) -> HashMap<String, Looked> {
    let chunks: Vec<_> =
        images.chunks(CHUNK).map(|chunk| look(site.clone(), pool.to_owned(), chunk.to_vec())).collect();
    let all: Vec<Vec<(String, Looked)>> = stream::iter(chunks).buffered(REQUESTS).collect().await;
    all.into_iter().flatten().collect()
}

/// Looks at some by one request, or by one for each when that fails.
fn look(site: Site, pool: String, images: Vec<String>) -> BoxFuture<'static, Vec<(String, Looked)>> {
    Box::pin(async move {
        if let Ok(looked) = ask(&site, &pool, &images, SURVEY).await {
            return images.into_iter().zip(looked).collect();
        }
        let singly: Vec<_> =
            images.into_iter().map(|image| look_at_one(site.clone(), pool.clone(), image)).collect();
        stream::iter(singly).buffered(SINGLY).collect().await
    })
}

fn look_at_one(site: Site, pool: String, image: String) -> BoxFuture<'static, (String, Looked)> {
    Box::pin(async move {
        let looked = match ask(&site, &pool, std::slice::from_ref(&image), ONE).await {
            Ok(looked) => looked.into_iter().next().unwrap_or(Looked::Absent),
            Err(error) => Looked::Unreadable { reason: error.message },
        };
        (image, looked)
    })
}

async fn ask(
    site: &Site,
    pool: &str,
    images: &[String],
    within: Duration,
) -> std::result::Result<Vec<Looked>, RbdError> {
    site.call_within(within, MirrorSurvey { pool: pool.to_owned(), images: images.to_vec() }).await
}

/// Who holds the locks of copies that somebody else than this site's daemons has open. There should be none, so it is
/// asked for one by one.
async fn owners(
    site: &Site,
    pool: &str,
    images: &HashMap<String, Looked>,
    daemons: &[String],
) -> HashMap<String, Vec<String>> {
    let foreign = images.iter().filter(|(_, looked)| {
        looked.seen().is_some_and(|seen| {
            Side::from(Some(&seen.report.info)) == Side::Secondary
                && seen.watchers.iter().any(|w| !daemons.contains(&w.address))
        })
    });
    let asked: Vec<_> =
        foreign.map(|(image, _)| owners_of(site.clone(), pool.to_owned(), image.clone())).collect();
    let asked: Vec<(String, Vec<String>)> = stream::iter(asked).buffered(SINGLY).collect().await;
    let strangers = |found: Vec<String>| found.into_iter().filter(|o| !daemons.contains(o)).collect();
    asked
        .into_iter()
        .map(|(image, found)| (image, strangers(found)))
        .filter(|(_, left): &(String, Vec<String>)| !left.is_empty())
        .collect()
}

fn owners_of(site: Site, pool: String, image: String) -> BoxFuture<'static, (String, Vec<String>)> {
    Box::pin(async move {
        let ask = LockOwners { pool, image: image.clone() };
        let owners = site.call_within(ONE, ask).await.unwrap_or_default();
        (image, owners)
    })
}

/// Looks at the parents that are not volumes of the backend.
async fn parents(backend: &Backend, facts: &mut Facts) {
    let mut wanted: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (name, site) in &facts.sites {
        for seen in site.images.values().filter_map(Looked::seen) {
            let Some(parent) = &seen.parent else { continue };
            if Side::from(Some(&seen.report.info)) == Side::Plain
                || (parent.pool == facts.pool && site.images.contains_key(&parent.image))
            {
                continue;
            }
            wanted.entry((name.clone(), parent.pool.clone())).or_default().insert(parent.image.clone());
        }
    }
    for ((name, pool), images) in wanted {
        let Ok(site) = backend.site(&name) else { continue };
        let images: Vec<String> = images.into_iter().collect();
        for (image, looked) in survey(&site, &pool, &images).await {
            facts.parents.insert((name.clone(), pool.clone(), image), looked);
        }
    }
}

impl Facts {
    /// What a site says of a parent; `Unknown` when it was not asked.
    pub(super) fn parent_side(&self, site: &str, pool: &str, image: &str) -> Side {
        if pool == self.pool
            && let Some(view) = self.sites.get(site)
            && view.images.contains_key(image)
        {
            return view.side(image);
        }
        match self.parents.get(&(site.to_owned(), pool.to_owned(), image.to_owned())) {
            None | Some(Looked::Unreadable { .. }) => Side::Unknown,
            Some(Looked::Absent) => Side::Absent,
            Some(Looked::Seen(seen)) => Side::from(Some(&seen.report.info)),
        }
    }
}
