//! Nothing accepted is lost: every request that changes something is written down before it is
//! acknowledged, and stays written down until it has ended.
//!
//! An *operation* is one row of `scoria_operations` plus its steps. It has an owner, a lease on database
//! time and an epoch that grows with every change of owner. Whoever writes a step or an end must name
//! the epoch, so a service that was thought dead and comes back cannot spoil its successor's work: its
//! writes match nothing and it gets `Cancelled`.
//!
//! What is persisted, and why:
//! - the request without its token: to run it again after a crash;
//! - steps: to know how far it came, for the operation and for each of its volumes;
//! - the outcome with the reply: to answer a call whose service died between its end and its answer;
//! - addresses of our librados clients (`clients`): to fence them before their work is taken over.

mod admin;
mod clients;
mod history;
mod inquiry;
mod insert;
mod lease;
mod lock;
mod operation;
mod request;
mod submit;
mod types;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Datetime};
use diesel_async::RunQueryDsl;
use tokio::sync::watch;
use uuid::Uuid;

pub use admin::{Listing, ListingFilter};
pub use clients::RbdClient;
pub use history::Past;
pub use operation::{Operation, Step};
pub use request::Request;
pub use submit::{Item, Progress, Submitted};
pub use types::{Accept, Ending, JournalOptions, NewOperation, Outcome, Owner, PendingReply, ReplyTo};

use crate::db::schema::scoria_operations as ops;
use crate::db::worker::{self, Worker};
use crate::db::{Conn, Db, Work};
use crate::error::{Code, Error, Result};
use crate::model::Scope;
use insert::insert;
use operation::Inner as OperationInner;

/// The journal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    db: Db,
    host: String,
    options: JournalOptions,
    state: Mutex<State>,
    losses: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    /// Our name in `owner`; replaced when a lease was lost.
    instance: String,
    /// What we hold: renewal knows from here what it must find.
    open: HashMap<i64, Held>,
}

#[derive(Debug)]
struct Held {
    operation: Operation,
    /// Start of the last statement that set `lease_until`.
    renewed: Instant,
}

impl Journal {
    /// A journal in the given database, written as `owner`.
    pub fn new(db: Db, owner: Owner, options: JournalOptions) -> Self {
        let (losses, _) = watch::channel(0);
        Journal {
            shared: Arc::new(Shared {
                db,
                host: owner.host,
                options,
                state: Mutex::new(State { instance: owner.instance, open: HashMap::new() }),
                losses,
            }),
        }
    }

    /// The database it lives in.
    pub fn db(&self) -> &Db {
        &self.shared.db
    }

    /// Who we are at this moment; the instance changes when a lease was lost.
    pub fn owner(&self) -> Owner {
        Owner { instance: self.state().instance.clone(), host: self.shared.host.clone() }
    }

    /// Changes whenever the lease of our operations was lost: everything of ours was cancelled
    /// (`Operation::lost`), workers must be killed, and then [`Journal::adopt`] may take the work up
    /// again, if nobody else has.
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.shared.losses.subscribe()
    }

    /// How many operations this process has open.
    pub fn open_count(&self) -> usize {
        self.state().open.len()
    }

    /// Writes a request down, with the claim on Cinder's `workers` row, in one transaction. When this
    /// returns, the message may be acknowledged.
    ///
    /// # Errors
    /// `MalformedMessage` when a name or id of the message is longer than any real one;
    /// `CleanableInUse` when others keep changing the `workers` row; `Database`.
    pub async fn accept(&self, mut new: NewOperation) -> Result<Accept> {
        if new.unique_id.is_empty() {
            new.unique_id = Uuid::new_v4().simple().to_string();
        }
        new.check()?;
        let owner = self.owner();
        let began = Instant::now();
        let accepted = self
            .shared
            .db
            .write("accept", async |conn| {
                let Some(id) = insert(conn, &new, Some((&owner, self.shared.options.lease))).await? else {
                    return Ok(None);
                };
                let worker = match &new.claim {
                    Some(claim) => Some(worker::claim(conn, claim).await?),
                    None => None,
                };
                Ok(Some((id, worker)))
            })
            .await?;
        let Some((id, worker)) = accepted else {
            return Ok(Accept::Duplicate);
        };
        let operation = Operation::new(OperationInner {
            id,
            epoch: 1,
            unique_id: new.unique_id,
            method: new.method,
            backend_host: new.backend_host,
            cluster: new.cluster,
            request: new.request,
            resource: new.resource,
            reply: new.reply,
            overdue: false,
            former: None,
            worker,
            db: self.shared.db.clone(),
            lost: tokio_util::sync::CancellationToken::new(),
        });
        self.hold(&owner, operation.clone(), began);
        Ok(Accept::New(operation))
    }

    /// Takes over open operations of a backend or cluster: those whose lease has run out, and those of
    /// former instances on this machine, which are dead whatever their lease says. Kill or fence their
    /// workers before running them ([`Operation::former`], [`Journal::clients_of`]).
    ///
    /// # Errors
    /// `Database`.
    pub async fn adopt(&self, scope: &Scope) -> Result<Vec<Operation>> {
        let owner = self.owner();
        let began = Instant::now();
        let rows: Vec<(Row, bool)> = self
            .shared
            .db
            .write("adopt", async |conn| {
                let query = ops::table
                    .filter(ops::state.eq("open"))
                    .filter(
                        ops::lease_until
                            .lt(db_now())
                            .or(ops::owner_host.eq(&owner.host).and(ops::owner.ne(&owner.instance))),
                    )
                    .select((Row::as_select(), sql::<Bool>("COALESCE(deadline < UTC_TIMESTAMP(6), FALSE)")))
                    .order(ops::id);
                let rows: Vec<(Row, bool)> = match scope {
                    Scope::Host(host) => {
                        query.filter(ops::backend_host.eq(host)).for_update().load(conn).await?
                    }
                    Scope::Cluster(cluster) => {
                        query.filter(ops::cluster.eq(cluster)).for_update().load(conn).await?
                    }
                };
                // An operation that we hold ourselves and could not renew in time is not a find.
                let held: Vec<i64> = self.state().open.keys().copied().collect();
                let rows: Vec<(Row, bool)> =
                    rows.into_iter().filter(|(row, _)| !held.contains(&row.id)).collect();
                let ids: Vec<i64> = rows.iter().map(|(row, _)| row.id).collect();
                for chunk in ids.chunks(1000) {
                    diesel::update(ops::table)
                        .filter(ops::id.eq_any(chunk))
                        .set((
                            ops::owner.eq(&owner.instance),
                            ops::owner_host.eq(&owner.host),
                            ops::epoch.eq(ops::epoch + 1),
                            ops::lease_until.eq(lease_until(self.shared.options.lease)),
                            ops::updated_at.eq(db_now()),
                        ))
                        .execute(conn)
                        .await?;
                }
                Ok(rows)
            })
            .await?;
        let mut operations = Vec::with_capacity(rows.len());
        for (row, overdue) in rows {
            if row.owner.is_empty() {
                tracing::info!(operation.id = row.id, method = %row.method, "taking an operator's order");
            } else {
                tracing::info!(
                    operation.id = row.id,
                    method = %row.method,
                    former.host = %row.owner_host,
                    "taking over an operation"
                );
            }
            let operation = Operation::new(row.into_inner(overdue, self.shared.db.clone()));
            self.hold(&owner, operation.clone(), began);
            operations.push(operation);
        }
        Ok(operations)
    }

    /// Ends the operation together with the last changes it makes, in one transaction: either both are
    /// there or neither.
    ///
    /// # Errors
    /// What the closure returns; `Cancelled` when the lease was lost.
    pub async fn complete<R, F>(&self, operation: &Operation, outcome: &Outcome, work: F) -> Result<R>
    where
        for<'r> F:
            AsyncFn(&'r mut Conn) -> Result<R> + Work<&'r mut Conn, Result<R>, Fut: Send> + Send + Sync,
        R: Send,
    {
        let result = self
            .shared
            .db
            .write("complete", async |conn| {
                operation.close(conn, outcome).await?;
                work(conn).await
            })
            .await?;
        self.forget(operation.id());
        Ok(result)
    }

    /// Ends the operation by itself.
    ///
    /// # Errors
    /// `Cancelled` when the lease was lost; `Database`.
    pub async fn finish(&self, operation: &Operation, outcome: &Outcome) -> Result<()> {
        self.shared.db.write("finish", async |conn| operation.close(conn, outcome).await).await?;
        self.forget(operation.id());
        Ok(())
    }

    /// True while the operation is open and ours.
    pub fn holds(&self, operation: &Operation) -> bool {
        self.state().open.contains_key(&operation.id())
    }

    /// Gives an operation that could not be finished now back to whoever adopts it next, ourselves
    /// included: after a failure that may pass, such as a database that refuses for a while.
    ///
    /// # Errors
    /// `Database`; its lease then simply runs out.
    pub async fn give_back(&self, operation: &Operation) -> Result<()> {
        self.forget(operation.id());
        self.shared
            .db
            .read("give back", async |conn| {
                diesel::update(ops::table)
                    .filter(ops::id.eq(operation.id()))
                    .filter(ops::epoch.eq(operation.epoch()))
                    .filter(ops::state.eq("open"))
                    .set(ops::lease_until.eq(sql::<Datetime>("UTC_TIMESTAMP(6) - INTERVAL 1 SECOND")))
                    .execute(conn)
                    .await?;
                Ok(())
            })
            .await
    }

    /// How long until [`Journal::adopt`] finds something, unless its owner renews his lease; zero: at once. `None`
    /// when nobody else has anything open. A plain read, so that asking every two seconds takes no locks.
    ///
    /// # Errors
    /// `Database`.
    pub async fn next_orphan(&self, scope: &Scope) -> Result<Option<Duration>> {
        let owner = self.owner();
        let held: Vec<i64> = self.state().open.keys().copied().collect();
        self.shared
            .db
            .read("orphans", async |conn| {
                let mut query = ops::table
                    .filter(ops::state.eq("open"))
                    .filter(ops::lease_until.lt(db_now()).or(ops::owner.ne(&owner.instance)))
                    .select((
                        ops::id,
                        ops::owner_host.eq(&owner.host).and(ops::owner.ne(&owner.instance)),
                        sql::<BigInt>("TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), lease_until)"),
                    ))
                    .order(ops::lease_until)
                    .into_boxed();
                query = match scope {
                    Scope::Host(host) => query.filter(ops::backend_host.eq(host)),
                    Scope::Cluster(cluster) => query.filter(ops::cluster.eq(cluster)),
                };
                let rows: Vec<(i64, bool, i64)> = query.limit(1000).load(conn).await?;
                let others = rows.into_iter().filter(|(id, _, _)| !held.contains(id));
                let left =
                    others.map(|(_, ours, left)| if ours { 0 } else { u64::try_from(left).unwrap_or(0) });
                Ok(left.min().map(Duration::from_micros))
            })
            .await
    }

    /// The reply of a closed call was sent; its document is no longer kept.
    ///
    /// # Errors
    /// `Database`.
    pub async fn mark_replied(&self, operation_id: i64) -> Result<()> {
        self.shared
            .db
            .read("replied", async |conn| {
                diesel::update(ops::table)
                    .filter(ops::id.eq(operation_id))
                    .set((ops::replied_at.eq(db_now().nullable()), ops::reply.eq(None::<String>)))
                    .execute(conn)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Like [`Journal::mark_replied`], by the message's `_unique_id`.
    ///
    /// # Errors
    /// `Database`.
    pub async fn mark_replied_by(&self, unique_id: &str) -> Result<()> {
        self.shared
            .db
            .read("replied", async |conn| {
                diesel::update(ops::table)
                    .filter(ops::unique_id.eq(unique_id))
                    .filter(ops::state.eq("closed"))
                    .set((ops::replied_at.eq(db_now().nullable()), ops::reply.eq(None::<String>)))
                    .execute(conn)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Replies of closed calls that a former instance on this machine, or one that has been silent for
    /// a lease, did not mark as sent, and whose callers may still be waiting. Sending one twice does no
    /// harm: the caller drops what it does not expect.
    ///
    /// # Errors
    /// `Database`.
    pub async fn pending_replies(&self, scope: &Scope) -> Result<Vec<PendingReply>> {
        let owner = self.owner();
        let lease = micros(self.shared.options.lease);
        type Found = (i64, Option<String>, Option<String>, Option<String>);
        let rows: Vec<Found> = self
            .shared
            .db
            .read("pending replies", async |conn| {
                let mut query = ops::table
                    .filter(ops::state.eq("closed"))
                    .filter(ops::reply_queue.is_not_null())
                    .filter(ops::reply.is_not_null())
                    .filter(ops::replied_at.is_null())
                    .filter(ops::owner.ne(&owner.instance))
                    .filter(sql::<Bool>("COALESCE(deadline > UTC_TIMESTAMP(6), TRUE)"))
                    .filter(
                        ops::owner_host.eq(&owner.host).or(sql::<Bool>(
                            "closed_at < UTC_TIMESTAMP(6) - INTERVAL ",
                        )
                        .bind::<BigInt, _>(lease)
                        .sql(" MICROSECOND")),
                    )
                    .select((ops::id, ops::reply_queue, ops::reply_msg_id, ops::reply))
                    .into_boxed();
                query = match scope {
                    Scope::Host(host) => query.filter(ops::backend_host.eq(host)),
                    Scope::Cluster(cluster) => query.filter(ops::cluster.eq(cluster)),
                };
                Ok(query.load(conn).await?)
            })
            .await?;
        Ok(rows
            .into_iter()
            .filter_map(|(operation_id, queue, msg_id, reply)| {
                Some(PendingReply {
                    operation_id,
                    to: ReplyTo { queue: queue?, msg_id: msg_id.unwrap_or_default() },
                    reply: serde_json::from_str(&reply?).ok()?,
                })
            })
            .collect())
    }

    /// Registers an operation as ours. If the instance changed since `owner` was read, it is lost
    /// already.
    fn hold(&self, owner: &Owner, operation: Operation, renewed: Instant) {
        let mut state = self.state();
        if state.instance == owner.instance {
            state.open.insert(operation.id(), Held { operation, renewed });
        } else {
            operation.lost().cancel();
        }
    }

    /// The operation has ended: it needs no lease any more.
    fn forget(&self, id: i64) {
        self.state().open.remove(&id);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it, and its content would still be right.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A row as [`Journal::adopt`] reads it.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = ops, check_for_backend(Mysql))]
struct Row {
    id: i64,
    unique_id: String,
    method: String,
    backend_host: String,
    cluster: Option<String>,
    resource_type: Option<String>,
    resource_id: Option<String>,
    request: String,
    reply_queue: Option<String>,
    reply_msg_id: Option<String>,
    owner: String,
    owner_host: String,
    epoch: i64,
}

impl Row {
    fn into_inner(self, overdue: bool, db: Db) -> OperationInner {
        OperationInner {
            id: self.id,
            epoch: self.epoch + 1,
            unique_id: self.unique_id,
            method: self.method,
            backend_host: self.backend_host,
            cluster: self.cluster,
            request: self.request,
            resource: self.resource_type.zip(self.resource_id),
            reply: self
                .reply_queue
                .map(|queue| ReplyTo { queue, msg_id: self.reply_msg_id.unwrap_or_default() }),
            overdue,
            // An order that was submitted had no owner before, and nobody's workers to fence.
            former: (!self.owner.is_empty()).then_some(Owner { instance: self.owner, host: self.owner_host }),
            worker: None::<Worker>,
            db,
            lost: tokio_util::sync::CancellationToken::new(),
        }
    }
}

/// The database's clock, UTC, microseconds.
fn db_now() -> diesel::expression::SqlLiteral<Datetime> {
    sql::<Datetime>("UTC_TIMESTAMP(6)")
}

fn lease_until(
    lease: Duration,
) -> diesel::expression::SqlLiteral<
    Datetime,
    diesel::expression::UncheckedBind<
        diesel::expression::SqlLiteral<Datetime>,
        diesel::dsl::AsExprOf<i64, BigInt>,
    >,
> {
    sql::<Datetime>("UTC_TIMESTAMP(6) + INTERVAL ").bind::<BigInt, _>(micros(lease)).sql(" MICROSECOND")
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The lease was lost: somebody else has, or may have, taken the operation over.
fn fenced(id: i64) -> Error {
    Error::new(Code::Cancelled, format!("Operation {id} was taken over by another instance of the service"))
}
