//! Volume operations: one file per operation, the same nouns as in `rpc/method`, `db` and `rbd`.
//!
//! Every operation has the same shape. It reads the row again (the message is only its sender's view of
//! it), does its work on Ceph in repeatable steps, and ends with one transaction that changes the status,
//! drops Cinder's `workers` row and closes the journal entry. When it fails, that transaction writes the
//! status that Cinder defines for the failure and a user message instead.

pub mod attach;
pub mod backup_device;
pub mod cleanup;
mod compute;
pub mod connect;
pub mod connection;
pub mod crash;
pub mod create;
pub mod delete;
mod disk_format;
mod encryption;
pub mod extend;
mod from_image;
pub mod frozen;
pub mod group;
mod host_copy;
pub mod image;
pub mod manage;
pub mod manage_snapshot;
pub mod manageable;
pub mod migrate;
pub mod migrated;
mod mode_switch;
mod nova_copy;
mod pool_move;
pub mod reimage;
mod reshape;
mod restore;
pub mod retype;
pub mod revert;
pub mod scratch;
mod setup;
pub mod snapshot;
mod source;
pub mod transfer;
pub mod trash;
pub mod upload;

use crate::config::BackendConfig;
use crate::context::RequestContext;
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::model::{Volume, VolumeEvent, VolumeType};
use crate::rbd::types::MirrorMode;

/// How volumes of a type are mirrored: its extra spec `replication:mode`, else the backend's
/// `rbd_replication_mode`.
///
/// # Errors
/// `InvalidInput` for a mode that does not exist.
pub fn mode_of(config: &BackendConfig, volume_type: &VolumeType) -> Result<MirrorMode> {
    match volume_type.extra_specs.get("replication:mode").map(|m| m.trim().to_ascii_lowercase()) {
        None => Ok(config.replication_mode),
        Some(mode) if mode == "journal" => Ok(MirrorMode::Journal),
        Some(mode) if mode == "snapshot" => Ok(MirrorMode::Snapshot),
        Some(mode) => Err(Error::new(
            Code::InvalidInput,
            format!(
                "Volume type {}: replication:mode is '{mode}'; it must be journal or snapshot",
                volume_type.name
            ),
        )),
    }
}

/// Whose quota a volume counts in: its project's, or that of whoever asks when its row has none.
pub(crate) fn project_of(volume: &Volume, context: &RequestContext) -> String {
    volume.project_id.clone().or_else(|| context.project_id.clone()).unwrap_or_default()
}

/// Writes the status of a failure unless somebody else has changed the row meanwhile: an administrator's
/// reset, or a deletion, is not overwritten by a late failure.
///
/// # Errors
/// `Database`.
pub(crate) async fn transition_if_still(
    conn: &mut Conn,
    id: &str,
    event: VolumeEvent,
    changes: &VolumeChanges,
) -> Result<()> {
    match db::volume::transition(conn, id, event, changes).await {
        Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound) => Ok(()),
        other => other,
    }
}
