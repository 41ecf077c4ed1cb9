//! A volume and its type.

use std::collections::BTreeMap;

use chrono::NaiveDateTime;

/// A row of `volumes`, as far as cinder-volume reads it. Times are naive UTC, sizes GiB.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Volume {
    pub id: String,
    /// `_name_id`: the id in the image's name when a migration left it under another one.
    pub name_id: Option<String>,
    pub user_id: Option<String>,
    pub project_id: Option<String>,
    /// False for temporary volumes, which count in no quota and notify nobody.
    pub use_quota: bool,
    pub snapshot_id: Option<String>,
    pub source_volid: Option<String>,
    pub cluster_name: Option<String>,
    /// `host@backend#pool`.
    pub host: Option<String>,
    pub size: i32,
    pub availability_zone: Option<String>,
    pub status: String,
    pub attach_status: Option<String>,
    pub migration_status: Option<String>,
    pub previous_status: Option<String>,
    pub scheduled_at: Option<NaiveDateTime>,
    pub launched_at: Option<NaiveDateTime>,
    pub terminated_at: Option<NaiveDateTime>,
    pub created_at: Option<NaiveDateTime>,
    pub updated_at: Option<NaiveDateTime>,
    pub display_name: Option<String>,
    pub display_description: Option<String>,
    pub provider_id: Option<String>,
    pub provider_location: Option<String>,
    pub provider_auth: Option<String>,
    pub volume_type_id: String,
    pub encryption_key_id: Option<String>,
    pub group_id: Option<String>,
    pub consistencygroup_id: Option<String>,
    pub bootable: bool,
    pub multiattach: bool,
    /// See [`super::ReplicationStatus`]; text, because other services write it too.
    pub replication_status: Option<String>,
    pub replication_extended_status: Option<String>,
    pub replication_driver_data: Option<String>,
    pub service_uuid: Option<String>,
    pub shared_targets: Option<bool>,
}

impl Volume {
    /// Id that names the image (`Volume.name_id`).
    pub fn name_id(&self) -> &str {
        self.name_id.as_deref().unwrap_or(&self.id)
    }

    /// True for the destination row of a migration (`migration_status` `target:<id>`).
    pub fn is_migration_target(&self) -> bool {
        self.migration_status.as_deref().is_some_and(|s| s.starts_with("target:"))
    }
}

/// A row of `volume_types` with its extra specs.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct VolumeType {
    pub id: String,
    pub name: String,
    pub qos_specs_id: Option<String>,
    pub extra_specs: BTreeMap<String, String>,
}

impl VolumeType {
    /// `replication_enabled='<is> True'`. The driver upstream compares the string exactly, the rest of
    /// Cinder accepts any boolean word after `<is>` (reference replication.md 3.3); Scoria accepts what
    /// the scheduler accepts.
    pub fn wants_replication(&self) -> bool {
        self.is_true("replication_enabled")
    }

    /// `multiattach='<is> True'`.
    pub fn wants_multiattach(&self) -> bool {
        self.is_true("multiattach")
    }

    fn is_true(&self, key: &str) -> bool {
        self.extra_specs.get(key).and_then(|v| v.trim().strip_prefix("<is>")).is_some_and(|word| {
            // oslo_utils.strutils.bool_from_string
            matches!(word.trim().to_ascii_lowercase().as_str(), "1" | "t" | "true" | "on" | "y" | "yes")
        })
    }
}
