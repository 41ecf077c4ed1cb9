//! `replication reset`: a row that failovers do not accept becomes one that they do, and says what is true.

use super::*;

const FIELDS: &str = "SELECT replication_status, active_backend_id, disabled, disabled_reason, frozen FROM services WHERE id=1";

#[tokio::test]
async fn a_reset_row_is_acceptable_and_true() {
    let site = Site::new().await;
    let volume = seed::volume(&site.test, 1, "error", ", replication_status='failover-error'").await;
    let reset = format!("replication reset --backend {BACKEND}");
    assert!(site.good(&reset).await.contains("accepts failovers"), "nothing to do, nothing asked");
    for (before, active, frozen, after) in [
        ("failover-error", "NULL", "0", ["enabled", "NULL", "0", "", "0"]),
        ("error", "''", "1", ["enabled", "", "1", "frozen", "1"]),
        ("failing-over", "'b'", "0", ["failed-over", "b", "1", "failed-over", "0"]),
    ] {
        site.test
            .sql(&format!(
                "UPDATE services SET replication_status='{before}', active_backend_id={active}, frozen={frozen},
                   disabled=1, disabled_reason='x'"
            ))
            .await;
        let unchanged = site.test.row(FIELDS).await;
        assert_eq!(site.answer(&reset, "no\n").await.status.code(), Some(1));
        site.good(&format!("{reset} --dry-run")).await;
        assert_eq!(site.test.row(FIELDS).await, unchanged);
        let output = site.answer(&reset, "yes\n").await;
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(site.test.row(FIELDS).await, after);
    }
    let status =
        site.test.row(&format!("SELECT status, replication_status FROM volumes WHERE id='{volume}'")).await;
    assert_eq!(status, ["error", "failover-error"], "volumes are not its business");
    site.test.sql("UPDATE services SET replication_status='disabled'").await;
    assert!(site.refused(&format!("{reset} --yes")).await.contains("not replicated"));
}

#[tokio::test]
async fn a_reset_waits_for_an_open_failover() {
    let site = Site::new().await;
    site.test.sql("UPDATE services SET replication_status='failing-over'").await;
    let open = site.failover().await;
    let reset = format!("replication reset --backend {BACKEND} --yes");
    assert!(site.refused(&reset).await.contains("still moving"));
    assert_eq!(site.test.row(FIELDS).await[0], "failing-over");
    site.journal.finish(&open, &Outcome::succeeded()).await.unwrap();
    site.good(&reset).await;
    assert_eq!(site.test.row(FIELDS).await[0], "enabled");
}

#[tokio::test]
async fn rows_that_changed_after_the_preview_are_left_alone() {
    use scoria::db::admin;
    let site = Site::new().await;
    site.test.sql("UPDATE services SET replication_status='error'").await;
    let scope = Scope::Host(BACKEND.into());
    let foretold = site.test.db.read("t", async |conn| admin::resets(conn, &scope).await).await.unwrap();
    site.test.sql("UPDATE services SET active_backend_id='b'").await;
    let refused = site
        .test
        .db
        .write("t", async |conn| admin::reset(conn, &scope, &foretold, &[]).await)
        .await
        .unwrap_err();
    assert!(refused.user().contains("changed by somebody else"), "{refused}");
    assert_eq!(site.test.row(FIELDS).await[0], "error");
}

#[tokio::test]
async fn a_cluster_is_reset_with_its_members() {
    let site = Site::new().await;
    site.test
        .sql(
            "UPDATE services SET cluster_name='c@ceph', replication_status='error', disabled=1;
             INSERT INTO services (id, host, `binary`, topic, report_count, disabled, uuid, deleted, cluster_name,
                 replication_status, active_backend_id, frozen)
               VALUES (2, 'node2@ceph', 'cinder-volume', 'cinder-volume', 0, 1, 'y', 0, 'c@ceph', 'failed-over', 'b', 0);
             INSERT INTO clusters (id, name, `binary`, disabled, race_preventer, replication_status,
                 active_backend_id, frozen, deleted)
               VALUES (1, 'c@ceph', 'cinder-volume', 1, 0, 'failover-error', 'b', 0, 0)",
        )
        .await;
    let changed = site.json("replication reset --backend c@ceph --yes").await;
    let names: Vec<&str> = changed.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c@ceph", "node1@ceph"], "node2 was acceptable");
    assert_eq!(site.test.row(FIELDS).await, ["failed-over", "b", "1", "failed-over", "0"]);
    let row = site.test.row("SELECT replication_status, active_backend_id, disabled FROM clusters");
    assert_eq!(row.await, ["failed-over", "b", "1"]);
    let status = site.json("replication status --backend node2@ceph").await;
    assert_eq!(status[0]["backend"], "c@ceph", "a member names its cluster");
    assert_eq!(status[0]["accepts_failover"], true);
}
