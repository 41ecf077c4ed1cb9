//! Holding writers of an image up while a snapshot of it is made.
//!
//! Whoever has the exclusive lock by `rbd_lock_acquire` refuses it to others with EROFS, and their librbd
//! then fails the write that asked for it: a virtual machine would see an I/O error. The lock that librbd
//! takes by itself is given up on request, but only when what is being done under it has ended: the
//! creation of a snapshot waits for the watchers of "quiesce", and everybody else's writes wait for it.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use super::c::{librbd_progress_fn_t, rbd_image_t, rbd_update_callback_t};
use super::image::Image;
use super::{Api, Failure, Progress, check, functions, on_progress, progress_arg, text};

functions! { Functions {
    fn rbd_is_exclusive_lock_owner(image: rbd_image_t, is_owner: *mut c_int) -> c_int;
    fn rbd_quiesce_watch(image: rbd_image_t, quiesce_cb: rbd_update_callback_t, unquiesce_cb: rbd_update_callback_t, arg: *mut c_void, handle: *mut u64) -> c_int;
    fn rbd_quiesce_complete(image: rbd_image_t, handle: u64, r: c_int);
    fn rbd_quiesce_unwatch(image: rbd_image_t, handle: u64) -> c_int;
    fn rbd_snap_create2(image: rbd_image_t, snap_name: *const c_char, flags: u32, cb: librbd_progress_fn_t, cbdata: *mut c_void) -> c_int;
} }

/// What is called when a snapshot is about to be made. It must not block: librbd's own threads run it.
pub(crate) type OnQuiesce = Box<dyn Fn() + Send + Sync>;

/// A watcher of "quiesce", until it is dropped.
pub(crate) struct QuiesceWatch<'a> {
    api: &'static Api,
    image: &'a Image<'a>,
    handle: u64,
    /// Boxed twice: C gets a thin pointer to it.
    _callback: Box<OnQuiesce>,
}

/// Answers for a watcher, and asks whose the lock is, from another thread.
#[derive(Clone, Copy)]
pub(crate) struct Answerer<'a> {
    watch: &'a QuiesceWatch<'a>,
}

// SAFETY: librbd's functions on an open image may be called from any thread; the image stays open and
// the watch stays registered for as long as the borrow.
unsafe impl Send for Answerer<'_> {}

/// # Safety
/// `arg` points to the [`OnQuiesce`] of a watch that is registered.
unsafe extern "C" fn on_quiesce(arg: *mut c_void) {
    // SAFETY: the caller's promise; `rbd_quiesce_unwatch` returns when no callback runs any more.
    let callback = unsafe { &*arg.cast::<OnQuiesce>() };
    callback();
}

/// Nothing has to be thawed: the writers go on by themselves.
unsafe extern "C" fn on_unquiesce(_arg: *mut c_void) {}

impl Image<'_> {
    /// Calls `callback` whenever a snapshot of the image is about to be made, by whomever: its making waits
    /// for [`Answerer::complete`].
    ///
    /// Implements:
    /// ```c
    /// int rbd_quiesce_watch(rbd_image_t image, rbd_update_callback_t quiesce_cb, rbd_update_callback_t unquiesce_cb, void *arg, uint64_t *handle);
    /// ```
    pub(crate) fn watch_quiesce(&self, callback: OnQuiesce) -> Result<QuiesceWatch<'_>, Failure> {
        let callback = Box::new(callback);
        let arg: *mut c_void = ptr::from_ref::<OnQuiesce>(&callback).cast_mut().cast();
        let mut handle = 0;
        // SAFETY: open image, valid out-pointer; `arg` lives on the heap until the watch is gone.
        let result = unsafe {
            (self.api().quiesce.rbd_quiesce_watch)(
                self.handle,
                Some(on_quiesce),
                Some(on_unquiesce),
                arg,
                &mut handle,
            )
        };
        check("rbd_quiesce_watch", || self.path(), result)?;
        Ok(QuiesceWatch { api: self.api(), image: self, handle, _callback: callback })
    }
}

impl Image<'_> {
    /// Creates a snapshot for which every watcher of "quiesce" is asked, whatever
    /// `rbd_default_snapshot_quiesce_mode` says, and which fails when one of them refuses.
    ///
    /// Implements:
    /// ```c
    /// int rbd_snap_create2(rbd_image_t image, const char *snap_name, uint32_t flags, librbd_progress_fn_t cb, void *cbdata);
    /// ```
    pub(crate) fn create_snapshot_quiesced(&self, name: &str) -> Result<(), Failure> {
        let call = "rbd_snap_create2";
        let c_name = text(call, name)?;
        // librbd calls back without looking whether there is somebody.
        let mut progress: Progress<'_> = &|_, _| {};
        // SAFETY: open image, valid string; `progress` outlives the call, and librbd calls back only until it
        // returns.
        let result = unsafe {
            (self.api().quiesce.rbd_snap_create2)(
                self.handle,
                c_name.as_ptr(),
                0,
                Some(on_progress),
                progress_arg(&mut progress),
            )
        };
        check(call, || format!("{}@{name}", self.path()), result)?;
        Ok(())
    }
}

impl QuiesceWatch<'_> {
    /// See [`Answerer`].
    pub(crate) fn answerer(&self) -> Answerer<'_> {
        Answerer { watch: self }
    }
}

impl Answerer<'_> {
    /// Whether this client has the exclusive lock now.
    ///
    /// Implements:
    /// ```c
    /// int rbd_is_exclusive_lock_owner(rbd_image_t image, int *is_owner);
    /// ```
    pub(crate) fn owns_lock(self) -> Result<bool, Failure> {
        let (api, image) = (self.watch.api, self.watch.image);
        let mut owner = 0;
        // SAFETY: open image and valid out-pointer.
        let result = unsafe { (api.quiesce.rbd_is_exclusive_lock_owner)(image.handle, &mut owner) };
        check("rbd_is_exclusive_lock_owner", || image.path(), result)?;
        Ok(owner != 0)
    }

    /// Lets the snapshot be made, or with an errno (positive) makes it fail.
    ///
    /// Implements:
    /// ```c
    /// void rbd_quiesce_complete(rbd_image_t image, uint64_t handle, int r);
    /// ```
    pub(crate) fn complete(self, errno: Option<c_int>) {
        let (api, image, handle) = (self.watch.api, self.watch.image, self.watch.handle);
        // SAFETY: open image, registered watch.
        unsafe { (api.quiesce.rbd_quiesce_complete)(image.handle, handle, -errno.unwrap_or(0)) }
    }
}

impl Drop for QuiesceWatch<'_> {
    /// Implements:
    /// ```c
    /// int rbd_quiesce_unwatch(rbd_image_t image, uint64_t handle);
    /// ```
    fn drop(&mut self) {
        // SAFETY: registered on an image that is open still. It fails only for a handle that is not known.
        unsafe { (self.api.quiesce.rbd_quiesce_unwatch)(self.image.handle, self.handle) };
    }
}
