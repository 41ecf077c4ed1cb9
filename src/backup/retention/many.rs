//! Retention of many volumes, looked at in sets: so many volumes at once cost a fixed number of SELECTs, whatever they
//! have. What it finds is for whoever previews it and for whoever applies it.

use std::collections::BTreeMap;

use super::{Preview, Reach, counted, policies};
use crate::db;
use crate::db::Conn;
use crate::error::Result;

/// Volumes that are looked at at once.
const PAGE: usize = 500;

/// What retention would do with the backups of one of them.
#[derive(Debug)]
pub struct Looked {
    /// The volume.
    pub volume_id: String,
    /// Backups that it has.
    pub count: usize,
    /// What would be done; or why its rule means nothing.
    pub found: Result<Preview>,
}

/// The next volumes that have backups, after one of them, by their ids: all, or those of a type. Nothing when there are
/// no more.
///
/// # Errors
/// `Database`. A rule that means nothing is the word on its volume only.
pub async fn next(
    conn: &mut Conn,
    volume_type_id: Option<&str>,
    after: &str,
    reach: Reach,
) -> Result<Vec<Looked>> {
    let ids = db::backup_order::volumes_with_backups(conn, volume_type_id, after, PAGE).await?;
    let mut by_volume: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for backup in db::backup_work::of_volumes(conn, &ids).await? {
        by_volume.entry(backup.volume_id.clone()).or_default().push(backup);
    }
    let mut rules = policies(conn, &ids, reach.deleted_volumes).await?;
    let looked = |id: String| {
        let backups = by_volume.remove(&id).unwrap_or_default();
        let policy = rules.remove(&id).unwrap_or(Ok(None));
        let found = policy.and_then(|policy| counted(&id, policy, &backups, reach.failed));
        Looked { volume_id: id, count: backups.len(), found }
    };
    Ok(ids.into_iter().map(looked).collect())
}
