//! Images that exist already, brought under Cinder's management.

use serde_json::{Map, Value};

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::{WireSnapshot, WireVolume};

/// `manage_existing`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ManageExisting {
    pub volume: Box<WireVolume>,
    /// `{"source-name": <image>}`.
    pub reference: Map<String, Value>,
}

/// `manage_existing_snapshot`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ManageExistingSnapshot {
    pub snapshot: Box<WireSnapshot>,
    pub reference: Map<String, Value>,
}

/// A page of a listing.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Page {
    pub marker: Option<Value>,
    pub limit: Option<i64>,
    pub offset: Option<i64>,
    pub sort_keys: Vec<String>,
    pub sort_dirs: Vec<String>,
    /// False for clients pinned below 3.10: plain dictionaries then.
    pub want_objects: bool,
}

fn page(args: &mut Args) -> Result<Page> {
    Ok(Page {
        marker: args.optional("marker"),
        limit: args.maybe_integer("limit")?,
        offset: args.maybe_integer("offset")?,
        sort_keys: args.texts("sort_keys")?,
        sort_dirs: args.texts("sort_dirs")?,
        want_objects: args.flag("want_objects", false)?,
    })
}

pub(crate) fn manage_existing(args: &mut Args) -> Result<Method> {
    Ok(Method::ManageExisting(ManageExisting {
        volume: args.volume("volume")?,
        reference: args.maybe_map("ref")?.unwrap_or_default(),
    }))
}

pub(crate) fn manage_existing_snapshot(args: &mut Args) -> Result<Method> {
    Ok(Method::ManageExistingSnapshot(ManageExistingSnapshot {
        snapshot: args.snapshot("snapshot")?,
        reference: args.maybe_map("ref")?.unwrap_or_default(),
    }))
}

pub(crate) fn get_manageable_volumes(args: &mut Args) -> Result<Method> {
    Ok(Method::GetManageableVolumes(page(args)?))
}

pub(crate) fn get_manageable_snapshots(args: &mut Args) -> Result<Method> {
    Ok(Method::GetManageableSnapshots(page(args)?))
}
