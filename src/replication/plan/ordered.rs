//! What an operator's order changes where the site that a volume leaves does not answer for it.
//!
//! The target's copy is secondary in all of these cases.

use super::{Action, Case, Intent, Reason, Side, Step, Verdict, target_is_secondary};

/// The source does not say what it has, and is not known to be dead. The target is secondary.
pub(super) fn silent(case: &Case) -> Action {
    match (case.intent, &case.step, case.expired) {
        // What cannot be read may be demoted nevertheless; only when that has had its time it is overridden.
        (Intent::Force, Step::Demoting, false) => Action::Demote,
        (Intent::Force, Step::Pending | Step::Forcing | Step::Opening, true) => Action::Demote,
        (Intent::Force, _, true) => Action::Override,
        (Intent::Unplanned, _, true) if case.source_verdict == Verdict::Degraded => Action::Override,
        (_, _, true) => Action::Fail(Reason::SourceUnreadable),
        (_, _, false) => Action::Observe,
    }
}

/// The source has died in the middle of a planned failover. The target is secondary.
pub(super) fn died(case: &Case) -> Action {
    match (&case.step, case.expired) {
        // Demoted before: the copy accepts a promotion if the demotion has arrived.
        (Step::Promoting, false) => Action::Promote,
        (Step::Promoting | Step::Restoring, true) => Action::Fail(Reason::NoPrimary),
        (_, true) => Action::Fail(Reason::SourceDied),
        (_, false) => Action::Observe,
    }
}

/// A forced promotion was ordered beside a source that is not known to be dead, and has not been seen to take
/// effect.
pub(super) fn overriding(case: &Case) -> Action {
    let goes_on = match case.intent {
        Intent::Force => true,
        Intent::Unplanned => case.source == Side::Unknown && case.source_verdict == Verdict::Degraded,
        Intent::Automatic | Intent::Planned => false,
    };
    match (case.source, case.expired) {
        (Side::Secondary, true) if !goes_on => Action::Restore,
        (Side::Primary, true) => Action::Fail(Reason::DemoteFailed),
        (_, true) => Action::Fail(Reason::NoPrimary),
        (_, false) if goes_on => Action::Override,
        // It answers again, or has died for good: as if nothing had been ordered.
        (_, false) => target_is_secondary(&Case { step: Step::Pending, ..case.clone() }),
    }
}
