//! Volumes that are kept as copies of images, so that the next volume of one is a clone.
//!
//! They belong to the internal tenant, count in its quota, and are found by a table (`cinder/image/cache.py`). An
//! entry is a help and no more: whatever is wrong with it, the image is downloaded. A copy is made before its origin
//! is handed to the user, and only of an image that was just downloaded; which row it gets is decided, and written
//! to the journal, before: a crash leaves no second one.

use chrono::{DateTime, NaiveDateTime, Utc};
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::super::image::{Attempt, Place, Shape};
use super::super::source::Source;
use super::super::{create, migrate};
use super::Request;
use crate::backend::Backend;
use crate::backend::locks::NamedGuard;
use crate::backend::peers::Priority;
use crate::config::{ImageCacheConfig, InternalTenant};
use crate::context::RequestContext;
use crate::db;
use crate::db::quota::{self, Release};
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::{GIB, Volume, VolumeEvent, VolumeType};
use crate::openstack::glance::Image;

/// Journal item of a copy that is to be deleted.
const EVICTED: &str = "evicted";

/// A copy that is to be kept of a volume that was just filled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::volume) struct Keep {
    volume_id: String,
    image_id: String,
    image_updated_at: Option<NaiveDateTime>,
    /// The image, rounded up; the volume is as large until its copy is made.
    pub(super) gib: i32,
}

/// The cache of a backend that has one, and somebody to own its volumes.
pub(super) struct Cache<'a> {
    backend: &'a Backend,
    limits: ImageCacheConfig,
    owner: &'a InternalTenant,
}

fn updated_at(image: &Image) -> Option<NaiveDateTime> {
    let text = image.base.get("updated_at")?.as_str()?;
    DateTime::parse_from_rfc3339(text).ok().map(|at| at.naive_utc())
}

impl<'a> Cache<'a> {
    pub(super) fn of(backend: &'a Backend) -> Option<Cache<'a>> {
        let limits = backend.config.image_cache?;
        let Some(owner) = &backend.globals.image.internal_tenant else {
            info!("no internal tenant is configured: the image-volume cache is not used");
            return None;
        };
        Some(Cache { backend, limits, owner })
    }

    /// One volume at a time asks for an image, so that one copy is made of it.
    pub(super) async fn lock(&self, image_id: &str) -> NamedGuard {
        self.backend.locks.lock(&format!("{image_id}-image_cache")).await
    }

    /// What is to be kept of an image that will be downloaded.
    pub(super) fn keep(&self, image: &Image) -> Keep {
        Keep {
            volume_id: Uuid::new_v4().to_string(),
            image_id: image.id.clone(),
            image_updated_at: updated_at(image),
            gib: 0,
        }
    }

    /// Clones the copy that is kept of an image; false when there is none, or it cannot be cloned.
    pub(super) async fn clone(
        &self,
        request: &Request<'_>,
        place: &Place,
        name: &str,
        image: &Image,
        shape: Shape,
    ) -> Result<bool> {
        let backend = self.backend;
        let Some(copy) = self.find(request, image).await? else { return Ok(false) };
        let _lock = backend.locks.lock(&format!("{}-delete_volume", copy.id)).await;
        let served = backend.place(&copy).await?;
        if served.site.name() != place.site.name() || copy.size > request.volume.size {
            return Ok(false);
        }
        let depth = backend.config.max_clone_depth;
        let bytes = u64::try_from(request.volume.size).unwrap_or(0) * GIB;
        let from = backend.image_name(&copy);
        // A snapshot for it may be there from a former attempt.
        match place.clone_volume(&from, name, bytes, shape, depth, Attempt::Again).await {
            Ok(()) => {
                info!(
                    volume.id = request.volume.id,
                    image.id = image.id,
                    copy.id = copy.id,
                    "volume cloned from the cache"
                );
                Ok(true)
            }
            Err(error) => {
                warn!(volume.id = request.volume.id, copy.id = copy.id, %error, "the cache cannot be used, the image is downloaded");
                place.undo_create(name, Some(&from)).await?;
                Ok(false)
            }
        }
    }

    async fn find(&self, request: &Request<'_>, image: &Image) -> Result<Option<Volume>> {
        let volume = request.volume;
        let entry = request
            .operation
            .write("entry of the image cache", async |conn| {
                db::image_cache::take(conn, &image.id, volume).await
            })
            .await?;
        let Some(entry) = entry else {
            self.tell(request.context, "miss", &image.id, volume.host.as_deref()).await;
            return Ok(None);
        };
        let copy = self
            .backend
            .db
            .read("volume of the image cache", async |conn| db::volume::find(conn, &entry.volume_id).await)
            .await?;
        let usable = copy.filter(|c| matches!(c.status.as_str(), "available" | "in-use"));
        let current = entry.image_updated_at == updated_at(image);
        match usable {
            Some(copy) if current => {
                self.tell(request.context, "hit", &image.id, Some(&entry.host)).await;
                Ok(Some(copy))
            }
            _ => {
                debug!(
                    image.id = image.id,
                    copy.id = entry.volume_id,
                    "the entry of the image cache is out of date"
                );
                self.evict(request.context, request.operation, &entry).await?;
                self.tell(request.context, "miss", &image.id, volume.host.as_deref()).await;
                Ok(None)
            }
        }
    }

    /// Forgets an entry, and has its volume deleted.
    async fn evict(
        &self,
        context: &RequestContext,
        operation: &Operation,
        entry: &db::image_cache::Entry,
    ) -> Result<()> {
        operation
            .write("eviction from the image cache", async |conn| {
                db::image_cache::remove(conn, &entry.volume_id).await?;
                let none = VolumeChanges::default();
                match db::volume::transition(conn, &entry.volume_id, VolumeEvent::Evicted, &none).await {
                    Ok(()) => operation.item_step_in(conn, &entry.volume_id, EVICTED, &()).await,
                    Err(e) if matches!(e.code(), Code::Conflict | Code::VolumeNotFound) => Ok(()),
                    Err(e) => Err(e),
                }
            })
            .await?;
        super::super::crash::point("create_volume:evicted");
        self.tell(context, "evict", &entry.image_id, Some(&entry.host)).await;
        delete_evicted(self.backend, &entry.volume_id).await
    }

    async fn tell(&self, context: &RequestContext, action: &str, image_id: &str, host: Option<&str>) {
        let event = format!("image_volume_cache.{action}");
        let publisher = format!("volume.{}", self.backend.host());
        let payload = json!({"image_id": image_id, "host": host});
        self.backend.peers.notify.publish(context, &event, Priority::Info, &publisher, payload).await;
    }

    /// Makes room for one more volume; false when there cannot be enough (`ensure_space`).
    async fn ensure_space(
        &self,
        context: &RequestContext,
        operation: &Operation,
        volume: &Volume,
        gib: i32,
    ) -> Result<bool> {
        let gib = u64::try_from(gib).unwrap_or(0);
        if self.limits.max_size_gb.is_some_and(|max| gib > max) {
            return Ok(false);
        }
        let mut entries = self
            .backend
            .db
            .read("image cache", async |conn| db::image_cache::list(conn, volume).await)
            .await?;
        loop {
            let size = entries.iter().map(|e| u64::try_from(e.size).unwrap_or(0)).sum::<u64>() + gib;
            let fits = self.limits.max_size_gb.is_none_or(|max| size <= max)
                && self.limits.max_count.is_none_or(|max| (entries.len() as u64) < max);
            if fits {
                return Ok(true);
            }
            let Some(entry) = entries.pop() else { return Ok(false) };
            self.evict(context, operation, &entry).await?;
        }
    }
}

async fn delete_evicted(backend: &Backend, id: &str) -> Result<()> {
    migrate::delete_leftover(backend, &RequestContext::admin(), id).await
}

/// Asks for the deletion of what a former attempt has evicted: it may have died before it could ask, and nobody
/// else would.
///
/// # Errors
/// `Database`; `Broker`.
pub(super) async fn finish_evictions(backend: &Backend, operation: &Operation) -> Result<()> {
    for evicted in operation.items().await?.into_iter().filter(|item| item.name == EVICTED) {
        delete_evicted(backend, &evicted.resource_id).await?;
    }
    Ok(())
}

/// Makes the copy of a volume that has just got its image. What goes wrong with it is logged and harms nobody.
///
/// # Errors
/// `Cancelled`, `Database`, `Broker`: the request will be taken up again.
pub(in crate::volume) async fn store(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    volume_type: &VolumeType,
    place: &Place,
    keep: &Keep,
) -> Result<()> {
    let Some(cache) = Cache::of(backend) else { return Ok(()) };
    let image_id = keep.image_id.as_str();
    match make(&cache, context, operation, volume, volume_type, place, keep).boxed().await {
        Ok(true) => {
            info!(image.id = image_id, copy.id = keep.volume_id, "a copy of the image is kept");
            Ok(())
        }
        Ok(false) => {
            warn!(image.id = image_id, "the image cache has no room for the image");
            Ok(())
        }
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database | Code::Broker) => Err(e),
        Err(error) => {
            warn!(image.id = image_id, copy.id = keep.volume_id, %error, "no copy of the image is kept");
            forget(&cache, operation, volume, place, keep).await
        }
    }
}

async fn make(
    cache: &Cache<'_>,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    volume_type: &VolumeType,
    place: &Place,
    keep: &Keep,
) -> Result<bool> {
    let (backend, id) = (cache.backend, keep.volume_id.as_str());
    let known = backend
        .db
        .read("copy of an image", async |conn| {
            let entry = db::image_cache::of_volume(conn, id).await?;
            Ok((entry, db::volume::find(conn, id).await?))
        })
        .await?;
    if known.0.is_some() {
        return Ok(true);
    }
    if known.1.is_none() {
        if !cache.ensure_space(context, operation, volume, keep.gib).await? {
            return Ok(false);
        }
        let owner = (cache.owner.project_id.as_str(), cache.owner.user_id.as_str());
        let rules = &backend.globals.quota;
        let counted = Release::used_volume(keep.gib, &volume.volume_type_id);
        operation
            .write("row of an image's copy", async |conn| {
                // Before: a usage that is not known yet is counted from the rows.
                quota::give_back(conn, owner.0, &counted, rules).await?;
                db::image_cache::create_volume(conn, volume, id, keep.gib, &keep.image_id, owner).await
            })
            .await?;
        super::super::crash::point("create_volume:cache_row");
    }
    let copy = backend.db.read("copy of an image", async |conn| db::volume::get(conn, id).await).await?;
    let source = Source::Volume(volume.id.clone());
    let again = Attempt::Again;
    let changes =
        create::make(backend, context, operation, &copy, volume_type, &source, place, again).await?;
    let changes = VolumeChanges {
        launched_at: Some(Some(Utc::now().naive_utc())),
        service_uuid: Some(Some(backend.service()?.uuid.clone())),
        shared_targets: Some(Some(false)),
        ..changes
    };
    operation
        .write("copy of an image", async |conn| {
            db::volume::transition(conn, id, VolumeEvent::Created, &changes).await?;
            db::volume::set_admin_metadata(conn, id, "readonly", "True").await?;
            db::image_cache::add(conn, &copy, &keep.image_id, keep.image_updated_at).await
        })
        .await?;
    backend.allocate(copy.host.as_deref(), i64::from(copy.size));
    Ok(true)
}

/// Removes what was made of a copy.
async fn forget(
    cache: &Cache<'_>,
    operation: &Operation,
    volume: &Volume,
    place: &Place,
    keep: &Keep,
) -> Result<()> {
    let (backend, id) = (cache.backend, keep.volume_id.as_str());
    let copy = backend.db.read("copy of an image", async |conn| db::volume::find(conn, id).await).await?;
    let Some(copy) = copy else { return Ok(()) };
    let from = backend.image_name(volume);
    if let Err(error) = place.undo_create(&backend.image_name(&copy), Some(&from)).await {
        // Its row goes with its image, or neither.
        warn!(copy.id = id, %error, "what was made of the copy cannot be removed");
        let none = VolumeChanges::default();
        return operation
            .write("copy of an image", async |conn| {
                super::super::transition_if_still(conn, id, VolumeEvent::CreateFailed, &none).await
            })
            .await;
    }
    let rules = &backend.globals.quota;
    let release = Release::volume(copy.size, Some(&copy.volume_type_id));
    operation
        .write("copy of an image", async |conn| {
            quota::give_back(conn, &cache.owner.project_id, &release, rules).await?;
            db::volume::destroy(conn, id).await?;
            Ok::<(), Error>(())
        })
        .await
}
