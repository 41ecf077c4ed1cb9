//! The trash of a pool.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::c::{librbd_progress_fn_t, rados_ioctx_t};
use super::rados::IoCtx;
use super::{Failure, Progress, check, functions, listing, on_progress, owned, progress_arg, text};
use crate::rbd::types::TrashEntry;

#[allow(non_camel_case_types)]
type rbd_trash_image_source_t = c_uint;

/// `enum` of sources in librbd.h.
const RBD_TRASH_IMAGE_SOURCE_MIRRORING: rbd_trash_image_source_t = 1;

#[allow(non_camel_case_types)]
type time_t = i64;

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_trash_image_info_t {
    id: *mut c_char,
    name: *mut c_char,
    source: rbd_trash_image_source_t,
    deletion_time: time_t,
    deferment_end_time: time_t,
}

functions! { Functions {
    fn rbd_trash_move(io: rados_ioctx_t, name: *const c_char, delay: u64) -> c_int;
    fn rbd_trash_list(io: rados_ioctx_t, trash_entries: *mut rbd_trash_image_info_t, num_entries: *mut usize) -> c_int;
    fn rbd_trash_list_cleanup(trash_entries: *mut rbd_trash_image_info_t, num_entries: usize);
    fn rbd_trash_restore(io: rados_ioctx_t, id: *const c_char, name: *const c_char) -> c_int;
    fn rbd_trash_remove_with_progress(io: rados_ioctx_t, id: *const c_char, force: bool, cb: librbd_progress_fn_t, cbdata: *mut c_void) -> c_int;
} }

impl IoCtx {
    /// Moves an image to the trash, removable after `delay` seconds.
    ///
    /// Implements:
    /// ```c
    /// int rbd_trash_move(rados_ioctx_t io, const char *name, uint64_t delay);
    /// ```
    pub(crate) fn trash_move(&self, name: &str, delay: u64) -> Result<(), Failure> {
        let call = "rbd_trash_move";
        let c_name = text(call, name)?;
        // SAFETY: valid ioctx and string.
        let result = unsafe { (self.api().trash.rbd_trash_move)(self.handle, c_name.as_ptr(), delay) };
        check(call, || self.path(name), result)?;
        Ok(())
    }

    /// All entries, whoever put them there.
    ///
    /// Implements:
    /// ```c
    /// int rbd_trash_list(rados_ioctx_t io, rbd_trash_image_info_t *trash_entries, size_t *num_entries);
    /// void rbd_trash_list_cleanup(rbd_trash_image_info_t *trash_entries, size_t num_entries);
    /// ```
    pub(crate) fn trash(&self) -> Result<Vec<TrashEntry>, Failure> {
        let f = &self.api().trash;
        // SAFETY: pointers and numbers, valid when zero; librbd keeps to the capacity and sets it.
        let mut list = unsafe {
            listing("rbd_trash_list", &|| self.path("trash"), |entries, max| {
                (f.rbd_trash_list)(self.handle, entries, max)
            })?
        };
        // SAFETY: librbd filled `list`; its strings are valid until the cleanup, which ends them.
        unsafe {
            let entries = list
                .iter()
                .map(|e| TrashEntry {
                    id: owned(e.id),
                    name: owned(e.name),
                    deferment_end: e.deferment_end_time,
                    mirroring: e.source == RBD_TRASH_IMAGE_SOURCE_MIRRORING,
                })
                .collect();
            (f.rbd_trash_list_cleanup)(list.as_mut_ptr(), list.len());
            Ok(entries)
        }
    }

    /// Makes an entry an image again.
    ///
    /// Implements:
    /// ```c
    /// int rbd_trash_restore(rados_ioctx_t io, const char *id, const char *name);
    /// ```
    pub(crate) fn trash_restore(&self, id: &str, name: &str) -> Result<(), Failure> {
        let call = "rbd_trash_restore";
        let (c_id, c_name) = (text(call, id)?, text(call, name)?);
        // SAFETY: valid ioctx and strings.
        let result =
            unsafe { (self.api().trash.rbd_trash_restore)(self.handle, c_id.as_ptr(), c_name.as_ptr()) };
        check(call, || format!("trash entry {id} to {}", self.path(name)), result)?;
        Ok(())
    }

    /// Removes an entry for good; EPERM before its deferment has passed.
    ///
    /// Implements:
    /// ```c
    /// int rbd_trash_remove_with_progress(rados_ioctx_t io, const char *id, bool force, librbd_progress_fn_t cb, void *cbdata);
    /// ```
    pub(crate) fn trash_remove(&self, id: &str, mut progress: Progress<'_>) -> Result<(), Failure> {
        let call = "rbd_trash_remove_with_progress";
        let c_id = text(call, id)?;
        // SAFETY: valid ioctx and string; `progress` outlives the call.
        let result = unsafe {
            (self.api().trash.rbd_trash_remove_with_progress)(
                self.handle,
                c_id.as_ptr(),
                false,
                Some(on_progress),
                progress_arg(&mut progress),
            )
        };
        check(call, || self.path(&format!("trash entry {id}")), result)?;
        Ok(())
    }
}
