//! Before a failover is ordered: is everything ready, what would become of each volume, and do the database and both
//! clusters agree?
//!
//! The operator's tool asks, because it knows no Ceph; the service answers, in one document, and touches nothing.
//! [`facts`] are read once, a hundred images a request; `preflight`, `forecast` and `audit` are pure functions of
//! them. `repair` is the one part that changes something, by an order of its own; `affected` is about the servers that
//! have volumes attached.

pub mod affected;
pub mod audit;
pub mod facts;
pub mod finding;
pub mod forecast;
pub mod lag;
pub mod preflight;
pub mod repair;

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use self::facts::{Facts, Need, gather};
use self::forecast::{Estimate, Fate, Forecast, estimate};
use super::failover::{Decision, source_of};
use super::intent::Intent;
use super::orders::MOVES;
use super::plan::Side;
use super::target::{self, DEFAULT};
use crate::backend::Backend;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::{Ending, Operation, Outcome};
use crate::rbd::protocol::MirrorInfoMany;
use crate::volume::trash;

/// What an operator's tool may ask of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum Inquiry {
    /// Is everything ready to fail over?
    Preflight {
        /// Target; `None`: the one that a failover would choose.
        to: Option<String>,
    },
    /// What would a failover do?
    Plan {
        /// Target; `None`: the one that a failover would choose.
        to: Option<String>,
        /// Only these volumes.
        volumes: Option<Vec<String>>,
    },
    /// Where do rows and clusters disagree?
    Audit {
        /// Only these volumes.
        volumes: Option<Vec<String>>,
    },
    /// What does each site's connection information look like?
    Monitors {},
    /// What is in the trash?
    Trash {},
}

/// The longest answer that the journal takes (MEDIUMTEXT, and `max_allowed_packet`'s default).
const LONGEST: usize = 12 << 20;

/// Answers, and closes the operation with the document. One whose asker has stopped waiting is closed without.
///
/// # Errors
/// `InvalidReplicationTarget`, `UnableToFailOver` as a failover to that target; `Database`.
// Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
pub fn answer<'a>(
    backend: &'a Backend,
    operation: &'a Operation,
    inquiry: &'a Inquiry,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        if operation.is_overdue() {
            let detail = Some("whoever asked had stopped waiting".to_owned());
            return backend
                .journal
                .finish(operation, &Outcome { ending: Ending::RolledBack, detail, reply: None })
                .await;
        }
        let document = document(backend, operation.id(), inquiry).await?;
        if document.to_string().len() > LONGEST {
            return Err(Error::new(
                Code::InvalidInput,
                "The answer is longer than the journal takes; ask about fewer volumes (--volume)",
            ));
        }
        backend.journal.finish(operation, &Outcome::succeeded().with_reply(document)).await
    })
}

/// The answer itself. `own`: the operation that asks, which is not in its own way; 0: none.
///
/// # Errors
/// As [`answer`].
pub fn document<'a>(backend: &'a Backend, own: i64, inquiry: &'a Inquiry) -> BoxFuture<'a, Result<Value>> {
    Box::pin(async move {
        match inquiry {
            Inquiry::Preflight { to } => to_value(&preflight(backend, own, to.as_deref()).await?),
            Inquiry::Plan { to, volumes } => {
                to_value(&plan(backend, own, to.as_deref(), volumes.as_deref()).await?)
            }
            Inquiry::Audit { volumes } => to_value(&audit(backend, own, volumes.as_deref()).await?),
            Inquiry::Monitors {} => to_value(&affected::monitors(backend).await),
            Inquiry::Trash {} => to_value(&trash::list(backend).await?),
        }
    })
}

fn to_value(document: &impl Serialize) -> Result<Value> {
    serde_json::to_value(document)
        .map_err(|e| Error::internal("An answer cannot be written as JSON").caused_by(e))
}

/// Every site of a backend.
fn all_sites(backend: &Backend) -> Vec<String> {
    std::iter::once(DEFAULT.to_owned()).chain(backend.device_names()).collect()
}

async fn preflight(backend: &Backend, own: i64, to: Option<&str>) -> Result<preflight::Preflight> {
    let (facts, to) = facts_of_move(backend, own, to, None).await?;
    let forecasts = forecasts(backend, &facts, &to);
    Ok(preflight::judge(&facts, &to, &forecasts))
}

/// The facts that a failover to a target rests on; refuses a target that a failover would refuse.
async fn facts_of_move(
    backend: &Backend,
    own: i64,
    to: Option<&str>,
    only: Option<&[String]>,
) -> Result<(Facts, String)> {
    // Refused before anything is asked.
    target::choose(&backend.device_names(), &backend.active_name(), to)?;
    let need = Need { sites: all_sites(backend), only, audit: false, own };
    let facts = gather(backend, &need).await?;
    let to = target::choose(&backend.device_names(), &facts.active, to)?;
    Ok((facts, to))
}

fn forecasts(backend: &Backend, facts: &Facts, to: &str) -> Vec<Forecast> {
    let decision =
        Decision { source: facts.active.clone(), target: to.to_owned(), intent: Intent::Automatic };
    facts
        .rows
        .iter()
        .map(|row| forecast::forecast(facts, row, &source_of(backend, &decision, row.stray.as_ref()), to))
        .collect()
}

/// One volume in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedVolume {
    /// Id.
    pub volume: String,
    /// Display name.
    pub name: Option<String>,
    /// Status of the row.
    pub status: String,
    /// `replication_status` of the row.
    pub replication_status: Option<String>,
    /// Site that it would leave.
    pub from: String,
    /// What would become of it.
    pub action: Fate,
    /// Why it would be left behind.
    pub reason: Option<String>,
    /// A server has it.
    pub attached: bool,
    /// Journal mode: entries that its copy has not replayed by the last report.
    pub entries_behind: Option<u64>,
    /// Snapshot mode: seconds since the newest mirror snapshot that its copy holds.
    pub seconds_behind: Option<i64>,
}

/// What would be lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Volumes that would be promoted by force.
    pub volumes: usize,
    /// Journal entries that have not arrived, of all of them, by the last reports.
    pub entries: u64,
    /// Age of the oldest copy that is mirrored by snapshots.
    pub seconds: Option<i64>,
    /// Volumes of which nothing is known.
    pub unknown: usize,
}

/// The document of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// `host@backend` or `cluster@backend`.
    pub backend: String,
    /// Active site.
    pub from: String,
    /// Where the failover would go.
    pub to: String,
    /// The sites.
    pub sites: Vec<preflight::SiteState>,
    /// It would be refused as a whole, for this reason.
    pub refused: Option<String>,
    /// Volumes by what would become of them.
    pub counts: BTreeMap<String, usize>,
    /// What would be lost.
    pub loss: Loss,
    /// How long it would take.
    pub time: Estimate,
    /// Each volume.
    pub volumes: Vec<PlannedVolume>,
}

async fn plan(backend: &Backend, own: i64, to: Option<&str>, only: Option<&[String]>) -> Result<Plan> {
    let (facts, to) = facts_of_move(backend, own, to, only).await?;
    if let Some(missing) =
        only.and_then(|ids| ids.iter().find(|id| !facts.rows.iter().any(|r| r.volume.id == **id)))
    {
        return Err(Error::new(
            Code::InvalidVolume,
            format!("Volume {missing} is not a volume of backend {}", facts.backend),
        ));
    }
    let forecasts = forecasts(backend, &facts, &to);
    let past = backend.journal.past_moves(&backend.scope(), MOVES, 1).await?;
    let moving = forecasts.iter().filter(|f| f.fate.arrives() && f.fate != Fate::Already).count();
    let time = estimate(moving, past.first(), backend.config.failover_concurrency);
    Ok(planned(&facts, to, &forecasts, time))
}

/// The document, from facts and forecasts alone.
fn planned(facts: &Facts, to: String, forecasts: &[Forecast], time: Estimate) -> Plan {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut loss = Loss::default();
    let mut volumes = Vec::with_capacity(forecasts.len());
    for (row, forecast) in facts.rows.iter().zip(forecasts) {
        *counts.entry(forecast.fate.as_str().to_owned()).or_default() += 1;
        let lag = &forecast.lag;
        let age = lag.complete_at.map(|at| (facts.now - at).max(0));
        if forecast.fate == Fate::Force {
            loss.volumes += 1;
            loss.entries += lag.entries.unwrap_or(0);
            loss.seconds = loss.seconds.max(age);
            loss.unknown += usize::from(lag.entries.is_none() && age.is_none());
        }
        volumes.push(PlannedVolume {
            volume: row.volume.id.clone(),
            name: row.volume.display_name.clone(),
            status: row.volume.status.clone(),
            replication_status: row.volume.replication_status.clone(),
            from: forecast.from.clone(),
            action: forecast.fate,
            reason: forecast.reason.map(|reason| reason.text().to_owned()),
            attached: row.volume.attach_status.as_deref() == Some("attached"),
            entries_behind: lag.entries,
            seconds_behind: age,
        });
    }
    let dead = facts.sites.get(&to).is_some_and(|site| site.verdict == super::verdict::Verdict::Dead);
    Plan {
        backend: facts.backend.clone(),
        from: facts.active.clone(),
        refused: dead.then(|| format!("site {to} is dead: nothing would be moved to it")),
        sites: preflight::sites(facts, &facts.active, &to),
        to,
        counts,
        loss,
        time,
        volumes,
    }
}

/// Compares rows and clusters.
///
/// # Errors
/// `Database`.
pub(super) fn audit<'a>(
    backend: &'a Backend,
    own: i64,
    only: Option<&'a [String]>,
) -> BoxFuture<'a, Result<audit::Audit>> {
    Box::pin(async move {
        let need = Need { sites: all_sites(backend), only, audit: true, own };
        let mut facts = gather(backend, &need).await?;
        let strangers = match only {
            // What has no row is nobody's, whichever volumes are asked about.
            Some(_) => {
                facts.gone = 0;
                Vec::new()
            }
            None => strangers(backend, &facts).await?,
        };
        Ok(audit::compare(&facts, &strangers))
    })
}

/// Images that bear the name of a volume of which there is no row, with what they are: by site.
async fn strangers(backend: &Backend, facts: &Facts) -> Result<Vec<(String, String, Side)>> {
    let mut by_id: BTreeMap<String, Vec<(&String, &String)>> = BTreeMap::new();
    for (site, view) in &facts.sites {
        for image in view.names.iter().flatten() {
            if let Some(id) = volume_of(&backend.globals.volume_name_template, image) {
                by_id.entry(id).or_default().push((site, image));
            }
        }
    }
    let ids: Vec<String> = by_id.keys().cloned().collect();
    let (known, busy) = backend
        .db
        .read("volumes that images are named after", async |conn| {
            Ok((db::audit::naming(conn, &ids).await?, crate::journal::Journal::busy(conn, &ids).await?))
        })
        .await?;
    let mut by_site: BTreeMap<&String, Vec<String>> = BTreeMap::new();
    for (id, places) in &by_id {
        if !known.contains(id) && !busy.contains(id) {
            for (site, image) in places {
                by_site.entry(site).or_default().push((*image).clone());
            }
        }
    }
    let mut found = Vec::new();
    for (name, images) in by_site {
        let site = backend.site(name)?;
        for chunk in images.chunks(100) {
            let ask = MirrorInfoMany { pool: facts.pool.clone(), images: chunk.to_vec() };
            let sides: Vec<Side> = match site.call(ask).await {
                // Gone since they were listed.
                Ok(seen) => seen.iter().map(|m| Side::from(m.as_ref())).collect(),
                Err(_) => vec![Side::Unknown; chunk.len()],
            };
            let there = chunk.iter().zip(sides).filter(|(_, side)| *side != Side::Absent);
            found.extend(there.map(|(image, side)| (name.clone(), image.clone(), side)));
        }
    }
    Ok(found)
}

/// The id in an image's name; `None` for an image that is not named as Cinder names volumes.
fn volume_of(template: &str, image: &str) -> Option<String> {
    let (before, after) = template.split_once("%s")?;
    let id = image.strip_prefix(before)?.strip_suffix(after)?;
    // Only the form that Cinder writes: Uuid reads others too.
    (id.len() == 36 && Uuid::try_parse(id).is_ok()).then(|| id.to_owned())
}

#[cfg(test)]
mod tests;
