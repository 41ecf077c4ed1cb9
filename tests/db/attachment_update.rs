//! `attachment_update`: what it stores, and what a refusal leaves.

use scoria::error::{Code, Error};
use scoria::rbd::RbdErrorKind;
use scoria::rbd::sim::{Fault, When};
use scoria::volume::attach;
use serde_json::{Map, Value, json};

use crate::seed;
use crate::stage::Stage;

/// An attachment as attachment-create leaves it; `mode` is SQL.
async fn reserved(stage: &Stage, mode: &str) -> (String, String) {
    let volume = seed::volume(&stage.test, 1, "reserved", "").await;
    stage.image(&volume).await;
    let id = seed::id(4, 1);
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_attachment (id, volume_id, attach_status, attach_mode, deleted)
             VALUES ('{id}', '{volume}', 'reserved', {mode}, 0)"
        ))
        .await;
    (volume, id)
}

async fn update(stage: &Stage, volume: &str, attachment: &str, connector: Value) -> Result<Value, Error> {
    let operation = stage.operation("attachment_update", Some(("Volume", volume))).await;
    let connector: Map<String, Value> = connector.as_object().unwrap().clone();
    attach::update(&stage.backend, &stage.context, &operation, volume, attachment, connector).await
}

async fn row(stage: &Stage, attachment: &str) -> (String, String, Value) {
    let columns = format!(
        "SELECT attach_status, attach_mode, connector FROM volume_attachment WHERE id='{attachment}'"
    );
    let row = stage.test.row(&columns).await;
    (row[0].clone(), row[1].clone(), serde_json::from_str(&row[2]).unwrap_or_default())
}

#[tokio::test]
async fn an_attachment_without_a_mode_keeps_none() {
    let stage = Stage::new().await;
    let (volume, attachment) = reserved(&stage, "NULL").await;
    let info = update(&stage, &volume, &attachment, json!({"host": "h"})).await.unwrap();
    assert_eq!(info["access_mode"], "rw");
    let (status, mode, connector) = row(&stage, &attachment).await;
    assert_eq!((status.as_str(), mode.as_str()), ("attaching", "NULL"));
    assert_eq!(connector, json!({"host": "h", "mode": null}));
    assert_eq!(stage.status("volumes", &volume).await, "attaching");
}

#[tokio::test]
async fn a_connector_that_asks_for_reading_only_gets_no_more() {
    let stage = Stage::new().await;
    let (volume, attachment) = reserved(&stage, "NULL").await;
    let connector = json!({"host": "h", "mode": "ro", "enforce_multipath": true});
    let info = update(&stage, &volume, &attachment, connector).await.unwrap();
    assert_eq!((&info["access_mode"], &info["enforce_multipath"]), (&json!("ro"), &json!(true)));
    assert_eq!(row(&stage, &attachment).await.1, "NULL");

    // The text 'null': the connector's mode counts, and is stored.
    stage.test.sql("UPDATE volume_attachment SET attach_mode='null'").await;
    update(&stage, &volume, &attachment, json!({"host": "h", "mode": "ro"})).await.unwrap();
    assert_eq!(row(&stage, &attachment).await.1, "ro");
}

#[tokio::test]
async fn a_connection_that_ceph_refuses_leaves_the_attachment_as_it_was() {
    let stage = Stage::new().await;
    let (volume, attachment) = reserved(&stage, "'rw'").await;
    stage.sim.inject(Fault::on("MonDump").always().fails(When::Before, RbdErrorKind::Other));
    let refusal = update(&stage, &volume, &attachment, json!({"host": "h"})).await.unwrap_err();
    assert_eq!(refusal.code(), Code::VolumeBackend);
    assert_eq!(row(&stage, &attachment).await.0, "reserved");
    assert!(stage.messages().await.is_empty());
    assert_eq!(stage.status("volumes", &volume).await, "reserved");
}

#[tokio::test]
async fn the_configured_geometry_of_disks_is_told() {
    for (geometry, physical, logical) in
        [("512", "512", "512"), ("512e", "4096", "512"), ("4k", "4096", "4096")]
    {
        let stage = Stage::with(&format!("disk_geometry={geometry}\n")).await;
        let (volume, attachment) = reserved(&stage, "'rw'").await;
        let info = update(&stage, &volume, &attachment, json!({"host": "h"})).await.unwrap();
        assert_eq!(
            (&info["physical_block_size"], &info["logical_block_size"]),
            (&json!(physical), &json!(logical))
        );
    }
}
