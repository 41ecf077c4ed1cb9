//! What cinder-backup asks of the volume service.

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::WireBackup;

/// `get_backup_device`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct GetBackupDevice {
    pub backup: Box<WireBackup>,
    /// Absent before 3.2: a plain dictionary is the answer then.
    pub want_objects: bool,
    /// Since 3.17: the answer is a cast `continue_backup` to cinder-backup.
    pub async_call: bool,
}

pub(crate) fn get_backup_device(args: &mut Args) -> Result<Method> {
    Ok(Method::GetBackupDevice(GetBackupDevice {
        backup: Box::new(WireBackup::parse(&args.required("backup")?)?),
        want_objects: args.flag("want_objects", false)?,
        async_call: args.flag("async_call", false)?,
    }))
}
