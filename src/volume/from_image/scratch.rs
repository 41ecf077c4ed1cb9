//! Files that live as long as an image is on its way: in `image_conversion_dir`, which may be small, and of which
//! a service that was killed must not leave more and more behind.

use std::path::{Path, PathBuf};

use tracing::warn;

/// A file that is removed when nobody needs it any more. One that a killed service has left is overwritten: it
/// has the name of its volume.
pub(in crate::volume) struct Temporary(pub(in crate::volume) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(path = %self.0.display(), %error, "cannot remove a temporary image");
        }
    }
}

/// The volume for which a file of this name was made; `None` for a file that none of this made.
pub(in crate::volume) fn volume_of(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".sock").unwrap_or(name);
    let known = ["image_fetch_", "luks_", "luks-", "nbd-"].iter().any(|prefix| stem.starts_with(prefix));
    let id = stem.get(stem.len().checked_sub(36)?..)?;
    // What begins like `luks_`, and is the nameless file of a header, has another id there, which no volume has.
    (known && id.parse::<uuid::Uuid>().is_ok()).then_some(id)
}

/// A socket's path may have 107 bytes.
pub(super) fn socket_path(dir: &Path, purpose: &str, volume_id: &str) -> PathBuf {
    let name = format!("{purpose}-{volume_id}.sock");
    let near = dir.join(&name);
    if near.as_os_str().len() <= 107 { near } else { std::env::temp_dir().join(name) }
}
