//! Orders that move some volumes, a group or the backend, over the simulator: what the rows say at every end.

use std::collections::HashMap;
use std::time::Duration;

use scoria::rbd::protocol::*;
use scoria::rbd::sim::crash::explored;
use scoria::rbd::sim::{Fault, Health};
use scoria::rbd::types::MirrorMode;
use scoria::replication::intent::Intent;
use scoria::replication::orders::{Failover, Move, Order};
use scoria::service::orders;

use crate::create_site::image;
use crate::seed;
use crate::stage::{Stage, lives};

const POOL: &str = "volumes";
/// Long enough for the simulator's daemons to copy an image and to link it.
const COPIED: Duration = Duration::from_secs(6);

fn name(volume: &str) -> String {
    format!("volume-{volume}")
}

/// Mirrored volumes, and a service row that accepts failovers.
async fn stage(volumes: u32) -> (Stage, Vec<String>) {
    let stage = Stage::quick("").await;
    let mut ids = Vec::new();
    for number in 1..=volumes {
        let id = seed::volume(&stage.test, number, "in-use", ", replication_status='enabled'").await;
        image(&stage, "a", &id).await;
        let enable = MirrorEnable { pool: POOL.into(), image: name(&id), mode: MirrorMode::Journal };
        stage.sim.site("a").call(enable).await.unwrap();
        ids.push(id);
    }
    tokio::time::sleep(COPIED).await;
    (stage, ids)
}

async fn carried_out(stage: &Stage, what: Order) -> Vec<String> {
    let operation = stage.ordered(what).await;
    orders::run(&stage.backend, &operation).await;
    stage.ended(&operation).await
}

fn some(volumes: &[&String], to: &str, intent: Intent) -> Order {
    let volumes = Some(volumes.iter().map(|v| (*v).clone()).collect());
    Order::Move(Move { target: Some(to.into()), intent, volumes, group: None })
}

fn backend_to(to: &str, intent: Intent) -> Order {
    Order::Failover(Failover { target: Some(to.into()), intent })
}

async fn statuses(stage: &Stage) -> Vec<String> {
    let rows = stage.test.rows("SELECT status, replication_status FROM volumes ORDER BY id").await;
    rows.into_iter().map(|row| row.join(" ")).collect()
}

async fn strays(stage: &Stage) -> HashMap<String, String> {
    let rows = stage.test.rows("SELECT volume_id, site FROM scoria_strays").await;
    rows.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect()
}

async fn service(stage: &Stage) -> Vec<String> {
    stage
        .test
        .row("SELECT replication_status, active_backend_id, disabled, disabled_reason FROM services")
        .await
}

#[tokio::test]
async fn a_volume_goes_by_itself_and_comes_back() {
    let (stage, ids) = stage(2).await;
    let before = service(&stage).await;
    assert_eq!(carried_out(&stage, some(&[&ids[0]], "b", Intent::Planned)).await, ["closed", "succeeded"]);
    assert_eq!(statuses(&stage).await, ["in-use failed-over", "in-use enabled"]);
    assert_eq!(strays(&stage).await, HashMap::from([(ids[0].clone(), "b".to_owned())]));
    assert_eq!(stage.sim.primaries(POOL, &name(&ids[0])), ["b"]);
    assert_eq!(stage.sim.primaries(POOL, &name(&ids[1])), ["a"]);
    assert_eq!(service(&stage).await, before, "its backend stays where it is");
    // It is there already: that is refused, and nothing is touched.
    let demoted = stage.sim.count("MirrorDemote");
    assert_eq!(carried_out(&stage, some(&[&ids[0]], "b", Intent::Automatic)).await, ["closed", "failed"]);
    assert_eq!(statuses(&stage).await, ["in-use failed-over", "in-use enabled"]);
    assert_eq!(stage.sim.count("MirrorDemote"), demoted);
    tokio::time::sleep(COPIED).await;
    assert_eq!(
        carried_out(&stage, some(&[&ids[0]], "default", Intent::Automatic)).await,
        ["closed", "succeeded"]
    );
    assert_eq!(statuses(&stage).await, ["in-use enabled", "in-use enabled"]);
    assert!(strays(&stage).await.is_empty());
    stage.sim.assert_no_split_brain_created();
}

#[tokio::test]
async fn an_order_that_the_site_contradicts_touches_nothing() {
    let (stage, ids) = stage(1).await;
    let rows = (statuses(&stage).await, service(&stage).await);
    for order in [some(&[&ids[0]], "b", Intent::Unplanned), backend_to("b", Intent::Unplanned)] {
        assert_eq!(carried_out(&stage, order).await, ["closed", "failed"]);
        assert_eq!(
            (statuses(&stage).await, service(&stage).await[0].clone()),
            (rows.0.clone(), rows.1[0].clone())
        );
    }
    stage.sim.set_health("a", Health::Dead);
    for order in [some(&[&ids[0]], "b", Intent::Planned), backend_to("b", Intent::Planned)] {
        assert_eq!(carried_out(&stage, order).await, ["closed", "failed"]);
        assert_eq!(
            (statuses(&stage).await, service(&stage).await[0].clone()),
            (rows.0.clone(), rows.1[0].clone())
        );
    }
    assert_eq!((stage.sim.count("MirrorDemote"), stage.sim.count("MirrorPromote")), (0, 0));
    assert_eq!(stage.backend.active_name(), "default");
    assert_eq!(carried_out(&stage, some(&[&ids[0]], "b", Intent::Unplanned)).await, ["closed", "succeeded"]);
    assert_eq!(statuses(&stage).await, ["in-use failed-over"]);
}

#[tokio::test]
async fn names_that_fit_nothing_are_refused() {
    let (stage, ids) = stage(1).await;
    let plain = seed::volume(&stage.test, 8, "available", ", replication_status='disabled'").await;
    for order in [
        some(&[&ids[0], &plain], "b", Intent::Automatic),
        some(&[&ids[0], &seed::id(1, 99)], "b", Intent::Automatic),
        some(&[&ids[0]], "bogus", Intent::Automatic),
        backend_to("bogus", Intent::Automatic),
        backend_to("default", Intent::Automatic),
    ] {
        assert_eq!(carried_out(&stage, order).await, ["closed", "failed"]);
        assert_eq!(statuses(&stage).await, ["in-use enabled", "available disabled"]);
        assert_eq!(service(&stage).await[..2], ["enabled", "NULL"]);
    }
    assert_eq!(stage.sim.count("MirrorDemote"), 0);
}

#[tokio::test]
async fn the_backend_ordered_by_the_tool_is_as_failed_over_as_by_the_api() {
    let (stage, ids) = stage(1).await;
    let plain = seed::volume(&stage.test, 8, "available", ", replication_status='disabled'").await;
    assert_eq!(carried_out(&stage, backend_to("b", Intent::Automatic)).await, ["closed", "succeeded"]);
    assert_eq!(service(&stage).await, ["failed-over", "b", "1", "failed-over"]);
    assert_eq!(statuses(&stage).await, ["in-use failed-over", "error not-capable"]);
    assert_eq!(stage.backend.active_name(), "b");
    tokio::time::sleep(COPIED).await;
    assert_eq!(carried_out(&stage, backend_to("default", Intent::Planned)).await, ["closed", "succeeded"]);
    assert_eq!(service(&stage).await, ["enabled", "", "0", ""]);
    assert_eq!(statuses(&stage).await, ["in-use enabled", "available disabled"]);
    assert_eq!(stage.sim.primaries(POOL, &name(&ids[0])), ["a"]);
    // A row that cinder-api would not accept is not accepted here either, and stays.
    for status in ["failing-over", "failover-error"] {
        stage.test.sql(&format!("UPDATE services SET replication_status='{status}'")).await;
        assert_eq!(carried_out(&stage, backend_to("b", Intent::Automatic)).await, ["closed", "failed"]);
        assert_eq!(service(&stage).await, [status, "", "0", ""]);
    }
    assert_eq!(stage.status("volumes", &plain).await, "available");
}

#[tokio::test]
async fn a_group_ordered_by_the_tool_goes_with_what_is_attached() {
    let (stage, ids) = stage(2).await;
    let group = seed::group(&stage.test, 1, "available", "enabled").await;
    stage.test.sql(&format!("UPDATE volumes SET group_id='{group}' WHERE id='{}'", ids[0])).await;
    let to_b = |intent| {
        let group = Some(group.clone());
        Order::Move(Move { target: Some("b".into()), intent, volumes: None, group })
    };
    assert_eq!(carried_out(&stage, to_b(Intent::Unplanned)).await, ["closed", "failed"]);
    assert_eq!(stage.column("`groups`", "replication_status", &group).await, "enabled");
    assert_eq!(statuses(&stage).await, ["in-use enabled"; 2]);
    assert_eq!(carried_out(&stage, to_b(Intent::Automatic)).await, ["closed", "succeeded"]);
    assert_eq!(stage.column("`groups`", "replication_status", &group).await, "failed-over");
    assert_eq!(statuses(&stage).await, ["in-use failed-over", "in-use enabled"]);
}

#[tokio::test]
async fn a_volume_that_an_earlier_failover_gave_up_is_well_when_it_has_moved() {
    let (stage, ids) = stage(1).await;
    stage.test
        .sql("UPDATE volumes SET status='error', previous_status='in-use', replication_status='failover-error'")
        .await;
    assert_eq!(carried_out(&stage, some(&[&ids[0]], "b", Intent::Automatic)).await, ["closed", "succeeded"]);
    assert_eq!(stage.column("volumes", "replication_status", &ids[0]).await, "failed-over");
    assert_ne!(stage.status("volumes", &ids[0]).await, "error");
}

/// Killed at its calls to Ceph, later each time (`lives`), and taken up by the next instance each time.
#[tokio::test]
async fn a_set_that_is_killed_again_and_again_arrives_and_comes_back() {
    let (mut stage, ids) = stage(3).await;
    for (to, site, intent) in [("b", "b", Intent::Planned), ("default", "a", Intent::Automatic)] {
        let mut operation = stage.ordered(some(&[&ids[0], &ids[1]], to, intent)).await;
        let mut kills = 0;
        for (k, when) in lives() {
            stage.sim.kill_at(k, when);
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
            operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
        }
        assert!(kills > 2, "{kills}");
        explored(kills);
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"], "{:?}", statuses(&stage).await);
        for id in &ids[..2] {
            assert_eq!(stage.sim.primaries(POOL, &name(id)), [site]);
        }
        assert_eq!(stage.sim.primaries(POOL, &name(&ids[2])), ["a"], "nobody has named it");
        tokio::time::sleep(COPIED).await;
    }
    assert_eq!(statuses(&stage).await, ["in-use enabled"; 3]);
    assert!(strays(&stage).await.is_empty());
    stage.sim.assert_no_split_brain_created();
}

#[tokio::test]
async fn an_order_goes_on_after_a_crash_and_stays_what_it_was() {
    let (mut stage, ids) = stage(2).await;
    for what in [some(&[&ids[0]], "b", Intent::Planned), backend_to("b", Intent::Planned)] {
        stage.sim.inject(Fault::on("MirrorPromote").site("b").sticks().always());
        let operation = stage.ordered(what).await;
        let begun = orders::run(&stage.backend, &operation);
        assert!(tokio::time::timeout(Duration::from_secs(3), begun).await.is_err());
        assert!(
            statuses(&stage).await[0].ends_with("failing-over") || service(&stage).await[0] == "failing-over"
        );
        stage.sim.clear_faults();
        stage.restart();
        let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
        assert!(operation.is_adopted());
        orders::run(&stage.backend, &operation).await;
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
        assert_eq!(stage.sim.primaries(POOL, &name(&ids[0])), ["b"]);
        tokio::time::sleep(COPIED).await;
    }
    assert_eq!(service(&stage).await[..2], ["failed-over", "b"]);
    assert_eq!(statuses(&stage).await, ["in-use failed-over"; 2]);
    stage.sim.assert_no_split_brain_created();
}
