//! Work that somebody began and nobody will finish: its `workers` rows are locked, judged and settled in
//! sets, in one transaction.
//!
//! Stock claims such a row, changes the resource and removes the row in three transactions
//! (`CleanableManager.do_cleanup`). Here the rows stay locked until all is done, so a competing stock
//! service finds them either untouched or gone: its own compare-and-swap then matches nothing.

use std::collections::HashMap;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;

use super::schema::{snapshots, volumes, workers};
use super::volume::CHUNK;
use super::worker::Worker;
use super::{Conn, now};
use crate::error::Result;
use crate::model::transition::{self, VolumeEvent};

/// The rows of `found` that are still exactly as they were found, locked until the transaction ends.
///
/// # Errors
/// `Database`.
pub async fn lock(conn: &mut Conn, found: &[Worker]) -> Result<Vec<Worker>> {
    let mut locked = Vec::with_capacity(found.len());
    for chunk in found.chunks(CHUNK) {
        let rows: Vec<Worker> = workers::table
            .filter(workers::id.eq_any(chunk.iter().map(|w| w.id)))
            .filter(workers::deleted.eq(false))
            .select(Worker::as_select())
            .order(workers::id)
            .for_update()
            .load(conn)
            .await?;
        locked.extend(rows.into_iter().filter(|row| chunk.contains(row)));
    }
    Ok(locked)
}

/// Statuses of volumes that exist, their rows locked.
///
/// # Errors
/// `Database`.
pub async fn volume_statuses(conn: &mut Conn, ids: &[String]) -> Result<HashMap<String, String>> {
    let mut statuses = HashMap::with_capacity(ids.len());
    for chunk in ids.chunks(CHUNK) {
        let rows: Vec<(String, Option<String>)> = volumes::table
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .select((volumes::id, volumes::status))
            .order(volumes::id)
            .for_update()
            .load(conn)
            .await?;
        statuses.extend(rows.into_iter().map(|(id, status)| (id, status.unwrap_or_default())));
    }
    Ok(statuses)
}

/// Statuses of snapshots that exist, their rows locked.
///
/// # Errors
/// `Database`.
pub async fn snapshot_statuses(conn: &mut Conn, ids: &[String]) -> Result<HashMap<String, String>> {
    let mut statuses = HashMap::with_capacity(ids.len());
    for chunk in ids.chunks(CHUNK) {
        let rows: Vec<(String, Option<String>)> = snapshots::table
            .filter(snapshots::id.eq_any(chunk))
            .filter(snapshots::deleted.eq(false))
            .select((snapshots::id, snapshots::status))
            .order(snapshots::id)
            .for_update()
            .load(conn)
            .await?;
        statuses.extend(rows.into_iter().map(|(id, status)| (id, status.unwrap_or_default())));
    }
    Ok(statuses)
}

/// Volumes of `ids` that are uploading become `in-use` when they have an attachment, else `available`
/// (`volume_update_status_based_on_attachment`). Returns how many changed.
///
/// # Errors
/// `Database`.
pub async fn end_uploads(conn: &mut Conn, ids: &[String]) -> Result<usize> {
    let arrow = transition::volume(VolumeEvent::UploadEnded);
    let mut changed = 0;
    for chunk in ids.chunks(CHUNK) {
        changed += diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .filter(volumes::status.eq_any(arrow.from.to_vec()))
            .set((
                volumes::status.eq(sql::<Nullable<Text>>(
                    "IF(EXISTS (SELECT 1 FROM volume_attachment a \
                     WHERE a.volume_id = volumes.id AND a.deleted = 0), 'in-use', 'available')",
                )),
                volumes::updated_at.eq(now()),
            ))
            .execute(conn)
            .await?;
    }
    Ok(changed)
}

/// Makes locked rows ours for work that follows; returns them as they are then. `race_preventer` grows, so
/// that everybody who has read a row before finds it changed.
///
/// # Errors
/// `Database`.
pub async fn take_over(conn: &mut Conn, locked: &[Worker], service_id: i32) -> Result<Vec<Worker>> {
    let at = now();
    let mut taken = Vec::with_capacity(locked.len());
    for chunk in locked.chunks(CHUNK) {
        diesel::update(workers::table)
            .filter(workers::id.eq_any(chunk.iter().map(|w| w.id)))
            .set((
                workers::updated_at.eq(at),
                workers::service_id.eq(service_id),
                workers::race_preventer.eq(workers::race_preventer + 1),
            ))
            .execute(conn)
            .await?;
        taken.extend(chunk.iter().map(|worker| Worker {
            service_id: Some(service_id),
            race_preventer: worker.race_preventer + 1,
            updated_at: Some(at),
            ..worker.clone()
        }));
    }
    Ok(taken)
}

/// Removes locked rows: their work is settled. Returns how many.
///
/// # Errors
/// `Database`.
pub async fn remove(conn: &mut Conn, locked: &[i32]) -> Result<usize> {
    let mut removed = 0;
    for chunk in locked.chunks(CHUNK) {
        removed += diesel::delete(workers::table).filter(workers::id.eq_any(chunk)).execute(conn).await?;
    }
    Ok(removed)
}
