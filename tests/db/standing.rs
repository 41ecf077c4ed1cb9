//! Which site a backend works on: rows that are removed, members of a cluster that have missed something,
//! and members that are told too late.

use scoria::backend::DEFAULT_SITE;
use scoria::error::{Code, Error};
use scoria::replication::{failover, standing};
use serde_json::{Map, Value, json};

use crate::stage::Stage;

async fn row(stage: &Stage) -> Vec<String> {
    stage
        .test
        .row(
            "SELECT replication_status, COALESCE(active_backend_id, ''), disabled, COALESCE(disabled_reason, '')
             FROM services WHERE deleted=0",
        )
        .await
}

async fn enter(stage: &Stage) {
    standing::enter(&stage.backend, true).await.unwrap();
}

async fn beat(stage: &Stage) {
    standing::beat(&stage.backend, true).await.unwrap();
}

const OVER: &str =
    "replication_status='failed-over', active_backend_id='b', disabled=1, disabled_reason='failed-over'";
const BACK: &str = "replication_status='enabled', active_backend_id='', disabled=0, disabled_reason=''";

#[tokio::test]
async fn a_row_that_is_removed_while_we_run_is_made_again_as_it_was() {
    let stage = Stage::replicated().await;
    stage.test.sql(&format!("UPDATE services SET {OVER}")).await;
    enter(&stage).await;
    assert_eq!(stage.backend.active_name(), "b");
    stage.test.sql("UPDATE services SET deleted=1").await;
    beat(&stage).await;
    assert_eq!(stage.backend.active_name(), "b", "never back to a site that may be dead");
    assert_eq!(row(&stage).await, ["failed-over", "b", "1", "failed-over"]);
    assert_ne!(stage.backend.service().unwrap().id, 1);
    beat(&stage).await;
    assert_eq!(stage.test.row("SELECT report_count FROM services WHERE deleted=0").await, ["1"]);
}

#[tokio::test]
async fn a_failover_whose_row_is_removed_meanwhile_ends_all_the_same() {
    let stage = Stage::replicated().await;
    enter(&stage).await;
    let operation = stage.operation("failover_host", None).await;
    let removed = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        stage.test.sql("UPDATE services SET deleted=1").await;
    };
    let (over, ()) =
        tokio::join!(failover::failover(&stage.backend, &stage.context, &operation, Some("b")), removed);
    over.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    beat(&stage).await;
    assert_eq!(row(&stage).await, ["failed-over", "b", "1", "failed-over"]);
}

#[tokio::test]
async fn a_member_that_was_not_told_follows_its_cluster() {
    let stage = Stage::clustered().await;
    enter(&stage).await;
    assert_eq!(stage.backend.active_name(), DEFAULT_SITE);
    stage.test.sql(&format!("UPDATE clusters SET {OVER}")).await;
    beat(&stage).await;
    assert_eq!(stage.backend.active_name(), "b");
    assert_eq!(row(&stage).await, ["failed-over", "b", "1", "failed-over"]);
    stage.test.sql(&format!("UPDATE clusters SET {BACK}")).await;
    beat(&stage).await;
    assert_eq!(stage.backend.active_name(), DEFAULT_SITE);
    assert_eq!(row(&stage).await, ["enabled", "", "0", ""]);

    stage.test.sql("UPDATE services SET replication_status='failing-over'").await;
    beat(&stage).await;
    assert_eq!(row(&stage).await[0], "enabled", "a refused failover is over for everybody");
}

#[tokio::test]
async fn a_member_that_was_down_starts_where_its_cluster_is() {
    let stage = Stage::clustered().await;
    stage.test.sql(&format!("UPDATE clusters SET {OVER}")).await;
    enter(&stage).await;
    assert_eq!(stage.backend.active_name(), "b");
    assert_eq!(row(&stage).await, ["failed-over", "b", "1", "failed-over"]);
}

fn update(active: &str) -> Map<String, Value> {
    let Value::Object(map) = json!({"replication_status": "enabled", "active_backend_id": active}) else {
        unreachable!()
    };
    map
}

#[tokio::test]
async fn a_message_of_the_failover_before_the_last_is_not_obeyed() {
    let stage = Stage::clustered().await;
    enter(&stage).await;
    stage.test.sql(&format!("UPDATE clusters SET {OVER}")).await;
    standing::completed(&stage.backend, &update("")).await.unwrap();
    assert_eq!(stage.backend.active_name(), "b");
    assert_eq!(row(&stage).await[0], "failed-over");
}

#[tokio::test]
async fn a_member_that_cannot_follow_serves_nothing() {
    let stage = Stage::clustered().await;
    enter(&stage).await;
    stage
        .test
        .sql("UPDATE clusters SET replication_status='failed-over', active_backend_id='elsewhere'")
        .await;
    let refused = standing::completed(&stage.backend, &update("elsewhere")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidReplicationTarget);
    assert_eq!(row(&stage).await[..3], ["error", "elsewhere", "1"]);
    assert!(stage.backend.active_site().is_err());
    beat(&stage).await;
    assert!(stage.backend.active_site().is_err());
    assert_eq!(row(&stage).await[0], "error");
}

#[tokio::test]
async fn the_others_are_told_even_if_it_takes_another_try() {
    let stage = Stage::clustered().await;
    enter(&stage).await;
    stage.set_deaf(true);
    let operation = stage.operation("failover", None).await;
    let failed = failover::failover(&stage.backend, &stage.context, &operation, Some("b")).await.unwrap_err();
    assert_eq!(failed.code(), Code::Broker);
    assert_eq!(stage.backend.active_name(), "b", "it is over as far as we are concerned");
    assert_eq!(stage.ended(&operation).await, ["open", "NULL"]);
    stage.set_deaf(false);
    failover::failover(&stage.backend, &stage.context, &operation, Some("b")).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(stage.told().len(), 1);
    assert_eq!(stage.told()[0].get("active_backend_id").and_then(Value::as_str), Some("b"));
}

#[tokio::test]
async fn a_failover_that_is_given_up_says_so_to_everybody() {
    let stage = Stage::clustered().await;
    enter(&stage).await;
    stage.test.sql("UPDATE services SET replication_status='failing-over'").await;
    let operation = stage.operation("failover", None).await;
    let defect = Error::internal("a defect");
    failover::give_up(&stage.backend, &stage.context, &operation, defect).await.unwrap();
    assert_eq!(row(&stage).await[..3], ["failover-error", "", "1"]);
    assert_eq!(stage.told()[0].get("replication_status").and_then(Value::as_str), Some("failover-error"));
    assert_eq!(stage.backend.active_name(), DEFAULT_SITE);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
}
