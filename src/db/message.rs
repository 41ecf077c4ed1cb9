//! User messages: how a user learns why an asynchronous request failed (`cinder/message`).
//!
//! A message says what was attempted ([`Action`]) and what went wrong ([`Detail`]), both by number; the
//! API has the sentences. It never carries the error's own text.

use std::time::Duration;

use chrono::TimeDelta;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::schema::messages;
use super::{Conn, now};
use crate::context::RequestContext;
use crate::error::{Code, Result};

/// What the message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ResourceType {
    Volume,
    Snapshot,
    Backup,
    /// Not one of upstream's, which tells nothing about groups.
    Group,
    /// As [`ResourceType::Group`].
    GroupSnapshot,
}

impl ResourceType {
    /// The text in `resource_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            ResourceType::Volume => "VOLUME",
            ResourceType::Snapshot => "VOLUME_SNAPSHOT",
            ResourceType::Backup => "VOLUME_BACKUP",
            ResourceType::Group => "GROUP",
            ResourceType::GroupSnapshot => "GROUP_SNAPSHOT",
        }
    }
}

/// What was attempted (`message_field.Action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    ScheduleAllocateVolume,
    AttachVolume,
    CopyVolumeToImage,
    UpdateAttachment,
    CopyImageToVolume,
    UnmanageVolume,
    ExtendVolume,
    CreateVolumeFromBackend,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotUpdate,
    SnapshotMetadataUpdate,
    BackupCreate,
    BackupDelete,
    BackupRestore,
    ReimageVolume,
    /// One that upstream's list lacks; the API shows "unknown action".
    Unnamed,
}

impl Action {
    /// The number in `action_id`, empty where upstream has none.
    pub fn id(self) -> &'static str {
        match self {
            Action::ScheduleAllocateVolume => "001",
            Action::AttachVolume => "002",
            Action::CopyVolumeToImage => "003",
            Action::UpdateAttachment => "004",
            Action::CopyImageToVolume => "005",
            Action::UnmanageVolume => "006",
            Action::ExtendVolume => "007",
            Action::CreateVolumeFromBackend => "008",
            Action::SnapshotCreate => "009",
            Action::SnapshotDelete => "010",
            Action::SnapshotUpdate => "011",
            Action::SnapshotMetadataUpdate => "012",
            Action::BackupCreate => "013",
            Action::BackupDelete => "014",
            Action::BackupRestore => "015",
            Action::ReimageVolume => "016",
            Action::Unnamed => "",
        }
    }
}

/// What went wrong (`message_field.Detail`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Detail {
    UnknownError,
    DriverNotInitialized,
    NoBackendAvailable,
    FailedToUploadVolume,
    VolumeAttachModeInvalid,
    QuotaExceed,
    NotEnoughSpaceForImage,
    UnmanageEncNotSupported,
    NotifyComputeServiceFailed,
    DriverFailedExtend,
    SignatureVerificationFailed,
    DriverFailedCreate,
    SnapshotCreateError,
    SnapshotUpdateMetadataFailed,
    SnapshotIsBusy,
    SnapshotDeleteError,
    BackupInvalidState,
    BackupServiceDown,
    BackupCreateDeviceError,
    BackupCreateDriverError,
    AttachError,
    DetachError,
    BackupCreateCleanupError,
    BackupScheduleError,
    BackupDeleteDriverError,
    BackupRestoreError,
    VolumeInvalidState,
    ReimageVolumeFailed,
    ImageFormatUnacceptable,
    IncrementalBackupForcesFullBackup,
}

impl Detail {
    /// The number in `detail_id`.
    pub fn id(self) -> &'static str {
        match self {
            Detail::UnknownError => "001",
            Detail::DriverNotInitialized => "002",
            Detail::NoBackendAvailable => "003",
            Detail::FailedToUploadVolume => "004",
            Detail::VolumeAttachModeInvalid => "005",
            Detail::QuotaExceed => "006",
            Detail::NotEnoughSpaceForImage => "007",
            Detail::UnmanageEncNotSupported => "008",
            Detail::NotifyComputeServiceFailed => "009",
            Detail::DriverFailedExtend => "010",
            Detail::SignatureVerificationFailed => "011",
            Detail::DriverFailedCreate => "012",
            Detail::SnapshotCreateError => "013",
            Detail::SnapshotUpdateMetadataFailed => "014",
            Detail::SnapshotIsBusy => "015",
            Detail::SnapshotDeleteError => "016",
            Detail::BackupInvalidState => "017",
            Detail::BackupServiceDown => "018",
            Detail::BackupCreateDeviceError => "019",
            Detail::BackupCreateDriverError => "020",
            Detail::AttachError => "021",
            Detail::DetachError => "022",
            Detail::BackupCreateCleanupError => "023",
            Detail::BackupScheduleError => "024",
            Detail::BackupDeleteDriverError => "025",
            Detail::BackupRestoreError => "026",
            Detail::VolumeInvalidState => "027",
            Detail::ReimageVolumeFailed => "028",
            Detail::ImageFormatUnacceptable => "029",
            Detail::IncrementalBackupForcesFullBackup => "030",
        }
    }

    /// The detail that an error has by itself, whatever was attempted; else `otherwise`
    /// (`EXCEPTION_DETAIL_MAPPINGS`).
    pub fn of(code: Code, otherwise: Detail) -> Detail {
        match code {
            Code::DriverNotInitialized => Detail::DriverNotInitialized,
            Code::InvalidVolumeAttachMode => Detail::VolumeAttachModeInvalid,
            Code::SnapshotBusy => Detail::SnapshotIsBusy,
            Code::ImageLimitExceeded => Detail::QuotaExceed,
            Code::ImageTooBig | Code::ImageDoesNotFit => Detail::NotEnoughSpaceForImage,
            Code::ImageSignature | Code::InvalidSignatureImage => Detail::SignatureVerificationFailed,
            Code::ImageConversionNotAllowed => Detail::ImageFormatUnacceptable,
            _ => otherwise,
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Level {
    #[default]
    Error,
    Warning,
    Info,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Error => "ERROR",
            Level::Warning => "WARNING",
            Level::Info => "INFO",
        }
    }
}

/// A message to write.
#[derive(Debug, Clone)]
pub struct Message {
    /// The kind of resource.
    pub resource_type: ResourceType,
    /// The resource.
    pub resource_id: String,
    /// What was attempted.
    pub action: Action,
    /// What went wrong.
    pub detail: Detail,
    /// How bad it is.
    pub level: Level,
}

impl Message {
    /// An error about a volume.
    pub fn volume(id: &str, action: Action, detail: Detail) -> Self {
        Message {
            resource_type: ResourceType::Volume,
            resource_id: id.to_owned(),
            action,
            detail,
            level: Level::Error,
        }
    }

    /// An error about a snapshot.
    pub fn snapshot(id: &str, action: Action, detail: Detail) -> Self {
        Message { resource_type: ResourceType::Snapshot, ..Message::volume(id, action, detail) }
    }

    /// An error about any resource.
    pub fn about(resource_type: ResourceType, id: &str, action: Action, detail: Detail) -> Self {
        Message { resource_type, ..Message::volume(id, action, detail) }
    }

    fn event_id(&self) -> String {
        format!("VOLUME_{}_{}_{}", self.resource_type.as_str(), self.action.id(), self.detail.id())
    }
}

/// Writes the message under the context's project and returns its id; `None` when the context has no
/// project, as for work that the service started itself (the column cannot be NULL).
///
/// # Errors
/// `Database`.
pub async fn create(
    conn: &mut Conn,
    context: &RequestContext,
    message: &Message,
    ttl: Duration,
) -> Result<Option<String>> {
    let Some(project) = &context.project_id else {
        return Ok(None);
    };
    let id = Uuid::new_v4().to_string();
    let at = now();
    let ttl = TimeDelta::from_std(ttl).unwrap_or(TimeDelta::days(30));
    diesel::insert_into(messages::table)
        .values((
            messages::id.eq(&id),
            messages::project_id.eq(project),
            messages::message_level.eq(message.level.as_str()),
            messages::request_id.eq(&context.request_id),
            messages::resource_type.eq(message.resource_type.as_str()),
            messages::resource_uuid.eq(&message.resource_id),
            messages::event_id.eq(message.event_id()),
            messages::detail_id.eq(message.detail.id()),
            messages::action_id.eq(message.action.id()),
            messages::expires_at.eq(at + ttl),
            messages::deleted.eq(false),
            messages::created_at.eq(at),
        ))
        .execute(conn)
        .await?;
    Ok(Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_are_those_of_stock() {
        let message = Message::snapshot("s", Action::SnapshotCreate, Detail::SnapshotCreateError);
        assert_eq!(message.event_id(), "VOLUME_VOLUME_SNAPSHOT_009_013");
        let detail = Detail::of(Code::DriverNotInitialized, Detail::DriverFailedCreate);
        let message = Message::volume("v", Action::CreateVolumeFromBackend, detail);
        assert_eq!(message.event_id(), "VOLUME_VOLUME_008_002");
        assert_eq!(Detail::of(Code::VolumeBackend, Detail::DriverFailedExtend).id(), "010");
    }
}
