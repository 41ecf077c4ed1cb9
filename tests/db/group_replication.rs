//! Replication of groups over the simulator: what the rows say at every end, and where each member is served.

use std::time::Duration;

use scoria::context::RequestContext;
use scoria::db::volume;
use scoria::error::{Code, Error};
use scoria::journal::Operation;
use scoria::rbd::protocol::*;
use scoria::rbd::sim::{Fault, Health, When};
use scoria::rbd::types::MirrorMode;
use scoria::replication::failover as of_backend;
use scoria::replication::group::{self, Failover, Wish};
use scoria::volume::connect;
use scoria::volume::create::{self, Create};
use scoria::volume::delete::{self, Delete};
use scoria::volume::extend::{self, Extend};
use scoria::volume::snapshot;
use serde_json::{Map, json};

use crate::create_site::image;
use crate::seed::{self, id};
use crate::stage::Stage;

const POOL: &str = "volumes";
const DATA: &str = r#"{"had_exclusive_lock":true,"had_journaling":false}"#;
/// Long enough for the simulator's daemons to copy an image and to link it.
const COPIED: Duration = Duration::from_secs(6);

/// Features that Ceph gives by default: what [`image`] makes.
const FEATURES: u64 = 61;

fn name(volume: &str) -> String {
    format!("volume-{volume}")
}

/// Two members with images, which are mirrored when they have been before.
async fn members(stage: &Stage, waiting: &str, mirrored: bool) -> (String, Vec<String>) {
    let group = seed::group(&stage.test, 1, "available", waiting).await;
    let mut ids = Vec::new();
    for number in 1..=2 {
        let data = if mirrored { format!(", replication_driver_data='{DATA}'") } else { String::new() };
        let extra = format!(", group_id='{group}', replication_status='{waiting}'{data}");
        ids.push(seed::volume(&stage.test, number, "available", &extra).await);
        image(stage, "a", &ids[ids.len() - 1]).await;
    }
    if mirrored {
        for id in &ids {
            mirror(stage, id).await;
        }
        tokio::time::sleep(COPIED).await;
    }
    (group, ids)
}

async fn mirror(stage: &Stage, volume: &str) {
    let enable = MirrorEnable { pool: POOL.into(), image: name(volume), mode: MirrorMode::Journal };
    stage.sim.site("a").call(enable).await.unwrap();
}

async fn wait_in(stage: &Stage, waiting: &str) {
    stage
        .test
        .sql(&format!(
            "UPDATE `groups` SET replication_status='{waiting}';
             UPDATE volumes SET replication_status='{waiting}' WHERE group_id IS NOT NULL"
        ))
        .await;
}

/// Status and replication status of the group, then of its members.
async fn rows(stage: &Stage) -> Vec<String> {
    let members =
        "SELECT status, replication_status FROM volumes WHERE group_id IS NOT NULL AND deleted=0 ORDER BY id";
    let mut rows = stage.test.rows("SELECT status, replication_status FROM `groups`").await;
    rows.extend(stage.test.rows(members).await);
    rows.into_iter().map(|row| row.join(" ")).collect()
}

async fn strays(stage: &Stage) -> Vec<Vec<String>> {
    stage.test.rows("SELECT volume_id, site FROM scoria_strays ORDER BY volume_id").await
}

async fn order(stage: &Stage, group: &str, to: Option<&str>) -> Operation {
    wait_in(stage, "failing-over").await;
    let operation = stage.operation("failover_replication", Some(("Group", group))).await;
    carry_out(stage, &operation, group, to).await;
    operation
}

async fn carry_out(stage: &Stage, operation: &Operation, group: &str, to: Option<&str>) {
    let request = Failover { group_id: group.into(), target: to.map(str::to_owned), ..Failover::default() };
    group::failover(&stage.backend, &stage.context, operation, request).await.unwrap();
}

async fn site_of(stage: &Stage, volume: &str) -> String {
    let row = stage.test.db.read("t", async |conn| volume::get(conn, volume).await).await.unwrap();
    stage.backend.place(&row).await.unwrap().site.name().to_owned()
}

#[tokio::test]
async fn mirroring_of_a_group_is_switched_on_and_off_and_leaves_nothing() {
    let stage = Stage::replicated().await;
    let (group, ids) = members(&stage, "enabling", false).await;
    let operation = stage.operation("enable_replication", Some(("Group", &group))).await;
    group::enable(&stage.backend, &stage.context, &operation, &group).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(rows(&stage).await, ["available enabled"; 3]);
    for id in &ids {
        assert_eq!(stage.seen(&name(id)).unwrap().mirror, Some(MirrorMode::Journal));
        assert!(stage.sim.image("b", POOL, &name(id)).is_some(), "the copy is there before it is said");
        assert_eq!(stage.column("volumes", "replication_driver_data", id).await, DATA);
    }
    let started = format!("group.enable_replication.start {group} available");
    let ended = format!("volume.enable_replication.end {} available", ids[1]);
    assert!(stage.heard.events().contains(&started) && stage.heard.events().last() == Some(&ended));

    // Enabled already: nothing is done to them, and what they had before is not forgotten.
    wait_in(&stage, "enabling").await;
    let operation = stage.operation("enable_replication", Some(("Group", &group))).await;
    group::enable(&stage.backend, &stage.context, &operation, &group).await.unwrap();
    assert_eq!(rows(&stage).await, ["available enabled"; 3]);
    assert_eq!(stage.sim.count("MirrorEnable"), 2);
    assert_eq!(stage.column("volumes", "replication_driver_data", &ids[0]).await, DATA);

    wait_in(&stage, "disabling").await;
    let operation = stage.operation("disable_replication", Some(("Group", &group))).await;
    group::disable(&stage.backend, &stage.context, &operation, &group).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(rows(&stage).await, ["available disabled"; 3]);
    for id in &ids {
        let image = stage.seen(&name(id)).unwrap();
        assert_eq!((image.mirror, image.features), (None, FEATURES));
        assert!(stage.sim.image("b", POOL, &name(id)).is_none(), "the copy has gone");
        assert_eq!(stage.column("volumes", "replication_driver_data", id).await, "NULL");
    }
    assert!(stage.messages().await.is_empty());
}

#[tokio::test]
async fn a_crash_while_mirroring_is_switched_on_does_not_make_its_features_the_images_own() {
    let mut stage = Stage::replicated().await;
    let (group, ids) = members(&stage, "enabling", false).await;
    let operation = stage.operation("enable_replication", Some(("Group", &group))).await;
    // The features are switched on, and the enabling itself never ends.
    stage.sim.inject(Fault::on("MirrorEnable").always());
    let begun = group::enable(&stage.backend, &stage.context, &operation, &group);
    assert!(tokio::time::timeout(Duration::from_secs(2), begun).await.is_err());
    stage.sim.clear_faults();
    stage.restart();
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    group::enable(&stage.backend, &stage.context, &operation, &group).await.unwrap();
    assert_eq!(rows(&stage).await, ["available enabled"; 3]);
    for id in &ids {
        assert_eq!(stage.column("volumes", "replication_driver_data", id).await, DATA);
    }
}

#[tokio::test]
async fn a_member_that_cannot_be_mirrored_fails_the_group_and_says_so_itself() {
    let stage = Stage::replicated().await;
    let (group, ids) = members(&stage, "enabling", false).await;
    stage.sim.inject(
        Fault::on("MirrorEnable")
            .image(&name(&ids[0]))
            .fails(When::Before, scoria::rbd::RbdErrorKind::Permission)
            .always(),
    );
    let operation = stage.operation("enable_replication", Some(("Group", &group))).await;
    group::enable(&stage.backend, &stage.context, &operation, &group).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(rows(&stage).await, ["error error", "available error", "available enabled"]);
    assert_eq!(stage.messages().await, [["GROUP", group.as_str(), "", "001"]]);
    assert_eq!(stage.seen(&name(&ids[0])).unwrap().features, FEATURES, "nothing is left switched on");
    // The API lets such a group be disabled, and that makes all good.
    stage.sim.clear_faults();
    wait_in(&stage, "disabling").await;
    let operation = stage.operation("disable_replication", Some(("Group", &group))).await;
    group::disable(&stage.backend, &stage.context, &operation, &group).await.unwrap();
    assert_eq!(rows(&stage).await, ["error disabled", "available disabled", "available disabled"]);
    for id in &ids {
        assert_eq!(stage.seen(&name(id)).unwrap().mirror, None);
    }
}

#[tokio::test]
async fn a_group_goes_to_the_other_site_by_itself_is_worked_on_there_and_comes_back() {
    let stage = Stage::replicated().await;
    let other = seed::volume(&stage.test, 7, "available", ", replication_status='enabled'").await;
    image(&stage, "a", &other).await;
    mirror(&stage, &other).await;
    let plain = seed::volume(&stage.test, 8, "available", ", replication_status='disabled'").await;
    let (group, ids) = members(&stage, "enabled", true).await;

    let operation = order(&stage, &group, None).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(rows(&stage).await, ["available failed-over"; 3]);
    assert_eq!(strays(&stage).await, [[ids[0].as_str(), "b"], [ids[1].as_str(), "b"]]);
    assert_eq!(stage.backend.active_name(), "default");
    for id in &ids {
        assert_eq!(stage.sim.primaries(POOL, &name(id)), ["b"]);
        assert_eq!(site_of(&stage, id).await, "b");
    }
    assert_eq!(stage.sim.primaries(POOL, &name(&other)), ["a"]);
    assert_eq!(
        (site_of(&stage, &other).await, site_of(&stage, &plain).await),
        ("default".into(), "default".into())
    );
    let left = "SELECT status, replication_status FROM volumes WHERE group_id IS NULL ORDER BY id";
    assert_eq!(stage.test.rows(left).await, [["available", "enabled"], ["available", "disabled"]]);
    assert_eq!(
        stage.heard.events().last(),
        Some(&format!("volume.failover_replication.end {} available", ids[1]))
    );

    // What is done to a member is done where it is primary.
    stage.test.sql(&format!("UPDATE volumes SET status='extending' WHERE id='{}'", ids[0])).await;
    let operation = stage.operation("extend_volume", Some(("Volume", &ids[0]))).await;
    let request = Extend { volume_id: ids[0].clone(), new_size: 3, reservations: vec![] };
    extend::extend(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.sim.image("b", POOL, &name(&ids[0])).unwrap().size, 3 << 30);
    let snap = seed::snapshot(&stage.test, 1, &ids[0], "creating").await;
    let operation = stage.operation("create_snapshot", Some(("Snapshot", &snap))).await;
    snapshot::create(&stage.backend, &stage.context, &operation, &snap).await.unwrap();
    assert_eq!(stage.status("snapshots", &snap).await, "available");
    assert_eq!(stage.sim.image("b", POOL, &name(&ids[0])).unwrap().snaps.len(), 1);
    // A copy would be made where the backend is: it is refused, and its row says so.
    let clone = seed::volume(&stage.test, 9, "creating", &format!(", source_volid='{}'", ids[0])).await;
    let operation = stage.operation("create_volume", Some(("Volume", &clone))).await;
    let request = Create { volume_id: clone.clone(), ..Create::default() };
    create::create(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.status("volumes", &clone).await, "error");
    stage.test.sql(&format!("UPDATE volumes SET deleted=1 WHERE id='{clone}'")).await;

    // Asked for again, there is nothing to do, and nothing is spoilt.
    let operation = order(&stage, &group, Some("b")).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(rows(&stage).await, ["available failed-over"; 3]);
    assert_eq!(strays(&stage).await.len(), 2);

    tokio::time::sleep(COPIED).await;
    let operation = order(&stage, &group, Some("default")).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(rows(&stage).await, ["available enabled"; 3]);
    assert!(strays(&stage).await.is_empty());
    for id in &ids {
        assert_eq!(
            (stage.sim.primaries(POOL, &name(id)), site_of(&stage, id).await),
            (vec!["a".into()], "default".into())
        );
    }
    stage.sim.assert_no_split_brain_created();
}

#[tokio::test]
async fn a_member_is_deleted_where_it_is() {
    let stage = Stage::replicated().await;
    let (group, ids) = members(&stage, "enabled", true).await;
    order(&stage, &group, Some("b")).await;
    stage.test.sql(&format!("UPDATE volumes SET status='deleting' WHERE id='{}'", ids[0])).await;
    let operation = stage.operation("delete_volume", Some(("Volume", &ids[0]))).await;
    let request = Delete { volume_id: ids[0].clone(), unmanage_only: false, cascade: false };
    delete::delete(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert!(stage.sim.image("b", POOL, &name(&ids[0])).is_none());
    assert_eq!(strays(&stage).await, [[ids[1].as_str(), "b"]]);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_leaves_everything_as_it_was() {
    let stage = Stage::replicated().await;
    let (group, ids) = members(&stage, "enabled", true).await;
    for (to, change) in [(Some("bogus"), "status='available'"), (Some("b"), "status='in-use'")] {
        stage.test.sql(&format!("UPDATE volumes SET {change} WHERE id='{}'", ids[0])).await;
        let operation = order(&stage, &group, to).await;
        assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
        let status = change.trim_start_matches("status='").trim_end_matches('\'');
        assert_eq!(
            rows(&stage).await,
            ["available enabled".into(), format!("{status} enabled"), "available enabled".into()]
        );
    }
    assert_eq!(stage.messages().await.len(), 2);
    // Somebody has changed a member: the others do not wait for ever, and it is left alone.
    wait_in(&stage, "failing-over").await;
    stage.test.sql(&format!("UPDATE volumes SET replication_status='error' WHERE id='{}'", ids[1])).await;
    let operation = stage.operation("failover_replication", Some(("Group", &group))).await;
    carry_out(&stage, &operation, &group, Some("b")).await;
    assert_eq!(rows(&stage).await, ["available enabled", "in-use enabled", "available error"]);
    // The group does not wait for us at all.
    let operation = stage.operation("failover_replication", Some(("Group", &group))).await;
    carry_out(&stage, &operation, &group, Some("b")).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(rows(&stage).await, ["available enabled", "in-use enabled", "available error"]);
    assert_eq!(stage.messages().await.len(), 3);
    assert_eq!(stage.sim.count("MirrorDemote"), 0);
    let gone = stage.operation("failover_replication", Some(("Group", &id(5, 9)))).await;
    carry_out(&stage, &gone, &id(5, 9), Some("b")).await;
    assert_eq!(stage.ended(&gone).await, ["closed", "succeeded"]);
}

#[tokio::test]
async fn a_dead_target_is_an_error_of_the_group_and_its_members_stay_in_service() {
    let stage = Stage::with(
        "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\nscoria_verdict_timeout=1\n\
         replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n",
    )
    .await;
    let (group, ids) = members(&stage, "enabled", true).await;
    stage.sim.set_health("b", Health::Dead);
    let operation = order(&stage, &group, Some("b")).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(rows(&stage).await, ["error error", "available error", "available error"]);
    assert_eq!(stage.messages().await.len(), 1);
    for id in &ids {
        assert_eq!(site_of(&stage, id).await, "default");
    }
    // An operator's retry finds all of them well, and with them the group.
    let operation = stage.operation("scoria.replication.retry", None).await;
    stage.sim.set_health("b", Health::Alive);
    of_backend::retry(&stage.backend, &operation, None).await.unwrap();
    assert_eq!(rows(&stage).await, ["available enabled"; 3]);
}

#[tokio::test]
async fn a_group_leaves_a_dead_site_by_force() {
    let mut stage = Stage::with(
        "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\nscoria_verdict_timeout=1\n\
         replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n",
    )
    .await;
    let (group, ids) = members(&stage, "enabled", true).await;
    stage.sim.set_health("a", Health::Dead);
    let operation = order(&stage, &group, None).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(rows(&stage).await, ["available failed-over"; 3]);
    // And can be worked on there, also by a service that has started since.
    stage.restart_down();
    for id in &ids {
        assert_eq!(site_of(&stage, id).await, "b");
    }
    let info = connect::initialize(&stage.backend, &ids[0], &Map::new()).await.unwrap();
    assert_eq!(info["data"]["auth_username"], "cinder");
    let plain = seed::volume(&stage.test, 8, "available", ", replication_status='disabled'").await;
    let refused = connect::initialize(&stage.backend, &plain, &Map::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::DriverNotInitialized);
}

#[tokio::test]
async fn a_group_that_is_torn_apart_is_brought_together_where_its_backend_is() {
    let stage = Stage::with(
        "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\nscoria_demote_timeout=2\n\
         replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n",
    )
    .await;
    let (group, ids) = members(&stage, "enabled", true).await;
    let busy = scoria::rbd::RbdErrorKind::Busy;
    stage.sim.inject(Fault::on("MirrorDemote").image(&name(&ids[0])).fails(When::Before, busy).always());
    let operation = order(&stage, &group, Some("b")).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(rows(&stage).await, ["error error", "available failover-error", "available failed-over"]);
    assert_eq!(
        (site_of(&stage, &ids[0]).await, site_of(&stage, &ids[1]).await),
        ("default".into(), "b".into())
    );
    let advice = stage.column("volumes", "replication_extended_status", &ids[0]).await;
    assert!(advice.contains("replication retry"), "{advice}");
    stage.sim.clear_faults();
    tokio::time::sleep(COPIED).await;
    let operation = stage.operation("scoria.replication.retry", None).await;
    of_backend::retry(&stage.backend, &operation, None).await.unwrap();
    assert_eq!(rows(&stage).await, ["available enabled"; 3]);
    assert!(strays(&stage).await.is_empty());
    for id in &ids {
        assert_eq!(stage.sim.primaries(POOL, &name(id)), ["a"]);
    }
}

#[tokio::test]
async fn a_failover_of_the_backend_takes_along_what_was_away_and_brings_it_back() {
    let stage = Stage::replicated().await;
    let (group, ids) = members(&stage, "enabled", true).await;
    order(&stage, &group, Some("b")).await;
    for (to, status) in [("b", "failed-over"), ("default", "enabled")] {
        tokio::time::sleep(COPIED).await;
        stage.test.sql("UPDATE services SET replication_status='failing-over'").await;
        let operation = stage.operation("failover_host", None).await;
        of_backend::failover(&stage.backend, &stage.context, &operation, Some(to)).await.unwrap();
        let members = stage.test.rows("SELECT status, replication_status FROM volumes ORDER BY id").await;
        assert_eq!(members, [["available", status], ["available", status]]);
        assert!(strays(&stage).await.is_empty());
        for id in &ids {
            assert_eq!(site_of(&stage, id).await, to);
        }
    }
    // The other way round: the backend is away, and its group comes home before it.
    stage.test.sql("UPDATE services SET replication_status='failing-over'").await;
    tokio::time::sleep(COPIED).await;
    let operation = stage.operation("failover_host", None).await;
    of_backend::failover(&stage.backend, &stage.context, &operation, Some("b")).await.unwrap();
    tokio::time::sleep(COPIED).await;
    let operation = order(&stage, &group, Some("default")).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(rows(&stage).await, ["available enabled"; 3]);
    assert_eq!(strays(&stage).await, [[ids[0].as_str(), "default"], [ids[1].as_str(), "default"]]);
    assert_eq!(site_of(&stage, &ids[0]).await, "default");
}

/// Killed at some of its calls, there and on the way back, and taken over by the next instance.
#[tokio::test]
async fn a_failover_that_was_killed_is_finished_with_the_same_target() {
    let mut stage = Stage::replicated().await;
    let (group, ids) = members(&stage, "enabled", true).await;
    for (k, when, to, status) in [
        (3, When::Before, "b", "failed-over"),
        (6, When::After, "default", "enabled"),
        (8, When::After, "b", "failed-over"),
        (9, When::Before, "default", "enabled"),
    ] {
        wait_in(&stage, "failing-over").await;
        let operation = stage.operation("failover_replication", Some(("Group", &group))).await;
        stage.sim.kill_at(k, when);
        let killed = tokio::select! {
            biased;
            () = stage.sim.crashed() => true,
            () = carry_out(&stage, &operation, &group, Some(to)) => false,
        };
        stage.sim.restart();
        if killed {
            assert_eq!(rows(&stage).await, ["available failing-over"; 3]);
            stage.restart();
            let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
            // The message is the same after a restart, and yet it is the journal that counts.
            carry_out(&stage, &operation, &group, Some(to)).await;
            assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
        }
        assert_eq!(rows(&stage).await, vec![format!("available {status}"); 3], "killed at {k}");
        for id in &ids {
            assert_eq!(site_of(&stage, id).await, to);
            assert_eq!(stage.sim.primaries(POOL, &name(id)).len(), 1);
        }
        stage.sim.assert_no_split_brain_created();
        tokio::time::sleep(COPIED).await;
    }
}

#[tokio::test]
async fn a_request_that_hit_a_defect_ends_as_a_failure() {
    let stage = Stage::replicated().await;
    let (group, _) = members(&stage, "disabling", false).await;
    let operation = stage.operation("disable_replication", Some(("Group", &group))).await;
    let defect = Error::internal("a defect");
    group::give_up(&stage.backend, &stage.context, &operation, &group, Wish::Disable, defect).await.unwrap();
    assert_eq!(rows(&stage).await, ["error error", "available error", "available error"]);
    assert_eq!(stage.messages().await.len(), 1);
}

#[tokio::test]
async fn the_targets_of_a_group_are_shown_in_full_to_an_administrator() {
    let stage = Stage::replicated().await;
    let group = seed::group(&stage.test, 1, "available", "enabled").await;
    let shown = group::targets(&stage.backend, &RequestContext::admin(), &group).await.unwrap();
    let device = json!({"backend_id": "b", "conf": "/sim/b.conf", "user": "cinder"});
    assert_eq!(shown, json!({ "replication_targets": [device] }));
    let shown = group::targets(&stage.backend, &stage.context, &group).await.unwrap();
    assert_eq!(shown, json!({ "replication_targets": [{"backend_id": "b"}] }));
    let gone = group::targets(&stage.backend, &stage.context, &id(5, 9)).await.unwrap_err();
    assert_eq!(gone.code(), Code::VolumeBackend);
    assert_eq!(gone.user(), format!("Get replication targets failed. Group {} not found.", id(5, 9)));
    let alone = Stage::new().await;
    let group = seed::group(&alone.test, 1, "available", "enabled").await;
    let none = group::targets(&alone.backend, &RequestContext::admin(), &group).await.unwrap();
    assert_eq!(none, json!({ "replication_targets": [] }));
}
