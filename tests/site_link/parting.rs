//! Parting: from a site that is dead, and with volumes of Cinder.

use serde_json::json;

use crate::scene::Bare;

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_dead_site_is_parted_on_the_living_side_and_the_rest_follows_when_it_is_back() {
    let lab = Bare::get();
    lab.start(&[]);
    lab.register("admin");
    lab.tool(&["start", "rbd-mirror-a", "rbd-mirror-b"]);
    let connect = ["site", "connect", "paris", "rome", "--pool", "images", "--create-pools"];
    lab.good(&connect);
    lab.rbd("a", &["create", "images/disk", "--size", "16M", "--image-feature", "layering,exclusive-lock"]);
    lab.good(&["replicate", "paris", "images/disk"]);
    lab.tool(&["kill", "site-b"]);
    let part = ["site", "disconnect", "paris", "rome", "--yes", "--force"];
    let said = lab.refused(&["site", "disconnect", "rome", "paris", "--yes", "--force"]);
    assert!(said.contains("Site rome, which is to stay, does not answer"), "{said}");
    let parted = lab.good(&part);
    assert_eq!(
        (&parted["alive"], &parted["strangers"]),
        (&json!(false), &json!(["no pool of paris knows rome"]))
    );
    assert!(parted["left"].to_string().contains("disconnect again when it is back"), "{parted:#}");
    assert_eq!(lab.mirroring("a", "images"), ("disabled".to_owned(), 0));
    assert_eq!(
        lab.users("a"),
        Vec::<String>::new(),
        "the dead site's daemon may come back before anybody looks"
    );
    assert_eq!(lab.good(&["site", "link", "list"])[0]["state"], "disconnecting");

    lab.tool(&["start", "site-b"]);
    crate::common::wait_until("rome answers", 120, || {
        lab.manage(&["site", "update", "rome"]).status.success()
    });
    lab.good(&part);
    lab.assert_strangers();
    assert_eq!(lab.images("b", "images"), ["disk"], "its copy is kept");
    assert_eq!(lab.images("a", "images"), ["disk"]);
    assert!(
        !lab.rbd("a", &["info", "images/disk"]).contains("journaling"),
        "what `replicate` had added is gone"
    );
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_volume_becomes_one_that_is_not_replicated_and_an_image_with_a_clone_there_is_kept_for_the_trash() {
    let lab = Bare::get();
    lab.start(&[]);
    lab.register("admin");
    lab.tool(&["start", "rbd-mirror-a", "rbd-mirror-b"]);
    lab.good(&["site", "connect", "paris", "rome", "--pool", "images", "--create-pools"]);
    let id = "457eb676-33da-42ec-9a8c-9293d545c337";
    let (volume, disk) = (format!("images/volume-{id}"), "images/disk");
    for image in [volume.as_str(), disk] {
        lab.rbd("a", &["create", image, "--size", "16M", "--image-feature", "layering,exclusive-lock"]);
    }
    lab.good(&["replicate", "paris", disk]);
    // As Scoria would have made it: journaling was added, and is to be taken away.
    lab.rbd("a", &["feature", "enable", &volume, "journaling"]);
    lab.rbd("a", &["mirror", "image", "enable", &volume]);
    lab.sql(
        "INSERT INTO volumes (id, size, status, attach_status, replication_status, replication_driver_data, deleted, \
         volume_type_id, use_quota) VALUES (%s, 1, 'available', 'detached', 'enabled', '{\"had_exclusive_lock\":true,\"had_journaling\":false}', 0, \
         (SELECT id FROM volume_types LIMIT 1), 0)",
        &[json!(id)],
    );
    crate::common::wait_until("both are copied", 120, || lab.images("b", "images").len() == 2);
    lab.rbd("a", &["snap", "create", "images/disk@base"]);
    crate::common::wait_until("the snapshot is copied", 120, || {
        lab.rbd("b", &["snap", "ls", disk]).contains("base")
    });
    lab.rbd("b", &["clone", "--rbd-default-clone-format", "2", "images/disk@base", "images/clone"]);

    lab.rbd("b", &["clone", "--rbd-default-clone-format", "2", "images/disk@base", "images/thrown-away"]);
    lab.rbd("b", &["trash", "mv", "images/thrown-away"]);

    let words = ["site", "disconnect", "paris", "rome", "--yes", "--force", "--purge-replicas"];
    for words in [&words[..5], &words] {
        let said = lab.refused(words);
        assert!(said.contains("images/clone") && said.contains("--flatten-backups"), "{said}");
        assert!(said.contains("images/thrown-away in the trash"), "{said}");
    }
    let parted = lab.good(&[&words[..], &["--flatten-backups"]].concat());
    assert_eq!(parted["removed"], json!([volume]), "{parted:#}");
    assert!(parted["kept"].to_string().contains("images/disk: it has 1 clones"), "{parted:#}");
    assert!(parted["left"].to_string().contains("images/thrown-away in the trash of rome"), "{parted:#}");
    assert!(!lab.rbd("b", &["info", "images/clone"]).contains("parent:"), "it is independent");
    assert!(lab.rbd("b", &["trash", "ls", "images"]).contains("thrown-away"), "the trash is not touched");
    let row = &lab
        .rows("SELECT replication_status, replication_driver_data FROM volumes WHERE id = %s", &[json!(id)])
        [0];
    assert_eq!(
        (&row["replication_status"], &row["replication_driver_data"]),
        (&json!("disabled"), &json!(null))
    );
    assert!(!lab.rbd("a", &["info", &volume]).contains("journaling"), "what replication had added is gone");
    assert_eq!(lab.images("b", "images"), ["clone", "disk"]);
    lab.assert_strangers();
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn the_survivor_of_a_disaster_becomes_a_data_centre_of_its_own() {
    let lab = Bare::get();
    lab.start(&[]);
    lab.register("admin");
    lab.tool(&["start", "rbd-mirror-a", "rbd-mirror-b"]);
    lab.good(&["site", "connect", "paris", "rome", "--pool", "images", "--create-pools"]);
    for image in ["disk", "parent"] {
        let words = ["create", "--size", "16M", "--image-feature", "layering,exclusive-lock"];
        lab.rbd("a", &[&words[..], &[&format!("images/{image}")]].concat());
    }
    lab.rbd("a", &["snap", "create", "images/parent@s"]);
    lab.rbd("a", &["snap", "protect", "images/parent@s"]);
    lab.good(&["replicate", "paris", "images"]);
    lab.rbd("a", &["clone", "images/parent@s", "images/child", "--image-feature", "layering,exclusive-lock"]);
    lab.good(&["replicate", "paris", "images"]);
    let order = ["site", "switch", "rome", "--independent", "--unplanned", "--yes"];
    let said = lab.refused(&order);
    assert!(said.contains("site disconnect rome paris --force"), "paris answers: {said}");

    lab.tool(&["kill", "site-a"]);
    let said = lab.refused(&["site", "switch", "rome", "--independent", "--yes"]);
    assert!(said.contains("--unplanned"), "{said}");
    // The first service dies when the images are its own, and peers are not gone yet.
    lab.start_to_die_at("independent:switched");
    assert!(lab.manage(&[&order[..], &["--no-wait"]].concat()).status.success());
    lab.wait_dead("independent:switched");
    lab.start(&[]);
    crate::common::wait_until("the next service finishes it", 180, || {
        let rows = lab.rows("SELECT outcome FROM scoria_operations ORDER BY id DESC LIMIT 1", &[]);
        rows[0]["outcome"].as_str() == Some("succeeded")
    });
    assert_eq!(lab.mirroring("b", "images"), ("disabled".to_owned(), 0));
    for image in ["disk", "parent", "child"] {
        assert!(!lab.rbd("b", &["info", &format!("images/{image}")]).contains("mirroring state"), "{image}");
        lab.ceph.call("write", json!({"site": "b", "image": image, "pool": "images", "seed": 1})).unwrap();
    }
    assert_eq!(lab.users("b"), Vec::<String>::new());
    let sites = lab.good(&["site", "list"]);
    assert_eq!((sites.as_array().unwrap().len(), &sites[0]["name"]), (1, &json!("rome")), "{sites:#}");
    assert_eq!(lab.good(&["site", "link", "list"]), json!([]));
    lab.tool(&["start", "site-a"]);
}
