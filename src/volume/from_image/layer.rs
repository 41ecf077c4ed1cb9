//! Content on its way into an encrypted volume.
//!
//! What a volume holds must be what QEMU will read with the key, for every cipher that QEMU knows, so it is QEMU
//! that encrypts: content is written through qemu-nbd into a scratch file that begins with the volume's LUKS
//! header, and what it has become is read from there. The file looks as large as the volume, but what was read is
//! cut out of it again: it never takes more than [`ROOM`] bytes and the header, and never holds anything that is
//! not encrypted. The passphrase goes through a pipe.

use std::fs::File;
use std::io::Result;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use tracing::debug;

use super::nbd::Disk;
use super::scratch::{Temporary, socket_path};
use crate::volume::encryption::Lock;

/// What LUKS encrypts at a time.
pub(super) const SECTOR: usize = 512;
/// Bytes that may lie in the scratch file.
const ROOM: u64 = 64 << 20;
/// The blocks of file systems are no larger.
const BLOCK: u64 = 64 << 10;

/// A LUKS volume whose bytes are made one after the other.
pub(super) struct Layer {
    disk: Disk,
    file: Arc<File>,
    header: u64,
    /// From here on the file has its blocks.
    cut: u64,
    _socket: Temporary,
    _path: Temporary,
}

impl Layer {
    /// For so many bytes of content.
    pub(super) async fn open(dir: &Path, volume_id: &str, lock: &Lock, bytes: u64) -> Result<Layer> {
        let path = Temporary(dir.join(format!("luks_{volume_id}")));
        let (name, header) = (path.0.clone(), lock.header.clone());
        let size = header.len() as u64 + bytes;
        let file = tokio::task::spawn_blocking(move || scratch(&name, &header, size)).await??;
        let socket = Temporary(socket_path(dir, "luks", volume_id));
        let disk = Disk::open_luks(&path.0, &lock.passphrase, &socket.0).await?;
        let header = lock.header.len() as u64;
        Ok(Layer {
            disk,
            file: Arc::new(file),
            header,
            cut: header.next_multiple_of(BLOCK),
            _socket: socket,
            _path: path,
        })
    }

    /// Encrypts whole sectors that belong at `offset` of the content, behind those of the calls before.
    pub(super) async fn encrypt(&mut self, offset: u64, content: &[u8]) -> Result<Bytes> {
        self.disk.write(offset, content).await?;
        let (file, length) = (self.file.clone(), content.len());
        let at = self.header + offset;
        let end = (at + length as u64) / BLOCK * BLOCK;
        let cut = (end >= self.cut + ROOM).then_some((self.cut, end));
        let read = move || -> Result<Bytes> {
            let mut made = vec![0; length];
            file.read_exact_at(&mut made, at)?;
            if let Some((from, to)) = cut {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                if let Err(error) = rustix::fs::fallocate(&*file, how, from, to - from) {
                    // Not every file system can; the file then grows until the content is complete.
                    debug!(%error, "no hole can be made in a scratch file");
                }
            }
            Ok(made.into())
        };
        let made = tokio::task::spawn_blocking(read).await??;
        if let Some((_, to)) = cut {
            self.cut = to;
        }
        Ok(made)
    }

    /// Ends qemu-nbd in order.
    pub(super) async fn close(self) {
        self.disk.close().await;
    }
}

/// A file that begins with `header`, and is a hole behind it.
fn scratch(path: &Path, header: &[u8], size: u64) -> Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all_at(header, 0)?;
    file.set_len(size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::volume::encryption::tests::lock;

    /// What the key opens a volume to, at `offset`.
    fn opened(image: &Path, offset: u64, length: usize) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let (key, out) = (dir.path().join("key"), dir.path().join("out"));
        std::fs::write(&key, "00ff").unwrap();
        let done = Command::new("qemu-img")
            .args([
                "dd",
                "--object",
                &format!("secret,id=k,file={}", key.display()),
                "--image-opts",
                "-O",
                "raw",
            ])
            .arg(format!("if=driver=luks,key-secret=k,file.filename={}", image.display()))
            .args([&format!("of={}", out.display()), "bs=512", &format!("skip={}", offset / 512)])
            .args([&format!("count={}", offset / 512 + length as u64 / 512)])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        let mut found = std::fs::read(out).unwrap();
        found.truncate(length);
        found
    }

    #[tokio::test]
    async fn what_was_written_is_what_the_key_opens_and_takes_little_room_on_its_way() {
        let dir = tempfile::tempdir().unwrap();
        // Not the usual cipher: nothing here knows which it is.
        let lock = lock(dir.path(), "aes-cbc-plain64").await;
        let total = ROOM + (16 << 20);
        let mut layer = Layer::open(dir.path(), "v", &lock, total).await.unwrap();
        let file = layer.file.clone();
        let image = dir.path().join("image");
        let volume = File::create(&image).unwrap();
        volume.write_all_at(&lock.header, 0).unwrap();
        let mut most = 0;
        for at in (0..total).step_by(2 << 20) {
            let plain = vec![(at >> 21) as u8; 2 << 20];
            let made = layer.encrypt(at, &plain).await.unwrap();
            assert_ne!(made, plain);
            volume.write_all_at(&made, lock.header.len() as u64 + at).unwrap();
            most = most.max(file.metadata().unwrap().blocks() * 512);
        }
        layer.close().await;
        assert!(most < ROOM + (8 << 20), "{most} bytes of scratch");
        for at in [0, 40 << 20, total - 1024] {
            assert_eq!(opened(&image, at, 1024), vec![(at >> 21) as u8; 1024], "at {at}");
        }
        std::fs::remove_file(image).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing stays behind");
    }

    #[tokio::test]
    async fn a_header_that_the_key_does_not_open_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = lock(dir.path(), "aes-xts-plain64").await;
        lock.passphrase = "another".to_owned().into();
        // qemu-nbd may listen before it finds out.
        assert!(Layer::open(dir.path(), "v", &lock, 1 << 20).await.is_err());
    }
}
