//! Requests as stock's API sent them, and our answers beside those that stock's cinder-volume gave.

use std::collections::BTreeSet;

use scoria::config::LogConfig;
use scoria::rpc::{Accept, Call, Handler, Reply, envelope};
use scoria::service::handler::BackendHandler;
use scoria::service::logging;
use serde_json::{Map, Value, json};

use crate::seed;
use crate::stage::Stage;
use crate::support::TestDb;

fn body(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/wire/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let capture: Value = serde_json::from_slice(&std::fs::read(&path).expect(&path)).unwrap();
    capture["body"].as_str().unwrap().as_bytes().to_vec()
}

/// Keys of the connection info that each driver has of its own: theirs, and those of RBD.
const THEIRS: [&str; 1] = ["device_path"];
const OURS: [&str; 10] = [
    "name",
    "hosts",
    "ports",
    "cluster_name",
    "auth_enabled",
    "auth_username",
    "secret_type",
    "secret_uuid",
    "volume_id",
    "discard",
];

/// What is left of a connection info without the driver's own, each with its type.
fn common(info: &Value, own: &[&str]) -> BTreeSet<String> {
    let info = info.as_object().unwrap();
    for key in own {
        assert!(info.contains_key(*key), "{key}");
    }
    let kind = |v: &Value| match v {
        Value::String(_) => "text".to_owned(),
        other => other.to_string(),
    };
    info.iter()
        .filter(|(k, _)| !own.contains(&k.as_str()))
        .map(|(k, v)| format!("{k}: {}", kind(v)))
        .collect()
}

struct Service {
    test: TestDb,
    handler: BackendHandler,
}

impl Service {
    /// The whole reply to a captured call, and the captured reply.
    async fn answer(&self, method: &str) -> (Map<String, Value>, Map<String, Value>) {
        let call = Call::from_delivery(&body(&format!("{method}-call-to-cinder-volume")), None).unwrap();
        let operation = match call.journaled {
            true => match self.handler.accept(&call).await.unwrap() {
                Accept::New(operation) => Some(operation),
                Accept::Duplicate => panic!("{method}: a duplicate"),
            },
            false => None,
        };
        let outcome = self.handler.run(&call, operation).await;
        let theirs = envelope::open(&body(&format!("{method}-call-to-cinder-volume-reply-ending"))).unwrap();
        let ours =
            Reply::new(outcome.as_ref().map(Value::clone)).into_message(theirs["_msg_id"].as_str().unwrap());
        (ours, theirs)
    }

    /// A volume with the id that the captured call names.
    async fn volume(&self, number: u32, id: &str, status: &str) {
        let seeded = seed::volume(&self.test, number, status, "").await;
        self.test.sql(&format!("UPDATE volumes SET id='{id}' WHERE id='{seeded}'")).await;
    }

    async fn attachment(&self, id: &str, volume: &str, status: &str) {
        self.test
            .sql(&format!(
                "INSERT INTO volume_attachment (id, volume_id, attach_status, attach_mode, deleted)
                 VALUES ('{id}', '{volume}', '{status}', 'null', 0)"
            ))
            .await;
    }
}

#[tokio::test]
async fn calls_are_answered_as_by_stock() {
    let Stage { test, backend, .. } = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("log.conf");
    std::fs::write(&conf, format!("[DEFAULT]\nlog_file={}\n", dir.path().join("log").display())).unwrap();
    let (log, _) = LogConfig::load(&[conf], &[], std::iter::empty()).unwrap();
    let (log, _guard) = logging::init(&log).unwrap();
    let service = Service { test, handler: BackendHandler::new(backend, log, 64) };

    let detached = "20553ab9-2df9-4ae5-944a-b9cf5c378f88";
    let connected = "66aba478-58b5-4dab-8462-43ba2e22cc3b";
    service.volume(1, detached, "detaching").await;
    service.volume(2, connected, "reserved").await;
    service.volume(3, "cc88f396-ad1b-4141-aed0-d9a6516efbb2", "available").await;
    service.volume(4, "b61a9c57-2fd4-4b88-9d21-21ca27c9cbe5", "awaiting-transfer").await;
    service.attachment("fe0aa9b2-e15d-47b0-9285-5005089288e7", detached, "attached").await;
    service.attachment("663efae5-6f1d-4847-b210-d1eda8766b8f", connected, "reserved").await;

    for method in [
        "attachment_delete",
        "terminate_connection",
        "detach_volume",
        "remove_export",
        "accept_transfer",
        "secure_file_operations_enabled",
        "freeze_host",
        "thaw_host",
    ] {
        let (mut ours, theirs) = service.answer(method).await;
        // New in every message.
        assert!(ours.insert("_unique_id".to_owned(), theirs["_unique_id"].clone()).is_some());
        assert_eq!(ours, theirs, "{method}");
    }
    let (ours, theirs) = service.answer("initialize_connection").await;
    assert_eq!(ours["failure"], Value::Null);
    assert_eq!(common(&ours["result"]["data"], &OURS), common(&theirs["result"]["data"], &THEIRS));
    assert_eq!(ours["result"].as_object().unwrap().len(), theirs["result"].as_object().unwrap().len());
    let (ours, theirs) = service.answer("attachment_update").await;
    assert_eq!(ours["failure"], Value::Null);
    assert_eq!(common(&ours["result"], &OURS), common(&theirs["result"], &THEIRS));
    assert_eq!(ours["result"]["attachment_id"], json!("663efae5-6f1d-4847-b210-d1eda8766b8f"));

    let (ours, theirs) = service.answer("get_capabilities").await;
    assert_eq!(ours["result"]["properties"], theirs["result"]["properties"]);
}
