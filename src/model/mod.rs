//! The domain: Cinder's resources as Scoria sees them, and the only legal ways their status changes.
//!
//! No I/O, no SQL, no AMQP: this module imports nothing of the rest, so that it can be read and tested
//! alone. Rows (`db`), versioned objects (`rpc`) and Ceph's answers (`rbd`) are converted to these types.

mod attachment;
mod backup;
mod fleet;
mod group;
mod replication;
mod snapshot;
pub mod transition;
mod volume;

pub use attachment::{Attachment, AttachmentDraft};
pub use backup::Backup;
pub use fleet::{Cluster, Scope, Service, Versions, host_part};
pub use group::{Group, GroupSnapshot};
pub use replication::{DriverData, ReplicationStatus};
pub use snapshot::Snapshot;
pub use transition::{BackupEvent, GroupEvent, GroupSnapshotEvent, SnapshotEvent, VolumeEvent};
pub use volume::{Volume, VolumeType};

/// Bytes in Cinder's unit of size.
pub const GIB: u64 = 1 << 30;

/// `host@backend#pool` without `#pool` (`cinder.volume.volume_utils.extract_host`, level backend).
pub fn backend_of(host: &str) -> &str {
    host.split_once('#').map_or(host, |(backend, _)| backend)
}

/// The pool part of `host@backend#pool`.
pub fn pool_of(host: &str) -> Option<&str> {
    host.split_once('#').map(|(_, pool)| pool)
}
