//! What an operator does with `scoria-manage` around a failover, on real clusters: ask, try out, move one volume by
//! itself and bring it back, see whom it concerns, and mend a row.

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, connector, row_str, wait_until};
use crate::drill::*;
use crate::lag::expect_in_step;
use crate::unplanned::{Loss, restart_with};

fn clones_on_b(lab: &Lab) -> Vec<String> {
    let images = lab.ceph("images", json!({"site": "b"}));
    let names = images.as_array().unwrap().iter().filter_map(Value::as_str);
    names.filter(|name| name.starts_with("scoria-test-")).map(str::to_owned).collect()
}

/// The first of two volumes is what is tried out and moved.
fn used_as_by_an_operator(volume_types: [&str; 2], modes: [&str; 2]) {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no such tool") {
        return;
    }
    lab.stop_service();
    restart_with(&lab, "scoria_replication_poll_interval = 3");
    let mut volumes = mirrored(&lab, &volume_types);
    let (away, other) = (volumes[0].id.clone(), volumes[1].id.clone());
    let here = ["--backend", CEPH];

    let (preflight, code) = ask(&lab, &[&["preflight"], &here[..], &["--to", "site-b"]].concat());
    assert_eq!((&preflight["ready"], code), (&json!(true), 0), "{preflight:#}");
    let (plan, code) = ask(&lab, &[&["plan"], &here[..], &["--to", "site-b"]].concat());
    assert_eq!((&plan["counts"], code), (&json!({"move": 2}), 0), "{plan:#}");

    carry_out(&lab, &[&["test", "start"], &here[..], &["--volume", &away]].concat());
    let (tests, _) = ask(&lab, &["test", "list"]);
    assert_eq!((&tests[0]["volume"], &tests[0]["state"]), (&json!(away), &json!("ready")), "{tests:#}");
    let clones = clones_on_b(&lab);
    assert_eq!(clones.len(), 1);
    assert_eq!(tests[0]["clone"], format!("volumes/{}", clones[0]));
    assert_eq!(lab.ceph("checksum", json!({"site": "b", "image": clones[0]})), json!(volumes[0].sum));
    let written = lab.ceph("try_write", json!({"site": "b", "image": clones[0], "seed": 7}));
    assert_eq!(written, "ok");

    carry_out(
        &lab,
        &[&["failover"], &here[..], &["--to", "site-b", "--volume", &away, "--planned", "--yes"]].concat(),
    );
    let row = lab.volume(&away);
    assert_eq!((row_str(&row, "replication_status"), row_str(&row, "status")), ("failed-over", "available"));
    expect_served_from_b(&lab, &volumes[..1], false);
    assert_eq!(lab.volume(&other)["replication_status"], "enabled");
    assert_eq!(lab.image("a", &other)["primary"], true, "nobody has named it");
    let service = lab.service(CEPH);
    assert_eq!((row_str(&service, "replication_status"), &service["disabled"]), ("enabled", &json!(0)));

    let server = "8935016b-fde4-4085-b496-7ed3396873bc";
    let made = lab.api("attachments.create", json!([away, connector("c1"), server]), json!({"mode": "rw"}));
    let (affected, code) = ask(&lab, &[&["affected"], &here[..]].concat());
    assert_eq!(code, 0);
    assert_eq!(affected["attachments"][0]["server"], server, "{affected:#}");
    lab.api("attachments.delete", json!([made["id"]]), json!({}));
    wait_until("detached", 30, || lab.volume(&away)["status"] == "available");

    // Nobody has stayed at the old site; rbd-mirror, which has the copy open there, is not fenced.
    carry_out(&lab, &[&["fence"], &here[..], &["--site", "default", "--yes"]].concat());
    let (fences, code) = ask(&lab, &[&["fences"], &here[..]].concat());
    assert_eq!(code, 0);
    assert!(fences.as_array().unwrap().iter().all(|f| f["state"] != "laid"), "{fences:#}");

    rewrite(&lab, &mut volumes[..1], "b");
    carry_out(&lab, &[&["failover"], &here[..], &["--to", "default", "--volume", &away, "--yes"]].concat());
    assert_eq!(lab.volume(&away)["replication_status"], "enabled");
    expect_served_from_a(&lab, &volumes[..1]);
    assert_eq!(clones_on_b(&lab), clones, "a drill is nobody's business");
    carry_out(&lab, &[&["test", "stop"], &here[..]].concat());
    assert!(clones_on_b(&lab).is_empty());

    let (audit, code) = ask(&lab, &[&["audit"], &here[..]].concat());
    assert_eq!((&audit["drifts"], code), (&json!([]), 0), "{audit:#}");
    lab.sql("UPDATE volumes SET replication_status = 'disabled' WHERE id = %s", &[json!(other)]);
    let (audit, code) = ask(&lab, &[&["audit"], &here[..]].concat());
    assert_eq!((&audit["drifts"][0]["volume"], code), (&json!(other), 1), "{audit:#}");
    carry_out(&lab, &[&["audit"], &here[..], &["--repair", "--yes"]].concat());
    assert_eq!(lab.volume(&other)["replication_status"], "enabled");

    for (v, mode) in volumes.iter().zip(modes) {
        expect_in_step(&lab, v, mode);
    }
    clean(&lab, &volumes);
}

#[test]
fn one_volume_is_tried_out_moved_and_brought_back_by_the_operators_tool() {
    used_as_by_an_operator(["replicated-snapshot", "replicated"], ["snapshot", "journal"]);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn the_same_of_one_that_is_mirrored_by_journal() {
    used_as_by_an_operator(["replicated", "replicated-snapshot"], ["journal", "snapshot"]);
}

/// The newest snapshots that have arrived are shown, of both modes, while their site is away.
fn tried_out_without_site_a(loss: Loss) {
    let lab = &Lab::get();
    if !lab.only_scoria("stock has no drills") {
        return;
    }
    let volumes = mirrored(lab, &BOTH[..2]);
    let mut snapshots = Vec::new();
    for v in &volumes {
        let snapshot = lab.snapshot_of(&v.id);
        let image = format!("volume-{}", v.id);
        let there = json!({"site": "b", "image": image, "snapshot": format!("snapshot-{snapshot}")});
        wait_until("the snapshot has arrived", 90, || {
            lab.ceph.call("checksum", there.clone()).is_ok_and(|sum| sum == v.sum)
        });
        snapshots.push(snapshot);
    }
    loss.strike(lab, "site-a");
    carry_out(lab, &["test", "start", "--backend", CEPH]);
    let (tests, _) = ask(lab, &["test", "list"]);
    assert_eq!(tests.as_array().unwrap().len(), volumes.len(), "{tests:#}");
    for test in tests.as_array().unwrap() {
        assert_eq!(test["state"], "ready", "{tests:#}");
        let clone = row_str(test, "clone").trim_start_matches("volumes/").to_owned();
        let v = volumes.iter().find(|v| test["volume"] == v.id).unwrap();
        assert_eq!(lab.ceph("checksum", json!({"site": "b", "image": clone})), json!(v.sum));
        assert_eq!(lab.ceph("try_write", json!({"site": "b", "image": clone, "seed": 7})), "ok");
        assert_eq!(lab.image("b", &v.id)["primary"], false, "a drill is no failover");
    }
    carry_out(lab, &["test", "stop", "--backend", CEPH]);
    assert!(clones_on_b(lab).is_empty());
    loss.mend(lab, "site-a");
    expect_no_split(lab, &volumes);
    settle(lab, &volumes, "a");
    for snapshot in &snapshots {
        lab.delete_snapshot(snapshot);
    }
    clean(lab, &volumes);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_drill_while_site_a_is_killed() {
    tried_out_without_site_a(Loss::Killed);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_drill_while_site_a_hangs() {
    tried_out_without_site_a(Loss::Hung);
}
