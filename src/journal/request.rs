//! An order in the journal: what is asked for, beside the number by which the service's log can be searched.
//!
//! `scoria-manage` and the RPC namespaces write orders of their own kinds in one form. What another version has written
//! is refused, never half understood.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Code, Error, Result};

/// The text of an order in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request<O> {
    /// What is ordered.
    #[serde(flatten)]
    pub order: O,
    /// `req-<uuid>`: finds the order's lines in the service's log, and its user messages.
    pub request_id: String,
}

impl<O: Serialize + DeserializeOwned> Request<O> {
    /// An order with a request id of its own.
    pub fn new(order: O) -> Request<O> {
        Request { order, request_id: format!("req-{}", Uuid::new_v4()) }
    }

    /// The text for the journal.
    ///
    /// # Errors
    /// `Internal`; cannot fail for these types.
    pub fn to_text(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|e| Error::internal("An order cannot be written as JSON").caused_by(e))
    }

    /// Reads the text of an operation whose method is one of ours.
    ///
    /// # Errors
    /// `BadArguments` when it was written by a program that knows other arguments.
    pub fn parse(text: &str) -> Result<Request<O>> {
        serde_json::from_str(text).map_err(|e| {
            Error::new(
                Code::BadArguments,
                "The order in the journal cannot be read; use the scoria-manage of the service's version",
            )
            .caused_by(e)
        })
    }
}
