//! From what the sites list to what is known of each copy. Pure: lists and the row of the last look go in, the new
//! row comes out.
//!
//! A report is up to 30 s old, one side may not answer, and what is seen in the middle of a change is seen once. So
//! a fault counts when two looks in a row have found it, silence neither makes nor heals one, and the time up to
//! which a copy is known to be complete never goes back.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, NaiveDateTime, TimeDelta};

use super::figures::{Figures, Position};
use crate::db::lag::{Lag, Watched};
use crate::rbd::types::{MirrorListed, MirrorMode, MirrorSiteStatus};

/// The mirrored images of one site.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// How the site's daemon signs what it reports to the others.
    pub uuid: String,
    /// By name.
    pub images: HashMap<String, MirrorListed>,
}

/// What the sites answered; `None` for one that did not.
pub type Sites = BTreeMap<String, Option<Listing>>;

/// What is wrong with a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The image is not mirrored where it is served.
    NotMirrored,
    /// There is no copy.
    Missing,
    /// Both sides are primary.
    BothPrimary,
    /// Their histories have parted.
    SplitBrain,
    /// The daemon says that it cannot go on.
    Error,
}

impl Fault {
    const ALL: [Fault; 5] =
        [Fault::NotMirrored, Fault::Missing, Fault::BothPrimary, Fault::SplitBrain, Fault::Error];

    /// For tables and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::NotMirrored => "not-mirrored",
            Fault::Missing => "missing",
            Fault::BothPrimary => "both-primary",
            Fault::SplitBrain => "split-brain",
            Fault::Error => "error",
        }
    }

    fn parse(text: Option<&str>) -> Option<Fault> {
        Fault::ALL.into_iter().find(|fault| Some(fault.as_str()) == text)
    }

    /// Known from the lists alone, so that an image which is listed does not have it.
    fn is_absence(self) -> bool {
        match self {
            Fault::NotMirrored | Fault::Missing => true,
            Fault::BothPrimary | Fault::SplitBrain | Fault::Error => false,
        }
    }
}

/// What one look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    Well,
    Wrong(Fault),
    /// Nothing that would change what was known; `listed`: on both sides.
    Nothing {
        listed: bool,
    },
}

/// What was seen of a copy.
struct Sight<'a> {
    state: &'a str,
    finding: Finding,
    report: Option<&'a MirrorSiteStatus>,
    message: Option<String>,
}

/// Statuses of a volume whose image, or its mirroring, somebody is working on.
const UNSETTLED: [&str; 10] = [
    "creating",
    "downloading",
    "deleting",
    "error_deleting",
    "retyping",
    "maintenance",
    "managing",
    "unmanaging",
    "error_unmanaging",
    "error_managing",
];

/// How old a report of a daemon that runs may be; it makes a new one every 30 s.
const FRESH: TimeDelta = TimeDelta::seconds(90);

/// A look.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Now.
    pub at: NaiveDateTime,
    /// The least age of a copy that can be told from none, in seconds: looks and reports have their periods.
    pub floor: i64,
}

/// What is known of the copy on `site` of a volume that is served from `serving`, after this look.
pub fn update(
    look: Look,
    volume: &Watched,
    image: &str,
    (serving, site): (&str, &str),
    sites: &Sites,
    rpo: Option<i64>,
    former: Option<&Lag>,
) -> Lag {
    let mut sight = sight(image, serving, site, sites);
    if UNSETTLED.contains(&volume.status.as_str()) && matches!(sight.finding, Finding::Wrong(_)) {
        sight.finding = Finding::Nothing { listed: false };
    }
    let report = sight.report;
    let figures = report.map(|r| Figures::of(&r.description)).unwrap_or_default();
    let reported_at = report.and_then(|r| time(r.last_update)).or_else(|| former.and_then(|f| f.reported_at));
    let (last_sync, mark) = progress(report, &figures, former);
    let by_journal = match figures.mode {
        Some(mode) => Some(mode == MirrorMode::Journal),
        None => former.and_then(|f| f.mode.as_deref()).map(|mode| mode == JOURNAL),
    };
    // A daemon that runs would say if there were more: its copy is as old as it was when it said so.
    let live = report.is_some_and(|r| r.up) && reported_at.is_some_and(|at| look.at - at <= FRESH);
    let measured_at = match (by_journal, live) {
        (Some(true), true) => reported_at.unwrap_or(look.at),
        _ => look.at,
    };
    let lag_seconds = last_sync.map(|at| (measured_at - at).num_seconds().max(0));
    let watched_since = former.map_or(look.at, |f| f.watched_since);
    let age = lag_seconds.unwrap_or_else(|| (look.at - watched_since).num_seconds());
    let (fault, suspected) = judge(sight.finding, former);
    Lag {
        volume_id: volume.id.clone(),
        site: site.to_owned(),
        mode: by_journal.map(|journal| if journal { JOURNAL } else { SNAPSHOT }.to_owned()),
        state: sight.state.to_owned(),
        message: sight.message,
        last_sync,
        lag_seconds,
        entries_behind: figures.entries_behind,
        bytes_behind: figures.bytes_behind,
        bytes_per_second: figures.bytes_per_second,
        percent: figures.percent,
        rpo_seconds: rpo,
        breached: rpo.is_some_and(|rpo| age > rpo.max(look.floor)),
        fault: fault.map(|f| f.as_str().to_owned()),
        suspected: suspected.map(|f| f.as_str().to_owned()),
        mark_tag: mark.map(|(position, _)| position.tag),
        mark_entry: mark.map(|(position, _)| position.entry),
        mark_at: mark.map(|(_, at)| at),
        reported_at,
        watched_since,
        polled_at: look.at,
    }
}

const JOURNAL: &str = "journal";
const SNAPSHOT: &str = "snapshot";

fn sight<'a>(image: &str, serving: &str, site: &str, sites: &'a Sites) -> Sight<'a> {
    let list = |name: &str| sites.get(name).and_then(Option::as_ref);
    let (here, there) = (list(serving), list(site));
    let seen = |list: Option<&'a Listing>| list.and_then(|l| l.images.get(image));
    let (original, copy) = (seen(here), seen(there));
    let absent = |fault: Fault, text: String| Sight {
        state: fault.as_str(),
        finding: Finding::Wrong(fault),
        report: None,
        message: Some(text),
    };
    if here.is_some() && original.is_none() {
        return absent(Fault::NotMirrored, format!("the image is not mirrored on {serving}"));
    }
    let listed = original.is_some() && copy.is_some();
    let nothing = Finding::Nothing { listed };
    // Its daemon reports to both sides.
    let told = original.and_then(|original| {
        let signed = there.map(|l| l.uuid.as_str()).filter(|uuid| !uuid.is_empty());
        match signed {
            Some(uuid) => original.peers.iter().find(|p| p.mirror_uuid == uuid),
            None if sites.len() == 2 => original.peers.iter().max_by_key(|p| p.last_update),
            None => None,
        }
    });
    if there.is_some() && copy.is_none() {
        let why = told.filter(|r| r.state == "error").map(|r| format!(": {}", r.description));
        return absent(Fault::Missing, format!("there is no copy on {site}{}", why.unwrap_or_default()));
    }
    let own = copy.and_then(|copy| copy.local.as_ref());
    let Some(report) = told.into_iter().chain(own).max_by_key(|r| r.last_update) else {
        let text = match (here, there) {
            (None, None) => "neither site answers".to_owned(),
            _ => format!("the daemon of {site} has not reported"),
        };
        return Sight { state: "unknown", finding: nothing, report: None, message: Some(text) };
    };
    let message = Some(report.description.clone());
    if !report.up {
        return Sight { state: "down", finding: nothing, report: Some(report), message };
    }
    let is_primary = |r: &MirrorSiteStatus| r.state == "stopped" && r.description.contains("is primary");
    let is_primary_here = original.and_then(|o| o.local.as_ref()).is_some_and(is_primary);
    let finding = match report.state.as_str() {
        "replaying" | "syncing" => Finding::Well,
        "error" if report.description.contains("split-brain") => Finding::Wrong(Fault::SplitBrain),
        "error" => Finding::Wrong(Fault::Error),
        _ if is_primary(report) && is_primary_here => Finding::Wrong(Fault::BothPrimary),
        _ => nothing,
    };
    Sight { state: report.state.as_str(), finding, report: Some(report), message }
}

fn judge(finding: Finding, former: Option<&Lag>) -> (Option<Fault>, Option<Fault>) {
    let known = Fault::parse(former.and_then(|f| f.fault.as_deref()));
    let suspected = Fault::parse(former.and_then(|f| f.suspected.as_deref()));
    match finding {
        Finding::Well => (None, None),
        Finding::Wrong(fault) if known.is_some() || suspected == Some(fault) => (Some(fault), Some(fault)),
        Finding::Wrong(fault) => (None, Some(fault)),
        Finding::Nothing { listed } => {
            let stays = |fault: &Fault| !(listed && fault.is_absence());
            (known.filter(stays), suspected.filter(stays))
        }
    }
}

/// Up to when the copy is known to be complete, and by which place in the journal that will be known next. Under load
/// a copy is never seen to be in step: but when it has replayed what the primary had written at an earlier report, it
/// has all that was written until then.
fn progress(
    report: Option<&MirrorSiteStatus>,
    figures: &Figures,
    former: Option<&Lag>,
) -> (Option<NaiveDateTime>, Option<(Position, NaiveDateTime)>) {
    let known = former.and_then(|f| f.last_sync);
    let mark = former.and_then(|f| Some((Position { tag: f.mark_tag?, entry: f.mark_entry? }, f.mark_at?)));
    let Some(report) = report.filter(|r| r.state == "replaying") else { return (known, mark) };
    let at = time(report.last_update);
    let (proven, mark) = match (figures.mode, figures.entries_behind) {
        (Some(MirrorMode::Snapshot), _) => (figures.synced_to.and_then(time), None),
        (_, Some(0)) => (at, None),
        (_, Some(_)) => {
            let reached = mark.filter(|(position, _)| figures.copy.is_some_and(|copy| copy >= *position));
            let next = match mark {
                Some(waiting) if reached.is_none() => Some(waiting),
                _ => figures.primary.zip(at),
            };
            (reached.map(|(_, at)| at), next)
        }
        (_, None) => (None, mark),
    };
    (known.max(proven), mark)
}

fn time(seconds: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp(seconds, 0).map(|t| t.naive_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_STEP: &str =
        r#"replaying, {"bytes_per_second":0.0,"entries_behind_primary":0,"entries_per_second":0.0}"#;

    fn at(seconds: i64) -> NaiveDateTime {
        time(1_700_000_000 + seconds).unwrap()
    }

    fn status(state: &str, description: &str, up: bool, seconds: i64) -> MirrorSiteStatus {
        MirrorSiteStatus {
            mirror_uuid: String::new(),
            state: state.into(),
            up,
            description: description.into(),
            last_update: 1_700_000_000 + seconds,
        }
    }

    /// Lists of `default`, which serves `i`, and of `b`, which has the copy with this report.
    fn sites(copy: Option<MirrorSiteStatus>) -> Sites {
        let listing = |uuid: &str, local: Option<MirrorSiteStatus>, peers| Listing {
            uuid: uuid.into(),
            images: HashMap::from([(
                "i".to_owned(),
                MirrorListed { id: "1".into(), name: "i".into(), global_id: "g".into(), local, peers },
            )]),
        };
        let primary = status("stopped", "local image is primary", true, 0);
        let signed = copy.clone().map(|c| MirrorSiteStatus { mirror_uuid: "B".into(), ..c });
        Sites::from([
            ("default".to_owned(), Some(listing("A", Some(primary), signed.into_iter().collect()))),
            ("b".to_owned(), Some(listing("B", copy, vec![]))),
        ])
    }

    fn volume(status: &str) -> Watched {
        Watched {
            id: "v".into(),
            name_id: "v".into(),
            status: status.into(),
            replication_status: "enabled".into(),
            extended_status: None,
            volume_type_id: "t".into(),
            stray: None,
        }
    }

    fn look(seconds: i64, sites: &Sites, rpo: Option<i64>, former: Option<&Lag>) -> Lag {
        let look = Look { at: at(seconds), floor: 90 };
        update(look, &volume("in-use"), "i", ("default", "b"), sites, rpo, former)
    }

    #[test]
    fn a_copy_in_step_is_as_old_as_its_report() {
        let first = look(20, &sites(Some(status("replaying", IN_STEP, true, 5))), Some(300), None);
        assert_eq!((first.state.as_str(), first.mode.as_deref()), ("replaying", Some("journal")));
        assert_eq!((first.last_sync, first.lag_seconds), (Some(at(5)), Some(0)));
        assert!(!first.is_degraded());
        // Its daemon dies: nothing is known from then on.
        let down = sites(Some(status("replaying", IN_STEP, false, 5)));
        let later = look(200, &down, Some(300), Some(&first));
        assert_eq!((later.state.as_str(), later.lag_seconds, later.breached), ("down", Some(195), false));
        let later = look(400, &down, Some(300), Some(&later));
        assert_eq!((later.lag_seconds, later.breached), (Some(395), true));
        // So it is when nobody answers at all.
        let silent = Sites::from([("default".to_owned(), None), ("b".to_owned(), None)]);
        let later = look(400, &silent, Some(300), Some(&first));
        assert_eq!((later.state.as_str(), later.lag_seconds, later.breached), ("unknown", Some(395), true));
        let healed =
            look(430, &sites(Some(status("replaying", IN_STEP, true, 420))), Some(300), Some(&later));
        assert_eq!((healed.lag_seconds, healed.breached), (Some(0), false));
    }

    #[test]
    fn a_copy_under_load_is_dated_by_what_it_has_replayed() {
        let report = |seconds: i64, primary: i64, copy: i64| {
            let text = format!(
                "replaying, {{\"entries_behind_primary\":{},\"non_primary_position\":{{\"entry_tid\":{copy},\"tag_tid\":1}},\
                 \"primary_position\":{{\"entry_tid\":{primary},\"tag_tid\":1}}}}",
                primary - copy
            );
            sites(Some(status("replaying", &text, true, seconds)))
        };
        let one = look(0, &report(0, 100, 90), None, None);
        assert_eq!((one.last_sync, one.entries_behind), (None, Some(10)));
        let two = look(60, &report(60, 200, 150), None, Some(&one));
        assert_eq!((two.last_sync, two.lag_seconds), (Some(at(0)), Some(60)));
        // It has not come as far as the primary was at 60.
        let three = look(120, &report(120, 300, 199), None, Some(&two));
        assert_eq!((three.last_sync, three.lag_seconds), (Some(at(0)), Some(120)));
        let four = look(180, &report(180, 400, 200), None, Some(&three));
        assert_eq!((four.last_sync, four.lag_seconds), (Some(at(60)), Some(120)));
    }

    #[test]
    fn a_copy_by_snapshots_is_as_old_as_its_snapshot() {
        let text = |synced: i64| {
            format!(
                "replaying, {{\"local_snapshot_timestamp\":{},\"remote_snapshot_timestamp\":{},\"replay_state\":\"idle\"}}",
                1_700_000_000 + synced,
                1_700_000_000 + synced
            )
        };
        let one = look(70, &sites(Some(status("replaying", &text(10), true, 65))), Some(100), None);
        assert_eq!((one.mode.as_deref(), one.lag_seconds, one.breached), (Some("snapshot"), Some(60), false));
        let two = look(130, &sites(Some(status("replaying", &text(10), true, 125))), Some(100), Some(&one));
        assert_eq!((two.lag_seconds, two.breached), (Some(120), true));
        // Never synced at all counts from when it was first seen.
        let empty = r#"replaying, {"replay_state":"syncing","remote_snapshot_timestamp":1700000000,"syncing_percent":3}"#;
        let syncing = |seconds| sites(Some(status("syncing", empty, true, seconds)));
        let one = look(0, &syncing(0), Some(100), None);
        assert_eq!((one.last_sync, one.percent, one.breached), (None, Some(3), false));
        assert!(look(101, &syncing(100), Some(100), Some(&one)).breached);
        assert!(!look(80, &syncing(80), Some(10), Some(&one)).breached, "younger than can be told");
    }

    #[test]
    fn a_fault_counts_when_it_is_seen_twice_and_is_healed_by_what_is_seen() {
        let well = sites(Some(status("replaying", IN_STEP, true, 5)));
        let split = sites(Some(status("error", "split-brain detected", true, 5)));
        let broken = sites(Some(status("error", "error bootstrapping replay", true, 5)));
        let mut gone = sites(None);
        gone.insert("b".to_owned(), Some(Listing::default()));
        let mut unmirrored = sites(None);
        unmirrored.insert("default".to_owned(), Some(Listing::default()));
        let both = sites(Some(status("stopped", "local image is primary", true, 5)));
        let starting = sites(Some(status("starting_replay", "starting replay", true, 6)));
        let silent = Sites::from([("default".to_owned(), None), ("b".to_owned(), None)]);
        for (sites, fault) in [
            (&split, "split-brain"),
            (&broken, "error"),
            (&gone, "missing"),
            (&unmirrored, "not-mirrored"),
            (&both, "both-primary"),
        ] {
            let one = look(10, sites, None, None);
            assert_eq!((one.fault.as_deref(), one.suspected.as_deref()), (None, Some(fault)));
            assert_eq!(look(20, &well, None, Some(&one)).suspected, None);
            let two = look(20, sites, None, Some(&one));
            assert_eq!(two.fault.as_deref(), Some(fault));
            // Silence proves nothing; the daemon tries again every now and then.
            let still = look(30, &silent, None, Some(&two));
            assert_eq!(still.fault.as_deref(), Some(fault));
            let trying = look(30, &starting, None, Some(&two)).fault;
            let absent = ["missing", "not-mirrored"].contains(&fault);
            assert_eq!(trying.as_deref(), (!absent).then_some(fault));
            assert!(!look(40, &well, None, Some(&still)).is_degraded());
        }
        // Another fault of a copy that has one is told at once.
        let one = look(10, &split, None, None);
        let two = look(20, &split, None, Some(&one));
        assert_eq!(look(30, &gone, None, Some(&two)).fault.as_deref(), Some("missing"));
    }

    #[test]
    fn what_somebody_is_working_on_is_not_judged() {
        let mut gone = sites(None);
        gone.insert("default".to_owned(), Some(Listing::default()));
        let look_at = Look { at: at(0), floor: 90 };
        for status in UNSETTLED {
            let seen = update(look_at, &volume(status), "i", ("default", "b"), &gone, None, None);
            assert_eq!(seen.suspected, None, "{status}");
        }
    }

    #[test]
    fn a_site_that_is_away_is_known_by_what_it_told_the_other() {
        let mut sites = sites(Some(status("replaying", IN_STEP, false, 5)));
        sites.insert("b".to_owned(), None);
        let seen = look(100, &sites, None, None);
        assert_eq!((seen.state.as_str(), seen.last_sync), ("down", Some(at(5))));
        // With a third site nobody knows whose report it is.
        sites.insert("c".to_owned(), None);
        assert_eq!(look(100, &sites, None, None).state, "unknown");
    }
}
