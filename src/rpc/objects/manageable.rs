//! `ManageableVolume` and `ManageableSnapshot`: answers of the listing calls, which are plain JSON lists
//! of primitives without `changes` (reference objects.md 6.4).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Object, fields::text_value};
use crate::error::Result;

/// An image that could be managed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ManageableVolume {
    /// `{"source-name": <image>}`.
    pub reference: BTreeMap<String, String>,
    /// GiB.
    pub size: i32,
    /// False when it is managed already or cannot be.
    pub safe_to_manage: bool,
    /// Why not.
    pub reason_not_safe: Option<String>,
    /// The volume that manages it already.
    pub cinder_id: Option<String>,
}

/// A snapshot of an image that could be managed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ManageableSnapshot {
    /// The snapshot.
    pub snapshot: ManageableVolume,
    /// `{"source-name": <image>}` of its image.
    pub source_reference: BTreeMap<String, String>,
}

fn dictionary(map: &BTreeMap<String, String>) -> Value {
    map.iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect()
}

fn common(m: &ManageableVolume) -> Map<String, Value> {
    let mut data = Map::new();
    data.insert("reference".to_owned(), dictionary(&m.reference));
    data.insert("size".to_owned(), m.size.into());
    data.insert("safe_to_manage".to_owned(), m.safe_to_manage.into());
    data.insert("reason_not_safe".to_owned(), text_value(m.reason_not_safe.as_deref()));
    data.insert("cinder_id".to_owned(), text_value(m.cinder_id.as_deref()));
    data.insert("extra_info".to_owned(), Value::Null);
    data
}

/// One element of the answer of `get_manageable_volumes`.
pub fn manageable_volume(m: &ManageableVolume) -> Result<Value> {
    Ok(Object::new("ManageableVolume", common(m))?.to_value())
}

/// One element of the answer of `get_manageable_snapshots`.
pub fn manageable_snapshot(m: &ManageableSnapshot) -> Result<Value> {
    let mut data = common(&m.snapshot);
    data.insert("source_reference".to_owned(), dictionary(&m.source_reference));
    Ok(Object::new("ManageableSnapshot", data)?.to_value())
}
