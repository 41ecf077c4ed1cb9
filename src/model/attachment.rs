//! An attachment of a volume to an instance or host.

use chrono::NaiveDateTime;
use serde_json::Value;

/// A row of `volume_attachment`.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Attachment {
    pub id: String,
    pub volume_id: String,
    pub instance_uuid: Option<String>,
    pub attached_host: Option<String>,
    pub mountpoint: Option<String>,
    pub attach_time: Option<NaiveDateTime>,
    pub detach_time: Option<NaiveDateTime>,
    pub attach_status: Option<String>,
    /// `ro`, `rw`, or the text `null`.
    pub attach_mode: Option<String>,
    pub connection_info: Option<Value>,
    pub connector: Option<Value>,
    pub created_at: Option<NaiveDateTime>,
    pub updated_at: Option<NaiveDateTime>,
}

/// What `attach_volume` creates.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct AttachmentDraft {
    pub volume_id: String,
    pub instance_uuid: Option<String>,
    pub attached_host: Option<String>,
    pub mountpoint: Option<String>,
    pub attach_mode: Option<String>,
}
