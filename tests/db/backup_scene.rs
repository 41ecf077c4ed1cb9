//! A backup service over a scratch database and the simulator: volumes on site a, backups on site b.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use scoria::backend::Peers;
use scoria::backup::check::{self, Verdict};
use scoria::backup::restore::Restore;
use scoria::backup::{Backups, create, delete, orders, restore};
use scoria::config::Config;
use scoria::context::RequestContext;
use scoria::error::Result;
use scoria::journal::{NewOperation, Operation};
use scoria::model::Backup;
use scoria::rbd::protocol::{ImageWrite, MirrorEnable, ObjectRead};
use scoria::rbd::sim::{Sim, SimConfig, Timing, When};
use scoria::rbd::types::MirrorMode;
use scoria::volume::image::{Attempt, Place, Shape};
use serde_json::{Value, json};

use crate::journal::{accept, journal};
use crate::seed::{self, PROJECT};
use crate::stage::Heard;
use crate::support::TestDb;

const CONF: &str = "[DEFAULT]\nhost=node1\nenabled_backends=ceph\ntransport_url=rabbit://u:p@h/v\n\
                    backup_ceph_conf=/sim/b.conf\nbackup_ceph_user=cinder\nbackup_ceph_pool=backups\n\
                    backup_timer_interval=0\n[database]\nconnection=mysql+pymysql://u:p@h/cinder\n\
                    [ceph]\nvolume_driver=cinder.volume.drivers.rbd.RBDDriver\nrbd_pool=volumes\nrbd_user=cinder\n\
                    rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\n\
                    replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n";
pub const MIB: u64 = 1 << 20;
/// Among the options: a silent site is given up at once, for tests that have none of the time that it has.
pub const IMPATIENT: &str = "# impatient\n";

/// What a backup service is asked to do.
#[derive(Debug, Clone)]
pub enum Work {
    /// Make the backup.
    Create(String),
    /// Fill the volume from the backup.
    Restore(String, String),
    /// Delete the backup.
    Delete(String),
}

impl Work {
    fn backup(&self) -> &str {
        match self {
            Work::Create(id) | Work::Restore(id, _) | Work::Delete(id) => id,
        }
    }
}

/// The service, its database, and its Ceph.
pub struct Scene {
    pub test: TestDb,
    pub sim: Sim,
    pub heard: Arc<Heard>,
    pub backups: Backups,
    pub context: RequestContext,
    options: String,
    conf: tempfile::NamedTempFile,
}

impl Scene {
    pub async fn new() -> Scene {
        Scene::with("").await
    }

    /// With more options of `[DEFAULT]`.
    pub async fn with(options: &str) -> Scene {
        Scene::of(options, SimConfig { lost_worker_leaves_watch: false, ..SimConfig::default() }).await
    }

    /// Whose rbd-mirror daemons need `step` for whatever they do.
    pub async fn mirroring(options: &str, step: Duration) -> Scene {
        let timing = Timing {
            appear: step,
            start_journal: step,
            start_snapshot: step,
            replay: step,
            sync: step,
            turn_journal: step,
            turn_snapshot: step,
            demotion_journal: step,
            register: step,
            resync: step,
            remove: step,
            status_stale: step,
            ..Timing::default()
        };
        let config =
            SimConfig { timing, clone_v2: true, lost_worker_leaves_watch: false, ..SimConfig::default() };
        Scene::of(options, config).await
    }

    /// In another world.
    pub async fn of(options: &str, config: SimConfig) -> Scene {
        let test = TestDb::new().await;
        seed::base(&test).await;
        let sim = Sim::new(config);
        let heard = Arc::new(Heard::default());
        let conf = tempfile::NamedTempFile::new().unwrap();
        let backups = service(&test, &sim, &heard, options, conf.path());
        let Value::Object(fields) = json!({"request_id": "req-1", "project_id": PROJECT}) else {
            unreachable!()
        };
        let context = RequestContext::from_fields(fields);
        Scene { test, sim, heard, backups, context, options: options.to_owned(), conf }
    }

    /// The service dies, and another instance of it starts.
    pub fn restart(&mut self) {
        self.backups = service(&self.test, &self.sim, &self.heard, &self.options, self.conf.path());
    }

    /// The service of another host, beside it.
    pub fn on(&self, host: &str) -> Backups {
        let conf = tempfile::NamedTempFile::new().unwrap();
        of_host(&self.test, &self.sim, &self.heard, &self.options, conf.path(), host)
    }

    /// It is started with other options of `[DEFAULT]`.
    pub fn reconfigure(&mut self, options: &str) {
        self.options = options.to_owned();
        self.restart();
    }

    /// A volume of 2 GiB with an image, and a little data.
    pub async fn volume(&self, number: u32, status: &str) -> String {
        let id = seed::volume(&self.test, number, status, ", previous_status='available'").await;
        let image = format!("volume-{id}");
        let shape = Shape { order: 22, features: 61 };
        self.volumes().create(&image, 2 << 30, shape, Attempt::First).await.unwrap();
        id
    }

    pub fn volumes(&self) -> Place {
        Place { site: self.sim.site("a"), pool: "volumes".to_owned() }
    }

    /// Writes so many bytes of one value.
    pub async fn write(&self, volume: &str, offset: u64, value: u8, length: u64) {
        let (pool, image) = ("volumes".to_owned(), format!("volume-{volume}"));
        let data = vec![value; usize::try_from(length).unwrap()];
        self.sim.site("a").call(ImageWrite { pool, image, offset, data }).await.unwrap();
    }

    /// Checksum of a volume's content.
    pub fn content(&self, volume: &str) -> u64 {
        self.sim.image("a", "volumes", &format!("volume-{volume}")).expect("the volume's image").checksum
    }

    /// Names of the snapshots of a volume that are for backups.
    pub fn points(&self, volume: &str) -> Vec<String> {
        let seen = self.sim.image("a", "volumes", &format!("volume-{volume}")).expect("the volume's image");
        seen.snaps.into_iter().filter(|name| name.starts_with("backup.")).collect()
    }

    /// Images of backups.
    pub fn bases(&self) -> Vec<String> {
        self.sim.images("b", "backups")
    }

    /// Whether an object is beside the bases.
    pub async fn has_object(&self, name: &str) -> bool {
        let read = ObjectRead { pool: "backups".to_owned(), object: name.to_owned() };
        self.sim.site("b").call(read).await.unwrap().is_some()
    }

    /// A row as the API leaves it for the scheduler; the volume waits for it.
    pub async fn ordered(
        &self,
        number: u32,
        volume: &str,
        parent: Option<&str>,
        snapshot: Option<&str>,
    ) -> String {
        let id = seed::id(4, number);
        let text = |value: Option<&str>| value.map_or("NULL".to_owned(), |text| format!("'{text}'"));
        let (parent, from) = (text(parent), text(snapshot));
        let source = match snapshot {
            Some(id) => format!("UPDATE snapshots SET status='backing-up' WHERE id='{id}'"),
            None => {
                format!("UPDATE volumes SET previous_status=status, status='backing-up' WHERE id='{volume}'")
            }
        };
        self.test
            .sql(&format!(
                "INSERT INTO backups (id, volume_id, snapshot_id, parent_id, status, host, size, project_id, user_id,
                   num_dependent_backups, created_at, deleted)
                 VALUES ('{id}', '{volume}', {from}, {parent}, 'creating', 'node1', 2, '{PROJECT}', 'u', 0,
                   UTC_TIMESTAMP(), 0);
                 {source}"
            ))
            .await;
        id
    }

    /// What the API does before it asks for the deletion.
    pub async fn to_be_deleted(&self, backup: &str) -> Work {
        self.test.sql(&format!("UPDATE backups SET status='deleting' WHERE id='{backup}'")).await;
        Work::Delete(backup.to_owned())
    }

    /// What the API does before it asks for the restoration.
    pub async fn to_be_restored(&self, backup: &str, volume: &str) -> Work {
        self.test
            .sql(&format!(
                "UPDATE backups SET status='restoring', restore_volume_id='{volume}' WHERE id='{backup}';
                 UPDATE volumes SET status='restoring-backup' WHERE id='{volume}'"
            ))
            .await;
        Work::Restore(backup.to_owned(), volume.to_owned())
    }

    /// The request in the journal.
    pub async fn accepted(&self, work: &Work) -> Operation {
        let method = match work {
            Work::Create(_) => "create_backup",
            Work::Restore(..) => "restore_backup",
            Work::Delete(_) => "delete_backup",
        };
        let new = NewOperation {
            unique_id: uuid::Uuid::new_v4().simple().to_string(),
            method: method.to_owned(),
            backend_host: self.backups.journal_host(),
            request: "{}".to_owned(),
            resource: Some(("Backup".to_owned(), work.backup().to_owned())),
            ..NewOperation::default()
        };
        accept(&self.backups.journal, new).await
    }

    /// Carries it out, or goes on with it.
    pub async fn carry_out(&self, operation: &Operation, work: &Work) -> Result<()> {
        let (b, context) = (&self.backups, &self.context);
        match work {
            Work::Create(id) => create::create(b, context, operation, id).await,
            Work::Restore(id, volume) => {
                let request = Restore { backup_id: id.clone(), volume_id: volume.clone() };
                restore::restore(b, context, operation, &request).await
            }
            Work::Delete(id) => delete::delete(b, context, operation, id).await,
        }
    }

    /// Accepts and carries out.
    pub async fn run(&self, work: &Work) -> Result<()> {
        let operation = self.accepted(work).await;
        self.carry_out(&operation, work).await
    }

    /// A backup that is made.
    pub async fn made(&self, number: u32, volume: &str, parent: Option<&str>) -> String {
        let id = self.ordered(number, volume, parent, None).await;
        self.run(&Work::Create(id.clone())).await.unwrap();
        assert_eq!(self.status("backups", &id).await, "available");
        id
    }

    /// The same, killed at its `k`-th call to Ceph; the next instance goes on. Answers whether there was such a call,
    /// and how it ended.
    pub async fn dies(&mut self, k: usize, when: When, work: &Work) -> (bool, Result<()>) {
        let mut operation = self.accepted(work).await;
        self.sim.kill_at(k, when);
        let ended = tokio::select! {
            biased;
            () = self.sim.crashed() => None,
            ended = self.carry_out(&operation, work) => Some(ended),
        };
        self.sim.restart();
        if let Some(ended) = ended {
            return (false, ended);
        }
        self.restart();
        let mut left = None;
        for found in self.backups.journal.adopt(&self.backups.scope()).await.unwrap() {
            // What the service has ordered of itself is for `settle`.
            match found.id() == operation.id() {
                true => left = Some(found),
                false => self.backups.journal.give_back(&found).await.unwrap(),
            }
        }
        // It had ended, and something was tidied up after it.
        let Some(found) = left else { return (true, Ok(())) };
        operation = found;
        assert!(operation.is_adopted());
        (true, self.carry_out(&operation, work).await)
    }

    pub async fn status(&self, table: &str, id: &str) -> String {
        self.column(table, "status", id).await
    }

    pub async fn column(&self, table: &str, column: &str, id: &str) -> String {
        self.test.row(&format!("SELECT {column} FROM {table} WHERE id='{id}'")).await.remove(0)
    }

    /// Resource, action and detail of all user messages.
    pub async fn messages(&self) -> Vec<Vec<String>> {
        self.test.rows("SELECT resource_uuid, action_id, detail_id FROM messages").await
    }

    /// Whether there is a message about a backup of this action and detail.
    pub async fn is_told(&self, backup: &str, action: &str, detail: &str) -> bool {
        self.messages().await.iter().any(|found| found[..] == [backup, action, detail])
    }

    /// Open operations.
    pub async fn open(&self) -> Vec<Vec<String>> {
        self.test.rows("SELECT method FROM scoria_operations WHERE state <> 'closed'").await
    }

    /// The row of a backup.
    pub async fn backup(&self, id: &str) -> Backup {
        self.backups
            .db
            .read("test", async |conn| scoria::db::backup_work::get_deleted(conn, id).await)
            .await
            .unwrap()
    }

    /// A volume whose copy on site b is whole.
    pub async fn mirrored(&self, number: u32, mode: MirrorMode) -> String {
        let volume = self.volume(number, "available").await;
        let image = format!("volume-{volume}");
        self.write(&volume, 0, 7, 3 * MIB).await;
        let enable = MirrorEnable { pool: "volumes".into(), image: image.clone(), mode };
        self.sim.site("a").call(enable).await.unwrap();
        self.eventually("the copy is whole", || {
            let copy = self.sim.image("b", "volumes", &image);
            copy.is_some_and(|copy| copy.checksum == self.content(&volume))
        })
        .await;
        volume
    }

    /// Waits for what the daemons bring about.
    pub async fn eventually(&self, what: &str, is_so: impl Fn() -> bool) {
        let end = tokio::time::Instant::now() + Duration::from_secs(120);
        while !is_so() {
            assert!(tokio::time::Instant::now() < end, "{what}: {}", self.sim.log_text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Carries out what the service has ordered of itself.
    pub async fn settle(&self) {
        for operation in self.backups.journal.adopt(&self.backups.scope()).await.unwrap() {
            orders::run(&self.backups, &operation).await;
        }
    }

    /// What its checksums say.
    pub async fn verdict(&self, id: &str) -> Verdict {
        check::verify(&self.backups, &self.backup(id).await).await.unwrap()
    }
}

pub fn service(test: &TestDb, sim: &Sim, heard: &Arc<Heard>, options: &str, conf: &Path) -> Backups {
    of_host(test, sim, heard, options, conf, "node1")
}

fn of_host(test: &TestDb, sim: &Sim, heard: &Arc<Heard>, options: &str, conf: &Path, host: &str) -> Backups {
    let text = CONF.replace("[database]", &format!("{options}\n[database]"));
    let text = text.replace("host=node1", &format!("host={host}"));
    std::fs::write(conf, text).unwrap();
    let (mut config, _) = Config::load(&[conf.to_owned()], &[], std::iter::empty()).unwrap();
    if options.contains(IMPATIENT) {
        // Less than an operator may ask for.
        config.backup.site_timeout = Duration::from_secs(2);
    }
    let peers = Peers {
        notify: heard.clone(),
        scheduler: heard.clone(),
        volumes: heard.clone(),
        backups: heard.clone(),
    };
    Backups::new(&config, journal(test, host), peers, sim.ceph())
}
