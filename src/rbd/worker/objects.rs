//! Objects of a pool by the beginning of their names.

use crate::rbd::ffi::{Failure, IoCtx, Progress};
use crate::rbd::protocol::ObjectList;

/// Parts of a pool at most: more would be shorter than one answer of an OSD.
const MOST: u32 = 1 << 16;

/// Names of the objects that begin with a prefix, of one part of the pool.
pub(super) fn list(io: &IoCtx, asked: &ObjectList, progress: Progress<'_>) -> Result<Vec<String>, Failure> {
    let ObjectList { prefix, part, parts, .. } = asked;
    if *parts == 0 || *parts > MOST || part >= parts {
        let what = format!("part {part} of {parts} parts of a pool");
        return Err(Failure::new("rados_object_list", what, -i64::from(libc::EINVAL)));
    }
    let (mut names, mut seen) = (Vec::new(), 0);
    io.objects(*part as usize, *parts as usize, |found| {
        seen += found.len() as u64;
        let fitting = found.iter().filter(|name| name.starts_with(prefix.as_bytes()));
        // Names of ours are text; what is not is nobody's that could ask.
        names.extend(fitting.filter_map(|name| Some(std::str::from_utf8(name).ok()?.to_owned())));
        progress(seen, seen);
    })?;
    Ok(names)
}
