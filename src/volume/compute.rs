//! What servers must hear of their volumes.
//!
//! A volume that grows, or gets other content, under a running server is of no use to it before nova has told
//! the hypervisor. The volume itself is right by then, so a nova that cannot be told fails nothing: the user
//! gets a message, the operator one line in the log.

use tracing::{error, info};

use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::error::{Code, Result};
use crate::openstack::nova::VolumeEvent;

/// The servers that have the volume. An attachment without one is a host's, or Glance's store in Cinder.
///
/// # Errors
/// `Database`.
pub(super) async fn servers(backend: &Backend, volume_id: &str) -> Result<Vec<String>> {
    let attachments = backend
        .db
        .read("servers of a volume", async |conn| db::attachment::list_for_volume(conn, volume_id).await)
        .await?;
    let mut servers: Vec<String> =
        attachments.into_iter().filter_map(|a| a.instance_uuid).filter(|id| !id.is_empty()).collect();
    servers.sort();
    servers.dedup();
    Ok(servers)
}

/// Tells nova; may be repeated. Answers what the user must be told when that failed. Where there is no nova at
/// all, no user waits for one.
pub(super) async fn tell(
    backend: &Backend,
    context: &RequestContext,
    event: VolumeEvent,
    volume_id: &str,
    servers: &[String],
) -> Option<Message> {
    let nova = &backend.globals.openstack.nova;
    let told = Box::pin(nova.volume_changed(context, event, volume_id, servers)).await;
    let (action, detail) = match event {
        VolumeEvent::Extended => (Action::ExtendVolume, Detail::NotifyComputeServiceFailed),
        VolumeEvent::Reimaged => (Action::ReimageVolume, Detail::ReimageVolumeFailed),
    };
    match told {
        Ok(()) => {
            info!(volume.id = volume_id, event = event.name(), servers = servers.len(), "nova was told");
            None
        }
        Err(failure) => {
            error!(volume.id = volume_id, event = event.name(), error = %failure, "nova was not told");
            (failure.code() != Code::NoEndpoint).then(|| Message::volume(volume_id, action, detail))
        }
    }
}
