//! The table `scoria_backup_schedules`: when backups are made without anybody asking.
//!
//! A run is taken by one UPDATE that names the time at which it is due: of several services that see it, one changes
//! the row. Of a schedule for a volume type, `scoria_backup_type_schedules` says which.

use chrono::NaiveDateTime;
use diesel::sql_types::{BigInt, Bool, Datetime, Integer, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::{Conn, fitting};
use crate::error::{Code, Error, Result};

/// Characters of an outcome that are kept.
const OUTCOME: usize = 2000;

/// A schedule. Times are naive UTC.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
#[allow(missing_docs)]
pub struct ScheduleRow {
    #[diesel(sql_type = Text)]
    pub id: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub name: Option<String>,
    /// What is backed up: a volume, the volumes of a group, or those of a type.
    #[diesel(sql_type = Nullable<Text>)]
    pub volume_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub group_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub volume_type_id: Option<String>,
    #[diesel(sql_type = Text)]
    pub cron: String,
    /// Name in the IANA database.
    #[diesel(sql_type = Text)]
    pub time_zone: String,
    /// Each nth backup is a full one; 0: only the first.
    #[diesel(sql_type = Integer)]
    pub full_every: i32,
    /// Runs since the last full one.
    #[diesel(sql_type = Integer)]
    pub since_full: i32,
    /// Retention is applied after each run.
    #[diesel(sql_type = Bool)]
    pub retention: bool,
    #[diesel(sql_type = Nullable<Text>)]
    pub container: Option<String>,
    #[diesel(sql_type = Bool)]
    pub paused: bool,
    #[diesel(sql_type = Nullable<Datetime>)]
    pub next_run: Option<NaiveDateTime>,
    #[diesel(sql_type = Nullable<Datetime>)]
    pub last_run: Option<NaiveDateTime>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub last_operation: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_outcome: Option<String>,
}

const COLUMNS: &str = "id, name, volume_id, group_id, \
                         (SELECT t.volume_type_id FROM scoria_backup_type_schedules t \
                          WHERE t.schedule_id = scoria_backup_schedules.id) AS volume_type_id, \
                       cron, time_zone, full_every, since_full, retention, container, paused, next_run, last_run, \
                       last_operation, last_outcome";

#[derive(diesel::QueryableByName)]
struct Clock {
    #[diesel(sql_type = Datetime)]
    now: NaiveDateTime,
}

/// The database's clock, which all hosts share, naive UTC.
///
/// # Errors
/// `Database`.
pub async fn clock(conn: &mut Conn) -> Result<NaiveDateTime> {
    let found: Clock = diesel::sql_query("SELECT UTC_TIMESTAMP(6) AS now").get_result(conn).await?;
    Ok(found.now)
}

/// All schedules, by what is due first.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn) -> Result<Vec<ScheduleRow>> {
    let text = format!(
        "SELECT {COLUMNS} FROM scoria_backup_schedules ORDER BY next_run IS NULL, next_run, created_at, id"
    );
    Ok(diesel::sql_query(text).load(conn).await?)
}

/// The schedule with this id; with this name, when it is one schedule's only.
///
/// # Errors
/// `InvalidInput` when there is none, or several; `Database`.
pub async fn get(conn: &mut Conn, id: &str) -> Result<ScheduleRow> {
    let text = format!("SELECT {COLUMNS} FROM scoria_backup_schedules WHERE id = ? OR name = ? LIMIT 10");
    let mut found: Vec<ScheduleRow> =
        diesel::sql_query(text).bind::<Text, _>(id).bind::<Text, _>(id).load(conn).await?;
    if let Some(at) = found.iter().position(|row| row.id == id) {
        return Ok(found.swap_remove(at));
    }
    match (found.len(), found.pop()) {
        (1, Some(row)) => Ok(row),
        (0, _) => Err(Error::new(
            Code::InvalidInput,
            format!("There is no schedule of backups {id} (scoria-manage backup schedule list)"),
        )),
        (several, _) => Err(Error::new(
            Code::InvalidInput,
            format!("{several} schedules of backups are named {id}: name one by its id"),
        )),
    }
}

/// Makes a schedule; inside the caller's transaction.
///
/// # Errors
/// `Database`.
pub async fn create(conn: &mut Conn, row: &ScheduleRow) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO scoria_backup_schedules (id, name, volume_id, group_id, cron, time_zone, full_every, since_full, \
           retention, container, paused, next_run, created_at, updated_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
    )
    .bind::<Text, _>(&row.id)
    .bind::<Nullable<Text>, _>(&row.name)
    .bind::<Nullable<Text>, _>(&row.volume_id)
    .bind::<Nullable<Text>, _>(&row.group_id)
    .bind::<Text, _>(&row.cron)
    .bind::<Text, _>(&row.time_zone)
    .bind::<Integer, _>(row.full_every)
    .bind::<Bool, _>(row.retention)
    .bind::<Nullable<Text>, _>(&row.container)
    .bind::<Bool, _>(row.paused)
    .bind::<Nullable<Datetime>, _>(row.next_run)
    .execute(conn)
    .await?;
    if let Some(kind) = &row.volume_type_id {
        diesel::sql_query(
            "INSERT INTO scoria_backup_type_schedules (schedule_id, volume_type_id) VALUES (?, ?)",
        )
        .bind::<Text, _>(&row.id)
        .bind::<Text, _>(kind)
        .execute(conn)
        .await?;
    }
    Ok(())
}

/// Writes what an operator may change, and when it is due. False when it is gone.
///
/// # Errors
/// `Database`.
pub async fn update(conn: &mut Conn, row: &ScheduleRow) -> Result<bool> {
    let written = diesel::sql_query(
        "UPDATE scoria_backup_schedules SET name = ?, cron = ?, time_zone = ?, full_every = ?, retention = ?, \
           container = ?, paused = ?, next_run = ?, updated_at = UTC_TIMESTAMP(6) WHERE id = ?",
    )
    .bind::<Nullable<Text>, _>(&row.name)
    .bind::<Text, _>(&row.cron)
    .bind::<Text, _>(&row.time_zone)
    .bind::<Integer, _>(row.full_every)
    .bind::<Bool, _>(row.retention)
    .bind::<Nullable<Text>, _>(&row.container)
    .bind::<Bool, _>(row.paused)
    .bind::<Nullable<Datetime>, _>(row.next_run)
    .bind::<Text, _>(&row.id)
    .execute(conn)
    .await?;
    Ok(written > 0)
}

/// Removes a schedule; its backups stay. False when it was gone. Inside the caller's transaction.
///
/// # Errors
/// `Database`.
pub async fn delete(conn: &mut Conn, id: &str) -> Result<bool> {
    diesel::sql_query("DELETE FROM scoria_backup_type_schedules WHERE schedule_id = ?")
        .bind::<Text, _>(id)
        .execute(conn)
        .await?;
    let removed = diesel::sql_query("DELETE FROM scoria_backup_schedules WHERE id = ?")
        .bind::<Text, _>(id)
        .execute(conn)
        .await?;
    Ok(removed > 0)
}

/// Schedules with a run that is due by the database's clock, the oldest first.
///
/// # Errors
/// `Database`.
pub async fn due(conn: &mut Conn) -> Result<Vec<ScheduleRow>> {
    let text = format!(
        "SELECT {COLUMNS} FROM scoria_backup_schedules WHERE paused = 0 AND next_run <= UTC_TIMESTAMP(6) \
         ORDER BY next_run LIMIT 1000"
    );
    Ok(diesel::sql_query(text).load(conn).await?)
}

/// Takes the run that is due at `due`: the next is at `next`. False when somebody else has it, or the schedule was
/// changed or paused meanwhile.
///
/// # Errors
/// `Database`.
pub async fn claim(
    conn: &mut Conn,
    id: &str,
    due: NaiveDateTime,
    next: Option<NaiveDateTime>,
) -> Result<bool> {
    let taken = diesel::sql_query(
        "UPDATE scoria_backup_schedules SET next_run = ?, last_run = ? \
         WHERE id = ? AND next_run = ? AND paused = 0",
    )
    .bind::<Nullable<Datetime>, _>(next)
    .bind::<Datetime, _>(due)
    .bind::<Text, _>(id)
    .bind::<Datetime, _>(due)
    .execute(conn)
    .await?;
    Ok(taken > 0)
}

/// Notes the operation of a run, and how many there were since the last full one.
///
/// # Errors
/// `Database`.
pub async fn ordered(conn: &mut Conn, id: &str, operation: i64, since_full: i32) -> Result<()> {
    diesel::sql_query(
        "UPDATE scoria_backup_schedules SET last_operation = ?, since_full = ?, last_outcome = NULL WHERE id = ?",
    )
    .bind::<BigInt, _>(operation)
    .bind::<Integer, _>(since_full)
    .bind::<Text, _>(id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes how a run ended, unless there was another one since.
///
/// # Errors
/// `Database`.
pub async fn ended(conn: &mut Conn, id: &str, operation: i64, outcome: &str) -> Result<()> {
    diesel::sql_query(
        "UPDATE scoria_backup_schedules SET last_outcome = ? WHERE id = ? AND last_operation = ?",
    )
    .bind::<Text, _>(fitting(outcome, OUTCOME))
    .bind::<Text, _>(id)
    .bind::<BigInt, _>(operation)
    .execute(conn)
    .await?;
    Ok(())
}

/// A schedule that cannot be understood is due no more; why.
///
/// # Errors
/// `Database`.
pub async fn give_up(conn: &mut Conn, id: &str, why: &str) -> Result<()> {
    diesel::sql_query("UPDATE scoria_backup_schedules SET next_run = NULL, last_outcome = ? WHERE id = ?")
        .bind::<Text, _>(fitting(why, OUTCOME))
        .bind::<Text, _>(id)
        .execute(conn)
        .await?;
    Ok(())
}
