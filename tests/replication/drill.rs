//! What all drills have in common: volumes with known data, the order, and what must then be true.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use crate::common::{CEPH, Lab, Subject, connector, row_str, wait_for, wait_until};

/// One volume and what is known of its first megabyte.
pub(crate) struct Known {
    pub(crate) id: String,
    pub(crate) sum: String,
}

/// Volumes of a type whose data has reached site B.
pub(crate) fn mirrored_volumes(lab: &Lab, volume_type: &str, count: u32) -> Vec<Known> {
    let ids: Vec<String> = (0..count).map(|_| lab.create(json!({"volume_type": volume_type}))).collect();
    for id in &ids {
        assert_eq!(lab.wait_status(id, "available")["replication_status"], "enabled");
    }
    let mut known = Vec::new();
    for (n, id) in ids.into_iter().enumerate() {
        lab.wait_mirrored(&id, "b");
        let seed = 100 + n as u32;
        let sum = lab.write("a", &id, seed);
        lab.wait_replicated(&id, "a", seed);
        known.push(Known { id, sum });
    }
    known
}

/// `cinder failover-host`.
pub(crate) fn order(lab: &Lab, target: &str) {
    wait_until("the API takes the order", 60, || {
        match lab.try_api("services.failover_host", json!([CEPH]), json!({"backend_id": target})) {
            Ok(_) => true,
            // 404 and 400 while the service's row is not fresh after a restart of the database or itself.
            Err(e) if matches!(e.code, Some(400 | 404)) => {
                assert_ne!(lab.service(CEPH)["replication_status"], "failover-error", "{e}");
                false
            }
            Err(e) => panic!("failover to {target}: {e}"),
        }
    });
}

/// Until the service's row says that the order has been carried out, one way or the other.
pub(crate) fn wait_decided(lab: &Lab) -> String {
    wait_for("the failover is decided", 240, || {
        let row = lab.service(CEPH);
        let status = row_str(&row, "replication_status");
        (status != "failing-over").then(|| status.to_owned())
    })
}

/// Order it and expect it to succeed: the service's row and every volume's.
pub(crate) fn fail_over(lab: &Lab, volumes: &[Known]) {
    order(lab, "site-b");
    assert_eq!(wait_decided(lab), "failed-over");
    let row = lab.service(CEPH);
    assert_eq!(
        (&row["active_backend_id"], &row["disabled"], &row["disabled_reason"]),
        (&json!("site-b"), &json!(1), &json!("failed-over"))
    );
    for v in volumes {
        let row = lab.volume(&v.id);
        assert_eq!(
            (row_str(&row, "replication_status"), row_str(&row, "status")),
            ("failed-over", "available")
        );
    }
}

/// Failback, expected to succeed.
pub(crate) fn fail_back(lab: &Lab, volumes: &[Known]) {
    order(lab, "default");
    assert_eq!(wait_decided(lab), "enabled");
    let row = lab.service(CEPH);
    assert_eq!(
        (&row["active_backend_id"], &row["disabled"], &row["disabled_reason"]),
        (&json!(""), &json!(0), &json!(""))
    );
    for v in volumes {
        let row = lab.volume(&v.id);
        assert_eq!((row_str(&row, "replication_status"), row_str(&row, "status")), ("enabled", "available"));
        assert_eq!(lab.image("a", &v.id)["primary"], true);
    }
}

/// The data is there and a virtual machine on site B could go on writing, now.
pub(crate) fn expect_served_from_b(lab: &Lab, volumes: &[Known], a_is_away: bool) {
    for v in volumes {
        assert_eq!(lab.checksum("b", &v.id), v.sum, "volume {}", v.id);
        assert_eq!(lab.image("b", &v.id)["primary"], true);
        let answer = lab.try_write("b", &v.id, 9);
        if a_is_away && lab.subject == Subject::Stock {
            eprintln!("stock, site A away, a write on B: {answer} (known to be refused)");
        } else {
            assert_eq!(answer, "ok", "a write on site B to volume {}", v.id);
        }
    }
    // Compute hosts are sent to the monitors of site B.
    let conf = std::fs::read_to_string(&lab.env["SITE_B_CONF"]).unwrap();
    let connection =
        lab.api("volumes.initialize_connection", json!([volumes[0].id, connector("compute1")]), json!({}));
    let host = connection["data"]["hosts"][0].as_str().unwrap();
    assert!(conf.contains(host), "{host} is a monitor of site B");
}

/// New data written on B, and mirrored to A.
pub(crate) fn rewrite_on_b(lab: &Lab, volumes: &mut [Known]) {
    for (n, v) in volumes.iter_mut().enumerate() {
        let seed = 200 + n as u32;
        v.sum = lab.write("b", &v.id, seed);
        lab.wait_replicated(&v.id, "b", seed);
    }
}

/// The data is on site A, which is the primary again, and mirrors to B.
pub(crate) fn expect_served_from_a(lab: &Lab, volumes: &[Known]) {
    for v in volumes {
        assert_eq!(lab.checksum("a", &v.id), v.sum, "volume {}", v.id);
    }
    settle(lab, volumes, "a");
}

/// Until what is written on `from` arrives on the other side. The mirror status cannot tell: it may be
/// half a minute old. A primary deleted before that leaves its replica behind for ever.
pub(crate) fn settle(lab: &Lab, volumes: &[Known], from: &str) {
    // Never the same data twice: it would be there before it arrives.
    static SEED: AtomicU32 = AtomicU32::new(900);
    let other = if from == "a" { "b" } else { "a" };
    for v in volumes {
        let seed = SEED.fetch_add(1, Ordering::Relaxed);
        lab.write(from, &v.id, seed);
        lab.wait_replicated(&v.id, from, seed);
        assert_eq!(lab.image(other, &v.id)["primary"], false);
    }
}

pub(crate) fn clean(lab: &Lab, volumes: &[Known]) {
    lab.delete(&volumes.iter().map(|v| v.id.as_str()).collect::<Vec<_>>());
}
