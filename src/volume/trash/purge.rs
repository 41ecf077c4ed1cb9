//! The purge: what is due goes, together with what only it needed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Standing, Trashed, look};
use crate::backend::Backend;
use crate::error::Result;
use crate::journal::{Operation, Outcome};
use crate::rbd::Site;
use crate::rbd::protocol::ImageList;
use crate::rbd::types::{Parent, in_trash};
use crate::volume::image::{DELETED, Kept, Place};
use crate::volume::manage::id_in;
use crate::volume::{crash, frozen};

/// Images that go at once, from one pool of one site. Removals of the day come first: they share the workers.
const AT_ONCE: usize = 4;
/// Between two looks at the parents that have outlived their volumes. There is something to do only after a crash.
const PARENTS: Duration = Duration::from_secs(3600);

/// Pools at which a purge of this process is at work, by (fsid, pool): backends may share one.
static AT_WORK: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());

/// Holds a pool until dropped.
struct Work(String, String);

impl Work {
    fn begin(fsid: &str, pool: &str) -> Option<Work> {
        let (fsid, pool) = (fsid.to_owned(), pool.to_owned());
        let mut held = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert((fsid.clone(), pool.clone())).then_some(Work(fsid, pool))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let key = (std::mem::take(&mut self.0), std::mem::take(&mut self.1));
        AT_WORK.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

/// What a purge came to on one site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purged {
    /// Images that have gone.
    pub removed: usize,
    /// Their bytes, as far as they are known.
    pub removed_bytes: u64,
    /// Images that wait for their time.
    pub waiting: usize,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Images that stay although they are due.
    pub kept: usize,
}

impl std::fmt::Display for Purged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} images removed ({} bytes), {} wait ({} bytes), {} are still needed",
            self.removed, self.removed_bytes, self.waiting, self.waiting_bytes, self.kept
        )
    }
}

/// Removes what is due at once, by order.
///
/// # Errors
/// `InvalidInput` while the backend is frozen; `Database`.
pub async fn purge(backend: &Backend, operation: &Operation) -> Result<()> {
    frozen::refuse(backend).await?;
    let done = Purge::default().turn(backend).await?;
    let said = |name: &String| match done.get(name) {
        Some(purged) => format!("{name}: {purged}"),
        None => format!("{name}: not purged (it does not answer, or is being purged)"),
    };
    let detail = backend.site_names().iter().map(said).collect::<Vec<_>>().join("; ");
    backend.journal.finish(operation, &Outcome { detail: Some(detail), ..Outcome::succeeded() }).await
}

/// What is known of a site from one turn to the next.
#[derive(Debug, Default)]
struct Seen {
    sizes: HashMap<String, u64>,
    /// Why an image stays, by its id: said once, and again when it is another reason.
    said: HashMap<String, String>,
    /// It did not answer the last time.
    away: bool,
    parents_at: Option<Instant>,
}

/// Purges the trash of all sites of a backend, again and again.
#[derive(Debug, Default)]
pub struct Purge {
    sites: BTreeMap<String, Seen>,
}

impl Purge {
    /// Removes what is due. What cannot go now is tried again the next time. Answers what came of it, by site; sites
    /// that do not answer are missing.
    ///
    /// # Errors
    /// `InvalidReplicationTarget`: never, for sites that the backend has itself.
    pub async fn turn(&mut self, backend: &Backend) -> Result<BTreeMap<String, Purged>> {
        for name in backend.site_names() {
            self.sites.entry(name).or_default();
        }
        let mut turns: Vec<BoxFuture<'_, (String, Result<Option<Purged>>)>> = Vec::new();
        for (name, seen) in &mut self.sites {
            let site = backend.site(name)?;
            turns.push(Box::pin(async move {
                let done = seen.turn(backend, &site).await;
                match &done {
                    Ok(_) => seen.away = false,
                    Err(error) if !seen.away => {
                        seen.away = true;
                        warn!(backend = backend.host(), site = site.name(), %error, "could not purge the trash");
                    }
                    Err(_) => {}
                }
                (site.name().to_owned(), done)
            }));
        }
        let done = futures::future::join_all(turns).await;
        Ok(done.into_iter().filter_map(|(name, done)| Some((name, done.ok()??))).collect())
    }
}

impl Seen {
    /// `None` while another backend of this process is at it.
    async fn turn(&mut self, backend: &Backend, site: &Site) -> Result<Option<Purged>> {
        let pool = &backend.config.pool;
        let facts = backend.facts(site).await?;
        let Some(_work) = Work::begin(&facts.fsid, pool) else { return Ok(None) };
        let place = Place { site: site.clone(), pool: pool.clone() };
        let images = look(backend, site, &mut self.sizes).await?;
        self.said.retain(|id, _| images.iter().any(|i| i.id == *id));
        let work: Vec<_> = images
            .iter()
            .filter(|i| i.standing == Standing::Due)
            .map(|image| removal(backend, &place, image))
            .collect();
        let mut purged = Purged::default();
        let mut done = stream::iter(work).buffer_unordered(AT_ONCE);
        while let Some((image, fate)) = done.next().await {
            match fate {
                Ok(None) => {
                    purged.removed += 1;
                    purged.removed_bytes += image.bytes.unwrap_or(0);
                    info!(
                        site = site.name(),
                        volume.id = image.volume,
                        image = image.image,
                        bytes = image.bytes,
                        "removed from the trash"
                    );
                }
                Ok(Some(kept)) => {
                    purged.kept += 1;
                    let why = match kept {
                        Kept::InUse => "somebody has it open".to_owned(),
                        Kept::Needed(0) => "it has snapshots".to_owned(),
                        Kept::Needed(clones) => format!("{clones} clones need it"),
                    };
                    if self.said.insert(image.id.clone(), why.clone()).as_ref() != Some(&why) {
                        info!(
                            site = site.name(),
                            volume.id = image.volume,
                            image = image.image,
                            image.id = image.id,
                            why,
                            "stays in the trash"
                        );
                    }
                }
                Err(error) => {
                    purged.kept += 1;
                    let why = error.operator();
                    if self.said.insert(image.id.clone(), why.clone()).as_ref() != Some(&why) {
                        warn!(
                            site = site.name(),
                            volume.id = image.volume,
                            image = image.image,
                            image.id = image.id,
                            %error,
                            "could not be removed from the trash"
                        );
                    }
                }
            }
        }
        drop(done);
        let waiting = images.iter().filter(|i| i.standing == Standing::Deferred);
        for image in waiting {
            purged.waiting += 1;
            purged.waiting_bytes += image.bytes.unwrap_or(0);
        }
        if purged.removed > 0 {
            info!(
                backend = backend.host(),
                site = site.name(),
                pool,
                removed = purged.removed,
                removed_bytes = purged.removed_bytes,
                waiting = purged.waiting,
                waiting_bytes = purged.waiting_bytes,
                kept = purged.kept,
                "purged the trash"
            );
        }
        if self.parents_at.is_none_or(|at| at.elapsed() >= PARENTS) {
            tidy_parents(backend, &place).await?;
            self.parents_at = Some(Instant::now());
        }
        Ok(Some(purged))
    }
}

fn removal<'a>(
    backend: &'a Backend,
    place: &'a Place,
    image: &'a Trashed,
) -> BoxFuture<'a, (&'a Trashed, Result<Option<Kept>>)> {
    Box::pin(async move { (image, remove(backend, place, image).await) })
}

/// Removes one image; then the helper snapshot that it hung on, and a parent that was only kept for it. Killed between
/// the two, [`tidy_parents`] sees to it.
async fn remove(backend: &Backend, place: &Place, image: &Trashed) -> Result<Option<Kept>> {
    let found = place.inspect(&in_trash(&image.id)).await?;
    let helpers = place.helpers(&image.image, found.as_ref()).await?;
    if let Some(kept) = place.remove_from_trash(&image.id).await? {
        return Ok(Some(kept));
    }
    crash::point("purge_trash:removed");
    if let Some(nearest) = helpers.first() {
        let delay = backend.config.deferred_deletion_delay;
        keeper(backend, place, nearest).await?.tidy(&helpers, Some(delay)).await;
    }
    Ok(None)
}

/// Where the snapshots of a parent can be removed: where it is primary, if it is mirrored.
async fn keeper(backend: &Backend, place: &Place, parent: &Parent) -> Result<Place> {
    let mut name = parent.image.clone();
    if !name.ends_with(DELETED) && place.inspect(&name).await?.is_none() {
        name.push_str(DELETED);
    }
    if !place.is_copy(&name).await? {
        return Ok(place.clone());
    }
    for other in backend.site_names().iter().filter(|n| *n != place.site.name()) {
        let there = Place { site: backend.site(other)?, pool: place.pool.clone() };
        if there.inspect(&name).await?.is_some() && !there.is_copy(&name).await? {
            return Ok(there);
        }
    }
    Ok(place.clone())
}

/// Looks at the images that have outlived their volumes: one may be needed no more since a purge was cut short.
async fn tidy_parents(backend: &Backend, place: &Place) -> Result<()> {
    let template = &backend.globals.volume_name_template;
    let names = place.site.insist(ImageList { pool: place.pool.clone() }).await?;
    let outlived = names
        .iter()
        .filter(|n| n.strip_suffix(DELETED).is_some_and(|plain| id_in(plain, template).is_some()));
    for name in outlived {
        if let Err(error) = place.tidy_parent(name, backend.config.deferred_deletion_delay).await {
            warn!(site = place.site.name(), image = name, %error, "could not see to the parent of deleted clones");
        }
    }
    Ok(())
}
