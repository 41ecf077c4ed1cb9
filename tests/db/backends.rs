//! Backends made, changed and removed by order: what there is then, and what is refused.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;

use scoria::backends::{Create, Delete, Disable, Options, Order, Runner, Stop, Update};
use scoria::rbd::RbdErrorKind;
use scoria::rbd::sim::{Fault, When};
use serde_json::json;

use crate::backend_scene::{Scene, create, delete, named, options, update};
use crate::journal::accept;

#[tokio::test]
async fn a_backend_is_made_changed_stopped_and_removed() {
    let scene = Scene::new().await;
    assert_eq!(scene.rows().await, ["ceph on running 0"]);
    let dry = Create { dry_run: true, ..create("fast") };
    let looked = scene.run(Order::Create(dry)).await.unwrap();
    assert_eq!((&looked["service"], &looked["dry_run"]), (&json!("node1@fast"), &json!(true)));
    scene.is_gone("fast", "after a dry run").await;

    let made = scene.run(Order::Create(create("fast"))).await.unwrap();
    assert_eq!(made["pool"], "node1@fast#fast");
    scene.is_there("fast", "made").await;
    let mode = std::fs::metadata(scene.path("fast")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let spec = scene
        .test
        .row("SELECT s.value FROM volume_types t JOIN volume_type_extra_specs s ON s.volume_type_id=t.id WHERE t.name='type-fast'")
        .await;
    assert_eq!(spec, ["fast"]);
    assert_eq!(
        scene.heard.events(),
        ["scoria.backend.create.start ", "scoria.backend.create.end "],
        "a dry run tells nobody"
    );
    let again = scene.run(Order::Create(create("fast"))).await.unwrap_err();
    assert!(again.contains("There is a backend fast on host node1 already"), "{again}");
    scene.is_there("fast", "refused twice").await;

    // Options: those that are reported change as it runs, others restart it, and it alone.
    let live = scene.run(Order::Update(update("fast", &[("reserved_percentage", "7")]))).await.unwrap();
    assert_eq!((&live["effect"], &live["options"]), (&json!("live"), &json!(["reserved_percentage"])));
    assert_eq!(scene.played.applied.lock().unwrap().as_slice(), ["fast"]);
    let before = scene.played.passed.load(Ordering::SeqCst);
    let restart = scene.run(Order::Update(update("fast", &[("rbd_max_clone_depth", "3")]))).await.unwrap();
    assert_eq!(restart["effect"], "restart");
    assert!(scene.played.passed.load(Ordering::SeqCst) > before);
    assert_eq!(scene.played.running("fast").unwrap().max_clone_depth, 3);
    assert_eq!(scene.played.running("fast").unwrap().reserved_percentage, 7);
    let out =
        Update { options: Options::from([("reserved_percentage".into(), vec![])]), ..update("fast", &[]) };
    scene.run(Order::Update(out)).await.unwrap();
    assert_eq!(scene.played.running("fast").unwrap().reserved_percentage, 0);
    scene.is_there("fast", "changed").await;

    // Power.
    let disable = Disable { name: "fast".into(), reason: Some("full".into()) };
    scene.run(Order::Disable(disable)).await.unwrap();
    let row = scene.test.row("SELECT disabled, disabled_reason FROM services WHERE host='node1@fast'").await;
    assert_eq!(row, ["1", "full"]);
    let stop = |name: &str| Order::Stop(Stop { name: name.into(), drain: false });
    scene.run(stop("fast")).await.unwrap();
    scene.run(stop("ceph")).await.unwrap();
    assert_eq!(scene.rows().await, ["ceph off stopped 0", "fast off stopped 0"]);
    assert!(scene.played.names().is_empty());
    let mut scene = scene;
    scene.restart(0).await;
    assert!(scene.played.names().is_empty(), "that survives a restart");
    scene.run(Order::Start(named("ceph"))).await.unwrap();
    scene.run(Order::Enable(named("fast"))).await.unwrap();
    scene.is_there("fast", "enabled").await;
    assert_eq!(scene.test.row("SELECT disabled FROM services WHERE host='node1@fast'").await, ["0"]);

    // What is in cinder.conf is its operator's.
    let edit = scene.run(Order::Update(update("ceph", &[("rbd_pool", "x")]))).await.unwrap_err();
    assert!(edit.contains("write: rbd_pool = x; then send SIGHUP"), "{edit}");
    let edit = scene.run(Order::Delete(delete("ceph"))).await.unwrap_err();
    assert!(edit.contains("take ceph out of enabled_backends"), "{edit}");

    scene.run(Order::Delete(delete("fast"))).await.unwrap();
    scene.is_gone("fast", "deleted").await;
    let archived = std::fs::read_dir(scene.dir.path().join("backends.d/archive")).unwrap().count();
    assert_eq!(archived, 1);
    scene.run(Order::Create(create("fast"))).await.unwrap();
    scene.is_there("fast", "made again at once").await;
    assert_eq!(scene.played.names(), ["ceph", "fast"]);
}

#[tokio::test]
async fn one_that_somebody_needs_is_not_removed() {
    let scene = Scene::new().await;
    scene.run(Order::Create(create("fast"))).await.unwrap();
    scene
        .test
        .sql(
            "INSERT INTO volumes (id, status, host, deleted, size, use_quota, volume_type_id)
               VALUES ('v1', 'available', 'node1@fast#fast', 0, 1, 1, 't');
             INSERT INTO snapshots (id, volume_id, status, deleted, volume_size, use_quota, volume_type_id)
               VALUES ('s1', 'v1', 'available', 0, 1, 1, 't')",
        )
        .await;
    let refused = scene.run(Order::Delete(delete("fast"))).await.unwrap_err();
    assert!(refused.contains("1 volumes (v1); 1 snapshots (s1)"), "{refused}");
    scene.is_there("fast", "refused").await;
    for (key, value) in [("rbd_pool", "volumes"), ("volume_backend_name", "other")] {
        let refused = scene.run(Order::Update(update("fast", &[(key, value)]))).await.unwrap_err();
        assert!(refused.contains("cannot change while it has 1 volumes"), "{refused}");
    }
    // Its operations count, too.
    scene.test.sql("UPDATE volumes SET deleted=1; UPDATE snapshots SET deleted=1").await;
    let open = scoria::journal::NewOperation {
        unique_id: "u1".into(),
        method: "create_volume".into(),
        backend_host: "node1@fast".into(),
        request: "{}".into(),
        ..Default::default()
    };
    let operation = accept(&scene.backends.journal, open).await;
    let refused = scene.run(Order::Delete(delete("fast"))).await.unwrap_err();
    assert!(refused.contains("1 operations under way") && refused.contains("create_volume"), "{refused}");
    scene.is_there("fast", "at work").await;
    let dry = Delete { dry_run: true, force: true, ..delete("fast") };
    let looked = scene.run(Order::Delete(dry)).await.unwrap();
    assert_eq!(looked["operations"][0]["method"], "create_volume");
    // With --drain what is still open at the end keeps it, and it serves on.
    let drain = Delete { drain: true, ..delete("fast") };
    assert!(scene.run(Order::Delete(drain)).await.is_err());
    scene.is_there("fast", "put back").await;
    assert_eq!(scene.test.row("SELECT disabled FROM services WHERE host='node1@fast'").await, ["0"]);
    scene.backends.journal.finish(&operation, &scoria::journal::Outcome::succeeded()).await.unwrap();
    scene.test.sql("UPDATE volumes SET deleted=0").await;
    let force = Delete { force: true, ..delete("fast") };
    assert_eq!(scene.run(Order::Delete(force)).await.unwrap()["contents"]["volumes"]["count"], 1);
    scene.is_gone("fast", "forced").await;
    assert_eq!(scene.test.row("SELECT host FROM volumes WHERE id='v1'").await, ["node1@fast#fast"]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let scene = Scene::with("[spare]\nrbd_pool=x\n").await;
    let of = |pairs: &[(&str, &str)]| Create { options: options(pairs), ..create("fast") };
    scene
        .test
        .sql("INSERT INTO volume_types (id, name, deleted, is_public) VALUES ('t1', 'taken', 0, 1)")
        .await;
    for (order, said) in [
        (of(&[("rbd_pol", "x")]), "`rbd_pol` (did you mean `rbd_pool`?)"),
        (of(&[("reserved_percentage", "many")]), "reserved_percentage"),
        (of(&[("rbd_pool", "volumes2\n[DEFAULT]")]), "a line break"),
        (of(&[("rbd_pool", "nothing")]), "pool nothing is not there"),
        (of(&[("rbd_ceph_conf", "/no/such.conf")]), "cannot read /no/such.conf"),
        (of(&[("host_cluster_id", "row-7")]), "There is no cluster label row-7"),
        (of(&[("volume_driver", "cinder.volume.drivers.lvm.LVMVolumeDriver")]), "only Ceph RBD"),
        (Create { name: "a@b".into(), ..create("fast") }, "cannot be the name"),
        (Create { name: "../x".into(), ..create("fast") }, "cannot be the name"),
        (Create { name: "nova".into(), ..create("fast") }, "options of another kind"),
        (Create { name: "ceph".into(), ..create("fast") }, "There is a backend ceph"),
        (Create { name: "spare".into(), ..create("fast") }, "there is a section of this name at"),
        (Create { volume_type: Some("taken".into()), ..create("fast") }, "volume type taken already"),
    ] {
        let refused = scene.run(Order::Create(order.clone())).await.unwrap_err();
        assert!(refused.contains(said), "{order:?}: {refused}");
        scene.is_gone("fast", said).await;
    }
    // As if it were dead, without the time that it takes to find that out.
    scene.sim.inject(Fault::on("Fsid").always().fails(When::Before, RbdErrorKind::Unreachable));
    let refused = scene.run(Order::Create(create("fast"))).await.unwrap_err();
    assert!(refused.contains("does not answer"), "{refused}");
    scene.is_gone("fast", "its cluster is dead").await;
    assert_eq!(scene.rows().await, ["ceph on running 0"]);
    for order in [Order::Start(named("nobody")), Order::Delete(delete("nobody"))] {
        let refused = scene.run(order).await.unwrap_err();
        assert!(
            refused.contains("There is no backend nobody on host node1; its backends are: ceph"),
            "{refused}"
        );
    }
    // A live service of somebody else's.
    scene
        .test
        .sql(
            "INSERT INTO services (host, `binary`, topic, report_count, disabled, deleted, updated_at, uuid)
              VALUES ('node1@fast', 'cinder-volume', 'cinder-volume', 1, 0, 0, UTC_TIMESTAMP(), 'u')",
        )
        .await;
    let refused = scene.run(Order::Create(create("fast"))).await.unwrap_err();
    assert!(refused.contains("A service node1@fast is alive already"), "{refused}");
}
