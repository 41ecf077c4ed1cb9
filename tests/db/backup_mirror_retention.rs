//! Retention of backups by mirroring: each pin is whole in itself, so any of them may go, and what stays is what it was,
//! wherever the service dies meanwhile.

use scoria::backup::retention::rule::Fate;
use scoria::backup::retention::{Reach, preview};
use scoria::rbd::sim::When;
use scoria::rbd::sim::crash::explored;

use crate::backup_mirror::{MODES, STEP, left, pin, pinned, points_there};
use crate::backup_scene::{MIB, Scene};
use crate::policy_scene::{Serving, apply, chain, dated, dies, keep};
use crate::stage::full;

const OPTIONS: &str = "backup_method=mirror";

/// These backups are there and no others, in one chain, and each holds what the volume held.
async fn whole(scene: &Scene, volume: &str, other: &str, stay: &[&(String, u64)], why: &str) {
    // What a former one was about to do when it was dropped, this one takes up.
    let serving = Serving::of(scene);
    serving
        .until(async {
            while !scene.open().await.is_empty() {
                tokio::time::sleep(STEP).await;
            }
        })
        .await;
    let sql =
        format!("SELECT id FROM backups WHERE deleted=0 AND volume_id='{volume}' ORDER BY data_timestamp");
    let ids: Vec<String> = scene.test.rows(&sql).await.into_iter().map(|mut row| row.remove(0)).collect();
    assert_eq!(ids, stay.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), "{why}");
    let mut pins: Vec<String> = stay.iter().map(|(id, _)| pin(volume, id)).collect();
    pins.sort();
    let mut found = scene.bases();
    found.sort();
    assert_eq!(found, pins, "{why}");
    let newest = &stay[stay.len() - 1].0;
    let points = scene.points(volume);
    assert!(points.len() == 1 && points[0].contains(newest.as_str()), "{why}: {points:?}");
    scene.eventually(why, || points_there(scene, volume) == points).await;
    let mut parent: Option<&str> = None;
    for (number, (id, content)) in stay.iter().enumerate() {
        let row = scene.backup(id).await;
        assert_eq!(row.parent_id.as_deref(), parent, "{why}");
        assert_eq!(row.num_dependent_backups, i32::from(number + 1 < stay.len()), "{why}: {id}");
        assert_eq!(pinned(scene, volume, id), *content, "{why}: {id}");
        assert_eq!(scene.verdict(id).await.verdict, "good", "{why}");
        let work = scene.to_be_restored(id, other).await;
        scene.run(&work).await.unwrap();
        assert_eq!(scene.content(other), *content, "{why}: {id}");
        parent = Some(id);
    }
}

#[tokio::test]
#[ignore = "whole matrix: tools/test --full"]
async fn any_point_goes_and_the_others_are_whole() {
    for mode in MODES {
        let scene = Scene::mirroring(OPTIONS, STEP).await;
        let serving = Serving::of(&scene);
        let volume = scene.mirrored(1, mode).await;
        let other = scene.volume(2, "available").await;
        let made = chain(&scene, &serving, &volume, 4).await;
        // Two of one day: the older of them is in the middle.
        keep(&scene, &volume, None, Some(9)).await;
        dated(&scene, &made[1].0, "2026-01-03 08:00").await;
        let found =
            scene.test.db.read("t", async |c| preview(c, &volume, Reach::default()).await).await.unwrap();
        let fates: Vec<Fate> = found.backups.iter().map(|verdict| verdict.fate).collect();
        assert_eq!(fates, [Fate::Kept, Fate::Kept, Fate::Removed, Fate::Kept]);
        assert_eq!(found.backups[2].id, made[1].0);
        let answer = serving.carry_out(apply(&volume)).await.unwrap();
        assert_eq!(answer["removed"][0]["backup"], made[1].0.as_str());
        whole(&scene, &volume, &other, &[&made[0], &made[2], &made[3]], "the middle").await;
        // The one that all others go on from.
        keep(&scene, &volume, Some(2), None).await;
        serving.carry_out(apply(&volume)).await.unwrap();
        whole(&scene, &volume, &other, &[&made[2], &made[3]], "the first").await;
        // What comes next, with retention behind it.
        scene.write(&volume, 1500 * MIB, 99, MIB).await;
        let next = (serving.made(&volume, true).await, scene.content(&volume));
        serving.carry_out(apply(&volume)).await.unwrap();
        whole(&scene, &volume, &other, &[&made[3], &next], "the next").await;
        // Those that are deleted while their checksums are being computed, too.
        for (backup, _) in [&next, &made[3]] {
            let work = scene.to_be_deleted(backup).await;
            scene.run(&work).await.unwrap();
        }
        scene.eventually("the copy follows", || points_there(&scene, &volume).is_empty()).await;
        let last = Serving::of(&scene);
        last.until(async {
            while !scene.open().await.is_empty() {
                tokio::time::sleep(STEP).await;
            }
        })
        .await;
        assert!(left(&scene, &volume).await.is_empty(), "{:?}", left(&scene, &volume).await);
    }
}

#[tokio::test]
async fn retention_of_pins_is_applied_wherever_the_service_dies() {
    let all = MODES;
    let (moments, modes, step): (&[When], _, _) = match full() {
        true => (&[When::Before, When::Midway, When::After], &all[..], 1),
        false => (&[When::Midway], &all[1..], 5),
    };
    let mut kills = 0;
    for mode in modes {
        let scene = Scene::mirroring(OPTIONS, STEP).await;
        let mut number = 0;
        for &when in moments {
            for k in (1..).step_by(step) {
                let why = format!("{mode:?} {when:?} {k}");
                let serving = Serving::of(&scene);
                number += 2;
                let volume = scene.mirrored(number, *mode).await;
                let other = scene.volume(number + 1, "available").await;
                let made = chain(&scene, &serving, &volume, 3).await;
                keep(&scene, &volume, Some(1), Some(1)).await;
                let (killed, outcome) = dies(&scene, k, when, apply(&volume)).await;
                assert_eq!(outcome, "succeeded", "{why}: {}", scene.sim.log_text());
                whole(&scene, &volume, &other, &[&made[2]], &why).await;
                let work = scene.to_be_deleted(&made[2].0).await;
                scene.run(&work).await.unwrap();
                assert!(scene.bases().is_empty(), "{why}");
                kills += usize::from(killed);
                if !killed {
                    break;
                }
            }
        }
    }
    assert!(kills > 1, "{kills}");
    explored(kills);
}
