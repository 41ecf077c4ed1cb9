//! The two layers of JSON that oslo.messaging puts around a request, and around its answer.
//!
//! Outside: `{"oslo.version": "2.0", "oslo.message": "<text>"}`. Inside: method, arguments, the flattened
//! context, and where to send the answer. Nothing here trusts its input: whatever bytes a queue holds,
//! the result is a value or an error, and as long as a reply address can be read, the caller is told.
//! Reference: rpc.md 1.4 to 1.6; `oslo_messaging/_drivers/common.py` and `amqpdriver.py`.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::context::RequestContext;
use crate::error::{Code, Error, Result};
use crate::rpc::fault;

const VERSION_KEY: &str = "oslo.version";
const MESSAGE_KEY: &str = "oslo.message";
pub(crate) const CONTEXT_PREFIX: &str = "_context_";
const TOKEN_KEY: &str = "_context_auth_token";

/// Where the answer of a call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// `_reply_q`: the caller's queue, reached through the default exchange.
    pub queue: String,
    /// `_msg_id`: tells the caller which of its calls is answered.
    pub msg_id: String,
}

/// The inner message, taken apart but not yet judged.
#[derive(Debug, Clone)]
pub struct Inner {
    /// `method`; empty when missing, which no table knows.
    pub method: String,
    /// `args`, or what was there instead.
    pub args: Value,
    /// `version`; a missing one means 1.0 upstream.
    pub version: Option<String>,
    /// `namespace`; Cinder has none.
    pub namespace: Option<Value>,
    /// Present exactly for calls.
    pub reply: Option<ReplyTo>,
    /// `_timeout`: seconds after which a caller that asked for keep-alives gives up waiting for one.
    pub timeout: Option<f64>,
    /// `_unique_id`, or one derived from the message when its sender left it out.
    pub unique_id: String,
    /// `_context_*` with the prefix removed.
    pub context: Map<String, Value>,
    /// The inner message without its token, for the journal.
    pub text: String,
}

/// Takes the outer layer off.
///
/// # Errors
/// [`Code::MalformedMessage`]: not JSON, no object, or an envelope of another version. Nobody can be
/// answered then.
pub fn open(body: &[u8]) -> Result<Map<String, Value>> {
    let outer = object(serde_json::from_slice(body).map_err(malformed)?)?;
    let Some(version) = outer.get(VERSION_KEY) else {
        return Ok(outer); // Peers without envelopes are accepted as they are.
    };
    let version = version.as_str().unwrap_or_default();
    if !accepted_envelope(version) {
        return Err(Error::new(Code::MalformedMessage, format!("Envelope version {version} is not 2.0")));
    }
    match outer.get(MESSAGE_KEY) {
        Some(Value::String(text)) => object(serde_json::from_str(text).map_err(malformed)?),
        _ => Err(Error::new(Code::MalformedMessage, format!("The envelope has no text in {MESSAGE_KEY}"))),
    }
}

fn accepted_envelope(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next(), parts.next()), (Some(Ok(2)), Some(Ok(0)), None))
}

fn object(value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(Error::new(Code::MalformedMessage, "The message is not a JSON object")),
    }
}

fn malformed(error: serde_json::Error) -> Error {
    // serde_json's texts hold positions, never the content.
    Error::new(Code::MalformedMessage, "The message is not JSON").caused_by(error)
}

/// Puts the outer layer on.
pub fn seal(inner: &Map<String, Value>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Outer<'a> {
        #[serde(rename = "oslo.version")]
        version: &'a str,
        #[serde(rename = "oslo.message")]
        message: &'a str,
    }
    serde_json::to_vec(&Outer { version: "2.0", message: &text(inner) }).unwrap_or_default()
}

/// A map of JSON values always serialises: its keys are strings.
fn text(map: &Map<String, Value>) -> String {
    serde_json::to_string(map).unwrap_or_default()
}

/// Takes the inner message apart.
pub fn read(mut map: Map<String, Value>) -> Inner {
    let token = map.remove(TOKEN_KEY);
    let text = text(&map);
    let mut string = |key: &str| match map.remove(key) {
        Some(Value::String(s)) => Some(s),
        _ => None,
    };
    let method = string("method").unwrap_or_default();
    let msg_id = string("_msg_id");
    let reply_queue = string("_reply_q");
    let unique_id = string("_unique_id").unwrap_or_else(|| derived_id(&text));
    let version = match map.remove("version") {
        None | Some(Value::Null) => None,
        Some(Value::String(s)) => Some(s),
        Some(other) => Some(other.to_string()),
    };
    let timeout = match map.remove("_timeout") {
        Some(Value::Number(n)) => n.as_f64(),
        Some(Value::String(s)) => s.parse().ok(),
        _ => None,
    };
    let args = map.remove("args").unwrap_or_else(|| Value::Object(Map::new()));
    let namespace = map.remove("namespace").filter(|n| !n.is_null());
    let mut context: Map<String, Value> = map
        .into_iter()
        .filter_map(|(k, v)| k.strip_prefix(CONTEXT_PREFIX).map(|k| (k.to_owned(), v)))
        .collect();
    if let Some(token) = token {
        context.insert("auth_token".to_owned(), token);
    }
    let reply = msg_id.zip(reply_queue).map(|(msg_id, queue)| ReplyTo { queue, msg_id });
    Inner { method, args, version, namespace, reply, timeout, unique_id, context, text }
}

/// Every sender writes `_unique_id`; for one that does not, the same bytes must still give the same id,
/// or a redelivery would be executed twice. The hash is stable within a release of Rust, which spans the
/// life of a redelivery.
fn derived_id(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut low = DefaultHasher::new();
    text.hash(&mut low);
    let mut high = DefaultHasher::new();
    (text, "second half").hash(&mut high);
    format!("{:016x}{:016x}", high.finish(), low.finish())
}

/// Builds the context, with the rules of `cinder.context.RequestContext.from_dict`.
///
/// # Errors
/// [`Code::InvalidValue`] for a `read_deleted` that Cinder refuses (null among them).
pub fn context(mut fields: Map<String, Value>) -> Result<RequestContext> {
    match fields.get("read_deleted") {
        None => {}
        Some(Value::String(s)) if matches!(s.as_str(), "no" | "yes" | "only") => {}
        Some(other) => {
            let shown = if other.is_null() { "None".to_owned() } else { other.to_string() };
            return Err(Error::new(
                Code::InvalidValue,
                format!("read_deleted can only be one of 'no', 'yes' or 'only', not {shown}"),
            ));
        }
    }
    let is_role_admin = fields.get("roles").and_then(Value::as_array).is_some_and(|roles| {
        roles.iter().filter_map(Value::as_str).any(|role| role.eq_ignore_ascii_case("admin"))
    });
    match fields.get("is_admin") {
        // Upstream asks the policy `context_is_admin`, which is `role:admin` unless overridden.
        None | Some(Value::Null) => {
            fields.insert("is_admin".to_owned(), Value::Bool(is_role_admin));
        }
        Some(Value::Bool(true)) if !is_role_admin => {
            if let Value::Array(roles) = fields.entry("roles").or_insert_with(|| Value::Array(Vec::new())) {
                roles.push(Value::String("admin".to_owned()));
            }
        }
        Some(_) => {}
    }
    Ok(RequestContext::from_fields(fields))
}

/// A new `_unique_id` or `_msg_id`.
pub fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A cast (or fanout) to send, ready to be sealed.
pub fn cast(context: &RequestContext, method: &str, version: &str, args: Value) -> Map<String, Value> {
    let mut inner = Map::new();
    inner.insert("method".to_owned(), Value::String(method.to_owned()));
    inner.insert("args".to_owned(), args);
    inner.insert("version".to_owned(), Value::String(version.to_owned()));
    inner.insert("_unique_id".to_owned(), Value::String(new_id()));
    for (key, value) in context.to_fields() {
        inner.insert(format!("{CONTEXT_PREFIX}{key}"), value);
    }
    inner
}

/// What a notification's context does not carry over from the request's: upstream publishes a redacted
/// copy (`oslo_context`, `redacted_copy`), which has these fields anew.
const REDACTED: &[&str] = &[
    "auth_token",
    "global_request_id",
    "message_action",
    "message_resource_id",
    "message_resource_type",
    "quota_class",
    "remote_address",
    "resource_uuid",
];

/// The context of a notification: who and what for, without anything to act with.
pub fn notification_context(context: &RequestContext) -> Map<String, Value> {
    let mut fields = context.to_redacted_fields().clone();
    for field in REDACTED {
        fields.insert((*field).to_owned(), Value::Null);
    }
    fields.insert("service_catalog".to_owned(), Value::Array(Vec::new()));
    fields.insert("read_deleted".to_owned(), Value::String("no".to_owned()));
    let now = chrono::Utc::now().naive_utc().format("%Y-%m-%dT%H:%M:%S%.6f");
    fields.insert("timestamp".to_owned(), Value::String(now.to_string()));
    fields.into_iter().map(|(key, value)| (format!("{CONTEXT_PREFIX}{key}"), value)).collect()
}

/// The answer of a call, in a form that the journal can keep until it is known to be delivered.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The result; null on failure and for methods that return nothing.
    pub result: Value,
    /// The remote exception, a JSON document in a string.
    pub failure: Option<String>,
}

impl Reply {
    /// The answer that a method's outcome makes.
    pub fn new(outcome: Result<Value, &Error>) -> Reply {
        match outcome {
            Ok(result) => Reply { result, failure: None },
            Err(error) => Reply { result: Value::Null, failure: Some(fault::document(error)) },
        }
    }

    /// For the journal.
    pub fn to_value(&self) -> Value {
        json!({"result": self.result, "failure": self.failure})
    }

    /// From the journal; `None` when it is no answer.
    pub fn from_value(value: &Value) -> Option<Reply> {
        let failure = match value.get("failure")? {
            Value::Null => None,
            Value::String(s) => Some(s.clone()),
            _ => return None,
        };
        Some(Reply { result: value.get("result")?.clone(), failure })
    }

    /// The message that ends the call.
    pub fn into_message(self, msg_id: &str) -> Map<String, Value> {
        reply_message(self.result, self.failure, true, msg_id)
    }
}

/// The message that tells a caller who asked for it that work goes on.
pub fn keep_alive(msg_id: &str) -> Map<String, Value> {
    reply_message(Value::Null, None, false, msg_id)
}

fn reply_message(result: Value, failure: Option<String>, ending: bool, msg_id: &str) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("result".to_owned(), result);
    map.insert("failure".to_owned(), failure.map_or(Value::Null, Value::String));
    map.insert("ending".to_owned(), Value::Bool(ending));
    map.insert("_msg_id".to_owned(), Value::String(msg_id.to_owned()));
    map.insert("_unique_id".to_owned(), Value::String(new_id()));
    map
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn an_envelope_of_another_version_is_refused_and_a_bare_message_accepted() {
        let sealed = |v: &str| json!({"oslo.version": v, "oslo.message": "{\"method\": \"m\"}"}).to_string();
        assert_eq!(open(sealed("2.0").as_bytes()).unwrap()["method"], "m");
        for bad in ["1.0", "3.0", "2.1", "2", "", "2.0.0"] {
            assert_eq!(open(sealed(bad).as_bytes()).unwrap_err().code(), Code::MalformedMessage, "{bad}");
        }
        assert_eq!(open(b"{\"method\": \"m\"}").unwrap()["method"], "m");
        for bad in [&b"[]"[..], b"", b"\xff", b"{\"oslo.version\": \"2.0\"}"] {
            assert_eq!(open(bad).unwrap_err().code(), Code::MalformedMessage);
        }
    }

    #[test]
    fn the_journal_text_has_no_token_and_reads_back() {
        let inner = read(map(json!({"method": "m", "args": {"a": 1}, "version": "3.0", "_msg_id": "i",
            "_reply_q": "q", "_timeout": null, "_unique_id": "u", "_context_auth_token": "s3cret",
            "_context_request_id": "req-1"})));
        assert!(!inner.text.contains("s3cret"));
        assert_eq!(inner.context["auth_token"], "s3cret");
        assert_eq!(inner.reply, Some(ReplyTo { queue: "q".into(), msg_id: "i".into() }));
        let again = read(open(inner.text.as_bytes()).unwrap());
        assert_eq!((again.method.as_str(), again.unique_id.as_str()), ("m", "u"));
        assert!(!again.context.contains_key("auth_token"));
        assert_eq!(again.timeout, None);
    }

    #[test]
    fn a_message_without_an_id_gets_the_same_one_each_time() {
        let one = read(map(json!({"method": "m"})));
        let two = read(map(json!({"method": "m"})));
        let other = read(map(json!({"method": "n"})));
        assert_eq!(one.unique_id, two.unique_id);
        assert_ne!(one.unique_id, other.unique_id);
        assert_eq!(one.unique_id.len(), 32);
    }

    #[test]
    fn contexts_follow_cinders_rules() {
        for good in [json!({}), json!({"read_deleted": "no"}), json!({"read_deleted": "only"})] {
            assert!(context(map(good)).is_ok());
        }
        for bad in [json!({"read_deleted": null}), json!({"read_deleted": "maybe"})] {
            assert_eq!(context(map(bad)).unwrap_err().code(), Code::InvalidValue);
        }
        assert!(context(map(json!({"is_admin": null, "roles": ["Admin"]}))).unwrap().is_admin);
        assert!(!context(map(json!({"is_admin": null, "roles": ["member"]}))).unwrap().is_admin);
        let admin = context(map(json!({"is_admin": true, "roles": []}))).unwrap();
        assert_eq!(admin.to_fields()["roles"], json!(["admin"]));
    }

    #[test]
    fn a_reply_survives_the_journal() {
        for outcome in [Ok(json!({"a": [1]})), Err(Error::new(Code::VolumeNotFound, "v1"))] {
            let reply = Reply::new(outcome.as_ref().map(Value::clone));
            assert_eq!(Reply::from_value(&reply.to_value()), Some(reply));
        }
        assert_eq!(Reply::from_value(&json!({"result": 1})), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(map) = open(&body) {
                let _ = read(map);
            }
        }
    }
}
