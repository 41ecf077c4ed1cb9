//! `replication failover`: what is shown, refused and ordered.

use super::*;

#[tokio::test]
async fn a_failover_is_ordered_for_what_was_shown_and_for_nothing_else() {
    let site = Site::new().await;
    site.test.sql(&format!("UPDATE services SET replication_status='enabled' WHERE host='{BACKEND}'")).await;
    let v1 = seed::volume(&site.test, 1, "in-use", ", replication_status='enabled'").await;
    seed::volume(&site.test, 2, "available", ", replication_status='enabled'").await;
    let failover = |rest: &str| format!("replication failover --backend {BACKEND} {rest}");
    let shown = site.json(&failover(&format!("--to b --volume {v1} --planned --dry-run"))).await;
    assert_eq!(
        (&shown["scope"], &shown["intent"], &shown["volumes"][0]["from"]),
        (&json!("volumes"), &json!("planned"), &json!("default"))
    );
    assert!(site.operations().await.is_empty());
    for (rest, reason) in [
        ("--to c --yes", "its sites are: default, b"),
        ("--to default --yes", "active on default already"),
        ("--to b --group 00000005-0000-4000-8000-000000000001 --yes", "There is no group"),
        ("--to b --force", "Nothing was done"),
    ] {
        let text = site.refused(&failover(rest)).await;
        assert!(text.contains(reason), "{rest}: {text}");
    }
    let whole = site.json(&failover("--to b --yes --no-wait --unplanned")).await;
    assert_eq!(whole["new"], true);
    let rows = site.operations().await;
    let request: Value = serde_json::from_str(&rows[0][2]).unwrap();
    assert_eq!(request["method"], "scoria.replication.failover");
    assert_eq!(request["args"], json!({"target": "b", "intent": "unplanned"}));
    let text = site.refused(&failover(&format!("--to b --volume {v1} --yes"))).await;
    assert!(text.contains("still moving"), "{text}");
}
