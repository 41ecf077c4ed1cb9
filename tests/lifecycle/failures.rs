//! When Ceph refuses: statuses, quota, and what the user is told.

use serde_json::{Value, json};

use crate::common::{Lab, row_str, wait_for, wait_until};

/// The message that says so, checked for what every message has to have.
fn expect_message(lab: &Lab, resource: &str, event: &str) {
    let found = wait_for(&format!("message {event} about {resource}"), 20, || {
        lab.messages(resource).into_iter().find(|m| row_str(m, "event_id") == event)
    });
    assert_eq!(found["message_level"], "ERROR");
    assert!(row_str(&found, "request_id").starts_with("req-"), "{found}");
    assert_eq!(row_str(&found, "project_id"), lab.env["OS_PROJECT_ID"]);
    assert!(found["expires_at"].is_string());
    let listed = lab.api("messages.list", json!([]), json!({}));
    assert!(listed.as_array().unwrap().iter().any(|m| m["resource_uuid"] == resource), "shown by the API");
}

fn remove_image(lab: &Lab, volume: &str) {
    lab.tool(&["rbd", "a", "rm", &format!("volumes/volume-{volume}"), "--no-progress"]);
}

#[test]
fn extending_a_volume_without_an_image_fails_and_gives_quota_back() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    remove_image(&lab, &id);
    lab.api("volumes.extend", json!([id, 2]), json!({}));
    wait_until("error_extending", 60, || lab.volume(&id)["status"] == "error_extending");
    expect_message(&lab, &id, "VOLUME_VOLUME_007_010");
    assert_eq!(lab.volume(&id)["size"], 1);
    wait_until("quota is back", 20, || lab.quota()["gigabytes"] == json!([1, 0]));
    lab.delete(&[&id]);
}

#[test]
fn a_snapshot_of_a_volume_without_an_image_fails() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    remove_image(&lab, &id);
    let made = lab.api("volume_snapshots.create", json!([id]), json!({"force": true}));
    let snapshot = made["id"].as_str().unwrap().to_owned();
    wait_until("the snapshot is in error", 60, || lab.snapshot(&snapshot)["status"] == "error");
    expect_message(&lab, &snapshot, "VOLUME_VOLUME_SNAPSHOT_009_013");
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
}

#[test]
fn a_copy_of_a_snapshot_that_ceph_lost_ends_in_error_and_can_be_deleted() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let snapshot = lab.snapshot_of(&id);
    let spec = format!("volumes/volume-{id}@snapshot-{snapshot}");
    let _ = lab.try_tool(&["rbd", "a", "snap", "unprotect", &spec]);
    lab.tool(&["rbd", "a", "snap", "rm", &spec, "--no-progress"]);
    let copy = lab.create(json!({"snapshot_id": snapshot, "volume_type": "ceph"}));
    wait_until("the copy is in error", 90, || lab.volume(&copy)["status"] == "error");
    lab.delete(&[&copy]);
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
}

#[test]
fn a_volume_that_somebody_has_open_is_not_deleted() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let image = json!({"site": "a", "image": format!("volume-{id}")});
    lab.ceph("hold", image.clone());
    lab.order_delete(&id);
    wait_until("the deletion was tried and given up", 90, || lab.volume(&id)["status"] == "available");
    assert_eq!(lab.quota()["volumes"], json!([1, 0]));
    lab.ceph("release", image);
    lab.delete(&[&id]);
}

#[test]
fn deleting_a_volume_whose_image_is_gone_succeeds() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    remove_image(&lab, &id);
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
fn a_creation_that_finds_a_foreign_image_ends_in_error_and_leaves_that_image_alone() {
    let lab = Lab::get();
    let call = |op: &str, args: Value| lab.driver.call(op, args).unwrap();
    let id = call("insert_volume", json!({"type_name": "ceph", "host": "lab@ceph#ceph"}));
    let id = id.as_str().unwrap();
    lab.ceph("create", json!({"site": "a", "image": format!("volume-{id}")}));
    let sum = lab.write("a", id, 6);
    let args = call("create_args", json!({"ident": id}));
    call("cast", json!({"routing_key": crate::common::CEPH_QUEUE, "method": "create_volume", "args": args}));
    wait_until("the volume is in error", 60, || lab.volume(id)["status"] == "error");
    expect_message(&lab, id, "VOLUME_VOLUME_008_012");
    if lab.subject == crate::common::Subject::Scoria {
        assert_eq!(lab.checksum("a", id), sum, "what Scoria did not make, it does not touch");
    }
    lab.delete(&[id]);
}
