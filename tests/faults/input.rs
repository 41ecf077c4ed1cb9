//! Messages that no Cinder would send, straight onto the queue: a caller gets the exception that stock
//! would raise, the queue moves on, the service lives.

use serde_json::{Value, json};

use crate::common::{CEPH_QUEUE, Lab, wait_until};

fn alive(lab: &Lab) {
    let reply = lab.rpc(CEPH_QUEUE, "get_capabilities", "3.0", json!({"discover": false}));
    assert_eq!(reply["result"]["storage_protocol"], "ceph", "{reply}");
}

/// Class and module of the exception that a request gets.
fn refusal(lab: &Lab, request: Value) -> (String, String) {
    let mut request = request;
    request["routing_key"] = json!(CEPH_QUEUE);
    let reply = lab.driver.call("rpc", request.clone()).unwrap_or_else(|e| panic!("{request}: {e}"));
    let failure = &reply["failure"];
    assert!(failure.is_object(), "no exception for {request}: {reply}");
    assert!(
        failure["args"].is_array() && failure["kwargs"].is_object() && failure["tb"].is_array(),
        "{failure}"
    );
    let word = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
    (word("class"), word("module"))
}

#[test]
fn what_cannot_be_read_is_dropped_and_the_queue_moves_on() {
    let lab = Lab::get();
    let pids = lab.service_pids();
    for body in [
        json!(""),
        json!("no JSON at all"),
        json!("[]"),
        json!("null"),
        json!("42"),
        json!("\"text\""),
        json!("{}"),
        json!(r#"{"oslo.version": "2.0"}"#),
        json!(r#"{"oslo.version": "2.0", "oslo.message": "{"}"#),
        json!(r#"{"oslo.version": "2.0", "oslo.message": 7}"#),
        json!(r#"{"oslo.version": "2.0", "oslo.message": "[1, 2]"}"#),
        json!(r#"{"oslo.version": "9.0", "oslo.message": "{}"}"#),
        json!(r#"{"oslo.version": "2.7", "oslo.message": "{}"}"#),
        json!(r#"{"oslo.version": 2, "oslo.message": "{}"}"#),
        json!({"hex": "fffe00c0af"}),
        json!(format!("{}{}", "[".repeat(20_000), "]".repeat(20_000))),
    ] {
        let args = json!({"routing_key": CEPH_QUEUE, "body": body});
        lab.driver.call("publish", args).unwrap_or_else(|e| panic!("{body}: {e}"));
        alive(&lab);
    }
    wait_until("the queue is empty", 30, || {
        let depth = lab.driver.call("depth", json!({"queue": CEPH_QUEUE})).unwrap();
        depth["messages"] == 0 && depth["consumers"].as_i64() > Some(0)
    });
    assert_eq!(lab.service_pids().first(), pids.first(), "the same process");
}

#[test]
fn callers_get_the_exception_that_stock_raises() {
    let lab = Lab::get();
    let dispatcher = "oslo_messaging.rpc.dispatcher";
    let volume = lab.volume_of_type("ceph");
    let object = lab.driver.call("volume_object", json!({"ident": volume})).unwrap();
    let mut newer = object.clone();
    newer["versioned_object.version"] = json!("1.99");
    let mut foreign = object.clone();
    foreign["versioned_object.name"] = json!("Vehicle");
    let missing = json!({"connector": {}});
    for (what, request, class, module) in [
        ("an unknown method", json!({"method": "make_coffee"}), "NoSuchMethod", dispatcher),
        (
            "a private method",
            json!({"method": "_set_voldb_empty_at_startup_indicator"}),
            "NoSuchMethod",
            dispatcher,
        ),
        (
            "another major version",
            json!({"method": "get_capabilities", "version": "4.0", "args": {"discover": false}}),
            "UnsupportedVersion",
            dispatcher,
        ),
        (
            "a minor version to come",
            json!({"method": "get_capabilities", "version": "3.99", "args": {"discover": false}}),
            "UnsupportedVersion",
            dispatcher,
        ),
        (
            "no version",
            json!({"method": "get_capabilities", "drop": ["version"], "args": {"discover": false}}),
            "UnsupportedVersion",
            dispatcher,
        ),
        (
            "a namespace",
            json!({"method": "get_capabilities", "inner": {"namespace": "admin"}, "args": {"discover": false}}),
            "UnsupportedVersion",
            dispatcher,
        ),
        (
            "missing arguments",
            json!({"method": "initialize_connection", "args": missing}),
            "TypeError",
            "builtins",
        ),
        (
            "surplus arguments",
            json!({"method": "get_capabilities", "args": {"discover": false, "why": 1}}),
            "TypeError",
            "builtins",
        ),
        (
            "a newer object",
            json!({"method": "initialize_connection", "args": {"volume": newer, "connector": {}}}),
            "IncompatibleObjectVersion",
            "oslo_versionedobjects.exception",
        ),
        (
            "an unknown object",
            json!({"method": "initialize_connection", "args": {"volume": foreign, "connector": {}}}),
            "UnsupportedObjectError",
            "oslo_versionedobjects.exception",
        ),
        (
            "a null in the context",
            json!({"method": "get_capabilities", "inner": {"_context_read_deleted": null}, "args": {"discover": false}}),
            "ValueError",
            "builtins",
        ),
    ] {
        let found = refusal(&lab, request);
        eprintln!("{what}: {found:?}");
        assert_eq!(found, (class.to_owned(), module.to_owned()), "{what}");
        alive(&lab);
    }
    lab.delete(&[&volume]);
}

#[test]
fn casts_about_what_is_not_there_change_nothing() {
    let lab = Lab::get();
    let volume = lab.volume_of_type("ceph");
    let mut ghost = lab.driver.call("volume_object", json!({"ident": volume})).unwrap();
    ghost["versioned_object.data"]["id"] = json!("00000000-0000-4000-8000-000000000000");
    for (method, version, args) in [
        ("delete_volume", "3.0", json!({"volume": ghost, "unmanage_only": false, "cascade": false})),
        ("extend_volume", "3.0", json!({"volume": ghost, "new_size": 5, "reservations": []})),
        (
            "create_volume",
            "3.0",
            json!({"volume": ghost, "request_spec": null, "filter_properties": {}, "allow_reschedule": false}),
        ),
        ("make_coffee", "3.0", json!({})),
        ("delete_volume", "3.0", json!({})),
        ("delete_volume", "3.0", json!({"volume": 7})),
    ] {
        let request = json!({"routing_key": CEPH_QUEUE, "method": method, "version": version, "args": args});
        lab.driver.call("cast", request).unwrap();
        alive(&lab);
    }
    assert_eq!(lab.volume(&volume)["status"], "available");
    assert_eq!(lab.image("a", &volume)["size"], 1u64 << 30);
    lab.delete(&[&volume]);
}
