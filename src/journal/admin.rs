//! The journal as an operator sees it, and how it is kept small.

use std::collections::HashSet;

use chrono::NaiveDateTime;
use diesel::dsl::sql;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::{Ending, Journal, db_now, micros};
use crate::db::Conn;
use crate::db::schema::{scoria_operation_steps as steps, scoria_operations as ops};
use crate::error::Result;
use crate::model::Scope;

/// Rows deleted by one statement: short locks, short transactions on Galera.
const BATCH: i64 = 500;

/// Which operations to list.
#[derive(Debug, Clone, Default)]
pub struct ListingFilter {
    /// Only those that have not ended.
    pub open_only: bool,
    /// Only those of this backend: `host@backend`, or `cluster@backend`.
    pub backend_host: Option<String>,
    /// Only this method.
    pub method: Option<String>,
    /// Only those about this resource.
    pub resource_id: Option<String>,
    /// At most so many, newest first (0: 100).
    pub limit: u32,
}

/// One operation for people.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = ops, check_for_backend(Mysql))]
#[allow(missing_docs)]
pub struct Listing {
    pub id: i64,
    pub unique_id: String,
    pub method: String,
    pub backend_host: String,
    pub cluster: Option<String>,
    pub resource_type: Option<String>,
    pub resource_id: Option<String>,
    pub state: String,
    pub outcome: Option<String>,
    pub outcome_detail: Option<String>,
    pub owner: String,
    pub owner_host: String,
    pub epoch: i64,
    pub lease_until: NaiveDateTime,
    pub accepted_at: NaiveDateTime,
    pub updated_at: NaiveDateTime,
    pub closed_at: Option<NaiveDateTime>,
}

impl Journal {
    /// Operations, newest first.
    ///
    /// # Errors
    /// `Database`.
    pub async fn list(&self, filter: &ListingFilter) -> Result<Vec<Listing>> {
        self.shared
            .db
            .read("list operations", async |conn| {
                let limit = if filter.limit == 0 { 100 } else { filter.limit };
                let mut query = ops::table
                    .select(Listing::as_select())
                    .order(ops::id.desc())
                    .limit(limit.into())
                    .into_boxed();
                if filter.open_only {
                    query = query.filter(ops::state.eq("open"));
                }
                if let Some(host) = &filter.backend_host {
                    query = query.filter(
                        ops::backend_host
                            .eq(host)
                            .or(sql::<Bool>("COALESCE(cluster = ").bind::<Text, _>(host).sql(", FALSE)")),
                    );
                }
                if let Some(method) = &filter.method {
                    query = query.filter(ops::method.eq(method));
                }
                if let Some(id) = &filter.resource_id {
                    query = query.filter(ops::resource_id.eq(id));
                }
                Ok(query.load(conn).await?)
            })
            .await
    }

    /// Name of the last step of each listed resource of an operation, its own under an empty id.
    ///
    /// # Errors
    /// `Database`.
    pub async fn steps_of(&self, operation_id: i64) -> Result<Vec<(String, String, NaiveDateTime)>> {
        self.shared
            .db
            .read("steps of an operation", async |conn| {
                Ok(steps::table
                    .filter(steps::operation_id.eq(operation_id))
                    .select((steps::resource_id, steps::step, steps::updated_at))
                    .order(steps::resource_id)
                    .load(conn)
                    .await?)
            })
            .await
    }

    /// Open operations about a resource, oldest first: is somebody still working on this volume?
    ///
    /// # Errors
    /// `Database`.
    pub async fn open_for(&self, resource_id: &str) -> Result<Vec<Listing>> {
        self.shared
            .db
            .read("open operations", async |conn| {
                Ok(ops::table
                    .filter(ops::resource_id.eq(resource_id))
                    .filter(ops::state.eq("open"))
                    .select(Listing::as_select())
                    .order(ops::id)
                    .load(conn)
                    .await?)
            })
            .await
    }

    /// Open operations that the service `host@backend` has to end, oldest first: what it works on, what it has
    /// left behind, what was ordered of it. In a Cinder cluster the other members' are not among them.
    ///
    /// # Errors
    /// `Database`.
    pub async fn open_of_service(&self, service: &str) -> Result<Vec<Listing>> {
        let host = crate::model::host_part(service);
        let backend = service.split_once('@').map_or("", |(_, backend)| backend);
        let of_cluster =
            format!("%@{}", backend.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"));
        self.shared
            .db
            .read("open operations of a service", async |conn| {
                let here = ops::cluster.is_null().and(ops::backend_host.eq(service));
                // Owned by this host, whichever member of the cluster has accepted it.
                let taken = ops::cluster
                    .is_not_null()
                    .and(ops::owner_host.eq(host))
                    .and(ops::backend_host.like(&of_cluster));
                Ok(ops::table
                    .filter(ops::state.eq("open"))
                    .filter(here.or(taken))
                    .select(Listing::as_select())
                    .order(ops::id)
                    .load(conn)
                    .await?)
            })
            .await
    }

    /// Closes an order that has not ended; with `waiting` only one that no service has taken. Returns whether
    /// it was open (and waiting).
    ///
    /// # Errors
    /// `Database`.
    pub async fn withdraw(&self, operation_id: i64, waiting: bool) -> Result<bool> {
        self.shared
            .db
            .write("withdraw an order", async |conn| {
                let mut update = diesel::update(ops::table)
                    .filter(ops::id.eq(operation_id))
                    .filter(ops::state.eq("open"))
                    .into_boxed();
                if waiting {
                    update = update.filter(ops::owner.eq(""));
                }
                let closed = update
                    .set((
                        ops::state.eq("closed"),
                        ops::outcome.eq(Ending::Abandoned.as_str()),
                        ops::outcome_detail.eq("withdrawn"),
                        ops::closed_at.eq(db_now().nullable()),
                        ops::updated_at.eq(db_now()),
                    ))
                    .execute(conn)
                    .await?;
                Ok(closed > 0)
            })
            .await
    }

    /// Which of these resources somebody is working on, inside the caller's transaction. Who has locked a
    /// resource's `workers` row before knows that nobody is about to claim it: accepting waits for it.
    ///
    /// # Errors
    /// `Database`.
    pub async fn busy(conn: &mut Conn, resource_ids: &[String]) -> Result<HashSet<String>> {
        let mut busy = HashSet::new();
        for chunk in resource_ids.chunks(1000) {
            let rows: Vec<Option<String>> = ops::table
                .filter(ops::resource_id.eq_any(chunk))
                .filter(ops::state.eq("open"))
                .select(ops::resource_id)
                .load(conn)
                .await?;
            busy.extend(rows.into_iter().flatten());
        }
        Ok(busy)
    }

    /// Which of these operations have not ended.
    ///
    /// # Errors
    /// `Database`.
    pub async fn still_open(conn: &mut Conn, ids: &[i64]) -> Result<HashSet<i64>> {
        let mut open = HashSet::new();
        for chunk in ids.chunks(1000) {
            let query = ops::table.filter(ops::id.eq_any(chunk)).filter(ops::state.eq("open"));
            open.extend(query.select(ops::id).load::<i64>(conn).await?);
        }
        Ok(open)
    }

    /// Whether an operation of this method on a resource is open, inside the caller's transaction. Who has locked a
    /// row that the operation locks when it ends gets an answer that stays true.
    ///
    /// # Errors
    /// `Database`.
    pub async fn is_open(conn: &mut Conn, resource_id: &str, method: &str) -> Result<bool> {
        let open = ops::table
            .filter(ops::resource_id.eq(resource_id))
            .filter(ops::method.eq(method))
            .filter(ops::state.eq("open"));
        Ok(diesel::select(diesel::dsl::exists(open)).get_result(conn).await?)
    }

    /// Open operations of a backend or cluster with one of these methods, oldest first: is a failover
    /// under way?
    ///
    /// # Errors
    /// `Database`.
    pub async fn open_methods(&self, scope: &Scope, methods: &[&str]) -> Result<Vec<Listing>> {
        self.open_among(scope, Some(methods)).await
    }

    /// Open operations of these methods (`None`: of all), oldest first.
    pub(super) async fn open_among(&self, scope: &Scope, methods: Option<&[&str]>) -> Result<Vec<Listing>> {
        self.shared
            .db
            .read("open operations", async |conn| {
                let mut query = ops::table
                    .filter(ops::state.eq("open"))
                    .select(Listing::as_select())
                    .order(ops::id)
                    .into_boxed();
                if let Some(methods) = methods {
                    query = query.filter(ops::method.eq_any(methods.to_vec()));
                }
                query = match scope {
                    Scope::Host(host) => query.filter(ops::backend_host.eq(host)),
                    Scope::Cluster(cluster) => query.filter(ops::cluster.eq(cluster)),
                };
                Ok(query.load(conn).await?)
            })
            .await
    }

    /// Removes operations that ended longer ago than the retention, with their steps, and old commit
    /// markers, in small batches. Returns how many operations.
    ///
    /// # Errors
    /// `Database`.
    pub async fn purge(&self) -> Result<usize> {
        self.drop_stale_answers().await?;
        let retention = micros(self.shared.options.retention);
        let mut purged = 0;
        loop {
            let batch = self
                .shared
                .db
                .write("purge", async |conn| {
                    let ids: Vec<i64> = ops::table
                        .filter(ops::state.eq("closed"))
                        .filter(
                            sql::<Bool>("closed_at < UTC_TIMESTAMP(6) - INTERVAL ")
                                .bind::<BigInt, _>(retention)
                                .sql(" MICROSECOND"),
                        )
                        .order(ops::closed_at)
                        .limit(BATCH)
                        .select(ops::id)
                        .load(conn)
                        .await?;
                    diesel::delete(steps::table)
                        .filter(steps::operation_id.eq_any(&ids))
                        .execute(conn)
                        .await?;
                    diesel::delete(ops::table).filter(ops::id.eq_any(&ids)).execute(conn).await?;
                    Ok(ids.len())
                })
                .await?;
            purged += batch;
            if i64::try_from(batch).unwrap_or(0) < BATCH {
                break;
            }
        }
        self.shared
            .db
            .read("purge locks and commit markers", async |conn| {
                // Of instances that died with them: `try_lock` takes them for free.
                conn.batch_execute(
                    "DELETE FROM scoria_locks WHERE acquired_at < UTC_TIMESTAMP() - INTERVAL 1 HOUR \
                     AND owner NOT IN (SELECT owner FROM scoria_operations WHERE state = 'open')",
                )
                .await?;
                conn.batch_execute(
                    "DELETE FROM scoria_commits WHERE created_at < UTC_TIMESTAMP() - INTERVAL 1 HOUR LIMIT 10000",
                )
                .await?;
                Ok(())
            })
            .await?;
        Ok(purged)
    }
}
