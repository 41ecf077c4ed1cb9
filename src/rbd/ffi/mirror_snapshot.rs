//! The snapshots that mirroring by snapshots makes: which states of the primary a copy holds.

use std::ffi::{c_char, c_int, c_uint};
use std::mem::zeroed;

use super::c::rbd_image_t;
use super::image::Image;
use super::{Failure, check, functions};
use crate::rbd::types::MirrorSnap;

#[allow(non_camel_case_types)]
type rbd_snap_mirror_state_t = c_uint;
const RBD_SNAP_MIRROR_STATE_PRIMARY: rbd_snap_mirror_state_t = 0;
const RBD_SNAP_MIRROR_STATE_PRIMARY_DEMOTED: rbd_snap_mirror_state_t = 1;

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_snap_mirror_namespace_t {
    state: rbd_snap_mirror_state_t,
    mirror_peer_uuids_count: usize,
    mirror_peer_uuids: *mut c_char,
    complete: bool,
    primary_mirror_uuid: *mut c_char,
    primary_snap_id: u64,
    last_copied_object_number: u64,
}

functions! { Functions {
    fn rbd_snap_get_mirror_namespace(image: rbd_image_t, snap_id: u64, mirror_snap: *mut rbd_snap_mirror_namespace_t, mirror_snap_size: usize) -> c_int;
    fn rbd_snap_mirror_namespace_cleanup(mirror_snap: *mut rbd_snap_mirror_namespace_t, mirror_snap_size: usize) -> c_int;
} }

impl Image<'_> {
    /// Mirror snapshots, oldest first.
    pub(crate) fn mirror_snapshots(&self) -> Result<Vec<MirrorSnap>, Failure> {
        let mut snapshots = Vec::new();
        for (id, _, _) in self.all_snapshots()? {
            if self.is_mirror_snapshot(id)? {
                snapshots.push(self.mirror_snapshot_of(id)?);
            }
        }
        snapshots.sort_by_key(|s| s.id);
        Ok(snapshots)
    }

    /// Implements:
    /// ```c
    /// int rbd_snap_get_mirror_namespace(rbd_image_t image, uint64_t snap_id, rbd_snap_mirror_namespace_t *mirror_snap, size_t mirror_snap_size);
    /// int rbd_snap_mirror_namespace_cleanup(rbd_snap_mirror_namespace_t *mirror_snap, size_t mirror_snap_size);
    /// ```
    fn mirror_snapshot_of(&self, id: u64) -> Result<MirrorSnap, Failure> {
        let call = "rbd_snap_get_mirror_namespace";
        let f = &self.api().mirror_snapshot;
        let size = size_of::<rbd_snap_mirror_namespace_t>();
        // SAFETY: pointers, numbers and a bool, valid when zero.
        let mut namespace: rbd_snap_mirror_namespace_t = unsafe { zeroed() };
        // SAFETY: open image, a structure of the size given.
        let result = unsafe { (f.rbd_snap_get_mirror_namespace)(self.handle, id, &mut namespace, size) };
        check(call, || format!("{}, snapshot {id}", self.path()), result)?;
        let primary =
            matches!(namespace.state, RBD_SNAP_MIRROR_STATE_PRIMARY | RBD_SNAP_MIRROR_STATE_PRIMARY_DEMOTED);
        let snap = MirrorSnap {
            id,
            primary,
            complete: namespace.complete,
            of: if primary { 0 } else { namespace.primary_snap_id },
        };
        // SAFETY: librbd filled it on success; this ends its strings. It only fails for another size.
        unsafe { (f.rbd_snap_mirror_namespace_cleanup)(&mut namespace, size) };
        Ok(snap)
    }
}
