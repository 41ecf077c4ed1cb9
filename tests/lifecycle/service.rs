//! The service itself: its row, capabilities, freeze and thaw, log levels.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::{CEPH, CEPH_QUEUE, Lab, PLAIN, Subject, connector, row_str, wait_until};

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
            // Not stock's: its RBD driver cannot fail groups over, or freeze several images.
            "consistent_group_replication_enabled",
            "consistent_group_snapshot_enabled",
            "driver_version",
            "free_capacity_gb",
            "group_replication_enabled",
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
fn calls_that_change_nothing_are_answered() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let volume = lab.driver.call("volume_object", json!({"ident": id})).unwrap();
    let secure = lab.rpc(CEPH_QUEUE, "secure_file_operations_enabled", "3.0", json!({"volume": volume}));
    assert_eq!((&secure["result"], &secure["failure"]), (&json!(false), &Value::Null));
    let removed = lab.rpc(CEPH_QUEUE, "remove_export", "3.0", json!({"volume_id": id}));
    assert_eq!((&removed["result"], &removed["failure"]), (&Value::Null, &Value::Null));
    assert_eq!(lab.volume(&id)["status"], "available");
    lab.delete(&[&id]);
}

#[test]
fn a_snapshot_cannot_be_attached() {
    let lab = Lab::get();
    if !lab.only_scoria("stock fails with a TypeError") {
        return;
    }
    let id = lab.volume_of_type("ceph");
    let snapshot = lab.snapshot_of(&id);
    let args = json!({"snapshot_id": snapshot, "connector": connector("compute1")});
    let refused = lab.rpc(CEPH_QUEUE, "initialize_connection_snapshot", "3.13", args.clone());
    assert_eq!(refused["failure"]["class"], "VolumeBackendAPIException", "{refused}");
    let mut forced = args;
    forced["force"] = json!(true);
    for (method, args) in [
        ("terminate_connection_snapshot", forced),
        ("remove_export_snapshot", json!({"snapshot_id": snapshot})),
    ] {
        let answer = lab.rpc(CEPH_QUEUE, method, "3.13", args);
        assert_eq!((&answer["result"], &answer["failure"]), (&Value::Null, &Value::Null), "{method}");
    }
    let gone = json!({"snapshot_id": "9c5f5d6e-0d7b-4c7a-9d2a-9d8a2c1f0e11"});
    let missing = lab.rpc(CEPH_QUEUE, "remove_export_snapshot", "3.13", gone);
    assert_eq!(missing["failure"]["class"], "SnapshotNotFound", "{missing}");
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
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
    let levels = || -> BTreeSet<String> {
        let asked = json!({"binary": "cinder-volume", "server": CEPH, "prefix": "cinder"});
        let found = lab.api("services.get_log_levels", json!([]), asked);
        let found = found.as_array().unwrap();
        assert!(!found.is_empty(), "the service names its loggers");
        for one in found {
            assert!(row_str(one, "prefix").starts_with("cinder"), "{one}");
        }
        found.iter().map(|one| row_str(one, "level").to_owned()).collect()
    };
    let set = |level: &str| {
        let asked = json!({"binary": "cinder-volume", "server": CEPH, "prefix": "cinder"});
        lab.api("services.set_log_levels", json!([level]), asked);
        let expected = BTreeSet::from([level.to_uppercase()]);
        wait_until(&format!("all of them are at {level}"), 30, || levels() == expected);
    };
    assert!(!levels().contains("DEBUG"), "{:?}", levels());
    set("debug");
    let id = lab.volume_of_type("ceph");
    if lab.subject == Subject::Scoria {
        let debugs = || lab.service_log().lines().any(|l| l.contains(" DEBUG scoria::"));
        wait_until("it logs accordingly", 30, debugs);
    }
    set("info");
    lab.delete(&[&id]);
}

#[test]
fn the_service_does_not_map_ceph() {
    let lab = Lab::get();
    if !lab.only_scoria("stock's driver is librbd's Python binding") {
        return;
    }
    // Ceph has been used.
    let id = lab.volume_of_type("ceph");
    let mapped = |pid: i32| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        ["librados", "librbd"].map(|library| maps.contains(library))
    };
    let service = lab.service_pids()[0];
    assert_eq!(mapped(service), [false, false]);
    assert_eq!(mapped(lab.worker_pids()[0]), [true, true], "this is how one would see it");
    lab.delete(&[&id]);
    let status = || {
        let out = lab.try_tool(&["status"]);
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    // A mirror daemon may still have been busy with what an earlier test removed.
    wait_until("all is well", 60, || status().0);
    let shown = status().1;
    assert!(shown.contains("ok; librados not mapped"), "{shown}");

    // What the lab's status would say.
    lab.stop_service();
    lab.start_service_with(&[], &[("LD_PRELOAD", "librados.so.2")]);
    assert!(mapped(lab.service_pids()[0])[0]);
    let (well, shown) = status();
    assert!(!well && shown.contains("LIBRADOS MAPPED"), "{shown}");
    let others = shown.lines().filter(|l| !l.starts_with("scoria-volume"));
    assert!(others.clone().count() > 10 && others.clone().all(|l| !l.contains("WARNING")), "{shown}");
}
