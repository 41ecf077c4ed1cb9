//! Which volumes of a backend are on the site that is to become its own, by their rows and by Ceph's word.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::names::Names;
use crate::backend::Backend;
use crate::db;
use crate::db::failover::NOT_REPLICATED;
use crate::db::volume::VolumeFilter;
use crate::error::Result;
use crate::model::{ReplicationStatus, Volume};
use crate::rbd::Site;
use crate::rbd::mirror_survey::Looked;
use crate::replication::candidates::strays;
use crate::replication::foresight::facts::survey;
use crate::replication::plan::Side;
use crate::replication::target::DEFAULT;

/// What the adoption means for one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// Primary there: its row follows.
    Served,
    /// There, and not mirrored by its row, or not there yet: nothing to do.
    Untouched,
    /// Not there; it can be left behind.
    Behind(String),
    /// Nobody can tell, or it would be wrong to give it up.
    Unsure(String),
}

/// Every volume by its fate.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) served: Vec<Volume>,
    pub(super) behind: Vec<(Volume, String)>,
    pub(super) unsure: Vec<(Volume, String)>,
}

impl Census {
    /// Looks at all volumes of `backend`, which works on the site that was called `active`; `site` is that one.
    ///
    /// # Errors
    /// `Database`.
    pub(super) async fn take(backend: &Backend, site: &Site, active: &str, names: &Names) -> Result<Census> {
        let scope = backend.scope();
        let (volumes, displaced) = backend
            .db
            .read("volumes to adopt", async |conn| {
                let volumes = db::volume::list(conn, &scope, &VolumeFilter::default()).await?;
                Ok((volumes, db::adoption::displaced(conn, &scope).await?))
            })
            .await?;
        let displaced: HashSet<String> = displaced.into_iter().collect();
        let strays: HashMap<String, String> = strays(backend, &volumes).await?;
        let images: Vec<String> = volumes.iter().map(|v| backend.image_name(v)).collect();
        let looked = Box::pin(survey(site, &backend.config.pool, &images)).await;
        let mut census = Census::default();
        for (volume, image) in volumes.into_iter().zip(images) {
            let served = strays.get(&volume.id).map_or(active, String::as_str);
            let facts = Facts {
                elsewhere: (served != active && names.now(served) != Some(DEFAULT)).then_some(served),
                displaced: displaced.contains(&volume.id),
                image: looked.get(&image),
                replicated: names.replicated,
            };
            match fate(&volume, &facts) {
                Fate::Served => census.served.push(volume),
                Fate::Untouched => {}
                Fate::Behind(why) => census.behind.push((volume, why)),
                Fate::Unsure(why) => census.unsure.push((volume, why)),
            }
        }
        Ok(census)
    }
}

/// What is known of one volume besides its row.
struct Facts<'a> {
    /// The site that serves it by its rows, when that is another.
    elsewhere: Option<&'a str>,
    /// A failover has left it behind, because it is not replicated.
    displaced: bool,
    /// What the site says of its image.
    image: Option<&'a Looked>,
    /// There is a site to fail over to from now on.
    replicated: bool,
}

fn fate(volume: &Volume, facts: &Facts<'_>) -> Fate {
    let behind = |why: &str| Fate::Behind(why.to_owned());
    let unsure = |why: &str| Fate::Unsure(why.to_owned());
    if matches!(volume.status.as_str(), "creating" | "downloading" | "deleting") {
        return Fate::Untouched;
    }
    if facts.displaced {
        return behind("it is not replicated: a failover has left it on the other site");
    }
    if let Some(site) = facts.elsewhere {
        return Fate::Behind(format!("it is served from {site}"));
    }
    let status = volume.replication_status.as_deref();
    let side = match facts.image {
        None => Side::Unknown,
        Some(Looked::Unreadable { .. }) => Side::Unknown,
        Some(Looked::Absent) => Side::Absent,
        Some(Looked::Seen(seen)) => Side::from(Some(&seen.report.info)),
    };
    if status.is_none_or(|s| NOT_REPLICATED.contains(&s)) {
        return match side {
            // What has failed may never have had an image.
            _ if volume.status.starts_with("error") => Fate::Untouched,
            Side::Plain | Side::Primary => Fate::Untouched,
            Side::Absent => behind("its image is not there"),
            Side::Secondary => behind("its image there is a copy, and not primary"),
            Side::Unknown => unsure("its image cannot be read"),
        };
    }
    match status.and_then(ReplicationStatus::parse) {
        Some(ReplicationStatus::Enabling | ReplicationStatus::Disabling | ReplicationStatus::FailingOver) => {
            return unsure("its replication is being changed");
        }
        Some(ReplicationStatus::FailoverError) if volume.status == "error" => {
            return behind("a failover has lost it: scoria-manage replication retry");
        }
        _ => {}
    }
    match side {
        Side::Primary => Fate::Served,
        // Its data is there, and that is all that is asked of it when there is no other site.
        Side::Plain if !facts.replicated => Fate::Served,
        Side::Plain => {
            unsure("its image is there and not mirrored: scoria-manage replication audit --repair")
        }
        Side::Absent => behind("its image is not there"),
        Side::Secondary => behind("its image there is a copy, and not primary"),
        Side::Unknown => unsure("its image cannot be read"),
    }
}

/// Volumes by what is said of them, for a sentence: `3 volumes: it is served from site-b (id, id, id)`.
pub(super) fn listed(of: &[(Volume, String)]) -> String {
    /// Of more the journal's items have all.
    const SHOWN: usize = 10;
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (volume, why) in of {
        by_reason.entry(why).or_default().push(&volume.id);
    }
    let parts: Vec<String> = by_reason
        .into_iter()
        .map(|(why, ids)| {
            let more = if ids.len() > SHOWN { ", …" } else { "" };
            let shown: Vec<&str> = ids.iter().take(SHOWN).copied().collect();
            format!("{} of them: {why} ({}{more})", ids.len(), shown.join(", "))
        })
        .collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::mirror_survey::MirrorSurveyed;
    use crate::rbd::types::{MirrorMode, MirrorReport, MirrorState, Mirroring};

    fn volume(status: &str, replication: Option<&str>) -> Volume {
        Volume {
            id: "v".into(),
            status: status.into(),
            replication_status: replication.map(str::to_owned),
            ..Volume::default()
        }
    }

    fn seen(state: MirrorState, primary: bool) -> Looked {
        let info = Mirroring { state, mode: MirrorMode::Journal, primary, global_id: "g".into() };
        Looked::Seen(Box::new(MirrorSurveyed {
            id: "1".into(),
            features: 0,
            parent: None,
            snaps: vec![],
            watchers: vec![],
            report: MirrorReport { info, local: None, peers: vec![], registered: vec![] },
        }))
    }

    fn facts(image: &Looked) -> Facts<'_> {
        Facts { elsewhere: None, displaced: false, image: Some(image), replicated: true }
    }

    #[test]
    fn only_what_ceph_calls_primary_is_taken_along() {
        let primary = seen(MirrorState::Enabled, true);
        let copy = seen(MirrorState::Enabled, false);
        let plain = seen(MirrorState::Disabled, false);
        let moved = volume("in-use", Some("failed-over"));
        assert_eq!(fate(&moved, &facts(&primary)), Fate::Served);
        assert_eq!(fate(&volume("available", Some("failover-error")), &facts(&primary)), Fate::Served);
        for lost in [&copy, &Looked::Absent] {
            assert!(matches!(fate(&moved, &facts(lost)), Fate::Behind(_)));
        }
        let unreadable = Looked::Unreadable { reason: "it hangs".into() };
        for nobody_knows in [&unreadable, &plain] {
            assert!(matches!(fate(&moved, &facts(nobody_knows)), Fate::Unsure(_)), "never given up");
        }
        assert_eq!(fate(&moved, &Facts { replicated: false, ..facts(&plain) }), Fate::Served);
        let stray = Facts { elsewhere: Some("default"), ..facts(&primary) };
        assert!(matches!(fate(&moved, &stray), Fate::Behind(_)), "by its rows its users are elsewhere");
        assert!(matches!(fate(&volume("error", Some("failover-error")), &facts(&primary)), Fate::Behind(_)));
        assert!(matches!(fate(&volume("in-use", Some("enabling")), &facts(&primary)), Fate::Unsure(_)));
    }

    #[test]
    fn what_is_not_mirrored_must_be_there() {
        let plain = seen(MirrorState::Disabled, false);
        let absent = Looked::Absent;
        let made_there = volume("available", Some("disabled"));
        assert_eq!(fate(&made_there, &facts(&plain)), Fate::Untouched);
        assert!(matches!(fate(&volume("available", None), &facts(&absent)), Fate::Behind(_)));
        let left = Facts { displaced: true, ..facts(&absent) };
        assert!(matches!(fate(&volume("error", Some("not-capable")), &left), Fate::Behind(_)));
        for nothing in [volume("error", Some("disabled")), volume("creating", None)] {
            assert_eq!(fate(&nothing, &facts(&absent)), Fate::Untouched);
        }
    }
}
