//! `Backup`: read enough to find the row, and handed on untouched (its `parent` drives the name of the
//! base image).

use serde_json::{Map, Value};

use super::Object;
use super::fields::{text_value, time_value};
use crate::error::Result;
use crate::model::Backup;

/// A backup as a message brought it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct WireBackup {
    pub id: String,
    pub volume_id: String,
    pub snapshot_id: Option<String>,
    pub project_id: Option<String>,
    /// Where cinder-backup runs: the answer goes there.
    pub host: Option<String>,
    /// Class path of its driver.
    pub service: Option<String>,
    pub status: String,
    pub temp_volume_id: Option<String>,
    pub temp_snapshot_id: Option<String>,
    /// The object itself, to be sent on.
    pub object: Object,
}

impl WireBackup {
    /// Reads an argument that must be a Backup.
    pub fn parse(value: &Value) -> Result<WireBackup> {
        let o = Object::expect(value, "Backup")?;
        Ok(WireBackup {
            id: o.required("id")?,
            volume_id: o.required("volume_id")?,
            snapshot_id: o.text("snapshot_id")?,
            project_id: o.text("project_id")?,
            host: o.text("host")?,
            service: o.text("service")?,
            status: o.text("status")?.unwrap_or_default(),
            temp_volume_id: o.text("temp_volume_id")?,
            temp_snapshot_id: o.text("temp_snapshot_id")?,
            object: o,
        })
    }

    /// `BackupDeviceInfo`, the answer to an old-style `get_backup_device` call, and what `continue_backup`
    /// carries. Its `snapshot` is absent, not null: the receiver asks which of the two is set.
    pub fn device_info(volume: &Object) -> Result<Object> {
        let mut data = Map::new();
        data.insert("volume".to_owned(), volume.to_value());
        data.insert("secure_enabled".to_owned(), false.into());
        Ok(Object::new("BackupDeviceInfo", data)?.with_changes(&["secure_enabled", "volume"]))
    }
}

/// A Backup with every column and its metadata, as a row that was just read serialises.
pub fn backup_object(b: &Backup) -> Result<Object> {
    let mut data = Map::new();
    let mut set = |field: &str, value: Value| {
        data.insert(field.to_owned(), value);
    };
    set("id", b.id.clone().into());
    set("user_id", text_value(b.user_id.as_deref()));
    set("project_id", text_value(b.project_id.as_deref()));
    set("volume_id", b.volume_id.clone().into());
    set("host", text_value(b.host.as_deref()));
    set("availability_zone", text_value(b.availability_zone.as_deref()));
    set("container", text_value(b.container.as_deref()));
    set("parent_id", text_value(b.parent_id.as_deref()));
    set("status", b.status.clone().into());
    set("fail_reason", text_value(b.fail_reason.as_deref()));
    set("size", b.size.into());
    set("display_name", text_value(b.display_name.as_deref()));
    set("display_description", text_value(b.display_description.as_deref()));
    set("service_metadata", text_value(b.service_metadata.as_deref()));
    set("service", text_value(b.service.as_deref()));
    set("object_count", b.object_count.into());
    set("temp_volume_id", text_value(b.temp_volume_id.as_deref()));
    set("temp_snapshot_id", text_value(b.temp_snapshot_id.as_deref()));
    set("num_dependent_backups", b.num_dependent_backups.into());
    set("snapshot_id", text_value(b.snapshot_id.as_deref()));
    set("data_timestamp", time_value(b.data_timestamp));
    set("restore_volume_id", text_value(b.restore_volume_id.as_deref()));
    set("metadata", b.metadata.iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect());
    set("encryption_key_id", text_value(b.encryption_key_id.as_deref()));
    set("created_at", time_value(b.created_at));
    set("updated_at", time_value(b.updated_at));
    set("deleted_at", Value::Null);
    set("deleted", false.into());
    Object::new("Backup", data)
}
