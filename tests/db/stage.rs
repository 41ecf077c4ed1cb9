//! A backend over a scratch database and the simulator: what a volume operation needs, without broker and
//! without Ceph.

use std::sync::Arc;

use async_trait::async_trait;
use scoria::backend::peers::{
    Capabilities, Notify, Priority, Reschedule, Scheduler, SnapshotUsage, VolumePeers, VolumeUsage,
};
use scoria::backend::{Backend, Condition, Globals, Peers};
use scoria::config::Config;
use scoria::context::RequestContext;
use scoria::error::Result;
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

/// Says nothing to anybody.
struct Nobody;

#[async_trait]
impl Notify for Nobody {
    fn enabled(&self) -> bool {
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
    async fn failover_completed(&self, _: &RequestContext, _: &str, _: Map<String, Value>) -> Result<()> {
        Ok(())
    }
    async fn delete_volume(&self, _: &RequestContext, _: &str, _: Value, _: bool) -> Result<()> {
        Ok(())
    }
}

/// A backend `node1@ceph` that is up, its database, and its Ceph.
pub struct Stage {
    pub test: TestDb,
    pub backend: Backend,
    pub sim: Sim,
    pub context: RequestContext,
}

impl Stage {
    /// With the rows of [`seed::base`].
    pub async fn new() -> Stage {
        let test = TestDb::new().await;
        seed::base(&test).await;
        let sim = Sim::new(SimConfig::default());
        let backend = backend(&test, &sim);
        let Value::Object(fields) = json!({"request_id": "req-1", "project_id": PROJECT}) else {
            unreachable!()
        };
        Stage { test, backend, sim, context: RequestContext::from_fields(fields) }
    }

    /// The service dies, and another instance of it starts on the same machine.
    pub fn restart(&mut self) {
        self.backend = backend(&self.test, &self.sim);
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

fn backend(test: &TestDb, sim: &Sim) -> Backend {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), CONF).unwrap();
    let (config, _) = Config::load(&[file.path().to_owned()], &[], std::iter::empty()).unwrap();
    let nobody = Arc::new(Nobody);
    let peers = Peers { notify: nobody.clone(), scheduler: nobody.clone(), volumes: nobody };
    let section = config.backends.first().unwrap().clone();
    assert_eq!(section.host, BACKEND);
    let backend = Backend::new(section, Globals::from(&config), journal(test, "node1"), peers, &sim.ceph());
    backend.set_service(Service { id: 1, host: BACKEND.into(), uuid: seed::id(9, 1), ..Service::default() });
    backend.set_condition(Condition::Up);
    backend
}
