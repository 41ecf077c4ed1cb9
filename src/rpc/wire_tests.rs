//! What Scoria sends has the keys and types of what stock services were seen to send.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::objects::{self, Object, WireVolume};
use super::scheduler::Binary;
use super::{Pins, Reply, backup, envelope, fault, notifier, scheduler, usage};
use crate::backend::capacity::{self, Measured};
use crate::backend::peers::{
    Capabilities, ContinueBackup, Priority, Reporter, Reschedule, RestoreBackup, SnapshotUsage, VolumeUsage,
};
use crate::config::Config;
use crate::context::RequestContext;
use crate::error::{Code, Error};
use crate::model::{Attachment, Backup, Group, GroupSnapshot, Snapshot, Versions, Volume};
use crate::rbd::types::PoolCapacity;

/// The inner message of a capture.
fn captured(name: &str) -> Map<String, Value> {
    let path = format!("{}/tests/wire/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let capture: Value = serde_json::from_slice(&std::fs::read(&path).expect(&path)).unwrap();
    envelope::open(capture["body"].as_str().unwrap().as_bytes()).unwrap()
}

/// Names of the captures that begin so.
fn named(prefix: &str) -> Vec<String> {
    let folder = format!("{}/tests/wire", env!("CARGO_MANIFEST_DIR"));
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().to_str().unwrap().strip_suffix(".json").map(str::to_owned))
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no capture begins with {prefix}");
    names
}

/// Same keys, same JSON types, at every level.
fn same_shape(ours: &Value, theirs: &Value, path: &str) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = |m: &Map<String, Value>| m.keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(keys(a), keys(b), "keys of {path}");
            for (key, value) in a {
                same_shape(value, &b[key], &format!("{path}.{key}"));
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "length of {path}");
            for (n, (x, y)) in a.iter().zip(b).enumerate() {
                same_shape(x, y, &format!("{path}[{n}]"));
            }
        }
        (a, b) => assert_eq!(std::mem::discriminant(a), std::mem::discriminant(b), "{path}: {a} and {b}"),
    }
}

fn text(map: &Value, key: &str) -> Option<String> {
    map[key].as_str().map(str::to_owned)
}

fn time(map: &Value, key: &str) -> Option<chrono::NaiveDateTime> {
    map[key].as_str().map(|t| objects::parse_time(t).expect(t))
}

/// A row of `volumes` as notifications show it.
fn row(v: &Value) -> Volume {
    Volume {
        id: text(v, "id").unwrap(),
        name_id: text(v, "_name_id"),
        user_id: text(v, "user_id"),
        project_id: text(v, "project_id"),
        use_quota: v["use_quota"].as_bool().unwrap(),
        snapshot_id: text(v, "snapshot_id"),
        source_volid: text(v, "source_volid"),
        cluster_name: text(v, "cluster_name"),
        host: text(v, "host"),
        size: i32::try_from(v["size"].as_i64().unwrap()).unwrap(),
        availability_zone: text(v, "availability_zone"),
        status: text(v, "status").unwrap(),
        attach_status: text(v, "attach_status"),
        migration_status: text(v, "migration_status"),
        previous_status: text(v, "previous_status"),
        scheduled_at: time(v, "scheduled_at"),
        launched_at: time(v, "launched_at"),
        terminated_at: time(v, "terminated_at"),
        created_at: time(v, "created_at"),
        updated_at: time(v, "updated_at"),
        display_name: text(v, "display_name"),
        display_description: text(v, "display_description"),
        provider_id: text(v, "provider_id"),
        provider_location: text(v, "provider_location"),
        provider_auth: text(v, "provider_auth"),
        volume_type_id: text(v, "volume_type_id").unwrap(),
        encryption_key_id: text(v, "encryption_key_id"),
        group_id: text(v, "group_id"),
        consistencygroup_id: text(v, "consistencygroup_id"),
        bootable: v["bootable"].as_bool().unwrap(),
        multiattach: v["multiattach"].as_bool().unwrap(),
        replication_status: text(v, "replication_status"),
        replication_extended_status: text(v, "replication_extended_status"),
        replication_driver_data: text(v, "replication_driver_data"),
        service_uuid: text(v, "service_uuid"),
        shared_targets: v["shared_targets"].as_bool(),
    }
}

fn attachment(a: &Value) -> Attachment {
    let document = |key: &str| a[key].as_str().map(|t| serde_json::from_str(t).unwrap());
    Attachment {
        id: text(a, "id").unwrap(),
        volume_id: text(a, "volume_id").unwrap(),
        instance_uuid: text(a, "instance_uuid"),
        attached_host: text(a, "attached_host"),
        mountpoint: text(a, "mountpoint"),
        attach_time: time(a, "attach_time"),
        detach_time: time(a, "detach_time"),
        attach_status: text(a, "attach_status"),
        attach_mode: text(a, "attach_mode"),
        connection_info: document("connection_info"),
        connector: document("connector"),
        created_at: time(a, "created_at"),
        updated_at: time(a, "updated_at"),
    }
}

/// The message around a payload, made with the captured one's context.
fn notification(capture: &Map<String, Value>, payload: Value) -> Value {
    let context = envelope::context(envelope::read(capture.clone()).context).unwrap();
    let string = |key: &str| capture[key].as_str().unwrap();
    let message =
        notifier::message(&context, string("event_type"), Priority::Info, string("publisher_id"), payload);
    Value::Object(message)
}

fn pairs(list: &Value) -> BTreeMap<String, String> {
    let pair = |p: &Value| (text(p, "key").unwrap(), text(p, "value").unwrap());
    list.as_array().map(|l| l.iter().map(pair).collect()).unwrap_or_default()
}

#[test]
fn volume_notifications() {
    for name in named("notif-volume.") {
        let theirs = captured(&name);
        let p = &theirs["payload"];
        let attached = p["volume_attachment"].as_array().unwrap();
        // The payload shows a few columns; attachments carry the whole row.
        let mut volume = attached.first().map(|a| row(&a["volume"])).unwrap_or_default();
        volume.id = text(p, "volume_id").unwrap();
        volume.project_id = text(p, "tenant_id");
        volume.host = text(p, "host");
        volume.user_id = text(p, "user_id");
        volume.availability_zone = text(p, "availability_zone");
        volume.volume_type_id = text(p, "volume_type").unwrap();
        volume.display_name = text(p, "display_name");
        volume.launched_at = time(p, "launched_at");
        volume.created_at = time(p, "created_at");
        volume.status = text(p, "status").unwrap();
        volume.snapshot_id = text(p, "snapshot_id");
        volume.size = i32::try_from(p["size"].as_i64().unwrap()).unwrap();
        volume.replication_status = text(p, "replication_status");
        volume.replication_driver_data = text(p, "replication_driver_data");
        let attachments: Vec<_> = attached.iter().map(attachment).collect();
        let usage = VolumeUsage {
            volume: &volume,
            metadata: &pairs(&p["metadata"]),
            attachments: &attachments,
            glance_metadata: &pairs(&p["glance_metadata"]),
        };
        let ours = notification(&theirs, usage::volume(&usage));
        same_shape(&ours, &Value::Object(theirs.clone()), &name);
        for key in ["created_at", "metadata", "status", "volume_id", "volume_type", "replication_status"] {
            assert_eq!(ours["payload"][key], p[key], "{name}: {key}");
        }
    }
}

#[test]
fn snapshot_notifications() {
    for name in named("notif-snapshot.") {
        let theirs = captured(&name);
        let p = &theirs["payload"];
        let mut metadata = BTreeMap::new();
        if p["metadata"] == "{'a': 'b'}" {
            metadata.insert("a".to_owned(), "b".to_owned());
        }
        let snapshot = Snapshot {
            id: text(p, "snapshot_id").unwrap(),
            volume_id: text(p, "volume_id").unwrap(),
            project_id: text(p, "tenant_id"),
            user_id: text(p, "user_id"),
            volume_size: i32::try_from(p["volume_size"].as_i64().unwrap()).unwrap(),
            display_name: text(p, "display_name"),
            created_at: time(p, "created_at"),
            status: text(p, "status").unwrap(),
            deleted: p["deleted"] == "True",
            metadata,
            ..Snapshot::default()
        };
        let zone = text(p, "availability_zone");
        let usage = SnapshotUsage { snapshot: &snapshot, availability_zone: zone.as_deref() };
        let ours = notification(&theirs, usage::snapshot(&usage));
        same_shape(&ours, &Value::Object(theirs.clone()), &name);
        assert_eq!(&ours["payload"], p, "{name}");
    }
}

#[test]
fn group_notifications() {
    for name in named("notif-group.") {
        let theirs = captured(&name);
        let p = &theirs["payload"];
        let group = Group {
            id: text(p, "group_id").unwrap(),
            user_id: text(p, "user_id"),
            project_id: text(p, "tenant_id"),
            availability_zone: text(p, "availability_zone"),
            group_type_id: text(p, "group_type"),
            name: text(p, "name"),
            created_at: time(p, "created_at"),
            status: text(p, "status").unwrap(),
            ..Group::default()
        };
        assert_eq!(&usage::group(&group), p, "{name}");
    }
    for name in named("notif-group_snapshot.") {
        let theirs = captured(&name);
        let p = &theirs["payload"];
        let group_snapshot = GroupSnapshot {
            id: text(p, "group_snapshot_id").unwrap(),
            group_id: text(p, "group_id").unwrap(),
            user_id: text(p, "user_id"),
            project_id: text(p, "tenant_id"),
            group_type_id: text(p, "group_type"),
            name: text(p, "name"),
            created_at: time(p, "created_at"),
            status: text(p, "status").unwrap(),
            ..GroupSnapshot::default()
        };
        assert_eq!(&usage::group_snapshot(&group_snapshot), p, "{name}");
    }
}

/// What the backend of the captured session would report if it were ours.
fn our_capabilities() -> Map<String, Value> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let text = "[DEFAULT]\nhost=lab1\nenabled_backends=fake1\ntransport_url=rabbit://u:p@h/v\n\
                [database]\nconnection=mysql+pymysql://u:p@h/cinder\n\
                [fake1]\nvolume_backend_name=fake1\nrbd_user=cinder\nrbd_exclusive_cinder_pool=false\n\
                replication_device=backend_id:lab-site-b,conf:/b.conf\n";
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    let (config, _) = Config::load(&[file.path().to_owned()], &[], std::iter::empty()).unwrap();
    let measured = Measured {
        fsid: "f".to_owned(),
        capacity: PoolCapacity { stored: 0, max_avail: 4000 << 30, cluster_total: 5000 << 30, quota: 0 },
        exclusive_lock: true,
        provisioned_gb: Some(10),
    };
    capacity::capabilities(&config.backends[0], Some(&measured), 0)
}

/// Same keys and types as the capture, but for keys that only the driver of the captured session has.
fn compare_capabilities(mut ours: Map<String, Value>, theirs: &Value, only_theirs: &[&str]) {
    let mut theirs = theirs.as_object().unwrap().clone();
    for key in only_theirs {
        assert!(theirs.remove(*key).is_some() && !ours.contains_key(*key), "{key}");
    }
    // Figures of stock's RBD driver are floats and its sum of image sizes is whole, the captured one's are
    // all floats: for JSON both are numbers. Ours can be failed back from the target, so there are two.
    let targets = ours.insert("replication_targets".to_owned(), theirs["replication_targets"].clone());
    assert_eq!(targets, Some(json!(["lab-site-b", "default"])));
    same_shape(&Value::Object(ours.clone()), &Value::Object(theirs.clone()), "capabilities");
    for key in ["storage_protocol", "vendor_name", "volume_backend_name", "backend_state"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    for key in ["multiattach", "qos_support", "thin_provisioning_support", "max_over_subscription_ratio"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
}

#[test]
fn capability_reports() {
    let at = objects::parse_time("2026-11-20T20:27:58.843042").unwrap();
    let update = captured("update_service_capabilities-fanout-to-cinder-scheduler");
    let ours = our_capabilities();
    compare_capabilities(ours.clone(), &update["args"]["capabilities"], &[]);
    let mut report = Capabilities {
        service: Reporter::Volume,
        host: text(&update["args"], "host").unwrap(),
        cluster: None,
        capabilities: ours.clone(),
    };
    let pins = Binary::Scheduler.newest();
    let sent = scheduler::update_capabilities(&report, at, pins);
    let mut expected = update["args"].clone();
    expected["capabilities"] = Value::Object(ours.clone());
    assert_eq!(sent.args, expected);
    // Sent without anybody asking: under an administrator's context.
    assert_eq!((sent.method, sent.version), ("update_service_capabilities", (3, 3)));
    let mut message = envelope::cast(&RequestContext::admin(), sent.method, "3.3", sent.args);
    message["args"]["capabilities"] = update["args"]["capabilities"].clone();
    same_shape(&Value::Object(message), &Value::Object(update), "update_service_capabilities");

    let notify = captured("notify_service_capabilities-cast-to-cinder-scheduler");
    let sent = scheduler::notify_capabilities(&report, at, pins).unwrap();
    compare_capabilities(ours, &notify["args"]["capabilities"], &[]);
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&sent.args), keys(&notify["args"]));
    assert_eq!(sent.args["backend"], notify["args"]["backend"]);
    report.cluster = Some("c@b".to_owned());
    assert_eq!(scheduler::notify_capabilities(&report, at, pins).unwrap().args["backend"], "c@b");
}

#[test]
fn older_schedulers_are_sent_what_they_know() {
    let at = objects::parse_time("2026-11-20T20:27:58.843042").unwrap();
    let report =
        Capabilities { host: "h@b".to_owned(), cluster: Some("c@b".to_owned()), ..Default::default() };
    let pins = |rpc: &str| {
        let row = Versions { rpc: Some(rpc.to_owned()), objects: Some("1.38".to_owned()) };
        Pins::least(Binary::Scheduler.newest(), &[row])
    };
    let keys = |args: &Value| args.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");

    let update = |rpc| scheduler::update_capabilities(&report, at, pins(rpc));
    assert_eq!(update("3.3").version, (3, 3));
    assert_eq!(update("3.2").version, (3, 0));
    assert_eq!(keys(&update("3.2").args), "capabilities host service_name");

    let notify = |rpc| scheduler::notify_capabilities(&report, at, pins(rpc));
    assert_eq!(notify("3.5").unwrap().version, (3, 5));
    let older = notify("3.4").unwrap();
    assert_eq!((older.version, keys(&older.args).as_str()), ((3, 1), "capabilities host service_name"));
    assert_eq!(older.args["host"], "c@b");
    assert_eq!(notify("3.0"), None);

    let create = |rpc| scheduler::create_volume(&Reschedule::default(), pins(rpc));
    assert!(keys(&create("3.10").args).contains("backup_id"));
    assert!(!keys(&create("3.9").args).contains("backup_id"));
    assert_eq!(create("3.9").version, (3, 0));
}

#[test]
fn capabilities_are_answered_as_by_a_driver() {
    let theirs = captured("get_capabilities-call-to-cinder-volume-reply-ending");
    // The captured driver measures these itself. Of stock's RBD driver they come from the manager, which adds
    // them to what it reports and not to what it answers.
    let of_the_manager = ["allocated_capacity_gb", "filter_function", "goodness_function"];
    compare_capabilities(capacity::with_properties(our_capabilities()), &theirs["result"], &of_the_manager);
}

#[test]
fn a_volume_goes_back_to_the_scheduler_as_it_came() {
    let theirs = captured("create_volume-cast-to-cinder-scheduler");
    let came = captured("create_volume-cast-to-cinder-volume");
    let mut volume = WireVolume::parse(&came["args"]["volume"]).unwrap().object;
    volume.set("host", Value::Null);
    let request = Reschedule {
        volume: volume.to_value(),
        request_spec: came["args"]["request_spec"].clone(),
        filter_properties: came["args"]["filter_properties"].clone(),
        ..Reschedule::default()
    };
    let args = scheduler::create_volume(&request, Binary::Scheduler.newest()).args;
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&args), keys(&theirs["args"]));
    let mut expected = came["args"]["volume"].clone();
    expected["versioned_object.data"]["host"] = Value::Null;
    assert_eq!(args["volume"], expected);
}

#[test]
fn the_destination_of_a_migration_is_asked_as_the_scheduler_asks() {
    let came = captured("create_volume-cast-to-cinder-volume");
    let volume = WireVolume::parse(&came["args"]["volume"]).unwrap().volume;
    let request = scheduler::create_target(&volume).unwrap();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&request.args), keys(&came["args"]));
    assert_eq!((request.method, request.version), ("create_volume", (3, 0)));
    let spec = super::dispatch::METHODS.iter().find(|s| s.name == "create_volume").unwrap();
    let super::Method::CreateVolume(read) = super::dispatch::decode(spec, request.args).unwrap() else {
        panic!("another method")
    };
    assert_eq!(read.volume.volume, volume);
    assert!(!read.may_reschedule() && read.request_spec.is_none());
}

#[test]
fn cinder_backup_is_asked_as_stock_asks() {
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let theirs = captured("continue_backup-cast-to-cinder-backup");
    let info = &theirs["args"]["backup_device"];
    let device = WireVolume::parse(&info["versioned_object.data"]["volume"]).unwrap().volume;
    let order = ContinueBackup {
        unique_id: "u".to_owned(),
        host: "lab1".to_owned(),
        backup: theirs["args"]["backup"].clone(),
        temp_volume_id: None,
        device,
    };
    let ours = backup::continue_backup(&order).unwrap();
    assert_eq!((ours.method, ours.version), ("continue_backup", (2, 0)));
    assert_eq!(ours.args["backup"], theirs["args"]["backup"]);
    let own = &ours.args["backup_device"];
    assert_eq!(keys(own), keys(info));
    assert_eq!(own["versioned_object.changes"], info["versioned_object.changes"]);
    assert_eq!(keys(&own["versioned_object.data"]), keys(&info["versioned_object.data"]), "no null snapshot");
    let temporary = ContinueBackup { temp_volume_id: Some("t".to_owned()), ..order };
    let ours = backup::continue_backup(&temporary).unwrap().args;
    assert_eq!(ours["backup"]["versioned_object.data"]["temp_volume_id"], "t");

    let theirs = captured("restore_backup-cast-to-cinder-backup");
    let data = |args: &Value| args["backup"]["versioned_object.data"].clone();
    let order = RestoreBackup {
        unique_id: "u".to_owned(),
        host: "lab1".to_owned(),
        backup: Backup { id: "b".to_owned(), status: "restoring".to_owned(), size: 1, ..Backup::default() },
        volume_id: "v".to_owned(),
    };
    let newest = Binary::Backup.newest();
    let ours = backup::restore_backup(&order, newest).unwrap();
    assert_eq!((ours.method, ours.version), ("restore_backup", (2, 0)));
    assert_eq!(keys(&ours.args), keys(&theirs["args"]));
    assert_eq!(keys(&data(&ours.args)), keys(&data(&theirs["args"])));
    assert_eq!(ours.args["volume_is_new"], true);
    let old = Versions { rpc: Some("2.3".to_owned()), objects: Some("1.38".to_owned()) };
    let ours = backup::restore_backup(&order, Pins::least(newest, &[old])).unwrap();
    assert!(!keys(&ours.args).contains("volume_is_new"), "2.3 does not know it");
}

#[test]
fn the_failover_fanout_has_the_captured_form() {
    let theirs = captured("failover_completed-fanout-to-cinder-volume");
    let context = envelope::context(envelope::read(theirs.clone()).context).unwrap();
    let ours = envelope::cast(&context, "failover_completed", "3.8", theirs["args"].clone());
    same_shape(&Value::Object(ours), &Value::Object(theirs), "failover_completed");
}

#[test]
fn an_attachment_is_answered_as_stock_does() {
    let theirs = captured("attach_volume-call-to-cinder-volume-reply-ending");
    let result = &theirs["result"];
    let object = Object::expect(result, "VolumeAttachment").unwrap();
    let volume = WireVolume::parse(object.get("volume").unwrap()).unwrap().volume;
    let attachment = objects::read_attachment(&object).unwrap();
    let ours = objects::attachment_object(&attachment, Some(&volume)).unwrap().to_value();
    assert_eq!(&ours, result);
    let msg_id = theirs["_msg_id"].as_str().unwrap();
    let ours = Value::Object(Reply::new(Ok(ours)).into_message(msg_id));
    same_shape(&ours, &Value::Object(theirs), "attach_volume");
}

#[test]
fn snapshots_are_written_with_the_fields_that_stock_writes() {
    let theirs = captured("create_snapshot-cast-to-cinder-volume");
    let theirs = Object::expect(&theirs["args"]["snapshot"], "Snapshot").unwrap();
    let snapshot = objects::WireSnapshot::parse(&theirs.to_value()).unwrap().snapshot;
    let ours = objects::snapshot_object(&snapshot).unwrap();
    for (field, value) in theirs.data().iter().filter(|(field, _)| *field != "volume") {
        assert_eq!(ours.get(field), Some(value), "{field}");
    }
    assert_eq!(ours.data().len() + usize::from(theirs.get("volume").is_some()), theirs.data().len());
}

#[test]
fn lists_are_answered_as_stock_does() {
    let theirs = captured("get_log_levels-call-to-cinder-volume-reply-ending");
    let level = objects::LogLevel {
        prefix: Some("cinder.volume.manager".to_owned()),
        level: Some("DEBUG".to_owned()),
    };
    assert_eq!(objects::log_level_list(&[level]).unwrap(), theirs["result"]);

    let source = |name: &str| BTreeMap::from([("source-name".to_owned(), name.to_owned())]);
    let foreign = objects::ManageableVolume {
        reference: source("foreign"),
        size: 1,
        safe_to_manage: true,
        ..objects::ManageableVolume::default()
    };
    let theirs = captured("get_manageable_volumes-call-to-cinder-volume-reply-ending");
    assert_eq!(json!([objects::manageable_volume(&foreign).unwrap()]), theirs["result"]);
    let snapshot = objects::ManageableSnapshot {
        snapshot: objects::ManageableVolume { reference: source("fsnap"), ..foreign },
        source_reference: source("foreign"),
    };
    let theirs = captured("get_manageable_snapshots-call-to-cinder-volume-reply-ending");
    assert_eq!(json!([objects::manageable_snapshot(&snapshot).unwrap()]), theirs["result"]);
}

#[test]
fn exceptions_are_those_of_stock() {
    for (name, code) in [
        ("initialize_connection-call-to-cinder-volume-reply-error-InvalidInput", Code::InvalidInput),
        (
            "initialize_connection-call-to-cinder-volume-reply-error-VolumeBackendAPIException",
            Code::VolumeBackend,
        ),
        (
            "attachment_update-call-to-cinder-volume-reply-error-VolumeBackendAPIException",
            Code::VolumeBackend,
        ),
    ] {
        let message = captured(name);
        let theirs: Value = serde_json::from_str(message["failure"].as_str().unwrap()).unwrap();
        let kwargs = &theirs["kwargs"];
        let reason = kwargs.get("reason").or_else(|| kwargs.get("data")).unwrap().as_str().unwrap();
        let ours: Value = serde_json::from_str(&fault::document(&Error::new(code, reason))).unwrap();
        for key in ["class", "module", "message", "args", "kwargs"] {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
        }
        let last = |d: &Value| d["tb"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(last(&ours), last(&theirs));
        let reply = Reply::new(Err(&Error::new(code, reason))).into_message("m");
        same_shape(&Value::Object(reply), &Value::Object(message), name);
    }
}
