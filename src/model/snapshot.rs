//! A snapshot of a volume.

use std::collections::BTreeMap;

use chrono::NaiveDateTime;

/// A row of `snapshots` with its metadata. Times are naive UTC, sizes GiB.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Snapshot {
    pub id: String,
    pub volume_id: String,
    pub user_id: Option<String>,
    pub project_id: Option<String>,
    pub use_quota: bool,
    pub status: String,
    pub progress: Option<String>,
    pub volume_size: i32,
    pub display_name: Option<String>,
    pub display_description: Option<String>,
    pub created_at: Option<NaiveDateTime>,
    pub updated_at: Option<NaiveDateTime>,
    pub deleted: bool,
    pub encryption_key_id: Option<String>,
    pub volume_type_id: String,
    pub group_snapshot_id: Option<String>,
    pub cgsnapshot_id: Option<String>,
    pub provider_location: Option<String>,
    pub metadata: BTreeMap<String, String>,
}
