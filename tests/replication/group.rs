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
pub(crate) fn wait_group(lab: &Lab, id: &str, expected: &str) {
    wait_until(&format!("group {id} is {expected}"), 240, || {
        let row = replication_status(lab, id);
        assert_ne!(row["status"], "error", "{row}; messages: {:?}", lab.messages(id));
        row["replication_status"] == expected
    });
}

pub(crate) fn group_type(lab: &Lab, spec: &str) -> Value {
    // Not that of a test that has failed.
    let name = format!("scoria-{spec}-{}", std::process::id());
    let kind = lab.api("group_types.create", json!([name]), json!({}))["id"].clone();
    let path = format!("/group_types/{}/group_specs", kind.as_str().unwrap());
    let body = json!({"group_specs": {spec: "<is> True"}});
    lab.driver.call("http", json!({"method": "POST", "path": path, "body": body})).unwrap();
    kind
}

pub(crate) fn group_of(lab: &Lab, kind: &Value, volume_types: &[&str]) -> String {
    let id_of = |volume_type: &&str| {
        let query = "SELECT id FROM volume_types WHERE name = %s AND deleted = 0";
        row_str(&lab.rows(query, &[json!(volume_type)])[0], "id").to_owned()
    };
    let mut types: Vec<String> = volume_types.iter().map(id_of).collect();
    // The API takes each type once.
    types.dedup();
    let made = lab.api("groups.create", json!([kind, types.join(",")]), json!({"name": "g"}));
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

pub(crate) fn delete_group(lab: &Lab, id: &str) {
    lab.api("groups.delete", json!([id]), json!({"delete_volumes": true}));
    wait_until("the group is deleted", 90, || {
        let row = lab.rows("SELECT status, deleted FROM `groups` WHERE id = %s", &[json!(id)]).remove(0);
        assert_ne!(row["status"], "error", "messages: {:?}", lab.messages(id));
        row["deleted"] == 1
    });
}

fn there_and_back(lab: &Lab, spec: &str, volume_types: &[&str]) {
    let kind = group_type(lab, spec);
    let group = group_of(lab, &kind, volume_types);
    let mut volumes = mirrored_with(lab, volume_types, &json!({"group_id": group}));
    let other = mirrored(lab, &volume_types[..1]);

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
    expect_no_split(lab, &volumes);
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
    rewrite(lab, &mut volumes, "b");

    fail_group_over(lab, &group, "default");
    for v in &volumes {
        let row = lab.volume(&v.id);
        assert_eq!((row_str(&row, "replication_status"), row_str(&row, "status")), ("enabled", "available"));
        assert_eq!(lab.checksum("a", &v.id), v.sum);
    }
    expect_no_split(lab, &volumes);
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

#[test]
fn a_group_of_both_modes_goes_to_b_and_back_without_the_rest_of_its_backend() {
    let lab = Lab::get();
    if lab.only_scoria("stock's RBD driver has no replication of groups") {
        there_and_back(&lab, "group_replication_enabled", &BOTH[..2]);
    }
}

/// The sample has the other spec.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_group_that_asks_for_consistency_goes_to_b_and_back() {
    let lab = Lab::get();
    if lab.only_scoria("stock's RBD driver has no replication of groups") {
        there_and_back(&lab, "consistent_group_replication_enabled", &["replicated", "replicated"]);
    }
}
