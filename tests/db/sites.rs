//! Sites over the simulator: what is found, what is registered, what is refused, and what a crash leaves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use scoria::db::site as rows;
use scoria::error::Code;
use scoria::journal::Operation;
use scoria::model::Scope;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::Connection;
use scoria::rbd::sim::{Fault, Health, Sim, SimConfig, When};
use scoria::rpc::{Call, Handler, envelope};
use scoria::service::sites::SiteHandler;
use scoria::site::{self, CephKey, Delete, Files, Order, Parts, Register, Sites, Update, Worked};
use scoria::volume::connect;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::journal::journal;
use crate::seed::{self, BACKEND};
use crate::stage::{Heard, Stage};
use crate::support::TestDb;

const KEY: &str = "AQBTsNxdAAAAABAAkn0ypCIDOjzUsUXlt5eTpw==";

struct Scene {
    test: TestDb,
    sim: Sim,
    heard: Arc<Heard>,
    dir: TempDir,
    sites: Arc<Sites>,
}

impl Scene {
    async fn new() -> Scene {
        Scene::of(SimConfig::default()).await
    }

    async fn of(config: SimConfig) -> Scene {
        let test = TestDb::new().await;
        seed::base(&test).await;
        let (sim, heard, dir) = (Sim::new(config), Arc::new(Heard::default()), tempfile::tempdir().unwrap());
        for name in ["a.conf", "b.conf"] {
            std::fs::write(dir.path().join(name), "[global]\n").unwrap();
        }
        let sites = on(&test, &sim, &heard, &dir, "node1");
        Scene { test, sim, heard, dir, sites }
    }

    /// The service dies, and another instance of it starts.
    fn restart(&mut self) {
        self.sim.restart();
        self.sites = on(&self.test, &self.sim, &self.heard, &self.dir, "node1");
    }

    /// A conf that leads to a site of the simulator.
    fn conf(&self, site: &str) -> Files {
        let conf = self.dir.path().join(format!("{site}.conf"));
        Files { conf, keyring: None, user: "cinder".into(), draft: false }
    }

    /// The same as content: a connection by it finds the simulator's site by its name.
    async fn draft(&self) -> Files {
        let parts = Parts { monitors: Some("127.0.0.1".into()), key: Some(KEY.into()), ..Parts::default() };
        parts.given().unwrap().unwrap().files(&self.sites.store).await.unwrap()
    }

    fn kept(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("sites")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    async fn order(&self, order: Order) -> Operation {
        site::submit(&self.sites.journal, "node1", order, None).await.unwrap();
        self.adopt().await
    }

    async fn adopt(&self) -> Operation {
        self.sites.journal.adopt(&Scope::Host("node1".into())).await.unwrap().remove(0)
    }

    /// Carries an order out: its answer, or why it failed.
    async fn run(&self, order: Order) -> Result<Value, String> {
        let operation = self.order(order).await;
        site::run(&self.sites, &operation).await;
        self.ended(&operation).await
    }

    async fn ended(&self, operation: &Operation) -> Result<Value, String> {
        let id = operation.id();
        let row = self
            .test
            .row(&format!("SELECT state, outcome, outcome_detail FROM scoria_operations WHERE id={id}"))
            .await;
        assert_eq!(row[0], "closed", "{row:?}");
        match row[1].as_str() {
            "succeeded" => Ok(self.sites.journal.answer_of(id).await.unwrap().unwrap()),
            _ => Err(row[2].clone()),
        }
    }

    async fn names(&self) -> Vec<String> {
        let found = self.test.rows("SELECT name, origin FROM scoria_sites ORDER BY name").await;
        found.into_iter().map(|row| row.join(" ")).collect()
    }

    async fn fsid(&self, site: &str) -> String {
        self.sim.site(site).call(scoria::rbd::protocol::Fsid {}).await.unwrap()
    }
}

fn on(test: &TestDb, sim: &Sim, heard: &Arc<Heard>, dir: &TempDir, host: &str) -> Arc<Sites> {
    let worked = [("default", "a", "ceph"), ("b", "b", "b")].map(|(site, stem, name)| Worked {
        backend: BACKEND.into(),
        site: site.into(),
        pool: "volumes".into(),
        connection: Connection {
            site: site.into(),
            conf: dir.path().join(format!("{stem}.conf")),
            ..sim.connection(stem)
        },
        name: name.into(),
    });
    let dir = dir.path().join("sites");
    Arc::new(Sites::new(
        host,
        dir,
        journal(test, host),
        sim.ceph(),
        heard.clone(),
        heard.clone(),
        worked.into(),
    ))
}

fn register(name: &str, files: Files) -> Register {
    Register { name: name.into(), files, pools: vec![], dry_run: false }
}

fn update(name: &str) -> Update {
    Update { name: name.into(), new_name: None, files: None, pools: vec![], dry_run: false }
}

#[tokio::test]
async fn the_clusters_of_backends_are_found_and_named() {
    let scene = Scene::new().await;
    let sites = &scene.sites;
    for worked in sites.worked().into_iter().chain(sites.worked()) {
        sites.discover(&worked).await.unwrap();
    }
    assert_eq!(scene.names().await, ["b found", "ceph found"]);
    let view = scene.test.db.read("view", async |conn| site::one(conn, "ceph").await).await.unwrap();
    assert_eq!(view.fsid, scene.fsid("a").await);
    assert_eq!((view.health.as_str(), view.monitors.len()), ("HEALTH_OK", 1));
    assert_eq!((view.backends[0].backend.as_str(), view.backends[0].site.as_str()), (BACKEND, "default"));
    assert!(view.lacking().is_empty() && !view.hosts[0].kept, "{:?}", view.hosts);
    // A backend of another host works with the same cluster under another name, and that host has other files.
    scene
        .test
        .sql("INSERT INTO services (id, host, `binary`, report_count, deleted) VALUES (77, 'node2@x', 'cinder-volume', 0, 0)")
        .await;
    let view = scene.test.db.read("view", async |conn| site::one(conn, "ceph").await).await.unwrap();
    assert_eq!(view.lacking(), ["node2"]);
    let other = on(&scene.test, &scene.sim, &scene.heard, &scene.dir, "node2");
    let worked = Worked { backend: "node2@x".into(), name: "other".into(), ..sites.worked()[0].clone() };
    other.discover(&worked).await.unwrap();
    assert_eq!(scene.names().await, ["b found", "ceph found"]);
    let view = scene.test.db.read("view", async |conn| site::one(conn, "ceph").await).await.unwrap();
    assert!(view.lacking().is_empty() && view.backends.len() == 2);
    // Its conf disappears: that host is named.
    std::fs::remove_file(scene.dir.path().join("a.conf")).unwrap();
    other.tidy().await.unwrap();
    let view = scene.test.db.read("view", async |conn| site::one(conn, "ceph").await).await.unwrap();
    assert_eq!(view.lacking(), ["node2"]);
    // What the configuration names no more is not in use any more.
    let fewer = Sites::new(
        "node1",
        PathBuf::new(),
        sites.journal.clone(),
        sites.ceph.clone(),
        sites.notify.clone(),
        sites.backups.clone(),
        vec![sites.worked()[0].clone()],
    );
    fewer.settle_uses().await.unwrap();
    let left = scene.test.rows("SELECT backend, site FROM scoria_site_uses ORDER BY backend").await;
    assert_eq!(left, [["node1@ceph", "default"], ["node2@x", "default"]]);
}

#[tokio::test]
async fn a_name_that_is_taken_gives_way_to_the_fsid() {
    let scene = Scene::new().await;
    let wish = Worked { name: "ceph".into(), ..scene.sites.worked()[1].clone() };
    scene.sites.discover(&scene.sites.worked()[0]).await.unwrap();
    scene.sites.discover(&wish).await.unwrap();
    assert_eq!(scene.names().await, ["ceph found", "site-51e00000 found"]);
    // Both of the simulator's clusters begin alike, so the third name is the whole fsid.
    scene
        .test
        .sql("UPDATE scoria_sites SET fsid='51e00000-0000-4000-8000-0000000000ff' WHERE name<>'ceph'")
        .await;
    scene.sites.discover(&wish).await.unwrap();
    assert!(
        scene.names().await.contains(&format!("{} found", scene.fsid("b").await)),
        "{:?}",
        scene.names().await
    );
}

#[tokio::test]
async fn a_site_is_looked_at_registered_used_and_forgotten() {
    let config = SimConfig { may_fence: false, closed_pools: vec!["backups".into()], ..SimConfig::default() };
    let scene = Scene::of(config).await;
    let order =
        Register { pools: vec!["volumes".into(), "backups".into()], ..register("a", scene.draft().await) };
    let dry = Register { dry_run: true, files: scene.draft().await, ..order.clone() };
    let looked = scene.run(Order::Register(dry)).await.unwrap();
    assert_eq!((&looked["what"], &looked["dry_run"]), (&json!("new"), &json!(true)));
    assert!(
        scene.names().await.is_empty() && scene.kept().len() == 2,
        "only the other order's draft is there"
    );
    assert!(scene.heard.events().is_empty(), "nothing happened");

    let answer = scene.run(Order::Register(order)).await.unwrap();
    let report = &answer["report"];
    assert_eq!((&report["version"], &report["health"]), (&json!("16.2.15"), &json!("HEALTH_OK")));
    let findings: Vec<&str> =
        report["findings"].as_array().unwrap().iter().map(|f| f["text"].as_str().unwrap()).collect();
    assert_eq!(findings.len(), 3, "{findings:?}");
    assert!(
        findings[0].contains("fence") && findings[1].contains("cannot read pool backups"),
        "{findings:?}"
    );
    assert!(findings[2].contains("volumes2"), "{findings:?}");
    assert!(report["advice"].as_str().unwrap().starts_with("ceph auth caps client.cinder mon 'profile rbd'"));
    let fsid = scene.fsid("a").await;
    assert_eq!(scene.kept(), [format!("{fsid}.client.cinder.keyring"), format!("{fsid}.conf")]);
    assert_eq!(scene.names().await, ["a registered"]);
    assert_eq!(scene.heard.events(), ["scoria.site.register.start ", "scoria.site.register.end "]);
    // The key is in its file and nowhere else.
    for table in ["scoria_operations", "scoria_operation_steps", "scoria_sites", "scoria_site_hosts"] {
        for row in scene.test.rows(&format!("SELECT * FROM {table}")).await {
            assert!(!row.join(" ").contains("AQBT"), "{table}: {row:?}");
        }
    }
    // Another client: the former one's key goes.
    let parts = Parts {
        user: Some("nova".into()),
        conf_text: Some("[global]\nmon_host = x\n".into()),
        key: Some(KEY.into()),
        ..Parts::default()
    };
    let files = parts.given().unwrap().unwrap().files(&scene.sites.store).await.unwrap();
    let order = Update { new_name: Some("paris".into()), files: Some(files), ..update("a") };
    // By the draft's conf the simulator finds its site by the name in the order.
    assert_eq!(scene.run(Order::Update(order)).await.unwrap()["site"], "paris");
    assert_eq!(scene.kept(), [format!("{fsid}.client.nova.keyring"), format!("{fsid}.conf")]);
    assert_eq!(scene.names().await, ["paris registered"]);

    // In use: refused, by name.
    scene.sites.discover(&scene.sites.worked()[0]).await.unwrap();
    let refused =
        scene.run(Order::Delete(Delete { name: "paris".into(), dry_run: false })).await.unwrap_err();
    assert!(refused.contains("in use by: node1@ceph (as default)"), "{refused}");
    scene.test.sql("UPDATE services SET deleted=1").await;
    let dry = scene.run(Order::Delete(Delete { name: "paris".into(), dry_run: true })).await.unwrap();
    assert_eq!(dry["files_removed"][0]["host"], "node1");
    assert_eq!(scene.names().await, ["paris registered"]);
    scene.run(Order::Delete(Delete { name: "paris".into(), dry_run: false })).await.unwrap();
    assert!(scene.names().await.is_empty() && scene.kept().is_empty());
    assert!(scene.test.rows("SELECT * FROM scoria_site_hosts").await.is_empty());
    let again = scene.run(Order::Delete(Delete { name: "paris".into(), dry_run: false })).await.unwrap_err();
    assert!(again.contains("There is no site paris"), "{again}");
}

#[tokio::test]
async fn one_more_host_gets_its_files_and_loses_them_with_the_site() {
    let scene = Scene::new().await;
    scene.run(Order::Register(register("a", scene.conf("a")))).await.unwrap();
    let far = on(&scene.test, &scene.sim, &scene.heard, &scene.dir, "node2");
    let order = Order::Register(register("a", scene.draft().await));
    site::submit(&far.journal, "node2", order, None).await.unwrap();
    let operation = far.journal.adopt(&Scope::Host("node2".into())).await.unwrap().remove(0);
    site::run(&far, &operation).await;
    assert_eq!(scene.ended(&operation).await.unwrap()["what"], "host added");
    let hosts = scene.test.rows("SELECT host, own, state FROM scoria_site_hosts ORDER BY host").await;
    assert_eq!(hosts, [["node1", "0", "present"], ["node2", "1", "present"]]);
    // Deleted by the first host: the second removes its own files when it looks.
    scene.run(Order::Delete(Delete { name: "a".into(), dry_run: false })).await.unwrap();
    assert!(scene.conf("a").conf.exists(), "what Scoria did not write stays");
    let hosts = scene.test.rows("SELECT host, state FROM scoria_site_hosts").await;
    assert_eq!((hosts, scene.kept().len()), (vec![vec!["node2".to_owned(), "removing".to_owned()]], 2));
    far.tidy().await.unwrap();
    assert!(scene.kept().is_empty() && scene.test.rows("SELECT * FROM scoria_site_hosts").await.is_empty());
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let scene = Scene::new().await;
    scene.run(Order::Register(register("a", scene.conf("a")))).await.unwrap();
    let elsewhere =
        Files { conf: "/etc/hostname".into(), keyring: Some("/etc/hostname".into()), ..scene.draft().await };
    let missing = Files { conf: "/no/such.conf".into(), ..scene.conf("a") };
    let keyring = Files { keyring: Some(scene.dir.path().join("b.conf")), ..scene.conf("b") };
    for (order, said) in [
        (Order::Register(register("rome", scene.conf("a"))), "registered already, as a"),
        (Order::Register(register("a", scene.conf("b"))), "another cluster"),
        (Order::Register(register("b", missing)), "cannot read /no/such.conf"),
        (Order::Register(register("b", elsewhere)), "not in the directory"),
        (Order::Register(register("b", keyring)), "does not lead to"),
        (Order::Register(register("no name", scene.conf("b"))), "The name of a site"),
        (Order::Update(Update { files: Some(scene.conf("b")), ..update("a") }), "lead to another cluster"),
        (Order::Update(update("nobody")), "There is no site nobody; the sites are: a"),
    ] {
        let refused = scene.run(order.clone()).await.unwrap_err();
        assert!(refused.contains(said), "{order:?}: {refused}");
    }
    assert!(scene.heard.events().contains(&"scoria.site.register.error ".to_owned()));
    // As if both were dead, without the time that it takes to find that out.
    scene.sim.inject(Fault::on("Fsid").always().fails(When::Before, RbdErrorKind::Unreachable));
    let draft = scene.draft().await;
    let refused = scene.run(Order::Register(register("b", draft.clone()))).await.unwrap_err();
    assert!(!draft.conf.exists() && refused.contains("Ceph"), "{refused}");
    // A dead site is renamed all the same, and cannot be looked at.
    assert!(scene.run(Order::Update(update("a"))).await.is_err());
    let renamed =
        scene.run(Order::Update(Update { new_name: Some("paris".into()), ..update("a") })).await.unwrap();
    assert_eq!((&renamed["what"], &renamed["report"]), (&json!("renamed from a"), &Value::Null));
    assert_eq!(scene.names().await, ["paris registered"]);
}

/// Killed at every call, before and after its effect, and run again by the next instance.
#[tokio::test]
async fn a_registration_survives_a_kill_at_every_call() {
    let undisturbed = Scene::new().await;
    undisturbed.sim.clear_log();
    undisturbed.run(Order::Register(register("a", undisturbed.draft().await))).await.unwrap();
    let calls = undisturbed.sim.log().len();
    assert!(calls > 5, "{}", undisturbed.sim.log_text());
    let mut scene = undisturbed;
    for k in 1..=calls {
        let when = if k % 2 == 0 { When::Before } else { When::After };
        scene.run(Order::Delete(Delete { name: "a".into(), dry_run: false })).await.unwrap();
        let operation = scene.order(Order::Register(register("a", scene.draft().await))).await;
        scene.sim.kill_at(k, when);
        tokio::select! {
            biased;
            () = scene.sim.crashed() => {}
            () = site::run(&scene.sites, &operation) => panic!("it was not killed at call {k}"),
        }
        scene.restart();
        let operation = scene.adopt().await;
        site::run(&scene.sites, &operation).await;
        assert_eq!(scene.ended(&operation).await.unwrap()["what"], "new", "killed at call {k}");
        assert_eq!(scene.names().await, ["a registered"], "killed at call {k}");
        assert_eq!(scene.kept().len(), 2, "killed at call {k}: {:?}", scene.kept());
    }
}

/// Killed after the look, and after the files were made: what is known is not asked again, though the site has died.
#[tokio::test]
async fn what_was_looked_at_and_kept_is_taken_up_from_there() {
    let mut scene = Scene::new().await;
    let files = scene.draft().await;
    let dry = Register { dry_run: true, ..register("a", scene.draft().await) };
    let report = scene.run(Order::Register(dry)).await.unwrap()["report"].clone();
    for kept in [false, true] {
        let operation = scene.order(Order::Register(register("a", files.clone()))).await;
        operation.step("looked", &report).await.unwrap();
        if kept {
            scene.sites.store.keep(&files, report["fsid"].as_str().unwrap()).unwrap();
        }
        scene.sim.set_health("a", Health::Dead);
        scene.restart();
        let operation = scene.adopt().await;
        site::run(&scene.sites, &operation).await;
        assert_eq!(scene.ended(&operation).await.unwrap()["site"], "a");
        assert_eq!(scene.kept().len(), 2, "{:?}", scene.kept());
        scene.sim.set_health("a", Health::Alive);
        if !kept {
            scene.run(Order::Delete(Delete { name: "a".into(), dry_run: false })).await.unwrap();
            // The draft as it was, for the second time.
            let key = CephKey::parse(KEY).unwrap();
            let again = scene.sites.store.draft("", "cinder", &key).unwrap();
            std::fs::rename(again.conf, &files.conf).unwrap();
            std::fs::rename(again.keyring, files.keyring.as_ref().unwrap()).unwrap();
        }
    }
    // Killed between the transaction and the removal of the draft: the sweep finds it when it is old enough.
    let leftover = scene.draft().await;
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    for path in [&leftover.conf, leftover.keyring.as_ref().unwrap()] {
        std::fs::File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
    }
    scene.sites.tidy().await.unwrap();
    assert!(!Path::new(&leftover.conf).exists());
    assert_eq!(scene.kept().len(), 2, "{:?}", scene.kept());
}

fn call(method: &str, args: Value) -> Call {
    let message = json!({"method": method, "args": args, "version": "1.0", "namespace": "site",
        "_unique_id": "u", "_msg_id": "i", "_reply_q": "q", "_context_request_id": "req-7"});
    let Value::Object(message) = message else { unreachable!() };
    Call::from_delivery(&envelope::seal(&message), None).unwrap()
}

#[tokio::test]
async fn namespace_site_takes_orders_and_tells_how_they_went() {
    let scene = Scene::new().await;
    let handler = SiteHandler { sites: scene.sites.clone() };
    let asked = async |method: &str, args: Value| handler.run(&call(method, args), None).await;
    let args = json!({"name": "a", "monitors": "127.0.0.1", "key": KEY, "order": "mine"});
    assert!(!call("register", args.clone()).journaled, "a message with a key is not written down");
    assert!(!format!("{:?}", call("register", args.clone()).method).contains("AQBT"));
    let first = asked("register", args.clone()).await.unwrap();
    let again = asked("register", args).await.unwrap();
    assert_eq!((&first["new"], &again["new"]), (&json!(true), &json!(false)));
    assert_eq!(first["operation"], again["operation"]);
    assert_eq!(scene.kept().len(), 2, "one draft");
    let open = asked("list_operations", json!({"open": true})).await.unwrap();
    assert_eq!((open[0]["method"].as_str(), open.as_array().unwrap().len()), (Some("register"), 1));

    let cancelled = asked("cancel_operation", json!({"operation": first["operation"]})).await.unwrap();
    assert_eq!((&cancelled["cancelled"], scene.kept().len()), (&json!(true), 0));
    let again = asked("cancel_operation", json!({"operation": first["operation"]})).await.unwrap();
    assert_eq!(again["cancelled"], false);
    let told = asked("get_operation", json!({"operation": first["operation"]})).await.unwrap();
    assert_eq!((&told["state"], &told["outcome"]), (&json!("closed"), &json!("abandoned")));
    assert_eq!(scene.heard.events(), ["scoria.site.register.cancel "]);

    let conf = scene.dir.path().join("a.conf").display().to_string();
    let ordered = asked("register", json!({"name": "a", "conf": conf})).await.unwrap();
    site::run(&scene.sites, &scene.adopt().await).await;
    let told = asked("get_operation", json!({"operation": ordered["operation"]})).await.unwrap();
    assert_eq!((&told["outcome"], &told["result"]["what"]), (&json!("succeeded"), &json!("new")));
    assert_eq!(asked("list", json!({})).await.unwrap()[0]["name"], "a");
    assert_eq!(asked("show", json!({"name": "a"})).await.unwrap()["hosts"][0]["host"], "node1");
    for (method, args, code) in [
        ("show", json!({"name": "x"}), Code::InvalidInput),
        ("get_operation", json!({"operation": 4711}), Code::InvalidInput),
        ("register", json!({"name": "a b", "conf": "/c"}), Code::InvalidInput),
    ] {
        assert_eq!(asked(method, args).await.unwrap_err().code(), code, "{method}");
    }
}

/// Nova is told of the monitors, the user and the secret of the site that serves the volume.
#[tokio::test]
async fn a_connection_names_the_site_that_serves_before_and_after_a_failover() {
    let options = "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=secret-a\n\
                   replication_device=backend_id:b,conf:/sim/b.conf,user:cinder-b,secret_uuid:secret-b\n";
    let stage = Stage::with(options).await;
    let volume = seed::volume(&stage.test, 1, "available", ", replication_status='enabled'").await;
    let connected = async || {
        let info = connect::initialize(&stage.backend, &volume, &Map::new()).await.unwrap();
        let data = |key: &str| info["data"][key].clone();
        json!([data("hosts"), data("auth_username"), data("secret_uuid"), data("cluster_name")])
    };
    assert_eq!(connected().await, json!([["127.0.0.1"], "cinder", "secret-a", "ceph"]));
    stage.backend.activate("b").unwrap();
    stage.test.sql("UPDATE volumes SET replication_status='failed-over'").await;
    assert_eq!(connected().await, json!([["127.0.0.2"], "cinder-b", "secret-b", "b"]));
    // One that stayed behind is still served from the first.
    stage.test.sql("UPDATE volumes SET replication_status='failover-error'").await;
    let stray = vec![volume.clone()];
    let record =
        stage.test.db.write("stray", async |conn| scoria::db::stray::record(conn, &stray, "default").await);
    record.await.unwrap();
    assert_eq!(connected().await, json!([["127.0.0.1"], "cinder", "secret-a", "ceph"]));
}

#[tokio::test]
async fn a_site_that_changes_while_it_is_looked_at_is_left_to_who_was_first() {
    let scene = Scene::new().await;
    for (change, said) in [
        ("UPDATE scoria_sites SET name='other'", "Site a was renamed meanwhile"),
        ("DELETE FROM scoria_sites", "Site a was deleted meanwhile"),
    ] {
        scene.test.sql("DELETE FROM scoria_sites; DELETE FROM scoria_site_hosts").await;
        scene.run(Order::Register(register("a", scene.conf("a")))).await.unwrap();
        let trigger =
            format!("CREATE TRIGGER meanwhile BEFORE INSERT ON scoria_operation_steps FOR EACH ROW {change}");
        scene.test.sql(&trigger).await;
        let refused = scene
            .run(Order::Update(Update { files: Some(scene.conf("a")), ..update("a") }))
            .await
            .unwrap_err();
        assert!(refused.contains(said), "{refused}");
        scene.test.sql("DROP TRIGGER meanwhile").await;
    }
}

#[tokio::test]
async fn two_that_register_one_cluster_or_one_name_do_not_both_succeed() {
    let scene = Scene::new().await;
    let seen = |fsid: &str| rows::Seen {
        fsid: fsid.into(),
        monitors: "m".into(),
        version: "16.2.15".into(),
        health: "HEALTH_OK".into(),
        report: "{}".into(),
    };
    let put = async |name: &str, fsid: &str| {
        let seen = seen(fsid);
        scene.test.db.write("put", async |conn| rows::put(conn, name, "registered", &seen).await).await
    };
    let (one, two) = tokio::join!(put("a", "f1"), put("a", "f2"));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    assert_eq!(one.and(two).unwrap_err().code(), Code::Conflict);
    assert_eq!(scene.names().await.len(), 1);
}
