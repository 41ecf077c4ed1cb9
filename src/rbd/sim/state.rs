//! The state of a simulated world: sites, pools, images and what mirroring knows of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::config::SimConfig;
use super::data::Data;
use super::faults::{CrashPoint, Fault, Health};
use super::log::CallRecord;
use super::mirror_daemon::{Daemon, Phase, Replayer, Turn};
use super::moving::MoveFrom;
use crate::rbd::error::{RbdError, RbdErrorKind};
use crate::rbd::link::ErasureProfile;
use crate::rbd::types::{MirrorMode, Schedule, id_in_trash};

/// Seconds since the epoch at virtual time zero.
pub(super) const EPOCH: i64 = 1_700_000_000;

/// Kind of "no such pool", which the worker pool will set apart from "no such image".
const NO_POOL: RbdErrorKind = RbdErrorKind::NoPool;

/// Identifies an image on both sides: pool and mirroring's global id.
pub(super) type PairKey = (String, String);

/// A snapshot that a clone hangs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParentRef {
    pub(super) pool: String,
    pub(super) image_id: String,
    pub(super) snap: u64,
    /// Bytes of the parent that the child may see.
    pub(super) overlap: u64,
}

#[derive(Debug, Clone)]
pub(super) struct SnapState {
    pub(super) name: String,
    /// The same on both sides of a pair, where ids differ.
    pub(super) uid: u64,
    pub(super) size: u64,
    pub(super) data: Data,
    pub(super) parent: Option<ParentRef>,
    pub(super) protected: bool,
    /// Removed while it had children (clone format 2, or on a replica): kept out of sight.
    pub(super) hidden: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Trash {
    pub(super) deferment_end: i64,
    /// Put there by rbd-mirror, which removes it when nothing hangs on it.
    pub(super) by_mirroring: bool,
}

/// Who may write: the owner of the journal's tag, or the kind of the last mirror snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// This side is primary.
    Local,
    /// The other side is primary, as far as this side knows.
    Remote,
    /// Demoted, here or there: whoever promotes first gets it.
    Nobody,
}

/// What replication carries from one side to the other.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) version: u64,
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) order: u8,
    pub(super) features: u64,
    /// What an incremental copy brings.
    pub(super) data: Data,
    /// What a first copy brings.
    pub(super) whole: Data,
    pub(super) snaps: Vec<SnapState>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) lineage: Vec<u64>,
    pub(super) parent: Option<ParentRef>,
    /// Snapshot mode: the mirror snapshot that this is.
    pub(super) mirror_snap: u64,
}

/// Which of the primary's mirror snapshots a copy is about, in snapshot mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Id of the copy's own mirror snapshot.
    pub(super) id: u64,
    /// Id of the primary's.
    pub(super) of: u64,
}

/// Mirroring of one image on one side.
#[derive(Debug, Clone)]
pub(super) struct MirrorSide {
    pub(super) mode: MirrorMode,
    pub(super) global_id: String,
    pub(super) owner: Owner,
    /// One number for each change of ownership that this side knows of. A side whose list is not the
    /// beginning of the primary's has data that the primary never saw: split-brain.
    pub(super) lineage: Vec<u64>,
    /// Snapshot mode: what the last mirror snapshot holds.
    pub(super) published: Option<Box<Content>>,
    /// Version of the primary that this side holds.
    pub(super) synced: u64,
    /// The first full copy has come through.
    pub(super) complete: bool,
    pub(super) resync: bool,
    /// Snapshot mode, after a flattening: the data without what was copied from the parent, which no
    /// incremental copy brings (Ceph 16.2.15).
    pub(super) unflattened: Option<Data>,
    /// Journal mode: the peer's daemon is registered in this side's journal.
    pub(super) registered: bool,
    /// Journal mode: this side was promoted before that, so that the peer's copy can never follow it.
    pub(super) unlinked: bool,
    /// Snapshot mode, on a copy: the last mirror snapshot whose data is all here.
    pub(super) covered: Option<Copied>,
    /// The same: one whose snapshots have their names here, but not their data.
    pub(super) arriving: Option<Copied>,
}

#[derive(Debug, Clone)]
pub(super) struct WatcherState {
    pub(super) address: String,
    pub(super) client: i64,
    pub(super) cookie: u64,
    /// Virtual time at which a dead client's watch ends.
    pub(super) until: Option<Duration>,
}

#[derive(Debug, Clone)]
pub(super) struct ImageState {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) order: u8,
    pub(super) features: u64,
    pub(super) data: Data,
    pub(super) snaps: BTreeMap<u64, SnapState>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) parent: Option<ParentRef>,
    pub(super) trash: Option<Trash>,
    pub(super) mirror: Option<MirrorSide>,
    /// Address of the owner of a lock that is not given up when asked.
    pub(super) lock: Option<String>,
    /// Until when the site's daemon holds the lock of what it replayed before it was promoted.
    pub(super) held_until: Option<Duration>,
    pub(super) watchers: Vec<WatcherState>,
    /// Where it comes from, while it is being moved to another pool.
    pub(super) moving: Option<MoveFrom>,
    /// Grows with each change that replication carries.
    pub(super) version: u64,
}

impl ImageState {
    /// Primary, or not mirrored at all.
    pub(super) fn accepts_changes(&self) -> bool {
        self.mirror.as_ref().is_none_or(|m| m.owner == Owner::Local)
    }

    pub(super) fn visible_snaps(&self) -> impl Iterator<Item = (&u64, &SnapState)> {
        self.snaps.iter().filter(|(_, s)| !s.hidden)
    }

    pub(super) fn snap_id(&self, name: &str) -> Option<u64> {
        self.visible_snaps().find(|(_, s)| s.name == name).map(|(id, _)| *id)
    }
}

#[derive(Debug, Default)]
pub(super) struct PoolState {
    pub(super) mirrored: bool,
    /// In pool mode: every journaled image is mirrored.
    pub(super) whole: bool,
    pub(super) erasure: bool,
    pub(super) size: u32,
    pub(super) min_size: u32,
    /// Where new images put their data.
    pub(super) data_pool: Option<String>,
    /// Sites that it receives from.
    pub(super) peers: Vec<String>,
    /// By image id, trash included.
    pub(super) images: BTreeMap<String, ImageState>,
    pub(super) names: BTreeMap<String, String>,
    /// Plain objects that are none of an image.
    pub(super) objects: BTreeMap<String, Vec<u8>>,
    pub(super) by_global_id: BTreeMap<String, String>,
    /// Ids of the images whose mirror snapshots have a schedule; empty for that of the whole pool.
    pub(super) scheduled: BTreeSet<String>,
}

impl PoolState {
    pub(super) fn by_name(&self, name: &str) -> Option<&ImageState> {
        self.images.get(id_in_trash(name).or_else(|| self.names.get(name).map(String::as_str))?)
    }

    pub(super) fn of_pair(&self, global_id: &str) -> Option<&ImageState> {
        self.by_global_id.get(global_id).and_then(|id| self.images.get(id))
    }

    pub(super) fn of_pair_mut(&mut self, global_id: &str) -> Option<&mut ImageState> {
        let id = self.by_global_id.get(global_id)?;
        self.images.get_mut(id)
    }
}

#[derive(Debug)]
pub(super) struct SiteState {
    pub(super) name: String,
    pub(super) fsid: String,
    pub(super) aliases: Vec<String>,
    /// What it calls itself towards its peers.
    pub(super) site_name: Option<String>,
    /// Users that peers reach it by.
    pub(super) clients: BTreeMap<String, Vec<String>>,
    pub(super) profiles: BTreeMap<String, ErasureProfile>,
    pub(super) health: Health,
    pub(super) pools: BTreeMap<String, PoolState>,
    /// Address -> end, seconds since the epoch.
    pub(super) blocklist: BTreeMap<String, i64>,
    pub(super) daemon: Daemon,
    pub(super) replayers: BTreeMap<PairKey, Replayer>,
    /// Clients with an established connection.
    pub(super) connected: BTreeSet<u64>,
    /// Schedules of mirror snapshots, by pool and image id. Nobody carries them out.
    pub(super) schedules: BTreeMap<(String, String), BTreeSet<Schedule>>,
    /// Those of pools, by name, and that of all pools, by nothing.
    pub(super) wide_schedules: BTreeMap<String, BTreeSet<Schedule>>,
}

impl SiteState {
    pub(super) fn daemon_address(&self) -> String {
        self.daemon.address.clone()
    }

    /// Drops what the daemon holds and had begun: it is gone.
    pub(super) fn forget_daemon(&mut self) {
        let address = self.daemon_address();
        for image in self.pools.values_mut().flat_map(|p| p.images.values_mut()) {
            image.lock = image.lock.take().filter(|owner| *owner != address);
        }
        for replayer in self.replayers.values_mut() {
            replayer.phase = Phase::Idle;
        }
    }

    pub(super) fn blocklisted(&self, address: &str, now: i64) -> bool {
        self.blocklist.get(address).is_some_and(|end| *end > now)
    }
}

/// The world behind one mutex.
pub(super) struct World {
    pub(super) config: SimConfig,
    pub(super) rng: StdRng,
    started: Instant,
    /// Virtual time since the world began, of the event being carried out.
    pub(super) now: Duration,
    pub(super) sites: BTreeMap<String, SiteState>,
    pub(super) site_order: Vec<String>,
    pub(super) agenda: BTreeMap<(Duration, u64), Turn>,
    pub(super) dirty: BTreeSet<PairKey>,
    /// Clones whose replica waits for the replica of the parent.
    pub(super) waiting: BTreeSet<PairKey>,
    /// When watches of dead clients end.
    pub(super) watch_ends: BTreeSet<Duration>,
    counter: u64,
    pub(super) faults: Vec<Fault>,
    pub(super) crash: CrashPoint,
    pub(super) log: Vec<CallRecord>,
    /// Split-brains and promotions beside a living primary, in words.
    pub(super) sins: Vec<String>,
    pub(super) client_addresses: BTreeMap<u64, String>,
}

impl World {
    pub(super) fn new(config: SimConfig) -> World {
        let mut world = World {
            rng: StdRng::seed_from_u64(config.seed),
            started: Instant::now(),
            now: Duration::ZERO,
            sites: BTreeMap::new(),
            site_order: config.sites.iter().map(|s| s.name.clone()).collect(),
            agenda: BTreeMap::new(),
            dirty: BTreeSet::new(),
            waiting: BTreeSet::new(),
            watch_ends: BTreeSet::new(),
            counter: 4096,
            faults: vec![],
            crash: CrashPoint::default(),
            log: vec![],
            sins: vec![],
            client_addresses: BTreeMap::new(),
            config,
        };
        for spec in world.config.sites.clone() {
            let mut pools = BTreeMap::new();
            for pool in &spec.pools {
                let linked = |other: &&super::config::SiteSpec| {
                    other.name != spec.name
                        && other.pools.iter().any(|p| p.name == pool.name && p.mirrored && p.peers)
                };
                let peers = if pool.mirrored && pool.peers {
                    world.config.sites.iter().filter(linked).map(|s| s.name.clone()).collect()
                } else {
                    vec![]
                };
                pools.insert(
                    pool.name.clone(),
                    PoolState {
                        mirrored: pool.mirrored,
                        peers,
                        size: 3,
                        min_size: 2,
                        ..PoolState::default()
                    },
                );
            }
            let n = world.next();
            world.sites.insert(
                spec.name.clone(),
                SiteState {
                    fsid: format!("51e00000-0000-4000-8000-{n:012x}"),
                    aliases: spec.aliases.clone(),
                    site_name: None,
                    clients: BTreeMap::new(),
                    profiles: BTreeMap::new(),
                    health: Health::Alive,
                    pools,
                    blocklist: BTreeMap::new(),
                    daemon: Daemon::new(format!("127.0.0.1:0/{}", 2_000_000_000 + n)),
                    replayers: BTreeMap::new(),
                    connected: BTreeSet::new(),
                    schedules: BTreeMap::new(),
                    wide_schedules: BTreeMap::new(),
                    name: spec.name,
                },
            );
        }
        world
    }

    /// A number never given before.
    pub(super) fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Virtual time by tokio's clock, paused or not.
    pub(super) fn clock(&self) -> Duration {
        self.started.elapsed()
    }

    /// Seconds since the epoch.
    pub(super) fn epoch(&self) -> i64 {
        EPOCH + self.now.as_secs() as i64
    }

    pub(super) fn address_of(&mut self, client: u64) -> String {
        if let Some(address) = self.client_addresses.get(&client) {
            return address.clone();
        }
        let address = format!("127.0.0.1:0/{}", 3_000_000_000 + self.next());
        self.client_addresses.insert(client, address.clone());
        address
    }

    pub(super) fn touch(&mut self, pool: &str, global_id: Option<String>) {
        if let Some(id) = global_id {
            self.dirty.insert((pool.to_owned(), id));
        }
    }

    pub(super) fn touch_all(&mut self) {
        for site in self.sites.values() {
            for (pool, state) in &site.pools {
                self.dirty.extend(state.by_global_id.keys().map(|g| (pool.clone(), g.clone())));
            }
        }
    }

    // The lookups below assume that `site` came from this world's own maps.

    pub(super) fn pool(&self, site: &str, pool: &str) -> Result<&PoolState, Refusal> {
        self.sites
            .get(site)
            .and_then(|s| s.pools.get(pool))
            .ok_or_else(|| Refusal::new(NO_POOL, format!("no pool {pool}")))
    }

    pub(super) fn pool_mut(&mut self, site: &str, pool: &str) -> Result<&mut PoolState, Refusal> {
        self.sites
            .get_mut(site)
            .and_then(|s| s.pools.get_mut(pool))
            .ok_or_else(|| Refusal::new(NO_POOL, format!("no pool {pool}")))
    }

    pub(super) fn image(&self, site: &str, pool: &str, image: &str) -> Result<&ImageState, Refusal> {
        self.pool(site, pool)?
            .by_name(image)
            .ok_or_else(|| Refusal::new(RbdErrorKind::NotFound, format!("no image {pool}/{image}")))
    }

    pub(super) fn image_mut(
        &mut self,
        site: &str,
        pool: &str,
        image: &str,
    ) -> Result<&mut ImageState, Refusal> {
        let p = self.pool_mut(site, pool)?;
        let id = id_in_trash(image).map(str::to_owned).or_else(|| p.names.get(image).cloned());
        id.and_then(|id| p.images.get_mut(&id))
            .ok_or_else(|| Refusal::new(RbdErrorKind::NotFound, format!("no image {pool}/{image}")))
    }
}

/// A refusal by simulated Ceph, before it is dressed as an [`RbdError`].
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) kind: RbdErrorKind,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(kind: RbdErrorKind, message: impl Into<String>) -> Self {
        Refusal { kind, message: message.into() }
    }

    pub(super) fn dress(self, op: &str, site: &str) -> RbdError {
        RbdError {
            errno: errno(self.kind),
            kind: self.kind,
            op: op.to_owned(),
            site: site.to_owned(),
            message: self.message,
        }
    }
}

/// The errno that librbd uses for a kind.
fn errno(kind: RbdErrorKind) -> i32 {
    match kind {
        RbdErrorKind::NotFound | RbdErrorKind::NoPool => libc::ENOENT,
        RbdErrorKind::Exists => libc::EEXIST,
        RbdErrorKind::Busy => libc::EBUSY,
        RbdErrorKind::HasSnapshots => libc::ENOTEMPTY,
        RbdErrorKind::ReadOnly => libc::EROFS,
        RbdErrorKind::Invalid => libc::EINVAL,
        RbdErrorKind::NotSupported => libc::ENOSYS,
        RbdErrorKind::Permission => libc::EACCES,
        RbdErrorKind::NoSpace => libc::ENOSPC,
        RbdErrorKind::Blocklisted => libc::ESHUTDOWN,
        RbdErrorKind::TimedOut => libc::ETIMEDOUT,
        RbdErrorKind::Unreachable => libc::ETIMEDOUT,
        RbdErrorKind::WorkerLost | RbdErrorKind::Other => 0,
    }
}
