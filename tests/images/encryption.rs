//! Encrypted volumes and images: of a plain image, into an image, and of that again; with a key manager that has
//! a key for each of them.

use serde_json::{Value, json};

use crate::common::{ImageFile, Lab, connector, row_str, wait_until};
use crate::upload;

const GIB: u64 = 1 << 30;
const SERVER: &str = "3f5a9f0e-0b1c-4c5d-8f2e-000000000003";

/// A volume of an image, not waited for.
fn order(lab: &Lab, image: &str, gib: u32, volume_type: &str) -> String {
    let kwargs = json!({"imageRef": image, "volume_type": volume_type});
    lab.api("volumes.create", json!([gib]), kwargs)["id"].as_str().unwrap().to_owned()
}

/// The image that an encrypted volume becomes.
fn uploaded(lab: &Lab, volume: &str) -> String {
    let image = upload::order(lab, "admin", volume, "raw", false);
    lab.wait_status(volume, "available");
    assert_eq!(lab.glance_image(&image)["status"], "active");
    image
}

#[test]
fn an_encrypted_volume_comes_of_an_image_and_becomes_one() {
    let lab = Lab::with_images();
    if !lab.only_scoria("stock cuts off the room of the header, and never clones an encrypted image") {
        return;
    }
    let kind = lab.encrypted_type("secret-image", 256, &[("volume_backend_name", "plain")]);
    let key = lab.fixed_key();
    let (qcow2, raw) = (ImageFile::new("qcow2", 24, 31), ImageFile::new("raw", 8, 32));
    let images = [lab.image_of(&qcow2, json!({})), lab.image_of(&raw, json!({}))];
    let volumes = images.each_ref().map(|image| order(&lab, image, 1, "secret-image"));
    for (volume, file) in volumes.iter().zip([&qcow2, &raw]) {
        lab.wait_status(volume, "available");
        assert!(lab.image_in("a", "volumes2", volume)["parent"].is_null(), "a plain image is no parent");
        assert_eq!(lab.checksum_inside("volumes2", volume, &key, file.size), file.checksum);
        lab.expect_opens("a", "volumes2", volume, 1);
    }
    let [volume, other] = &volumes;
    let image = uploaded(&lab, volume);
    let shown = lab.glance_image(&image);
    assert_eq!(shown["cinder_encryption_key_deletion_policy"], "on_image_deletion", "{shown}");
    assert!(shown["size"].as_u64().unwrap() > GIB, "{shown}");
    // The header counts, for the API.
    let again = order(&lab, &image, 2, "secret-image");
    lab.wait_status(&again, "available");
    assert!(lab.image_in("a", "volumes2", &again)["parent"].to_string().contains(&image), "it is a clone");
    assert_eq!(lab.checksum_inside("volumes2", &again, &key, qcow2.size), qcow2.checksum);
    lab.expect_opens("a", "volumes2", &again, 2);

    // The other way round: what the volume held goes, its key stays.
    lab.api("volumes.reimage", json!([other, images[0]]), json!({}));
    lab.wait_status(other, "available");
    assert_eq!(lab.checksum_inside("volumes2", other, &key, qcow2.size), qcow2.checksum);
    lab.expect_opens("a", "volumes2", other, 1);
    lab.delete(&[&again, volume, other]);
    lab.delete_images(&[&image, &images[0], &images[1]]);
    lab.api("volume_types.delete", json!([kind]), json!({}));
}

#[test]
#[ignore = "for the long matrix: the simulator dies at the same places"]
fn the_service_dies_while_it_encrypts() {
    let lab = Lab::with_images();
    if !lab.only_scoria("stock forgets what it was doing") {
        return;
    }
    let specs = [("volume_backend_name", "ceph"), ("replication_enabled", "<is> True")];
    let kind = lab.encrypted_type("secret-dying", 256, &specs);
    let (qcow2, raw) = (ImageFile::new("qcow2", 64, 33), ImageFile::new("raw", 64, 34));
    let images = [lab.image_of(&qcow2, json!({})), lab.image_of(&raw, json!({"store": "ceph-b"}))];
    let key = lab.fixed_key();
    let die = |point: &str| {
        lab.stop_service();
        lab.start_service_with(&[], &[("SCORIA_CRASH_AT", point)]);
    };
    for point in ["create_volume:downloading", "create_volume:image_created"] {
        die(point);
        let volumes = images.each_ref().map(|image| order(&lab, image, 1, "secret-dying"));
        lab.wait_service_gone(120);
        lab.start_service();
        for (volume, file) in volumes.iter().zip([&qcow2, &raw]) {
            let row = lab.wait_status(volume, "available");
            assert_eq!(row["replication_status"], "enabled", "{point}");
            assert_eq!(lab.checksum_inside("volumes", volume, &key, file.size), file.checksum, "{point}");
        }
        if point == "create_volume:image_created" {
            die("reimage:written");
            lab.api("volumes.reimage", json!([volumes[1], images[0]]), json!({}));
            lab.wait_service_gone(120);
            lab.start_service();
            lab.wait_status(&volumes[1], "available");
            assert_eq!(lab.checksum_inside("volumes", &volumes[1], &key, qcow2.size), qcow2.checksum);
            wait_until("the other site has it too", 120, || {
                lab.opened("b", "volumes", &volumes[1], &key) == Ok(GIB)
            });
        }
        lab.delete(&[&volumes[0], &volumes[1]]);
    }
    lab.delete_images(&[&images[0], &images[1]]);
    lab.api("volume_types.delete", json!([kind]), json!({}));
}

/// What Barbican has: an id and, in hex, the bytes of each secret.
fn secrets(lab: &Lab) -> Vec<(String, String)> {
    let found = lab.driver.call("secrets", json!({})).unwrap();
    let pair = |s: &Value| (row_str(s, "id").to_owned(), row_str(s, "hex").to_owned());
    found.as_array().unwrap().iter().map(pair).collect()
}

/// One of them.
#[track_caller]
fn secret(lab: &Lab, id: &str) -> String {
    let found = secrets(lab);
    found
        .iter()
        .find(|(known, _)| known == id)
        .unwrap_or_else(|| panic!("no secret {id}: {found:?}"))
        .1
        .clone()
}

/// The id of a volume's key.
fn key_of(lab: &Lab, volume: &str) -> String {
    row_str(&lab.volume(volume), "encryption_key_id").to_owned()
}

#[test]
#[ignore = "for the long matrix: Barbican is installed for it"]
fn barbican_keeps_a_key_for_each_volume_and_image() {
    let lab = Lab::with_barbican();
    let kind = lab.encrypted_type("secret-barbican", 256, &[("volume_backend_name", "plain")]);
    for (left, _) in secrets(&lab) {
        lab.driver.call("forget_secret", json!({"ident": left})).unwrap(); // by a test that failed
    }
    let first = lab.volume_of_type("secret-barbican");
    let id = key_of(&lab, &first);
    let key = secret(&lab, &id);
    assert_eq!(lab.opened("a", "volumes2", &first, &key), Ok(GIB));
    let made = lab.api("attachments.create", json!([first, connector("compute1"), SERVER]), json!({}));
    assert_eq!(made["connection_info"]["encrypted"], json!(true));
    let shown = lab.api("volumes.get_encryption_metadata", json!([first]), json!({}));
    assert_eq!(shown["encryption_key_id"], id.as_str());
    lab.api("attachments.delete", json!([made["id"]]), json!({}));
    lab.wait_status(&first, "available");
    if !lab.only_scoria("stock cuts off the room of the header of what comes of an image") {
        lab.delete(&[&first]);
        lab.api("volume_types.delete", json!([kind]), json!({}));
        return;
    }

    // Of a plain image, of a volume, and of an encrypted image: three ids more, and the image's.
    let file = ImageFile::new("raw", 8, 35);
    let plain = lab.image_of(&file, json!({}));
    let another = lab.image_of(&ImageFile::new("raw", 8, 36), json!({}));
    let second = order(&lab, &plain, 1, "secret-barbican");
    lab.wait_status(&second, "available");
    let key = secret(&lab, &key_of(&lab, &second));
    assert_eq!(lab.checksum_inside("volumes2", &second, &key, file.size), file.checksum);
    let clone = lab.create(json!({"source_volid": second, "volume_type": "secret-barbican"}));
    lab.wait_status(&clone, "available");
    let image = uploaded(&lab, &second);
    let third = order(&lab, &image, 2, "secret-barbican");
    lab.wait_status(&third, "available");
    assert_eq!(secrets(&lab).len(), 5);
    for copy in [&clone, &third] {
        assert_ne!(key_of(&lab, copy), key_of(&lab, &second));
        let key = secret(&lab, &key_of(&lab, copy));
        assert_eq!(lab.checksum_inside("volumes2", copy, &key, file.size), file.checksum);
    }
    lab.delete(&[&clone, &third, &second]);
    assert_eq!(secrets(&lab).len(), 2, "of the first volume, and of the image");

    // The image has another key than the volume that is written over, which keeps its own.
    let wide = order(&lab, &another, 2, "secret-barbican");
    lab.wait_status(&wide, "available");
    let key = secret(&lab, &key_of(&lab, &wide));
    lab.api("volumes.reimage", json!([wide, image]), json!({}));
    lab.wait_status(&wide, "available");
    assert_eq!(secret(&lab, &key_of(&lab, &wide)), key);
    assert_eq!(lab.checksum_inside("volumes2", &wide, &key, file.size), file.checksum);
    assert_eq!(lab.opened("a", "volumes2", &wide, &key), Ok(2 * GIB));

    // Without its key, or without Barbican, there is no volume, and its user is told.
    lab.pause("scoria-volume");
    let lost = lab.create(json!({"volume_type": "secret-barbican"}));
    lab.driver.call("forget_secret", json!({"ident": key_of(&lab, &lost)})).unwrap();
    lab.resume("scoria-volume");
    lab.wait_status(&lost, "error");
    lab.pause("scoria-volume");
    let silent = lab.create(json!({"volume_type": "secret-barbican"}));
    lab.stop("barbican");
    lab.resume("scoria-volume");
    lab.wait_status(&silent, "error");
    lab.start("barbican");
    for id in [&lost, &silent] {
        assert!(!lab.messages(id).is_empty());
        assert!(lab.image_in("a", "volumes2", id).is_null());
    }
    assert!(lab.service_log().contains("Key not found, uuid"), "the log says what is wrong");
    let unowned = key_of(&lab, &silent);
    lab.delete(&[&first, &wide, &lost, &silent]);
    // cinder-api keeps the key of a volume that no host took.
    lab.driver.call("forget_secret", json!({"ident": unowned})).unwrap();
    // Glance deletes the key that the API has made for the image.
    lab.delete_images(&[&image, &plain, &another]);
    assert_eq!(secrets(&lab), []);
    lab.api("volume_types.delete", json!([kind]), json!({}));
}
