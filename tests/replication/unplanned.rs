//! Failover while site A is dead or hung, and the way back through an explicit resync.

use crate::common::{CEPH, Lab, Subject, row_str, wait_until};
use crate::drill::*;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Killed,
    Hung,
}

impl Loss {
    fn strike(self, lab: &Lab) {
        match self {
            Loss::Killed => lab.kill("site-a"),
            Loss::Hung => lab.pause("site-a"),
        }
    }

    fn mend(self, lab: &Lab) {
        match self {
            Loss::Killed => lab.start_site("site-a"),
            Loss::Hung => lab.resume_site("site-a"),
        }
    }
}

/// Seed of the first volume's data that only site B has.
const WRITTEN_ON_B: u32 = 400;

fn drill(lab: &Lab, volume_type: &str, loss: Loss, restart: bool) {
    let mut volumes = mirrored_volumes(lab, volume_type, 3);
    loss.strike(lab);
    if restart {
        lab.kill_service();
        lab.start_service();
        wait_until("the service is ready for a failover without site A", 90, || {
            lab.service(CEPH)["replication_status"] == "enabled"
        });
    }
    fail_over(lab, &volumes);
    expect_served_from_b(lab, &volumes, true);
    if lab.subject == Subject::Stock {
        loss.mend(lab);
        lab.forget_everything();
        return;
    }
    for (n, v) in volumes.iter_mut().enumerate() {
        v.sum = lab.write("b", &v.id, WRITTEN_ON_B + n as u32);
    }

    loss.mend(lab);
    refused_failback(lab, &volumes);
    resync(lab, &volumes);
    fail_back(lab, &volumes);
    expect_served_from_a(lab, &volumes);
    clean(lab, &volumes);
}

/// Both sides have a primary now: going back is refused, and nothing is discarded.
fn refused_failback(lab: &Lab, volumes: &[Known]) {
    for v in volumes {
        assert_eq!(lab.image("a", &v.id)["primary"], true, "the drill needs two primaries");
    }
    order(lab, "default");
    wait_decided(lab);
    for v in volumes {
        assert_eq!(lab.volume(&v.id)["replication_status"], "failover-error");
        assert_eq!(lab.image("a", &v.id)["primary"], true);
        assert_eq!(lab.image("b", &v.id)["primary"], true);
        assert_eq!(lab.checksum("b", &v.id), v.sum);
        assert_eq!(lab.try_write("b", &v.id, 12), "ok", "still served from site B");
    }
    for v in volumes {
        let why = row_str(&lab.volume(&v.id), "replication_extended_status").to_owned();
        let command = format!("scoria-manage replication resync --backend {CEPH} --discard default");
        assert!(why.contains("primary on both sites") && why.contains(&command), "{why}");
    }
}

/// The explicit order to discard what site A has.
fn resync(lab: &Lab, volumes: &[Known]) {
    let common = ["replication", "resync", "--backend", CEPH, "--discard", "default"];
    let dry = lab.manage(&[&common[..], &["--dry-run"]].concat());
    let text = String::from_utf8_lossy(&dry.stdout).into_owned() + &String::from_utf8_lossy(&dry.stderr);
    assert!(dry.status.success(), "{text}");
    for v in volumes {
        assert!(text.contains(&v.id), "the preview names volume {}:\n{text}", v.id);
        assert_eq!(lab.image("a", &v.id)["primary"], true, "a preview changes nothing");
    }
    let done = lab.manage(&[&common[..], &["--yes"]].concat());
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{text}");
    for (n, v) in volumes.iter().enumerate() {
        assert_eq!(lab.image("a", &v.id)["primary"], false, "{text}");
        // In snapshot mode what was written since the last mirror snapshot takes another one.
        lab.wait_replicated(&v.id, "b", WRITTEN_ON_B + n as u32);
        assert_eq!(lab.checksum("a", &v.id), v.sum, "site A has what was written on B");
        assert_eq!(lab.checksum("b", &v.id), v.sum);
    }
}

/// The sample has the harder form of it, with a restart of the service.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn site_a_killed_journal_mode() {
    drill(&Lab::get(), "replicated", Loss::Killed, false);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn site_a_hung_journal_mode() {
    drill(&Lab::get(), "replicated", Loss::Hung, false);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn site_a_killed_snapshot_mode() {
    let lab = Lab::get();
    if lab.only_scoria("stock mirrors in journal mode only") {
        drill(&lab, "replicated-snapshot", Loss::Killed, false);
    }
}

#[test]
fn site_a_hung_snapshot_mode() {
    let lab = Lab::get();
    if lab.only_scoria("stock mirrors in journal mode only") {
        drill(&lab, "replicated-snapshot", Loss::Hung, false);
    }
}

#[test]
fn the_service_restarts_while_site_a_is_dead_and_still_fails_over() {
    let lab = Lab::get();
    if lab.only_scoria("stock's driver does not come up without its primary") {
        drill(&lab, "replicated", Loss::Killed, true);
    }
}

#[test]
fn a_resync_without_confirmation_or_with_nothing_to_discard_does_nothing() {
    let lab = Lab::get();
    if !lab.only_scoria("a command of Scoria's") {
        return;
    }
    let volumes = mirrored_volumes(&lab, "replicated", 1);
    let replica = lab.image("b", &volumes[0].id)["id"].clone();
    let out = lab.manage(&["replication", "resync", "--backend", CEPH, "--discard", "site-b", "--yes"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    eprintln!("{text}");
    assert_eq!(lab.image("b", &volumes[0].id)["id"], replica, "a healthy copy is not thrown away");
    let out = lab.manage(&["replication", "resync", "--backend", CEPH, "--discard", "nowhere", "--yes"]);
    assert!(!out.status.success());
    assert_eq!(lab.image("a", &volumes[0].id)["primary"], true);
    lab.wait_mirrored(&volumes[0].id, "b");
    clean(&lab, &volumes);
}
