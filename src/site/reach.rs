//! How this host reaches a site that is known: by the files that its row names.

use std::path::PathBuf;

use super::Sites;
use super::operations::CONNECT;
use super::orders::Files;
use crate::db::site::{self, HostRow, SiteRow};
use crate::error::{Code, Error, Result};
use crate::rbd::Site;
use crate::rbd::protocol::Connection;

/// A known site, and this host's way to it.
pub(super) struct Reached {
    /// The site.
    pub(super) row: SiteRow,
    /// This host's files of it.
    pub(super) host: HostRow,
    /// By them.
    pub(super) site: Site,
}

impl Reached {
    /// cephx user of the host's files, without `client.`.
    pub(super) fn client(&self) -> &str {
        self.host.client.as_deref().unwrap_or("admin")
    }
}

impl Sites {
    /// The site of a name (or fsid), by the files that this host has of it.
    ///
    /// # Errors
    /// `InvalidInput` when there is no such site, or this host has no files of it; `Database`.
    pub(super) async fn reach(&self, name: &str) -> Result<Reached> {
        let (row, hosts) = self
            .db
            .read("a site", async |conn| {
                let row = site::find(conn, name).await?;
                let hosts = site::hosts(conn, &row.fsid).await?;
                Ok((row, hosts))
            })
            .await?;
        let Some(host) = hosts.iter().find(|h| h.host == self.host).cloned() else {
            let others: Vec<&str> = hosts.iter().map(|h| h.host.as_str()).collect();
            return Err(Error::new(
                Code::InvalidInput,
                format!(
                    "Host {} has no files of site {}; register them there (scoria-manage site register {} --host {} …), \
                     or name a host that has (--host): {}",
                    self.host,
                    row.name,
                    row.name,
                    self.host,
                    if others.is_empty() { "none has".to_owned() } else { others.join(", ") },
                ),
            ));
        };
        let site = Site::new(
            self.ceph.clone(),
            connection(&row.name, PathBuf::from(&host.conf), host.client.clone()),
        );
        Ok(Reached { row, host, site })
    }

    /// The same site by other files, for one order: it must be the same cluster.
    ///
    /// # Errors
    /// `Conflict` when they lead to another cluster; what Ceph answers.
    pub(super) async fn by(&self, row: &SiteRow, files: &Files) -> Result<Site> {
        super::operations::check_files(self, files).await?;
        let site =
            Site::new(self.ceph.clone(), connection(&row.name, files.conf.clone(), Some(files.user.clone())));
        let fsid = site.call(crate::rbd::protocol::Fsid {}).await?;
        if fsid != row.fsid {
            self.part(&site);
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "{} leads to another cluster ({fsid}), not to site {} ({})",
                    files.conf.display(),
                    row.name,
                    row.fsid
                ),
            ));
        }
        Ok(site)
    }

    /// Closes what was opened for a look, unless a backend works by it.
    pub(super) fn part(&self, site: &Site) {
        if !self.is_shared(site.connection()) {
            site.leave();
        }
    }
}

fn connection(name: &str, conf: PathBuf, user: Option<String>) -> Connection {
    Connection {
        site: name.to_owned(),
        conf,
        cluster_name: "ceph".to_owned(),
        user,
        connect_timeout: Some(CONNECT),
    }
}
