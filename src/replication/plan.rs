//! What to do next with one volume of a failover: a pure function from facts to an action.
//!
//! A failover that is half done, whose process died, whose sites come and go, must never leave an
//! image with no primary, make a healthy image split-brain, or force anything on a live site. All of
//! that is decided here and nowhere else, from four facts: what was last ordered for the volume (its
//! persisted [`Step`]), what each side's Ceph says of the image, and the [`Verdict`] on each side; and from the
//! operator's [`Intent`]. The executor (`engine`) carries actions out, records steps before acting, and asks again. Failover,
//! failback, retry and resume after a crash are the same loop with other sides.

mod ordered;

use serde::{Deserialize, Serialize};

use self::ordered::{died, overriding, silent};
use super::intent::Intent;
use super::verdict::Verdict;
use crate::rbd::types::{MirrorState, Mirroring};

/// What one side's cluster says of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Not read, or the site did not answer.
    Unknown,
    /// The site answers and has no such image.
    Absent,
    /// The image exists and is not mirrored.
    Plain,
    /// Mirrored and primary.
    Primary,
    /// Mirrored and secondary.
    Secondary,
}

impl From<Option<&Mirroring>> for Side {
    /// `None`: the image is absent.
    fn from(info: Option<&Mirroring>) -> Side {
        match info {
            None => Side::Absent,
            Some(m) if m.state != MirrorState::Enabled => Side::Plain,
            Some(m) if m.primary => Side::Primary,
            Some(_) => Side::Secondary,
        }
    }
}

/// Whether the copy on the target keeps up with its primary, by the target's own daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Not asked yet.
    Unknown,
    /// `up+replaying`: demoting now will reach it.
    Replaying,
    /// The same, but the daemon of the side that it leaves is not yet registered in the copy's journal. Promoted
    /// now, the copy would lose the tags that connect the two histories before that daemon has read them,
    /// and the old side could not follow: split-brain by rbd-mirror's rules, cured only by a full copy.
    Unlinked,
    /// Anything else: still syncing, stopped, in error, daemon down.
    NotReplaying,
}

impl Peer {
    /// Whether the copy keeps up, whatever may follow it one day.
    pub fn replays(self) -> bool {
        matches!(self, Peer::Replaying | Peer::Unlinked)
    }
}

/// What was last ordered for the volume. Persisted before the order is given, one row a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// Nothing yet.
    Pending,
    /// A demotion of the old side was ordered.
    Demoting,
    /// The old side is secondary; unforced promotion of the new side is being tried.
    Promoting,
    /// A forced promotion of the new side was ordered: the old side was dead.
    Forcing,
    /// The same although the old side is not known to be dead: the operator had ordered it for this case.
    Overriding,
    /// Promoted by force, not yet proven to accept writers.
    Opening,
    /// Promotion was not accepted in time: promoting the old side again was ordered.
    Restoring,
    /// Primary on the new side. Final.
    Moved,
    /// Given up. Final.
    Failed {
        /// Why, and with it what the operator can do.
        reason: Reason,
    },
}

/// Why a volume could not be failed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Primary on both sides: which one to keep is the operator's decision.
    BothPrimary,
    /// The image is not mirrored although its row says so.
    NotMirrored,
    /// The target has no copy of the image.
    PeerMissing,
    /// The target's copy does not replay.
    PeerNotReady,
    /// The old side is alive but did not demote in time.
    DemoteFailed,
    /// The promotion was not accepted in time; the old side is primary again.
    PromoteNotAccepted,
    /// The target is dead or does not answer for this image, and the old side is not known to serve it.
    TargetUnreadable,
    /// The target does not answer for this image; it was left where it is primary.
    TargetSilent,
    /// The old side is not dead, yet does not answer for this image.
    SourceUnreadable,
    /// The old side died, and nothing was to be forced.
    SourceDied,
    /// Promoted by force, but the new side does not accept writers.
    NotWritable,
    /// Secondary on both sides and neither side could be promoted.
    NoPrimary,
}

/// Where a volume that was not failed over can still be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedFrom {
    /// The old side, where it is primary.
    Source,
    /// The new side.
    Target,
    /// Nowhere that is known.
    Nowhere,
}

impl Reason {
    /// The sentence for the user message and the log.
    pub fn text(self) -> &'static str {
        match self {
            Reason::BothPrimary => "it is primary on both sites",
            Reason::NotMirrored => "its image is not mirrored",
            Reason::PeerMissing => "the target site has no copy of its image",
            Reason::PeerNotReady => "its copy on the target site is not replaying",
            Reason::DemoteFailed => "its image could not be demoted in time",
            Reason::PromoteNotAccepted => "the target site did not accept the promotion in time",
            Reason::TargetUnreadable => "the target site does not answer for its image",
            Reason::TargetSilent => "the target site does not answer for its image: it was left in place",
            Reason::SourceUnreadable => "the active site is not dead but does not answer for its image",
            Reason::SourceDied => "the site that it is on died, and a planned failover forces nothing",
            Reason::NotWritable => "it was promoted but the target site accepts no writes",
            Reason::NoPrimary => "neither site accepts a promotion",
        }
    }

    /// Where the volume is primary after giving up for this reason.
    pub fn served_from(self) -> ServedFrom {
        match self {
            // After an unplanned failover and the return of the other side the newer data is on the
            // side that was active: the caller's source.
            Reason::BothPrimary
            | Reason::NotMirrored
            | Reason::PeerNotReady
            | Reason::DemoteFailed
            | Reason::PromoteNotAccepted
            | Reason::TargetSilent
            | Reason::SourceUnreadable
            | Reason::SourceDied => ServedFrom::Source,
            Reason::NotWritable => ServedFrom::Target,
            Reason::PeerMissing | Reason::TargetUnreadable | Reason::NoPrimary => ServedFrom::Nowhere,
        }
    }
}

/// Everything that a decision rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What the operator wants.
    pub intent: Intent,
    /// Last order.
    pub step: Step,
    /// Verdict on the side that the volume leaves.
    pub source_verdict: Verdict,
    /// Verdict on the side that it goes to.
    pub target_verdict: Verdict,
    /// What the side that it leaves says.
    pub source: Side,
    /// What the side that it goes to says.
    pub target: Side,
    /// Whether the copy keeps up.
    pub peer: Peer,
    /// The current step has had its time.
    pub expired: bool,
    /// A daemon that is not registered by now is not waited for any longer, or there is none: the move is
    /// worth a full copy afterwards.
    pub link_expired: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read both sides again, after a pause.
    Observe,
    /// Ask the target's daemon again whether the copy replays, after a pause.
    WaitForPeer,
    /// Demote the source.
    Demote,
    /// Promote the target, unforced: accepted only when the demotion and all data have arrived.
    Promote,
    /// Promote the target by force.
    ForcePromote,
    /// The same although the source is not known to be dead, by the operator's order.
    Override,
    /// Prove that the target accepts a writer, breaking its own daemon's lock if that is what holds it.
    EnsureWritable,
    /// Promote the source again.
    Restore,
    /// It is primary on the target.
    Finish,
    /// Give up.
    Fail(Reason),
}

/// Decides the next action. Pure; total over all facts.
pub fn plan(case: &Case) -> Action {
    match &case.step {
        Step::Moved => return Action::Finish,
        Step::Failed { reason } => return Action::Fail(*reason),
        Step::Pending
        | Step::Demoting
        | Step::Promoting
        | Step::Forcing
        | Step::Overriding
        | Step::Opening
        | Step::Restoring => {}
    }
    match case.target {
        Side::Primary => target_is_primary(case),
        Side::Secondary => target_is_secondary(case),
        Side::Absent => target_has_none(case, Reason::PeerMissing),
        Side::Plain => target_has_none(case, Reason::NotMirrored),
        Side::Unknown => target_is_unknown(case),
    }
}

fn forced(step: &Step) -> bool {
    matches!(step, Step::Forcing | Step::Overriding | Step::Opening)
}

fn target_is_primary(case: &Case) -> Action {
    if case.source == Side::Primary && !forced(&case.step) {
        // Nobody but an operator may choose between two primaries.
        return Action::Fail(Reason::BothPrimary);
    }
    if forced(&case.step) || case.source_verdict == Verdict::Dead {
        // A forced promotion has succeeded when a writer is accepted, not before (invariant 8). That the
        // old side came back as a second primary meanwhile changes nothing for this volume now.
        return if case.expired && case.step == Step::Opening {
            Action::Fail(Reason::NotWritable)
        } else {
            Action::EnsureWritable
        };
    }
    match (case.source, &case.step) {
        // Not ordered by us: it may be a second primary as long as the source has not been read.
        (Side::Unknown, Step::Pending) if case.expired => Action::Fail(Reason::SourceUnreadable),
        (Side::Unknown, Step::Pending) => Action::Observe,
        _ => Action::Finish,
    }
}

fn target_is_secondary(case: &Case) -> Action {
    if case.step == Step::Overriding {
        return overriding(case);
    }
    match case.source {
        Side::Primary => match case.step {
            Step::Restoring => Action::Fail(Reason::PromoteNotAccepted),
            // Demoting: ordered, but not done; after a restart the copy is asked for anew. Forcing: the source was
            // dead, came back before the force took effect, and is primary.
            Step::Pending | Step::Demoting | Step::Promoting | Step::Forcing | Step::Opening => {
                let ordered = matches!(case.step, Step::Demoting | Step::Promoting);
                let force = case.intent == Intent::Force;
                // A site that is half dead can hardly feed its copy. Demoting is tried all the same.
                let unfed = force && case.source_verdict != Verdict::Alive;
                match case.peer {
                    Peer::Unlinked if case.step == Step::Pending && !case.link_expired => Action::WaitForPeer,
                    Peer::Replaying | Peer::Unlinked if ordered && case.expired && force => Action::Override,
                    Peer::Replaying | Peer::Unlinked if ordered && case.expired => {
                        Action::Fail(Reason::DemoteFailed)
                    }
                    Peer::Replaying | Peer::Unlinked => Action::Demote,
                    Peer::Unknown | Peer::NotReplaying if unfed && ordered && case.expired => {
                        Action::Override
                    }
                    Peer::Unknown | Peer::NotReplaying if unfed && (ordered || case.expired) => {
                        Action::Demote
                    }
                    Peer::Unknown | Peer::NotReplaying if case.expired => Action::Fail(Reason::PeerNotReady),
                    Peer::Unknown | Peer::NotReplaying => Action::WaitForPeer,
                }
            }
            Step::Overriding | Step::Moved | Step::Failed { .. } => Action::Observe,
        },
        Side::Secondary => match (&case.step, case.expired) {
            (Step::Restoring, false) => Action::Restore,
            // No primary anywhere, and no good order left.
            (Step::Restoring, true) if case.intent == Intent::Force => Action::Override,
            (Step::Restoring, true) => Action::Fail(Reason::NoPrimary),
            (_, false) => Action::Promote,
            (_, true) => Action::Restore,
        },
        // The copy on the target is all that is left, on a site that is alive: promoting it could hide
        // a rename or a restore in progress. An operator decides.
        Side::Absent => Action::Fail(Reason::PeerMissing),
        Side::Plain => Action::Fail(Reason::NotMirrored),
        Side::Unknown => match case.source_verdict {
            Verdict::Dead if case.intent == Intent::Planned => died(case),
            Verdict::Dead if case.step == Step::Forcing && case.expired => Action::Fail(Reason::NoPrimary),
            Verdict::Dead => Action::ForcePromote,
            Verdict::Alive | Verdict::Degraded => silent(case),
        },
    }
}

fn target_has_none(case: &Case, reason: Reason) -> Action {
    match case.source {
        Side::Secondary if case.expired && case.step == Step::Restoring => Action::Fail(Reason::NoPrimary),
        Side::Secondary => Action::Restore,
        Side::Primary if case.step == Step::Restoring => Action::Fail(Reason::PromoteNotAccepted),
        // The image of a volume made a second ago appears on the peer two seconds later, and is not
        // marked as mirrored there from the first moment.
        Side::Primary if !case.expired => Action::WaitForPeer,
        Side::Primary if reason == Reason::PeerMissing => Action::Fail(Reason::PeerNotReady),
        Side::Primary => Action::Fail(reason),
        Side::Unknown if case.source_verdict != Verdict::Dead && !case.expired => Action::Observe,
        Side::Unknown if case.source_verdict != Verdict::Dead => Action::Fail(Reason::SourceUnreadable),
        // An image on the target that is not mirrored is no copy.
        Side::Unknown | Side::Absent => Action::Fail(Reason::PeerMissing),
        Side::Plain => Action::Fail(Reason::NotMirrored),
    }
}

fn target_is_unknown(case: &Case) -> Action {
    let target_dead = case.target_verdict == Verdict::Dead;
    match (&case.step, case.source) {
        (Step::Restoring, Side::Primary) => Action::Fail(Reason::PromoteNotAccepted),
        (Step::Restoring, Side::Secondary) if case.expired => Action::Fail(Reason::NoPrimary),
        (Step::Restoring, Side::Secondary) => Action::Restore,
        // Demoted, and the target went away: never leave it with no primary.
        (_, Side::Secondary) if target_dead => Action::Restore,
        // It may not be dead at all, but it has had its time; and no promotion was ever acknowledged.
        (Step::Demoting | Step::Promoting, Side::Secondary) if case.expired => Action::Restore,
        (_, Side::Primary) if !forced(&case.step) && (target_dead || case.expired) => {
            Action::Fail(Reason::TargetSilent)
        }
        _ if target_dead || case.expired => Action::Fail(Reason::TargetUnreadable),
        _ => Action::Observe,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn sides() -> impl Strategy<Value = Side> {
        prop_oneof![
            Just(Side::Unknown),
            Just(Side::Absent),
            Just(Side::Plain),
            Just(Side::Primary),
            Just(Side::Secondary)
        ]
    }

    fn verdicts() -> impl Strategy<Value = Verdict> {
        prop_oneof![Just(Verdict::Alive), Just(Verdict::Degraded), Just(Verdict::Dead)]
    }

    fn cases() -> impl Strategy<Value = Case> {
        let steps = prop_oneof![
            Just(Step::Pending),
            Just(Step::Demoting),
            Just(Step::Promoting),
            Just(Step::Forcing),
            Just(Step::Overriding),
            Just(Step::Opening),
            Just(Step::Restoring)
        ];
        let peers = prop_oneof![
            Just(Peer::Unknown),
            Just(Peer::Replaying),
            Just(Peer::Unlinked),
            Just(Peer::NotReplaying)
        ];
        let intents = proptest::sample::select(Intent::ALL.to_vec());
        let times = (any::<bool>(), any::<bool>(), intents);
        (steps, verdicts(), verdicts(), sides(), sides(), peers, times).prop_map(
            |(
                step,
                source_verdict,
                target_verdict,
                source,
                target,
                peer,
                (expired, link_expired, intent),
            )| Case {
                intent,
                step,
                source_verdict,
                target_verdict,
                source,
                target,
                peer,
                expired,
                link_expired,
            },
        )
    }

    proptest! {
        #[test]
        fn force_only_where_the_source_is_dead(case in cases()) {
            if plan(&case) == Action::ForcePromote {
                prop_assert_eq!(case.source_verdict, Verdict::Dead);
                prop_assert_eq!(case.target, Side::Secondary);
                prop_assert_ne!(case.intent, Intent::Planned);
            }
        }

        #[test]
        fn overridden_only_by_order_and_when_good_order_has_had_its_time(case in cases()) {
            if plan(&case) == Action::Override {
                prop_assert_eq!(case.target, Side::Secondary);
                match case.intent {
                    Intent::Force => {
                        let tried = matches!(case.step, Step::Demoting | Step::Promoting | Step::Restoring);
                        prop_assert!(case.step == Step::Overriding || tried && case.expired);
                    }
                    Intent::Unplanned => {
                        prop_assert_eq!((case.source, case.source_verdict), (Side::Unknown, Verdict::Degraded));
                        prop_assert!(case.step == Step::Overriding || case.expired);
                    }
                    Intent::Automatic | Intent::Planned => prop_assert!(false, "{:?}", case),
                }
            }
        }

        #[test]
        fn demote_only_a_primary_whose_copy_exists(case in cases()) {
            if plan(&case) == Action::Demote {
                prop_assert_eq!(case.target, Side::Secondary);
                if case.intent == Intent::Force && case.source == Side::Unknown {
                    return Ok(());
                }
                prop_assert_eq!(case.source, Side::Primary);
                let unfed = case.intent == Intent::Force && case.source_verdict != Verdict::Alive;
                let overdue = case.step != Step::Pending || case.link_expired;
                prop_assert!(case.peer == Peer::Replaying || case.peer == Peer::Unlinked && overdue || unfed);
            }
        }

        #[test]
        fn never_a_second_primary_while_the_first_is_seen(case in cases()) {
            let action = plan(&case);
            if case.source == Side::Primary {
                prop_assert!(!matches!(action, Action::Promote | Action::ForcePromote));
                prop_assert!(action != Action::Override || case.intent == Intent::Force);
            }
            if case.target == Side::Primary {
                prop_assert!(!matches!(action, Action::Restore | Action::Demote));
            }
        }

        #[test]
        fn never_gives_up_with_no_primary_before_trying_to_restore(case in cases()) {
            let no_primary = case.source == Side::Secondary && case.target != Side::Primary;
            if no_primary && matches!(plan(&case), Action::Fail(_)) {
                let not_ours = !matches!(case.step, Step::Demoting | Step::Promoting | Step::Restoring);
                let tried = matches!(case.step, Step::Restoring | Step::Overriding);
                let may_give_up = tried && case.expired
                    || (case.target == Side::Unknown && not_ours && case.expired);
                prop_assert!(may_give_up, "{:?} -> {:?}", case, plan(&case));
            }
        }

        #[test]
        fn waiting_ends(case in cases()) {
            // An action that is repeated in its own step must give way when the step has had its time.
            let case = Case { expired: true, link_expired: true, ..case };
            let action = plan(&case);
            prop_assert!(!matches!(action, Action::Observe | Action::WaitForPeer), "{:?} -> {:?}", case, action);
            let repeats = match case.step {
                Step::Demoting => action == Action::Demote,
                Step::Promoting => action == Action::Promote,
                Step::Forcing => action == Action::ForcePromote,
                Step::Overriding => action == Action::Override,
                Step::Opening => action == Action::EnsureWritable,
                Step::Restoring => action == Action::Restore,
                _ => false,
            };
            prop_assert!(!repeats, "{:?} -> {:?}", case, action);
        }
    }

    fn planned(step: Step, source: Side, target: Side) -> Case {
        Case {
            intent: Intent::Automatic,
            step,
            source_verdict: Verdict::Alive,
            target_verdict: Verdict::Alive,
            source,
            target,
            peer: Peer::Replaying,
            expired: false,
            link_expired: false,
        }
    }

    #[test]
    fn a_planned_failover_demotes_then_promotes() {
        assert_eq!(plan(&planned(Step::Pending, Side::Primary, Side::Secondary)), Action::Demote);
        assert_eq!(plan(&planned(Step::Demoting, Side::Secondary, Side::Secondary)), Action::Promote);
        assert_eq!(plan(&planned(Step::Promoting, Side::Secondary, Side::Primary)), Action::Finish);
    }

    #[test]
    fn a_copy_that_could_not_be_followed_is_waited_for_in_vain_only_once() {
        let unlinked =
            Case { peer: Peer::Unlinked, ..planned(Step::Pending, Side::Primary, Side::Secondary) };
        assert_eq!(plan(&unlinked), Action::WaitForPeer);
        // Not even the end of the patience for a copy ends it: this one replays.
        assert_eq!(plan(&Case { expired: true, ..unlinked.clone() }), Action::WaitForPeer);
        assert_eq!(plan(&Case { link_expired: true, ..unlinked.clone() }), Action::Demote);
        assert_eq!(plan(&Case { step: Step::Demoting, ..unlinked }), Action::Demote);
    }

    #[test]
    fn a_promotion_that_is_not_accepted_goes_back() {
        let late = Case { expired: true, ..planned(Step::Promoting, Side::Secondary, Side::Secondary) };
        assert_eq!(plan(&late), Action::Restore);
        let restored = planned(Step::Restoring, Side::Primary, Side::Secondary);
        assert_eq!(plan(&restored), Action::Fail(Reason::PromoteNotAccepted));
        assert_eq!(Reason::PromoteNotAccepted.served_from(), ServedFrom::Source);
    }

    #[test]
    fn a_dead_source_is_forced_and_then_proven_writable() {
        let dead =
            Case { source_verdict: Verdict::Dead, ..planned(Step::Pending, Side::Unknown, Side::Secondary) };
        assert_eq!(plan(&dead), Action::ForcePromote);
        let forced = Case { step: Step::Forcing, target: Side::Primary, ..dead };
        assert_eq!(plan(&forced), Action::EnsureWritable);
    }

    #[test]
    fn two_primaries_are_left_alone() {
        let both = planned(Step::Pending, Side::Primary, Side::Primary);
        assert_eq!(plan(&both), Action::Fail(Reason::BothPrimary));
    }

    #[test]
    fn steps_survive_the_journal() {
        for step in [Step::Pending, Step::Opening, Step::Failed { reason: Reason::PeerMissing }] {
            let text = serde_json::to_string(&step).unwrap();
            assert_eq!(serde_json::from_str::<Step>(&text).unwrap(), step);
        }
    }
}
