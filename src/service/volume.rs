//! `scoria-volume`: from configuration to a service that is ready, and from SIGTERM to its end.
//!
//! Start-up waits for database and broker as long as it takes and says so, never for Ceph. Its length does
//! not depend on the number of volumes. On SIGTERM no request is taken any more, those in flight finish,
//! and what does not finish in time stays in the journal for the next start.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, warn};

use super::backends::Periods;
use super::host::HostService;
use super::logging::LogHandle;
use super::process::{self, Core, Process};
use super::registry::{Parts, Registry};
use super::sites::SiteService;
use crate::backend::Globals;
use crate::backends::{Backends, boot};
use crate::config::{Config, Sources};
use crate::error::Result;

/// Runs the service until it is told to stop.
///
/// # Errors
/// What makes serving impossible: an unusable configuration, a database of the wrong schema.
pub async fn run(config: Config, sources: Sources, log: LogHandle) -> Result<()> {
    process::run(&config, &sources, &log, Service::start(&config, &sources, &log)).await
}

/// Everything that runs.
struct Service {
    registry: Arc<Registry>,
    host: HostService,
    sites: Arc<SiteService>,
    core: Core,
}

impl Service {
    /// Returns when all backends serve or have been found to be down. May be dropped at any time: what has
    /// begun is in the journal.
    async fn start(config: &Config, sources: &Sources, log: &LogHandle) -> Result<Service> {
        let core = Core::start(config).await?;
        let (journal, ceph, notifier) = (core.journal.clone(), core.ceph(), core.notifier.clone());
        let sites = Arc::new(
            SiteService::start(config, &journal, &ceph, notifier.clone(), core.clients.clone()).await?,
        );
        // Made once: all backends share tokens and connections to other services.
        let parts = Parts {
            globals: Globals::from(config),
            journal: journal.clone(),
            peers: core.peers(),
            ceph: ceph.clone(),
            rpc: core.rpc.clone(),
            log: log.clone(),
            periods: Periods::from(config),
        };
        let registry = Arc::new(Registry::new(parts, sites.clone()));
        let backends = Arc::new(Backends::new(
            &config.host,
            sources.clone(),
            journal,
            ceph,
            notifier,
            registry.clone(),
            config.graceful_shutdown_timeout,
        ));
        start_all(config, &backends, &registry).await?;
        let host = HostService::start(sites.sites(), &backends, &core.rpc);
        for backend in registry.all() {
            backend.ready().await;
        }
        host.ready().await;
        Ok(Service { registry, host, sites, core })
    }
}

impl Process for Service {
    const NAME: &'static str = "scoria-volume";

    fn core(&self) -> &Core {
        &self.core
    }

    fn read_again(&self) {
        self.host.read_again();
    }

    async fn stop(self, limit: Duration, hurry: impl Future<Output = ()>) {
        let drained =
            async { tokio::join!(self.host.drain(limit), self.registry.drain(limit), self.sites.end()) };
        tokio::select! {
            _ = drained => {}
            () = hurry => warn!("told to stop again: operations under way stay in the journal"),
        }
        self.core.end().await;
    }
}

/// Starts the backends that are wanted, all at once. One that cannot be started does not keep the others from it.
async fn start_all(config: &Config, backends: &Backends, registry: &Registry) -> Result<()> {
    let wanted = boot::plan(backends, config).await?;
    let starting = wanted.iter().map(|section| async move { (section, registry.begin(section).await) });
    let mut first = None;
    for (section, outcome) in futures::future::join_all(starting).await {
        if let Err(error) = outcome {
            error!(backend = section.host, %error, "a backend could not be started");
            boot::failed(backends, &section.section, &error).await?;
            first.get_or_insert(error);
        }
    }
    match first {
        Some(error) if registry.all().is_empty() => Err(error),
        _ => Ok(()),
    }
}
