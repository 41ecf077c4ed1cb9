//! Retyping and migrating: what the user sees of it, and what is left in Ceph.

use serde_json::{Value, json};

use crate::common::{Lab, row_str, wait_for, wait_until};

const GIB: u64 = 1 << 30;

fn checksum_in(lab: &Lab, pool: &str, id: &str) -> Value {
    lab.ceph("checksum", json!({"site": "a", "pool": pool, "image": format!("volume-{id}")}))
}

/// Waits until the request is over: the status that the volume had is back.
fn ended(lab: &Lab, id: &str, what: &str) -> Value {
    wait_for(what, 120, || {
        let row = lab.volume(id);
        let moving =
            matches!(row["migration_status"].as_str(), Some("starting" | "migrating" | "completing"));
        (row["status"] == "available" && !moving).then_some(row)
    })
}

fn type_of(lab: &Lab, name: &str) -> Value {
    lab.rows("SELECT id FROM volume_types WHERE name = %s AND deleted = 0", &[json!(name)])[0]["id"].clone()
}

#[test]
fn replication_comes_and_goes_with_the_type() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let snapshot = lab.snapshot_of(&id);
    let features = lab.image("a", &id)["features"].clone();

    lab.api("volumes.retype", json!([id, "replicated", "never"]), json!({}));
    let row = wait_for("replicated", 60, || {
        let row = lab.volume(&id);
        (row["status"] == "available" && row["replication_status"] == "enabled").then_some(row)
    });
    assert_eq!(row["volume_type_id"], type_of(&lab, "replicated"));
    assert_eq!(
        row_str(&row, "replication_driver_data"),
        r#"{"had_exclusive_lock":true,"had_journaling":false}"#
    );
    let of_snapshot = lab.rows("SELECT volume_type_id FROM snapshots WHERE id = %s", &[json!(snapshot)]);
    assert_eq!(of_snapshot[0]["volume_type_id"], row["volume_type_id"]);
    assert_eq!(
        (&lab.image("a", &id)["state"], &lab.image("a", &id)["mode"]),
        (&json!("enabled"), &json!("journal"))
    );
    lab.wait_mirrored(&id, "b");
    let quota = lab.quota();
    assert_eq!((&quota["volumes_replicated"], &quota["volumes"]), (&json!([1, 0]), &json!([1, 0])));

    lab.api("volumes.retype", json!([id, "ceph", "never"]), json!({}));
    let row = wait_for("not replicated", 60, || {
        let row = lab.volume(&id);
        (row["status"] == "available" && row["replication_status"] == "disabled").then_some(row)
    });
    assert!(row["replication_driver_data"].is_null());
    let image = lab.image("a", &id);
    assert_eq!((&image["state"], &image["features"]), (&json!("disabled"), &features));
    wait_until("the replica is gone", 120, || lab.image("b", &id).is_null());
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
fn limits_and_many_writers_come_and_go_with_the_type() {
    let lab = Lab::get();
    let kind = lab.api("volume_types.create", json!(["shared"]), json!({}));
    let specs = json!({"consumer": "back-end", "total_iops_sec": "500"});
    let limits = lab.api("qos_specs.create", json!(["shared-limits", specs]), json!({}));
    lab.api("qos_specs.associate", json!([limits["id"], kind["id"]]), json!({}));
    for (key, value) in [("volume_backend_name", "ceph"), ("multiattach", "<is> True")] {
        lab.sql(
            "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted) VALUES (%s, %s, %s, 0)",
            &[kind["id"].clone(), json!(key), json!(value)],
        );
    }
    let id = lab.volume_of_type("ceph");
    let features = lab.image("a", &id)["features"].as_u64().unwrap();
    let metadata = || lab.tool(&["rbd", "a", "image-meta", "list", &format!("volumes/volume-{id}")]);

    lab.api("volumes.retype", json!([id, "shared", "never"]), json!({}));
    wait_until("many writers", 60, || !lab.volume(&id)["provider_location"].is_null());
    let row = lab.wait_status(&id, "available");
    assert_eq!(row_str(&row, "provider_location"), format!(r#"{{"saved_features":{features}}}"#));
    assert_eq!(lab.image("a", &id)["features"], features & !(64 | 16 | 8 | 4));
    assert!(metadata().contains("conf_rbd_qos_iops_limit"), "{}", metadata());

    lab.api("volumes.retype", json!([id, "ceph", "never"]), json!({}));
    wait_until("one writer", 60, || lab.volume(&id)["provider_location"].is_null());
    lab.wait_status(&id, "available");
    assert_eq!(lab.image("a", &id)["features"], features);
    assert!(!metadata().contains("conf_rbd_qos_iops_limit"), "{}", metadata());
    lab.delete(&[&id]);
    lab.api("volume_types.delete", json!([kind["id"]]), json!({}));
    lab.api("qos_specs.delete", json!([limits["id"]]), json!({}));
}

#[test]
fn a_retype_to_another_backend_moves_the_volume_only_when_it_may() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    lab.write("a", &id, 5);
    let sum = checksum_in(&lab, "volumes", &id);

    // The scheduler refuses what may not move.
    lab.api("volumes.retype", json!([id, "plain", "never"]), json!({}));
    let row = ended(&lab, &id, "the retype is refused");
    assert_eq!((row_str(&row, "host"), &row["volume_type_id"]), ("lab@ceph#ceph", &type_of(&lab, "ceph")));
    // Cinder's scheduler rolls back what was reserved for the new type only; the rest waits until it expires.
    lab.sql("UPDATE reservations SET deleted = 1 WHERE deleted = 0 AND delta < 0", &[]);

    lab.api("volumes.retype", json!([id, "plain", "on-demand"]), json!({}));
    wait_until("moved", 120, || lab.volume(&id)["host"] == "lab@plain#plain");
    let row = ended(&lab, &id, "moved");
    assert_eq!(row["volume_type_id"], type_of(&lab, "plain"));
    assert_eq!(row["migration_status"], "success");
    assert_eq!(row["service_uuid"], lab.service("lab@plain")["uuid"]);
    assert_eq!(checksum_in(&lab, "volumes2", &id), sum);
    wait_until("the original is gone", 60, || lab.image("a", &id).is_null());
    let quota = lab.quota();
    assert_eq!((&quota["volumes_plain"], &quota["gigabytes_plain"]), (&json!([1, 0]), &json!([1, 0])));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
fn a_volume_migrates_by_ceph_and_by_copying_and_stays_the_same() {
    let lab = Lab::get();
    // A type that any backend serves.
    let kind = lab.api("volume_types.create", json!(["anywhere"]), json!({}));
    let id = lab.volume_of_type("anywhere");
    let place = |host: &str| if host == "lab@ceph#ceph" { "volumes" } else { "volumes2" };
    let other = |host: &str| if host == "lab@ceph#ceph" { "lab@plain#plain" } else { "lab@ceph#ceph" };
    let first = row_str(&lab.volume(&id), "host").to_owned();
    let (image, data) = (format!("volume-{id}"), json!({"site": "a", "seed": 6, "offset": GIB / 2}));
    let mut write = data.clone();
    (write["image"], write["pool"]) = (json!(image), json!(place(&first)));
    lab.ceph("write", write);
    let whole =
        |pool: &str| lab.ceph("checksum", json!({"site": "a", "pool": pool, "image": image, "length": 0}));
    let sum = whole(place(&first));

    let mut here = first;
    for force in [false, true, true] {
        let there = other(&here);
        lab.api("volumes.migrate_volume", json!([id, there, force, true]), json!({}));
        wait_until(&format!("moved to {there}, force: {force}"), 180, || lab.volume(&id)["host"] == *there);
        let row = ended(&lab, &id, "moved");
        assert_eq!(
            (&row["migration_status"], &row["attach_status"]),
            (&json!("success"), &json!("detached"))
        );
        assert!(row["_name_id"].is_null(), "{row}");
        assert_eq!(whole(place(there)), sum);
        wait_until("the original is gone", 60, || lab.image_in("a", place(&here), &id).is_null());
        wait_until("so is its row", 60, || {
            lab.rows("SELECT id FROM volumes WHERE deleted = 0 AND use_quota = 0", &[]).is_empty()
        });
        here = there.to_owned();
    }
    assert_eq!(lab.quota()["volumes"], json!([1, 0]), "the other rows never counted");
    lab.delete(&[&id]);
    lab.api("volume_types.delete", json!([kind["id"]]), json!({}));
}
