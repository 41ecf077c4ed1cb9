//! The service dies while a volume changes its type or its backend: after a restart the volume is where it was
//! to be, whole, and nothing of the way there is left.

use serde_json::{Value, json};

use crate::common::{Lab, full, row_str, wait_until};
use crate::crash::{WHY, arm, died_at, expect_agreement, wait_quiet};

/// Of the whole image in a pool of site A.
fn whole(lab: &Lab, pool: &str, id: &str) -> Value {
    lab.ceph("checksum", json!({"site": "a", "pool": pool, "image": format!("volume-{id}"), "length": 0}))
}

#[test]
fn a_retype_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let points: &[&str] = match full() {
        true => &["retype:accepted", "retype:begun", "retype:reshaped"],
        false => &["retype:reshaped"],
    };
    let id = lab.volume_of_type("ceph");
    for point in points {
        for (kind, status) in [("replicated", "enabled"), ("ceph", "disabled")] {
            arm(&lab, point);
            lab.api("volumes.retype", json!([id, kind, "never"]), json!({}));
            died_at(&lab, point);
            wait_quiet(&lab, point);
            assert_eq!(lab.volume(&id)["replication_status"], status, "{point} {kind}");
            assert_eq!(lab.quota()[format!("volumes_{kind}")], json!([1, 0]), "{point} {kind}");
            expect_agreement(&lab, std::slice::from_ref(&id), point);
        }
    }
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_migration_dies_at_every_step() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let by_ceph: &[&str] = match full() {
        true => &["accepted", "begun", "copying", "copied", "moved", "left"],
        false => &["copied"],
    };
    let by_copying: &[&str] = match full() {
        true => &["target", "asked", "copying", "filled", "renamed", "swapped", "left"],
        false => &["renamed"],
    };
    let kind = lab.api("volume_types.create", json!(["anywhere"]), json!({}));
    let id = lab.volume_of_type("anywhere");
    let place = |host: &str| if host == "lab@ceph#ceph" { "volumes" } else { "volumes2" };
    let mut here = row_str(&lab.volume(&id), "host").to_owned();
    let write = json!({"site": "a", "pool": place(&here), "image": format!("volume-{id}"), "seed": 8, "offset": 1 << 29});
    lab.ceph("write", write);
    let sum = whole(&lab, place(&here), &id);
    let ways = by_ceph.iter().map(|p| (p, false)).chain(by_copying.iter().map(|p| (p, true)));
    for (step, force) in ways {
        let point = &format!("migrate_volume:{step}");
        let there = if here == "lab@ceph#ceph" { "lab@plain#plain" } else { "lab@ceph#ceph" };
        arm(&lab, point);
        lab.api("volumes.migrate_volume", json!([id, there, force, true]), json!({}));
        died_at(&lab, point);
        wait_quiet(&lab, point);
        let row = lab.volume(&id);
        assert_eq!((row_str(&row, "status"), row_str(&row, "host")), ("available", there), "{point}: {row}");
        assert_eq!(row["migration_status"], "success", "{point}");
        assert_eq!(whole(&lab, place(there), &id), sum, "{point}, force: {force}");
        wait_until(&format!("{point}: only one image and one row are left"), 60, || {
            let images = |pool: &str| lab.ceph("images", json!({"site": "a", "pool": pool}));
            images(place(&here)) == json!([])
                && images(place(there)) == json!([format!("volume-{id}")])
                && lab.rows("SELECT id FROM volumes WHERE deleted = 0", &[]).len() == 1
        });
        here = there.to_owned();
    }
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
    lab.api("volume_types.delete", json!([kind["id"]]), json!({}));
}
