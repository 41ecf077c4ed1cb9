//! What may be ordered of a site, as the journal has it.
//!
//! `scoria-manage` and the RPC namespace `site` write the same. An argument that a service does not know is an
//! error, never ignored.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::daemon::{Action, DaemonOrder};
use super::detective::{HalfOrder, WhichOrder};
use super::independent::IndependentOrder;
use super::link::{Connect, Disconnect};
use super::moving::MoveOrder;
use super::replicate::ReplicateOrder;
use super::revert::RevertOrder;
use super::schedule::{ScheduleAct, ScheduleOrder};
use super::switch::SwitchOrder;
use crate::journal;

/// What the method of every order begins with.
pub const PREFIX: &str = "scoria.site.";

/// By which files a host reaches a site. Never their content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// ceph.conf.
    pub conf: PathBuf,
    /// Keyring.
    pub keyring: Option<PathBuf>,
    /// cephx user without `client.`.
    pub user: String,
    /// They are a draft in Scoria's directory: to be kept there for good when the site is accepted, and to be
    /// removed when it is not.
    pub draft: bool,
}

/// Make a site known, or give this host its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// Its name.
    pub name: String,
    /// The host's files.
    pub files: Files,
    /// Pools that Scoria is to work in, beside those of backends.
    pub pools: Vec<String>,
    /// Only look, and say.
    pub dry_run: bool,
}

/// Look at a site anew; give it another name, or this host other files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Its name.
    pub name: String,
    /// Another name.
    pub new_name: Option<String>,
    /// Other files.
    pub files: Option<Files>,
    /// Pools that Scoria is to work in, beside those of backends.
    pub pools: Vec<String>,
    /// Only look, and say.
    pub dry_run: bool,
}

/// Forget a site that nothing uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// Its name.
    pub name: String,
    /// Only look, and say.
    pub dry_run: bool,
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", content = "args")]
pub enum Order {
    /// See [`Register`].
    #[serde(rename = "scoria.site.register")]
    Register(Register),
    /// See [`Update`].
    #[serde(rename = "scoria.site.update")]
    Update(Update),
    /// See [`Delete`].
    #[serde(rename = "scoria.site.delete")]
    Delete(Delete),
    /// See [`Connect`].
    #[serde(rename = "scoria.site.connect")]
    Connect(Box<Connect>),
    /// See [`Disconnect`].
    #[serde(rename = "scoria.site.disconnect")]
    Disconnect(Box<Disconnect>),
    /// See [`DaemonOrder`].
    #[serde(rename = "scoria.site.daemon")]
    Daemon(DaemonOrder),
    /// See [`ScheduleOrder`].
    #[serde(rename = "scoria.site.schedule")]
    Schedule(ScheduleOrder),
    /// See [`ReplicateOrder`].
    #[serde(rename = "scoria.site.replicate")]
    Replicate(ReplicateOrder),
    /// See [`WhichOrder`].
    #[serde(rename = "scoria.site.which_volume")]
    Which(WhichOrder),
    /// See [`HalfOrder`].
    #[serde(rename = "scoria.site.half_deleted")]
    Half(HalfOrder),
    /// See [`SwitchOrder`].
    #[serde(rename = "scoria.site.switch")]
    Switch(SwitchOrder),
    /// See [`RevertOrder`].
    #[serde(rename = "scoria.site.revert")]
    Revert(RevertOrder),
    /// See [`MoveOrder`].
    #[serde(rename = "scoria.site.move")]
    Move(MoveOrder),
    /// See [`IndependentOrder`].
    #[serde(rename = "scoria.site.independent")]
    Independent(IndependentOrder),
}

impl Order {
    /// The method in the journal.
    pub fn method(&self) -> &'static str {
        match self {
            Order::Register(_) => "scoria.site.register",
            Order::Update(_) => "scoria.site.update",
            Order::Delete(_) => "scoria.site.delete",
            Order::Connect(_) => "scoria.site.connect",
            Order::Disconnect(_) => "scoria.site.disconnect",
            Order::Daemon(_) => "scoria.site.daemon",
            Order::Schedule(_) => "scoria.site.schedule",
            Order::Replicate(_) => "scoria.site.replicate",
            Order::Which(_) => "scoria.site.which_volume",
            Order::Half(_) => "scoria.site.half_deleted",
            Order::Switch(_) => "scoria.site.switch",
            Order::Revert(_) => "scoria.site.revert",
            Order::Move(_) => "scoria.site.move",
            Order::Independent(_) => "scoria.site.independent",
        }
    }

    /// What is done, as notifications call it.
    pub fn verb(&self) -> &'static str {
        self.method().strip_prefix(PREFIX).unwrap_or_default()
    }

    /// The site's name; of two the second.
    pub fn site(&self) -> &str {
        match self {
            Order::Register(o) => &o.name,
            Order::Update(o) => &o.name,
            Order::Delete(o) => &o.name,
            Order::Connect(o) => &o.b,
            Order::Disconnect(o) => &o.b,
            Order::Daemon(o) => &o.name,
            Order::Schedule(o) => &o.name,
            Order::Replicate(o) => &o.name,
            Order::Which(o) => o.site.as_deref().unwrap_or_default(),
            Order::Half(o) => &o.name,
            Order::Switch(o) => &o.name,
            Order::Revert(o) => &o.name,
            Order::Move(o) => &o.name,
            Order::Independent(o) => &o.name,
        }
    }

    /// True when nothing is to be changed.
    pub fn is_dry_run(&self) -> bool {
        match self {
            Order::Register(o) => o.dry_run,
            Order::Update(o) => o.dry_run,
            Order::Delete(o) => o.dry_run,
            Order::Connect(o) => o.dry_run,
            Order::Disconnect(o) => o.dry_run,
            Order::Daemon(o) => o.dry_run || o.action == Action::Status,
            Order::Replicate(o) => o.dry_run,
            Order::Which(_) => true,
            Order::Half(o) => !o.finish,
            Order::Switch(o) => o.dry_run,
            Order::Revert(_) => false,
            Order::Move(o) => o.dry_run,
            Order::Independent(o) => o.dry_run,
            Order::Schedule(o) => matches!(o.act, ScheduleAct::List | ScheduleAct::Status),
        }
    }

    /// The files that it brings.
    pub fn files(&self) -> Vec<&Files> {
        match self {
            Order::Register(o) => vec![&o.files],
            Order::Update(o) => o.files.iter().collect(),
            Order::Connect(o) => o.admins(),
            Order::Disconnect(o) => o.admins(),
            Order::Daemon(o) => o.files.iter().collect(),
            Order::Independent(o) => o.admin.iter().collect(),
            Order::Delete(_)
            | Order::Schedule(_)
            | Order::Replicate(_)
            | Order::Which(_)
            | Order::Half(_)
            | Order::Switch(_)
            | Order::Revert(_)
            | Order::Move(_) => vec![],
        }
    }
}

/// An order as the journal has it.
pub type Request = journal::Request<Order>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn an_order_is_read_as_it_was_written_and_has_no_more_to_say() {
        let files =
            Files { conf: "/etc/ceph/b.conf".into(), keyring: None, user: "cinder".into(), draft: false };
        let order = Order::Register(Register { name: "b".into(), files, pools: vec![], dry_run: true });
        let request = Request::new(order);
        let text = request.to_text().unwrap();
        assert_eq!(Request::parse(&text).unwrap(), request);
        assert_eq!((request.order.verb(), request.order.is_dry_run()), ("register", true));
        let more = text.replace(r#""draft":false"#, r#""draft":false,"key":"AQ==""#);
        assert_eq!(Request::parse(&more).unwrap_err().code(), Code::BadArguments);
    }
}
