//! Snapshots, clones and the trash.

use super::images::{Answer, refuse};
use super::mirror_daemon::NON_PRIMARY;
use super::state::{ParentRef, SnapState, Trash, World};
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::types::{ImageName, Snap, SnapOf, Surveyed, TrashEntry, features};

/// What the names of rbd-mirror's own snapshots begin with. Those of a copy that runs are not modelled as
/// snapshots (`first_copy_runs`): one that is there is left from another copy.
const SYNC_POINT: &str = ".rbd-mirror.";

impl World {
    pub(super) fn sync_points_remove(&mut self, site: &str, pool: &str, image: &str) -> Answer<u32> {
        self.changeable(site, pool, image)?;
        let i = self.image_mut(site, pool, image)?;
        let before = i.snaps.len();
        i.snaps.retain(|_, s| s.hidden || !s.name.starts_with(SYNC_POINT));
        let removed = before - i.snaps.len();
        if removed > 0 {
            self.changed(site, pool, image);
        }
        Ok(u32::try_from(removed).unwrap_or(u32::MAX))
    }

    fn snap(&self, site: &str, pool: &str, image: &str, snap: &str) -> Answer<(u64, &SnapState)> {
        let i = self.image(site, pool, image)?;
        let found = i.visible_snaps().find(|(_, s)| s.name == snap);
        found.map(|(id, s)| (*id, s)).ok_or_else(|| {
            super::state::Refusal::new(Kind::NotFound, format!("no snapshot {pool}/{image}@{snap}"))
        })
    }

    pub(super) fn snap_list(&self, site: &str, pool: &str, image: &str) -> Answer<Vec<Snap>> {
        let snaps = self.image(site, pool, image)?.visible_snaps();
        Ok(snaps
            .filter(|(_, s)| !s.name.starts_with(SYNC_POINT))
            .map(|(id, s)| Snap { id: *id, name: s.name.clone(), size: s.size, protected: s.protected })
            .collect())
    }

    pub(super) fn snap_create(&mut self, site: &str, pool: &str, image: &str, snap: &str) -> Answer<()> {
        self.changeable(site, pool, image)?;
        if self.image(site, pool, image)?.snap_id(snap).is_some() {
            return refuse(Kind::Exists, format!("{pool}/{image}@{snap} exists"));
        }
        let (id, uid) = (self.next(), self.next());
        let i = self.image_mut(site, pool, image)?;
        let state = SnapState {
            name: snap.to_owned(),
            uid,
            size: i.size,
            data: i.data.clone(),
            parent: i.parent.clone(),
            protected: false,
            hidden: false,
        };
        i.snaps.insert(id, state);
        self.changed(site, pool, image);
        Ok(())
    }

    pub(super) fn snap_create_together(&mut self, site: &str, pool: &str, members: &[SnapOf]) -> Answer<()> {
        for m in members {
            self.primary(site, pool, &m.image)?;
            let i = self.image(site, pool, &m.image)?;
            if i.features & features::EXCLUSIVE_LOCK == 0 {
                return refuse(Kind::NotSupported, format!("{pool}/{} has no exclusive lock", m.image));
            }
            if i.snap_id(&m.snap).is_some() {
                return refuse(Kind::Exists, format!("{pool}/{}@{} exists", m.image, m.snap));
            }
            self.check_writable(site, pool, &m.image)?;
        }
        for m in members {
            self.snap_create(site, pool, &m.image, &m.snap)?;
        }
        Ok(())
    }

    pub(super) fn snap_protect(&mut self, site: &str, pool: &str, image: &str, snap: &str) -> Answer<()> {
        if self.image(site, pool, image)?.features & NON_PRIMARY != 0 {
            self.primary(site, pool, image)?;
        }
        let (id, state) = self.snap(site, pool, image, snap)?;
        if state.protected {
            return refuse(Kind::Busy, format!("{pool}/{image}@{snap} is protected"));
        }
        self.changeable(site, pool, image)?;
        if let Some(s) = self.image_mut(site, pool, image)?.snaps.get_mut(&id) {
            s.protected = true;
        }
        self.changed(site, pool, image);
        Ok(())
    }

    pub(super) fn snap_unprotect(&mut self, site: &str, pool: &str, image: &str, snap: &str) -> Answer<()> {
        self.changeable(site, pool, image).or_else(|e| self.snap(site, pool, image, snap).and(Err(e)))?;
        let (id, state) = self.snap(site, pool, image, snap)?;
        if !state.protected {
            return refuse(Kind::Invalid, format!("{pool}/{image}@{snap} is not protected"));
        }
        let image_id = self.image(site, pool, image)?.id.clone();
        if !self.config.clone_v2 && !self.children(site, pool, &image_id, id).is_empty() {
            return refuse(Kind::Busy, format!("{pool}/{image}@{snap} has children"));
        }
        if let Some(s) = self.image_mut(site, pool, image)?.snaps.get_mut(&id) {
            s.protected = false;
        }
        self.changed(site, pool, image);
        Ok(())
    }

    pub(super) fn snap_remove(&mut self, site: &str, pool: &str, image: &str, snap: &str) -> Answer<()> {
        let (id, state) = self.snap(site, pool, image, snap)?;
        let protected = state.protected;
        self.changeable(site, pool, image)?;
        if protected {
            return refuse(Kind::Busy, format!("{pool}/{image}@{snap} is protected"));
        }
        let image_id = self.image(site, pool, image)?.id.clone();
        let needed = !self.children(site, pool, &image_id, id).is_empty();
        let i = self.image_mut(site, pool, image)?;
        let mut parent = None;
        if needed {
            // Clone format 2: kept in the trash namespace, under a name of its own.
            if let Some(s) = i.snaps.get_mut(&id) {
                s.name = format!("trashed-{:016x}", s.uid);
                s.hidden = true;
            }
        } else {
            parent = i.snaps.remove(&id).and_then(|s| s.parent);
        }
        self.changed(site, pool, image);
        if let Some(parent) = parent {
            self.reap(site, &parent);
        }
        Ok(())
    }

    pub(super) fn snap_rename(
        &mut self,
        site: &str,
        pool: &str,
        image: &str,
        from: &str,
        to: &str,
    ) -> Answer<()> {
        let (id, _) = self.snap(site, pool, image, from)?;
        self.changeable(site, pool, image)?;
        if self.image(site, pool, image)?.snap_id(to).is_some() {
            return refuse(Kind::Exists, format!("{pool}/{image}@{to} exists"));
        }
        if let Some(s) = self.image_mut(site, pool, image)?.snaps.get_mut(&id) {
            s.name = to.to_owned();
        }
        self.changed(site, pool, image);
        Ok(())
    }

    pub(super) fn survey(&self, site: &str, pool: &str, image: &str) -> Answer<Surveyed> {
        let i = self.image(site, pool, image)?;
        Ok(Surveyed { size: i.size, watchers: i.watchers.len(), snaps: self.snap_list(site, pool, image)? })
    }

    /// Refuses work for which the lock must be had, and answers the snapshot that it is about.
    fn snap_to_write_back(&self, site: &str, pool: &str, image: &str, snap: &str) -> Answer<SnapState> {
        let (_, state) = self.snap(site, pool, image, snap)?;
        self.check_writable(site, pool, image)?;
        Ok(state.clone())
    }

    pub(super) fn snap_rollback(&mut self, site: &str, pool: &str, image: &str, snap: &str) -> Answer<()> {
        let back = self.snap_to_write_back(site, pool, image, snap)?;
        let i = self.image_mut(site, pool, image)?;
        (i.size, i.data) = (back.size, back.data);
        self.changed(site, pool, image);
        Ok(())
    }

    pub(super) fn snap_restore(&mut self, site: &str, pool: &str, image: &str, snap: &str) -> Answer<()> {
        self.snap_to_write_back(site, pool, image, snap)?;
        let wanted = self.effective(site, pool, image, Some(snap))?;
        let present = self.effective(site, pool, image, None)?;
        let restored = wanted.in_place_of(&present);
        let i = self.image_mut(site, pool, image)?;
        if let Some(partial) = i.mirror.as_mut().and_then(|m| m.unflattened.as_mut()) {
            *partial = restored.clone();
        }
        i.data = restored;
        self.changed(site, pool, image);
        Ok(())
    }

    pub(super) fn snap_revert_changes(
        &mut self,
        site: &str,
        pool: &str,
        image: &str,
        snap: &str,
    ) -> Answer<u64> {
        self.snap_to_write_back(site, pool, image, snap)?;
        let wanted = self.effective(site, pool, image, Some(snap))?;
        let present = self.effective(site, pool, image, None)?;
        self.snap_restore(site, pool, image, snap)?;
        Ok(wanted.differing(&present))
    }

    pub(super) fn clone_image(
        &mut self,
        site: &str,
        (pool, image, snap): (&str, &str, &str),
        (dest_pool, dest): (&str, &str),
        wanted: u64,
        order: u8,
        format_2: bool,
    ) -> Answer<()> {
        let (id, state) = self.snap(site, pool, image, snap)?;
        let (size, protected) = (state.size, state.protected);
        let source = self.image(site, pool, image)?;
        let metadata = source.metadata.clone();
        if wanted & features::LAYERING == 0 || source.features & features::LAYERING == 0 {
            return refuse(Kind::NotSupported, "clones need layering");
        }
        if !format_2 && !self.config.clone_v2 && !protected {
            return refuse(Kind::Invalid, format!("{pool}/{image}@{snap} is not protected"));
        }
        let parent =
            ParentRef { pool: pool.to_owned(), image_id: source.id.clone(), snap: id, overlap: size };
        let order = if order == 0 { source.order } else { order };
        self.create(site, dest_pool, dest, size, order, wanted)?;
        let clone = self.image_mut(site, dest_pool, dest)?;
        // As librbd's CloneRequest: a clone begins with its parent's metadata.
        (clone.parent, clone.metadata) = (Some(parent), metadata);
        Ok(())
    }

    pub(super) fn image_children(
        &self,
        site: &str,
        pool: &str,
        image: &str,
        snap: Option<&str>,
    ) -> Answer<Vec<ImageName>> {
        let i = self.image(site, pool, image)?;
        let snaps: Vec<u64> = match snap {
            Some(name) => vec![self.snap(site, pool, image, name)?.0],
            None => i.snaps.keys().copied().collect(),
        };
        Ok(snaps.into_iter().flat_map(|s| self.children(site, pool, &i.id, s)).collect())
    }

    /// Drops the snapshot that a former child hung on, when it was only kept for children.
    pub(super) fn reap(&mut self, site: &str, parent: &ParentRef) {
        if !self.children(site, &parent.pool, &parent.image_id, parent.snap).is_empty() {
            return;
        }
        let pool = self.sites.get_mut(site).and_then(|s| s.pools.get_mut(&parent.pool));
        let Some(image) = pool.and_then(|p| p.images.get_mut(&parent.image_id)) else { return };
        if image.snaps.get(&parent.snap).is_some_and(|s| s.hidden) {
            image.snaps.remove(&parent.snap);
        }
        let global_id = image.mirror.as_ref().map(|m| m.global_id.clone());
        self.touch(&parent.pool, global_id);
    }

    pub(super) fn trash_move(&mut self, site: &str, pool: &str, image: &str, delay: u64) -> Answer<()> {
        let i = self.image(site, pool, image)?;
        if !i.accepts_changes() {
            let journal = i.mirror.as_ref().is_some_and(|m| m.mode == crate::rbd::types::MirrorMode::Journal);
            let kind = if journal { Kind::Busy } else { Kind::Invalid };
            return refuse(kind, format!("{pool}/{image} is a mirrored secondary"));
        }
        // Whoever has it open does not stop a move: librbd's clients hand the lock over when they are asked
        // (16.2.15). One that keeps it does.
        if self.check_writable(site, pool, image).is_err() {
            return refuse(Kind::Busy, format!("the lock of {pool}/{image} is held"));
        }
        self.unmirror(site, pool, image)?;
        let end = self.epoch() + delay as i64;
        self.image_mut(site, pool, image)?.trash = Some(Trash { deferment_end: end, by_mirroring: false });
        self.pool_mut(site, pool)?.names.remove(image);
        Ok(())
    }

    pub(super) fn trash_list(&self, site: &str, pool: &str) -> Answer<Vec<TrashEntry>> {
        let images = self.pool(site, pool)?.images.values();
        Ok(images
            .filter_map(|i| {
                let &Trash { deferment_end, by_mirroring: mirroring } = i.trash.as_ref()?;
                Some(TrashEntry { id: i.id.clone(), name: i.name.clone(), deferment_end, mirroring })
            })
            .collect())
    }

    pub(super) fn trash_remove(&mut self, site: &str, pool: &str, id: &str) -> Answer<()> {
        let now = self.epoch();
        let found = self.pool(site, pool)?.images.get(id);
        let Some((image, trash)) = found.and_then(|i| Some((i, i.trash.as_ref()?))) else {
            return refuse(Kind::NotFound, format!("no image with id {id} in the trash of {pool}"));
        };
        if trash.deferment_end > now {
            return refuse(Kind::Busy, format!("{} is deferred until {}", image.name, trash.deferment_end));
        }
        if !image.snaps.is_empty() {
            return refuse(Kind::HasSnapshots, format!("{} in the trash has snapshots", image.name));
        }
        if !image.watchers.is_empty() {
            return refuse(Kind::Busy, format!("{} in the trash has watchers", image.name));
        }
        let global_id = image.mirror.as_ref().map(|m| m.global_id.clone());
        let state = self.pool_mut(site, pool)?;
        let parent = state.images.remove(id).and_then(|i| i.parent);
        if let Some(global_id) = global_id {
            state.by_global_id.remove(&global_id);
        }
        if let Some(parent) = parent {
            self.reap(site, &parent);
        }
        Ok(())
    }

    pub(super) fn trash_restore(&mut self, site: &str, pool: &str, id: &str, name: &str) -> Answer<()> {
        let state = self.pool_mut(site, pool)?;
        if state.images.get(id).is_none_or(|i| i.trash.is_none()) {
            return refuse(Kind::NotFound, format!("no image with id {id} in the trash of {pool}"));
        }
        if state.names.contains_key(name) {
            return refuse(Kind::Exists, format!("{pool}/{name} exists"));
        }
        if let Some(image) = state.images.get_mut(id) {
            image.trash = None;
            image.name = name.to_owned();
        }
        state.names.insert(name.to_owned(), id.to_owned());
        Ok(())
    }
}
