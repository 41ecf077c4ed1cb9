//! Which images and snapshots of a pool are Cinder's already.
//!
//! Several backends may share a pool, and what one of them may take over must not belong to another. So all
//! rows count, whatever their host; and all that is asked is asked at once.

use std::collections::{HashMap, HashSet};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::Conn;
use super::schema::{snapshots, volumes};
use super::volume::CHUNK;
use crate::error::Result;

/// The volumes whose image bears one of these ids in its name: id in the name -> id of the volume.
///
/// # Errors
/// `Database`.
pub async fn volumes_by_name(conn: &mut Conn, ids: &[String]) -> Result<HashMap<String, String>> {
    let mut found = HashMap::new();
    for chunk in ids.chunks(CHUNK) {
        let rows: Vec<(String, Option<String>)> = volumes::table
            .filter(volumes::deleted.eq(false))
            .filter(volumes::id.eq_any(chunk).or(volumes::name_id.eq_any(chunk)))
            .select((volumes::id, volumes::name_id))
            .load(conn)
            .await?;
        found.extend(rows.into_iter().map(|(id, name_id)| (name_id.unwrap_or_else(|| id.clone()), id)));
    }
    Ok(found)
}

/// Those of the ids that snapshots have.
///
/// # Errors
/// `Database`.
pub async fn snapshots_by_name(conn: &mut Conn, ids: &[String]) -> Result<HashSet<String>> {
    let mut found = HashSet::new();
    for chunk in ids.chunks(CHUNK) {
        let rows: Vec<String> = snapshots::table
            .filter(snapshots::deleted.eq(false))
            .filter(snapshots::id.eq_any(chunk))
            .select(snapshots::id)
            .load(conn)
            .await?;
        found.extend(rows);
    }
    Ok(found)
}
