//! Clients of a site that volumes have left: who is fenced, when, and who never is.

use std::time::Duration;

use scoria::journal::Operation;
use scoria::rbd::protocol::*;
use scoria::rbd::sim::Health;
use scoria::rbd::types::MirrorMode;
use scoria::replication::fence;
use scoria::replication::intent::Intent;
use scoria::replication::orders::{Failover, Fence, Move, Order, Unfence};
use scoria::service::orders;

use crate::create_site::image;
use crate::seed::{self, BACKEND};
use crate::stage::Stage;

const POOL: &str = "volumes";
const COPIED: Duration = Duration::from_secs(6);

async fn stage(options: &str) -> (Stage, Vec<String>) {
    let stage = Stage::quick(options).await;
    let mut ids = Vec::new();
    for number in 1..=2 {
        let id = seed::volume(&stage.test, number, "in-use", ", replication_status='enabled'").await;
        image(&stage, "a", &id).await;
        let enable = MirrorEnable { pool: POOL.into(), image: name(&id), mode: MirrorMode::Journal };
        stage.sim.site("a").call(enable).await.unwrap();
        ids.push(id);
    }
    tokio::time::sleep(COPIED).await;
    (stage, ids)
}

fn name(volume: &str) -> String {
    format!("volume-{volume}")
}

async fn carried_out(stage: &Stage, order: Order) -> Operation {
    let operation = stage.ordered(order).await;
    orders::run(&stage.backend, &operation).await;
    operation
}

async fn fenced(stage: &Stage, site: &str) -> Vec<String> {
    stage.sim.site(site).call(BlocklistList {}).await.unwrap()
}

async fn rows(stage: &Stage) -> Vec<Vec<String>> {
    stage
        .test
        .rows("SELECT site, volume_id, address, state FROM scoria_fences ORDER BY volume_id, address")
        .await
}

fn away(volumes: &[&String]) -> Order {
    let volumes = Some(volumes.iter().map(|v| (*v).clone()).collect());
    Order::Move(Move { target: Some("b".into()), intent: Intent::Automatic, volumes, group: None })
}

fn close(volumes: Option<Vec<String>>) -> Order {
    Order::Fence(Fence { site: "default".into(), volumes, seconds: 3600 })
}

fn open(volumes: Option<Vec<String>>) -> Order {
    Order::Unfence(Unfence { site: "default".into(), volumes })
}

#[tokio::test]
async fn the_clients_of_what_has_left_are_fenced_and_let_in_again() {
    let (stage, ids) = stage("").await;
    assert_eq!(stage.ended(&carried_out(&stage, away(&[&ids[0]])).await).await, ["closed", "succeeded"]);
    let left = stage.sim.occupy("a", POOL, &name(&ids[0])).unwrap();
    let user = stage.sim.occupy("a", POOL, &name(&ids[1])).unwrap();
    // A volume that is served from there is never closed to its users.
    let refused = carried_out(&stage, close(Some(vec![ids[1].clone()]))).await;
    assert_eq!(stage.ended(&refused).await, ["closed", "failed"]);
    assert!(rows(&stage).await.is_empty() && fenced(&stage, "a").await.is_empty());

    assert_eq!(stage.ended(&carried_out(&stage, close(None)).await).await, ["closed", "succeeded"]);
    assert_eq!(fenced(&stage, "a").await, [left.as_str()]);
    assert!(!fenced(&stage, "a").await.contains(&user));
    let laid = stage.test.row("SELECT address, expires FROM scoria_fences WHERE state='laid'").await;
    assert_eq!(laid[0], left);
    assert_ne!(laid[1], "NULL", "until when, as the cluster says");
    // Again: nothing more, and nothing is spoilt.
    carried_out(&stage, close(None)).await;
    assert_eq!(fenced(&stage, "a").await.len(), 1);

    assert_eq!(stage.ended(&carried_out(&stage, open(None)).await).await, ["closed", "succeeded"]);
    assert!(fenced(&stage, "a").await.is_empty() && rows(&stage).await.is_empty());
    fence::reconcile(&stage.backend).await.unwrap();
    assert!(fenced(&stage, "a").await.is_empty(), "not laid again");
}

#[tokio::test]
async fn neither_rbd_mirror_nor_our_own_workers_are_fenced() {
    let (stage, ids) = stage("").await;
    carried_out(&stage, away(&[&ids[0]])).await;
    let site = stage.sim.site("a");
    let own = stage.sim.occupy("a", POOL, &name(&ids[0])).unwrap();
    let fsid = site.call(Fsid {}).await.unwrap();
    stage.backend.journal.record_client(&fsid, &own, 1).await.unwrap();
    let daemons = site.call(MirrorDaemons { pool: POOL.into() }).await.unwrap();
    assert!(!daemons.is_empty());
    carried_out(&stage, close(None)).await;
    let fenced = fenced(&stage, "a").await;
    assert!(!fenced.contains(&own) && !daemons.iter().any(|d| fenced.contains(d)), "{fenced:?}");
}

#[tokio::test]
async fn a_dead_site_is_fenced_as_soon_as_it_answers_when_that_is_wanted() {
    for (option, wanted) in [("scoria_fence_on_failover=true\n", true), ("", false)] {
        let (stage, ids) = stage(option).await;
        let left = stage.sim.occupy("a", POOL, &name(&ids[0])).unwrap();
        stage.sim.set_health("a", Health::Dead);
        let whole = Order::Failover(Failover { target: Some("b".into()), intent: Intent::Unplanned });
        assert_eq!(stage.ended(&carried_out(&stage, whole).await).await, ["closed", "succeeded"]);
        let expected: Vec<Vec<String>> = ids
            .iter()
            .filter(|_| wanted)
            .map(|id| vec!["default".into(), id.clone(), String::new(), "wanted".into()])
            .collect();
        assert_eq!(rows(&stage).await, expected);
        fence::reconcile(&stage.backend).await.unwrap();
        stage.sim.set_health("a", Health::Alive);
        assert!(fenced(&stage, "a").await.is_empty());
        fence::reconcile(&stage.backend).await.unwrap();
        assert_eq!(fenced(&stage, "a").await.contains(&left), wanted);
        // The wish ends when the site has been looked at for long enough; the fence stays on record.
        stage.test.sql("UPDATE scoria_fences SET answered_at = answered_at - INTERVAL 1 HOUR").await;
        fence::reconcile(&stage.backend).await.unwrap();
        let left_over = rows(&stage).await;
        assert!(left_over.iter().all(|row| row[3] == "laid"), "{left_over:?}");
        assert_eq!(left_over.iter().any(|row| row[2] == left), wanted);
    }
}

#[tokio::test]
async fn a_planned_failover_wants_no_fence() {
    let (stage, _) = stage("scoria_fence_on_failover=true\n").await;
    let whole = Order::Failover(Failover { target: Some("b".into()), intent: Intent::Planned });
    assert_eq!(stage.ended(&carried_out(&stage, whole).await).await, ["closed", "succeeded"]);
    assert!(rows(&stage).await.is_empty());
}

#[tokio::test]
async fn what_has_come_back_is_not_fenced_and_what_was_lifted_by_hand_is_forgotten() {
    let (stage, ids) = stage("").await;
    let sql = format!(
        "INSERT INTO scoria_fences (backend, site, volume_id, address, state, seconds, recorded_at) VALUES
         ('{BACKEND}', 'default', '{}', '', 'wanted', 60, NOW()),
         ('{BACKEND}', 'default', '{}', '192.0.2.9:0/1', 'laid', 60, NOW())",
        ids[0], ids[1]
    );
    stage.test.sql(&sql).await;
    let user = stage.sim.occupy("a", POOL, &name(&ids[0])).unwrap();
    fence::reconcile(&stage.backend).await.unwrap();
    assert!(!fenced(&stage, "a").await.contains(&user), "it is served from there");
    assert!(rows(&stage).await.is_empty());
}
