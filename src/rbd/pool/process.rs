//! One worker process: its pipe, its calls, and its end.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::site::Site;
use super::stream::{Outgoing, Told};
use super::{Duty, Ending, RETIRE_GRACE, Shared, WorkerInfo, error, lock, ms};
use crate::rbd::error::{RbdError, RbdErrorKind};
use crate::rbd::frame::{self, Call, Event};
use crate::rbd::hearing::Moves;
use crate::rbd::protocol::{Class, Connection, Reply, Request};
use crate::rbd::stream::Part;

/// What the pool wants of a worker. Later ones outrank earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    Run,
    /// Close its pipe; kill it when it does not end then.
    Retire,
    Kill,
}

/// What came of a call.
pub(super) enum Outcome {
    /// The worker takes no calls any more.
    NotSent,
    Done(Result<Reply, RbdError>),
}

pub(super) struct Process {
    pub(super) pid: u32,
    site_name: String,
    duty: Duty,
    shared: Arc<Shared>,
    site: Weak<Site>,
    state: Mutex<State>,
    order: watch::Sender<Order>,
    load: AtomicUsize,
    next_id: AtomicU64,
}

struct State {
    calls: HashMap<u64, Pending>,
    /// Frames on their way to the worker; `None` closes its stdin.
    to_worker: Option<mpsc::UnboundedSender<Outgoing>>,
    /// When the last call ended; of no meaning while there are calls.
    idle_since: Instant,
    condemned: Option<Instant>,
    /// Takes no more calls, and ends with the last of those that it has.
    parting: bool,
    /// Whether it ever answered.
    sound: bool,
    /// Whether it gave up an operation of Ceph that may still take effect.
    gave_up: bool,
    clients: Vec<(Connection, String)>,
}

struct Pending {
    answer: oneshot::Sender<Result<Reply, RbdError>>,
    progress: Arc<Notify>,
    /// What the worker tells of the data that flows through the call.
    flow: Option<mpsc::UnboundedSender<Told>>,
    op: &'static str,
    site: String,
    probe: bool,
}

/// A call that was sent.
pub(super) struct Begun {
    pub(super) id: u64,
    at: Instant,
    pub(super) answered: oneshot::Receiver<Result<Reply, RbdError>>,
    /// The worker has told that it moves on.
    pub(super) progress: Arc<Notify>,
}

/// Why no more events come from a worker.
enum StreamEnd {
    Closed,
    Garbage(std::io::Error),
}

impl Process {
    /// Starts a worker and the tasks that serve it.
    ///
    /// # Errors
    /// The sentence for the operator.
    pub(super) fn start(
        shared: &Arc<Shared>,
        site: &Arc<Site>,
        site_name: &str,
        duty: Duty,
    ) -> Result<Arc<Process>, String> {
        let began = Instant::now();
        let path = &shared.settings.worker;
        let cannot = |e: &dyn std::fmt::Display| {
            format!(
                "the Ceph worker {} cannot be started ({e}); see option scoria_worker_path",
                path.display()
            )
        };
        let more: &[_] = if duty == Duty::Short { &[] } else { &shared.settings.long_arguments };
        let mut child = Command::new(path)
            .args(&shared.settings.arguments)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| cannot(&e))?;
        let (Some(stdin), Some(stdout), Some(pid)) = (child.stdin.take(), child.stdout.take(), child.id())
        else {
            return Err(cannot(&"it has no pipes"));
        };
        let (to_worker, frames) = mpsc::unbounded_channel();
        let process = Arc::new(Process {
            pid,
            site_name: site_name.to_owned(),
            duty,
            shared: Arc::clone(shared),
            site: Arc::downgrade(site),
            state: Mutex::new(State {
                calls: HashMap::new(),
                to_worker: Some(to_worker),
                idle_since: began,
                condemned: None,
                parting: false,
                sound: false,
                gave_up: false,
                clients: Vec::new(),
            }),
            order: watch::Sender::new(Order::Run),
            load: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
        });
        shared.count(|c| &c.started);
        shared.alive.send_modify(|alive| drop(alive.insert(pid, Arc::clone(&process))));
        tokio::spawn(Arc::clone(&process).write_frames(stdin, frames));
        tokio::spawn(Arc::clone(&process).supervise(child, stdout));
        if duty != Duty::Short {
            tokio::spawn(retire_when_idle(Arc::downgrade(&process), shared.settings.idle));
        }
        info!(worker.pid = pid, site = site_name, ?duty, start_ms = ms(began.elapsed()), "worker started");
        Ok(process)
    }

    /// Whether it takes calls.
    pub(super) fn usable(&self) -> bool {
        let state = lock(&self.state);
        state.condemned.is_none() && !state.parting && state.to_worker.is_some()
    }

    /// Calls under way.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    pub(super) fn info(&self) -> WorkerInfo {
        let state = lock(&self.state);
        WorkerInfo {
            pid: self.pid,
            site: self.site_name.clone(),
            duty: self.duty,
            condemned: state.condemned.is_some(),
            calls: state.calls.len(),
        }
    }

    /// Takes no more calls from now on, and ends when those under way have ended: a worker that lost one would be taken
    /// for one that has left something behind.
    pub(super) fn part(&self) {
        let mut state = lock(&self.state);
        state.parting = true;
        self.end_when_due(state);
    }

    /// Tells the worker's supervisor what is wanted.
    pub(super) fn order(&self, order: Order) {
        if order > Order::Run {
            lock(&self.state).to_worker = None;
        }
        self.order.send_if_modified(|current| {
            let outranks = order > *current;
            if outranks {
                *current = order;
            }
            outranks
        });
    }

    /// Sends a request and waits for its answer until `by`; each progress moves that to `bound` from then, and is told.
    pub(super) async fn call(
        self: &Arc<Self>,
        connection: &Connection,
        request: &Request,
        mut by: Instant,
        bound: Option<Duration>,
        moves: &Moves,
    ) -> Outcome {
        let mut call = match self.begin(connection, request, by, None) {
            Ok(call) => call,
            Err(outcome) => return *outcome,
        };
        loop {
            tokio::select! {
                biased;
                result = &mut call.answered => {
                    return Outcome::Done(result.unwrap_or_else(|_| Err(lost(connection, request))));
                }
                () = call.progress.notified() => {
                    if let Some(bound) = bound {
                        moves.on();
                        by = Instant::now() + bound;
                    }
                }
                () = sleep_until(by) => return self.overdue(call, connection, request).await,
            }
        }
    }

    /// Sends a request. `flow` is told of the data that flows through it.
    ///
    /// # Errors
    /// What came of the call instead.
    pub(super) fn begin(
        &self,
        connection: &Connection,
        request: &Request,
        by: Instant,
        flow: Option<mpsc::UnboundedSender<Told>>,
    ) -> Result<Begun, Box<Outcome>> {
        let at = Instant::now();
        let op = request.name();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = frame::encode(&Call {
            id,
            connection: connection.clone(),
            request: request.clone(),
            deadline_ms: ms(by.saturating_duration_since(at)),
        });
        let frame = frame.map_err(|e| {
            Box::new(Outcome::Done(Err(error(RbdErrorKind::Invalid, op, &connection.site, e.to_string()))))
        })?;
        let (answer, answered) = oneshot::channel();
        let progress = Arc::new(Notify::new());
        let mut state = lock(&self.state);
        if state.condemned.is_some() || state.parting {
            return Err(Box::new(Outcome::NotSent));
        }
        let sent = state.to_worker.as_ref().is_some_and(|to_worker| to_worker.send(frame.into()).is_ok());
        if !sent {
            // Nobody reads any more: so that it is not chosen again.
            state.to_worker = None;
            return Err(Box::new(Outcome::NotSent));
        }
        let (site, probe) = (connection.site.clone(), request.class() == Class::Probe);
        state.calls.insert(id, Pending { answer, progress: Arc::clone(&progress), flow, op, site, probe });
        self.load.store(state.calls.len(), Ordering::Relaxed);
        Ok(Begun { id, at, answered, progress })
    }

    /// Sends more about a call that is under way.
    pub(super) fn send(&self, outgoing: Outgoing) {
        if let Some(to_worker) = &lock(&self.state).to_worker {
            // Nobody reads any more: the call ends with the worker.
            let _ = to_worker.send(outgoing);
        }
    }

    /// A call's time is over.
    pub(super) async fn overdue(&self, call: Begun, connection: &Connection, request: &Request) -> Outcome {
        let op = request.name();
        // An answer that is being delivered right now still counts.
        if !self.condemn(call.id, op, call.at) {
            return Outcome::Done(call.answered.await.unwrap_or_else(|_| Err(lost(connection, request))));
        }
        let after = format!("no answer from the worker after {:.1} s", call.at.elapsed().as_secs_f64());
        Outcome::Done(Err(RbdError {
            errno: libc::ETIMEDOUT,
            ..error(RbdErrorKind::TimedOut, op, &connection.site, after)
        }))
    }

    /// Gives up on call `id` and on the worker; false when the call was no longer open.
    fn condemn(&self, id: u64, op: &str, began: Instant) -> bool {
        let mut state = lock(&self.state);
        if state.calls.remove(&id).is_none() {
            return false;
        }
        self.a_call_has_ended(&mut state);
        self.shared.count(|c| &c.overdue);
        if state.condemned.is_none() {
            state.condemned = Some(Instant::now());
            self.shared.count(|c| &c.condemned);
            warn!(
                worker.pid = self.pid,
                site = self.site_name,
                ceph.op = op,
                waited_ms = ms(began.elapsed()),
                other_calls = state.calls.len(),
                "worker condemned: a call is overdue"
            );
        }
        self.end_when_due(state);
        true
    }

    fn a_call_has_ended(&self, state: &mut State) {
        self.load.store(state.calls.len(), Ordering::Relaxed);
        state.idle_since = Instant::now();
    }

    /// A condemned worker is killed when its last call is over, one that is to go ends then.
    fn end_when_due(&self, state: std::sync::MutexGuard<'_, State>) {
        let (idle, condemned, parting) = (state.calls.is_empty(), state.condemned.is_some(), state.parting);
        drop(state);
        match (idle, condemned, parting) {
            (true, true, _) => self.order(Order::Kill),
            (true, false, true) => self.order(Order::Retire),
            (true, false, false) | (false, ..) => {}
        }
    }

    /// Delivers what the worker tells.
    fn receive(&self, event: Event, data: Option<Bytes>) {
        match event {
            Event::Answer { id, result } => {
                let mut state = lock(&self.state);
                let call = state.calls.remove(&id);
                self.a_call_has_ended(&mut state);
                let first = !std::mem::replace(&mut state.sound, true);
                // A probe touches an object of its own and nothing else.
                let silent = result.as_ref().is_err_and(RbdError::effect_unknown);
                state.gave_up |= silent && call.as_ref().is_some_and(|c| !c.probe);
                self.end_when_due(state);
                if first && let Some(site) = self.site.upgrade() {
                    site.worker_is_sound();
                }
                // Not there: it was overdue. Nobody listening: the runtime is ending.
                if let Some(call) = call {
                    let _ = call.answer.send(result);
                }
            }
            Event::Progress { id, done: _, total: _ } => {
                if let Some(call) = lock(&self.state).calls.get(&id) {
                    call.progress.notify_one();
                }
            }
            Event::Part { id, offset } => {
                self.tell(id, Told::Part(Part { offset, data: data.unwrap_or_default() }));
            }
            Event::Taken { id } => self.tell(id, Told::Taken),
            Event::Connected { connection, address, fsid } => {
                if let Some(observer) = &self.shared.observer {
                    observer.started(&connection, &fsid, self.pid, &address);
                }
                lock(&self.state).clients.push((connection, address));
            }
        }
    }

    fn tell(&self, id: u64, what: Told) {
        if let Some(flow) = lock(&self.state).calls.get(&id).and_then(|call| call.flow.as_ref()) {
            // Nobody listening: the call is about to end.
            let _ = flow.send(what);
        }
    }

    /// Watches the process until it is reaped, then settles its affairs.
    async fn supervise(self: Arc<Self>, mut child: Child, stdout: ChildStdout) {
        let mut reader = tokio::spawn(Arc::clone(&self).read_events(stdout));
        let mut orders = self.order.subscribe();
        let mut ended = None;
        let mut killed = false;
        // The sender lives in `self`, so that waiting for an order cannot fail.
        let told_to_end = async {
            let retire = matches!(orders.wait_for(|o| *o > Order::Run).await.as_deref(), Ok(Order::Retire));
            if retire {
                let _ = timeout(RETIRE_GRACE, orders.wait_for(|o| *o == Order::Kill)).await;
            }
        };
        tokio::select! {
            end = &mut reader => ended = Some(end),
            () = told_to_end => {}
        }
        // No new calls from here on, whatever the reason.
        lock(&self.state).to_worker = None;
        // A pipe that was closed means a process that is ending; anything else is ended here.
        if matches!(ended, Some(Ok(StreamEnd::Closed))) {
            let _ = timeout(RETIRE_GRACE, child.wait()).await;
        }
        if let Ok(None) = child.try_wait() {
            killed = child.start_kill().is_ok();
        }
        let status = child.wait().await;
        // Answers that it had already written count.
        let end = match ended {
            Some(end) => end,
            None => reader.await,
        };
        let garbage = match end {
            Ok(StreamEnd::Garbage(e)) => Some(e.to_string()),
            _ => None,
        };
        let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        self.settle(killed, &status, garbage.as_deref());
    }

    async fn read_events(self: Arc<Self>, mut stdout: ChildStdout) -> StreamEnd {
        loop {
            let (event, data) = match frame::read_async(&mut stdout).await {
                Ok(Some(frame)) => (frame::decode::<Event>(&frame.json), frame.data),
                Ok(None) => return StreamEnd::Closed,
                Err(e) => return StreamEnd::Garbage(e),
            };
            match event {
                Ok(event) => self.receive(event, data),
                Err(e) => return StreamEnd::Garbage(e),
            }
        }
    }

    /// The process is reaped: fails what it owes, tells who must know.
    fn settle(&self, killed: bool, status: &str, garbage: Option<&str>) {
        let (calls, clients, condemned, sound, gave_up) = {
            let mut state = lock(&self.state);
            self.load.store(0, Ordering::Relaxed);
            let calls: Vec<Pending> = state.calls.drain().map(|(_, call)| call).collect();
            (calls, std::mem::take(&mut state.clients), state.condemned, state.sound, state.gave_up)
        };
        let wanted = *self.order.borrow();
        let (pid, site) = (self.pid, self.site_name.as_str());
        let lost_calls = calls.len();
        let at_rest = calls.iter().all(|c| c.probe) && condemned.is_none() && !gave_up;
        let ending = if at_rest { Ending::AtRest } else { Ending::AtWork };
        // Its pipe is closed before it is killed, so it may have ended first.
        if killed || wanted == Order::Kill {
            self.shared.count(|c| &c.killed);
            let condemned_ms = condemned.map(|since| ms(since.elapsed()));
            warn!(worker.pid = pid, site, condemned_ms, lost_calls, garbage, "worker killed");
        } else if wanted == Order::Retire {
            info!(worker.pid = pid, site, status, "worker ended");
        } else {
            self.shared.count(|c| &c.died);
            warn!(worker.pid = pid, site, status, lost_calls, garbage, "worker died");
        }
        if !sound
            && wanted == Order::Run
            && let Some(site) = self.site.upgrade()
        {
            site.worker_was_stillborn();
        }
        for call in calls {
            self.shared.count(|c| &c.lost);
            let message = match garbage {
                Some(what) => format!("worker {pid} wrote nonsense and was killed: {what}"),
                None => format!("worker {pid} ended under the call ({status})"),
            };
            let _ = call.answer.send(Err(error(RbdErrorKind::WorkerLost, call.op, &call.site, message)));
        }
        if let Some(observer) = &self.shared.observer {
            for (connection, address) in &clients {
                observer.gone(connection, pid, address, ending);
            }
        }
        self.shared.alive.send_modify(|alive| drop(alive.remove(&pid)));
    }

    /// Writes frames until the channel closes, then closes the pipe. Apart from everything else, because
    /// a stopped worker blocks it.
    async fn write_frames(
        self: Arc<Self>,
        mut stdin: ChildStdin,
        mut frames: mpsc::UnboundedReceiver<Outgoing>,
    ) {
        while let Some(frame) = frames.recv().await {
            let written = async {
                stdin.write_all(&frame.head).await?;
                stdin.write_all(&frame.data).await
            };
            if written.await.is_err() {
                drop(frames);
                lock(&self.state).to_worker = None;
                // Its end is normally seen by the reader; a worker that only closed its pipe is of no use.
                sleep(RETIRE_GRACE).await;
                self.order(Order::Kill);
                return;
            }
        }
    }
}

pub(super) fn lost(connection: &Connection, request: &Request) -> RbdError {
    error(RbdErrorKind::WorkerLost, request.name(), &connection.site, "the worker was lost")
}

/// Ends a worker that has had nothing to do for `limit`. A call that was about to be sent to it finds that out
/// and goes elsewhere.
async fn retire_when_idle(process: Weak<Process>, limit: Duration) {
    let mut look = Instant::now() + limit;
    loop {
        sleep_until(look).await;
        let Some(process) = process.upgrade() else { return };
        let state = lock(&process.state);
        let now = Instant::now();
        look = if state.calls.is_empty() { state.idle_since + limit } else { now + limit };
        drop(state);
        if look <= now {
            process.order(Order::Retire);
            return;
        }
    }
}
