//! `backup retention`: how many backups of a volume stay.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::output::{table, time};
use super::super::{Context, Report, confirm};
use super::create::{At, send};
use crate::backup::orders::Order;
use crate::backup::retention::many::{self, Looked};
use crate::backup::retention::rule::Fate;
use crate::backup::retention::{self, Policy, Preview, Reach, Source};
use crate::db;
use crate::error::Result;

/// Actions of `retention`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// What counts for a volume: its own rule, or its type's (extra specs backup:keep_last, backup:keep_daily,
    /// backup:keep_weekly, backup:keep_monthly, backup:time_zone)
    Show(Which),
    /// Set a rule for a volume, which counts instead of its type's
    Set(Set),
    /// Remove a volume's own rule: its type's counts again
    Clear(Which),
    /// What retention would do with each backup of a volume, or of many, now, and why; changes nothing
    Preview(Look),
    /// Delete the backups of a volume, or of many, that nothing keeps
    Apply(Apply),
}

/// A volume.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Which {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: Uuid,
}

/// Arguments of `set`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Set {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: Uuid,
    /// Keep the newest N
    #[arg(long, value_name = "N")]
    pub keep_last: Option<i64>,
    /// Keep the newest one of each of N days
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<i64>,
    /// Of N weeks, which begin on Monday
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<i64>,
    /// Of N months
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<i64>,
    /// Where a day begins, as the IANA database names it [default: UTC]
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
}

/// Whose backups.
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)]
pub struct Whose {
    /// The volume
    #[arg(value_name = "VOLUME", required_unless_present_any = ["volume_type", "all"])]
    pub volume: Option<Uuid>,
    /// All volumes of a type instead, by its id or its name
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "volume")]
    pub volume_type: Option<String>,
    /// All volumes that have backups
    #[arg(long, conflicts_with_all = ["volume", "volume_type"])]
    pub all: bool,
}

/// What it reaches.
#[derive(Debug, Clone, Copy, Args)]
#[allow(missing_docs)]
pub struct Extent {
    /// Also those in error
    #[arg(long)]
    pub failed: bool,
    /// Also those of volumes that are deleted, by the rules of the types that they had; else they all stay, unless a rule
    /// was set for the volume itself
    #[arg(long)]
    pub deleted_volumes: bool,
}

impl From<Extent> for Reach {
    fn from(Extent { failed, deleted_volumes }: Extent) -> Reach {
        Reach { failed, deleted_volumes }
    }
}

/// Arguments of `preview`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Look {
    #[command(flatten)]
    pub whose: Whose,
    #[command(flatten)]
    pub extent: Extent,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Apply {
    #[command(flatten)]
    pub whose: Whose,
    #[command(flatten)]
    pub extent: Extent,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub at: At,
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    match action {
        Action::Show(Which { volume }) => show(context, &volume.to_string()).await,
        Action::Set(set) => {
            let volume = set.volume.to_string();
            let keep = [set.keep_last, set.keep_daily, set.keep_weekly, set.keep_monthly];
            let row = retention::row(&volume, keep, set.time_zone.as_deref())?;
            context
                .db
                .write("retention of a volume", async |conn| {
                    db::volume::get(conn, &volume).await?;
                    db::backup_retention::set(conn, &row).await
                })
                .await?;
            show(context, &volume).await
        }
        Action::Clear(Which { volume }) => {
            let volume = volume.to_string();
            context
                .db
                .write("retention of a volume", async |conn| db::backup_retention::clear(conn, &volume).await)
                .await?;
            show(context, &volume).await
        }
        Action::Preview(Look { whose, extent }) => preview(context, &whose, extent.into()).await,
        Action::Apply(Apply { whose, extent, yes, at }) => {
            if !yes {
                eprintln!("{}", preview(context, &whose, extent.into()).await?.text.trim_end());
                let (what, word) = match (&whose.volume, &whose.volume_type) {
                    (Some(volume), _) => ("the id of the volume", volume.to_string()),
                    (None, Some(kind)) => ("the volume type", kind.clone()),
                    (None, None) => ("the word", "all".to_owned()),
                };
                let question = format!("Type {what} ({word}) to delete what is to be removed:");
                confirm::ask(question, &word, yes).await?;
            }
            let Extent { failed, deleted_volumes } = extent;
            let order = match whose.volume {
                Some(volume) => Order::ApplyRetention { volume: volume.to_string(), failed, deleted_volumes },
                None => Order::ApplyAllRetention { volume_type: whose.volume_type, failed, deleted_volumes },
            };
            send(context, order, at, applied).await
        }
    }
}

/// What would be done with one volume's backups, or with those of many, of whom those that lose none are counted only. One
/// whose rule means nothing is named, and keeps the others from nothing.
async fn preview(context: &Context, whose: &Whose, reach: Reach) -> Result<Report> {
    if let Some(volume) = &whose.volume {
        let volume = volume.to_string();
        let read = async |conn: &mut db::Conn| retention::preview(conn, &volume, reach).await;
        return told(&context.db.read("retention of a volume", read).await?);
    }
    let kind = match &whose.volume_type {
        Some(name) => {
            let read = async |conn: &mut db::Conn| db::volume_type::resolve(conn, name).await;
            Some(context.db.read("type of volumes", read).await?.id)
        }
        None => None,
    };
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let next = async |conn: &mut db::Conn| many::next(conn, kind.as_deref(), &after, reach).await;
        let page = context.db.read("volumes with backups", next).await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.volume_id);
        all.extend(page);
    }
    told_of_all(&all)
}

fn told_of_all(all: &[Looked]) -> Result<Report> {
    let (mut text, mut documents) = (String::new(), Vec::with_capacity(all.len()));
    let (mut losing, mut sum, mut wrong) = (0, 0, 0);
    for Looked { volume_id, found, .. } in all {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                wrong += 1;
                text.push_str(&format!("Volume {volume_id}: {}\n", error.user()));
                documents.push(json!({"volume_id": volume_id, "error": error.user()}));
                continue;
            }
        };
        let report = told(found)?;
        if found.going() > 0 {
            (losing, sum) = (losing + 1, sum + found.going());
            text.push_str(&report.text);
        }
        documents.push(report.json);
    }
    text.push_str(&format!("{} volumes have backups; of {losing} of them {sum} would go.\n", all.len()));
    if wrong > 0 {
        text.push_str(&format!("Of {wrong} the rule means nothing, and nothing would go.\n"));
    }
    Report::new(text, &documents)
}

async fn show(context: &Context, volume: &str) -> Result<Report> {
    let found = context
        .db
        .read("retention of a volume", async |conn| retention::policy(conn, volume, false).await)
        .await?;
    Report::new(
        format!("Volume {volume}: {}\n", rule(found.as_ref())),
        &json!({"volume_id": volume, "policy": found}),
    )
}

/// A rule in words.
fn rule(policy: Option<&Policy>) -> String {
    let Some(Policy { keep, time_zone, source }) = policy else {
        return "no rule, all backups are kept".to_owned();
    };
    let counts =
        [("last", keep.last), ("daily", keep.daily), ("weekly", keep.weekly), ("monthly", keep.monthly)];
    let said: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let of = match source {
        Source::Volume => "set for the volume".to_owned(),
        Source::Type(name) => format!("by its type {name}"),
    };
    format!("keep {} ({of}; days of {time_zone})", said.join(", "))
}

fn told(found: &Preview) -> Result<Report> {
    let rows = found.backups.iter().map(|v| {
        let fate = match v.fate {
            Fate::Kept => "keep",
            Fate::Removed => "REMOVE",
            Fate::Spared => "not now",
            Fate::Untouched => "leave",
        };
        let why = if v.why.is_empty() { "nothing keeps it".to_owned() } else { v.why.join(", ") };
        [v.id.clone(), time(Some(v.at)), v.status.clone(), fate.to_owned(), why]
    });
    let mut text = format!("Volume {}: {}\n", found.volume_id, rule(found.policy.as_ref()));
    if !found.backups.is_empty() {
        text.push_str(&table(["Backup", "Data of (UTC)", "Status", "Retention", "Why"], rows));
        text.push('\n');
    }
    Report::new(text, found)
}

fn applied(document: &Value) -> String {
    let removed = document.get("removed").and_then(Value::as_array);
    let ids = removed.into_iter().flatten().filter_map(|one| one.get("backup").and_then(Value::as_str));
    let mut lines: Vec<String> = ids.map(|id| format!("Backup {id} is deleted.")).collect();
    let kept = document.get("kept").and_then(Value::as_u64).unwrap_or_default();
    lines.push(format!("{} deleted, {kept} stay.", lines.len()));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::retention::rule::{Keep, Verdict};
    use crate::error::{Code, Error};

    #[test]
    fn what_would_go_is_told_with_the_reason() {
        let at = chrono::NaiveDate::from_ymd_opt(2026, 1, 2).unwrap().and_hms_opt(3, 4, 5).unwrap();
        let verdict = |id: &str, fate, why: &[&str]| Verdict {
            id: id.into(),
            at,
            status: "available".into(),
            fate,
            why: why.iter().map(|w| (*w).to_owned()).collect(),
        };
        let policy = Policy {
            keep: Keep { last: 1, weekly: 4, ..Keep::default() },
            time_zone: "Europe/Berlin".into(),
            source: Source::Type("gold".into()),
        };
        let found = Preview {
            volume_id: "v".into(),
            policy: Some(policy),
            backups: vec![verdict("b2", Fate::Kept, &["last 1"]), verdict("b1", Fate::Removed, &[])],
        };
        let report = told(&found).unwrap();
        for said in
            ["keep last 1, weekly 4 (by its type gold; days of Europe/Berlin)", "REMOVE", "nothing keeps it"]
        {
            assert!(report.text.contains(said), "{said}: {}", report.text);
        }
        assert_eq!(report.json["policy"]["last"], 1);
        assert_eq!(report.json["backups"][1]["fate"], "removed");
        assert_eq!(
            applied(&json!({"removed": [{"backup": "b1"}], "kept": 1})),
            "Backup b1 is deleted.\n1 deleted, 1 stay."
        );
        assert!(rule(None).contains("all backups are kept"));
        // Of many, who loses nothing is counted only, and whose rule means nothing is named.
        let look = |id: &str, found| Looked { volume_id: id.into(), count: 2, found };
        let wrong = Error::new(Code::InvalidInput, "Extra spec backup:keep_last is \"few\"");
        let nothing = Preview { volume_id: "w".into(), policy: None, backups: Vec::new() };
        let report =
            told_of_all(&[look("v", Ok(found)), look("w", Ok(nothing)), look("x", Err(wrong))]).unwrap();
        assert!(report.text.contains("3 volumes have backups; of 1 of them 1 would go"), "{}", report.text);
        assert!(report.text.contains("Volume x: Extra spec") && !report.text.contains("Volume w"));
        assert_eq!((&report.json[0]["volume_id"], report.json[2]["error"].is_string()), (&json!("v"), true));
    }
}
