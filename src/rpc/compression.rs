//! Bodies that their sender has compressed (`kombu_compression`, header `compression`).
//!
//! The option is one of each sender's own, so a service that cannot read what it did not ask for would lose
//! every request of a cinder-api that has it. The two schemes that its help names are read; nothing is sent
//! compressed, which every peer understands.

use std::borrow::Cow;
use std::io::Read;

use lapin::types::{AMQPValue, FieldTable};

use crate::error::{Code, Error, Result};

/// What a body may grow to: far above any request, far below what hurts.
const LIMIT: u64 = 64 << 20;

/// The scheme that a delivery's headers name.
pub(crate) fn scheme(headers: &FieldTable) -> Option<String> {
    match headers.inner().get("compression")? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// The body as it was before it was compressed.
///
/// # Errors
/// [`Code::MalformedMessage`] for an unknown scheme, or when the body does not follow it.
pub(crate) fn plain<'a>(body: &'a [u8], scheme: Option<&str>) -> Result<Cow<'a, [u8]>> {
    // kombu calls zlib's format gzip.
    let reader: Box<dyn Read + 'a> = match scheme {
        None | Some("") => return Ok(Cow::Borrowed(body)),
        Some("application/x-gzip") => Box::new(flate2::bufread::ZlibDecoder::new(body)),
        Some("application/x-bz2") => Box::new(bzip2_rs::DecoderReader::new(body)),
        Some(other) => {
            let text = format!(
                "The message is compressed as {}: senders must have kombu_compression unset, or gzip or bzip2",
                other.escape_debug()
            );
            return Err(Error::new(Code::MalformedMessage, text));
        }
    };
    let mut plain = Vec::new();
    reader.take(LIMIT + 1).read_to_end(&mut plain).map_err(|e| {
        Error::new(Code::MalformedMessage, "The compressed message cannot be read").caused_by(e)
    })?;
    if plain.len() as u64 > LIMIT {
        return Err(Error::new(Code::MalformedMessage, "The compressed message is too large"));
    }
    Ok(Cow::Owned(plain))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::Write;

    use super::*;

    const TEXT: &[u8] = br#"{"oslo.version": "2.0"}"#;
    /// What Python's `bz2.compress` makes of it.
    const BZ2: &[u8] = &[
        0x42, 0x5a, 0x68, 0x39, 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, 0xf3, 0xc9, 0x98, 0xdb, 0x00, 0x00, 0x0a,
        0x99, 0x80, 0x50, 0x01, 0x50, 0x10, 0x02, 0x25, 0x99, 0x0a, 0x20, 0x00, 0x31, 0x4c, 0x00, 0x13, 0x42,
        0x20, 0x7a, 0x8f, 0x50, 0xd9, 0x40, 0xae, 0xde, 0x75, 0xd2, 0x61, 0xb8, 0xc2, 0x41, 0x30, 0x7c, 0x3e,
        0x2e, 0xe4, 0x8a, 0x70, 0xa1, 0x21, 0xe7, 0x93, 0x31, 0xb6,
    ];

    fn zlib(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn both_schemes_of_oslo_messaging_are_read() {
        assert_eq!(plain(TEXT, None).unwrap(), TEXT);
        assert_eq!(plain(&zlib(TEXT), Some("application/x-gzip")).unwrap(), TEXT);
        assert_eq!(plain(BZ2, Some("application/x-bz2")).unwrap(), TEXT);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (body, scheme) in
            [(TEXT, "application/x-gzip"), (TEXT, "application/x-bz2"), (&BZ2[..20], "application/x-bz2")]
        {
            assert_eq!(plain(body, Some(scheme)).unwrap_err().code(), Code::MalformedMessage);
        }
        let unknown = plain(TEXT, Some("application/zstd")).unwrap_err();
        assert!(unknown.user().contains("kombu_compression"), "{unknown}");
        let bomb = zlib(&vec![0; usize::try_from(LIMIT).unwrap() + 1]);
        assert!(plain(&bomb, Some("application/x-gzip")).is_err());
    }

    #[test]
    fn the_header_names_the_scheme() {
        let mut headers = FieldTable::default();
        assert_eq!(scheme(&headers), None);
        headers.insert("compression".into(), AMQPValue::LongString("application/x-gzip".into()));
        assert_eq!(scheme(&headers).as_deref(), Some("application/x-gzip"));
    }
}
