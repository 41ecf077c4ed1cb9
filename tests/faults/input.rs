//! Messages that no Cinder would send, straight onto the queue: a caller gets the exception that stock
//! would raise, the queue moves on, the service lives.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::common::{CEPH_QUEUE, Lab, Subject, wait_until};

fn alive(lab: &Lab) {
    let reply = lab.rpc(CEPH_QUEUE, "get_capabilities", "3.0", json!({"discover": false}));
    assert_eq!(reply["result"]["storage_protocol"], "ceph", "{reply}");
}

/// Lines of the log in which all of these occur.
fn lines_with(lab: &Lab, parts: &[&str]) -> usize {
    lab.service_log().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

/// A failure is logged once, by whoever gives up: not never, and not at every layer.
fn expect_logged(lab: &Lab, what: &str, times: usize, parts: &[&str]) {
    if lab.subject == Subject::Stock {
        return;
    }
    // The log is written a moment later.
    wait_until(&format!("{what}: logged"), 30, || lines_with(lab, parts) >= times);
    assert_eq!(lines_with(lab, parts), times, "{what}: {parts:?}");
}

/// A request id that no other request has, and the keys of a request that has it.
fn identified() -> (String, Value) {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let id = format!("req-00000000-0000-4000-8000-{:012}", NEXT.fetch_add(1, Ordering::Relaxed));
    let inner = json!({"_context_request_id": id});
    (id, inner)
}

/// Class and module of the exception that a request gets; it is logged once.
fn refusal(lab: &Lab, what: &str, request: Value) -> (String, String) {
    let mut request = request;
    request["routing_key"] = json!(CEPH_QUEUE);
    let (id, mut inner) = identified();
    if let Some(more) = request["inner"].as_object() {
        inner.as_object_mut().unwrap().extend(more.clone());
    }
    request["inner"] = inner;
    let reply = lab.driver.call("rpc", request.clone()).unwrap_or_else(|e| panic!("{request}: {e}"));
    let failure = &reply["failure"];
    assert!(failure.is_object(), "no exception for {request}: {reply}");
    assert!(
        failure["args"].is_array() && failure["kwargs"].is_object() && failure["tb"].is_array(),
        "{failure}"
    );
    alive(lab);
    expect_logged(lab, what, 1, &[&id]);
    let word = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
    (word("class"), word("module"))
}

#[test]
fn what_cannot_be_read_is_dropped_and_the_queue_moves_on() {
    let lab = Lab::get();
    let pids = lab.service_pids();
    let mut refused = 0;
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
        refused += 1;
        expect_logged(&lab, &body.to_string(), refused, &["request refused"]);
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
    ] {
        let found = refusal(&lab, what, request);
        eprintln!("{what}: {found:?}");
        assert_eq!(found, (class.to_owned(), module.to_owned()), "{what}");
    }
    lab.delete(&[&volume]);
}

#[test]
fn callers_with_arguments_of_the_wrong_type_get_an_exception() {
    let lab = Lab::get();
    let volume = lab.volume_of_type("ceph");
    let object = lab.driver.call("volume_object", json!({"ident": volume})).unwrap();
    let mut odd = object.clone();
    odd["versioned_object.data"]["size"] = json!("huge");
    let update =
        |vref: &Value, attachment: Value| json!({"vref": vref, "connector": {}, "attachment_id": attachment});
    for (what, method, args, class) in [
        ("a flag that is a word", "get_capabilities", json!({"discover": "perhaps"}), "TypeError"),
        (
            "a list instead of an id",
            "terminate_connection",
            json!({"volume_id": [1], "connector": {}}),
            "TypeError",
        ),
        (
            "a number instead of an object",
            "initialize_connection",
            json!({"volume": 7, "connector": {}}),
            "ValueError",
        ),
        (
            "a text instead of a dictionary",
            "initialize_connection",
            json!({"volume": object, "connector": "c"}),
            "TypeError",
        ),
        ("an id that is a number", "attachment_update", update(&object, json!(5)), "TypeError"),
        ("a text instead of an object", "attachment_update", update(&json!("v"), json!("a")), "ValueError"),
        ("a field that is no number", "attachment_update", update(&odd, json!("a")), "ValueError"),
        ("positional arguments", "get_capabilities", json!([false]), "TypeError"),
    ] {
        let found = refusal(&lab, what, json!({"method": method, "args": args}));
        eprintln!("{what}: {found:?}");
        // Python finds out where it trips over the value; that it is one of its own exceptions is the same.
        if lab.subject == Subject::Scoria {
            assert_eq!(found, (class.to_owned(), "builtins".to_owned()), "{what}");
        }
    }
    assert_eq!(lab.volume(&volume)["status"], "available");
    lab.delete(&[&volume]);
}

/// `cinder.context.RequestContext.from_dict` refuses a null in one field only, and that one must be a word
/// it knows; every other null is an absent value.
#[test]
fn nulls_in_the_context_are_refused_where_cinder_refuses_them() {
    let lab = Lab::get();
    let context = lab.driver.call("context", json!({})).unwrap();
    let ask = |key: &str, value: Value| {
        let mut inner = serde_json::Map::new();
        inner.insert(key.to_owned(), value);
        json!({"method": "get_capabilities", "args": {"discover": false}, "inner": inner})
    };
    let value_error = ("ValueError".to_owned(), "builtins".to_owned());
    let fields: Vec<&String> = context.as_object().unwrap().keys().collect();
    assert!(fields.len() > 20, "{fields:?}");
    for field in fields {
        if field == "_context_read_deleted" {
            for wrong in [json!(null), json!("perhaps"), json!(7), json!(true), json!(["no"])] {
                let what = format!("{field} = {wrong}");
                assert_eq!(refusal(&lab, &what, ask(field, wrong)), value_error, "{what}");
            }
            continue;
        }
        let mut request = ask(field, json!(null));
        request["routing_key"] = json!(CEPH_QUEUE);
        let reply = lab.driver.call("rpc", request).unwrap();
        assert_eq!(reply["result"]["storage_protocol"], "ceph", "{field} = null: {reply}");
    }
}

#[test]
fn casts_about_what_is_not_there_change_nothing() {
    let lab = Lab::get();
    let volume = lab.volume_of_type("ceph");
    let mut ghost = lab.driver.call("volume_object", json!({"ident": volume})).unwrap();
    ghost["versioned_object.data"]["id"] = json!("00000000-0000-4000-8000-000000000000");
    // What is gone already is deleted with success; everything else is an error, logged once.
    for (method, errors, args) in [
        ("delete_volume", 0, json!({"volume": ghost, "unmanage_only": false, "cascade": false})),
        ("extend_volume", 1, json!({"volume": ghost, "new_size": 5, "reservations": []})),
        (
            "create_volume",
            1,
            json!({"volume": ghost, "request_spec": null, "filter_properties": {}, "allow_reschedule": false}),
        ),
        ("make_coffee", 1, json!({})),
        ("delete_volume", 1, json!({})),
        ("delete_volume", 1, json!({"volume": 7})),
    ] {
        let (id, inner) = identified();
        let what = format!("{method} {args}");
        let request = json!({"routing_key": CEPH_QUEUE, "method": method, "args": args, "inner": inner});
        lab.driver.call("cast", request).unwrap();
        alive(&lab);
        wait_until(&format!("{what}: over"), 60, || {
            lab.subject == Subject::Stock
                || lab.rows("SELECT id FROM scoria_operations WHERE state <> 'closed'", &[]).is_empty()
        });
        expect_logged(&lab, &what, errors, &[" ERROR ", &id]);
    }
    assert_eq!(lab.volume(&volume)["status"], "available");
    assert_eq!(lab.image("a", &volume)["size"], 1u64 << 30);
    lab.delete(&[&volume]);
}
