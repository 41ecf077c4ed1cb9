//! The site of the backups is lost, hangs or is full while there is work on it: what Cinder says of it, that nobody's
//! data is left or destroyed, and that everything goes on when the site is back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Lab, row_str, wait_for, wait_until};
use crate::{Backups, POOL, Who, left, serve_with};

const WHY: &str = "stock's site of the backups is that of the volumes here";
/// Seconds that work may take to give up a site (`scoria_backup_site_timeout` is two minutes), and to tidy up after it.
const GIVEN_UP: u64 = 600;

/// How the site is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Killed,
    Hung,
}

impl Loss {
    fn strike(self, lab: &Lab) {
        match self {
            Loss::Killed => lab.kill("site-b"),
            Loss::Hung => lab.pause("site-b"),
        }
    }

    fn mend(self, lab: &Lab) {
        match self {
            Loss::Killed => lab.start_site("site-b"),
            Loss::Hung => lab.resume_site("site-b"),
        }
    }
}

/// scoria-backup whose backups go to site b, at so many MiB a second each (0: as quick as can be).
fn serve(lab: &Lab, bandwidth: u32) {
    let options =
        format!("[DEFAULT]\nbackup_site = site-b\n[scoria]\nscoria_backup_bandwidth = {bandwidth}\n");
    serve_with(lab, &options, &[]);
}

/// Checksum of all of a volume.
fn whole(lab: &Lab, id: &str) -> Value {
    lab.ceph("checksum", json!({"site": "a", "image": format!("volume-{id}"), "length": 1 << 30}))
}

/// 64 MiB at four places.
fn write(lab: &Lab, id: &str, seed: u32) {
    for part in 0..4u32 {
        let write = json!({"site": "a", "image": format!("volume-{id}"), "seed": seed * 10 + part,
                           "length": 16 << 20, "offset": u64::from(part) * (200 << 20)});
        lab.ceph("write", write);
    }
}

/// Snapshots on a volume's image.
fn points(lab: &Lab, id: &str) -> usize {
    let seen = lab.ceph("info", json!({"site": "a", "image": format!("volume-{id}")}));
    seen["snapshots"].as_array().map_or(0, Vec::len)
}

/// Bytes that the open operation on a backup has come over, as the journal has it.
fn reached(lab: &Lab, backup: &str) -> u64 {
    let query = "SELECT s.data FROM scoria_operation_steps s JOIN scoria_operations o ON o.id = s.operation_id \
                 WHERE o.resource_id = %s AND o.state <> 'closed' AND s.resource_id = ''";
    let rows = lab.rows(query, &[json!(backup)]);
    let data = rows.first().and_then(|row| row["data"].as_str().map(str::to_owned)).unwrap_or_default();
    let step: Value = serde_json::from_str(&data).unwrap_or_default();
    step["reached"].as_u64().unwrap_or(0)
}

fn in_the_midst(lab: &Lab, backups: &[&str]) {
    for backup in backups {
        wait_until(&format!("{backup} is in the midst"), 120, || reached(lab, backup) > 0);
    }
}

/// Until a backup has failed; what its row says.
fn failed(lab: &Lab, backups: &Backups<'_>, backup: &str, detail: &str) -> String {
    let row = wait_for(&format!("backup {backup} fails"), GIVEN_UP, || {
        let row = backups.row(backup);
        assert_ne!(row["status"], "available", "{row}");
        (row["status"] == "error").then_some(row)
    });
    assert_eq!(lab.messages(backup)[0]["detail_id"], detail, "{row}");
    row_str(&row, "fail_reason").to_owned()
}

/// What a backup holds is what it was made of.
fn comes_back(lab: &Lab, backups: &Backups<'_>, backup: &str, content: &Value) {
    let new = backups.restore(backup, None);
    assert_eq!(&whole(lab, &new), content, "{backup}");
    lab.delete(&[&new]);
    let out = lab.manage(&["backup", "verify", backup]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.contains("what was written"), "{text}{out:?}");
}

/// A full backup, an incremental one, a restoration and a deletion are under way when the site goes.
fn lost_in_the_midst(loss: Loss) {
    let lab = &Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(lab, Who::Scoria);
    serve(lab, 0);
    backups.wait_ready();
    let ids: Vec<String> = (0..4).map(|_| lab.volume_of_type("ceph")).collect();
    let [new, chained, restored, forgotten] = [0, 1, 2, 3].map(|at| ids[at].as_str());
    let target = lab.volume_of_type("ceph");
    for (seed, id) in (1..).zip(&ids) {
        write(lab, id, seed);
    }
    let made: Vec<(String, Value)> =
        ids[1..].iter().map(|id| (backups.of(id, json!({})), whole(lab, id))).collect();
    let [parent, source, gone] = [0, 1, 2].map(|at| made[at].0.as_str());
    write(lab, chained, 7);

    serve(lab, 4);
    backups.wait_ready();
    let full = backups.order(new, json!({}));
    let more = backups.order(chained, json!({"incremental": true}));
    lab.api("restores.restore", json!([source]), json!({"volume_id": target}));
    in_the_midst(lab, &[&full, &more, source]);
    lab.api("backups.delete", json!([gone]), json!({}));
    wait_until("the deletion is taken on", 60, || {
        let query = "SELECT id FROM scoria_operations WHERE resource_id = %s AND method = 'delete_backup'";
        !lab.rows(query, &[json!(gone)]).is_empty()
    });
    loss.strike(lab);

    // What is asked for while it is away.
    for (backup, id) in [(&full, new), (&more, chained)] {
        let why = failed(lab, &backups, backup, "020");
        assert!(why.contains("does not answer") || why.contains("cannot connect"), "{why}");
        lab.wait_status(id, "available");
    }
    wait_until("the restoration fails", GIVEN_UP, || lab.volume(&target)["status"] == "error_restoring");
    backups.wait(source, "available");
    assert_eq!(lab.messages(source)[0]["detail_id"], "026");
    let end = wait_for("the deletion ends", GIVEN_UP, || {
        let row = backups.row(gone);
        (row["status"] == "error" || row["deleted"] != json!(0)).then_some(row)
    });
    if end["deleted"] == json!(0) {
        assert_eq!(lab.messages(gone)[0]["detail_id"], "025", "{end}");
    }
    // Whatever comes to it now fails at once, and lets go of the volume.
    assert!(!lab.manage(&["backup", "create", restored]).status.success());
    lab.wait_status(restored, "available");
    let query = "SELECT id FROM backups WHERE volume_id = %s AND deleted = 0 AND status = 'error'";
    let late: Vec<String> =
        lab.rows(query, &[json!(restored)]).iter().map(|row| row_str(row, "id").to_owned()).collect();
    assert_eq!(late.len(), 1);
    assert_eq!(points(lab, restored), 1, "that of the backup that is there");
    assert_eq!(points(lab, new), 0, "what was taken on the side that lives is gone");
    assert_eq!(points(lab, chained), 1, "that of the parent stays");

    loss.mend(lab);
    serve(lab, 0);
    backups.wait_ready();
    for backup in [&full, &more, &late[0]] {
        backups.delete(backup);
    }
    if end["deleted"] == json!(0) {
        backups.delete(gone);
    }
    assert_eq!(points(lab, forgotten), 0);
    // The audit: what is there is of the two that are available.
    let mut expected: Vec<String> = [(chained, parent), (restored, source)]
        .iter()
        .flat_map(|(volume, backup)| {
            [
                format!("volume-{volume}.backup.{backup}"),
                format!("backup.{backup}.meta"),
                format!("backup.{backup}.sums"),
            ]
        })
        .collect();
    let mut found = left(lab);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    // The parent is what it was, and the chain goes on from it.
    comes_back(lab, &backups, parent, &made[0].1);
    let next = backups.of(chained, json!({"incremental": true}));
    assert_eq!(row_str(&backups.row(&next), "parent_id"), parent);
    comes_back(lab, &backups, &next, &whole(lab, chained));
    lab.api("volumes.reset_state", json!([target, "available"]), json!({}));
    backups.restore(source, Some(&target));
    assert_eq!(whole(lab, &target), made[1].1);
    let again = backups.of(new, json!({}));
    comes_back(lab, &backups, &again, &whole(lab, new));
    for backup in [&next, parent, source, &again] {
        backups.delete(backup);
    }
    assert!(left(lab).is_empty(), "{:?}", left(lab));
    lab.delete(&[new, chained, restored, forgotten, &target]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn the_site_of_the_backups_is_killed_in_the_midst_of_all_that_can_be_done_there() {
    lost_in_the_midst(Loss::Killed);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn the_site_of_the_backups_hangs_in_the_midst_of_all_that_can_be_done_there() {
    lost_in_the_midst(Loss::Hung);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn an_outage_that_ends_soon_costs_no_backup() {
    let lab = &Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(lab, Who::Scoria);
    serve(lab, 4);
    backups.wait_ready();
    let id = lab.volume_of_type("ceph");
    let target = lab.volume_of_type("ceph");
    for (seed, loss) in (1..).zip([Loss::Hung, Loss::Killed]) {
        write(lab, &id, seed);
        let content = whole(lab, &id);
        let backup = backups.order(&id, json!({}));
        in_the_midst(lab, &[&backup]);
        loss.strike(lab);
        std::thread::sleep(Duration::from_secs(8));
        assert_eq!(backups.row(&backup)["status"], "creating");
        loss.mend(lab);
        backups.wait(&backup, "available");
        lab.wait_status(&id, "available");
        lab.api("restores.restore", json!([backup]), json!({"volume_id": target}));
        in_the_midst(lab, &[&backup]);
        loss.strike(lab);
        std::thread::sleep(Duration::from_secs(8));
        loss.mend(lab);
        backups.wait(&backup, "available");
        lab.wait_status(&target, "available");
        assert_eq!(whole(lab, &target), content);
        backups.wait_ready();
        backups.delete(&backup);
    }
    assert!(left(lab).is_empty(), "{:?}", left(lab));
    lab.delete(&[&id, &target]);
    lab.wait_quota(json!({}));
}

/// The pool of the backups on site b may have so many bytes, until this is dropped.
struct Quota<'a>(&'a Lab);

impl Quota<'_> {
    fn of(lab: &Lab, bytes: u64) -> Quota<'_> {
        lab.tool(&["ceph", "b", "osd", "pool", "set-quota", POOL, "max_bytes", &bytes.to_string()]);
        Quota(lab)
    }
}

impl Drop for Quota<'_> {
    fn drop(&mut self) {
        self.0.try_tool(&["ceph", "b", "osd", "pool", "set-quota", POOL, "max_bytes", "0"]);
    }
}

/// Whether the cluster says that the pool is full, which it looks at now and then.
fn is_full(lab: &Lab) -> bool {
    lab.tool(&["ceph", "b", "osd", "pool", "ls", "detail"])
        .lines()
        .any(|line| line.contains(&format!("'{POOL}'")) && line.contains("full_quota"))
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_pool_that_is_full_refuses_a_backup_and_lets_others_be_restored_and_deleted() {
    let lab = &Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(lab, Who::Scoria);
    serve(lab, 0);
    backups.wait_ready();
    let (id, other) = (lab.volume_of_type("ceph"), lab.volume_of_type("ceph"));
    write(lab, &id, 1);
    write(lab, &other, 2);
    let first = backups.of(&id, json!({}));
    let content = whole(lab, &id);
    let second = backups.of(&other, json!({}));
    write(lab, &id, 3);
    let quota = Quota::of(lab, 100 << 20);
    wait_until("the pool is full", 120, || is_full(lab));
    // No new one and no incremental one; what is there is of use all the same.
    for (volume, incremental) in [(&other, false), (&id, true)] {
        let backup = backups.order(volume, json!({"incremental": incremental}));
        let why = failed(lab, &backups, &backup, "020");
        assert!(why.contains("full") && why.contains("make room"), "{why}");
        lab.wait_status(volume, "available");
        assert_eq!(points(lab, volume), 1, "that of the backup that is there");
        backups.delete(&backup);
    }
    comes_back(lab, &backups, &first, &content);
    // Room is made in the pool itself.
    backups.delete(&second);
    wait_until("there is room again", 120, || !is_full(lab));
    drop(quota);
    let more = backups.of(&id, json!({"incremental": true}));
    assert_eq!(row_str(&backups.row(&more), "parent_id"), first);
    comes_back(lab, &backups, &more, &whole(lab, &id));
    comes_back(lab, &backups, &first, &content);
    backups.delete(&more);
    backups.delete(&first);
    assert!(left(lab).is_empty(), "{:?}", left(lab));
    lab.delete(&[&id, &other]);
    lab.wait_quota(json!({}));
}
