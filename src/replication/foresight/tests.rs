use std::collections::{BTreeMap, HashMap};

use super::audit::{Mend, compare};
use super::facts::{Facts, Row, SiteView};
use super::finding::Severity;
use super::forecast::forecast;
use super::*;
use crate::db::admin::Fields;
use crate::journal::Past;
use crate::model::Volume;
use crate::rbd::mirror_survey::{Looked, MirrorPeer, MirrorPool, MirrorSurveyed, PeerDirection};
use crate::rbd::types::*;
use crate::replication::verdict::Verdict;

fn row(id: &str, status: Option<&str>) -> Row {
    let volume = Volume {
        id: id.to_owned(),
        status: "available".to_owned(),
        replication_status: status.map(str::to_owned),
        ..Volume::default()
    };
    Row {
        image: format!("volume-{id}"),
        volume,
        stray: None,
        wanted: Some(MirrorMode::Journal),
        rpo_seconds: None,
        snaps: vec![],
        busy: false,
    }
}

/// An image; `None`: not mirrored, else whether it is primary.
fn image(primary: Option<bool>) -> Looked {
    let replays = primary == Some(false);
    let local = MirrorSiteStatus {
        mirror_uuid: String::new(),
        state: if replays { "replaying" } else { "stopped" }.to_owned(),
        up: true,
        description: "replaying, {\"entries_behind_primary\":4}".to_owned(),
        last_update: 1000,
    };
    let info = Mirroring {
        state: if primary.is_some() { MirrorState::Enabled } else { MirrorState::Disabled },
        mode: MirrorMode::Journal,
        primary: primary == Some(true),
        global_id: "g".to_owned(),
    };
    let registered = if replays { vec!["peer".to_owned()] } else { vec![] };
    let report = MirrorReport { info, local: primary.map(|_| local), peers: vec![], registered };
    let (features, parent) = (61 | features::JOURNALING, None);
    Looked::Seen(Box::new(MirrorSurveyed {
        id: "1".into(),
        features,
        parent,
        snaps: vec![],
        watchers: vec![],
        report,
    }))
}

fn site(images: &[(&str, Looked)]) -> SiteView {
    let peer = MirrorPeer {
        uuid: "l".into(),
        direction: PeerDirection::Both,
        site_name: "peer".into(),
        mirror_uuid: "u".into(),
        client_name: "c".into(),
        last_seen: 0,
    };
    SiteView {
        verdict: Verdict::Alive,
        pool: Ok(MirrorPool {
            mode: PoolMirrorMode::Image,
            peers: vec![peer],
            daemons: vec!["d".into()],
            leader: Some("d".into()),
            scheduled: false,
            scheduled_images: vec![],
        }),
        may_fence: Some(true),
        images: images.iter().map(|(id, looked)| (format!("volume-{id}"), looked.clone())).collect(),
        names: None,
        owners: HashMap::new(),
    }
}

fn facts(rows: Vec<Row>, home: SiteView, away: SiteView) -> Facts {
    let enabled = Fields { replication_status: Some("enabled".into()), ..Fields::default() };
    Facts {
        backend: "node1@ceph".into(),
        pool: "volumes".into(),
        active: "default".into(),
        now: 2000,
        rows,
        sites: BTreeMap::from([("default".to_owned(), home), ("b".to_owned(), away)]),
        parents: HashMap::new(),
        services: vec![("node1@ceph".into(), enabled)],
        cluster: None,
        open: vec![],
        gone: 0,
    }
}

fn judged(facts: &Facts) -> preflight::Preflight {
    let forecasts: Vec<Forecast> = facts.rows.iter().map(|r| forecast(facts, r, "default", "b")).collect();
    preflight::judge(facts, "b", &forecasts)
}

fn codes(found: &preflight::Preflight) -> Vec<(&str, Severity)> {
    found.findings.iter().map(|f| (f.code.as_str(), f.severity)).collect()
}

fn healthy() -> Facts {
    let rows = vec![row("v1", Some("enabled")), row("v2", Some("disabled"))];
    let home = site(&[("v1", image(Some(true))), ("v2", image(None))]);
    facts(rows, home, site(&[("v1", image(Some(false))), ("v2", Looked::Absent)]))
}

#[test]
fn a_healthy_backend_is_ready() {
    let found = judged(&healthy());
    assert!(found.ready, "{found:?}");
    assert_eq!(codes(&found), [("not-replicated", Severity::Warning)]);
    assert_eq!(found.volumes, BTreeMap::from([("move".to_owned(), 1), ("not-capable".to_owned(), 1)]));
    assert_eq!(found.sites.iter().map(|s| s.role.as_str()).collect::<Vec<_>>(), ["target", "source"]);
}

#[test]
fn whatever_is_in_the_way_is_found_and_has_something_to_do() {
    type Break = fn(&mut Facts);
    let broken: &[(&str, bool, Break)] = &[
        ("target-dead", false, |f| f.sites.get_mut("b").unwrap().verdict = Verdict::Dead),
        ("target-degraded", true, |f| f.sites.get_mut("b").unwrap().verdict = Verdict::Degraded),
        ("source-degraded", true, |f| f.sites.get_mut("default").unwrap().verdict = Verdict::Degraded),
        ("pool-unreadable", false, |f| f.sites.get_mut("b").unwrap().pool = Err("denied".into())),
        ("pool-not-mirrored", false, |f| {
            f.sites.get_mut("b").unwrap().pool.as_mut().unwrap().mode = PoolMirrorMode::Disabled;
        }),
        ("pool-mode", true, |f| {
            f.sites.get_mut("b").unwrap().pool.as_mut().unwrap().mode = PoolMirrorMode::Pool;
        }),
        ("no-daemon", false, |f| f.sites.get_mut("b").unwrap().pool.as_mut().unwrap().daemons.clear()),
        ("no-daemon", true, |f| f.sites.get_mut("default").unwrap().pool.as_mut().unwrap().daemons.clear()),
        ("no-leader", true, |f| f.sites.get_mut("b").unwrap().pool.as_mut().unwrap().leader = None),
        ("no-peer", false, |f| f.sites.get_mut("b").unwrap().pool.as_mut().unwrap().peers.clear()),
        ("no-peer", false, |f| {
            let pool = f.sites.get_mut("b").unwrap().pool.as_mut().unwrap();
            pool.peers[0].direction = PeerDirection::Sends;
        }),
        ("caps", true, |f| f.sites.get_mut("b").unwrap().may_fence = Some(false)),
        ("caps", false, |f| {
            f.sites.get_mut("b").unwrap().may_fence = Some(false);
            f.sites.get_mut("default").unwrap().verdict = Verdict::Dead;
        }),
        ("row-refused", false, |f| f.services[0].1.replication_status = Some("failover-error".into())),
        ("frozen", true, |f| f.services[0].1.frozen = true),
        ("move-open", false, |f| f.open.push((7, "failover_host".into(), None))),
        ("open-operations", true, |f| f.open.push((8, "create_volume".into(), Some("v9".into())))),
        ("volume-stays", false, |f| {
            f.sites.get_mut("b").unwrap().images.insert("volume-v1".into(), Looked::Absent);
        }),
        ("volume-stays", false, |f| {
            f.sites.get_mut("b").unwrap().images.insert("volume-v1".into(), image(Some(true)));
        }),
        ("not-linked", true, |f| {
            let mut copy = image(Some(false));
            if let Looked::Seen(seen) = &mut copy {
                seen.report.registered.clear();
            }
            f.sites.get_mut("b").unwrap().images.insert("volume-v1".into(), copy);
        }),
        ("copy-locked", true, |f| {
            f.sites.get_mut("b").unwrap().owners.insert("volume-v1".into(), vec!["1.2.3.4:0/5".into()]);
        }),
        ("parent-not-mirrored", true, |f| {
            if let Some(Looked::Seen(seen)) = f.sites.get_mut("default").unwrap().images.get_mut("volume-v1")
            {
                seen.parent =
                    Some(Parent { pool: "images".into(), image: "golden".into(), snap: "s".into() });
            }
            f.parents.insert(("default".into(), "images".into(), "golden".into()), image(None));
        }),
        ("stray", true, |f| f.rows[0].stray = Some("b".into())),
        ("busy", true, |f| f.rows[0].volume.status = "creating".into()),
    ];
    for (code, ready, harm) in broken {
        let mut facts = healthy();
        harm(&mut facts);
        let found = judged(&facts);
        let finding = found.findings.iter().find(|f| f.code == *code);
        let finding = finding.unwrap_or_else(|| panic!("{code} is not in {:?}", codes(&found)));
        assert!(!finding.text.is_empty() && !finding.advice.is_empty(), "{finding:?}");
        assert_eq!(found.ready, *ready, "{code}: {:?}", codes(&found));
    }
}

#[test]
fn a_copy_by_snapshots_needs_a_schedule_and_a_complete_point() {
    let mut facts = healthy();
    let snapshot = |primary: bool, description: &str| {
        let mut looked = image(Some(primary));
        if let Looked::Seen(seen) = &mut looked {
            seen.report.info.mode = MirrorMode::Snapshot;
            seen.report.local.as_mut().unwrap().description = description.to_owned();
        }
        looked
    };
    let name = "volume-v1".to_owned();
    let figures = "replaying, {\"local_snapshot_timestamp\":1500,\"replay_state\":\"idle\"}";
    facts.sites.get_mut("default").unwrap().images.insert(name.clone(), snapshot(true, ""));
    facts.sites.get_mut("b").unwrap().images.insert(name.clone(), snapshot(false, "replaying, {}"));
    let found = judged(&facts);
    assert!(codes(&found).contains(&("no-schedule", Severity::Warning)), "{found:?}");
    assert!(codes(&found).contains(&("no-point", Severity::Warning)), "{found:?}");
    facts.sites.get_mut("default").unwrap().pool.as_mut().unwrap().scheduled_images.push("1".into());
    facts.sites.get_mut("b").unwrap().images.insert(name, snapshot(false, figures));
    assert_eq!(codes(&judged(&facts)), [("not-replicated", Severity::Warning)]);
    facts.rows[0].rpo_seconds = Some(400);
    assert!(codes(&judged(&facts)).contains(&("behind", Severity::Warning)), "500 s old");
    // Forced, it would lose those seconds.
    let home = facts.sites.get_mut("default").unwrap();
    home.verdict = Verdict::Dead;
    home.images.clear();
    let forecasts: Vec<Forecast> = facts.rows.iter().map(|r| forecast(&facts, r, "default", "b")).collect();
    let past = Past { id: 3, micros: 2_000_000, moved: 1 };
    let plan = planned(&facts, "b".into(), &forecasts, estimate(1, Some(&past), 32));
    assert_eq!(plan.counts.get("force"), Some(&1), "{plan:?}");
    assert_eq!(plan.loss, Loss { volumes: 1, entries: 0, seconds: Some(500), unknown: 0 });
    assert_eq!((plan.time.seconds, plan.refused), (Some(2.0), None));
    assert_eq!(plan.volumes[0].seconds_behind, Some(500));
}

#[test]
fn a_plan_says_what_is_lost_and_what_is_refused() {
    let mut facts = healthy();
    facts.sites.get_mut("default").unwrap().verdict = Verdict::Dead;
    facts.sites.get_mut("default").unwrap().images.clear();
    let plan = |facts: &Facts| {
        let forecasts: Vec<Forecast> =
            facts.rows.iter().map(|r| forecast(facts, r, "default", "b")).collect();
        planned(facts, "b".into(), &forecasts, estimate(1, None, 32))
    };
    let forced = plan(&facts);
    assert_eq!(forced.loss, Loss { volumes: 1, entries: 4, seconds: None, unknown: 0 });
    assert_eq!(forced.time.seconds, None);
    assert_eq!(forced.volumes[1].action, Fate::NotCapable);
    facts.sites.get_mut("b").unwrap().verdict = Verdict::Dead;
    assert!(plan(&facts).refused.is_some());
    let mut stays = healthy();
    stays.sites.get_mut("b").unwrap().images.insert("volume-v1".into(), image(Some(true)));
    let plan = plan(&stays);
    assert_eq!(plan.volumes[0].action, Fate::Stay);
    assert_eq!(plan.volumes[0].reason.as_deref(), Some("it is primary on both sites"));
}

/// What an audit says of one volume: code, and what it would do.
fn audited(row: Row, home: Looked, away: Looked) -> Vec<(String, Option<Mend>)> {
    let id = row.volume.id.clone();
    let facts = facts(vec![row], site(&[(&id, home)]), site(&[(&id, away)]));
    compare(&facts, &[]).drifts.into_iter().map(|d| (d.code, d.repair)).collect()
}

#[test]
fn rows_and_clusters_that_agree_are_left_alone() {
    let agree = [
        (Some("enabled"), image(Some(true)), image(Some(false))),
        (Some("disabled"), image(None), Looked::Absent),
        (None, image(None), Looked::Absent),
    ];
    for (status, home, away) in agree {
        let mut row = row("v", status);
        row.volume.replication_driver_data = Some("{}".into());
        assert!(audited(row, home, away).is_empty(), "{status:?}");
    }
}

#[test]
fn each_disagreement_has_its_name_and_only_the_safe_ones_are_mended() {
    let yes = |primary| image(Some(primary));
    let mirror = Mend::Mirror { mode: MirrorMode::Journal, site: "default".into() };
    let enabled = || row("v", Some("enabled"));
    let only = |code: &str, mend: Option<Mend>| vec![(code.to_owned(), mend)];
    type Expected = Vec<(String, Option<Mend>)>;
    let cases: Vec<(Row, Looked, Looked, Expected)> = vec![
        (enabled(), image(None), Looked::Absent, only("not-mirrored", Some(mirror))),
        // Somebody else's image is in the way of a copy.
        (enabled(), image(None), image(None), only("not-mirrored", None)),
        (Row { wanted: None, ..enabled() }, image(None), Looked::Absent, only("not-mirrored", None)),
        (enabled(), Looked::Absent, yes(true), only("image-missing", None)),
        (enabled(), yes(true), Looked::Absent, only("no-copy", None)),
        (enabled(), yes(true), image(None), only("copy-not-mirrored", None)),
        (enabled(), yes(true), yes(true), only("both-primary", None)),
        (enabled(), yes(false), yes(false), only("none-primary", None)),
        (enabled(), yes(false), yes(true), only("primary-elsewhere", Some(Mend::Stray { site: "b".into() }))),
        (
            Row { stray: Some("b".into()), ..row("v", Some("failover-error")) },
            yes(true),
            yes(false),
            only("primary-elsewhere", Some(Mend::Home { to: "enabled".into() })),
        ),
        (
            Row { stray: Some("default".into()), ..enabled() },
            yes(true),
            yes(false),
            only("superfluous-stray", Some(Mend::Home { to: "enabled".into() })),
        ),
        (
            row("v", Some("failed-over")),
            yes(true),
            yes(false),
            only("wrong-status", Some(Mend::Status { to: "enabled".into() })),
        ),
        (row("v", Some("failover-error")), yes(true), yes(false), only("failover-error", None)),
        (
            row("v", Some("disabled")),
            yes(true),
            yes(false),
            only("mirrored-unsaid", Some(Mend::Status { to: "enabled".into() })),
        ),
        (
            Row { wanted: Some(MirrorMode::Snapshot), ..row("v", Some("disabled")) },
            yes(true),
            yes(false),
            only("mirrored-unsaid", None),
        ),
        (
            Row { wanted: Some(MirrorMode::Snapshot), ..enabled() },
            yes(true),
            yes(false),
            only("other-mode", None),
        ),
        (Row { wanted: None, ..enabled() }, yes(true), yes(false), only("type-not-replicated", None)),
        (row("v", Some("disabled")), yes(false), yes(true), only("secondary-unsaid", None)),
        (row("v", Some("disabled")), Looked::Absent, Looked::Absent, only("image-missing", None)),
        (row("v", Some("disabled")), image(None), Looked::Absent, only("journaling-left", None)),
        (
            Row { snaps: vec!["snapshot-s".into()], ..enabled() },
            yes(true),
            yes(false),
            only("snapshot-missing", None),
        ),
    ];
    for (row, home, away, expected) in cases {
        let said = format!("{:?} {home:?} {away:?}", row.volume.replication_status);
        assert_eq!(audited(row, home, away), expected, "{said}");
    }
}

#[test]
fn nothing_is_said_of_what_somebody_works_on_or_cannot_be_read() {
    let row_of = |change: fn(&mut Row)| {
        let mut row = row("v", Some("enabled"));
        change(&mut row);
        row
    };
    let rows = [
        row_of(|r| r.busy = true),
        row_of(|r| r.volume.status = "deleting".into()),
        row_of(|r| r.volume.status = "retyping".into()),
        row_of(|r| r.volume.migration_status = Some("migrating".into())),
        row_of(|r| r.volume.replication_status = Some("enabling".into())),
    ];
    for row in rows {
        let facts = facts(vec![row], site(&[("v", Looked::Absent)]), site(&[("v", Looked::Absent)]));
        let audit = compare(&facts, &[]);
        assert!(audit.drifts.is_empty() && audit.skipped.len() == 1, "{audit:?}");
    }
    // The other site is silent: what it would say decides, so nothing is mended.
    let unreadable = || Looked::Unreadable { reason: "stuck".into() };
    let plain = audited(row("v", Some("enabled")), image(None), unreadable());
    assert_eq!(plain, [("not-mirrored".to_owned(), None)]);
    let copy = audited(row("v", Some("enabled")), image(Some(false)), unreadable());
    assert_eq!(copy, [("none-primary-seen".to_owned(), None)]);
    assert!(audited(row("v", Some("enabled")), unreadable(), image(Some(true))).is_empty());
}

#[test]
fn orphans_and_rows_about_nothing_are_told() {
    let mut facts = facts(vec![], site(&[]), site(&[]));
    facts.gone = 2;
    let strangers = [("b".to_owned(), "volume-x".to_owned(), Side::Primary)];
    let audit = compare(&facts, &strangers);
    let codes: Vec<&str> = audit.drifts.iter().map(|d| d.code.as_str()).collect();
    assert_eq!(codes, ["orphan", "rows-of-nothing"]);
    assert!(audit.drifts[0].repair.is_none(), "an image is never removed by itself");
    assert_eq!(audit.drifts[1].repair, Some(Mend::Forget));
}

#[test]
fn only_names_of_cinder_are_names_of_volumes() {
    let id = "3f7d81fd-3cb6-4e1a-ab62-35515dfd0a42";
    assert_eq!(volume_of("volume-%s", &format!("volume-{id}")).as_deref(), Some(id));
    for other in [
        "golden".to_owned(),
        "volume-".to_owned(),
        "volume-backup".to_owned(),
        format!("volume-{id}.deleted"),
        format!("volume-{id}.clone_snap"),
        format!("volume-{}", id.replace('-', "")),
        format!("my-volume-{id}"),
    ] {
        assert_eq!(volume_of("volume-%s", &other), None, "{other}");
    }
    assert_eq!(volume_of("vol-%s-x", &format!("vol-{id}-x")).as_deref(), Some(id));
}

#[test]
fn a_question_has_a_stable_shape() {
    let plan = Inquiry::Plan { to: Some("b".into()), volumes: None };
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(text, r#"{"what":"plan","to":"b","volumes":null}"#);
    assert_eq!(serde_json::from_str::<Inquiry>(&text).unwrap(), plan);
    // A restriction that a service does not know must not widen what it does.
    assert!(serde_json::from_str::<Inquiry>(r#"{"what":"audit","volumes":null,"older":1}"#).is_err());
    assert!(serde_json::from_str::<Inquiry>(r#"{"what":"monitors"}"#).is_ok());
}
