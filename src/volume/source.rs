//! Where the content of a new volume comes from, and what follows from that: which lock keeps the source, whether
//! the volume boots, and what its user is told of a failure.

use super::create::Create;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::db::volume::GlanceSource;
use crate::error::{Code, Result};
use crate::model::Volume;

/// Where the content of a new volume comes from, in upstream's order of precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Snapshot(String),
    Volume(String),
    Image(String),
    Backup(String),
    Raw,
}

impl Source {
    pub(super) fn of(volume: &Volume, create: &Create) -> Source {
        if let Some(id) = &volume.snapshot_id {
            Source::Snapshot(id.clone())
        } else if let Some(id) = &volume.source_volid {
            Source::Volume(id.clone())
        } else if let Some(id) = &create.image_id {
            Source::Image(id.clone())
        } else if let Some(id) = &create.backup_id {
            Source::Backup(id.clone())
        } else {
            Source::Raw
        }
    }

    /// The lock that keeps the source from being deleted meanwhile (`cinder/volume/manager.py`).
    pub(super) fn lock(&self) -> Option<String> {
        match self {
            Source::Snapshot(id) => Some(format!("{id}-delete_snapshot")),
            Source::Volume(id) => Some(format!("{id}-delete_volume")),
            Source::Image(_) | Source::Backup(_) | Source::Raw => None,
        }
    }

    /// Where its image metadata comes from, when the origin boots.
    pub(super) async fn image_metadata(&self, conn: &mut db::Conn) -> Result<Option<GlanceSource<'_>>> {
        let (origin, from) = match self {
            Source::Snapshot(id) => {
                let Some(snapshot) = db::snapshot::find(conn, id).await? else { return Ok(None) };
                (snapshot.volume_id, GlanceSource::Snapshot(id))
            }
            Source::Volume(id) => (id.clone(), GlanceSource::Volume(id)),
            Source::Image(_) | Source::Backup(_) | Source::Raw => return Ok(None),
        };
        let boots = db::volume::find(conn, &origin).await?.is_some_and(|v| v.bootable);
        Ok(boots.then_some(from))
    }

    /// What the user is told when the volume could not be made.
    pub(super) fn message(&self, volume_id: &str, code: Code) -> Message {
        let (action, detail) = match self {
            Source::Image(_) => (Action::CopyImageToVolume, Detail::UnknownError),
            Source::Backup(_)
                if matches!(code, Code::BackupNotFound | Code::InvalidBackup | Code::ServiceNotFound) =>
            {
                (Action::BackupRestore, Detail::BackupRestoreError)
            }
            Source::Snapshot(_) | Source::Volume(_) | Source::Backup(_) | Source::Raw => {
                (Action::CreateVolumeFromBackend, Detail::DriverFailedCreate)
            }
        };
        Message::volume(volume_id, action, Detail::of(code, detail))
    }
}
