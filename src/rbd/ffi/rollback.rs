//! Back to a snapshot: by Ceph's own rollback, or by writing its data again.

use std::ffi::{c_char, c_int, c_void};

use super::c::{librbd_progress_fn_t, rbd_image_t};
use super::image::Image;
use super::{Failure, Progress, check, functions, on_progress, progress_arg, text};

functions! { Functions {
    fn rbd_snap_rollback_with_progress(image: rbd_image_t, snapname: *const c_char, cb: librbd_progress_fn_t, cbdata: *mut c_void) -> c_int;
} }

/// Bytes that a restoration reads at once, of the snapshot and of the image: the size of an object by default.
const CHUNK: u64 = 4 << 20;

impl Image<'_> {
    /// Rolls the image back, size included; EROFS when its lock cannot be had.
    ///
    /// Implements:
    /// ```c
    /// int rbd_snap_rollback_with_progress(rbd_image_t image, const char *snapname, librbd_progress_fn_t cb, void *cbdata);
    /// ```
    pub(crate) fn roll_back(&self, snap: &str, mut progress: Progress<'_>) -> Result<(), Failure> {
        let call = "rbd_snap_rollback_with_progress";
        let c_snap = text(call, snap)?;
        // SAFETY: open image and valid string; `progress` outlives the call.
        let result = unsafe {
            (self.api().rollback.rbd_snap_rollback_with_progress)(
                self.handle,
                c_snap.as_ptr(),
                Some(on_progress),
                progress_arg(&mut progress),
            )
        };
        check(call, || format!("{}@{snap}", self.path()), result)?;
        Ok(())
    }

    /// Writes what `snap`, this image opened at a snapshot, holds wherever this image holds something else.
    /// What lies behind the snapshot's end becomes zeros; the size stays, or grows to the snapshot's.
    pub(crate) fn restore(&self, snap: &Image<'_>, progress: Progress<'_>) -> Result<(), Failure> {
        let (wanted, _) = snap.stat()?;
        let (mut size, _) = self.stat()?;
        if size < wanted {
            self.grow(wanted, progress)?;
            size = wanted;
        }
        let mut done = 0;
        while done < size {
            let length = CHUNK.min(size - done) as usize;
            let mut data = if done < wanted { snap.read(done, length)? } else { Vec::new() };
            data.resize(length, 0);
            if self.read(done, length)? != data {
                // Zeros too: the mirroring of 16.2.15 by snapshots did not carry over objects that
                // `rbd_write_zeroes` had taken away.
                self.put(done, &data)?;
            }
            done += length as u64;
            progress(done, size);
        }
        self.flush()
    }

    /// Writes what `snap`, this image opened at its snapshot `name`, holds over what has changed since; answers the
    /// bytes written. What lies behind the snapshot's end becomes zeros; the size stays, or grows to the snapshot's.
    pub(crate) fn revert_changes(
        &self,
        snap: &Image<'_>,
        name: &str,
        progress: Progress<'_>,
    ) -> Result<u64, Failure> {
        let (wanted, _) = snap.stat()?;
        let (mut size, _) = self.stat()?;
        if size < wanted {
            self.grow(wanted, progress)?;
            size = wanted;
        }
        let changes = self.changes(name, 0, size)?;
        let all: u64 = changes.iter().map(|(_, length)| length).sum();
        let (mut done, mut written) = (0, 0);
        for (offset, length) in changes {
            let (mut at, end) = (offset, (offset + length).min(size));
            while at < end {
                let length = CHUNK.min(end - at) as usize;
                let mut data = if at < wanted { snap.read(at, length)? } else { Vec::new() };
                data.resize(length, 0);
                if self.read(at, length)? != data {
                    self.put(at, &data)?;
                    written += length as u64;
                }
                at += length as u64;
                done += length as u64;
                progress(done, all);
            }
        }
        self.flush()?;
        Ok(written)
    }
}
