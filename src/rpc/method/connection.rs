//! How a host reaches a volume or snapshot, and the end of it.

use serde_json::{Map, Value};

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::WireVolume;

/// `initialize_connection`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct InitializeConnection {
    pub volume: Box<WireVolume>,
    pub connector: Map<String, Value>,
}

/// `terminate_connection`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct TerminateConnection {
    pub volume_id: String,
    /// Null when Nova no longer knows it.
    pub connector: Option<Map<String, Value>>,
    pub force: bool,
}

/// `initialize_connection_snapshot`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct InitializeConnectionSnapshot {
    pub snapshot_id: String,
    pub connector: Map<String, Value>,
}

/// `terminate_connection_snapshot`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct TerminateConnectionSnapshot {
    pub snapshot_id: String,
    pub connector: Option<Map<String, Value>>,
    pub force: bool,
}

pub(crate) fn initialize_connection(args: &mut Args) -> Result<Method> {
    Ok(Method::InitializeConnection(InitializeConnection {
        volume: args.volume("volume")?,
        connector: args.map("connector")?,
    }))
}

pub(crate) fn terminate_connection(args: &mut Args) -> Result<Method> {
    Ok(Method::TerminateConnection(TerminateConnection {
        volume_id: args.text("volume_id")?,
        connector: args.maybe_map("connector")?,
        force: args.flag("force", false)?,
    }))
}

pub(crate) fn remove_export(args: &mut Args) -> Result<Method> {
    Ok(Method::RemoveExport { volume_id: args.text("volume_id")? })
}

pub(crate) fn initialize_connection_snapshot(args: &mut Args) -> Result<Method> {
    Ok(Method::InitializeConnectionSnapshot(InitializeConnectionSnapshot {
        snapshot_id: args.text("snapshot_id")?,
        connector: args.map("connector")?,
    }))
}

pub(crate) fn terminate_connection_snapshot(args: &mut Args) -> Result<Method> {
    Ok(Method::TerminateConnectionSnapshot(TerminateConnectionSnapshot {
        snapshot_id: args.text("snapshot_id")?,
        connector: args.maybe_map("connector")?,
        force: args.flag("force", false)?,
    }))
}

pub(crate) fn remove_export_snapshot(args: &mut Args) -> Result<Method> {
    Ok(Method::RemoveExportSnapshot { snapshot_id: args.text("snapshot_id")? })
}
