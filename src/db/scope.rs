//! "The volumes of this backend": `volumes.host` is `host@backend#pool`, the service is `host@backend`.
//!
//! Cinder compares case-sensitively (`cinder.db.api._filter_host`) with an operator that no index
//! serves. The condition below first narrows by the column's own collation, which the index can do,
//! and then compares byte by byte.

use diesel::expression::{AppearsOnTable, Expression, SelectableExpression, ValidGrouping, is_aggregate};
use diesel::mysql::Mysql;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::{Bool, Text};

use crate::model::{Scope, backend_of};

/// A condition on the `host` or `cluster_name` column of a table.
#[derive(Debug, Clone)]
pub struct InScope {
    column: String,
    value: String,
    pattern: String,
}

impl InScope {
    /// Rows of `table` (which has columns `host` and `cluster_name`) that belong to `scope`. The pool
    /// part of the scope, if any, is ignored.
    pub fn new(table: &'static str, scope: &Scope) -> Self {
        let (column, value) = match scope {
            Scope::Host(host) => ("host", host),
            Scope::Cluster(cluster) => ("cluster_name", cluster),
        };
        let value = backend_of(value).to_owned();
        let mut pattern = String::with_capacity(value.len() + 2);
        for c in value.chars() {
            if matches!(c, '%' | '_' | '\\') {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern.push_str("#%");
        InScope { column: format!("`{table}`.`{column}`"), value, pattern }
    }
}

/// The same condition for statements written as text: SQL over the alias `table` with two parameters, and
/// their values.
pub(super) fn scope_condition(table: &str, scope: &Scope) -> (String, [String; 2]) {
    let (column, value) = match scope {
        Scope::Host(host) => ("host", host),
        Scope::Cluster(cluster) => ("cluster_name", cluster),
    };
    let value = backend_of(value).to_owned();
    let sql = format!(
        "({table}.{column} = ? OR {table}.{column} LIKE CONCAT(REPLACE(REPLACE(?, '%', '\\\\%'), '_', '\\\\_'), '#%'))"
    );
    (sql, [value.clone(), value])
}

impl Expression for InScope {
    type SqlType = Bool;
}

impl<T> AppearsOnTable<T> for InScope {}
impl<T> SelectableExpression<T> for InScope {}

impl<GroupBy> ValidGrouping<GroupBy> for InScope {
    type IsAggregate = is_aggregate::No;
}

impl QueryId for InScope {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl QueryFragment<Mysql> for InScope {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Mysql>) -> QueryResult<()> {
        out.push_sql("((");
        out.push_sql(&self.column);
        out.push_sql(" = ");
        out.push_bind_param::<Text, str>(&self.value)?;
        out.push_sql(" OR ");
        out.push_sql(&self.column);
        out.push_sql(" LIKE ");
        out.push_bind_param::<Text, str>(&self.pattern)?;
        out.push_sql(") AND CAST(SUBSTRING_INDEX(");
        out.push_sql(&self.column);
        out.push_sql(", '#', 1) AS BINARY) = CAST(");
        out.push_bind_param::<Text, str>(&self.value)?;
        out.push_sql(" AS BINARY))");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_in_a_host_name_are_literal_and_the_pool_is_ignored() {
        let scope = InScope::new("volumes", &Scope::Host("node_1@ceph#volumes".into()));
        assert_eq!(scope.value, "node_1@ceph");
        assert_eq!(scope.pattern, "node\\_1@ceph#%");
        assert_eq!(scope.column, "`volumes`.`host`");
        let cluster = InScope::new("groups", &Scope::Cluster("c@ceph".into()));
        assert_eq!(cluster.column, "`groups`.`cluster_name`");
    }
}
