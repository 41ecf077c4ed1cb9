//! The table `scoria_clusters`: marks that backends bear (`host_cluster_id`).
//!
//! They are words of the operator's, for a rack or a row of machines, and have nothing to do with Cinder's table
//! `clusters`.

use diesel::OptionalExtension;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::Conn;
use super::error::is_duplicate;
use crate::error::{Code, Error, Result};

/// A mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, diesel::QueryableByName)]
pub struct LabelRow {
    /// What the hosts of backends begin with.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// For people; unique.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// For people.
    #[diesel(sql_type = Nullable<Text>)]
    pub description: Option<String>,
}

const ROW: &str = "SELECT id, name, description FROM scoria_clusters";

/// All marks.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn) -> Result<Vec<LabelRow>> {
    Ok(diesel::sql_query(format!("{ROW} ORDER BY id")).load(conn).await?)
}

/// The mark with this id; with this name, when none has that id.
///
/// # Errors
/// `InvalidInput` when there is none, with those that there are; `Database`.
pub async fn get(conn: &mut Conn, id: &str) -> Result<LabelRow> {
    let all = list(conn).await?;
    let found = all.iter().find(|row| row.id == id).or_else(|| all.iter().find(|row| row.name == id));
    found.cloned().ok_or_else(|| {
        let ids: Vec<&str> = all.iter().map(|row| row.id.as_str()).collect();
        let known = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        Error::new(
            Code::InvalidInput,
            format!(
                "There is no cluster label {id}; the labels are: {known} (scoria-manage cluster label create)"
            ),
        )
    })
}

/// Whether there is a mark with this id.
///
/// # Errors
/// `Database`.
pub async fn exists(conn: &mut Conn, id: &str) -> Result<bool> {
    let found: Option<LabelRow> = diesel::sql_query(format!("{ROW} WHERE id = ?"))
        .bind::<Text, _>(id)
        .get_result(conn)
        .await
        .optional()?;
    Ok(found.is_some())
}

/// Keeps a mark from being removed until the caller's transaction ends; false when there is none.
///
/// # Errors
/// `Database`.
pub async fn hold(conn: &mut Conn, id: &str) -> Result<bool> {
    let found: Option<LabelRow> = diesel::sql_query(format!("{ROW} WHERE id = ? LOCK IN SHARE MODE"))
        .bind::<Text, _>(id)
        .get_result(conn)
        .await
        .optional()?;
    Ok(found.is_some())
}

/// Makes a mark.
///
/// # Errors
/// `Conflict` when the id or the name is taken; `Database`.
pub async fn create(conn: &mut Conn, row: &LabelRow) -> Result<()> {
    let written = diesel::sql_query(
        "INSERT INTO scoria_clusters (id, name, description, created_at, updated_at) \
         VALUES (?, ?, ?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
    )
    .bind::<Text, _>(&row.id)
    .bind::<Text, _>(&row.name)
    .bind::<Nullable<Text>, _>(&row.description)
    .execute(conn)
    .await;
    match written {
        Ok(_) => Ok(()),
        Err(e) if is_duplicate(&e) => Err(taken(row)),
        Err(e) => Err(e.into()),
    }
}

fn taken(row: &LabelRow) -> Error {
    Error::new(
        Code::Conflict,
        format!("There is a cluster label {} or one named {} already", row.id, row.name),
    )
}

/// Makes marks known that backends bear in files from before there was this table. Those that are known stay.
///
/// # Errors
/// `Database`.
pub async fn found(conn: &mut Conn, ids: &[String]) -> Result<()> {
    for id in ids {
        diesel::sql_query(
            "INSERT IGNORE INTO scoria_clusters (id, name, description, created_at, updated_at) \
             VALUES (?, ?, NULL, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
        )
        .bind::<Text, _>(id)
        .bind::<Text, _>(id)
        .execute(conn)
        .await?;
    }
    Ok(())
}

/// Gives a mark another name or description; its id is part of hosts and stays.
///
/// # Errors
/// `Conflict` when the name is taken; `Database`.
pub async fn update(conn: &mut Conn, row: &LabelRow) -> Result<()> {
    let written = diesel::sql_query(
        "UPDATE scoria_clusters SET name = ?, description = ?, updated_at = UTC_TIMESTAMP(6) WHERE id = ?",
    )
    .bind::<Text, _>(&row.name)
    .bind::<Nullable<Text>, _>(&row.description)
    .bind::<Text, _>(&row.id)
    .execute(conn)
    .await;
    match written {
        Ok(_) => Ok(()),
        Err(e) if is_duplicate(&e) => Err(taken(row)),
        Err(e) => Err(e.into()),
    }
}

/// Removes a mark that no backend bears.
///
/// # Errors
/// `Invalid` with the backends that bear it; `Database`.
pub async fn delete(conn: &mut Conn, id: &str) -> Result<()> {
    // A backend that is being made locks the row before it is written.
    diesel::sql_query("SELECT 1 FROM scoria_clusters WHERE id = ? FOR UPDATE")
        .bind::<Text, _>(id)
        .execute(conn)
        .await?;
    let bearers = bearers(conn, id).await?;
    if !bearers.is_empty() {
        return Err(Error::new(
            Code::Invalid,
            format!(
                "Cluster label {id} is borne by: {}. Delete them first, or rename them",
                bearers.join(", ")
            ),
        ));
    }
    diesel::sql_query("DELETE FROM scoria_clusters WHERE id = ?").bind::<Text, _>(id).execute(conn).await?;
    Ok(())
}

/// Services whose backend bears a mark.
///
/// # Errors
/// `Database`.
pub async fn bearers(conn: &mut Conn, id: &str) -> Result<Vec<String>> {
    #[derive(diesel::QueryableByName)]
    struct Service {
        #[diesel(sql_type = Text)]
        service: String,
    }
    let mut rows: Vec<Service> = diesel::sql_query("SELECT service FROM scoria_backends WHERE label = ?")
        .bind::<Text, _>(id)
        .load(conn)
        .await?;
    // Those of a program that has no table of backends. Their column compares otherwise, so it is not one query.
    let more: Vec<Service> = diesel::sql_query(
        "SELECT host AS service FROM services WHERE deleted = 0 AND `binary` = 'cinder-volume' \
         AND host LIKE CONCAT(REPLACE(REPLACE(?, '%', '\\\\%'), '_', '\\\\_'), '!%')",
    )
    .bind::<Text, _>(id)
    .load(conn)
    .await?;
    rows.extend(more);
    let mut services: Vec<String> = rows.into_iter().map(|row| row.service).collect();
    services.sort();
    services.dedup();
    Ok(services)
}
