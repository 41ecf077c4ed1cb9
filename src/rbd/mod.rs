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

pub use error::{RbdError, RbdErrorKind};
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
    /// instead: it begins when the request has its turn, and anew each time that it moves on.
    async fn execute(
        &self,
        connection: &Connection,
        request: Request,
        deadline: Duration,
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

/// One Ceph site as seen by one client: what a volume operation holds.
#[derive(Clone)]
pub struct Site {
    ceph: Arc<dyn Ceph>,
    connection: Connection,
    flattens: Option<Arc<Semaphore>>,
    silence: Arc<Silence>,
    identity: Arc<Identity>,
}

impl Site {
    /// A handle; nothing is connected until the first call.
    pub fn new(ceph: Arc<dyn Ceph>, connection: Connection) -> Self {
        Site { ceph, connection, flattens: None, silence: Arc::default(), identity: Arc::default() }
    }

    /// The same site, whose flattens wait for a place among those of everybody who shares `places`.
    #[must_use]
    pub fn sharing_flattens(self, places: Arc<Semaphore>) -> Self {
        Site { flattens: Some(places), ..self }
    }

    /// A handle on another site, by the same workers or simulator.
    #[must_use]
    pub fn elsewhere(&self, connection: Connection) -> Self {
        Site::new(self.ceph.clone(), connection)
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
        let reply = self.ceph.execute(&self.connection, Fsid {}.into_request(), deadline).await?;
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
    /// another call that was overdue: that is no answer, so it is asked again.
    pub async fn insist<C: Command + Clone>(&self, command: C) -> Result<C::Reply, RbdError> {
        self.insist_within(C::CLASS.deadline(), command).await
    }

    /// The same, each time with a deadline of the caller's.
    pub async fn insist_within<C: Command + Clone>(
        &self,
        deadline: Duration,
        command: C,
    ) -> Result<C::Reply, RbdError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.call_within(deadline, command.clone()).await {
                Err(error) if error.kind == RbdErrorKind::WorkerLost && tries < 3 => {}
                other => return other,
            }
        }
    }

    /// Runs `command` with a deadline of the caller's.
    pub async fn call_within<C: Command>(
        &self,
        deadline: Duration,
        command: C,
    ) -> Result<C::Reply, RbdError> {
        // A probe says whether a cluster lives, whichever it is; and somebody must be able to ask.
        if C::CLASS != Class::Probe && C::NAME != Fsid::NAME && !self.identity.is_settled() {
            self.admit(C::NAME, deadline).await?;
        }
        let reply = self.ceph.execute(&self.connection, command.into_request(), deadline).await?;
        // A probe speaks for one half only: whoever makes it says so.
        if C::CLASS != Class::Probe {
            self.silence.broken_whole();
        }
        C::from_reply(reply)
    }
}
