//! Volumes made of images: cloned where Ceph can, downloaded where it cannot, refused when the image is none to use.

use serde_json::{Value, json};

use crate::common::{ImageFile, Lab, full, signal, wait_until};

/// Of the type `plain`; the others' is `volumes`.
const PLAIN_POOL: &str = "volumes2";

/// A volume of an image, not waited for.
fn order(lab: &Lab, image: &str, gib: u32, volume_type: &str) -> String {
    let kwargs = json!({"imageRef": image, "volume_type": volume_type});
    lab.api("volumes.create", json!([gib]), kwargs)["id"].as_str().unwrap().to_owned()
}

fn of_image(lab: &Lab, image: &str, volume_type: &str) -> String {
    let id = order(lab, image, 1, volume_type);
    lab.wait_status(&id, "available");
    id
}

/// What the API shows of the image of a volume.
fn image_metadata(lab: &Lab, id: &str) -> Value {
    let shown = lab.api("volumes.get", json!([id]), json!({}));
    assert_eq!(shown["bootable"], "true", "{shown}");
    shown["volume_image_metadata"].clone()
}

fn details(lab: &Lab, id: &str) -> Vec<String> {
    lab.messages(id)
        .iter()
        .map(|m| format!("{}/{}", m["action_id"].as_str().unwrap(), m["detail_id"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_raw_image_of_the_same_cluster_is_cloned() {
    let lab = Lab::with_images();
    let file = ImageFile::new("raw", 8, 11);
    let image = lab.image_of(&file, json!({"os_distro": "x", "min_ram": 64}));
    let volume = of_image(&lab, &image, "plain");
    let seen = lab.image_in("a", PLAIN_POOL, &volume);
    assert_eq!(seen["size"], 1u64 << 30, "{seen}");
    assert!(seen["parent"].to_string().contains(&image), "{seen}");
    assert_eq!(lab.checksum_of("a", PLAIN_POOL, &volume, file.size), file.checksum);
    let kept = image_metadata(&lab, &volume);
    let glance = lab.glance_image(&image);
    for (key, value) in [
        ("image_id", json!(image)),
        ("image_name", glance["name"].clone()),
        ("disk_format", json!("raw")),
        ("container_format", json!("bare")),
        ("min_disk", json!("0")),
        ("min_ram", json!("64")),
        ("os_distro", json!("x")),
        ("size", json!(file.size.to_string())),
        ("checksum", glance["checksum"].clone()),
    ] {
        assert_eq!(kept[key], value, "{key}: {kept}");
    }
    assert_eq!(kept.get("signature_verified"), None, "a clone is not looked at: {kept}");
    lab.delete(&[&volume]);
    lab.delete_images(&[&image]);
}

#[test]
fn a_volume_of_a_mirrored_type_depends_on_no_image() {
    let lab = Lab::with_images();
    if !lab.only_scoria("stock cannot mirror a clone of an image that is not mirrored") {
        return;
    }
    let file = ImageFile::new("raw", 8, 12);
    let image = lab.image_of(&file, json!({}));
    let volume = of_image(&lab, &image, "replicated");
    assert_eq!(lab.volume(&volume)["replication_status"], "enabled");
    let seen = lab.image("a", &volume);
    assert!(seen["parent"].is_null() && seen["state"] == "enabled", "{seen}");
    assert_eq!(lab.checksum_of("a", "volumes", &volume, file.size), file.checksum);
    lab.wait_mirrored(&volume, "b");
    lab.delete(&[&volume]);
    lab.delete_images(&[&image]);
}

#[test]
fn other_formats_and_other_clusters_are_downloaded() {
    let lab = Lab::with_images();
    let (qcow2, raw, vmdk) =
        (ImageFile::new("qcow2", 40, 13), ImageFile::new("raw", 40, 14), ImageFile::new("vmdk", 8, 15));
    let images = [
        (lab.image_of(&qcow2, json!({"visibility": "public"})), &qcow2),
        (lab.image_of(&raw, json!({"store": "ceph-b"})), &raw),
        (lab.image_of(&vmdk, json!({})), &vmdk),
    ];
    let volumes: Vec<String> = images.iter().map(|(image, _)| order(&lab, image, 1, "plain")).collect();
    for ((image, file), volume) in images.iter().zip(&volumes) {
        lab.wait_status(volume, "available");
        assert!(lab.image_in("a", PLAIN_POOL, volume)["parent"].is_null());
        assert_eq!(
            lab.checksum_of("a", PLAIN_POOL, volume, file.size),
            file.checksum,
            "{}",
            file.disk_format
        );
        let kept = image_metadata(&lab, volume);
        assert_eq!(
            (&kept["image_id"], &kept["signature_verified"]),
            (&json!(image), &json!("False")),
            "{kept}"
        );
    }
    // The user's own token.
    let made = lab.api_as(
        "demo",
        "volumes.create",
        json!([1]),
        json!({"imageRef": images[0].0, "volume_type": "plain"}),
    );
    let theirs = made["id"].as_str().unwrap().to_owned();
    lab.wait_status(&theirs, "available");
    lab.api_as("demo", "volumes.delete", json!([theirs]), json!({}));
    lab.wait_deleted(&theirs);
    lab.delete(&volumes.iter().map(String::as_str).collect::<Vec<_>>());
    lab.delete_images(&images.each_ref().map(|(id, _)| id.as_str()));
}

#[test]
fn an_image_that_cannot_be_used_is_refused() {
    let lab = Lab::with_images();
    let (raw, large) = (ImageFile::new("raw", 8, 16), ImageFile::new("qcow2", 1500, 17));
    let broken = ImageFile::new("qcow2", 8, 18);
    // `cluster_bits`, which Glance does not look at.
    broken.spoil(20, &63u32.to_be_bytes());
    let images =
        [lab.image_of(&raw, json!({})), lab.image_of(&large, json!({})), lab.image_of(&broken, json!({}))];
    // Glance has looked how large the disk is, and the API asks it.
    let kwargs = json!({"imageRef": images[1], "volume_type": "plain"});
    let refused = lab.try_api("volumes.create", json!([1]), kwargs).unwrap_err();
    assert_eq!(refused.code, Some(400), "{refused}");
    let (fits, nonsense) = (order(&lab, &images[0], 1, "plain"), order(&lab, &images[2], 1, "plain"));
    lab.wait_status(&nonsense, "error");
    assert!(!lab.volume(&nonsense)["host"].is_null(), "it was not sent round");
    assert_eq!(
        lab.rows(
            "SELECT id FROM volume_glance_metadata WHERE volume_id=%s AND deleted=0",
            &[json!(nonsense)]
        ),
        Vec::<Value>::new()
    );
    lab.wait_status(&fits, "available");
    if lab.only_scoria("stock has no message for images that are unacceptable") {
        assert_eq!(details(&lab, &nonsense), ["005/001"]);
        assert!(lab.image_in("a", PLAIN_POOL, &nonsense).is_null());
    }
    lab.delete(&[&fits, &nonsense]);
    lab.delete_images(&images.each_ref().map(String::as_str));
}

#[test]
fn a_volume_is_reimaged() {
    let lab = Lab::with_images();
    let (first, second) = (ImageFile::new("raw", 24, 19), ImageFile::new("qcow2", 16, 20));
    let images = [lab.image_of(&first, json!({"kept": "no"})), lab.image_of(&second, json!({"new": "yes"}))];
    let volume = of_image(&lab, &images[0], "ceph");
    let snapshot = lab.snapshot_of(&volume);
    lab.api("volumes.reimage", json!([volume, images[1]]), json!({}));
    lab.wait_status(&volume, "available");
    assert_eq!(lab.checksum_of("a", "volumes", &volume, second.size), second.checksum);
    let kept = image_metadata(&lab, &volume);
    assert_eq!((&kept["image_id"], &kept["new"]), (&json!(images[1]), &json!("yes")), "{kept}");
    assert_eq!(kept.get("kept"), None, "{kept}");
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&volume]);
    lab.delete_images(&images.each_ref().map(String::as_str));
}

#[test]
fn the_service_dies_while_it_downloads() {
    let lab = Lab::with_images();
    if !lab.only_scoria("stock forgets what it was doing") {
        return;
    }
    let (qcow2, raw) = (ImageFile::new("qcow2", 300, 21), ImageFile::new("raw", 300, 22));
    let images = [lab.image_of(&qcow2, json!({})), lab.image_of(&raw, json!({"store": "ceph-b"}))];
    let points: &[&str] = if full() {
        &["create_volume:downloading", "create_volume:image_created"]
    } else {
        &["create_volume:downloading"]
    };
    for &point in points {
        lab.stop_service();
        lab.start_service_with(&[], &[("SCORIA_CRASH_AT", point)]);
        let volumes: Vec<String> = images.iter().map(|image| order(&lab, image, 1, "replicated")).collect();
        lab.wait_service_gone(120);
        lab.start_service();
        for (volume, file) in volumes.iter().zip([&qcow2, &raw]) {
            lab.wait_status(volume, "available");
            assert_eq!(lab.checksum_of("a", "volumes", volume, file.size), file.checksum, "{point}");
            assert_eq!(lab.volume(volume)["replication_status"], "enabled");
        }
        lab.delete(&volumes.iter().map(String::as_str).collect::<Vec<_>>());
    }
    // A worker that dies under a download costs another one.
    let volume = order(&lab, &images[1], 1, "plain");
    wait_until("the download begins", 60, || lab.volume(&volume)["status"] != "creating");
    signal("KILL", &lab.worker_pids());
    lab.wait_status(&volume, "available");
    assert_eq!(lab.checksum_of("a", PLAIN_POOL, &volume, raw.size), raw.checksum);
    lab.delete(&[&volume]);
    lab.delete_images(&images.each_ref().map(String::as_str));
}
