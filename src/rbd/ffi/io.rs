//! Data of an image.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use super::c::rbd_image_t;
use super::image::Image;
use super::{Failure, check, functions, text};

/// Gets one run of bytes; answers 0 to go on.
#[allow(non_camel_case_types)]
type diff_cb_t = Option<unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int>;

functions! { Functions {
    fn rbd_diff_iterate2(image: rbd_image_t, fromsnapname: *const c_char, ofs: u64, len: u64, include_parent: u8, whole_object: u8, cb: diff_cb_t, arg: *mut c_void) -> c_int;
    fn rbd_read(image: rbd_image_t, ofs: u64, len: usize, buf: *mut c_char) -> isize;
    fn rbd_write(image: rbd_image_t, ofs: u64, len: usize, buf: *const c_char) -> isize;
    fn rbd_flush(image: rbd_image_t) -> c_int;
} }

impl Image<'_> {
    /// Reads; fewer bytes at the end of the image.
    ///
    /// Implements:
    /// ```c
    /// ssize_t rbd_read(rbd_image_t image, uint64_t ofs, size_t len, char *buf);
    /// ```
    pub(crate) fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, Failure> {
        let mut data = Vec::new();
        self.read_into(offset, length, &mut data)?;
        Ok(data)
    }

    /// [`Image::read`] into memory that is there already: what `data` held is gone, also after a failure.
    pub(crate) fn read_into(&self, offset: u64, length: usize, data: &mut Vec<u8>) -> Result<(), Failure> {
        data.clear();
        data.reserve_exact(length);
        // SAFETY: so much is reserved.
        let result =
            unsafe { (self.api().io.rbd_read)(self.handle, offset, length, data.as_mut_ptr().cast()) };
        let read = usize::try_from(check("rbd_read", || self.path(), result as i64)?).unwrap_or(0);
        // SAFETY: librbd has written as many bytes as it answers, and no more than were asked for.
        unsafe { data.set_len(read.min(length)) };
        Ok(())
    }

    /// Runs of bytes, as (offset, length), outside of which the image is zero in the `length` bytes from
    /// `offset` on. Data of its parent counts.
    ///
    /// Implements:
    /// ```c
    /// int rbd_diff_iterate2(rbd_image_t image, const char *fromsnapname, uint64_t ofs, uint64_t len, uint8_t include_parent, uint8_t whole_object, int (*cb)(uint64_t, size_t, int, void *), void *arg);
    /// ```
    pub(crate) fn extents(&self, offset: u64, length: u64) -> Result<Vec<(u64, u64)>, Failure> {
        let mut extents: Vec<(u64, u64)> = Vec::new();
        // SAFETY: open image; no snapshot to start from; `extents` outlives the call, in which alone
        // the callback runs, one call after the other.
        let result = unsafe {
            (self.api().io.rbd_diff_iterate2)(
                self.handle,
                ptr::null(),
                offset,
                length,
                1,
                0,
                Some(on_extent),
                ptr::from_mut(&mut extents).cast(),
            )
        };
        check("rbd_diff_iterate2", || self.path(), result)?;
        // With striping they need not come in order.
        extents.sort_unstable();
        Ok(extents)
    }

    /// Runs of bytes, as (offset, length), that may read otherwise than in the snapshot `since` of the same image, in the
    /// `length` bytes from `offset` on: written after it, or discarded. Implemented as [`Image::extents`].
    pub(crate) fn changes(&self, since: &str, offset: u64, length: u64) -> Result<Vec<(u64, u64)>, Failure> {
        let call = "rbd_diff_iterate2";
        let since = text(call, since)?;
        let mut extents: Vec<(u64, u64)> = Vec::new();
        // SAFETY: open image, valid string; `extents` outlives the call, in which alone the callback runs, one
        // call after the other.
        let result = unsafe {
            (self.api().io.rbd_diff_iterate2)(
                self.handle,
                since.as_ptr(),
                offset,
                length,
                1,
                0,
                Some(on_change),
                ptr::from_mut(&mut extents).cast(),
            )
        };
        check(call, || self.path(), result)?;
        extents.sort_unstable();
        Ok(extents)
    }

    /// Writes all of `data` and waits until it is on disk; EINVAL when it does not fit into the image.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.put(offset, data)?;
        self.flush()
    }

    /// What several threads can use at once.
    pub(crate) fn data(&self) -> Data<'_> {
        Data(self)
    }

    /// Writes all of `data`, maybe into librbd's cache only.
    ///
    /// Implements:
    /// ```c
    /// ssize_t rbd_write(rbd_image_t image, uint64_t ofs, size_t len, const char *buf);
    /// ```
    pub(crate) fn put(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        // SAFETY: the data is as long as said.
        let result =
            unsafe { (self.api().io.rbd_write)(self.handle, offset, data.len(), data.as_ptr().cast()) };
        let written = check("rbd_write", || self.path(), result as i64)?;
        if usize::try_from(written) != Ok(data.len()) {
            let what = format!("{}: wrote {written} of {} bytes at {offset}", self.path(), data.len());
            return Err(Failure::new("rbd_write", what, -i64::from(libc::EINVAL)));
        }
        Ok(())
    }

    /// Waits until what was written is on disk. Takes the exclusive lock like a write, as one that is given
    /// up on request.
    ///
    /// Implements:
    /// ```c
    /// int rbd_flush(rbd_image_t image);
    /// ```
    pub(crate) fn flush(&self) -> Result<(), Failure> {
        // SAFETY: open image.
        let result = unsafe { (self.api().io.rbd_flush)(self.handle) };
        check("rbd_flush", || self.path(), result)?;
        Ok(())
    }
}

/// The data of an open image, for several threads at once: they read and write, and nothing that changes the image.
#[derive(Clone, Copy)]
pub(crate) struct Data<'a>(&'a Image<'a>);

// SAFETY: librbd serves the reads and writes of any number of threads by one handle, as qemu's driver has it do; the
// image is closed by its owner, who outlives this.
unsafe impl Send for Data<'_> {}
// SAFETY: the same.
unsafe impl Sync for Data<'_> {}

impl Data<'_> {
    /// See [`Image::read`].
    pub(crate) fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, Failure> {
        self.0.read(offset, length)
    }

    /// See [`Image::put`].
    pub(crate) fn put(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.0.put(offset, data)
    }
}

/// Adds an extent that exists to the vector that `arg` points to.
///
/// # Safety
/// `arg` points to a `Vec<(u64, u64)>` that nobody else uses meanwhile.
unsafe extern "C" fn on_extent(offset: u64, length: usize, exists: c_int, arg: *mut c_void) -> c_int {
    if exists != 0 {
        // SAFETY: the caller's promise.
        let extents = unsafe { &mut *arg.cast::<Vec<(u64, u64)>>() };
        extents.push((offset, length as u64));
    }
    0
}

/// Adds an extent, whether it exists or not, to the vector that `arg` points to.
///
/// # Safety
/// As [`on_extent`].
unsafe extern "C" fn on_change(offset: u64, length: usize, _exists: c_int, arg: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    let extents = unsafe { &mut *arg.cast::<Vec<(u64, u64)>>() };
    extents.push((offset, length as u64));
    0
}
