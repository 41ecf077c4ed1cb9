//! One backend's life: made, used, changed, stopped, refused, removed; by RPC, by the example in docs, by the tool.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use serde_json::{Value, json};

use crate::common::{Lab, full, is_up, wait_until};
use crate::swept;

const WHY: &str = "stock's backends are those of its start";

#[test]
fn a_backend_that_is_made_takes_volumes_at_once() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let host = swept(&lab);
    let queues = host.queues();
    // The other backends work all the time.
    let other = lab.create(json!({"volume_type": "ceph"}));
    let began = Instant::now();
    let made = host.order("create", host.creation("quick"));
    let served = began.elapsed();
    let (id, available) = host.volume("quick", began);
    eprintln!("from create to a served backend: {served:?}; to an available volume on it: {available:?}");
    assert_eq!((&made["service"], &made["pool"]), (&json!("lab@quick"), &json!("lab@quick#quick")));
    assert_eq!(made["placeable"], true, "the scheduler has named it");
    assert_eq!(lab.volume(&id)["host"], "lab@quick#quick");
    assert!(lab.image_in("a", "volumes2", &id).is_object(), "the image is in the backend's pool");
    let mode = fs::metadata(host.file("quick")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(is_up(&lab, "lab@quick"));
    lab.wait_status(&other, "available");
    lab.delete(&[&other]);

    let refused = host.try_order("delete", json!({"name": "quick"}));
    let said = refused["detail"].as_str().unwrap_or_default().to_owned();
    assert!(refused["outcome"] == "failed" && said.contains(&format!("1 volumes ({id})")), "{refused}");
    lab.delete(&[&id]);

    // What is reported changes as it runs; anything else restarts it, and requests wait meanwhile.
    let live = host.order("update", json!({"name": "quick", "options": {"reserved_percentage": 12}}));
    assert_eq!(live["effect"], "live", "{live}");
    wait_until("the scheduler is told", 90, || {
        let pools = lab.api("pools.list", json!([]), json!({"detailed": true}));
        pools.as_array().into_iter().flatten().any(|pool| {
            pool["name"] == "lab@quick#quick" && pool.to_string().contains("\"reserved_percentage\":12")
        })
    });
    let restart = host.order("update", json!({"name": "quick", "options": {"rbd_max_clone_depth": 2}}));
    assert_eq!(restart["effect"], "restart", "{restart}");
    let (id, _) = host.volume("quick", Instant::now());
    lab.delete(&[&id]);

    // Stopped, it stays stopped; its requests wait for it.
    host.order("stop", json!({"name": "quick", "drain": true}));
    let id = lab.create(json!({"volume_type": "quick"}));
    lab.stop_service();
    lab.start_service();
    assert_eq!(host.ask("backend", "show", json!({"name": "quick"}))["result"]["state"], "stopped");
    host.order("start", json!({"name": "quick"}));
    lab.wait_status(&id, "available");
    lab.delete(&[&id]);

    let began = Instant::now();
    host.remove("quick");
    eprintln!("delete took {:?}", began.elapsed());
    host.is_gone("quick");
    assert_eq!(host.queues().len(), queues.len(), "{:?}", host.queues());
    let listed = lab.api("services.list", json!([]), json!({"binary": "cinder-volume"}));
    assert!(!listed.to_string().contains("quick"), "{listed}");
}

#[test]
fn backends_come_and_go_and_leave_nothing() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let host = swept(&lab);
    let (queues, workers) = (host.queues().len(), lab.worker_pids().len());
    let connections = || lab.tool(&["rabbitmqctl", "-q", "list_connections", "pid"]).lines().count();
    let open = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let service = lab.service_pids()[0];
    let (amqp, files) = (connections(), open(service));
    let rounds = if full() { 100 } else { 8 };
    let began = Instant::now();
    for _ in 0..rounds {
        host.order("create", host.creation("again"));
        host.remove("again");
    }
    eprintln!("{rounds} rounds of create and delete in {:?}", began.elapsed());
    host.is_gone("again");
    assert_eq!(host.queues().len(), queues);
    assert_eq!(connections(), amqp);
    assert!(
        lab.worker_pids().len() <= workers + 1,
        "{} workers, there were {workers}",
        lab.worker_pids().len()
    );
    assert!(open(service) <= files + 10, "{} files are open, there were {files}", open(service));
    let open = lab.rows("SELECT id FROM scoria_operations WHERE state = 'open'", &[]);
    assert!(open.is_empty(), "{open:?}");
    for table in ["scoria_site_uses", "scoria_backend_sites"] {
        let query = format!("SELECT * FROM {table} WHERE backend = 'lab@again'");
        wait_until("what was known of it is forgotten", 10, || lab.rows(&query, &[]).is_empty());
    }
}

#[test]
fn a_service_that_dies_while_it_makes_or_removes_a_backend_ends_it() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let host = swept(&lab);
    let (made, removed): (&[&str], &[&str]) = match full() {
        true => (
            &[
                "backend:create:recorded",
                "backend:create:written",
                "backend:create:started",
                "backend:create:served",
            ],
            &[
                "backend:delete:prepared",
                "backend:delete:stopped",
                "backend:delete:retired",
                "backend:delete:unqueued",
                "backend:delete:archived",
            ],
        ),
        false => (&["backend:create:written"], &["backend:delete:retired"]),
    };
    let points = made.iter().map(|p| (p, true)).chain(removed.iter().map(|p| (p, false)));
    for (point, creates) in points {
        if !creates {
            host.order("create", host.creation("phoenix"));
        }
        lab.stop_service();
        lab.start_service_with(&[], &[("SCORIA_CRASH_AT", point)]);
        let (method, args) = if creates {
            ("create", host.creation("phoenix"))
        } else {
            ("delete", json!({"name": "phoenix"}))
        };
        let ordered = host.ask("backend", method, args)["result"]["operation"].clone();
        lab.wait_service_gone(60);
        assert!(lab.service_log().contains(&format!("dying at {point},")), "it died, but not there");
        lab.start_service();
        wait_until("the order ends", 60, || {
            let told = host.ask("backend", "get_operation", json!({"operation": ordered}));
            told["result"]["outcome"] == "succeeded"
        });
        if creates {
            let (id, _) = host.volume("phoenix", Instant::now());
            lab.delete(&[&id]);
            host.order("delete", json!({"name": "phoenix"}));
        }
        lab.forget_type("phoenix");
        host.is_gone("phoenix");
    }
}

#[test]
fn the_example_in_docs_makes_and_removes_a_backend() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let host = swept(&lab);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/backend_client.py");
    let run = |method: &str, arguments: Value| {
        let script = format!(
            "\"$SCORIA_VENV/bin/python\" {example} \"$SCORIA_CONF\" lab {method} '{arguments}' || true"
        );
        let told = lab.tool(&["exec", "sh", "-c", &script]);
        serde_json::from_str::<Value>(told.lines().last().unwrap_or_default()).unwrap()
    };
    let made = run("create", host.creation("stock"));
    assert_eq!(
        (&made["outcome"], &made["result"]["service"]),
        (&json!("succeeded"), &json!("lab@stock")),
        "{made}"
    );
    let listed = run("list", json!({"all_hosts": true}));
    assert!(
        listed["backends"].to_string().contains("lab@stock") && listed["silent_hosts"].is_array(),
        "{listed}"
    );
    let refused = run("create", json!({"name": "stock2", "options": {"rbd_pol": "x"}}));
    assert!(
        refused["refused"].to_string().contains("InvalidInput")
            && refused["text"].to_string().contains("rbd_pool"),
        "{refused}"
    );
    let refused = run(
        "create",
        json!({"name": "stock2", "options": {"rbd_pool": "nothing", "rbd_user": "cinder",
        "rbd_ceph_conf": lab.env["SITE_A_CONF"]}}),
    );
    assert!(refused["detail"].to_string().contains("pool nothing is not there"), "{refused}");
    host.is_gone("stock2");
    let gone = run("delete", json!({"name": "stock"}));
    assert_eq!(gone["outcome"], "succeeded", "{gone}");
    lab.forget_type("stock");
    host.is_gone("stock");
}

#[test]
fn the_tool_files_marks_and_a_second_site() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let host = swept(&lab);
    let manage = |words: &[&str]| {
        let done = lab.manage(&[&["--format", "json"], words].concat());
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{words:?}: {said}");
        serde_json::from_slice::<Value>(&done.stdout).unwrap()
    };
    manage(&["cluster", "label", "create", "row-7"]);
    // On the other site, in a zone of its own, with a mark.
    let conf = format!("rbd_ceph_conf={}", lab.env["SITE_B_CONF"]);
    let made = manage(&[
        "backend",
        "create",
        "far",
        "-o",
        "rbd_pool=volumes2",
        "-o",
        "rbd_user=cinder",
        "-o",
        &conf,
        "-o",
        "backend_availability_zone=zone-b",
        "-o",
        "host_cluster_id=row-7",
        "--volume-type",
        "far",
    ]);
    assert_eq!(made["result"]["service"], "row-7!lab@far", "{made}");
    let service = lab.service("row-7!lab@far");
    assert_eq!((&service["availability_zone"], &service["cluster_name"]), (&json!("zone-b"), &Value::Null));
    // The API remembers zones for an hour.
    lab.stop("cinder-api");
    lab.start("cinder-api");
    let in_zone = json!({"volume_type": "far", "availability_zone": "zone-b"});
    let id = lab.create(in_zone.clone());
    lab.wait_status(&id, "available");
    assert_eq!(lab.volume(&id)["host"], "row-7!lab@far#far");
    assert!(lab.image_in("b", "volumes2", &id).is_object(), "on the other cluster");
    lab.delete(&[&id]);
    let refused = lab.manage(&["cluster", "label", "delete", "row-7"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("borne by: row-7!lab@far"), "{refused:?}");
    let listed = manage(&["backend", "list"]);
    assert!(listed.to_string().contains("row-7!lab@far"), "{listed}");

    // A file is edited by hand.
    let text = fs::read_to_string(host.file("far")).unwrap();
    let shown = || manage(&["backend", "show", "far"]);
    fs::write(host.file("far"), format!("{text}reserved_percentage = 900\n")).unwrap();
    wait_until("the mistake is noticed", 20, || {
        shown()["problem"].to_string().contains("reserved_percentage")
    });
    fs::write(host.file("far"), format!("{text}reserved_percentage = 9\n")).unwrap();
    wait_until("and its correction", 20, || shown()["problem"].is_null());
    assert!(lab.service_log().contains("options of a running backend have changed"));

    let renamed = manage(&["backend", "rename", "far", "farther", "--yes"]);
    assert_eq!(renamed["result"]["service"], "row-7!lab@farther", "{renamed}");
    let id = lab.create(in_zone);
    lab.wait_status(&id, "available");
    assert_eq!(
        lab.volume(&id)["host"],
        "row-7!lab@farther#far",
        "the type leads there by volume_backend_name"
    );
    lab.delete(&[&id]);
    manage(&["backend", "delete", "farther", "--yes"]);
    manage(&["cluster", "label", "delete", "row-7"]);
    lab.forget_type("far");
    host.is_gone("far");
    host.is_gone("farther");
}
