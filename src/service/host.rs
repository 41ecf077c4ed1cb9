//! What is asked and ordered of a host, and of no backend: orders are taken up and carried out, questions are answered,
//! files are watched.
//!
//! A service whose configuration names no backend serves this all the same: that is how it gets its first one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error, info, info_span, warn};

use super::questions::BackendsHandler;
use super::sites::{SiteHandler, until};
use crate::backends::{self, Backends, Watcher};
use crate::error::Result;
use crate::model::Scope;
use crate::rpc::method::BackendCall;
use crate::rpc::{Accept, Call, Handler, Method, Rpc, Server, fault};
use crate::site::{self, Sites};

/// How often orders are looked for; one that comes over RPC is looked for at once.
const ORDERS: Duration = Duration::from_secs(1);
/// How often files of backends are looked at.
const FILES: Duration = Duration::from_secs(2);

/// What runs.
pub struct HostService {
    server: Server,
    stop: CancellationToken,
    tasks: TaskTracker,
    running: TaskTracker,
    again: Arc<Notify>,
}

impl HostService {
    /// Takes up what a former instance has left, and begins to serve.
    pub fn start(sites: &Arc<Sites>, backends: &Arc<Backends>, rpc: &Rpc) -> HostService {
        let (stop, tasks, running) = (CancellationToken::new(), TaskTracker::new(), TaskTracker::new());
        let (wanted, again) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        tasks.spawn(until(
            stop.clone(),
            orders(sites.clone(), backends.clone(), running.clone(), wanted.clone()),
        ));
        tasks.spawn(until(stop.clone(), watch(backends.clone(), again.clone())));
        tasks.close();
        let handler = HostHandler {
            sites: SiteHandler { sites: sites.clone() },
            backends: BackendsHandler { backends: backends.clone() },
            wanted,
        };
        let server = rpc.serve_own(&backends.host, Arc::new(handler));
        HostService { server, stop, tasks, running, again }
    }

    /// Returns when its queue is consumed.
    pub async fn ready(&self) {
        self.server.ready().await;
    }

    /// Reads all files again, the service's own among them.
    pub fn read_again(&self) {
        self.again.notify_one();
    }

    /// Takes no more orders, and lets those under way end within `limit` (zero: as long as they take). What is not
    /// done then goes on with the next start.
    pub async fn drain(&self, limit: Duration) {
        self.stop.cancel();
        self.server.drain(limit).await;
        self.tasks.wait().await;
        self.running.close();
        if limit.is_zero() {
            self.running.wait().await;
        } else if tokio::time::timeout(limit, self.running.wait()).await.is_err() {
            warn!("stopping with orders for this host under way: they go on when the service starts again");
        }
    }
}

/// Takes orders up and carries them out, each in a task of its own.
async fn orders(sites: Arc<Sites>, backends: Arc<Backends>, running: TaskTracker, wanted: Arc<Notify>) {
    loop {
        if let Err(error) = take_up(&sites, &backends, &running).await {
            warn!(%error, "could not look for orders for this host");
        }
        if let Err(error) = backends::tidy(&backends).await {
            warn!(%error, "could not take back what a withdrawn order has made");
        }
        tokio::select! {
            () = tokio::time::sleep(ORDERS) => {}
            () = wanted.notified() => {}
        }
    }
}

async fn take_up(sites: &Arc<Sites>, backends: &Arc<Backends>, running: &TaskTracker) -> Result<()> {
    let scope = Scope::Host(sites.host.clone());
    if sites.journal.next_orphan(&scope).await? != Some(Duration::ZERO) {
        return Ok(());
    }
    for operation in sites.journal.adopt(&scope).await? {
        let (sites, backends) = (sites.clone(), backends.clone());
        if operation.method().starts_with(backends::PREFIX) {
            let span = info_span!("backend", op = operation.method(), operation.id = operation.id());
            let work = async move { Box::pin(backends::run(&backends, &operation)).await };
            running.spawn(work.instrument(span));
        } else {
            let span = info_span!("site", op = operation.method(), operation.id = operation.id());
            running.spawn(async move { Box::pin(site::run(&sites, &operation)).await }.instrument(span));
        }
    }
    Ok(())
}

/// Looks at the files of backends, now and then and when a signal asks for it.
async fn watch(backends: Arc<Backends>, again: Arc<Notify>) {
    let watcher = Watcher::default();
    let mut said = None;
    loop {
        let all = tokio::select! {
            () = tokio::time::sleep(FILES) => false,
            () = again.notified() => true,
        };
        let looked = match all {
            true => Box::pin(watcher.read_all(&backends)).await,
            false => Box::pin(watcher.look(&backends)).await,
        };
        match looked {
            Ok(()) if all => info!("the configuration of backends was read again"),
            Ok(()) => said = None,
            Err(error) => {
                let text = error.operator();
                if all || said.as_ref() != Some(&text) {
                    error!(%error, "could not read the files of backends; what runs goes on");
                    said = Some(text);
                }
            }
        }
    }
}

/// Answers Scoria's namespaces of a host.
struct HostHandler {
    sites: SiteHandler,
    backends: BackendsHandler,
    /// There may be a new order.
    wanted: Arc<Notify>,
}

#[async_trait]
impl Handler for HostHandler {
    type Operation = ();

    /// Nothing of these namespaces is journalled as it comes.
    async fn accept(&self, call: &Call) -> Result<Accept<()>> {
        Err(fault::no_such_method(call.name))
    }

    async fn run(&self, call: &Call, operation: Option<()>) -> Result<Value> {
        let answer = match &call.method {
            Method::Site(_) => self.sites.run(call, operation).await,
            Method::Backend(_) | Method::Label(_) => self.backends.run(call, operation).await,
            _ => Err(fault::no_such_method(call.name)),
        };
        let orders = match &call.method {
            Method::Backend(call) => matches!(**call, BackendCall::Order { .. }),
            method => matches!(method, Method::Site(_)),
        };
        if orders {
            self.wanted.notify_one();
        }
        answer
    }

    async fn replied(&self, _: &Call) {}
}
