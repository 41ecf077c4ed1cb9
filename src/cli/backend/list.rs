//! `backend list` and `show`: what the configuration read here, the service rows and the hosts' own rows know.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::output::{duration, facts, table};
use super::super::target::Target;
use super::super::{Context, Report};
use crate::backends::{self, View as Row};
use crate::error::Result;

#[derive(Debug, Serialize)]
struct View {
    backend: String,
    hosts: Vec<String>,
    section: Option<String>,
    pool: Option<String>,
    sites: Option<Vec<String>>,
    active_site: String,
    replication_status: Option<String>,
    up: bool,
    heartbeat_age_seconds: Option<i64>,
    disabled: bool,
    disabled_reason: Option<String>,
    /// What each host that serves it, or is to serve it, says of it.
    on: Vec<Row>,
}

/// Rows of the hosts; none while the tables are not there.
async fn rows(context: &Context) -> Result<Vec<Row>> {
    if context.require_tables().await.is_err() {
        return Ok(Vec::new());
    }
    context.db.read("backends", async |conn| backends::all(conn, None).await).await
}

pub(super) async fn list(context: &Context) -> Result<Report> {
    let now = crate::db::now();
    let mut rows = rows(context).await?;
    let mut views = Vec::new();
    for target in Target::all(context).await? {
        let fields = target.fields().unwrap_or_default();
        let own = |row: &Row| {
            let name = row.cluster.as_deref().unwrap_or(&row.service);
            name == target.name() || row.service == target.name()
        };
        let (on, rest): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(own);
        rows = rest;
        views.push(View {
            backend: target.name().to_owned(),
            hosts: target.services.iter().map(|s| s.host.clone()).collect(),
            section: target.config.as_ref().map(|c| c.section.clone()),
            pool: target
                .config
                .as_ref()
                .map(|c| c.pool.clone())
                .or_else(|| on.first().map(|r| r.pool.clone())),
            sites: target.sites(),
            active_site: target.active_site(),
            replication_status: fields.replication_status,
            up: target.is_up(context, now),
            heartbeat_age_seconds: target.heartbeat_age(now),
            disabled: fields.disabled,
            disabled_reason: fields.disabled_reason.filter(|r| !r.is_empty()),
            on,
        });
    }
    // Those that have never run and are in no file that was read here.
    let mut others: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in rows {
        others.entry(row.cluster.clone().unwrap_or_else(|| row.service.clone())).or_default().push(row);
    }
    views.extend(others.into_iter().map(|(backend, on)| View {
        backend,
        hosts: Vec::new(),
        section: None,
        pool: on.first().map(|row| row.pool.clone()),
        sites: None,
        active_site: String::new(),
        replication_status: None,
        up: false,
        heartbeat_age_seconds: None,
        disabled: false,
        disabled_reason: None,
        on,
    }));
    let lines = views.iter().map(|v| {
        let states: Vec<String> = v.on.iter().map(state).collect();
        let mut labels: Vec<&str> = v.on.iter().filter_map(|row| row.label.as_deref()).collect();
        labels.dedup();
        [
            v.backend.clone(),
            v.section.clone().unwrap_or_else(|| "not configured here".to_owned()),
            v.pool.clone().unwrap_or_default(),
            v.sites.as_ref().map(|s| s.join(", ")).unwrap_or_default(),
            v.active_site.clone(),
            v.replication_status.clone().unwrap_or_default(),
            heartbeat(v.up, v.heartbeat_age_seconds),
            enabled(v.disabled, v.disabled_reason.as_deref()),
            states.join("\n"),
            labels.join(", "),
        ]
    });
    let head = [
        "Backend",
        "Section",
        "Pool",
        "Sites",
        "Active",
        "Replication",
        "Service",
        "Scheduling",
        "State",
        "Label",
    ];
    Report::new(table(head, lines), &views)
}

/// `running on h1`, with a mark when something is wrong.
fn state(row: &Row) -> String {
    let problem = if row.problem.is_some() || !row.differing.is_empty() { " (!)" } else { "" };
    format!("{} on {}{problem}", row.state, row.host)
}

pub(super) async fn show(context: &Context, name: &str, host: Option<&str>) -> Result<Report> {
    context.require_tables().await?;
    let row = context.db.read("a backend", async |conn| backends::one(conn, host, name).await).await?;
    let differing: Vec<String> =
        row.differing.iter().map(|(host, keys)| format!("{host}: {}", keys.join(", "))).collect();
    let text = facts([
        ("name", Some(row.name.clone())),
        ("host", Some(row.host.clone())),
        ("service", Some(row.service.clone())),
        ("file", Some(row.path.clone())),
        ("state", Some(format!("{} (wanted: {})", row.state, row.wanted))),
        ("operation", row.operation.map(|id| id.to_string())),
        ("problem", row.problem.clone()),
        ("site", row.site.clone()),
        ("pool", Some(row.pool.clone())),
        ("availability zone", row.availability_zone.clone()),
        ("scheduling", row.disabled.map(|off| enabled(off, row.disabled_reason.as_deref()))),
        ("heartbeat", row.heartbeat_age_seconds.map(|age| format!("{} ago", duration(age)))),
        ("Cinder cluster", row.cluster.clone()),
        ("label", row.label.clone()),
        ("other options on", (!differing.is_empty()).then(|| differing.join("; "))),
    ]);
    Report::new(text, &row)
}

/// `up, 3s ago`.
pub(in crate::cli) fn heartbeat(up: bool, age: Option<i64>) -> String {
    match age {
        None => "never ran".to_owned(),
        Some(age) => format!("{}, {} ago", if up { "up" } else { "down" }, duration(age)),
    }
}

/// `disabled (failed-over)`.
pub(in crate::cli) fn enabled(disabled: bool, reason: Option<&str>) -> String {
    match (disabled, reason.filter(|r| !r.is_empty())) {
        (false, _) => "enabled".to_owned(),
        (true, None) => "disabled".to_owned(),
        (true, Some(reason)) => format!("disabled ({reason})"),
    }
}
