//! Retyping where the volume is: image, rows and quota change together, or not at all.

use std::time::Duration;

use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{ImageWrite, MetadataList, MirrorEnable};
use scoria::rbd::sim::crash::explored;
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::MirrorMode;
use scoria::volume::migrate::Destination;
use scoria::volume::retype::{self, Retype};
use serde_json::Map;

use crate::modes::restored;
use crate::seed::{self, BACKEND, PROJECT, TYPE};
use crate::stage::{Stage, lives};

/// A type with these extra specs, and these QoS specs if any.
async fn volume_type(stage: &Stage, number: u32, specs: &[(&str, &str)], qos: &[(&str, &str)]) -> String {
    let id = seed::id(5, number);
    let mut sql = format!(
        "INSERT INTO volume_types (id, name, deleted, is_public) VALUES ('{id}', 'type{number}', 0, 1);"
    );
    for (key, value) in specs {
        sql += &format!(
            "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
             VALUES ('{id}', '{key}', '{value}', 0);"
        );
    }
    if !qos.is_empty() {
        sql += &format!(
            "INSERT INTO quality_of_service_specs (id, `key`, value, deleted)
             VALUES ('q{number}', 'QoS_Specs_Name', 'q', 0);
             UPDATE volume_types SET qos_specs_id='q{number}' WHERE id='{id}';"
        );
    }
    for (n, (key, value)) in qos.iter().enumerate() {
        sql += &format!(
            "INSERT INTO quality_of_service_specs (id, specs_id, `key`, value, deleted)
             VALUES ('q{number}-{n}', 'q{number}', '{key}', '{value}', 0);"
        );
    }
    stage.test.sql(&sql).await;
    id
}

/// One volume of the new type reserved, one of the old to be given back, as the API leaves them.
async fn reserve(stage: &Stage) {
    for (resource, delta) in [("volumes_new", 1), ("volumes_old", -1)] {
        stage
            .test
            .sql(&format!(
                "INSERT INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
                 VALUES ('{PROJECT}', '{resource}', 5, {}, 1, 0);
                 INSERT INTO reservations (uuid, usage_id, project_id, resource, delta, expire, deleted)
                 SELECT resource, id, project_id, resource, {delta}, '2099-01-01', 0
                 FROM quota_usages WHERE resource='{resource}'",
                delta.max(0)
            ))
            .await;
    }
}

async fn usages(stage: &Stage) -> Vec<Vec<String>> {
    stage.test.rows("SELECT resource, in_use, reserved FROM quota_usages ORDER BY resource").await
}

fn request(volume: &str, to: &str) -> Retype {
    Retype {
        volume_id: volume.to_owned(),
        new_type_id: to.to_owned(),
        destination: Destination {
            host: format!("{BACKEND}#pool"),
            cluster_name: None,
            capabilities: Map::new(),
        },
        may_move: false,
        reservations: vec!["volumes_new".to_owned()],
        old_reservations: vec!["volumes_old".to_owned()],
    }
}

async fn run(stage: &Stage, request: Retype) -> Vec<String> {
    let operation = stage.operation("retype", Some(("Volume", &request.volume_id))).await;
    retype::retype(&stage.backend, &stage.context, &operation, request).await.unwrap();
    stage.ended(&operation).await
}

async fn row(stage: &Stage, volume: &str) -> Vec<String> {
    let columns = "status, volume_type_id, replication_status, replication_driver_data, provider_location";
    stage.test.row(&format!("SELECT {columns} FROM volumes WHERE id='{volume}'")).await
}

async fn limits(stage: &Stage, image: &str) -> Vec<(String, String)> {
    let list = MetadataList { pool: "volumes".into(), image: image.to_owned() };
    stage.sim.site("a").call(list).await.unwrap()
}

const RETYPING: &str = ", previous_status='available', replication_status='disabled'";
const DATA: &str = r#"{"had_exclusive_lock":true,"had_journaling":false}"#;

#[tokio::test]
async fn limits_many_writers_and_snapshots_follow_the_type_and_go_back_with_it() {
    let stage = Stage::new().await;
    let slow = [("consumer", "back-end"), ("total_iops_sec", "500"), ("read_bytes_sec", "1000")];
    let old = volume_type(&stage, 1, &[], &slow).await;
    let fast = [("consumer", "both"), ("total_iops_sec", "900")];
    let new = volume_type(&stage, 2, &[("multiattach", "<is> True")], &fast).await;
    let of_old = format!(", volume_type_id='{old}', previous_status='available'");
    let volume = seed::volume(&stage.test, 1, "retyping", &of_old).await;
    let snapshot = seed::snapshot(&stage.test, 1, &volume, "available").await;
    let image = stage.image(&volume).await;
    reserve(&stage).await;

    assert_eq!(run(&stage, request(&volume, &new)).await, ["closed", "succeeded"]);
    assert_eq!(
        row(&stage, &volume).await,
        ["available", new.as_str(), "NULL", "NULL", r#"{"saved_features":61}"#]
    );
    assert_eq!(stage.column("snapshots", "volume_type_id", &snapshot).await, new);
    assert_eq!(stage.seen(&image).unwrap().features, 61 & !(64 | 16 | 8 | 4));
    assert_eq!(limits(&stage, &image).await, [("conf_rbd_qos_iops_limit".to_owned(), "900".to_owned())]);
    assert_eq!(usages(&stage).await, [["volumes_new", "6", "0"], ["volumes_old", "4", "0"]]);
    assert_eq!(stage.heard.events(), [format!("volume.retype {volume} available")]);
    assert!(stage.messages().await.is_empty());

    stage.test.sql(&format!("UPDATE volumes SET status='retyping' WHERE id='{volume}'")).await;
    assert_eq!(run(&stage, request(&volume, &old)).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &volume).await[4], "NULL");
    assert_eq!(stage.seen(&image).unwrap().features, 61);
    assert_eq!(limits(&stage, &image).await.len(), 2);
}

#[tokio::test]
async fn mirroring_follows_the_type_and_the_row_says_so() {
    let stage = Stage::replicated().await;
    let plain = volume_type(&stage, 1, &[], &[]).await;
    let by_snapshots = [("replication_enabled", "<is> True"), ("replication:mode", "snapshot")];
    let by_snapshots = volume_type(&stage, 2, &by_snapshots, &[]).await;
    let of_plain = format!("{RETYPING}, volume_type_id='{plain}'");
    let volume = seed::volume(&stage.test, 1, "retyping", &of_plain).await;
    let image = stage.image(&volume).await;
    let again = format!("UPDATE volumes SET status='retyping' WHERE id='{volume}'");

    assert_eq!(run(&stage, request(&volume, TYPE)).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &volume).await, ["available", TYPE, "enabled", DATA, "NULL"]);
    assert_eq!(stage.seen(&image).unwrap().mirror, Some(MirrorMode::Journal));

    stage.test.sql(&again).await;
    assert_eq!(run(&stage, request(&volume, &by_snapshots)).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &volume).await[2..4], ["enabled", DATA]);
    assert_eq!(stage.seen(&image).unwrap().mirror, Some(MirrorMode::Snapshot));

    stage.test.sql(&again).await;
    assert_eq!(run(&stage, request(&volume, &plain)).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &volume).await, ["available", plain.as_str(), "disabled", "NULL", "NULL"]);
    let seen = stage.seen(&image).unwrap();
    assert_eq!((seen.mirror, seen.features), (None, 61));
}

/// Whatever its type says of parents: a backup is none to stay.
#[tokio::test]
async fn what_was_restored_by_a_clone_is_flattened_before_it_is_mirrored() {
    let stage = Stage::replicated().await;
    let plain = volume_type(&stage, 1, &[], &[]).await;
    let of_plain = format!("{RETYPING}, volume_type_id='{plain}'");
    let volume = restored(&stage, 1, "retyping", &of_plain).await;
    let image = format!("volume-{volume}");
    let before = stage.seen(&image).unwrap().checksum;
    assert_eq!(run(&stage, request(&volume, TYPE)).await, ["closed", "succeeded"]);
    let seen = stage.seen(&image).unwrap();
    assert_eq!((seen.mirror, seen.checksum), (Some(MirrorMode::Journal), before));
    assert!(stage.place().stat(&image).await.unwrap().parent.is_none());
}

#[tokio::test]
async fn on_the_other_site_a_volume_becomes_failed_over() {
    let stage = Stage::replicated().await;
    let plain = volume_type(&stage, 1, &[], &[]).await;
    stage.test.sql("UPDATE services SET active_backend_id='b', replication_status='failed-over'").await;
    stage.backend.activate("b").unwrap();
    let of_plain = format!("{RETYPING}, volume_type_id='{plain}'");
    let volume = seed::volume(&stage.test, 1, "retyping", &of_plain).await;
    let image = format!("volume-{volume}");
    let place = scoria::volume::image::Place { site: stage.sim.site("b"), pool: "volumes".into() };
    let shape = scoria::volume::image::Shape { order: 22, features: 61 };
    place.create(&image, 2 << 30, shape, scoria::volume::image::Attempt::First).await.unwrap();
    assert_eq!(run(&stage, request(&volume, TYPE)).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &volume).await[2], "failed-over");
    assert_eq!(stage.sim.primaries("volumes", &image), ["b"]);
}

#[tokio::test]
async fn what_cannot_be_leaves_volume_image_and_quota_as_they_were() {
    let stage = Stage::replicated().await;
    let plain = volume_type(&stage, 1, &[], &[]).await;
    let both = [("replication_enabled", "<is> True"), ("multiattach", "<is> True")];
    let impossible = volume_type(&stage, 2, &both, &[]).await;
    let of_plain = format!("{RETYPING}, volume_type_id='{plain}'");
    let volume = seed::volume(&stage.test, 1, "retyping", &of_plain).await;
    let image = stage.image(&volume).await;
    let before = stage.seen(&image);
    let row_before = ["available", plain.as_str(), "disabled", "NULL", "NULL"];
    let unknown = seed::id(5, 99);
    let elsewhere = Destination { host: "node2@other#p".into(), ..Destination::default() };
    let cases = [
        request(&volume, &impossible),
        request(&volume, &unknown),
        Retype { destination: elsewhere, ..request(&volume, TYPE) },
    ];
    for asked in cases {
        stage.test.sql(&format!("UPDATE volumes SET status='retyping' WHERE id='{volume}'")).await;
        stage.test.sql("DELETE FROM reservations; DELETE FROM quota_usages; DELETE FROM messages").await;
        reserve(&stage).await;
        assert_eq!(run(&stage, asked).await, ["closed", "failed"]);
        assert_eq!(row(&stage, &volume).await, row_before);
        assert_eq!(stage.seen(&image), before);
        assert_eq!(usages(&stage).await, [["volumes_new", "5", "0"], ["volumes_old", "5", "0"]]);
        assert_eq!(stage.messages().await, [["VOLUME", volume.as_str(), "", "001"]]);
    }
    assert!(stage.heard.events().is_empty());
}

#[tokio::test]
async fn a_change_that_ceph_refuses_is_taken_back() {
    let stage = Stage::replicated().await;
    let plain = volume_type(&stage, 1, &[], &[("consumer", "back-end"), ("total_iops_sec", "5")]).await;
    let of_plain = format!("{RETYPING}, volume_type_id='{plain}'");
    let volume = seed::volume(&stage.test, 1, "retyping", &of_plain).await;
    let image = stage.image(&volume).await;
    let before = stage.seen(&image);
    stage.sim.inject(Fault::on("MirrorEnable").fails(When::Before, RbdErrorKind::Other));
    assert_eq!(run(&stage, request(&volume, TYPE)).await, ["closed", "failed"]);
    assert_eq!(row(&stage, &volume).await[..3], ["available", plain.as_str(), "disabled"]);
    assert_eq!(stage.seen(&image), before, "without the journaling that mirroring needs");
}

#[tokio::test]
async fn what_could_not_be_taken_back_is_said_in_the_row() {
    let stage = Stage::replicated().await;
    let plain = volume_type(&stage, 1, &[], &[]).await;
    let of_plain = format!("{RETYPING}, volume_type_id='{plain}'");
    let volume = seed::volume(&stage.test, 1, "retyping", &of_plain).await;
    let image = stage.image(&volume).await;
    // It is mirrored, whatever the answer says, and stays so.
    stage.sim.inject(Fault::on("MirrorEnable").fails(When::After, RbdErrorKind::Other));
    stage.sim.inject(Fault::on("MirrorInfo").nth(3).fails(When::Before, RbdErrorKind::Other));
    stage.sim.inject(Fault::on("MirrorDisable").fails(When::Before, RbdErrorKind::Other));
    assert_eq!(run(&stage, request(&volume, TYPE)).await, ["closed", "failed"]);
    assert_eq!(row(&stage, &volume).await[..3], ["available", plain.as_str(), "enabled"]);
    assert_eq!(stage.seen(&image).unwrap().mirror, Some(MirrorMode::Journal));
}

#[tokio::test]
async fn after_a_crash_it_is_finished_with_what_was_known_before() {
    for stuck in ["MirrorEnable", "ImageFeatures"] {
        let mut stage = Stage::replicated().await;
        let plain = volume_type(&stage, 1, &[], &[]).await;
        let of_plain = format!("{RETYPING}, volume_type_id='{plain}'");
        let volume = seed::volume(&stage.test, 1, "retyping", &of_plain).await;
        stage.image(&volume).await;
        let operation = stage.operation("retype", Some(("Volume", &volume))).await;
        stage.sim.inject(Fault::on(stuck).sticks());
        let begun = retype::retype(&stage.backend, &stage.context, &operation, request(&volume, TYPE));
        assert!(tokio::time::timeout(Duration::from_secs(1), begun).await.is_err());
        stage.sim.clear_faults();
        stage.restart();
        let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
        retype::retype(&stage.backend, &stage.context, &operation, request(&volume, TYPE)).await.unwrap();
        // Journaling was not there before: whoever disables the mirroring takes it away again.
        assert_eq!(row(&stage, &volume).await, ["available", TYPE, "enabled", DATA, "NULL"], "{stuck}");
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    }
}

/// Killed at its calls to Ceph, later each time (`lives`), and taken up by the next instance each time: there, and back.
#[tokio::test]
async fn a_switch_of_modes_is_finished_however_often_the_service_dies() {
    let mut stage = Stage::quick("").await;
    let by_snapshots = [("replication_enabled", "<is> True"), ("replication:mode", "snapshot")];
    let by_snapshots = volume_type(&stage, 2, &by_snapshots, &[]).await;
    let volume = seed::volume(&stage.test, 1, "available", ", replication_status='enabled'").await;
    let image = stage.image(&volume).await;
    let data =
        ImageWrite { pool: "volumes".into(), image: image.clone(), offset: 512, data: b"kept".to_vec() };
    stage.sim.site("a").call(data).await.unwrap();
    let mode = MirrorMode::Journal;
    let enable = MirrorEnable { pool: "volumes".into(), image: image.clone(), mode };
    stage.sim.site("a").call(enable).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let written = stage.seen(&image).unwrap().checksum;
    for (to, mode) in [(by_snapshots.as_str(), MirrorMode::Snapshot), (TYPE, MirrorMode::Journal)] {
        let ordered =
            format!("UPDATE volumes SET status='retyping', previous_status='available' WHERE id='{volume}'");
        stage.test.sql(&ordered).await;
        let mut operation = stage.operation("retype", Some(("Volume", &volume))).await;
        let mut kills = 0;
        for (k, when) in lives() {
            stage.sim.kill_at(k, when);
            let killed = tokio::select! {
                biased;
                () = stage.sim.crashed() => true,
                done = retype::retype(&stage.backend, &stage.context, &operation, request(&volume, to)) => {
                    done.unwrap();
                    false
                }
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
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
        assert_eq!(row(&stage, &volume).await[..3], ["available", to, "enabled"]);
        let seen = stage.seen(&image).unwrap();
        assert_eq!((seen.mirror, seen.primary, seen.checksum), (Some(mode), true, written));
        let copy = stage.sim.image("b", "volumes", &image).unwrap();
        assert_eq!((copy.mirror, copy.primary, copy.checksum), (Some(mode), false, written));
    }
    stage.sim.assert_sides_agree();
}

#[tokio::test]
async fn a_volume_that_was_reset_or_deleted_meanwhile_is_respected() {
    let stage = Stage::new().await;
    let old = volume_type(&stage, 1, &[], &[]).await;
    let new = volume_type(&stage, 2, &[("a", "b")], &[]).await;
    let reset = seed::volume(&stage.test, 1, "error", &format!(", volume_type_id='{old}'")).await;
    stage.image(&reset).await;
    assert_eq!(run(&stage, request(&reset, &new)).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &reset).await[..2], ["error", new.as_str()]);
    reserve(&stage).await;
    assert_eq!(run(&stage, request(&seed::id(1, 9), &new)).await, ["closed", "failed"]);
    assert_eq!(usages(&stage).await, [["volumes_new", "5", "0"], ["volumes_old", "5", "0"]]);
}
