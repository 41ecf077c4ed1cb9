//! From a typed request to the operation that serves it.
//!
//! Nothing is decided here: arguments are unpacked, the operation is called, its result becomes the
//! answer. What makes it safe is the frame around it: the journal entry is written before the broker
//! hears of success, and it is closed whatever the operation did, or given back to whoever can finish it.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::Utc;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tracing::warn;

use super::frame::{self, Frame};
use super::lanes::{Lane, Lanes};
use super::logging::LogHandle;
use super::{backups, defect, manageable, moving, ordering};
use crate::backend::peers::Reschedule;
use crate::backend::{Backend, capacity};
use crate::context::RequestContext;
use crate::db;
use crate::db::worker::{Claim, is_cleanable};
use crate::error::{Code, Result};
use crate::journal::{self, Ending, NewOperation, Operation, Outcome};
use crate::replication::{failover, foresight, group as replication, standing};
use crate::rpc::method::{CreateVolume, ExtendVolume, ExtendVolumeCompletion, Reimage};
use crate::rpc::objects::{LogLevel, WireVolume, attachment_object, log_level_list};
use crate::rpc::{Accept, Call, Handler, Method, synthetic};
use crate::volume::{
    attach, cleanup, connect, create, delete, extend, manage, manage_snapshot, reimage, revert, snapshot,
    transfer, upload,
};

/// Serves the requests of one backend.
pub struct BackendHandler {
    backend: Arc<Backend>,
    log: LogHandle,
    lanes: Lanes,
    frame: Frame,
}

impl BackendHandler {
    /// A handler for `backend`, working on `size` calls and as many casts at once; `log` is changed by
    /// `set_log_levels`.
    pub fn new(backend: Arc<Backend>, log: LogHandle, size: usize) -> BackendHandler {
        let frame = Frame::new(backend.journal.clone());
        BackendHandler { backend, log, lanes: Lanes::new(size), frame }
    }

    /// Runs a request that is in the journal to its end: closes the entry, with the answer for a caller,
    /// or gives it back when only waiting helps.
    ///
    /// # Errors
    /// What the operation failed with; `Cancelled` when somebody else will finish it.
    pub fn run_journaled<'a>(&'a self, call: &'a Call, operation: Operation) -> BoxFuture<'a, Result<Value>> {
        async move {
            let lane = Lane::of(&call.method, call.reply.is_some());
            let work = Box::pin(async {
                let _place = self.lanes.enter(lane).await;
                self.dispatch(call, Some(&operation)).await
            });
            let settle = || defect::settle(&self.backend, &call.context, &operation, &call.method).boxed();
            self.frame.run(call, &operation, work, settle).await
        }
        .boxed()
    }

    /// Makes Cinder's `workers` row ours that another member of the cluster had claimed: it would outlive the
    /// request otherwise, and be cleaned up as work of a service that is gone.
    ///
    /// # Errors
    /// `Cancelled` when the operation has another owner; `Database`.
    pub async fn claim_again(&self, call: &Call, operation: &Operation) -> Result<()> {
        let Some(claim) = claim(call, self.backend.service()?.id) else { return Ok(()) };
        operation.write("claim again", async |conn| db::worker::claim(conn, &claim).await.map(|_| ())).await
    }

    // Boxed, as its arms are: whether a future may be sent to another thread is then proved once for each, and not
    // for the whole tree wherever one is started, which takes the compiler minutes.
    fn dispatch<'a>(
        &'a self,
        call: &'a Call,
        operation: Option<&'a Operation>,
    ) -> BoxFuture<'a, Result<Value>> {
        async move {
            let backend = &*self.backend;
            let context = &call.context;
            match (&call.method, operation) {
                (method, Some(operation)) => self.journaled(method, context, operation, call.name).await,
                (Method::GetCapabilities { discover }, None) => {
                    let report = if *discover { backend.refresh_report().await } else { backend.report() };
                    Ok(Value::Object(capacity::with_properties(report)))
                }
                (Method::PublishServiceCapabilities, None) => {
                    backend.want_report();
                    Ok(Value::Null)
                }
                (Method::FailoverCompleted { updates }, None) => {
                    standing::completed(backend, updates).await?;
                    Ok(Value::Null)
                }
                (Method::InitializeConnection(a), None) => {
                    connect::initialize(backend, &a.volume.volume.id, &a.connector).boxed().await
                }
                (Method::TerminateConnection(a), None) => {
                    connect::terminate(backend, &a.volume_id, a.connector.as_ref()).await?;
                    Ok(Value::Null)
                }
                (Method::RemoveExport { volume_id }, None) => {
                    connect::terminate(backend, volume_id, None).await?;
                    Ok(Value::Null)
                }
                (Method::InitializeConnectionSnapshot(a), None) => {
                    connect::initialize_snapshot(backend, &a.snapshot_id).await
                }
                (Method::TerminateConnectionSnapshot(a), None) => {
                    connect::terminate_snapshot(backend, &a.snapshot_id).await?;
                    Ok(Value::Null)
                }
                (Method::RemoveExportSnapshot { snapshot_id }, None) => {
                    connect::terminate_snapshot(backend, snapshot_id).await?;
                    Ok(Value::Null)
                }
                (Method::AcceptTransfer(a), None) => {
                    // The API moves the rows; an RBD image has no owner.
                    transfer::accept(backend, &a.volume_id).await?;
                    Ok(Value::Null)
                }
                (Method::ListReplicationTargets { group }, None) => {
                    replication::targets(backend, context, &group.group.id).await
                }
                (Method::Order(order), None) => ordering::take(backend, context, order, None).boxed().await,
                (Method::ReplicationStatus { operation }, None) => {
                    ordering::status(backend, *operation).await
                }
                (Method::Question(inquiry), None) => foresight::document(backend, 0, inquiry).boxed().await,
                (Method::GetManageableVolumes(page), None) => {
                    manageable::volumes(backend, page).boxed().await
                }
                (Method::GetManageableSnapshots(page), None) => {
                    manageable::snapshots(backend, page).boxed().await
                }
                (Method::SecureFileOperationsEnabled { .. }, None) => Ok(Value::Bool(false)),
                (Method::SetLogLevels(level), None) => {
                    self.log.set(
                        level.prefix.as_deref().unwrap_or_default(),
                        level.level.as_deref().unwrap_or_default(),
                    )?;
                    Ok(Value::Null)
                }
                (Method::GetLogLevels(level), None) => {
                    let levels: Vec<LogLevel> = self
                        .log
                        .levels(level.prefix.as_deref().unwrap_or_default())
                        .into_iter()
                        .map(|(prefix, level)| LogLevel { prefix: Some(prefix), level: Some(level) })
                        .collect();
                    log_level_list(&levels)
                }
                (_, None) => Err(crate::rpc::fault::no_such_method(call.name)),
            }
        }
        .boxed()
    }

    fn journaled<'a>(
        &'a self,
        method: &'a Method,
        context: &'a RequestContext,
        operation: &'a Operation,
        name: &'static str,
    ) -> BoxFuture<'a, Result<Value>> {
        async move {
            let backend = &*self.backend;
            match method {
                Method::CreateVolume(a) => {
                    create::create(backend, context, operation, create_request(a)).boxed().await?;
                    Ok(Value::Null)
                }
                Method::DeleteVolume(a) => {
                    let request = delete::Delete {
                        volume_id: a.volume.volume.id.clone(),
                        unmanage_only: a.unmanage_only,
                        cascade: a.cascade,
                    };
                    delete::delete(backend, context, operation, request).boxed().await?;
                    backend.want_report();
                    Ok(Value::Null)
                }
                Method::ExtendVolume(a) => {
                    extend::extend(backend, context, operation, a.into()).boxed().await?;
                    Ok(Value::Null)
                }
                Method::ExtendVolumeCompletion(a) => {
                    extend::complete(backend, context, operation, a.into(), a.error).boxed().await?;
                    Ok(Value::Null)
                }
                Method::CreateSnapshot(a) => {
                    snapshot::create(backend, context, operation, &a.snapshot.snapshot.id).boxed().await?;
                    Ok(Value::Null)
                }
                Method::DeleteSnapshot(a) => {
                    snapshot::delete(backend, context, operation, &a.snapshot.snapshot.id, a.unmanage_only)
                        .boxed()
                        .await?;
                    Ok(Value::Null)
                }
                Method::RevertToSnapshot(a) => {
                    let request = revert::Revert {
                        volume_id: a.volume.volume.id.clone(),
                        snapshot_id: a.snapshot.snapshot.id.clone(),
                    };
                    revert::revert(backend, context, operation, request).boxed().await?;
                    Ok(Value::Null)
                }
                Method::Reimage(a) => {
                    reimage::reimage(backend, context, operation, reimage_request(a)).boxed().await?;
                    Ok(Value::Null)
                }
                Method::ManageExisting(a) => {
                    let volume_id = a.volume.volume.id.clone();
                    let request = manage::Manage { volume_id, reference: a.reference.clone() };
                    manage::manage(backend, context, operation, request).boxed().await?;
                    Ok(Value::Null)
                }
                Method::ManageExistingSnapshot(a) => {
                    let request = manage_snapshot::ManageSnapshot {
                        snapshot_id: a.snapshot.snapshot.id.clone(),
                        reference: a.reference.clone(),
                    };
                    manage_snapshot::manage(backend, context, operation, request).boxed().await?;
                    Ok(Value::Null)
                }
                Method::AttachVolume(a) => {
                    let request = attach::Attach {
                        volume_id: a.volume_id.clone(),
                        instance_uuid: a.instance_uuid.clone(),
                        host_name: a.host_name.clone(),
                        mountpoint: a.mountpoint.clone(),
                        mode: a.mode.clone(),
                    };
                    let attachment = attach::attach(backend, context, operation, request).boxed().await?;
                    Ok(attachment_object(&attachment, None)?.to_value())
                }
                Method::DetachVolume(a) => {
                    attach::detach(backend, context, operation, &a.volume_id, a.attachment_id.as_deref())
                        .boxed()
                        .await?;
                    Ok(Value::Null)
                }
                Method::AttachmentUpdate(a) => {
                    let id = &a.volume.volume.id;
                    attach::update(backend, context, operation, id, &a.attachment_id, a.connector.clone())
                        .boxed()
                        .await
                }
                Method::AttachmentDelete(a) => {
                    attach::delete(backend, context, &a.volume.volume.id, &a.attachment_id).boxed().await?;
                    Ok(Value::Null)
                }
                Method::InitializeConnection(a) => {
                    connect::initialize(backend, &a.volume.volume.id, &a.connector).boxed().await
                }
                Method::TerminateConnection(a) => {
                    connect::terminate(backend, &a.volume_id, a.connector.as_ref()).boxed().await?;
                    Ok(Value::Null)
                }
                Method::RemoveExport { volume_id } => {
                    connect::terminate(backend, volume_id, None).boxed().await?;
                    Ok(Value::Null)
                }
                Method::Failover { secondary_backend_id } => {
                    failover::failover(backend, context, operation, secondary_backend_id.as_deref())
                        .boxed()
                        .await?;
                    backend.want_report();
                    Ok(Value::Null)
                }
                Method::FailoverCompleted { updates } => {
                    standing::completed(backend, updates).boxed().await?;
                    Ok(Value::Null)
                }
                Method::FreezeHost => {
                    standing::freeze(backend, operation, true).boxed().await?;
                    Ok(Value::Bool(true))
                }
                Method::ThawHost => {
                    standing::freeze(backend, operation, false).boxed().await?;
                    Ok(Value::Bool(true))
                }
                Method::DoCleanup(a) => {
                    let request = cleanup::Cleanup {
                        service_id: a.service_id,
                        resource_type: a.resource_type.clone(),
                        resource_id: a.resource_id.clone(),
                        until: a.until,
                    };
                    cleanup::do_cleanup(backend, context, operation, request, &synthetic::delete_volume)
                        .boxed()
                        .await?;
                    Ok(Value::Null)
                }
                Method::CreateGroup { .. }
                | Method::CreateGroupFromSource(_)
                | Method::UpdateGroup(_)
                | Method::DeleteGroup { .. }
                | Method::CreateGroupSnapshot { .. }
                | Method::DeleteGroupSnapshot { .. }
                | Method::EnableReplication { .. }
                | Method::DisableReplication { .. }
                | Method::FailoverReplication(_) => {
                    super::group::run(backend, context, operation, method).boxed().await?;
                    Ok(Value::Null)
                }
                Method::CopyVolumeToImage(a) => {
                    let request = upload::Upload::new(&a.volume_id, &a.image_meta);
                    upload::upload(backend, context, operation, request).boxed().await?;
                    Ok(Value::Null)
                }
                Method::Retype(a) => moving::retype(backend, context, operation, a).boxed().await,
                Method::MigrateVolume(a) => moving::migrate(backend, context, operation, a).boxed().await,
                Method::MigrateVolumeCompletion(a) => {
                    moving::complete(backend, context, operation, a).boxed().await
                }
                Method::UpdateMigratedVolume(a) => moving::update(backend, operation, a).boxed().await,
                Method::GetBackupDevice(a) => {
                    backups::get_device(backend, context, operation, a).boxed().await
                }
                Method::RemoveExportSnapshot { snapshot_id } => {
                    connect::terminate_snapshot(backend, snapshot_id).boxed().await?;
                    Ok(Value::Null)
                }
                Method::Order(order) => {
                    ordering::take(backend, context, order, Some(operation)).boxed().await
                }
                _ => Err(crate::rpc::fault::no_such_method(name)),
            }
        }
        .boxed()
    }
}

fn create_request(a: &CreateVolume) -> create::Create {
    let spec = a.request_spec.as_deref();
    let reschedule = a.may_reschedule().then(|| Reschedule {
        volume: volume_without_host(&a.volume),
        snapshot_id: spec.and_then(|s| s.snapshot_id.clone()),
        image_id: spec.and_then(|s| s.image_id.clone()),
        backup_id: spec.and_then(|s| s.backup_id.clone()),
        request_spec: spec.map_or(Value::Null, |s| s.value.clone()),
        filter_properties: a.filter_properties.clone().map_or(Value::Null, Value::Object),
    });
    create::Create {
        volume_id: a.volume.volume.id.clone(),
        image_id: spec.and_then(|s| s.image_id.clone()),
        backup_id: spec.and_then(|s| s.backup_id.clone()),
        reschedule,
    }
}

impl From<&ExtendVolume> for extend::Extend {
    fn from(a: &ExtendVolume) -> extend::Extend {
        extend::Extend {
            volume_id: a.volume.volume.id.clone(),
            new_size: a.new_size,
            reservations: a.reservations.clone(),
        }
    }
}

impl From<&ExtendVolumeCompletion> for extend::Extend {
    fn from(a: &ExtendVolumeCompletion) -> extend::Extend {
        extend::Extend {
            volume_id: a.volume.volume.id.clone(),
            new_size: a.new_size,
            reservations: a.reservations.clone(),
        }
    }
}

fn reimage_request(a: &Reimage) -> reimage::Reimage {
    reimage::Reimage {
        volume_id: a.volume.volume.id.clone(),
        image_meta: a.image_meta.clone(),
        snapshot_id: a.image_snap.as_ref().map(|s| s.snapshot.id.clone()),
    }
}

/// The Volume object as it goes back to the scheduler: placed nowhere.
fn volume_without_host(volume: &WireVolume) -> Value {
    let mut object = volume.object.clone();
    object.set("host", Value::Null);
    object.set("scheduled_at", json!(Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string()));
    object.to_value()
}

/// What a request claims in Cinder's `workers` table: those kinds of work that stock cleans up.
fn claim(call: &Call, service_id: i32) -> Option<Claim> {
    let (resource_type, status) = match &call.method {
        Method::CreateVolume(a) => ("Volume", &a.volume.volume.status),
        Method::DeleteVolume(a) => ("Volume", &a.volume.volume.status),
        Method::CreateSnapshot(a) => ("Snapshot", &a.snapshot.snapshot.status),
        _ => return None,
    };
    is_cleanable(resource_type, status).then(|| Claim {
        resource_type: resource_type.to_owned(),
        resource_id: call.method.resource().map(|r| r.id().to_owned()).unwrap_or_default(),
        status: status.clone(),
        service_id,
    })
}

#[async_trait]
impl Handler for BackendHandler {
    type Operation = Operation;

    async fn accept(&self, call: &Call) -> Result<Accept<Operation>> {
        let service = self.backend.service()?;
        let new = NewOperation {
            cluster: self.backend.config.cluster.clone(),
            claim: claim(call, service.id),
            ..frame::entry(call, self.backend.host())
        };
        Ok(match self.backend.journal.accept(new).await? {
            journal::Accept::New(operation) => Accept::New(operation),
            journal::Accept::Duplicate => Accept::Duplicate,
        })
    }

    async fn run(&self, call: &Call, operation: Option<Operation>) -> Result<Value> {
        match operation {
            Some(operation) => {
                let id = operation.id();
                let outcome = self.run_journaled(call, operation).await;
                if call.reply.is_some() && outcome.as_ref().is_err_and(|e| e.code() == Code::Cancelled) {
                    tracing::debug!(
                        operation.id = id,
                        "a caller is answered by whoever finishes the operation"
                    );
                }
                outcome
            }
            None => {
                let _place = self.lanes.enter(Lane::of(&call.method, call.reply.is_some())).await;
                self.dispatch(call, None).await
            }
        }
    }

    async fn replied(&self, call: &Call) {
        if let Err(error) = self.backend.journal.mark_replied_by(&call.unique_id).await {
            warn!(request_id = call.context.request_id, %error, "could not note that a reply was sent; it may be sent twice");
        }
    }
}

/// The outcome of a call whose caller had stopped waiting when a crash was recovered from.
pub fn rolled_back() -> Outcome {
    Outcome {
        ending: Ending::RolledBack,
        detail: Some("the caller had stopped waiting before the operation was taken over".to_owned()),
        reply: None,
    }
}
