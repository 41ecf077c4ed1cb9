//! `extend_volume`: the image grows first, then the row, then the servers that have the volume hear of it; a
//! failure gives the reserved quota back. `extend_volume_completion` is the row's part alone.
//!
//! No error escapes (the request is a cast and the user sees `error_extending` with a message), and the
//! image never shrinks: a repeated or late request finds it large enough. Nova asks for the row's size when it
//! hears of it, so the row is written before, with a step of the journal: whoever finishes the operation after
//! a crash only tells nova again.

use serde::{Deserialize, Serialize};
use tracing::{error, info};

use super::{compute, crash, project_of, transition_if_still};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db::message::{Action, Detail, Message};
use crate::db::quota;
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{GIB, Volume, VolumeEvent};
use crate::openstack::nova;

/// The row has the new size and the quota is settled; what is left is to tell nova.
const RECORDED: &str = "recorded";

/// The data of that step.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Recorded {
    /// Those that have the volume.
    servers: Vec<String>,
}

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Extend {
    /// The volume.
    pub volume_id: String,
    /// New size, GiB.
    pub new_size: i32,
    /// What the API reserved for it.
    pub reservations: Vec<String>,
}

/// Extends the volume.
///
/// # Errors
/// Only when nothing could be recorded; a failed extend is recorded in the row.
pub async fn extend(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Extend,
) -> Result<()> {
    let servers = match recorded_before(operation).await? {
        Some(servers) => Some(servers),
        None => change(backend, context, operation, &request).await?,
    };
    // Nothing is held while nova is waited for: a failover need not.
    match servers {
        Some(servers) => tell(backend, context, operation, &request.volume_id, &servers).await,
        None => Ok(()),
    }
}

/// `extend_volume_completion`: somebody else has extended the volume, or could not. The image is made sure to
/// be as large as the row will say. Nobody is told: it is nova that ends an extension in this way.
///
/// # Errors
/// As [`extend`].
pub async fn complete(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Extend,
    failed: bool,
) -> Result<()> {
    let id = &request.volume_id;
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(id).await;
    let Some(volume) = find(backend, id).await? else { return gone(backend, operation, &request).await };
    crash::point("extend_volume_completion:accepted");
    let grown = match failed {
        true => Err(Error::new(Code::VolumeBackend, format!("Volume {id}: Error trying to extend volume"))),
        false => grow(backend, &volume, request.new_size).await,
    };
    match grown {
        Ok(()) => {
            crash::point("extend_volume_completion:image_resized");
            succeed(backend, context, operation, &volume, &request, &[]).await
        }
        Err(failure) if failure.code() == Code::Cancelled => Err(failure),
        Err(failure) => fail(backend, context, operation, &volume, &request, failure).await,
    }
}

/// Ends the request as failed without another try, wherever it was interrupted by a defect.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Extend,
    failure: Error,
) -> Result<()> {
    let id = &request.volume_id;
    if recorded_before(operation).await?.is_some() {
        error!(volume.id = id, error = %failure, "volume is extended, but nova was not told");
        let message = Message::volume(id, Action::ExtendVolume, Detail::NotifyComputeServiceFailed);
        return end(backend, context, operation, Some(message)).await;
    }
    let volume = backend.db.read("volume to give up", async |conn| db::volume::get(conn, id).await).await?;
    fail(backend, context, operation, &volume, &request, failure).await
}

/// The servers to be told, when everything else was done before a crash.
async fn recorded_before(operation: &Operation) -> Result<Option<Vec<String>>> {
    if !operation.is_adopted() {
        return Ok(None);
    }
    match operation.last_step().await? {
        Some(step) if step.name == RECORDED => Ok(Some(step.parse::<Recorded>()?.servers)),
        _ => Ok(None),
    }
}

async fn find(backend: &Backend, id: &str) -> Result<Option<Volume>> {
    backend.db.read("volume to extend", async |conn| db::volume::find(conn, id).await).await
}

/// Image and row. Answers the servers that are still to be told; `None` when the operation has ended.
async fn change(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: &Extend,
) -> Result<Option<Vec<String>>> {
    let id = &request.volume_id;
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(id).await;
    let Some(volume) = find(backend, id).await? else {
        gone(backend, operation, request).await?;
        return Ok(None);
    };
    crash::point("extend_volume:accepted");
    match resize(backend, context, &volume, request.new_size).await {
        Ok(()) => {
            // Whoever attaches it from now on sees its new size.
            let servers = compute::servers(backend, id).await?;
            succeed(backend, context, operation, &volume, request, &servers).await?;
            Ok(Some(servers).filter(|servers| !servers.is_empty() && backend.journal.holds(operation)))
        }
        Err(failure) if failure.code() == Code::Cancelled => Err(failure),
        Err(failure) => {
            fail(backend, context, operation, &volume, request, failure).await?;
            Ok(None)
        }
    }
}

async fn resize(backend: &Backend, context: &RequestContext, volume: &Volume, new_size: i32) -> Result<()> {
    backend.notify_volume(context, "resize.start", volume).await;
    grow(backend, volume, new_size).await?;
    crash::point("extend_volume:image_resized");
    Ok(())
}

async fn grow(backend: &Backend, volume: &Volume, new_size: i32) -> Result<()> {
    let place = backend.place_up(volume).await?;
    let gib = u64::try_from(new_size).ok().filter(|gib| *gib > 0).ok_or_else(|| {
        Error::new(Code::InvalidInput, format!("Volume {} cannot be extended to {new_size} GiB", volume.id))
    })?;
    let image = backend.image_name(volume);
    let bytes = gib.saturating_mul(GIB);
    match volume.encryption_key_id {
        Some(_) => place.grow_behind_header(&image, bytes).await?,
        None => place.grow(&image, bytes).await?,
    }
    Ok(())
}

/// Writes size, status and quota; ends the operation unless servers are to be told.
async fn succeed(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    request: &Extend,
    servers: &[String],
) -> Result<()> {
    let project = project_of(volume, context);
    let recorded = if servers.is_empty() {
        let work = async |conn: &mut Conn| record(conn, &project, &volume.id, request).await;
        backend.journal.complete(operation, &backend.done(), work).await
    } else {
        let step = Recorded { servers: servers.to_vec() };
        operation
            .write("volume extended", async |conn| {
                let after = record(conn, &project, &volume.id, request).await?;
                operation.step_in(conn, RECORDED, &step).await?;
                Ok(after)
            })
            .await
    };
    let after = match recorded {
        Err(e) if e.code() == Code::VolumeNotFound => {
            return gone(backend, operation, request).await;
        }
        recorded => recorded?,
    };
    backend.allocate(volume.host.as_deref(), i64::from(request.new_size) - i64::from(volume.size));
    info!(volume.id = volume.id, from_gib = volume.size, to_gib = request.new_size, "volume extended");
    backend.notify_volume(context, "resize.end", &after).await;
    Ok(())
}

async fn record(conn: &mut Conn, project: &str, id: &str, request: &Extend) -> Result<Volume> {
    quota::commit(conn, project, &request.reservations).await?;
    let attached = !db::attachment::list_for_volume(conn, id).await?.is_empty();
    let event = if attached { VolumeEvent::ExtendedInUse } else { VolumeEvent::Extended };
    let changes = VolumeChanges { size: Some(request.new_size), ..VolumeChanges::default() };
    match db::volume::transition(conn, id, event, &changes).await {
        // Somebody has set another status: it stays, but the image is as large as it is.
        Err(e) if e.code() == Code::Conflict => {
            db::volume::update(conn, id, &changes).await?;
        }
        other => other?,
    }
    db::volume::get(conn, id).await
}

/// Tells nova and ends the operation: the volume is extended, whatever nova says.
async fn tell(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    id: &str,
    servers: &[String],
) -> Result<()> {
    crash::point("extend_volume:recorded");
    let message = compute::tell(backend, context, nova::VolumeEvent::Extended, id, servers).await;
    crash::point("extend_volume:told");
    end(backend, context, operation, message).await
}

async fn end(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    message: Option<Message>,
) -> Result<()> {
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &backend.done(), async |conn| match &message {
            Some(message) => db::message::create(conn, context, message, ttl).await.map(|_| ()),
            None => Ok(()),
        })
        .await
}

/// The volume was deleted meanwhile, and what was reserved for it would be missing until it expires.
async fn gone(backend: &Backend, operation: &Operation, request: &Extend) -> Result<()> {
    let refusal =
        Error::new(Code::VolumeNotFound, format!("Volume {} could not be found.", request.volume_id));
    error!(volume.id = request.volume_id, error = %refusal, "volume could not be extended");
    backend
        .journal
        .complete(operation, &Outcome::failed(&refusal), async |conn| {
            quota::roll_back_of_anybody(conn, &request.reservations).await
        })
        .await
}

async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    request: &Extend,
    failure: Error,
) -> Result<()> {
    error!(volume.id = volume.id, error = %failure, "volume could not be extended");
    let detail = Detail::of(failure.code(), Detail::DriverFailedExtend);
    let message = Message::volume(&volume.id, Action::ExtendVolume, detail);
    let project = project_of(volume, context);
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            quota::roll_back(conn, &project, &request.reservations).await?;
            transition_if_still(conn, &volume.id, VolumeEvent::ExtendFailed, &VolumeChanges::default())
                .await?;
            db::message::create(conn, context, &message, ttl).await?;
            Ok(())
        })
        .await
}
