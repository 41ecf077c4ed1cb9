//! The table `scoria_backends`: which backends each host has, and what is to become of them.

use diesel::OptionalExtension;
use diesel::sql_types::{BigInt, Datetime, Nullable, Text};
use diesel_async::RunQueryDsl;

use chrono::NaiveDateTime;

use super::Conn;
use crate::error::Result;

/// What an operator wants of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing yet: its file was found and nobody has enabled it.
    New,
    /// To be served.
    On,
    /// Not to be served.
    Off,
}

impl Wanted {
    /// The text in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            Wanted::New => "new",
            Wanted::On => "on",
            Wanted::Off => "off",
        }
    }
}

/// How a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// An operation makes it.
    Creating,
    /// Its file was found, nobody has enabled it.
    New,
    /// Served.
    Running,
    /// Not served, by order.
    Stopped,
    /// It should be served and could not be started.
    Failed,
    /// An operation removes it.
    Deleting,
}

impl State {
    /// The text in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Creating => "creating",
            State::New => "new",
            State::Running => "running",
            State::Stopped => "stopped",
            State::Failed => "failed",
            State::Deleting => "deleting",
        }
    }
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct BackendRow {
    /// `[DEFAULT] host`.
    #[diesel(sql_type = Text)]
    pub host: String,
    /// Section.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// `[LABEL!]host@name`.
    #[diesel(sql_type = Text)]
    pub service: String,
    /// `file` or `main`.
    #[diesel(sql_type = Text)]
    pub origin: String,
    /// Its file, or the files of the service.
    #[diesel(sql_type = Text)]
    pub path: String,
    /// SHA-256 of its file.
    #[diesel(sql_type = Text)]
    pub checksum: String,
    /// Hashes of its options, as JSON.
    #[diesel(sql_type = Text)]
    pub fingerprints: String,
    /// Its Ceph cluster.
    #[diesel(sql_type = Nullable<Text>)]
    pub fsid: Option<String>,
    /// Its pool.
    #[diesel(sql_type = Text)]
    pub pool: String,
    /// `cluster@name` of Cinder.
    #[diesel(sql_type = Nullable<Text>)]
    pub cluster: Option<String>,
    /// Its mark.
    #[diesel(sql_type = Nullable<Text>)]
    pub label: Option<String>,
    /// As in [`Wanted`].
    #[diesel(sql_type = Text)]
    pub wanted: String,
    /// As in [`State`].
    #[diesel(sql_type = Text)]
    pub state: String,
    /// The operation that creates or deletes it.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub operation_id: Option<i64>,
    /// What is wrong.
    #[diesel(sql_type = Nullable<Text>)]
    pub problem: Option<String>,
    /// When it was made known.
    #[diesel(sql_type = Datetime)]
    pub created_at: NaiveDateTime,
}

impl BackendRow {
    /// Whether it is in this state.
    pub fn is(&self, state: State) -> bool {
        self.state == state.as_str()
    }

    /// Whether this is wanted of it.
    pub fn wants(&self, wanted: Wanted) -> bool {
        self.wanted == wanted.as_str()
    }

    /// True when it has a file of its own.
    pub fn has_file(&self) -> bool {
        self.origin == FILE
    }

    /// True while an operation makes or removes it: nobody else touches it.
    pub fn is_in_hand(&self) -> bool {
        self.is(State::Creating) || self.is(State::Deleting)
    }
}

/// Origin of a backend with a file of its own.
pub const FILE: &str = "file";
/// Origin of one in the service's own files.
pub const MAIN: &str = "main";

const ROW: &str = "SELECT host, name, service, origin, path, checksum, fingerprints, fsid, pool, cluster, label, wanted, \
                   state, operation_id, problem, created_at FROM scoria_backends";

/// All backends, or those of a host, by name.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, host: Option<&str>) -> Result<Vec<BackendRow>> {
    Ok(diesel::sql_query(format!("{ROW} WHERE (? IS NULL OR host = ?) ORDER BY host, name"))
        .bind::<Nullable<Text>, _>(host)
        .bind::<Nullable<Text>, _>(host)
        .load(conn)
        .await?)
}

/// The backend of that name on a host.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, host: &str, name: &str) -> Result<Option<BackendRow>> {
    let found = diesel::sql_query(format!("{ROW} WHERE host = ? AND name = ?"))
        .bind::<Text, _>(host)
        .bind::<Text, _>(name)
        .get_result(conn)
        .await;
    Ok(found.optional()?)
}

/// Writes a row; what was known of the cluster, when it was made known and what is wrong stays, where nothing is said.
///
/// # Errors
/// `Database`.
pub async fn put(conn: &mut Conn, row: &BackendRow) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO scoria_backends (host, name, service, origin, path, checksum, fingerprints, fsid, pool, cluster, \
         label, wanted, state, operation_id, problem, created_at, updated_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6)) \
         ON DUPLICATE KEY UPDATE service = VALUES(service), origin = VALUES(origin), path = VALUES(path), \
         checksum = VALUES(checksum), fingerprints = VALUES(fingerprints), fsid = COALESCE(VALUES(fsid), fsid), \
         pool = VALUES(pool), cluster = VALUES(cluster), label = VALUES(label), wanted = VALUES(wanted), \
         state = VALUES(state), operation_id = VALUES(operation_id), problem = VALUES(problem), \
         updated_at = VALUES(updated_at)",
    )
    .bind::<Text, _>(&row.host)
    .bind::<Text, _>(&row.name)
    .bind::<Text, _>(&row.service)
    .bind::<Text, _>(&row.origin)
    .bind::<Text, _>(&row.path)
    .bind::<Text, _>(&row.checksum)
    .bind::<Text, _>(&row.fingerprints)
    .bind::<Nullable<Text>, _>(&row.fsid)
    .bind::<Text, _>(&row.pool)
    .bind::<Nullable<Text>, _>(&row.cluster)
    .bind::<Nullable<Text>, _>(&row.label)
    .bind::<Text, _>(&row.wanted)
    .bind::<Text, _>(&row.state)
    .bind::<Nullable<BigInt>, _>(row.operation_id)
    .bind::<Nullable<Text>, _>(&row.problem)
    .execute(conn)
    .await?;
    Ok(())
}

/// How a backend is from now on, and what is wrong with it. False when it is not known.
///
/// # Errors
/// `Database`.
pub async fn set(
    conn: &mut Conn,
    host: &str,
    name: &str,
    state: State,
    wanted: Option<Wanted>,
    problem: Option<&str>,
) -> Result<bool> {
    let changed = diesel::sql_query(
        "UPDATE scoria_backends SET state = ?, wanted = COALESCE(?, wanted), problem = ?, \
         updated_at = UTC_TIMESTAMP(6) WHERE host = ? AND name = ?",
    )
    .bind::<Text, _>(state.as_str())
    .bind::<Nullable<Text>, _>(wanted.map(Wanted::as_str))
    .bind::<Nullable<Text>, _>(problem)
    .bind::<Text, _>(host)
    .bind::<Text, _>(name)
    .execute(conn)
    .await?;
    Ok(changed > 0)
}

/// What is wrong with a backend, or no more; nothing else changes.
///
/// # Errors
/// `Database`.
pub async fn set_problem(conn: &mut Conn, host: &str, name: &str, problem: Option<&str>) -> Result<()> {
    diesel::sql_query(
        "UPDATE scoria_backends SET problem = ?, updated_at = UTC_TIMESTAMP(6) WHERE host = ? AND name = ?",
    )
    .bind::<Nullable<Text>, _>(problem)
    .bind::<Text, _>(host)
    .bind::<Text, _>(name)
    .execute(conn)
    .await?;
    Ok(())
}

/// Puts a backend into the hands of an operation (`Creating`, `Deleting`), or back.
///
/// # Errors
/// `Database`.
pub async fn hand(
    conn: &mut Conn,
    host: &str,
    name: &str,
    state: State,
    operation: Option<i64>,
) -> Result<()> {
    diesel::sql_query(
        "UPDATE scoria_backends SET state = ?, operation_id = ?, updated_at = UTC_TIMESTAMP(6) \
         WHERE host = ? AND name = ?",
    )
    .bind::<Text, _>(state.as_str())
    .bind::<Nullable<BigInt>, _>(operation)
    .bind::<Text, _>(host)
    .bind::<Text, _>(name)
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets a backend.
///
/// # Errors
/// `Database`.
pub async fn delete(conn: &mut Conn, host: &str, name: &str) -> Result<()> {
    diesel::sql_query("DELETE FROM scoria_backends WHERE host = ? AND name = ?")
        .bind::<Text, _>(host)
        .bind::<Text, _>(name)
        .execute(conn)
        .await?;
    Ok(())
}

/// Backends that operations which have ended still have in their hands, on a host.
///
/// # Errors
/// `Database`.
pub async fn abandoned(conn: &mut Conn, host: &str) -> Result<Vec<BackendRow>> {
    Ok(diesel::sql_query(format!(
        "{ROW} WHERE host = ? AND state IN ('creating', 'deleting') AND NOT EXISTS (SELECT 1 FROM scoria_operations o \
         WHERE o.id = scoria_backends.operation_id AND o.state = 'open')"
    ))
    .bind::<Text, _>(host)
    .load(conn)
    .await?)
}

/// Removes the service's row as `cinder-manage service remove` does, its Cinder cluster's when it was the last member,
/// and what Scoria has kept of the backend by its name: a new one of that name may work with another Ceph cluster.
///
/// # Errors
/// `Database`.
pub async fn retire(conn: &mut Conn, service: &str, cluster: Option<&str>) -> Result<()> {
    super::admin::remove_service(conn, super::service::BINARY, service).await?;
    diesel::sql_query("DELETE FROM scoria_site_uses WHERE backend = ?")
        .bind::<Text, _>(service)
        .execute(conn)
        .await?;
    let scope = match cluster {
        None => service,
        Some(name) => {
            if !super::service::list_for_cluster(conn, name).await?.is_empty() {
                return Ok(());
            }
            diesel::sql_query(
                "UPDATE clusters SET deleted = 1, deleted_at = UTC_TIMESTAMP(), race_preventer = id \
                 WHERE name = ? AND `binary` = 'cinder-volume' AND deleted = 0",
            )
            .bind::<Text, _>(name)
            .execute(conn)
            .await?;
            name
        }
    };
    for table in
        ["scoria_backend_sites", "scoria_adoptions", "scoria_replication_lag", "scoria_replication_polls"]
    {
        diesel::sql_query(format!("DELETE FROM {table} WHERE backend = ?"))
            .bind::<Text, _>(scope)
            .execute(conn)
            .await?;
    }
    Ok(())
}
