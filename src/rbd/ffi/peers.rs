//! Peers of a mirrored pool, who leads its daemons, and which mirror snapshots are made by schedule.

use std::ffi::{c_char, c_int, c_uint};
use std::mem::zeroed;

use super::c::rados_ioctx_t;
use super::rados::IoCtx;
use super::{Failure, check, functions, owned};
use crate::rbd::mirror_survey::{MirrorPeer, MirrorPool, PeerDirection};

#[allow(non_camel_case_types)]
pub(super) type rbd_mirror_peer_direction_t = c_uint;
pub(super) const RBD_MIRROR_PEER_DIRECTION_RX: rbd_mirror_peer_direction_t = 0;
const RBD_MIRROR_PEER_DIRECTION_TX: rbd_mirror_peer_direction_t = 1;

#[allow(non_camel_case_types)]
type time_t = i64;

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
struct rbd_mirror_peer_site_t {
    uuid: *mut c_char,
    direction: rbd_mirror_peer_direction_t,
    site_name: *mut c_char,
    mirror_uuid: *mut c_char,
    client_name: *mut c_char,
    last_seen: time_t,
}

functions! { Functions {
    fn rbd_mirror_peer_site_list(io_ctx: rados_ioctx_t, peers: *mut rbd_mirror_peer_site_t, max_peers: *mut c_int) -> c_int;
    fn rbd_mirror_peer_site_list_cleanup(peers: *mut rbd_mirror_peer_site_t, max_peers: c_int);
} }

/// Where the mgr module `rbd_support` keeps the schedules of a pool (`mirror_snapshot_schedule.py`): the key is
/// `<pool id>`, `<pool id>/<namespace>` or `<pool id>/<namespace>/<image id>`.
const SCHEDULES: &str = "rbd_mirror_snapshot_schedule";

impl IoCtx {
    /// Everything about the mirroring of the pool.
    pub(crate) fn mirror_pool(&self) -> Result<MirrorPool, Failure> {
        let keys = self.omap(SCHEDULES)?.into_iter().map(|(key, _)| key);
        let (images, pools): (Vec<_>, Vec<_>) = keys.filter_map(|key| level(&key)).partition(|l| l.is_some());
        Ok(MirrorPool {
            mode: self.mirror_mode()?,
            peers: self.mirror_peers()?,
            daemons: self.mirror_daemons()?,
            leader: self.mirror_leader()?,
            scheduled: !pools.is_empty(),
            scheduled_images: images.into_iter().flatten().collect(),
        })
    }

    /// Implements:
    /// ```c
    /// int rbd_mirror_peer_site_list(rados_ioctx_t io_ctx, rbd_mirror_peer_site_t *peers, int *max_peers);
    /// void rbd_mirror_peer_site_list_cleanup(rbd_mirror_peer_site_t *peers, int max_peers);
    /// ```
    pub(crate) fn mirror_peers(&self) -> Result<Vec<MirrorPeer>, Failure> {
        let call = "rbd_mirror_peer_site_list";
        let f = &self.api().peers;
        let mut capacity: c_int = 8;
        loop {
            // SAFETY: pointers and numbers, valid when zero.
            let mut peers: Vec<rbd_mirror_peer_site_t> =
                vec![unsafe { zeroed() }; usize::try_from(capacity).unwrap_or(0)];
            let mut count = capacity;
            // SAFETY: valid ioctx, an array of the length given.
            let result =
                unsafe { (f.rbd_mirror_peer_site_list)(self.handle, peers.as_mut_ptr(), &mut count) };
            if result == -libc::ERANGE && count > capacity && count < 1 << 16 {
                capacity = count;
                continue;
            }
            check(call, || self.path(""), result)?;
            peers.truncate(usize::try_from(count).unwrap_or(0));
            // SAFETY: librbd filled `count` entries; their strings are copied before the cleanup ends them.
            let found = peers.iter().map(|peer| unsafe { read(peer) }).collect();
            // SAFETY: the same entries, cleaned once.
            unsafe { (f.rbd_mirror_peer_site_list_cleanup)(peers.as_mut_ptr(), count) };
            return Ok(found);
        }
    }
}

/// # Safety
/// `peer` was filled by librbd and not yet cleaned up.
unsafe fn read(peer: &rbd_mirror_peer_site_t) -> MirrorPeer {
    // SAFETY: the caller's promise.
    unsafe {
        MirrorPeer {
            uuid: owned(peer.uuid),
            direction: match peer.direction {
                RBD_MIRROR_PEER_DIRECTION_RX => PeerDirection::Receives,
                RBD_MIRROR_PEER_DIRECTION_TX => PeerDirection::Sends,
                _ => PeerDirection::Both,
            },
            site_name: owned(peer.site_name),
            mirror_uuid: owned(peer.mirror_uuid),
            client_name: owned(peer.client_name),
            last_seen: peer.last_seen,
        }
    }
}

/// What a schedule is for: an image (`Some(Some(id))`), the pool (`Some(None)`), or a namespace, of which
/// Cinder uses none (`None`).
fn level(key: &str) -> Option<Option<String>> {
    let mut parts = key.splitn(3, '/').skip(1);
    match (parts.next(), parts.next()) {
        (None | Some(""), None) => Some(None),
        (Some(""), Some(image)) => Some(Some(image.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::level;

    #[test]
    fn a_schedule_is_for_a_pool_or_an_image() {
        assert_eq!(level("2"), Some(None));
        assert_eq!(level("2/"), Some(None));
        assert_eq!(level("2//10ab34"), Some(Some("10ab34".to_owned())));
        assert_eq!(level("2/ns"), None);
        assert_eq!(level("2/ns/10ab34"), None);
    }
}
