//! Worker clean-up: what a service began, recorded in Cinder's `workers` table, and can never finish.
//!
//! Our own work is resumed from the journal, and a resource with an open operation is never touched here.
//! What remains was begun by a stock cinder-volume that died, under this host's name or another's, and ends
//! as stock ends it (`CleanableManager.do_cleanup`, reference volume_rpc.md 2.3): half-made resources are
//! in `error`, an upload's volume is what its attachments say, and deletions are begun again, as journalled
//! operations of ours. A row whose resource is gone, or in another status, is dropped.

use chrono::NaiveDateTime;
use futures::StreamExt;
use tracing::{error, info};

use super::delete::{self, Delete};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db::volume::VolumeChanges;
use crate::db::worker::{Claim, Worker, WorkerFilter};
use crate::db::{self, Conn, unfinished};
use crate::error::{Code, Result};
use crate::journal::{Accept, Journal, NewOperation, Operation, Outcome};
use crate::model::{SnapshotEvent, Volume, VolumeEvent};

/// Rows settled by one transaction: short locks.
const BATCH: usize = 500;
/// Deletions that are begun again run so many at a time.
const DELETIONS: usize = 4;

/// The request: which rows to look at.
#[derive(Debug, Clone, Default)]
pub struct Cleanup {
    /// Whose work; our own when unset, although upstream would take everybody's then.
    pub service_id: Option<i32>,
    /// `Volume` or `Snapshot`.
    pub resource_type: Option<String>,
    /// Only this resource.
    pub resource_id: Option<String>,
    /// Rows touched later are in use; unset: now.
    pub until: Option<NaiveDateTime>,
}

/// Renders the journal's text of a `delete_volume` with cascade, from context, unique id and volume
/// (`rpc::synthetic::delete_volume`): it must be readable when the service has crashed meanwhile.
pub type Render<'a> = &'a (dyn Fn(&RequestContext, &str, &Volume) -> Result<String> + Send + Sync);

/// A deletion that was accepted into the journal and waits to be run.
#[derive(Debug)]
pub struct Pending {
    /// The operation.
    pub operation: Operation,
    /// What [`delete::delete`] is to do.
    pub request: Delete,
}

/// `do_cleanup`: settles the rows, ends the operation, and then runs the deletions, which have journal
/// entries of their own.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn do_cleanup(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Cleanup,
    render: Render<'_>,
) -> Result<()> {
    let service = backend.service()?;
    let service_id = request.service_id.unwrap_or(service.id);
    info!(service.id = service_id, "cleaning up after a service");
    let filter = WorkerFilter {
        service_id: Some(service_id),
        resource_type: request.resource_type,
        resource_id: request.resource_id,
        until: Some(request.until.unwrap_or_else(db::now)),
    };
    let mut pending = settle(backend, context, Some(operation), &filter, render).await?;
    if operation.is_adopted() && service_id != service.id {
        // Before the crash, rows may have become ours without their deletion having been accepted.
        let own = WorkerFilter { service_id: Some(service.id), ..filter };
        pending.extend(settle(backend, context, Some(operation), &own, render).await?);
    }
    backend.journal.finish(operation, &Outcome::succeeded()).await?;
    finish(backend, context, pending).await;
    Ok(())
}

/// Clean-up at start: whatever the `workers` table says this service was doing, and the journal does not
/// know. Run it before requests are received. What it returns belongs to the journal already; give it to
/// [`finish`] when the backend is up.
///
/// # Errors
/// `Database`; `DriverNotInitialized` before the service has registered.
pub async fn at_start(
    backend: &Backend,
    context: &RequestContext,
    render: Render<'_>,
) -> Result<Vec<Pending>> {
    let filter = WorkerFilter { service_id: Some(backend.service()?.id), ..WorkerFilter::default() };
    settle(backend, context, None, &filter, render).await
}

/// Runs the deletions, a few at a time. Each ends with its row and its journal entry; failures are logged.
pub async fn finish(backend: &Backend, context: &RequestContext, pending: Vec<Pending>) {
    futures::stream::iter(pending)
        .for_each_concurrent(DELETIONS, async |deletion| {
            let id = deletion.request.volume_id.clone();
            match delete::delete(backend, context, &deletion.operation, deletion.request).await {
                Ok(()) => {}
                Err(e) if e.code() == Code::Cancelled => {
                    info!(volume.id = id, "deletion interrupted: it stays in the journal");
                }
                Err(e) => error!(volume.id = id, error = %e, "a deletion could not be taken up again"),
            }
        })
        .await;
}

/// What a row's resource needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nothing: it is gone, or somebody has changed it since.
    Nothing,
    /// It will never be complete.
    Error,
    /// The status follows from the attachments.
    EndUpload,
    /// Delete it again.
    Delete,
    /// Not known to the volume service: the row is not for us.
    Foreign,
}

/// `status` is the resource's, `None` when it does not exist.
fn fate(worker: &Worker, status: Option<&str>) -> Fate {
    let same = status == Some(worker.status.as_str());
    match (worker.resource_type.as_str(), worker.status.as_str()) {
        ("Volume" | "Snapshot", _) if !same => Fate::Nothing,
        ("Volume", "uploading") => Fate::EndUpload,
        ("Volume", "deleting") => Fate::Delete,
        ("Volume" | "Snapshot", "creating" | "downloading") => Fate::Error,
        ("Volume" | "Snapshot", _) => Fate::Nothing,
        _ => Fate::Foreign,
    }
}

async fn settle(
    backend: &Backend,
    context: &RequestContext,
    operation: Option<&Operation>,
    filter: &WorkerFilter,
    render: Render<'_>,
) -> Result<Vec<Pending>> {
    // Two at once would both take up the same deletion.
    let _lock = backend.locks.local("worker-cleanup").await;
    let service_id = backend.service()?.id;
    let found = backend.db.read("unfinished work", async |conn| db::worker::list(conn, filter).await).await?;
    let mut pending = Vec::new();
    for chunk in found.chunks(BATCH) {
        let deletions = backend
            .db
            .write("settle unfinished work", async |conn| {
                if let Some(operation) = operation {
                    operation.fence(conn).await?;
                }
                settle_rows(conn, chunk, service_id).await
            })
            .await?;
        pending.extend(take_up(backend, context, &deletions, render).await?);
    }
    Ok(pending)
}

/// Settles rows in one transaction; returns those whose resource is to be deleted, which are ours then.
async fn settle_rows(conn: &mut Conn, found: &[Worker], service_id: i32) -> Result<Vec<Worker>> {
    let locked = unfinished::lock(conn, found).await?;
    let of = |kind: &str| -> Vec<String> {
        locked.iter().filter(|w| w.resource_type == kind).map(|w| w.resource_id.clone()).collect()
    };
    let (volume_ids, snapshot_ids) = (of("Volume"), of("Snapshot"));
    let all: Vec<String> = locked.iter().map(|w| w.resource_id.clone()).collect();
    let busy = Journal::busy(conn, &all).await?;
    let volumes = unfinished::volume_statuses(conn, &volume_ids).await?;
    let snapshots = unfinished::snapshot_statuses(conn, &snapshot_ids).await?;

    let mut settled = Vec::new();
    let (mut failed_volumes, mut failed_snapshots, mut uploads) = (Vec::new(), Vec::new(), Vec::new());
    let mut deletions = Vec::new();
    for worker in locked.into_iter().filter(|w| !busy.contains(&w.resource_id)) {
        let is_volume = worker.resource_type == "Volume";
        let statuses = if is_volume { &volumes } else { &snapshots };
        match fate(&worker, statuses.get(&worker.resource_id).map(String::as_str)) {
            Fate::Foreign => continue,
            Fate::Delete => {
                deletions.push(worker);
                continue;
            }
            Fate::Nothing => {}
            Fate::EndUpload => uploads.push(worker.resource_id.clone()),
            Fate::Error if is_volume => failed_volumes.push(worker.resource_id.clone()),
            Fate::Error => failed_snapshots.push(worker.resource_id.clone()),
        }
        info!(
            resource.kind = worker.resource_type,
            resource.id = worker.resource_id,
            status = worker.status,
            "cleaning up unfinished work"
        );
        settled.push(worker.id);
    }
    let none = VolumeChanges::default();
    db::failover::transition_many(conn, &failed_volumes, VolumeEvent::CreateFailed, &none).await?;
    unfinished::end_uploads(conn, &uploads).await?;
    db::snapshot::transition_many(conn, &failed_snapshots, SnapshotEvent::CreateFailed).await?;
    unfinished::remove(conn, &settled).await?;
    unfinished::take_over(conn, &deletions, service_id).await
}

/// Puts deletions into the journal. If the service dies before, their rows are found again: they are ours.
async fn take_up(
    backend: &Backend,
    context: &RequestContext,
    workers: &[Worker],
    render: Render<'_>,
) -> Result<Vec<Pending>> {
    let ids: Vec<String> = workers.iter().map(|w| w.resource_id.clone()).collect();
    let volumes = backend
        .db
        .read("volumes to delete again", async |conn| db::volume::get_many(conn, &ids).await)
        .await?;
    let service_id = backend.service()?.id;
    let mut pending = Vec::with_capacity(workers.len());
    for worker in workers {
        let Some(volume) = volumes.iter().find(|v| v.id == worker.resource_id) else { continue };
        let unique_id = format!("cleanup-{}-{}", worker.id, worker.race_preventer);
        let new = NewOperation {
            request: render(context, &unique_id, volume)?,
            unique_id,
            method: "delete_volume".to_owned(),
            backend_host: backend.host().to_owned(),
            cluster: backend.config.cluster.clone(),
            resource: Some(("Volume".to_owned(), volume.id.clone())),
            claim: Some(Claim {
                resource_type: "Volume".to_owned(),
                resource_id: volume.id.clone(),
                status: worker.status.clone(),
                service_id,
            }),
            ..NewOperation::default()
        };
        match backend.journal.accept(new).await {
            Ok(Accept::New(operation)) => {
                info!(volume.id = volume.id, operation.id = operation.id(), "taking up a deletion again");
                let request = Delete { volume_id: volume.id.clone(), unmanage_only: false, cascade: true };
                pending.push(Pending { operation, request });
            }
            Ok(Accept::Duplicate) => {}
            Err(e) if e.code() == Code::CleanableInUse => {
                info!(volume.id = volume.id, "somebody else has taken the deletion up");
            }
            Err(e) => return Err(e),
        }
    }
    Ok(pending)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(kind: &str, status: &str) -> Worker {
        Worker {
            id: 1,
            resource_type: kind.to_owned(),
            resource_id: "r".to_owned(),
            status: status.to_owned(),
            service_id: Some(1),
            race_preventer: 0,
            updated_at: None,
        }
    }

    #[test]
    fn unfinished_work_ends_as_stock_ends_it() {
        for (kind, status, expected) in [
            ("Volume", "creating", Fate::Error),
            ("Volume", "downloading", Fate::Error),
            ("Volume", "uploading", Fate::EndUpload),
            ("Volume", "deleting", Fate::Delete),
            ("Volume", "extending", Fate::Nothing),
            ("Snapshot", "creating", Fate::Error),
            ("Snapshot", "deleting", Fate::Nothing),
            ("Backup", "creating", Fate::Foreign),
        ] {
            assert_eq!(fate(&worker(kind, status), Some(status)), expected, "{kind} {status}");
        }
    }

    #[test]
    fn a_resource_that_went_on_or_is_gone_is_left_alone() {
        for status in [None, Some("available"), Some("error")] {
            for begun in ["creating", "uploading", "deleting"] {
                assert_eq!(fate(&worker("Volume", begun), status), Fate::Nothing);
            }
            assert_eq!(fate(&worker("Snapshot", "creating"), status), Fate::Nothing);
        }
    }

    #[test]
    fn every_status_that_keeps_a_worker_is_cleaned_up() {
        for (kind, status) in ["creating", "deleting", "uploading", "downloading"]
            .map(|s| ("Volume", s))
            .into_iter()
            .chain([("Snapshot", "creating")])
        {
            assert!(db::worker::is_cleanable(kind, status));
            assert_ne!(fate(&worker(kind, status), Some(status)), Fate::Nothing, "{kind} {status}");
        }
    }
}
