//! Backends by their files, with other hosts, and by RPC.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use scoria::backends::{self, Create, Order, Rename, Runner, Watcher};
use scoria::error::Code;
use scoria::model::Scope;
use scoria::rpc::{Call, Handler, envelope};
use scoria::service::questions::BackendsHandler;
use serde_json::{Value, json};

use crate::backend_scene::{Played, Scene, create, delete, made, named, options, played, rename};

#[tokio::test]
async fn files_are_noticed_checked_and_applied() {
    let scene = Scene::new().await;
    let watcher = Watcher::default();
    let look = async || watcher.look(&scene.backends).await.unwrap();
    look().await;
    scene.write("new", "[new]\nrbd_pool=volumes2\n");
    look().await;
    assert_eq!(scene.rows().await, ["ceph on running 0", "new new new 0"], "known, and not started");
    assert_eq!(scene.played.names(), ["ceph"]);
    scene.run(Order::Enable(named("new"))).await.unwrap();
    scene.is_there("new", "enabled").await;

    scene.write("new", "[new]\nrbd_pool=volumes2\nreserved_percentage=9\n");
    look().await;
    assert_eq!(scene.played.running("new").unwrap().reserved_percentage, 9);
    scene.write("new", "[new]\nrbd_pool=volumes2\nreserved_percentage=900\n");
    look().await;
    assert_eq!(scene.rows().await[1], "new on running 1", "what is wrong is told");
    assert_eq!(scene.played.running("new").unwrap().reserved_percentage, 9, "and the old options stay");
    let problem = scene.test.row("SELECT problem FROM scoria_backends WHERE name='new'").await;
    assert!(problem[0].contains("new.conf:3") && problem[0].contains("reserved_percentage"), "{problem:?}");
    scene.write("new", "[new]\nrbd_pool=nothing\n");
    look().await;
    assert_eq!(scene.played.running("new").unwrap().pool, "volumes2", "a pool that is not there");
    scene.write("new", "[new]\nrbd_pool=volumes2\nrbd_max_clone_depth=2\n");
    look().await;
    assert_eq!(scene.played.running("new").unwrap().max_clone_depth, 2, "restarted");
    scene.is_there("new", "right again").await;

    // Another cluster under the name of a site: nobody follows that by itself.
    let fsid = scene.test.row("SELECT fsid FROM scoria_backends WHERE name='new'").await.remove(0);
    let fsid = if fsid == "NULL" {
        scene.sim.site("a").call(scoria::rbd::protocol::Fsid {}).await.unwrap()
    } else {
        fsid
    };
    scene
        .test
        .sql(&format!(
            "INSERT INTO scoria_backend_sites (backend, site, fsid, conf, recorded_at)
             VALUES ('node1@new', 'default', '{fsid}', '', UTC_TIMESTAMP())"
        ))
        .await;
    let b = scene.dir.path().join("b.conf").display().to_string();
    scene.write("new", &format!("[new]\nrbd_pool=volumes2\nrbd_max_clone_depth=2\nrbd_ceph_conf={b}\n"));
    look().await;
    let problem = scene.test.row("SELECT problem FROM scoria_backends WHERE name='new'").await;
    assert!(problem[0].contains("replication adopt"), "{problem:?}");
    assert!(scene.played.running("new").unwrap().ceph_conf.ends_with("a.conf"));

    std::fs::remove_file(scene.path("new")).unwrap();
    look().await;
    assert_eq!(scene.rows().await[1], "new on running 1", "it runs on");
    assert!(scene.played.running("new").is_some());
    // One that nobody has enabled goes with its file; a wrong one is never known.
    scene.write("other", "[other]\nrbd_pool=volumes2\n");
    scene.write("wrong", "[wrong]\nrbd_pol=volumes2\nnonsense\n");
    look().await;
    assert_eq!(scene.rows().await[2], "other new new 0");
    assert_eq!(scene.rows().await.len(), 3);
    std::fs::remove_file(scene.path("other")).unwrap();
    look().await;
    assert_eq!(scene.rows().await.len(), 2);
    // The service's own files only when somebody says so.
    let conf = scene.dir.path().join("cinder.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::remove_file(scene.path("wrong")).unwrap();
    std::fs::write(&conf, format!("{text}[ceph]\nreserved_percentage=4\n")).unwrap();
    look().await;
    assert_eq!(scene.played.running("ceph").unwrap().reserved_percentage, 0);
    watcher.read_all(&scene.backends).await.unwrap();
    assert_eq!(scene.played.running("ceph").unwrap().reserved_percentage, 4);
}

#[tokio::test]
async fn members_of_a_cinder_cluster_serve_the_same_or_nothing() {
    let scene = Scene::with("[DEFAULT]\ncluster=c\n").await;
    scene.run(Order::Create(create("fast"))).await.unwrap();
    // The other host has a configuration of its own.
    let far_dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(scene.dir.path().join("cinder.conf")).unwrap();
    std::fs::write(far_dir.path().join("cinder.conf"), text.replace("host=node1", "host=node2")).unwrap();
    let far = played(&scene.test, &scene.broker, 0, None);
    let other = made(&scene.test, &scene.sim, &scene.heard, &far_dir, &far, "node2");
    let run = async |order: Order| {
        let (id, _) = backends::submit(&other.journal, "node2", order, None).await.unwrap();
        let operation = other.journal.adopt(&Scope::Host("node2".into())).await.unwrap().pop().unwrap();
        backends::run(&other, &operation).await;
        scene.ended(id).await
    };
    let differs = Create {
        options: options(&[("rbd_pool", "volumes2"), ("rbd_max_clone_depth", "1")]),
        ..create("fast")
    };
    let refused = run(Order::Create(differs)).await.unwrap_err();
    assert!(
        refused
            .contains("host node1 in Cinder cluster c@fast, which has other values of: rbd_max_clone_depth"),
        "{refused}"
    );
    run(Order::Create(create("fast"))).await.unwrap();
    assert_eq!(scene.services().await, ["node1@ceph", "node1@fast", "node2@fast"]);
    // What it has is the cluster's: one member may go, the last one may not.
    scene
        .test
        .sql(
            "INSERT INTO volumes (id, status, host, cluster_name, deleted, size, use_quota, volume_type_id)
              VALUES ('v1', 'available', 'node2@fast#fast', 'c@fast#fast', 0, 1, 1, 't')",
        )
        .await;
    run(Order::Delete(delete("fast"))).await.unwrap();
    assert_eq!(scene.services().await, ["node1@ceph", "node1@fast"]);
    assert_eq!(scene.test.row("SELECT deleted FROM clusters WHERE name='c@fast'").await, ["0"]);
    let refused = scene.run(Order::Delete(delete("fast"))).await.unwrap_err();
    assert!(refused.contains("1 volumes"), "{refused}");
    scene.test.sql("UPDATE volumes SET deleted=1").await;
    scene.run(Order::Delete(delete("fast"))).await.unwrap();
    assert_eq!(scene.test.row("SELECT deleted FROM clusters WHERE name='c@fast'").await, ["1"]);
    scene.run(Order::Create(create("fast"))).await.unwrap();
    scene.is_there("fast", "made again in its cluster").await;
}

#[tokio::test]
async fn volumes_of_a_host_that_is_no_more_are_taken_over() {
    let scene = Scene::new().await;
    scene
        .test
        .sql(
            "INSERT INTO services (host, `binary`, topic, report_count, disabled, deleted, updated_at, uuid)
               VALUES ('dead@old', 'cinder-volume', 'cinder-volume', 1, 0, 0, UTC_TIMESTAMP(), 'u-old');
             INSERT INTO volumes (id, status, host, deleted, size, use_quota, volume_type_id, service_uuid)
               VALUES ('v1', 'available', 'dead@old#pool', 0, 1, 1, 't', 'u-old')",
        )
        .await;
    let order = || Order::Rename(Rename { from: Some("dead@old".into()), ..rename("ceph", "ceph") });
    let refused = scene.run(order()).await.unwrap_err();
    assert!(refused.contains("Service dead@old is alive"), "{refused}");
    scene.test.sql("UPDATE services SET updated_at='2026-01-01' WHERE host='dead@old'").await;
    let moved = scene.run(order()).await.unwrap();
    assert_eq!(moved["changed"], json!({"services": 1, "volumes": 1}));
    let row = scene
        .test
        .row("SELECT v.host, s.host FROM volumes v JOIN services s ON s.uuid=v.service_uuid AND s.deleted=0 WHERE v.id='v1'")
        .await;
    assert_eq!(row, ["node1@ceph#RBD", "node1@ceph"]);
    assert_eq!(scene.services().await, ["node1@ceph"]);
}

fn call(namespace: &str, method: &str, args: Value) -> Call {
    let message = json!({"method": method, "args": args, "version": "1.0", "namespace": namespace,
        "_unique_id": "u", "_msg_id": "i", "_reply_q": "q", "_context_request_id": "req-7"});
    let Value::Object(message) = message else { unreachable!() };
    Call::from_delivery(&envelope::seal(&message), None).unwrap()
}

#[tokio::test]
async fn namespaces_backend_and_cluster_take_orders_and_tell_what_there_is() {
    let mut scene = Scene::new().await;
    let others = BTreeMap::from([("node3".to_owned(), json!([]))]);
    let running = scene.played.running.lock().unwrap().clone();
    scene.played = Arc::new(Played {
        others,
        running: Mutex::new(running),
        ..Arc::into_inner(played(&scene.test, &scene.broker, 0, None)).unwrap()
    });
    scene.backends = made(&scene.test, &scene.sim, &scene.heard, &scene.dir, &scene.played, "node1");
    let handler = BackendsHandler { backends: scene.backends.clone() };
    let asked = async |namespace: &str, method: &str, args: Value| {
        handler.run(&call(namespace, method, args), None).await
    };
    let label = json!({"id": "row-7", "name": "row seven"});
    asked("cluster", "create", label.clone()).await.unwrap();
    assert_eq!(asked("cluster", "create", label).await.unwrap_err().code(), Code::Conflict);
    assert_eq!(
        asked("cluster", "create", json!({"id": "a!b"})).await.unwrap_err().code(),
        Code::InvalidInput
    );

    let options = json!({"rbd_pool": "volumes2", "host_cluster_id": "row-7", "reserved_percentage": 3});
    let args = json!({"name": "fast", "options": options, "order": "mine"});
    let valid = asked("backend", "validate", json!({"name": "fast", "options": options})).await.unwrap();
    assert_eq!((&valid["valid"], &valid["problems"]), (&json!(true), &json!([])), "{valid}");
    let wrong =
        asked("backend", "validate", json!({"name": "fast", "options": {"rbd_pool": "nothing"}})).await;
    assert_eq!(wrong.unwrap()["valid"], false);
    let first = asked("backend", "create", args.clone()).await.unwrap();
    let again = asked("backend", "create", args).await.unwrap();
    assert_eq!((&first["operation"], &again["new"]), (&again["operation"], &json!(false)));
    backends::run(&scene.backends, &scene.adopt().await.unwrap()).await;
    let told = asked("backend", "get_operation", json!({"operation": first["operation"]})).await.unwrap();
    assert_eq!(
        (&told["outcome"], &told["result"]["service"]),
        (&json!("succeeded"), &json!("row-7!node1@fast"))
    );
    let shown = asked("backend", "show", json!({"name": "fast"})).await.unwrap();
    assert_eq!((&shown["label"], &shown["label_name"]), (&json!("row-7"), &json!("row seven")));
    assert_eq!((&shown["state"], &shown["availability_zone"]), (&json!("running"), &json!("nova")));
    let cluster = scene.test.row("SELECT cluster_name FROM services WHERE host='row-7!node1@fast'").await;
    assert_eq!(cluster, ["NULL"], "a mark is no Cinder cluster");
    let refused = asked("cluster", "delete", json!({"id": "row-7"})).await.unwrap_err();
    assert!(refused.user().contains("is borne by: row-7!node1@fast"), "{refused}");

    // All hosts: one answers, one does not.
    scene
        .test
        .sql("INSERT INTO scoria_backends SELECT 'node2', name, 'node2@fast', origin, path, checksum, fingerprints, fsid, pool,
                cluster, label, wanted, state, operation_id, problem, created_at, updated_at FROM scoria_backends WHERE name='fast';
              INSERT INTO scoria_backends SELECT 'node3', name, 'node3@fast', origin, path, checksum, fingerprints, fsid, pool,
                cluster, label, wanted, state, operation_id, problem, created_at, updated_at FROM scoria_backends WHERE host='node2'")
        .await;
    let all = asked("backend", "list", json!({"all_hosts": true, "timeout": 1})).await.unwrap();
    assert_eq!(all["silent_hosts"], json!(["node2"]));
    let hosts: Vec<&str> =
        all["backends"].as_array().unwrap().iter().map(|b| b["host"].as_str().unwrap()).collect();
    assert_eq!(hosts, ["node1", "node1", "node2"], "node3 says that it has none");
    assert_eq!(asked("backend", "list", json!({})).await.unwrap().as_array().unwrap().len(), 2);
    scene.test.sql("DELETE FROM scoria_backends WHERE host<>'node1'").await;

    // Withdrawn before it was taken, and in the middle.
    let waiting = asked("backend", "stop", json!({"name": "fast"})).await.unwrap();
    let cancelled = asked("backend", "cancel_operation", json!({"operation": waiting["operation"]})).await;
    assert_eq!(cancelled.unwrap()["cancelled"], true);
    let order = json!({"name": "late", "options": {"rbd_pool": "volumes2"}});
    let begun = asked("backend", "create", order).await.unwrap();
    let operation = scene.adopt().await.unwrap();
    scene
        .test
        .sql(&format!(
            "INSERT INTO scoria_backends (host, name, service, origin, path, checksum, fingerprints, pool, wanted, state,
               operation_id, created_at, updated_at) VALUES ('node1', 'late', 'node1@late', 'file', '{}', '', '{{}}', 'volumes2',
               'on', 'creating', {}, UTC_TIMESTAMP(), UTC_TIMESTAMP())",
            scene.path("late").display(),
            operation.id()
        ))
        .await;
    backends::tidy(&scene.backends).await.unwrap();
    assert_eq!(scene.rows().await.len(), 3, "it is still under way");
    let cancelled =
        asked("backend", "cancel_operation", json!({"operation": begun["operation"]})).await.unwrap();
    assert_eq!(cancelled["cancelled"], true);
    backends::tidy(&scene.backends).await.unwrap();
    scene.is_gone("late", "withdrawn").await;
    for (method, args, code) in [
        ("show", json!({"name": "x"}), Code::InvalidInput),
        ("get_operation", json!({"operation": 4711}), Code::InvalidInput),
    ] {
        assert_eq!(asked("backend", method, args).await.unwrap_err().code(), code, "{method}");
    }
}
