//! Notifications have the keys and types of the captured ones, in the same order.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::{Lab, Notification, connector, wait_until};

fn captured(event: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/wire/notif-{event}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file: Value = serde_json::from_str(&text).unwrap();
    let body: Value = serde_json::from_str(file["body"].as_str().unwrap()).unwrap();
    serde_json::from_str(body["oslo.message"].as_str().unwrap()).unwrap()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Differences in keys, or in types where neither side is null.
fn differences(path: &str, want: &Value, have: &Value) -> Vec<String> {
    let mut found = Vec::new();
    match (want, have) {
        (Value::Object(want), Value::Object(have)) => {
            for (key, value) in want {
                match have.get(key) {
                    None => found.push(format!("{path}.{key} is missing")),
                    Some(other) => found.extend(differences(&format!("{path}.{key}"), value, other)),
                }
            }
            for key in have.keys().filter(|k| !want.contains_key(*k)) {
                found.push(format!("{path}.{key} is not in Cinder's"));
            }
        }
        (Value::Array(want), Value::Array(have)) => {
            if let (Some(want), Some(have)) = (want.first(), have.first()) {
                found.extend(differences(&format!("{path}[0]"), want, have));
            }
        }
        (want, have) if kind(want) != kind(have) && !want.is_null() && !have.is_null() => {
            found.push(format!("{path}: {} instead of {}", kind(have), kind(want)));
        }
        _ => {}
    }
    found
}

fn expect_like_captured(heard: &Notification) {
    let found = differences("", &captured(&heard.event), &heard.body);
    assert!(found.is_empty(), "{}: {found:#?}\n{}", heard.event, heard.body);
}

#[test]
fn volumes_snapshots_and_attachments_announce_themselves_as_in_cinder() {
    let lab = Lab::get();
    lab.listen();
    let id = lab.create(json!({"volume_type": "ceph", "name": "base", "metadata": {"k": "v"}}));
    lab.wait_status(&id, "available");
    lab.api("volumes.extend", json!([id, 2]), json!({}));
    wait_until("extended", 60, || lab.volume(&id)["size"] == 2 && lab.volume(&id)["status"] == "available");
    let snapshot = lab.snapshot_of(&id);
    lab.delete_snapshot(&snapshot);
    let server = "8935016b-fde4-4085-b496-7ed3396873bc";
    lab.api("volumes.reserve", json!([id]), json!({}));
    lab.api("volumes.attach", json!([id, server, "/dev/vdc"]), json!({"mode": "rw"}));
    lab.wait_status(&id, "in-use");
    lab.api("volumes.begin_detaching", json!([id]), json!({}));
    lab.api("volumes.terminate_connection", json!([id, connector("compute1")]), json!({}));
    lab.api("volumes.detach", json!([id]), json!({}));
    lab.wait_status(&id, "available");
    lab.delete(&[&id]);

    let expected = [
        "volume.create.start",
        "volume.create.end",
        "volume.resize.start",
        "volume.resize.end",
        "snapshot.create.start",
        "snapshot.create.end",
        "snapshot.delete.start",
        "snapshot.delete.end",
        "volume.attach.start",
        "volume.attach.end",
        "volume.detach.start",
        "volume.detach.end",
        "volume.delete.start",
        "volume.delete.end",
    ];
    let mut heard: Vec<Notification> = Vec::new();
    wait_until("all notifications came", 20, || {
        heard.extend(lab.heard());
        heard.len() >= expected.len()
    });
    let events: Vec<&str> = heard.iter().map(|n| n.event.as_str()).collect();
    assert_eq!(events, expected);
    heard.iter().for_each(expect_like_captured);
    for n in &heard {
        let publisher = match n.event.as_str() {
            e if e.starts_with("snapshot.") => "snapshot.lab@ceph",
            e if e.starts_with("volume.create.") => "volume.lab@ceph#ceph",
            _ => "volume.lab@ceph",
        };
        assert_eq!(n.body["publisher_id"], publisher, "{}", n.event);
        assert_eq!(n.body["_context_auth_token"], Value::Null, "{}", n.event);
        if n.event.ends_with(".delete.end") {
            assert_eq!(n.body["payload"]["status"], "deleted", "{}", n.event);
        }
    }
}

#[test]
fn reverts_and_takeovers_announce_themselves_as_in_cinder() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let snapshot = lab.snapshot_of(&id);
    lab.listen();
    lab.api("volumes.revert_to_snapshot", json!([id, snapshot]), json!({}));
    lab.wait_status(&id, "available");
    lab.wait_snapshot(&snapshot, "available");
    lab.api("volume_snapshots.unmanage", json!([snapshot]), json!({}));
    wait_until("the snapshot is let go", 60, || lab.snapshot(&snapshot)["deleted"] == 1);
    lab.api("volumes.unmanage", json!([id]), json!({}));
    lab.wait_deleted(&id);
    let reference = json!(["lab@ceph#ceph", {"source-name": format!("volume-{id}")}]);
    let made = lab.api("volumes.manage", reference, json!({"volume_type": "ceph", "name": "managed"}));
    let again = made["id"].as_str().unwrap();
    lab.wait_status(again, "available");
    let reference = json!([again, {"source-name": format!("snapshot-{snapshot}")}]);
    let made = lab.api("volume_snapshots.manage", reference, json!({"name": "managed"}));
    let taken = made["id"].as_str().unwrap();
    lab.wait_snapshot(taken, "available");

    let expected = [
        "volume.revert.start",
        "snapshot.revert.start",
        "volume.revert.end",
        "snapshot.revert.end",
        "snapshot.delete.start",
        "snapshot.delete.end",
        "volume.unmanage.start",
        "volume.unmanage.end",
        "volume.manage_existing.start",
        "volume.manage_existing.end",
        "snapshot.manage_existing_snapshot.start",
        "snapshot.manage_existing_snapshot.end",
    ];
    let mut heard: Vec<Notification> = Vec::new();
    wait_until("all notifications came", 20, || {
        heard.extend(lab.heard());
        heard.len() >= expected.len()
    });
    let events: Vec<&str> = heard.iter().map(|n| n.event.as_str()).collect();
    assert_eq!(events, expected);
    heard.iter().for_each(expect_like_captured);
    for n in &heard {
        let publisher = match n.event.as_str() {
            e if e.starts_with("snapshot.") => "snapshot.lab@ceph",
            e if e.starts_with("volume.manage_existing.") => "volume.lab@ceph#ceph",
            _ => "volume.lab@ceph",
        };
        assert_eq!(n.body["publisher_id"], publisher, "{}", n.event);
    }
    lab.delete_snapshot(taken);
    lab.delete(&[again]);
}
