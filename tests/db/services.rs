//! Rows of services, clusters and workers.

use scoria::db::service::{self, Registration, ServiceChanges};
use scoria::db::worker::{self, Claim, WorkerFilter};
use scoria::db::{cluster, schema_revision};
use scoria::error::Code;
use scoria::model::Versions;

use crate::seed::{self, BACKEND};
use crate::support::TestDb;

fn registration(host: &str, cluster: Option<&str>) -> Registration {
    Registration {
        host: host.to_owned(),
        cluster: cluster.map(str::to_owned),
        availability_zone: "nova".into(),
        enable_new_services: true,
    }
}

#[tokio::test]
async fn a_service_registers_once_and_takes_its_volumes() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    test.sql("UPDATE services SET deleted=1").await;
    let volume = seed::volume(&test, 1, "available", "").await;
    let me = registration(BACKEND, None);
    let first = test.db.write("t", async |conn| service::register(conn, &me).await).await.unwrap();
    assert!(first.created && !first.added_to_cluster);
    assert_ne!(first.service.id, 1, "a removed row is never used again");
    let row = test
        .row(&format!(
            "SELECT `binary`, topic, report_count, disabled, availability_zone, rpc_current_version,
                    object_current_version, replication_status, frozen, active_backend_id, disabled_reason,
                    updated_at IS NOT NULL, created_at IS NOT NULL, modified_at FROM services WHERE id={}",
            first.service.id
        ))
        .await;
    assert_eq!(
        row,
        [
            "cinder-volume",
            "cinder-volume",
            "0",
            "0",
            "nova",
            "3.20",
            "1.39",
            "not-capable",
            "0",
            "NULL",
            "NULL",
            "1",
            "1",
            "NULL"
        ]
    );
    assert_eq!(
        test.row(&format!("SELECT service_uuid FROM volumes WHERE id='{volume}'")).await,
        [first.service.uuid.as_str()]
    );
    test.sql("UPDATE services SET rpc_current_version='3.19', replication_status='failed-over', active_backend_id='b'")
        .await;
    let again = test.db.write("t", async |conn| service::register(conn, &me).await).await.unwrap();
    assert!(!again.created);
    assert_eq!(again.service.uuid, first.service.uuid);
    assert_eq!(again.service.rpc_current_version.as_deref(), Some("3.20"));
    assert_eq!(again.service.active_backend_id.as_deref(), Some("b"));
    let moved = Registration { availability_zone: "az2".to_owned(), ..me };
    let again = test.db.write("t", async |conn| service::register(conn, &moved).await).await.unwrap();
    assert_eq!(again.service.availability_zone.as_deref(), Some("az2"));
}

#[tokio::test]
async fn a_heartbeat_counts_and_disabling_keeps_it() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    assert!(test.db.read("t", async |conn| service::heartbeat(conn, 1, "nova").await).await.unwrap());
    let row = test
        .row("SELECT report_count, updated_at > '2026-01-02', availability_zone FROM services WHERE id=1")
        .await;
    assert_eq!(row, ["1", "1", "nova"]);

    test.sql("UPDATE services SET updated_at='2026-01-01', replication_status='failing-over'").await;
    let changes = ServiceChanges {
        disabled: Some(true),
        disabled_reason: Some(Some("failed-over".into())),
        replication_status: Some("failed-over".into()),
        active_backend_id: Some(Some("site-b".into())),
        ..ServiceChanges::default()
    };
    let changed = test
        .db
        .write("t", async |conn| service::update_if(conn, 1, &["failing-over"], &changes).await)
        .await
        .unwrap();
    assert!(changed);
    let row = test
        .row("SELECT disabled, disabled_reason, active_backend_id, updated_at, modified_at > '2026-01-02' FROM services WHERE id=1")
        .await;
    assert_eq!(row, ["1", "failed-over", "site-b", "2026-01-01 00:00:00", "1"]);
    let changed = test
        .db
        .write("t", async |conn| service::update_if(conn, 1, &["failing-over"], &changes).await)
        .await
        .unwrap();
    assert!(!changed, "it is failed-over now");

    let status = ServiceChanges { replication_status: Some("enabled".into()), ..ServiceChanges::default() };
    test.db.write("t", async |conn| service::update(conn, 1, &status).await).await.unwrap();
    assert_eq!(test.row("SELECT updated_at > '2026-01-02' FROM services WHERE id=1").await, ["1"]);
    let long =
        ServiceChanges { disabled_reason: Some(Some("\u{1F980}x".repeat(200))), ..ServiceChanges::default() };
    test.db.write("t", async |conn| service::update(conn, 1, &long).await).await.unwrap();
    let row = test
        .row("SELECT CHAR_LENGTH(disabled_reason), LEFT(disabled_reason, 2) FROM services WHERE id=1")
        .await;
    assert_eq!(row, ["255", "?x"]);
    test.sql("UPDATE services SET deleted=1").await;
    assert!(!test.db.read("t", async |conn| service::heartbeat(conn, 1, "nova").await).await.unwrap());
    let gone = test.db.write("t", async |conn| service::update(conn, 1, &status).await).await.unwrap_err();
    assert_eq!(gone.code(), Code::ServiceNotFound);
}

#[tokio::test]
async fn every_row_of_a_binary_tells_its_versions_unless_it_is_removed() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let me = registration("node9@ceph", None);
    test.sql("UPDATE services SET rpc_current_version='3.12', object_current_version='1.38'").await;
    test.sql("UPDATE services SET `binary`='cinder-scheduler'").await;
    test.db.write("t", async |conn| service::register(conn, &me).await).await.unwrap();
    let versions = async |binary: &'static str| {
        test.db.read("t", async |conn| service::versions(conn, binary).await).await.unwrap()
    };
    let told = |rpc: &str, objects: &str| Versions { rpc: Some(rpc.into()), objects: Some(objects.into()) };
    assert_eq!(versions("cinder-volume").await, [told("3.20", "1.39")]);
    assert!(versions("cinder-scheduler").await.contains(&told("3.12", "1.38")));
    // Down for years, but it may come back.
    test.sql("UPDATE services SET updated_at='2020-01-01', disabled=1").await;
    assert!(!versions("cinder-scheduler").await.is_empty());
    test.sql("UPDATE services SET deleted=1 WHERE `binary`='cinder-scheduler'").await;
    assert_eq!(versions("cinder-scheduler").await, []);
}

#[tokio::test]
async fn the_first_member_makes_the_cluster_and_the_next_takes_its_state() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    seed::volume(&test, 1, "available", "").await;
    test.sql("UPDATE services SET replication_status='failed-over', active_backend_id='b', frozen=1").await;
    let clustered = registration(BACKEND, Some("c@ceph"));
    let first = test
        .db
        .write("t", async |conn| {
            let first = service::register(conn, &clustered).await?;
            service::include_in_cluster(conn, BACKEND, "c@ceph").await?;
            Ok(first)
        })
        .await
        .unwrap();
    assert!(first.added_to_cluster);
    assert_eq!(test.row("SELECT cluster_name, host FROM volumes").await, ["c@ceph#pool", "node1@ceph#pool"]);
    let found = test.db.read("t", async |conn| cluster::find(conn, "c@ceph").await).await.unwrap().unwrap();
    assert_eq!(
        (found.replication_status.as_deref(), found.active_backend_id.as_deref(), found.frozen),
        (Some("failed-over"), Some("b"), true)
    );

    let other = registration("node2@ceph", Some("c@ceph"));
    let second = test.db.write("t", async |conn| service::register(conn, &other).await).await.unwrap();
    assert!(second.created && second.added_to_cluster);
    assert_eq!(second.service.active_backend_id.as_deref(), Some("b"));
    assert_eq!(second.service.replication_status.as_deref(), Some("failed-over"));
    let again = test.db.write("t", async |conn| service::register(conn, &clustered).await).await.unwrap();
    assert!(!again.added_to_cluster);
    let members =
        test.db.read("t", async |conn| service::list_for_cluster(conn, "c@ceph").await).await.unwrap();
    assert_eq!(members.len(), 2);

    let changes = cluster::ClusterChanges {
        active_backend_id: Some(Some(String::new())),
        replication_status: Some("enabled".into()),
        disabled: Some(false),
        ..Default::default()
    };
    assert!(test.db.write("t", async |conn| cluster::update(conn, found.id, &changes).await).await.unwrap());
    assert_eq!(test.row("SELECT active_backend_id, replication_status FROM clusters").await, ["", "enabled"]);
}

#[tokio::test]
async fn workers_are_claimed_by_compare_and_swap_and_released_when_the_status_changed() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let id = seed::id(1, 1);
    test.sql(&format!(
        "INSERT INTO workers (resource_type, resource_id, status, service_id, race_preventer, deleted, updated_at)
         VALUES ('SENTINEL', 'x', 'OK', NULL, 0, 0, '2026-01-01'),
                ('Volume', '{id}', 'creating', NULL, 3, 0, '2026-01-01 00:00:00.123456');
         INSERT INTO services (id, host, `binary`, report_count, deleted) VALUES (2, 'other', 'cinder-volume', 0, 0)"
    ))
    .await;
    let claim = Claim {
        resource_type: "Volume".into(),
        resource_id: id.clone(),
        status: "creating".into(),
        service_id: 1,
    };
    let before =
        test.db.read("t", async |conn| worker::list(conn, &WorkerFilter::default()).await).await.unwrap();
    assert_eq!(before.len(), 1, "the sentinel is nobody's work");
    let mine = test.db.write("t", async |conn| worker::claim(conn, &claim).await).await.unwrap();
    assert_eq!((mine.service_id, mine.race_preventer), (Some(1), 4));
    let stored =
        test.db.read("t", async |conn| worker::find(conn, "Volume", &id).await).await.unwrap().unwrap();
    assert_eq!(stored, mine, "microseconds included");

    // Who read the row before us loses.
    let late =
        test.db.write("t", async |conn| worker::claim_for_cleanup(conn, &before[0], 2).await).await.unwrap();
    assert_eq!(late, None);
    assert!(!test.db.write("t", async |conn| worker::release(conn, &mine, "creating").await).await.unwrap());
    assert!(test.db.write("t", async |conn| worker::release(conn, &mine, "available").await).await.unwrap());
    let made = test.db.write("t", async |conn| worker::claim(conn, &claim).await).await.unwrap();
    assert_eq!((made.service_id, made.race_preventer), (Some(1), 0));
    let taken = test
        .db
        .write("t", async |conn| worker::claim_for_cleanup(conn, &made, 2).await)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(taken.service_id, Some(2));
    let until = WorkerFilter { until: taken.updated_at, service_id: Some(2), ..WorkerFilter::default() };
    assert_eq!(test.db.read("t", async |conn| worker::list(conn, &until).await).await.unwrap(), [taken]);
    assert!(!test.db.write("t", async |conn| worker::release(conn, &made, "error").await).await.unwrap());
    let gone = test
        .db
        .write("t", async |conn| worker::release_resource(conn, "Volume", &id, 2).await)
        .await
        .unwrap();
    assert!(gone);
}

#[tokio::test]
async fn the_schema_tells_its_revision() {
    let test = TestDb::new().await;
    let none = test.db.read("t", async |conn| schema_revision(conn).await).await.unwrap();
    assert_eq!(none, None);
    test.sql("INSERT INTO alembic_version VALUES ('9c74c1c6971f')").await;
    let head = test.db.read("t", async |conn| schema_revision(conn).await).await.unwrap();
    assert_eq!(head.as_deref(), Some("9c74c1c6971f"));
}
