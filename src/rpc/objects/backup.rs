//! `Backup`: read enough to find the row, and handed on untouched (its `parent` drives the name of the
//! base image).

use serde_json::{Map, Value};

use super::{Object, fields::text_value};
use crate::error::Result;

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
            status: o.text("status")?.unwrap_or_default(),
            temp_volume_id: o.text("temp_volume_id")?,
            temp_snapshot_id: o.text("temp_snapshot_id")?,
            object: o,
        })
    }

    /// `BackupDeviceInfo`, the answer to an old-style `get_backup_device` call, and what
    /// `continue_backup` carries. Exactly one of `volume` and `snapshot` is given.
    pub fn device_info(volume: Option<&Object>, snapshot: Option<&Object>, secure: bool) -> Result<Object> {
        let mut data = Map::new();
        data.insert("volume".to_owned(), volume.map_or_else(|| text_value(None), Object::to_value));
        data.insert("snapshot".to_owned(), snapshot.map_or_else(|| text_value(None), Object::to_value));
        data.insert("secure_enabled".to_owned(), secure.into());
        Object::new("BackupDeviceInfo", data)
    }
}
