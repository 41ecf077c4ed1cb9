//! Site A is lost for good, and site B becomes the backend's own while the service runs; then A comes back as its
//! peer, and the same is done the other way round.

use serde_json::json;

use crate::common::conf::Conf;
use crate::common::{CEPH, Lab, row_str, wait_until};
use crate::drill::*;

/// What the tool says, and whether it succeeded.
fn tool(lab: &Lab, words: &[&str]) -> (String, bool) {
    let output = lab.manage(&[&["replication"], words].concat());
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (text, output.status.success())
}

#[track_caller]
fn carried_out(lab: &Lab, words: &[&str]) {
    let (text, well) = tool(lab, words);
    assert!(well, "{words:?}: {text}\n{}", lab.service_log());
}

#[track_caller]
fn expect_at_home(lab: &Lab, volumes: &[Known]) {
    let row = lab.service(CEPH);
    assert_eq!(
        (row_str(&row, "replication_status"), &row["active_backend_id"], &row["disabled"]),
        ("enabled", &json!(null), &json!(0))
    );
    for v in volumes {
        assert_eq!(lab.volume(&v.id)["replication_status"], "enabled");
    }
}

const ADOPT: &[&str] = &["adopt", "--backend", CEPH, "--yes"];

/// One way, and the same way back: there the old site is the peer, and its volumes are moved and adopted as any.
#[test]
fn a_backend_adopts_its_other_site_and_comes_home_the_same_way() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no such order") {
        return;
    }
    let conf = Conf::of(&lab);
    // By snapshots: with a journal each order waits half a minute for the other daemon, as `the_survivor…` does.
    let mut volumes = mirrored(&lab, &BOTH[1..2]);
    for (to, there, here) in [("site-b", "b", "a"), ("site-a", "a", "b")] {
        carried_out(&lab, &["failover", "--backend", CEPH, "--to", to, "--planned", "--yes"]);
        if to == "site-b" {
            conf.swap();
        } else {
            conf.restore();
        }
        carried_out(&lab, ADOPT);
        expect_at_home(&lab, &volumes);
        for v in &volumes {
            assert_eq!(lab.image(there, &v.id)["primary"], true);
            assert_eq!(lab.image(here, &v.id)["primary"], false);
            assert_eq!(lab.checksum(there, &v.id), v.sum, "volume {}", v.id);
        }
        settle(&lab, &volumes, there);
        volumes.iter_mut().for_each(|v| v.sum = lab.checksum(there, &v.id));
    }
    clean(&lab, &volumes);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn the_survivor_becomes_the_backends_own_and_the_old_site_its_peer() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no such order") {
        return;
    }
    let conf = Conf::of(&lab);
    let service = lab.service_pids()[0];
    let mut volumes = mirrored_volumes(&lab, "replicated", 1);
    lab.kill("site-a");
    fail_over(&lab, &volumes);
    let (refusal, well) = tool(&lab, ADOPT);
    assert!(!well && refusal.contains(&format!("rbd_ceph_conf = {}", conf.peer())), "{refusal}");

    conf.swap();
    carried_out(&lab, ADOPT);
    expect_at_home(&lab, &volumes);
    expect_served_from_b(&lab, &volumes, true);
    // Life goes on there, as on any site.
    let made = lab.create(json!({"volume_type": "replicated"}));
    assert_eq!(lab.wait_status(&made, "available")["replication_status"], "enabled");
    assert_eq!(lab.image("b", &made)["primary"], true);
    volumes[0].sum = lab.write("b", &volumes[0].id, 400);
    let sum = lab.write("b", &made, 401);

    // The old site comes back, with an image that is primary, too.
    lab.start_site("site-a");
    // The lab has written its own file anew.
    conf.swap();
    assert_eq!(lab.image("a", &volumes[0].id)["primary"], true);
    carried_out(&lab, &["resync", "--backend", CEPH, "--discard", "site-a", "--yes"]);
    lab.wait_replicated(&volumes[0].id, "b", 400);
    lab.wait_mirrored(&made, "a");
    lab.wait_replicated(&made, "b", 401);
    volumes.push(Known { id: made, sum });
    carried_out(&lab, &["failover", "--backend", CEPH, "--to", "site-a", "--planned", "--yes"]);
    assert_eq!(lab.service(CEPH)["active_backend_id"], "site-a");
    expect_served_from_a(&lab, &volumes);

    // And becomes the backend's own again: everything is called what it was.
    conf.restore();
    carried_out(&lab, ADOPT);
    expect_at_home(&lab, &volumes);
    settle(&lab, &volumes, "a");
    assert_eq!(lab.service_pids()[0], service, "nobody has restarted anything");
    wait_until("the scheduler hears of the other site", 30, || {
        lab.service_log().matches("the sites of the backend are others now").count() == 2
    });
    clean(&lab, &volumes);
}
