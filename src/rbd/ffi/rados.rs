//! A client of one Ceph cluster: connection, monitor commands, pools and plain objects.

use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use super::c::{rados_ioctx_t, rados_t};
use super::{Api, Failure, check, functions, owned, text};

functions! { Functions {
    fn rados_create2(pcluster: *mut rados_t, clustername: *const c_char, name: *const c_char, flags: u64) -> c_int;
    fn rados_conf_read_file(cluster: rados_t, path: *const c_char) -> c_int;
    fn rados_conf_set(cluster: rados_t, option: *const c_char, value: *const c_char) -> c_int;
    fn rados_conf_get(cluster: rados_t, option: *const c_char, buf: *mut c_char, len: usize) -> c_int;
    fn rados_connect(cluster: rados_t) -> c_int;
    fn rados_shutdown(cluster: rados_t);
    fn rados_cluster_fsid(cluster: rados_t, buf: *mut c_char, len: usize) -> c_int;
    fn rados_getaddrs(cluster: rados_t, addrs: *mut *mut c_char) -> c_int;
    fn rados_mon_command(cluster: rados_t, cmd: *mut *const c_char, cmdlen: usize, inbuf: *const c_char, inbuflen: usize, outbuf: *mut *mut c_char, outbuflen: *mut usize, outs: *mut *mut c_char, outslen: *mut usize) -> c_int;
    fn rados_mgr_command(cluster: rados_t, cmd: *mut *const c_char, cmdlen: usize, inbuf: *const c_char, inbuflen: usize, outbuf: *mut *mut c_char, outbuflen: *mut usize, outs: *mut *mut c_char, outslen: *mut usize) -> c_int;
    fn rados_buffer_free(buf: *mut c_char);
    fn rados_blocklist_add(cluster: rados_t, client_address: *mut c_char, expire_seconds: u32) -> c_int;
    fn rados_ioctx_create(cluster: rados_t, pool_name: *const c_char, ioctx: *mut rados_ioctx_t) -> c_int;
    fn rados_ioctx_destroy(io: rados_ioctx_t);
    fn rados_set_pool_full_try(io: rados_ioctx_t);
    fn rados_write_full(io: rados_ioctx_t, oid: *const c_char, buf: *const c_char, len: usize) -> c_int;
    fn rados_read(io: rados_ioctx_t, oid: *const c_char, buf: *mut c_char, len: usize, off: u64) -> c_int;
    fn rados_write(io: rados_ioctx_t, oid: *const c_char, buf: *const c_char, len: usize, off: u64) -> c_int;
    fn rados_remove(io: rados_ioctx_t, oid: *const c_char) -> c_int;
} }

/// Who connects to what. The key itself is read by librados from the keyring that the conf names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// ceph.conf; empty: librados searches.
    pub(crate) conf: PathBuf,
    /// Cluster name.
    pub(crate) cluster_name: String,
    /// Without `client.`; `None`: `client.admin`, as librados' Python binding does.
    pub(crate) user: Option<String>,
}

/// A connected client.
pub(crate) struct Cluster {
    pub(super) api: &'static Api,
    pub(super) handle: rados_t,
    address: String,
}

// SAFETY: librados documents a cluster handle as usable from several threads at once; all methods but
// `connect` and `drop`, which own the value, only pass it on.
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Drop for Cluster {
    /// Implements:
    /// ```c
    /// void rados_shutdown(rados_t cluster);
    /// ```
    fn drop(&mut self) {
        // SAFETY: made by rados_create2, and nobody else holds it: ioctxs keep an Arc of this value.
        unsafe { (self.api.rados.rados_shutdown)(self.handle) }
    }
}

impl Cluster {
    /// Reads the conf, sets `options` over it, connects. Bounded by the option `client_mount_timeout`.
    ///
    /// Implements:
    /// ```c
    /// int rados_create2(rados_t *pcluster, const char *const clustername, const char * const name, uint64_t flags);
    /// int rados_conf_read_file(rados_t cluster, const char *path);
    /// int rados_conf_set(rados_t cluster, const char *option, const char *value);
    /// int rados_connect(rados_t cluster);
    /// ```
    pub(crate) fn connect(
        api: &'static Api,
        identity: &Identity,
        options: &[(&str, String)],
    ) -> Result<Cluster, Failure> {
        let f = &api.rados;
        let user = format!("client.{}", identity.user.as_deref().unwrap_or("admin"));
        let who = || format!("{user} with {}", conf_text(identity));

        let call = "rados_create2";
        let (name, c_user) = (text(call, &identity.cluster_name)?, text(call, &user)?);
        let mut handle: rados_t = ptr::null_mut();
        // SAFETY: out-pointer and strings are valid for the call.
        let result = unsafe { (f.rados_create2)(&mut handle, name.as_ptr(), c_user.as_ptr(), 0) };
        check(call, who, result)?;
        let mut cluster = Cluster { api, handle, address: String::new() };

        let call = "rados_conf_read_file";
        let path = match identity.conf.to_str() {
            Some("") => None,
            Some(path) => Some(text(call, path)?),
            None => return Err(Failure::new(call, who(), -i64::from(libc::EILSEQ))),
        };
        let path = path.as_ref().map_or(ptr::null(), |p| p.as_ptr());
        // SAFETY: the handle is new; NULL means the default search.
        let result = unsafe { (f.rados_conf_read_file)(handle, path) };
        check(call, || format!("cannot read {}", conf_text(identity)), result)?;

        for (option, value) in options {
            let call = "rados_conf_set";
            let (c_option, c_value) = (text(call, option)?, text(call, value)?);
            // SAFETY: valid handle and strings.
            let result = unsafe { (f.rados_conf_set)(handle, c_option.as_ptr(), c_value.as_ptr()) };
            check(call, || format!("option {option}={value}"), result)?;
        }

        // SAFETY: valid handle, not connected yet.
        let result = unsafe { (f.rados_connect)(handle) };
        let hint = match -result {
            libc::ENOENT => " (no keyring with its key was found)",
            libc::EACCES | libc::EPERM => " (the monitors refuse its key)",
            libc::ETIMEDOUT => " (no monitor answered in time)",
            libc::EIO | libc::EINVAL => " (its key in the keyring is malformed)",
            _ => "",
        };
        check("rados_connect", || format!("cannot connect as {}{hint}", who()), result)?;
        cluster.address = cluster.read_address()?;
        Ok(cluster)
    }

    /// This client's RADOS address, as a blocklist entry names it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Implements:
    /// ```c
    /// int rados_getaddrs(rados_t cluster, char** addrs);
    /// void rados_buffer_free(char *buf);
    /// ```
    fn read_address(&self) -> Result<String, Failure> {
        let mut address: *mut c_char = ptr::null_mut();
        // SAFETY: connected handle; librados allocates the string with strdup.
        let result = unsafe { (self.api.rados.rados_getaddrs)(self.handle, &mut address) };
        check("rados_getaddrs", || "address of this client".to_owned(), result)?;
        // SAFETY: on success it is a valid string, released by rados_buffer_free (free) just after.
        unsafe {
            let value = owned(address);
            (self.api.rados.rados_buffer_free)(address);
            Ok(value)
        }
    }

    /// From memory, not from the network.
    ///
    /// Implements:
    /// ```c
    /// int rados_cluster_fsid(rados_t cluster, char *buf, size_t len);
    /// ```
    pub(crate) fn fsid(&self) -> Result<String, Failure> {
        let mut buffer = [0u8; 64];
        // SAFETY: the buffer is as long as said.
        let result = unsafe {
            (self.api.rados.rados_cluster_fsid)(self.handle, buffer.as_mut_ptr().cast(), buffer.len())
        };
        let length = check("rados_cluster_fsid", || "fsid".to_owned(), result)?;
        let length = usize::try_from(length).unwrap_or(0).min(buffer.len());
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// `None` when there is no such option.
    ///
    /// Implements:
    /// ```c
    /// int rados_conf_get(rados_t cluster, const char *option, char *buf, size_t len);
    /// ```
    pub(crate) fn conf_get(&self, option: &str) -> Result<Option<String>, Failure> {
        let call = "rados_conf_get";
        let c_option = text(call, option)?;
        let mut capacity = 256;
        loop {
            let mut buffer = vec![0u8; capacity];
            // SAFETY: the buffer is as long as said; librados ends it with NUL when it fits.
            let result = unsafe {
                (self.api.rados.rados_conf_get)(
                    self.handle,
                    c_option.as_ptr(),
                    buffer.as_mut_ptr().cast(),
                    capacity,
                )
            };
            match -result {
                libc::ENOENT => return Ok(None),
                libc::ENAMETOOLONG if capacity < 1 << 20 => capacity *= 8,
                _ => {
                    check(call, || format!("option {option}"), result)?;
                    let value = buffer.split(|b| *b == 0).next().unwrap_or_default();
                    return Ok(Some(String::from_utf8_lossy(value).into_owned()));
                }
            }
        }
    }

    /// Sends a JSON command to the monitors; answers its output. A time-out is reported by the code
    /// alone, with nothing in the output.
    ///
    /// Implements:
    /// ```c
    /// int rados_mon_command(rados_t cluster, const char **cmd, size_t cmdlen, const char *inbuf, size_t inbuflen, char **outbuf, size_t *outbuflen, char **outs, size_t *outslen);
    /// void rados_buffer_free(char *buf);
    /// ```
    pub(crate) fn mon_command(&self, command: &serde_json::Value) -> Result<Vec<u8>, Failure> {
        self.command("rados_mon_command", self.api.rados.rados_mon_command, "monitor", command)
    }

    /// Sends a JSON command to the active ceph-mgr; answers its output.
    ///
    /// Implements:
    /// ```c
    /// int rados_mgr_command(rados_t cluster, const char **cmd, size_t cmdlen, const char *inbuf, size_t inbuflen, char **outbuf, size_t *outbuflen, char **outs, size_t *outslen);
    /// ```
    pub(crate) fn mgr_command(&self, command: &serde_json::Value) -> Result<Vec<u8>, Failure> {
        self.command("rados_mgr_command", self.api.rados.rados_mgr_command, "manager", command)
    }

    #[allow(clippy::type_complexity)]
    fn command(
        &self,
        call: &'static str,
        function: unsafe extern "C" fn(
            rados_t,
            *mut *const c_char,
            usize,
            *const c_char,
            usize,
            *mut *mut c_char,
            *mut usize,
            *mut *mut c_char,
            *mut usize,
        ) -> c_int,
        whom: &str,
        command: &serde_json::Value,
    ) -> Result<Vec<u8>, Failure> {
        let prefix = command.get("prefix").and_then(|p| p.as_str()).unwrap_or("?").to_owned();
        let command = text(call, &command.to_string())?;
        let mut commands = [command.as_ptr()];
        let (mut out, mut out_length) = (ptr::null_mut::<c_char>(), 0usize);
        let (mut status, mut status_length) = (ptr::null_mut::<c_char>(), 0usize);
        // SAFETY: one command, no input, four valid out-pointers; `function` is one of the two above.
        let result = unsafe {
            function(
                self.handle,
                commands.as_mut_ptr(),
                commands.len(),
                ptr::null(),
                0,
                &mut out,
                &mut out_length,
                &mut status,
                &mut status_length,
            )
        };
        // SAFETY: librados allocated both (or left NULL and 0) with the lengths it says.
        let (out, status) = unsafe { (self.take(out, out_length), self.take(status, status_length)) };
        let said = || match String::from_utf8_lossy(&status).trim() {
            "" => format!("{whom} command '{prefix}'"),
            said => format!("{whom} command '{prefix}': {said}"),
        };
        check(call, said, result)?;
        Ok(out)
    }

    /// Copies and releases a buffer of librados.
    ///
    /// # Safety
    /// NULL, or allocated by librados with that length.
    unsafe fn take(&self, buffer: *mut c_char, length: usize) -> Vec<u8> {
        if buffer.is_null() {
            return Vec::new();
        }
        // SAFETY: the caller's promise.
        unsafe {
            let copy = std::slice::from_raw_parts(buffer.cast::<u8>(), length).to_vec();
            (self.api.rados.rados_buffer_free)(buffer);
            copy
        }
    }

    /// Fences a client and waits until this client has the OSD map that says so.
    ///
    /// Implements:
    /// ```c
    /// int rados_blocklist_add(rados_t cluster, char *client_address, uint32_t expire_seconds);
    /// ```
    pub(crate) fn blocklist_add(&self, address: &str, seconds: u32) -> Result<(), Failure> {
        let call = "rados_blocklist_add";
        let c_address = text(call, address)?.into_raw();
        // SAFETY: a string that C may write to; taken back right after, its length unchanged (librados
        // only reads it).
        let result = unsafe {
            let result = (self.api.rados.rados_blocklist_add)(self.handle, c_address, seconds);
            drop(CString::from_raw(c_address));
            result
        };
        check(call, || format!("client {address}"), result)?;
        Ok(())
    }
}

/// How an error names the conf.
fn conf_text(identity: &Identity) -> String {
    if identity.conf.as_os_str().is_empty() {
        format!("the ceph.conf of cluster {}", identity.cluster_name)
    } else {
        identity.conf.display().to_string()
    }
}

/// A pool, as one client sees it.
pub(crate) struct IoCtx {
    cluster: Arc<Cluster>,
    pub(super) handle: rados_ioctx_t,
    pool: String,
}

// SAFETY: librados documents I/O contexts as usable from several threads as long as none changes their
// state (namespace, snapshot, locator); no wrapper here does.
unsafe impl Send for IoCtx {}
// SAFETY: as above.
unsafe impl Sync for IoCtx {}

impl Drop for IoCtx {
    /// Implements:
    /// ```c
    /// void rados_ioctx_destroy(rados_ioctx_t io);
    /// ```
    fn drop(&mut self) {
        // SAFETY: made by rados_ioctx_create; images opened through it borrow it.
        unsafe { (self.cluster.api.rados.rados_ioctx_destroy)(self.handle) }
    }
}

impl IoCtx {
    /// A lookup in the client's own OSD map; asks the monitors only when the pool is not in it.
    ///
    /// A client holds back what it writes into a full pool, until there is room: a call would hang until its time-out,
    /// and a removal, which makes room, with it. Here everything is sent: the OSD refuses what needs room, at once, and
    /// does the rest. librbd hands that on to the contexts of the images that it opens by this one.
    ///
    /// Implements:
    /// ```c
    /// int rados_ioctx_create(rados_t cluster, const char *pool_name, rados_ioctx_t *ioctx);
    /// void rados_set_pool_full_try(rados_ioctx_t io);
    /// ```
    pub(crate) fn open(cluster: &Arc<Cluster>, pool: &str) -> Result<IoCtx, Failure> {
        let call = "rados_ioctx_create";
        let name = text(call, pool)?;
        let mut handle: rados_ioctx_t = ptr::null_mut();
        // SAFETY: connected cluster, valid string and out-pointer.
        let result =
            unsafe { (cluster.api.rados.rados_ioctx_create)(cluster.handle, name.as_ptr(), &mut handle) };
        check(call, || format!("pool {pool}"), result)?;
        // SAFETY: the context is new, and nobody else has it yet.
        unsafe { (cluster.api.rados.rados_set_pool_full_try)(handle) };
        Ok(IoCtx { cluster: Arc::clone(cluster), handle, pool: pool.to_owned() })
    }

    /// The functions.
    pub(super) fn api(&self) -> &'static Api {
        self.cluster.api
    }

    /// `pool/name`, as errors say it.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.pool)
    }

    /// Writes a whole object.
    ///
    /// Implements:
    /// ```c
    /// int rados_write_full(rados_ioctx_t io, const char *oid, const char *buf, size_t len);
    /// ```
    pub(crate) fn write_object(&self, name: &str, data: &[u8]) -> Result<(), Failure> {
        let call = "rados_write_full";
        let oid = text(call, name)?;
        // SAFETY: the data is as long as said.
        let result = unsafe {
            (self.api().rados.rados_write_full)(self.handle, oid.as_ptr(), data.as_ptr().cast(), data.len())
        };
        check(call, || self.path(name), result)?;
        Ok(())
    }

    /// Reads up to `length` bytes from the start of an object.
    pub(crate) fn read_object(&self, name: &str, length: usize) -> Result<Vec<u8>, Failure> {
        self.read_object_at(name, 0, length)
    }

    /// Writes into an object from `offset` on; makes it when there is none.
    ///
    /// Implements:
    /// ```c
    /// int rados_write(rados_ioctx_t io, const char *oid, const char *buf, size_t len, uint64_t off);
    /// ```
    pub(crate) fn write_object_at(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let call = "rados_write";
        let oid = text(call, name)?;
        // SAFETY: the data is as long as said.
        let result = unsafe {
            (self.api().rados.rados_write)(
                self.handle,
                oid.as_ptr(),
                data.as_ptr().cast(),
                data.len(),
                offset,
            )
        };
        check(call, || self.path(name), result)?;
        Ok(())
    }

    /// Reads up to `length` bytes of an object from `offset` on.
    ///
    /// Implements:
    /// ```c
    /// int rados_read(rados_ioctx_t io, const char *oid, char *buf, size_t len, uint64_t off);
    /// ```
    pub(crate) fn read_object_at(&self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, Failure> {
        let call = "rados_read";
        let oid = text(call, name)?;
        let mut data = vec![0u8; length];
        // SAFETY: the buffer is as long as said.
        let result = unsafe {
            (self.api().rados.rados_read)(self.handle, oid.as_ptr(), data.as_mut_ptr().cast(), length, offset)
        };
        let read = check(call, || self.path(name), result)?;
        data.truncate(usize::try_from(read).unwrap_or(0));
        Ok(data)
    }

    /// Removes an object.
    ///
    /// Implements:
    /// ```c
    /// int rados_remove(rados_ioctx_t io, const char *oid);
    /// ```
    pub(crate) fn remove_object(&self, name: &str) -> Result<(), Failure> {
        let call = "rados_remove";
        let oid = text(call, name)?;
        // SAFETY: valid ioctx and string.
        let result = unsafe { (self.api().rados.rados_remove)(self.handle, oid.as_ptr()) };
        check(call, || self.path(name), result)?;
        Ok(())
    }
}
