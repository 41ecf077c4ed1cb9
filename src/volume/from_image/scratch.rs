//! Files that live as long as an image is on its way: in `image_conversion_dir`, which may be small, and of which
//! a service that was killed must not leave more and more behind.

use std::path::{Path, PathBuf};

use tracing::warn;

/// A file that is removed when nobody needs it any more. One that a killed service has left is overwritten: it
/// has the name of its volume.
pub(super) struct Temporary(pub(super) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(path = %self.0.display(), %error, "cannot remove a temporary image");
        }
    }
}

/// A socket's path may have 107 bytes.
pub(super) fn socket_path(dir: &Path, purpose: &str, volume_id: &str) -> PathBuf {
    let name = format!("{purpose}-{volume_id}.sock");
    let near = dir.join(&name);
    if near.as_os_str().len() <= 107 { near } else { std::env::temp_dir().join(name) }
}
