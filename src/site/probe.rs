//! A look at a site by one client: what it is, how it is, and what it lets the client do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::caps::{Finding, Tried, judge};
use crate::db::site::Seen;
use crate::db::site_use::UseRow;
use crate::error::{Error, Result};
use crate::rbd::protocol::{ClientRights, ClusterStatus, MayFence, PoolAccess, ScheduleList};
use crate::rbd::{RbdErrorKind, Site};

/// A pool, and what the client may do with its objects; `None`: it did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Name.
    pub name: String,
    /// Erasure-coded.
    pub erasure: bool,
    /// Replicas, or chunks.
    pub size: u32,
    /// How many must be there for I/O.
    pub min_size: u32,
    /// What it is for.
    pub applications: Vec<String>,
    /// Read them.
    pub read: Option<bool>,
    /// Write them.
    pub write: Option<bool>,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The cluster.
    pub fsid: String,
    /// Oldest release.
    pub version: String,
    /// `HEALTH_OK` …
    pub health: String,
    /// What is not well, as (code, sentence).
    pub checks: Vec<(String, String)>,
    /// Monitors as `mon_host` names them.
    pub monitors: Vec<String>,
    /// All pools.
    pub pools: Vec<Pool>,
    /// The client that looked, without `client.`.
    pub client: String,
    /// Its capabilities by daemon, where it may read them.
    #[serde(default)]
    pub caps: Option<BTreeMap<String, String>>,
    /// What is wrong with its capabilities.
    pub findings: Vec<Finding>,
    /// The command that gives it just enough.
    pub advice: Option<String>,
}

impl Report {
    /// For the row.
    ///
    /// # Errors
    /// `Internal`; cannot fail for these types.
    pub(super) fn seen(&self) -> Result<Seen> {
        let report = serde_json::to_string(self)
            .map_err(|e| Error::internal("A report cannot be written as JSON").caused_by(e))?;
        Ok(Seen {
            fsid: self.fsid.clone(),
            monitors: self.monitors.join("\n"),
            version: self.version.clone(),
            health: self.health.clone(),
            report,
        })
    }
}

/// Looks at a site. `wanted`: pools that Scoria works in; none: those that are for RBD.
///
/// # Errors
/// What Ceph answers, when it is not even possible to look.
pub(super) async fn look(site: &Site, wanted: &[String]) -> Result<Report> {
    let user = site.connection().user.clone().unwrap_or_else(|| "admin".to_owned());
    let status = site.call(ClusterStatus {}).await?;
    let rights = site.call(ClientRights { user: user.clone() }).await?;
    let may_fence = site.call(MayFence {}).await?;
    // Those that matter first: a pool that does not answer costs half a minute, and the rest is not asked then.
    let mut listed = status.pools;
    listed.sort_by_key(|pool| !wanted.contains(&pool.name));
    let mut silent = false;
    let mut pools = Vec::with_capacity(listed.len());
    for pool in listed {
        let access = match silent {
            true => None,
            false => site.call(PoolAccess { pool: pool.name.clone() }).await.ok(),
        };
        silent |= access.is_none();
        pools.push(Pool {
            name: pool.name,
            erasure: pool.erasure,
            size: pool.size,
            min_size: pool.min_size,
            applications: pool.applications,
            read: access.map(|a| a.read),
            write: access.map(|a| a.write),
        });
    }
    let mine = wanted.iter().find(|name| pools.iter().any(|p| p.name == **name));
    let schedules = match mine {
        None => None,
        Some(pool) => match site.call(ScheduleList { pool: pool.clone() }).await {
            Ok(_) => Some(true),
            Err(e) if e.kind == RbdErrorKind::Permission => Some(false),
            // No manager, or its module is not ready.
            Err(_) => None,
        },
    };
    let tried =
        Tried { user: &user, may_fence, reads_keys: rights.reads_keys, schedules, pools: &pools, wanted };
    let (findings, advice) = judge(&tried);
    Ok(Report {
        fsid: status.fsid,
        version: status.version,
        health: status.health,
        checks: status.checks,
        monitors: status.monitors,
        pools,
        client: user,
        caps: rights.caps,
        findings,
        advice,
    })
}

/// Pools that Scoria works in by this client.
pub(super) fn wanted(uses: &[UseRow], user: &str, named: &[String]) -> Vec<String> {
    let used = uses.iter().filter(|u| u.client.as_deref().unwrap_or("admin") == user).map(|u| &u.pool);
    let mut pools: Vec<String> = used.chain(named).cloned().collect();
    pools.sort();
    pools.dedup();
    pools
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pools_of_this_client_are_wanted() {
        let uses = |client: Option<&str>, pool: &str| UseRow {
            backend: "h@b".into(),
            site: "default".into(),
            fsid: "f".into(),
            pool: pool.into(),
            client: client.map(str::to_owned),
        };
        let all = [uses(Some("cinder"), "volumes"), uses(None, "other"), uses(Some("cinder"), "volumes")];
        assert_eq!(wanted(&all, "cinder", &["vms".into()]), ["vms", "volumes"]);
        assert_eq!(wanted(&all, "admin", &[]), ["other"]);
    }
}
