//! Groups, their snapshots, and the replication of groups: nothing of it is served yet.
//!
//! The statuses are those that upstream's manager writes when the driver fails: the group or group
//! snapshot becomes `error`, and so do its members. Quota is not touched: as upstream, what failed counts
//! until it is deleted.

use super::refuse;
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message, ResourceType};
use crate::db::volume::VolumeChanges;
use crate::error::Result;
use crate::journal::Operation;
use crate::model::{GroupEvent, GroupSnapshotEvent, ReplicationStatus, SnapshotEvent, VolumeEvent};

fn about(resource_type: ResourceType, id: &str) -> Message {
    Message::about(resource_type, id, Action::Unnamed, Detail::UnknownError)
}

/// `create_group`: the group becomes `error`.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn create_group(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_id: &str,
) -> Result<()> {
    let message = about(ResourceType::Group, group_id);
    refuse(backend, context, operation, &message, async |conn| {
        db::group::transition(conn, group_id, GroupEvent::CreateFailed, None).await
    })
    .await
}

/// `create_group_from_src`: the group and its new volumes become `error`.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn create_group_from_source(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_id: &str,
) -> Result<()> {
    let message = about(ResourceType::Group, group_id);
    refuse(backend, context, operation, &message, async |conn| {
        let group = db::group::transition(conn, group_id, GroupEvent::CreateFailed, None).await?;
        let none = VolumeChanges::default();
        let volumes =
            db::group::transition_volumes(conn, group_id, VolumeEvent::CreateFailed, None, &none).await?;
        Ok(group || volumes > 0)
    })
    .await
}

/// `delete_group`: the group and those of its volumes that were to be deleted become `error`.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn delete_group(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_id: &str,
) -> Result<()> {
    let message = about(ResourceType::Group, group_id);
    refuse(backend, context, operation, &message, async |conn| {
        let group = db::group::transition(conn, group_id, GroupEvent::DeleteFailed, None).await?;
        let none = VolumeChanges::default();
        let event = VolumeEvent::GroupDeleteFailed;
        let volumes = db::group::transition_volumes(conn, group_id, event, None, &none).await?;
        Ok(group || volumes > 0)
    })
    .await
}

/// `update_group`: the group and the volumes that were to be added or removed become `error`.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn update_group(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_id: &str,
    add_volumes: &[String],
    remove_volumes: &[String],
) -> Result<()> {
    let message = about(ResourceType::Group, group_id);
    refuse(backend, context, operation, &message, async |conn| {
        // The volumes are in steady statuses: they are touched only if the group is still waiting for us.
        if !db::group::transition(conn, group_id, GroupEvent::UpdateFailed, None).await? {
            return Ok(false);
        }
        for ids in [add_volumes, remove_volumes] {
            let none = VolumeChanges::default();
            db::failover::transition_many(conn, ids, VolumeEvent::GroupUpdateFailed, &none).await?;
        }
        Ok(true)
    })
    .await
}

/// `create_group_snapshot`: the group snapshot and its snapshots become `error`.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn create_group_snapshot(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_snapshot_id: &str,
) -> Result<()> {
    let events = (GroupSnapshotEvent::CreateFailed, SnapshotEvent::CreateFailed);
    fail_group_snapshot(backend, context, operation, group_snapshot_id, events).await
}

/// `delete_group_snapshot`: the group snapshot and its snapshots become `error`.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn delete_group_snapshot(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_snapshot_id: &str,
) -> Result<()> {
    let events = (GroupSnapshotEvent::DeleteFailed, SnapshotEvent::GroupDeleteFailed);
    fail_group_snapshot(backend, context, operation, group_snapshot_id, events).await
}

async fn fail_group_snapshot(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
    (whole, member): (GroupSnapshotEvent, SnapshotEvent),
) -> Result<()> {
    let message = about(ResourceType::GroupSnapshot, id);
    refuse(backend, context, operation, &message, async |conn| {
        let group = db::group::transition_snapshot(conn, id, whole).await?;
        let snapshots = db::group::transition_snapshots(conn, id, member).await?;
        Ok(group || snapshots > 0)
    })
    .await
}

/// What was asked of a group's replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum GroupReplication {
    Enable,
    Disable,
    Failover,
}

impl GroupReplication {
    /// The replication status that the API gives the group and its volumes while it waits.
    fn waiting(self) -> ReplicationStatus {
        match self {
            GroupReplication::Enable => ReplicationStatus::Enabling,
            GroupReplication::Disable => ReplicationStatus::Disabling,
            GroupReplication::Failover => ReplicationStatus::FailingOver,
        }
    }
}

/// `enable_replication`, `disable_replication` and `failover_replication`: status and replication status
/// of the group and its volumes become `error`, as upstream does before it raises `ReplicationGroupError`.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn group_replication(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_id: &str,
    request: GroupReplication,
) -> Result<()> {
    let message = about(ResourceType::Group, group_id);
    let waiting = request.waiting().as_str();
    let error = ReplicationStatus::Error;
    let changes = VolumeChanges {
        replication_status: Some(Some(error.as_str().to_owned())),
        ..VolumeChanges::default()
    };
    refuse(backend, context, operation, &message, async |conn| {
        let group = db::group::lock(conn, group_id).await?;
        let found = group.is_some_and(|g| g.replication_status.as_deref() == Some(waiting));
        if found {
            db::group::transition(conn, group_id, GroupEvent::ReplicationFailed, Some(error)).await?;
        }
        let event = VolumeEvent::GroupReplicationFailed;
        let volumes = db::group::transition_volumes(conn, group_id, event, Some(waiting), &changes).await?;
        Ok(found || volumes > 0)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_waits_in_the_status_that_the_api_gave_it() {
        let waiting = |request: GroupReplication| request.waiting().as_str();
        assert_eq!(waiting(GroupReplication::Enable), "enabling");
        assert_eq!(waiting(GroupReplication::Disable), "disabling");
        assert_eq!(waiting(GroupReplication::Failover), "failing-over");
    }
}
