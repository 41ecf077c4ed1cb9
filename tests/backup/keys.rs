//! Encrypted volumes whose keys are in Barbican: each volume and each backup has a key of its own, and when they are gone no
//! key is left.

use serde_json::{Value, json};

use crate::common::{Lab, row_str, wait_for, wait_until};
use crate::killed::die;
use crate::{Backups, Who};

/// Bytes that are read through a key.
const LENGTH: u64 = 16 << 20;

/// What Barbican has: an id and, in hex, the bytes of each secret.
fn secrets(lab: &Lab) -> Vec<(String, String)> {
    let found = lab.driver.call("secrets", json!({})).unwrap();
    let pair = |s: &Value| (row_str(s, "id").to_owned(), row_str(s, "hex").to_owned());
    found.as_array().unwrap().iter().map(pair).collect()
}

/// The bytes of one of them.
#[track_caller]
fn secret(lab: &Lab, id: &str) -> String {
    let found = secrets(lab);
    let one = found.iter().find(|(known, _)| known == id);
    one.unwrap_or_else(|| panic!("no secret {id} among {}", found.len())).1.clone()
}

#[track_caller]
fn expect_secrets(lab: &Lab, count: usize, why: &str) {
    wait_until(why, 30, || secrets(lab).len() == count);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn barbican_has_a_key_for_each_backup_and_none_is_left() {
    let lab = Lab::with_barbican();
    if !lab.only_scoria("scoria-backup is tested beside scoria-volume") {
        return;
    }
    for (left, _) in secrets(&lab) {
        lab.driver.call("forget_secret", json!({"ident": left})).unwrap(); // by a test that failed
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let kind = lab.encrypted_type("secret-backups", 256, &[("volume_backend_name", "ceph")]);
    let volume = lab.volume_of_type("secret-backups");
    let key_of = |id: &str| row_str(&lab.volume(id), "encryption_key_id").to_owned();
    let key_of_backup = |id: &str| row_str(&backups.row(id), "encryption_key_id").to_owned();
    let write = |seed: u32| {
        let image = format!("volume-{volume}");
        lab.ceph("write", json!({"site": "a", "image": image, "seed": seed, "offset": 8 << 20}));
    };
    // What somebody reads who has the volume's key.
    let inside = |id: &str| lab.checksum_inside("volumes", id, &secret(&lab, &key_of(id)), LENGTH);
    write(1);
    let first = inside(&volume);
    expect_secrets(&lab, 1, "the volume has a key");
    let full = backups.of(&volume, json!({}));
    write(2);
    let second = inside(&volume);
    assert_ne!(first, second);
    let more = backups.of(&volume, json!({"incremental": true}));
    let mut keys = vec![key_of(&volume), key_of_backup(&full), key_of_backup(&more)];
    assert!(keys[1..].iter().all(|id| secret(&lab, id) == secret(&lab, &keys[0])), "they are copies");
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 3, "each has its own");
    expect_secrets(&lab, 3, "of the volume and of two backups");

    // An order has no user's token: it fails, says so, and leaves no key.
    let out = lab.manage(&["backup", "create", &volume, "--incremental"]);
    assert!(!out.status.success(), "{out:?}");
    let ordered = lab.rows("SELECT id FROM backups WHERE deleted = 0 AND status = 'error'", &[]);
    let ordered = row_str(&ordered[0], "id").to_owned();
    assert!(row_str(&backups.row(&ordered), "fail_reason").contains("key"), "{}", backups.row(&ordered));
    lab.wait_status(&volume, "available");
    expect_secrets(&lab, 3, "the order has left no key");

    // Into new volumes, for which the API has a key made; the backup's takes its place.
    write(3);
    for (backup, content) in [(&full, &first), (&more, &second)] {
        let made = lab.create(json!({"backup_id": backup, "volume_type": "secret-backups"}));
        lab.wait_status(&made, "available");
        backups.wait(backup, "available");
        expect_secrets(&lab, 4, "the new volume has one key");
        assert_eq!(&inside(&made), content);
        assert!(![key_of(&volume), key_of_backup(&full), key_of_backup(&more)].contains(&key_of(&made)));
        lab.delete(&[&made]);
        expect_secrets(&lab, 3, "its key went with it");
    }
    // Into the volume itself.
    let former = key_of(&volume);
    backups.restore(&more, Some(&volume));
    assert_eq!(inside(&volume), second);
    assert_ne!(key_of(&volume), former);
    expect_secrets(&lab, 3, "the key of before went");
    backups.restore(&full, Some(&volume));
    assert_eq!(inside(&volume), first);
    let said = lab.manage(&["backup", "verify", &more]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("is good"), "{said:?}");

    // A death between the place for a copy and the copy: whatever becomes of the backup, its row has the key.
    let order = || backups.order(&volume, json!({"incremental": true}));
    let killed = die(&lab, &backups, "create_backup:key_reserved", order);
    let ended = wait_for("the backup ends", 120, || {
        let row = backups.row(&killed);
        (row["status"] != "creating").then_some(row)
    });
    assert!(ended["encryption_key_id"].is_string(), "{ended}");
    lab.wait_status(&volume, "available");
    backups.delete(&killed);
    expect_secrets(&lab, 3, "the key of a backup that was interrupted goes with it");

    backups.delete(&ordered);
    backups.delete(&more);
    expect_secrets(&lab, 2, "the key of a backup goes with it");
    backups.delete(&full);
    expect_secrets(&lab, 1, "that of the full one, too");
    assert_eq!(inside(&volume), first);
    lab.delete(&[&volume]);
    expect_secrets(&lab, 0, "no key is left");
    lab.api("volume_types.delete", json!([kind]), json!({}));
    lab.wait_quota(json!({}));
}
