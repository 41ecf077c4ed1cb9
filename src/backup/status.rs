//! Rows that are mended: `reset_status`, and what a service that starts finds half done.
//!
//! What Scoria had accepted is in the journal, and goes on. A row without an entry there is what stock has left behind
//! when it took its leave: for those stock's own rule holds (`_cleanup_incomplete_backup_operations`).

use serde_json::json;
use tracing::{error, info, warn};

use super::{Backups, mirror, names};
use crate::context::RequestContext;
use crate::db;
use crate::db::backup_work::BackupChanges;
use crate::db::moving::status_before;
use crate::db::snapshot::SnapshotChanges;
use crate::db::volume::VolumeChanges;
use crate::db::{Conn, now};
use crate::error::{Code, Error, Result};
use crate::journal::{Accept, Journal, NewOperation, Operation, Outcome};
use crate::model::{Backup, BackupEvent, SnapshotEvent, VolumeEvent};

/// Sets the status of a backup of this driver.
///
/// # Errors
/// `InvalidBackup` for another driver's; `Database`, `Cancelled`.
pub async fn reset(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup_id: &str,
    status: &str,
) -> Result<()> {
    let backup = b.db.read("backup to reset", async |conn| db::backup::get(conn, backup_id).await).await?;
    if !names::is_ours(backup.service.as_deref()) {
        let text = format!(
            "Reset backup status aborted, the backup service currently configured [{}] is not the backup service that \
             was used to create this backup [{}].",
            names::DRIVER,
            backup.service.as_deref().unwrap_or_default()
        );
        let failure = Error::new(Code::InvalidBackup, text);
        error!(backup.id = backup_id, error = %failure, "status not reset");
        return Err(failure);
    }
    // As upstream: of one that no service has begun with, nothing is reset.
    if backup.service.is_none() {
        return b.journal.finish(operation, &Outcome::succeeded()).await;
    }
    let after = b
        .journal
        .complete(operation, &Outcome::succeeded(), async |conn| {
            db::backup_work::reset(conn, backup_id, status).await?;
            db::backup::get(conn, backup_id).await
        })
        .await?;
    info!(backup.id = backup_id, status, "status of a backup reset");
    if status == "error" {
        drop_copy(b, context, &after).await;
    }
    // Upstream names the host of the configuration, which is this one.
    b.notify(context, "reset_status.end", &after).await;
    Ok(())
}

/// Has the copy deleted that the volume service has made for a backup.
pub async fn drop_copy(b: &Backups, context: &RequestContext, backup: &Backup) {
    let Some(copy) = backup.temp_volume_id.as_deref().filter(|id| !id.is_empty()) else { return };
    let dropped = async {
        let copy = b.db.read("copy for a backup", async |conn| db::volume::find(conn, copy).await).await?;
        if let Some(copy) = copy
            && let Some(destination) = copy.cluster_name.as_deref().or(copy.host.as_deref())
        {
            b.peers.volumes.delete_volume(context, destination, &copy, false).await?;
        }
        let none = BackupChanges { temp_volume_id: Some(None), ..BackupChanges::default() };
        b.db.write("copy for a backup", async |conn| db::backup_work::update(conn, &backup.id, &none).await)
            .await
    };
    if let Err(error) = dropped.await {
        warn!(backup.id = backup.id, volume.id = copy, %error, "the copy that a backup was made from is still there");
    }
}

/// Sees to the rows of this host that nobody is working on. `deletion` makes the journal's text of a deletion.
///
/// # Errors
/// `Database` for what waiting does not cure.
pub async fn at_start(
    b: &Backups,
    context: &RequestContext,
    deletion: &(dyn Fn(&RequestContext, &str, &Backup) -> Result<String> + Sync),
) -> Result<()> {
    let host = b.host.as_str();
    let left =
        b.db.read("unfinished backups", async |conn| {
            let found =
                db::backup_work::of_host(conn, host, &["creating", "restoring", "deleting", "error"]).await?;
            let ids: Vec<String> = found.iter().map(|backup| backup.id.clone()).collect();
            let busy = Journal::busy(conn, &ids).await?;
            Ok(found.into_iter().filter(|backup| !busy.contains(&backup.id)).collect::<Vec<_>>())
        })
        .await?;
    for backup in left {
        match backup.status.as_str() {
            "creating" if backup.service.is_some() => end_creation(b, context, &backup).await?,
            // It has not been begun with: the request is still in the queue.
            "creating" => {}
            "restoring" => end_restoration(b, &backup).await?,
            "deleting" => resume_deletion(b, context, &backup, deletion).await?,
            _ => drop_copy(b, context, &backup).await,
        }
    }
    mirror::settle::at_start(b).await
}

async fn end_creation(b: &Backups, context: &RequestContext, backup: &Backup) -> Result<()> {
    warn!(backup.id = backup.id, "a backup that nobody makes any more is in error");
    b.db.write("unfinished backup", async |conn| {
        fail_creation(conn, backup, "incomplete backup reset on manager restart").await
    })
    .await?;
    drop_copy(b, context, backup).await;
    Ok(())
}

/// A backup is not made, for this reason: its row says so, and what it is of gets its status back.
pub(super) async fn fail_creation(conn: &mut Conn, backup: &Backup, why: &str) -> Result<bool> {
    free(conn, &backup.volume_id).await?;
    if let Some(id) = &backup.snapshot_id {
        let none = SnapshotChanges::default();
        tolerate(db::snapshot::transition(conn, id, SnapshotEvent::BackupEnded, &none).await)?;
    }
    let reason = BackupChanges::because(why);
    db::backup_work::transition(conn, &backup.id, BackupEvent::CreateFailed, &reason).await
}

/// The volume's own status comes back; a volume that was being filled cannot be used.
async fn free(conn: &mut Conn, volume_id: &str) -> Result<()> {
    let Some(volume) = db::volume::find(conn, volume_id).await? else { return Ok(()) };
    if volume.status != "backing-up" {
        return Ok(());
    }
    let before = status_before(conn, &volume).await?;
    let none = VolumeChanges::default();
    tolerate(db::volume::transition_to(conn, volume_id, VolumeEvent::BackupFailed, &before, &none).await)
}

async fn end_restoration(b: &Backups, backup: &Backup) -> Result<()> {
    warn!(backup.id = backup.id, "a restoration that nobody goes on with has failed");
    b.db.write("unfinished restoration", async |conn| {
        if let Some(id) = &backup.restore_volume_id {
            let volume = db::volume::find(conn, id).await?;
            // A volume that is being made waits for whoever makes it.
            if volume.is_some_and(|volume| volume.status == "restoring-backup") {
                let none = VolumeChanges::default();
                tolerate(db::volume::transition(conn, id, VolumeEvent::RestoreFailed, &none).await)?;
            }
        }
        db::backup_work::transition(conn, &backup.id, BackupEvent::RestoreEnded, &BackupChanges::default())
            .await
    })
    .await?;
    Ok(())
}

async fn resume_deletion(
    b: &Backups,
    context: &RequestContext,
    backup: &Backup,
    deletion: &(dyn Fn(&RequestContext, &str, &Backup) -> Result<String> + Sync),
) -> Result<()> {
    if backup.encryption_key_id.is_some() {
        // Its key belongs to a user, whose token is needed.
        b.db.write("unfinished deletion", async |conn| {
            let none = BackupChanges::default();
            db::backup_work::transition(conn, &backup.id, BackupEvent::DeleteRefused, &none).await
        })
        .await?;
        return Ok(());
    }
    let unique_id = format!("at-start-{}-{}", backup.id, now().and_utc().timestamp_micros());
    let new = NewOperation {
        method: "delete_backup".to_owned(),
        backend_host: b.journal_host(),
        request: deletion(context, &unique_id, backup)?,
        resource: Some(("Backup".to_owned(), backup.id.clone())),
        unique_id,
        ..NewOperation::default()
    };
    if let Accept::New(operation) = b.journal.accept(new).await? {
        info!(backup.id = backup.id, "the deletion of a backup is resumed");
        b.journal.give_back(&operation).await?;
    }
    Ok(())
}

fn tolerate(changed: Result<()>) -> Result<()> {
    match changed {
        Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound | Code::SnapshotNotFound) => {
            Ok(())
        }
        other => other,
    }
}

/// The capability report of the service, as upstream's `_report_driver_status` makes it.
pub fn report(b: &Backups, works: bool) -> serde_json::Map<String, serde_json::Value> {
    let report = json!({
        "backend_state": works,
        "driver_name": names::DRIVER,
        "availability_zone": b.globals.availability_zone,
    });
    match report {
        serde_json::Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}
