//! Everything about the mirroring of many images, with each of them opened once.

use super::commands::many;
use crate::rbd::error::RbdErrorKind;
use crate::rbd::ffi::{Failure, Image, IoCtx};
use crate::rbd::mirror_survey::{Looked, MirrorSurveyed};
use crate::rbd::types::{MirrorReport, MirrorState};

/// Looks at `images`. One that cannot be read does not hide the others; a site that does not answer is an error.
pub(super) fn mirroring(io: &IoCtx, images: &[String]) -> Result<Vec<Looked>, Failure> {
    let looked = many(images, |name| match look(io, name) {
        Ok(seen) => Ok(Some(Looked::Seen(Box::new(seen)))),
        Err(failure) => match failure.kind() {
            RbdErrorKind::NotFound => Ok(None),
            RbdErrorKind::TimedOut
            | RbdErrorKind::Unreachable
            | RbdErrorKind::NoPool
            | RbdErrorKind::Blocklisted
            | RbdErrorKind::WorkerLost => Err(failure),
            RbdErrorKind::Exists
            | RbdErrorKind::Busy
            | RbdErrorKind::HasSnapshots
            | RbdErrorKind::ReadOnly
            | RbdErrorKind::Invalid
            | RbdErrorKind::NotSupported
            | RbdErrorKind::Permission
            | RbdErrorKind::NoSpace
            | RbdErrorKind::Other => Ok(Some(Looked::Unreadable { reason: failure.to_string() })),
        },
    })?;
    Ok(looked.into_iter().map(|l| l.unwrap_or(Looked::Absent)).collect())
}

fn look(io: &IoCtx, name: &str) -> Result<MirrorSurveyed, Failure> {
    let image = Image::open_read_only(io, name, None)?;
    let info = image.mirror_info()?;
    let report = match info.state {
        MirrorState::Enabled => image.mirror_status()?,
        MirrorState::Disabled | MirrorState::Disabling => MirrorReport::without_reports(info),
    };
    Ok(MirrorSurveyed {
        id: image.id()?,
        features: image.features()?,
        parent: image.parent()?,
        snaps: image.snapshots()?,
        watchers: image.watchers()?,
        report,
    })
}
