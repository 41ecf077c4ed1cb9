//! Watching an operation that a service runs.
//!
//! The journal's rows are all there is to see, and all that is needed: whoever looks sees the same, from
//! any host, also after the fact. Watching changes nothing, and stopping it changes nothing either.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::advice::{Failure, failure};
use super::bar;
use super::output::{age, counts, duration, is_up, table, time, volumes};
use super::target::Target;
use super::{Context, Exit, Report};
use crate::backup::orders as backup;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::{Item, Listing, Progress};
use crate::replication::orders::{ALL, Request};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);
/// After so long without an owner it is worth saying why.
const PATIENCE: Duration = Duration::from_secs(15);

/// An operation for people and scripts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct View {
    pub(super) id: i64,
    pub(super) method: String,
    pub(super) backend: String,
    pub(super) cluster: Option<String>,
    pub(super) resource_type: Option<String>,
    pub(super) resource_id: Option<String>,
    /// `waiting` (no service has taken it yet), `open`, `closed`.
    pub(super) state: &'static str,
    pub(super) outcome: Option<String>,
    pub(super) detail: Option<String>,
    pub(super) owner_host: Option<String>,
    pub(super) epoch: i64,
    pub(super) accepted_at: String,
    pub(super) updated_at: String,
    pub(super) closed_at: Option<String>,
}

impl From<&Listing> for View {
    fn from(row: &Listing) -> View {
        View {
            id: row.id,
            method: row.method.clone(),
            backend: row.backend_host.clone(),
            cluster: row.cluster.clone(),
            resource_type: row.resource_type.clone(),
            resource_id: row.resource_id.clone(),
            state: state(row),
            outcome: row.outcome.clone(),
            detail: row.outcome_detail.clone(),
            owner_host: Some(row.owner_host.clone()).filter(|h| !h.is_empty()),
            epoch: row.epoch,
            accepted_at: time(Some(row.accepted_at)),
            updated_at: time(Some(row.updated_at)),
            closed_at: row.closed_at.map(|t| time(Some(t))),
        }
    }
}

/// In a word.
pub(super) fn state(row: &Listing) -> &'static str {
    if row.is_closed() {
        "closed"
    } else if row.is_waiting() {
        "waiting"
    } else {
        "open"
    }
}

/// The end of an operation, or how far it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Summary {
    operation: View,
    step: Option<String>,
    volumes: Vec<Count>,
    failed: Vec<Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Request>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    items: Vec<ItemView>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Count {
    step: String,
    count: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ItemView {
    resource: String,
    step: String,
    updated_at: String,
}

/// What is known of an operation now; all its items with `every`.
pub(super) async fn report(context: &Context, id: i64, every: bool) -> Result<Report> {
    let progress = context.journal.watch(id).await?.ok_or_else(|| unknown(id))?;
    let items = context.journal.items_of(id).await?;
    let order = match ALL.contains(&progress.operation.method.as_str()) {
        true => context.journal.request_of(id).await?.and_then(|text| Request::parse(&text).ok()),
        false => None,
    };
    render(&progress, &items, order, every)
}

fn render(progress: &Progress, items: &[Item], order: Option<Request>, every: bool) -> Result<Report> {
    let row = &progress.operation;
    let failed: Vec<Failure> = items
        .iter()
        .filter(|i| !i.step.resource_id.is_empty())
        .filter_map(|i| failure(&row.method, i))
        .collect();
    let name = row.cluster.as_deref().unwrap_or(&row.backend_host);
    let mut text = format!("Operation {}: {} of {name}", row.id, row.method);
    if let Some(resource) = &row.resource_id {
        text.push_str(&format!(" ({} {resource})", row.resource_type.as_deref().unwrap_or("resource")));
    }
    text.push_str(&match (state(row), &row.outcome) {
        ("waiting", _) => ", not yet taken by a service\n".to_owned(),
        ("open", _) => format!(", under way on {} (owner {} of it)\n", row.owner_host, row.epoch),
        (_, outcome) => format!(", {}\n", outcome.as_deref().unwrap_or("closed")),
    });
    text.push_str(&format!("accepted {}", time(Some(row.accepted_at))));
    if let Some(closed) = row.closed_at {
        text.push_str(&format!(
            ", ended {} after {}",
            time(Some(closed)),
            duration((closed - row.accepted_at).num_seconds())
        ));
    }
    text.push('\n');
    if let Some(order) = order.as_ref().and_then(|o| serde_json::to_string(&o.order).ok()) {
        text.push_str(&format!("order {order}\n"));
    }
    if let Some(step) = &progress.step {
        text.push_str(&format!("step {step}\n"));
    }
    if let Some(detail) = &row.outcome_detail {
        text.push_str(&format!("{detail}\n"));
    }
    if !progress.items.is_empty() {
        let all = counts(progress.items.iter().map(|(s, n)| (s.as_str(), *n)));
        text.push_str(&format!("volumes: {all}\n"));
    }
    let mut views = Vec::new();
    if every {
        views = items
            .iter()
            .filter(|i| !i.step.resource_id.is_empty())
            .map(|i| ItemView {
                resource: i.step.resource_id.clone(),
                step: i.name().to_owned(),
                updated_at: time(Some(i.updated_at)),
            })
            .collect();
        let rows = views.iter().map(|v| [v.resource.clone(), v.step.clone(), v.updated_at.clone()]);
        text.push_str(&format!("{}\n", table(["Volume", "Step", "Since"], rows)));
    }
    if !failed.is_empty() {
        text.push_str(&format!("{} failed:\n", volumes(failed.len())));
        let rows = failed.iter().map(|f| [f.volume.clone(), f.reason.clone(), f.advice.clone()]);
        text.push_str(&table(["Volume", "Reason", "What to do"], rows));
        text.push('\n');
    }
    let good = match row.outcome.as_deref() {
        None => true,
        Some(outcome) => outcome == "succeeded" && failed.is_empty(),
    };
    let summary = Summary {
        operation: View::from(row),
        step: progress.step.clone(),
        volumes: progress.items.iter().map(|(s, n)| Count { step: s.clone(), count: *n }).collect(),
        failed,
        order,
        items: views,
    };
    Ok(Report::new(text, &summary)?.ending(if good { Exit::Done } else { Exit::Failed }))
}

/// Watches an operation to its end. Ctrl-C ends the watching only.
pub(super) async fn follow(context: &Context, id: i64) -> Result<Report> {
    tokio::select! {
        ended = watch(context, id) => {
            ended?;
            report(context, id, false).await
        }
        _ = tokio::signal::ctrl_c() => {
            eprintln!("\nOperation {id} goes on without us. To look again: {}", look(id));
            Ok(report(context, id, false).await?.ending(Exit::Interrupted))
        }
    }
}

/// The command that shows an operation.
pub(super) fn look(id: i64) -> String {
    format!("scoria-manage operation show {id} --follow")
}

async fn watch(context: &Context, id: i64) -> Result<()> {
    let mut line = Line::new(std::io::stderr().is_terminal());
    let (started, mut warned) = (Instant::now(), false);
    loop {
        let progress = context.journal.watch(id).await?.ok_or_else(|| unknown(id))?;
        let mut text = progress_line(&progress);
        if bar::applies(&progress.operation.method)
            && let Some(percent) = context.journal.percent_of(id, bar::ENDS).await?
        {
            let done = if line.terminal { bar::bar(percent) } else { bar::word(percent) };
            text.push_str(&format!(" {done}"));
        }
        line.show(&text, started.elapsed());
        if progress.operation.is_closed() {
            line.end();
            return Ok(());
        }
        if progress.operation.is_waiting() && !warned && started.elapsed() > PATIENCE {
            warned = true;
            line.end();
            eprintln!("{}", still_waiting(context, &progress.operation).await?);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Why nobody takes an order.
async fn still_waiting(context: &Context, row: &Listing) -> Result<String> {
    let name = row.cluster.as_deref().unwrap_or(&row.backend_host);
    let now = db::now();
    if let Some(host) = name.strip_suffix(backup::SERVICE) {
        let service = context
            .db
            .read("backup service", async |conn| db::service::find_backup(conn, host).await)
            .await?;
        let heartbeat = service.and_then(|service| service.updated_at);
        let is_up = is_up(heartbeat, now, context.config.service_down_time);
        let (stock, ours) = ("cinder-backup", "scoria-backup");
        return Ok(untaken(
            &format!("the backup service of {host}"),
            is_up,
            age(heartbeat, now),
            stock,
            ours,
        ));
    }
    if !name.contains('@') {
        // An order for a host: it has no row that would tell whether its service runs.
        return Ok(format!(
            "The service of host {name} has not taken the order yet; it waits in the journal until scoria-volume runs there."
        ));
    }
    let target = Target::find(context, name).await?;
    let (is_up, age) = (target.is_up(context, now), target.heartbeat_age(now));
    Ok(untaken(&format!("the service of {name}"), is_up, age, "cinder-volume", "scoria-volume"))
}

fn untaken(who: &str, is_up: bool, silent: Option<i64>, stock: &str, ours: &str) -> String {
    let text = match silent {
        _ if is_up => format!("{who} is up but has not taken the order yet; is it {ours}, and not {stock}?"),
        Some(silent) => format!(
            "{who} has been silent for {}; the order waits in the journal until {ours} runs there again.",
            duration(silent)
        ),
        None => format!("{who} has never run; the order waits in the journal until {ours} does."),
    };
    text.replacen("the", "The", 1)
}

/// One line about how far it is.
pub(super) fn progress_line(progress: &Progress) -> String {
    let row = &progress.operation;
    let mut text = format!("operation {} {}: ", row.id, row.method);
    match (state(row), &row.outcome) {
        ("waiting", _) => text.push_str("waiting for the service to take it"),
        ("open", _) => text.push_str(progress.step.as_deref().unwrap_or("under way")),
        (_, outcome) => text.push_str(outcome.as_deref().unwrap_or("closed")),
    }
    if !progress.items.is_empty() {
        let total: i64 = progress.items.iter().map(|(_, n)| n).sum();
        let each = counts(progress.items.iter().map(|(s, n)| (s.as_str(), *n)));
        text.push_str(&format!("; {each} of {total}"));
    }
    text
}

/// The line that moves: rewritten on a terminal, written when it changes elsewhere.
struct Line {
    terminal: bool,
    last: String,
}

impl Line {
    fn new(terminal: bool) -> Line {
        Line { terminal, last: String::new() }
    }

    fn show(&mut self, text: &str, elapsed: Duration) {
        let mut stderr = std::io::stderr().lock();
        // Whoever closed our standard error does not want to see it; the work goes on.
        let _ = if self.terminal {
            let elapsed = duration(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX));
            write!(stderr, "\r\x1b[K{text} ({elapsed})").and_then(|()| stderr.flush())
        } else if self.last != text {
            writeln!(stderr, "{text}")
        } else {
            Ok(())
        };
        text.clone_into(&mut self.last);
    }

    fn end(&self) {
        if self.terminal {
            eprintln!();
        }
    }
}

fn unknown(id: i64) -> Error {
    Error::new(
        Code::InvalidInput,
        format!("There is no operation {id}: it never was, or it ended so long ago that it was purged"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Step;
    use crate::replication::orders::RESYNC;
    use chrono::NaiveDateTime;
    use serde_json::json;

    #[test]
    fn who_waits_is_told_which_service_must_run() {
        let of = |is_up, silent| {
            untaken("the backup service of n1", is_up, silent, "cinder-backup", "scoria-backup")
        };
        assert!(of(true, Some(3)).contains("is it scoria-backup, and not cinder-backup?"));
        let dead = of(false, Some(90));
        assert!(
            dead.starts_with("The backup service of n1 has been silent for ")
                && dead.contains("until scoria-backup")
        );
        assert!(of(false, None).contains("has never run"));
    }

    fn listing(owner: &str, outcome: Option<&str>) -> Listing {
        let at = NaiveDateTime::default();
        Listing {
            id: 7,
            unique_id: "u".into(),
            method: RESYNC.into(),
            backend_host: "node1@ceph".into(),
            cluster: None,
            resource_type: None,
            resource_id: None,
            state: if outcome.is_some() { "closed" } else { "open" }.into(),
            outcome: outcome.map(str::to_owned),
            outcome_detail: None,
            owner: owner.into(),
            owner_host: if owner.is_empty() { String::new() } else { "node1".into() },
            epoch: 1,
            lease_until: at,
            accepted_at: at,
            updated_at: at,
            closed_at: outcome.map(|_| at + chrono::TimeDelta::seconds(65)),
        }
    }

    fn item(id: &str, data: serde_json::Value) -> Item {
        let step = Step { resource_id: id.into(), name: "volume".into(), data };
        Item { step, updated_at: NaiveDateTime::default() }
    }

    #[test]
    fn the_line_says_who_works_and_how_far() {
        let waiting = Progress { operation: listing("", None), step: None, items: vec![] };
        assert!(progress_line(&waiting).ends_with("waiting for the service to take it"));
        let items = vec![("demoting".to_owned(), 2), ("replaying".to_owned(), 3)];
        let open = Progress { operation: listing("x", None), step: None, items };
        assert_eq!(
            progress_line(&open),
            "operation 7 scoria.replication.resync: under way; demoting 2, replaying 3 of 5"
        );
    }

    #[test]
    fn a_failed_volume_fails_the_command_and_says_what_to_do() {
        let items = vec![
            item("v1", json!({"step": "replaying"})),
            item("v2", json!({"step": "failed", "reason": "unreadable"})),
        ];
        let progress = Progress {
            operation: listing("x", Some("succeeded")),
            step: None,
            items: vec![("failed".to_owned(), 1), ("replaying".to_owned(), 1)],
        };
        let report = render(&progress, &items, None, false).unwrap();
        assert_eq!(report.exit, Exit::Failed);
        assert!(report.text.contains("1 volume failed:"), "{}", report.text);
        assert!(report.text.contains("bring both sites back"), "{}", report.text);
        assert!(report.text.contains("after 1m05s"), "{}", report.text);
        assert_eq!(report.json["failed"][0]["volume"], "v2");
        assert!(!report.text.contains("| v1 "), "{}", report.text);
        let every = render(&progress, &items[..1], None, true).unwrap();
        assert_eq!((every.exit, every.text.contains("| v1 ")), (Exit::Done, true));
        let failed = Progress { operation: listing("x", Some("failed")), ..progress };
        assert_eq!(render(&failed, &[], None, false).unwrap().exit, Exit::Failed);
    }

    #[test]
    fn an_open_operation_is_no_failure() {
        let open = Progress { operation: listing("x", None), step: Some("running".into()), items: vec![] };
        let report = render(&open, &[], None, false).unwrap();
        assert_eq!(report.exit, Exit::Done);
        assert_eq!(report.json["operation"]["state"], "open");
        assert!(report.text.contains("under way on node1"), "{}", report.text);
    }
}
