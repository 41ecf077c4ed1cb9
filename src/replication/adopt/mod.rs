//! `adopt`: after a disaster the site that the backend works on becomes its own, for good.
//!
//! A backend that has failed over works on, for as long as one likes, but everything about it is an exception: it is
//! `failed-over`, its service disabled, its volumes away from home, and a cluster that will never come back is its
//! primary by configuration. To end that by hand one would edit rows of ten tables and restart every member while
//! nobody looks. Here the operator says in `cinder.conf`, which Scoria never writes, what the backend is from now on,
//! and orders it: the files are read again, the cluster that they name is proven to be the one that serves the
//! volumes, by its fsid and by each image, all rows follow in one transaction, and the running backend goes on with
//! other names for its sites.
//!
//! Nothing of it but the end changes anything (the mirroring of images, when that is ordered, may be ended before): an
//! interrupted adoption begins anew. `names` decides what is called what, `census` which volumes are there, `member`
//! is how a service finds out that somebody else has adopted.

mod census;
mod member;
mod names;

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use serde_json::json;
use tracing::{info, warn};

use self::census::{Census, listed};
use self::names::{Former, Found, Names};
use super::orders::Adopt;
use super::standing::{self, Telling};
use super::target::DEFAULT;
use super::{enable, fence, news};
use crate::backend::{Backend, Sites};
use crate::config::BackendConfig;
use crate::context::RequestContext;
use crate::db::backend_site::Known;
use crate::db::service::ServiceChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{DriverData, ReplicationStatus, Service, Volume};
use crate::rbd::{RbdError, Site};
use crate::volume::crash;
pub(super) use member::keep_up;

/// How long requests under way may take to leave. Unlike a failover, an adoption can wait for another day.
const WAIT: Duration = Duration::from_secs(30);
/// How long a site may take to say which cluster it is.
const ANSWER: Duration = Duration::from_secs(5);
/// Images whose mirroring is ended at once.
const AT_ONCE: usize = 16;

/// What is going to be, with nothing changed yet.
struct Plan {
    /// The sites by the files.
    sites: Sites,
    /// The site that is active, by the name it has until now.
    active: String,
    names: Names,
    census: Census,
}

/// Makes the active site the backend's own.
///
/// # Errors
/// `Config` for files that cannot be read; `InvalidReplicationTarget` when they do not make the active site the
/// backend's own; `Conflict` while requests are under way that would not survive it; `InvalidVolume` for volumes that
/// are elsewhere; `Cancelled` and `Database`. Nothing was changed then.
// Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
pub fn run<'a>(
    backend: &'a Backend,
    context: &'a RequestContext,
    operation: &'a Operation,
    order: &'a Adopt,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let _alone = backend.locks.local("failover").await;
        if let Some(telling) = Telling::left(operation).await? {
            // Everything was written before a crash; this process has read its files since.
            return telling.tell(backend, context, operation).await;
        }
        crash::point("adopt:accepted");
        if order.dry_run {
            let plan = plan(backend, operation, order).await?;
            let detail = format!("would adopt: {}", summary(&plan, order));
            return backend
                .journal
                .finish(operation, &Outcome { detail: Some(detail), ..Outcome::succeeded() })
                .await;
        }
        news::adopting(backend, context);
        let done = carry_out(backend, context, operation, order).await;
        if let Err(why) = &done {
            news::not_adopted(backend, context, why);
        }
        done
    })
}

/// All of it, from the closed gate to the rows.
// Boxed as `run` is.
fn carry_out<'a>(
    backend: &'a Backend,
    context: &'a RequestContext,
    operation: &'a Operation,
    order: &'a Adopt,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let closed = backend.gate.close(WAIT).await;
        if !closed.is_empty() {
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "Requests that backend {} has begun do not end: nothing was done; see scoria-manage operation list --open",
                    backend.host()
                ),
            ));
        }
        require_quiet(backend, operation).await?;
        let plan = plan(backend, operation, order).await?;
        if order.stop_mirroring {
            stop_mirroring(backend, operation, &plan).await?;
        }
        crash::point("adopt:proven");
        conclude(backend, context, operation, plan, order).await
    })
}

/// Fails while operations are open that have written down, or hold, a site by its name.
async fn require_quiet(backend: &Backend, operation: &Operation) -> Result<()> {
    let scope = backend.scope();
    let open = backend
        .db
        .read("operations in the way", async |conn| {
            db::adoption::in_the_way(conn, &scope, operation.id()).await
        })
        .await?;
    let Some((id, method)) = open.first() else { return Ok(()) };
    Err(Error::new(
        Code::Conflict,
        format!(
            "Operation {id} ({method}) of backend {} is under way, and {} more: nothing was done; order it again when \
             they have ended",
            backend.host(),
            open.len() - 1
        ),
    ))
}

/// Reads the files, and looks whether rows and Ceph agree with what they say.
// Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
fn plan<'a>(backend: &'a Backend, operation: &'a Operation, order: &'a Adopt) -> BoxFuture<'a, Result<Plan>> {
    Box::pin(async move {
        let options = backend.globals.sources.backend(backend.host()).await?;
        if options.pool != backend.config.pool {
            return Err(Error::new(
                Code::Config,
                format!(
                    "The pool of backend {} is {} in its configuration file now, and {} in use: an adoption changes its \
                     sites only",
                    backend.host(),
                    options.pool,
                    backend.config.pool
                ),
            ));
        }
        let name = backend.scope_name();
        let known =
            backend.db.read("known sites", async |conn| db::backend_site::known(conn, &name).await).await?;
        let active = backend.active_name();
        let sites = backend.sites_of(&options);
        let found = look(&sites, &options).await;
        prove(backend, &known, &active, &options, &found, order).await?;
        let forgotten: Vec<_> = known.rows.iter().filter(|row| row.became.is_some()).cloned().collect();
        let names = names::plan(&active, &formers(backend, &known, &active), &forgotten, &found)
            .map_err(|why| Error::new(Code::Config, format!("Backend {}: {why}", backend.host())))?;
        if order.stop_mirroring && names.replicated {
            return Err(Error::new(
                Code::InvalidInput,
                "The backend still has a replication_device: its volumes are mirrored there (--stop-mirroring is for \
                 one that has no other site left)",
            ));
        }
        let site = sites.get(DEFAULT).cloned().ok_or_else(|| Error::internal("a backend has no site"))?;
        let census = Box::pin(Census::take(backend, &site, &active, &names)).await?;
        refuse_what_is_elsewhere(backend, operation, &census, order).await?;
        Ok(Plan { sites, active, names, census })
    })
}

/// What the sites of the files say which clusters they are, the backend's own first.
async fn look(sites: &Sites, options: &BackendConfig) -> Vec<Found> {
    let names =
        std::iter::once(DEFAULT).chain(options.replication_devices.iter().map(|d| d.backend_id.as_str()));
    let asked = names.filter_map(|name| sites.get(name)).map(|site| async move {
        Found {
            name: site.name().to_owned(),
            fsid: tokio::time::timeout(ANSWER, site.fsid(ANSWER)).await.ok().and_then(|said| said.ok()),
            conf: site.connection().conf.to_string_lossy().into_owned(),
        }
    });
    futures::future::join_all(asked).await
}

/// The backend's own cluster by the files must be the one that is active now.
async fn prove(
    backend: &Backend,
    known: &Known,
    active: &str,
    options: &BackendConfig,
    found: &[Found],
    order: &Adopt,
) -> Result<()> {
    let (host, files) = (backend.host(), backend.globals.sources.shown());
    let own = found.first().and_then(|site| site.fsid.as_deref());
    let expected = match (order.fsid.as_deref(), known.fsid(active)) {
        (Some(fsid), _) | (None, Some(fsid)) => Some(fsid.to_owned()),
        // Never written down: asked of the site, which serves.
        (None, None) => match backend.active_site() {
            Ok(site) => Box::pin(backend.facts(&site)).await.ok().map(|facts| facts.fsid.clone()),
            Err(_) => None,
        },
    };
    let mut text = match (own, expected) {
        (Some(own), Some(expected)) if own == expected => return Ok(()),
        (Some(own), Some(expected)) => format!(
            "Backend {host} works on site {active}, which is cluster {expected}; by {files} its own is {own}: nothing \
             was done."
        ),
        (Some(own), None) => format!(
            "Nobody knows which cluster site {active} of backend {host} is; if it is {own}, say so (--fsid {own})."
        ),
        (None, _) => format!(
            "Backend {host} works on site {active}; the cluster that is its own by {files} ({}) does not answer: \
             nothing was done.",
            options.ceph_conf.display()
        ),
    };
    if let Some(lines) = names::lines(backend.sites().options(), active) {
        text.push_str(&format!(
            " To make {active} its own, write into section [{}]\n\n{lines}\nor leave replication_device out when there \
             is no other site any more, and order it again.",
            backend.config.section
        ));
    }
    Err(Error::new(Code::InvalidReplicationTarget, text))
}

/// The names that rows may have, and the clusters behind them.
fn formers(backend: &Backend, known: &Known, active: &str) -> Vec<Former> {
    let mut formers: Vec<Former> = known
        .rows
        .iter()
        .filter(|row| row.became.is_none())
        .map(|row| Former { name: row.site.clone(), fsid: Some(row.fsid.clone()), conf: row.conf.clone() })
        .collect();
    for site in backend.sites().all() {
        if formers.iter().all(|old| old.name != site.name()) {
            formers.push(Former {
                name: site.name().to_owned(),
                fsid: site.identity().found(),
                conf: site.connection().conf.to_string_lossy().into_owned(),
            });
        }
    }
    if formers.iter().all(|old| old.name != active) {
        formers.push(Former { name: active.to_owned(), fsid: None, conf: String::new() });
    }
    formers
}

async fn refuse_what_is_elsewhere(
    backend: &Backend,
    operation: &Operation,
    census: &Census,
    order: &Adopt,
) -> Result<()> {
    let behind: &[_] = if order.leave_behind { &[] } else { &census.behind };
    if census.unsure.is_empty() && behind.is_empty() {
        return Ok(());
    }
    let item = |(volume, why): &(Volume, String), advice: &str| {
        (volume.id.clone(), json!({"reason": why, "advice": advice}))
    };
    let unsure = census.unsure.iter().map(|one| item(one, "replication audit"));
    let items: Vec<_> = unsure
        .chain(
            behind.iter().map(|one| item(one, "move it (replication retry), or give it up (--leave-behind)")),
        )
        .collect();
    operation.item_steps("failed", &items).await?;
    let mut text = format!("{} volumes of backend {} stand in the way", items.len(), backend.host());
    if !census.unsure.is_empty() {
        text.push_str(&format!("; look into these: {}", listed(&census.unsure)));
    }
    if !behind.is_empty() {
        text.push_str(&format!(
            "; these are not there, move them or give them up (--leave-behind): {}",
            listed(behind)
        ));
    }
    Err(Error::new(Code::InvalidVolume, text))
}

/// Ends the mirroring of images that are mirrored to nobody any more.
// Boxed as `run` is.
fn stop_mirroring<'a>(
    backend: &'a Backend,
    operation: &'a Operation,
    plan: &'a Plan,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let site =
            plan.sites.get(DEFAULT).cloned().ok_or_else(|| Error::internal("a backend has no site"))?;
        let pool = &backend.config.pool;
        let stopped = plan.census.served.iter().map(|volume| {
            let (site, image) = (site.clone(), backend.image_name(volume));
            let data = DriverData::parse(volume.replication_driver_data.as_deref());
            async move {
                let done = Box::pin(enable::disable(&site, pool, &image, data)).await;
                crash::point("adopt:stopped");
                done.map_err(|error| (volume.id.clone(), error))
            }
        });
        let stopped: Vec<BoxFuture<'_, _>> = stopped.map(|one| Box::pin(one) as BoxFuture<'_, _>).collect();
        let ended: Vec<std::result::Result<(), _>> =
            stream::iter(stopped).buffer_unordered(AT_ONCE).collect().await;
        let failed: Vec<(String, RbdError)> = ended.into_iter().filter_map(|one| one.err()).collect();
        let Some((first, error)) = failed.first() else { return Ok(()) };
        let items: Vec<_> =
            failed.iter().map(|(id, error)| (id.clone(), json!({"reason": error.message}))).collect();
        operation.item_steps("failed", &items).await?;
        Err(Error::new(
            Code::Replication,
            format!("The mirroring of {} volumes could not be ended, the first is {first}", failed.len()),
        )
        .caused_by(error.clone()))
    })
}

/// What the operator reads.
fn summary(plan: &Plan, order: &Adopt) -> String {
    let names = &plan.names;
    let mut text = format!("{} is the backend's own site", plan.active);
    let peers: Vec<&str> = plan.sites.all().map(Site::name).filter(|name| *name != DEFAULT).collect();
    match (names.replicated, order.stop_mirroring) {
        (true, _) => text.push_str(&format!(", its other sites are {}", peers.join(", "))),
        (false, true) => text.push_str(", it has no other; images are not mirrored any more"),
        (false, false) => text.push_str(", it has no other; images are still mirrored primaries"),
    }
    text.push_str(&format!("; {} volumes are at home", plan.census.served.len()));
    if !plan.census.behind.is_empty() {
        text.push_str(&format!(", {} given up: {}", plan.census.behind.len(), listed(&plan.census.behind)));
    }
    text
}

/// The row of the service, as if it had never failed over. What an administrator has disabled stays so.
fn at_home(service: &Service, replicated: bool) -> ServiceChanges {
    let status = if replicated { ReplicationStatus::Enabled } else { ReplicationStatus::Disabled };
    let by_failover = service.disabled_reason.as_deref() == Some("failed-over");
    let over = standing::after(DEFAULT, service.frozen);
    ServiceChanges {
        replication_status: Some(status.as_str().to_owned()),
        active_backend_id: Some(None),
        disabled: over.disabled.filter(|_| by_failover),
        disabled_reason: over.disabled_reason.filter(|_| by_failover),
        ..ServiceChanges::default()
    }
}

/// The transaction in which all rows change, and what follows from it.
// Boxed as `run` is.
fn conclude<'a>(
    backend: &'a Backend,
    context: &'a RequestContext,
    operation: &'a Operation,
    plan: Plan,
    order: &'a Adopt,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let detail = summary(&plan, order);
        let outcome = Outcome { detail: Some(detail.clone()), ..Outcome::succeeded() };
        let active = standing::exclusive(backend).await;
        let id = backend.service()?.id;
        let service =
            backend.db.read("service to adopt", async |conn| db::service::get(conn, id).await).await?;
        let changes = at_home(&service, plan.names.replicated);
        // On the wire a site that is null means "choose one"; empty is the backend's own.
        let told = ServiceChanges { active_backend_id: Some(Some(String::new())), ..changes.clone() };
        let telling = backend.config.cluster.as_ref().map(|_| Telling::new(&told, &outcome));
        let rows = Rows { backend, operation, service: &service, changes: &changes, plan: &plan };
        let after = match &telling {
            Some(telling) => {
                operation
                    .write("end of an adoption", async |conn| {
                        let after = rows.write(conn).await?;
                        telling.record(conn, operation).await?;
                        Ok(after)
                    })
                    .await?
            }
            None => {
                backend.journal.complete(operation, &outcome, async |conn| rows.write(conn).await).await?
            }
        };
        crash::point("adopt:written");
        backend.set_service(after);
        plan.sites.expect(&Known { rows: plan.names.rows.clone(), adoption: operation.id() });
        plan.sites.set_adoption(operation.id());
        if !plan.census.behind.is_empty() {
            warn!(
                backend = backend.host(),
                volumes = plan.census.behind.len(),
                "volumes were left behind for good"
            );
        }
        info!(backend = backend.host(), "adoption is over: {detail}");
        backend.replace_sites(plan.sites, DEFAULT)?;
        drop(active);
        let served = plan.census.served.iter().map(|volume| volume.id.clone()).collect();
        let behind = plan.census.behind.iter().map(|(volume, _)| volume.id.clone()).collect();
        news::adopted(backend, context, &detail, served, behind);
        backend.want_report();
        backend.schedules_wanted.notify_one();
        match telling {
            Some(telling) => telling.tell(backend, context, operation).await,
            None => Ok(()),
        }
    })
}

/// Everything that the transaction needs.
struct Rows<'a> {
    backend: &'a Backend,
    operation: &'a Operation,
    service: &'a Service,
    changes: &'a ServiceChanges,
    plan: &'a Plan,
}

impl Rows<'_> {
    // Boxed, or the compiler takes minutes to see that all futures around this one can be sent to other threads.
    fn write<'c>(&'c self, conn: &'c mut Conn) -> BoxFuture<'c, Result<Service>> {
        Box::pin(async move {
            let (backend, names, census) = (self.backend, &self.plan.names, &self.plan.census);
            let scope = backend.scope();
            let cluster = backend.config.cluster.as_deref();
            let after = standing::write(conn, self.service, cluster, self.changes).await?;
            // Another member of the cluster may have begun something since.
            if let Some((id, method)) =
                db::adoption::in_the_way(conn, &scope, self.operation.id()).await?.first()
            {
                return Err(Error::new(
                    Code::Conflict,
                    format!(
                        "Operation {id} ({method}) has begun meanwhile: nothing was done; order it again"
                    ),
                ));
            }
            db::adoption::rename(conn, &scope, fence::name_of(&scope), &names.renamed).await?;
            db::backend_site::replace(conn, &backend.scope_name(), self.operation.id(), &names.rows).await?;
            let served: Vec<String> = census.served.iter().map(|v| v.id.clone()).collect();
            match names.replicated {
                true => db::adoption::at_home(conn, &served).await?,
                false => db::adoption::alone(conn, &served).await?,
            }
            let behind: Vec<String> = census.behind.iter().map(|(v, _)| v.id.clone()).collect();
            let why = format!("left behind when its backend adopted site {}", self.plan.active);
            db::adoption::leave_behind(conn, &behind, &why).await?;
            db::adoption::groups(conn, &scope, names.replicated).await?;
            Ok(after)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_row_is_that_of_a_backend_that_never_failed_over() {
        let failed_over =
            Service { disabled: true, disabled_reason: Some("failed-over".into()), ..Service::default() };
        let changes = at_home(&failed_over, true);
        assert_eq!(changes.replication_status.as_deref(), Some("enabled"));
        assert_eq!(changes.active_backend_id, Some(None), "NULL");
        assert_eq!((changes.disabled, changes.disabled_reason), (Some(false), Some(Some(String::new()))));
        let frozen = Service { frozen: true, ..failed_over.clone() };
        let changes = at_home(&frozen, false);
        assert_eq!((changes.disabled, changes.disabled_reason), (Some(true), Some(Some("frozen".into()))));
        assert_eq!(changes.replication_status.as_deref(), Some("disabled"));
        let by_hand = Service { disabled_reason: Some("maintenance".into()), ..failed_over };
        assert_eq!(at_home(&by_hand, true).disabled, None, "its administrator enables it again");
    }
}
