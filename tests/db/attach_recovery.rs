//! Attaching and detaching when the service dies in the middle of it.

use std::time::Duration;

use scoria::db;
use scoria::journal::{Ending, NewOperation, Operation, Outcome, ReplyTo};
use scoria::model::AttachmentDraft;
use scoria::volume::attach::{self, Attach};
use serde_json::{Map, Value, json};

use crate::journal::accept;
use crate::seed::{self, BACKEND, id};
use crate::stage::Stage;

const HOST: &str = "compute-1";

async fn call(stage: &Stage, method: &str, volume: &str) -> Operation {
    let new = NewOperation {
        unique_id: uuid::Uuid::new_v4().to_string(),
        method: method.to_owned(),
        backend_host: BACKEND.to_owned(),
        request: "{}".to_owned(),
        resource: Some(("Volume".to_owned(), volume.to_owned())),
        reply: Some(ReplyTo { queue: "q".into(), msg_id: "m".into() }),
        timeout: Some(Duration::from_secs(60)),
        ..NewOperation::default()
    };
    accept(&stage.backend.journal, new).await
}

/// The service dies; the next one takes the operation over.
async fn adopted(stage: &mut Stage) -> Operation {
    stage.restart();
    let mut adopted = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap();
    assert_eq!(adopted.len(), 1);
    adopted.remove(0)
}

fn request(volume: &str) -> Attach {
    Attach {
        volume_id: volume.to_owned(),
        instance_uuid: Some(id(7, 1)),
        host_name: Some(HOST.to_owned()),
        mountpoint: Some("/dev/vdb".to_owned()),
        mode: Some("rw".to_owned()),
    }
}

/// What `attach_volume` has written when it dies before its last transaction.
async fn begin(operation: &Operation, volume: &str) {
    let draft = AttachmentDraft {
        volume_id: volume.to_owned(),
        instance_uuid: None,
        attached_host: None,
        mountpoint: None,
        attach_mode: Some("rw".to_owned()),
    };
    operation
        .write("t", async |conn| {
            db::volume::set_admin_metadata(conn, volume, "attached_mode", "rw").await?;
            let begun = db::attachment::create(conn, &draft).await?;
            operation.step_in(conn, "attachment", &json!({"id": begun.id, "before": null})).await
        })
        .await
        .unwrap();
}

/// Status and attach_status of the volume, then attach_status of each of its attachments.
async fn rows(stage: &Stage) -> String {
    let mut all = stage.test.rows("SELECT status, attach_status FROM volumes").await;
    all.extend(stage.test.rows("SELECT attach_status FROM volume_attachment WHERE deleted=0").await);
    all.concat().join(" ")
}

async fn mode(stage: &Stage) -> Vec<Vec<String>> {
    stage.test.rows("SELECT value FROM volume_admin_metadata WHERE deleted=0 AND `key`='attached_mode'").await
}

async fn roll_back(stage: &Stage, operation: &Operation) {
    let outcome = Outcome { ending: Ending::RolledBack, ..Outcome::succeeded() };
    attach::roll_back(&stage.backend, operation, &outcome).await.unwrap();
    assert_eq!(stage.ended(operation).await, ["closed", "rolled-back"]);
}

#[tokio::test]
async fn an_attachment_that_had_begun_is_completed_and_not_made_twice() {
    let mut stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "attaching", "").await;
    let operation = call(&stage, "attach_volume", &volume).await;
    begin(&operation, &volume).await;
    let operation = adopted(&mut stage).await;
    let attachment =
        attach::attach(&stage.backend, &stage.context, &operation, request(&volume)).await.unwrap();
    assert_eq!(attachment.attached_host.as_deref(), Some(HOST));
    assert_eq!(rows(&stage).await, "in-use attached attached");
}

#[tokio::test]
async fn an_attachment_whose_caller_has_gone_is_taken_back_unless_it_is_complete() {
    for (begun, complete) in [(false, false), (true, false), (true, true)] {
        let mut stage = Stage::new().await;
        let volume = seed::volume(&stage.test, 1, "attaching", "").await;
        let operation = call(&stage, "attach_volume", &volume).await;
        if complete {
            attach::attach(&stage.backend, &stage.context, &operation, request(&volume)).await.unwrap();
        } else if begun {
            begin(&operation, &volume).await;
        }
        let operation = adopted(&mut stage).await;
        roll_back(&stage, &operation).await;
        if complete {
            assert_eq!(rows(&stage).await, "in-use attached attached");
        } else {
            assert_eq!(rows(&stage).await, "available detached");
            assert!(mode(&stage).await.is_empty());
        }
    }
}

#[tokio::test]
async fn a_detachment_whose_caller_has_gone_is_as_if_it_had_never_begun() {
    let mut stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "available", "").await;
    let operation = call(&stage, "attach_volume", &volume).await;
    attach::attach(&stage.backend, &stage.context, &operation, request(&volume)).await.unwrap();
    stage.backend.journal.finish(&operation, &Outcome::succeeded()).await.unwrap();
    // As os-begin_detaching leaves it.
    stage.test.sql("UPDATE volumes SET status='detaching'").await;
    call(&stage, "detach_volume", &volume).await;
    let operation = adopted(&mut stage).await;
    roll_back(&stage, &operation).await;
    assert_eq!(rows(&stage).await, "in-use attached attached");
    assert_eq!(mode(&stage).await, [["rw"]]);
}

#[tokio::test]
async fn an_attachment_update_whose_caller_has_gone_leaves_the_attachment_reserved() {
    let mut stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "reserved", ", attach_status='reserved'").await;
    let attachment = id(6, 1);
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_attachment (id, volume_id, attach_status, attach_mode, deleted)
             VALUES ('{attachment}', '{volume}', 'reserved', 'rw', 0)"
        ))
        .await;
    let operation = call(&stage, "attachment_update", &volume).await;
    let connector: Map<String, Value> = json!({"host": HOST}).as_object().unwrap().clone();
    // The second time for a caller that still waits, the third for nobody.
    let update = async |stage: &Stage, operation: &Operation| {
        let (backend, context) = (&stage.backend, &stage.context);
        attach::update(backend, context, operation, &volume, &attachment, connector.clone()).await.unwrap();
    };
    update(&stage, &operation).await;
    let operation = adopted(&mut stage).await;
    update(&stage, &operation).await;
    assert_eq!(rows(&stage).await, "attaching attaching attaching");
    let operation = adopted(&mut stage).await;
    roll_back(&stage, &operation).await;
    assert_eq!(rows(&stage).await, "reserved reserved reserved");
    let left = stage.test.row("SELECT connector, attached_host FROM volume_attachment").await;
    assert_eq!(left, ["NULL", "NULL"]);
}
