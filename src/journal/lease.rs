//! Keeping what is ours: one UPDATE every fifth of the lease for all open operations together.
//!
//! The other side of the coin is noticing that it is *not* ours any more, also when the database
//! cannot be asked: a lease that we could not renew in time has run out for everybody else.

use std::time::Instant;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Journal, lease_until};
use crate::db::schema::scoria_operations as ops;
use crate::error::Result;

impl Journal {
    /// Renews our leases until `stop` is cancelled. On a loss everything that we hold is cancelled,
    /// we get a new instance name, and [`Journal::losses`] changes.
    pub async fn lease_loop(&self, stop: CancellationToken) {
        let mut ticks = interval(self.shared.options.lease / 5);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.renew().await {
                Ok(true) => failing = false,
                Ok(false) => self.lose("another instance has taken an operation over"),
                Err(error) => {
                    if !failing {
                        tracing::error!(%error, "could not renew the leases of open operations");
                    }
                    failing = true;
                }
            }
        }
    }

    /// Renews once. False: something that we hold is no longer ours.
    ///
    /// # Errors
    /// `Database`, other than being away: that is waited for, as long as the lease lasts.
    pub async fn renew(&self) -> Result<bool> {
        let (instance, ids, oldest) = {
            let state = self.state();
            let Some(oldest) = state.open.values().map(|held| held.renewed).min() else {
                return Ok(true);
            };
            (state.instance.clone(), state.open.keys().copied().collect::<Vec<i64>>(), oldest)
        };
        let lease = self.shared.options.lease;
        let left = (oldest + lease).saturating_duration_since(Instant::now());
        let began = Instant::now();
        let renewal = self.shared.db.read("lease", async |conn| {
            let mut renewed = 0;
            for chunk in ids.chunks(1000) {
                renewed += diesel::update(ops::table)
                    .filter(ops::id.eq_any(chunk))
                    .filter(ops::owner.eq(&instance))
                    .filter(ops::state.eq("open"))
                    .set(ops::lease_until.eq(lease_until(lease)))
                    .execute(conn)
                    .await?;
            }
            Ok(renewed)
        });
        let Ok(renewed) = timeout(left, renewal).await else {
            tracing::error!(
                lease_seconds = lease.as_secs_f64(),
                "the database has been away for longer than the lease of open operations"
            );
            return Ok(false);
        };
        // Fewer may only mean that some were closed in a transaction of their own.
        let gone =
            if renewed? < ids.len() { self.sort_out(&instance, &ids).await? } else { Sorted::default() };
        let mut state = self.state();
        for id in &gone.closed {
            state.open.remove(id);
        }
        for (id, held) in &mut state.open {
            if ids.contains(id) {
                held.renewed = began;
            }
        }
        Ok(!gone.stolen)
    }

    /// Which of our operations are closed, and whether one has another owner.
    async fn sort_out(&self, instance: &str, ids: &[i64]) -> Result<Sorted> {
        let rows: Vec<(i64, String, String)> = self
            .shared
            .db
            .read("lost leases", async |conn| {
                Ok(ops::table
                    .filter(ops::id.eq_any(ids))
                    .select((ops::id, ops::state, ops::owner))
                    .load(conn)
                    .await?)
            })
            .await?;
        let mut sorted = Sorted::default();
        for id in ids {
            match rows.iter().find(|(found, _, _)| found == id) {
                // Purged, so it was closed.
                None => sorted.closed.push(*id),
                Some((_, state, _)) if state == "closed" => sorted.closed.push(*id),
                Some((_, _, owner)) => sorted.stolen |= owner != instance,
            }
        }
        Ok(sorted)
    }

    /// Gives up everything that we hold.
    pub(super) fn lose(&self, reason: &str) {
        let lost = {
            let mut state = self.state();
            state.instance = Uuid::new_v4().to_string();
            std::mem::take(&mut state.open)
        };
        tracing::error!(operations = lost.len(), reason, "the lease of our operations is lost");
        for held in lost.values() {
            held.operation.lost().cancel();
        }
        self.shared.losses.send_modify(|count| *count += 1);
    }
}

#[derive(Debug, Default)]
struct Sorted {
    closed: Vec<i64>,
    stolen: bool,
}
