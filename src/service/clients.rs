//! Which RADOS clients our workers are, and fencing those that died at work.
//!
//! A worker that is killed under a call leaves its watch and its lock behind for up to half a minute, so
//! that the image looks busy to whoever goes on with the work; and a write of it that a slow OSD still holds
//! could land on top of what its successor has done. Fencing its client ends both. While the service lives
//! it fences a dead worker itself; for the case that it dies too, the addresses are in the journal. A worker
//! that ended at rest has left nothing behind, and is only forgotten.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::error::Result;
use crate::journal::Journal;
use crate::rbd::pool::{ClientObserver, Ending, WorkerPool};
use crate::rbd::protocol::{BlocklistAdd, Connection, ProbeMon};
use crate::rbd::{Ceph, RbdError, RbdErrorKind, Site};

/// How long a dead worker's client is kept out: past the time that its watch could live.
const FENCE_SECONDS: u32 = 60;
/// One question to a site.
const ANSWER: Duration = Duration::from_secs(10);
/// A look whether a site answers at all, which costs no worker its life.
const PROBE: Duration = Duration::from_secs(3);
/// First and longest pause before a site that does not answer is looked at again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Where clients are written down.
#[async_trait]
pub trait Register: Send + Sync + 'static {
    /// A client that may have to be fenced by somebody else one day.
    async fn record(&self, site_fsid: &str, address: &str, pid: i32) -> Result<()>;
    /// It needs no fence any more.
    async fn forget(&self, site_fsid: &str, address: &str) -> Result<()>;
}

#[async_trait]
impl Register for Journal {
    async fn record(&self, site_fsid: &str, address: &str, pid: i32) -> Result<()> {
        self.record_client(site_fsid, address, pid).await
    }

    async fn forget(&self, site_fsid: &str, address: &str) -> Result<()> {
        self.forget_client(site_fsid, address).await
    }
}

/// Registers the clients of a pool's workers, and fences those that have to be.
pub struct Clients {
    shared: Arc<Shared>,
}

struct Shared {
    register: Arc<dyn Register>,
    ceph: OnceLock<Weak<dyn Ceph>>,
    stopping: CancellationToken,
    /// The fsid under which each client is registered.
    registered: Mutex<HashMap<String, String>>,
    /// Clients that died at work and are not fenced yet. A site that is in here has a task that sees to it.
    unfenced: Mutex<HashMap<Key, Vec<String>>>,
}

/// What makes two connections lead to the same site.
type Key = (PathBuf, Option<String>, String);

impl Clients {
    /// An observer for a pool that is made next ([`Clients::of`]). Nothing is fenced after `stopping`: what is
    /// left then is in the register, for the next start.
    pub fn new(register: Arc<dyn Register>, stopping: CancellationToken) -> Arc<Clients> {
        let shared = Shared {
            register,
            ceph: OnceLock::new(),
            stopping,
            registered: Mutex::default(),
            unfenced: Mutex::default(),
        };
        Arc::new(Clients { shared: Arc::new(shared) })
    }

    /// Names the pool that is observed.
    pub fn of(&self, pool: &Arc<WorkerPool>) {
        let ceph: Arc<dyn Ceph> = pool.clone();
        self.reached_by(&ceph);
    }

    fn reached_by(&self, ceph: &Arc<dyn Ceph>) {
        // Set once, by the function that made both.
        let _ = self.shared.ceph.set(Arc::downgrade(ceph));
    }
}

impl ClientObserver for Clients {
    fn started(&self, connection: &Connection, fsid: &str, worker_pid: u32, address: &str) {
        lock(&self.shared.registered).insert(address.to_owned(), fsid.to_owned());
        let (shared, site) = (self.shared.clone(), connection.site.clone());
        let (fsid, address) = (fsid.to_owned(), address.to_owned());
        tokio::spawn(async move { shared.record(&site, &fsid, worker_pid, &address).await });
    }

    fn gone(&self, connection: &Connection, worker_pid: u32, address: &str, ending: Ending) {
        let (shared, connection, address) = (self.shared.clone(), connection.clone(), address.to_owned());
        match ending {
            Ending::AtRest => {
                tokio::spawn(async move { shared.forget(&address).await });
            }
            Ending::AtWork => {
                let key = (connection.conf.clone(), connection.user.clone(), connection.cluster_name.clone());
                debug!(site = connection.site, worker.pid = worker_pid, client = address, "to be fenced");
                let seen_to = {
                    let mut unfenced = lock(&shared.unfenced);
                    let waiting = unfenced.get_mut(&key).map(|waiting| waiting.push(address.clone()));
                    if waiting.is_none() {
                        unfenced.insert(key.clone(), vec![address]);
                    }
                    waiting.is_some()
                };
                if !seen_to {
                    tokio::spawn(async move { shared.see_to(key, connection).await });
                }
            }
        }
    }
}

impl Shared {
    fn site(&self, connection: &Connection) -> Option<Site> {
        Some(Site::new(self.ceph.get()?.upgrade()?, connection.clone()))
    }

    async fn record(&self, site: &str, fsid: &str, worker_pid: u32, address: &str) {
        let pid = i32::try_from(worker_pid).unwrap_or(0);
        if let Err(error) = self.register.record(fsid, address, pid).await {
            warn!(site, worker.pid = pid, %error, "could not record a worker's client");
        }
        // It has ended meanwhile, and was forgotten before it was written down.
        if !lock(&self.registered).contains_key(address)
            && let Err(error) = self.register.forget(fsid, address).await
        {
            debug!(%error, "could not forget a worker's client");
        }
    }

    async fn forget(&self, address: &str) {
        let Some(fsid) = lock(&self.registered).remove(address) else { return };
        if let Err(error) = self.register.forget(&fsid, address).await {
            debug!(%error, "could not forget a worker's client");
        }
    }

    /// Fences the dead clients of one site. When it does not answer (most likely they died of that), it is
    /// probed now and then, whatever their number, and they are fenced when it is back.
    async fn see_to(&self, key: Key, connection: Connection) {
        let mut pause = PAUSE.0;
        while let Some(site) = self.site(&connection)
            && !self.stopping.is_cancelled()
        {
            match site.call_within(PROBE, ProbeMon {}).await {
                Err(error) if is_silent(&error) => {
                    debug!(site = site.name(), %error, "dead workers are fenced when the site answers")
                }
                _ => self.fence_all(&key, &site).await,
            }
            {
                let mut unfenced = lock(&self.unfenced);
                if unfenced.get(&key).is_none_or(Vec::is_empty) {
                    unfenced.remove(&key);
                    return;
                }
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE.1),
            }
        }
    }

    async fn fence_all(&self, key: &Key, site: &Site) {
        let dead = lock(&self.unfenced).get_mut(key).map(std::mem::take).unwrap_or_default();
        let mut silent = false;
        for address in dead {
            if silent {
                self.again(key, address);
                continue;
            }
            let fence = BlocklistAdd { address: address.clone(), seconds: FENCE_SECONDS };
            match site.call_within(ANSWER, fence).await {
                Ok(()) => {
                    info!(site = site.name(), client = address, "fenced a worker that ended at work");
                    self.forget(&address).await;
                }
                Err(error) if is_silent(&error) => {
                    silent = true;
                    self.again(key, address);
                }
                Err(error) => {
                    warn!(site = site.name(), client = address, %error, "could not fence a worker that ended at work")
                }
            }
        }
    }

    fn again(&self, key: &Key, address: String) {
        lock(&self.unfenced).entry(key.clone()).or_default().push(address);
    }
}

fn is_silent(error: &RbdError) -> bool {
    matches!(error.kind, RbdErrorKind::TimedOut | RbdErrorKind::Unreachable | RbdErrorKind::WorkerLost)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rbd::protocol::BlocklistList;
    use crate::rbd::sim::{Health, Sim, SimConfig};

    #[derive(Default)]
    struct Book(Mutex<Vec<String>>);

    #[async_trait]
    impl Register for Book {
        async fn record(&self, _: &str, address: &str, _: i32) -> Result<()> {
            lock(&self.0).push(address.to_owned());
            Ok(())
        }

        async fn forget(&self, _: &str, address: &str) -> Result<()> {
            lock(&self.0).retain(|a| a != address);
            Ok(())
        }
    }

    struct Fixture {
        sim: Sim,
        site: Site,
        clients: Arc<Clients>,
        book: Arc<Book>,
        stopping: CancellationToken,
        _ceph: Arc<dyn Ceph>,
    }

    const FSID: &str = "51e00000-0000-4000-8000-000000000001";

    /// Twenty workers, each with a client.
    async fn fixture() -> Fixture {
        let sim = Sim::new(SimConfig::default());
        let (site, book, stopping) = (sim.site("a"), Arc::new(Book::default()), CancellationToken::new());
        let clients = Clients::new(book.clone(), stopping.clone());
        let ceph: Arc<dyn Ceph> = Arc::new(sim.clone());
        clients.reached_by(&ceph);
        for n in 0..20 {
            clients.started(site.connection(), FSID, 100 + n, &address(n));
        }
        sim.advance(Duration::from_secs(1)).await;
        assert_eq!(lock(&book.0).len(), 20);
        sim.clear_log();
        Fixture { sim, site, clients, book, stopping, _ceph: ceph }
    }

    fn address(n: u32) -> String {
        format!("192.0.2.1:0/{n}")
    }

    impl Fixture {
        fn end(&self, ending: Ending) {
            for n in 0..20 {
                self.clients.gone(self.site.connection(), 100 + n, &address(n), ending);
            }
        }

        async fn fenced(&self) -> usize {
            self.site.call(BlocklistList {}).await.unwrap().len()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_ended_at_rest_costs_its_site_nothing() {
        let f = fixture().await;
        f.sim.set_health("a", Health::Hung);
        f.end(Ending::AtRest);
        f.sim.advance(Duration::from_secs(60)).await;
        assert!(f.sim.log().is_empty(), "{}", f.sim.log_text());
        assert!(lock(&f.book.0).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_ended_at_work_is_fenced_at_once() {
        let f = fixture().await;
        f.end(Ending::AtWork);
        f.sim.advance(Duration::from_secs(1)).await;
        assert_eq!(f.fenced().await, 20);
        assert!(lock(&f.book.0).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn at_a_site_that_hangs_they_are_fenced_when_it_is_back() {
        for health in [Health::Hung, Health::Dead] {
            let f = fixture().await;
            f.sim.set_health("a", health);
            f.end(Ending::AtWork);
            f.sim.advance(Duration::from_secs(120)).await;
            assert_eq!(f.sim.count("BlocklistAdd"), 0, "each would cost a worker");
            assert!(f.sim.count("ProbeMon") <= 20, "{}", f.sim.count("ProbeMon"));
            assert_eq!(lock(&f.book.0).len(), 20, "kept for the next start");
            f.sim.set_health("a", Health::Alive);
            f.sim.advance(Duration::from_secs(15)).await;
            assert_eq!(f.fenced().await, 20);
            assert!(lock(&f.book.0).is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_fenced_by_a_service_that_stops() {
        let f = fixture().await;
        f.stopping.cancel();
        f.end(Ending::AtWork);
        f.sim.advance(Duration::from_secs(60)).await;
        assert_eq!(f.sim.count("BlocklistAdd"), 0);
        assert_eq!(lock(&f.book.0).len(), 20, "that is for the next start");
    }
}
