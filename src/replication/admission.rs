//! Whether an order that came over RPC makes sense, before it is written down.
//!
//! Whoever carries it out looks again. But a caller who hears nothing but a number would have to ask later why it
//! failed; what is plainly wrong is told at once, as the exception that names it.

use std::collections::HashMap;

use super::candidates::is_retried;
use super::orders::{MOVES, Order};
use super::resync::choice;
use super::{set, target};
use crate::backend::Backend;
use crate::db::{self, admin};
use crate::error::{Code, Error, Result};

/// Checks the order, and names the volumes that it is about where it left that open.
///
/// # Errors
/// `UnableToFailOver` without a second site; `Conflict` while volumes are being moved; `InvalidReplicationTarget` for
/// a site that is unknown or in use already; `InvalidVolume` or `Invalid` for a volume or group that cannot be moved;
/// `Database`.
pub async fn check(backend: &Backend, order: Order) -> Result<Order> {
    // What it is about is what the files say by now, and not what this backend knows.
    if !backend.is_replicated() && !matches!(order, Order::Adopt(_)) {
        return Err(Error::new(
            Code::UnableToFailOver,
            format!("Backend {} is not replicated: its section has no replication_device", backend.host()),
        ));
    }
    let scope = backend.scope();
    if let Some(open) = backend.journal.open_methods(&scope, MOVES).await?.first() {
        return Err(admin::under_way(open.id));
    }
    let active = backend.active_name();
    let devices = backend.device_names();
    let (found, strays) = backend
        .db
        .read("volumes of an order", async |conn| {
            Ok((db::failover::replicated(conn, &scope).await?, admin::strays(conn, &scope).await?))
        })
        .await?;
    let strays: HashMap<String, String> = strays.into_iter().collect();
    match order {
        Order::Failover(order) => {
            let left = order.target.as_deref() == Some(active.as_str()) && is_retried(backend).await?;
            if !left {
                target::choose(&devices, &active, order.target.as_deref())?;
            }
            Ok(Order::Failover(order))
        }
        Order::Move(mut order) => {
            let members: Vec<String> = match (&order.group, &order.volumes) {
                (Some(id), _) => {
                    let group =
                        backend.db.read("group of an order", async |conn| db::group::find(conn, id).await);
                    let status = group.await?.and_then(|g| g.replication_status).unwrap_or_default();
                    if !matches!(status.as_str(), "enabled" | "failed-over") {
                        let text =
                            format!("Group {id} cannot be failed over: its replication_status is {status:?}");
                        return Err(Error::new(Code::Invalid, text));
                    }
                    found.iter().filter(|v| v.group_id.as_ref() == Some(id)).map(|v| v.id.clone()).collect()
                }
                (None, volumes) => volumes.clone().unwrap_or_default(),
            };
            let target = set::choose(backend, &members, &strays, order.target.as_deref())?;
            let chosen = set::admit(&found, &members, &strays, &active, &target, backend.host())?;
            order.target = Some(target);
            order.volumes = order.group.is_none().then_some(chosen);
            Ok(Order::Move(order))
        }
        Order::Retry(order) => {
            for id in order.volumes.iter().flatten() {
                if !found.iter().any(|v| v.id == *id) {
                    let text =
                        format!("Volume {id} is not a replicated volume of backend {}", backend.host());
                    return Err(Error::new(Code::InvalidVolume, text));
                }
            }
            Ok(Order::Retry(order))
        }
        Order::Resync(mut order) => {
            backend.site(&order.discard)?;
            let named = order.volumes.clone().unwrap_or_default();
            if order.volumes.as_ref().is_some_and(Vec::is_empty) {
                return Err(Error::new(Code::InvalidVolume, "No volume was named"));
            }
            let choice = choice::choose(&found, &strays, backend.host(), &order.discard, &active, &named)?;
            order.volumes = choice.named(&named);
            Ok(Order::Resync(order))
        }
        other => Ok(other),
    }
}
