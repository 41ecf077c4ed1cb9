//! Many backends in one process, and one of them in trouble.

use std::fs;
use std::time::Instant;

use serde_json::json;

use crate::common::{Lab, full, is_up, wait_until};
use crate::swept;

const WHY: &str = "stock has a process for each backend";

/// Proportional set size of a process in KiB.
fn pss(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
}

/// Made and in trouble, restarted and removed: what is asked of another backend meanwhile is done at once.
#[test]
fn a_backend_in_trouble_costs_the_others_nothing() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let host = swept(&lab);
    let mut creation = host.creation("far");
    creation["options"]["rbd_ceph_conf"] = json!(lab.env["SITE_B_CONF"]);
    host.order("create", creation);
    // Its cluster hangs: another one is made, used and removed beside it.
    lab.pause("site-b");
    let began = Instant::now();
    host.order("create", host.creation("near"));
    let (id, took) = host.volume("near", began);
    eprintln!("beside a backend whose cluster hangs: a backend and a volume on it in {took:?}");
    host.order("update", json!({"name": "near", "options": {"rbd_max_clone_depth": 2}}));
    lab.delete(&[&id]);
    host.remove("near");
    host.is_gone("near");
    let took = began.elapsed();
    assert!(took.as_secs() < 45, "{took:?}");
    // That one can be removed while its cluster hangs.
    host.remove("far");
    host.is_gone("far");
    lab.resume_site("site-b");
    assert!(is_up(&lab, "lab@ceph"));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn many_backends_in_one_process_stay_small_and_alive() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let host = swept(&lab);
    let count = if full() { 50 } else { 12 };
    let service = lab.service_pids()[0];
    let (before, workers) = (pss(service), lab.worker_pids().len());
    let names: Vec<String> = (0..count).map(|n| format!("many-{n}")).collect();
    let began = Instant::now();
    for name in &names {
        let mut creation = host.creation(name);
        creation["volume_type"] = json!(null);
        host.order("create", creation);
    }
    eprintln!("{count} backends one after the other in {:?}", began.elapsed());
    let all = lab.rows(
        "SELECT host, report_count FROM services WHERE host LIKE 'lab@many-%' AND deleted = 0 ORDER BY host",
        &[],
    );
    assert_eq!(all.len(), count);
    wait_until("each has a heartbeat of its own", 60, || {
        let now = lab.rows(
            "SELECT host, report_count FROM services WHERE host LIKE 'lab@many-%' AND deleted = 0 ORDER BY host",
            &[],
        );
        now.iter().zip(&all).all(|(now, then)| now["report_count"].as_i64() > then["report_count"].as_i64())
    });
    let after = pss(service);
    eprintln!(
        "the service: {} MiB before, {} MiB with {count} more backends (PSS; debug build); {} workers",
        before / 1024,
        after / 1024,
        lab.worker_pids().len()
    );
    assert!(after < 150 * 1024, "{} MiB", after / 1024);
    assert!(lab.worker_pids().len() <= workers + 1, "connections to Ceph are shared");
    for name in &names {
        host.order("delete", json!({"name": name}));
    }
    eprintln!("all gone: {} MiB", pss(service) / 1024);
    for name in &names {
        let left = host.queues().into_iter().filter(|queue| queue.contains(&format!("@{name}"))).count();
        assert_eq!(left, 0, "queues of {name}");
        if !full() {
            host.is_gone(name);
        }
    }
}
