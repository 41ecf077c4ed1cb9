//! A backend that cannot come up says why and leaves the others alone.

use std::fs;

use serde_json::json;

use crate::common::{CEPH_QUEUE, Lab, PLAIN, PLAIN_QUEUE, wait_for, wait_until};

/// Start with `[plain]` changed, and expect `[ceph]` to work and `[plain]` to be down for a reason.
fn expect_only_plain_down(lab: &Lab, name: &str, change: &str, reason: &str) {
    let path = lab.root.join(format!("conf/tests-{name}.conf"));
    fs::write(&path, format!("[plain]\n{change}\n")).unwrap();
    lab.stop_service();
    lab.start_service_with(&["--config-file", path.to_str().unwrap()], &[]);
    let id = lab.volume_of_type("ceph");
    lab.delete(&[&id]);

    let shown = wait_for(&format!("{name}: plain is reported down"), 120, || {
        let list = lab.api("services.list", json!([]), json!({"binary": "cinder-volume", "host": PLAIN}));
        let service = list[0].clone();
        (service["state"] == "down" || service["backend_state"] == "down").then_some(service)
    });
    eprintln!("{name}: {shown}");
    let answer = lab.rpc(PLAIN_QUEUE, "get_capabilities", "3.0", json!({"discover": true}));
    let refused = answer["failure"]["class"] == "DriverNotInitialized";
    assert!(refused || answer["result"]["backend_state"] == "down", "{answer}");
    let log = lab.service_log();
    let down = |l: &str| l.contains("backend is down backend=lab@plain ") && l.contains(reason);
    assert!(log.lines().any(down), "the log says {reason}");
    let answer = lab.rpc(CEPH_QUEUE, "get_capabilities", "3.0", json!({"discover": true}));
    assert_eq!(answer["result"]["backend_state"], "up", "{answer}");
}

fn with_lab(test: impl FnOnce(&Lab)) {
    let lab = Lab::get();
    if lab.only_scoria("stock withholds the heartbeat and says so in its log only") {
        test(&lab);
    }
}

#[test]
fn a_missing_pool() {
    with_lab(|lab| {
        expect_only_plain_down(lab, "pool", "rbd_pool = no-such-pool", "pool no-such-pool: No such")
    });
}

#[test]
fn a_missing_keyring() {
    with_lab(|lab| {
        let reason = "(no keyring with its key was found)";
        expect_only_plain_down(lab, "keyring", "rbd_user = nobody", reason);
    });
}

#[test]
fn a_missing_ceph_conf() {
    with_lab(|lab| {
        expect_only_plain_down(
            lab,
            "conf",
            "rbd_ceph_conf = /nonexistent/ceph.conf",
            "cannot read /nonexistent/ceph.conf: No such file",
        );
    });
}

#[test]
fn a_wrong_key_and_its_correction() {
    with_lab(|lab| {
        let right = fs::read_to_string(&lab.env["SITE_A_CONF"]).unwrap();
        let conf = lab.root.join("conf/tests-wrong-key-ceph.conf");
        let keyring = lab.root.join("conf/tests-wrong-key.keyring");
        fs::write(&keyring, "[client.cinder]\n\tkey = AQAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAA==\n").unwrap();
        let at = right.find("[client.cinder]").unwrap();
        let wrong = format!("{}[client.cinder]\nkeyring = {}\n", &right[..at], keyring.display());
        fs::write(&conf, wrong).unwrap();
        let reason = "(the monitors refuse its key): Permission denied";
        expect_only_plain_down(lab, "key", &format!("rbd_ceph_conf = {}", conf.display()), reason);
        // Corrected, it comes up by itself.
        fs::write(&conf, right).unwrap();
        wait_until("plain comes up", 120, || {
            let answer = lab.rpc(PLAIN_QUEUE, "get_capabilities", "3.0", json!({"discover": true}));
            answer["result"]["backend_state"] == "up"
        });
        let id = wait_for("the scheduler places a volume on plain", 120, || {
            let id = lab.create(json!({"volume_type": "plain"}));
            let row = wait_for("an outcome", 60, || {
                let row = lab.volume(&id);
                (row["status"] != "creating").then_some(row)
            });
            if row["status"] == "available" {
                return Some(id);
            }
            lab.delete(&[&id]);
            None
        });
        lab.delete(&[&id]);
    });
}
