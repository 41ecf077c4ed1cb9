//! `backup schedule`: when backups are made without anybody asking.

use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use super::super::output::{facts, table};
use super::super::{Context, Report};
use super::create::{At, made, watch};
use crate::backup::schedule::{self, Given, Of, View};
use crate::error::{Code, Error, Result};

/// Actions of `schedule`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Make a schedule for a volume, for all volumes of a group as of one instant, or for all volumes of a type
    Create(Create),
    /// All schedules, by what is due first
    List,
    /// One schedule: when it runs next, and how the last run ended
    Show(Which),
    /// Change a schedule; when it is due is reckoned anew
    Update(Update),
    /// Remove a schedule; its backups stay
    Delete(Which),
    /// Run it no more, until it is resumed
    Pause(Which),
    /// Run it again; what was missed is not made up for
    Resume(Which),
    /// Run it now, besides
    Run(Run),
}

/// A schedule.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Which {
    /// Id or name of the schedule
    #[arg(value_name = "SCHEDULE")]
    pub id: String,
}

/// Arguments of `create`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Create {
    /// The volume
    #[arg(long, value_name = "VOLUME", required_unless_present_any = ["group", "volume_type"])]
    pub volume: Option<Uuid>,
    /// The group
    #[arg(long, value_name = "GROUP", conflicts_with = "volume")]
    pub group: Option<Uuid>,
    /// The volume type, by its id or its name: all volumes that it has when the schedule runs
    #[arg(long = "type", value_name = "TYPE", conflicts_with_all = ["volume", "group"])]
    pub volume_type: Option<String>,
    /// Minute, hour, day of month, month, day of week: "30 2 * * *"
    #[arg(long)]
    pub cron: String,
    #[command(flatten)]
    pub more: More,
}

/// Arguments of `update`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Update {
    /// Id or name of the schedule
    #[arg(value_name = "SCHEDULE")]
    pub id: String,
    /// Minute, hour, day of month, month, day of week: "30 2 * * *"
    #[arg(long)]
    pub cron: Option<String>,
    #[command(flatten)]
    pub more: More,
}

/// What both have.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct More {
    /// Name of the schedule, and of its backups
    #[arg(long)]
    pub name: Option<String>,
    /// What the hours mean, as the IANA database names it [default: UTC]
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
    /// Each Nth backup is a full one; 0: only the first [default: 1]
    #[arg(long, value_name = "N")]
    pub full_every: Option<i64>,
    /// Whether retention is applied after each run [default: false]
    #[arg(long, value_name = "BOOL")]
    pub retention: Option<bool>,
    /// Pool of the backups [default: the parent's, or `backup_ceph_pool`]
    #[arg(long, value_name = "POOL")]
    pub container: Option<String>,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Run {
    /// Id or name of the schedule
    #[arg(value_name = "SCHEDULE")]
    pub id: String,
    #[command(flatten)]
    pub at: At,
}

fn given(cron: Option<String>, more: More) -> Given {
    let More { name, time_zone, full_every, retention, container } = more;
    Given { name, cron, time_zone, full_every, retention, container }
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    let db = &context.db;
    let paused =
        async |id: String, paused| one(&schedule::update(db, &id, &Given::default(), Some(paused)).await?);
    match action {
        Action::Create(Create { volume, group, volume_type, cron, more }) => {
            let (volume, group) = (volume.map(|id| id.to_string()), group.map(|id| id.to_string()));
            let given = given(Some(cron), more);
            one(&schedule::create(db, &Of { volume, group, volume_type }, &given).await?)
        }
        Action::List => list(&schedule::list(db).await?),
        Action::Show(Which { id }) => one(&schedule::show(db, &id).await?),
        Action::Update(Update { id, cron, more }) => {
            let given = given(cron, more);
            if given == Given::default() {
                return Err(Error::new(Code::InvalidInput, "Name what changes: --cron, --time-zone, …"));
            }
            one(&schedule::update(db, &id, &given, None).await?)
        }
        Action::Delete(Which { id }) => {
            let gone = schedule::delete(db, &id).await?;
            Report::new(format!("Schedule {gone} is gone; its backups stay.\n"), &json!({"deleted": gone}))
        }
        Action::Pause(Which { id }) => paused(id, true).await,
        Action::Resume(Which { id }) => paused(id, false).await,
        Action::Run(Run { id, at }) => {
            let host = at.host.as_deref().unwrap_or(&context.config.host);
            let number = schedule::run_now(db, host, &id).await?;
            let said = format!(
                "Operation {number} is written down; the backup service of {host} takes it from here."
            );
            watch(context, number, &said, at.no_wait, made).await
        }
    }
}

fn what(view: &View) -> String {
    match (&view.volume_id, &view.group_id, &view.volume_type_id) {
        (Some(id), ..) => format!("volume {id}"),
        (None, Some(id), _) => format!("group {id}"),
        (None, None, Some(id)) => format!("volumes of type {id}"),
        (None, None, None) => String::new(),
    }
}

fn next(view: &View) -> String {
    match (&view.next_run, view.paused) {
        (_, true) => "paused".to_owned(),
        (Some(at), false) => at.clone(),
        (None, false) => "never".to_owned(),
    }
}

fn kind(view: &View) -> String {
    match view.full_every {
        0 => "incremental after the first".to_owned(),
        1 => "full".to_owned(),
        n => format!("full each {n}"),
    }
}

fn one(view: &View) -> Result<Report> {
    let rows = [
        ("id", Some(view.id.clone())),
        ("name", view.name.clone()),
        ("of", Some(what(view))),
        ("cron", Some(view.cron.clone())),
        ("time zone", Some(view.time_zone.clone())),
        ("backups", Some(kind(view))),
        ("retention", Some(view.retention.to_string())),
        ("container", view.container.clone()),
        ("next run (UTC)", Some(next(view))),
        ("last run (UTC)", view.last_run.clone()),
        ("last operation", view.last_operation.map(|number| number.to_string())),
        ("last outcome", view.last_outcome.clone()),
    ];
    Report::new(facts(rows), view)
}

fn list(views: &[View]) -> Result<Report> {
    if views.is_empty() {
        return Report::new("There are no schedules of backups.\n", &views);
    }
    let rows = views.iter().map(|view| {
        [
            view.id.clone(),
            view.name.clone().unwrap_or_default(),
            what(view),
            format!("{} ({})", view.cron, view.time_zone),
            kind(view),
            next(view),
            view.last_outcome.clone().unwrap_or_default(),
        ]
    });
    let head = ["ID", "Name", "Of", "Cron", "Backups", "Next run (UTC)", "Last outcome"];
    Report::new(table(head, rows), &views)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_says_when_it_runs_next() {
        let view = View {
            id: "s1".into(),
            name: Some("nightly".into()),
            volume_id: None,
            group_id: Some("g1".into()),
            volume_type_id: None,
            cron: "30 2 * * *".into(),
            time_zone: "Europe/Berlin".into(),
            full_every: 7,
            retention: true,
            container: None,
            paused: false,
            next_run: Some("2026-01-02T01:30:00Z".into()),
            last_run: None,
            last_operation: None,
            last_outcome: None,
        };
        let text = one(&view).unwrap().text;
        for said in ["group g1", "full each 7", "2026-01-02T01:30:00Z"] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let of_type = View { group_id: None, volume_type_id: Some("t1".into()), ..view.clone() };
        assert!(one(&of_type).unwrap().text.contains("volumes of type t1"));
        let paused = View { paused: true, next_run: None, ..view };
        assert!(list(&[paused]).unwrap().text.contains("paused"));
        assert!(list(&[]).unwrap().text.contains("no schedules"));
    }
}
