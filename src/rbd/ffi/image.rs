//! Images as a whole: create, list, open, stat, resize, rename, remove, features.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use super::c::{librbd_progress_fn_t, rados_ioctx_t, rbd_image_options_t, rbd_image_t};
use super::rados::IoCtx;
use super::{Api, Failure, Progress, check, functions, listing, on_progress, owned, progress_arg, text};
use crate::rbd::error::RbdErrorKind;
use crate::rbd::types::{Watcher, id_in_trash};

/// `enum` of image options in librbd.h.
const RBD_IMAGE_OPTION_FORMAT: c_int = 0;
const RBD_IMAGE_OPTION_FEATURES: c_int = 1;
const RBD_IMAGE_OPTION_ORDER: c_int = 2;
const RBD_IMAGE_OPTION_STRIPE_UNIT: c_int = 3;
const RBD_IMAGE_OPTION_STRIPE_COUNT: c_int = 4;
pub(super) const RBD_IMAGE_OPTION_CLONE_FORMAT: c_int = 12;

/// Object with the entries of a pool's trash (`RBD_TRASH` of `cls/rbd/cls_rbd_types.h`).
const TRASH: &str = "rbd_trash";

const RBD_MAX_IMAGE_NAME_SIZE: usize = 96;
const RBD_MAX_BLOCK_NAME_SIZE: usize = 24;

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_image_spec_t {
    id: *mut c_char,
    name: *mut c_char,
}

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_image_info_t {
    size: u64,
    obj_size: u64,
    num_objs: u64,
    order: c_int,
    block_name_prefix: [c_char; RBD_MAX_BLOCK_NAME_SIZE],
    parent_pool: i64,
    parent_name: [c_char; RBD_MAX_IMAGE_NAME_SIZE],
}

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_image_watcher_t {
    addr: *mut c_char,
    id: i64,
    cookie: u64,
}

functions! { Functions {
    fn rbd_image_options_create(opts: *mut rbd_image_options_t);
    fn rbd_image_options_destroy(opts: rbd_image_options_t);
    fn rbd_image_options_set_uint64(opts: rbd_image_options_t, optname: c_int, optval: u64) -> c_int;
    fn rbd_list2(io: rados_ioctx_t, images: *mut rbd_image_spec_t, max_images: *mut usize) -> c_int;
    fn rbd_image_spec_list_cleanup(images: *mut rbd_image_spec_t, num_images: usize);
    fn rbd_create4(io: rados_ioctx_t, name: *const c_char, size: u64, opts: rbd_image_options_t) -> c_int;
    fn rbd_remove_with_progress(io: rados_ioctx_t, name: *const c_char, cb: librbd_progress_fn_t, cbdata: *mut c_void) -> c_int;
    fn rbd_rename(src_io_ctx: rados_ioctx_t, srcname: *const c_char, destname: *const c_char) -> c_int;
    fn rbd_open(io: rados_ioctx_t, name: *const c_char, image: *mut rbd_image_t, snap_name: *const c_char) -> c_int;
    fn rbd_open_read_only(io: rados_ioctx_t, name: *const c_char, image: *mut rbd_image_t, snap_name: *const c_char) -> c_int;
    fn rbd_open_by_id(io: rados_ioctx_t, id: *const c_char, image: *mut rbd_image_t, snap_name: *const c_char) -> c_int;
    fn rbd_open_by_id_read_only(io: rados_ioctx_t, id: *const c_char, image: *mut rbd_image_t, snap_name: *const c_char) -> c_int;
    fn rbd_close(image: rbd_image_t) -> c_int;
    fn rbd_stat(image: rbd_image_t, info: *mut rbd_image_info_t, infosize: usize) -> c_int;
    fn rbd_get_id(image: rbd_image_t, id: *mut c_char, id_len: usize) -> c_int;
    fn rbd_get_features(image: rbd_image_t, features: *mut u64) -> c_int;
    fn rbd_get_op_features(image: rbd_image_t, op_features: *mut u64) -> c_int;
    fn rbd_get_stripe_unit(image: rbd_image_t, stripe_unit: *mut u64) -> c_int;
    fn rbd_update_features(image: rbd_image_t, features: u64, enabled: u8) -> c_int;
    fn rbd_resize2(image: rbd_image_t, size: u64, allow_shrink: bool, cb: librbd_progress_fn_t, cbdata: *mut c_void) -> c_int;
    fn rbd_watchers_list(image: rbd_image_t, watchers: *mut rbd_image_watcher_t, max_watchers: *mut usize) -> c_int;
    fn rbd_watchers_list_cleanup(watchers: *mut rbd_image_watcher_t, num_watchers: usize);
} }

/// Options of a new image: format 2 with exactly these features.
pub(super) struct Options {
    api: &'static Api,
    pub(super) handle: rbd_image_options_t,
}

impl Drop for Options {
    /// Implements:
    /// ```c
    /// void rbd_image_options_destroy(rbd_image_options_t opts);
    /// ```
    fn drop(&mut self) {
        // SAFETY: made by rbd_image_options_create.
        unsafe { (self.api.image.rbd_image_options_destroy)(self.handle) }
    }
}

impl Options {
    /// None: what is made takes over those of its source.
    ///
    /// Implements:
    /// ```c
    /// void rbd_image_options_create(rbd_image_options_t* opts);
    /// ```
    pub(super) fn of_source(api: &'static Api) -> Options {
        let mut handle: rbd_image_options_t = ptr::null_mut();
        // SAFETY: valid out-pointer.
        unsafe { (api.image.rbd_image_options_create)(&mut handle) };
        Options { api, handle }
    }

    pub(super) fn new(api: &'static Api, features: u64, order: u8) -> Result<Options, Failure> {
        let options = Options::of_source(api);
        for (option, value) in [
            (RBD_IMAGE_OPTION_FORMAT, 2),
            (RBD_IMAGE_OPTION_FEATURES, features),
            (RBD_IMAGE_OPTION_ORDER, u64::from(order)),
            // Otherwise a copy or clone with another order takes over the source's stripe unit, and with
            // it the feature STRIPINGV2 that nobody asked for. EINVAL for an order that shifts too far.
            (RBD_IMAGE_OPTION_STRIPE_UNIT, 1u64.checked_shl(u32::from(order)).unwrap_or(0)),
            (RBD_IMAGE_OPTION_STRIPE_COUNT, 1),
        ] {
            options.set(option, value)?;
        }
        Ok(options)
    }

    /// Implements:
    /// ```c
    /// int rbd_image_options_set_uint64(rbd_image_options_t opts, int optname, uint64_t optval);
    /// ```
    pub(super) fn set(&self, option: c_int, value: u64) -> Result<(), Failure> {
        // SAFETY: valid handle.
        let result = unsafe { (self.api.image.rbd_image_options_set_uint64)(self.handle, option, value) };
        check("rbd_image_options_set_uint64", || format!("image option {option}={value}"), result)?;
        Ok(())
    }
}

impl IoCtx {
    /// Names of all images.
    pub(crate) fn images(&self) -> Result<Vec<String>, Failure> {
        Ok(self.directory()?.into_iter().map(|(_, name)| name).collect())
    }

    /// Internal id and name of each image that the pool's directory has, also of one of which only half is there.
    ///
    /// Implements:
    /// ```c
    /// int rbd_list2(rados_ioctx_t io, rbd_image_spec_t* images, size_t *max_images);
    /// void rbd_image_spec_list_cleanup(rbd_image_spec_t *images, size_t num_images);
    /// ```
    pub(crate) fn directory(&self) -> Result<Vec<(String, String)>, Failure> {
        let f = &self.api().image;
        // SAFETY: two pointers, valid when zero; librbd keeps to the capacity it is given and sets it.
        let mut specs = unsafe {
            listing("rbd_list2", &|| self.path("*"), |images, max| (f.rbd_list2)(self.handle, images, max))?
        };
        // SAFETY: librbd filled `specs`; its strings are valid until the cleanup, which ends them.
        unsafe {
            let found = specs.iter().map(|spec| (owned(spec.id), owned(spec.name))).collect();
            (f.rbd_image_spec_list_cleanup)(specs.as_mut_ptr(), specs.len());
            Ok(found)
        }
    }

    /// Creates an image of `size` bytes with objects of 2^`order` bytes.
    ///
    /// Implements:
    /// ```c
    /// int rbd_create4(rados_ioctx_t io, const char *name, uint64_t size, rbd_image_options_t opts);
    /// ```
    pub(crate) fn create(&self, name: &str, size: u64, features: u64, order: u8) -> Result<(), Failure> {
        let call = "rbd_create4";
        let c_name = text(call, name)?;
        let options = Options::new(self.api(), features, order)?;
        // SAFETY: valid handles and string.
        let result =
            unsafe { (self.api().image.rbd_create4)(self.handle, c_name.as_ptr(), size, options.handle) };
        check(call, || self.path(name), result)?;
        Ok(())
    }

    /// Id of the image that has `name`: a length (u32, little endian) and that many bytes in the object
    /// `rbd_id.NAME` (`RBD_ID_PREFIX`, cls_rbd's `get_id`).
    pub(crate) fn image_id(&self, name: &str) -> Result<String, Failure> {
        // RBD_IMAGE_ID_LEN_MAX is 64.
        let object = self.read_object(&format!("rbd_id.{name}"), 4 + 64)?;
        let id = object.split_first_chunk().and_then(|(length, rest)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            String::from_utf8(rest.get(..length)?.to_vec()).ok()
        });
        id.ok_or_else(|| {
            Failure::new(
                "rados_read",
                format!("{} is no image's id", self.path(name)),
                -i64::from(libc::EINVAL),
            )
        })
    }

    /// Removes an image that has no snapshots and no watchers.
    ///
    /// Implements:
    /// ```c
    /// int rbd_remove_with_progress(rados_ioctx_t io, const char *name, librbd_progress_fn_t cb, void *cbdata);
    /// ```
    pub(crate) fn remove(&self, name: &str, mut progress: Progress<'_>) -> Result<(), Failure> {
        let call = "rbd_remove_with_progress";
        let c_name = text(call, name)?;
        // SAFETY: `progress` outlives the call, and librbd calls back only until it returns.
        let result = unsafe {
            (self.api().image.rbd_remove_with_progress)(
                self.handle,
                c_name.as_ptr(),
                Some(on_progress),
                progress_arg(&mut progress),
            )
        };
        match check(call, || self.path(name), result) {
            // librbd moves the image to the trash first. When it cannot write the entry, it says ENOENT, whatever it was
            // (16.2, `Trash<I>::move`: what it says is that there is no entry whose state it could set).
            Err(failure) if failure.kind() == RbdErrorKind::NotFound => {
                match Image::open_read_only(self, name, None) {
                    Ok(_) => Err(self.why_not_to_trash(name)),
                    Err(gone) if gone.kind() == RbdErrorKind::NotFound => Err(failure),
                    Err(other) => Err(other),
                }
            }
            other => other.map(drop),
        }
    }

    /// Why an image that is there cannot be moved to the trash: what it says to a write of nothing into the trash's object,
    /// which is made by that if it was missing, as librbd would make it. A pool that is full takes no new object.
    fn why_not_to_trash(&self, name: &str) -> Failure {
        let call = "rbd_remove_with_progress";
        let what = format!("{}: it cannot be moved to the trash of its pool", self.path(name));
        match self.write_object_at(TRASH, 0, &[]) {
            Err(why) => Failure { call, what: format!("{what}, object {TRASH}"), errno: why.errno },
            Ok(()) => {
                let what = format!(
                    "{what}, whose object {TRASH} can be written; librbd keeps the reason to itself: it is in the \
                     worker's standard error"
                );
                Failure::new(call, what, -i64::from(libc::EIO))
            }
        }
    }

    /// Renames within the pool.
    ///
    /// Implements:
    /// ```c
    /// int rbd_rename(rados_ioctx_t src_io_ctx, const char *srcname, const char *destname);
    /// ```
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let call = "rbd_rename";
        let (c_from, c_to) = (text(call, from)?, text(call, to)?);
        // SAFETY: valid handle and strings.
        let result = unsafe { (self.api().image.rbd_rename)(self.handle, c_from.as_ptr(), c_to.as_ptr()) };
        check(call, || format!("{} to {to}", self.path(from)), result)?;
        Ok(())
    }
}

/// An open image, closed on drop. Belongs to the thread that opened it; its data can be shared ([`Image::data`]).
pub(crate) struct Image<'io> {
    pub(super) io: &'io IoCtx,
    pub(super) handle: rbd_image_t,
    name: String,
}

impl Drop for Image<'_> {
    /// The result is dropped: there is nothing unwritten (writers flush), and a watch that could not be
    /// removed ends by itself.
    ///
    /// Implements:
    /// ```c
    /// int rbd_close(rbd_image_t image);
    /// ```
    fn drop(&mut self) {
        // SAFETY: opened by us and closed once.
        unsafe { (self.io.api().image.rbd_close)(self.handle) };
    }
}

impl<'io> Image<'io> {
    /// Opens for writing, by the id when it is in the trash: registers a watch on the header.
    ///
    /// Implements:
    /// ```c
    /// int rbd_open(rados_ioctx_t io, const char *name, rbd_image_t *image, const char *snap_name);
    /// int rbd_open_by_id(rados_ioctx_t io, const char *id, rbd_image_t *image, const char *snap_name);
    /// ```
    pub(crate) fn open(io: &'io IoCtx, name: &str) -> Result<Image<'io>, Failure> {
        let call = "rbd_open";
        let f = &io.api().image;
        let (open, of) = match id_in_trash(name) {
            Some(id) => (f.rbd_open_by_id, id),
            None => (f.rbd_open, name),
        };
        let c_name = text(call, of)?;
        let mut handle: rbd_image_t = ptr::null_mut();
        // SAFETY: valid ioctx, string and out-pointer; NULL: no snapshot.
        let result = unsafe { open(io.handle, c_name.as_ptr(), &mut handle, ptr::null()) };
        check(call, || io.path(name), result)?;
        Ok(Image { io, handle, name: name.to_owned() })
    }

    /// Opens for reading, of a snapshot when given, by the id when it is in the trash; leaves no watch, works on a
    /// secondary.
    ///
    /// Implements:
    /// ```c
    /// int rbd_open_read_only(rados_ioctx_t io, const char *name, rbd_image_t *image, const char *snap_name);
    /// int rbd_open_by_id_read_only(rados_ioctx_t io, const char *id, rbd_image_t *image, const char *snap_name);
    /// ```
    pub(crate) fn open_read_only(
        io: &'io IoCtx,
        name: &str,
        snap: Option<&str>,
    ) -> Result<Image<'io>, Failure> {
        let call = "rbd_open_read_only";
        let f = &io.api().image;
        let (open, of) = match id_in_trash(name) {
            Some(id) => (f.rbd_open_by_id_read_only, id),
            None => (f.rbd_open_read_only, name),
        };
        let full = match snap {
            Some(snap) => format!("{name}@{snap}"),
            None => name.to_owned(),
        };
        let c_name = text(call, of)?;
        let c_snap = snap.map(|snap| text(call, snap)).transpose()?;
        let c_snap = c_snap.as_ref().map_or(ptr::null(), |snap| snap.as_ptr());
        let mut handle: rbd_image_t = ptr::null_mut();
        // SAFETY: valid ioctx, strings and out-pointer; NULL: no snapshot.
        let result = unsafe { open(io.handle, c_name.as_ptr(), &mut handle, c_snap) };
        check(call, || io.path(&full), result)?;
        Ok(Image { io, handle, name: full })
    }

    /// The functions.
    pub(super) fn api(&self) -> &'static Api {
        self.io.api()
    }

    /// `pool/image`, as errors say it.
    pub(super) fn path(&self) -> String {
        self.io.path(&self.name)
    }

    /// Size in bytes and order.
    ///
    /// Implements:
    /// ```c
    /// int rbd_stat(rbd_image_t image, rbd_image_info_t *info, size_t infosize);
    /// ```
    pub(crate) fn stat(&self) -> Result<(u64, u8), Failure> {
        // SAFETY: integers and arrays of them, valid when zero.
        let mut info: rbd_image_info_t = unsafe { std::mem::zeroed() };
        // SAFETY: open image, a structure of the size given.
        let result =
            unsafe { (self.api().image.rbd_stat)(self.handle, &mut info, size_of::<rbd_image_info_t>()) };
        check("rbd_stat", || self.path(), result)?;
        Ok((info.size, u8::try_from(info.order).unwrap_or(0)))
    }

    /// Internal id.
    ///
    /// Implements:
    /// ```c
    /// int rbd_get_id(rbd_image_t image, char *id, size_t id_len);
    /// ```
    pub(crate) fn id(&self) -> Result<String, Failure> {
        let mut buffer = [0u8; 256];
        // SAFETY: the buffer is as long as said.
        let result =
            unsafe { (self.api().image.rbd_get_id)(self.handle, buffer.as_mut_ptr().cast(), buffer.len()) };
        check("rbd_get_id", || self.path(), result)?;
        let id = buffer.split(|b| *b == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(id).into_owned())
    }

    /// Feature bits.
    ///
    /// Implements:
    /// ```c
    /// int rbd_get_features(rbd_image_t image, uint64_t *features);
    /// ```
    pub(crate) fn features(&self) -> Result<u64, Failure> {
        self.number("rbd_get_features", self.api().image.rbd_get_features)
    }

    /// Operation feature bits.
    ///
    /// Implements:
    /// ```c
    /// int rbd_get_op_features(rbd_image_t image, uint64_t *op_features);
    /// ```
    pub(crate) fn op_features(&self) -> Result<u64, Failure> {
        self.number("rbd_get_op_features", self.api().image.rbd_get_op_features)
    }

    /// Stripe unit in bytes.
    ///
    /// Implements:
    /// ```c
    /// int rbd_get_stripe_unit(rbd_image_t image, uint64_t *stripe_unit);
    /// ```
    pub(crate) fn stripe_unit(&self) -> Result<u64, Failure> {
        self.number("rbd_get_stripe_unit", self.api().image.rbd_get_stripe_unit)
    }

    fn number(
        &self,
        call: &'static str,
        get: unsafe extern "C" fn(rbd_image_t, *mut u64) -> c_int,
    ) -> Result<u64, Failure> {
        let mut value = 0;
        // SAFETY: open image and valid out-pointer; `get` is one of librbd's getters above.
        let result = unsafe { get(self.handle, &mut value) };
        check(call, || self.path(), result)?;
        Ok(value)
    }

    /// Turns feature bits on or off.
    ///
    /// Implements:
    /// ```c
    /// int rbd_update_features(rbd_image_t image, uint64_t features, uint8_t enabled);
    /// ```
    pub(crate) fn update_features(&self, features: u64, enabled: bool) -> Result<(), Failure> {
        // SAFETY: open image.
        let result =
            unsafe { (self.api().image.rbd_update_features)(self.handle, features, u8::from(enabled)) };
        check("rbd_update_features", || self.path(), result)?;
        Ok(())
    }

    /// Sets the size; EINVAL when smaller than it is.
    ///
    /// Implements:
    /// ```c
    /// int rbd_resize2(rbd_image_t image, uint64_t size, bool allow_shrink, librbd_progress_fn_t cb, void *cbdata);
    /// ```
    pub(crate) fn grow(&self, size: u64, mut progress: Progress<'_>) -> Result<(), Failure> {
        // SAFETY: open image; `progress` outlives the call.
        let result = unsafe {
            (self.api().image.rbd_resize2)(
                self.handle,
                size,
                false,
                Some(on_progress),
                progress_arg(&mut progress),
            )
        };
        check("rbd_resize2", || self.path(), result)?;
        Ok(())
    }

    /// Who watches the header.
    ///
    /// Implements:
    /// ```c
    /// int rbd_watchers_list(rbd_image_t image, rbd_image_watcher_t *watchers, size_t *max_watchers);
    /// void rbd_watchers_list_cleanup(rbd_image_watcher_t *watchers, size_t num_watchers);
    /// ```
    pub(crate) fn watchers(&self) -> Result<Vec<Watcher>, Failure> {
        let f = &self.api().image;
        // SAFETY: a pointer and numbers, valid when zero; librbd keeps to the capacity and sets it.
        let mut list = unsafe {
            listing("rbd_watchers_list", &|| self.path(), |watchers, max| {
                (f.rbd_watchers_list)(self.handle, watchers, max)
            })?
        };
        // SAFETY: librbd filled `list`; its strings are valid until the cleanup, which ends them.
        unsafe {
            let watchers = list
                .iter()
                .map(|w| Watcher { address: owned(w.addr), client: w.id, cookie: w.cookie })
                .collect();
            (f.rbd_watchers_list_cleanup)(list.as_mut_ptr(), list.len());
            Ok(watchers)
        }
    }
}
