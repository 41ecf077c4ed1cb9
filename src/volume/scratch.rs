//! Files in `image_conversion_dir` that a killed service has left.
//!
//! Whoever takes up an operation again writes over the files of its former attempt, or removes them. But that may be
//! a service on another host, or nobody, because the volume was deleted meanwhile; and such files are as large as
//! images. So a service that starts removes those on which no open operation can be working.

use std::path::{Path, PathBuf};

use tokio::fs;
use tracing::{info, warn};

use super::{from_image, upload};
use crate::error::Result;
use crate::journal::Journal;

/// Removes them; answers how many. Files that no volume service of ours makes are left alone.
///
/// # Errors
/// `Database`.
pub async fn sweep(journal: &Journal, dir: &Path) -> Result<usize> {
    // Nothing was ever converted here.
    let Ok(mut entries) = fs::read_dir(dir).await else { return Ok(0) };
    // Listed before the journal is asked: what begins later is not among them.
    let mut of_volumes: Vec<(PathBuf, String)> = Vec::new();
    let mut of_operations: Vec<(PathBuf, i64)> = Vec::new();
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(id) = from_image::volume_of(&name) {
            of_volumes.push((entry.path(), id.to_owned()));
        } else if let Some(id) = upload::operation_of(&name) {
            of_operations.push((entry.path(), id));
        }
    }
    let volumes: Vec<String> = of_volumes.iter().map(|(_, id)| id.clone()).collect();
    let operations: Vec<i64> = of_operations.iter().map(|(_, id)| *id).collect();
    let (busy, open) = journal
        .db()
        .read("operations with files", async |conn| {
            Ok((Journal::busy(conn, &volumes).await?, Journal::still_open(conn, &operations).await?))
        })
        .await?;
    let left = of_volumes.into_iter().filter(|(_, id)| !busy.contains(id)).map(|(path, _)| path);
    let more = of_operations.into_iter().filter(|(_, id)| !open.contains(id)).map(|(path, _)| path);
    let mut removed = 0;
    for path in left.chain(more) {
        match fs::remove_file(&path).await {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => warn!(path = %path.display(), %error, "cannot remove a file that was left"),
        }
    }
    if removed > 0 {
        info!(dir = %dir.display(), removed, "files of operations that have ended are removed");
    }
    Ok(removed)
}
