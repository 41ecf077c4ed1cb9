//! The payloads of notifications, key by key as stock services send them.
//!
//! Reference: volume_rpc.md 2.6; `cinder/volume/volume_utils.py`, `_usage_from_*`. Billing systems parse
//! these, so the odd types are kept: metadata of a volume is a list of rows, that of a snapshot is the
//! text of a Python dictionary.

use std::collections::BTreeMap;

use chrono::{NaiveDateTime, Utc};
use serde_json::{Map, Value, json};

use crate::backend::peers::{SnapshotUsage, VolumeUsage};
use crate::model::{Attachment, Group, GroupSnapshot, Volume};

/// `datetime.isoformat()` of a time read from the database: with an offset, microseconds if any.
fn iso(time: NaiveDateTime) -> String {
    time.and_utc().format("%Y-%m-%dT%H:%M:%S%.f+00:00").to_string()
}

/// oslo.serialization's rendering of a time inside a row: microseconds always, no offset.
fn row_time(time: Option<NaiveDateTime>) -> Value {
    time.map_or(Value::Null, |t| Value::String(t.format("%Y-%m-%dT%H:%M:%S%.6f").to_string()))
}

/// Payload of `volume.*`.
pub fn volume(usage: &VolumeUsage<'_>) -> Value {
    let v = usage.volume;
    let now = Utc::now().naive_utc();
    let status = if v.status == "error_managing_deleting" { "deleting" } else { v.status.as_str() };
    let mut payload = json!({
        "tenant_id": v.project_id,
        "host": v.host,
        "user_id": v.user_id,
        "availability_zone": v.availability_zone,
        "volume_id": v.id,
        "volume_type": v.volume_type_id,
        "display_name": v.display_name,
        "launched_at": iso(v.launched_at.unwrap_or(now)),
        "created_at": iso(v.created_at.unwrap_or(now)),
        "status": status,
        "snapshot_id": v.snapshot_id,
        "size": v.size,
        "replication_status": v.replication_status,
        "replication_extended_status": v.replication_extended_status,
        "replication_driver_data": v.replication_driver_data,
        "metadata": pairs(usage.metadata),
        "volume_attachment": usage.attachments.iter().map(|a| attachment(a, v)).collect::<Vec<_>>(),
    });
    if !usage.glance_metadata.is_empty()
        && let Value::Object(map) = &mut payload
    {
        map.insert("glance_metadata".to_owned(), pairs(usage.glance_metadata));
    }
    payload
}

fn pairs(map: &BTreeMap<String, String>) -> Value {
    map.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

/// A row of `volume_attachment` as it stands in the table (JSON columns as text), with its volume's row.
fn attachment(a: &Attachment, volume: &Volume) -> Value {
    let text = |value: &Option<Value>| value.as_ref().map_or(Value::Null, |v| Value::String(v.to_string()));
    json!({
        "id": a.id,
        "volume_id": a.volume_id,
        "instance_uuid": a.instance_uuid,
        "attached_host": a.attached_host,
        "mountpoint": a.mountpoint,
        "attach_time": row_time(a.attach_time),
        "detach_time": row_time(a.detach_time),
        "attach_status": a.attach_status,
        "attach_mode": a.attach_mode,
        "connection_info": text(&a.connection_info),
        "connector": text(&a.connector),
        "deleted_at": null,
        "deleted": false,
        "created_at": row_time(a.created_at),
        "updated_at": row_time(a.updated_at),
        "volume": row(volume),
    })
}

/// A row of `volumes`.
fn row(v: &Volume) -> Value {
    let mut map = Map::new();
    let mut set = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    set("id", json!(v.id));
    set("_name_id", json!(v.name_id));
    set("use_quota", json!(v.use_quota));
    set("ec2_id", Value::Null);
    set("user_id", json!(v.user_id));
    set("project_id", json!(v.project_id));
    set("snapshot_id", json!(v.snapshot_id));
    set("cluster_name", json!(v.cluster_name));
    set("host", json!(v.host));
    set("size", json!(v.size));
    set("availability_zone", json!(v.availability_zone));
    set("status", json!(v.status));
    set("attach_status", json!(v.attach_status));
    set("migration_status", json!(v.migration_status));
    set("scheduled_at", row_time(v.scheduled_at));
    set("launched_at", row_time(v.launched_at));
    set("terminated_at", row_time(v.terminated_at));
    set("display_name", json!(v.display_name));
    set("display_description", json!(v.display_description));
    set("provider_location", json!(v.provider_location));
    set("provider_auth", json!(v.provider_auth));
    set("provider_geometry", Value::Null);
    set("provider_id", json!(v.provider_id));
    set("volume_type_id", json!(v.volume_type_id));
    set("source_volid", json!(v.source_volid));
    set("encryption_key_id", json!(v.encryption_key_id));
    set("consistencygroup_id", json!(v.consistencygroup_id));
    set("group_id", json!(v.group_id));
    set("bootable", json!(v.bootable));
    set("multiattach", json!(v.multiattach));
    set("replication_status", json!(v.replication_status));
    set("replication_extended_status", json!(v.replication_extended_status));
    set("replication_driver_data", json!(v.replication_driver_data));
    set("previous_status", json!(v.previous_status));
    set("service_uuid", json!(v.service_uuid));
    set("shared_targets", json!(v.shared_targets));
    set("deleted_at", Value::Null);
    set("deleted", json!(false));
    set("created_at", row_time(v.created_at));
    set("updated_at", row_time(v.updated_at));
    Value::Object(map)
}

/// Payload of `snapshot.*`.
pub fn snapshot(usage: &SnapshotUsage<'_>) -> Value {
    let s = usage.snapshot;
    json!({
        "tenant_id": s.project_id,
        "user_id": s.user_id,
        "availability_zone": usage.availability_zone,
        "volume_id": s.volume_id,
        "volume_size": s.volume_size,
        "snapshot_id": s.id,
        "display_name": s.display_name,
        "created_at": iso(s.created_at.unwrap_or_else(|| Utc::now().naive_utc())),
        "status": s.status,
        // `null_safe_str`: anything false in Python becomes the empty text.
        "deleted": if s.deleted { "True" } else { "" },
        "metadata": if s.metadata.is_empty() { String::new() } else { python_dict(&s.metadata) },
    })
}

/// Payload of `group.*`.
pub fn group(g: &Group) -> Value {
    json!({
        "tenant_id": g.project_id,
        "user_id": g.user_id,
        "availability_zone": g.availability_zone,
        "group_id": g.id,
        "group_type": g.group_type_id,
        "name": g.name,
        "created_at": iso(g.created_at.unwrap_or_else(|| Utc::now().naive_utc())),
        "status": g.status,
    })
}

/// Payload of `group_snapshot.*`.
pub fn group_snapshot(g: &GroupSnapshot) -> Value {
    json!({
        "tenant_id": g.project_id,
        "user_id": g.user_id,
        "group_snapshot_id": g.id,
        "name": g.name,
        "group_id": g.group_id,
        "group_type": g.group_type_id,
        "created_at": iso(g.created_at.unwrap_or_else(|| Utc::now().naive_utc())),
        "status": g.status,
    })
}

/// `str()` of a dictionary of strings.
fn python_dict(map: &BTreeMap<String, String>) -> String {
    let items: Vec<_> = map.iter().map(|(k, v)| format!("{}: {}", python_str(k), python_str(v))).collect();
    format!("{{{}}}", items.join(", "))
}

/// `repr()` of a string, for everything printable.
fn python_str(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_metadata_is_a_python_dictionary() {
        let map: BTreeMap<_, _> =
            [("a", "b"), ("it's", "\"both\" it's")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(python_dict(&map), r#"{'a': 'b', "it's": '"both" it\'s'}"#);
    }
}
