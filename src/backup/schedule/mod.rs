//! Schedules: backups that nobody asks for each time.
//!
//! They are rows of Cinder's database, so any backup service that is up runs them; a run is one service's alone, because
//! it is taken by an UPDATE that names when it was due, in one transaction with the order that does the work. Runs that
//! were missed while no service was up, or while one was under way, come to one run, at once.

mod clock;

pub use clock::Clock;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use super::Backups;
use super::ordered::Create;
use super::orders::{self, Order};
use crate::db;
use crate::db::backup_schedule::ScheduleRow;
use crate::db::{Conn, Db};
use crate::error::{Code, Error, Result};
use crate::journal::Journal;

/// The most runs between two full backups.
const MOST: i64 = 10_000;
/// Characters of a name, or of a pool's.
const NAME: usize = 255;

/// What an operator says of a schedule; `None` leaves things as they are, or as they are usually.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// For people.
    pub name: Option<String>,
    /// Minute, hour, day of month, month, day of week.
    pub cron: Option<String>,
    /// Name in the IANA database (`UTC`).
    pub time_zone: Option<String>,
    /// Each nth backup is a full one; 0: only the first (1: all are).
    pub full_every: Option<i64>,
    /// Apply retention after each run (no).
    pub retention: Option<bool>,
    /// Pool.
    pub container: Option<String>,
}

/// A schedule for people and scripts. Times are UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct View {
    pub id: String,
    pub name: Option<String>,
    pub volume_id: Option<String>,
    pub group_id: Option<String>,
    pub volume_type_id: Option<String>,
    pub cron: String,
    pub time_zone: String,
    pub full_every: i32,
    pub retention: bool,
    pub container: Option<String>,
    pub paused: bool,
    pub next_run: Option<String>,
    pub last_run: Option<String>,
    pub last_operation: Option<i64>,
    /// `succeeded`, or what was wrong; `None` while it runs.
    pub last_outcome: Option<String>,
}

impl From<ScheduleRow> for View {
    fn from(row: ScheduleRow) -> View {
        let time =
            |at: Option<chrono::NaiveDateTime>| at.map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string());
        View {
            id: row.id,
            name: row.name,
            volume_id: row.volume_id,
            group_id: row.group_id,
            volume_type_id: row.volume_type_id,
            cron: row.cron,
            time_zone: row.time_zone,
            full_every: row.full_every,
            retention: row.retention,
            container: row.container,
            paused: row.paused,
            next_run: time(row.next_run),
            last_run: time(row.last_run),
            last_operation: row.last_operation,
            last_outcome: row.last_outcome,
        }
    }
}

/// What a schedule backs up: one of these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Of {
    /// A volume, by its id.
    pub volume: Option<String>,
    /// The volumes of a group as of one instant, by its id.
    pub group: Option<String>,
    /// All volumes of a type, by its id or its name.
    pub volume_type: Option<String>,
}

impl Of {
    /// A volume.
    pub fn volume(id: &str) -> Of {
        Of { volume: Some(id.to_owned()), ..Of::default() }
    }
}

/// Makes a schedule.
///
/// # Errors
/// `InvalidInput` for what means nothing, with the reason; `VolumeNotFound`, `VolumeTypeNotFound`; `Database`.
pub async fn create(db: &Db, of: &Of, given: &Given) -> Result<View> {
    let Some(cron) = given.cron.clone() else {
        return Err(Error::new(Code::InvalidInput, "A schedule needs a cron line"));
    };
    let id = Uuid::new_v4().to_string();
    let blank = ScheduleRow {
        id: id.clone(),
        name: None,
        volume_id: of.volume.clone(),
        group_id: of.group.clone(),
        volume_type_id: None,
        cron,
        time_zone: "UTC".to_owned(),
        full_every: 1,
        since_full: 0,
        retention: false,
        container: None,
        paused: false,
        next_run: None,
        last_run: None,
        last_operation: None,
        last_outcome: None,
    };
    let row = changed(blank, given)?;
    let clock = Clock::new(&row.cron, &row.time_zone)?;
    db.write("a schedule of backups", async |conn| {
        let volume_type_id = match (&of.volume, &of.group, &of.volume_type) {
            (Some(volume), None, None) => {
                db::volume::get(conn, volume).await?;
                None
            }
            (None, Some(group), None) if db::group::find(conn, group).await?.is_some() => None,
            (None, Some(group), None) => {
                return Err(Error::new(Code::InvalidInput, format!("There is no group {group}")));
            }
            (None, None, Some(kind)) => Some(db::volume_type::resolve(conn, kind).await?.id),
            _ => return Err(Error::new(Code::InvalidInput, "Name one of: a volume, a group, a volume type")),
        };
        let next = clock.next(db::backup_schedule::clock(conn).await?)?;
        let row = ScheduleRow { next_run: Some(next), volume_type_id, ..row.clone() };
        db::backup_schedule::create(conn, &row).await?;
        db::backup_schedule::get(conn, &id).await.map(View::from)
    })
    .await
}

/// A row with what is given, checked.
fn changed(row: ScheduleRow, given: &Given) -> Result<ScheduleRow> {
    for (what, text) in [("name", &given.name), ("container", &given.container)] {
        if text.as_ref().is_some_and(|text| text.is_empty() || text.chars().count() > NAME) {
            return Err(Error::new(
                Code::InvalidInput,
                format!("The {what} of a schedule has 1 to {NAME} characters"),
            ));
        }
    }
    let full_every = match given.full_every {
        None => row.full_every,
        Some(every) if (0..=MOST).contains(&every) => i32::try_from(every).unwrap_or(i32::MAX),
        Some(every) => {
            let text = format!("full_every is {every}: it must be between 0 (only the first) and {MOST}");
            return Err(Error::new(Code::InvalidInput, text));
        }
    };
    Ok(ScheduleRow {
        name: given.name.clone().or(row.name),
        cron: given.cron.clone().unwrap_or(row.cron),
        time_zone: given.time_zone.clone().unwrap_or(row.time_zone),
        full_every,
        retention: given.retention.unwrap_or(row.retention),
        container: given.container.clone().or(row.container),
        ..row
    })
}

/// Changes a schedule; when it is due is reckoned anew from now on.
///
/// # Errors
/// As [`create`].
pub async fn update(db: &Db, id: &str, given: &Given, paused: Option<bool>) -> Result<View> {
    db.write("a schedule of backups", async |conn| {
        let row = changed(db::backup_schedule::get(conn, id).await?, given)?;
        let paused = paused.unwrap_or(row.paused);
        let clock = Clock::new(&row.cron, &row.time_zone)?;
        let next = match paused {
            true => None,
            false => Some(clock.next(db::backup_schedule::clock(conn).await?)?),
        };
        let row = ScheduleRow { paused, next_run: next, ..row };
        db::backup_schedule::update(conn, &row).await?;
        db::backup_schedule::get(conn, &row.id).await.map(View::from)
    })
    .await
}

/// All schedules, by what is due first.
///
/// # Errors
/// `Database`.
pub async fn list(db: &Db) -> Result<Vec<View>> {
    let rows = db.read("schedules of backups", async |conn| db::backup_schedule::list(conn).await).await?;
    Ok(rows.into_iter().map(View::from).collect())
}

/// One schedule, by its id or its name.
///
/// # Errors
/// `InvalidInput` when there is none; `Database`.
pub async fn show(db: &Db, id: &str) -> Result<View> {
    let row = db.read("a schedule of backups", async |conn| db::backup_schedule::get(conn, id).await).await?;
    Ok(View::from(row))
}

/// Removes a schedule; what it has made stays. Answers its id.
///
/// # Errors
/// As [`show`].
pub async fn delete(db: &Db, id: &str) -> Result<String> {
    db.write("a schedule of backups", async |conn| {
        let row = db::backup_schedule::get(conn, id).await?;
        db::backup_schedule::delete(conn, &row.id).await?;
        Ok(row.id)
    })
    .await
}

/// Runs a schedule now, by the backup service of `host`, whether it is paused or not; when it is due next stays. The
/// operation's number.
///
/// # Errors
/// As [`show`].
pub async fn run_now(db: &Db, host: &str, id: &str) -> Result<i64> {
    db.write("a run of a schedule", async |conn| {
        let row = db::backup_schedule::get(conn, id).await?;
        order(conn, host, &row, "now").await
    })
    .await
}

/// Writes the order of a run down, in the caller's transaction.
async fn order(conn: &mut Conn, host: &str, row: &ScheduleRow, due: &str) -> Result<i64> {
    let is_first = row.last_operation.is_none();
    let is_full = match row.full_every {
        0 => false,
        every => is_first || row.since_full.saturating_add(1) >= every,
    };
    let create = Create {
        volume: row.volume_id.clone(),
        group: row.group_id.clone(),
        volume_type: row.volume_type_id.clone(),
        incremental: !is_full,
        name: row.name.clone(),
        description: None,
        container: row.container.clone(),
        retention: row.retention,
        schedule: Some((row.id.clone(), due.to_owned())),
    };
    let number = Journal::submit_in(conn, &orders::entry(host, Order::Create(Box::new(create)))?).await?;
    let since_full = if is_full { 0 } else { row.since_full.saturating_add(1) };
    db::backup_schedule::ordered(conn, &row.id, number, since_full).await?;
    Ok(number)
}

/// Takes the runs that are due now and that nobody else has taken. How many.
///
/// # Errors
/// `Database`.
pub async fn take_due(b: &Backups) -> Result<usize> {
    let due = b.db.read("schedules that are due", async |conn| db::backup_schedule::due(conn).await).await?;
    let mut taken = 0;
    for row in due {
        match take(b, &row).await {
            Ok(Some(number)) => {
                taken += 1;
                info!(schedule.id = row.id, operation.id = number, "a scheduled backup begins");
            }
            Ok(None) => {}
            Err(error) if error.code() == Code::InvalidInput => {
                warn!(schedule.id = row.id, %error, "a schedule cannot be run, and is due no more");
                let why = error.user();
                b.db.write("a schedule that cannot be run", async |conn| {
                    db::backup_schedule::give_up(conn, &row.id, why).await
                })
                .await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

async fn take(b: &Backups, row: &ScheduleRow) -> Result<Option<i64>> {
    let Some(due) = row.next_run else { return Ok(None) };
    let clock = Clock::new(&row.cron, &row.time_zone)?;
    b.db.write("a run that is due", async |conn| {
        // From now on, not from when it was due: what was missed is this one run.
        let next = clock.next(db::backup_schedule::clock(conn).await?)?;
        if !db::backup_schedule::claim(conn, &row.id, due, Some(next)).await? {
            return Ok(None);
        }
        let fresh = db::backup_schedule::get(conn, &row.id).await?;
        let text = due.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        order(conn, &b.host, &fresh, &text).await.map(Some)
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row() -> ScheduleRow {
        ScheduleRow {
            id: "s".into(),
            name: Some("nightly".into()),
            volume_id: Some("v".into()),
            group_id: None,
            volume_type_id: None,
            cron: "0 1 * * *".into(),
            time_zone: "UTC".into(),
            full_every: 7,
            since_full: 0,
            retention: true,
            container: None,
            paused: false,
            next_run: None,
            last_run: None,
            last_operation: None,
            last_outcome: None,
        }
    }

    #[test]
    fn what_is_given_changes_and_the_rest_stays() {
        let given = Given { full_every: Some(0), retention: Some(false), ..Given::default() };
        let after = changed(row(), &given).unwrap();
        assert_eq!(after, ScheduleRow { full_every: 0, retention: false, ..row() });
        for given in [
            Given { full_every: Some(-1), ..Given::default() },
            Given { full_every: Some(i64::MAX), ..Given::default() },
            Given { name: Some(String::new()), ..Given::default() },
            Given { container: Some("x".repeat(256)), ..Given::default() },
        ] {
            assert_eq!(changed(row(), &given).unwrap_err().code(), Code::InvalidInput, "{given:?}");
        }
    }
}
