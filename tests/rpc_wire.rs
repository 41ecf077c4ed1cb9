//! Every message that stock Cinder was seen to send to cinder-volume is understood.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use scoria::rpc::dispatch::METHODS;
use scoria::rpc::envelope;
use scoria::rpc::{Call, Method};
use serde_json::Value;

fn captures(part: &str) -> Vec<(String, Value)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| name.contains(part))
        .map(|(name, path)| (name, serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()))
        .collect();
    found.sort_by(|a: &(String, Value), b| a.0.cmp(&b.0));
    assert!(!found.is_empty(), "no capture matches {part}");
    found
}

/// Requests to cinder-volume: file name, body, expiration.
fn requests() -> Vec<(String, String, Option<String>)> {
    captures("-to-cinder-volume")
        .into_iter()
        .filter(|(name, _)| !name.contains("-reply-"))
        .map(|(name, capture)| {
            let expiration = capture["properties"]["expiration"].as_str().map(str::to_owned);
            (name, capture["body"].as_str().unwrap().to_owned(), expiration)
        })
        .collect()
}

#[test]
fn every_captured_request_is_decoded_and_survives_the_journal() {
    let mut seen = BTreeSet::new();
    for (name, body, expiration) in requests() {
        let call = Call::from_delivery(body.as_bytes(), expiration.as_deref())
            .unwrap_or_else(|refusal| panic!("{name}: {}", refusal.error));
        let (method, rest) = name.split_once('-').unwrap();
        assert_eq!(call.name, method);
        assert_eq!(call.reply.is_some(), rest.starts_with("call"), "{name}");
        assert_eq!(call.deadline.is_some(), rest.starts_with("call"), "{name}");
        assert_eq!(call.keep_alive, None, "{name}: Cinder never asks for keep-alives");
        assert!(call.context.request_id.starts_with("req-"), "{name}");
        assert!(call.context.timestamp.is_some(), "{name}");
        assert!(!call.text.contains("auth_token"), "{name}");
        if rest.starts_with("fanout") {
            assert!(!call.journaled, "{name}");
        }
        let again = Call::from_journal(&call.text).unwrap();
        assert_eq!(again.method, call.method, "{name}");
        assert_eq!(again.unique_id, call.unique_id, "{name}");
        assert_eq!(again.reply, call.reply, "{name}");
        assert_eq!(again.context.project_id, call.context.project_id, "{name}");
        seen.insert(call.name);
    }
    let unseen: Vec<_> = METHODS.iter().map(|m| m.name).filter(|m| !seen.contains(m)).collect();
    // These were never provoked by the captured session; all others must stay covered.
    assert_eq!(
        unseen,
        [
            "initialize_connection_snapshot",
            "terminate_connection_snapshot",
            "remove_export_snapshot",
            "extend_volume_completion",
            "migrate_volume_completion",
            "failover_host",
        ]
    );
}

/// Clients that are pinned below 3.8 know the older name only.
#[test]
fn a_failover_is_understood_by_both_names() {
    let (_, body, _) = requests().into_iter().find(|(name, ..)| name.starts_with("failover-cast")).unwrap();
    assert!(body.contains(r#"\"failover\""#), "{body}");
    let older = body.replace(r#"\"failover\""#, r#"\"failover_host\""#);
    let of = |body: &str| Call::from_delivery(body.as_bytes(), None).unwrap();
    assert_eq!((of(&body).name, of(&older).name), ("failover", "failover_host"));
    assert_eq!(of(&body).method, of(&older).method);
}

#[test]
fn what_arrives_is_what_was_sent() {
    let find = |part: &str| {
        let (_, body, _) = requests().into_iter().find(|(name, ..)| name.starts_with(part)).unwrap();
        Call::from_delivery(body.as_bytes(), None).unwrap()
    };
    let Method::CreateVolume(create) = find("create_volume").method else { panic!() };
    assert_eq!(create.volume.volume.host.as_deref(), Some("lab1@fake1#fake1"));
    assert_eq!((create.volume.volume.size, create.volume.volume.status.as_str()), (1, "creating"));
    assert_eq!(create.volume.metadata.as_ref().unwrap()["k"], "v");
    assert_eq!(create.volume.volume_type.as_ref().unwrap().extra_specs["volume_backend_name"], "fake1");
    assert_eq!(create.volume.attachments.as_deref(), Some(&[][..]));
    assert!(create.may_reschedule());
    assert_eq!(create.request_spec.as_ref().unwrap().volume_id, Some(create.volume.volume.id.clone()));

    let retype = find("retype").method;
    assert_eq!(retype.resource().unwrap().kind(), "Volume");
    assert_eq!((retype.reservations().0.len(), retype.reservations().1.len()), (2, 2));
    let Method::Retype(retype) = retype else { panic!() };
    assert_eq!(retype.host.host, "lab1@fake1#fake1");

    let Method::DeleteSnapshot(delete) = find("delete_snapshot").method else { panic!() };
    let volume = delete.snapshot.volume.unwrap();
    assert_eq!(volume.volume.id, delete.snapshot.snapshot.volume_id);
    assert_eq!(volume.attachments.unwrap().len(), 1);

    let Method::UpdateGroup(update) = find("update_group").method else { panic!() };
    assert_eq!((update.add_volumes.len(), update.remove_volumes.len()), (2, 0));

    let Method::DoCleanup(cleanup) = find("do_cleanup").method else { panic!() };
    assert_eq!((cleanup.service_id, cleanup.is_up, cleanup.resource_id), (Some(2), Some(true), None));
}

/// Visits every value of `json` and replaces the `n`th by `with`.
fn mutate(json: &mut Value, n: &mut usize, with: &Value) -> bool {
    if *n == 0 {
        *json = with.clone();
        return true;
    }
    *n -= 1;
    match json {
        Value::Array(items) => items.iter_mut().any(|v| mutate(v, n, with)),
        Value::Object(map) => map.values_mut().any(|v| mutate(v, n, with)),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// A request with one value replaced by something of another type is understood or refused.
    #[test]
    fn a_damaged_request_never_panics(
        which in any::<prop::sample::Index>(),
        position in 0usize..400,
        kind in 0usize..7,
    ) {
        let requests = requests();
        let (_, body, expiration) = which.get(&requests);
        let with = [
            Value::Null, Value::Bool(true), 1e300.into(), Value::from(-1), "x".into(),
            Value::Array(vec![Value::Null]), serde_json::json!({"versioned_object.name": "Volume"}),
        ][kind].clone();
        let mut inner = Value::Object(envelope::open(body.as_bytes()).unwrap());
        let mut n = position + 1;
        mutate(&mut inner, &mut n, &with);
        let sealed = envelope::seal(inner.as_object().unwrap());
        match Call::from_delivery(&sealed, expiration.as_deref()) {
            Ok(call) => { Call::from_journal(&call.text).unwrap(); }
            Err(refusal) => prop_assert!(!refusal.is_malformed()),
        }
    }

    /// The same with bytes cut out.
    #[test]
    fn a_cut_request_never_panics(which in any::<prop::sample::Index>(), from in any::<prop::sample::Index>(), len in 1usize..40) {
        let requests = requests();
        let mut body = which.get(&requests).1.clone().into_bytes();
        let start = from.index(body.len());
        body.drain(start..(start + len).min(body.len()));
        let _ = Call::from_delivery(&body, None);
    }
}
