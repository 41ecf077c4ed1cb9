//! Which clients are the rbd-mirror daemons of a pool.
//!
//! librbd has no call for it, and the monitors' service map needs more rights than `profile rbd` gives.
//! But each daemon registers itself in the pool that it serves (Ceph, `src/tools/rbd_mirror/Types.h` and
//! `instance_watcher/Types.h`): the omap of `rbd_mirror_leader` has a key `instance_<id>` for each, and
//! `rbd_mirror_instance.<id>` is locked by it for as long as it lives. The holder's address is the one that
//! its image locks show.

use std::ffi::{c_char, c_int, c_uchar, c_void};
use std::ptr;

use super::rados::IoCtx;
use super::{Failure, check, functions, text};

#[allow(non_camel_case_types)]
type rados_read_op_t = *mut c_void;
#[allow(non_camel_case_types)]
type rados_omap_iter_t = *mut c_void;

functions! { Functions {
    fn rados_create_read_op() -> rados_read_op_t;
    fn rados_release_read_op(read_op: rados_read_op_t);
    fn rados_read_op_omap_get_vals2(read_op: rados_read_op_t, start_after: *const c_char, filter_prefix: *const c_char, max_return: u64, iter: *mut rados_omap_iter_t, pmore: *mut c_uchar, prval: *mut c_int);
    fn rados_read_op_operate(read_op: rados_read_op_t, io: rados_ioctx_t, oid: *const c_char, flags: c_int) -> c_int;
    fn rados_omap_get_next2(iter: rados_omap_iter_t, key: *mut *mut c_char, val: *mut *mut c_char, key_len: *mut usize, val_len: *mut usize) -> c_int;
    fn rados_omap_get_end(iter: rados_omap_iter_t);
    fn rados_list_lockers(io: rados_ioctx_t, o: *const c_char, name: *const c_char, exclusive: *mut c_int, tag: *mut c_char, tag_len: *mut usize, clients: *mut c_char, clients_len: *mut usize, cookies: *mut c_char, cookies_len: *mut usize, addrs: *mut c_char, addrs_len: *mut usize) -> isize;
} }
use super::c::rados_ioctx_t;

const LEADER: &str = "rbd_mirror_leader";
const INSTANCE_KEY: &str = "instance_";
const INSTANCE_OBJECT: &str = "rbd_mirror_instance.";
/// librbd's name of its managed locks (`RBD_LOCK_NAME`).
const LOCK: &str = "rbd_lock";
/// Pairs of an omap that are read at once.
const MOST: u64 = 1024;

impl IoCtx {
    /// Addresses of the daemons that serve this pool; none when no daemon ever did.
    pub(crate) fn mirror_daemons(&self) -> Result<Vec<String>, Failure> {
        let mut addresses = Vec::new();
        for (key, _) in self.omap(LEADER)? {
            if let Some(id) = key.strip_prefix(INSTANCE_KEY) {
                addresses.extend(self.lockers(&format!("{INSTANCE_OBJECT}{id}"))?);
            }
        }
        addresses.sort();
        addresses.dedup();
        Ok(addresses)
    }

    /// Address of the daemon that leads them, if one does.
    pub(super) fn mirror_leader(&self) -> Result<Option<String>, Failure> {
        Ok(self.lockers(LEADER)?.into_iter().next())
    }

    /// An object's omap; empty when there is no such object.
    pub(super) fn omap(&self, name: &str) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        loop {
            let last = all.last().map_or_else(String::new, |(key, _)| key.clone());
            let (mut page, more) = self.omap_after(name, &last)?;
            let empty = page.is_empty();
            all.append(&mut page);
            if !more || empty {
                return Ok(all);
            }
        }
    }

    /// What of an omap comes after a key, and whether there is more.
    ///
    /// Implements:
    /// ```c
    /// rados_read_op_t rados_create_read_op(void);
    /// void rados_release_read_op(rados_read_op_t read_op);
    /// void rados_read_op_omap_get_vals2(rados_read_op_t read_op, const char *start_after, const char *filter_prefix, uint64_t max_return, rados_omap_iter_t *iter, unsigned char *pmore, int *prval);
    /// int rados_read_op_operate(rados_read_op_t read_op, rados_ioctx_t io, const char *oid, int flags);
    /// int rados_omap_get_next2(rados_omap_iter_t iter, char **key, char **val, size_t *key_len, size_t *val_len);
    /// void rados_omap_get_end(rados_omap_iter_t iter);
    /// ```
    #[allow(clippy::type_complexity)]
    fn omap_after(&self, name: &str, after: &str) -> Result<(Vec<(String, Vec<u8>)>, bool), Failure> {
        let call = "rados_read_op_operate";
        let f = &self.api().daemons;
        let (oid, start, prefix) = (text(call, name)?, text(call, after)?, text(call, "")?);
        let mut iter: rados_omap_iter_t = ptr::null_mut();
        let (mut more, mut value): (c_uchar, c_int) = (0, 0);
        // SAFETY: the out-pointers live until the operation has run, which is inside this block; the
        // operation is released on every path.
        let result = unsafe {
            let op = (f.rados_create_read_op)();
            (f.rados_read_op_omap_get_vals2)(
                op,
                start.as_ptr(),
                prefix.as_ptr(),
                MOST,
                &mut iter,
                &mut more,
                &mut value,
            );
            let result = (f.rados_read_op_operate)(op, self.handle, oid.as_ptr(), 0);
            (f.rados_release_read_op)(op);
            result
        };
        if result == -libc::ENOENT {
            return Ok((Vec::new(), false));
        }
        check(call, || self.path(name), result)?;
        check("rados_read_op_omap_get_vals2", || self.path(name), value)?;
        let mut pairs = Vec::new();
        loop {
            let (mut key, mut data): (*mut c_char, *mut c_char) = (ptr::null_mut(), ptr::null_mut());
            let (mut key_len, mut data_len) = (0usize, 0usize);
            // SAFETY: a filled iterator; key and value belong to it and are copied before it ends.
            let result =
                unsafe { (f.rados_omap_get_next2)(iter, &mut key, &mut data, &mut key_len, &mut data_len) };
            if result != 0 || key.is_null() {
                break;
            }
            // SAFETY: `key` points to `key_len` bytes owned by the iterator.
            let key = unsafe { std::slice::from_raw_parts(key.cast::<u8>(), key_len) };
            let value = match data_len {
                0 => Vec::new(),
                // SAFETY: and `data` to `data_len` bytes.
                _ => unsafe { std::slice::from_raw_parts(data.cast::<u8>(), data_len) }.to_vec(),
            };
            pairs.push((String::from_utf8_lossy(key).into_owned(), value));
        }
        // SAFETY: made by the operation above, ended once.
        unsafe { (f.rados_omap_get_end)(iter) };
        Ok((pairs, more != 0))
    }

    /// Addresses of the holders of an object's [`LOCK`]; none when nobody holds it or it is gone.
    ///
    /// Implements:
    /// ```c
    /// ssize_t rados_list_lockers(rados_ioctx_t io, const char *o, const char *name, int *exclusive, char *tag, size_t *tag_len, char *clients, size_t *clients_len, char *cookies, size_t *cookies_len, char *addrs, size_t *addrs_len);
    /// ```
    fn lockers(&self, name: &str) -> Result<Vec<String>, Failure> {
        let call = "rados_list_lockers";
        let (oid, lock) = (text(call, name)?, text(call, LOCK)?);
        let mut capacity = 1024usize;
        loop {
            let mut exclusive: c_int = 0;
            let mut buffers =
                [vec![0u8; capacity], vec![0u8; capacity], vec![0u8; capacity], vec![0u8; capacity]];
            let mut lengths = [capacity; 4];
            let [tag, clients, cookies, addresses] = &mut buffers;
            let [tag_len, clients_len, cookies_len, addresses_len] = &mut lengths;
            // SAFETY: four buffers, each as long as its length says; librados ends each string with NUL.
            let result = unsafe {
                (self.api().daemons.rados_list_lockers)(
                    self.handle,
                    oid.as_ptr(),
                    lock.as_ptr(),
                    &mut exclusive,
                    tag.as_mut_ptr().cast(),
                    tag_len,
                    clients.as_mut_ptr().cast(),
                    clients_len,
                    cookies.as_mut_ptr().cast(),
                    cookies_len,
                    addresses.as_mut_ptr().cast(),
                    addresses_len,
                )
            };
            match i32::try_from(-result) {
                Ok(libc::ENOENT) => return Ok(Vec::new()),
                Ok(libc::ERANGE) if capacity < 1 << 20 => capacity *= 4,
                _ => {
                    let result = i64::try_from(result).unwrap_or(i64::MIN);
                    let count = check(call, || self.path(name), result)?;
                    return Ok(strings(addresses, usize::try_from(count).unwrap_or(0)));
                }
            }
        }
    }
}

/// The first `count` NUL-ended addresses of a buffer, in the form that `rbd_lock_get_owners` answers: without
/// the protocol that librados puts in front.
fn strings(buffer: &[u8], count: usize) -> Vec<String> {
    let plain = |address: &[u8]| {
        let text = String::from_utf8_lossy(address);
        let bare = ["v1:", "v2:", "any:"].iter().find_map(|protocol| text.strip_prefix(protocol));
        bare.unwrap_or(&text).to_owned()
    };
    buffer.split(|b| *b == 0).take(count).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::strings;

    #[test]
    fn strings_end_with_nul() {
        assert_eq!(strings(b"127.0.0.1:0/1\0[::1]:0/2\0\0\0", 2), ["127.0.0.1:0/1", "[::1]:0/2"]);
        assert_eq!(strings(b"v1:127.0.0.1:0/7\0", 1), ["127.0.0.1:0/7"]);
        assert_eq!(strings(b"\0\0", 0), Vec::<String>::new());
    }
}
