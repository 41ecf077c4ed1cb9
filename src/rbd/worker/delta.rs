//! Copies from image to image that look only at what can differ, and the checksums of what they read.
//!
//! Threads copy pieces side by side. Each reads through a handle of its own; all write through one, because two handles
//! on one image would take the exclusive lock from each other. Each thread has one piece in memory, whatever the
//! image's size. When many images are copied at once, each has one thread of its own, and they share the others: what
//! they hold stays bounded, and a copy to a site that hangs does not keep the others from going on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::rbd::delta::{self, Over, Piece};
use crate::rbd::error::RbdErrorKind;
use crate::rbd::ffi::{Cluster, Failure, Image, IoCtx, Progress};
use crate::rbd::protocol::{DeltaCopy, SumsBegin, SumsCheck, SumsFill};
use crate::rbd::sums::{self, Digest, PIECE};
use crate::rbd::types::{Checked, Copied};
use crate::rbd::worker::permits::Permits;

/// Bytes whose changes are asked for at once: their list must stay short.
const STRETCH: u64 = 16 << 30;
/// Threads that read and write.
const THREADS: usize = 4;
/// Pieces that all copies of this process hold at once besides one each.
static SHARED: Permits = Permits::new(2 * (THREADS - 1));
/// Bytes of a table that are copied at once.
const BLOCK: usize = 4 << 20;
/// Pieces that are reported as wrong.
const WRONG: usize = 16;

/// What came of a piece that was copied.
struct Done {
    digest: Option<Digest>,
    read: u64,
    written: u64,
}

/// The image that is read: each thread opens it for itself.
struct Source<'a> {
    io: &'a IoCtx,
    image: &'a str,
    snap: Option<&'a str>,
    /// Bytes that it has.
    size: u64,
    /// Whether checksums are wanted.
    digests: bool,
}

/// See [`DeltaCopy`].
pub(super) fn copy(
    cluster: &Arc<Cluster>,
    second: &Arc<Cluster>,
    c: &DeltaCopy,
    progress: Progress<'_>,
) -> Result<Copied, Failure> {
    let (io, dest_io) = (IoCtx::open(cluster, &c.pool)?, IoCtx::open(second, &c.dest_pool)?);
    let source = Image::open_read_only(&io, &c.image, c.snap.as_deref())?;
    let dest = Image::open(&dest_io, &c.dest)?;
    let ((size, _), (end, _)) = (source.stat()?, dest.stat()?);
    if size > end {
        let what = format!("{}/{} has {end} bytes, and {size} are to be copied", c.dest_pool, c.dest);
        return Err(Failure::new("rbd_write", what, -i64::from(libc::EINVAL)));
    }
    let over = if c.dest_since.is_some() { Over::Anything } else { Over::Zeros };
    let from = Source {
        io: &io,
        image: &c.image,
        snap: c.snap.as_deref(),
        size,
        digests: c.sums.write.is_some() || c.sums.expect.is_some(),
    };
    let mut copied = Copied { reached: c.offset, ..Copied::default() };
    let (began, least) = (Instant::now(), Duration::from_secs(c.at_least_s));
    while copied.reached < end && (copied.read < c.budget || began.elapsed() < least) {
        let (at, stretch) = (copied.reached, STRETCH.min(end - copied.reached));
        let here = stretch.min(size.saturating_sub(at));
        let runs = match &c.since {
            _ if here == 0 => Vec::new(),
            Some(since) => source.changes(since, at, here)?,
            None => source.extents(at, here)?,
        };
        let there = match &c.dest_since {
            Some(since) => dest.changes(since, at, stretch)?,
            None => dest.extents(at, stretch)?,
        };
        let mut pieces = delta::pieces(&runs, &there);
        let mut expected = BTreeMap::new();
        if let Some(table) = &c.sums.expect {
            expected = known(&io, table, at, at + stretch)?;
            let noted = expected.iter().filter(|(_, d)| **d != Digest::ZEROS && **d != Digest::UNKNOWN);
            // Between two points only what has changed is looked at: the rest is there already.
            if c.since.is_none() {
                pieces = delta::with(pieces, noted.map(|(index, _)| *index));
            }
        }
        let budget = c.budget.saturating_sub(copied.read).div_ceil(PIECE);
        let enough = |taken: usize| taken as u64 >= budget && began.elapsed() >= least;
        let mut digests = BTreeMap::new();
        let there = dest.data();
        let work = |piece: &Piece, data: &mut Vec<u8>, digest: Option<Digest>| {
            if let (Some(found), Some(noted)) = (digest, expected.get(&piece.index))
                && !found.fits(*noted)
            {
                return Err(spoilt(c, piece.index));
            }
            let offset = piece.index * PIECE;
            let mut done = Done { digest, read: data.len() as u64, written: 0 };
            // What the source does not have any more is zero in the destination.
            let length = usize::try_from(PIECE.min(end - offset)).unwrap_or(0);
            data.resize(length, 0);
            let old = match piece.wants_old(data, over) {
                true => Some(there.read(offset, length)?),
                false => None,
            };
            for (from, to) in piece.writes(data, old.as_deref()) {
                there.put(offset + from as u64, data.get(from..to).unwrap_or_default())?;
                done.written += (to - from) as u64;
            }
            Ok(done)
        };
        let taken = each(&from, &pieces, enough, work, |piece, done| {
            copied.read += done.read;
            copied.written += done.written;
            digests.extend(done.digest.map(|digest| (piece.index, digest)));
            progress(piece.index * PIECE, end);
        })?;
        if let Some(table) = &c.sums.write {
            note(&dest_io, table, &digests)?;
        }
        copied.reached = pieces.get(taken).map_or(at + stretch, |next| next.index * PIECE);
        // Also when there is nothing to write for long.
        progress(copied.reached, end);
    }
    dest.flush()?;
    copied.reached = copied.reached.min(end);
    copied.complete = copied.reached >= end;
    Ok(copied)
}

fn spoilt(c: &DeltaCopy, piece: u64) -> Failure {
    let what = format!(
        "{}/{} does not hold what was written {} bytes from its beginning: its checksum is another",
        c.pool,
        c.image,
        piece * PIECE
    );
    Failure::new("checksum", what, -i64::from(libc::EILSEQ))
}

/// See [`SumsCheck`].
pub(super) fn check(
    cluster: &Arc<Cluster>,
    c: &SumsCheck,
    progress: Progress<'_>,
) -> Result<Checked, Failure> {
    let io = IoCtx::open(cluster, &c.pool)?;
    let image = Image::open_read_only(&io, &c.image, c.snap.as_deref())?;
    let (size, _) = image.stat()?;
    let from = Source { io: &io, image: &c.image, snap: c.snap.as_deref(), size, digests: true };
    let mut checked = Checked { reached: c.offset, ..Checked::default() };
    while checked.reached < size && checked.compared + checked.unknown < c.budget {
        let (at, stretch) = (checked.reached, STRETCH.min(size - checked.reached));
        let expected = known(&io, &c.table, at, at + stretch)?;
        let noted = expected.iter().filter(|(_, d)| **d != Digest::ZEROS && **d != Digest::UNKNOWN);
        let pieces = delta::with(
            delta::pieces(&image.extents(at, stretch)?, &[]),
            noted.map(|(index, _)| *index).collect::<Vec<_>>().into_iter(),
        );
        let budget = (c.budget - checked.compared - checked.unknown).div_ceil(PIECE);
        let enough = |taken: usize| taken as u64 >= budget;
        let work = |_: &Piece, data: &mut Vec<u8>, digest: Option<Digest>| Ok((data.len() as u64, digest));
        let taken = each(&from, &pieces, enough, work, |piece, (bytes, digest)| {
            match (expected.get(&piece.index), digest) {
                (Some(noted), _) if *noted == Digest::UNKNOWN => checked.unknown += bytes,
                (Some(noted), Some(found)) => {
                    checked.compared += bytes;
                    if !found.fits(*noted) && checked.wrong.len() < WRONG {
                        checked.wrong.push(piece.index * PIECE);
                    }
                }
                _ => checked.unknown += bytes,
            }
            progress(piece.index * PIECE, size);
        })?;
        checked.reached = pieces.get(taken).map_or(at + stretch, |next| next.index * PIECE);
        progress(checked.reached, size);
    }
    checked.wrong.sort_unstable();
    checked.reached = checked.reached.min(size);
    checked.complete = checked.reached >= size;
    Ok(checked)
}

/// See [`SumsFill`].
pub(super) fn fill(cluster: &Arc<Cluster>, c: &SumsFill, progress: Progress<'_>) -> Result<Copied, Failure> {
    let io = IoCtx::open(cluster, &c.pool)?;
    let image = Image::open_read_only(&io, &c.image, c.snap.as_deref())?;
    let (size, _) = image.stat()?;
    let from = Source { io: &io, image: &c.image, snap: c.snap.as_deref(), size, digests: true };
    let mut filled = Copied { reached: c.offset, ..Copied::default() };
    while filled.reached < size && filled.read < c.budget {
        let (at, stretch) = (filled.reached, STRETCH.min(size - filled.reached));
        let pieces = delta::pieces(&image.extents(at, stretch)?, &[]);
        let budget = (c.budget - filled.read).div_ceil(PIECE);
        let enough = |taken: usize| taken as u64 >= budget;
        let mut digests = BTreeMap::new();
        let work = |_: &Piece, data: &mut Vec<u8>, digest: Option<Digest>| Ok((data.len() as u64, digest));
        let taken = each(&from, &pieces, enough, work, |piece, (bytes, digest)| {
            filled.read += bytes;
            digests.extend(digest.map(|digest| (piece.index, digest)));
            progress(piece.index * PIECE, size);
        })?;
        let reached = pieces.get(taken).map_or(at + stretch, |next| next.index * PIECE);
        // What holds nothing reads as zeros.
        for index in at / PIECE..sums::pieces(reached.min(size)) {
            digests.entry(index).or_insert(Digest::ZEROS);
        }
        note(&io, &c.table, &digests)?;
        filled.reached = reached;
        progress(filled.reached, size);
    }
    filled.reached = filled.reached.min(size);
    filled.complete = filled.reached >= size;
    Ok(filled)
}

/// See [`SumsBegin`].
pub(super) fn begin(cluster: &Arc<Cluster>, c: &SumsBegin) -> Result<(), Failure> {
    let io = IoCtx::open(cluster, &c.pool)?;
    let length = sums::length(c.size);
    if length > sums::LARGEST {
        let what = format!("{}/{}: a table of {length} bytes is too large for one object", c.pool, c.table);
        return Err(Failure::new("rados_write", what, -i64::from(libc::EFBIG)));
    }
    // The header is written last: what has it is whole.
    if sums::is_table(&read(&io, &c.table, 0, sums::HEADER.len())?.unwrap_or_default()) {
        return Ok(());
    }
    let fill = if c.blank { Digest::ZEROS } else { Digest::UNKNOWN }.0[0];
    let parent = match &c.parent {
        Some(parent) if sums::is_table(&read(&io, parent, 0, sums::HEADER.len())?.unwrap_or_default()) => {
            Some(parent)
        }
        _ => None,
    };
    let mut at = sums::HEADER.len() as u64;
    while at < length {
        let wanted = usize::try_from(length - at).unwrap_or(BLOCK).min(BLOCK);
        let mut block = match parent {
            Some(parent) => read(&io, parent, at, wanted)?.unwrap_or_default(),
            None => vec![fill; wanted],
        };
        // An image that has grown since: what is new was zeros.
        block.resize(wanted, Digest::ZEROS.0[0]);
        io.write_object_at(&c.table, at, &block)?;
        at += wanted as u64;
    }
    io.write_object_at(&c.table, 0, sums::HEADER)
}

/// The checksums of the pieces between two offsets; none for a table that is not there.
fn known(io: &IoCtx, table: &str, from: u64, to: u64) -> Result<BTreeMap<u64, Digest>, Failure> {
    let (first, last) = (from / PIECE, sums::pieces(to));
    let length = usize::try_from((last - first) * sums::DIGEST).unwrap_or(0);
    if !sums::is_table(&read(io, table, 0, sums::HEADER.len())?.unwrap_or_default()) {
        return Ok(BTreeMap::new());
    }
    let bytes = read(io, table, sums::place(first), length)?.unwrap_or_default();
    Ok((first..).zip(sums::digests(&bytes)).collect())
}

/// Writes checksums down, those of neighbours at once.
fn note(io: &IoCtx, table: &str, digests: &BTreeMap<u64, Digest>) -> Result<(), Failure> {
    let mut run: (u64, Vec<u8>) = (0, Vec::new());
    for (index, digest) in digests {
        let next = run.0 + run.1.len() as u64 / sums::DIGEST;
        if !run.1.is_empty() && next != *index {
            io.write_object_at(table, sums::place(run.0), &run.1)?;
            run.1.clear();
        }
        if run.1.is_empty() {
            run.0 = *index;
        }
        run.1.extend_from_slice(&digest.0);
    }
    if run.1.is_empty() { Ok(()) } else { io.write_object_at(table, sums::place(run.0), &run.1) }
}

/// A part of an object; `None` when there is none.
pub(super) fn read(io: &IoCtx, name: &str, at: u64, length: usize) -> Result<Option<Vec<u8>>, Failure> {
    match io.read_object_at(name, at, length) {
        Ok(data) => Ok(Some(data)),
        Err(failure) if failure.kind() == RbdErrorKind::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Which piece is next, for threads that take them one after the other, without a gap.
struct Queue<'p, E> {
    pieces: &'p [Piece],
    next: Mutex<usize>,
    enough: E,
}

impl<'p, E: Fn(usize) -> bool> Queue<'p, E> {
    /// `None` when all are taken, or when it is enough; then for good.
    fn take(&self) -> Option<&'p Piece> {
        let mut next = self.lock();
        let piece = self.pieces.get(*next)?;
        if (self.enough)(*next) {
            return None;
        }
        *next += 1;
        Some(piece)
    }

    fn taken(&self) -> usize {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads pieces side by side, has the same threads do the work with them, and takes what came of it one after the
/// other, in no order. Once `enough` says so of the number of those that were begun no more are begun, and it does not
/// change its mind. Answers that number.
fn each<T: Send>(
    source: &Source<'_>,
    pieces: &[Piece],
    enough: impl Fn(usize) -> bool + Sync,
    work: impl Fn(&Piece, &mut Vec<u8>, Option<Digest>) -> Result<T, Failure> + Sync,
    mut take: impl FnMut(&Piece, T),
) -> Result<usize, Failure> {
    if pieces.is_empty() {
        return Ok(0);
    }
    let queue = Queue { pieces, next: Mutex::new(0), enough };
    let stop = AtomicBool::new(false);
    let (sender, receiver) = sync_channel::<Result<(&Piece, T), Failure>>(THREADS);
    let mut done = 0;
    thread::scope(|scope| {
        for n in 0..THREADS.min(pieces.len()) {
            let (sender, queue, stop, work) = (sender.clone(), &queue, &stop, &work);
            let thread = thread::Builder::new().name(format!("copy {n}"));
            let started = thread.spawn_scoped(scope, move || {
                let shared = (n > 0).then_some(&SHARED);
                let done = carry(source, queue, (stop, shared), work, &sender);
                // Nobody listens any more when another one has failed before.
                done.or_else(|failure| sender.send(Err(failure)))
            });
            if let Err(error) = started
                && n == 0
            {
                let what = format!("no thread to read with: {error}");
                return Err(Failure::new("rbd_open_read_only", what, -i64::from(libc::EAGAIN)));
            }
        }
        drop(sender);
        // Until all threads have ended, or one has failed.
        let outcome = receiver.iter().try_for_each(|one| {
            let (piece, value) = one?;
            done += 1;
            take(piece, value);
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        // Whoever waits to hand something over must not wait for ever.
        drop(receiver);
        outcome
    })?;
    match queue.taken() {
        taken if taken == done => Ok(taken),
        taken => {
            let what = format!("{} of the pieces that threads have begun to copy are missing", taken - done);
            Err(Failure::new("rbd_read", what, -i64::from(libc::EIO)))
        }
    }
}

/// One thread: takes the next piece until there is none, or nobody wants it.
fn carry<'p, T>(
    source: &Source<'_>,
    queue: &Queue<'p, impl Fn(usize) -> bool>,
    (stop, shared): (&AtomicBool, Option<&Permits>),
    work: &impl Fn(&Piece, &mut Vec<u8>, Option<Digest>) -> Result<T, Failure>,
    sender: &SyncSender<Result<(&'p Piece, T), Failure>>,
) -> Result<(), Failure> {
    let image = Image::open_read_only(source.io, source.image, source.snap)?;
    let mut data = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let permit = shared.map(Permits::take);
        let Some(piece) = queue.take() else { break };
        let offset = piece.index * PIECE;
        match usize::try_from(PIECE.min(source.size.saturating_sub(offset))).unwrap_or(0) {
            0 => data.clear(),
            length => image.read_into(offset, length, &mut data)?,
        }
        let digest = source.digests.then(|| Digest::of(&data));
        let done = work(piece, &mut data, digest)?;
        if permit.is_some() {
            // Memory is for who has a permit.
            data = Vec::new();
        }
        // What is handed over is small, and whoever takes it may be slow.
        drop(permit);
        if sender.send(Ok((piece, done))).is_err() {
            break;
        }
    }
    Ok(())
}
