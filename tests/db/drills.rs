//! Drills of a failover over the simulator: the clones show what they are to show, nobody else notices them, and nothing
//! is left of them, whatever happens meanwhile.

use std::time::Duration;

use scoria::journal::Operation;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::*;
use scoria::rbd::sim::crash::explored;
use scoria::rbd::sim::{Fault, Health, When};
use scoria::rbd::types::MirrorMode;
use scoria::replication::drill;
use scoria::replication::orders::TestStart;
use scoria::volume::delete::{self, Delete};

use crate::seed::{self, id};
use crate::stage::{Stage, full};

const POOL: &str = "volumes";
const TEST: &str = "11111111-2222-3333-4444-555555555555";
const MODES: [MirrorMode; 2] = [MirrorMode::Journal, MirrorMode::Snapshot];
/// Longer than a step of the quick daemons.
const STEP: Duration = Duration::from_millis(1200);

/// A replicated volume with something in it.
async fn volume(stage: &Stage, number: u32, mode: MirrorMode) -> String {
    let volume = seed::volume(&stage.test, number, "available", ", replication_status='enabled'").await;
    let image = stage.image(&volume).await;
    write(stage, "a", &image, format!("first {number}").as_bytes()).await;
    let enable = MirrorEnable { pool: POOL.into(), image: image.clone(), mode };
    stage.sim.site("a").call(enable).await.unwrap();
    volume
}

async fn write(stage: &Stage, site: &str, image: &str, data: &[u8]) {
    let write = ImageWrite { pool: POOL.into(), image: image.into(), offset: 0, data: data.into() };
    stage.sim.site(site).call(write).await.unwrap();
}

async fn read(stage: &Stage, site: &str, image: &str) -> String {
    let read = ImageRead { pool: POOL.into(), image: image.into(), snap: None, offset: 0, length: 7 };
    String::from_utf8(stage.sim.site(site).call(read).await.unwrap()).unwrap()
}

fn name(volume: &str) -> String {
    format!("volume-{volume}")
}

fn clone_of(volume: &str) -> String {
    format!("scoria-test-{TEST}-{volume}")
}

fn order(volumes: Option<Vec<String>>) -> TestStart {
    let together = volumes.as_ref().is_some_and(|v| v.len() > 1);
    TestStart { id: TEST.into(), volumes, together, pool: None }
}

async fn start(stage: &Stage, order: &TestStart) -> Operation {
    let operation = stage.operation("scoria.replication.test.start", None).await;
    drill::start(&stage.backend, &operation, order).await.unwrap();
    operation
}

async fn stop(stage: &Stage) -> Vec<String> {
    let operation = stage.operation("scoria.replication.test.stop", None).await;
    drill::stop(&stage.backend, &operation, Some(TEST)).await.unwrap();
    stage.ended(&operation).await
}

/// State, site and whether the snapshot was taken for it, of each clone.
async fn rows(stage: &Stage) -> Vec<String> {
    let rows = stage.test.rows("SELECT state, site, own_snapshot FROM scoria_tests ORDER BY volume_id").await;
    rows.into_iter().map(|row| row.join(" ")).collect()
}

/// Nothing of the drill is anywhere; answers what is there.
async fn left(stage: &Stage) -> Vec<String> {
    tokio::time::sleep(STEP).await;
    let mut left = rows(stage).await;
    for site in ["a", "b"] {
        for image in stage.sim.images(site, POOL) {
            let snaps = stage.sim.image(site, POOL, &image).map(|i| i.snaps).unwrap_or_default();
            left.extend(
                snaps.into_iter().filter(|s| s.starts_with("scoria")).map(|s| format!("{site} {image}@{s}")),
            );
            if image.starts_with("scoria") {
                left.push(format!("{site} {image}"));
            }
        }
        let trash = stage.sim.site(site).call(TrashList { pool: POOL.into() }).await.unwrap();
        left.extend(trash.into_iter().map(|e| format!("{site} trash {}", e.name)));
    }
    left
}

#[tokio::test]
async fn clones_show_one_instant_can_be_written_and_disturb_nobody() {
    for mode in MODES {
        let stage = Stage::quick("").await;
        let volumes = vec![volume(&stage, 1, mode).await, volume(&stage, 2, mode).await];
        tokio::time::sleep(STEP).await;
        for volume in &volumes {
            write(&stage, "a", &name(volume), b"newest!").await;
        }
        let operation = start(&stage, &order(Some(volumes.clone()))).await;
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"], "{:?}", rows(&stage).await);
        assert_eq!(rows(&stage).await, ["ready b 1", "ready b 1"]);
        let size = stage.test.row("SELECT size, point_in_time IS NOT NULL FROM scoria_tests LIMIT 1").await;
        assert_eq!(size, [(2u64 << 30).to_string(), "1".to_owned()]);
        assert_eq!(stage.sim.count("SnapCreateTogether"), 1, "of one instant");
        for volume in &volumes {
            assert_eq!(read(&stage, "b", &clone_of(volume)).await, "newest!", "{mode:?}");
            write(&stage, "b", &clone_of(volume), b"drill!!").await;
            assert_eq!(read(&stage, "a", &name(volume)).await, "newest!");
            write(&stage, "a", &name(volume), b"later!!").await;
            let on_b = stage.sim.image("b", POOL, &name(volume)).unwrap();
            assert!(!on_b.primary && on_b.mirror == Some(mode));
        }
        let carry = MirrorSnapshot { pool: POOL.into(), image: name(&volumes[0]) };
        if mode == MirrorMode::Snapshot {
            stage.sim.site("a").call(carry).await.unwrap();
        }
        tokio::time::sleep(STEP).await;
        assert_eq!(read(&stage, "b", &name(&volumes[0])).await, "later!!", "mirroring goes on");
        assert_eq!(read(&stage, "b", &clone_of(&volumes[0])).await, "drill!!");

        assert_eq!(stop(&stage).await, ["closed", "succeeded"]);
        assert_eq!(left(&stage).await, [""; 0], "{mode:?}");
        assert_eq!(stop(&stage).await, ["closed", "succeeded"], "and again");
        stage.sim.assert_no_split_brain_created();
    }
}

#[tokio::test]
async fn a_dead_site_leaves_the_newest_snapshot_that_has_arrived() {
    for mode in MODES {
        let stage = Stage::quick("").await;
        let (known, unknown) = (volume(&stage, 1, mode).await, volume(&stage, 2, mode).await);
        let snapshot = seed::snapshot(&stage.test, 1, &known, "available").await;
        stage.snapped(&name(&known), &snapshot).await;
        stage.place().carry_over(&name(&known)).await.unwrap();
        tokio::time::sleep(STEP).await;
        write(&stage, "a", &name(&known), b"newest!").await;
        stage.sim.set_health("a", Health::Dead);

        let operation = start(&stage, &order(None)).await;
        assert_eq!(stage.ended(&operation).await[1], "failed");
        assert_eq!(rows(&stage).await, ["ready b 0", "failed  0"], "{mode:?}");
        assert_eq!(read(&stage, "b", &clone_of(&known)).await, "first 1");
        let row = "SELECT snapshot, point_in_time FROM scoria_tests ORDER BY volume_id";
        let row = stage.test.row(row).await;
        assert_eq!(row[0], format!("snapshot-{snapshot}"));
        assert!(row[1].contains("2026-01-01"), "{row:?}");
        let why =
            stage.test.row(&format!("SELECT detail FROM scoria_tests WHERE volume_id='{unknown}'")).await;
        assert!(why[0].contains("no snapshot has arrived"), "{why:?}");

        assert_eq!(stop(&stage).await[1], "succeeded");
        assert!(stage.sim.image("b", POOL, &clone_of(&known)).is_none());
        let kept = stage.sim.image("b", POOL, &name(&known)).unwrap().snaps;
        assert_eq!(kept, [format!("snapshot-{snapshot}")], "Cinder's own snapshot stays");
        stage.sim.set_health("a", Health::Alive);
        assert_eq!(left(&stage).await, [""; 0]);
    }
}

#[tokio::test]
async fn what_is_not_mirrored_is_refused() {
    let stage = Stage::quick("").await;
    let plain = seed::volume(&stage.test, 1, "available", ", replication_status='disabled'").await;
    let operation = stage.operation("scoria.replication.test.start", None).await;
    let refused = drill::start(&stage.backend, &operation, &order(Some(vec![plain]))).await.unwrap_err();
    assert!(refused.user().contains("not a replicated volume"), "{refused}");
    assert_eq!(left(&stage).await, [""; 0]);
}

/// The volume is deleted, or moves to the other site, while its clone is in use.
#[tokio::test]
async fn the_volume_may_go_or_move_meanwhile() {
    let stage = Stage::quick("").await;
    let gone = volume(&stage, 1, MirrorMode::Snapshot).await;
    let moved = volume(&stage, 2, MirrorMode::Journal).await;
    tokio::time::sleep(STEP).await;
    let operation = start(&stage, &order(None)).await;
    assert_eq!(stage.ended(&operation).await[1], "succeeded", "{:?}", rows(&stage).await);

    stage.test.sql(&format!("UPDATE volumes SET status='deleting' WHERE id='{gone}'")).await;
    let deletion = stage.operation("delete_volume", Some(("Volume", &gone))).await;
    let request = Delete { volume_id: gone.clone(), ..Delete::default() };
    delete::delete(&stage.backend, &stage.context, &deletion, request).await.unwrap();
    assert_eq!(stage.ended(&deletion).await, ["closed", "succeeded"]);
    let (pool, image) = (POOL.to_owned(), name(&moved));
    stage.sim.site("a").call(MirrorDemote { pool: pool.clone(), image: image.clone() }).await.unwrap();
    tokio::time::sleep(2 * STEP).await;
    stage.sim.site("b").call(MirrorPromote { pool, image, force: false }).await.unwrap();
    assert_eq!(read(&stage, "b", &clone_of(&gone)).await, "first 1");
    assert_eq!(read(&stage, "b", &clone_of(&moved)).await, "first 2");

    assert_eq!(stop(&stage).await, ["closed", "succeeded"]);
    assert_eq!(left(&stage).await, [""; 0]);
    assert!(stage.sim.images("b", POOL).contains(&name(&moved)));
}

/// A worker dies, for the sake of another call or by itself, while it is asked where the volume is primary: that is no answer.
#[tokio::test]
async fn a_question_that_is_lost_with_its_worker_leaves_nothing_of_a_drill() {
    let stage = Stage::quick("").await;
    let volumes = vec![volume(&stage, 1, MirrorMode::Journal).await];
    tokio::time::sleep(STEP).await;
    start(&stage, &order(Some(volumes))).await;
    assert_eq!(rows(&stage).await, ["ready b 1"]);
    stage.sim.inject(Fault::on("MirrorInfo").site("a").fails(When::Before, RbdErrorKind::WorkerLost));
    assert_eq!(stop(&stage).await, ["closed", "succeeded"]);
    assert_eq!(left(&stage).await, [""; 0]);
}

/// Killed at its calls to Ceph, and taken up by the next instance; the same with its end.
#[tokio::test]
async fn a_drill_that_was_killed_is_finished_and_so_is_its_end() {
    let mut stage = Stage::quick("").await;
    let volumes =
        vec![volume(&stage, 1, MirrorMode::Snapshot).await, volume(&stage, 2, MirrorMode::Snapshot).await];
    tokio::time::sleep(STEP).await;
    let asked = order(Some(volumes.clone()));
    let mut kills = 0;
    let all = [
        (5, When::After),
        (15, When::Before),
        (18, When::After),
        (5, When::Midway),
        (9, When::After),
        (12, When::After),
        (21, When::Midway),
        (24, When::After),
        (27, When::After),
    ];
    let sample = if full() { all.len() } else { 3 };
    for (k, when) in all.into_iter().take(sample) {
        let operation = stage.operation("scoria.replication.test.start", None).await;
        stage.sim.kill_at(k, when);
        let killed = tokio::select! {
            biased;
            () = stage.sim.crashed() => true,
            started = drill::start(&stage.backend, &operation, &asked) => { started.unwrap(); false }
        };
        stage.sim.restart();
        if killed {
            kills += 1;
            stage.restart();
            let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
            drill::start(&stage.backend, &operation, &asked).await.unwrap();
            assert_eq!(
                stage.ended(&operation).await,
                ["closed", "succeeded"],
                "{k}: {:?}",
                rows(&stage).await
            );
        }
        assert_eq!(rows(&stage).await, ["ready b 1", "ready b 1"], "killed at {k}");
        for (n, volume) in (1..).zip(&volumes) {
            assert_eq!(read(&stage, "b", &clone_of(volume)).await, format!("first {n}"));
        }

        let operation = stage.operation("scoria.replication.test.stop", None).await;
        stage.sim.kill_at(k.div_ceil(2), when);
        let killed = tokio::select! {
            biased;
            () = stage.sim.crashed() => true,
            stopped = drill::stop(&stage.backend, &operation, None) => { stopped.unwrap(); false }
        };
        stage.sim.restart();
        if killed {
            kills += 1;
            stage.restart();
            let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
            drill::stop(&stage.backend, &operation, None).await.unwrap();
        }
        assert_eq!(left(&stage).await, [""; 0], "killed at {k}");
    }
    assert!(kills > sample, "{kills}");
    explored(kills);
    assert_eq!(id(1, 1), volumes[0]);
    stage.sim.assert_sides_agree();
}
