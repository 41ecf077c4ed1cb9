//! Cinder's versioned objects as they travel in messages.
//!
//! An object is a snapshot of its sender's view, and its sender may be a release older or newer than
//! the one Scoria was written for. So [`Object`] keeps every field as received, telling an absent field
//! (never loaded by the sender) from a null one, and the typed readers in this directory pick what
//! Scoria needs out of it. What is sent on (to the scheduler, to cinder-backup) is the object as it
//! came, with the few fields that changed. Reference: objects.md; `oslo_versionedobjects/base.py`.

mod attachment;
mod backup;
mod fields;
mod group;
mod manageable;
mod request_spec;
mod service;
mod snapshot;
mod volume;

use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};

pub use attachment::{attachment_object, read_attachment};
pub use backup::{WireBackup, backup_object};
pub use fields::parse_time;
pub use group::{WireGroup, WireGroupSnapshot};
pub use manageable::{ManageableSnapshot, ManageableVolume, manageable_snapshot, manageable_volume};
pub use request_spec::RequestSpec;
pub use service::{CleanupRequest, LogLevel, log_level_list};
pub use snapshot::{WireSnapshot, snapshot_object};
pub use volume::{WireVolume, volume_object};

const NAME: &str = "versioned_object.name";
const NAMESPACE: &str = "versioned_object.namespace";
const VERSION: &str = "versioned_object.version";
const DATA: &str = "versioned_object.data";
const CHANGES: &str = "versioned_object.changes";

/// How deep arguments may nest. Python's own parser gives up near 1000; a stack must not overflow here.
const MAX_DEPTH: usize = 100;

/// The newest version of every object that Cinder 29 knows (`cinder/objects/base.py`, history 1.39).
const HISTORY: &[(&str, u32, u32)] = &[
    ("Backup", 1, 7),
    ("BackupDeviceInfo", 1, 0),
    ("BackupImport", 1, 7),
    ("BackupList", 1, 0),
    ("CGSnapshot", 1, 1),
    ("CGSnapshotList", 1, 0),
    ("CleanupRequest", 1, 0),
    ("Cluster", 1, 1),
    ("ClusterList", 1, 0),
    ("ConsistencyGroup", 1, 4),
    ("ConsistencyGroupList", 1, 1),
    ("Group", 1, 2),
    ("GroupList", 1, 0),
    ("GroupSnapshot", 1, 0),
    ("GroupSnapshotList", 1, 0),
    ("GroupType", 1, 0),
    ("GroupTypeList", 1, 0),
    ("LogLevel", 1, 0),
    ("LogLevelList", 1, 0),
    ("ManageableSnapshot", 1, 0),
    ("ManageableSnapshotList", 1, 0),
    ("ManageableVolume", 1, 0),
    ("ManageableVolumeList", 1, 0),
    ("QualityOfServiceSpecs", 1, 0),
    ("QualityOfServiceSpecsList", 1, 0),
    ("RequestSpec", 1, 5),
    ("Service", 1, 6),
    ("ServiceList", 1, 1),
    ("Snapshot", 1, 6),
    ("SnapshotList", 1, 0),
    ("Volume", 1, 9),
    ("VolumeAttachment", 1, 3),
    ("VolumeAttachmentList", 1, 1),
    ("VolumeList", 1, 1),
    ("VolumeProperties", 1, 1),
    ("VolumeType", 1, 3),
    ("VolumeTypeList", 1, 1),
];

/// The two aggregated versions that a deployment may be pinned to. A peer pinned to 1.38 gets Volume 1.8
/// and Snapshot 1.5; Cinder only relabels, the newer field stays (reference objects.md 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pin {
    /// Cinder 28 and older.
    V1_38,
    /// Cinder 29.
    #[default]
    V1_39,
}

impl Pin {
    /// As in `services.object_current_version`.
    pub fn as_str(self) -> &'static str {
        match self {
            Pin::V1_38 => "1.38",
            Pin::V1_39 => "1.39",
        }
    }
}

fn newest(name: &str) -> Option<(u32, u32)> {
    HISTORY.iter().find(|(n, ..)| *n == name).map(|(_, major, minor)| (*major, *minor))
}

fn newest_for(name: &str, pin: Pin) -> Option<(u32, u32)> {
    match (name, pin) {
        ("Volume", Pin::V1_38) => Some((1, 8)),
        ("Snapshot", Pin::V1_38) => Some((1, 5)),
        _ => newest(name),
    }
}

/// A versioned object: its class, its version, and the fields that its sender had set.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    name: String,
    version: (u32, u32),
    data: Map<String, Value>,
    changes: Option<Vec<Value>>,
}

impl Object {
    /// An object of the newest version that Scoria sends.
    pub fn new(name: &str, data: Map<String, Value>) -> Result<Object> {
        let version = newest(name).ok_or_else(|| unsupported(name))?;
        Ok(Object { name: name.to_owned(), version, data, changes: None })
    }

    /// True for a value in an object's primitive form.
    pub fn is_object(value: &Value) -> bool {
        value.get(NAME).is_some()
    }

    /// Reads one object, whatever its class.
    ///
    /// # Errors
    /// [`Code::IncompatibleObject`] when it is newer than we know; [`Code::UnsupportedObject`] when it is of
    /// another project or class; [`Code::InvalidValue`] when it is no object at all.
    pub fn parse(value: &Value) -> Result<Object> {
        let Some(map) = value.as_object() else {
            return Err(Error::new(Code::InvalidValue, "Expected a versioned object"));
        };
        let (name, version) = identify(map)?;
        let data = match map.get(DATA) {
            Some(Value::Object(data)) => data.clone(),
            Some(_) => {
                return Err(Error::new(Code::InvalidValue, format!("{name} has data that is no object")));
            }
            None => Map::new(),
        };
        let changes = map.get(CHANGES).and_then(Value::as_array).cloned();
        Ok(Object { name: name.to_owned(), version, data, changes })
    }

    /// Reads one object that must be of class `name`.
    pub fn expect(value: &Value, name: &str) -> Result<Object> {
        let object = Object::parse(value)?;
        if object.name == name {
            Ok(object)
        } else {
            Err(Error::new(Code::InvalidValue, format!("Expected a {name}, got a {}", object.name)))
        }
    }

    /// The class, such as `Volume`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Major and minor version, as received.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// A field as received: `None` when the sender had not set it, which is not the same as null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.data.get(field)
    }

    /// Sets a field in what will be sent on. It is not listed as changed: whoever receives it must
    /// not write it to the database again.
    pub fn set(&mut self, field: &str, value: Value) {
        self.data.insert(field.to_owned(), value);
    }

    /// Every field that is set.
    pub fn data(&self) -> &Map<String, Value> {
        &self.data
    }

    /// Marks fields as changed, as a freshly built object of Python has them.
    #[must_use]
    pub fn with_changes(mut self, fields: &[&str]) -> Object {
        self.changes = Some(fields.iter().map(|f| Value::String((*f).to_owned())).collect());
        self
    }

    /// Back to the form on the wire.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        map.insert(NAME.to_owned(), Value::String(self.name.clone()));
        map.insert(NAMESPACE.to_owned(), Value::String("cinder".to_owned()));
        map.insert(VERSION.to_owned(), Value::String(format!("{}.{}", self.version.0, self.version.1)));
        map.insert(DATA.to_owned(), Value::Object(self.data.clone()));
        if let Some(changes) = &self.changes {
            map.insert(CHANGES.to_owned(), Value::Array(changes.clone()));
        }
        Value::Object(map)
    }
}

/// Class and version of a primitive, checked against what we know.
fn identify(map: &Map<String, Value>) -> Result<(&str, (u32, u32))> {
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    let Some(name) = text(NAME) else {
        return Err(Error::new(Code::InvalidValue, "Expected a versioned object"));
    };
    let Some((major, minor)) = newest(name) else {
        return Err(unsupported(name));
    };
    if text(NAMESPACE) != Some("cinder") {
        return Err(unsupported(name));
    }
    let version = text(VERSION).unwrap_or_default();
    match parse_version(version) {
        Some(v) if v.0 == major && v.1 <= minor => Ok((name, v)),
        _ => Err(Error::new(
            Code::IncompatibleObject,
            format!("Version {version} of {name} is not supported, supported version is {major}.{minor}"),
        )),
    }
}

fn unsupported(name: &str) -> Error {
    Error::new(Code::UnsupportedObject, format!("Unsupported object type {name}"))
}

/// `1.9`, or `1.9.2` whose third component is a back-port that changes nothing for the reader.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    match (parts.next(), parts.next()) {
        (None, _) => Some((major, minor)),
        (Some(patch), None) if patch.parse::<u32>().is_ok() => Some((major, minor)),
        _ => None,
    }
}

/// Checks every object inside `value`, however deep: Cinder's serializer refuses a whole message for one
/// object that is too new, before the method sees it.
pub fn check(value: &Value) -> Result<()> {
    walk(value, 0)
}

fn walk(value: &Value, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::new(Code::InvalidValue, "Arguments are nested too deep"));
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|v| walk(v, depth + 1)),
        Value::Object(map) => {
            if map.contains_key(NAME) {
                identify(map)?;
            }
            map.values().try_for_each(|v| walk(v, depth + 1))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// Lowers the version label of every object in `value` to what peers pinned to `pin` accept.
/// Objects are never raised: they keep the version with which they came.
pub fn relabel(value: &mut Value, pin: Pin) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|v| relabel(v, pin)),
        Value::Object(map) => {
            let limit = map.get(NAME).and_then(Value::as_str).and_then(|name| newest_for(name, pin));
            if let Some((major, minor)) = limit
                && let Some(Value::String(version)) = map.get_mut(VERSION)
                && parse_version(version).is_none_or(|v| v > (major, minor))
            {
                *version = format!("{major}.{minor}");
            }
            map.values_mut().for_each(|v| relabel(v, pin));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn volume(version: &str) -> Value {
        json!({NAME: "Volume", NAMESPACE: "cinder", VERSION: version, DATA: {"id": "v1", "size": 1}})
    }

    #[test]
    fn both_pins_are_accepted_and_newer_versions_are_not() {
        for good in ["1.9", "1.8", "1.0", "1.9.3"] {
            assert!(Object::parse(&volume(good)).is_ok(), "{good}");
        }
        for bad in ["1.10", "2.0", "0.9", "", "x", "1", "1.9.3.4"] {
            let error = Object::parse(&volume(bad)).expect_err(bad);
            assert_eq!(error.code(), Code::IncompatibleObject, "{bad}");
        }
    }

    #[test]
    fn an_object_too_new_is_found_however_deep_it_hides() {
        assert!(check(&json!({"a": [{"b": volume("1.9")}]})).is_ok());
        let error = check(&json!({"a": [{"b": volume("1.10")}]})).unwrap_err();
        assert_eq!(error.user(), "Version 1.10 of Volume is not supported, supported version is 1.9");
        let other = json!({NAME: "Instance", NAMESPACE: "nova", VERSION: "1.0", DATA: {}});
        assert_eq!(check(&other).unwrap_err().code(), Code::UnsupportedObject);
    }

    #[test]
    fn nesting_without_end_is_an_error_and_no_stack_overflow() {
        let mut value = Value::Null;
        for _ in 0..MAX_DEPTH + 2 {
            value = Value::Array(vec![value]);
        }
        assert_eq!(check(&value).unwrap_err().code(), Code::InvalidValue);
    }

    #[test]
    fn a_round_trip_keeps_fields_and_changes() {
        let mut value = volume("1.8");
        value[CHANGES] = json!(["size"]);
        assert_eq!(Object::parse(&value).unwrap().to_value(), value);
    }

    #[test]
    fn peers_pinned_to_an_older_history_get_older_labels() {
        let mut value = json!({"volume": volume("1.9"), "type":
            {NAME: "VolumeType", NAMESPACE: "cinder", VERSION: "1.3", DATA: {}}});
        relabel(&mut value, Pin::V1_38);
        assert_eq!(value["volume"][VERSION], "1.8");
        assert_eq!(value["type"][VERSION], "1.3");
        relabel(&mut value, Pin::V1_39);
        assert_eq!(value["volume"][VERSION], "1.8", "a label is never raised");
    }
}
