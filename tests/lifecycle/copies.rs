//! Snapshots, volumes made from them, clones, and deleting what others depend on.

use serde_json::json;

use crate::common::{Lab, Subject, row_str, wait_until};

#[test]
fn snapshots_come_and_go() {
    let lab = Lab::get();
    let volume = lab.volume_of_type("ceph");
    let snapshot = lab.snapshot_of(&volume);
    let row = lab.snapshot(&snapshot);
    assert_eq!(row["progress"], "100%");
    assert_eq!(row["volume_size"], 1);
    let snapshots = lab.image("a", &volume)["snapshots"].clone();
    assert_eq!(snapshots, json!([format!("snapshot-{snapshot}")]));
    assert_eq!(lab.quota()["snapshots"], json!([1, 0]));
    assert_eq!(lab.quota()["gigabytes"], json!([2, 0]));

    let refused = lab.try_api("volumes.delete", json!([volume]), json!({})).unwrap_err();
    assert_eq!(refused.code, Some(400), "{refused}");

    lab.delete_snapshot(&snapshot);
    assert_eq!(lab.image("a", &volume)["snapshots"], json!([]));
    wait_until("quota is back", 20, || lab.quota().get("snapshots").is_none());
    lab.delete(&[&volume]);
}

#[test]
fn a_volume_from_a_snapshot_has_its_data_and_may_outlive_it() {
    let lab = Lab::get();
    let volume = lab.volume_of_type("ceph");
    let before = lab.write("a", &volume, 1);
    let snapshot = lab.snapshot_of(&volume);
    lab.write("a", &volume, 2);
    let copy = lab.create(json!({"snapshot_id": snapshot, "volume_type": "ceph", "size": 2}));
    let row = lab.wait_status(&copy, "available");
    assert_eq!(row_str(&row, "snapshot_id"), snapshot);
    assert_eq!(lab.checksum("a", &copy), before);
    assert_eq!(lab.image("a", &copy)["size"], 2u64 << 30, "grown to what was asked for");

    // Cinder allows deleting the snapshot and the source although a clone depends on them.
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&volume]);
    assert_eq!(lab.checksum("a", &copy), before);
    lab.delete(&[&copy]);
}

#[test]
fn clones_of_clones_survive_their_parents() {
    let lab = Lab::get();
    let first = lab.volume_of_type("ceph");
    let sum = lab.write("a", &first, 3);
    let second = lab.create(json!({"source_volid": first, "volume_type": "ceph"}));
    lab.wait_status(&second, "available");
    let third = lab.create(json!({"source_volid": second, "volume_type": "ceph"}));
    let row = lab.wait_status(&third, "available");
    assert_eq!(row_str(&row, "source_volid"), second);
    lab.write("a", &first, 4);
    assert_eq!(lab.checksum("a", &second), sum);
    assert_eq!(lab.checksum("a", &third), sum);
    lab.delete(&[&second]);
    assert_eq!(lab.checksum("a", &third), sum);
    lab.delete(&[&first]);
    assert_eq!(lab.checksum("a", &third), sum);
    lab.delete(&[&third]);
    if lab.subject == Subject::Stock {
        lab.forget_images(); // stock forgets what it renamed to .deleted
    }
}

#[test]
fn a_clone_of_a_replicated_volume_is_mirrored_too() {
    let lab = Lab::get();
    let first = lab.volume_of_type("replicated");
    let sum = lab.write("a", &first, 5);
    let second = lab.create(json!({"source_volid": first, "volume_type": "replicated"}));
    let row = lab.wait_status(&second, "available");
    assert_eq!(row["replication_status"], "enabled");
    lab.wait_mirrored(&second, "b");
    lab.wait_replicated(&second, "a", 5);
    assert_eq!(lab.checksum("b", &second), sum);
    lab.delete(&[&second]);
    lab.delete(&[&first]);
}

#[test]
fn a_cascade_takes_the_snapshots_along() {
    let lab = Lab::get();
    let volume = lab.volume_of_type("ceph");
    let snapshots = [lab.snapshot_of(&volume), lab.snapshot_of(&volume)];
    lab.api("volumes.delete", json!([volume]), json!({"cascade": true}));
    lab.wait_deleted(&volume);
    for snapshot in &snapshots {
        wait_until("its snapshots are deleted", 10, || lab.snapshot(snapshot)["deleted"] == 1);
    }
    lab.wait_quota(json!({}));
    assert!(lab.image("a", &volume).is_null());
}
