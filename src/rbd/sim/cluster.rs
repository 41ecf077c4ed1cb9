//! What a simulated cluster says of itself and of its client.

use std::collections::BTreeMap;

use super::faults::Health;
use super::images::{Answer, refuse};
use super::state::{PoolState, SiteState, World};
use crate::rbd::error::RbdErrorKind;
use crate::rbd::protocol::ObjectList;
use crate::rbd::types::{Access, ClusterReport, PoolInfo, Rights};

/// The release that the simulator was measured on.
const VERSION: &str = "16.2.15";

impl World {
    /// Address of the monitor of a site.
    pub(super) fn monitor_of(&self, site: &str) -> String {
        let n = self.site_order.iter().position(|s| s == site).unwrap_or(0) + 1;
        format!("127.0.0.{n}")
    }

    pub(super) fn cluster_status(&self, state: &SiteState) -> ClusterReport {
        let well = state.health == Health::Alive;
        let check = ("SLOW_OPS".to_owned(), "slow operations".to_owned());
        let ip = self.monitor_of(&state.name);
        let pool = |(name, pool): (&String, &PoolState)| PoolInfo {
            name: name.clone(),
            erasure: pool.erasure,
            size: pool.size,
            min_size: pool.min_size,
            applications: vec!["rbd".to_owned()],
        };
        ClusterReport {
            fsid: state.fsid.clone(),
            version: VERSION.to_owned(),
            health: if well { "HEALTH_OK" } else { "HEALTH_WARN" }.to_owned(),
            checks: if well { vec![] } else { vec![check] },
            monitors: vec![format!("[v2:{ip}:3300,v1:{ip}:6789]")],
            pools: state.pools.iter().map(pool).collect(),
        }
    }

    pub(super) fn client_rights(&self) -> Rights {
        let all = || ["mgr", "mon", "osd"].map(|daemon| (daemon.to_owned(), "allow *".to_owned()));
        let reads_keys = self.config.reads_keys;
        Rights { caps: reads_keys.then(|| BTreeMap::from(all())), reads_keys }
    }

    pub(super) fn pool_access(&self, site: &str, pool: &str) -> Answer<Access> {
        self.pool(site, pool)?;
        let open = !self.config.closed_pools.iter().any(|closed| closed == pool);
        Ok(Access { read: open, write: open })
    }

    /// Parts are by a sum of the bytes of a name: each name is in one.
    pub(super) fn object_list(&self, site: &str, asked: &ObjectList) -> Answer<Vec<String>> {
        let ObjectList { pool, prefix, part, parts } = asked;
        let objects = &self.pool(site, pool)?.objects;
        if part >= parts {
            return refuse(RbdErrorKind::Invalid, format!("part {part} of {parts} parts of a pool"));
        }
        let in_part = |name: &&String| name.bytes().map(u32::from).sum::<u32>() % parts == *part;
        Ok(objects.keys().filter(|name| name.starts_with(prefix.as_str())).filter(in_part).cloned().collect())
    }

    /// Options of the client's ceph.conf.
    pub(super) fn option(&self, state: &SiteState, option: &str) -> Option<String> {
        match option {
            "rbd_default_features" => Some("61".to_owned()),
            "fsid" => Some(state.fsid.clone()),
            "keyring" => Some(format!("/sim/{}.keyring", state.name)),
            _ => None,
        }
    }
}
