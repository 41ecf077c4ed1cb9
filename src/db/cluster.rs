//! The `clusters` table: services that share one queue (active/active).

use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::error::is_duplicate;
use super::schema::clusters;
use super::service::BINARY;
use super::{Conn, fitting, now};
use crate::error::{Code, Error, Result};
use crate::model::{Cluster, Service};

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = clusters, check_for_backend(Mysql))]
struct ClusterRow {
    id: i32,
    name: String,
    binary: String,
    disabled: Option<bool>,
    disabled_reason: Option<String>,
    replication_status: Option<String>,
    frozen: bool,
    active_backend_id: Option<String>,
}

impl From<ClusterRow> for Cluster {
    fn from(row: ClusterRow) -> Cluster {
        Cluster {
            id: row.id,
            name: row.name,
            binary: row.binary,
            disabled: row.disabled.unwrap_or(false),
            disabled_reason: row.disabled_reason,
            replication_status: row.replication_status,
            frozen: row.frozen,
            active_backend_id: row.active_backend_id,
        }
    }
}

/// New values of a cluster's columns. `None` leaves a column alone, `Some(None)` makes it NULL.
#[derive(Debug, Clone, Default, PartialEq, AsChangeset)]
#[diesel(table_name = clusters)]
#[allow(missing_docs)]
pub struct ClusterChanges {
    pub disabled: Option<bool>,
    pub disabled_reason: Option<Option<String>>,
    pub replication_status: Option<String>,
    pub active_backend_id: Option<Option<String>>,
    pub frozen: Option<bool>,
}

/// The cluster `cluster@backend`, unless removed.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, name: &str) -> Result<Option<Cluster>> {
    let row: Option<ClusterRow> = clusters::table
        .filter(clusters::name.eq(name))
        .filter(clusters::binary.eq(BINARY))
        .filter(clusters::deleted.eq(false))
        .select(ClusterRow::as_select())
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(Cluster::from))
}

/// Finds the cluster, or creates it with the service's replication fields. The flag says "created".
///
/// # Errors
/// `Database`.
pub async fn ensure(conn: &mut Conn, name: &str, service: &Service) -> Result<(Cluster, bool)> {
    if let Some(found) = find(conn, name).await? {
        return Ok((found, false));
    }
    let inserted = diesel::insert_into(clusters::table)
        .values((
            clusters::name.eq(name),
            clusters::binary.eq(BINARY),
            clusters::disabled.eq(service.disabled),
            clusters::race_preventer.eq(0),
            clusters::replication_status.eq(&service.replication_status),
            clusters::active_backend_id.eq(&service.active_backend_id),
            clusters::frozen.eq(service.frozen),
            clusters::deleted.eq(false),
            clusters::created_at.eq(now()),
        ))
        .execute(conn)
        .await;
    let created = match inserted {
        Ok(_) => true,
        // Another member of the cluster came first.
        Err(e) if is_duplicate(&e) => false,
        Err(e) => return Err(e.into()),
    };
    let cluster = find(conn, name).await?.ok_or_else(|| {
        Error::new(Code::ServiceNotFound, format!("Cluster {name} was removed while a service joined it"))
    })?;
    Ok((cluster, created))
}

/// Writes columns; `updated_at` becomes now. Returns false when the cluster was removed.
///
/// # Errors
/// `Database`.
pub async fn update(conn: &mut Conn, id: i32, changes: &ClusterChanges) -> Result<bool> {
    let reason = changes.disabled_reason.as_ref().map(|r| r.as_deref().map(|text| fitting(text, 255)));
    let changes = &ClusterChanges { disabled_reason: reason, ..changes.clone() };
    let matched = diesel::update(clusters::table)
        .filter(clusters::id.eq(id))
        .filter(clusters::deleted.eq(false))
        .set((changes, clusters::updated_at.eq(now())))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}
