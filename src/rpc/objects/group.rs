//! `Group` and `GroupSnapshot`.

use serde_json::Value;

use super::Object;
use crate::error::Result;
use crate::model::{Group, GroupSnapshot};

/// A group as a message brought it.
#[derive(Debug, Clone, PartialEq)]
pub struct WireGroup {
    /// The columns.
    pub group: Group,
    /// The object itself, to be sent on.
    pub object: Object,
}

impl WireGroup {
    /// Reads an argument that must be a Group.
    pub fn parse(value: &Value) -> Result<WireGroup> {
        let o = Object::expect(value, "Group")?;
        let group = Group {
            id: o.required("id")?,
            user_id: o.text("user_id")?,
            project_id: o.text("project_id")?,
            cluster_name: o.text("cluster_name")?,
            host: o.text("host")?,
            availability_zone: o.text("availability_zone")?,
            name: o.text("name")?,
            description: o.text("description")?,
            group_type_id: o.text("group_type_id")?,
            volume_type_ids: o.texts("volume_type_ids")?.unwrap_or_default(),
            status: o.text("status")?.unwrap_or_default(),
            group_snapshot_id: o.text("group_snapshot_id")?,
            source_group_id: o.text("source_group_id")?,
            replication_status: o.text("replication_status")?,
            created_at: o.time("created_at")?,
            updated_at: o.time("updated_at")?,
        };
        Ok(WireGroup { group, object: o })
    }
}

/// A group snapshot as a message brought it.
#[derive(Debug, Clone, PartialEq)]
pub struct WireGroupSnapshot {
    /// The columns.
    pub group_snapshot: GroupSnapshot,
    /// The object itself, to be sent on.
    pub object: Object,
}

impl WireGroupSnapshot {
    /// Reads an argument that must be a GroupSnapshot.
    pub fn parse(value: &Value) -> Result<WireGroupSnapshot> {
        let o = Object::expect(value, "GroupSnapshot")?;
        let group_snapshot = GroupSnapshot {
            id: o.required("id")?,
            group_id: o.text("group_id")?.unwrap_or_default(),
            project_id: o.text("project_id")?,
            user_id: o.text("user_id")?,
            name: o.text("name")?,
            description: o.text("description")?,
            status: o.text("status")?.unwrap_or_default(),
            group_type_id: o.text("group_type_id")?,
            created_at: o.time("created_at")?,
        };
        Ok(WireGroupSnapshot { group_snapshot, object: o })
    }
}
