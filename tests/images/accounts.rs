//! The service in an OpenStack with users: what it always did, asked for with tokens.

use serde_json::json;

use crate::common::{ImageFile, Lab, checksum, connector};

#[test]
fn volumes_of_an_administrator_and_of_a_user_are_made_attached_and_deleted() {
    let lab = Lab::with_images();
    let ours = lab.volume_of_type("ceph");
    let made = lab.api_as("demo", "volumes.create", json!([1]), json!({"volume_type": "ceph"}));
    let theirs = made["id"].as_str().unwrap().to_owned();
    lab.wait_status(&theirs, "available");
    assert_ne!(lab.volume(&ours)["project_id"], lab.volume(&theirs)["project_id"]);
    assert_eq!(lab.volume(&theirs)["user_id"], made["user_id"]);
    let seen = lab.try_api_as("demo", "volumes.get", json!([ours]), json!({})).unwrap_err();
    assert_eq!(seen.code, Some(404), "{seen}");

    // The attachment of a server is deleted with a service token, or not at all.
    let server = "3f5a9f0e-0b1c-4c5d-8f2e-000000000001";
    let made = json!([ours, connector("compute1"), server]);
    let attachment = lab.api("attachments.create", made, json!({"mode": "rw"}));
    lab.api("attachments.complete", json!([attachment["id"]]), json!({}));
    lab.wait_status(&ours, "in-use");
    lab.api("attachments.delete", json!([attachment["id"]]), json!({}));
    lab.wait_status(&ours, "available");

    lab.api_as("demo", "volumes.delete", json!([theirs]), json!({}));
    lab.wait_deleted(&theirs);
    lab.delete(&[&ours]);
}

#[test]
fn images_of_files_keep_their_content_in_either_store() {
    let lab = Lab::with_images();
    let (raw, qcow2) = (ImageFile::new("raw", 8, 1), ImageFile::new("qcow2", 16, 2));
    assert_ne!(raw.checksum, qcow2.checksum);
    let first = lab.image_of(&raw, json!({"visibility": "public"}));
    let second = lab.image_of(&qcow2, json!({"store": "ceph-b", "kept": "yes"}));
    assert_eq!(lab.glance_image(&first)["stores"], "ceph");
    let image = lab.glance_image(&second);
    assert_eq!((&image["stores"], &image["kept"]), (&json!("ceph-b"), &json!("yes")));
    assert_eq!(lab.ceph("images", json!({"site": "a", "pool": "images"})), json!([first]));
    assert_eq!(lab.ceph("images", json!({"site": "b", "pool": "images"})), json!([second]));

    let copy = raw.path().with_extension("copy");
    assert_eq!(lab.download(&first, &copy), raw.size);
    assert_eq!(checksum(&copy, 0, raw.size), raw.checksum);
    lab.delete_images(&[&first, &second]);
}
