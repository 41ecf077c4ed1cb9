//! Keeps the RADOS clients of a dead instance out before its work is taken over: a killed worker's watch and lock would
//! outlive it and make an image look busy to its own successor.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};
use tracing::{debug, info, warn};

use crate::journal::{Journal, Operation, RbdClient};
use crate::rbd::Site;
use crate::rbd::protocol::BlocklistAdd;

/// How long a dead client is kept out: longer than any request of it can still be on its way.
const SECONDS: u32 = 300;

/// Fences the clients of all former owners of the operations, once each. `sites`: those that may be theirs and answer,
/// by their fsid; asked only when there is somebody to fence.
// Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
pub(super) fn fence<'a>(
    journal: &'a Journal,
    operations: &'a [Operation],
    sites: BoxFuture<'a, BTreeMap<String, Site>>,
) -> BoxFuture<'a, ()> {
    Box::pin(async move {
        let own = journal.owner().instance;
        let former: BTreeSet<&str> = operations
            .iter()
            .filter_map(|o| o.former())
            .map(|o| o.instance.as_str())
            .filter(|instance| *instance != own)
            .collect();
        let mut clients: BTreeMap<(String, String), RbdClient> = BTreeMap::new();
        for instance in former {
            match journal.clients_of(instance).await {
                Ok(found) => {
                    clients.extend(found.into_iter().map(|c| ((c.site_fsid.clone(), c.address.clone()), c)))
                }
                Err(error) => warn!(%error, "could not read whom to fence"),
            }
        }
        if clients.is_empty() {
            return;
        }
        // A site that does not answer costs its deadline once, whatever the number of its clients.
        let sites = sites.await;
        // All at once: the monitors write down together what reaches them together.
        let mut fences: Vec<BoxFuture<'_, ()>> = Vec::with_capacity(clients.len());
        for client in clients.values() {
            match sites.get(&client.site_fsid) {
                Some(site) => fences.push(Box::pin(one(journal, site, client))),
                None => debug!(
                    client = client.address,
                    "the site of a former client does not answer, or is not ours"
                ),
            }
        }
        let began = Instant::now();
        let count = fences.len();
        join_all(fences).await;
        info!(clients = count, fence_ms = began.elapsed().as_millis() as u64, "former clients are seen to");
    })
}

async fn one(journal: &Journal, site: &Site, client: &RbdClient) {
    let fence = BlocklistAdd { address: client.address.clone(), seconds: SECONDS };
    match site.call_within(Duration::from_secs(10), fence).await {
        Ok(()) => {
            info!(site = site.name(), client = client.address, "fenced a client of a former instance");
            if let Err(error) = journal.forget_client(&client.site_fsid, &client.address).await {
                warn!(%error, "could not forget a fenced client");
            }
        }
        Err(error) => {
            warn!(site = site.name(), client = client.address, %error, "could not fence a client of a former instance")
        }
    }
}
