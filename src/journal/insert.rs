//! The row of an operation that begins: of a request that somebody has accepted, or of an order that nobody has yet.

use std::time::Duration;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Datetime, Nullable};
use diesel_async::RunQueryDsl;

use super::{NewOperation, Owner, db_now, micros};
use crate::db::Conn;
use crate::db::error::is_duplicate;
use crate::db::schema::scoria_operations as ops;
use crate::error::Result;

/// Microseconds that the lease of an order has: it ran out before it began, so the first who looks adopts it.
const NO_LEASE: i64 = -1_000_000;

/// Inserts the row, `by` whom and how long he has it; its number, or `None` when the message is known.
pub(super) async fn insert(
    conn: &mut Conn,
    new: &NewOperation,
    by: Option<(&Owner, Duration)>,
) -> Result<Option<i64>> {
    // The first to adopt an order becomes its first owner.
    let (instance, host, epoch, lease) = match by {
        Some((owner, lease)) => (owner.instance.as_str(), owner.host.as_str(), 1, micros(lease)),
        None => ("", "", 0, NO_LEASE),
    };
    let (resource_type, resource_id) = match &new.resource {
        Some((kind, id)) => (Some(kind), Some(id)),
        None => (None, None),
    };
    let deadline = new.timeout.map(|t| {
        sql::<Nullable<Datetime>>("UTC_TIMESTAMP(6) + INTERVAL ")
            .bind::<BigInt, _>(micros(t))
            .sql(" MICROSECOND")
    });
    let lease = sql::<Datetime>("UTC_TIMESTAMP(6) + INTERVAL ").bind::<BigInt, _>(lease).sql(" MICROSECOND");
    let inserted = diesel::insert_into(ops::table)
        .values((
            (
                ops::unique_id.eq(&new.unique_id),
                ops::method.eq(&new.method),
                ops::backend_host.eq(&new.backend_host),
                ops::cluster.eq(&new.cluster),
                ops::resource_type.eq(resource_type),
                ops::resource_id.eq(resource_id),
                ops::request.eq(&new.request),
                ops::reply_queue.eq(new.reply.as_ref().map(|r| &r.queue)),
                ops::reply_msg_id.eq(new.reply.as_ref().map(|r| &r.msg_id)),
                deadline.map(|d| ops::deadline.eq(d)),
            ),
            ops::state.eq("open"),
            ops::owner.eq(instance),
            ops::owner_host.eq(host),
            ops::epoch.eq(epoch),
            ops::lease_until.eq(lease),
            ops::accepted_at.eq(db_now()),
            ops::updated_at.eq(db_now()),
        ))
        .execute(conn)
        .await;
    match inserted {
        Ok(_) => {}
        Err(e) if is_duplicate(&e) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    Ok(Some(ops::table.filter(ops::unique_id.eq(&new.unique_id)).select(ops::id).first(conn).await?))
}
