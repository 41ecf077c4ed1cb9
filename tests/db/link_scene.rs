//! Two clusters of the simulator, a host that knows both, and what is ordered of links between them.

use std::sync::Arc;
use std::time::Duration;

use scoria::journal::Operation;
use scoria::model::Scope;
use scoria::rbd::link::{ErasureProfile, Way};
use scoria::rbd::protocol::{Fsid, ImageCreate, ImageWrite, MirrorEnable};
use scoria::rbd::sim::{Sim, SimConfig, Timing, When};
use scoria::rbd::types::MirrorMode;
use scoria::site::{
    self, Connect, DataPool, Disconnect, Files, LinkMode, Make, Order, Patience, Register, Sites,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::journal::journal;
use crate::seed::{self, BACKEND};
use crate::stage::Heard;
use crate::support::TestDb;

pub const KEY: &str = "AQBTsNxdAAAAABAAkn0ypCIDOjzUsUXlt5eTpw==";
pub const POOL: &str = "volumes";

pub struct Scene {
    pub test: TestDb,
    pub sim: Sim,
    pub heard: Arc<Heard>,
    pub dir: TempDir,
    pub sites: Arc<Sites>,
}

/// Daemons that do within milliseconds what takes theirs seconds.
pub fn quick(config: SimConfig) -> SimConfig {
    let soon = Duration::from_millis(10);
    let timing = Timing {
        call: Duration::from_millis(1),
        mirror_call: Duration::from_millis(1),
        appear: soon,
        start_journal: soon,
        start_snapshot: soon,
        replay: soon,
        sync: soon,
        register: soon,
        remove: soon,
        status_stale: soon,
        watch: soon,
        silence: soon,
        ..Timing::default()
    };
    SimConfig { timing, ..config }
}

pub fn bare() -> SimConfig {
    quick(SimConfig::bare())
}

impl Scene {
    pub async fn of(config: SimConfig) -> Scene {
        Scene::by("admin", config).await
    }

    /// The host's files are those of this client.
    pub async fn by(user: &str, config: SimConfig) -> Scene {
        let test = TestDb::new().await;
        seed::base(&test).await;
        Scene::over(user, test, Sim::new(config), Arc::new(Heard::default())).await
    }

    /// In a world that is there.
    pub async fn over(user: &str, test: TestDb, sim: Sim, heard: Arc<Heard>) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let sites = on(&test, &sim, &heard, &dir);
        let scene = Scene { test, sim, heard, dir, sites };
        for name in ["a", "b"] {
            let conf = scene.dir.path().join(format!("{name}.conf"));
            std::fs::write(&conf, "[global]\n").unwrap();
            let files = Files { conf, keyring: None, user: user.into(), draft: false };
            let order = Register { name: name.into(), files, pools: vec![], dry_run: false };
            scene.run(Order::Register(order)).await.unwrap();
        }
        scene
    }

    /// The service dies, and another instance of it starts.
    pub fn restart(&mut self) {
        self.sim.restart();
        self.sites = on(&self.test, &self.sim, &self.heard, &self.dir);
    }

    /// From now on others are waited for no longer than this.
    pub fn patient(&mut self, patience: Patience) {
        let sites = Arc::into_inner(on(&self.test, &self.sim, &self.heard, &self.dir)).unwrap();
        self.sites = Arc::new(sites.waiting(patience));
    }

    pub async fn order(&self, order: Order) -> Operation {
        site::submit(&self.sites.journal, "node1", order, None).await.unwrap();
        self.adopt().await
    }

    pub async fn adopt(&self) -> Operation {
        self.sites.journal.adopt(&Scope::Host("node1".into())).await.unwrap().remove(0)
    }

    pub async fn run(&self, order: Order) -> Result<Value, String> {
        let operation = self.order(order).await;
        site::run(&self.sites, &operation).await;
        self.ended(&operation).await
    }

    pub async fn ended(&self, operation: &Operation) -> Result<Value, String> {
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

    /// Runs an order that is killed at its `k`-th call, and the order that the next instance takes up.
    pub async fn killed(&mut self, order: Order, k: usize, when: When) -> Result<Value, String> {
        let operation = self.order(order).await;
        self.sim.kill_at(k, when);
        tokio::select! {
            biased;
            () = self.sim.crashed() => {}
            () = site::run(&self.sites, &operation) => {
                // It polls: fewer calls than the first time.
                self.sim.restart();
                return self.ended(&operation).await;
            }
        }
        self.restart();
        let operation = self.adopt().await;
        site::run(&self.sites, &operation).await;
        self.ended(&operation).await
    }

    pub async fn fsid(&self, site: &str) -> String {
        self.sim.site(site).call(Fsid {}).await.unwrap()
    }

    pub async fn links(&self) -> Vec<Vec<String>> {
        self.test.rows("SELECT pool, way, method, state FROM scoria_peer_links ORDER BY pool").await
    }

    /// Backend `node1@ceph` works with both sites in the pool.
    pub async fn backend(&self) {
        for (name, of) in [("default", "a"), ("b", "b")] {
            let fsid = self.fsid(of).await;
            self.test
                .sql(&format!(
                    "INSERT INTO scoria_site_uses VALUES ('{BACKEND}', '{name}', '{fsid}', '{POOL}', 'cinder', UTC_TIMESTAMP(6))"
                ))
                .await;
        }
    }

    /// A mirrored image on `site`, and its copy on the other.
    pub async fn image(&self, site: &str, other: &str, image: &str, mode: MirrorMode) {
        let at = self.sim.site(site);
        let (pool, image) = (POOL.to_owned(), image.to_owned());
        let size = 8 << 20;
        at.call(ImageCreate { pool: pool.clone(), image: image.clone(), size, order: 22, features: 61 })
            .await
            .unwrap();
        at.call(ImageWrite { pool: pool.clone(), image: image.clone(), offset: 0, data: vec![7; 4096] })
            .await
            .unwrap();
        at.call(MirrorEnable { pool: pool.clone(), image: image.clone(), mode }).await.unwrap();
        let same = || {
            let sum = |s: &str| self.sim.image(s, &pool, &image).map(|i| i.checksum);
            sum(other).is_some() && sum(site) == sum(other)
        };
        for _ in 0..200 {
            if same() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{image} is not mirrored");
    }

    pub fn drafts(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("sites")).into_iter().flatten().count()
    }

    pub async fn admin(&self, site: &str) -> Files {
        let key = site::CephKey::parse(KEY).unwrap();
        let sites = &self.sites;
        site::admin_files(&sites.db, &sites.store, "node1", site, "admin", &key).await.unwrap()
    }
}

fn on(test: &TestDb, sim: &Sim, heard: &Arc<Heard>, dir: &TempDir) -> Arc<Sites> {
    let kept = dir.path().join("sites");
    Arc::new(Sites::new(
        "node1",
        kept,
        journal(test, "node1"),
        sim.ceph(),
        heard.clone(),
        heard.clone(),
        vec![],
    ))
}

pub fn connect() -> Connect {
    Connect {
        a: "a".into(),
        b: "b".into(),
        pools: vec![POOL.into()],
        make: Some(Make::default()),
        mode: LinkMode::Image,
        way: Way::RxTx,
        manual: false,
        accept_pool_type: false,
        canary: true,
        admin_a: None,
        admin_b: None,
        dry_run: false,
    }
}

pub fn erasure(k: u32, m: u32, domain: &str) -> Option<Make> {
    let profile = ErasureProfile {
        name: "ec".into(),
        k,
        m,
        plugin: "jerasure".into(),
        technique: None,
        failure_domain: domain.into(),
        device_class: None,
    };
    let data = DataPool { name: None, profile, min_size: Some(k), pg_num: Some(8) };
    Some(Make { data: Some(data), ..Make::default() })
}

pub fn disconnect() -> Disconnect {
    Disconnect {
        a: "a".into(),
        b: "b".into(),
        pools: vec![],
        force: false,
        purge: None,
        flatten_backups: false,
        delete_backups: None,
        admin_a: None,
        admin_b: None,
        dry_run: false,
    }
}

pub fn ordered(order: Connect) -> Order {
    Order::Connect(Box::new(order))
}

pub fn parted(order: Disconnect) -> Order {
    Order::Disconnect(Box::new(order))
}

pub fn strangers(scene: &Scene) -> bool {
    scene.sim.is_stranger("a") && scene.sim.is_stranger("b")
}

pub fn verified(answer: &Value) -> bool {
    answer["proofs"].as_array().unwrap().iter().all(|proof| proof["verified"] == true)
}
