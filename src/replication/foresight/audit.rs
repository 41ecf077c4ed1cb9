//! Where the database and the two clusters disagree: a pure function from what both say.
//!
//! Each disagreement has a name, and either a repair that is provably safe, or a command for an operator. A repair
//! changes a row where Ceph is clear, or mirrors an image whose row and type say so and that nobody else could mean;
//! it never promotes, demotes, removes or discards anything.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Row};
use super::finding::Severity;
use crate::model::ReplicationStatus;
use crate::model::transition::{BEING_MADE_OR_DELETED, INTERRUPTED_BROKEN};
use crate::rbd::mirror_survey::{Looked, MirrorSurveyed};
use crate::rbd::types::{MirrorMode, features};
use crate::replication::plan::Side;
use crate::replication::standing::settled;
use crate::replication::verdict::Verdict;

/// What a repair would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Mend {
    /// Mirror the image where the volume is served.
    Mirror {
        /// How.
        mode: MirrorMode,
        /// Where.
        site: String,
    },
    /// Write another `replication_status`.
    Status {
        /// Which.
        to: String,
    },
    /// Note that the volume is served from another site than its backend.
    Stray {
        /// Where it is primary.
        site: String,
    },
    /// Forget that it was.
    Home {
        /// The `replication_status` that goes with it.
        to: String,
    },
    /// Remove rows of Scoria's tables about what does not exist.
    Forget,
}

impl Mend {
    /// In words.
    pub fn text(&self) -> String {
        match self {
            Mend::Mirror { mode, site } => format!("mirror its image by {} from {site}", name(*mode)),
            Mend::Status { to } => format!("write replication_status {to}"),
            Mend::Stray { site } => format!("note that it is served from {site} (failover-error)"),
            Mend::Home { to } => format!("note that it is where its backend is ({to})"),
            Mend::Forget => "remove these rows".to_owned(),
        }
    }
}

/// One disagreement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// Its name, for scripts; stable.
    pub code: String,
    /// How bad.
    pub severity: Severity,
    /// Volume, when it is about one.
    pub volume: Option<String>,
    /// Image.
    pub image: Option<String>,
    /// Site.
    pub site: Option<String>,
    /// In words.
    pub text: String,
    /// What `--repair` does.
    pub repair: Option<Mend>,
    /// What an operator can do.
    pub advice: String,
}

/// A volume that could not be judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Volume.
    pub volume: String,
    /// Why.
    pub reason: String,
}

/// The document of an audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// `host@backend` or `cluster@backend`.
    pub backend: String,
    /// Active site.
    pub active: String,
    /// Verdicts on its sites.
    pub sites: BTreeMap<String, String>,
    /// Volumes that were judged.
    pub checked: usize,
    /// Volumes that were not.
    pub skipped: Vec<Skipped>,
    /// Disagreements, the worst first.
    pub drifts: Vec<Drift>,
}

fn name(mode: MirrorMode) -> &'static str {
    match mode {
        MirrorMode::Journal => "journal",
        MirrorMode::Snapshot => "snapshot",
    }
}

/// Compares. `strangers` are images that bear a volume's name of which no row exists, by site, and what they are.
pub(super) fn compare(facts: &Facts, strangers: &[(String, String, Side)]) -> Audit {
    let mut audit = Audit {
        backend: facts.backend.clone(),
        active: facts.active.clone(),
        sites: facts.sites.iter().map(|(n, s)| (n.clone(), s.verdict.as_str().to_owned())).collect(),
        checked: 0,
        skipped: Vec::new(),
        drifts: Vec::new(),
    };
    for row in &facts.rows {
        match unsettled(row) {
            Some(reason) => audit.skipped.push(Skipped { volume: row.volume.id.clone(), reason }),
            None => match one(facts, row) {
                Ok(found) => {
                    audit.checked += 1;
                    audit.drifts.extend(found);
                }
                Err(reason) => audit.skipped.push(Skipped { volume: row.volume.id.clone(), reason }),
            },
        }
    }
    audit.drifts.extend(strangers.iter().map(|(site, image, side)| orphan(facts, site, image, *side)));
    if facts.gone > 0 {
        audit.drifts.push(Drift {
            code: "rows-of-nothing".to_owned(),
            severity: Severity::Note,
            volume: None,
            image: None,
            site: None,
            text: format!(
                "{} rows of Scoria's tables are about volumes and snapshots that are gone",
                facts.gone
            ),
            repair: Some(Mend::Forget),
            advice: String::new(),
        });
    }
    audit.drifts.sort_by(|a, b| {
        (a.severity, &a.code, &a.volume, &a.site, &a.image)
            .cmp(&(b.severity, &b.code, &b.volume, &b.site, &b.image))
    });
    audit
}

/// Why a volume is somebody's work at this moment, so that nothing can be said of it.
fn unsettled(row: &Row) -> Option<String> {
    let volume = &row.volume;
    let changing = ["retyping", "maintenance", "migrating", "unmanaging", "extending"];
    if row.busy {
        return Some("an operation on it is open".to_owned());
    }
    let status = volume.status.as_str();
    if BEING_MADE_OR_DELETED.contains(&status)
        || INTERRUPTED_BROKEN.contains(&status)
        || changing.contains(&status)
    {
        return Some(format!("its status is {status}"));
    }
    if volume.migration_status.as_deref().is_some_and(|m| !matches!(m, "" | "success" | "error")) {
        return Some("it is being migrated".to_owned());
    }
    match volume.replication_status.as_deref() {
        Some(status @ ("enabling" | "disabling" | "failing-over")) => {
            Some(format!("its replication_status is {status}"))
        }
        _ => None,
    }
}

/// What is seen of one volume on all sites.
struct View<'a> {
    facts: &'a Facts,
    row: &'a Row,
    /// Where rows say that it is served.
    served: &'a str,
    sides: BTreeMap<&'a str, Side>,
    seen: Option<&'a MirrorSurveyed>,
    found: Vec<Drift>,
}

impl View<'_> {
    fn say(
        &mut self,
        code: &str,
        severity: Severity,
        site: &str,
        text: impl Into<String>,
        repair: Option<Mend>,
        advice: impl Into<String>,
    ) {
        self.found.push(Drift {
            code: code.to_owned(),
            severity,
            volume: Some(self.row.volume.id.clone()),
            image: Some(self.row.image.clone()),
            site: Some(site.to_owned()),
            text: text.into(),
            repair,
            advice: advice.into(),
        });
    }

    fn path(&self) -> String {
        format!("{}/{}", self.facts.pool, self.row.image)
    }

    /// Every site was read.
    fn complete(&self) -> bool {
        self.sides.values().all(|side| *side != Side::Unknown)
    }

    fn on(&self, wanted: Side) -> Vec<&str> {
        self.sides.iter().filter(|(_, side)| **side == wanted).map(|(name, _)| *name).collect()
    }
}

fn one(facts: &Facts, row: &Row) -> Result<Vec<Drift>, String> {
    let served = row.served(&facts.active);
    let Some(site) = facts.sites.get(served) else {
        return Err(format!("its site {served} is not configured"));
    };
    let sides: BTreeMap<&str, Side> =
        facts.sites.iter().map(|(name, site)| (name.as_str(), site.side(&row.image))).collect();
    let looked = site.images.get(&row.image);
    let left_behind =
        row.volume.replication_status.as_deref() == Some("not-capable") && facts.active != "default";
    if left_behind {
        // Its image is on the other site, which a failover has left; the failback brings it back.
        return Err("not replicated, and out of reach until failback".to_owned());
    }
    match looked {
        None if site.verdict == Verdict::Dead => return Err(format!("site {served} is dead")),
        None => return Err(format!("site {served} was not read")),
        Some(Looked::Unreadable { reason }) => return Err(format!("site {served} cannot read it: {reason}")),
        Some(_) => {}
    }
    let seen = looked.and_then(Looked::seen);
    let mut view = View { facts, row, served, sides, seen, found: Vec::new() };
    let status = row.volume.replication_status.as_deref().and_then(ReplicationStatus::parse);
    if status.is_some_and(ReplicationStatus::means_mirrored) {
        mirrored(&mut view, status);
    } else {
        unmirrored(&mut view);
    }
    snapshots(&mut view);
    Ok(view.found)
}

/// A volume whose row says that it is mirrored.
fn mirrored(view: &mut View<'_>, status: Option<ReplicationStatus>) {
    let (served, path) = (view.served.to_owned(), view.path());
    let primaries: Vec<String> = view.on(Side::Primary).into_iter().map(str::to_owned).collect();
    let retry = format!("scoria-manage replication retry --backend {}", view.facts.backend);
    match view.sides.get(served.as_str()).copied().unwrap_or(Side::Unknown) {
        Side::Absent => {
            let elsewhere = if primaries.is_empty() {
                String::new()
            } else {
                format!("; primary on {}", primaries.join(", "))
            };
            view.say(
                "image-missing",
                Severity::Blocker,
                &served,
                format!("its image is not there{elsewhere}"),
                None,
                "look in the trash (rbd trash ls), and on the other site; nothing is made or moved for it",
            );
            return;
        }
        Side::Plain => {
            let others_empty = view.complete()
                && view.sides.iter().all(|(name, side)| *name == served || *side == Side::Absent);
            let mend = view
                .row
                .wanted
                .filter(|_| others_empty)
                .map(|mode| Mend::Mirror { mode, site: served.clone() });
            let advice = match (&mend, view.row.wanted) {
                (Some(_), _) => String::new(),
                (None, Some(_)) => format!(
                    "another site has an image of this name: see what it is, then rbd mirror image enable {path}"
                ),
                (None, None) => {
                    "its type does not ask for replication: retype it, to a replicated type or from one"
                        .to_owned()
                }
            };
            view.say(
                "not-mirrored",
                Severity::Blocker,
                &served,
                "its image is not mirrored, although its row says so",
                mend,
                advice,
            );
            return;
        }
        Side::Primary | Side::Secondary | Side::Unknown => {}
    }
    match primaries.as_slice() {
        [] if view.complete() => {
            view.say(
                "none-primary",
                Severity::Blocker,
                &served,
                "its image is primary nowhere: nobody can write to it",
                None,
                match status {
                    Some(ReplicationStatus::FailoverError) => retry,
                    _ => format!("rbd mirror image promote {path} on site {served}"),
                },
            );
        }
        [] => view.say(
            "none-primary-seen",
            Severity::Warning,
            &served,
            "it is not primary there, and another site cannot be read",
            None,
            "bring the other site back, or fail over",
        ),
        [place] if *place == served => settled_there(view, status),
        [place] if view.complete() => {
            let place = place.clone();
            let (text, mend) = if place == view.facts.active {
                let to = settled(&place).as_str().to_owned();
                (
                    format!(
                        "it is primary on {place}, the active site, although noted as served from {served}"
                    ),
                    Mend::Home { to },
                )
            } else {
                (
                    format!("it is primary on {place}, its row says {served}"),
                    Mend::Stray { site: place.clone() },
                )
            };
            view.say("primary-elsewhere", Severity::Blocker, &place, text, Some(mend), String::new());
        }
        [place] => {
            let place = place.clone();
            view.say(
                "primary-elsewhere-seen",
                Severity::Warning,
                &place,
                "it is primary there, and another site cannot be read",
                None,
                "bring the other site back, then audit again",
            );
        }
        several => {
            let loser = several.iter().find(|site| **site != served).cloned().unwrap_or_default();
            let text = format!("its image is primary on {}", several.join(" and "));
            view.say("both-primary", Severity::Blocker, &served, text, None,
                format!("keep {served}: scoria-manage replication resync --backend {} --discard {loser} --volume {}",
                    view.facts.backend, view.row.volume.id));
        }
    }
    other_mode(view);
    copies(view);
}

/// Primary exactly where its rows say: is the status the one that goes with the site?
fn settled_there(view: &mut View<'_>, status: Option<ReplicationStatus>) {
    let (served, active) = (view.served.to_owned(), view.facts.active.clone());
    if served != active {
        return;
    }
    let right = settled(&active);
    match status {
        Some(ReplicationStatus::FailoverError) if view.row.stray.is_none() => {
            view.say(
                "failover-error",
                Severity::Warning,
                &served,
                "in failover-error, and primary where its backend works",
                None,
                format!("scoria-manage replication retry --backend {}", view.facts.backend),
            );
        }
        Some(ReplicationStatus::FailoverError) => {}
        _ if view.row.stray.as_deref() == Some(active.as_str()) => {
            view.say(
                "superfluous-stray",
                Severity::Note,
                &served,
                "noted as elsewhere, and it is where its backend works",
                Some(Mend::Home { to: right.as_str().to_owned() }),
                String::new(),
            );
        }
        Some(status) if status != right => {
            let text = format!(
                "its replication_status is {}, which does not go with the active site",
                status.as_str()
            );
            view.say(
                "wrong-status",
                Severity::Warning,
                &served,
                text,
                Some(Mend::Status { to: right.as_str().to_owned() }),
                String::new(),
            );
        }
        _ => {}
    }
}

/// Mirrored in the way that its type asks for?
fn other_mode(view: &mut View<'_>) {
    let (Some(seen), served) = (view.seen, view.served.to_owned()) else { return };
    let mode = seen.report.info.mode;
    match view.row.wanted {
        Some(wanted) if wanted != mode => {
            let text = format!("mirrored by {}, its type asks for {}", name(mode), name(wanted));
            view.say(
                "other-mode",
                Severity::Warning,
                &served,
                text,
                None,
                format!("rbd mirror image disable {0} and enable it anew, or change the type", view.path()),
            );
        }
        None => view.say(
            "type-not-replicated",
            Severity::Warning,
            &served,
            "mirrored, and its type does not ask for replication",
            None,
            "retype it, to a replicated type or from one",
        ),
        Some(_) => {}
    }
}

/// Has somebody a copy of it?
fn copies(view: &mut View<'_>) {
    let others: Vec<(String, Side)> = view
        .sides
        .iter()
        .filter(|(name, _)| **name != view.served)
        .map(|(name, side)| ((*name).to_owned(), *side))
        .collect();
    let has_copy = others.iter().any(|(_, side)| matches!(side, Side::Secondary | Side::Primary));
    for (site, side) in others {
        match side {
            Side::Plain => view.say("copy-not-mirrored", Severity::Blocker, &site,
                "an image of this name is there and is no copy: rbd-mirror cannot make one", None,
                format!("see what it is; then rename or remove {} on site {site}", view.path())),
            Side::Absent if !has_copy => view.say("no-copy", Severity::Blocker, &site, "there is no copy of it", None,
                "a new one takes seconds; if it stays so, check rbd-mirror and its peer, and whether its parent is mirrored"),
            Side::Absent | Side::Primary | Side::Secondary | Side::Unknown => {}
        }
    }
}

/// A volume whose row says that it is not mirrored.
fn unmirrored(view: &mut View<'_>) {
    let (served, path) = (view.served.to_owned(), view.path());
    let status = view.row.volume.replication_status.as_deref();
    match view.sides.get(served.as_str()).copied().unwrap_or(Side::Unknown) {
        Side::Primary => {
            let mode = view.seen.map(|seen| seen.report.info.mode);
            let wanted = view.row.wanted.is_some() && view.row.wanted == mode;
            let only = view.on(Side::Primary).len() == 1 && view.complete();
            let mend = (wanted && only && served == view.facts.active)
                .then(|| Mend::Status { to: settled(&served).as_str().to_owned() });
            let advice = match &mend {
                Some(_) => String::new(),
                None => format!(
                    "rbd mirror image disable {path} on site {served}, or retype the volume to a replicated type"
                ),
            };
            let text = format!("its image is mirrored, its row says {}", status.unwrap_or("NULL"));
            view.say("mirrored-unsaid", Severity::Warning, &served, text, mend, advice);
        }
        Side::Secondary => view.say(
            "secondary-unsaid",
            Severity::Blocker,
            &served,
            "its image is a copy: nobody can write to it, and its row says that it is not mirrored",
            None,
            format!("rbd mirror image promote {path} on site {served}, when no other site has it as primary"),
        ),
        Side::Absent if status.is_some() || view.row.wanted.is_none() => {
            let text = "its image is not there";
            view.say(
                "image-missing",
                Severity::Blocker,
                &served,
                text,
                None,
                "look in the trash (rbd trash ls), and on the other site",
            );
        }
        Side::Plain => {
            let journaled = view.seen.is_some_and(|seen| seen.features & features::JOURNALING != 0);
            if journaled && view.row.volume.replication_driver_data.is_none() && status == Some("disabled") {
                view.say(
                    "journaling-left",
                    Severity::Note,
                    &served,
                    "not mirrored, and still journaled: every write is written twice",
                    None,
                    format!("rbd feature disable {path} journaling on site {served}"),
                );
            }
        }
        Side::Absent | Side::Unknown => {}
    }
    let others: Vec<String> = view
        .sides
        .iter()
        .filter(|(name, side)| **name != view.served && matches!(side, Side::Plain | Side::Primary))
        .map(|(name, _)| (*name).to_owned())
        .collect();
    if view.sides.get(served.as_str()) == Some(&Side::Plain) {
        for site in others {
            view.say("copy-left", Severity::Note, &site, "an image of this name is there, and the volume is not mirrored", None,
                format!("it is the left copy of a time when it was; when that is certain: rbd rm {path} on site {site}"));
        }
    }
}

/// Snapshots that rows have and Ceph has not.
fn snapshots(view: &mut View<'_>) {
    let Some(seen) = view.seen else { return };
    let there: BTreeSet<&str> = seen.snaps.iter().map(|s| s.name.as_str()).collect();
    let missing: Vec<String> =
        view.row.snaps.iter().filter(|s| !there.contains(s.as_str())).cloned().collect();
    let served = view.served.to_owned();
    for snap in missing {
        view.say(
            "snapshot-missing",
            Severity::Blocker,
            &served,
            format!("{snap} is not there"),
            None,
            "its content is lost here; see the other site's copy, or reset its state to error and delete it",
        );
    }
}

/// An image that bears a volume's name and has no row.
fn orphan(facts: &Facts, site: &str, image: &str, side: Side) -> Drift {
    let path = format!("{}/{image}", facts.pool);
    let (text, advice) = match side {
        Side::Primary => (
            "an image of no volume, mirrored",
            format!("rbd rm {path} on site {site}, when nobody misses it; its copy goes with it"),
        ),
        Side::Secondary => (
            "a copy of an image of no volume",
            format!(
                "remove {path} where it is primary; a copy without one: rbd mirror image disable --force, then rbd rm, on site {site}"
            ),
        ),
        Side::Plain | Side::Absent | Side::Unknown => (
            "an image of no volume",
            format!("cinder manage it, or rbd rm {path} on site {site} when nobody misses it"),
        ),
    };
    Drift {
        code: "orphan".to_owned(),
        severity: Severity::Note,
        volume: None,
        image: Some(image.to_owned()),
        site: Some(site.to_owned()),
        text: text.to_owned(),
        repair: None,
        advice,
    }
}
