//! When a schedule is due: cron's five fields, in a time zone.
//!
//! As Vixie cron has it when the clocks change: what is due at a fixed time that does not exist that day runs right after
//! the gap, and what is due in an hour that comes twice runs once, at its first; `*` and steps in the hours run by the
//! wall clock as it is.

use chrono::{DateTime, NaiveDateTime, TimeZone};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::backup::retention::rule::zone;
use crate::error::{Code, Error, Result};

/// Characters of a cron line.
const LONGEST: usize = 255;

/// A cron line in a time zone.
#[derive(Debug, Clone)]
pub struct Clock {
    cron: Cron,
    zone: Tz,
    line: String,
}

impl Clock {
    /// Reads minute, hour, day of month, month and day of week, or a word such as `@daily`.
    ///
    /// # Errors
    /// `InvalidInput` for a line that is none, with what is wrong, or that is never due; for an unknown time zone.
    pub fn new(line: &str, time_zone: &str) -> Result<Clock> {
        let zone = zone(time_zone)?;
        let refused = |why: String| {
            Error::new(
                Code::InvalidInput,
                format!(
                    "\"{}\" is no cron line: {why}; it is minute, hour, day of month, month, day of week, such as 30 2 * * *",
                    line.escape_debug()
                ),
            )
        };
        if line.len() > LONGEST {
            return Err(refused(format!("it is longer than {LONGEST} characters")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(line).map_err(|error| refused(error.to_string()))?;
        let clock = Clock { cron, zone, line: line.to_owned() };
        // Thirtieths of February are found here, and not by a service that waits for one.
        clock.next(chrono::Utc::now().naive_utc())?;
        Ok(clock)
    }

    /// The first time after `now` that it is due; both naive UTC.
    ///
    /// # Errors
    /// `InvalidInput` when there is none.
    pub fn next(&self, now: NaiveDateTime) -> Result<NaiveDateTime> {
        let local: DateTime<Tz> = self.zone.from_utc_datetime(&now);
        match self.cron.find_next_occurrence(&local, false) {
            Ok(next) => Ok(next.naive_utc()),
            Err(error) => Err(Error::new(
                Code::InvalidInput,
                format!("The cron line \"{}\" is never due: {error}", self.line.escape_debug()),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use chrono::{NaiveDate, TimeDelta, Timelike};
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
    }

    fn runs(line: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let clock = Clock::new(line, zone).unwrap();
        let mut now = at(from);
        let mut found = Vec::new();
        for _ in 0..count {
            now = clock.next(now).unwrap();
            found.push(now.format("%m-%d %H:%M").to_string());
        }
        found
    }

    #[test]
    fn hours_are_those_of_the_zone() {
        assert_eq!(runs("30 2 * * *", "UTC", "2026-01-01 02:30", 2), ["01-02 02:30", "01-03 02:30"]);
        assert_eq!(runs("30 2 * * *", "Asia/Kathmandu", "2026-01-01 00:00", 1), ["01-01 20:45"]);
        assert_eq!(runs("0 0 * * MON", "America/New_York", "2026-01-01 00:00", 1), ["01-05 05:00"]);
        assert_eq!(runs("@monthly", "UTC", "2026-01-01 00:00", 1), ["02-01 00:00"]);
    }

    #[test]
    fn a_time_that_is_left_out_runs_after_the_gap_and_one_that_comes_twice_runs_once() {
        // 02:00 becomes 03:00 at 01:00 UTC of March 29th; 03:00 becomes 02:00 at 01:00 UTC of October 25th.
        assert_eq!(
            runs("30 2 * * *", "Europe/Berlin", "2026-03-28 00:00", 3),
            ["03-28 01:30", "03-29 01:00", "03-30 00:30"]
        );
        assert_eq!(
            runs("30 2 * * *", "Europe/Berlin", "2026-10-24 00:00", 3),
            ["10-24 00:30", "10-25 00:30", "10-26 01:30"]
        );
        assert_eq!(
            runs("30 * * * *", "Europe/Berlin", "2026-10-24 23:45", 3),
            ["10-25 00:30", "10-25 01:30", "10-25 02:30"]
        );
    }

    #[test]
    fn what_is_no_line_is_refused_with_the_reason() {
        let long = "1,".repeat(200);
        for line in
            ["", "* * * *", "61 * * * *", "* * * * * *", "0 0 30 2 *", "now", "@sometimes", long.as_str()]
        {
            let error = Clock::new(line, "UTC").unwrap_err();
            assert_eq!(error.code(), Code::InvalidInput, "{line}");
        }
        assert_eq!(Clock::new("0 0 * * *", "Atlantis").unwrap_err().code(), Code::InvalidInput);
    }

    proptest! {
        #[test]
        fn the_next_run_is_later_and_at_the_wall_clocks_minute(
            minute in 0u32..60, hour in 0u32..24, minutes in 0i64..3 * 366 * 24 * 60,
            name in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
        ) {
            let now = NaiveDate::from_ymd_opt(2025, 1, 1).unwrap().and_hms_opt(0, 0, 0).unwrap()
                + TimeDelta::minutes(minutes);
            let next = Clock::new(&format!("{minute} {hour} * * *"), name).unwrap().next(now).unwrap();
            prop_assert!(next > now);
            // A day has 25 hours at most.
            prop_assert!(next - now <= TimeDelta::hours(25), "{now} {next}");
            let local = zone(name).unwrap().from_utc_datetime(&next);
            let is_there = (local.minute(), local.hour()) == (minute, hour);
            let before = zone(name).unwrap().from_utc_datetime(&(next - TimeDelta::seconds(1)));
            let gap = local.naive_local() - before.naive_local() > TimeDelta::seconds(1);
            prop_assert!(is_there || gap, "{} is neither {}:{} nor after a gap", local, hour, minute);
        }
    }
}
