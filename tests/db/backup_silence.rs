//! Backups while a site answers nothing: what is given up, that it is given up once and not call by call, and that a
//! short outage costs nothing.

use std::time::Duration;

use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::Request;
use scoria::rbd::sim::{Fault, When};

use crate::backup_scene::{IMPATIENT, MIB, Scene, Work};

/// From now on the site of the backups answers nothing.
fn silence(scene: &Scene) {
    scene.sim.inject(Fault::any().site("b").sticks().always());
    scene.sim.inject(Fault::on("DeltaCopy").sticks().always());
    scene.sim.clear_log();
}

/// Calls that the site of the backups was asked for since, which cluster it is apart.
fn asked(scene: &Scene) -> Vec<&'static str> {
    let is_there = |request: &Request| !matches!(request, Request::Fsid(_));
    let log = scene.sim.log();
    log.iter().filter(|call| call.site == "b" && is_there(&call.arguments)).map(|call| call.request).collect()
}

async fn failed(scene: &Scene, backup: &str, volume: &str, why: &str) {
    assert_eq!(scene.status("backups", backup).await, "error");
    let reason = scene.column("backups", "fail_reason", backup).await;
    assert!(reason.contains(why), "{reason}");
    assert_eq!(scene.status("volumes", volume).await, "available");
    assert!(scene.is_told(backup, "013", "020").await);
    assert!(scene.points(volume).is_empty(), "the site that lives is tidied up: {:?}", scene.points(volume));
    assert!(scene.open().await.is_empty());
}

#[tokio::test]
async fn a_site_that_falls_silent_is_given_up_once_and_not_call_by_call() {
    let scene = Scene::with(IMPATIENT).await;
    let volume = scene.volume(1, "available").await;
    let other = scene.volume(2, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let kept = scene.made(1, &volume, None).await;
    let gone = scene.made(2, &other, None).await;
    let target = scene.volume(3, "available").await;
    let content = scene.content(&volume);
    // In the midst of a copy.
    let fresh = scene.volume(4, "available").await;
    scene.write(&fresh, 0, 9, MIB).await;
    let backup = scene.ordered(3, &fresh, None, None).await;
    let work = Work::Create(backup.clone());
    let copying = async {
        while scene.sim.count("DeltaCopy") < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        silence(&scene);
    };
    scene.sim.inject(Fault::on("DeltaCopy").sticks().always());
    let (made, ()) = tokio::join!(scene.run(&work), copying);
    made.unwrap_err();
    failed(&scene, &backup, &fresh, "a site does not answer").await;
    assert_eq!(asked(&scene), ["SnapRemove"], "what is to be tidied up there is tried once");
    // Whatever comes now is given up after one look, and one at what is to be tidied up.
    silence(&scene);
    let late = scene.ordered(4, &fresh, None, None).await;
    scene.run(&Work::Create(late.clone())).await.unwrap_err();
    failed(&scene, &late, &fresh, "").await;
    assert_eq!(asked(&scene), ["ImageCreate", "SnapRemove"]);
    silence(&scene);
    let restoration = scene.to_be_restored(&kept, &target).await;
    scene.run(&restoration).await.unwrap_err();
    assert_eq!(scene.status("volumes", &target).await, "error_restoring");
    assert_eq!(scene.status("backups", &kept).await, "available");
    assert!(scene.is_told(&kept, "015", "026").await);
    assert_eq!(asked(&scene), ["ObjectRead"]);
    silence(&scene);
    let deletion = scene.to_be_deleted(&gone).await;
    scene.run(&deletion).await.unwrap_err();
    assert_eq!(scene.status("backups", &gone).await, "error");
    assert!(scene.is_told(&gone, "014", "025").await);
    assert_eq!(asked(&scene), ["ImageInspect"]);
    assert!(scene.open().await.is_empty());
    // It is back.
    scene.sim.clear_faults();
    for id in [&backup, &late, &gone] {
        let deletion = scene.to_be_deleted(id).await;
        scene.run(&deletion).await.unwrap();
        assert_eq!(scene.column("backups", "deleted", id).await, "1");
    }
    assert_eq!(scene.bases().len(), 1);
    let restoration = scene.to_be_restored(&kept, &target).await;
    scene.run(&restoration).await.unwrap();
    assert_eq!(scene.content(&target), content);
    let work = Work::Create(scene.ordered(5, &fresh, None, None).await);
    scene.run(&work).await.unwrap();
}

#[tokio::test]
async fn an_outage_that_is_shorter_costs_nothing() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let target = scene.volume(2, "available").await;
    // A site that was never heard of is asked once.
    let first = scene.made(50, &target, None).await;
    let away = |fault: Fault| fault.fails(When::Before, RbdErrorKind::Unreachable);
    // Every call in turn is the one that the outage meets.
    for at in 1..40 {
        let backup = scene.ordered(at, &volume, None, None).await;
        scene.sim.inject(away(Fault::any().site("b").nth(at as usize)));
        if at == 1 {
            scene.sim.inject(away(Fault::on("DeltaCopy")));
        }
        scene.sim.clear_log();
        scene.run(&Work::Create(backup.clone())).await.unwrap();
        let met = asked(&scene).len() >= at as usize;
        scene.sim.clear_faults();
        assert_eq!(scene.status("backups", &backup).await, "available");
        if at == 1 {
            let restoration = scene.to_be_restored(&backup, &target).await;
            scene.sim.inject(away(Fault::any().site("b")));
            scene.sim.inject(away(Fault::on("DeltaCopy")));
            scene.run(&restoration).await.unwrap();
            scene.sim.clear_faults();
            assert_eq!(scene.content(&target), scene.content(&volume));
        }
        let deletion = scene.to_be_deleted(&backup).await;
        scene.run(&deletion).await.unwrap();
        if !met {
            assert!(at > 4, "{at}");
            assert_eq!(scene.status("backups", &first).await, "available");
            return;
        }
    }
    panic!("a backup makes fewer calls than that");
}
