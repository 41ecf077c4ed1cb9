//! The manager's view of the rbd-mirror daemons, and an orchestrator that starts and stops them.

use std::time::Duration;

use super::images::{Answer, refuse};
use super::mirror_daemon::DaemonState;
use super::state::World;
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::types::{MirrorService, MirrorServicePool, OrchestratorVerb};

/// Whether daemons run when an orchestrator has done this; `None`: as before.
pub(super) fn runs(act: OrchestratorVerb) -> Option<bool> {
    match act {
        OrchestratorVerb::Start => Some(true),
        OrchestratorVerb::Restart => None,
        OrchestratorVerb::Stop | OrchestratorVerb::Rm => Some(false),
    }
}

impl World {
    pub(super) fn mirror_services(&self, site: &str) -> Option<Vec<MirrorService>> {
        if !self.config.reads_services {
            return None;
        }
        let state = self.sites.get(site)?;
        if state.daemon.state == DaemonState::Stopped {
            return Some(vec![]);
        }
        let served = state.pools.iter().filter(|(_, pool)| pool.mirrored);
        let pool = |(name, pool): (&String, &super::state::PoolState)| MirrorServicePool {
            name: name.clone(),
            leader: true,
            images: pool.by_global_id.len() as u64,
            errors: 0,
            warnings: 0,
            callouts: vec![],
        };
        Some(vec![MirrorService {
            id: site.to_owned(),
            host: format!("node-{site}"),
            version: "16.2.15".to_owned(),
            instance: state.daemon.address.rsplit('/').next().unwrap_or_default().to_owned(),
            pools: served.map(pool).collect(),
        }])
    }

    pub(super) fn orchestrate(&mut self, site: &str, run: Option<bool>) -> Answer<()> {
        if !self.config.orchestrated {
            return refuse(Kind::NotFound, "No orchestrator configured (try `ceph orch set backend`)");
        }
        let stopped =
            |world: &World| world.sites.get(site).is_some_and(|s| s.daemon.state == DaemonState::Stopped);
        match run {
            Some(true) if stopped(self) => self.daemon_back_after(site, Duration::ZERO),
            Some(false) => {
                if let Some(state) = self.sites.get_mut(site) {
                    state.daemon.state = DaemonState::Stopped;
                    state.forget_daemon();
                }
            }
            Some(true) | None => {}
        }
        self.touch_all();
        Ok(())
    }
}
