//! rbd-mirror as a child of scoria-volume, and what it copies.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::common::{Lab, is_gone, signal, wait_until};

/// The result of a command of `scoria-manage`, and whether it succeeded.
#[track_caller]
pub(crate) fn ask(lab: &Lab, words: &[&str]) -> (Value, bool) {
    let output = lab.manage(&[&["--format", "json"], words].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    let document: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{words:?}: {e}: {said}"));
    (document.get("result").cloned().unwrap_or(document), output.status.success())
}

#[track_caller]
pub(crate) fn good(lab: &Lab, words: &[&str]) -> Value {
    let (result, good) = ask(lab, words);
    assert!(good, "{words:?}: {result:#}");
    result
}

pub(crate) fn rbd(lab: &Lab, site: &str, words: &[&str]) -> String {
    lab.tool(&[&["rbd", site], words].concat())
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_site_whose_daemon_the_service_runs_takes_copies_and_changes_roles() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no sites") {
        return;
    }
    wait_until("both clusters are found", 60, || {
        ask(&lab, &["site", "list"]).0.as_array().unwrap().len() == 2
    });
    let name = |site: &str| {
        let fsid = lab.tool(&["ceph", site, "fsid"]).trim().to_owned();
        good(&lab, &["site", "show", &fsid])["name"].as_str().unwrap().to_owned()
    };
    let (a, b) = (name("a"), name("b"));
    let dir = tempfile::tempdir().unwrap();
    // The lab ends what is left of a service that died; this daemon is to be left.
    let id: Value =
        serde_json::from_str(&std::fs::read_to_string(lab.root.join("lab.json")).unwrap()).unwrap();
    let program = dir.path().join("rbd-mirror");
    let owner = format!("{}/rbd-mirror-child", id["id"].as_str().unwrap());
    std::fs::write(&program, format!("#!/bin/sh\nSCORIA_LAB_OWNER={owner} exec rbd-mirror \"$@\"\n"))
        .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let more = dir.path().join("more.conf");
    std::fs::write(&more, format!("[scoria]\nscoria_mirror_daemon_path = {}\n", program.display())).unwrap();
    let more = more.display().to_string();
    let start = || lab.start_service_with(&["--config-file", &more], &[]);
    lab.stop_service();
    start();
    // The lab's own daemon makes room.
    lab.stop("rbd-mirror-b");
    let missing = |status: &Value| {
        status["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f.as_str().unwrap().contains("no rbd-mirror serves pool volumes"))
    };
    wait_until("nobody serves the pool", 60, || missing(&ask(&lab, &["site", "daemon", "status", &b]).0));

    let conf = dir.path().join("b.conf");
    let text = std::fs::read_to_string(&lab.env["SITE_B_CONF"]).unwrap();
    let quick = "[global]\nrbd_mirror_pool_replayers_refresh_interval = 3\nrbd_mirror_image_state_check_interval = 3\n\
                 rbd_mirror_leader_heartbeat_interval = 1\nrbd_mirror_journal_poll_age = 1\n";
    std::fs::write(&conf, format!("{text}\n{quick}")).unwrap();
    let keyring = lab.root.join("ceph/site-b/keys/client.rbd-mirror.site-b.keyring").display().to_string();
    let conf = conf.display().to_string();
    let files = ["--user", "rbd-mirror.site-b", "--conf", &conf, "--keyring", &keyring, "--copy"];

    // A user that the cluster does not know: it is said why.
    let wrong = ["--user", "nobody", "--conf", &conf];
    let refused = lab.manage(&[&["site", "daemon", "start", &b, "--by", "child"], &wrong[..]].concat());
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(!refused.status.success() && said.contains("rbd-mirror has ended at once"), "{said}");

    let started = good(&lab, &[&["site", "daemon", "start", &b, "--by", "child"], &files[..]].concat());
    let pid = started["pid"].as_i64().unwrap() as i32;
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.contains("client.rbd-mirror.site-b"), "{line}");
    let served = || {
        let status = ask(&lab, &["site", "daemon", "status", &b]).0;
        let pools = status["pools"].as_array().unwrap();
        pools.iter().any(|p| p["pool"] == "volumes" && p["leader"].is_string())
    };
    wait_until("it leads", 90, served);

    // The orchestrator's commands are known to a real manager, which has none.
    let orchestrator = lab.manage(&["site", "daemon", "start", &a, "--by", "orchestrator"]);
    let said = String::from_utf8_lossy(&orchestrator.stdout).into_owned();
    assert!(said.contains("has no orchestrator") || said.contains("mgr 'allow rw'"), "{said}");

    // An administrator sees the daemons of the manager's map.
    let admin = ["site", "register", &b, "--user", "admin", "--conf", &lab.env["SITE_B_CONF"]];
    good(&lab, &admin);
    wait_until("the manager knows it", 60, || {
        let status = ask(&lab, &["site", "daemon", "status", &b]).0;
        let services = status["services"].as_array().cloned().unwrap_or_default();
        services.iter().any(|s| s["id"] == "site-b" && s["version"].as_str().unwrap().starts_with("16."))
    });
    let told = lab.manage(&["site", "daemon", "start", &b, "--by", "orchestrator"]);
    let said = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(said.contains("is run by child"), "{said}");
    good(&lab, &["site", "register", &b, "--user", "cinder", "--conf", &lab.env["SITE_B_CONF"]]);

    // What it copies: an image that Cinder does not know.
    rbd(&lab, "a", &["create", "volumes/stranger", "--size", "64M"]);
    let copied = good(&lab, &["replicate", &a, "volumes/stranger"]);
    assert_eq!(copied["images"][0]["fate"]["step"], "replaying", "{copied:#}");
    let info: Value =
        serde_json::from_str(&rbd(&lab, "a", &["info", "volumes/stranger", "--format", "json"])).unwrap();
    let object = format!("{}.0000000000000001", info["block_name_prefix"].as_str().unwrap());
    let which = good(&lab, &["rbd", "which-volume", &object]);
    let found = &which["found"][0];
    assert_eq!(
        (&found["image"], &found["site"], &found["volume"]),
        (&json!("stranger"), &json!(a), &Value::Null),
        "{which:#}"
    );
    assert_eq!(found["about"]["bytes"], json!([4 << 20, 8 << 20]));
    assert_eq!(good(&lab, &["rbd", "half-deleted", &a, "volumes"])["images"], json!([]));

    // Back to a snapshot, by what has changed since.
    rbd(&lab, "a", &["create", "volumes/reverted", "--size", "64M"]);
    let write = |seed: u64, offset: u64| {
        lab.ceph("write", json!({"site": "a", "image": "reverted", "seed": seed, "offset": offset}));
    };
    let sum = |offset: u64| lab.ceph("checksum", json!({"site": "a", "image": "reverted", "offset": offset}));
    write(1, 0);
    write(2, 8 << 20);
    rbd(&lab, "a", &["snap", "create", "volumes/reverted@before"]);
    let before = (sum(0), sum(8 << 20), sum(16 << 20));
    write(3, 8 << 20);
    write(4, 16 << 20);
    let reverted = good(&lab, &["rbd", "revert-fast", &a, "volumes/reverted@before", "--yes"]);
    assert_eq!(reverted["bytes"], json!(2 << 20), "{reverted:#}");
    assert_eq!((sum(0), sum(8 << 20), sum(16 << 20)), before);
    rbd(&lab, "a", &["snap", "rm", "volumes/reverted@before"]);

    rbd(&lab, "a", &["rm", "volumes/reverted"]);

    let moved = good(&lab, &["rbd", "switch", &b, "volumes/stranger", "--yes"]);
    assert_eq!(moved["images"][0]["fate"], json!({"step": "moved", "forced": false}), "{moved:#}");
    wait_until("it replays on the other side", 120, || {
        let (would, _) = ask(&lab, &["rbd", "switch", &a, "volumes/stranger", "--dry-run"]);
        would["images"][0]["fate"]["way"] == "hand-over"
    });
    good(&lab, &["rbd", "switch", &a, "volumes/stranger", "--yes"]);

    // Schedules, as the manager keeps them.
    good(&lab, &["schedule", "add", &a, "1h@00:30", "--pool", "volumes"]);
    let listed = good(&lab, &["schedule", "list", &a, "--pool", "volumes"]);
    assert_eq!(listed["levels"][0]["schedules"], json!(["1h@00:30"]), "{listed:#}");
    good(&lab, &["schedule", "status", &a, "--pool", "volumes"]);
    let refused = lab.manage(&["schedule", "add", &a, "5m", "--pool", "volumes", "--image", "stranger"]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(!refused.status.success() && said.contains("not mirrored by snapshots"), "{said}");
    good(&lab, &["schedule", "remove", &a, "--pool", "volumes"]);
    assert_eq!(good(&lab, &["schedule", "list", &a, "--pool", "volumes"])["levels"], json!([]));

    // It dies, and another comes; its service dies, and the next one finds it.
    signal("KILL", &[pid]);
    let state = || {
        let rows = lab.rows("SELECT state, pid FROM scoria_mirror_daemons", &[]);
        (
            rows[0]["state"].as_str().unwrap_or_default().to_owned(),
            rows[0]["pid"].as_i64().unwrap_or(0) as i32,
        )
    };
    wait_until("another runs", 60, || state().0 == "running" && state().1 != pid);
    let second = state().1;
    lab.kill_service_alone();
    start();
    wait_until("it is found again", 60, || {
        lab.service_log().contains("an rbd-mirror runs already, and is looked after from now on")
    });
    assert_eq!(state(), ("running".to_owned(), second));
    assert!(!is_gone(second));
    let again = good(&lab, &["site", "daemon", "start", &b]);
    assert_eq!(again["pid"], json!(second), "{again:#}");

    good(&lab, &["site", "daemon", "stop", &b]);
    assert!(is_gone(second));
    lab.start("rbd-mirror-b");
    rbd(&lab, "a", &["rm", "volumes/stranger"]);
    lab.wait_mirroring();
}
