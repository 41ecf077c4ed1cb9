//! Removing an image, and everything that hangs on it or that only it needed.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::adoption::{PIN, is_drill_snapshot};
use super::{Attempt, BUSY_TRIES, BUSY_WAIT, CLONE_SNAP, DELETED, Place, repeat};
use crate::rbd::protocol::*;
use crate::rbd::types::{Inspection, MirrorMode, MirrorState, Parent};
use crate::rbd::{RbdError, RbdErrorKind};

/// How long a removal waits for the snapshot that rbd-mirror keeps during a first copy by journal. A new
/// volume's copy is over in a second or two; a large one's may take hours, and nobody waits for that.
const FIRST_COPY: Duration = Duration::from_secs(60);
/// First and longest pause meanwhile; doubles.
const FIRST_COPY_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// How long a removal waits for watches that only dead clients hold, and how often it looks. An OSD drops a
/// fenced client's watch at once, but forgets one whose connection was reset while it was being made until
/// the object leaves its cache; then `osd_client_watch_timeout` (30 s) passes.
const FORGOTTEN_WATCH: Duration = Duration::from_secs(60);
const FORGOTTEN_WATCH_PAUSE: Duration = Duration::from_secs(3);

/// How long a removal waits for the flattening of an image that was restored by a clone of a backup. That of a large
/// volume may take hours, and then whoever deletes it is told that it is in use.
const FLATTENING: Duration = Duration::from_secs(600);
const FLATTENING_PAUSE: Duration = Duration::from_secs(2);

impl Place {
    /// Removes what a failed creation left: the image, and the helper snapshot on its `source`, the image of
    /// the volume that it was to be a clone of. Errors are for the caller's log: the volume is in error
    /// anyway, and deleting it tries again.
    pub async fn undo_create(&self, image: &str, source: Option<&str>) -> Result<(), RbdError> {
        self.remove_if_there(image).await?;
        if let Some(source) = source {
            self.drop_snapshot_quietly(source, &format!("{image}{CLONE_SNAP}")).await;
        }
        Ok(())
    }

    /// Removes what an attempt that was cut short has left of an image, so that the next one finds nothing; the
    /// watch of a client that is dead is waited for.
    pub async fn clear_away(&self, image: &str) -> Result<(), RbdError> {
        self.remove_patiently(image).await
    }

    /// What there is to delete; `None` when the image is gone. [`Place::helpers`] and [`Place::delete`] go by
    /// it, so that an ordinary deletion opens its image once before it is removed.
    pub async fn inspect(&self, image: &str) -> Result<Option<Inspection>, RbdError> {
        let inspect = ImageInspect { pool: self.pool.clone(), image: image.to_owned() };
        match self.site.insist(inspect).await {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Deletes a volume's image as upstream's `delete_volume` does (reference rbd_driver.md 4.7), and then
    /// cleans what upstream leaves behind: the helper snapshot on its parent, and `.deleted` parents that
    /// nobody needs any more: `helpers` are [`Place::helpers`] as they were before the first attempt, `found`
    /// is what [`Place::inspect`] says now. `Busy` when it has watchers.
    ///
    /// With `deferred` the image waits in the trash for so long, and needs its parents meanwhile: the purge of
    /// the trash cleans up.
    pub async fn delete(
        &self,
        image: &str,
        found: Option<&Inspection>,
        deferred: Option<Duration>,
        helpers: &[Parent],
    ) -> Result<(), RbdError> {
        let Some(Inspection { snaps, .. }) = found else {
            if let Some(delay) = deferred {
                // A move that was cut short leaves a name, too; its image is to be had back all the same.
                self.move_to_trash(image, delay).await?;
            }
            // A removal or a creation that was cut short leaves a name that cannot be opened.
            self.remove_if_there(image).await?;
            if deferred.is_some() {
                return Ok(());
            }
            // Renamed by a former attempt because clones need it: they need its parent, too.
            match self.stat(&format!("{image}{DELETED}")).await {
                Ok(_) => {}
                Err(e) if e.is_not_found() => self.tidy(helpers, None).await,
                Err(e) => return Err(e),
            }
            return Ok(());
        };
        for snap in snaps.iter().filter(|s| is_backup_snapshot(&s.name) || is_drill_snapshot(&s.name)) {
            self.remove_snapshot(image, &snap.name).await?;
        }
        let mut needed = false;
        for snap in snaps.iter().filter(|s| s.name.ends_with(CLONE_SNAP)) {
            if self.children(image, &snap.name).await?.is_empty() {
                self.remove_snapshot(image, &snap.name).await?;
            } else {
                needed = true;
            }
        }
        if needed {
            let rename = ImageRename {
                pool: self.pool.clone(),
                from: image.to_owned(),
                to: format!("{image}{DELETED}"),
            };
            return repeat(&self.site, rename, Attempt::First, RbdErrorKind::NotFound).await;
        }
        if let Some(delay) = deferred {
            return self.defer(image, delay).await;
        }
        self.remove_patiently(image).await?;
        self.tidy(helpers, None).await;
        Ok(())
    }

    /// What a volume was cloned from by way of helper snapshots, nearest first: what deleting it may leave
    /// behind. To be remembered before [`Place::delete`], for when that has to be run again.
    pub async fn helpers(&self, image: &str, found: Option<&Inspection>) -> Result<Vec<Parent>, RbdError> {
        let mut helpers = Vec::new();
        let mut current = image.to_owned();
        let mut parent = found.and_then(|found| found.info.parent.clone());
        while let Some(helper) = parent.filter(|p| self.is_helper(p, &current)) {
            current = helper.image.clone();
            helpers.push(helper);
            parent = match self.stat(&current).await {
                Ok(stat) => stat.parent,
                Err(e) if e.is_not_found() => None,
                Err(e) => return Err(e),
            };
        }
        Ok(helpers)
    }

    /// Upwards as long as each parent is only kept for the child just removed; with `deferred` to the first that goes,
    /// which needs its own parent until it is purged. Errors are for the log: what stays is removed with the parent.
    pub async fn tidy(&self, helpers: &[Parent], deferred: Option<Duration>) {
        for p in helpers {
            // A parent that was deleted since has another name.
            let mut name = p.image.clone();
            if !name.ends_with(DELETED) && matches!(self.stat(&name).await, Err(e) if e.is_not_found()) {
                name.push_str(DELETED);
            }
            if let Err(error) = self.remove_snapshot(&name, &p.snap).await {
                warn!(image = name, snap = p.snap, %error, "could not remove the helper snapshot of a deleted clone");
                return;
            }
            if !name.ends_with(DELETED) {
                return;
            }
            let list = SnapList { pool: self.pool.clone(), image: name.clone() };
            match self.site.insist(list).await {
                Ok(snaps) if snaps.is_empty() => {
                    let gone = match deferred {
                        Some(delay) => self.defer(&name, delay).await,
                        None => self.remove_patiently(&name).await,
                    };
                    if let Err(error) = &gone {
                        warn!(image = name, %error, "could not remove a parent that nobody needs any more");
                    }
                    if gone.is_err() || deferred.is_some() {
                        return;
                    }
                }
                // Removed by a former attempt, but for the name perhaps; its own parent may not have been seen to.
                Err(error) if error.is_not_found() && deferred.is_none() => {
                    if let Err(error) = self.remove_if_there(&name).await {
                        warn!(image = name, %error, "could not remove what is left of a parent");
                    }
                }
                Ok(_) | Err(_) => return,
            }
        }
    }

    async fn remove_patiently(&self, image: &str) -> Result<(), RbdError> {
        let mut wait = BUSY_WAIT;
        let mut tries = BUSY_TRIES;
        let (copied_by, mut pause) = (Instant::now() + FIRST_COPY, FIRST_COPY_PAUSE.0);
        let forgotten_until = Instant::now() + FORGOTTEN_WATCH;
        let flattened_by = Instant::now() + FLATTENING;
        let mut swept = false;
        loop {
            let error = match self.remove_if_there(image).await {
                Ok(()) => return Ok(()),
                Err(e) => e,
            };
            if error.kind == RbdErrorKind::HasSnapshots && !swept {
                swept = true;
                let sweep = SyncPointsRemove { pool: self.pool.clone(), image: image.to_owned() };
                match self.site.insist(sweep).await {
                    Ok(0) => {}
                    Err(e) if e.is_not_found() => return Ok(()),
                    Ok(_) => continue,
                    // It is only that the removal takes longer then.
                    Err(error) => warn!(image, %error, "could not remove what interrupted copies have left"),
                }
            }
            if error.kind == RbdErrorKind::HasSnapshots
                && Instant::now() < copied_by
                && self.is_being_copied(image).await?
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(FIRST_COPY_PAUSE.1);
                continue;
            }
            if error.kind == RbdErrorKind::Busy && self.only_the_dead_watch(image).await? {
                if Instant::now() >= forgotten_until {
                    return self.discard(image).await;
                }
                tokio::time::sleep(FORGOTTEN_WATCH_PAUSE).await;
                continue;
            }
            if error.kind == RbdErrorKind::Busy
                && Instant::now() < flattened_by
                && self.reads_from_backup(image).await?
            {
                tokio::time::sleep(FLATTENING_PAUSE).await;
                continue;
            }
            tries -= 1;
            match error.kind {
                RbdErrorKind::HasSnapshots | RbdErrorKind::Busy if tries > 0 => {
                    gone_or(self.flatten_children(image, None).await, ())?;
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                // Snapshots remain (clone format 2 keeps them while clones exist): the trash takes the name away.
                RbdErrorKind::HasSnapshots => return self.discard(image).await,
                _ => return Err(error),
            }
        }
    }

    /// Whether an image has watchers, and all of them are clients that have been fenced.
    async fn only_the_dead_watch(&self, image: &str) -> Result<bool, RbdError> {
        let ask = ImageWatchers { pool: self.pool.clone(), image: image.to_owned() };
        let watchers = match self.site.insist(ask).await {
            Ok(watchers) if watchers.is_empty() => return Ok(false),
            Ok(watchers) => watchers,
            Err(e) if e.is_not_found() => return Ok(false),
            Err(e) => return Err(e),
        };
        let fenced = self.site.insist(BlocklistList {}).await?;
        Ok(watchers.iter().all(|w| fenced.contains(&w.address)))
    }

    /// Whether an image is a clone of a backup: the backup service, which is flattening it, may be who has it open.
    async fn reads_from_backup(&self, image: &str) -> Result<bool, RbdError> {
        let found = self.stat(image).await;
        gone_or(found.map(|info| info.parent.is_some_and(|parent| parent.image.starts_with(PIN))), false)
    }

    /// Whether the snapshot that keeps an image from being removed may be rbd-mirror's: nothing else of it
    /// shows, it is mirrored by journal, and no clone hangs on a snapshot in hiding.
    async fn is_being_copied(&self, image: &str) -> Result<bool, RbdError> {
        let (pool, image) = (self.pool.clone(), image.to_owned());
        let ask = MirrorInfo { pool: pool.clone(), image: image.clone() };
        let mirrored = match self.site.insist(ask).await {
            Ok(info) => info.state == MirrorState::Enabled && info.mode == MirrorMode::Journal,
            Err(e) if e.is_not_found() => return Ok(false),
            Err(e) => return Err(e),
        };
        if !mirrored {
            return Ok(false);
        }
        let snaps = SnapList { pool: pool.clone(), image: image.clone() };
        let children = ImageChildren { pool, image, snap: None };
        let shows_nothing = async {
            Ok(self.site.insist(snaps).await?.is_empty() && self.site.insist(children).await?.is_empty())
        };
        gone_or(shows_nothing.await, false)
    }

    /// Puts an image that cannot be removed yet into the trash, and removes it from there: the move ends its
    /// mirroring, and that takes rbd-mirror's snapshot away. What clones still need stays in the trash.
    async fn discard(&self, image: &str) -> Result<(), RbdError> {
        let id = match self.stat(image).await {
            Ok(stat) => stat.id,
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        };
        self.move_to_trash(image, Duration::ZERO).await?;
        let mut wait = BUSY_WAIT;
        for left in (0..BUSY_TRIES).rev() {
            let remove = TrashRemove { pool: self.pool.clone(), id: id.clone() };
            match self.site.call(remove).await {
                Ok(()) => break,
                Err(e) if e.is_not_found() => break,
                // The daemon that was copying has it open for a moment more.
                Err(e) if left > 0 && (e.kind == RbdErrorKind::Busy || e.effect_unknown()) => {
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                // The volume's name is free, and that is what its deletion promised.
                Err(error) => {
                    warn!(image, id, %error, "a deleted image stays in the trash");
                    break;
                }
            }
        }
        Ok(())
    }
}

/// What was asked about an image that may vanish meanwhile: requests of a worker that has died are carried out for a moment
/// more, and a removal that it had begun is ended by them.
fn gone_or<T>(answer: Result<T, RbdError>, gone: T) -> Result<T, RbdError> {
    match answer {
        Err(e) if e.is_not_found() => Ok(gone),
        other => other,
    }
}

/// `backup.<backup id>.snap.<time>`: a snapshot of cinder-backup's Ceph driver.
fn is_backup_snapshot(name: &str) -> bool {
    name.strip_prefix("backup.").and_then(|rest| rest.split_once(".snap.")).is_some_and(|(id, time)| {
        !id.is_empty()
            && !time.is_empty()
            && id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Shape;
    use super::*;
    use crate::rbd::sim::{Fault, Sim, SimConfig, When};

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_leaves_its_backup_is_removed_when_it_has_and_the_backup_stays() {
        let sim = Sim::new(SimConfig { clone_v2: true, ..SimConfig::default() });
        let place = Place { site: sim.site("a"), pool: "volumes".to_owned() };
        let backups = Place { site: sim.site("a"), pool: "backups".to_owned() };
        let pin = format!("{PIN}v.b");
        backups.create(&pin, 1 << 30, Shape { order: 22, features: 61 }, Attempt::First).await.unwrap();
        let (pool, image, snap) = (backups.pool.clone(), pin.clone(), "backup.b.snap.1".to_owned());
        backups.site.call(SnapCreate { pool, image, snap }).await.unwrap();
        let clone = ReplicaClone {
            pool: backups.pool.clone(),
            image: pin.clone(),
            snap: "backup.b.snap.1".to_owned(),
            dest_pool: place.pool.clone(),
            dest: "v".to_owned(),
            features: 61,
            order: 22,
        };
        place.site.call(clone).await.unwrap();
        let flattener = sim.watch("a", "volumes", "v").unwrap();
        let flattening = async {
            tokio::time::sleep(Duration::from_secs(300)).await;
            place.flatten("v").await.unwrap();
            sim.release("a", "volumes", "v", &flattener);
        };
        let found = place.inspect("v").await.unwrap();
        let (removed, ()) = tokio::join!(place.delete("v", found.as_ref(), None, &[]), flattening);
        removed.unwrap();
        assert!(sim.image("a", "volumes", "v").is_none());
        assert_eq!(sim.image("a", "backups", &pin).unwrap().snaps, ["backup.b.snap.1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_that_vanishes_while_it_is_asked_about_is_removed() {
        let sim = Sim::new(SimConfig::default());
        let place = Place { site: sim.site("a"), pool: "volumes".to_owned() };
        place.create("v", 1 << 30, Shape { order: 22, features: 61 }, Attempt::First).await.unwrap();
        let found = place.inspect("v").await.unwrap();
        // The requests of a worker that has died end the removal that it had begun.
        sim.inject(Fault::on("ImageRemove").fails(When::Before, RbdErrorKind::Busy).times(1));
        sim.inject(Fault::on("ImageChildren").fails(When::Before, RbdErrorKind::NotFound).times(1));
        place.delete("v", found.as_ref(), None, &[]).await.unwrap();
        assert_eq!((sim.count("ImageRemove"), sim.count("ImageChildren")), (2, 1));
        assert!(sim.image("a", "volumes", "v").is_none());
    }

    #[test]
    fn snapshots_of_backups_are_known_by_name() {
        assert!(is_backup_snapshot("backup.0a1b-2c.snap.1700000000.12"));
        assert!(!is_backup_snapshot("snapshot-0a1b"));
        assert!(!is_backup_snapshot("backup..snap.1"));
    }
}
