//! The boundary to Ceph.
//!
//! librbd blocks, hangs on a dead cluster and sometimes aborts the process it lives in. So nothing in
//! the service links it: every call is a typed [`protocol::Command`] that is sent, with a deadline, to
//! a worker process ([`pool`]) which may be killed at any time, or to the in-memory simulator
//! ([`sim`]). Both stand behind one trait, [`Ceph`], and one behaviour suite runs against both.

pub mod delta;
pub mod error;
mod ffi;
pub mod frame;
pub mod hearing;
pub mod identity;
pub mod link;
pub mod mirror_survey;
pub mod pool;
pub mod protocol;
mod schedule;
pub mod silence;
pub mod sim;
pub mod stream;
pub mod sums;
pub mod types;
pub mod worker;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::warn;

pub use error::{RbdError, RbdErrorKind};
use hearing::{Hearing, Moves, Needed};
pub use identity::Identity;
use protocol::{Class, Fsid};
pub use protocol::{Command, Connection, Reply, Request};
use silence::Silence;
use stream::Flow;

/// Something that carries out requests against Ceph sites: the pool of worker processes, or the
/// simulator.
#[async_trait]
pub trait Ceph: Send + Sync + 'static {
    /// Runs one request on the site that `connection` leads to.
    ///
    /// Returns by `deadline` at the latest, with [`RbdErrorKind::TimedOut`] when Ceph did not answer;
    /// whether the request had an effect is then unknown, so every caller repeats or checks it. For work on
    /// data ([`protocol::Class::starts_anew_with_progress`]) the deadline bounds the time without progress
    /// instead: it begins when the request has its turn, and anew each time that it moves on, which `moves` is told.
    async fn execute(
        &self,
        connection: &Connection,
        request: Request,
        deadline: Duration,
        moves: &Moves,
    ) -> Result<Reply, RbdError>;

    /// Runs one request whose data flows through `flow` meanwhile; of those only. The deadline bounds the time that
    /// the worker takes for a part, not the time that it waits for the next one or for somebody to take one.
    async fn stream(
        &self,
        connection: &Connection,
        request: Request,
        deadline: Duration,
        flow: Flow,
    ) -> Result<Reply, RbdError>;

    /// Nothing more is to be asked by this connection: what is kept open for it may be closed.
    fn leave(&self, _connection: &Connection) {}
}

/// So many workers a command that may be repeated is let lose before it is given up: each may have died for the sake of
/// another call, but one that kills its worker each time must end.
const LOSSES: u32 = 3;

/// One Ceph site as seen by one client: what a volume operation holds.
#[derive(Clone)]
pub struct Site {
    ceph: Arc<dyn Ceph>,
    connection: Connection,
    flattens: Option<Arc<Semaphore>>,
    silence: Arc<Silence>,
    identity: Arc<Identity>,
    hearing: Option<Arc<Hearing>>,
    is_brief: bool,
}

impl Site {
    /// A handle; nothing is connected until the first call.
    pub fn new(ceph: Arc<dyn Ceph>, connection: Connection) -> Self {
        Site {
            ceph,
            connection,
            flattens: None,
            silence: Arc::default(),
            identity: Arc::default(),
            hearing: None,
            is_brief: false,
        }
    }

    /// The same site, with which work goes on as `hearing` has it: its calls have no longer deadlines than that, and what
    /// may be repeated is asked again while the site is silent ([`Site::insist`]).
    #[must_use]
    pub fn heard_by(self, hearing: &Arc<Hearing>) -> Self {
        Site { hearing: Some(Arc::clone(hearing)), ..self }
    }

    /// The same site, which is not asked again when it is silent: for what is tidied up when work has failed.
    #[must_use]
    pub fn briefly(self) -> Self {
        Site { is_brief: true, ..self }
    }

    /// Whether the site has been silent for so long that nobody waits for it any more; never so without
    /// [`Site::heard_by`].
    pub fn is_given_up(&self) -> bool {
        self.hearing.as_ref().is_some_and(|hearing| hearing.has_given_up(&self.connection))
    }

    /// The same site, whose flattens wait for a place among those of everybody who shares `places`.
    #[must_use]
    pub fn sharing_flattens(self, places: Arc<Semaphore>) -> Self {
        Site { flattens: Some(places), ..self }
    }

    /// A handle on another site, by the same workers or simulator.
    #[must_use]
    pub fn elsewhere(&self, connection: Connection) -> Self {
        let hearing = self.hearing.clone();
        Site { hearing, ..Site::new(self.ceph.clone(), connection) }
    }

    /// A place among the flattens that may run at once; hold it while flattening.
    pub async fn place_to_flatten(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes the semaphore.
        self.flattens.clone()?.acquire_owned().await.ok()
    }

    /// Closes what is kept open for its connection, which nobody else uses: that of a look at a site that no
    /// backend works with. The next call opens it again.
    pub fn leave(&self) {
        self.ceph.leave(&self.connection);
    }

    /// How the site is reached, and its name.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// `default` for the configured primary, else the `backend_id` of a `replication_device`.
    pub fn name(&self) -> &str {
        &self.connection.site
    }

    /// What the site has left unanswered, as far as this handle and its clones know.
    pub fn silence(&self) -> &Silence {
        &self.silence
    }

    /// Which cluster it must be, and is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Asks which cluster it is, and remembers it.
    ///
    /// # Errors
    /// What Ceph answers.
    pub async fn fsid(&self, deadline: Duration) -> Result<String, RbdError> {
        let request = Fsid {}.into_request();
        let reply = self.ceph.execute(&self.connection, request, deadline, &Moves::default()).await?;
        let fsid = Fsid::from_reply(reply)?;
        self.identity.is(&fsid);
        Ok(fsid)
    }

    /// Fails when it is another cluster than it must be; asks it first when nobody has.
    // Boxed: it is a part of every call to Ceph that is awaited anywhere.
    fn admit<'a>(
        &'a self,
        op: &'a str,
        deadline: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<(), RbdError>> + Send + 'a>> {
        Box::pin(async move {
            if self.identity.is_open() {
                self.fsid(deadline).await?;
            }
            let Some(stranger) = self.identity.stranger() else { return Ok(()) };
            Err(RbdError {
                kind: RbdErrorKind::Other,
                op: op.to_owned(),
                site: self.name().to_owned(),
                errno: libc::ESTALE,
                message: format!(
                    "the site is cluster {}, and not {}, where its volumes are: nothing was asked of it",
                    stranger.found, stranger.expected
                ),
            })
        })
    }

    /// Runs `command` with the deadline of its class.
    pub async fn call<C: Command>(&self, command: C) -> Result<C::Reply, RbdError> {
        let deadline = C::CLASS.deadline();
        self.call_within(deadline, command).await
    }

    /// Runs a `command` that may be repeated without harm. Its worker may die under it for the sake of
    /// another call that was overdue: that is no answer, so it is asked again. So it is when the site is silent, if
    /// somebody has said for how long ([`Site::heard_by`]).
    pub async fn insist<C: Command + Clone>(&self, command: C) -> Result<C::Reply, RbdError> {
        self.insist_within(C::CLASS.deadline(), command).await
    }

    /// The same, each time with a deadline of the caller's.
    pub async fn insist_within<C: Command + Clone>(
        &self,
        deadline: Duration,
        command: C,
    ) -> Result<C::Reply, RbdError> {
        let (mut tries, mut silences, mut since) = (0, 0, Instant::now());
        loop {
            let moves = Moves::default();
            let error = match self.attempt(deadline, since, command.clone(), &moves).await {
                Err(error) => error,
                answered => return answered,
            };
            since = moves.last().unwrap_or(since);
            match error.kind {
                RbdErrorKind::WorkerLost if tries < LOSSES => tries += 1,
                RbdErrorKind::TimedOut | RbdErrorKind::Unreachable if self.goes_on(&command, since) => {
                    silences += 1;
                    if silences == 1 {
                        warn!(site = self.name(), ceph.op = C::NAME, %error, "a site is silent: it is asked again");
                    }
                    tokio::time::sleep(hearing::PAUSE).await;
                }
                _ => return Err(error),
            }
        }
    }

    fn goes_on<C: Command + Clone>(&self, command: &C, since: Instant) -> bool {
        let hearing = self.hearing.as_ref().filter(|_| !self.is_brief);
        hearing.is_some_and(|hearing| {
            hearing.goes_on(&Needed::by(&self.connection, &command.clone().into_request()), since)
        })
    }

    /// Whether somebody who has been waiting for an answer since then asks the site again, after a pause: for commands that
    /// are repeated with care. Never so without [`Site::heard_by`].
    pub async fn may_be_back(&self, since: Instant) -> bool {
        let needed = Needed { one: &self.connection, other: None };
        let hearing = self.hearing.as_ref().filter(|_| !self.is_brief);
        let goes_on = hearing.is_some_and(|hearing| hearing.goes_on(&needed, since));
        if goes_on {
            tokio::time::sleep(hearing::PAUSE).await;
        }
        goes_on
    }

    /// Runs `command` with a deadline of the caller's.
    pub async fn call_within<C: Command>(
        &self,
        deadline: Duration,
        command: C,
    ) -> Result<C::Reply, RbdError> {
        self.attempt(deadline, Instant::now(), command, &Moves::default()).await
    }

    /// One call, for somebody who has been waiting for its answer since then.
    async fn attempt<C: Command>(
        &self,
        deadline: Duration,
        since: Instant,
        command: C,
        moves: &Moves,
    ) -> Result<C::Reply, RbdError> {
        let request = command.into_request();
        let Some(hearing) = &self.hearing else {
            return C::from_reply(self.ask(deadline, request, moves).await?);
        };
        let needed = Needed::by(&self.connection, &request);
        let deadline = hearing.deadline(&needed, since, deadline);
        let reply = self.ask(deadline, request, moves).await;
        hearing.note(&needed, moves.last(), reply.as_ref().err());
        C::from_reply(reply?)
    }

    async fn ask(&self, deadline: Duration, request: Request, moves: &Moves) -> Result<Reply, RbdError> {
        let (class, name) = (request.class(), request.name());
        // A probe says whether a cluster lives, whichever it is; and somebody must be able to ask.
        if class != Class::Probe && name != Fsid::NAME && !self.identity.is_settled() {
            self.admit(name, deadline).await?;
        }
        let reply = self.ceph.execute(&self.connection, request, deadline, moves).await?;
        // A probe speaks for one half only: whoever makes it says so.
        if class != Class::Probe {
            self.silence.broken_whole();
        }
        Ok(reply)
    }
}
