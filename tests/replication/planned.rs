//! Failover while site A is alive: planned, so nothing may be lost and nothing may be forced.

use serde_json::json;

use crate::common::{CEPH, Lab, Subject, connector, row_str, wait_until};
use crate::drill::*;

/// Both modes; stock has one.
fn modes(lab: &Lab) -> &'static [&'static str] {
    if lab.subject == Subject::Stock { &["replicated", "replicated"] } else { BOTH }
}

/// Sixteen megabytes on each volume, and the order at once: it has not reached the other site, let alone a
/// mirror snapshot.
fn write_and_order(lab: &Lab, volumes: &mut [Known], site: &str, target: &str) {
    let range = |v: &Known| json!({"site": site, "image": format!("volume-{}", v.id), "length": 16 << 20});
    for (n, v) in volumes.iter_mut().enumerate() {
        let mut args = range(v);
        args["seed"] = json!(700 + n + if site == "a" { 0 } else { 50 });
        v.sum = lab.ceph("write", args).as_str().unwrap().to_owned();
    }
    order(lab, target);
    assert_eq!(wait_decided(lab), if target == "default" { "enabled" } else { "failed-over" });
    let now = if site == "a" { "b" } else { "a" };
    for v in volumes.iter() {
        let mut args = range(v);
        args["site"] = json!(now);
        assert_eq!(lab.image(now, &v.id)["primary"], true);
        assert_eq!(lab.ceph("checksum", args), json!(v.sum), "volume {} on site {now}", v.id);
    }
}

/// One that is not replicated is out of reach meanwhile, and well again afterwards.
#[test]
fn volumes_of_both_modes_go_to_b_and_back_with_what_was_written_just_before_the_orders() {
    let lab = Lab::get();
    let plain = lab.volume_of_type("ceph");
    let mut volumes = mirrored(&lab, modes(&lab));
    write_and_order(&lab, &mut volumes, "a", "site-b");
    expect_failed_over(&lab, &volumes);
    expect_no_split(&lab, &volumes);
    for v in &volumes {
        assert_eq!(lab.image("a", &v.id)["primary"], false, "demoted, not left as a second primary");
    }
    expect_writable_on_b(&lab, &volumes, false);
    let row = lab.volume(&plain);
    assert_eq!((row_str(&row, "status"), row_str(&row, "replication_status")), ("error", "not-capable"));
    assert_eq!(row["previous_status"], "available");

    // What goes through the scheduler (create, extend, snapshot) is refused there: the backend is disabled.
    let refused = lab.create(json!({"volume_type": "replicated"}));
    wait_until("no valid host", 60, || lab.volume(&refused)["status"] == "error");
    lab.delete(&[&refused]);
    let server = "8935016b-fde4-4085-b496-7ed3396873bc";
    let arguments = json!([volumes[1].id, connector("c1"), server]);
    let made = lab.api("attachments.create", arguments, json!({"mode": "rw"}));
    let attachment = made["id"].as_str().unwrap();
    lab.api("attachments.complete", json!([attachment]), json!({}));
    lab.api("attachments.delete", json!([attachment]), json!({}));
    settle(&lab, &volumes, "b");
    let gone = volumes.remove(0);
    lab.delete(&[&gone.id]);
    assert!(lab.image("b", &gone.id).is_null());

    write_and_order(&lab, &mut volumes, "b", "default");
    expect_rows(&lab, &volumes, "enabled");
    expect_no_split(&lab, &volumes);
    settle(&lab, &volumes, "a");
    if lab.subject == Subject::Scoria {
        let row = lab.volume(&plain);
        assert_eq!((row_str(&row, "status"), row_str(&row, "replication_status")), ("available", "disabled"));
    }
    clean(&lab, &volumes);
    lab.delete(&[&plain]);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn orders_that_make_no_sense_change_nothing() {
    let lab = Lab::get();
    let volumes = mirrored_volumes(&lab, "replicated", 1);
    order(&lab, "site-of-dreams");
    assert_eq!(wait_decided(&lab), "enabled");
    let row = lab.service(CEPH);
    assert_eq!(row["disabled"], 0);
    assert_eq!(lab.image("a", &volumes[0].id)["primary"], true);
    if lab.subject == Subject::Scoria {
        expect_rows(&lab, &volumes, "enabled");
        let replica = lab.image("b", &volumes[0].id)["id"].clone();
        // Its data is fine, so that nothing has to be done, and nothing is.
        lab.manage(&["replication", "resync", "--backend", CEPH, "--discard", "site-b", "--yes"]);
        assert_eq!(lab.image("b", &volumes[0].id)["id"], replica, "a healthy copy is not thrown away");
        refused(&lab, &["resync", "--backend", CEPH, "--discard", "nowhere", "--yes"]);
        let said = refused(&lab, &move_order("site-b", &volumes, Some("--unplanned")));
        assert!(said.contains("Site default is alive"), "{said}");
        expect_rows(&lab, &volumes, "enabled");
        assert_eq!(lab.image("a", &volumes[0].id)["primary"], true);
        lab.wait_mirrored(&volumes[0].id, "b");
    }
    clean(&lab, &volumes);
}

/// A minute and a half of waiting for statuses; the simulator's suite has the same case.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn volumes_whose_copy_does_not_replay_stay_on_a_and_come_along_later() {
    let lab = Lab::get();
    if !lab.only_scoria("stock demotes such volumes and promotes the stale copy by force") {
        return;
    }
    let mut volumes = mirrored(&lab, &BOTH[..2]);
    lab.stop("rbd-mirror-b");
    let late = lab.volume_of_type("replicated");
    for v in &volumes {
        wait_until("B's daemon is known to be away", 90, || {
            lab.ceph("mirrored", json!({"image": format!("volume-{}", v.id), "to": "b"})) == json!(false)
        });
    }
    order(&lab, "site-b");
    wait_decided(&lab);
    for v in &volumes {
        assert_eq!(lab.volume(&v.id)["replication_status"], "failover-error");
    }
    assert_eq!(lab.volume(&late)["replication_status"], "failover-error");
    for id in volumes.iter().map(|v| &v.id).chain([&late]) {
        assert_eq!(lab.image("a", id)["primary"], true, "never without a primary");
        assert_eq!(lab.try_write("a", id, 11), "ok", "still served from site A");
        // The one column that says why, and what to do about it.
        let why = row_str(&lab.volume(id), "replication_extended_status").to_owned();
        assert!(why.contains("not replaying") && why.contains("served from default"), "{why}");
        assert!(why.contains("scoria-manage replication retry"), "{why}");
    }
    for (n, v) in volumes.iter_mut().enumerate() {
        v.sum = lab.write("a", &v.id, 300 + n as u32);
    }

    lab.start("rbd-mirror-b");
    lab.wait_mirroring();
    for (n, v) in volumes.iter().enumerate() {
        lab.wait_mirrored(&v.id, "b");
        lab.wait_replicated(&v.id, "a", 300 + n as u32);
    }
    lab.wait_mirrored(&late, "b");
    make_acceptable(&lab);
    order(&lab, "site-b");
    assert_eq!(wait_decided(&lab), "failed-over");
    for id in volumes.iter().map(|v| &v.id).chain([&late]) {
        assert_eq!(lab.volume(id)["replication_status"], "failed-over");
    }
    expect_served_from_b(&lab, &volumes, false);
    volumes.push(Known { sum: lab.checksum("b", &late), id: late });
    settle(&lab, &volumes, "b");
    fail_back(&lab, &volumes);
    settle(&lab, &volumes, "a");
    clean(&lab, &volumes);
}

/// After a failover that failed as a whole cinder-api refuses the next one; this is the way out.
fn make_acceptable(lab: &Lab) {
    let status = lab.service(CEPH)["replication_status"].clone();
    if status == "failover-error" || status == "error" {
        let out = lab.manage(&["replication", "reset", "--backend", CEPH, "--yes"]);
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "scoria-manage replication reset: {text}");
    }
}
