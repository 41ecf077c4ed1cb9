//! Answers namespace `backup`: orders are written down, rules and schedules are kept, what is under way is told.

use serde::Serialize;
use serde_json::{Value, json};
use tracing::info;

use crate::backup::orders::{self, Order};
use crate::backup::{Backups, cancel, retention, schedule};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::{Listing, Submitted};
use crate::rpc::method::PolicyCall;
use crate::service::taken::Taken;

/// The answer to a call.
pub(super) async fn answer(b: &Backups, call: &PolicyCall) -> Result<Value> {
    match call {
        PolicyCall::Order { order, id } => {
            let (operation, new) = submit(b, order.clone(), id.clone()).await?;
            Ok(json!({"operation": operation, "new": new}))
        }
        PolicyCall::GetRetention { volume } => {
            let found =
                b.db.read("retention of a volume", async |conn| {
                    db::volume::get(conn, volume).await?;
                    retention::policy(conn, volume, false).await
                })
                .await?;
            Ok(json!({"volume_id": volume, "policy": to_value(&found)?}))
        }
        PolicyCall::SetRetention { volume, keep, time_zone } => {
            let row = retention::row(volume, *keep, time_zone.as_deref())?;
            let set =
                b.db.write("retention of a volume", async |conn| {
                    db::volume::get(conn, volume).await?;
                    db::backup_retention::set(conn, &row).await?;
                    retention::policy(conn, volume, false).await
                })
                .await?;
            info!(volume.id = volume, "retention of a volume was set");
            Ok(json!({"volume_id": volume, "policy": to_value(&set)?}))
        }
        PolicyCall::ClearRetention { volume } => {
            let cleared = b
                .db
                .write("retention of a volume", async |conn| db::backup_retention::clear(conn, volume).await)
                .await?;
            Ok(json!({"volume_id": volume, "cleared": cleared}))
        }
        PolicyCall::PreviewRetention { volume, reach } => {
            let found = b
                .db
                .read("retention of a volume", async |conn| retention::preview(conn, volume, *reach).await)
                .await?;
            to_value(&found)
        }
        PolicyCall::CreateSchedule { of, given } => {
            let made = schedule::create(&b.db, of, given).await?;
            info!(schedule.id = made.id, "a schedule of backups was made");
            to_value(&made)
        }
        PolicyCall::ListSchedules => to_value(&schedule::list(&b.db).await?),
        PolicyCall::ShowSchedule { id } => to_value(&schedule::show(&b.db, id).await?),
        PolicyCall::UpdateSchedule { id, given, paused } => {
            to_value(&schedule::update(&b.db, id, given, *paused).await?)
        }
        PolicyCall::DeleteSchedule { id } => Ok(json!({"deleted": schedule::delete(&b.db, id).await?})),
        PolicyCall::RunSchedule { id } => {
            Ok(json!({"operation": schedule::run_now(&b.db, &b.host, id).await?, "new": true}))
        }
        PolicyCall::GetOperation { operation } => {
            find(b, *operation).await?;
            taken(b, &b.journal_host()).progress(*operation).await
        }
        PolicyCall::ListOperations { open } => taken(b, &b.journal_host()).list(*open).await,
        PolicyCall::CancelOperation { operation } => {
            let row = find(b, *operation).await?;
            cancel::check(&row)?;
            let (order, new) = submit(b, Order::Cancel { operation: row.id }, None).await?;
            Ok(json!({"operation": order, "new": new, "cancels": row.id}))
        }
    }
}

async fn submit(b: &Backups, order: Order, id: Option<String>) -> Result<(i64, bool)> {
    let mut new = orders::entry(&b.host, order)?;
    if let Some(id) = id {
        if let Some(known) = b.journal.known(&id).await? {
            return Ok((known, false));
        }
        new.unique_id = id;
    }
    Ok(match b.journal.submit(&new).await? {
        Submitted::New(number) => {
            info!(operation.id = number, op = new.method, "an order for the backup service came over RPC");
            (number, true)
        }
        Submitted::Open(number) => (number, false),
    })
}

async fn find(b: &Backups, operation: i64) -> Result<Listing> {
    let found = b.journal.find(operation).await?;
    found.filter(|row| row.backend_host == b.journal_host()).ok_or_else(|| {
        let text = format!(
            "There is no operation {operation} of the backup service of {}, or it was purged",
            b.host
        );
        Error::new(Code::InvalidInput, text)
    })
}

/// What is told of this service's operations: requests and orders.
fn taken<'a>(b: &'a Backups, host: &'a str) -> Taken<'a> {
    Taken { journal: &b.journal, host, prefix: "", on: "backups" }
}

fn to_value(answer: &impl Serialize) -> Result<Value> {
    serde_json::to_value(answer)
        .map_err(|e| Error::internal("An answer cannot be written as JSON").caused_by(e))
}
