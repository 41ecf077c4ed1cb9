//! Backups of volumes as their users make them, and what comes back out of them: by the stock cinder-backup with its
//! driver for Ceph, and by scoria-backup in its place.
//!
//! With `SCORIA_TEST_SERVICE=cinder-volume` those of the stock cinder-backup run beside the stock volume service.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod crash;
mod failover;
mod hosts;
mod interop;
mod keys;
mod killed;
mod life;
mod losses;
mod mirror;
mod ours;
mod policy;

use std::cell::Cell;
use std::time::{Duration, Instant};

use common::{CallError, Lab, row_str, wait_for, wait_until};
use serde_json::{Value, json};

/// Images of backups, all on site a.
const POOL: &str = "backups";

/// A backup service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// cinder-backup 29.
    Stock,
    /// Ours.
    Scoria,
}

impl Who {
    /// Its component in tools/lab.
    fn name(self) -> &'static str {
        match self {
            Who::Stock => "cinder-backup",
            Who::Scoria => "scoria-backup",
        }
    }
}

/// A backup service, for as long as a test needs it.
struct Backups<'a> {
    lab: &'a Lab,
    who: Cell<Who>,
}

impl<'a> Backups<'a> {
    /// The stock one.
    fn start(lab: &'a Lab) -> Backups<'a> {
        Backups::served_by(lab, Who::Stock)
    }

    /// One of them, once it makes backups.
    fn served_by(lab: &'a Lab, who: Who) -> Backups<'a> {
        let backups = Backups { lab, who: Cell::new(who) };
        // Of a run that was interrupted.
        backups.sweep(&backups.images());
        lab.start(who.name());
        backups.wait_ready();
        backups
    }

    /// The other service takes its place.
    fn hand_over_to(&self, who: Who) {
        self.lab.stop(self.who.get().name());
        self.who.set(who);
        self.lab.start(who.name());
        self.wait_ready();
    }

    /// Stops it, and starts it with an environment, such as a point to die at.
    fn restart_with(&self, env: &[(&str, &str)]) {
        self.lab.stop(self.who.get().name());
        self.lab.start_with_env(self.who.get().name(), env);
    }

    fn wait_ready(&self) {
        let (lab, backups) = (self.lab, self);
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

    /// Removes these images, and all objects of backups.
    fn sweep(&self, images: &Result<Value, CallError>) {
        for image in images.iter().flat_map(|l| l.as_array().into_iter().flatten()).filter_map(Value::as_str)
        {
            let name = format!("{POOL}/{image}");
            self.lab.try_tool(&["rbd", "a", "snap", "purge", &name, "--no-progress"]);
            self.lab.try_tool(&["rbd", "a", "rm", &name, "--no-progress"]);
        }
        for object in self.objects() {
            self.lab.try_tool(&["rados", "a", "-p", POOL, "rm", &object]);
        }
    }

    /// Objects that are beside them: metadata and checksums.
    fn objects(&self) -> Vec<String> {
        let listed = self.lab.try_tool(&["rados", "a", "-p", POOL, "ls"]);
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        text.lines().filter(|name| name.starts_with("backup.")).map(str::to_owned).collect()
    }
}

/// scoria-backup begins anew, with more options than those of the lab, and with more in its environment.
fn serve_with(lab: &Lab, options: &str, env: &[(&str, &str)]) {
    let conf = lab.root.join("conf/more-backups.conf");
    std::fs::write(&conf, options).unwrap();
    lab.stop(Who::Scoria.name());
    let start = ["start", Who::Scoria.name(), "--", "--config-file", conf.to_str().unwrap()];
    lab.tool_with_env(&start, env);
}

/// What there is of backups on site b: their images, and the objects beside them.
fn left(lab: &Lab) -> Vec<String> {
    let images = lab.ceph("images", json!({"site": "b", "pool": POOL}));
    let images = images.as_array().unwrap().iter().filter_map(Value::as_str).map(str::to_owned);
    let objects = lab.tool(&["rados", "b", "-p", POOL, "ls"]);
    let objects: Vec<String> =
        objects.lines().filter(|name| name.starts_with("backup.")).map(str::to_owned).collect();
    images.chain(objects).collect()
}

impl Drop for Backups<'_> {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        let left = self.images();
        let stopped = self.lab.try_tool(&["stop", self.who.get().name()]).status.success();
        if panicking {
            self.sweep(&left);
            return;
        }
        assert!(stopped, "{} does not stop", self.who.get().name());
        assert_eq!(left.unwrap(), json!([]), "images of backups are left");
        assert!(self.objects().is_empty(), "objects of backups are left: {:?}", self.objects());
    }
}
