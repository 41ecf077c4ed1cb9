//! `backend`: what a host serves, changed while its service runs.
//!
//! What there is comes from tables and files. What changes something is an order for the service of a host, like everywhere
//! in this tool: it is written into the journal and watched.

mod list;
mod order;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(super) use list::{enabled, heartbeat};

use super::{Context, Report};
use crate::error::Result;

/// Actions of `backend`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Backends of this host's configuration, of the service rows and of all hosts
    List,
    /// One backend: where it is, what is wanted of it, how it is
    Show {
        /// Its name, or host@name
        name: String,
        /// Host that serves it, where several have one of that name
        #[arg(long)]
        host: Option<String>,
    },
    /// Make a backend with a file of its own (backends.d); ends when the scheduler can place volumes there
    Create(Create),
    /// Change options of a backend with a file of its own
    Update(Update),
    /// Look whether a backend would work, or would with other options; nothing is changed
    Validate(Validate),
    /// Let the scheduler place volumes there; a backend that does not run is started
    Enable(Named),
    /// Place no new volumes there; those that are there are served
    Disable(Disable),
    /// Serve a backend that was stopped, by what its file says now
    Start(Named),
    /// Serve a backend no more until it is started, also after a restart of the service
    Stop(Stop),
    /// Remove a backend with a file of its own, its service row and its queues
    Delete(Delete),
    /// Give a backend another name, or let it take over what another service host had
    Rename(Rename),
}

/// Who does it.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct At {
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

/// Options of a backend.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Given {
    /// Option as in a file, KEY=VALUE; repeatable, also for one that has several values
    #[arg(long = "option", short = 'o', value_name = "KEY=VALUE")]
    pub options: Vec<String>,
    /// File with options in oslo's syntax, of the section NAME or of the only one ('-': standard input)
    #[arg(long, value_name = "FILE")]
    pub from_file: Option<PathBuf>,
}

/// Arguments of `create`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Create {
    /// Its name everywhere: section, file, host@NAME
    pub name: String,
    #[command(flatten)]
    pub given: Given,
    /// Make a volume type that leads there
    #[arg(long, value_name = "NAME")]
    pub volume_type: Option<String>,
    /// The scheduler places nothing there until it is enabled
    #[arg(long)]
    pub disabled: bool,
    /// Only look, and say what is found
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    #[command(flatten)]
    pub at: At,
}

/// Arguments of `update`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Update {
    /// The backend
    pub name: String,
    #[command(flatten)]
    pub given: Given,
    /// Option to take out; repeatable
    #[arg(long, value_name = "KEY")]
    pub unset: Vec<String>,
    /// Only say what would change, and whether the backend would be restarted
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    #[command(flatten)]
    pub at: At,
}

/// Arguments of `validate`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Validate {
    /// The backend; one that is there is looked at with the options changed
    pub name: String,
    #[command(flatten)]
    pub given: Given,
    /// Host whose service looks [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
}

/// Arguments of `enable` and `start`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Named {
    /// The backend
    pub name: String,
    #[command(flatten)]
    pub at: At,
}

/// Arguments of `disable`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Disable {
    /// The backend
    pub name: String,
    /// Shown by cinder service-list
    #[arg(long)]
    pub reason: Option<String>,
    #[command(flatten)]
    pub at: At,
}

/// Arguments of `stop`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Stop {
    /// The backend
    pub name: String,
    /// Wait for operations as long as they take [default: graceful_shutdown_timeout]
    #[arg(long)]
    pub drain: bool,
    #[command(flatten)]
    pub at: At,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Delete {
    /// The backend
    pub name: String,
    /// Also while it has volumes: their rows stay as they are
    #[arg(long)]
    pub force: bool,
    /// Wait for operations as long as they take
    #[arg(long)]
    pub drain: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Only show what it has
    #[arg(long, conflicts_with_all = ["yes", "no_wait"])]
    pub dry_run: bool,
    #[command(flatten)]
    pub at: At,
}

/// Arguments of `rename`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Rename {
    /// The backend
    pub name: String,
    /// Its new name
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    pub new_name: Option<String>,
    /// Service host (HOST@NAME) that is no more: its volumes and groups become this backend's
    #[arg(long, value_name = "HOST@NAME")]
    pub from: Option<String>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Only show what would move
    #[arg(long, conflicts_with_all = ["yes", "no_wait"])]
    pub dry_run: bool,
    #[command(flatten)]
    pub at: At,
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    match action {
        Action::List => list::list(context).await,
        Action::Show { name, host } => list::show(context, &name, host.as_deref()).await,
        other => {
            context.require_tables().await?;
            order::run(context, other).await
        }
    }
}
