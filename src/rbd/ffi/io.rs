//! Data of an image.

use std::ffi::{c_char, c_int};

use super::c::rbd_image_t;
use super::image::Image;
use super::{Failure, check, functions};

functions! { Functions {
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
        let mut data = vec![0u8; length];
        // SAFETY: the buffer is as long as said.
        let result =
            unsafe { (self.api().io.rbd_read)(self.handle, offset, length, data.as_mut_ptr().cast()) };
        let read = check("rbd_read", || self.path(), result as i64)?;
        data.truncate(usize::try_from(read).unwrap_or(0));
        Ok(data)
    }

    /// Writes all of `data` and waits until it is on disk; EINVAL when it does not fit into the image.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.put(offset, data)?;
        self.flush()
    }

    /// Writes all of `data`, maybe into librbd's cache only.
    ///
    /// Implements:
    /// ```c
    /// ssize_t rbd_write(rbd_image_t image, uint64_t ofs, size_t len, const char *buf);
    /// ```
    pub(super) fn put(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
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
