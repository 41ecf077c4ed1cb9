//! Encrypted volumes: what lies in Ceph is LUKS from the first byte to the last, and only the key opens it,
//! whatever is done to the volume.

use serde_json::json;

use crate::common::luks::HEADER;
use crate::common::{Lab, connector, row_str, wait_for, wait_until};

const GIB: u64 = 1 << 30;
/// The id of the one key that the lab has.
const KEY: &str = "00000000-0000-0000-0000-000000000000";
const SERVER: &str = "41c97adb-6087-40a7-8751-e743622de208";

#[test]
fn only_the_key_opens_a_volume_and_what_is_made_of_it() {
    let lab = Lab::get();
    let kind = lab.encrypted_type("secret", 256, &[("volume_backend_name", "ceph")]);
    let id = lab.volume_of_type("secret");
    assert_eq!(row_str(&lab.volume(&id), "encryption_key_id"), KEY);
    assert_eq!(lab.image("a", &id)["size"], GIB + HEADER);
    lab.expect_opens("a", "volumes", &id, 1);
    let wrong = lab.opened("a", "volumes", &id, &"00".repeat(32)).unwrap_err();
    assert!(wrong.contains("Invalid password"), "{wrong}");
    assert_eq!(lab.api("volumes.get_encryption_metadata", json!([id]), json!({}))["encryption_key_id"], KEY);

    let made = lab.api("attachments.create", json!([id, connector("compute1"), SERVER]), json!({}));
    assert_eq!(made["connection_info"]["encrypted"], json!(true));
    lab.api("attachments.delete", json!([made["id"]]), json!({}));
    lab.wait_status(&id, "available");

    let header = lab.checksum("a", &id);
    let snapshot = lab.snapshot_of(&id);
    assert_eq!(row_str(&lab.snapshot(&snapshot), "encryption_key_id"), KEY);
    let larger = lab.create(json!({"snapshot_id": snapshot, "volume_type": "secret", "size": 2}));
    let clone = lab.create(json!({"source_volid": id, "volume_type": "secret"}));
    for (copy, gib) in [(&larger, 2), (&clone, 1)] {
        let row = lab.wait_status(copy, "available");
        assert_eq!(row_str(&row, "encryption_key_id"), KEY);
        assert_eq!(lab.checksum("a", copy), header, "the key material of the original");
        lab.expect_opens("a", "volumes", copy, gib);
    }
    lab.delete(&[&larger, &clone]);
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
    lab.api("volume_types.delete", json!([kind]), json!({}));
}

#[test]
fn an_extension_leaves_the_header_its_room() {
    let lab = Lab::get();
    if !lab.only_scoria("stock makes the image as large as the volume, and cuts off the end of its data") {
        return;
    }
    let kind = lab.encrypted_type("secret", 256, &[("volume_backend_name", "ceph")]);
    let id = lab.volume_of_type("secret");
    let header = lab.checksum("a", &id);
    lab.api("volumes.extend", json!([id, 2]), json!({}));
    wait_until("extended", 60, || lab.volume(&id)["size"] == 2);
    lab.wait_status(&id, "available");
    assert_eq!(lab.image("a", &id)["size"], 2 * GIB + HEADER);
    assert_eq!(lab.checksum("a", &id), header);
    lab.expect_opens("a", "volumes", &id, 2);
    let clone = lab.create(json!({"source_volid": id, "volume_type": "secret", "size": 3}));
    lab.wait_status(&clone, "available");
    lab.expect_opens("a", "volumes", &clone, 3);
    lab.delete(&[&clone]);
    lab.delete(&[&id]);
    lab.api("volume_types.delete", json!([kind]), json!({}));
}

#[test]
fn an_encrypted_volume_of_a_replicated_type_is_mirrored() {
    let lab = Lab::get();
    if !lab.only_scoria("stock forgets to mirror it") {
        return;
    }
    let specs = [("volume_backend_name", "ceph"), ("replication_enabled", "<is> True")];
    let kind = lab.encrypted_type("secret-replicated", 256, &specs);
    let id = lab.volume_of_type("secret-replicated");
    assert_eq!(lab.volume(&id)["replication_status"], "enabled");
    assert_eq!(lab.image("a", &id)["state"], "enabled");
    lab.wait_mirrored(&id, "b");
    let key = lab.fixed_key();
    wait_until("the other site has what the key opens", 120, || {
        lab.opened("b", "volumes", &id, &key) == Ok(GIB)
    });
    lab.delete(&[&id]);
    lab.api("volume_types.delete", json!([kind]), json!({}));
}

#[test]
fn a_retype_neither_encrypts_nor_decrypts() {
    let lab = Lab::get();
    let kind = lab.encrypted_type("secret", 256, &[("volume_backend_name", "ceph")]);
    let (plain, secret) = (lab.volume_of_type("ceph"), lab.volume_of_type("secret"));
    for (id, to) in [(&plain, "secret"), (&secret, "ceph")] {
        let before = lab.volume(id);
        for (policy, migration) in [("never", json!(null)), ("on-demand", json!("error"))] {
            lab.api("volumes.retype", json!([id, to, policy]), json!({}));
            let row = wait_for(&format!("the retype to {to} ({policy}) is refused"), 180, || {
                let row = lab.volume(id);
                (row["status"] == "available" && row["migration_status"] == migration).then_some(row)
            });
            for column in ["volume_type_id", "encryption_key_id", "host", "_name_id"] {
                assert_eq!(row[column], before[column], "{to} {policy}: {column}");
            }
            // Where the scheduler refuses, it leaves what was to be given back until it expires.
            lab.sql("UPDATE reservations SET deleted = 1 WHERE deleted = 0 AND delta < 0", &[]);
            wait_until("no second volume is left", 60, || {
                lab.rows("SELECT id FROM volumes WHERE deleted = 0 AND use_quota = 0", &[]).is_empty()
            });
        }
    }
    lab.expect_opens("a", "volumes", &secret, 1);
    lab.delete(&[&plain, &secret]);
    lab.wait_quota(json!({}));
    lab.api("volume_types.delete", json!([kind]), json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_migration_takes_the_whole_of_an_encrypted_volume_along() {
    let lab = Lab::get();
    if !lab
        .only_scoria("stock copies as much as the volume is large, and leaves the last two megabytes behind")
    {
        return;
    }
    // Any backend serves it.
    let kind = lab.encrypted_type("secret-anywhere", 256, &[]);
    let id = lab.volume_of_type("secret-anywhere");
    let ends = [("lab@ceph#ceph", "volumes"), ("lab@plain#plain", "volumes2")];
    let first = row_str(&lab.volume(&id), "host").to_owned();
    let (here, there) = if first == ends[0].0 { (ends[0], ends[1]) } else { (ends[1], ends[0]) };
    let image = format!("volume-{id}");
    // The last bytes, where a copy of 1 GiB would not reach.
    let write =
        json!({"site": "a", "pool": here.1, "image": image, "seed": 7, "offset": GIB + HEADER - (1 << 20)});
    lab.ceph("write", write);
    let whole =
        |pool: &str| lab.ceph("checksum", json!({"site": "a", "pool": pool, "image": image, "length": 0}));
    let sum = whole(here.1);
    for (from, to, force) in [(here, there, true), (there, here, false)] {
        lab.api("volumes.migrate_volume", json!([id, to.0, force, true]), json!({}));
        wait_until(&format!("moved to {}", to.0), 240, || lab.volume(&id)["host"] == to.0);
        wait_until("over", 60, || lab.volume(&id)["migration_status"] == "success");
        lab.wait_status(&id, "available");
        assert_eq!(whole(to.1), sum);
        assert_eq!(row_str(&lab.volume(&id), "encryption_key_id"), KEY);
        wait_until("the original is gone", 60, || lab.image_in("a", from.1, &id).is_null());
    }
    lab.expect_opens("a", here.1, &id, 1);
    lab.delete(&[&id]);
    lab.api("volume_types.delete", json!([kind]), json!({}));
}

#[test]
fn a_cipher_that_qemu_does_not_know_makes_no_volume() {
    let lab = Lab::get();
    // AES has no keys of 512 bits; those of XTS are counted twice, by QEMU and not by Cinder.
    let kind = lab.encrypted_type("secret-impossible", 512, &[("volume_backend_name", "ceph")]);
    let id = lab.create(json!({"volume_type": "secret-impossible"}));
    wait_until("it cannot be made", 120, || lab.volume(&id)["status"] == "error");
    assert!(!lab.messages(&id).is_empty());
    assert!(lab.image("a", &id).is_null());
    lab.order_delete(&id);
    wait_until("deleted", 60, || lab.volume(&id)["deleted"] != json!(0));
    lab.wait_quota(json!({}));
    lab.api("volume_types.delete", json!([kind]), json!({}));
}
