//! The `workers` table: Cinder's own record of who works on which resource.
//!
//! The journal knows more, but these rows are what stock services and `cinder-manage` clean up by, so
//! that stock and Scoria can take over from each other (reference volume_rpc.md 2.3). `service_id`,
//! `status`, `race_preventer` and the microseconds of `updated_at` together are the compare-and-swap.

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::error::is_duplicate;
use super::schema::workers;
use super::{Conn, now};
use crate::error::{Code, Error, Result};

/// A row of `workers`.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = workers, check_for_backend(Mysql))]
#[allow(missing_docs)]
pub struct Worker {
    pub id: i32,
    /// `Volume`, `Snapshot`, …
    pub resource_type: String,
    pub resource_id: String,
    /// Status of the resource that the work began in.
    pub status: String,
    pub service_id: Option<i32>,
    pub race_preventer: i32,
    pub updated_at: Option<NaiveDateTime>,
}

/// What a claim is for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Claim {
    /// `Volume` or `Snapshot`.
    pub resource_type: String,
    pub resource_id: String,
    /// Status of the resource now; only `creating`, `deleting`, `downloading` and `uploading` are
    /// cleanable ([`is_cleanable`]).
    pub status: String,
    /// Our row in `services`.
    pub service_id: i32,
}

/// True when stock keeps a row for a resource in this status
/// (`Volume._is_cleanable`, `Snapshot._is_cleanable`).
pub fn is_cleanable(resource_type: &str, status: &str) -> bool {
    match resource_type {
        "Volume" => matches!(status, "creating" | "deleting" | "uploading" | "downloading"),
        "Snapshot" => status == "creating",
        _ => false,
    }
}

/// Makes the resource's row ours, creating it when the sender made none (`set_worker`). Where stock gives
/// up when somebody changed the row in the same moment, this looks again: the message is accepted once
/// only, and would be lost. The row stays locked until the transaction ends, also when it is ours already:
/// a clean-up of unfinished work comes first, or sees the operation that was accepted with the claim.
///
/// # Errors
/// `CleanableInUse` when the row keeps changing.
pub async fn claim(conn: &mut Conn, claim: &Claim) -> Result<Worker> {
    for _ in 0..5 {
        if let Some(worker) = try_claim(conn, claim).await? {
            return Ok(worker);
        }
    }
    Err(Error::new(
        Code::CleanableInUse,
        format!("{} with id {} is being used by another service.", claim.resource_type, claim.resource_id),
    ))
}

/// `None`: the row changed between reading and writing it.
async fn try_claim(conn: &mut Conn, claim: &Claim) -> Result<Option<Worker>> {
    let found: Option<Worker> = workers::table
        .filter(workers::resource_type.eq(&claim.resource_type))
        .filter(workers::resource_id.eq(&claim.resource_id))
        .select(Worker::as_select())
        .for_update()
        .first(conn)
        .await
        .optional()?;
    let Some(worker) = found else {
        let at = now();
        let inserted = diesel::insert_into(workers::table)
            .values((
                workers::updated_at.eq(at),
                workers::resource_type.eq(&claim.resource_type),
                workers::resource_id.eq(&claim.resource_id),
                workers::status.eq(&claim.status),
                workers::service_id.eq(claim.service_id),
                workers::race_preventer.eq(0),
                workers::deleted.eq(false),
                workers::created_at.eq(at),
            ))
            .execute(conn)
            .await;
        return match inserted {
            Ok(_) => find(conn, &claim.resource_type, &claim.resource_id).await,
            Err(e) if is_duplicate(&e) => Ok(None),
            Err(e) => Err(e.into()),
        };
    };
    if worker.service_id == Some(claim.service_id) && worker.status == claim.status {
        return Ok(Some(worker));
    }
    swap(conn, &worker, claim.service_id, &claim.status).await
}

/// The row of a resource.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, resource_type: &str, resource_id: &str) -> Result<Option<Worker>> {
    Ok(workers::table
        .filter(workers::resource_type.eq(resource_type))
        .filter(workers::resource_id.eq(resource_id))
        .select(Worker::as_select())
        .first(conn)
        .await
        .optional()?)
}

/// Takes a row over for cleanup (`worker_claim_for_cleanup`); `None` when somebody was faster.
///
/// # Errors
/// `Database`.
pub async fn claim_for_cleanup(conn: &mut Conn, worker: &Worker, service_id: i32) -> Result<Option<Worker>> {
    swap(conn, worker, service_id, &worker.status).await
}

async fn swap(conn: &mut Conn, worker: &Worker, service_id: i32, status: &str) -> Result<Option<Worker>> {
    let mut update = diesel::update(workers::table)
        .filter(workers::id.eq(worker.id))
        .filter(workers::deleted.eq(false))
        .filter(workers::status.eq(&worker.status))
        .filter(workers::race_preventer.eq(worker.race_preventer))
        .into_boxed();
    update = match worker.service_id {
        Some(id) => update.filter(workers::service_id.eq(id)),
        None => update.filter(workers::service_id.is_null()),
    };
    update = match worker.updated_at {
        Some(at) => update.filter(workers::updated_at.eq(at)),
        None => update.filter(workers::updated_at.is_null()),
    };
    // Cut to what the column keeps, so that the value we return is the value in the row.
    let at = micros(now());
    let race_preventer = worker.race_preventer + 1;
    let matched = update
        .set((
            workers::updated_at.eq(at),
            workers::status.eq(status),
            workers::service_id.eq(service_id),
            workers::race_preventer.eq(race_preventer),
        ))
        .execute(conn)
        .await?;
    Ok((matched > 0).then(|| Worker {
        status: status.to_owned(),
        service_id: Some(service_id),
        race_preventer,
        updated_at: Some(at),
        ..worker.clone()
    }))
}

/// Removes the row at the end of the work, on the condition that the resource's status has changed
/// (`unset_worker`): a row that stays makes the next cleanup look at the resource. Returns whether a
/// row was removed.
///
/// # Errors
/// `Database`.
pub async fn release(conn: &mut Conn, worker: &Worker, status_now: &str) -> Result<bool> {
    if worker.status == status_now {
        return Ok(false);
    }
    let mut delete = diesel::delete(workers::table)
        .filter(workers::id.eq(worker.id))
        .filter(workers::status.eq(&worker.status))
        .into_boxed();
    if let Some(id) = worker.service_id {
        delete = delete.filter(workers::service_id.eq(id));
    }
    Ok(delete.execute(conn).await? > 0)
}

/// Removes whatever row the resource has under our service: for recovery, which has no [`Worker`] in
/// its hands any more.
///
/// # Errors
/// `Database`.
pub async fn release_resource(
    conn: &mut Conn,
    resource_type: &str,
    resource_id: &str,
    service_id: i32,
) -> Result<bool> {
    let deleted = diesel::delete(workers::table)
        .filter(workers::resource_type.eq(resource_type))
        .filter(workers::resource_id.eq(resource_id))
        .filter(workers::service_id.eq(service_id))
        .execute(conn)
        .await?;
    Ok(deleted > 0)
}

/// Makes our row of a resource nobody's, because another service is asked to go on: as stock's rpcapi leaves
/// it before a cast (`CleanableObject.create_worker`). Ours still, it would be cleaned up as work that we
/// never finished.
///
/// # Errors
/// `Database`.
pub async fn hand_over(
    conn: &mut Conn,
    resource_type: &str,
    resource_id: &str,
    service_id: i32,
) -> Result<()> {
    diesel::update(workers::table)
        .filter(workers::resource_type.eq(resource_type))
        .filter(workers::resource_id.eq(resource_id))
        .filter(workers::service_id.eq(service_id))
        .set((
            workers::service_id.eq(None::<i32>),
            workers::race_preventer.eq(workers::race_preventer + 1),
            workers::updated_at.eq(micros(now())),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Which rows a cleanup looks at (`CleanupRequest`).
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct WorkerFilter {
    /// Whose work: the service that is gone.
    pub service_id: Option<i32>,
    pub resource_type: Option<String>,
    pub resource_id: Option<String>,
    /// Only rows not touched since.
    pub until: Option<NaiveDateTime>,
}

/// Rows that may need cleanup, without the sentinel.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, filter: &WorkerFilter) -> Result<Vec<Worker>> {
    let mut query = workers::table
        .filter(workers::deleted.eq(false))
        .filter(workers::resource_type.ne("SENTINEL"))
        .select(Worker::as_select())
        .order(workers::id)
        .into_boxed();
    if let Some(id) = filter.service_id {
        query = query.filter(workers::service_id.eq(id));
    }
    if let Some(kind) = &filter.resource_type {
        query = query.filter(workers::resource_type.eq(kind));
    }
    if let Some(id) = &filter.resource_id {
        query = query.filter(workers::resource_id.eq(id));
    }
    if let Some(until) = filter.until {
        query = query.filter(workers::updated_at.le(until));
    }
    Ok(query.load(conn).await?)
}

fn micros(at: NaiveDateTime) -> NaiveDateTime {
    use chrono::Timelike;
    at.with_nanosecond(at.nanosecond() / 1000 * 1000).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleanable_statuses_are_those_of_cinder() {
        assert!(is_cleanable("Volume", "deleting"));
        assert!(!is_cleanable("Volume", "extending"));
        assert!(is_cleanable("Snapshot", "creating"));
        assert!(!is_cleanable("Snapshot", "deleting"));
    }
}
