//! The replication of groups is not served yet.
//!
//! The statuses are those that upstream's manager writes when the driver fails: the group becomes `error`,
//! and so do its members.

use super::refuse;
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message, ResourceType};
use crate::db::volume::VolumeChanges;
use crate::error::Result;
use crate::journal::Operation;
use crate::model::{GroupEvent, ReplicationStatus, VolumeEvent};

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
    let message = Message::about(ResourceType::Group, group_id, Action::Unnamed, Detail::UnknownError);
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
