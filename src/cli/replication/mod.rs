//! `replication`: what an operator does around a failover. The failover itself is ordered through
//! cinder-api (`cinder failover-host`), as ever.

mod lag;
mod reset;
mod resync;
mod retry;
mod status;
mod test;

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::follow::{follow, look};
use super::target::Target;
use super::{Context, Report};
use crate::db::admin::under_way;
use crate::error::Result;
use crate::journal::{NewOperation, Submitted};
use crate::replication::orders::{MOVES, Order, Request};

/// Actions of `replication`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// State of each backend: service row, volumes, strays, failover under way
    Status {
        /// Only this backend
        #[arg(long, value_name = "HOST@BACKEND")]
        backend: Option<String>,
    },
    /// How far behind the copy of each volume is, as the service last saw it
    Lag {
        /// Only this backend
        #[arg(long, value_name = "HOST@BACKEND")]
        backend: Option<String>,
        /// Only copies that are broken, or older than their type allows
        #[arg(long)]
        degraded: bool,
    },
    /// DESTRUCTIVE: discard the copies of a backend's volumes on one site and sync them anew
    ///
    /// For volumes that are primary on both sites after an unplanned failover and the return of the old
    /// site. What was written on the discarded side after the split is lost. Healthy copies are left alone.
    Resync(Resync),
    /// Move volumes in failover-error to where their backend is active
    Retry(Retry),
    /// Make the service row acceptable to cinder-api again after a failover that failed
    Reset(Reset),
    /// Try a failover out on clones of the copies; disturbs nothing
    #[command(subcommand)]
    Test(test::Action),
}

/// Arguments of `resync`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Resync {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Site whose copies are discarded: 'default' or a backend_id
    #[arg(long, value_name = "SITE")]
    pub discard: String,
    /// Only this volume; repeatable. Default: all replicated volumes of the backend
    #[arg(long = "volume", value_name = "ID")]
    pub volumes: Vec<Uuid>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Only show what would be ordered
    #[arg(long, conflicts_with_all = ["yes", "no_wait"])]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `retry`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Retry {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Only this volume; repeatable. Default: all in failover-error
    #[arg(long = "volume", value_name = "ID")]
    pub volumes: Vec<Uuid>,
    /// Only show what would be ordered
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `reset`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Reset {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Only show what would be changed
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    context.require_tables().await?;
    match action {
        Action::Status { backend } => status::run(context, backend.as_deref()).await,
        Action::Lag { backend, degraded } => lag::run(context, backend.as_deref(), degraded).await,
        Action::Resync(arguments) => resync::run(context, arguments).await,
        Action::Retry(arguments) => retry::run(context, arguments).await,
        Action::Reset(arguments) => reset::run(context, arguments).await,
        Action::Test(action) => test::run(context, action).await,
    }
}

/// Fails while a failover of the backend is open: its active site may be changing.
async fn require_settled(context: &Context, target: &Target) -> Result<()> {
    match context.journal.open_methods(&target.scope, MOVES).await?.first() {
        Some(open) => Err(under_way(open.id)),
        None => Ok(()),
    }
}

/// Writes an order down and watches it to its end, unless told not to.
async fn order(context: &Context, target: &Target, order: Order, wait: bool) -> Result<Report> {
    let request = Request::new(order);
    let new = NewOperation {
        unique_id: Uuid::new_v4().simple().to_string(),
        method: request.order.method().to_owned(),
        backend_host: target.host()?.to_owned(),
        cluster: target.cluster_name().map(str::to_owned),
        request: request.to_text()?,
        ..NewOperation::default()
    };
    let (id, fresh) = match context.journal.submit(&new).await? {
        Submitted::New(id) => (id, true),
        Submitted::Open(id) => (id, false),
    };
    let said = if fresh {
        format!("Operation {id} is written down; the service of {} takes it from here.", target.name())
    } else {
        format!("The same order is open already as operation {id}; nothing was added.")
    };
    if wait {
        eprintln!("{said} Ctrl-C stops watching, not the operation.");
        return follow(context, id).await;
    }
    Report::new(
        format!("{said}\nTo watch it: {}", look(id)),
        &serde_json::json!({"operation": id, "new": fresh, "request_id": fresh.then_some(&request.request_id)}),
    )
}

/// Ids as the database writes them.
fn ids(volumes: &[Uuid]) -> Vec<String> {
    let mut ids: Vec<String> = volumes.iter().map(Uuid::to_string).collect();
    ids.sort();
    ids.dedup();
    ids
}
