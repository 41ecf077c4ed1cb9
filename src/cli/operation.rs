//! `operation`: the journal for people.

use clap::Subcommand;

use super::follow::{self, View};
use super::output::{table, time};
use super::{Context, Report, backup, drain};
use crate::error::Result;
use crate::journal::ListingFilter;

/// Actions of `operation`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Operations, newest first
    List {
        /// Only those that have not ended
        #[arg(long)]
        open: bool,
        /// Only those of HOST@BACKEND or CLUSTER@BACKEND
        #[arg(long, value_name = "BACKEND")]
        backend: Option<String>,
        /// Only this RPC method, e.g. failover_host
        #[arg(long)]
        method: Option<String>,
        /// Only those about this volume or snapshot
        #[arg(long, value_name = "ID")]
        resource: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// One operation with its steps; fails (1) when the operation or one of its volumes has failed
    Show {
        /// Number of the operation
        id: i64,
        /// List every volume, not only those that failed
        #[arg(long)]
        all: bool,
        /// Watch it to its end
        #[arg(long, conflicts_with = "all")]
        follow: bool,
    },
    /// Stop a backup or a restoration, and take away what it has made
    ///
    /// The backup is in error afterwards, and its volume what it was; a volume that was being filled is in error.
    Cancel {
        /// Number of the operation
        id: i64,
        /// Return once the order is written down
        #[arg(long)]
        no_wait: bool,
    },
    /// Have a host's services take no more requests and finish what is open, before stock takes over; fails (1)
    /// when something is left
    Drain {
        /// The host of the services [default: the configuration's]
        #[arg(long)]
        host: Option<String>,
        /// How long to wait; 0: without limit
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        timeout: u64,
        /// Let them take requests again
        #[arg(long, conflicts_with = "timeout")]
        cancel: bool,
    },
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    context.require_tables().await?;
    match action {
        Action::List { open, backend, method, resource, limit } => {
            let filter = ListingFilter {
                open_only: open,
                backend_host: backend,
                method,
                resource_id: resource,
                limit,
            };
            let found = context.journal.list(&filter).await?;
            let rows = found.iter().map(|row| {
                [
                    row.id.to_string(),
                    row.method.clone(),
                    row.cluster.clone().unwrap_or_else(|| row.backend_host.clone()),
                    row.resource_id.clone().unwrap_or_default(),
                    row.outcome.clone().unwrap_or_else(|| follow::state(row).to_owned()),
                    row.owner_host.clone(),
                    time(Some(row.accepted_at)),
                    time(row.closed_at),
                ]
            });
            let head = ["ID", "Method", "Backend", "Resource", "State", "On", "Accepted", "Ended"];
            let views: Vec<View> = found.iter().map(View::from).collect();
            Report::new(table(head, rows), &views)
        }
        Action::Drain { host, timeout, cancel } => {
            let timeout = std::time::Duration::from_secs(timeout);
            drain::run(context, drain::Asked { host, timeout, cancel }).await
        }
        Action::Cancel { id, no_wait } => backup::cancel(context, id, no_wait).await,
        Action::Show { id, follow: true, .. } => follow::follow(context, id).await,
        Action::Show { id, all, follow: false } => follow::report(context, id, all).await,
    }
}
