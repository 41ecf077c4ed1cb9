//! Records of backups: a text from which the row of a backup is made again, here or in another cloud that has its
//! data (`export_record`, `import_record`; `cinder/objects/backup.py`, `encode_record`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tracing::{error, info};

use super::method::Method;
use super::{Backups, names};
use crate::db;
use crate::db::backup_work::BackupChanges;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{Backup, BackupEvent};

/// What a record must have.
const REQUIRED: [&str; 7] =
    ["display_name", "display_description", "container", "size", "service_metadata", "object_count", "id"];

/// `{backup_service, backup_url}` of an available backup.
///
/// # Errors
/// `InvalidBackup` for one that is not available, or of another driver; `BackupNotFound`.
pub async fn export(b: &Backups, backup_id: &str) -> Result<Value> {
    let backup = b.db.read("backup to export", async |conn| db::backup::get(conn, backup_id).await).await?;
    if backup.status != "available" {
        return Err(Error::new(
            Code::InvalidBackup,
            format!("Export backup aborted, expected backup status available but got {}.", backup.status),
        ));
    }
    if !names::is_ours(backup.service.as_deref()) {
        return Err(Error::new(
            Code::InvalidBackup,
            format!(
                "Export record aborted, the backup service currently configured [{}] is not the backup service that \
                 was used to create this backup [{}].",
                names::DRIVER,
                backup.service.as_deref().unwrap_or_default()
            ),
        ));
    }
    let url = STANDARD.encode(fields(&backup).to_string());
    info!(backup.id = backup_id, "record exported");
    Ok(json!({"backup_service": backup.service, "backup_url": url}))
}

fn fields(b: &Backup) -> Value {
    let time = |at: Option<chrono::NaiveDateTime>| at.map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string());
    json!({
        "driver_info": {},
        "id": b.id,
        "user_id": b.user_id,
        "project_id": b.project_id,
        "volume_id": b.volume_id,
        "host": b.host,
        "availability_zone": b.availability_zone,
        "container": b.container,
        "parent_id": b.parent_id,
        "status": b.status,
        "fail_reason": b.fail_reason,
        "size": b.size,
        "display_name": b.display_name,
        "display_description": b.display_description,
        "service_metadata": b.service_metadata,
        "service": b.service,
        "object_count": b.object_count,
        "temp_volume_id": b.temp_volume_id,
        "temp_snapshot_id": b.temp_snapshot_id,
        "num_dependent_backups": b.num_dependent_backups,
        "snapshot_id": b.snapshot_id,
        "data_timestamp": time(b.data_timestamp),
        "restore_volume_id": b.restore_volume_id,
        "metadata": b.metadata,
        "encryption_key_id": b.encryption_key_id,
        "created_at": time(b.created_at),
        "updated_at": time(b.updated_at),
        "deleted_at": null,
        "deleted": false,
    })
}

/// The request to take a record in.
#[derive(Debug, Clone)]
pub struct Import {
    /// The row that the API has made, `creating`.
    pub backup_id: String,
    /// Driver of the record.
    pub service: String,
    /// The record.
    pub url: String,
    /// Who may be asked if this service cannot.
    pub hosts: Vec<String>,
}

/// Fills the row of a backup from a record. Answers whom to ask instead, with those who are left after him, when it is
/// another driver's.
///
/// # Errors
/// As [`super::create::create`].
pub async fn import(
    b: &Backups,
    operation: &Operation,
    request: &Import,
) -> Result<Option<(String, Vec<String>)>> {
    if !names::is_ours(Some(&request.service)) {
        let mut hosts = request.hosts.clone();
        if let Some(host) = hosts.pop() {
            return Ok(Some((host, hosts)));
        }
        let text = format!(
            "Import record failed, cannot find backup service to perform the import. Request service {}.",
            request.service
        );
        return fail(b, operation, request, Error::new(Code::ServiceNotFound, text)).await;
    }
    let read = read(&request.url).and_then(|record| {
        if record.get("id").and_then(Value::as_str) == Some(request.backup_id.as_str()) {
            Ok(record)
        } else {
            let id = record.get("id").and_then(Value::as_str).unwrap_or_default();
            Err(format!("Trying to import backup metadata from id {id} into backup {}.", request.backup_id))
        }
    });
    let record = match read {
        Ok(record) => record,
        Err(why) => return fail(b, operation, request, Error::new(Code::InvalidBackup, why)).await,
    };
    let changes = changes(b, &request.service, &record);
    b.journal
        .complete(operation, &Outcome::succeeded(), async |conn| {
            db::backup_work::transition(conn, &request.backup_id, BackupEvent::Imported, &changes).await
        })
        .await?;
    info!(backup.id = request.backup_id, "record imported");
    Ok(None)
}

/// The record's fields.
fn read(url: &str) -> Result<Map<String, Value>, String> {
    let text = STANDARD.decode(url.trim()).map_err(|e| format!("Can't decode backup record: {e}"))?;
    let record: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| format!("Can't parse backup record: {e}"))?;
    let missing: Vec<&str> = REQUIRED.into_iter().filter(|field| !record.contains_key(*field)).collect();
    if missing.is_empty() {
        return Ok(record);
    }
    Err(format!(
        "Driver successfully decoded imported backup data, but there are missing fields ({}).",
        missing.join(", ")
    ))
}

/// The columns that a record brings; those of the request and of this service stay (`import_record`).
fn changes(b: &Backups, service: &str, record: &Map<String, Value>) -> BackupChanges {
    let text = |name: &str| record.get(name).map(|value| value.as_str().map(str::to_owned));
    let number =
        |name: &str| record.get(name).and_then(Value::as_i64).and_then(|number| i32::try_from(number).ok());
    BackupChanges {
        volume_id: text("volume_id").flatten(),
        host: Some(Some(b.host.clone())),
        availability_zone: Some(Some(b.globals.availability_zone.clone())),
        container: text("container"),
        parent_id: text("parent_id"),
        size: number("size"),
        display_name: text("display_name"),
        display_description: text("display_description"),
        service: Some(Some(Method::of(Some(service)).service().to_owned())),
        service_metadata: text("service_metadata"),
        object_count: number("object_count"),
        num_dependent_backups: number("num_dependent_backups"),
        snapshot_id: text("snapshot_id"),
        encryption_key_id: text("encryption_key_id"),
        ..BackupChanges::default()
    }
}

async fn fail<T>(b: &Backups, operation: &Operation, request: &Import, failure: Error) -> Result<T> {
    b.journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            let changes = BackupChanges::because(failure.user());
            db::backup_work::transition(conn, &request.backup_id, BackupEvent::CreateFailed, &changes).await
        })
        .await?;
    error!(backup.id = request.backup_id, error = %failure, "record could not be imported");
    Err(failure)
}

/// Ends an import that a defect has interrupted.
///
/// # Errors
/// `failure`, once the row says so; `Database`, `Cancelled`.
pub async fn give_up(b: &Backups, operation: &Operation, request: &Import, failure: Error) -> Result<()> {
    fail(b, operation, request, failure).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_went() {
        let backup = Backup {
            id: "b1".into(),
            volume_id: "v1".into(),
            size: 3,
            display_name: Some("n".into()),
            service_metadata: Some("{\"base\": \"x\"}".into()),
            ..Backup::default()
        };
        let record = read(&STANDARD.encode(fields(&backup).to_string())).unwrap();
        assert_eq!(record["id"], "b1");
        assert_eq!(record["size"], 3);
        assert_eq!(record["service_metadata"], "{\"base\": \"x\"}");
    }

    #[test]
    fn what_is_no_record_is_refused_with_the_reason() {
        for (url, why) in [
            ("not base64!", "decode"),
            (&*STANDARD.encode("{"), "parse"),
            (&*STANDARD.encode("[]"), "parse"),
            (&*STANDARD.encode("{\"id\": \"b\"}"), "missing fields (display_name, "),
        ] {
            assert!(read(url).unwrap_err().contains(why), "{url}");
        }
    }
}
