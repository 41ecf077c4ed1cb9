//! Where the image of a volume is, and where backups are.
//!
//! The volume service knows the first, and could be asked; but it answers from its rows, and they are here, too: the
//! backend's section of the configuration says which clusters it has, its service's row which of them is active, and
//! a volume that is elsewhere has a row of its own. So a backup needs a section for the backend in the configuration
//! of this service, and no volume service that is up.

use crate::backend::{DEFAULT_SITE, connections};
use crate::config::BackendConfig;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::model::{Backup, Volume, backend_of};
use crate::rbd::Site;
use crate::rbd::protocol::Connection;
use crate::volume::image::Place;

use super::Backups;

/// An image where it is.
#[derive(Clone)]
pub struct Located {
    /// Its pool, on the site that serves it.
    pub place: Place,
    /// Its name.
    pub image: String,
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
        let site = Site::new(self.ceph.clone(), connection);
        site.identity().expect(known.expected(name));
        let image = self.globals.volume_name_template.replace("%s", volume.name_id());
        Ok(Located { place: Place { site, pool: section.pool.clone() }, image })
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
        Site::new(self.ceph.clone(), connection)
    }

    /// The pool that a backup is in, or a new one goes to.
    pub fn store(&self, backup: &Backup) -> Place {
        let container = backup.container.as_deref().filter(|pool| !pool.is_empty());
        Place { site: self.own_site(), pool: container.unwrap_or(&self.config.ceph_pool).to_owned() }
    }
}
