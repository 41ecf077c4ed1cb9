//! What mirroring by snapshots needs, and what a volume type says of it: schedules, user snapshots on the other side,
//! parents of clones.

use std::time::Duration;

use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::*;
use scoria::rbd::sim::{Fault, Health, When};
use scoria::rbd::types::MirrorMode;
use scoria::replication::schedules;
use scoria::volume::create::{self, Create};
use scoria::volume::image::{Attempt, Place, Shape};
use scoria::volume::snapshot;

use crate::seed::{self, TYPE, id};
use crate::stage::Stage;

const POOL: &str = "volumes";
const STEP: Duration = Duration::from_millis(1200);

/// The type of all volumes gets these specs too.
async fn specs(stage: &Stage, specs: &[(&str, &str)]) {
    for (key, value) in specs {
        stage
            .test
            .sql(&format!(
                "DELETE FROM volume_type_extra_specs WHERE `key`='{key}';
                 INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
                   VALUES ('{TYPE}', '{key}', '{value}', 0)"
            ))
            .await;
    }
}

async fn mirrored(stage: &Stage, number: u32) -> String {
    let volume = seed::volume(&stage.test, number, "available", ", replication_status='enabled'").await;
    let image = stage.image(&volume).await;
    let enable = MirrorEnable { pool: POOL.into(), image, mode: MirrorMode::Snapshot };
    stage.sim.site("a").call(enable).await.unwrap();
    volume
}

fn name(volume: &str) -> String {
    format!("volume-{volume}")
}

fn schedule(stage: &Stage, site: &str, volume: &str) -> Vec<String> {
    stage.sim.schedules(site, POOL, &name(volume)).iter().map(ToString::to_string).collect()
}

async fn keep(stage: &Stage) {
    schedules::keep(&stage.backend).await.unwrap();
}

async fn extended(stage: &Stage, volume: &str) -> String {
    stage.column("volumes", "replication_extended_status", volume).await
}

#[tokio::test]
async fn schedules_follow_the_types_and_come_back_when_they_are_lost() {
    let stage = Stage::quick("scoria_mirror_snapshot_schedule=1h\n").await;
    specs(&stage, &[("replication:mode", "snapshot")]).await;
    let (one, two) = (mirrored(&stage, 1).await, mirrored(&stage, 2).await);
    keep(&stage).await;
    assert_eq!(
        (schedule(&stage, "a", &one), schedule(&stage, "a", &two)),
        (vec!["1h".into()], vec!["1h".into()])
    );
    let calls = stage.sim.log().len();
    keep(&stage).await;
    assert_eq!(stage.sim.log().len(), calls + 1, "one list for all, and nothing to do");

    stage.sim.lose_schedules("a");
    specs(&stage, &[("replication:schedule", "5m@00:30")]).await;
    keep(&stage).await;
    assert_eq!(schedule(&stage, "a", &one), ["5m@00:30"]);
    // What an operator has made beside it is his.
    let by_hand = ScheduleAdd { pool: POOL.into(), image: name(&one), schedule: "7m".parse().unwrap() };
    stage.sim.site("a").call(by_hand).await.unwrap();
    specs(&stage, &[("replication:schedule", "none")]).await;
    keep(&stage).await;
    assert_eq!((schedule(&stage, "a", &one), schedule(&stage, "a", &two)), (vec!["7m".into()], vec![]));
    assert!(stage.test.rows("SELECT * FROM scoria_schedules").await.is_empty());

    // On the other site after a failover.
    specs(&stage, &[("replication:schedule", "5m")]).await;
    tokio::time::sleep(STEP).await;
    stage.sim.set_health("a", Health::Dead);
    let promote = MirrorPromote { pool: POOL.into(), image: name(&one), force: true };
    stage.sim.site("b").call(promote).await.unwrap();
    stage.backend.activate("b").unwrap();
    keep(&stage).await;
    assert_eq!(schedule(&stage, "b", &one), ["5m"]);
}

#[tokio::test]
async fn a_manager_that_is_not_ready_fails_nothing_and_the_row_says_so() {
    let stage = Stage::quick("").await;
    specs(&stage, &[("replication:mode", "snapshot"), ("replication:schedule", "5m")]).await;
    let (volume, other) = (mirrored(&stage, 1).await, mirrored(&stage, 2).await);
    stage.test.sql(&format!("UPDATE volumes SET replication_extended_status='x' WHERE id='{other}'")).await;
    stage.sim.inject(Fault::on("ScheduleList").fails(When::Before, RbdErrorKind::Busy));
    keep(&stage).await;
    assert!(extended(&stage, &volume).await.starts_with("No schedule of mirror snapshots: "));
    stage.sim.inject(Fault::on("ScheduleAdd").image(&name(&volume)).fails(When::Before, RbdErrorKind::Busy));
    keep(&stage).await;
    assert!(extended(&stage, &volume).await.contains("ScheduleAdd"));
    assert_eq!(schedule(&stage, "a", &other), ["5m"]);
    keep(&stage).await;
    assert_eq!(
        (extended(&stage, &volume).await.as_str(), extended(&stage, &other).await.as_str()),
        ("NULL", "x")
    );
    assert_eq!(schedule(&stage, "a", &volume), ["5m"]);
    specs(&stage, &[("replication:schedule", "often")]).await;
    keep(&stage).await;
    assert!(extended(&stage, &volume).await.contains("'often'"));
    assert_eq!(schedule(&stage, "a", &volume), ["5m"], "what is not understood changes nothing");
}

#[tokio::test]
async fn user_snapshots_are_on_the_other_side_when_the_site_dies() {
    let stage = Stage::quick("").await;
    specs(&stage, &[("replication:mode", "snapshot")]).await;
    let volume = mirrored(&stage, 1).await;
    tokio::time::sleep(STEP).await;
    let (kept, deleted) = (
        seed::snapshot(&stage.test, 1, &volume, "creating").await,
        seed::snapshot(&stage.test, 2, &volume, "creating").await,
    );
    for snap in [&kept, &deleted] {
        let operation = stage.operation("create_snapshot", Some(("Snapshot", snap))).await;
        snapshot::create(&stage.backend, &stage.context, &operation, snap).await.unwrap();
    }
    stage.test.sql(&format!("UPDATE snapshots SET status='deleting' WHERE id='{deleted}'")).await;
    let operation = stage.operation("delete_snapshot", Some(("Snapshot", &deleted))).await;
    snapshot::delete(&stage.backend, &stage.context, &operation, &deleted, false).await.unwrap();
    assert_eq!(stage.sim.count("MirrorSnapshot"), 3, "one for each change");
    tokio::time::sleep(STEP).await;
    stage.sim.set_health("a", Health::Dead);
    let promote = MirrorPromote { pool: POOL.into(), image: name(&volume), force: true };
    stage.sim.site("b").call(promote).await.unwrap();
    assert_eq!(stage.sim.image("b", POOL, &name(&volume)).unwrap().snaps, [format!("snapshot-{kept}")]);
}

/// A volume made of a snapshot of one that is not mirrored.
async fn clone(stage: &Stage, number: u32, source: &str) -> String {
    let volume = seed::volume(&stage.test, number, "creating", &format!(", source_volid='{source}'")).await;
    let operation = stage.operation("create_volume", Some(("Volume", &volume))).await;
    let create = Create { volume_id: volume.clone(), ..Create::default() };
    let _ = create::create(&stage.backend, &stage.context, &operation, create).await;
    volume
}

async fn row(stage: &Stage, volume: &str) -> Vec<String> {
    let columns = "status, replication_status, replication_driver_data IS NULL";
    stage.test.row(&format!("SELECT {columns} FROM volumes WHERE id='{volume}'")).await
}

#[tokio::test]
async fn a_type_says_what_becomes_of_the_parents_of_mirrored_clones() {
    for mode in ["journal", "snapshot"] {
        let stage = Stage::quick("").await;
        specs(&stage, &[("replication:mode", mode)]).await;
        let parent = seed::volume(&stage.test, 1, "available", ", replication_status='disabled'").await;
        let image = stage.image(&parent).await;

        let refused = clone(&stage, 2, &parent).await;
        assert_eq!(row(&stage, &refused).await[0], "error");
        let why =
            stage.test.row("SELECT outcome_detail FROM scoria_operations ORDER BY id DESC LIMIT 1").await;
        assert!(why[0].contains("is a clone of") && why[0].contains("replication:parent=flatten"), "{why:?}");
        assert_eq!(row(&stage, &parent).await, ["available", "disabled", "1"]);
        assert!(stage.seen(&name(&refused)).is_none());
        assert!(stage.heard.rescheduled().is_empty());

        specs(&stage, &[("replication:parent", "flatten")]).await;
        let alone = clone(&stage, 3, &parent).await;
        assert_eq!(row(&stage, &alone).await, ["available", "enabled", "0"]);
        assert!(stage.place().stat(&name(&alone)).await.unwrap().parent.is_none());
        assert!(stage.seen(&image).unwrap().snaps.is_empty() && stage.seen(&image).unwrap().mirror.is_none());

        specs(&stage, &[("replication:parent", "mirror")]).await;
        let child = clone(&stage, 4, &parent).await;
        assert_eq!(row(&stage, &child).await, ["available", "enabled", "0"]);
        assert_eq!(row(&stage, &parent).await, ["available", "enabled", "0"]);
        assert_eq!(stage.place().stat(&name(&child)).await.unwrap().parent.unwrap().image, image);
        tokio::time::sleep(3 * STEP).await;
        stage.sim.assert_sides_agree();
        // Of one that is mirrored, also the strictest type makes a clone.
        specs(&stage, &[("replication:parent", "refuse")]).await;
        let next = clone(&stage, 5, &parent).await;
        assert_eq!(row(&stage, &next).await, ["available", "enabled", "0"]);
        tokio::time::sleep(3 * STEP).await;
        stage.sim.assert_sides_agree();
        specs(&stage, &[("replication:parent", "adopt")]).await;
        assert_eq!(row(&stage, &clone(&stage, 6, &parent).await).await[0], "error");
    }
}

/// Killed while the parent is being mirrored: its row and its image agree in the end, and say what was added.
#[tokio::test]
async fn a_parent_is_mirrored_once_whoever_dies() {
    let mut stage = Stage::quick("").await;
    specs(&stage, &[("replication:parent", "mirror")]).await;
    let mut kills = 0;
    for (n, k) in (0..).zip([8, 9, 10, 11, 12, 13, 15, 17]) {
        let parent =
            seed::volume(&stage.test, 10 * n + 1, "available", ", replication_status='disabled'").await;
        stage.image(&parent).await;
        let child =
            seed::volume(&stage.test, 10 * n + 2, "creating", &format!(", source_volid='{parent}'")).await;
        let operation = stage.operation("create_volume", Some(("Volume", &child))).await;
        let request = || Create { volume_id: child.clone(), ..Create::default() };
        stage.sim.kill_at(k, When::After);
        let killed = tokio::select! {
            biased;
            () = stage.sim.crashed() => true,
            made = create::create(&stage.backend, &stage.context, &operation, request()) => { made.unwrap(); false }
        };
        stage.sim.restart();
        if killed {
            kills += 1;
            stage.restart();
            let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
            create::create(&stage.backend, &stage.context, &operation, request()).await.unwrap();
        }
        for volume in [&parent, &child] {
            assert_eq!(row(&stage, volume).await, ["available", "enabled", "0"], "killed at {k}");
            assert_eq!(stage.seen(&name(volume)).unwrap().mirror, Some(MirrorMode::Journal));
            let data = stage.column("volumes", "replication_driver_data", volume).await;
            assert_eq!(data, r#"{"had_exclusive_lock":true,"had_journaling":false}"#, "killed at {k}");
        }
    }
    assert!(kills > 5, "{kills}");
    assert_eq!(id(1, 1).len(), 36);
}

/// A volume whose image is a clone of a backup, as a restoration leaves it.
pub async fn restored(stage: &Stage, number: u32, status: &str, extra: &str) -> String {
    let volume = seed::volume(&stage.test, number, status, extra).await;
    let backups = Place { site: stage.sim.site("a"), pool: "backups".to_owned() };
    let pin = format!("scoria-pin-{volume}.b");
    backups.create(&pin, 2 << 30, Shape { order: 22, features: 61 }, Attempt::First).await.unwrap();
    let site = &backups.site;
    let (pool, image, snap) = (backups.pool.clone(), pin.clone(), "backup.b.snap.1".to_owned());
    let write = ImageWrite { pool: pool.clone(), image: pin.clone(), offset: 0, data: vec![7; 4096] };
    site.call(write).await.unwrap();
    site.call(SnapCreate { pool: pool.clone(), image: pin, snap: snap.clone() }).await.unwrap();
    let (dest_pool, dest) = (POOL.to_owned(), name(&volume));
    site.call(ReplicaClone { pool, image, snap, dest_pool, dest, features: 61, order: 22 }).await.unwrap();
    volume
}

#[tokio::test]
async fn what_was_restored_by_a_clone_leaves_its_backup_before_it_is_mirrored() {
    let stage = Stage::quick("").await;
    // It, and a clone of it.
    specs(&stage, &[("replication:parent", "mirror")]).await;
    let parent = restored(&stage, 1, "available", ", replication_status='disabled'").await;
    let before = stage.seen(&name(&parent)).unwrap().checksum;
    let child = clone(&stage, 2, &parent).await;
    for volume in [&child, &parent] {
        assert_eq!(row(&stage, volume).await, ["available", "enabled", "0"]);
    }
    let place = stage.place();
    assert!(place.stat(&name(&parent)).await.unwrap().parent.is_none());
    assert_eq!(stage.seen(&name(&parent)).unwrap().checksum, before);
    tokio::time::sleep(3 * STEP).await;
    stage.sim.assert_sides_agree();
}
