//! The process that may hang: carries out requests against Ceph on behalf of the service.
//!
//! librbd blocks, and now and then aborts, so it lives here and not in the service. The process reads
//! [`Call`]s from stdin and writes [`Event`]s to what was its stdout; it keeps no state that matters, so
//! the service may kill it at any time. It ends, at once and without asking librbd, when its stdin
//! closes: a service that died leaves no client behind that could still change an image.
//!
//! `threads` runs the calls, `connections` holds one client per site and user, `commands` maps each
//! request to calls of `rbd::ffi`; `stream` is the data of images, `delta` copies what differs between two of them, `survey` looks at many of them, and `together` is the one that takes several images at once.

mod about;
mod commands;
mod connections;
mod delta;
mod levels;
mod link;
mod monitor;
mod objects;
mod permits;
mod schedule;
mod services;
mod stream;
mod survey;
mod threads;
mod together;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::error::{RbdError, RbdErrorKind};
use super::ffi::{self, Cluster, Failure, process};
use super::frame::{self, Call, Event, Frame, Word};
use super::protocol::{Class, Connection, Reply};
use connections::Connections;
use stream::{Link, Streams};
use threads::Threads;

/// Most calls at once; the service sends fewer (`pool::Settings::calls_per_worker`).
const MAX_THREADS: usize = 64;
/// Heaps of all threads together; they spend their time waiting for Ceph, not for each other.
const HEAPS: i32 = 2;
/// Most probes that may hang at once, each in a thread of its own.
const MAX_HUNG_PROBES: usize = 16;
/// A probe is answered this long before the service gives up on it, so that a dead site condemns nobody.
const PROBE_MARGIN: Duration = Duration::from_millis(250);
/// Least time between two reports of progress of one call.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How patient the worker is.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// `rados_osd_op_timeout` and `rados_mon_op_timeout`. Longer than an OSD needs to be marked down
    /// (`osd_heartbeat_grace`, 20 s), shorter than the deadline of a short call.
    pub op_timeout: Duration,
    /// Longest attempt to connect, unless the connection says otherwise.
    pub connect_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { op_timeout: Duration::from_secs(25), connect_timeout: Duration::from_secs(10) }
    }
}

struct Worker {
    out: Mutex<File>,
    connections: Connections,
    leftovers: commands::Leftovers,
    hung_probes: AtomicUsize,
    streams: Streams,
}

/// Serves requests until stdin closes; never returns then.
///
/// # Errors
/// Only when the standard descriptors cannot be set up.
pub fn run(settings: Settings) -> io::Result<()> {
    process::ignore_termination();
    process::share_heaps(HEAPS);
    let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    process::stdout_to_stderr()?;
    let worker = Arc::new(Worker {
        out: Mutex::new(out),
        connections: Connections::new(settings),
        leftovers: commands::Leftovers::default(),
        hung_probes: AtomicUsize::new(0),
        streams: Streams::default(),
    });
    let threads = Arc::new(Threads::new(MAX_THREADS));
    let mut stdin = io::stdin().lock();
    loop {
        match frame::read(&mut stdin) {
            Ok(Some(Frame { json, data: Some(data) })) => match frame::decode::<Word>(&json) {
                Ok(word) => worker.streams.deliver(word, data),
                Err(e) => {
                    eprintln!("scoria-rbd-worker: a frame with data that is no word, giving up: {e}");
                    process::exit_now(1)
                }
            },
            Ok(Some(Frame { json, data: None })) => accept(&worker, &threads, &json),
            Ok(None) => process::exit_now(0),
            Err(e) => {
                eprintln!("scoria-rbd-worker: cannot read a request, giving up: {e}");
                process::exit_now(1)
            }
        }
    }
}

fn accept(worker: &Arc<Worker>, threads: &Arc<Threads>, body: &[u8]) {
    let arrived = Instant::now();
    match frame::decode::<Call>(body) {
        Ok(call) => {
            let worker = Arc::clone(worker);
            // Before anything more can come for it.
            let words = (call.request.class() == Class::Stream).then(|| worker.streams.open(call.id));
            let job = Box::new(move || {
                let id = call.id;
                let link = words.map(|words| Link::new(&worker, id, words));
                let result = match &link {
                    Some(link) => worker.guarded(&call, Some(link), arrived),
                    None => worker.serve(call, arrived),
                };
                if link.is_some() {
                    worker.streams.close(id);
                }
                worker.send(&Event::Answer { id, result });
            });
            if threads.submit(job).is_err() {
                eprintln!("scoria-rbd-worker: cannot start a thread, giving up");
                process::exit_now(1);
            }
        }
        Err(e) => worker.refuse(body, &e),
    }
}

impl Worker {
    /// Runs a call, in a way that always brings an answer.
    fn serve(self: &Arc<Self>, call: Call, arrived: Instant) -> Result<Reply, RbdError> {
        if call.request.class() == Class::Probe {
            self.serve_probe(call, arrived)
        } else {
            self.guarded(&call, None, arrived)
        }
    }

    /// A probe must be answered in time even by a site that hangs, and must not cost the worker its
    /// life: it waits in a thread of its own, which ends by the operation time-out at the latest.
    fn serve_probe(self: &Arc<Self>, call: Call, arrived: Instant) -> Result<Reply, RbdError> {
        let connection = call.connection.clone();
        let op = call.request.name();
        let deadline = Duration::from_millis(call.deadline_ms).saturating_sub(PROBE_MARGIN);
        let late = |message: &str| {
            Err(RbdError {
                kind: RbdErrorKind::TimedOut,
                op: op.to_owned(),
                site: connection.site.clone(),
                errno: libc::ETIMEDOUT,
                message: message.to_owned(),
            })
        };
        if self.hung_probes.load(Ordering::Relaxed) >= MAX_HUNG_PROBES {
            return late("earlier probes have not returned yet");
        }
        let (done, answer) = mpsc::sync_channel(1);
        let worker = Arc::clone(self);
        self.hung_probes.fetch_add(1, Ordering::Relaxed);
        let thread = thread::Builder::new().name("probe".to_owned()).spawn(move || {
            let result = worker.guarded(&call, None, arrived);
            worker.hung_probes.fetch_sub(1, Ordering::Relaxed);
            // Nobody listens any more when it is late.
            let _ = done.send(result);
        });
        if thread.is_err() {
            self.hung_probes.fetch_sub(1, Ordering::Relaxed);
            return late("no thread for the probe");
        }
        let left = deadline.saturating_sub(arrived.elapsed());
        answer.recv_timeout(left).unwrap_or_else(|_| late("no answer in time"))
    }

    /// Turns a panic, a defect, into an answer: the caller must not wait for its deadline.
    fn guarded(&self, call: &Call, link: Option<&Link<'_>>, arrived: Instant) -> Result<Reply, RbdError> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.attempt(call, link, arrived)));
        outcome.unwrap_or_else(|_| {
            Err(error(call, RbdErrorKind::Other, 0, "the worker panicked; its log has the place".to_owned()))
        })
    }

    fn attempt(&self, call: &Call, link: Option<&Link<'_>>, arrived: Instant) -> Result<Reply, RbdError> {
        let api =
            ffi::load().map_err(|message| error(call, RbdErrorKind::Unreachable, 0, message.to_owned()))?;
        let left = Duration::from_millis(call.deadline_ms).saturating_sub(arrived.elapsed());
        let failed = |f: Failure| error(call, f.kind(), f.errno.0, f.to_string());
        let tell = |connection: &Connection, cluster: &Cluster| {
            self.send(&Event::Connected {
                connection: connection.clone(),
                address: cluster.address().to_owned(),
                // Known since the connection was made: nobody is asked.
                fsid: cluster.fsid().unwrap_or_default(),
            });
        };
        let cluster = self.connections.get(api, &call.connection, left, tell).map_err(failed)?;

        let last = Cell::new(arrived);
        let progress = |done: u64, total: u64| {
            if last.get().elapsed() >= PROGRESS_INTERVAL {
                last.set(Instant::now());
                self.send(&Event::Progress { id: call.id, done, total });
            }
        };
        // The other site of a command that has two.
        let other = match call.request.second_site() {
            Some(connection) => {
                let left = Duration::from_millis(call.deadline_ms).saturating_sub(arrived.elapsed());
                let cluster = self.connections.get(api, connection, left, tell).map_err(failed)?;
                Some((connection, cluster))
            }
            None => None,
        };
        let second = other.as_ref().map(|(_, cluster)| cluster);
        let result = match link {
            Some(link) => stream::flow(&cluster, &call.request, link),
            None => commands::execute(&cluster, second, &call.request, &self.leftovers, &progress),
        };
        result.map_err(|failure| {
            if matches!(failure.kind(), RbdErrorKind::Blocklisted | RbdErrorKind::Unreachable) {
                self.connections.discard(&call.connection, &cluster);
                if let Some((connection, cluster)) = &other {
                    self.connections.discard(connection, cluster);
                }
            }
            failed(failure)
        })
    }

    /// Answers a frame that is not a request of this version, when at least its id can be read.
    fn refuse(&self, body: &[u8], why: &io::Error) {
        #[derive(Deserialize)]
        struct Header {
            id: u64,
            connection: Connection,
        }
        let Ok(header) = frame::decode::<Header>(body) else {
            eprintln!("scoria-rbd-worker: a frame that is no request, giving up: {why}");
            process::exit_now(1);
        };
        let result = Err(RbdError {
            kind: RbdErrorKind::NotSupported,
            op: "unknown".to_owned(),
            site: header.connection.site,
            errno: 0,
            message: format!(
                "scoria-rbd-worker {} does not know this request ({why}): the service and its worker are of \
                 different versions, restart the service",
                env!("CARGO_PKG_VERSION")
            ),
        });
        self.send(&Event::Answer { id: header.id, result });
    }

    /// Writes one event. A service that does not read any more is a service that is gone.
    fn send(&self, event: &Event) {
        let frame = match frame::encode(event) {
            Ok(frame) => frame,
            Err(e) => match event {
                Event::Answer { id, result: Ok(reply) } => {
                    let result = Err(RbdError {
                        kind: RbdErrorKind::Other,
                        op: reply.name().to_owned(),
                        site: String::new(),
                        errno: libc::EMSGSIZE,
                        message: format!("the answer cannot be sent: {e}"),
                    });
                    return self.send(&Event::Answer { id: *id, result });
                }
                _ => return,
            },
        };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if frame::write(&mut *out, &frame).is_err() {
            process::exit_now(0);
        }
    }

    /// Writes one event with data behind it.
    fn send_with_data(&self, event: &Event, data: &[u8]) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let head = frame::encode_before_data(event, data.len());
        if head.and_then(|head| out.write_all(&head)).and_then(|()| out.write_all(data)).is_err() {
            process::exit_now(0);
        }
    }
}

fn error(call: &Call, kind: RbdErrorKind, errno: i32, message: String) -> RbdError {
    RbdError { kind, op: call.request.name().to_owned(), site: call.connection.site.clone(), errno, message }
}
