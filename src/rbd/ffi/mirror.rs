//! Mirroring of a pool and of an image.

use std::ffi::{c_char, c_int, c_uint};
use std::mem::zeroed;
use std::ptr::null_mut;

use super::c::{rados_ioctx_t, rbd_image_t};
use super::image::Image;
use super::rados::IoCtx;
use super::{Failure, check, functions, owned, text};
use crate::rbd::error::RbdErrorKind;
use crate::rbd::types::{
    MirrorListed, MirrorMode, MirrorPage, MirrorReport, MirrorSiteStatus, MirrorState, Mirroring,
    PoolMirrorMode,
};

#[allow(non_camel_case_types)]
pub(super) type rbd_mirror_mode_t = c_uint;
pub(super) const RBD_MIRROR_MODE_DISABLED: rbd_mirror_mode_t = 0;
pub(super) const RBD_MIRROR_MODE_IMAGE: rbd_mirror_mode_t = 1;
pub(super) const RBD_MIRROR_MODE_POOL: rbd_mirror_mode_t = 2;

#[allow(non_camel_case_types)]
type rbd_mirror_image_mode_t = c_uint;
const RBD_MIRROR_IMAGE_MODE_JOURNAL: rbd_mirror_image_mode_t = 0;
const RBD_MIRROR_IMAGE_MODE_SNAPSHOT: rbd_mirror_image_mode_t = 1;

#[allow(non_camel_case_types)]
type rbd_mirror_image_state_t = c_uint;
const RBD_MIRROR_IMAGE_DISABLING: rbd_mirror_image_state_t = 0;
const RBD_MIRROR_IMAGE_ENABLED: rbd_mirror_image_state_t = 1;
const RBD_MIRROR_IMAGE_DISABLED: rbd_mirror_image_state_t = 2;

#[allow(non_camel_case_types)]
type rbd_mirror_image_status_state_t = c_uint;
const MIRROR_IMAGE_STATUS_STATE_UNKNOWN: rbd_mirror_image_status_state_t = 0;
const MIRROR_IMAGE_STATUS_STATE_ERROR: rbd_mirror_image_status_state_t = 1;
const MIRROR_IMAGE_STATUS_STATE_SYNCING: rbd_mirror_image_status_state_t = 2;
const MIRROR_IMAGE_STATUS_STATE_STARTING_REPLAY: rbd_mirror_image_status_state_t = 3;
const MIRROR_IMAGE_STATUS_STATE_REPLAYING: rbd_mirror_image_status_state_t = 4;
const MIRROR_IMAGE_STATUS_STATE_STOPPING_REPLAY: rbd_mirror_image_status_state_t = 5;
const MIRROR_IMAGE_STATUS_STATE_STOPPED: rbd_mirror_image_status_state_t = 6;

#[allow(non_camel_case_types)]
type time_t = i64;

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_mirror_image_info_t {
    global_id: *mut c_char,
    state: rbd_mirror_image_state_t,
    primary: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_mirror_image_site_status_t {
    mirror_uuid: *mut c_char,
    state: rbd_mirror_image_status_state_t,
    description: *mut c_char,
    last_update: time_t,
    up: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_mirror_image_global_status_t {
    name: *mut c_char,
    info: rbd_mirror_image_info_t,
    site_statuses_count: u32,
    site_statuses: *mut rbd_mirror_image_site_status_t,
}

functions! { Functions {
    fn rbd_mirror_mode_get(io_ctx: rados_ioctx_t, mirror_mode: *mut rbd_mirror_mode_t) -> c_int;
    fn rbd_mirror_image_enable2(image: rbd_image_t, mode: rbd_mirror_image_mode_t) -> c_int;
    fn rbd_mirror_image_disable(image: rbd_image_t, force: bool) -> c_int;
    fn rbd_mirror_image_promote(image: rbd_image_t, force: bool) -> c_int;
    fn rbd_mirror_image_demote(image: rbd_image_t) -> c_int;
    fn rbd_mirror_image_resync(image: rbd_image_t) -> c_int;
    fn rbd_mirror_image_create_snapshot(image: rbd_image_t, snap_id: *mut u64) -> c_int;
    fn rbd_mirror_image_get_info(image: rbd_image_t, mirror_image_info: *mut rbd_mirror_image_info_t, info_size: usize) -> c_int;
    fn rbd_mirror_image_get_info_cleanup(mirror_image_info: *mut rbd_mirror_image_info_t);
    fn rbd_mirror_image_get_mode(image: rbd_image_t, mode: *mut rbd_mirror_image_mode_t) -> c_int;
    fn rbd_mirror_image_get_global_status(image: rbd_image_t, mirror_image_global_status: *mut rbd_mirror_image_global_status_t, status_size: usize) -> c_int;
    fn rbd_mirror_image_global_status_cleanup(mirror_image_global_status: *mut rbd_mirror_image_global_status_t);
    fn rbd_mirror_image_global_status_list(io_ctx: rados_ioctx_t, start_id: *const c_char, max: usize, image_ids: *mut *mut c_char, images: *mut rbd_mirror_image_global_status_t, len: *mut usize) -> c_int;
    fn rbd_mirror_image_global_status_list_cleanup(image_ids: *mut *mut c_char, images: *mut rbd_mirror_image_global_status_t, len: usize);
    fn rbd_mirror_uuid_get(io_ctx: rados_ioctx_t, uuid: *mut c_char, max_len: *mut usize) -> c_int;
} }

impl IoCtx {
    /// How the pool is mirrored.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_mode_get(rados_ioctx_t io_ctx, rbd_mirror_mode_t *mirror_mode);
    /// ```
    pub(crate) fn mirror_mode(&self) -> Result<PoolMirrorMode, Failure> {
        let call = "rbd_mirror_mode_get";
        let mut mode: rbd_mirror_mode_t = RBD_MIRROR_MODE_DISABLED;
        // SAFETY: valid ioctx and out-pointer.
        let result = unsafe { (self.api().mirror.rbd_mirror_mode_get)(self.handle, &mut mode) };
        check(call, || self.path(""), result)?;
        match mode {
            RBD_MIRROR_MODE_DISABLED => Ok(PoolMirrorMode::Disabled),
            RBD_MIRROR_MODE_IMAGE => Ok(PoolMirrorMode::Image),
            RBD_MIRROR_MODE_POOL => Ok(PoolMirrorMode::Pool),
            // Ceph 20 adds a mode for images that are only initialised; nothing of it is known here.
            other => Err(unknown(call, format!("mirror mode {other} of {}", self.path("")))),
        }
    }
}

/// Most images in one page: what the `rbd` command takes.
const PAGE: usize = 1024;

impl IoCtx {
    /// How this pool's daemon signs what it reports to its peers; empty where none has run.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_uuid_get(rados_ioctx_t io_ctx, char *uuid, size_t *max_len);
    /// ```
    fn mirror_uuid(&self) -> Result<String, Failure> {
        // A uuid has 36 characters.
        let mut buffer = [0_u8; 64];
        let mut length = buffer.len();
        // SAFETY: valid ioctx, a buffer of the length given.
        let result = unsafe {
            (self.api().mirror.rbd_mirror_uuid_get)(self.handle, buffer.as_mut_ptr().cast(), &mut length)
        };
        match check("rbd_mirror_uuid_get", || self.path(""), result) {
            Ok(_) => {
                let end = buffer.iter().position(|b| *b == 0).unwrap_or(buffer.len());
                Ok(String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).into_owned())
            }
            Err(failure) if failure.kind() == RbdErrorKind::NotFound => Ok(String::new()),
            Err(failure) => Err(failure),
        }
    }

    /// Mirrored images with the daemons' reports, at most `limit`, those after the id `after`.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_image_global_status_list(rados_ioctx_t io_ctx, const char *start_id, size_t max, char **image_ids, rbd_mirror_image_global_status_t *images, size_t *len);
    /// void rbd_mirror_image_global_status_list_cleanup(char **image_ids, rbd_mirror_image_global_status_t *images, size_t len);
    /// ```
    pub(crate) fn mirror_status_page(&self, after: &str, limit: usize) -> Result<MirrorPage, Failure> {
        let call = "rbd_mirror_image_global_status_list";
        let f = &self.api().mirror;
        let after = text(call, after)?;
        let max = limit.clamp(1, PAGE);
        let mut ids: Vec<*mut c_char> = vec![null_mut(); max];
        // SAFETY: pointers, numbers and a bool, valid when zero.
        let mut found: Vec<rbd_mirror_image_global_status_t> = vec![unsafe { zeroed() }; max];
        let mut length = max;
        // SAFETY: valid ioctx and string, two arrays of `max` elements.
        let result = unsafe {
            (f.rbd_mirror_image_global_status_list)(
                self.handle,
                after.as_ptr(),
                max,
                ids.as_mut_ptr(),
                found.as_mut_ptr(),
                &mut length,
            )
        };
        check(call, || self.path(""), result)?;
        let length = length.min(max);
        // SAFETY: librbd filled so many elements of both; the cleanup ends all of them.
        let images = unsafe {
            let listed = |(id, status): (&*mut c_char, &rbd_mirror_image_global_status_t)| {
                let (local, peers) = sides(sites(status));
                let (id, name, global_id) = (owned(*id), owned(status.name), owned(status.info.global_id));
                MirrorListed { id, name, global_id, local, peers }
            };
            let images = ids.iter().zip(&found).take(length).map(listed).collect();
            (f.rbd_mirror_image_global_status_list_cleanup)(ids.as_mut_ptr(), found.as_mut_ptr(), length);
            images
        };
        Ok(MirrorPage { mirror_uuid: self.mirror_uuid()?, images })
    }
}

impl Image<'_> {
    /// Enables mirroring.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_image_enable2(rbd_image_t image, rbd_mirror_image_mode_t mode);
    /// ```
    pub(crate) fn mirror_enable(&self, mode: MirrorMode) -> Result<(), Failure> {
        let mode = match mode {
            MirrorMode::Journal => RBD_MIRROR_IMAGE_MODE_JOURNAL,
            MirrorMode::Snapshot => RBD_MIRROR_IMAGE_MODE_SNAPSHOT,
        };
        // SAFETY: open image.
        let result = unsafe { (self.api().mirror.rbd_mirror_image_enable2)(self.handle, mode) };
        check("rbd_mirror_image_enable2", || self.path(), result)?;
        Ok(())
    }

    /// Disables mirroring; on a secondary only with `force`.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_image_disable(rbd_image_t image, bool force);
    /// ```
    pub(crate) fn mirror_disable(&self, force: bool) -> Result<(), Failure> {
        // SAFETY: open image.
        let result = unsafe { (self.api().mirror.rbd_mirror_image_disable)(self.handle, force) };
        check("rbd_mirror_image_disable", || self.path(), result)?;
        Ok(())
    }

    /// Makes this side primary; without `force`, EBUSY until the other side's demotion has arrived.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_image_promote(rbd_image_t image, bool force);
    /// ```
    pub(crate) fn mirror_promote(&self, force: bool) -> Result<(), Failure> {
        // SAFETY: open image.
        let result = unsafe { (self.api().mirror.rbd_mirror_image_promote)(self.handle, force) };
        check("rbd_mirror_image_promote", || self.path(), result)?;
        Ok(())
    }

    /// Makes this side secondary.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_image_demote(rbd_image_t image);
    /// ```
    pub(crate) fn mirror_demote(&self) -> Result<(), Failure> {
        // SAFETY: open image.
        let result = unsafe { (self.api().mirror.rbd_mirror_image_demote)(self.handle) };
        check("rbd_mirror_image_demote", || self.path(), result)?;
        Ok(())
    }

    /// Flags this side's copy to be thrown away and synced anew.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_image_resync(rbd_image_t image);
    /// ```
    pub(crate) fn mirror_resync(&self) -> Result<(), Failure> {
        // SAFETY: open image.
        let result = unsafe { (self.api().mirror.rbd_mirror_image_resync)(self.handle) };
        check("rbd_mirror_image_resync", || self.path(), result)?;
        Ok(())
    }

    /// Makes a mirror snapshot, answers its id.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_image_create_snapshot(rbd_image_t image, uint64_t *snap_id);
    /// ```
    pub(crate) fn mirror_snapshot(&self) -> Result<u64, Failure> {
        let mut id = 0;
        // SAFETY: open image and valid out-pointer.
        let result = unsafe { (self.api().mirror.rbd_mirror_image_create_snapshot)(self.handle, &mut id) };
        check("rbd_mirror_image_create_snapshot", || self.path(), result)?;
        Ok(id)
    }

    /// State, mode, primary flag and global id.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_image_get_info(rbd_image_t image, rbd_mirror_image_info_t *mirror_image_info, size_t info_size);
    /// void rbd_mirror_image_get_info_cleanup(rbd_mirror_image_info_t *mirror_image_info);
    /// ```
    pub(crate) fn mirror_info(&self) -> Result<Mirroring, Failure> {
        let call = "rbd_mirror_image_get_info";
        let f = &self.api().mirror;
        // SAFETY: a pointer, a number and a bool, valid when zero.
        let mut info: rbd_mirror_image_info_t = unsafe { zeroed() };
        // SAFETY: open image, a structure of the size given.
        let result = unsafe {
            (f.rbd_mirror_image_get_info)(self.handle, &mut info, size_of::<rbd_mirror_image_info_t>())
        };
        check(call, || self.path(), result)?;
        // SAFETY: librbd filled it; the cleanup ends its string.
        unsafe {
            let mirroring = self.mirroring(call, &info);
            (f.rbd_mirror_image_get_info_cleanup)(&mut info);
            mirroring
        }
    }

    /// Adds the mode, which librbd tells by another call.
    ///
    /// # Safety
    /// `info` was filled by librbd and not yet cleaned up.
    unsafe fn mirroring(
        &self,
        call: &'static str,
        info: &rbd_mirror_image_info_t,
    ) -> Result<Mirroring, Failure> {
        let state = match info.state {
            RBD_MIRROR_IMAGE_DISABLING => MirrorState::Disabling,
            RBD_MIRROR_IMAGE_ENABLED => MirrorState::Enabled,
            RBD_MIRROR_IMAGE_DISABLED => MirrorState::Disabled,
            other => return Err(unknown(call, format!("mirror state {other} of {}", self.path()))),
        };
        let mode = match state {
            // Meaningless, and librbd answers with an error.
            MirrorState::Disabled => MirrorMode::Journal,
            MirrorState::Enabled | MirrorState::Disabling => self.mirror_image_mode()?,
        };
        // SAFETY: the caller's promise.
        let global_id = unsafe { owned(info.global_id) };
        Ok(Mirroring { state, mode, primary: info.primary, global_id })
    }

    /// Implements:
    /// ```c
    /// int rbd_mirror_image_get_mode(rbd_image_t image, rbd_mirror_image_mode_t *mode);
    /// ```
    fn mirror_image_mode(&self) -> Result<MirrorMode, Failure> {
        let call = "rbd_mirror_image_get_mode";
        let mut mode: rbd_mirror_image_mode_t = RBD_MIRROR_IMAGE_MODE_JOURNAL;
        // SAFETY: open image and valid out-pointer.
        let result = unsafe { (self.api().mirror.rbd_mirror_image_get_mode)(self.handle, &mut mode) };
        check(call, || self.path(), result)?;
        match mode {
            RBD_MIRROR_IMAGE_MODE_JOURNAL => Ok(MirrorMode::Journal),
            RBD_MIRROR_IMAGE_MODE_SNAPSHOT => Ok(MirrorMode::Snapshot),
            other => Err(unknown(call, format!("mirror mode {other} of {}", self.path()))),
        }
    }

    /// What the daemons of all sites last reported here.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_image_get_global_status(rbd_image_t image, rbd_mirror_image_global_status_t *mirror_image_global_status, size_t status_size);
    /// void rbd_mirror_image_global_status_cleanup(rbd_mirror_image_global_status_t *mirror_image_global_status);
    /// ```
    pub(crate) fn mirror_status(&self) -> Result<MirrorReport, Failure> {
        let call = "rbd_mirror_image_get_global_status";
        let f = &self.api().mirror;
        // SAFETY: pointers, numbers and a bool, valid when zero.
        let mut status: rbd_mirror_image_global_status_t = unsafe { zeroed() };
        // SAFETY: open image, a structure of the size given.
        let result = unsafe {
            (f.rbd_mirror_image_get_global_status)(
                self.handle,
                &mut status,
                size_of::<rbd_mirror_image_global_status_t>(),
            )
        };
        check(call, || self.path(), result)?;
        // SAFETY: librbd filled it, with an array of the length it says; the cleanup ends all of it.
        let (info, sites) = unsafe {
            let info = self.mirroring(call, &status.info);
            let sites = sites(&status);
            (f.rbd_mirror_image_global_status_cleanup)(&mut status);
            (info, sites)
        };
        let (local, peers) = sides(sites);
        let info = info?;
        let registered = match info.mode {
            MirrorMode::Journal if info.state == MirrorState::Enabled => self.journal_clients()?,
            MirrorMode::Journal | MirrorMode::Snapshot => Vec::new(),
        };
        Ok(MirrorReport { info, local, peers, registered })
    }
}

/// The omap key of a client of a journal's header object; the image itself is the client without a name
/// (Ceph, `cls_journal.cc`: `HEADER_KEY_CLIENT_PREFIX`).
const CLIENT_KEY: &str = "client_";

impl Image<'_> {
    /// Mirror uuids of the peers whose daemons are registered in this image's journal. librbd's C interface
    /// has no call for it.
    fn journal_clients(&self) -> Result<Vec<String>, Failure> {
        let journal = self.io.omap(&format!("journal.{}", self.id()?))?;
        let clients = journal.iter().filter_map(|(key, _)| key.strip_prefix(CLIENT_KEY));
        Ok(clients.filter(|id| !id.is_empty()).map(str::to_owned).collect())
    }

    /// Removes the sync points that no client of the image's journal knows of. rbd-mirror writes the name of a
    /// sync point into its client's record before it makes it, and takes it out after it has removed it (Ceph,
    /// `image_sync/SyncPointCreateRequest.cc`, `SyncPointPruneRequest.cc`): one without record is nobody's.
    pub(crate) fn remove_stale_sync_points(&self) -> Result<u32, Failure> {
        let points = self.sync_points()?;
        if points.is_empty() {
            return Ok(0);
        }
        let journal = self.io.omap(&format!("journal.{}", self.id()?))?;
        let records =
            || journal.iter().filter(|(key, _)| key.starts_with(CLIENT_KEY)).map(|(_, value)| value);
        let mut removed = 0;
        for name in points {
            // The record is encoded, but a name in it is a plain string.
            if !records().any(|record| record.windows(name.len()).any(|part| part == name.as_bytes())) {
                match self.remove_snapshot(&name) {
                    Ok(()) => removed += 1,
                    // The copy has ended since the list was made.
                    Err(failure) if failure.kind() == RbdErrorKind::NotFound => {}
                    Err(failure) => return Err(failure),
                }
            }
        }
        Ok(removed)
    }
}

/// The report of the local daemon, and those of its peers. A side that never reported is listed as unknown, at
/// time 0.
fn sides(sites: Vec<MirrorSiteStatus>) -> (Option<MirrorSiteStatus>, Vec<MirrorSiteStatus>) {
    let reported = sites.into_iter().filter(|s| s.last_update != 0);
    let (local, peers): (Vec<_>, Vec<_>) = reported.partition(|s| s.mirror_uuid.is_empty());
    (local.into_iter().next(), peers)
}

/// # Safety
/// `status` was filled by librbd and not yet cleaned up.
unsafe fn sites(status: &rbd_mirror_image_global_status_t) -> Vec<MirrorSiteStatus> {
    if status.site_statuses.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe {
        std::slice::from_raw_parts(status.site_statuses, status.site_statuses_count as usize)
            .iter()
            .map(|s| MirrorSiteStatus {
                mirror_uuid: owned(s.mirror_uuid),
                state: state_name(s.state).to_owned(),
                up: s.up,
                description: owned(s.description),
                last_update: s.last_update,
            })
            .collect()
    }
}

/// As the `rbd` command prints it (without its `up+`).
fn state_name(state: rbd_mirror_image_status_state_t) -> &'static str {
    match state {
        MIRROR_IMAGE_STATUS_STATE_UNKNOWN => "unknown",
        MIRROR_IMAGE_STATUS_STATE_ERROR => "error",
        MIRROR_IMAGE_STATUS_STATE_SYNCING => "syncing",
        MIRROR_IMAGE_STATUS_STATE_STARTING_REPLAY => "starting_replay",
        MIRROR_IMAGE_STATUS_STATE_REPLAYING => "replaying",
        MIRROR_IMAGE_STATUS_STATE_STOPPING_REPLAY => "stopping_replay",
        MIRROR_IMAGE_STATUS_STATE_STOPPED => "stopped",
        _ => "unknown",
    }
}

/// A value that this version of Scoria has no name for.
fn unknown(call: &'static str, what: String) -> Failure {
    Failure::new(call, what, -i64::from(libc::EOPNOTSUPP))
}
