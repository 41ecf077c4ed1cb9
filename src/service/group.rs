//! From the requests about groups to the operations that serve them.

use futures::future::BoxFuture;

use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::{Error, Result};
use crate::journal::Operation;
use crate::replication::group::{self as replication, Wish};
use crate::replication::intent::Intent;
use crate::rpc::Method;
use crate::rpc::method::UpdateGroup;
use crate::volume::group::{self, Failed, FromSource, Update};

fn update(request: &UpdateGroup) -> Update {
    Update {
        group_id: request.group.group.id.clone(),
        add_volumes: request.add_volumes.clone(),
        remove_volumes: request.remove_volumes.clone(),
    }
}

/// Carries the request out. `method` is one about groups; any other is a defect.
///
/// # Errors
/// Only when nothing could be recorded.
// Boxed: the futures of these operations are big, and the caller's would hold all of them.
pub(super) fn run<'a>(
    backend: &'a Backend,
    context: &'a RequestContext,
    operation: &'a Operation,
    method: &'a Method,
) -> BoxFuture<'a, Result<()>> {
    let (b, c, o) = (backend, context, operation);
    match method {
        Method::CreateGroup { group } => Box::pin(group::create(b, c, o, &group.group.id)),
        Method::CreateGroupFromSource(a) => {
            let request = FromSource {
                group_id: a.group.group.id.clone(),
                group_snapshot_id: a.group_snapshot.as_ref().map(|s| s.group_snapshot.id.clone()),
                source_group_id: a.source_group.as_ref().map(|g| g.group.id.clone()),
            };
            Box::pin(group::create_from_source(b, c, o, request))
        }
        Method::UpdateGroup(a) => Box::pin(group::update(b, c, o, update(a))),
        Method::DeleteGroup { group } => Box::pin(group::delete(b, c, o, &group.group.id)),
        Method::CreateGroupSnapshot { group_snapshot: s } => {
            Box::pin(group::create_snapshot(b, c, o, &s.group_snapshot.id))
        }
        Method::DeleteGroupSnapshot { group_snapshot: s } => {
            Box::pin(group::delete_snapshot(b, c, o, &s.group_snapshot.id))
        }
        Method::EnableReplication { group } => Box::pin(replication::enable(b, c, o, &group.group.id)),
        Method::DisableReplication { group } => Box::pin(replication::disable(b, c, o, &group.group.id)),
        Method::FailoverReplication(a) => {
            let request = replication::Failover {
                group_id: a.group.group.id.clone(),
                allow_attached: a.allow_attached_volume,
                target: a.secondary_backend_id.clone(),
                intent: Intent::Automatic,
            };
            Box::pin(replication::failover(b, c, o, request))
        }
        _ => Box::pin(async { Err(Error::internal("This request is not about a group")) }),
    }
}

/// Ends the request as failed without another try, wherever it was interrupted by a defect.
///
/// # Errors
/// Only when nothing could be recorded.
pub(super) async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    method: &Method,
    failure: Error,
) -> Result<()> {
    let failed = match method {
        Method::CreateGroup { group } => Failed::Create(group.group.id.clone()),
        Method::CreateGroupFromSource(a) => Failed::CreateFromSource(a.group.group.id.clone()),
        Method::UpdateGroup(a) => Failed::Update(update(a)),
        Method::DeleteGroup { group } => Failed::Delete { id: group.group.id.clone(), busy: Vec::new() },
        Method::CreateGroupSnapshot { group_snapshot: s } => {
            Failed::CreateSnapshot(s.group_snapshot.id.clone())
        }
        Method::DeleteGroupSnapshot { group_snapshot: s } => {
            Failed::DeleteSnapshot { id: s.group_snapshot.id.clone(), busy: Vec::new() }
        }
        Method::EnableReplication { group } => {
            return replication::give_up(backend, context, operation, &group.group.id, Wish::Enable, failure)
                .await;
        }
        Method::DisableReplication { group } => {
            return replication::give_up(
                backend,
                context,
                operation,
                &group.group.id,
                Wish::Disable,
                failure,
            )
            .await;
        }
        Method::FailoverReplication(a) => {
            let id = &a.group.group.id;
            return replication::give_up(backend, context, operation, id, Wish::Failover, failure).await;
        }
        _ => return Err(failure),
    };
    group::give_up(backend, context, operation, failed, failure).await
}
