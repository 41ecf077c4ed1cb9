//! Death at every kind of journalled step: after a restart nobody waits for anything, and both sites
//! agree with the database.
//!
//! The points are those of `volume::crash` (debug builds): `SCORIA_CRASH_AT=<point>[:<n>]`.

use serde_json::json;

use crate::common::{Lab, full, row_str, wait_until};

const WHY: &str = "stock knows neither journal nor crash points";

/// Restart the service so that it dies at `point`.
pub(crate) fn arm(lab: &Lab, point: &str) {
    lab.stop_service();
    lab.start_service_with(&[], &[("SCORIA_CRASH_AT", point)]);
}

/// It has died there; start it again as usual.
pub(crate) fn died_at(lab: &Lab, point: &str) {
    lab.wait_service_gone(120);
    // Its last line may not have reached the log; a panic would have.
    assert!(!lab.service_log().contains("panicked at"), "{point}: the service died, but not there");
    lab.start_service();
}

/// After a restart, until nobody works on anything any more.
pub(crate) fn wait_quiet(lab: &Lab, point: &str) {
    wait_until(&format!("{point}: nothing is left in a transitional status"), 120, || {
        lab.transitional().is_empty()
            && lab.rows("SELECT id FROM scoria_operations WHERE state <> 'closed'", &[]).is_empty()
    });
}

/// Rows and images of a volume that may be there or not.
fn expect_agreement(lab: &Lab, id: &str, point: &str) {
    let row = lab.volume(id);
    let image = lab.image("a", id);
    match row_str(&row, "status") {
        "available" => {
            assert_eq!(image["size"], row["size"].as_u64().unwrap() << 30, "{point}: {row}");
            let mirrored = row["replication_status"] == "enabled";
            assert_eq!(image["state"] == "enabled", mirrored, "{point}: {image}");
            assert_eq!(image["primary"] == true, mirrored, "{point}: {image}");
            if mirrored {
                lab.wait_mirrored(id, "b");
            }
        }
        "error" | "deleted" => {
            assert!(image.is_null(), "{point}: {row} has {image}");
            wait_until(&format!("{point}: no replica"), 60, || lab.image("b", id).is_null());
        }
        other => panic!("{point}: the volume ended as {other}"),
    }
}

#[test]
fn create_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    for point in ["create_volume:accepted", "create_volume:image_created", "create_volume:mirrored"] {
        arm(&lab, point);
        let id = lab.create(json!({"volume_type": "replicated"}));
        died_at(&lab, point);
        wait_quiet(&lab, point);
        expect_agreement(&lab, &id, point);
        assert_eq!(lab.quota()["volumes"], json!([1, 0]), "{point}");
        lab.delete(&[&id]);
        lab.wait_quota(json!({}));
    }
}

#[test]
fn a_copy_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) || !full() {
        return;
    }
    let source = lab.volume_of_type("replicated");
    let sum = lab.write("a", &source, 21);
    for point in ["create_volume:accepted", "create_volume:image_created", "create_volume:mirrored"] {
        arm(&lab, point);
        let id = lab.create(json!({"source_volid": source, "volume_type": "replicated"}));
        died_at(&lab, point);
        wait_quiet(&lab, point);
        expect_agreement(&lab, &id, point);
        if lab.volume(&id)["status"] == "available" {
            assert_eq!(lab.checksum("a", &id), sum, "{point}");
        }
        lab.delete(&[&id]);
    }
    lab.delete(&[&source]);
}

#[test]
fn delete_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    for point in ["delete_volume:accepted", "delete_volume:image_deleted"] {
        let id = lab.volume_of_type("replicated");
        lab.wait_mirrored(&id, "b");
        arm(&lab, point);
        lab.order_delete(&id);
        died_at(&lab, point);
        wait_quiet(&lab, point);
        lab.wait_deleted(&id);
        expect_agreement(&lab, &id, point);
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

#[test]
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
        std::thread::sleep(std::time::Duration::from_millis(40 * (round * 3 + 1)));
        lab.kill_service();
        assert!(lab.worker_pids().is_empty(), "a worker does not outlive its service");
        lab.start_service();
        wait_quiet(&lab, "kill -9 under load");
        ids.iter().chain(&gone).for_each(|id| expect_agreement(&lab, id, "kill -9 under load"));
        for id in &gone {
            assert_eq!(lab.volume(id)["deleted"], 1);
        }
        gone = ids;
    }
    lab.delete(&gone.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn workers_are_killed_and_nothing_is_lost() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no workers") {
        return;
    }
    let service = lab.service_pids()[0];
    let ids: Vec<String> = (0..6).map(|_| lab.create(json!({"volume_type": "replicated"}))).collect();
    for _ in 0..3 {
        let workers = lab.worker_pids();
        assert!(!workers.is_empty(), "the service has workers");
        for pid in workers {
            let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    wait_quiet(&lab, "workers killed");
    assert_eq!(lab.service_pids()[0], service, "the service lives on");
    ids.iter().for_each(|id| expect_agreement(&lab, id, "workers killed"));
    // And works on.
    let one = lab.volume_of_type("ceph");
    lab.delete(&[&one]);
    lab.delete(&ids.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_stuck_worker_does_not_stop_the_service() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no workers") {
        return;
    }
    let workers = lab.worker_pids();
    assert!(workers.len() >= 2, "at least two workers for a site in use: {workers:?}");
    let stuck = workers[0].to_string();
    assert!(std::process::Command::new("kill").args(["-STOP", &stuck]).status().unwrap().success());
    let ids: Vec<String> = (0..4).map(|_| lab.create(json!({"volume_type": "ceph"}))).collect();
    wait_quiet(&lab, "a worker is stuck");
    ids.iter().for_each(|id| expect_agreement(&lab, id, "a worker is stuck"));
    let _ = std::process::Command::new("kill").args(["-KILL", &stuck]).status();
    lab.delete(&ids.iter().map(String::as_str).collect::<Vec<_>>());
}
