//! Backups of all volumes of a group as of one instant, and their cancellation, against a real MariaDB.

use std::time::Duration;

use scoria::backup::orders::Order;
use scoria::backup::restore::Restore;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::sim::crash::explored;
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::features;
use scoria::volume::image::{Attempt, Shape};

use crate::backup_mirror::{MODES, STEP, pinned};
use crate::backup_scene::{MIB, Scene, Work};
use crate::policy_scene::{Serving, dies, of_group, of_volume, used};
use crate::seed;
use crate::stage::full;

async fn group(scene: &Scene, volumes: u32) -> (String, Vec<String>) {
    let group = seed::group(&scene.test, 1, "available", "disabled").await;
    let mut members = Vec::new();
    for number in 1..=volumes {
        let id = scene.volume(number, "available").await;
        scene.test.sql(&format!("UPDATE volumes SET group_id='{group}' WHERE id='{id}'")).await;
        scene.write(&id, 0, u8::try_from(number).unwrap(), MIB).await;
        members.push(id);
    }
    (group, members)
}

/// Nothing that was not made is left anywhere.
async fn clean(scene: &Scene, volumes: &[String], why: &str) {
    for volume in volumes {
        assert_eq!(scene.status("volumes", volume).await, "available", "{why}");
        assert!(scene.points(volume).is_empty(), "{why}: {:?}", scene.points(volume));
    }
    assert!(scene.bases().is_empty(), "{why}: {:?}", scene.bases());
    assert!(scene.open().await.is_empty(), "{why}: {:?}", scene.open().await);
}

async fn delete_all(scene: &Scene) {
    for row in scene.test.rows("SELECT id FROM backups WHERE deleted=0").await {
        let work = scene.to_be_deleted(&row[0]).await;
        scene.run(&work).await.unwrap();
    }
}

#[tokio::test]
async fn a_group_is_backed_up_as_of_one_instant_and_again_incrementally() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let (group, volumes) = group(&scene, 3).await;
    let answer = serving.carry_out(of_group(&group, false)).await.unwrap();
    assert_eq!((&answer["consistent"], &answer["why_not"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!(scene.sim.count("SnapCreateTogether"), 1);
    assert_eq!(scene.sim.count("SnapCreate"), 3, "of the bases; none of a volume by itself");
    for volume in &volumes {
        scene.write(volume, 700 * MIB, 9, MIB).await;
    }
    let answer = serving.carry_out(of_group(&group, true)).await.unwrap();
    assert_eq!(answer["consistent"], true);
    let target = scene.volume(9, "available").await;
    for made in answer["backups"].as_array().unwrap() {
        let (backup, volume) = (made["backup"].as_str().unwrap(), made["volume"].as_str().unwrap());
        assert_ne!(scene.column("backups", "parent_id", backup).await, "NULL");
        assert_eq!(scene.verdict(backup).await.verdict, "good");
        let work = scene.to_be_restored(backup, &target).await;
        scene.run(&work).await.unwrap();
        assert_eq!(scene.content(&target), scene.content(volume));
        assert_eq!(scene.points(volume).len(), 2, "the points of the two backups and no more");
    }
    assert_eq!(used(&scene).await, [["backup_gigabytes", "12", "0"], ["backups", "6", "0"]]);
    assert!(scene.messages().await.is_empty(), "{:?}", scene.messages().await);
    delete_all(&scene).await;
    clean(&scene, &volumes, "the end").await;
}

/// By mirroring, too: what is pinned is what was taken together.
#[tokio::test]
async fn a_group_is_pinned_as_of_one_instant() {
    let scene = Scene::mirroring("backup_method=mirror", STEP).await;
    let serving = Serving::of(&scene);
    let group = seed::group(&scene.test, 1, "available", "disabled").await;
    let mut volumes = Vec::new();
    for (number, mode) in (1..).zip(MODES) {
        let id = scene.mirrored(number, mode).await;
        scene.test.sql(&format!("UPDATE volumes SET group_id='{group}' WHERE id='{id}'")).await;
        scene.write(&id, 0, u8::try_from(number).unwrap(), MIB).await;
        volumes.push(id);
    }
    for incremental in [false, true] {
        let answer = serving.carry_out(of_group(&group, incremental)).await.unwrap();
        assert_eq!(answer["consistent"], true);
        for made in answer["backups"].as_array().unwrap() {
            let (backup, volume) = (made["backup"].as_str().unwrap(), made["volume"].as_str().unwrap());
            assert_eq!(pinned(&scene, volume, backup), scene.content(volume));
            let points = scene.points(volume);
            assert!(points.len() == 1 && points[0].contains(backup), "{points:?}");
            scene.write(volume, 300 * MIB, 9, MIB).await;
        }
    }
    assert_eq!(scene.sim.count("SnapCreateTogether"), 2);
}

#[tokio::test]
async fn volumes_that_cannot_be_frozen_are_backed_up_with_a_warning() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let (group, _) = group(&scene, 1).await;
    let shared = seed::volume(&scene.test, 2, "available", &format!(", group_id='{group}'")).await;
    let shape = Shape { order: 22, features: features::LAYERING };
    scene.volumes().create(&format!("volume-{shared}"), 2 << 30, shape, Attempt::First).await.unwrap();
    let answer = serving.carry_out(of_group(&group, false)).await.unwrap();
    assert_eq!(answer["consistent"], false);
    assert!(answer["why_not"].as_str().is_some_and(|why| !why.is_empty()), "{answer}");
    for made in answer["backups"].as_array().unwrap() {
        assert!(scene.is_told(made["backup"].as_str().unwrap(), "013", "015").await);
    }
    assert_eq!(scene.test.row("SELECT DISTINCT message_level FROM messages").await, ["WARNING"]);
}

#[tokio::test]
async fn a_group_that_cannot_be_backed_up_is_left_as_it_was() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let (group, volumes) = group(&scene, 2).await;
    scene.sim.inject(Fault::on("SnapCreateTogether").fails(When::Before, RbdErrorKind::NoSpace));
    serving.carry_out(of_group(&group, false)).await.unwrap_err();
    clean(&scene, &volumes, "no snapshots").await;
    assert_eq!(scene.test.rows("SELECT id FROM backups WHERE status='error'").await.len(), 2);
    assert_eq!(scene.messages().await.len(), 2);
    delete_all(&scene).await;
    // One that fails takes nothing of the others with it.
    let base = format!("volume-{}", volumes[1]);
    scene.sim.inject(Fault::on("DeltaCopy").image(&base).fails(When::Before, RbdErrorKind::NoSpace));
    let failed = serving.carry_out(of_group(&group, false)).await.unwrap_err();
    assert!(failed.contains("1 of 2 backups were not made"), "{failed}");
    assert_eq!((scene.points(&volumes[0]).len(), scene.points(&volumes[1]).len()), (1, 0));
    delete_all(&scene).await;
    clean(&scene, &volumes, "one failed").await;
    // One that is at something else keeps the rest from being begun with.
    scene.test.sql(&format!("UPDATE volumes SET status='extending' WHERE id='{}'", volumes[1])).await;
    let refused = serving.carry_out(of_group(&group, false)).await.unwrap_err();
    assert!(refused.contains("extending"), "{refused}");
    assert_eq!(scene.status("volumes", &volumes[0]).await, "available");
    assert!(scene.test.rows("SELECT id FROM backups WHERE deleted=0").await.is_empty());
    assert!(used(&scene).await.iter().all(|row| row[1] == "0" && row[2] == "0"));
    let nobody = seed::id(5, 9);
    let refused = serving.carry_out(of_group(&nobody, false)).await.unwrap_err();
    assert!(refused.contains("There is no group"), "{refused}");
}

#[tokio::test]
async fn a_group_is_backed_up_wherever_the_service_dies() {
    let scene = Scene::new().await;
    let (group, volumes) = group(&scene, 2).await;
    let moments: &[When] = if full() { &[When::Before, When::Midway, When::After] } else { &[When::Midway] };
    let mut kills = 0;
    for &when in moments {
        for k in (1..).step_by(if full() { 1 } else { 4 }) {
            let why = format!("{when:?} {k}");
            let (killed, outcome) = dies(&scene, k, when, of_group(&group, false)).await;
            assert_eq!(outcome, "succeeded", "{why}");
            for (volume, row) in volumes
                .iter()
                .zip(scene.test.rows("SELECT id FROM backups WHERE deleted=0 ORDER BY volume_id").await)
            {
                assert_eq!(scene.status("backups", &row[0]).await, "available", "{why}");
                assert_eq!(
                    (scene.points(volume).len(), scene.verdict(&row[0]).await.verdict.as_str()),
                    (1, "good")
                );
            }
            assert_eq!(scene.bases().len(), 2, "{why}");
            delete_all(&scene).await;
            clean(&scene, &volumes, &why).await;
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 2, "{kills}");
    explored(kills);
}

/// A backup is cancelled by an order that is in the journal when the service dies at its `k`-th call.
async fn cancelled_at(
    scene: &Scene,
    k: usize,
    number: u32,
    volume: &str,
    parent: Option<&str>,
) -> (bool, String, String) {
    let backup = scene.ordered(number, volume, parent, None).await;
    let serving = Serving::of(scene);
    let context = &scene.context;
    let row = scene.backup(&backup).await;
    let text = scoria::rpc::synthetic::of_backup(
        context,
        &format!("u{number}"),
        scoria::backend::peers::BackupRequest::Create,
        &row,
    );
    let new = scoria::journal::NewOperation {
        unique_id: format!("u{number}"),
        method: "create_backup".to_owned(),
        backend_host: serving.backups.journal_host(),
        request: text.unwrap(),
        resource: Some(("Backup".to_owned(), backup.clone())),
        ..Default::default()
    };
    let scoria::journal::Submitted::New(target) = serving.backups.journal.submit(&new).await.unwrap() else {
        panic!("a backup that is open already")
    };
    scene.sim.kill_at(k, When::Midway);
    let died = serving
        .until(async {
            tokio::select! {
                biased;
                () = scene.sim.crashed() => true,
                _ = serving.ended(target) => false,
            }
        })
        .await;
    scene.sim.restart();
    drop(serving);
    let next = Serving::of(scene);
    // Whichever of the two is taken up first: here it is the cancellation.
    next.backups.running.cancel(target);
    let cancel = next.submit(Order::Cancel { operation: target }).await;
    let outcome = next.until(async { (next.ended(target).await, next.ended(cancel).await) }).await;
    assert_eq!(outcome.1.0, "succeeded", "{}", outcome.1.1);
    (died, outcome.0.0, backup)
}

#[tokio::test]
async fn a_backup_is_cancelled_at_each_of_its_steps_and_after_a_restart() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let parent = scene.made(1, &volume, None).await;
    scene.write(&volume, 900 * MIB, 8, MIB).await;
    let mut cancelled = 0;
    let mut number = 1;
    for parent in [None, Some(parent.as_str())] {
        for k in 1.. {
            number += 1;
            let (died, outcome, backup) = cancelled_at(&scene, k, number, &volume, parent).await;
            let why = format!("{k} {}", parent.is_some());
            assert_eq!(scene.status("volumes", &volume).await, "available", "{why}");
            assert!(scene.open().await.is_empty(), "{why}");
            if outcome == "succeeded" {
                // It was made before anybody could stop it.
                assert_eq!(scene.status("backups", &backup).await, "available", "{why}");
                assert_eq!(scene.verdict(&backup).await.verdict, "good", "{why}");
            } else {
                cancelled += 1;
                assert_eq!(
                    (outcome.as_str(), &*scene.status("backups", &backup).await),
                    ("failed", "error"),
                    "{why}"
                );
                assert!(
                    scene.column("backups", "fail_reason", &backup).await.contains("called off"),
                    "{why}"
                );
                assert!(!scene.points(&volume).iter().any(|name| name.contains(&backup)), "{why}");
                for base in scene.bases() {
                    let snaps = scene.sim.image("b", "backups", &base).unwrap().snaps;
                    assert!(
                        !base.contains(&backup) && !snaps.iter().any(|name| name.contains(&backup)),
                        "{why}"
                    );
                }
                for object in ["meta", "sums"] {
                    assert!(!scene.has_object(&format!("backup.{backup}.{object}")).await, "{why}: {object}");
                }
            }
            let work = scene.to_be_deleted(&backup).await;
            scene.run(&work).await.unwrap();
            if !died {
                break;
            }
        }
    }
    assert!(cancelled > 6, "{cancelled}");
    explored(cancelled);
}

#[tokio::test]
async fn what_is_under_way_or_waits_for_its_turn_is_cancelled_and_the_rest_goes_on() {
    let scene = Scene::with("backup_max_operations=1\n[scoria]\nscoria_backup_bandwidth=1").await;
    let (group, volumes) = group(&scene, 2).await;
    for piece in 0..40u64 {
        scene.write(&volumes[0], piece * 40 * MIB, 7, MIB).await;
    }
    let serving = Serving::of(&scene);
    let copies = async |more: usize| {
        while scene.sim.count("DeltaCopy") < more {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let cancel = async |operation| {
        let answer = serving.answered(Order::Cancel { operation }).await.unwrap();
        assert_eq!((&answer["cancelled"], answer["outcome"].as_str()), (&true.into(), Some("failed")));
    };
    let story = async {
        let slow = serving.submit(of_volume(&volumes[0], false)).await;
        copies(2).await;
        // The second has no place.
        let waits = serving.submit(of_volume(&volumes[1], false)).await;
        while scene.test.rows("SELECT id FROM backups").await.len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cancel(waits).await;
        let still = scene.test.rows("SELECT id FROM backups WHERE status='creating'").await;
        assert_eq!(still.len(), 1, "the first goes on");
        cancel(slow).await;
        clean(&scene, &volumes, "two").await;
        assert_eq!(scene.test.rows("SELECT id FROM backups WHERE status='error'").await.len(), 2);
        // All the backups of a group.
        let whole = serving.submit(of_group(&group, false)).await;
        copies(scene.sim.count("DeltaCopy") + 1).await;
        cancel(whole).await;
        clean(&scene, &volumes, "a group").await;
        // What has ended stays as it is, and what is unknown is refused.
        cancel(whole).await;
        let refused = serving.answered(Order::Cancel { operation: 999_999 }).await.unwrap_err();
        assert!(refused.contains("There is no operation 999999"), "{refused}");
    };
    serving.until(story).await;
}

#[tokio::test]
async fn a_restoration_is_cancelled_and_its_backup_stays() {
    let mut scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    for piece in 0..30u64 {
        scene.write(&volume, piece * 40 * MIB, 7, MIB).await;
    }
    let backup = scene.made(1, &volume, None).await;
    let target = scene.volume(2, "available").await;
    scene.reconfigure("[scoria]\nscoria_backup_bandwidth=1");
    let work = scene.to_be_restored(&backup, &target).await;
    let operation = scene.accepted(&work).await;
    let Work::Restore(backup_id, volume_id) = work else { unreachable!() };
    let request = Restore { backup_id, volume_id };
    let before = scene.sim.count("DeltaCopy");
    let cancel = async {
        while scene.sim.count("DeltaCopy") < before + 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        scoria::backup::cancel::cancel(&scene.backups, operation.id()).await.unwrap()
    };
    let restoration = scoria::backup::restore::restore(&scene.backups, &scene.context, &operation, &request);
    let (ended, answer) = tokio::join!(restoration, cancel);
    ended.unwrap();
    assert_eq!((&answer["cancelled"], answer["outcome"].as_str()), (&true.into(), Some("rolled-back")));
    assert_eq!(scene.status("volumes", &target).await, "error");
    assert_eq!(scene.status("backups", &backup).await, "available");
    assert_eq!(scene.verdict(&backup).await.verdict, "good");
    assert!(scene.open().await.is_empty());
}
