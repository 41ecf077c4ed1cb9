//! rbd-mirror daemons over the simulator: by each means, and what a crash leaves. The child is a real process that
//! behaves like a daemon.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scoria::journal::Operation;
use scoria::model::Scope;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::sim::{Fault, Sim, SimConfig, When};
use scoria::site::daemon::{Action, DaemonOrder, Found, Means, Programs, Slot, Supervisor};
use scoria::site::{self, Delete, Files, Order, Patience, Register, Sites};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::journal::journal;
use crate::seed;
use crate::stage::Heard;
use crate::support::TestDb;

pub struct Scene {
    pub test: TestDb,
    pub sim: Sim,
    pub dir: TempDir,
    pub sites: Arc<Sites>,
    patience: Patience,
}

/// Stays until it is told to end.
const STAYS: &str = "echo \"up $*\"; while :; do sleep 0.1; done";

impl Scene {
    pub async fn new(config: SimConfig) -> Scene {
        let test = TestDb::new().await;
        seed::base(&test).await;
        let (sim, dir) = (Sim::new(config), tempfile::tempdir().unwrap());
        for name in ["a.conf", "b.conf"] {
            std::fs::write(dir.path().join(name), "[global]\nmon_host = 127.0.0.1\n").unwrap();
        }
        let patience = Patience::default();
        let sites = on(&test, &sim, &dir, patience);
        let scene = Scene { test, sim, dir, sites, patience };
        scene.program("rbd-mirror", STAYS);
        scene.program(
            "systemctl",
            "echo \"$*\" >> \"$(dirname \"$0\")/told\"\n\
             case \"$*\" in *show*) printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\nMainPID=42\\n';; esac",
        );
        let register =
            Register { name: "a".into(), files: scene.files("a", "cinder"), pools: vec![], dry_run: false };
        scene.run(Order::Register(register)).await.unwrap();
        scene
    }

    pub fn files(&self, site: &str, user: &str) -> Files {
        let conf = self.dir.path().join(format!("{site}.conf"));
        Files { conf, keyring: None, user: user.into(), draft: false }
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.dir.path().join(name);
        // In place of one that may be running.
        let part = self.dir.path().join(".part");
        std::fs::write(&part, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&part, path).unwrap();
    }

    fn told(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("told")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The service dies, and another instance of it starts.
    pub fn restart(&mut self) {
        self.sim.restart();
        self.sites = on(&self.test, &self.sim, &self.dir, self.patience);
    }

    /// From now on others are waited for no longer than this.
    pub fn patient(&mut self, patience: Patience) {
        self.patience = patience;
        self.sites = on(&self.test, &self.sim, &self.dir, patience);
    }

    async fn slot(&self) -> Slot {
        let fsid = self.sim.site("a").call(scoria::rbd::protocol::Fsid {}).await.unwrap();
        Slot::new(&self.dir.path().join("daemons"), &fsid)
    }

    pub async fn order(&self, order: Order) -> Operation {
        site::submit(&self.sites.journal, "node1", order, None).await.unwrap();
        self.adopt().await
    }

    pub async fn adopt(&self) -> Operation {
        self.sites.journal.adopt(&Scope::Host("node1".into())).await.unwrap().remove(0)
    }

    pub async fn ended(&self, operation: &Operation) -> Result<Value, String> {
        let id = operation.id();
        let text = format!("SELECT state, outcome, outcome_detail FROM scoria_operations WHERE id={id}");
        let row = self.test.row(&text).await;
        assert_eq!(row[0], "closed", "{row:?}");
        match row[1].as_str() {
            "succeeded" => Ok(self.sites.journal.answer_of(id).await.unwrap().unwrap()),
            _ => Err(row[2].clone()),
        }
    }

    /// Carries an order out while the supervisor looks after daemons.
    pub async fn run(&self, order: Order) -> Result<Value, String> {
        let operation = self.order(order).await;
        self.finish(&operation).await
    }

    async fn finish(&self, operation: &Operation) -> Result<Value, String> {
        let supervisor = Supervisor::new(self.sites.clone());
        let minding = async {
            loop {
                supervisor.look().await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = site::run(&self.sites, operation) => {}
            () = minding => {}
        }
        self.ended(operation).await
    }

    async fn daemon(&self, action: Action, by: Option<Means>) -> Result<Value, String> {
        self.run(Order::Daemon(daemon(action, by))).await
    }

    async fn row(&self) -> Vec<String> {
        self.test.row("SELECT means, wanted, state, what FROM scoria_mirror_daemons").await
    }

    async fn pid(&self) -> Option<i32> {
        match self.slot().await.look().unwrap() {
            Found::Running { pid, .. } => pid,
            Found::Nothing => None,
        }
    }

    async fn until(&self, what: &str, supervisor: &Supervisor, is: impl AsyncFn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !is().await {
            assert!(Instant::now() < end, "not in time: {what}");
            supervisor.look().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Of whatever test has failed.
        for entry in std::fs::read_dir(self.dir.path().join("daemons")).into_iter().flatten().flatten() {
            Slot::new(&self.dir.path().join("daemons"), &entry.file_name().to_string_lossy()).end(true);
        }
    }
}

fn on(test: &TestDb, sim: &Sim, dir: &TempDir, patience: Patience) -> Arc<Sites> {
    let programs = Programs {
        dir: dir.path().join("daemons"),
        rbd_mirror: dir.path().join("rbd-mirror"),
        systemctl: dir.path().join("systemctl"),
    };
    let heard = Arc::new(Heard::default());
    let store = dir.path().join("sites");
    Arc::new(
        Sites::new("node1", store, journal(test, "node1"), sim.ceph(), heard.clone(), heard, vec![])
            .running(programs)
            .waiting(patience),
    )
}

fn daemon(action: Action, by: Option<Means>) -> DaemonOrder {
    DaemonOrder { name: "a".into(), action, by, files: None, placement: None, dry_run: false }
}

#[tokio::test]
async fn a_child_is_started_found_again_replaced_and_stopped() {
    let mut scene = Scene::new(SimConfig::default()).await;
    let unsaid = scene.daemon(Action::Start, None).await.unwrap_err();
    assert!(unsaid.contains("--by orchestrator, systemd or child"), "{unsaid}");
    let dry = DaemonOrder { dry_run: true, ..daemon(Action::Start, Some(Means::Child)) };
    let would = scene.run(Order::Daemon(dry)).await.unwrap();
    assert!(would["command"].as_str().unwrap().contains("rbd-mirror -f -c "), "{would}");
    assert!(scene.row().await.is_empty() && scene.pid().await.is_none(), "nothing was done");

    let started = scene.daemon(Action::Start, Some(Means::Child)).await.unwrap();
    let pid = scene.pid().await.unwrap();
    assert_eq!((&started["pid"], &started["state"]), (&json!(pid), &json!("running")));
    // Again, by another instance of the service: it is the same process.
    scene.restart();
    let again = scene.daemon(Action::Start, None).await.unwrap();
    assert_eq!(again["pid"], json!(pid), "{again}");
    let refused = scene.daemon(Action::Start, Some(Means::Systemd)).await.unwrap_err();
    assert!(refused.contains("is run by child") && refused.contains("daemon stop a"), "{refused}");
    let delete = Order::Delete(Delete { name: "a".into(), dry_run: false });
    let refused = scene.run(delete.clone()).await.unwrap_err();
    assert!(refused.contains("site daemon stop a --host node1"), "{refused}");

    let restarted = scene.daemon(Action::Restart, None).await.unwrap();
    let second = scene.pid().await.unwrap();
    assert!(second != pid && restarted["pid"] == json!(second), "{restarted}");
    let standing = scene.daemon(Action::Status, None).await.unwrap();
    assert_eq!(
        (&standing["ours"][0]["state"], &standing["ours"][0]["pid"]),
        (&json!("running"), &json!(second))
    );
    assert_eq!(
        (&standing["pools"][0]["pool"], &standing["pools"][0]["from"]),
        (&json!("volumes"), &json!(["b"]))
    );
    assert_eq!(standing["services"][0]["id"], "a");

    scene.daemon(Action::Stop, None).await.unwrap();
    assert_eq!((scene.row().await[2].as_str(), scene.pid().await), ("stopped", None));
    scene.run(delete).await.unwrap();
    Supervisor::new(scene.sites.clone()).look().await.unwrap();
    let left = std::fs::read_dir(scene.dir.path().join("daemons")).unwrap().count();
    assert!(left == 0 && scene.row().await.is_empty(), "conf, key and log go with the site");
}

#[tokio::test]
async fn a_child_that_dies_is_started_again_and_one_that_cannot_run_is_given_up() {
    let scene = Scene::new(SimConfig::default()).await;
    scene.program("rbd-mirror", "echo 'did not load a key' >&2; exit 1");
    let refused = scene.daemon(Action::Start, Some(Means::Child)).await.unwrap_err();
    assert!(refused.contains("did not load a key") && refused.contains("given up"), "{refused}");
    assert_eq!(scene.row().await[1], "stopped", "it is not tried for ever");

    scene.program("rbd-mirror", STAYS);
    scene.daemon(Action::Start, None).await.unwrap();
    let first = scene.pid().await.unwrap();
    let supervisor = Supervisor::new(scene.sites.clone());
    supervisor.look().await.unwrap();
    assert!(scene.slot().await.end(true));
    scene
        .until("another runs", &supervisor, async || scene.pid().await.is_some_and(|pid| pid != first))
        .await;
    scene.until("it is seen", &supervisor, async || scene.row().await[2] == "running").await;
    let ended = scene.test.row("SELECT ended, detail FROM scoria_mirror_daemons").await;
    assert!(ended[0] == "1" && ended[1].contains("up -f"), "{ended:?}");
    scene.daemon(Action::Stop, None).await.unwrap();
}

/// Killed after the row, after the start, and before the end.
#[tokio::test]
async fn an_order_that_was_cut_short_is_finished_with_one_daemon() {
    let mut scene = Scene::new(SimConfig::default()).await;
    let operation = scene.order(Order::Daemon(daemon(Action::Start, Some(Means::Child)))).await;
    // Its row is written and nobody looks after it yet.
    let cut = tokio::time::timeout(Duration::from_secs(1), site::run(&scene.sites, &operation)).await;
    assert!(cut.is_err() && scene.row().await[1] == "running" && scene.pid().await.is_none());
    scene.restart();
    // The next one starts it, and dies before it has noted which process it is.
    Supervisor::new(scene.sites.clone()).look().await.unwrap();
    let pid = scene.pid().await.unwrap();
    let fsid = scene.sim.site("a").call(scoria::rbd::protocol::Fsid {}).await.unwrap();
    std::fs::remove_file(scene.dir.path().join("daemons").join(fsid).join("pid")).unwrap();
    scene.restart();
    let operation = scene.adopt().await;
    let answer = scene.finish(&operation).await.unwrap();
    assert_eq!(answer["pid"], json!(pid), "{answer}");
    scene.daemon(Action::Stop, None).await.unwrap();
}

#[tokio::test]
async fn systemd_is_told_by_the_exact_unit() {
    let scene = Scene::new(SimConfig::default()).await;
    let files = Some(scene.files("a", "rbd-mirror.node1"));
    let order = DaemonOrder { files, ..daemon(Action::Start, Some(Means::Systemd)) };
    scene.run(Order::Daemon(order)).await.unwrap();
    let unit = "ceph-rbd-mirror@rbd-mirror.node1.service";
    assert_eq!(scene.told(), [format!("--no-ask-password enable --now {unit}")]);
    assert_eq!(scene.row().await, ["systemd", "running", "told", unit]);
    scene.daemon(Action::Restart, None).await.unwrap();
    assert_eq!(scene.told()[1], format!("--no-ask-password restart {unit}"));
    let standing = scene.daemon(Action::Status, None).await.unwrap();
    assert_eq!(
        standing["ours"][0]["unit"],
        json!({"unit": unit, "active": "active", "sub": "running", "pid": 42})
    );
    scene.daemon(Action::Stop, None).await.unwrap();
    assert_eq!(scene.told()[3], format!("--no-ask-password disable --now {unit}"));
    scene.program("systemctl", "echo 'Access denied' >&2; exit 1");
    let refused = scene.daemon(Action::Start, None).await.unwrap_err();
    assert!(refused.contains("Access denied") && refused.contains("polkit"), "{refused}");
    assert_eq!(scene.row().await[1], "stopped");
    // In a container there is none.
    std::fs::remove_file(scene.dir.path().join("systemctl")).unwrap();
    let refused = scene.daemon(Action::Start, None).await.unwrap_err();
    assert!(
        refused.contains(&format!("enable --now {unit}: this host's systemd is out of reach"))
            && refused.contains("--by child"),
        "{refused}"
    );
    let standing = scene.daemon(Action::Status, None).await.unwrap();
    assert_eq!(standing["ours"][0]["wanted"], "stopped", "{standing:#}");
}

/// An order for a child while nobody looks after children: what becomes of its row meanwhile.
#[tokio::test]
async fn an_order_that_waits_for_a_daemon_says_what_has_come_in_between() {
    let mut scene = Scene::new(SimConfig::default()).await;
    for (change, said) in [
        ("DELETE FROM scoria_mirror_daemons", "site a on host node1 was forgotten meanwhile"),
        (
            "UPDATE scoria_mirror_daemons SET generation = generation + 1000",
            "has ordered something else of the daemon of site a on host node1 meanwhile",
        ),
    ] {
        let operation = scene.order(Order::Daemon(daemon(Action::Start, Some(Means::Child)))).await;
        let meanwhile = async {
            while scene.row().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            scene.test.sql(change).await;
        };
        tokio::join!(site::run(&scene.sites, &operation), meanwhile);
        let refused = scene.ended(&operation).await.unwrap_err();
        assert!(refused.contains(said), "{said}: {refused}");
        scene.test.sql("DELETE FROM scoria_mirror_daemons").await;
    }
    scene.patient(Patience { daemon: Duration::from_secs(1), ..Patience::default() });
    let operation = scene.order(Order::Daemon(daemon(Action::Start, Some(Means::Child)))).await;
    site::run(&scene.sites, &operation).await;
    let refused = scene.ended(&operation).await.unwrap_err();
    assert!(refused.contains("The daemon was not running in 1 s, it is starting"), "{refused}");
}

#[tokio::test]
async fn an_orchestrator_is_told_in_its_own_words() {
    let scene = Scene::new(SimConfig { orchestrated: true, ..SimConfig::default() }).await;
    scene.sim.stop_daemon("a");
    let missing = scene.daemon(Action::Status, None).await.unwrap();
    assert!(missing["findings"][0].as_str().unwrap().contains("nothing arrives from b"), "{missing}");
    scene.sim.clear_log();
    let order =
        DaemonOrder { placement: Some("2 n1 n2".into()), ..daemon(Action::Start, Some(Means::Orchestrator)) };
    let answer = scene.run(Order::Daemon(order)).await.unwrap();
    assert_eq!(answer["command"], "ceph orch apply rbd-mirror --placement='2 n1 n2'");
    scene.daemon(Action::Restart, None).await.unwrap();
    scene.daemon(Action::Stop, None).await.unwrap();
    scene.daemon(Action::Start, None).await.unwrap();
    let told: Vec<String> = scene
        .sim
        .log()
        .iter()
        .filter(|call| call.request.starts_with("Orchestrator"))
        .map(|call| format!("{:?}", call.arguments))
        .collect();
    let of = |text: &str| told.iter().filter(|t| t.contains(text)).count();
    assert_eq!(told.len(), 5, "{told:?}");
    assert_eq!(
        (of("placement: Some(\"2 n1 n2\")"), of("Restart"), of("Stop"), of("act: Start")),
        (2, 1, 1, 1),
        "{told:?}"
    );
    let well = scene.daemon(Action::Status, None).await.unwrap();
    assert_eq!(well["findings"], json!([]), "{well}");

    let plain = Scene::new(SimConfig::default()).await;
    let refused = plain.daemon(Action::Start, Some(Means::Orchestrator)).await.unwrap_err();
    assert!(refused.contains("has no orchestrator") && refused.contains("systemd or child"), "{refused}");
    assert!(plain.row().await.is_empty());
    let placed = DaemonOrder { placement: Some("2".into()), ..daemon(Action::Start, Some(Means::Child)) };
    let refused = plain.run(Order::Daemon(placed)).await.unwrap_err();
    assert!(refused.contains("A placement is for an orchestrator (--by orchestrator)"), "{refused}");
    scene.sim.inject(Fault::on("OrchestratorAct").fails(When::Before, RbdErrorKind::Permission));
    let refused = scene.daemon(Action::Restart, None).await.unwrap_err();
    assert!(
        refused.contains("The client may not tell the orchestrator of site a what to do")
            && refused.contains("mgr 'allow rw'"),
        "{refused}"
    );
}
