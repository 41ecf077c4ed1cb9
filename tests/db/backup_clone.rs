//! Restorations by a clone: a volume that is served from the site of the backups gets its content without a byte being
//! copied, stands alone afterwards, and whatever cannot be done so is done by copying.

use scoria::error::Code;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::*;
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::{MirrorMode, Parent, features};
use scoria::volume::image::{Attempt, Place, Shape};

use crate::backup_mirror::{MODES, STEP, left, pin, pinned};
use crate::backup_scene::{IMPATIENT, MIB, Scene};
use crate::seed::{self, BACKEND};

pub const OPTIONS: &str = "backup_method=mirror";
const SHAPE: Shape = Shape { order: 22, features: 61 };

/// The pool of the volumes on the site of the backups.
pub fn there(scene: &Scene) -> Place {
    Place { site: scene.sim.site("b"), pool: "volumes".to_owned() }
}

/// A volume whose backups are verified, on a backend that is served from their site; the volume, the backup, and what it
/// holds.
pub async fn failed_over(scene: &Scene, mode: MirrorMode) -> (String, String, u64) {
    let volume = scene.mirrored(1, mode).await;
    let key = MetadataSet {
        pool: "volumes".into(),
        image: format!("volume-{volume}"),
        key: "conf_rbd_qos_iops_limit".into(),
        value: "77".into(),
    };
    scene.sim.site("a").call(key).await.unwrap();
    scene.write(&volume, 700 * MIB, 8, MIB).await;
    let content = scene.content(&volume);
    let backup = scene.made(1, &volume, None).await;
    scene.settle().await;
    assert_eq!(scene.verdict(&backup).await.verdict, "good");
    served_there(scene).await;
    (volume, backup, content)
}

async fn served_there(scene: &Scene) {
    scene.test.sql(&format!("UPDATE services SET active_backend_id='b' WHERE host='{BACKEND}'")).await;
}

/// A new volume on that site, with an image as the volume service makes it.
pub async fn new_volume(scene: &Scene, number: u32, shape: Shape) -> String {
    let id = seed::volume(&scene.test, number, "available", ", previous_status='available'").await;
    there(scene).create(&format!("volume-{id}"), (2 << 30) + 512, shape, Attempt::First).await.unwrap();
    id
}

/// Checksum of what it holds.
pub fn holds(scene: &Scene, volume: &str) -> u64 {
    scene.sim.image("b", "volumes", &format!("volume-{volume}")).expect("the volume's image").checksum
}

pub async fn parent(scene: &Scene, volume: &str) -> Option<Parent> {
    there(scene).stat(&format!("volume-{volume}")).await.unwrap().parent
}

/// Images in the pool of the volumes that are none of a volume's.
pub fn strays(scene: &Scene) -> Vec<String> {
    let mut images = scene.sim.images("b", "volumes");
    images.retain(|name| !name.starts_with("volume-"));
    images
}

async fn write_there(scene: &Scene, volume: &str, offset: u64, value: u8) {
    let (pool, image) = ("volumes".to_owned(), format!("volume-{volume}"));
    let data = vec![value; usize::try_from(MIB).unwrap()];
    scene.sim.site("b").call(ImageWrite { pool, image, offset, data }).await.unwrap();
}

async fn restored(scene: &Scene, backup: &str, volume: &str) {
    let work = scene.to_be_restored(backup, volume).await;
    scene.run(&work).await.unwrap_or_else(|e| panic!("{e}\n{}", scene.sim.log_text()));
    assert_eq!(scene.status("volumes", volume).await, "available");
    assert_eq!(scene.status("backups", backup).await, "available");
}

async fn deleted(scene: &Scene, backup: &str) {
    let work = scene.to_be_deleted(backup).await;
    scene.run(&work).await.unwrap_or_else(|e| panic!("{e}\n{}", scene.sim.log_text()));
    assert_eq!(scene.column("backups", "deleted", backup).await, "1");
}

/// The volume is deleted, as its service does it.
async fn delete_volume(scene: &Scene, volume: &str) {
    let (place, image) = (there(scene), format!("volume-{volume}"));
    let found = place.inspect(&image).await.unwrap();
    let helpers = place.helpers(&image, found.as_ref()).await.unwrap();
    assert!(helpers.is_empty(), "a backup is no helper of its clone: {helpers:?}");
    place.delete(&image, found.as_ref(), None, &helpers).await.unwrap();
    scene.test.sql(&format!("UPDATE volumes SET deleted=1, status='deleted' WHERE id='{volume}'")).await;
}

#[tokio::test]
async fn a_volume_gets_a_clone_of_its_backup_and_then_stands_alone() {
    for mode in MODES {
        let scene = Scene::mirroring(OPTIONS, STEP).await;
        let (source, backup, content) = failed_over(&scene, mode).await;
        let volume = new_volume(&scene, 2, SHAPE).await;
        let (place, image) = (there(&scene), format!("volume-{volume}"));
        let before = place.stat(&image).await.unwrap();
        let set = |key: &str, value: &str| MetadataSet {
            pool: "volumes".into(),
            image: image.clone(),
            key: key.into(),
            value: value.into(),
        };
        place.site.call(set("conf_rbd_qos_bps_limit", "4000")).await.unwrap();
        scene.sim.clear_log();
        restored(&scene, &backup, &volume).await;
        assert_eq!(scene.sim.count("DeltaCopy"), 0, "nothing is copied");
        assert!(scene.sim.count("SumsCheck") > 0, "and all is compared");
        assert_eq!(holds(&scene, &volume), content, "{mode:?}");
        let after = place.stat(&image).await.unwrap();
        assert_eq!((after.size, after.order, after.features), (before.size, before.order, before.features));
        assert_ne!(after.id, before.id);
        let hangs_on = after.parent.expect("it is a clone");
        assert_eq!((hangs_on.pool.as_str(), hangs_on.image), ("backups", pin(&source, &backup)));
        let list = MetadataList { pool: "volumes".into(), image: image.clone() };
        let metadata = place.site.call(list).await.unwrap();
        assert_eq!(metadata, [("conf_rbd_qos_bps_limit".to_owned(), "4000".to_owned())], "its own alone");
        assert_eq!(scene.open().await.concat(), ["scoria.backup.detach"]);
        // A user writes, and takes a snapshot, before it stands alone.
        write_there(&scene, &volume, 5 * MIB, 3).await;
        let written = holds(&scene, &volume);
        place.snapshot(&image, "snapshot-1", Attempt::First).await.unwrap();
        write_there(&scene, &volume, 6 * MIB, 3).await;
        assert_eq!(pinned(&scene, &source, &backup), content, "the backup is what it was");
        let last = holds(&scene, &volume);
        scene.settle().await;
        assert!(parent(&scene, &volume).await.is_none());
        assert_eq!(holds(&scene, &volume), last);
        assert!(strays(&scene).is_empty() && scene.open().await.is_empty());
        deleted(&scene, &backup).await;
        assert!(scene.bases().is_empty());
        place.revert(&image, "snapshot-1", 0).await.unwrap();
        assert_eq!(holds(&scene, &volume), written, "the snapshot has all its data, too");
    }
}

#[tokio::test]
async fn backup_and_volume_can_be_deleted_at_once() {
    let scene = Scene::mirroring(OPTIONS, STEP).await;
    let (_, backup, content) = failed_over(&scene, MODES[1]).await;
    let (first, second) = (new_volume(&scene, 2, SHAPE).await, new_volume(&scene, 3, SHAPE).await);
    let third = new_volume(&scene, 4, SHAPE).await;
    for volume in [&first, &second, &third] {
        restored(&scene, &backup, volume).await;
    }
    delete_volume(&scene, &first).await;
    assert_eq!(scene.verdict(&backup).await.verdict, "good", "it has not touched the backup");
    // One whose volume is deleted, but not its image.
    let trash = TrashMove { pool: "volumes".into(), image: format!("volume-{third}"), delay: 0 };
    scene.sim.site("b").call(trash).await.unwrap();
    scene.test.sql(&format!("UPDATE volumes SET deleted=1, status='deleted' WHERE id='{third}'")).await;
    assert!(parent(&scene, &second).await.is_some());
    deleted(&scene, &backup).await;
    assert!(parent(&scene, &second).await.is_none(), "its deletion has flattened it");
    assert_eq!(holds(&scene, &second), content);
    assert!(scene.bases().is_empty());
    scene.settle().await;
    assert_eq!(holds(&scene, &second), content);
    assert!(strays(&scene).is_empty() && scene.open().await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_replaced_is_copied() {
    let mut scene = Scene::mirroring(OPTIONS, STEP).await;
    let (_, backup, content) = failed_over(&scene, MODES[1]).await;
    let lacking = Shape { order: 22, features: 61 & !features::DEEP_FLATTEN };
    for (number, case) in
        (2..).zip(["mirrored", "snapshot", "clones", "clone", "lacking", "permission", "option"])
    {
        let shape = if case == "lacking" { lacking } else { SHAPE };
        let volume = new_volume(&scene, number, shape).await;
        let (place, image) = (there(&scene), format!("volume-{volume}"));
        write_there(&scene, &volume, 100 * MIB, 5).await;
        match case {
            "mirrored" => {
                let (pool, image) = ("volumes".to_owned(), image.clone());
                let enable = MirrorEnable { pool, image, mode: MirrorMode::Snapshot };
                scene.sim.site("b").call(enable).await.unwrap();
            }
            "snapshot" => place.snapshot(&image, "snapshot-1", Attempt::First).await.unwrap(),
            "clones" => {
                place.snapshot(&image, "s", Attempt::First).await.unwrap();
                let bytes = place.stat(&image).await.unwrap().size;
                place.clone_from(&image, "s", "volume-c", bytes, SHAPE, Attempt::First).await.unwrap();
                // Removed, it is kept for the clone: nothing shows of it.
                let unprotect =
                    SnapUnprotect { pool: "volumes".into(), image: image.clone(), snap: "s".into() };
                let _ = scene.sim.site("b").call(unprotect).await;
                let remove = SnapRemove { pool: "volumes".into(), image: image.clone(), snap: "s".into() };
                scene.sim.site("b").call(remove).await.unwrap();
            }
            "clone" => {
                let other = new_volume(&scene, 100 + number, SHAPE).await;
                place.snapshot(&format!("volume-{other}"), "s", Attempt::First).await.unwrap();
                place.site.call(ImageRemove { pool: "volumes".into(), image: image.clone() }).await.unwrap();
                let other = format!("volume-{other}");
                place.clone_from(&other, "s", &image, 3 << 30, SHAPE, Attempt::First).await.unwrap();
            }
            "permission" => {
                let fault = Fault::on("ReplicaClone").fails(When::Before, RbdErrorKind::Permission);
                scene.sim.inject(fault);
            }
            "option" => {
                scene.reconfigure(&format!("{OPTIONS}\n[scoria]\nscoria_backup_restore_by_clone=false"));
            }
            _ => {}
        }
        let id = place.stat(&image).await.unwrap().id;
        scene.sim.clear_log();
        restored(&scene, &backup, &volume).await;
        assert!(scene.sim.count("DeltaCopy") > 0, "{case}: {}", scene.sim.log_text());
        assert_eq!(holds(&scene, &volume), content, "{case}");
        assert_eq!(place.stat(&image).await.unwrap().id, id, "{case}: it is the same image");
        assert!(strays(&scene).is_empty() && scene.open().await.is_empty(), "{case}: {:?}", strays(&scene));
    }
    // On another site than that of its backups, and of a backup by differences.
    let mut scene = Scene::mirroring(OPTIONS, STEP).await;
    let volume = scene.mirrored(1, MODES[0]).await;
    let backup = scene.made(1, &volume, None).await;
    let target = scene.volume(2, "available").await;
    restored(&scene, &backup, &target).await;
    assert_eq!((scene.content(&target), scene.sim.count("ReplicaClone")), (scene.content(&volume), 1));
    scene.reconfigure("backup_method=diff");
    let backup = scene.made(2, &volume, None).await;
    let content = scene.content(&volume);
    served_there(&scene).await;
    let target = new_volume(&scene, 3, SHAPE).await;
    restored(&scene, &backup, &target).await;
    assert_eq!((holds(&scene, &target), scene.sim.count("ReplicaClone")), (content, 1));
}

#[tokio::test]
async fn what_is_not_what_was_backed_up_changes_nothing_and_what_nobody_has_compared_yet_is_there_at_once() {
    let mut scene = Scene::mirroring(OPTIONS, STEP).await;
    let (_, backup, content) = failed_over(&scene, MODES[0]).await;
    let volume = new_volume(&scene, 2, SHAPE).await;
    write_there(&scene, &volume, 100 * MIB, 5).await;
    let (before, id) =
        (holds(&scene, &volume), there(&scene).stat(&format!("volume-{volume}")).await.unwrap().id);
    // The checksums are those of something else.
    let (pool, object) = ("backups".to_owned(), format!("backup.{backup}.sums"));
    let table = scene.sim.site("b").call(ObjectRead { pool: pool.clone(), object: object.clone() }).await;
    let table = table.unwrap().unwrap();
    let mut wrong = table.clone();
    let at = wrong.iter().rposition(|byte| *byte != 0).unwrap();
    wrong[at] ^= 1;
    let write = |data: Vec<u8>| ObjectWrite { pool: pool.clone(), object: object.clone(), data };
    scene.sim.site("b").call(write(wrong)).await.unwrap();
    let work = scene.to_be_restored(&backup, &volume).await;
    let error = scene.run(&work).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidBackup);
    assert!(error.to_string().contains("checksum is another"), "{error}");
    assert_eq!(scene.status("volumes", &volume).await, "error_restoring");
    assert_eq!(scene.status("backups", &backup).await, "available");
    assert!(scene.is_told(&backup, "015", "026").await);
    assert_eq!(holds(&scene, &volume), before);
    assert_eq!(there(&scene).stat(&format!("volume-{volume}")).await.unwrap().id, id);
    assert!(strays(&scene).is_empty() && scene.open().await.is_empty());
    // Whoever wants it all the same has it without a look at it.
    scene.reconfigure(&format!("{OPTIONS}\n[scoria]\nscoria_backup_verify_on_restore=false"));
    scene.sim.clear_log();
    restored(&scene, &backup, &volume).await;
    assert_eq!((holds(&scene, &volume), scene.sim.count("SumsCheck")), (content, 0));
    scene.sim.site("b").call(write(table)).await.unwrap();
    scene.settle().await;
    deleted(&scene, &backup).await;

    let scene = Scene::mirroring(OPTIONS, STEP).await;
    let volume = scene.mirrored(1, MODES[0]).await;
    let backup = scene.made(1, &volume, None).await;
    assert_eq!(scene.verdict(&backup).await.verdict, "unverified");
    served_there(&scene).await;
    let target = new_volume(&scene, 2, SHAPE).await;
    scene.sim.clear_log();
    restored(&scene, &backup, &target).await;
    assert_eq!((holds(&scene, &target), scene.sim.count("SumsCheck")), (scene.content(&volume), 0));
    assert!(parent(&scene, &target).await.is_some());
    scene.settle().await;
    assert_eq!(scene.verdict(&backup).await.verdict, "good");
    assert!(parent(&scene, &target).await.is_none());
}

#[tokio::test]
async fn what_fails_leaves_the_volume_the_image_that_it_had() {
    let scene = Scene::mirroring(&format!("{IMPATIENT}{OPTIONS}"), STEP).await;
    let (_, backup, content) = failed_over(&scene, MODES[1]).await;
    for (number, (request, nth, kind)) in (2..).zip([
        ("SumsCheck", 1, RbdErrorKind::Unreachable),
        ("ReplicaClone", 1, RbdErrorKind::NoSpace),
        ("ImageResize", 1, RbdErrorKind::Other),
        ("MetadataList", 1, RbdErrorKind::Unreachable),
        ("MetadataRemove", 1, RbdErrorKind::Unreachable),
        ("ImageRename", 1, RbdErrorKind::Other),
    ]) {
        let volume = new_volume(&scene, number, SHAPE).await;
        write_there(&scene, &volume, 100 * MIB, 5).await;
        let image = format!("volume-{volume}");
        let (before, id) = (holds(&scene, &volume), there(&scene).stat(&image).await.unwrap().id);
        scene.sim.inject(Fault::on(request).site("b").nth(nth).fails(When::Before, kind).always());
        let work = scene.to_be_restored(&backup, &volume).await;
        scene.run(&work).await.unwrap_err();
        scene.sim.clear_faults();
        assert_eq!(scene.status("volumes", &volume).await, "error_restoring", "{request}");
        assert_eq!(scene.status("backups", &backup).await, "available", "{request}");
        assert!(scene.is_told(&backup, "015", "026").await, "{request}");
        assert_eq!(holds(&scene, &volume), before, "{request}");
        assert_eq!(there(&scene).stat(&image).await.unwrap().id, id, "{request}");
        assert!(
            strays(&scene).is_empty() && scene.open().await.is_empty(),
            "{request}: {:?}",
            strays(&scene)
        );
        restored(&scene, &backup, &volume).await;
        scene.settle().await;
        assert_eq!(holds(&scene, &volume), content, "{request}");
    }
}

/// Has the exchange stop between its two renames, with a site that answers no more.
async fn left_between(scene: &Scene, backup: &str, volume: &str) {
    let fails = |nth: usize| Fault::on("ImageRename").nth(nth).fails(When::Before, RbdErrorKind::Unreachable);
    scene.sim.inject(fails(2).always());
    let work = scene.to_be_restored(backup, volume).await;
    scene.run(&work).await.unwrap_err();
    scene.sim.clear_faults();
    assert_eq!(scene.status("volumes", volume).await, "error_restoring");
    assert!(scene.sim.image("b", "volumes", &format!("volume-{volume}")).is_none());
    assert_eq!((strays(scene).len(), scene.open().await.len()), (2, 1), "what is due is written down");
}

#[tokio::test]
async fn what_cannot_be_put_right_at_once_is_later_and_of_a_volume_that_is_gone_nothing_stays() {
    let scene = Scene::mirroring(&format!("{IMPATIENT}{OPTIONS}"), STEP).await;
    let (_, backup, content) = failed_over(&scene, MODES[1]).await;
    let volume = new_volume(&scene, 2, SHAPE).await;
    write_there(&scene, &volume, 100 * MIB, 5).await;
    let before = holds(&scene, &volume);
    left_between(&scene, &backup, &volume).await;
    scene.settle().await;
    assert_eq!(holds(&scene, &volume), before);
    assert!(strays(&scene).is_empty() && scene.open().await.is_empty());
    restored(&scene, &backup, &volume).await;
    assert_eq!(holds(&scene, &volume), content);
    scene.settle().await;

    let gone = new_volume(&scene, 3, SHAPE).await;
    left_between(&scene, &backup, &gone).await;
    delete_volume(&scene, &gone).await;
    scene.settle().await;
    assert!(strays(&scene).is_empty() && scene.open().await.is_empty());
    assert!(scene.sim.image("b", "volumes", &format!("volume-{gone}")).is_none());
    deleted(&scene, &backup).await;
    assert!(left(&scene, &volume).await.is_empty(), "{:?}", left(&scene, &volume).await);
}

#[tokio::test]
async fn a_restoration_that_is_called_off_leaves_the_image_that_was_there() {
    let scene = Scene::mirroring(&format!("{OPTIONS}\n[scoria]\nscoria_backup_bandwidth=1"), STEP).await;
    let (_, backup, _) = failed_over(&scene, MODES[0]).await;
    let volume = new_volume(&scene, 2, SHAPE).await;
    let (before, image) = (holds(&scene, &volume), format!("volume-{volume}"));
    let id = there(&scene).stat(&image).await.unwrap().id;
    scene.sim.clear_log();
    let work = scene.to_be_restored(&backup, &volume).await;
    let deletion = async {
        scene.eventually("it compares", || scene.sim.count("SumsCheck") > 0).await;
        deleted(&scene, &backup).await;
    };
    let (ended, ()) = tokio::join!(scene.run(&work), deletion);
    ended.unwrap();
    assert_eq!(scene.status("volumes", &volume).await, "error");
    assert_eq!((holds(&scene, &volume), there(&scene).stat(&image).await.unwrap().id), (before, id));
    assert!(strays(&scene).is_empty() && scene.open().await.is_empty() && scene.bases().is_empty());
}
