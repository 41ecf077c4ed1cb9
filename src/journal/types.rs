//! What goes into the journal, and what comes out of it.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::Operation;
use crate::config::ScoriaConfig;
use crate::db::worker::Claim;
use crate::error::{Code, Error, Result};

/// An instance of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Fresh at every start, and again when a lease was lost.
    pub instance: String,
    /// The machine (`[DEFAULT] host`): its next instance may take over at once.
    pub host: String,
}

impl Owner {
    /// A new instance on `host`.
    pub fn new(host: impl Into<String>) -> Self {
        Owner { instance: Uuid::new_v4().to_string(), host: host.into() }
    }
}

/// Times that the journal lives by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalOptions {
    /// How long an operation stays ours without renewal (10 s); renewed every fifth of it.
    pub lease: Duration,
    /// How long closed operations are kept (86400 s).
    pub retention: Duration,
}

impl From<&ScoriaConfig> for JournalOptions {
    fn from(config: &ScoriaConfig) -> Self {
        JournalOptions { lease: config.lease, retention: config.operation_retention }
    }
}

/// Where the reply of a call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// `_reply_q`.
    pub queue: String,
    /// `_msg_id`.
    pub msg_id: String,
}

/// A request to accept.
#[derive(Debug, Clone, Default)]
pub struct NewOperation {
    /// `_unique_id` of the message.
    pub unique_id: String,
    /// RPC method, e.g. `create_volume`.
    pub method: String,
    /// `host@backend` that received it.
    pub backend_host: String,
    /// `cluster@backend`, when clustered.
    pub cluster: Option<String>,
    /// The inner message as JSON text, without the token.
    pub request: String,
    /// Type and id of the resource it is about.
    pub resource: Option<(String, String)>,
    /// Cinder's `workers` row to claim in the same transaction.
    pub claim: Option<Claim>,
    /// Where the reply goes, for a call.
    pub reply: Option<ReplyTo>,
    /// How long the caller waits; becomes a deadline by the database's clock.
    pub timeout: Option<Duration>,
}

impl NewOperation {
    /// What a sender chose must fit its column: a refusal by the database would look like something to
    /// try again.
    pub(super) fn check(&self) -> Result<()> {
        let resource = self.resource.as_ref();
        for (what, text, limit) in [
            ("_unique_id", Some(&self.unique_id), 64),
            ("method", Some(&self.method), 64),
            ("_reply_q", self.reply.as_ref().map(|r| &r.queue), 255),
            ("_msg_id", self.reply.as_ref().map(|r| &r.msg_id), 64),
            ("resource type", resource.map(|r| &r.0), 40),
            ("resource id", resource.map(|r| &r.1), 36),
            // MEDIUMTEXT, and max_allowed_packet's default.
            ("message", Some(&self.request), 15 << 20),
        ] {
            if text.is_some_and(|t| t.len() > limit) {
                return Err(Error::new(
                    Code::MalformedMessage,
                    format!("The {what} of a message is longer than {limit} bytes"),
                ));
            }
        }
        Ok(())
    }
}

/// What accepting came to.
#[derive(Debug)]
pub enum Accept {
    /// Ours to run.
    New(Operation),
    /// This message was accepted before, by whomever: acknowledge it and forget it.
    Duplicate,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As asked.
    Succeeded,
    /// It failed, and its resources say so.
    Failed,
    /// It was undone (e.g. its caller's deadline had passed after a crash).
    RolledBack,
    /// It was given up without a trace, e.g. because its resource is gone.
    Abandoned,
}

impl Ending {
    /// The text in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            Ending::Succeeded => "succeeded",
            Ending::Failed => "failed",
            Ending::RolledBack => "rolled-back",
            Ending::Abandoned => "abandoned",
        }
    }
}

/// The end of an operation, with what must still be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// For the operator (admin view), e.g. the error.
    pub detail: Option<String>,
    /// For a call: the reply document (result or failure), kept until it was sent.
    pub reply: Option<Value>,
}

impl Outcome {
    /// As asked.
    pub fn succeeded() -> Self {
        Outcome { ending: Ending::Succeeded, detail: None, reply: None }
    }

    /// It failed for this reason.
    pub fn failed(error: &Error) -> Self {
        Outcome { ending: Ending::Failed, detail: Some(error.operator()), reply: None }
    }

    /// It was given up without a trace, for this reason.
    pub fn abandoned(reason: &str) -> Self {
        Outcome { ending: Ending::Abandoned, detail: Some(reason.to_owned()), reply: None }
    }

    /// Adds the document to send to the caller.
    #[must_use]
    pub fn with_reply(mut self, reply: Value) -> Self {
        self.reply = Some(reply);
        self
    }
}

/// A closed call whose reply may never have been sent.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingReply {
    /// Operation.
    pub operation_id: i64,
    /// Where it goes.
    pub to: ReplyTo,
    /// The reply document.
    pub reply: Value,
}
