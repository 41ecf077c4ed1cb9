//! What is to be done so that an image is primary on the site that was named. Pure.

use crate::rbd::mirror_survey::MirrorSurveyed;
use crate::rbd::types::{MirrorState, Mirroring};
use crate::replication::verdict::Verdict;

/// The other side of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Other {
    /// It answers, and has the other half of the pair.
    Has {
        /// Which site.
        site: usize,
        /// Its half.
        info: Mirroring,
    },
    /// All other sites are dead.
    Dead,
    /// A site answers in part, or not every time.
    Degraded,
    /// All answer, and none has it.
    Nowhere,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// Nothing: it is primary here.
    Already,
    /// Demote it on the other site, then promote it here.
    HandOver {
        /// Which site.
        from: usize,
    },
    /// Both sides are demoted: promote it here.
    Promote,
    /// The other side is dead: promote it here by force.
    Force,
    /// Nothing, because.
    Refuse(String),
}

/// Reads both sides' primary flags before anything else.
pub(super) fn decide(image: &str, target: &MirrorSurveyed, other: &Other, unplanned: bool) -> Way {
    let info = &target.report.info;
    let refuse = |text: String| Way::Refuse(text);
    match info.state {
        MirrorState::Disabled => return refuse("it is not mirrored".to_owned()),
        MirrorState::Disabling => return refuse("its mirroring is being disabled".to_owned()),
        MirrorState::Enabled => {}
    }
    match (info.primary, other) {
        (true, Other::Has { info: there, .. }) if there.primary => refuse(format!(
            "it is primary on both sides, with different content perhaps: decide whose is kept; on the other side, rbd \
             mirror image demote and then rbd mirror image resync {image} throw that side's away"
        )),
        (true, _) => Way::Already,
        (false, Other::Has { site, info: there }) if there.primary => {
            match target.report.local.as_ref().filter(|l| l.up).map(|l| l.state.as_str()) {
                Some("replaying") => Way::HandOver { from: *site },
                Some(state) => refuse(format!(
                    "its copy here is in state {state} ({}): it would lose data; wait until it replays",
                    target.report.local.as_ref().map(|l| l.description.as_str()).unwrap_or_default()
                )),
                None => refuse(
                    "no rbd-mirror serves its copy here, which would lose data: scoria-manage site daemon status".to_owned(),
                ),
            }
        }
        (false, Other::Has { .. }) => Way::Promote,
        (false, Other::Dead) if unplanned => Way::Force,
        (false, Other::Dead) => refuse(
            "the other site does not answer, and what it has not sent is lost when this copy takes over: say --unplanned"
                .to_owned(),
        ),
        (false, Other::Degraded) => refuse(
            "another site answers in part or now and then: nothing is forced while it may be written there".to_owned(),
        ),
        (false, Other::Nowhere) => refuse(
            "none of the sites that this host reaches has its primary; register the site that has (scoria-manage site \
             register)"
                .to_owned(),
        ),
    }
}

/// What the verdicts on all other sites come to, for an image that none of those that answer has.
pub(super) fn without(verdicts: &[Verdict]) -> Other {
    let all = |wanted: Verdict| verdicts.iter().all(|v| *v == wanted);
    match verdicts {
        [] => Other::Nowhere,
        _ if all(Verdict::Dead) => Other::Dead,
        _ if all(Verdict::Alive) => Other::Nowhere,
        // One that is dead may have it, and one that lives shows that it is not the network.
        _ => Other::Degraded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::types::{MirrorMode, MirrorReport, MirrorSiteStatus};

    fn half(primary: bool) -> Mirroring {
        Mirroring { state: MirrorState::Enabled, mode: MirrorMode::Journal, primary, global_id: "g".into() }
    }

    fn target(primary: bool, state: Option<&str>) -> MirrorSurveyed {
        let mut report = MirrorReport::without_reports(half(primary));
        report.local = state.map(|state| MirrorSiteStatus {
            mirror_uuid: String::new(),
            state: state.into(),
            up: true,
            description: String::new(),
            last_update: 0,
        });
        MirrorSurveyed { id: "1".into(), features: 0, parent: None, snaps: vec![], watchers: vec![], report }
    }

    fn has(primary: bool) -> Other {
        Other::Has { site: 0, info: half(primary) }
    }

    #[test]
    fn both_flags_decide() {
        let way = |target: &MirrorSurveyed, other: &Other| decide("i", target, other, false);
        assert_eq!(way(&target(true, None), &has(false)), Way::Already);
        assert_eq!(way(&target(true, None), &Other::Dead), Way::Already);
        assert_eq!(way(&target(false, Some("replaying")), &has(true)), Way::HandOver { from: 0 });
        assert_eq!(way(&target(false, Some("error")), &has(false)), Way::Promote);
        let said = |way| match way {
            Way::Refuse(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(said(way(&target(true, None), &has(true))).contains("primary on both sides"));
        assert!(said(way(&target(false, Some("syncing")), &has(true))).contains("syncing"));
        assert!(said(way(&target(false, None), &has(true))).contains("no rbd-mirror"));
        assert!(said(way(&target(false, None), &Other::Nowhere)).contains("register"));
        let mut plain = target(false, None);
        plain.report.info.state = MirrorState::Disabled;
        assert!(said(way(&plain, &has(true))).contains("not mirrored"));
    }

    #[test]
    fn only_death_and_an_order_force() {
        let copy = target(false, Some("replaying"));
        assert_eq!(decide("i", &copy, &Other::Dead, true), Way::Force);
        assert!(matches!(decide("i", &copy, &Other::Dead, false), Way::Refuse(_)));
        for other in [Other::Degraded, Other::Nowhere] {
            assert!(matches!(decide("i", &copy, &other, true), Way::Refuse(_)), "{other:?}");
        }
        // An order to force what can be handed over still hands it over.
        assert_eq!(decide("i", &copy, &has(true), true), Way::HandOver { from: 0 });
        assert_eq!(without(&[Verdict::Dead, Verdict::Dead]), Other::Dead);
        assert_eq!(without(&[Verdict::Dead, Verdict::Alive]), Other::Degraded);
        assert_eq!(without(&[Verdict::Alive]), Other::Nowhere);
        assert_eq!(without(&[Verdict::Degraded]), Other::Degraded);
        assert_eq!(without(&[]), Other::Nowhere);
    }
}
