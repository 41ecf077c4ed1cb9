//! A clone that is to be mirrored, and what it was cloned from.
//!
//! Ceph mirrors a clone only when its parent is mirrored, because the copy on the other site hangs on the parent's copy.
//! A volume type says what is to be done about a parent that is not (`replication:parent`): `refuse`, which is the
//! default, `mirror` the parent too, or `flatten` the clone, whatever its parent, so that it stands alone. A backup, of which
//! the volume was restored by a clone, is no parent to stay: from it the image is made independent at once, as it would
//! be in the background (`backup/restore/detach.rs`).

use futures::FutureExt;
use futures::future::BoxFuture;
use tracing::{info, warn};

use super::enable;
use super::standing::settled;
use crate::backend::Backend;
use crate::db;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::{DriverData, ReplicationStatus, Volume, VolumeType};
use crate::rbd::protocol::MirrorInfo;
use crate::rbd::types::{MirrorMode, MirrorState, Parent, features};
use crate::volume::crash;
use crate::volume::delete::is_ours;
use crate::volume::image::{CLONE_SNAP, PIN, Place};

/// Ancestors that are mirrored for one clone; more are not expected of any cloning.
const DEEPEST: usize = 32;

/// Step of a parent that this operation mirrors.
const BEGUN: &str = "parent_begun";

/// `replication:parent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// A clone of an image that is not mirrored cannot be mirrored.
    Refuse,
    /// Its parent is mirrored too.
    Mirror,
    /// It gets its parent's data.
    Flatten,
}

impl Policy {
    /// What a type asks for.
    ///
    /// # Errors
    /// `InvalidInput` for a policy that does not exist.
    pub fn of(kind: &VolumeType) -> Result<Policy> {
        match kind.extra_specs.get("replication:parent").map(|p| p.trim().to_ascii_lowercase()).as_deref() {
            None | Some("refuse") => Ok(Policy::Refuse),
            Some("mirror") => Ok(Policy::Mirror),
            Some("flatten") => Ok(Policy::Flatten),
            Some(other) => Err(Error::new(
                Code::InvalidInput,
                format!(
                    "Volume type {}: replication:parent is '{other}'; it must be mirror, flatten or refuse",
                    kind.name
                ),
            )),
        }
    }
}

/// A volume that is to be mirrored.
#[derive(Debug, Clone, Copy)]
pub struct Child<'a> {
    /// Its id, for those who are told of a refusal.
    pub volume_id: &'a str,
    /// Its image.
    pub image: &'a str,
    /// Its type, or the one that it gets.
    pub kind: &'a VolumeType,
    /// How it is to be mirrored.
    pub mode: MirrorMode,
}

/// Makes an image one that Ceph will mirror, as far as its parent is concerned. Repeatable.
///
/// # Errors
/// `InvalidVolume` when its type does not let that happen, or its parent cannot be mirrored; `InvalidInput` for a type
/// that cannot be understood; `Replication` and `VolumeBackend` for what Ceph refuses.
pub async fn prepare(
    backend: &Backend,
    operation: &Operation,
    place: &Place,
    child: Child<'_>,
) -> Result<()> {
    let policy = Policy::of(child.kind)?;
    let Some(parent) = place.stat(child.image).await?.parent else { return Ok(()) };
    let ask = MirrorInfo { pool: place.pool.clone(), image: child.image.to_owned() };
    if place.site.insist(ask).await?.state == MirrorState::Enabled {
        // By an attempt that was cut short. Flattening it now could cost its copy the parent's data (Ceph 16).
        return Ok(());
    }
    if leave_backup(place, child.image, &parent).await? {
        return Ok(());
    }
    match policy {
        Policy::Flatten => {
            place.flatten(child.image).await?;
            crash::point("replicated_clone:flattened");
            drop_helper(place, child.image, &parent).await;
            Ok(())
        }
        Policy::Refuse | Policy::Mirror => {
            require_mirrored(backend, operation, place, child, &parent, policy, DEEPEST).await
        }
    }
}

/// Flattens an image that is a clone of a backup. False for any other.
async fn leave_backup(place: &Place, image: &str, parent: &Parent) -> Result<bool> {
    if !parent.image.starts_with(PIN) {
        return Ok(false);
    }
    info!(
        image,
        parent = parent.image,
        "an image that is to be mirrored is made independent of the backup it was restored from"
    );
    place.flatten(image).await?;
    crash::point("replicated_clone:backup_left");
    Ok(true)
}

/// The snapshot that only this clone hung on.
async fn drop_helper(place: &Place, image: &str, parent: &Parent) {
    if parent.pool != place.pool || parent.snap != format!("{image}{CLONE_SNAP}") {
        return;
    }
    if let Err(error) = place.remove_snapshot(&parent.image, &parent.snap).await {
        warn!(image = parent.image, snap = parent.snap, %error, "a helper snapshot stays; it is removed with its image");
    }
}

fn require_mirrored<'a>(
    backend: &'a Backend,
    operation: &'a Operation,
    place: &'a Place,
    child: Child<'a>,
    parent: &'a Parent,
    policy: Policy,
    depth: usize,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let ask = MirrorInfo { pool: parent.pool.clone(), image: parent.image.clone() };
        let info = place.site.insist(ask).await?;
        if info.state == MirrorState::Enabled && info.primary {
            settle(backend, operation, place, parent).await?;
            // The copy of the clone waits for the snapshot that it hangs on.
            let above = Place { site: place.site.clone(), pool: parent.pool.clone() };
            above.carry_over_if_possible(&parent.image).await;
            return Ok(());
        }
        if info.state == MirrorState::Enabled {
            return Err(refusal(child, parent, "which is not primary where the clone is made"));
        }
        if policy != Policy::Mirror {
            return Err(refusal(child, parent, "which is not replicated"));
        }
        if parent.pool != place.pool || depth == 0 {
            return Err(refusal(child, parent, "which cannot be replicated with it"));
        }
        let Some(volume) = volume_of(backend, parent).await? else {
            return Err(refusal(child, parent, "which is no volume, and cannot be replicated with it"));
        };
        let _held = backend.locks.lock(&volume.id).await;
        let volume =
            backend.db.read("parent to mirror", async |conn| db::volume::get(conn, &volume.id).await).await?;
        if let Some(above) = place.stat(&parent.image).await?.parent
            && !leave_backup(place, &parent.image, &above).await?
        {
            let next = Child { image: &parent.image, ..child };
            require_mirrored(backend, operation, place, next, &above, policy, depth - 1).await?;
        }
        mirror(backend, operation, place, child, parent, &volume).await
    }
    .boxed()
}

/// Writes down that a parent is mirrored, when an attempt that was cut short has mirrored it.
async fn settle(backend: &Backend, operation: &Operation, place: &Place, parent: &Parent) -> Result<()> {
    if !operation.is_adopted() {
        return Ok(());
    }
    let Some(volume) = volume_of(backend, parent).await? else { return Ok(()) };
    let item = item_of(&volume);
    if !operation.items().await?.iter().any(|step| step.resource_id == item && step.name == BEGUN) {
        return Ok(());
    }
    let _held = backend.locks.lock(&volume.id).await;
    let volume =
        backend.db.read("mirrored parent", async |conn| db::volume::get(conn, &volume.id).await).await?;
    if volume.replication_status.as_deref() == Some(ReplicationStatus::Enabling.as_str()) {
        let data = DriverData::parse(volume.replication_driver_data.as_deref());
        set(backend, operation, &volume, settled(place.site.name()), Some(data)).await?;
    }
    Ok(())
}

/// A volume that is another one's parent, among the resources of an operation.
fn item_of(volume: &Volume) -> String {
    format!("parent:{}", volume.id)
}

fn refusal(child: Child<'_>, parent: &Parent, why: &str) -> Error {
    Error::new(
        Code::InvalidVolume,
        format!(
            "Volume {} cannot be replicated: its image is a clone of {}, {why}",
            child.volume_id, parent.image
        ),
    )
    .detail(format!(
        "replicate {}/{} first, or give volume type {} the extra spec replication:parent=flatten or =mirror",
        parent.pool, parent.image, child.kind.name
    ))
}

/// The volume whose image a parent is.
async fn volume_of(backend: &Backend, parent: &Parent) -> Result<Option<Volume>> {
    let template = &backend.globals.volume_name_template;
    let (before, after) = template.split_once("%s").unwrap_or((template, ""));
    let Some(id) = parent.image.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)) else {
        return Ok(None);
    };
    let found = backend.db.read("parent of a clone", async |conn| db::volume::find(conn, id).await).await?;
    Ok(found.filter(|v| is_ours(backend, v) && backend.image_name(v) == parent.image))
}

/// Mirrors the parent's image. Its row is written first: what mirroring has added is in it then, whatever happens.
async fn mirror(
    backend: &Backend,
    operation: &Operation,
    place: &Place,
    child: Child<'_>,
    parent: &Parent,
    volume: &Volume,
) -> Result<()> {
    let status = volume.replication_status.as_deref();
    let begun =
        status == Some(ReplicationStatus::Enabling.as_str()) && volume.replication_driver_data.is_some();
    if !begun && !matches!(status, None | Some("disabled" | "not-capable")) {
        let why = format!("whose replication_status is {}", status.unwrap_or_default());
        return Err(refusal(child, parent, &why));
    }
    if volume.multiattach {
        return Err(refusal(
            child,
            parent,
            "which several servers may attach at once, and which is never replicated",
        ));
    }
    if backend.place(volume).await?.site.name() != place.site.name() {
        return Err(refusal(child, parent, "which is served from another site"));
    }
    let data = if begun {
        DriverData::parse(volume.replication_driver_data.as_deref())
    } else {
        let bits = place.stat(&parent.image).await?.features;
        DriverData {
            had_exclusive_lock: bits & features::EXCLUSIVE_LOCK != 0,
            had_journaling: bits & features::JOURNALING != 0,
        }
    };
    // Before its image is: an attempt that is cut short later is told by it.
    operation.item_step(&item_of(volume), BEGUN, &()).await?;
    set(backend, operation, volume, ReplicationStatus::Enabling, Some(data)).await?;
    crash::point("replicated_clone:parent_begun");
    let bit = |had: bool, bit: u64| if had { bit } else { 0 };
    let before = bit(data.had_exclusive_lock, features::EXCLUSIVE_LOCK)
        | bit(data.had_journaling, features::JOURNALING);
    let enabled = enable::enable(&place.site, &place.pool, &parent.image, child.mode, before).await;
    if let Err(error) = enabled {
        if let Err(error) = enable::disable(&place.site, &place.pool, &parent.image, data).await {
            warn!(volume.id = volume.id, %error, "an image that could not be mirrored is not what it was");
        }
        set(backend, operation, volume, ReplicationStatus::Disabled, None).await?;
        return Err(refusal(child, parent, "which Ceph does not mirror").caused_by(error));
    }
    crash::point("replicated_clone:parent_mirrored");
    set(backend, operation, volume, settled(place.site.name()), Some(data)).await?;
    info!(volume.id = volume.id, clone = child.volume_id, "volume is replicated because a clone of it is");
    Ok(())
}

async fn set(
    backend: &Backend,
    operation: &Operation,
    volume: &Volume,
    status: ReplicationStatus,
    data: Option<DriverData>,
) -> Result<()> {
    let changes = VolumeChanges {
        replication_status: Some(Some(status.as_str().to_owned())),
        replication_driver_data: Some(data.map(DriverData::to_text)),
        ..VolumeChanges::default()
    };
    operation
        .write("parent of a replicated clone", async |conn| {
            db::volume::update(conn, &volume.id, &changes).await
        })
        .await?;
    backend.schedules_wanted.notify_one();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_refuses_unless_it_says_otherwise() {
        let mut kind = VolumeType { name: "t".into(), ..VolumeType::default() };
        assert_eq!(Policy::of(&kind).unwrap(), Policy::Refuse);
        for (text, policy) in
            [("refuse", Policy::Refuse), (" Mirror ", Policy::Mirror), ("flatten", Policy::Flatten)]
        {
            kind.extra_specs.insert("replication:parent".into(), text.into());
            assert_eq!(Policy::of(&kind).unwrap(), policy);
        }
        kind.extra_specs.insert("replication:parent".into(), "adopt".into());
        let refused = Policy::of(&kind).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidInput);
        assert!(refused.user().contains("'adopt'"));
    }
}
