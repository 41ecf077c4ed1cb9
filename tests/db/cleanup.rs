//! Work that a stock cinder-volume began and cannot finish.

use std::time::Duration;

use scoria::context::RequestContext;
use scoria::db::unfinished;
use scoria::db::worker::{self, Claim, WorkerFilter};
use scoria::journal::{Accept, Journal, NewOperation, Outcome};
use scoria::rbd::protocol::{ImageCreate, ImageStat, SnapCreate, SnapProtect};
use scoria::rpc::{Call, Method, synthetic};
use scoria::volume::cleanup::{self, Cleanup, Pending};

use crate::seed;
use crate::stage::Stage;
use crate::support::TestDb;

const THEN: &str = "2026-01-01 00:00:00.123456";

/// A row of `workers` as stock leaves it.
async fn begun(test: &TestDb, kind: &str, id: &str, status: &str, service: i32) {
    test.sql(&format!(
        "INSERT IGNORE INTO services (id, host, `binary`, report_count, deleted) VALUES ({service}, 'h@ceph', 'cinder-volume', 0, 0);
         INSERT INTO workers (resource_type, resource_id, status, service_id, race_preventer, deleted,
           created_at, updated_at)
         VALUES ('{kind}', '{id}', '{status}', {service}, 2, 0, '{THEN}', '{THEN}')"
    ))
    .await;
}

async fn status(stage: &Stage, table: &str, id: &str) -> String {
    stage.test.row(&format!("SELECT status FROM {table} WHERE id='{id}'")).await.remove(0)
}

/// Resources that still have a row.
async fn left(stage: &Stage) -> Vec<String> {
    stage
        .test
        .rows("SELECT resource_id FROM workers WHERE resource_type <> 'SENTINEL' ORDER BY id")
        .await
        .into_iter()
        .flatten()
        .collect()
}

async fn at_start(stage: &Stage) -> Vec<Pending> {
    cleanup::at_start(&stage.backend, &RequestContext::admin(), &synthetic::delete_volume).await.unwrap()
}

async fn image(stage: &Stage, id: &str) -> String {
    let image = format!("volume-{id}");
    let create =
        ImageCreate { pool: "volumes".into(), image: image.clone(), size: 1 << 30, order: 22, features: 61 };
    stage.sim.site("a").call(create).await.unwrap();
    image
}

async fn exists(stage: &Stage, image: &str) -> bool {
    let stat = ImageStat { pool: "volumes".into(), image: image.to_owned() };
    stage.sim.site("a").call(stat).await.is_ok()
}

#[tokio::test]
async fn what_a_dead_stock_service_was_making_ends_as_stock_ends_it() {
    let stage = Stage::new().await;
    let test = &stage.test;
    let creating = seed::volume(test, 1, "creating", "").await;
    let downloading = seed::volume(test, 2, "downloading", "").await;
    let uploading = seed::volume(test, 3, "uploading", "").await;
    let attached = seed::volume(test, 4, "uploading", "").await;
    let moved_on = seed::volume(test, 5, "available", "").await;
    let another_services = seed::volume(test, 6, "creating", "").await;
    let snapshot = seed::snapshot(test, 1, &moved_on, "creating").await;
    test.sql(&format!(
        "INSERT INTO volume_attachment (id, volume_id, attach_status, deleted)
         VALUES ('a', '{attached}', 'attached', 0)"
    ))
    .await;
    begun(test, "Volume", &creating, "creating", 1).await;
    begun(test, "Volume", &downloading, "downloading", 1).await;
    begun(test, "Volume", &uploading, "uploading", 1).await;
    begun(test, "Volume", &attached, "uploading", 1).await;
    begun(test, "Volume", &moved_on, "creating", 1).await;
    begun(test, "Volume", &seed::id(1, 99), "deleting", 1).await;
    begun(test, "Snapshot", &snapshot, "creating", 1).await;
    begun(test, "Volume", &another_services, "creating", 7).await;
    begun(test, "Backup", &seed::id(4, 1), "creating", 1).await;

    assert!(at_start(&stage).await.is_empty());
    for (table, id, expected) in [
        ("volumes", &creating, "error"),
        ("volumes", &downloading, "error"),
        ("volumes", &uploading, "available"),
        ("volumes", &attached, "in-use"),
        ("volumes", &moved_on, "available"),
        ("volumes", &another_services, "creating"),
        ("snapshots", &snapshot, "error"),
    ] {
        assert_eq!(status(&stage, table, id).await, expected, "{table} {id}");
    }
    assert_eq!(left(&stage).await, [another_services, seed::id(4, 1)]);
}

#[tokio::test]
async fn work_that_the_journal_knows_is_recoverys() {
    let stage = Stage::new().await;
    let ours = seed::volume(&stage.test, 1, "creating", "").await;
    let stocks = seed::volume(&stage.test, 2, "creating", "").await;
    begun(&stage.test, "Volume", &ours, "creating", 1).await;
    begun(&stage.test, "Volume", &stocks, "creating", 1).await;
    let operation = stage.operation("create_volume", Some(("Volume", &ours))).await;
    at_start(&stage).await;
    assert_eq!(status(&stage, "volumes", &ours).await, "creating");
    assert_eq!(status(&stage, "volumes", &stocks).await, "error");
    assert_eq!(left(&stage).await, std::slice::from_ref(&ours));

    stage.backend.journal.finish(&operation, &Outcome::succeeded()).await.unwrap();
    at_start(&stage).await;
    assert_eq!(status(&stage, "volumes", &ours).await, "error");
    assert!(left(&stage).await.is_empty());
}

#[tokio::test]
async fn a_deletion_is_taken_up_again_with_its_snapshots() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "deleting", "").await;
    let image = image(&stage, &volume).await;
    let snapshot = seed::snapshot(&stage.test, 1, &volume, "deleting").await;
    let snap = format!("snapshot-{snapshot}");
    let (pool, of) = ("volumes".to_owned(), image.clone());
    let create = SnapCreate { pool: pool.clone(), image: of.clone(), snap: snap.clone() };
    stage.sim.site("a").call(create).await.unwrap();
    stage.sim.site("a").call(SnapProtect { pool, image: of, snap }).await.unwrap();
    begun(&stage.test, "Volume", &volume, "deleting", 1).await;
    let pending = at_start(&stage).await;
    assert_eq!(pending.len(), 1);
    assert!(at_start(&stage).await.is_empty(), "it is the journal's now");
    let operation = pending[0].operation.clone();
    assert!(operation.unique_id().starts_with("cleanup-") && operation.unique_id().ends_with("-3"));
    assert_eq!(operation.worker().map(|w| (w.service_id, w.race_preventer)), Some((Some(1), 3)));

    cleanup::finish(&stage.backend, &stage.context, pending).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(status(&stage, "volumes", &volume).await, "deleted");
    assert_eq!(status(&stage, "snapshots", &snapshot).await, "deleted");
    assert!(!exists(&stage, &image).await);
    assert!(left(&stage).await.is_empty());
}

#[tokio::test]
async fn a_deletion_taken_up_survives_another_crash() {
    let mut stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "deleting", "").await;
    image(&stage, &volume).await;
    begun(&stage.test, "Volume", &volume, "deleting", 1).await;
    assert_eq!(at_start(&stage).await.len(), 1);
    stage.restart();
    assert!(at_start(&stage).await.is_empty());
    let adopted = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap();
    assert_eq!(adopted.len(), 1);
    let call = Call::from_journal(adopted[0].request()).unwrap();
    let Method::DeleteVolume(request) = call.method else { panic!("{}", call.name) };
    assert!(request.cascade);
    assert_eq!(request.volume.volume.id, volume);
    assert_eq!(call.unique_id, adopted[0].unique_id());
}

#[tokio::test]
async fn a_crash_between_taking_a_row_and_journalling_its_deletion_loses_nothing() {
    let mut stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "deleting", "").await;
    begun(&stage.test, "Volume", &volume, "deleting", 7).await;
    let filter = WorkerFilter { service_id: Some(7), ..WorkerFilter::default() };
    stage
        .test
        .db
        .write("t", async |conn| {
            let found = worker::list(conn, &filter).await?;
            let locked = unfinished::lock(conn, &found).await?;
            assert_eq!(locked.len(), 1);
            unfinished::take_over(conn, &locked, 1).await
        })
        .await
        .unwrap();
    // The request to clean up after service 7 is run again by our next instance.
    stage.operation("do_cleanup", None).await;
    stage.restart();
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    let request = Cleanup { service_id: Some(7), ..Cleanup::default() };
    let (backend, context) = (&stage.backend, &stage.context);
    cleanup::do_cleanup(backend, context, &operation, request, &synthetic::delete_volume).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(status(&stage, "volumes", &volume).await, "deleted");
    assert!(left(&stage).await.is_empty());
}

#[tokio::test]
async fn a_request_cleans_only_what_it_names() {
    let stage = Stage::new().await;
    let test = &stage.test;
    let named = seed::volume(test, 1, "creating", "").await;
    let other = seed::volume(test, 2, "creating", "").await;
    let snapshot = seed::snapshot(test, 1, &other, "creating").await;
    begun(test, "Volume", &named, "creating", 7).await;
    begun(test, "Volume", &other, "creating", 7).await;
    begun(test, "Snapshot", &snapshot, "creating", 7).await;
    let clean = async |request: Cleanup| {
        let operation = stage.operation("do_cleanup", None).await;
        let (backend, context) = (&stage.backend, &stage.context);
        cleanup::do_cleanup(backend, context, &operation, request, &synthetic::delete_volume).await.unwrap();
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    };
    let before = (scoria::db::now() - Duration::from_secs(86_400 * 3650)).into();
    clean(Cleanup { service_id: Some(7), until: before, ..Cleanup::default() }).await;
    clean(Cleanup::default()).await;
    assert_eq!(left(&stage).await.len(), 3, "too young, or another service's");
    clean(Cleanup { service_id: Some(7), resource_id: Some(named.clone()), ..Cleanup::default() }).await;
    assert_eq!(left(&stage).await, [other.clone(), snapshot.clone()]);
    clean(Cleanup { service_id: Some(7), resource_type: Some("Snapshot".into()), ..Cleanup::default() })
        .await;
    assert_eq!(left(&stage).await, [other]);
    assert_eq!(status(&stage, "snapshots", &snapshot).await, "error");
}

#[tokio::test]
async fn a_row_that_somebody_touched_after_it_was_found_is_theirs() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "creating", "").await;
    begun(&stage.test, "Volume", &volume, "creating", 1).await;
    let filter = WorkerFilter { service_id: Some(1), ..WorkerFilter::default() };
    let found = stage.test.db.read("t", async |conn| worker::list(conn, &filter).await).await.unwrap();
    stage.test.sql("UPDATE workers SET race_preventer = 3 WHERE race_preventer = 2").await;
    let locked = stage.test.db.write("t", async |conn| unfinished::lock(conn, &found).await).await.unwrap();
    assert!(locked.is_empty());
}

#[tokio::test]
async fn a_request_for_a_resource_waits_while_it_is_being_judged() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "deleting", "").await;
    begun(&stage.test, "Volume", &volume, "deleting", 1).await;
    let ids = [volume.clone()];
    let filter = WorkerFilter { service_id: Some(1), ..WorkerFilter::default() };
    let request = std::sync::Mutex::new(None);
    stage
        .test
        .db
        .write("t", async |conn| {
            let found = worker::list(conn, &filter).await?;
            unfinished::lock(conn, &found).await?;
            // The row is ours and has the right status already, so that claiming it changes nothing.
            let claim = Claim {
                resource_type: "Volume".into(),
                resource_id: ids[0].clone(),
                status: "deleting".into(),
                service_id: 1,
            };
            let new = NewOperation {
                unique_id: "u".into(),
                resource: Some(("Volume".into(), ids[0].clone())),
                claim: Some(claim),
                ..NewOperation::default()
            };
            let journal = stage.backend.journal.clone();
            let accepting = tokio::spawn(async move { journal.accept(new).await });
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!accepting.is_finished());
            assert!(Journal::busy(conn, &ids).await?.is_empty());
            *request.lock().unwrap() = Some(accepting);
            Ok(())
        })
        .await
        .unwrap();
    let accepting = request.lock().unwrap().take().unwrap();
    assert!(matches!(accepting.await.unwrap(), Ok(Accept::New(_))));
    let busy = stage.test.db.read("t", async |conn| Journal::busy(conn, &ids).await).await.unwrap();
    assert!(busy.contains(&volume));
    assert!(at_start(&stage).await.is_empty());
}

#[tokio::test]
async fn thousands_of_rows_are_settled_in_batches() {
    let stage = Stage::new().await;
    stage
        .test
        .sql(&format!(
            "INSERT INTO volumes (id, status, size, host, deleted, volume_type_id, use_quota)
             SELECT CONCAT('v', seq), 'creating', 1, '{}#pool', 0, '{}', 1 FROM seq_1_to_1200;
             INSERT INTO workers (resource_type, resource_id, status, service_id, race_preventer, deleted,
               created_at, updated_at)
             SELECT 'Volume', CONCAT('v', seq), 'creating', 1, 0, 0, '{THEN}', '{THEN}' FROM seq_1_to_1200",
            seed::BACKEND,
            seed::TYPE
        ))
        .await;
    at_start(&stage).await;
    assert_eq!(stage.test.row("SELECT COUNT(*) FROM volumes WHERE status='error'").await, ["1200"]);
    assert!(left(&stage).await.is_empty());
}
