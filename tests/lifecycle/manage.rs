//! Reverting to a snapshot, and images and snapshots that are taken over and let go, as Cinder's users see it.

use serde_json::{Value, json};

use crate::common::{CEPH_QUEUE, Lab, row_str, wait_until};

const GIB: u64 = 1 << 30;
const HOST: &str = "lab@ceph#ceph";

fn rbd(lab: &Lab, args: &[&str]) {
    let mut all = vec!["rbd", "a"];
    all.extend_from_slice(args);
    lab.tool(&all);
}

/// `POST /manageable_volumes`; the id.
fn manage(lab: &Lab, image: &str, volume_type: &str) -> String {
    let reference = json!([HOST, {"source-name": image}]);
    let made = lab.api("volumes.manage", reference, json!({"volume_type": volume_type, "name": "managed"}));
    made["id"].as_str().unwrap().to_owned()
}

fn unmanage(lab: &Lab, volume: &str) {
    lab.api("volumes.unmanage", json!([volume]), json!({}));
    lab.wait_deleted(volume);
}

fn revert(lab: &Lab, volume: &str, snapshot: &str) {
    lab.api("volumes.revert_to_snapshot", json!([volume, snapshot]), json!({}));
    lab.wait_status(volume, "available");
    lab.wait_snapshot(snapshot, "available");
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_revert_brings_back_the_content_on_both_sites() {
    let lab = Lab::get();
    for volume_type in ["ceph", "replicated", "replicated-snapshot"] {
        // Stock mirrors in journal mode only.
        if volume_type == "replicated-snapshot" && !lab.only_scoria("stock mirrors in journal mode only") {
            continue;
        }
        let id = lab.volume_of_type(volume_type);
        let mirrored = volume_type != "ceph";
        let before = lab.write("a", &id, 1);
        if mirrored {
            lab.wait_mirrored(&id, "b");
            lab.wait_replicated(&id, "a", 1);
        }
        let snapshot = lab.snapshot_of(&id);
        assert_ne!(lab.write("a", &id, 2), before);
        if mirrored {
            lab.wait_replicated(&id, "a", 2);
        }
        revert(&lab, &id, &snapshot);
        assert_eq!(lab.checksum("a", &id), before, "{volume_type}");
        assert_eq!(lab.image("a", &id)["size"], GIB);
        if mirrored {
            // It has been told that it is reverted, so the other side gets to know without being asked.
            wait_until(&format!("{volume_type}: the other side is reverted"), 120, || {
                lab.checksum("b", &id) == before
            });
        }
        // And it goes on from there.
        let later = lab.write("a", &id, 3);
        if mirrored {
            lab.wait_replicated(&id, "a", 3);
            assert_eq!(lab.checksum("b", &id), later, "{volume_type}");
        }
        lab.delete_snapshot(&snapshot);
        lab.delete(&[&id]);
    }
    lab.wait_quota(json!({}));
}

#[test]
fn a_clone_can_be_reverted_and_keeps_its_parent() {
    let lab = Lab::get();
    let parent = lab.volume_of_type("ceph");
    let sum = lab.write("a", &parent, 4);
    let clone = lab.create(json!({"source_volid": parent, "volume_type": "ceph"}));
    lab.wait_status(&clone, "available");
    let snapshot = lab.snapshot_of(&clone);
    lab.write("a", &clone, 5);
    revert(&lab, &clone, &snapshot);
    assert_eq!(lab.checksum("a", &clone), sum);
    assert_eq!(lab.checksum("a", &parent), sum);
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&clone, &parent]);
}

#[test]
fn a_revert_that_cannot_be_done_says_so() {
    let lab = Lab::get();
    if !lab.only_scoria("stock writes no message") {
        return;
    }
    let id = lab.volume_of_type("ceph");
    let snapshot = lab.snapshot_of(&id);
    let name = format!("volumes/volume-{id}@snapshot-{snapshot}");
    rbd(&lab, &["snap", "unprotect", &name]);
    rbd(&lab, &["snap", "rm", &name, "--no-progress"]);
    lab.api("volumes.revert_to_snapshot", json!([id, snapshot]), json!({}));
    wait_until("the volume is in error", 60, || lab.volume(&id)["status"] == "error");
    wait_until("the snapshot is available", 20, || lab.snapshot(&snapshot)["status"] == "available");
    wait_until("a message", 20, || !lab.messages(&id).is_empty());
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
}

#[test]
fn a_volume_is_let_go_and_taken_over_with_its_data_and_its_snapshot() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let sum = lab.write("a", &id, 6);
    unmanage(&lab, &id);
    lab.wait_quota(json!({}));
    let image = format!("volume-{id}");
    assert_eq!(lab.ceph("images", json!({"site": "a"})), json!([image]), "the image stays");
    rbd(&lab, &["snap", "create", &format!("volumes/{image}@mine"), "--no-progress"]);

    let again = manage(&lab, &image, "ceph");
    let row = lab.wait_status(&again, "available");
    assert_eq!((row_str(&row, "host"), &row["size"]), (HOST, &json!(1)));
    assert_eq!(row["replication_status"], "disabled");
    assert!(row["launched_at"].is_string());
    assert_eq!(lab.ceph("images", json!({"site": "a"})), json!([format!("volume-{again}")]));
    assert_eq!(lab.checksum("a", &again), sum);
    let quota =
        json!({"gigabytes": [1, 0], "gigabytes_ceph": [1, 0], "volumes": [1, 0], "volumes_ceph": [1, 0]});
    lab.wait_quota(quota.clone());

    let made = lab.api(
        "volume_snapshots.manage",
        json!([again, {"source-name": "mine"}]),
        json!({"name": "managed"}),
    );
    let snapshot = made["id"].as_str().unwrap();
    let row = lab.wait_snapshot(snapshot, "available");
    assert_eq!((&row["volume_size"], &row["progress"]), (&json!(1), &json!("0%")));
    let quota = lab.quota();
    assert_eq!((&quota["snapshots"], &quota["gigabytes"]), (&json!([1, 0]), &json!([2, 0])));

    // Let go again, it is there under the name that it has now, and no longer protected.
    lab.api("volume_snapshots.unmanage", json!([snapshot]), json!({}));
    wait_until("the snapshot is let go", 60, || lab.snapshot(snapshot)["deleted"] == 1);
    rbd(&lab, &["snap", "rm", &format!("volumes/volume-{again}@snapshot-{snapshot}"), "--no-progress"]);
    lab.delete(&[&again]);
    lab.wait_quota(json!({}));
}

#[test]
fn an_image_is_managed_by_a_replicated_type_and_rounded_up() {
    let lab = Lab::get();
    lab.ceph("create", json!({"site": "a", "image": "foreign", "size": GIB + (1 << 20)}));
    let id = manage(&lab, "foreign", "replicated");
    let row = lab.wait_status(&id, "available");
    assert_eq!((&row["size"], &row["replication_status"]), (&json!(2), &json!("enabled")));
    assert_eq!(lab.image("a", &id)["size"], GIB + (1 << 20), "the image itself is not touched");
    assert_eq!(lab.image("a", &id)["state"], "enabled");
    lab.wait_mirrored(&id, "b");
    assert_eq!(lab.quota()["gigabytes_replicated"], json!([2, 0]));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
fn what_cannot_be_managed_is_left_alone() {
    let lab = Lab::get();
    let missing = manage(&lab, "missing", "ceph");
    wait_until("error_managing", 60, || lab.volume(&missing)["status"] == "error_managing");
    lab.delete(&[&missing]);
    if !lab.only_scoria("stock manages what is mirrored, keeps the quota and writes no message") {
        lab.sql("UPDATE quota_usages SET in_use = 0, reserved = 0", &[]);
        return;
    }
    lab.wait_quota(json!({}));

    // Mirrored by hand: the row of a volume of this type would say that it is not.
    let mirrored = lab.volume_of_type("replicated");
    let sum = lab.write("a", &mirrored, 8);
    unmanage(&lab, &mirrored);
    let image = format!("volume-{mirrored}");
    let refused = manage(&lab, &image, "ceph");
    wait_until("error_managing", 60, || lab.volume(&refused)["status"] == "error_managing");
    wait_until("a message", 20, || !lab.messages(&refused).is_empty());
    assert_eq!(lab.ceph("images", json!({"site": "a"})), json!([image]));
    lab.delete(&[&refused]);
    assert_eq!(lab.checksum("a", &mirrored), sum, "nothing is destroyed with a volume that never was");
    lab.wait_quota(json!({}));

    let managed = manage(&lab, &image, "replicated");
    lab.wait_status(&managed, "available");
    assert_eq!(lab.checksum("a", &managed), sum);
    lab.delete(&[&managed]);
}

fn listed(lab: &Lab, what: &str, kwargs: Value) -> Vec<Value> {
    let found = lab.api(&format!("{what}.list_manageable"), json!([HOST]), kwargs);
    found.as_array().unwrap().clone()
}

#[test]
fn lists_say_what_may_be_managed_and_why_not() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let clone = lab.create(json!({"source_volid": id, "volume_type": "ceph"}));
    lab.wait_status(&clone, "available");
    let snapshot = lab.snapshot_of(&id);
    for name in ["foreign", "held", "gone.deleted"] {
        lab.ceph("create", json!({"site": "a", "image": name}));
    }
    lab.ceph("hold", json!({"site": "a", "image": "held"}));
    for name in ["mine", "backup.1a2b.snap.1700000000.5"] {
        rbd(&lab, &["snap", "create", &format!("volumes/foreign@{name}"), "--no-progress"]);
    }

    let volumes = listed(&lab, "volumes", json!({"detailed": true, "sort": "reference:asc"}));
    let of = |list: &[Value], name: &str| {
        let found = list.iter().find(|e| e["reference"]["source-name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not in {list:?}")).clone()
    };
    assert_eq!(volumes.len(), 5);
    let entry = of(&volumes, "foreign");
    assert_eq!((&entry["safe_to_manage"], &entry["size"]), (&json!(true), &json!(1)), "{entry}");
    assert!(entry["reason_not_safe"].is_null() && entry["cinder_id"].is_null(), "{entry}");
    let entry = of(&volumes, &format!("volume-{id}"));
    assert_eq!((&entry["reason_not_safe"], &entry["cinder_id"]), (&json!("already managed"), &json!(id)));
    assert_eq!(of(&volumes, "held")["reason_not_safe"], "volume in use");
    assert_eq!(of(&volumes, "gone.deleted")["reason_not_safe"], "volume marked as deleted");
    let page = listed(&lab, "volumes", json!({"detailed": false, "sort": "reference:asc", "limit": 2}));
    let names: Vec<&str> = page.iter().map(|e| e["reference"]["source-name"].as_str().unwrap()).collect();
    assert_eq!(names, ["foreign", "gone.deleted"]);
    let marker = json!({"source-name": "foreign"}).to_string();
    let page = listed(&lab, "volumes", json!({"sort": "reference:asc", "limit": 1, "marker": marker}));
    assert_eq!(page[0]["reference"]["source-name"], "gone.deleted");

    let snapshots = listed(&lab, "volume_snapshots", json!({"detailed": true}));
    let entry = of(&snapshots, "mine");
    assert_eq!(entry["source_reference"], json!({"source-name": "foreign"}));
    assert_eq!(entry["safe_to_manage"], true);
    let entry = of(&snapshots, &format!("snapshot-{snapshot}"));
    assert_eq!(
        (&entry["reason_not_safe"], &entry["cinder_id"]),
        (&json!("already managed"), &json!(snapshot))
    );
    assert_eq!(of(&snapshots, "backup.1a2b.snap.1700000000.5")["reason_not_safe"], "used for volume backup");
    let helper = format!("volume-{clone}.clone_snap");
    assert_eq!(of(&snapshots, &helper)["reason_not_safe"], "used for clone snap");

    let bad = json!({"marker": {"source-name": "none"}, "limit": 1, "offset": 0, "sort_keys": ["size"],
                     "sort_dirs": ["desc"], "want_objects": true});
    let reply = lab.rpc(CEPH_QUEUE, "get_manageable_volumes", "3.10", bad);
    assert_eq!(reply["failure"]["class"], "InvalidInput", "{reply}");

    lab.ceph("release", json!({"site": "a", "image": "held"}));
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&clone, &id]);
    rbd(&lab, &["snap", "purge", "volumes/foreign", "--no-progress"]);
    for name in ["foreign", "held", "gone.deleted"] {
        rbd(&lab, &["rm", &format!("volumes/{name}"), "--no-progress"]);
    }
}
