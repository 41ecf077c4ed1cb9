//! Carrying out an order for a daemon: what is wanted is written down first, then it is done, by whom the means names.
//!
//! An orchestrator and systemd are told, and telling them twice does no harm. A child is the supervisor's: the order
//! changes the row and waits until the daemon is as it says, so that an operator learns at once that a key is wrong.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::super::reach::Reached;
use super::super::{Sites, blocking};
use super::status::standing;
use super::{Action, DaemonOrder, Means, Slot, unit};
use crate::db::mirror_daemon::{self, DaemonRow};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::rbd::protocol::{OrchestratorAct, OrchestratorApply};
use crate::rbd::types::OrchestratorVerb;
use crate::rbd::{RbdError, RbdErrorKind};
use crate::volume::crash;

/// Between two looks at a child's row.
const PERIOD: Duration = Duration::from_millis(300);
/// A child that has run so long has accepted its conf and key.
const SETTLED: Duration = Duration::from_secs(3);

/// What is done, for the answer.
struct Done {
    means: Means,
    client: String,
    what: String,
    /// The command that does the same by hand.
    command: String,
}

/// Carries an order out. `None` when the operation has been closed with its answer.
pub(in crate::site) async fn run(
    sites: &Sites,
    operation: &Operation,
    order: &DaemonOrder,
) -> Result<Option<Value>> {
    let reached = sites.reach(&order.name).await?;
    let ended = Box::pin(carry_out(sites, operation, order, &reached)).await;
    sites.part(&reached.site);
    if let (Ok(_), Some(files)) = (&ended, &order.files)
        && let Err(error) = sites.discard(files.clone()).await
    {
        warn!(%error, "a draft is left for the sweep");
    }
    ended
}

async fn carry_out(
    sites: &Sites,
    operation: &Operation,
    order: &DaemonOrder,
    reached: &Reached,
) -> Result<Option<Value>> {
    if order.action == Action::Status {
        let standing = standing(sites, reached).await?;
        let mut answer = serde_json::to_value(standing)
            .map_err(|e| Error::internal("The state of daemons cannot be written as JSON").caused_by(e))?;
        if let Value::Object(map) = &mut answer {
            map.insert("action".to_owned(), json!("status"));
        }
        return Ok(Some(answer));
    }
    let fsid = reached.row.fsid.as_str();
    let rows = sites.db.read("daemons", async |conn| mirror_daemon::of_site(conn, fsid).await).await?;
    let former = rows.into_iter().find(|row| row.host == sites.host);
    let done = decide(sites, order, reached, former.as_ref())?;
    let answer = |state: Option<&DaemonRow>| {
        json!({
            "action": order.action.as_str(), "site": reached.row.name, "host": sites.host, "dry_run": order.dry_run,
            "means": done.means.as_str(), "client": done.client, "what": done.what, "command": done.command,
            "state": state.map(|row| &row.state), "pid": state.and_then(|row| row.pid),
        })
    };
    if order.dry_run {
        return Ok(Some(answer(None)));
    }
    let row = DaemonRow {
        fsid: fsid.to_owned(),
        host: sites.host.clone(),
        means: done.means.as_str().to_owned(),
        client: done.client.clone(),
        what: done.what.clone(),
        wanted: if order.action == Action::Stop { "stopped" } else { "running" }.to_owned(),
        generation: operation.id(),
        state: match (done.means, order.action) {
            (Means::Child, Action::Stop) => "stopping",
            (Means::Child, _) => "starting",
            (Means::Orchestrator | Means::Systemd, _) => "told",
        }
        .to_owned(),
        pid: None,
        ended: 0,
        detail: None,
    };
    let state = match done.means {
        Means::Orchestrator => {
            orchestrate(sites, order, reached).await?;
            None
        }
        Means::Systemd => {
            unit::act(&sites.programs.systemctl, order.action, &done.what).await?;
            None
        }
        Means::Child => Some(child(sites, operation, order, reached, &row, former.as_ref()).await?),
    };
    crash::point("daemon:acted");
    let outcome = Outcome::succeeded().with_reply(answer(state.as_ref()));
    sites
        .journal
        .complete(operation, &outcome, async |conn| match done.means {
            // Written before; what its service has seen since then stays.
            Means::Child => Ok(()),
            Means::Orchestrator | Means::Systemd => mirror_daemon::want(conn, &row).await,
        })
        .await?;
    Ok(None)
}

/// What is to be done, or why not. Changes nothing.
fn decide(sites: &Sites, order: &DaemonOrder, reached: &Reached, former: Option<&DaemonRow>) -> Result<Done> {
    let (name, host) = (&reached.row.name, &sites.host);
    let before = former.map(|row| Means::parse(&row.means)).transpose()?;
    let means = match (order.by, before) {
        (Some(by), _) => by,
        (None, Some(before)) => before,
        (None, None) => {
            return Err(Error::new(
                Code::InvalidInput,
                format!(
                    "Host {host} has not had to do with a daemon of site {name} yet: say by whom it is run, --by \
                     orchestrator, systemd or child"
                ),
            ));
        }
    };
    if let (Some(former), Some(before)) = (former, before)
        && before != means
        && former.is_wanted()
    {
        return Err(Error::new(
            Code::Conflict,
            format!(
                "The daemon of site {name} on host {host} is run by {} ({}); stop it first: scoria-manage site daemon \
                 stop {name}",
                before.as_str(),
                former.what
            ),
        ));
    }
    if order.placement.is_some() && means != Means::Orchestrator {
        return Err(Error::new(Code::InvalidInput, "A placement is for an orchestrator (--by orchestrator)"));
    }
    let same = former.filter(|_| before == Some(means));
    let client = match (&order.files, same) {
        (Some(files), _) => files.user.clone(),
        (None, Some(same)) => same.client.clone(),
        (None, None) => reached.client().to_owned(),
    };
    let (what, command) = match means {
        Means::Orchestrator => {
            let placement = order
                .placement
                .clone()
                .or_else(|| same.map(|row| row.what.clone()))
                .filter(|p| !p.is_empty());
            let apply = match &placement {
                Some(placement) => format!("ceph orch apply rbd-mirror --placement='{placement}'"),
                None => "ceph orch apply rbd-mirror".to_owned(),
            };
            let command = match order.action {
                Action::Start | Action::Status => apply,
                Action::Stop => "ceph orch stop rbd-mirror".to_owned(),
                Action::Restart => "ceph orch restart rbd-mirror".to_owned(),
            };
            (placement.unwrap_or_default(), command)
        }
        Means::Systemd => {
            let unit = unit::name(&client);
            let command = unit::arguments(order.action, &unit).join(" ");
            (unit, format!("systemctl {command}"))
        }
        Means::Child => {
            let slot = Slot::new(&sites.programs.dir, &reached.row.fsid);
            let line = slot.arguments(&client).join(" ");
            (String::new(), format!("{} {line}", sites.programs.rbd_mirror.display()))
        }
    };
    Ok(Done { means, client, what, command })
}

/// Tells the cluster's orchestrator.
async fn orchestrate(sites: &Sites, order: &DaemonOrder, reached: &Reached) -> Result<()> {
    let by = match &order.files {
        Some(files) => sites.by(&reached.row, files).await?,
        None => reached.site.clone(),
    };
    let fsid = reached.row.fsid.as_str();
    let rows = sites.db.read("daemons", async |conn| mirror_daemon::of_site(conn, fsid).await).await?;
    let former = rows.iter().find(|r| r.host == sites.host && r.means == Means::Orchestrator.as_str());
    let told = match order.action {
        Action::Status => Ok(()),
        Action::Start => {
            let placement = order.placement.clone().or_else(|| former.map(|row| row.what.clone()));
            let applied = by.call(OrchestratorApply { placement: placement.filter(|p| !p.is_empty()) }).await;
            match (applied, former) {
                // What was stopped stays stopped by an `apply`.
                (Ok(()), Some(row)) if !row.is_wanted() => {
                    by.call(OrchestratorAct { act: OrchestratorVerb::Start }).await
                }
                (applied, _) => applied,
            }
        }
        Action::Stop => by.call(OrchestratorAct { act: OrchestratorVerb::Stop }).await,
        Action::Restart => by.call(OrchestratorAct { act: OrchestratorVerb::Restart }).await,
    };
    if order.files.is_some() {
        sites.part(&by);
    }
    told.map_err(|e| refused(e, &reached.row.name))
}

/// Why an orchestrator was not told, and what to do.
fn refused(e: RbdError, site: &str) -> Error {
    let text = match e.kind {
        RbdErrorKind::NotFound | RbdErrorKind::NotSupported => {
            format!("Site {site} has no orchestrator ({}); run the daemon by systemd or child", e.message)
        }
        RbdErrorKind::Permission => format!(
            "The client may not tell the orchestrator of site {site} what to do ({}); give one with mgr 'allow rw' for \
             this command: --user, --conf and --keyring",
            e.message
        ),
        _ => return e.into(),
    };
    Error::new(Code::Invalid, text).caused_by(e)
}

/// Has this host's service start, stop or restart its own daemon, and waits until it has.
async fn child(
    sites: &Sites,
    operation: &Operation,
    order: &DaemonOrder,
    reached: &Reached,
    row: &DaemonRow,
    former: Option<&DaemonRow>,
) -> Result<DaemonRow> {
    let changed = operation.reached::<bool>("wanted").await?.is_some();
    if !changed {
        // What was written for a daemon that has no row yet is nobody's leftover.
        let _files = sites.files.lock().await;
        if order.action != Action::Stop {
            equip(sites, order, reached, row, former).await?;
        }
        // One that runs as it is to run is left alone.
        let kept = former.filter(|f| {
            order.action == Action::Start && order.files.is_none() && f.is_wanted() && f.means == row.means
        });
        let row = DaemonRow { generation: kept.map_or(row.generation, |f| f.generation), ..row.clone() };
        operation
            .write("a daemon is wanted", async |conn| {
                mirror_daemon::want(conn, &row).await?;
                operation.step_in(conn, "wanted", &true).await
            })
            .await?;
        crash::point("daemon:wanted");
    }
    let end = Instant::now() + sites.patience.daemon;
    let mut since = None;
    loop {
        let (fsid, host) = (row.fsid.as_str(), row.host.as_str());
        let rows = sites.db.read("a daemon", async |conn| mirror_daemon::of_site(conn, fsid).await).await?;
        let Some(now) = rows.into_iter().find(|r| r.host == host) else {
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "The daemon of site {} on host {host} was forgotten meanwhile: the site was deleted. Register it, \
                     and give the order again",
                    order.name
                ),
            ));
        };
        if now.generation > row.generation {
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "Operation {} has ordered something else of the daemon of site {} on host {host} meanwhile, which \
                     counts; see: scoria-manage site daemon status {}",
                    now.generation, order.name, order.name
                ),
            ));
        }
        let stops = order.action == Action::Stop;
        let is = match (stops, now.state.as_str()) {
            (true, "stopped") => return Ok(now),
            (false, "running") => {
                if since.get_or_insert_with(Instant::now).elapsed() >= SETTLED {
                    return Ok(now);
                }
                true
            }
            _ => false,
        };
        if !is {
            since = None;
        }
        if !stops && now.ended > 0 {
            return Err(gave_up(sites, operation, order, former, &now).await?);
        }
        if Instant::now() >= end {
            return Err(Error::new(
                Code::DeadlineExceeded,
                format!(
                    "The daemon was not {} in {} s, it is {}; the service goes on trying, see: scoria-manage site daemon \
                     status {}",
                    if stops { "stopped" } else { "running" },
                    sites.patience.daemon.as_secs(),
                    now.state,
                    order.name
                ),
            ));
        }
        sleep(PERIOD).await;
    }
}

/// A daemon that ends at once is not started again and again by an order that has failed; one that was wanted before
/// is.
async fn gave_up(
    sites: &Sites,
    operation: &Operation,
    order: &DaemonOrder,
    former: Option<&DaemonRow>,
    now: &DaemonRow,
) -> Result<Error> {
    let said = now.detail.clone().unwrap_or_default();
    let before = former.is_some_and(DaemonRow::is_wanted);
    if !before {
        let row = DaemonRow { wanted: "stopped".to_owned(), generation: operation.id(), ..now.clone() };
        sites.db.write("a daemon is not wanted", async |conn| mirror_daemon::want(conn, &row).await).await?;
    }
    Ok(Error::new(
        Code::Invalid,
        format!(
            "rbd-mirror has ended at once, its last words: {said}. It runs as client.{} (which needs mon 'profile \
             rbd-mirror', osd 'profile rbd'); {} of site {} {}",
            now.client,
            order.action.as_str(),
            order.name,
            if before { "is tried again" } else { "was given up" },
        ),
    ))
}

/// Writes the daemon's conf, from what the order brings or from the host's own files.
async fn equip(
    sites: &Sites,
    order: &DaemonOrder,
    reached: &Reached,
    row: &DaemonRow,
    former: Option<&DaemonRow>,
) -> Result<()> {
    let slot = Slot::new(&sites.programs.dir, &row.fsid);
    if let Some(files) = &order.files {
        // They lead to this cluster, and the key is one that it knows.
        let by = sites.by(&reached.row, files).await;
        match by {
            Ok(site) => sites.part(&site),
            // A client for daemons may not be allowed to do anything else; the daemon will tell.
            Err(e) if e.code() == Code::VolumeBackend => {}
            Err(e) => return Err(e),
        }
        let (client, files) = (row.client.clone(), files.clone());
        return blocking(move || slot.equip(&client, &files.conf, files.keyring.as_deref(), files.draft))
            .await?;
    }
    if former.is_some_and(|f| f.means == row.means && f.client == row.client)
        && order.action == Action::Restart
    {
        return Ok(());
    }
    if row.client != reached.client() {
        // Given before, and kept in its directory.
        return Ok(());
    }
    let (client, host) = (row.client.clone(), reached.host.clone());
    let conf = match host.conf.as_str() {
        "" => PathBuf::from("/etc/ceph/ceph.conf"),
        conf => PathBuf::from(conf),
    };
    blocking(move || slot.equip(&client, &conf, host.keyring.as_deref().map(std::path::Path::new), false))
        .await?
}
