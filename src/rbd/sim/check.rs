//! Looking at a simulated world from outside, without calls: views, checksums, invariants.

use super::Sim;
use super::state::{Owner, PairKey, World};
use crate::rbd::types::MirrorMode;

/// One image as it is, whatever a client may see of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageView {
    /// Bytes.
    pub size: u64,
    /// Feature bits.
    pub features: u64,
    /// Names of the user snapshots.
    pub snaps: Vec<String>,
    /// Mode, when mirrored.
    pub mirror: Option<MirrorMode>,
    /// Primary on this side.
    pub primary: bool,
    /// Checksum of the contents of the head.
    pub checksum: u64,
    /// Addresses of live and dead watchers.
    pub watchers: Vec<String>,
    /// Owner of a lock that is not given up.
    pub lock: Option<String>,
}

impl Sim {
    /// The image of this name, trash left out.
    pub fn image(&self, site: &str, pool: &str, image: &str) -> Option<ImageView> {
        let mut world = self.lock();
        world.advance();
        let data = world.effective(site, pool, image, None).ok()?;
        let i = world.image(site, pool, image).ok()?;
        Some(ImageView {
            size: i.size,
            features: i.features,
            snaps: i.visible_snaps().map(|(_, s)| s.name.clone()).collect(),
            mirror: i.mirror.as_ref().map(|m| m.mode),
            primary: i.mirror.as_ref().is_some_and(|m| m.owner == Owner::Local),
            checksum: data.checksum(),
            watchers: i.watchers.iter().map(|w| w.address.clone()).collect(),
            lock: i.lock.clone(),
        })
    }

    /// Names of the images of a pool.
    pub fn images(&self, site: &str, pool: &str) -> Vec<String> {
        let mut world = self.lock();
        world.advance();
        world.pool(site, pool).map(|p| p.names.keys().cloned().collect()).unwrap_or_default()
    }

    /// Sites on which the image is primary.
    pub fn primaries(&self, pool: &str, image: &str) -> Vec<String> {
        let sites = self.lock().site_order.clone();
        sites.into_iter().filter(|s| self.image(s, pool, image).is_some_and(|i| i.primary)).collect()
    }

    /// Every mirrored image is primary on one side at least. Panics with the call log otherwise.
    pub fn assert_no_image_without_primary(&self) {
        self.judge(|world, key| {
            let owners = world.owners(key);
            (!owners.iter().any(|(_, o)| *o == Owner::Local)).then(|| format!("nowhere primary: {owners:?}"))
        });
    }

    /// No image was promoted beside a living primary, and no split-brain was met.
    pub fn assert_no_split_brain_created(&self) {
        let mut world = self.lock();
        world.advance();
        let sins = world.sins.join("\n");
        drop(world);
        assert!(sins.is_empty(), "{sins}\n{}", self.log_text());
    }

    /// What [`assert_no_split_brain_created`](Sim::assert_no_split_brain_created) objects to, in words.
    pub fn split_brains(&self) -> Vec<String> {
        let mut world = self.lock();
        world.advance();
        world.sins.clone()
    }

    /// Every mirrored image is primary on exactly one side, exists on the others, and has the same
    /// contents there.
    pub fn assert_sides_agree(&self) {
        self.judge(|world, (pool, global_id)| {
            let key = (pool.clone(), global_id.clone());
            let owners = world.owners(&key);
            let primaries: Vec<_> = owners.iter().filter(|(_, o)| *o == Owner::Local).collect();
            let [(primary, _)] = primaries.as_slice() else {
                return Some(format!("not primary on exactly one side: {owners:?}"));
            };
            let look = |site: &str| {
                let image = world.pair_image(site, &key)?.0;
                let data = world.effective(site, pool, &image.name, None).ok()?;
                let snaps: Vec<_> =
                    image.visible_snaps().map(|(_, s)| (s.name.clone(), s.protected)).collect();
                Some((image.name.clone(), image.size, snaps, data.checksum()))
            };
            let wanted = look(primary);
            let peers = world.pool(primary, pool).map(|p| p.peers.clone()).unwrap_or_default();
            peers.iter().find_map(|peer| {
                let found = look(peer);
                (found != wanted).then(|| format!("{primary} has {wanted:?}, {peer} has {found:?}"))
            })
        });
    }

    fn judge(&self, verdict: impl Fn(&World, &PairKey) -> Option<String>) {
        let mut world = self.lock();
        world.advance();
        let mut keys: Vec<PairKey> = vec![];
        for site in world.sites.values() {
            for (pool, state) in &site.pools {
                keys.extend(state.by_global_id.keys().map(|g| (pool.clone(), g.clone())));
            }
        }
        keys.sort();
        keys.dedup();
        let name = |key: &PairKey| {
            world.site_order.iter().find_map(|s| world.pair_image(s, key).map(|(i, _)| i.name.clone()))
        };
        let bad: Vec<String> = keys
            .iter()
            .filter_map(|k| {
                verdict(&world, k).map(|v| format!("{}/{}: {v}", k.0, name(k).unwrap_or_default()))
            })
            .collect();
        drop(world);
        assert!(bad.is_empty(), "{}\n{}", bad.join("\n"), self.log_text());
    }
}

impl World {
    /// Owner as each side that has the image sees it; what rbd-mirror put into the trash does not count.
    fn owners(&self, key: &PairKey) -> Vec<(String, Owner)> {
        let sites = self.site_order.iter();
        let all = sites.filter_map(|s| self.pair_image(s, key).map(|(i, m)| (s.clone(), i, m.owner)));
        let kept: Vec<_> = all.filter(|(_, i, _)| i.trash.is_none()).map(|(s, _, o)| (s, o)).collect();
        kept
    }
}
