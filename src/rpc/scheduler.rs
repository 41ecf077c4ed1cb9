//! What Scoria itself asks of other Cinder services: the scheduler and the volume services.
//!
//! Messages are built by pure functions (tested against captured ones) and sent by [`Peers`]. Versions
//! are those that cinder-scheduler 3.12 and cinder-volume 3.20 take (`cinder/scheduler/rpcapi.py`,
//! `cinder/volume/rpcapi.py`).

use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use chrono::{NaiveDateTime, Utc};
use serde_json::{Map, Value, json};

use crate::backend::peers::{Capabilities, Reschedule, Scheduler, VolumePeers};
use crate::context::RequestContext;
use crate::error::Result;
use crate::rpc::envelope;
use crate::rpc::objects::{self, Pin};
use crate::rpc::publisher::{Destination, Publisher};
use crate::rpc::topology::{SCHEDULER_TOPIC, Target};

/// Clients of the scheduler and of volume services.
#[derive(Debug)]
pub struct Peers {
    publisher: Publisher,
    pin: RwLock<Pin>,
}

impl Peers {
    /// Clients that send through `publisher`.
    pub fn new(publisher: Publisher) -> Peers {
        Peers { publisher, pin: RwLock::default() }
    }

    /// Objects are sent as the oldest service of the deployment understands them
    /// (`services.object_current_version`, least over all rows).
    pub fn set_pin(&self, pin: Pin) {
        *self.pin.write().unwrap_or_else(PoisonError::into_inner) = pin;
    }

    async fn cast(
        &self,
        to: Destination,
        context: &RequestContext,
        method: &str,
        version: &str,
        mut args: Value,
    ) -> Result<()> {
        let pin = *self.pin.read().unwrap_or_else(PoisonError::into_inner);
        objects::relabel(&mut args, pin);
        self.publisher.cast(&to, &envelope::cast(context, method, version, args)).await
    }
}

/// Arguments of the scheduler's `create_volume` 3.0 (with `backup_id`, known since 3.10).
pub fn create_volume_args(request: &Reschedule) -> Value {
    json!({
        "snapshot_id": request.snapshot_id,
        "image_id": request.image_id,
        "backup_id": request.backup_id,
        "request_spec": request.request_spec,
        "filter_properties": request.filter_properties,
        "volume": request.volume,
    })
}

fn timestamp(at: NaiveDateTime) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%.6f").to_string()
}

/// Arguments of `update_service_capabilities` 3.3.
pub fn update_capabilities_args(report: &Capabilities, at: NaiveDateTime) -> Value {
    json!({
        "service_name": "volume",
        "host": report.host,
        "capabilities": report.capabilities,
        "cluster_name": report.cluster,
        "timestamp": timestamp(at),
    })
}

/// Arguments of `notify_service_capabilities` 3.5. The backend is the cluster, if there is one.
pub fn notify_capabilities_args(report: &Capabilities, at: NaiveDateTime) -> Value {
    json!({
        "service_name": "volume",
        "capabilities": report.capabilities,
        "backend": report.cluster.as_ref().unwrap_or(&report.host),
        "timestamp": timestamp(at),
    })
}

#[async_trait]
impl Scheduler for Peers {
    async fn create_volume(&self, context: &RequestContext, request: Reschedule) -> Result<()> {
        let to = Destination::Topic(SCHEDULER_TOPIC.to_owned());
        self.cast(to, context, "create_volume", "3.0", create_volume_args(&request)).await
    }

    async fn report_capabilities(&self, context: &RequestContext, report: Capabilities) -> Result<()> {
        let now = Utc::now().naive_utc();
        let all = Destination::Fanout(SCHEDULER_TOPIC.to_owned());
        let update = update_capabilities_args(&report, now);
        self.cast(all, context, "update_service_capabilities", "3.3", update).await?;
        let one = Destination::Topic(SCHEDULER_TOPIC.to_owned());
        let notify = notify_capabilities_args(&report, now);
        self.cast(one, context, "notify_service_capabilities", "3.5", notify).await
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
        self.cast(to, context, "failover_completed", "3.8", json!({"updates": updates})).await
    }

    async fn delete_volume(
        &self,
        context: &RequestContext,
        destination: &str,
        volume: Value,
        cascade: bool,
    ) -> Result<()> {
        let to = Destination::Server(Target::of_backend(destination));
        let args = json!({"volume": volume, "unmanage_only": false, "cascade": cascade});
        self.cast(to, context, "delete_volume", "3.0", args).await
    }
}
