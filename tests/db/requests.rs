//! Requests whose end is a row or two: uploads and reimages that cannot be, transfers.

use scoria::error::Code;
use scoria::volume::reimage::{self, Reimage};
use scoria::volume::transfer;
use scoria::volume::upload::{self, Upload};

use crate::seed;
use crate::stage::Stage;
use crate::support::TestDb;

async fn column(test: &TestDb, table: &str, column: &str, id: &str) -> String {
    test.row(&format!("SELECT {column} FROM {table} WHERE id='{id}'")).await.remove(0)
}

async fn status(stage: &Stage, volume: &str) -> String {
    column(&stage.test, "volumes", "status", volume).await
}

#[tokio::test]
async fn what_somebody_changed_meanwhile_is_left_alone_and_nobody_is_told() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "available", "").await;
    stage
        .test
        .sql(&format!(
            "INSERT INTO workers (resource_type, resource_id, status, service_id, race_preventer, deleted)
             VALUES ('Volume', '{volume}', 'deleting', 1, 0, 0)"
        ))
        .await;
    let operation = stage.operation("reimage", Some(("Volume", &volume))).await;
    let of = |id: &str| Reimage { volume_id: id.to_owned(), ..Reimage::default() };
    reimage::reimage(&stage.backend, &stage.context, &operation, of(&volume)).await.unwrap();
    let operation = stage.operation("reimage", Some(("Volume", "gone"))).await;
    reimage::reimage(&stage.backend, &stage.context, &operation, of("gone")).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(status(&stage, &volume).await, "available");
    assert!(stage.messages().await.is_empty());
    assert_eq!(stage.test.row("SELECT COUNT(*) FROM workers WHERE resource_id <> ''").await, ["1"]);
}

#[tokio::test]
async fn an_upload_that_fails_leaves_what_the_attachments_say_and_drops_the_worker() {
    let stage = Stage::new().await;
    let loose = seed::volume(&stage.test, 1, "uploading", "").await;
    let attached = seed::volume(&stage.test, 2, "uploading", "").await;
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_attachment (id, volume_id, attach_status, deleted) VALUES
               ('a', '{attached}', 'attached', 0), ('b', '{loose}', 'detached', 1);
             INSERT INTO workers (resource_type, resource_id, status, service_id, race_preventer, deleted)
             VALUES ('Volume', '{loose}', 'uploading', 1, 0, 0)"
        ))
        .await;
    for volume in [&loose, &attached] {
        let operation = stage.operation("copy_volume_to_image", Some(("Volume", volume))).await;
        // There is no Glance that would have the image.
        let request = Upload { volume_id: volume.clone(), image_id: "i".to_owned(), ..Upload::default() };
        upload::upload(&stage.backend, &stage.context, &operation, request).await.unwrap();
    }
    assert_eq!(status(&stage, &loose).await, "available");
    assert_eq!(status(&stage, &attached).await, "in-use");
    assert_eq!(stage.messages().await[0], ["VOLUME", loose.as_str(), "003", "004"]);
    assert_eq!(
        stage.test.row(&format!("SELECT COUNT(*) FROM workers WHERE resource_id='{loose}'")).await,
        ["0"]
    );
}

#[tokio::test]
async fn a_transfer_is_accepted_for_any_volume_that_exists() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "awaiting-transfer", "").await;
    transfer::accept(&stage.backend, &volume).await.unwrap();
    let missing = transfer::accept(&stage.backend, "gone").await.unwrap_err();
    assert_eq!(missing.code(), Code::VolumeNotFound);
}
