//! How far behind the copies are, as the service has learned it from real daemons: figures of both modes that are true,
//! and an objective that is broken while rbd-mirror hangs, told, and well again.

use std::time::Instant;

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, row_str, wait_for, wait_until};
use crate::drill::*;
use crate::modes::volume_type;
use crate::unplanned::restart_with;

/// The copy of a volume on site B.
fn copy(lab: &Lab, volume: &Known) -> Option<Value> {
    let (lag, code) = ask(lab, &["lag", "--backend", CEPH]);
    assert_eq!(code, 0, "{lag:#}");
    lag[0]["copies"].as_array()?.iter().find(|c| c["volume"] == volume.id && c["site"] == "site-b").cloned()
}

fn number(copy: &Value, key: &str) -> i64 {
    copy[key].as_i64().unwrap_or(-1)
}

/// Under three looks, the copy has all that was written: by journal as of a report, by snapshots as of the last one.
pub(crate) fn expect_in_step(lab: &Lab, volume: &Known, mode: &str) -> Value {
    let told = wait_for("the copy has been reported on", 90, || {
        copy(lab, volume).filter(|c| c["state"] == "replaying" && c["last_sync"].is_string())
    });
    assert_eq!((&told["mode"], &told["fault"]), (&json!(mode), &Value::Null), "{told}");
    // Reports are up to half a minute old, and nobody may have taken a mirror snapshot meanwhile.
    assert!((0..=120).contains(&number(&told, "lag_seconds")), "{told}");
    assert_eq!(number(&told, "bytes_behind").max(0), 0, "{told}");
    if mode == "journal" {
        assert_eq!(number(&told, "entries_behind"), 0, "{told}");
    }
    told
}

/// Two minutes: the daemon is known to be away after its watch has timed out, and what is shorter than a look and a
/// report cannot be told from no lag.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn an_objective_is_broken_while_the_daemon_hangs_and_well_when_it_goes_on() {
    let lab = &Lab::get();
    if !lab.only_scoria("stock never looks") {
        return;
    }
    let strict = volume_type(lab, "strict", &[("replication:rpo_seconds", "5")]);
    lab.stop_service();
    restart_with(lab, "scoria_replication_poll_interval = 3");
    let mut volumes = mirrored(lab, &[&strict, "replicated-snapshot"]);
    lab.listen();
    let told = expect_in_step(lab, &volumes[0], "journal");
    assert_eq!((&told["rpo_seconds"], &told["rpo_breached"]), (&json!(5), &json!(false)), "{told}");
    let told = expect_in_step(lab, &volumes[1], "snapshot");
    assert_eq!((&told["rpo_seconds"], &told["rpo_breached"]), (&Value::Null, &json!(false)), "{told}");

    lab.pause("rbd-mirror-b");
    let paused = Instant::now();
    for v in &volumes {
        lab.write("a", &v.id, fresh());
    }
    wait_until("the objective is broken", 150, || {
        copy(lab, &volumes[0]).is_some_and(|c| c["rpo_breached"] == true)
    });
    let waited = i64::try_from(paused.elapsed().as_secs()).unwrap();
    for v in &volumes {
        let told = copy(lab, v).unwrap();
        // The last report may be half a minute older than the pause.
        let age = number(&told, "lag_seconds");
        assert!(age > 33 && age >= waited - 10 && age < waited + 130, "after {waited} s: {told}");
    }
    let row = lab.volume(&volumes[0].id);
    let said = row_str(&row, "replication_extended_status");
    assert!(said.starts_with("degraded: the copy on site-b is older than the 5 s"), "{row}");
    assert_eq!(row["replication_status"], "enabled", "an image that lags is mirrored all the same");
    assert_eq!(row_str(&lab.volume(&volumes[1].id), "replication_extended_status"), "", "its type allows it");
    let (status, _) = ask(lab, &["status", "--backend", CEPH]);
    assert_eq!(status[0]["degraded"], 1, "{status:#}");

    lab.resume("rbd-mirror-b");
    rewrite(lab, &mut volumes, "a");
    wait_until("nothing is degraded", 120, || {
        copy(lab, &volumes[0]).is_some_and(|c| c["rpo_breached"] == false)
            && row_str(&lab.volume(&volumes[0].id), "replication_extended_status").is_empty()
    });
    let heard = lab.heard();
    for event in ["volume.replication.degraded", "volume.replication.restored"] {
        let about = heard.iter().filter(|n| n.event == event);
        let told: Vec<&str> = about.map(|n| row_str(&n.body["payload"], "volume_id")).collect();
        assert_eq!(told, [volumes[0].id.as_str()], "{event}");
    }
    expect_no_split(lab, &volumes);
    clean(lab, &volumes);
}
