//! What becomes of the names of a backend's sites, and what a configuration file must say for it.
//!
//! Pure: which clusters there were and which there are go in, the names of each come out, or why these are not names
//! that rows could follow.

use std::fmt::Write as _;

use crate::config::BackendConfig;
use crate::db::adoption::Renamed;
use crate::db::backend_site::SiteRow;
use crate::replication::target::DEFAULT;

/// A site by the names that rows know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Former {
    pub(super) name: String,
    /// `None`: nobody has ever known.
    pub(super) fsid: Option<String>,
    pub(super) conf: String,
}

/// A site as the configuration names it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    /// `None`: it does not answer.
    pub(super) fsid: Option<String>,
    pub(super) conf: String,
}

/// What rows must follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Every former name, and what its site is called now.
    pub(super) renamed: Vec<Renamed>,
    /// What is known of the sites from now on.
    pub(super) rows: Vec<SiteRow>,
    /// The backend has somewhere to fail over to.
    pub(super) replicated: bool,
}

impl Names {
    /// What a site is called now; `None` when it is gone.
    pub(super) fn now(&self, former: &str) -> Option<&str> {
        self.renamed.iter().find(|(old, _)| old == former).and_then(|(_, new)| new.as_deref())
    }
}

/// Gives every former name its successor. `former` are the names in use until now, `forgotten` those that an earlier
/// adoption had replaced; the first of `found` is the backend's own cluster, which is the one that `active` was.
///
/// # Errors
/// A sentence for the operator: a name that would mean two clusters.
pub(super) fn plan(
    active: &str,
    former: &[Former],
    forgotten: &[SiteRow],
    found: &[Found],
) -> Result<Names, String> {
    let Some((own, devices)) = found.split_first() else { return Ok(Names::default()) };
    for device in devices {
        if device.fsid.is_some() && device.fsid == own.fsid {
            return Err(format!(
                "the replication_device {} leads to the very cluster that the backend itself is: take it out, or let \
                 it lead to the other",
                device.name
            ));
        }
        if device.name == active {
            return Err(format!(
                "the replication_device has the backend_id {active}, by which requests under way and the journal know \
                 the cluster that becomes the backend's own: give it another"
            ));
        }
    }
    let same = |old: &Former, new: &Found| match (&old.fsid, &new.fsid) {
        (Some(old), Some(new)) => old == new,
        _ => old.conf == new.conf,
    };
    let successor = |old: &Former| {
        if old.name == active {
            return Some(own.name.clone());
        }
        devices.iter().find(|new| same(old, new)).map(|new| new.name.clone())
    };
    let renamed: Vec<Renamed> = former.iter().map(|old| (old.name.clone(), successor(old))).collect();
    let mut rows: Vec<SiteRow> = Vec::new();
    for new in found {
        let known = former.iter().find(|old| successor(old).as_ref() == Some(&new.name));
        let fsid = new.fsid.clone().or_else(|| known.and_then(|old| old.fsid.clone()));
        // One that nobody has ever heard of says by itself, one day, which it is.
        let Some(fsid) = fsid else { continue };
        rows.push(SiteRow { site: new.name.clone(), fsid, conf: new.conf.clone(), became: None });
    }
    let in_use = |name: &str| found.iter().any(|new| new.name == name);
    for (old, (_, now)) in former.iter().zip(&renamed).filter(|(old, _)| !in_use(&old.name)) {
        rows.push(SiteRow {
            site: old.name.clone(),
            fsid: old.fsid.clone().unwrap_or_default(),
            conf: old.conf.clone(),
            became: Some(now.clone().unwrap_or_default()),
        });
    }
    for row in forgotten.iter().filter(|row| !in_use(&row.site)) {
        let now = rows.iter().find(|new| new.became.is_none() && new.fsid == row.fsid);
        let became = Some(now.map(|new| new.site.clone()).unwrap_or_default());
        rows.push(SiteRow { became, ..row.clone() });
    }
    Ok(Names { renamed, rows, replicated: !devices.is_empty() })
}

/// The lines that make the active site of a backend its own cluster; `None` when its options do not say how that is
/// reached, because they have been changed already.
pub(super) fn lines(options: &BackendConfig, active: &str) -> Option<String> {
    let device = options.replication_devices.iter().find(|d| d.backend_id == active)?;
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key} = {value}");
    };
    line("rbd_ceph_conf", &device.conf.display().to_string());
    line("rbd_user", &device.user);
    // It names the keyring beside the conf.
    line("rbd_cluster_name", &device.backend_id);
    if let Some(secret) = &device.secret_uuid {
        line("rbd_secret_uuid", secret);
    }
    let mut peer = format!("backend_id:{}", peer_name(options, active));
    let _ = write!(peer, ",conf:{}", options.ceph_conf.display());
    if let Some(user) = &options.user {
        let _ = write!(peer, ",user:{user}");
    }
    if let Some(secret) = &options.secret_uuid {
        let _ = write!(peer, ",secret_uuid:{secret}");
    }
    line("replication_device", &peer);
    Some(text)
}

/// A name for what was the backend's own cluster: the one that finds its keyring, where it is free.
fn peer_name(options: &BackendConfig, active: &str) -> String {
    let taken = |name: &str| name == DEFAULT || name == active || name.is_empty();
    match taken(&options.cluster_name) {
        false => options.cluster_name.clone(),
        true => format!("former-{}", options.cluster_name),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn former(name: &str, fsid: &str) -> Former {
        Former { name: name.into(), fsid: Some(fsid.into()), conf: format!("/{fsid}.conf") }
    }

    fn found(name: &str, fsid: &str) -> Found {
        Found { name: name.into(), fsid: Some(fsid.into()), conf: format!("/{fsid}.conf") }
    }

    fn shown(names: &Names) -> Vec<String> {
        let row = |r: &SiteRow| {
            format!("{}={}{}", r.site, r.fsid, r.became.as_ref().map_or(String::new(), |b| format!(">{b}")))
        };
        names.rows.iter().map(row).collect()
    }

    #[test]
    fn two_sites_change_their_names() {
        let old = [former("default", "A"), former("b", "B")];
        let names = plan("b", &old, &[], &[found("default", "B"), found("a", "A")]).unwrap();
        assert_eq!(names.now("b"), Some("default"));
        assert_eq!(names.now("default"), Some("a"));
        assert!(names.replicated);
        assert_eq!(shown(&names), ["default=B", "a=A", "b=B>default"]);
        // And back: what `b` had become is what it is.
        let forgotten: Vec<SiteRow> = names.rows.into_iter().filter(|r| r.became.is_some()).collect();
        let old = [former("default", "B"), former("a", "A")];
        let names = plan("a", &old, &forgotten, &[found("default", "A"), found("c", "B")]).unwrap();
        assert_eq!(shown(&names), ["default=A", "c=B", "a=A>default", "b=B>c"]);
    }

    #[test]
    fn a_peer_that_is_dead_is_known_by_its_conf_and_one_that_is_gone_is_gone() {
        let old = [former("default", "A"), former("b", "B")];
        let dead = Found { name: "a".into(), fsid: None, conf: "/A.conf".into() };
        let names = plan("b", &old, &[], &[found("default", "B"), dead.clone()]).unwrap();
        assert_eq!(names.now("default"), Some("a"));
        assert_eq!(shown(&names), ["default=B", "a=A", "b=B>default"]);
        let other = Found { conf: "/new.conf".into(), ..dead };
        let names = plan("b", &old, &[], &[found("default", "B"), other]).unwrap();
        assert_eq!(names.now("default"), None);
        assert_eq!(shown(&names), ["default=B", "b=B>default"], "nobody knows which the new one is");
        let names = plan("b", &old, &[], &[found("default", "B")]).unwrap();
        assert!(!names.replicated && names.now("default").is_none());
    }

    #[test]
    fn a_name_never_means_two_clusters() {
        let old = [former("default", "A"), former("b", "B")];
        let twice = plan("b", &old, &[], &[found("default", "B"), found("c", "B")]).unwrap_err();
        assert!(twice.contains("very cluster"), "{twice}");
        let taken = plan("b", &old, &[], &[found("default", "B"), found("b", "A")]).unwrap_err();
        assert!(taken.contains("give it another"), "{taken}");
    }
}
