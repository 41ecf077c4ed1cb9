//! `restore_backup`: the content of a backup into a new volume, the same one or another.
//!
//! Looked at is what either side has, and written is what differs: a new volume gets what is not zero, the volume that
//! was backed up gets back what has changed since. Everything that is read is compared with the backup's checksums,
//! if it has any; a volume is `available` only when all of it was right.
//!
//! Of a backup that mirroring has brought to the volume's own site nothing is copied where that can be avoided
//! (`by_clone`).

mod by_clone;
pub mod detach;
pub mod exchange;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::method::Method;
use super::place::Located;
use super::running::Turn;
use super::{Backups, images, is_unsettled, message, metadata, names};
use crate::context::RequestContext;
use crate::db;
use crate::db::Conn;
use crate::db::backup_work::BackupChanges;
use crate::db::message::{Action, Detail};
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Ending, Operation, Outcome};
use crate::model::{Backup, BackupEvent, GIB, Volume, VolumeEvent};
use crate::rbd::protocol::DeltaCopy;
use crate::rbd::types::{Inspection, Snap, Sums};
use crate::volume::crash;
use crate::volume::image::Place;
use by_clone::{ByClone, Wanted};
use exchange::Exchange;

/// Journal step: how far the copy is.
const COPYING: &str = "restoring";
/// Of what the copy of a key is a step.
const KEY: &str = "key";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    base: String,
    point: Option<String>,
    /// Snapshot that backup and volume have in common, with the same content and by the same name.
    #[serde(default)]
    common: Option<String>,
    reached: u64,
    read: u64,
    written: u64,
    complete: bool,
}

enum End {
    Filled(Box<Filled>),
    CalledOff,
}

/// A volume that has the content of its backup.
struct Filled {
    volume: Volume,
    kept: Option<metadata::Kept>,
    /// It has it by a clone, which is to be flattened.
    exchange: Option<Exchange>,
}

/// Why a restoration cannot be done, and what becomes of the volume.
struct Refusal {
    error: Error,
    detail: Detail,
    /// Nothing was written.
    untouched: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let detail = match error.code() {
            Code::InvalidReplicationTarget => Detail::AttachError,
            _ => Detail::BackupRestoreError,
        };
        Refusal { error, detail, untouched: false }
    }
}

impl From<crate::rbd::RbdError> for Refusal {
    fn from(error: crate::rbd::RbdError) -> Refusal {
        Refusal::from(Error::from(error))
    }
}

/// The request.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The backup, `restoring`.
    pub backup_id: String,
    /// The volume to fill, `restoring-backup` or `creating`.
    pub volume_id: String,
}

/// Fills a volume.
///
/// # Errors
/// As [`super::create::create`].
pub async fn restore(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    request: &Restore,
) -> Result<()> {
    let turn = b.running.enter_for(&request.backup_id, operation.id());
    crash::point("restore_backup:accepted");
    match run(b, context, operation, request, &turn).await {
        Ok(End::Filled(filled)) => finish(b, context, operation, request, &filled).await,
        Ok(End::CalledOff) => call_off(b, context, operation, request).await,
        Err(refusal) if is_unsettled(&refusal.error) => Err(refusal.error),
        Err(refusal) => refuse(b, context, operation, request, refusal).await,
    }
}

async fn run(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    request: &Restore,
    turn: &Turn,
) -> Result<End, Refusal> {
    let (backup, volume) =
        b.db.read("backup to restore", async |conn| {
            let backup = db::backup::find(conn, &request.backup_id).await?;
            Ok((backup, db::volume::find(conn, &request.volume_id).await?))
        })
        .await?;
    let copying = operation.reached::<Progress>(COPYING).await?;
    let cloning = by_clone::begun(operation).await?;
    let Some(volume) = volume else {
        let text = format!("Volume {} could not be found.", request.volume_id);
        return Err(Error::new(Code::VolumeNotFound, text).into());
    };
    let Some(backup) = backup.filter(|backup| backup.status != "deleting") else {
        return Ok(End::CalledOff);
    };
    if copying.is_none() && cloning.is_none() {
        b.notify(context, "restore.start", &backup).await;
    }
    check(&backup, &volume)?;
    let target = b.locate(&volume).await?;
    let store = b.store(&backup).await?;
    let _target = b.locks.local(&format!("content of {}", volume.id)).await;
    let kept = metadata::load(&store, &backup.id).await?;
    if let Some(kept) = &kept {
        kept.check(&volume).map_err(untouched)?;
    }
    let filling =
        Filling { b, operation, turn, backup: &backup, volume: &volume, store: &store, target: &target };
    let way = match copying {
        Some(progress) => Way::Copy(progress),
        None => filling.without_copying(cloning).await?,
    };
    let exchange = match way {
        Way::Exchanged(exchange) => Some(*exchange),
        Way::Copy(progress) => {
            if !filling.copy(progress).await? {
                return Ok(End::CalledOff);
            }
            None
        }
        Way::CalledOff => return Ok(End::CalledOff),
    };
    Ok(End::Filled(Box::new(Filled { volume, kept, exchange })))
}

/// How a volume gets its content.
enum Way {
    /// It has it, by a clone.
    Exchanged(Box<Exchange>),
    /// By copying, from here on.
    Copy(Progress),
    CalledOff,
}

/// A restoration, with all that it is about.
struct Filling<'a> {
    b: &'a Backups,
    operation: &'a Operation,
    turn: &'a Turn,
    backup: &'a Backup,
    volume: &'a Volume,
    store: &'a Place,
    target: &'a Located,
}

impl Filling<'_> {
    /// Restores by a clone where that is possible; otherwise says what is to be copied. `begun`: a former attempt was at
    /// that.
    async fn without_copying(&self, begun: Option<ByClone>) -> Result<Way, Refusal> {
        let Filling { b, operation, turn, backup, volume, store, target } = *self;
        let by_clone = match begun {
            Some(by_clone) => by_clone,
            None => {
                let (found, progress) = begin(b, backup, store, volume, target).await?;
                let (base, point) = (progress.base.as_str(), progress.point.as_deref());
                let wanted = Wanted { backup, store, base, point, target, found: &found };
                match by_clone::plan(b, operation, wanted).await? {
                    Ok(by_clone) => {
                        by_clone::tell(&backup.id, &volume.id, None);
                        by_clone::begin(operation, &by_clone).await?;
                        by_clone
                    }
                    Err(why) => {
                        by_clone::tell(&backup.id, &volume.id, Some(&why));
                        operation.step(COPYING, &progress).await?;
                        return Ok(Way::Copy(progress));
                    }
                }
            }
        };
        match Box::pin(by_clone::run(b, operation, backup, store, by_clone, turn)).await? {
            by_clone::End::Exchanged(exchange) => Ok(Way::Exchanged(exchange)),
            by_clone::End::CalledOff => Ok(Way::CalledOff),
            by_clone::End::Impossible(why) => {
                warn!(
                    backup.id = backup.id,
                    volume.id = volume.id,
                    why,
                    "no clone can be made: the backup is copied"
                );
                let (_, progress) = begin(b, backup, store, volume, target).await?;
                operation.step(COPYING, &progress).await?;
                Ok(Way::Copy(progress))
            }
        }
    }

    /// Copies what differs. False when the restoration was called off.
    async fn copy(&self, mut progress: Progress) -> Result<bool, Refusal> {
        let Filling { b, operation, turn, backup, volume, store, target } = *self;
        while !progress.complete {
            if turn.is_called_off() {
                return Ok(false);
            }
            let copy = DeltaCopy {
                pool: store.pool.clone(),
                image: progress.base.clone(),
                snap: progress.point.clone(),
                since: progress.common.clone(),
                dest_site: target.place.site.connection().clone(),
                dest_pool: target.place.pool.clone(),
                dest: target.image.clone(),
                dest_since: progress.common.clone(),
                offset: progress.reached,
                budget: images::budget(b.config.bandwidth_mib),
                at_least_s: images::at_least(b.config.bandwidth_mib),
                // Of a backup of stock's there are none: then nothing is compared.
                sums: Sums {
                    write: None,
                    expect: b.config.verify_on_restore.then(|| names::sums_object(&backup.id)),
                },
            };
            // Which cluster the target is: the workers of the other site do not ask.
            target.place.stat(&target.image).await?;
            let began = Instant::now();
            let part = images::copy_part(&store.site, &copy).await?;
            progress.reached = part.reached;
            progress.read += part.read;
            progress.written += part.written;
            progress.complete = part.complete;
            operation.step(COPYING, &progress).await?;
            crash::point("restore_backup:part");
            images::pace(b.config.bandwidth_mib, part.read, began).await;
        }
        info!(
            backup.id = backup.id,
            volume.id = volume.id,
            read_bytes = progress.read,
            written_bytes = progress.written,
            "the content of a backup is restored"
        );
        Ok(true)
    }
}

fn untouched(error: Error) -> Refusal {
    Refusal { untouched: true, ..Refusal::from(error) }
}

/// What upstream's `restore_backup` looks at first.
fn check(backup: &Backup, volume: &Volume) -> Result<(), Refusal> {
    let refusal =
        |code, detail, text: String| Refusal { error: Error::new(code, text), detail, untouched: true };
    if !matches!(volume.status.as_str(), "restoring-backup" | "creating") {
        let text = format!(
            "Restore backup aborted, expected volume status restoring-backup,creating but got {}",
            volume.status
        );
        return Err(refusal(Code::InvalidVolume, Detail::VolumeInvalidState, text));
    }
    if backup.status != "restoring" {
        let text =
            format!("Restore backup aborted: expected backup status restoring but got {}", backup.status);
        return Err(refusal(Code::InvalidBackup, Detail::BackupInvalidState, text));
    }
    if !names::is_ours(backup.service.as_deref()) {
        let text = format!(
            "Restore backup aborted, the backup service currently configured [{}] is not the backup service that was \
             used to create this backup [{}].",
            names::DRIVER,
            backup.service.as_deref().unwrap_or_default()
        );
        return Err(refusal(Code::InvalidBackup, Detail::BackupRestoreError, text));
    }
    Ok(())
}

/// Finds the point to restore, and sees that the volume can take it. Answers its image, too.
async fn begin(
    b: &Backups,
    backup: &Backup,
    store: &Place,
    volume: &Volume,
    target: &Located,
) -> Result<(Inspection, Progress), Refusal> {
    let (base, point, size) = find_point(b, backup, store).await?;
    let found = images::inspect(&target.place, &target.image).await?;
    let Some(found) = found else {
        let text = format!("The volume has no image {} in pool {}", target.image, target.place.pool);
        return Err(Error::new(Code::VolumeBackend, text).into());
    };
    if found.info.size < size {
        let text = format!(
            "The backup has {size} bytes, and the volume's image only {}: restore it into a volume of {} GiB, or of \
             the type of the one that was backed up",
            found.info.size,
            size.div_ceil(GIB)
        );
        return Err(untouched(Error::new(Code::InvalidVolume, text)));
    }
    if let Some(watcher) = target.place.user_of(&target.image).await? {
        let text =
            format!("The volume's image is in use by {}: detach it and restore again", watcher.address);
        return Err(untouched(Error::new(Code::VolumeBusy, text)));
    }
    let common = point.clone().filter(|point| is_common(backup, volume, &found.snaps, point, size));
    Ok((found, Progress { base, point, common, ..Progress::default() }))
}

/// Whether the volume that was backed up by mirroring still has the very point that was pinned: then only what it has
/// got since is put back.
fn is_common(backup: &Backup, volume: &Volume, snaps: &[Snap], point: &str, size: u64) -> bool {
    Method::of(backup.service.as_deref()) == Method::Mirror
        && backup.volume_id == volume.id
        && snaps.iter().any(|snap| snap.name == point && snap.size == size)
}

/// Base, restore point and bytes of a backup. A base without any point of a backup is one itself: such are those that
/// stock makes of snapshots.
///
/// # Errors
/// `InvalidBackup` when the data of the backup is not there; what Ceph answers.
pub(super) async fn find_point(
    b: &Backups,
    backup: &Backup,
    store: &Place,
) -> Result<(String, Option<String>, u64)> {
    let parent = match &backup.parent_id {
        Some(id) => b.db.read("parent of a backup", async |conn| db::backup::find(conn, id).await).await?,
        None => None,
    };
    let mut tried = Vec::new();
    for base in names::bases(backup, parent.as_ref()) {
        let Some(found) = images::inspect(store, &base).await? else {
            tried.push(base);
            continue;
        };
        let own: Vec<_> = names::snapshots(&found.snaps, &backup.id).collect();
        return match own.as_slice() {
            [one] => Ok((base, Some(one.name.clone()), one.size)),
            [] if !found.snaps.iter().any(|snap| names::backup_of(&snap.name).is_some()) => {
                Ok((base, None, found.info.size))
            }
            [] => Err(Error::new(
                Code::InvalidBackup,
                format!("Image {base} has no snapshot of backup {}: its data is lost", backup.id),
            )),
            several => Err(Error::new(
                Code::InvalidBackup,
                format!("Backup should only have one snapshot but instead has {}", several.len()),
            )),
        };
    }
    Err(Error::new(
        Code::InvalidBackup,
        format!(
            "The data of backup {} is lost: pool {} has no image {}",
            backup.id,
            store.pool,
            tried.join(" or ")
        ),
    ))
}

async fn finish(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    request: &Restore,
    filled: &Filled,
) -> Result<()> {
    let Filled { volume, kept, exchange } = filled;
    let id = &volume.id;
    // Each volume has a copy of the key for itself.
    let key = match key(b, context, operation, request, kept.as_ref()).await {
        Ok(key) => key,
        Err(error) if is_unsettled(&error) => return Err(error),
        Err(error) => return refuse(b, context, operation, request, error.into()).await,
    };
    let launched = (volume.status == "creating").then(|| Some(db::now()));
    let ended = b
        .journal
        .complete(operation, &Outcome::succeeded(), async |conn| {
            let backup = db::backup_work::get_deleted(conn, &request.backup_id).await?;
            if let Some(kept) = kept {
                kept.apply(conn, volume, key.as_deref()).await?;
            }
            let former = db::volume::metadata(conn, id).await?.remove("src_backup_id");
            if backup.volume_id != *id || former.is_some_and(|former| former != backup.id) {
                let source = [("src_backup_id".to_owned(), backup.id.clone())].into();
                db::backup_work::set_volume_metadata(conn, id, &source, false).await?;
            }
            let changes = VolumeChanges { launched_at: launched, ..VolumeChanges::default() };
            tolerate(db::volume::transition(conn, id, VolumeEvent::RestoredFromBackup, &changes).await)?;
            let none = BackupChanges::default();
            db::backup_work::transition(conn, &backup.id, BackupEvent::RestoreEnded, &none).await?;
            leave(b, conn, request, exchange.as_ref()).await?;
            db::backup_work::get_deleted(conn, &backup.id).await
        })
        .await?;
    crash::point("restore_backup:ended");
    if let (Some(former), Some(_)) = (&volume.encryption_key_id, &key)
        && let Err(error) = b.globals.openstack.keys.forget(context, former).await
    {
        warn!(volume.id = id, %error, "the former key of a restored volume stays in the key manager");
    }
    info!(backup.id = request.backup_id, volume.id = id, "restored");
    b.notify(context, "restore.end", &ended).await;
    Ok(())
}

/// Has an exchange of images seen to in the background, if there is one.
async fn leave(b: &Backups, conn: &mut Conn, request: &Restore, exchange: Option<&Exchange>) -> Result<()> {
    match exchange {
        Some(exchange) => {
            detach::order_in(conn, &b.host, &request.backup_id, &request.volume_id, exchange).await
        }
        None => Ok(()),
    }
}

/// The key that a restored volume is to have: a copy of the backup's, whose id the journal has before there is a key in it.
/// `None` for one that is not encrypted.
async fn key(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    request: &Restore,
    kept: Option<&metadata::Kept>,
) -> Result<Option<String>> {
    let Some(noted) = kept.and_then(metadata::Kept::key) else { return Ok(None) };
    let backup = b
        .db
        .read("key of a backup", async |conn| db::backup_work::get_deleted(conn, &request.backup_id).await)
        .await?;
    let own = backup.encryption_key_id.as_deref().unwrap_or(noted);
    let keys = &b.globals.openstack.keys;
    let former = operation.items().await?.into_iter().find(|step| step.resource_id == KEY);
    let copy = match former {
        Some(step) => step.parse::<String>()?,
        None => {
            let copy = keys.reserve(context, own).await?;
            if copy != own {
                operation.item_step(KEY, "reserved", &copy).await?;
            }
            copy
        }
    };
    crash::point("restore_backup:key_reserved");
    let Err(failure) = keys.fill(context, own, &copy).await else { return Ok(Some(copy)) };
    if let Err(error) = keys.forget(context, &copy).await {
        warn!(volume.id = request.volume_id, %error, "the place of a key that could not be copied stays in the key manager");
    }
    Err(failure)
}

/// A status that somebody else has set is the truth.
fn tolerate(changed: Result<()>) -> Result<()> {
    match changed {
        Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound) => Ok(()),
        other => other,
    }
}

/// The backup is deleted meanwhile, or nobody wants the volume filled any more: what the volume holds is half of something.
async fn call_off(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    request: &Restore,
) -> Result<()> {
    let outcome = Outcome {
        ending: Ending::RolledBack,
        detail: Some("the restoration was called off".to_owned()),
        reply: None,
    };
    let id = &request.volume_id;
    let exchange = by_clone::undo(b, operation).await?;
    let ended = b
        .journal
        .complete(operation, &outcome, async |conn| {
            let none = VolumeChanges::default();
            tolerate(db::volume::transition(conn, id, VolumeEvent::RestoreCancelled, &none).await)?;
            let none = BackupChanges::default();
            db::backup_work::transition(conn, &request.backup_id, BackupEvent::RestoreEnded, &none).await?;
            leave(b, conn, request, exchange.as_ref()).await?;
            db::backup_work::find_deleted(conn, &request.backup_id).await
        })
        .await?;
    info!(backup.id = request.backup_id, volume.id = id, "the restoration was called off");
    if let Some(ended) = ended {
        b.notify(context, "restore.end", &ended).await;
    }
    Ok(())
}

async fn refuse(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    request: &Restore,
    refusal: Refusal,
) -> Result<()> {
    let Refusal { error: failure, detail, untouched } = refusal;
    let ttl = b.globals.message_ttl;
    let (volume_id, backup_id) = (&request.volume_id, &request.backup_id);
    let exchange = by_clone::undo(b, operation).await?;
    b.journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            let none = VolumeChanges::default();
            tolerate(db::volume::transition(conn, volume_id, VolumeEvent::RestoreFailed, &none).await)?;
            let none = BackupChanges::default();
            db::backup_work::transition(conn, backup_id, BackupEvent::RestoreEnded, &none).await?;
            let message = message(backup_id, Action::BackupRestore, detail);
            db::message::create(conn, context, &message, ttl).await?;
            leave(b, conn, request, exchange.as_ref()).await
        })
        .await?;
    error!(backup.id = backup_id, volume.id = volume_id, untouched, error = %failure, "restoration failed");
    Err(failure)
}

/// Ends a restoration that a defect has interrupted.
///
/// # Errors
/// `failure`, once the rows say so; `Database`, `Cancelled`.
pub async fn give_up(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    request: &Restore,
    failure: Error,
) -> Result<()> {
    refuse(b, context, operation, request, failure.into()).await
}
