//! `backup`: which backups there are, and whether their data is what was written.
//!
//! Rows are read here. To read data is the backup service's: it is given an order, and answers through the journal.

mod audit;
mod create;
mod retention;
mod schedule;

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::follow::{follow, look};
use super::output::table;
use super::{Context, Exit, Report};
use crate::backup::check::Verdict;
use crate::backup::method::Method;
use crate::backup::mirror::settle;
use crate::backup::names::{self, ServiceMetadata};
use crate::backup::orders::{self, Order};
use crate::db;
use crate::db::site::SiteRow;
use crate::error::{Code, Error, Result};
use crate::journal::Submitted;
use crate::model::Backup;

/// Actions of `backup`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Backups, of one volume or of all, with the images that they are in
    List(List),
    /// Read a backup and compare it with its checksums
    ///
    /// The backup service of the backup's host does it; nothing is written. Exit code 1 when something is wrong.
    Verify(Verify),
    /// Back up a volume, all volumes of a group as of one instant, or all volumes of a type
    ///
    /// Ordinary backups: of the volume's project and owner, counted in its quota, seen by the API. Volumes in use, too.
    Create(create::Create),
    /// Whether anything is left of backups that are gone, and whether the data of all others is there
    ///
    /// The backup service compares the pools of backups, and the snapshots of volumes, with the rows. Changes nothing
    /// without --repair. Exit code 1 when something is wrong, or could not be looked at.
    Audit(audit::Audit),
    /// How many backups of a volume stay
    #[command(subcommand, arg_required_else_help = true)]
    Retention(retention::Action),
    /// When backups are made without anybody asking
    #[command(subcommand, arg_required_else_help = true)]
    Schedule(schedule::Action),
}

/// Arguments of `list`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct List {
    /// Only those of this volume
    #[arg(long, value_name = "VOLUME")]
    pub volume: Option<Uuid>,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Verify {
    /// The backup
    #[arg(value_name = "BACKUP")]
    pub backup: Uuid,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

/// A backup for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct View {
    id: String,
    volume_id: String,
    status: String,
    size_gib: i32,
    parent_id: Option<String>,
    host: Option<String>,
    pool: Option<String>,
    base: Option<String>,
    site: Option<String>,
    driver: &'static str,
    method: Option<&'static str>,
    unverified: bool,
}

impl From<&Backup> for View {
    fn from(b: &Backup) -> View {
        let noted = ServiceMetadata::read(b.service_metadata.as_deref());
        View {
            id: b.id.clone(),
            volume_id: b.volume_id.clone(),
            status: b.status.clone(),
            size_gib: b.size,
            parent_id: b.parent_id.clone(),
            host: b.host.clone(),
            pool: b.container.clone(),
            base: noted.as_ref().map(|m| m.base.clone()),
            unverified: settle::is_unverified(b),
            site: noted.and_then(|m| m.site),
            method: match &b.service {
                Some(_) if names::is_ours(b.service.as_deref()) => {
                    Some(match Method::of(b.service.as_deref()) {
                        Method::Diff => "diff",
                        Method::Mirror => "mirror",
                    })
                }
                _ => None,
            },
            driver: match &b.service {
                None => "none yet",
                Some(_) if names::is_ours(b.service.as_deref()) => "ceph",
                Some(_) => "another",
            },
        }
    }
}

pub(super) use create::cancel;

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    context.require_tables().await?;
    match action {
        Action::List(arguments) => {
            let volume = arguments.volume.map(|id| id.to_string());
            let found = context
                .db
                .read("backups", async |conn| db::backup_work::list(conn, volume.as_deref()).await)
                .await?;
            let sites = context.db.read("sites", async |conn| db::site::list(conn).await).await?;
            list(&found, &sites)
        }
        Action::Verify(arguments) => verify(context, &arguments).await,
        Action::Create(arguments) => create::run(context, arguments).await,
        Action::Audit(arguments) => audit::run(context, arguments).await,
        Action::Retention(action) => retention::run(context, action).await,
        Action::Schedule(action) => schedule::run(context, action).await,
    }
}

fn list(found: &[Backup], sites: &[SiteRow]) -> Result<Report> {
    let mut views: Vec<View> = found.iter().map(View::from).collect();
    for site in views.iter_mut().filter_map(|view| view.site.as_mut()) {
        // A site that is known no more is shown as it is noted.
        if let Some(known) = sites.iter().find(|known| known.fsid == *site) {
            site.clone_from(&known.name);
        }
    }
    if views.is_empty() {
        return Report::new("There are no backups.\n", &views);
    }
    let rows = views.iter().map(|view| {
        [
            view.id.clone(),
            view.volume_id.clone(),
            if view.unverified { format!("{} (unverified)", view.status) } else { view.status.clone() },
            view.size_gib.to_string(),
            view.parent_id.clone().unwrap_or_default(),
            view.site.clone().unwrap_or_default(),
            view.method.unwrap_or_default().to_owned(),
            view.base.clone().unwrap_or_default(),
        ]
    });
    Report::new(table(["ID", "Volume", "Status", "GiB", "Parent", "Site", "Method", "Base"], rows), &views)
}

async fn verify(context: &Context, arguments: &Verify) -> Result<Report> {
    let id = arguments.backup.to_string();
    let backup = context.db.read("backup", async |conn| db::backup::get(conn, &id).await).await?;
    let Some(host) = backup.host.as_deref().filter(|host| !host.is_empty()) else {
        let text = format!("Backup {id} is of no host: no service has begun with it");
        return Err(Error::new(Code::InvalidBackup, text));
    };
    let new = orders::entry(host, Order::Verify { backup: id.clone() })?;
    let number = match context.journal.submit(&new).await? {
        Submitted::New(number) | Submitted::Open(number) => number,
    };
    if arguments.no_wait {
        let text = format!("Operation {number} verifies backup {id}. To watch it: {}\n", look(number));
        return Report::new(text, &serde_json::json!({"operation": number}));
    }
    eprintln!("Operation {number} verifies backup {id}. Ctrl-C stops watching, not the operation.");
    let report = follow(context, number).await?;
    if report.exit == Exit::Interrupted {
        return Ok(report);
    }
    let Some(answer) = context.journal.answer_of(number).await? else {
        let row = context.journal.find(number).await?;
        let why = row.and_then(|row| row.outcome_detail).unwrap_or_else(|| "it gave no answer".to_owned());
        return Err(Error::new(Code::Invalid, format!("Backup {id} was not verified: {why}")));
    };
    let verdict: Verdict = serde_json::from_value(answer).map_err(|e| {
        Error::new(
            Code::BadArguments,
            "The service's answer cannot be read; use the scoria-manage of the service's version",
        )
        .caused_by(e)
    })?;
    told(&id, &verdict)
}

fn told(id: &str, verdict: &Verdict) -> Result<Report> {
    let mib = |bytes: u64| bytes >> 20;
    let text = match verdict.verdict.as_str() {
        "good" => format!("Backup {id} is good: {} MiB are what was written.\n", mib(verdict.compared_bytes)),
        "wrong" => format!(
            "Backup {id} is WRONG: it does not hold what was written at the offsets {:?}. Make a full backup.\n",
            verdict.wrong_offsets
        ),
        "partly" => format!(
            "Backup {id}: {} MiB are what was written, of {} MiB nobody knows: they are of a backup without checksums.\n",
            mib(verdict.compared_bytes),
            mib(verdict.unknown_bytes)
        ),
        "unverified" => format!(
            "Backup {id} is unverified: its checksums are still being computed; ask again when they are there.\n"
        ),
        _ => format!("Backup {id} has no checksums: it was made by cinder-backup.\n"),
    };
    let exit = if verdict.verdict == "wrong" { Exit::Failed } else { Exit::Done };
    Ok(Report::new(text, verdict)?.ending(exit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_makes_the_report_a_failure() {
        let verdict = |word: &str, wrong: Vec<u64>| Verdict {
            verdict: word.to_owned(),
            compared_bytes: 4 << 20,
            unknown_bytes: 0,
            wrong_offsets: wrong,
        };
        let good = told("b1", &verdict("good", vec![])).unwrap();
        assert!(good.exit == Exit::Done && good.text.contains("4 MiB"), "{}", good.text);
        let wrong = told("b1", &verdict("wrong", vec![2 << 20])).unwrap();
        assert!(wrong.exit == Exit::Failed && wrong.text.contains("2097152"), "{}", wrong.text);
        assert_eq!(told("b1", &verdict("unknown", vec![])).unwrap().exit, Exit::Done);
    }

    #[test]
    fn backups_of_other_drivers_are_listed_as_such() {
        let other = Backup { service: Some("x.SwiftBackupDriver".into()), ..Backup::default() };
        assert_eq!(View::from(&other).driver, "another");
        let ours = Backup {
            service: Some(names::DRIVER.into()),
            service_metadata: Some("{\"base\": \"x\"}".into()),
            ..Backup::default()
        };
        assert_eq!((View::from(&ours).driver, View::from(&ours).base.as_deref()), ("ceph", Some("x")));
        assert_eq!(View::from(&ours).method, Some("diff"));
        assert!(list(&[ours], &[]).unwrap().text.contains("| x"));
        let mirrored = Backup {
            service: Some(names::MIRROR.into()),
            status: "available".into(),
            service_metadata: Some("{\"base\": \"x\", \"unverified\": true}".into()),
            ..Backup::default()
        };
        let text = list(&[mirrored], &[]).unwrap().text;
        assert!(text.contains("available (unverified)") && text.contains("mirror"), "{text}");
    }
}
