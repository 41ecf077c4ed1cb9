//! Orders and questions over RPC: namespace `replication` 1.0 of topic `scoria`, with oslo.messaging as its users have
//! it.

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, row_str, wait_for};
use crate::drill::*;

#[track_caller]
fn said(lab: &Lab, method: &str, args: Value) -> Value {
    let request = json!({"topic": "scoria", "server": CEPH, "namespace": "replication", "version": "1.0",
                         "method": method, "args": args});
    lab.driver.call("oslo", request).unwrap()
}

#[track_caller]
fn call(lab: &Lab, method: &str, args: Value) -> Value {
    let answer = said(lab, method, args.clone());
    assert!(answer.get("result").is_some(), "{method} {args}: {answer}");
    answer["result"].clone()
}

/// The class that a refused call raises.
#[track_caller]
fn refusal(lab: &Lab, method: &str, args: Value) -> String {
    let answer = said(lab, method, args.clone());
    assert!(answer.get("result").is_none(), "{method} {args}: {answer}");
    // What oslo.messaging has no class for it raises as RemoteError.
    let key = if answer["exc_type"].is_string() { "exc_type" } else { "class" };
    row_str(&answer, key).trim_end_matches("_Remote").to_owned()
}

/// Until an operation is closed; how it ended.
fn carried_out(lab: &Lab, order: &Value) -> Value {
    let asked = json!({"operation": order["operation"]});
    let operation = wait_for("the order is carried out", 90, || {
        let found = call(lab, "status", asked.clone())["operation"].clone();
        (found["state"] == "closed").then_some(found)
    });
    assert_eq!(operation["outcome"], "succeeded", "{operation}");
    operation
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn one_volume_moves_by_calls_of_oslo_messaging_and_what_makes_no_sense_is_refused_by_its_name() {
    let lab = &Lab::get();
    if !lab.only_scoria("stock has no such topic") {
        return;
    }
    let mut volumes = mirrored(lab, &BOTH[..2]);
    let (id, other) = (volumes[0].id.clone(), volumes[1].id.clone());
    let ready = call(lab, "preflight", json!({"target": "site-b"}));
    assert_eq!((&ready["ready"], &ready["volumes"]), (&json!(true), &json!({"move": 2})), "{ready:#}");

    let to_b = json!({"volumes": [id], "target": "site-b", "intent": "planned"});
    let order = call(lab, "failover", to_b.clone());
    assert_eq!(order["new"], true, "{order}");
    let ended = carried_out(lab, &order);
    assert_eq!(ended["volumes"], json!({"moved": 1}), "{ended}");
    expect_rows(lab, &volumes[..1], "failed-over");
    expect_rows(lab, &volumes[1..], "enabled");
    expect_served_from_b(lab, &volumes[..1], false);
    expect_no_split(lab, &volumes);
    let status = call(lab, "status", json!({}));
    let mut stray = serde_json::Map::new();
    stray.insert(id.clone(), json!("site-b"));
    assert_eq!((&status["active_site"], &status["strays"]), (&json!("default"), &Value::Object(stray)));
    let plan = call(lab, "plan", json!({"volumes": [id, other], "target": "site-b"}));
    assert_eq!(plan["counts"], json!({"already": 1, "move": 1}), "{plan:#}");

    let unknown = "8935016b-fde4-4085-b496-7ed3396873bc";
    for (method, args, class) in [
        ("failover", to_b, "InvalidReplicationTarget"),
        ("failover", json!({"volumes": [id], "target": "nowhere"}), "InvalidReplicationTarget"),
        ("failover", json!({"target": "default"}), "InvalidReplicationTarget"),
        ("failover", json!({"volumes": [unknown], "target": "site-b"}), "InvalidVolume"),
        ("failover", json!({"volumes": [other], "intent": "brutal"}), "InvalidInput"),
        ("preflight", json!({"target": "nowhere"}), "InvalidReplicationTarget"),
        ("create_volume", json!({}), "NoSuchMethod"),
    ] {
        assert_eq!(refusal(lab, method, args.clone()), class, "{method} {args}");
    }
    expect_rows(lab, &volumes[1..], "enabled");

    rewrite(lab, &mut volumes[..1], "b");
    let order = call(lab, "failover", json!({"volumes": [id], "target": "default"}));
    carried_out(lab, &order);
    expect_rows(lab, &volumes, "enabled");
    expect_no_split(lab, &volumes);
    expect_served_from_a(lab, &volumes);
    clean(lab, &volumes);
}
