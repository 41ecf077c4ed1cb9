//! Volumes in every state in which a service may find them, and the proof that they can be used.

use serde_json::{Value, json};

use crate::common::{Lab, connector, row_str, wait_until};

const SERVER: &str = "8935016b-fde4-4085-b496-7ed3396873bc";

/// Everything that one service has made, and the other is to serve.
pub(crate) struct Estate {
    plain: String,
    sum: String,
    snapshot: String,
    from_snapshot: String,
    clone: String,
    attached: String,
    attachment: String,
    error: String,
    replicated: String,
    managed: String,
    group_type: Value,
    group: String,
    members: Vec<String>,
    set: String,
}

fn status_of(lab: &Lab, table: &str, id: &str) -> String {
    let rows = lab.rows(&format!("SELECT status FROM {table} WHERE id = %s"), &[json!(id)]);
    row_str(&rows[0], "status").to_owned()
}

#[track_caller]
fn wait_row(lab: &Lab, table: &str, id: &str, status: &str) {
    wait_until(&format!("{table} {id} is {status}"), 90, || {
        let now = status_of(lab, table, id);
        assert!(now == status || !now.starts_with("error"), "{table} {id} is {now}: {:?}", lab.messages(id));
        now == status
    });
}

/// A volume with a connected attachment.
fn attach(lab: &Lab, volume: &str) -> String {
    let args = json!([volume, connector("compute1"), SERVER]);
    let made = lab.api("attachments.create", args, json!({"mode": "rw"}));
    assert_eq!(made["connection_info"]["name"], format!("volumes/volume-{volume}"), "{made}");
    let id = made["id"].as_str().unwrap().to_owned();
    lab.api("attachments.complete", json!([id]), json!({}));
    assert_eq!(lab.volume(volume)["status"], "in-use");
    id
}

fn detach(lab: &Lab, volume: &str, attachment: &str) {
    lab.api("attachments.delete", json!([attachment]), json!({}));
    lab.wait_status(volume, "available");
}

fn copy_of(lab: &Lab, source: Value) -> String {
    let id = lab.create(source);
    lab.wait_status(&id, "available");
    id
}

impl Estate {
    /// Has the running service make one of each.
    pub(crate) fn made(lab: &Lab, name: &str) -> Estate {
        let plain = lab.volume_of_type("ceph");
        // What a test that failed has left may still have the name.
        let name = &format!("{name}-{plain}");
        let sum = lab.write("a", &plain, 77);
        let snapshot = lab.snapshot_of(&plain);
        let from_snapshot = copy_of(lab, json!({"snapshot_id": snapshot, "volume_type": "ceph"}));
        let clone = copy_of(lab, json!({"source_volid": plain, "volume_type": "ceph"}));
        let attached = lab.volume_of_type("ceph");
        let attachment = attach(lab, &attached);
        let error = lab.volume_of_type("ceph");
        lab.api("volumes.reset_state", json!([error, "error"]), json!({}));
        let replicated = lab.volume_of_type("replicated");
        let image = format!("volumes/{name}");
        lab.tool(&["rbd", "a", "create", &image, "--size", "1G", "--no-progress"]);
        let reference = json!(["lab@ceph#ceph", {"source-name": name}]);
        let made = lab.api("volumes.manage", reference, json!({"volume_type": "ceph", "name": "managed"}));
        let managed = made["id"].as_str().unwrap().to_owned();
        lab.wait_status(&managed, "available");

        let kind = lab.api("group_types.create", json!([name]), json!({}));
        let types = lab.rows("SELECT id FROM volume_types WHERE name = 'ceph' AND deleted = 0", &[]);
        let made = lab.api("groups.create", json!([kind["id"], types[0]["id"]]), json!({"name": "g"}));
        let group = made["id"].as_str().unwrap().to_owned();
        wait_row(lab, "`groups`", &group, "available");
        let members: Vec<String> =
            (0..2).map(|_| copy_of(lab, json!({"volume_type": "ceph", "group_id": group}))).collect();
        let made = lab.api("group_snapshots.create", json!([group]), json!({"name": "gs"}));
        let set = made["id"].as_str().unwrap().to_owned();
        wait_row(lab, "group_snapshots", &set, "available");
        Estate {
            plain,
            sum,
            snapshot,
            from_snapshot,
            clone,
            attached,
            attachment,
            error,
            replicated,
            managed,
            group_type: kind["id"].clone(),
            group,
            members,
            set,
        }
    }

    /// Statuses are as they were, contents too, and everything that a user does with a volume can be done.
    pub(crate) fn expect_usable(&self, lab: &Lab) {
        for (id, status) in [
            (&self.plain, "available"),
            (&self.from_snapshot, "available"),
            (&self.clone, "available"),
            (&self.attached, "in-use"),
            (&self.error, "error"),
            (&self.replicated, "available"),
            (&self.managed, "available"),
        ] {
            assert_eq!(lab.volume(id)["status"], status, "{id}: {:?}", lab.messages(id));
        }
        assert_eq!(lab.volume(&self.replicated)["replication_status"], "enabled");
        for id in [&self.plain, &self.from_snapshot, &self.clone] {
            assert_eq!(lab.checksum("a", id), self.sum, "{id}");
        }
        let again = copy_of(lab, json!({"snapshot_id": self.snapshot, "volume_type": "ceph"}));
        assert_eq!(lab.checksum("a", &again), self.sum, "a snapshot of the former service is a source");
        lab.delete(&[&again]);
        for id in [&self.plain, &self.from_snapshot, &self.clone, &self.replicated, &self.managed] {
            expect_volume_usable(lab, id);
        }
        expect_volume_usable(lab, &self.members[0]);
        // What is attached can be seen in a snapshot, let go, and be attached again.
        let snapshot = lab.snapshot_of(&self.attached);
        lab.delete_snapshot(&snapshot);
        detach(lab, &self.attached, &self.attachment);
        expect_volume_usable(lab, &self.attached);
        lab.write("a", &self.replicated, 99);
        lab.wait_replicated(&self.replicated, "a", 99);
    }

    /// Deletes everything.
    pub(crate) fn delete(self, lab: &Lab) {
        lab.api("group_snapshots.delete", json!([self.set]), json!({}));
        wait_row(lab, "group_snapshots", &self.set, "deleted");
        lab.api("groups.delete", json!([self.group]), json!({"delete_volumes": true}));
        wait_row(lab, "`groups`", &self.group, "deleted");
        lab.api("group_types.delete", json!([self.group_type]), json!({}));
        lab.delete_snapshot(&self.snapshot);
        lab.delete(&[&self.clone, &self.from_snapshot, &self.plain]);
        lab.delete(&[&self.attached, &self.error, &self.replicated, &self.managed]);
    }
}

/// Snapshot, clone, extend, attach, and deletion of what was made of it.
pub(crate) fn expect_volume_usable(lab: &Lab, id: &str) {
    let row = lab.volume(id);
    let (size, kind) = (row["size"].as_i64().unwrap(), row["volume_type_id"].clone());
    let sum = lab.checksum("a", id);
    let snapshot = lab.snapshot_of(id);
    let clone = copy_of(lab, json!({"source_volid": id, "size": size, "volume_type": kind}));
    assert_eq!(lab.checksum("a", &clone), sum, "the clone of {id}");
    lab.delete(&[&clone]);
    lab.delete_snapshot(&snapshot);
    lab.api("volumes.extend", json!([id, size + 1]), json!({}));
    wait_until(&format!("{id} is extended"), 90, || {
        let row = lab.volume(id);
        assert_ne!(row["status"], "error_extending", "{id}: {:?}", lab.messages(id));
        row["size"] == size + 1 && row["status"] == "available"
    });
    assert_eq!(lab.image("a", id)["size"], ((size + 1) as u64) << 30);
    let attachment = attach(lab, id);
    detach(lab, id, &attachment);
}
