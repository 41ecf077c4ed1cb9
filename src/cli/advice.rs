//! Why a volume was left behind, and what its operator can do about it.

use serde_json::Value;

use crate::journal::Item;
use crate::replication::orders::RESYNC;
use crate::replication::plan::{self as failover, Reason as NotMoved};
use crate::replication::resync::plan::{self as resync, Reason as NotResynced};

/// A volume that an operation gave up.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Failure {
    /// Volume id.
    pub(super) volume: String,
    /// What was wrong.
    pub(super) reason: String,
    /// What to do.
    pub(super) advice: String,
}

/// The failure of an operation's item; `None` when it has not failed.
pub(super) fn failure(method: &str, item: &Item) -> Option<Failure> {
    if item.name() != "failed" {
        return None;
    }
    let data = &item.step.data;
    let known = if method == RESYNC {
        match serde_json::from_value(data.clone()) {
            Ok(resync::Step::Failed { reason }) => Some((reason.text(), not_resynced(reason))),
            _ => None,
        }
    } else {
        match serde_json::from_value(data.clone()) {
            Ok(failover::Step::Failed { reason }) => Some((reason.text(), not_moved(reason))),
            _ => None,
        }
    };
    let volume = item.step.resource_id.clone();
    Some(match known {
        Some((reason, advice)) => Failure { volume, reason: reason.to_owned(), advice: advice.to_owned() },
        None => {
            let text = ["reason", "error", "detail"].iter().find_map(|k| data.get(k).and_then(Value::as_str));
            Failure {
                volume,
                reason: text.unwrap_or("no reason was recorded").to_owned(),
                advice: data
                    .get("advice")
                    .and_then(Value::as_str)
                    .unwrap_or("see the service's log")
                    .to_owned(),
            }
        }
    })
}

fn not_moved(reason: NotMoved) -> &'static str {
    match reason {
        NotMoved::BothPrimary => {
            "choose the copy to keep, discard the other (replication resync --discard SITE), then replication retry"
        }
        NotMoved::NotMirrored => {
            "look at `rbd mirror image status` on both sites; enable mirroring again by a retype, then replication retry"
        }
        NotMoved::PeerMissing => {
            "check the pool's peer and rbd-mirror of the target site until the copy replays, then replication retry"
        }
        NotMoved::PeerNotReady => {
            "wait until `rbd mirror image status` on the target site says replaying, then replication retry"
        }
        NotMoved::DemoteFailed => {
            "check the health of the site it is on and what holds its image, then replication retry"
        }
        NotMoved::PromoteNotAccepted => {
            "check rbd-mirror and the link between the sites (the demotion did not arrive), then replication retry"
        }
        NotMoved::TargetUnreadable | NotMoved::TargetSilent => {
            "bring the target site back, then replication retry"
        }
        NotMoved::SourceUnreadable => {
            "the old site answers in part: repair it or stop it for good, then replication retry"
        }
        NotMoved::SourceDied => {
            "bring the site back, or order it again with --unplanned; then replication retry"
        }
        NotMoved::NotWritable => {
            "stop rbd-mirror on the target site if it holds the image's lock, then replication retry"
        }
        NotMoved::NoPrimary => {
            "check both sites, promote the newer copy by hand (rbd mirror image promote), then replication retry"
        }
    }
}

fn not_resynced(reason: NotResynced) -> &'static str {
    match reason {
        NotResynced::KeeperNotPrimary => {
            "move it to the site to keep first (replication retry, or failover-host), then order the resync again"
        }
        NotResynced::NotMirrored => {
            "look at `rbd mirror image status` on both sites; enable mirroring again by a retype"
        }
        NotResynced::Unreadable => "bring both sites back, then order the resync again",
        NotResynced::DemoteFailed => {
            "check what holds its image on the site to discard, then order the resync again"
        }
        NotResynced::NotReplaying => {
            "look at `rbd mirror image status` there: if it syncs, wait; if not, check rbd-mirror and order it again"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Step;
    use crate::replication::orders::RETRY;
    use serde_json::json;

    fn item(name: &str, data: Value) -> Item {
        Item {
            step: Step { resource_id: "v1".into(), name: name.into(), data },
            updated_at: chrono::NaiveDateTime::default(),
        }
    }

    #[test]
    fn every_failure_has_a_reason_and_something_to_do() {
        let step = failover::Step::Failed { reason: NotMoved::BothPrimary };
        let found = failure(RETRY, &item("failed", serde_json::to_value(&step).unwrap())).unwrap();
        assert_eq!(found.reason, NotMoved::BothPrimary.text());
        assert!(found.advice.contains("resync --discard"), "{}", found.advice);
        let step = resync::Step::Failed { reason: NotResynced::KeeperNotPrimary };
        let found = failure(RESYNC, &item("volume", serde_json::to_value(&step).unwrap())).unwrap();
        assert_eq!(found.reason, NotResynced::KeeperNotPrimary.text());
    }

    #[test]
    fn what_has_not_failed_or_is_not_known_is_told_apart() {
        assert_eq!(failure(RETRY, &item("moved", json!({"step": "moved"}))), None);
        let newer = failure(RETRY, &item("failed", json!({"step": "failed", "reason": "eaten_by_a_bear"})));
        assert_eq!(newer.unwrap().reason, "eaten_by_a_bear");
        assert_eq!(failure(RETRY, &item("failed", Value::Null)).unwrap().reason, "no reason was recorded");
    }
}
