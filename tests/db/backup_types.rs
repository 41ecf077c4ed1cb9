//! Backups, schedules and retention of all volumes of a type against a real MariaDB: each volume by itself, in rounds,
//! through deaths and cancellations.

use std::time::Duration;

use scoria::backup::ordered::Create;
use scoria::backup::orders::Order;
use scoria::backup::schedule::{self, Given, Of};
use scoria::error::Code;
use scoria::rbd::sim::When;
use scoria::rbd::sim::crash::explored;

use crate::backup_scene::{MIB, Scene};
use crate::policy_scene::{Serving, dated, dies};
use crate::seed::{self, TYPE};
use crate::stage::full;

/// Another type.
const OTHER: &str = "3f7d81fd-3cb6-4e1a-ab62-35515dfd0a43";
const OPTIONS: &str = "quota_backups=-1\nquota_backup_gigabytes=-1";

/// A scene with a second type, `other`.
async fn scene(options: &str) -> Scene {
    let scene = Scene::with(&format!("{OPTIONS}\n{options}")).await;
    let sql =
        format!("INSERT INTO volume_types (id, name, deleted, is_public) VALUES ('{OTHER}', 'other', 0, 1)");
    scene.test.sql(&sql).await;
    scene
}

/// Volumes from this number on, each with something of its own.
async fn volumes(scene: &Scene, from: u32, count: u32, kind: &str) -> Vec<String> {
    let mut made = Vec::new();
    for number in from..from + count {
        let id = scene.volume(number, "available").await;
        scene.write(&id, 0, u8::try_from(number).unwrap(), 4096).await;
        scene.test.sql(&format!("UPDATE volumes SET volume_type_id='{kind}' WHERE id='{id}'")).await;
        made.push(id);
    }
    made
}

fn of_type(kind: &str, incremental: bool) -> Order {
    let create = Create { volume_type: Some(kind.to_owned()), incremental, ..Create::default() };
    Order::Create(Box::new(create))
}

/// How many backups each volume has that are available, by the volumes' ids.
async fn made(scene: &Scene) -> Vec<(String, usize)> {
    let rows = scene
        .test
        .rows(
            "SELECT volume_id, COUNT(*) FROM backups WHERE deleted=0 AND status='available' \
             GROUP BY volume_id ORDER BY volume_id",
        )
        .await;
    rows.into_iter().map(|row| (row[0].clone(), row[1].parse().unwrap())).collect()
}

fn each(volumes: &[String], count: usize) -> Vec<(String, usize)> {
    let mut found: Vec<_> = volumes.iter().map(|id| (id.clone(), count)).collect();
    found.sort();
    found
}

#[tokio::test]
#[ignore = "whole matrix: tools/test --full"]
async fn all_volumes_of_a_type_are_backed_up_and_one_that_cannot_be_keeps_no_other_from_it() {
    let scene = scene("").await;
    let serving = Serving::of(&scene);
    // More than go into one round; and of another type, deleted, and of a migration.
    let mine = volumes(&scene, 1, 35, TYPE).await;
    let others = volumes(&scene, 40, 3, OTHER).await;
    scene.test.sql(&format!("UPDATE volumes SET deleted=1 WHERE id='{}'", others[1])).await;
    let target = format!("UPDATE volumes SET migration_status='target:x' WHERE id='{}'", others[2]);
    scene.test.sql(&target).await;
    let answer = serving.carry_out(of_type("plain", false)).await.unwrap();
    assert_eq!((&answer["volumes"], answer["volume_type"].as_str()), (&35.into(), Some("plain")));
    assert_eq!(made(&scene).await, each(&mine, 1));
    let answer = serving.carry_out(of_type(OTHER, true)).await.unwrap();
    assert_eq!(answer["volumes"], 1, "the first is full all the same");
    // Some are at something else.
    for id in &mine[..2] {
        scene.test.sql(&format!("UPDATE volumes SET status='extending' WHERE id='{id}'")).await;
    }
    let why = serving.carry_out(of_type("plain", true)).await.unwrap_err();
    assert!(why.contains("2 of 35 volumes of type plain") && why.contains(&mine[0]), "{why}");
    assert!(why.contains("extending"), "{why}");
    let mut expected = [each(&mine[..2], 1), each(&mine[2..], 2), each(&others[..1], 1)].concat();
    expected.sort();
    assert_eq!(made(&scene).await, expected);
    let parents = "SELECT COUNT(*) FROM backups WHERE deleted=0 AND parent_id IS NOT NULL";
    assert_eq!(scene.test.row(parents).await, ["33"]);
    let why = serving.carry_out(of_type("Plain", false)).await.unwrap_err();
    assert!(why.contains("Volume type Plain could not be found"), "{why}");
    assert!(scene.open().await.is_empty());
}

#[tokio::test]
async fn a_type_is_backed_up_once_wherever_the_service_dies() {
    let moments: &[When] = if full() { &[When::Before, When::Midway, When::After] } else { &[When::Midway] };
    let mut kills = 0;
    for &when in moments {
        let scene = scene("").await;
        let mine = volumes(&scene, 1, 3, TYPE).await;
        let mut runs = 0;
        for k in (1..).step_by(if full() { 1 } else { 5 }) {
            let why = format!("{when:?} {k}");
            let (killed, outcome) = dies(&scene, k, when, of_type("plain", runs > 0)).await;
            runs += 1;
            assert_eq!(outcome, "succeeded", "{why}: {}", scene.sim.log_text());
            assert_eq!(made(&scene).await, each(&mine, runs), "{why}");
            assert!(scene.open().await.is_empty(), "{why}");
            for id in &mine {
                assert_eq!(scene.status("volumes", id).await, "available", "{why}");
            }
            kills += usize::from(killed);
            if !killed {
                break;
            }
        }
    }
    assert!(kills > 2, "{kills}");
    explored(kills);
}

#[tokio::test]
#[ignore = "whole matrix: tools/test --full"]
async fn the_order_of_a_type_is_cancelled_with_all_that_is_under_way_and_begins_no_more() {
    let scene = scene("[scoria]\nscoria_backup_bandwidth=1").await;
    let mine = volumes(&scene, 1, 40, TYPE).await;
    for id in &mine {
        for piece in 1..5u64 {
            scene.write(id, piece * 40 * MIB, 7, MIB).await;
        }
    }
    let serving = Serving::of(&scene);
    let story = async {
        let whole = serving.submit(of_type("plain", false)).await;
        while scene.sim.count("DeltaCopy") < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let answer = serving.answered(Order::Cancel { operation: whole }).await.unwrap();
        assert_eq!(answer["cancelled"], true, "{answer}");
        let (outcome, why) = serving.ended(whole).await;
        assert!(outcome == "failed" && why.contains("cancelled"), "{outcome}: {why}");
        // Those of the second round were never begun with.
        let rows = scene.test.rows("SELECT id FROM backups").await.len();
        assert!(rows <= 32, "{rows}");
        while !scene.open().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    serving.until(story).await;
    for id in &mine {
        assert_eq!(scene.status("volumes", id).await, "available");
    }
    let rows = scene.test.rows("SELECT DISTINCT status FROM backups").await.concat();
    assert!(rows.iter().all(|status| ["error", "available"].contains(&status.as_str())), "{rows:?}");
}

#[tokio::test]
async fn a_schedule_of_a_type_takes_what_the_type_has_when_it_runs() {
    let scene = scene("").await;
    let serving = Serving::of(&scene);
    let db = &scene.test.db;
    let of = |volume_type: &str| Of { volume_type: Some(volume_type.to_owned()), ..Of::default() };
    let given = Given { cron: Some("0 3 * * *".into()), full_every: Some(0), ..Given::default() };
    let unknown = schedule::create(db, &of("gold"), &given).await.unwrap_err();
    assert_eq!(unknown.code(), Code::VolumeTypeNotFound, "{unknown}");
    let both = Of { volume: Some(seed::id(1, 1)), ..of("plain") };
    assert_eq!(schedule::create(db, &both, &given).await.unwrap_err().code(), Code::InvalidInput);
    let shown = schedule::create(db, &of("plain"), &given).await.unwrap();
    assert_eq!(shown.volume_type_id.as_deref(), Some(TYPE));
    assert_eq!((&shown.volume_id, &shown.group_id), (&None, &None));
    let mut mine = Vec::new();
    for run in 1..=3usize {
        // One more than the last time.
        mine.extend(volumes(&scene, u32::try_from(run).unwrap(), 1, TYPE).await);
        let due = "UPDATE scoria_backup_schedules SET next_run = UTC_TIMESTAMP(6) - INTERVAL 1 DAY";
        scene.test.sql(due).await;
        assert_eq!(schedule::take_due(&serving.backups).await.unwrap(), 1);
        let shown = schedule::show(db, &shown.id).await.unwrap();
        let number = shown.last_operation.unwrap();
        let ended = serving.until(serving.ended(number)).await;
        assert_eq!(ended.0, "succeeded", "{}", ended.1);
        let shown = schedule::show(db, &shown.id).await.unwrap();
        assert_eq!(shown.last_outcome.as_deref(), Some("succeeded"));
        let expected: Vec<(String, usize)> =
            mine.iter().enumerate().map(|(at, id)| (id.clone(), run - at)).collect();
        assert_eq!(made(&scene).await, expected);
    }
    schedule::delete(db, &shown.id).await.unwrap();
    assert!(schedule::list(db).await.unwrap().is_empty());
    assert!(scene.test.rows("SELECT schedule_id FROM scoria_backup_type_schedules").await.is_empty());
}

#[tokio::test]
#[ignore = "whole matrix: tools/test --full"]
async fn retention_is_applied_to_all_volumes_and_one_that_fails_keeps_no_other_from_it() {
    let scene = scene("").await;
    let serving = Serving::of(&scene);
    let mine = volumes(&scene, 1, 2, TYPE).await;
    let others = volumes(&scene, 11, 2, OTHER).await;
    let spec = |kind: &str, value: &str| {
        format!(
            "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
               VALUES ('{kind}', 'backup:keep_last', '{value}', 0)"
        )
    };
    scene.test.sql(&spec(TYPE, "1")).await;
    scene.test.sql(&spec(OTHER, "2")).await;
    for id in mine.iter().chain(&others) {
        for day in 1..=3u32 {
            let backup = serving.made(id, day > 1).await;
            dated(&scene, &backup, &format!("2026-01-{day:02} 12:00")).await;
        }
    }
    // A volume that is gone has backups, of which its type says how many are kept.
    scene.test.sql(&format!("UPDATE volumes SET deleted=1 WHERE id='{}'", others[1])).await;
    let apply = |volume_type: Option<&str>| Order::ApplyAllRetention {
        volume_type: volume_type.map(str::to_owned),
        failed: false,
        deleted_volumes: false,
    };
    let answer = serving.carry_out(apply(Some("other"))).await.unwrap();
    assert_eq!((&answer["volumes"], &answer["kept"]), (&2.into(), &5.into()), "{answer}");
    let mut expected = [each(&mine, 3), each(&others[..1], 2), each(&others[1..], 3)].concat();
    assert_eq!(made(&scene).await, expected, "of a volume that is gone all stay");
    // Its extra specs mean nothing: the others' do.
    scene
        .test
        .sql(&format!("UPDATE volume_type_extra_specs SET value='few' WHERE volume_type_id='{OTHER}'"))
        .await;
    let why = serving.carry_out(apply(None)).await.unwrap_err();
    assert!(why.contains("of 4 volumes") && why.contains(&others[0]) && why.contains("few"), "{why}");
    expected = [each(&mine, 1), each(&others[..1], 2), each(&others[1..], 3)].concat();
    assert_eq!(made(&scene).await, expected);
    let why = serving.carry_out(apply(Some("gold"))).await.unwrap_err();
    assert!(why.contains("Volume type gold could not be found"), "{why}");
    // Through deaths, one after the other.
    scene
        .test
        .sql(&format!("UPDATE volume_type_extra_specs SET value='1' WHERE volume_type_id='{OTHER}'"))
        .await;
    let mut kills = 0;
    for k in 1.. {
        let (killed, outcome) = dies(&scene, k, When::Midway, apply(None)).await;
        assert_eq!(outcome, "succeeded", "{k}");
        expected = [each(&mine, 1), each(&others[..1], 1), each(&others[1..], 3)].concat();
        assert_eq!(made(&scene).await, expected, "{k}");
        assert!(scene.open().await.is_empty());
        if !killed {
            break;
        }
        kills += 1;
        let again = Serving::of(&scene);
        for id in [&mine[0], &others[0]] {
            let backup = again.made(id, true).await;
            dated(&scene, &backup, &format!("2026-02-{k:02} 12:00")).await;
        }
    }
    assert!(kills > 3, "{kills}");
    explored(kills);
}
