//! What a test must not leave behind, and the broom for what one left all the same.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lab::Lab;

const POOLS: &[&str] = &["volumes", "volumes2", "images"];

/// Queries whose every row is something left undone, with what to call it.
const UNDONE: &[(&str, &str)] = &[
    ("volume", "SELECT id, status, replication_status FROM volumes WHERE deleted = 0"),
    ("snapshot", "SELECT id, status FROM snapshots WHERE deleted = 0"),
    ("attachment", "SELECT id, attach_status FROM volume_attachment WHERE deleted = 0"),
    ("group", "SELECT id, status FROM `groups` WHERE deleted = 0"),
    (
        "worker row",
        "SELECT id, resource_type, resource_id, status FROM workers \
         WHERE deleted = 0 AND resource_type <> 'SENTINEL'",
    ),
    ("reservation", "SELECT id, resource, delta FROM reservations WHERE deleted = 0"),
    (
        "quota in use",
        "SELECT resource, in_use, reserved FROM quota_usages \
         WHERE deleted = 0 AND (in_use <> 0 OR reserved <> 0)",
    ),
    (
        "service not as configured",
        "SELECT host, disabled, frozen, active_backend_id, replication_status FROM services \
         WHERE deleted = 0 AND `binary` = 'cinder-volume' AND host LIKE 'lab@%' \
         AND (disabled <> 0 OR frozen <> 0 OR COALESCE(active_backend_id, '') <> '' \
              OR replication_status NOT IN ('enabled', 'disabled', 'not-capable'))",
    ),
];

/// The same in Scoria's own tables, which exist once Scoria has run.
const UNDONE_SCORIA: &[(&str, &str)] = &[
    (
        "open operation",
        "SELECT id, method, resource_id, state FROM scoria_operations WHERE state <> 'closed'",
    ),
    ("stray", "SELECT volume_id, site FROM scoria_strays"),
    ("fence", "SELECT site, volume_id, address FROM scoria_fences WHERE state = 'laid'"),
    ("clone of a drill", "SELECT volume_id, state, clone FROM scoria_tests"),
];

impl Lab {
    /// Removes a volume type and what the API keeps of it: the quota that it makes for each type it has used.
    pub(crate) fn forget_type(&self, name: &str) {
        let gone = "UPDATE volume_types SET deleted = 1, deleted_at = UTC_TIMESTAMP() WHERE name = %s AND deleted = 0";
        self.sql(gone, &[json!(name)]);
        let reserved =
            "DELETE r FROM reservations r JOIN quota_usages u ON r.usage_id = u.id WHERE u.resource LIKE %s";
        self.sql(reserved, &[json!(format!("%{name}"))]);
        self.sql("DELETE FROM quota_usages WHERE resource LIKE %s", &[json!(format!("%{name}"))]);
    }

    fn has_table(&self, name: &str) -> bool {
        !self.rows("SHOW TABLES LIKE %s", &[json!(name)]).is_empty()
    }

    /// Everything that is there now and should not be at the end of a test.
    pub(super) fn leftovers_now(&self) -> Vec<String> {
        let mut found = Vec::new();
        let ours: &[(&str, &str)] = if self.has_table("scoria_operations") { UNDONE_SCORIA } else { &[] };
        for (what, query) in UNDONE.iter().chain(ours) {
            found.extend(self.rows(query, &[]).iter().map(|row| format!("{what}: {row}")));
        }
        if self.has_images() {
            match self.driver.call("image_list", json!({})) {
                Ok(list) => found.extend(list.as_array().into_iter().flatten().map(|image| {
                    format!("glance image {}: {} {}", image["id"], image["name"], image["status"])
                })),
                Err(e) => found.push(format!("glance does not answer: {e}")),
            }
        }
        for site in ["a", "b"] {
            for pool in POOLS {
                for op in ["images", "trash"] {
                    let listed = match self.ceph.call(op, json!({"site": site, "pool": pool})) {
                        Ok(listed) => listed,
                        Err(e) => {
                            found.push(format!("site {site} does not answer: {e}"));
                            break;
                        }
                    };
                    let entries = listed.as_array().cloned().unwrap_or_default();
                    found.extend(entries.iter().map(|name| {
                        let status = json!({"site": site, "pool": pool, "image": name});
                        let status = self.ceph.call("status", status).unwrap_or_default();
                        format!("{op}, site {site}, {pool}: {name}, mirror status {status}")
                    }));
                }
            }
        }
        found
    }

    /// The same after a while: replicas vanish seconds after their primaries.
    fn leftovers(&self) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(45);
        loop {
            let found = self.leftovers_now();
            if found.is_empty() || Instant::now() > end {
                return found;
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Make database and pools as new. The volume service must not run.
    pub(super) fn wipe(&self) {
        for table in [
            "volumes",
            "snapshots",
            "volume_attachment",
            "volume_metadata",
            "volume_admin_metadata",
            "`groups`",
            "group_snapshots",
            "backups",
        ] {
            self.sql(
                &format!("UPDATE {table} SET deleted = 1, deleted_at = UTC_TIMESTAMP() WHERE deleted = 0"),
                &[],
            );
        }
        for statement in [
            "UPDATE volumes SET status = 'deleted' WHERE deleted = 1 AND status <> 'deleted'",
            "DELETE FROM workers WHERE resource_type <> 'SENTINEL'",
            "DELETE FROM reservations",
            "UPDATE quota_usages SET in_use = 0, reserved = 0",
            // Of a Cinder cluster, which exists for the tests of clusters only.
            "UPDATE services SET deleted = 1, deleted_at = UTC_TIMESTAMP() WHERE host LIKE 'lab2@%' AND deleted = 0",
            "UPDATE services SET cluster_name = NULL WHERE cluster_name IS NOT NULL",
            "DELETE FROM clusters",
            "UPDATE services SET disabled = 0, disabled_reason = NULL, frozen = 0, active_backend_id = NULL, \
             replication_status = 'not-capable' WHERE `binary` = 'cinder-volume' AND host LIKE 'lab@%%'",
        ] {
            self.sql(statement, &[]);
        }
        if self.has_table("scoria_operations") {
            for table in ["operation_steps", "operations", "strays", "fences", "tests"] {
                self.sql(&format!("DELETE FROM scoria_{table}"), &[]);
            }
        }
        if self.has_table("scoria_backend_sites") {
            self.sql("DELETE FROM scoria_backend_sites", &[]);
            self.sql("DELETE FROM scoria_adoptions", &[]);
        }
        self.forget_images();
    }
}

impl Lab {
    /// Remove every image: for what stock is known to leave.
    pub(crate) fn forget_images(&self) {
        // librbd 16 may crash in its journal's thread when an image with two primaries is disabled.
        let left = (0..3).find_map(|_| match self.ceph.call("wipe", json!({})) {
            Err(e) if e.kind == "HelperFailed" => None,
            answer => Some(answer),
        });
        assert_eq!(left.expect("a helper that lives").unwrap(), json!({}), "images that cannot be removed");
        // After their data: what volumes are still clones of, glance would keep.
        if self.has_images() {
            let left = self.driver.call("forget_images", json!({})).unwrap();
            assert_eq!(left, json!({}), "images that glance does not give up");
        }
    }
}

impl Lab {
    /// Give up all that was made: for the end of a drill from which stock has no way back.
    pub(crate) fn forget_everything(&self) {
        self.stop_service();
        self.wipe();
        self.start_service();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.hand_back(false);
            let log = self.service_log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- {} logged at last:", self.subject.name());
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{}", line.get(..400).unwrap_or(line));
            }
            return;
        }
        let mut wrong = self.leftovers();
        let log = self.service_log();
        wrong.extend(log.lines().filter(|l| l.contains("panicked at")).map(|l| format!("log: {l}")));
        self.hand_back(wrong.is_empty());
        assert!(wrong.is_empty(), "the test left work undone:\n  {}", wrong.join("\n  "));
    }
}

/// Statuses of a volume or snapshot that somebody must be working on.
pub(crate) const TRANSITIONAL: &[&str] = &[
    "creating",
    "deleting",
    "extending",
    "attaching",
    "detaching",
    "downloading",
    "uploading",
    "retyping",
    "maintenance",
    "restoring",
    "reverting",
    "managing",
    "unmanaging",
    "backing-up",
];

impl Lab {
    /// Volumes and snapshots in a transitional status.
    pub(crate) fn transitional(&self) -> Vec<Value> {
        let list: Vec<String> = TRANSITIONAL.iter().map(|s| format!("'{s}'")).collect();
        let list = list.join(",");
        self.rows(
            &format!(
                "SELECT 'volume' AS what, id, status FROM volumes WHERE deleted = 0 AND status IN ({list}) \
                 UNION ALL SELECT 'snapshot', id, status FROM snapshots WHERE deleted = 0 AND status IN ({list})"
            ),
            &[],
        )
    }
}
