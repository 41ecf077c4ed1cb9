//! An order from outside the service: journaled like a request, but owned by nobody.
//!
//! The operator's tool owns no Ceph connection and may be gone a second later. So it leaves an operation
//! whose lease has run out before it began; the service of the backend finds it in its next
//! [`Journal::adopt`] and finishes it however often either of them dies.

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::RunQueryDsl;
use serde_json::Value;

use super::insert::insert;
use super::{Journal, Listing, NewOperation, Step};
use crate::db::Conn;
use crate::db::schema::{scoria_operation_steps as steps, scoria_operations as ops};
use crate::error::{Error, Result};

/// What submitting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// It is written down under this number; the backend's service will take it.
    New(i64),
    /// The same order is open already, under this number; nothing was written.
    Open(i64),
}

/// One step as [`Journal::watch`] counts it.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
struct Count {
    #[diesel(sql_type = Text)]
    step: String,
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// An operation as a follower sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The operation.
    pub operation: Listing,
    /// Its own last step.
    pub step: Option<String>,
    /// How many of its resources (volumes) are at each step, in the order of the steps' names.
    pub items: Vec<(String, i64)>,
}

/// A resource of an operation with its last step.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The step.
    pub step: Step,
    /// When it was recorded, by the database's clock.
    pub updated_at: NaiveDateTime,
}

impl Item {
    /// The step's name: a step whose data is a tagged value (`{"step": "failed", …}`) goes by its tag.
    pub fn name(&self) -> &str {
        self.step.data.get("step").and_then(Value::as_str).unwrap_or(&self.step.name)
    }
}

/// The same in SQL.
const STEP_NAME: &str =
    "COALESCE(IF(JSON_VALID(data), JSON_UNQUOTE(JSON_EXTRACT(data, '$.step')), NULL), step)";

impl Listing {
    /// True for an order that no service has taken yet.
    pub fn is_waiting(&self) -> bool {
        self.state == "open" && self.owner.is_empty()
    }

    /// True when it has ended.
    pub fn is_closed(&self) -> bool {
        self.state == "closed"
    }
}

impl Journal {
    /// Writes an order down for the service of `new.backend_host` (any member of `new.cluster`) to adopt.
    /// The same method with the same arguments is not ordered twice while the first is open, whatever its
    /// request id.
    ///
    /// # Errors
    /// `Internal` when the message is known already (its id must be fresh); `Database`.
    pub async fn submit(&self, new: &NewOperation) -> Result<Submitted> {
        self.shared
            .db
            .write("submit", async |conn| {
                if let Some(open) = same_open(conn, new).await? {
                    return Ok(Submitted::Open(open));
                }
                Ok(Submitted::New(insert_order(conn, new).await?))
            })
            .await
    }

    /// The same inside the caller's transaction, whatever is open: what the order is about is written with it. Answers
    /// its number.
    ///
    /// # Errors
    /// `MalformedMessage` when a name or id is too long; `Internal` when the message is known already; `Database`.
    pub async fn submit_in(conn: &mut Conn, new: &NewOperation) -> Result<i64> {
        new.check()?;
        insert_order(conn, new).await
    }

    /// The operation that was accepted or submitted under this id, if there is one.
    ///
    /// # Errors
    /// `Database`.
    pub async fn known(&self, unique_id: &str) -> Result<Option<i64>> {
        self.shared
            .db
            .read("find an order", async |conn| {
                let found = ops::table.filter(ops::unique_id.eq(unique_id)).select(ops::id).first(conn).await;
                Ok(found.optional()?)
            })
            .await
    }

    /// One operation, `None` when it never was or has been purged.
    ///
    /// # Errors
    /// `Database`.
    pub async fn find(&self, operation_id: i64) -> Result<Option<Listing>> {
        self.shared
            .db
            .read("find an operation", async |conn| {
                Ok(ops::table
                    .filter(ops::id.eq(operation_id))
                    .select(Listing::as_select())
                    .first(conn)
                    .await
                    .optional()?)
            })
            .await
    }

    /// The request of an operation: the inner message without its token.
    ///
    /// # Errors
    /// `Database`.
    pub async fn request_of(&self, operation_id: i64) -> Result<Option<String>> {
        self.shared
            .db
            .read("request of an operation", async |conn| {
                Ok(ops::table
                    .filter(ops::id.eq(operation_id))
                    .select(ops::request)
                    .first(conn)
                    .await
                    .optional()?)
            })
            .await
    }

    /// How far an operation is. Counted by the server: asking once a second costs little, however many
    /// volumes it has.
    ///
    /// # Errors
    /// `Database`.
    pub async fn watch(&self, operation_id: i64) -> Result<Option<Progress>> {
        let Some(operation) = self.find(operation_id).await? else {
            return Ok(None);
        };
        self.shared
            .db
            .read("progress of an operation", async |conn| {
                let own = diesel::sql_query(format!(
                    "SELECT {STEP_NAME} AS step, CAST(1 AS SIGNED) AS count FROM scoria_operation_steps \
                     WHERE operation_id = ? AND resource_id = ''"
                ))
                .bind::<BigInt, _>(operation_id)
                .get_result::<Count>(conn)
                .await
                .optional()?;
                let items: Vec<Count> = diesel::sql_query(format!(
                    "SELECT {STEP_NAME} AS step, COUNT(*) AS count FROM scoria_operation_steps \
                     WHERE operation_id = ? AND resource_id <> '' GROUP BY 1 ORDER BY 1"
                ))
                .bind::<BigInt, _>(operation_id)
                .load(conn)
                .await?;
                Ok(Some(Progress {
                    operation: operation.clone(),
                    step: own.map(|c| c.step),
                    items: items.into_iter().map(|c| (c.step, c.count)).collect(),
                }))
            })
            .await
    }

    /// Percent of an operation's items that is done, rounded down; `None` without items. One whose step is among `ends` is
    /// done, any other as far as the `percent` of its step says, and never whole. Counted by the server, as
    /// [`Journal::watch`] does.
    ///
    /// # Errors
    /// `Database`.
    pub async fn percent_of(&self, operation_id: i64, ends: &[&str]) -> Result<Option<u64>> {
        #[derive(QueryableByName)]
        struct Done {
            #[diesel(sql_type = Nullable<BigInt>)]
            percent: Option<i64>,
        }
        let marks = vec!["?"; ends.len().max(1)].join(",");
        let of_one = "COALESCE(IF(JSON_VALID(data), CAST(JSON_UNQUOTE(JSON_EXTRACT(data, '$.percent')) AS SIGNED), 0), 0)";
        let text = format!(
            "SELECT CAST(FLOOR(SUM(IF({STEP_NAME} IN ({marks}), 100, LEAST(GREATEST({of_one}, 0), 99))) / COUNT(*)) AS SIGNED) \
             AS percent FROM scoria_operation_steps WHERE operation_id = ? AND resource_id <> ''"
        );
        let done = self
            .shared
            .db
            .read("percent of an operation", async |conn| {
                let mut query = diesel::sql_query(text.clone()).into_boxed::<Mysql>();
                if ends.is_empty() {
                    query = query.bind::<Text, _>("");
                }
                for end in ends {
                    query = query.bind::<Text, _>((*end).to_owned());
                }
                Ok(query.bind::<BigInt, _>(operation_id).get_result::<Done>(conn).await?)
            })
            .await?;
        Ok(done.percent.and_then(|percent| u64::try_from(percent).ok()))
    }

    /// The last step of each resource of an operation with its data, its own (under an empty id) first.
    ///
    /// # Errors
    /// `Database`.
    pub async fn items_of(&self, operation_id: i64) -> Result<Vec<Item>> {
        type Found = (String, String, Option<String>, NaiveDateTime);
        let rows: Vec<Found> = self
            .shared
            .db
            .read("items of an operation", async |conn| {
                Ok(steps::table
                    .filter(steps::operation_id.eq(operation_id))
                    .select((steps::resource_id, steps::step, steps::data, steps::updated_at))
                    .order(steps::resource_id)
                    .load(conn)
                    .await?)
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|(resource_id, name, data, updated_at)| {
                let data = data.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null);
                Item { step: Step { resource_id, name, data }, updated_at }
            })
            .collect())
    }
}

/// The row of an order, which nobody owns yet; its number.
pub(super) async fn insert_order(conn: &mut Conn, new: &NewOperation) -> Result<i64> {
    insert(conn, new, None).await?.ok_or_else(|| Error::internal("An order was submitted under a used id"))
}

/// An open operation of the same backend with the same method and arguments. The rows read, and the
/// gap where the new one goes, stay locked: of two operators who order the same at once, one waits.
async fn same_open(conn: &mut Conn, new: &NewOperation) -> Result<Option<i64>> {
    let asked = arguments(&new.request);
    let query = ops::table
        .filter(ops::state.eq("open"))
        .filter(ops::method.eq(&new.method))
        .select((ops::id, ops::request))
        .order(ops::id);
    let open: Vec<(i64, String)> = match &new.cluster {
        Some(cluster) => query.filter(ops::cluster.eq(cluster)).for_update().load(conn).await?,
        None => query.filter(ops::backend_host.eq(&new.backend_host)).for_update().load(conn).await?,
    };
    Ok(open.into_iter().find(|(_, request)| arguments(request) == asked).map(|(id, _)| id))
}

/// `args` of an inner message.
fn arguments(request: &str) -> Option<Value> {
    let mut message: Value = serde_json::from_str(request).ok()?;
    message.get_mut("args").map(Value::take)
}
