//! From a typed request to the operation on backups that serves it.

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use tracing::warn;

use super::policy;
use crate::backend::peers::ImportRecord;
use crate::backup::restore::Restore;
use crate::backup::{Backups, create, delete, record, restore, status};
use crate::context::RequestContext;
use crate::db;
use crate::error::Result;
use crate::journal::{self, Operation, Outcome};
use crate::rpc::method::BackupCall;
use crate::rpc::objects::{LogLevel, log_level_list};
use crate::rpc::{Accept, Call, Handler, Method, fault};
use crate::service::defect;
use crate::service::frame::{self, Frame};
use crate::service::lanes::{Lane, Lanes};
use crate::service::logging::LogHandle;

/// Serves the requests of the backup service.
pub struct BackupHandler {
    backups: Arc<Backups>,
    log: LogHandle,
    lanes: Lanes,
    frame: Frame,
    /// A report to the scheduler is wanted.
    pub(super) wanted: tokio::sync::Notify,
}

impl BackupHandler {
    /// A handler; `log` is changed by `set_log_levels`. At most `size` deletions and imports run at once, and as many
    /// backups and restorations as the configuration says.
    pub fn new(backups: Arc<Backups>, log: LogHandle, size: usize) -> BackupHandler {
        let movers = match backups.config.max_operations {
            0 => usize::MAX,
            limit => limit,
        };
        let frame = Frame::new(backups.journal.clone());
        let lanes = Lanes::of_sizes(size, movers);
        BackupHandler { backups, log, lanes, frame, wanted: tokio::sync::Notify::new() }
    }

    /// Runs a request that is in the journal to its end.
    ///
    /// # Errors
    /// What the operation failed with; `Cancelled` when somebody else will finish it.
    pub async fn run_journaled(&self, call: &Call, operation: Operation) -> Result<Value> {
        let lane = Lane::of(&call.method, call.reply.is_some());
        let work = Box::pin(async {
            // What is cancelled needs no place: it only takes away what it has made.
            let _place = tokio::select! {
                place = self.lanes.enter(lane) => Some(place),
                () = self.backups.running.cancelled(operation.id()) => None,
            };
            match &call.method {
                Method::Backup(request) => {
                    self.journaled(request, &call.context, &operation).await.map(|()| Value::Null)
                }
                _ => Err(fault::no_such_method(call.name)),
            }
        });
        self.frame.run(call, &operation, work, || self.settle(call, &operation)).await
    }

    async fn journaled(
        &self,
        request: &BackupCall,
        context: &RequestContext,
        operation: &Operation,
    ) -> Result<()> {
        let b = &*self.backups;
        match request {
            BackupCall::Create { backup } => {
                Box::pin(create::create(b, context, operation, &backup.id)).await
            }
            BackupCall::Continue { backup } => {
                let ended = Box::pin(create::create(b, context, operation, &backup.id)).await;
                if !b.journal.holds(operation) {
                    let row = b.db.read("backup that was continued", async |conn| {
                        db::backup_work::get_deleted(conn, &backup.id).await
                    });
                    status::drop_copy(b, context, &row.await?).await;
                }
                ended
            }
            BackupCall::Restore { .. } => {
                Box::pin(restore::restore(b, context, operation, &restoration(request))).await
            }
            BackupCall::Delete { backup } => {
                Box::pin(delete::delete(b, context, operation, &backup.id)).await
            }
            BackupCall::Import { backup_id, object, service, url, hosts } => {
                let request = import(backup_id, service, url, hosts);
                let Some((host, hosts)) = record::import(b, operation, &request).await? else {
                    return Ok(());
                };
                let order = ImportRecord {
                    // Each hop is a message of its own, and the same one after a crash.
                    unique_id: format!("{}-{}", request.backup_id.replace('-', ""), hosts.len()),
                    host,
                    backup: object.clone(),
                    service: service.clone(),
                    url: url.clone(),
                    hosts,
                };
                b.peers.backups.import_record(context, order).await?;
                b.journal.finish(operation, &Outcome::succeeded()).await
            }
            BackupCall::ResetStatus { backup, status: wanted } => {
                status::reset(b, context, operation, &backup.id, wanted).await
            }
            BackupCall::Export { .. } | BackupCall::SupportsForceDelete => {
                Err(fault::no_such_method("a question that was journalled"))
            }
        }
    }

    /// Ends what a defect has interrupted twice.
    fn settle<'a>(&'a self, call: &'a Call, operation: &'a Operation) -> BoxFuture<'a, Result<()>> {
        let (b, context, failure) = (&*self.backups, &call.context, defect::failure());
        async move {
            tracing::error!(operation.id = operation.id(), "a defect again: the request has failed");
            let Method::Backup(request) = &call.method else { return Err(failure) };
            match &**request {
                BackupCall::Create { backup } | BackupCall::Continue { backup } => {
                    create::give_up(b, context, operation, &backup.id, failure).await
                }
                BackupCall::Restore { .. } => {
                    restore::give_up(b, context, operation, &restoration(request), failure).await
                }
                BackupCall::Delete { backup } => {
                    delete::give_up(b, context, operation, &backup.id, failure).await
                }
                BackupCall::Import { backup_id, service, url, hosts, .. } => {
                    let request = import(backup_id, service, url, hosts);
                    record::give_up(b, operation, &request, failure).await
                }
                _ => Err(failure),
            }
        }
        .boxed()
    }

    async fn answer(&self, call: &Call) -> Result<Value> {
        match &call.method {
            Method::Backup(request) => match &**request {
                BackupCall::Export { backup } => record::export(&self.backups, &backup.id).await,
                BackupCall::SupportsForceDelete => Ok(Value::Bool(true)),
                _ => Err(fault::no_such_method(call.name)),
            },
            Method::BackupPolicy(call) => Box::pin(policy::answer(&self.backups, call)).await,
            Method::PublishServiceCapabilities => {
                self.wanted.notify_one();
                Ok(Value::Null)
            }
            Method::SetLogLevels(level) => {
                let prefix = level.prefix.as_deref().unwrap_or_default();
                self.log.set(prefix, level.level.as_deref().unwrap_or_default())?;
                Ok(Value::Null)
            }
            Method::GetLogLevels(level) => {
                let levels = self.log.levels(level.prefix.as_deref().unwrap_or_default());
                let levels: Vec<LogLevel> = levels
                    .into_iter()
                    .map(|(prefix, level)| LogLevel { prefix: Some(prefix), level: Some(level) })
                    .collect();
                log_level_list(&levels)
            }
            _ => Err(fault::no_such_method(call.name)),
        }
    }
}

fn restoration(request: &BackupCall) -> Restore {
    match request {
        BackupCall::Restore { backup, volume_id, .. } => {
            Restore { backup_id: backup.id.clone(), volume_id: volume_id.clone() }
        }
        other => {
            Restore { backup_id: other.backup_id().unwrap_or_default().to_owned(), volume_id: String::new() }
        }
    }
}

fn import(backup_id: &str, service: &str, url: &str, hosts: &[String]) -> record::Import {
    record::Import {
        backup_id: backup_id.to_owned(),
        service: service.to_owned(),
        url: url.to_owned(),
        hosts: hosts.to_vec(),
    }
}

#[async_trait]
impl Handler for BackupHandler {
    type Operation = Operation;

    async fn accept(&self, call: &Call) -> Result<Accept<Operation>> {
        let new = frame::entry(call, &self.backups.journal_host());
        Ok(match self.backups.journal.accept(new).await? {
            journal::Accept::New(operation) => Accept::New(operation),
            journal::Accept::Duplicate => Accept::Duplicate,
        })
    }

    async fn run(&self, call: &Call, operation: Option<Operation>) -> Result<Value> {
        match operation {
            Some(operation) => self.run_journaled(call, operation).await,
            None => self.answer(call).await,
        }
    }

    async fn replied(&self, call: &Call) {
        if let Err(error) = self.backups.journal.mark_replied_by(&call.unique_id).await {
            warn!(request_id = call.context.request_id, %error, "could not note that a reply was sent; it may be sent twice");
        }
    }
}
