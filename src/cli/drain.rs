//! `operation drain`: before a stock cinder-volume takes a host's backends over, nothing may be open in the
//! journal that nobody would finish.
//!
//! The services of the host are ordered to take no more requests and to finish what is open; the requests
//! that come meanwhile wait in the broker's queues, for whoever serves them next. This program watches, and
//! says what is left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::output::{is_up, table, time};
use super::{Context, Exit, Report};
use crate::db::admin;
use crate::error::{Code, Error, Result};
use crate::journal::{Listing, NewOperation, Submitted};
use crate::model::host_part;
use crate::replication::orders::{DRAIN, Drain, Order, Request};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);
/// A service that runs has looked for orders several times by then.
const TAKEN_WITHIN: Duration = Duration::from_secs(8);

/// What is asked for.
pub(super) struct Asked {
    /// `[DEFAULT] host`; `None`: that of the configuration.
    pub(super) host: Option<String>,
    /// How long to wait; zero: without limit.
    pub(super) timeout: Duration,
    /// Withdraw instead.
    pub(super) cancel: bool,
}

/// Something that is open still.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Left {
    id: i64,
    method: String,
    backend: String,
    resource: Option<String>,
    step: Option<String>,
    accepted_at: String,
    why: String,
}

/// Where the services of the host are.
#[derive(Debug, Default)]
struct Found {
    /// Open operations, without the orders to drain.
    left: Vec<Listing>,
    /// Open orders to drain.
    orders: Vec<Listing>,
}

pub(super) async fn run(context: &Context, asked: Asked) -> Result<Report> {
    let host = asked.host.clone().unwrap_or_else(|| context.config.host.clone());
    let backends = backends_of(context, &host).await?;
    if asked.cancel {
        return cancel(context, &host, &backends).await;
    }
    let mut orders = Vec::new();
    for backend in &backends {
        let request = Request::new(Order::Drain(Drain {}));
        let submitted = context
            .journal
            .submit(&NewOperation {
                unique_id: uuid::Uuid::new_v4().simple().to_string(),
                method: DRAIN.to_owned(),
                backend_host: backend.clone(),
                // For this member, not for whichever of its cluster comes first.
                cluster: None,
                request: request.to_text()?,
                ..NewOperation::default()
            })
            .await?;
        orders.push(match submitted {
            Submitted::New(id) | Submitted::Open(id) => id,
        });
    }
    tokio::select! {
        report = watch(context, &host, &backends, asked.timeout) => report,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(|e| Error::internal("Cannot listen for an interrupt").caused_by(e))?;
            let text = format!("interrupted; {host} goes on draining (orders {orders:?})");
            Ok(Report::new(text, &json!({"host": host, "orders": orders}))?.ending(Exit::Interrupted))
        }
    }
}

/// `host@backend` of the services of a host.
async fn backends_of(context: &Context, host: &str) -> Result<Vec<String>> {
    let services =
        context.db.read("volume services", async |conn| admin::volume_services(conn).await).await?;
    let mut found: Vec<String> =
        services.into_iter().map(|s| s.host).filter(|h| host_part(h) == host).collect();
    let sections = context.config.backends.iter().map(|b| b.host.clone());
    let ours = sections.filter(|h| host_part(h) == host);
    for section in ours {
        if !found.contains(&section) {
            found.push(section);
        }
    }
    if found.is_empty() {
        return Err(Error::new(
            Code::ServiceNotFound,
            format!("There is no volume service of host {host}; `scoria-manage service list` has them"),
        ));
    }
    found.sort();
    Ok(found)
}

async fn look(context: &Context, backends: &[String]) -> Result<Found> {
    let mut found = Found::default();
    for backend in backends {
        for operation in context.journal.open_of_service(backend).await? {
            if operation.method == DRAIN { &mut found.orders } else { &mut found.left }.push(operation);
        }
    }
    Ok(found)
}

async fn watch(context: &Context, host: &str, backends: &[String], timeout: Duration) -> Result<Report> {
    let began = Instant::now();
    let mut said = None;
    loop {
        let found = look(context, backends).await?;
        if found.left.is_empty() {
            // Nobody has taken the order of a service that does not run, and there is nothing to do for it.
            let waiting: Vec<&Listing> = found.orders.iter().filter(|o| o.is_waiting()).collect();
            let untaken = waiting.len() == found.orders.len() && began.elapsed() > TAKEN_WITHIN;
            if untaken && are_silent(context, backends).await? {
                for order in waiting {
                    context.journal.withdraw(order.id, true).await?;
                }
                return drained(host, backends);
            }
            if found.orders.is_empty() {
                return drained(host, backends);
            }
        }
        if said != Some(found.left.len()) {
            eprintln!("{} open on {host}", count(found.left.len()));
            said = Some(found.left.len());
        }
        if !timeout.is_zero() && began.elapsed() > timeout {
            return remains(context, host, &found).await;
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Whether none of these services has sent a heartbeat for the time of three.
async fn are_silent(context: &Context, backends: &[String]) -> Result<bool> {
    let services =
        context.db.read("volume services", async |conn| admin::volume_services(conn).await).await?;
    let (now, limit) = (crate::db::now(), context.config.report_interval * 3);
    Ok(!services.iter().any(|s| backends.contains(&s.host) && is_up(s.updated_at, now, limit)))
}

fn count(operations: usize) -> String {
    if operations == 1 { "1 operation is".to_owned() } else { format!("{operations} operations are") }
}

fn drained(host: &str, backends: &[String]) -> Result<Report> {
    let text = format!(
        "{host} is drained: nothing is open in the journal of {}. Its services take no requests until they are \
         started again; stop scoria-volume now.",
        backends.join(", ")
    );
    Report::new(text, &json!({"host": host, "drained": true, "backends": backends, "left": []}))
}

/// Why each of them is still open. Orders that nobody has taken are withdrawn: a service that is started much
/// later must not begin with them.
async fn remains(context: &Context, host: &str, found: &Found) -> Result<Report> {
    let mut taken = BTreeMap::new();
    for order in &found.orders {
        let withdrawn = context.journal.withdraw(order.id, true).await?;
        taken.insert(order.backend_host.clone(), !withdrawn);
    }
    let mut left = Vec::new();
    for operation in &found.left {
        let steps = context.journal.steps_of(operation.id).await?;
        let step = steps.into_iter().find(|(resource, _, _)| resource.is_empty()).map(|(_, step, _)| step);
        left.push(Left {
            id: operation.id,
            method: operation.method.clone(),
            backend: operation.backend_host.clone(),
            resource: operation.resource_id.clone(),
            step,
            accepted_at: time(Some(operation.accepted_at)),
            why: why(operation, taken.get(&operation.backend_host).copied().unwrap_or(false)),
        });
    }
    let rows = left.iter().map(|l| {
        [
            l.id.to_string(),
            l.method.clone(),
            l.backend.clone(),
            l.resource.clone().unwrap_or_default(),
            l.step.clone().unwrap_or_default(),
            l.accepted_at.clone(),
            l.why.clone(),
        ]
    });
    let head = ["ID", "Method", "Backend", "Resource", "Step", "Accepted", "Why"];
    let mut text = format!("{host} is not drained: {} open\n", count(left.len()));
    if !left.is_empty() {
        text.push_str(&table(head, rows));
        text.push('\n');
    }
    text.push_str(if taken.values().any(|taken| *taken) {
        "scoria-volume goes on with it and takes no requests meanwhile: run this again to watch, or with --cancel \
         to let it serve again."
    } else {
        "No scoria-volume has taken the order: start it while this runs. It finishes what is open and takes no requests."
    });
    let json = json!({"host": host, "drained": false, "left": left, "taken": taken});
    Ok(Report::new(text, &json)?.ending(Exit::Failed))
}

fn why(operation: &Listing, service_runs: bool) -> String {
    if operation.is_waiting() {
        "an order that no service has taken".to_owned()
    } else if service_runs {
        format!("{} works on it", operation.owner_host)
    } else {
        format!("{}, which worked on it, does not run", operation.owner_host)
    }
}

async fn cancel(context: &Context, host: &str, backends: &[String]) -> Result<Report> {
    let mut withdrawn = Vec::new();
    for order in look(context, backends).await?.orders {
        if context.journal.withdraw(order.id, false).await? {
            withdrawn.push(order.backend_host);
        }
    }
    let text = match withdrawn.is_empty() {
        true => format!("{host} is not being drained. If it has been, start scoria-volume again."),
        false => format!("{} takes requests again.", withdrawn.join(", ")),
    };
    Report::new(text, &json!({"host": host, "withdrawn": withdrawn}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(owner: &str) -> Listing {
        Listing {
            id: 7,
            unique_id: "u".into(),
            method: "create_volume".into(),
            backend_host: "node1@ceph".into(),
            cluster: None,
            resource_type: Some("Volume".into()),
            resource_id: Some("v".into()),
            state: "open".into(),
            outcome: None,
            outcome_detail: None,
            owner: owner.into(),
            owner_host: if owner.is_empty() { String::new() } else { "node1".into() },
            epoch: 1,
            lease_until: chrono::NaiveDateTime::default(),
            accepted_at: chrono::NaiveDateTime::default(),
            updated_at: chrono::NaiveDateTime::default(),
            closed_at: None,
        }
    }

    #[test]
    fn what_is_left_says_whom_it_waits_for() {
        assert_eq!(why(&operation("i"), true), "node1 works on it");
        assert_eq!(why(&operation("i"), false), "node1, which worked on it, does not run");
        assert_eq!(why(&operation(""), true), "an order that no service has taken");
        assert_eq!((count(1), count(0)), ("1 operation is".into(), "0 operations are".into()));
    }
}
