//! The copy of a mirrored image that an rbd-mirror daemon keeps on its site: made, filled, deleted, purged.
//!
//! A copy is never ahead of its data by more than names: snapshots appear empty, and clones made of them here
//! keep what they hang on, whatever the primary deletes meanwhile.

use std::collections::BTreeMap;

use super::data::Data;
use super::mirror_daemon::{NON_PRIMARY, Phase, Report};
use super::state::{Content, Copied, ImageState, MirrorSide, Owner, PairKey, SnapState, Trash, World};
use crate::rbd::types::MirrorMode;

impl World {
    /// Makes the copy: names and sizes, no data yet.
    pub(super) fn create_replica(&mut self, site: &str, key: &PairKey, peer: &str, content: Content) {
        let Ok(parent) = self.local_parent(site, &content) else { return };
        let Some(mode) = self.pair_image(peer, key).map(|(_, m)| m.mode) else { return };
        let id = format!("{:x}", self.next());
        let non_primary = if mode == MirrorMode::Snapshot { NON_PRIMARY } else { 0 };
        let Some(pool) = self.sites.get_mut(site).and_then(|s| s.pools.get_mut(&key.0)) else { return };
        if pool.names.contains_key(&content.name) {
            return; // An image of that name is in the way: rbd-mirror reports an error and tries again.
        }
        let image = ImageState {
            id: id.clone(),
            name: content.name.clone(),
            size: content.size,
            order: content.order,
            features: content.features | non_primary,
            data: Data::default(),
            snaps: BTreeMap::new(),
            metadata: content.metadata.clone(),
            parent,
            trash: None,
            mirror: Some(MirrorSide {
                mode,
                global_id: key.1.clone(),
                owner: Owner::Remote,
                lineage: content.lineage.clone(),
                published: None,
                synced: 0,
                complete: false,
                resync: false,
                unflattened: None,
                registered: false,
                unlinked: false,
                covered: None,
                arriving: None,
            }),
            lock: None,
            held_until: None,
            watchers: vec![],
            moving: None,
            version: 0,
        };
        pool.names.insert(content.name.clone(), id.clone());
        pool.by_global_id.insert(key.1.clone(), id.clone());
        pool.images.insert(id, image);
        let of = content.mirror_snap;
        let empty = content.snaps.into_iter().map(|s| SnapState { data: Data::default(), ..s }).collect();
        self.add_snaps(site, key, empty);
        self.names_arrive(site, key, of);
        self.set_phase(site, key, Phase::Idle);
    }

    /// The peer has made a full copy: what a flattening brought is there now.
    pub(super) fn forget_flattening(&mut self, site: &str, key: &PairKey) {
        if let Some(m) = self.mirror_side_mut(site, key) {
            m.unflattened = None;
            if let Some(published) = &mut m.published {
                published.data = published.whole.clone();
            }
        }
    }

    /// A mirror snapshot of the primary begins to arrive: names first, then rbd-mirror's own, then data.
    pub(super) fn names_arrive(&mut self, site: &str, key: &PairKey, of: u64) {
        let id = self.next();
        if of != 0
            && let Some(m) = self.mirror_side_mut(site, key)
        {
            m.arriving = Some(Copied { id, of });
        }
    }

    /// Adds snapshots that the copy has not.
    pub(super) fn add_snaps(&mut self, site: &str, key: &PairKey, snaps: Vec<SnapState>) {
        for snap in snaps {
            let id = self.next();
            if let Some(image) = self.replica_mut(site, key) {
                let parent = snap.parent.as_ref().and(image.parent.clone());
                image.snaps.insert(id, SnapState { parent, ..snap });
            }
        }
    }

    /// Makes the replica equal to `content`.
    pub(super) fn fill(&mut self, site: &str, key: &PairKey, content: Content) {
        let of = content.mirror_snap;
        let parent = self.local_parent(site, &content).ok().flatten();
        let Some(id) = self.pair_image(site, key).map(|(i, _)| i.id.clone()) else { return };
        let gone: Vec<u64> = self.pair_image(site, key).map_or(vec![], |(i, _)| {
            let kept = |uid: u64| content.snaps.iter().any(|s| s.uid == uid);
            i.snaps.iter().filter(|(_, s)| !kept(s.uid)).map(|(id, _)| *id).collect()
        });
        for snap in gone {
            let needed = !self.children(site, &key.0, &id, snap).is_empty();
            if let Some(image) = self.replica_mut(site, key) {
                if needed {
                    // Moved to the trash namespace: clones made here keep it.
                    if let Some(s) = image.snaps.get_mut(&snap) {
                        s.hidden = true;
                    }
                } else {
                    image.snaps.remove(&snap);
                }
            }
        }
        let mut fresh = vec![];
        let Some(s) = self.sites.get_mut(site) else { return };
        let Some(pool) = s.pools.get_mut(&key.0) else { return };
        let Some(image) = pool.images.get_mut(&id) else { return };
        for snap in content.snaps {
            match image.snaps.values_mut().find(|s| s.uid == snap.uid) {
                Some(mine) => {
                    *mine = SnapState { parent: snap.parent.as_ref().and(parent.clone()), ..snap };
                }
                None => fresh.push(snap),
            }
        }
        let old = std::mem::replace(&mut image.name, content.name.clone());
        image.size = content.size;
        image.features = content.features | (image.features & NON_PRIMARY);
        image.data = content.data;
        image.metadata = content.metadata;
        image.parent = parent;
        if let Some(m) = &mut image.mirror {
            m.synced = content.version;
            m.lineage = content.lineage;
            m.owner = Owner::Remote;
            m.complete = true;
        }
        if old != content.name && !pool.names.contains_key(&content.name) {
            pool.names.remove(&old);
            pool.names.insert(content.name, id);
        }
        self.add_snaps(site, key, fresh);
        let id = self.next();
        if of != 0
            && let Some(m) = self.mirror_side_mut(site, key)
        {
            (m.covered, m.arriving) = (Some(Copied { id, of }), None);
        }
    }

    /// Deletes a replica; what clones hang on stays in the trash.
    pub(super) fn delete_replica(&mut self, site: &str, key: &PairKey, trash: bool) {
        let Some((id, snaps)) = self
            .pair_image(site, key)
            .map(|(i, _)| (i.id.clone(), i.snaps.keys().copied().collect::<Vec<_>>()))
        else {
            return;
        };
        let needed = snaps.iter().any(|s| !self.children(site, &key.0, &id, *s).is_empty());
        let end = self.epoch();
        self.set_phase(site, key, Phase::Idle);
        let Some(s) = self.sites.get_mut(site) else { return };
        let Some(pool) = s.pools.get_mut(&key.0) else { return };
        let name = pool.images.get(&id).map(|i| i.name.clone()).unwrap_or_default();
        pool.names.remove(&name);
        if let Some(image) = pool.images.get_mut(&id) {
            image.trash = Some(Trash { deferment_end: end, by_mirroring: true });
            image.lock = None;
        }
        if !trash {
            // A resync makes a new image of the same pair: the old one must let go of the global id.
            pool.by_global_id.remove(&key.1);
            s.replayers.remove(key);
            if self.config.stale_reports {
                let report = Report { at: self.now, state: "replaying", description: "replaying, {}".into() };
                s.replayers.entry(key.clone()).or_default().report = Some(report);
            }
            match pool.images.get_mut(&id) {
                Some(image) if needed => image.mirror = None,
                _ => {
                    pool.images.remove(&id);
                }
            }
        }
    }

    /// Removes what was deleted before.
    pub(super) fn purge_replica(&mut self, site: &str, key: &PairKey) {
        if let Some(s) = self.sites.get_mut(site) {
            s.replayers.remove(key);
            if let Some(pool) = s.pools.get_mut(&key.0)
                && let Some(id) = pool.by_global_id.remove(&key.1)
            {
                pool.images.remove(&id);
            }
        }
    }
}
