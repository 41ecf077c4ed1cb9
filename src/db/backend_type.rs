//! The volume type that leads to a backend, made with it on request.

use diesel::OptionalExtension;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use crate::error::{Code, Error, Result};

/// The extra spec by which a type names the backend.
const SPEC: &str = "volume_backend_name";

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Nullable<Text>)]
    backend: Option<String>,
}

async fn find(conn: &mut Conn, name: &str) -> Result<Option<Row>> {
    let found = diesel::sql_query(
        "SELECT t.id, (SELECT s.value FROM volume_type_extra_specs s WHERE s.volume_type_id = t.id AND s.deleted = 0 \
         AND s.`key` = ? LIMIT 1) AS backend FROM volume_types t WHERE t.name = ? AND t.deleted = 0",
    )
    .bind::<Text, _>(SPEC)
    .bind::<Text, _>(name)
    .get_result(conn)
    .await;
    Ok(found.optional()?)
}

/// Fails when there is a type of this name that leads elsewhere.
///
/// # Errors
/// `Conflict`; `Database`.
pub async fn check(conn: &mut Conn, name: &str, backend_name: &str) -> Result<()> {
    match find(conn, name).await? {
        Some(row) if row.backend.as_deref() != Some(backend_name) => Err(Error::new(
            Code::Conflict,
            format!(
                "There is a volume type {name} already, with {SPEC} {}; choose another name, or change it with `cinder \
                 type-key {name} set {SPEC}={backend_name}`",
                row.backend.as_deref().unwrap_or("unset")
            ),
        )),
        _ => Ok(()),
    }
}

/// Makes a public type that leads to a backend, as `cinder type-create` and `type-key set` do; answers its id. One that
/// is there stays as it is.
///
/// # Errors
/// As [`check`].
pub async fn ensure(conn: &mut Conn, name: &str, backend_name: &str) -> Result<String> {
    check(conn, name, backend_name).await?;
    if let Some(row) = find(conn, name).await? {
        return Ok(row.id);
    }
    let id = Uuid::new_v4().to_string();
    diesel::sql_query(
        "INSERT INTO volume_types (created_at, deleted, id, name, is_public) VALUES (UTC_TIMESTAMP(), 0, ?, ?, 1)",
    )
    .bind::<Text, _>(&id)
    .bind::<Text, _>(name)
    .execute(conn)
    .await?;
    diesel::sql_query(
        "INSERT INTO volume_type_extra_specs (created_at, deleted, volume_type_id, `key`, value) \
         VALUES (UTC_TIMESTAMP(), 0, ?, ?, ?)",
    )
    .bind::<Text, _>(&id)
    .bind::<Text, _>(SPEC)
    .bind::<Text, _>(backend_name)
    .execute(conn)
    .await?;
    Ok(id)
}
