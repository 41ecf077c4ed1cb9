//! `replication`: what an operator does in and around a failover. That of a whole backend is ordered through
//! cinder-api (`cinder failover-host`), as ever, or here; anything smaller only here.

mod adopt;
mod affected;
pub(super) mod ask;
mod audit;
mod failover;
mod fence;
mod lag;
mod plan;
mod preflight;
mod preview;
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
use crate::error::{Code, Error, Result};
use crate::journal::{NewOperation, Submitted};
use crate::replication::intent::Intent;
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
    /// Is everything ready to fail over now? Touches nothing; exits with 1 when something stands in the way
    Preflight(Preflight),
    /// What would a failover do with each volume, lose, and take? Touches nothing
    Plan(Plan),
    /// Where the database and the clusters disagree
    Audit(Audit),
    /// Servers that have volumes of a failover attached, and whether Cinder's record of that is up to date
    Affected(Affected),
    /// How far behind the copy of each volume is, as the service last saw it
    Lag {
        /// Only this backend
        #[arg(long, value_name = "HOST@BACKEND")]
        backend: Option<String>,
        /// Only copies that are broken, or older than their type allows
        #[arg(long)]
        degraded: bool,
    },
    /// Move a backend, a group or single volumes to another site, or back
    ///
    /// In good order where the site that they leave is alive, by force where it is dead. The whole backend when
    /// neither a volume nor a group is named: that is what `cinder failover-host` does, without cinder-api.
    Failover(Failover),
    /// DESTRUCTIVE: discard the copies of a backend's volumes on one site and sync them anew
    ///
    /// For volumes that are primary on both sites after an unplanned failover and the return of the old
    /// site. What was written on the discarded side after the split is lost. Healthy copies are left alone.
    Resync(Resync),
    /// Move volumes in failover-error to where their backend is active
    Retry(Retry),
    /// Make the site that a backend has failed over to its own, for good
    ///
    /// First write it into cinder.conf on every host that serves the backend: rbd_ceph_conf and the other options of
    /// the section take what replication_device says, and replication_device names another site, or is left out.
    /// Nothing needs to be restarted. An order that does not fit the file is refused with the lines that are wanted.
    Adopt(Adopt),
    /// Keep the clients of volumes that have left a site out of it (OSD blocklist)
    ///
    /// After an unplanned failover, servers that still run at the old site write to images that are thrown away
    /// later. Clients that have such an image open are fenced, now or as soon as the site answers; never its
    /// rbd-mirror, and never Scoria itself.
    Fence(Fence),
    /// What is fenced, because of which volumes, and until when
    Fences {
        /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
        #[arg(long, value_name = "BACKEND")]
        backend: String,
    },
    /// Let fenced clients in again
    Unfence(Unfence),
    /// Make the service row acceptable to cinder-api again after a failover that failed
    Reset(Reset),
    /// Try a failover out on clones of the copies; disturbs nothing
    #[command(subcommand)]
    Test(test::Action),
}

/// What every order takes that is shown before it is given.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Given {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
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

/// Arguments of `failover`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Failover {
    #[command(flatten)]
    pub given: Given,
    /// Site to move to: 'default' or a backend_id
    #[arg(long, value_name = "SITE")]
    pub to: String,
    /// Only this volume; repeatable
    #[arg(long = "volume", value_name = "ID")]
    pub volumes: Vec<Uuid>,
    /// Only the members of this group
    #[arg(long, value_name = "ID", conflicts_with = "volumes")]
    pub group: Option<Uuid>,
    /// Refuse unless the site that is left is alive, and force nothing
    #[arg(long, conflicts_with_all = ["unplanned", "force"])]
    pub planned: bool,
    /// The site that is left is dead: refuse while it is alive
    #[arg(long, conflicts_with = "force")]
    pub unplanned: bool,
    /// DANGEROUS: promote by force also where the site that is left lives but does not demote in time
    #[arg(long)]
    pub force: bool,
}

impl Failover {
    fn intent(&self) -> Intent {
        match (self.planned, self.unplanned, self.force) {
            (true, _, _) => Intent::Planned,
            (_, true, _) => Intent::Unplanned,
            (_, _, true) => Intent::Force,
            (false, false, false) => Intent::Automatic,
        }
    }
}

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy, Args)]
#[allow(missing_docs)]
pub struct Timeout {
    /// Seconds to wait for the service's answer
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub timeout: u32,
}

impl Timeout {
    pub(super) fn within(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.timeout.into())
    }
}

/// Arguments of `preflight`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Preflight {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Target: 'default' or a backend_id. Default: the one that a failover would choose
    #[arg(long, value_name = "SITE")]
    pub to: Option<String>,
    #[command(flatten)]
    pub timeout: Timeout,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Plan {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Target: 'default' or a backend_id. Default: the one that a failover would choose
    #[arg(long, value_name = "SITE")]
    pub to: Option<String>,
    /// Only this volume; repeatable. Default: all volumes of the backend
    #[arg(long = "volume", value_name = "ID")]
    pub volumes: Vec<Uuid>,
    #[command(flatten)]
    pub timeout: Timeout,
}

/// Arguments of `audit`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Audit {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Only this volume; repeatable. Default: all volumes of the backend, and images of none
    #[arg(long = "volume", value_name = "ID")]
    pub volumes: Vec<Uuid>,
    /// Mend what is provably safe
    #[arg(long)]
    pub repair: bool,
    /// Do not ask
    #[arg(long, requires = "repair")]
    pub yes: bool,
    /// Return once the order to repair is written down
    #[arg(long, requires = "repair")]
    pub no_wait: bool,
    #[command(flatten)]
    pub timeout: Timeout,
}

/// Arguments of `affected`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Affected {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Only volumes that this operation has moved. Default: all that are not at home
    #[arg(long, value_name = "ID")]
    pub operation: Option<i64>,
    /// Rewrite stored connection information that names another site than the one that serves the volume
    #[arg(long)]
    pub refresh: bool,
    /// Return once the order to refresh is written down
    #[arg(long, requires = "refresh")]
    pub no_wait: bool,
    #[command(flatten)]
    pub timeout: Timeout,
}

/// Arguments of `resync`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Resync {
    #[command(flatten)]
    pub given: Given,
    /// Site whose copies are discarded: 'default' or a backend_id
    #[arg(long, value_name = "SITE")]
    pub discard: String,
    /// Only this volume; repeatable. Default: all replicated volumes of the backend
    #[arg(long = "volume", value_name = "ID")]
    pub volumes: Vec<Uuid>,
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

/// Arguments of `adopt`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Adopt {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Give volumes up that are not on the site: error, not-capable
    #[arg(long)]
    pub leave_behind: bool,
    /// No other site is left: end the mirroring of the images, too
    #[arg(long)]
    pub stop_mirroring: bool,
    /// Your word for which cluster the site is, where nobody knows it, or it is to be another than it was
    #[arg(long, value_name = "FSID")]
    pub fsid: Option<Uuid>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// The service looks whether it could, and changes nothing
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `fence`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Fence {
    #[command(flatten)]
    pub given: Given,
    /// Site that the volumes have left: 'default' or a backend_id
    #[arg(long, value_name = "SITE")]
    pub site: String,
    /// Only this volume's clients; repeatable. Default: those of all volumes that are served from elsewhere
    #[arg(long = "volume", value_name = "ID")]
    pub volumes: Vec<Uuid>,
    /// How long the fence holds
    #[arg(long = "for", value_name = "SECONDS", default_value_t = crate::replication::fence::SECONDS,
          value_parser = clap::value_parser!(u32).range(60..=31_536_000))]
    pub seconds: u32,
}

/// Arguments of `unfence`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Unfence {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// The site
    #[arg(long, value_name = "SITE")]
    pub site: String,
    /// Only what was fenced because of this volume; repeatable. Default: all
    #[arg(long = "volume", value_name = "ID")]
    pub volumes: Vec<Uuid>,
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
        Action::Preflight(arguments) => preflight::run(context, arguments).await,
        Action::Plan(arguments) => plan::run(context, arguments).await,
        Action::Audit(arguments) => audit::run(context, arguments).await,
        Action::Affected(arguments) => affected::run(context, arguments).await,
        Action::Lag { backend, degraded } => lag::run(context, backend.as_deref(), degraded).await,
        Action::Failover(arguments) => failover::run(context, arguments).await,
        Action::Resync(arguments) => resync::run(context, arguments).await,
        Action::Retry(arguments) => retry::run(context, arguments).await,
        Action::Adopt(arguments) => adopt::run(context, arguments).await,
        Action::Fence(arguments) => fence::lay(context, arguments).await,
        Action::Fences { backend } => fence::list(context, &backend).await,
        Action::Unfence(arguments) => fence::lift(context, arguments).await,
        Action::Reset(arguments) => reset::run(context, arguments).await,
        Action::Test(action) => test::run(context, action).await,
    }
}

/// Fails unless the backend is replicated and has a site of this name.
fn check_site(target: &Target, site: &str) -> Result<()> {
    let name = target.name();
    let Some(sites) = target.sites() else {
        return Err(Error::new(
            Code::Config,
            format!(
                "Backend {name} is not in the configuration read here, so its sites are not known; \
                 run this on its host, with its --config-file"
            ),
        ));
    };
    if sites.len() < 2 {
        return Err(Error::new(
            Code::UnableToFailOver,
            format!("Backend {name} is not replicated: its section has no replication_device"),
        ));
    }
    if !sites.iter().any(|s| s == site) {
        return Err(Error::new(
            Code::InvalidReplicationTarget,
            format!("Backend {name} has no site {site}; its sites are: {}", sites.join(", ")),
        ));
    }
    Ok(())
}

/// Fails while a failover of the backend is open: its active site may be changing.
async fn require_settled(context: &Context, target: &Target) -> Result<()> {
    match context.journal.open_methods(&target.scope, MOVES).await?.first() {
        Some(open) => Err(under_way(open.id)),
        None => Ok(()),
    }
}

/// Writes an order down and watches it to its end, unless told not to.
pub(super) async fn order(context: &Context, target: &Target, order: Order, wait: bool) -> Result<Report> {
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
