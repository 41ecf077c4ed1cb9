//! `scoria-manage`: what an operator does by hand, in the manner of `cinder-manage`.
//!
//! It reads the service's own configuration and talks to MySQL, never to Ceph: on the worst day it must
//! answer at once, whatever state a cluster is in. What needs Ceph is written into the journal as an
//! order (`replication::orders`), which the service of the backend takes up; this program then only
//! watches, and may be interrupted or killed without consequence.
//!
//! One file per category. Each command returns a [`Report`]: the text for people, the same as JSON for
//! scripts, and the exit code. Previews, questions and progress go to standard error, so that standard
//! output holds the report alone.

mod advice;
mod backend;
mod backup;
mod bar;
mod cluster;
mod config;
mod confirm;
mod db;
mod drain;
mod follow;
mod label;
mod operation;
mod output;
mod rbd;
mod replicate;
mod replication;
mod schedule;
mod service;
mod site;
mod target;
mod trash;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use crate::config::Config;
use crate::db::{Db, migration};
use crate::error::{Code, Error, Result};
use crate::journal::{Journal, JournalOptions, Owner};

/// Administers Scoria: replication, sites, operations, services, the database.
#[derive(Debug, Parser)]
#[command(
    name = "scoria-manage",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    subcommand_value_name = "CATEGORY",
    subcommand_help_heading = "Categories",
    after_help = "Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 130 interrupted (an order goes on)."
)]
pub struct Arguments {
    /// Configuration file of the service; repeatable, later ones override [default: /etc/cinder/cinder.conf]
    #[arg(long = "config-file", value_name = "FILE", global = true)]
    pub config_files: Vec<PathBuf>,
    /// Directory of *.conf files, read after the files; repeatable
    #[arg(long = "config-dir", value_name = "DIR", global = true)]
    pub config_dirs: Vec<PathBuf>,
    /// Form of the report
    #[arg(long, value_enum, default_value_t, global = true)]
    pub format: Format,
    /// What to do.
    #[command(subcommand)]
    pub category: Category,
}

/// Form of a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for people
    #[default]
    Table,
    /// One JSON document for scripts
    Json,
}

/// Categories, as `cinder-manage` calls them.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Category {
    /// Failover's state, and the orders that repair what it could not move
    #[command(subcommand, arg_required_else_help = true)]
    Replication(replication::Action),
    /// Images of deleted volumes that can be had back (enable_deferred_deletion)
    #[command(subcommand, arg_required_else_help = true)]
    Trash(trash::Action),
    /// Backups, and whether their data is what was written
    #[command(subcommand, arg_required_else_help = true)]
    Backup(backup::Action),
    /// The journal: what the services are doing and have done
    #[command(subcommand, arg_required_else_help = true)]
    Operation(operation::Action),
    /// Backends: what hosts serve, made, changed and removed while they serve
    #[command(subcommand, arg_required_else_help = true)]
    Backend(backend::Action),
    /// Ceph clusters, and how each host reaches them
    #[command(subcommand, arg_required_else_help = true)]
    Site(site::Action),
    /// Images themselves: whose one is, which are half gone
    #[command(subcommand, arg_required_else_help = true)]
    Rbd(rbd::Action),
    /// Give images that Cinder does not know a copy on the other site
    Replicate(replicate::Replicate),
    /// When mirror snapshots are made, as set for all pools, a pool or an image
    #[command(subcommand, arg_required_else_help = true)]
    Schedule(schedule::Action),
    /// Rows of Cinder's services
    #[command(subcommand, arg_required_else_help = true)]
    Service(service::Action),
    /// Rows of Cinder's clusters; labels of backends
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(cluster::Action),
    /// Scoria's tables in Cinder's database
    #[command(subcommand, arg_required_else_help = true)]
    Db(db::Action),
    /// The configuration
    #[command(subcommand, arg_required_else_help = true)]
    Config(config::Action),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As asked.
    Done,
    /// It failed, was refused, or the report tells of failures.
    Failed,
    /// Interrupted while watching an order, which goes on.
    Interrupted,
}

impl Exit {
    /// The exit code of the process. Wrong usage is 2 (clap's, and `cinder-manage`'s).
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Interrupted => 130,
        }
    }
}

/// What a command has to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// For people.
    pub text: String,
    /// The same for scripts.
    pub json: Value,
    /// How it ended.
    pub exit: Exit,
}

impl Report {
    /// A report of success.
    fn new(text: impl Into<String>, json: &impl Serialize) -> Result<Report> {
        let json = serde_json::to_value(json)
            .map_err(|e| Error::internal("A report cannot be written as JSON").caused_by(e))?;
        Ok(Report { text: text.into(), json, exit: Exit::Done })
    }

    /// The same with another end.
    fn ending(mut self, exit: Exit) -> Report {
        self.exit = exit;
        self
    }

    /// What goes to standard output.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Table => {
                let text = self.text.trim_end();
                if text.is_empty() { String::new() } else { format!("{text}\n") }
            }
            Format::Json => format!("{:#}\n", self.json),
        }
    }
}

/// What commands work with.
struct Context {
    config: Config,
    db: Db,
    journal: Journal,
}

impl Context {
    /// Reads the configuration and reaches the database once: a tool says that it is away instead of
    /// waiting for it.
    async fn open(files: &[PathBuf], dirs: &[PathBuf]) -> Result<Context> {
        let (config, _) = Config::load(files, dirs, std::env::vars())?;
        let db = Db::connect(&config.database);
        db.check().await?;
        // It submits and reads; it never owns an operation.
        let journal =
            Journal::new(db.clone(), Owner::new("scoria-manage"), JournalOptions::from(&config.scoria));
        Ok(Context { config, db, journal })
    }

    /// Fails unless Scoria's tables are those that this program knows.
    async fn require_tables(&self) -> Result<()> {
        let found = self.db.read("schema version", async |conn| migration::version(conn).await).await?;
        check_version(found, migration::newest())
    }
}

fn check_version(found: i32, known: i32) -> Result<()> {
    let text = match found.cmp(&known) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less if found == 0 => {
            "Scoria's tables are not in this database; start scoria-volume once, or run: scoria-manage db migrate"
                .to_owned()
        }
        std::cmp::Ordering::Less => {
            format!("Scoria's tables have version {found}, this program needs {known}; run: scoria-manage db migrate")
        }
        std::cmp::Ordering::Greater => format!(
            "Scoria's tables have version {found}, this program knows up to {known}; use the scoria-manage of the service's version"
        ),
    };
    Err(Error::new(Code::Config, text))
}

/// The file that the service reads when none is named.
fn default_file(root: &Path) -> Option<PathBuf> {
    let file = root.join("etc/cinder/cinder.conf");
    file.is_file().then_some(file)
}

/// Runs one command.
///
/// # Errors
/// What was refused or failed, in words for the operator.
pub async fn run(arguments: Arguments) -> Result<Report> {
    let Arguments { config_files: mut files, config_dirs: dirs, category, .. } = arguments;
    if files.is_empty() {
        files.extend(default_file(Path::new("/")));
    }
    if files.is_empty() && dirs.is_empty() {
        return Err(Error::new(
            Code::Config,
            "There is no /etc/cinder/cinder.conf; name the service's configuration with --config-file",
        ));
    }
    if let Category::Config(action) = category {
        return config::run(&action, &files, &dirs);
    }
    let context = Context::open(&files, &dirs).await?;
    match category {
        Category::Replication(action) => replication::run(&context, action).await,
        Category::Trash(action) => trash::run(&context, action).await,
        Category::Backup(action) => backup::run(&context, action).await,
        Category::Operation(action) => operation::run(&context, action).await,
        Category::Backend(action) => backend::run(&context, action).await,
        Category::Site(action) => site::run(&context, action).await,
        Category::Rbd(action) => rbd::run(&context, action).await,
        Category::Replicate(arguments) => replicate::run(&context, arguments).await,
        Category::Schedule(action) => schedule::run(&context, action).await,
        Category::Service(action) => service::run(&context, action).await,
        Category::Cluster(action) => cluster::run(&context, action).await,
        Category::Db(action) => db::run(&context, &action).await,
        Category::Config(action) => config::run(&action, &files, &dirs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_configuration_may_be_named_before_or_after_the_action() {
        for line in [
            &["scoria-manage", "--config-file", "a", "--config-file", "b", "db", "version"][..],
            &["scoria-manage", "db", "version", "--config-file", "a", "--config-file", "b"],
        ] {
            let parsed = Arguments::try_parse_from(line).unwrap();
            assert_eq!(parsed.config_files, [PathBuf::from("a"), PathBuf::from("b")]);
            assert_eq!(parsed.format, Format::Table);
        }
    }

    #[test]
    fn only_the_known_schema_is_touched() {
        assert!(check_version(2, 2).is_ok());
        assert!(check_version(0, 2).unwrap_err().user().contains("db migrate"));
        assert!(check_version(1, 2).unwrap_err().user().contains("db migrate"));
        assert!(check_version(3, 2).unwrap_err().user().contains("knows up to 2"));
    }

    #[test]
    fn the_packaged_configuration_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(default_file(root.path()), None);
        std::fs::create_dir_all(root.path().join("etc/cinder")).unwrap();
        let file = root.path().join("etc/cinder/cinder.conf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(default_file(root.path()), Some(file));
    }

    #[test]
    fn a_report_is_text_or_json() {
        let report = Report::new("done\n\n", &serde_json::json!({"a": 1})).unwrap().ending(Exit::Failed);
        assert_eq!(report.render(Format::Table), "done\n");
        assert_eq!(report.render(Format::Json), "{\n  \"a\": 1\n}\n");
        assert_eq!(report.exit.code(), 1);
        assert_eq!(Report { text: String::new(), ..report }.render(Format::Table), "");
    }
}
