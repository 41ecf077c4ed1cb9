//! What two sites have in common: images, volumes, backends, backups. What it costs to part them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::orders::Disconnect;
use super::pair::End;
use super::plan::On;
use super::stored::Stored;
use crate::db::peer_link::{self, Mirrored};
use crate::db::site_use;
use crate::error::{Code, Error, Result};
use crate::rbd::protocol::*;
use crate::rbd::types::{ImageName, MirrorState};
use crate::site::Sites;

/// Mirrored images that are read at once.
const PAGE: u32 = 500;
/// How many are named in a sentence.
const SHOWN: usize = 8;

/// A mirrored image on one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) on: On,
    pub(super) pool: String,
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    pub(super) primary: bool,
    /// Clones of it there that are no copies themselves: backups, and drills.
    pub(super) clones: Vec<ImageName>,
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) images: Vec<Image>,
    /// Volumes whose images are among them, and those of backends that work with both sites.
    pub(super) volumes: Vec<Mirrored>,
    /// Backends that work with both sites.
    pub(super) backends: Vec<String>,
    /// Those of them that are served from the site that goes.
    pub(super) served_there: Vec<String>,
    /// Backups on the site that goes.
    pub(super) stored: Stored,
}

impl Census {
    /// Looks at the pools on the sites that are alive. `whole`: they are all that connect the two.
    pub(super) async fn take(
        sites: &Sites,
        a: &End,
        b: &End,
        living: bool,
        pools: &[String],
        whole: bool,
    ) -> Result<Census> {
        let mut images = Vec::new();
        for (on, end) in std::iter::once((On::A, a)).chain(living.then_some((On::B, b))) {
            for pool in pools {
                images.extend(mirrored(on, end, pool).await?);
            }
        }
        let copies: Vec<Image> = images.iter().filter(|image| image.is_copy()).cloned().collect();
        for image in &mut images {
            // A mirrored clone of a mirrored image is a copy like any other.
            image
                .clones
                .retain(|c| !copies.iter().any(|i| i.pool == c.pool && i.name == c.image && !c.trash));
        }
        let only = (!whole).then_some(pools);
        let stored = Stored::find(sites, b, living, only, pools, &copies).await?;
        let name_ids: Vec<String> = images.iter().filter_map(|image| volume_of(&image.name)).collect();
        let (kept, gone) = (a.row.fsid.as_str(), b.row.fsid.as_str());
        let (volumes, backends, served_there) = sites
            .db
            .read("what two sites share", async |conn| {
                let (here, there) =
                    (site_use::of(conn, Some(kept)).await?, site_use::of(conn, Some(gone)).await?);
                let shared = |name: &str| here.iter().any(|u| u.backend == name && pools.contains(&u.pool));
                let both: Vec<_> = there.into_iter().filter(|u| shared(&u.backend)).collect();
                let mut backends: Vec<String> = both.iter().map(|u| u.backend.clone()).collect();
                backends.dedup();
                let mut served = Vec::new();
                for row in &both {
                    if peer_link::active_site(conn, &row.backend).await? == row.site {
                        served.push(row.backend.clone());
                    }
                }
                let volumes = peer_link::volumes(conn, &name_ids, &backends).await?;
                Ok((volumes, backends, served))
            })
            .await?;
        Ok(Census { images, volumes, backends, served_there, stored })
    }

    /// Copies on the site that goes.
    pub(super) fn copies(&self) -> impl Iterator<Item = &Image> {
        self.images.iter().filter(|image| image.is_copy())
    }

    /// Fails for what the order does not override.
    ///
    /// # Errors
    /// `Invalid`, with a list of all that it takes a word more for.
    pub(super) fn refuse(&self, order: &Disconnect, a: &End, b: &End, living: bool) -> Result<()> {
        self.refuse_always(a, b)?;
        let (here, there) = (a.row.name.as_str(), b.row.name.as_str());
        self.stored.refuse_running(there)?;
        if order.delete_backups.is_some() && !living && !self.stored.rows.is_empty() {
            return Err(Error::new(
                Code::Invalid,
                format!(
                    "Site {there} does not answer, so that nobody can delete the backups there. Disconnect when it is back,                      or let them stay there (--flatten-backups)"
                ),
            ));
        }
        let (mut reasons, mut ways) = (Vec::new(), Vec::new());
        if !order.force {
            reasons.extend(self.reasons_of_mirroring());
            if !reasons.is_empty() {
                ways.push(
                    "With --force their mirroring is ended; volumes become replication_status=disabled."
                        .to_owned(),
                );
            }
        }
        if !order.flatten_backups {
            let stored = self.stored.reason(there).filter(|_| order.delete_backups.is_none());
            if stored.is_some() {
                ways.push(
                    "With --flatten-backups backups stay there, with --delete-backups they are deleted."
                        .to_owned(),
                );
            }
            let cloned = self.reason_of_clones(there);
            if cloned.is_some() {
                ways.push("With --flatten-backups clones are made independent of the copies.".to_owned());
            }
            reasons.extend(stored.into_iter().chain(cloned));
        }
        match reasons.is_empty() {
            true => Ok(()),
            false => Err(Error::new(
                Code::Invalid,
                format!("Sites {here} and {there} share: {}. {}", reasons.join("; "), ways.join(" ")),
            )),
        }
    }

    /// What nobody may override.
    fn refuse_always(&self, a: &End, b: &End) -> Result<()> {
        let (here, there) = (&a.row.name, &b.row.name);
        let refuse = |text: String| Err(Error::new(Code::Invalid, text));
        if !self.served_there.is_empty() {
            return refuse(format!(
                "Site {there} serves backends: {}. Fail them back to {here}, or make {there} their own \
                 (scoria-manage replication adopt), first",
                self.served_there.join(", ")
            ));
        }
        let busy = self.volumes.iter().filter(|v| v.backups_running > 0);
        let busy: Vec<&str> = busy.map(|v| v.id.as_str()).collect();
        if !busy.is_empty() {
            return refuse(format!("Backups of {} run: wait for their end", some(&busy)));
        }
        let changing = |v: &&Mirrored| {
            matches!(v.replication_status.as_str(), "enabling" | "disabling" | "failing-over")
        };
        let changing: Vec<&str> = self.volumes.iter().filter(changing).map(|v| v.id.as_str()).collect();
        if !changing.is_empty() {
            return refuse(format!(
                "The replication of {} is being changed: wait for its end",
                some(&changing)
            ));
        }
        let away = |image: &&Image| {
            image.on == On::A
                && !image.primary
                && volume_of(&image.name).is_some_and(|id| self.volumes.iter().any(|v| v.name_id == id))
        };
        let away: Vec<&str> = self.images.iter().filter(away).map(|image| image.name.as_str()).collect();
        if !away.is_empty() {
            return refuse(format!(
                "{} of Cinder are not primary on site {here}: they are served from {there}, or from nowhere. Bring \
                 them home first (scoria-manage replication retry)",
                some(&away)
            ));
        }
        Ok(())
    }

    /// What it takes a `force` to override.
    fn reasons_of_mirroring(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let primaries: Vec<&Image> = self.images.iter().filter(|image| image.primary).collect();
        if !primaries.is_empty() {
            let bytes: u64 = primaries.iter().map(|image| image.size).sum();
            let names: Vec<String> =
                primaries.iter().map(|i| format!("{}/{} ({})", i.pool, i.name, human(i.size))).collect();
            reasons.push(format!(
                "{} images of {} are mirrored: {}",
                primaries.len(),
                human(bytes),
                listed(&names)
            ));
        }
        if !self.backends.is_empty() {
            reasons.push(format!("backends work with both: {}", self.backends.join(", ")));
        }
        reasons
    }

    /// Copies that something hangs on.
    fn reason_of_clones(&self, there: &str) -> Option<String> {
        let cloned: Vec<String> = self
            .copies()
            .filter(|image| !image.clones.is_empty())
            .map(|image| {
                let clones: Vec<String> = image
                    .clones
                    .iter()
                    .map(|c| format!("{}/{}{}", c.pool, c.image, if c.trash { " in the trash" } else { "" }))
                    .collect();
                format!("{}/{} ({}): {}", image.pool, image.name, human(image.size), listed(&clones))
            })
            .collect();
        (!cloned.is_empty()).then(|| {
            format!("copies on {there} have clones, which are backups or drills: {}", listed(&cloned))
        })
    }

    /// For who asks.
    pub(super) fn view(&self) -> Value {
        let image = |i: &Image| {
            json!({"pool": i.pool, "image": i.name, "bytes": i.size, "primary_here": i.on == On::A && i.primary,
                "clones": i.clones.iter().map(|c| format!("{}/{}", c.pool, c.image)).collect::<Vec<_>>()})
        };
        let copies: Vec<&Image> = self.copies().collect();
        json!({
            "images": self.images.iter().filter(|i| i.primary).map(image).collect::<Vec<_>>(),
            "copies": copies.iter().map(|i| image(i)).collect::<Vec<_>>(),
            "copies_bytes": copies.iter().map(|i| i.size).sum::<u64>(),
            "volumes": self.volumes.iter().filter(|v| is_mirrored(v)).map(|v| v.id.clone()).collect::<Vec<_>>(),
            "backends": self.backends,
            "backups": self.stored.view(),
            "backups_gib": self.stored.gib(),
        })
    }
}

impl Image {
    /// A copy on the site that goes.
    fn is_copy(&self) -> bool {
        self.on == On::B && !self.primary
    }
}

/// Whether a row says that the volume is mirrored, or was to be.
pub(super) fn is_mirrored(volume: &Mirrored) -> bool {
    matches!(volume.replication_status.as_str(), "enabled" | "error" | "failed-over" | "failover-error")
}

/// The id in an image's name, when it may be a volume's.
pub(super) fn volume_of(image: &str) -> Option<String> {
    let start = image.len().checked_sub(36)?;
    let id = image.get(start..)?;
    (Uuid::parse_str(id).is_ok() && image.get(..start)?.ends_with('-')).then(|| id.to_owned())
}

/// The mirrored images of a pool; one in the trash has no name and is nobody's to touch.
async fn mirrored(on: On, end: &End, pool: &str) -> Result<Vec<Image>> {
    let of = |e| end.explain(e);
    let (mut after, mut names) = (String::new(), Vec::new());
    loop {
        let ask = MirrorStatusPage { pool: pool.to_owned(), after: after.clone(), limit: PAGE };
        let page = match end.site.insist(ask).await {
            Err(e) if e.kind == crate::rbd::RbdErrorKind::NoPool => return Ok(vec![]),
            other => other.map_err(of)?,
        };
        let Some(last) = page.images.last() else { break };
        after.clone_from(&last.id);
        names.extend(
            page.images.iter().filter(|image| image.name != image.id).map(|image| image.name.clone()),
        );
    }
    names.sort();
    let mut found = Vec::with_capacity(names.len());
    for chunk in names.chunks(200) {
        let (pool, images) = (pool.to_owned(), chunk.to_vec());
        let infos = MirrorInfoMany { pool: pool.clone(), images: images.clone() };
        let infos = end.site.insist(infos).await.map_err(of)?;
        let sizes = ImageSurvey { pool: pool.clone(), images: images.clone() };
        let sizes = end.site.insist(sizes).await.map_err(of)?;
        for ((name, info), size) in images.into_iter().zip(infos).zip(sizes) {
            let Some(info) = info.filter(|info| info.state != MirrorState::Disabled) else { continue };
            let clones = match on == On::B && !info.primary {
                true => {
                    let ask = ImageChildren { pool: pool.clone(), image: name.clone(), snap: None };
                    end.site.insist(ask).await.map_err(of)?
                }
                false => vec![],
            };
            let size = size.map_or(0, |seen| seen.size);
            found.push(Image { on, pool: pool.clone(), name, size, primary: info.primary, clones });
        }
    }
    Ok(found)
}

/// `12.5 GiB`.
pub(super) fn human(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, next);
    }
    if unit == "B" || size.fract() == 0.0 { format!("{size:.0} {unit}") } else { format!("{size:.1} {unit}") }
}

/// The first of them, and how many more there are.
pub(super) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// `2 volumes (x, y)`.
fn some(ids: &[&str]) -> String {
    format!("{} volumes ({})", ids.len(), listed(ids))
}

/// Pools by the images of a census that match.
pub(super) fn by_pool<'a>(images: impl Iterator<Item = &'a Image>) -> BTreeMap<&'a str, Vec<&'a Image>> {
    let mut pools: BTreeMap<&str, Vec<&Image>> = BTreeMap::new();
    for image in images {
        pools.entry(&image.pool).or_default().push(image);
    }
    pools
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_told_by_the_id_in_its_images_name() {
        let id = "457eb676-33da-42ec-9a8c-9293d545c337";
        assert_eq!(volume_of(&format!("volume-{id}")).as_deref(), Some(id));
        assert_eq!(volume_of(&format!("cinder-v-{id}")).as_deref(), Some(id));
        for other in ["volume-x", id, "", "volume-457eb676-33da-42ec-9a8c-9293d545c33", "ä"] {
            assert_eq!(volume_of(other), None, "{other}");
        }
    }

    #[test]
    fn sizes_are_read_by_people() {
        let all = [0, 1023, 1024, 1536, 5 << 30, (5 << 30) + (1 << 29), 3 << 40].map(human);
        assert_eq!(all, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "5 GiB", "5.5 GiB", "3 TiB"]);
        assert_eq!(listed(&["a"; 10]), "a, a, a, a, a, a, a, a and 2 more");
    }
}
