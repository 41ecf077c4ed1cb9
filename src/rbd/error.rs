//! What Ceph answered, reduced to what the callers decide by.
//!
//! librbd reports negative errno values whose meaning depends on the call (EBUSY may be a watcher, a
//! mirrored parent or a demotion that has not propagated). The worker translates number and call into
//! a kind once, here; the number and Ceph's own text stay for the log.

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error};

/// The distinctions that operations act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RbdErrorKind {
    /// ENOENT: no such image, snapshot or object.
    NotFound,
    /// ENOENT for the pool itself. Apart from `NotFound`, because "the image is gone" counts as success
    /// of a repeated delete and "the pool is gone" (a typing error, the wrong cluster) must not.
    NoPool,
    /// EEXIST.
    Exists,
    /// EBUSY: watchers, children, or a state that may pass.
    Busy,
    /// ENOTEMPTY: the image still has snapshots.
    HasSnapshots,
    /// EROFS: the image is not primary, or its lock is held by somebody who does not give it up.
    ReadOnly,
    /// EINVAL: refused for what it is (not protected, parent not mirrored, …).
    Invalid,
    /// EOPNOTSUPP / ENOSYS: this librbd or OSD cannot.
    NotSupported,
    /// EPERM / EACCES: caps, or a wrong key.
    Permission,
    /// ENOSPC / EDQUOT.
    NoSpace,
    /// ESHUTDOWN / EBLOCKLISTED: this client has been fenced.
    Blocklisted,
    /// ETIMEDOUT or the deadline passed: whether it had an effect is unknown.
    TimedOut,
    /// The worker process died or was killed under the call: effect unknown.
    WorkerLost,
    /// No connection could be made: missing conf or keyring, no monitor.
    Unreachable,
    /// Anything else, with its errno.
    Other,
}

/// A failed call to Ceph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{op} on site {site}: {message} (errno {errno})")]
pub struct RbdError {
    /// What to decide by.
    pub kind: RbdErrorKind,
    /// Name of the command, e.g. `MirrorPromote`.
    pub op: String,
    /// Name of the site (`default` or a `backend_id`).
    pub site: String,
    /// Positive errno, 0 when Ceph gave none.
    pub errno: i32,
    /// What failed on what, for the log: pool/image@snap and strerror. Never a key.
    pub message: String,
}

impl RbdError {
    /// True when the effect of the call is unknown, so that it must be checked or repeated.
    pub fn effect_unknown(&self) -> bool {
        matches!(self.kind, RbdErrorKind::TimedOut | RbdErrorKind::WorkerLost)
    }

    /// True when the site has not answered, as far as anybody knows: by the deadline, or no connection could be made.
    pub fn is_silence(&self) -> bool {
        matches!(self.kind, RbdErrorKind::TimedOut | RbdErrorKind::Unreachable)
    }

    /// True for "no such thing".
    pub fn is_not_found(&self) -> bool {
        self.kind == RbdErrorKind::NotFound
    }
}

impl From<RbdError> for Error {
    fn from(e: RbdError) -> Error {
        let code = match e.kind {
            RbdErrorKind::TimedOut | RbdErrorKind::WorkerLost => Code::DeadlineExceeded,
            RbdErrorKind::NotFound
            | RbdErrorKind::NoPool
            | RbdErrorKind::Exists
            | RbdErrorKind::Busy
            | RbdErrorKind::HasSnapshots
            | RbdErrorKind::ReadOnly
            | RbdErrorKind::Invalid
            | RbdErrorKind::NotSupported
            | RbdErrorKind::Permission
            | RbdErrorKind::NoSpace
            | RbdErrorKind::Blocklisted
            | RbdErrorKind::Unreachable
            | RbdErrorKind::Other => Code::VolumeBackend,
        };
        let text = match e.kind {
            RbdErrorKind::NoSpace => {
                // The site that was asked need not be the one that is full: a copy has two.
                format!(
                    "Ceph: {}: the pool is full, or over its quota: make room there, or raise it",
                    e.message
                )
            }
            _ => format!("Ceph: {}", e.message),
        };
        Error::new(code, text).detail(format!("{} on {}", e.op, e.site)).caused_by(e)
    }
}
