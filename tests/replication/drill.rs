//! What all drills have in common: volumes with known data, the order, and what must then be true.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, Subject, connector, row_str, wait_for, wait_until};

/// One volume and what is known of its first megabyte.
pub(crate) struct Known {
    pub(crate) id: String,
    pub(crate) sum: String,
}

/// Both ways of mirroring, two volumes each: what is true of one is asked of the other beside it.
pub(crate) const BOTH: &[&str] = &["replicated", "replicated-snapshot", "replicated", "replicated-snapshot"];

/// Volumes of a type whose data has reached site B.
pub(crate) fn mirrored_volumes(lab: &Lab, volume_type: &str, count: usize) -> Vec<Known> {
    mirrored(lab, &vec![volume_type; count])
}

/// A volume of each of these types; their data has reached site B.
pub(crate) fn mirrored(lab: &Lab, volume_types: &[&str]) -> Vec<Known> {
    mirrored_with(lab, volume_types, &json!({}))
}

/// The same with more that is asked of cinder-api.
pub(crate) fn mirrored_with(lab: &Lab, volume_types: &[&str], more: &Value) -> Vec<Known> {
    let create = |volume_type: &&str| {
        let mut spec = more.clone();
        spec["volume_type"] = json!(volume_type);
        lab.create(spec)
    };
    let mut known: Vec<Known> =
        volume_types.iter().map(|t| Known { id: create(t), sum: String::new() }).collect();
    for v in &known {
        assert_eq!(lab.wait_status(&v.id, "available")["replication_status"], "enabled");
    }
    for v in &known {
        lab.wait_mirrored(&v.id, "b");
    }
    rewrite(lab, &mut known, "a");
    known
}

/// Data that no volume has had before: that it arrives shows that it was mirrored.
pub(crate) fn fresh() -> u32 {
    static SEED: AtomicU32 = AtomicU32::new(900);
    SEED.fetch_add(1, Ordering::Relaxed)
}

/// New data on `site`, which has arrived on the other one.
pub(crate) fn rewrite(lab: &Lab, volumes: &mut [Known], site: &str) {
    let seeds: Vec<u32> = volumes.iter().map(|_| fresh()).collect();
    for (v, seed) in volumes.iter_mut().zip(&seeds) {
        v.sum = lab.write(site, &v.id, *seed);
    }
    let written: Vec<(&str, u32)> = volumes.iter().map(|v| v.id.as_str()).zip(seeds).collect();
    lab.wait_all_replicated(&written, site);
}

/// Primary on both sites at once: what is written to one of them is lost one day. Each is counted.
pub(crate) fn splits(lab: &Lab, volumes: &[Known]) -> usize {
    let primary = |site: &str, v: &Known| lab.image(site, &v.id)["primary"] == true;
    volumes.iter().filter(|v| primary("a", v) && primary("b", v)).count()
}

/// None of them, and rbd-mirror has found no histories that have parted.
#[track_caller]
pub(crate) fn expect_no_split(lab: &Lab, volumes: &[Known]) {
    let said = |site: &str, v: &Known| {
        let status = lab.ceph("status", json!({"site": site, "image": format!("volume-{}", v.id)}));
        row_str(&status, "description").contains("split-brain")
    };
    let parted = volumes.iter().filter(|v| said("a", v) || said("b", v)).count();
    assert_eq!((splits(lab, volumes), parted), (0, 0), "split-brain in a move that was in good order");
    eprintln!("split-brain: 0 of {} volumes", volumes.len());
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
#[track_caller]
pub(crate) fn fail_over(lab: &Lab, volumes: &[Known]) {
    order(lab, "site-b");
    assert_eq!(wait_decided(lab), "failed-over");
    expect_failed_over(lab, volumes);
}

/// The rows of a backend that is on site B, and of its volumes.
#[track_caller]
pub(crate) fn expect_failed_over(lab: &Lab, volumes: &[Known]) {
    let row = lab.service(CEPH);
    assert_eq!(
        (&row["active_backend_id"], &row["disabled"], &row["disabled_reason"]),
        (&json!("site-b"), &json!(1), &json!("failed-over"))
    );
    expect_rows(lab, volumes, "failed-over");
}

/// What the rows of volumes that are well say of their replication.
#[track_caller]
pub(crate) fn expect_rows(lab: &Lab, volumes: &[Known], status: &str) {
    for v in volumes {
        let row = lab.volume(&v.id);
        assert_eq!((row_str(&row, "replication_status"), row_str(&row, "status")), (status, "available"));
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
    expect_rows(lab, volumes, "enabled");
    for v in volumes {
        assert_eq!(lab.image("a", &v.id)["primary"], true);
    }
}

/// The data is there and a virtual machine on site B could go on writing, now.
#[track_caller]
pub(crate) fn expect_served_from_b(lab: &Lab, volumes: &[Known], a_is_away: bool) {
    for v in volumes {
        assert_eq!(lab.checksum("b", &v.id), v.sum, "volume {}", v.id);
    }
    expect_writable_on_b(lab, volumes, a_is_away);
}

/// The same without a look at the data.
#[track_caller]
pub(crate) fn expect_writable_on_b(lab: &Lab, volumes: &[Known], a_is_away: bool) {
    for v in volumes {
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
    let other = if from == "a" { "b" } else { "a" };
    let written: Vec<(&str, u32)> = volumes.iter().map(|v| (v.id.as_str(), fresh())).collect();
    for (id, seed) in &written {
        lab.write(from, id, *seed);
    }
    lab.wait_all_replicated(&written, from);
    for v in volumes {
        assert_eq!(lab.image(other, &v.id)["primary"], false);
    }
}

pub(crate) fn clean(lab: &Lab, volumes: &[Known]) {
    lab.delete(&volumes.iter().map(|v| v.id.as_str()).collect::<Vec<_>>());
}

// ---- the operator's tool ------------------------------------------------------------------------------
/// The document of a command of `scoria-manage replication`, and its exit code.
#[track_caller]
pub(crate) fn ask(lab: &Lab, words: &[&str]) -> (Value, i32) {
    let command = ["--format", "json", "replication"].iter().chain(words).copied().collect::<Vec<_>>();
    let output = lab.manage(&command);
    let said = String::from_utf8_lossy(&output.stderr);
    let document = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{words:?}: {e}: {}{said}", String::from_utf8_lossy(&output.stdout)));
    (document, output.status.code().expect("an exit code"))
}

/// The same for an order that has to be carried out to its end.
#[track_caller]
pub(crate) fn carry_out(lab: &Lab, words: &[&str]) -> Value {
    let (document, code) = ask(lab, words);
    assert_eq!(code, 0, "{words:?}: {document:#}\n{}", lab.service_log());
    document
}

/// What is said on standard error of one that has to fail.
#[track_caller]
pub(crate) fn refused(lab: &Lab, words: &[&str]) -> String {
    let output = lab.manage(&[&["replication"], words].concat());
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let text = said(&output.stdout) + &said(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
    text
}

/// `failover --backend … --to SITE` of these volumes (none: of the whole backend), with what is said of the site.
pub(crate) fn move_order<'a>(to: &'a str, volumes: &'a [Known], intent: Option<&'a str>) -> Vec<&'a str> {
    let named = volumes.iter().flat_map(|v| ["--volume", v.id.as_str()]);
    ["failover", "--backend", CEPH, "--to", to, "--yes"].into_iter().chain(named).chain(intent).collect()
}
