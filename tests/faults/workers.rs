//! Workers die at every kind of journalled step: the service lives on, repeats what it must, and nobody
//! notices.
//!
//! The points are those of `volume::crash` (debug builds): `SCORIA_KILL_WORKERS_AT=<point>[:<n>],…` kills
//! all workers that there are, the calls of the other volumes included, and the service goes on.

use serde_json::json;

use crate::common::{Lab, full, signal, wait_for};
use crate::crash::{
    CREATE, creations_of, delete_all, expect_agreement, expect_available, last_clone, name_of, replicated,
    unwelcome, wait_quiet,
};

const WHY: &str = "stock has no workers";

/// Restart the service so that its workers are killed at `points`; its process id.
pub(crate) fn arm_workers(lab: &Lab, points: &[&str]) -> i32 {
    lab.stop_service();
    lab.start_service_with(&[], &[("SCORIA_KILL_WORKERS_AT", &points.join(","))]);
    lab.service_pids()[0]
}

/// The workers that were killed at a point, by what is in the log; `None` when it was not passed.
pub(crate) fn killed_at(log: &str, point: &str) -> Option<usize> {
    let marker = format!("killing all workers at {}, ", name_of(point));
    let (_, rest) = log.split_once(&marker)?;
    Some(rest.lines().next()?.split_once(": ")?.1.split_whitespace().count())
}

/// At each of the points there were workers, and the service is the same process as before. (Of points that
/// follow each other at once some may come before there are new ones.)
pub(crate) fn workers_died_at(lab: &Lab, service: i32, points: &[&str]) {
    let log = lab.service_log();
    let life = log.rsplit("lab starts scoria-volume").next().unwrap_or_default();
    let killed = |point: &&str| killed_at(life, point).unwrap_or_else(|| panic!("{point} was not passed"));
    let killed: Vec<usize> = points.iter().map(killed).collect();
    let in_vain = killed.iter().filter(|n| **n == 0).count();
    assert!(in_vain <= points.len() / 2, "{points:?}: workers killed: {killed:?}");
    assert_eq!(lab.service_pids().first(), Some(&service), "the service lives on");
}

/// All points in one run, or with `full` also each of them alone.
fn runs<'a>(points: &'a [&'a str]) -> Vec<Vec<&'a str>> {
    let mut runs = vec![points.to_vec()];
    if full() {
        runs.extend(points.iter().map(|p| vec![name_of(p)]));
    }
    runs
}

#[test]
fn workers_die_at_every_step_of_a_creation() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    // Counted, so that others are in the middle of something.
    for points in
        runs(&["create_volume:accepted", "create_volume:image_created:2", "create_volume:mirrored:4"])
    {
        let what = points.join(",");
        let service = arm_workers(&lab, &points);
        let ids: Vec<String> = (0..5).map(|_| lab.create(json!({"volume_type": "replicated"}))).collect();
        wait_quiet(&lab, &what);
        workers_died_at(&lab, service, &points);
        expect_available(&lab, &ids, &what);
        assert_eq!(lab.quota()["volumes"], json!([ids.len(), 0]), "{what}");
        delete_all(&lab, &ids);
        lab.wait_quota(json!({}));
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn workers_die_at_every_step_of_a_copy() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let source = lab.volume_of_type("replicated");
    let sum = lab.write("a", &source, 22);
    for points in runs(CREATE) {
        let what = points.join(",");
        let service = arm_workers(&lab, &points);
        let one = || lab.create(json!({"source_volid": source, "volume_type": "replicated"}));
        let ids: Vec<String> = (0..3).map(|_| one()).collect();
        wait_quiet(&lab, &what);
        workers_died_at(&lab, service, &points);
        for id in &ids {
            assert_eq!(lab.checksum("a", id), sum, "{what}");
        }
        expect_available(&lab, &ids, &what);
        delete_all(&lab, &ids);
    }
    lab.delete(&[&source]);
}

#[test]
fn workers_die_at_every_step_of_a_creation_that_goes_back_to_the_scheduler() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let points = ["create_volume:accepted", "create_volume:rescheduling", "create_volume:rescheduled"];
    let service = arm_workers(&lab, &points);
    let id = unwelcome(&lab);
    // It comes back until the scheduler has had enough.
    wait_for("it is given up", 90, || (lab.volume(&id)["status"] == "error").then_some(()));
    wait_quiet(&lab, "rescheduled");
    workers_died_at(&lab, service, &points);
    assert_eq!(creations_of(&lab, &id), 3, "scheduler_max_attempts");
    assert_eq!(lab.image("a", &id)["size"], 1u64 << 30, "what was not made for it is left alone");
    // It is on no host, so the API deletes the row by itself.
    lab.delete(&[&id]);
    lab.tool(&["rbd", "a", "rm", &format!("volumes/volume-{id}"), "--no-progress"]);
    lab.wait_quota(json!({}));
}

#[test]
fn workers_die_at_every_step_of_a_deletion() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    for points in
        runs(&["delete_volume:accepted:2", "delete_volume:helpers", "delete_volume:image_deleted:3"])
    {
        let what = points.join(",");
        let (_, clone) = last_clone(&lab);
        let mut ids = replicated(&lab, 4);
        let service = arm_workers(&lab, &points);
        ids.push(clone);
        ids.iter().for_each(|id| lab.order_delete(id));
        ids.iter().for_each(|id| lab.wait_deleted(id));
        wait_quiet(&lab, &what);
        workers_died_at(&lab, service, &points);
        expect_agreement(&lab, &ids, &what);
        assert_eq!(lab.ceph("images", json!({"site": "a"})), json!([]), "{what}");
        lab.wait_quota(json!({}));
    }
}

#[test]
fn workers_die_at_every_step_of_snapshots_and_extensions() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let points = [
        "create_snapshot:accepted",
        "create_snapshot:taken",
        "extend_volume:accepted",
        "extend_volume:image_resized",
        "delete_snapshot:accepted",
        "delete_snapshot:removed",
    ];
    for points in runs(&points) {
        let what = points.join(",");
        let service = arm_workers(&lab, &points);
        let id = lab.volume_of_type("ceph");
        let snapshot = lab.snapshot_of(&id);
        assert_ne!(lab.image("a", &id)["snapshots"], json!([]), "{what}");
        lab.api("volumes.extend", json!([id, 2]), json!({}));
        lab.wait_status(&id, "available");
        assert_eq!((&lab.volume(&id)["size"], &lab.image("a", &id)["size"]), (&json!(2), &json!(2u64 << 30)));
        lab.delete_snapshot(&snapshot);
        assert_eq!(lab.image("a", &id)["snapshots"], json!([]), "{what}");
        wait_quiet(&lab, &what);
        workers_died_at(&lab, service, &points);
        lab.delete(&[&id]);
        lab.wait_quota(json!({}));
    }
}

/// Not in the sample, for the reason of `the_service_is_killed_while_much_is_going_on`.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn workers_are_killed_again_and_again_and_nothing_is_lost() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let service = lab.service_pids()[0];
    let ids: Vec<String> = (0..6).map(|_| lab.create(json!({"volume_type": "replicated"}))).collect();
    let mut killed: Vec<i32> = Vec::new();
    for _ in 0..3 {
        let workers = wait_for("the service has new workers", 60, || {
            let now = lab.worker_pids();
            (!now.is_empty() && now.iter().all(|pid| !killed.contains(pid))).then_some(now)
        });
        signal("KILL", &workers);
        killed.extend(workers);
    }
    wait_quiet(&lab, "workers killed");
    assert_eq!(lab.service_pids()[0], service, "the service lives on");
    expect_available(&lab, &ids, "workers killed");
    // And works on.
    let one = lab.volume_of_type("ceph");
    lab.delete(&[&one]);
    delete_all(&lab, &ids);
}

#[test]
fn a_stuck_worker_does_not_stop_the_service() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let workers = lab.worker_pids();
    assert!(workers.len() >= 2, "at least two workers for a site in use: {workers:?}");
    signal("STOP", &workers[..1]);
    let ids: Vec<String> = (0..4).map(|_| lab.create(json!({"volume_type": "ceph"}))).collect();
    wait_quiet(&lab, "a worker is stuck");
    // Calls that were in its hands have missed their deadlines; the others must not.
    let made: Vec<String> =
        ids.iter().filter(|id| lab.volume(id)["status"] == "available").cloned().collect();
    assert!(!made.is_empty(), "the other workers work");
    expect_agreement(&lab, &made, "a worker is stuck");
    signal("KILL", &workers[..1]);
    delete_all(&lab, &ids);
}
