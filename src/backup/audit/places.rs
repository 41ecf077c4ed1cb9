//! Where an audit looks: pools of backups, by the configuration and by the rows, and pools of volumes.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use crate::backend::connections;
use crate::backup::{Backups, is_unsettled};
use crate::db;
use crate::error::Result;
use crate::rbd::Site;
use crate::volume::image::Place;

/// How long a site may take to say which it is.
const ANSWER: Duration = Duration::from_secs(5);

/// A pool of a cluster, however many ways lead to it.
pub(super) struct Spot {
    pub(super) place: Place,
    /// How the site is told.
    pub(super) label: String,
    fsid: Option<String>,
    pub(super) backups: bool,
    pub(super) volumes: bool,
    /// Why it cannot be looked at.
    pub(super) trouble: Option<String>,
}

/// All of them.
pub(super) struct Places {
    pub(super) spots: Vec<Spot>,
    /// Sites of backups by the fsid that their rows name, or why they cannot be asked.
    sites: BTreeMap<Option<String>, Result<Site, String>>,
    /// Sites of backups that are known no more, or of which this host has no files: the label, and why.
    pub(super) unknown: Vec<(String, String, String)>,
}

impl Places {
    /// The site of backups whose rows name this one.
    pub(super) fn site(&self, fsid: Option<&str>) -> Result<&Site, String> {
        match self.sites.get(&fsid.map(str::to_owned)) {
            Some(Ok(site)) => Ok(site),
            Some(Err(why)) => Err(why.clone()),
            // A row of this moment.
            None => Err("its site was not known when the audit began".to_owned()),
        }
    }

    /// The spot of a place.
    pub(super) fn at(&self, site: &Site, pool: &str) -> Option<usize> {
        let own = |spot: &Spot| spot.place.site.connection() == site.connection();
        let same = self.spots.iter().position(|spot| own(spot) && spot.place.pool == pool);
        same.or_else(|| {
            let fsid = self.spots.iter().find(|spot| own(spot))?.fsid.as_ref()?;
            self.spots.iter().position(|spot| spot.fsid.as_ref() == Some(fsid) && spot.place.pool == pool)
        })
    }

    fn add(&mut self, found: Spot) {
        let same = |spot: &&mut Spot| {
            spot.place.pool == found.place.pool
                && (spot.place.site.connection() == found.place.site.connection()
                    || (spot.fsid.is_some() && spot.fsid == found.fsid))
        };
        match self.spots.iter_mut().find(same) {
            Some(spot) => {
                spot.backups |= found.backups;
                spot.volumes |= found.volumes;
            }
            None => self.spots.push(found),
        }
    }
}

/// Asks each site once which cluster it is.
struct Asked(Vec<(Site, Result<String, String>)>);

impl Asked {
    async fn ask(&mut self, site: &Site) -> Result<String, String> {
        if let Some((_, known)) = self.0.iter().find(|(other, _)| other.connection() == site.connection()) {
            return known.clone();
        }
        let said = match timeout(ANSWER * 2, site.fsid(ANSWER)).await {
            Ok(Ok(fsid)) => match site.identity().stranger() {
                None => Ok(fsid),
                Some(stranger) => {
                    Err(format!("it is cluster {}, and not {}", stranger.found, stranger.expected))
                }
            },
            Ok(Err(error)) => Err(error.message),
            Err(_) => Err(format!("it has not answered in {} s", (ANSWER * 2).as_secs())),
        };
        self.0.push((site.clone(), said.clone()));
        said
    }
}

/// Finds them.
///
/// # Errors
/// `Database`.
pub(super) async fn find(b: &Backups) -> Result<Places> {
    let stored = b.db.read("pools of backups", async |conn| db::backup_audit::stored(conn).await).await?;
    let mut places = Places { spots: Vec::new(), sites: BTreeMap::new(), unknown: Vec::new() };
    let mut asked = Asked(Vec::new());
    // The usual place may be a registered site, which the configuration names, and rows by its fsid.
    let mut pools: Vec<(Site, String, String)> = Vec::new();
    let own = b.own_site();
    places.sites.insert(None, Ok(own.clone()));
    pools.push((own.clone(), "backup_ceph_conf".to_owned(), b.config.ceph_pool.clone()));
    if let Some(name) = b.config.site.as_deref() {
        match b.registered(name).await {
            Ok(site) => pools.push((site.clone(), name.to_owned(), b.config.ceph_pool.clone())),
            Err(error) if is_unsettled(&error) => return Err(error),
            Err(error) => {
                places.unknown.push((name.to_owned(), b.config.ceph_pool.clone(), error.user().to_owned()));
            }
        }
    }
    if let (Some(pool), Some((site, label, _))) = (&b.config.flatten_pool, pools.last().cloned()) {
        pools.push((site, label, pool.clone()));
    }
    for row in stored {
        let pool = row.pool.unwrap_or_else(|| b.config.ceph_pool.clone());
        if let (Some(fsid), false) = (&row.site, places.sites.contains_key(&row.site)) {
            let site = match b.registered(fsid).await {
                Ok(site) => Ok(site),
                Err(error) if is_unsettled(&error) => return Err(error),
                Err(error) => {
                    let why = error.user().to_owned();
                    places.unknown.push((fsid.clone(), pool.clone(), why.clone()));
                    Err(why)
                }
            };
            places.sites.insert(row.site.clone(), site);
        }
        if let Some(Ok(site)) = places.sites.get(&row.site) {
            let label =
                if row.site.is_some() { site.name().to_owned() } else { "backup_ceph_conf".to_owned() };
            pools.push((site.clone(), label, pool));
        }
    }
    for (site, label, pool) in pools {
        let said = asked.ask(&site).await;
        places.add(spot(site, label, pool, said, true));
    }
    for section in &b.backends {
        for connection in connections(section) {
            let label = format!("[{}] {}", section.section, connection.site);
            let site = own.elsewhere(connection);
            let said = asked.ask(&site).await;
            places.add(spot(site, label, section.pool.clone(), said, false));
        }
    }
    Ok(places)
}

fn spot(site: Site, label: String, pool: String, said: Result<String, String>, backups: bool) -> Spot {
    let (fsid, trouble) = match said {
        Ok(fsid) => (Some(fsid), None),
        Err(why) => (None, Some(why)),
    };
    Spot { place: Place { site, pool }, label, fsid, backups, volumes: !backups, trouble }
}
