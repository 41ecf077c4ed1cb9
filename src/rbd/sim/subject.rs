//! What a request is about, for fault rules, the call log and the watches of killed workers.

use crate::rbd::protocol::Request;

/// Pool and image of a request, and whether the worker opens the image for writing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) pool: Option<String>,
    pub(super) image: Option<String>,
    pub(super) writes: bool,
}

impl Subject {
    pub(super) fn of(request: &Request) -> Subject {
        let on = |pool: &str, image: &str, writes: bool| Subject {
            pool: Some(pool.to_owned()),
            image: Some(image.to_owned()),
            writes,
        };
        let pool = |pool: &str| Subject { pool: Some(pool.to_owned()), ..Subject::default() };
        match request {
            Request::ProbeMon(_)
            | Request::Fsid(_)
            | Request::MonDump(_)
            | Request::ClientAddress(_)
            | Request::BlocklistAdd(_)
            | Request::BlocklistRemove(_)
            | Request::BlocklistList(_)
            | Request::BlocklistEntries(_)
            | Request::MayFence(_)
            | Request::ClusterStatus(_)
            | Request::ClientRights(_)
            | Request::OsdPlaces(_)
            | Request::ErasureProfileSet(_)
            | Request::SiteName(_)
            | Request::SiteNameSet(_)
            | Request::ClientExists(_)
            | Request::ClientRemove(_)
            | Request::ClientPools(_)
            | Request::LevelSchedules(_)
            | Request::LevelScheduleAdd(_)
            | Request::LevelScheduleRemove(_)
            | Request::LevelDue(_)
            | Request::MirrorServices(_)
            | Request::OrchestratorApply(_)
            | Request::OrchestratorAct(_)
            | Request::ConfGet(_) => Subject::default(),
            Request::PoolEnsure(r) => pool(&r.pool),
            Request::PoolInit(r) => pool(&r.pool),
            Request::MirrorModeSet(r) => pool(&r.pool),
            Request::PeerBootstrap(r) => pool(&r.pool),
            Request::PeerAdd(r) => pool(&r.pool),
            Request::PeerRemove(r) => pool(&r.pool),
            Request::PoolAccess(r) => pool(&r.pool),
            Request::ProbeOsd(r) => pool(&r.pool),
            Request::PoolStats(r) => pool(&r.pool),
            Request::ObjectRead(r) => pool(&r.pool),
            Request::ObjectWrite(r) => pool(&r.pool),
            Request::ObjectRemove(r) => pool(&r.pool),
            Request::ObjectList(r) => pool(&r.pool),
            Request::SumsBegin(r) => pool(&r.pool),
            Request::ImageList(r) => pool(&r.pool),
            Request::ImageDirectory(r) => pool(&r.pool),
            Request::TrashList(r) => pool(&r.pool),
            Request::MirrorPoolMode(r) => pool(&r.pool),
            Request::MirrorDaemons(r) => pool(&r.pool),
            Request::MirrorInfoMany(r) => pool(&r.pool),
            Request::MirrorStatusMany(r) => pool(&r.pool),
            Request::MirrorStatusPage(r) => pool(&r.pool),
            Request::MirrorPoolView(r) => pool(&r.pool),
            Request::MirrorSurvey(r) => pool(&r.pool),
            Request::SnapCreateTogether(r) => pool(&r.pool),
            Request::ImageSurvey(r) => pool(&r.pool),
            Request::TrashRemove(r) => pool(&r.pool),
            Request::TrashRestore(r) => pool(&r.pool),
            Request::ScheduleList(r) => pool(&r.pool),
            // Not opened by name while it is being made, or opened read-only.
            Request::ImageCreate(r) => on(&r.pool, &r.image, false),
            Request::ImageId(r) => on(&r.pool, &r.image, false),
            Request::ImageStat(r) => on(&r.pool, &r.image, false),
            Request::ImageInspect(r) => on(&r.pool, &r.image, false),
            Request::ImageCopy(r) => on(&r.pool, &r.image, false),
            Request::ImageTransfer(r) => on(&r.pool, &r.image, false),
            Request::DeltaCopy(r) => on(&r.pool, &r.image, false),
            Request::SumsCheck(r) => on(&r.pool, &r.image, false),
            Request::SumsFill(r) => on(&r.pool, &r.image, false),
            Request::JournalPeers(r) => on(&r.pool, &r.image, false),
            Request::ImageClone(r) => on(&r.pool, &r.image, false),
            Request::ReplicaClone(r) => on(&r.pool, &r.image, false),
            Request::MirrorSnaps(r) => on(&r.pool, &r.image, false),
            // The manager looks at the image.
            Request::ScheduleAdd(r) => on(&r.pool, &r.image, false),
            Request::ScheduleRemove(r) => on(&r.pool, &r.image, false),
            Request::ImageChildren(r) => on(&r.pool, &r.image, false),
            Request::ImageWatchers(r) => on(&r.pool, &r.image, false),
            Request::ImageRead(r) => on(&r.pool, &r.image, false),
            Request::ImageExport(r) => on(&r.pool, &r.image, false),
            Request::ImageRename(r) => on(&r.pool, &r.from, false),
            Request::MetadataList(r) => on(&r.pool, &r.image, false),
            Request::SnapList(r) => on(&r.pool, &r.image, false),
            Request::MirrorInfo(r) => on(&r.pool, &r.image, false),
            Request::MirrorStatus(r) => on(&r.pool, &r.image, false),
            Request::ImageResize(r) => on(&r.pool, &r.image, true),
            Request::ImageRemove(r) => on(&r.pool, &r.image, true),
            Request::ImageFlatten(r) => on(&r.pool, &r.image, true),
            Request::ImageFeatures(r) => on(&r.pool, &r.image, true),
            Request::LockOwners(r) => on(&r.pool, &r.image, true),
            Request::LockBreak(r) => on(&r.pool, &r.image, true),
            Request::CheckWritable(r) => on(&r.pool, &r.image, true),
            Request::ImageWrite(r) => on(&r.pool, &r.image, true),
            Request::ImageImport(r) => on(&r.pool, &r.image, true),
            Request::MetadataSet(r) => on(&r.pool, &r.image, true),
            Request::MetadataRemove(r) => on(&r.pool, &r.image, true),
            Request::SnapCreate(r) => on(&r.pool, &r.image, true),
            Request::SnapProtect(r) => on(&r.pool, &r.image, true),
            Request::SnapUnprotect(r) => on(&r.pool, &r.image, true),
            Request::SnapRemove(r) => on(&r.pool, &r.image, true),
            Request::SnapRename(r) => on(&r.pool, &r.image, true),
            Request::SyncPointsRemove(r) => on(&r.pool, &r.image, true),
            Request::SnapRollback(r) => on(&r.pool, &r.image, true),
            Request::SnapRestore(r) => on(&r.pool, &r.image, true),
            Request::ImageMoveState(r) => on(&r.pool, &r.image, false),
            Request::ImageMoveBegin(r) => on(&r.pool, &r.image, false),
            Request::ImageMoveData(r) => on(&r.pool, &r.image, true),
            Request::ImageMoveFinish(r) => on(&r.pool, &r.image, true),
            Request::ImageMoveUndo(r) => on(&r.pool, &r.image, true),
            Request::SnapRevertChanges(r) => on(&r.pool, &r.image, true),
            Request::TrashMove(r) => on(&r.pool, &r.image, true),
            Request::MirrorEnable(r) => on(&r.pool, &r.image, true),
            Request::MirrorDisable(r) => on(&r.pool, &r.image, true),
            Request::MirrorPromote(r) => on(&r.pool, &r.image, true),
            Request::MirrorDemote(r) => on(&r.pool, &r.image, true),
            Request::MirrorResync(r) => on(&r.pool, &r.image, true),
            Request::MirrorSnapshot(r) => on(&r.pool, &r.image, true),
        }
    }
}
