//! Backups through cinder-api: full and incremental, of what is attached, of a snapshot, and back again.

use serde_json::{Value, json};

use crate::common::{Lab, row_str, wait_until};
use crate::{Backups, Who};

const SERVER: &str = "7d1f5a44-2a5e-4cf0-9c5f-1b3a0a9b6c21";

/// Copies of volumes that were made for backups and are there still.
fn copies(lab: &Lab) -> Vec<Value> {
    lab.rows("SELECT id, status FROM volumes WHERE deleted = 0 AND display_name LIKE 'backup-vol-%%'", &[])
}

#[test]
fn a_volume_comes_back_from_full_and_incremental_backups() {
    let lab = Lab::get();
    comes_back(&lab, Who::Stock);
}

#[test]
fn a_volume_comes_back_from_backups_of_ours() {
    let lab = Lab::get();
    if lab.only_scoria("scoria-backup is tested beside scoria-volume") {
        comes_back(&lab, Who::Scoria);
    }
}

fn comes_back(lab: &Lab, who: Who) {
    let backups = Backups::served_by(lab, who);
    let id = lab.volume_of_type("ceph");
    let first = lab.write("a", &id, 1);
    let full = backups.of(&id, json!({}));
    assert_eq!(row_str(&lab.volume(&id), "previous_status"), "backing-up");
    let second = lab.write("a", &id, 2);
    let more = backups.of(&id, json!({"incremental": true}));
    assert_eq!(row_str(&backups.row(&more), "parent_id"), full);
    lab.write("a", &id, 3);

    let new = backups.restore(&full, None);
    assert_ne!(new, id);
    assert_eq!(lab.checksum("a", &new), first);
    assert_eq!(backups.restore(&more, Some(&id)), id);
    assert_eq!(lab.checksum("a", &id), second);

    // What another volume held is gone, wherever it was.
    let other = lab.volume_of_type("ceph");
    let write = json!({"site": "a", "image": format!("volume-{other}"), "seed": 9, "offset": 700 << 20});
    lab.ceph("write", write);
    backups.restore(&more, Some(&other));
    let whole = |id: &str| {
        lab.ceph("checksum", json!({"site": "a", "image": format!("volume-{id}"), "length": 1 << 30}))
    };
    assert_eq!(whole(&other), whole(&id));

    let made = lab.create(json!({"backup_id": more, "volume_type": "ceph"}));
    let row = lab.wait_status(&made, "available");
    assert!(!row["launched_at"].is_null(), "{row}");
    assert_eq!(lab.checksum("a", &made), second);
    backups.wait(&more, "available");
    assert_eq!(row_str(&backups.row(&more), "restore_volume_id"), made);

    assert!(copies(lab).is_empty());
    lab.delete(&[&new, &made, &other]);
    backups.delete(&more);
    if who == Who::Scoria {
        // A proof that the one that is deleted has left nothing, and that the other one is whole.
        let out = lab.manage(&["backup", "audit"]);
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(said.contains("The data of 1 backups was looked for"), "{said}");
        assert!(out.status.success() && said.contains("Nothing is orphaned, and nothing is lost"), "{said}");
    }
    backups.delete(&full);
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
fn what_is_attached_and_mirrored_is_backed_up_as_it_is_and_a_snapshot_by_a_copy() {
    let lab = Lab::get();
    is_backed_up(&lab, Who::Stock);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn what_is_attached_and_mirrored_and_a_snapshot_are_backed_up_by_ours() {
    let lab = Lab::get();
    if lab.only_scoria("scoria-backup is tested beside scoria-volume") {
        is_backed_up(&lab, Who::Scoria);
    }
}

fn is_backed_up(lab: &Lab, who: Who) {
    let backups = Backups::served_by(lab, who);
    let id = lab.volume_of_type("replicated");
    let before = lab.write("a", &id, 1);
    let snapshot = lab.snapshot_of(&id);
    let after = lab.write("a", &id, 2);
    lab.api("volumes.attach", json!([id, SERVER, "/dev/vdb"]), json!({"mode": "rw"}));
    lab.wait_status(&id, "in-use");
    let live = backups.of(&id, json!({"force": true}));
    assert_eq!(lab.volume(&id)["status"], "in-use");
    let still = backups.of(&id, json!({"snapshot_id": snapshot, "force": true}));
    assert_eq!(lab.volume(&id)["status"], "in-use");
    assert_eq!(lab.snapshot(&snapshot)["status"], "available");
    wait_until("the copy of the snapshot is deleted", 60, || copies(lab).is_empty());
    assert_eq!(lab.quota()["volumes"], json!([1, 0]), "it was not counted");

    for (backup, content) in [(&live, &after), (&still, &before)] {
        let made = lab.create(json!({"backup_id": backup, "volume_type": "replicated"}));
        lab.wait_status(&made, "available");
        assert_eq!(&lab.checksum("a", &made), content);
        assert_eq!(lab.image("a", &made)["state"], "enabled");
        lab.delete(&[&made]);
    }
    lab.api("volumes.begin_detaching", json!([id]), json!({}));
    lab.api("volumes.detach", json!([id]), json!({}));
    wait_until("detached", 30, || lab.volume(&id)["status"] == "available");
    for backup in [&still, &live] {
        backups.delete(backup);
    }
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
fn a_backup_of_what_is_not_there_fails_and_lets_go_of_it() {
    let lab = Lab::get();
    if !lab.only_scoria("stock leaves the backup in creating for ever") {
        return;
    }
    let backups = Backups::start(&lab);
    let id = lab.volume_of_type("ceph");
    let snapshot = lab.snapshot_of(&id);
    let name = format!("volumes/volume-{id}@snapshot-{snapshot}");
    lab.tool(&["rbd", "a", "snap", "unprotect", &name]);
    lab.tool(&["rbd", "a", "snap", "rm", &name, "--no-progress"]);
    let backup = backups.order(&id, json!({"snapshot_id": snapshot}));
    wait_until("the backup fails", 60, || backups.row(&backup)["status"] == "error");
    assert!(!row_str(&backups.row(&backup), "fail_reason").is_empty());
    assert_eq!(lab.snapshot(&snapshot)["status"], "available");
    assert_eq!(lab.messages(&backup)[0]["detail_id"], "019");
    assert!(copies(&lab).is_empty());
    backups.delete(&backup);
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "for the long matrix: the sizes of images are tested on the simulator"]
fn an_encrypted_volume_comes_back_with_its_header() {
    let lab = Lab::get();
    an_encrypted_volume_comes_back(&lab, Who::Stock);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn an_encrypted_volume_comes_back_with_its_header_from_ours() {
    let lab = Lab::get();
    if lab.only_scoria("scoria-backup is tested beside scoria-volume") {
        an_encrypted_volume_comes_back(&lab, Who::Scoria);
    }
}

fn an_encrypted_volume_comes_back(lab: &Lab, who: Who) {
    let backups = Backups::served_by(lab, who);
    let kind = lab.encrypted_type("secret", 256, &[("volume_backend_name", "ceph")]);
    let id = lab.volume_of_type("secret");
    let size = lab.image("a", &id)["size"].as_u64().unwrap();
    let image = format!("volume-{id}");
    // cinder-backup's ceph driver backs up all of the image, but restores as much as the volume is large: what it
    // leaves out is at the end, where the room of the header has pushed it.
    let write = |seed: u32| {
        let data = json!({"site": "a", "image": image, "seed": seed, "offset": (1 << 30) - (1 << 20)});
        lab.ceph("write", data);
    };
    let whole = |id: &str| {
        let args = json!({"site": "a", "image": format!("volume-{id}"), "length": 1 << 30});
        assert_eq!(lab.image("a", id)["size"].as_u64(), Some(size), "the room of the header stays");
        lab.ceph("checksum", args)
    };
    write(1);
    let first = whole(&id);
    let full = backups.of(&id, json!({}));
    write(2);
    let second = whole(&id);
    let more = backups.of(&id, json!({"incremental": true}));
    write(3);
    for (backup, content) in [(&full, &first), (&more, &second)] {
        let made = lab.create(json!({"backup_id": backup, "volume_type": "secret"}));
        lab.wait_status(&made, "available");
        backups.wait(backup, "available");
        assert_eq!(&whole(&made), content);
        lab.expect_opens("a", "volumes", &made, 1);
        lab.delete(&[&made]);
    }
    if who == Who::Scoria {
        // One that is ordered has no user's token; with the fixed key it needs none.
        let third = whole(&id);
        let out = lab.manage(&["backup", "create", &id, "--incremental"]);
        assert!(out.status.success(), "{out:?}");
        let others = "SELECT id FROM backups WHERE deleted = 0 AND volume_id = %s AND id NOT IN (%s, %s)";
        let ordered = lab.rows(others, &[json!(id), json!(full), json!(more)]);
        let ordered = row_str(&ordered[0], "id").to_owned();
        assert_eq!(row_str(&backups.row(&ordered), "parent_id"), more);
        let made = lab.create(json!({"backup_id": ordered, "volume_type": "secret"}));
        lab.wait_status(&made, "available");
        backups.wait(&ordered, "available");
        assert_eq!(whole(&made), third);
        lab.expect_opens("a", "volumes", &made, 1);
        lab.delete(&[&made]);
        backups.delete(&ordered);
    }
    backups.restore(&more, Some(&id));
    assert_eq!(whole(&id), second);
    lab.expect_opens("a", "volumes", &id, 1);
    backups.delete(&more);
    backups.delete(&full);
    lab.delete(&[&id]);
    lab.api("volume_types.delete", json!([kind]), json!({}));
}
