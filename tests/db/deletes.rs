//! Deletions: of volumes, alone and with their snapshots, and of snapshots.

use std::time::Duration;

use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::SnapList;
use scoria::rbd::sim::{Fault, When};
use scoria::volume::delete::{self, Delete};
use scoria::volume::snapshot;

use crate::seed::{self, PROJECT};
use crate::stage::Stage;

/// What the project uses, as the API has counted it.
async fn count(stage: &Stage, volumes: i32, snapshots: i32) {
    let gigabytes = 2 * (volumes + snapshots);
    for (resource, count) in [("volumes", volumes), ("snapshots", snapshots), ("gigabytes", gigabytes)] {
        for name in [resource.to_owned(), format!("{resource}_plain")] {
            stage
                .test
                .sql(&format!(
                    "INSERT INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
                     VALUES ('{PROJECT}', '{name}', {count}, 0, 1, 0)"
                ))
                .await;
        }
    }
}

async fn used(stage: &Stage, resource: &str) -> String {
    stage.test.row(&format!("SELECT in_use FROM quota_usages WHERE resource='{resource}'")).await.remove(0)
}

/// A volume in `status` with image, and as many snapshots as asked, in the same status.
async fn volume_with(stage: &Stage, snapshots: u32, status: &str) -> (String, String, Vec<String>) {
    let volume = seed::volume(&stage.test, 1, status, "").await;
    let image = stage.image(&volume).await;
    let mut ids = Vec::new();
    for number in 1..=snapshots {
        let id = seed::snapshot(&stage.test, number, &volume, status).await;
        stage.snapped(&image, &id).await;
        ids.push(id);
    }
    count(stage, 1, i32::try_from(snapshots).unwrap()).await;
    (volume, image, ids)
}

/// How it ended.
async fn run(stage: &Stage, volume: &str, request: Delete) -> String {
    let operation = stage.operation("delete_volume", Some(("Volume", volume))).await;
    let request = Delete { volume_id: volume.to_owned(), ..request };
    delete::delete(&stage.backend, &stage.context, &operation, request).await.unwrap();
    let ended = stage.ended(&operation).await;
    assert_eq!(ended[0], "closed");
    ended[1].clone()
}

async fn cascade(stage: &Stage, volume: &str) -> String {
    run(stage, volume, Delete { cascade: true, ..Delete::default() }).await
}

#[tokio::test]
async fn a_cascade_deletes_each_snapshot_as_if_it_had_been_asked_for() {
    let stage = Stage::new().await;
    let (volume, image, snapshots) = volume_with(&stage, 2, "deleting").await;
    assert_eq!(cascade(&stage, &volume).await, "succeeded");
    assert_eq!(
        stage.heard.events(),
        [
            format!("volume.delete.start {volume} deleting"),
            format!("snapshot.delete.start {} deleting", snapshots[0]),
            format!("snapshot.delete.end {} deleted (deleted)", snapshots[0]),
            format!("snapshot.delete.start {} deleting", snapshots[1]),
            format!("snapshot.delete.end {} deleted (deleted)", snapshots[1]),
            format!("volume.delete.end {volume} deleted"),
        ]
    );
    assert!(stage.seen(&image).is_none());
    for resource in ["volumes", "snapshots", "gigabytes", "gigabytes_plain"] {
        assert_eq!(used(&stage, resource).await, "0", "{resource}");
    }
    assert_eq!(stage.status("volumes", &volume).await, "deleted");
}

#[tokio::test]
async fn a_cascade_that_fails_half_way_has_deleted_what_is_gone_and_gives_the_rest_back() {
    let stage = Stage::new().await;
    let (volume, image, snapshots) = volume_with(&stage, 3, "deleting").await;
    stage.sim.inject(Fault::on("SnapRemove").nth(2).fails(When::Before, RbdErrorKind::Other));
    assert_eq!(cascade(&stage, &volume).await, "failed");
    assert_eq!(stage.status("snapshots", &snapshots[0]).await, "deleted");
    assert_eq!(stage.status("snapshots", &snapshots[1]).await, "error_deleting");
    assert_eq!(stage.status("snapshots", &snapshots[2]).await, "available");
    assert_eq!(stage.status("volumes", &volume).await, "error_deleting");
    assert_eq!(used(&stage, "snapshots").await, "2");
    assert_eq!(used(&stage, "gigabytes").await, "6");
    assert_eq!(stage.messages().await, [["VOLUME_SNAPSHOT", snapshots[1].as_str(), "010", "016"]]);
    assert_eq!(stage.seen(&image).unwrap().snaps.len(), 2);
}

#[tokio::test]
async fn a_cascade_that_meets_a_snapshot_in_use_leaves_the_volume_usable() {
    let stage = Stage::new().await;
    let (volume, image, snapshots) = volume_with(&stage, 2, "deleting").await;
    stage.sim.inject(Fault::on("SnapRemove").fails(When::Before, RbdErrorKind::Busy));
    assert_eq!(cascade(&stage, &volume).await, "failed");
    assert_eq!(stage.status("volumes", &volume).await, "available");
    for snapshot in &snapshots {
        assert_eq!(stage.status("snapshots", snapshot).await, "available");
    }
    assert_eq!(stage.messages().await, [["VOLUME_SNAPSHOT", snapshots[0].as_str(), "010", "015"]]);
    assert!(stage.seen(&image).is_some());
}

#[tokio::test]
async fn a_cascade_over_a_snapshot_that_nobody_gave_up_touches_none() {
    let stage = Stage::new().await;
    let (volume, image, snapshots) = volume_with(&stage, 2, "deleting").await;
    stage.test.sql(&format!("UPDATE snapshots SET status='available' WHERE id='{}'", snapshots[1])).await;
    assert_eq!(cascade(&stage, &volume).await, "failed");
    assert_eq!(stage.status("volumes", &volume).await, "error_deleting");
    assert_eq!(stage.status("snapshots", &snapshots[0]).await, "available");
    assert_eq!(stage.seen(&image).unwrap().snaps.len(), 2);
}

#[tokio::test]
async fn notifications_of_an_end_say_deleted() {
    let stage = Stage::new().await;
    let (volume, image, snapshots) = volume_with(&stage, 1, "unmanaging").await;
    let operation = stage.operation("delete_snapshot", Some(("Snapshot", &snapshots[0]))).await;
    snapshot::delete(&stage.backend, &stage.context, &operation, &snapshots[0], true).await.unwrap();
    run(&stage, &volume, Delete { unmanage_only: true, ..Delete::default() }).await;
    assert_eq!(
        stage.heard.events(),
        [
            format!("snapshot.delete.start {} unmanaging", snapshots[0]),
            format!("snapshot.delete.end {} deleted (deleted)", snapshots[0]),
            format!("volume.unmanage.start {volume} unmanaging"),
            format!("volume.unmanage.end {volume} deleted"),
        ]
    );
    assert!(stage.seen(&image).is_some());
}

#[tokio::test]
async fn an_unmanaged_snapshot_is_protected_only_as_long_as_somebody_needs_it() {
    let stage = Stage::new().await;
    let (_, image, snapshots) = volume_with(&stage, 2, "unmanaging").await;
    let shape = scoria::volume::image::Shape { order: 22, features: 61 };
    let needed = format!("snapshot-{}", snapshots[0]);
    let first = scoria::volume::image::Attempt::First;
    stage.place().clone_from(&image, &needed, "child", 2 << 30, shape, first).await.unwrap();
    for id in &snapshots {
        let operation = stage.operation("delete_snapshot", Some(("Snapshot", id))).await;
        snapshot::delete(&stage.backend, &stage.context, &operation, id, true).await.unwrap();
        assert_eq!(stage.status("snapshots", id).await, "deleted");
    }
    let list = SnapList { pool: "volumes".into(), image };
    let snaps = stage.sim.site("a").call(list).await.unwrap();
    let protected: Vec<bool> = snaps.iter().map(|s| s.protected).collect();
    assert_eq!(protected, [true, false]);
}

#[tokio::test]
async fn a_late_failure_does_not_overwrite_what_an_administrator_has_set() {
    let stage = Stage::new().await;
    let (volume, ..) = volume_with(&stage, 0, "deleting").await;
    stage.sim.inject(Fault::on("ImageRemove").fails(When::Before, RbdErrorKind::Other));
    stage.sim.inject(Fault::on("ImageStat").delays(Duration::from_secs(1)));
    let reset = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stage.test.sql(&format!("UPDATE volumes SET status='available' WHERE id='{volume}'")).await;
    };
    let (ended, ()) = tokio::join!(run(&stage, &volume, Delete::default()), reset);
    assert_eq!(ended, "failed");
    assert_eq!(stage.status("volumes", &volume).await, "available");

    let id = seed::snapshot(&stage.test, 7, &volume, "deleting").await;
    stage.snapped(&format!("volume-{volume}"), &id).await;
    stage.sim.inject(Fault::on("SnapUnprotect").delays(Duration::from_secs(1)));
    stage.sim.inject(Fault::on("SnapRemove").fails(When::Before, RbdErrorKind::Other));
    let reset = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stage.test.sql(&format!("UPDATE snapshots SET status='error' WHERE id='{id}'")).await;
    };
    let operation = stage.operation("delete_snapshot", Some(("Snapshot", &id))).await;
    let deleted = snapshot::delete(&stage.backend, &stage.context, &operation, &id, false);
    let (ended, ()) = tokio::join!(deleted, reset);
    assert!(ended.is_ok(), "the failure is in the row and in the journal");
    assert_eq!(stage.status("snapshots", &id).await, "error");
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
}

#[tokio::test]
async fn a_deletion_that_may_not_begin_leaves_the_row_of_a_volume_in_use_or_of_another_backend() {
    let stage = Stage::new().await;
    // `cinder-manage volume delete` casts whatever the status is.
    let attached = seed::volume(&stage.test, 1, "in-use", ", attach_status='attached'").await;
    assert_eq!(run(&stage, &attached, Delete::default()).await, "failed");
    assert_eq!(stage.status("volumes", &attached).await, "in-use");
    // Nobody else would ever take this one out of it.
    let taken = seed::volume(&stage.test, 2, "deleting", ", attach_status='attached'").await;
    run(&stage, &taken, Delete::default()).await;
    assert_eq!(stage.status("volumes", &taken).await, "error_deleting");
    let foreign = seed::volume(&stage.test, 3, "deleting", ", host='node2@ceph#pool'").await;
    assert_eq!(run(&stage, &foreign, Delete::default()).await, "failed");
    assert_eq!(stage.status("volumes", &foreign).await, "deleting");
}

#[tokio::test]
async fn what_is_unmanaged_counts_no_longer_and_what_may_not_be_is_refused() {
    let stage = Stage::new().await;
    let (volume, image, _) = volume_with(&stage, 0, "unmanaging").await;
    let only = Delete { unmanage_only: true, ..Delete::default() };
    assert_eq!(run(&stage, &volume, only.clone()).await, "succeeded");
    assert_eq!(stage.status("volumes", &volume).await, "deleted");
    assert!(stage.seen(&image).is_some());
    assert_eq!((used(&stage, "volumes").await, used(&stage, "gigabytes").await), ("0".into(), "0".into()));

    let encrypted = seed::volume(&stage.test, 2, "unmanaging", ", encryption_key_id='k'").await;
    assert_eq!(run(&stage, &encrypted, only.clone()).await, "failed");
    assert_eq!(stage.status("volumes", &encrypted).await, "error_unmanaging");
    // Attached before the request came: that is what it stays.
    let attached = seed::volume(&stage.test, 3, "in-use", ", attach_status='attached'").await;
    assert_eq!(run(&stage, &attached, only).await, "failed");
    assert_eq!(stage.status("volumes", &attached).await, "in-use");
}

#[tokio::test]
async fn the_deletion_of_a_volume_whose_managing_failed_destroys_no_image() {
    let stage = Stage::new().await;
    let (volume, image, _) = volume_with(&stage, 0, "error_managing_deleting").await;
    assert_eq!(run(&stage, &volume, Delete::default()).await, "succeeded");
    assert_eq!(stage.status("volumes", &volume).await, "deleted");
    assert!(stage.seen(&image).is_some());
    assert_eq!(used(&stage, "volumes_plain").await, "1", "it was not counted any more");
}
