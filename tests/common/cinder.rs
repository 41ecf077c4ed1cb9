//! The words of the tests: a volume, its row, its image; waiting for a status.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lab::Lab;
use super::{wait_for, wait_or_tell, wait_until};

/// A text column of a row ("" for NULL).
pub(crate) fn row_str<'a>(row: &'a Value, column: &str) -> &'a str {
    row[column].as_str().unwrap_or_default()
}

/// Whether a volume service's row is fresh.
pub(crate) fn is_up(lab: &Lab, host: &str) -> bool {
    let services = lab.try_api("services.list", json!([]), json!({"host": host, "binary": "cinder-volume"}));
    services.is_ok_and(|list| list.as_array().is_some_and(|l| l.iter().any(|s| s["state"] == "up")))
}

/// What a compute host says of itself.
pub(crate) fn connector(host: &str) -> Value {
    json!({"initiator": "iqn.1993-08.org.debian:01:scoria", "ip": "127.0.0.1", "host": host,
           "platform": "x86_64", "os_type": "linux", "multipath": false, "do_local_attach": false,
           "mountpoint": "/dev/vdb"})
}

/// A notification, without what differs from run to run.
#[derive(Debug, Clone)]
pub(crate) struct Notification {
    pub(crate) event: String,
    pub(crate) body: Value,
}

impl Lab {
    // ---- volumes ----------------------------------------------------------------------------------
    /// `POST /volumes` (1 GiB unless said otherwise); its id.
    #[track_caller]
    pub(crate) fn create(&self, kwargs: Value) -> String {
        let mut spec = kwargs;
        if spec.get("size").is_none() {
            spec["size"] = json!(1);
        }
        let made = self.api("volumes.create", json!([]), spec);
        made["id"].as_str().unwrap().to_owned()
    }

    /// Create a volume of a type and wait until it is available.
    #[track_caller]
    pub(crate) fn volume_of_type(&self, volume_type: &str) -> String {
        let id = self.create(json!({"volume_type": volume_type}));
        self.wait_status(&id, "available");
        id
    }

    /// The row of a volume, deleted or not.
    #[track_caller]
    pub(crate) fn volume(&self, id: &str) -> Value {
        let rows = self.rows("SELECT * FROM volumes WHERE id = %s", &[json!(id)]);
        rows.into_iter().next().unwrap_or_else(|| panic!("volume {id} has no row"))
    }

    /// Wait for a status; the row. Panics at once when the volume went to an error instead.
    #[track_caller]
    pub(crate) fn wait_status(&self, id: &str, status: &str) -> Value {
        wait_for(&format!("volume {id} becomes {status}"), 90, || {
            let row = self.volume(id);
            let now = row_str(&row, "status").to_owned();
            if now == status {
                return Some(row);
            }
            assert!(
                !now.starts_with("error"),
                "volume {id} is {now}, not {status}; messages: {:?}",
                self.messages(id)
            );
            None
        })
    }

    /// `DELETE /volumes/ID` without waiting.
    #[track_caller]
    pub(crate) fn order_delete(&self, id: &str) {
        self.api("volumes.delete", json!([id]), json!({}));
    }

    /// Delete volumes and wait until they are gone.
    #[track_caller]
    pub(crate) fn delete(&self, ids: &[&str]) {
        for id in ids {
            self.order_delete(id);
        }
        for id in ids {
            self.wait_deleted(id);
        }
    }

    /// Until the row is deleted.
    #[track_caller]
    pub(crate) fn wait_deleted(&self, id: &str) {
        wait_until(&format!("volume {id} is deleted"), 90, || {
            let row = self.volume(id);
            let status = row_str(&row, "status");
            // That one is what the API calls the deletion of a volume that could not be managed.
            assert!(
                !status.starts_with("error") || status == "error_managing_deleting",
                "volume {id} is {}; messages: {:?}",
                row["status"],
                self.messages(id)
            );
            row["deleted"] != json!(0)
        });
    }

    /// Messages for users about a resource.
    pub(crate) fn messages(&self, id: &str) -> Vec<Value> {
        self.rows(
            "SELECT resource_type, event_id, action_id, detail_id, message_level, project_id, request_id, \
             expires_at, created_at FROM messages WHERE resource_uuid = %s AND deleted = 0",
            &[json!(id)],
        )
    }

    // ---- snapshots --------------------------------------------------------------------------------
    /// `POST /snapshots`, waited for.
    #[track_caller]
    pub(crate) fn snapshot_of(&self, volume: &str) -> String {
        let made = self.api("volume_snapshots.create", json!([volume]), json!({"force": true}));
        let id = made["id"].as_str().unwrap().to_owned();
        self.wait_snapshot(&id, "available");
        id
    }

    #[track_caller]
    pub(crate) fn snapshot(&self, id: &str) -> Value {
        let rows = self.rows("SELECT * FROM snapshots WHERE id = %s", &[json!(id)]);
        rows.into_iter().next().unwrap_or_else(|| panic!("snapshot {id} has no row"))
    }

    #[track_caller]
    pub(crate) fn wait_snapshot(&self, id: &str, status: &str) -> Value {
        wait_for(&format!("snapshot {id} becomes {status}"), 90, || {
            let row = self.snapshot(id);
            let now = row_str(&row, "status").to_owned();
            assert!(now == status || !now.starts_with("error"), "snapshot {id} is {now}: {row}");
            (now == status).then_some(row)
        })
    }

    #[track_caller]
    pub(crate) fn delete_snapshot(&self, id: &str) {
        self.api("volume_snapshots.delete", json!([id]), json!({}));
        wait_until(&format!("snapshot {id} is deleted"), 90, || {
            let row = self.snapshot(id);
            assert!(!row_str(&row, "status").starts_with("error"), "snapshot {id}: {row}");
            row["deleted"] != json!(0)
        });
    }

    // ---- services, quota --------------------------------------------------------------------------
    /// The row of a volume service.
    #[track_caller]
    pub(crate) fn service(&self, host: &str) -> Value {
        let rows = self.rows(
            "SELECT * FROM services WHERE host = %s AND `binary` = 'cinder-volume' AND deleted = 0",
            &[json!(host)],
        );
        rows.into_iter().next().unwrap_or_else(|| panic!("service {host} has no row"))
    }

    /// `{resource: [in_use, reserved]}` of what is not zero.
    pub(crate) fn quota(&self) -> Value {
        let rows = self.rows(
            "SELECT resource, in_use, reserved FROM quota_usages WHERE deleted = 0 \
             AND (in_use <> 0 OR reserved <> 0) ORDER BY resource",
            &[],
        );
        rows.iter()
            .map(|r| (row_str(r, "resource").to_owned(), json!([r["in_use"], r["reserved"]])))
            .collect()
    }

    /// Quota is given back after the row is gone, so it is waited for.
    #[track_caller]
    pub(crate) fn wait_quota(&self, expected: Value) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.quota() != expected && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(self.quota(), expected, "quota in use and reserved");
    }

    // ---- images -----------------------------------------------------------------------------------
    /// What Ceph says of a volume's image on a site; `Value::Null` when there is none.
    #[track_caller]
    pub(crate) fn image(&self, site: &str, volume: &str) -> Value {
        self.ceph("info", json!({"site": site, "image": format!("volume-{volume}")}))
    }

    /// The same in another pool.
    #[track_caller]
    pub(crate) fn image_in(&self, site: &str, pool: &str, volume: &str) -> Value {
        self.ceph("info", json!({"site": site, "pool": pool, "image": format!("volume-{volume}")}))
    }

    /// Write a megabyte that depends on `seed`; its checksum.
    #[track_caller]
    pub(crate) fn write(&self, site: &str, volume: &str, seed: u32) -> String {
        let sum =
            self.ceph("write", json!({"site": site, "image": format!("volume-{volume}"), "seed": seed}));
        sum.as_str().unwrap().to_owned()
    }

    /// Checksum of the first megabyte.
    #[track_caller]
    pub(crate) fn checksum(&self, site: &str, volume: &str) -> String {
        let sum = self.ceph("checksum", json!({"site": site, "image": format!("volume-{volume}")}));
        sum.as_str().unwrap().to_owned()
    }

    /// "ok", or why a client cannot write there.
    pub(crate) fn try_write(&self, site: &str, volume: &str, seed: u32) -> String {
        let args = json!({"site": site, "image": format!("volume-{volume}"), "seed": seed});
        match self.ceph.call_within("try_write", args, 30) {
            Ok(word) => word.as_str().unwrap_or_default().to_owned(),
            Err(e) => e.to_string(),
        }
    }

    /// Until the replica of `from`'s image is there and replays.
    #[track_caller]
    pub(crate) fn wait_mirrored(&self, volume: &str, to: &str) {
        let arrived =
            || self.ceph("mirrored", json!({"image": format!("volume-{volume}"), "to": to})) == json!(true);
        let what = format!("volume {volume} is mirrored to site {to}");
        wait_or_tell(&what, 120, arrived, || self.mirroring_of(volume));
    }

    /// Until what `write` wrote on `from` has arrived on the other side.
    #[track_caller]
    pub(crate) fn wait_replicated(&self, volume: &str, from: &str, seed: u32) {
        self.wait_all_replicated(&[(volume, seed)], from);
    }

    /// The same of several volumes, whose data travels at the same time.
    #[track_caller]
    pub(crate) fn wait_all_replicated(&self, written: &[(&str, u32)], from: &str) {
        for (volume, _) in written {
            if self.image(from, volume)["mode"] == "snapshot" {
                let image = format!("volume-{volume}");
                self.ceph("mirror_snapshot", json!({"site": from, "image": image}));
            }
        }
        for (volume, seed) in written {
            let args = json!({"source": from, "image": format!("volume-{volume}"), "seed": seed});
            let arrived = || self.ceph("caught_up", args.clone()) == json!(true);
            let what = format!("the data of volume {volume} has left site {from}");
            wait_or_tell(&what, 120, arrived, || self.mirroring_of(volume));
        }
    }

    /// What both sites' daemons say of a volume's image, and logged at last.
    fn mirroring_of(&self, volume: &str) -> String {
        let mut text = String::new();
        for site in ["a", "b"] {
            let image = format!("volumes/volume-{volume}");
            let status = self.try_tool(&["rbd", site, "mirror", "image", "status", &image]);
            let log = self.root.join(format!("ceph/site-{site}/log/rbd-mirror.log"));
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            text += &format!(
                "--- site {site}\n{}{}--- its rbd-mirror, the latest first\n{}\n",
                String::from_utf8_lossy(&status.stdout),
                String::from_utf8_lossy(&status.stderr),
                lines.join("\n")
            );
        }
        text
    }

    /// Until a site has an image whose first megabyte is this.
    #[track_caller]
    pub(crate) fn wait_copied(&self, volume: &str, site: &str, sum: &str) {
        let image = json!({"site": site, "image": format!("volume-{volume}")});
        wait_until(&format!("site {site} has the data of volume {volume}"), 150, || {
            self.ceph.call("checksum", image.clone()).is_ok_and(|found| found == sum)
        });
    }

    // ---- messages on the wire ---------------------------------------------------------------------
    /// A call put straight on a queue; the reply's inner message, `Null` when none came.
    #[track_caller]
    pub(crate) fn rpc(&self, queue: &str, method: &str, version: &str, args: Value) -> Value {
        let request = json!({"routing_key": queue, "method": method, "version": version, "args": args});
        self.driver.call("rpc", request).unwrap_or_else(|e| panic!("rpc {method}: {e}"))
    }

    /// Begin to collect notifications.
    pub(crate) fn listen(&self) {
        self.driver.call("collect", json!({"name": "notifications", "binding": "notifications.*"})).unwrap();
    }

    /// Those of the volume service that came since, oldest first.
    pub(crate) fn heard(&self) -> Vec<Notification> {
        let found = self.driver.call("collected", json!({"name": "notifications"})).unwrap();
        found
            .as_array()
            .unwrap()
            .iter()
            .filter(|n| {
                let publisher = row_str(n, "publisher_id");
                publisher.starts_with("volume.lab@") || publisher.starts_with("snapshot.lab@")
            })
            .map(|n| Notification { event: row_str(n, "event_type").to_owned(), body: n.clone() })
            .collect()
    }
}
