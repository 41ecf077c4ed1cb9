//! How things look: tables, times, counts.

use chrono::{NaiveDateTime, TimeDelta};
use comfy_table::{Cell, Table, presets};

/// A table with a head.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_FULL_CONDENSED).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}

/// Names and values, one a line; lines without a value are left out.
pub(super) fn facts<'a>(rows: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_FULL_CONDENSED);
    for (name, value) in rows {
        if let Some(value) = value {
            table.add_row([Cell::new(name), Cell::new(value)]);
        }
    }
    table.to_string()
}

/// `moved 3, pending 4`; nothing for nothing.
pub(super) fn counts<'a>(counts: impl IntoIterator<Item = (&'a str, i64)>) -> String {
    counts.into_iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// `3 volumes`, `1 volume`.
pub(super) fn volumes(count: usize) -> String {
    if count == 1 { "1 volume".to_owned() } else { format!("{count} volumes") }
}

/// Naive UTC, to the second.
pub(super) fn time(time: Option<NaiveDateTime>) -> String {
    time.map(|t| t.format("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default()
}

/// The same with `None` for nothing, as Python prints it.
pub(super) fn python_time(at: Option<NaiveDateTime>) -> String {
    if at.is_some() { time(at) } else { "None".to_owned() }
}

/// `59s`, `3m20s`, `5h12m`, `4d`.
pub(super) fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Seconds since a heartbeat; `None` when there was none.
pub(super) fn age(heartbeat: Option<NaiveDateTime>, now: NaiveDateTime) -> Option<i64> {
    heartbeat.map(|t| (now - t).num_seconds())
}

/// True when a service with this heartbeat counts as up (`cinder.objects.service.Service.is_up`).
pub(super) fn is_up(
    heartbeat: Option<NaiveDateTime>,
    now: NaiveDateTime,
    down_time: std::time::Duration,
) -> bool {
    let limit = TimeDelta::from_std(down_time).unwrap_or(TimeDelta::MAX);
    heartbeat.is_some_and(|t| now - t <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(second: u32) -> NaiveDateTime {
        chrono::NaiveDate::from_ymd_opt(2026, 1, 2).unwrap().and_hms_opt(3, 4, second).unwrap()
    }

    #[test]
    fn tables_are_plain_text() {
        let text = table(["ID", "Step"], [["1".to_owned(), "moved".to_owned()]]);
        assert_eq!(text, "+----+-------+\n| ID | Step  |\n+============+\n| 1  | moved |\n+----+-------+");
        let text = facts([("a", Some("1".to_owned())), ("b", None)]);
        assert!(text.contains("| a | 1 |") && !text.contains('b'), "{text}");
    }

    #[test]
    fn a_heartbeat_counts_until_the_down_time() {
        let limit = Duration::from_secs(10);
        assert!(is_up(Some(at(20)), at(30), limit));
        assert!(!is_up(Some(at(19)), at(30), limit));
        assert!(!is_up(None, at(30), limit));
        assert_eq!(age(Some(at(19)), at(30)), Some(11));
    }

    #[test]
    fn durations_and_counts_are_short() {
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(200), "3m20s");
        assert_eq!(duration(18_720), "5h12m");
        assert_eq!(duration(400_000), "4d");
        assert_eq!(duration(-3), "0s");
        assert_eq!(counts([("moved", 3), ("pending", 4)]), "moved 3, pending 4");
        assert_eq!((volumes(1), volumes(0)), ("1 volume".into(), "0 volumes".into()));
        assert_eq!(python_time(None), "None");
        assert_eq!(time(Some(at(5))), "2026-01-02 03:04:05");
    }
}
