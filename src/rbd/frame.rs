//! How requests and answers are cut out of a byte stream between the service and a worker process.
//!
//! A frame is a length of four bytes (big endian) and that many bytes of JSON. JSON because a frame
//! must be readable in a log and by a test worker in another language. Where an image's data flows, JSON would be
//! dear: a frame whose length has its highest bit set has a second length of four bytes, and behind its JSON
//! comes that many bytes of data as they are.
//!
//! A length beyond [`MAX_FRAME`] means that something else wrote into the pipe: the stream is then lost
//! and the worker with it.

use std::io::{self, Read, Write};

use bytes::Bytes;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::error::RbdError;
use super::protocol::{Connection, Reply, Request};

/// Largest frame in bytes: far above any answer (a listing of 100,000 images is about 6 MB).
pub const MAX_FRAME: usize = 64 << 20;
/// Most bytes of data behind a frame's JSON; far above a part.
pub const MAX_DATA: usize = 16 << 20;
/// Set in the length of a frame with data behind its JSON.
const WITH_DATA: u32 = 1 << 31;

/// What was read of a stream: JSON, and the data behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// To be given to [`decode`].
    pub json: Vec<u8>,
    /// Empty data is not the same as none.
    pub data: Option<Bytes>,
}

/// One request on its way to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Matches the answer to the request; unique within one worker process.
    pub id: u64,
    /// Which site, as which client.
    pub connection: Connection,
    /// What to do.
    pub request: Request,
    /// Milliseconds left when the frame was written.
    pub deadline_ms: u64,
}

/// What the service tells a worker about a call that is under way, with or without data: always a frame with data,
/// which is what tells it from a [`Call`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// The frame's data is to be written.
    Part {
        /// Of [`Call::id`].
        id: u64,
        /// Where to, in the image.
        offset: u64,
    },
    /// All parts have been sent.
    End {
        /// Of [`Call::id`].
        id: u64,
    },
    /// A part that the worker sent has gone on its way: there is room for one more.
    Taken {
        /// Of [`Call::id`].
        id: u64,
    },
    /// Nobody wants the call's outcome any more: it is to let go of its image, and to answer.
    CallOff {
        /// Of [`Call::id`].
        id: u64,
    },
}

impl Word {
    /// Of [`Call::id`].
    pub fn id(self) -> u64 {
        match self {
            Word::Part { id, .. } | Word::End { id } | Word::Taken { id } | Word::CallOff { id } => id,
        }
    }
}

/// What a worker tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The outcome of a call: its last event.
    Answer {
        /// Of [`Call::id`].
        id: u64,
        /// The outcome.
        result: Result<Reply, RbdError>,
    },
    /// A long call moved on; sent at most about once a second, and not for every command.
    Progress {
        /// Of [`Call::id`].
        id: u64,
        /// Units done (bytes or objects, as librbd counts them).
        done: u64,
        /// Units in all.
        total: u64,
    },
    /// The frame's data was read; with data.
    Part {
        /// Of [`Call::id`].
        id: u64,
        /// Where it was, in the image.
        offset: u64,
    },
    /// A part that the service sent is written: there is room for one more.
    Taken {
        /// Of [`Call::id`].
        id: u64,
    },
    /// The worker has a new connection to a site. `address` is what a blocklist entry would name.
    Connected {
        /// Which site, as which client.
        connection: Connection,
        /// `ip:port/nonce`.
        address: String,
        /// The cluster that it leads to; empty when that is not known.
        fsid: String,
    },
}

/// Turns a value into a frame.
///
/// # Errors
/// When it does not serialise, or is larger than [`MAX_FRAME`].
pub fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - 4;
    match u32::try_from(length) {
        Ok(header) if length <= MAX_FRAME => frame[..4].copy_from_slice(&header.to_be_bytes()),
        _ => return Err(too_long(length)),
    }
    Ok(frame)
}

/// Turns a value into the beginning of a frame, behind which `length` bytes of data are to be written.
///
/// # Errors
/// As [`encode`].
pub fn encode_before_data<T: Serialize>(value: &T, length: usize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 8];
    serde_json::to_writer(&mut frame, value)?;
    let json = frame.len() - 8;
    match (u32::try_from(json), u32::try_from(length)) {
        (Ok(json), Ok(data)) if json as usize <= MAX_FRAME && length <= MAX_DATA => {
            frame[..4].copy_from_slice(&(json | WITH_DATA).to_be_bytes());
            frame[4..8].copy_from_slice(&data.to_be_bytes());
        }
        _ => return Err(too_long(json.max(length))),
    }
    Ok(frame)
}

/// Reads one frame; `None` at the end of the stream.
///
/// # Errors
/// I/O errors, a stream that ends inside a frame, or a length that cannot be true.
pub fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; 4];
    match from.read_exact(&mut header) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let (json, more) = length(header)?;
    let data = if more {
        from.read_exact(&mut header)?;
        Some(data_length(header)?)
    } else {
        None
    };
    let mut json = vec![0; json];
    from.read_exact(&mut json)?;
    let data = match data {
        Some(length) => {
            let mut data = vec![0; length];
            from.read_exact(&mut data)?;
            Some(data.into())
        }
        None => None,
    };
    Ok(Some(Frame { json, data }))
}

/// Writes a frame made by [`encode`] at once.
///
/// # Errors
/// I/O errors.
pub fn write(to: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    to.write_all(frame)?;
    to.flush()
}

/// [`read`] for the service's side.
///
/// # Errors
/// As [`read`].
pub async fn read_async(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut header = [0; 4];
    match from.read_exact(&mut header).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let (json, more) = length(header)?;
    let data = if more {
        from.read_exact(&mut header).await?;
        Some(data_length(header)?)
    } else {
        None
    };
    let mut json = vec![0; json];
    from.read_exact(&mut json).await?;
    let data = match data {
        Some(length) => {
            let mut data = vec![0; length];
            from.read_exact(&mut data).await?;
            Some(data.into())
        }
        None => None,
    };
    Ok(Some(Frame { json, data }))
}

/// Reads a frame's JSON.
///
/// # Errors
/// When it is not what was expected, e.g. because the two sides are of different versions.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(body)?)
}

/// Length of the JSON, and whether there is data behind it.
fn length(header: [u8; 4]) -> io::Result<(usize, bool)> {
    let header = u32::from_be_bytes(header);
    let length = (header & !WITH_DATA) as usize;
    if length > MAX_FRAME { Err(too_long(length)) } else { Ok((length, header & WITH_DATA != 0)) }
}

fn data_length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_DATA { Err(too_long(length)) } else { Ok(length) }
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a frame of {length} bytes: something else wrote to the pipe, or the data is too large"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::path::PathBuf;

    use super::*;
    use crate::rbd::error::RbdErrorKind;
    use crate::rbd::protocol::{Command, ImageStat, ImageWrite};

    fn call() -> Call {
        Call {
            id: 7,
            connection: Connection {
                site: "default".to_owned(),
                conf: PathBuf::from("/etc/ceph/ceph.conf"),
                cluster_name: "ceph".to_owned(),
                user: Some("cinder".to_owned()),
                connect_timeout: None,
            },
            request: ImageStat { pool: "volumes".to_owned(), image: "volume-1".to_owned() }.into_request(),
            deadline_ms: 30_000,
        }
    }

    #[test]
    fn frames_follow_each_other_in_a_stream() {
        let events = [
            Event::Progress { id: 1, done: 2, total: 3 },
            Event::Answer {
                id: 1,
                result: Err(RbdError {
                    kind: RbdErrorKind::Busy,
                    op: "ImageRemove".to_owned(),
                    site: "default".to_owned(),
                    errno: 16,
                    message: "volumes/volume-1: Device or resource busy".to_owned(),
                }),
            },
            Event::Answer { id: 2, result: Ok(Reply::Fsid("f".to_owned())) },
        ];
        let mut stream = Vec::new();
        for event in &events {
            write(&mut stream, &encode(event).unwrap()).unwrap();
        }
        let mut stream = &stream[..];
        for event in &events {
            let frame = read(&mut stream).unwrap().unwrap();
            assert_eq!(&decode::<Event>(&frame.json).unwrap(), event);
            assert_eq!(frame.data, None);
        }
        assert!(read(&mut stream).unwrap().is_none());
    }

    #[test]
    fn the_shape_on_the_wire_is_stable() {
        let frame = encode(&call()).unwrap();
        assert_eq!(frame[..4], u32::try_from(frame.len() - 4).unwrap().to_be_bytes());
        insta::assert_snapshot!(String::from_utf8(frame[4..].to_vec()).unwrap(), @r#"{"id":7,"connection":{"site":"default","conf":"/etc/ceph/ceph.conf","cluster_name":"ceph","user":"cinder","connect_timeout":null},"request":{"ImageStat":{"pool":"volumes","image":"volume-1"}},"deadline_ms":30000}"#);
    }

    #[test]
    fn a_stream_cut_inside_a_frame_is_an_error_and_not_an_end() {
        let frame = encode(&call()).unwrap();
        let cut = &frame[..frame.len() - 1];
        assert_eq!(read(&mut &cut[..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn data_follows_as_it_is() {
        for data in [&b"\0\xff{}"[..], b""] {
            let word = Word::Part { id: 3, offset: 1 << 40 };
            let mut stream = encode_before_data(&word, data.len()).unwrap();
            stream.extend_from_slice(data);
            stream.extend(encode(&call()).unwrap());
            let mut rest = &stream[..];
            let frame = read(&mut rest).unwrap().unwrap();
            assert_eq!(decode::<Word>(&frame.json).unwrap(), word);
            assert_eq!(frame.data.as_deref(), Some(data));
            assert_eq!(read(&mut rest).unwrap().unwrap().data, None);
            assert_eq!(read_async(&mut &stream[..]).await.unwrap().unwrap(), frame);
            let cut = &mut &stream[..stream.len() - encode(&call()).unwrap().len() - 1];
            assert_eq!(read(cut).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        assert!(encode_before_data(&Word::End { id: 1 }, MAX_DATA + 1).is_err());
    }

    #[test]
    fn text_in_the_pipe_is_recognised_as_garbage() {
        let mut text = &b"terminate called after throwing an instance of"[..];
        assert_eq!(read(&mut text).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn both_readers_agree() {
        let frame = encode(&call()).unwrap();
        let read = read_async(&mut &frame[..]).await.unwrap().unwrap();
        assert_eq!(decode::<Call>(&read.json).unwrap(), call());
        assert_eq!(read.data, None);
        assert!(read_async(&mut &b""[..]).await.unwrap().is_none());
        let huge =
            ImageWrite { pool: String::new(), image: String::new(), offset: 0, data: vec![200; 17 << 20] };
        assert!(encode(&huge.into_request()).is_err());
    }
}
