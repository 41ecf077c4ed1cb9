//! What a pool and its images tell of their mirroring, all at once.

use super::Sim;
use super::images::Answer;
use super::mirror_daemon::DaemonState;
use super::state::World;
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::mirror_survey::{Looked, MirrorPeer, MirrorPool, MirrorSurveyed, PeerDirection};
use crate::rbd::types::{MirrorReport, MirrorState, PoolMirrorMode};

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
        let peer = |name: &String| {
            let peer = self.sites.get(name)?;
            Some(MirrorPeer {
                uuid: format!("link-{name}"),
                direction: PeerDirection::Both,
                site_name: name.clone(),
                mirror_uuid: peer.fsid.clone(),
                client_name: "client.rbd-mirror".to_owned(),
                last_seen: if self.daemon_works(name) { self.epoch() } else { 0 },
            })
        };
        let daemon = self.sites.get(site).filter(|s| s.daemon.state != DaemonState::Stopped);
        let daemons: Vec<String> = daemon.map(|s| s.daemon_address()).into_iter().collect();
        Ok(MirrorPool {
            mode: if state.mirrored { PoolMirrorMode::Image } else { PoolMirrorMode::Disabled },
            peers: state.peers.iter().filter_map(peer).collect(),
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
