//! Images that Cinder does not know, on real Ceph: halves of them, moves between pools, and reverts of one that is
//! mirrored by snapshots.

use serde_json::{Value, json};

use crate::common::{Lab, wait_until};
use crate::daemon::{ask, good, rbd};

/// What a command that has to be refused says.
#[track_caller]
fn refused(lab: &Lab, words: &[&str]) -> String {
    let output = lab.manage(words);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{words:?}: {said}");
    said
}

fn site_names(lab: &Lab) -> [String; 2] {
    wait_until("both clusters are found", 60, || {
        ask(lab, &["site", "list"]).0.as_array().unwrap().len() == 2
    });
    ["a", "b"].map(|site| {
        let fsid = lab.tool(&["ceph", site, "fsid"]).trim().to_owned();
        good(lab, &["site", "show", &fsid])["name"].as_str().unwrap().to_owned()
    })
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn an_image_that_cinder_does_not_know_is_finished_moved_and_brought_back() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no sites") {
        return;
    }
    let [a, _] = site_names(&lab);

    // A client that dies in the midst of a removal leaves the names, and no header.
    rbd(&lab, "a", &["create", "volumes/half", "--size", "8M"]);
    let info: Value =
        serde_json::from_str(&rbd(&lab, "a", &["info", "volumes/half", "--format", "json"])).unwrap();
    let header = format!("rbd_header.{}", info["id"].as_str().unwrap());
    lab.tool(&["rados", "a", "-p", "volumes", "rm", &header]);
    let (found, well) = ask(&lab, &["rbd", "half-deleted", &a, "volumes"]);
    assert!(!well, "something is to be done: {found:#}");
    assert_eq!(
        (&found["images"][0]["image"], &found["images"][0]["fate"]),
        (&json!("half"), &json!("found"))
    );
    let done = good(&lab, &["rbd", "half-deleted", &a, "volumes", "--finish", "--yes"]);
    assert_eq!(done["images"][0]["fate"], "removed", "{done:#}");
    assert!(!rbd(&lab, "a", &["ls", "volumes"]).contains("half"));

    // A move, killed when it has begun, and finished by the next service.
    let write = |pool: &str, image: &str, seed: u64, offset: u64| {
        lab.ceph("write", json!({"site": "a", "pool": pool, "image": image, "seed": seed, "offset": offset}));
    };
    let sum = |pool: &str, image: &str, offset: u64| {
        lab.ceph("checksum", json!({"site": "a", "pool": pool, "image": image, "offset": offset}))
    };
    rbd(&lab, "a", &["create", "volumes/disk", "--size", "64M"]);
    write("volumes", "disk", 1, 0);
    rbd(&lab, "a", &["snap", "create", "volumes/disk@before"]);
    write("volumes", "disk", 2, 32 << 20);
    let before = (sum("volumes", "disk", 0), sum("volumes", "disk", 32 << 20));
    let dry = good(&lab, &["rbd", "move", &a, "volumes/disk", "volumes2", "--dry-run"]);
    assert_eq!(dry["what"], "to be moved", "{dry:#}");
    for point in ["move:begun", "move:data", "move:finished"] {
        let (from, to) = match rbd(&lab, "a", &["ls", "volumes"]).contains("disk") {
            true => ("volumes", "volumes2"),
            false => ("volumes2", "volumes"),
        };
        lab.stop_service();
        lab.start_service_with(&[], &[("SCORIA_CRASH_AT", point)]);
        assert!(lab.manage(&["rbd", "move", &a, &format!("{from}/disk"), to, "--no-wait"]).status.success());
        lab.wait_service_gone(120);
        lab.start_service();
        let last = || {
            let query = "SELECT outcome, outcome_detail FROM scoria_operations WHERE method = 'scoria.site.move' \
                         ORDER BY id DESC LIMIT 1";
            lab.rows(query, &[]).remove(0)
        };
        wait_until(&format!("{point}: the next service finishes it"), 120, || last()["outcome"].is_string());
        assert_eq!(last()["outcome"], "succeeded", "{point}: {}", last());
        assert!(!rbd(&lab, "a", &["ls", from]).contains("disk"), "{point}");
        assert_eq!((sum(to, "disk", 0), sum(to, "disk", 32 << 20)), before, "{point}");
        assert!(rbd(&lab, "a", &["snap", "ls", &format!("{to}/disk")]).contains("before"), "{point}");
    }

    // On its way by somebody else: to the same place it is brought back, to another it is left to him.
    let pool = if rbd(&lab, "a", &["ls", "volumes"]).contains("disk") { "volumes" } else { "volumes2" };
    let other = if pool == "volumes" { "volumes2" } else { "volumes" };
    let disk = format!("{pool}/disk");
    rbd(&lab, "a", &["migration", "prepare", &disk, &format!("{other}/theirs")]);
    for more in [&["--dry-run"][..], &["--undo"], &[]] {
        let said = refused(&lab, &[&["rbd", "move", &a, &disk, other], more].concat());
        assert!(said.contains("somebody else has begun that"), "{more:?}: {said}");
    }
    rbd(&lab, "a", &["migration", "abort", &format!("{other}/theirs")]);
    rbd(&lab, "a", &["migration", "prepare", &disk, &format!("{other}/disk")]);
    let back = good(&lab, &["rbd", "move", &a, &disk, other, "--undo"]);
    assert_eq!(back["what"], "brought back", "{back:#}");
    assert_eq!((sum(pool, "disk", 0), sum(pool, "disk", 32 << 20)), before);
    rbd(&lab, "a", &["snap", "rm", &format!("{disk}@before")]);
    rbd(&lab, "a", &["rm", &disk]);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn the_daemon_that_follows_a_primary_by_snapshots_is_not_in_the_way() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no sites") {
        return;
    }
    let [a, b] = site_names(&lab);
    let disk = "volumes/followed";
    rbd(&lab, "a", &["create", disk, "--size", "64M", "--image-feature", "layering,exclusive-lock"]);
    let write = |seed: u64| {
        lab.ceph("write", json!({"site": "a", "image": "followed", "seed": seed}));
    };
    let sum = || lab.ceph("checksum", json!({"site": "a", "image": "followed"}));
    write(1);
    let before = sum();
    rbd(&lab, "a", &["snap", "create", "volumes/followed@before"]);
    let copied = good(&lab, &["replicate", &a, disk, "--mode", "snapshot"]);
    assert_eq!(copied["images"][0]["fate"]["step"], "replaying", "{copied:#}");
    write(2);
    let status = || rbd(&lab, "a", &["status", disk]);
    wait_until("the daemon of the other site has it open", 120, || status().contains("watcher="));
    let done = good(&lab, &["rbd", "revert-fast", &a, "volumes/followed@before", "--yes"]);
    assert_eq!(done["bytes"], json!(1 << 20), "{done:#}");
    assert_eq!(sum(), before);
    assert!(status().contains("watcher="), "it was open all the time: {}", status());
    wait_until("the snapshot is copied", 120, || {
        lab.ceph("mirror_snapshot", json!({"site": "a", "image": "followed"}));
        rbd(&lab, "b", &["snap", "ls", disk]).contains("before")
    });
    let said = refused(&lab, &["rbd", "revert-fast", &b, "volumes/followed@before", "--yes"]);
    assert!(said.contains("it is a copy"), "{said}");

    // Schedules at all three levels, and who has it open besides.
    for words in [&[][..], &["--pool", "volumes"], &["--pool", "volumes", "--image", "followed"]] {
        good(&lab, &[&["schedule", "add", &a, "1d"], words].concat());
    }
    let below = good(&lab, &["schedule", "list", &a, "--recursive"]);
    let kinds: Vec<&str> =
        below["levels"].as_array().unwrap().iter().map(|l| l["level"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["global", "pool", "image"], "{below:#}");
    for words in [&["--pool", "volumes", "--image", "followed"][..], &["--pool", "volumes"], &[]] {
        good(&lab, &[&["schedule", "remove", &a], words].concat());
    }
    lab.ceph("hold", json!({"site": "a", "image": "followed"}));
    let said = refused(&lab, &["rbd", "revert-fast", &a, "volumes/followed@before", "--yes"]);
    assert!(said.contains("close it first"), "{said}");
    lab.ceph("release", json!({"site": "a", "image": "followed"}));
    rbd(&lab, "a", &["mirror", "image", "disable", disk]);
    rbd(&lab, "a", &["snap", "rm", "volumes/followed@before"]);
    rbd(&lab, "a", &["rm", disk]);
}
