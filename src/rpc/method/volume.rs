//! Create, delete, extend, and hand over volumes.

use serde_json::{Map, Value};

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::{RequestSpec, WireVolume};

/// `create_volume`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct CreateVolume {
    pub volume: Box<WireVolume>,
    /// Legitimately null for migration targets and cache entries.
    pub request_spec: Option<Box<RequestSpec>>,
    /// Returned intact when rescheduling.
    pub filter_properties: Option<Map<String, Value>>,
    pub allow_reschedule: bool,
}

impl CreateVolume {
    /// The scheduler will take the volume back: it said so, and told how often it tried.
    pub fn may_reschedule(&self) -> bool {
        self.allow_reschedule
            && self.request_spec.is_some()
            && self.filter_properties.as_ref().is_some_and(|f| f.get("retry").is_some_and(|r| !r.is_null()))
    }
}

/// `delete_volume`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct DeleteVolume {
    pub volume: Box<WireVolume>,
    pub unmanage_only: bool,
    pub cascade: bool,
}

/// `extend_volume`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ExtendVolume {
    pub volume: Box<WireVolume>,
    /// GiB.
    pub new_size: i32,
    pub reservations: Vec<String>,
}

/// `extend_volume_completion`: Nova has resized (or could not resize) what only it can.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ExtendVolumeCompletion {
    pub volume: Box<WireVolume>,
    pub new_size: i32,
    pub reservations: Vec<String>,
    pub error: bool,
}

/// `accept_transfer`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct AcceptTransfer {
    pub volume_id: String,
    pub new_user: Option<String>,
    pub new_project: Option<String>,
    pub no_snapshots: bool,
}

pub(crate) fn create_volume(args: &mut Args) -> Result<Method> {
    Ok(Method::CreateVolume(CreateVolume {
        volume: args.volume("volume")?,
        request_spec: args
            .optional("request_spec")
            .map(|v| RequestSpec::parse(&v).map(Box::new))
            .transpose()?,
        filter_properties: args.maybe_map("filter_properties")?,
        allow_reschedule: args.flag("allow_reschedule", true)?,
    }))
}

pub(crate) fn delete_volume(args: &mut Args) -> Result<Method> {
    Ok(Method::DeleteVolume(DeleteVolume {
        volume: args.volume("volume")?,
        unmanage_only: args.flag("unmanage_only", false)?,
        cascade: args.flag("cascade", false)?,
    }))
}

pub(crate) fn extend_volume(args: &mut Args) -> Result<Method> {
    Ok(Method::ExtendVolume(ExtendVolume {
        volume: args.volume("volume")?,
        new_size: args.integer("new_size")?,
        reservations: args.texts("reservations")?,
    }))
}

pub(crate) fn extend_volume_completion(args: &mut Args) -> Result<Method> {
    Ok(Method::ExtendVolumeCompletion(ExtendVolumeCompletion {
        volume: args.volume("volume")?,
        new_size: args.integer("new_size")?,
        reservations: args.texts("reservations")?,
        error: args.flag("error", false)?,
    }))
}

pub(crate) fn accept_transfer(args: &mut Args) -> Result<Method> {
    Ok(Method::AcceptTransfer(AcceptTransfer {
        volume_id: args.text("volume_id")?,
        new_user: args.maybe_text("new_user")?,
        new_project: args.maybe_text("new_project")?,
        no_snapshots: args.flag("no_snapshots", false)?,
    }))
}
