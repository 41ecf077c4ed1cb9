//! The table `scoria_backup_retention`: how many backups of a volume are kept, set for the volume itself.

use diesel::OptionalExtension;
use diesel::sql_types::{Integer, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
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

/// What is set for a volume itself.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, volume_id: &str) -> Result<Option<RetentionRow>> {
    Ok(diesel::sql_query(
        "SELECT volume_id, keep_last, keep_daily, keep_weekly, keep_monthly, time_zone \
         FROM scoria_backup_retention WHERE volume_id = ?",
    )
    .bind::<Text, _>(volume_id)
    .get_result(conn)
    .await
    .optional()?)
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
