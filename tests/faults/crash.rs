//! The service dies at every kind of journalled step: after a restart nobody waits for anything, and both
//! sites agree with the database.
//!
//! The points are those of `volume::crash` (debug builds): `SCORIA_CRASH_AT=<point>[:<n>]`. Most of a
//! death's cost is not the death but waiting for replicas, so volumes are looked at together at the end.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::common::{CEPH_QUEUE, Lab, full, is_gone, row_str, wait_for, wait_until};
use crate::workers::arm_workers;

pub(crate) const WHY: &str = "stock knows neither journal nor crash points";

/// Restart the service so that it dies at `point`.
pub(crate) fn arm(lab: &Lab, point: &str) {
    lab.stop_service();
    lab.start_service_with(&[], &[("SCORIA_CRASH_AT", point)]);
}

/// A point without its count.
pub(crate) fn name_of(point: &str) -> &str {
    match point.rsplit_once(':') {
        Some((name, n)) if n.parse::<u32>().is_ok() => name,
        _ => point,
    }
}

/// Until it has died, there and not elsewhere.
pub(crate) fn wait_death(lab: &Lab, point: &str) {
    lab.wait_service_gone(120);
    let log = lab.service_log();
    let life = log.rsplit("lab starts scoria-volume").next().unwrap_or_default();
    assert!(life.contains(&format!("dying at {},", name_of(point))), "{point}: it died, but not there");
}

/// It has died there; start it again as usual.
pub(crate) fn died_at(lab: &Lab, point: &str) {
    wait_death(lab, point);
    lab.start_service();
}

/// After a restart, until nobody works on anything any more.
pub(crate) fn wait_quiet(lab: &Lab, point: &str) {
    wait_until(&format!("{point}: nothing is left in a transitional status"), 120, || {
        lab.transitional().is_empty()
            && lab.rows("SELECT id FROM scoria_operations WHERE state <> 'closed'", &[]).is_empty()
    });
}

/// Rows and images of volumes that are available or deleted agree, and what is written on a replicated one
/// arrives on the other site. (Its mirror status would be up to half a minute late.)
pub(crate) fn expect_agreement(lab: &Lab, ids: &[String], point: &str) {
    static SEED: AtomicU32 = AtomicU32::new(10_000);
    let mut written = Vec::new();
    for id in ids {
        let row = lab.volume(id);
        let image = lab.image("a", id);
        match row_str(&row, "status") {
            "available" => {
                assert_eq!(image["size"], row["size"].as_u64().unwrap() << 30, "{point}: {row}");
                let mirrored = row["replication_status"] == "enabled";
                assert_eq!(image["state"] == "enabled", mirrored, "{point}: {image}");
                assert_eq!(image["primary"] == true, mirrored, "{point}: {image}");
                if mirrored {
                    let seed = SEED.fetch_add(1, Ordering::Relaxed);
                    lab.write("a", id, seed);
                    written.push((id, seed));
                }
            }
            "deleted" => assert!(image.is_null(), "{point}: {row} has {image}"),
            other => panic!("{point}: {id} ended as {other}; messages: {:?}", lab.messages(id)),
        }
    }
    for (id, seed) in written {
        lab.wait_replicated(id, "a", seed);
    }
    for id in ids.iter().filter(|id| lab.volume(id)["deleted"] == 1) {
        wait_until(&format!("{point}: no replica"), 60, || lab.image("b", id).is_null());
    }
}

/// Every one of them has become a volume.
pub(crate) fn expect_available(lab: &Lab, ids: &[String], point: &str) {
    for id in ids {
        assert_eq!(lab.volume(id)["status"], "available", "{point}: {id}: {:?}", lab.messages(id));
    }
    expect_agreement(lab, ids, point);
}

pub(crate) fn delete_all(lab: &Lab, ids: &[String]) {
    lab.delete(&ids.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Volumes of a type, available; replicas of those that have them have data.
pub(crate) fn replicated(lab: &Lab, count: usize) -> Vec<String> {
    let ids: Vec<String> = (0..count).map(|_| lab.create(json!({"volume_type": "replicated"}))).collect();
    for id in &ids {
        lab.wait_status(id, "available");
    }
    expect_agreement(lab, &ids, "before");
    ids
}

pub(crate) const CREATE: &[&str] =
    &["create_volume:accepted", "create_volume:image_created", "create_volume:mirrored"];

#[test]
fn create_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let mut ids = Vec::new();
    for point in CREATE {
        arm(&lab, point);
        ids.push(lab.create(json!({"volume_type": "replicated"})));
        died_at(&lab, point);
        wait_quiet(&lab, point);
        assert_eq!(lab.quota()["volumes"], json!([ids.len(), 0]), "{point}");
    }
    expect_available(&lab, &ids, "a creation that died");
    delete_all(&lab, &ids);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_copy_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let source = lab.volume_of_type("replicated");
    let sum = lab.write("a", &source, 21);
    let mut ids = Vec::new();
    for point in CREATE {
        arm(&lab, point);
        let id = lab.create(json!({"source_volid": source, "volume_type": "replicated"}));
        died_at(&lab, point);
        wait_quiet(&lab, point);
        assert_eq!(lab.checksum("a", &id), sum, "{point}");
        ids.push(id);
    }
    expect_available(&lab, &ids, "a copy that died");
    delete_all(&lab, &ids);
    lab.delete(&[&source]);
}

/// A request to create a volume whose image is there already, so that it is given back to the scheduler.
pub(crate) fn unwelcome(lab: &Lab) -> String {
    let call = |op: &str, args: Value| lab.driver.call(op, args).unwrap();
    let id = call("insert_volume", json!({"type_name": "ceph", "host": "lab@ceph#ceph"}));
    let id = id.as_str().unwrap().to_owned();
    lab.ceph("create", json!({"site": "a", "image": format!("volume-{id}")}));
    let args = call("create_args", json!({"ident": id, "reschedule": true}));
    call("cast", json!({"routing_key": CEPH_QUEUE, "method": "create_volume", "args": args}));
    id
}

/// How often Scoria was asked to create a volume.
pub(crate) fn creations_of(lab: &Lab, id: &str) -> usize {
    let query = "SELECT id FROM scoria_operations WHERE method = 'create_volume' AND resource_id = %s";
    lab.rows(query, &[json!(id)]).len()
}

#[test]
fn a_creation_dies_on_its_way_back_to_the_scheduler() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    for point in ["create_volume:rescheduling", "create_volume:rescheduled"] {
        arm(&lab, point);
        let id = unwelcome(&lab);
        wait_death(&lab, point);
        // What was in the way is gone, so whoever is asked next can make the volume.
        lab.tool(&["rbd", "a", "rm", &format!("volumes/volume-{id}"), "--no-progress"]);
        if point == "create_volume:rescheduled" {
            wait_until("the scheduler has placed it again", 60, || lab.volume(&id)["host"].is_string());
        }
        lab.start_service();
        wait_quiet(&lab, point);
        expect_available(&lab, std::slice::from_ref(&id), point);
        assert_eq!(creations_of(&lab, &id), 2, "{point}: handed to the scheduler once");
        assert_eq!(lab.quota()["volumes"], json!([1, 0]), "{point}");
        lab.delete(&[&id]);
        lab.wait_quota(json!({}));
    }
}

#[test]
fn delete_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let ids = replicated(&lab, 2);
    for (point, id) in ["delete_volume:accepted", "delete_volume:image_deleted"].iter().zip(&ids) {
        arm(&lab, point);
        lab.order_delete(id);
        died_at(&lab, point);
        wait_quiet(&lab, point);
        assert_eq!(lab.volume(id)["deleted"], 1, "{point}");
    }
    expect_agreement(&lab, &ids, "a deletion that died");
    lab.wait_quota(json!({}));
}

/// A volume whose deletion leaves something else to remove: the parent that was kept for its sake.
pub(crate) fn last_clone(lab: &Lab) -> (String, String) {
    let source = lab.volume_of_type("ceph");
    let clone = lab.create(json!({"source_volid": source, "volume_type": "ceph"}));
    lab.wait_status(&clone, "available");
    lab.delete(&[&source]);
    assert_eq!(lab.ceph("images", json!({"site": "a"})).as_array().unwrap().len(), 2, "the parent is kept");
    (source, clone)
}

#[test]
fn the_deletion_of_a_clone_dies_and_its_parent_goes_all_the_same() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let points: &[&str] = match full() {
        true => &["delete_volume:accepted", "delete_volume:helpers", "delete_volume:image_deleted"],
        false => &["delete_volume:helpers"],
    };
    for point in points {
        let (_, clone) = last_clone(&lab);
        arm(&lab, point);
        lab.order_delete(&clone);
        died_at(&lab, point);
        wait_quiet(&lab, point);
        assert_eq!(lab.volume(&clone)["deleted"], 1, "{point}");
        assert_eq!(lab.ceph("images", json!({"site": "a"})), json!([]), "{point}");
        lab.wait_quota(json!({}));
    }
}

#[test]
fn snapshots_and_extensions_die_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let points: &[&str] = if full() {
        &[
            "create_snapshot:accepted",
            "create_snapshot:taken",
            "delete_snapshot:accepted",
            "delete_snapshot:removed",
            "extend_volume:accepted",
            "extend_volume:image_resized",
        ]
    } else {
        &["create_snapshot:taken", "delete_snapshot:removed", "extend_volume:image_resized"]
    };
    for point in points {
        let id = lab.volume_of_type("ceph");
        match *point {
            p if p.starts_with("create_snapshot") => {
                arm(&lab, point);
                let made = lab.api("volume_snapshots.create", json!([id]), json!({}));
                let snapshot = made["id"].as_str().unwrap();
                died_at(&lab, point);
                wait_quiet(&lab, point);
                let exists = lab.image("a", &id)["snapshots"] != json!([]);
                let status = lab.snapshot(snapshot)["status"].clone();
                assert_eq!(exists, status == "available", "{point}: {status}");
                lab.delete_snapshot(snapshot);
            }
            p if p.starts_with("delete_snapshot") => {
                let snapshot = lab.snapshot_of(&id);
                arm(&lab, point);
                lab.api("volume_snapshots.delete", json!([snapshot]), json!({}));
                died_at(&lab, point);
                wait_until(&format!("{point}: deleted"), 120, || lab.snapshot(&snapshot)["deleted"] == 1);
                assert_eq!(lab.image("a", &id)["snapshots"], json!([]));
            }
            _ => {
                arm(&lab, point);
                lab.api("volumes.extend", json!([id, 2]), json!({}));
                died_at(&lab, point);
                wait_quiet(&lab, point);
                let row = lab.volume(&id);
                match row_str(&row, "status") {
                    "available" => {
                        assert_eq!(row["size"], 2, "{point}");
                        assert_eq!(lab.image("a", &id)["size"], 2u64 << 30, "{point}");
                        assert_eq!(lab.quota()["gigabytes"], json!([2, 0]), "{point}");
                    }
                    other => {
                        assert_eq!(other, "error_extending", "{point}");
                        assert_eq!(lab.quota()["gigabytes"], json!([1, 0]), "{point}");
                    }
                }
            }
        }
        lab.delete(&[&id]);
        lab.wait_quota(json!({}));
    }
}

/// Until none of these processes is there. What has the number by then may be somebody else's.
fn wait_workers_gone(workers: &[i32]) {
    let is_worker = |pid: i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|c| String::from_utf8_lossy(&c).contains("scoria-rbd-worker"))
    };
    wait_until("no worker outlives its service", 30, || {
        workers.iter().all(|pid| is_gone(*pid) || !is_worker(*pid))
    });
}

/// Not in the sample: a client killed while librbd 16.2.15 switches journaling on may leave an image on which
/// every later attempt, and its removal, crashes librbd.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn the_service_is_killed_while_much_is_going_on() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let mut gone: Vec<String> = Vec::new();
    for round in 0..if full() { 6 } else { 2 } {
        let ids: Vec<String> = (0..6).map(|_| lab.create(json!({"volume_type": "replicated"}))).collect();
        gone.iter().for_each(|id| lab.order_delete(id));
        // A different moment each round, somewhere in the middle of it.
        let created = "SELECT id FROM scoria_operations WHERE state = 'closed' AND resource_id IN (%s, %s, \
                       %s, %s, %s, %s)";
        let these: Vec<Value> = ids.iter().map(|id| json!(id)).collect();
        wait_until("some of it is done", 60, || lab.rows(created, &these).len() >= round % 6);
        let workers = lab.worker_pids();
        assert!(!workers.is_empty(), "it has workers");
        lab.kill_service_alone();
        wait_workers_gone(&workers);
        lab.start_service();
        wait_quiet(&lab, "kill -9 under load");
        expect_available(&lab, &ids, "kill -9 under load");
        for id in &gone {
            assert_eq!(lab.volume(id)["deleted"], 1, "{id}: {}", lab.volume(id)["status"]);
        }
        expect_agreement(&lab, &gone, "kill -9 under load");
        gone = ids;
    }
    delete_all(&lab, &gone);
}

/// Also one that is deep in a call that does not come back.
#[test]
fn no_worker_outlives_its_service() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no workers") {
        return;
    }
    lab.pause("site-a-osd.0");
    let id = lab.create(json!({"volume_type": "ceph"}));
    let query = "SELECT id FROM scoria_operations WHERE state = 'open' AND resource_id = %s";
    wait_until("the creation has begun", 60, || !lab.rows(query, &[json!(id)]).is_empty());
    let workers = lab.worker_pids();
    assert!(workers.len() >= 2, "at least two workers for a site in use: {workers:?}");
    lab.kill_service_alone();
    wait_workers_gone(&workers);
    lab.resume("site-a-osd.0");
    wait_for("the site answers", 60, || lab.ceph.call("status_of_pool", json!({"site": "a"})).ok());
    lab.start_service();
    wait_quiet(&lab, "a service that is gone");
    expect_available(&lab, std::slice::from_ref(&id), "a service that is gone");
    lab.delete(&[&id]);
}

/// With Ceph's own time-out a dead client's watch outlives it by half a minute, longer than anybody tries
/// again: what was in its hands is only finished in time because it is fenced.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn recovery_ends_with_the_watch_timeout_that_ceph_has_by_default() {
    let lab = Lab::with_ceph_default_watches();
    if !lab.only_scoria(WHY) {
        return;
    }
    let shown = lab.tool(&["ceph", "a", "tell", "osd.0", "config", "get", "osd_client_watch_timeout"]);
    assert!(shown.contains("\"30\""), "{shown}");
    let ids = replicated(&lab, 3);
    // The service, in the middle of a deletion.
    arm(&lab, "delete_volume:accepted");
    lab.order_delete(&ids[0]);
    died_at(&lab, "delete_volume:accepted");
    wait_quiet(&lab, "default watches: the service");
    assert_eq!(lab.volume(&ids[0])["deleted"], 1);
    // Workers, in the middle of another; and both, while volumes are made.
    let service = arm_workers(&lab, &["delete_volume:accepted", "create_volume:image_created"]);
    lab.order_delete(&ids[1]);
    let mut made: Vec<String> = (0..3).map(|_| lab.create(json!({"volume_type": "replicated"}))).collect();
    wait_quiet(&lab, "default watches: workers");
    assert_eq!(lab.volume(&ids[1])["deleted"], 1);
    assert_eq!(lab.service_pids()[0], service);
    arm(&lab, "create_volume:mirrored");
    made.push(lab.create(json!({"volume_type": "replicated"})));
    died_at(&lab, "create_volume:mirrored");
    wait_quiet(&lab, "default watches: a creation");
    expect_available(&lab, &made, "default watches");
    made.push(ids[2].clone());
    delete_all(&lab, &made);
    expect_agreement(&lab, &ids, "default watches");
}
