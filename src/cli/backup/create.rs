//! `backup create`, and how orders for the backup service are watched; `operation cancel`.

use clap::Args;
use serde_json::{Value, json};

use super::super::follow::{follow, look};
use super::super::{Context, Exit, Report};
use crate::backup::cancel;
use crate::backup::ordered;
use crate::backup::orders::{self, Order};
use crate::error::{Code, Error, Result};
use crate::journal::Submitted;

/// Arguments of `create`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Create {
    /// The volume
    #[arg(value_name = "VOLUME", required_unless_present_any = ["group", "volume_type"])]
    pub volume: Option<uuid::Uuid>,
    /// All volumes of a group instead, as of one instant
    #[arg(long, value_name = "GROUP", conflicts_with = "volume")]
    pub group: Option<uuid::Uuid>,
    /// All volumes of a type instead, one by one: its id or its name
    #[arg(long = "type", value_name = "TYPE", conflicts_with_all = ["volume", "group"])]
    pub volume_type: Option<String>,
    /// Go on from the newest backup [default: a full one]
    #[arg(long)]
    pub incremental: bool,
    /// Name of the backups
    #[arg(long)]
    pub name: Option<String>,
    /// Description of the backups
    #[arg(long)]
    pub description: Option<String>,
    /// Pool of the backups [default: the parent's, or `backup_ceph_pool`]
    #[arg(long, value_name = "POOL")]
    pub container: Option<String>,
    /// Apply retention afterwards
    #[arg(long)]
    pub retention: bool,
    #[command(flatten)]
    pub at: At,
}

/// Who carries an order out.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct At {
    /// Host of the backup service that does it [default: the configuration's]
    #[arg(long)]
    pub host: Option<String>,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

pub(super) async fn run(context: &Context, arguments: Create) -> Result<Report> {
    let Create { volume, group, volume_type, incremental, name, description, container, retention, at } =
        arguments;
    let create = ordered::Create {
        volume: volume.map(|id| id.to_string()),
        group: group.map(|id| id.to_string()),
        volume_type,
        incremental,
        name,
        description,
        container,
        retention,
        schedule: None,
    };
    create.check()?;
    send(context, Order::Create(Box::new(create)), at, made).await
}

/// Writes an order down and watches it to its end, unless told not to; `told` puts the answer into words.
pub(super) async fn send(
    context: &Context,
    order: Order,
    at: At,
    told: fn(&Value) -> String,
) -> Result<Report> {
    let host = at.host.as_deref().unwrap_or(&context.config.host);
    let (number, said) = match context.journal.submit(&orders::entry(host, order)?).await? {
        Submitted::New(number) => (
            number,
            format!("Operation {number} is written down; the backup service of {host} takes it from here."),
        ),
        Submitted::Open(number) => {
            (number, format!("The same order is open already as operation {number}; nothing was added."))
        }
    };
    watch(context, number, &said, at.no_wait, told).await
}

/// Watches an order that is written down.
pub(super) async fn watch(
    context: &Context,
    number: i64,
    said: &str,
    no_wait: bool,
    told: fn(&Value) -> String,
) -> Result<Report> {
    if no_wait {
        return Report::new(format!("{said}\nTo watch it: {}", look(number)), &json!({"operation": number}));
    }
    eprintln!("{said} Ctrl-C stops watching, not the operation.");
    let report = follow(context, number).await?;
    match context.journal.answer_of(number).await? {
        Some(document) if report.exit == Exit::Done => {
            Report::new(told(&document), &json!({"operation": number, "result": document}))
        }
        _ => Ok(report),
    }
}

/// Which backups were made, in words.
pub(super) fn made(document: &Value) -> String {
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |key: &str| document.get(key).and_then(Value::as_array).into_iter().flatten();
    let mut lines: Vec<String> = list("backups")
        .map(|one| format!("Backup {} of volume {} is made.", text(one, "backup"), text(one, "volume")))
        .collect();
    match document.get("consistent").and_then(Value::as_bool) {
        Some(true) => lines.push("All show one instant.".to_owned()),
        Some(false) => lines.push(format!("They do NOT show one instant: {}", text(document, "why_not"))),
        None => {}
    }
    if let Some(count) = document.get("volumes").and_then(Value::as_u64) {
        lines.push(format!("{count} volumes of type {} are backed up.", text(document, "volume_type")));
    }
    lines.extend(list("removed").map(|one| format!("Backup {} was let go.", text(one, "backup"))));
    lines.join("\n")
}

/// `operation cancel`: has the service that has an operation stop it.
pub(in crate::cli) async fn cancel(context: &Context, number: i64, no_wait: bool) -> Result<Report> {
    let unknown = || {
        Error::new(
            Code::InvalidInput,
            format!("There is no operation {number}, or it was purged (scoria-manage operation list --open)"),
        )
    };
    let row = context.journal.find(number).await?.ok_or_else(unknown)?;
    cancel::check(&row)?;
    let host = row.backend_host.strip_suffix(orders::SERVICE).unwrap_or(&row.backend_host).to_owned();
    let at = At { host: Some(host), no_wait };
    send(context, Order::Cancel { operation: number }, at, cancelled).await
}

fn cancelled(document: &Value) -> String {
    let number = document.get("operation").and_then(Value::as_i64).unwrap_or_default();
    match document.get("cancelled").and_then(Value::as_bool) {
        Some(true) => format!("Operation {number} was cancelled, and what it had made is taken away."),
        _ => format!("Operation {number} had succeeded before it could be cancelled."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_an_order_is_told_in_words() {
        let one = json!({"backups": [{"backup": "b1", "volume": "v1"}], "consistent": null, "removed": []});
        assert_eq!(made(&one), "Backup b1 of volume v1 is made.");
        let group = json!({"backups": [], "consistent": false, "why_not": "no lock",
            "removed": [{"backup": "b0"}]});
        assert_eq!(made(&group), "They do NOT show one instant: no lock\nBackup b0 was let go.");
        assert_eq!(
            made(&json!({"volume_type": "gold", "volumes": 7})),
            "7 volumes of type gold are backed up."
        );
        assert!(cancelled(&json!({"operation": 3, "cancelled": false})).contains("had succeeded"));
        assert!(cancelled(&json!({"operation": 3, "cancelled": true})).contains("was cancelled"));
    }
}
