//! scoria-backup is killed in the midst of its work, by itself at a point that is named or by `kill -9` with all its
//! workers, and started again: what it had accepted is done, once.

use serde_json::json;

use crate::common::{Lab, full, signal, wait_until};
use crate::{Backups, Who};

const WHY: &str = "stock knows neither journal nor crash points";

/// Has the service die at `point` when `order` is given, and starts it again.
pub(crate) fn die<T>(lab: &Lab, backups: &Backups<'_>, point: &str, order: impl FnOnce() -> T) -> T {
    backups.restart_with(&[("SCORIA_CRASH_AT", point)]);
    let ordered = order();
    lab.wait_gone("scoria-backup", 120);
    assert!(
        lab.log_of("scoria-backup").contains(&format!("dying at {point},")),
        "{point}: it died, but not there"
    );
    lab.start("scoria-backup");
    ordered
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_chain_of_backups_is_made_restored_and_deleted_through_deaths() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let made: &[&str] = match full() {
        true => &[
            "create_backup:accepted",
            "create_backup:planned",
            "create_backup:taken",
            "create_backup:base",
            "create_backup:part",
            "create_backup:snapped",
            "create_backup:ended",
        ],
        false => &["create_backup:taken", "create_backup:part"],
    };
    let filled: &[&str] = match full() {
        true => &["restore_backup:accepted", "restore_backup:part", "restore_backup:ended"],
        false => &["restore_backup:part"],
    };
    let deleted: &[&str] = match full() {
        true => &["delete_backup:accepted", "delete_backup:unsnapped", "delete_backup:removed"],
        false => &["delete_backup:unsnapped"],
    };
    let backups = Backups::served_by(&lab, Who::Scoria);
    let id = lab.volume_of_type("ceph");
    let mut chain = Vec::new();
    for (seed, point) in (1..).zip(made) {
        let content = lab.write("a", &id, seed);
        let incremental = !chain.is_empty();
        let backup = die(&lab, &backups, point, || backups.order(&id, json!({"incremental": incremental})));
        backups.wait(&backup, "available");
        lab.wait_status(&id, "available");
        chain.push((backup, content));
    }
    let target = lab.volume_of_type("ceph");
    let (backup, content) = &chain[chain.len() - 1];
    for point in filled {
        die(&lab, &backups, point, || {
            lab.api("restores.restore", json!([backup]), json!({"volume_id": target}))
        });
        backups.wait(backup, "available");
        lab.wait_status(&target, "available");
        assert_eq!(&lab.checksum("a", &target), content, "{point}");
    }
    for (backup, content) in &chain {
        backups.restore(backup, Some(&target));
        assert_eq!(&lab.checksum("a", &target), content, "{backup}");
    }
    for point in deleted.iter().map(Some).chain([None; 8]).take(chain.len()) {
        let (backup, _) = chain.pop().unwrap();
        match point {
            Some(point) => {
                die(&lab, &backups, point, || lab.api("backups.delete", json!([backup]), json!({})));
                wait_until("the backup is deleted", 120, || backups.row(&backup)["deleted"] != json!(0));
            }
            None => backups.delete(&backup),
        }
    }
    lab.delete(&[&id, &target]);
    lab.wait_quota(json!({}));
}

#[test]
fn a_backup_and_a_restoration_survive_kill_9_of_service_and_workers() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let id = lab.volume_of_type("ceph");
    let image = format!("volume-{id}");
    let parts: u32 = if full() { 24 } else { 6 };
    for part in 0..parts {
        let write = json!({"site": "a", "image": image, "seed": part, "offset": u64::from(part) * (40 << 20),
                           "length": 32 << 20});
        lab.ceph("write", write);
    }
    let whole = |id: &str| {
        lab.ceph("checksum", json!({"site": "a", "image": format!("volume-{id}"), "length": 1 << 30}))
    };
    let content = whole(&id);
    let kill = || {
        signal("KILL", &lab.pids_of("scoria-backup"));
        lab.wait_gone("scoria-backup", 30);
        lab.start("scoria-backup");
    };
    let backup = backups.order(&id, json!({}));
    wait_until("the base is begun", 60, || {
        backups.images().unwrap().as_array().is_some_and(|l| !l.is_empty())
    });
    kill();
    backups.wait(&backup, "available");
    lab.wait_status(&id, "available");
    let target = lab.volume_of_type("ceph");
    lab.api("restores.restore", json!([backup]), json!({"volume_id": target}));
    wait_until("something is restored", 60, || {
        let first = json!({"site": "a", "image": format!("volume-{target}"), "length": 4096});
        let wanted = json!({"site": "a", "image": image, "length": 4096});
        lab.ceph("checksum", first) == lab.ceph("checksum", wanted)
    });
    kill();
    backups.wait(&backup, "available");
    lab.wait_status(&target, "available");
    assert_eq!(whole(&target), content);
    assert_eq!(backups.images().unwrap().as_array().unwrap().len(), 1);
    backups.delete(&backup);
    lab.delete(&[&id, &target]);
    lab.wait_quota(json!({}));
}
