//! Handing a key to the service of another host.
//!
//! The journal is no place for a key, so this one thing goes over the broker, to that host and to nobody else; the
//! service writes it into its file and then the order into the journal, where it is found by its number.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::super::{Context, Report};
use super::watch;
use crate::context::RequestContext;
use crate::error::{Code, Error, Result};
use crate::rpc::namespace::TOPIC;
use crate::rpc::publisher::Destination;
use crate::rpc::topology::Target;
use crate::rpc::{Rpc, envelope};
use crate::site::Parts;

/// Until the order must be in the journal.
const TAKEN: Duration = Duration::from_secs(30);
/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);

/// Sends `method` with what was given, and watches the order to its end, unless told not to.
pub(super) async fn send(
    context: &Context,
    host: &str,
    method: &str,
    mut args: Value,
    given: Parts,
    wait: bool,
) -> Result<Report> {
    if let Value::Object(args) = &mut args {
        args.insert("user".to_owned(), json!(given.user));
        args.insert("conf_text".to_owned(), json!(given.conf_text));
        args.insert("monitors".to_owned(), json!(given.monitors));
        args.insert("key".to_owned(), json!(given.key));
    }
    let operation = deliver(context, host, (method, version(method)), args).await?;
    watch(context, host, operation, true, wait).await
}

/// Sends a method of a version to the service of `host`; answers the operation that it has written down.
pub(super) async fn deliver(
    context: &Context,
    host: &str,
    (method, version): (&str, &str),
    mut args: Value,
) -> Result<i64> {
    let id = Uuid::new_v4().simple().to_string();
    if let Value::Object(args) = &mut args {
        args.insert("order".to_owned(), json!(id));
    }
    let mut message = envelope::cast(&RequestContext::admin(), method, version, args);
    message.insert("namespace".to_owned(), json!("site"));
    let rpc = Rpc::new(&context.config.rabbit, &context.config.control_exchange)?;
    let to = Destination::Server(Target { topic: TOPIC.to_owned(), server: host.to_owned() });
    let sent = rpc.publisher().cast(&to, &message).await;
    rpc.close().await;
    sent?;
    let end = Instant::now() + TAKEN;
    loop {
        if let Some(operation) = context.journal.known(&id).await? {
            return Ok(operation);
        }
        if Instant::now() >= end {
            return Err(Error::new(
                Code::ServiceNotFound,
                format!(
                    "The service of {host} has not written the order down in {} s: is scoria-volume running there, with \
                     this [DEFAULT] host, and may it write its scoria_site_dir? Its log says what it refused",
                    TAKEN.as_secs()
                ),
            ));
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The version of the namespace that a method came with.
fn version(method: &str) -> &'static str {
    if method.starts_with("daemon_") { "1.2" } else { "1.0" }
}
