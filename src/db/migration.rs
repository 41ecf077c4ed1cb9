//! Scoria's own tables, created in Cinder's database.
//!
//! diesel's migration harness keeps its books in a table whose name cannot be chosen, and Cinder's
//! database already has alembic's. So this is a small runner of its own: numbered files, embedded,
//! recorded in `scoria_schema_migrations`. Several services may start at once (an advisory lock), also
//! on different Galera nodes, where that lock does not reach (every statement is repeatable).

use diesel::prelude::*;
use diesel::sql_types::{Integer, Nullable};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::{Conn, Db};
use crate::error::{Code, Error, Result};

/// A file of `migrations/`. Applied files are never changed; a new one gets the next number.
struct Migration {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "journal", sql: include_str!("../../migrations/0001_journal.sql") },
    Migration { version: 2, name: "replication", sql: include_str!("../../migrations/0002_replication.sql") },
    Migration { version: 3, name: "locks", sql: include_str!("../../migrations/0003_locks.sql") },
    Migration { version: 4, name: "lag", sql: include_str!("../../migrations/0004_lag.sql") },
    Migration { version: 5, name: "fences", sql: include_str!("../../migrations/0005_fences.sql") },
    Migration {
        version: 6,
        name: "replication_modes",
        sql: include_str!("../../migrations/0006_replication_modes.sql"),
    },
    Migration { version: 7, name: "sites", sql: include_str!("../../migrations/0007_sites.sql") },
    Migration { version: 8, name: "adoption", sql: include_str!("../../migrations/0008_adoption.sql") },
    Migration { version: 9, name: "peer_links", sql: include_str!("../../migrations/0009_peer_links.sql") },
    Migration {
        version: 10,
        name: "mirror_daemons",
        sql: include_str!("../../migrations/0010_mirror_daemons.sql"),
    },
    Migration { version: 11, name: "backends", sql: include_str!("../../migrations/0011_backends.sql") },
    Migration {
        version: 13,
        name: "backup_policy",
        sql: include_str!("../../migrations/0013_backup_policy.sql"),
    },
    Migration {
        version: 14,
        name: "backup_types",
        sql: include_str!("../../migrations/0014_backup_types.sql"),
    },
];

const BOOKS: &str = "CREATE TABLE IF NOT EXISTS scoria_schema_migrations (
  version INT NOT NULL PRIMARY KEY,
  name VARCHAR(64) NOT NULL,
  applied_at DATETIME NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin";

/// Seconds to wait for another service that is migrating.
const LOCK_SECONDS: i32 = 40;

mod books {
    diesel::table! {
        scoria_schema_migrations (version) {
            version -> Integer,
            name -> Text,
            applied_at -> Datetime,
        }
    }
}

#[derive(QueryableByName)]
struct Locked {
    #[diesel(sql_type = Nullable<Integer>)]
    locked: Option<i32>,
}

/// Brings Scoria's tables up to date; does nothing when they are. Returns how many files were applied.
///
/// # Errors
/// `Config` when the database was migrated by a newer Scoria; `Database` when the lock or a statement
/// fails.
pub async fn run(db: &Db) -> Result<usize> {
    db.read("migrations", async |conn| {
        // The schema's name makes the lock private to this database of the server.
        let lock = "CONCAT('scoria-migrations:', DATABASE())";
        let got: Locked = diesel::sql_query(format!("SELECT GET_LOCK({lock}, ?) AS locked"))
            .bind::<Integer, _>(LOCK_SECONDS)
            .get_result(conn)
            .await?;
        if got.locked != Some(1) {
            return Err(Error::new(
                Code::Database,
                format!("Another service has been migrating the database for {LOCK_SECONDS} s; try again"),
            ));
        }
        let result = apply(conn).await;
        // If this fails the connection is lost, and with it the lock.
        conn.batch_execute(&format!("DO RELEASE_LOCK({lock})")).await?;
        result
    })
    .await
}

/// The newest version this program knows.
pub fn newest() -> i32 {
    MIGRATIONS.last().map_or(0, |m| m.version)
}

/// The version of Scoria's tables in the database; 0 when there are none.
///
/// # Errors
/// `Database`.
pub async fn version(conn: &mut Conn) -> Result<i32> {
    use books::scoria_schema_migrations::dsl;
    #[derive(QueryableByName)]
    struct Tables {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        count: i64,
    }
    let tables: Tables = diesel::sql_query(
        "SELECT COUNT(*) AS count FROM information_schema.tables \
         WHERE table_schema = DATABASE() AND table_name = 'scoria_schema_migrations'",
    )
    .get_result(conn)
    .await?;
    if tables.count == 0 {
        return Ok(0);
    }
    let version: Option<i32> =
        dsl::scoria_schema_migrations.select(diesel::dsl::max(dsl::version)).first(conn).await?;
    Ok(version.unwrap_or(0))
}

async fn apply(conn: &mut Conn) -> Result<usize> {
    use books::scoria_schema_migrations::dsl;
    conn.batch_execute(BOOKS).await?;
    let applied: Vec<i32> = dsl::scoria_schema_migrations.select(dsl::version).load(conn).await?;
    let newest = newest();
    if let Some(unknown) = applied.iter().find(|v| **v > newest) {
        return Err(Error::new(
            Code::Config,
            format!(
                "The database has Scoria's schema version {unknown}, this program knows up to {newest}; \
                 install the newer program"
            ),
        ));
    }
    let mut count = 0;
    for migration in MIGRATIONS.iter().filter(|m| !applied.contains(&m.version)) {
        tracing::info!(version = migration.version, name = migration.name, "creating Scoria's tables");
        conn.batch_execute(migration.sql).await?;
        diesel::insert_or_ignore_into(dsl::scoria_schema_migrations)
            .values((
                dsl::version.eq(migration.version),
                dsl::name.eq(migration.name),
                dsl::applied_at.eq(super::now()),
            ))
            .execute(conn)
            .await?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_grow_and_every_statement_is_repeatable() {
        assert!(MIGRATIONS.is_sorted_by(|a, b| a.version < b.version));
        for migration in MIGRATIONS {
            for line in migration.sql.lines().filter(|l| l.starts_with("CREATE TABLE")) {
                assert!(line.starts_with("CREATE TABLE IF NOT EXISTS scoria_"), "{line}");
            }
        }
    }
}
