//! Making the site that survives a data centre of its own: `site switch --independent`.
//!
//! After a disaster the other site does not come back, or not as what it was. All that still points to it is in the way:
//! daemons that look for it, journals that grow because nobody reads them, peers that keep a pool from being connected to
//! a new one. First all images become primary, as in a switch; then the dead sites are given up one after the other,
//! daemons are stopped, and the files of sites that nothing uses any more are removed. Each part may be done again, and
//! finds what was done before.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::daemon::{Action, Means, unit};
use super::orders::Files;
use super::reach::Reached;
use super::switch::{self, SwitchOrder};
use super::{Sites, link, operations};
use crate::db::mirror_daemon::{self, DaemonRow};
use crate::db::site::{self, SiteRow};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::rbd::protocol::OrchestratorAct;
use crate::rbd::types::OrchestratorVerb;
use crate::volume::crash;

/// Until a child must have ended; a service of another host may be away.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at its row.
const PERIOD: Duration = Duration::from_millis(300);

/// Make a site that survives independent of those that are dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndependentOrder {
    /// The site.
    pub name: String,
    /// Promote by force what the dead sites have not handed over.
    pub unplanned: bool,
    /// An administrator's files for it; `None`: this host's own.
    pub admin: Option<Files>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Carries an order out.
pub(super) async fn run(sites: &Sites, operation: &Operation, order: &IndependentOrder) -> Result<Value> {
    let turn = SwitchOrder {
        name: order.name.clone(),
        pool: None,
        image: None,
        unplanned: order.unplanned,
        dry_run: order.dry_run,
    };
    // Roles change, and then there is no way back: that the others are dead has to be known before.
    let first = sites.reach(&order.name).await?;
    let checked = Box::pin(each(sites, operation, order, &first, link::GiveUp::Check)).await;
    sites.part(&first.site);
    checked?;
    let switched = Box::pin(switch::run(sites, operation, &turn)).await?;
    crash::point("independent:switched");
    let reached = sites.reach(&order.name).await?;
    let ended = Box::pin(alone(sites, operation, order, &reached)).await;
    sites.part(&reached.site);
    let mut answer = ended?;
    if let (Value::Object(map), Some(images)) = (&mut answer, switched.get("images")) {
        map.insert("images".to_owned(), images.clone());
    }
    Ok(answer)
}

async fn alone(
    sites: &Sites,
    operation: &Operation,
    order: &IndependentOrder,
    reached: &Reached,
) -> Result<Value> {
    let name = reached.row.name.as_str();
    let how = if order.dry_run { link::GiveUp::DryRun } else { link::GiveUp::Do };
    // Of an attempt that was interrupted: who is parted already is a stranger now, and is to be forgotten all the same.
    let mut given_up: Vec<String> = operation
        .items()
        .await?
        .into_iter()
        .filter(|s| s.name == link::GIVEN_UP)
        .map(|s| s.resource_id)
        .collect();
    let Others { all, done, mut left } = Box::pin(each(sites, operation, order, reached, how)).await?;
    let mut parted = Vec::new();
    for (other, answer) in done {
        parted.push(answer);
        if !given_up.contains(&other) {
            given_up.push(other);
        }
    }
    let mut stopped = Vec::new();
    let mut forgotten = Vec::new();
    for (n, fsid) in std::iter::once(&reached.row)
        .chain(all.iter().filter(|row| given_up.contains(&row.name)))
        .map(|row| row.fsid.as_str())
        .enumerate()
    {
        let rows = sites.db.read("daemons", async |conn| mirror_daemon::of_site(conn, fsid).await).await?;
        for row in rows.into_iter().filter(DaemonRow::is_wanted) {
            let told = format!("rbd-mirror as client.{}, by {} of host {}", row.client, row.means, row.host);
            // What a dead cluster was told nobody can tell it now.
            let of_dead = n > 0 && row.means == Means::Orchestrator.as_str();
            if of_dead {
                left.push(format!("{told}: its cluster is dead"));
                continue;
            }
            if !order.dry_run {
                match stop(sites, operation, reached, &row).await {
                    Ok(()) => crash::point("independent:stopped"),
                    Err(e) if e.code() == Code::Cancelled || e.code() == Code::Database => return Err(e),
                    Err(e) => {
                        left.push(format!("{told}: {}", e.user()));
                        continue;
                    }
                }
            }
            stopped.push(told);
        }
    }
    for other in &given_up {
        if !order.dry_run {
            match operations::forget(sites, operation, other).await {
                Ok(()) => crash::point("independent:forgotten"),
                Err(e) if e.code() == Code::InvalidInput => continue,
                Err(e) if e.code() == Code::Invalid => {
                    left.push(e.user().to_owned());
                    continue;
                }
                Err(e) => return Err(e),
            }
        }
        forgotten.push(other.clone());
    }
    for done in &parted {
        let of = done.get("left").and_then(Value::as_array).into_iter().flatten();
        left.extend(of.filter_map(Value::as_str).map(str::to_owned));
    }
    Ok(json!({
        "independent": name, "dry_run": order.dry_run, "parted": parted, "given_up": given_up, "stopped": stopped,
        "forgotten": forgotten, "left": left,
    }))
}

/// The other sites, and what came of those that this one knows.
struct Others {
    all: Vec<SiteRow>,
    done: Vec<(String, Value)>,
    left: Vec<String>,
}

/// Gives up each site that this one knows, as far as `how` says.
async fn each(
    sites: &Sites,
    operation: &Operation,
    order: &IndependentOrder,
    reached: &Reached,
    how: link::GiveUp,
) -> Result<Others> {
    let host = sites.host.as_str();
    let (files, all) = sites
        .db
        .read("other sites", async |conn| Ok((site::files_on(conn, host).await?, site::list(conn).await?)))
        .await?;
    let mut others = Others { all, done: Vec::new(), left: Vec::new() };
    for other in others.all.iter().filter(|row| row.fsid != reached.row.fsid) {
        if !files.iter().any(|file| file.fsid == other.fsid) {
            others
                .left
                .push(format!("host {host} has no files of site {}, which was not looked at", other.name));
            continue;
        }
        let names = (reached.row.name.as_str(), other.name.as_str());
        if let Some(answer) = link::give_up(sites, operation, names, order.admin.as_ref(), how).await? {
            others.done.push((other.name.clone(), answer));
            if how == link::GiveUp::Do {
                crash::point("independent:parted");
            }
        }
    }
    Ok(others)
}

/// Stops one daemon, by whatever means it was started.
async fn stop(sites: &Sites, operation: &Operation, reached: &Reached, row: &DaemonRow) -> Result<()> {
    let wanted = DaemonRow {
        wanted: "stopped".to_owned(),
        state: if row.means == Means::Child.as_str() { "stopping" } else { "told" }.to_owned(),
        generation: operation.id(),
        ..row.clone()
    };
    let by = Means::parse(&row.means)?;
    match by {
        Means::Orchestrator => {
            reached.site.call(OrchestratorAct { act: OrchestratorVerb::Stop }).await?;
        }
        Means::Systemd if row.host == sites.host => {
            unit::act(&sites.programs.systemctl, Action::Stop, &row.what).await?;
        }
        Means::Systemd => {
            let text = format!(
                "it is another host's: scoria-manage site daemon stop {} --host {}",
                reached.row.name, row.host
            );
            return Err(Error::new(Code::Invalid, text));
        }
        Means::Child => {}
    }
    operation.write("a daemon is to stop", async |conn| mirror_daemon::want(conn, &wanted).await).await?;
    if by != Means::Child {
        return Ok(());
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let fsid = row.fsid.as_str();
        let rows = sites.db.read("daemons", async |conn| mirror_daemon::of_site(conn, fsid).await).await?;
        let now = rows.into_iter().find(|now| now.host == row.host);
        if now.is_none_or(|now| now.state == "stopped") {
            return Ok(());
        }
        if Instant::now() >= end {
            let text = format!(
                "it has not ended in {} s; the service of {} goes on with that",
                PATIENCE.as_secs(),
                row.host
            );
            return Err(Error::new(Code::DeadlineExceeded, text));
        }
        sleep(PERIOD).await;
    }
}
