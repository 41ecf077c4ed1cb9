//! A generic volume group and a snapshot of one.

use chrono::NaiveDateTime;

/// A row of `groups`. Times are naive UTC.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Group {
    pub id: String,
    pub user_id: Option<String>,
    pub project_id: Option<String>,
    pub cluster_name: Option<String>,
    /// `host@backend#pool`.
    pub host: Option<String>,
    pub availability_zone: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub group_type_id: Option<String>,
    pub volume_type_ids: Vec<String>,
    pub status: String,
    pub group_snapshot_id: Option<String>,
    pub source_group_id: Option<String>,
    /// See [`super::ReplicationStatus`].
    pub replication_status: Option<String>,
    pub created_at: Option<NaiveDateTime>,
    pub updated_at: Option<NaiveDateTime>,
}

/// A row of `group_snapshots`.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct GroupSnapshot {
    pub id: String,
    pub group_id: String,
    pub project_id: Option<String>,
    pub user_id: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub status: String,
    pub group_type_id: Option<String>,
    pub created_at: Option<NaiveDateTime>,
}
