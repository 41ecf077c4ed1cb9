//! What Scoria itself asks of other Cinder services: the scheduler and the volume services (the backup
//! services: [`super::backup`]).
//!
//! Messages are built by pure functions (tested against captured ones) and sent by [`Peers`], in the
//! version that all receivers understand ([`Pins`]): at best that of cinder-scheduler 3.12 and cinder-volume
//! 3.20 (`cinder/scheduler/rpcapi.py`, `cinder/volume/rpcapi.py`).

use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use chrono::{NaiveDateTime, Utc};
use serde_json::{Map, Value, json};

use crate::backend::peers::{Capabilities, Reschedule, Scheduler, VolumePeers};
use crate::context::RequestContext;
use crate::error::Result;
use crate::model::Volume;
use crate::rpc::objects;
use crate::rpc::pins::Pins;
use crate::rpc::publisher::{Destination, Publisher};
use crate::rpc::topology::{SCHEDULER_TOPIC, Target};
use crate::rpc::{backup, dispatch, envelope};

/// Newest version of cinder-scheduler's RPC that Scoria speaks.
pub const SCHEDULER_VERSION: (u32, u32) = (3, 12);

/// Which services a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Binary {
    Scheduler,
    Volume,
    Backup,
}

impl Binary {
    /// All of them.
    pub const ALL: [Binary; 3] = [Binary::Scheduler, Binary::Volume, Binary::Backup];

    /// `services.binary`.
    pub fn name(self) -> &'static str {
        match self {
            Binary::Scheduler => "cinder-scheduler",
            Binary::Volume => "cinder-volume",
            Binary::Backup => "cinder-backup",
        }
    }

    /// What is sent when no service is older.
    pub const fn newest(self) -> Pins {
        match self {
            Binary::Scheduler => Pins::newest(SCHEDULER_VERSION),
            Binary::Volume => Pins::newest(dispatch::VERSION),
            Binary::Backup => Pins::newest(backup::VERSION),
        }
    }
}

/// Clients of the scheduler, of volume services and of backup services.
#[derive(Debug)]
pub struct Peers {
    publisher: Publisher,
    scheduler: RwLock<Pins>,
    volume: RwLock<Pins>,
    backup: RwLock<Pins>,
}

impl Peers {
    /// Clients that send through `publisher`.
    pub fn new(publisher: Publisher) -> Peers {
        Peers {
            publisher,
            scheduler: RwLock::new(Binary::Scheduler.newest()),
            volume: RwLock::new(Binary::Volume.newest()),
            backup: RwLock::new(Binary::Backup.newest()),
        }
    }

    /// What these services are sent from now on; true when that is a change.
    pub fn set_pins(&self, of: Binary, pins: Pins) -> bool {
        let mut held = self.held(of).write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *held, pins) != pins
    }

    /// What these services are sent.
    pub fn pins(&self, of: Binary) -> Pins {
        *self.held(of).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self, of: Binary) -> &RwLock<Pins> {
        match of {
            Binary::Scheduler => &self.scheduler,
            Binary::Volume => &self.volume,
            Binary::Backup => &self.backup,
        }
    }

    async fn cast(
        &self,
        to: Destination,
        pins: Pins,
        context: &RequestContext,
        request: Request,
    ) -> Result<()> {
        let Request { method, version, mut args } = request;
        objects::relabel(&mut args, pins.objects);
        let version = format!("{}.{}", version.0, version.1);
        self.publisher.cast(&to, &envelope::cast(context, method, &version, args)).await
    }

    /// A cast that is the same message to its receiver when a crash makes us send it again: by `unique_id`.
    pub(super) async fn cast_once(
        &self,
        to: Destination,
        of: Binary,
        context: &RequestContext,
        request: Request,
        unique_id: &str,
    ) -> Result<()> {
        let Request { method, version, mut args } = request;
        objects::relabel(&mut args, self.pins(of).objects);
        let mut message = envelope::cast(context, method, &format!("{}.{}", version.0, version.1), args);
        message.insert("_unique_id".to_owned(), json!(unique_id));
        self.publisher.cast(&to, &message).await
    }
}

/// A message before it has a context.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Request {
    pub method: &'static str,
    pub version: (u32, u32),
    pub args: Value,
}

/// The scheduler's `create_volume`; it knows `backup_id` since 3.10.
pub fn create_volume(request: &Reschedule, pins: Pins) -> Request {
    let mut args = json!({
        "snapshot_id": request.snapshot_id,
        "image_id": request.image_id,
        "request_spec": request.request_spec,
        "filter_properties": request.filter_properties,
        "volume": request.volume,
    });
    if pins.accept((3, 10)) {
        args["backup_id"] = json!(request.backup_id);
    }
    Request { method: "create_volume", version: (3, 0), args }
}

/// A volume service's `create_volume` for the destination of a migration (`_migrate_volume_generic`).
///
/// # Errors
/// [`crate::error::Code::Internal`] when the volume cannot be written as an object.
pub fn create_target(volume: &Volume) -> Result<Request> {
    let args = json!({
        "volume": objects::volume_object(volume)?.to_value(),
        "request_spec": null,
        "filter_properties": null,
        "allow_reschedule": false,
    });
    Ok(Request { method: "create_volume", version: (3, 0), args })
}

fn timestamp(at: NaiveDateTime) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%.6f").to_string()
}

/// `update_service_capabilities`, with cluster and time since 3.3.
pub fn update_capabilities(report: &Capabilities, at: NaiveDateTime, pins: Pins) -> Request {
    let mut args = json!({
        "service_name": report.service.as_str(),
        "host": report.host,
        "capabilities": report.capabilities,
    });
    let mut version = (3, 0);
    if pins.accept((3, 3)) {
        version = (3, 3);
        args["cluster_name"] = json!(report.cluster);
        args["timestamp"] = json!(timestamp(at));
    }
    Request { method: "update_service_capabilities", version, args }
}

/// `notify_service_capabilities`, which names the backend (the cluster, if there is one) since 3.5; `None`
/// for schedulers before 3.1, who do not have it.
pub fn notify_capabilities(report: &Capabilities, at: NaiveDateTime, pins: Pins) -> Option<Request> {
    let backend = report.cluster.as_ref().unwrap_or(&report.host);
    let mut args = json!({"service_name": report.service.as_str(), "capabilities": report.capabilities});
    let version = if pins.accept((3, 5)) {
        args["backend"] = json!(backend);
        args["timestamp"] = json!(timestamp(at));
        (3, 5)
    } else if pins.accept((3, 1)) {
        args["host"] = json!(backend);
        (3, 1)
    } else {
        return None;
    };
    Some(Request { method: "notify_service_capabilities", version, args })
}

#[async_trait]
impl Scheduler for Peers {
    async fn create_volume(&self, context: &RequestContext, request: Reschedule) -> Result<()> {
        let to = Destination::Topic(SCHEDULER_TOPIC.to_owned());
        let pins = self.pins(Binary::Scheduler);
        self.cast(to, pins, context, create_volume(&request, pins)).await
    }

    async fn report_capabilities(&self, context: &RequestContext, report: Capabilities) -> Result<()> {
        let now = Utc::now().naive_utc();
        let pins = self.pins(Binary::Scheduler);
        let all = Destination::Fanout(SCHEDULER_TOPIC.to_owned());
        self.cast(all, pins, context, update_capabilities(&report, now, pins)).await?;
        match notify_capabilities(&report, now, pins) {
            Some(notify) => {
                let one = Destination::Topic(SCHEDULER_TOPIC.to_owned());
                self.cast(one, pins, context, notify).await
            }
            None => Ok(()),
        }
    }
}

#[async_trait]
impl VolumePeers for Peers {
    async fn failover_completed(
        &self,
        context: &RequestContext,
        cluster: &str,
        updates: Map<String, Value>,
    ) -> Result<()> {
        let to = Destination::Fanout(Target::of_backend(cluster).topic);
        let args = json!({"updates": updates});
        let request = Request { method: "failover_completed", version: (3, 8), args };
        self.cast(to, self.pins(Binary::Volume), context, request).await
    }

    async fn delete_volume(
        &self,
        context: &RequestContext,
        destination: &str,
        volume: &Volume,
        cascade: bool,
    ) -> Result<()> {
        let to = Destination::Server(Target::of_backend(destination));
        let volume = objects::volume_object(volume)?.to_value();
        let args = json!({"volume": volume, "unmanage_only": false, "cascade": cascade});
        let request = Request { method: "delete_volume", version: (3, 0), args };
        self.cast(to, self.pins(Binary::Volume), context, request).await
    }

    async fn create_volume(
        &self,
        context: &RequestContext,
        destination: &str,
        volume: &Volume,
    ) -> Result<()> {
        let to = Destination::Server(Target::of_backend(destination));
        let unique_id = volume.id.replace('-', "");
        self.cast_once(to, Binary::Volume, context, create_target(volume)?, &unique_id).await
    }
}
