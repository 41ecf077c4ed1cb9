//! Drills of a failover (`scoria_tests`): which clones of copies there are, and what has to go with them.
//!
//! Nobody but this table knows of a drill's clones, so each is written down before it is made, and stays until it
//! is gone.

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::sql_types::{BigInt, Bool, Datetime, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::volume::CHUNK;
use crate::error::Result;

/// How far the clone of a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Ordered; a snapshot may have been taken.
    Making,
    /// The snapshot is there, on the volume's own site.
    Taken,
    /// The clone may be there: its site and its snapshot are known.
    Cloning,
    /// It can be used.
    Ready,
    /// It could not be made.
    Failed,
    /// It is being removed, or could not be removed yet.
    Removing,
}

impl State {
    /// The text in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Making => "making",
            State::Taken => "taken",
            State::Cloning => "cloning",
            State::Ready => "ready",
            State::Failed => "failed",
            State::Removing => "removing",
        }
    }

    /// Whether work on the clone goes on.
    pub fn is_open(text: &str) -> bool {
        [State::Making, State::Taken, State::Cloning].iter().any(|s| s.as_str() == text)
    }
}

/// One volume of a drill.
#[derive(Debug, Clone, Default, PartialEq, diesel::QueryableByName)]
#[allow(missing_docs)]
pub struct Drill {
    #[diesel(sql_type = Text)]
    pub test_id: String,
    #[diesel(sql_type = Text)]
    pub volume_id: String,
    /// `host@backend` or `cluster@backend`.
    #[diesel(sql_type = Text)]
    pub backend: String,
    /// Site that served the volume.
    #[diesel(sql_type = Text)]
    pub source: String,
    /// Site of the clone; empty until it is known.
    #[diesel(sql_type = Text)]
    pub site: String,
    #[diesel(sql_type = Text)]
    pub pool: String,
    /// Image of the volume.
    #[diesel(sql_type = Text)]
    pub image: String,
    #[diesel(sql_type = Text)]
    pub clone_pool: String,
    #[diesel(sql_type = Text)]
    pub clone: String,
    #[diesel(sql_type = Text)]
    pub snapshot: String,
    /// The snapshot was taken for the drill.
    #[diesel(sql_type = Bool)]
    pub own_snapshot: bool,
    #[diesel(sql_type = Text)]
    pub state: String,
    /// Bytes.
    #[diesel(sql_type = BigInt)]
    pub size: i64,
    /// What the clone shows; `None` when nobody has recorded it.
    #[diesel(sql_type = Nullable<Datetime>)]
    pub point_in_time: Option<NaiveDateTime>,
    /// Why it failed, or what is in the way of its removal.
    #[diesel(sql_type = Nullable<Text>)]
    pub detail: Option<String>,
    #[diesel(sql_type = Datetime)]
    pub created_at: NaiveDateTime,
}

const COLUMNS: &str = "test_id, volume_id, backend, source, site, pool, image, clone_pool, clone, snapshot, \
                       own_snapshot, state, size, point_in_time, detail, created_at";

/// Writes the volumes of a new drill down; those that are there already stay as they are.
///
/// # Errors
/// `Database`.
pub async fn begin(conn: &mut Conn, rows: &[Drill]) -> Result<()> {
    for chunk in rows.chunks(CHUNK) {
        let marks =
            vec!["(?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?, ?, 0, NULL, NULL, UTC_TIMESTAMP(6))"; chunk.len()];
        let mut query = diesel::sql_query(format!(
            "INSERT INTO scoria_tests ({COLUMNS}) VALUES {} ON DUPLICATE KEY UPDATE test_id = VALUES(test_id)",
            marks.join(",")
        ))
        .into_boxed::<Mysql>();
        for row in chunk {
            query = query
                .bind::<Text, _>(&row.test_id)
                .bind::<Text, _>(&row.volume_id)
                .bind::<Text, _>(&row.backend)
                .bind::<Text, _>(&row.source)
                .bind::<Text, _>(&row.pool)
                .bind::<Text, _>(&row.image)
                .bind::<Text, _>(&row.clone_pool)
                .bind::<Text, _>(&row.clone)
                .bind::<Text, _>(&row.snapshot)
                .bind::<Bool, _>(row.own_snapshot)
                .bind::<Text, _>(State::Making.as_str());
        }
        query.execute(conn).await?;
    }
    Ok(())
}

/// The volumes of the drills of a backend, of one or of all; of all backends without `backend`.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, backend: Option<&str>, test_id: Option<&str>) -> Result<Vec<Drill>> {
    Ok(diesel::sql_query(format!(
        "SELECT {COLUMNS} FROM scoria_tests WHERE backend = COALESCE(?, backend) \
         AND test_id = COALESCE(?, test_id) ORDER BY created_at, test_id, volume_id"
    ))
    .bind::<Nullable<Text>, _>(backend)
    .bind::<Nullable<Text>, _>(test_id)
    .load(conn)
    .await?)
}

/// Gives volumes of a drill another state. With `Taken` the point in time is now.
///
/// # Errors
/// `Database`.
pub async fn set_state(
    conn: &mut Conn,
    test_id: &str,
    volume_ids: &[String],
    to: State,
    detail: Option<&str>,
) -> Result<()> {
    let time = if to == State::Taken { ", point_in_time = UTC_TIMESTAMP(6)" } else { "" };
    for chunk in volume_ids.chunks(CHUNK) {
        let marks = vec!["?"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!(
            "UPDATE scoria_tests SET state = ?, detail = ?{time} WHERE test_id = ? AND volume_id IN ({marks})"
        ))
        .into_boxed::<Mysql>()
        .bind::<Text, _>(to.as_str())
        .bind::<Nullable<Text>, _>(detail)
        .bind::<Text, _>(test_id);
        for id in chunk {
            query = query.bind::<Text, _>(id);
        }
        query.execute(conn).await?;
    }
    Ok(())
}

/// No snapshot is taken for these volumes.
///
/// # Errors
/// `Database`.
pub async fn disown(conn: &mut Conn, test_id: &str, volume_ids: &[String]) -> Result<()> {
    for chunk in volume_ids.chunks(CHUNK) {
        let marks = vec!["?"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!(
            "UPDATE scoria_tests SET own_snapshot = 0 WHERE test_id = ? AND volume_id IN ({marks})"
        ))
        .into_boxed::<Mysql>()
        .bind::<Text, _>(test_id);
        for id in chunk {
            query = query.bind::<Text, _>(id);
        }
        query.execute(conn).await?;
    }
    Ok(())
}

/// Writes down what a clone is about to be made from. The point in time stays when `own_snapshot` was taken for the
/// drill; otherwise it is that of Cinder's snapshot `snapshot_id`, if it is one.
///
/// # Errors
/// `Database`.
pub async fn cloning(conn: &mut Conn, row: &Drill, snapshot_id: Option<&str>) -> Result<()> {
    diesel::sql_query(
        "UPDATE scoria_tests SET state = ?, site = ?, snapshot = ?, own_snapshot = ?, detail = NULL, \
         point_in_time = IF(own_snapshot, point_in_time, (SELECT created_at FROM snapshots WHERE id = ?)) \
         WHERE test_id = ? AND volume_id = ?",
    )
    .bind::<Text, _>(State::Cloning.as_str())
    .bind::<Text, _>(&row.site)
    .bind::<Text, _>(&row.snapshot)
    .bind::<Bool, _>(row.own_snapshot)
    .bind::<Nullable<Text>, _>(snapshot_id)
    .bind::<Text, _>(&row.test_id)
    .bind::<Text, _>(&row.volume_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// The clone can be used.
///
/// # Errors
/// `Database`.
pub async fn ready(conn: &mut Conn, test_id: &str, volume_id: &str, size: i64) -> Result<()> {
    diesel::sql_query(
        "UPDATE scoria_tests SET state = ?, size = ?, detail = NULL WHERE test_id = ? AND volume_id = ?",
    )
    .bind::<Text, _>(State::Ready.as_str())
    .bind::<BigInt, _>(size)
    .bind::<Text, _>(test_id)
    .bind::<Text, _>(volume_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Nothing is left of the clone of a volume.
///
/// # Errors
/// `Database`.
pub async fn forget(conn: &mut Conn, test_id: &str, volume_id: &str) -> Result<()> {
    diesel::sql_query("DELETE FROM scoria_tests WHERE test_id = ? AND volume_id = ?")
        .bind::<Text, _>(test_id)
        .bind::<Text, _>(volume_id)
        .execute(conn)
        .await?;
    Ok(())
}
