//! The rbd-mirror daemons, as processes in virtual time.
//!
//! Nothing runs in the background: whenever a call arrives, the world first carries out everything that
//! the daemons would have done since the last one, in order. What a daemon does next with an image is a
//! function of the state of both sides ([`World::plan`]); it is recomputed for an image when something
//! about it changed, and keeps its due time while it stays the same. What it does to its copy is in [`super::replica`].

use std::time::Duration;

use rand::Rng;

use super::config::Timing;
use super::data::Data;
use super::state::{Content, ImageState, MirrorSide, Owner, PairKey, ParentRef, SnapState, World};
use crate::rbd::types::MirrorMode;

/// `RBD_FEATURE_NON_PRIMARY`: set on secondaries in snapshot mode.
pub(super) const NON_PRIMARY: u64 = 1 << 10;

/// The daemon of one site.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    /// Its RADOS address: owner of the locks that it holds.
    pub(super) address: String,
    pub(super) state: DaemonState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DaemonState {
    Running,
    /// Started, useful from then on.
    Until(Duration),
    /// Fenced by a lock break; recovers some time after its peer answers.
    Fenced,
    Stopped,
}

impl Daemon {
    pub(super) fn new(address: String) -> Daemon {
        Daemon { address, state: DaemonState::Running }
    }
}

/// What one daemon does with one image.
#[derive(Debug, Clone, Default)]
pub(super) struct Replayer {
    pub(super) phase: Phase,
    pub(super) pending: Option<(Step, (Duration, u64))>,
    pub(super) report: Option<Report>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    #[default]
    Idle,
    Replaying,
    SplitBrain,
}

/// What the daemon last wrote into the status objects.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) at: Duration,
    pub(super) state: &'static str,
    pub(super) description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the replica: names and sizes, no data yet.
    Create,
    /// Begin (or begin again) to replay, after the first full copy.
    Start,
    /// The peer has snapshots that this side has not: their names come first.
    SyncSnaps,
    /// Bring the replica up to a version of the primary.
    Sync { version: u64 },
    /// Learn that the peer was demoted.
    Demotion,
    /// Delete for a resync.
    Resync,
    /// The primary is gone or no longer mirrored.
    Remove,
    /// Purge what was removed.
    Purge,
    /// Let go of a lock that outlived a forced promotion.
    ReleaseLock,
    /// Notice the peer's copy and register in its journal.
    Register,
}

/// Something on the agenda.
#[derive(Debug, Clone)]
pub(super) enum Turn {
    Step { site: String, key: PairKey },
    DaemonBack { site: String },
}

impl World {
    /// Carries out everything due by now.
    pub(super) fn advance(&mut self) {
        let end = self.clock();
        loop {
            self.replan();
            let Some((at, turn)) = self.agenda.first_key_value().map(|(at, turn)| (*at, turn.clone())) else {
                break;
            };
            if at.0 > end {
                break;
            }
            self.agenda.remove(&at);
            self.now = self.now.max(at.0);
            match turn {
                Turn::Step { site, key } => {
                    let replayer = self.sites.get_mut(&site).and_then(|s| s.replayers.get_mut(&key));
                    let due = replayer.and_then(|r| r.pending.take_if(|(_, when)| *when == at));
                    if let Some((step, _)) = due {
                        self.take_step(&site, &key, step);
                        self.dirty.insert(key);
                        self.dirty.append(&mut self.waiting);
                    }
                }
                Turn::DaemonBack { site } => {
                    let n = self.next();
                    if let Some(s) = self.sites.get_mut(&site)
                        && s.daemon.state == DaemonState::Until(at.0)
                    {
                        let (old, new) = (s.daemon_address(), format!("127.0.0.1:0/{}", 2_000_000_000 + n));
                        // What it still holds (it was only paused) stays its own.
                        for image in s.pools.values_mut().flat_map(|p| p.images.values_mut()) {
                            if image.lock.as_ref() == Some(&old) {
                                image.lock = Some(new.clone());
                            }
                        }
                        s.daemon = Daemon::new(new);
                        self.touch_all();
                    }
                }
            }
        }
        self.now = self.now.max(end);
        if self.watch_ends.first().is_some_and(|first| *first <= self.now) {
            let now = self.now;
            self.watch_ends.retain(|end| *end > now);
            for pool in self.sites.values_mut().flat_map(|s| s.pools.values_mut()) {
                for image in pool.images.values_mut() {
                    image.watchers.retain(|w| w.until.is_none_or(|until| until > now));
                }
            }
        }
    }

    /// Makes the daemon of `site` work again after `delay`.
    pub(super) fn daemon_back_after(&mut self, site: &str, delay: Duration) {
        let at = self.now + delay;
        let n = self.next();
        if let Some(s) = self.sites.get_mut(site) {
            s.daemon.state = DaemonState::Until(at);
            self.agenda.insert((at, n), Turn::DaemonBack { site: site.to_owned() });
        }
    }

    fn replan(&mut self) {
        while let Some(key) = self.dirty.pop_first() {
            for site in self.site_order.clone() {
                self.replan_one(&site, &key);
            }
        }
    }

    fn replan_one(&mut self, site: &str, key: &PairKey) {
        let planned = self.plan(site, key);
        if planned.is_none() && self.lacks_parent(site, key) {
            self.waiting.insert(key.clone());
        }
        let known = self.sites.get(site).and_then(|s| s.replayers.get(key));
        let pending = known.and_then(|r| r.pending);
        if planned.map(|(step, _)| step) == pending.map(|(step, _)| step) {
            return;
        }
        if let Some((_, at)) = pending {
            self.agenda.remove(&at);
        }
        let next = planned.map(|(step, delay)| {
            let at = (self.now + self.jitter(delay), self.next());
            self.agenda.insert(at, Turn::Step { site: site.to_owned(), key: key.clone() });
            (step, at)
        });
        if let Some(s) = self.sites.get_mut(site) {
            s.replayers.entry(key.clone()).or_default().pending = next;
        }
    }

    fn jitter(&mut self, delay: Duration) -> Duration {
        let most = self.config.timing.jitter_percent.max(100);
        delay * self.rng.random_range(100..=most) / 100
    }

    /// The site that `site` replays this image from: the one where it is primary, else any that has it.
    pub(super) fn peer_of(&self, site: &str, key: &PairKey) -> Option<String> {
        let peers = &self.sites.get(site)?.pools.get(&key.0)?.peers;
        let owner = |peer: &str| {
            self.sites.get(peer)?.pools.get(&key.0)?.of_pair(&key.1)?.mirror.as_ref().map(|m| m.owner)
        };
        let primary = peers.iter().find(|p| owner(p) == Some(Owner::Local));
        primary.or_else(|| peers.iter().find(|p| owner(p).is_some())).or_else(|| peers.first()).cloned()
    }

    pub(super) fn reaches(&self, site: &str) -> bool {
        self.sites.get(site).is_some_and(|s| s.health.data_flows())
    }

    pub(super) fn daemon_works(&self, site: &str) -> bool {
        self.reaches(site) && self.sites.get(site).is_some_and(|s| s.daemon.state == DaemonState::Running)
    }

    pub(super) fn pair_image(&self, site: &str, key: &PairKey) -> Option<(&ImageState, &MirrorSide)> {
        let image = self.sites.get(site)?.pools.get(&key.0)?.of_pair(&key.1)?;
        image.mirror.as_ref().map(|m| (image, m))
    }

    /// What the daemon of `site` does next with this image, and how long it takes to get to it.
    fn plan(&self, site: &str, key: &PairKey) -> Option<(Step, Duration)> {
        let t = &self.config.timing;
        if !self.daemon_works(site) {
            return None;
        }
        let here = self.pair_image(site, key);
        if here.is_some_and(|(i, _)| i.trash.as_ref().is_some_and(|t| t.by_mirroring)) {
            let (image, _) = here?;
            let needed = image.snaps.keys().any(|s| !self.children(site, &key.0, &image.id, *s).is_empty());
            return (!needed).then_some((Step::Purge, t.remove * 3));
        }
        let peer = self.peer_of(site, key)?;
        if !self.reaches(&peer) {
            return None;
        }
        let there = self.pair_image(&peer, key).filter(|(i, _)| i.trash.is_none());
        let replaying = self.sites.get(site)?.replayers.get(key).is_some_and(|r| r.phase == Phase::Replaying);
        let (image, mirror) = match (here, there) {
            (None, Some((_, theirs))) => {
                let content = self.content(&peer, key)?;
                let primary = theirs.owner == Owner::Local;
                return (primary && self.local_parent(site, &content).is_ok())
                    .then_some((Step::Create, t.appear));
            }
            (None, None) => return None,
            (Some((_, mine)), None) => {
                return (mine.owner == Owner::Remote).then_some((Step::Remove, t.remove));
            }
            (Some(here), Some(_)) => here,
        };
        let (_, theirs) = there?;
        let journal = mirror.mode == MirrorMode::Journal;
        let register = |t: &Timing| (journal && !theirs.registered).then_some((Step::Register, t.register));
        if mirror.owner == Owner::Local {
            let held = image.lock.as_deref() == Some(self.sites.get(site)?.daemon.address.as_str());
            let release = held.then_some((Step::ReleaseLock, Duration::from_secs(1)));
            return release.or_else(|| register(t));
        }
        if mirror.resync {
            return (theirs.owner == Owner::Local).then_some((Step::Resync, t.resync));
        }
        match theirs.owner {
            Owner::Local if !replaying => {
                let split =
                    self.sites.get(site)?.replayers.get(key).is_some_and(|r| r.phase == Phase::SplitBrain);
                let delay = match (mirror.complete, journal) {
                    (false, true) => t.start_journal,
                    (false, false) => t.start_snapshot,
                    (true, true) => t.turn_journal,
                    (true, false) => t.turn_snapshot,
                };
                (!split).then_some((Step::Start, delay))
            }
            Owner::Local => {
                let (version, lineage, of) = self.offered(&peer, key)?;
                // A mirror snapshot is carried over even if nothing has changed since the one before.
                let covered = journal || mirror.covered.is_some_and(|c| c.of == of);
                if version == mirror.synced && lineage == mirror.lineage && covered {
                    return None;
                }
                let content = self.content(&peer, key)?;
                let known = |uid: u64| image.snaps.values().any(|s| s.uid == uid);
                let delay = if journal { t.replay } else { t.sync };
                // A journal is replayed in order: a snapshot comes behind the writes that it shows.
                if journal || content.snaps.iter().all(|s| known(s.uid)) {
                    Some((Step::Sync { version: content.version }, delay))
                } else {
                    Some((Step::SyncSnaps, delay))
                }
            }
            Owner::Nobody if mirror.owner == Owner::Remote => {
                Some((Step::Demotion, if journal { t.demotion_journal } else { t.demotion_snapshot }))
            }
            Owner::Nobody | Owner::Remote => register(t),
        }
    }

    /// What the primary's side offers to replication at this moment.
    fn content(&self, site: &str, key: &PairKey) -> Option<Content> {
        let (image, mirror) = self.pair_image(site, key)?;
        match mirror.mode {
            MirrorMode::Snapshot => mirror.published.as_deref().cloned(),
            MirrorMode::Journal => Some(self.contents_of(site, image, mirror)),
        }
    }

    /// Version and lineage of that, and its mirror snapshot if there is one, without copying it.
    fn offered(&self, site: &str, key: &PairKey) -> Option<(u64, &[u64], u64)> {
        let (image, mirror) = self.pair_image(site, key)?;
        match (mirror.mode, &mirror.published) {
            (MirrorMode::Snapshot, published) => {
                published.as_ref().map(|c| (c.version, c.lineage.as_slice(), c.mirror_snap))
            }
            (MirrorMode::Journal, _) => Some((image.version, &mirror.lineage, 0)),
        }
    }

    /// Everything of an image that replication carries. A parent is named by its global id and the
    /// snapshot's uid; one that is not mirrored has no global id, and the replica will not find it.
    pub(super) fn contents_of(&self, site: &str, image: &ImageState, mirror: &MirrorSide) -> Content {
        let parent = image.parent.as_ref().map(|p| {
            let found = self.sites.get(site).and_then(|s| s.pools.get(&p.pool)?.images.get(&p.image_id));
            let global_id = found.and_then(|i| i.mirror.as_ref()).map(|m| m.global_id.clone());
            let uid = found.and_then(|i| i.snaps.get(&p.snap)).map_or(0, |s| s.uid);
            ParentRef { image_id: global_id.unwrap_or_default(), snap: uid, ..p.clone() }
        });
        Content {
            version: image.version,
            name: image.name.clone(),
            size: image.size,
            order: image.order,
            features: image.features & !NON_PRIMARY,
            data: mirror.unflattened.as_ref().unwrap_or(&image.data).clone(),
            whole: image.data.clone(),
            snaps: image.visible_snaps().map(|(_, s)| s.clone()).collect(),
            metadata: image.metadata.clone(),
            lineage: mirror.lineage.clone(),
            parent,
            mirror_snap: 0,
        }
    }

    /// The local image and snapshot that stand for the parent of the peer's image.
    pub(super) fn local_parent(
        &self,
        site: &str,
        content: &Content,
    ) -> Result<Option<ParentRef>, &'static str> {
        let Some(parent) = &content.parent else { return Ok(None) };
        // `image_id` and `snap` of an offered parent are its global id and the snapshot's uid.
        let pool = self.sites.get(site).and_then(|s| s.pools.get(&parent.pool));
        let image = pool.and_then(|p| p.of_pair(&parent.image_id)).ok_or("no local parent image")?;
        let snap =
            image.snaps.iter().find(|(_, s)| s.uid == parent.snap).ok_or("no local parent snapshot")?;
        Ok(Some(ParentRef { image_id: image.id.clone(), snap: *snap.0, ..parent.clone() }))
    }

    /// Whether the replica cannot be made because its parent is not there (yet).
    fn lacks_parent(&self, site: &str, key: &PairKey) -> bool {
        if self.pair_image(site, key).is_some() {
            return false;
        }
        let content = self.peer_of(site, key).and_then(|peer| self.content(&peer, key));
        content.is_some_and(|c| self.local_parent(site, &c).is_err())
    }

    fn take_step(&mut self, site: &str, key: &PairKey, step: Step) {
        let peer = self.peer_of(site, key);
        let content = peer.as_ref().and_then(|p| self.content(p, key));
        match step {
            Step::Create => {
                if let Some(content) = content {
                    self.create_replica(site, key, peer.as_deref().unwrap_or_default(), content);
                    self.register(peer.as_deref(), key);
                }
            }
            Step::Start => {
                let Some(mut content) = content else { return };
                let Some((_, mine)) = self.pair_image(site, key) else { return };
                let theirs = peer.as_ref().and_then(|p| self.pair_image(p, key)).map(|(_, m)| m);
                let linked = !mine.complete || !theirs.is_some_and(|m| m.unlinked);
                if linked && content.lineage.starts_with(&mine.lineage) {
                    if !mine.complete {
                        content.data = content.whole.clone();
                        self.forget_flattening(peer.as_deref().unwrap_or_default(), key);
                    }
                    self.fill(site, key, content);
                    self.register(peer.as_deref(), key);
                    self.set_phase(site, key, Phase::Replaying);
                } else {
                    self.sins.push(format!(
                        "{:?} split-brain of {}/{} seen by {site}",
                        self.now, key.0, content.name
                    ));
                    self.set_phase(site, key, Phase::SplitBrain);
                }
            }
            Step::SyncSnaps => {
                let Some(content) = content else { return };
                let of = content.mirror_snap;
                let mut fresh = vec![];
                if let Some((image, _)) = self.pair_image(site, key) {
                    let known = |uid: u64| image.snaps.values().any(|s| s.uid == uid);
                    fresh = content.snaps.into_iter().filter(|s| !known(s.uid)).collect();
                }
                self.add_snaps(
                    site,
                    key,
                    fresh.into_iter().map(|s| SnapState { data: Data::default(), ..s }).collect(),
                );
                self.names_arrive(site, key, of);
            }
            Step::Sync { .. } => {
                if let Some(content) = content {
                    self.fill(site, key, content);
                }
            }
            Step::Demotion => {
                if let Some(content) = content {
                    self.fill(site, key, content);
                }
                if let Some(m) = self.mirror_side_mut(site, key) {
                    m.owner = Owner::Nobody;
                }
                self.set_phase(site, key, Phase::Idle);
            }
            Step::Resync | Step::Remove => self.delete_replica(site, key, step == Step::Remove),
            Step::Purge => self.purge_replica(site, key),
            Step::ReleaseLock => {
                self.set_phase(site, key, Phase::Idle);
            }
            Step::Register => self.register(peer.as_deref(), key),
        }
        let stale = self.config.stale_reports && step == Step::Create;
        if !stale {
            self.refresh_report(site, key);
        }
    }

    /// The daemon becomes a client of the journal of its peer's image.
    fn register(&mut self, peer: Option<&str>, key: &PairKey) {
        if let Some(m) = peer.and_then(|p| self.mirror_side_mut(p, key)) {
            m.registered = true;
        }
    }

    pub(super) fn replica_mut(&mut self, site: &str, key: &PairKey) -> Option<&mut ImageState> {
        self.sites.get_mut(site)?.pools.get_mut(&key.0)?.of_pair_mut(&key.1)
    }

    pub(super) fn mirror_side_mut(&mut self, site: &str, key: &PairKey) -> Option<&mut MirrorSide> {
        self.replica_mut(site, key)?.mirror.as_mut()
    }

    /// Sets the phase, and the lock that goes with it: a replaying daemon owns the journaled image's lock.
    pub(super) fn set_phase(&mut self, site: &str, key: &PairKey, phase: Phase) {
        let Some(s) = self.sites.get_mut(site) else { return };
        let address = s.daemon.address.clone();
        s.replayers.entry(key.clone()).or_default().phase = phase;
        if let Some(image) = s.pools.get_mut(&key.0).and_then(|p| p.of_pair_mut(&key.1)) {
            let journal = image.mirror.as_ref().is_some_and(|m| m.mode == MirrorMode::Journal);
            // What a client holds, a daemon can neither take nor give up.
            let foreign = image.lock.as_ref().is_some_and(|owner| *owner != address);
            if !foreign {
                image.lock = (phase == Phase::Replaying && journal).then_some(address);
            }
        }
    }
}
