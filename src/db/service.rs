//! The `services` table: this service as the API, the scheduler and `cinder-manage` see it.

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::schema::{consistencygroups, groups, image_volume_cache_entries, services, volumes};
use super::{Conn, InScope, cluster, fitting, now, volume};
use crate::error::{Code, Error, Result};
use crate::model::{Scope, Service, Versions};

/// `scoria-volume`'s rows.
pub const BINARY: &str = "cinder-volume";
/// `scoria-backup`'s rows.
pub const BACKUP_BINARY: &str = "cinder-backup";
/// RPC version of `cinder-volume` in Cinder 29 (reference objects.md 6.3).
pub const RPC_VERSION: &str = "3.20";
/// Versioned-object history of Cinder 29.
pub const OBJECT_VERSION: &str = "1.39";

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = services, check_for_backend(Mysql))]
struct ServiceRow {
    id: i32,
    host: Option<String>,
    binary: Option<String>,
    topic: Option<String>,
    uuid: Option<String>,
    cluster_name: Option<String>,
    availability_zone: Option<String>,
    report_count: i32,
    disabled: Option<bool>,
    disabled_reason: Option<String>,
    replication_status: Option<String>,
    frozen: Option<bool>,
    active_backend_id: Option<String>,
    rpc_current_version: Option<String>,
    object_current_version: Option<String>,
    created_at: Option<NaiveDateTime>,
    updated_at: Option<NaiveDateTime>,
    modified_at: Option<NaiveDateTime>,
}

impl From<ServiceRow> for Service {
    fn from(row: ServiceRow) -> Service {
        Service {
            id: row.id,
            host: row.host.unwrap_or_default(),
            binary: row.binary.unwrap_or_default(),
            topic: row.topic.unwrap_or_default(),
            uuid: row.uuid.unwrap_or_default(),
            cluster_name: row.cluster_name,
            availability_zone: row.availability_zone,
            report_count: row.report_count,
            disabled: row.disabled.unwrap_or(false),
            disabled_reason: row.disabled_reason,
            replication_status: row.replication_status,
            frozen: row.frozen.unwrap_or(false),
            active_backend_id: row.active_backend_id,
            rpc_current_version: row.rpc_current_version,
            object_current_version: row.object_current_version,
            created_at: row.created_at,
            updated_at: row.updated_at,
            modified_at: row.modified_at,
        }
    }
}

/// New values of a service's columns. `None` leaves a column alone, `Some(None)` makes it NULL.
#[derive(Debug, Clone, Default, PartialEq, AsChangeset)]
#[diesel(table_name = services)]
#[allow(missing_docs)]
pub struct ServiceChanges {
    pub disabled: Option<bool>,
    pub disabled_reason: Option<Option<String>>,
    pub replication_status: Option<String>,
    pub active_backend_id: Option<Option<String>>,
    pub frozen: Option<bool>,
    pub cluster_name: Option<Option<String>>,
    pub availability_zone: Option<String>,
    pub rpc_current_version: Option<String>,
    pub object_current_version: Option<String>,
}

/// Who registers.
#[derive(Debug, Clone)]
pub struct Registration {
    /// `host@backend`.
    pub host: String,
    /// `cluster@backend`.
    pub cluster: Option<String>,
    /// Availability zone of the backend.
    pub availability_zone: String,
    /// `[DEFAULT] enable_new_services`.
    pub enable_new_services: bool,
}

/// What registering found or made.
#[derive(Debug, Clone)]
pub struct Registered {
    /// The row as it is now.
    pub service: Service,
    /// The row is new (first start, or removed by `cinder-manage service remove`).
    pub created: bool,
    /// The service has just joined its Cinder cluster: its volumes must follow
    /// ([`include_in_cluster`]).
    pub added_to_cluster: bool,
}

/// Whether a backend is frozen: by its own row, or by that of its Cinder cluster.
///
/// # Errors
/// `Database`.
pub async fn is_frozen(conn: &mut Conn, service: i32, cluster: Option<&str>) -> Result<bool> {
    use super::schema::clusters;
    let own = services::table
        .filter(services::id.eq(service))
        .select(services::frozen)
        .first::<Option<bool>>(conn)
        .await
        .optional()?;
    if own.flatten() == Some(true) {
        return Ok(true);
    }
    let Some(name) = cluster else { return Ok(false) };
    let shared = clusters::table
        .filter(clusters::name.eq(name))
        .filter(clusters::deleted.eq(false))
        .select(clusters::frozen)
        .first::<bool>(conn)
        .await
        .optional()?;
    Ok(shared == Some(true))
}

/// Finds or creates the service's row as stock's start-up does (`cinder/service.py`): versions written,
/// cluster created or joined, and after a creation the volumes of the host pointed at the new uuid.
/// A configured cluster other than the row's is left to `cinder-manage`.
///
/// # Errors
/// `Database`.
pub async fn register(conn: &mut Conn, registration: &Registration) -> Result<Registered> {
    let host = &registration.host;
    if let Some(found) = find(conn, host).await? {
        let mut changes = ServiceChanges {
            rpc_current_version: Some(RPC_VERSION.to_owned()),
            object_current_version: Some(OBJECT_VERSION.to_owned()),
            availability_zone: Some(registration.availability_zone.clone()),
            ..ServiceChanges::default()
        };
        let has_cluster = found.cluster_name.as_deref().is_some_and(|c| !c.is_empty());
        let mut added_to_cluster = false;
        if let Some(name) = &registration.cluster
            && !has_cluster
        {
            join_cluster(conn, name, &found, &mut changes).await?;
            changes.cluster_name = Some(Some(name.clone()));
            added_to_cluster = true;
        }
        update(conn, found.id, &changes).await?;
        return Ok(Registered { service: get(conn, found.id).await?, created: false, added_to_cluster });
    }
    let row = NewRow {
        cluster_name: registration.cluster.as_deref(),
        host,
        binary: BINARY,
        enabled: registration.enable_new_services,
        zone: &registration.availability_zone,
        rpc_version: RPC_VERSION,
    };
    row.insert(conn).await?;
    let service = find(conn, host).await?.ok_or_else(|| not_found(host))?;
    if let Some(name) = &registration.cluster {
        let mut changes = ServiceChanges::default();
        join_cluster(conn, name, &service, &mut changes).await?;
        if changes != ServiceChanges::default() {
            update(conn, service.id, &changes).await?;
        }
    }
    volume::set_service_uuid(conn, &Scope::Host(host.clone()), &service.uuid).await?;
    Ok(Registered {
        service: get(conn, service.id).await?,
        created: true,
        added_to_cluster: registration.cluster.is_some(),
    })
}

/// The row of a backup service on this host, found or created with the versions of Cinder 29
/// (`cinder/service.py`, `Service.__init__`).
///
/// # Errors
/// `Database`.
pub async fn register_backup(
    conn: &mut Conn,
    host: &str,
    zone: &str,
    rpc_version: &str,
    enable: bool,
) -> Result<Service> {
    if let Some(found) = find_backup(conn, host).await? {
        let changes = ServiceChanges {
            rpc_current_version: Some(rpc_version.to_owned()),
            object_current_version: Some(OBJECT_VERSION.to_owned()),
            availability_zone: Some(zone.to_owned()),
            ..ServiceChanges::default()
        };
        update(conn, found.id, &changes).await?;
        return get(conn, found.id).await;
    }
    let row = NewRow { cluster_name: None, host, binary: BACKUP_BINARY, enabled: enable, zone, rpc_version };
    row.insert(conn).await?;
    find_backup(conn, host).await?.ok_or_else(|| not_found(host))
}

/// What differs between the rows of new services.
struct NewRow<'a> {
    cluster_name: Option<&'a str>,
    host: &'a str,
    /// Also its topic.
    binary: &'a str,
    enabled: bool,
    zone: &'a str,
    rpc_version: &'a str,
}

impl NewRow<'_> {
    async fn insert(&self, conn: &mut Conn) -> Result<()> {
        let at = now();
        diesel::insert_into(services::table)
            .values((
                services::uuid.eq(Uuid::new_v4().to_string()),
                services::cluster_name.eq(self.cluster_name),
                services::host.eq(self.host),
                services::binary.eq(self.binary),
                services::topic.eq(self.binary),
                services::report_count.eq(0),
                services::disabled.eq(!self.enabled),
                services::availability_zone.eq(self.zone),
                services::rpc_current_version.eq(self.rpc_version),
                services::object_current_version.eq(OBJECT_VERSION),
                services::replication_status.eq("not-capable"),
                services::frozen.eq(false),
                services::deleted.eq(false),
                services::created_at.eq(at),
                services::updated_at.eq(at),
            ))
            .execute(conn)
            .await?;
        Ok(())
    }
}

/// A service that joins takes the cluster's replication fields (unless its own failover failed); the
/// first to come creates the cluster with its own.
async fn join_cluster(
    conn: &mut Conn,
    name: &str,
    service: &Service,
    changes: &mut ServiceChanges,
) -> Result<()> {
    let (found, created) = cluster::ensure(conn, name, service).await?;
    let broken = matches!(service.replication_status.as_deref(), Some("error" | "failover-error"));
    if created || broken {
        return Ok(());
    }
    if found.replication_status != service.replication_status {
        changes.replication_status = found.replication_status;
    }
    if found.active_backend_id != service.active_backend_id {
        changes.active_backend_id = Some(found.active_backend_id);
    }
    if found.frozen != service.frozen {
        changes.frozen = Some(found.frozen);
    }
    Ok(())
}

/// The service of `host@backend`, unless removed.
///
/// # Errors
/// `Database`.
pub async fn find(conn: &mut Conn, host: &str) -> Result<Option<Service>> {
    of_binary(conn, BINARY, host).await
}

/// The backup service of a host, unless removed.
///
/// # Errors
/// `Database`.
pub async fn find_backup(conn: &mut Conn, host: &str) -> Result<Option<Service>> {
    of_binary(conn, BACKUP_BINARY, host).await
}

async fn of_binary(conn: &mut Conn, binary: &str, host: &str) -> Result<Option<Service>> {
    let rows: Vec<ServiceRow> = services::table
        .filter(services::host.eq(host))
        .filter(services::binary.eq(binary))
        .filter(services::deleted.eq(false))
        .select(ServiceRow::as_select())
        .order(services::id)
        .load(conn)
        .await?;
    // The column compares without case; host names are told apart by it.
    Ok(rows.into_iter().map(Service::from).find(|s| s.host == host))
}

/// The service with this id, unless removed.
///
/// # Errors
/// `ServiceNotFound`.
pub async fn get(conn: &mut Conn, id: i32) -> Result<Service> {
    let row: Option<ServiceRow> = services::table
        .filter(services::id.eq(id))
        .filter(services::deleted.eq(false))
        .select(ServiceRow::as_select())
        .first(conn)
        .await
        .optional()?;
    row.map(Service::from).ok_or_else(|| not_found(&id.to_string()))
}

/// The services of a Cinder cluster.
///
/// # Errors
/// `Database`.
pub async fn list_for_cluster(conn: &mut Conn, cluster: &str) -> Result<Vec<Service>> {
    let rows: Vec<ServiceRow> = services::table
        .filter(services::cluster_name.eq(cluster))
        .filter(services::binary.eq(BINARY))
        .filter(services::deleted.eq(false))
        .select(ServiceRow::as_select())
        .order(services::id)
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(Service::from).collect())
}

/// `rpc_current_version` and `object_current_version` of every service of a binary, whether it is up or not.
///
/// # Errors
/// `Database`.
pub async fn versions(conn: &mut Conn, binary: &str) -> Result<Vec<Versions>> {
    let rows: Vec<(Option<String>, Option<String>)> = services::table
        .filter(services::binary.eq(binary))
        .filter(services::deleted.eq(false))
        .select((services::rpc_current_version, services::object_current_version))
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|(rpc, objects)| Versions { rpc, objects }).collect())
}

/// `active_backend_id` of the row that says where a backend is active, its cluster's if it has one, kept
/// as it is until the transaction ends: an empty text where it is NULL, `None` when the row is gone.
///
/// # Errors
/// `Database`.
pub async fn hold_active(conn: &mut Conn, id: i32, cluster: Option<&str>) -> Result<Option<String>> {
    use diesel::sql_types::{Integer, Text};
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        active: String,
    }
    // Written out, because MariaDB does not know FOR SHARE.
    let found: Option<Row> = match cluster {
        Some(name) => {
            diesel::sql_query(
                "SELECT COALESCE(active_backend_id, '') AS active FROM clusters \
                 WHERE name = ? AND `binary` = ? AND deleted = 0 LOCK IN SHARE MODE",
            )
            .bind::<Text, _>(name)
            .bind::<Text, _>(BINARY)
            .get_result(conn)
            .await
        }
        None => {
            diesel::sql_query(
                "SELECT COALESCE(active_backend_id, '') AS active FROM services \
                 WHERE id = ? AND deleted = 0 LOCK IN SHARE MODE",
            )
            .bind::<Integer, _>(id)
            .get_result(conn)
            .await
        }
    }
    .optional()?;
    Ok(found.map(|row| row.active))
}

/// Writes columns as `cinder.db.api.service_update` does: with `disabled` among them `modified_at`
/// becomes now and `updated_at` stays (it is the heartbeat), otherwise `updated_at` becomes now.
///
/// # Errors
/// `ServiceNotFound`.
pub async fn update(conn: &mut Conn, id: i32, changes: &ServiceChanges) -> Result<()> {
    if update_if(conn, id, &[], changes).await? { Ok(()) } else { Err(not_found(&id.to_string())) }
}

/// Like [`update`], on the condition that `replication_status` is one of `from` (empty: any). Returns
/// false when it is not, or when the row is gone.
///
/// # Errors
/// `Database`.
pub async fn update_if(conn: &mut Conn, id: i32, from: &[&str], changes: &ServiceChanges) -> Result<bool> {
    let reason = changes.disabled_reason.as_ref().map(|r| r.as_deref().map(|text| fitting(text, 255)));
    let changes = &ServiceChanges { disabled_reason: reason, ..changes.clone() };
    let at = now();
    let (modified, updated) = if changes.disabled.is_some() { (Some(at), None) } else { (None, Some(at)) };
    let mut update = diesel::update(services::table)
        .filter(services::id.eq(id))
        .filter(services::deleted.eq(false))
        .into_boxed();
    if !from.is_empty() {
        update = update.filter(services::replication_status.eq_any(from.to_vec()));
    }
    let matched = update
        .set((
            changes,
            modified.map(|t| services::modified_at.eq(t)),
            updated.map(|t| services::updated_at.eq(t)),
        ))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// One heartbeat, which also corrects the availability zone (`Service.report_state`). Returns false when the
/// row is gone and must be registered again.
///
/// # Errors
/// `Database`.
pub async fn heartbeat(conn: &mut Conn, id: i32, zone: &str) -> Result<bool> {
    let matched = diesel::update(services::table)
        .filter(services::id.eq(id))
        .filter(services::deleted.eq(false))
        .set((
            services::report_count.eq(services::report_count + 1),
            services::availability_zone.eq(zone),
            services::updated_at.eq(now()),
        ))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}

/// Moves the volumes, groups and cache entries of a host into its Cinder cluster, keeping the pool
/// part (`init_host` with `added_to_cluster`). Returns the number of volumes.
///
/// # Errors
/// `Database`.
pub async fn include_in_cluster(conn: &mut Conn, host: &str, cluster: &str) -> Result<usize> {
    use diesel::dsl::sql;
    use diesel::sql_types::{Nullable, Text};
    let scope = Scope::Host(host.to_owned());
    let at = now();
    macro_rules! replaced {
        () => {
            sql::<Nullable<Text>>("REPLACE(host, ")
                .bind::<Text, _>(host)
                .sql(", ")
                .bind::<Text, _>(cluster)
                .sql(")")
        };
    }
    let count = diesel::update(volumes::table)
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", &scope))
        .set((volumes::cluster_name.eq(replaced!()), volumes::updated_at.eq(at)))
        .execute(conn)
        .await?;
    diesel::update(consistencygroups::table)
        .filter(consistencygroups::deleted.eq(false))
        .filter(InScope::new("consistencygroups", &scope))
        .set((consistencygroups::cluster_name.eq(replaced!()), consistencygroups::updated_at.eq(at)))
        .execute(conn)
        .await?;
    diesel::update(groups::table)
        .filter(groups::deleted.eq(false))
        .filter(InScope::new("groups", &scope))
        .set((groups::cluster_name.eq(replaced!()), groups::updated_at.eq(at)))
        .execute(conn)
        .await?;
    diesel::update(image_volume_cache_entries::table)
        .filter(InScope::new("image_volume_cache_entries", &scope))
        .set(image_volume_cache_entries::cluster_name.eq(replaced!()))
        .execute(conn)
        .await?;
    Ok(count)
}

fn not_found(which: &str) -> Error {
    Error::new(Code::ServiceNotFound, format!("Service {which} could not be found."))
}
