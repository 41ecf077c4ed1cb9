//! What a number from librados or librbd means, given the function that returned it.
//!
//! The same errno says different things: ENOENT from `rados_connect` is a missing keyring, from
//! `rados_ioctx_create` a missing pool, from `rbd_open` a missing image; EPERM from a trash removal is
//! a deferment that has not passed. The translation is made here and nowhere else.

use std::fmt;

use crate::rbd::error::RbdErrorKind;

/// EBLOCKLISTED of `include/rados.h` (Ceph): an alias of ESHUTDOWN.
pub(crate) const EBLOCKLISTED: i32 = libc::ESHUTDOWN;

/// A positive errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    /// What `call` (name of the C function) means by this number.
    pub(crate) fn kind(self, call: &str) -> RbdErrorKind {
        let connecting = matches!(
            call,
            "rados_create2" | "rados_conf_read_file" | "rados_conf_set" | "rados_connect" | "rados_getaddrs"
        );
        match self.0 {
            libc::EPERM | libc::EACCES if connecting => RbdErrorKind::Permission,
            _ if connecting => RbdErrorKind::Unreachable,
            libc::ENOENT if call == "rados_ioctx_create" => RbdErrorKind::NoPool,
            // Not expired yet: it passes by itself.
            libc::EPERM if call == "rbd_trash_remove_with_progress" => RbdErrorKind::Busy,
            libc::ENOENT => RbdErrorKind::NotFound,
            libc::EEXIST => RbdErrorKind::Exists,
            // EAGAIN: the lock changed hands while it was being broken.
            libc::EBUSY | libc::EAGAIN => RbdErrorKind::Busy,
            libc::ENOTEMPTY => RbdErrorKind::HasSnapshots,
            libc::EROFS => RbdErrorKind::ReadOnly,
            // EDOM, ERANGE: a number out of bounds (order, features, a shrink).
            libc::EINVAL | libc::EDOM | libc::ERANGE | libc::ENAMETOOLONG => RbdErrorKind::Invalid,
            libc::EOPNOTSUPP | libc::ENOSYS => RbdErrorKind::NotSupported,
            libc::EPERM | libc::EACCES => RbdErrorKind::Permission,
            libc::ENOSPC | libc::EDQUOT => RbdErrorKind::NoSpace,
            EBLOCKLISTED => RbdErrorKind::Blocklisted,
            libc::ETIMEDOUT => RbdErrorKind::TimedOut,
            libc::ENOTCONN | libc::EHOSTUNREACH | libc::ENETUNREACH => RbdErrorKind::Unreachable,
            _ => RbdErrorKind::Other,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == EBLOCKLISTED {
            // strerror's "Cannot send after transport endpoint shutdown" helps nobody.
            return f.write_str("this client has been blocklisted");
        }
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

/// A call that failed: which function, on what, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Name of the C function.
    pub(crate) call: &'static str,
    /// What it worked on, e.g. `volumes/volume-1@snap`, or more detail from Ceph.
    pub(crate) what: String,
    /// What it returned.
    pub(crate) errno: Errno,
}

impl Failure {
    /// `result` is what the C function returned: negative means failed.
    pub(crate) fn new(call: &'static str, what: impl Into<String>, result: i64) -> Failure {
        let errno = i32::try_from(result.unsigned_abs()).unwrap_or(libc::EIO);
        Failure { call, what: what.into(), errno: Errno(errno) }
    }

    /// What to decide by.
    pub(crate) fn kind(&self) -> RbdErrorKind {
        self.errno.kind(self.call)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.what, self.errno, self.call)
    }
}

/// `Ok(result)` unless negative.
pub(super) fn check(
    call: &'static str,
    what: impl FnOnce() -> String,
    result: impl Into<i64>,
) -> Result<i64, Failure> {
    let result = result.into();
    if result < 0 { Err(Failure::new(call, what(), result)) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_means_what_the_call_makes_of_it() {
        let cases = [
            (libc::ENOENT, "rbd_open", RbdErrorKind::NotFound),
            (libc::ENOENT, "rados_connect", RbdErrorKind::Unreachable),
            (libc::ENOENT, "rados_conf_read_file", RbdErrorKind::Unreachable),
            (libc::ENOENT, "rados_ioctx_create", RbdErrorKind::NoPool),
            (libc::ETIMEDOUT, "rados_connect", RbdErrorKind::Unreachable),
            (libc::ETIMEDOUT, "rbd_open", RbdErrorKind::TimedOut),
            (libc::EACCES, "rados_connect", RbdErrorKind::Permission),
            (libc::EPERM, "rbd_trash_remove_with_progress", RbdErrorKind::Busy),
            (libc::EPERM, "rbd_open", RbdErrorKind::Permission),
            (libc::EBUSY, "rbd_mirror_image_promote", RbdErrorKind::Busy),
            (libc::ENOTEMPTY, "rbd_remove_with_progress", RbdErrorKind::HasSnapshots),
            (libc::EROFS, "rbd_snap_create", RbdErrorKind::ReadOnly),
            (libc::EDQUOT, "rbd_write", RbdErrorKind::NoSpace),
            (libc::ESHUTDOWN, "rbd_open", RbdErrorKind::Blocklisted),
            (libc::ENOSYS, "rbd_create4", RbdErrorKind::NotSupported),
            (libc::EIO, "rbd_read", RbdErrorKind::Other),
        ];
        for (errno, call, kind) in cases {
            assert_eq!(Errno(errno).kind(call), kind, "errno {errno} of {call}");
        }
    }

    #[test]
    fn a_failure_says_what_failed_on_what() {
        let failure = Failure::new("rbd_open", "volumes/v1", -2);
        assert_eq!(failure.to_string(), "volumes/v1: No such file or directory (rbd_open)");
        let failure = Failure::new("rbd_write", "volumes/v1", -108);
        assert_eq!(failure.to_string(), "volumes/v1: this client has been blocklisted (rbd_write)");
    }

    #[test]
    fn negative_means_failed() {
        assert_eq!(check("rbd_read", String::new, 512i64), Ok(512));
        assert_eq!(check("rbd_read", || "v".to_owned(), -5i64), Err(Failure::new("rbd_read", "v", -5)));
    }
}
