//! At most one RADOS client per (conf, cluster name, user), shared by all calls of the process.
//!
//! Calls that come while a connection is being made wait for it and share its failure: a dead site
//! costs them one time-out, not one each in a row. A client that has been fenced is discarded; the next
//! call connects anew, under another address.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::Settings;
use crate::rbd::ffi::{Api, Cluster, Failure, Identity};
use crate::rbd::protocol::Connection;

/// Kept free of a call's time when it has to connect first, so that the failure arrives in time.
const MARGIN: Duration = Duration::from_millis(750);

pub(super) struct Connections {
    settings: Settings,
    slots: Mutex<HashMap<Identity, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    cluster: Option<Arc<Cluster>>,
    connecting: bool,
    /// Number of attempts that ended, and how the last one failed.
    attempts: u64,
    failure: Option<Failure>,
}

impl Connections {
    pub(super) fn new(settings: Settings) -> Connections {
        Connections { settings, slots: Mutex::default() }
    }

    /// The client for `connection`; connects first when there is none, and then calls `connected` with
    /// it before anything is done with it. Takes about `left` at most.
    pub(super) fn get(
        &self,
        api: &'static Api,
        connection: &Connection,
        left: Duration,
        connected: impl FnOnce(&Connection, &Cluster),
    ) -> Result<Arc<Cluster>, Failure> {
        let identity = identity(connection);
        let slot = Arc::clone(lock(&self.slots).entry(identity.clone()).or_default());
        let mut state = lock(&slot.state);
        let mine = state.attempts;
        loop {
            if let Some(cluster) = &state.cluster {
                return Ok(Arc::clone(cluster));
            }
            if !state.connecting {
                match &state.failure {
                    Some(failure) if state.attempts > mine => return Err(failure.clone()),
                    _ => break,
                }
            }
            state = slot.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.connecting = true;
        drop(state);

        let result = Cluster::connect(api, &identity, &self.options(connection, left)).map(Arc::new);
        if let Ok(cluster) = &result {
            connected(connection, cluster);
        }
        let mut state = lock(&slot.state);
        state.connecting = false;
        state.attempts += 1;
        state.failure = result.as_ref().err().cloned();
        state.cluster = result.as_ref().ok().cloned();
        slot.changed.notify_all();
        result
    }

    /// Forgets `cluster`, unless it has been replaced already.
    pub(super) fn discard(&self, connection: &Connection, cluster: &Arc<Cluster>) {
        let slot = lock(&self.slots).get(&identity(connection)).cloned();
        let Some(slot) = slot else { return };
        let mut state = lock(&slot.state);
        let unusable = state.cluster.take_if(|current| Arc::ptr_eq(current, cluster));
        drop(state);
        // Disconnecting may block; without a thread it happens here.
        if unusable.is_some() {
            let _ = thread::Builder::new().name("disconnect".to_owned()).spawn(move || drop(unusable));
        }
    }

    /// Without these, every call on a hung site would hang for ever.
    fn options(&self, connection: &Connection, left: Duration) -> [(&'static str, String); 6] {
        let asked = connection
            .connect_timeout
            .map_or(self.settings.connect_timeout, |seconds| Duration::from_secs(u64::from(seconds)));
        let connect = asked.min(left.saturating_sub(MARGIN)).as_secs().max(1);
        let op = self.settings.op_timeout.as_secs().max(1);
        [
            ("client_mount_timeout", connect.to_string()),
            ("rados_osd_op_timeout", op.to_string()),
            ("rados_mon_op_timeout", op.to_string()),
            // A client that slept through a restart of OSDs only asks for the new map after an operation has
            // hung for this long; with the default (10 s, looked at every 5 s) a probe of a site that is back
            // would find its OSDs dead.
            ("objecter_timeout", "1".to_owned()),
            ("objecter_tick_interval", "0.5".to_owned()),
            // Data goes through here in single pieces only; a cache would just cost memory.
            ("rbd_cache", "false".to_owned()),
        ]
    }
}

fn identity(connection: &Connection) -> Identity {
    Identity {
        conf: connection.conf.clone(),
        cluster_name: connection.cluster_name.clone(),
        user: connection.user.clone(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
