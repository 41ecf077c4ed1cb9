//! `replication status`: everything about a failover on one page.

use std::collections::BTreeMap;

use chrono::NaiveDateTime;
use serde::Serialize;

use super::super::backend::{enabled, heartbeat};
use super::super::follow::{View as OperationView, progress_line};
use super::super::output::{counts, facts, time, volumes};
use super::super::target::Target;
use super::super::{Context, Report};
use super::lag::{SiteView, sites};
use crate::db::failover::NOT_REPLICATED;
use crate::db::{admin, audit, lag};
use crate::error::Result;
use crate::journal::{ListingFilter, Progress};
use crate::replication::orders::ALL;

#[derive(Debug, Serialize)]
struct View {
    backend: String,
    services: Vec<ServiceView>,
    cluster: Option<admin::Fields>,
    active_site: String,
    sites: Option<Vec<String>>,
    accepts_failover: bool,
    volumes: BTreeMap<String, i64>,
    /// Volumes that a server has attached.
    attached: i64,
    /// Volumes that a failover to another site leaves behind, because they are not replicated.
    not_replicated: i64,
    /// What volumes say of their replication, and how many say it.
    said: BTreeMap<String, i64>,
    strays: Vec<Stray>,
    degraded: i64,
    asked: Vec<SiteView>,
    operation: Option<Operation>,
}

#[derive(Debug, Serialize)]
struct ServiceView {
    host: String,
    up: bool,
    heartbeat_age_seconds: Option<i64>,
    #[serde(flatten)]
    fields: admin::Fields,
}

#[derive(Debug, Serialize)]
struct Stray {
    volume: String,
    site: String,
}

#[derive(Debug, Serialize)]
struct Operation {
    #[serde(flatten)]
    view: OperationView,
    volumes: BTreeMap<String, i64>,
    #[serde(skip)]
    line: String,
}

pub(super) async fn run(context: &Context, backend: Option<&str>) -> Result<Report> {
    let targets = match backend {
        Some(name) => vec![Target::find(context, name).await?],
        None => Target::all(context).await?,
    };
    let now = crate::db::now();
    let mut views = Vec::with_capacity(targets.len());
    for target in &targets {
        views.push(view(context, target, now).await?);
    }
    let text = if views.is_empty() {
        "There is no backend: none is configured here and no volume service has run.".to_owned()
    } else {
        views.iter().map(render).collect::<Vec<_>>().join("\n\n")
    };
    Report::new(text, &views)
}

async fn view(context: &Context, target: &Target, now: NaiveDateTime) -> Result<View> {
    let scope = &target.scope;
    let (volumes, strays, said, attached) = context
        .db
        .read("volumes of a backend", async |conn| {
            Ok((
                admin::replication_counts(conn, scope).await?,
                admin::strays(conn, scope).await?,
                audit::said(conn, scope).await?,
                audit::attached(conn, scope).await?,
            ))
        })
        .await?;
    let (degraded, asked) = context
        .db
        .read("copies of a backend", async |conn| {
            Ok((lag::count_degraded(conn, scope).await?, lag::sites(conn, scope).await?))
        })
        .await?;
    let operation = latest(context, target).await?.map(|progress| Operation {
        view: OperationView::from(&progress.operation),
        line: line(&progress),
        volumes: progress.items.into_iter().collect(),
    });
    let services: Vec<ServiceView> = target
        .services
        .iter()
        .map(|service| ServiceView {
            host: service.host.clone(),
            up: super::super::output::is_up(service.updated_at, now, context.config.service_down_time),
            heartbeat_age_seconds: super::super::output::age(service.updated_at, now),
            fields: service.into(),
        })
        .collect();
    // cinder-api asks the cluster's row and every member's.
    let accepts =
        |f: &admin::Fields| matches!(f.replication_status.as_deref(), Some("enabled" | "failed-over"));
    let cluster: Option<admin::Fields> = target.cluster.as_ref().map(Into::into);
    Ok(View {
        backend: target.name().to_owned(),
        accepts_failover: !services.is_empty()
            && services.iter().all(|s| accepts(&s.fields))
            && cluster.as_ref().is_none_or(accepts),
        services,
        cluster,
        active_site: target.active_site(),
        sites: target.sites(),
        not_replicated: NOT_REPLICATED.iter().filter_map(|status| volumes.get(*status)).sum(),
        volumes,
        attached,
        said,
        strays: strays.into_iter().map(|(volume, site)| Stray { volume, site }).collect(),
        degraded,
        asked: sites(&asked, now),
        operation,
    })
}

/// The replication operation that is open, or the last one that was.
async fn latest(context: &Context, target: &Target) -> Result<Option<Progress>> {
    let open = context.journal.open_methods(&target.scope, ALL).await?;
    let mut id = open.first().map(|row| row.id);
    if id.is_none() {
        for method in ALL {
            let filter = ListingFilter {
                backend_host: Some(target.name().to_owned()),
                method: Some((*method).to_owned()),
                limit: 1,
                ..ListingFilter::default()
            };
            let last = context.journal.list(&filter).await?.first().map(|row| row.id);
            id = id.max(last);
        }
    }
    match id {
        Some(id) => context.journal.watch(id).await,
        None => Ok(None),
    }
}

fn line(progress: &Progress) -> String {
    let row = &progress.operation;
    let when = match row.closed_at {
        Some(closed) => format!("ended {}", time(Some(closed))),
        None => format!("since {}", time(Some(row.accepted_at))),
    };
    format!("{}; {when}", progress_line(progress).trim_start_matches("operation "))
}

fn render(view: &View) -> String {
    let mut rows: Vec<(&str, Option<String>)> = vec![("Backend", Some(view.backend.clone()))];
    if let Some(cluster) = &view.cluster {
        rows.push(("Cluster", Some(fields(cluster))));
    }
    for service in &view.services {
        let name = if view.services.len() > 1 { format!("{}: ", service.host) } else { String::new() };
        let beat = heartbeat(service.up, service.heartbeat_age_seconds);
        rows.push(("Service", Some(format!("{name}{beat}; {}", fields(&service.fields)))));
    }
    if view.services.is_empty() {
        rows.push(("Service", Some("never ran".to_owned())));
    }
    let sites = match &view.sites {
        Some(sites) if sites.len() > 1 => format!(" (sites: {})", sites.join(", ")),
        Some(_) => " (no replication_device)".to_owned(),
        None => " (its configuration is not read here)".to_owned(),
    };
    rows.push(("Active site", Some(format!("{}{sites}", view.active_site))));
    let replicated = !view.services.is_empty() && view.sites.as_ref().is_none_or(|s| s.len() > 1);
    rows.push((
        "Failover",
        replicated.then(|| match view.accepts_failover {
            true => "accepted by cinder-api".to_owned(),
            false => "refused by cinder-api until the row is enabled or failed-over".to_owned(),
        }),
    ));
    let all = counts(view.volumes.iter().map(|(s, n)| (s.as_str(), *n)));
    rows.push(("Volumes", Some(if all.is_empty() { "none".to_owned() } else { all })));
    rows.push((
        "Attached",
        (view.attached > 0).then(|| volumes(usize::try_from(view.attached).unwrap_or(0))),
    ));
    let behind = usize::try_from(view.not_replicated).unwrap_or(0);
    rows.push((
        "Not replicated",
        (replicated && behind > 0).then(|| format!("{}, out of reach after a failover", volumes(behind))),
    ));
    rows.push(("They say", said(&view.said)));
    rows.push(("Strays", strays(&view.strays)));
    if !view.asked.is_empty() {
        let degraded = match usize::try_from(view.degraded) {
            Ok(0) | Err(_) => "none degraded".to_owned(),
            Ok(count) => format!("{} degraded (scoria-manage replication lag --degraded)", volumes(count)),
        };
        let sites = view.asked.iter().map(SiteView::line);
        let lines: Vec<String> = std::iter::once(degraded).chain(sites).collect();
        rows.push(("Copies", Some(lines.join("\n"))));
    }
    rows.push(("Operation", view.operation.as_ref().map(|o| o.line.clone())));
    facts(rows)
}

fn fields(fields: &admin::Fields) -> String {
    let frozen = if fields.frozen { ", frozen" } else { "" };
    let status = fields.replication_status.as_deref().unwrap_or("no replication status");
    format!("{status}, {}{frozen}", enabled(fields.disabled, fields.disabled_reason.as_deref()))
}

/// What volumes say of their replication, the most frequent first.
fn said(said: &BTreeMap<String, i64>) -> Option<String> {
    /// Sentences before it is enough.
    const SHOWN: usize = 5;
    let mut all: Vec<(&String, &i64)> = said.iter().collect();
    all.sort_by_key(|(text, count)| (-**count, *text));
    let mut lines: Vec<String> =
        all.iter().take(SHOWN).map(|(text, count)| format!("{count}: {text}")).collect();
    if all.len() > SHOWN {
        lines.push(format!("and {} other texts", all.len() - SHOWN));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// `2 volumes served from default: v1, v2`, a line a site.
fn strays(strays: &[Stray]) -> Option<String> {
    /// Volumes named before it is enough.
    const NAMED: usize = 5;
    let mut sites: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for stray in strays {
        sites.entry(&stray.site).or_default().push(&stray.volume);
    }
    let lines: Vec<String> = sites
        .into_iter()
        .map(|(site, ids)| {
            let named = ids.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
            let more = if ids.len() > NAMED { ", …" } else { "" };
            format!("{} still served from {site}: {named}{more}", volumes(ids.len()))
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_counts() {
        let stuck = admin::Fields {
            replication_status: Some("failover-error".into()),
            disabled: true,
            disabled_reason: Some("failed-over".into()),
            ..admin::Fields::default()
        };
        let view = View {
            backend: "node1@ceph".into(),
            services: vec![ServiceView {
                host: "node1@ceph".into(),
                up: true,
                heartbeat_age_seconds: Some(3),
                fields: stuck,
            }],
            cluster: None,
            active_site: "default".into(),
            sites: Some(vec!["default".into(), "b".into()]),
            accepts_failover: false,
            volumes: BTreeMap::from([("failover-error".into(), 2), ("enabled".into(), 7)]),
            attached: 3,
            not_replicated: 1,
            said: BTreeMap::from([("degraded".into(), 1), ("it is primary on both sites".into(), 2)]),
            strays: vec![Stray { volume: "v1".into(), site: "b".into() }],
            degraded: 3,
            asked: sites(
                &[lag::Asked {
                    site: "b".into(),
                    polled_at: NaiveDateTime::default(),
                    answered_at: None,
                    problem: None,
                }],
                NaiveDateTime::default(),
            ),
            operation: None,
        };
        let text = render(&view);
        for expected in [
            "up, 3s ago; failover-error, disabled (failed-over)",
            "default (sites: default, b)",
            "refused by cinder-api",
            "enabled 7, failover-error 2",
            "1 volume still served from b: v1",
            "3 volumes degraded",
            "b: answered 0s ago",
            "3 volumes",
            "1 volume, out of reach",
            "2: it is primary on both sites",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        assert!(!text.contains("Operation"), "{text}");
    }
}
