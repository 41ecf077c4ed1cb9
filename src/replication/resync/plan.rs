//! What to do next with one volume whose copy on one site is to be thrown away: a pure function.
//!
//! Only a split-brain (primary on both sides, or a demoted former primary that cannot replay) is ever
//! resynced, only towards the site that the operator named, and only while the other side is primary:
//! so an order given twice, late, or for a healthy volume does nothing.

use serde::{Deserialize, Serialize};

use crate::replication::plan::{Peer, Side};

/// What was last ordered for the volume; persisted before the order is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// Nothing yet.
    Pending,
    /// The losing side was told to demote.
    Demoting,
    /// The losing side was told to throw its copy away and sync anew.
    Resyncing {
        /// Internal id of the image that was to be thrown away; its successor has another.
        #[serde(default)]
        discarded: Option<String>,
    },
    /// The losing side replays. Final.
    Replaying,
    /// Given up. Final.
    Failed {
        /// Why.
        reason: Reason,
    },
}

/// Why a volume was not resynced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The side to keep is not primary: nothing may be thrown away.
    KeeperNotPrimary,
    /// The image is not mirrored on one of the sides.
    NotMirrored,
    /// A side does not answer for this image.
    Unreadable,
    /// The losing side did not demote in time.
    DemoteFailed,
    /// The losing side did not replay in time; the sync may still be running.
    NotReplaying,
}

impl Reason {
    /// The sentence for the operator.
    pub fn text(self) -> &'static str {
        match self {
            Reason::KeeperNotPrimary => "its image is not primary on the site to keep: nothing was discarded",
            Reason::NotMirrored => "its image is not mirrored",
            Reason::Unreadable => "a site does not answer for its image",
            Reason::DemoteFailed => "its image could not be demoted in time",
            Reason::NotReplaying => "the copy did not replay in time; the sync may still be running",
        }
    }
}

/// Everything that a decision rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Last order.
    pub step: Step,
    /// What the side to keep says.
    pub keeper: Side,
    /// What the side to discard says.
    pub loser: Side,
    /// Whether the loser's daemon replays the image, freshly asked.
    pub peer: Peer,
    /// What the loser has is another image than the one that was to be thrown away (or it cannot be told).
    pub renewed: bool,
    /// The loser has acknowledged the order since this process began.
    pub ordered: bool,
    /// The current step has had its time.
    pub expired: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read both sides and the loser's daemon again, after a pause.
    Observe,
    /// Demote the loser.
    Demote,
    /// Throw the loser's copy away.
    Resync,
    /// It replays.
    Finish,
    /// Give up.
    Fail(Reason),
}

/// Decides the next action. Pure; total over all facts.
pub fn plan(case: &Case) -> Action {
    match &case.step {
        Step::Replaying => return Action::Finish,
        Step::Failed { reason } => return Action::Fail(*reason),
        Step::Pending | Step::Demoting | Step::Resyncing { .. } => {}
    }
    match case.keeper {
        Side::Primary => {}
        Side::Unknown if case.expired => return Action::Fail(Reason::Unreadable),
        Side::Unknown => return Action::Observe,
        Side::Secondary | Side::Absent => return Action::Fail(Reason::KeeperNotPrimary),
        Side::Plain => return Action::Fail(Reason::NotMirrored),
    }
    match (case.loser, &case.step) {
        (Side::Primary, Step::Demoting) if case.expired => Action::Fail(Reason::DemoteFailed),
        (Side::Primary, _) => Action::Demote,
        // While the daemon deletes and recreates the copy, it is not mirrored for a moment.
        (Side::Plain, Step::Resyncing { .. }) if !case.expired => Action::Observe,
        (Side::Plain, _) => Action::Fail(Reason::NotMirrored),
        (Side::Unknown, _) if case.expired => Action::Fail(Reason::Unreadable),
        (Side::Unknown, _) => Action::Observe,
        // A healthy copy needs no resync, whoever asked for one.
        (Side::Secondary, Step::Pending) if case.peer.replays() => Action::Finish,
        (Side::Secondary, Step::Resyncing { .. }) if case.renewed => match case.peer {
            Peer::Replaying | Peer::Unlinked => Action::Finish,
            Peer::Unknown | Peer::NotReplaying if case.expired => Action::Fail(Reason::NotReplaying),
            Peer::Unknown | Peer::NotReplaying => Action::Observe,
        },
        // The copy to be thrown away is still there. Ordering that twice does no harm, and whether it was
        // ordered before a restart is not known; but one that has come to replay meanwhile is healthy.
        (Side::Secondary, Step::Resyncing { .. }) if !case.ordered => match case.peer {
            Peer::Replaying | Peer::Unlinked => Action::Finish,
            Peer::Unknown | Peer::NotReplaying if case.expired => Action::Fail(Reason::NotReplaying),
            Peer::Unknown => Action::Observe,
            Peer::NotReplaying => Action::Resync,
        },
        // What we demoted had been written to: it is split, whatever its daemon said a moment ago.
        (Side::Secondary, Step::Demoting) => Action::Resync,
        // Found demoted: wait until it either replays by itself or has had its time to.
        (Side::Secondary, Step::Pending) if case.expired => Action::Resync,
        (Side::Secondary | Side::Absent, _) if case.expired => Action::Fail(Reason::NotReplaying),
        (Side::Secondary | Side::Absent, _) => Action::Observe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cases() -> impl Strategy<Value = Case> {
        let step = prop_oneof![
            Just(Step::Pending),
            Just(Step::Demoting),
            Just(Step::Resyncing { discarded: Some("1".into()) })
        ];
        let side = || {
            prop_oneof![
                Just(Side::Unknown),
                Just(Side::Absent),
                Just(Side::Plain),
                Just(Side::Primary),
                Just(Side::Secondary)
            ]
        };
        let peer = prop_oneof![
            Just(Peer::Unknown),
            Just(Peer::Replaying),
            Just(Peer::Unlinked),
            Just(Peer::NotReplaying)
        ];
        let flags = (any::<bool>(), any::<bool>(), any::<bool>());
        (step, side(), side(), peer, flags).prop_map(|(step, keeper, loser, peer, flags)| Case {
            step,
            keeper,
            loser,
            peer,
            renewed: flags.0,
            ordered: flags.1,
            expired: flags.2,
        })
    }

    proptest! {
        #[test]
        fn nothing_is_discarded_unless_the_keeper_is_primary(case in cases()) {
            if matches!(plan(&case), Action::Demote | Action::Resync) {
                prop_assert_eq!(case.keeper, Side::Primary);
            }
        }

        #[test]
        fn a_healthy_copy_is_never_resynced(case in cases()) {
            if plan(&case) == Action::Resync && case.step != Step::Demoting {
                prop_assert!(!case.peer.replays());
                prop_assert_eq!(case.loser, Side::Secondary);
            }
        }

        #[test]
        fn a_new_copy_is_never_thrown_away_again(case in cases()) {
            if plan(&case) == Action::Resync && matches!(case.step, Step::Resyncing { .. }) {
                prop_assert!(!case.renewed && !case.ordered);
            }
        }

        #[test]
        fn waiting_ends(case in cases()) {
            let case = Case { expired: true, ..case };
            prop_assert!(plan(&case) != Action::Observe, "{:?}", case);
        }
    }

    #[test]
    fn a_split_brain_is_demoted_resynced_and_awaited() {
        let resyncing = || Step::Resyncing { discarded: Some("1".into()) };
        let case = |step, loser, peer| Case {
            step,
            keeper: Side::Primary,
            loser,
            peer,
            renewed: true,
            ordered: true,
            expired: false,
        };
        assert_eq!(plan(&case(Step::Pending, Side::Primary, Peer::Unknown)), Action::Demote);
        assert_eq!(plan(&case(Step::Demoting, Side::Secondary, Peer::Replaying)), Action::Resync);
        assert_eq!(plan(&case(resyncing(), Side::Absent, Peer::NotReplaying)), Action::Observe);
        assert_eq!(plan(&case(resyncing(), Side::Secondary, Peer::Replaying)), Action::Finish);
        // Recorded, and killed before the loser was told.
        let told = Case { renewed: false, ..case(resyncing(), Side::Secondary, Peer::NotReplaying) };
        assert_eq!(plan(&told), Action::Observe);
        assert_eq!(plan(&Case { ordered: false, ..told }), Action::Resync);
    }
}
