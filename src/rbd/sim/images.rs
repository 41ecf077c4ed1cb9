//! Images: the commands on heads, with the refusals of librbd 16.

use super::data::Data;
use super::mirror_daemon::NON_PRIMARY;
use super::state::{ImageState, Owner, ParentRef, Refusal, World};
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::protocol::ImageTransfer;
use crate::rbd::types::{ImageInfo, ImageName, MirrorMode, Parent, Watcher, features};

/// `RBD_OPERATION_FEATURE_CLONE_PARENT` and `_CLONE_CHILD`: clone format 2.
const CLONE_PARENT: u64 = 1;
const CLONE_CHILD: u64 = 2;

const KNOWN: u64 = features::LAYERING
    | 2
    | features::EXCLUSIVE_LOCK
    | features::OBJECT_MAP
    | features::FAST_DIFF
    | features::DEEP_FLATTEN
    | features::JOURNALING
    | features::DATA_POOL;

pub(super) type Answer<T> = Result<T, Refusal>;

pub(super) fn refuse<T>(kind: Kind, message: impl Into<String>) -> Answer<T> {
    Err(Refusal::new(kind, message))
}

impl World {
    /// Notes a change that replication carries.
    pub(super) fn changed(&mut self, site: &str, pool: &str, image: &str) {
        let version = self.next();
        let global_id = self.image_mut(site, pool, image).ok().and_then(|i| {
            i.version = version;
            i.mirror.as_ref().map(|m| m.global_id.clone())
        });
        self.touch(pool, global_id);
    }

    /// Refuses a change to a secondary.
    pub(super) fn primary(&self, site: &str, pool: &str, image: &str) -> Answer<()> {
        if self.image(site, pool, image)?.accepts_changes() {
            Ok(())
        } else {
            refuse(Kind::ReadOnly, format!("{pool}/{image} is not primary"))
        }
    }

    /// The owner of a lock that is neither given up nor void.
    fn stubborn_owner(&self, site: &str, pool: &str, image: &str) -> Answer<Option<String>> {
        let i = self.image(site, pool, image)?;
        let daemon = self.sites.get(site).filter(|_| i.held_until.is_some_and(|until| until > self.now));
        let lock = i.lock.clone().or_else(|| daemon.map(|s| s.daemon_address()));
        let now = self.epoch();
        Ok(lock.filter(|owner| !self.sites.get(site).is_some_and(|s| s.blocklisted(owner, now))))
    }

    /// Refuses a change while the lock is with somebody who neither yields nor does it on request.
    pub(super) fn changeable(&self, site: &str, pool: &str, image: &str) -> Answer<()> {
        self.primary(site, pool, image)?;
        let daemon = self.sites.get(site).map(|s| s.daemon_address());
        match self.stubborn_owner(site, pool, image)? {
            // A client that holds the lock carries out others' header changes; rbd-mirror does not.
            Some(owner) if Some(&owner) == daemon.as_ref() => {
                refuse(Kind::ReadOnly, format!("the lock of {pool}/{image} is held by {owner}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a writer gets the lock.
    pub(super) fn check_writable(&self, site: &str, pool: &str, image: &str) -> Answer<()> {
        self.primary(site, pool, image)?;
        match self.stubborn_owner(site, pool, image)? {
            None => Ok(()),
            Some(owner) => refuse(Kind::ReadOnly, format!("the lock of {pool}/{image} is held by {owner}")),
        }
    }

    pub(super) fn check_features(wanted: u64) -> Answer<u64> {
        if wanted & !KNOWN != 0 {
            return refuse(Kind::NotSupported, "unknown features");
        }
        let has = |bit: u64| wanted & bit != 0;
        if !has(features::EXCLUSIVE_LOCK) && (has(features::OBJECT_MAP) || has(features::JOURNALING)) {
            return refuse(Kind::Invalid, "object-map and journaling need exclusive-lock");
        }
        // Fast-diff without object-map is dropped without a word.
        Ok(if has(features::OBJECT_MAP) { wanted } else { wanted & !features::FAST_DIFF })
    }

    pub(super) fn insert_image(&mut self, site: &str, pool: &str, image: ImageState) -> Answer<()> {
        let state = self.pool_mut(site, pool)?;
        if state.names.contains_key(&image.name) {
            return refuse(Kind::Exists, format!("{pool}/{} exists", image.name));
        }
        state.names.insert(image.name.clone(), image.id.clone());
        state.images.insert(image.id.clone(), image);
        Ok(())
    }

    pub(super) fn blank(&mut self, name: &str, size: u64, order: u8, features: u64) -> ImageState {
        ImageState {
            id: format!("{:x}", self.next()),
            name: name.to_owned(),
            size,
            order,
            features,
            data: Data::default(),
            snaps: std::collections::BTreeMap::new(),
            metadata: std::collections::BTreeMap::new(),
            parent: None,
            trash: None,
            mirror: None,
            lock: None,
            held_until: None,
            watchers: vec![],
            moving: None,
            version: self.next(),
        }
    }

    pub(super) fn create(
        &mut self,
        site: &str,
        pool: &str,
        name: &str,
        size: u64,
        order: u8,
        features: u64,
    ) -> Answer<()> {
        self.pool(site, pool)?;
        if name.is_empty() || !(12..=25).contains(&order) {
            return refuse(Kind::Invalid, "name or order out of range");
        }
        let features = World::check_features(features)?;
        let image = self.blank(name, size, order, features);
        self.insert_image(site, pool, image)?;
        if self.pool(site, pool)?.whole && features & features::JOURNALING != 0 {
            return self.mirror_now(site, pool, name, MirrorMode::Journal);
        }
        Ok(())
    }

    /// Also of an image that is only half there.
    pub(super) fn image_id(&self, site: &str, pool: &str, image: &str) -> Answer<String> {
        match self.pool(site, pool)?.names.get(image) {
            Some(id) => Ok(id.clone()),
            None => refuse(Kind::NotFound, format!("no image {pool}/{image}")),
        }
    }

    pub(super) fn stat(&self, site: &str, pool: &str, image: &str) -> Answer<ImageInfo> {
        let i = self.image(site, pool, image)?;
        let named = |p: &ParentRef| {
            let parent = self.sites.get(site)?.pools.get(&p.pool)?.images.get(&p.image_id)?;
            let snap = parent.snaps.get(&p.snap)?;
            Some(Parent { pool: p.pool.clone(), image: parent.name.clone(), snap: snap.name.clone() })
        };
        let mut op_features = 0;
        if self.config.clone_v2 {
            let is_parent = i.snaps.keys().any(|s| !self.children(site, pool, &i.id, *s).is_empty());
            op_features |= if is_parent { CLONE_PARENT } else { 0 };
            op_features |= if i.parent.is_some() { CLONE_CHILD } else { 0 };
        }
        Ok(ImageInfo {
            id: i.id.clone(),
            size: i.size,
            order: i.order,
            features: i.features,
            op_features,
            stripe_unit: 1 << i.order,
            parent: i.parent.as_ref().and_then(named),
        })
    }

    pub(super) fn resize(&mut self, site: &str, pool: &str, image: &str, size: u64) -> Answer<()> {
        if size < self.image(site, pool, image)?.size {
            return refuse(Kind::Invalid, format!("{pool}/{image} is larger than {size} bytes"));
        }
        self.changeable(site, pool, image)?;
        self.image_mut(site, pool, image)?.size = size;
        self.changed(site, pool, image);
        Ok(())
    }

    pub(super) fn rename(&mut self, site: &str, pool: &str, from: &str, to: &str) -> Answer<()> {
        self.image(site, pool, from)?;
        if self.pool(site, pool)?.names.contains_key(to) {
            return refuse(Kind::Exists, format!("{pool}/{to} exists"));
        }
        self.changeable(site, pool, from)?;
        self.image_mut(site, pool, from)?.name = to.to_owned();
        let state = self.pool_mut(site, pool)?;
        if let Some(id) = state.names.remove(from) {
            state.names.insert(to.to_owned(), id);
        }
        self.changed(site, pool, to);
        Ok(())
    }

    /// By journal, rbd-mirror takes a snapshot of the primary for the first full copy, which no list shows,
    /// and drops it at the end.
    fn first_copy_runs(&self, site: &str, pool: &str, image: &ImageState) -> bool {
        let Some(mine) = image.mirror.as_ref().filter(|m| m.mode == MirrorMode::Journal) else {
            return false;
        };
        let key = (pool.to_owned(), mine.global_id.clone());
        let peers = self.sites.keys().filter(|other| *other != site);
        peers
            .filter_map(|peer| self.pair_image(peer, &key))
            .any(|(copy, theirs)| theirs.owner == Owner::Remote && !theirs.complete && copy.trash.is_none())
    }

    /// Refuses what a secondary, its snapshots or a watcher keep from going away.
    fn removable(&self, site: &str, pool: &str, image: &str) -> Answer<()> {
        let i = self.image(site, pool, image)?;
        if let Some(m) = i.mirror.as_ref().filter(|m| m.owner != Owner::Local) {
            let replayed = m.mode == MirrorMode::Journal && m.owner == Owner::Remote;
            let kind = match (replayed, i.snaps.is_empty()) {
                (true, _) => Kind::Busy,
                (false, false) => Kind::HasSnapshots,
                (false, true) => Kind::Invalid,
            };
            return refuse(kind, format!("{pool}/{image} is a mirrored secondary"));
        }
        if !i.snaps.is_empty() || self.first_copy_runs(site, pool, i) {
            return refuse(Kind::HasSnapshots, format!("{pool}/{image} has snapshots"));
        }
        if !i.watchers.is_empty() || self.stubborn_owner(site, pool, image)?.is_some() {
            return refuse(Kind::Busy, format!("{pool}/{image} has watchers"));
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, site: &str, pool: &str, image: &str) -> Answer<()> {
        let p = self.pool_mut(site, pool)?;
        if p.by_name(image).is_none() && p.names.remove(image).is_some() {
            return Ok(()); // half an image: the rest of it
        }
        self.removable(site, pool, image)?;
        self.unmirror(site, pool, image)?;
        let state = self.pool_mut(site, pool)?;
        let removed = state.names.remove(image).and_then(|id| state.images.remove(&id));
        if let Some(parent) = removed.and_then(|i| i.parent) {
            self.reap(site, &parent);
        }
        Ok(())
    }

    pub(super) fn flatten(&mut self, site: &str, pool: &str, image: &str) -> Answer<()> {
        let i = self.image(site, pool, image)?;
        let snapshot_mode = i.features & NON_PRIMARY != 0;
        if snapshot_mode {
            self.primary(site, pool, image)?;
        }
        let Some(parent) = i.parent.clone() else {
            return refuse(Kind::Invalid, format!("{pool}/{image} has no parent"));
        };
        self.changeable(site, pool, image)?;
        let whole = self.effective(site, pool, image, None)?;
        let base = self.parent_data(site, Some(&parent));
        let i = self.image_mut(site, pool, image)?;
        let before = std::mem::replace(&mut i.data, whole);
        if let Some(m) = i.mirror.as_mut().filter(|m| m.mode == MirrorMode::Snapshot) {
            m.unflattened.get_or_insert(before);
        }
        i.parent = None;
        // Deep-flatten: the snapshots of the child stop needing the parent too.
        for snap in i.snaps.values_mut().filter(|s| s.parent.as_ref() == Some(&parent)) {
            snap.data = snap.data.over(&base).clip(snap.size);
            snap.parent = None;
        }
        self.changed(site, pool, image);
        self.reap(site, &parent);
        Ok(())
    }

    /// What a reader of the head or of a snapshot sees.
    pub(super) fn effective(&self, site: &str, pool: &str, image: &str, snap: Option<&str>) -> Answer<Data> {
        let i = self.image(site, pool, image)?;
        let Some(snap) = snap else {
            return Ok(i.data.over(&self.parent_data(site, i.parent.as_ref())).clip(i.size));
        };
        let found = i.snap_id(snap).and_then(|id| i.snaps.get(&id));
        match found {
            Some(s) => Ok(s.data.over(&self.parent_data(site, s.parent.as_ref())).clip(s.size)),
            None => refuse(Kind::NotFound, format!("no snapshot {pool}/{image}@{snap}")),
        }
    }

    pub(super) fn parent_data(&self, site: &str, parent: Option<&ParentRef>) -> Data {
        let found = parent.and_then(|p| {
            let image = self.sites.get(site)?.pools.get(&p.pool)?.images.get(&p.image_id)?;
            let snap = image.snaps.get(&p.snap)?;
            Some(snap.data.over(&self.parent_data(site, snap.parent.as_ref())).clip(p.overlap))
        });
        found.unwrap_or_default()
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn copy(
        &mut self,
        site: &str,
        (pool, image, snap): (&str, &str, Option<&str>),
        (dest_pool, dest): (&str, &str),
        features: u64,
        order: u8,
    ) -> Answer<()> {
        let data = self.effective(site, pool, image, snap)?;
        let source = self.image(site, pool, image)?;
        let size = snap.and_then(|s| source.snap_id(s)).and_then(|id| source.snaps.get(&id)).map(|s| s.size);
        let size = size.unwrap_or(source.size);
        let metadata = source.metadata.clone();
        self.create(site, dest_pool, dest, size, order, features)?;
        let copy = self.image_mut(site, dest_pool, dest)?;
        (copy.data, copy.metadata) = (data, metadata);
        Ok(())
    }

    pub(super) fn read(
        &self,
        site: &str,
        (pool, image, snap): (&str, &str, Option<&str>),
        offset: u64,
        length: u64,
    ) -> Answer<Vec<u8>> {
        let data = self.effective(site, pool, image, snap)?;
        let i = self.image(site, pool, image)?;
        let size = snap.and_then(|s| i.snap_id(s)).and_then(|id| i.snaps.get(&id)).map_or(i.size, |s| s.size);
        if offset > size {
            return refuse(Kind::Invalid, format!("{pool}/{image} ends before {offset}"));
        }
        Ok(data.read(offset, length.min(size - offset)))
    }

    pub(super) fn write(
        &mut self,
        site: &str,
        pool: &str,
        image: &str,
        offset: u64,
        data: &[u8],
    ) -> Answer<()> {
        let size = self.image(site, pool, image)?.size;
        self.check_writable(site, pool, image)?;
        if offset.saturating_add(data.len() as u64) > size {
            return refuse(Kind::Invalid, format!("{pool}/{image} ends at {size}"));
        }
        let base = self.parent_data(site, self.image(site, pool, image)?.parent.as_ref());
        let i = self.image_mut(site, pool, image)?;
        i.data.write(offset, data, &base);
        if let Some(partial) = i.mirror.as_mut().and_then(|m| m.unflattened.as_mut()) {
            partial.write(offset, data, &Data::default());
        }
        self.changed(site, pool, image);
        Ok(())
    }

    /// The worker of `site` writes to the other site itself, as a client of it.
    pub(super) fn transfer(&mut self, site: &str, r: &ImageTransfer) -> Answer<u64> {
        let dest_site = self.resolve(&r.dest_site);
        let reachable =
            dest_site.as_ref().and_then(|s| self.sites.get(s)).is_some_and(|s| s.health.data_flows());
        let Some(dest_site) = dest_site.filter(|_| reachable) else {
            return refuse(Kind::Unreachable, format!("no way to {}", r.dest_site.site));
        };
        let end = r.offset.saturating_add(r.length);
        let pieces = self.effective(site, &r.pool, &r.image, None)?.pieces(r.offset, end);
        self.image(&dest_site, &r.dest_pool, &r.dest)?;
        let mut written = 0;
        for (at, bytes) in pieces {
            self.write(&dest_site, &r.dest_pool, &r.dest, at, &bytes)?;
            written += bytes.len() as u64;
        }
        Ok(written)
    }

    pub(super) fn set_features(
        &mut self,
        site: &str,
        pool: &str,
        image: &str,
        bits: u64,
        enable: bool,
    ) -> Answer<()> {
        self.changeable(site, pool, image)?;
        let i = self.image(site, pool, image)?;
        let (now, after) = (i.features, if enable { i.features | bits } else { i.features & !bits });
        let switchable = features::EXCLUSIVE_LOCK
            | features::OBJECT_MAP
            | features::FAST_DIFF
            | features::JOURNALING
            | if enable { 0 } else { features::DEEP_FLATTEN };
        if after == now {
            return Ok(());
        }
        let journaled = i.mirror.as_ref().is_some_and(|m| m.mode == MirrorMode::Journal);
        let needs_lock = after & (features::OBJECT_MAP | features::JOURNALING) != 0;
        if (now ^ after) & !switchable != 0
            || (journaled && !enable && bits & features::JOURNALING != 0)
            || (needs_lock && after & features::EXCLUSIVE_LOCK == 0)
        {
            return refuse(Kind::Invalid, format!("features {bits} of {pool}/{image} (it has {now})"));
        }
        let after = if after & features::OBJECT_MAP == 0 { after & !features::FAST_DIFF } else { after };
        self.image_mut(site, pool, image)?.features = after;
        self.changed(site, pool, image);
        let mirrored = self.image(site, pool, image)?.mirror.is_some();
        if enable && bits & features::JOURNALING != 0 && !mirrored && self.pool(site, pool)?.whole {
            return self.mirror_now(site, pool, image, MirrorMode::Journal);
        }
        Ok(())
    }

    pub(super) fn watchers(&self, site: &str, pool: &str, image: &str) -> Answer<Vec<Watcher>> {
        let i = self.image(site, pool, image)?;
        let mut all: Vec<Watcher> = i
            .watchers
            .iter()
            .map(|w| Watcher { address: w.address.clone(), client: w.client, cookie: w.cookie })
            .collect();
        // The daemon has the images open that it replays.
        if i.mirror.as_ref().is_some_and(|m| m.owner == Owner::Remote)
            && let Some(s) = self.sites.get(site).filter(|_| self.daemon_works(site))
        {
            all.push(Watcher { address: s.daemon_address(), client: 4118, cookie: 1 });
        }
        Ok(all)
    }

    pub(super) fn lock_owners(&self, site: &str, pool: &str, image: &str) -> Answer<Vec<String>> {
        let i = self.image(site, pool, image)?;
        if i.features & NON_PRIMARY != 0 || i.features & features::EXCLUSIVE_LOCK == 0 {
            return Ok(vec![]);
        }
        Ok(self.stubborn_owner(site, pool, image)?.into_iter().collect())
    }

    pub(super) fn lock_break(&mut self, site: &str, pool: &str, image: &str, owner: &str) -> Answer<()> {
        match self.stubborn_owner(site, pool, image)? {
            None => return refuse(Kind::NotFound, format!("{pool}/{image} is not locked")),
            Some(actual) if actual != owner => {
                return refuse(Kind::Busy, format!("{pool}/{image} is locked by {actual}"));
            }
            Some(_) => {}
        }
        self.image_mut(site, pool, image)?.lock = None;
        self.blocklist(site, owner, 3600);
        Ok(())
    }

    pub(super) fn meta_set(
        &mut self,
        site: &str,
        pool: &str,
        image: &str,
        key: &str,
        value: &str,
    ) -> Answer<()> {
        self.changeable(site, pool, image)?;
        let unknown = key.strip_prefix("conf_").is_some_and(|option| !option.starts_with("rbd_"))
            || key == "conf_rbd_nonsense";
        if unknown {
            return refuse(Kind::Invalid, format!("{key} is not an option of librbd"));
        }
        self.image_mut(site, pool, image)?.metadata.insert(key.to_owned(), value.to_owned());
        self.changed(site, pool, image);
        Ok(())
    }

    pub(super) fn meta_remove(&mut self, site: &str, pool: &str, image: &str, key: &str) -> Answer<()> {
        let i = self.image(site, pool, image)?;
        if i.features & NON_PRIMARY != 0 {
            self.primary(site, pool, image)?;
        }
        if !i.metadata.contains_key(key) {
            return refuse(Kind::NotFound, format!("{pool}/{image} has no metadata {key}"));
        }
        self.changeable(site, pool, image)?;
        self.image_mut(site, pool, image)?.metadata.remove(key);
        self.changed(site, pool, image);
        Ok(())
    }

    /// Everything that hangs on a snapshot, across the pools of the site.
    pub(super) fn children(&self, site: &str, pool: &str, image_id: &str, snap: u64) -> Vec<ImageName> {
        let hangs = |p: &Option<ParentRef>| {
            p.as_ref().is_some_and(|p| p.pool == pool && p.image_id == image_id && p.snap == snap)
        };
        let pools = self.sites.get(site).into_iter().flat_map(|s| &s.pools);
        pools
            .flat_map(|(name, state)| {
                state
                    .images
                    .values()
                    .filter(|i| hangs(&i.parent) || i.snaps.values().any(|s| hangs(&s.parent)))
                    .map(|i| ImageName {
                        pool: name.clone(),
                        image: i.name.clone(),
                        trash: i.trash.is_some(),
                    })
            })
            .collect()
    }
}
