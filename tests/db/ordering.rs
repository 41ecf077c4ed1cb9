//! Orders over RPC: what is written into the journal, what is refused before, and what can be asked.

use scoria::error::Code;
use scoria::journal::NewOperation;
use scoria::rbd::sim::Health;
use scoria::rpc::{Call, Handler, envelope};
use scoria::service::handler::BackendHandler;
use scoria::service::orders;
use serde_json::{Value, json};

use crate::defects::log;
use crate::journal::accept;
use crate::seed::{self, BACKEND, id};
use crate::stage::Stage;

fn call(method: &str, args: Value, unique_id: &str, waits: bool) -> Call {
    let reply = if waits { json!("i") } else { Value::Null };
    let message = json!({"method": method, "args": args, "version": "1.0", "namespace": "replication",
        "_unique_id": unique_id, "_msg_id": reply, "_reply_q": "q", "_context_request_id": "req-7"});
    let Value::Object(message) = message else { unreachable!() };
    Call::from_delivery(&envelope::seal(&message), None).unwrap()
}

async fn asked(stage: &Stage, method: &str, args: Value) -> Result<Value, Code> {
    let handler = BackendHandler::new(stage.backend.clone(), log(), 4);
    handler.run(&call(method, args, "u", true), None).await.map_err(|e| e.code())
}

async fn methods(stage: &Stage) -> Vec<String> {
    let rows = stage.test.rows("SELECT method FROM scoria_operations ORDER BY id").await;
    rows.into_iter().map(|row| row[0].clone()).collect()
}

async fn stage() -> Stage {
    let stage = Stage::quick("").await;
    seed::volume(&stage.test, 1, "available", ", replication_status='enabled'").await;
    seed::volume(&stage.test, 2, "available", ", replication_status='disabled'").await;
    stage
}

#[tokio::test]
async fn an_order_is_the_tools_and_is_written_once() {
    let stage = stage().await;
    let args = json!({"volumes": [id(1, 1)], "target": "b", "intent": "planned"});
    let first = asked(&stage, "failover", args.clone()).await.unwrap();
    assert_eq!((&first["new"], &first["request_id"]), (&json!(true), &json!("req-7")));
    // It moves volumes: nothing else is taken meanwhile.
    assert_eq!(asked(&stage, "failover", args).await, Err(Code::Conflict));
    assert_eq!(asked(&stage, "resync", json!({"discard": "b"})).await, Err(Code::Conflict));
    assert_eq!(methods(&stage).await, ["scoria.replication.move"]);
    let status = asked(&stage, "status", json!({"operation": first["operation"]})).await.unwrap();
    assert_eq!(status["operation"]["state"], "open");
    assert_eq!((&status["active_site"], &status["sites"]), (&json!("default"), &json!(["default", "b"])));
    assert_eq!(status["open"][0]["operation"], first["operation"]);
    // The site that is left says nothing of the image, which was never made here: the order fails, and says so.
    stage.sim.set_health("b", Health::Dead);
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    orders::run(&stage.backend, &operation).await;
    let status = asked(&stage, "status", json!({"operation": first["operation"]})).await.unwrap();
    assert_eq!(
        (&status["operation"]["state"], &status["operation"]["outcome"]),
        (&json!("closed"), &json!("failed"))
    );
    assert_eq!(status["volumes"]["enabled"], 1);
}

#[tokio::test]
async fn what_makes_no_sense_is_an_exception_and_nothing_is_written() {
    let stage = stage().await;
    for (method, args, code) in [
        ("failover", json!({"target": "bogus"}), Code::InvalidReplicationTarget),
        ("failover", json!({"target": "default"}), Code::InvalidReplicationTarget),
        ("failover", json!({"volumes": [id(1, 1)], "target": "default"}), Code::InvalidReplicationTarget),
        ("failover", json!({"volumes": []}), Code::InvalidReplicationTarget),
        ("failover", json!({"volumes": [id(1, 2)], "target": "b"}), Code::InvalidVolume),
        ("failover", json!({"group": id(5, 1)}), Code::Invalid),
        ("retry", json!({"volumes": [id(1, 9)]}), Code::InvalidVolume),
        ("resync", json!({"discard": "default"}), Code::InvalidReplicationTarget),
        ("resync", json!({"discard": "b", "volumes": []}), Code::InvalidVolume),
    ] {
        assert_eq!(asked(&stage, method, args.clone()).await, Err(code), "{method} {args}");
    }
    let plain = Stage::new().await;
    assert_eq!(asked(&plain, "failover", json!({})).await, Err(Code::UnableToFailOver));
    assert!(methods(&stage).await.is_empty() && methods(&plain).await.is_empty());
}

#[tokio::test]
async fn a_cast_that_is_run_again_orders_once() {
    let mut stage = stage().await;
    let cast = call("failover", json!({"volumes": [id(1, 1)], "target": "b"}), "u-cast", false);
    assert!(cast.journaled && cast.reply.is_none());
    let new = NewOperation {
        unique_id: cast.unique_id.clone(),
        method: cast.name.into(),
        backend_host: BACKEND.into(),
        request: cast.text.clone(),
        ..NewOperation::default()
    };
    let operation = accept(&stage.backend.journal, new).await;
    let handler = BackendHandler::new(stage.backend.clone(), log(), 4);
    handler.run(&cast, Some(operation)).await.unwrap();
    assert_eq!(methods(&stage).await, ["replication.failover", "scoria.replication.move"]);
    // As if it had died before its entry was closed.
    stage
        .test
        .sql("UPDATE scoria_operations SET state='open', closed_at=NULL WHERE method='replication.failover'")
        .await;
    stage.restart();
    let handler = BackendHandler::new(stage.backend.clone(), log(), 4);
    let adopted = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap();
    let again = adopted.into_iter().find(|o| o.method() == "replication.failover").unwrap();
    let call = Call::from_journal(again.request()).unwrap();
    handler.run(&call, Some(again)).await.unwrap();
    assert_eq!(methods(&stage).await.len(), 2, "it was ordered already");
}
