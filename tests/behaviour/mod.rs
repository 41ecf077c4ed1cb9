//! What Scoria relies on from Ceph, as cases that run on the simulator and on real clusters alike.
//!
//! The simulator is only worth something if it lies nowhere. So each statement about Ceph that an operation is built on is
//! one case here, written against two [`Site`]s that mirror a pool to each other, and knows
//! nothing of what is behind them. Waiting is by [`Env::eventually`] alone, whose clock is virtual in the simulator.

pub mod backups;
pub mod cluster;
pub mod drills;
pub mod failover;
pub mod images;
pub mod mirroring;
pub mod snapshots;
pub mod survey;
pub mod trash;

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use scoria::rbd::protocol::*;
use scoria::rbd::types::*;
use scoria::rbd::{RbdError, RbdErrorKind as Kind, Site};

/// `rbd_default_features` of Ceph 16.
pub const FEATURES: u64 = 61;
/// Bytes of the images of the suite.
pub const SIZE: u64 = 8 << 20;

/// What a case ends with.
pub type Case = anyhow::Result<()>;

/// Where a case runs.
pub struct Env {
    /// The first site.
    pub a: Site,
    /// The second site: a two-way mirroring peer for `pool`.
    pub b: Site,
    /// A pool with mirroring in image mode on both sites.
    pub pool: String,
    /// A pool without mirroring, on both sites.
    pub plain_pool: String,
    /// Makes the names of this run unique.
    pub run: String,
    /// How long [`Env::eventually`] waits.
    pub patience: Duration,
}

impl Env {
    /// A name that only this case uses.
    pub fn name(&self, what: &str) -> String {
        format!("{}{what}", self.prefix())
    }

    fn prefix(&self) -> String {
        format!("bt-{}-", self.run)
    }

    /// Polls until `look` answers something. An error is not an answer: the image may not be there yet.
    pub async fn eventually<T, E: Into<anyhow::Error>>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> Result<Option<T>, E>,
    ) -> anyhow::Result<T> {
        let end = tokio::time::Instant::now() + self.patience;
        let mut last = anyhow::anyhow!("nothing was seen");
        loop {
            match look().await {
                Ok(Some(seen)) => return Ok(seen),
                Ok(None) => {}
                Err(e) => last = e.into(),
            }
            if tokio::time::Instant::now() > end {
                return Err(last.context(format!("never: {what}")));
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// An empty image of 8 MiB with the default features on site A.
    pub async fn image(&self, what: &str) -> anyhow::Result<String> {
        let image = self.name(what);
        self.a.call(self.create(&image)).await.context("create")?;
        Ok(image)
    }

    /// The command that makes it.
    pub fn create(&self, image: &str) -> ImageCreate {
        ImageCreate {
            pool: self.pool.clone(),
            image: image.into(),
            size: SIZE,
            order: 22,
            features: FEATURES,
        }
    }

    /// An image with a protected snapshot `s`, and `data` in it from before.
    pub async fn parent(&self, what: &str, data: &[u8]) -> anyhow::Result<String> {
        let image = self.image(what).await?;
        self.write(&self.a, &image, 0, data).await?;
        self.a.call(self.snap_create(&image, "s")).await?;
        self.a.call(SnapProtect { pool: self.pool.clone(), image: image.clone(), snap: "s".into() }).await?;
        Ok(image)
    }

    pub fn snap_create(&self, image: &str, snap: &str) -> SnapCreate {
        SnapCreate { pool: self.pool.clone(), image: image.into(), snap: snap.into() }
    }

    pub fn clone_of(&self, image: &str, dest: &str) -> ImageClone {
        ImageClone {
            pool: self.pool.clone(),
            image: image.into(),
            snap: "s".into(),
            dest_pool: self.pool.clone(),
            dest: dest.into(),
            features: FEATURES,
            order: 22,
        }
    }

    pub fn remove(&self, image: &str) -> ImageRemove {
        ImageRemove { pool: self.pool.clone(), image: image.into() }
    }

    pub fn stat(&self, image: &str) -> ImageStat {
        ImageStat { pool: self.pool.clone(), image: image.into() }
    }

    pub fn inspect(&self, image: &str) -> ImageInspect {
        ImageInspect { pool: self.pool.clone(), image: image.into() }
    }

    pub fn info(&self, image: &str) -> MirrorInfo {
        MirrorInfo { pool: self.pool.clone(), image: image.into() }
    }

    pub fn enable(&self, image: &str, mode: MirrorMode) -> MirrorEnable {
        MirrorEnable { pool: self.pool.clone(), image: image.into(), mode }
    }

    pub fn disable(&self, image: &str, force: bool) -> MirrorDisable {
        MirrorDisable { pool: self.pool.clone(), image: image.into(), force }
    }

    pub fn promote(&self, image: &str, force: bool) -> MirrorPromote {
        MirrorPromote { pool: self.pool.clone(), image: image.into(), force }
    }

    pub fn demote(&self, image: &str) -> MirrorDemote {
        MirrorDemote { pool: self.pool.clone(), image: image.into() }
    }

    pub fn resync(&self, image: &str) -> MirrorResync {
        MirrorResync { pool: self.pool.clone(), image: image.into() }
    }

    pub fn mirror_snapshot(&self, image: &str) -> MirrorSnapshot {
        MirrorSnapshot { pool: self.pool.clone(), image: image.into() }
    }

    pub fn check_writable(&self, image: &str) -> CheckWritable {
        CheckWritable { pool: self.pool.clone(), image: image.into() }
    }

    pub async fn write(&self, site: &Site, image: &str, offset: u64, data: &[u8]) -> Result<(), RbdError> {
        site.call(ImageWrite { pool: self.pool.clone(), image: image.into(), offset, data: data.into() })
            .await
    }

    pub async fn read(
        &self,
        site: &Site,
        image: &str,
        snap: Option<&str>,
        length: u64,
    ) -> Result<Vec<u8>, RbdError> {
        let (pool, snap) = (self.pool.clone(), snap.map(str::to_owned));
        site.call(ImageRead { pool, image: image.into(), snap, offset: 0, length }).await
    }

    pub async fn snaps(&self, site: &Site, image: &str) -> Result<Vec<Snap>, RbdError> {
        site.call(SnapList { pool: self.pool.clone(), image: image.into() }).await
    }

    pub async fn names(&self, site: &Site) -> Result<Vec<String>, RbdError> {
        let all = site.call(ImageList { pool: self.pool.clone() }).await?;
        Ok(all.into_iter().filter(|n| n.starts_with(&self.prefix())).collect())
    }

    pub async fn trash(&self, site: &Site) -> Result<Vec<TrashEntry>, RbdError> {
        let all = site.call(TrashList { pool: self.pool.clone() }).await?;
        Ok(all.into_iter().filter(|e| e.name.starts_with(&self.prefix())).collect())
    }

    pub async fn primary(&self, site: &Site, image: &str) -> Result<bool, RbdError> {
        Ok(site.call(self.info(image)).await?.primary)
    }

    /// Waits until `to` holds what was written on the other side.
    pub async fn replicated(&self, to: &Site, image: &str, data: &[u8]) -> Case {
        self.eventually("the data on the other side", async || {
            let seen = self.read(to, image, None, data.len() as u64).await?;
            Ok::<_, RbdError>((seen == data).then_some(()))
        })
        .await
    }

    /// Waits until the daemon of `site` replays the image.
    pub async fn replays(&self, site: &Site, image: &str) -> Case {
        self.eventually("up+replaying", async || {
            let report = site.call(MirrorStatus { pool: self.pool.clone(), image: image.into() }).await?;
            match &report.local {
                Some(l) if l.up && l.state == "replaying" && !report.info.primary => Ok(Some(())),
                // The reason belongs to the failure's text: nobody can ask afterwards.
                _ => Err(anyhow::anyhow!("{report:?}")),
            }
        })
        .await
    }

    /// Waits until the daemon of site A could follow the copy on site B, were that promoted. As an operation
    /// does: before, a change of sides ends in a split-brain.
    pub async fn linked(&self, image: &str) -> Case {
        self.eventually("registration in the copy's journal", async || {
            let report = self.b.call(MirrorStatus { pool: self.pool.clone(), image: image.into() }).await?;
            Ok::<_, RbdError>((!report.registered.is_empty()).then_some(()))
        })
        .await
    }

    /// A mirrored image with `data` in it, replayed on site B.
    pub async fn mirrored(&self, what: &str, mode: MirrorMode, data: &[u8]) -> anyhow::Result<String> {
        let image = self.image(what).await?;
        self.a.call(self.enable(&image, mode)).await.context("enable")?;
        self.write(&self.a, &image, 0, data).await.context("write")?;
        self.publish(&self.a, &image, mode).await?;
        self.replays(&self.b, &image).await?;
        self.replicated(&self.b, &image, data).await?;
        if mode == MirrorMode::Journal {
            self.linked(&image).await?;
        }
        Ok(image)
    }

    /// Snapshot mode: a mirror snapshot. Journal mode: nothing, it goes by itself.
    pub async fn publish(&self, site: &Site, image: &str, mode: MirrorMode) -> Case {
        if mode == MirrorMode::Snapshot {
            site.call(self.mirror_snapshot(image)).await.context("mirror snapshot")?;
        }
        Ok(())
    }

    /// Promotes as soon as Ceph lets it; only `Busy` and `ReadOnly` are waited out.
    pub async fn promotes(&self, site: &Site, image: &str, force: bool) -> Case {
        self.eventually("promotion", async || match site.call(self.promote(image, force)).await {
            Ok(()) => Ok(Some(())),
            Err(e) if matches!(e.kind, Kind::Busy | Kind::ReadOnly) => Ok(None),
            Err(e) => Err(e),
        })
        .await?;
        ensure!(self.primary(site, image).await?, "promoted, but not primary");
        Ok(())
    }

    /// Removes everything that the case made, as far as possible: a failed case must not spoil the next run.
    pub async fn clean_up(&self) {
        for _round in 0..8 {
            let mut left = 0;
            for site in [&self.a, &self.b] {
                for pool in [&self.pool, &self.plain_pool] {
                    left += self.clean_pool(site, pool).await;
                }
            }
            if left == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn clean_pool(&self, site: &Site, pool: &str) -> usize {
        let (pool, prefix) = (pool.to_owned(), self.prefix());
        let names = site.call(ImageList { pool: pool.clone() }).await.unwrap_or_default();
        let mut left = 0;
        for image in names.into_iter().filter(|n| n.starts_with(&prefix)) {
            left += 1;
            let (p, i) = (|| pool.clone(), || image.clone());
            if site
                .call(MirrorInfo { pool: p(), image: i() })
                .await
                .is_ok_and(|m| m.state == MirrorState::Enabled && !m.primary)
            {
                // A replica goes with its primary; one without a primary is made one.
                let other = if std::ptr::eq(site, &self.a) { &self.b } else { &self.a };
                let info = MirrorInfo { pool: p(), image: i() };
                if other.call(info).await.is_ok_and(|m| m.primary) {
                    continue;
                }
                let _ = site.call(MirrorPromote { pool: p(), image: i(), force: true }).await;
            }
            let _ = site.call(MirrorDisable { pool: p(), image: i(), force: true }).await;
            let _ = site.call(ImageFlatten { pool: p(), image: i() }).await;
            for snap in site.call(SnapList { pool: p(), image: i() }).await.unwrap_or_default() {
                let _ = site.call(SnapUnprotect { pool: p(), image: i(), snap: snap.name.clone() }).await;
                let _ = site.call(SnapRemove { pool: p(), image: i(), snap: snap.name }).await;
            }
            let _ = site.call(ImageRemove { pool: p(), image: i() }).await;
        }
        for entry in site.call(TrashList { pool: pool.clone() }).await.unwrap_or_default() {
            if entry.name.starts_with(&prefix) {
                let _ = site.call(TrashRemove { pool: pool.clone(), id: entry.id }).await;
            }
        }
        left
    }
}

/// The call must fail with exactly this kind.
#[track_caller]
pub fn refused<T: Debug>(kind: Kind, result: Result<T, RbdError>) -> Case {
    let caller = std::panic::Location::caller();
    match result {
        Err(e) if e.kind == kind => Ok(()),
        Err(e) => bail!("{caller}: {kind:?} was due, came {:?}: {e}", e.kind),
        Ok(value) => bail!("{caller}: {kind:?} was due, came success: {value:?}"),
    }
}

/// The call must fail with one of these kinds.
#[track_caller]
pub fn refused_as_one_of<T: Debug>(kinds: &[Kind], result: Result<T, RbdError>) -> Case {
    let caller = std::panic::Location::caller();
    match result {
        Err(e) if kinds.contains(&e.kind) => Ok(()),
        Err(e) => bail!("{caller}: one of {kinds:?} was due, came {:?}: {e}", e.kind),
        Ok(value) => bail!("{caller}: one of {kinds:?} was due, came success: {value:?}"),
    }
}

/// Hands every case to `$run` as `name: expression of (env)`.
macro_rules! all_cases {
    ($run:ident) => {
        $run! {
            cluster_probes_answer: cluster::probes_answer,
            cluster_tells_fsid_monitors_and_capacity: cluster::fsid_monitors_and_capacity,
            cluster_blocklist: cluster::blocklist,
            cluster_status: cluster::status,
            cluster_rights: cluster::rights,
            cluster_conf_get: cluster::conf_get,
            cluster_missing_pool: cluster::missing_pool,
            image_create_list_stat_remove: images::create_list_stat_remove,
            image_create_twice: images::create_twice,
            image_create_refusals: images::create_refusals,
            image_missing: images::missing,
            image_resize: images::resize,
            image_rename: images::rename,
            image_read_write: images::read_write,
            image_import: images::import,
            image_import_over: images::import_over,
            image_export: images::export,
            image_copy: images::copy,
            image_copy_keeps_metadata: images::copy_keeps_metadata,
            image_transfer: images::transfer,
            image_features: images::switch_features,
            image_metadata: images::metadata,
            image_survey: images::survey,
            image_watchers_and_writability_of_an_idle_image: images::idle,
            snapshot_create_list_remove: snapshots::create_list_remove,
            snapshot_twice_and_missing: snapshots::twice_and_missing,
            snapshot_protection: snapshots::protection,
            snapshot_rename: snapshots::rename,
            snapshots_together_all_or_none: snapshots::together_all_or_none,
            snapshots_together_while_written: snapshots::together_while_written,
            inspection_is_stat_and_list: snapshots::inspection_is_stat_and_list,
            snapshot_keeps_data: snapshots::keeps_data,
            snapshot_keeps_image: snapshots::keeps_image,
            snapshot_rollback: snapshots::rollback,
            sync_points_that_are_stale: snapshots::stale_sync_points,
            sync_points_of_a_copy_that_runs: mirroring::sync_points_of_a_copy_that_runs,
            snapshot_restoration: snapshots::restoration,
            clone_refusals: snapshots::clone_refusals,
            clone_reads_through_and_flattens: snapshots::clone_reads_through_and_flattens,
            clone_keeps_parent: snapshots::clone_keeps_parent,
            clone_follows_renamed_parent: snapshots::clone_follows_renamed_parent,
            clone_across_pools: snapshots::clone_across_pools,
            clone_of_a_clone: snapshots::clone_of_a_clone,
            clone_goes_back: snapshots::clone_goes_back,
            clone_helper_snapshot_life: snapshots::clone_helper_snapshot_life,
            flatten_refusals: snapshots::flatten_refusals,
            trash_move_list_remove: trash::move_list_remove,
            trash_deferment: trash::deferment,
            trash_keeps_parent_of_clone: trash::keeps_parent_of_clone,
            trash_child_counts_as_child: trash::child_counts_as_child,
            trash_name_is_free_again: trash::name_is_free_again,
            trash_image_goes_by_its_id: trash::image_goes_by_its_id,
            trash_clone_is_flattened_there: trash::clone_is_flattened_there,
            trash_restore: trash::restore,
            mirror_unmirrored_image: mirroring::unmirrored_image,
            mirror_pool_modes: mirroring::pool_modes,
            journal_enable_disable: |env| mirroring::enable_disable(env, MirrorMode::Journal),
            snapshot_mode_enable_disable: |env| mirroring::enable_disable(env, MirrorMode::Snapshot),
            journal_primary_refusals: |env| mirroring::primary_refusals(env, MirrorMode::Journal),
            snapshot_mode_primary_refusals: |env| mirroring::primary_refusals(env, MirrorMode::Snapshot),
            journal_secondary_refusals: |env| mirroring::secondary_refusals(env, MirrorMode::Journal),
            snapshot_mode_secondary_refusals: |env| mirroring::secondary_refusals(env, MirrorMode::Snapshot),
            journal_secondary_cannot_go: mirroring::journal_secondary_cannot_go,
            snapshot_mode_secondary_cannot_go: mirroring::snapshot_mode_secondary_cannot_go,
            journal_removal_takes_the_replica: |env| mirroring::removal_takes_the_replica(env, MirrorMode::Journal),
            snapshot_mode_removal_takes_the_replica: |env| mirroring::removal_takes_the_replica(env, MirrorMode::Snapshot),
            journal_snapshots_replicate: |env| mirroring::snapshots_replicate(env, MirrorMode::Journal),
            snapshot_mode_snapshots_replicate: |env| mirroring::snapshots_replicate(env, MirrorMode::Snapshot),
            snapshot_mode_data_waits_for_a_mirror_snapshot: mirroring::data_waits_for_a_mirror_snapshot,
            journal_resize_replicates: |env| mirroring::resize_replicates(env, MirrorMode::Journal),
            snapshot_mode_resize_replicates: |env| mirroring::resize_replicates(env, MirrorMode::Snapshot),
            journal_child_needs_mirrored_parent: |env| mirroring::child_needs_mirrored_parent(env, MirrorMode::Journal),
            snapshot_mode_child_needs_mirrored_parent: |env| mirroring::child_needs_mirrored_parent(env, MirrorMode::Snapshot),
            journal_child_replicates_as_clone: |env| mirroring::child_replicates_as_clone(env, MirrorMode::Journal),
            snapshot_mode_child_replicates_as_clone: |env| mirroring::child_replicates_as_clone(env, MirrorMode::Snapshot),
            journal_flatten_replicates: mirroring::journal_flatten_replicates,
            snapshot_mode_flatten_ruins_the_replica: mirroring::snapshot_mode_flatten_ruins_the_replica,
            snapshot_mode_flatten_between_disable_and_enable: mirroring::snapshot_mode_flatten_between_disable_and_enable,
            journal_clone_of_a_replica: |env| mirroring::clone_of_a_replica(env, MirrorMode::Journal),
            snapshot_mode_clone_of_a_replica: |env| mirroring::clone_of_a_replica(env, MirrorMode::Snapshot),
            journal_clone_of_an_unprotected_snapshot: |env| drills::clone_of_an_unprotected_snapshot(env, MirrorMode::Journal),
            snapshot_mode_clone_of_an_unprotected_snapshot: |env| drills::clone_of_an_unprotected_snapshot(env, MirrorMode::Snapshot),
            snapshot_mode_clone_outlives_its_volume: drills::clone_outlives_its_volume,
            snapshot_mode_mirror_snapshots_tell_what_has_arrived: drills::mirror_snapshots_tell_what_has_arrived,
            snapshot_mode_schedules: drills::schedules,
            journal_tells_which_copies_are_whole: backups::a_journal_tells_which_copies_are_whole,
            snapshot_mode_checksums_of_a_pin: backups::checksums_of_a_pin,
            delta_of_a_common_point: backups::a_common_point_is_restored_by_what_has_changed_since,
            mirror_info_many: mirroring::info_many,
            mirror_pool_view: survey::pool_view,
            mirror_survey: survey::many_images,
            may_fence: survey::may_fence,
            journal_rollback_replicates: mirroring::journal_rollback_replicates,
            journal_restoration_replicates: |env| mirroring::restoration_replicates(env, MirrorMode::Journal),
            snapshot_mode_restoration_replicates: |env| mirroring::restoration_replicates(env, MirrorMode::Snapshot),
            journal_status: |env| mirroring::status(env, MirrorMode::Journal),
            snapshot_mode_status: |env| mirroring::status(env, MirrorMode::Snapshot),
            journal_replica_lock_is_the_daemons: mirroring::journal_replica_lock_is_the_daemons,
            journal_trashing_ends_mirroring: |env| mirroring::trashing_ends_mirroring(env, MirrorMode::Journal),
            snapshot_mode_trashing_ends_mirroring: |env| mirroring::trashing_ends_mirroring(env, MirrorMode::Snapshot),
            journal_unforced_promotion_is_refused: |env| failover::unforced_promotion_is_refused(env, MirrorMode::Journal),
            snapshot_mode_unforced_promotion_is_refused: |env| failover::unforced_promotion_is_refused(env, MirrorMode::Snapshot),
            journal_demotion_can_be_taken_back: |env| failover::demotion_can_be_taken_back(env, MirrorMode::Journal),
            snapshot_mode_demotion_can_be_taken_back: |env| failover::demotion_can_be_taken_back(env, MirrorMode::Snapshot),
            journal_planned_failover_and_back: |env| failover::planned_failover_and_back(env, MirrorMode::Journal),
            snapshot_mode_planned_failover_and_back: |env| failover::planned_failover_and_back(env, MirrorMode::Snapshot),
            journal_forced_failover_split_brain_resync: |env| failover::forced_failover_split_brain_resync(env, MirrorMode::Journal),
            snapshot_mode_forced_failover_split_brain_resync: |env| failover::forced_failover_split_brain_resync(env, MirrorMode::Snapshot),
            journal_secondary_cut_loose: |env| failover::secondary_cut_loose(env, MirrorMode::Journal),
            snapshot_mode_secondary_cut_loose: |env| failover::secondary_cut_loose(env, MirrorMode::Snapshot),
            journal_resync_of_a_healthy_replica: |env| failover::resync_of_a_healthy_replica(env, MirrorMode::Journal),
            snapshot_mode_resync_of_a_healthy_replica: |env| failover::resync_of_a_healthy_replica(env, MirrorMode::Snapshot),
        }
    };
}
pub(crate) use all_cases;
