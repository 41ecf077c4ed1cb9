//! The service's side of the boundary to Ceph: worker processes that may hang or die without harm.
//!
//! Every call gets an answer by its deadline. A worker that lets a deadline pass is *condemned*: it gets
//! no new call, its other calls finish by their own deadlines, then it is killed. A worker that dies
//! fails its calls with [`RbdErrorKind::WorkerLost`]. Both are replaced when the next call needs one,
//! with a back-off when new workers die before they answer anything.
//!
//! Calls are kept apart by what losing a worker costs them ([`Duty`]): short calls share two workers that
//! are always there, removals share one while there are any, so does data that flows, a long call has one for
//! itself.
//!
//! A *site* here is one (conf, user, cluster name): its workers serve nothing else, so a site that hangs
//! keeps no worker of another busy. `process` is one worker, `site` chooses and starts them.

mod process;
mod site;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tracing::Instrument;

use super::error::{RbdError, RbdErrorKind};
use super::hearing::Moves;
use super::protocol::{Connection, Reply, Request};
use super::stream::Flow;
use super::{Ceph, protocol::Class};
use process::{Order, Process};
use site::{Site, Way};

/// How long a worker that was told to end may take before it is killed.
const RETIRE_GRACE: Duration = Duration::from_secs(2);

/// What the pool is made of. `Settings::new` has the defaults.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The worker binary.
    pub worker: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// More arguments of workers that take no short calls. By default they wait longer for a single
    /// operation of an OSD: a flatten should outlive an OSD that fails over.
    pub long_arguments: Vec<OsString>,
    /// Workers per site that is in use, at least 2.
    pub workers_per_site: usize,
    /// Calls that one worker carries out at once; more wait in the service. At most 60: a worker has 64
    /// threads, and probes do not wait.
    pub calls_per_worker: usize,
    /// Workers per site that share its removals, while there are any.
    pub removal_workers_per_site: usize,
    /// Removals per site at once. Each has up to `rbd_concurrent_management_ops` objects under way.
    pub removals_per_site: usize,
    /// Workers per site that share the sessions through which data flows, while there are any.
    pub stream_workers_per_site: usize,
    /// Sessions per site at once. Each has a few parts in memory, here and in the worker.
    pub streams_per_site: usize,
    /// Workers per site that share the copies from image to image, while there are any.
    pub copy_workers_per_site: usize,
    /// Such copies per site at once. Each has a few pieces in the worker's memory.
    pub copies_per_site: usize,
    /// Long calls per site at once, each in a worker of its own.
    pub long_calls_per_site: usize,
    /// How long a worker that takes no short calls is kept without work.
    pub idle: Duration,
    /// First pause after a worker died before it answered anything; doubles up to `back_off_max`.
    pub back_off: Duration,
    /// Longest pause.
    pub back_off_max: Duration,
}

impl Settings {
    /// Defaults for a worker binary.
    pub fn new(worker: impl Into<PathBuf>) -> Settings {
        Settings {
            worker: worker.into(),
            arguments: Vec::new(),
            long_arguments: vec!["--op-timeout".into(), "120".into()],
            workers_per_site: 2,
            calls_per_worker: 48,
            removal_workers_per_site: 1,
            removals_per_site: 16,
            stream_workers_per_site: 1,
            streams_per_site: 16,
            copy_workers_per_site: 1,
            copies_per_site: 16,
            long_calls_per_site: 8,
            idle: Duration::from_secs(30),
            back_off: Duration::from_millis(100),
            back_off_max: Duration::from_secs(10),
        }
    }

    /// Path of the worker binary: beside the running executable, unless configured.
    ///
    /// # Errors
    /// When the path of the running executable is not known.
    pub fn worker_beside(configured: Option<PathBuf>) -> std::io::Result<PathBuf> {
        match configured {
            Some(path) => Ok(path),
            None => Ok(std::env::current_exe()?.with_file_name("scoria-rbd-worker")),
        }
    }
}

/// What a worker was doing when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: all its calls were answered, and it gave up no operation of Ceph half-way. It has left no
    /// open image behind, so no lock, no watch and no write.
    AtRest,
    /// Anything else: its locks and watches may stay for up to 30 s, and writes may still be on their way.
    AtWork,
}

/// Is told which RADOS clients the workers are, so that a later instance of the service can tell its own
/// dead clients from others and fence them. Called from async tasks: it must not block.
pub trait ClientObserver: Send + Sync + 'static {
    /// A worker has connected to `site`, the cluster `fsid` (empty when the worker does not know it); called before the
    /// answer to any call that used the connection.
    fn started(&self, site: &Connection, fsid: &str, worker_pid: u32, address: &str);
    /// That worker has ended and is reaped.
    fn gone(&self, site: &Connection, worker_pid: u32, address: &str, ending: Ending);
}

/// How often what happened since the start; all only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Workers started.
    pub started: u64,
    /// Workers condemned because of an overdue call.
    pub condemned: u64,
    /// Workers that the pool killed.
    pub killed: u64,
    /// Workers that ended by themselves or were killed by somebody else.
    pub died: u64,
    /// Calls that missed their deadline.
    pub overdue: u64,
    /// Calls that died with their worker.
    pub lost: u64,
}

/// Which calls a worker takes. Removals and long calls may run for hours, so they are kept away from workers
/// that a short call may condemn: the stuck image of such a worker is only released when its last call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Probes and short calls, many at once. Kept for good.
    Short,
    /// Removals, many at once.
    Removal,
    /// Sessions through which data flows, many at once.
    Stream,
    /// Copies from image to image, many at once.
    Copy,
    /// Long calls, one at a time.
    Long,
}

impl From<Class> for Duty {
    fn from(class: Class) -> Duty {
        match class {
            Class::Probe | Class::Short => Duty::Short,
            Class::Removal => Duty::Removal,
            Class::Stream => Duty::Stream,
            Class::Copy => Duty::Copy,
            Class::Long => Duty::Long,
        }
    }
}

/// One worker, for metrics and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Process id.
    pub pid: u32,
    /// Name of the site that it was started for.
    pub site: String,
    /// Which calls it takes.
    pub duty: Duty,
    /// Whether it waits for its end.
    pub condemned: bool,
    /// Calls under way.
    pub calls: usize,
}

/// Runs requests in worker processes.
pub struct WorkerPool {
    shared: Arc<Shared>,
}

/// What all parts of the pool know.
struct Shared {
    settings: Settings,
    observer: Option<Arc<dyn ClientObserver>>,
    sites: Mutex<HashMap<Key, Arc<Site>>>,
    /// Every worker that is not reaped yet.
    alive: watch::Sender<HashMap<u32, Arc<Process>>>,
    closed: AtomicBool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    started: AtomicU64,
    condemned: AtomicU64,
    killed: AtomicU64,
    died: AtomicU64,
    overdue: AtomicU64,
    lost: AtomicU64,
}

/// What makes two connections the same RADOS client.
type Key = (PathBuf, Option<String>, String);

impl WorkerPool {
    /// A pool without workers; the first call to a site starts its first.
    pub fn new(settings: Settings, observer: Option<Arc<dyn ClientObserver>>) -> WorkerPool {
        let shared = Shared {
            settings,
            observer,
            sites: Mutex::default(),
            alive: watch::Sender::default(),
            closed: AtomicBool::new(false),
            counts: Counts::default(),
        };
        WorkerPool { shared: Arc::new(shared) }
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        let c = &self.shared.counts;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            started: get(&c.started),
            condemned: get(&c.condemned),
            killed: get(&c.killed),
            died: get(&c.died),
            overdue: get(&c.overdue),
            lost: get(&c.lost),
        }
    }

    /// All workers that are not reaped yet, by pid.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        let mut workers: Vec<_> = self.shared.alive.borrow().values().map(|p| p.info()).collect();
        workers.sort_unstable_by_key(|w| w.pid);
        workers
    }

    /// Kills all workers now and returns when they are reaped: for a service that lost its lease. Calls
    /// under way fail with `WorkerLost`; later calls start new workers.
    pub async fn kill_all(&self) {
        let doomed: Vec<_> = self.shared.alive.borrow().values().cloned().collect();
        for process in &doomed {
            process.order(Order::Kill);
        }
        let mut alive = self.shared.alive.subscribe();
        let gone = alive.wait_for(|alive| doomed.iter().all(|p| !alive.contains_key(&p.pid)));
        // The sender lives in `self`, so this cannot fail.
        let _ = gone.await;
    }

    /// Refuses new calls, waits up to `grace` for those under way, ends all workers and returns when
    /// they are reaped.
    pub async fn shutdown(&self, grace: Duration) {
        self.shared.closed.store(true, Ordering::Release);
        let idle = async {
            while self.workers().iter().any(|w| w.calls > 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(grace, idle).await;
        // Again and again: a call that passed the check above may start one more.
        loop {
            let processes: Vec<_> = self.shared.alive.borrow().values().cloned().collect();
            if processes.is_empty() {
                return;
            }
            for process in processes {
                process.order(Order::Retire);
            }
            let mut alive = self.shared.alive.subscribe();
            let _ = tokio::time::timeout(RETIRE_GRACE, alive.wait_for(HashMap::is_empty)).await;
        }
    }
}

impl Drop for WorkerPool {
    /// Workers end with the pool even when nobody called `shutdown`.
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        // Sites and what they share hold each other.
        lock(&self.shared.sites).clear();
        for process in self.shared.alive.borrow().values() {
            process.order(Order::Retire);
        }
    }
}

#[async_trait]
impl Ceph for WorkerPool {
    async fn execute(
        &self,
        connection: &Connection,
        request: Request,
        deadline: Duration,
        moves: &Moves,
    ) -> Result<Reply, RbdError> {
        let (op, name) = (request.name(), connection.site.clone());
        let failed = |kind, message: &str| Err(error(kind, op, &name, message));
        if self.shared.closed.load(Ordering::Acquire) {
            return failed(RbdErrorKind::Unreachable, "the service is shutting down");
        }
        let site = self.site(connection);
        let Some(turn) = site.turn(request.class(), deadline).await else {
            return failed(RbdErrorKind::TimedOut, "all workers were busy; the call was not sent");
        };
        if request.class().starts_anew_with_progress() {
            // That it had to wait for its turn is not the site's fault.
            moves.on();
        }
        let (connection, moves) = (connection.clone(), moves.clone());
        // A task of its own: a caller that is cancelled must not leave a call that nobody watches, which
        // could keep a hung worker in use for ever.
        let call = async move { site.execute(connection, request, deadline, turn, Way::Told(moves)).await };
        match tokio::spawn(call.in_current_span()).await {
            Ok(result) => result,
            Err(_) => failed(RbdErrorKind::WorkerLost, "the call was dropped with the runtime"),
        }
    }

    async fn stream(
        &self,
        connection: &Connection,
        request: Request,
        deadline: Duration,
        flow: Flow,
    ) -> Result<Reply, RbdError> {
        let (op, name) = (request.name(), connection.site.as_str());
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(error(RbdErrorKind::Unreachable, op, name, "the service is shutting down"));
        }
        let site = self.site(connection);
        let Some(turn) = site.turn(request.class(), deadline).await else {
            return Err(error(RbdErrorKind::TimedOut, op, name, "all workers were busy"));
        };
        // Not in a task of its own: `Site` runs it in one, and ends it by ending the flow.
        site.execute(connection.clone(), request, deadline, turn, Way::Flowing(flow)).await
    }

    fn leave(&self, connection: &Connection) {
        let site = lock(&self.shared.sites).remove(&key(connection));
        if let Some(site) = site {
            site.retire();
        }
    }
}

fn key(connection: &Connection) -> Key {
    (connection.conf.clone(), connection.user.clone(), connection.cluster_name.clone())
}

impl WorkerPool {
    fn site(&self, connection: &Connection) -> Arc<Site> {
        let mut sites = lock(&self.shared.sites);
        let site =
            sites.entry(key(connection)).or_insert_with(|| Arc::new(Site::new(&self.shared, connection)));
        Arc::clone(site)
    }
}

impl Shared {
    fn count(&self, counter: impl FnOnce(&Counts) -> &AtomicU64) {
        counter(&self.counts).fetch_add(1, Ordering::Relaxed);
    }
}

fn error(kind: RbdErrorKind, op: &str, site: &str, message: impl Into<String>) -> RbdError {
    RbdError { kind, op: op.to_owned(), site: site.to_owned(), errno: 0, message: message.into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds for a log field.
fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
