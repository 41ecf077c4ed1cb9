//! Everything that a backend's name is written into, given another one.
//!
//! `cinder-manage volume update_host` changes the hosts of volumes and leaves the rest to break later: groups that
//! nobody serves, a service row with another uuid than its volumes refer to, cache entries that name a backend which is
//! gone. Here it is one transaction over all of it. Snapshots and attachments have no host of their own: they follow
//! their volume. Closed operations keep the name that they were for.

use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::{Conn, scope_condition, service};
use crate::error::{Code, Error, Result};
use crate::model::Scope;

/// One name of a backend, and the one that takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// `host@backend`, without a pool.
    pub from: Scope,
    /// The same in its new form.
    pub to: String,
}

/// The volumes of a service that is no more, for one that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeOver {
    /// `host@backend` that is no more.
    pub from: String,
    /// `host@backend` that takes over.
    pub to: String,
    /// Its Cinder cluster.
    pub cluster: Option<String>,
    /// Its pool, the part after `#`.
    pub pool: String,
}

/// How many rows of each table have changed.
pub type Changed = Vec<(&'static str, usize)>;

/// Tables of Cinder's with a host (or cluster) with a pool.
const OWNED: [&str; 4] = ["volumes", "`groups`", "consistencygroups", "image_volume_cache_entries"];
/// Tables of Scoria's by the name of a backend or of its Cinder cluster.
const NOTED: [&str; 6] = [
    "scoria_backend_sites",
    "scoria_adoptions",
    "scoria_replication_lag",
    "scoria_replication_polls",
    "scoria_fences",
    "scoria_tests",
];

/// Gives everything of the backend its new name, inside the caller's transaction. With a service that was removed the
/// rest still moves.
///
/// # Errors
/// `Conflict` when a live service has the new name; `Database`.
pub async fn run(conn: &mut Conn, rename: &Rename) -> Result<Changed> {
    let mut changed = Vec::new();
    let (condition, [a, b]) = scope_condition("t", &rename.from);
    let (column, from) = match &rename.from {
        Scope::Host(host) => ("host", host),
        Scope::Cluster(cluster) => ("cluster_name", cluster),
    };
    if let Scope::Host(host) = &rename.from {
        if let Some(taken) = service::find(conn, &rename.to).await? {
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "There is a service {} already; remove it first (cinder-manage service remove cinder-volume {})",
                    taken.host, taken.host
                ),
            ));
        }
        let moved = diesel::sql_query(
            "UPDATE services SET host = ?, updated_at = UTC_TIMESTAMP() \
             WHERE host = ? AND BINARY host = ? AND `binary` = 'cinder-volume' AND deleted = 0",
        )
        .bind::<Text, _>(&rename.to)
        .bind::<Text, _>(host)
        .bind::<Text, _>(host)
        .execute(conn)
        .await?;
        changed.push(("services", moved));
        let uses = diesel::sql_query("UPDATE scoria_site_uses SET backend = ? WHERE backend = ?")
            .bind::<Text, _>(&rename.to)
            .bind::<Text, _>(host)
            .execute(conn)
            .await?;
        changed.push(("scoria_site_uses", uses));
    } else {
        let moved = diesel::sql_query(
            "UPDATE clusters SET name = ?, updated_at = UTC_TIMESTAMP() \
             WHERE name = ? AND `binary` = 'cinder-volume' AND deleted = 0",
        )
        .bind::<Text, _>(&rename.to)
        .bind::<Text, _>(from)
        .execute(conn)
        .await?;
        changed.push(("clusters", moved));
        let members = diesel::sql_query("UPDATE services SET cluster_name = ? WHERE cluster_name = ?")
            .bind::<Text, _>(&rename.to)
            .bind::<Text, _>(from)
            .execute(conn)
            .await?;
        changed.push(("services", members));
    }
    for table in OWNED {
        // The pool stays; what is in front of it changes.
        let count = diesel::sql_query(format!(
            "UPDATE {table} t SET t.{column} = CONCAT(?, SUBSTRING(t.{column}, CHAR_LENGTH(?) + 1)) WHERE {condition} \
             AND BINARY SUBSTRING_INDEX(t.{column}, '#', 1) = ?"
        ))
        .bind::<Text, _>(&rename.to)
        .bind::<Text, _>(from)
        .bind::<Text, _>(&a)
        .bind::<Text, _>(&b)
        .bind::<Text, _>(from)
        .execute(conn)
        .await?;
        changed.push((table, count));
    }
    for table in NOTED {
        let count = diesel::sql_query(format!("UPDATE {table} SET backend = ? WHERE backend = ?"))
            .bind::<Text, _>(&rename.to)
            .bind::<Text, _>(from)
            .execute(conn)
            .await?;
        changed.push((table, count));
    }
    Ok(changed)
}

/// Gives volumes, groups and cache entries of a service that is no more to another, and removes its row. Done again, it
/// finds nothing.
///
/// # Errors
/// `Database`.
pub async fn take_over(conn: &mut Conn, change: &TakeOver) -> Result<Changed> {
    let scope = Scope::Host(change.from.clone());
    let (condition, [a, b]) = scope_condition("t", &scope);
    let uuid = service::find(conn, &change.to).await?.map(|s| s.uuid).unwrap_or_default();
    let cluster = change.cluster.as_deref().map(|name| format!("{name}#{}", change.pool));
    let mut changed = Vec::new();
    for table in OWNED {
        let owner = if table == "volumes" { ", t.service_uuid = ?" } else { "" };
        let mut query = diesel::sql_query(format!(
            "UPDATE {table} t SET t.host = CONCAT(?, '#', ?), t.cluster_name = ?{owner} WHERE {condition} \
             AND BINARY SUBSTRING_INDEX(t.host, '#', 1) = ?"
        ))
        .into_boxed::<diesel::mysql::Mysql>()
        .bind::<Text, _>(&change.to)
        .bind::<Text, _>(&change.pool)
        .bind::<diesel::sql_types::Nullable<Text>, _>(&cluster);
        if table == "volumes" {
            query = query.bind::<Text, _>(&uuid);
        }
        let count =
            query.bind::<Text, _>(&a).bind::<Text, _>(&b).bind::<Text, _>(&change.from).execute(conn).await?;
        changed.push((table, count));
    }
    let removed = super::admin::remove_service(conn, service::BINARY, &change.from).await?;
    changed.push(("services", usize::from(removed)));
    super::backend::retire(conn, &change.from, None).await?;
    Ok(changed)
}
