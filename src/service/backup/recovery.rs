//! Taking up backups that a former instance of the service on this host has left in the journal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tracing::field::Empty;
use tracing::{Instrument, Span, error, info, info_span, warn};

use super::BackupHandler;
use crate::backend::connections;
use crate::backup::{Backups, orders};
use crate::error::{Code, Result};
use crate::journal::{Operation, Outcome};
use crate::rbd::Site;
use crate::rpc::Call;
use crate::service::fencing;

/// How often abandoned work is looked for.
const EVERY: Duration = Duration::from_secs(2);
/// How long a site may take to say which it is, before somebody is fenced there.
const ANSWER: Duration = Duration::from_secs(5);

/// Finds and finishes abandoned operations.
pub(super) struct Recovery {
    pub(super) backups: Arc<Backups>,
    pub(super) handler: Arc<BackupHandler>,
    pub(super) running: TaskTracker,
}

impl Recovery {
    /// Looks for work for ever.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Err(error) = self.look().await {
                warn!(%error, "could not look for abandoned backups");
            }
        }
    }

    /// Takes up everything that is abandoned now.
    ///
    /// # Errors
    /// `Database`.
    pub(super) async fn look(&self) -> Result<()> {
        let (journal, scope) = (&self.backups.journal, self.backups.scope());
        if journal.next_orphan(&scope).await? != Some(Duration::ZERO) {
            return Ok(());
        }
        let operations = journal.adopt(&scope).await?;
        fencing::fence(journal, &operations, Box::pin(self.sites())).await;
        for operation in operations {
            let (backups, handler) = (self.backups.clone(), self.handler.clone());
            let span = info_span!(
                "recovery",
                op = operation.method(),
                operation.id = operation.id(),
                request_id = Empty,
                backup.id = operation.resource().map(|(_, id)| id),
            );
            self.running.spawn(async move { finish(&backups, &handler, operation).await }.instrument(span));
        }
        Ok(())
    }

    /// The clusters that backups are made from and kept in, as far as they answer, by their fsid.
    async fn sites(&self) -> BTreeMap<String, Site> {
        let own = self.backups.own_site();
        let of_backends = self.backups.backends.iter().flat_map(connections);
        let others = of_backends.map(|connection| own.elsewhere(connection)).collect::<Vec<_>>();
        let mut sites = BTreeMap::new();
        let registered = self.backups.registered_sites().await.unwrap_or_else(|error| {
            warn!(%error, "could not read which sites are registered: clients are not fenced there");
            Vec::new()
        });
        for site in others.into_iter().chain(registered).chain([own]) {
            if let Ok(fsid) = site.fsid(ANSWER).await {
                sites.insert(fsid, site);
            }
        }
        sites
    }
}

/// Carries out an operation that was adopted: a request, or an order.
pub async fn finish(backups: &Backups, handler: &BackupHandler, operation: Operation) {
    if operation.method().starts_with(orders::PREFIX) {
        orders::run(backups, &operation).await;
        return;
    }
    let call = match Call::from_journal(operation.request()) {
        Ok(call) => call,
        Err(error) => {
            error!(%error, "an abandoned operation cannot be read; it is closed");
            let _ = backups.journal.finish(&operation, &Outcome::failed(&error)).await;
            return;
        }
    };
    Span::current().record("request_id", &call.context.request_id);
    match handler.run_journaled(&call, operation).await {
        Ok(_) => info!("abandoned operation finished"),
        Err(error) if error.code() == Code::Cancelled => {}
        Err(error) => error!(%error, "abandoned operation failed"),
    }
}
