//! What a failover would do with each volume: the engine's own `plan`, asked about the facts of this moment.
//!
//! The engine asks again after each action, for as long as it takes; a forecast asks once, and once more with its
//! time run out where the answer is to wait. So it says what the engine would begin with, and how it would end if
//! nothing changed.

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Row};
use super::lag::Lag;
use crate::db::failover::NOT_REPLICATED;
use crate::model::transition::BEING_MADE_OR_DELETED;
use crate::rbd::mirror_survey::Looked;
use crate::replication::candidates::{is_being_made, is_movable};
use crate::replication::engine::peer_in;
use crate::replication::intent::Intent;
use crate::replication::plan::{Action, Case, Peer, Reason, ServedFrom, Side, Step, plan};
use crate::replication::verdict::Verdict;

/// What would become of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Demoted where it is, promoted on the target when its last write has arrived: nothing is lost.
    Move,
    /// The same; but the side that it leaves cannot follow afterwards without a full copy.
    MoveOneWay,
    /// Demoted already: only promoted.
    Promote,
    /// Promoted by force: the side that it leaves is dead.
    Force,
    /// It is on the target already.
    Already,
    /// Left where it is, served from there: `failover-error`.
    Stay,
    /// Served from nowhere that is known: `error` and `failover-error`.
    Lost,
    /// Not replicated: out of reach, `error` and `not-capable`, until failback.
    NotCapable,
    /// Not replicated, and on the target: untouched.
    Untouched,
    /// Being made or deleted: left to its request.
    Busy,
}

impl Fate {
    /// As in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            Fate::Move => "move",
            Fate::MoveOneWay => "move-one-way",
            Fate::Promote => "promote",
            Fate::Force => "force",
            Fate::Already => "already",
            Fate::Stay => "stay",
            Fate::Lost => "lost",
            Fate::NotCapable => "not-capable",
            Fate::Untouched => "untouched",
            Fate::Busy => "busy",
        }
    }

    /// Whether the volume works on the target afterwards.
    pub fn arrives(self) -> bool {
        matches!(self, Fate::Move | Fate::MoveOneWay | Fate::Promote | Fate::Force | Fate::Already)
    }
}

/// The forecast for one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// What would become of it.
    pub fate: Fate,
    /// Why it would be left behind.
    pub reason: Option<Reason>,
    /// Site that it would leave.
    pub from: String,
    /// How far its copy is behind.
    pub lag: Lag,
}

/// The forecast for a volume that leaves `from` for `to`.
pub(super) fn forecast(facts: &Facts, row: &Row, from: &str, to: &str) -> Forecast {
    let lag = match facts.sites.get(to).and_then(|site| site.images.get(&row.image)) {
        Some(Looked::Seen(seen)) => Lag::read(&seen.report),
        _ => Lag::default(),
    };
    let done = |fate, reason| Forecast { fate, reason, from: from.to_owned(), lag };
    let volume = &row.volume;
    let status = volume.replication_status.as_deref();
    if is_being_made(volume) {
        return done(Fate::Busy, None);
    }
    if status.is_some_and(|s| NOT_REPLICATED.contains(&s)) {
        return match (BEING_MADE_OR_DELETED.contains(&volume.status.as_str()), row.stray.as_deref()) {
            (true, _) => done(Fate::Busy, None),
            (false, Some(stray)) if stray == to => done(Fate::Untouched, None),
            // Nothing is out of reach at home.
            _ if to == crate::replication::target::DEFAULT => done(Fate::Untouched, None),
            _ => done(Fate::NotCapable, None),
        };
    }
    if !is_movable(volume) {
        // No status at all: not mirrored, and nobody moves it.
        return done(Fate::Untouched, None);
    }
    let (fate, reason) = foretell(&case(facts, &row.image, from, to));
    done(fate, reason)
}

/// The facts as the engine would see them when it begins.
fn case(facts: &Facts, image: &str, from: &str, to: &str) -> Case {
    let verdict = |name: &str| facts.sites.get(name).map_or(Verdict::Degraded, |site| site.verdict);
    let side = |name: &str| facts.sites.get(name).map_or(Side::Unknown, |site| site.side(image));
    let peer = match facts.sites.get(to).and_then(|site| site.images.get(image)) {
        Some(Looked::Seen(seen)) => peer_in(&seen.report),
        Some(Looked::Absent | Looked::Unreadable { .. }) | None => Peer::NotReplaying,
    };
    let no_daemon = facts
        .sites
        .get(from)
        .is_some_and(|site| site.pool.as_ref().is_ok_and(|pool| pool.daemons.is_empty()));
    Case {
        intent: Intent::Automatic,
        step: Step::Pending,
        source_verdict: verdict(from),
        target_verdict: verdict(to),
        source: side(from),
        target: side(to),
        peer,
        expired: false,
        link_expired: no_daemon,
    }
}

/// What the engine would come to.
fn foretell(case: &Case) -> (Fate, Option<Reason>) {
    let one_way = case.peer == Peer::Unlinked;
    let action = match plan(case) {
        // What it waits for is not there now: the forecast is that it will not come.
        Action::Observe | Action::WaitForPeer => {
            plan(&Case { expired: true, link_expired: true, ..case.clone() })
        }
        action => action,
    };
    match action {
        Action::Demote if one_way => (Fate::MoveOneWay, None),
        Action::Demote => (Fate::Move, None),
        Action::Promote => (Fate::Promote, None),
        Action::ForcePromote | Action::Override => (Fate::Force, None),
        Action::EnsureWritable | Action::Finish => (Fate::Already, None),
        // The target has no copy, and the old side is demoted: promoted there again.
        Action::Restore => (Fate::Stay, Some(Reason::PeerMissing)),
        Action::Fail(reason) => match reason.served_from() {
            ServedFrom::Source | ServedFrom::Target => (Fate::Stay, Some(reason)),
            ServedFrom::Nowhere => (Fate::Lost, Some(reason)),
        },
        Action::Observe | Action::WaitForPeer => (Fate::Stay, Some(Reason::SourceUnreadable)),
    }
}

/// How long it would take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Seconds; `None` when nothing was measured.
    pub seconds: Option<f64>,
    /// What it rests on.
    pub basis: String,
}

/// From an earlier failover that moved `measured` volumes in `micros`: as many rounds of `concurrency` volumes as
/// there are, each as long as one was.
pub(super) fn estimate(volumes: usize, past: Option<&crate::journal::Past>, concurrency: usize) -> Estimate {
    let Some(past) = past else {
        return Estimate {
            seconds: None,
            basis: "not known: the journal has no earlier failover of this backend".to_owned(),
        };
    };
    let rounds = |count: usize| count.div_ceil(concurrency.max(1)).max(1) as f64;
    let measured = usize::try_from(past.moved).unwrap_or(0);
    let seconds = past.micros.max(0) as f64 / 1e6;
    let estimated = if volumes == 0 { 0.0 } else { seconds / rounds(measured) * rounds(volumes) };
    Estimate {
        seconds: Some((estimated * 10.0).round() / 10.0),
        basis: format!(
            "operation {} moved {} in {:.1} s, {concurrency} at once",
            past.id,
            if measured == 1 { "1 volume".to_owned() } else { format!("{measured} volumes") },
            seconds
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Past;

    fn case(source: Side, target: Side, peer: Peer) -> Case {
        Case {
            intent: Intent::Automatic,
            step: Step::Pending,
            source_verdict: Verdict::Alive,
            target_verdict: Verdict::Alive,
            source,
            target,
            peer,
            expired: false,
            link_expired: false,
        }
    }

    #[test]
    fn a_forecast_is_what_the_engine_would_do() {
        let healthy = case(Side::Primary, Side::Secondary, Peer::Replaying);
        assert_eq!(foretell(&healthy), (Fate::Move, None));
        let unlinked = Case { peer: Peer::Unlinked, ..healthy.clone() };
        assert_eq!(foretell(&unlinked), (Fate::MoveOneWay, None));
        let stopped = Case { peer: Peer::NotReplaying, ..healthy.clone() };
        assert_eq!(foretell(&stopped), (Fate::Stay, Some(Reason::PeerNotReady)));
        let dead = Case { source_verdict: Verdict::Dead, source: Side::Unknown, ..stopped };
        assert_eq!(foretell(&dead), (Fate::Force, None));
        let demoted = case(Side::Secondary, Side::Secondary, Peer::NotReplaying);
        assert_eq!(foretell(&demoted), (Fate::Promote, None));
        let both = case(Side::Primary, Side::Primary, Peer::NotReplaying);
        assert_eq!(foretell(&both), (Fate::Stay, Some(Reason::BothPrimary)));
        let there = case(Side::Secondary, Side::Primary, Peer::NotReplaying);
        assert_eq!(foretell(&there), (Fate::Already, None));
        let none = case(Side::Absent, Side::Absent, Peer::NotReplaying);
        assert_eq!(foretell(&none), (Fate::Lost, Some(Reason::PeerMissing)));
        let no_copy = case(Side::Primary, Side::Absent, Peer::NotReplaying);
        assert_eq!(foretell(&no_copy).0, Fate::Stay);
        let half_dead = case(Side::Unknown, Side::Secondary, Peer::Replaying);
        assert_eq!(foretell(&half_dead), (Fate::Stay, Some(Reason::SourceUnreadable)));
    }

    #[test]
    fn every_case_has_a_fate_and_force_needs_a_dead_source() {
        let sides = [Side::Unknown, Side::Absent, Side::Plain, Side::Primary, Side::Secondary];
        let verdicts = [Verdict::Alive, Verdict::Degraded, Verdict::Dead];
        for source in sides {
            for target in sides {
                for peer in [Peer::Unknown, Peer::Replaying, Peer::Unlinked, Peer::NotReplaying] {
                    for source_verdict in verdicts {
                        for target_verdict in verdicts {
                            let case = Case { source_verdict, target_verdict, ..case(source, target, peer) };
                            let (fate, reason) = foretell(&case);
                            assert_eq!(reason.is_some(), !fate.arrives(), "{case:?}: {fate:?}");
                            if fate == Fate::Force {
                                assert_eq!(source_verdict, Verdict::Dead, "{case:?}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn time_goes_by_rounds_of_what_was_measured() {
        let past = Past { id: 7, micros: 3_000_000, moved: 10 };
        assert_eq!(estimate(20, Some(&past), 32).seconds, Some(3.0));
        assert_eq!(estimate(64, Some(&past), 32).seconds, Some(6.0));
        assert_eq!(estimate(0, Some(&past), 32).seconds, Some(0.0));
        let many = Past { moved: 64, ..past };
        assert_eq!(estimate(32, Some(&many), 32).seconds, Some(1.5));
        assert_eq!(estimate(20, None, 32).seconds, None);
    }
}
