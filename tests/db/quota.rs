//! Quota rows end up as stock leaves them.

use chrono::TimeDelta;
use scoria::db::quota::{self, QuotaRules, Release};

use crate::seed::{self, PROJECT, TYPE};
use crate::support::TestDb;

async fn usage(test: &TestDb) -> Vec<Vec<String>> {
    test.rows("SELECT resource, in_use, reserved FROM quota_usages WHERE deleted=0 ORDER BY resource").await
}

async fn usages(test: &TestDb, rows: &[(&str, i32, i32)]) {
    for (resource, in_use, reserved) in rows {
        test.sql(&format!(
            "INSERT INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
             VALUES ('{PROJECT}', '{resource}', {in_use}, {reserved}, 1, 0)"
        ))
        .await;
    }
}

#[tokio::test]
async fn a_deleted_volume_gives_back_its_own_and_its_types_share() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    usages(
        &test,
        &[("volumes", 3, 1), ("gigabytes", 10, 0), ("volumes_plain", 3, 0), ("gigabytes_plain", 1, 0)],
    )
    .await;
    let release = Release::volume(2, Some(TYPE));
    test.db
        .write("t", async |conn| quota::give_back(conn, PROJECT, &release, &QuotaRules::default()).await)
        .await
        .unwrap();
    assert_eq!(
        usage(&test).await,
        [
            ["gigabytes", "8", "0"],
            ["gigabytes_plain", "0", "0"],
            ["volumes", "2", "1"],
            ["volumes_plain", "2", "0"]
        ],
        "never below zero, and what is reserved stays reserved"
    );
    let rows = test
        .rows(
            "SELECT r.resource, r.delta, r.deleted, r.deleted_at IS NOT NULL, r.updated_at IS NOT NULL, r.project_id,
                    u.resource, TIMESTAMPDIFF(SECOND, r.created_at, r.expire), LENGTH(r.uuid)
             FROM reservations r JOIN quota_usages u ON u.id = r.usage_id ORDER BY r.id",
        )
        .await;
    let expected: Vec<Vec<String>> =
        [("volumes", "-1"), ("gigabytes", "-2"), ("volumes_plain", "-1"), ("gigabytes_plain", "-2")]
            .iter()
            .map(|(name, delta)| {
                [name, delta, "1", "1", "1", PROJECT, name, "86400", "36"].map(str::to_owned).to_vec()
            })
            .collect();
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn usage_rows_that_are_missing_or_negative_are_counted_anew() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let doomed = seed::volume(&test, 1, "deleting", "").await;
    seed::volume(&test, 2, "available", "").await;
    seed::volume(&test, 3, "available", ", use_quota=0").await;
    seed::volume(&test, 4, "deleted", ", deleted=1").await;
    seed::volume(&test, 5, "available", ", project_id='other'").await;
    seed::snapshot(&test, 1, &doomed, "available").await;
    usages(&test, &[("gigabytes", -4, 0)]).await;
    let release = Release::volume(2, None);
    test.db
        .write("t", async |conn| quota::give_back(conn, PROJECT, &release, &QuotaRules::default()).await)
        .await
        .unwrap();
    // Two volumes and one snapshot of 2 GiB each, less this volume.
    assert_eq!(usage(&test).await, [["gigabytes", "4", "0"], ["volumes", "1", "0"]]);

    let rules = QuotaRules {
        no_snapshot_gb_quota: true,
        reservation_expire: TimeDelta::seconds(60),
        ..QuotaRules::default()
    };
    let release = Release::snapshot(2, Some(TYPE), &rules);
    test.db.write("t", async |conn| quota::give_back(conn, PROJECT, &release, &rules).await).await.unwrap();
    assert_eq!(
        usage(&test).await,
        [
            ["gigabytes", "4", "0"],
            ["snapshots", "0", "0"],
            ["snapshots_plain", "0", "0"],
            ["volumes", "1", "0"]
        ]
    );
}

#[tokio::test]
async fn reservations_of_the_api_are_committed_or_rolled_back_once() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    usages(&test, &[("gigabytes", 5, 3), ("gigabytes_plain", 5, 1), ("volumes", 1, 0)]).await;
    test.sql(&format!(
        "INSERT INTO reservations (uuid, usage_id, project_id, resource, delta, expire, deleted)
         SELECT CONCAT('r-', resource), id, '{PROJECT}', resource, 2, '2036-01-01', 0 FROM quota_usages
         WHERE resource LIKE 'gigabytes%';
         INSERT INTO reservations (uuid, usage_id, project_id, resource, delta, expire, deleted)
         SELECT 'x-1', id, '{PROJECT}', resource, 1, '2036-01-01', 0 FROM quota_usages WHERE resource = 'gigabytes'"
    ))
    .await;
    let uuids = vec!["r-gigabytes".to_owned(), "r-gigabytes_plain".to_owned(), "unknown".to_owned()];
    for _ in 0..2 {
        test.db.write("t", async |conn| quota::commit(conn, PROJECT, &uuids).await).await.unwrap();
        // 1 was reserved and 2 are taken from it: reserved does not fall below zero either.
        assert_eq!(
            usage(&test).await,
            [["gigabytes", "7", "1"], ["gigabytes_plain", "7", "0"], ["volumes", "1", "0"]]
        );
    }
    let other = vec!["x-1".to_owned()];
    for _ in 0..2 {
        test.db.write("t", async |conn| quota::roll_back(conn, PROJECT, &other).await).await.unwrap();
        assert_eq!(usage(&test).await[0], ["gigabytes", "7", "0"]);
    }
    assert_eq!(test.row("SELECT COUNT(*) FROM reservations WHERE deleted=0").await, ["0"]);
    test.db.write("t", async |conn| quota::commit(conn, PROJECT, &[]).await).await.unwrap();
}

#[tokio::test]
async fn many_deletions_at_once_lose_nothing() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    usages(&test, &[("volumes", 40, 0), ("gigabytes", 80, 0)]).await;
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let db = test.db.clone();
            tokio::spawn(async move {
                let release = Release::volume(2, Some(TYPE));
                db.write("t", async |conn| {
                    quota::give_back(conn, PROJECT, &release, &QuotaRules::default()).await
                })
                .await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let all = usage(&test).await;
    assert_eq!(all[0], ["gigabytes", "40", "0"]);
    assert_eq!(all[2], ["volumes", "20", "0"]);
    assert_eq!(test.row("SELECT COUNT(*) FROM reservations").await, ["80"]);
}
