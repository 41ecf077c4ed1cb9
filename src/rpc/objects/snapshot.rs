//! `Snapshot`.

use serde_json::{Map, Value};

use super::fields::{text_value, time_value};
use super::{Object, WireVolume};
use crate::error::Result;
use crate::model::Snapshot;

/// A snapshot as a message brought it.
#[derive(Debug, Clone, PartialEq)]
pub struct WireSnapshot {
    /// The columns.
    pub snapshot: Snapshot,
    /// Its volume, when loaded. Host and cluster of a snapshot are those of its volume.
    pub volume: Option<Box<WireVolume>>,
    /// The object itself, to be sent on.
    pub object: Object,
}

impl WireSnapshot {
    /// Reads an argument that must be a Snapshot.
    pub fn parse(value: &Value) -> Result<WireSnapshot> {
        let o = Object::expect(value, "Snapshot")?;
        let volume = o.nested("volume", "Volume")?.map(WireVolume::from_object).transpose()?.map(Box::new);
        let snapshot = Snapshot {
            id: o.required("id")?,
            volume_id: o.text("volume_id")?.unwrap_or_default(),
            user_id: o.text("user_id")?,
            project_id: o.text("project_id")?,
            use_quota: o.boolean("use_quota")?.unwrap_or(true),
            status: o.text("status")?.unwrap_or_default(),
            progress: o.text("progress")?,
            volume_size: o.integer("volume_size")?.unwrap_or(0),
            display_name: o.text("display_name")?,
            display_description: o.text("display_description")?,
            created_at: o.time("created_at")?,
            updated_at: o.time("updated_at")?,
            deleted: o.boolean("deleted")?.unwrap_or(false),
            encryption_key_id: o.text("encryption_key_id")?,
            volume_type_id: o.text("volume_type_id")?.unwrap_or_default(),
            group_snapshot_id: o.text("group_snapshot_id")?,
            cgsnapshot_id: o.text("cgsnapshot_id")?,
            provider_location: o.text("provider_location")?,
            metadata: o.strings("metadata")?.unwrap_or_default(),
        };
        Ok(WireSnapshot { snapshot, volume, object: o })
    }
}

/// A Snapshot with every column and its metadata.
pub fn snapshot_object(s: &Snapshot) -> Result<Object> {
    let mut data = Map::new();
    let mut set = |field: &str, value: Value| {
        data.insert(field.to_owned(), value);
    };
    set("id", s.id.clone().into());
    set("user_id", text_value(s.user_id.as_deref()));
    set("project_id", text_value(s.project_id.as_deref()));
    set("use_quota", s.use_quota.into());
    set("volume_id", s.volume_id.clone().into());
    set("cgsnapshot_id", text_value(s.cgsnapshot_id.as_deref()));
    set("group_snapshot_id", text_value(s.group_snapshot_id.as_deref()));
    set("status", s.status.clone().into());
    set("progress", text_value(s.progress.as_deref()));
    set("volume_size", s.volume_size.into());
    set("display_name", text_value(s.display_name.as_deref()));
    set("display_description", text_value(s.display_description.as_deref()));
    set("encryption_key_id", text_value(s.encryption_key_id.as_deref()));
    set("volume_type_id", s.volume_type_id.clone().into());
    set("provider_location", text_value(s.provider_location.as_deref()));
    set("provider_id", Value::Null);
    set("provider_auth", Value::Null);
    set("metadata", s.metadata.iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect());
    set("created_at", time_value(s.created_at));
    set("updated_at", time_value(s.updated_at));
    set("deleted_at", Value::Null);
    set("deleted", s.deleted.into());
    Object::new("Snapshot", data)
}
