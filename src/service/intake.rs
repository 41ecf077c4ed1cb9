//! Whether a backend takes requests: it does while it serves, and not while an operator drains it.
//!
//! What is sent meanwhile stays in the broker's queues, for whoever serves them next.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::info;

use super::handler::BackendHandler;
use crate::backend::Backend;
use crate::rpc::{Rpc, Server};

/// The RPC servers of a backend, or the reason why there are none.
pub struct Intake {
    backend: Arc<Backend>,
    handler: Arc<BackendHandler>,
    rpc: Rpc,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    server: Option<Arc<Server>>,
    /// Those that take no more, but may have requests in flight.
    former: Vec<Arc<Server>>,
    /// By how many orders it is kept closed, and for good once the service stops.
    closed: usize,
}

impl Intake {
    /// Takes no request yet.
    pub fn new(backend: Arc<Backend>, handler: Arc<BackendHandler>, rpc: Rpc) -> Intake {
        Intake { backend, handler, rpc, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to take requests, unless it is being drained.
    pub fn open(&self) {
        let mut state = self.state();
        if state.closed == 0 && state.server.is_none() {
            let (host, cluster) = (self.backend.host(), self.backend.config.cluster.as_deref());
            state.server = Some(Arc::new(self.rpc.serve(host, cluster, self.handler.clone())));
        }
    }

    /// From now on no request is taken; [`Intake::settled`] says when the broker knows.
    pub fn close(&self) {
        self.state().closed += 1;
    }

    /// The opposite of one [`Intake::close`].
    pub fn reopen(&self) {
        {
            let mut state = self.state();
            state.closed = state.closed.saturating_sub(1);
        }
        self.open();
    }

    /// After [`Intake::close`]: waits until the broker gives us nothing more, and what we were given is in the
    /// journal or back in its queue.
    pub async fn settled(&self) {
        let server = {
            let mut state = self.state();
            let server = state.server.take();
            state.former.extend(server.clone());
            server
        };
        if let Some(server) = server {
            server.stop().await;
            info!(backend = self.backend.host(), "no requests are taken");
        }
    }

    /// Returns when all queues are consumed, or when none are to be.
    pub async fn ready(&self) {
        let server = self.state().server.clone();
        if let Some(server) = server {
            server.ready().await;
        }
    }

    /// Names of the fanout queues that only this backend has.
    pub fn fanouts(&self) -> Vec<String> {
        let state = self.state();
        let servers = state.server.iter().chain(&state.former);
        servers.flat_map(|server| server.fanouts().to_vec()).collect()
    }

    /// True while its queues are consumed, or when none are to be.
    pub fn is_ready(&self) -> bool {
        self.state().server.as_ref().is_none_or(|server| server.is_ready())
    }

    /// Takes no more requests and waits for those in flight, at most for `limit` (zero: no limit). True when all
    /// are done.
    pub async fn end(&self, limit: Duration) -> bool {
        self.close();
        let servers: Vec<Arc<Server>> = {
            let mut state = self.state();
            let server = state.server.take();
            state.former.drain(..).chain(server).collect()
        };
        let drained = futures::future::join_all(servers.iter().map(|server| server.drain(limit))).await;
        drained.into_iter().all(|done| done)
    }
}
