//! Create, extend, delete: rows, quota and images.

use serde_json::json;

use crate::common::{CEPH, Lab, Subject, row_str};

const GIB: u64 = 1 << 30;

#[test]
fn create_and_delete_leave_the_rows_and_quota_that_stock_leaves() {
    let lab = Lab::get();
    let id = lab.create(json!({"volume_type": "ceph", "name": "first", "metadata": {"k": "v"}}));
    let row = lab.wait_status(&id, "available");
    assert_eq!(row_str(&row, "host"), "lab@ceph#ceph");
    assert_eq!(row["attach_status"], "detached");
    assert_eq!(row["bootable"], 0);
    assert!(row["launched_at"].is_string());
    assert_eq!(row["replication_status"], "disabled");
    assert!(row["replication_driver_data"].is_null());
    let row = crate::common::wait_for("service_uuid is set", 10, || {
        let row = lab.volume(&id);
        row["service_uuid"].is_string().then_some(row)
    });
    assert_eq!(row["service_uuid"], lab.service(CEPH)["uuid"]);
    assert_eq!(row["shared_targets"], 0);
    assert_eq!(
        lab.quota(),
        json!({"gigabytes": [1, 0], "gigabytes_ceph": [1, 0], "volumes": [1, 0], "volumes_ceph": [1, 0]})
    );
    let image = lab.image("a", &id);
    assert_eq!(image["size"], GIB);
    assert_eq!(image["state"], "disabled", "not mirrored");
    assert!(lab.image("b", &id).is_null());

    lab.delete(&[&id]);
    let row = lab.volume(&id);
    assert_eq!(row["status"], "deleted");
    assert!(row["deleted_at"].is_string());
    assert!(lab.image("a", &id).is_null());
    lab.wait_quota(json!({}));
    let metadata = lab.rows("SELECT deleted FROM volume_metadata WHERE volume_id = %s", &[json!(id)]);
    assert_eq!(metadata, vec![json!({"deleted": 1})]);
}

#[test]
fn a_volume_goes_to_the_backend_of_its_type() {
    let lab = Lab::get();
    let id = lab.volume_of_type("plain");
    assert_eq!(lab.volume(&id)["host"], "lab@plain#plain");
    assert_eq!(lab.image_in("a", "volumes2", &id)["size"], GIB);
    assert!(lab.image("a", &id).is_null());
    // Replication is not configured there at all, so nothing is said of it.
    assert!(lab.volume(&id)["replication_status"].is_null());
    lab.delete(&[&id]);
}

#[test]
fn extend_changes_size_quota_and_image() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    lab.api("volumes.extend", json!([id, 3]), json!({}));
    let row = crate::common::wait_for("extended", 60, || {
        let row = lab.volume(&id);
        (row["size"] == 3 && row["status"] == "available").then_some(row)
    });
    assert_eq!(row["previous_status"], "available");
    assert_eq!(lab.image("a", &id)["size"], 3 * GIB);
    let quota = lab.quota();
    assert_eq!(quota["gigabytes"], json!([3, 0]));
    assert_eq!(quota["gigabytes_ceph"], json!([3, 0]));
    lab.delete(&[&id]);
}

#[test]
fn a_replicated_type_is_mirrored_from_the_start() {
    let lab = Lab::get();
    let id = lab.volume_of_type("replicated");
    let row = lab.volume(&id);
    assert_eq!(row["replication_status"], "enabled");
    // What stock's driver writes, so that either service can take the other's volumes over.
    assert_eq!(row["replication_driver_data"], r#"{"had_exclusive_lock":true,"had_journaling":false}"#);
    let image = lab.image("a", &id);
    assert_eq!(
        (&image["state"], &image["primary"], &image["mode"]),
        (&json!("enabled"), &json!(true), &json!("journal"))
    );
    lab.wait_mirrored(&id, "b");
    assert_eq!(lab.image("b", &id)["primary"], false);
    lab.delete(&[&id]);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_type_may_ask_for_snapshot_mirroring() {
    let lab = Lab::get();
    if !lab.only_scoria("stock mirrors in journal mode only") {
        return;
    }
    let id = lab.volume_of_type("replicated-snapshot");
    assert_eq!(lab.volume(&id)["replication_status"], "enabled");
    let image = lab.image("a", &id);
    assert_eq!(
        (&image["state"], &image["primary"], &image["mode"]),
        (&json!("enabled"), &json!(true), &json!("snapshot"))
    );
    lab.wait_mirrored(&id, "b");
    lab.delete(&[&id]);
}

#[test]
fn many_at_once_come_and_go() {
    let lab = Lab::get();
    let ids: Vec<String> = (0..8)
        .map(|n| lab.create(json!({"volume_type": if n % 2 == 0 { "ceph" } else { "replicated" }})))
        .collect();
    for id in &ids {
        lab.wait_status(id, "available");
    }
    assert_eq!(lab.quota()["volumes"], json!([8, 0]));
    lab.delete(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    lab.wait_quota(json!({}));
}

#[test]
fn a_type_may_ask_for_many_writers_and_for_limits() {
    let lab = Lab::get();
    let kind = lab.api("volume_types.create", json!(["many"]), json!({}));
    let specs = json!({"consumer": "back-end", "total_iops_sec": "500", "total_iops_sec_max": "700"});
    let limits = lab.api("qos_specs.create", json!(["limits", specs]), json!({}));
    lab.api("qos_specs.associate", json!([limits["id"], kind["id"]]), json!({}));
    for (key, value) in [("volume_backend_name", "ceph"), ("multiattach", "<is> True")] {
        lab.sql(
            "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted) VALUES (%s, %s, %s, 0)",
            &[kind["id"].clone(), json!(key), json!(value)],
        );
    }
    let plain = lab.volume_of_type("ceph");
    let features = lab.image("a", &plain)["features"].as_u64().unwrap();
    let id = lab.volume_of_type("many");
    let left = lab.image("a", &id)["features"].as_u64().unwrap();
    // journaling, fast-diff, object-map, exclusive-lock
    assert_eq!(left, features & !(64 | 16 | 8 | 4));
    assert_eq!(row_str(&lab.volume(&id), "provider_location"), format!(r#"{{"saved_features":{features}}}"#));
    let image = format!("volumes/volume-{id}");
    let limit = lab.tool(&["rbd", "a", "image-meta", "get", &image, "conf_rbd_qos_iops_limit"]);
    assert_eq!(limit.trim(), "500");
    // Stock takes it for a burst of bytes.
    let burst = match lab.subject {
        Subject::Scoria => "conf_rbd_qos_iops_burst",
        Subject::Stock => "conf_rbd_qos_bps_burst",
    };
    assert_eq!(lab.tool(&["rbd", "a", "image-meta", "get", &image, burst]).trim(), "700");
    lab.delete(&[&plain, &id]);
    lab.api("volume_types.delete", json!([kind["id"]]), json!({}));
    lab.api("qos_specs.delete", json!([limits["id"]]), json!({}));
}
