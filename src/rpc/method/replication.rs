//! Failover of a backend, and replication of groups.

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::WireGroup;

/// `failover_replication` of a group.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct FailoverReplication {
    pub group: Box<WireGroup>,
    pub allow_attached_volume: bool,
    /// Null: the first target; `default`: failback.
    pub secondary_backend_id: Option<String>,
}

pub(crate) fn failover(args: &mut Args) -> Result<Method> {
    Ok(Method::Failover { secondary_backend_id: args.maybe_text("secondary_backend_id")? })
}

pub(crate) fn failover_completed(args: &mut Args) -> Result<Method> {
    Ok(Method::FailoverCompleted { updates: args.map("updates")? })
}

pub(crate) fn freeze_host(_: &mut Args) -> Result<Method> {
    Ok(Method::FreezeHost)
}

pub(crate) fn thaw_host(_: &mut Args) -> Result<Method> {
    Ok(Method::ThawHost)
}

pub(crate) fn enable_replication(args: &mut Args) -> Result<Method> {
    Ok(Method::EnableReplication { group: args.group("group")? })
}

pub(crate) fn disable_replication(args: &mut Args) -> Result<Method> {
    Ok(Method::DisableReplication { group: args.group("group")? })
}

pub(crate) fn failover_replication(args: &mut Args) -> Result<Method> {
    Ok(Method::FailoverReplication(FailoverReplication {
        group: args.group("group")?,
        allow_attached_volume: args.flag("allow_attached_volume", false)?,
        secondary_backend_id: args.maybe_text("secondary_backend_id")?,
    }))
}

pub(crate) fn list_replication_targets(args: &mut Args) -> Result<Method> {
    Ok(Method::ListReplicationTargets { group: args.group("group")? })
}
