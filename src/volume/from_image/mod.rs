//! A volume with the content of an image.
//!
//! The cheap way is a copy-on-write clone, where Glance keeps the image raw in the Ceph cluster that the volume is
//! made in. Otherwise its bytes come over HTTP: raw ones go straight into the volume, and zeros are left out;
//! other formats need a temporary file, since they cannot be read from front to back, and are refused unless
//! they can be read without harm (`inspect`). An encrypted volume gets the content of an image through the layer that
//! encrypts it (`layer`), or the bytes of an image that is an encrypted volume as they are. What was begun and not finished is removed and begun anew: nothing
//! of a half-written volume can be told from the image's own zeros.
//!
//! Reference: `cinder/volume/flows/manager/create_volume.py`, `cinder/volume/drivers/rbd.py` (`clone_image`,
//! `copy_image_to_volume`), `cinder/image/image_utils.py`.

mod cache;
mod convert;
mod gunzip;
mod image_volume;
mod inspect;
mod layer;
mod location;
mod metadata;
mod nbd;
mod scratch;
mod signature;
mod sink;
mod write;

use std::collections::BTreeMap;

use futures::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::{debug, info};

pub(super) use cache::{Keep, store};
pub(super) use metadata::from_fields;
pub(super) use scratch::{Temporary, volume_of};
use sink::{Coat, Make, Target};

use super::encryption::{self, KeyChange};
use super::image::{Attempt, Place, Shape};
use crate::backend::Backend;
use crate::backend::locks::NamedGuard;
use crate::context::RequestContext;
use crate::db;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::{GIB, Volume, VolumeEvent};
use crate::openstack::glance::{Image, Locations};
use crate::rbd::protocol::Fsid;
use cache::Cache;
use location::RbdLocation;
use metadata::of_image;

/// Journal item of a volume whose image is complete, with its image metadata.
const FILLED: &str = "filled";

/// The image metadata of a volume.
pub(super) type Metadata = BTreeMap<String, String>;

/// What was made of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Filled {
    /// What the volume remembers of it.
    pub(super) metadata: Metadata,
    /// A copy that is to be kept of the volume, before it is as large as it shall be.
    pub(super) keep: Option<Keep>,
}

/// Who wants what of an image.
pub(super) struct Request<'a> {
    /// Whose image.
    pub(super) context: &'a RequestContext,
    /// The journalled request.
    pub(super) operation: &'a Operation,
    /// The volume.
    pub(super) volume: &'a Volume,
    /// The image in Glance.
    pub(super) image_id: &'a str,
    /// Nothing may depend on anything else: the volume will be mirrored.
    pub(super) independent: bool,
}

/// Makes the volume's image in Ceph, with the content of an image. With what comes back nobody else asks for the
/// same image until the guard is dropped.
///
/// # Errors
/// What Glance answered; `ImageUnacceptable`, `ImageDoesNotFit`, `ImageTooBig`, `ImageConversionNotAllowed`,
/// `ImageSignature`, `ImageCopy`; what Ceph refused.
pub(super) async fn fill(
    backend: &Backend,
    request: &Request<'_>,
    place: &Place,
    shape: Shape,
    attempt: Attempt,
) -> Result<(Filled, Option<NamedGuard>)> {
    let (context, volume, id) = (request.context, request.volume, request.image_id);
    // What is encrypted has a key of its own: it is nobody else's copy.
    let cache = Cache::of(backend).filter(|_| volume.encryption_key_id.is_none());
    if attempt == Attempt::Again {
        cache::finish_evictions(backend, request.operation).await?;
    }
    if let Some(done) = done_before(request, attempt).await? {
        let guard = match (&cache, &done.keep) {
            (Some(cache), Some(_)) => Some(cache.lock(id).await),
            _ => None,
        };
        return Ok((done, guard));
    }
    let glance = &backend.globals.openstack.glance;
    let locations = glance.locations(context, id).boxed().await?;
    let image = glance.show(context, id).boxed().await?;
    if let Some(bytes) = image.virtual_size {
        inspect::require_fit(bytes, volume.size, id)?;
    }
    let name = backend.image_name(volume);
    if attempt == Attempt::Again {
        // The former attempt may have left a part of it.
        place.clear_away(&name).await?;
    }
    let mut filled = Filled { metadata: of_image(&image), keep: None };
    let mut guard = None;
    let cloned = cloned(request, place, &name, &image, &locations, shape).boxed().await?
        || image_volume::clone(backend, request, place, &name, &image, &locations, shape).boxed().await?;
    if !cloned {
        let mut found = false;
        if let Some(cache) = &cache {
            guard = Some(cache.lock(id).await);
            found = cache.clone(request, place, &name, &image, shape).boxed().await?;
            filled.keep = (!found).then(|| cache.keep(&image));
        }
        if !found {
            download(backend, request, place, shape, &image, &mut filled).await?;
        }
    }
    request.operation.item_step(&volume.id, FILLED, &filled).await?;
    let guard = guard.filter(|_| filled.keep.is_some());
    Ok((filled, guard))
}

/// Writes an image over a volume that has content.
///
/// # Errors
/// As [`fill`].
pub(super) async fn overwrite(
    backend: &Backend,
    context: &RequestContext,
    image_id: &str,
    volume: &Volume,
    place: &Place,
) -> Result<()> {
    let image = backend.globals.openstack.glance.show(context, image_id).boxed().await?;
    let mut coat = coat(backend, context, volume, &image).await?;
    // The API has given the volume no copy of the image's key, as it does for a new one: its own key stays.
    if let (Coat::Own, Some(key)) = (&coat, key_of(&image))
        && let Some(change) = KeyChange::needed(backend, context, volume, key).await?
    {
        coat = Coat::Other(change);
    }
    let name = backend.image_name(volume);
    let target = Target { place, name: &name, gib: volume.size, make: None, coat };
    // As upstream, which asks for signatures of new volumes only.
    write::download(backend, context, &image, &volume.id, &target, None).boxed().await.map(|_| ())
}

async fn download(
    backend: &Backend,
    request: &Request<'_>,
    place: &Place,
    shape: Shape,
    image: &Image,
    filled: &mut Filled,
) -> Result<()> {
    let volume = request.volume;
    let mut verifier = None;
    if backend.globals.image.verify_signatures {
        verifier = signature::verifier(backend, request.context, image).boxed().await?;
        let verified = if verifier.is_some() { "True" } else { "False" };
        filled.metadata.insert("signature_verified".to_owned(), verified.to_owned());
    }
    let coat = coat(backend, request.context, volume, image).await?;
    downloading(request).await?;
    let name = backend.image_name(volume);
    let make = Some(Make { shape, small: filled.keep.is_some() });
    let target = Target { place, name: &name, gib: volume.size, make, coat };
    let gib = write::download(backend, request.context, image, &volume.id, &target, verifier.as_ref())
        .boxed()
        .await?;
    if let Some(keep) = &mut filled.keep {
        keep.gib = gib;
    }
    Ok(())
}

/// How the content of an image is to lie in a volume.
async fn coat(backend: &Backend, context: &RequestContext, volume: &Volume, image: &Image) -> Result<Coat> {
    if volume.encryption_key_id.is_none() {
        return Ok(Coat::Bare);
    }
    if key_of(image).is_some() {
        return Ok(Coat::Own);
    }
    let lock = encryption::lock(backend, context, volume).await;
    lock.map(Coat::New).map_err(|e| match e.code() {
        // As for whatever else upstream meets on the way of an image.
        Code::KeyManager | Code::VolumeBackend => {
            let text = format!("Failed to copy image to volume: {}", e.user());
            Error::new(Code::ImageCopy, text).caused_by(e)
        }
        _ => e,
    })
}

/// The key of an image that is an encrypted volume.
pub(super) fn key_of(image: &Image) -> Option<&str> {
    image.properties.get("cinder_encryption_key_id").and_then(Value::as_str).filter(|id| !id.is_empty())
}

/// What a former attempt has done completely.
async fn done_before(request: &Request<'_>, attempt: Attempt) -> Result<Option<Filled>> {
    if attempt == Attempt::First {
        return Ok(None);
    }
    let steps = request.operation.items().await?;
    let done = steps.into_iter().find(|s| s.resource_id == request.volume.id && s.name == FILLED);
    done.map(|step| step.parse()).transpose()
}

/// The row says that data is on its way.
async fn downloading(request: &Request<'_>) -> Result<()> {
    let id = request.volume.id.clone();
    request
        .operation
        .write("download begins", async |conn| {
            let none = VolumeChanges::default();
            db::volume::transition(conn, &id, VolumeEvent::Downloading, &none).await
        })
        .await
}

/// Clones the image where it lies in this very Ceph cluster; false when it does not, or cannot be.
async fn cloned(
    request: &Request<'_>,
    place: &Place,
    name: &str,
    image: &Image,
    locations: &Locations,
    shape: Shape,
) -> Result<bool> {
    // A gzipped one lies there gzipped.
    let as_it_is = image.disk_format.as_deref() == Some("raw") && !write::is_compressed(image);
    let encrypted = request.volume.encryption_key_id.is_some();
    if !as_it_is || (encrypted && key_of(image).is_none()) {
        return Ok(false);
    }
    let candidates: Vec<RbdLocation> = locations.urls().into_iter().filter_map(RbdLocation::parse).collect();
    if candidates.is_empty() {
        return Ok(false);
    }
    let fsid = place.site.insist(Fsid {}).await?;
    for location in candidates {
        if location.fsid != fsid {
            debug!(image.id = image.id, location.fsid, "the image lies in another Ceph cluster");
            continue;
        }
        let Some(parent) = location.look(place).await? else {
            debug!(image.id = image.id, location.pool, location.image, "the image cannot be opened here");
            continue;
        };
        // The API has given the volume a copy of the image's key: what is in front of the content stays.
        let room = match encrypted {
            true => Coat::Own.room(&location.head(place).await?, &image.id)?,
            false => 0,
        };
        inspect::require_fit(parent.size.saturating_sub(room), request.volume.size, &image.id)?;
        let bytes = u64::try_from(request.volume.size).unwrap_or(0) * GIB + room;
        location.clone_to(place, name, &parent, shape).await?;
        place.grow(name, bytes).await?;
        if request.independent {
            // Ceph mirrors no clone whose parent it does not mirror.
            place.flatten(name).await?;
        }
        info!(
            volume.id = request.volume.id,
            image.id = image.id,
            pool = location.pool,
            "volume cloned from its image"
        );
        return Ok(true);
    }
    Ok(false)
}
