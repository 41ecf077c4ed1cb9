//! What a backend has: what keeps it from being removed.

use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::{Conn, scope_condition};
use crate::error::Result;
use crate::model::Scope;

/// How many of each kind are named.
const NAMED: usize = 10;

/// Resources of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    /// How many there are.
    pub count: i64,
    /// Ids of the first ones.
    pub first: Vec<String>,
}

/// What is on a backend.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Volumes, whatever their status.
    pub volumes: Held,
    /// Snapshots of them.
    pub snapshots: Held,
    /// Groups.
    pub groups: Held,
}

impl Contents {
    /// True when there is nothing.
    pub fn is_empty(&self) -> bool {
        self.volumes.count + self.snapshots.count + self.groups.count == 0
    }
}

impl std::fmt::Display for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds = [("volumes", &self.volumes), ("snapshots", &self.snapshots), ("groups", &self.groups)];
        let told = kinds.iter().filter(|(_, some)| some.count > 0).map(|(kind, some)| {
            let more = if some.count as usize > some.first.len() { ", …" } else { "" };
            format!("{} {kind} ({}{more})", some.count, some.first.join(", "))
        });
        f.write_str(&told.collect::<Vec<_>>().join("; "))
    }
}

#[derive(diesel::QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    id: String,
}

#[derive(diesel::QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// Reads what a backend has.
///
/// # Errors
/// `Database`.
pub async fn of(conn: &mut Conn, scope: &Scope) -> Result<Contents> {
    let volumes = some(conn, scope, "volumes v", "v.id", "v", "v.deleted = 0").await?;
    let joined = "snapshots s JOIN volumes v ON v.id = s.volume_id";
    let snapshots = some(conn, scope, joined, "s.id", "v", "s.deleted = 0").await?;
    let groups = some(conn, scope, "`groups` g", "g.id", "g", "g.deleted = 0").await?;
    Ok(Contents { volumes, snapshots, groups })
}

async fn some(
    conn: &mut Conn,
    scope: &Scope,
    from: &str,
    id: &str,
    owner: &str,
    alive: &str,
) -> Result<Held> {
    let (condition, [a, b]) = scope_condition(owner, scope);
    let count: Count =
        diesel::sql_query(format!("SELECT COUNT(*) AS count FROM {from} WHERE {alive} AND {condition}"))
            .bind::<Text, _>(&a)
            .bind::<Text, _>(&b)
            .get_result(conn)
            .await?;
    if count.count == 0 {
        return Ok(Held::default());
    }
    let first: Vec<Id> = diesel::sql_query(format!(
        "SELECT {id} AS id FROM {from} WHERE {alive} AND {condition} ORDER BY {id} LIMIT {NAMED}"
    ))
    .bind::<Text, _>(a)
    .bind::<Text, _>(b)
    .load(conn)
    .await?;
    Ok(Held { count: count.count, first: first.into_iter().map(|row| row.id).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_is_told_in_a_line() {
        assert!(Contents::default().is_empty());
        let contents = Contents {
            volumes: Held { count: 12, first: vec!["a".into(), "b".into()] },
            groups: Held { count: 1, first: vec!["g".into()] },
            ..Contents::default()
        };
        assert_eq!(contents.to_string(), "12 volumes (a, b, …); 1 groups (g)");
    }
}
