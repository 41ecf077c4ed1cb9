//! The service dies while a volume is reverted, and while an image or a snapshot is taken over: what was begun is
//! finished, once.

use serde_json::json;

use crate::common::{Lab, full};
use crate::crash::{WHY, arm, died_at, wait_quiet};

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_revert_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let points: &[&str] = match full() {
        true => &["revert_to_snapshot:accepted", "revert_to_snapshot:reverted"],
        false => &["revert_to_snapshot:reverted"],
    };
    for volume_type in ["ceph", "replicated-snapshot"] {
        for point in points {
            let id = lab.volume_of_type(volume_type);
            let before = lab.write("a", &id, 1);
            let snapshot = lab.snapshot_of(&id);
            lab.write("a", &id, 2);
            arm(&lab, point);
            lab.api("volumes.revert_to_snapshot", json!([id, snapshot]), json!({}));
            died_at(&lab, point);
            wait_quiet(&lab, point);
            lab.wait_status(&id, "available");
            lab.wait_snapshot(&snapshot, "available");
            assert_eq!(lab.checksum("a", &id), before, "{point}");
            lab.delete_snapshot(&snapshot);
            lab.delete(&[&id]);
        }
    }
}

#[test]
fn a_takeover_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let points: &[&str] = match full() {
        true => &[
            "manage_existing:accepted",
            "manage_existing:taken",
            "manage_existing:renamed",
            "manage_existing:mirrored",
        ],
        false => &["manage_existing:renamed", "manage_existing:mirrored"],
    };
    for point in points {
        lab.ceph("create", json!({"site": "a", "image": "foreign"}));
        arm(&lab, point);
        let reference = json!(["lab@ceph#ceph", {"source-name": "foreign"}]);
        let made = lab.api("volumes.manage", reference, json!({"volume_type": "replicated"}));
        let id = made["id"].as_str().unwrap();
        died_at(&lab, point);
        wait_quiet(&lab, point);
        lab.wait_status(id, "available");
        assert_eq!(lab.image("a", id)["state"], "enabled", "{point}");
        assert_eq!(lab.quota()["gigabytes"], json!([1, 0]), "{point}: counted once");
        lab.delete(&[id]);
        lab.wait_quota(json!({}));
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_takeover_of_a_snapshot_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let id = lab.volume_of_type("ceph");
    let points: &[&str] = match full() {
        true => &[
            "manage_existing_snapshot:accepted",
            "manage_existing_snapshot:taken",
            "manage_existing_snapshot:renamed",
            "manage_existing_snapshot:protected",
        ],
        false => &["manage_existing_snapshot:renamed"],
    };
    for point in points {
        let name = format!("volumes/volume-{id}@mine");
        lab.tool(&["rbd", "a", "snap", "create", &name, "--no-progress"]);
        arm(&lab, point);
        let reference = json!([id, {"source-name": "mine"}]);
        let made = lab.api("volume_snapshots.manage", reference, json!({}));
        let snapshot = made["id"].as_str().unwrap();
        died_at(&lab, point);
        wait_quiet(&lab, point);
        lab.wait_snapshot(snapshot, "available");
        assert_eq!(lab.quota()["gigabytes"], json!([2, 0]), "{point}: counted once");
        lab.delete_snapshot(snapshot);
        assert_eq!(lab.image("a", &id)["snapshots"], json!([]), "{point}");
    }
    lab.delete(&[&id]);
}
