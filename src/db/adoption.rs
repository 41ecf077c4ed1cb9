//! The rows of a backend whose sites change their names for good.
//!
//! After a disaster the secondary becomes the ordinary site of its backend: what was `site-b` is `default` from now
//! on, and what was `default` has another name, or none. Every table that names sites follows in one transaction, each
//! by a few statements for all its rows; what is about a site that is gone goes with it.

use diesel::dsl::sql;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};
use diesel_async::RunQueryDsl;

use super::schema::{scoria_operations as ops, volumes};
use super::volume::CHUNK;
use super::{Conn, failover, group_replication, now, scope_condition, stray};
use crate::error::Result;
use crate::model::{ReplicationStatus, Scope};

/// What became of a site's name: (the name until now, the name from now on, or `None` when the site is gone).
pub type Renamed = (String, Option<String>);

/// A column that names sites, and how the rows of a backend are told in its table.
struct Column {
    /// What is updated, and deleted from: one table, whose alias is `t`.
    tables: &'static str,
    name: &'static str,
    /// By `t.backend`; otherwise by the volume.
    by_backend: bool,
}

const COLUMNS: [Column; 4] = [
    Column { tables: "scoria_fences t", name: "site", by_backend: true },
    Column { tables: "scoria_tests t", name: "site", by_backend: true },
    Column { tables: "scoria_tests t", name: "source", by_backend: true },
    Column {
        tables: "scoria_schedules t JOIN volumes v ON v.id = t.volume_id",
        name: "site",
        by_backend: false,
    },
];

/// Before a name that has been changed already, until all have been: two sites may change places. No `backend_id` has it.
const CHANGED: char = '\u{1}';

/// Fences, drills and schedules of `scope`, which `backend` names, follow their sites; what was seen of copies is
/// forgotten: it will be looked at again, from the other side.
///
/// # Errors
/// `Database`.
pub async fn rename(conn: &mut Conn, scope: &Scope, backend: &str, renamed: &[Renamed]) -> Result<()> {
    let (of_volume, scope_binds) = scope_condition("v", scope);
    for column in &COLUMNS {
        let (condition, binds) = match column.by_backend {
            true => ("t.backend = ?", vec![backend.to_owned()]),
            false => (of_volume.as_str(), scope_binds.to_vec()),
        };
        let (tables, name) = (column.tables, column.name);
        for (old, new) in renamed.iter().filter(|(old, new)| new.as_ref() != Some(old)) {
            let (text, first) = match new {
                Some(new) => (
                    format!("UPDATE {tables} SET t.{name} = ? WHERE t.{name} = ? AND {condition}"),
                    Some(format!("{CHANGED}{new}")),
                ),
                None => (format!("DELETE t FROM {tables} WHERE t.{name} = ? AND {condition}"), None),
            };
            let all: Vec<String> = first.into_iter().chain([old.clone()]).chain(binds.clone()).collect();
            run(conn, &text, &all).await?;
        }
        let text = format!(
            "UPDATE {tables} SET t.{name} = SUBSTRING(t.{name}, 2) WHERE LEFT(t.{name}, 1) = ? AND {condition}"
        );
        let all: Vec<String> = [CHANGED.to_string()].into_iter().chain(binds).collect();
        run(conn, &text, &all).await?;
    }
    for table in ["scoria_replication_lag", "scoria_replication_polls"] {
        run(conn, &format!("DELETE FROM {table} WHERE backend = ?"), &[backend.to_owned()]).await?;
    }
    Ok(())
}

/// These volumes are where their backend is, and mirrored from there.
///
/// # Errors
/// `Database`.
pub async fn at_home(conn: &mut Conn, ids: &[String]) -> Result<()> {
    stray::forget(conn, ids).await?;
    failover::set_replication_status(conn, ids, ReplicationStatus::Enabled).await?;
    failover::set_extended_status(conn, ids, None).await
}

/// These volumes are where their backend is, which has no other site any more.
///
/// # Errors
/// `Database`.
pub async fn alone(conn: &mut Conn, ids: &[String]) -> Result<()> {
    stray::forget(conn, ids).await?;
    for chunk in ids.chunks(CHUNK) {
        diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .set((
                volumes::replication_status.eq(ReplicationStatus::Disabled.as_str()),
                volumes::replication_driver_data.eq(None::<String>),
                volumes::replication_extended_status.eq(None::<String>),
                volumes::updated_at.eq(now()),
            ))
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// These volumes are given up: what a failover had remembered of them is forgotten, they are not replicated, and
/// `why` says where they are. One that is in `error` already keeps the status that it had before that.
///
/// # Errors
/// `Database`.
pub async fn leave_behind(conn: &mut Conn, ids: &[String], why: &str) -> Result<()> {
    stray::forget(conn, ids).await?;
    let left: Vec<String> = volumes::table
        .filter(volumes::id.eq_any(ids))
        .filter(volumes::status.is_null().or(volumes::status.ne("error")))
        .select(volumes::id)
        .load(conn)
        .await?;
    failover::lose(conn, &left).await?;
    for chunk in ids.chunks(CHUNK) {
        diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .set((
                volumes::replication_status.eq(ReplicationStatus::NotCapable.as_str()),
                volumes::replication_driver_data.eq(None::<String>),
                volumes::updated_at.eq(now()),
            ))
            .execute(conn)
            .await?;
        let marks = vec!["?"; chunk.len()].join(",");
        for text in [
            format!(
                "DELETE d FROM scoria_displaced d JOIN snapshots s ON d.resource_type = 'snapshot' \
                 AND d.resource_id = s.id WHERE s.volume_id IN ({marks})"
            ),
            format!(
                "DELETE FROM scoria_displaced WHERE resource_type = 'volume' AND resource_id IN ({marks})"
            ),
        ] {
            run(conn, &text, chunk).await?;
        }
    }
    failover::set_extended_status(conn, ids, Some(why)).await
}

/// Volumes of `scope` that a failover has left behind, because they are not replicated.
///
/// # Errors
/// `Database`.
pub async fn displaced(conn: &mut Conn, scope: &Scope) -> Result<Vec<String>> {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        id: String,
    }
    let (condition, binds) = scope_condition("v", scope);
    let mut query = diesel::sql_query(format!(
        "SELECT v.id FROM volumes v JOIN scoria_displaced d ON d.resource_type = 'volume' AND d.resource_id = v.id \
         WHERE v.deleted = 0 AND {condition}"
    ))
    .into_boxed::<Mysql>();
    for bind in binds {
        query = query.bind::<Text, _>(bind);
    }
    Ok(query.load::<Row>(conn).await?.into_iter().map(|row| row.id).collect())
}

/// Groups of `scope` whose type asks for replication and that are replicated are so on, or, when there is no other
/// site any more, are not. One that a failover had torn apart is whole when all its members are.
///
/// # Errors
/// `Database`.
pub async fn groups(conn: &mut Conn, scope: &Scope, replicated: bool) -> Result<()> {
    let status = if replicated { ReplicationStatus::Enabled } else { ReplicationStatus::Disabled };
    let moved = ["enabled", "failed-over", "failover-error"];
    let found = failover::replicated_groups(conn, scope).await?;
    let ids: Vec<String> = found
        .into_iter()
        .filter(|group| group.replication_status.as_deref().is_some_and(|s| moved.contains(&s)))
        .map(|group| group.id)
        .collect();
    failover::set_group_status(conn, &ids, status).await?;
    group_replication::reunite(conn, scope).await
}

/// Open operations of `scope`, other than `own`, that may hold a site by its name: orders, and those that have
/// written a step down. Number and method.
///
/// # Errors
/// `Database`.
pub async fn in_the_way(conn: &mut Conn, scope: &Scope, own: i64) -> Result<Vec<(i64, String)>> {
    let begun = sql::<Bool>(
        "EXISTS (SELECT 1 FROM scoria_operation_steps s WHERE s.operation_id = scoria_operations.id)",
    );
    let mut query = ops::table
        .filter(ops::state.eq("open"))
        .filter(ops::id.ne(own))
        .filter(ops::method.like("scoria.%").or(begun))
        .filter(ops::method.ne("scoria.replication.inquire"))
        .select((ops::id, ops::method))
        .order(ops::id)
        .into_boxed();
    query = match scope {
        Scope::Host(host) => query.filter(ops::backend_host.eq(host)),
        Scope::Cluster(cluster) => query.filter(ops::cluster.eq(cluster)),
    };
    Ok(query.load(conn).await?)
}

async fn run(conn: &mut Conn, text: &str, binds: &[String]) -> Result<()> {
    let mut query = diesel::sql_query(text.to_owned()).into_boxed::<Mysql>();
    for bind in binds {
        query = query.bind::<Text, _>(bind);
    }
    query.execute(conn).await?;
    Ok(())
}
