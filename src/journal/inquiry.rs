//! A question from outside the service, and its answer.
//!
//! The operator's tool cannot ask Ceph. It writes down what it wants to know, as an order that changes nothing and
//! has a deadline; the service that takes it up closes it with the answer where the reply of a call would stand.
//! The tool reads it once, and then it is gone: an answer may be megabytes long, and is old news in a minute.
//! One whose asker died is removed when its deadline has passed.

use diesel::prelude::*;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use serde_json::Value;

use super::submit::insert_order;
use super::{Journal, NewOperation};
use crate::db::schema::scoria_operations as ops;
use crate::error::{Error, Result};

impl Journal {
    /// Writes a question down for the service of `new.backend_host` (any member of `new.cluster`). It is asked
    /// again although somebody else has asked the same: each has an answer of his own.
    ///
    /// # Errors
    /// `Internal` when its id is not fresh; `Database`.
    pub async fn ask(&self, new: &NewOperation) -> Result<i64> {
        self.shared.db.write("ask", async |conn| insert_order(conn, new).await).await
    }

    /// The answer to a question that is closed, which is removed with this. `None` when there is none, or it was
    /// taken before.
    ///
    /// # Errors
    /// `Internal` when the answer cannot be read; `Database`.
    pub async fn take_answer(&self, operation_id: i64) -> Result<Option<Value>> {
        let Some(text) = self.answer_text(operation_id).await? else { return Ok(None) };
        self.mark_replied(operation_id).await?;
        read(&text).map(Some)
    }

    /// The same without taking it: for an order whose answer stays as long as its operation is remembered.
    ///
    /// # Errors
    /// `Internal` when the answer cannot be read; `Database`.
    pub async fn answer_of(&self, operation_id: i64) -> Result<Option<Value>> {
        match self.answer_text(operation_id).await? {
            Some(text) => read(&text).map(Some),
            None => Ok(None),
        }
    }

    async fn answer_text(&self, operation_id: i64) -> Result<Option<String>> {
        self.shared
            .db
            .read("answer", async |conn| {
                let reply: Option<Option<String>> = ops::table
                    .filter(ops::id.eq(operation_id))
                    .filter(ops::state.eq("closed"))
                    .select(ops::reply)
                    .first(conn)
                    .await
                    .optional()?;
                Ok(reply.flatten())
            })
            .await
    }

    /// Removes answers that nobody has taken in time.
    ///
    /// # Errors
    /// `Database`.
    pub(super) async fn drop_stale_answers(&self) -> Result<()> {
        self.shared
            .db
            .read("drop answers", async |conn| {
                conn.batch_execute(
                    "UPDATE scoria_operations SET reply = NULL WHERE state = 'closed' AND reply IS NOT NULL \
                     AND reply_queue IS NULL AND deadline < UTC_TIMESTAMP(6)",
                )
                .await?;
                Ok(())
            })
            .await
    }
}

fn read(text: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|e| Error::internal("The answer in the journal cannot be read").caused_by(e))
}
