//! A group fails over without the rest of its backend, while everything is alive: nothing may be lost, and its
//! volumes are attached and changed where they are.

use serde_json::{Value, json};

use crate::common::{Lab, connector, row_str, wait_until};
use crate::drill::*;

fn replication_status(lab: &Lab, id: &str) -> Value {
    lab.rows("SELECT status, replication_status FROM `groups` WHERE id = %s", &[json!(id)]).remove(0)
}

/// Until the group's request has ended as `expected`.
#[track_caller]
fn wait_group(lab: &Lab, id: &str, expected: &str) {
    wait_until(&format!("group {id} is {expected}"), 240, || {
        let row = replication_status(lab, id);
        assert_ne!(row["status"], "error", "{row}; messages: {:?}", lab.messages(id));
        row["replication_status"] == expected
    });
}

fn group_type(lab: &Lab, spec: &str) -> Value {
    let kind = lab.api("group_types.create", json!([format!("scoria-{spec}")]), json!({}))["id"].clone();
    let path = format!("/group_types/{}/group_specs", kind.as_str().unwrap());
    let body = json!({"group_specs": {spec: "<is> True"}});
    lab.driver.call("http", json!({"method": "POST", "path": path, "body": body})).unwrap();
    kind
}

fn group_of(lab: &Lab, kind: &Value, volume_type: &str) -> String {
    let types =
        lab.rows("SELECT id FROM volume_types WHERE name = %s AND deleted = 0", &[json!(volume_type)]);
    let made = lab.api("groups.create", json!([kind, types[0]["id"]]), json!({"name": "g"}));
    let id = made["id"].as_str().unwrap().to_owned();
    wait_until("the group is placed and made", 60, || {
        let row = replication_status(lab, &id);
        assert_ne!(row["status"], "error", "no backend takes such a group: {row}");
        row["status"] == "available"
    });
    id
}

fn fail_group_over(lab: &Lab, group: &str, to: &str) {
    let target = json!({"allow_attached_volume": true, "secondary_backend_id": to});
    lab.api("groups.failover_replication", json!([group]), target);
    wait_group(lab, group, if to == "default" { "enabled" } else { "failed-over" });
}

fn delete_group(lab: &Lab, id: &str) {
    lab.api("groups.delete", json!([id]), json!({"delete_volumes": true}));
    wait_until("the group is deleted", 90, || {
        let row = lab.rows("SELECT status, deleted FROM `groups` WHERE id = %s", &[json!(id)]).remove(0);
        assert_ne!(row["status"], "error", "messages: {:?}", lab.messages(id));
        row["deleted"] == 1
    });
}

fn there_and_back(lab: &Lab, spec: &str, volume_type: &str) {
    let kind = group_type(lab, spec);
    let group = group_of(lab, &kind, volume_type);
    let mut volumes: Vec<Known> = (0..2)
        .map(|n| {
            let id = lab.create(json!({"volume_type": volume_type, "group_id": group}));
            assert_eq!(lab.wait_status(&id, "available")["replication_status"], "enabled");
            lab.wait_mirrored(&id, "b");
            let sum = lab.write("a", &id, 500 + n);
            Known { id, sum }
        })
        .collect();
    let other = mirrored_volumes(lab, volume_type, 1);

    lab.api("groups.enable_replication", json!([group]), json!({}));
    wait_group(lab, &group, "enabled");
    for v in &volumes {
        assert_eq!(lab.volume(&v.id)["replication_status"], "enabled");
    }
    let listed = lab.api("groups.list_replication_targets", json!([group]), json!({}));
    let targets = listed["replication_targets"].as_array().unwrap();
    assert_eq!(targets.len(), 1, "{listed}");
    assert_eq!(targets[0]["backend_id"], "site-b");

    fail_group_over(lab, &group, "site-b");
    for v in &volumes {
        let row = lab.volume(&v.id);
        assert_eq!(
            (row_str(&row, "replication_status"), row_str(&row, "status")),
            ("failed-over", "available")
        );
        assert_eq!(lab.image("a", &v.id)["primary"], false);
    }
    // What was written just before the order is there, and a host is sent there.
    expect_served_from_b(lab, &volumes, false);
    let service = lab.service(crate::common::CEPH);
    assert_eq!((row_str(&service, "replication_status"), &service["disabled"]), ("enabled", &json!(0)));
    assert_eq!(lab.volume(&other[0].id)["replication_status"], "enabled");
    assert_eq!(lab.image("a", &other[0].id)["primary"], true, "not of the group");

    // The backend is not disabled, so everything can be done to them that goes through the scheduler too.
    let id = volumes[0].id.clone();
    lab.api("volumes.extend", json!([id, 2]), json!({}));
    wait_until("extended on b", 60, || lab.image("b", &id)["size"] == json!(2_u64 << 30));
    lab.wait_status(&id, "available");
    let snapshot = lab.api("volume_snapshots.create", json!([id]), json!({}))["id"].clone();
    let snapshot = snapshot.as_str().unwrap().to_owned();
    wait_until("snapshot", 60, || lab.snapshot(&snapshot)["status"] == "available");
    assert_eq!(lab.image("b", &id)["snapshots"].as_array().unwrap().len(), 1);
    let server = "8935016b-fde4-4085-b496-7ed3396873bc";
    let made = lab.api("attachments.create", json!([id, connector("c1"), server]), json!({"mode": "rw"}));
    let attachment = made["id"].as_str().unwrap();
    lab.api("attachments.delete", json!([attachment]), json!({}));
    lab.api("volume_snapshots.delete", json!([snapshot]), json!({}));
    wait_until("snapshot deleted", 60, || lab.snapshot(&snapshot)["deleted"] == 1);
    rewrite_on_b(lab, &mut volumes);

    fail_group_over(lab, &group, "default");
    for v in &volumes {
        let row = lab.volume(&v.id);
        assert_eq!((row_str(&row, "replication_status"), row_str(&row, "status")), ("enabled", "available"));
        assert_eq!(lab.checksum("a", &v.id), v.sum);
    }
    assert!(lab.rows("SELECT * FROM scoria_strays", &[]).is_empty());
    settle(lab, &volumes, "a");

    lab.api("groups.disable_replication", json!([group]), json!({}));
    wait_group(lab, &group, "disabled");
    for v in &volumes {
        let row = lab.volume(&v.id);
        assert_eq!(
            (row_str(&row, "replication_status"), &row["replication_driver_data"]),
            ("disabled", &Value::Null)
        );
        assert!(lab.image("b", &v.id).is_null(), "no replica is left");
    }
    delete_group(lab, &group);
    clean(lab, &other);
    lab.api("group_types.delete", json!([kind]), json!({}));
}

/// The sample has the other mode.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_group_goes_to_b_and_back_without_the_rest_of_its_backend() {
    let lab = Lab::get();
    if lab.only_scoria("stock's RBD driver has no replication of groups") {
        there_and_back(&lab, "consistent_group_replication_enabled", "replicated");
    }
}

#[test]
fn a_group_mirrored_by_snapshots_goes_to_b_and_back() {
    let lab = Lab::get();
    if lab.only_scoria("stock's RBD driver has no replication of groups") {
        there_and_back(&lab, "group_replication_enabled", "replicated-snapshot");
    }
}
