//! Creating volumes: what they take over from their source and their type, and where failures go.

use scoria::backend::peers::Reschedule;
use scoria::error::Error;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::MetadataList;
use scoria::rbd::sim::{Fault, When};
use scoria::volume::create::{self, Create};
use serde_json::json;

use crate::seed;
use crate::stage::Stage;

async fn run(stage: &Stage, volume: &str, request: Create) -> Result<(), Error> {
    let operation = stage.operation("create_volume", Some(("Volume", volume))).await;
    let request = Create { volume_id: volume.to_owned(), ..request };
    create::create(&stage.backend, &stage.context, &operation, request).await
}

/// As the scheduler sends it when it can place the volume elsewhere.
fn elsewhere() -> Create {
    let filter_properties = json!({"retry": {"num_attempts": 1}});
    Create {
        reschedule: Some(Reschedule { filter_properties, ..Reschedule::default() }),
        ..Create::default()
    }
}

/// A type of these extra specs and, with `qos`, back-end specs.
async fn volume_type(stage: &Stage, specs: &[(&str, &str)], qos: &[(&str, &str)]) -> String {
    let id = seed::id(5, 1);
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_types (id, name, deleted, is_public) VALUES ('{id}', 'special', 0, 1)"
        ))
        .await;
    for (key, value) in specs {
        stage
            .test
            .sql(&format!(
                "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
                 VALUES ('{id}', '{key}', '{value}', 0)"
            ))
            .await;
    }
    if !qos.is_empty() {
        stage
            .test
            .sql(&format!(
                "INSERT INTO quality_of_service_specs (id, `key`, value, deleted) VALUES ('q', 'QoS_Specs_Name', 'q', 0);
                 UPDATE volume_types SET qos_specs_id='q' WHERE id='{id}'"
            ))
            .await;
    }
    for (number, (key, value)) in qos.iter().enumerate() {
        stage
            .test
            .sql(&format!(
                "INSERT INTO quality_of_service_specs (id, specs_id, `key`, value, deleted)
                 VALUES ('q{number}', 'q', '{key}', '{value}', 0)"
            ))
            .await;
    }
    id
}

async fn image_metadata(stage: &Stage, volume: &str) -> Vec<Vec<String>> {
    stage
        .test
        .rows(&format!(
            "SELECT `key`, value FROM volume_glance_metadata WHERE volume_id='{volume}' AND deleted=0 ORDER BY `key`"
        ))
        .await
}

#[tokio::test]
async fn copies_of_a_bootable_volume_carry_its_image_metadata() {
    let stage = Stage::new().await;
    let origin = seed::volume(&stage.test, 1, "available", ", bootable=1").await;
    let image = stage.image(&origin).await;
    let snapshot = seed::snapshot(&stage.test, 1, &origin, "available").await;
    stage.snapped(&image, &snapshot).await;
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_glance_metadata (volume_id, `key`, value, deleted)
               VALUES ('{origin}', 'min_ram', '64', 0), ('{origin}', 'old', 'x', 1);
             INSERT INTO volume_glance_metadata (snapshot_id, `key`, value, deleted)
               VALUES ('{snapshot}', 'min_ram', '32', 0)"
        ))
        .await;
    let clone = seed::volume(&stage.test, 2, "creating", &format!(", source_volid='{origin}'")).await;
    run(&stage, &clone, Create::default()).await.unwrap();
    assert_eq!(image_metadata(&stage, &clone).await, [["min_ram", "64"]]);
    assert_eq!(stage.column("volumes", "bootable", &clone).await, "1");
    let copy = seed::volume(&stage.test, 3, "creating", &format!(", snapshot_id='{snapshot}'")).await;
    run(&stage, &copy, Create::default()).await.unwrap();
    assert_eq!(image_metadata(&stage, &copy).await, [["min_ram", "32"]]);
    assert_eq!(stage.column("volumes", "bootable", &copy).await, "1");

    // Not that of a volume that does not boot.
    stage.test.sql(&format!("UPDATE volumes SET bootable=0 WHERE id='{origin}'")).await;
    let clone = seed::volume(&stage.test, 4, "creating", &format!(", source_volid='{origin}'")).await;
    run(&stage, &clone, Create::default()).await.unwrap();
    assert!(image_metadata(&stage, &clone).await.is_empty());
    assert_eq!(stage.column("volumes", "bootable", &clone).await, "0");
}

#[tokio::test]
async fn a_volume_that_goes_back_to_the_scheduler_is_no_work_of_ours_any_more() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "creating", "").await;
    stage
        .test
        .sql(&format!(
            "INSERT INTO workers (resource_type, resource_id, status, service_id, race_preventer, deleted)
             VALUES ('Volume', '{volume}', 'creating', 1, 0, 0)"
        ))
        .await;
    stage.sim.inject(Fault::on("ImageCreate").fails(When::Before, RbdErrorKind::Other));
    run(&stage, &volume, elsewhere()).await.unwrap();
    assert_eq!(stage.heard.rescheduled().len(), 1);
    assert_eq!(stage.status("volumes", &volume).await, "creating");
    let worker = format!("SELECT service_id, status FROM workers WHERE resource_id='{volume}'");
    assert_eq!(stage.test.row(&worker).await, ["NULL", "creating"]);
    assert_eq!(stage.heard.events(), [format!("volume.create.start {volume} creating")]);
}

#[tokio::test]
async fn what_no_backend_of_ours_can_do_is_not_sent_round() {
    let stage = Stage::new().await;
    // Another backend may not mirror, and take it.
    let both = [("replication_enabled", "<is> True"), ("multiattach", "<is> True")];
    let volume_type = volume_type(&stage, &both, &[]).await;
    let impossible =
        seed::volume(&stage.test, 3, "creating", &format!(", volume_type_id='{volume_type}'")).await;
    run(&stage, &impossible, elsewhere()).await.unwrap();
    assert_eq!(stage.heard.rescheduled().len(), 1);
}

#[tokio::test]
async fn a_volume_of_a_multiattach_type_has_nothing_that_two_writers_would_fight_over() {
    let stage = Stage::new().await;
    let volume_type = volume_type(&stage, &[("multiattach", "<is> True")], &[]).await;
    let volume = seed::volume(&stage.test, 1, "creating", &format!(", volume_type_id='{volume_type}'")).await;
    stage.sim.inject(Fault::on("ImageFeatures").fails(When::After, RbdErrorKind::WorkerLost));
    run(&stage, &volume, Create::default()).await.unwrap();
    assert_eq!(stage.column("volumes", "provider_location", &volume).await, r#"{"saved_features":61}"#);
    let features = stage.seen(&format!("volume-{volume}")).unwrap().features;
    assert_eq!(features, 61 & !(64 | 16 | 8 | 4));
}

#[tokio::test]
async fn the_back_end_limits_of_a_type_are_written_to_the_image() {
    let stage = Stage::new().await;
    let specs = [
        ("consumer", "both"),
        ("total_iops_sec", "500"),
        ("read_bytes_sec", "1000"),
        ("write_iops_sec_max", "9"),
        ("unheard_of", "1"),
    ];
    let volume_type = volume_type(&stage, &[], &specs).await;
    let volume = seed::volume(&stage.test, 1, "creating", &format!(", volume_type_id='{volume_type}'")).await;
    run(&stage, &volume, Create::default()).await.unwrap();
    let list = MetadataList { pool: "volumes".into(), image: format!("volume-{volume}") };
    let mut found = stage.sim.site("a").call(list.clone()).await.unwrap();
    found.sort();
    let expected = [
        ("conf_rbd_qos_iops_limit", "500"),
        ("conf_rbd_qos_read_bps_limit", "1000"),
        ("conf_rbd_qos_write_iops_burst", "9"),
    ];
    assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));

    // What the hypervisor applies is none of Ceph's business.
    stage.test.sql("UPDATE quality_of_service_specs SET value='front-end' WHERE `key`='consumer'").await;
    let other = seed::volume(&stage.test, 2, "creating", &format!(", volume_type_id='{volume_type}'")).await;
    run(&stage, &other, Create::default()).await.unwrap();
    let list = MetadataList { image: format!("volume-{other}"), ..list };
    assert!(stage.sim.site("a").call(list).await.unwrap().is_empty());
}
