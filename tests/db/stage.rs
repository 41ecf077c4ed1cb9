//! A backend over a scratch database and the simulator: what a volume operation needs, without broker and
//! without Ceph.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use scoria::backend::peers::{
    Capabilities, Notify, Priority, Reschedule, Scheduler, SnapshotUsage, VolumePeers, VolumeUsage,
};
use scoria::backend::{Backend, Condition, Globals, Peers};
use scoria::config::Config;
use scoria::context::RequestContext;
use scoria::error::{Code, Error, Result};
use scoria::journal::{NewOperation, Operation};
use scoria::model::{Group, GroupSnapshot, Service};
use scoria::rbd::sim::{Sim, SimConfig};
use serde_json::{Map, Value, json};

use crate::journal::{accept, journal};
use crate::seed::{self, BACKEND, PROJECT};
use crate::support::TestDb;

const CONF: &str = "[DEFAULT]\nhost=node1\nenabled_backends=ceph\ntransport_url=rabbit://u:p@h/v\n\
                    [database]\nconnection=mysql+pymysql://u:p@h/cinder\n\
                    [ceph]\nvolume_driver=cinder.volume.drivers.rbd.RBDDriver\nrbd_pool=volumes\nrbd_user=cinder\n";

/// The same with a second site.
const REPLICATED: &str = "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\n\
                          replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n";

/// Says nothing to anybody, and remembers what the members of a cluster were told.
#[derive(Default)]
pub struct Nobody {
    told: Mutex<Vec<Map<String, Value>>>,
    deaf: AtomicBool,
    panics: AtomicUsize,
}

#[async_trait]
impl Notify for Nobody {
    fn enabled(&self) -> bool {
        let left = self.panics.load(Ordering::SeqCst);
        if left > 0 {
            self.panics.store(left - 1, Ordering::SeqCst);
            panic!("a defect");
        }
        false
    }
    async fn volume(&self, _: &RequestContext, _: &str, _: &str, _: VolumeUsage<'_>) {}
    async fn snapshot(&self, _: &RequestContext, _: &str, _: &str, _: SnapshotUsage<'_>) {}
    async fn group(&self, _: &RequestContext, _: &str, _: &str, _: &Group) {}
    async fn group_snapshot(&self, _: &RequestContext, _: &str, _: &str, _: &GroupSnapshot) {}
    async fn publish(&self, _: &RequestContext, _: &str, _: Priority, _: &str, _: Value) {}
}

#[async_trait]
impl Scheduler for Nobody {
    async fn create_volume(&self, _: &RequestContext, _: Reschedule) -> Result<()> {
        Ok(())
    }
    async fn report_capabilities(&self, _: &RequestContext, _: Capabilities) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl VolumePeers for Nobody {
    async fn failover_completed(&self, _: &RequestContext, _: &str, told: Map<String, Value>) -> Result<()> {
        if self.deaf.load(Ordering::SeqCst) {
            return Err(Error::new(Code::Broker, "nobody confirms"));
        }
        self.told.lock().unwrap().push(told);
        Ok(())
    }
    async fn delete_volume(&self, _: &RequestContext, _: &str, _: Value, _: bool) -> Result<()> {
        Ok(())
    }
}

/// A backend `node1@ceph` that is up, its database, and its Ceph.
pub struct Stage {
    pub test: TestDb,
    pub backend: Arc<Backend>,
    pub sim: Sim,
    pub context: RequestContext,
    nobody: Arc<Nobody>,
    conf: String,
}

impl Stage {
    /// With the rows of [`seed::base`].
    pub async fn new() -> Stage {
        Stage::with("").await
    }

    /// Sites `default` (the simulator's `a`) and `b`.
    pub async fn replicated() -> Stage {
        Stage::with(REPLICATED).await
    }

    /// The same, a member of the Cinder cluster `c@ceph`.
    pub async fn clustered() -> Stage {
        let stage = Stage::with(&format!("{REPLICATED}[DEFAULT]\ncluster=c\n")).await;
        stage
            .test
            .sql(
                "UPDATE services SET cluster_name='c@ceph', replication_status='enabled';
                 INSERT INTO clusters (id, name, `binary`, disabled, race_preventer, replication_status, frozen, deleted)
                 VALUES (1, 'c@ceph', 'cinder-volume', 0, 0, 'enabled', 0, 0)",
            )
            .await;
        stage
    }

    async fn with(conf: &str) -> Stage {
        let test = TestDb::new().await;
        seed::base(&test).await;
        let sim = Sim::new(SimConfig::default());
        let nobody = Arc::new(Nobody::default());
        let backend = backend(&test, &sim, &nobody, conf);
        let Value::Object(fields) = json!({"request_id": "req-1", "project_id": PROJECT}) else {
            unreachable!()
        };
        let context = RequestContext::from_fields(fields);
        Stage { test, backend, sim, context, nobody, conf: conf.to_owned() }
    }

    /// The service dies, and another instance of it starts on the same machine.
    pub fn restart(&mut self) {
        self.backend = backend(&self.test, &self.sim, &self.nobody, &self.conf);
    }

    /// The broker confirms nothing.
    pub fn set_deaf(&self, deaf: bool) {
        self.nobody.deaf.store(deaf, Ordering::SeqCst);
    }

    /// The next `times` notifications hit a defect.
    pub fn panic_in_notifications(&self, times: usize) {
        self.nobody.panics.store(times, Ordering::SeqCst);
    }

    /// What the members of the cluster were told, in order.
    pub fn told(&self) -> Vec<Map<String, Value>> {
        self.nobody.told.lock().unwrap().clone()
    }

    /// An accepted request about a resource.
    pub async fn operation(&self, method: &str, resource: Option<(&str, &str)>) -> Operation {
        let new = NewOperation {
            unique_id: uuid::Uuid::new_v4().to_string(),
            method: method.to_owned(),
            backend_host: BACKEND.to_owned(),
            request: "{}".to_owned(),
            resource: resource.map(|(kind, id)| (kind.to_owned(), id.to_owned())),
            ..NewOperation::default()
        };
        accept(&self.backend.journal, new).await
    }

    /// State and outcome of an operation.
    pub async fn ended(&self, operation: &Operation) -> Vec<String> {
        let id = operation.id();
        self.test.row(&format!("SELECT state, outcome FROM scoria_operations WHERE id={id}")).await
    }

    /// Resource type, resource id, action and detail of all user messages.
    pub async fn messages(&self) -> Vec<Vec<String>> {
        self.test
            .rows(
                "SELECT resource_type, resource_uuid, action_id, detail_id FROM messages ORDER BY resource_type, resource_uuid",
            )
            .await
    }
}

fn backend(test: &TestDb, sim: &Sim, nobody: &Arc<Nobody>, more: &str) -> Arc<Backend> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{CONF}{more}")).unwrap();
    let (config, _) = Config::load(&[file.path().to_owned()], &[], std::iter::empty()).unwrap();
    let peers = Peers { notify: nobody.clone(), scheduler: nobody.clone(), volumes: nobody.clone() };
    let section = config.backends.first().unwrap().clone();
    assert_eq!(section.host, BACKEND);
    let backend = Backend::new(section, Globals::from(&config), journal(test, "node1"), peers, &sim.ceph());
    backend.set_service(Service { id: 1, host: BACKEND.into(), uuid: seed::id(9, 1), ..Service::default() });
    backend.set_condition(Condition::Up);
    Arc::new(backend)
}
