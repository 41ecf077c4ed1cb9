//! Questions that only the service can answer, as the operator asks them.

use super::*;

/// Plays the service: takes the next question, and closes it with `answer`.
async fn answered(site: &Site, answer: Option<Value>) -> Value {
    loop {
        if let Some(asked) = site.journal.adopt(&Scope::Host(BACKEND.into())).await.unwrap().pop() {
            let outcome = match answer {
                Some(document) => Outcome::succeeded().with_reply(document),
                None => Outcome::failed(&scoria::error::Error::new(
                    scoria::error::Code::InvalidReplicationTarget,
                    "RBD: Unknown failover target host c",
                )),
            };
            site.journal.finish(&asked, &outcome).await.unwrap();
            return serde_json::from_str::<Value>(asked.request()).unwrap()["args"].take();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_question_goes_to_a_living_service_and_its_answer_is_the_report() {
    let site = Site::new().await;
    let line = format!("--format json replication preflight --backend {BACKEND} --to b");
    let document = |ready: bool| {
        json!({
            "backend": BACKEND, "from": "default", "to": "b", "ready": ready, "sites": [], "volumes": {"move": 1},
            "findings": if ready { json!([]) } else { json!([{
                "severity": "blocker", "code": "no-daemon", "site": "b", "text": "none", "advice": "start it",
                "volumes": []
            }]) }
        })
    };
    for ready in [true, false] {
        let (output, asked) = tokio::join!(site.run(&line), answered(&site, Some(document(ready))));
        assert_eq!(asked, json!({"what": "preflight", "to": "b"}));
        assert_eq!(output.status.code(), Some(if ready { 0 } else { 1 }), "{}", said(&output));
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), document(ready));
    }
    let (output, _) = tokio::join!(site.run(&line), answered(&site, None));
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("refused: RBD: Unknown failover target"), "{}", said(&output));
    assert_eq!(site.test.row("SELECT COUNT(*) FROM scoria_operations WHERE reply IS NOT NULL").await, ["0"]);

    // Nobody takes it: it is withdrawn, not left for whoever comes later.
    let text = site.refused(&format!("replication audit --backend {BACKEND} --timeout 1")).await;
    assert!(text.contains("has not taken the question"), "{text}");
    let last = site.test.row("SELECT state, outcome FROM scoria_operations ORDER BY id DESC LIMIT 1").await;
    assert_eq!(last, ["closed", "abandoned"]);
    // Nobody is alive: it is not asked at all.
    site.test.sql("UPDATE services SET updated_at='2020-01-01'").await;
    let before = site.operations().await.len();
    let text = site.refused(&format!("replication plan --backend {BACKEND}")).await;
    assert!(text.contains("No service of node1@ceph is alive"), "{text}");
    assert_eq!(site.operations().await.len(), before);
    let text = site.refused("replication preflight --backend node1@plain").await;
    assert!(text.contains("not replicated"), "{text}");
}

#[tokio::test]
async fn affected_servers_are_listed_although_no_service_is_alive() {
    let site = Site::new().await;
    let moved = seed::volume(&site.test, 1, "in-use", ", replication_status='failed-over'").await;
    let home = seed::volume(&site.test, 2, "in-use", ", replication_status='enabled'").await;
    for (n, volume) in [&moved, &home].into_iter().enumerate() {
        site.test
            .sql(&format!(
                "INSERT INTO volume_attachment (id, volume_id, instance_uuid, attached_host, mountpoint, attach_mode,
                   attach_status, connection_info, deleted)
                 VALUES ('a{n}', '{volume}', '{}', 'compute1', '/dev/vdb', 'rw', 'attached',
                   '{{\"hosts\": [\"10.0.0.1\"], \"ports\": [\"6789\"]}}', 0)",
                seed::id(7, n as u32)
            ))
            .await;
    }
    site.test.sql("UPDATE services SET active_backend_id='b'").await;
    let monitors = json!({
        "default": {"monitors": {"hosts": ["10.0.0.1"], "ports": ["6789"]}, "error": null},
        "b": {"monitors": {"hosts": ["10.0.0.2"], "ports": ["6789"]}, "error": null}
    });
    let line = format!("--format json replication affected --backend {BACKEND}");
    let (output, _) = tokio::join!(site.run(&line), answered(&site, Some(monitors)));
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(view["attachments"].as_array().unwrap().len(), 1, "{view:#}");
    let only = &view["attachments"][0];
    assert_eq!((&only["volume"], &only["server"]), (&json!(moved), &json!(seed::id(7, 0))), "{view:#}");
    assert_eq!(
        (&only["connection_info"], &only["stale"], &only["device"]),
        (&json!("default"), &json!(true), &json!("/dev/vdb"))
    );

    site.test.sql("UPDATE services SET updated_at='2020-01-01'").await;
    let blind = site.json(&format!("replication affected --backend {BACKEND}")).await;
    assert!(blind["unknown"].as_str().unwrap().contains("alive"), "{blind:#}");
    assert_eq!(blind["attachments"][0]["stale"], Value::Null);

    // Of one operation: what it has moved, wherever it is now.
    let failover = site.failover().await;
    failover.item_steps("moved", &[(home.clone(), FailoverStep::Moved)]).await.unwrap();
    let one =
        site.json(&format!("replication affected --backend {BACKEND} --operation {}", failover.id())).await;
    assert_eq!(one["attachments"][0]["volume"], home.as_str());
    let ordered = site.json(&format!("replication affected --backend {BACKEND} --refresh --no-wait")).await;
    assert_eq!(ordered["new"], true);
    let request: Value = serde_json::from_str(&site.operations().await.last().unwrap()[2]).unwrap();
    assert_eq!(request["args"], json!({"volumes": [moved]}));
}
