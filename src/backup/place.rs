//! Where the image of a volume is, and where backups are.
//!
//! The volume service knows the first, and could be asked; but it answers from its rows, and they are here, too: the
//! backend's section of the configuration says which clusters it has, its service's row which of them is active, and
//! a volume that is elsewhere has a row of its own. So a backup needs a section for the backend in the configuration
//! of this service, and no volume service that is up.

use std::path::PathBuf;

use crate::backend::{DEFAULT_SITE, connections};
use crate::config::BackendConfig;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::model::{Backup, Volume, backend_of};
use crate::rbd::Site;
use crate::rbd::protocol::Connection;
use crate::volume::image::Place;

use super::Backups;
use super::names::ServiceMetadata;

/// Extra spec of a volume type: the registered site that backups of its volumes go to.
const SITE_SPEC: &str = "backup:site";

/// An image where it is.
#[derive(Clone)]
pub struct Located {
    /// Its pool, on the site that serves it.
    pub place: Place,
    /// Its name.
    pub image: String,
}

impl Located {
    /// See [`Site::briefly`].
    #[must_use]
    pub fn briefly(self) -> Located {
        Located { place: self.place.briefly(), ..self }
    }
}

impl Backups {
    /// Where a volume is served now.
    ///
    /// # Errors
    /// `InvalidVolume` when no section of the configuration is its backend's; `InvalidReplicationTarget` when its
    /// backend is active on a site that the section does not name; `Database`.
    pub async fn locate(&self, volume: &Volume) -> Result<Located> {
        let host = volume.host.as_deref().unwrap_or_default();
        let section = self.section(volume)?;
        let backend = backend_of(host);
        let cluster = volume.cluster_name.as_deref().map(backend_of).filter(|name| !name.is_empty());
        let scope = cluster.unwrap_or(backend);
        let (active, stray, known) = self
            .db
            .read("where a volume is", async |conn| {
                let by_cluster = match cluster {
                    Some(name) => db::cluster::find(conn, name).await?.map(|c| c.active_backend_id),
                    None => None,
                };
                let active = match by_cluster {
                    Some(active) => active,
                    None => db::service::find(conn, backend).await?.and_then(|s| s.active_backend_id),
                };
                let stray = db::stray::site_of(conn, &volume.id).await?;
                Ok((active, stray, db::backend_site::known(conn, scope).await?))
            })
            .await?;
        let active = active.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_SITE.to_owned());
        let wanted = stray.unwrap_or(active);
        let former = known.former();
        let name = former.get(&wanted).unwrap_or(&wanted);
        let connection = connections(section).into_iter().find(|c| c.site == *name).ok_or_else(|| {
            Error::new(
                Code::InvalidReplicationTarget,
                format!("Volume {} is on site {name}, which [{}] does not name", volume.id, section.section),
            )
            .detail("add the replication_device to the backup service's configuration, and restart it")
        })?;
        let site = self.site(connection);
        site.identity().expect(known.expected(name));
        let image = self.globals.volume_name_template.replace("%s", volume.name_id());
        Ok(Located { place: Place { site, pool: section.pool.clone() }, image })
    }

    /// How long an operation goes on with a site that is silent is one rule for all of them.
    fn site(&self, connection: Connection) -> Site {
        Site::new(self.ceph.clone(), connection).heard_by(&self.hearing)
    }

    /// The section of a volume's backend: by its service host, by its cluster, and, since the volume service may run
    /// on another host, by the name after the `@`, if that is one section's only.
    fn section(&self, volume: &Volume) -> Result<&BackendConfig> {
        let host = volume.host.as_deref().map(backend_of).unwrap_or_default();
        let cluster = volume.cluster_name.as_deref().map(backend_of);
        let by_host = self.backends.iter().find(|section| section.host == host);
        let by_cluster = || {
            self.backends
                .iter()
                .find(|section| section.cluster.is_some() && section.cluster.as_deref() == cluster)
        };
        let by_name = || {
            let name = host.split_once('@').map(|(_, name)| name)?;
            self.backends.iter().find(|section| section.section == name)
        };
        by_host.or_else(by_cluster).or_else(by_name).ok_or_else(|| {
            Error::new(
                Code::InvalidVolume,
                format!("Volume {} is of backend {host}, which the backup service does not know", volume.id),
            )
            .detail("name the backend's section in enabled_backends of the backup service's configuration")
        })
    }

    /// The site of `backup_ceph_conf`.
    pub fn own_site(&self) -> Site {
        let connection = Connection {
            site: "backup".to_owned(),
            conf: self.config.ceph_conf.clone(),
            cluster_name: "ceph".to_owned(),
            user: self.config.ceph_user.clone(),
            connect_timeout: None,
        };
        self.site(connection)
    }

    /// A registered site, by the files that this host has of it.
    ///
    /// # Errors
    /// `InvalidInput` when there is no site of that name or fsid, or this host has no files of it, with what there is
    /// and what to do; `Database`.
    pub async fn registered(&self, name: &str) -> Result<Site> {
        let (row, hosts) = self
            .db
            .read("site of backups", async |conn| {
                let row = db::site::find(conn, name).await?;
                let hosts = db::site::hosts(conn, &row.fsid).await?;
                Ok((row, hosts))
            })
            .await?;
        let host = hosts.into_iter().find(|files| files.host == self.host && files.state == "present");
        let host = host.ok_or_else(|| {
            let text = format!(
                "The backup service's host {} has no files of site {}: register them there (scoria-manage site register {} --host {} …)",
                self.host, row.name, row.name, self.host
            );
            Error::new(Code::InvalidInput, text)
        })?;
        let connection = Connection {
            site: row.name.clone(),
            conf: PathBuf::from(host.conf),
            cluster_name: "ceph".to_owned(),
            user: host.client,
            connect_timeout: None,
        };
        let site = self.site(connection);
        site.identity().expect(Some(&row.fsid));
        Ok(site)
    }

    /// The site of backups whose metadata name this one; `None` is the cluster of `backup_ceph_conf`.
    ///
    /// # Errors
    /// As [`Backups::registered`].
    pub async fn site_of(&self, fsid: Option<&str>) -> Result<Site> {
        match fsid {
            Some(fsid) => self.registered(fsid).await,
            None => Ok(self.own_site()),
        }
    }

    /// The pool that a backup is in.
    ///
    /// # Errors
    /// As [`Backups::registered`], for one on a site that is known no more.
    pub async fn store(&self, backup: &Backup) -> Result<Place> {
        let site = ServiceMetadata::read(backup.service_metadata.as_deref()).and_then(|noted| noted.site);
        Ok(Place { site: self.site_of(site.as_deref()).await?, pool: self.pool_of(backup) })
    }

    pub(super) fn pool_of(&self, backup: &Backup) -> String {
        let container = backup.container.as_deref().filter(|pool| !pool.is_empty());
        container.unwrap_or(&self.config.ceph_pool).to_owned()
    }

    /// The pool that a new backup goes to, and the fsid of its site if that is a registered one. A chain stays where it
    /// was begun; a new one goes where the volume's type says (`backup:site`), or else the configuration.
    ///
    /// # Errors
    /// As [`Backups::registered`].
    pub async fn destination(
        &self,
        backup: &Backup,
        parent: Option<&Backup>,
        volume: &Volume,
    ) -> Result<(Place, Option<String>)> {
        let wanted = match parent {
            Some(parent) => ServiceMetadata::read(parent.service_metadata.as_deref()).and_then(|m| m.site),
            None => self.wanted_site(volume).await?,
        };
        let site = self.site_of(wanted.as_deref()).await?;
        let fsid = wanted.and_then(|_| site.identity().expected());
        Ok((Place { site, pool: self.pool_of(backup) }, fsid))
    }

    async fn wanted_site(&self, volume: &Volume) -> Result<Option<String>> {
        let kind = volume.volume_type_id.as_str();
        if kind.is_empty() {
            return Ok(self.config.site.clone());
        }
        let found =
            self.db.read("type of a volume", async |conn| db::volume_type::get(conn, kind).await).await?;
        let by_type = found.extra_specs.get(SITE_SPEC).filter(|name| !name.is_empty());
        Ok(by_type.cloned().or_else(|| self.config.site.clone()))
    }

    /// The pool that backups go to unless something else is said.
    ///
    /// # Errors
    /// As [`Backups::registered`].
    pub async fn usual_place(&self) -> Result<Place> {
        let site = self.site_of(self.config.site.as_deref()).await?;
        Ok(Place { site, pool: self.config.ceph_pool.clone() })
    }

    /// The registered sites that this host has files of.
    ///
    /// # Errors
    /// `Database`.
    pub async fn registered_sites(&self) -> Result<Vec<Site>> {
        let host = self.host.as_str();
        let rows =
            self.db.read("sites of backups", async |conn| db::site::files_on(conn, host).await).await?;
        let mut sites = Vec::new();
        for row in rows.into_iter().filter(|row| row.state == "present") {
            sites.push(self.registered(&row.fsid).await?);
        }
        Ok(sites)
    }
}
