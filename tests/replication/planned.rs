//! Failover while site A is alive: planned, so nothing may be lost and nothing may be forced.

use serde_json::json;

use crate::common::{CEPH, Lab, Subject, connector, row_str, wait_until};
use crate::drill::*;

/// Two volumes to B and back; `meanwhile` happens while they are served there, and may delete some.
fn there_and_back(lab: &Lab, volume_type: &str, meanwhile: impl FnOnce(&mut Vec<Known>)) {
    let mut volumes = mirrored_volumes(lab, volume_type, 2);
    fail_over(lab, &volumes);
    for v in &volumes {
        assert_eq!(lab.image("a", &v.id)["primary"], false, "demoted, not left as a second primary");
    }
    expect_served_from_b(lab, &volumes, false);
    rewrite_on_b(lab, &mut volumes);
    meanwhile(&mut volumes);
    fail_back(lab, &volumes);
    expect_served_from_a(lab, &volumes);
    clean(lab, &volumes);
}

#[test]
fn journal_mirrored_volumes_go_to_b_and_back_and_are_attached_and_deleted_there() {
    let lab = Lab::get();
    there_and_back(&lab, "replicated", |volumes| {
        // What goes through the scheduler (extend, snapshot) is refused there: the backend is disabled.
        let server = "8935016b-fde4-4085-b496-7ed3396873bc";
        let arguments = json!([volumes[1].id, connector("c1"), server]);
        let made = lab.api("attachments.create", arguments, json!({"mode": "rw"}));
        let attachment = made["id"].as_str().unwrap();
        lab.api("attachments.complete", json!([attachment]), json!({}));
        lab.api("attachments.delete", json!([attachment]), json!({}));
        let gone = volumes.remove(0);
        lab.delete(&[&gone.id]);
        assert!(lab.image("b", &gone.id).is_null());
    });
}

#[test]
fn snapshot_mirrored_volumes_go_to_b_and_back() {
    let lab = Lab::get();
    if lab.only_scoria("stock mirrors in journal mode only") {
        there_and_back(&lab, "replicated-snapshot", |_| {});
    }
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

fn nothing_just_written_is_lost(volume_type: &str) {
    let lab = Lab::get();
    if volume_type == "replicated-snapshot" && !lab.only_scoria("stock mirrors in journal mode only") {
        return;
    }
    let mut volumes = mirrored_volumes(&lab, volume_type, 3);
    write_and_order(&lab, &mut volumes, "a", "site-b");
    settle(&lab, &volumes, "b");
    write_and_order(&lab, &mut volumes, "b", "default");
    settle(&lab, &volumes, "a");
    clean(&lab, &volumes);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn nothing_is_lost_that_was_written_just_before_the_order_in_journal_mode() {
    nothing_just_written_is_lost("replicated");
}

#[test]
fn nothing_is_lost_that_was_written_just_before_the_order_in_snapshot_mode() {
    nothing_just_written_is_lost("replicated-snapshot");
}

#[test]
fn a_volume_that_is_not_replicated_is_out_of_reach_until_failback() {
    let lab = Lab::get();
    let plain = lab.volume_of_type("ceph");
    let volumes = mirrored_volumes(&lab, "replicated", 1);
    fail_over(&lab, &volumes);
    let row = lab.volume(&plain);
    assert_eq!((row_str(&row, "status"), row_str(&row, "replication_status")), ("error", "not-capable"));
    assert_eq!(row["previous_status"], "available");
    // New volumes cannot be placed there.
    let refused = lab.create(json!({"volume_type": "replicated"}));
    wait_until("no valid host", 60, || lab.volume(&refused)["status"] == "error");
    lab.delete(&[&refused]);
    settle(&lab, &volumes, "b");
    fail_back(&lab, &volumes);
    settle(&lab, &volumes, "a");
    if lab.subject == Subject::Scoria {
        let row = lab.volume(&plain);
        assert_eq!((row_str(&row, "status"), row_str(&row, "replication_status")), ("available", "disabled"));
    }
    clean(&lab, &volumes);
    lab.delete(&[&plain]);
}

#[test]
fn an_unknown_target_changes_nothing() {
    let lab = Lab::get();
    let volumes = mirrored_volumes(&lab, "replicated", 1);
    order(&lab, "site-of-dreams");
    assert_eq!(wait_decided(&lab), "enabled");
    let row = lab.service(CEPH);
    assert_eq!(row["disabled"], 0);
    let row = lab.volume(&volumes[0].id);
    if lab.subject == Subject::Scoria {
        assert_eq!((row_str(&row, "replication_status"), row_str(&row, "status")), ("enabled", "available"));
    }
    assert_eq!(lab.image("a", &volumes[0].id)["primary"], true);
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
    let mut volumes = mirrored_volumes(&lab, "replicated", 1);
    volumes.extend(mirrored_volumes(&lab, "replicated-snapshot", 1));
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
