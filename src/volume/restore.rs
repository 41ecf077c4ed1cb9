//! The second half of a volume that is created from a backup: an empty image is there, and cinder-backup is
//! asked to fill it (`_create_from_backup` of `cinder/volume/flows/manager/create_volume.py`, for a driver that
//! cannot do it alone).
//!
//! The volume stays `creating`; cinder-backup makes it `available`, or says why not. Who restores, and that the
//! image is ready, is one transaction with the step that the request is handed over; from then on a crash only
//! means that cinder-backup is asked again, with the same id by which it knows the second message.

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use super::crash;
use super::create;
use super::image::Place;
use crate::backend::Backend;
use crate::backend::peers::{self, RestoreBackup};
use crate::context::RequestContext;
use crate::db;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::{Backup, Volume, VolumeEvent};

/// Journal step: cinder-backup goes on with the volume.
pub(super) const HANDED_OVER: &str = "handed over";

/// Who is asked to fill the volume with what: data of [`HANDED_OVER`].
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    backup_id: String,
    host: String,
}

/// Records that a backup service goes on with a volume whose empty image is made, with `changes` for its row.
/// [`ask`] tells that service.
///
/// # Errors
/// `ServiceNotFound` when no backup service is up; `BackupNotFound`; `InvalidBackup`; what
/// [`create::overtaken`] says.
pub(super) async fn hand_over(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    backup_id: &str,
    place: &Place,
    changes: &VolumeChanges,
) -> Result<()> {
    let service = backend.service()?;
    let changes = VolumeChanges {
        service_uuid: Some(Some(service.uuid.clone())),
        shared_targets: Some(Some(false)),
        ..changes.clone()
    };
    let after = operation
        .write("hand a volume to a backup service", async |conn| {
            let changes = create::overtaken(conn, backend, volume, place, &changes).await?;
            let backup = db::backup::get(conn, backup_id).await?;
            let zone = backup.availability_zone.as_deref();
            let hosts = db::backup::hosts(conn, zone, backend.globals.service_down_time).await?;
            let host = choose(&backup, hosts, backend.globals.backup_use_same_host)?;
            if !db::backup::begin_restoration(conn, backup_id, &volume.id, &host).await? {
                return Err(Error::new(
                    Code::InvalidBackup,
                    format!("Backup {backup_id} is {}, not available", backup.status),
                ));
            }
            db::volume::transition(conn, &volume.id, VolumeEvent::HandedOver, &changes).await?;
            db::worker::release_resource(conn, "Volume", &volume.id, service.id).await?;
            let order = Order { backup_id: backup_id.to_owned(), host };
            operation.step_in(conn, HANDED_OVER, &order).await?;
            db::volume::get(conn, &volume.id).await
        })
        .await?;
    crash::point("create_volume:handed_over");
    // Upstream tells it here, too: the volume is made, if not filled.
    backend.notify_volume(context, "create.end", &after).await;
    Ok(())
}

/// Which of the backup services that are up restores: any (`_get_available_backup_service_host`).
fn choose(backup: &Backup, mut up: Vec<String>, same_host: bool) -> Result<String> {
    if let Some(own) = backup.host.as_ref().filter(|host| same_host && !host.is_empty()) {
        up.retain(|host| host == own);
    }
    let which = usize::try_from(Uuid::new_v4().as_u128() % up.len().max(1) as u128).unwrap_or(0);
    if which < up.len() {
        return Ok(up.swap_remove(which));
    }
    let zone = backup.availability_zone.as_deref().unwrap_or("any");
    Err(Error::new(Code::ServiceNotFound, "Service cinder-backup could not be found.")
        .detail(format!("none is up and enabled in availability zone {zone} that may restore {}", backup.id)))
}

/// Asks cinder-backup, and ends the operation. Nobody is asked when the restoration has come to its end already.
///
/// # Errors
/// `Broker`; `Database`; `Cancelled`.
pub(super) async fn ask(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume_id: &str,
) -> Result<()> {
    let Some(Order { backup_id, host }) = operation.reached(HANDED_OVER).await? else {
        return Err(Error::internal("A restoration that nobody has been chosen for cannot go on"));
    };
    let (volume, backup) = backend
        .db
        .read("restoration of a backup", async |conn| {
            Ok((db::volume::find(conn, volume_id).await?, db::backup::find(conn, &backup_id).await?))
        })
        .await?;
    let waiting = volume.is_some_and(|v| v.status == "creating");
    match backup.filter(|b| waiting && b.status == "restoring") {
        Some(backup) => {
            info!(volume.id = volume_id, backup.id = backup_id, host, "cinder-backup fills the volume");
            let order = RestoreBackup {
                unique_id: peers::sent_on(operation.unique_id(), "restore_backup"),
                host,
                backup,
                volume_id: volume_id.to_owned(),
            };
            backend.peers.backups.restore_backup(context, order).await?;
            crash::point("create_volume:restoration_asked");
        }
        None => warn!(volume.id = volume_id, backup.id = backup_id, "the restoration has ended already"),
    }
    backend.journal.finish(operation, &backend.done()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_service_that_is_up_restores_unless_it_must_be_the_one_that_made_the_backup() {
        let backup = Backup { host: Some("b2".to_owned()), ..Backup::default() };
        let up = || vec!["b1".to_owned(), "b2".to_owned()];
        assert!(up().contains(&choose(&backup, up(), false).unwrap()));
        assert_eq!(choose(&backup, vec!["b1".to_owned()], false).unwrap(), "b1");
        assert_eq!(choose(&backup, up(), true).unwrap(), "b2");
        for (hosts, same) in [(vec!["b1".to_owned()], true), (Vec::new(), false)] {
            assert_eq!(choose(&backup, hosts, same).unwrap_err().code(), Code::ServiceNotFound);
        }
        let nowhere = Backup::default();
        assert_eq!(choose(&nowhere, vec!["b1".to_owned()], true).unwrap(), "b1");
    }
}
