//! Simulated clusters become peers, and strangers again.
//!
//! A pool's `peers` are the sites that it receives from; that others receive from it follows from theirs.

use super::Sim;
use super::images::{Answer, refuse};
use super::mirror_daemon::DaemonState;
use super::state::{PoolState, World};
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::link::{ErasureProfile, OsdPlace, PoolShape, Redundancy, Way};
use crate::rbd::protocol::{Connection, PeerAdd, Request};
use crate::rbd::types::PoolMirrorMode;

/// Copies that a pool has when nobody says how many.
const SIZE: u32 = 3;

/// OSDs on hosts of these names, each in the rack that follows a slash (`h1`, `h2/r1`).
pub fn osds_on(hosts: &[&str]) -> Vec<OsdPlace> {
    let place = |(id, text): (usize, &&str)| {
        let (host, rack) = text.split_once('/').map_or((*text, None), |(host, rack)| (host, Some(rack)));
        let buckets = [("root", Some("default")), ("host", Some(host)), ("rack", rack)];
        let within = buckets.into_iter().filter_map(|(kind, name)| Some((kind.to_owned(), name?.to_owned())));
        OsdPlace { id: id as i64, class: "ssd".to_owned(), serves: true, within: within.collect() }
    };
    hosts.iter().enumerate().map(place).collect()
}

impl Sim {
    /// A pool that is there: whether it is erasure-coded, its `min_size`, and where images put their data.
    pub fn pool(&self, site: &str, pool: &str) -> Option<(bool, u32, Option<String>)> {
        let world = self.lock();
        world.pool(site, pool).ok().map(|p| (p.erasure, p.min_size, p.data_pool.clone()))
    }

    /// The pools that the users of links may read, by user; none: all of them.
    pub fn link_users(&self, site: &str) -> Vec<(String, Vec<String>)> {
        let world = self.lock();
        let clients = world.sites.get(site).map(|state| state.clients.clone());
        clients.unwrap_or_default().into_iter().collect()
    }

    /// Whether anything on this site knows of another one: peers, or users that peers have.
    pub fn is_stranger(&self, site: &str) -> bool {
        let world = self.lock();
        let Some(state) = world.sites.get(site) else { return true };
        state.clients.is_empty() && state.pools.values().all(|p| p.peers.is_empty())
    }
}

/// Whether it takes an administrator's key.
pub(super) fn for_administrators(request: &Request) -> bool {
    matches!(
        request,
        Request::ErasureProfileSet(_)
            | Request::PoolEnsure(_)
            | Request::PoolInit(_)
            | Request::SiteNameSet(_)
            | Request::PeerBootstrap(_)
            | Request::PeerAdd(_)
            | Request::PeerRemove(_)
            | Request::ClientExists(_)
            | Request::ClientRemove(_)
            | Request::ClientPools(_)
    )
}

impl World {
    pub(super) fn pool_mode(&self, site: &str, pool: &str) -> Answer<PoolMirrorMode> {
        let state = self.pool(site, pool)?;
        Ok(match (state.mirrored, state.whole) {
            (false, _) => PoolMirrorMode::Disabled,
            (true, false) => PoolMirrorMode::Image,
            (true, true) => PoolMirrorMode::Pool,
        })
    }

    /// Addresses of the daemons that serve a pool: one without peers is served by none.
    pub(super) fn serving(&self, site: &str, pool: &str) -> Answer<Vec<String>> {
        let state = self.pool(site, pool)?;
        let receives = !state.peers.is_empty() || (self.config.daemon_lingers && state.mirrored);
        let daemon = self.sites.get(site).filter(|s| receives && s.daemon.state != DaemonState::Stopped);
        Ok(daemon.map(|s| s.daemon_address()).into_iter().collect())
    }

    pub(super) fn profile_set(&mut self, site: &str, profile: ErasureProfile) -> Answer<()> {
        let Some(state) = self.sites.get_mut(site) else { return refuse(Kind::Unreachable, "no such site") };
        match state.profiles.get(&profile.name) {
            Some(there) if *there != profile => {
                refuse(Kind::Permission, format!("will not override erasure code profile {}", profile.name))
            }
            _ => {
                state.profiles.insert(profile.name.clone(), profile);
                Ok(())
            }
        }
    }

    pub(super) fn pool_ensure(&mut self, site: &str, pool: &str, shape: &PoolShape) -> Answer<()> {
        let Some(state) = self.sites.get_mut(site) else { return refuse(Kind::Unreachable, "no such site") };
        let (erasure, size, least) = match &shape.redundancy {
            Redundancy::Replicated(size) => (false, size.unwrap_or(SIZE), size.unwrap_or(SIZE).div_ceil(2)),
            Redundancy::Erasure(name) => match state.profiles.get(name) {
                None => return refuse(Kind::NotFound, format!("no erasure code profile {name}")),
                Some(p) => (true, p.k + p.m, p.k + u32::from(p.m > 1)),
            },
        };
        let made = PoolState { erasure, size, min_size: least, ..PoolState::default() };
        let there = state.pools.entry(pool.to_owned()).or_insert(made);
        if there.erasure != erasure {
            return refuse(Kind::Invalid, format!("pool {pool} cannot change to another type"));
        }
        there.min_size = shape.min_size.unwrap_or(there.min_size);
        Ok(())
    }

    pub(super) fn pool_init(&mut self, site: &str, pool: &str, data_pool: Option<String>) -> Answer<()> {
        let state = self.pool_mut(site, pool)?;
        if let Some(data_pool) = data_pool {
            state.data_pool = Some(data_pool);
        }
        Ok(())
    }

    pub(super) fn mode_set(&mut self, site: &str, pool: &str, mode: PoolMirrorMode) -> Answer<()> {
        let state = self.pool_mut(site, pool)?;
        let off = mode == PoolMirrorMode::Disabled;
        if off && (!state.peers.is_empty() || state.images.values().any(|i| i.mirror.is_some())) {
            return refuse(Kind::Busy, format!("pool {pool} has peers or mirrored images"));
        }
        (state.mirrored, state.whole) = (!off, mode == PoolMirrorMode::Pool);
        Ok(())
    }

    pub(super) fn name_set(&mut self, site: &str, name: String) {
        if let Some(state) = self.sites.get_mut(site) {
            state.site_name = Some(name);
        }
    }

    /// What a site calls itself towards its peers.
    pub(super) fn name_of(&self, site: &str) -> String {
        self.sites.get(site).and_then(|s| s.site_name.clone()).unwrap_or_else(|| site.to_owned())
    }

    /// The site behind a connection, if a worker of another one reaches it.
    fn reached(&self, connection: &Connection) -> Answer<String> {
        match self.resolve(connection).filter(|name| self.reaches(name)) {
            Some(name) => Ok(name),
            None => refuse(Kind::Unreachable, format!("no way to {}", connection.site)),
        }
    }

    /// `from` becomes a peer that `site` receives from.
    fn receive(&mut self, site: &str, pool: &str, from: &str) -> Answer<()> {
        let peers = &mut self.pool_mut(site, pool)?.peers;
        match peers.first() {
            Some(other) if other != from => {
                let other = other.clone();
                refuse(Kind::Exists, format!("pool {pool} receives from {other} already"))
            }
            Some(_) => Ok(()),
            None => {
                peers.push(from.to_owned());
                Ok(())
            }
        }
    }

    pub(super) fn peer_bootstrap(
        &mut self,
        site: &str,
        pool: &str,
        source: &Connection,
        way: Way,
    ) -> Answer<()> {
        let from = self.reached(source)?;
        self.pool(&from, pool)?;
        for (here, there) in [(site, from.as_str()), (from.as_str(), site)] {
            if !self.pool(here, pool)?.mirrored {
                return refuse(
                    Kind::NotSupported,
                    format!("mirroring of pool {pool} is not enabled on {here}"),
                );
            }
            if here == site || way == Way::RxTx {
                self.receive(here, pool, there)?;
                if let Some(state) = self.sites.get_mut(there) {
                    // It may read all pools for RBD.
                    state.clients.insert(crate::rbd::link::BOOTSTRAP_USER.to_owned(), vec![]);
                }
            }
        }
        self.touch_all();
        Ok(())
    }

    pub(super) fn peer_add(&mut self, site: &str, r: &PeerAdd) -> Answer<()> {
        let from = self.reached(&r.source)?;
        for pool in &r.pools {
            self.pool(&from, pool)?;
        }
        self.receive(site, &r.pool, &from)?;
        if let Some(state) = self.sites.get_mut(&from) {
            state.clients.insert(r.user.clone(), r.pools.clone());
        }
        self.touch_all();
        Ok(())
    }

    pub(super) fn peer_remove(&mut self, site: &str, pool: &str, uuid: &str) -> Answer<()> {
        let name = uuid.strip_prefix("link-").unwrap_or_default().to_owned();
        self.pool_mut(site, pool)?.peers.retain(|peer| *peer != name);
        // What it was about to do with the copies, it does no more.
        if let Some(state) = self.sites.get_mut(site) {
            for (key, replayer) in &mut state.replayers {
                if key.0 == pool {
                    replayer.phase = super::mirror_daemon::Phase::Idle;
                }
            }
        }
        self.touch_all();
        Ok(())
    }

    pub(super) fn client_pools(&mut self, site: &str, user: &str, pools: Vec<String>) -> Answer<()> {
        match self.sites.get_mut(site).and_then(|state| state.clients.get_mut(user)) {
            Some(allowed) => {
                *allowed = pools;
                Ok(())
            }
            None => refuse(Kind::NotFound, format!("no client.{user}")),
        }
    }

    pub(super) fn client_remove(&mut self, site: &str, user: &str) {
        if let Some(state) = self.sites.get_mut(site) {
            state.clients.remove(user);
        }
    }
}
