//! A request whose code panics is run once more, and then its volume says that it has failed.

use std::sync::OnceLock;

use scoria::config::LogConfig;
use scoria::error::Code;
use scoria::journal::{NewOperation, Operation};
use scoria::model::Volume;
use scoria::rpc::{Call, synthetic};
use scoria::service::handler::BackendHandler;
use scoria::service::logging::{self, LogGuard, LogHandle};

use crate::create_site::{has_image, image};
use crate::journal::accept;
use crate::seed::{self, BACKEND};
use crate::stage::Stage;

/// The process's log can be made once, and is nobody's here.
pub fn log() -> LogHandle {
    static LOG: OnceLock<(LogHandle, LogGuard, tempfile::TempDir)> = OnceLock::new();
    LOG.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { file: Some(dir.path().join("log")), ..LogConfig::default() };
        let (handle, guard) = logging::init(&config).unwrap();
        (handle, guard, dir)
    })
    .0
    .clone()
}

async fn deletion(stage: &Stage) -> (Call, Operation, String) {
    let id = seed::volume(&stage.test, 1, "deleting", "").await;
    image(stage, "a", &id).await;
    let volume = Volume {
        id: id.clone(),
        volume_type_id: seed::TYPE.into(),
        status: "deleting".into(),
        ..Volume::default()
    };
    let text = synthetic::delete_volume(&stage.context, "u1", &volume).unwrap();
    let new = NewOperation {
        unique_id: "u1".into(),
        method: "delete_volume".into(),
        backend_host: BACKEND.into(),
        request: text.clone(),
        resource: Some(("Volume".into(), id.clone())),
        ..NewOperation::default()
    };
    (Call::from_journal(&text).unwrap(), accept(&stage.backend.journal, new).await, id)
}

async fn adopt(stage: &Stage) -> Operation {
    stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0)
}

#[tokio::test]
async fn a_panic_is_tried_again_and_then_a_failure() {
    let stage = Stage::new().await;
    let handler = BackendHandler::new(stage.backend.clone(), log(), 64);
    let (call, operation, id) = deletion(&stage).await;
    stage.panic_in_notifications(2);
    assert_eq!(handler.run_journaled(&call, operation).await.unwrap_err().code(), Code::Cancelled);
    let again = adopt(&stage).await;
    assert_eq!(handler.run_journaled(&call, again.clone()).await.unwrap_err().code(), Code::Internal);
    assert_eq!(stage.ended(&again).await, ["closed", "failed"]);
    assert_eq!(stage.backend.journal.open_count(), 0);
    assert_eq!(
        stage.test.row(&format!("SELECT status FROM volumes WHERE id='{id}'")).await,
        ["error_deleting"]
    );

    let stage = Stage::new().await;
    let handler = BackendHandler::new(stage.backend.clone(), log(), 64);
    let (call, operation, id) = deletion(&stage).await;
    stage.panic_in_notifications(1);
    assert!(handler.run_journaled(&call, operation).await.is_err());
    handler.run_journaled(&call, adopt(&stage).await).await.unwrap();
    assert!(!has_image(&stage, "a", &id));
}
