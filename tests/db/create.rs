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
