//! Generic volume groups: their members, snapshots of all of them, groups made from those.

use serde_json::{Value, json};

use crate::common::{Lab, row_str, wait_until};

fn group_row(lab: &Lab, id: &str) -> Value {
    lab.rows("SELECT status, deleted FROM `groups` WHERE id = %s", &[json!(id)]).remove(0)
}

#[track_caller]
fn wait_group(lab: &Lab, id: &str, status: &str) {
    wait_until(&format!("group {id} is {status}"), 60, || {
        let row = group_row(lab, id);
        assert!(row["status"] != "error" || status == "error", "{row}; messages: {:?}", lab.messages(id));
        row["status"] == status
    });
}

#[track_caller]
fn wait_group_snapshot(lab: &Lab, id: &str, status: &str) {
    wait_until(&format!("group snapshot {id} is {status}"), 60, || {
        lab.rows("SELECT status FROM group_snapshots WHERE id = %s", &[json!(id)])[0]["status"] == status
    });
}

/// A group of volumes of type `ceph`.
fn group_of(lab: &Lab, group_type: &Value) -> String {
    let types = lab.rows("SELECT id FROM volume_types WHERE name = 'ceph' AND deleted = 0", &[]);
    let made = lab.api("groups.create", json!([group_type, types[0]["id"]]), json!({"name": "g"}));
    let id = made["id"].as_str().unwrap().to_owned();
    wait_group(lab, &id, "available");
    id
}

fn member(lab: &Lab, group: &str) -> String {
    let id = lab.create(json!({"volume_type": "ceph", "group_id": group}));
    lab.wait_status(&id, "available");
    id
}

fn group_snapshot_of(lab: &Lab, group: &str) -> (String, Vec<String>) {
    let made = lab.api("group_snapshots.create", json!([group]), json!({"name": "gs"}));
    let id = made["id"].as_str().unwrap().to_owned();
    wait_group_snapshot(lab, &id, "available");
    let members = members_of(lab, &id);
    (id, members)
}

fn members_of(lab: &Lab, group_snapshot: &str) -> Vec<String> {
    let members = lab.rows(
        "SELECT id FROM snapshots WHERE group_snapshot_id = %s AND deleted = 0 AND status = 'available' \
         ORDER BY volume_id",
        &[json!(group_snapshot)],
    );
    members.iter().map(|row| row_str(row, "id").to_owned()).collect()
}

fn volumes_of(lab: &Lab, group: &str) -> Vec<Value> {
    let query =
        "SELECT id, snapshot_id, source_volid, status FROM volumes WHERE group_id = %s AND deleted = 0";
    lab.rows(query, &[json!(group)])
}

fn delete_group(lab: &Lab, id: &str) {
    lab.api("groups.delete", json!([id]), json!({"delete_volumes": true}));
    wait_until("the group is deleted", 60, || {
        let row = group_row(lab, id);
        assert_ne!(row["status"], "error", "messages: {:?}", lab.messages(id));
        row["deleted"] == 1
    });
}

fn delete_group_snapshot(lab: &Lab, id: &str) {
    lab.api("group_snapshots.delete", json!([id]), json!({}));
    wait_group_snapshot(lab, id, "deleted");
}

#[test]
fn a_group_lives_and_its_copies_outlive_it() {
    let lab = Lab::get();
    let kind = lab.api("group_types.create", json!(["scoria-groups"]), json!({}));
    let group = group_of(&lab, &kind["id"]);
    let (one, two) = (member(&lab, &group), member(&lab, &group));
    let sums = [lab.write("a", &one, 1), lab.write("a", &two, 2)];
    // One volume leaves and comes back.
    for (argument, left) in [("remove_volumes", 1), ("add_volumes", 2)] {
        lab.api("groups.update", json!([group]), json!({argument: two}));
        wait_until(argument, 30, || volumes_of(&lab, &group).len() == left);
        wait_group(&lab, &group, "available");
    }

    let (set, snapshots) = group_snapshot_of(&lab, &group);
    assert_eq!(snapshots.len(), 2);
    assert!(lab.messages(&set).is_empty(), "of one instant: {:?}", lab.messages(&set));
    assert_eq!(lab.quota()["snapshots"], json!([2, 0]));
    for volume in [&one, &two] {
        assert_eq!(lab.image("a", volume)["snapshots"].as_array().unwrap().len(), 1);
        lab.write("a", volume, 3);
    }

    let copy = lab.api("groups.create_from_src", json!([set, null]), json!({"name": "from a snapshot"}));
    let copy = copy["id"].as_str().unwrap().to_owned();
    wait_group(&lab, &copy, "available");
    let clone = lab.api("groups.create_from_src", json!([null, group]), json!({"name": "from a group"}));
    let clone = clone["id"].as_str().unwrap().to_owned();
    wait_group(&lab, &clone, "available");
    let copies = volumes_of(&lab, &copy);
    assert_eq!(copies.len(), 2);
    for volume in &copies {
        let snapshot = lab.snapshot(row_str(volume, "snapshot_id"));
        let expected = if row_str(&snapshot, "volume_id") == one { &sums[0] } else { &sums[1] };
        assert_eq!(&lab.checksum("a", row_str(volume, "id")), expected, "as when the snapshot was taken");
    }
    for volume in &volumes_of(&lab, &clone) {
        let source = row_str(volume, "source_volid");
        assert_eq!(lab.checksum("a", row_str(volume, "id")), lab.checksum("a", source));
    }

    delete_group_snapshot(&lab, &set);
    delete_group(&lab, &group);
    for volume in &copies {
        assert!(sums.contains(&lab.checksum("a", row_str(volume, "id"))));
    }
    delete_group(&lab, &clone);
    delete_group(&lab, &copy);
    lab.wait_quota(json!({}));
    lab.api("group_types.delete", json!([kind["id"]]), json!({}));
}

/// The built-in group type is what the old API of consistency groups uses, and nobody else may.
#[test]
fn the_built_in_group_type_of_consistent_snapshots_works() {
    let lab = Lab::get();
    if !lab.only_scoria("stock's RBD driver cannot freeze several images") {
        return;
    }
    let made = lab.api("consistencygroups.create", json!(["ceph"]), json!({"name": "cg"}));
    let group = made["id"].as_str().unwrap().to_owned();
    wait_group(&lab, &group, "available");
    let create = json!({"volume_type": "ceph", "consistencygroup_id": group});
    let volumes = [lab.create(create.clone()), lab.create(create)];
    for volume in &volumes {
        lab.wait_status(volume, "available");
    }
    let made = lab.api("cgsnapshots.create", json!([group]), json!({"name": "cgs", "description": ""}));
    let set = made["id"].as_str().unwrap().to_owned();
    wait_group_snapshot(&lab, &set, "available");
    let snapshots = members_of(&lab, &set);
    assert_eq!(snapshots.len(), volumes.len());
    assert!(lab.messages(&set).is_empty(), "{:?}", lab.messages(&set));
    // Each of them is a snapshot like any other.
    let copy = lab.create(json!({"snapshot_id": snapshots[0], "volume_type": "ceph"}));
    lab.wait_status(&copy, "available");
    lab.delete(&[&copy]);
    lab.api("cgsnapshots.delete", json!([set]), json!({}));
    wait_group_snapshot(&lab, &set, "deleted");
    lab.api("consistencygroups.delete", json!([group]), json!({"force": true}));
    wait_until("the group is deleted", 60, || group_row(&lab, &group)["deleted"] == 1);
    lab.wait_quota(json!({}));
}
