//! Take, delete, and revert to snapshots.

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::{WireSnapshot, WireVolume};

/// `create_snapshot`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct CreateSnapshot {
    pub snapshot: Box<WireSnapshot>,
}

/// `delete_snapshot`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct DeleteSnapshot {
    pub snapshot: Box<WireSnapshot>,
    pub unmanage_only: bool,
}

/// `revert_to_snapshot`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct RevertToSnapshot {
    pub volume: Box<WireVolume>,
    pub snapshot: Box<WireSnapshot>,
}

pub(crate) fn create_snapshot(args: &mut Args) -> Result<Method> {
    Ok(Method::CreateSnapshot(CreateSnapshot { snapshot: args.snapshot("snapshot")? }))
}

pub(crate) fn delete_snapshot(args: &mut Args) -> Result<Method> {
    Ok(Method::DeleteSnapshot(DeleteSnapshot {
        snapshot: args.snapshot("snapshot")?,
        unmanage_only: args.flag("unmanage_only", false)?,
    }))
}

pub(crate) fn revert_to_snapshot(args: &mut Args) -> Result<Method> {
    Ok(Method::RevertToSnapshot(RevertToSnapshot {
        volume: args.volume("volume")?,
        snapshot: args.snapshot("snapshot")?,
    }))
}
