//! How people write the schedule of mirror snapshots: `5m`, `1h@00:30`, `1d@02:00`.
//!
//! Two spellings of one schedule (`120m`, `2h`) must not look like two, so that it is read into the form in which
//! ceph-mgr itself answers (`rbd_support/schedule.py`: `Interval.to_string`, `StartTime.to_string`).

use std::fmt;
use std::str::FromStr;

use super::types::Schedule;

/// Not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no schedule of mirror snapshots: it must be like 5m, 2h or 1d, and may have a start, like 1h@00:30"
)]
pub struct NoSchedule(String);

impl FromStr for Schedule {
    type Err = NoSchedule;

    fn from_str(text: &str) -> Result<Schedule, NoSchedule> {
        let text = text.trim();
        let wrong = || NoSchedule(text.chars().take(64).collect());
        let (interval, start) = match text.split_once('@') {
            Some((interval, start)) => (interval.trim(), Some(start.trim())),
            None => (text, None),
        };
        let (number, minutes) = match interval.strip_suffix(['m', 'h', 'd']) {
            Some(number) if interval.ends_with('m') => (number, 1),
            Some(number) if interval.ends_with('h') => (number, 60),
            Some(number) => (number, 60 * 24),
            None => (interval, 1),
        };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let minutes = number.parse::<u32>().ok().and_then(|n| n.checked_mul(minutes)).filter(|n| *n > 0);
        let interval = match minutes.ok_or_else(wrong)? {
            n if n % (60 * 24) == 0 => format!("{}d", n / (60 * 24)),
            n if n % 60 == 0 => format!("{}h", n / 60),
            n => format!("{n}m"),
        };
        let start = start.map(|start| time_of_day(start).ok_or_else(wrong)).transpose()?;
        Ok(Schedule { interval, start })
    }
}

/// `HH:MM` as `HH:MM:00`.
fn time_of_day(text: &str) -> Option<String> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str, below: u8| {
        let digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u8>().ok().filter(|n| digits && *n < below)
    };
    Some(format!("{:02}:{:02}:00", number(hour, 24)?, number(minute, 60)?))
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.start {
            Some(start) => write!(f, "{}@{}", self.interval, start.strip_suffix(":00").unwrap_or(start)),
            None => f.write_str(&self.interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_read_as_the_manager_writes_it() {
        for (text, interval, start, shown) in [
            ("5m", "5m", None, "5m"),
            ("90", "90m", None, "90m"),
            ("120m", "2h", None, "2h"),
            ("24h", "1d", None, "1d"),
            (" 1h @ 0:30", "1h", Some("00:30:00"), "1h@00:30"),
        ] {
            let schedule: Schedule = text.parse().unwrap();
            let start = start.map(str::to_owned);
            assert_eq!(schedule, Schedule { interval: interval.to_owned(), start }, "{text}");
            assert_eq!(schedule.to_string(), shown);
            assert_eq!(shown.parse(), Ok(schedule));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "m",
            "0m",
            "5w",
            "-5m",
            "1.5h",
            "5m@",
            "5m@24:00",
            "5m@1",
            "99999999999m",
            "@00:30",
            "5 m@12:00:00",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }
}
