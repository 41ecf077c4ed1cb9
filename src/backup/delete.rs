//! `delete_backup`: a backup's snapshot goes, with the base when it was the last one, and with all that is beside it.
//!
//! What is under way with the backup is called off first: an administrator may delete one that is being made or
//! restored (`force-delete`), which stock's driver does not know.

use tracing::{error, info, warn};

use super::method::Method;
use super::{Backups, images, is_unsettled, message, mirror, names, restore};
use crate::context::RequestContext;
use crate::db;
use crate::db::backup_work::BackupChanges;
use crate::db::message::{Action, Detail};
use crate::db::quota::Release;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{Backup, BackupEvent};
use crate::rbd::RbdErrorKind;
use crate::volume::crash;

/// Deletes a backup whose row is `deleting`.
///
/// # Errors
/// As [`super::create::create`].
pub async fn delete(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup_id: &str,
) -> Result<()> {
    b.running.call_off(backup_id).await;
    let backup = b.db.read("backup to delete", async |conn| db::backup::find(conn, backup_id).await).await?;
    let Some(backup) = backup else {
        return b.journal.finish(operation, &Outcome::abandoned("the backup is gone")).await;
    };
    if operation.last_step().await?.is_none() {
        b.notify(context, "delete.start", &backup).await;
        operation.step("begun", &()).await?;
    }
    crash::point("delete_backup:accepted");
    if backup.status != "deleting" {
        let text =
            format!("Delete_backup aborted, expected backup status deleting but got {}.", backup.status);
        let failure = Error::new(Code::InvalidBackup, text);
        return fail(b, context, operation, &backup, None, Detail::BackupInvalidState, failure).await;
    }
    if !names::is_ours(backup.service.as_deref()) {
        let text = format!(
            "Delete backup aborted, the backup service currently configured [{}] is not the backup service that was \
             used to create this backup [{}].",
            names::DRIVER,
            backup.service.as_deref().unwrap_or_default()
        );
        let failure = Error::new(Code::InvalidBackup, text);
        let event = Some(BackupEvent::DeleteFailed);
        return fail(b, context, operation, &backup, event, Detail::BackupDeleteDriverError, failure).await;
    }
    // One that no service has begun with has left nothing.
    let removed = match &backup.service {
        Some(_) => remove(b, &backup).await,
        None => Ok(()),
    };
    match removed {
        Ok(()) => finish(b, context, operation, &backup).await,
        Err(error) if is_unsettled(&error) => Err(error),
        Err(failure) => {
            let event = Some(BackupEvent::DeleteFailed);
            fail(b, context, operation, &backup, event, Detail::BackupDeleteDriverError, failure).await
        }
    }
}

async fn remove(b: &Backups, backup: &Backup) -> Result<()> {
    let store = b.store(backup).await?;
    let _base = b.locks.local(&format!("backups of {}", backup.volume_id)).await;
    let (parent, volume) =
        b.db.read("what a backup hangs on", async |conn| {
            let parent = match &backup.parent_id {
                Some(id) => db::backup::find(conn, id).await?,
                None => None,
            };
            Ok((parent, db::volume::find(conn, &backup.volume_id).await?))
        })
        .await?;
    let mut found = false;
    for base in names::bases(backup, parent.as_ref()) {
        let held = match images::inspect(&store, &base).await {
            Ok(held) => held,
            Err(error) if error.kind == RbdErrorKind::NoPool => {
                warn!(
                    backup.id = backup.id,
                    pool = store.pool,
                    "the pool of a backup is gone, and its data with it"
                );
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if held.is_none() {
            // Of an image whose removal was interrupted the name may be left; to remove it again ends that.
            images::remove_image(&store, &base).await?;
            continue;
        }
        found = true;
        restore::detach::free_all(b, backup, &store, &base).await?;
        let left = images::forget_backup(&store, &base, &backup.id).await?;
        crash::point("delete_backup:unsnapped");
        if left == 0 {
            images::remove_image(&store, &base).await?;
        } else {
            info!(backup.id = backup.id, base, snapshots = left, "the base has other backups, and stays");
        }
        break;
    }
    if !found {
        warn!(backup.id = backup.id, "the data of a backup was gone before it was deleted");
    }
    images::remove_object(&store, names::metadata_object(&backup.id)).await?;
    images::remove_object(&store, names::sums_object(&backup.id)).await?;
    // Nobody compares with it any more; but a volume that cannot be reached keeps no backup from going.
    if let Some(volume) = volume {
        let tidied = async {
            let source = b.locate(&volume).await?.briefly();
            match Method::of(backup.service.as_deref()) {
                Method::Mirror => mirror::forget(&source, &backup.id).await?,
                Method::Diff => {
                    images::forget_backup(&source.place, &source.image, &backup.id).await?;
                }
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = tidied.await {
            warn!(backup.id = backup.id, volume.id = volume.id, %error, "the snapshot of a deleted backup stays on its volume");
        }
    }
    crash::point("delete_backup:removed");
    Ok(())
}

async fn finish(b: &Backups, context: &RequestContext, operation: &Operation, backup: &Backup) -> Result<()> {
    let id = &backup.id;
    let deleted = b
        .journal
        .complete(operation, &Outcome::succeeded(), async |conn| {
            if let Some(project) = &backup.project_id {
                let release = Release::backup(backup.size);
                db::quota::give_back(conn, project, &release, &b.globals.quota).await?;
            }
            // As it is now: its parent may have been deleted since this began.
            let current = db::backup_work::get_deleted(conn, id).await?;
            db::backup_work::destroy(conn, id).await?;
            db::backup_order::take_out(conn, &current).await?;
            db::backup_work::get_deleted(conn, id).await
        })
        .await?;
    info!(backup.id = id, "backup deleted");
    if let Some(key) = &backup.encryption_key_id
        && let Err(error) = b.globals.openstack.keys.forget(context, key).await
    {
        warn!(backup.id = id, %error, "the key of a deleted backup stays in the key manager");
    }
    b.notify(context, "delete.end", &deleted).await;
    Ok(())
}

async fn fail(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup: &Backup,
    event: Option<BackupEvent>,
    detail: Detail,
    failure: Error,
) -> Result<()> {
    let ttl = b.globals.message_ttl;
    b.journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            if let Some(event) = event {
                let changes = BackupChanges::because(failure.user());
                db::backup_work::transition(conn, &backup.id, event, &changes).await?;
            }
            let message = message(&backup.id, Action::BackupDelete, detail);
            db::message::create(conn, context, &message, ttl).await?;
            Ok(())
        })
        .await?;
    error!(backup.id = backup.id, error = %failure, "backup could not be deleted");
    Err(failure)
}

/// Ends a deletion that a defect has interrupted.
///
/// # Errors
/// `failure`, once the row says so; `Database`, `Cancelled`.
pub async fn give_up(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup_id: &str,
    failure: Error,
) -> Result<()> {
    let backup =
        b.db.read("backup to delete", async |conn| db::backup_work::get_deleted(conn, backup_id).await)
            .await?;
    let event = Some(BackupEvent::DeleteRefused);
    fail(b, context, operation, &backup, event, Detail::BackupDeleteDriverError, failure).await
}
