//! Attaching as Nova does it: attachments, and the older actions on the volume.

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, connector, row_str, wait_until};

const SERVER: &str = "8935016b-fde4-4085-b496-7ed3396873bc";

/// Keys and values of what a compute host is told; `cluster` as Nova's ceph.conf name.
fn expect_connection(lab: &Lab, volume: &str, data: &Value) {
    let fsid_and_hosts = lab.service(CEPH);
    assert!(fsid_and_hosts.is_object());
    assert_eq!(data["name"], format!("volumes/volume-{volume}"));
    assert_eq!(data["ports"], json!(["6789"]));
    assert!(data["hosts"][0].as_str().unwrap().starts_with("127."));
    for (key, value) in [
        ("cluster_name", json!("ceph")),
        ("auth_enabled", json!(true)),
        ("auth_username", json!("cinder")),
        ("secret_type", json!("ceph")),
        ("volume_id", json!(volume)),
        ("discard", json!(true)),
        ("qos_specs", Value::Null),
        ("access_mode", json!("rw")),
        ("encrypted", json!(false)),
        ("cacheable", json!(false)),
        ("enforce_multipath", json!(false)),
    ] {
        assert_eq!(data.get(key), Some(&value), "{key} of {data}");
    }
    // The UUID of libvirt's secret: the cluster's fsid unless configured.
    assert_eq!(data["secret_uuid"].as_str().unwrap().len(), 36);
}

fn attachment_row(lab: &Lab, id: &str) -> Value {
    lab.rows("SELECT * FROM volume_attachment WHERE id = %s", &[json!(id)]).remove(0)
}

#[test]
fn an_attachment_is_reserved_connected_completed_and_deleted() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let made = lab.api("attachments.create", json!([id, null, SERVER]), json!({"mode": "rw"}));
    let attachment = made["id"].as_str().unwrap().to_owned();
    assert_eq!(lab.volume(&id)["status"], "reserved");

    let updated = lab.api("attachments.update", json!([attachment, connector("compute1")]), json!({}));
    let info = &updated["connection_info"];
    expect_connection(&lab, &id, info);
    assert_eq!(info["driver_volume_type"], "rbd");
    assert_eq!(info["attachment_id"], attachment);
    let volume = lab.volume(&id);
    assert_eq!((row_str(&volume, "status"), row_str(&volume, "attach_status")), ("attaching", "attaching"));
    let row = attachment_row(&lab, &attachment);
    assert_eq!((row_str(&row, "attach_status"), row_str(&row, "attached_host")), ("attaching", "compute1"));
    assert_eq!((row_str(&row, "attach_mode"), row_str(&row, "mountpoint")), ("rw", "/dev/vdb"));
    let stored: Value = serde_json::from_str(row_str(&row, "connector")).unwrap();
    assert_eq!(stored["host"], "compute1");
    assert_eq!(stored["mode"], "rw");

    lab.api("attachments.complete", json!([attachment]), json!({}));
    let volume = lab.volume(&id);
    assert_eq!((row_str(&volume, "status"), row_str(&volume, "attach_status")), ("in-use", "attached"));

    let refused = lab.try_api("volumes.delete", json!([id]), json!({})).unwrap_err();
    assert_eq!(refused.code, Some(400), "{refused}");

    lab.api("attachments.delete", json!([attachment]), json!({}));
    let volume = lab.volume(&id);
    assert_eq!((row_str(&volume, "status"), row_str(&volume, "attach_status")), ("available", "detached"));
    let row = attachment_row(&lab, &attachment);
    assert_eq!((row_str(&row, "attach_status"), &row["deleted"]), ("detached", &json!(1)));
    lab.delete(&[&id]);
}

#[test]
fn an_attachment_made_with_its_connector_is_connected_at_once() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let made =
        lab.api("attachments.create", json!([id, connector("compute1"), SERVER]), json!({"mode": "rw"}));
    expect_connection(&lab, &id, &made["connection_info"]);
    let attachment = made["id"].as_str().unwrap();
    lab.api("attachments.delete", json!([attachment]), json!({}));
    assert_eq!(lab.volume(&id)["status"], "available");
    lab.delete(&[&id]);
}

#[test]
fn a_replicated_volume_is_attached_and_its_snapshot_taken_in_use() {
    let lab = Lab::get();
    let id = lab.volume_of_type("replicated");
    let made =
        lab.api("attachments.create", json!([id, connector("compute1"), SERVER]), json!({"mode": "rw"}));
    let attachment = made["id"].as_str().unwrap();
    lab.api("attachments.complete", json!([attachment]), json!({}));
    let snapshot = lab.snapshot_of(&id);
    assert_eq!(lab.volume(&id)["status"], "in-use");
    lab.delete_snapshot(&snapshot);
    lab.api("attachments.delete", json!([attachment]), json!({}));
    lab.delete(&[&id]);
}

#[test]
fn the_older_actions_attach_and_detach() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    lab.api("volumes.reserve", json!([id]), json!({}));
    let connection = lab.api("volumes.initialize_connection", json!([id, connector("compute1")]), json!({}));
    assert_eq!(connection["driver_volume_type"], "rbd");
    expect_connection(&lab, &id, &connection["data"]);
    lab.api("volumes.attach", json!([id, SERVER, "/dev/vdc"]), json!({"mode": "rw"}));
    lab.wait_status(&id, "in-use");
    let admin = |deleted: i32| {
        lab.rows(
            "SELECT `key`, value FROM volume_admin_metadata WHERE volume_id = %s AND deleted = %s ORDER BY `key`",
            &[json!(id), json!(deleted)],
        )
    };
    assert_eq!(
        admin(0),
        [json!({"key": "attached_mode", "value": "rw"}), json!({"key": "readonly", "value": "False"})]
    );
    let rows = lab.rows("SELECT * FROM volume_attachment WHERE volume_id = %s AND deleted = 0", &[json!(id)]);
    assert_eq!(rows.len(), 1);
    assert_eq!((row_str(&rows[0], "instance_uuid"), row_str(&rows[0], "mountpoint")), (SERVER, "/dev/vdc"));
    assert_eq!(rows[0]["attach_status"], "attached");

    lab.api("volumes.begin_detaching", json!([id]), json!({}));
    lab.api("volumes.terminate_connection", json!([id, connector("compute1")]), json!({}));
    lab.api("volumes.detach", json!([id]), json!({}));
    wait_until("detached", 30, || lab.volume(&id)["status"] == "available");
    assert_eq!(lab.volume(&id)["attach_status"], "detached");
    assert_eq!(admin(0), [json!({"key": "readonly", "value": "False"})]);
    lab.delete(&[&id]);
}

#[test]
fn a_read_only_volume_is_not_attached_for_writing() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    lab.api("volumes.update_readonly_flag", json!([id, true]), json!({}));
    let connection = lab.api("volumes.initialize_connection", json!([id, connector("compute1")]), json!({}));
    assert_eq!(connection["data"]["access_mode"], "ro");
    let refused = lab.try_api("volumes.attach", json!([id, SERVER, "/dev/vdc"]), json!({"mode": "rw"}));
    assert_eq!(refused.unwrap_err().code, Some(400));
    assert_eq!(lab.volume(&id)["attach_status"], "detached");
    lab.sql("UPDATE volumes SET status='available', attach_status='detached' WHERE id = %s", &[json!(id)]);
    lab.sql(
        "UPDATE volume_attachment SET deleted=1, deleted_at=UTC_TIMESTAMP() WHERE volume_id = %s AND deleted=0",
        &[json!(id)],
    );
    lab.delete(&[&id]);
}
