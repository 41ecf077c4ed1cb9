//! A living site with an image that does not demote, because a client keeps its lock: what each intent makes of it,
//! and how that client is kept out when the image has been left to it by force.

use serde_json::{Value, json};

use crate::common::{CEPH, Driver, Lab, row_str, wait_until};
use crate::drill::*;
use crate::unplanned::{restart_with, resync};

/// A client of site A that has an image open for itself, in a process of its own.
struct Machine {
    ceph: Driver,
    image: String,
    address: String,
}

impl Machine {
    fn start(lab: &Lab, volume: &Known) -> Machine {
        let (ceph, image) = (lab.machine(), format!("volume-{}", volume.id));
        let held = ceph.call("hold", json!({"site": "a", "image": image, "exclusive": true})).unwrap();
        let address = held.as_str().unwrap().to_owned();
        Machine { ceph, image, address }
    }

    fn call(&self, op: &str, more: Value) -> String {
        let mut args = json!({"site": "a", "image": self.image});
        args.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let answer = self.ceph.call_within(op, args, 60).unwrap_or_else(|e| panic!("{op}: {e}"));
        answer.as_str().unwrap_or_default().to_owned()
    }

    /// The checksum of what was written.
    fn write(&self) -> String {
        let said = self.call("held_write", json!({"seed": fresh()}));
        assert_eq!(said.len(), 64, "{said}");
        said
    }
}

fn advice(lab: &Lab, volume: &Known) -> String {
    let row = lab.volume(&volume.id);
    assert_eq!((&row["replication_status"], &row["status"]), (&json!("failover-error"), &json!("available")));
    row_str(&row, "replication_extended_status").to_owned()
}

fn fences(lab: &Lab) -> Vec<Value> {
    let (fences, code) = ask(lab, &["fences", "--backend", CEPH]);
    assert_eq!(code, 0);
    fences.as_array().unwrap().iter().filter(|f| f["state"] == "laid").cloned().collect()
}

/// Planned leaves two of four volumes behind, which are locked; one of them follows by a retry of its own when its lock
/// is gone, the other one by force, and its client is fenced because the configuration says so.
#[test]
fn locked_volumes_stay_until_they_are_retried_or_forced_and_then_their_client_is_fenced() {
    let lab = &Lab::get();
    if !lab.only_scoria("stock promotes all volumes by force when one is not demoted") {
        return;
    }
    let mut volumes = mirrored(lab, BOTH);
    lab.ceph("may_unfence", json!({"site": "a", "allowed": false}));
    lab.stop_service();
    restart_with(lab, "scoria_demote_timeout = 4\nscoria_fence_on_failover = true");
    let (forced, retried) = (Machine::start(lab, &volumes[0]), Machine::start(lab, &volumes[1]));

    let (outcome, code) = ask(lab, &move_order("site-b", &[], Some("--planned")));
    assert_eq!(code, 1, "{outcome:#}");
    assert_eq!(lab.service(CEPH)["replication_status"], "failed-over");
    expect_rows(lab, &volumes[2..], "failed-over");
    expect_served_from_b(lab, &volumes[2..], false);
    expect_no_split(lab, &volumes);
    for v in &volumes[..2] {
        let why = advice(lab, v);
        assert!(why.contains("could not be demoted in time, served from default"), "{why}");
        assert!(why.contains("scoria-manage replication retry"), "{why}");
        assert_eq!(lab.image("a", &v.id)["primary"], true, "never without a primary");
    }
    assert!(fences(lab).is_empty(), "who is served is not fenced");
    // Who has them open does not notice.
    volumes[0].sum = forced.write();
    volumes[1].sum = retried.write();

    retried.call("release", json!({}));
    carry_out(lab, &["retry", "--backend", CEPH, "--volume", &volumes[1].id]);
    expect_rows(lab, &volumes[1..], "failed-over");
    expect_no_split(lab, &volumes);
    expect_served_from_b(lab, &volumes[1..], false);
    advice(lab, &volumes[0]);

    // What it writes has left the site before it is forced out: it loses what it writes afterwards, and only that.
    lab.wait_copied(&volumes[0].id, "b", &volumes[0].sum);
    carry_out(lab, &move_order("site-b", &volumes[..1], Some("--force")));
    expect_rows(lab, &volumes, "failed-over");
    assert_eq!(splits(lab, &volumes), 1, "the one that was ordered");
    expect_served_from_b(lab, &volumes, false);
    wait_until("its client is fenced", 60, || !fences(lab).is_empty());
    let laid = fences(lab);
    let told: Vec<&str> = laid.iter().map(|f| row_str(f, "address")).collect();
    assert_eq!(told, [forced.address.as_str()], "{laid:#?}");
    assert_eq!(laid[0]["volume_id"], volumes[0].id, "{laid:#?}");
    assert_ne!(row_str(&laid[0], "expires"), "", "until when, as the cluster says");
    let listed = lab.ceph("blocklist", json!({"site": "a"}));
    assert!(listed.as_array().unwrap().contains(&json!(forced.address)), "{listed}");
    let said = forced.call("held_write", json!({"seed": fresh()}));
    assert!(said.contains("Shutdown") || said.contains("108"), "a fenced client could write: {said}");
    // Neither rbd-mirror nor the service: what is written on B goes on arriving on A.
    rewrite(lab, &mut volumes[1..], "b");

    let said = refused(lab, &["unfence", "--backend", CEPH, "--site", "default"]);
    assert!(said.to_lowercase().contains("permi") || said.contains("not permitted"), "{said}");
    lab.ceph("may_unfence", json!({"site": "a", "allowed": true}));
    // A session keeps the rights that it began with.
    crate::common::signal("KILL", &lab.worker_pids());
    carry_out(lab, &["unfence", "--backend", CEPH, "--site", "default"]);
    assert!(fences(lab).is_empty());
    let listed = lab.ceph("blocklist", json!({"site": "a"}));
    assert!(!listed.as_array().unwrap().contains(&json!(forced.address)), "{listed}");
    lab.ceph("may_unfence", json!({"site": "a", "allowed": false}));
    drop(forced);

    let seed = fresh();
    volumes[0].sum = lab.write("b", &volumes[0].id, seed);
    resync(lab, &volumes[..1], "default", &[seed]);
    fail_back(lab, &volumes);
    expect_no_split(lab, &volumes);
    expect_served_from_a(lab, &volumes);
    clean(lab, &volumes);
}
