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

#[tokio::test]
async fn what_was_done_to_volumes_that_stayed_behind_is_not_undone() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let volume = async |number: u32, status: &'static str| {
        seed::volume(&test, number, status, ", replication_status='disabled'").await
    };
    let (gone, reset) = (volume(1, "available").await, volume(2, "available").await);
    let (broken, detached) = (volume(3, "error").await, volume(4, "in-use").await);
    let purged = volume(5, "available").await;
    for (number, of, status) in [
        (1, &gone, "available"),
        (2, &reset, "available"),
        (3, &broken, "error"),
        (4, &detached, "available"),
    ] {
        seed::snapshot(&test, number, of, status).await;
    }
    test.sql(&format!(
        "INSERT INTO volume_attachment (id, volume_id, attach_status, deleted) VALUES ('a4', '{detached}', 'attached', 0)"
    ))
    .await;
    // Twice, as after a crash.
    leave_behind(&test).await;
    leave_behind(&test).await;
    let rows = "SELECT status, replication_status FROM volumes WHERE deleted=0 ORDER BY id";
    assert_eq!(test.rows(rows).await, [["error", "not-capable"]; 5]);
    test.sql(&format!(
        "UPDATE volumes SET status='deleted', deleted=1 WHERE id='{gone}';
         UPDATE snapshots SET status='deleted', deleted=1 WHERE volume_id='{gone}';
         UPDATE volumes SET status='maintenance' WHERE id='{reset}';
         UPDATE volume_attachment SET deleted=1, attach_status='detached' WHERE volume_id='{detached}';
         DELETE FROM volumes WHERE id='{purged}'"
    ))
    .await;
    let made = seed::volume(&test, 6, "available", ", replication_status='disabled'").await;
    for _ in 0..2 {
        test.db.write("t", async |conn| displaced::restore(conn, &scope()).await).await.unwrap();
        assert_eq!(
            test.rows(rows).await,
            [
                ["maintenance", "disabled"],
                ["error", "disabled"],
                ["available", "disabled"],
                ["available", "disabled"]
            ]
        );
    }
    assert_eq!(statuses(&test, "snapshots").await, ["deleted", "available", "error", "available"]);
    let left = test.rows("SELECT resource_id FROM scoria_displaced").await;
    assert_eq!(left, [[purged.as_str()]], "Cinder's purge took its volume; nobody asks for it");
    assert_eq!(test.row(&format!("SELECT status FROM volumes WHERE id='{made}'")).await, ["available"]);
}

/// Fails over as the API orders it: the rows say `failing-over` first.
async fn order(stage: &Stage, to: Option<&str>) {
    stage
        .test
        .sql("UPDATE services SET replication_status='failing-over'; UPDATE clusters SET replication_status='failing-over'")
        .await;
    let operation = stage.operation("failover_host", None).await;
    failover::failover(&stage.backend, &stage.context, &operation, to).await.unwrap();
}

/// What the rows of service and cluster say: of a cluster's both the same.
async fn said(stage: &Stage) -> Vec<String> {
    let of = |table: &str| {
        format!(
            "SELECT replication_status, active_backend_id, disabled, disabled_reason FROM {table} WHERE deleted=0"
        )
    };
    let service = stage.test.row(&of("services")).await;
    let cluster = stage.test.row(&of("clusters")).await;
    assert!(cluster.is_empty() || cluster == service, "{cluster:?} {service:?}");
    service
}

/// Reference replication.md 3.5, ending by ending.
#[tokio::test]
async fn rows_of_service_and_cluster_after_each_ending() {
    let quick = "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\nscoria_verdict_timeout=1\n\
                 replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n";
    for stage in [Stage::with(quick).await, Stage::clustered().await] {
        order(&stage, Some("bogus")).await;
        assert_eq!(
            said(&stage).await,
            ["enabled", "NULL", "0", "NULL"],
            "never failed over: NULL, not empty"
        );
        order(&stage, None).await;
        assert_eq!(said(&stage).await, ["failed-over", "b", "1", "failed-over"]);
        for refused in [Some("bogus"), None, Some("b")] {
            order(&stage, refused).await;
            assert_eq!(said(&stage).await, ["failed-over", "b", "1", "failed-over"], "{refused:?}");
        }
        // A backend that is frozen stays disabled after its failback.
        stage.test.sql("UPDATE services SET frozen=1; UPDATE clusters SET frozen=1").await;
        order(&stage, Some("default")).await;
        assert_eq!(said(&stage).await, ["enabled", "", "1", "frozen"]);
        order(&stage, Some("b")).await;
        stage.test.sql("UPDATE services SET frozen=0; UPDATE clusters SET frozen=0").await;
        order(&stage, Some("default")).await;
        assert_eq!(said(&stage).await, ["enabled", "", "0", ""], "failed back: empty, not NULL");
        order(&stage, Some("bogus")).await;
        assert_eq!(said(&stage).await, ["enabled", "", "0", ""]);
        if stage.backend.config.cluster.is_none() {
            stage.sim.set_health("b", scoria::rbd::sim::Health::Dead);
            order(&stage, Some("b")).await;
            assert_eq!(said(&stage).await, ["failover-error", "", "1", ""], "disabled, its reason as it was");
            assert_eq!(stage.backend.active_name(), "default");
            continue;
        }
        // The other members are told of the site only when it has changed.
        let sites: Vec<Option<String>> = stage
            .told()
            .iter()
            .map(|told| told.get("active_backend_id").map(|site| site.as_str().unwrap_or("null").to_owned()))
            .collect();
        let (b, home) = (Some("b".to_owned()), Some(String::new()));
        assert_eq!(sites, [None, b.clone(), None, None, None, home.clone(), b, home, None]);
    }
    let alone = Stage::new().await;
    order(&alone, None).await;
    assert_eq!(said(&alone).await, ["failover-error", "NULL", "1", "NULL"], "nowhere to go");
}

#[tokio::test]
async fn listeners_hear_of_every_volume_and_nobody_waits_for_them() {
    let stage = crate::lag::stage().await;
    let ids = crate::lag::mirrored(&stage, 2).await;
    let bare = seed::volume(&stage.test, 3, "available", ", replication_status='enabled'").await;
    stage.image(&bare).await;
    order(&stage, Some("b")).await;
    let expected = [
        "service.failover.start failing-over".to_owned(),
        format!("volume.failover_replication.start {} available", ids[0]),
        format!("volume.failover_replication.start {} available", ids[1]),
        format!("volume.failover_replication.start {bare} available"),
        format!("volume.failover_replication.end {} available", ids[0]),
        format!("volume.failover_replication.end {} available", ids[1]),
        format!("volume.failover_replication.error {bare} available"),
        "service.failover.error failed-over".to_owned(),
    ];
    heard(&stage, &expected).await;
    // One that goes nowhere is told of, but of no volume.
    order(&stage, Some("bogus")).await;
    let refused = ["service.failover.error failed-over".to_owned()];
    heard(&stage, &[expected.as_slice(), &refused].concat()).await;

    stage.hang_in_notifications();
    order(&stage, Some("default")).await;
    let statuses = stage.test.rows("SELECT replication_status FROM volumes ORDER BY id LIMIT 2").await;
    assert_eq!(statuses, [["enabled"], ["enabled"]]);
}

async fn heard(stage: &Stage, expected: &[String]) {
    for _ in 0..50 {
        if stage.heard.events().len() >= expected.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut events = stage.heard.events();
    // Volumes of one kind come in no particular order.
    let mut expected = expected.to_vec();
    for list in [&mut events, &mut expected] {
        for kind in [1..4, 4..6] {
            if let Some(kind) = list.get_mut(kind) {
                kind.sort();
            }
        }
    }
    assert_eq!(events, expected);
}
