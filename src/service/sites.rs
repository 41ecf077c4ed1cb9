//! The service's part in Ceph sites: clusters of backends are found, files are kept in order, and questions are answered.
//!
//! It runs beside the backends and before there is one: a service whose configuration names none serves this.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::backend::peers::{BackupPeers, Notify};
use crate::config::{BackendConfig, Config};
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::rbd::protocol::ProbeMon;
use crate::rbd::{Ceph, Site};
use crate::rpc::method::{AdminKeys, SiteCall};
use crate::rpc::{Accept, Call, Handler, Method, fault};
use crate::service::taken::Taken;
use crate::site::daemon::{DaemonOrder, Programs, Supervisor};
use crate::site::{self, Finding, Gap, Given, Order, Ordered, PREFIX, Report, Request, Sites, Worked};

/// How often a cluster that has not answered yet is asked.
const UNKNOWN: Duration = Duration::from_secs(30);
/// How often one that is known is looked at.
const KNOWN: Duration = Duration::from_secs(600);
/// A look whether a site answers at all, which costs no worker its life.
const PROBE: Duration = Duration::from_secs(3);
/// How often the daemons of this host are looked at.
const MINDED: Duration = Duration::from_secs(1);
/// How often the files of this host are looked at.
const TIDY: Duration = Duration::from_secs(60);

/// What runs. Orders are taken and answered by `host`.
pub struct SiteService {
    sites: Arc<Sites>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// What ends the looks at the clusters of each backend.
    followed: Mutex<HashMap<String, CancellationToken>>,
}

impl SiteService {
    /// Takes up what a former instance has left, and begins to look.
    ///
    /// # Errors
    /// `Database` for what waiting does not cure.
    pub async fn start(
        config: &Config,
        journal: &Journal,
        ceph: &Arc<dyn Ceph>,
        notify: Arc<dyn Notify>,
        backups: Arc<dyn BackupPeers>,
    ) -> Result<SiteService> {
        let dir = config.scoria.site_dir.clone();
        let programs = Programs {
            rbd_mirror: config.scoria.mirror_daemon_path.clone(),
            ..Programs::under(config.scoria.mirror_daemon_dir.clone())
        };
        let sites = Sites::new(&config.host, dir, journal.clone(), ceph.clone(), notify, backups, Vec::new())
            .running(programs)
            .naming(&config.volume_name_template)
            .patient_for(config.service_down_time);
        let sites = Arc::new(sites);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(until(stop.clone(), supervise(Supervisor::new(sites.clone()))));
        tasks.spawn(until(stop.clone(), tidy(sites.clone())));
        Ok(SiteService { sites, stop, tasks, followed: Mutex::default() })
    }

    /// The sites of this host.
    pub fn sites(&self) -> &Arc<Sites> {
        &self.sites
    }

    /// Looks at the clusters of a backend that is served from now on.
    pub fn follow(&self, config: &BackendConfig) {
        let worked = Worked::of(config);
        self.sites.set_worked(&config.host, worked.clone());
        let stop = self.stop.child_token();
        let former = self.followed().insert(config.host.clone(), stop.clone());
        if let Some(former) = former {
            former.cancel();
        }
        let (sites, names) = (self.sites.clone(), worked.iter().map(|w| w.site.clone()).collect::<Vec<_>>());
        let backend = config.host.clone();
        self.tasks.spawn(until(stop.clone(), async move {
            if let Err(error) = sites.settle_use(&backend, &names).await {
                warn!(backend, %error, "could not forget the former sites of a backend");
            }
        }));
        for worked in worked {
            self.tasks.spawn(until(stop.clone(), follow(self.sites.clone(), worked)));
        }
    }

    /// A backend is not served any more.
    pub fn leave(&self, config: &BackendConfig) {
        if let Some(stop) = self.followed().remove(&config.host) {
            stop.cancel();
        }
        self.sites.set_worked(&config.host, Vec::new());
    }

    fn followed(&self) -> std::sync::MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks no more.
    pub async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Runs a loop until told to stop.
pub(super) async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Looks at the cluster of a backend, now and then, and says once what its client lacks.
async fn follow(sites: Arc<Sites>, worked: Worked) {
    let mut said = Vec::new();
    loop {
        let pause = match look(&sites, &worked).await {
            Ok(report) => {
                let few: Vec<Finding> =
                    report.findings.into_iter().filter(|f| f.gap == Gap::TooFew).collect();
                for finding in few.iter().filter(|finding| !said.contains(*finding)) {
                    warn!(
                        backend = worked.backend,
                        site = worked.site,
                        client = report.client,
                        advice = report.advice,
                        "the client's capabilities are too few: {}",
                        finding.text
                    );
                }
                said = few;
                KNOWN
            }
            Err(error) => {
                debug!(backend = worked.backend, site = worked.site, %error, "a site is asked for its fsid later");
                UNKNOWN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn look(sites: &Sites, worked: &Worked) -> Result<Report> {
    let site = Site::new(sites.ceph.clone(), worked.connection.clone());
    site.call_within(PROBE, ProbeMon {}).await?;
    Box::pin(sites.discover(worked)).await
}

/// Keeps files and rows in order.
async fn tidy(sites: Arc<Sites>) {
    loop {
        if let Err(error) = sites.tidy().await {
            warn!(%error, "could not look after the files of sites");
        }
        tokio::time::sleep(TIDY).await;
    }
}

/// Keeps the daemons that this host's service runs. They go on when it stops.
async fn supervise(supervisor: Supervisor) {
    loop {
        if let Err(error) = supervisor.look().await {
            warn!(%error, "could not look after rbd-mirror daemons");
        }
        tokio::time::sleep(MINDED).await;
    }
}

/// Answers namespace `site`.
pub struct SiteHandler {
    /// Of this host.
    pub sites: Arc<Sites>,
}

#[async_trait]
impl Handler for SiteHandler {
    type Operation = ();

    /// Nothing of the namespace is journalled as it comes.
    async fn accept(&self, call: &Call) -> Result<Accept<()>> {
        Err(fault::no_such_method(call.name))
    }

    async fn run(&self, call: &Call, _: Option<()>) -> Result<Value> {
        match &call.method {
            Method::Site(site) => Box::pin(self.answer((**site).clone())).await,
            _ => Err(fault::no_such_method(call.name)),
        }
    }

    async fn replied(&self, _: &Call) {}
}

impl SiteHandler {
    async fn answer(&self, call: SiteCall) -> Result<Value> {
        let db = &self.sites.db;
        match call {
            SiteCall::Register { name, given, pools, dry_run, order } => {
                site::check_name(&name)?;
                self.order(order, Some(given), |files| {
                    let files = files.ok_or_else(|| Error::internal("A registration has files"))?;
                    Ok(Order::Register(site::Register { name, files, pools, dry_run }))
                })
                .await
            }
            SiteCall::Update { name, new_name, given, pools, dry_run, order } => {
                new_name.as_deref().map_or(Ok(()), site::check_name)?;
                self.order(order, given, |files| {
                    Ok(Order::Update(site::Update { name, new_name, files, pools, dry_run }))
                })
                .await
            }
            SiteCall::Delete { name, dry_run, order } => {
                self.order(order, None, |_| Ok(Order::Delete(site::Delete { name, dry_run }))).await
            }
            SiteCall::Connect { order, keys, id } => self.connect(*order, keys, id).await,
            SiteCall::Disconnect { order, keys, id } => self.disconnect(*order, keys, id).await,
            SiteCall::Links { name } => {
                let links = db.read("links", async |conn| site::links(conn, name.as_deref()).await).await?;
                to_value(&links)
            }
            SiteCall::Daemon { name, action, by, given, placement, dry_run, order } => {
                self.order(order, given, |files| {
                    Ok(Order::Daemon(DaemonOrder { name, action, by, files, placement, dry_run }))
                })
                .await
            }
            SiteCall::Schedule { schedule, order } => {
                self.order(order, None, |_| Ok(Order::Schedule(schedule))).await
            }
            SiteCall::Replicate { replicate, order } => {
                self.order(order, None, |_| Ok(Order::Replicate(replicate))).await
            }
            SiteCall::Which { which, order } => self.order(order, None, |_| Ok(Order::Which(which))).await,
            SiteCall::Half { half, order } => self.order(order, None, |_| Ok(Order::Half(half))).await,
            SiteCall::Switch { switch, order } => {
                self.order(order, None, |_| Ok(Order::Switch(switch))).await
            }
            SiteCall::Revert { revert, order } => {
                self.order(order, None, |_| Ok(Order::Revert(revert))).await
            }
            SiteCall::Move { order, id } => self.order(id, None, |_| Ok(Order::Move(order))).await,
            SiteCall::Independent { mut independent, keys, order } => {
                if let Some(known) = self.known(&order).await? {
                    return Ok(known);
                }
                let name = independent.name.clone();
                (independent.admin, _) = self.admins(&name, &name, AdminKeys { b: None, ..keys }).await?;
                self.order(order, None, |_| Ok(Order::Independent(independent))).await
            }
            SiteCall::List => to_value(&db.read("sites", async |conn| site::all(conn).await).await?),
            SiteCall::Show { name } => {
                to_value(&db.read("a site", async |conn| site::one(conn, &name).await).await?)
            }
            SiteCall::GetOperation { operation } => self.taken().progress(operation).await,
            SiteCall::ListOperations { open } => self.taken().list(open).await,
            SiteCall::CancelOperation { operation } => self.cancel(operation).await,
        }
    }

    /// Writes an order down, its content in files first.
    async fn order(
        &self,
        id: Option<String>,
        given: Option<Given>,
        make: impl FnOnce(Option<site::Files>) -> Result<Order> + Send,
    ) -> Result<Value> {
        let sites = &self.sites;
        if let Some(id) = &id
            && let Some(operation) = sites.journal.known(id).await?
        {
            return Ok(json!({"operation": operation, "new": false, "request_id": null}));
        }
        let files = match given {
            Some(given) => Some(given.files(&sites.store).await?),
            None => None,
        };
        let Ordered { operation, new, request_id } =
            site::submit(&sites.journal, &sites.host, make(files)?, id).await?;
        tracing::info!(operation.id = operation, "an order for a site came over RPC");
        Ok(json!({"operation": operation, "new": new, "request_id": request_id}))
    }

    async fn connect(&self, mut order: site::Connect, keys: AdminKeys, id: Option<String>) -> Result<Value> {
        order.check()?;
        if let Some(known) = self.known(&id).await? {
            return Ok(known);
        }
        (order.admin_a, order.admin_b) = self.admins(&order.a, &order.b, keys).await?;
        self.order(id, None, |_| Ok(Order::Connect(Box::new(order)))).await
    }

    async fn disconnect(
        &self,
        mut order: site::Disconnect,
        keys: AdminKeys,
        id: Option<String>,
    ) -> Result<Value> {
        order.check()?;
        if let Some(known) = self.known(&id).await? {
            return Ok(known);
        }
        (order.admin_a, order.admin_b) = self.admins(&order.a, &order.b, keys).await?;
        self.order(id, None, |_| Ok(Order::Disconnect(Box::new(order)))).await
    }

    /// The answer to an order that was given before.
    async fn known(&self, id: &Option<String>) -> Result<Option<Value>> {
        let Some(id) = id else { return Ok(None) };
        let operation = self.sites.journal.known(id).await?;
        Ok(operation.map(|operation| json!({"operation": operation, "new": false, "request_id": null})))
    }

    /// Administrators' keys, each in a file for the length of the order.
    async fn admins(
        &self,
        a: &str,
        b: &str,
        keys: AdminKeys,
    ) -> Result<(Option<site::Files>, Option<site::Files>)> {
        let sites = &self.sites;
        let AdminKeys { user, a: key_a, b: key_b } = keys;
        let of = async |name: &str, key: Option<site::CephKey>| match key {
            None => Ok(None),
            Some(key) => {
                site::admin_files(&sites.db, &sites.store, &sites.host, name, &user, &key).await.map(Some)
            }
        };
        Ok((of(a, key_a).await?, of(b, key_b).await?))
    }

    fn taken(&self) -> Taken<'_> {
        let (journal, host) = (&self.sites.journal, self.sites.host.as_str());
        Taken { journal, host, prefix: PREFIX, on: "sites" }
    }

    /// Withdraws an order that has not ended. What it has done is undone, or was not done yet: its changes are one
    /// transaction with its end.
    async fn cancel(&self, operation: i64) -> Result<Value> {
        let row = self.taken().find(operation).await?;
        let sites = &self.sites;
        let cancelled = sites.journal.withdraw(row.id, false).await?;
        if cancelled {
            let text = sites.journal.request_of(row.id).await?.unwrap_or_default();
            if let Ok(request) = Request::parse(&text)
                && row.backend_host == sites.host
            {
                for files in request.order.files() {
                    sites.discard(files.clone()).await?;
                }
                site::withdrawn(sites, row.id, &request).await;
            }
        }
        Ok(json!({"operation": operation, "cancelled": cancelled}))
    }
}

fn to_value(views: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(views).map_err(|e| Error::internal("A site cannot be written as JSON").caused_by(e))
}
