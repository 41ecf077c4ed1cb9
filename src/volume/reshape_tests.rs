#![allow(clippy::unwrap_used, clippy::expect_used)]
//! Images that change their type, killed at every call to Ceph and changed again, or back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::rbd::sim::crash::{Attempt as Run, Killed, for_every_crash_point};
use crate::rbd::sim::{Fault, Sim, SimConfig, When};
use crate::volume::image::{Attempt, Shape};

const POOL: &str = "volumes";
const MIB: u64 = 1 << 20;
const ALL: DriverData = DriverData { had_exclusive_lock: true, had_journaling: true };

fn place(sim: &Sim) -> Place {
    Place { site: sim.site("a"), pool: POOL.to_owned() }
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The image `v` with `features`, mirrored as `mirror` says; and what its mirroring has added.
async fn world(features: u64, mirror: Option<MirrorMode>) -> (Sim, DriverData) {
    let sim = Sim::new(SimConfig::default());
    let p = place(&sim);
    p.create("v", MIB, Shape { order: 22, features }, Attempt::First).await.unwrap();
    let key = "conf_rbd_qos_iops_limit".to_owned();
    let own = MetadataSet { pool: POOL.into(), image: "v".into(), key, value: "500".into() };
    p.site.call(own).await.unwrap();
    let data = match mirror {
        Some(mode) => enable::enable(&p.site, POOL, "v", mode, features).await.unwrap(),
        None => ALL,
    };
    sim.advance(Duration::from_secs(60)).await;
    (sim, data)
}

/// What is known before the first change, as the journal keeps it.
type Known = Arc<Mutex<Option<Form>>>;

/// As `retype` does it: the form of before is taken once.
async fn change(p: &Place, to: &Form, data: DriverData, known: &Known) -> Result<(), RbdError> {
    let before = known.lock().unwrap().clone();
    if before.is_none() {
        let (form, _) = form_of(p, "v", data).await?;
        *known.lock().unwrap() = Some(form);
    }
    reshape(p, "v", to, data).await.map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn every_change_is_repeatable_and_can_be_taken_back() {
    let (journal, snapshot) = (Some(MirrorMode::Journal), Some(MirrorMode::Snapshot));
    let many = 61 & !OF_ONE_WRITER;
    let fast = Some(texts(&[("conf_rbd_qos_bps_burst", "9"), ("conf_rbd_qos_iops_limit", "600")]));
    let cases = [
        (61, None, 61, journal, None),
        (1, None, 1, journal, None),
        (61, None, 61, snapshot, None),
        (61, journal, 61, None, None),
        (1, journal, 1, None, None),
        (61, snapshot, 61, None, None),
        (61, journal, 61, snapshot, None),
        (61, snapshot, 61, journal, None),
        (61, None, many, None, None),
        (many, None, 61, None, None),
        (61, journal, many, None, fast.clone()),
        (many, None, 61, journal, fast.clone()),
        (61, None, 61, None, fast),
        (61, None, 61, None, Some(BTreeMap::new())),
    ];
    for (features, mirror, wanted, mirrored, limits) in cases {
        let to = Form { features: wanted, mirror: mirrored, limits: limits.clone() };
        let build = async || {
            let (sim, data) = world(features, mirror).await;
            let dead = sim.client_address();
            (sim, (dead, data, Known::default()))
        };
        let run = async |sim: Sim, (dead, data, known): (String, DriverData, Known), run: Run| {
            if run == Run::Resumed {
                sim.site("a").call(BlocklistAdd { address: dead, seconds: 60 }).await?;
            }
            change(&place(&sim), &to, data, &known).await
        };
        let check = async |sim: Sim, (_, data, known): (String, DriverData, Known)| {
            let p = place(&sim);
            let seen = sim.image("a", POOL, "v").unwrap();
            let (now, primary) = form_of(&p, "v", data).await.unwrap();
            assert_eq!(now.mirror, mirrored, "{}", sim.log_text());
            assert!(primary || mirrored.is_none());
            if let Some(limits) = &to.limits {
                assert_eq!(now.limits.as_ref(), Some(limits));
            }
            let added = if mirrored == journal { 64 | 4 } else { 0 };
            assert_eq!(seen.features & OF_ONE_WRITER, (wanted | added) & OF_ONE_WRITER, "{}", sim.log_text());

            let before = known.lock().unwrap().clone().unwrap();
            // What the new mirroring has added follows from what there was before it.
            let new = DriverData {
                had_exclusive_lock: wanted & features::EXCLUSIVE_LOCK != 0,
                had_journaling: wanted & features::JOURNALING != 0,
            };
            reshape(&p, "v", &before, new).await.unwrap();
            let (back, _) = form_of(&p, "v", data).await.unwrap();
            assert_eq!(back, before, "{}", sim.log_text());
        };
        assert!(for_every_crash_point(Killed::Service, build, run, check).await > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_a_worker_is_survived() {
    let build = async || (world(61, None).await.0, ());
    let to = Form { features: 61, mirror: Some(MirrorMode::Journal), limits: Some(BTreeMap::new()) };
    let run = async |sim: Sim, (), _: Run| reshape(&place(&sim), "v", &to, ALL).await.map(|_| ());
    let check = async |sim: Sim, ()| {
        let (form, _) = form_of(&place(&sim), "v", ALL).await.unwrap();
        assert_eq!((form.mirror, form.limits), (to.mirror, to.limits.clone()), "{}", sim.log_text());
    };
    assert!(for_every_crash_point(Killed::Worker, build, run, check).await > 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_asked_for_stays() {
    let (sim, data) = world(61, Some(MirrorMode::Journal)).await;
    let p = place(&sim);
    let (mut form, _) = form_of(&p, "v", data).await.unwrap();
    assert_eq!(form.limits, Some(texts(&[("conf_rbd_qos_iops_limit", "500")])));
    form.limits = None;
    sim.clear_log();
    assert_eq!(reshape(&p, "v", &form, data).await.unwrap(), None);
    let changes = ["MetadataSet", "MetadataRemove", "ImageFeatures", "MirrorEnable", "MirrorDisable"];
    assert_eq!(changes.map(|c| sim.count(c)), [0; 5], "{}", sim.log_text());
}

#[tokio::test(start_paused = true)]
async fn a_change_that_fails_is_said_and_leaves_the_mirroring_that_there_was() {
    let (sim, data) = world(61, Some(MirrorMode::Journal)).await;
    sim.inject(Fault::on("MirrorDisable").fails(When::Before, RbdErrorKind::Busy));
    let to = Form { features: 61, mirror: None, limits: None };
    let refused = reshape(&place(&sim), "v", &to, data).await.unwrap_err();
    assert_eq!(refused.kind, RbdErrorKind::Busy);
    assert!(sim.image("a", POOL, "v").unwrap().features & features::JOURNALING != 0);
}

#[test]
fn limits_are_those_of_cinder() {
    let specs =
        texts(&[("total_iops_sec", "5"), ("read_bytes_sec_max", "7"), ("total_iops_sec_per_gb", "1")]);
    assert_eq!(
        limits(&specs),
        texts(&[("conf_rbd_qos_iops_limit", "5"), ("conf_rbd_qos_read_bps_burst", "7")])
    );
    for spec in ["total_iops_sec", "read_iops_sec_max", "write_bytes_sec", "total_bytes_sec_max"] {
        assert!(limit(spec).is_some_and(|option| is_limit(&format!("conf_{option}"))), "{spec}");
    }
    for other in ["conf_rbd_cache", "conf_rbd_qos_schedule_tick_min", "note"] {
        assert!(!is_limit(other), "{other}");
    }
}
