//! The service dies at every kind of journalled step of a group's life: the group, its volumes and its
//! snapshots end whole.

use serde_json::json;

use crate::common::{Lab, row_str, wait_until};
use crate::crash::{WHY, arm, died_at, wait_quiet};

fn status(lab: &Lab, table: &str, id: &str) -> String {
    let rows = lab.rows(&format!("SELECT status FROM {table} WHERE id = %s"), &[json!(id)]);
    row_str(&rows[0], "status").to_owned()
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn groups_die_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let kind = lab.api("group_types.create", json!(["scoria-crashes"]), json!({}));
    let types = lab.rows("SELECT id FROM volume_types WHERE name = 'ceph' AND deleted = 0", &[]);

    let point = "create_group:accepted";
    arm(&lab, point);
    let made = lab.api("groups.create", json!([kind["id"], types[0]["id"]]), json!({"name": "g"}));
    let group = made["id"].as_str().unwrap().to_owned();
    died_at(&lab, point);
    wait_quiet(&lab, point);
    assert_eq!(status(&lab, "`groups`", &group), "available", "{point}");

    let volumes: Vec<String> =
        (0..3).map(|_| lab.create(json!({"volume_type": "ceph", "group_id": group}))).collect();
    for volume in &volumes {
        lab.wait_status(volume, "available");
    }
    let point = "update_group:accepted";
    arm(&lab, point);
    lab.api("groups.update", json!([group]), json!({"remove_volumes": volumes[2]}));
    died_at(&lab, point);
    wait_quiet(&lab, point);
    assert_eq!(status(&lab, "`groups`", &group), "available", "{point}");
    lab.delete(&[&volumes[2]]);

    let mut sets = Vec::new();
    for point in ["create_group_snapshot:accepted", "create_group_snapshot:taken"] {
        arm(&lab, point);
        let made = lab.api("group_snapshots.create", json!([group]), json!({"name": "gs"}));
        let id = made["id"].as_str().unwrap().to_owned();
        died_at(&lab, point);
        wait_quiet(&lab, point);
        assert_eq!(status(&lab, "group_snapshots", &id), "available", "{point}");
        assert!(lab.messages(&id).is_empty(), "{point}: {:?}", lab.messages(&id));
        sets.push(id);
        for volume in &volumes[..2] {
            let snapshots = lab.image("a", volume)["snapshots"].as_array().unwrap().len();
            assert_eq!(snapshots, sets.len(), "{point}");
        }
    }

    let mut copies = Vec::new();
    for point in ["create_group_from_src:accepted", "create_group_from_src:images_created"] {
        arm(&lab, point);
        let made = lab.api("groups.create_from_src", json!([sets[0], null]), json!({"name": "copy"}));
        let id = made["id"].as_str().unwrap().to_owned();
        died_at(&lab, point);
        wait_quiet(&lab, point);
        assert_eq!(status(&lab, "`groups`", &id), "available", "{point}");
        copies.push(id);
    }

    for (set, point) in
        sets.iter().zip(["delete_group_snapshot:accepted", "delete_group_snapshot:snapshot_deleted"])
    {
        arm(&lab, point);
        lab.api("group_snapshots.delete", json!([set]), json!({}));
        died_at(&lab, point);
        wait_quiet(&lab, point);
        assert_eq!(status(&lab, "group_snapshots", set), "deleted", "{point}");
    }
    for (id, point) in copies.iter().zip(["delete_group:accepted", "delete_group:volume_deleted"]) {
        arm(&lab, point);
        lab.api("groups.delete", json!([id]), json!({"delete_volumes": true}));
        died_at(&lab, point);
        wait_quiet(&lab, point);
        assert_eq!(status(&lab, "`groups`", id), "deleted", "{point}");
    }
    lab.api("groups.delete", json!([group]), json!({"delete_volumes": true}));
    wait_until("the group is deleted", 60, || status(&lab, "`groups`", &group) == "deleted");
    lab.wait_quota(json!({}));
    lab.api("group_types.delete", json!([kind["id"]]), json!({}));
}
