//! How far behind the copies are: what looks leave in the tables, in the volumes' rows, and with listeners.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta};
use scoria::db::lag as table;
use scoria::model::Scope;
use scoria::rbd::protocol::*;
use scoria::rbd::sim::Health;
use scoria::rbd::types::{MirrorListed, MirrorMode};
use scoria::replication::lag::{Looked, Watch};

use crate::seed::{self, BACKEND, TYPE};
use crate::stage::Stage;

const POOL: &str = "volumes";

/// A backend with one-second probes.
pub async fn stage() -> Stage {
    Stage::with(
        "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\nscoria_verdict_timeout=1\n\
         replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n",
    )
    .await
}

/// Volumes that are mirrored by journal, and their copies in step.
pub async fn mirrored(stage: &Stage, count: u32) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 1..=count {
        let id = seed::volume(&stage.test, number, "available", ", replication_status='enabled'").await;
        let image = stage.image(&id).await;
        enable(stage, &image).await;
        ids.push(id);
    }
    in_step(stage, ids.len()).await;
    ids
}

/// Waits until the other site has so many copies, each of them in step.
async fn in_step(stage: &Stage, count: usize) {
    for _ in 0..300 {
        let page = MirrorStatusPage { pool: POOL.into(), after: String::new(), limit: 1000 };
        let images = stage.sim.site("b").call(page).await.unwrap().images;
        let well = |i: &MirrorListed| {
            i.local.as_ref().is_some_and(|l| l.description.contains("\"entries_behind_primary\":0"))
        };
        if images.len() == count && images.iter().all(well) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the copies are never in step");
}

async fn enable(stage: &Stage, image: &str) {
    let ask = MirrorEnable { pool: POOL.into(), image: image.into(), mode: MirrorMode::Journal };
    stage.sim.site("a").call(ask).await.unwrap();
}

/// The newest report, by the simulator's clock.
async fn clock(stage: &Stage) -> NaiveDateTime {
    let page = MirrorStatusPage { pool: POOL.into(), after: String::new(), limit: 1000 };
    let page = stage.sim.site("b").call(page).await.unwrap();
    let newest = page.images.iter().filter_map(|i| i.local.as_ref()).map(|l| l.last_update).max().unwrap();
    DateTime::from_timestamp(newest, 0).unwrap().naive_utc()
}

async fn look(stage: &Stage, at: NaiveDateTime) -> Option<Looked> {
    Watch::default().look(&stage.backend, at).await.unwrap()
}

async fn told(stage: &Stage) -> Vec<String> {
    let query = "SELECT COALESCE(replication_extended_status, '-') FROM volumes ORDER BY id";
    stage.test.rows(query).await.concat()
}

const ROWS: &str = "SELECT site, mode, state, breached, COALESCE(fault, '-') FROM scoria_replication_lag \
                    ORDER BY volume_id";

#[tokio::test]
async fn a_volume_that_is_not_mirrored_any_more_is_degraded_until_it_is() {
    let mut stage = stage().await;
    let ids = mirrored(&stage, 2).await;
    let advised = seed::volume(&stage.test, 3, "available", ", replication_status='failover-error'").await;
    stage.test.sql("UPDATE volumes SET replication_extended_status='retry it' WHERE replication_status='failover-error'").await;
    seed::volume(&stage.test, 4, "available", ", replication_status='disabled'").await;
    let now = clock(&stage).await;
    assert_eq!(look(&stage, now).await, Some(Looked { copies: 3, degraded: 0, restored: 0 }));
    let well = ["b", "journal", "replaying", "0", "-"];
    let unknown = ["b", "NULL", "not-mirrored", "0", "-"];
    assert_eq!(stage.test.rows(ROWS).await, [well, well, unknown]);
    let lag = "SELECT last_sync, lag_seconds FROM scoria_replication_lag WHERE state='replaying' ORDER BY last_sync DESC";
    let newest = format!("{}.000000", now.format("%Y-%m-%d %H:%M:%S"));
    assert_eq!(stage.test.row(lag).await, [newest.as_str(), "0"]);
    let site = "SELECT site, answered_at IS NOT NULL, problem FROM scoria_replication_polls ORDER BY site";
    assert_eq!(stage.test.rows(site).await, [["b", "1", "NULL"], ["default", "1", "NULL"]]);

    let image = format!("volume-{}", ids[0]);
    let disable = MirrorDisable { pool: POOL.into(), image: image.clone(), force: false };
    stage.sim.site("a").call(disable).await.unwrap();
    let later = |seconds| now + TimeDelta::seconds(seconds);
    // Once is not enough: somebody may be at it.
    assert_eq!(look(&stage, later(1)).await.unwrap().degraded, 0);
    assert_eq!(look(&stage, later(2)).await.unwrap().degraded, 1);
    let text = "degraded: not mirrored on default, which serves it; then: rbd mirror image enable";
    assert_eq!(told(&stage).await, [text, "-", "retry it", "-"]);
    assert_eq!(stage.heard.events(), [format!("volume.replication.degraded {} available", ids[0])]);
    // Nobody is told twice, not by a service that has started since either.
    stage.restart();
    assert_eq!(look(&stage, later(3)).await.unwrap().degraded, 0);
    assert_eq!(stage.heard.events().len(), 1);
    let count = stage.test.db.read("t", async |conn| table::count_degraded(conn, &scope()).await).await;
    assert_eq!(count.unwrap(), 2, "with the one that a failover left behind");

    // Its copy goes, and a new one is made.
    in_step(&stage, 1).await;
    enable(&stage, &image).await;
    in_step(&stage, 2).await;
    assert_eq!(look(&stage, later(4)).await.unwrap().restored, 1);
    assert_eq!(told(&stage).await, ["-", "-", "retry it", "-"]);
    assert_eq!(stage.heard.events()[1..], [format!("volume.replication.restored {} available", ids[0])]);

    // A volume that is gone, or not mirrored any more, leaves nothing.
    stage.test.sql(&format!("UPDATE volumes SET deleted=1 WHERE id='{advised}'")).await;
    stage
        .test
        .sql(&format!(
            "UPDATE volumes SET replication_status='disabled', replication_extended_status='degraded: x' WHERE id='{}'",
            ids[1]
        ))
        .await;
    assert_eq!(look(&stage, later(70)).await.unwrap().copies, 1);
    assert_eq!(told(&stage).await[1], "-");
}

fn scope() -> Scope {
    Scope::Host(BACKEND.to_owned())
}

#[tokio::test]
async fn a_copy_that_is_older_than_its_type_allows_is_degraded() {
    let stage = stage().await;
    let ids = mirrored(&stage, 2).await;
    let other = seed::id(3, 1);
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_types (id, name, deleted, is_public) VALUES ('{other}', 'lax', 0, 1);
             INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted) VALUES
               ('{TYPE}', 'replication:rpo_seconds', ' 300 ', 0), ('{other}', 'replication:rpo_seconds', 'soon', 0);
             UPDATE volumes SET volume_type_id='{other}' WHERE id='{}'",
            ids[1]
        ))
        .await;
    let now = clock(&stage).await;
    look(&stage, now).await.unwrap();
    // The other site dies. It costs a probe, and what it has told before stays known.
    stage.sim.set_health("b", Health::Dead);
    stage.sim.clear_log();
    look(&stage, now + TimeDelta::seconds(200)).await.unwrap();
    let to_b: Vec<&str> =
        stage.sim.log().into_iter().filter(|call| call.site == "b").map(|call| call.request).collect();
    assert!(to_b.len() <= 2 && !to_b.contains(&"MirrorStatusPage"), "{to_b:?}");
    assert_eq!(told(&stage).await, ["-", "-"]);
    assert_eq!(look(&stage, now + TimeDelta::seconds(400)).await.unwrap().degraded, 1);
    assert_eq!(told(&stage).await, ["degraded: the copy on b is older than the 300 s allowed", "-"]);
    let rows =
        stage.test.rows("SELECT state, rpo_seconds, breached FROM scoria_replication_lag ORDER BY volume_id");
    assert_eq!(rows.await, [["down", "300", "1"], ["down", "NULL", "0"]]);
    let answers = "SELECT problem, answered_at FROM scoria_replication_polls WHERE site='b'";
    let answered = format!("{}.000000", now.format("%Y-%m-%d %H:%M:%S"));
    assert_eq!(stage.test.row(answers).await, ["no answer from monitors or OSDs", answered.as_str()]);

    // A backend tells the scheduler, once it is its turn.
    let period = Duration::from_secs(60);
    let mut watch = Watch::default();
    watch.turn(&stage.backend, period).await.unwrap();
    let report = stage.backend.refresh_report().await;
    assert_eq!(report.get("replication_degraded_volumes").and_then(|n| n.as_i64()), Some(1));
    let again = stage.test.db.read("t", async |conn| table::take_turn(conn, &scope(), period).await);
    assert!(!again.await.unwrap(), "another member's turn is later");
}

#[tokio::test]
async fn while_volumes_are_moved_nothing_is_said_of_them() {
    let stage = stage().await;
    let ids = mirrored(&stage, 1).await;
    let now = clock(&stage).await;
    let operation = stage.operation("failover_host", None).await;
    assert_eq!(look(&stage, now).await, None);
    assert!(stage.test.rows(ROWS).await.is_empty());
    stage.backend.journal.finish(&operation, &stage.backend.done()).await.unwrap();

    // A failover that ended while the sites were asked: what they said is not true of the other side.
    let disable = MirrorDisable { pool: POOL.into(), image: format!("volume-{}", ids[0]), force: false };
    stage.sim.site("a").call(disable).await.unwrap();
    look(&stage, now).await.unwrap();
    stage.test.sql("UPDATE services SET active_backend_id='b'").await;
    assert_eq!(look(&stage, now + TimeDelta::seconds(1)).await, None);
    assert_eq!(told(&stage).await, ["-"]);
    stage.test.sql("UPDATE services SET active_backend_id=NULL").await;
    assert_eq!(look(&stage, now + TimeDelta::seconds(2)).await.unwrap().degraded, 1);
}

#[tokio::test]
async fn more_copies_than_fit_into_one_statement_go_through() {
    let stage = stage().await;
    let at = DateTime::from_timestamp(1_700_000_000, 0).unwrap().naive_utc();
    let row = |number: u32| table::Lag {
        volume_id: seed::id(1, number),
        site: "b".into(),
        mode: Some("journal".into()),
        state: "replaying".into(),
        message: Some("\u{1F980}".repeat(300)),
        last_sync: Some(at),
        lag_seconds: Some(1),
        entries_behind: Some(0),
        bytes_behind: Some(0),
        bytes_per_second: Some(0),
        percent: None,
        rpo_seconds: Some(300),
        breached: number == 7,
        fault: None,
        suspected: None,
        mark_tag: Some(1),
        mark_entry: Some(2),
        mark_at: Some(at),
        reported_at: Some(at),
        watched_since: at,
        polled_at: at,
    };
    let mut rows: Vec<table::Lag> = (0..1200).map(row).collect();
    let scope = scope();
    for breached in [false, true] {
        rows[1199].breached = breached;
        stage.test.db.read("t", async |conn| table::write(conn, &scope, &rows).await).await.unwrap();
    }
    let all = stage.test.db.read("t", async |conn| table::list(conn, &scope).await).await.unwrap();
    assert_eq!((all.len(), all[3].mark_entry), (1200, Some(2)));
    assert_eq!(all[3].message.as_deref(), Some("?".repeat(255).as_str()));
    let count =
        stage.test.db.read("t", async |conn| table::count_degraded(conn, &scope).await).await.unwrap();
    assert_eq!(count, 2);
    let later = at + TimeDelta::seconds(1);
    stage.test.db.read("t", async |conn| table::forget_older(conn, &scope, later).await).await.unwrap();
    assert!(stage.test.rows(ROWS).await.is_empty());
}
