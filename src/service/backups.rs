//! What cinder-backup asks, handed to what provides it.

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::{Error, Result};
use crate::journal::{Operation, Outcome};
use crate::rpc::method::GetBackupDevice;
use crate::rpc::objects::{WireBackup, volume_object};
use crate::volume::backup_device::{self, BackupDevice};

fn request(a: &GetBackupDevice, operation: &Operation) -> BackupDevice {
    BackupDevice {
        backup_id: a.backup.id.clone(),
        volume_id: a.backup.volume_id.clone(),
        snapshot_id: a.backup.snapshot_id.clone(),
        driver: a.backup.service.clone(),
        host: a.backup.host.clone(),
        backup: a.backup.object.to_value(),
        // Without the flag a cast would be answered to nobody.
        is_cast: a.async_call || operation.reply_to().is_none(),
    }
}

/// `get_backup_device`: answers the device to who waits for it.
///
/// # Errors
/// What the caller is to hear; for a cast only when nothing could be recorded.
pub(super) async fn get_device(
    b: &Backend,
    c: &RequestContext,
    o: &Operation,
    a: &GetBackupDevice,
) -> Result<Value> {
    let Some(device) = Box::pin(backup_device::provide(b, c, o, request(a, o))).await? else {
        return Ok(Value::Null);
    };
    let volume = volume_object(&device)?;
    if a.want_objects {
        return Ok(WireBackup::device_info(&volume)?.to_value());
    }
    Ok(json!({"backup_device": volume.to_value(), "secure_enabled": false, "is_snapshot": false}))
}

/// The same, failed by a defect.
///
/// # Errors
/// As [`get_device`].
pub(super) async fn give_up(
    b: &Backend,
    c: &RequestContext,
    o: &Operation,
    a: &GetBackupDevice,
    failure: Error,
) -> Result<()> {
    Box::pin(backup_device::give_up(b, c, o, request(a, o), failure)).await
}

/// The same, whose caller has stopped waiting.
///
/// # Errors
/// `Cancelled`; `Database`.
pub(super) async fn roll_back(
    b: &Backend,
    o: &Operation,
    a: &GetBackupDevice,
    outcome: &Outcome,
) -> Result<()> {
    Box::pin(backup_device::roll_back(b, o, &request(a, o), outcome)).await
}
