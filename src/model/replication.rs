//! Replication states, and what Scoria remembers of a mirrored image.

use serde::{Deserialize, Serialize};

/// `replication_status` (`cinder/objects/fields.py`, ReplicationStatus).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ReplicationStatus {
    Error,
    Enabled,
    Disabled,
    NotCapable,
    FailingOver,
    FailoverError,
    FailedOver,
    Enabling,
    Disabling,
}

impl ReplicationStatus {
    /// The text in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            ReplicationStatus::Error => "error",
            ReplicationStatus::Enabled => "enabled",
            ReplicationStatus::Disabled => "disabled",
            ReplicationStatus::NotCapable => "not-capable",
            ReplicationStatus::FailingOver => "failing-over",
            ReplicationStatus::FailoverError => "failover-error",
            ReplicationStatus::FailedOver => "failed-over",
            ReplicationStatus::Enabling => "enabling",
            ReplicationStatus::Disabling => "disabling",
        }
    }

    /// Reads a row's text; `None` for a text that Cinder does not know.
    pub fn parse(text: &str) -> Option<Self> {
        [
            ReplicationStatus::Error,
            ReplicationStatus::Enabled,
            ReplicationStatus::Disabled,
            ReplicationStatus::NotCapable,
            ReplicationStatus::FailingOver,
            ReplicationStatus::FailoverError,
            ReplicationStatus::FailedOver,
            ReplicationStatus::Enabling,
            ReplicationStatus::Disabling,
        ]
        .into_iter()
        .find(|s| s.as_str() == text)
    }

    /// Invariant 4: an image with this status is mirrored.
    pub fn means_mirrored(self) -> bool {
        match self {
            ReplicationStatus::Enabled | ReplicationStatus::FailedOver | ReplicationStatus::FailoverError => {
                true
            }
            ReplicationStatus::Error
            | ReplicationStatus::Disabled
            | ReplicationStatus::NotCapable
            | ReplicationStatus::FailingOver
            | ReplicationStatus::Enabling
            | ReplicationStatus::Disabling => false,
        }
    }
}

/// `volumes.replication_driver_data`: which features enabling replication added, so that disabling
/// takes away only those. Upstream writes compact JSON with sorted keys; so do we, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverData {
    /// Exclusive-lock was on before.
    pub had_exclusive_lock: bool,
    /// Journaling was on before.
    pub had_journaling: bool,
}

impl DriverData {
    /// Upstream's text, e.g. `{"had_exclusive_lock":true,"had_journaling":false}`.
    pub fn to_text(self) -> String {
        format!(
            "{{\"had_exclusive_lock\":{},\"had_journaling\":{}}}",
            self.had_exclusive_lock, self.had_journaling
        )
    }

    /// Reads it back; anything unreadable is treated as "nothing was added".
    pub fn parse(text: Option<&str>) -> Self {
        text.and_then(|t| serde_json::from_str(t).ok())
            .unwrap_or(DriverData { had_exclusive_lock: true, had_journaling: true })
    }
}
