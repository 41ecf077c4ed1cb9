//! `adopt` over the simulator: a secondary becomes its backend's own site while the backend runs, rows and names follow
//! at once or not at all, and a configuration file that fits no rows never makes anybody serve the wrong cluster.

use std::time::Duration;

use scoria::backend::{Backend, Condition};
use scoria::error::{Code, Error};
use scoria::journal::Operation;
use scoria::rbd::protocol::*;
use scoria::rbd::sim::{Health, When};
use scoria::rbd::types::MirrorMode;
use scoria::replication::orders::Adopt;
use scoria::replication::{adopt, failover, resync, standing};
use serde_json::Value;

use crate::seed;
use crate::stage::{Stage, full, write_conf};

const POOL: &str = "volumes";
const QUICK: &str = "scoria_demote_timeout=2\nscoria_promote_timeout=5\n";
/// As before the disaster.
const BEFORE: &str = "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\nscoria_verdict_timeout=1\n\
                      replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n";
/// The sites have changed places.
const SWAPPED: &str = "rbd_ceph_conf=/sim/b.conf\nrbd_secret_uuid=s\nscoria_verdict_timeout=1\n\
                       replication_device=backend_id:a,conf:/sim/a.conf,user:cinder\n";
/// They have, and the name was kept.
const TRAP: &str = "rbd_ceph_conf=/sim/b.conf\nrbd_secret_uuid=s\nscoria_verdict_timeout=1\n\
                    replication_device=backend_id:b,conf:/sim/a.conf,user:cinder\n";
/// No other site is left.
const ALONE: &str = "rbd_ceph_conf=/sim/b.conf\nrbd_secret_uuid=s\nscoria_verdict_timeout=1\n";
/// Longer than a step of the quick daemons.
const STEP: Duration = Duration::from_millis(1200);
/// How a backend is made a member of a Cinder cluster.
const CLUSTER: &str = "[DEFAULT]\ncluster=c\n";

const PLAIN: Adopt = Adopt { leave_behind: false, stop_mirroring: false, fsid: None, dry_run: false };

fn name(volume: &str) -> String {
    format!("volume-{volume}")
}

/// A backend that has failed over to `b`, of which two volumes are mirrored; site `a` is dead.
async fn failed_over() -> (Stage, Vec<String>) {
    let stage = Stage::quick(QUICK).await;
    standing::enter(&stage.backend, true).await.unwrap();
    stage.backend.refresh_report().await;
    let mut volumes = Vec::new();
    for number in 1..=2 {
        let volume = seed::volume(&stage.test, number, "available", ", replication_status='enabled'").await;
        let image = stage.image(&volume).await;
        let enable = MirrorEnable { pool: POOL.into(), image, mode: MirrorMode::Journal };
        stage.sim.site("a").call(enable).await.unwrap();
        volumes.push(volume);
    }
    let data = "{\"had_exclusive_lock\":true,\"had_journaling\":false}";
    stage.test.sql(&format!("UPDATE volumes SET replication_driver_data='{data}'")).await;
    tokio::time::sleep(STEP).await;
    stage.sim.set_health("a", Health::Dead);
    move_to(&stage, "b").await;
    assert_eq!(service(&stage).await, ["failed-over", "b", "1", "failed-over"]);
    stage.backend.refresh_report().await;
    (stage, volumes)
}

async fn move_to(stage: &Stage, site: &str) {
    let operation = stage.operation("failover_host", None).await;
    failover::failover(&stage.backend, &stage.context, &operation, Some(site)).await.unwrap();
}

async fn try_adopt(stage: &Stage, order: &Adopt) -> (Operation, Result<(), Error>) {
    let operation = stage.operation("scoria.replication.adopt", None).await;
    let done = adopt::run(&stage.backend, &stage.context, &operation, order).await;
    if let Err(error) = &done {
        let outcome = scoria::journal::Outcome::failed(error);
        stage.backend.journal.finish(&operation, &outcome).await.unwrap();
    }
    (operation, done)
}

async fn adopted(stage: &Stage, order: &Adopt) -> String {
    let (operation, done) = try_adopt(stage, order).await;
    done.unwrap();
    let id = operation.id();
    let row = format!("SELECT state, outcome, outcome_detail FROM scoria_operations WHERE id={id}");
    let row = stage.test.row(&row).await;
    assert_eq!(row[..2], ["closed", "succeeded"]);
    row[2].clone()
}

async fn refused(stage: &Stage, order: &Adopt) -> Error {
    let before = rows(stage).await;
    let refused = try_adopt(stage, order).await.1.unwrap_err();
    assert_eq!(rows(stage).await, before, "nothing was done: {refused}");
    refused
}

async fn service(stage: &Stage) -> Vec<String> {
    let text = "SELECT replication_status, COALESCE(active_backend_id, 'NULL'), disabled, COALESCE(disabled_reason, '')
                FROM services WHERE id=1";
    stage.test.row(text).await
}

async fn volumes(stage: &Stage) -> Vec<String> {
    let text = "SELECT status, replication_status, COALESCE(replication_driver_data, 'no data') = 'no data'
                FROM volumes WHERE deleted=0 ORDER BY id";
    stage.test.rows(text).await.into_iter().map(|row| row.join(" ")).collect()
}

/// Listeners have heard this of adoptions, the two volumes of one in any order.
async fn heard(stage: &Stage, expected: &[&str]) {
    let mut events = Vec::new();
    for _ in 0..50 {
        events = stage.heard.events();
        events.retain(|event| event.contains(".adopt."));
        events
            .chunk_by_mut(|one, next| one.starts_with("volume") && next.starts_with("volume"))
            .for_each(<[_]>::sort);
        if events.len() >= expected.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(events, expected);
}

/// Everything that an adoption changes.
async fn rows(stage: &Stage) -> Vec<Vec<String>> {
    let mut all = vec![service(stage).await, volumes(stage).await];
    for text in [
        "SELECT site, fsid, COALESCE(became, 'in use') FROM scoria_backend_sites ORDER BY site",
        "SELECT volume_id, site FROM scoria_strays ORDER BY volume_id",
        "SELECT site, volume_id, state FROM scoria_fences ORDER BY site",
        "SELECT resource_id, status FROM scoria_displaced ORDER BY resource_id",
        "SELECT operation_id FROM scoria_adoptions",
    ] {
        all.extend(stage.test.rows(text).await);
    }
    all
}

/// Where the backend works, by the conf that leads there.
fn works_on(backend: &Backend) -> String {
    let site = backend.active_site().unwrap();
    format!("{} {}", backend.active_name(), site.connection().conf.display())
}

#[tokio::test]
async fn the_secondary_becomes_the_backends_own_and_everything_follows() {
    let (mut stage, ids) = failed_over().await;
    let told = refused(&stage, &PLAIN).await;
    assert_eq!(told.code(), Code::InvalidReplicationTarget);
    for line in [
        "rbd_ceph_conf = /sim/b.conf\n",
        "rbd_user = cinder\n",
        "replication_device = backend_id:ceph,conf:/sim/a.conf,user:cinder,secret_uuid:s\n",
    ] {
        assert!(told.user().contains(line), "{line}: {told}");
    }
    stage.rewrite(TRAP);
    let told = refused(&stage, &PLAIN).await;
    assert!(told.user().contains("give it another"), "{told}");

    // What else speaks of sites.
    let (one, two) = (&ids[0], &ids[1]);
    stage
        .test
        .sql(&format!(
            "INSERT INTO scoria_fences (backend, site, volume_id, address, state, seconds, recorded_at) VALUES
               ('node1@ceph', 'default', '{one}', '', 'wanted', 60, UTC_TIMESTAMP(6)),
               ('node1@ceph', 'b', '{one}', '', 'wanted', 60, UTC_TIMESTAMP(6)),
               ('other@ceph', 'b', '{one}', '', 'wanted', 60, UTC_TIMESTAMP(6));
             INSERT INTO scoria_schedules (volume_id, site, schedule, recorded_at) VALUES
               ('{two}', 'b', '5m', UTC_TIMESTAMP(6)), ('{two}', 'default', '1h', UTC_TIMESTAMP(6));
             INSERT INTO scoria_tests (test_id, volume_id, backend, source, site, pool, image, clone_pool, clone,
               snapshot, own_snapshot, state, size, created_at) VALUES
               ('t', '{one}', 'node1@ceph', 'b', 'default', 'p', 'i', 'p', 'c', 's', 0, 'failed', 1, UTC_TIMESTAMP(6))",
        ))
        .await;
    stage.rewrite(SWAPPED);
    let looked = adopted(&stage, &Adopt { dry_run: true, ..PLAIN }).await;
    assert!(
        looked.starts_with("would adopt: b is the backend's own site") && looked.contains("2 volumes"),
        "{looked}"
    );
    assert_eq!(service(&stage).await[0], "failed-over", "it was only looked at");
    let refused = ["service.adopt.start failed-over", "service.adopt.error failed-over"].repeat(2);
    heard(&stage, &refused).await;

    adopted(&stage, &PLAIN).await;
    assert_eq!(service(&stage).await, ["enabled", "NULL", "0", ""]);
    let ends = ids.iter().map(|id| format!("volume.adopt.end {id} available")).collect::<Vec<_>>();
    let told = ["service.adopt.start failed-over", &ends[0], &ends[1], "service.adopt.end enabled"];
    heard(&stage, &[refused.as_slice(), &told].concat()).await;
    assert_eq!(volumes(&stage).await, ["available enabled 0", "available enabled 0"]);
    assert_eq!(works_on(&stage.backend), "default /sim/b.conf");
    assert_eq!(stage.backend.device_names(), ["a"]);
    let fences = "SELECT backend, site FROM scoria_fences ORDER BY backend, site";
    assert_eq!(
        stage.test.rows(fences).await,
        [["node1@ceph", "a"], ["node1@ceph", "default"], ["other@ceph", "b"]]
    );
    let schedules = "SELECT site, schedule FROM scoria_schedules ORDER BY site";
    assert_eq!(stage.test.rows(schedules).await, [["a", "1h"], ["default", "5m"]]);
    assert_eq!(stage.test.row("SELECT source, site FROM scoria_tests").await, ["default", "a"]);
    let report = stage.backend.refresh_report().await;
    assert_eq!(report["replication_targets"], serde_json::json!(["a", "default"]));
    assert!(report["location_info"].as_str().unwrap().contains("/sim/b.conf"), "{report:?}");

    // A restart later changes nothing, and a message of before still finds its site.
    stage.restart();
    standing::enter(&stage.backend, true).await.unwrap();
    stage.backend.refresh_report().await;
    assert_eq!(works_on(&stage.backend), "default /sim/b.conf");
    assert_eq!(stage.backend.condition(), Condition::Up);
    assert_eq!(stage.backend.site("b").unwrap().name(), "default");
}

/// What a copy that was found demoted gets to replay by itself takes a minute.
#[tokio::test]
#[ignore = "whole matrix: tools/test --full"]
async fn the_old_site_is_resynced_as_the_new_peer() {
    let (mut stage, ids) = failed_over().await;
    stage.rewrite(&format!("{SWAPPED}{QUICK}"));
    adopted(&stage, &PLAIN).await;
    // The old site comes back with images that are primary, too: proven to lose, resynced, failed over to.
    stage.sim.set_health("a", Health::Alive);
    tokio::time::sleep(STEP).await;
    move_to(&stage, "a").await;
    assert_eq!(volumes(&stage).await, ["available failover-error 0", "available failover-error 0"]);
    let operation = stage.operation("scoria.replication.resync", None).await;
    resync::order::run(&stage.backend, &operation, "a", None).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    tokio::time::sleep(STEP).await;
    move_to(&stage, "a").await;
    assert_eq!(volumes(&stage).await, ["available failed-over 0", "available failed-over 0"]);
    assert_eq!(works_on(&stage.backend), "a /sim/a.conf");
    assert!(stage.sim.image("a", POOL, &name(&ids[0])).unwrap().primary);
}

#[tokio::test]
async fn a_file_that_was_changed_and_no_order_makes_nobody_serve_the_wrong_cluster() {
    let (mut stage, ids) = failed_over().await;
    stage.sim.set_health("a", Health::Alive);
    // The names have changed: the one that the row has is gone.
    stage.rewrite(SWAPPED);
    stage.restart_down();
    standing::enter(&stage.backend, true).await.unwrap();
    stage.backend.refresh_report().await;
    assert!(stage.backend.active_site().is_err());
    assert!(matches!(stage.backend.condition(), Condition::Down { .. }));
    // It has another cluster: the one that is left behind, with yesterday's data under the same names.
    stage.rewrite(TRAP);
    stage.restart_down();
    standing::enter(&stage.backend, true).await.unwrap();
    // Somebody is quicker than the first report.
    let site = stage.backend.active_site().unwrap();
    let image = ImageStat { pool: POOL.into(), image: name(&ids[0]) };
    let refused_at_once = site.call(image).await.unwrap_err();
    assert!(refused_at_once.message.contains("nothing was asked of it"), "{refused_at_once}");
    let read = ImageExport { pool: POOL.into(), image: name(&ids[0]), snap: None, offset: 0, length: 1 };
    assert!(site.export(read).next().await.is_err());
    stage.backend.refresh_report().await;
    let Condition::Down { reason } = stage.backend.condition() else { panic!("it serves the wrong cluster") };
    assert!(reason.contains("replication adopt --backend node1@ceph"), "{reason}");
    assert_eq!(stage.backend.require_up().unwrap_err().code(), Code::DriverNotInitialized);
    standing::beat(&stage.backend, true).await.unwrap();
    assert!(stage.backend.active_site().is_err());
    // Neither is a failover a way out of it.
    let operation = stage.operation("failover_host", None).await;
    failover::failover(&stage.backend, &stage.context, &operation, Some("default")).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(service(&stage).await, ["failed-over", "b", "1", "failed-over"]);

    stage.rewrite(SWAPPED);
    adopted(&stage, &PLAIN).await;
    assert_eq!(works_on(&stage.backend), "default /sim/b.conf");
    stage.backend.refresh_report().await;
    assert_eq!(stage.backend.condition(), Condition::Up);

    // The old file comes back, from a backup of the host.
    stage.rewrite(BEFORE);
    stage.restart_down();
    standing::enter(&stage.backend, true).await.unwrap();
    stage.backend.refresh_report().await;
    assert!(stage.backend.active_site().is_err());
    // And is mended: nobody needs to restart anything.
    stage.rewrite(SWAPPED);
    standing::beat(&stage.backend, true).await.unwrap();
    assert_eq!(works_on(&stage.backend), "default /sim/b.conf");
}

#[tokio::test]
async fn what_is_elsewhere_refuses_it_or_is_given_up() {
    let (mut stage, ids) = failed_over().await;
    let left = seed::volume(&stage.test, 3, "error", ", replication_status='not-capable'").await;
    let stray = seed::volume(&stage.test, 4, "in-use", ", replication_status='failover-error'").await;
    let snapshot = seed::snapshot(&stage.test, 1, &stray, "available").await;
    let made = seed::volume(&stage.test, 5, "available", ", replication_status='disabled'").await;
    let create =
        ImageCreate { pool: POOL.into(), image: name(&made), size: 1 << 22, order: 22, features: 61 };
    stage.sim.site("b").call(create).await.unwrap();
    stage
        .test
        .sql(&format!(
            "INSERT INTO scoria_displaced (resource_type, resource_id, status, replication_status, recorded_at)
             VALUES ('volume', '{left}', 'available', 'disabled', UTC_TIMESTAMP(6));
             INSERT INTO scoria_strays (volume_id, site, recorded_at) VALUES ('{stray}', 'default', UTC_TIMESTAMP(6))"
        ))
        .await;
    stage.rewrite(ALONE);
    let told = refused(&stage, &PLAIN).await;
    assert_eq!(told.code(), Code::InvalidVolume);
    assert!(told.user().contains(&left) && told.user().contains("it is served from default"), "{told}");
    assert!(!told.user().contains(&made) && !told.user().contains(&ids[0]), "{told}");
    // Requests that hold a site by its name are waited for.
    let other = stage.operation("create_volume", Some(("Volume", &made))).await;
    other.step("begun", &"b").await.unwrap();
    let give_up = Adopt { leave_behind: true, stop_mirroring: true, ..PLAIN };
    assert_eq!(refused(&stage, &give_up).await.code(), Code::Conflict);
    stage.backend.journal.finish(&other, &stage.backend.done()).await.unwrap();

    adopted(&stage, &give_up).await;
    assert_eq!(service(&stage).await, ["disabled", "NULL", "0", ""]);
    assert_eq!(
        volumes(&stage).await,
        [
            "available disabled 1",
            "available disabled 1",
            "error not-capable 1",
            "error not-capable 1",
            "available disabled 1"
        ]
    );
    assert_eq!(stage.status("snapshots", &snapshot).await, "error");
    assert_eq!(stage.column("volumes", "previous_status", &stray).await, "in-use");
    let empty = "SELECT (SELECT COUNT(*) FROM scoria_strays) + (SELECT COUNT(*) FROM scoria_displaced)";
    assert_eq!(stage.test.row(empty).await, ["0"]);
    for id in &ids {
        assert_eq!(stage.sim.image("b", POOL, &name(id)).unwrap().mirror, None);
    }
    assert!(!stage.backend.is_replicated());
    // Nothing is left that would be in the way of another one.
    adopted(&stage, &PLAIN).await;
}

/// The order is taken up by the next instance, wherever the first one died.
#[tokio::test]
async fn an_adoption_that_was_killed_is_finished() {
    let (mut stage, ids) = failed_over().await;
    let order = Adopt { stop_mirroring: true, ..PLAIN };
    let (mut killed, mut k) = (0, 1);
    loop {
        // As after the failover.
        stage
            .test
            .sql(
                "UPDATE services SET replication_status='failed-over', active_backend_id='b', disabled=1,
                   disabled_reason='failed-over' WHERE id=1;
                 UPDATE volumes SET replication_status='failed-over',
                   replication_driver_data='{\"had_exclusive_lock\":true,\"had_journaling\":false}';
                 DELETE FROM scoria_backend_sites; DELETE FROM scoria_adoptions",
            )
            .await;
        for id in &ids {
            let image = name(id);
            if stage.sim.image("b", POOL, &image).unwrap().mirror.is_none() {
                let features =
                    ImageFeatures { pool: POOL.into(), image: image.clone(), features: 64, enable: true };
                let enable = MirrorEnable { pool: POOL.into(), image, mode: MirrorMode::Journal };
                stage.sim.site("b").call(features).await.unwrap();
                stage.sim.site("b").call(enable).await.unwrap();
            }
        }
        stage.rewrite(BEFORE);
        stage.restart();
        standing::enter(&stage.backend, true).await.unwrap();
        stage.backend.refresh_report().await;
        stage.rewrite(ALONE);
        let operation = stage.operation("scoria.replication.adopt", None).await;
        stage.sim.kill_at(k, if k % 4 == 1 { When::After } else { When::Before });
        let died = tokio::select! {
            biased;
            () = stage.sim.crashed() => true,
            done = adopt::run(&stage.backend, &stage.context, &operation, &order) => { done.unwrap(); false }
        };
        stage.sim.restart();
        if died {
            killed += 1;
            stage.restart();
            standing::enter(&stage.backend, true).await.unwrap();
            let again = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
            adopt::run(&stage.backend, &stage.context, &again, &order).await.unwrap();
            assert_eq!(stage.ended(&again).await, ["closed", "succeeded"], "killed at {k}");
        }
        assert_eq!(service(&stage).await, ["disabled", "NULL", "0", ""], "killed at {k}");
        assert_eq!(volumes(&stage).await, ["available disabled 1", "available disabled 1"]);
        for id in &ids {
            assert_eq!(stage.sim.image("b", POOL, &name(id)).unwrap().mirror, None);
        }
        assert_eq!(works_on(&stage.backend), "default /sim/b.conf");
        if !died {
            break;
        }
        k += if full() { 1 } else { 2 };
    }
    assert!(killed >= 3, "{killed}");
}

#[tokio::test]
async fn the_members_of_a_cluster_follow_when_their_own_files_say_so() {
    let mut stage = Stage::clustered().await;
    let (other, conf) = stage.member(&format!("{BEFORE}{CLUSTER}"));
    for backend in [&stage.backend, &other] {
        standing::enter(backend, true).await.unwrap();
        backend.refresh_report().await;
    }
    move_to(&stage, "b").await;
    standing::beat(&other, true).await.unwrap();
    for backend in [&stage.backend, &other] {
        backend.refresh_report().await;
        assert_eq!(works_on(backend), "b /sim/b.conf");
    }
    stage.rewrite(&format!("{SWAPPED}{CLUSTER}"));
    stage.set_deaf(true);
    let operation = stage.operation("scoria.replication.adopt", None).await;
    let failed = adopt::run(&stage.backend, &stage.context, &operation, &PLAIN).await.unwrap_err();
    assert_eq!(failed.code(), Code::Broker);
    assert_eq!(works_on(&stage.backend), "default /sim/b.conf", "it is over as far as we are concerned");
    stage.set_deaf(false);
    adopt::run(&stage.backend, &stage.context, &operation, &PLAIN).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    let told = stage.told().pop().unwrap();
    assert_eq!(told["active_backend_id"], Value::from(""), "null means: choose one");

    // Its file is the old one: `default` is site a there.
    for follow in ["told", "not told"] {
        match follow {
            "told" => assert!(standing::completed(&other, &told).await.is_err()),
            _ => standing::beat(&other, true).await.unwrap(),
        }
        assert!(other.active_site().is_err(), "{follow}");
        let Condition::Down { reason } = other.condition() else { panic!("{follow}: it serves site a") };
        assert!(reason.contains("this host"), "{reason}");
    }
    write_conf(conf.path(), "node2", &format!("{SWAPPED}{CLUSTER}"));
    standing::beat(&other, true).await.unwrap();
    assert_eq!(works_on(&other), "default /sim/b.conf");
    other.refresh_report().await;
    assert_eq!(other.condition(), Condition::Up);
    let row = "SELECT replication_status, COALESCE(active_backend_id, ''), disabled FROM services";
    for row in stage.test.rows(row).await {
        assert_eq!(row, ["enabled", "", "0"]);
    }
}
