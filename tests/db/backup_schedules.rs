//! Schedules against a real MariaDB: two services and one schedule, pauses, missed runs, full and incremental ones.

use futures::future::join_all;
use scoria::backup::schedule::{self, Given, Of};
use scoria::error::Code;

use crate::backup_scene::{MIB, Scene};
use crate::policy_scene::{Serving, used};
use crate::seed;

fn given(cron: &str) -> Given {
    Given { cron: Some(cron.to_owned()), ..Given::default() }
}

async fn orders(scene: &Scene) -> Vec<Vec<String>> {
    scene
        .test
        .rows(
            "SELECT id, backend_host FROM scoria_operations WHERE method='scoria.backup.create' ORDER BY id",
        )
        .await
}

/// As if it had been due for a while.
async fn overdue(scene: &Scene, since: &str) {
    let sql = format!("UPDATE scoria_backup_schedules SET next_run = UTC_TIMESTAMP(6) - INTERVAL {since}");
    scene.test.sql(&sql).await;
}

#[tokio::test]
async fn two_services_and_one_schedule_make_no_double_runs_and_missed_ones_are_one() {
    let scene = Scene::new().await;
    let (one, two) = (scene.on("node1"), scene.on("node2"));
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, MIB).await;
    let made = schedule::create(&scene.test.db, &Of::volume(&volume), &given("*/5 * * * *")).await.unwrap();
    assert_eq!((schedule::take_due(&one).await.unwrap(), orders(&scene).await.len()), (0, 0), "none is due");
    for round in 1..=10usize {
        // Three days are hundreds of runs.
        overdue(&scene, "3 DAY").await;
        let looks = (0..8).map(|n| schedule::take_due(if n % 2 == 0 { &one } else { &two }));
        let taken: usize = join_all(looks).await.into_iter().map(|taken| taken.unwrap()).sum();
        assert_eq!((taken, orders(&scene).await.len()), (1, round));
        let again = schedule::take_due(&one).await.unwrap() + schedule::take_due(&two).await.unwrap();
        assert_eq!(again, 0, "the next is in the future");
    }
    let due = scene
        .test
        .row("SELECT next_run > UTC_TIMESTAMP(6), last_run < UTC_TIMESTAMP(6) FROM scoria_backup_schedules");
    assert_eq!(due.await, ["1", "1"]);
    // One of them is carried out by whoever has it; all others find the volume at work.
    scene.test.sql("DELETE FROM scoria_operations").await;
    overdue(&scene, "1 MINUTE").await;
    assert_eq!(schedule::take_due(&two).await.unwrap(), 1);
    let serving = Serving::new(scene.on("node2"));
    let number: i64 = orders(&scene).await[0][0].parse().unwrap();
    let (outcome, detail) = serving.until(serving.ended(number)).await;
    assert_eq!(outcome, "succeeded", "{detail}");
    let shown = schedule::show(&scene.test.db, &made.id).await.unwrap();
    assert_eq!((shown.last_operation, shown.last_outcome.as_deref()), (Some(number), Some("succeeded")));
    let row = scene.test.row("SELECT status, project_id, user_id, host, volume_id FROM backups").await;
    assert_eq!(row, ["available", seed::PROJECT, "u", "node2", volume.as_str()]);
    assert_eq!(scene.status("volumes", &volume).await, "available");
    assert_eq!(scene.column("volumes", "previous_status", &volume).await, "backing-up");
    assert_eq!(used(&scene).await, [["backup_gigabytes", "2", "0"], ["backups", "1", "0"]]);
    let told = scene.heard.events();
    assert!(told.iter().any(|said| said.contains("backup.create.end")), "{told:?}");
}

#[tokio::test]
async fn a_paused_one_is_not_run_and_full_ones_come_when_they_should() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let (db, volume) = (&scene.test.db, scene.volume(1, "in-use").await);
    scene.write(&volume, 0, 7, MIB).await;
    let every = Given { full_every: Some(3), name: Some("nightly".into()), ..given("0 3 * * *") };
    let made = schedule::create(db, &Of::volume(&volume), &every).await.unwrap();
    assert!(made.next_run.is_some() && !made.paused);
    let paused = schedule::update(db, "nightly", &Given::default(), Some(true)).await.unwrap();
    assert_eq!((paused.paused, paused.next_run), (true, None));
    overdue(&scene, "1 DAY").await;
    assert_eq!(schedule::take_due(&serving.backups).await.unwrap(), 0);
    // By hand it runs all the same: the first is full, and then each third.
    let mut parents = Vec::new();
    for _ in 0..7 {
        let number = schedule::run_now(db, "node1", &made.id).await.unwrap();
        let ended = serving.until(serving.ended(number)).await;
        assert_eq!(ended.0, "succeeded", "{}", ended.1);
        let newest = "SELECT COALESCE(parent_id, 'none'), id FROM backups ORDER BY created_at DESC, data_timestamp DESC";
        let made = scene.test.rows(newest).await;
        parents.push(made.iter().filter(|row| row[0] == "none").count());
        // The clock of the rows has seconds.
        let older = "UPDATE backups SET created_at = created_at - INTERVAL 1 HOUR, \
                     data_timestamp = data_timestamp - INTERVAL 1 HOUR";
        scene.test.sql(older).await;
    }
    assert_eq!(parents, [1, 1, 1, 2, 2, 2, 3], "full ones so far");
    assert_eq!(scene.status("volumes", &volume).await, "in-use");
    let resumed = schedule::update(db, &made.id, &Given::default(), Some(false)).await.unwrap();
    assert!(resumed.next_run.is_some(), "what was missed while it was paused is not made up for");
    assert_eq!(schedule::take_due(&serving.backups).await.unwrap(), 0);
    assert_eq!(schedule::delete(db, "nightly").await.unwrap(), made.id);
    assert_eq!(schedule::show(db, "nightly").await.unwrap_err().code(), Code::InvalidInput);
    assert!(schedule::list(db).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_cannot_be_run_says_why_and_harms_nothing() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let (db, volume) = (&scene.test.db, scene.volume(1, "available").await);
    let nobody = seed::id(1, 77);
    for (volume, group, given, code) in [
        (Some(volume.as_str()), None, given("every day"), Code::InvalidInput),
        (
            Some(volume.as_str()),
            None,
            Given { time_zone: Some("Mars".into()), ..given("0 1 * * *") },
            Code::InvalidInput,
        ),
        (Some(volume.as_str()), None, Given::default(), Code::InvalidInput),
        (Some(volume.as_str()), Some(nobody.as_str()), given("0 1 * * *"), Code::InvalidInput),
        (None, Some(nobody.as_str()), given("0 1 * * *"), Code::InvalidInput),
        (None, None, given("0 1 * * *"), Code::InvalidInput),
        (Some(nobody.as_str()), None, given("0 1 * * *"), Code::VolumeNotFound),
    ] {
        let of = Of { volume: volume.map(str::to_owned), group: group.map(str::to_owned), ..Of::default() };
        let error = schedule::create(db, &of, &given).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    let made = schedule::create(db, &Of::volume(&volume), &given("0 1 * * *")).await.unwrap();
    // The project may have no more.
    scene
        .test
        .sql(&format!(
            "INSERT INTO quotas (project_id, resource, hard_limit, deleted) VALUES ('{}', 'backups', 0, 0)",
            seed::PROJECT
        ))
        .await;
    let run = async || {
        let number = schedule::run_now(db, "node1", &made.id).await.unwrap();
        let ended = serving.until(serving.ended(number)).await;
        assert_eq!(ended.0, "failed");
        schedule::show(db, &made.id).await.unwrap().last_outcome.unwrap_or_default()
    };
    assert!(run().await.contains("Maximum number of backups allowed (0) exceeded"));
    scene.test.sql("UPDATE quotas SET deleted=1").await;
    // The volume is at something else.
    scene.test.sql(&format!("UPDATE volumes SET status='extending' WHERE id='{volume}'")).await;
    assert!(run().await.contains("current status is \"extending\""));
    assert_eq!(scene.status("volumes", &volume).await, "extending");
    assert!(scene.test.rows("SELECT id FROM backups").await.is_empty());
    assert!(used(&scene).await.iter().all(|row| row[1] == "0" && row[2] == "0"), "{:?}", used(&scene).await);
    // A line that this program does not understand is due no more.
    scene.test.sql("UPDATE scoria_backup_schedules SET cron='L * * * * * *'").await;
    overdue(&scene, "1 DAY").await;
    assert_eq!(schedule::take_due(&serving.backups).await.unwrap(), 0);
    let shown = schedule::show(db, &made.id).await.unwrap();
    assert!(shown.next_run.is_none() && shown.last_outcome.unwrap().contains("no cron line"));
}
