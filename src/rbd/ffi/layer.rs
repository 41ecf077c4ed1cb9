//! Parents and children: clone, copy, flatten.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::zeroed;

use super::c::{librbd_progress_fn_t, rados_ioctx_t, rbd_image_options_t, rbd_image_t};
use super::image::{Image, Options, RBD_IMAGE_OPTION_CLONE_FORMAT};
use super::rados::IoCtx;
use super::{Failure, Progress, check, functions, listing, on_progress, owned, progress_arg, text};
use crate::rbd::types::{ImageName, Parent};

#[allow(non_camel_case_types)]
type rbd_snap_namespace_type_t = c_uint;

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_linked_image_spec_t {
    pool_id: i64,
    pool_name: *mut c_char,
    pool_namespace: *mut c_char,
    image_id: *mut c_char,
    image_name: *mut c_char,
    trash: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_snap_spec_t {
    id: u64,
    namespace_type: rbd_snap_namespace_type_t,
    name: *mut c_char,
}

functions! { Functions {
    fn rbd_clone3(p_ioctx: rados_ioctx_t, p_name: *const c_char, p_snapname: *const c_char, c_ioctx: rados_ioctx_t, c_name: *const c_char, c_opts: rbd_image_options_t) -> c_int;
    fn rbd_copy_with_progress4(image: rbd_image_t, dest_p: rados_ioctx_t, destname: *const c_char, dest_opts: rbd_image_options_t, cb: librbd_progress_fn_t, cbdata: *mut c_void, sparse_size: usize) -> c_int;
    fn rbd_flatten_with_progress(image: rbd_image_t, cb: librbd_progress_fn_t, cbdata: *mut c_void) -> c_int;
    fn rbd_list_children3(image: rbd_image_t, images: *mut rbd_linked_image_spec_t, max_images: *mut usize) -> c_int;
    fn rbd_linked_image_spec_list_cleanup(images: *mut rbd_linked_image_spec_t, num_images: usize);
    fn rbd_get_parent(image: rbd_image_t, parent_image: *mut rbd_linked_image_spec_t, parent_snap: *mut rbd_snap_spec_t) -> c_int;
    fn rbd_linked_image_spec_cleanup(image: *mut rbd_linked_image_spec_t);
    fn rbd_snap_spec_cleanup(snap: *mut rbd_snap_spec_t);
} }

/// Runs of zeroes of this many bytes are not written by a copy (default of `rbd copy --sparse-size`).
const SPARSE_SIZE: usize = 4096;

/// Copy-on-write clone of `parent@snap` (both clone formats: librbd chooses by `rbd_default_clone_format`).
///
/// Implements:
/// ```c
/// int rbd_clone3(rados_ioctx_t p_ioctx, const char *p_name, const char *p_snapname, rados_ioctx_t c_ioctx, const char *c_name, rbd_image_options_t c_opts);
/// ```
pub(crate) fn clone_image(
    (parent_io, parent, snap): (&IoCtx, &str, &str),
    (child_io, child): (&IoCtx, &str),
    features: u64,
    order: u8,
) -> Result<(), Failure> {
    let options = Options::new(child_io.api(), features, order)?;
    clone_as(&options, (parent_io, parent, snap), (child_io, child))
}

/// The same in clone format 2, whatever the cluster's default.
pub(crate) fn clone_replica(
    parent: (&IoCtx, &str, &str),
    child: (&IoCtx, &str),
    features: u64,
    order: u8,
) -> Result<(), Failure> {
    let options = Options::new(child.0.api(), features, order)?;
    options.set(RBD_IMAGE_OPTION_CLONE_FORMAT, 2)?;
    clone_as(&options, parent, child)
}

fn clone_as(
    options: &Options,
    (parent_io, parent, snap): (&IoCtx, &str, &str),
    (child_io, child): (&IoCtx, &str),
) -> Result<(), Failure> {
    let call = "rbd_clone3";
    let (c_parent, c_snap, c_child) = (text(call, parent)?, text(call, snap)?, text(call, child)?);
    // SAFETY: valid handles and strings.
    let result = unsafe {
        (parent_io.api().layer.rbd_clone3)(
            parent_io.handle,
            c_parent.as_ptr(),
            c_snap.as_ptr(),
            child_io.handle,
            c_child.as_ptr(),
            options.handle,
        )
    };
    let what = || format!("{}@{snap} to {}", parent_io.path(parent), child_io.path(child));
    check(call, what, result)?;
    Ok(())
}

impl Image<'_> {
    /// Copies the data that the image was opened at (head or snapshot) into a new image.
    ///
    /// Implements:
    /// ```c
    /// int rbd_copy_with_progress4(rbd_image_t image, rados_ioctx_t dest_p, const char *destname, rbd_image_options_t dest_opts, librbd_progress_fn_t cb, void *cbdata, size_t sparse_size);
    /// ```
    pub(crate) fn copy(
        &self,
        (dest_io, dest): (&IoCtx, &str),
        features: u64,
        order: u8,
        mut progress: Progress<'_>,
    ) -> Result<(), Failure> {
        let call = "rbd_copy_with_progress4";
        let c_dest = text(call, dest)?;
        let options = Options::new(self.api(), features, order)?;
        // SAFETY: valid handles and string; `progress` outlives the call.
        let result = unsafe {
            (self.api().layer.rbd_copy_with_progress4)(
                self.handle,
                dest_io.handle,
                c_dest.as_ptr(),
                options.handle,
                Some(on_progress),
                progress_arg(&mut progress),
                SPARSE_SIZE,
            )
        };
        check(call, || format!("{} to {}", self.path(), dest_io.path(dest)), result)?;
        Ok(())
    }

    /// Copies all of the parent's data into this clone; EINVAL when it is none.
    ///
    /// Implements:
    /// ```c
    /// int rbd_flatten_with_progress(rbd_image_t image, librbd_progress_fn_t cb, void *cbdata);
    /// ```
    pub(crate) fn flatten(&self, mut progress: Progress<'_>) -> Result<(), Failure> {
        // SAFETY: open image; `progress` outlives the call.
        let result = unsafe {
            (self.api().layer.rbd_flatten_with_progress)(
                self.handle,
                Some(on_progress),
                progress_arg(&mut progress),
            )
        };
        check("rbd_flatten_with_progress", || self.path(), result)?;
        Ok(())
    }

    /// Clones of the snapshot that the image was opened at, or of all its snapshots when opened at none.
    ///
    /// Implements:
    /// ```c
    /// int rbd_list_children3(rbd_image_t image, rbd_linked_image_spec_t *images, size_t *max_images);
    /// void rbd_linked_image_spec_list_cleanup(rbd_linked_image_spec_t *images, size_t num_images);
    /// ```
    pub(crate) fn children(&self) -> Result<Vec<ImageName>, Failure> {
        let f = &self.api().layer;
        // SAFETY: pointers, a number and a bool, valid when zero; librbd keeps to the capacity and sets it.
        let mut list = unsafe {
            listing("rbd_list_children3", &|| self.path(), |images, max| {
                (f.rbd_list_children3)(self.handle, images, max)
            })?
        };
        // SAFETY: librbd filled `list`; its strings are valid until the cleanup, which ends them.
        unsafe {
            let children = list
                .iter()
                .map(|c| ImageName { pool: owned(c.pool_name), image: owned(c.image_name), trash: c.trash })
                .collect();
            (f.rbd_linked_image_spec_list_cleanup)(list.as_mut_ptr(), list.len());
            Ok(children)
        }
    }

    /// The parent, for a clone.
    ///
    /// Implements:
    /// ```c
    /// int rbd_get_parent(rbd_image_t image, rbd_linked_image_spec_t *parent_image, rbd_snap_spec_t *parent_snap);
    /// void rbd_linked_image_spec_cleanup(rbd_linked_image_spec_t *image);
    /// void rbd_snap_spec_cleanup(rbd_snap_spec_t *snap);
    /// ```
    pub(crate) fn parent(&self) -> Result<Option<Parent>, Failure> {
        let f = &self.api().layer;
        // SAFETY: pointers, numbers and a bool, valid when zero.
        let (mut image, mut snap): (rbd_linked_image_spec_t, rbd_snap_spec_t) =
            unsafe { (zeroed(), zeroed()) };
        // SAFETY: open image and valid out-pointers.
        let result = unsafe { (f.rbd_get_parent)(self.handle, &mut image, &mut snap) };
        if result == -libc::ENOENT {
            return Ok(None);
        }
        check("rbd_get_parent", || self.path(), result)?;
        // SAFETY: librbd filled both on success; the cleanups end them.
        unsafe {
            let parent = Parent {
                pool: owned(image.pool_name),
                image: owned(image.image_name),
                snap: owned(snap.name),
            };
            (f.rbd_linked_image_spec_cleanup)(&mut image);
            (f.rbd_snap_spec_cleanup)(&mut snap);
            Ok(Some(parent))
        }
    }
}
