//! Schedules of mirror snapshots: what makes mirroring by snapshots happen at all.
//!
//! Each Ceph cluster has its own, ceph-mgr keeps them, and may not be ready, or may have lost them. So nobody who
//! enables mirroring, retypes, or fails over sets one, or fails for want of one: this compares, now and then and when
//! something has changed, what the volumes' types ask for with what the clusters have, in bulk, and makes it so. A
//! volume that has none although its type asks for one says so in `replication_extended_status`.
//!
//! Only what Scoria has given is taken back: a schedule that an operator has made by hand stays, and so do those of the
//! pool. What an image has that is not mirrored by snapshots any more, the manager drops by itself.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;
use tracing::{info, warn};

use crate::backend::Backend;
use crate::config::BackendConfig;
use crate::db;
use crate::db::schedule::Given;
use crate::error::Result;
use crate::model::{ReplicationStatus, Volume, VolumeType};
use crate::rbd::Site;
use crate::rbd::protocol::{ScheduleAdd, ScheduleList, ScheduleRemove};
use crate::rbd::types::{MirrorMode, Schedule, Scheduled};
use crate::volume::group::at_once;
use crate::volume::mode_of;

/// Commands to a manager at once: it works on one after the other anyway.
const AT_ONCE: usize = 4;

/// The schedule that a type asks for: its extra spec `replication:schedule` (`none`: not any), else the backend's
/// `scoria_mirror_snapshot_schedule`. `None` for a type that is mirrored by journal.
///
/// # Errors
/// A sentence for the operator, when the type says nothing that can be understood.
pub fn wanted(config: &BackendConfig, kind: &VolumeType) -> Result<Option<Schedule>, String> {
    match mode_of(config, kind) {
        Ok(MirrorMode::Snapshot) => {}
        Ok(MirrorMode::Journal) => return Ok(None),
        Err(e) => return Err(e.user().to_owned()),
    }
    match kind.extra_specs.get("replication:schedule").map(|text| text.trim()) {
        None => Ok(config.mirror_schedule.clone()),
        Some(text) if text.is_empty() || text.eq_ignore_ascii_case("none") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|why| format!("volume type {}: {why}", kind.name)),
    }
}

/// What a volume is to have on the site that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    volume_id: String,
    image: String,
    schedule: Option<Schedule>,
}

/// What is to be done about one volume on one site, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Change {
    volume_id: String,
    image: String,
    /// Given before, and not wanted any more.
    remove: Option<Schedule>,
    /// Nothing is given any more.
    forget: bool,
    /// To be written down, and then added.
    add: Option<Schedule>,
}

/// Compares wishes with what the cluster has, and with what it was given. Pure.
fn plan(wishes: &[Wish], present: &[Scheduled], given: &BTreeMap<&str, &str>) -> Vec<Change> {
    let empty = BTreeSet::new();
    let of_images: BTreeMap<&str, BTreeSet<&Schedule>> =
        present.iter().filter_map(|s| Some((s.image.as_deref()?, s.schedules.iter().collect()))).collect();
    let mut changes = Vec::new();
    for wish in wishes {
        let has = of_images.get(wish.image.as_str()).unwrap_or(&empty);
        let before = given.get(wish.volume_id.as_str()).copied();
        let wanted = wish.schedule.as_ref();
        let stale = before.filter(|text| wanted.map(Schedule::to_string).as_deref() != Some(*text));
        let add = wanted.filter(|wanted| !has.contains(*wanted));
        let change = Change {
            volume_id: wish.volume_id.clone(),
            image: wish.image.clone(),
            remove: stale.and_then(|text| text.parse::<Schedule>().ok()).filter(|old| has.contains(old)),
            // One that is there already is not ours to take back later.
            forget: stale.is_some() && add.is_none(),
            add: add.cloned(),
        };
        if change.remove.is_some() || change.forget || change.add.is_some() {
            changes.push(change);
        }
    }
    changes
}

/// Makes the schedules of the backend's volumes what their types ask for, where they are served.
///
/// # Errors
/// `Database`. What a cluster refuses is said in the rows and in the log, and tried again the next time.
pub async fn keep(backend: &Backend) -> Result<()> {
    let facts = read(backend).await?;
    let mut told = BTreeMap::new();
    for (id, why) in facts.unclear {
        told.insert(id, Some(why));
    }
    for (name, wishes) in facts.by_site {
        let given: BTreeMap<&str, &str> = facts
            .given
            .iter()
            .filter(|g| g.site == name)
            .map(|g| (g.volume_id.as_str(), g.schedule.as_str()))
            .collect();
        let asked = wishes.iter().any(|w| w.schedule.is_some());
        if !asked && !wishes.iter().any(|w| given.contains_key(w.volume_id.as_str())) {
            continue;
        }
        let outcome = match backend.site(&name) {
            Ok(site) => on_site(backend, &site, &wishes, &given).await?,
            Err(e) => Err(e.operator()),
        };
        let mut failures = match outcome {
            Ok(failures) => failures,
            Err(why) => {
                warn!(
                    backend = backend.host(),
                    site = name,
                    why,
                    "schedules of mirror snapshots cannot be looked after"
                );
                wishes.iter().map(|w| (w.volume_id.clone(), why.clone())).collect()
            }
        };
        for wish in wishes.iter().filter(|w| w.schedule.is_some()) {
            told.insert(wish.volume_id.clone(), failures.remove(&wish.volume_id));
        }
    }
    tell(backend, &facts.says_so, told).await
}

/// What the rows say.
struct Facts {
    by_site: BTreeMap<String, Vec<Wish>>,
    given: Vec<Given>,
    /// Volumes of types that cannot be understood.
    unclear: Vec<(String, String)>,
    /// Volumes whose row says at the moment that they have no schedule, and why.
    says_so: BTreeMap<String, String>,
}

async fn read(backend: &Backend) -> Result<Facts> {
    let scope = backend.scope();
    let (volumes, types, strays, given) = backend
        .db
        .read("schedules that are asked for", async |conn| {
            let mut volumes = db::failover::replicated(conn, &scope).await?;
            volumes.retain(is_mirrored);
            let mut types: BTreeMap<String, VolumeType> = BTreeMap::new();
            for volume in &volumes {
                if !types.contains_key(&volume.volume_type_id) {
                    let kind = db::volume_type::get(conn, &volume.volume_type_id).await?;
                    types.insert(kind.id.clone(), kind);
                }
            }
            let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
            let strays: BTreeMap<String, String> = db::stray::list(conn, &ids).await?.into_iter().collect();
            let given = db::schedule::of_volumes(conn, &ids).await?;
            Ok((volumes, types, strays, given))
        })
        .await?;
    let active = backend.active_name();
    let mut facts = Facts { by_site: BTreeMap::new(), given, unclear: Vec::new(), says_so: BTreeMap::new() };
    for volume in volumes {
        let said =
            volume.replication_extended_status.as_deref().filter(|t| t.starts_with(db::schedule::MISSING));
        if let Some(said) = said {
            facts.says_so.insert(volume.id.clone(), said.to_owned());
        }
        let Some(kind) = types.get(&volume.volume_type_id) else { continue };
        let schedule = match wanted(&backend.config, kind) {
            Ok(schedule) => schedule,
            Err(why) => {
                facts.unclear.push((volume.id.clone(), why));
                continue;
            }
        };
        let site = strays.get(&volume.id).unwrap_or(&active).clone();
        let image = backend.image_name(&volume);
        facts.by_site.entry(site).or_default().push(Wish { volume_id: volume.id, image, schedule });
    }
    Ok(facts)
}

fn is_mirrored(volume: &Volume) -> bool {
    let status = volume.replication_status.as_deref().and_then(ReplicationStatus::parse);
    status.is_some_and(ReplicationStatus::means_mirrored)
}

/// Volumes by what could not be done for them; or why nothing could.
type Failures = std::result::Result<BTreeMap<String, String>, String>;

async fn on_site(
    backend: &Backend,
    site: &Site,
    wishes: &[Wish],
    given: &BTreeMap<&str, &str>,
) -> Result<Failures> {
    let pool = &backend.config.pool;
    let present = match site.insist(ScheduleList { pool: pool.clone() }).await {
        Ok(present) => present,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let changes = plan(wishes, &present, given);
    let mut failures = BTreeMap::new();
    let of = |change: &Change, schedule: &Schedule| Given {
        volume_id: change.volume_id.clone(),
        site: site.name().to_owned(),
        schedule: schedule.to_string(),
    };
    let removals = changes.iter().filter_map(|change| {
        let (image, schedule) = (change.image.clone(), change.remove.clone()?);
        let remove = ScheduleRemove { pool: pool.clone(), image, schedule };
        Some(async move { (change, site.insist(remove).await.err()) }.boxed())
    });
    for (change, error) in at_once(removals.collect(), AT_ONCE).await {
        if let Some(error) = error {
            warn!(volume.id = change.volume_id, site = site.name(), %error, "a schedule that nobody asks for is not removed");
            failures.insert(change.volume_id.clone(), error.to_string());
        }
    }
    let todo: Vec<&Change> = changes.iter().filter(|c| !failures.contains_key(&c.volume_id)).collect();
    let forgotten: Vec<Given> = todo
        .iter()
        .filter(|c| c.forget)
        .map(|c| Given {
            volume_id: c.volume_id.clone(),
            site: site.name().to_owned(),
            schedule: String::new(),
        })
        .collect();
    // Before they are given, so that what a crash leaves is known to be ours.
    let recorded: Vec<Given> = todo.iter().filter_map(|c| Some(of(c, c.add.as_ref()?))).collect();
    if !forgotten.is_empty() || !recorded.is_empty() {
        backend
            .db
            .write("schedules that are given", async |conn| {
                db::schedule::forget(conn, &forgotten).await?;
                db::schedule::record(conn, &recorded).await
            })
            .await?;
    }
    crate::volume::crash::point("schedules:recorded");
    let additions = todo.into_iter().filter_map(|change| {
        let (image, schedule) = (change.image.clone(), change.add.clone()?);
        let add = ScheduleAdd { pool: pool.clone(), image, schedule };
        Some(async move { (change, site.insist(add).await.err()) }.boxed())
    });
    let mut added = 0;
    for (change, error) in at_once(additions.collect(), AT_ONCE).await {
        match error {
            None => added += 1,
            Some(error) => {
                warn!(volume.id = change.volume_id, site = site.name(), %error, "no schedule of mirror snapshots");
                failures.insert(change.volume_id.clone(), error.to_string());
            }
        }
    }
    if added > 0 {
        info!(backend = backend.host(), site = site.name(), added, "schedules of mirror snapshots are set");
    }
    Ok(Ok(failures))
}

/// Writes only what is not said already: this runs every minute.
async fn tell(
    backend: &Backend,
    says_so: &BTreeMap<String, String>,
    told: BTreeMap<String, Option<String>>,
) -> Result<()> {
    let mut by_text: BTreeMap<Option<String>, Vec<String>> = BTreeMap::new();
    // One that wants no schedule any more lacks none.
    for id in says_so.keys().filter(|id| !told.contains_key(*id)) {
        by_text.entry(None).or_default().push(id.clone());
    }
    for (id, why) in told {
        let said = says_so.get(&id);
        let same = match (&why, said) {
            (None, None) => true,
            (Some(why), Some(said)) => {
                let text: String = format!("{}: {why}", db::schedule::MISSING).chars().take(255).collect();
                text == *said
            }
            (None, Some(_)) | (Some(_), None) => false,
        };
        if !same {
            by_text.entry(why).or_default().push(id);
        }
    }
    backend
        .db
        .write("missing schedules", async |conn| {
            for (why, ids) in &by_text {
                db::schedule::tell(conn, ids, why.as_deref()).await?;
            }
            db::schedule::forget_deleted(conn).await.map(|_| ())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str) -> Schedule {
        text.parse().unwrap()
    }

    fn wish(text: Option<&str>) -> Vec<Wish> {
        vec![Wish { volume_id: "v".into(), image: "i".into(), schedule: text.map(schedule) }]
    }

    fn has(texts: &[&str]) -> Vec<Scheduled> {
        let pool = Scheduled { image: None, schedules: vec![schedule("1d")] };
        let image =
            Scheduled { image: Some("i".into()), schedules: texts.iter().map(|t| schedule(t)).collect() };
        vec![pool, image]
    }

    fn change(wished: Option<&str>, present: &[&str], given: Option<&str>) -> Option<Change> {
        let given = given.map(|text| ("v", text)).into_iter().collect();
        plan(&wish(wished), &has(present), &given).pop()
    }

    #[test]
    fn what_is_missing_is_given_and_what_is_lost_is_given_again() {
        for given in [None, Some("5m")] {
            let found = change(Some("5m"), &[], given).unwrap();
            assert_eq!((found.add, found.remove, found.forget), (Some(schedule("5m")), None, false));
        }
        assert_eq!(change(Some("5m"), &["5m"], Some("5m")), None);
    }

    #[test]
    fn another_type_replaces_what_was_given() {
        let other = change(Some("1h"), &["5m"], Some("5m")).unwrap();
        assert_eq!((other.remove, other.add), (Some(schedule("5m")), Some(schedule("1h"))));
        let none = change(None, &["5m"], Some("5m")).unwrap();
        assert_eq!((none.remove, none.forget, none.add), (Some(schedule("5m")), true, None));
        let gone = change(None, &[], Some("5m")).unwrap();
        assert_eq!((gone.remove, gone.forget), (None, true));
    }

    #[test]
    fn what_an_operator_has_made_stays() {
        assert_eq!(change(None, &["7m"], None), None);
        assert_eq!(change(Some("7m"), &["7m"], None), None, "and is not ours to remove later");
        let taken_over = change(Some("7m"), &["5m", "7m"], Some("5m")).unwrap();
        assert_eq!((taken_over.remove, taken_over.forget), (Some(schedule("5m")), true));
        let beside = change(Some("5m"), &["7m"], None).unwrap();
        assert_eq!((beside.remove, beside.add), (None, Some(schedule("5m"))));
    }

    #[test]
    fn a_type_has_the_last_word() {
        let mut kind = VolumeType { name: "t".into(), ..VolumeType::default() };
        let spec = |kind: &mut VolumeType, key: &str, value: &str| {
            kind.extra_specs.insert(key.to_owned(), value.to_owned());
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "[DEFAULT]\nhost=h\nenabled_backends=ceph\ntransport_url=rabbit://u:p@h/v\n\
                    [database]\nconnection=mysql+pymysql://u:p@h/cinder\n\
                    [ceph]\nvolume_driver=cinder.volume.drivers.rbd.RBDDriver\n";
        std::fs::write(file.path(), text).unwrap();
        let (config, _) =
            crate::config::Config::load(&[file.path().to_owned()], &[], std::iter::empty()).unwrap();
        let mut config = config.backends[0].clone();
        assert_eq!(config.mirror_schedule, None);
        config.mirror_schedule = Some(schedule("1h"));
        assert_eq!(wanted(&config, &kind), Ok(None), "the journal needs none");
        spec(&mut kind, "replication:mode", "snapshot");
        assert_eq!(wanted(&config, &kind), Ok(Some(schedule("1h"))));
        spec(&mut kind, "replication:schedule", "5m");
        assert_eq!(wanted(&config, &kind), Ok(Some(schedule("5m"))));
        spec(&mut kind, "replication:schedule", "None");
        assert_eq!(wanted(&config, &kind), Ok(None));
        spec(&mut kind, "replication:schedule", "often");
        assert!(wanted(&config, &kind).unwrap_err().contains("'often'"));
    }
}
