//! Where backups go: the cluster of `backup_ceph_conf`, or a registered site; and from where they are made when the
//! volume has failed over.

use std::time::Duration;

use scoria::error::Code;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{Fsid, ImageWrite, SnapCreate, SnapRemove};
use scoria::rbd::sim::{Fault, When};
use scoria::volume::image::{Attempt, Place, Shape};

use crate::backup_scene::{MIB, Scene, Work};
use crate::seed::{BACKEND, TYPE};

/// Registers a site of the simulator, with files on a host; its fsid.
pub async fn register(scene: &Scene, name: &str, site: &str, host: &str) -> String {
    let fsid = scene.sim.site(site).call(Fsid {}).await.unwrap();
    scene
        .test
        .sql(&format!(
            "INSERT IGNORE INTO scoria_sites (fsid, name, origin, monitors, version, health, report, seen_at, created_at,
               updated_at)
             VALUES ('{fsid}', '{name}', 'registered', '', '16', 'HEALTH_OK', '{{}}', UTC_TIMESTAMP(), UTC_TIMESTAMP(),
               UTC_TIMESTAMP());
             INSERT INTO scoria_site_hosts (fsid, host, conf, client, own, state, checked_at)
             VALUES ('{fsid}', '{host}', '/sim/{site}.conf', 'cinder', 0, 'present', UTC_TIMESTAMP())"
        ))
        .await;
    fsid
}

#[tokio::test]
async fn backups_go_to_the_site_that_the_type_or_the_option_names_and_a_chain_stays_where_it_is() {
    // Volumes are on site a, `backup_ceph_conf` leads to site b; the registered one is in the pool `backups` of a.
    let mut scene = Scene::with("backup_site=west").await;
    let there = |scene: &Scene| scene.sim.images("a", "backups").len();
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    for (number, why) in [(1, "There is no site west"), (2, "has no files of site west")] {
        let backup = scene.ordered(number, &volume, None, None).await;
        let error = scene.run(&Work::Create(backup.clone())).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidInput, "{error}");
        assert!(scene.column("backups", "fail_reason", &backup).await.contains(why), "{error}");
        assert!(scene.is_told(&backup, "013", "020").await);
        assert_eq!(scene.status("volumes", &volume).await, "available");
        assert!(scene.points(&volume).is_empty());
        register(&scene, "west", "a", if number == 1 { "node2" } else { "node1" }).await;
    }
    let fsid = scene.sim.site("a").call(Fsid {}).await.unwrap();
    let full = scene.made(3, &volume, None).await;
    let noted = scene.column("backups", "service_metadata", &full).await;
    assert_eq!(noted, format!("{{\"base\": \"volume-{volume}.backup.{full}\", \"site\": \"{fsid}\"}}"));
    assert_eq!((there(&scene), scene.bases().len()), (1, 0));

    // Another name for it, and no option any more: what is there is found, and continued there.
    scene.test.sql("UPDATE scoria_sites SET name='east'").await;
    scene.reconfigure("");
    scene.write(&volume, 900 * MIB, 8, MIB).await;
    let more = scene.made(4, &volume, Some(&full)).await;
    assert_eq!(scene.column("backups", "service_metadata", &more).await, noted);
    let alone = scene.made(5, &volume, None).await;
    assert_eq!((there(&scene), scene.bases().len()), (1, 1));
    scene
        .test
        .sql(&format!(
            "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
             VALUES ('{TYPE}', 'backup:site', 'east', 0)"
        ))
        .await;
    let typed = scene.made(6, &volume, None).await;
    assert_eq!((there(&scene), scene.bases().len()), (2, 1));
    let other = scene.volume(2, "available").await;
    for backup in [&more, &alone, &typed] {
        let work = scene.to_be_restored(backup, &other).await;
        scene.run(&work).await.unwrap();
        assert_eq!(scene.content(&other), scene.content(&volume));
        assert_eq!(scene.verdict(backup).await.verdict, "good");
        scene.write(&other, 100 * MIB, 1, MIB).await;
    }

    // One that fails there is taken away there, also when only its deletion can do that.
    let lost = scene.ordered(7, &volume, None, None).await;
    scene.sim.inject(Fault::on("DeltaCopy").fails(When::Before, RbdErrorKind::NoSpace));
    scene.sim.inject(Fault::on("ImageRemove").fails(When::Before, RbdErrorKind::Other));
    scene.run(&Work::Create(lost.clone())).await.unwrap_err();
    scene.sim.clear_faults();
    assert_eq!((scene.status("backups", &lost).await.as_str(), there(&scene)), ("error", 3));
    for backup in [&lost, &typed, &alone, &full, &more] {
        let work = scene.to_be_deleted(backup).await;
        scene.run(&work).await.unwrap();
    }
    assert_eq!((there(&scene), scene.bases().len()), (0, 0));
    assert!(scene.points(&volume).is_empty());
}

#[tokio::test]
async fn after_a_failover_the_chain_goes_on_from_the_surviving_site() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    let image = format!("volume-{volume}");
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let full = scene.made(1, &volume, None).await;
    let point = scene.points(&volume).remove(0);
    scene.write(&volume, MIB, 8, MIB).await;
    scene.write(&volume, 800 * MIB, 8, MIB).await;
    let second = scene.made(2, &volume, Some(&full)).await;

    // The survivor has the volume as it was at the first backup; what came after that is lost, and a little is new.
    let survivor = Place { site: scene.sim.site("b"), pool: "volumes".to_owned() };
    survivor.create(&image, 2 << 30, Shape { order: 22, features: 61 }, Attempt::First).await.unwrap();
    let write = async |offset: u64, value: u8, length: u64| {
        let data = vec![value; usize::try_from(length).unwrap()];
        let write = ImageWrite { pool: "volumes".into(), image: image.clone(), offset, data };
        survivor.site.call(write).await.unwrap();
    };
    write(0, 7, 3 * MIB).await;
    let snap = SnapCreate { pool: "volumes".into(), image: image.clone(), snap: point };
    survivor.site.call(snap).await.unwrap();
    write(2 * MIB, 9, MIB).await;
    scene.test.sql(&format!("UPDATE services SET active_backend_id='b' WHERE host='{BACKEND}'")).await;

    let third = scene.made(3, &volume, Some(&second)).await;
    assert_eq!(scene.column("backups", "parent_id", &third).await, second, "no forced full backup");
    assert_eq!(scene.bases().len(), 1);
    let content = |site: &str, pool: &str, image: &str| scene.sim.image(site, pool, image).unwrap().checksum;
    assert_eq!(content("b", "backups", &scene.bases()[0]), content("b", "volumes", &image));
    for backup in [&full, &second, &third] {
        assert_eq!(scene.verdict(backup).await.verdict, "good");
    }

    // Nor has it anything in common.
    for snap in scene.sim.image("b", "volumes", &image).unwrap().snaps {
        let remove = SnapRemove { pool: "volumes".into(), image: image.clone(), snap };
        survivor.site.call(remove).await.unwrap();
    }
    write(1500 * MIB, 3, MIB).await;
    let fourth = scene.made(4, &volume, Some(&third)).await;
    assert_eq!(content("b", "backups", &scene.bases()[0]), content("b", "volumes", &image));
    for backup in [&full, &second, &third, &fourth] {
        assert_eq!(scene.verdict(backup).await.verdict, "good");
    }
}

#[tokio::test]
async fn a_backup_that_a_failover_interrupts_is_made_from_the_surviving_site() {
    let mut scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    let image = format!("volume-{volume}");
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let full = scene.made(1, &volume, None).await;
    scene.write(&volume, MIB, 8, MIB).await;
    let backup = scene.ordered(2, &volume, Some(&full), None).await;
    let work = Work::Create(backup.clone());
    let operation = scene.accepted(&work).await;
    scene.sim.inject(Fault::on("DeltaCopy").sticks());
    let begun = scene.carry_out(&operation, &work);
    assert!(tokio::time::timeout(Duration::from_secs(2), begun).await.is_err());
    scene.sim.clear_faults();

    // The survivor has neither the snapshot that was read nor the common point.
    let survivor = Place { site: scene.sim.site("b"), pool: "volumes".to_owned() };
    survivor.create(&image, 2 << 30, Shape { order: 22, features: 61 }, Attempt::First).await.unwrap();
    let data = vec![3; usize::try_from(MIB).unwrap()];
    let write = ImageWrite { pool: "volumes".into(), image: image.clone(), offset: 0, data };
    survivor.site.call(write).await.unwrap();
    scene.test.sql(&format!("UPDATE services SET active_backend_id='b' WHERE host='{BACKEND}'")).await;
    scene.restart();
    let operation = scene.backups.journal.adopt(&scene.backups.scope()).await.unwrap().remove(0);
    scene.carry_out(&operation, &work).await.unwrap();
    assert_eq!(scene.status("backups", &backup).await, "available");
    let content = |pool: &str, image: &str| scene.sim.image("b", pool, image).unwrap().checksum;
    assert_eq!(content("backups", &scene.bases()[0]), content("volumes", &image));
    for backup in [&full, &backup] {
        assert_eq!(scene.verdict(backup).await.verdict, "good");
    }
    assert_eq!(scene.bases().len(), 1);
}

#[tokio::test]
async fn a_limit_of_bandwidth_slows_down_and_changes_nothing_else() {
    let scene = Scene::with("[scoria]\nscoria_backup_bandwidth=2").await;
    let volume = scene.volume(1, "available").await;
    for piece in 0..3u64 {
        scene.write(&volume, piece * 10 * MIB, 7, MIB).await;
    }
    let backup = scene.made(1, &volume, None).await;
    assert_eq!(scene.sim.count("DeltaCopy"), 3, "a piece a second");
    assert_eq!(scene.verdict(&backup).await.verdict, "good");
}
