//! How long earlier failovers took: the only honest measure for the next one.

use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;

use super::{Journal, Listing};
use crate::error::Result;
use crate::model::Scope;

/// An operation that moved volumes, and has ended.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Past {
    /// Number in the journal.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// From the decision where to go (or the acceptance, where that is not known any more) to the end.
    #[diesel(sql_type = BigInt)]
    pub micros: i64,
    /// Volumes that it moved.
    #[diesel(sql_type = BigInt)]
    pub moved: i64,
}

impl Journal {
    /// The last operations with one of these methods that moved volumes of a backend or cluster, newest first.
    ///
    /// # Errors
    /// `Database`.
    pub async fn past_moves(&self, scope: &Scope, methods: &[&str], limit: u32) -> Result<Vec<Past>> {
        let (column, value) = match scope {
            Scope::Host(host) => ("backend_host", host),
            Scope::Cluster(cluster) => ("cluster", cluster),
        };
        let marks = vec!["?"; methods.len()].join(",");
        let text = format!(
            "SELECT o.id AS id, \
             TIMESTAMPDIFF(MICROSECOND, COALESCE(MAX(IF(s.resource_id = '' AND s.step = 'decided', s.updated_at, NULL)), \
             o.accepted_at), o.closed_at) AS micros, \
             CAST(SUM(s.resource_id <> '' AND s.step = 'moved') AS SIGNED) AS moved \
             FROM scoria_operations o JOIN scoria_operation_steps s ON s.operation_id = o.id \
             WHERE o.state = 'closed' AND o.{column} = ? AND o.method IN ({marks}) \
             GROUP BY o.id, o.accepted_at, o.closed_at HAVING moved > 0 ORDER BY o.id DESC LIMIT ?"
        );
        self.shared
            .db
            .read("past failovers", async |conn| {
                let mut query = diesel::sql_query(&text).into_boxed::<Mysql>().bind::<Text, _>(value);
                for method in methods {
                    query = query.bind::<Text, _>(*method);
                }
                Ok(query.bind::<BigInt, _>(i64::from(limit)).load(conn).await?)
            })
            .await
    }
}

impl Journal {
    /// Everything that is open for a backend or cluster, oldest first.
    ///
    /// # Errors
    /// `Database`.
    pub async fn open_of(&self, scope: &Scope) -> Result<Vec<Listing>> {
        self.open_among(scope, None).await
    }
}
