//! One request, carried out on one site.

use super::images::{Answer, refuse};
use super::services::runs;
use super::state::World;
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::protocol::{Connection, Reply, Request};
use crate::rbd::types::{BlocklistEntry, Inspection, MirrorReport, MirrorState, PoolCapacity};

/// Bytes of every simulated cluster.
const CAPACITY: u64 = 100 << 30;

impl World {
    /// The site that a connection leads to: by the stem of its conf, by an alias (conf path or name), by
    /// its name; `default` is the first site.
    pub(super) fn resolve(&self, connection: &Connection) -> Option<String> {
        let conf = connection.conf.to_string_lossy();
        let stem = connection.conf.file_stem().map(|s| s.to_string_lossy().into_owned());
        let alias = |text: &str| {
            self.sites.values().find(|s| s.aliases.iter().any(|a| a == text)).map(|s| s.name.clone())
        };
        let named = |text: &str| self.sites.contains_key(text).then(|| text.to_owned());
        alias(&conf)
            .or_else(|| stem.as_deref().and_then(named))
            .or_else(|| alias(&connection.site))
            .or_else(|| named(&connection.site))
            .or_else(|| (connection.site == "default").then(|| self.site_order.first().cloned()).flatten())
    }

    /// Carries out a request; time and faults are settled.
    pub(super) fn run(&mut self, site: &str, client: u64, request: Request) -> Answer<Reply> {
        let now = self.epoch();
        let Some(state) = self.sites.get(site) else { return refuse(Kind::Unreachable, "no such site") };
        Ok(match request {
            Request::ProbeMon(_) => Reply::ProbeMon(state.fsid.clone()),
            Request::ProbeOsd(r) => Reply::ProbeOsd(self.pool(site, &r.pool).map(|_| ())?),
            Request::Fsid(_) => Reply::Fsid(state.fsid.clone()),
            Request::MonDump(_) => Reply::MonDump(vec![format!("{}:6789/0", self.monitor_of(site))]),
            Request::PoolStats(r) => {
                let used = |p: &super::state::PoolState| -> u64 {
                    let image = |i: &super::state::ImageState| {
                        i.data.allocated() + i.snaps.values().map(|s| s.data.allocated()).sum::<u64>()
                    };
                    p.images.values().map(image).sum()
                };
                let stored = used(self.pool(site, &r.pool)?);
                let all: u64 = state.pools.values().map(used).sum();
                let max_avail = CAPACITY.saturating_sub(all);
                Reply::PoolStats(PoolCapacity { stored, max_avail, cluster_total: CAPACITY, quota: 0 })
            }
            Request::ClientAddress(_) => Reply::ClientAddress(self.address_of(client)),
            Request::BlocklistAdd(r) => {
                self.blocklist(site, &r.address, r.seconds);
                Reply::BlocklistAdd(())
            }
            Request::BlocklistRemove(r) => {
                if !self.config.may_unblock {
                    return refuse(Kind::Permission, "access denied");
                }
                if let Some(s) = self.sites.get_mut(site) {
                    s.blocklist.remove(&r.address);
                }
                Reply::BlocklistRemove(())
            }
            Request::BlocklistList(_) => {
                let held = state.blocklist.iter().filter(|(_, end)| **end > now);
                Reply::BlocklistList(held.map(|(address, _)| address.clone()).collect())
            }
            Request::BlocklistEntries(_) => {
                let held = state.blocklist.iter().filter(|(_, end)| **end > now);
                let entry = |(address, end): (&String, &i64)| BlocklistEntry {
                    address: address.clone(),
                    until: end.to_string(),
                };
                Reply::BlocklistEntries(held.map(entry).collect())
            }
            Request::MayFence(_) => Reply::MayFence(self.config.may_fence),
            Request::ClusterStatus(_) => Reply::ClusterStatus(self.cluster_status(state)),
            Request::ClientRights(_) => Reply::ClientRights(self.client_rights()),
            Request::PoolAccess(r) => Reply::PoolAccess(self.pool_access(site, &r.pool)?),
            Request::ConfGet(r) => Reply::ConfGet(self.option(state, &r.option)),
            Request::ObjectRead(r) => {
                Reply::ObjectRead(self.pool(site, &r.pool)?.objects.get(&r.object).cloned())
            }
            Request::ObjectWrite(r) => {
                self.pool_mut(site, &r.pool)?.objects.insert(r.object, r.data);
                Reply::ObjectWrite(())
            }
            Request::ObjectRemove(r) => {
                let pool = self.pool_mut(site, &r.pool)?;
                pool.objects.remove(&r.object);
                pool.forget_name(&r.object);
                Reply::ObjectRemove(())
            }
            Request::ObjectList(r) => Reply::ObjectList(self.object_list(site, &r)?),
            Request::DeltaCopy(r) => Reply::DeltaCopy(self.delta_copy(site, &r)?),
            Request::SumsCheck(r) => Reply::SumsCheck(self.sums_check(site, &r)?),
            Request::SumsFill(r) => Reply::SumsFill(self.sums_fill(site, &r)?),
            Request::SumsBegin(r) => Reply::SumsBegin(self.sums_begin(site, &r)?),
            Request::ImageList(r) => {
                Reply::ImageList(self.pool(site, &r.pool)?.names.keys().cloned().collect())
            }
            Request::ImageCreate(r) => {
                Reply::ImageCreate(self.create(site, &r.pool, &r.image, r.size, r.order, r.features)?)
            }
            Request::ImageId(r) => Reply::ImageId(self.image_id(site, &r.pool, &r.image)?),
            Request::ImageStat(r) => Reply::ImageStat(self.stat(site, &r.pool, &r.image)?),
            Request::ImageInspect(r) => Reply::ImageInspect(Inspection {
                info: self.stat(site, &r.pool, &r.image)?,
                snaps: self.snap_list(site, &r.pool, &r.image)?,
            }),
            Request::ImageResize(r) => Reply::ImageResize(self.resize(site, &r.pool, &r.image, r.size)?),
            Request::ImageRename(r) => Reply::ImageRename(self.rename(site, &r.pool, &r.from, &r.to)?),
            Request::ImageRemove(r) => Reply::ImageRemove(self.remove(site, &r.pool, &r.image)?),
            Request::ImageFlatten(r) => Reply::ImageFlatten(self.flatten(site, &r.pool, &r.image)?),
            Request::ImageCopy(r) => {
                let source = (r.pool.as_str(), r.image.as_str(), r.snap.as_deref());
                Reply::ImageCopy(self.copy(site, source, (&r.dest_pool, &r.dest), r.features, r.order)?)
            }
            Request::ImageTransfer(r) => Reply::ImageTransfer(self.transfer(site, &r)?),
            Request::ImageClone(r) => {
                let source = (r.pool.as_str(), r.image.as_str(), r.snap.as_str());
                let dest = (r.dest_pool.as_str(), r.dest.as_str());
                Reply::ImageClone(self.clone_image(site, source, dest, r.features, r.order, false)?)
            }
            Request::ReplicaClone(r) => {
                let source = (r.pool.as_str(), r.image.as_str(), r.snap.as_str());
                let dest = (r.dest_pool.as_str(), r.dest.as_str());
                Reply::ReplicaClone(self.clone_image(site, source, dest, r.features, r.order, true)?)
            }
            Request::ImageChildren(r) => {
                Reply::ImageChildren(self.image_children(site, &r.pool, &r.image, r.snap.as_deref())?)
            }
            Request::ImageFeatures(r) => {
                Reply::ImageFeatures(self.set_features(site, &r.pool, &r.image, r.features, r.enable)?)
            }
            Request::ImageSurvey(r) => {
                self.pool(site, &r.pool)?;
                let one = |image: &String| self.survey(site, &r.pool, image).ok();
                Reply::ImageSurvey(r.images.iter().map(one).collect())
            }
            Request::ImageWatchers(r) => Reply::ImageWatchers(self.watchers(site, &r.pool, &r.image)?),
            Request::LockOwners(r) => Reply::LockOwners(self.lock_owners(site, &r.pool, &r.image)?),
            Request::LockBreak(r) => Reply::LockBreak(self.lock_break(site, &r.pool, &r.image, &r.owner)?),
            Request::CheckWritable(r) => Reply::CheckWritable(self.check_writable(site, &r.pool, &r.image)?),
            Request::ImageWrite(r) => {
                Reply::ImageWrite(self.write(site, &r.pool, &r.image, r.offset, &r.data)?)
            }
            Request::ImageRead(r) => {
                let source = (r.pool.as_str(), r.image.as_str(), r.snap.as_deref());
                Reply::ImageRead(self.read(site, source, r.offset, r.length)?)
            }
            // The data has flowed already.
            Request::ImageImport(r) => {
                Reply::ImageImport(self.write(site, &r.pool, &r.image, 0, &[]).map(|()| 0)?)
            }
            Request::ImageExport(r) => {
                let source = (r.pool.as_str(), r.image.as_str(), r.snap.as_deref());
                Reply::ImageExport(self.read(site, source, 0, 0).map(|_| 0)?)
            }
            Request::MetadataSet(r) => {
                Reply::MetadataSet(self.meta_set(site, &r.pool, &r.image, &r.key, &r.value)?)
            }
            Request::MetadataList(r) => {
                let all = self.image(site, &r.pool, &r.image)?.metadata.clone();
                Reply::MetadataList(all.into_iter().collect())
            }
            Request::MetadataRemove(r) => {
                Reply::MetadataRemove(self.meta_remove(site, &r.pool, &r.image, &r.key)?)
            }
            Request::SnapList(r) => Reply::SnapList(self.snap_list(site, &r.pool, &r.image)?),
            Request::SnapCreate(r) => Reply::SnapCreate(self.snap_create(site, &r.pool, &r.image, &r.snap)?),
            Request::SnapCreateTogether(r) => {
                Reply::SnapCreateTogether(self.snap_create_together(site, &r.pool, &r.members)?)
            }
            Request::SnapProtect(r) => {
                Reply::SnapProtect(self.snap_protect(site, &r.pool, &r.image, &r.snap)?)
            }
            Request::SnapUnprotect(r) => {
                Reply::SnapUnprotect(self.snap_unprotect(site, &r.pool, &r.image, &r.snap)?)
            }
            Request::SnapRemove(r) => Reply::SnapRemove(self.snap_remove(site, &r.pool, &r.image, &r.snap)?),
            Request::SyncPointsRemove(r) => {
                Reply::SyncPointsRemove(self.sync_points_remove(site, &r.pool, &r.image)?)
            }
            Request::SnapRename(r) => {
                Reply::SnapRename(self.snap_rename(site, &r.pool, &r.image, &r.from, &r.to)?)
            }
            Request::SnapRollback(r) => {
                Reply::SnapRollback(self.snap_rollback(site, &r.pool, &r.image, &r.snap)?)
            }
            Request::SnapRestore(r) => {
                Reply::SnapRestore(self.snap_restore(site, &r.pool, &r.image, &r.snap)?)
            }
            Request::TrashMove(r) => Reply::TrashMove(self.trash_move(site, &r.pool, &r.image, r.delay)?),
            Request::TrashList(r) => Reply::TrashList(self.trash_list(site, &r.pool)?),
            Request::TrashRemove(r) => Reply::TrashRemove(self.trash_remove(site, &r.pool, &r.id)?),
            Request::TrashRestore(r) => {
                Reply::TrashRestore(self.trash_restore(site, &r.pool, &r.id, &r.name)?)
            }
            Request::MirrorPoolMode(r) => Reply::MirrorPoolMode(self.pool_mode(site, &r.pool)?),
            Request::MirrorEnable(r) => {
                Reply::MirrorEnable(self.mirror_enable(site, &r.pool, &r.image, r.mode)?)
            }
            Request::MirrorDisable(r) => {
                Reply::MirrorDisable(self.mirror_disable(site, &r.pool, &r.image, r.force)?)
            }
            Request::MirrorInfo(r) => Reply::MirrorInfo(self.mirror_info(site, &r.pool, &r.image)?),
            Request::MirrorInfoMany(r) => {
                self.pool(site, &r.pool)?;
                let one = |image: &String| self.mirror_info(site, &r.pool, image).ok();
                Reply::MirrorInfoMany(r.images.iter().map(one).collect())
            }
            Request::MirrorStatus(r) => Reply::MirrorStatus(self.mirror_status(site, &r.pool, &r.image)?),
            Request::MirrorStatusMany(r) => {
                self.pool(site, &r.pool)?;
                let one = |image: &String| match self.mirror_status(site, &r.pool, image).ok()? {
                    report if report.info.state == MirrorState::Enabled => Some(report),
                    report => Some(MirrorReport::without_reports(report.info)),
                };
                Reply::MirrorStatusMany(r.images.iter().map(one).collect())
            }
            Request::MirrorStatusPage(r) => {
                Reply::MirrorStatusPage(self.mirror_status_page(site, &r.pool, &r.after, r.limit as usize)?)
            }
            Request::MirrorDaemons(r) => Reply::MirrorDaemons(self.serving(site, &r.pool)?),
            Request::MirrorPoolView(r) => Reply::MirrorPoolView(self.mirror_pool(site, &r.pool)?),
            Request::MirrorSurvey(r) => Reply::MirrorSurvey(self.mirror_survey(site, &r.pool, &r.images)?),
            Request::MirrorPromote(r) => {
                Reply::MirrorPromote(self.mirror_promote(site, &r.pool, &r.image, r.force)?)
            }
            Request::MirrorDemote(r) => Reply::MirrorDemote(self.mirror_demote(site, &r.pool, &r.image)?),
            Request::MirrorResync(r) => Reply::MirrorResync(self.mirror_resync(site, &r.pool, &r.image)?),
            Request::MirrorSnapshot(r) => {
                Reply::MirrorSnapshot(self.mirror_snapshot(site, &r.pool, &r.image)?)
            }
            Request::JournalPeers(r) => Reply::JournalPeers(self.journal_peers(site, &r.pool, &r.image)?),
            Request::MirrorSnaps(r) => Reply::MirrorSnaps(self.mirror_snaps(site, &r.pool, &r.image)?),
            Request::ScheduleList(r) => Reply::ScheduleList(self.schedule_list(site, &r.pool)?),
            Request::ScheduleAdd(r) => {
                Reply::ScheduleAdd(self.schedule_add(site, &r.pool, &r.image, r.schedule)?)
            }
            Request::ScheduleRemove(r) => {
                Reply::ScheduleRemove(self.schedule_remove(site, &r.pool, &r.image, &r.schedule)?)
            }
            Request::OsdPlaces(_) => Reply::OsdPlaces(self.config.osds.clone()),
            Request::ErasureProfileSet(r) => Reply::ErasureProfileSet(self.profile_set(site, r.profile)?),
            Request::PoolEnsure(r) => Reply::PoolEnsure(self.pool_ensure(site, &r.pool, &r.shape)?),
            Request::PoolInit(r) => Reply::PoolInit(self.pool_init(site, &r.pool, r.data_pool)?),
            Request::MirrorModeSet(r) => Reply::MirrorModeSet(self.mode_set(site, &r.pool, r.mode)?),
            Request::SiteName(_) => Reply::SiteName(state.site_name.clone()),
            Request::SiteNameSet(r) => {
                self.name_set(site, r.name);
                Reply::SiteNameSet(())
            }
            Request::PeerBootstrap(r) => {
                Reply::PeerBootstrap(self.peer_bootstrap(site, &r.pool, &r.source, r.way)?)
            }
            Request::PeerAdd(r) => Reply::PeerAdd(self.peer_add(site, &r)?),
            Request::PeerRemove(r) => Reply::PeerRemove(self.peer_remove(site, &r.pool, &r.uuid)?),
            Request::ClientExists(r) => Reply::ClientExists(state.clients.contains_key(&r.user)),
            Request::ClientRemove(r) => {
                self.client_remove(site, &r.user);
                Reply::ClientRemove(())
            }
            Request::ClientPools(r) => Reply::ClientPools(self.client_pools(site, &r.user, r.pools)?),
            Request::LevelSchedules(r) => Reply::LevelSchedules(self.level_list(site, &r.level)?),
            Request::LevelScheduleAdd(r) => {
                Reply::LevelScheduleAdd(self.level_add(site, &r.level, r.schedule)?)
            }
            Request::LevelScheduleRemove(r) => {
                Reply::LevelScheduleRemove(self.level_remove(site, &r.level, r.schedule.as_ref())?)
            }
            Request::LevelDue(r) => Reply::LevelDue(self.level_due(site, &r.level)?),
            Request::ImageMoveState(r) => Reply::ImageMoveState(self.move_state(site, &r.pool, &r.image)?),
            Request::ImageMoveBegin(r) => {
                Reply::ImageMoveBegin(self.move_begin(site, (&r.pool, &r.image), (&r.dest_pool, &r.dest))?)
            }
            Request::ImageMoveData(r) => Reply::ImageMoveData(self.move_data(site, &r.pool, &r.image)?),
            Request::ImageMoveFinish(r) => Reply::ImageMoveFinish(self.move_finish(site, &r.pool, &r.image)?),
            Request::ImageMoveUndo(r) => Reply::ImageMoveUndo(self.move_undo(site, &r.pool, &r.image)?),
            Request::SnapRevertChanges(r) => {
                Reply::SnapRevertChanges(self.snap_revert_changes(site, &r.pool, &r.image, &r.snap)?)
            }
            Request::ImageDirectory(r) => Reply::ImageDirectory(self.pool(site, &r.pool)?.directory()),
            Request::MirrorServices(_) => Reply::MirrorServices(self.mirror_services(site)),
            Request::OrchestratorApply(_) => Reply::OrchestratorApply(self.orchestrate(site, Some(true))?),
            Request::OrchestratorAct(r) => Reply::OrchestratorAct(self.orchestrate(site, runs(r.act))?),
        })
    }
}
