//! A backend over a scratch database and the simulator: what a volume operation needs, without broker and
//! without Ceph.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use scoria::backend::peers::{
    BackupPeers, BackupRequest, Capabilities, ContinueBackup, DeleteBackup, ImportRecord, Notify, Priority,
    Reschedule, RestoreBackup, Scheduler, SnapshotUsage, VolumePeers, VolumeUsage,
};
use scoria::backend::{Backend, Condition, Globals, Peers};
use scoria::config::Config;
use scoria::context::RequestContext;
use scoria::error::{Code, Error, Result};
use scoria::journal::{NewOperation, Operation};
use scoria::model::{Backup, Group, GroupSnapshot, Service, Volume};
use scoria::rbd::sim::{ImageView, Sim, SimConfig, Timing, When};
use scoria::replication::orders::{Order, Request};
use scoria::volume::image::{Attempt, Place, Shape};
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

/// Tells nobody, and remembers what it was to tell.
#[derive(Default)]
pub struct Heard {
    events: Mutex<Vec<String>>,
    rescheduled: Mutex<Vec<Reschedule>>,
    told: Mutex<Vec<Map<String, Value>>>,
    cast: Mutex<Vec<String>>,
    ordered: Mutex<Vec<ContinueBackup>>,
    doomed: Mutex<Vec<DeleteBackup>>,
    deaf: AtomicBool,
    panics: AtomicUsize,
    stuck: AtomicBool,
}

impl Heard {
    /// Notifications in order: event type, id and status of the resource.
    pub fn events(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }

    /// Requests that went back to the scheduler.
    pub fn rescheduled(&self) -> Vec<Reschedule> {
        self.rescheduled.lock().unwrap().clone()
    }

    /// Backups that somebody was asked to delete since this was last asked.
    pub fn take_doomed(&self) -> Vec<DeleteBackup> {
        std::mem::take(&mut self.doomed.lock().unwrap())
    }

    /// What other services were asked to create or delete, in order.
    pub fn cast(&self) -> Vec<String> {
        self.cast.lock().unwrap().clone()
    }

    /// Devices that were handed out for backups, in order.
    pub fn handed_out(&self) -> Vec<ContinueBackup> {
        self.ordered.lock().unwrap().clone()
    }

    fn say(&self, event: String) {
        self.events.lock().unwrap().push(event);
    }
}

#[async_trait]
impl Notify for Heard {
    fn enabled(&self) -> bool {
        let left = self.panics.load(Ordering::SeqCst);
        if left > 0 {
            self.panics.store(left - 1, Ordering::SeqCst);
            panic!("a defect");
        }
        true
    }
    async fn volume(&self, _: &RequestContext, suffix: &str, _: &str, usage: VolumeUsage<'_>) {
        if self.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.say(format!("volume.{suffix} {} {}", usage.volume.id, usage.volume.status));
    }
    async fn snapshot(&self, _: &RequestContext, suffix: &str, _: &str, usage: SnapshotUsage<'_>) {
        let deleted = if usage.snapshot.deleted { " (deleted)" } else { "" };
        self.say(format!("snapshot.{suffix} {} {}{deleted}", usage.snapshot.id, usage.snapshot.status));
    }
    async fn group(&self, _: &RequestContext, suffix: &str, _: &str, group: &Group) {
        self.say(format!("group.{suffix} {} {}", group.id, group.status));
    }
    async fn group_snapshot(&self, _: &RequestContext, suffix: &str, _: &str, set: &GroupSnapshot) {
        self.say(format!("group_snapshot.{suffix} {} {}", set.id, set.status));
    }
    async fn publish(&self, _: &RequestContext, event: &str, _: Priority, _: &str, payload: Value) {
        let text = |key: &str| payload.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        if event.starts_with("backup.") {
            return self.say(format!("{event} {}", text("status")));
        }
        self.say(format!("{event} {}", text("replication_status")));
    }
}

#[async_trait]
impl Scheduler for Heard {
    async fn create_volume(&self, _: &RequestContext, request: Reschedule) -> Result<()> {
        self.rescheduled.lock().unwrap().push(request);
        Ok(())
    }
    async fn report_capabilities(&self, _: &RequestContext, _: Capabilities) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl VolumePeers for Heard {
    async fn failover_completed(&self, _: &RequestContext, _: &str, told: Map<String, Value>) -> Result<()> {
        if self.deaf.load(Ordering::SeqCst) {
            return Err(Error::new(Code::Broker, "nobody confirms"));
        }
        self.told.lock().unwrap().push(told);
        Ok(())
    }
    async fn delete_volume(&self, _: &RequestContext, to: &str, volume: &Volume, _: bool) -> Result<()> {
        if self.deaf.load(Ordering::SeqCst) {
            return Err(Error::new(Code::Broker, "nobody confirms"));
        }
        self.cast.lock().unwrap().push(format!("delete {} at {to}", volume.id));
        Ok(())
    }
    async fn create_volume(&self, _: &RequestContext, to: &str, volume: &Volume) -> Result<()> {
        self.cast.lock().unwrap().push(format!("create {} at {to}", volume.id));
        Ok(())
    }
}

#[async_trait]
impl BackupPeers for Heard {
    async fn continue_backup(&self, _: &RequestContext, order: ContinueBackup) -> Result<()> {
        if self.deaf.load(Ordering::SeqCst) {
            return Err(Error::new(Code::Broker, "nobody confirms"));
        }
        self.ordered.lock().unwrap().push(order);
        Ok(())
    }
    async fn restore_backup(&self, _: &RequestContext, order: RestoreBackup) -> Result<()> {
        if self.deaf.load(Ordering::SeqCst) {
            return Err(Error::new(Code::Broker, "nobody confirms"));
        }
        let RestoreBackup { host, backup, volume_id, .. } = order;
        self.cast.lock().unwrap().push(format!("restore {} into {volume_id} at {host}", backup.id));
        Ok(())
    }
    async fn import_record(&self, _: &RequestContext, order: ImportRecord) -> Result<()> {
        self.cast.lock().unwrap().push(format!("import at {}, then {:?}", order.host, order.hosts));
        Ok(())
    }
    fn request(
        &self,
        context: &RequestContext,
        unique_id: &str,
        asked: BackupRequest,
        backup: &Backup,
    ) -> Result<String> {
        scoria::rpc::synthetic::of_backup(context, unique_id, asked, backup)
    }

    async fn delete_backup(&self, _: &RequestContext, order: DeleteBackup) -> Result<()> {
        if self.deaf.load(Ordering::SeqCst) {
            return Err(Error::new(Code::Broker, "nobody confirms"));
        }
        self.cast.lock().unwrap().push(format!("delete backup {} at {}", order.backup.id, order.host));
        self.doomed.lock().unwrap().push(order);
        Ok(())
    }
}

/// A backend `node1@ceph` that is up, its database, and its Ceph.
pub struct Stage {
    pub test: TestDb,
    pub backend: Arc<Backend>,
    pub sim: Sim,
    pub context: RequestContext,
    pub heard: Arc<Heard>,
    options: String,
    conf: tempfile::NamedTempFile,
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

    /// The same with more lines in the backend's section.
    pub async fn with(options: &str) -> Stage {
        Stage::on(options, SimConfig::default()).await
    }

    /// Two sites as in [`Stage::replicated`], with more lines in the backend's section, whose daemons take a tenth of
    /// a second for what takes theirs seconds, a verdict that is taken quickly, and a service row that accepts
    /// failovers.
    pub async fn quick(options: &str) -> Stage {
        let tenth = Duration::from_millis(100);
        let timing = Timing {
            appear: tenth,
            start_journal: tenth,
            start_snapshot: tenth,
            replay: tenth,
            sync: tenth,
            turn_journal: tenth,
            turn_snapshot: tenth,
            register: tenth,
            remove: tenth,
            status_stale: tenth,
            ..Timing::default()
        };
        let options = format!("{REPLICATED}scoria_verdict_timeout=1\n{options}");
        let config = SimConfig {
            timing,
            clone_v2: true,
            lost_worker_leaves_watch: false,
            may_unblock: true,
            ..SimConfig::default()
        };
        let stage = Stage::on(&options, config).await;
        stage.test.sql("UPDATE services SET replication_status='enabled'").await;
        stage
    }

    async fn on(options: &str, config: SimConfig) -> Stage {
        let test = TestDb::new().await;
        seed::base(&test).await;
        let sim = Sim::new(config);
        let heard = Arc::new(Heard::default());
        let conf = tempfile::NamedTempFile::new().unwrap();
        let backend = backend(&test, &sim, &heard, options, conf.path());
        backend.set_condition(Condition::Up);
        let Value::Object(fields) = json!({"request_id": "req-1", "project_id": PROJECT}) else {
            unreachable!()
        };
        let context = RequestContext::from_fields(fields);
        Stage { test, backend, sim, context, heard, options: options.to_owned(), conf }
    }

    /// An operator changes the configuration file: these are the lines of the backend's section from now on.
    pub fn rewrite(&mut self, options: &str) {
        self.options = options.to_owned();
        write_conf(self.conf.path(), "node1", options);
    }

    /// Another member of the backend's Cinder cluster, with a configuration file of its own.
    pub fn member(&self, options: &str) -> (Arc<Backend>, tempfile::NamedTempFile) {
        let conf = tempfile::NamedTempFile::new().unwrap();
        write_conf(conf.path(), "node2", options);
        (made(&self.test, &self.sim, &self.heard, "node2", conf.path()), conf)
    }

    /// The service dies, and another instance of it starts on the same machine.
    pub fn restart(&mut self) {
        self.restart_down();
        self.backend.set_condition(Condition::Up);
    }

    /// The same, and the site that its backend works on has not answered since.
    pub fn restart_down(&mut self) {
        self.backend = backend(&self.test, &self.sim, &self.heard, &self.options, self.conf.path());
    }

    /// The broker confirms nothing.
    pub fn set_deaf(&self, deaf: bool) {
        self.heard.deaf.store(deaf, Ordering::SeqCst);
    }

    /// Notifications of volumes hang for ever.
    pub fn hang_in_notifications(&self) {
        self.heard.stuck.store(true, Ordering::SeqCst);
    }

    /// The next `times` notifications hit a defect.
    pub fn panic_in_notifications(&self, times: usize) {
        self.heard.panics.store(times, Ordering::SeqCst);
    }

    /// What the members of the cluster were told, in order.
    pub fn told(&self) -> Vec<Map<String, Value>> {
        self.heard.told.lock().unwrap().clone()
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

    /// The image of a volume, with the features that Ceph gives by default.
    pub async fn image(&self, volume: &str) -> String {
        let image = format!("volume-{volume}");
        let shape = Shape { order: 22, features: 61 };
        self.place().create(&image, 2 << 30, shape, Attempt::First).await.unwrap();
        image
    }

    /// The RBD snapshot of a snapshot.
    pub async fn snapped(&self, image: &str, snapshot: &str) {
        self.place().snapshot(image, &format!("snapshot-{snapshot}"), Attempt::First).await.unwrap();
    }

    /// The pool of the backend.
    pub fn place(&self) -> Place {
        Place { site: self.sim.site("a"), pool: "volumes".to_owned() }
    }

    /// What the simulator knows of an image.
    pub fn seen(&self, image: &str) -> Option<ImageView> {
        self.sim.image("a", "volumes", image)
    }

    /// A column of a row.
    pub async fn column(&self, table: &str, column: &str, id: &str) -> String {
        self.test.row(&format!("SELECT {column} FROM {table} WHERE id='{id}'")).await.remove(0)
    }

    /// A volume's or snapshot's status.
    pub async fn status(&self, table: &str, id: &str) -> String {
        self.column(table, "status", id).await
    }

    /// State and outcome of an operation.
    pub async fn ended(&self, operation: &Operation) -> Vec<String> {
        let id = operation.id();
        self.test.row(&format!("SELECT state, outcome FROM scoria_operations WHERE id={id}")).await
    }

    /// An order, written down as the tool does it and taken by the service.
    pub async fn ordered(&self, order: Order) -> Operation {
        let request = Request::new(order);
        let new = NewOperation {
            unique_id: uuid::Uuid::new_v4().simple().to_string(),
            method: request.order.method().to_owned(),
            backend_host: seed::BACKEND.to_owned(),
            request: request.to_text().unwrap(),
            ..NewOperation::default()
        };
        self.backend.journal.submit(&new).await.unwrap();
        self.backend.journal.adopt(&self.backend.scope()).await.unwrap().remove(0)
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

fn backend(test: &TestDb, sim: &Sim, heard: &Arc<Heard>, options: &str, conf: &Path) -> Arc<Backend> {
    write_conf(conf, "node1", options);
    let backend = made(test, sim, heard, "node1", conf);
    assert_eq!(backend.host(), BACKEND);
    backend.set_service(Service { id: 1, host: BACKEND.into(), uuid: seed::id(9, 1), ..Service::default() });
    backend
}

/// The file of a host, with more lines in the backend's section.
pub fn write_conf(conf: &Path, host: &str, options: &str) {
    let text = CONF.replace("host=node1", &format!("host={host}"));
    std::fs::write(conf, format!("{text}{options}")).unwrap();
}

fn made(test: &TestDb, sim: &Sim, heard: &Arc<Heard>, host: &str, conf: &Path) -> Arc<Backend> {
    let (config, _) = Config::load(&[conf.to_owned()], &[], std::iter::empty()).unwrap();
    let peers = Peers {
        notify: heard.clone(),
        scheduler: heard.clone(),
        volumes: heard.clone(),
        backups: heard.clone(),
    };
    let section = config.backends.first().unwrap().clone();
    Arc::new(Backend::new(section, Globals::from(&config), journal(test, host), peers, &sim.ceph()))
}

/// After which calls to Ceph a service is killed, one life after the other, later each time. The last life is not
/// disturbed.
pub fn lives() -> Vec<(usize, When)> {
    let kill = |k: usize| (k, if k % 4 == 1 { When::Before } else { When::After });
    (1..80).step_by(2).map(kill).chain([(usize::MAX, When::After)]).collect()
}

/// Whether the whole matrix is asked for (`tools/test --full`).
pub fn full() -> bool {
    std::env::var_os("SCORIA_TEST_FULL").is_some_and(|v| !v.is_empty() && v != "0")
}
