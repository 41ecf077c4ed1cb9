//! Backups that nobody asks the API for, on real Ceph: a group as of one instant, retention that takes points out of
//! chains, a schedule, a cancellation. The API sees ordinary backups, and restores them.

use serde_json::{Value, json};

use crate::common::{Lab, row_str, wait_for, wait_until};
use crate::{Backups, Who, serve_with};

const WHY: &str = "this is what scoria-backup does by itself";

/// Asks the backup service over RPC as any client of oslo.messaging would.
#[track_caller]
fn ask(lab: &Lab, method: &str, args: Value) -> Value {
    let request = json!({"topic": "scoria-backup", "server": "lab", "namespace": "backup", "version": "1.0",
        "method": method, "args": args});
    let answer = lab.driver.call("oslo", request).unwrap_or_else(|e| panic!("{method}: {e}"));
    assert!(answer.get("class").is_none(), "{method}: {answer}");
    answer["result"].clone()
}

/// How an order ended.
#[track_caller]
fn ended(lab: &Lab, ordered: &Value) -> Value {
    wait_for("an order ends", 120, || {
        let told = ask(lab, "get_operation", json!({"operation": ordered["operation"]}));
        (told["state"] == "closed").then_some(told)
    })
}

/// An order that has to succeed; its answer.
#[track_caller]
fn done(lab: &Lab, method: &str, args: Value) -> Value {
    let told = ended(lab, &ask(lab, method, args));
    assert_eq!(told["outcome"], "succeeded", "{method}: {told}");
    told["result"].clone()
}

#[track_caller]
fn manage(lab: &Lab, args: &[&str]) -> String {
    let out = lab.manage(args);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

/// The snapshots of a volume.
fn points(lab: &Lab, volume: &str) -> usize {
    let info = lab.ceph("info", json!({"site": "a", "image": format!("volume-{volume}")}));
    info["snapshots"].as_array().map_or(0, Vec::len)
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn ordered_backups_are_ordinary_ones_and_retention_takes_points_out_of_their_chain() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let volume = lab.volume_of_type("ceph");
    let mut made = Vec::new();
    for number in 0..3u32 {
        let content = lab.write("a", &volume, number + 1);
        let answer = done(&lab, "create", json!({"volume": volume, "incremental": number > 0}));
        let id = row_str(&answer["backups"][0], "backup").to_owned();
        let date = format!("2026-01-{:02} 12:00:00", number + 1);
        lab.sql("UPDATE backups SET data_timestamp = %s WHERE id = %s", &[json!(date), json!(id)]);
        made.push((id, content));
    }
    // The API's own backup goes on from there.
    let content = lab.write("a", &volume, 4);
    made.push((backups.of(&volume, json!({"incremental": true})), content));
    let row = backups.row(&made[3].0);
    assert_eq!(row_str(&row, "parent_id"), made[2].0);
    let row = backups.row(&made[0].0);
    let owner = lab.volume(&volume);
    assert_eq!((&row["project_id"], &row["user_id"]), (&owner["project_id"], &owner["user_id"]));

    // Two are of one day; what goes is the middle, and then the first.
    let sql = "UPDATE backups SET data_timestamp = '2026-01-03 08:00:00' WHERE id = %s";
    lab.sql(sql, &[json!(made[1].0)]);
    manage(&lab, &["backup", "retention", "set", &volume, "--keep-daily", "9"]);
    let said = manage(&lab, &["backup", "retention", "preview", &volume]);
    assert_eq!(said.matches("REMOVE").count(), 1, "{said}");
    let said = manage(&lab, &["backup", "retention", "apply", &volume, "--yes"]);
    assert!(said.contains(&made[1].0) && said.contains("1 deleted, 3 stay"), "{said}");
    let child = backups.row(&made[2].0);
    assert_eq!((row_str(&child, "parent_id"), &child["num_dependent_backups"]), (&*made[0].0, &json!(1)));
    ask(&lab, "set_retention", json!({"volume": volume, "keep_last": 2}));
    let answer = done(&lab, "apply_retention", json!({"volume": volume}));
    assert_eq!(answer["removed"][0]["backup"], json!(made[0].0));
    assert_eq!(points(&lab, &volume), 2);
    for (id, content) in &made[2..] {
        let said = manage(&lab, &["backup", "verify", id]);
        assert!(said.contains("is good"), "{said}");
        let new = backups.restore(id, None);
        assert_eq!(lab.checksum("a", &new), *content);
        lab.delete(&[&new]);
    }
    // The API deletes what is left, children first, as always.
    for at in [3, 2] {
        backups.delete(&made[at].0);
    }
    assert_eq!(points(&lab, &volume), 0);
    ask(&lab, "clear_retention", json!({"volume": volume}));
    lab.delete(&[&volume]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_group_is_backed_up_together_and_a_schedule_runs_once_when_it_is_due() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let kind = lab.api("group_types.create", json!(["scoria-policy"]), json!({}));
    let types = lab.rows("SELECT id FROM volume_types WHERE name = 'ceph' AND deleted = 0", &[]);
    let group = lab.api("groups.create", json!([kind["id"], types[0]["id"]]), json!({"name": "g"}));
    let group = row_str(&group, "id").to_owned();
    let status = || lab.rows("SELECT status FROM `groups` WHERE id = %s", &[json!(group)]).remove(0);
    wait_until("the group is there", 60, || status()["status"] == "available");
    let volumes: Vec<String> = (0..2)
        .map(|_| {
            let id = lab.create(json!({"volume_type": "ceph", "group_id": group}));
            lab.wait_status(&id, "available");
            id
        })
        .collect();
    let contents: Vec<String> = (0u32..).zip(&volumes).map(|(n, id)| lab.write("a", id, n + 1)).collect();
    let answer = done(&lab, "create", json!({"group": group}));
    assert_eq!(answer["consistent"], true, "{answer}");

    // A minute later, as its clock has it.
    let cron =
        ["--cron", "* * * * *", "--full-every", "0", "--name", "each-minute", "--time-zone", "Europe/Berlin"];
    let args = [&["backup", "schedule", "create", "--group", &group][..], &cron].concat();
    let said = manage(&lab, &args);
    assert!(said.contains("next run"), "{said}");
    let operation = wait_for("the schedule runs", 120, || {
        let shown = ask(&lab, "show_schedule", json!({"id": "each-minute"}));
        shown["last_operation"].is_i64().then(|| shown["last_operation"].clone())
    });
    let paused = ask(&lab, "pause_schedule", json!({"id": "each-minute"}));
    assert_eq!((&paused["paused"], &paused["next_run"]), (&json!(true), &Value::Null));
    let told = ended(&lab, &json!({"operation": operation}));
    assert_eq!(told["outcome"], "succeeded", "{told}");
    let query = "SELECT id, volume_id, parent_id, display_name FROM backups WHERE deleted = 0 AND status = 'available' \
                 AND parent_id IS NOT NULL";
    let made = lab.rows(query, &[]);
    assert_eq!(made.len(), 2, "{made:?}");
    for row in &made {
        assert_eq!(row_str(row, "display_name"), "each-minute");
        let new = backups.restore(row_str(row, "id"), None);
        let at = volumes.iter().position(|id| id == row_str(row, "volume_id")).unwrap();
        assert_eq!(lab.checksum("a", &new), contents[at]);
        lab.delete(&[&new]);
    }
    ask(&lab, "delete_schedule", json!({"id": "each-minute"}));
    for row in &made {
        backups.delete(row_str(row, "id"));
        backups.delete(row_str(row, "parent_id"));
    }
    lab.api("groups.delete", json!([group]), json!({"delete_volumes": true}));
    wait_until("the group is gone", 60, || status()["status"] == "deleted");
    lab.api("group_types.delete", json!([kind["id"]]), json!({}));
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_backup_and_a_restoration_are_cancelled_and_nothing_is_left() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let volume = lab.volume_of_type("ceph");
    for part in 0..8u32 {
        let write = json!({"site": "a", "image": format!("volume-{volume}"), "seed": part, "length": 8 << 20,
                           "offset": u64::from(part) * (64 << 20)});
        lab.ceph("write", write);
    }
    let full = backups.of(&volume, json!({}));
    serve_with(&lab, "[scoria]\nscoria_backup_bandwidth = 2\n", &[]);
    let open = |method: &str, id: &str| {
        let query =
            "SELECT id FROM scoria_operations WHERE method = %s AND resource_id = %s AND state = 'open'";
        wait_for("it is under way", 60, || {
            lab.rows(query, &[json!(method), json!(id)]).first().map(|row| row["id"].to_string())
        })
    };
    let backup = backups.order(&volume, json!({}));
    wait_until("it is begun with", 60, || points(&lab, &volume) == 2);
    let said = manage(&lab, &["operation", "cancel", &open("create_backup", &backup)]);
    assert!(said.contains("was cancelled"), "{said}");
    assert_eq!(backups.row(&backup)["status"], "error");
    lab.wait_status(&volume, "available");
    assert_eq!((points(&lab, &volume), backups.images().unwrap().as_array().unwrap().len()), (1, 1));

    let target = lab.volume_of_type("ceph");
    lab.api("restores.restore", json!([full]), json!({"volume_id": target}));
    let number = open("restore_backup", &full);
    let ordered = ask(&lab, "cancel_operation", json!({"operation": number.parse::<i64>().unwrap()}));
    let told = ended(&lab, &ordered);
    assert_eq!(
        (&told["outcome"], &told["result"]["cancelled"]),
        (&json!("succeeded"), &json!(true)),
        "{told}"
    );
    assert_eq!(lab.volume(&target)["status"], "error");
    assert_eq!(backups.row(&full)["status"], "available");
    let said = manage(&lab, &["backup", "verify", &full]);
    assert!(said.contains("is good"), "{said}");
    backups.delete(&backup);
    backups.delete(&full);
    lab.delete(&[&volume, &target]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn all_volumes_of_a_type_are_backed_up_by_an_order_and_by_a_schedule_and_retention_is_applied_to_it() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let kind = lab.api("volume_types.create", json!(["gold"]), json!({}))["id"].clone();
    let spec = |key: &str, value: &str| {
        let sql = "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted) VALUES (%s, %s, %s, 0)";
        lab.sql(sql, &[kind.clone(), json!(key), json!(value)]);
    };
    spec("volume_backend_name", "ceph");
    let volumes: Vec<String> = (0..3).map(|_| lab.volume_of_type("gold")).collect();
    let bystander = lab.volume_of_type("ceph");
    let written = |seed: u32| -> Vec<String> {
        (0u32..).zip(&volumes).map(|(at, id)| lab.write("a", id, seed + at)).collect()
    };
    let of = |volume: &str| {
        let query = "SELECT id, parent_id, status FROM backups WHERE deleted = 0 AND volume_id = %s ORDER BY created_at";
        lab.rows(query, &[json!(volume)])
    };
    written(10);
    let said = manage(&lab, &["backup", "create", "--type", "gold"]);
    assert!(said.contains("3 volumes of type gold are backed up"), "{said}");
    assert!(volumes.iter().all(|id| of(id).len() == 1) && of(&bystander).is_empty());

    // One that is at something else keeps no other one from it; the order says which.
    lab.sql("UPDATE volumes SET status = 'maintenance' WHERE id = %s", &[json!(volumes[1])]);
    let second = written(20);
    let out = lab.manage(&["backup", "create", "--type", "gold", "--incremental"]);
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(!out.status.success() && text.contains(&volumes[1]) && text.contains("1 of 3"), "{text}");
    lab.sql("UPDATE volumes SET status = 'available' WHERE id = %s", &[json!(volumes[1])]);
    let counts: Vec<usize> = volumes.iter().map(|id| of(id).len()).collect();
    assert_eq!(counts, [2, 1, 2]);
    assert!(of(&volumes[0])[1]["parent_id"].is_string(), "{:?}", of(&volumes[0]));

    // What its extra specs keep, applied to the whole type.
    spec("backup:keep_last", "1");
    let said = manage(&lab, &["backup", "retention", "preview", "--type", "gold"]);
    assert!(said.contains("of 2 of them 2 would go"), "{said}");
    let said = manage(&lab, &["backup", "retention", "apply", "--type", "gold", "--yes"]);
    assert!(said.contains("2 deleted, 3 stay"), "{said}");
    let new = backups.restore(row_str(&of(&volumes[0])[0], "id"), None);
    assert_eq!(lab.checksum("a", &new), second[0]);
    lab.delete(&[&new]);

    // By a schedule, which applies it, too.
    let last = written(30);
    let cron = ["--cron", "* * * * *", "--full-every", "0", "--name", "all-gold", "--retention", "true"];
    manage(&lab, &[&["backup", "schedule", "create", "--type", "gold"][..], &cron].concat());
    let operation = wait_for("the schedule runs", 120, || {
        let shown = ask(&lab, "show_schedule", json!({"id": "all-gold"}));
        shown["last_operation"].is_i64().then(|| shown["last_operation"].clone())
    });
    ask(&lab, "pause_schedule", json!({"id": "all-gold"}));
    let told = ended(&lab, &json!({"operation": operation}));
    assert_eq!(told["outcome"], "succeeded", "{told}");
    ask(&lab, "delete_schedule", json!({"id": "all-gold"}));
    for (id, content) in volumes.iter().zip(&last) {
        let left = of(id);
        assert_eq!(left.len(), 1, "{left:?}");
        let made = row_str(&left[0], "id").to_owned();
        let said = manage(&lab, &["backup", "verify", &made]);
        assert!(said.contains("is good"), "{said}");
        let new = backups.restore(&made, None);
        assert_eq!(&lab.checksum("a", &new), content);
        assert_eq!(points(&lab, id), 1);
        lab.delete(&[&new]);
        backups.delete(&made);
    }
    let said = manage(&lab, &["backup", "audit"]);
    assert!(said.contains("Nothing is orphaned, and nothing is lost"), "{said}");
    lab.delete(&[&volumes[0], &volumes[1], &volumes[2], &bystander]);
    lab.api("volume_types.delete", json!([kind]), json!({}));
    lab.wait_quota(json!({}));
}
