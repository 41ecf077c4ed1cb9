//! One service takes the other's place: each restores, continues and deletes what the other has made.

use serde_json::{Value, json};

use crate::common::{Lab, full, row_str};
use crate::{Backups, POOL, Who};

const WHY: &str = "scoria-backup is tested beside scoria-volume";

/// Checksum of all of a volume.
fn whole(lab: &Lab, id: &str) -> Value {
    lab.ceph("checksum", json!({"site": "a", "image": format!("volume-{id}"), "length": 1 << 30}))
}

fn write(lab: &Lab, id: &str, seed: u32, offset: u64) {
    lab.ceph("write", json!({"site": "a", "image": format!("volume-{id}"), "seed": seed, "offset": offset}));
}

#[test]
fn what_ours_makes_stock_restores_continues_and_deletes_and_back() {
    let lab = Lab::get();
    if lab.only_scoria(WHY) {
        there_and_back(&lab, Who::Scoria, Who::Stock);
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn what_stock_makes_ours_restores_continues_and_deletes_and_back() {
    let lab = Lab::get();
    if lab.only_scoria(WHY) {
        there_and_back(&lab, Who::Stock, Who::Scoria);
    }
}

fn there_and_back(lab: &Lab, one: Who, other: Who) {
    let backups = Backups::served_by(lab, one);
    let id = lab.volume_of_type("ceph");
    write(lab, &id, 1, 0);
    write(lab, &id, 7, 900 << 20);
    let mut made = vec![(backups.of(&id, json!({})), whole(lab, &id))];
    write(lab, &id, 2, 0);
    made.push((backups.of(&id, json!({"incremental": true})), whole(lab, &id)));
    write(lab, &id, 3, 300 << 20);
    let snapshot = lab.snapshot_of(&id);
    made.push((backups.of(&id, json!({"snapshot_id": snapshot})), whole(lab, &id)));
    write(lab, &id, 4, 0);
    let last = backups.of(&id, json!({}));
    made.push((last.clone(), whole(lab, &id)));

    backups.hand_over_to(other);
    // In CI's sample the incremental one and that of the snapshot.
    let restored = if full() { 0..4 } else { 1..3 };
    for (backup, content) in &made[restored] {
        let new = backups.restore(backup, None);
        assert_eq!(&whole(lab, &new), content, "{backup}");
        lab.delete(&[&new]);
    }
    backups.restore(&made[1].0, Some(&id));
    assert_eq!(whole(lab, &id), made[1].1);
    write(lab, &id, 8, 100 << 20);
    let more = backups.of(&id, json!({"incremental": true}));
    assert_eq!(row_str(&backups.row(&more), "parent_id"), last);
    made.push((more, whole(lab, &id)));
    let new = backups.restore(&made[4].0, None);
    assert_eq!(whole(lab, &new), made[4].1);
    lab.delete(&[&new]);
    let (gone, _) = made.remove(1);
    backups.delete(&gone);

    if full() {
        backups.hand_over_to(one);
    }
    write(lab, &id, 9, 101 << 20);
    let again = backups.of(&id, json!({"incremental": true}));
    made.push((again, whole(lab, &id)));
    for (backup, content) in &made[made.len() - if full() { 2 } else { 1 }..] {
        let new = backups.restore(backup, None);
        assert_eq!(&whole(lab, &new), content, "{backup}");
        lab.delete(&[&new]);
    }
    for (backup, _) in made.iter().rev() {
        backups.delete(backup);
    }
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
    // Stock does not know the checksums of what it deletes.
    for object in backups.objects() {
        assert!(object.ends_with(".sums"), "{object}");
        lab.tool(&["rados", "a", "-p", POOL, "rm", &object]);
    }
}

/// Retention has taken the full backup, whose name the base has, and the next one out of the chain: what is left is as much stock's.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn what_retention_has_left_stock_restores_continues_and_deletes() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let id = lab.volume_of_type("ceph");
    let mut made = Vec::new();
    for number in 0..4u32 {
        write(&lab, &id, number + 1, u64::from(number) * (250 << 20));
        let backup = backups.of(&id, json!({"incremental": number > 0}));
        let date = format!("2026-01-{:02} 12:00:00", number + 1);
        lab.sql("UPDATE backups SET data_timestamp = %s WHERE id = %s", &[json!(date), json!(backup)]);
        made.push((backup, whole(&lab, &id)));
    }
    for order in [&["set", &id, "--keep-last", "2"][..], &["apply", &id, "--yes"], &["clear", &id]] {
        let out = lab.manage(&[&["backup", "retention"], order].concat());
        assert!(out.status.success(), "{order:?}: {out:?}");
    }
    let gone = made.drain(..2).map(|(backup, _)| backup).collect::<Vec<_>>();
    assert!(gone.iter().all(|backup| backups.row(backup)["deleted"] != json!(0)));
    let (oldest, newest) = (made[0].0.clone(), made[1].0.clone());
    assert!(backups.row(&oldest)["parent_id"].is_null());
    assert_eq!(row_str(&backups.row(&newest), "parent_id"), oldest);
    assert_eq!(backups.images().unwrap(), json!([format!("volume-{id}.backup.{}", gone[0])]));

    backups.hand_over_to(Who::Stock);
    write(&lab, &id, 9, 100 << 20);
    let more = backups.of(&id, json!({"incremental": true}));
    assert_eq!(row_str(&backups.row(&more), "parent_id"), newest);
    made.push((more, whole(&lab, &id)));
    for (backup, content) in &made {
        let new = backups.restore(backup, None);
        assert_eq!(&whole(&lab, &new), content, "{backup}");
        lab.delete(&[&new]);
    }
    for (backup, _) in made.iter().rev() {
        backups.delete(backup);
    }
    assert_eq!(backups.images().unwrap(), json!([]), "the base goes with its last backup");
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
    for object in backups.objects() {
        assert!(object.ends_with(".sums"), "{object}");
        lab.tool(&["rados", "a", "-p", POOL, "rm", &object]);
    }
}
