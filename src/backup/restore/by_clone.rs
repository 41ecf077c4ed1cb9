//! A restoration that copies nothing: a clone of the backup takes the place of the volume's image.
//!
//! A point that mirroring has pinned lies in the volume's own cluster once that is served from the site of its backups,
//! which is the day on which a new volume is wanted in a second, and not when a terabyte has been copied. The clone is
//! made under a name of ours, gets the size and the metadata of the volume's image, and changes places with it
//! ([`Exchange`]). What is to be compared with its checksums is read before anything is made. Afterwards the volume hangs
//! on the backup until [`super::detach`] has flattened it.
//!
//! Only an image that nothing depends on is replaced: no snapshots, no clones, no mirroring, no parent of its own. The
//! volume's own client makes the clone, so that it is known to be able to read it: whoever attaches the volume is that
//! client.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use super::exchange::{Exchange, Stands};
use crate::backup::method::Method;
use crate::backup::place::Located;
use crate::backup::running::Turn;
use crate::backup::{Backups, images, mirror, names};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::Backup;
use crate::rbd::protocol::*;
use crate::rbd::types::{Checked, ImageInfo, Inspection, MirrorState, features};
use crate::rbd::{RbdError, RbdErrorKind};
use crate::volume::crash;
use crate::volume::image::{OF_ITSELF, Place};

/// Journal step: how far it is.
const EXCHANGING: &str = "exchanging";
/// How often the clone is made that a lost worker or a silent site leaves in doubt.
const TRIES: u32 = 3;
/// `RBD_OPERATION_FEATURE_GROUP` and `…_SNAP_TRASH` (include/rbd/features.h): of a consistency group of Ceph's, and with
/// deleted snapshots that clones still need.
const ENTANGLED: u64 = 4 | 8;
/// What is read of the clone, to see that it can be.
const HEAD: u64 = 4096;

/// A restoration by a clone, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ByClone {
    /// The pin, its pool, and the snapshot that is cloned.
    pool: String,
    base: String,
    point: String,
    /// Of the volume's image.
    size: u64,
    order: u8,
    features: u64,
    /// Its content is still to be compared with the checksums, from here on.
    unread: Option<u64>,
    pub(super) exchange: Exchange,
    /// The volume has the clone.
    done: bool,
}

/// How it ended.
pub(super) enum End {
    /// The volume has the clone.
    Exchanged(Box<Exchange>),
    /// It cannot be done, and nothing is left of it: for this reason the data is to be copied.
    Impossible(String),
    /// The restoration was called off.
    CalledOff,
}

impl ByClone {
    /// Whether an image is in all that users see like the one whose place it is to take. Ceph marks it as a clone.
    fn is_matched_by(&self, made: &ImageInfo) -> bool {
        (made.features ^ self.features) & !features::OPERATIONS == 0
            && (made.order, made.size) == (self.order, self.size)
    }
}

/// Why no clone can be made.
enum Failed {
    /// In this case the data can be copied all the same.
    Impossible(String),
    Ceph(RbdError),
}

impl From<RbdError> for Failed {
    fn from(error: RbdError) -> Failed {
        match error.kind {
            RbdErrorKind::Permission => Failed::Impossible(format!(
                "the client of the volume's backend may not do it: give it 'profile rbd' or 'profile rbd-read-only' on \
                 the pool of the backups ({})",
                error.message
            )),
            RbdErrorKind::NotSupported | RbdErrorKind::Invalid => Failed::Impossible(error.message),
            _ => Failed::Ceph(error),
        }
    }
}

/// What is restored into what.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) backup: &'a Backup,
    pub(super) store: &'a Place,
    pub(super) base: &'a str,
    pub(super) point: Option<&'a str>,
    pub(super) target: &'a Located,
    pub(super) found: &'a Inspection,
}

/// Looks whether the volume's image can be replaced. In words why not, otherwise.
///
/// # Errors
/// What Ceph answers.
pub(super) async fn plan(
    b: &Backups,
    operation: &Operation,
    wanted: Wanted<'_>,
) -> Result<std::result::Result<ByClone, String>, RbdError> {
    let Wanted { backup, store, base, point, target, found } = wanted;
    let no = |why: &str| Ok(Err(why.to_owned()));
    if !b.config.restore_by_clone {
        return no("scoria_backup_restore_by_clone is false");
    }
    let Some(point) = point.filter(|_| Method::of(backup.service.as_deref()) == Method::Mirror) else {
        return no("the backup is none by mirroring");
    };
    let (here, there) = (target.place.site.insist(Fsid {}).await?, store.site.insist(Fsid {}).await?);
    if here != there {
        return no("the backup is in another cluster");
    }
    if let Some(why) = obstacle(found) {
        return no(why);
    }
    let Located { place, image } = target;
    let ask = MirrorInfo { pool: place.pool.clone(), image: image.clone() };
    if place.site.insist(ask).await?.state != MirrorState::Disabled {
        return no("the volume's image is mirrored");
    }
    let ask = ImageChildren { pool: place.pool.clone(), image: image.clone(), snap: None };
    if !place.site.insist(ask).await?.is_empty() {
        return no("the volume's image has clones");
    }
    let compares = b.config.verify_on_restore && !mirror::settle::is_unverified(backup);
    let ImageInfo { id, size, order, features, .. } = found.info.clone();
    Ok(Ok(ByClone {
        pool: store.pool.clone(),
        base: base.to_owned(),
        point: point.to_owned(),
        size,
        order,
        features,
        unread: compares.then_some(0),
        exchange: Exchange::new(place, here, image, id, operation.id()),
        done: false,
    }))
}

/// Why an image cannot be replaced by a clone, as far as it shows itself.
fn obstacle(found: &Inspection) -> Option<&'static str> {
    let Inspection { info, snaps } = found;
    let has = |bits: u64| info.features & bits == bits;
    match info {
        _ if !snaps.is_empty() => Some("the volume's image has snapshots"),
        ImageInfo { parent: Some(_), .. } => Some("the volume's image is a clone itself"),
        // Without deep-flatten its snapshots would keep the backup for ever.
        _ if !has(features::LAYERING | features::DEEP_FLATTEN) => {
            Some("the volume's image lacks layering or deep-flatten")
        }
        _ if info.features & !(OF_ITSELF | features::DATA_POOL | features::OPERATIONS) != 0 => {
            Some("the volume's image has features that a clone would not have")
        }
        _ if info.op_features & ENTANGLED != 0 => Some("the volume's image is in a group, or has clones"),
        _ if info.stripe_unit != 1 << info.order => Some("the volume's image is striped"),
        _ => None,
    }
}

/// One that was begun, if the operation is at that.
///
/// # Errors
/// `Database`.
pub(super) async fn begun(operation: &Operation) -> Result<Option<ByClone>> {
    operation.reached(EXCHANGING).await
}

/// Writes it down before it begins.
///
/// # Errors
/// `Database`.
pub(super) async fn begin(operation: &Operation, by_clone: &ByClone) -> Result<()> {
    operation.step(EXCHANGING, by_clone).await
}

/// Carries it out, or goes on with it.
///
/// # Errors
/// `InvalidBackup` when the content is not what was backed up, and nothing was changed; what Ceph answers.
pub(super) async fn run(
    b: &Backups,
    operation: &Operation,
    backup: &Backup,
    store: &Place,
    mut by_clone: ByClone,
    turn: &Turn,
) -> Result<End> {
    let place = by_clone.exchange.place(b);
    if by_clone.done {
        return Ok(End::Exchanged(Box::new(by_clone.exchange)));
    }
    if !compare(b, operation, backup, store, &mut by_clone, turn).await? {
        return Ok(End::CalledOff);
    }
    let new = match by_clone.exchange.new.clone() {
        Some(new) => new,
        None => match make(&place, &by_clone).await {
            Ok(new) => {
                by_clone.exchange.new = Some(new.clone());
                operation.step(EXCHANGING, &by_clone).await?;
                new
            }
            Err(Failed::Impossible(why)) => {
                images::remove_image(&place, &by_clone.exchange.new_name()).await?;
                return Ok(End::Impossible(why));
            }
            Err(Failed::Ceph(error)) => return Err(error.into()),
        },
    };
    crash::point("restore_backup:cloned");
    if turn.is_called_off() {
        return Ok(End::CalledOff);
    }
    refuse_user(&place, by_clone.exchange.image()).await?;
    by_clone.exchange.carry_out(&place, &new).await?;
    by_clone.done = true;
    operation.step(EXCHANGING, &by_clone).await?;
    Ok(End::Exchanged(Box::new(by_clone.exchange)))
}

/// The comparison may have taken hours. Nobody has an image open that has not its name.
async fn refuse_user(place: &Place, image: &str) -> Result<()> {
    match place.user_of(image).await {
        Ok(None) => Ok(()),
        Ok(Some(watcher)) => {
            let text =
                format!("The volume's image is in use by {}: detach it and restore again", watcher.address);
            Err(Error::new(Code::VolumeBusy, text))
        }
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Compares what is to be restored with its checksums, where it is: nothing is written, so it is read at full pace, as far as
/// `scoria_backup_bandwidth` lets it. False when the restoration was called off.
async fn compare(
    b: &Backups,
    operation: &Operation,
    backup: &Backup,
    store: &Place,
    by_clone: &mut ByClone,
    turn: &Turn,
) -> Result<bool> {
    while let Some(offset) = by_clone.unread {
        if turn.is_called_off() {
            return Ok(false);
        }
        let check = SumsCheck {
            pool: by_clone.pool.clone(),
            image: by_clone.base.clone(),
            snap: Some(by_clone.point.clone()),
            table: names::sums_object(&backup.id),
            offset,
            budget: images::budget(b.config.bandwidth_mib),
        };
        let began = Instant::now();
        let part: Checked = store.site.insist(check).await?;
        if let Some(wrong) = part.wrong.first() {
            let text = format!(
                "Backup {} does not hold what was written {wrong} bytes from its beginning: its checksum is another. \
                 Nothing was changed: restore another backup, or, if you want what is there, with \
                 scoria_backup_verify_on_restore = false",
                backup.id
            );
            return Err(Error::new(Code::InvalidBackup, text));
        }
        by_clone.unread = (!part.complete).then_some(part.reached);
        operation.step(EXCHANGING, by_clone).await?;
        crash::point("restore_backup:compared");
        images::pace(b.config.bandwidth_mib, part.compared + part.unknown, began).await;
    }
    Ok(true)
}

/// Makes the clone and gives it what the volume's image has; its id.
async fn make(place: &Place, by_clone: &ByClone) -> std::result::Result<String, Failed> {
    let new = by_clone.exchange.new_name();
    let clone = ReplicaClone {
        pool: by_clone.pool.clone(),
        image: by_clone.base.clone(),
        snap: by_clone.point.clone(),
        dest_pool: place.pool.clone(),
        dest: new.clone(),
        features: by_clone.features & OF_ITSELF,
        order: by_clone.order,
    };
    let mut tries = 1;
    loop {
        // What an attempt has left that was cut short may be no clone: it is made anew.
        images::remove_image(place, &new).await?;
        match place.site.call(clone.clone()).await {
            Ok(()) => break,
            Err(error) if error.effect_unknown() && tries < TRIES => {
                warn!(image = new, %error, "a clone is made again");
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    crash::point("restore_backup:clone_made");
    place.grow(&new, by_clone.size).await?;
    let made = place.stat(&new).await?;
    if !by_clone.is_matched_by(&made) {
        return Err(Failed::Impossible(format!(
            "a clone would have features {}, order {} and {} bytes instead of {}, {} and {}",
            made.features, made.order, made.size, by_clone.features, by_clone.order, by_clone.size
        )));
    }
    equip(place, by_clone.exchange.image(), &new).await?;
    // Whoever attaches the volume reads by way of the backup.
    place.read_head(&new, None, HEAD.min(by_clone.size)).await?;
    Ok(made.id)
}

/// Image metadata, such as limits of its QoS: a clone begins with its parent's, and is to have those of the image whose
/// place it takes.
async fn equip(place: &Place, image: &str, new: &str) -> Result<(), RbdError> {
    let list = |image: &str| MetadataList { pool: place.pool.clone(), image: image.to_owned() };
    let wanted = place.site.insist(list(image)).await?;
    let present = place.site.insist(list(new)).await?;
    for (key, _) in present.iter().filter(|(key, _)| wanted.iter().all(|(other, _)| other != key)) {
        let (pool, image, key) = (place.pool.clone(), new.to_owned(), key.clone());
        match place.site.insist(MetadataRemove { pool, image, key }).await {
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
    }
    for (key, value) in wanted.into_iter().filter(|pair| !present.contains(pair)) {
        let (pool, image) = (place.pool.clone(), new.to_owned());
        place.site.insist(MetadataSet { pool, image, key, value }).await?;
    }
    Ok(())
}

/// Takes away what there is of a restoration that does not come to its end. Answers an exchange that is still to be
/// seen to: it has happened, and the volume hangs on the backup, or its site did not let it be put right now.
///
/// # Errors
/// `Database`.
pub(super) async fn undo(b: &Backups, operation: &Operation) -> Result<Option<Exchange>> {
    let Some(ByClone { exchange, .. }) = begun(operation).await? else { return Ok(None) };
    match exchange.put_right(&exchange.place(b)).await {
        Ok(Stands::New) => Ok(Some(exchange)),
        Ok(Stands::Old | Stands::Neither) => Ok(None),
        Err(error) => {
            warn!(image = exchange.image(), %error, "what a restoration has made is taken away in the background");
            Ok(Some(exchange))
        }
    }
}

/// Says which way a restoration goes.
pub(super) fn tell(backup_id: &str, volume_id: &str, why_not: Option<&str>) {
    match why_not {
        None => {
            info!(
                backup.id = backup_id,
                volume.id = volume_id,
                "a clone of the backup takes the place of the volume's image"
            )
        }
        Some(why) => {
            info!(
                backup.id = backup_id,
                volume.id = volume_id,
                why,
                "the backup is copied into the volume's image"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::sim::{Sim, SimConfig};
    use crate::rbd::types::{Parent, Snap};

    #[test]
    fn only_an_image_on_which_nothing_hangs_is_replaced() {
        let info = ImageInfo {
            id: "1".into(),
            size: 1 << 30,
            order: 22,
            features: 61,
            op_features: 0,
            stripe_unit: 1 << 22,
            parent: None,
        };
        let of = |info: ImageInfo| Inspection { info, snaps: Vec::new() };
        assert_eq!(obstacle(&of(info.clone())), None);
        assert_eq!(obstacle(&of(ImageInfo { features: 61 | features::DATA_POOL, ..info.clone() })), None);
        assert_eq!(obstacle(&of(ImageInfo { features: 61 | features::OPERATIONS, ..info.clone() })), None);
        // One that several servers may attach.
        assert_eq!(obstacle(&of(ImageInfo { features: 33, ..info.clone() })), None);
        let parent = Parent { pool: "p".into(), image: "i".into(), snap: "s".into() };
        for other in [
            ImageInfo { parent: Some(parent), ..info.clone() },
            ImageInfo { features: 61 & !features::DEEP_FLATTEN, ..info.clone() },
            ImageInfo { features: features::DEEP_FLATTEN, ..info.clone() },
            ImageInfo { features: 61 | features::NON_PRIMARY, ..info.clone() },
            ImageInfo { op_features: 4, ..info.clone() },
            ImageInfo { op_features: 8, ..info.clone() },
            ImageInfo { stripe_unit: 65536, ..info.clone() },
        ] {
            assert!(obstacle(&of(other.clone())).is_some(), "{other:?}");
        }
        let snap = Snap { id: 1, name: "s".into(), size: 1, protected: false };
        assert!(obstacle(&Inspection { info, snaps: vec![snap] }).is_some());
    }

    #[test]
    fn a_clone_must_be_like_the_image_but_for_what_marks_it_as_one() {
        let sim = Sim::new(SimConfig::default());
        let place = Place { site: sim.site("a"), pool: "volumes".to_owned() };
        let by_clone = ByClone {
            pool: "backups".into(),
            base: "b".into(),
            point: "p".into(),
            size: 1 << 30,
            order: 22,
            features: 61,
            unread: None,
            exchange: Exchange::new(&place, "fsid".into(), "v", "1".into(), 7),
            done: false,
        };
        let made = ImageInfo {
            id: "2".into(),
            size: 1 << 30,
            order: 22,
            features: 61 | features::OPERATIONS,
            op_features: 2,
            stripe_unit: 1 << 22,
            parent: None,
        };
        assert!(by_clone.is_matched_by(&made));
        for other in [
            ImageInfo { features: 61 | features::DATA_POOL, ..made.clone() },
            ImageInfo { order: 23, ..made.clone() },
            ImageInfo { size: 2 << 30, ..made.clone() },
        ] {
            assert!(!by_clone.is_matched_by(&other), "{other:?}");
        }
    }
}
