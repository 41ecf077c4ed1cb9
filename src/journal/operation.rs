//! One operation in the hands of whoever runs it.

use std::sync::Arc;

use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Outcome, Owner, ReplyTo, db_now, fenced};
use crate::db::schema::{scoria_operation_steps as steps, scoria_operations as ops};
use crate::db::worker::Worker;
use crate::db::{Conn, Db, Work};
use crate::error::{Error, Result};

/// An operation that this process owns. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Operation {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) id: i64,
    pub(super) epoch: i64,
    pub(super) unique_id: String,
    pub(super) method: String,
    pub(super) backend_host: String,
    pub(super) cluster: Option<String>,
    pub(super) request: String,
    pub(super) resource: Option<(String, String)>,
    pub(super) reply: Option<ReplyTo>,
    pub(super) overdue: bool,
    pub(super) former: Option<Owner>,
    pub(super) worker: Option<Worker>,
    pub(super) db: Db,
    pub(super) lost: CancellationToken,
}

/// The last step that was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The resource it is about; empty: the operation itself.
    pub resource_id: String,
    /// The step's name.
    pub name: String,
    /// What it needs to be resumed.
    pub data: Value,
}

impl Step {
    /// The data in its own type.
    ///
    /// # Errors
    /// `Internal` when it was written by a version that had another type for this step.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.data.clone()).map_err(|e| {
            Error::internal(format!("The journal's data of step {} cannot be read", self.name)).caused_by(e)
        })
    }
}

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = steps, check_for_backend(Mysql))]
struct StepRow {
    resource_id: String,
    step: String,
    data: Option<String>,
}

impl From<StepRow> for Step {
    fn from(row: StepRow) -> Step {
        let data = row.data.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null);
        Step { resource_id: row.resource_id, name: row.step, data }
    }
}

/// How many steps go into one statement.
const CHUNK: usize = 500;

impl Operation {
    pub(super) fn new(inner: Inner) -> Self {
        Operation { inner: Arc::new(inner) }
    }

    /// Number in the journal.
    pub fn id(&self) -> i64 {
        self.inner.id
    }

    /// How many owners it has had.
    pub fn epoch(&self) -> i64 {
        self.inner.epoch
    }

    /// `_unique_id` of the message that asked for it.
    pub fn unique_id(&self) -> &str {
        &self.inner.unique_id
    }

    /// RPC method.
    pub fn method(&self) -> &str {
        &self.inner.method
    }

    /// `host@backend` that accepted it.
    pub fn backend_host(&self) -> &str {
        &self.inner.backend_host
    }

    /// `cluster@backend`, when clustered.
    pub fn cluster(&self) -> Option<&str> {
        self.inner.cluster.as_deref()
    }

    /// The inner message, JSON, without the token.
    pub fn request(&self) -> &str {
        &self.inner.request
    }

    /// Type and id of its resource.
    pub fn resource(&self) -> Option<(&str, &str)> {
        self.inner.resource.as_ref().map(|(kind, id)| (kind.as_str(), id.as_str()))
    }

    /// Where its reply goes; `None` for a cast.
    pub fn reply_to(&self) -> Option<&ReplyTo> {
        self.inner.reply.as_ref()
    }

    /// For an adopted call: its caller had stopped waiting when it was adopted. It is rolled back, not
    /// finished.
    pub fn is_overdue(&self) -> bool {
        self.inner.overdue
    }

    /// For an adopted operation: who had it before.
    pub fn former(&self) -> Option<&Owner> {
        self.inner.former.as_ref()
    }

    /// True when it was taken over, so that steps of an earlier owner may exist.
    pub fn is_adopted(&self) -> bool {
        self.inner.former.is_some()
    }

    /// Cinder's `workers` row that was claimed when it was accepted.
    pub fn worker(&self) -> Option<&Worker> {
        self.inner.worker.as_ref()
    }

    /// Cancelled when the lease is lost: stop at once and touch nothing any more.
    pub fn lost(&self) -> &CancellationToken {
        &self.inner.lost
    }

    /// Records that the operation has reached a step.
    ///
    /// # Errors
    /// `Cancelled` when the lease was lost; `Database`.
    pub async fn step(&self, name: &str, data: &(impl Serialize + Sync)) -> Result<()> {
        self.item_step("", name, data).await
    }

    /// Records that one of its resources (a volume of a failover) has reached a step.
    ///
    /// # Errors
    /// `Cancelled` when the lease was lost; `Database`.
    pub async fn item_step(
        &self,
        resource_id: &str,
        name: &str,
        data: &(impl Serialize + Sync),
    ) -> Result<()> {
        let rows = [(resource_id.to_owned(), name.to_owned(), to_text(data)?)];
        self.inner.db.read("step", async |conn| self.write_steps(conn, &rows).await).await
    }

    /// Records steps of many resources, five hundred to a statement.
    ///
    /// # Errors
    /// As [`Operation::item_step`].
    pub async fn item_steps<T: Serialize + Sync>(&self, name: &str, items: &[(String, T)]) -> Result<()> {
        let mut rows = Vec::with_capacity(items.len());
        for (resource_id, data) in items {
            rows.push((resource_id.clone(), name.to_owned(), to_text(data)?));
        }
        for chunk in rows.chunks(CHUNK) {
            self.inner.db.read("steps", async |conn| self.write_steps(conn, chunk).await).await?;
        }
        Ok(())
    }

    /// Like [`Operation::step`], inside the caller's transaction.
    ///
    /// # Errors
    /// As [`Operation::step`].
    pub async fn step_in(&self, conn: &mut Conn, name: &str, data: &(impl Serialize + Sync)) -> Result<()> {
        self.item_step_in(conn, "", name, data).await
    }

    /// Like [`Operation::item_step`], inside the caller's transaction.
    ///
    /// # Errors
    /// As [`Operation::step`].
    pub async fn item_step_in(
        &self,
        conn: &mut Conn,
        resource_id: &str,
        name: &str,
        data: &(impl Serialize + Sync),
    ) -> Result<()> {
        let rows = [(resource_id.to_owned(), name.to_owned(), to_text(data)?)];
        self.write_steps(conn, &rows).await
    }

    /// One statement that writes nothing unless the operation is still ours. The shared lock makes a
    /// successor's adoption wait for it, so that it reads either all of these steps or is not yet there.
    async fn write_steps(&self, conn: &mut Conn, rows: &[(String, String, String)]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut text = String::from(
            "INSERT INTO scoria_operation_steps (operation_id, resource_id, step, data, epoch, updated_at) \
             SELECT o.id, v.r, v.s, v.d, o.epoch, UTC_TIMESTAMP(6) FROM scoria_operations o JOIN (",
        );
        for index in 0..rows.len() {
            text.push_str(if index == 0 {
                "SELECT ? AS r, ? AS s, ? AS d"
            } else {
                " UNION ALL SELECT ?, ?, ?"
            });
        }
        text.push_str(
            ") v WHERE o.id = ? AND o.epoch = ? AND o.state = 'open' LOCK IN SHARE MODE \
             ON DUPLICATE KEY UPDATE step = VALUES(step), data = VALUES(data), \
             epoch = VALUES(epoch), updated_at = VALUES(updated_at)",
        );
        let mut query = diesel::sql_query(text).into_boxed::<Mysql>();
        for (resource_id, name, data) in rows {
            query = query
                .bind::<Text, _>(resource_id)
                .bind::<Text, _>(name)
                .bind::<Nullable<Text>, _>(Some(data));
        }
        let written =
            query.bind::<BigInt, _>(self.inner.id).bind::<BigInt, _>(self.inner.epoch).execute(conn).await?;
        if written == 0 { Err(fenced(self.inner.id)) } else { Ok(()) }
    }

    /// The operation's own last step.
    ///
    /// # Errors
    /// `Database`.
    pub async fn last_step(&self) -> Result<Option<Step>> {
        let id = self.inner.id;
        let row: Option<StepRow> = self
            .inner
            .db
            .read("last step", async |conn| {
                Ok(steps::table
                    .filter(steps::operation_id.eq(id))
                    .filter(steps::resource_id.eq(""))
                    .select(StepRow::as_select())
                    .first(conn)
                    .await
                    .optional()?)
            })
            .await?;
        Ok(row.map(Step::from))
    }

    /// Name and data of the operation's own last step.
    ///
    /// # Errors
    /// As [`Step::parse`]; `Database`.
    pub async fn data<T: DeserializeOwned>(&self) -> Result<Option<(String, T)>> {
        match self.last_step().await? {
            Some(step) => Ok(Some((step.name.clone(), step.parse()?))),
            None => Ok(None),
        }
    }

    /// Data of the operation's own last step, if that is `name`.
    ///
    /// # Errors
    /// As [`Step::parse`]; `Database`.
    pub async fn reached<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        match self.last_step().await? {
            Some(step) if step.name == name => Ok(Some(step.parse()?)),
            Some(_) | None => Ok(None),
        }
    }

    /// The last step of each of its resources.
    ///
    /// # Errors
    /// `Database`.
    pub async fn items(&self) -> Result<Vec<Step>> {
        let id = self.inner.id;
        let rows: Vec<StepRow> = self
            .inner
            .db
            .read("items", async |conn| {
                Ok(steps::table
                    .filter(steps::operation_id.eq(id))
                    .filter(steps::resource_id.ne(""))
                    .order(steps::resource_id)
                    .select(StepRow::as_select())
                    .load(conn)
                    .await?)
            })
            .await?;
        Ok(rows.into_iter().map(Step::from).collect())
    }

    /// Fails unless the operation is still ours, and keeps it ours until the transaction ends. Begin
    /// every transaction of an operation with it, so that a successor never sees late changes.
    ///
    /// # Errors
    /// `Cancelled` when the lease was lost; `Database`.
    pub async fn fence(&self, conn: &mut Conn) -> Result<()> {
        #[derive(QueryableByName)]
        struct Found {
            #[diesel(sql_type = BigInt)]
            #[allow(dead_code)]
            id: i64,
        }
        let found: Vec<Found> = diesel::sql_query(
            "SELECT id FROM scoria_operations WHERE id = ? AND epoch = ? AND state = 'open' LOCK IN SHARE MODE",
        )
        .bind::<BigInt, _>(self.inner.id)
        .bind::<BigInt, _>(self.inner.epoch)
        .load(conn)
        .await?;
        if found.is_empty() { Err(fenced(self.inner.id)) } else { Ok(()) }
    }

    /// A transaction of this operation: [`Db::write`] that begins with [`Operation::fence`].
    ///
    /// # Errors
    /// What the closure returns; `Cancelled` when the lease was lost.
    pub async fn write<R, F>(&self, label: &'static str, work: F) -> Result<R>
    where
        for<'r> F:
            AsyncFn(&'r mut Conn) -> Result<R> + Work<&'r mut Conn, Result<R>, Fut: Send> + Send + Sync,
        R: Send,
    {
        self.inner
            .db
            .write(label, async |conn| {
                self.fence(conn).await?;
                work(conn).await
            })
            .await
    }

    /// Ends the operation inside the caller's transaction (prefer `Journal::complete`).
    ///
    /// # Errors
    /// `Cancelled` when the lease was lost or it has ended before; `Database`.
    pub async fn close(&self, conn: &mut Conn, outcome: &Outcome) -> Result<()> {
        let reply = match &outcome.reply {
            Some(reply) => Some(to_text(reply)?),
            None => None,
        };
        let closed = diesel::update(ops::table)
            .filter(ops::id.eq(self.inner.id))
            .filter(ops::epoch.eq(self.inner.epoch))
            .filter(ops::state.eq("open"))
            .set((
                ops::state.eq("closed"),
                ops::outcome.eq(outcome.ending.as_str()),
                ops::outcome_detail.eq(outcome.detail.as_deref().map(|d| cut(d, 16_000))),
                ops::reply.eq(reply),
                ops::closed_at.eq(db_now().nullable()),
                ops::updated_at.eq(db_now()),
            ))
            .execute(conn)
            .await?;
        if closed == 0 { Err(fenced(self.inner.id)) } else { Ok(()) }
    }
}

fn to_text(data: &impl Serialize) -> Result<String> {
    serde_json::to_string(data)
        .map_err(|e| Error::internal("A step of an operation cannot be written as JSON").caused_by(e))
}

/// At most `bytes` of a text, cut between characters.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("abc", 10), "abc");
    }
}
