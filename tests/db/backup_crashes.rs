//! The backup service is killed before, in the midst of and after each of its calls to Ceph, and the next instance
//! goes on: the backup is there, once, and whole.

use scoria::rbd::sim::When;
use scoria::rbd::sim::crash::explored;

use crate::backup_scene::{MIB, Scene, Work};
use crate::seed;
use crate::stage::{full, lives};

/// In CI's sample in the midst of a call, which is after it where it is one operation of an OSD.
fn moments() -> &'static [When] {
    if full() { &[When::Before, When::Midway, When::After] } else { &[When::Midway] }
}

/// Nothing of a backup is left: rows, images, snapshots, objects, and what waits in the journal.
async fn gone(scene: &Scene, backup: &str, volume: &str, why: &str) {
    assert_eq!(scene.column("backups", "deleted", backup).await, "1", "{why}");
    assert!(
        !scene.points(volume).iter().any(|name| name.contains(backup)),
        "{why}: {:?}",
        scene.points(volume)
    );
    for base in scene.bases() {
        let seen = scene.sim.image("b", "backups", &base).unwrap();
        assert!(!seen.snaps.iter().any(|name| name.contains(backup)), "{why}: {base} {:?}", seen.snaps);
    }
    for object in ["meta", "sums"] {
        assert!(!scene.has_object(&format!("backup.{backup}.{object}")).await, "{why}: {object}");
    }
    assert!(scene.open().await.is_empty(), "{why}: {:?}", scene.open().await);
}

#[tokio::test]
async fn a_full_backup_is_made_wherever_the_service_dies() {
    let mut scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    scene.write(&volume, 1500 * MIB, 8, MIB).await;
    let (mut number, mut kills) = (0, 0);
    for &when in moments() {
        for k in 1.. {
            number += 1;
            let why = format!("{when:?} {k}");
            let backup = scene.ordered(number, &volume, None, None).await;
            let (killed, ended) = scene.dies(k, when, &Work::Create(backup.clone())).await;
            ended.unwrap_or_else(|e| panic!("{why}: {e}"));
            assert_eq!(scene.status("backups", &backup).await, "available", "{why}");
            assert_eq!(scene.status("volumes", &volume).await, "available", "{why}");
            assert_eq!(scene.points(&volume).len(), 1, "{why}: {:?}", scene.points(&volume));
            assert_eq!(scene.bases().len(), 1, "{why}: {:?}", scene.bases());
            let base = scene.sim.image("b", "backups", &scene.bases()[0]).unwrap();
            assert_eq!((base.checksum, base.snaps.len()), (scene.content(&volume), 1), "{why}");
            assert_eq!(scene.verdict(&backup).await.verdict, "good", "{why}");
            let deletion = scene.to_be_deleted(&backup).await;
            scene.run(&deletion).await.unwrap();
            gone(&scene, &backup, &volume, &why).await;
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 6, "{kills}");
    explored(kills);
    assert!(scene.bases().is_empty() && scene.messages().await.is_empty());
}

#[tokio::test]
async fn an_incremental_backup_is_made_wherever_the_service_dies() {
    let mut scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let full = scene.made(1, &volume, None).await;
    let before = scene.content(&volume);
    scene.write(&volume, 2 * MIB, 9, MIB).await;
    scene.write(&volume, 700 * MIB, 1, MIB).await;
    let other = scene.volume(2, "available").await;
    let (mut number, mut kills) = (1, 0);
    for &when in moments() {
        for k in 1.. {
            number += 1;
            let why = format!("{when:?} {k}");
            let backup = scene.ordered(number, &volume, Some(&full), None).await;
            let (killed, ended) = scene.dies(k, when, &Work::Create(backup.clone())).await;
            ended.unwrap_or_else(|e| panic!("{why}: {e}"));
            assert_eq!(scene.status("backups", &backup).await, "available", "{why}");
            assert_eq!(scene.column("backups", "num_dependent_backups", &full).await, "1", "{why}");
            assert_eq!((scene.points(&volume).len(), scene.bases().len()), (2, 1), "{why}");
            assert_eq!(scene.verdict(&backup).await.verdict, "good", "{why}");
            assert_eq!(scene.verdict(&full).await.verdict, "good", "{why}");
            let restoration = scene.to_be_restored(&backup, &other).await;
            scene.run(&restoration).await.unwrap();
            assert_eq!(scene.content(&other), scene.content(&volume), "{why}");
            let deletion = scene.to_be_deleted(&backup).await;
            scene.run(&deletion).await.unwrap();
            gone(&scene, &backup, &volume, &why).await;
            assert_eq!(scene.column("backups", "num_dependent_backups", &full).await, "0", "{why}");
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 5, "{kills}");
    explored(kills);
    // The parent is what it was.
    let restoration = scene.to_be_restored(&full, &other).await;
    scene.run(&restoration).await.unwrap();
    assert_eq!(scene.content(&other), before);
}

#[tokio::test]
async fn a_volume_is_filled_wherever_the_service_dies() {
    let mut scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    scene.write(&volume, 1999 * MIB, 3, MIB).await;
    let content = scene.content(&volume);
    let backup = scene.made(1, &volume, None).await;
    let other = scene.volume(2, "available").await;
    let mut kills = 0;
    for &when in moments() {
        for k in 1.. {
            let why = format!("{when:?} {k}");
            scene.write(&other, 500 * MIB, 5, MIB).await;
            scene.write(&other, 0, 5, 4 * MIB).await;
            let work = scene.to_be_restored(&backup, &other).await;
            let (killed, ended) = scene.dies(k, when, &work).await;
            ended.unwrap_or_else(|e| panic!("{why}: {e}"));
            assert_eq!(scene.status("backups", &backup).await, "available", "{why}");
            assert_eq!(scene.status("volumes", &other).await, "available", "{why}");
            assert_eq!(scene.content(&other), content, "{why}");
            assert!(scene.open().await.is_empty(), "{why}");
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 2, "{kills}");
    explored(kills);
    assert_eq!(scene.bases().len(), 1);
}

#[tokio::test]
async fn a_backup_is_deleted_wherever_the_service_dies() {
    let mut scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let content = scene.content(&volume);
    let (mut number, mut kills) = (0, 0);
    for &when in moments() {
        for k in 1.. {
            let why = format!("{when:?} {k}");
            let full = scene.made(number + 1, &volume, None).await;
            let more = scene.made(number + 2, &volume, Some(&full)).await;
            number += 2;
            let mut last = true;
            for (backup, left) in [(&full, Some(&more)), (&more, None)] {
                let work = scene.to_be_deleted(backup).await;
                let (killed, ended) = scene.dies(k, when, &work).await;
                ended.unwrap_or_else(|e| panic!("{why}: {e}"));
                gone(&scene, backup, &volume, &why).await;
                if let Some(left) = left {
                    assert_eq!(scene.verdict(left).await.verdict, "good", "{why}");
                }
                last &= !killed;
                kills += usize::from(killed);
            }
            assert!(scene.bases().is_empty() && scene.points(&volume).is_empty(), "{why}");
            if last {
                break;
            }
        }
    }
    assert!(kills > 5, "{kills}");
    explored(kills);
    assert_eq!(scene.content(&volume), content);
    assert!(scene.messages().await.is_empty());
}

/// Killed at one call after the other of one and the same backup of several parts.
#[tokio::test]
async fn a_large_backup_goes_on_at_the_last_confirmed_part() {
    let mut scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    // Of each piece that has a byte all is read.
    for piece in 0..300u64 {
        scene.write(&volume, piece * 4 * MIB, 1 + u8::try_from(piece % 200).unwrap(), 1).await;
    }
    let backup = scene.ordered(1, &volume, None, None).await;
    let work = Work::Create(backup.clone());
    let mut operation = scene.accepted(&work).await;
    let mut kills = 0;
    for (k, when) in lives() {
        scene.sim.kill_at(k, when);
        let killed = tokio::select! {
            biased;
            () = scene.sim.crashed() => true,
            ended = scene.carry_out(&operation, &work) => { ended.unwrap(); false }
        };
        scene.sim.restart();
        if !killed {
            break;
        }
        kills += 1;
        scene.restart();
        operation = scene.backups.journal.adopt(&scene.backups.scope()).await.unwrap().remove(0);
    }
    assert!(kills > 3, "{kills}");
    explored(kills);
    assert_eq!(scene.verdict(&backup).await.verdict, "good");
    let base = scene.sim.image("b", "backups", &scene.bases()[0]).unwrap();
    assert_eq!(base.checksum, scene.content(&volume));
    // 600 MiB are three parts: whatever was confirmed is not asked for again.
    let parts = scene.sim.count("DeltaCopy");
    assert!(parts <= 3 + kills, "{parts} parts with {kills} deaths");
    assert_eq!(scene.status("volumes", &volume).await, "available");
    assert_eq!(scene.column("backups", "host", &seed::id(4, 1)).await, "node1");
}
