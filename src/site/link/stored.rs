//! Backups on the site that goes: which there are, and how they are deleted before it does.
//!
//! A row names its site only when that is a registered one; of the others the cluster itself is asked. They are deleted
//! by the backup service, over its RPC as the API does it, so that quota, chains and checksums come out right: what here
//! is done is to write down which, to ask, and to wait. An incremental backup goes before the one that it continues.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::info;

use super::census::{Image, listed};
use super::orders::BackupsGo;
use super::pair::End;
use crate::backend::peers::{self, DeleteBackup};
use crate::backup::names::{self, ServiceMetadata};
use crate::context::RequestContext;
use crate::db::backup_place::Arriving;
use crate::db::backup_work::{self, BackupChanges};
use crate::db::{backup, backup_place, site};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::{Backup, BackupEvent};
use crate::rbd::RbdErrorKind;
use crate::rbd::protocol::ImageList;
use crate::replication::engine::Pause;
use crate::site::Sites;
use crate::volume::crash;

/// The step of a backup that is deleted.
const DELETION: &str = "backup";

/// The backups on a site.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// Their rows.
    pub(super) rows: Vec<Backup>,
    /// Being made, and not there yet.
    arriving: Vec<String>,
    /// The site did not answer: those whose rows do not name it may be somewhere else.
    guessed: bool,
}

impl Stored {
    /// Finds them. `only`: in these pools; of a site that is dead those count whose rows name it, or a pool of `linked`.
    /// Copies of backups that are elsewhere are none.
    pub(super) async fn find(
        sites: &Sites,
        gone: &End,
        living: bool,
        only: Option<&[String]>,
        linked: &[String],
        copies: &[Image],
    ) -> Result<Stored> {
        let (fsid, name) = (gone.row.fsid.as_str(), gone.row.name.as_str());
        let (rows, arriving) = sites
            .db
            .read("backups on a site", async |conn| {
                let rows = backup_place::candidates(conn, fsid).await?;
                Ok((rows, backup_place::arriving(conn, name, fsid).await?))
            })
            .await?;
        let by_id: HashMap<&str, &Backup> = rows.iter().map(|b| (b.id.as_str(), b)).collect();
        let mut images: BTreeMap<String, HashSet<String>> = BTreeMap::new();
        let mut there = Vec::new();
        for row in &rows {
            let noted = ServiceMetadata::read(row.service_metadata.as_deref()).and_then(|m| m.site);
            let pool = row.container.as_deref().filter(|pool| !pool.is_empty());
            let is_there = match (noted, pool) {
                (Some(site), _) => site == fsid,
                // Nobody has begun with it.
                (None, None) => false,
                (None, Some(pool)) if !living => linked.iter().any(|p| p == pool),
                (None, Some(pool)) => {
                    if !images.contains_key(pool) {
                        images.insert(pool.to_owned(), names_in(gone, pool).await?);
                    }
                    let parent = row.parent_id.as_deref().and_then(|id| by_id.get(id).copied());
                    let is_copy = |base: &String| copies.iter().any(|i| i.pool == pool && i.name == *base);
                    let has = |base: &String| images.get(pool).is_some_and(|all| all.contains(base));
                    names::bases(row, parent).iter().any(|base| has(base) && !is_copy(base))
                }
            };
            let in_scope = only.is_none_or(|only| pool.is_some_and(|pool| only.iter().any(|p| p == pool)));
            if is_there && in_scope {
                there.push(row.clone());
            }
        }
        let in_scope =
            |one: &Arriving| only.is_none_or(|only| one.pool.as_ref().is_none_or(|pool| only.contains(pool)));
        let arriving = arriving
            .into_iter()
            .filter(|one| in_scope(one) && there.iter().all(|row| row.id != one.id))
            .map(|one| one.id)
            .collect();
        Ok(Stored { rows: there, arriving, guessed: !living })
    }

    /// Fails while somebody works with one of them, whatever was agreed to.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn refuse_running(&self, there: &str) -> Result<()> {
        let runs = |b: &&Backup| matches!(b.status.as_str(), "creating" | "restoring" | "deleting");
        let mut running: Vec<String> =
            self.rows.iter().filter(runs).map(|b| format!("{} ({})", b.id, b.status)).collect();
        running.extend(self.arriving.iter().map(|id| format!("{id} (creating)")));
        if running.is_empty() {
            return Ok(());
        }
        let text = format!(
            "{} backups on site {there} are being worked on: {}. Wait for their end (openstack volume backup list)",
            running.len(),
            listed(&running)
        );
        Err(Error::new(Code::Invalid, text))
    }

    /// GiB of their volumes.
    pub(super) fn gib(&self) -> u64 {
        self.rows.iter().map(|b| u64::try_from(b.size).unwrap_or(0)).sum()
    }

    /// What stands in the way of parting.
    pub(super) fn reason(&self, there: &str) -> Option<String> {
        if self.rows.is_empty() {
            return None;
        }
        let names: Vec<String> = self.rows.iter().map(|b| format!("{} ({} GiB)", b.id, b.size)).collect();
        let stored = if self.guessed { "are, or may be, stored" } else { "are stored" };
        Some(format!("{} backups of {} GiB {stored} on {there}: {}", names.len(), self.gib(), listed(&names)))
    }

    /// For who asks.
    pub(super) fn view(&self) -> Vec<Value> {
        let of = |b: &Backup| json!({"id": b.id, "volume": b.volume_id, "gib": b.size, "status": b.status, "pool": b.container});
        self.rows.iter().map(of).collect()
    }

    /// Fails when there are more than the operator was told of.
    ///
    /// # Errors
    /// `Conflict`.
    pub(super) fn check(&self, agreed: BackupsGo) -> Result<()> {
        if self.rows.len() as u64 <= agreed.backups && self.gib() <= agreed.gib {
            return Ok(());
        }
        Err(Error::new(
            Code::Conflict,
            format!(
                "There are {} backups of {} GiB by now, and {} of {} GiB were agreed to: look again, none was deleted",
                self.rows.len(),
                self.gib(),
                agreed.backups,
                agreed.gib
            ),
        ))
    }
}

/// Names of the images of a pool; none when there is no such pool.
async fn names_in(end: &End, pool: &str) -> Result<HashSet<String>> {
    match end.site.insist(ImageList { pool: pool.to_owned() }).await {
        Ok(names) => Ok(names.into_iter().collect()),
        Err(e) if e.kind == RbdErrorKind::NoPool => Ok(HashSet::new()),
        Err(e) => Err(end.explain(e)),
    }
}

/// Waits for deletions that an earlier attempt of this operation has ordered: nobody may take them for somebody else's.
pub(super) async fn resume(sites: &Sites, operation: &Operation) -> Result<()> {
    let open: Vec<String> =
        deletions(operation).await?.into_iter().filter(|(_, ended)| !ended).map(|(id, _)| id).collect();
    if open.is_empty() {
        return Ok(());
    }
    ask(sites, operation, &open).await?;
    wait(sites, operation, open).await
}

/// The backups that this operation has deleted.
pub(super) async fn deleted(operation: &Operation) -> Result<Vec<String>> {
    Ok(deletions(operation).await?.into_iter().filter(|(_, ended)| *ended).map(|(id, _)| id).collect())
}

async fn deletions(operation: &Operation) -> Result<Vec<(String, bool)>> {
    let items = operation.items().await?.into_iter().filter(|item| item.name == DELETION);
    Ok(items
        .map(|i| (i.resource_id, i.data.get("step").and_then(Value::as_str) == Some("deleted")))
        .collect())
}

/// Has them deleted, and waits until they are gone.
///
/// # Errors
/// `Conflict` for what cannot be deleted, and when nobody is there to do it; `ServiceNotFound`; `Broker`, `Database`,
/// `Cancelled`.
pub(super) async fn delete(sites: &Sites, operation: &Operation, stored: Stored) -> Result<()> {
    let rounds = rounds(stored.rows)?;
    if rounds.is_empty() {
        return Ok(());
    }
    operation.step("deleting backups", &json!({})).await?;
    for backups in rounds {
        let ids = order(sites, operation, &backups).await?;
        crash::point("link:backups-ordered");
        ask(sites, operation, &ids).await?;
        crash::point("link:backups-asked");
        wait(sites, operation, ids).await?;
    }
    Ok(())
}

/// Which go at once: first those that no other continues, then those that these have continued, and so on.
fn rounds(mut left: Vec<Backup>) -> Result<Vec<Vec<Backup>>> {
    let mut rounds = Vec::new();
    while !left.is_empty() {
        let parents: HashSet<String> = left.iter().filter_map(|b| b.parent_id.clone()).collect();
        let (last, rest): (Vec<Backup>, Vec<Backup>) =
            left.into_iter().partition(|b| !parents.contains(&b.id));
        if last.is_empty() {
            let ids: Vec<&str> = rest.iter().map(|b| b.id.as_str()).collect();
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "The chain of backups {} leads back to itself by parent_id, so that none can go first; none was \
                     deleted. Mend their rows, or let them stay there (--flatten-backups)",
                    listed(&ids)
                ),
            ));
        }
        rounds.push(last);
        left = rest;
    }
    Ok(rounds)
}

/// Writes down that they are to be deleted, and by whom, as the API does.
async fn order(sites: &Sites, operation: &Operation, backups: &[Backup]) -> Result<Vec<String>> {
    operation
        .write("backups to delete", async |conn| {
            let up = backup::hosts(conn, None, sites.down_time).await?;
            for one in backups {
                let noted = ServiceMetadata::read(one.service_metadata.as_deref()).and_then(|m| m.site);
                let able = match &noted {
                    Some(fsid) => {
                        let files = site::hosts(conn, fsid).await?;
                        up.iter().filter(|host| files.iter().any(|f| f.host == **host)).cloned().collect()
                    }
                    None => up.clone(),
                };
                let host = choose(one, &able).ok_or_else(|| nobody(one, &up))?;
                let changes = BackupChanges { host: Some(Some(host)), ..BackupChanges::default() };
                if !backup_work::transition(conn, &one.id, BackupEvent::DeleteOrdered, &changes).await? {
                    let text = format!(
                        "Backup {} is not {} any more, and was not deleted; nothing was parted: disconnect again",
                        one.id, one.status
                    );
                    return Err(Error::new(Code::Conflict, text));
                }
                operation.item_step_in(conn, &one.id, DELETION, &json!({"step": "deleting"})).await?;
            }
            Ok(())
        })
        .await?;
    Ok(backups.iter().map(|b| b.id.clone()).collect())
}

/// Its own service if that is up, else another that can reach the site.
fn choose(backup: &Backup, up: &[String]) -> Option<String> {
    let own = backup.host.as_ref().filter(|host| up.contains(host));
    own.or(up.first()).cloned()
}

fn nobody(backup: &Backup, up: &[String]) -> Error {
    let text = match up.is_empty() {
        true => format!("No backup service is up that could delete backup {}", backup.id),
        false => format!(
            "No backup service that is up ({}) has files of the site of backup {}: register them there (scoria-manage site \
             register … --host)",
            up.join(", "),
            backup.id
        ),
    };
    Error::new(Code::ServiceNotFound, text)
}

/// Sends the requests, each of which is the same message whenever it is sent.
async fn ask(sites: &Sites, operation: &Operation, ids: &[String]) -> Result<()> {
    let rows = sites.db.read("backups to delete", async |conn| backup_place::of_ids(conn, ids).await).await?;
    for backup in rows.into_iter().filter(|b| b.status == "deleting") {
        let mut fields = RequestContext::admin().to_fields();
        for (key, value) in [("project_id", &backup.project_id), ("user_id", &backup.user_id)] {
            fields.insert(key.to_owned(), json!(value));
        }
        let order = DeleteBackup {
            unique_id: peers::sent_on(operation.unique_id(), &format!("delete_backup {}", backup.id)),
            host: backup.host.clone().unwrap_or_default(),
            backup,
        };
        info!(
            operation.id = operation.id(),
            backup.id = order.backup.id,
            host = order.host,
            "a backup is to be deleted"
        );
        sites.backups.delete_backup(&RequestContext::from_fields(fields), order).await?;
        crash::point("link:backup-asked");
    }
    Ok(())
}

/// Until all of them are gone.
async fn wait(sites: &Sites, operation: &Operation, ids: Vec<String>) -> Result<()> {
    let (total, mut open, mut failed) = (ids.len(), ids, Vec::new());
    let (mut heard, mut pause) = (Instant::now(), Pause::default());
    loop {
        let (rows, up) = sites
            .db
            .read("backups that are deleted", async |conn| {
                let rows = backup_place::of_ids(conn, &open).await?;
                Ok((rows, backup::hosts(conn, None, sites.down_time).await?))
            })
            .await?;
        let rows: HashMap<&str, &Backup> = rows.iter().map(|b| (b.id.as_str(), b)).collect();
        let mut still = Vec::new();
        for id in open {
            match rows.get(id.as_str()) {
                None => operation.item_step(&id, DELETION, &json!({"step": "deleted"})).await?,
                Some(row) if row.status == "deleting" => still.push(id),
                Some(row) => {
                    let why = row.fail_reason.clone().unwrap_or_else(|| format!("it is {}", row.status));
                    operation.item_step(&id, DELETION, &json!({"step": "failed", "reason": why})).await?;
                    failed.push(format!("{id}: {why}"));
                }
            }
        }
        if still.is_empty() {
            break;
        }
        let at_work: HashSet<&str> =
            still.iter().filter_map(|id| rows.get(id.as_str())?.host.as_deref()).collect();
        if up.iter().any(|host| at_work.contains(host.as_str())) {
            heard = Instant::now();
        } else if heard.elapsed() >= sites.patience.silent {
            let mut hosts: Vec<&str> = at_work.into_iter().collect();
            hosts.sort_unstable();
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "{} backups are being deleted, and the backup service that was asked ({}) has been down for {} s: it \
                     goes on when it is started. Disconnect again then; nothing was parted",
                    still.len(),
                    hosts.join(", "),
                    sites.patience.silent.as_secs()
                ),
            ));
        }
        open = still;
        pause.rest().await;
    }
    match failed.first() {
        None => Ok(()),
        Some(first) => Err(Error::new(
            Code::Conflict,
            format!(
                "{} of {total} backups could not be deleted; the first: {first}. Nothing was parted: mend that and \
                 disconnect again, or let them stay there (--flatten-backups)",
                failed.len()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, size: i32, status: &str) -> Backup {
        Backup { id: id.into(), size, status: status.into(), host: Some("h2".into()), ..Backup::default() }
    }

    #[test]
    fn backups_are_named_with_their_sizes_and_no_more_go_than_was_agreed() {
        let rows = vec![row("b1", 2, "available"), row("b2", 3, "error")];
        let stored = Stored { rows, arriving: vec![], guessed: false };
        let reason = stored.reason("rome").unwrap();
        assert_eq!(reason, "2 backups of 5 GiB are stored on rome: b1 (2 GiB), b2 (3 GiB)");
        assert!(stored.check(BackupsGo { backups: 2, gib: 5 }).is_ok());
        for (backups, gib) in [(1, 5), (2, 4)] {
            let refused = stored.check(BackupsGo { backups, gib }).unwrap_err();
            assert!(refused.user().contains("There are 2 backups of 5 GiB by now"), "{refused}");
        }
        assert!(stored.refuse_running("rome").is_ok());
        let stored =
            Stored { rows: vec![row("b1", 2, "restoring")], arriving: vec!["b9".into()], guessed: false };
        let refused = stored.refuse_running("rome").unwrap_err();
        assert!(refused.user().contains("b1 (restoring), b9 (creating)"), "{refused}");
    }

    #[test]
    fn who_continues_another_goes_before_it() {
        let of = |id: &str, parent: Option<&str>| Backup {
            parent_id: parent.map(str::to_owned),
            ..row(id, 1, "available")
        };
        let rows = vec![of("full", None), of("one", Some("full")), of("two", Some("one")), of("other", None)];
        let ids: Vec<Vec<String>> =
            rounds(rows).unwrap().into_iter().map(|r| r.into_iter().map(|b| b.id).collect()).collect();
        assert_eq!(ids, [vec!["two", "other"], vec!["one"], vec!["full"]]);
        let looped = vec![of("good", None), of("x", Some("y")), of("y", Some("x"))];
        let refused = rounds(looped).unwrap_err();
        assert!(refused.user().contains("The chain of backups x, y leads back to itself"), "{refused}");
        assert!(rounds(vec![]).unwrap().is_empty());
    }

    #[test]
    fn the_service_of_a_backup_deletes_it_or_another_that_is_up() {
        let one = row("b1", 1, "available");
        let up = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(choose(&one, &up(&["h1", "h2"])).as_deref(), Some("h2"));
        assert_eq!(choose(&one, &up(&["h1"])).as_deref(), Some("h1"));
        assert_eq!(choose(&one, &[]), None);
        assert!(nobody(&one, &[]).user().contains("No backup service is up"));
        assert!(nobody(&one, &up(&["h1"])).user().contains("(h1) has files of the site"));
    }
}
