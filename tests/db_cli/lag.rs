//! `replication lag`, and what `replication status` tells of the copies.

use serde_json::json;

use super::Site;
use crate::seed::BACKEND;

#[tokio::test]
async fn the_lag_of_copies_is_read_from_the_table_alone() {
    let site = Site::new().await;
    let empty = site.good("replication lag").await;
    assert!(empty.contains("No service has looked"), "{empty}");
    site.test
        .sql(&format!(
            "INSERT INTO scoria_replication_lag (volume_id, site, backend, mode, state, message, last_sync, lag_seconds,
               entries_behind, bytes_behind, rpo_seconds, breached, fault, watched_since, polled_at) VALUES
             ('v1', 'b', '{BACKEND}', 'journal', 'replaying', 'replaying', '2026-01-02 03:04:05', 0, 0, 0, 300, 0, NULL,
               '2026-01-01', '2026-01-02 03:04:05'),
             ('v2', 'b', '{BACKEND}', 'journal', 'error', 'split-brain detected', '2026-01-01', 97445, 120, 3145728, 300,
               1, 'split-brain', '2026-01-01', '2026-01-02 03:04:05'),
             ('v3', 'b', 'other@ceph', 'journal', 'down', NULL, NULL, NULL, NULL, NULL, NULL, 1, NULL, '2026-01-01',
               '2026-01-02');
             INSERT INTO scoria_replication_polls (backend, site, polled_at, answered_at, problem) VALUES
             ('{BACKEND}', '', '2026-01-02', NULL, NULL),
             ('{BACKEND}', 'b', '2026-01-02', '2026-01-01', 'no answer from monitors or OSDs'),
             ('{BACKEND}', 'default', UTC_TIMESTAMP(), UTC_TIMESTAMP(), NULL)"
        ))
        .await;
    let text = site.good("replication lag --backend ceph").await;
    for expected in [
        "Backend node1@ceph: 1 volume degraded",
        "no answer from monitors or OSDs; it last answered: 2026-01-01 00:00:00",
        "default: answered",
        "| 2026-01-02 03:04:05 | 0s",
        "120 entries, 3.0 MiB",
        "| 5m00s",
        "split-brain, rpo: split-brain detected",
    ] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
    assert!(!text.contains("v3"), "{text}");
    let report = site.json("replication lag --degraded").await;
    assert_eq!(report[0]["backend"], BACKEND);
    assert_eq!(report[0]["copies"].as_array().unwrap().len(), 1);
    let copy = &report[0]["copies"][0];
    assert_eq!((&copy["volume"], &copy["rpo_breached"]), (&json!("v2"), &json!(true)));
    assert_eq!((&copy["lag_seconds"], &copy["last_sync"]), (&json!(97445), &json!("2026-01-01 00:00:00")));
    assert_eq!(report[0]["sites"][0]["problem"], "no answer from monitors or OSDs");

    let status = site.json("replication status --backend ceph").await;
    assert_eq!((&status[0]["degraded"], &status[0]["asked"][1]["site"]), (&json!(1), &json!("default")));
    let text = site.good("replication status --backend ceph").await;
    assert!(text.contains("1 volume degraded (scoria-manage replication lag --degraded)"), "{text}");
}
