//! Which plain objects a pool has.
//!
//! RADOS keeps no directory: to find the objects of a name's beginning is to look at all of them, in the order of their
//! hashes. The space of the hashes is cut into parts of the same size, so that a pool of many objects is gone
//! through in calls of bounded length, and whoever asks need not keep a place in it.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use super::c::rados_ioctx_t;
use super::rados::IoCtx;
use super::{Failure, check, functions};

#[allow(non_camel_case_types)]
type rados_object_list_cursor = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rados_object_list_item {
    oid_length: usize,
    oid: *mut c_char,
    nspace_length: usize,
    nspace: *mut c_char,
    locator_length: usize,
    locator: *mut c_char,
}

functions! { Functions {
    fn rados_object_list_begin(io: rados_ioctx_t) -> rados_object_list_cursor;
    fn rados_object_list_end(io: rados_ioctx_t) -> rados_object_list_cursor;
    fn rados_object_list_cursor_free(io: rados_ioctx_t, cur: rados_object_list_cursor);
    fn rados_object_list_cursor_cmp(io: rados_ioctx_t, lhs: rados_object_list_cursor, rhs: rados_object_list_cursor) -> c_int;
    fn rados_object_list_slice(io: rados_ioctx_t, start: rados_object_list_cursor, finish: rados_object_list_cursor, n: usize, m: usize, split_start: *mut rados_object_list_cursor, split_finish: *mut rados_object_list_cursor);
    fn rados_object_list(io: rados_ioctx_t, start: rados_object_list_cursor, finish: rados_object_list_cursor, result_size: usize, filter_buf: *const c_char, filter_buf_len: usize, results: *mut rados_object_list_item, next: *mut rados_object_list_cursor) -> c_int;
    fn rados_object_list_free(result_size: usize, results: *mut rados_object_list_item);
} }

/// Objects that are read at once.
const AT_ONCE: usize = 1000;

/// A place among the objects of a pool.
struct Cursor<'a> {
    io: &'a IoCtx,
    handle: rados_object_list_cursor,
}

impl Drop for Cursor<'_> {
    /// Implements:
    /// ```c
    /// void rados_object_list_cursor_free(rados_ioctx_t io, rados_object_list_cursor cur);
    /// ```
    fn drop(&mut self) {
        // SAFETY: made by librados for this pool, and nobody else has it.
        unsafe { (self.io.api().objects.rados_object_list_cursor_free)(self.io.handle, self.handle) }
    }
}

impl Cursor<'_> {
    /// Implements:
    /// ```c
    /// int rados_object_list_cursor_cmp(rados_ioctx_t io, rados_object_list_cursor lhs, rados_object_list_cursor rhs);
    /// ```
    fn is_before(&self, other: &Cursor<'_>) -> bool {
        // SAFETY: two cursors of this pool.
        let order = unsafe {
            (self.io.api().objects.rados_object_list_cursor_cmp)(self.io.handle, self.handle, other.handle)
        };
        order < 0
    }
}

impl IoCtx {
    /// Implements:
    /// ```c
    /// rados_object_list_cursor rados_object_list_begin(rados_ioctx_t io);
    /// ```
    fn begin(&self) -> Result<Cursor<'_>, Failure> {
        // SAFETY: valid ioctx.
        let handle = unsafe { (self.api().objects.rados_object_list_begin)(self.handle) };
        self.cursor("rados_object_list_begin", handle)
    }

    /// Implements:
    /// ```c
    /// rados_object_list_cursor rados_object_list_end(rados_ioctx_t io);
    /// ```
    fn end(&self) -> Result<Cursor<'_>, Failure> {
        // SAFETY: valid ioctx.
        let handle = unsafe { (self.api().objects.rados_object_list_end)(self.handle) };
        self.cursor("rados_object_list_end", handle)
    }

    fn cursor(&self, call: &'static str, handle: rados_object_list_cursor) -> Result<Cursor<'_>, Failure> {
        if handle.is_null() {
            return Err(Failure::new(call, self.path("*"), -i64::from(libc::ENOENT)));
        }
        Ok(Cursor { io: self, handle })
    }

    /// Tells `found` the name of each object in part `part` of `parts`, a thousand at a time. Objects of other namespaces
    /// than the default are none of this pool's context.
    ///
    /// Implements:
    /// ```c
    /// void rados_object_list_slice(rados_ioctx_t io, const rados_object_list_cursor start, const rados_object_list_cursor finish, const size_t n, const size_t m, rados_object_list_cursor *split_start, rados_object_list_cursor *split_finish);
    /// int rados_object_list(rados_ioctx_t io, const rados_object_list_cursor start, const rados_object_list_cursor finish, const size_t result_size, const char *filter_buf, const size_t filter_buf_len, rados_object_list_item *results, rados_object_list_cursor *next);
    /// void rados_object_list_free(const size_t result_size, rados_object_list_item *results);
    /// ```
    pub(crate) fn objects(
        &self,
        part: usize,
        parts: usize,
        mut found: impl FnMut(&[&[u8]]),
    ) -> Result<(), Failure> {
        let call = "rados_object_list";
        let f = &self.api().objects;
        let (all, end) = (self.begin()?, self.end()?);
        // librados writes into cursors that exist.
        let (mut at, mut stop, mut next) = (self.begin()?, self.begin()?, self.begin()?);
        // SAFETY: five cursors of this pool.
        unsafe {
            (f.rados_object_list_slice)(
                self.handle,
                all.handle,
                end.handle,
                part,
                parts,
                &mut at.handle,
                &mut stop.handle,
            );
        }
        let empty = rados_object_list_item {
            oid_length: 0,
            oid: ptr::null_mut(),
            nspace_length: 0,
            nspace: ptr::null_mut(),
            locator_length: 0,
            locator: ptr::null_mut(),
        };
        let mut items = vec![empty; AT_ONCE];
        while at.is_before(&stop) {
            // SAFETY: cursors of this pool, no filter, and as many items as said; librados clears them first.
            let result = unsafe {
                (f.rados_object_list)(
                    self.handle,
                    at.handle,
                    stop.handle,
                    items.len(),
                    ptr::null(),
                    0,
                    items.as_mut_ptr(),
                    &mut next.handle,
                )
            };
            let filled = usize::try_from(check(call, || self.path("*"), result)?).unwrap_or(0);
            let filled = filled.min(items.len());
            {
                let names: Vec<&[u8]> = items[..filled]
                    .iter()
                    .filter(|item| !item.oid.is_null())
                    // SAFETY: librados allocated the name with that length; it is valid until it is freed below.
                    .map(|item| unsafe { std::slice::from_raw_parts(item.oid.cast::<u8>(), item.oid_length) })
                    .collect();
                found(&names);
            }
            // SAFETY: as many as librados has filled; it forgets their strings.
            unsafe { (f.rados_object_list_free)(filled, items.as_mut_ptr()) };
            std::mem::swap(&mut at, &mut next);
        }
        Ok(())
    }
}
