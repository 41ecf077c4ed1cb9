//! Asking the service what it alone can find out.
//!
//! The question goes into the journal, with a deadline, and the answer comes back the same way. A backend of which no
//! service is alive is refused at once: its answer would come when nobody waits for it any more.

use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use uuid::Uuid;

use super::super::Context;
use super::super::output::duration;
use super::super::target::Target;
use crate::error::{Code, Error, Result};
use crate::journal::NewOperation;
use crate::replication::foresight::Inquiry;
use crate::replication::orders::{Order, Request};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);

/// Refuses a backend that has no second site.
pub(super) fn require_replicated(target: &Target) -> Result<()> {
    if target.sites().is_some_and(|sites| sites.len() < 2) {
        return Err(Error::new(
            Code::UnableToFailOver,
            format!("Backend {} is not replicated: its section has no replication_device", target.name()),
        ));
    }
    Ok(())
}

/// Asks, and waits for the answer.
///
/// # Errors
/// `ServiceNotFound` when no service of the backend is alive; `DeadlineExceeded` when none has answered in time; what
/// the service refused; `Cancelled` on Ctrl-C.
pub(in crate::cli) async fn ask<T: DeserializeOwned>(
    context: &Context,
    target: &Target,
    inquiry: Inquiry,
    within: Duration,
) -> Result<T> {
    let host = target.host()?.to_owned();
    let now = crate::db::now();
    if !target.is_up(context, now) {
        let since = match target.heartbeat_age(now) {
            Some(age) => format!("the last heartbeat is {} old", duration(age)),
            None => "it has never run".to_owned(),
        };
        return Err(Error::new(
            Code::ServiceNotFound,
            format!("No service of {} is alive ({since}), and only it can ask Ceph; start it", target.name()),
        ));
    }
    let request = Request::new(Order::Inquire(inquiry));
    let new = NewOperation {
        unique_id: Uuid::new_v4().simple().to_string(),
        method: request.order.method().to_owned(),
        backend_host: host,
        cluster: target.cluster_name().map(str::to_owned),
        request: request.to_text()?,
        timeout: Some(within),
        ..NewOperation::default()
    };
    let id = context.journal.ask(&new).await?;
    tokio::select! {
        answer = answer(context, target, id, within) => answer,
        _ = tokio::signal::ctrl_c() => {
            context.journal.withdraw(id, false).await?;
            Err(Error::new(Code::Cancelled, "Interrupted; the question was withdrawn"))
        }
    }
}

async fn answer<T: DeserializeOwned>(
    context: &Context,
    target: &Target,
    id: i64,
    within: Duration,
) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        let gone = || Error::internal(format!("Operation {id} is gone from the journal"));
        let row = context.journal.find(id).await?.ok_or_else(gone)?;
        if row.is_closed() {
            let Some(document) = context.journal.take_answer(id).await? else {
                let why = row.outcome_detail.unwrap_or_else(|| "it gave no answer".to_owned());
                return Err(Error::new(
                    Code::Invalid,
                    format!("The service of {} refused: {why}", target.name()),
                ));
            };
            return serde_json::from_value(document).map_err(|e| {
                Error::new(
                    Code::BadArguments,
                    "The service's answer cannot be read; use the scoria-manage of the service's version",
                )
                .caused_by(e)
            });
        }
        if Instant::now() >= end {
            context.journal.withdraw(id, false).await?;
            let why = if row.is_waiting() {
                "it has not taken the question; is it scoria-volume, and of this version?"
            } else {
                "it is still at work; ask with a longer --timeout"
            };
            return Err(Error::new(
                Code::DeadlineExceeded,
                format!("The service of {} has not answered in {} s: {why}", target.name(), within.as_secs()),
            ));
        }
        tokio::time::sleep(PERIOD).await;
    }
}
