//! Data that flows through a call while it is under way.
//!
//! The service sends the parts that are to be written, and takes those that are read, at its own pace. What comes
//! for a call waits in a queue of its own, whose length the service bounds: the thread that reads the pipe never
//! waits for an image.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::Worker;
use super::commands::filled;
use crate::rbd::ffi::{Cluster, Failure, Image, IoCtx};
use crate::rbd::frame::{Event, Word};
use crate::rbd::protocol::{Reply, Request};
use crate::rbd::stream::{PART, WINDOW};

/// Bytes whose extents are asked for at once: their list must stay short.
const STRETCH: u64 = 8 << 30;

/// The calls that data flows through.
#[derive(Default)]
pub(super) struct Streams(Mutex<HashMap<u64, Sender<(Word, Bytes)>>>);

/// A call's end of its stream.
pub(super) struct Link<'a> {
    worker: &'a Worker,
    id: u64,
    words: Receiver<(Word, Bytes)>,
    /// Parts that were sent and not taken.
    under_way: Cell<usize>,
}

impl Streams {
    /// Opens a queue; before its call can be answered, so on the thread that reads the pipe.
    pub(super) fn open(&self, id: u64) -> Receiver<(Word, Bytes)> {
        let (sender, receiver) = mpsc::channel();
        self.lock().insert(id, sender);
        receiver
    }

    /// The call has ended.
    pub(super) fn close(&self, id: u64) {
        self.lock().remove(&id);
    }

    /// Hands on what came. For a call that has ended it is of no use any more.
    pub(super) fn deliver(&self, word: Word, data: Bytes) {
        if let Some(call) = self.lock().get(&word.id()) {
            let _ = call.send((word, data));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Sender<(Word, Bytes)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Link<'a> {
    pub(super) fn new(worker: &'a Worker, id: u64, words: Receiver<(Word, Bytes)>) -> Link<'a> {
        Link { worker, id, words, under_way: Cell::new(0) }
    }

    /// Writes what comes, until the end is told.
    pub(super) fn import(&self, image: &Image<'_>, blank: bool) -> Result<u64, Failure> {
        let (mut written, mut reached) = (0, 0);
        loop {
            match self.words.recv() {
                Ok((Word::Part { offset, .. }, data)) => {
                    if !blank {
                        written += self.clear(image, reached, offset)?;
                        reached = reached.max(offset + data.len() as u64);
                    }
                    written += write(image, blank, offset, &data)?;
                    drop(data);
                    self.worker.send(&Event::Taken { id: self.id });
                }
                Ok((Word::End { .. }, _)) => {
                    if !blank {
                        written += self.clear(image, reached, image.stat()?.0)?;
                    }
                    image.flush()?;
                    return Ok(written);
                }
                Ok((Word::Taken { .. }, _)) => {}
                Ok((Word::CallOff { .. }, _)) | Err(_) => return Err(called_off("rbd_write")),
            }
        }
    }

    /// Writes zeros over what is something else between two places; answers the bytes written. By writing them:
    /// what takes objects away is not followed by every kind of mirroring (`Image::restore`).
    fn clear(&self, image: &Image<'_>, mut at: u64, to: u64) -> Result<u64, Failure> {
        let zeros = vec![0; PART];
        let mut written = 0;
        while at < to {
            let stretch = STRETCH.min(to - at);
            for (start, run) in image.extents(at, stretch)? {
                for place in (start..start + run).step_by(PART) {
                    let length = (start + run - place).min(PART as u64);
                    let old = image.read(place, usize::try_from(length).unwrap_or(0))?;
                    for (from, to) in filled(&old) {
                        image.put(place + from as u64, zeros.get(from..to).unwrap_or_default())?;
                        written += (to - from) as u64;
                    }
                    self.worker.send(&Event::Progress { id: self.id, done: place, total: to });
                }
            }
            at += stretch;
        }
        Ok(written)
    }

    /// Sends what is not zero in `length` bytes from `offset` on, as far as the image goes.
    pub(super) fn export(&self, image: &Image<'_>, offset: u64, length: u64) -> Result<u64, Failure> {
        let (size, _) = image.stat()?;
        let end = offset.saturating_add(length).min(size);
        let (mut at, mut sent) = (offset, 0);
        while at < end {
            let stretch = STRETCH.min(end - at);
            for (start, run) in image.extents(at, stretch)? {
                sent += self.run(image, start, start + run)?;
            }
            at += stretch;
        }
        Ok(sent)
    }

    fn run(&self, image: &Image<'_>, mut at: u64, end: u64) -> Result<u64, Failure> {
        let mut sent = 0;
        while at < end {
            // Parts end where others begin, whatever the extents are.
            let wanted = (PART as u64 - at % PART as u64).min(end - at);
            let data = image.read(at, usize::try_from(wanted).unwrap_or(0))?;
            if data.is_empty() {
                break; // the image has become smaller
            }
            let length = data.len() as u64;
            if data.iter().any(|b| *b != 0) {
                self.wait_for_room()?;
                self.worker.send_with_data(&Event::Part { id: self.id, offset: at }, &data);
                self.under_way.set(self.under_way.get() + 1);
                sent += length;
            }
            at += length;
        }
        Ok(sent)
    }

    fn wait_for_room(&self) -> Result<(), Failure> {
        while self.under_way.get() >= WINDOW {
            match self.words.recv() {
                Ok((Word::Taken { .. }, _)) => self.under_way.set(self.under_way.get() - 1),
                Ok((Word::Part { .. } | Word::End { .. }, _)) => {}
                Ok((Word::CallOff { .. }, _)) | Err(_) => return Err(called_off("rbd_read")),
            }
        }
        Ok(())
    }
}

fn called_off(call: &'static str) -> Failure {
    Failure::new(call, "the service does not want it any more", -i64::from(libc::ECANCELED))
}

/// Writes a part; answers the bytes written.
fn write(image: &Image<'_>, blank: bool, offset: u64, data: &[u8]) -> Result<u64, Failure> {
    let (mut at, mut written) = (0, 0);
    let mut put = |from: usize, to: usize| {
        written += (to - from) as u64;
        image.put(offset + from as u64, data.get(from..to).unwrap_or_default())
    };
    for (from, to) in filled(data) {
        if !blank {
            put_zeros(image, offset, at, from, &mut put)?;
        }
        put(from, to)?;
        at = to;
    }
    if !blank {
        put_zeros(image, offset, at, data.len(), &mut put)?;
    }
    Ok(written)
}

/// Zeros of a part where there is something else.
fn put_zeros(
    image: &Image<'_>,
    offset: u64,
    from: usize,
    to: usize,
    put: &mut impl FnMut(usize, usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if from == to {
        return Ok(());
    }
    // At once: of a clone each read goes to the parent too, and an image may be zeros for gigabytes.
    let old = image.read(offset + from as u64, to - from)?;
    for (start, end) in filled(&old) {
        put(from + start, from + end)?;
    }
    Ok(())
}

/// Runs one request through which data flows.
pub(super) fn flow(cluster: &Arc<Cluster>, request: &Request, link: &Link<'_>) -> Result<Reply, Failure> {
    match request {
        Request::ImageImport(c) => {
            let io = IoCtx::open(cluster, &c.pool)?;
            Ok(Reply::ImageImport(link.import(&Image::open(&io, &c.image)?, c.blank)?))
        }
        Request::ImageExport(c) => {
            let io = IoCtx::open(cluster, &c.pool)?;
            let image = Image::open_read_only(&io, &c.image, c.snap.as_deref())?;
            Ok(Reply::ImageExport(link.export(&image, c.offset, c.length)?))
        }
        other => {
            let what = format!("{} has no data that flows", other.name());
            Err(Failure::new("rbd_open", what, -i64::from(libc::EINVAL)))
        }
    }
}
