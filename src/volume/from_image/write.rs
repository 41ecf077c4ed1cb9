//! The bytes of an image on their way from Glance into a volume.
//!
//! They pass through this process in parts, at the pace of the slower end. A worker that dies in the midst of it
//! costs another download, twice at most: the same bytes go to the same places.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tracing::{info, warn};

use super::convert;
use super::gunzip::{self, Gunzip, Next};
use super::inspect::{self, HEAD};
use super::sink::{Coat, Sink, Target};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::{Code, Error, Result};
use crate::model::GIB;
use crate::openstack::glance::{Download, Image, Verifier};
use crate::rbd::stream::PART;
use crate::rbd::{RbdError, RbdErrorKind};
use crate::volume::encryption::KeyChange;

/// How often an image is downloaded when workers die under it.
const TRIES: u32 = 3;

/// Why the bytes of an image did not get into a volume.
pub(super) enum Broken {
    /// Ceph did not take them.
    Ceph(RbdError),
    /// Anything else.
    Other(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken::Other(error)
    }
}

impl From<RbdError> for Broken {
    fn from(error: RbdError) -> Broken {
        Broken::Ceph(error)
    }
}

/// Downloads an image into a volume; answers its GiB, rounded up.
///
/// # Errors
/// `ImageConversionNotAllowed`, `ImageUnacceptable`, `ImageDoesNotFit`, `ImageTooBig`, `Invalid`: the image is none
/// that can be used. `ImageDownload`, `GlanceConnection`, …: it did not come. `ImageCopy`: it could not be written.
pub(super) async fn download(
    backend: &Backend,
    context: &RequestContext,
    image: &Image,
    volume_id: &str,
    target: &Target<'_>,
    verifier: Option<&Verifier>,
) -> Result<i32> {
    let claimed = image.disk_format.as_deref().unwrap_or_default();
    if backend.globals.image.conversion_disabled && claimed != "raw" {
        return Err(not_allowed(&image.id, claimed));
    }
    if is_compressed(image) && !backend.globals.image.compression_allowed {
        let reason = "Image compression disallowed, but container_format is compressed.";
        return Err(inspect::unacceptable(&image.id, reason));
    }
    let began = std::time::Instant::now();
    let mut made = false;
    let mut tries = 0;
    let (gib, written) = loop {
        tries += 1;
        match once(backend, context, image, volume_id, target, verifier, &mut made).boxed().await {
            Ok(done) => break done,
            Err(Broken::Ceph(e)) if e.kind == RbdErrorKind::WorkerLost && tries < TRIES => {
                warn!(volume.id = volume_id, image.id = image.id, error = %e, "the download begins anew");
            }
            Err(Broken::Ceph(e)) => {
                let text = format!("Failed to copy image to volume: {}", e.message);
                return Err(Error::new(Code::ImageCopy, text).caused_by(e));
            }
            Err(Broken::Other(error)) => return Err(error),
        }
    };
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    info!(
        volume.id = volume_id,
        image.id = image.id,
        written_bytes = written,
        duration_ms,
        "image downloaded"
    );
    Ok(gib)
}

/// True for an image that Glance keeps gzipped.
pub(super) fn is_compressed(image: &Image) -> bool {
    image.container_format.as_deref() == Some("compressed")
}

fn not_allowed(image_id: &str, disk_format: &str) -> Error {
    let reason = format!(
        "Image conversion is disabled. The volume type you have requested requires that the image it is being \
         created from be in 'raw' format, but the image you are using has the disk_format property \
         '{disk_format}'. You must use an image with the disk_format property 'raw' to create a volume of this \
         type."
    );
    Error::new(
        Code::ImageConversionNotAllowed,
        format!("Image Conversion disallowed for image {image_id}: {reason}"),
    )
}

async fn once(
    backend: &Backend,
    context: &RequestContext,
    image: &Image,
    volume_id: &str,
    target: &Target<'_>,
    verifier: Option<&Verifier>,
    made: &mut bool,
) -> Result<(i32, u64), Broken> {
    let mut download = backend.globals.openstack.glance.download(context, &image.id).boxed().await?;
    if let Some(verifier) = verifier {
        download.verify(verifier);
    }
    let mut source = Source { download: &mut download, buffer: BytesMut::new(), gunzip: None };
    source.fill(HEAD).await?;
    if is_compressed(image) {
        source.unzip(&image.id)?;
        source.fill(HEAD).await?;
    }
    let found = inspect::format_of(&source.buffer)?;
    let claimed = image.disk_format.as_deref().unwrap_or_default();
    inspect::require_format(claimed, found, &image.id)?;
    let room = target.coat.room(&source.buffer, &image.id)?;
    if found != "raw" {
        return convert::convert(backend, image, found, volume_id, source, (target, room, made))
            .boxed()
            .await;
    }
    // What comes out of a gzipped one is only known at its end: as much as the volume holds, at most.
    let full = u64::try_from(target.gib).unwrap_or(0) * GIB;
    let bytes = if is_compressed(image) { full } else { image.size.unwrap_or(0) };
    inspect::require_fit(target.coat.content(bytes, room), target.gib, &image.id)?;
    let dir = &backend.globals.image.conversion_dir;
    if let Coat::Other(change) = &target.coat {
        source.change_key(change, room, dir, (volume_id, &image.id)).boxed().await?;
    }
    let (gib, mut sink) = Sink::open(dir, volume_id, target, (bytes, room), made).await?;
    match copy(&mut source, &mut sink, (target, room), &image.id).await {
        Ok(reached) => Ok((gib, sink.finish(reached).await?)),
        Err(failure) => {
            sink.abandon().await;
            Err(failure)
        }
    }
}

/// Answers the bytes that came.
async fn copy(
    source: &mut Source<'_>,
    sink: &mut Sink,
    (target, room): (&Target<'_>, u64),
    image_id: &str,
) -> Result<u64, Broken> {
    let mut at = 0u64;
    loop {
        source.fill(PART).await?;
        if source.buffer.is_empty() {
            return Ok(at);
        }
        let part = source.take(PART);
        let next = at + part.len() as u64;
        inspect::require_fit(target.coat.content(next, room), target.gib, image_id)?;
        sink.write(at, part).await?;
        at = next;
    }
}

/// A download, in pieces of any size.
pub(super) struct Source<'a> {
    download: &'a mut Download,
    buffer: BytesMut,
    gunzip: Option<Gunzip>,
}

impl Source<'_> {
    /// What has come, and all that comes, is gzipped.
    fn unzip(&mut self, image_id: &str) -> Result<()> {
        if !gunzip::is_gzip(&self.buffer) {
            let reason = "Unsupported compressed image format found. Only gzip is supported currently";
            return Err(inspect::unacceptable(image_id, reason));
        }
        let mut gunzip = Gunzip::new();
        gunzip.feed(Some(self.buffer.split().freeze()));
        self.gunzip = Some(gunzip);
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(gunzip) = &mut self.gunzip else { return self.download.next().boxed().await };
        loop {
            let next = gunzip.next().map_err(|e| {
                let text = "Failed to copy image to volume: it cannot be decompressed";
                Error::new(Code::ImageCopy, text).caused_by(e)
            })?;
            match next {
                Next::Bytes(bytes) => return Ok(Some(bytes)),
                Next::Waits => gunzip.feed(self.download.next().boxed().await?),
                Next::End => return Ok(None),
            }
        }
    }

    /// Reads until `length` bytes are there, or all.
    async fn fill(&mut self, length: usize) -> Result<()> {
        while self.buffer.len() < length {
            match self.next().await? {
                Some(bytes) => {
                    // At once what a part needs: growing would copy it again and again.
                    self.buffer.reserve(bytes.len().max(length.saturating_sub(self.buffer.len())));
                    self.buffer.extend_from_slice(&bytes);
                }
                None => break,
            }
        }
        Ok(())
    }

    /// Puts a header in front that the volume's key opens, in the place of the image's, which has so many bytes.
    async fn change_key(
        &mut self,
        change: &KeyChange,
        room: u64,
        dir: &Path,
        (volume_id, image_id): (&str, &str),
    ) -> Result<()> {
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        self.fill(room).await?;
        let header = self.take(room);
        let changed = change.apply(dir, volume_id, &header).await.map_err(|why| {
            inspect::unacceptable(image_id, "Its key cannot be exchanged for the volume's.").detail(why)
        })?;
        let rest = self.buffer.split();
        self.buffer = BytesMut::from(changed);
        self.buffer.unsplit(rest);
        Ok(())
    }

    fn take(&mut self, length: usize) -> Bytes {
        self.buffer.split_to(length.min(self.buffer.len())).freeze()
    }

    /// The next piece, whatever its size; `None` at the end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>> {
        if !self.buffer.is_empty() {
            return Ok(Some(self.buffer.split().freeze()));
        }
        self.next().await
    }
}
