//! What else scoria-backup answers: records, statuses that are set, deletions by force, checksums, notifications; and
//! what it says of what is not as it should be.

use serde_json::{Value, json};

use crate::common::{Lab, row_str, wait_for, wait_until};
use crate::{Backups, POOL, Who, serve_with};

const WHY: &str = "this is what scoria-backup answers";

fn collected(lab: &Lab) -> Vec<(String, String)> {
    let found = lab.driver.call("collected", json!({"name": "told"})).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    found
        .as_array()
        .into_iter()
        .flatten()
        .filter(|n| text(&n["event_type"]).starts_with("backup."))
        .map(|n| (text(&n["event_type"]), text(&n["payload"]["status"])))
        .collect()
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn records_go_out_and_come_in_again_and_statuses_are_set() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    lab.driver.call("collect", json!({"name": "told", "binding": "notifications.info"})).unwrap();
    let id = lab.volume_of_type("ceph");
    let content = lab.write("a", &id, 1);
    let backup = backups.of(&id, json!({}));
    let record = lab.api("backups.export_record", json!([backup]), json!({}));
    let (service, url) =
        (row_str(&record, "backup_service").to_owned(), row_str(&record, "backup_url").to_owned());
    assert_eq!(service, "cinder.backup.drivers.ceph.CephBackupDriver");

    // The cloud forgets it, as after the loss of its database.
    lab.sql("UPDATE backups SET deleted = 1, status = 'deleted' WHERE id = %s", &[json!(backup)]);
    lab.sql("UPDATE quota_usages SET in_use = 0 WHERE resource LIKE 'backup%'", &[]);
    let taken = lab.api("backups.import_record", json!([service, url]), json!({}));
    assert_eq!(row_str(&taken, "id"), backup);
    let row = backups.wait(&backup, "available");
    assert_eq!((row_str(&row, "volume_id"), row_str(&row, "container")), (id.as_str(), POOL));
    let new = backups.restore(&backup, None);
    assert_eq!(lab.checksum("a", &new), content);
    lab.delete(&[&new]);

    // What is no record of it.
    lab.sql("UPDATE backups SET deleted = 1, status = 'deleted' WHERE id = %s", &[json!(backup)]);
    lab.sql("UPDATE quota_usages SET in_use = 0 WHERE resource LIKE 'backup%'", &[]);
    let taken = lab.api(
        "backups.import_record",
        json!(["cinder.backup.drivers.nfs.NFSBackupDriver", url]),
        json!({}),
    );
    wait_until("nobody can take it in", 60, || backups.row(&backup)["status"] == "error");
    let why = backups.row(row_str(&taken, "id"));
    assert!(row_str(&why, "fail_reason").contains("NFSBackupDriver"), "{why}");

    // Its row is what was imported first; an administrator says that it is usable.
    lab.api("backups.reset_state", json!([backup, "available"]), json!({}));
    wait_until("it is usable", 60, || backups.row(&backup)["status"] == "available");
    lab.sql(
        "UPDATE backups SET service = %s, container = %s, volume_id = %s WHERE id = %s",
        &[json!(service), json!(POOL), json!(id), json!(backup)],
    );
    let out = lab.manage(&["backup", "verify", &backup]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.contains("what was written"), "{text}{out:?}");
    // What it logs can be asked, and changed.
    let asked = || json!({"binary": "cinder-backup", "server": "lab", "prefix": "cinder"});
    let levels = || {
        let found = lab.api("services.get_log_levels", json!([]), asked());
        found.as_array().unwrap().iter().map(|one| row_str(one, "level").to_owned()).collect::<Vec<_>>()
    };
    for level in ["DEBUG", "INFO"] {
        lab.api("services.set_log_levels", json!([level]), asked());
        wait_until(&format!("it logs at {level}"), 30, || levels().iter().all(|found| found == level));
    }
    backups.delete(&backup);
    let told = wait_for("what was told", 60, || {
        let told = collected(&lab);
        told.iter().any(|(event, _)| event == "backup.delete.end").then_some(told)
    });
    let says = |event: &str| told.iter().any(|(told, _)| told == event);
    for event in [
        "create.start",
        "createprogress",
        "create.end",
        "restore.start",
        "restore.end",
        "reset_status.end",
        "delete.start",
        "delete.end",
    ] {
        assert!(says(&format!("backup.{event}")), "{event}: {told:?}");
    }
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_backup_that_is_being_made_can_be_deleted_by_force() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let id = lab.volume_of_type("ceph");
    for part in 0..8u32 {
        let write = json!({"site": "a", "image": format!("volume-{id}"), "seed": part, "length": 32 << 20,
                           "offset": u64::from(part) * (64 << 20)});
        lab.ceph("write", write);
    }
    let backup = backups.order(&id, json!({}));
    wait_until("it is begun with", 60, || !backups.row(&backup)["service"].is_null());
    lab.api("backups.delete", json!([backup]), json!({"force": true}));
    wait_until("it is deleted", 120, || backups.row(&backup)["deleted"] != json!(0));
    lab.wait_status(&id, "available");
    assert_eq!(backups.images().unwrap(), json!([]));
    let left = lab.ceph("info", json!({"site": "a", "image": format!("volume-{id}")}));
    assert_eq!(left["snapshots"], json!([]));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn what_is_lost_fails_with_a_message_and_lets_go_of_everything() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let id = lab.volume_of_type("ceph");
    lab.write("a", &id, 1);
    // A snapshot that is a row only.
    let snapshot = lab.snapshot_of(&id);
    let name = format!("volumes/volume-{id}@snapshot-{snapshot}");
    lab.tool(&["rbd", "a", "snap", "unprotect", &name]);
    lab.tool(&["rbd", "a", "snap", "rm", &name, "--no-progress"]);
    let failed = |backup: &str, detail: &str, why: &str| {
        wait_until("the backup fails", 60, || backups.row(backup)["status"] == "error");
        let row = backups.row(backup);
        assert!(row_str(&row, "fail_reason").contains(why), "{row}");
        assert_eq!(lab.messages(backup)[0]["detail_id"], detail);
    };
    let backup = backups.order(&id, json!({"snapshot_id": snapshot}));
    failed(&backup, "017", "has no snapshot");
    assert_eq!(lab.snapshot(&snapshot)["status"], "available");
    backups.delete(&backup);
    lab.delete_snapshot(&snapshot);

    // The parent's data is lost.
    let full = backups.of(&id, json!({}));
    let image = backups.images().unwrap()[0].as_str().unwrap().to_owned();
    let image = format!("{POOL}/{image}");
    lab.tool(&["rbd", "a", "snap", "purge", &image, "--no-progress"]);
    let more = backups.order(&id, json!({"incremental": true}));
    failed(&more, "020", "make a full backup");
    lab.wait_status(&id, "available");
    let left = lab.ceph("info", json!({"site": "a", "image": format!("volume-{id}")}));
    assert_eq!(left["snapshots"].as_array().unwrap().len(), 1, "that of the parent: {left}");
    lab.tool(&["rbd", "a", "rm", &image, "--no-progress"]);

    // Nothing can be restored from it.
    let target = lab.volume_of_type("ceph");
    lab.api("restores.restore", json!([full]), json!({"volume_id": target}));
    wait_until("the restoration fails", 60, || lab.volume(&target)["status"] == "error_restoring");
    backups.wait(&full, "available");
    assert_eq!(lab.messages(&full)[0]["detail_id"], "026");
    for backup in [&more, &full] {
        backups.delete(backup);
    }
    lab.api("volumes.reset_state", json!([target, "available"]), json!({}));
    lab.delete(&[&id, &target]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn backups_of_a_type_go_to_the_site_that_it_names() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    // What a backend's conf leads to is a registered site by itself.
    let kind = lab.api("volume_types.create", json!(["abroad"]), json!({}));
    let kind = row_str(&kind, "id").to_owned();
    let specs = json!({"extra_specs": {"volume_backend_name": "ceph", "backup:site": "site-b"}});
    let path = format!("/types/{kind}/extra_specs");
    lab.driver.call("http", json!({"method": "post", "path": path, "body": specs})).unwrap();
    let id = lab.volume_of_type("abroad");
    let first = lab.write("a", &id, 1);
    let full = backups.of(&id, json!({}));
    let second = lab.write("a", &id, 2);
    let more = backups.of(&id, json!({"incremental": true}));
    let there = || lab.ceph("images", json!({"site": "b", "pool": POOL}));
    assert_eq!(backups.images().unwrap(), json!([]));
    assert_eq!(there(), json!([format!("volume-{id}.backup.{full}")]));
    assert!(row_str(&backups.row(&more), "service_metadata").contains("\"site\": \""));
    for (backup, content) in [(&full, &first), (&more, &second)] {
        let made = lab.create(json!({"backup_id": backup, "volume_type": "ceph"}));
        lab.wait_status(&made, "available");
        assert_eq!(&lab.checksum("a", &made), content);
        lab.delete(&[&made]);
        let out = lab.manage(&["backup", "verify", backup]);
        assert!(out.status.success(), "{out:?}");
    }
    let listed = lab.manage(&["backup", "list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("site-b"), "{listed:?}");
    backups.delete(&more);
    backups.delete(&full);
    assert_eq!(there(), json!([]));
    let left = lab.tool(&["rados", "b", "-p", POOL, "ls"]);
    assert!(!left.lines().any(|name| name.starts_with("backup.")), "{left}");
    lab.delete(&[&id]);
    lab.api("volume_types.delete", json!([kind]), json!({}));
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn only_so_many_backups_are_made_at_once() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let options = "[DEFAULT]\nbackup_max_operations = 1\n[scoria]\nscoria_backup_bandwidth = 4\n";
    serve_with(&lab, options, &[]);
    let volumes: Vec<String> = (0..2).map(|_| lab.volume_of_type("ceph")).collect();
    for id in &volumes {
        let write = json!({"site": "a", "image": format!("volume-{id}"), "seed": 1, "length": 16 << 20});
        lab.ceph("write", write);
    }
    let made: Vec<String> = volumes.iter().map(|id| backups.order(id, json!({}))).collect();
    wait_until("both are made", 120, || {
        // At one instant: who has been begun with, and is not there yet.
        let query =
            "SELECT id FROM backups WHERE deleted = 0 AND status = 'creating' AND service IS NOT NULL";
        assert!(lab.rows(query, &[]).len() < 2, "two at once");
        made.iter().all(|id| backups.row(id)["status"] == "available")
    });
    for id in &made {
        backups.delete(id);
    }
    lab.delete(&[&volumes[0], &volumes[1]]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn an_audit_finds_what_is_orphaned_and_lost_and_removes_the_one_and_not_the_other() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let volume = lab.volume_of_type("ceph");
    let content = lab.write("a", &volume, 1);
    let kept = backups.of(&volume, json!({}));
    lab.write("a", &volume, 2);
    let next = backups.of(&volume, json!({"incremental": true}));
    let alone = backups.of(&volume, json!({}));
    let audit = |args: &[&str]| {
        let out = lab.manage(&[&["--format", "json", "backup", "audit"][..], args].concat());
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let read: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{out:?}"));
        (out.status.success(), read)
    };
    let kinds = |found: &Value| {
        let mut kinds: Vec<String> =
            found["findings"].as_array().unwrap().iter().map(|one| row_str(one, "kind").to_owned()).collect();
        kinds.sort();
        kinds
    };
    let (clean, found) = audit(&[]);
    assert!(clean && found["backups"] == json!(3), "{found}");
    // Their rows are deleted, and nothing else of them; and a backup that is there has lost its metadata.
    for id in [&next, &alone] {
        lab.sql("UPDATE backups SET deleted = 1, status = 'deleted' WHERE id = %s", &[json!(id)]);
    }
    lab.sql("UPDATE backups SET num_dependent_backups = 0 WHERE id = %s", &[json!(kept)]);
    let metadata = format!("backup.{kept}.meta");
    lab.tool(&["rados", "a", "-p", POOL, "rm", &metadata]);
    let expected = [
        "lost-metadata",
        "orphan-image",
        "orphan-object",
        "orphan-object",
        "orphan-object",
        "orphan-object",
        "orphan-snapshot",
        "orphan-snapshot",
        "orphan-snapshot",
    ];
    let (clean, found) = audit(&[]);
    assert!(!clean && kinds(&found) == expected, "{found:#}");
    let (clean, found) = audit(&["--repair", "--yes"]);
    assert!(!clean && kinds(&found) == ["lost-metadata"], "{found:#}");
    assert_eq!(found["removed"].as_array().unwrap().len(), 8, "{found:#}");
    assert_eq!(backups.images().unwrap().as_array().unwrap().len(), 1);
    let new = backups.restore(&kept, None);
    assert_eq!(lab.checksum("a", &new), content);
    backups.delete(&kept);
    let (clean, found) = audit(&[]);
    assert!(clean && found["places"].as_array().unwrap().len() > 2, "{found:#}");
    lab.delete(&[&new, &volume]);
    // Rows that nobody has deleted through the API are still counted.
    lab.sql("UPDATE quota_usages SET in_use = 0 WHERE resource LIKE 'backup%'", &[]);
    lab.wait_quota(json!({}));
}
