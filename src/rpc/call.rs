//! One request on its way: decoded from a delivery, or from the journal after a crash.

use std::time::Duration;

use chrono::{NaiveDateTime, TimeDelta, Utc};
use serde_json::Value;

use crate::context::RequestContext;
use crate::error::{Code, Error, Result};
use crate::rpc::dispatch::{self, Method};
use crate::rpc::envelope::{self, Inner, ReplyTo};
use crate::rpc::{fault, namespace};

/// A request that was understood.
#[derive(Debug, Clone)]
pub struct Call {
    /// Name on the wire, for the log and the journal.
    pub name: &'static str,
    /// Version that the client chose for this method.
    pub version: (u32, u32),
    /// Typed arguments.
    pub method: Method,
    /// Who asks.
    pub context: RequestContext,
    /// Identifies the request across redeliveries; the journal's `unique_id`.
    pub unique_id: String,
    /// Where the answer goes; `None` for casts.
    pub reply: Option<ReplyTo>,
    /// The caller wants a keep-alive at least this often.
    pub keep_alive: Option<Duration>,
    /// When the caller gives up (UTC), from the message's expiration. The time that the message spent
    /// in the queue is not known, so this is the latest possible moment.
    pub deadline: Option<NaiveDateTime>,
    /// Must be in the journal before it is acknowledged.
    pub journaled: bool,
    /// The inner message without its token: what the journal keeps, and [`Call::from_journal`] reads.
    pub text: String,
}

/// A request that was not understood, and whom to tell.
#[derive(Debug)]
pub struct Refusal {
    /// Why.
    pub error: Error,
    /// Method as named by the sender; empty when it could not be read.
    pub method: String,
    /// Request id, for the log.
    pub request_id: String,
    /// The waiting caller, if there is one.
    pub reply: Option<ReplyTo>,
}

impl Call {
    /// Decodes a delivery. `expiration` is the AMQP property, in milliseconds as text.
    pub fn from_delivery(body: &[u8], expiration: Option<&str>) -> Result<Call, Box<Refusal>> {
        let map = envelope::open(body).map_err(Refusal::unreadable)?;
        let mut call = Call::from_inner(envelope::read(map))?;
        call.deadline = call.reply.is_some().then(|| expiration.and_then(deadline)).flatten();
        Ok(call)
    }

    /// Refuses a request that has come by a topic of others: a namespace is served on its own.
    ///
    /// # Errors
    /// As if there were no such namespace.
    pub fn by(self, routing_key: &str) -> Result<Call, Box<Refusal>> {
        if namespace::is_served(self.name, self.version.0, routing_key) {
            return Ok(self);
        }
        let version = format!("{}.{}", self.version.0, self.version.1);
        Err(Box::new(Refusal {
            error: fault::unsupported_version(&version, self.name),
            method: self.name.to_owned(),
            request_id: self.context.request_id,
            reply: self.reply,
        }))
    }

    /// Re-creates a journalled request. Its token is gone; its deadline is the journal's to know.
    ///
    /// # Errors
    /// As when it was decoded first, which had succeeded then: an older release may have known more.
    pub fn from_journal(text: &str) -> Result<Call> {
        let map = envelope::open(text.as_bytes())?;
        Call::from_inner(envelope::read(map)).map_err(|refusal| refusal.error)
    }

    fn from_inner(inner: Inner) -> Result<Call, Box<Refusal>> {
        let method = inner.method.clone();
        let reply = inner.reply.clone();
        let request_id =
            inner.context.get("request_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        Call::judge(inner).map_err(|error| Box::new(Refusal { error, method, request_id, reply }))
    }

    fn judge(inner: Inner) -> Result<Call> {
        let (spec, version) = dispatch::find(&inner)?;
        let context = envelope::context(inner.context)?;
        let method = dispatch::decode(spec, inner.args)?;
        Ok(Call {
            name: spec.name,
            version,
            method,
            context,
            unique_id: inner.unique_id,
            keep_alive: inner.timeout.and_then(keep_alive),
            deadline: None,
            journaled: dispatch::journaled(spec, inner.reply.is_some()),
            reply: inner.reply,
            text: inner.text,
        })
    }

    /// True when the caller has given up.
    pub fn is_expired(&self) -> bool {
        self.deadline.is_some_and(|d| d <= Utc::now().naive_utc())
    }
}

/// Half the client's timeout, which must be a whole number of at least 2 seconds (`RPCDispatcher._watchdog`).
fn keep_alive(timeout: f64) -> Option<Duration> {
    let timeout = timeout.trunc();
    (2.0..=1e9).contains(&timeout).then(|| Duration::from_secs_f64(timeout / 2.0))
}

fn deadline(expiration: &str) -> Option<NaiveDateTime> {
    let milliseconds = expiration.parse::<i64>().ok()?;
    Utc::now().naive_utc().checked_add_signed(TimeDelta::try_milliseconds(milliseconds)?)
}

impl Refusal {
    /// Of a message that says nothing of itself: nobody can be answered.
    pub(crate) fn unreadable(error: Error) -> Box<Refusal> {
        Box::new(Refusal { error, method: String::new(), request_id: String::new(), reply: None })
    }

    /// True when the message could not be read at all.
    pub fn is_malformed(&self) -> bool {
        self.error.code() == Code::MalformedMessage
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn capabilities(extra: Value) -> Vec<u8> {
        let mut message = json!({"method": "get_capabilities", "args": {"discover": false}, "version": "3.0",
            "_msg_id": "i", "_reply_q": "q", "_unique_id": "u", "_context_request_id": "req-1"});
        message.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        envelope::seal(message.as_object().unwrap())
    }

    #[test]
    fn a_refusal_knows_whom_to_tell() {
        let refusal =
            Call::from_delivery(&capabilities(json!({"_context_read_deleted": null})), None).unwrap_err();
        assert_eq!(refusal.error.code(), Code::InvalidValue);
        assert_eq!(refusal.reply.unwrap().queue, "q");
        assert_eq!((refusal.method.as_str(), refusal.request_id.as_str()), ("get_capabilities", "req-1"));
        assert!(Call::from_delivery(b"x", None).unwrap_err().is_malformed());
    }

    #[test]
    fn keep_alives_only_for_those_who_ask() {
        let with =
            |t: Value| Call::from_delivery(&capabilities(json!({"_timeout": t})), None).unwrap().keep_alive;
        assert_eq!(with(json!(null)), None);
        assert_eq!(with(json!(1)), None);
        assert_eq!(with(json!(5)), Some(Duration::from_millis(2500)));
        assert_eq!(with(json!(-5)), None);
    }

    #[test]
    fn only_calls_have_a_deadline() {
        let call = Call::from_delivery(&capabilities(json!({})), Some("60000")).unwrap();
        assert!(call.deadline.is_some() && !call.is_expired());
        assert!(Call::from_delivery(&capabilities(json!({})), Some("0")).unwrap().is_expired());
        let cast = Call::from_delivery(&capabilities(json!({"_msg_id": null})), Some("60000")).unwrap();
        assert_eq!((cast.deadline, cast.reply), (None, None));
    }
}
