//! The two sites of a link, reached by whoever may change them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::super::files::{CephKey, Store};
use super::super::operations::{CONNECT, check_files};
use super::super::orders::Files;
use super::super::{Sites, blocking};
use crate::db::site::{self, SiteRow};
use crate::db::{Conn, Db, peer_link};
use crate::error::{Code, Error, Result};
use crate::journal::{Journal, Operation};
use crate::rbd::link::OsdPlace;
use crate::rbd::mirror_survey::{MirrorPeer, MirrorPool};
use crate::rbd::protocol::{ClusterStatus, Connection, Fsid, MirrorPoolView, OsdPlaces, ProbeMon, SiteName};
use crate::rbd::types::PoolInfo;
use crate::rbd::{RbdError, RbdErrorKind, Site};

/// Within which a site that is alive answers.
const ALIVE: Duration = Duration::from_secs(4);
/// Silent answers in a row that make it dead.
const SILENCES: usize = 3;

/// One of the two.
pub(super) struct End {
    /// Its row.
    pub(super) row: SiteRow,
    /// By the administrator's key, if one was given.
    pub(super) site: Site,
    /// By the key of this one order: its connection is closed with it.
    own: bool,
}

/// The administrator's files for a site, as a draft: its conf as this host has it, or one that leads to its monitors,
/// and the key.
///
/// # Errors
/// `InvalidInput` when there is no such site; `Config` when the draft cannot be written; `Database`.
pub async fn admin_files(
    db: &Db,
    store: &Store,
    host: &str,
    name: &str,
    user: &str,
    key: &CephKey,
) -> Result<Files> {
    let (row, hosts) = db
        .read("a site of a link", async |conn| {
            let row = site::find(conn, name).await?;
            let hosts = site::hosts(conn, &row.fsid).await?;
            Ok((row, hosts))
        })
        .await?;
    let here = hosts.into_iter().find(|h| h.host == host);
    let monitors = row.monitors.lines().collect::<Vec<_>>().join(" ");
    let (store, user, key) = (store.clone(), user.to_owned(), key.clone());
    blocking(move || {
        let there = here.and_then(|here| std::fs::read_to_string(&here.conf).ok());
        let text = there.unwrap_or_else(|| format!("[global]\nfsid = {}\nmon_host = {monitors}\n", row.fsid));
        let draft = store.draft(&text, &user, &key)?;
        Ok(Files { conf: draft.conf, keyring: Some(draft.keyring), user, draft: true })
    })
    .await?
}

impl End {
    /// The site of a name, by the given files or this host's own.
    pub(super) async fn open(sites: &Sites, name: &str, admin: Option<&Files>) -> Result<End> {
        let (row, hosts) = sites
            .db
            .read("a site of a link", async |conn| {
                let row = site::find(conn, name).await?;
                let hosts = site::hosts(conn, &row.fsid).await?;
                Ok((row, hosts))
            })
            .await?;
        let (conf, user) = match admin {
            Some(files) => {
                check_files(sites, files).await?;
                (files.conf.clone(), Some(files.user.clone()))
            }
            None => match hosts.into_iter().find(|h| h.host == sites.host) {
                Some(here) => (PathBuf::from(here.conf), here.client),
                None => {
                    return Err(Error::new(
                        Code::InvalidInput,
                        format!(
                            "Host {} has no files of site {}; give an administrator's keyring, or register its files there",
                            sites.host, row.name
                        ),
                    ));
                }
            },
        };
        let connection = Connection {
            site: row.name.clone(),
            conf,
            cluster_name: "ceph".to_owned(),
            user,
            connect_timeout: Some(CONNECT),
        };
        let own = !sites.is_shared(&connection);
        Ok(End { site: Site::new(sites.ceph.clone(), connection), row, own })
    }

    /// Fails when the files lead to another cluster than the row says.
    pub(super) async fn prove(&self) -> Result<()> {
        let fsid = self.site.insist(Fsid {}).await.map_err(|e| self.explain(e))?;
        if fsid == self.row.fsid {
            return Ok(());
        }
        Err(Error::new(
            Code::InvalidInput,
            format!(
                "The files for site {} lead to cluster {fsid}, and the site is {}: nothing was done",
                self.row.name, self.row.fsid
            ),
        ))
    }

    /// Whether its monitors answer. Dead is only who is silent several times.
    pub(super) async fn is_alive(&self) -> bool {
        for _ in 0..SILENCES {
            if self.site.call_within(ALIVE, ProbeMon {}).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// What it says of itself, as far as a link is concerned.
    pub(super) async fn look(&self) -> Result<Seen> {
        let of = |e: RbdError| self.explain(e);
        let status = self.site.insist(ClusterStatus {}).await.map_err(of)?;
        let mut mirroring = BTreeMap::new();
        for pool in status.pools.iter().filter(|p| !p.erasure) {
            match self.site.insist(MirrorPoolView { pool: pool.name.clone() }).await {
                Ok(view) => {
                    mirroring.insert(pool.name.clone(), view);
                }
                // Of somebody else: it is none of ours either.
                Err(e) if e.kind == RbdErrorKind::Permission => {}
                Err(e) => return Err(of(e)),
            }
        }
        Ok(Seen {
            name: self.row.name.clone(),
            fsid: status.fsid,
            calls_itself: self.site.insist(SiteName {}).await.map_err(of)?,
            osds: self.site.insist(OsdPlaces {}).await.map_err(of)?,
            pools: status.pools,
            mirroring,
        })
    }

    /// An error of this site, with what to do about it when the key is the reason.
    pub(super) fn explain(&self, e: RbdError) -> Error {
        if e.kind != RbdErrorKind::Permission {
            let text = format!("Site {}: {}", self.row.name, e.message);
            return Error::new(Error::from(e.clone()).code(), text).caused_by(e);
        }
        let user = self.site.connection().user.as_deref().unwrap_or("admin");
        Error::new(
            Code::Invalid,
            format!(
                "Site {} does not let client.{user} do this ({}); give an administrator's keyring for this one order \
                 (--admin-keyring {}=FILE)",
                self.row.name, e.op, self.row.name
            ),
        )
        .caused_by(e)
    }

    /// Closes what this order has opened.
    pub(super) fn leave(&self) {
        if self.own {
            self.site.leave();
        }
    }
}

/// What was seen of one of two sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Scoria's name for it.
    pub(super) name: String,
    pub(super) fsid: String,
    /// Its own towards peers.
    pub(super) calls_itself: Option<String>,
    pub(super) osds: Vec<OsdPlace>,
    pub(super) pools: Vec<PoolInfo>,
    /// Of each replicated pool.
    pub(super) mirroring: BTreeMap<String, MirrorPool>,
}

impl Seen {
    /// What it is called, or will be.
    pub(super) fn peer_name(&self) -> &str {
        self.calls_itself.as_deref().unwrap_or(&self.name)
    }

    /// Whether a peer of a pool elsewhere is this site.
    pub(super) fn is_peer(&self, peer: &MirrorPeer) -> bool {
        [self.peer_name(), self.name.as_str(), self.fsid.as_str()].contains(&peer.site_name.as_str())
    }

    /// The pool, if it is there.
    pub(super) fn pool(&self, name: &str) -> Option<&PoolInfo> {
        self.pools.iter().find(|pool| pool.name == name)
    }
}

/// Fails while another operation works on one of these links, inside the caller's transaction.
pub(super) async fn claim(conn: &mut Conn, rows: &[peer_link::LinkRow], operation: &Operation) -> Result<()> {
    let own = operation.id();
    let others: Vec<i64> = rows.iter().map(|row| row.operation_id).filter(|id| *id != own).collect();
    match Journal::still_open(conn, &others).await?.into_iter().min() {
        None => Ok(()),
        Some(other) => Err(Error::new(
            Code::Conflict,
            format!(
                "Operation {other} is working on links of these sites; wait for its end (scoria-manage operation show \
                 {other} --follow), or withdraw it"
            ),
        )),
    }
}

/// An order that another process had begun has no administrator's key any more, and one that this process has begun
/// keeps it.
pub(super) fn require_key(sites: &Sites, operation: &Operation, files: &[&Files]) -> Result<()> {
    let mut held = sites.admins.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let begun_here = files.iter().all(|files| held.contains(&files.conf));
    if files.is_empty() || begun_here {
        return Ok(());
    }
    if operation.is_adopted() {
        return Err(Error::new(
            Code::Conflict,
            "The service was restarted, and an administrator's key is not kept: give the same order again with the \
             keyrings, and it goes on from where it was",
        ));
    }
    held.extend(files.iter().map(|files| files.conf.clone()));
    Ok(())
}
