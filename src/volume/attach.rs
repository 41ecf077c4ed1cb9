//! Attaching and detaching, in both generations of the API: rows and notifications only, because an RBD
//! image needs no export (reference volume_rpc.md 2.2).
//!
//! All of these are calls that may be run again after a crash, as long as their caller waits: attaching
//! twice finds the attachment, detaching twice finds it gone. When the caller has gone, [`roll_back`] undoes
//! what was half done.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::info;

use super::connection::flat;
use super::{connect, crash};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db::attachment::{AttachmentChanges, Progress};
use crate::db::message::{Action, Detail, Message};
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{Attachment, AttachmentDraft, Volume, VolumeEvent};

/// Journal step: the attachment that an operation has made or changed.
const TOUCHED: &str = "attachment";

/// What is remembered of that attachment, in the transaction that touches it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Touched {
    id: String,
    /// Its status before; `None`: the operation has made it.
    before: Option<String>,
}

/// `attach_volume`'s arguments.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Attach {
    pub volume_id: String,
    pub instance_uuid: Option<String>,
    pub host_name: Option<String>,
    pub mountpoint: Option<String>,
    pub mode: Option<String>,
}

/// Records that the volume is attached and answers the attachment.
///
/// # Errors
/// `InvalidVolume`, `InvalidUuid`, `InvalidVolumeAttachMode`: the API answers 400 to these.
pub async fn attach(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Attach,
) -> Result<Attachment> {
    let id = &request.volume_id;
    let _lock = backend.locks.lock(id).await;
    let (volume, admin, attachments) = backend
        .db
        .read("volume to attach", async |conn| {
            Ok((
                db::volume::get(conn, id).await?,
                db::volume::admin_metadata(conn, id).await?,
                db::attachment::list_for_volume(conn, id).await?,
            ))
        })
        .await?;
    let mode = request.mode.clone().unwrap_or_else(|| "rw".to_owned());
    let attached_mode = admin.get("attached_mode");
    if volume.status == "attaching" && attached_mode.is_some_and(|m| *m != mode) {
        return Err(invalid_volume("being attached by different mode"));
    }
    let host = request.host_name.as_deref().map(sanitize_hostname);
    let known = attachments.iter().find(|a| match &request.instance_uuid {
        Some(instance) => a.instance_uuid.as_ref() == Some(instance),
        None => a.attached_host.is_some() && a.attached_host == host,
    });
    if let Some(known) = known {
        operation
            .write("attached again", async |conn| {
                db::volume::transition(conn, id, VolumeEvent::Attached, &VolumeChanges::default()).await
            })
            .await?;
        return Ok(known.clone());
    }
    if volume.status == "in-use" && !volume.multiattach && volume.migration_status.is_none() {
        return Err(invalid_volume("volume is already attached and multiple attachments are not enabled"));
    }
    backend.notify_volume(context, "attach.start", &volume).await;
    let draft = AttachmentDraft {
        volume_id: id.clone(),
        instance_uuid: request.instance_uuid.clone(),
        attached_host: host,
        mountpoint: request.mountpoint.clone(),
        attach_mode: Some(mode.clone()),
    };
    // Of an attachment that has only begun, the row does not say whose it is.
    let known = touched(operation).await?.map(|t| t.id);
    let begun = operation
        .write("begin attach", async |conn| {
            if let Some(id) = &known
                && let Some(begun) = db::attachment::find(conn, id).await?
            {
                return Ok(begun);
            }
            db::volume::set_admin_metadata(conn, id, "attached_mode", &mode).await?;
            let begun = db::attachment::create(conn, &draft).await?;
            let touched = Touched { id: begun.id.clone(), before: None };
            operation.step_in(conn, TOUCHED, &touched).await?;
            Ok(begun)
        })
        .await?;
    crash::point("attach_volume:begun");
    let refused = check_attach(backend, &volume, &draft, admin.get("readonly").map(String::as_str));
    if let Err(refusal) = refused {
        let message = (refusal.code() != Code::InvalidUuid).then(|| {
            Message::volume(id, Action::AttachVolume, Detail::of(refusal.code(), Detail::UnknownError))
        });
        return attach_refused(backend, context, operation, &begun, message.as_ref(), refusal).await;
    }
    let (attachment, after) = operation
        .write("attached", async |conn| {
            db::attachment::attached(conn, &begun.id, &draft, Progress::Attached).await?;
            Ok((db::attachment::get(conn, &begun.id).await?, db::volume::get(conn, id).await?))
        })
        .await?;
    info!(volume.id = id, attachment.id = attachment.id, "volume attached");
    backend.notify_volume(context, "attach.end", &after).await;
    Ok(attachment)
}

fn check_attach(
    backend: &Backend,
    volume: &Volume,
    draft: &AttachmentDraft,
    readonly: Option<&str>,
) -> Result<()> {
    if let Some(instance) = draft.instance_uuid.as_deref().filter(|i| uuid::Uuid::try_parse(i).is_err()) {
        return Err(Error::new(
            Code::InvalidUuid,
            format!("Expected a UUID but received {}.", instance.escape_debug()),
        ));
    }
    let mode = draft.attach_mode.as_deref().unwrap_or("rw");
    if readonly == Some("True") && mode != "ro" {
        return Err(Error::new(
            Code::InvalidVolumeAttachMode,
            format!("Invalid attaching mode '{}' for volume {}.", mode.escape_debug(), volume.id),
        ));
    }
    backend.require_up()
}

async fn attach_refused(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    begun: &Attachment,
    message: Option<&Message>,
    refusal: Error,
) -> Result<Attachment> {
    let changes = AttachmentChanges {
        attach_status: Some("error_attaching".to_owned()),
        ..AttachmentChanges::default()
    };
    let ttl = backend.globals.message_ttl;
    operation
        .write("attach refused", async |conn| {
            db::attachment::update(conn, &begun.id, &changes).await?;
            if let Some(message) = message {
                db::message::create(conn, context, message, ttl).await?;
            }
            Ok(())
        })
        .await?;
    Err(refusal)
}

/// Records that the volume is detached.
///
/// # Errors
/// `InvalidVolume` without an id when there are several attachments.
pub async fn detach(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume_id: &str,
    attachment_id: Option<&str>,
) -> Result<()> {
    let _lock = backend.locks.lock(&format!("{volume_id}-detach_volume")).await;
    let (volume, attachments) = backend
        .db
        .read("volume to detach", async |conn| {
            Ok((
                db::volume::get(conn, volume_id).await?,
                db::attachment::list_for_volume(conn, volume_id).await?,
            ))
        })
        .await?;
    let found = match attachment_id {
        Some(id) => attachments.iter().find(|a| a.id == id),
        None if attachments.len() > 1 => {
            return Err(invalid_volume(
                "Detach volume failed: More than one attachment, but no attachment_id provided.",
            ));
        }
        None => attachments.first(),
    };
    let Some(attachment) = found else {
        info!(volume.id = volume_id, "volume detach called, but volume not attached");
        return operation
            .write("detach of nothing", async |conn| {
                db::attachment::finish_detach(conn, volume_id, attachment_id.unwrap_or_default()).await?;
                Ok(())
            })
            .await;
    };
    backend.notify_volume(context, "detach.start", &volume).await;
    if let Err(refusal) = backend.require_up() {
        let changes = AttachmentChanges {
            attach_status: Some("error_detaching".to_owned()),
            ..AttachmentChanges::default()
        };
        operation
            .write("detach refused", async |conn| {
                db::attachment::update(conn, &attachment.id, &changes).await
            })
            .await?;
        return Err(refusal);
    }
    let after = operation
        .write("detached", async |conn| {
            db::attachment::finish_detach(conn, volume_id, &attachment.id).await?;
            db::volume::get(conn, volume_id).await
        })
        .await?;
    info!(volume.id = volume_id, attachment.id = attachment.id, "volume detached");
    backend.notify_volume(context, "detach.end", &after).await;
    Ok(())
}

/// `attachment_update`: connects an attachment to a host and answers what the API stores as its
/// connection info.
///
/// # Errors
/// What refuses the connection. The attachment stays as it is, unless the backend has never come up: then it
/// is `error_attaching`, and the user is told.
pub async fn update(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume_id: &str,
    attachment_id: &str,
    mut connector: Map<String, Value>,
) -> Result<Value> {
    let (volume, attachment) = backend
        .db
        .read("attachment to update", async |conn| {
            Ok((db::volume::get(conn, volume_id).await?, db::attachment::get(conn, attachment_id).await?))
        })
        .await?;
    backend.notify_volume(context, "attach.start", &volume).await;
    let asked = connector.get("mode").and_then(Value::as_str).map(str::to_owned);
    // The mode of attachment-create wins over the connector's, also one that is NULL because the attachment
    // came with its connector; the row holds the text 'null' when the user named none
    // (`cinder/volume/manager.py`, attachment_update).
    let mode = match attachment.attach_mode.as_deref() {
        Some("null") => Some(asked.clone().unwrap_or_else(|| "rw".to_owned())),
        mode => {
            connector.insert("mode".to_owned(), mode.map_or(Value::Null, Value::from));
            mode.map(str::to_owned)
        }
    };
    let connector = Value::Object(connector);
    let connected =
        connect::connect(backend, &volume, mode.as_deref().or(asked.as_deref()), &connector).await;
    let info = match connected {
        Ok(info) => info,
        Err(refusal) if refusal.code() != Code::DriverNotInitialized => return Err(refusal),
        Err(refusal) => {
            let message = Message::volume(
                volume_id,
                Action::UpdateAttachment,
                Detail::of(refusal.code(), Detail::AttachError),
            );
            attach_refused(backend, context, operation, &attachment, Some(&message), refusal).await?;
            return Ok(Value::Null);
        }
    };
    let text =
        |key: &str, missing: &str| connector.get(key).and_then(Value::as_str).unwrap_or(missing).to_owned();
    let draft = AttachmentDraft {
        volume_id: volume_id.to_owned(),
        instance_uuid: attachment.instance_uuid.clone(),
        attached_host: Some(text("host", "")),
        mountpoint: Some(text("mountpoint", "na")),
        attach_mode: mode,
    };
    let stored =
        AttachmentChanges { connector: Some(Some(connector.to_string())), ..AttachmentChanges::default() };
    let known = touched(operation).await?.is_some();
    let touched = Touched { id: attachment_id.to_owned(), before: attachment.attach_status.clone() };
    operation
        .write("attachment updated", async |conn| {
            if !known {
                operation.step_in(conn, TOUCHED, &touched).await?;
            }
            db::attachment::update(conn, attachment_id, &stored).await?;
            db::attachment::attached(conn, attachment_id, &draft, Progress::Attaching).await
        })
        .await?;
    info!(volume.id = volume_id, attachment.id = attachment_id, "attachment updated");
    Ok(flat(info, attachment_id))
}

/// `attachment_delete`: the API deletes the row; here is nothing to undo in Ceph.
///
/// # Errors
/// `DriverNotInitialized`; `AttachmentNotFound`.
pub async fn delete(
    backend: &Backend,
    context: &RequestContext,
    volume_id: &str,
    attachment_id: &str,
) -> Result<()> {
    backend.require_up()?;
    let volume = backend
        .db
        .read("attachment to delete", async |conn| {
            db::attachment::get(conn, attachment_id).await?;
            db::volume::get(conn, volume_id).await
        })
        .await?;
    backend.notify_volume(context, "detach.start", &volume).await;
    Ok(())
}

async fn touched(operation: &Operation) -> Result<Option<Touched>> {
    Ok(operation.data::<Touched>().await?.filter(|(name, _)| name == TOUCHED).map(|(_, touched)| touched))
}

/// Ends `attach_volume`, `detach_volume` or `attachment_update` that a dead service had begun and whose caller
/// has stopped waiting: an attachment that is not complete goes away, or is `reserved` again, and the volume
/// is no longer `attaching` or `detaching`. What was complete stays: a host may be using it, and upstream
/// leaves it so when only its answer is lost.
///
/// # Errors
/// `Cancelled`; `Database`.
pub async fn roll_back(backend: &Backend, operation: &Operation, outcome: &Outcome) -> Result<()> {
    let Some((_, volume_id)) = operation.resource() else {
        return backend.journal.finish(operation, outcome).await;
    };
    let _lock = backend.locks.lock(volume_id).await;
    let touched = touched(operation).await?;
    backend
        .journal
        .complete(operation, outcome, async |conn| {
            if let Some(touched) = &touched {
                undo(conn, touched).await?;
            }
            db::attachment::abandon(conn, volume_id).await
        })
        .await?;
    info!(volume.id = volume_id, "rolled back for a caller that has stopped waiting");
    Ok(())
}

async fn undo(conn: &mut Conn, touched: &Touched) -> Result<()> {
    let Some(attachment) = db::attachment::find(conn, &touched.id).await? else { return Ok(()) };
    if attachment.attach_status.as_deref() != Some("attaching") {
        return Ok(());
    }
    match touched.before.as_deref() {
        None => {
            db::attachment::destroy(conn, &touched.id).await?;
        }
        // It was connected before: the API has completed none since, or it would not be `attaching`.
        Some("attaching") => {}
        Some(before) => {
            let changes = AttachmentChanges {
                attach_status: Some(before.to_owned()),
                attached_host: Some(None),
                mountpoint: Some(None),
                attach_time: Some(None),
                connector: Some(None),
                ..AttachmentChanges::default()
            };
            db::attachment::update(conn, &touched.id, &changes).await?;
        }
    }
    Ok(())
}

fn invalid_volume(reason: &str) -> Error {
    Error::new(Code::InvalidVolume, format!("Invalid volume: {reason}"))
}

/// `volume_utils.sanitize_hostname`: Latin-1 only, spaces and `_` as `-`, then letters, digits, `.` and `-`,
/// lower case, no `.` or `-` at the ends.
fn sanitize_hostname(name: &str) -> String {
    let kept: String = name
        .chars()
        .filter(|c| u32::from(*c) <= 0xff)
        .map(|c| if c == ' ' || c == '_' { '-' } else { c })
        .filter(|c| c.is_alphanumeric() || matches!(c, '.' | '-'))
        .collect();
    kept.to_lowercase().trim_matches(|c| c == '.' || c == '-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_sanitized_as_upstream() {
        assert_eq!(sanitize_hostname("Compute_1 Rack.local-"), "compute-1-rack.local");
        assert_eq!(sanitize_hostname("ünode 日本"), "ünode");
    }
}
