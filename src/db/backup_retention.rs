//! How many backups of volumes are kept: the table `scoria_backup_retention`, which says it for a volume itself, and what
//! the volumes' types say. Of many volumes at once.

use std::collections::{BTreeMap, BTreeSet};

use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{Integer, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::schema::{volume_type_extra_specs, volume_types, volumes};
use crate::error::Result;

/// What is set for a volume. A number that is `None` keeps nothing for its reason.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
#[allow(missing_docs)]
pub struct RetentionRow {
    #[diesel(sql_type = Text)]
    pub volume_id: String,
    #[diesel(sql_type = Nullable<Integer>)]
    pub keep_last: Option<i32>,
    #[diesel(sql_type = Nullable<Integer>)]
    pub keep_daily: Option<i32>,
    #[diesel(sql_type = Nullable<Integer>)]
    pub keep_weekly: Option<i32>,
    #[diesel(sql_type = Nullable<Integer>)]
    pub keep_monthly: Option<i32>,
    /// Name in the IANA database.
    #[diesel(sql_type = Text)]
    pub time_zone: String,
}

/// What is set for these volumes themselves; nothing for those that have no rule of their own.
///
/// # Errors
/// `Database`.
pub async fn of_volumes(conn: &mut Conn, ids: &[String]) -> Result<Vec<RetentionRow>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = diesel::sql_query(format!(
        "SELECT volume_id, keep_last, keep_daily, keep_weekly, keep_monthly, time_zone \
         FROM scoria_backup_retention WHERE volume_id IN ({})",
        vec!["?"; ids.len()].join(", ")
    ))
    .into_boxed::<Mysql>();
    for id in ids {
        query = query.bind::<Text, _>(id);
    }
    Ok(query.load(conn).await?)
}

/// (volume, id of its type) of those volumes that exist, and of deleted ones, too, if that is asked for: their rows stay
/// until somebody purges them.
///
/// # Errors
/// `Database`.
pub async fn types_of(conn: &mut Conn, ids: &[String], deleted: bool) -> Result<Vec<(String, String)>> {
    let query = volumes::table
        .filter(volumes::id.eq_any(ids))
        .filter(volumes::volume_type_id.ne(""))
        .select((volumes::id, volumes::volume_type_id));
    Ok(match deleted {
        true => query.load(conn).await?,
        false => query.filter(volumes::deleted.eq(false)).load(conn).await?,
    })
}

/// Name and extra specs of each of these types, also of deleted ones: a volume may outlive its type.
///
/// # Errors
/// `Database`.
pub async fn said_by_types(
    conn: &mut Conn,
    ids: &BTreeSet<&str>,
) -> Result<BTreeMap<String, (String, BTreeMap<String, String>)>> {
    let names: Vec<(String, Option<String>)> = volume_types::table
        .filter(volume_types::id.eq_any(ids))
        .select((volume_types::id, volume_types::name))
        .load(conn)
        .await?;
    let specs: Vec<(String, Option<String>, Option<String>)> = volume_type_extra_specs::table
        .filter(volume_type_extra_specs::volume_type_id.eq_any(ids))
        .filter(volume_type_extra_specs::deleted.eq(false))
        .select((
            volume_type_extra_specs::volume_type_id,
            volume_type_extra_specs::key,
            volume_type_extra_specs::value,
        ))
        .load(conn)
        .await?;
    let mut said: BTreeMap<_, _> =
        names.into_iter().map(|(id, name)| (id, (name.unwrap_or_default(), BTreeMap::new()))).collect();
    for (id, key, value) in specs {
        if let (Some((_, specs)), Some(key)) = (said.get_mut(&id), key) {
            specs.insert(key, value.unwrap_or_default());
        }
    }
    Ok(said)
}

/// Sets it, in place of what was set.
///
/// # Errors
/// `Database`.
pub async fn set(conn: &mut Conn, row: &RetentionRow) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO scoria_backup_retention \
           (volume_id, keep_last, keep_daily, keep_weekly, keep_monthly, time_zone, created_at, updated_at) \
         VALUES (?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6)) \
         ON DUPLICATE KEY UPDATE keep_last = VALUES(keep_last), keep_daily = VALUES(keep_daily), \
           keep_weekly = VALUES(keep_weekly), keep_monthly = VALUES(keep_monthly), \
           time_zone = VALUES(time_zone), updated_at = UTC_TIMESTAMP(6)",
    )
    .bind::<Text, _>(&row.volume_id)
    .bind::<Nullable<Integer>, _>(row.keep_last)
    .bind::<Nullable<Integer>, _>(row.keep_daily)
    .bind::<Nullable<Integer>, _>(row.keep_weekly)
    .bind::<Nullable<Integer>, _>(row.keep_monthly)
    .bind::<Text, _>(&row.time_zone)
    .execute(conn)
    .await?;
    Ok(())
}

/// From now on the volume's type decides. False when nothing was set.
///
/// # Errors
/// `Database`.
pub async fn clear(conn: &mut Conn, volume_id: &str) -> Result<bool> {
    let removed = diesel::sql_query("DELETE FROM scoria_backup_retention WHERE volume_id = ?")
        .bind::<Text, _>(volume_id)
        .execute(conn)
        .await?;
    Ok(removed > 0)
}
