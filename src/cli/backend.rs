//! `backend`: what the configuration read here and the database know of each backend.

use clap::Subcommand;
use serde::Serialize;

use super::output::{duration, table};
use super::target::Target;
use super::{Context, Report};
use crate::error::Result;

/// Actions of `backend`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Backends of this host's configuration and of the service rows
    List,
}

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
}

pub(super) async fn run(context: &Context, action: &Action) -> Result<Report> {
    match action {
        Action::List => {
            let now = crate::db::now();
            let views: Vec<View> = Target::all(context)
                .await?
                .iter()
                .map(|target| {
                    let fields = target.fields().unwrap_or_default();
                    View {
                        backend: target.name().to_owned(),
                        hosts: target.services.iter().map(|s| s.host.clone()).collect(),
                        section: target.config.as_ref().map(|c| c.section.clone()),
                        pool: target.config.as_ref().map(|c| c.pool.clone()),
                        sites: target.sites(),
                        active_site: target.active_site(),
                        replication_status: fields.replication_status,
                        up: target.is_up(context, now),
                        heartbeat_age_seconds: target.heartbeat_age(now),
                        disabled: fields.disabled,
                        disabled_reason: fields.disabled_reason.filter(|r| !r.is_empty()),
                    }
                })
                .collect();
            let rows = views.iter().map(|v| {
                [
                    v.backend.clone(),
                    v.section.clone().unwrap_or_else(|| "not configured here".to_owned()),
                    v.pool.clone().unwrap_or_default(),
                    v.sites.as_ref().map(|s| s.join(", ")).unwrap_or_default(),
                    v.active_site.clone(),
                    v.replication_status.clone().unwrap_or_default(),
                    heartbeat(v.up, v.heartbeat_age_seconds),
                    enabled(v.disabled, v.disabled_reason.as_deref()),
                ]
            });
            let head =
                ["Backend", "Section", "Pool", "Sites", "Active", "Replication", "Service", "Scheduling"];
            Report::new(table(head, rows), &views)
        }
    }
}

/// `up, 3s ago`.
pub(super) fn heartbeat(up: bool, age: Option<i64>) -> String {
    match age {
        None => "never ran".to_owned(),
        Some(age) => format!("{}, {} ago", if up { "up" } else { "down" }, duration(age)),
    }
}

/// `disabled (failed-over)`.
pub(super) fn enabled(disabled: bool, reason: Option<&str>) -> String {
    match (disabled, reason.filter(|r| !r.is_empty())) {
        (false, _) => "enabled".to_owned(),
        (true, None) => "disabled".to_owned(),
        (true, Some(reason)) => format!("disabled ({reason})"),
    }
}
