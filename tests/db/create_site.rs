//! A new volume is made where its source is, and its row says where that was.

use std::time::Duration;

use scoria::db::volume;
use scoria::error::Error;
use scoria::model::Volume;
use scoria::rbd::protocol::*;
use scoria::rbd::sim::Fault;
use scoria::volume::create::{self, Create};

use crate::seed;
use crate::stage::Stage;

const POOL: &str = "volumes";

/// An image for a volume that exists.
pub async fn image(stage: &Stage, site: &str, volume: &str) {
    let image = stage.backend.image_name(&Volume { id: volume.to_owned(), ..Volume::default() });
    let create = ImageCreate { pool: POOL.into(), image, size: 2 << 30, order: 22, features: 61 };
    stage.sim.site(site).call(create).await.unwrap();
}

pub fn has_image(stage: &Stage, site: &str, volume: &str) -> bool {
    stage.sim.image(site, POOL, &format!("volume-{volume}")).is_some()
}

async fn row(stage: &Stage, volume: &str) -> Vec<String> {
    stage.test.row(&format!("SELECT status, replication_status FROM volumes WHERE id='{volume}'")).await
}

fn request(volume: &str) -> Create {
    Create { volume_id: volume.to_owned(), ..Create::default() }
}

#[tokio::test]
async fn what_a_failover_left_behind_is_not_copied_from_the_other_sites_old_data() {
    let stage = Stage::replicated().await;
    let source = seed::volume(&stage.test, 1, "available", ", replication_status='failover-error'").await;
    let snapshot = seed::snapshot(&stage.test, 1, &source, "available").await;
    stage.test.sql(&format!("INSERT INTO scoria_strays VALUES ('{source}', 'b', '2026-01-01')")).await;
    image(&stage, "a", &source).await;
    let clone = seed::volume(&stage.test, 2, "creating", &format!(", source_volid='{source}'")).await;
    let copy = seed::volume(&stage.test, 3, "creating", &format!(", snapshot_id='{snapshot}'")).await;
    for volume in [&clone, &copy] {
        let operation = stage.operation("create_volume", Some(("Volume", volume))).await;
        create::create(&stage.backend, &stage.context, &operation, request(volume)).await.unwrap();
        assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
        assert_eq!(row(&stage, volume).await, ["error", "NULL"]);
        assert!(!has_image(&stage, "a", volume) && !has_image(&stage, "b", volume));
    }
    assert_eq!(stage.messages().await.len(), 2);
    assert_eq!(stage.sim.count("SnapCreate"), 0, "the old copy is not touched");
}

/// The backend fails over while the request works, and the grace that it gave is over.
async fn fail_over_while(stage: &Stage, call: &str, work: impl Future<Output = ()>) {
    stage.sim.inject(Fault::on(call).site("a").delays(Duration::from_secs(1)));
    let move_on = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage.test.sql("UPDATE services SET active_backend_id='b', replication_status='failed-over'").await;
        stage.backend.activate("b").unwrap();
    };
    tokio::join!(work, move_on);
}

#[tokio::test]
async fn a_mirrored_volume_that_a_failover_overtook_is_served_from_where_it_was_made() {
    let stage = Stage::replicated().await;
    let volume = seed::volume(&stage.test, 1, "creating", ", replication_status='disabled'").await;
    let operation = stage.operation("create_volume", Some(("Volume", &volume))).await;
    fail_over_while(&stage, "ImageCreate", async {
        create::create(&stage.backend, &stage.context, &operation, request(&volume)).await.unwrap();
    })
    .await;
    assert_eq!(row(&stage, &volume).await, ["available", "failover-error"]);
    assert_eq!(
        stage.test.row("SELECT volume_id, site FROM scoria_strays").await,
        [volume.as_str(), "default"]
    );
    let advice = stage.test.row("SELECT replication_extended_status FROM volumes").await.remove(0);
    assert!(advice.contains("replication retry"), "{advice}");
    assert!(has_image(&stage, "a", &volume));
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
}

#[tokio::test]
async fn a_volume_that_a_failover_overtook_and_that_is_not_mirrored_has_failed() {
    let stage = Stage::replicated().await;
    stage.test.sql("UPDATE volume_type_extra_specs SET deleted=1").await;
    let volume = seed::volume(&stage.test, 1, "creating", "").await;
    let operation = stage.operation("create_volume", Some(("Volume", &volume))).await;
    fail_over_while(&stage, "ImageCreate", async {
        create::create(&stage.backend, &stage.context, &operation, request(&volume)).await.unwrap();
    })
    .await;
    assert_eq!(row(&stage, &volume).await[0], "error");
    assert!(!has_image(&stage, "a", &volume), "removed where it was made");
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
}

#[tokio::test]
async fn what_was_begun_before_a_crash_goes_on_where_it_was_begun() {
    let mut stage = Stage::replicated().await;
    let volume = seed::volume(&stage.test, 1, "creating", "").await;
    let operation = stage.operation("create_volume", Some(("Volume", &volume))).await;
    stage.sim.inject(Fault::on("MirrorEnable").sticks());
    let begun = create::create(&stage.backend, &stage.context, &operation, request(&volume));
    assert!(tokio::time::timeout(Duration::from_secs(1), begun).await.is_err());
    stage.sim.clear_faults();
    stage.test.sql("UPDATE services SET active_backend_id='b', replication_status='failed-over'").await;
    stage.restart();
    stage.backend.activate("b").unwrap();
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    create::create(&stage.backend, &stage.context, &operation, request(&volume)).await.unwrap();
    assert_eq!(row(&stage, &volume).await, ["available", "failover-error"]);
    assert_eq!(stage.sim.primaries(POOL, &format!("volume-{volume}")), ["a"]);
}

#[tokio::test]
async fn a_creation_that_is_given_up_leaves_an_error_and_no_image() {
    let mut stage = Stage::replicated().await;
    let volume = seed::volume(&stage.test, 1, "creating", "").await;
    let operation = stage.operation("create_volume", Some(("Volume", &volume))).await;
    stage.sim.inject(Fault::on("MirrorEnable").sticks());
    let begun = create::create(&stage.backend, &stage.context, &operation, request(&volume));
    assert!(tokio::time::timeout(Duration::from_secs(1), begun).await.is_err());
    stage.sim.clear_faults();
    stage.restart();
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    assert!(has_image(&stage, "a", &volume));
    let defect = Error::internal("a defect");
    create::give_up(&stage.backend, &stage.context, &operation, &volume, defect).await.unwrap();
    assert_eq!(row(&stage, &volume).await[0], "error");
    assert!(!has_image(&stage, "a", &volume));
    assert_eq!(stage.messages().await.len(), 1);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
}

#[tokio::test]
async fn a_creation_that_is_taken_up_again_is_counted_once() {
    let mut stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "creating", "").await;
    stage.operation("create_volume", Some(("Volume", &volume))).await;
    stage.restart();
    // As the service does when it starts: the row is there already.
    let scope = stage.backend.scope();
    let db = &stage.backend.db;
    let sums = db.read("t", async |conn| volume::allocated_by_pool(conn, &scope).await).await.unwrap();
    stage.backend.set_allocated(sums);
    let operation = stage.backend.journal.adopt(&scope).await.unwrap().remove(0);
    create::create(&stage.backend, &stage.context, &operation, request(&volume)).await.unwrap();
    assert_eq!(row(&stage, &volume).await[0], "available");
    assert_eq!(stage.backend.allocated_gb(), 2);
}
