//! A backup, as far as cinder-volume has to do with it.

use std::collections::BTreeMap;

use chrono::NaiveDateTime;

/// A row of `backups` with its metadata. Times are naive UTC, sizes GiB.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Backup {
    pub id: String,
    pub user_id: Option<String>,
    pub project_id: Option<String>,
    pub volume_id: String,
    /// Where cinder-backup runs that has made it, or is to restore it.
    pub host: Option<String>,
    pub availability_zone: Option<String>,
    pub container: Option<String>,
    /// The backup that an incremental one continues.
    pub parent_id: Option<String>,
    pub status: String,
    pub fail_reason: Option<String>,
    pub size: i32,
    pub display_name: Option<String>,
    pub display_description: Option<String>,
    pub service_metadata: Option<String>,
    /// Class path of the backup driver.
    pub service: Option<String>,
    pub object_count: i32,
    pub temp_volume_id: Option<String>,
    pub temp_snapshot_id: Option<String>,
    pub num_dependent_backups: i32,
    pub snapshot_id: Option<String>,
    pub data_timestamp: Option<NaiveDateTime>,
    pub restore_volume_id: Option<String>,
    pub encryption_key_id: Option<String>,
    pub created_at: Option<NaiveDateTime>,
    pub updated_at: Option<NaiveDateTime>,
    pub metadata: BTreeMap<String, String>,
}
