//! What each request does: one line where librbd has one function for it.
//!
//! Images are opened for the length of one command: read-only wherever librbd allows, which leaves no
//! watch and works on a secondary; for writing otherwise.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::survey::mirroring;
use super::{about, delta, levels, link, monitor, objects, schedule, services, together};
use crate::rbd::error::RbdErrorKind;
use crate::rbd::ffi::{self, Cluster, Failure, Image, IoCtx, Progress};
use crate::rbd::protocol::{ImageTransfer, Reply, Request};
use crate::rbd::types::{ImageInfo, Inspection, MirrorReport, MirrorState, Mirroring, Surveyed, features};

/// Images that one question about many of them has open at once.
const OPEN_AT_ONCE: usize = 16;

/// Probe objects whose removal failed; the next probe that succeeds removes them.
#[derive(Default)]
pub(super) struct Leftovers(Mutex<Vec<(String, String, String)>>);

/// Runs one request; `second` is the other site of one that has two. `progress` is told how far a long one is.
// Each reply carries what its command brings, also when that is nothing: one pattern for all.
#[allow(clippy::unit_arg)]
pub(super) fn execute(
    cluster: &Arc<Cluster>,
    second: Option<&Arc<Cluster>>,
    request: &Request,
    leftovers: &Leftovers,
    progress: Progress<'_>,
) -> Result<Reply, Failure> {
    let pool = |name: &str| IoCtx::open(cluster, name);
    Ok(match request {
        Request::ProbeMon(_) => Reply::ProbeMon(monitor::quorum_fsid(cluster)?),
        Request::ProbeOsd(c) => Reply::ProbeOsd(probe_osd(cluster, &c.pool, leftovers)?),
        Request::Fsid(_) => Reply::Fsid(cluster.fsid()?),
        Request::MonDump(_) => Reply::MonDump(monitor::addresses(cluster)?),
        Request::PoolStats(c) => {
            pool(&c.pool)?;
            Reply::PoolStats(monitor::capacity(cluster, &c.pool)?)
        }
        Request::ClientAddress(_) => Reply::ClientAddress(cluster.address().to_owned()),
        Request::BlocklistAdd(c) => Reply::BlocklistAdd(cluster.blocklist_add(&c.address, c.seconds)?),
        Request::BlocklistRemove(c) => {
            Reply::BlocklistRemove(monitor::blocklist_remove(cluster, &c.address)?)
        }
        Request::BlocklistList(_) => Reply::BlocklistList(monitor::blocklist(cluster)?),
        Request::BlocklistEntries(_) => Reply::BlocklistEntries(monitor::blocklist_entries(cluster)?),
        Request::MayFence(_) => Reply::MayFence(monitor::may_fence(cluster)?),
        Request::ClusterStatus(_) => Reply::ClusterStatus(about::status(cluster)?),
        Request::ClientRights(c) => Reply::ClientRights(about::rights(cluster, &c.user)?),
        Request::PoolAccess(c) => Reply::PoolAccess(about::access(&pool(&c.pool)?)?),
        Request::ConfGet(c) => Reply::ConfGet(cluster.conf_get(&c.option)?),

        Request::ObjectRead(c) => {
            Reply::ObjectRead(delta::read(&pool(&c.pool)?, &c.object, 0, MAX_READ as usize)?)
        }
        Request::ObjectWrite(c) => Reply::ObjectWrite(pool(&c.pool)?.write_object(&c.object, &c.data)?),
        Request::ObjectRemove(c) => {
            Reply::ObjectRemove(if_found(pool(&c.pool)?.remove_object(&c.object)).map(|_| ())?)
        }

        Request::ObjectList(c) => Reply::ObjectList(objects::list(&pool(&c.pool)?, c, progress)?),
        Request::ImageList(c) => Reply::ImageList(pool(&c.pool)?.images()?),
        Request::ImageCreate(c) => {
            Reply::ImageCreate(pool(&c.pool)?.create(&c.image, c.size, c.features, c.order)?)
        }
        Request::ImageId(c) => Reply::ImageId(pool(&c.pool)?.image_id(&c.image)?),
        Request::ImageStat(c) => {
            let io = pool(&c.pool)?;
            Reply::ImageStat(stat(&Image::open_read_only(&io, &c.image, None)?)?)
        }
        Request::ImageInspect(c) => {
            let io = pool(&c.pool)?;
            let image = Image::open_read_only(&io, &c.image, None)?;
            Reply::ImageInspect(Inspection { info: stat(&image)?, snaps: image.snapshots()? })
        }
        Request::ImageResize(c) => {
            let io = pool(&c.pool)?;
            Reply::ImageResize(Image::open(&io, &c.image)?.grow(c.size, progress)?)
        }
        Request::ImageRename(c) => Reply::ImageRename(pool(&c.pool)?.rename(&c.from, &c.to)?),
        Request::ImageRemove(c) => Reply::ImageRemove(pool(&c.pool)?.remove(&c.image, progress)?),
        Request::ImageFlatten(c) => {
            let io = pool(&c.pool)?;
            Reply::ImageFlatten(Image::open(&io, &c.image)?.flatten(progress)?)
        }
        Request::ImageCopy(c) => {
            let (io, dest) = (pool(&c.pool)?, pool(&c.dest_pool)?);
            let source = Image::open_read_only(&io, &c.image, c.snap.as_deref())?;
            Reply::ImageCopy(source.copy((&dest, &c.dest), c.features, c.order, progress)?)
        }
        Request::ImageTransfer(c) => {
            let (io, dest) = (pool(&c.pool)?, IoCtx::open(second.unwrap_or(cluster), &c.dest_pool)?);
            Reply::ImageTransfer(transfer(&io, &dest, c, progress)?)
        }
        Request::DeltaCopy(c) => {
            Reply::DeltaCopy(delta::copy(cluster, second.unwrap_or(cluster), c, progress)?)
        }
        Request::SumsCheck(c) => Reply::SumsCheck(delta::check(cluster, c, progress)?),
        Request::SumsFill(c) => Reply::SumsFill(delta::fill(cluster, c, progress)?),
        Request::SumsBegin(c) => Reply::SumsBegin(delta::begin(cluster, c)?),
        Request::ImageClone(c) => {
            let (io, dest) = (pool(&c.pool)?, pool(&c.dest_pool)?);
            let parent = (&io, c.image.as_str(), c.snap.as_str());
            Reply::ImageClone(ffi::clone_image(parent, (&dest, &c.dest), c.features, c.order)?)
        }
        Request::ReplicaClone(c) => {
            let (io, dest) = (pool(&c.pool)?, pool(&c.dest_pool)?);
            let parent = (&io, c.image.as_str(), c.snap.as_str());
            Reply::ReplicaClone(ffi::clone_replica(parent, (&dest, &c.dest), c.features, c.order)?)
        }
        Request::ImageChildren(c) => {
            let io = pool(&c.pool)?;
            Reply::ImageChildren(Image::open_read_only(&io, &c.image, c.snap.as_deref())?.children()?)
        }
        Request::ImageFeatures(c) => {
            let io = pool(&c.pool)?;
            Reply::ImageFeatures(set_features(&Image::open(&io, &c.image)?, c.features, c.enable)?)
        }
        Request::ImageSurvey(c) => Reply::ImageSurvey(survey(&pool(&c.pool)?, &c.images)?),
        Request::ImageWatchers(c) => {
            let io = pool(&c.pool)?;
            Reply::ImageWatchers(Image::open_read_only(&io, &c.image, None)?.watchers()?)
        }
        Request::LockOwners(c) => {
            let io = pool(&c.pool)?;
            Reply::LockOwners(lock_owners(&Image::open(&io, &c.image)?)?)
        }
        Request::LockBreak(c) => {
            let io = pool(&c.pool)?;
            Reply::LockBreak(Image::open(&io, &c.image)?.break_lock(&c.owner)?)
        }
        Request::CheckWritable(c) => {
            let io = pool(&c.pool)?;
            Reply::CheckWritable(check_writable(&Image::open(&io, &c.image)?, &c.image)?)
        }
        Request::ImageWrite(c) => {
            let io = pool(&c.pool)?;
            Reply::ImageWrite(Image::open(&io, &c.image)?.write(c.offset, &c.data)?)
        }
        Request::ImageRead(c) => {
            let io = pool(&c.pool)?;
            let image = Image::open_read_only(&io, &c.image, c.snap.as_deref())?;
            Reply::ImageRead(image.read(c.offset, read_length(c.length, &c.image)?)?)
        }
        Request::ImageImport(_) | Request::ImageExport(_) => {
            let what = format!("{} without its data", request.name());
            return Err(Failure::new("rbd_open", what, -i64::from(libc::EINVAL)));
        }
        Request::MetadataSet(c) => {
            let io = pool(&c.pool)?;
            Reply::MetadataSet(Image::open(&io, &c.image)?.set_metadata(&c.key, &c.value)?)
        }
        Request::MetadataList(c) => {
            let io = pool(&c.pool)?;
            Reply::MetadataList(Image::open_read_only(&io, &c.image, None)?.metadata()?)
        }
        Request::MetadataRemove(c) => {
            let io = pool(&c.pool)?;
            Reply::MetadataRemove(Image::open(&io, &c.image)?.remove_metadata(&c.key)?)
        }

        Request::SnapList(c) => {
            let io = pool(&c.pool)?;
            Reply::SnapList(Image::open_read_only(&io, &c.image, None)?.snapshots()?)
        }
        Request::SnapCreate(c) => {
            let io = pool(&c.pool)?;
            Reply::SnapCreate(Image::open(&io, &c.image)?.create_snapshot(&c.snap)?)
        }
        Request::SnapCreateTogether(c) => {
            Reply::SnapCreateTogether(together::create(cluster, &c.pool, &c.members)?)
        }
        Request::SnapProtect(c) => {
            let io = pool(&c.pool)?;
            Reply::SnapProtect(Image::open(&io, &c.image)?.protect_snapshot(&c.snap)?)
        }
        Request::SnapUnprotect(c) => {
            let io = pool(&c.pool)?;
            Reply::SnapUnprotect(Image::open(&io, &c.image)?.unprotect_snapshot(&c.snap)?)
        }
        Request::SnapRemove(c) => {
            let io = pool(&c.pool)?;
            Reply::SnapRemove(Image::open(&io, &c.image)?.remove_snapshot(&c.snap)?)
        }
        Request::SyncPointsRemove(c) => {
            let io = pool(&c.pool)?;
            Reply::SyncPointsRemove(Image::open(&io, &c.image)?.remove_stale_sync_points()?)
        }
        Request::SnapRename(c) => {
            let io = pool(&c.pool)?;
            Reply::SnapRename(Image::open(&io, &c.image)?.rename_snapshot(&c.from, &c.to)?)
        }
        Request::SnapRollback(c) => {
            let io = pool(&c.pool)?;
            let image = Image::open(&io, &c.image)?;
            require_primary(&image, &c.image)?;
            Reply::SnapRollback(image.roll_back(&c.snap, progress)?)
        }
        Request::SnapRestore(c) => {
            let io = pool(&c.pool)?;
            let snap = Image::open_read_only(&io, &c.image, Some(&c.snap))?;
            let image = Image::open(&io, &c.image)?;
            Reply::SnapRestore(locked(&image, &c.image, |image| image.restore(&snap, progress))?)
        }

        Request::TrashMove(c) => Reply::TrashMove(pool(&c.pool)?.trash_move(&c.image, c.delay)?),
        Request::TrashList(c) => Reply::TrashList(pool(&c.pool)?.trash()?),
        Request::TrashRemove(c) => Reply::TrashRemove(pool(&c.pool)?.trash_remove(&c.id, progress)?),
        Request::TrashRestore(c) => Reply::TrashRestore(pool(&c.pool)?.trash_restore(&c.id, &c.name)?),

        Request::MirrorPoolMode(c) => Reply::MirrorPoolMode(pool(&c.pool)?.mirror_mode()?),
        Request::MirrorEnable(c) => {
            let io = pool(&c.pool)?;
            Reply::MirrorEnable(Image::open(&io, &c.image)?.mirror_enable(c.mode)?)
        }
        Request::MirrorDisable(c) => {
            let io = pool(&c.pool)?;
            Reply::MirrorDisable(Image::open(&io, &c.image)?.mirror_disable(c.force)?)
        }
        Request::MirrorInfo(c) => {
            let io = pool(&c.pool)?;
            Reply::MirrorInfo(Image::open_read_only(&io, &c.image, None)?.mirror_info()?)
        }
        Request::MirrorInfoMany(c) => Reply::MirrorInfoMany(mirror_info_many(&pool(&c.pool)?, &c.images)?),
        Request::MirrorStatus(c) => {
            let io = pool(&c.pool)?;
            Reply::MirrorStatus(Image::open_read_only(&io, &c.image, None)?.mirror_status()?)
        }
        Request::MirrorStatusMany(c) => {
            Reply::MirrorStatusMany(mirror_status_many(&pool(&c.pool)?, &c.images)?)
        }
        Request::MirrorStatusPage(c) => {
            Reply::MirrorStatusPage(pool(&c.pool)?.mirror_status_page(&c.after, c.limit as usize)?)
        }
        Request::MirrorDaemons(c) => Reply::MirrorDaemons(pool(&c.pool)?.mirror_daemons()?),
        Request::MirrorPoolView(c) => Reply::MirrorPoolView(pool(&c.pool)?.mirror_pool()?),
        Request::MirrorSurvey(c) => Reply::MirrorSurvey(mirroring(&pool(&c.pool)?, &c.images)?),
        Request::MirrorPromote(c) => {
            let io = pool(&c.pool)?;
            Reply::MirrorPromote(Image::open(&io, &c.image)?.mirror_promote(c.force)?)
        }
        Request::MirrorDemote(c) => {
            let io = pool(&c.pool)?;
            Reply::MirrorDemote(Image::open(&io, &c.image)?.mirror_demote()?)
        }
        Request::MirrorResync(c) => {
            let io = pool(&c.pool)?;
            Reply::MirrorResync(Image::open(&io, &c.image)?.mirror_resync()?)
        }
        Request::MirrorSnapshot(c) => {
            let io = pool(&c.pool)?;
            Reply::MirrorSnapshot(Image::open(&io, &c.image)?.mirror_snapshot()?)
        }
        Request::JournalPeers(c) => {
            Reply::JournalPeers(Image::open_read_only(&pool(&c.pool)?, &c.image, None)?.journal_peers()?)
        }
        Request::MirrorSnaps(c) => {
            let io = pool(&c.pool)?;
            Reply::MirrorSnaps(Image::open_read_only(&io, &c.image, None)?.mirror_snapshots()?)
        }
        Request::ScheduleList(c) => Reply::ScheduleList(schedule::list(cluster, &c.pool)?),
        Request::ScheduleAdd(c) => {
            Reply::ScheduleAdd(schedule::add(cluster, &c.pool, &c.image, &c.schedule)?)
        }
        Request::ScheduleRemove(c) => {
            Reply::ScheduleRemove(schedule::remove(cluster, &c.pool, &c.image, &c.schedule)?)
        }

        Request::OsdPlaces(_) => Reply::OsdPlaces(link::osds(cluster)?),
        Request::ErasureProfileSet(c) => Reply::ErasureProfileSet(link::set_profile(cluster, &c.profile)?),
        Request::PoolEnsure(c) => Reply::PoolEnsure(link::ensure_pool(cluster, &c.pool, &c.shape)?),
        Request::PoolInit(c) => Reply::PoolInit(pool(&c.pool)?.initialise(c.data_pool.as_deref())?),
        Request::MirrorModeSet(c) => Reply::MirrorModeSet(pool(&c.pool)?.set_mirror_mode(c.mode)?),
        Request::SiteName(_) => Reply::SiteName(cluster.site_name()?),
        Request::SiteNameSet(c) => Reply::SiteNameSet(cluster.set_site_name(&c.name)?),
        Request::PeerBootstrap(c) => {
            let source = link::other(second)?;
            Reply::PeerBootstrap(link::bootstrap(&pool(&c.pool)?, &IoCtx::open(source, &c.pool)?, c.way)?)
        }
        Request::PeerAdd(c) => {
            let source = link::other(second)?;
            Reply::PeerAdd(link::add_peer(&pool(&c.pool)?, source, c)?)
        }
        Request::PeerRemove(c) => Reply::PeerRemove(pool(&c.pool)?.remove_peer(&c.uuid)?),
        Request::ClientExists(c) => Reply::ClientExists(link::client_exists(cluster, &c.user)?),
        Request::ClientRemove(c) => Reply::ClientRemove(link::remove_client(cluster, &c.user)?),
        Request::ClientPools(c) => Reply::ClientPools(link::allow(cluster, &c.user, &c.pools)?),
        Request::LevelSchedules(c) => Reply::LevelSchedules(levels::list(cluster, &c.level)?),
        Request::LevelScheduleAdd(c) => Reply::LevelScheduleAdd(levels::add(cluster, &c.level, &c.schedule)?),
        Request::LevelScheduleRemove(c) => {
            Reply::LevelScheduleRemove(levels::remove(cluster, &c.level, c.schedule.as_ref())?)
        }
        Request::LevelDue(c) => Reply::LevelDue(levels::due(cluster, &c.level)?),
        Request::SnapRevertChanges(c) => {
            let io = pool(&c.pool)?;
            let snap = Image::open_read_only(&io, &c.image, Some(&c.snap))?;
            let image = Image::open(&io, &c.image)?;
            let back = |image: &Image<'_>| image.revert_changes(&snap, &c.snap, progress);
            Reply::SnapRevertChanges(locked(&image, &c.image, back)?)
        }
        Request::ImageMoveState(c) => Reply::ImageMoveState(pool(&c.pool)?.move_state(&c.image)?),
        Request::ImageMoveBegin(c) => {
            let there = pool(&c.dest_pool)?;
            Reply::ImageMoveBegin(pool(&c.pool)?.move_begin(&c.image, (&there, &c.dest))?)
        }
        Request::ImageMoveData(c) => Reply::ImageMoveData(pool(&c.pool)?.move_data(&c.image, progress)?),
        Request::ImageMoveFinish(c) => {
            Reply::ImageMoveFinish(pool(&c.pool)?.move_finish(&c.image, progress)?)
        }
        Request::ImageMoveUndo(c) => Reply::ImageMoveUndo(pool(&c.pool)?.move_undo(&c.image, progress)?),
        Request::ImageDirectory(c) => Reply::ImageDirectory(pool(&c.pool)?.directory()?),
        Request::MirrorServices(_) => Reply::MirrorServices(services::mirror_daemons(cluster)?),
        Request::OrchestratorApply(c) => {
            Reply::OrchestratorApply(services::apply(cluster, c.placement.as_deref())?)
        }
        Request::OrchestratorAct(c) => Reply::OrchestratorAct(services::act(cluster, c.act)?),
    })
}

/// Writes, reads back and removes one small object.
fn probe_osd(cluster: &Arc<Cluster>, pool: &str, leftovers: &Leftovers) -> Result<(), Failure> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let io = IoCtx::open(cluster, pool)?;
    let nonce = format!("{}.{}", uuid::Uuid::new_v4().simple(), COUNT.fetch_add(1, Ordering::Relaxed));
    let name = format!("scoria_probe.{nonce}");
    let fsid = cluster.fsid()?;
    let checked = io.write_object(&name, nonce.as_bytes()).and_then(|()| {
        let read = io.read_object(&name, nonce.len() + 1)?;
        if read == nonce.as_bytes() {
            return Ok(());
        }
        let what = format!("{pool}/{name}: read back something else than was written");
        Err(Failure::new("rados_read", what, -i64::from(libc::EIO)))
    });
    let removed = io.remove_object(&name);
    let mut left = leftovers.0.lock().unwrap_or_else(PoisonError::into_inner);
    let unremoved = matches!(&removed, Err(f) if f.kind() != RbdErrorKind::NotFound);
    if unremoved && left.len() < 1000 {
        left.push((fsid.clone(), pool.to_owned(), name));
    }
    checked?;
    removed?;
    let is_here = |entry: &(String, String, String)| entry.0 == fsid && entry.1 == pool;
    let old: Vec<_> = left.extract_if(.., |entry| is_here(entry)).collect();
    drop(left);
    for (_, _, name) in old {
        // At most one small object stays when this fails.
        let _ = io.remove_object(&name);
    }
    Ok(())
}

fn stat(image: &Image<'_>) -> Result<ImageInfo, Failure> {
    let (size, order) = image.stat()?;
    Ok(ImageInfo {
        id: image.id()?,
        size,
        order,
        features: image.features()?,
        op_features: image.op_features()?,
        stripe_unit: image.stripe_unit()?,
        parent: image.parent()?,
    })
}

/// librbd refuses to set what is set (EINVAL), which a repeated call could not tell from a real refusal.
fn set_features(image: &Image<'_>, wanted: u64, enable: bool) -> Result<(), Failure> {
    let now = image.features()?;
    let change = if enable { wanted & !now } else { wanted & now };
    if change == 0 { Ok(()) } else { image.update_features(change, enable) }
}

/// librbd looks for owners only in an image that is open for writing and can have one: EINVAL without
/// the lock feature, or on a secondary that is mirrored by snapshots.
fn lock_owners(image: &Image<'_>) -> Result<Vec<String>, Failure> {
    let features = image.features()?;
    if features & features::EXCLUSIVE_LOCK == 0 || features & features::NON_PRIMARY != 0 {
        return Ok(Vec::new());
    }
    image.lock_owners()
}

/// Refuses a mirrored copy before its lock is asked for: that makes librbd bother rbd-mirror, which may hold
/// up the next failover.
fn require_primary(image: &Image<'_>, name: &str) -> Result<(), Failure> {
    let mirroring = image.mirror_info()?;
    if mirroring.state != MirrorState::Disabled && !mirroring.primary {
        let what = format!("{name} is not primary on this site");
        return Err(Failure::new("rbd_lock_acquire", what, -i64::from(libc::EROFS)));
    }
    Ok(())
}

/// Works under the lock, which nobody gets meanwhile. Without it a write would wait for a lock that is not
/// given up for as long as it is held; and a handle that has once taken the lock writes only while it has it.
fn locked<T>(
    image: &Image<'_>,
    name: &str,
    work: impl FnOnce(&Image<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    require_primary(image, name)?;
    let locks = image.features()? & features::EXCLUSIVE_LOCK != 0;
    if locks {
        image.lock()?;
    }
    let done = work(image)?;
    if locks {
        image.unlock()?;
    }
    Ok(done)
}

/// Whether this side takes a writer now.
fn check_writable(image: &Image<'_>, name: &str) -> Result<(), Failure> {
    require_primary(image, name)?;
    if image.features()? & features::EXCLUSIVE_LOCK != 0 {
        image.lock()?;
        image.unlock()?;
    }
    Ok(())
}

/// Bytes that one read takes from the source. Four objects of the usual size, which are read, and written,
/// side by side.
const PIECE: u64 = 16 << 20;
/// Runs of zeros of this many bytes are not written.
const GRAIN: usize = 64 << 10;
static ZEROS: [u8; GRAIN] = [0; GRAIN];

/// Copies a part of an image, piece by piece, leaving out what is zero.
fn transfer(io: &IoCtx, dest_io: &IoCtx, c: &ImageTransfer, progress: Progress<'_>) -> Result<u64, Failure> {
    let source = Image::open_read_only(io, &c.image, None)?;
    let dest = Image::open(dest_io, &c.dest)?;
    let (size, _) = source.stat()?;
    let length = c.length.min(size.saturating_sub(c.offset));
    let mut written = 0;
    for (start, run) in source.extents(c.offset, length)? {
        let end = start + run;
        let mut at = start;
        while at < end {
            let wanted = (end - at).min(PIECE);
            let data = source.read(at, usize::try_from(wanted).unwrap_or(0))?;
            if data.is_empty() {
                break; // the image has become smaller
            }
            for (from, to) in filled(&data) {
                dest.write(at + from as u64, data.get(from..to).unwrap_or_default())?;
                written += (to - from) as u64;
            }
            at += data.len() as u64;
            progress(at - c.offset, length);
        }
    }
    Ok(written)
}

/// The runs of whole grains that are not all zero.
pub(super) fn filled(data: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (n, grain) in data.chunks(GRAIN).enumerate() {
        // Compared as a block, which is quick in a debug build, too: images are gigabytes.
        if ZEROS.starts_with(grain) {
            continue;
        }
        let (from, to) = (n * GRAIN, n * GRAIN + grain.len());
        match runs.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => runs.push((from, to)),
        }
    }
    runs
}

/// A read goes into one frame, as text: not more than 8 MiB at once.
const MAX_READ: u64 = 8 << 20;

fn read_length(length: u64, image: &str) -> Result<usize, Failure> {
    const MAX: u64 = MAX_READ;
    match usize::try_from(length) {
        Ok(fits) if length <= MAX => Ok(fits),
        _ => {
            let what = format!("{image}: {length} bytes in one read, more than {MAX}");
            Err(Failure::new("rbd_read", what, -i64::from(libc::EINVAL)))
        }
    }
}

/// librbd has a listing with the same facts, but it visits every mirrored image of the pool one after
/// the other; opening the images asked for, several at a time, is faster for any number of them.
fn mirror_info_many(io: &IoCtx, images: &[String]) -> Result<Vec<Option<Mirroring>>, Failure> {
    many(images, |name| if_found(Image::open_read_only(io, name, None).and_then(|image| image.mirror_info())))
}

fn mirror_status_many(io: &IoCtx, images: &[String]) -> Result<Vec<Option<MirrorReport>>, Failure> {
    many(images, |name| {
        if_found(Image::open_read_only(io, name, None).and_then(|image| {
            // Asked first, because almost all are mirrored: it saves them a question.
            match image.mirror_status() {
                Ok(report) if report.info.state == MirrorState::Enabled => Ok(report),
                Ok(MirrorReport { info, .. }) => Ok(MirrorReport::without_reports(info)),
                Err(failure) => match image.mirror_info()? {
                    info if info.state == MirrorState::Enabled => Err(failure),
                    info => Ok(MirrorReport::without_reports(info)),
                },
            }
        }))
    })
}

/// `None` for an image that is not there.
fn if_found<T>(looked: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.kind() == RbdErrorKind::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// An image that cannot be opened (half of one, or one whose data pool is out of reach) must not hide the
/// others from a list; a site that does not answer is no such image.
fn survey(io: &IoCtx, images: &[String]) -> Result<Vec<Option<Surveyed>>, Failure> {
    many(images, |name| {
        let look = || {
            let image = Image::open_read_only(io, name, None)?;
            let (size, _) = image.stat()?;
            Ok(Surveyed { size, watchers: image.watchers()?.len(), snaps: image.snapshots()? })
        };
        match look() {
            Ok(seen) => Ok(Some(seen)),
            Err(failure) => match Failure::kind(&failure) {
                RbdErrorKind::NotFound
                | RbdErrorKind::NotSupported
                | RbdErrorKind::Invalid
                | RbdErrorKind::Permission
                | RbdErrorKind::Other => Ok(None),
                _ => Err(failure),
            },
        }
    })
}

/// Looks at many images, several at a time; the answers are in the order of `images`.
pub(super) fn many<T: Clone + Send>(
    images: &[String],
    look: impl Fn(&str) -> Result<Option<T>, Failure> + Sync,
) -> Result<Vec<Option<T>>, Failure> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; images.len()]);
    let work = || -> Result<(), Failure> {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = images.get(n) else { return Ok(()) };
            let found = match look(name) {
                Ok(found) => found,
                Err(failure) => {
                    next.store(images.len(), Ordering::Relaxed);
                    return Err(failure);
                }
            };
            if let Some(slot) = results.lock().unwrap_or_else(PoisonError::into_inner).get_mut(n) {
                *slot = found;
            }
        }
    };
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..OPEN_AT_ONCE.min(images.len()))
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut outcome = work();
        for helper in helpers {
            let helped = helper.join().unwrap_or_else(|_| {
                let what = "a thread that looked at images panicked".to_owned();
                Err(Failure::new("rbd_open_read_only", what, -i64::from(libc::EIO)))
            });
            outcome = outcome.and(helped);
        }
        outcome
    })?;
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_zero_is_written() {
        let mut data = vec![0; 5 * GRAIN + 3];
        assert!(filled(&data).is_empty());
        data[GRAIN] = 1;
        data[3 * GRAIN - 1] = 1;
        data[5 * GRAIN + 2] = 1;
        assert_eq!(filled(&data), [(GRAIN, 3 * GRAIN), (5 * GRAIN, 5 * GRAIN + 3)]);
        assert_eq!(filled(&[1]), [(0, 1)]);
    }
}
