//! The backup service is killed before, in the midst of and after each of its calls to Ceph while it restores by a clone
//! and makes the volume independent; the next instance goes on, and nothing is lost, and nothing left.

use scoria::backup::orders;
use scoria::rbd::sim::When;
use scoria::rbd::sim::crash::explored;
use scoria::volume::image::Shape;

use crate::backup_clone::{OPTIONS, failed_over, holds, new_volume, parent, strays};
use crate::backup_mirror::{MODES, STEP, pinned};
use crate::backup_scene::Scene;
use crate::stage::full;

const SHAPE: Shape = Shape { order: 22, features: 61 };

fn moments() -> &'static [When] {
    if full() { &[When::Before, When::Midway, When::After] } else { &[When::Midway] }
}

/// Every call that is killed, or one of four of them.
fn step() -> usize {
    if full() { 1 } else { 4 }
}

#[tokio::test]
async fn a_volume_is_restored_by_a_clone_and_stands_alone_wherever_the_service_dies() {
    let mut scene = Scene::mirroring(OPTIONS, STEP).await;
    let (source, backup, content) = failed_over(&scene, MODES[1]).await;
    let (mut number, mut kills) = (1, 0);
    for &when in moments() {
        for k in (1..).step_by(step()) {
            number += 1;
            let why = format!("{when:?} {k}");
            let volume = new_volume(&scene, number, SHAPE).await;
            let work = scene.to_be_restored(&backup, &volume).await;
            let (killed, ended) = scene.dies(k, when, &work).await;
            ended.unwrap_or_else(|e| panic!("{why}: {e}\n{}", scene.sim.log_text()));
            assert_eq!(scene.status("volumes", &volume).await, "available", "{why}");
            assert_eq!(scene.status("backups", &backup).await, "available", "{why}");
            assert_eq!(holds(&scene, &volume), content, "{why}: {}", scene.sim.log_text());
            assert!(parent(&scene, &volume).await.is_some(), "{why}");
            // And again while it is made independent, at the same call of that.
            let operation = scene.backups.journal.adopt(&scene.backups.scope()).await.unwrap().remove(0);
            scene.sim.kill_at(k, when);
            let killed_too = tokio::select! {
                biased;
                () = scene.sim.crashed() => true,
                () = orders::run(&scene.backups, &operation) => false,
            };
            drop(operation);
            scene.sim.restart();
            if killed_too {
                scene.restart();
                scene.settle().await;
            }
            assert!(parent(&scene, &volume).await.is_none(), "{why}");
            assert_eq!(holds(&scene, &volume), content, "{why}");
            assert!(strays(&scene).is_empty(), "{why}: {:?}", strays(&scene));
            assert!(scene.open().await.is_empty(), "{why}");
            assert_eq!(pinned(&scene, &source, &backup), content, "{why}");
            kills += usize::from(killed) + usize::from(killed_too);
            if !killed && !killed_too {
                break;
            }
        }
    }
    assert!(kills > 15 / step(), "{kills}");
    explored(kills);
}

#[tokio::test]
async fn a_backup_with_a_volume_on_it_is_deleted_wherever_the_service_dies() {
    let mut scene = Scene::mirroring(OPTIONS, STEP).await;
    let mut kills = 0;
    let source = scene.mirrored(1, MODES[0]).await;
    let (mut number, content) = (1, scene.content(&source));
    for &when in moments() {
        for k in (1..).step_by(step()) {
            number += 1;
            let why = format!("{when:?} {k}");
            scene.test.sql("UPDATE services SET active_backend_id=NULL").await;
            let backup = scene.made(number, &source, None).await;
            scene.settle().await;
            scene.test.sql("UPDATE services SET active_backend_id='b'").await;
            let volume = new_volume(&scene, number, SHAPE).await;
            let work = scene.to_be_restored(&backup, &volume).await;
            scene.run(&work).await.unwrap();
            let deletion = scene.to_be_deleted(&backup).await;
            let (killed, ended) = scene.dies(k, when, &deletion).await;
            ended.unwrap_or_else(|e| panic!("{why}: {e}\n{}", scene.sim.log_text()));
            assert_eq!(scene.column("backups", "deleted", &backup).await, "1", "{why}");
            assert!(scene.bases().is_empty(), "{why}: {:?}", scene.bases());
            assert!(parent(&scene, &volume).await.is_none(), "{why}");
            assert_eq!(holds(&scene, &volume), content, "{why}");
            scene.settle().await;
            assert_eq!(holds(&scene, &volume), content, "{why}");
            assert!(strays(&scene).is_empty() && scene.open().await.is_empty(), "{why}");
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 5 / step(), "{kills}");
    explored(kills);
}
