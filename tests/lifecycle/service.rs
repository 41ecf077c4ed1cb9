//! The service itself: its row, capabilities, freeze and thaw, log levels.

use serde_json::{Value, json};

use crate::common::{CEPH, CEPH_QUEUE, Lab, PLAIN, wait_until};

#[test]
fn both_backends_are_listed_up_with_the_versions_that_they_speak() {
    let lab = Lab::get();
    let listed = lab.api("services.list", json!([]), json!({"binary": "cinder-volume"}));
    for (host, replication) in [(CEPH, "enabled"), (PLAIN, "disabled")] {
        let service = listed.as_array().unwrap().iter().find(|s| s["host"] == host).unwrap();
        assert_eq!(service["state"], "up");
        assert_eq!(service["status"], "enabled");
        assert_eq!(service["backend_state"], "up");
        wait_until("replication_status", 30, || lab.service(host)["replication_status"] == replication);
        let row = lab.service(host);
        assert_eq!(
            (&row["rpc_current_version"], &row["object_current_version"]),
            (&json!("3.20"), &json!("1.39"))
        );
        assert_eq!(row["topic"], "cinder-volume");
        assert_eq!(row["availability_zone"], "nova");
    }
    let before = lab.service(CEPH)["report_count"].as_i64().unwrap();
    wait_until("the heartbeat counts on", 40, || {
        lab.service(CEPH)["report_count"].as_i64().unwrap() > before
    });
}

#[test]
fn capabilities_are_those_of_stock() {
    let lab = Lab::get();
    let shown = lab.api("capabilities.get", json!([CEPH]), json!({}));
    assert_eq!(shown["volume_backend_name"], "ceph");
    assert_eq!(shown["storage_protocol"], "ceph");
    assert_eq!(shown["replication_targets"], json!(["site-b", "default"]));
    let keys: Vec<&String> = shown["properties"].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    for key in ["thin_provisioning", "compression", "qos", "replication_enabled"] {
        let property = &shown["properties"][key];
        assert_eq!(property["type"], "boolean", "{key}");
        assert!(property["title"].is_string() && property["description"].is_string(), "{key}");
    }

    let reply = lab.rpc(CEPH_QUEUE, "get_capabilities", "3.0", json!({"discover": true}));
    assert!(reply["failure"].is_null(), "{reply}");
    let found = reply["result"].as_object().unwrap();
    let mut keys: Vec<&str> = found.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "backend_state",
            "driver_version",
            "free_capacity_gb",
            "location_info",
            "max_over_subscription_ratio",
            "multiattach",
            "properties",
            "qos_support",
            "replication_enabled",
            "replication_targets",
            "reserved_percentage",
            "storage_protocol",
            "thin_provisioning_support",
            "total_capacity_gb",
            "vendor_name",
            "volume_backend_name"
        ]
    );
    assert!(found["location_info"].as_str().unwrap().starts_with("ceph:"));
    assert_eq!(found["backend_state"], "up");
}

#[test]
fn the_scheduler_knows_both_pools() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let pool = |name: &str| -> Value {
        let pools = lab.api("pools.list", json!([]), json!({"detailed": true}));
        pools.as_array().unwrap().iter().find(|p| p["name"] == name).cloned().unwrap_or_default()
    };
    let ceph = pool("lab@ceph#ceph");
    assert_eq!(ceph["capabilities"]["replication_enabled"], true);
    assert!(ceph["capabilities"]["total_capacity_gb"].as_f64().unwrap() > 1.0);
    assert_eq!(pool("lab@plain#plain")["capabilities"]["replication_enabled"], false);
    // A deletion publishes capabilities at once; the volume is not among what is allocated any more.
    lab.delete(&[&id]);
    wait_until("nothing is allocated", 90, || {
        pool("lab@ceph#ceph")["capabilities"]["allocated_capacity_gb"] == 0
    });
}

#[test]
fn a_frozen_backend_gets_no_new_volumes_and_thaws() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    lab.api("services.freeze_host", json!([CEPH]), json!({}));
    let row = lab.service(CEPH);
    assert_eq!(
        (&row["frozen"], &row["disabled"], &row["disabled_reason"]),
        (&json!(1), &json!(1), &json!("frozen"))
    );
    let refused = lab.try_api("volumes.delete", json!([id]), json!({}));
    assert_eq!(refused.unwrap_err().code, Some(400));

    lab.api("services.thaw_host", json!([CEPH]), json!({}));
    let row = lab.service(CEPH);
    assert_eq!(
        (&row["frozen"], &row["disabled"], &row["disabled_reason"]),
        (&json!(0), &json!(0), &json!(""))
    );
    lab.delete(&[&id]);
}

#[test]
fn log_levels_are_set_and_read_through_the_api() {
    let lab = Lab::get();
    let level = || {
        let found = lab.api(
            "services.get_log_levels",
            json!([]),
            json!({"binary": "cinder-volume", "server": CEPH, "prefix": "cinder"}),
        );
        found.as_array().unwrap().len()
    };
    lab.api(
        "services.set_log_levels",
        json!(["debug"]),
        json!({"binary": "cinder-volume", "server": CEPH, "prefix": "cinder"}),
    );
    assert!(level() > 0, "the service names its loggers");
    lab.api(
        "services.set_log_levels",
        json!(["info"]),
        json!({"binary": "cinder-volume", "server": CEPH, "prefix": "cinder"}),
    );
}
