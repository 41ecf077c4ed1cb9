//! The content of an image that Glance keeps gzipped (`container_format` `compressed`), as it comes.
//!
//! A thousand bytes may come out of one that goes in, so what comes out is taken in bounded parts, and the input
//! waits meanwhile.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;

/// What comes out at once.
const PART: usize = 256 << 10;
/// How every gzip file begins.
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// True when a file that begins like this is gzipped.
pub(super) fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// What has come in and not been read.
#[derive(Default)]
struct Input {
    bytes: Bytes,
    ended: bool,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.len().min(buffer.len());
        self.bytes.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.bytes.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(&self.bytes)
    }

    fn consume(&mut self, length: usize) {
        self.bytes.advance(length);
    }
}

/// What is there to be had.
pub(super) enum Next {
    /// This.
    Bytes(Bytes),
    /// Nothing before more comes in.
    Waits,
    /// Nothing any more.
    End,
}

/// A gzipped stream.
pub(super) struct Gunzip(MultiGzDecoder<Input>);

impl Gunzip {
    /// One of which nothing has come yet.
    pub(super) fn new() -> Gunzip {
        Gunzip(MultiGzDecoder::new(Input::default()))
    }

    /// The next input; `None`: there is no more.
    pub(super) fn feed(&mut self, bytes: Option<Bytes>) {
        let input = self.0.get_mut();
        match bytes {
            Some(bytes) => input.bytes = bytes,
            None => input.ended = true,
        }
    }

    /// The next output.
    ///
    /// # Errors
    /// It is not gzipped, or damaged, or not whole.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        let mut part = vec![0; PART];
        match self.0.read(&mut part) {
            Ok(0) => Ok(Next::End),
            Ok(length) => {
                part.truncate(length);
                Ok(Next::Bytes(part.into()))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Next::Waits),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzipped(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn through(zipped: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let mut gunzip = Gunzip::new();
        let mut pieces = zipped.chunks(step).map(Bytes::copy_from_slice);
        let mut output = Vec::new();
        loop {
            match gunzip.next()? {
                Next::Bytes(bytes) => {
                    assert!(bytes.len() <= PART);
                    output.extend_from_slice(&bytes);
                }
                Next::Waits => gunzip.feed(pieces.next()),
                Next::End => return Ok(output),
            }
        }
    }

    #[test]
    fn what_was_gzipped_comes_out_however_it_came_in() {
        let mut data = vec![0; 3 << 20];
        data[1000..1009].copy_from_slice(b"an image!");
        let zipped = gzipped(&data);
        for step in [1, 7, 100, 1 << 20] {
            assert_eq!(through(&zipped, step).unwrap(), data, "{step}");
        }
        // `cat a.gz b.gz`, as gzip reads it.
        let both = [gzipped(b"one "), gzipped(b"two")].concat();
        assert_eq!(through(&both, 5).unwrap(), b"one two");
        assert_eq!(through(&gzipped(b""), 3).unwrap(), b"");
    }

    #[test]
    fn what_is_damaged_or_cut_short_is_no_image() {
        let zipped = gzipped(&b"some bytes".repeat(1000));
        let mut damaged = zipped.clone();
        let at = damaged.len() - 6;
        damaged[at] ^= 1;
        for bad in [
            &damaged[..],
            &zipped[..zipped.len() - 3],
            &zipped[..20],
            b"raw",
            &[&zipped[..], b"more"].concat(),
        ] {
            assert!(through(bad, 11).is_err(), "{} bytes", bad.len());
        }
        assert!(is_gzip(&zipped) && !is_gzip(b"\x1f") && !is_gzip(b"QFI\xfb"));
    }
}
