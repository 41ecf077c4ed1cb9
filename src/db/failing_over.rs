//! The status `failing-over`, which cinder-api writes before it casts a failover, and which an operator's order
//! needs when no cinder-api is there.
//!
//! Nothing but the end of the operation changes it, so whoever waits in it is not taken up twice. Conditional, as
//! the API does it: a backend, a group or a volume that is not well is refused, and stays as it is. All functions
//! here are for one transaction with a step of the operation, or may be repeated.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::{clusters, groups, services, volumes};
use super::volume::CHUNK;
use super::{Conn, group, now};
use crate::error::Result;
use crate::model::ReplicationStatus;
use crate::model::transition::BEING_MADE_OR_DELETED;

const WELL: [&str; 2] = ["enabled", "failed-over"];
const WAITING: &str = "failing-over";

/// What a conditional change came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marked {
    /// It waits now.
    Done,
    /// It is in this status, and stays in it.
    Refused(String),
}

/// The rows of a service, and of its Cinder cluster with all members: cinder-api asks all of them, and so does
/// this. `again`: an earlier try of the same operation may have marked them.
///
/// # Errors
/// `Database`.
pub async fn backend(conn: &mut Conn, service: i32, cluster: Option<&str>, again: bool) -> Result<Marked> {
    let status = match cluster {
        Some(name) => clusters::table
            .filter(clusters::name.eq(name))
            .filter(clusters::deleted.eq(false))
            .select(clusters::replication_status)
            .for_update()
            .first::<Option<String>>(conn)
            .await
            .optional()?,
        None => services::table
            .filter(services::id.eq(service))
            .select(services::replication_status)
            .for_update()
            .first::<Option<String>>(conn)
            .await
            .optional()?,
    };
    let status = status.flatten().unwrap_or_default();
    let is_ready = WELL.contains(&status.as_str()) || again && status == WAITING;
    if !is_ready {
        return Ok(Marked::Refused(status));
    }
    let waiting = Some(WAITING);
    if let Some(name) = cluster {
        diesel::update(clusters::table)
            .filter(clusters::name.eq(name))
            .filter(clusters::deleted.eq(false))
            .set((clusters::replication_status.eq(waiting), clusters::updated_at.eq(now())))
            .execute(conn)
            .await?;
    }
    let mut members = diesel::update(services::table)
        .filter(services::deleted.eq(false))
        .filter(services::replication_status.eq_any(WELL))
        .into_boxed();
    members = match cluster {
        Some(name) => members.filter(services::cluster_name.eq(name)),
        None => members.filter(services::id.eq(service)),
    };
    members
        .set((services::replication_status.eq(waiting), services::updated_at.eq(services::updated_at)))
        .execute(conn)
        .await?;
    Ok(Marked::Done)
}

/// A group and all its members; `again` as for [`backend`].
///
/// # Errors
/// `Database`.
pub async fn whole_group(conn: &mut Conn, id: &str, again: bool) -> Result<Marked> {
    let found = group::lock(conn, id).await?;
    let status = found.and_then(|g| g.replication_status).unwrap_or_default();
    let is_ready = WELL.contains(&status.as_str()) || again && status == WAITING;
    if !is_ready {
        return Ok(Marked::Refused(status));
    }
    diesel::update(groups::table)
        .filter(groups::id.eq(id))
        .set((groups::replication_status.eq(WAITING), groups::updated_at.eq(now())))
        .execute(conn)
        .await?;
    diesel::update(volumes::table)
        .filter(volumes::group_id.eq(id))
        .filter(volumes::deleted.eq(false))
        .filter(volumes::replication_status.eq_any(WELL))
        .set((volumes::replication_status.eq(WAITING), volumes::updated_at.eq(now())))
        .execute(conn)
        .await?;
    Ok(Marked::Done)
}

/// Those of `ids` that may be moved by themselves; answers each with the replication status that it had.
///
/// # Errors
/// `Database`.
pub async fn some_volumes(conn: &mut Conn, ids: &[String]) -> Result<BTreeMap<String, String>> {
    let movable = WELL.into_iter().chain([ReplicationStatus::FailoverError.as_str()]).collect::<Vec<_>>();
    let mut before = BTreeMap::new();
    for chunk in ids.chunks(CHUNK) {
        let found: Vec<(String, Option<String>)> = volumes::table
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .filter(volumes::replication_status.eq_any(&movable))
            .filter(volumes::status.is_null().or(volumes::status.ne_all(BEING_MADE_OR_DELETED.to_vec())))
            .select((volumes::id, volumes::replication_status))
            .for_update()
            .load(conn)
            .await?;
        let marked: Vec<&String> = found.iter().map(|(id, _)| id).collect();
        diesel::update(volumes::table)
            .filter(volumes::id.eq_any(marked))
            .set((volumes::replication_status.eq(WAITING), volumes::updated_at.eq(now())))
            .execute(conn)
            .await?;
        before.extend(found.into_iter().map(|(id, status)| (id, status.unwrap_or_default())));
    }
    Ok(before)
}
