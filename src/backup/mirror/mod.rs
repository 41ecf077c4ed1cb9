//! Method mirror: a backup is a point of the volume that RBD mirroring has brought to another site, pinned there.
//!
//! A snapshot is taken where the volume is primary. When the copy has it with all its data
//! ([`crate::replication::arrival`]), it is cloned there into the pool of the backups, in format 2: such a clone is made at once,
//! holds on to its point through whatever becomes of copy and volume (later syncs, a resync, a failover, their deletion), and no
//! byte of it passes through this service. The clone has a snapshot of its own, which is what is restored and verified, just
//! as with a base of method diff. Each backup is whole in itself, so that an incremental one needs nothing of its parent.
//!
//! `points` keeps few snapshots on the volume, `settle` does in the background what needs not be done before the
//! backup can be used.

mod points;
pub mod settle;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::names::{self, ServiceMetadata};
use super::place::Located;
use super::running::Turn;
use super::{Backups, images, metadata, plan};
use crate::db;
use crate::db::backup_work::BackupChanges;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::{Backup, Volume};
use crate::rbd::protocol::{MirrorInfo, ReplicaClone};
use crate::rbd::types::features;
use crate::rbd::{RbdError, RbdErrorKind};
use crate::replication::arrival::{Arrival, Covering};
use crate::volume::crash;
use crate::volume::image::Place;

pub(super) use points::prune;

/// Journal step: the pin, with how far it is.
pub(super) const PIN: &str = "pinning";
/// Features of a pin. By deep-flatten its snapshot becomes independent with it.
const FEATURES: u64 = features::LAYERING
    | features::EXCLUSIVE_LOCK
    | features::OBJECT_MAP
    | features::FAST_DIFF
    | features::DEEP_FLATTEN;
/// First and longest pause between two looks at the copy; doubles.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often a point is pinned that slips away meanwhile.
const TRIES: u32 = 8;

/// A backup by mirroring, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pin {
    /// The clone.
    pub(super) image: String,
    /// Its pool.
    pub(super) container: String,
    /// Registered site that has it, by its fsid; absent: the cluster of `backup_ceph_conf`.
    #[serde(default)]
    pub(super) site: Option<String>,
    /// Its snapshot, which is the backup.
    pub(super) snap: String,
    /// Snapshot of the volume that is pinned.
    pub(super) point: String,
    /// That is taken for this backup.
    pub(super) own_point: bool,
    /// It is taken, and on its way by this.
    pub(super) covering: Option<Covering>,
    /// The clone and its snapshot are there, and the metadata.
    pub(super) done: bool,
    /// The clone is to be flattened afterwards.
    #[serde(default)]
    pub(super) flatten: bool,
}

impl Pin {
    /// `service_metadata` of the backup.
    pub(super) fn metadata(&self) -> ServiceMetadata {
        ServiceMetadata { base: self.image.clone(), site: self.site.clone(), unverified: true }
    }
}

/// Makes the backup; `None` when it was called off.
///
/// # Errors
/// What has made it fail; `Database`, `Cancelled`.
pub(super) async fn create(
    b: &Backups,
    operation: &Operation,
    backup: &Backup,
    volume: &Volume,
    turn: &Turn,
) -> Result<Option<Pin>> {
    let source = b.locate(volume).await?;
    let mut pin = match operation.reached::<Pin>(PIN).await? {
        Some(pin) => pin,
        None => draft(b, operation, backup, volume, &source).await?,
    };
    if pin.done {
        return Ok(Some(pin));
    }
    crash::point("create_backup:planned");
    let store = Place { site: b.site_of(pin.site.as_deref()).await?, pool: pin.container.clone() };
    let covering = match pin.covering {
        Some(covering) => covering,
        None => {
            if pin.own_point {
                images::take_snapshot(&source.place, &source.image, &pin.point).await?;
                crash::point("create_backup:taken");
            }
            let covering = arrival(&source, &store, &pin.point).begin().await?;
            pin.covering = Some(covering);
            operation.step(PIN, &pin).await?;
            covering
        }
    };
    crash::point("create_backup:covered");
    if !hold(b, &source, &store, &pin, covering, turn).await? {
        return Ok(None);
    }
    crash::point("create_backup:pinned");
    metadata::save(b, &store, backup).await?;
    pin.done = true;
    operation.step(PIN, &pin).await?;
    Ok(Some(pin))
}

fn arrival<'a>(source: &'a Located, store: &'a Place, point: &'a str) -> Arrival<'a> {
    Arrival {
        source: &source.place.site,
        copy: &store.site,
        pool: &source.place.pool,
        image: &source.image,
        snap: point,
    }
}

/// Writes down what is going to be made, in the row, too: whoever deletes a backup that came to nothing looks there.
async fn draft(
    b: &Backups,
    operation: &Operation,
    backup: &Backup,
    volume: &Volume,
    source: &Located,
) -> Result<Pin> {
    let (store, site) = b.destination(backup, plan::parent(b, backup).await?.as_ref(), volume).await?;
    let found = images::inspect(&source.place, &source.image).await?;
    let snaps = found.map(|found| found.snaps).unwrap_or_default();
    // Of a group its snapshot is taken with those of the others, before this begins.
    let ahead = names::snapshots(&snaps, &backup.id).next();
    let snap = ahead.map_or_else(|| names::new_snapshot(&backup.id), |taken| taken.name.clone());
    let (point, own_point) = match &backup.snapshot_id {
        None => (snap.clone(), true),
        Some(id) => {
            let name = b.globals.snapshot_name_template.replace("%s", id);
            if snaps.iter().all(|snap| snap.name != name) {
                return Err(Error::new(
                    Code::InvalidSnapshot,
                    format!("Snapshot {id} has no snapshot {name} of image {}", source.image),
                ));
            }
            (name, false)
        }
    };
    let pin = Pin {
        image: names::pin(&backup.volume_id, &backup.id),
        flatten: b.config.flatten_pool.as_deref() == Some(store.pool.as_str()),
        container: store.pool,
        site,
        snap,
        point,
        own_point,
        covering: None,
        done: false,
    };
    let changes =
        BackupChanges { service_metadata: Some(Some(pin.metadata().write())), ..BackupChanges::default() };
    operation
        .write("plan of a backup", async |conn| {
            db::backup_work::update(conn, &backup.id, &changes).await?;
            operation.step_in(conn, PIN, &pin).await
        })
        .await?;
    Ok(pin)
}

/// Waits for the point, and pins it. False when the backup was called off.
async fn hold(
    b: &Backups,
    source: &Located,
    store: &Place,
    pin: &Pin,
    covering: Covering,
    turn: &Turn,
) -> Result<bool> {
    let arrival = arrival(source, store, &pin.point);
    let (began, mut tries) = (Instant::now(), 0);
    let mut heard = began;
    loop {
        tries += 1;
        let pinned = match is_held(store, pin).await {
            Ok(true) => return Ok(true),
            Ok(false) => {
                let Some(copy) = wait(b, &arrival, covering, began, turn).await? else { return Ok(false) };
                heard = Instant::now();
                pin_once(source, store, pin, &arrival, covering, &copy).await
            }
            Err(error) => Err(error),
        };
        match pinned {
            Ok(true) => return Ok(true),
            Ok(false) => warn!(
                image = pin.image,
                "the copy was exchanged while its point was being pinned: it is pinned anew"
            ),
            // The copy was thrown away under it, a worker was lost, or the site was away: it is looked again what there is.
            Err(error) if tries < TRIES && may_pass(&error, heard.elapsed() < b.config.site_timeout) => {
                info!(image = pin.image, %error, "a point was not pinned, it is tried again");
                sleep(PAUSE.0).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether it is worth while to look again; `patient`: the sites have not been silent for too long.
fn may_pass(error: &RbdError, patient: bool) -> bool {
    error.is_not_found() || error.kind == RbdErrorKind::WorkerLost || (error.is_silence() && patient)
}

/// Only a whole pin has the snapshot: it is taken last.
async fn is_held(store: &Place, pin: &Pin) -> Result<bool, RbdError> {
    let found = images::inspect(store, &pin.image).await?;
    Ok(found.is_some_and(|found| found.snaps.iter().any(|snap| snap.name == pin.snap)))
}

/// Clones the point and takes the snapshot of the clone. False when a resync in between has put another copy, and perhaps an
/// empty one, under the name.
async fn pin_once(
    source: &Located,
    store: &Place,
    pin: &Pin,
    arrival: &Arrival<'_>,
    covering: Covering,
    copy: &str,
) -> Result<bool, RbdError> {
    images::remove_image(store, &pin.image).await?;
    let order = store.site.insist(stat(arrival)).await?.order;
    let clone = ReplicaClone {
        pool: source.place.pool.clone(),
        image: source.image.clone(),
        snap: pin.point.clone(),
        dest_pool: store.pool.clone(),
        dest: pin.image.clone(),
        features: FEATURES,
        order,
    };
    store.site.call(clone).await?;
    crash::point("create_backup:cloned");
    if arrival.whole(covering).await?.as_deref() != Some(copy) {
        return Ok(false);
    }
    images::take_snapshot(store, &pin.image, &pin.snap).await?;
    Ok(true)
}

fn stat(arrival: &Arrival<'_>) -> crate::rbd::protocol::ImageStat {
    crate::rbd::protocol::ImageStat { pool: arrival.pool.to_owned(), image: arrival.image.to_owned() }
}

/// Id of the copy, once it has the point with all its data; `None` when the backup was called off.
async fn wait(
    b: &Backups,
    arrival: &Arrival<'_>,
    covering: Covering,
    began: Instant,
    turn: &Turn,
) -> Result<Option<String>> {
    let (mut pause, mut heard) = (PAUSE.0, Instant::now());
    loop {
        if turn.is_called_off() {
            return Ok(None);
        }
        match arrival.whole(covering).await {
            Ok(Some(copy)) => return Ok(Some(copy)),
            Ok(None) => {
                heard = Instant::now();
                if is_primary(arrival).await.unwrap_or(false) {
                    return Err(Error::new(
                        Code::Replication,
                        format!(
                            "The volume failed over to site {} before all its data had arrived there: make the backup \
                             again",
                            arrival.copy.name()
                        ),
                    ));
                }
            }
            // A silent site was asked again until it was given up.
            Err(error) if error.is_silence() => return Err(error.into()),
            Err(error) if heard.elapsed() >= b.config.site_timeout.min(b.config.mirror_timeout) => {
                return Err(error.into());
            }
            Err(error) => {
                warn!(snap = arrival.snap, %error, "whether a snapshot has arrived cannot be asked just now");
            }
        }
        if began.elapsed() >= b.config.mirror_timeout {
            return Err(Error::new(
                Code::Replication,
                format!(
                    "The volume's data did not arrive on site {} within {} s: see whether rbd-mirror is at work there, or \
                     raise scoria_backup_mirror_timeout",
                    arrival.copy.name(),
                    b.config.mirror_timeout.as_secs()
                ),
            )
            .detail(format!("{}/{}@{}", arrival.pool, arrival.image, arrival.snap)));
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn is_primary(arrival: &Arrival<'_>) -> Result<bool, RbdError> {
    let ask = MirrorInfo { pool: arrival.pool.to_owned(), image: arrival.image.to_owned() };
    match arrival.copy.insist(ask).await {
        Ok(info) => Ok(info.primary),
        Err(error) if error.is_not_found() || error.kind == RbdErrorKind::NoPool => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes away what was made of a backup that failed.
pub(super) async fn undo(b: &Backups, backup: &Backup, volume: Option<&Volume>, pin: &Pin) -> Result<()> {
    // Whatever one of the sites says, the other is tidied up.
    let at_source = async {
        let Some(volume) = volume.filter(|_| pin.own_point) else { return Ok::<(), Error>(()) };
        points::forget(&b.locate(volume).await?.briefly(), &backup.id).await?;
        Ok(())
    };
    let at_store = async {
        let site = b.site_of(pin.site.as_deref()).await?.briefly();
        let store = Place { site, pool: pin.container.clone() };
        images::drop_snapshot(&store, &pin.image, &pin.snap).await?;
        images::remove_image(&store, &pin.image).await?;
        images::remove_object(&store, names::metadata_object(&backup.id)).await?;
        images::remove_object(&store, names::sums_object(&backup.id)).await?;
        Ok::<(), Error>(())
    };
    let (source, store) = tokio::join!(at_source, at_store);
    source.and(store)
}

pub(super) use points::forget;
