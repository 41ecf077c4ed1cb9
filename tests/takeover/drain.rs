//! Before stock takes over, `scoria-manage operation drain` leaves nothing open in the journal.

use serde_json::{Value, json};

use crate::common::{CEPH_QUEUE, Lab, PLAIN_QUEUE, Subject, wait_until};

const WHY: &str = "stock has no journal";

fn report(out: &std::process::Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| {
        panic!("{e}: {}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    })
}

fn open(lab: &Lab) -> usize {
    lab.rows("SELECT id FROM scoria_operations WHERE state = 'open'", &[]).len()
}

/// Consumers of both backends' queues.
fn consumers(lab: &Lab) -> Value {
    let of = |queue: &str| lab.driver.call("depth", json!({"queue": queue})).unwrap()["consumers"].clone();
    json!([of(CEPH_QUEUE), of(PLAIN_QUEUE)])
}

#[test]
fn a_service_that_runs_finishes_what_is_open_and_leaves_the_rest_to_stock() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let drain = |more: &[&str]| lab.manage(&[&["--format", "json", "operation", "drain"], more].concat());
    lab.alter();
    lab.pause("site-a-osd.0");
    let begun = lab.create(json!({"volume_type": "ceph"}));
    wait_until("it has begun", 60, || open(&lab) == 1);
    // What cannot end is told, and nobody is served meanwhile.
    let out = drain(&["--timeout", "3"]);
    let left = report(&out);
    assert_eq!((out.status.code(), &left["drained"]), (Some(1), &json!(false)), "{left}");
    assert_eq!(left["left"][0]["resource"], begun, "{left}");
    assert_eq!(left["left"][0]["why"], "lab works on it");
    assert_eq!(consumers(&lab), json!([0, 0]));
    // Called off, it serves again.
    assert_eq!(drain(&["--cancel"]).status.code(), Some(0));
    wait_until("it takes requests again", 30, || consumers(&lab) == json!([1, 1]));
    lab.resume_site("site-a");
    lab.wait_status(&begun, "available");

    let more: Vec<String> = (0..4).map(|_| lab.create(json!({"volume_type": "ceph"}))).collect();
    let out = drain(&[]);
    assert_eq!((out.status.code(), &report(&out)["drained"]), (Some(0), &json!(true)));
    assert_eq!(open(&lab), 0);
    let later = lab.create(json!({"volume_type": "ceph"}));
    lab.stop_service();
    assert_eq!(lab.volume(&later)["status"], "creating", "it waits in the queue");
    lab.hand_over_to(Subject::Stock);
    for id in more.iter().chain([&later]) {
        lab.wait_status(id, "available");
    }
    lab.hand_over_to(Subject::Scoria);
    lab.delete(&more.iter().chain([&begun, &later]).map(String::as_str).collect::<Vec<_>>());
    lab.wait_quota(json!({}));
}

#[test]
fn a_service_that_was_killed_is_started_to_finish_and_nothing_else() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    lab.alter();
    lab.stop_service();
    lab.start_service_with(&[], &[("SCORIA_CRASH_AT", "create_volume:image_created")]);
    let id = lab.create(json!({"volume_type": "ceph"}));
    lab.wait_service_gone(60);
    assert_eq!(open(&lab), 1);
    let waiting = std::thread::scope(|scope| {
        let drain =
            scope.spawn(|| lab.manage(&["--format", "json", "operation", "drain", "--timeout", "120"]));
        wait_until("the orders are given", 30, || open(&lab) == 3);
        lab.start_service();
        drain.join().unwrap()
    });
    assert_eq!((waiting.status.code(), &report(&waiting)["drained"]), (Some(0), &json!(true)));
    assert_eq!(lab.volume(&id)["status"], "available");
    assert_eq!((open(&lab), consumers(&lab)), (0, json!([0, 0])), "it took no requests");
    lab.stop_service();
    lab.start_service();
    lab.delete(&[&id]);
}
