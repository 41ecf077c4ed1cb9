//! Making two clusters peers: names, modes, tokens, peers and pools.

use std::ffi::{c_char, c_int};

use super::c::{rados_ioctx_t, rados_t};
use super::mirror::{
    RBD_MIRROR_MODE_DISABLED, RBD_MIRROR_MODE_IMAGE, RBD_MIRROR_MODE_POOL, rbd_mirror_mode_t,
};
use super::peers::{RBD_MIRROR_PEER_DIRECTION_RX, rbd_mirror_peer_direction_t};
use super::rados::{Cluster, IoCtx};
use super::{Failure, check, functions, text};
use crate::rbd::error::RbdErrorKind;
use crate::rbd::link::Way;
use crate::rbd::types::PoolMirrorMode;

const RBD_MIRROR_PEER_DIRECTION_RX_TX: rbd_mirror_peer_direction_t = 2;

/// Where an option of librbd is kept for all images of a pool (`RBD_IMAGE_CONFIG_...`, librbd `api/Config.cc`).
const DATA_POOL_OPTION: &str = "conf_rbd_default_data_pool";

functions! { Functions {
    fn rbd_mirror_site_name_get(cluster: rados_t, name: *mut c_char, max_len: *mut usize) -> c_int;
    fn rbd_mirror_site_name_set(cluster: rados_t, name: *const c_char) -> c_int;
    fn rbd_mirror_mode_set(io_ctx: rados_ioctx_t, mirror_mode: rbd_mirror_mode_t) -> c_int;
    fn rbd_mirror_peer_bootstrap_create(io_ctx: rados_ioctx_t, token: *mut c_char, max_len: *mut usize) -> c_int;
    fn rbd_mirror_peer_bootstrap_import(io_ctx: rados_ioctx_t, direction: rbd_mirror_peer_direction_t, token: *const c_char) -> c_int;
    fn rbd_mirror_peer_site_add(io_ctx: rados_ioctx_t, uuid: *mut c_char, uuid_max_length: usize, direction: rbd_mirror_peer_direction_t, site_name: *const c_char, client_name: *const c_char) -> c_int;
    fn rbd_mirror_peer_site_remove(io_ctx: rados_ioctx_t, uuid: *const c_char) -> c_int;
    fn rbd_mirror_peer_site_set_attributes(p: rados_ioctx_t, uuid: *const c_char, keys: *const c_char, values: *const c_char, key_value_count: usize) -> c_int;
    fn rbd_pool_init(io: rados_ioctx_t, force: bool) -> c_int;
    fn rbd_pool_metadata_set(io_ctx: rados_ioctx_t, key: *const c_char, value: *const c_char) -> c_int;
} }

/// A text that librbd writes into a buffer, asked again with a larger one as long as it does not fit.
fn filled(
    call: &'static str,
    what: impl Fn() -> String,
    ask: impl Fn(*mut c_char, &mut usize) -> c_int,
) -> Result<String, Failure> {
    let mut capacity = 512;
    loop {
        let mut buffer = vec![0u8; capacity];
        let mut length = capacity;
        let result = ask(buffer.as_mut_ptr().cast(), &mut length);
        if result == -libc::ERANGE && capacity < 1 << 16 {
            capacity = length.max(capacity * 2);
            continue;
        }
        check(call, &what, result)?;
        let end = buffer.iter().position(|b| *b == 0).unwrap_or(buffer.len());
        return Ok(String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).into_owned());
    }
}

impl Cluster {
    /// What it calls itself towards its peers; librbd answers the fsid for none.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_site_name_get(rados_t cluster, char *name, size_t *max_len);
    /// ```
    pub(crate) fn site_name(&self) -> Result<Option<String>, Failure> {
        let name = filled(
            "rbd_mirror_site_name_get",
            || "the cluster's name towards peers".to_owned(),
            // SAFETY: connected handle, a buffer of the length given.
            |buffer, length| unsafe { (self.api.link.rbd_mirror_site_name_get)(self.handle, buffer, length) },
        )?;
        Ok(Some(name).filter(|name| !name.is_empty() && self.fsid().is_ok_and(|fsid| fsid != *name)))
    }

    /// Implements:
    /// ```c
    /// int rbd_mirror_site_name_set(rados_t cluster, const char *name);
    /// ```
    pub(crate) fn set_site_name(&self, name: &str) -> Result<(), Failure> {
        let call = "rbd_mirror_site_name_set";
        let c_name = text(call, name)?;
        // SAFETY: connected handle, valid string.
        let result = unsafe { (self.api.link.rbd_mirror_site_name_set)(self.handle, c_name.as_ptr()) };
        check(call, || format!("name {name}"), result)?;
        Ok(())
    }
}

impl IoCtx {
    /// Implements:
    /// ```c
    /// int rbd_mirror_mode_set(rados_ioctx_t io_ctx, rbd_mirror_mode_t mirror_mode);
    /// ```
    pub(crate) fn set_mirror_mode(&self, mode: PoolMirrorMode) -> Result<(), Failure> {
        let mode = match mode {
            PoolMirrorMode::Disabled => RBD_MIRROR_MODE_DISABLED,
            PoolMirrorMode::Image => RBD_MIRROR_MODE_IMAGE,
            PoolMirrorMode::Pool => RBD_MIRROR_MODE_POOL,
        };
        // SAFETY: valid ioctx.
        let result = unsafe { (self.api().link.rbd_mirror_mode_set)(self.handle, mode) };
        check("rbd_mirror_mode_set", || self.path(""), result)?;
        Ok(())
    }

    /// A token by which another cluster reaches this one. It has a key: it goes from here to
    /// [`IoCtx::bootstrap_import`] and nowhere else.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_peer_bootstrap_create(rados_ioctx_t io_ctx, char *token, size_t *max_len);
    /// ```
    pub(crate) fn bootstrap_token(&self) -> Result<String, Failure> {
        filled(
            "rbd_mirror_peer_bootstrap_create",
            || self.path(""),
            // SAFETY: valid ioctx, a buffer of the length given.
            |buffer, length| unsafe {
                (self.api().link.rbd_mirror_peer_bootstrap_create)(self.handle, buffer, length)
            },
        )
    }

    /// Implements:
    /// ```c
    /// int rbd_mirror_peer_bootstrap_import(rados_ioctx_t io_ctx, rbd_mirror_peer_direction_t direction, const char *token);
    /// ```
    pub(crate) fn bootstrap_import(&self, way: Way, token: &str) -> Result<(), Failure> {
        let call = "rbd_mirror_peer_bootstrap_import";
        let direction = match way {
            Way::RxOnly => RBD_MIRROR_PEER_DIRECTION_RX,
            Way::RxTx => RBD_MIRROR_PEER_DIRECTION_RX_TX,
        };
        let c_token = text(call, token)?;
        // SAFETY: valid ioctx and string.
        let result = unsafe {
            (self.api().link.rbd_mirror_peer_bootstrap_import)(self.handle, direction, c_token.as_ptr())
        };
        check(call, || self.path(""), result)?;
        Ok(())
    }

    /// Adds a peer that this pool receives from; answers its uuid.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_peer_site_add(rados_ioctx_t io_ctx, char *uuid, size_t uuid_max_length, rbd_mirror_peer_direction_t direction, const char *site_name, const char *client_name);
    /// ```
    pub(crate) fn add_peer(&self, site_name: &str, client: &str) -> Result<String, Failure> {
        let call = "rbd_mirror_peer_site_add";
        let (c_name, c_client) = (text(call, site_name)?, text(call, client)?);
        let mut uuid = [0u8; 64];
        // SAFETY: valid ioctx and strings, a buffer of the length given.
        let result = unsafe {
            (self.api().link.rbd_mirror_peer_site_add)(
                self.handle,
                uuid.as_mut_ptr().cast(),
                uuid.len(),
                RBD_MIRROR_PEER_DIRECTION_RX,
                c_name.as_ptr(),
                c_client.as_ptr(),
            )
        };
        check(call, || self.path(""), result)?;
        let end = uuid.iter().position(|b| *b == 0).unwrap_or(uuid.len());
        Ok(String::from_utf8_lossy(uuid.get(..end).unwrap_or_default()).into_owned())
    }

    /// One that is gone is a success.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_peer_site_remove(rados_ioctx_t io_ctx, const char *uuid);
    /// ```
    pub(crate) fn remove_peer(&self, uuid: &str) -> Result<(), Failure> {
        let call = "rbd_mirror_peer_site_remove";
        let c_uuid = text(call, uuid)?;
        // SAFETY: valid ioctx and string.
        let result = unsafe { (self.api().link.rbd_mirror_peer_site_remove)(self.handle, c_uuid.as_ptr()) };
        match check(call, || format!("peer {uuid} of {}", self.path("")), result) {
            Err(failure) if failure.kind() == RbdErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Where the peer's monitors are, and the key of its client, for the config-key store.
    ///
    /// Implements:
    /// ```c
    /// int rbd_mirror_peer_site_set_attributes(rados_ioctx_t p, const char *uuid, const char *keys, const char *values, size_t key_value_count);
    /// ```
    pub(crate) fn set_peer(&self, uuid: &str, mon_host: &str, key: &str) -> Result<(), Failure> {
        let call = "rbd_mirror_peer_site_set_attributes";
        let c_uuid = text(call, uuid)?;
        // Strings one after the other, each with its NUL; a NUL within would make them others.
        for part in [mon_host, key] {
            text(call, part)?;
        }
        let (keys, values) = (b"mon_host\0key\0", format!("{mon_host}\0{key}\0"));
        // SAFETY: valid ioctx and string; both lists have two strings that end with NUL.
        let result = unsafe {
            (self.api().link.rbd_mirror_peer_site_set_attributes)(
                self.handle,
                c_uuid.as_ptr(),
                keys.as_ptr().cast(),
                values.as_ptr().cast(),
                2,
            )
        };
        check(call, || format!("peer {uuid} of {}", self.path("")), result)?;
        Ok(())
    }

    /// Makes a pool one for RBD, which takes a write to it; what images keep their data in.
    ///
    /// Implements:
    /// ```c
    /// int rbd_pool_init(rados_ioctx_t io, bool force);
    /// int rbd_pool_metadata_set(rados_ioctx_t io_ctx, const char *key, const char *value);
    /// ```
    pub(crate) fn initialise(&self, data_pool: Option<&str>) -> Result<(), Failure> {
        // SAFETY: valid ioctx.
        let result = unsafe { (self.api().link.rbd_pool_init)(self.handle, false) };
        check("rbd_pool_init", || self.path(""), result)?;
        let Some(data_pool) = data_pool else { return Ok(()) };
        let call = "rbd_pool_metadata_set";
        let (key, value) = (text(call, DATA_POOL_OPTION)?, text(call, data_pool)?);
        // SAFETY: valid ioctx and strings.
        let result =
            unsafe { (self.api().link.rbd_pool_metadata_set)(self.handle, key.as_ptr(), value.as_ptr()) };
        check(call, || self.path(""), result)?;
        Ok(())
    }
}
