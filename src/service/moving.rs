//! Requests that change a volume's type or its backend, handed to what carries them out.

use serde_json::Value;

use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::{Error, Result};
use crate::journal::Operation;
use crate::rpc::method::{Destination, MigrateVolume, MigrateVolumeCompletion, Retype, UpdateMigratedVolume};
use crate::volume::{migrate, migrated, retype};

fn destination(host: &Destination) -> migrate::Destination {
    migrate::Destination {
        host: host.host.clone(),
        cluster_name: host.cluster_name.clone(),
        capabilities: host.capabilities.clone(),
    }
}

fn retype_request(a: &Retype) -> retype::Retype {
    retype::Retype {
        volume_id: a.volume.volume.id.clone(),
        new_type_id: a.new_type_id.clone(),
        destination: destination(&a.host),
        may_move: a.migration_policy != "never",
        reservations: a.reservations.clone(),
        old_reservations: a.old_reservations.clone(),
    }
}

/// `retype`.
///
/// # Errors
/// Only when nothing could be recorded.
pub(super) async fn retype(b: &Backend, c: &RequestContext, o: &Operation, a: &Retype) -> Result<Value> {
    Box::pin(retype::retype(b, c, o, retype_request(a))).await?;
    Ok(Value::Null)
}

/// The same, failed by a defect.
///
/// # Errors
/// As [`retype()`].
pub(super) async fn give_up_retype(
    b: &Backend,
    c: &RequestContext,
    o: &Operation,
    a: &Retype,
    failure: Error,
) -> Result<()> {
    Box::pin(retype::give_up(b, c, o, retype_request(a), failure)).await
}

/// `migrate_volume`.
///
/// # Errors
/// Only when nothing could be recorded.
pub(super) async fn migrate(
    b: &Backend,
    c: &RequestContext,
    o: &Operation,
    a: &MigrateVolume,
) -> Result<Value> {
    let request = migrate::Migrate {
        volume_id: a.volume.volume.id.clone(),
        destination: destination(&a.host),
        force_host_copy: a.force_host_copy,
    };
    Box::pin(migrate::migrate(b, c, o, request)).await?;
    Ok(Value::Null)
}

/// `migrate_volume_completion`: answers the volume's id.
///
/// # Errors
/// What the caller is to hear.
pub(super) async fn complete(
    b: &Backend,
    c: &RequestContext,
    o: &Operation,
    a: &MigrateVolumeCompletion,
) -> Result<Value> {
    let request = migrated::Completion {
        volume_id: a.volume.volume.id.clone(),
        new_volume_id: a.new_volume.volume.id.clone(),
        failed: a.error,
    };
    Ok(Value::String(Box::pin(migrated::complete(b, c, o, request)).await?))
}

/// `update_migrated_volume`.
///
/// # Errors
/// What the caller is to hear.
pub(super) async fn update(b: &Backend, o: &Operation, a: &UpdateMigratedVolume) -> Result<Value> {
    let request = migrated::Update {
        volume_id: a.volume.volume.id.clone(),
        new_volume_id: a.new_volume.volume.id.clone(),
        status: a.volume_status.clone(),
    };
    Box::pin(migrated::update(b, o, request)).await?;
    Ok(Value::Null)
}
