//! Which RADOS clients our workers are, for whoever has to fence them.
//!
//! A worker that dies leaves its watches and locks behind for up to half a minute. While the service lives
//! it fences a dead worker itself; for the case that it dies too, the addresses are in the journal.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::journal::Journal;
use crate::rbd::pool::{ClientObserver, WorkerPool};
use crate::rbd::protocol::{BlocklistAdd, Connection, Fsid};
use crate::rbd::{Ceph, Site};

/// How long a dead worker's client is kept out: past the time that its watch could live.
const FENCE_SECONDS: u32 = 60;
/// One question to a site.
const ANSWER: Duration = Duration::from_secs(10);

/// Journals the clients of a pool's workers.
pub struct Clients {
    journal: Journal,
    pool: OnceLock<Weak<WorkerPool>>,
    stopping: CancellationToken,
}

impl Clients {
    /// An observer for a pool that is made next ([`Clients::of`]). Nothing is fenced after `stopping`.
    pub fn new(journal: Journal, stopping: CancellationToken) -> Arc<Clients> {
        Arc::new(Clients { journal, pool: OnceLock::new(), stopping })
    }

    /// Names the pool that is observed.
    pub fn of(&self, pool: &Arc<WorkerPool>) {
        // Set once, by the function that made both.
        let _ = self.pool.set(Arc::downgrade(pool));
    }

    fn site(&self, connection: &Connection) -> Option<Site> {
        let pool = self.pool.get()?.upgrade()?;
        Some(Site::new(pool as Arc<dyn Ceph>, connection.clone()))
    }
}

impl ClientObserver for Clients {
    fn started(&self, connection: &Connection, worker_pid: u32, address: &str) {
        let Some(site) = self.site(connection) else { return };
        let (journal, address) = (self.journal.clone(), address.to_owned());
        let pid = i32::try_from(worker_pid).unwrap_or(0);
        tokio::spawn(async move {
            let recorded = match site.call_within(ANSWER, Fsid {}).await {
                Ok(fsid) => journal.record_client(&fsid, &address, pid).await,
                Err(e) => Err(e.into()),
            };
            if let Err(error) = recorded {
                warn!(site = site.name(), worker.pid = pid, %error, "could not record a worker's client");
            }
        });
    }

    fn gone(&self, connection: &Connection, worker_pid: u32, address: &str) {
        let Some(site) = self.site(connection) else { return };
        let (journal, address, stopping) =
            (self.journal.clone(), address.to_owned(), self.stopping.is_cancelled());
        tokio::spawn(async move {
            let Ok(fsid) = site.call_within(ANSWER, Fsid {}).await else { return };
            if !stopping {
                let fence = BlocklistAdd { address: address.clone(), seconds: FENCE_SECONDS };
                if let Err(error) = site.call_within(ANSWER, fence).await {
                    warn!(site = site.name(), worker.pid = worker_pid, %error, "could not fence a worker that ended");
                    return;
                }
                debug!(
                    site = site.name(),
                    worker.pid = worker_pid,
                    client = address,
                    "fenced a worker that ended"
                );
            }
            if let Err(error) = journal.forget_client(&fsid, &address).await {
                debug!(%error, "could not forget a worker's client");
            }
        });
    }
}
