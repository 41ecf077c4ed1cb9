//! The two generations of attaching: `attach_volume`/`detach_volume`, and the attachments API.

use serde_json::{Map, Value};

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::WireVolume;

/// `attach_volume`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct AttachVolume {
    pub volume_id: String,
    pub instance_uuid: Option<String>,
    pub host_name: Option<String>,
    pub mountpoint: Option<String>,
    pub mode: Option<String>,
    /// Absent before 3.3.
    pub volume: Option<Box<WireVolume>>,
}

/// `detach_volume`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct DetachVolume {
    pub volume_id: String,
    pub attachment_id: Option<String>,
    /// Absent before 3.4.
    pub volume: Option<Box<WireVolume>>,
}

/// `attachment_update`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct AttachmentUpdate {
    pub volume: Box<WireVolume>,
    pub connector: Map<String, Value>,
    pub attachment_id: String,
}

/// `attachment_delete`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct AttachmentDelete {
    pub attachment_id: String,
    pub volume: Box<WireVolume>,
}

pub(crate) fn attach_volume(args: &mut Args) -> Result<Method> {
    Ok(Method::AttachVolume(AttachVolume {
        volume_id: args.text("volume_id")?,
        instance_uuid: args.maybe_text("instance_uuid")?,
        host_name: args.maybe_text("host_name")?,
        mountpoint: args.maybe_text("mountpoint")?,
        mode: args.maybe_text("mode")?,
        volume: args.maybe_volume("volume")?,
    }))
}

pub(crate) fn detach_volume(args: &mut Args) -> Result<Method> {
    Ok(Method::DetachVolume(DetachVolume {
        volume_id: args.text("volume_id")?,
        attachment_id: args.maybe_text("attachment_id")?,
        volume: args.maybe_volume("volume")?,
    }))
}

pub(crate) fn attachment_update(args: &mut Args) -> Result<Method> {
    Ok(Method::AttachmentUpdate(AttachmentUpdate {
        volume: args.volume("vref")?,
        connector: args.map("connector")?,
        attachment_id: args.text("attachment_id")?,
    }))
}

pub(crate) fn attachment_delete(args: &mut Args) -> Result<Method> {
    Ok(Method::AttachmentDelete(AttachmentDelete {
        attachment_id: args.text("attachment_id")?,
        volume: args.volume("vref")?,
    }))
}
