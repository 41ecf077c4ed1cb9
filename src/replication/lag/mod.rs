//! How far behind the copies are: asked of Ceph now and then, kept where anybody can read it.
//!
//! On the day of a failover nobody can ask the dead site how old the copies are, and no user sees that the mirroring
//! of his volume has stopped months ago. So every `scoria_replication_poll_interval` each site is asked for all its
//! mirrored images by a few requests, whatever their number ([`MirrorStatusPage`]); [`state`] makes of it what is
//! known of each copy (`scoria_replication_lag`); and a volume whose copy is broken, or older than its type allows
//! (`replication:rpo_seconds`), is degraded: its `replication_extended_status` says so, until Ceph says otherwise.
//!
//! A look changes nothing else. `replication_status` stays what invariant 4 makes of it: an image whose mirroring is
//! broken is still mirrored, and a failover must still find it. A look that is lost is made up for by the next.

pub mod figures;
pub mod state;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use chrono::NaiveDateTime;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::news::Herald;
use super::orders::MOVES;
use super::target;
use super::verdict;
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::lag::{DEGRADED, Lag, RPO, Watched};
use crate::error::Result;
use crate::rbd::Site;
use crate::rbd::protocol::MirrorStatusPage;
use crate::volume::crash;
use state::{Fault, Listing, Look, Sites};

/// Images in one request: a second's work for the OSD that has the list.
const PAGE: u32 = 1000;
/// Until one such request counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(20);
/// Until a site that answers, but slowly, is left for the next look.
const WHOLE: Duration = Duration::from_secs(120);
/// A report may be this old before its daemon makes a new one.
const REPORT_AGE: Duration = Duration::from_secs(30);
/// Changes that are logged one by one; of more the log has one line for each reason.
const LOGGED: usize = 20;

/// What one look has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Looked {
    /// Copies that were looked at.
    pub copies: usize,
    /// Volumes that are degraded, or are so for another reason.
    pub degraded: usize,
    /// Volumes that are no longer.
    pub restored: usize,
}

/// Looks at the copies of one backend's volumes.
#[derive(Debug, Default)]
pub struct Watch {
    /// Types whose objective has been complained about.
    complained: HashSet<String>,
}

impl Watch {
    /// Looks when it is this service's turn: members of a Cinder cluster share them. Either way the backend knows
    /// afterwards how many of its volumes are degraded.
    ///
    /// # Errors
    /// `Database`.
    pub async fn turn(&mut self, backend: &Backend, period: Duration) -> Result<()> {
        let scope = backend.scope();
        // A little less, or every other turn would come a moment too early.
        let pause = period * 9 / 10;
        let ours = backend
            .db
            .read("turn to look at copies", async |conn| db::lag::take_turn(conn, &scope, pause).await)
            .await?;
        if ours {
            Box::pin(self.look(backend, db::now())).await?;
        }
        let degraded = backend
            .db
            .read("degraded volumes", async |conn| db::lag::count_degraded(conn, &scope).await)
            .await?;
        backend.degraded.set(degraded);
        Ok(())
    }

    /// One look, as of `now`. `None`: volumes are being moved between sites, so that nothing seen now would be true
    /// for long.
    ///
    /// # Errors
    /// `Database`.
    pub async fn look(&mut self, backend: &Backend, now: NaiveDateTime) -> Result<Option<Looked>> {
        let scope = backend.scope();
        if !backend.journal.open_methods(&scope, MOVES).await?.is_empty() {
            return Ok(None);
        }
        let active = backend.active_name();
        let (watched, objectives, former) = backend
            .db
            .read("copies as they were", async |conn| {
                let watched = db::lag::watched(conn, &scope).await?;
                let objectives = db::lag::objectives(conn).await?;
                Ok((watched, objectives, db::lag::list(conn, &scope).await?))
            })
            .await?;
        let sites = ask(backend, now).await?;
        let objectives = self.objectives(backend, objectives);
        let floor = (backend.config.replication_poll_interval + REPORT_AGE).as_secs();
        let look = Look { at: now, floor: i64::try_from(floor).unwrap_or(i64::MAX) };
        let former: HashMap<(&str, &str), &Lag> =
            former.iter().map(|lag| ((lag.volume_id.as_str(), lag.site.as_str()), lag)).collect();
        let mut rows = Vec::with_capacity(watched.len());
        let mut changes = Changes::default();
        for volume in &watched {
            let served = volume.stray.as_deref().unwrap_or(&active);
            let image = backend.globals.volume_name_template.replace("%s", &volume.name_id);
            let copies = sites.keys().filter(|site| volume.is_mirrored() && *site != served);
            let mut text = None;
            for site in copies {
                let known = former.get(&(volume.id.as_str(), site.as_str())).copied();
                let rpo = objectives.get(&volume.volume_type_id).copied();
                let lag = state::update(look, volume, &image, (served, site), &sites, rpo, known);
                text = text.or_else(|| wrong(backend.host(), &lag, served));
                rows.push(lag);
            }
            changes.add(volume, text);
        }
        backend
            .db
            .read("copies as they are", async |conn| {
                db::lag::write(conn, &scope, &rows).await?;
                db::lag::forget_older(conn, &scope, now).await
            })
            .await?;
        crash::point("replication_lag:written");
        let looked = Looked {
            copies: rows.len(),
            degraded: changes.degraded.values().map(Vec::len).sum(),
            restored: changes.restored.len(),
        };
        if !tell(backend, &active, &changes).await? {
            return Ok(None);
        }
        debug!(backend = backend.host(), ?looked, "looked at the copies");
        Ok(Some(looked))
    }

    /// Objectives in seconds by volume type; one that is no number is complained about once.
    fn objectives(&mut self, backend: &Backend, written: HashMap<String, String>) -> HashMap<String, i64> {
        let mut found = HashMap::with_capacity(written.len());
        for (volume_type, text) in written {
            match text.trim().parse::<i64>() {
                Ok(seconds) if seconds > 0 => {
                    found.insert(volume_type, seconds);
                }
                _ => {
                    if self.complained.insert(volume_type.clone()) {
                        warn!(
                            backend = backend.host(),
                            volume_type.id = volume_type,
                            value = text,
                            "{RPO} is not a number of seconds: ignored"
                        );
                    }
                }
            }
        }
        found
    }
}

/// Asks all sites of a backend at once. One that is dead costs one probe.
async fn ask(backend: &Backend, now: NaiveDateTime) -> Result<Sites> {
    let names = backend.site_names();
    let asked = names.iter().map(async |name| {
        let site = backend.site(name)?;
        if !verdict::answers(&site, &backend.config.pool, backend.config.verdict_timeout).await {
            return Ok((None, Some("no answer from monitors or OSDs".to_owned())));
        }
        Ok::<_, crate::error::Error>(match timeout(WHOLE, list(&site, &backend.config.pool)).await {
            Ok(Ok(listing)) => (Some(listing), None),
            Ok(Err(error)) => (None, Some(error.to_string())),
            Err(_) => (None, Some(format!("the list of mirrored images took more than {WHOLE:?}"))),
        })
    });
    let scope = backend.scope();
    let mut sites = Sites::new();
    for (name, answer) in names.iter().zip(futures::future::join_all(asked).await) {
        let (listing, problem) = answer?;
        backend
            .db
            .read("answer of a site", async |conn| {
                db::lag::record_site(conn, &scope, name, now, problem.as_deref()).await
            })
            .await?;
        if let Some(problem) = problem {
            debug!(backend = backend.host(), site = name, problem, "could not list mirrored images");
        }
        sites.insert(name.clone(), listing);
    }
    Ok(sites)
}

/// All mirrored images of a pool.
async fn list(site: &Site, pool: &str) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut after = String::new();
    loop {
        let ask = MirrorStatusPage { pool: pool.to_owned(), after, limit: PAGE };
        let page = site.call_within(PATIENCE, ask).await?;
        listing.uuid = page.mirror_uuid;
        match page.images.last() {
            Some(last) => after = last.id.clone(),
            None => return Ok(listing),
        }
        listing.images.extend(page.images.into_iter().map(|image| (image.name.clone(), image)));
    }
}

/// What is wrong with a copy, and the way out, for `replication_extended_status`. The same words for all copies
/// with the same fault, as long as it lasts: figures that change are in the table.
fn wrong(host: &str, lag: &Lag, served: &str) -> Option<String> {
    let site = &lag.site;
    let resync = format!("then: scoria-manage replication resync --backend {host} --discard {site}");
    let fault = [Fault::NotMirrored, Fault::Missing, Fault::BothPrimary, Fault::SplitBrain, Fault::Error]
        .into_iter()
        .find(|fault| lag.fault.as_deref() == Some(fault.as_str()));
    let text = match fault {
        Some(Fault::NotMirrored) => {
            format!("not mirrored on {served}, which serves it; then: rbd mirror image enable")
        }
        Some(Fault::Missing) => {
            format!("no copy on {site}; see that its rbd-mirror runs and has {served} as its peer")
        }
        Some(Fault::BothPrimary) => format!("primary on {served}, which serves it, and on {site}; {resync}"),
        Some(Fault::SplitBrain) => format!("the copy on {site} is split-brain; {resync}"),
        Some(Fault::Error) => {
            format!(
                "rbd-mirror of {site} cannot replay it; why: scoria-manage replication lag --backend {host}"
            )
        }
        None if lag.breached => {
            format!("the copy on {site} is older than the {} s allowed", lag.rpo_seconds.unwrap_or_default())
        }
        None => return None,
    };
    Some(format!("{DEGRADED}{text}").chars().take(255).collect())
}

/// What is to be told of volumes.
#[derive(Debug, Default)]
struct Changes {
    /// By what is wrong.
    degraded: BTreeMap<String, Vec<String>>,
    restored: Vec<String>,
}

impl Changes {
    /// Compares with what the row says: it remembers what was told, over restarts too.
    fn add(&mut self, volume: &Watched, text: Option<String>) {
        if !volume.may_be_told() || volume.extended_status == text {
            return;
        }
        match text {
            Some(text) => self.degraded.entry(text).or_default().push(volume.id.clone()),
            None => self.restored.push(volume.id.clone()),
        }
    }
}

/// Writes the changes into the volumes' rows, logs them and sends notifications. False: the backend has been moved
/// since the sites were asked, so that nothing of it is true any more.
async fn tell(backend: &Backend, active: &str, changes: &Changes) -> Result<bool> {
    if changes.degraded.is_empty() && changes.restored.is_empty() {
        return Ok(true);
    }
    let service = backend.service()?.id;
    let cluster = backend.config.cluster.as_deref();
    let told = backend
        .db
        .write("degraded volumes", async |conn| {
            // Held until the end, so that a failover's own texts come after these.
            let now_active = db::service::hold_active(conn, service, cluster).await?;
            if now_active.is_some_and(|id| target::active(Some(&id)) != active) {
                return Ok(false);
            }
            for (text, ids) in &changes.degraded {
                db::lag::tell(conn, ids, Some(text)).await?;
            }
            db::lag::tell(conn, &changes.restored, None).await?;
            Ok(true)
        })
        .await?;
    crash::point("replication_lag:told");
    if !told {
        return Ok(false);
    }
    log(backend.host(), changes);
    if backend.peers.notify.enabled() {
        let herald = Herald::new(backend, &RequestContext::admin());
        for ids in changes.degraded.values() {
            herald.volumes("replication.degraded", ids).await;
        }
        herald.volumes("replication.restored", &changes.restored).await;
    }
    Ok(true)
}

fn log(host: &str, changes: &Changes) {
    for (text, ids) in &changes.degraded {
        let reason = text.strip_prefix(DEGRADED).unwrap_or(text);
        if ids.len() > LOGGED {
            warn!(backend = host, volumes = ids.len(), reason, "the replication of volumes is degraded");
            continue;
        }
        for id in ids {
            warn!(backend = host, volume.id = id, reason, "the replication of a volume is degraded");
        }
    }
    if changes.restored.len() > LOGGED {
        info!(backend = host, volumes = changes.restored.len(), "the replication of volumes is well again");
        return;
    }
    for id in &changes.restored {
        info!(backend = host, volume.id = id, "the replication of a volume is well again");
    }
}
