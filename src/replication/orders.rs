//! What an operator's tool may order from the service that owns the Ceph clusters.
//!
//! `scoria-manage` never touches Ceph. It writes an order into the journal
//! ([`Journal::submit`](crate::journal::Journal::submit)), the service of the backend adopts it like any
//! operation that somebody left behind, and both speak the types below. An argument that a service does
//! not know is an error, never ignored: it may have been a restriction on what to throw away.

use serde::{Deserialize, Serialize};

use super::foresight::Inquiry;
use super::intent::Intent;
use crate::journal;

/// Method of [`Order::Resync`].
pub const RESYNC: &str = "scoria.replication.resync";
/// Method of [`Order::Retry`].
pub const RETRY: &str = "scoria.replication.retry";
/// Method of [`Order::TestStart`].
pub const TEST_START: &str = "scoria.replication.test.start";
/// Method of [`Order::TestStop`].
pub const TEST_STOP: &str = "scoria.replication.test.stop";
/// Method of [`Order::Failover`].
pub const FAILOVER: &str = "scoria.replication.failover";
/// Method of [`Order::Move`].
pub const MOVE: &str = "scoria.replication.move";
/// Method of [`Order::Adopt`].
pub const ADOPT: &str = "scoria.replication.adopt";

/// Method of [`Order::Fence`].
pub const FENCE: &str = "scoria.replication.fence";
/// Method of [`Order::Unfence`].
pub const UNFENCE: &str = "scoria.replication.unfence";

/// Method of [`Order::Inquire`].
pub const INQUIRE: &str = "scoria.replication.inquire";
/// Method of [`Order::Repair`].
pub const REPAIR: &str = "scoria.replication.repair";
/// Method of [`Order::Refresh`].
pub const REFRESH: &str = "scoria.replication.refresh";

/// Method of [`Order::PurgeTrash`].
pub const PURGE_TRASH: &str = "scoria.trash.purge";
/// Method of [`Order::RestoreTrash`].
pub const RESTORE_TRASH: &str = "scoria.trash.restore";

/// Method of [`Order::Drain`].
pub const DRAIN: &str = "scoria.drain";

/// Methods that move volumes between sites: while one of them is open, the active site may change.
pub const MOVES: &[&str] = &["failover", "failover_host", RETRY, FAILOVER, MOVE, ADOPT];
/// Those that change where the backend itself works, and so what its service row says.
pub const OF_BACKEND: &[&str] = &["failover", "failover_host", FAILOVER];
/// Every method that works on the replication of a backend's volumes.
pub const ALL: &[&str] = &["failover", "failover_host", RETRY, FAILOVER, MOVE, RESYNC, ADOPT];

/// Discard the copies on one site and sync them anew from where the volumes are primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resync {
    /// Site whose copies are discarded: `default` or a `backend_id`.
    pub discard: String,
    /// Only these volumes; `None`: all replicated volumes of the backend.
    pub volumes: Option<Vec<String>>,
}

/// Move volumes in `failover-error` to where their backend is active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Only these volumes; `None`: all in `failover-error`.
    pub volumes: Option<Vec<String>>,
}

/// Clone the copies of volumes on another site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestStart {
    /// Id of the drill.
    pub id: String,
    /// Only these volumes; `None`: all replicated volumes of the backend.
    pub volumes: Option<Vec<String>>,
    /// As of one instant, where that can be.
    pub together: bool,
    /// Pool of the clones; `None`: that of the volumes.
    pub pool: Option<String>,
}

/// Remove what a drill has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestStop {
    /// Only this drill; `None`: all of the backend.
    pub id: Option<String>,
}

/// Fail the whole backend over, as `cinder failover-host` does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    /// `default`, a `backend_id`, or `None`: the first that is not active.
    pub target: Option<String>,
    /// What the operator says of the site that is left.
    pub intent: Intent,
}

/// Move some volumes, or the members of a group, and leave the backend where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// `default`, a `backend_id`, or `None`: the first that they are not on.
    pub target: Option<String>,
    /// What the operator says of the site that they leave.
    pub intent: Intent,
    /// These volumes.
    pub volumes: Option<Vec<String>>,
    /// Or the members of this group.
    pub group: Option<String>,
}

/// Make the site that the backend works on its own, as cinder.conf says by now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopt {
    /// Volumes that are not there are given up.
    pub leave_behind: bool,
    /// No other site is left: end the mirroring of the images, too.
    pub stop_mirroring: bool,
    /// The operator's word for which cluster it is, where it contradicts what is known, or nothing is.
    pub fsid: Option<String>,
    /// Only look.
    pub dry_run: bool,
}

/// Keep the clients of volumes that have left a site out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// The site that the volumes have left: `default` or a `backend_id`.
    pub site: String,
    /// Only the clients of these volumes; `None`: of all that are served from elsewhere.
    pub volumes: Option<Vec<String>>,
    /// How long the fence holds.
    pub seconds: u32,
}

/// Let them in again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfence {
    /// The site.
    pub site: String,
    /// Only what was fenced because of these volumes; `None`: all.
    pub volumes: Option<Vec<String>>,
}

/// Mend what an audit finds, as far as that is provably safe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repair {
    /// Only these volumes; `None`: all of the backend, and rows about nothing.
    pub volumes: Option<Vec<String>>,
}

/// Rewrite stored connection information that names another site than the one that serves the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    /// Only attachments of these volumes; `None`: of all volumes of the backend.
    pub volumes: Option<Vec<String>>,
}

/// Remove what is due from the trash, now, and whether or not deferred deletion is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeTrash {}

/// Give the image of a deleted volume its name back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreTrash {
    /// Id of the volume.
    pub volume: String,
}

/// Take no more requests, and finish what is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", content = "args")]
pub enum Order {
    /// See [`Resync`].
    #[serde(rename = "scoria.replication.resync")]
    Resync(Resync),
    /// See [`Retry`].
    #[serde(rename = "scoria.replication.retry")]
    Retry(Retry),
    /// See [`TestStart`].
    #[serde(rename = "scoria.replication.test.start")]
    TestStart(TestStart),
    /// See [`TestStop`].
    #[serde(rename = "scoria.replication.test.stop")]
    TestStop(TestStop),
    /// See [`Failover`].
    #[serde(rename = "scoria.replication.failover")]
    Failover(Failover),
    /// See [`Move`].
    #[serde(rename = "scoria.replication.move")]
    Move(Move),
    /// See [`Adopt`].
    #[serde(rename = "scoria.replication.adopt")]
    Adopt(Adopt),
    /// See [`Fence`].
    #[serde(rename = "scoria.replication.fence")]
    Fence(Fence),
    /// See [`Unfence`].
    #[serde(rename = "scoria.replication.unfence")]
    Unfence(Unfence),
    /// See [`Inquiry`]: it changes nothing, and is answered.
    #[serde(rename = "scoria.replication.inquire")]
    Inquire(Inquiry),
    /// See [`Repair`].
    #[serde(rename = "scoria.replication.repair")]
    Repair(Repair),
    /// See [`Refresh`].
    #[serde(rename = "scoria.replication.refresh")]
    Refresh(Refresh),
    /// See [`PurgeTrash`].
    #[serde(rename = "scoria.trash.purge")]
    PurgeTrash(PurgeTrash),
    /// See [`RestoreTrash`].
    #[serde(rename = "scoria.trash.restore")]
    RestoreTrash(RestoreTrash),
    /// See [`Drain`].
    #[serde(rename = "scoria.drain")]
    Drain(Drain),
}

impl Order {
    /// The method in the journal.
    pub fn method(&self) -> &'static str {
        match self {
            Order::Resync(_) => RESYNC,
            Order::Retry(_) => RETRY,
            Order::TestStart(_) => TEST_START,
            Order::TestStop(_) => TEST_STOP,
            Order::Failover(_) => FAILOVER,
            Order::Move(_) => MOVE,
            Order::Adopt(_) => ADOPT,
            Order::Fence(_) => FENCE,
            Order::Unfence(_) => UNFENCE,
            Order::Inquire(_) => INQUIRE,
            Order::Repair(_) => REPAIR,
            Order::Refresh(_) => REFRESH,
            Order::PurgeTrash(_) => PURGE_TRASH,
            Order::RestoreTrash(_) => RESTORE_TRASH,
            Order::Drain(_) => DRAIN,
        }
    }
}

/// An order as the journal has it.
pub type Request = journal::Request<Order>;

/// Which site's content survives when the copy of a volume on `discard` is thrown away: the site that
/// serves the volume (`stray`, else the active one), unless that is the copy to discard; then the active
/// one. `None`: there is no other that is known to hold the volume, nothing may be discarded.
pub fn keeper<'a>(discard: &str, active: &'a str, stray: Option<&'a str>) -> Option<&'a str> {
    let serving = stray.unwrap_or(active);
    if serving != discard {
        Some(serving)
    } else if active != discard {
        Some(active)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn an_order_has_the_shape_of_a_message() {
        let order = Order::Resync(Resync { discard: "default".into(), volumes: Some(vec!["v1".into()]) });
        let request = Request { order: order.clone(), request_id: "req-1".into() };
        let text = request.to_text().unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            serde_json::json!({
                "method": RESYNC, "args": {"discard": "default", "volumes": ["v1"]}, "request_id": "req-1"
            })
        );
        assert_eq!(Request::parse(&text).unwrap(), request);
        assert_eq!(order.method(), RESYNC);
        let retry = Request::new(Order::Retry(Retry { volumes: None }));
        let text = retry.to_text().unwrap();
        assert!(text.contains(RETRY) && text.contains(r#""volumes":null"#), "{text}");
        assert_eq!(Request::parse(&text).unwrap(), retry);
        assert!(retry.request_id.starts_with("req-"));
    }

    #[test]
    fn an_unknown_restriction_is_refused() {
        let text = r#"{"method":"scoria.replication.resync","args":{"discard":"b","older_than":"1h"},"request_id":"r"}"#;
        assert_eq!(Request::parse(text).unwrap_err().code(), Code::BadArguments);
        let other = r#"{"method":"create_volume","args":{},"request_id":"r"}"#;
        assert_eq!(Request::parse(other).unwrap_err().code(), Code::BadArguments);
    }

    #[test]
    fn what_serves_a_volume_is_kept() {
        assert_eq!(keeper("default", "b", None), Some("b"));
        assert_eq!(keeper("b", "b", None), None, "the active site's data is never discarded");
        assert_eq!(keeper("default", "default", Some("b")), Some("b"), "a volume that was left behind on b");
        assert_eq!(keeper("default", "b", Some("default")), Some("b"), "only when the volume is named");
        assert_eq!(keeper("c", "default", Some("b")), Some("b"));
    }
}
