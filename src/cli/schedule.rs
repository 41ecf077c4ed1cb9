//! `schedule`: when mirror snapshots are made, by what an operator sets for all pools, a pool or an image.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::table;
use super::{Context, Report, site};
use crate::error::Result;
use crate::rbd::types::Level;
use crate::site::Order;
use crate::site::schedule::{ScheduleAct, ScheduleOrder};

/// Actions of `schedule`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Add a schedule: 5m, 2h, 1d, or with a start, 1h@00:30
    Add {
        #[command(flatten)]
        at: At,
        /// The schedule
        schedule: String,
    },
    /// The schedules of a level
    List {
        #[command(flatten)]
        at: At,
        /// Those below it, too
        #[arg(long, short = 'R')]
        recursive: bool,
    },
    /// Remove a schedule, or all that the level itself has
    Remove {
        #[command(flatten)]
        at: At,
        /// The schedule [default: all]
        schedule: Option<String>,
    },
    /// When the next mirror snapshots are due
    Status {
        #[command(flatten)]
        at: At,
    },
}

/// Which level of which site.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct At {
    /// The site
    pub site: String,
    /// Pool [default: all pools]
    #[arg(long, short)]
    pub pool: Option<String>,
    /// Image of the pool [default: all images]
    #[arg(long, requires = "pool")]
    pub image: Option<String>,
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    context.require_tables().await?;
    let (act, at, schedule, recursive) = match action {
        Action::Add { at, schedule } => (ScheduleAct::Add, at, Some(schedule), false),
        Action::List { at, recursive } => (ScheduleAct::List, at, None, recursive),
        Action::Remove { at, schedule } => (ScheduleAct::Remove, at, schedule, false),
        Action::Status { at } => (ScheduleAct::Status, at, None, true),
    };
    let At { site: name, pool, image, host } = at;
    let order = ScheduleOrder { name, act, level: Level { pool, image }, schedule, recursive };
    order.check()?;
    site::order(context, host.as_deref(), Order::Schedule(order), true).await
}

/// What came of an order.
pub(super) fn report(operation: i64, document: &Value) -> Result<Report> {
    let list = |key: &str| document.get(key).and_then(Value::as_array);
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut said = match list("due") {
        Some(due) => {
            let rows = due.iter().map(|d| [text(d, "at"), text(d, "image")]);
            format!("{}\n", table(["Next (UTC)", "Image"], rows))
        }
        None => String::new(),
    };
    let rows = list("levels").into_iter().flatten().map(|l| {
        let schedules = l.get("schedules").and_then(Value::as_array);
        let schedules: Vec<&str> = schedules.into_iter().flatten().filter_map(Value::as_str).collect();
        [text(l, "level"), text(l, "pool"), text(l, "image"), schedules.join(", ")]
    });
    let rows: Vec<[String; 4]> = rows.collect();
    said.push_str(&match rows.is_empty() {
        true => format!(
            "No schedule at the level of {}.\n",
            match text(document, "level").as_str() {
                "global" => "all pools",
                "pool" => "the pool",
                _ => "the image",
            }
        ),
        false => format!("{}\n", table(["Level", "Pool", "Image", "Schedules"], rows)),
    });
    Report::new(said, &json!({"operation": operation, "result": document}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_what_is_due_are_told() {
        let level =
            json!({"level": "pool", "pool": "volumes", "image": null, "schedules": ["5m", "1h@00:30"]});
        let due = json!({"at": "2026-01-01 00:05:00", "image": "volumes/v1"});
        let told = report(7, &json!({"level": "global", "levels": [level], "due": [due]})).unwrap();
        for said in ["| pool  | volumes |", "5m, 1h@00:30", "| 2026-01-01 00:05:00 | volumes/v1 |"] {
            assert!(told.text.contains(said), "{said}: {}", told.text);
        }
        let none = report(7, &json!({"level": "global", "levels": [], "due": null})).unwrap();
        assert_eq!(none.text, "No schedule at the level of all pools.\n");
    }
}
