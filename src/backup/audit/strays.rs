//! What is stored that no backup has: images, their snapshots, and objects.

use std::collections::BTreeSet;

use super::places::{Places, Spot};
use super::standing::{self, Named, Standing, named, of_object, of_snapshot};
use super::{Audit, Finding, Kind, Looked, NAMED, Removal, go_on};
use crate::backup::{Backups, images, is_unsettled};
use crate::error::Result;
use crate::rbd::protocol::{ImageChildren, ImageList, ImageSurvey, MirrorInfo, ObjectList};
use crate::rbd::types::{MirrorState, Snap, Surveyed};
use crate::rbd::{RbdError, RbdErrorKind};

/// Images that are opened for one question.
const IMAGES: usize = 64;
/// Parts in which the objects of a pool are gone through.
const PARTS: u32 = 64;

/// An image with what it has.
struct Seen {
    image: String,
    named: Named,
    /// `None`: it cannot be opened.
    found: Option<Surveyed>,
}

/// Looks at one place, and says how that went.
///
/// # Errors
/// `Database`, `Cancelled`.
pub(super) async fn look(b: &Backups, places: &Places, at: usize, audit: &mut Audit) -> Result<()> {
    let spot = &places.spots[at];
    if at == 0 {
        for (site, pool, why) in &places.unknown {
            let trouble = Some(why.clone());
            let (site, pool) = (site.clone(), pool.clone());
            audit.places.push(Looked { site, pool, backups: true, trouble, ..Looked::default() });
        }
    }
    let mut looked = Looked {
        site: spot.label.clone(),
        pool: spot.place.pool.clone(),
        backups: spot.backups,
        volumes: spot.volumes,
        trouble: spot.trouble.clone(),
        ..Looked::default()
    };
    if looked.trouble.is_none() {
        let mut walk = Walk { b, spot, at, audit, looked: &mut looked };
        let went = match walk.images().await {
            Ok(()) if spot.backups => walk.objects().await,
            other => other,
        };
        match went {
            Err(error) if is_unsettled(&error) => return Err(error),
            Err(error) => looked.trouble = Some(error.operator()),
            Ok(()) => {}
        }
    }
    audit.places.push(looked);
    Ok(())
}

struct Walk<'a> {
    b: &'a Backups,
    spot: &'a Spot,
    at: usize,
    audit: &'a mut Audit,
    looked: &'a mut Looked,
}

impl Walk<'_> {
    async fn images(&mut self) -> Result<()> {
        let pool = self.spot.place.pool.clone();
        let names = match self.spot.place.site.insist(ImageList { pool }).await {
            Ok(names) => names,
            // Rows of long ago may name it; a loss is told of the backup.
            Err(error) if error.kind == RbdErrorKind::NoPool && self.spot.backups && !self.spot.volumes => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.looked.images = names.len() as u64;
        let mut wanted = Vec::new();
        for name in names {
            let named = if self.spot.backups { named(&name) } else { Named::Other };
            if named == Named::Other && !self.spot.volumes {
                self.unknown(name);
            } else {
                wanted.push((name, named));
            }
        }
        for chunk in wanted.chunks(IMAGES) {
            go_on(self.b)?;
            let asked: Vec<String> = chunk.iter().map(|(name, _)| name.clone()).collect();
            let survey = ImageSurvey { pool: self.spot.place.pool.clone(), images: asked };
            let found = self.spot.place.site.insist(survey).await?;
            let seen = chunk.iter().zip(found).map(|((image, named), found)| Seen {
                image: image.clone(),
                named: named.clone(),
                found,
            });
            self.judge(seen.collect()).await?;
        }
        Ok(())
    }

    fn unknown(&mut self, image: String) {
        self.looked.unknown += 1;
        if self.looked.unknown_images.len() < NAMED {
            self.looked.unknown_images.push(image);
        }
    }

    async fn judge(&mut self, seen: Vec<Seen>) -> Result<()> {
        let (mut ids, mut volumes) = (BTreeSet::new(), BTreeSet::new());
        for one in &seen {
            match &one.named {
                Named::Own { volume, backup } => {
                    ids.insert(backup.clone());
                    volumes.insert(volume.clone());
                }
                Named::Legacy { volume } => {
                    volumes.insert(volume.clone());
                }
                Named::Other => {}
            }
            let snaps = one.found.iter().flat_map(|found| &found.snaps);
            ids.extend(snaps.filter_map(|snap| of_snapshot(&snap.name)).map(str::to_owned));
        }
        let ids: Vec<String> = ids.into_iter().collect();
        let volumes: Vec<String> = volumes.into_iter().collect();
        let standing = Standing::read(self.b, &ids, &volumes).await?;
        for one in seen {
            let snaps: &[Snap] = one.found.as_ref().map_or(&[], |found| &found.snaps);
            let gone: Vec<&str> = snaps
                .iter()
                .filter(|snap| of_snapshot(&snap.name).is_some_and(|id| !standing.lives(id)))
                .map(|snap| snap.name.as_str())
                .collect();
            let belongs = snaps.iter().filter_map(|s| of_snapshot(&s.name)).any(|id| standing.lives(id));
            match &one.named {
                Named::Own { volume, backup }
                    if !belongs && !standing.lives(backup) && !standing.is_base(volume, &one.image) =>
                {
                    self.orphan_image(&one, backup, &standing).await?;
                    continue;
                }
                Named::Legacy { volume } if !belongs && !standing.is_base(volume, &one.image) => {
                    self.unknown(one.image.clone());
                }
                _ => {}
            }
            if !gone.is_empty() {
                self.orphan_snapshots(&one.image, &gone, &standing).await?;
            }
        }
        Ok(())
    }

    async fn orphan_image(&mut self, seen: &Seen, backup: &str, standing: &Standing) -> Result<()> {
        let Some(orphan) = Orphan::look(self.spot, &seen.image).await? else { return Ok(()) };
        let mut ids: BTreeSet<&str> = orphan.snaps.iter().filter_map(|snap| of_snapshot(snap)).collect();
        ids.insert(backup);
        let removal = standing.removal(ids.iter().copied());
        let text = match &orphan.obstacle {
            Some(why) => format!("{}; it stays: {why}", standing::word(removal)),
            None => standing::word(removal).to_owned(),
        };
        let removal = if orphan.obstacle.is_some() { Removal::Never } else { removal };
        let backups = ids.into_iter().map(str::to_owned).collect();
        self.audit.found(Finding {
            image: Some(seen.image.clone()),
            backups,
            removal,
            text,
            ..self.finding(Kind::OrphanImage)
        });
        Ok(())
    }

    async fn orphan_snapshots(&mut self, image: &str, gone: &[&str], standing: &Standing) -> Result<()> {
        if is_copy(self.spot, image).await? {
            return Ok(());
        }
        let Some(now) = images::inspect(&self.spot.place, image).await? else { return Ok(()) };
        for snap in now.snaps.iter().filter(|snap| gone.contains(&snap.name.as_str())) {
            let Some(id) = of_snapshot(&snap.name) else { continue };
            let mut removal = standing.removal([id]);
            let mut text = standing::word(removal).to_owned();
            if snap.protected {
                removal = Removal::Never;
                text.push_str("; it stays: it is protected, something may be cloned from it");
            }
            self.audit.found(Finding {
                image: Some(image.to_owned()),
                snap: Some(snap.name.clone()),
                backups: vec![id.to_owned()],
                removal,
                text,
                ..self.finding(Kind::OrphanSnapshot)
            });
        }
        Ok(())
    }

    async fn objects(&mut self) -> Result<()> {
        for part in 0..PARTS {
            go_on(self.b)?;
            let list = ObjectList {
                pool: self.spot.place.pool.clone(),
                prefix: "backup.".to_owned(),
                part,
                parts: PARTS,
            };
            let names = match self.spot.place.site.insist(list.clone()).await {
                Ok(names) => names,
                Err(error) if error.kind == RbdErrorKind::NoPool && !self.spot.volumes => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let names: Vec<String> = names.into_iter().filter(|name| of_object(name).is_some()).collect();
            self.looked.objects += names.len() as u64;
            let ids: BTreeSet<String> =
                names.iter().filter_map(|name| of_object(name)).map(str::to_owned).collect();
            let standing = Standing::read(self.b, &ids.into_iter().collect::<Vec<_>>(), &[]).await?;
            let lives = |name: &String| of_object(name).is_some_and(|id| standing.lives(id));
            if names.iter().all(lives) {
                continue;
            }
            // What was being deleted is gone by now.
            let again: BTreeSet<String> = self.spot.place.site.insist(list).await?.into_iter().collect();
            for name in names.iter().filter(|name| !lives(name) && again.contains(*name)) {
                let Some(id) = of_object(name) else { continue };
                let removal = standing.removal([id]);
                self.audit.found(Finding {
                    object: Some(name.clone()),
                    backups: vec![id.to_owned()],
                    removal,
                    text: standing::word(removal).to_owned(),
                    ..self.finding(Kind::OrphanObject)
                });
            }
        }
        Ok(())
    }

    fn finding(&self, kind: Kind) -> Finding {
        Finding {
            kind,
            site: self.spot.label.clone(),
            pool: self.spot.place.pool.clone(),
            image: None,
            snap: None,
            object: None,
            backups: Vec::new(),
            removal: Removal::Never,
            text: String::new(),
            place: self.at,
        }
    }
}

/// An image that no backup has, as it is now.
pub(super) struct Orphan {
    /// All its snapshots.
    pub(super) snaps: Vec<String>,
    /// Why it is not to be removed.
    pub(super) obstacle: Option<String>,
}

impl Orphan {
    /// Looks at it; `None` when it is gone, or is a copy that goes with what it is a copy of.
    ///
    /// # Errors
    /// What Ceph answers.
    pub(super) async fn look(spot: &Spot, image: &str) -> Result<Option<Orphan>, RbdError> {
        let pool = spot.place.pool.clone();
        let Some(found) = images::inspect(&spot.place, image).await? else {
            // Of a removal that was interrupted the name may be left.
            let list = ImageList { pool };
            let is_named = spot.place.site.insist(list).await?.iter().any(|name| name == image);
            return Ok(is_named.then_some(Orphan { snaps: Vec::new(), obstacle: None }));
        };
        if is_copy(spot, image).await? {
            return Ok(None);
        }
        let snaps: Vec<String> = found.snaps.iter().map(|snap| snap.name.clone()).collect();
        let mut obstacle = None;
        if let Some(foreign) = snaps.iter().find(|snap| of_snapshot(snap).is_none()) {
            obstacle = Some(format!("its snapshot {foreign} is none of a backup"));
        } else if let Some(snap) = found.snaps.iter().find(|snap| snap.protected) {
            obstacle = Some(format!("its snapshot {} is protected", snap.name));
        } else {
            let images = vec![image.to_owned()];
            let survey = ImageSurvey { pool: pool.clone(), images };
            let seen = spot.place.site.insist(survey).await?;
            if seen.iter().flatten().any(|one| one.watchers > 0) {
                obstacle = Some("somebody has it open".to_owned());
            } else {
                let ask = ImageChildren { pool, image: image.to_owned(), snap: None };
                if let Some(child) = spot.place.site.insist(ask).await?.first() {
                    obstacle = Some(format!("{}/{} is cloned from it", child.pool, child.image));
                }
            }
        }
        Ok(Some(Orphan { snaps, obstacle }))
    }
}

/// Whether the image is a copy that mirroring keeps: what it has comes and goes with its primary.
async fn is_copy(spot: &Spot, image: &str) -> Result<bool, RbdError> {
    let ask = MirrorInfo { pool: spot.place.pool.clone(), image: image.to_owned() };
    match spot.place.site.insist(ask).await {
        Ok(info) => Ok(info.state != MirrorState::Disabled && !info.primary),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}
