//! `replication lag`: how far behind each copy was when its service last asked Ceph.
//!
//! Read from the table that the service keeps, so that it answers on the day when neither site does.

use chrono::NaiveDateTime;
use serde::Serialize;

use super::super::output::{age, duration, table, time, volumes};
use super::super::target::Target;
use super::super::{Context, Report};
use crate::db;
use crate::db::lag::{Asked, Lag};
use crate::error::Result;

/// What one backend's sites answered, and its copies.
#[derive(Debug, Serialize)]
struct View {
    backend: String,
    degraded: usize,
    sites: Vec<SiteView>,
    copies: Vec<Copy>,
}

/// When a site was last asked.
#[derive(Debug, Serialize)]
pub(super) struct SiteView {
    site: String,
    asked_at: String,
    asked_seconds_ago: i64,
    /// When it last answered.
    answered_at: Option<String>,
    /// Why it did not, the last time.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Copy {
    volume: String,
    site: String,
    mode: Option<String>,
    state: String,
    message: Option<String>,
    last_sync: Option<String>,
    lag_seconds: Option<i64>,
    entries_behind: Option<i64>,
    bytes_behind: Option<i64>,
    bytes_per_second: Option<i64>,
    percent: Option<i32>,
    rpo_seconds: Option<i64>,
    rpo_breached: bool,
    fault: Option<String>,
    reported_at: Option<String>,
    polled_at: String,
}

impl From<&Lag> for Copy {
    fn from(lag: &Lag) -> Copy {
        Copy {
            volume: lag.volume_id.clone(),
            site: lag.site.clone(),
            mode: lag.mode.clone(),
            state: lag.state.clone(),
            message: lag.message.clone(),
            last_sync: written(lag.last_sync),
            lag_seconds: lag.lag_seconds,
            entries_behind: lag.entries_behind,
            bytes_behind: lag.bytes_behind,
            bytes_per_second: lag.bytes_per_second,
            percent: lag.percent,
            rpo_seconds: lag.rpo_seconds,
            rpo_breached: lag.breached,
            fault: lag.fault.clone(),
            reported_at: written(lag.reported_at),
            polled_at: time(Some(lag.polled_at)),
        }
    }
}

fn written(at: Option<NaiveDateTime>) -> Option<String> {
    at.map(|_| time(at))
}

/// What the sites of a backend answered, as of `now`.
pub(super) fn sites(asked: &[Asked], now: NaiveDateTime) -> Vec<SiteView> {
    let view = |asked: &Asked| SiteView {
        site: asked.site.clone(),
        asked_at: time(Some(asked.polled_at)),
        asked_seconds_ago: age(Some(asked.polled_at), now).unwrap_or_default().max(0),
        answered_at: written(asked.answered_at),
        problem: asked.problem.clone(),
    };
    asked.iter().map(view).collect()
}

impl SiteView {
    /// `b: answered 12s ago`.
    pub(super) fn line(&self) -> String {
        let (site, ago) = (&self.site, duration(self.asked_seconds_ago));
        match &self.problem {
            None => format!("{site}: answered {ago} ago"),
            Some(problem) => {
                let last = self.answered_at.as_deref().unwrap_or("never");
                format!("{site}: asked {ago} ago, {problem}; it last answered: {last}")
            }
        }
    }
}

pub(super) async fn run(context: &Context, backend: Option<&str>, only_degraded: bool) -> Result<Report> {
    let targets = match backend {
        Some(name) => vec![Target::find(context, name).await?],
        None => Target::all(context).await?,
    };
    let now = db::now();
    let mut views = Vec::with_capacity(targets.len());
    for target in &targets {
        let scope = &target.scope;
        let (copies, asked) = context
            .db
            .read("copies of volumes", async |conn| {
                Ok((db::lag::list(conn, scope).await?, db::lag::sites(conn, scope).await?))
            })
            .await?;
        // Nobody looks at the copies of a backend without sites to fail over to.
        if asked.is_empty() && copies.is_empty() && backend.is_none() {
            continue;
        }
        let mut degraded: Vec<&str> =
            copies.iter().filter(|c| c.is_degraded()).map(|c| c.volume_id.as_str()).collect();
        degraded.dedup();
        views.push(View {
            backend: target.name().to_owned(),
            degraded: degraded.len(),
            sites: sites(&asked, now),
            copies: copies.iter().filter(|c| !only_degraded || c.is_degraded()).map(Copy::from).collect(),
        });
    }
    let text = if views.is_empty() {
        "No service has looked at copies: there is no replicated backend, or scoria_replication_poll_interval is 0."
            .to_owned()
    } else {
        views.iter().map(render).collect::<Vec<_>>().join("\n\n")
    };
    Report::new(text, &views)
}

fn render(view: &View) -> String {
    let mut lines = vec![format!("Backend {}: {} degraded", view.backend, volumes(view.degraded))];
    lines.extend(view.sites.iter().map(SiteView::line));
    if view.copies.is_empty() {
        return lines.join("\n");
    }
    let head = ["Volume", "Copy on", "Mode", "State", "Last sync (UTC)", "Lag", "Behind", "RPO", "Degraded"];
    lines.push(table(head, view.copies.iter().map(row)));
    lines.join("\n")
}

fn row(copy: &Copy) -> [String; 9] {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let state = match copy.percent {
        Some(percent) if percent < 100 => format!("{} {percent}%", copy.state),
        _ => copy.state.clone(),
    };
    let behind = match (copy.entries_behind, copy.bytes_behind) {
        (Some(entries), Some(bytes)) if entries > 0 => format!("{entries} entries, {}", size(bytes)),
        (Some(entries), None) if entries > 0 => format!("{entries} entries"),
        (_, Some(bytes)) => size(bytes),
        _ => "-".to_owned(),
    };
    let mut degraded = copy.fault.clone().unwrap_or_default();
    if copy.rpo_breached {
        degraded = if degraded.is_empty() { "rpo".to_owned() } else { format!("{degraded}, rpo") };
    }
    if let (Some(_), Some(message)) = (&copy.fault, &copy.message) {
        degraded = format!("{degraded}: {message}");
    }
    [
        copy.volume.clone(),
        copy.site.clone(),
        text(&copy.mode),
        state,
        text(&copy.last_sync),
        copy.lag_seconds.map_or_else(|| "-".to_owned(), duration),
        behind,
        copy.rpo_seconds.map_or_else(|| "-".to_owned(), duration),
        degraded,
    ]
}

/// Bytes to one digit behind the point.
fn size(bytes: i64) -> String {
    let mut value = bytes.max(0) as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(
            [0, 1023, 2048, 3 << 30, 5 << 40].map(size),
            ["0 B", "1023 B", "2.0 KiB", "3.0 GiB", "5.0 TiB"]
        );
    }

    #[test]
    fn a_site_that_is_silent_is_told_with_its_last_answer() {
        let at =
            |second| chrono::NaiveDate::from_ymd_opt(2026, 1, 2).unwrap().and_hms_opt(3, 4, second).unwrap();
        let asked = |problem: Option<&str>, answered_at| Asked {
            site: "b".into(),
            polled_at: at(10),
            answered_at,
            problem: problem.map(str::to_owned),
        };
        let lines: Vec<String> = sites(
            &[
                asked(None, Some(at(10))),
                asked(Some("no answer"), Some(at(5))),
                asked(Some("no answer"), None),
            ],
            at(22),
        )
        .iter()
        .map(SiteView::line)
        .collect();
        assert_eq!(
            lines,
            [
                "b: answered 12s ago",
                "b: asked 12s ago, no answer; it last answered: 2026-01-02 03:04:05",
                "b: asked 12s ago, no answer; it last answered: never",
            ]
        );
    }
}
