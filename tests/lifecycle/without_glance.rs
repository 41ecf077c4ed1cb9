//! Where there is no Glance, nothing is left hanging: the resource gets the status that Cinder
//! defines for that failure, quota comes back, and the user is told.

use serde_json::{Value, json};

use crate::common::{CEPH_QUEUE, Lab, wait_until};

const WHY: &str = "stock tells no user of a failed upload";

fn told(lab: &Lab, id: &str) {
    wait_until(&format!("a message about {id}"), 20, || !lab.messages(id).is_empty());
}

fn driver(lab: &Lab, op: &str, args: Value) -> Value {
    lab.driver.call(op, args).unwrap_or_else(|e| panic!("{op}: {e}"))
}

fn cast(lab: &Lab, method: &str, version: &str, args: Value) {
    driver(
        lab,
        "cast",
        json!({"routing_key": CEPH_QUEUE, "method": method, "version": version, "args": args}),
    );
}

#[test]
fn a_volume_from_an_image_ends_in_error() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let id = driver(&lab, "insert_volume", json!({"type_name": "ceph", "host": "lab@ceph#ceph"}));
    let id = id.as_str().unwrap();
    let image = "9c5f5d6e-0d7b-4c7a-9d2a-9d8a2c1f0e11";
    let args = driver(&lab, "create_args", json!({"ident": id, "image": image}));
    cast(&lab, "create_volume", "3.0", args);
    wait_until("error", 60, || lab.volume(id)["status"] == "error");
    told(&lab, id);
    assert!(lab.image("a", id).is_null());
    lab.delete(&[id]);
}

#[test]
fn uploads_and_reimages_end() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let id = lab.volume_of_type("ceph");
    let sum = lab.write("a", &id, 7);
    let set = |status: &str| {
        lab.sql("UPDATE volumes SET status = %s WHERE id = %s", &[json!(status), json!(id)]);
    };

    set("uploading");
    let meta = json!({"id": "9c5f5d6e-0d7b-4c7a-9d2a-9d8a2c1f0e11", "container_format": "bare", "disk_format": "raw"});
    cast(&lab, "copy_volume_to_image", "3.0", json!({"volume_id": id, "image_meta": meta}));
    wait_until("upload ended", 60, || lab.volume(&id)["status"] == "available");
    told(&lab, &id);

    set("downloading");
    lab.sql("UPDATE volumes SET previous_status = 'available' WHERE id = %s", &[json!(id)]);
    let volume = driver(&lab, "volume_object", json!({"ident": id}));
    cast(&lab, "reimage", "3.20", json!({"volume": volume, "image_meta": meta, "image_snap": null}));
    wait_until("reimage ended", 60, || lab.volume(&id)["status"] == "error");
    assert_eq!(lab.checksum("a", &id), sum);

    set("available");
    lab.delete(&[&id]);
}
