//! Stock cinder-backup, with its driver for Ceph, beside the volume service: backups of volumes as their users
//! make them, and what comes back out of them.
//!
//! With `SCORIA_TEST_SERVICE=cinder-volume` the same tests run against the stock volume service.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod crash;
mod life;

use std::time::{Duration, Instant};

use common::{CallError, Lab, row_str, wait_for, wait_until};
use serde_json::{Value, json};

/// Images of backups, all on site a.
const POOL: &str = "backups";

/// cinder-backup, for as long as a test needs it.
struct Backups<'a> {
    lab: &'a Lab,
}

impl<'a> Backups<'a> {
    fn start(lab: &'a Lab) -> Backups<'a> {
        lab.start("cinder-backup");
        let backups = Backups { lab };
        // The scheduler knows of it once it has reported itself.
        let probe = lab.volume_of_type("ceph");
        let end = Instant::now() + Duration::from_secs(90);
        loop {
            let id = backups.order(&probe, json!({}));
            let row = wait_for("the first backup ends", 90, || {
                let row = backups.row(&id);
                (row["status"] != "creating").then_some(row)
            });
            backups.delete(&id);
            if row["status"] == "available" {
                break;
            }
            assert!(Instant::now() < end, "no backup can be made: {row}");
            wait_until("the volume is free again", 30, || lab.volume(&probe)["status"] == "available");
            std::thread::sleep(Duration::from_secs(1));
        }
        lab.delete(&[&probe]);
        lab.sql("DELETE FROM messages", &[]);
        backups
    }

    /// `POST /backups` without waiting; its id.
    #[track_caller]
    fn order(&self, volume: &str, kwargs: Value) -> String {
        let made = self.lab.api("backups.create", json!([volume]), kwargs);
        made["id"].as_str().unwrap().to_owned()
    }

    /// The same, until it is available.
    #[track_caller]
    fn of(&self, volume: &str, kwargs: Value) -> String {
        let id = self.order(volume, kwargs);
        self.wait(&id, "available");
        id
    }

    /// The row of a backup, deleted or not.
    #[track_caller]
    fn row(&self, id: &str) -> Value {
        self.lab.rows("SELECT * FROM backups WHERE id = %s", &[json!(id)]).remove(0)
    }

    #[track_caller]
    fn wait(&self, id: &str, status: &str) -> Value {
        wait_for(&format!("backup {id} becomes {status}"), 120, || {
            let row = self.row(id);
            let now = row_str(&row, "status").to_owned();
            assert!(now == status || !now.starts_with("error"), "backup {id} is {now}: {row}");
            (now == status).then_some(row)
        })
    }

    /// Restores into a volume, or into one that the API makes; which.
    #[track_caller]
    fn restore(&self, id: &str, volume: Option<&str>) -> String {
        let answer = match volume {
            Some(volume) => self.lab.api("restores.restore", json!([id]), json!({"volume_id": volume})),
            None => self.lab.api("restores.restore", json!([id]), json!({})),
        };
        let volume = answer["volume_id"].as_str().unwrap().to_owned();
        self.lab.wait_status(&volume, "available");
        self.wait(id, "available");
        volume
    }

    #[track_caller]
    fn delete(&self, id: &str) {
        self.lab.api("backups.delete", json!([id]), json!({}));
        wait_until(&format!("backup {id} is deleted"), 90, || {
            let row = self.row(id);
            assert_ne!(row["status"], "error_deleting", "{row}");
            row["deleted"] != json!(0)
        });
    }

    /// Images of backups that are there.
    fn images(&self) -> Result<Value, CallError> {
        self.lab.ceph.call("images", json!({"site": "a", "pool": POOL}))
    }
}

impl Drop for Backups<'_> {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        let left = self.images();
        let stopped = self.lab.try_tool(&["stop", "cinder-backup"]).status.success();
        if panicking {
            for image in
                left.iter().flat_map(|l| l.as_array().into_iter().flatten()).filter_map(Value::as_str)
            {
                let name = format!("{POOL}/{image}");
                self.lab.try_tool(&["rbd", "a", "snap", "purge", &name, "--no-progress"]);
                self.lab.try_tool(&["rbd", "a", "rm", &name, "--no-progress"]);
            }
            return;
        }
        assert!(stopped, "cinder-backup does not stop");
        assert_eq!(left.unwrap(), json!([]), "images of backups are left");
    }
}
