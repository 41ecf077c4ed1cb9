//! Backup services on two hosts: the scheduler spreads what is made over them, each restores and deletes what the other has
//! made, and when one dies the other goes on.

use serde_json::{Value, json};

use crate::common::{Lab, row_str, wait_for, wait_until};
use crate::{Backups, Who};

const WHY: &str = "there is one stock service in the lab";
/// The hosts, and the components.
const HOSTS: [(&str, &str); 2] = [("lab", "scoria-backup"), ("lab2", "scoria-backup-2")];

/// The service of the second host, for as long as a test needs it.
struct Second<'a>(&'a Lab);

impl<'a> Second<'a> {
    fn start(lab: &'a Lab) -> Second<'a> {
        lab.start(HOSTS[1].1);
        let second = Second(lab);
        for (host, _) in HOSTS {
            wait_until("the API takes the service for one that is up", 90, || {
                let asked = json!({"host": host, "binary": "cinder-backup"});
                let found = lab.try_api("services.list", json!([]), asked);
                found.is_ok_and(|list| {
                    list.as_array().is_some_and(|l| l.iter().any(|service| service["state"] == "up"))
                })
            });
        }
        second
    }

    /// From now on the API asks this one alone for restorations and deletions. What is made is not its business: the
    /// scheduler draws lots among all services that have ever reported to it.
    fn only(&self, at: usize) {
        self.both();
        let args = json!([HOSTS[1 - at].0, "cinder-backup", "the other one's turn"]);
        self.0.api("services.disable_log_reason", args, json!({}));
    }

    /// Of either. `services.enable` of cinder-api 29 writes nothing.
    fn both(&self) {
        self.0.sql(ENABLE, &[]);
    }
}

/// All backup services are enabled.
const ENABLE: &str =
    "UPDATE services SET disabled = 0, disabled_reason = NULL WHERE `binary` = 'cinder-backup'";

impl Drop for Second<'_> {
    fn drop(&mut self) {
        self.0.try_tool(&["stop", HOSTS[1].1]);
        // Later tests have one host, and a scheduler that has heard of no other.
        let remove = "UPDATE services SET deleted = 1 WHERE host = 'lab2' AND `binary` = 'cinder-backup'";
        for sql in [remove, ENABLE] {
            self.0.try_tool(&["sql", "-e", sql]);
        }
        self.0.try_tool(&["restart", "cinder-scheduler"]);
    }
}

/// A backup that the scheduler has given to this host; those that it has given to the other one are deleted.
#[track_caller]
fn made_by(backups: &Backups<'_>, at: usize, volume: &str, kwargs: &Value) -> String {
    for _ in 0..24 {
        let id = backups.of(volume, kwargs.clone());
        if host_of(backups, &id) == HOSTS[at].0 {
            return id;
        }
        backups.delete(&id);
    }
    panic!("{} is never chosen", HOSTS[at].0);
}

fn host_of(backups: &Backups<'_>, id: &str) -> String {
    row_str(&backups.row(id), "host").to_owned()
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn each_host_restores_continues_and_deletes_what_the_other_has_made() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let second = Second::start(&lab);
    let volume = lab.volume_of_type("ceph");
    let made = [0, 1].map(|at| {
        let content = lab.write("a", &volume, 1 + u32::try_from(at).unwrap());
        (made_by(&backups, at, &volume, &json!({})), content)
    });
    for at in [1, 0] {
        second.only(at);
        let (id, content) = made[1 - at].clone();
        // Continued by the other one, restored by it.
        lab.write("a", &volume, 50);
        let later = lab.write("a", &volume, 60);
        let next = made_by(&backups, at, &volume, &json!({"incremental": true}));
        let new = backups.restore(&id, None);
        assert_eq!(lab.checksum("a", &new), content);
        assert_eq!(host_of(&backups, &id), HOSTS[at].0);
        backups.restore(&next, Some(&new));
        assert_eq!(lab.checksum("a", &new), later);
        lab.delete(&[&new]);
        backups.delete(&next);
        backups.delete(&id);
        assert_eq!(host_of(&backups, &id), HOSTS[at].0);
    }
    // Nothing of what is gone is left, whoever looks.
    for (host, _) in HOSTS {
        let out = lab.manage(&["backup", "audit", "--host", host]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success() && text.contains("nothing is lost"), "{text}");
    }
    lab.delete(&[&volume]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn what_a_dead_host_was_making_waits_for_it_and_the_other_host_goes_on() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = Backups::served_by(&lab, Who::Scoria);
    let second = Second::start(&lab);
    let volume = lab.volume_of_type("ceph");
    let other = lab.volume_of_type("ceph");
    lab.write("a", &other, 9);
    for part in 0..8u32 {
        let write = json!({"site": "a", "image": format!("volume-{volume}"), "seed": part, "length": 8 << 20,
                           "offset": u64::from(part) * (64 << 20)});
        lab.ceph("write", write);
    }
    let content = lab.checksum("a", &volume);
    let conf = lab.root.join("conf/slow-backups.conf");
    std::fs::write(&conf, "[scoria]\nscoria_backup_bandwidth = 2\n").unwrap();
    lab.stop(HOSTS[0].1);
    lab.start_with_args(HOSTS[0].1, &["--config-file", conf.to_str().unwrap()]);
    let backup = loop {
        let id = backups.order(&volume, json!({}));
        let host =
            wait_for("a host is chosen", 60, || Some(host_of(&backups, &id)).filter(|host| !host.is_empty()));
        if host == HOSTS[0].0 {
            break id;
        }
        backups.wait(&id, "available");
        backups.delete(&id);
    };
    wait_until("the base is begun", 60, || {
        backups.images().unwrap().as_array().is_some_and(|images| !images.is_empty())
    });
    lab.kill(HOSTS[0].1);
    lab.wait_gone(HOSTS[0].1, 30);
    // The other one works, and leaves that alone: it is the dead one's, who goes on with it. So is what the scheduler gives to
    // the dead one: it waits in its queue.
    let out = lab.manage(&["backup", "create", &other, "--host", HOSTS[1].0]);
    assert!(out.status.success(), "{out:?}");
    let query = "SELECT id FROM backups WHERE deleted = 0 AND volume_id = %s";
    let meanwhile = row_str(&lab.rows(query, &[json!(other)])[0], "id").to_owned();
    assert_eq!(host_of(&backups, &meanwhile), HOSTS[1].0);
    let asked: Vec<String> = (0..3).map(|_| lab.volume_of_type("ceph")).collect();
    let asked: Vec<(String, String)> =
        asked.into_iter().map(|id| (backups.order(&id, json!({})), id)).collect();
    second.only(1);
    let restored = backups.restore(&meanwhile, None);
    assert_eq!(lab.checksum("a", &restored), lab.checksum("a", &other));
    assert_eq!(backups.row(&backup)["status"], "creating");
    let out = lab.manage(&["backup", "audit", "--host", HOSTS[1].0]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "what is under way is no orphan: {text}");
    lab.start(HOSTS[0].1);
    second.both();
    for (id, volume) in asked {
        backups.wait(&id, "available");
        backups.delete(&id);
        lab.delete(&[&volume]);
    }
    backups.wait(&backup, "available");
    assert_eq!(host_of(&backups, &backup), HOSTS[0].0);
    lab.wait_status(&volume, "available");
    let new = backups.restore(&backup, None);
    assert_eq!(lab.checksum("a", &new), content);

    // A schedule: one run each minute, by whichever is up.
    let cron = ["--cron", "* * * * *", "--full-every", "0", "--name", "each-minute"];
    let args = [&["backup", "schedule", "create", "--volume", &other][..], &cron].concat();
    let out = lab.manage(&args);
    assert!(out.status.success(), "{out:?}");
    let query = "SELECT id, host, status, DATE_FORMAT(created_at, '%H:%i') AS at FROM backups \
                 WHERE deleted = 0 AND display_name = 'each-minute' ORDER BY created_at";
    let runs = |count: usize| -> Vec<Value> {
        wait_for("the schedule runs", 180, || {
            let rows = lab.rows(query, &[]);
            (rows.len() >= count && rows.iter().all(|row| row["status"] == "available")).then_some(rows)
        })
    };
    let first = runs(1);
    let dead = HOSTS.iter().position(|(host, _)| *host == row_str(&first[0], "host")).unwrap();
    lab.kill(HOSTS[dead].1);
    lab.wait_gone(HOSTS[dead].1, 30);
    let made = runs(first.len() + 2);
    let out = lab.manage(&["backup", "schedule", "delete", "each-minute"]);
    assert!(out.status.success(), "{out:?}");
    lab.start(HOSTS[dead].1);
    let mut minutes: Vec<&str> = made.iter().map(|row| row_str(row, "at")).collect();
    minutes.dedup();
    assert_eq!(minutes.len(), made.len(), "no run was made twice: {made:?}");
    for row in &made[first.len()..] {
        assert_eq!(row_str(row, "host"), HOSTS[1 - dead].0, "{row}");
    }
    wait_until("no run is under way", 60, || {
        lab.rows(query, &[]).iter().all(|row| row["status"] == "available")
    });
    for row in lab.rows(query, &[]).iter().rev() {
        backups.delete(row_str(row, "id"));
    }
    for id in [&meanwhile, &backup] {
        backups.delete(id);
    }
    lab.delete(&[&volume, &other, &new, &restored]);
    lab.wait_quota(json!({}));
}
