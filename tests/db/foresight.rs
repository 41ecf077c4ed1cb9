//! Questions before a failover, the repair of what an audit finds, and attachments after one: over the simulator.

use std::time::Duration;

use scoria::db::volume;
use scoria::journal::{NewOperation, Operation};
use scoria::rbd::protocol::*;
use scoria::rbd::sim::When;
use scoria::rbd::sim::crash::explored;
use scoria::rbd::types::MirrorMode;
use scoria::replication::failover;
use scoria::replication::foresight::Inquiry;
use scoria::replication::orders::{Order, Refresh, Repair, Request};
use scoria::service::orders;
use scoria::volume::attach;
use serde_json::{Map, Value, json};

use crate::create_site::image;
use crate::seed::{self, BACKEND, id};
use crate::stage::Stage;

const POOL: &str = "volumes";
/// Long enough for the simulator's daemons to copy an image and to link it.
const COPIED: Duration = Duration::from_secs(6);

fn name(volume: &str) -> String {
    format!("volume-{volume}")
}

async fn mirrored(stage: &Stage, number: u32, status: &str, extra: &str) -> String {
    let volume = seed::volume(
        &stage.test,
        number,
        "available",
        &format!(", replication_status='{status}', replication_driver_data='{{}}'{extra}"),
    )
    .await;
    image(stage, "a", &volume).await;
    let enable = MirrorEnable { pool: POOL.into(), image: name(&volume), mode: MirrorMode::Journal };
    stage.sim.site("a").call(enable).await.unwrap();
    volume
}

fn order(order: Order, timeout: Option<Duration>) -> NewOperation {
    let request = Request::new(order);
    NewOperation {
        unique_id: uuid::Uuid::new_v4().to_string(),
        method: request.order.method().to_owned(),
        backend_host: BACKEND.to_owned(),
        request: request.to_text().unwrap(),
        timeout,
        ..NewOperation::default()
    }
}

async fn adopt(stage: &Stage) -> Operation {
    stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0)
}

/// Asks as the tool does, and answers as the service does.
async fn ask(stage: &Stage, inquiry: Inquiry) -> (Operation, Option<Value>) {
    let asked = order(Order::Inquire(inquiry), Some(Duration::from_secs(60)));
    let number = stage.backend.journal.ask(&asked).await.unwrap();
    let operation = adopt(stage).await;
    assert_eq!(operation.id(), number);
    orders::run(&stage.backend, &operation).await;
    let answer = stage.backend.journal.take_answer(number).await.unwrap();
    (operation, answer)
}

async fn rows(stage: &Stage) -> Vec<Vec<String>> {
    stage
        .test
        .rows(
            "SELECT v.replication_status, COALESCE(s.site, '-') FROM volumes v \
             LEFT JOIN scoria_strays s ON s.volume_id = v.id WHERE v.deleted = 0 ORDER BY v.id",
        )
        .await
}

#[tokio::test]
async fn questions_are_answered_once_and_touch_nothing() {
    let stage = Stage::quick("").await;
    let moves = mirrored(&stage, 1, "enabled", ", attach_status='attached', display_name='db'").await;
    seed::volume(&stage.test, 2, "available", ", replication_status='disabled'").await;
    tokio::time::sleep(COPIED).await;
    let before = rows(&stage).await;
    stage.sim.clear_log();

    let (operation, answer) = ask(&stage, Inquiry::Preflight { to: None }).await;
    let answer = answer.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!((&answer["ready"], &answer["to"]), (&json!(true), &json!("b")), "{answer:#}");
    assert_eq!(answer["volumes"], json!({"move": 1, "not-capable": 1}), "{answer:#}");
    assert_eq!(answer["sites"][0]["peers"][0]["direction"], "both", "{answer:#}");
    // It is gone from the journal, also for whoever looks closer.
    assert_eq!(stage.backend.journal.take_answer(operation.id()).await.unwrap(), None);
    assert_eq!(stage.test.row("SELECT COUNT(*) FROM scoria_operations WHERE reply IS NOT NULL").await, ["0"]);

    let (_, plan) =
        ask(&stage, Inquiry::Plan { to: Some("b".into()), volumes: Some(vec![moves.clone()]) }).await;
    let plan = plan.unwrap();
    assert_eq!(plan["counts"], json!({"move": 1}), "{plan:#}");
    assert_eq!(plan["volumes"][0]["attached"], true);
    assert_eq!(plan["time"]["seconds"], Value::Null);
    let changing =
        ["Enable", "Disable", "Promote", "Demote", "Resync", "Create", "Remove", "Write", "BlocklistAdd"];
    for call in stage.sim.log() {
        assert!(!changing.iter().any(|c| call.request.contains(c)), "{}", call.request);
    }
    assert_eq!(rows(&stage).await, before);

    // What a failover would refuse is refused here.
    let (operation, none) = ask(&stage, Inquiry::Plan { to: Some("nowhere".into()), volumes: None }).await;
    assert_eq!((none, stage.ended(&operation).await), (None, vec!["closed".to_owned(), "failed".to_owned()]));
    let (operation, none) = ask(&stage, Inquiry::Plan { to: None, volumes: Some(vec![id(1, 99)]) }).await;
    assert_eq!((none, stage.ended(&operation).await), (None, vec!["closed".to_owned(), "failed".to_owned()]));

    // Nobody waits for this one any more, and nobody takes that one.
    let late = order(Order::Inquire(Inquiry::Monitors {}), Some(Duration::from_millis(1)));
    stage.backend.journal.ask(&late).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let operation = adopt(&stage).await;
    orders::run(&stage.backend, &operation).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "rolled-back"]);
    let left = order(Order::Inquire(Inquiry::Monitors {}), Some(Duration::from_millis(700)));
    stage.backend.journal.ask(&left).await.unwrap();
    orders::run(&stage.backend, &adopt(&stage).await).await;
    assert_eq!(stage.test.row("SELECT COUNT(*) FROM scoria_operations WHERE reply IS NOT NULL").await, ["1"]);
    tokio::time::sleep(Duration::from_millis(900)).await;
    stage.backend.journal.purge().await.unwrap();
    assert_eq!(stage.test.row("SELECT COUNT(*) FROM scoria_operations WHERE reply IS NOT NULL").await, ["0"]);

    // After a failover there is something to measure the next one by.
    let operation = stage.operation("failover_host", None).await;
    failover::failover(&stage.backend, &stage.context, &operation, Some("b")).await.unwrap();
    let (_, plan) = ask(&stage, Inquiry::Plan { to: Some("default".into()), volumes: None }).await;
    let plan = plan.unwrap();
    assert!(plan["time"]["seconds"].is_number(), "{plan:#}");
    assert!(plan["time"]["basis"].as_str().unwrap().contains(&format!("operation {}", operation.id())));
}

/// Volumes that all disagree with Ceph: not mirrored, mirrored and not said so, moved by hand, back and not said so,
/// gone; an image of nobody's; and a row about nothing.
async fn drifted(stage: &Stage) -> Vec<String> {
    let bare = seed::volume(&stage.test, 1, "available", ", replication_status='enabled'").await;
    image(stage, "a", &bare).await;
    let unsaid = mirrored(stage, 2, "disabled", "").await;
    let elsewhere = mirrored(stage, 3, "enabled", "").await;
    let back = mirrored(stage, 4, "failover-error", "").await;
    let gone = seed::volume(&stage.test, 5, "available", ", replication_status='enabled'").await;
    image(stage, "a", &id(1, 77)).await;
    let golden =
        ImageCreate { pool: POOL.into(), image: "golden".into(), size: 1 << 22, order: 22, features: 61 };
    stage.sim.site("a").call(golden).await.unwrap();
    stage
        .test
        .sql(&format!(
            "INSERT INTO scoria_strays VALUES ('{back}', 'b', '2026-01-01'), ('{}', 'b', '2026-01-01')",
            id(1, 88)
        ))
        .await;
    tokio::time::sleep(COPIED).await;
    let image = name(&elsewhere);
    stage.sim.site("a").call(MirrorDemote { pool: POOL.into(), image: image.clone() }).await.unwrap();
    let promote = MirrorPromote { pool: POOL.into(), image, force: false };
    for _ in 0..50 {
        if stage.sim.site("b").call(promote.clone()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(stage.sim.primaries(POOL, &name(&elsewhere)), ["b"]);
    vec![bare, unsaid, elsewhere, back, gone]
}

#[tokio::test]
async fn what_an_audit_finds_is_mended_however_often_the_service_dies() {
    let mut stage = Stage::replicated().await;
    let ids = drifted(&stage).await;
    let (_, audit) = ask(&stage, Inquiry::Audit { volumes: None }).await;
    let audit = audit.unwrap();
    let found: Vec<(&str, bool)> = audit["drifts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (d["code"].as_str().unwrap(), !d["repair"].is_null()))
        .collect();
    assert_eq!(
        found,
        [
            ("image-missing", false),
            ("not-mirrored", true),
            ("primary-elsewhere", true),
            ("primary-elsewhere", true),
            ("mirrored-unsaid", true),
            ("orphan", false),
            ("rows-of-nothing", true),
        ],
        "{audit:#}"
    );
    let new = order(Order::Repair(Repair { volumes: None }), None);
    stage.backend.journal.submit(&new).await.unwrap();
    let mut operation = adopt(&stage).await;
    let mut kills = 0;
    // Later each time, and each time from the beginning: at every other call, in the end.
    for k in (1..).step_by(2) {
        stage.sim.kill_at(k, if k % 4 == 1 { When::Before } else { When::After });
        let killed = tokio::select! {
            biased;
            () = stage.sim.crashed() => true,
            () = orders::run(&stage.backend, &operation) => false,
        };
        stage.sim.restart();
        if !killed {
            break;
        }
        kills += 1;
        stage.restart();
        operation = adopt(&stage).await;
    }
    assert!(kills > 8, "{kills}");
    explored(kills);
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(
        rows(&stage).await,
        [["enabled", "-"], ["enabled", "-"], ["failover-error", "b"], ["enabled", "-"], ["enabled", "-"]]
    );
    let seen = stage.seen(&name(&ids[0])).unwrap();
    assert_eq!((seen.mirror, seen.primary), (Some(MirrorMode::Journal), true));
    let data = stage.column("volumes", "replication_driver_data", &ids[0]).await;
    assert_eq!(
        data, r#"{"had_exclusive_lock":true,"had_journaling":false}"#,
        "as it was before the first try"
    );
    let row = stage.test.db.read("t", async |conn| volume::get(conn, &ids[2]).await).await.unwrap();
    assert_eq!(stage.backend.place(&row).await.unwrap().site.name(), "b", "served from where it is primary");
    assert_eq!(stage.test.row("SELECT COUNT(*) FROM scoria_strays").await, ["1"]);
    assert!(stage.seen("golden").is_some() && stage.seen(&name(&id(1, 77))).is_some(), "nothing is removed");
    stage.sim.assert_no_split_brain_created();

    // What is left is an operator's; given again, the order does nothing.
    tokio::time::sleep(COPIED).await;
    let (_, audit) = ask(&stage, Inquiry::Audit { volumes: None }).await;
    let audit = audit.unwrap();
    let drifts = audit["drifts"].as_array().unwrap();
    assert!(drifts.iter().all(|d| d["repair"].is_null()), "{audit:#}");
    let before = rows(&stage).await;
    stage.backend.journal.submit(&order(Order::Repair(Repair { volumes: None }), None)).await.unwrap();
    let again = adopt(&stage).await;
    orders::run(&stage.backend, &again).await;
    assert_eq!(
        (stage.ended(&again).await, rows(&stage).await),
        (vec!["closed".into(), "succeeded".into()], before)
    );
}

#[tokio::test]
async fn nothing_is_repaired_while_volumes_are_being_moved() {
    let stage = Stage::replicated().await;
    let bare = seed::volume(&stage.test, 1, "available", ", replication_status='enabled'").await;
    image(&stage, "a", &bare).await;
    stage.backend.journal.submit(&order(Order::Repair(Repair { volumes: None }), None)).await.unwrap();
    let repair = adopt(&stage).await;
    let moving = stage.operation("failover_host", None).await;
    orders::run(&stage.backend, &repair).await;
    assert_eq!(stage.ended(&repair).await, ["closed", "failed"]);
    assert_eq!(stage.seen(&name(&bare)).unwrap().mirror, None);
    assert_eq!(stage.ended(&moving).await, ["open", "NULL"]);
}

fn connector() -> Map<String, Value> {
    let Value::Object(connector) = json!({"host": "compute1", "mountpoint": "/dev/vdb", "mode": "rw"}) else {
        unreachable!()
    };
    connector
}

/// `attachment_update`, and its answer stored as cinder-api does.
async fn attach(stage: &Stage, volume: &str, attachment: &str) -> Value {
    stage
        .test
        .sql(&format!(
            "UPDATE volumes SET status='reserved' WHERE id='{volume}';
             INSERT INTO volume_attachment (id, volume_id, instance_uuid, attach_status, attach_mode, deleted) \
             VALUES ('{attachment}', '{volume}', '{}', 'reserved', 'rw', 0)",
            id(7, 1)
        ))
        .await;
    let operation = stage.operation("attachment_update", Some(("Volume", volume))).await;
    let info = attach::update(&stage.backend, &stage.context, &operation, volume, attachment, connector())
        .await
        .unwrap();
    let done = scoria::journal::Outcome::succeeded();
    stage.backend.journal.finish(&operation, &done).await.unwrap();
    let text = info.to_string().replace('\'', "''");
    stage
        .test
        .sql(&format!(
            "UPDATE volume_attachment SET connection_info='{text}', attach_status='attached' WHERE id='{attachment}';
             UPDATE volumes SET status='in-use', attach_status='attached' WHERE id='{volume}'"
        ))
        .await;
    info
}

#[tokio::test]
async fn after_a_failover_attachments_name_the_new_site() {
    let stage = Stage::replicated().await;
    stage.test.sql("UPDATE services SET replication_status='failing-over'").await;
    let attached = mirrored(&stage, 1, "enabled", "").await;
    let free = mirrored(&stage, 2, "enabled", "").await;
    let home = attach(&stage, &attached, &id(8, 1)).await;
    assert_eq!((&home["hosts"], &home["cluster_name"]), (&json!(["127.0.0.1"]), &json!("ceph")));
    tokio::time::sleep(COPIED).await;
    let operation = stage.operation("failover_host", None).await;
    failover::failover(&stage.backend, &stage.context, &operation, Some("b")).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    // As upstream: the volume stays in use, and its attachment as it is.
    let row = stage
        .test
        .row(&format!("SELECT status, replication_status, attach_status FROM volumes WHERE id='{attached}'"))
        .await;
    assert_eq!(row, ["in-use", "failed-over", "attached"]);
    let stored = async || {
        let text = stage.column("volume_attachment", "connection_info", &id(8, 1)).await;
        serde_json::from_str::<Value>(&text).unwrap()
    };
    assert_eq!(stored().await, home);

    // A new one is right by itself.
    let new = attach(&stage, &free, &id(8, 2)).await;
    assert_eq!((&new["hosts"], &new["cluster_name"]), (&json!(["127.0.0.2"]), &json!("b")), "{new:#}");
    let (_, monitors) = ask(&stage, Inquiry::Monitors {}).await;
    assert_eq!(monitors.unwrap()["b"]["monitors"]["hosts"], json!(["127.0.0.2"]));

    for changed in ["1 attachments rewritten, 1 were right", "0 attachments rewritten, 2 were right"] {
        stage.backend.journal.submit(&order(Order::Refresh(Refresh { volumes: None }), None)).await.unwrap();
        let refresh = adopt(&stage).await;
        orders::run(&stage.backend, &refresh).await;
        let detail = stage
            .test
            .row(&format!("SELECT outcome_detail FROM scoria_operations WHERE id={}", refresh.id()))
            .await;
        assert_eq!(detail, [changed]);
        let after = stored().await;
        let mut expected = home.clone();
        for key in ["hosts", "ports", "cluster_name", "auth_enabled", "auth_username", "secret_uuid"] {
            expected[key] = new[key].clone();
        }
        assert_eq!(after, expected, "only what depends on the site has changed");
    }
}
