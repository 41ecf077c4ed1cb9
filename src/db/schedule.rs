//! Which schedules of mirror snapshots Scoria has given to images (`scoria_schedules`), and what operators are told of
//! those that it could not give.

use diesel::mysql::Mysql;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::volume::CHUNK;
use super::{Conn, fitting};
use crate::error::Result;

/// What the text of a missing schedule begins with: only such a text is replaced, or taken away.
pub const MISSING: &str = "No schedule of mirror snapshots";

/// A schedule that an image was given.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
#[allow(missing_docs)]
pub struct Given {
    #[diesel(sql_type = Text)]
    pub volume_id: String,
    /// `default` or a `backend_id`.
    #[diesel(sql_type = Text)]
    pub site: String,
    /// As people write it.
    #[diesel(sql_type = Text)]
    pub schedule: String,
}

/// All schedules that volumes of `ids` were given.
///
/// # Errors
/// `Database`.
pub async fn of_volumes(conn: &mut Conn, ids: &[String]) -> Result<Vec<Given>> {
    let mut found = Vec::new();
    for chunk in ids.chunks(CHUNK) {
        let marks = vec!["?"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!(
            "SELECT volume_id, site, schedule FROM scoria_schedules WHERE volume_id IN ({marks})"
        ))
        .into_boxed::<Mysql>();
        for id in chunk {
            query = query.bind::<Text, _>(id);
        }
        found.extend(query.load::<Given>(conn).await?);
    }
    Ok(found)
}

/// Writes down what is about to be given.
///
/// # Errors
/// `Database`.
pub async fn record(conn: &mut Conn, given: &[Given]) -> Result<()> {
    for chunk in given.chunks(CHUNK) {
        let marks = vec!["(?, ?, ?, UTC_TIMESTAMP(6))"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!(
            "INSERT INTO scoria_schedules (volume_id, site, schedule, recorded_at) VALUES {marks} \
             ON DUPLICATE KEY UPDATE schedule = VALUES(schedule), recorded_at = VALUES(recorded_at)"
        ))
        .into_boxed::<Mysql>();
        for one in chunk {
            query = query
                .bind::<Text, _>(&one.volume_id)
                .bind::<Text, _>(&one.site)
                .bind::<Text, _>(&one.schedule);
        }
        query.execute(conn).await?;
    }
    Ok(())
}

/// These have been taken back.
///
/// # Errors
/// `Database`.
pub async fn forget(conn: &mut Conn, given: &[Given]) -> Result<()> {
    for chunk in given.chunks(CHUNK) {
        let marks = vec!["(?, ?)"; chunk.len()].join(",");
        let mut query =
            diesel::sql_query(format!("DELETE FROM scoria_schedules WHERE (volume_id, site) IN ({marks})"))
                .into_boxed::<Mysql>();
        for one in chunk {
            query = query.bind::<Text, _>(&one.volume_id).bind::<Text, _>(&one.site);
        }
        query.execute(conn).await?;
    }
    Ok(())
}

/// Forgets what volumes were given that are deleted.
///
/// # Errors
/// `Database`.
pub async fn forget_deleted(conn: &mut Conn) -> Result<usize> {
    Ok(diesel::sql_query(
        "DELETE s FROM scoria_schedules s LEFT JOIN volumes v ON v.id = s.volume_id AND v.deleted = 0 \
         WHERE v.id IS NULL",
    )
    .execute(conn)
    .await?)
}

/// Says in the rows of `ids` why they have no schedule; with `None` that they have one. What another operation has to
/// say of a volume stays.
///
/// # Errors
/// `Database`.
pub async fn tell(conn: &mut Conn, ids: &[String], why: Option<&str>) -> Result<()> {
    let text = why.map(|why| fitting(&format!("{MISSING}: {why}"), 255));
    for chunk in ids.chunks(CHUNK) {
        let marks = vec!["?"; chunk.len()].join(",");
        let free = match text {
            Some(_) => "(replication_extended_status IS NULL OR replication_extended_status LIKE ?)",
            None => "replication_extended_status LIKE ?",
        };
        let mut query = diesel::sql_query(format!(
            "UPDATE volumes SET replication_extended_status = ? WHERE deleted = 0 AND {free} AND id IN ({marks})"
        ))
        .into_boxed::<Mysql>()
        .bind::<diesel::sql_types::Nullable<Text>, _>(text.clone())
        .bind::<Text, _>(format!("{MISSING}%"));
        for id in chunk {
            query = query.bind::<Text, _>(id);
        }
        query.execute(conn).await?;
    }
    Ok(())
}
