//! An in-memory Ceph: any number of sites with RBD mirroring, faults and virtual time.
//!
//! A failover goes wrong in the rare orders of events: a demotion that has not propagated, a lock
//! held by a daemon that waits for a dead peer, a service killed between two calls. On real clusters
//! they take minutes to provoke and never come twice. The simulator stands behind the same trait as the pool of
//! worker processes, answers as librbd 16.2 was measured to answer (the behaviour suite in
//! `tests/behaviour` runs against both), and takes its time from tokio's clock, so that under a paused
//! clock hours pass in milliseconds and the same seed gives the same world.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! use scoria::rbd::protocol::*;
//! use scoria::rbd::sim::{Health, Sim, SimConfig};
//! let sim = Sim::new(SimConfig::default());
//! let (a, b) = (sim.site("a"), sim.site("b"));
//! let mode = scoria::rbd::types::MirrorMode::Journal;
//! let (pool, image) = ("volumes".to_owned(), "v".to_owned());
//! a.call(ImageCreate { pool: pool.clone(), image: image.clone(), size: 1 << 30, order: 22, features: 61 }).await.unwrap();
//! a.call(MirrorEnable { pool: pool.clone(), image: image.clone(), mode }).await.unwrap();
//! tokio::time::sleep(std::time::Duration::from_secs(60)).await;
//! sim.set_health("a", Health::Dead);
//! b.call(MirrorPromote { pool: pool.clone(), image: image.clone(), force: true }).await.unwrap();
//! // Primary, and yet not writable: the local rbd-mirror keeps the lock while its peer is away.
//! assert!(b.call(CheckWritable { pool, image }).await.is_err());
//! # }
//! ```

mod check;
mod cluster;
mod config;
pub mod crash;
mod data;
mod delta;
mod dispatch;
mod faults;
mod images;
mod levels;
mod link;
mod log;
mod mirror_daemon;
mod mirroring;
mod moving;
mod replica;
mod schedules;
mod services;
mod snapshots;
mod state;
mod stream;
mod subject;
mod survey;
mod tear;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::error::{RbdError, RbdErrorKind};
use super::hearing::Moves;
use super::protocol::{Connection, Reply, Request};
use super::stream::Flow;
use super::{Ceph, Site};

pub use check::ImageView;
pub use config::{PoolSpec, SimConfig, SiteSpec, Timing};
pub use faults::{Fault, Health, When};
pub use link::osds_on;
pub use log::{CallRecord, Outcome};

use faults::Fells;
use mirror_daemon::DaemonState;
use state::{Refusal, WatcherState, World};
use subject::Subject;
use tear::Torn;

/// A handle on a simulated world, with the identity of one client of it.
#[derive(Clone)]
pub struct Sim {
    world: Arc<Mutex<World>>,
    client: Arc<Mutex<u64>>,
    crashed: Arc<watch::Sender<u64>>,
}

impl Sim {
    /// A new world. Must be called where tokio's clock can be read (inside a runtime).
    pub fn new(config: SimConfig) -> Sim {
        Sim {
            world: Arc::new(Mutex::new(World::new(config))),
            client: Arc::new(Mutex::new(1)),
            crashed: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Another client (host, instance) of the same world: own address, own connections.
    pub fn another_client(&self) -> Sim {
        let client = self.lock().next();
        Sim { client: Arc::new(Mutex::new(client)), ..self.clone() }
    }

    /// The simulator behind the trait.
    pub fn ceph(&self) -> Arc<dyn Ceph> {
        Arc::new(self.clone())
    }

    /// How the site of this name is reached.
    pub fn connection(&self, site: &str) -> Connection {
        Connection {
            site: site.to_owned(),
            conf: PathBuf::from(format!("/sim/{site}.conf")),
            cluster_name: "ceph".to_owned(),
            user: Some("cinder".to_owned()),
            connect_timeout: None,
        }
    }

    /// A handle on the site of this name.
    pub fn site(&self, site: &str) -> Site {
        Site::new(self.ceph(), self.connection(site))
    }

    /// Changes how a site is. A site that comes back has its rbd-mirror back only later
    /// ([`Timing::daemon_restart`], [`Timing::daemon_resume`]).
    pub fn set_health(&self, site: &str, health: Health) {
        let mut world = self.lock();
        world.advance();
        let timing = world.config.timing.clone();
        let Some(state) = world.sites.get_mut(site) else { return };
        let was = std::mem::replace(&mut state.health, health);
        if was == Health::Dead && health != Health::Dead {
            state.forget_daemon();
        }
        if health.data_flows() && state.daemon.state != DaemonState::Stopped {
            match was {
                Health::Dead => world.daemon_back_after(site, timing.daemon_restart),
                Health::Hung => world.daemon_back_after(site, timing.daemon_resume),
                _ => {}
            }
        }
        world.wake_fenced();
        world.touch_all();
    }

    /// Stops the rbd-mirror of a site in good order: it lets go of its locks.
    pub fn stop_daemon(&self, site: &str) {
        let mut world = self.lock();
        world.advance();
        if let Some(state) = world.sites.get_mut(site) {
            state.daemon.state = DaemonState::Stopped;
            state.forget_daemon();
        }
        world.touch_all();
    }

    /// Starts it again.
    pub fn start_daemon(&self, site: &str) {
        let mut world = self.lock();
        world.advance();
        world.daemon_back_after(site, Duration::ZERO);
        world.touch_all();
    }

    /// Opens an image as a foreign client (a VM) that does not give up its lock, for good. Its address is
    /// answered; [`release`](Sim::release) ends it.
    pub fn occupy(&self, site: &str, pool: &str, image: &str) -> Option<String> {
        let mut world = self.lock();
        world.advance();
        let client = world.next();
        let address = world.address_of(client);
        let watcher =
            WatcherState { address: address.clone(), client: client as i64, cookie: 1, until: None };
        let state = world.image_mut(site, pool, image).ok()?;
        state.watchers.push(watcher);
        state.lock = Some(address.clone());
        Some(address)
    }

    /// Opens an image as a foreign client that yields its lock: a watcher.
    pub fn watch(&self, site: &str, pool: &str, image: &str) -> Option<String> {
        let address = self.occupy(site, pool, image)?;
        self.lock().image_mut(site, pool, image).ok()?.lock = None;
        Some(address)
    }

    /// Leaves the watch of a client that has been fenced, and that the OSDs have forgotten to end; for good, or
    /// for a while.
    pub fn haunt(&self, site: &str, pool: &str, image: &str, lasts: Option<Duration>) {
        let Some(address) = self.watch(site, pool, image) else { return };
        let mut world = self.lock();
        let until = lasts.map(|lasts| world.now + lasts);
        world.watch_ends.extend(until);
        let Ok(state) = world.image_mut(site, pool, image) else { return };
        let mut ghosts: Vec<_> = state.watchers.extract_if(.., |w| w.address == address).collect();
        ghosts.iter_mut().for_each(|w| w.until = until);
        world.blocklist(site, &address, 3600);
        if let Ok(state) = world.image_mut(site, pool, image) {
            state.watchers.append(&mut ghosts);
        }
    }

    /// Ends what [`occupy`](Sim::occupy) or [`watch`](Sim::watch) began.
    pub fn release(&self, site: &str, pool: &str, image: &str, address: &str) {
        let mut world = self.lock();
        world.advance();
        if let Ok(state) = world.image_mut(site, pool, image) {
            state.watchers.retain(|w| w.address != address);
            state.lock = state.lock.take().filter(|owner| owner != address);
        }
    }

    /// Adds a rule that harms some calls.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Makes the `n`-th call from now (1 is the next) fail with `kind`, before or after its effect.
    pub fn fail_nth(&self, n: usize, when: When, kind: RbdErrorKind) {
        self.inject(Fault::any().nth(n).fails(when, kind));
    }

    /// Removes all rules.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// The service is killed at its `k`-th call from now (1 is the next), before or after the call's
    /// effect: that call and everything after it fail with `WorkerLost`, until [`restart`](Sim::restart).
    pub fn crash_at(&self, k: usize, when: When) {
        self.arm(k, when, Fells::Service);
    }

    /// The same, but neither that call nor any later one returns: for tests that drop what they run when
    /// [`crashed`](Sim::crashed) completes, as a killed process drops it.
    pub fn kill_at(&self, k: usize, when: When) {
        self.arm(k, when, Fells::ServiceForGood);
    }

    /// Only the worker of the `k`-th call dies: that call fails with `WorkerLost`, the next ones work.
    pub fn lose_worker_at(&self, k: usize, when: When) {
        self.arm(k, when, Fells::Worker);
    }

    fn arm(&self, k: usize, when: When, fells: Fells) {
        self.lock().crash = faults::CrashPoint { armed: Some((k, when)), fells, ..Default::default() };
    }

    /// The service is started again: calls work, by a client of a new address.
    pub fn restart(&self) {
        let mut world = self.lock();
        world.crash = faults::CrashPoint::default();
        let fresh = world.next();
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    /// Whether the crash point was reached.
    pub fn has_crashed(&self) -> bool {
        self.lock().crash.happened
    }

    /// Completes when a crash point is reached.
    pub async fn crashed(&self) {
        let mut changes = self.crashed.subscribe();
        while !self.has_crashed() {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The address by which this client is fenced.
    pub fn client_address(&self) -> String {
        let id = self.client_id();
        self.lock().address_of(id)
    }

    /// All calls so far, in order of arrival.
    pub fn log(&self) -> Vec<CallRecord> {
        self.lock().log.clone()
    }

    /// The log as text, one call a line; repetitions (polling) as one line with their number.
    pub fn log_text(&self) -> String {
        log::text(&self.lock().log)
    }

    /// Forgets the calls so far.
    pub fn clear_log(&self) {
        self.lock().log.clear();
    }

    /// Calls of the command of this name so far.
    pub fn count(&self, request: &str) -> usize {
        self.lock().log.iter().filter(|c| c.request == request).count()
    }

    /// Lets virtual time pass (under a paused clock at once), daemons included.
    pub async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
        self.lock().advance();
    }

    fn client_id(&self) -> u64 {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_out(
        &self,
        name: &str,
        client: u64,
        request: Request,
        fate: &faults::Fate,
    ) -> Result<Reply, Refusal> {
        let mut world = self.lock();
        world.advance();
        let subject = Subject::of(&request);
        let torn = if fate.half { Torn::of(&request) } else { None };
        let answer = if fate.effect { Some(world.run(name, client, request)) } else { None };
        if let (Some(torn), Some(Ok(_))) = (torn, &answer) {
            world.tear(name, torn);
        }
        let leaves_watch = fate.error.as_ref().is_some_and(|e| e.kind == RbdErrorKind::WorkerLost)
            && subject.writes
            && (fate.crash || fate.effect)
            && world.config.lost_worker_leaves_watch;
        if leaves_watch && let (Some(pool), Some(image)) = (&subject.pool, &subject.image) {
            let until = world.now + world.config.timing.watch;
            let watcher = WatcherState {
                address: world.address_of(client),
                client: client as i64,
                cookie: world.next(),
                until: Some(until),
            };
            world.watch_ends.insert(until);
            if let Ok(state) = world.image_mut(name, pool, image) {
                state.watchers.push(watcher);
            }
        }
        if fate.crash {
            world.crash.happened = true;
            world.crash.down = world.crash.fells != Fells::Worker;
            self.crashed.send_modify(|n| *n += 1);
        }
        match (&fate.error, answer) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(answer)) => answer,
            (None, None) => Err(Refusal::new(RbdErrorKind::Other, "a call with neither effect nor error")),
        }
    }
}

#[async_trait]
impl Ceph for Sim {
    async fn execute(
        &self,
        connection: &Connection,
        request: Request,
        deadline: Duration,
        _moves: &Moves,
    ) -> Result<Reply, RbdError> {
        self.perform(connection, request, deadline, None).await
    }

    async fn stream(
        &self,
        connection: &Connection,
        request: Request,
        deadline: Duration,
        flow: Flow,
    ) -> Result<Reply, RbdError> {
        self.perform(connection, request, deadline, Some(flow)).await
    }
}

impl Sim {
    async fn perform(
        &self,
        connection: &Connection,
        request: Request,
        deadline: Duration,
        flow: Option<Flow>,
    ) -> Result<Reply, RbdError> {
        let op = request.name();
        let client = self.client_id();
        let (name, fate, index) = {
            let mut world = self.lock();
            world.advance();
            let Some(name) = world.resolve(connection) else {
                let text =
                    format!("no simulated site for {} ({})", connection.site, connection.conf.display());
                return Err(Refusal::new(RbdErrorKind::Unreachable, text).dress(op, &connection.site));
            };
            let mut fate = world.decide(&name, client, connection, &request, deadline);
            let common = connection.user.as_deref() != Some("admin");
            if common && fate.error.is_none() && link::for_administrators(&request) {
                fate.effect = false;
                fate.error = Some(Refusal::new(RbdErrorKind::Permission, "access denied"));
            }
            let record = CallRecord {
                at: world.now,
                site: name.clone(),
                request: op,
                image: Subject::of(&request).image,
                arguments: request.clone(),
                outcome: Outcome::Abandoned,
                effect: false,
            };
            world.log.push(record);
            (name, fate, world.log.len() - 1)
        };
        tokio::time::sleep(fate.wait).await;
        let flowed = match flow {
            Some(flow) if fate.effect => self.flow(&name, &request, flow, fate.half).await,
            _ => Ok(0),
        };
        let result = match flowed {
            Ok(bytes) => self.carry_out(&name, client, request, &fate).map(|reply| match reply {
                Reply::ImageImport(_) => Reply::ImageImport(bytes),
                Reply::ImageExport(_) => Reply::ImageExport(bytes),
                other => other,
            }),
            Err(refusal) => Err(refusal),
        };
        let outcome = match &result {
            Ok(_) => Outcome::Done,
            Err(refusal) => Outcome::Failed(refusal.kind),
        };
        if let Some(record) = self.lock().log.get_mut(index) {
            record.outcome = outcome;
            record.effect = result.is_ok() || (fate.effect && fate.error.is_some());
        }
        if fate.silent {
            std::future::pending::<()>().await;
        }
        result.map_err(|refusal| refusal.dress(op, &connection.site))
    }
}

#[cfg(test)]
mod tests;
