//! Taking up work that somebody left behind: our own former instance, another member of the Cinder
//! cluster, or an operator with an order.
//!
//! Runs at start and then every two seconds, and at the moment when a lease of somebody else runs out. Before anything is run again, the RADOS clients of the
//! former owner are fenced: a killed worker's watch and lock would otherwise outlive it and make the
//! image look busy to its own successor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::field::Empty;
use tracing::{Instrument, Span, error, info, info_span, warn};

use super::handler::{BackendHandler, rolled_back};
use super::intake::Intake;
use super::{backups, drain, fencing, orders, overtaken};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::{Code, Result};
use crate::journal::Operation;
use crate::model::Scope;
use crate::rbd::Site;
use crate::replication::orders::DRAIN;
use crate::rpc::{Call, Method, Publisher, Reply, ReplyTo};
use crate::volume::{attach, migrated};

/// How often abandoned work is looked for.
const EVERY: Duration = Duration::from_secs(2);
/// After a lease has run out, for the clocks of two connections.
const AFTER: Duration = Duration::from_millis(20);

/// Finds and finishes abandoned operations of one backend.
pub struct Recovery {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Runs what was a message.
    pub handler: Arc<BackendHandler>,
    /// Sends answers that are still owed.
    pub publisher: Publisher,
    /// Closed by an order to drain.
    pub intake: Arc<Intake>,
    /// The service stops.
    pub stopping: CancellationToken,
    /// Operations that are being finished; awaited by a drain.
    pub running: TaskTracker,
}

impl Recovery {
    /// Looks for work until told to stop.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let next = match self.look().await {
                Ok(next) => next.map_or(EVERY, |left| EVERY.min(left + AFTER)),
                Err(error) => {
                    warn!(backend = self.backend.host(), %error, "could not look for abandoned operations");
                    EVERY
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    /// Sends the answers that a former instance owed.
    ///
    /// # Errors
    /// `Database`.
    pub async fn pay_debts(&self) -> Result<()> {
        for owed in self.backend.journal.pending_replies(&self.backend.scope()).await? {
            if let Some(reply) = Reply::from_value(&owed.reply) {
                self.publisher.reply(&ReplyTo { queue: owed.to.queue, msg_id: owed.to.msg_id }, reply).await;
            }
            self.backend.journal.mark_replied(owed.operation_id).await?;
        }
        Ok(())
    }

    /// Takes up everything that is abandoned now; answers how long it is until there may be more, if it is known.
    ///
    /// # Errors
    /// `Database`.
    // Boxed as `finish` is.
    pub fn look<'a>(self: &'a Arc<Self>) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(async move {
            let mut next = None;
            for scope in self.scopes() {
                next = self.look_in(&scope).await?.into_iter().chain(next).min();
            }
            Ok(next)
        })
    }

    /// Where its operations are: a member of a Cinder cluster also has orders that are for it alone, and what it
    /// had accepted before it joined.
    fn scopes(&self) -> Vec<Scope> {
        let own = Scope::Host(self.backend.host().to_owned());
        match self.backend.scope() {
            Scope::Host(_) => vec![own],
            cluster @ Scope::Cluster(_) => vec![own, cluster],
        }
    }

    async fn look_in(self: &Arc<Self>, scope: &Scope) -> Result<Option<Duration>> {
        let next = self.backend.journal.next_orphan(scope).await?;
        if next != Some(Duration::ZERO) {
            return Ok(next);
        }
        let operations = self.backend.journal.adopt(scope).await?;
        // The leases of a dead member end one after the other, as its requests came: the next is due in a moment.
        // What was ours may have been given back, and is not tried again at once.
        let own = self.backend.journal.owner().host;
        let others = operations.iter().filter_map(Operation::former).any(|former| former.host != own);
        // Before it could have taken a request.
        operations.iter().filter(|o| o.method() == DRAIN).for_each(|_| self.intake.close());
        self.fence(&operations).await;
        for operation in operations {
            // Before anything else is settled by the rows: an open operation keeps others from its resource.
            if self.is_overtaken(&operation).await {
                continue;
            }
            let this = Arc::clone(self);
            let volume = operation.resource().filter(|(kind, _)| *kind == "Volume").map(|(_, id)| id);
            let span = info_span!(
                "recovery",
                op = operation.method(),
                operation.id = operation.id(),
                request_id = Empty,
                volume.id = volume,
            );
            self.running.spawn(async move { this.finish(operation).await }.instrument(span));
        }
        Ok(others.then_some(Duration::ZERO))
    }

    /// Whether the operation has ended because somebody else has seen to its resource, or cannot be judged now
    /// and was given back.
    // Boxed as `fence` is.
    fn is_overtaken<'a>(&'a self, operation: &'a Operation) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            // What cannot be read is closed where it would be run.
            let Ok(call) = Call::from_journal(operation.request()) else { return false };
            match overtaken::close(&self.backend, operation, &call.method).await {
                Ok(None) => false,
                Ok(Some(reason)) => {
                    warn!(
                        op = operation.method(),
                        operation.id = operation.id(),
                        reason,
                        "an abandoned operation is closed, not run again"
                    );
                    true
                }
                Err(error) if error.code() == Code::Cancelled => true,
                Err(error) => {
                    warn!(operation.id = operation.id(), %error, "could not judge an abandoned operation, it will be taken up again");
                    let _ = self.backend.journal.give_back(operation).await;
                    true
                }
            }
        })
    }

    /// Fences the clients of all former owners, once each.
    fn fence<'a>(&'a self, operations: &'a [Operation]) -> BoxFuture<'a, ()> {
        fencing::fence(&self.backend.journal, operations, Box::pin(self.sites()))
    }

    /// The sites of this backend that answer, by their fsid.
    async fn sites(&self) -> BTreeMap<String, Site> {
        let mut names = self.backend.device_names();
        names.insert(0, crate::backend::DEFAULT_SITE.to_owned());
        let mut sites = BTreeMap::new();
        for name in names {
            let Ok(site) = self.backend.site(&name) else { continue };
            if let Ok(facts) = self.backend.facts(&site).await {
                sites.insert(facts.fsid.clone(), site);
            }
        }
        sites
    }

    // Boxed, so that the compiler proves once that it may be sent to another thread.
    fn finish(&self, operation: Operation) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let journal = &self.backend.journal;
            if operation.reply_to().is_some() && operation.is_overdue() {
                let closed = match operation.method() {
                    "attach_volume" | "detach_volume" | "attachment_update" => {
                        attach::roll_back(&self.backend, &operation, &rolled_back()).await
                    }
                    "migrate_volume_completion" | "update_migrated_volume" => {
                        let admin = RequestContext::admin();
                        Box::pin(migrated::roll_back(&self.backend, &admin, &operation, &rolled_back())).await
                    }
                    "get_backup_device" => match Call::from_journal(operation.request()).map(|c| c.method) {
                        Ok(Method::GetBackupDevice(a)) => {
                            backups::roll_back(&self.backend, &operation, &a, &rolled_back()).await
                        }
                        _ => journal.finish(&operation, &rolled_back()).await,
                    },
                    // The others change rows in one transaction, with nothing half done before it.
                    _ => journal.finish(&operation, &rolled_back()).await,
                };
                match closed {
                    Err(error) if error.code() == Code::Cancelled => {}
                    Err(error) => {
                        warn!(%error, "could not roll an overdue call back, it will be taken up again");
                        let _ = journal.give_back(&operation).await;
                    }
                    Ok(()) => {}
                }
                return;
            }
            if operation.method() == DRAIN {
                return drain::run(&self.backend, &self.intake, &operation, &self.stopping).await;
            }
            if operation.method().starts_with(orders::PREFIX) {
                orders::run(&self.backend, &operation).await;
                return;
            }
            let call = match Call::from_journal(operation.request()) {
                Ok(call) => call,
                Err(error) => {
                    error!(%error, "an abandoned operation cannot be read; it is closed");
                    let _ = journal.finish(&operation, &crate::journal::Outcome::failed(&error)).await;
                    return;
                }
            };
            Span::current().record("request_id", &call.context.request_id);
            if operation.former().is_some_and(|former| former.host != journal.owner().host)
                && let Err(error) = self.handler.claim_again(&call, &operation).await
            {
                warn!(%error, "could not claim what another member of the cluster had claimed");
            }
            let id = operation.id();
            let outcome = self.handler.run_journaled(&call, operation).await;
            match &outcome {
                Ok(_) => info!("abandoned operation finished"),
                Err(error) if error.code() == Code::Cancelled => return,
                Err(error) => error!(%error, "abandoned operation failed"),
            }
            if let Some(to) = &call.reply {
                self.publisher.reply(to, Reply::new(outcome.as_ref().map(Clone::clone))).await;
                if let Err(error) = journal.mark_replied(id).await {
                    warn!(%error, "could not note that a reply was sent; it may be sent twice");
                }
            }
        })
    }
}
