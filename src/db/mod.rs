//! Cinder's database: the rows that cinder-api, cinder-scheduler and Nova's calls see.
//!
//! Everything here must survive a server that restarts, a deadlock, and an answer that is lost on
//! the way. [`Db::read`] and [`Db::write`] take a closure, run it, and run it again when the failure
//! was one that a second try can cure ([`error::classify`]). One file per noun holds the statements;
//! their functions take `&mut Conn` and so join whatever transaction the caller has open.
//!
//! ```ignore
//! let size = db.read("volume size", async |conn| Ok(volume::get(conn, &id).await?.size)).await?;
//! db.write("created", async |conn| {
//!     operation.close(conn, &outcome).await?;
//!     volume::transition(conn, &id, VolumeEvent::Created, &changes).await
//! }).await?;
//! ```

pub mod admin;
pub mod adoption;
pub mod attachment;
pub mod audit;
pub mod backend;
pub mod backend_site;
pub mod backend_type;
pub mod backup;
pub mod backup_audit;
pub mod backup_order;
pub mod backup_place;
pub mod backup_retention;
pub mod backup_schedule;
pub mod backup_work;
pub mod cluster;
mod connection;
pub mod contents;
pub mod displaced;
pub mod drill;
pub mod error;
pub mod failing_over;
pub mod failover;
pub mod fence;
pub mod group;
pub mod group_replication;
pub mod group_snapshot;
pub mod image_cache;
pub mod label;
pub mod lag;
pub mod manageable;
pub mod message;
pub mod migration;
pub mod mirror_daemon;
pub mod moving;
pub mod peer_link;
pub mod quota;
pub mod rehost;
pub mod schedule;
pub mod schema;
mod scope;
pub mod service;
pub mod site;
pub mod site_use;
pub mod snapshot;
pub mod stray;
mod tls;
pub mod unfinished;
pub mod volume;
pub mod volume_type;
pub mod worker;

use std::sync::Arc;
use std::time::Duration;

use chrono::{NaiveDateTime, Utc};
use diesel::connection::TransactionManagerStatus;
use diesel_async::{AnsiTransactionManager, SimpleAsyncConnection, TransactionManager};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

pub use connection::Conn;
pub use scope::InScope;
use scope::scope_condition;

use crate::config::DatabaseConfig;
use crate::error::{Code, Error, Result};
use connection::{Connections, Lease, Shared, jittered};
use error::{Failure, classify, failure};

/// How often one transaction is run before its deadlock is reported. Waiting for a server that is
/// away does not count.
const ATTEMPTS: u32 = 12;

/// How long one run of a closure may take. A server that hangs, or a network that swallows packets,
/// looks like a slow statement; lock waits end after 15 s, so nothing honest takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// An async closure over one connection whose future can cross threads. Write it as
/// `async |conn| …`, without `move`: it may run several times and borrows what it uses.
pub trait Work<T, R>: AsyncFn(T) -> R + Fn(T) -> <Self as Work<T, R>>::Fut {
    /// The future that the closure returns.
    type Fut: Future<Output = R>;
}

impl<F, T, Fut, R> Work<T, R> for F
where
    F: AsyncFn(T) -> R + Fn(T) -> Fut,
    Fut: Future<Output = R>,
{
    type Fut = Fut;
}

/// The database. Cheap to clone; connects when it is first needed.
#[derive(Clone)]
pub struct Db {
    connections: Shared,
    patience: Duration,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Db")
    }
}

/// What running the closure once came to.
enum Attempt<R> {
    Done(R),
    Failed(Error),
    /// COMMIT was sent and nothing came back.
    CommitUnknown {
        result: R,
        marker: Uuid,
        error: Error,
    },
}

impl Db {
    /// A handle on the database of `[database] connection`. Opens nothing yet, so a server that is
    /// away delays the first statement, not the start.
    pub fn connect(config: &DatabaseConfig) -> Db {
        Db { connections: Arc::new(Connections::new(config)), patience: PATIENCE }
    }

    /// The same database with another limit for one run of a closure, after which the server counts as
    /// hung and the connection as lost (60 s).
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Db {
        Db { patience, ..self }
    }

    /// Tries once to reach the server: for `--check-config` and tools.
    ///
    /// # Errors
    /// `Database`, with the server's reason.
    pub async fn check(&self) -> Result<()> {
        let mut lease = self.connections.try_get().await?;
        lease.conn().batch_execute("SELECT 1").await?;
        lease.give_back();
        Ok(())
    }

    /// Runs statements without a transaction: reads, and single changes that may safely be made
    /// twice (a heartbeat, a lease renewal, the step of an operation). Waits while the server is
    /// away; runs the closure again after a deadlock or a lost connection.
    ///
    /// # Errors
    /// What the closure returned, or `Database` after twelve attempts.
    pub async fn read<R, F>(&self, label: &'static str, work: F) -> Result<R>
    where
        for<'r> F:
            AsyncFn(&'r mut Conn) -> Result<R> + Work<&'r mut Conn, Result<R>, Fut: Send> + Send + Sync,
        R: Send,
    {
        let mut retry = Retry::new(label);
        loop {
            let mut lease = self.connections.get(label).await;
            match patiently(self.patience, work(lease.conn())).await {
                Ok(value) => {
                    lease.give_back();
                    return Ok(value);
                }
                Err(error) => self.after_failure(&mut retry, lease, error).await?,
            }
        }
    }

    /// Runs the closure in one transaction, and again if it deadlocked, timed out waiting for a lock
    /// or lost its connection. When the answer to COMMIT is lost, it is found out whether the server
    /// committed; only if it did not is the closure run again.
    ///
    /// # Errors
    /// What the closure returned (after ROLLBACK), or `Database` after twelve attempts.
    pub async fn write<R, F>(&self, label: &'static str, work: F) -> Result<R>
    where
        for<'r> F:
            AsyncFn(&'r mut Conn) -> Result<R> + Work<&'r mut Conn, Result<R>, Fut: Send> + Send + Sync,
        R: Send,
    {
        let mut retry = Retry::new(label);
        loop {
            let mut lease = self.connections.get(label).await;
            match attempt(lease.conn(), &work, self.patience).await {
                Attempt::Done(value) => {
                    lease.give_back();
                    return Ok(value);
                }
                Attempt::Failed(error) => self.after_failure(&mut retry, lease, error).await?,
                Attempt::CommitUnknown { result, marker, error } => {
                    drop(lease);
                    self.connections.discard_idle();
                    if self.was_committed(label, marker).await? {
                        return Ok(result);
                    }
                    retry.next(error).await?;
                }
            }
        }
    }

    /// Decides what became of a transaction whose COMMIT was not answered.
    ///
    /// Every transaction inserts a row with a fresh id into `scoria_commits`, in the same packet as
    /// its COMMIT. Inserting that id once more settles the matter for good: if it is refused, the
    /// transaction committed; if it is accepted, the old transaction can never commit, even if it
    /// still sits in some buffer on the way; and while the old one is undecided, the server lets us
    /// wait for it.
    async fn was_committed(&self, label: &'static str, marker: Uuid) -> Result<bool> {
        let mut retry = Retry::new(label);
        loop {
            let mut lease = self.connections.get(label).await;
            let sql = insert_marker(marker);
            let inserted = match timeout(self.patience, lease.conn().batch_execute(&sql)).await {
                Ok(inserted) => inserted,
                Err(_) => Err(hung(self.patience)),
            };
            match inserted {
                Ok(()) => {
                    lease.give_back();
                    tracing::warn!(label, "a commit went unanswered and did not happen; trying again");
                    return Ok(false);
                }
                Err(e) if classify(&e) == Failure::Duplicate => {
                    lease.give_back();
                    tracing::warn!(label, "a commit went unanswered but had happened");
                    return Ok(true);
                }
                Err(e) => self.after_failure(&mut retry, lease, e.into()).await?,
            }
        }
    }

    /// Returns when the closure should be tried again.
    async fn after_failure(&self, retry: &mut Retry, lease: Lease, error: Error) -> Result<()> {
        match failure(&error) {
            Failure::Again => lease.give_back(),
            Failure::Lost => {
                drop(lease);
                self.connections.discard_idle();
            }
            Failure::Duplicate | Failure::Final => {
                lease.give_back();
                return Err(error);
            }
        }
        retry.next(error).await
    }
}

/// Counts attempts and waits between them.
struct Retry {
    label: &'static str,
    attempt: u32,
}

impl Retry {
    fn new(label: &'static str) -> Self {
        Retry { label, attempt: 0 }
    }

    async fn next(&mut self, error: Error) -> Result<()> {
        self.attempt += 1;
        if self.attempt >= ATTEMPTS {
            tracing::error!(label = self.label, attempts = self.attempt, %error, "giving up a database change");
            return Err(error);
        }
        tracing::debug!(label = self.label, attempt = self.attempt, %error, "trying a database change again");
        let pause = Duration::from_millis(5) * 2_u32.pow(self.attempt.min(8));
        sleep(jittered(pause)).await;
        Ok(())
    }
}

/// The error of a server that does not answer, as the driver would report a lost connection.
fn hung(patience: Duration) -> diesel::result::Error {
    let text = format!("Input/output error: no answer within {} s", patience.as_secs_f64());
    diesel::result::Error::DatabaseError(diesel::result::DatabaseErrorKind::ClosedConnection, Box::new(text))
}

async fn patiently<R>(patience: Duration, work: impl Future<Output = Result<R>>) -> Result<R> {
    match timeout(patience, work).await {
        Ok(result) => result,
        Err(_) => Err(hung(patience).into()),
    }
}

async fn attempt<R, F>(conn: &mut Conn, work: &F, patience: Duration) -> Attempt<R>
where
    for<'r> F: AsyncFn(&'r mut Conn) -> Result<R> + Work<&'r mut Conn, Result<R>, Fut: Send> + Send + Sync,
    R: Send,
{
    let begun = patiently(patience, async {
        AnsiTransactionManager::begin_transaction(conn).await?;
        work(conn).await
    });
    match begun.await {
        Ok(result) => {
            let marker = Uuid::new_v4();
            let commit = format!("{}; COMMIT", insert_marker(marker));
            let committed = match timeout(patience, conn.batch_execute(&commit)).await {
                Ok(committed) => committed,
                Err(_) => Err(hung(patience)),
            };
            match committed {
                Ok(()) => {
                    // The manager did not see our COMMIT.
                    *AnsiTransactionManager::transaction_manager_status_mut(conn) =
                        TransactionManagerStatus::default();
                    Attempt::Done(result)
                }
                Err(e) if classify(&e) == Failure::Lost => {
                    Attempt::CommitUnknown { result, marker, error: e.into() }
                }
                Err(e) => roll_back(conn, e.into()).await,
            }
        }
        Err(error) => roll_back(conn, error).await,
    }
}

async fn roll_back<R>(conn: &mut Conn, error: Error) -> Attempt<R> {
    if failure(&error) == Failure::Lost {
        return Attempt::Failed(error);
    }
    match AnsiTransactionManager::rollback_transaction(conn).await {
        Ok(()) => Attempt::Failed(error),
        // The caller's own error matters more, but this connection must not be used again; it is
        // not, because its transaction manager stays broken and the pool refuses it.
        Err(rollback) => {
            tracing::debug!(error = %rollback, "a rollback failed");
            Attempt::Failed(error)
        }
    }
}

/// The id is generated here, so that it needs no quoting.
fn insert_marker(marker: Uuid) -> String {
    format!("INSERT INTO scoria_commits (id, created_at) VALUES ('{marker}', UTC_TIMESTAMP())")
}

/// The time that Cinder's rows get: naive UTC of this host, as stock writes it.
pub fn now() -> NaiveDateTime {
    Utc::now().naive_utc()
}

/// The alembic revision of Cinder's schema, e.g. `9c74c1c6971f`; `None` when the table is empty.
///
/// # Errors
/// `Database`; also when the schema is not Cinder's.
pub async fn schema_revision(conn: &mut Conn) -> Result<Option<String>> {
    use diesel::OptionalExtension;
    use diesel::prelude::*;
    use diesel_async::RunQueryDsl;
    Ok(schema::alembic_version::table
        .select(schema::alembic_version::version_num)
        .first::<String>(conn)
        .await
        .optional()?)
}

/// A free text cut to what a `VARCHAR(characters)` of Cinder's takes: its tables are utf8mb3, and strict
/// mode refuses what does not fit.
fn fitting(text: &str, characters: usize) -> String {
    text.chars().take(characters).map(|c| if c > '\u{FFFF}' { '?' } else { c }).collect()
}

/// A value that goes into a statement's text: only what cannot end a literal.
///
/// # Errors
/// `InvalidUuid` for anything but letters, digits, `-` and `_`.
fn literal(id: &str) -> Result<&str> {
    if id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        Ok(id)
    } else {
        Err(Error::new(Code::InvalidUuid, format!("Expected a uuid but received {}.", id.escape_debug())))
    }
}
