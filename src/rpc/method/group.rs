//! Generic volume groups and their snapshots.

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::{WireGroup, WireGroupSnapshot};

/// `update_group`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct UpdateGroup {
    pub group: Box<WireGroup>,
    pub add_volumes: Vec<String>,
    pub remove_volumes: Vec<String>,
}

/// `create_group_from_src`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct CreateGroupFromSource {
    pub group: Box<WireGroup>,
    pub group_snapshot: Option<Box<WireGroupSnapshot>>,
    pub source_group: Option<Box<WireGroup>>,
}

/// Ids travel joined by commas; null and the empty text are none.
fn ids(text: Option<String>) -> Vec<String> {
    text.iter()
        .flat_map(|t| t.split(','))
        .map(str::trim)
        .filter(|t| !t.is_empty())
        .map(str::to_owned)
        .collect()
}

pub(crate) fn create_group(args: &mut Args) -> Result<Method> {
    Ok(Method::CreateGroup { group: args.group("group")? })
}

pub(crate) fn delete_group(args: &mut Args) -> Result<Method> {
    Ok(Method::DeleteGroup { group: args.group("group")? })
}

pub(crate) fn update_group(args: &mut Args) -> Result<Method> {
    Ok(Method::UpdateGroup(UpdateGroup {
        group: args.group("group")?,
        add_volumes: ids(args.maybe_text("add_volumes")?),
        remove_volumes: ids(args.maybe_text("remove_volumes")?),
    }))
}

pub(crate) fn create_group_from_src(args: &mut Args) -> Result<Method> {
    Ok(Method::CreateGroupFromSource(CreateGroupFromSource {
        group: args.group("group")?,
        group_snapshot: args.maybe_group_snapshot("group_snapshot")?,
        source_group: args.maybe_group("source_group")?,
    }))
}

pub(crate) fn create_group_snapshot(args: &mut Args) -> Result<Method> {
    Ok(Method::CreateGroupSnapshot { group_snapshot: args.group_snapshot("group_snapshot")? })
}

pub(crate) fn delete_group_snapshot(args: &mut Args) -> Result<Method> {
    Ok(Method::DeleteGroupSnapshot { group_snapshot: args.group_snapshot("group_snapshot")? })
}
