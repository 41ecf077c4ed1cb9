//! The backup service is killed before, in the midst of and after each of its calls to Ceph while it makes, restores,
//! settles and deletes backups by mirroring; the next instance goes on, and an audit finds nothing that is nobody's.

use scoria::backup::{orders, status};
use scoria::context::RequestContext;
use scoria::rbd::sim::When;
use scoria::rbd::sim::crash::explored;
use scoria::rpc::synthetic;

use crate::backup_mirror::{MODES, STEP, left, pin, pinned, points_there};
use crate::backup_scene::{MIB, Scene, Work};
use crate::stage::full;

const OPTIONS: &str = "backup_method=mirror";

/// In CI's sample in the midst of a call, which is after it where it is one operation of an OSD.
fn moments() -> &'static [When] {
    if full() { &[When::Before, When::Midway, When::After] } else { &[When::Midway] }
}

#[tokio::test]
async fn a_point_is_pinned_once_wherever_the_service_dies_and_deleted_so_too() {
    let (step, least) = if full() { (1, 10) } else { (5, 2) };
    for mode in MODES {
        let mut scene = Scene::mirroring(OPTIONS, STEP).await;
        let volume = scene.mirrored(1, mode).await;
        let (mut number, mut kills) = (0, 0);
        for &when in moments() {
            for k in (1..).step_by(step) {
                number += 1;
                let why = format!("{mode:?} {when:?} {k}");
                scene.write(&volume, u64::from(number) * 8 * MIB, 5, 4096).await;
                let content = scene.content(&volume);
                let backup = scene.ordered(number, &volume, None, None).await;
                let (killed, ended) = scene.dies(k, when, &Work::Create(backup.clone())).await;
                ended.unwrap_or_else(|e| panic!("{why}: {e}\n{}", scene.sim.log_text()));
                assert_eq!(scene.status("backups", &backup).await, "available", "{why}");
                assert_eq!(scene.status("volumes", &volume).await, "available", "{why}");
                let pins = scene.bases();
                assert_eq!(pins, [pin(&volume, &backup)], "{why}: {}", scene.sim.log_text());
                assert_eq!(pinned(&scene, &volume, &backup), content, "{why}: {}", scene.sim.log_text());
                assert_eq!(scene.points(&volume).len(), 1, "{why}");
                // A death after its end has left the order out: the next start makes up for it.
                let context = RequestContext::admin();
                status::at_start(&scene.backups, &context, &synthetic::delete_backup).await.unwrap();
                scene.settle().await;
                assert_eq!(scene.verdict(&backup).await.verdict, "good", "{why}");
                let deletion = scene.to_be_deleted(&backup).await;
                let (killed_too, ended) = scene.dies(k, when, &deletion).await;
                ended.unwrap_or_else(|e| panic!("{why}: {e}"));
                assert_eq!(scene.column("backups", "deleted", &backup).await, "1", "{why}");
                scene.eventually(&why, || points_there(&scene, &volume).is_empty()).await;
                assert!(left(&scene, &volume).await.is_empty(), "{why}: {:?}", left(&scene, &volume).await);
                for object in ["meta", "sums"] {
                    assert!(!scene.has_object(&format!("backup.{backup}.{object}")).await, "{why}: {object}");
                }
                kills += usize::from(killed) + usize::from(killed_too);
                if !killed && !killed_too {
                    break;
                }
            }
        }
        assert!(kills > least, "{kills}");
        explored(kills);
        assert!(scene.messages().await.is_empty());
    }
}

#[tokio::test]
async fn a_volume_is_restored_from_pins_wherever_the_service_dies() {
    let mut scene = Scene::mirroring(OPTIONS, STEP).await;
    let volume = scene.mirrored(1, MODES[1]).await;
    let old = scene.made(1, &volume, None).await;
    let content_of_old = scene.content(&volume);
    scene.write(&volume, 700 * MIB, 8, MIB).await;
    let new = scene.made(2, &volume, Some(&old)).await;
    let content_of_new = scene.content(&volume);
    let mut kills = 0;
    // The newest by what has changed since, the other by comparing.
    for (backup, content) in [(&new, content_of_new), (&old, content_of_old)] {
        for &when in moments() {
            for k in 1.. {
                let why = format!("{when:?} {k}");
                scene.write(&volume, 900 * MIB, 5, MIB).await;
                let work = scene.to_be_restored(backup, &volume).await;
                let (killed, ended) = scene.dies(k, when, &work).await;
                ended.unwrap_or_else(|e| panic!("{why}: {e}"));
                assert_eq!(scene.content(&volume), content, "{why}");
                assert_eq!(scene.status("backups", backup).await, "available", "{why}");
                assert_eq!(scene.status("volumes", &volume).await, "available", "{why}");
                if !killed {
                    break;
                }
                kills += 1;
            }
        }
    }
    assert!(kills > 4, "{kills}");
    explored(kills);
    assert_eq!(scene.bases().len(), 2);
}

#[tokio::test]
async fn checksums_are_computed_wherever_the_service_dies() {
    let mut scene =
        Scene::mirroring("backup_method=mirror\n[scoria]\nscoria_backup_flatten_pool=volumes2", STEP).await;
    let volume = scene.mirrored(1, MODES[0]).await;
    let (mut number, mut kills) = (0, 0);
    for &when in moments() {
        for k in 1.. {
            number += 1;
            let why = format!("{when:?} {k}");
            let backup = scene.made(number, &volume, None).await;
            let operation = scene.backups.journal.adopt(&scene.backups.scope()).await.unwrap().remove(0);
            scene.sim.kill_at(k, when);
            let killed = tokio::select! {
                biased;
                () = scene.sim.crashed() => true,
                () = orders::run(&scene.backups, &operation) => false,
            };
            drop(operation);
            scene.sim.restart();
            if killed {
                scene.restart();
                scene.settle().await;
                kills += 1;
            }
            assert_eq!(scene.verdict(&backup).await.verdict, "good", "{why}");
            let deletion = scene.to_be_deleted(&backup).await;
            scene.run(&deletion).await.unwrap();
            assert!(scene.sim.images("b", "volumes2").is_empty(), "{why}");
            if !killed {
                break;
            }
        }
    }
    assert!(kills > 3, "{kills}");
    explored(kills);
}
