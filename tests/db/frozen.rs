//! A frozen backend destroys nothing, whoever asks, and leaves everything usable.

use std::time::Duration;

use scoria::journal::Operation;
use scoria::rbd::sim::Fault;
use scoria::volume::delete::{self, Delete};
use scoria::volume::reimage::{self, Reimage};
use scoria::volume::revert::{self, Revert};
use scoria::volume::{frozen, group, snapshot};

use crate::seed;
use crate::stage::Stage;

async fn freeze(stage: &Stage, frozen: bool) {
    stage.test.sql(&format!("UPDATE services SET frozen={}", i32::from(frozen))).await;
}

async fn frozen_stage() -> Stage {
    let stage = Stage::new().await;
    freeze(&stage, true).await;
    stage
}

async fn volume(stage: &Stage, number: u32, status: &str, extra: &str) -> (String, String) {
    let id = seed::volume(&stage.test, number, status, extra).await;
    let image = stage.image(&id).await;
    (id, image)
}

async fn delete(stage: &Stage, id: &str, request: Delete) -> Operation {
    let operation = stage.operation("delete_volume", Some(("Volume", id))).await;
    let request = Delete { volume_id: id.to_owned(), ..request };
    delete::delete(&stage.backend, &stage.context, &operation, request).await.unwrap();
    operation
}

#[tokio::test]
async fn volumes_and_snapshots_stay_and_go_when_it_is_thawed() {
    let stage = frozen_stage().await;
    let (id, image) = volume(&stage, 1, "deleting", "").await;
    let snap = seed::snapshot(&stage.test, 1, &id, "deleting").await;
    stage.snapped(&image, &snap).await;
    let operation = delete(&stage, &id, Delete { cascade: true, ..Delete::default() }).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.status("volumes", &id).await, "available");
    assert_eq!(stage.status("snapshots", &snap).await, "available");
    stage.test.sql("UPDATE snapshots SET status='deleting'").await;
    let operation = stage.operation("delete_snapshot", Some(("Snapshot", &snap))).await;
    snapshot::delete(&stage.backend, &stage.context, &operation, &snap, false).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.status("snapshots", &snap).await, "available");
    assert_eq!(stage.messages().await.len(), 1);
    assert_eq!(stage.seen(&image).unwrap().snaps.len(), 1);

    freeze(&stage, false).await;
    stage.test.sql("UPDATE volumes SET status='deleting'; UPDATE snapshots SET status='deleting'").await;
    let operation = delete(&stage, &id, Delete { cascade: true, ..Delete::default() }).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert!(stage.seen(&image).is_none());
}

#[tokio::test]
async fn what_destroys_nothing_is_done_and_the_rest_of_a_migration_goes() {
    let stage = frozen_stage().await;
    let (id, image) = volume(&stage, 1, "unmanaging", "").await;
    let unmanage = Delete { unmanage_only: true, ..Delete::default() };
    assert_eq!(stage.ended(&delete(&stage, &id, unmanage).await).await, ["closed", "succeeded"]);
    assert!(stage.seen(&image).is_some());
    let (id, image) = volume(&stage, 2, "deleting", ", migration_status='target:x'").await;
    assert_eq!(stage.ended(&delete(&stage, &id, Delete::default()).await).await, ["closed", "succeeded"]);
    assert!(stage.seen(&image).is_none());
}

#[tokio::test]
async fn groups_and_their_snapshots_stay() {
    let stage = frozen_stage().await;
    let group_id = seed::group(&stage.test, 1, "deleting", "disabled").await;
    let (id, image) = volume(&stage, 1, "deleting", &format!(", group_id='{group_id}'")).await;
    let operation = stage.operation("delete_group", Some(("Group", &group_id))).await;
    group::delete(&stage.backend, &stage.context, &operation, &group_id).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.status("`groups`", &group_id).await, "error");
    assert_eq!(stage.status("volumes", &id).await, "available");
    assert!(stage.seen(&image).is_some());
}

#[tokio::test]
async fn nothing_is_written_over() {
    let stage = frozen_stage().await;
    let (id, image) = volume(&stage, 1, "reverting", "").await;
    let snap = seed::snapshot(&stage.test, 1, &id, "restoring").await;
    stage.snapped(&image, &snap).await;
    let operation = stage.operation("revert_to_snapshot", Some(("Volume", &id))).await;
    let request = Revert { volume_id: id.clone(), snapshot_id: snap.clone() };
    revert::revert(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(
        (stage.status("volumes", &id).await, stage.status("snapshots", &snap).await),
        ("available".into(), "available".into())
    );
    assert_eq!(stage.sim.count("SnapRollback") + stage.sim.count("SnapRestore"), 0);

    stage.test.sql("UPDATE volumes SET status='downloading', previous_status='reserved'").await;
    let operation = stage.operation("reimage", Some(("Volume", &id))).await;
    let request = Reimage { volume_id: id.clone(), ..Reimage::default() };
    reimage::reimage(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.status("volumes", &id).await, "reserved");
}

#[tokio::test]
async fn a_deletion_that_may_have_begun_is_not_called_off() {
    let mut stage = Stage::new().await;
    let (id, _) = volume(&stage, 1, "deleting", "").await;
    stage.sim.inject(Fault::on("ImageRemove").sticks().always());
    let operation = stage.operation("delete_volume", Some(("Volume", &id))).await;
    let request = Delete { volume_id: id.clone(), ..Delete::default() };
    let begun = delete::delete(&stage.backend, &stage.context, &operation, request.clone());
    assert!(tokio::time::timeout(Duration::from_secs(1), begun).await.is_err());
    stage.sim.clear_faults();
    stage.restart();
    freeze(&stage, true).await;
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    delete::delete(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.status("volumes", &id).await, "error_deleting", "nobody can tell what is left of it");
}

#[tokio::test]
async fn the_rows_of_service_and_cluster_count_and_an_option_switches_it_off() {
    let stage = Stage::clustered().await;
    assert!(!frozen::is(&stage.backend).await.unwrap());
    stage.test.sql("UPDATE clusters SET frozen=1").await;
    assert!(frozen::is(&stage.backend).await.unwrap());
    let stage = Stage::with("scoria_frozen_blocks_deletes=false\n").await;
    freeze(&stage, true).await;
    let (id, image) = volume(&stage, 1, "deleting", "").await;
    assert_eq!(stage.ended(&delete(&stage, &id, Delete::default()).await).await, ["closed", "succeeded"]);
    assert!(stage.seen(&image).is_none());
}
