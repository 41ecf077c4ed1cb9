//! Where the content of an image goes: into a volume, as it is, or through the layer that encrypts it.
//!
//! Zeros that Ceph need not keep are zeros in a plain volume only. Where an encrypted volume was never written, its
//! key opens noise; so the zeros of an image are written there like anything else, and only what lies behind the
//! image stays as in a new volume.

use std::path::Path;

use bytes::{Bytes, BytesMut};

use super::inspect;
use super::layer::{Layer, SECTOR};
use super::write::Broken;
use crate::error::{Code, Error, Result};
use crate::model::GIB;
use crate::rbd::protocol::ImageImport;
use crate::rbd::stream::{Import, PART};
use crate::volume::crash;
use crate::volume::encryption::{KeyChange, Lock, room_of};
use crate::volume::image::{Attempt, Place, Shape};

/// What is written.
pub(super) struct Target<'a> {
    /// Where.
    pub(super) place: &'a Place,
    /// The image in Ceph.
    pub(super) name: &'a str,
    /// Size of the volume.
    pub(super) gib: i32,
    /// It is not there yet; otherwise it has content, which goes.
    pub(super) make: Option<Make>,
    /// How its content lies in it.
    pub(super) coat: Coat,
}

/// How the image in Ceph is to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Make {
    pub(super) shape: Shape,
    /// Not larger than its content, rounded up to GiB.
    pub(super) small: bool,
}

/// What is around the content of a volume.
pub(super) enum Coat {
    /// Nothing.
    Bare,
    /// The volume is encrypted, and so is the image, for the same key: its bytes are taken as they are.
    Own,
    /// Both are encrypted, each for its own key: the bytes behind the header are taken as they are.
    Other(KeyChange),
    /// The volume is encrypted, and the image is not.
    New(Lock),
}

impl Coat {
    /// Bytes in front of the content, given the first bytes of the image.
    ///
    /// # Errors
    /// `ImageUnacceptable` for an image that is said to be encrypted and is not.
    pub(super) fn room(&self, head: &[u8], image_id: &str) -> Result<u64> {
        match self {
            Coat::Bare => Ok(0),
            Coat::New(lock) => Ok(lock.header.len() as u64),
            Coat::Own | Coat::Other(_) => room_of(head).ok_or_else(|| {
                let reason = "It has the key of an encrypted volume, but does not begin with a LUKS header.";
                inspect::unacceptable(image_id, reason)
            }),
        }
    }

    /// How much of so many bytes of an image is content.
    pub(super) fn content(&self, bytes: u64, room: u64) -> u64 {
        match self {
            Coat::Own | Coat::Other(_) => bytes.saturating_sub(room),
            Coat::Bare | Coat::New(_) => bytes,
        }
    }
}

/// A volume that is being written, from its begin on.
pub(super) struct Sink {
    import: Import,
    layer: Option<Layer>,
    /// Bytes in front of the content that is written, if it is encrypted.
    header: u64,
    /// What was encrypted of the content.
    at: u64,
    /// Of the content, what comes next.
    pending: BytesMut,
}

impl Sink {
    /// Opens the target for an image of `bytes`, and makes it before if need be; `made` says whether an attempt has
    /// made it already. `room` is what [`Coat::room`] said. Answers the GiB of the content too.
    pub(super) async fn open(
        dir: &Path,
        volume_id: &str,
        target: &Target<'_>,
        (bytes, room): (u64, u64),
        made: &mut bool,
    ) -> Result<(i32, Sink), Broken> {
        let content = target.coat.content(bytes, room);
        let gib = i32::try_from(content.div_ceil(GIB).max(1)).unwrap_or(target.gib);
        let full = u64::try_from(target.gib).unwrap_or(0) * GIB;
        // Before there is an image: without qemu-nbd there is none.
        let layer = match &target.coat {
            Coat::New(lock) => Some(Layer::open(dir, volume_id, lock, full).await.map_err(sealing)?),
            Coat::Bare | Coat::Own | Coat::Other(_) => None,
        };
        let blank = target.make.is_some() && !*made;
        if let Some(make) = target.make.filter(|_| blank) {
            let size = if make.small { u64::try_from(gib).unwrap_or(0) * GIB } else { full };
            let made_now = target.place.create(target.name, size + room, make.shape, Attempt::First).await;
            // Somebody else's image is not one that could not be written.
            made_now.map_err(Error::from)?;
            *made = true;
            crash::point("create_volume:downloading");
        } else if room > 0 {
            // One that stock has extended has lost the room of its header.
            target.place.grow(target.name, full + room).await?;
        }
        let mut import = target.place.site.import(ImageImport {
            pool: target.place.pool.clone(),
            image: target.name.to_owned(),
            blank,
        });
        if let Coat::New(lock) = &target.coat {
            import.write(0, lock.header.clone()).await?;
        }
        let sink = Sink { import, layer, header: room, at: 0, pending: BytesMut::new() };
        Ok((gib, sink))
    }

    /// Writes what lies at `offset` of the image, behind what was written before.
    pub(super) async fn write(&mut self, offset: u64, data: Bytes) -> Result<(), Broken> {
        if self.layer.is_none() {
            return Ok(self.import.write(offset, data).await?);
        }
        self.zeros_until(offset).await?;
        self.pending.extend_from_slice(&data);
        self.flush(PART).await
    }

    /// Waits until all `bytes` of the image are on disk; answers the bytes written.
    pub(super) async fn finish(mut self, bytes: u64) -> Result<u64, Broken> {
        if let Err(failure) = self.fill_up(bytes).await {
            // Whoever removes the image, or begins anew, must not find it open.
            self.abandon().await;
            return Err(failure);
        }
        if let Some(layer) = self.layer {
            layer.close().await;
        }
        Ok(self.import.finish().await?)
    }

    /// Encrypts what is left of the content, and the zeros up to its end.
    async fn fill_up(&mut self, bytes: u64) -> Result<(), Broken> {
        if self.layer.is_none() {
            return Ok(());
        }
        self.zeros_until(bytes).await?;
        let whole = self.pending.len().next_multiple_of(SECTOR);
        self.pending.resize(whole, 0);
        self.flush(SECTOR).await
    }

    /// Gives up, and waits until the volume is closed.
    pub(super) async fn abandon(self) {
        if let Some(layer) = self.layer {
            layer.close().await;
        }
        self.import.abandon().await;
    }

    async fn zeros_until(&mut self, offset: u64) -> Result<(), Broken> {
        loop {
            let missing = offset.saturating_sub(self.at + self.pending.len() as u64);
            if missing == 0 {
                return Ok(());
            }
            let more = missing.min(PART as u64) as usize;
            self.pending.resize(self.pending.len() + more, 0);
            self.flush(PART).await?;
        }
    }

    /// Encrypts and writes what is there, in parts, as long as it is at least `least`.
    async fn flush(&mut self, least: usize) -> Result<(), Broken> {
        while let Some(layer) = &mut self.layer
            && self.pending.len() >= least
        {
            let whole = self.pending.len().min(PART) / SECTOR * SECTOR;
            let part = self.pending.split_to(whole);
            let made = layer.encrypt(self.at, &part).await.map_err(sealing)?;
            self.import.write(self.header + self.at, made).await?;
            self.at += whole as u64;
        }
        Ok(())
    }
}

fn sealing(error: std::io::Error) -> Error {
    Error::new(Code::ImageCopy, "Failed to copy image to volume: it cannot be encrypted").caused_by(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rbd::sim::{Sim, SimConfig};
    use crate::volume::encryption::tests::lock;

    #[tokio::test]
    async fn a_volume_that_cannot_be_completed_is_let_go_of() {
        let dir = tempfile::tempdir().unwrap();
        let sim = Sim::new(SimConfig::default());
        let place = Place { site: sim.site("a"), pool: "volumes".to_owned() };
        let lock = lock(dir.path(), "aes-xts-plain64").await;
        let room = lock.header.len() as u64;
        let make = Some(Make { shape: Shape { order: 22, features: 61 }, small: false });
        let target = Target { place: &place, name: "v", gib: 1, make, coat: Coat::New(lock) };
        let opened = Sink::open(dir.path(), "v", &target, (SECTOR as u64, room), &mut false).await;
        let (_, mut sink) = opened.ok().unwrap();
        // Behind its end nothing can be encrypted.
        sink.at = GIB;
        sink.pending = BytesMut::zeroed(SECTOR);
        assert!(sink.finish(GIB + SECTOR as u64).await.is_err());
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert_eq!(tasks, 0, "nobody has it open");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing stays behind");
    }
}
