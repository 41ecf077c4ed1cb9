//! What Scoria asks of cinder-backup (`cinder/backup/rpcapi.py`, 2.4), in the version that all of them
//! understand.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::backend::peers::{
    BackupPeers, BackupRequest, ContinueBackup, DeleteBackup, ImportRecord, RestoreBackup,
};
use crate::context::RequestContext;
use crate::error::Result;
use crate::model::Backup;
use crate::rpc::objects::{self, Object, WireBackup};
use crate::rpc::pins::Pins;
use crate::rpc::publisher::Destination;
use crate::rpc::scheduler::{Binary, Peers, Request};
use crate::rpc::synthetic;
use crate::rpc::topology::{BACKUP_TOPIC, Target};

/// Newest version of cinder-backup's RPC that Scoria speaks.
pub const VERSION: (u32, u32) = (2, 4);

/// `continue_backup`: here is the device that was asked for. Sent in the default version, as upstream does,
/// although 2.3 added it: who asks for it knows it.
///
/// # Errors
/// [`crate::error::Code::Internal`] when the device cannot be written as an object.
pub fn continue_backup(order: &ContinueBackup) -> Result<Request> {
    let mut backup = Object::expect(&order.backup, "Backup")?;
    if let Some(id) = &order.temp_volume_id {
        backup.set("temp_volume_id", Value::String(id.clone()));
    }
    let device = WireBackup::device_info(&objects::volume_object(&order.device)?)?;
    let args = json!({"backup": backup.to_value(), "backup_device": device.to_value()});
    Ok(Request { method: "continue_backup", version: (2, 0), args })
}

/// `restore_backup` into a new volume, which is said since 2.4.
///
/// # Errors
/// [`crate::error::Code::Internal`] when the backup cannot be written as an object.
pub fn restore_backup(order: &RestoreBackup, pins: Pins) -> Result<Request> {
    let backup = objects::backup_object(&order.backup)?.to_value();
    let mut args = json!({"backup": backup, "volume_id": order.volume_id});
    if pins.accept((2, 4)) {
        args["volume_is_new"] = json!(true);
    }
    Ok(Request { method: "restore_backup", version: (2, 0), args })
}

/// `import_record`, handed on to the next service.
///
/// # Errors
/// [`crate::error::Code::InvalidValue`] when the backup is no object.
pub fn import_record(order: &ImportRecord) -> Result<Request> {
    let backup = Object::expect(&order.backup, "BackupImport")?.to_value();
    let args = json!({
        "backup": backup,
        "backup_service": order.service,
        "backup_url": order.url,
        "backup_hosts": order.hosts,
    });
    Ok(Request { method: "import_record", version: (2, 0), args })
}

/// `delete_backup`, of a backup whose row is `deleting`.
///
/// # Errors
/// [`crate::error::Code::Internal`] when the backup cannot be written as an object.
pub fn delete_backup(order: &DeleteBackup) -> Result<Request> {
    let args = json!({"backup": objects::backup_object(&order.backup)?.to_value()});
    Ok(Request { method: "delete_backup", version: (2, 0), args })
}

fn server(host: &str) -> Destination {
    Destination::Server(Target { topic: BACKUP_TOPIC.to_owned(), server: host.to_owned() })
}

#[async_trait]
impl BackupPeers for Peers {
    async fn continue_backup(&self, context: &RequestContext, order: ContinueBackup) -> Result<()> {
        let request = continue_backup(&order)?;
        self.cast_once(server(&order.host), Binary::Backup, context, request, &order.unique_id).await
    }

    async fn restore_backup(&self, context: &RequestContext, order: RestoreBackup) -> Result<()> {
        let request = restore_backup(&order, self.pins(Binary::Backup))?;
        self.cast_once(server(&order.host), Binary::Backup, context, request, &order.unique_id).await
    }

    async fn import_record(&self, context: &RequestContext, order: ImportRecord) -> Result<()> {
        let request = import_record(&order)?;
        self.cast_once(server(&order.host), Binary::Backup, context, request, &order.unique_id).await
    }

    fn request(
        &self,
        context: &RequestContext,
        unique_id: &str,
        asked: BackupRequest,
        backup: &Backup,
    ) -> Result<String> {
        synthetic::of_backup(context, unique_id, asked, backup)
    }

    async fn delete_backup(&self, context: &RequestContext, order: DeleteBackup) -> Result<()> {
        let request = delete_backup(&order)?;
        self.cast_once(server(&order.host), Binary::Backup, context, request, &order.unique_id).await
    }
}
