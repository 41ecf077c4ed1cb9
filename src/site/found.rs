//! Sites that nobody has registered: the clusters that backends work with.
//!
//! An existing cinder.conf needs nothing new. Each service asks where the conf of each of its backends leads, writes
//! down which backend works with which cluster, and gives a cluster that it has never seen a name: that of the
//! `replication_device`, or of the backend's section. A cluster that is away is asked again later.

use std::path::PathBuf;

use tracing::{info, warn};

use super::files::problem;
use super::orders::{Order, PREFIX, Request};
use super::probe::{Report, look, wanted};
use super::{Sites, blocking};
use crate::backend::{DEFAULT_SITE, connections};
use crate::config::BackendConfig;
use crate::db::site::{self, HostRow};
use crate::db::site_use::{self, UseRow};
use crate::error::Result;
use crate::journal::ListingFilter;
use crate::rbd::Site;
use crate::rbd::protocol::{ConfGet, Connection, Fsid};

/// A site of a backend, as its configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worked {
    /// `host@backend`.
    pub backend: String,
    /// `default` or a `backend_id`.
    pub site: String,
    /// Pool of the backend.
    pub pool: String,
    /// How it is reached.
    pub connection: Connection,
    /// What to call the cluster, if it has no name.
    pub name: String,
}

impl Worked {
    /// All sites of a backend.
    pub fn of(config: &BackendConfig) -> Vec<Worked> {
        connections(config)
            .into_iter()
            .map(|connection| Worked {
                backend: config.host.clone(),
                site: connection.site.clone(),
                pool: config.pool.clone(),
                name: match connection.site.as_str() {
                    DEFAULT_SITE => config.section.clone(),
                    device => device.to_owned(),
                },
                connection,
            })
            .collect()
    }
}

/// Names for a cluster, the best first.
fn names(wish: &str, fsid: &str) -> Vec<String> {
    let short = fsid.split('-').next().unwrap_or(fsid);
    let all = [wish.to_owned(), format!("site-{short}"), fsid.to_owned()];
    all.into_iter().filter(|name| super::check_name(name).is_ok()).collect()
}

impl Sites {
    /// Forgets what the backends of this host work with no more.
    ///
    /// # Errors
    /// `Database`.
    pub async fn settle_uses(&self) -> Result<()> {
        let worked = self.worked();
        let mut backends: Vec<&str> = worked.iter().map(|w| w.backend.as_str()).collect();
        backends.dedup();
        self.db
            .write("sites of backends", async |conn| {
                for backend in &backends {
                    let of = worked.iter().filter(|w| w.backend == **backend);
                    let sites: Vec<String> = of.map(|w| w.site.clone()).collect();
                    site_use::only(conn, backend, &sites).await?;
                }
                Ok(())
            })
            .await
    }

    /// The same of one backend, which works with these sites.
    ///
    /// # Errors
    /// `Database`.
    pub async fn settle_use(&self, backend: &str, sites: &[String]) -> Result<()> {
        self.db.write("sites of a backend", async |conn| site_use::only(conn, backend, sites).await).await
    }

    /// Looks where a backend's conf leads, and writes it down.
    ///
    /// # Errors
    /// What Ceph answers; `Database`.
    pub async fn discover(&self, worked: &Worked) -> Result<Report> {
        let at = Site::new(self.ceph.clone(), worked.connection.clone());
        let fsid = at.call(Fsid {}).await?;
        let uses = self.db.read("uses of a site", async |conn| site_use::of(conn, Some(&fsid)).await).await?;
        let user = worked.connection.user.as_deref().unwrap_or("admin");
        let report = look(&at, &wanted(&uses, user, std::slice::from_ref(&worked.pool))).await?;
        let keyring = at.call(ConfGet { option: "keyring".to_owned() }).await?;
        let keyring = blocking(move || keyring.and_then(|list| existing(&list))).await?;
        let seen = report.seen()?;
        let uses = UseRow {
            backend: worked.backend.clone(),
            site: worked.site.clone(),
            fsid: report.fsid.clone(),
            pool: worked.pool.clone(),
            client: worked.connection.user.clone(),
        };
        let files = HostRow {
            fsid: report.fsid.clone(),
            host: self.host.clone(),
            conf: worked.connection.conf.display().to_string(),
            keyring: keyring.map(|path| path.display().to_string()),
            client: worked.connection.user.clone(),
            own: false,
            state: "present".to_owned(),
            problem: None,
        };
        let names = names(&worked.name, &report.fsid);
        let found = self
            .db
            .write("a site of a backend", async |conn| {
                let found = site::find_out(conn, &names, &seen).await?;
                site_use::put(conn, &uses).await?;
                let known = site::files_on(conn, &self.host).await?;
                let good = known
                    .iter()
                    .any(|row| row.fsid == files.fsid && row.state == "present" && row.problem.is_none());
                if !good {
                    site::put_host(conn, &files).await?;
                }
                Ok(found)
            })
            .await?;
        if let Some(name) = found {
            info!(backend = worked.backend, site = name, fsid = report.fsid, "a new site was found");
        }
        Ok(report)
    }

    /// Keeps files and rows of this host in order: removes what is left of deleted sites and of orders that have
    /// ended, and notes which files cannot be read.
    ///
    /// # Errors
    /// `Database`.
    pub async fn tidy(&self) -> Result<()> {
        // Between the files and their row nobody else changes either.
        let _files = self.files.lock().await;
        let filter = ListingFilter {
            open_only: true,
            backend_host: Some(self.host.clone()),
            limit: 1000,
            ..ListingFilter::default()
        };
        let mut open = Vec::new();
        for row in self.journal.list(&filter).await?.iter().filter(|row| row.method.starts_with(PREFIX)) {
            let text = self.journal.request_of(row.id).await?.unwrap_or_default();
            if let Ok(request) = Request::parse(&text) {
                open.extend(Order::files(&request.order).into_iter().cloned());
            }
        }
        let store = self.store.clone();
        blocking(move || store.sweep(&open)).await?;
        let all = self.db.read("files of sites", async |conn| site::all_files(conn).await).await?;
        for row in all.iter().filter(|row| row.host == self.host) {
            let paths: Vec<PathBuf> =
                [Some(&row.conf), row.keyring.as_ref()].into_iter().flatten().map(PathBuf::from).collect();
            let store = self.store.clone();
            if row.state == "removing" {
                // Services of two names on one machine may keep their files in one directory.
                let shared = |path: &PathBuf| {
                    let text = path.display().to_string();
                    let mut others = all.iter().filter(|o| o.host != row.host && o.state == "present");
                    others.any(|o| o.conf == text || o.keyring.as_deref() == Some(&*text))
                };
                let paths: Vec<PathBuf> = paths.into_iter().filter(|path| !shared(path)).collect();
                if blocking(move || paths.iter().all(|path| store.remove(path))).await? {
                    self.db
                        .write("files of a deleted site", async |conn| {
                            site::removed(conn, &row.fsid, &row.host).await
                        })
                        .await?;
                    info!(fsid = row.fsid, "the files of a deleted site were removed");
                }
                continue;
            }
            // An empty conf is the one that librados searches.
            let wrong = move || paths.iter().filter(|p| !p.as_os_str().is_empty()).find_map(|p| problem(p));
            let now = blocking(wrong).await?.map(|text| text.chars().take(200).collect());
            if now != row.problem {
                if let Some(text) = &now {
                    warn!(fsid = row.fsid, problem = text, "a file of a site cannot be read");
                }
                let row = HostRow { problem: now, ..row.clone() };
                self.db.write("files of a site", async |conn| site::put_host(conn, &row).await).await?;
            }
        }
        let store = self.store.clone();
        blocking(move || store.sweep_kept(&all)).await
    }
}

/// The first keyring of a list that is there.
fn existing(list: &str) -> Option<PathBuf> {
    list.split(',').map(|path| PathBuf::from(path.trim())).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_called_as_its_backend_or_by_its_fsid() {
        let fsid = "51e00000-0000-4000-8000-000000001001";
        assert_eq!(names("ceph", fsid), ["ceph", "site-51e00000", fsid]);
        assert_eq!(names("a b", fsid), ["site-51e00000", fsid]);
    }
}
