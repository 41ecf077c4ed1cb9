//! A volume fails over and comes back: its chain of backups goes on from the site that serves it.

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, row_str, wait_until};
use crate::{Backups, Who, serve_with};

fn whole(lab: &Lab, site: &str, id: &str) -> Value {
    lab.ceph("checksum", json!({"site": site, "image": format!("volume-{id}"), "length": 1 << 30}))
}

fn write(lab: &Lab, site: &str, id: &str, seed: u32, offset: u64) {
    lab.ceph("write", json!({"site": site, "image": format!("volume-{id}"), "seed": seed, "offset": offset}));
}

/// Orders a failover of the backend and waits until its service's row says `status`.
fn fail_over(lab: &Lab, to: &str, status: &str) {
    lab.api("services.failover_host", json!([CEPH]), json!({"backend_id": to}));
    wait_until(&format!("the backend is {status}"), 240, || {
        let query = "SELECT replication_status FROM services WHERE deleted = 0 AND host = %s \
                     AND `binary` = 'cinder-volume'";
        row_str(&lab.rows(query, &[json!(CEPH)])[0], "replication_status") == status
    });
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_chain_goes_on_after_a_failover_and_after_the_way_back() {
    let lab = Lab::get();
    if !lab.only_scoria("stock's chain ends with a failover") {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let id = lab.volume_of_type("replicated");
    let replays = |site: &str| {
        let ask = json!({"image": format!("volume-{id}"), "to": site});
        wait_until(&format!("the copy on {site} replays"), 180, || {
            lab.ceph.call("mirrored", ask.clone()).is_ok_and(|found| found == json!(true))
        });
    };
    let incremental = |parent: &str| {
        let made = backups.of(&id, json!({"incremental": true}));
        assert_eq!(row_str(&backups.row(&made), "parent_id"), parent, "no forced full backup");
        made
    };
    write(&lab, "a", &id, 1, 0);
    write(&lab, "a", &id, 2, 900 << 20);
    replays("b");
    let full = backups.of(&id, json!({}));
    let mut made = vec![(full.clone(), whole(&lab, "a", &id))];
    write(&lab, "a", &id, 3, 100 << 20);
    let second = incremental(&full);
    made.push((second.clone(), whole(&lab, "a", &id)));

    fail_over(&lab, "site-b", "failed-over");
    lab.wait_status(&id, "available");
    write(&lab, "b", &id, 4, 200 << 20);
    let there = incremental(&second);
    made.push((there.clone(), whole(&lab, "b", &id)));
    for (backup, content) in &made {
        backups.restore(backup, Some(&id));
        assert_eq!(&whole(&lab, "b", &id), content, "{backup}");
    }
    replays("a");
    fail_over(&lab, "default", "enabled");
    lab.wait_status(&id, "available");
    write(&lab, "a", &id, 5, 300 << 20);
    made.push((incremental(&there), whole(&lab, "a", &id)));
    for (backup, content) in &made {
        backups.restore(backup, Some(&id));
        assert_eq!(&whole(&lab, "a", &id), content, "{backup}");
    }
    assert_eq!(backups.images().unwrap().as_array().unwrap().len(), 1);
    for (backup, _) in made.iter().rev() {
        backups.delete(backup);
    }
    let left = lab.ceph("info", json!({"site": "a", "image": format!("volume-{id}")}));
    assert_eq!(left["snapshots"], json!([]));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

/// The volume's site dies with the newest backup's snapshot, which was not mirrored yet: that backup is on the other site, with
/// data that the survivor has lost.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_chain_goes_on_after_a_forced_failover_that_has_lost_the_newest_point() {
    let lab = Lab::get();
    if !lab.only_scoria("stock's chain ends with a failover") {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    serve_with(&lab, "[DEFAULT]\nbackup_site = site-b\n", &[]);
    backups.wait_ready();
    let id = lab.volume_of_type("replicated");
    let points = |site: &str| -> Vec<String> {
        let seen = lab.ceph("info", json!({"site": site, "image": format!("volume-{id}")}));
        let names = seen["snapshots"].as_array().cloned().unwrap_or_default();
        names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let incremental = |parent: &str| {
        let made = backups.of(&id, json!({"incremental": true}));
        assert_eq!(row_str(&backups.row(&made), "parent_id"), parent, "no forced full backup");
        made
    };
    write(&lab, "a", &id, 1, 0);
    lab.wait_mirrored(&id, "b");
    let full = backups.of(&id, json!({}));
    let mut made = vec![(full.clone(), whole(&lab, "a", &id))];
    wait_until("the point of the first is on site b", 120, || points("b").len() == 1);
    let known = whole(&lab, "b", &id);
    assert_eq!(known, made[0].1);
    lab.pause("rbd-mirror-b");
    write(&lab, "a", &id, 2, 0);
    write(&lab, "a", &id, 3, 400 << 20);
    let lost = incremental(&full);
    made.push((lost.clone(), whole(&lab, "a", &id)));
    assert_eq!(points("a").len(), 2);

    lab.kill("site-a");
    lab.resume("rbd-mirror-b");
    fail_over(&lab, "site-b", "failed-over");
    lab.wait_status(&id, "available");
    assert_eq!(points("b").len(), 1, "the newest is lost");
    assert_eq!(whole(&lab, "b", &id), known, "and its data with it");
    write(&lab, "b", &id, 4, 800 << 20);
    let survived = incremental(&lost);
    made.push((survived.clone(), whole(&lab, "b", &id)));
    for (backup, content) in made.iter().rev() {
        backups.restore(backup, Some(&id));
        assert_eq!(&whole(&lab, "b", &id), content, "{backup}");
    }
    let verified = lab.manage(&["backup", "verify", &survived]);
    assert!(verified.status.success(), "{verified:?}");

    // The way back, once the operator has said which side is thrown away.
    lab.start_site("site-a");
    let resync = ["replication", "resync", "--backend", CEPH, "--discard", "default", "--yes"];
    let out = lab.manage(&resync);
    assert!(out.status.success(), "{out:?}");
    lab.wait_mirrored(&id, "a");
    fail_over(&lab, "default", "enabled");
    lab.wait_status(&id, "available");
    write(&lab, "a", &id, 5, 300 << 20);
    made.push((incremental(&survived), whole(&lab, "a", &id)));
    for (backup, content) in &made {
        backups.restore(backup, Some(&id));
        assert_eq!(&whole(&lab, "a", &id), content, "{backup}");
    }
    for (backup, _) in made.iter().rev() {
        backups.delete(backup);
    }
    assert_eq!(points("a"), Vec::<String>::new());
    assert_eq!(lab.ceph("images", json!({"site": "b", "pool": crate::POOL})), json!([]));
    lab.wait_mirrored(&id, "b");
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}
