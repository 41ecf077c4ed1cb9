//! Volumes to another backend or another type.

use serde_json::{Map, Value};

use super::Args;
use crate::error::{Code, Error, Result};
use crate::rpc::dispatch::Method;
use crate::rpc::objects::WireVolume;

/// A backend that the scheduler chose.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Destination {
    /// `host@backend#pool`.
    pub host: String,
    /// Since 3.5.
    pub cluster_name: Option<String>,
    /// What that backend last reported.
    pub capabilities: Map<String, Value>,
}

/// `migrate_volume`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct MigrateVolume {
    pub volume: Box<WireVolume>,
    pub host: Destination,
    pub force_host_copy: bool,
}

/// `migrate_volume_completion`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct MigrateVolumeCompletion {
    pub volume: Box<WireVolume>,
    pub new_volume: Box<WireVolume>,
    pub error: bool,
}

/// `update_migrated_volume`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct UpdateMigratedVolume {
    pub volume: Box<WireVolume>,
    pub new_volume: Box<WireVolume>,
    pub volume_status: Option<String>,
}

/// `retype`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Retype {
    pub volume: Box<WireVolume>,
    pub new_type_id: String,
    pub host: Destination,
    /// `never` or `on-demand`.
    pub migration_policy: String,
    pub reservations: Vec<String>,
    pub old_reservations: Vec<String>,
}

fn destination(args: &mut Args) -> Result<Destination> {
    let mut map = args.map("host")?;
    let mut text = |key: &str| match map.remove(key) {
        Some(Value::String(s)) => Some(s),
        _ => None,
    };
    let host = text("host").ok_or_else(|| Error::new(Code::BadArguments, "The destination names no host"))?;
    let cluster_name = text("cluster_name");
    let capabilities = match map.remove("capabilities") {
        Some(Value::Object(capabilities)) => capabilities,
        _ => Map::new(),
    };
    Ok(Destination { host, cluster_name, capabilities })
}

pub(crate) fn migrate_volume(args: &mut Args) -> Result<Method> {
    let method = MigrateVolume {
        volume: args.volume("volume")?,
        host: destination(args)?,
        force_host_copy: args.flag("force_host_copy", false)?,
    };
    // Only the manager itself passes these, in process.
    args.optional("new_type_id");
    args.optional("diff");
    Ok(Method::MigrateVolume(method))
}

pub(crate) fn migrate_volume_completion(args: &mut Args) -> Result<Method> {
    Ok(Method::MigrateVolumeCompletion(MigrateVolumeCompletion {
        volume: args.volume("volume")?,
        new_volume: args.volume("new_volume")?,
        error: args.flag("error", false)?,
    }))
}

pub(crate) fn update_migrated_volume(args: &mut Args) -> Result<Method> {
    Ok(Method::UpdateMigratedVolume(UpdateMigratedVolume {
        volume: args.volume("volume")?,
        new_volume: args.volume("new_volume")?,
        volume_status: args.maybe_text("volume_status")?,
    }))
}

pub(crate) fn retype(args: &mut Args) -> Result<Method> {
    Ok(Method::Retype(Retype {
        volume: args.volume("volume")?,
        new_type_id: args.text("new_type_id")?,
        host: destination(args)?,
        migration_policy: args.maybe_text("migration_policy")?.unwrap_or_else(|| "never".to_owned()),
        reservations: args.texts("reservations")?,
        old_reservations: args.texts("old_reservations")?,
    }))
}
