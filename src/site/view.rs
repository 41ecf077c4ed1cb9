//! What is known of sites, for people and programs: read from the tables, so it answers when no cluster does.

use serde::Serialize;

use super::probe::Report;
use crate::db::Conn;
use crate::db::site::{self, HostRow, SiteRow};
use crate::db::site_use::{self, UseRow};
use crate::error::Result;

/// A host, and by which files it reaches a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// `[DEFAULT] host` of its service.
    pub host: String,
    /// ceph.conf; `None`: it has no files of the site that anybody knows of.
    pub conf: Option<String>,
    /// Keyring.
    pub keyring: Option<String>,
    /// cephx user without `client.`.
    pub client: Option<String>,
    /// Scoria wrote them.
    pub kept: bool,
    /// What is wrong with them.
    pub problem: Option<String>,
}

/// A backend that works with a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// `host@backend`.
    pub backend: String,
    /// What it calls the site.
    #[serde(rename = "as")]
    pub site: String,
    /// Its pool.
    pub pool: String,
    /// Its client.
    pub client: Option<String>,
}

/// A site.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    /// Its name.
    pub name: String,
    /// The cluster.
    pub fsid: String,
    /// `registered` or `found`.
    pub origin: String,
    /// Monitors as `mon_host` names them.
    pub monitors: Vec<String>,
    /// Oldest release.
    pub version: String,
    /// `HEALTH_OK` …
    pub health: String,
    /// When it last answered, UTC.
    pub seen_at: String,
    /// When it became known, UTC.
    pub created_at: String,
    /// Pools, checks and the client's capabilities as last seen.
    pub report: Option<Report>,
    /// Hosts with a volume service, and those that have its files.
    pub hosts: Vec<Host>,
    /// Backends that work with it.
    pub backends: Vec<User>,
}

impl View {
    /// Hosts that cannot reach it.
    pub fn lacking(&self) -> Vec<&str> {
        let lacks = |h: &&Host| h.conf.is_none() || h.problem.is_some();
        self.hosts.iter().filter(lacks).map(|h| h.host.as_str()).collect()
    }
}

/// All sites by name.
///
/// # Errors
/// `Database`.
pub async fn all(conn: &mut Conn) -> Result<Vec<View>> {
    let (sites, uses) = (site::list(conn).await?, site_use::of(conn, None).await?);
    let services = site::service_hosts(conn).await?;
    let mut views = Vec::with_capacity(sites.len());
    for row in sites {
        let files = site::hosts(conn, &row.fsid).await?;
        views.push(view(row, files, &services, &uses));
    }
    Ok(views)
}

/// The site of a name.
///
/// # Errors
/// `InvalidInput` when there is none; `Database`.
pub async fn one(conn: &mut Conn, name: &str) -> Result<View> {
    let row = site::find(conn, name).await?;
    let (files, uses) = (site::hosts(conn, &row.fsid).await?, site_use::of(conn, Some(&row.fsid)).await?);
    let services = site::service_hosts(conn).await?;
    Ok(view(row, files, &services, &uses))
}

fn view(row: SiteRow, files: Vec<HostRow>, services: &[String], uses: &[UseRow]) -> View {
    let time = |at: chrono::NaiveDateTime| at.format("%Y-%m-%d %H:%M:%S").to_string();
    let mut hosts: Vec<Host> = files
        .into_iter()
        .map(|f| Host {
            host: f.host,
            conf: Some(f.conf),
            keyring: f.keyring,
            client: f.client,
            kept: f.own,
            problem: f.problem,
        })
        .collect();
    for host in services {
        if !hosts.iter().any(|h| h.host == *host) {
            let (host, kept) = (host.clone(), false);
            hosts.push(Host { host, conf: None, keyring: None, client: None, kept, problem: None });
        }
    }
    hosts.sort_by(|a, b| a.host.cmp(&b.host));
    let backends = uses
        .iter()
        .filter(|u| u.fsid == row.fsid)
        .map(|u| User {
            backend: u.backend.clone(),
            site: u.site.clone(),
            pool: u.pool.clone(),
            client: u.client.clone(),
        })
        .collect();
    View {
        monitors: row.monitors.lines().map(str::to_owned).collect(),
        seen_at: time(row.seen_at),
        created_at: time(row.created_at),
        // One that an older program wrote is replaced by the next look.
        report: serde_json::from_str(&row.report).ok(),
        name: row.name,
        fsid: row.fsid,
        origin: row.origin,
        version: row.version,
        health: row.health,
        hosts,
        backends,
    }
}
