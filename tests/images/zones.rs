//! Two Ceph clusters as two availability zones, each with a backend that is made while the service runs: a bootable
//! volume is a clone of what that cluster's image store has.

use serde_json::{Value, json};

use crate::common::{ImageFile, Lab, row_str};

/// Both clusters have it, and no other test's volumes are there by these types.
const POOL: &str = "volumes2";

fn manage(lab: &Lab, words: &[&str]) -> Value {
    let done = lab.manage(&[&["--format", "json"], words].concat());
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{words:?}: {said}");
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn two_sites_are_two_zones_and_each_clones_from_its_own_store() {
    let lab = Lab::with_images();
    if !lab.only_scoria("stock makes no backend while it runs") {
        return;
    }
    let file = ImageFile::new("raw", 8, 71);
    // Zone, site, its conf, glance's store there.
    let sites = [
        ("zone-a", "a", &lab.env["SITE_A_CONF"], "ceph"),
        ("zone-b", "b", &lab.env["SITE_B_CONF"], "ceph-b"),
    ];
    for (zone, _, conf, _) in sites {
        let (conf, az) = (format!("rbd_ceph_conf={conf}"), format!("backend_availability_zone={zone}"));
        let pool = format!("rbd_pool={POOL}");
        let options = ["-o", &pool, "-o", "rbd_user=cinder", "-o", &conf, "-o", &az];
        manage(&lab, &[&["backend", "create", zone, "--volume-type", zone], &options[..]].concat());
    }
    // The API remembers zones for an hour.
    lab.stop("cinder-api");
    lab.start("cinder-api");
    for (zone, site, _, store) in sites {
        let image = lab.image_of(&file, json!({"store": store}));
        let wanted = json!({"imageRef": image, "volume_type": zone, "availability_zone": zone});
        let made = lab.api("volumes.create", json!([1]), wanted);
        let volume = row_str(&made, "id").to_owned();
        lab.wait_status(&volume, "available");
        let row = lab.volume(&volume);
        assert_eq!(row["availability_zone"], zone, "{row}");
        assert_eq!(row["host"], format!("lab@{zone}#{zone}"), "{row}");
        assert_eq!(lab.api("volumes.get", json!([volume]), json!({}))["bootable"], "true");
        let seen = lab.image_in(site, POOL, &volume);
        assert!(seen["parent"].to_string().contains(&image), "cloned on site {site}: {seen}");
        assert_eq!(lab.checksum_of(site, POOL, &volume, file.size), file.checksum);
        lab.delete(&[&volume]);
        lab.delete_images(&[&image]);
    }
    for (zone, ..) in sites {
        manage(&lab, &["backend", "delete", zone, "--yes"]);
        lab.forget_type(zone);
    }
}
