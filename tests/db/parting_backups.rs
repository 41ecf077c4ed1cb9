//! Backups on the site that goes: listed with sizes, kept, or deleted by a backup service that is asked over its RPC.

use std::sync::Arc;

use scoria::backup::using;
use scoria::context::RequestContext;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{ImageClone, ImageInspect, ObjectRead, SnapCreate, SnapProtect, TrashMove};
use scoria::rbd::sim::crash::explored;
use scoria::rbd::sim::{Fault, Health, PoolSpec, Sim, SimConfig, When};
use scoria::rbd::types::MirrorMode;
use scoria::rpc::{Accept, Call, Handler, synthetic};
use scoria::service::backup::BackupHandler;
use scoria::site::{self, BackupsGo, Delete, Disconnect, Order, Purge};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::backup_scene::{self, MIB};
use crate::backup_sites::register;
use crate::link_scene::{POOL, Scene, bare, connect, disconnect, ordered, parted, strangers};
use crate::seed::{self, TYPE};
use crate::stage::{Heard, full};
use crate::support::TestDb;

pub const OPTIONS: &str = "backup_site=b";

/// Sites `a` and `b` are connected; `b` has a chain of two backups whose rows name it, and one whose row does not.
pub struct World {
    pub scene: Scene,
    conf: tempfile::NamedTempFile,
    pub backups: Vec<String>,
    pub service: JoinHandle<()>,
}

/// A backup service in its process: what is cast to it, it journals and does; what it had begun it takes up first.
fn serve(test: &TestDb, sim: &Sim, heard: &Arc<Heard>, conf: &std::path::Path) -> JoinHandle<()> {
    let backups = Arc::new(backup_scene::service(test, sim, heard, OPTIONS, conf));
    let handler = Arc::new(BackupHandler::new(backups.clone(), crate::defects::log(), 8));
    let heard = heard.clone();
    tokio::spawn(async move {
        // Whatever it began dies with it.
        let mut running = tokio::task::JoinSet::new();
        for operation in backups.journal.adopt(&backups.scope()).await.unwrap() {
            let (handler, call) = (handler.clone(), Call::from_journal(operation.request()).unwrap());
            running.spawn(async move {
                let _ = handler.run_journaled(&call, operation).await;
            });
        }
        loop {
            for order in heard.take_doomed() {
                assert_eq!(order.host, "node1");
                let text =
                    synthetic::delete_backup(&RequestContext::admin(), &order.unique_id, &order.backup)
                        .unwrap();
                let (handler, call) = (handler.clone(), Call::from_journal(&text).unwrap());
                running.spawn(async move {
                    if let Accept::New(operation) = handler.accept(&call).await.unwrap() {
                        let _ = handler.run_journaled(&call, operation).await;
                    }
                });
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
}

impl World {
    pub async fn new() -> World {
        let mut config = SimConfig { lost_worker_leaves_watch: false, ..bare() };
        for site in &mut config.sites {
            site.pools = vec![PoolSpec::plain(POOL), PoolSpec::plain("backups")];
        }
        let mut made = backup_scene::Scene::of(OPTIONS, config).await;
        register(&made, "b", "b", "node1").await;
        let (one, other) = (made.volume(1, "available").await, made.volume(2, "available").await);
        made.write(&one, 0, 7, MIB).await;
        let first = made.made(1, &one, None).await;
        made.write(&one, 900 * MIB, 8, MIB).await;
        let second = made.made(2, &one, Some(&first)).await;
        // By `backup_ceph_conf`, which leads there, too.
        made.reconfigure("");
        let third = made.made(3, &other, None).await;
        made.test
            .sql(&format!(
                "INSERT INTO services (host, `binary`, topic, report_count, disabled, uuid, deleted, updated_at)
                   VALUES ('node1', 'cinder-backup', 'cinder-backup', 0, 0, '{}', 0, '2100-01-01');
                 INSERT INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
                   VALUES ('{}', 'backups', 3, 0, 1, 0), ('{}', 'backup_gigabytes', 6, 0, 1, 0)",
                seed::id(9, 7),
                seed::PROJECT,
                seed::PROJECT
            ))
            .await;
        let backup_scene::Scene { test, sim, heard, .. } = made;
        let scene = Scene::over("admin", test, sim, heard).await;
        scene.run(ordered(connect())).await.unwrap();
        let conf = tempfile::NamedTempFile::new().unwrap();
        let service = serve(&scene.test, &scene.sim, &scene.heard, conf.path());
        World { scene, conf, backups: vec![first, second, third], service }
    }

    /// Both services die, and others start.
    pub async fn restart(&mut self) {
        self.service.abort();
        let _ = (&mut self.service).await;
        self.scene.restart();
        self.service = serve(&self.scene.test, &self.scene.sim, &self.scene.heard, self.conf.path());
    }

    pub async fn part(&self, order: Disconnect) -> Result<Value, String> {
        self.scene.run(parted(order)).await
    }

    pub async fn status(&self, backup: &str) -> String {
        self.scene.test.row(&format!("SELECT status FROM backups WHERE id='{backup}'")).await.remove(0)
    }

    /// What the rows of the backup service say of where its backups go, with these options.
    pub async fn writes_down(&self, options: &str) {
        let World { scene, conf, .. } = self;
        let b = backup_scene::service(&scene.test, &scene.sim, &scene.heard, options, conf.path());
        using::write(&b, &using::find(&b).await.unwrap()).await.unwrap();
    }

    async fn in_use(&self) -> Vec<Vec<String>> {
        self.scene.test.rows("SELECT in_use FROM quota_usages ORDER BY CHAR_LENGTH(resource)").await
    }

    /// Nothing of them is left, and the sites do not know each other.
    pub async fn assert_gone(&self, why: &str) {
        for id in &self.backups {
            assert_eq!(self.status(id).await, "deleted", "{why}");
            for object in [format!("backup.{id}.meta"), format!("backup.{id}.sums")] {
                let read = ObjectRead { pool: "backups".into(), object: object.clone() };
                let found = self.scene.sim.site("b").call(read).await.unwrap();
                assert!(found.is_none(), "{why}: {object} is left");
            }
        }
        assert_eq!(self.in_use().await, [["0"], ["0"]], "{why}");
        assert_eq!(self.scene.sim.images("b", "backups"), Vec::<String>::new(), "{why}");
        for volume in [1, 2].map(|n| format!("volume-{}", seed::id(1, n))) {
            let snaps = self.scene.sim.image("a", POOL, &volume).unwrap().snaps;
            assert!(snaps.is_empty(), "{why}: {snaps:?} of {volume}");
        }
        assert!(strangers(&self.scene) && self.scene.links().await.is_empty(), "{why}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.service.abort();
    }
}

pub fn deleting() -> Disconnect {
    Disconnect { delete_backups: Some(BackupsGo { backups: 3, gib: 6 }), ..disconnect() }
}

#[tokio::test]
async fn backups_on_the_site_that_goes_are_listed_and_what_may_not_be_parted_is_refused() {
    let world = World::new().await;
    let scene = &world.scene;
    for force in [false, true] {
        let refused = world.part(Disconnect { force, ..disconnect() }).await.unwrap_err();
        assert!(refused.contains("3 backups of 6 GiB are stored on b"), "{refused}");
        for id in &world.backups {
            assert!(refused.contains(&format!("{id} (2 GiB)")), "{refused}");
        }
        assert!(refused.contains("--flatten-backups") && refused.contains("--delete-backups"), "{refused}");
    }
    let dry = world.part(Disconnect { dry_run: true, ..disconnect() }).await.unwrap();
    assert!(dry["refused"].as_str().unwrap().contains("3 backups of 6 GiB"), "{dry:#}");
    assert_eq!((&dry["shared"]["backups_gib"], &dry["shared"]["backups"][0]["gib"]), (&json!(6), &json!(2)));
    let dry = world.part(Disconnect { dry_run: true, ..deleting() }).await.unwrap();
    assert_eq!(dry["refused"], Value::Null, "{dry:#}");
    // The one that stays has none of them.
    let other_way = Disconnect { a: "b".into(), b: "a".into(), dry_run: true, ..disconnect() };
    assert_eq!(world.part(other_way).await.unwrap()["shared"]["backups"], json!([]));

    let few = BackupsGo { backups: 2, gib: 100 };
    let refused = world.part(Disconnect { delete_backups: Some(few), ..disconnect() }).await.unwrap_err();
    assert!(refused.contains("There are 3 backups of 6 GiB by now, and 2 of 100 GiB"), "{refused}");
    // What runs is never overridden: of a backup there, of one that is on its way.
    let id = &world.backups[2];
    scene.test.sql(&format!("UPDATE backups SET status='restoring' WHERE id='{id}'")).await;
    let refused =
        world.part(Disconnect { force: true, flatten_backups: true, ..deleting() }).await.unwrap_err();
    assert!(
        refused.contains(&format!("1 backups on site b are being worked on: {id} (restoring)")),
        "{refused}"
    );
    scene.test.sql(&format!("UPDATE backups SET status='available' WHERE id='{id}'")).await;
    let extra = format!(
        "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted) VALUES ('{TYPE}', 'backup:site', 'b', 0);
         INSERT INTO backups (id, volume_id, status, deleted) VALUES ('new', '{}', 'creating', 0)",
        seed::id(1, 2)
    );
    scene.test.sql(&extra).await;
    let refused = world.part(deleting()).await.unwrap_err();
    assert!(refused.contains("new (creating)"), "{refused}");
    scene.test.sql("DELETE FROM backups WHERE id='new'").await;
    // Nobody is there to delete them.
    scene.test.sql("UPDATE services SET updated_at='2020-01-01' WHERE host='node1'").await;
    let refused = world.part(deleting()).await.unwrap_err();
    assert!(refused.contains("No backup service is up that could delete backup"), "{refused}");
    scene.test.sql("UPDATE services SET updated_at='2100-01-01', host='node2' WHERE host='node1'").await;
    let refused = world.part(deleting()).await.unwrap_err();
    assert!(refused.contains("No backup service that is up (node2) has files of the site"), "{refused}");
    assert_eq!(scene.links().await[0][3], "connected", "nothing was parted");
    assert!(scene.heard.cast().is_empty() && world.in_use().await == [["3"], ["6"]]);
}

#[tokio::test]
async fn they_are_deleted_by_the_backup_service_before_anything_is_parted() {
    let world = World::new().await;
    let scene = &world.scene;
    // One that cannot be deleted stops it.
    scene.sim.inject(Fault::on("ImageRemove").always().fails(When::Before, RbdErrorKind::Other));
    let refused = world.part(deleting()).await.unwrap_err();
    assert!(
        refused.contains("1 of 2 backups could not be deleted; the first: ")
            && refused.contains("Nothing was parted"),
        "{refused}"
    );
    scene.sim.clear_faults();
    assert_eq!(scene.links().await[0][3], "connected");
    assert_eq!(
        (world.status(&world.backups[2]).await.as_str(), world.in_use().await),
        ("error", vec![vec!["2".into()], vec!["4".into()]])
    );
    assert_eq!(world.status(&world.backups[1]).await, "deleted", "an incremental one goes first");

    let done = world.part(deleting()).await.unwrap();
    assert_eq!(done["deleted_backups"].as_array().unwrap().len(), 2, "{done:#}");
    world.assert_gone("deleted").await;
    scene.run(Order::Delete(Delete { name: "b".into(), dry_run: false })).await.unwrap();
}

#[tokio::test]
async fn they_stay_when_that_is_said_and_keep_their_site_known() {
    let world = World::new().await;
    let done = world.part(Disconnect { flatten_backups: true, ..disconnect() }).await.unwrap();
    assert!(done["left"].to_string().contains("3 backups of 6 GiB are stored on b"), "{done:#}");
    assert!(strangers(&world.scene));
    for id in &world.backups {
        assert_eq!(world.status(id).await, "available");
    }
    let refused =
        world.scene.run(Order::Delete(Delete { name: "b".into(), dry_run: false })).await.unwrap_err();
    assert!(refused.contains("Site b has 2 backups of 4 GiB"), "{refused}");
}

#[tokio::test]
async fn nobody_deletes_backups_on_a_site_that_is_dead() {
    let world = World::new().await;
    world.scene.sim.set_health("b", Health::Dead);
    let refused = world.part(Disconnect { force: true, ..deleting() }).await.unwrap_err();
    assert!(refused.contains("Site b does not answer, so that nobody can delete the backups"), "{refused}");
    let refused = world.part(Disconnect { force: true, ..disconnect() }).await.unwrap_err();
    assert!(refused.contains("2 backups of 4 GiB are, or may be, stored on b"), "{refused}");
    let kept = Disconnect { force: true, flatten_backups: true, ..disconnect() };
    let done = world.part(kept).await.unwrap();
    assert!(done["left"].to_string().contains("are, or may be, stored on b"), "{done:#}");
    assert!(world.scene.sim.is_stranger("a"));
}

/// Both services are killed at calls of the deletion and of the parting.
#[tokio::test]
async fn a_parting_that_deletes_backups_survives_kills() {
    let calls = {
        let world = World::new().await;
        world.scene.sim.clear_log();
        world.part(deleting()).await.unwrap();
        world.assert_gone("undisturbed").await;
        world.scene.sim.log().len()
    };
    assert!(calls > 30, "{calls}");
    let mut schedules = 0;
    for k in (1..=calls).step_by(if full() { 1 } else { 8 }) {
        let mut world = World::new().await;
        let when = if k % 2 == 0 { When::Before } else { When::After };
        let operation = world.scene.order(parted(deleting())).await;
        world.scene.sim.kill_at(k, when);
        let killed = tokio::select! {
            biased;
            () = world.scene.sim.crashed() => true,
            () = site::run(&world.scene.sites, &operation) => false,
        };
        let mut operation = operation;
        if killed {
            world.restart().await;
            operation = world.scene.adopt().await;
            site::run(&world.scene.sites, &operation).await;
        } else {
            // It polls: fewer calls than the first time.
            world.scene.sim.restart();
        }
        let ended = world.scene.ended(&operation).await;
        let done = ended.unwrap_or_else(|e| panic!("killed at {k}: {e}\n{}", world.scene.sim.log_text()));
        assert_eq!(done["deleted_backups"].as_array().unwrap().len(), 3, "killed at {k}: {done:#}");
        world.assert_gone(&format!("killed at {k}")).await;
        schedules += 1;
    }
    explored(schedules);
}

#[tokio::test]
async fn clones_of_copies_are_made_independent_and_the_trash_is_left_alone() {
    let scene = Scene::of(bare()).await;
    scene.run(ordered(connect())).await.unwrap();
    for image in ["disk", "other"] {
        scene.image("a", "b", image, MirrorMode::Snapshot).await;
    }
    let (a, b) = (scene.sim.site("a"), scene.sim.site("b"));
    let (pool, snap) = (POOL.to_owned(), "s".to_owned());
    for (image, dest) in [("disk", "drill"), ("other", "thrown-away")] {
        let image = image.to_owned();
        a.call(SnapCreate { pool: pool.clone(), image: image.clone(), snap: snap.clone() }).await.unwrap();
        a.call(SnapProtect { pool: pool.clone(), image: image.clone(), snap: snap.clone() }).await.unwrap();
        let moment = scoria::rbd::protocol::MirrorSnapshot { pool: pool.clone(), image: image.clone() };
        a.call(moment).await.unwrap();
        for _ in 0..200 {
            if scene.sim.image("b", POOL, &image).is_some_and(|i| i.snaps.contains(&snap)) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let (dest_pool, dest) = (pool.clone(), dest.to_owned());
        let clone = ImageClone {
            pool: pool.clone(),
            image,
            snap: snap.clone(),
            dest_pool,
            dest,
            features: 61,
            order: 22,
        };
        b.call(clone).await.unwrap();
    }
    b.call(TrashMove { pool: pool.clone(), image: "thrown-away".into(), delay: 0 }).await.unwrap();
    let forced = Disconnect { force: true, ..disconnect() };
    for order in [forced.clone(), Disconnect { delete_backups: deleting().delete_backups, ..forced.clone() }]
    {
        let refused = scene.run(parted(order)).await.unwrap_err();
        assert!(
            refused.contains("volumes/disk (8 MiB): volumes/drill")
                && refused.contains("volumes/thrown-away in the trash")
                && refused.contains("--flatten-backups"),
            "{refused}"
        );
    }
    let purge = Some(Purge { copies: 2, bytes: 16 << 20 });
    let done = scene.run(parted(Disconnect { flatten_backups: true, purge, ..forced })).await.unwrap();
    assert_eq!(done["removed"], json!(["volumes/disk"]), "{done:#}");
    assert!(done["kept"].to_string().contains("volumes/other: it has 1 clones"), "{done:#}");
    assert!(
        done["left"].to_string().contains("volumes/thrown-away in the trash of b is a clone"),
        "{done:#}"
    );
    assert_eq!(scene.sim.images("b", POOL), ["drill", "other"]);
    let seen = b.call(ImageInspect { pool: pool.clone(), image: "drill".into() }).await.unwrap();
    assert_eq!(seen.info.parent, None);
    let trash = scoria::rbd::protocol::TrashList { pool };
    assert_eq!(b.call(trash).await.unwrap().len(), 1, "what is in the trash is not touched");
    assert!(strangers(&scene));
}
