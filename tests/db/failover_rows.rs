//! What a whole failover leaves in the rows: of volumes that somebody was working on, and of the other
//! members of a Cinder cluster.

use std::time::Duration;

use scoria::db::{displaced, failover as rows, volume};
use scoria::model::{ReplicationStatus, Scope};
use scoria::rbd::protocol::*;
use scoria::rbd::types::MirrorMode;
use scoria::replication::failover;

use crate::create_site::image;
use crate::seed::{self, BACKEND};
use crate::stage::Stage;
use crate::support::TestDb;

fn scope() -> Scope {
    Scope::Host(BACKEND.to_owned())
}

async fn statuses(test: &TestDb, table: &str) -> Vec<String> {
    test.rows(&format!("SELECT status FROM {table} ORDER BY id")).await.concat()
}

async fn leave_behind(test: &TestDb) {
    test.db
        .write("t", async |conn| {
            displaced::remember(conn, &scope(), "b").await?;
            rows::mark_not_capable(conn, &scope(), "b").await
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_being_made_or_deleted_is_left_to_its_own_request() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let begun = ["creating", "downloading", "deleting"];
    for (number, status) in (1..).zip(begun) {
        seed::volume(&test, number, status, ", replication_status='disabled'").await;
    }
    let plain = seed::volume(&test, 9, "available", ", replication_status='disabled'").await;
    for (number, status) in (1..).zip(["creating", "deleting", "available"]) {
        seed::snapshot(&test, number, &plain, status).await;
    }
    leave_behind(&test).await;
    assert_eq!(statuses(&test, "volumes").await, ["creating", "downloading", "deleting", "error"]);
    assert_eq!(statuses(&test, "snapshots").await, ["creating", "deleting", "error"]);
    assert_eq!(test.row("SELECT COUNT(*) FROM scoria_displaced").await, ["2"]);
}

/// Status at the failover, and after the failback. Number 1, 3 … are attached.
const INTERRUPTED: [(&str, &str); 9] = [
    ("extending", "in-use"),
    ("retyping", "available"),
    ("detaching", "in-use"),
    ("attaching", "available"),
    ("in-use", "in-use"),
    ("reverting", "error"),
    ("restoring-backup", "error"),
    ("reserved", "reserved"),
    ("error_extending", "error_extending"),
];

async fn interrupted(test: &TestDb, replication_status: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for (number, (status, _)) in (1..).zip(INTERRUPTED) {
        let extra = format!(", replication_status='{replication_status}'");
        let id = seed::volume(test, number, status, &extra).await;
        if number % 2 == 1 {
            test.sql(&format!(
                "INSERT INTO volume_attachment (id, volume_id, attach_status, deleted)
                 VALUES ('a{number}', '{id}', 'attached', 0)"
            ))
            .await;
        }
        ids.push(id);
    }
    ids
}

#[tokio::test]
async fn a_failback_gives_nobody_a_status_that_nobody_works_on() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let ids = interrupted(&test, "disabled").await;
    for (number, status) in (1..).zip(["backing-up", "restoring", "unmanaging"]) {
        seed::snapshot(&test, number, &ids[4], status).await;
    }
    leave_behind(&test).await;
    test.db.write("t", async |conn| displaced::restore(conn, &scope()).await).await.unwrap();
    assert_eq!(statuses(&test, "volumes").await, INTERRUPTED.map(|(_, after)| after));
    assert_eq!(statuses(&test, "snapshots").await, ["available"; 3]);
}

#[tokio::test]
async fn neither_does_the_return_of_a_mirrored_volume() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let ids = interrupted(&test, "enabled").await;
    test.db.write("t", async |conn| rows::mark_failed(conn, &ids).await).await.unwrap();
    let enabled = ReplicationStatus::Enabled;
    test.db.write("t", async |conn| rows::recover(conn, &ids, enabled).await).await.unwrap();
    assert_eq!(statuses(&test, "volumes").await, INTERRUPTED.map(|(_, after)| after));
}

#[tokio::test]
async fn what_becomes_available_while_a_failover_runs_is_found_by_it() {
    let stage = Stage::replicated().await;
    stage.test.sql("UPDATE services SET replication_status='failing-over'").await;
    let moved = seed::volume(&stage.test, 1, "available", ", replication_status='enabled'").await;
    let late = seed::volume(&stage.test, 2, "creating", ", replication_status='disabled'").await;
    let plain = seed::volume(&stage.test, 3, "creating", ", replication_status='disabled'").await;
    image(&stage, "a", &moved).await;
    let enable =
        MirrorEnable { pool: "volumes".into(), image: format!("volume-{moved}"), mode: MirrorMode::Journal };
    stage.sim.site("a").call(enable).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let operation = stage.operation("failover_host", None).await;
    let made = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage
            .test
            .sql(&format!(
                "UPDATE volumes SET status='available', replication_status='enabled' WHERE id='{late}';
                 UPDATE volumes SET status='available' WHERE id='{plain}'"
            ))
            .await;
    };
    let (over, ()) =
        tokio::join!(failover::failover(&stage.backend, &stage.context, &operation, Some("b")), made);
    over.unwrap();
    assert_eq!(
        stage.test.rows("SELECT status, replication_status FROM volumes ORDER BY id").await,
        [["available", "failed-over"], ["available", "failover-error"], ["error", "not-capable"]]
    );
    assert_eq!(
        stage.test.rows("SELECT volume_id, site FROM scoria_strays").await,
        [[late.as_str(), "default"]]
    );
    assert_eq!(stage.test.row("SELECT resource_id FROM scoria_displaced").await, [plain.as_str()]);
}

#[tokio::test]
async fn the_other_members_of_a_cluster_hear_of_a_failover_that_was_refused() {
    let stage = Stage::clustered().await;
    stage.test.sql("UPDATE services SET replication_status='failing-over'").await;
    stage.test.sql("UPDATE clusters SET replication_status='failing-over'").await;
    let operation = stage.operation("failover", None).await;
    failover::failover(&stage.backend, &stage.context, &operation, Some("bogus")).await.unwrap();
    let told = stage.told();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].get("replication_status").and_then(|s| s.as_str()), Some("enabled"));
    assert!(!told[0].contains_key("active_backend_id"), "nobody is to switch sites");
    let rows =
        stage.test.row("SELECT s.replication_status, c.replication_status FROM services s, clusters c").await;
    assert_eq!(rows, ["enabled", "enabled"]);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
}

#[tokio::test]
async fn what_was_made_on_the_other_site_stays_there_when_its_backend_leaves_it() {
    let stage = Stage::replicated().await;
    let fail_over = async |to: &str| {
        stage.test.sql("UPDATE services SET replication_status='failing-over'").await;
        let operation = stage.operation("failover_host", None).await;
        failover::failover(&stage.backend, &stage.context, &operation, Some(to)).await.unwrap();
    };
    let rows = async || {
        let query = "SELECT status, replication_status FROM volumes WHERE size <> 77 ORDER BY id";
        stage.test.rows(query).await
    };
    // Its deletion fails while the backend is away: the image is where it always was.
    seed::volume(&stage.test, 3, "deleting", ", replication_status='disabled', size=77").await;
    let here = seed::volume(&stage.test, 1, "available", ", replication_status='disabled'").await;
    fail_over("b").await;
    stage.test.sql("UPDATE volumes SET status='error_deleting' WHERE size=77").await;
    let there = seed::volume(&stage.test, 2, "available", ", replication_status='disabled'").await;
    // Its image is on b, and so is what serves it, wherever the backend goes.
    for _ in 0..2 {
        fail_over("default").await;
        assert_eq!(rows().await, [["available", "disabled"], ["available", "disabled"]]);
        let strays = stage.test.rows("SELECT volume_id, site FROM scoria_strays").await;
        assert_eq!(strays, [[there.as_str(), "b"]]);
        for (id, site) in [(&here, "default"), (&there, "b")] {
            let volume = stage.test.db.read("t", async |conn| volume::get(conn, id).await).await.unwrap();
            assert_eq!(stage.backend.place(&volume).await.unwrap().site.name(), site);
        }
        fail_over("b").await;
        assert_eq!(rows().await, [["error", "not-capable"], ["available", "disabled"]]);
    }
}
