//! What may be ordered of a host's backends, as the journal has it.
//!
//! `scoria-manage` and the RPC namespace `backend` write the same. An argument that a service does not know is an error,
//! never ignored. Options are those of files: no key and no password is among what an RBD backend reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::Result;
use crate::journal::{self, Journal, NewOperation, Submitted};

/// What the method of every order begins with.
pub const PREFIX: &str = "scoria.backend.";

/// Options with all their values; a repeatable one may have several, and none means that it is taken out.
pub type Options = BTreeMap<String, Vec<String>>;

/// Make a backend, with a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Its name, everywhere.
    pub name: String,
    /// Its options.
    pub options: Options,
    /// A volume type to make for it.
    pub volume_type: Option<String>,
    /// New volumes may be placed there at once.
    pub enabled: bool,
    /// Only look, and say.
    pub dry_run: bool,
}

/// Change options of a backend with a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Its name.
    pub name: String,
    /// The options that change.
    pub options: Options,
    /// Only look, and say.
    pub dry_run: bool,
}

/// A backend by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its name.
    pub name: String,
}

/// No new volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disable {
    /// Its name.
    pub name: String,
    /// Shown by `cinder service-list`.
    pub reason: Option<String>,
}

/// Serve it no more, until it is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Its name.
    pub name: String,
    /// Wait for work in flight as long as it takes.
    pub drain: bool,
}

/// Remove a backend with a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// Its name.
    pub name: String,
    /// Also while it has volumes or work: their rows stay as they are.
    pub force: bool,
    /// Wait for work in flight as long as it takes.
    pub drain: bool,
    /// Only look, and say.
    pub dry_run: bool,
}

/// Give a backend with a file of its own another name; or take over what another service host had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// Its name.
    pub name: String,
    /// Its new name; the same when only `from` counts.
    pub new_name: String,
    /// The service host whose volumes, groups and service row become this backend's.
    pub from: Option<String>,
    /// Only look, and say.
    pub dry_run: bool,
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", content = "args")]
pub enum Order {
    /// See [`Create`].
    #[serde(rename = "scoria.backend.create")]
    Create(Create),
    /// See [`Update`].
    #[serde(rename = "scoria.backend.update")]
    Update(Update),
    /// New volumes may be placed there; it is started when it does not run.
    #[serde(rename = "scoria.backend.enable")]
    Enable(Named),
    /// See [`Disable`].
    #[serde(rename = "scoria.backend.disable")]
    Disable(Disable),
    /// Serve it.
    #[serde(rename = "scoria.backend.start")]
    Start(Named),
    /// See [`Stop`].
    #[serde(rename = "scoria.backend.stop")]
    Stop(Stop),
    /// See [`Delete`].
    #[serde(rename = "scoria.backend.delete")]
    Delete(Delete),
    /// See [`Rename`].
    #[serde(rename = "scoria.backend.rename")]
    Rename(Rename),
}

impl Order {
    /// The method in the journal.
    pub fn method(&self) -> &'static str {
        match self {
            Order::Create(_) => "scoria.backend.create",
            Order::Update(_) => "scoria.backend.update",
            Order::Enable(_) => "scoria.backend.enable",
            Order::Disable(_) => "scoria.backend.disable",
            Order::Start(_) => "scoria.backend.start",
            Order::Stop(_) => "scoria.backend.stop",
            Order::Delete(_) => "scoria.backend.delete",
            Order::Rename(_) => "scoria.backend.rename",
        }
    }

    /// What is done, as notifications call it.
    pub fn verb(&self) -> &'static str {
        self.method().strip_prefix(PREFIX).unwrap_or_default()
    }

    /// The backend's name.
    pub fn name(&self) -> &str {
        match self {
            Order::Create(o) => &o.name,
            Order::Update(o) => &o.name,
            Order::Enable(o) | Order::Start(o) => &o.name,
            Order::Disable(o) => &o.name,
            Order::Stop(o) => &o.name,
            Order::Delete(o) => &o.name,
            Order::Rename(o) => &o.name,
        }
    }

    /// True when nothing is to be changed.
    pub fn is_dry_run(&self) -> bool {
        match self {
            Order::Create(o) => o.dry_run,
            Order::Update(o) => o.dry_run,
            Order::Delete(o) => o.dry_run,
            Order::Rename(o) => o.dry_run,
            Order::Enable(_) | Order::Disable(_) | Order::Start(_) | Order::Stop(_) => false,
        }
    }
}

/// An order as the journal has it.
pub type Request = journal::Request<Order>;

/// Writes an order down for the service of `host`. One with the same `id` is written once. Answers its operation and
/// whether it is new.
///
/// # Errors
/// `Database`.
pub async fn submit(journal: &Journal, host: &str, order: Order, id: Option<String>) -> Result<(i64, bool)> {
    let request = Request::new(order);
    let new = NewOperation {
        unique_id: id.unwrap_or_else(|| Uuid::new_v4().simple().to_string()),
        method: request.order.method().to_owned(),
        backend_host: host.to_owned(),
        request: request.to_text()?,
        ..NewOperation::default()
    };
    Ok(match journal.submit(&new).await? {
        Submitted::New(id) => (id, true),
        Submitted::Open(id) => (id, false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn an_order_is_read_as_it_was_written_and_has_no_more_to_say() {
        let options = Options::from([("rbd_pool".to_owned(), vec!["fast".to_owned()])]);
        let create =
            Create { name: "fast".into(), options, volume_type: None, enabled: true, dry_run: false };
        let request = Request::new(Order::Create(create));
        let text = request.to_text().unwrap();
        assert_eq!(Request::parse(&text).unwrap(), request);
        assert_eq!((request.order.verb(), request.order.name()), ("create", "fast"));
        let more = text.replace(r#""dry_run":false"#, r#""dry_run":false,"key":"AQ==""#);
        assert_eq!(Request::parse(&more).unwrap_err().code(), Code::BadArguments);
        let start = Request::new(Order::Start(Named { name: "x".into() }));
        assert_eq!(Request::parse(&start.to_text().unwrap()).unwrap(), start);
    }
}
