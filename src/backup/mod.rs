//! Backups: what cinder-backup does with its driver for Ceph.
//!
//! A backup is a snapshot of a *base* image in a backup pool, which may be in another cluster. Stock pipes
//! `rbd export-diff` into `rbd import-diff` and begins anew after every crash; here a worker copies what differs
//! ([`crate::rbd::delta`]), in parts that the journal counts, and every step can be run again. Names and objects are
//! stock's ([`names`]). A volume is read, or filled, where its rows say that it is ([`place`]): the volume service is
//! not asked, so a backup needs none that is up.
//!
//! That is method *diff*; with method *mirror* RBD mirroring carries the data ([`method`], [`mirror`]).
//!
//! `create`, `restore` and `delete` are the operations; `record` takes records of backups out and in, `status` resets
//! and mends rows, `metadata` is what is kept of the volume's row, `check` compares data with its checksums, `orders`
//! are the operator's: `ordered` makes backups without the API, of groups as of one instant; `retention` says which stay;
//! `schedule` makes them when they are due; `cancel` stops what is under way; `audit` proves that nothing is orphaned or lost.

pub mod audit;
pub mod cancel;
pub mod check;
pub mod create;
pub mod delete;
mod images;
pub mod metadata;
pub mod method;
pub mod mirror;
pub mod names;
mod of_type;
pub mod ordered;
pub mod orders;
pub mod place;
mod plan;
pub mod record;
pub mod restore;
pub mod retention;
pub mod running;
pub mod schedule;
pub mod status;
pub mod using;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::backend::locks::NamedLocks;
use crate::backend::peers::Priority;
use crate::backend::{Globals, Peers};
use crate::config::{BackendConfig, BackupConfig, Config};
use crate::context::RequestContext;
use crate::db::Db;
use crate::db::message::{Action, Detail, Message, ResourceType};
use crate::error::{Code, Error, Result};
use crate::journal::Journal;
use crate::model::{Backup, Scope};
use crate::rbd::Ceph;
use crate::rbd::hearing::Hearing;
use running::Running;

/// The backup service of one host, for its operations.
pub struct Backups {
    /// `[DEFAULT] host`.
    pub host: String,
    /// Options of backups.
    pub config: BackupConfig,
    /// Options shared with the volume service.
    pub globals: Globals,
    /// Where volumes are.
    pub backends: Vec<BackendConfig>,
    /// Cinder's database.
    pub db: Db,
    /// The journal.
    pub journal: Journal,
    /// Whom to tell.
    pub peers: Peers,
    /// One at a time on one base, or volume.
    pub locks: NamedLocks,
    /// What is under way, so that it can be called off.
    pub running: Running,
    /// The service ends: orders that wait for others go on with its next start.
    pub stopping: CancellationToken,
    ceph: Arc<dyn Ceph>,
    /// What its sites have answered.
    hearing: Arc<Hearing>,
}

impl Backups {
    /// The service of a configuration; nothing is connected yet.
    pub fn new(config: &Config, journal: Journal, peers: Peers, ceph: Arc<dyn Ceph>) -> Backups {
        Backups {
            host: config.host.clone(),
            config: config.backup.clone(),
            globals: Globals::from(config),
            backends: config.backends.clone(),
            db: journal.db().clone(),
            locks: NamedLocks::new(None, &journal),
            journal,
            peers,
            running: Running::default(),
            hearing: Arc::new(Hearing::new(config.backup.site_timeout)),
            stopping: CancellationToken::new(),
            ceph,
        }
    }

    /// `scoria_operations.backend_host` of its operations. The host alone is that of orders for sites.
    pub fn journal_host(&self) -> String {
        format!("{}{}", self.host, orders::SERVICE)
    }

    /// Which operations are its own.
    pub fn scope(&self) -> Scope {
        Scope::Host(self.journal_host())
    }

    /// Waits a while for others, unless the service ends.
    ///
    /// # Errors
    /// `Cancelled` when it does: the operation stays in the journal.
    async fn pause(&self, period: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(period) => Ok(()),
            () = self.stopping.cancelled() => {
                Err(Error::new(Code::Cancelled, "The service ends: the order goes on with its next start"))
            }
        }
    }

    /// Sends `backup.<suffix>`.
    pub async fn notify(&self, context: &RequestContext, suffix: &str, backup: &Backup) {
        self.notify_with(context, suffix, backup, Map::new()).await;
    }

    /// The same with more in the payload.
    pub async fn notify_with(
        &self,
        context: &RequestContext,
        suffix: &str,
        backup: &Backup,
        more: Map<String, Value>,
    ) {
        if !self.peers.notify.enabled() {
            return;
        }
        let mut payload = usage(backup);
        if let Value::Object(map) = &mut payload {
            map.extend(more);
        }
        let (event, publisher) = (format!("backup.{suffix}"), format!("backup.{}", self.host));
        self.peers.notify.publish(context, &event, Priority::Info, &publisher, payload).await;
    }
}

/// Payload of `backup.*` (`_usage_from_backup`).
fn usage(b: &Backup) -> Value {
    let created = b.created_at.map(|at| at.and_utc().format("%Y-%m-%dT%H:%M:%S%.f+00:00").to_string());
    json!({
        "tenant_id": b.project_id,
        "user_id": b.user_id,
        "availability_zone": b.availability_zone,
        "backup_id": b.id,
        "host": b.host,
        "display_name": b.display_name,
        "created_at": created,
        "status": b.status,
        "volume_id": b.volume_id,
        "size": b.size,
        "service_metadata": b.service_metadata,
        "service": b.service,
        "fail_reason": b.fail_reason,
        "parent_id": b.parent_id,
        "num_dependent_backups": b.num_dependent_backups,
        "snapshot_id": b.snapshot_id,
    })
}

/// A user message about a backup.
fn message(id: &str, action: Action, detail: Detail) -> Message {
    Message::about(ResourceType::Backup, id, action, detail)
}

/// Whether whoever runs the operation next has to deal with an error: the operation stays open.
fn is_unsettled(error: &Error) -> bool {
    matches!(error.code(), Code::Cancelled | Code::Database | Code::Broker)
}
