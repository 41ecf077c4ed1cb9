//! The trash of deleted volumes: what is in it, what of it goes for good, and what an operator has back.
//!
//! With `enable_deferred_deletion` a deletion leaves the image there for `deferred_deletion_delay`, on the site that
//! served the volume, and that may not be the site that its backend works on when the time has come. So each site is
//! looked at by itself, and one that does not answer holds up no other. Everything that must be known is in Ceph: the
//! purge takes no input, may be repeated at any point, and does not mind others at the same work.
//!
//! Upstream empties the whole trash of the pool. Here only what bears the name of a volume that is gone is removed: what
//! an operator has put there is the operator's.

mod purge;
mod restore;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::Utc;
use serde::{Deserialize, Serialize};
use tracing::debug;

pub use purge::{Purge, Purged, purge};
pub use restore::restore;

use super::image::DELETED;
use super::manage::id_in;
use crate::backend::Backend;
use crate::db;
use crate::error::Result;
use crate::rbd::Site;
use crate::rbd::protocol::{ImageSurvey, TrashList};
use crate::rbd::types::in_trash;

/// How long a site may take to tell what is in its trash.
const ANSWER: Duration = Duration::from_secs(10);
/// Images looked at in one request.
const CHUNK: usize = 100;

/// What becomes of an image in the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It may be had back until its time has come.
    Deferred,
    /// The next purge removes it, unless somebody needs it still.
    Due,
    /// There is a volume of its name: it was not put here by a deletion, and is not removed.
    Kept,
}

impl Standing {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Deferred => "deferred",
            Standing::Due => "due",
            Standing::Kept => "kept",
        }
    }
}

/// The image of a deleted volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trashed {
    /// Internal id.
    pub id: String,
    /// Name that it had.
    pub image: String,
    /// The volume.
    pub volume: String,
    /// Its size; `None` when it could not be looked at.
    pub bytes: Option<u64>,
    /// When it may go, seconds since the epoch.
    pub deferment_end: i64,
    /// What becomes of it.
    pub standing: Standing,
}

/// The trash of one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// `default` or a `backend_id`.
    pub site: String,
    /// Why it could not be read.
    pub error: Option<String>,
    /// The images of deleted volumes, those that go first before the others.
    pub images: Vec<Trashed>,
}

/// What is in the trash of each site.
///
/// # Errors
/// `Database`; a site that does not answer says so in its place.
pub async fn list(backend: &Backend) -> Result<Vec<Contents>> {
    let mut all = Vec::new();
    for name in backend.site_names() {
        let site = backend.site(&name)?;
        let (images, error) = match look(backend, &site, &mut HashMap::new()).await {
            Ok(images) => (images, None),
            Err(error) => (Vec::new(), Some(error.operator())),
        };
        all.push(Contents { site: name, error, images });
    }
    Ok(all)
}

/// Reads the trash of a site. `sizes` are those of images that were looked at before, by their ids.
async fn look(backend: &Backend, site: &Site, sizes: &mut HashMap<String, u64>) -> Result<Vec<Trashed>> {
    let pool = &backend.config.pool;
    let template = &backend.globals.volume_name_template;
    let entries = site.call_within(ANSWER, TrashList { pool: pool.clone() }).await?;
    let volume_of =
        |image: &str| id_in(image.strip_suffix(DELETED).unwrap_or(image), template).map(str::to_owned);
    // What rbd-mirror has put there it also removes: clones on this site may need it.
    let mut found: Vec<(String, _)> =
        entries.into_iter().filter(|e| !e.mirroring).filter_map(|e| Some((volume_of(&e.name)?, e))).collect();
    found.sort_by(|(_, a), (_, b)| (a.deferment_end, &a.id).cmp(&(b.deferment_end, &b.id)));
    measure(site, pool, found.iter().map(|(_, e)| e.id.as_str()).collect(), sizes).await;
    let ids: Vec<String> = found.iter().map(|(volume, _)| volume.clone()).collect();
    let living = backend
        .db
        .read("volumes that images in the trash are named after", async |conn| {
            db::audit::naming(conn, &ids).await
        })
        .await?;
    let now = Utc::now().timestamp();
    let trashed = |(volume, e): (String, crate::rbd::types::TrashEntry)| Trashed {
        bytes: sizes.get(&e.id).copied(),
        // Its last second is not over yet: the site counts fractions.
        standing: match (living.contains(&volume), e.deferment_end >= now) {
            (true, _) => Standing::Kept,
            (false, true) => Standing::Deferred,
            (false, false) => Standing::Due,
        },
        id: e.id,
        image: e.name,
        volume,
        deferment_end: e.deferment_end,
    };
    Ok(found.into_iter().map(trashed).collect())
}

/// Looks how large the images are of which that is not known, and forgets those that are gone.
async fn measure(site: &Site, pool: &str, ids: Vec<&str>, sizes: &mut HashMap<String, u64>) {
    let here: HashSet<&str> = ids.iter().copied().collect();
    sizes.retain(|id, _| here.contains(id.as_str()));
    let unknown: Vec<&str> = ids.into_iter().filter(|id| !sizes.contains_key(*id)).collect();
    for chunk in unknown.chunks(CHUNK) {
        let images = chunk.iter().map(|id| in_trash(id)).collect();
        match site.call_within(ANSWER, ImageSurvey { pool: pool.to_owned(), images }).await {
            Ok(seen) => {
                let known = chunk.iter().zip(seen).filter_map(|(id, s)| Some(((*id).to_owned(), s?.size)));
                sizes.extend(known);
            }
            // It is only for the report.
            Err(error) => {
                debug!(site = site.name(), %error, "could not see how large images in the trash are");
                return;
            }
        }
    }
}
