//! Backups by mirroring: what is pinned is the volume as it was, and stays so whatever becomes of volume and copy; and
//! when the method is used, and when not.

use std::time::Duration;

use scoria::error::Code;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::*;
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::MirrorMode;

use crate::backup_scene::{IMPATIENT, MIB, Scene, Work};
use crate::seed::BACKEND;

pub const MODES: [MirrorMode; 2] = [MirrorMode::Journal, MirrorMode::Snapshot];
pub const STEP: Duration = Duration::from_millis(100);
const MIRROR: &str = "scoria.backup.drivers.ceph.Mirror";
const DIFF: &str = "cinder.backup.drivers.ceph.CephBackupDriver";

pub fn pin(volume: &str, backup: &str) -> String {
    format!("scoria-pin-{volume}.{backup}")
}

/// Checksum of what a backup holds.
pub fn pinned(scene: &Scene, volume: &str, backup: &str) -> u64 {
    scene.sim.image("b", "backups", &pin(volume, backup)).expect("the pin").checksum
}

/// Snapshots of backups on the volume's copy.
pub fn points_there(scene: &Scene, volume: &str) -> Vec<String> {
    let copy = scene.sim.image("b", "volumes", &format!("volume-{volume}"));
    let snaps = copy.map(|copy| copy.snaps).unwrap_or_default();
    snaps.into_iter().filter(|name| name.starts_with("backup.")).collect()
}

/// What is left of backups of a volume, anywhere.
pub async fn left(scene: &Scene, volume: &str) -> Vec<String> {
    let mut left = scene.bases();
    for site in ["a", "b"] {
        if let Some(image) = scene.sim.image(site, "volumes", &format!("volume-{volume}")) {
            left.extend(image.snaps.into_iter().filter(|name| name.starts_with("backup.")));
        }
        let trash = scene.sim.site(site).call(TrashList { pool: "volumes".into() }).await.unwrap();
        left.extend(trash.into_iter().map(|entry| format!("{site} trash {}", entry.name)));
    }
    left.extend(scene.open().await.concat());
    left
}

async fn restored(scene: &Scene, backup: &str, volume: &str) -> u64 {
    let work = scene.to_be_restored(backup, volume).await;
    scene.run(&work).await.unwrap();
    assert_eq!(scene.status("volumes", volume).await, "available");
    scene.content(volume)
}

async fn deleted(scene: &Scene, backup: &str) {
    let work = scene.to_be_deleted(backup).await;
    scene.run(&work).await.unwrap();
    assert_eq!(scene.column("backups", "deleted", backup).await, "1");
}

#[tokio::test]
async fn points_are_pinned_without_copying_and_outlive_resync_and_volume() {
    for mode in MODES {
        let scene = Scene::mirroring("backup_method=mirror", STEP).await;
        let volume = scene.mirrored(1, mode).await;
        let mut made = Vec::new();
        let mut parent: Option<String> = None;
        for number in 1..=3u8 {
            scene.write(&volume, u64::from(number) * 400 * MIB, number, MIB).await;
            let content = scene.content(&volume);
            let backup = scene.made(number.into(), &volume, parent.as_deref()).await;
            scene.write(&volume, u64::from(number) * 400 * MIB, 99, MIB).await;
            assert_eq!(pinned(&scene, &volume, &backup), content, "{mode:?}");
            assert_eq!(scene.column("backups", "service", &backup).await, MIRROR);
            let noted = format!("{{\"base\": \"{}\", \"unverified\": true}}", pin(&volume, &backup));
            assert_eq!(scene.column("backups", "service_metadata", &backup).await, noted);
            assert!(scene.has_object(&format!("backup.{backup}.meta")).await);
            if let Some(parent) = &parent {
                assert_eq!(&scene.column("backups", "parent_id", &backup).await, parent);
                assert_eq!(scene.column("backups", "num_dependent_backups", parent).await, "1");
            }
            assert_eq!(scene.points(&volume).len(), 1, "only the newest: {:?}", scene.points(&volume));
            parent = Some(backup.clone());
            made.push((backup, content));
        }
        assert_eq!(scene.sim.count("DeltaCopy"), 0, "no byte has passed through the service");
        let newest = scene.points(&volume);
        scene.eventually("the copy has no more points", || points_there(&scene, &volume) == newest).await;

        // Checksums come later.
        assert_eq!(scene.verdict(&made[0].0).await.verdict, "unverified");
        scene.settle().await;
        for (backup, content) in &made {
            assert_eq!(scene.verdict(backup).await.verdict, "good");
            let noted = scene.column("backups", "service_metadata", backup).await;
            assert!(!noted.contains("unverified"), "{noted}");
            assert_eq!(pinned(&scene, &volume, backup), *content);
        }
        assert!(scene.open().await.is_empty(), "{:?}", scene.open().await);

        // Into the volume itself: of the newest only what has changed since.
        let image = format!("volume-{volume}");
        assert_eq!(restored(&scene, &made[2].0, &volume).await, made[2].1);
        assert_eq!(restored(&scene, &made[0].0, &volume).await, made[0].1);
        let other = scene.volume(2, "available").await;
        scene.write(&other, 100 * MIB, 5, MIB).await;
        assert_eq!(restored(&scene, &made[1].0, &other).await, made[1].1);

        // The copy is thrown away and made anew, and then the volume is deleted.
        scene
            .sim
            .site("b")
            .call(MirrorResync { pool: "volumes".into(), image: image.clone() })
            .await
            .unwrap();
        let points = scene.points(&volume);
        for snap in points {
            let remove = SnapRemove { pool: "volumes".into(), image: image.clone(), snap };
            scene.sim.site("a").call(remove).await.unwrap();
        }
        // What a first copy keeps of it while it is made goes with that.
        let end = tokio::time::Instant::now() + Duration::from_secs(120);
        let remove = ImageRemove { pool: "volumes".into(), image: image.clone() };
        while let Err(error) = scene.sim.site("a").call(remove.clone()).await {
            assert!(tokio::time::Instant::now() < end, "{error}");
            tokio::time::sleep(STEP).await;
        }
        scene.eventually("the copy is gone", || scene.sim.image("b", "volumes", &image).is_none()).await;
        scene.test.sql(&format!("UPDATE volumes SET deleted=1 WHERE id='{volume}'")).await;
        for (backup, content) in &made {
            assert_eq!(pinned(&scene, &volume, backup), *content, "{mode:?}");
            assert_eq!(restored(&scene, backup, &other).await, *content);
            assert_eq!(scene.verdict(backup).await.verdict, "good");
        }
        for (backup, _) in &made {
            deleted(&scene, backup).await;
        }
        // What the resync has left has no owner in mirroring any more, and is no backup's.
        assert!(scene.bases().is_empty() && scene.open().await.is_empty());
        for (backup, _) in &made {
            for object in ["meta", "sums"] {
                assert!(!scene.has_object(&format!("backup.{backup}.{object}")).await);
            }
        }
    }
}

#[tokio::test]
async fn a_snapshots_name_without_its_data_is_not_pinned() {
    for mode in MODES {
        let scene = Scene::mirroring("backup_method=mirror", Duration::from_millis(900)).await;
        let volume = scene.mirrored(1, mode).await;
        scene.write(&volume, 500 * MIB, 8, MIB).await;
        let content = scene.content(&volume);
        let backup = scene.ordered(1, &volume, None, None).await;
        let work = Work::Create(backup.clone());
        let looks = async {
            // Writes go on, and what the copy knows by name only is not taken for the volume.
            let mut early = false;
            for value in 0..200u8 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                scene.write(&volume, 600 * MIB, value, 4096).await;
                early |= !points_there(&scene, &volume).is_empty() && scene.bases().is_empty();
                if !scene.bases().is_empty() {
                    break;
                }
            }
            early
        };
        let (made, early) = tokio::join!(scene.run(&work), looks);
        made.unwrap();
        assert!(early || mode == MirrorMode::Journal, "by snapshots the name is there before the data");
        let read = ImageRead {
            pool: "backups".into(),
            image: pin(&volume, &backup),
            snap: None,
            offset: 500 * MIB,
            length: MIB,
        };
        let data = scene.sim.site("b").call(read).await.unwrap();
        assert!(data.iter().all(|byte| *byte == 8), "{mode:?}");
        let target = scene.volume(2, "available").await;
        let found = restored(&scene, &backup, &target).await;
        // The instant of the snapshot is before, or in the midst of, what was written meanwhile.
        scene.write(&target, 600 * MIB, 0, 4096).await;
        assert_eq!(scene.content(&target), content, "{mode:?} {found}");
    }
}

#[tokio::test]
async fn a_volume_without_a_copy_there_is_refused_or_backed_up_by_differences() {
    let mut scene = Scene::mirroring("backup_method=mirror", STEP).await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, MIB).await;
    let backup = scene.ordered(1, &volume, None, None).await;
    let error = scene.run(&Work::Create(backup.clone())).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidVolume);
    let why = scene.column("backups", "fail_reason", &backup).await;
    assert!(why.contains("not mirrored") && why.contains("backup_method"), "{why}");
    assert_eq!(scene.status("backups", &backup).await, "error");
    assert_eq!(scene.status("volumes", &volume).await, "available");
    assert!(scene.is_told(&backup, "013", "017").await);
    let image = scene.sim.image("a", "volumes", &format!("volume-{volume}")).unwrap();
    assert!(image.mirror.is_none(), "mirroring is not enabled for the sake of a backup");
    deleted(&scene, &backup).await;
    assert!(left(&scene, &volume).await.is_empty());

    scene.reconfigure("backup_method=auto");
    let full = scene.made(2, &volume, None).await;
    assert_eq!(scene.column("backups", "service", &full).await, DIFF);
    // A chain stays what it is, also when its volume is mirrored now.
    let enable = MirrorEnable { pool: "volumes".into(), image: format!("volume-{volume}"), mode: MODES[0] };
    scene.sim.site("a").call(enable).await.unwrap();
    let there = || scene.sim.image("b", "volumes", &format!("volume-{volume}"));
    scene.eventually("the copy", || there().is_some_and(|c| c.checksum == scene.content(&volume))).await;
    let more = scene.made(3, &volume, Some(&full)).await;
    assert_eq!(scene.column("backups", "service", &more).await, DIFF);
    assert_eq!(scene.column("backups", "parent_id", &more).await, full);
    let new = scene.made(4, &volume, None).await;
    assert_eq!(scene.column("backups", "service", &new).await, MIRROR);
    // Under the other methods it is left, and whoever asked for an incremental one is told.
    for (number, option, parent, service) in [(5, "mirror", &more, MIRROR), (6, "diff", &new, DIFF)] {
        scene.reconfigure(&format!("backup_method={option}"));
        let backup = scene.made(number, &volume, Some(parent)).await;
        assert_eq!(scene.column("backups", "service", &backup).await, service);
        assert_eq!(scene.column("backups", "parent_id", &backup).await, "NULL");
        assert!(scene.is_told(&backup, "013", "030").await);
        assert_eq!(scene.column("backups", "num_dependent_backups", &new).await, "0");
        deleted(&scene, &backup).await;
    }
    for backup in [&new, &more, &full] {
        assert_eq!(restored(&scene, backup, &volume).await, scene.content(&volume));
        deleted(&scene, backup).await;
    }
    scene.settle().await;
    scene.eventually("nothing on the copy", || points_there(&scene, &volume).is_empty()).await;
    assert!(left(&scene, &volume).await.is_empty(), "{:?}", left(&scene, &volume).await);
}

#[tokio::test]
async fn a_snapshot_is_pinned_as_it_is_and_stays_the_users() {
    for mode in MODES {
        let scene = Scene::mirroring("backup_method=auto", STEP).await;
        let volume = scene.mirrored(1, mode).await;
        let content = scene.content(&volume);
        let snapshot = crate::seed::snapshot(&scene.test, 1, &volume, "available").await;
        let name = format!("snapshot-{snapshot}");
        let (pool, image) = ("volumes".to_owned(), format!("volume-{volume}"));
        let take = SnapCreate { pool: pool.clone(), image: image.clone(), snap: name.clone() };
        scene.sim.site("a").call(take).await.unwrap();
        scene.write(&volume, 0, 9, MIB).await;
        let backup = scene.ordered(1, &volume, None, Some(&snapshot)).await;
        scene.run(&Work::Create(backup.clone())).await.unwrap();
        assert_eq!(scene.status("snapshots", &snapshot).await, "available");
        assert_eq!(pinned(&scene, &volume, &backup), content, "{mode:?}");
        assert!(scene.points(&volume).is_empty());
        deleted(&scene, &backup).await;
        scene.settle().await;
        let seen = scene.sim.image("a", &pool, &image).unwrap();
        assert_eq!(seen.snaps, [name], "it is not the backup's to remove");
        assert!(left(&scene, &volume).await.is_empty());
    }
}

#[tokio::test]
async fn in_the_pool_for_it_a_backup_becomes_independent_of_the_copy() {
    let options = "backup_method=mirror\n[scoria]\nscoria_backup_flatten_pool=volumes2";
    let scene = Scene::mirroring(options, STEP).await;
    let volume = scene.mirrored(1, MODES[1]).await;
    let content = scene.content(&volume);
    let backup = scene.made(1, &volume, None).await;
    assert_eq!(scene.column("backups", "container", &backup).await, "volumes2");
    let place = scoria::volume::image::Place { site: scene.sim.site("b"), pool: "volumes2".into() };
    assert!(place.stat(&pin(&volume, &backup)).await.unwrap().parent.is_some());
    scene.settle().await;
    assert!(place.stat(&pin(&volume, &backup)).await.unwrap().parent.is_none());
    let held = scene.sim.image("b", "volumes2", &pin(&volume, &backup)).unwrap();
    assert_eq!(held.checksum, content);
    assert_eq!(scene.verdict(&backup).await.verdict, "good");
    scene.write(&volume, 0, 1, MIB).await;
    assert_eq!(restored(&scene, &backup, &volume).await, content);
    deleted(&scene, &backup).await;
    assert!(scene.sim.images("b", "volumes2").is_empty());
}

#[tokio::test]
async fn a_daemon_that_brings_nothing_fails_the_backup_in_time_and_nothing_is_left() {
    let options = "backup_method=mirror\n[scoria]\nscoria_backup_mirror_timeout=1";
    for mode in MODES {
        let scene = Scene::mirroring(options, STEP).await;
        let volume = scene.mirrored(1, mode).await;
        scene.sim.stop_daemon("b");
        let backup = scene.ordered(1, &volume, None, None).await;
        let error = scene.run(&Work::Create(backup.clone())).await.unwrap_err();
        assert_eq!(error.code(), Code::Replication, "{error}");
        let why = scene.column("backups", "fail_reason", &backup).await;
        assert!(why.contains("did not arrive") && why.contains("scoria_backup_mirror_timeout"), "{why}");
        assert_eq!(scene.status("volumes", &volume).await, "available");
        assert!(scene.is_told(&backup, "013", "020").await);
        assert!(left(&scene, &volume).await.is_empty(), "{mode:?}: {:?}", left(&scene, &volume).await);
        // With the daemon at work again the next one is made.
        scene.sim.start_daemon("b");
        scene.write(&volume, 0, 3, MIB).await;
        let content = scene.content(&volume);
        let next = loop_until_made(&scene, &volume).await;
        assert_eq!(pinned(&scene, &volume, &next), content);
    }
}

/// The daemon may need longer than the second that a test gives it.
async fn loop_until_made(scene: &Scene, volume: &str) -> String {
    for number in 10..130 {
        let backup = scene.ordered(number, volume, None, None).await;
        if scene.run(&Work::Create(backup.clone())).await.is_ok() {
            return backup;
        }
    }
    panic!("{}", scene.sim.log_text());
}

#[tokio::test]
async fn what_fails_on_either_site_is_taken_away() {
    let options = format!("{IMPATIENT}backup_method=mirror\n[scoria]\nscoria_backup_mirror_timeout=1");
    let scene = Scene::mirroring(&options, STEP).await;
    let volume = scene.mirrored(1, MODES[1]).await;
    for (number, request, site, kind) in [
        (1, "SnapCreate", "a", RbdErrorKind::NoSpace),
        (2, "MirrorSnapshot", "a", RbdErrorKind::Other),
        (3, "MirrorSnaps", "b", RbdErrorKind::Unreachable),
        (4, "ReplicaClone", "b", RbdErrorKind::NoSpace),
        (5, "SnapCreate", "b", RbdErrorKind::NoSpace),
        (6, "ObjectWrite", "b", RbdErrorKind::NoSpace),
    ] {
        let backup = scene.ordered(number, &volume, None, None).await;
        scene.sim.inject(Fault::on(request).site(site).fails(When::Before, kind).always());
        scene.run(&Work::Create(backup.clone())).await.unwrap_err();
        scene.sim.clear_faults();
        assert_eq!(scene.status("backups", &backup).await, "error", "{request}");
        assert_eq!(scene.status("volumes", &volume).await, "available", "{request}");
        assert!(scene.is_told(&backup, "013", "020").await, "{request}");
        assert!(left(&scene, &volume).await.iter().all(|l| l.starts_with("backup.")), "{request}");
        scene.eventually("the copy follows", || points_there(&scene, &volume).is_empty()).await;
        assert!(left(&scene, &volume).await.is_empty(), "{request}: {:?}", left(&scene, &volume).await);
        deleted(&scene, &backup).await;
    }
    // What cannot be taken away at once is by its deletion.
    let backup = scene.ordered(7, &volume, None, None).await;
    // It is made sure that nothing has the name, before the point is pinned: that is the first removal.
    for (request, nth) in [("ObjectWrite", 1), ("SnapRemove", 1), ("ImageRemove", 2)] {
        scene.sim.inject(Fault::on(request).nth(nth).fails(When::Before, RbdErrorKind::Unreachable).always());
    }
    scene.run(&Work::Create(backup.clone())).await.unwrap_err();
    scene.sim.clear_faults();
    assert_eq!((scene.bases().len(), scene.points(&volume).len()), (1, 1));
    deleted(&scene, &backup).await;
    scene.eventually("the copy follows", || points_there(&scene, &volume).is_empty()).await;
    assert!(left(&scene, &volume).await.is_empty(), "{:?}", left(&scene, &volume).await);
}

#[tokio::test]
async fn a_backup_that_waits_is_called_off_by_its_deletion() {
    let scene = Scene::mirroring("backup_method=mirror", STEP).await;
    let volume = scene.mirrored(1, MODES[0]).await;
    scene.sim.stop_daemon("b");
    let backup = scene.ordered(1, &volume, None, None).await;
    let creation = Work::Create(backup.clone());
    let deletion = async {
        scene.eventually("it waits", || !scene.points(&volume).is_empty()).await;
        let work = scene.to_be_deleted(&backup).await;
        scene.run(&work).await
    };
    let (made, gone) = tokio::join!(scene.run(&creation), deletion);
    made.unwrap();
    gone.unwrap();
    assert_eq!(scene.column("backups", "deleted", &backup).await, "1");
    assert_eq!(scene.status("volumes", &volume).await, "available");
    assert!(left(&scene, &volume).await.is_empty() && scene.messages().await.is_empty());
}

#[tokio::test]
async fn after_a_failover_pins_stay_and_the_chain_goes_on_by_the_other_method() {
    for mode in MODES {
        let scene = Scene::mirroring("backup_method=auto", STEP).await;
        let volume = scene.mirrored(1, mode).await;
        let (pool, image) = ("volumes".to_owned(), format!("volume-{volume}"));
        let first = scene.made(1, &volume, None).await;
        let content = scene.content(&volume);
        scene.settle().await;
        for site in ["a", "b"] {
            let (pool, image) = (pool.clone(), image.clone());
            match site {
                "a" => scene.sim.site(site).call(MirrorDemote { pool, image }).await.unwrap(),
                _ => {
                    let end = tokio::time::Instant::now() + Duration::from_secs(120);
                    loop {
                        let (pool, image) = (pool.clone(), image.clone());
                        let promoted =
                            scene.sim.site(site).call(MirrorPromote { pool, image, force: false }).await;
                        if promoted.is_ok() {
                            break;
                        }
                        assert!(tokio::time::Instant::now() < end, "{promoted:?}");
                        tokio::time::sleep(STEP).await;
                    }
                }
            }
        }
        scene.test.sql(&format!("UPDATE services SET active_backend_id='b' WHERE host='{BACKEND}'")).await;
        assert_eq!(pinned(&scene, &volume, &first), content, "{mode:?}");
        // The site of the backups is that of the volume now.
        let data = vec![4; usize::try_from(MIB).unwrap()];
        let write = ImageWrite { pool: pool.clone(), image: image.clone(), offset: 0, data };
        scene.sim.site("b").call(write).await.unwrap();
        let there = |image: &str| scene.sim.image("b", "volumes", image).unwrap().checksum;
        let content_there = there(&image);
        let second = scene.made(2, &volume, Some(&first)).await;
        assert_eq!(scene.column("backups", "service", &second).await, DIFF);
        assert_eq!(scene.column("backups", "parent_id", &second).await, "NULL");
        assert!(scene.is_told(&second, "013", "030").await);
        for (backup, expected) in [(&first, content), (&second, content_there)] {
            let work = scene.to_be_restored(backup, &volume).await;
            scene.run(&work).await.unwrap();
            assert_eq!(there(&image), expected, "{mode:?}");
            assert_eq!(scene.verdict(backup).await.verdict, "good");
        }
        for backup in [&first, &second] {
            deleted(&scene, backup).await;
        }
        assert!(scene.bases().is_empty() && scene.open().await.is_empty());
        let seen = scene.sim.image("b", "volumes", &image).unwrap();
        assert!(!seen.snaps.iter().any(|name| name.starts_with("backup.")), "{:?}", seen.snaps);
    }
}
