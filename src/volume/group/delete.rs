//! `delete_group`: the volumes first, each for good, and then the group.

use std::time::Duration;

use futures::FutureExt;
use tracing::{info, warn};

use super::{AT_ONCE, Failed, at_once, give_up, is_unfinished, read, tell, tell_volume};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::quota::{self, Release};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::{Group, Volume};
use crate::volume::delete::{delete_with_group, is_ours, quota_or_log};
use crate::volume::{crash, frozen};

/// How long a group outlives its volumes. A detailed listing of volumes asks for the group of each, one after the
/// other, and cinder-api answers the whole of it with 404 when one is gone: whoever lists volumes while a group
/// is deleted has read rows of volumes that, a moment later, belong to no group. Stock is slow enough for most
/// listings to be over.
const LISTING: Duration = Duration::from_secs(2);

/// Deletes the group and its volumes. One that is gone already is a success.
///
/// # Errors
/// Only when nothing could be recorded, or when somebody else goes on with it.
pub async fn delete(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
) -> Result<()> {
    let _passage = backend.gate.pass().await;
    let Some((group, volumes)) = read(backend, id).await? else {
        return backend.journal.finish(operation, &backend.done()).await;
    };
    crash::point("delete_group:accepted");
    let failed = |busy| Failed::Delete { id: id.to_owned(), busy };
    if let Err(refusal) = check(backend, &volumes) {
        return give_up(backend, context, operation, failed(Vec::new()), refusal).await;
    }
    if let Err(refusal) = frozen::refuse(backend).await {
        let whole = frozen::left_whole(&refusal, operation);
        let kept = if whole { volumes.iter().map(|v| v.id.clone()).collect() } else { Vec::new() };
        return give_up(backend, context, operation, failed(kept), refusal).await;
    }
    tell(backend, context, "delete.start", &group, &volumes).await;
    if let Err(failure) = backend.require_up() {
        return give_up(backend, context, operation, failed(Vec::new()), failure).await;
    }
    match remove(backend, context, operation, &volumes).await? {
        None => {
            if !volumes.is_empty() {
                tokio::time::sleep(LISTING).await;
            }
            forget(backend, context, operation, &group).await
        }
        Some((failure, busy)) => give_up(backend, context, operation, failed(busy), failure).await,
    }
}

/// Nothing is begun when one of the volumes may not go.
fn check(backend: &Backend, volumes: &[Volume]) -> Result<()> {
    for volume in volumes {
        if volume.attach_status.as_deref() == Some("attached") {
            return Err(Error::new(
                Code::VolumeAttached,
                format!("Volume {} is still attached, detach volume first.", volume.id),
            ));
        }
        if !is_ours(backend, volume) {
            return Err(Error::new(Code::Invalid, format!("Volume {} is not local to this node", volume.id)));
        }
    }
    Ok(())
}

/// Deletes all volumes that can be deleted; answers the first failure, and which volumes are in use.
async fn remove(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volumes: &[Volume],
) -> Result<Option<(Error, Vec<String>)>> {
    // What the last notifications tell must be read while the rows are there.
    let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
    let usages = backend
        .db
        .read("usage of volumes", async |conn| db::group_snapshot::usages(conn, &ids).await)
        .await?;
    let usages = &usages;
    // A parent is kept for its clone until that is gone: both at once might each leave it to the other.
    let related = volumes.iter().any(|v| v.source_volid.as_ref().is_some_and(|source| ids.contains(source)));
    let work = volumes.iter().map(|volume| {
        async move {
            delete_with_group(backend, operation, volume).await?;
            let gone = Volume { status: "deleted".to_owned(), migration_status: None, ..volume.clone() };
            let (notify, host) = (&*backend.peers.notify, backend.host());
            tell_volume(notify, context, "delete.end", host, &gone, usages).await;
            crash::point("delete_group:volume_deleted");
            Ok(())
        }
        .boxed()
    });
    let results = at_once(work.collect(), if related { 1 } else { AT_ONCE }).await;
    let (mut busy, mut first) = (Vec::new(), None);
    for (volume, result) in volumes.iter().zip(results) {
        let Err::<(), Error>(failure) = result else { continue };
        if is_unfinished(&failure) {
            return Err(failure);
        }
        warn!(volume.id = volume.id, error = %failure, "volume of a group could not be deleted");
        if failure.code() == Code::VolumeBusy {
            busy.push(volume.id.clone());
        }
        first.get_or_insert(failure);
    }
    Ok(first.map(|failure| (failure, busy)))
}

async fn forget(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group: &Group,
) -> Result<()> {
    let rules = &backend.globals.quota;
    backend
        .journal
        .complete(operation, &backend.done(), async |conn| {
            if let Some(project) = &group.project_id {
                let given_back = quota::give_back(conn, project, &Release::group(), rules).await;
                quota_or_log(given_back, &group.id)?;
            }
            db::group::destroy(conn, &group.id).await?;
            Ok(())
        })
        .await?;
    info!(group.id = group.id, "group deleted");
    let gone = Group { status: "deleted".to_owned(), ..group.clone() };
    tell(backend, context, "delete.end", &gone, &[]).await;
    backend.want_report();
    Ok(())
}
