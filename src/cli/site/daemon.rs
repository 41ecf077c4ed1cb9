//! `site daemon`: rbd-mirror of a site, how it is and who runs it.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::super::output::{counts, facts, table};
use super::super::{Context, Exit, Report};
use super::{Place, Source, host, place, remote, send};
use crate::error::Result;
use crate::site::Order;
use crate::site::daemon::{Action, DaemonOrder, Means};

/// Actions of `site daemon`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Daemons {
    /// Daemons by pool: who serves it, who leads, how far behind; and what is missing
    Status {
        /// The site
        site: String,
        /// Host whose service looks [default: this one's]
        #[arg(long)]
        host: Option<String>,
    },
    /// Start one, and keep it running
    Start(Run),
    /// Stop it, for good
    Stop(Run),
    /// Stop it and start it again
    Restart(Run),
}

/// Who runs a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum By {
    /// The cluster's orchestrator: ceph orch apply rbd-mirror
    Orchestrator,
    /// The host's systemd: ceph-rbd-mirror@USER
    Systemd,
    /// The host's scoria-volume
    Child,
}

impl From<By> for Means {
    fn from(by: By) -> Means {
        match by {
            By::Orchestrator => Means::Orchestrator,
            By::Systemd => Means::Systemd,
            By::Child => Means::Child,
        }
    }
}

/// Arguments of `start`, `stop` and `restart`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Run {
    /// The site
    pub site: String,
    /// By whom it is run [default: as before]
    #[arg(long, value_enum)]
    pub by: Option<By>,
    /// On which hosts an orchestrator runs it, as in ceph orch apply --placement
    #[arg(long)]
    pub placement: Option<String>,
    #[command(flatten)]
    pub source: Source,
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
    /// Only say what would be done
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

pub(super) async fn run(context: &Context, action: Daemons) -> Result<Report> {
    let (action, run) = match action {
        Daemons::Status { site, host: named } => {
            let order = DaemonOrder {
                name: site,
                action: Action::Status,
                by: None,
                files: None,
                placement: None,
                dry_run: false,
            };
            return send(context, &host(context, named.as_deref()), Order::Daemon(order), true).await;
        }
        Daemons::Start(run) => (Action::Start, run),
        Daemons::Stop(run) => (Action::Stop, run),
        Daemons::Restart(run) => (Action::Restart, run),
    };
    let Run { site: name, by, placement, source, host: named, dry_run, no_wait } = run;
    let host = host(context, named.as_deref());
    let by = by.map(Means::from);
    match place(context, source, &host).await? {
        Place::There(given) => {
            let args = json!({"name": name, "by": by, "placement": placement, "dry_run": dry_run});
            let method = format!("daemon_{}", action.as_str());
            remote::send(context, &host, &method, args, given, !no_wait).await
        }
        Place::Here(files) => {
            let order = DaemonOrder { name, action, by, files, placement, dry_run };
            send(context, &host, Order::Daemon(order), !no_wait).await
        }
    }
}

/// What came of an order.
pub(super) fn report(operation: i64, document: &Value) -> Result<Report> {
    let json = json!({"operation": operation, "result": document});
    if document.get("action") == Some(&json!("status")) {
        let (text, good) = standing(document);
        return Ok(Report::new(text, &json)?.ending(if good { Exit::Done } else { Exit::Failed }));
    }
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default();
    let would = if document.get("dry_run") == Some(&Value::Bool(true)) { "would be done" } else { "done" };
    let mut said = format!(
        "rbd-mirror of site {}: {} {would} by {} on {}.\n{}\n",
        text("site"),
        text("action"),
        text("means"),
        text("host"),
        text("command"),
    );
    if let Some(pid) = document.get("pid").and_then(Value::as_i64) {
        said.push_str(&format!("{}, process {pid}\n", text("state")));
    }
    Report::new(said, &json)
}

/// Daemons by pool, and whether nothing is wrong.
fn standing(document: &Value) -> (String, bool) {
    let list = |of: &Value, key: &str| of.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let words =
        |of: &Value, key: &str| list(of, key).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    let number = |of: &Value, key: &str| of.get(key).and_then(Value::as_i64);
    let shown = |of: &Value, key: &str| number(of, key).map_or_else(String::new, |n| n.to_string());
    let mut said = facts([("Site", Some(text(document, "site"))), ("fsid", Some(text(document, "fsid")))]);
    said.push('\n');
    let rows = list(document, "pools").into_iter().map(|pool| {
        let images = pool.get("images").and_then(Value::as_object).cloned().unwrap_or_default();
        let images = images.iter().map(|(state, n)| (state.as_str(), n.as_i64().unwrap_or(0)));
        [
            text(&pool, "pool"),
            words(&pool, "from"),
            words(&pool, "to"),
            words(&pool, "daemons"),
            text(&pool, "leader"),
            counts(images),
            shown(&pool, "entries_behind"),
            shown(&pool, "seconds_until_synced"),
        ]
    });
    let head = ["Pool", "From", "To", "Daemons", "Leader", "Images", "Entries behind", "Seconds behind"];
    said.push_str(&table(head, rows));
    said.push('\n');
    match document.get("services").and_then(Value::as_array) {
        None => said.push_str("The client may not ask the manager for its daemons (mgr 'allow r').\n"),
        Some(services) => {
            let rows = services.iter().map(|s| {
                let leads = list(s, "pools");
                let leads = leads.iter().filter(|p| p.get("leader") == Some(&Value::Bool(true)));
                let leads: Vec<String> = leads.map(|p| text(p, "name")).collect();
                [text(s, "id"), text(s, "host"), text(s, "version"), text(s, "instance"), leads.join(", ")]
            });
            said.push_str(&table(["Daemon", "On", "Version", "Instance", "Leads"], rows));
            said.push('\n');
        }
    }
    let rows = list(document, "ours").into_iter().map(|d| {
        let unit = d.get("unit").filter(|u| !u.is_null()).map(|u| text(u, "active"));
        [
            text(&d, "host"),
            text(&d, "means"),
            text(&d, "client"),
            text(&d, "wanted"),
            unit.unwrap_or_else(|| text(&d, "state")),
            shown(&d, "pid"),
            shown(&d, "ended"),
            text(&d, "log"),
        ]
    });
    said.push_str(&table(["Host", "By", "Client", "Wanted", "State", "Process", "Ended", "Log"], rows));
    said.push('\n');
    let findings = list(document, "findings");
    for finding in findings.iter().filter_map(Value::as_str) {
        said.push_str(&format!("! {finding}\n"));
    }
    (said, findings.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_fails_the_command() {
        let pool = json!({"pool": "volumes", "mode": "image", "from": ["rome"], "to": [], "daemons": [], "leader": null,
            "images": {"down": 2}, "entries_behind": 7, "seconds_until_synced": null});
        let service = json!({"id": "rbd-mirror.a", "host": "node1", "version": "16.2.15", "instance": "4146",
            "pools": [{"name": "volumes", "leader": true}]});
        let ours = json!({"host": "node1", "means": "child", "client": "rbd-mirror.a", "wanted": "running",
            "state": "waiting", "pid": null, "ended": 3, "log": "/l", "unit": null});
        let mut document = json!({"action": "status", "site": "paris", "fsid": "f", "pools": [pool],
            "services": [service], "ours": [ours], "findings": ["no rbd-mirror serves pool volumes"]});
        let bad = report(7, &document).unwrap();
        assert_eq!(bad.exit, Exit::Failed);
        for said in ["| volumes | rome", "down 2", "4146", "waiting", "! no rbd-mirror serves"] {
            assert!(bad.text.contains(said), "{said}: {}", bad.text);
        }
        document["findings"] = json!([]);
        document["services"] = Value::Null;
        let good = report(7, &document).unwrap();
        assert!(good.exit == Exit::Done && good.text.contains("mgr 'allow r'"), "{}", good.text);
    }

    #[test]
    fn the_command_that_does_the_same_is_shown() {
        let document = json!({"action": "start", "site": "paris", "host": "node1", "dry_run": true,
            "means": "orchestrator", "command": "ceph orch apply rbd-mirror", "pid": null});
        let report = report(7, &document).unwrap();
        assert!(report.text.contains("start would be done by orchestrator on node1"), "{}", report.text);
        assert!(report.text.contains("\nceph orch apply rbd-mirror\n"), "{}", report.text);
    }
}
