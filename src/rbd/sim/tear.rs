//! Images, and sets of snapshots, of which only half is there.
//!
//! librbd makes an image object by object: its id under the name, the directory entry, the header, for a
//! clone the link to its parent; and takes it apart in the opposite order. A client that dies in between
//! leaves a name that is taken and cannot be opened, or an empty image where a clone should be. One that dies
//! while it takes snapshots of several images leaves some of them.

use super::Sim;
use super::state::{PoolState, World};
use crate::rbd::protocol::Request;
use crate::rbd::types::SnapOf;

/// A request that may be cut short, and what it was about.
pub(super) enum Torn {
    /// Name and directory entry are there, the header is not.
    Made { pool: String, image: String },
    /// The header is there, the link to the parent is not.
    Cloned { pool: String, image: String },
    /// The header is gone, name and directory entry are still there.
    Removed { pool: String, image: String },
    /// These snapshots of a set were not taken any more.
    Snapped { pool: String, missing: Vec<SnapOf> },
}

impl Torn {
    /// Whether requests of this name can be cut short.
    pub(super) fn can(request: &str) -> bool {
        ["ImageCreate", "ImageCopy", "ImageClone", "ReplicaClone", "ImageRemove", "SnapCreateTogether"]
            .contains(&request)
    }

    pub(super) fn of(request: &Request) -> Option<Torn> {
        match request {
            Request::ImageCreate(r) => Some(Torn::Made { pool: r.pool.clone(), image: r.image.clone() }),
            Request::ImageCopy(r) => Some(Torn::Made { pool: r.dest_pool.clone(), image: r.dest.clone() }),
            Request::ImageClone(r) => Some(Torn::Cloned { pool: r.dest_pool.clone(), image: r.dest.clone() }),
            Request::ReplicaClone(r) => {
                Some(Torn::Cloned { pool: r.dest_pool.clone(), image: r.dest.clone() })
            }
            Request::ImageRemove(r) => Some(Torn::Removed { pool: r.pool.clone(), image: r.image.clone() }),
            Request::SnapCreateTogether(r) => {
                let missing = r.members.iter().skip(r.members.len() / 2).cloned().collect();
                Some(Torn::Snapped { pool: r.pool.clone(), missing })
            }
            _ => None,
        }
    }
}

impl Sim {
    /// Leaves a rename half done: the image goes by both names, and the pool's directory has the new one, or still the old.
    pub fn cut_rename_short(&self, site: &str, pool: &str, (from, to): (&str, &str), in_directory: bool) {
        let mut world = self.lock();
        let Ok(p) = world.pool_mut(site, pool) else { return };
        let Some(id) = p.names.get(from).cloned() else { return };
        p.names.insert(to.to_owned(), id.clone());
        if let Some(image) = p.images.get_mut(&id).filter(|_| in_directory) {
            image.name = to.to_owned();
        }
    }
}

impl PoolState {
    /// (id, name) of all images. Of one that goes by two names, the one that its rename has, or had not yet, noted.
    pub(super) fn directory(&self) -> Vec<(String, String)> {
        let noted = |id: &String, name: &String| self.images.get(id).is_none_or(|image| image.name == *name);
        let names = self.names.iter().filter(|(name, id)| noted(id, name));
        names.map(|(name, id)| (id.clone(), name.clone())).collect()
    }

    /// The object by which an image is found by a name is removed.
    pub(super) fn forget_name(&mut self, object: &str) {
        if let Some(name) = object.strip_prefix("rbd_id.") {
            self.names.remove(name);
        }
    }
}

impl World {
    /// Undoes the second half of a request that was just carried out.
    pub(super) fn tear(&mut self, site: &str, torn: Torn) {
        match torn {
            Torn::Made { pool, image } => {
                if let Ok(p) = self.pool_mut(site, &pool)
                    && let Some(id) = p.names.get(&image).cloned()
                {
                    p.images.remove(&id);
                }
            }
            Torn::Cloned { pool, image } => {
                if let Ok(state) = self.image_mut(site, &pool, &image) {
                    state.parent = None;
                }
            }
            Torn::Snapped { pool, missing } => {
                for m in missing {
                    if let Ok(state) = self.image_mut(site, &pool, &m.image)
                        && let Some(id) = state.snap_id(&m.snap)
                    {
                        state.snaps.remove(&id);
                    }
                }
            }
            Torn::Removed { pool, image } => {
                let id = format!("{:x}", self.next());
                if let Ok(p) = self.pool_mut(site, &pool) {
                    p.names.insert(image, id);
                }
            }
        }
    }
}
