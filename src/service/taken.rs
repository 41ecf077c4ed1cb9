//! What is told of the operations that a namespace of a host has taken: the same of sites and of backends.

use serde_json::{Value, json};

use crate::error::{Code, Error, Result};
use crate::journal::{Journal, Listing, ListingFilter};

/// The operations of one namespace.
pub(super) struct Taken<'a> {
    pub(super) journal: &'a Journal,
    pub(super) host: &'a str,
    /// What the names of their methods begin with.
    pub(super) prefix: &'static str,
    /// What they are on, for a person.
    pub(super) on: &'static str,
}

impl Taken<'_> {
    /// An operation of the namespace.
    ///
    /// # Errors
    /// `InvalidInput` for any other, `Database`.
    pub(super) async fn find(&self, operation: i64) -> Result<Listing> {
        let row = self.journal.find(operation).await?;
        row.filter(|row| row.method.starts_with(self.prefix)).ok_or_else(|| {
            Error::new(
                Code::InvalidInput,
                format!("There is no operation {operation} on {}, or it was purged", self.on),
            )
        })
    }

    /// How far it is, and its result when it has one.
    ///
    /// # Errors
    /// As [`Taken::find`].
    pub(super) async fn progress(&self, operation: i64) -> Result<Value> {
        let row = self.find(operation).await?;
        let step = self.journal.watch(operation).await?.and_then(|progress| progress.step);
        let mut answer = self.told(&row);
        if let Value::Object(map) = &mut answer {
            map.insert("step".to_owned(), json!(step));
            map.insert("result".to_owned(), self.journal.answer_of(operation).await?.unwrap_or(Value::Null));
        }
        Ok(answer)
    }

    /// Those of this host, or of them the open ones.
    ///
    /// # Errors
    /// `Database`.
    pub(super) async fn list(&self, open: bool) -> Result<Value> {
        let filter = ListingFilter {
            open_only: open,
            backend_host: Some(self.host.to_owned()),
            ..ListingFilter::default()
        };
        let rows = self.journal.list(&filter).await?;
        Ok(rows.iter().filter(|row| row.method.starts_with(self.prefix)).map(|row| self.told(row)).collect())
    }

    fn told(&self, row: &Listing) -> Value {
        json!({
            "operation": row.id,
            "method": row.method.strip_prefix(self.prefix),
            "host": row.backend_host,
            "state": row.state,
            "outcome": row.outcome,
            "detail": row.outcome_detail,
            "accepted_at": row.accepted_at.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "closed_at": row.closed_at.map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string()),
        })
    }
}
