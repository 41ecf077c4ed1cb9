//! What a pool and its images tell of their mirroring, all at once.

use super::Sim;
use super::images::Answer;
use super::state::World;
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::mirror_survey::{Looked, MirrorPeer, MirrorPool, MirrorSurveyed, PeerDirection};
use crate::rbd::types::{MirrorReport, MirrorState};

impl Sim {
    /// Adds, or removes, a schedule of mirror snapshots for a pool, or for one of its images.
    pub fn set_schedule(&self, site: &str, pool: &str, image: Option<&str>, on: bool) {
        let mut world = self.lock();
        let id = match image.map(|name| world.image(site, pool, name).map(|i| i.id.clone())) {
            None => String::new(),
            Some(Ok(id)) => id,
            Some(Err(_)) => return,
        };
        let Ok(pool) = world.pool_mut(site, pool) else { return };
        if on {
            pool.scheduled.insert(id);
        } else {
            pool.scheduled.remove(&id);
        }
    }
}

impl World {
    pub(super) fn mirror_pool(&self, site: &str, pool: &str) -> Answer<MirrorPool> {
        let state = self.pool(site, pool)?;
        let mut peers = Vec::new();
        for (name, other) in self.sites.iter().filter(|(name, _)| name.as_str() != site) {
            let receives = state.peers.contains(name);
            // One that takes copies from here makes itself known.
            let sends = other.pools.get(pool).is_some_and(|p| p.peers.iter().any(|peer| peer == site));
            let direction = match (receives, sends) {
                (false, false) => continue,
                (true, false) => PeerDirection::Receives,
                (false, true) if !self.daemon_works(name) => continue,
                (false, true) => PeerDirection::Sends,
                (true, true) => PeerDirection::Both,
            };
            peers.push(MirrorPeer {
                uuid: format!("link-{name}"),
                direction,
                site_name: self.name_of(name),
                mirror_uuid: other.fsid.clone(),
                client_name: if receives { "client.rbd-mirror" } else { "" }.to_owned(),
                last_seen: if self.daemon_works(name) { self.epoch() } else { 0 },
            });
        }
        let daemons = self.serving(site, pool)?;
        Ok(MirrorPool {
            mode: self.pool_mode(site, pool)?,
            peers,
            leader: daemons.first().cloned(),
            daemons,
            scheduled: state.scheduled.contains(""),
            scheduled_images: state.scheduled.iter().filter(|id| !id.is_empty()).cloned().collect(),
        })
    }

    pub(super) fn mirror_survey(&mut self, site: &str, pool: &str, images: &[String]) -> Answer<Vec<Looked>> {
        self.pool(site, pool)?;
        let one = |world: &mut World, image: &String| match world.mirror_look(site, pool, image) {
            Ok(seen) => Looked::Seen(Box::new(seen)),
            Err(refusal) if refusal.kind == Kind::NotFound => Looked::Absent,
            Err(refusal) => Looked::Unreadable { reason: refusal.message },
        };
        Ok(images.iter().map(|image| one(self, image)).collect())
    }

    fn mirror_look(&mut self, site: &str, pool: &str, image: &str) -> Answer<MirrorSurveyed> {
        let info = self.stat(site, pool, image)?;
        let mirroring = self.mirror_info(site, pool, image)?;
        let report = match mirroring.state {
            MirrorState::Enabled => self.mirror_status(site, pool, image)?,
            MirrorState::Disabled | MirrorState::Disabling => MirrorReport::without_reports(mirroring),
        };
        Ok(MirrorSurveyed {
            id: info.id,
            features: info.features,
            parent: info.parent,
            snaps: self.snap_list(site, pool, image)?,
            watchers: self.watchers(site, pool, image)?,
            report,
        })
    }
}
