//! The exclusive lock.

use std::ffi::{c_char, c_int, c_uint};
use std::ptr;

use super::c::rbd_image_t;
use super::image::Image;
use super::{Failure, check, functions, listing, owned, text};

#[allow(non_camel_case_types)]
type rbd_lock_mode_t = c_uint;
const RBD_LOCK_MODE_EXCLUSIVE: rbd_lock_mode_t = 0;

functions! { Functions {
    fn rbd_lock_acquire(image: rbd_image_t, lock_mode: rbd_lock_mode_t) -> c_int;
    fn rbd_lock_release(image: rbd_image_t) -> c_int;
    fn rbd_lock_get_owners(image: rbd_image_t, lock_mode: *mut rbd_lock_mode_t, lock_owners: *mut *mut c_char, max_lock_owners: *mut usize) -> c_int;
    fn rbd_lock_get_owners_cleanup(lock_owners: *mut *mut c_char, lock_owner_count: usize);
    fn rbd_lock_break(image: rbd_image_t, lock_mode: rbd_lock_mode_t, lock_owner: *const c_char) -> c_int;
} }

impl Image<'_> {
    /// Acquires the exclusive lock; asks a live owner for it first.
    ///
    /// Implements:
    /// ```c
    /// int rbd_lock_acquire(rbd_image_t image, rbd_lock_mode_t lock_mode);
    /// ```
    pub(crate) fn lock(&self) -> Result<(), Failure> {
        // SAFETY: open image.
        let result = unsafe { (self.api().lock.rbd_lock_acquire)(self.handle, RBD_LOCK_MODE_EXCLUSIVE) };
        check("rbd_lock_acquire", || self.path(), result)?;
        Ok(())
    }

    /// Gives the exclusive lock back.
    ///
    /// Implements:
    /// ```c
    /// int rbd_lock_release(rbd_image_t image);
    /// ```
    pub(crate) fn unlock(&self) -> Result<(), Failure> {
        // SAFETY: open image.
        let result = unsafe { (self.api().lock.rbd_lock_release)(self.handle) };
        check("rbd_lock_release", || self.path(), result)?;
        Ok(())
    }

    /// Addresses of the owners; none when the image is not locked.
    ///
    /// Implements:
    /// ```c
    /// int rbd_lock_get_owners(rbd_image_t image, rbd_lock_mode_t *lock_mode, char **lock_owners, size_t *max_lock_owners);
    /// void rbd_lock_get_owners_cleanup(char **lock_owners, size_t lock_owner_count);
    /// ```
    pub(crate) fn lock_owners(&self) -> Result<Vec<String>, Failure> {
        let f = &self.api().lock;
        let mut mode: rbd_lock_mode_t = 0;
        let mut none = false;
        // SAFETY: pointers, valid when NULL; librbd keeps to the capacity and sets it on success. For
        // "no owner" (ENOENT) it sets nothing, so the count is made 0 here.
        let mut list: Vec<*mut c_char> = unsafe {
            listing("rbd_lock_get_owners", &|| self.path(), |owners, max| {
                let result = (f.rbd_lock_get_owners)(self.handle, ptr::from_mut(&mut mode), owners, max);
                none = result == -libc::ENOENT;
                if none {
                    *max = 0;
                    return 0;
                }
                result
            })?
        };
        // SAFETY: librbd filled `list`; its strings are valid until the cleanup, which ends them.
        unsafe {
            let owners = list.iter().map(|owner| owned(*owner)).collect();
            (f.rbd_lock_get_owners_cleanup)(list.as_mut_ptr(), list.len());
            Ok(owners)
        }
    }

    /// Breaks the lock of `owner` and blocklists that client.
    ///
    /// Implements:
    /// ```c
    /// int rbd_lock_break(rbd_image_t image, rbd_lock_mode_t lock_mode, const char *lock_owner);
    /// ```
    pub(crate) fn break_lock(&self, owner: &str) -> Result<(), Failure> {
        let call = "rbd_lock_break";
        let c_owner = text(call, owner)?;
        // SAFETY: open image and valid string.
        let result = unsafe {
            (self.api().lock.rbd_lock_break)(self.handle, RBD_LOCK_MODE_EXCLUSIVE, c_owner.as_ptr())
        };
        check(call, || format!("{}, lock of {owner}", self.path()), result)?;
        Ok(())
    }
}
