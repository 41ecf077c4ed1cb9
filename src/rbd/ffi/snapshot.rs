//! User snapshots. Group, trash and mirror snapshots of the same image are not shown.

use std::ffi::{c_char, c_int, c_uint};
use std::mem::zeroed;

use super::c::rbd_image_t;
use super::image::Image;
use super::{Failure, check, functions, owned, text};
use crate::rbd::types::Snap;

#[allow(non_camel_case_types)]
type rbd_snap_namespace_type_t = c_uint;
const RBD_SNAP_NAMESPACE_TYPE_USER: rbd_snap_namespace_type_t = 0;
const RBD_SNAP_NAMESPACE_TYPE_MIRROR: rbd_snap_namespace_type_t = 3;

/// rbd-mirror's own snapshot on both sides during an initial sync by journal. Its namespace is `user`
/// nevertheless (`tools/rbd_mirror/image_sync`, Ceph).
const MIRROR_SYNC_PREFIX: &str = ".rbd-mirror.";

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_snap_info_t {
    id: u64,
    size: u64,
    name: *const c_char,
}

functions! { Functions {
    fn rbd_snap_list(image: rbd_image_t, snaps: *mut rbd_snap_info_t, max_snaps: *mut c_int) -> c_int;
    fn rbd_snap_list_end(snaps: *mut rbd_snap_info_t);
    fn rbd_snap_get_namespace_type(image: rbd_image_t, snap_id: u64, namespace_type: *mut rbd_snap_namespace_type_t) -> c_int;
    fn rbd_snap_is_protected(image: rbd_image_t, snap_name: *const c_char, is_protected: *mut c_int) -> c_int;
    fn rbd_snap_create(image: rbd_image_t, snapname: *const c_char) -> c_int;
    fn rbd_snap_remove(image: rbd_image_t, snapname: *const c_char) -> c_int;
    fn rbd_snap_protect(image: rbd_image_t, snap_name: *const c_char) -> c_int;
    fn rbd_snap_unprotect(image: rbd_image_t, snap_name: *const c_char) -> c_int;
    fn rbd_snap_rename(image: rbd_image_t, snapname: *const c_char, dstsnapsname: *const c_char) -> c_int;
} }

impl Image<'_> {
    /// Snapshots of the namespace `user`, without those that rbd-mirror keeps there.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snap>, Failure> {
        let mut snapshots = Vec::new();
        for (id, size, name) in self.all_snapshots()? {
            if !name.starts_with(MIRROR_SYNC_PREFIX) && self.is_user_snapshot(id)? {
                let protected = self.is_protected(&name)?;
                snapshots.push(Snap { id, name, size, protected });
            }
        }
        Ok(snapshots)
    }

    /// Names of the snapshots that rbd-mirror keeps in the namespace `user`.
    pub(super) fn sync_points(&self) -> Result<Vec<String>, Failure> {
        let names = self.all_snapshots()?.into_iter().map(|(_, _, name)| name);
        Ok(names.filter(|name| name.starts_with(MIRROR_SYNC_PREFIX)).collect())
    }

    /// Id, size and name of all snapshots of all namespaces.
    ///
    /// Implements:
    /// ```c
    /// int rbd_snap_list(rbd_image_t image, rbd_snap_info_t *snaps, int *max_snaps);
    /// void rbd_snap_list_end(rbd_snap_info_t *snaps);
    /// ```
    pub(super) fn all_snapshots(&self) -> Result<Vec<(u64, u64, String)>, Failure> {
        let f = &self.api().snapshot;
        let mut capacity: c_int = 64;
        loop {
            // SAFETY: numbers and a pointer, valid when zero.
            let empty: rbd_snap_info_t = unsafe { zeroed() };
            // Not more than an i32 of snapshots: librbd itself counts them so.
            let mut list = vec![empty; usize::try_from(capacity).unwrap_or(0)];
            let mut max = capacity;
            // SAFETY: open image; the array is as long as said. librbd needs one element more than there
            // are snapshots, and ends the list with a NULL name.
            let result = unsafe { (f.rbd_snap_list)(self.handle, list.as_mut_ptr(), &mut max) };
            if result == -libc::ERANGE {
                capacity = max.max(capacity + 1) + 16;
                continue;
            }
            let count = usize::try_from(check("rbd_snap_list", || self.path(), result)?).unwrap_or(0);
            // SAFETY: librbd filled `count` elements; rbd_snap_list_end frees the names up to the first
            // NULL name, and one follows: the list is longer than `count` and was all zero.
            unsafe {
                let all = list.iter().take(count).map(|s| (s.id, s.size, owned(s.name))).collect();
                (f.rbd_snap_list_end)(list.as_mut_ptr());
                return Ok(all);
            }
        }
    }

    fn is_user_snapshot(&self, id: u64) -> Result<bool, Failure> {
        Ok(self.namespace_of(id)? == RBD_SNAP_NAMESPACE_TYPE_USER)
    }

    /// Whether a snapshot is one of those that mirroring by snapshots makes.
    pub(super) fn is_mirror_snapshot(&self, id: u64) -> Result<bool, Failure> {
        Ok(self.namespace_of(id)? == RBD_SNAP_NAMESPACE_TYPE_MIRROR)
    }

    /// Implements:
    /// ```c
    /// int rbd_snap_get_namespace_type(rbd_image_t image, uint64_t snap_id, rbd_snap_namespace_type_t *namespace_type);
    /// ```
    fn namespace_of(&self, id: u64) -> Result<rbd_snap_namespace_type_t, Failure> {
        let mut namespace: rbd_snap_namespace_type_t = RBD_SNAP_NAMESPACE_TYPE_USER;
        // SAFETY: open image and valid out-pointer.
        let result =
            unsafe { (self.api().snapshot.rbd_snap_get_namespace_type)(self.handle, id, &mut namespace) };
        check("rbd_snap_get_namespace_type", || format!("{}, snapshot {id}", self.path()), result)?;
        Ok(namespace)
    }

    /// Implements:
    /// ```c
    /// int rbd_snap_is_protected(rbd_image_t image, const char *snap_name, int *is_protected);
    /// ```
    fn is_protected(&self, name: &str) -> Result<bool, Failure> {
        let call = "rbd_snap_is_protected";
        let c_name = text(call, name)?;
        let mut protected = 0;
        // SAFETY: open image, valid string and out-pointer.
        let result = unsafe {
            (self.api().snapshot.rbd_snap_is_protected)(self.handle, c_name.as_ptr(), &mut protected)
        };
        check(call, || format!("{}@{name}", self.path()), result)?;
        Ok(protected != 0)
    }

    /// Creates a snapshot.
    ///
    /// Implements:
    /// ```c
    /// int rbd_snap_create(rbd_image_t image, const char *snapname);
    /// ```
    pub(crate) fn create_snapshot(&self, name: &str) -> Result<(), Failure> {
        self.on_snapshot("rbd_snap_create", self.api().snapshot.rbd_snap_create, name)
    }

    /// Removes a snapshot that is not protected.
    ///
    /// Implements:
    /// ```c
    /// int rbd_snap_remove(rbd_image_t image, const char *snapname);
    /// ```
    pub(crate) fn remove_snapshot(&self, name: &str) -> Result<(), Failure> {
        self.on_snapshot("rbd_snap_remove", self.api().snapshot.rbd_snap_remove, name)
    }

    /// Protects a snapshot; EBUSY when it is.
    ///
    /// Implements:
    /// ```c
    /// int rbd_snap_protect(rbd_image_t image, const char *snap_name);
    /// ```
    pub(crate) fn protect_snapshot(&self, name: &str) -> Result<(), Failure> {
        self.on_snapshot("rbd_snap_protect", self.api().snapshot.rbd_snap_protect, name)
    }

    /// Unprotects a snapshot; EINVAL when it is not protected, EBUSY while it has clones.
    ///
    /// Implements:
    /// ```c
    /// int rbd_snap_unprotect(rbd_image_t image, const char *snap_name);
    /// ```
    pub(crate) fn unprotect_snapshot(&self, name: &str) -> Result<(), Failure> {
        self.on_snapshot("rbd_snap_unprotect", self.api().snapshot.rbd_snap_unprotect, name)
    }

    fn on_snapshot(
        &self,
        call: &'static str,
        function: unsafe extern "C" fn(rbd_image_t, *const c_char) -> c_int,
        name: &str,
    ) -> Result<(), Failure> {
        let c_name = text(call, name)?;
        // SAFETY: open image and valid string; `function` is one of librbd's above.
        let result = unsafe { function(self.handle, c_name.as_ptr()) };
        check(call, || format!("{}@{name}", self.path()), result)?;
        Ok(())
    }

    /// Renames a snapshot.
    ///
    /// Implements:
    /// ```c
    /// int rbd_snap_rename(rbd_image_t image, const char *snapname, const char* dstsnapsname);
    /// ```
    pub(crate) fn rename_snapshot(&self, from: &str, to: &str) -> Result<(), Failure> {
        let call = "rbd_snap_rename";
        let (c_from, c_to) = (text(call, from)?, text(call, to)?);
        // SAFETY: open image and valid strings.
        let result =
            unsafe { (self.api().snapshot.rbd_snap_rename)(self.handle, c_from.as_ptr(), c_to.as_ptr()) };
        check(call, || format!("{}@{from} to {to}", self.path()), result)?;
        Ok(())
    }
}
