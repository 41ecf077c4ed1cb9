//! Set operations of a failover, and that repeating one after a crash does no harm.

use scoria::db::volume::VolumeChanges;
use scoria::db::{displaced, failover};
use scoria::model::{ReplicationStatus, Scope, VolumeEvent};

use crate::seed::{self, BACKEND};
use crate::support::TestDb;

fn scope() -> Scope {
    Scope::Host(BACKEND.to_owned())
}

async fn statuses(test: &TestDb) -> Vec<Vec<String>> {
    test.rows("SELECT status, replication_status, previous_status FROM volumes ORDER BY id").await
}

#[tokio::test]
async fn volumes_without_replication_stay_behind_in_error_with_their_snapshots() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let plain = seed::volume(&test, 1, "in-use", ", replication_status='disabled'").await;
    seed::volume(&test, 2, "available", ", replication_status='not-capable'").await;
    let mirrored = seed::volume(&test, 3, "available", ", replication_status='enabled'").await;
    let unknown = seed::volume(&test, 4, "available", "").await;
    seed::volume(&test, 5, "available", ", replication_status='disabled', host='other@ceph#pool'").await;
    seed::snapshot(&test, 1, &plain, "available").await;
    seed::snapshot(&test, 2, &mirrored, "available").await;
    let moved = test.db.read("t", async |conn| failover::replicated(conn, &scope()).await).await.unwrap();
    let ids: Vec<&str> = moved.iter().map(|v| v.id.as_str()).collect();
    assert_eq!(ids, [&mirrored, &unknown], "NULL counts as replicated");

    for changed in [(2, 1), (0, 0)] {
        let done = test
            .db
            .write("t", async |conn| failover::mark_not_capable(conn, &scope(), "b").await)
            .await
            .unwrap();
        assert_eq!((done.volumes, done.snapshots), changed);
        assert_eq!(
            statuses(&test).await,
            [
                ["error", "not-capable", "in-use"],
                ["error", "not-capable", "available"],
                ["available", "enabled", "NULL"],
                ["available", "NULL", "NULL"],
                ["available", "disabled", "NULL"]
            ]
        );
    }
    let snapshots = test.rows("SELECT status FROM snapshots ORDER BY id").await;
    assert_eq!(snapshots, [["error"], ["available"]]);
}

#[tokio::test]
async fn failed_volumes_remember_their_status_and_come_back_to_it() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let used = seed::volume(&test, 1, "in-use", ", replication_status='enabled'").await;
    test.sql(&format!(
        "INSERT INTO volume_attachment (id, volume_id, attach_status, deleted) VALUES ('a', '{used}', 'attached', 0)"
    ))
    .await;
    let free = seed::volume(&test, 2, "available", ", replication_status='enabled'").await;
    let fine = seed::volume(&test, 3, "available", ", replication_status='enabled'").await;
    seed::snapshot(&test, 1, &used, "available").await;
    let failed = vec![used.clone(), free.clone()];
    for changed in [2, 0] {
        let done = test.db.write("t", async |conn| failover::mark_failed(conn, &failed).await).await.unwrap();
        assert_eq!(done.volumes, changed);
    }
    let fine = vec![fine];
    let over = ReplicationStatus::FailedOver;
    let done = test
        .db
        .write("t", async |conn| failover::set_replication_status(conn, &fine, over).await)
        .await
        .unwrap();
    assert_eq!(done, 1);
    assert_eq!(
        statuses(&test).await,
        [
            ["error", "failover-error", "in-use"],
            ["error", "failover-error", "available"],
            ["available", "failed-over", "NULL"]
        ]
    );
    assert_eq!(test.row("SELECT status FROM snapshots").await, ["error"]);

    let all = vec![used.clone(), free, fine[0].clone()];
    let back = test
        .db
        .write("t", async |conn| {
            displaced::recover_snapshots(conn, &all).await?;
            failover::recover(conn, &all, ReplicationStatus::Enabled).await
        })
        .await
        .unwrap();
    assert_eq!(back, 2, "the third was never lost");
    assert_eq!(
        statuses(&test).await,
        [
            ["in-use", "enabled", "NULL"],
            ["available", "enabled", "NULL"],
            ["available", "failed-over", "NULL"]
        ]
    );
    assert_eq!(test.row("SELECT status FROM snapshots").await, ["available"]);

    let long = "\u{1F980}x".repeat(200);
    test.db
        .write("t", async |conn| failover::set_extended_status(conn, &fine, Some(&long)).await)
        .await
        .unwrap();
    let row = test
        .row(&format!("SELECT CHAR_LENGTH(replication_extended_status) FROM volumes WHERE id='{}'", fine[0]))
        .await;
    assert_eq!(row, ["255"]);

    let changes = VolumeChanges { size: Some(7), ..VolumeChanges::default() };
    let extended = test
        .db
        .write("t", async |conn| failover::transition_many(conn, &all, VolumeEvent::Extended, &changes).await)
        .await
        .unwrap();
    assert_eq!(extended, 0, "none is extending");
}

#[tokio::test]
async fn only_snapshots_that_the_failover_lost_are_revived() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let used = seed::volume(&test, 1, "in-use", ", replication_status='enabled'").await;
    let plain = seed::volume(&test, 2, "available", ", replication_status='disabled'").await;
    for (n, status) in ["available", "error", "error_deleting", "creating"].iter().enumerate() {
        seed::snapshot(&test, 1 + n as u32, &used, status).await;
    }
    seed::snapshot(&test, 5, &plain, "error").await;
    seed::snapshot(&test, 6, &plain, "available").await;
    let statuses = async || {
        let rows = test.rows("SELECT status FROM snapshots ORDER BY id").await;
        rows.into_iter().map(|row| row[0].clone()).collect::<Vec<_>>().join(" ")
    };
    let failed = vec![used.clone()];
    for _ in 0..2 {
        test.db
            .write("t", async |conn| {
                displaced::remember(conn, &scope(), "b").await?;
                failover::mark_not_capable(conn, &scope(), "b").await?;
                failover::mark_failed(conn, &failed).await
            })
            .await
            .unwrap();
        assert_eq!(statuses().await, "error error error creating error error");
    }
    // A failback that leaves the volume behind again: its snapshots are as far away as it is.
    test.db.write("t", async |conn| displaced::restore(conn, &scope()).await).await.unwrap();
    assert_eq!(statuses().await, "error error error creating error available");
    for revived in [2, 0] {
        let done =
            test.db.write("t", async |conn| displaced::recover_snapshots(conn, &failed).await).await.unwrap();
        assert_eq!(done, revived);
        assert_eq!(statuses().await, "available error error_deleting creating error available");
    }
    assert_eq!(test.row("SELECT COUNT(*) FROM scoria_displaced").await, ["0"]);
}

#[tokio::test]
async fn only_groups_whose_type_is_replicated_are_found() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    test.sql(
        "INSERT INTO group_types (id, name, deleted) VALUES ('t1', 'repl', 0), ('t2', 'plain', 0);
         INSERT INTO group_type_specs (`key`, value, group_type_id, deleted) VALUES
           ('consistent_group_replication_enabled', '<is> True', 't1', 0),
           ('group_replication_enabled', '<is> True', 't1', 0),
           ('group_replication_enabled', '<is> True', 't2', 1);
         INSERT INTO `groups` (id, host, group_type_id, status, replication_status, deleted) VALUES
           ('g1', 'node1@ceph#pool', 't1', 'available', 'enabled', 0),
           ('g2', 'node1@ceph#pool', 't2', 'available', 'enabled', 0),
           ('g3', 'node2@ceph#pool', 't1', 'available', 'enabled', 0)",
    )
    .await;
    let found =
        test.db.read("t", async |conn| failover::replicated_groups(conn, &scope()).await).await.unwrap();
    assert_eq!(found.len(), 1);
    let ids = vec![found[0].id.clone()];
    test.db
        .write("t", async |conn| {
            failover::set_group_status(conn, &ids, ReplicationStatus::FailoverError).await
        })
        .await
        .unwrap();
    let rows = test.rows("SELECT id, status, replication_status FROM `groups` ORDER BY id").await;
    assert_eq!(
        rows,
        [["g1", "error", "failover-error"], ["g2", "available", "enabled"], ["g3", "available", "enabled"]]
    );
}
