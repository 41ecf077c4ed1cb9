//! `create_backup`: a full or an incremental backup of a volume or of a snapshot.
//!
//! The plan (names, and from which common point on) is in the journal before anything is made, and then how far the
//! copy is. So a crash at any instant is followed by the rest of the work, and whatever fails or is called off is
//! taken away again. An incremental backup brings over what has changed in the volume since the newest point that
//! volume and base have in common, *and* what the base has got since that point: what a failed backup, or a site
//! that was given up, has left there is put right by that. Without a common point all that exists on either side is
//! compared. So no chain ends because a snapshot is missing (reference backup.md 5.6, 5.7).

use serde_json::{Map, json};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::method::{self, Choice, Method};
use super::mirror::{self, PIN, Pin};
use super::names::{self, ServiceMetadata};
use super::plan::{PLAN, Plan};
use super::running::Turn;
use super::{Backups, images, is_unsettled, message, metadata, plan};
use crate::context::RequestContext;
use crate::db;
use crate::db::Conn;
use crate::db::backup_work::BackupChanges;
use crate::db::message::{Action, Detail};
use crate::db::moving::status_before;
use crate::db::snapshot::SnapshotChanges;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{Backup, BackupEvent, SnapshotEvent, Volume, VolumeEvent};
use crate::rbd::protocol::DeltaCopy;
use crate::rbd::types::Sums;
use crate::volume::crash;
use crate::volume::image::Place;

/// Journal step: by which method it is made.
const METHOD: &str = "method";

/// How a backup ended that did not fail.
enum End {
    /// It is there.
    Made(Box<Made>),
    /// Somebody else has ended it, or wants it deleted.
    CalledOff,
}

/// What was made, by either method.
enum Made {
    Copied(Plan),
    Pinned(Pin),
}

impl Made {
    fn metadata(&self) -> ServiceMetadata {
        match self {
            Made::Copied(plan) => plan.metadata(),
            Made::Pinned(pin) => pin.metadata(),
        }
    }
}

/// Makes a backup whose row is `creating`.
///
/// # Errors
/// Why it could not be made, and the rows say so; or only that nothing could be recorded (`Database`, `Broker`,
/// `Cancelled`), and the operation stays open.
pub async fn create(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup_id: &str,
) -> Result<()> {
    let turn = b.running.enter_for(backup_id, operation.id());
    crash::point("create_backup:accepted");
    match run(b, context, operation, backup_id, &turn).await {
        Ok(End::Made(made)) => finish(b, context, operation, backup_id, &made).await,
        Ok(End::CalledOff) => {
            let failure = Error::new(Code::InvalidBackup, format!("Backup {backup_id} was called off"));
            give_up(b, context, operation, backup_id, failure).await
        }
        Err(error) if is_unsettled(&error) => Err(error),
        Err(failure) => give_up(b, context, operation, backup_id, failure).await,
    }
}

async fn run(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup_id: &str,
    turn: &Turn,
) -> Result<End> {
    let (backup, volume) =
        b.db.read("backup to make", async |conn| {
            let backup = db::backup::find(conn, backup_id).await?;
            let volume = match &backup {
                Some(backup) => db::volume::find(conn, &backup.volume_id).await?,
                None => None,
            };
            Ok((backup, volume))
        })
        .await?;
    let Some(backup) = backup.filter(|backup| backup.status == "creating") else {
        return Ok(End::CalledOff);
    };
    let Some(volume) = volume else {
        return Err(Error::new(
            Code::VolumeNotFound,
            format!("Volume {} could not be found.", backup.volume_id),
        ));
    };
    let (backup, method) = begin(b, context, operation, backup, &volume).await?;
    if method == Method::Mirror {
        let pinned = Box::pin(mirror::create(b, operation, &backup, &volume, turn)).await?;
        return Ok(pinned.map_or(End::CalledOff, |pin| End::Made(Box::new(Made::Pinned(pin)))));
    }
    by_differences(b, context, operation, backup, &volume, turn).await
}

async fn by_differences(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup: Backup,
    volume: &Volume,
    turn: &Turn,
) -> Result<End> {
    let source = b.locate(volume).await?;
    let _base = b.locks.local(&format!("backups of {}", volume.id)).await;
    let former = operation.reached::<Plan>(PLAN).await?;
    let (store, site) = match &former {
        Some(former) => {
            let place =
                Place { site: b.site_of(former.site.as_deref()).await?, pool: former.container.clone() };
            (place, former.site.clone())
        }
        None => b.destination(&backup, plan::parent(b, &backup).await?.as_ref(), volume).await?,
    };
    let mut plan = match former {
        Some(former) => {
            if plan::is_whole(&source, &former).await? {
                former
            } else {
                // The volume is served from another site meanwhile, or its snapshot is gone: the base is made to fit anew.
                plan::again(b, operation, &backup, &source, &store, former).await?
            }
        }
        None => {
            let plan = Plan { site, ..plan::draft(b, &backup, &source, &store).await? };
            plan::write_down(operation, &backup, &plan).await?;
            plan
        }
    };
    crash::point("create_backup:planned");
    plan::prepare(b, operation, &backup, &source, &store, &mut plan).await?;
    // Which cluster it is: the workers of the other site do not ask.
    store.stat(&plan.base).await?;
    let mut told = Told::new(b);
    told.tell(b, context, &backup, &plan).await;
    while !plan.complete {
        if turn.is_called_off() {
            return Ok(End::CalledOff);
        }
        let copy = DeltaCopy {
            pool: source.place.pool.clone(),
            image: source.image.clone(),
            snap: Some(plan.point.clone()),
            since: plan.common.as_ref().map(|(of_volume, _)| of_volume.clone()),
            dest_site: store.site.connection().clone(),
            dest_pool: store.pool.clone(),
            dest: plan.base.clone(),
            dest_since: plan.common.as_ref().map(|(_, of_base)| of_base.clone()),
            offset: plan.reached,
            budget: images::budget(b.config.bandwidth_mib),
            at_least_s: images::at_least(b.config.bandwidth_mib),
            sums: Sums { write: Some(names::sums_object(&backup.id)), expect: None },
        };
        let began = Instant::now();
        let part = images::copy_part(&source.place.site, &copy).await?;
        plan.reached = part.reached;
        plan.read += part.read;
        plan.written += part.written;
        plan.complete = part.complete;
        operation.step(PLAN, &plan).await?;
        crash::point("create_backup:part");
        images::pace(b.config.bandwidth_mib, part.read, began).await;
        told.tell(b, context, &backup, &plan).await;
    }
    if turn.is_called_off() {
        return Ok(End::CalledOff);
    }
    images::take_snapshot(&store, &plan.base, &plan.snap).await?;
    crash::point("create_backup:snapped");
    metadata::save(b, &store, &backup).await?;
    Ok(End::Made(Box::new(Made::Copied(plan))))
}

/// What upstream's `create_backup` does before it asks for the device: the volume must wait for us, and the row says who
/// makes it, and how. Said only once, the beginning is told to listeners.
async fn begin(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup: Backup,
    volume: &Volume,
) -> Result<(Backup, Method)> {
    if let Some(method) = operation.reached::<Method>(METHOD).await? {
        return Ok((backup, method));
    }
    // Of the steps the journal has the last one: the plans of the two methods have names of their own.
    match operation.last_step().await?.map(|step| step.name) {
        Some(name) if name == PIN => return Ok((backup, Method::Mirror)),
        Some(_) => return Ok((backup, Method::Diff)),
        None => {}
    }
    b.notify(context, "create.start", &backup).await;
    let snapshot = match &backup.snapshot_id {
        Some(id) => {
            Some(b.db.read("snapshot to back up", async |conn| db::snapshot::get(conn, id).await).await?)
        }
        None => None,
    };
    let (what, code, status) = match &snapshot {
        Some(snapshot) => ("snapshot", Code::InvalidSnapshot, &snapshot.status),
        None => ("volume", Code::InvalidVolume, &volume.status),
    };
    if status != "backing-up" {
        return Err(Error::new(
            code,
            format!("Create backup aborted, expected {what} status backing-up but got {status}."),
        ));
    }
    let Choice { method, forsakes_parent } = method::choose(b, &backup, volume).await?;
    keep_key(b, context, operation, &backup, volume).await?;
    let own_pool = b.config.flatten_pool.as_ref().filter(|_| method == Method::Mirror);
    let changes = BackupChanges {
        service: Some(Some(method.service().to_owned())),
        parent_id: forsakes_parent.then_some(None),
        availability_zone: backup
            .availability_zone
            .as_deref()
            .is_none_or(str::is_empty)
            .then(|| Some(b.globals.availability_zone.clone())),
        container: backup
            .container
            .as_deref()
            .is_none_or(str::is_empty)
            .then(|| Some(own_pool.unwrap_or(&b.config.ceph_pool).clone())),
        ..BackupChanges::default()
    };
    let ttl = b.globals.message_ttl;
    let begun = operation
        .write("begin a backup", async |conn| {
            db::backup_work::update(conn, &backup.id, &changes).await?;
            if forsakes_parent {
                // As stock, when it makes a full backup instead.
                let message =
                    message(&backup.id, Action::BackupCreate, Detail::IncrementalBackupForcesFullBackup);
                db::message::create(conn, context, &message, ttl).await?;
            }
            operation.step_in(conn, METHOD, &method).await?;
            db::backup::get(conn, &backup.id).await
        })
        .await?;
    Ok((begun, method))
}

/// Stores a copy of the volume's key for the backup (`clone_encryption_key`). The row names it before there is a key in it:
/// after a death the same place is filled, and whatever becomes of the backup, its deletion finds it.
async fn keep_key(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup: &Backup,
    volume: &Volume,
) -> Result<()> {
    let Some(key) = &volume.encryption_key_id else { return Ok(()) };
    let keys = &b.globals.openstack.keys;
    let own = match &backup.encryption_key_id {
        Some(own) => own.clone(),
        None => {
            let own = keys.reserve(context, key).await?;
            let changes =
                BackupChanges { encryption_key_id: Some(Some(own.clone())), ..BackupChanges::default() };
            operation
                .write("key of a backup", async |conn| {
                    db::backup_work::update(conn, &backup.id, &changes).await
                })
                .await?;
            own
        }
    };
    crash::point("create_backup:key_reserved");
    keys.fill(context, key, &own).await
}

/// Tells listeners how far a backup is, at its beginning, now and then, and at its end.
struct Told {
    every: std::time::Duration,
    last: Option<Instant>,
}

impl Told {
    fn new(b: &Backups) -> Told {
        Told { every: b.config.timer_interval, last: None }
    }

    async fn tell(&mut self, b: &Backups, context: &RequestContext, backup: &Backup, plan: &Plan) {
        if !plan.complete && self.last.is_some_and(|last| last.elapsed() < self.every) {
            return;
        }
        self.last = Some(Instant::now());
        let percent = if plan.complete || plan.size == 0 {
            100.0
        } else {
            (plan.reached as f64 / plan.size as f64 * 1000.0).floor() / 10.0
        };
        let mut more = Map::new();
        more.insert("backup_percent".to_owned(), json!(percent));
        b.notify_with(context, "createprogress", backup, more).await;
    }
}

async fn finish(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup_id: &str,
    made: &Made,
) -> Result<()> {
    let metadata = made.metadata();
    let ended = b
        .journal
        .complete(operation, &Outcome::succeeded(), async |conn| {
            let backup = db::backup_work::get_deleted(conn, backup_id).await?;
            release(conn, &backup, true).await?;
            let volume = db::volume::find(conn, &backup.volume_id).await?;
            let changes = BackupChanges {
                service_metadata: Some(Some(metadata.write())),
                size: volume.map(|volume| volume.size),
                ..BackupChanges::default()
            };
            let is_made =
                db::backup_work::transition(conn, backup_id, BackupEvent::Created, &changes).await?;
            if let Some(parent) = backup.parent_id.as_deref().filter(|_| is_made) {
                db::backup_work::count_dependent(conn, parent, true).await?;
            }
            db::backup_work::get_deleted(conn, backup_id).await
        })
        .await?;
    crash::point("create_backup:ended");
    let (read_bytes, written_bytes) = match made {
        Made::Copied(plan) => (plan.read, plan.written),
        Made::Pinned(_) => (0, 0),
    };
    info!(backup.id = backup_id, status = ended.status, read_bytes, written_bytes, "backup ended");
    b.notify(context, "create.end", &ended).await;
    match made {
        Made::Copied(_) if b.config.ceph_max_snapshots > 0 => trim(b, &ended).await,
        Made::Copied(_) => {}
        Made::Pinned(pin) => {
            // Of a death before, the next start of the service takes care.
            if let Err(error) = mirror::settle::order(b, backup_id, pin.flatten).await {
                warn!(backup.id = backup_id, %error, "the checksums of a backup are computed after the next start only");
            }
            mirror::prune(b, &ended).await;
        }
    }
    Ok(())
}

/// What was backed up gets its status back, unless that belongs to another backup by now.
async fn release(conn: &mut Conn, backup: &Backup, made: bool) -> Result<()> {
    let (volume_id, snapshot_id) = (&backup.volume_id, backup.snapshot_id.as_deref());
    if db::backup_work::is_another_made(conn, volume_id, snapshot_id, &backup.id).await? {
        return Ok(());
    }
    let changed = match snapshot_id {
        Some(id) => {
            db::snapshot::transition(conn, id, SnapshotEvent::BackupEnded, &SnapshotChanges::default()).await
        }
        None => match db::volume::find(conn, volume_id).await? {
            Some(volume) => {
                let before = status_before(conn, &volume).await?;
                let previous = if made { "backing-up" } else { "error_backing-up" };
                let changes = VolumeChanges {
                    previous_status: Some(Some(previous.to_owned())),
                    ..VolumeChanges::default()
                };
                let event = if made { VolumeEvent::BackedUp } else { VolumeEvent::BackupFailed };
                db::volume::transition_to(conn, volume_id, event, &before, &changes).await
            }
            None => Ok(()),
        },
    };
    match changed {
        // Somebody else has changed it, or it is gone: that is the truth.
        Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound | Code::SnapshotNotFound) => {
            Ok(())
        }
        other => other,
    }
}

/// Keeps as many snapshots for backups on the volume as `backup_ceph_max_snapshots` says, the newest ones.
async fn trim(b: &Backups, backup: &Backup) {
    let trimmed = async {
        let volume =
            b.db.read("volume of a backup", async |conn| db::volume::find(conn, &backup.volume_id).await)
                .await?;
        let Some(volume) = volume else { return Ok(()) };
        let source = b.locate(&volume).await?.briefly();
        let Some(found) = images::inspect(&source.place, &source.image).await? else { return Ok(()) };
        let mut snaps: Vec<_> =
            found.snaps.iter().filter(|snap| names::backup_of(&snap.name).is_some()).collect();
        snaps.sort_unstable_by_key(|snap| snap.id);
        let surplus = snaps.len().saturating_sub(b.config.ceph_max_snapshots);
        for snap in snaps.into_iter().take(surplus) {
            images::drop_snapshot(&source.place, &source.image, &snap.name).await?;
        }
        Ok::<(), Error>(())
    };
    if let Err(error) = trimmed.await {
        warn!(backup.id = backup.id, %error, "old snapshots of backups stay on the volume for now");
    }
}

/// Ends the backup as failed, or as called off when its row says that somebody wants that: what was made of it is taken
/// away. Also what a defect has interrupted.
///
/// # Errors
/// `failure`, once the rows say so; `Database`, `Cancelled`.
pub async fn give_up(
    b: &Backups,
    context: &RequestContext,
    operation: &Operation,
    backup_id: &str,
    failure: Error,
) -> Result<()> {
    if let Err(error) = undo(b, operation, backup_id).await {
        // Deleting the backup takes it away: names tell whose it is.
        warn!(backup.id = backup_id, %error, "a part of a failed backup is left until the backup is deleted");
    }
    crash::point("create_backup:undone");
    let detail = match failure.code() {
        Code::InvalidReplicationTarget => Detail::AttachError,
        Code::InvalidVolume | Code::InvalidSnapshot => Detail::BackupInvalidState,
        _ => Detail::BackupCreateDriverError,
    };
    let ttl = b.globals.message_ttl;
    let failed = b
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            let Some(backup) = db::backup_work::find_deleted(conn, backup_id).await? else {
                return Ok(false);
            };
            release(conn, &backup, false).await?;
            let changes = BackupChanges::because(failure.user());
            let failed =
                db::backup_work::transition(conn, backup_id, BackupEvent::CreateFailed, &changes).await?;
            if failed {
                let message = message(backup_id, Action::BackupCreate, detail);
                db::message::create(conn, context, &message, ttl).await?;
            }
            Ok(failed)
        })
        .await?;
    if failed {
        error!(backup.id = backup_id, error = %failure, "backup failed");
        return Err(failure);
    }
    info!(backup.id = backup_id, "the backup was ended by somebody else: nothing of it is left");
    Ok(())
}

/// Takes away what was made: the base, if it was made for this backup, else the backup's part in it, and the snapshot
/// of the volume.
async fn undo(b: &Backups, operation: &Operation, backup_id: &str) -> Result<()> {
    let plan = operation.reached::<Plan>(PLAN).await?;
    let pin = operation.reached::<Pin>(PIN).await?;
    if plan.is_none() && pin.is_none() {
        return Ok(());
    }
    let (backup, volume) =
        b.db.read("backup that failed", async |conn| {
            let backup = db::backup_work::get_deleted(conn, backup_id).await?;
            let volume = db::volume::find(conn, &backup.volume_id).await?;
            Ok((backup, volume))
        })
        .await?;
    if let Some(pin) = &pin {
        return mirror::undo(b, &backup, volume.as_ref(), pin).await;
    }
    let Some(plan) = &plan else { return Ok(()) };
    let _base = b.locks.local(&format!("backups of {}", backup.volume_id)).await;
    // Whatever one of the sites says, the other is tidied up; and neither waits for the other.
    let at_source = async {
        let Some(volume) = volume.filter(|_| plan.taken.is_some()) else { return Ok::<(), Error>(()) };
        let source = b.locate(&volume).await?.briefly();
        images::drop_snapshot(&source.place, &source.image, &plan.point).await?;
        Ok(())
    };
    let at_store = async {
        let site = b.site_of(plan.site.as_deref()).await?.briefly();
        let store = Place { site, pool: plan.container.clone() };
        images::drop_snapshot(&store, &plan.base, &plan.snap).await?;
        if plan.new_base {
            images::remove_image(&store, &plan.base).await?;
        }
        images::remove_object(&store, names::metadata_object(backup_id)).await?;
        images::remove_object(&store, names::sums_object(backup_id)).await?;
        Ok::<(), Error>(())
    };
    let (source, store) = tokio::join!(at_source, at_store);
    source.and(store)
}
