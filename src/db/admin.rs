//! Rows as an operator's tool reads and repairs them: all services and clusters, a backend's volumes
//! counted, and the service row made acceptable again after a failover that failed.

use std::collections::BTreeMap;

use chrono::NaiveDateTime;
use diesel::dsl::{count_star, sql};
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};
use diesel_async::RunQueryDsl;

use super::cluster::ClusterChanges;
use super::schema::{clusters, scoria_operations, services, volumes};
use super::service::{BINARY, ServiceChanges};
use super::{Conn, InScope, cluster, now, service, stray};
use crate::error::{Code, Error, Result};
use crate::model::{Cluster, Scope, Service};

/// A service of any binary, as `cinder-manage service list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = services, check_for_backend(Mysql))]
#[allow(missing_docs)]
pub struct ServiceLine {
    pub binary: Option<String>,
    pub host: Option<String>,
    pub availability_zone: Option<String>,
    pub disabled: Option<bool>,
    pub updated_at: Option<NaiveDateTime>,
    pub rpc_current_version: Option<String>,
    pub object_current_version: Option<String>,
    pub cluster_name: Option<String>,
}

/// All services that were not removed, in the order of their ids.
///
/// # Errors
/// `Database`.
pub async fn services(conn: &mut Conn) -> Result<Vec<ServiceLine>> {
    Ok(services::table
        .filter(services::deleted.eq(false))
        .select(ServiceLine::as_select())
        .order(services::id)
        .load(conn)
        .await?)
}

/// A cluster of any binary with its members summed up, as `cinder-manage cluster list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ClusterLine {
    pub name: String,
    pub binary: String,
    pub disabled: bool,
    pub updated_at: Option<NaiveDateTime>,
    /// The latest heartbeat of a member.
    pub last_heartbeat: Option<NaiveDateTime>,
    /// Heartbeats of all members.
    pub heartbeats: Vec<Option<NaiveDateTime>>,
}

/// All clusters that were not removed.
///
/// # Errors
/// `Database`.
pub async fn clusters(conn: &mut Conn) -> Result<Vec<ClusterLine>> {
    type Row = (String, String, Option<bool>, Option<NaiveDateTime>);
    let rows: Vec<Row> = clusters::table
        .filter(clusters::deleted.eq(false))
        .select((clusters::name, clusters::binary, clusters::disabled, clusters::updated_at))
        .order(clusters::id)
        .load(conn)
        .await?;
    let members = services(conn).await?;
    Ok(rows
        .into_iter()
        .map(|(name, binary, disabled, updated_at)| {
            let heartbeats: Vec<Option<NaiveDateTime>> = members
                .iter()
                .filter(|s| {
                    s.cluster_name.as_deref() == Some(&name) && s.binary.as_deref() == Some(binary.as_str())
                })
                .map(|s| s.updated_at)
                .collect();
            ClusterLine {
                disabled: disabled.unwrap_or(false),
                last_heartbeat: heartbeats.iter().flatten().max().copied(),
                name,
                binary,
                updated_at,
                heartbeats,
            }
        })
        .collect())
}

/// The volume services that were not removed.
///
/// # Errors
/// `Database`.
pub async fn volume_services(conn: &mut Conn) -> Result<Vec<Service>> {
    let ids: Vec<i32> = services::table
        .filter(services::deleted.eq(false))
        .filter(services::binary.eq(BINARY))
        .select(services::id)
        .order(services::host)
        .load(conn)
        .await?;
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        found.push(service::get(conn, id).await?);
    }
    Ok(found)
}

/// Removes the row of a service, soft as `cinder-manage service remove` does; the name must be exact.
/// Returns false when there is none. A service that runs makes a new row with its next heartbeat.
///
/// # Errors
/// `Database`.
pub async fn remove_service(conn: &mut Conn, binary: &str, host: &str) -> Result<bool> {
    let removed = diesel::update(services::table)
        .filter(services::binary.eq(binary))
        .filter(services::host.eq(host))
        .filter(diesel::dsl::sql::<diesel::sql_types::Bool>("BINARY host = ").bind::<Text, _>(host))
        .filter(services::deleted.eq(false))
        .set((services::deleted.eq(true), services::deleted_at.eq(now())))
        .execute(conn)
        .await?;
    Ok(removed > 0)
}

/// How many volumes of a backend have which `replication_status`; NULL counts as `-`.
///
/// # Errors
/// `Database`.
pub async fn replication_counts(conn: &mut Conn, scope: &Scope) -> Result<BTreeMap<String, i64>> {
    let rows: Vec<(Option<String>, i64)> = volumes::table
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .group_by(volumes::replication_status)
        .select((volumes::replication_status, count_star()))
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|(status, count)| (status.unwrap_or_else(|| "-".to_owned()), count)).collect())
}

/// Volumes of a backend that are served from another site than the active one, as (volume id, site).
/// What a failover left behind, and what was moved by itself ([`stray`]).
///
/// # Errors
/// `Database`.
pub async fn strays(conn: &mut Conn, scope: &Scope) -> Result<Vec<(String, String)>> {
    let ids: Vec<String> = volumes::table
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .filter(sql::<Bool>("EXISTS (SELECT 1 FROM scoria_strays t WHERE t.volume_id = volumes.id)"))
        .select(volumes::id)
        .order(volumes::id)
        .load(conn)
        .await?;
    let mut found = stray::list(conn, &ids).await?;
    found.sort();
    Ok(found)
}

/// The replication fields of a service or a cluster row.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub struct Fields {
    pub replication_status: Option<String>,
    pub active_backend_id: Option<String>,
    pub frozen: bool,
    pub disabled: bool,
    pub disabled_reason: Option<String>,
}

impl From<&Service> for Fields {
    fn from(row: &Service) -> Fields {
        Fields {
            replication_status: row.replication_status.clone(),
            active_backend_id: row.active_backend_id.clone(),
            frozen: row.frozen,
            disabled: row.disabled,
            disabled_reason: row.disabled_reason.clone(),
        }
    }
}

impl From<&Cluster> for Fields {
    fn from(row: &Cluster) -> Fields {
        Fields {
            replication_status: row.replication_status.clone(),
            active_backend_id: row.active_backend_id.clone(),
            frozen: row.frozen,
            disabled: row.disabled,
            disabled_reason: row.disabled_reason.clone(),
        }
    }
}

/// Statuses in which cinder-api refuses a failover for ever after one that failed.
pub const STUCK: [&str; 3] = ["error", "failover-error", "failing-over"];

impl Fields {
    /// True when cinder-api will not accept a failover of this row.
    pub fn is_stuck(&self) -> bool {
        self.replication_status.as_deref().is_some_and(|s| STUCK.contains(&s))
    }

    /// The values after a failover that ended well where the row says it is active (reference
    /// replication.md 3.5): `enabled` at home, `failed-over` elsewhere.
    pub fn settled(&self, active_backend_id: Option<&str>) -> Fields {
        let away = active_backend_id.is_some_and(|id| !id.is_empty());
        let reason = match (away, self.frozen) {
            (true, _) => "failed-over",
            (false, true) => "frozen",
            (false, false) => "",
        };
        Fields {
            replication_status: Some(if away { "failed-over" } else { "enabled" }.to_owned()),
            active_backend_id: active_backend_id.map(str::to_owned),
            frozen: self.frozen,
            disabled: away || self.frozen,
            disabled_reason: Some(reason.to_owned()),
        }
    }
}

/// One row that a reset changes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub struct Reset {
    /// `service` or `cluster`.
    pub row: &'static str,
    /// `host@backend` or `cluster@backend`.
    pub name: String,
    pub before: Fields,
    pub after: Fields,
}

/// What resetting a backend would change: its service row, or its cluster's row and all members. The
/// cluster's `active_backend_id` is what counts for its members (as in `failover_completed`). Empty when
/// cinder-api accepts all rows as they are.
///
/// # Errors
/// `ServiceNotFound`; `Database`.
pub async fn resets(conn: &mut Conn, scope: &Scope) -> Result<Vec<Reset>> {
    let mut found = Vec::new();
    match scope {
        Scope::Host(host) => {
            let row = service::find(conn, host).await?.ok_or_else(|| gone(host))?;
            let before = Fields::from(&row);
            if before.is_stuck() {
                let after = before.settled(before.active_backend_id.as_deref());
                found.push(Reset { row: "service", name: row.host, before, after });
            }
        }
        Scope::Cluster(name) => {
            let row = cluster::find(conn, name).await?.ok_or_else(|| gone(name))?;
            let before = Fields::from(&row);
            let active = before.active_backend_id.clone();
            if before.is_stuck() {
                let after = before.settled(active.as_deref());
                found.push(Reset { row: "cluster", name: row.name, before, after });
            }
            for member in service::list_for_cluster(conn, name).await? {
                let before = Fields::from(&member);
                if before.is_stuck() {
                    let after = before.settled(active.as_deref());
                    found.push(Reset { row: "service", name: member.host, before, after });
                }
            }
        }
    }
    Ok(found)
}

/// Makes the changes that [`resets`] foretold, all or none, unless the rows have changed since or an
/// operation with one of `methods` is open for the backend.
///
/// # Errors
/// `Conflict`, saying why; `ServiceNotFound`; `Database`.
pub async fn reset(conn: &mut Conn, scope: &Scope, foretold: &[Reset], methods: &[&str]) -> Result<()> {
    // Locked before anything is read, so that what is read afterwards is the newest.
    lock(conn, scope).await?;
    if let Some(id) = open_operation(conn, scope, methods).await? {
        return Err(under_way(id));
    }
    if resets(conn, scope).await? != foretold {
        return Err(Error::new(
            Code::Conflict,
            "The backend's rows were changed by somebody else in this moment; look again",
        ));
    }
    for change in foretold {
        let after = &change.after;
        if change.row == "cluster" {
            let changes = ClusterChanges {
                disabled: Some(after.disabled),
                disabled_reason: Some(after.disabled_reason.clone()),
                replication_status: after.replication_status.clone(),
                active_backend_id: Some(after.active_backend_id.clone()),
                frozen: None,
            };
            let row = cluster::find(conn, &change.name).await?.ok_or_else(|| gone(&change.name))?;
            cluster::update(conn, row.id, &changes).await?;
        } else {
            let changes = ServiceChanges {
                disabled: Some(after.disabled),
                disabled_reason: Some(after.disabled_reason.clone()),
                replication_status: after.replication_status.clone(),
                active_backend_id: Some(after.active_backend_id.clone()),
                ..ServiceChanges::default()
            };
            let row = service::find(conn, &change.name).await?.ok_or_else(|| gone(&change.name))?;
            service::update(conn, row.id, &changes).await?;
        }
    }
    Ok(())
}

/// A failover is open: the rows are its business.
pub fn under_way(operation_id: i64) -> Error {
    Error::new(
        Code::Conflict,
        format!(
            "Operation {operation_id} is still moving this backend's volumes; wait for its end \
             (scoria-manage operation show {operation_id} --follow)"
        ),
    )
}

/// The oldest open operation of a backend with one of these methods.
async fn open_operation(conn: &mut Conn, scope: &Scope, methods: &[&str]) -> Result<Option<i64>> {
    let mut query = scoria_operations::table
        .filter(scoria_operations::state.eq("open"))
        .filter(scoria_operations::method.eq_any(methods.to_vec()))
        .select(scoria_operations::id)
        .order(scoria_operations::id)
        .into_boxed();
    query = match scope {
        Scope::Host(host) => query.filter(scoria_operations::backend_host.eq(host)),
        Scope::Cluster(cluster) => query.filter(scoria_operations::cluster.eq(cluster)),
    };
    Ok(query.first(conn).await.optional()?)
}

/// Keeps everybody else from changing the backend's rows until the transaction ends.
async fn lock(conn: &mut Conn, scope: &Scope) -> Result<()> {
    let _rows: Vec<i32> = match scope {
        Scope::Host(host) => {
            let rows = services::table.filter(services::host.eq(host)).filter(services::binary.eq(BINARY));
            rows.select(services::id).for_update().load(conn).await?
        }
        Scope::Cluster(name) => {
            let row = clusters::table.filter(clusters::name.eq(name)).filter(clusters::binary.eq(BINARY));
            let _cluster: Vec<i32> = row.select(clusters::id).for_update().load(conn).await?;
            let rows = services::table.filter(services::cluster_name.eq(name));
            rows.filter(services::binary.eq(BINARY)).select(services::id).for_update().load(conn).await?
        }
    };
    Ok(())
}

fn gone(name: &str) -> Error {
    Error::new(Code::ServiceNotFound, format!("There is no volume service or cluster {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settled_row_says_where_it_is() {
        let stuck = Fields {
            replication_status: Some("failover-error".into()),
            disabled: true,
            disabled_reason: Some("failed-over".into()),
            ..Fields::default()
        };
        assert!(stuck.is_stuck());
        let home = stuck.settled(Some(""));
        assert_eq!((home.replication_status.as_deref(), home.disabled), (Some("enabled"), false));
        assert_eq!(home.disabled_reason.as_deref(), Some(""));
        assert!(!home.is_stuck());
        let frozen = Fields { frozen: true, ..stuck.clone() }.settled(None);
        assert_eq!((frozen.disabled, frozen.disabled_reason.as_deref()), (true, Some("frozen")));
        let away = stuck.settled(Some("b"));
        assert_eq!((away.replication_status.as_deref(), away.disabled), (Some("failed-over"), true));
        assert_eq!(away.disabled_reason.as_deref(), Some("failed-over"));
    }
}
