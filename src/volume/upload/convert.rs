//! A volume in a format that qemu-img has to write: a copy of its content in a file, and the converted one.
//!
//! Both lie in `image_conversion_dir`, as large as what the volume holds (the copy has its holes), and for as long
//! as the upload takes. Their names say which operation and which attempt made them: a qemu-img that has survived
//! its service may still write into the old ones when the next attempt begins, and finds them unlinked.

use std::io::SeekFrom;
use std::mem;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::fs::{self, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::process::Command;
use tracing::warn;

use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::rbd::protocol::ImageExport;
use crate::volume::disk_format::qemu_name;
use crate::volume::image::Place;

/// How much of what qemu-img says is kept.
const LONGEST_TEXT: usize = 300;

/// The files of one attempt; removed with this value.
pub(super) struct Files {
    raw: PathBuf,
    converted: PathBuf,
}

/// Removes what earlier attempts on this host have left.
pub(super) async fn sweep(dir: &Path, operation: &Operation) {
    // Nobody has converted anything here.
    let Ok(mut entries) = fs::read_dir(dir).await else { return };
    let prefix = prefix(operation);
    while let Ok(Some(entry)) = entries.next_entry().await {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            remove(&entry.path()).await;
        }
    }
}

fn prefix(operation: &Operation) -> String {
    format!("scoria-upload-{}-", operation.id())
}

/// The operation for which a file of this name was made; `None` for any other file.
pub(in crate::volume) fn operation_of(name: &str) -> Option<i64> {
    name.strip_prefix("scoria-upload-")?.split_once('-')?.0.parse().ok()
}

impl Files {
    /// Names for the files.
    pub(super) async fn new(dir: &Path, operation: &Operation) -> Result<Files> {
        fs::create_dir_all(dir).await.map_err(|e| disk(dir, e))?;
        let path = |what: &str| dir.join(format!("{}{}.{what}", prefix(operation), operation.epoch()));
        Ok(Files { raw: path("raw"), converted: path("converted") })
    }

    /// The converted file.
    pub(super) fn converted(&self) -> PathBuf {
        self.converted.clone()
    }

    /// Copies the first `size` bytes of an image; what is zero becomes a hole.
    pub(super) async fn fill(&self, place: &Place, image: &str, size: u64) -> Result<()> {
        let failed = |e: std::io::Error| disk(&self.raw, e);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&self.raw).await.map_err(failed)?;
        file.set_len(size).await.map_err(failed)?;
        let (pool, image) = (place.pool.clone(), image.to_owned());
        let mut export = place.site.export(ImageExport { pool, image, snap: None, offset: 0, length: size });
        while let Some(part) = export.next().await? {
            file.seek(SeekFrom::Start(part.offset)).await.map_err(failed)?;
            file.write_all(&part.data).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)
    }

    /// Converts the copy, which is not needed any more then; the converted file's size. Whatever the volume holds
    /// is taken for a raw disk: its owner must not choose, by what he writes into it, what is read here.
    pub(super) async fn convert(&self, disk_format: &str, compress: bool) -> Result<u64> {
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", qemu_name(disk_format)]);
        if compress && disk_format == "qcow2" {
            command.arg("-c");
        }
        command.arg(&self.raw).arg(&self.converted).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let failure =
            || Error::new(Code::VolumeBackend, format!("The volume could not be converted to {disk_format}"));
        let output = command.output().await.map_err(|e| failure().detail("qemu-img").caused_by(e))?;
        if !output.status.success() {
            let said: String = String::from_utf8_lossy(&output.stderr).chars().take(LONGEST_TEXT).collect();
            return Err(failure().detail(format!("qemu-img: {}: {}", output.status, said.trim())));
        }
        remove(&self.raw).await;
        let converted = fs::metadata(&self.converted).await.map_err(|e| disk(&self.converted, e))?;
        Ok(converted.len())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Unlinking gigabytes takes a while. Without a runtime the service ends, and the next attempt removes them.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (raw, converted) = (mem::take(&mut self.raw), mem::take(&mut self.converted));
        runtime.spawn(async move {
            remove(&raw).await;
            remove(&converted).await;
        });
    }
}

async fn remove(path: &Path) {
    match fs::remove_file(path).await {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => warn!(path = %path.display(), %error, "a file of an upload is left"),
    }
}

fn disk(path: &Path, error: std::io::Error) -> Error {
    let text = match error.kind() {
        std::io::ErrorKind::StorageFull => "There is not enough space to convert the volume",
        _ => "The volume could not be copied for its conversion",
    };
    Error::new(Code::VolumeBackend, text).detail(path.display().to_string()).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Files {
        Files { raw: dir.join("raw"), converted: dir.join("converted") }
    }

    #[tokio::test]
    async fn every_format_that_the_api_takes_can_be_made() {
        for format in ["qcow2", "vmdk", "vdi", "vhd", "vhdx", "ploop", "iso"] {
            let dir = tempfile::tempdir().unwrap();
            let files = files(dir.path());
            // What looks like a disk in another format is a raw disk all the same.
            std::fs::write(&files.raw, [&b"QFI\xfb\0\0\0\x03"[..], &[7; 4 << 20]].concat()).unwrap();
            let size = files.convert(format, true).await.unwrap();
            assert_eq!(size, std::fs::metadata(&files.converted).unwrap().len(), "{format}");
            assert!(!files.raw.exists(), "{format}");
            let back = dir.path().join("back");
            let done = std::process::Command::new("qemu-img")
                .args(["convert", "-f", qemu_name(format), "-O", "raw"])
                .args([&files.converted, &back])
                .output()
                .unwrap();
            assert!(done.status.success(), "{format}: {done:?}");
            let back = std::fs::read(back).unwrap();
            assert_eq!(back[..8], b"QFI\xfb\0\0\0\x03"[..], "{format}");
            assert!(back[8..8 + (4 << 20)].iter().all(|b| *b == 7), "{format}");
        }
    }

    #[tokio::test]
    async fn what_qemu_img_refuses_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        std::fs::write(&files.raw, [0; 512]).unwrap();
        let failure = files.convert("ami", false).await.unwrap_err();
        assert_eq!(failure.user(), "The volume could not be converted to ami");
        assert!(failure.to_string().contains("Unknown file format"), "{failure}");
    }
}
