//! The mirroring commands of one side: enable, disable, promote, demote, resync, mirror snapshots, status.

use rand::Rng;

use super::images::{Answer, refuse};
use super::mirror_daemon::{DaemonState, NON_PRIMARY, Phase, Report};
use super::state::{Content, Copied, EPOCH, MirrorSide, Owner, PairKey, World};
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::types::{
    JournalPeer, MirrorListed, MirrorMode, MirrorPage, MirrorReport, MirrorSiteStatus, MirrorSnap,
    MirrorState, Mirroring, features,
};

impl World {
    fn side(&self, site: &str, pool: &str, image: &str) -> Answer<Option<&MirrorSide>> {
        Ok(self.image(site, pool, image)?.mirror.as_ref())
    }

    fn chance(&mut self, percent: u32) -> bool {
        percent > 0 && self.rng.random_range(0..100) < percent
    }

    /// Snapshot mode: makes the present contents what replication offers.
    fn publish(&mut self, site: &str, key: &PairKey) {
        let content = self.pair_image(site, key).map(|(i, m)| self.contents_of(site, i, m));
        let mirror_snap = self.next();
        let content = content.map(|content| Content { mirror_snap, ..content });
        if let (Some(m), Some(content)) = (self.mirror_side_mut(site, key), content)
            && m.mode == MirrorMode::Snapshot
        {
            m.published = Some(Box::new(content));
        }
    }

    /// A change of ownership, which both sides remember.
    fn turn(&mut self, site: &str, key: &PairKey, owner: Owner) {
        let (number, version) = (self.next(), self.next());
        if let Some(image) = self.replica_mut(site, key) {
            image.version = version;
            let secondary = owner != Owner::Local
                && image.mirror.as_ref().is_some_and(|m| m.mode == MirrorMode::Snapshot);
            image.features =
                if secondary { image.features | NON_PRIMARY } else { image.features & !NON_PRIMARY };
            if let Some(m) = &mut image.mirror {
                m.owner = owner;
                m.lineage.push(number);
            }
        }
        self.publish(site, key);
        self.dirty.insert(key.clone());
    }

    pub(super) fn mirror_enable(
        &mut self,
        site: &str,
        pool: &str,
        image: &str,
        mode: MirrorMode,
    ) -> Answer<()> {
        let i = self.image(site, pool, image)?;
        if let Some(m) = &i.mirror {
            return if m.mode == mode {
                Ok(())
            } else {
                if mode == MirrorMode::Journal {
                    // Refused, but not without a trace.
                    self.image_mut(site, pool, image)?.features |=
                        features::EXCLUSIVE_LOCK | features::JOURNALING;
                }
                refuse(Kind::Invalid, format!("{pool}/{image} is mirrored in the other mode"))
            };
        }
        let of_pool = self.pool(site, pool)?;
        if !of_pool.mirrored || of_pool.whole {
            return refuse(Kind::Invalid, format!("mirroring of pool {pool} is not in image mode"));
        }
        if let Some(p) = &i.parent {
            let parent = self.pool(site, &p.pool)?.images.get(&p.image_id);
            if parent.is_some_and(|p| p.mirror.is_none()) {
                return refuse(
                    Kind::Invalid,
                    format!("mirroring is not enabled for the parent of {pool}/{image}"),
                );
            }
        }
        if mode == MirrorMode::Journal && i.features & features::JOURNALING == 0 {
            // Journaling is switched on, for which the lock must be had.
            self.check_writable(site, pool, image)?;
        }
        self.mirror_now(site, pool, image, mode)
    }

    /// Mirrors an image that nothing speaks against.
    pub(super) fn mirror_now(&mut self, site: &str, pool: &str, image: &str, mode: MirrorMode) -> Answer<()> {
        let (n, number) = (self.next(), self.next());
        let global_id = format!("6106a100-0000-4000-8000-{n:012x}");
        let i = self.image_mut(site, pool, image)?;
        if mode == MirrorMode::Journal {
            i.features |= features::EXCLUSIVE_LOCK | features::JOURNALING;
        }
        i.mirror = Some(MirrorSide {
            mode,
            global_id: global_id.clone(),
            owner: Owner::Local,
            lineage: vec![number],
            published: None,
            synced: 0,
            complete: true,
            resync: false,
            unflattened: None,
            registered: false,
            unlinked: false,
            covered: None,
            arriving: None,
        });
        let id = i.id.clone();
        self.pool_mut(site, pool)?.by_global_id.insert(global_id.clone(), id);
        let key = (pool.to_owned(), global_id);
        self.publish(site, &key);
        self.dirty.insert(key);
        Ok(())
    }

    pub(super) fn mirror_disable(&mut self, site: &str, pool: &str, image: &str, force: bool) -> Answer<()> {
        let Some(side) = self.side(site, pool, image)? else { return Ok(()) };
        if side.owner != Owner::Local && !force {
            return refuse(Kind::Invalid, format!("{pool}/{image} is not primary"));
        }
        let i = self.image(site, pool, image)?;
        let children = i.snaps.keys().flat_map(|s| self.children(site, pool, &i.id, *s));
        for child in children.collect::<Vec<_>>() {
            if self.image(site, &child.pool, &child.image).is_ok_and(|c| c.mirror.is_some()) {
                return refuse(Kind::Busy, format!("{pool}/{image} has the mirrored child {}", child.image));
            }
        }
        self.unmirror(site, pool, image)
    }

    /// Ends the mirroring of an image, if any.
    pub(super) fn unmirror(&mut self, site: &str, pool: &str, image: &str) -> Answer<()> {
        let i = self.image_mut(site, pool, image)?;
        i.features &= !NON_PRIMARY;
        let Some(side) = i.mirror.take() else { return Ok(()) };
        if side.mode == MirrorMode::Journal {
            i.features &= !features::JOURNALING;
        }
        i.lock = None;
        self.pool_mut(site, pool)?.by_global_id.remove(&side.global_id);
        let key = (pool.to_owned(), side.global_id);
        if let Some(s) = self.sites.get_mut(site)
            && let Some((_, at)) = s.replayers.remove(&key).and_then(|r| r.pending)
        {
            self.agenda.remove(&at);
        }
        self.dirty.insert(key);
        Ok(())
    }

    pub(super) fn mirror_info(&self, site: &str, pool: &str, image: &str) -> Answer<Mirroring> {
        Ok(match self.side(site, pool, image)? {
            Some(m) => Mirroring {
                state: MirrorState::Enabled,
                mode: m.mode,
                primary: m.owner == Owner::Local,
                global_id: m.global_id.clone(),
            },
            None => Mirroring {
                state: MirrorState::Disabled,
                mode: MirrorMode::Journal,
                primary: false,
                global_id: String::new(),
            },
        })
    }

    pub(super) fn mirror_promote(&mut self, site: &str, pool: &str, image: &str, force: bool) -> Answer<()> {
        let Some(side) = self.side(site, pool, image)? else {
            return refuse(Kind::NotFound, format!("{pool}/{image} is not mirrored"));
        };
        let (owner, mode) = (side.owner, side.mode);
        let key = (pool.to_owned(), side.global_id.clone());
        if owner == Owner::Local {
            return refuse(Kind::Invalid, format!("{pool}/{image} is primary already"));
        }
        let peer = self.peer_of(site, &key);
        let reached = peer.as_deref().is_some_and(|p| self.reaches(p));
        let replaying = self
            .sites
            .get(site)
            .and_then(|s| s.replayers.get(&key))
            .is_some_and(|r| r.phase == Phase::Replaying);
        let moody =
            mode == MirrorMode::Snapshot && reached && self.chance(self.config.promote_read_only_percent);
        if moody && (replaying || owner == Owner::Nobody) {
            return refuse(Kind::ReadOnly, format!("rbd-mirror is working on {pool}/{image}"));
        }
        if owner == Owner::Remote && !force {
            let raced = mode == MirrorMode::Journal && self.chance(self.config.promote_races_percent);
            if !raced {
                return refuse(Kind::Busy, format!("{pool}/{image} is still primary on the other side"));
            }
        }
        let others = self.sites.get(site).and_then(|s| s.pools.get(pool)).map(|p| p.peers.clone());
        for other in others.unwrap_or_default() {
            let primary = self.pair_image(&other, &key).is_some_and(|(_, m)| m.owner == Owner::Local);
            if primary && self.reaches(&other) {
                self.sins.push(format!(
                    "{:?} {pool}/{image} promoted on {site} while primary on {other}, which is alive",
                    self.now
                ));
            }
        }
        let trapped = replaying && !reached && mode == MirrorMode::Journal && self.config.daemon_keeps_lock;
        let let_go = self.config.timing.let_go;
        if mode == MirrorMode::Journal && !force && !let_go.is_zero() && self.daemon_works(site) {
            self.image_mut(site, pool, image)?.held_until = Some(self.now + let_go);
        }
        self.turn(site, &key, Owner::Local);
        if let Some(m) = self.mirror_side_mut(site, &key) {
            m.unlinked = !force && mode == MirrorMode::Journal && !m.registered;
        }
        if !trapped {
            self.set_phase(site, &key, Phase::Idle);
        }
        Ok(())
    }

    pub(super) fn mirror_demote(&mut self, site: &str, pool: &str, image: &str) -> Answer<()> {
        let global_id = match self.side(site, pool, image)? {
            Some(m) if m.owner == Owner::Local => m.global_id.clone(),
            _ => return refuse(Kind::Invalid, format!("{pool}/{image} is not a mirrored primary")),
        };
        let key = (pool.to_owned(), global_id);
        self.turn(site, &key, Owner::Nobody);
        self.set_phase(site, &key, Phase::Idle);
        Ok(())
    }

    pub(super) fn mirror_resync(&mut self, site: &str, pool: &str, image: &str) -> Answer<()> {
        let global_id = match self.side(site, pool, image)? {
            None => return refuse(Kind::NotFound, format!("{pool}/{image} is not mirrored")),
            Some(m) if m.owner == Owner::Local => {
                return refuse(Kind::Invalid, format!("{pool}/{image} is primary"));
            }
            Some(m) => m.global_id.clone(),
        };
        let key = (pool.to_owned(), global_id);
        if let Some(m) = self.mirror_side_mut(site, &key) {
            m.resync = true;
        }
        self.dirty.insert(key);
        Ok(())
    }

    pub(super) fn mirror_snapshot(&mut self, site: &str, pool: &str, image: &str) -> Answer<u64> {
        let global_id = match self.side(site, pool, image)? {
            Some(m) if m.owner == Owner::Local && m.mode == MirrorMode::Snapshot => m.global_id.clone(),
            _ => return refuse(Kind::Invalid, format!("{pool}/{image} is not a primary in snapshot mode")),
        };
        let key = (pool.to_owned(), global_id);
        self.publish(site, &key);
        let made = self.pair_image(site, &key).and_then(|(_, m)| m.published.as_ref()).map(|c| c.mirror_snap);
        self.dirty.insert(key);
        Ok(made.unwrap_or_default())
    }

    /// The newest of them only: Ceph keeps some more.
    pub(super) fn mirror_snaps(&self, site: &str, pool: &str, image: &str) -> Answer<Vec<MirrorSnap>> {
        let Some(m) = self.side(site, pool, image)?.filter(|m| m.mode == MirrorMode::Snapshot) else {
            return Ok(vec![]);
        };
        let own = m.published.as_ref().filter(|c| c.mirror_snap != 0 && m.owner == Owner::Local);
        let own = own.map(|c| MirrorSnap { id: c.mirror_snap, primary: true, complete: true, of: 0 });
        let copy = |copied: Copied, complete: bool| MirrorSnap {
            id: copied.id,
            primary: false,
            complete,
            of: copied.of,
        };
        let (covered, arriving) = (m.covered.map(|c| copy(c, true)), m.arriving.map(|c| copy(c, false)));
        let mut all: Vec<_> = covered.into_iter().chain(arriving).chain(own).collect();
        all.sort_by_key(|s| s.id);
        Ok(all)
    }

    pub(super) fn journal_peers(&self, site: &str, pool: &str, image: &str) -> Answer<Vec<JournalPeer>> {
        let Some(m) = self.side(site, pool, image)?.filter(|m| m.mode == MirrorMode::Journal) else {
            return Ok(vec![]);
        };
        let key = (pool.to_owned(), m.global_id.clone());
        let known = |peer: &String| {
            let (copy, theirs) = self.pair_image(peer, &key).filter(|(i, _)| i.trash.is_none())?;
            Some(JournalPeer {
                mirror_uuid: self.sites.get(peer)?.fsid.clone(),
                image_id: copy.id.clone(),
                synced: theirs.complete && theirs.owner != Owner::Local,
            })
        };
        Ok(self.pool(site, pool)?.peers.iter().filter_map(known).collect())
    }

    pub(super) fn mirror_status(&mut self, site: &str, pool: &str, image: &str) -> Answer<MirrorReport> {
        let info = self.mirror_info(site, pool, image)?;
        if info.state == MirrorState::Disabled {
            let local = Some(status(String::new(), None, false));
            return Ok(MirrorReport { info, local, peers: vec![], registered: vec![] });
        }
        let key = (pool.to_owned(), info.global_id.clone());
        let peers = self.pool(site, pool)?.peers.clone();
        for s in peers.iter().map(String::as_str).chain([site]) {
            self.freshen_report(s, &key);
        }
        let report = |name: &str| self.sites.get(name).and_then(|s| s.replayers.get(&key)?.report.clone());
        let local = status(String::new(), report(site).as_ref(), self.daemon_works(site));
        let from_peer = |peer: &String| {
            let fsid = self.sites.get(peer)?.fsid.clone();
            let report = report(peer)?;
            Some(status(fsid, Some(&report), self.daemon_works(peer)))
        };
        let known = self.pair_image(site, &key).is_some_and(|(_, m)| m.registered);
        let uuid = |peer: &String| self.sites.get(peer).map(|s| s.fsid.clone());
        let registered = peers.iter().filter(|_| known).filter_map(uuid).collect();
        let peers = peers.iter().filter_map(from_peer).collect();
        Ok(MirrorReport { info, local: Some(local), peers, registered })
    }

    pub(super) fn mirror_status_page(
        &mut self,
        site: &str,
        pool: &str,
        after: &str,
        limit: usize,
    ) -> Answer<MirrorPage> {
        let mut found: Vec<(String, String)> = (self.pool(site, pool)?.images.values())
            .filter(|i| i.mirror.is_some() && i.trash.is_none() && i.id.as_str() > after)
            .map(|i| (i.id.clone(), i.name.clone()))
            .collect();
        found.sort();
        found.truncate(limit);
        let mirror_uuid = self.sites.get(site).map(|s| s.fsid.clone()).unwrap_or_default();
        let mut images = Vec::with_capacity(found.len());
        for (id, name) in found {
            let MirrorReport { info, local, peers, .. } = self.mirror_status(site, pool, &name)?;
            let said = |status: &MirrorSiteStatus| status.last_update != 0;
            let (local, peers) = (local.filter(said), peers.into_iter().filter(said).collect());
            images.push(MirrorListed { id, name, global_id: info.global_id, local, peers });
        }
        Ok(MirrorPage { mirror_uuid, images })
    }

    /// Rewrites a report that is older than the daemon lets it become.
    fn freshen_report(&mut self, site: &str, key: &PairKey) {
        let age =
            self.sites.get(site).and_then(|s| s.replayers.get(key)?.report.as_ref()).map(|r| self.now - r.at);
        if age.is_none_or(|age| age >= self.config.timing.status_stale)
            && self.pair_image(site, key).is_some()
        {
            self.refresh_report(site, key);
        }
    }

    /// What the daemon writes at a step of its own.
    pub(super) fn refresh_report(&mut self, site: &str, key: &PairKey) {
        if !self.daemon_works(site) {
            return;
        }
        let (state, description) = self.describe(site, key);
        let report = Report { at: self.now, state, description };
        if self.pair_image(site, key).is_some()
            && let Some(s) = self.sites.get_mut(site)
        {
            s.replayers.entry(key.clone()).or_default().report = Some(report);
        }
    }

    fn describe(&self, site: &str, key: &PairKey) -> (&'static str, String) {
        let Some((_, m)) = self.pair_image(site, key) else { return ("unknown", "status not found".into()) };
        let phase = self.sites.get(site).and_then(|s| s.replayers.get(key)).map_or(Phase::Idle, |r| r.phase);
        let reached = self.peer_of(site, key).is_some_and(|p| self.reaches(&p));
        let journal = m.mode == MirrorMode::Journal;
        match (m.owner, phase) {
            (_, Phase::Replaying) if !reached => ("stopping_replay", "stopping replay".into()),
            (Owner::Local, _) => ("stopped", "local image is primary".into()),
            (_, Phase::SplitBrain) if journal => ("error", "split-brain detected".into()),
            (_, Phase::SplitBrain) => ("error", "split-brain".into()),
            (_, Phase::Replaying) if journal => {
                let behind =
                    self.peer_of(site, key).and_then(|p| self.pair_image(&p, key).map(|(i, _)| i.version));
                let behind = i32::from(behind.is_some_and(|v| v != m.synced));
                let figures = format!(
                    "replaying, {{\"bytes_per_second\":0.0,\"entries_behind_primary\":{behind},\"entries_per_second\":0.0}}"
                );
                ("replaying", figures)
            }
            (_, Phase::Replaying) => {
                ("replaying", "replaying, {\"bytes_per_second\":0.0,\"replay_state\":\"idle\"}".into())
            }
            (Owner::Nobody, _) if journal => ("unknown", "remote image is not primary".into()),
            (Owner::Nobody, _) => ("unknown", "remote image demoted".into()),
            (Owner::Remote, _) if m.complete => ("starting_replay", "starting replay".into()),
            (Owner::Remote, _) => ("syncing", "bootstrapping, IMAGE_SYNC/COPY_IMAGE 0%".into()),
        }
    }

    /// Fences a client; when it is a daemon, that daemon is out until its peer answers.
    pub(super) fn blocklist(&mut self, site: &str, address: &str, seconds: u32) {
        let end = self.epoch() + i64::from(seconds);
        let Some(s) = self.sites.get_mut(site) else { return };
        s.blocklist.insert(address.to_owned(), end);
        for pool in s.pools.values_mut() {
            for image in pool.images.values_mut() {
                image.watchers.retain(|w| w.address != address);
            }
        }
        if s.daemon.address == address {
            s.daemon.state = DaemonState::Fenced;
            s.forget_daemon();
            self.wake_fenced();
            self.touch_all();
        }
    }

    /// Lets the fenced daemons recover whose peers answer.
    pub(super) fn wake_fenced(&mut self) {
        for site in self.site_order.clone() {
            let fenced = self.sites.get(&site).is_some_and(|s| s.daemon.state == DaemonState::Fenced);
            let peers_answer = self.site_order.iter().all(|s| self.reaches(s));
            if fenced && peers_answer {
                let after = self.config.timing.daemon_recover;
                self.daemon_back_after(&site, after);
            }
        }
    }
}

fn status(mirror_uuid: String, report: Option<&Report>, up: bool) -> MirrorSiteStatus {
    match report {
        Some(r) => MirrorSiteStatus {
            mirror_uuid,
            state: r.state.to_owned(),
            up,
            description: r.description.clone(),
            last_update: EPOCH + r.at.as_secs() as i64,
        },
        None => MirrorSiteStatus {
            mirror_uuid,
            state: "unknown".to_owned(),
            up: false,
            description: "status not found".to_owned(),
            last_update: 0,
        },
    }
}
