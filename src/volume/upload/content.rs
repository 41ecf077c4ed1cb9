//! The bytes of an upload, each time from the first one on.
//!
//! Glance takes a stream, and wants every byte of it, also the zeros that Ceph does not keep: those are made here
//! and not read. A piece is at most a part of an export; few of them are in memory at a time.

use std::io::Write;
use std::mem;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::{Buf, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::Stream;
use futures::stream::{StreamExt, try_unfold};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use crate::error::{Code, Error, Result};
use crate::rbd::protocol::ImageExport;
use crate::rbd::stream::{Export, Part};
use crate::volume::crash;
use crate::volume::image::Place;

/// Bytes of zeros, and of a file, that make one piece.
const PIECE: usize = 1 << 20;

/// An image that is being read.
struct Reading {
    place: Place,
    image: String,
    /// Of the image, in bytes.
    size: u64,
    /// What was handed out.
    at: u64,
    export: Option<Export>,
    /// What comes next that is not zero; `None` with `ended`: nothing does.
    part: Option<Part>,
    ended: bool,
    zeros: Bytes,
}

/// The first `size` bytes of an RBD image.
pub(super) fn of_image(
    place: &Place,
    image: &str,
    size: u64,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static + use<> {
    let reading = Reading {
        place: place.clone(),
        image: image.to_owned(),
        size,
        at: 0,
        export: None,
        part: None,
        ended: false,
        zeros: Bytes::from(vec![0; PIECE]),
    };
    try_unfold(reading, |mut reading| async move { Ok(reading.next().await?.map(|bytes| (bytes, reading))) })
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.at < self.size {
            if self.part.is_none() && !self.ended {
                self.part = self.export().next().await?;
                self.ended = self.part.is_none();
            }
            let start = self.part.as_ref().map_or(self.size, |part| part.offset.min(self.size));
            let bytes = if start > self.at {
                let length = usize::try_from(start - self.at).unwrap_or(PIECE).min(PIECE);
                self.zeros.slice(..length)
            } else {
                self.part.take().map(|part| self.rest_of(part)).unwrap_or_default()
            };
            if !bytes.is_empty() {
                crash::point("copy_volume_to_image:sending");
                self.at += bytes.len() as u64;
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    fn export(&mut self) -> &mut Export {
        let Reading { place, image, size, .. } = self;
        self.export.get_or_insert_with(|| {
            let (pool, image) = (place.pool.clone(), image.clone());
            place.site.export(ImageExport { pool, image, snap: None, offset: 0, length: *size })
        })
    }

    /// What of a part has not been handed out, and is inside.
    fn rest_of(&self, part: Part) -> Bytes {
        let mut data = part.data;
        let known = usize::try_from(self.at - part.offset).unwrap_or(usize::MAX);
        data.advance(known.min(data.len()));
        data.truncate(usize::try_from(self.size - self.at).unwrap_or(usize::MAX));
        data
    }
}

/// A file.
pub(super) fn of_file(path: PathBuf) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    try_unfold(None::<File>, move |file| {
        let path = path.clone();
        async move {
            let failed = |e: std::io::Error| {
                Error::new(Code::VolumeBackend, "The converted volume could not be read")
                    .detail(path.display().to_string())
                    .caused_by(e)
            };
            let mut file = match file {
                Some(file) => file,
                None => File::open(&path).await.map_err(failed)?,
            };
            let mut piece = BytesMut::with_capacity(PIECE);
            let read = file.read_buf(&mut piece).await.map_err(failed)?;
            Ok((read > 0).then(|| (piece.freeze(), Some(file))))
        }
    })
}

type Pinned = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// The same bytes, compressed as gzip does it.
pub(super) fn gzipped(
    bytes: impl Stream<Item = Result<Bytes>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    let begin: (Pinned, _) = (Box::pin(bytes), Some(GzEncoder::new(Vec::new(), Compression::default())));
    try_unfold(begin, |(mut bytes, mut encoder)| async move {
        while let Some(open) = encoder.take() {
            let next = bytes.next().await.transpose()?;
            // Milliseconds of work for a piece.
            let (out, rest) = tokio::task::spawn_blocking(move || squeeze(open, next))
                .await
                .map_err(|e| Error::internal("compression stopped").caused_by(e))?
                .map_err(|e| Error::internal("compression failed").caused_by(e))?;
            encoder = rest;
            if !out.is_empty() {
                return Ok(Some((out, (bytes, encoder))));
            }
        }
        Ok(None)
    })
}

type Encoder = GzEncoder<Vec<u8>>;

/// What comes out when this goes in; without an encoder at the end.
fn squeeze(mut encoder: Encoder, next: Option<Bytes>) -> std::io::Result<(Bytes, Option<Encoder>)> {
    let Some(data) = next else { return Ok((encoder.finish()?.into(), None)) };
    encoder.write_all(&data)?;
    let out = mem::take(encoder.get_mut());
    Ok((out.into(), Some(encoder)))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use futures::TryStreamExt;

    use super::*;
    use crate::rbd::protocol::ImageWrite;
    use crate::rbd::sim::{Sim, SimConfig};
    use crate::volume::image::{Attempt, Shape};

    const MIB: usize = 1 << 20;

    async fn all(stream: impl Stream<Item = Result<Bytes>>) -> Vec<u8> {
        let pieces: Vec<Bytes> = stream.try_collect().await.unwrap();
        assert!(pieces.iter().all(|piece| !piece.is_empty()));
        pieces.concat()
    }

    fn pieces(lengths: &[usize]) -> Vec<Result<Bytes>> {
        let piece = |(n, length): (usize, &usize)| Ok(Bytes::from(vec![n as u8 + 1; *length]));
        lengths.iter().enumerate().map(piece).collect()
    }

    #[tokio::test]
    async fn gzip_gives_back_what_went_in() {
        for lengths in [&[][..], &[0], &[1, 0, 3 << 20, 5], &[PIECE; 4]] {
            let input =
                all(futures::stream::iter(pieces(lengths)).try_filter(|b| std::future::ready(!b.is_empty())));
            let zipped = all(gzipped(futures::stream::iter(pieces(lengths)))).await;
            let mut output = Vec::new();
            flate2::read::GzDecoder::new(&zipped[..]).read_to_end(&mut output).unwrap();
            assert_eq!(output, input.await, "{lengths:?}");
        }
    }

    #[tokio::test]
    async fn what_fails_inside_fails_the_whole() {
        let broken = || {
            let mut all = pieces(&[10]);
            all.push(Err(Error::new(Code::VolumeBackend, "no")));
            futures::stream::iter(all)
        };
        let error = gzipped(broken()).try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(error.code(), Code::VolumeBackend);
        let error = of_file("/nonexistent/disk".into()).try_collect::<Vec<_>>().await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/disk"), "{error}");
    }

    #[tokio::test]
    async fn a_file_is_read_to_its_end_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let content: Vec<u8> = (0..3 * PIECE + 17).map(|n| (n / 4096) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        for _ in 0..2 {
            assert_eq!(all(of_file(path.clone())).await, content);
        }
    }

    #[tokio::test]
    async fn every_byte_of_an_image_comes_in_order_each_time() {
        let sim = Sim::new(SimConfig::default());
        let place = Place { site: sim.site("a"), pool: "volumes".to_owned() };
        let size = 9 * MIB + 512;
        let shape = Shape { order: 22, features: 61 };
        place.create("disk", size as u64, shape, Attempt::First).await.unwrap();
        let mut expected = vec![0; size];
        for (offset, text) in [(0, "begin"), (3 * MIB - 2, "middle"), (size - 3, "end")] {
            expected[offset..offset + text.len()].copy_from_slice(text.as_bytes());
            let (pool, image, data) = (place.pool.clone(), "disk".to_owned(), text.as_bytes().to_vec());
            place.site.call(ImageWrite { pool, image, offset: offset as u64, data }).await.unwrap();
        }
        for _ in 0..2 {
            assert!(all(of_image(&place, "disk", size as u64)).await == expected);
        }
        // It has grown since its size was asked for, or become smaller.
        for length in [3, 3 * MIB, size + 3 * MIB] {
            let mut wanted = expected.clone();
            wanted.resize(length, 0);
            assert!(all(of_image(&place, "disk", length as u64)).await == wanted, "{length}");
        }
        let gone = of_image(&place, "gone", size as u64).try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(gone.code(), Code::VolumeBackend);
    }
}
