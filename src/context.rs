//! What travels with a request from the broker to the last SQL statement.
//!
//! Cinder flattens its `RequestContext` into the message (`cinder/context.py`, reference rpc.md 1.5).
//! Scoria needs a few of its fields by name and must hand *all* of them on when it casts to the
//! scheduler or to cinder-backup, so the original map is kept. The token is kept apart, in a type
//! that cannot be printed, and is never written to the journal.

use chrono::NaiveDateTime;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

/// The request context of one RPC message.
#[derive(Debug, Clone, Default)]
pub struct RequestContext {
    /// `req-<uuid>`; written to user messages and to every log line of the request.
    pub request_id: String,
    /// `X-Openstack-Request-Id` of the outermost caller, when there is one.
    pub global_request_id: Option<String>,
    /// Keystone user (or the noauth user name).
    pub user_id: Option<String>,
    /// Keystone project.
    pub project_id: Option<String>,
    /// True when the request carries administrator rights.
    pub is_admin: bool,
    /// When the API accepted the request, UTC.
    pub timestamp: Option<NaiveDateTime>,
    /// Every `_context_*` field as received, prefix removed, without `auth_token`.
    fields: Map<String, Value>,
    token: Option<SecretString>,
}

impl RequestContext {
    /// Builds a context from the fields of a message (prefix `_context_` already removed).
    /// Validation of the fields that Cinder rejects is `rpc::envelope`'s.
    pub fn from_fields(mut fields: Map<String, Value>) -> Self {
        let token = match fields.remove("auth_token") {
            Some(Value::String(t)) => Some(SecretString::from(t)),
            _ => None,
        };
        let text = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
        RequestContext {
            request_id: text("request_id").unwrap_or_else(new_request_id),
            global_request_id: text("global_request_id"),
            user_id: text("user_id").or_else(|| text("user")),
            project_id: text("project_id").or_else(|| text("project")),
            is_admin: fields.get("is_admin").and_then(Value::as_bool).unwrap_or(false),
            timestamp: text("timestamp").and_then(|t| parse_timestamp(&t)),
            fields,
            token,
        }
    }

    /// An administrator's context for work that the service starts by itself
    /// (`cinder.context.get_admin_context`).
    pub fn admin() -> Self {
        let mut fields = Map::new();
        let request_id = new_request_id();
        for (key, value) in [
            ("user", Value::Null),
            ("user_id", Value::Null),
            ("project", Value::Null),
            ("project_id", Value::Null),
            ("system_scope", Value::Null),
            ("domain", Value::Null),
            ("user_domain", Value::Null),
            ("project_domain", Value::Null),
            ("is_admin", Value::Bool(true)),
            ("read_only", Value::Bool(false)),
            ("show_deleted", Value::Bool(false)),
            ("request_id", Value::String(request_id.clone())),
            ("global_request_id", Value::Null),
            ("resource_uuid", Value::Null),
            ("roles", Value::Array(vec![Value::String("admin".into())])),
            ("user_identity", Value::String("- - - - -".into())),
            ("is_admin_project", Value::Bool(true)),
            ("project_name", Value::Null),
            ("domain_id", Value::Null),
            ("read_deleted", Value::String("no".into())),
            ("remote_address", Value::Null),
            (
                "timestamp",
                Value::String(chrono::Utc::now().naive_utc().format("%Y-%m-%dT%H:%M:%S%.6f").to_string()),
            ),
            ("quota_class", Value::Null),
            ("service_catalog", Value::Array(vec![])),
            ("message_resource_id", Value::Null),
            ("message_resource_type", Value::Null),
            ("message_action", Value::Null),
        ] {
            fields.insert(key.to_owned(), value);
        }
        RequestContext { request_id, is_admin: true, fields, ..RequestContext::default() }
    }

    /// The user's token: known until the process ends, never stored.
    pub fn token(&self) -> Option<&SecretString> {
        self.token.as_ref()
    }

    /// A field that has no name of its own here, such as `service_catalog`.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// The id by which other services know the request (`global_id`).
    pub fn global_id(&self) -> &str {
        self.global_request_id.as_deref().unwrap_or(&self.request_id)
    }

    /// The fields to send on to the scheduler or to cinder-backup, token included.
    pub fn to_fields(&self) -> Map<String, Value> {
        let mut fields = self.fields.clone();
        let token = self.token.as_ref().map_or(Value::Null, |t| Value::String(t.expose_secret().to_owned()));
        fields.insert("auth_token".to_owned(), token);
        fields
    }

    /// The fields that may be stored (journal) or published (notifications): no token.
    pub fn to_redacted_fields(&self) -> &Map<String, Value> {
        &self.fields
    }
}

/// cinder-api writes the timestamp with `+00:00`, services that start work by themselves without.
fn parse_timestamp(text: &str) -> Option<NaiveDateTime> {
    chrono::DateTime::parse_from_rfc3339(text)
        .map(|t| t.naive_utc())
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f"))
        .ok()
}

fn new_request_id() -> String {
    format!("req-{}", uuid::Uuid::new_v4())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_timestamp_is_read_with_and_without_an_offset() {
        for (text, expected) in [
            ("2026-11-20T20:31:48.258308+00:00", "2026-11-20 20:31:48.258308"),
            ("2026-11-20T22:31:48+02:00", "2026-11-20 20:31:48"),
            ("2026-11-20T20:27:58.783217", "2026-11-20 20:27:58.783217"),
        ] {
            assert_eq!(parse_timestamp(text).map(|t| t.to_string()).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(parse_timestamp("yesterday"), None);
    }

    #[test]
    fn the_token_is_sent_on_but_never_stored_or_printed() {
        let Value::Object(fields) =
            json!({"request_id": "req-1", "auth_token": "s3cret", "is_admin": true, "x": 1})
        else {
            unreachable!()
        };
        let context = RequestContext::from_fields(fields);
        assert!(context.is_admin);
        assert_eq!(context.to_fields()["auth_token"], json!("s3cret"));
        assert_eq!(context.to_fields()["x"], json!(1));
        assert!(!context.to_redacted_fields().contains_key("auth_token"));
        assert!(!format!("{context:?}").contains("s3cret"));
    }
}
