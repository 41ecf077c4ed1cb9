//! A host whose backends come and go, over MariaDB and the simulator. What serves them is played: it writes the service's
//! row as the real one does, has queues that outlive it, and dies at whichever step a test names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use scoria::backends::{
    self, Backends, Create, Delete, Named, Options, Order, Rename, Runner, Started, Update, boot,
};
use scoria::config::{BackendConfig, Config, Sources};
use scoria::db::{Db, service};
use scoria::error::{Code, Error, Result};
use scoria::journal::Operation;
use scoria::model::Scope;
use scoria::rbd::sim::{Sim, SimConfig};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::journal::journal;
use crate::stage::Heard;
use crate::support::TestDb;

/// What outlives a service: the broker's queues.
#[derive(Default)]
pub struct Broker {
    pub queues: Mutex<BTreeSet<String>>,
}

/// Plays the service.
pub struct Played {
    pub db: Db,
    pub broker: Arc<Broker>,
    pub running: Mutex<BTreeMap<String, BackendConfig>>,
    pub applied: Mutex<Vec<String>>,
    /// A backend with this pool does not come up.
    pub broken: Option<String>,
    /// The step at which it dies, and how many it has passed.
    pub dies_at: usize,
    pub passed: AtomicUsize,
    pub died: Notify,
    /// What other hosts answer.
    pub others: BTreeMap<String, Value>,
}

impl Played {
    pub async fn pass(&self) {
        if self.passed.fetch_add(1, Ordering::SeqCst) + 1 == self.dies_at {
            self.died.notify_one();
            std::future::pending::<()>().await;
        }
    }

    pub fn names(&self) -> Vec<String> {
        self.running.lock().unwrap().keys().cloned().collect()
    }
}

#[async_trait]
impl Runner for Played {
    async fn start(&self, config: &BackendConfig) -> Result<Started> {
        self.pass().await;
        let registration = service::Registration {
            host: config.host.clone(),
            cluster: config.cluster.clone(),
            availability_zone: config.availability_zone.clone(),
            enable_new_services: true,
        };
        self.db.write("register", async |conn| service::register(conn, &registration).await).await?;
        self.broker.queues.lock().unwrap().insert(config.host.clone());
        self.running.lock().unwrap().insert(config.section.clone(), config.clone());
        self.pass().await;
        Ok(Started {
            down: (self.broken.as_deref() == Some(&config.pool)).then(|| "the pool is broken".to_owned()),
        })
    }

    async fn stop(&self, name: &str, _: Duration) -> bool {
        self.pass().await;
        self.running.lock().unwrap().remove(name);
        self.pass().await;
        true
    }

    fn apply(&self, config: &BackendConfig) {
        self.applied.lock().unwrap().push(config.section.clone());
        self.running.lock().unwrap().insert(config.section.clone(), config.clone());
    }

    fn running(&self, name: &str) -> Option<BackendConfig> {
        self.running.lock().unwrap().get(name).cloned()
    }

    fn release(&self, _: &BackendConfig) {}

    async fn delete_queues(&self, service: &str, _: Option<&str>) -> Result<()> {
        self.pass().await;
        self.broker.queues.lock().unwrap().remove(service);
        self.pass().await;
        Ok(())
    }

    async fn ask(&self, host: &str, _: &str, _: Value, _: Duration) -> Result<Value> {
        let silent = || Error::new(Code::DeadlineExceeded, "no answer");
        self.others.get(host).cloned().ok_or_else(silent)
    }

    async fn placeable(&self, _: &str, _: Duration) -> bool {
        self.pass().await;
        true
    }

    async fn point(&self, _: &'static str) {
        self.pass().await;
    }
}

pub struct Scene {
    pub test: TestDb,
    pub sim: Sim,
    pub heard: Arc<Heard>,
    pub broker: Arc<Broker>,
    pub dir: TempDir,
    pub backends: Arc<Backends>,
    pub played: Arc<Played>,
    pub broken: Option<String>,
}

pub fn played(test: &TestDb, broker: &Arc<Broker>, dies_at: usize, broken: Option<String>) -> Arc<Played> {
    Arc::new(Played {
        db: test.db.clone(),
        broker: broker.clone(),
        running: Mutex::default(),
        applied: Mutex::default(),
        broken,
        dies_at,
        passed: AtomicUsize::new(0),
        died: Notify::new(),
        others: BTreeMap::new(),
    })
}

impl Scene {
    pub async fn new() -> Scene {
        Scene::with("").await
    }

    /// With more lines in the service's own file.
    pub async fn with(more: &str) -> Scene {
        let test = TestDb::new().await;
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.conf", "b.conf"] {
            std::fs::write(dir.path().join(name), "[global]\n").unwrap();
        }
        let text = format!(
            "[DEFAULT]\nhost=node1\nenabled_backends=ceph\ntransport_url=rabbit://u:p@h/v\n\
             [database]\nconnection=mysql+pymysql://u:p@h/cinder\n\
             [backend_defaults]\nrbd_user=cinder\nrbd_ceph_conf={}\n[ceph]\nrbd_pool=volumes\n{more}",
            dir.path().join("a.conf").display()
        );
        std::fs::write(dir.path().join("cinder.conf"), text).unwrap();
        let (sim, heard, broker) =
            (Sim::new(SimConfig::default()), Arc::new(Heard::default()), Arc::new(Broker::default()));
        let played = played(&test, &broker, 0, None);
        let backends = made(&test, &sim, &heard, &dir, &played, "node1");
        let scene = Scene { test, sim, heard, broker, dir, backends, played, broken: None };
        scene.boot().await;
        scene
    }

    pub fn config(&self) -> Config {
        Config::load(&self.backends.sources.files, &[], std::iter::empty()).unwrap().0
    }

    /// What a start does.
    pub async fn boot(&self) {
        for section in boot::plan(&self.backends, &self.config()).await.unwrap() {
            self.played.start(&section).await.unwrap();
        }
    }

    /// The service dies, and another instance of it starts, which dies at its `k`th step (0: never).
    pub async fn restart(&mut self, k: usize) {
        self.sim.restart();
        self.played = played(&self.test, &self.broker, 0, self.broken.clone());
        self.backends = made(&self.test, &self.sim, &self.heard, &self.dir, &self.played, "node1");
        self.boot().await;
        let ran = self.played.names();
        let again = played(&self.test, &self.broker, k, self.broken.clone());
        for name in ran {
            again.running.lock().unwrap().insert(name.clone(), self.played.running(&name).unwrap());
        }
        self.played = again;
        self.backends = made(&self.test, &self.sim, &self.heard, &self.dir, &self.played, "node1");
    }

    pub async fn adopt(&self) -> Option<Operation> {
        self.backends.journal.adopt(&Scope::Host("node1".into())).await.unwrap().pop()
    }

    pub async fn run(&self, order: Order) -> Result<Value, String> {
        backends::submit(&self.backends.journal, "node1", order, None).await.unwrap();
        let operation = self.adopt().await.unwrap();
        backends::run(&self.backends, &operation).await;
        self.ended(operation.id()).await
    }

    pub async fn ended(&self, id: i64) -> Result<Value, String> {
        let row = self
            .test
            .row(&format!("SELECT state, outcome, outcome_detail FROM scoria_operations WHERE id={id}"))
            .await;
        assert_eq!(row[0], "closed", "{row:?}");
        match row[1].as_str() {
            "succeeded" => Ok(self.backends.journal.answer_of(id).await.unwrap().unwrap()),
            _ => Err(row[2].clone()),
        }
    }

    /// Gives an order to a service that dies at its `k`th step; true when it came to its end before. The next instance
    /// goes on, to the end.
    pub async fn dies(&mut self, k: usize, order: Order) -> (bool, Result<Value, String>) {
        self.restart(k).await;
        let (id, _) = backends::submit(&self.backends.journal, "node1", order, None).await.unwrap();
        let operation = self.adopt().await.unwrap();
        let ended = tokio::select! {
            biased;
            () = self.played.died.notified() => false,
            () = backends::run(&self.backends, &operation) => true,
        };
        drop(operation);
        if !ended {
            self.restart(0).await;
            if let Some(operation) = self.adopt().await {
                backends::run(&self.backends, &operation).await;
            }
        }
        (ended, self.ended(id).await)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("backends.d/{name}.conf"))
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.dir.path().join("backends.d")).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Name, wanted, state and whether there is a problem.
    pub async fn rows(&self) -> Vec<String> {
        let rows = self
            .test
            .rows("SELECT name, wanted, state, problem IS NOT NULL FROM scoria_backends WHERE host='node1' ORDER BY name")
            .await;
        rows.into_iter().map(|row| row.join(" ")).collect()
    }

    pub async fn services(&self) -> Vec<String> {
        let rows = self.test.rows("SELECT host FROM services WHERE deleted=0 ORDER BY host").await;
        rows.into_iter().map(|row| row.join(" ")).collect()
    }

    pub fn queues(&self) -> Vec<String> {
        self.broker.queues.lock().unwrap().iter().cloned().collect()
    }

    /// Asserts that a backend serves, in every respect.
    pub async fn is_there(&self, name: &str, when: &str) {
        let service = format!("node1@{name}");
        assert!(
            self.rows().await.contains(&format!("{name} on running 0")),
            "{when}: {:?}",
            self.rows().await
        );
        assert!(self.services().await.contains(&service), "{when}: {:?}", self.services().await);
        assert!(self.queues().contains(&service), "{when}: {:?}", self.queues());
        assert!(self.played.running(name).is_some() && self.path(name).exists(), "{when}");
    }

    /// Asserts that nothing of a backend is left.
    pub async fn is_gone(&self, name: &str, when: &str) {
        let service = format!("node1@{name}");
        let rows = self.rows().await;
        assert!(!rows.iter().any(|row| row.starts_with(&format!("{name} "))), "{when}: {rows:?}");
        assert!(!self.services().await.contains(&service), "{when}: {:?}", self.services().await);
        assert!(!self.queues().contains(&service), "{when}: {:?}", self.queues());
        assert!(self.played.running(name).is_none() && !self.path(name).exists(), "{when}");
    }
}

pub fn made(
    test: &TestDb,
    sim: &Sim,
    heard: &Arc<Heard>,
    dir: &TempDir,
    played: &Arc<Played>,
    host: &str,
) -> Arc<Backends> {
    let sources = Sources { files: vec![dir.path().join("cinder.conf")], dirs: vec![] };
    let patience = Duration::from_secs(1);
    let journal = journal(test, host);
    Arc::new(Backends::new(host, sources, journal, sim.ceph(), heard.clone(), played.clone(), patience))
}

pub fn options(pairs: &[(&str, &str)]) -> Options {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), vec![(*v).to_owned()])).collect()
}

pub fn create(name: &str) -> Create {
    Create {
        name: name.into(),
        options: options(&[("rbd_pool", "volumes2")]),
        volume_type: Some(format!("type-{name}")),
        enabled: true,
        dry_run: false,
    }
}

pub fn delete(name: &str) -> Delete {
    Delete { name: name.into(), force: false, drain: false, dry_run: false }
}

pub fn named(name: &str) -> Named {
    Named { name: name.into() }
}

pub fn update(name: &str, pairs: &[(&str, &str)]) -> Update {
    Update { name: name.into(), options: options(pairs), dry_run: false }
}

pub fn rename(name: &str, new_name: &str) -> Rename {
    Rename { name: name.into(), new_name: new_name.into(), from: None, dry_run: false }
}
