//! Site A is lost for good, and site B becomes the backend's own while the service runs; then A comes back as its
//! peer, and the same is done the other way round.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::common::{CEPH, Lab, row_str, wait_until};
use crate::drill::*;

/// The service's configuration file, which is as it was when this is dropped.
struct Conf {
    path: PathBuf,
    before: String,
}

impl Conf {
    fn of(lab: &Lab) -> Conf {
        let path = PathBuf::from(&lab.env["SCORIA_CONF"]);
        let before = fs::read_to_string(&path).unwrap();
        Conf { path, before }
    }

    /// What an option of the backend's section says.
    fn option(&self, key: &str) -> String {
        let (_, section) = self.before.split_once("[ceph]\n").unwrap();
        let line = section.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_once('=').unwrap().1.trim().to_owned()
    }

    /// The ceph.conf of the peer.
    fn peer(&self) -> String {
        let device = self.option("replication_device");
        device.split(',').find_map(|pair| pair.strip_prefix("conf:")).unwrap().to_owned()
    }

    /// The backend's own cluster and its peer change places; the peer is called `site-a`.
    fn swap(&self) {
        let (head, section) = self.before.split_once("[ceph]\n").unwrap();
        let own = self.option("rbd_ceph_conf");
        let swapped = section
            .replacen(&format!("rbd_ceph_conf = {own}"), &format!("rbd_ceph_conf = {}", self.peer()), 1)
            .replacen(
                &self.option("replication_device"),
                &format!("backend_id:site-a,conf:{own},user:cinder"),
                1,
            );
        fs::write(&self.path, format!("{head}[ceph]\n{swapped}")).unwrap();
    }

    fn restore(&self) {
        fs::write(&self.path, &self.before).unwrap();
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        self.restore();
    }
}

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
