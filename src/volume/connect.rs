//! `initialize_connection` and `terminate_connection`: what a host needs to open the image.

use serde_json::{Map, Value, json};

use super::connection::{Connect, Monitor, enforce_multipath, expand_qos, info, monitor};
use crate::backend::Backend;
use crate::config::DiskGeometry;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::model::Volume;
use crate::rbd::protocol::MonDump;

/// Answers the connection info of a volume for the host of `connector`.
///
/// # Errors
/// `DriverNotInitialized`; `VolumeBackend` when the site does not answer.
pub async fn initialize(backend: &Backend, volume_id: &str, connector: &Map<String, Value>) -> Result<Value> {
    let volume =
        backend.db.read("volume to connect", async |conn| db::volume::get(conn, volume_id).await).await?;
    connect(backend, &volume, None, &json!(connector)).await
}

/// The connection info; `mode` overrides what the rows say of read-only.
pub(super) async fn connect(
    backend: &Backend,
    volume: &Volume,
    mode: Option<&str>,
    connector: &Value,
) -> Result<Value> {
    let place = backend.place_up(volume).await?;
    let (admin, volume_type, qos) = backend
        .db
        .read("connection of a volume", async |conn| {
            let admin = db::volume::admin_metadata(conn, &volume.id).await?;
            let volume_type = db::volume_type::get(conn, &volume.volume_type_id).await?;
            let qos = match &volume_type.qos_specs_id {
                Some(id) => db::volume_type::qos_specs(conn, id).await?,
                None => None,
            };
            Ok((admin, volume_type, qos))
        })
        .await?;
    let fsid = backend.facts(&place.site).await.map_err(|e| refused(volume, e))?.fsid.clone();
    let dump = place.site.call(MonDump {}).await.map_err(|e| refused(volume, e.into()))?;
    let monitors: Vec<Monitor> = dump.iter().filter_map(|address| monitor(address)).collect();
    if monitors.is_empty() {
        let error = Error::new(Code::VolumeBackend, "Ceph lists no monitor with a legacy (v1) address")
            .detail(dump.join(", "));
        return Err(refused(volume, error));
    }
    let (user, secret_uuid) = backend.credentials(place.site.name(), &fsid);
    let qos_specs = match qos.filter(|q| q.for_front_end()) {
        Some(qos) => Some(expand_qos(qos.specs, volume.size)?),
        None => None,
    };
    let access_mode = match (admin.get("attached_mode"), mode) {
        (Some(attached), _) => attached.as_str(),
        (None, Some("ro")) => "ro",
        (None, _) if admin.get("readonly").is_some_and(|r| r == "True") => "ro",
        (None, _) => "rw",
    };
    let connected = info(&Connect {
        pool: &place.pool,
        image: &backend.image_name(volume),
        volume_id: &volume.id,
        monitors: &monitors,
        cluster_name: &place.site.connection().cluster_name,
        user: user.as_deref(),
        secret_uuid: &secret_uuid,
        qos_specs,
        access_mode,
        encrypted: volume.encryption_key_id.is_some(),
        enforce_multipath: enforce_multipath(connector),
        block_sizes: backend.config.disk_geometry.map(DiskGeometry::block_sizes),
        cacheable: volume_type.extra_specs.get("cacheable").is_some_and(|v| v == "<is> True"),
    });
    Ok(connected)
}

fn refused(volume: &Volume, cause: Error) -> Error {
    Error::new(
        Code::VolumeBackend,
        format!("Bad or unexpected response from the storage volume backend API: Driver initialize connection failed (error: {}).", cause.user()),
    )
    .detail(format!("volume {}", volume.id))
    .caused_by(cause)
}

/// `terminate_connection` and `remove_export`: an RBD image has nothing to take back.
///
/// # Errors
/// `DriverNotInitialized`; `VolumeNotFound`.
pub async fn terminate(
    backend: &Backend,
    volume_id: &str,
    _connector: Option<&Map<String, Value>>,
) -> Result<()> {
    let volume =
        backend.db.read("volume to disconnect", async |conn| db::volume::get(conn, volume_id).await).await?;
    backend.place_up(&volume).await.map(|_| ())
}

/// `initialize_connection_snapshot`: there is no way to attach a snapshot of an RBD image, neither upstream (whose
/// driver answers nothing, so that its manager fails with a `TypeError`) nor for os-brick.
///
/// # Errors
/// `DriverNotInitialized`; `SnapshotNotFound`; else `VolumeBackend`.
pub async fn initialize_snapshot(backend: &Backend, snapshot_id: &str) -> Result<Value> {
    terminate_snapshot(backend, snapshot_id).await?;
    Err(Error::new(
        Code::VolumeBackend,
        format!(
            "Unable to fetch connection information from backend: snapshot {snapshot_id} cannot be attached; \
             create a volume from it"
        ),
    ))
}

/// `terminate_connection_snapshot` and `remove_export_snapshot`: nothing to take back.
///
/// # Errors
/// `DriverNotInitialized`; `SnapshotNotFound`.
pub async fn terminate_snapshot(backend: &Backend, snapshot_id: &str) -> Result<()> {
    backend.require_up()?;
    backend
        .db
        .read("snapshot to disconnect", async |conn| db::snapshot::get(conn, snapshot_id).await)
        .await?;
    Ok(())
}
