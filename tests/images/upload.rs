//! `copy_volume_to_image`: volumes become images, as their users see it, and what is left when that fails.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::common::{Lab, checksum, connector, qemu_info, row_str, wait_until};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// Of nobody; a volume is attached to it.
const SERVER: &str = "3f5a9f0e-0b1c-4c5d-8f2e-000000000002";

/// Data at the begin of a volume, in its middle and at its very end; the checksum of the whole.
pub(crate) fn fill(lab: &Lab, volume: &str, seed: u32) -> String {
    let image = format!("volume-{volume}");
    for (number, offset) in [0, 700 * MIB + 12_288, GIB - MIB].into_iter().enumerate() {
        let data = json!({"site": "a", "image": image, "seed": seed + number as u32, "offset": offset});
        lab.ceph("write", data);
    }
    let all = lab.ceph("checksum", json!({"site": "a", "image": image, "length": 0}));
    all.as_str().unwrap().to_owned()
}

/// `os-volume_upload_image`; the image's id.
pub(crate) fn order(lab: &Lab, user: &str, volume: &str, disk_format: &str, force: bool) -> String {
    let args = json!([volume, force, format!("of {volume}"), "bare", disk_format]);
    let answer = lab.api_as(
        user,
        "volumes.upload_to_image",
        args,
        json!({"visibility": "private", "protected": false}),
    );
    let answer = &answer["os-volume_upload_image"];
    assert_eq!(answer["status"], "uploading", "{answer}");
    row_str(answer, "image_id").to_owned()
}

/// Checksum of an image's disk, whatever its format.
pub(crate) fn checksum_of_image(lab: &Lab, image: &str, disk_format: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (file, raw) = (dir.path().join("image"), dir.path().join("raw"));
    lab.download(image, &file);
    if disk_format == "raw" {
        return checksum(&file, 0, GIB);
    }
    let info = qemu_info(&file);
    assert_eq!((&info["format"], &info["virtual-size"]), (&json!(disk_format), &json!(GIB)));
    let status = Command::new("qemu-img")
        .args(["convert", "-f", disk_format, "-O", "raw"])
        .args([&file, &raw])
        .status();
    assert!(status.unwrap().success());
    checksum(&raw, 0, GIB)
}

/// The same for a raw image, read where Glance has put it: a gigabyte through Glance costs a minute.
pub(crate) fn checksum_in_store(lab: &Lab, site: &str, image: &str) -> String {
    let all = json!({"site": site, "pool": "images", "image": image, "length": 0});
    lab.ceph("checksum", all).as_str().unwrap().to_owned()
}

/// The only message about a volume.
#[track_caller]
fn expect_message(lab: &Lab, volume: &str) {
    let messages = lab.messages(volume);
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!(messages[0]["event_id"], "VOLUME_VOLUME_003_004");
    assert_eq!((&messages[0]["action_id"], &messages[0]["detail_id"]), (&json!("003"), &json!("004")));
    assert_eq!(messages[0]["message_level"], "ERROR");
}

#[test]
fn what_a_volume_holds_becomes_an_image_in_the_format_that_was_asked_for() {
    let lab = Lab::with_images();
    let made = lab.api_as("demo", "volumes.create", json!([1]), json!({"volume_type": "ceph"}));
    let volume = row_str(&made, "id").to_owned();
    lab.wait_status(&volume, "available");
    let content = fill(&lab, &volume, 40);
    lab.api_as("demo", "volumes.set_image_metadata", json!([volume, {"os_distro": "debian"}]), json!({}));
    for disk_format in ["raw", "qcow2"] {
        let id = order(&lab, "demo", &volume, disk_format, false);
        lab.wait_status(&volume, "available");
        // The volume is free when the image is complete, not before.
        let image = lab.glance_image(&id);
        assert_eq!((&image["status"], &image["disk_format"]), (&json!("active"), &json!(disk_format)));
        assert_eq!(image["os_distro"], "debian", "{image}");
        assert_eq!(image["owner"], lab.volume(&volume)["project_id"], "{image}");
        let size = image["size"].as_u64().unwrap();
        match disk_format {
            "raw" => assert_eq!(size, GIB),
            _ => assert!(size < 16 * MIB, "zeros are no data: {size}"),
        }
        assert_eq!(checksum_of_image(&lab, &id, disk_format), content, "{disk_format}");
        lab.delete_images(&[&id]);
    }
    let row = lab.volume(&volume);
    assert_eq!((row_str(&row, "previous_status"), row_str(&row, "attach_status")), ("available", "detached"));
    assert!(lab.messages(&volume).is_empty());
    expect_no_files(&lab);
    lab.delete(&[&volume]);
}

/// Nothing is left of conversions.
pub(crate) fn expect_no_files(lab: &Lab) {
    let dir = lab.root.join("scoria/conversion");
    let files = || {
        dir.read_dir().map(|found| found.flatten().map(|f| f.path()).collect::<Vec<_>>()).unwrap_or_default()
    };
    wait_until("files of conversions are removed", 20, || files().is_empty());
}

#[test]
fn an_attached_volume_is_uploaded_by_force_and_stays_in_use() {
    let lab = Lab::with_images();
    let volume = lab.volume_of_type("ceph");
    let content = fill(&lab, &volume, 50);
    let made = json!([volume, connector("compute1"), SERVER]);
    let attachment = lab.api("attachments.create", made, json!({"mode": "rw"}));
    lab.api("attachments.complete", json!([attachment["id"]]), json!({}));
    let args = json!([volume, false, "no", "bare", "raw"]);
    let refused = lab
        .try_api("volumes.upload_to_image", args, json!({"visibility": "private", "protected": false}))
        .unwrap_err();
    assert_eq!(refused.code, Some(400), "{refused}");

    let id = order(&lab, "admin", &volume, "raw", true);
    lab.wait_glance_image(&id, "active");
    lab.wait_status(&volume, "in-use");
    assert_eq!(lab.volume(&volume)["attach_status"], "attached");
    assert_eq!(checksum_in_store(&lab, "a", &id), content);
    lab.api("attachments.delete", json!([attachment["id"]]), json!({}));
    lab.delete_images(&[&id]);
    lab.delete(&[&volume]);
}

#[test]
fn the_volume_type_names_the_store() {
    let lab = Lab::with_images();
    let kind = lab.api("volume_types.create", json!(["stored-on-b"]), json!({}));
    let id = row_str(&kind, "id");
    let specs = json!({"extra_specs": {"volume_backend_name": "ceph", "image_service:store_id": "ceph-b"}});
    let path = format!("/types/{id}/extra_specs");
    lab.driver.call("http", json!({"method": "POST", "path": path, "body": specs})).unwrap();
    let volume = lab.volume_of_type("stored-on-b");
    let content = fill(&lab, &volume, 60);
    let image = order(&lab, "admin", &volume, "raw", false);
    lab.wait_status(&volume, "available");
    assert_eq!(lab.glance_image(&image)["stores"], "ceph-b");
    assert_eq!(lab.ceph("images", json!({"site": "b", "pool": "images"})), json!([image]));
    assert_eq!(checksum_in_store(&lab, "b", &image), content);
    lab.delete_images(&[&image]);
    lab.delete(&[&volume]);
    lab.api("volume_types.delete", json!([id]), json!({}));
}

#[test]
fn an_upload_that_fails_gives_the_volume_back_and_says_why() {
    let lab = Lab::with_images();
    let volume = lab.volume_of_type("ceph");
    // The image is gone when its data is to come.
    lab.stop_service();
    let gone = order(&lab, "admin", &volume, "raw", false);
    lab.delete_images(&[&gone]);
    lab.start_service();
    lab.wait_status(&volume, "available");
    expect_message(&lab, &volume);
    forget_messages(&lab, &volume);

    // Somebody has filled it meanwhile: it stays.
    lab.stop_service();
    let theirs = order(&lab, "admin", &volume, "raw", false);
    let file = lab.root.join("theirs");
    std::fs::write(&file, vec![7; 4096]).unwrap();
    upload_to(&lab, &theirs, &file);
    lab.start_service();
    lab.wait_status(&volume, "available");
    expect_message(&lab, &volume);
    forget_messages(&lab, &volume);
    assert_eq!(lab.glance_image(&theirs)["size"], 4096);

    // Glance does not answer.
    lab.stop_service();
    let waiting = order(&lab, "admin", &volume, "qcow2", false);
    lab.stop("glance-api");
    lab.start_service();
    lab.wait_status(&volume, "available");
    expect_message(&lab, &volume);
    lab.start("glance-api");
    assert_eq!(lab.glance_image(&waiting)["status"], "queued", "nobody could delete it");

    // It may be tried again.
    forget_messages(&lab, &volume);
    let id = order(&lab, "admin", &volume, "qcow2", false);
    lab.wait_status(&volume, "available");
    assert_eq!(lab.glance_image(&id)["status"], "active");
    assert!(lab.messages(&volume).is_empty());
    lab.delete_images(&[&theirs, &waiting, &id]);
    lab.delete(&[&volume]);
    std::fs::remove_file(file).unwrap();
}

/// What the volume cannot do is found out after its image was made: that is deleted.
#[test]
fn the_image_of_a_failed_upload_is_deleted() {
    let lab = Lab::with_images();
    let volume = lab.volume_of_type("ceph");
    let image = format!("volume-{volume}");
    lab.ceph("rename", json!({"site": "a", "image": image, "to": "elsewhere"}));
    for disk_format in ["raw", "qcow2"] {
        let id = order(&lab, "admin", &volume, disk_format, false);
        lab.wait_status(&volume, "available");
        expect_message(&lab, &volume);
        forget_messages(&lab, &volume);
        let gone = lab.try_glance("images.get", json!([id]), json!({})).unwrap_err();
        assert_eq!(gone.code, Some(404), "{gone}");
    }
    lab.ceph("rename", json!({"site": "a", "image": "elsewhere", "to": image}));
    lab.delete(&[&volume]);
}

fn upload_to(lab: &Lab, image: &str, file: &Path) {
    lab.driver.call("image_from_file", json!({"ident": image, "path": file})).unwrap();
}

fn forget_messages(lab: &Lab, volume: &str) {
    lab.sql("UPDATE messages SET deleted = 1 WHERE resource_uuid = %s", &[json!(volume)]);
}
