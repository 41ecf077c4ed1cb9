//! Where log lines go: a thread that owns the file and standard error.
//!
//! Whoever logs only queues; when the queue is full the line is counted and dropped. The file is
//! opened again when it was moved or removed (as Python's `WatchedFileHandler`), or on request.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use crate::error::{Code, Error, Result};

/// Lines that may wait. About 10 MB of ordinary lines; room is only taken by those that do wait.
const QUEUE: usize = 65_536;
/// How long [`Sink::flush`] waits.
const FLUSH: Duration = Duration::from_secs(5);

enum Item {
    Line(String),
    Reopen,
    Flush(SyncSender<()>),
}

/// The queue's entrance. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sink {
    queue: Sender<Item>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

impl Sink {
    /// Opens the file and starts the thread.
    pub(super) fn open(path: Option<&Path>, stderr: bool) -> Result<Sink> {
        let file = match path {
            None => None,
            Some(path) => Some(open(path).map_err(|e| {
                let text = format!("cannot open the log file {} (log_file, log_dir)", path.display());
                Error::new(Code::Config, text).caused_by(e)
            })?),
        };
        let (queue, items) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            path: path.map(Path::to_owned),
            file,
            stderr: stderr || path.is_none(),
            complained: false,
            waiting: waiting.clone(),
            dropped: dropped.clone(),
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run(&items))
            .map_err(|e| Error::internal("cannot start the thread that writes the log").caused_by(e))?;
        Ok(Sink { queue, waiting, dropped })
    }

    /// Queues a line (without its end). Never blocks.
    pub(super) fn line(&self, line: String) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < QUEUE {
            // Without a writer there is nobody to tell.
            let _ = self.queue.send(Item::Line(line));
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks for the file to be opened again.
    pub(super) fn reopen(&self) {
        let _ = self.queue.send(Item::Reopen);
    }

    /// Waits until what is queued is written, [`FLUSH`] at most.
    pub(super) fn flush(&self) {
        let (done, answer) = sync_channel(1);
        if self.queue.send(Item::Flush(done)).is_ok() {
            let _ = answer.recv_timeout(FLUSH);
        }
    }
}

struct Writer {
    path: Option<PathBuf>,
    file: Option<File>,
    stderr: bool,
    complained: bool,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, items: &Receiver<Item>) {
        while let Ok(first) = items.recv() {
            let mut batch = Vec::new();
            let mut waiting = Vec::new();
            let mut reopen = false;
            // One write for whatever has gathered, bounded so that a burst cannot grow it for ever.
            for item in std::iter::once(first).chain(items.try_iter().take(1024)) {
                match item {
                    Item::Line(line) => {
                        self.waiting.fetch_sub(1, Ordering::Relaxed);
                        batch.extend_from_slice(line.as_bytes());
                        batch.push(b'\n');
                    }
                    Item::Reopen => reopen = true,
                    Item::Flush(done) => waiting.push(done),
                }
            }
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                let text = format!("WARNING scoria: {dropped} log lines were dropped: the log is too slow\n");
                batch.extend_from_slice(text.as_bytes());
            }
            self.write(&batch, reopen);
            for done in waiting {
                let _ = done.send(());
            }
        }
    }

    fn write(&mut self, batch: &[u8], reopen: bool) {
        if self.stderr {
            // Nobody is left to tell when standard error is closed.
            let _ = std::io::stderr().write_all(batch);
        }
        let Some(path) = self.path.clone() else { return };
        if reopen || self.file.as_ref().is_none_or(|file| moved(file, &path)) {
            match open(&path) {
                Ok(file) => {
                    self.file = Some(file);
                    self.complained = false;
                }
                // The old file, if there is one, is better than none.
                Err(e) => self.complain(&path, &e),
            }
        }
        if let Some(mut file) = self.file.as_ref()
            && let Err(e) = file.write_all(batch)
        {
            self.complain(&path, &e);
        }
    }

    fn complain(&mut self, path: &Path, e: &std::io::Error) {
        if !self.complained {
            self.complained = true;
            let _ = writeln!(std::io::stderr(), "scoria: cannot write the log file {}: {e}", path.display());
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// True when `path` is no longer the file that is open.
fn moved(file: &File, path: &Path) -> bool {
    let identity = |m: Metadata| (m.dev(), m.ino());
    match (file.metadata().map(identity), std::fs::metadata(path).map(identity)) {
        (Ok(open), Ok(named)) => open != named,
        (_, Err(_)) => true,
        (Err(_), Ok(_)) => false,
    }
}
