//! Moving an image to another pool of its cluster: librbd's live migration. From its beginning on clients open the image
//! in the new pool, and read through to the old one what has not been moved yet.

use std::ffi::{c_char, c_int, c_void};
use std::mem::zeroed;

use super::c::{librbd_progress_fn_t, rados_ioctx_t, rbd_image_options_t};
use super::image::Options;
use super::rados::IoCtx;
use super::{Failure, Progress, check, functions, on_progress, owned, progress_arg, text};
use crate::rbd::types::{MoveState, Moving};

#[allow(non_camel_case_types)]
type rbd_image_migration_state_t = c_int;

const RBD_IMAGE_MIGRATION_STATE_PREPARING: rbd_image_migration_state_t = 1;
const RBD_IMAGE_MIGRATION_STATE_PREPARED: rbd_image_migration_state_t = 2;
const RBD_IMAGE_MIGRATION_STATE_EXECUTING: rbd_image_migration_state_t = 3;
const RBD_IMAGE_MIGRATION_STATE_EXECUTED: rbd_image_migration_state_t = 4;
const RBD_IMAGE_MIGRATION_STATE_ABORTING: rbd_image_migration_state_t = 5;

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_image_migration_status_t {
    source_pool_id: i64,
    source_pool_namespace: *mut c_char,
    source_image_name: *mut c_char,
    source_image_id: *mut c_char,
    dest_pool_id: i64,
    dest_pool_namespace: *mut c_char,
    dest_image_name: *mut c_char,
    dest_image_id: *mut c_char,
    state: rbd_image_migration_state_t,
    state_description: *mut c_char,
}

functions! { Functions {
    fn rbd_migration_prepare(ioctx: rados_ioctx_t, image_name: *const c_char, dest_ioctx: rados_ioctx_t, dest_image_name: *const c_char, opts: rbd_image_options_t) -> c_int;
    fn rbd_migration_execute_with_progress(ioctx: rados_ioctx_t, image_name: *const c_char, cb: librbd_progress_fn_t, cbdata: *mut c_void) -> c_int;
    fn rbd_migration_commit_with_progress(ioctx: rados_ioctx_t, image_name: *const c_char, cb: librbd_progress_fn_t, cbdata: *mut c_void) -> c_int;
    fn rbd_migration_abort_with_progress(ioctx: rados_ioctx_t, image_name: *const c_char, cb: librbd_progress_fn_t, cbdata: *mut c_void) -> c_int;
    fn rbd_migration_status(ioctx: rados_ioctx_t, image_name: *const c_char, status: *mut rbd_image_migration_status_t, status_size: usize) -> c_int;
    fn rbd_migration_status_cleanup(status: *mut rbd_image_migration_status_t);
} }

/// One of the three calls that take a while.
type Call = unsafe extern "C" fn(rados_ioctx_t, *const c_char, librbd_progress_fn_t, *mut c_void) -> c_int;

impl IoCtx {
    /// Begins to move an image that nobody has open: EBUSY otherwise, EEXIST when the other pool has one of that name.
    ///
    /// Implements:
    /// ```c
    /// int rbd_migration_prepare(rados_ioctx_t ioctx, const char *image_name, rados_ioctx_t dest_ioctx, const char *dest_image_name, rbd_image_options_t opts);
    /// ```
    pub(crate) fn move_begin(&self, image: &str, (dest_io, dest): (&IoCtx, &str)) -> Result<(), Failure> {
        let call = "rbd_migration_prepare";
        let (c_image, c_dest) = (text(call, image)?, text(call, dest)?);
        let options = Options::of_source(self.api());
        // SAFETY: valid handles and strings.
        let result = unsafe {
            (self.api().migration.rbd_migration_prepare)(
                self.handle,
                c_image.as_ptr(),
                dest_io.handle,
                c_dest.as_ptr(),
                options.handle,
            )
        };
        check(call, || format!("{} to {}", self.path(image), dest_io.path(dest)), result)?;
        Ok(())
    }

    /// How far the move of an image is, which goes by its old place or its new one; `None` for an image that is not
    /// being moved (librbd says EINVAL).
    ///
    /// Implements:
    /// ```c
    /// int rbd_migration_status(rados_ioctx_t ioctx, const char *image_name, rbd_image_migration_status_t *status, size_t status_size);
    /// void rbd_migration_status_cleanup(rbd_image_migration_status_t *status);
    /// ```
    pub(crate) fn move_state(&self, image: &str) -> Result<Option<Moving>, Failure> {
        let call = "rbd_migration_status";
        let c_image = text(call, image)?;
        // SAFETY: all-zero bytes are numbers and NULL pointers.
        let mut status: rbd_image_migration_status_t = unsafe { zeroed() };
        // SAFETY: valid handle, string and out-pointer with its size.
        let result = unsafe {
            (self.api().migration.rbd_migration_status)(
                self.handle,
                c_image.as_ptr(),
                &mut status,
                size_of::<rbd_image_migration_status_t>(),
            )
        };
        if result == -libc::EINVAL {
            return Ok(None);
        }
        check(call, || self.path(image), result)?;
        // SAFETY: filled by librbd, and cleaned up once, after its last use.
        let said = unsafe { owned(status.state_description) };
        let state = match status.state {
            RBD_IMAGE_MIGRATION_STATE_PREPARING => MoveState::Preparing,
            RBD_IMAGE_MIGRATION_STATE_PREPARED => MoveState::Prepared,
            RBD_IMAGE_MIGRATION_STATE_EXECUTING => MoveState::Executing,
            RBD_IMAGE_MIGRATION_STATE_EXECUTED => MoveState::Executed,
            RBD_IMAGE_MIGRATION_STATE_ABORTING => MoveState::Aborting,
            _ => MoveState::Failed,
        };
        // SAFETY: as above.
        unsafe { (self.api().migration.rbd_migration_status_cleanup)(&mut status) };
        // librbd keeps "42% complete" there while it moves data.
        let percent = said.split('%').next().and_then(|number| number.trim().parse().ok());
        Ok(Some(Moving { state, percent }))
    }

    /// Moves the data of an image, by its new place.
    ///
    /// Implements:
    /// ```c
    /// int rbd_migration_execute_with_progress(rados_ioctx_t ioctx, const char *image_name, librbd_progress_fn_t cb, void *cbdata);
    /// ```
    pub(crate) fn move_data(&self, image: &str, progress: Progress<'_>) -> Result<(), Failure> {
        if self.move_state(image)?.is_some_and(|moving| moving.state == MoveState::Executed) {
            return Ok(());
        }
        let call = self.api().migration.rbd_migration_execute_with_progress;
        self.move_on("rbd_migration_execute_with_progress", call, image, progress)
    }

    /// Ends the move: what is left in the old pool goes.
    ///
    /// Implements:
    /// ```c
    /// int rbd_migration_commit_with_progress(rados_ioctx_t ioctx, const char *image_name, librbd_progress_fn_t cb, void *cbdata);
    /// ```
    pub(crate) fn move_finish(&self, image: &str, progress: Progress<'_>) -> Result<(), Failure> {
        if self.move_state(image)?.is_none() {
            return Ok(());
        }
        let call = self.api().migration.rbd_migration_commit_with_progress;
        self.move_on("rbd_migration_commit_with_progress", call, image, progress)
    }

    /// Brings the image back to where it was, with what was written meanwhile.
    ///
    /// Implements:
    /// ```c
    /// int rbd_migration_abort_with_progress(rados_ioctx_t ioctx, const char *image_name, librbd_progress_fn_t cb, void *cbdata);
    /// ```
    pub(crate) fn move_undo(&self, image: &str, progress: Progress<'_>) -> Result<(), Failure> {
        let call = self.api().migration.rbd_migration_abort_with_progress;
        self.move_on("rbd_migration_abort_with_progress", call, image, progress)
    }

    fn move_on(
        &self,
        name: &'static str,
        call: Call,
        image: &str,
        mut progress: Progress<'_>,
    ) -> Result<(), Failure> {
        let c_image = text(name, image)?;
        // SAFETY: valid handle and string; `progress` outlives the call.
        let result =
            unsafe { call(self.handle, c_image.as_ptr(), Some(on_progress), progress_arg(&mut progress)) };
        check(name, || self.path(image), result)?;
        Ok(())
    }
}
