//! The clusters that a backend works with: which they are by configuration, which one is active, and that each is the
//! one that the rows mean.
//!
//! A site is a name, `default` or a `backend_id`, and everything that is written down speaks of names. The files that
//! say what a name means may change while the service runs or between two starts, and a failover leaves the backend
//! active on a name that the files can give to another cluster. So the cluster behind each name is remembered
//! (`db::backend_site`), one that turns out to be another is refused, and the names change in one place only: [`Sites`] is
//! replaced as a whole by `replication::adopt`, while the backend runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::{Backend, Condition, DEFAULT_SITE, SiteFacts};
use crate::config::BackendConfig;
use crate::db::{self, backend_site::Known};
use crate::error::{Code, Error, Result};
use crate::model::{Scope, Volume};
use crate::rbd::protocol::Connection;
use crate::rbd::{Ceph, Site};
use crate::volume::image::{Place, Shape};

/// How long somebody who is about to use a site waits to hear which it is.
const PROOF: Duration = Duration::from_secs(3);

/// A backend's sites, as one reading of its configuration says.
pub struct Sites {
    options: BackendConfig,
    by_name: BTreeMap<String, Site>,
    facts: Mutex<HashMap<Connection, Arc<SiteFacts>>>,
    /// Names that are no longer in use, and what their sites are called now: requests under way still hold them.
    former: RwLock<BTreeMap<String, String>>,
    /// The adoption by which, or after which, the configuration was read.
    adoption: AtomicI64,
}

impl Sites {
    pub(super) fn new(options: BackendConfig, ceph: &Arc<dyn Ceph>, flattens: &Arc<Semaphore>) -> Sites {
        let by_name = connections(&options)
            .into_iter()
            .map(|connection| {
                let site = Site::new(ceph.clone(), connection).sharing_flattens(flattens.clone());
                (site.name().to_owned(), site)
            })
            .collect();
        Sites {
            options,
            by_name,
            facts: Mutex::default(),
            former: RwLock::default(),
            adoption: AtomicI64::new(0),
        }
    }

    /// The backend's options with what they say of its sites now; [`Backend::config`] has what was said at the start.
    pub fn options(&self) -> &BackendConfig {
        &self.options
    }

    /// All of them, by their names in use.
    pub fn all(&self) -> impl Iterator<Item = &Site> {
        self.by_name.values()
    }

    /// The site of this name, or of this former name.
    pub fn get(&self, name: &str) -> Option<&Site> {
        self.by_name.get(name).or_else(|| {
            let former = self.former.read().unwrap_or_else(PoisonError::into_inner);
            former.get(name).and_then(|now| self.by_name.get(now))
        })
    }

    /// Takes over which clusters the names stand for.
    pub fn expect(&self, known: &Known) {
        for (name, site) in &self.by_name {
            site.identity().expect(known.expected(name));
        }
        *self.former.write().unwrap_or_else(PoisonError::into_inner) = known.former();
    }

    /// The operation by which these sites, or later ones, became the backend's.
    pub fn adoption(&self) -> i64 {
        self.adoption.load(Ordering::Relaxed)
    }

    /// They are what this operation has made them.
    pub fn set_adoption(&self, operation: i64) {
        self.adoption.store(operation, Ordering::Relaxed);
    }

    /// True when both lead to the same clusters in the same way.
    pub fn are_those_of(&self, options: &BackendConfig) -> bool {
        connections(&self.options) == connections(options)
            && self.options.secret_uuid == options.secret_uuid
            && self.options.replication_devices == options.replication_devices
    }

    /// The same sites, with other options of what is read anew each time.
    fn with_options(&self, options: BackendConfig) -> Sites {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let former = self.former.read().unwrap_or_else(PoisonError::into_inner).clone();
        Sites {
            options,
            by_name: self.by_name.clone(),
            facts: Mutex::new(facts),
            former: RwLock::new(former),
            adoption: AtomicI64::new(self.adoption()),
        }
    }

    fn facts_of(&self, site: &Site) -> Option<Arc<SiteFacts>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).get(site.connection()).cloned()
    }
}

impl Backend {
    /// Its sites as they are now. Whoever needs several of them takes them from one answer.
    pub fn sites(&self) -> Arc<Sites> {
        self.sites.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sites as other options say, by the workers of this backend; nothing is connected or replaced yet.
    pub fn sites_of(&self, options: &BackendConfig) -> Sites {
        Sites::new(self.sites().options().with_sites_of(options), &self.ceph, &self.flattens)
    }

    /// From now on it reports by these options; whatever else they say is for its next start.
    pub fn take_options(&self, options: &BackendConfig) {
        {
            let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
            *sites = Arc::new(sites.with_options(options.with_sites_of(sites.options())));
        }
        self.want_report();
    }

    /// These are its sites from now on, and it works on `active`. Requests under way keep the handles that they have.
    ///
    /// # Errors
    /// As [`Backend::activate`].
    pub fn replace_sites(&self, sites: Sites, active: &str) -> Result<()> {
        *self.sites.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sites);
        info!(backend = self.host(), active, sites = ?self.site_names(), "the sites of the backend are others now");
        self.activate(active)
    }

    /// The name under which what is known of its sites is kept.
    pub fn scope_name(&self) -> String {
        match self.scope() {
            Scope::Host(name) | Scope::Cluster(name) => name,
        }
    }

    /// `backend_id`s of the replication devices, in order.
    pub fn device_names(&self) -> Vec<String> {
        self.sites().options.replication_devices.iter().map(|d| d.backend_id.clone()).collect()
    }

    /// Names of all its sites.
    pub fn site_names(&self) -> Vec<String> {
        self.sites().by_name.keys().cloned().collect()
    }

    /// True when the backend has somewhere to fail over to.
    pub fn is_replicated(&self) -> bool {
        !self.sites().options.replication_devices.is_empty()
    }

    /// Name of the site in use.
    pub fn active_name(&self) -> String {
        self.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The site in use.
    ///
    /// # Errors
    /// As [`Backend::site`].
    pub fn active_site(&self) -> Result<Site> {
        self.site(&self.active_name())
    }

    /// A site by name.
    ///
    /// # Errors
    /// `InvalidReplicationTarget` for a name that is not configured, e.g. because the device was removed
    /// while it was active, and for one that has turned out to lead to another cluster than the one that is meant.
    pub fn site(&self, name: &str) -> Result<Site> {
        let Some(site) = self.sites().get(name).cloned() else {
            return Err(Error::new(
                Code::InvalidReplicationTarget,
                format!("Backend {} has no replication_device with backend_id {name}", self.host()),
            ));
        };
        match site.identity().stranger() {
            None => Ok(site),
            Some(stranger) => Err(Error::new(
                Code::InvalidReplicationTarget,
                format!("Site {name} of backend {} is not the cluster that it was", self.host()),
            )
            .detail(format!(
                "the cinder.conf of this host leads to cluster {}, and by the rows {name} is cluster {}: nothing is \
                 served from there. If the file was changed on purpose, scoria-manage replication adopt --backend {} \
                 makes the rows follow; if that is done, this host's file is still to be changed",
                stranger.found,
                stranger.expected,
                self.host()
            ))),
        }
    }

    /// From now on volumes are served from `name`; from nowhere, if it is not configured: the site that was
    /// active before is not the one to go on with.
    ///
    /// # Errors
    /// `InvalidReplicationTarget` as [`Backend::site`].
    pub fn activate(&self, name: &str) -> Result<()> {
        let known = self.site(name);
        let before = {
            let mut active = self.active.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *active, name.to_owned())
        };
        if let Err(refusal) = known {
            self.set_condition(Condition::Down { reason: refusal.operator() });
            return Err(refusal);
        }
        if before != name {
            info!(backend = self.host(), from = before, to = name, "active site changed");
            // What was wrong with the former site says nothing about this one, which has just been chosen
            // because it answers. The report that follows measures it.
            if matches!(self.condition(), Condition::Down { .. }) {
                self.set_condition(Condition::Up);
            }
            self.want_report();
            self.schedules_wanted.notify_one();
        }
        Ok(())
    }

    /// Where a volume is served: the active site, unless a failover left this volume behind, or the volume was
    /// moved by itself (with its group).
    ///
    /// # Errors
    /// `Database`; `InvalidReplicationTarget` as [`Backend::site`].
    pub async fn place(&self, volume: &Volume) -> Result<Place> {
        let site = match self.stray_site(volume).await? {
            Some(name) => self.site(&name)?,
            None => self.active_site()?,
        };
        Ok(Place { site, pool: self.config.pool.clone() })
    }

    /// As [`Backend::place`], for work that is only begun when it can be done. A volume that is elsewhere does not
    /// wait for the site that its backend works on: it may have been moved because that is dead.
    ///
    /// # Errors
    /// As [`Backend::place`] and [`Backend::require_up`].
    pub async fn place_up(&self, volume: &Volume) -> Result<Place> {
        let site = match self.stray_site(volume).await? {
            Some(name) if name != self.active_name() => self.site(&name)?,
            _ => {
                self.require_up()?;
                self.active_site()?
            }
        };
        Ok(Place { site, pool: self.config.pool.clone() })
    }

    /// The site that serves a volume which is not where its backend is.
    async fn stray_site(&self, volume: &Volume) -> Result<Option<String>> {
        let devices = self.device_names().len();
        if devices == 0 || is_home(volume.replication_status.as_deref(), &self.active_name(), devices) {
            return Ok(None);
        }
        self.db.read("stray volume", async |conn| db::stray::site_of(conn, &volume.id).await).await
    }

    // ---- which cluster a site is --------------------------------------------------------------

    /// What is known of a site: asked once, then remembered; which cluster it is, for ever.
    ///
    /// # Errors
    /// What Ceph answers; `InvalidReplicationTarget` as [`Backend::site`].
    pub async fn facts(&self, site: &Site) -> Result<Arc<SiteFacts>> {
        let sites = self.sites();
        if let Some(facts) = sites.facts_of(site) {
            return Ok(facts);
        }
        let asked = SiteFacts::ask(site).await;
        if site.identity().stranger().is_some() {
            // Says more than what was refused.
            self.site(site.name())?;
        }
        let facts = Arc::new(asked?);
        self.learn(&sites, site, &facts.fsid).await;
        sites
            .facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(site.connection().clone(), facts.clone());
        Ok(facts)
    }

    /// Remembers which cluster a site is, when nobody has known. Without a database that waits for the next time.
    // Boxed, or it becomes a part of every operation that asks for facts.
    fn learn<'a>(&'a self, sites: &'a Sites, site: &'a Site, fsid: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let is_ours = sites.get(site.name()).is_some_and(|own| own.connection() == site.connection());
            if !is_ours || site.identity().expected().is_some() {
                return;
            }
            let (backend, name) = (self.scope_name(), site.name());
            let conf = site.connection().conf.to_string_lossy();
            let learned = self
                .db
                .read("which cluster a site is", async |conn| {
                    db::backend_site::learn(conn, &backend, name, fsid, &conf).await?;
                    db::backend_site::known(conn, &backend).await
                })
                .await;
            match learned {
                Ok(known) => sites.expect(&known),
                Err(error) => {
                    warn!(backend = self.host(), site = name, %error, "could not note which cluster a site is");
                }
            }
        })
    }

    /// Makes sure, as far as the site answers, that it is the cluster that its name stands for.
    ///
    /// # Errors
    /// `InvalidReplicationTarget` as [`Backend::site`].
    pub async fn prove(&self, name: &str) -> Result<()> {
        let site = self.site(name)?;
        // Whether it lives is for others to judge.
        let _ = tokio::time::timeout(PROOF, self.facts(&site)).await;
        self.site(name).map(drop)
    }

    /// Options of new images on a site.
    ///
    /// # Errors
    /// What Ceph answers.
    pub async fn shape(&self, site: &Site) -> Result<Shape> {
        Ok(Shape::new(self.config.chunk_size_mib, self.facts(site).await?.default_features))
    }

    /// cephx user and libvirt secret of a site (reference replication.md 3.2).
    pub fn credentials(&self, site: &str, fsid: &str) -> (Option<String>, String) {
        let sites = self.sites();
        let name = sites.get(site).map_or(site, Site::name);
        let (user, secret) = sites.options.credentials(name);
        (user, secret.unwrap_or_else(|| fsid.to_owned()))
    }
}

/// True when a volume's `replication_status` alone says that it is where its backend is, so that most volumes
/// cost no query: `enabled` is on the primary, `failed-over` on a device. One that never got a status is not
/// mirrored and was never moved.
fn is_home(replication_status: Option<&str>, active: &str, devices: usize) -> bool {
    match replication_status {
        None => true,
        Some("enabled") => active == DEFAULT_SITE,
        Some("failed-over") => active != DEFAULT_SITE && devices == 1,
        Some(_) => false,
    }
}

/// Connections of a backend's sites, the primary first.
pub fn connections(config: &BackendConfig) -> Vec<Connection> {
    let primary = Connection {
        site: DEFAULT_SITE.to_owned(),
        conf: config.ceph_conf.clone(),
        cluster_name: config.cluster_name.clone(),
        user: config.user.clone(),
        connect_timeout: config.connect_timeout,
    };
    let devices = config.replication_devices.iter().map(|device| Connection {
        site: device.backend_id.clone(),
        conf: device.conf.clone(),
        // As upstream: it names the keyring file on hosts (reference replication.md 3.2).
        cluster_name: device.backend_id.clone(),
        user: Some(device.user.clone()),
        connect_timeout: config.replication_connect_timeout,
    });
    std::iter::once(primary).chain(devices).collect()
}

#[cfg(test)]
mod tests {
    use super::is_home;

    #[test]
    fn only_a_status_that_fits_the_active_site_saves_the_query() {
        assert!(is_home(None, "b", 1));
        assert!(is_home(Some("enabled"), "default", 2) && !is_home(Some("enabled"), "b", 1));
        assert!(is_home(Some("failed-over"), "b", 1) && !is_home(Some("failed-over"), "default", 1));
        assert!(!is_home(Some("failed-over"), "b", 2), "it may be on the other device");
        for status in ["failing-over", "enabling", "disabling", "failover-error", "error", "disabled"] {
            assert!(!is_home(Some(status), "default", 1), "{status}");
        }
    }
}
