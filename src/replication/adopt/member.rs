//! How a service finds out that its backend's sites have got other names: another member of the Cinder cluster has
//! adopted, or the configuration file was changed and changed back.
//!
//! Every name stands for a cluster, by rows that all members read. A member that knows of an earlier adoption than the
//! last, or whose active site is not the cluster that it must be, reads its own files again, and goes on with them when
//! they lead there. As long as they do not, the rows alone keep it from serving the wrong cluster, and it says why.

use std::time::Duration;

use futures::future::BoxFuture;
use tracing::info;

use crate::backend::{Backend, Condition, Sites};
use crate::db;
use crate::error::Result;
use crate::replication::failover::GRACE;

/// How long a site that may be the right one is listened to: this is asked within a heartbeat.
const ANSWER: Duration = Duration::from_secs(3);

/// Takes over which clusters the names of the sites stand for, and reads the configuration files again when they say
/// something else than this process knows; answers whether its sites are others now. `active` is the site that the
/// rows name. Whoever calls keeps everybody else from changing the active site.
///
/// # Errors
/// `Database`.
// Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
pub(in crate::replication) fn keep_up<'a>(
    backend: &'a Backend,
    active: &'a str,
) -> BoxFuture<'a, Result<bool>> {
    Box::pin(async move {
        let name = backend.scope_name();
        let known =
            backend.db.read("known sites", async |conn| db::backend_site::known(conn, &name).await).await?;
        let sites = backend.sites();
        sites.expect(&known);
        let behind = sites.adoption() != known.adoption;
        let is_proven = sites.get(active).is_some_and(|site| site.identity().is_proven());
        // Before anybody has seen the active site there is nothing to compare with.
        if !behind && (is_proven || known.expected(active).is_none()) {
            return Ok(false);
        }
        let options = match backend.globals.sources.backend(backend.host()).await {
            Ok(options) => options,
            Err(error) => {
                if behind {
                    refuse(backend, format!("its configuration cannot be read again: {}", error.user()));
                }
                return Ok(false);
            }
        };
        if sites.are_those_of(&options) {
            if behind && is(&sites, active).await {
                // It was started, or adopted, with the new files.
                sites.set_adoption(known.adoption);
            } else if behind {
                refuse(backend, unchanged(backend, known.expected(active), active));
            }
            return Ok(false);
        }
        let fresh = backend.sites_of(&options);
        fresh.expect(&known);
        if !is(&fresh, active).await {
            if behind {
                refuse(backend, unchanged(backend, known.expected(active), active));
            }
            return Ok(false);
        }
        // A failover keeps the gate closed and waits for us in the end: then there is a next time.
        let closing = backend.gate.close(GRACE);
        let Ok(_closed) = tokio::time::timeout(GRACE + ANSWER, closing).await else { return Ok(false) };
        fresh.set_adoption(known.adoption);
        info!(backend = backend.host(), "configuration read again: it leads to the site that the rows name");
        // The site is there, so this cannot be refused.
        let _ = backend.replace_sites(fresh, active);
        if matches!(backend.condition(), Condition::Down { .. }) {
            backend.want_report();
        }
        Ok(true)
    })
}

/// Whether the site of this name is the cluster that it must be.
async fn is(sites: &Sites, name: &str) -> bool {
    let Some(site) = sites.get(name) else { return false };
    let _ = tokio::time::timeout(ANSWER, site.fsid(ANSWER)).await;
    site.identity().is_proven()
}

fn unchanged(backend: &Backend, fsid: Option<&str>, active: &str) -> String {
    format!(
        "another member of its cluster has adopted other sites, and {} of this host does not lead to them: site {active} \
         must be cluster {}; nothing is served from here until the file says so",
        backend.globals.sources.shown(),
        fsid.unwrap_or("(unknown)")
    )
}

/// Says so where nothing else has: a site that is known to be another cluster is refused with words of its own.
fn refuse(backend: &Backend, reason: String) {
    if !matches!(backend.condition(), Condition::Down { .. }) {
        backend.set_condition(Condition::Down { reason });
    }
}
