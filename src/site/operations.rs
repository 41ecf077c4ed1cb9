//! Registering, updating and forgetting a site.
//!
//! Each is a look, then files, then one transaction that writes the rows and ends the operation: killed anywhere, it
//! is run again from its last step, and what the look has found is not asked twice. A dry run ends after the look.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::files::{Draft, unreadable};
use super::orders::{Delete, Files, Order, Register, Request, Update};
use super::probe::{Report, look, wanted};
use super::{Sites, blocking, check_name, link};
use crate::backend::peers::Priority;
use crate::context::RequestContext;
use crate::db::site::{self, HostRow, SiteRow};
use crate::db::{backup_place, mirror_daemon, site_use};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::rbd::Site;
use crate::rbd::protocol::{ConfGet, Connection, Fsid};
use crate::volume::crash;

/// Upper limit of one attempt to connect to a site that may be anywhere, in seconds.
pub(super) const CONNECT: u32 = 10;

/// Carries an order out and closes it, with an answer for who asks.
pub async fn run(sites: &Sites, operation: &Operation) {
    info!(operation.id = operation.id(), op = operation.method(), "carrying out an order for a site");
    let request = match Request::parse(operation.request()) {
        Ok(request) => request,
        Err(e) => return close(sites, operation, &Outcome::failed(&e)).await,
    };
    if !request.order.is_dry_run() {
        tell(sites, operation.id(), &request, "start", None).await;
    }
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(carry_out(sites, operation, &request.order)).catch_unwind() => outcome
            .unwrap_or_else(|_| Err(Error::internal("The order hit a defect; the log has the details"))),
        () = operation.lost().cancelled() => return,
    };
    let error = match outcome {
        Ok(answer) => {
            drop_keys(sites, &request.order).await;
            if let Some(answer) = answer {
                close(sites, operation, &Outcome::succeeded().with_reply(answer)).await;
            }
            if !request.order.is_dry_run() {
                tell(sites, operation.id(), &request, "end", None).await;
            }
            return;
        }
        // Withdrawn, or somebody else's: drafts without an open order are swept away.
        Err(e) if e.code() == Code::Cancelled => return,
        Err(e) if matches!(e.code(), Code::Database | Code::Broker) => {
            warn!(operation.id = operation.id(), error = %e, "an order could not be recorded, it will be taken up again");
            if let Err(error) = sites.journal.give_back(operation).await {
                warn!(operation.id = operation.id(), %error, "nor given back: its lease ends by itself");
            }
            return;
        }
        Err(e) => e,
    };
    error!(operation.id = operation.id(), site = request.order.site(), %error, "an order for a site failed");
    discard(sites, request.order.files()).await;
    close(sites, operation, &Outcome::failed(&error)).await;
    if !request.order.is_dry_run() {
        tell(sites, operation.id(), &request, "error", Some(&error)).await;
    }
}

async fn close(sites: &Sites, operation: &Operation, outcome: &Outcome) {
    match sites.journal.finish(operation, outcome).await {
        Err(error) if error.code() != Code::Cancelled => {
            error!(%error, "could not close an order for a site")
        }
        Ok(()) | Err(_) => {}
    }
}

/// Tells listeners that an order was withdrawn.
pub(crate) async fn withdrawn(sites: &Sites, operation: i64, request: &Request) {
    if !request.order.is_dry_run() {
        tell(sites, operation, request, "cancel", None).await;
    }
}

async fn tell(sites: &Sites, operation: i64, request: &Request, what: &str, error: Option<&Error>) {
    if !sites.notify.enabled() {
        return;
    }
    let (event, publisher) =
        (format!("scoria.site.{}.{what}", request.order.verb()), format!("scoria.{}", sites.host));
    let priority = if error.is_some() { Priority::Error } else { Priority::Info };
    let payload = json!({
        "operation": operation,
        "site": request.order.site(),
        "host": sites.host,
        "reason": error.map(Error::user),
    });
    let context = RequestContext::admin();
    sites.notify.publish(&context, &event, priority, &publisher, payload).await;
}

/// What is answered; `None` when the operation has been closed with it.
async fn carry_out(sites: &Sites, operation: &Operation, order: &Order) -> Result<Option<Value>> {
    match order {
        Order::Register(order) => Box::pin(register(sites, operation, order)).await,
        Order::Update(order) => Box::pin(update(sites, operation, order)).await,
        Order::Delete(order) => Box::pin(delete(sites, operation, order)).await,
        Order::Connect(order) => Box::pin(link::connect(sites, operation, order)).await,
        Order::Disconnect(order) => Box::pin(link::disconnect(sites, operation, order)).await,
        Order::Schedule(order) => Box::pin(super::schedule::run(sites, order)).await.map(Some),
        Order::Replicate(order) => Box::pin(super::replicate::run(sites, operation, order)).await.map(Some),
        Order::Which(order) => Box::pin(super::detective::which(sites, order)).await.map(Some),
        Order::Half(order) => Box::pin(super::detective::half(sites, operation, order)).await.map(Some),
        Order::Switch(order) => Box::pin(super::switch::run(sites, operation, order)).await.map(Some),
        Order::Revert(order) => Box::pin(super::revert::run(sites, operation, order)).await.map(Some),
        Order::Move(order) => Box::pin(super::moving::run(sites, operation, order)).await.map(Some),
        Order::Independent(order) => {
            Box::pin(super::independent::run(sites, operation, order)).await.map(Some)
        }
        Order::Daemon(order) => Box::pin(super::daemon::run(sites, operation, order)).await,
    }
}

/// Administrators' keys are for one order.
async fn drop_keys(sites: &Sites, order: &Order) {
    if matches!(order, Order::Connect(_) | Order::Disconnect(_) | Order::Independent(_)) {
        discard(sites, order.files()).await;
    }
}

async fn discard(sites: &Sites, files: Vec<&Files>) {
    for files in files.into_iter().filter(|files| files.draft) {
        if let Err(error) = sites.discard(files.clone()).await {
            warn!(%error, "a draft is left for the sweep");
        }
    }
}

/// Fails unless the files can be used: a draft is one of ours, anything else can be read.
pub(super) async fn check_files(sites: &Sites, files: &Files) -> Result<()> {
    if files.draft {
        return match sites.store.is_draft(files) {
            true => Ok(()),
            false => Err(Error::new(
                Code::InvalidInput,
                "The draft of the order is not in the directory of this host's service; is scoria_site_dir the same?",
            )),
        };
    }
    // An empty conf is the one that librados searches.
    let named =
        std::iter::once(&files.conf).chain(&files.keyring).filter(|path| !path.as_os_str().is_empty());
    let paths: Vec<PathBuf> = named.cloned().collect();
    let wrong = blocking(move || {
        paths.into_iter().find_map(|path| std::fs::File::open(&path).err().map(|e| unreadable(&path, &e)))
    });
    wrong.await?.map_or(Ok(()), Err)
}

/// Looks at the site that files lead to, with the backends' pools among those that are wanted.
async fn look_by(sites: &Sites, name: &str, files: &Files, pools: &[String]) -> Result<Report> {
    let connection = Connection {
        site: name.to_owned(),
        conf: files.conf.clone(),
        cluster_name: "ceph".to_owned(),
        user: Some(files.user.clone()),
        connect_timeout: Some(CONNECT),
    };
    let at = Site::new(sites.ceph.clone(), connection);
    let looked = async {
        let fsid = at.call(Fsid {}).await?;
        let uses =
            sites.db.read("uses of a site", async |conn| site_use::of(conn, Some(&fsid)).await).await?;
        let report = look(&at, &wanted(&uses, &files.user, pools)).await?;
        let keyring = match &files.keyring {
            // A draft's conf leads to its keyring, since we wrote both.
            Some(given) if !files.draft => {
                Some((given, at.call(ConfGet { option: "keyring".to_owned() }).await?))
            }
            _ => None,
        };
        if let Some((given, leads)) = keyring
            && !leads.iter().flat_map(|l| l.split(',')).any(|path| Path::new(path.trim()) == given)
        {
            return Err(Error::new(
                Code::InvalidInput,
                format!(
                    "{} does not lead to {}, so backends would not find the key; add to it: [client.{}] keyring = {}",
                    files.conf.display(),
                    given.display(),
                    files.user,
                    given.display()
                ),
            ));
        }
        Ok(report)
    };
    let looked = looked.await;
    if !sites.is_shared(at.connection()) {
        at.leave();
    }
    looked
}

/// What the step `looked` keeps, or the look itself.
async fn looked(
    sites: &Sites,
    operation: &Operation,
    name: &str,
    files: &Files,
    pools: &[String],
) -> Result<Report> {
    if let Some(report) = operation.reached::<Report>("looked").await? {
        return Ok(report);
    }
    check_files(sites, files).await?;
    let report = look_by(sites, name, files, pools).await?;
    crash::point("site:looked");
    Ok(report)
}

/// What registering this cluster under this name does, by the rows that have one or the other.
fn judge(name: &str, fsid: &str, host: &str, rows: &[SiteRow], hosts: &[HostRow]) -> Result<String> {
    if rows.iter().any(|row| row.name == name && row.fsid != fsid) {
        return Err(site::taken(name));
    }
    match rows.iter().find(|row| row.fsid == fsid) {
        None => Ok("new".to_owned()),
        Some(row) if row.name == name => Ok(match hosts.iter().any(|h| h.fsid == fsid && h.host == host) {
            true => "files replaced".to_owned(),
            false => "host added".to_owned(),
        }),
        // A name that nobody has chosen is nobody's.
        Some(row) if row.origin == "found" => Ok(format!("renamed from {}", row.name)),
        Some(row) => Err(Error::new(
            Code::Conflict,
            format!(
                "This cluster is registered already, as {}; use that name, or give it another with update",
                row.name
            ),
        )),
    }
}

async fn register(sites: &Sites, operation: &Operation, order: &Register) -> Result<Option<Value>> {
    check_name(&order.name)?;
    let report = looked(sites, operation, &order.name, &order.files, &order.pools).await?;
    let (name, fsid) = (order.name.as_str(), report.fsid.as_str());
    let what = sites
        .db
        .read("a site to register", async |conn| {
            // Plain reads: the transaction below looks again.
            let all = site::list(conn).await?;
            judge(name, fsid, &sites.host, &all, &site::hosts(conn, fsid).await?)
        })
        .await?;
    let answer = answer(name, &what, order.dry_run, Some(&report));
    if order.dry_run {
        discard(sites, vec![&order.files]).await;
        return Ok(Some(answer));
    }
    operation.step("looked", &report).await?;
    let files = sites.files.lock().await;
    let row = install(sites, &order.files, fsid).await?;
    let seen = report.seen()?;
    let outcome = Outcome::succeeded().with_reply(answer);
    sites
        .journal
        .complete(operation, &outcome, async |conn| {
            let rows = site::lock(conn, name, fsid).await?;
            judge(name, fsid, &sites.host, &rows, &[])?;
            site::put(conn, name, "registered", &seen).await?;
            site::put_host(conn, &row).await
        })
        .await?;
    crash::point("site:recorded");
    drop(files);
    clean(sites, vec![&order.files]).await;
    Ok(None)
}

/// Makes a draft this host's files of the site, or takes the files as they are.
async fn install(sites: &Sites, files: &Files, fsid: &str) -> Result<HostRow> {
    let (conf, keyring) = if files.draft {
        let (store, draft, of) = (sites.store.clone(), files.clone(), fsid.to_owned());
        let Draft { conf, keyring } = blocking(move || store.keep(&draft, &of)).await??;
        crash::point("site:kept");
        (conf, Some(keyring))
    } else {
        (files.conf.clone(), files.keyring.clone())
    };
    Ok(HostRow {
        fsid: fsid.to_owned(),
        host: sites.host.clone(),
        conf: conf.display().to_string(),
        keyring: keyring.map(|path| path.display().to_string()),
        client: Some(files.user.clone()),
        own: files.draft,
        state: "present".to_owned(),
        problem: None,
    })
}

/// Removes the draft, and what the new files have replaced. What a crash leaves here, the next look finds.
async fn clean(sites: &Sites, files: Vec<&Files>) {
    discard(sites, files).await;
    if let Err(error) = sites.tidy().await {
        warn!(%error, "former files of a site will be removed later");
    }
}

async fn update(sites: &Sites, operation: &Operation, order: &Update) -> Result<Option<Value>> {
    if let Some(name) = &order.new_name {
        check_name(name)?;
    }
    let (row, hosts) = sites
        .db
        .read("a site to update", async |conn| {
            let row = site::find(conn, &order.name).await?;
            let hosts = site::hosts(conn, &row.fsid).await?;
            Ok((row, hosts))
        })
        .await?;
    let here = hosts.iter().find(|h| h.host == sites.host);
    let by = match (&order.files, here) {
        (Some(files), _) => Some(files.clone()),
        (None, Some(here)) => Some(Files {
            conf: PathBuf::from(&here.conf),
            keyring: None,
            user: here.client.clone().unwrap_or_else(|| "admin".to_owned()),
            draft: false,
        }),
        (None, None) => None,
    };
    let report = match &by {
        None if order.new_name.is_some() => None,
        None => {
            return Err(Error::new(
                Code::InvalidInput,
                format!(
                    "Host {} has no files of site {}; register them there, or name a host that has",
                    sites.host, row.name
                ),
            ));
        }
        Some(files) => match looked(sites, operation, &order.name, files, &order.pools).await {
            Ok(report) => Some(report),
            // A name does not depend on whether the cluster answers.
            Err(e) if order.files.is_none() && order.new_name.is_some() && e.code() != Code::Cancelled => {
                warn!(site = row.name, error = %e, "the site is renamed without a look at it");
                None
            }
            Err(e) => return Err(e),
        },
    };
    if let Some(report) = &report
        && report.fsid != row.fsid
    {
        return Err(Error::new(
            Code::Conflict,
            format!(
                "These files lead to another cluster ({}), not to site {} ({})",
                report.fsid, row.name, row.fsid
            ),
        ));
    }
    let name = order.new_name.as_deref().unwrap_or(&row.name);
    let what = match (&order.new_name, &order.files) {
        (Some(_), _) => format!("renamed from {}", row.name),
        (None, Some(_)) => "files replaced".to_owned(),
        (None, None) => "looked at".to_owned(),
    };
    let answer = answer(name, &what, order.dry_run, report.as_ref());
    if order.dry_run {
        discard(sites, order.files.iter().collect()).await;
        return Ok(Some(answer));
    }
    if let Some(report) = &report {
        operation.step("looked", report).await?;
    }
    let files = sites.files.lock().await;
    let host = match &order.files {
        Some(files) => Some(install(sites, files, &row.fsid).await?),
        None => None,
    };
    let seen = report.as_ref().map(Report::seen).transpose()?;
    let outcome = Outcome::succeeded().with_reply(answer);
    sites
        .journal
        .complete(operation, &outcome, async |conn| {
            let rows = site::lock(conn, name, &row.fsid).await?;
            let Some(now) = rows.iter().find(|r| r.fsid == row.fsid) else {
                return Err(Error::new(Code::Conflict, format!("Site {} was deleted meanwhile", row.name)));
            };
            if order.new_name.is_some() {
                if rows.iter().any(|r| r.fsid != row.fsid) {
                    return Err(site::taken(name));
                }
                site::rename(conn, &row.fsid, name).await?;
            } else if now.name != row.name {
                return Err(Error::new(Code::Conflict, format!("Site {} was renamed meanwhile", row.name)));
            }
            if let Some(seen) = &seen {
                site::see(conn, seen).await?;
            }
            match &host {
                Some(host) => site::put_host(conn, host).await,
                None => Ok(()),
            }
        })
        .await?;
    crash::point("site:recorded");
    drop(files);
    if order.files.is_some() {
        clean(sites, order.files.iter().collect()).await;
    }
    Ok(None)
}

async fn delete(sites: &Sites, operation: &Operation, order: &Delete) -> Result<Option<Value>> {
    let row = sites.db.read("a site to delete", async |conn| unused(conn, &order.name).await).await?;
    let hosts = sites.db.read("its files", async |conn| site::hosts(conn, &row.fsid).await).await?;
    let mut answer = answer(&row.name, "deleted", order.dry_run, None);
    if let Value::Object(map) = &mut answer {
        let own = hosts
            .iter()
            .filter(|h| h.own)
            .map(|h| json!({"host": h.host, "conf": h.conf, "keyring": h.keyring}));
        map.insert("fsid".to_owned(), json!(row.fsid));
        map.insert("files_removed".to_owned(), own.collect());
    }
    if order.dry_run {
        return Ok(Some(answer));
    }
    let outcome = Outcome::succeeded().with_reply(answer);
    sites
        .journal
        .complete(operation, &outcome, async |conn| {
            // Another may have got the name meanwhile.
            forget_in(conn, &row.fsid).await
        })
        .await?;
    crash::point("site:recorded");
    tidy_later(sites).await;
    Ok(None)
}

/// Forgets a site that nothing uses, inside the operation of somebody else; its files go.
///
/// # Errors
/// `Invalid` when something uses it.
pub(super) async fn forget(sites: &Sites, operation: &Operation, name: &str) -> Result<()> {
    operation.write("a site to forget", async |conn| forget_in(conn, name).await).await?;
    tidy_later(sites).await;
    Ok(())
}

/// Forgets the site of this name or fsid, with its daemons, unless something uses it by now.
async fn forget_in(conn: &mut crate::db::Conn, name: &str) -> Result<()> {
    let row = site::find(conn, name).await?;
    site::lock(conn, &row.name, &row.fsid).await?;
    let row = unused(conn, &row.fsid).await?;
    mirror_daemon::forget(conn, &row.fsid).await?;
    site::delete(conn, &row.fsid).await
}

/// Removes the files of sites that are known no more; what fails is done by the next look.
async fn tidy_later(sites: &Sites) {
    if let Err(error) = sites.tidy().await {
        warn!(%error, "the files of a deleted site will be removed later");
    }
}

/// The site of this name, if no backend works with it.
async fn unused(conn: &mut crate::db::Conn, name: &str) -> Result<SiteRow> {
    let row = site::find(conn, name).await?;
    let links = link::links(conn, Some(&row.fsid)).await?;
    if let Some(one) = links.first() {
        return Err(Error::new(
            Code::Invalid,
            format!(
                "Site {} is connected by {} pools ({} with {}: pool {}); disconnect it first (scoria-manage site disconnect)",
                row.name,
                links.len(),
                one.a,
                one.b,
                one.pool
            ),
        ));
    }
    let daemons = mirror_daemon::of_site(conn, &row.fsid).await?;
    if let Some(daemon) = daemons.iter().find(|daemon| daemon.is_wanted()) {
        return Err(Error::new(
            Code::Invalid,
            format!(
                "The rbd-mirror of site {} is to run (by {} of host {}); stop it first: scoria-manage site daemon stop {} \
                 --host {}",
                row.name, daemon.means, daemon.host, row.name, daemon.host
            ),
        ));
    }
    let backups = backup_place::on_site(conn, &row.fsid).await?;
    if let Some((first, _)) = backups.first() {
        let gib: i64 = backups.iter().map(|(_, gib)| i64::from(*gib)).sum();
        return Err(Error::new(
            Code::Invalid,
            format!(
                "Site {} has {} backups of {gib} GiB ({first} …), which nobody could restore then; delete them first \
                 (openstack volume backup delete)",
                row.name,
                backups.len()
            ),
        ));
    }
    let uses = site_use::of(conn, Some(&row.fsid)).await?;
    if uses.is_empty() {
        return Ok(row);
    }
    let by: Vec<String> = uses.iter().map(|u| format!("{} (as {})", u.backend, u.site)).collect();
    Err(Error::new(
        Code::Invalid,
        format!(
            "Site {} is in use by: {}. Take it out of their configuration and restart them, or remove the rows of \
             services that are gone (cinder-manage service remove)",
            row.name,
            by.join(", ")
        ),
    ))
}

/// What an operation answers.
fn answer(name: &str, what: &str, dry_run: bool, report: Option<&Report>) -> Value {
    json!({"site": name, "what": what, "dry_run": dry_run, "report": report})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, fsid: &str, origin: &str) -> SiteRow {
        SiteRow {
            fsid: fsid.into(),
            name: name.into(),
            origin: origin.into(),
            monitors: String::new(),
            version: String::new(),
            health: String::new(),
            report: String::new(),
            seen_at: chrono::NaiveDateTime::default(),
            created_at: chrono::NaiveDateTime::default(),
        }
    }

    #[test]
    fn names_and_clusters_are_told_apart() {
        let rows = [row("paris", "f1", "registered"), row("ceph", "f2", "found")];
        let of = |name: &str, fsid: &str| judge(name, fsid, "h", &rows, &[]).map_err(|e| e.code());
        assert_eq!(of("rome", "f3").as_deref(), Ok("new"));
        assert_eq!(of("paris", "f1").as_deref(), Ok("host added"));
        assert_eq!(of("paris", "f3"), Err(Code::Conflict), "the name is taken");
        assert_eq!(of("rome", "f1"), Err(Code::Conflict), "the cluster is registered");
        assert_eq!(of("rome", "f2").as_deref(), Ok("renamed from ceph"), "nobody has chosen that name");
        assert_eq!(of("paris", "f2"), Err(Code::Conflict));
    }
}
