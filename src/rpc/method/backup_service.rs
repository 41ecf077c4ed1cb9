//! What the API, the scheduler and cinder-volume ask of the backup service.

use serde_json::Value;

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::{Object, WireBackup};

/// A request to the backup service.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum BackupCall {
    Create {
        backup: WireBackup,
    },
    /// What a volume service answers to cinder-backup's question for a device.
    Continue {
        backup: WireBackup,
    },
    Restore {
        backup: WireBackup,
        volume_id: String,
        /// The target is empty. Not relied on: the target itself tells.
        volume_is_new: bool,
    },
    Delete {
        backup: WireBackup,
    },
    Export {
        backup: WireBackup,
    },
    Import {
        backup_id: String,
        /// The object itself, to be sent on.
        object: Value,
        service: String,
        url: String,
        hosts: Vec<String>,
    },
    ResetStatus {
        backup: WireBackup,
        status: String,
    },
    SupportsForceDelete,
}

impl BackupCall {
    /// The backup that it is about.
    pub fn backup_id(&self) -> Option<&str> {
        match self {
            BackupCall::Create { backup }
            | BackupCall::Continue { backup }
            | BackupCall::Restore { backup, .. }
            | BackupCall::Delete { backup }
            | BackupCall::Export { backup }
            | BackupCall::ResetStatus { backup, .. } => Some(&backup.id),
            BackupCall::Import { backup_id, .. } => Some(backup_id),
            BackupCall::SupportsForceDelete => None,
        }
    }
}

fn backup(args: &mut Args) -> Result<WireBackup> {
    WireBackup::parse(&args.required("backup")?)
}

fn made(call: BackupCall) -> Result<Method> {
    Ok(Method::Backup(Box::new(call)))
}

pub(crate) fn create_backup(args: &mut Args) -> Result<Method> {
    made(BackupCall::Create { backup: backup(args)? })
}

pub(crate) fn continue_backup(args: &mut Args) -> Result<Method> {
    let backup = backup(args)?;
    // Which device it is does not matter: the volume, or the snapshot, is read itself.
    Object::expect(&args.required("backup_device")?, "BackupDeviceInfo")?;
    made(BackupCall::Continue { backup })
}

pub(crate) fn restore_backup(args: &mut Args) -> Result<Method> {
    made(BackupCall::Restore {
        backup: backup(args)?,
        volume_id: args.text("volume_id")?,
        volume_is_new: args.flag("volume_is_new", false)?,
    })
}

pub(crate) fn delete_backup(args: &mut Args) -> Result<Method> {
    made(BackupCall::Delete { backup: backup(args)? })
}

pub(crate) fn export_record(args: &mut Args) -> Result<Method> {
    made(BackupCall::Export { backup: backup(args)? })
}

pub(crate) fn import_record(args: &mut Args) -> Result<Method> {
    let object = Object::expect(&args.required("backup")?, "BackupImport")?;
    made(BackupCall::Import {
        backup_id: object.required("id")?,
        object: object.to_value(),
        service: args.text("backup_service")?,
        url: args.text("backup_url")?,
        hosts: args.texts("backup_hosts")?,
    })
}

pub(crate) fn reset_status(args: &mut Args) -> Result<Method> {
    made(BackupCall::ResetStatus { backup: backup(args)?, status: args.text("status")? })
}

pub(crate) fn check_support_to_force_delete(_: &mut Args) -> Result<Method> {
    made(BackupCall::SupportsForceDelete)
}
