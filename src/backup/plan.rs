//! The plan of a backup: what it is called, what is read, and from which common point on. It is in the journal before
//! anything is made.

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::names::ServiceMetadata;
use super::place::Located;
use super::{Backups, images, names};
use crate::db;
use crate::db::backup_work::BackupChanges;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::Backup;
use crate::rbd::protocol::SumsBegin;
use crate::rbd::types::{Inspection, features};
use crate::volume::crash;
use crate::volume::image::{Attempt, Place, Shape};

/// Journal step: the plan, with how far it is carried out.
pub(super) const PLAN: &str = "copying";
/// Features of a base: those that stock gives it, without the one for striping, which is not used.
const FEATURES: u64 =
    features::LAYERING | features::EXCLUSIVE_LOCK | features::OBJECT_MAP | features::FAST_DIFF;
/// Object size of a base: librbd's default.
const ORDER: u8 = 22;

/// What is made, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Image of the backup.
    pub(super) base: String,
    /// It is made for this backup.
    pub(super) new_base: bool,
    /// Pool of it.
    pub(super) container: String,
    /// Registered site that has it, by its fsid; absent: the cluster of `backup_ceph_conf`.
    #[serde(default)]
    pub(super) site: Option<String>,
    /// Snapshot of the base that is the backup.
    pub(super) snap: String,
    /// Snapshot of the volume's image that is read.
    pub(super) point: String,
    /// That is taken for this backup, and is taken by now.
    pub(super) taken: Option<bool>,
    /// Snapshots of the volume and of the base with the same content.
    pub(super) common: Option<(String, String)>,
    /// Bytes of the point.
    pub(super) size: u64,
    /// How far the copy is, bytes.
    pub(super) reached: u64,
    /// Bytes that were read.
    pub(super) read: u64,
    /// Bytes that were written.
    pub(super) written: u64,
    /// The copy is complete.
    pub(super) complete: bool,
}

impl Plan {
    /// `service_metadata` of the backup.
    pub(super) fn metadata(&self) -> ServiceMetadata {
        ServiceMetadata { base: self.base.clone(), site: self.site.clone(), unverified: false }
    }
}

/// Puts a plan into the journal. Whoever deletes a backup that came to nothing must know on which site to look: stock,
/// which has but one, writes that down at the end.
///
/// # Errors
/// `Database`; `Cancelled`.
pub(super) async fn write_down(operation: &Operation, backup: &Backup, plan: &Plan) -> Result<()> {
    let Some(_) = &plan.site else { return operation.step(PLAN, plan).await };
    let changes =
        BackupChanges { service_metadata: Some(Some(plan.metadata().write())), ..BackupChanges::default() };
    operation
        .write("plan of a backup", async |conn| {
            db::backup_work::update(conn, &backup.id, &changes).await?;
            operation.step_in(conn, PLAN, plan).await
        })
        .await
}

/// Whether the journal's plan can go on: the snapshots that it names are there, also when the volume is served from
/// another site by now.
pub(super) async fn is_whole(source: &Located, plan: &Plan) -> Result<bool> {
    let found = require(source).await?;
    let has = |name: &str| found.snaps.iter().any(|snap| snap.name == name);
    let has_common = plan.common.as_ref().is_none_or(|(of_volume, _)| has(of_volume));
    Ok(has_common && (plan.taken == Some(false) || has(&plan.point)))
}

async fn require(source: &Located) -> Result<Inspection> {
    images::inspect(&source.place, &source.image).await?.ok_or_else(|| {
        let Located { place, image } = source;
        Error::new(Code::VolumeBackend, format!("The volume has no image {image}")).detail(format!(
            "pool {} of site {}",
            place.pool,
            place.site.name()
        ))
    })
}

/// The plan of a backup that begins.
pub(super) async fn draft(b: &Backups, backup: &Backup, source: &Located, store: &Place) -> Result<Plan> {
    let found = require(source).await?;
    let parent = parent(b, backup).await?;
    let (base, new_base) = match &parent {
        Some(parent) => (names::bases(backup, Some(parent)).swap_remove(0), false),
        None => (names::own_base(&backup.volume_id, &backup.id), true),
    };
    // Of a group its snapshot is taken with those of the others, before this begins.
    let ahead = names::snapshots(&found.snaps, &backup.id).next();
    let snap = ahead.map_or_else(|| names::new_snapshot(&backup.id), |taken| taken.name.clone());
    let (point, taken, size) = match &backup.snapshot_id {
        None => match ahead {
            Some(taken) => (snap.clone(), Some(true), taken.size),
            None => (snap.clone(), Some(false), found.info.size),
        },
        Some(id) => {
            let name = b.globals.snapshot_name_template.replace("%s", id);
            let Some(taken) = found.snaps.iter().find(|s| s.name == name) else {
                return Err(Error::new(
                    Code::InvalidSnapshot,
                    format!("Snapshot {id} has no snapshot {name} of image {}", source.image),
                ));
            };
            (name, None, taken.size)
        }
    };
    let common = match &parent {
        Some(parent) => common(b, backup, parent, &found, store, &base, &point).await?,
        None => None,
    };
    Ok(Plan {
        base,
        new_base,
        container: store.pool.clone(),
        site: None,
        snap,
        point,
        taken,
        common,
        size,
        reached: 0,
        read: 0,
        written: 0,
        complete: false,
    })
}

/// The parent of an incremental backup.
///
/// # Errors
/// `BackupNotFound` when it is gone; `Database`.
pub(super) async fn parent(b: &Backups, backup: &Backup) -> Result<Option<Backup>> {
    match &backup.parent_id {
        Some(id) => b.db.read("parent of a backup", async |conn| db::backup::find(conn, id).await).await,
        None => Ok(None),
    }
    .and_then(|found| match (found, &backup.parent_id) {
        (None, Some(id)) => Err(Error::new(
            Code::BackupNotFound,
            format!("The parent {id} of the backup is gone: make a full backup"),
        )),
        (found, _) => Ok(found),
    })
}

/// The newest point that the volume and the base have in common, before the one that is read.
async fn common(
    b: &Backups,
    backup: &Backup,
    parent: &Backup,
    found: &Inspection,
    store: &Place,
    base: &str,
    point: &str,
) -> Result<Option<(String, String)>> {
    let Some(held) = images::inspect(store, base).await? else {
        return Err(Error::new(
            Code::InvalidBackup,
            format!("Can't find base name image {base}: the parent backup is lost, make a full backup"),
        ));
    };
    if names::snapshots(&held.snaps, &parent.id).next().is_none() {
        return Err(Error::new(
            Code::InvalidBackup,
            format!(
                "Can't find snapshot from parent {} and base name image {base}: the parent backup is lost, make a \
                 full backup",
                parent.id
            ),
        ));
    }
    let of_snapshots =
        b.db.read("snapshots of backups", async |conn| {
            db::backup_work::snapshots_of(conn, &backup.volume_id).await
        })
        .await?;
    let before = found.snaps.iter().find(|snap| snap.name == point).map_or(u64::MAX, |snap| snap.id);
    let newest = held
        .snaps
        .iter()
        .filter_map(|of_base| {
            let id = names::backup_of(&of_base.name)?;
            let name = match of_snapshots.iter().find(|(backup, _)| backup == id) {
                Some((_, snapshot)) => b.globals.snapshot_name_template.replace("%s", snapshot),
                None => of_base.name.clone(),
            };
            let of_volume = found.snaps.iter().find(|snap| snap.name == name && snap.id < before)?;
            // A base that has another size there is not the same content.
            (of_volume.size == of_base.size).then_some((of_volume.id, of_volume.name.clone(), &of_base.name))
        })
        .max();
    if newest.is_none() {
        info!(
            backup.id = backup.id,
            parent.id = parent.id,
            "volume and base have no point in common: all that either has is compared"
        );
    }
    Ok(newest.map(|(_, of_volume, of_base)| (of_volume, of_base.clone())))
}

/// A plan that begins once more on what the former has left.
pub(super) async fn again(
    b: &Backups,
    operation: &Operation,
    backup: &Backup,
    source: &Located,
    store: &Place,
    former: Plan,
) -> Result<Plan> {
    warn!(
        backup.id = backup.id,
        reached = former.reached,
        "the snapshot that was read is gone: the copy begins anew"
    );
    let fresh = draft(b, backup, source, store).await?;
    // Its names stay, so that whoever takes it away finds everything.
    let point = if fresh.taken.is_some() { former.snap.clone() } else { fresh.point };
    let plan = Plan {
        snap: former.snap,
        base: former.base,
        new_base: former.new_base,
        site: former.site,
        point,
        ..fresh
    };
    operation.step(PLAN, &plan).await?;
    Ok(plan)
}

/// The base is there and large enough, so is its table of checksums, and the point is taken.
pub(super) async fn prepare(
    b: &Backups,
    operation: &Operation,
    backup: &Backup,
    source: &Located,
    store: &Place,
    plan: &mut Plan,
) -> Result<()> {
    if plan.taken == Some(false) {
        images::take_snapshot(&source.place, &source.image, &plan.point).await?;
        crash::point("create_backup:taken");
        // It may have grown since the plan was made.
        let found = require(source).await?;
        let size = found.snaps.iter().find(|snap| snap.name == plan.point).map(|snap| snap.size);
        plan.size = size.ok_or_else(|| {
            Error::new(Code::VolumeBackend, format!("Snapshot {} is gone again", plan.point))
        })?;
        plan.taken = Some(true);
        operation.step(PLAN, &*plan).await?;
    }
    if plan.reached > 0 || plan.complete {
        return Ok(());
    }
    if plan.new_base {
        let journaling = if b.config.ceph_image_journals { features::JOURNALING } else { 0 };
        let shape = Shape { order: ORDER, features: FEATURES | journaling };
        store.create(&plan.base, plan.size, shape, Attempt::Again).await?;
    } else {
        store.grow(&plan.base, plan.size).await?;
    }
    crash::point("create_backup:base");
    let begin = SumsBegin {
        pool: store.pool.clone(),
        table: names::sums_object(&backup.id),
        parent: backup.parent_id.as_deref().filter(|_| !plan.new_base).map(names::sums_object),
        size: plan.size,
        // Of a base without checksums everything is looked at, when there is no common point.
        blank: plan.new_base || plan.common.is_none(),
    };
    store.site.insist(begin).await?;
    Ok(())
}
