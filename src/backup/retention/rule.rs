//! Which backups of a volume stay, as a pure function of what there is.
//!
//! As restic and borg count: of each day, week and month that has a backup the newest one stands for it, and the
//! newest so many days, weeks and months are kept. Where a day begins is the time zone's; a day has 23 or 25 hours when
//! the clocks change, and nothing here counts hours. The newest whole backup always stays.

use std::collections::BTreeSet;
use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDateTime, TimeZone};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};

/// The most that may be kept for one reason.
pub const MOST: u32 = 100_000;

/// How many are kept, and for what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The newest so many.
    pub last: u32,
    /// The newest one of each of so many days.
    pub daily: u32,
    /// Of so many weeks, which begin on Monday.
    pub weekly: u32,
    /// Of so many months.
    pub monthly: u32,
}

impl Keep {
    /// Whether nothing would be kept: that is no rule.
    pub fn is_nothing(&self) -> bool {
        *self == Keep::default()
    }
}

/// A backup, as far as the rule has to do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its id.
    pub id: String,
    /// When its data was what it is, naive UTC.
    pub at: NaiveDateTime,
    /// Its status.
    pub status: String,
    /// It is one that this service may delete.
    pub is_ours: bool,
    /// A backup is being made that continues it.
    pub is_continued: bool,
}

/// What becomes of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It stays, and the rule says why.
    Kept,
    /// It goes.
    Removed,
    /// It would go, and cannot now.
    Spared,
    /// The rule says nothing about one in this status.
    Untouched,
}

/// The rule's word on one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The backup.
    pub id: String,
    /// When its data was what it is, naive UTC.
    pub at: NaiveDateTime,
    /// Its status.
    pub status: String,
    /// What becomes of it.
    pub fate: Fate,
    /// Why, in words: `last 1`, `day 2026-03-29`, `week 2026-W13`, `month 2026-03`.
    pub why: Vec<String>,
}

/// The time zone of this name.
///
/// # Errors
/// `InvalidInput` when the IANA database has none.
pub fn zone(name: &str) -> Result<Tz> {
    Tz::from_str(name).map_err(|_| {
        Error::new(
            Code::InvalidInput,
            format!(
                "{} is no time zone of the IANA database: name one such as UTC or Europe/Berlin",
                name.escape_debug()
            ),
        )
    })
}

/// Decides on all backups of a volume; the answer begins with the newest. With `failed`, those in error go, too.
pub fn decide(keep: &Keep, zone: Tz, points: &[Point], failed: bool) -> Vec<Verdict> {
    let mut sorted: Vec<&Point> = points.iter().collect();
    sorted.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| b.id.cmp(&a.id)));
    let (mut days, mut weeks, mut months) =
        (Buckets::new(keep.daily), Buckets::new(keep.weekly), Buckets::new(keep.monthly));
    let mut whole = 0;
    let mut verdicts = Vec::with_capacity(sorted.len());
    for point in sorted {
        let mut why = Vec::new();
        let fate = match point.status.as_str() {
            // One that is being restored holds its data all the same.
            "available" | "restoring" => {
                whole += 1;
                let local: DateTime<Tz> = zone.from_utc_datetime(&point.at);
                if whole <= keep.last {
                    why.push(format!("last {whole}"));
                }
                let (date, week) = (local.date_naive(), local.iso_week());
                let month = format!("{:04}-{:02}", date.year(), date.month());
                why.extend(days.take("day", date.to_string()));
                why.extend(weeks.take("week", format!("{}-W{:02}", week.year(), week.week())));
                why.extend(months.take("month", month));
                if why.is_empty() && whole == 1 {
                    why.push("the newest one stays".to_owned());
                }
                match why.is_empty() {
                    false => Fate::Kept,
                    true => spared(point, &mut why),
                }
            }
            "error" | "error_deleting" if failed => spared(point, &mut why),
            other => {
                why.push(format!("it is {other}"));
                Fate::Untouched
            }
        };
        let Point { id, at, status, .. } = point.clone();
        verdicts.push(Verdict { id, at, status, fate, why });
    }
    verdicts
}

/// What becomes of one that nothing keeps.
fn spared(point: &Point, why: &mut Vec<String>) -> Fate {
    if point.status == "restoring" {
        why.push("it is being restored".to_owned());
    } else if !point.is_ours {
        why.push("another backup driver has made it".to_owned());
    } else if point.is_continued {
        why.push("a backup is being made that continues it".to_owned());
    } else {
        return Fate::Removed;
    }
    Fate::Spared
}

/// The newest so many periods that have a backup.
struct Buckets {
    left: u32,
    seen: BTreeSet<String>,
}

impl Buckets {
    fn new(count: u32) -> Buckets {
        Buckets { left: count, seen: BTreeSet::new() }
    }

    /// The reason to keep the first backup of a period; the newest come first.
    fn take(&mut self, kind: &str, period: String) -> Option<String> {
        if self.left == 0 || self.seen.contains(&period) {
            return None;
        }
        self.left -= 1;
        let why = format!("{kind} {period}");
        self.seen.insert(period);
        Some(why)
    }
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
