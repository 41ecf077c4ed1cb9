//! Backups of, to and from what is not as it should be: the right statuses, a message that says what to do, nothing
//! left behind, and nothing destroyed.

use std::time::Duration;

use scoria::backup::status;
use scoria::context::RequestContext;
use scoria::error::Code;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{ImageWrite, ObjectRemove, ObjectWrite, SnapRemove};
use scoria::rbd::sim::{Fault, When};
use scoria::rpc::synthetic;

use crate::backup_scene::{IMPATIENT, MIB, Scene, Work};
use crate::seed;

const DRIVER: &str = "cinder.backup.drivers.ceph.CephBackupDriver";

/// A creation failed: the row says why, the volume is free, and nothing is left of it.
async fn failed(scene: &Scene, backup: &str, volume: &str, detail: &str, why: &str) {
    assert_eq!(scene.status("backups", backup).await, "error");
    let reason = scene.column("backups", "fail_reason", backup).await;
    assert!(reason.contains(why), "{reason}");
    assert_eq!(scene.column("volumes", "status", volume).await, "available");
    assert_eq!(scene.column("volumes", "previous_status", volume).await, "error_backing-up");
    assert!(scene.is_told(backup, "013", detail).await);
    assert!(!scene.points(volume).iter().any(|name| name.contains(backup)), "{:?}", scene.points(volume));
    assert!(!scene.bases().iter().any(|name| name.contains(backup)), "{:?}", scene.bases());
    assert!(!scene.has_object(&format!("backup.{backup}.sums")).await);
    assert!(scene.open().await.is_empty());
}

#[tokio::test]
async fn a_backup_that_cannot_be_made_leaves_nothing() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, MIB).await;
    let mut number = 0;
    for (request, kind) in [
        ("SnapCreate", RbdErrorKind::Other),
        ("ImageCreate", RbdErrorKind::NoSpace),
        ("SumsBegin", RbdErrorKind::NoSpace),
        ("DeltaCopy", RbdErrorKind::NoSpace),
        ("ObjectWrite", RbdErrorKind::Permission),
    ] {
        number += 1;
        let backup = scene.ordered(number, &volume, None, None).await;
        scene.sim.inject(Fault::on(request).fails(When::Before, kind));
        scene.run(&Work::Create(backup.clone())).await.unwrap_err();
        scene.sim.clear_faults();
        failed(&scene, &backup, &volume, "020", "").await;
        assert!(scene.bases().is_empty(), "{request}: {:?}", scene.bases());
    }
}

#[tokio::test]
async fn a_site_that_dies_in_the_midst_fails_the_backup_and_the_deletion_tidies_up() {
    let scene = Scene::with(IMPATIENT).await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, MIB).await;
    for (number, site) in [(1, "a"), (2, "b")] {
        let backup = scene.ordered(number, &volume, None, None).await;
        let unreachable = RbdErrorKind::Unreachable;
        for request in ["DeltaCopy", "SnapRemove", "ImageRemove", "ObjectRemove"] {
            let fault = Fault::on(request).fails(When::Before, unreachable).always();
            scene.sim.inject(if request == "DeltaCopy" { fault } else { fault.site(site) });
        }
        scene.run(&Work::Create(backup.clone())).await.unwrap_err();
        assert_eq!(scene.status("backups", &backup).await, "error", "{site}");
        assert_eq!(scene.status("volumes", &volume).await, "available", "{site}");
        assert!(scene.open().await.is_empty());
        scene.sim.clear_faults();
        let deletion = scene.to_be_deleted(&backup).await;
        scene.run(&deletion).await.unwrap();
        assert_eq!(scene.column("backups", "deleted", &backup).await, "1");
        assert!(scene.bases().is_empty() && scene.points(&volume).is_empty(), "{site}: {:?}", scene.bases());
    }
}

#[tokio::test]
async fn what_is_not_there_cannot_be_backed_up_and_what_is_lost_not_continued() {
    let scene = Scene::new().await;
    // The volume has no image.
    let bare = seed::volume(&scene.test, 9, "available", "").await;
    let backup = scene.ordered(9, &bare, None, None).await;
    scene.run(&Work::Create(backup.clone())).await.unwrap_err();
    assert_eq!(scene.status("backups", &backup).await, "error");
    assert!(scene.column("backups", "fail_reason", &backup).await.contains("no image"));

    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, MIB).await;
    // The snapshot is a row only.
    let snapshot = seed::snapshot(&scene.test, 1, &volume, "available").await;
    let backup = scene.ordered(1, &volume, None, Some(&snapshot)).await;
    let error = scene.run(&Work::Create(backup.clone())).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidSnapshot);
    assert_eq!(scene.status("snapshots", &snapshot).await, "available");
    assert!(scene.is_told(&backup, "013", "017").await);

    // Somebody has taken the volume out of the status that the API has given it.
    let backup = scene.ordered(2, &volume, None, None).await;
    scene.test.sql(&format!("UPDATE volumes SET status='available' WHERE id='{volume}'")).await;
    let error = scene.run(&Work::Create(backup.clone())).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidVolume);
    assert!(scene.is_told(&backup, "013", "017").await);
    assert!(scene.points(&volume).is_empty() && scene.bases().is_empty());

    // The parent's row is gone, then its data.
    let backup = scene.ordered(3, &volume, Some(&seed::id(4, 77)), None).await;
    let error = scene.run(&Work::Create(backup.clone())).await.unwrap_err();
    assert_eq!(error.code(), Code::BackupNotFound);
    failed(&scene, &backup, &volume, "020", "make a full backup").await;
    let parent = scene.made(4, &volume, None).await;
    let (base, snap) = {
        let base = scene.bases().remove(0);
        let snap = scene.sim.image("b", "backups", &base).unwrap().snaps.remove(0);
        (base, snap)
    };
    let remove = SnapRemove { pool: "backups".into(), image: base.clone(), snap };
    scene.sim.site("b").call(remove).await.unwrap();
    let backup = scene.ordered(5, &volume, Some(&parent), None).await;
    let error = scene.run(&Work::Create(backup.clone())).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidBackup);
    failed(&scene, &backup, &volume, "020", "make a full backup").await;
    assert_eq!(scene.bases(), [base], "what is not ours to remove stays");
}

#[tokio::test]
async fn a_chain_goes_on_when_the_volume_has_lost_the_snapshot_of_the_parent() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 5 * MIB).await;
    let full = scene.made(1, &volume, None).await;
    scene.write(&volume, MIB, 8, MIB).await;
    let second = scene.made(2, &volume, Some(&full)).await;
    let other = scene.volume(2, "available").await;
    let image = format!("volume-{volume}");
    // First the newest is lost, so that the oldest is the common point; then all are.
    for (number, lost) in [(3u8, 1), (4, 3)] {
        scene.write(&volume, u64::from(number) * 300 * MIB, number, MIB).await;
        for snap in scene.points(&volume).into_iter().rev().take(lost) {
            let remove = SnapRemove { pool: "volumes".into(), image: image.clone(), snap };
            scene.sim.site("a").call(remove).await.unwrap();
        }
        let more = scene.made(number.into(), &volume, Some(&second)).await;
        assert_eq!(scene.column("backups", "parent_id", &more).await, second, "no forced full backup");
        let restoration = scene.to_be_restored(&more, &other).await;
        scene.run(&restoration).await.unwrap();
        assert_eq!(scene.content(&other), scene.content(&volume));
        assert_eq!(scene.verdict(&more).await.verdict, "good");
        assert_eq!(scene.bases().len(), 1);
    }
}

#[tokio::test]
async fn a_volume_that_cannot_take_a_backup_is_told_why() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let backup = scene.made(1, &volume, None).await;
    let target = scene.volume(2, "available").await;
    scene.write(&target, 0, 1, MIB).await;
    let before = scene.content(&target);
    let refused = async |why: &str, code: Code| {
        let work = scene.to_be_restored(&backup, &target).await;
        let error = scene.run(&work).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.user().contains(why), "{error}");
        assert_eq!(scene.status("backups", &backup).await, "available");
        assert_eq!(scene.status("volumes", &target).await, "error_restoring");
        assert_eq!(scene.content(&target), before, "nothing was written");
        assert!(scene.open().await.is_empty());
    };
    // In use.
    let address = scene.sim.occupy("a", "volumes", &format!("volume-{target}")).unwrap();
    refused("detach it", Code::VolumeBusy).await;
    scene.sim.release("a", "volumes", &format!("volume-{target}"), &address);
    // Its metadata are of a version that nobody knows, and its object is none at all.
    for data in ["{\"version\": 9}", "no JSON"] {
        let write = ObjectWrite {
            pool: "backups".into(),
            object: format!("backup.{backup}.meta"),
            data: data.as_bytes().to_vec(),
        };
        scene.sim.site("b").call(write).await.unwrap();
        refused("cannot be read", Code::InvalidBackup).await;
    }
    let remove = ObjectRemove { pool: "backups".into(), object: format!("backup.{backup}.meta") };
    scene.sim.site("b").call(remove).await.unwrap();
    // Its data is not what was written.
    spoil(&scene, 2 * MIB).await;
    assert_eq!(scene.verdict(&backup).await.verdict, "wrong");
    assert_eq!(scene.verdict(&backup).await.wrong_offsets, [2 * MIB]);
    let work = scene.to_be_restored(&backup, &target).await;
    let error = scene.run(&work).await.unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    assert_eq!(scene.status("volumes", &target).await, "error_restoring");
    assert_eq!(scene.status("backups", &backup).await, "available");
    assert!(scene.is_told(&backup, "015", "026").await);
}

/// The only backup there is holds something else at this place than what was written.
async fn spoil(scene: &Scene, offset: u64) {
    let (site, pool) = (scene.sim.site("b"), "backups".to_owned());
    let image = scene.bases().remove(0);
    let snap = scene.sim.image("b", "backups", &image).unwrap().snaps.remove(0);
    let remove = SnapRemove { pool: pool.clone(), image: image.clone(), snap: snap.clone() };
    site.call(remove).await.unwrap();
    let write = ImageWrite { pool: pool.clone(), image: image.clone(), offset, data: vec![66; 512] };
    site.call(write).await.unwrap();
    let place = scoria::volume::image::Place { site, pool };
    place.snapshot(&image, &snap, scoria::volume::image::Attempt::First).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_is_restored_all_the_same_when_nothing_is_to_be_compared() {
    let mut scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let content = scene.content(&volume);
    let backup = scene.made(1, &volume, None).await;
    let target = scene.volume(2, "available").await;
    spoil(&scene, 2 * MIB).await;
    let refused = scene.to_be_restored(&backup, &target).await;
    scene.run(&refused).await.unwrap_err();
    assert_eq!(scene.status("volumes", &target).await, "error_restoring");
    scene.reconfigure("[scoria]\nscoria_backup_verify_on_restore=false");
    let work = scene.to_be_restored(&backup, &target).await;
    scene.run(&work).await.unwrap();
    assert_eq!(scene.status("volumes", &target).await, "available");
    // All but what is wrong is what it was.
    assert_ne!(scene.content(&target), content);
    scene.write(&target, 2 * MIB, 7, 512).await;
    assert_eq!(scene.content(&target), content);
    assert_eq!(scene.verdict(&backup).await.verdict, "wrong", "to verify it is another matter");
}

#[tokio::test]
async fn a_backup_that_is_being_made_is_called_off_by_its_deletion() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, MIB).await;
    let backup = scene.ordered(1, &volume, None, None).await;
    scene.sim.inject(Fault::on("DeltaCopy").delays(Duration::from_millis(500)));
    let creation = Work::Create(backup.clone());
    let deletion = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let work = scene.to_be_deleted(&backup).await;
        scene.run(&work).await
    };
    let (made, deleted) = tokio::join!(scene.run(&creation), deletion);
    made.unwrap();
    deleted.unwrap();
    assert_eq!(scene.column("backups", "deleted", &backup).await, "1");
    assert_eq!(scene.status("volumes", &volume).await, "available");
    assert!(scene.bases().is_empty() && scene.points(&volume).is_empty());
    assert!(scene.messages().await.is_empty() && scene.open().await.is_empty());
}

#[tokio::test]
async fn a_restoration_is_called_off_by_the_deletion_of_its_backup() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, MIB).await;
    let backup = scene.made(1, &volume, None).await;
    let target = scene.volume(2, "available").await;
    scene.sim.inject(Fault::on("DeltaCopy").delays(Duration::from_millis(500)));
    let restoration = scene.to_be_restored(&backup, &target).await;
    // Of several parts, so that there is a part that is not begun.
    let deletion = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let work = scene.to_be_deleted(&backup).await;
        scene.run(&work).await
    };
    let (_, deleted) = tokio::join!(scene.run(&restoration), deletion);
    deleted.unwrap();
    assert_eq!(scene.column("backups", "deleted", &backup).await, "1");
    let status = scene.status("volumes", &target).await;
    assert!(
        ["available", "error"].contains(&status.as_str()),
        "{status}: it came to its end, or was called off"
    );
    assert!(scene.bases().is_empty() && scene.open().await.is_empty());
}

/// `_cleanup_incomplete_backup_operations`: what a stock service has left, of which there is no entry in the journal.
#[tokio::test]
async fn rows_that_nobody_works_on_are_seen_to_at_the_start() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "backing-up").await;
    let filled = scene.volume(2, "restoring-backup").await;
    let row = async |number: u32, status: &str, host: &str, more: &str| {
        let id = seed::id(4, number);
        scene
            .test
            .sql(&format!(
                "INSERT INTO backups SET id='{id}', volume_id='{volume}', status='{status}', host='{host}', size=2,
                   project_id='{}', num_dependent_backups=0, deleted=0 {more}",
                seed::PROJECT
            ))
            .await;
        id
    };
    let ours = format!(", service='{DRIVER}'");
    let creating = row(1, "creating", "node1", &ours).await;
    let queued = row(2, "creating", "node1", "").await;
    let restoring = row(3, "restoring", "node1", &format!("{ours}, restore_volume_id='{filled}'")).await;
    let deleting = row(4, "deleting", "node1", &ours).await;
    let encrypted = row(5, "deleting", "node1", &format!("{ours}, encryption_key_id='k'")).await;
    let elsewhere = row(6, "creating", "node2", &ours).await;
    let busy = row(7, "creating", "node1", &ours).await;
    scene.accepted(&Work::Create(busy.clone())).await;
    let context = RequestContext::admin();
    status::at_start(&scene.backups, &context, &synthetic::delete_backup).await.unwrap();
    for (id, expected) in [
        (&creating, "error"),
        (&queued, "creating"),
        (&restoring, "available"),
        (&encrypted, "error_deleting"),
        (&elsewhere, "creating"),
        (&busy, "creating"),
    ] {
        assert_eq!(scene.status("backups", id).await, expected, "{id}");
    }
    assert_eq!(scene.status("volumes", &volume).await, "available");
    assert_eq!(scene.status("volumes", &filled).await, "error_restoring");
    let operation = scene.backups.journal.adopt(&scene.backups.scope()).await.unwrap().remove(0);
    assert_eq!(operation.method(), "delete_backup");
    scene.carry_out(&operation, &Work::Delete(deleting.clone())).await.unwrap();
    assert_eq!(scene.column("backups", "deleted", &deleting).await, "1");
}
