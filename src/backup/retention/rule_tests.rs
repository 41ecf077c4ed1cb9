#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use chrono::{NaiveDate, TimeDelta};
use proptest::prelude::*;

use super::*;

fn at(text: &str) -> NaiveDateTime {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
}

fn point(id: &str, when: &str) -> Point {
    Point { id: id.into(), at: at(when), status: "available".into(), is_ours: true, is_continued: false }
}

fn removed(verdicts: &[Verdict]) -> Vec<&str> {
    verdicts.iter().filter(|v| v.fate == Fate::Removed).map(|v| v.id.as_str()).collect()
}

#[test]
fn the_newest_of_each_period_stands_for_it() {
    let points = [
        point("a", "2026-01-31 10:00"),
        point("b", "2026-02-01 10:00"),
        point("c", "2026-02-01 22:00"),
        point("d", "2026-02-02 10:00"),
        point("e", "2026-02-03 10:00"),
    ];
    let keep = Keep { last: 1, daily: 2, weekly: 2, monthly: 2 };
    let verdicts = decide(&keep, Tz::UTC, &points, false);
    let why: Vec<(&str, String)> = verdicts.iter().map(|v| (v.id.as_str(), v.why.join(", "))).collect();
    assert_eq!(
        why,
        [
            ("e", "last 1, day 2026-02-03, week 2026-W06, month 2026-02".to_owned()),
            ("d", "day 2026-02-02".to_owned()),
            ("c", "week 2026-W05".to_owned()),
            ("b", String::new()),
            ("a", "month 2026-01".to_owned()),
        ]
    );
    assert_eq!(removed(&verdicts), ["b"]);
}

#[test]
fn a_day_begins_where_the_zone_says_also_when_the_clocks_change() {
    // 2026-03-29 has 23 hours in Berlin: 23:30 and 21:30 UTC of two days there are of one day.
    let points =
        [point("a", "2026-03-28 23:30"), point("b", "2026-03-29 21:30"), point("c", "2026-03-29 22:30")];
    let keep = Keep { daily: 9, ..Keep::default() };
    let berlin = zone("Europe/Berlin").unwrap();
    assert_eq!(removed(&decide(&keep, berlin, &points, false)), ["a"]);
    assert_eq!(removed(&decide(&keep, Tz::UTC, &points, false)), ["b"]);
    // The hour that comes twice in autumn is of the same day.
    let twice = [point("a", "2026-10-25 00:30"), point("b", "2026-10-25 01:30")];
    assert_eq!(removed(&decide(&keep, berlin, &twice, false)), ["a"]);
    for odd in ["", "Berlin", "Europe/Berlin ", "CEST", "UTC+1"] {
        assert_eq!(zone(odd).unwrap_err().code(), Code::InvalidInput, "{odd}");
    }
}

#[test]
fn what_is_at_work_or_broken_stays_unless_asked() {
    let with = |id: &str, status: &str| Point { status: status.into(), ..point(id, "2026-01-01 00:00") };
    let newest = point("z", "2026-02-01 00:00");
    let continued = Point { is_continued: true, ..point("k", "2026-01-01 00:00") };
    let foreign = Point { is_ours: false, ..point("f", "2026-01-01 00:00") };
    let points = [
        newest,
        with("r", "restoring"),
        with("e", "error"),
        with("c", "creating"),
        with("d", "deleting"),
        continued,
        foreign,
        with("x", "available"),
    ];
    let keep = Keep { last: 1, ..Keep::default() };
    assert_eq!(removed(&decide(&keep, Tz::UTC, &points, false)), ["x"]);
    assert_eq!(removed(&decide(&keep, Tz::UTC, &points, true)), ["x", "e"]);
    let only = [point("a", "2026-01-01 00:00"), with("e", "error")];
    assert_eq!(removed(&decide(&Keep::default(), Tz::UTC, &only, true)), ["e"]);
}

fn zones() -> impl Strategy<Value = Tz> {
    prop::sample::select(vec![
        Tz::UTC,
        Tz::Europe__Berlin,
        Tz::America__New_York,
        Tz::Australia__Lord_Howe,
        Tz::Pacific__Apia,
        Tz::Asia__Kathmandu,
        Tz::America__Sao_Paulo,
    ])
}

fn many() -> impl Strategy<Value = Vec<Point>> {
    let minutes = prop::collection::vec((0i64..800 * 24 * 60, 0u8..10), 0..120);
    minutes.prop_map(|all| {
        let start = NaiveDate::from_ymd_opt(2025, 1, 1).unwrap().and_hms_opt(0, 0, 0).unwrap();
        let status = |n| match n {
            0 => "error",
            1 => "restoring",
            2 => "creating",
            _ => "available",
        };
        let point = |(n, (minute, kind)): (usize, (i64, u8))| Point {
            id: format!("{n:04}"),
            at: start + TimeDelta::minutes(minute),
            status: status(kind).to_owned(),
            is_ours: kind != 9,
            is_continued: kind == 8,
        };
        all.into_iter().enumerate().map(point).collect()
    })
}

fn keeps() -> impl Strategy<Value = Keep> {
    (0u32..6, 0u32..40, 0u32..20, 0u32..15).prop_map(|(last, daily, weekly, monthly)| Keep {
        last,
        daily,
        weekly,
        monthly,
    })
}

proptest! {
    #[test]
    fn something_whole_always_stays(keep in keeps(), zone in zones(), points in many(), failed: bool) {
        let verdicts = decide(&keep, zone, &points, failed);
        prop_assert_eq!(verdicts.len(), points.len());
        let is_whole = |v: &&Verdict| matches!(v.status.as_str(), "available" | "restoring");
        let whole: Vec<&Verdict> = verdicts.iter().filter(is_whole).collect();
        if let Some(newest) = whole.first() {
            prop_assert_ne!(newest.fate, Fate::Removed);
            prop_assert_ne!(newest.fate, Fate::Spared);
        }
        for v in &verdicts {
            let may_go = v.status == "available" || (failed && v.status == "error");
            prop_assert!(v.fate != Fate::Removed || may_go, "{:?}", v);
            prop_assert_eq!(v.fate == Fate::Removed, v.why.is_empty(), "every word has its reason: {:?}", v);
        }
    }

    #[test]
    fn each_reason_is_good_for_so_many_and_the_newest_come_first(keep in keeps(), zone in zones(), points in many()) {
        let verdicts = decide(&keep, zone, &points, false);
        let mut given: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (kind, period) in verdicts.iter().flat_map(|v| &v.why).filter_map(|why| why.split_once(' ')) {
            given.entry(kind).or_default().push(period.to_owned());
        }
        for (kind, most) in [("day", keep.daily), ("week", keep.weekly), ("month", keep.monthly)] {
            let periods = given.remove(kind).unwrap_or_default();
            prop_assert!(periods.len() <= most as usize);
            prop_assert!(periods.is_sorted_by(|a, b| a > b), "{:?}", periods);
        }
        prop_assert!(given.remove("last").unwrap_or_default().len() <= keep.last as usize);
    }

    #[test]
    fn to_apply_it_again_removes_nothing_more(keep in keeps(), zone in zones(), points in many()) {
        let verdicts = decide(&keep, zone, &points, true);
        let gone = removed(&verdicts);
        let left: Vec<Point> = points.iter().filter(|p| !gone.contains(&p.id.as_str())).cloned().collect();
        let again = decide(&keep, zone, &left, true);
        prop_assert!(removed(&again).is_empty(), "{:?}", removed(&again));
    }

    #[test]
    fn the_order_of_the_rows_does_not_matter(keep in keeps(), zone in zones(), points in many()) {
        let mut turned = points.clone();
        turned.reverse();
        prop_assert_eq!(decide(&keep, zone, &points, true), decide(&keep, zone, &turned, true));
    }
}
