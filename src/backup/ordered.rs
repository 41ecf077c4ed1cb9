//! Backups that an operator or a schedule orders: of a volume, of all volumes of a group as of one instant, or of all
//! volumes of a type (`of_type`).
//!
//! They are ordinary ones: rows as the API makes them, with the volume's project and owner, counted in its quota, and a
//! `create_backup` in the journal for each. Of a group the snapshots that are read are taken first, together; each
//! has the name that the backup's own snapshot of its volume has anyway, so that nothing is left to remove, and the next
//! incremental backup goes on from it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};
use uuid::Uuid;

use super::retention::{Reach, apply};
use super::{Backups, images, names, of_type, status};
use crate::backend::peers::BackupRequest;
use crate::context::RequestContext;
use crate::db;
use crate::db::Conn;
use crate::db::backup_order::{NewBackup, taken_at};
use crate::db::message::{Action, Detail, Level, Message, ResourceType};
use crate::error::{Code, Error, Result};
use crate::journal::{Journal, NewOperation, Operation, Request};
use crate::model::{Backup, Volume};
use crate::rbd::types::SnapOf;
use crate::volume::crash;
use crate::volume::image::{Attempt, Consistency, Place};

/// Steps of the journal: the rows are there; the backups are ordered.
const ROWS: &str = "rows";
const SENT: &str = "sent";
/// Between two looks at operations that are waited for.
const PERIOD: Duration = Duration::from_millis(500);

/// Back up a volume, the volumes of a group, or those of a type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The volume; or
    pub volume: Option<String>,
    /// the group; or
    pub group: Option<String>,
    /// the type, by its id or its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_type: Option<String>,
    /// Go on from the newest backup; the first one is full all the same.
    pub incremental: bool,
    /// For people.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Pool.
    pub container: Option<String>,
    /// Apply retention afterwards.
    pub retention: bool,
    /// The schedule whose run it is, and when that was due.
    pub schedule: Option<(String, String)>,
}

impl Create {
    /// Whether it says what is backed up.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check(&self) -> Result<()> {
        let named = [&self.volume, &self.group, &self.volume_type].into_iter().flatten().count();
        match named {
            1 => Ok(()),
            _ => Err(Error::new(Code::InvalidInput, "Name one of: a volume, a group, a volume type")),
        }
    }
}

/// A backup with the operation that works on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// The backup.
    pub backup: String,
    /// Number in the journal.
    pub operation: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    volume: String,
    backup: String,
    /// Snapshot of the volume that is taken with those of the others.
    snap: Option<String>,
    /// 0 until it is ordered.
    operation: i64,
}

/// What is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Set {
    members: Vec<Member>,
    /// Why the members do not show one instant.
    apart: Option<String>,
}

/// How an operation that was waited for has ended.
pub(super) struct Ended {
    number: i64,
    outcome: String,
    detail: String,
}

impl Ended {
    /// As asked.
    pub(super) fn is_good(&self) -> bool {
        self.outcome == "succeeded"
    }

    /// For a person.
    pub(super) fn describe(&self) -> String {
        format!("operation {} {}: {}", self.number, self.outcome, self.detail)
    }
}

/// Makes the backups and waits for them. Answers which there are.
///
/// # Errors
/// What refused one of them, and then none is made; `InvalidBackup` when some could not be made, with the reasons;
/// `Database`, `Cancelled`.
pub async fn create(b: &Backups, operation: &Operation, order: &Create) -> Result<Value> {
    let ended = match &order.volume_type {
        Some(kind) => Box::pin(of_type::run(b, operation, order, kind)).await,
        None => Box::pin(run(b, operation, order)).await,
    };
    let said = match &ended {
        Ok(_) => "succeeded".to_owned(),
        Err(error) if super::is_unsettled(error) => return ended,
        Err(error) => error.user().to_owned(),
    };
    if let Some((schedule, _)) = &order.schedule {
        let number = operation.id();
        operation
            .write("end of a scheduled backup", async |conn| {
                db::backup_schedule::ended(conn, schedule, number, &said).await
            })
            .await?;
    }
    ended
}

async fn run(b: &Backups, operation: &Operation, order: &Create) -> Result<Value> {
    crash::point("order_backup:accepted");
    let set = match operation.data::<Set>().await? {
        Some((step, set)) if step == SENT => set,
        Some((_, set)) => send(b, operation, set).await?,
        None => {
            let set = begin(b, operation, order).await?;
            crash::point("order_backup:rows");
            if set.members.iter().all(|member| member.operation != 0) {
                set
            } else {
                send(b, operation, set).await?
            }
        }
    };
    crash::point("order_backup:sent");
    let numbers: Vec<i64> = set.members.iter().map(|member| member.operation).collect();
    let ended = wait(b, &numbers).await?;
    tidy(b, &set).await;
    let bad: Vec<String> = ended.iter().filter(|one| !one.is_good()).map(Ended::describe).collect();
    if !bad.is_empty() {
        let text = format!("{} of {} backups were not made: {}", bad.len(), ended.len(), bad.join("; "));
        return Err(Error::new(Code::InvalidBackup, text));
    }
    let mut removed = Vec::new();
    if order.retention {
        for member in &set.members {
            removed.extend(
                Box::pin(apply::apply(b, operation, &member.volume, Reach::default())).await?.removed,
            );
        }
    }
    let backups: Vec<Value> = set
        .members
        .iter()
        .map(|m| json!({"volume": m.volume, "backup": m.backup, "operation": m.operation}))
        .collect();
    info!(operation.id = operation.id(), backups = backups.len(), "ordered backups are made");
    Ok(json!({
        "backups": backups,
        "consistent": order.group.as_ref().map(|_| set.apart.is_none()),
        "why_not": set.apart,
        "removed": removed,
    }))
}

/// The rows; of a single volume also the request.
async fn begin(b: &Backups, operation: &Operation, order: &Create) -> Result<Set> {
    operation
        .write("rows of backups", async |conn| {
            let volumes = members(conn, order).await?;
            let mut made = Vec::with_capacity(volumes.len());
            for volume in volumes {
                let new = NewBackup {
                    parent: parent(conn, order, &volume).await?,
                    volume_id: volume,
                    name: order.name.clone(),
                    description: order.description.clone(),
                    container: order.container.clone(),
                    host: b.host.clone(),
                    zone: b.globals.availability_zone.clone(),
                };
                let row = db::backup_order::begin(conn, &new, &b.globals.quota).await?;
                let (snap, number) = match &order.group {
                    Some(_) => (Some(names::new_snapshot(&row.id)), 0),
                    None => {
                        let context = context_of(&row, Some(operation));
                        (None, submit(conn, b, &context, BackupRequest::Create, &row).await?)
                    }
                };
                made.push(Member { volume: row.volume_id, backup: row.id, snap, operation: number });
            }
            let step = if order.group.is_some() { ROWS } else { SENT };
            let set = Set { members: made, apart: None };
            operation.step_in(conn, step, &set).await?;
            Ok(set)
        })
        .await
}

/// The volumes to back up, in one order, so that two orders never wait for each other.
async fn members(conn: &mut Conn, order: &Create) -> Result<Vec<String>> {
    match (&order.volume, &order.group) {
        (Some(volume), None) => Ok(vec![volume.clone()]),
        (None, Some(group)) => {
            if db::group::lock(conn, group).await?.is_none() {
                return Err(Error::new(Code::InvalidInput, format!("There is no group {group}")));
            }
            let volumes = db::group::volumes(conn, group).await?;
            if volumes.is_empty() {
                return Err(Error::new(Code::InvalidInput, format!("Group {group} has no volumes")));
            }
            Ok(volumes.into_iter().map(|volume| volume.id).collect())
        }
        _ => order.check().map(|()| Vec::new()),
    }
}

/// The backup that an incremental one goes on from: the newest that is whole, of this driver and in the pool that is
/// asked for. `None`: there is none, or a full one is wanted.
async fn parent(conn: &mut Conn, order: &Create, volume: &str) -> Result<Option<Backup>> {
    if !order.incremental {
        return Ok(None);
    }
    let found = db::backup_work::list(conn, Some(volume)).await?;
    let fits = |backup: &Backup| {
        let same = order.container.is_none() || backup.container == order.container;
        backup.status == "available" && names::is_ours(backup.service.as_deref()) && same
    };
    Ok(found.into_iter().filter(fits).max_by_key(|backup| (taken_at(backup), backup.created_at)))
}

/// Takes the snapshots of a group's volumes and orders the backups.
async fn send(b: &Backups, operation: &Operation, set: Set) -> Result<Set> {
    let apart = match take(b, operation, &set).await {
        Ok(Consistency::Whole) => None,
        Ok(Consistency::Apart(why)) => Some(why),
        Err(error) if super::is_unsettled(&error) => return Err(error),
        Err(failure) => {
            give_up(b, operation, &set, &failure).await?;
            return Err(failure);
        }
    };
    crash::point("order_backup:taken");
    operation
        .write("backups of a group", async |conn| {
            let mut set = Set { apart: apart.clone(), ..set.clone() };
            for member in &mut set.members {
                let row = db::backup_work::get_deleted(conn, &member.backup).await?;
                let context = context_of(&row, Some(operation));
                member.operation = submit(conn, b, &context, BackupRequest::Create, &row).await?;
                if let Some(why) = &apart {
                    say_apart(conn, b, &context, &row, why).await?;
                }
            }
            operation.step_in(conn, SENT, &set).await?;
            Ok(set)
        })
        .await
}

/// A backup of a group that is not of one instant with the others has a message that says so, as the snapshots of a
/// group have.
async fn say_apart(
    conn: &mut Conn,
    b: &Backups,
    context: &RequestContext,
    row: &Backup,
    why: &str,
) -> Result<()> {
    warn!(backup.id = row.id, why, "the backups of a group are not of one instant");
    let message = Message {
        level: Level::Warning,
        ..Message::about(ResourceType::Backup, &row.id, Action::BackupCreate, Detail::SnapshotIsBusy)
    };
    db::message::create(conn, context, &message, b.globals.message_ttl).await?;
    Ok(())
}

async fn take(b: &Backups, operation: &Operation, set: &Set) -> Result<Consistency> {
    // What a former life of this order has left is of another instant.
    let attempt = if operation.is_adopted() { Attempt::Again } else { Attempt::First };
    let mut sites: BTreeMap<(String, String), (Place, Vec<SnapOf>)> = BTreeMap::new();
    for member in &set.members {
        let source = b.locate(&volume_of(b, member).await?).await?;
        let snap = member.snap.clone().unwrap_or_default();
        let key = (source.place.site.name().to_owned(), source.place.pool.clone());
        let (_, members) = sites.entry(key).or_insert((source.place, Vec::new()));
        members.push(SnapOf { image: source.image, snap });
    }
    let scattered = sites.len() > 1;
    let mut consistency = Consistency::Whole;
    for (place, members) in sites.into_values() {
        if let apart @ Consistency::Apart(_) = place.take_together(&members, attempt).await? {
            consistency = apart;
        }
    }
    if scattered {
        consistency = Consistency::Apart("its volumes are on several sites or in several pools".to_owned());
    }
    Ok(consistency)
}

async fn volume_of(b: &Backups, member: &Member) -> Result<Volume> {
    b.db.read("member of a group", async |conn| db::volume::get(conn, &member.volume).await).await
}

/// None of the backups is made: their rows say why, and the volumes get their statuses back.
async fn give_up(b: &Backups, operation: &Operation, set: &Set, failure: &Error) -> Result<()> {
    tidy(b, set).await;
    operation
        .write("backups of a group that failed", async |conn| {
            for member in &set.members {
                let Some(row) = db::backup_work::find_deleted(conn, &member.backup).await? else { continue };
                status::fail_creation(conn, &row, failure.user()).await?;
                let message = Message::about(
                    ResourceType::Backup,
                    &row.id,
                    Action::BackupCreate,
                    Detail::BackupCreateDriverError,
                );
                let context = context_of(&row, Some(operation));
                db::message::create(conn, &context, &message, b.globals.message_ttl).await?;
            }
            Ok(())
        })
        .await
}

/// Snapshots of volumes whose backups are not there are nobody's.
async fn tidy(b: &Backups, set: &Set) {
    for member in set.members.iter().filter(|member| member.snap.is_some()) {
        let tidied = async {
            let read = b.db.read("backup of a group", async |conn| {
                let backup = db::backup::find(conn, &member.backup).await?;
                Ok((backup, db::volume::find(conn, &member.volume).await?))
            });
            let (backup, volume) = read.await?;
            let is_made = backup.is_some_and(|backup| matches!(&*backup.status, "available" | "restoring"));
            let Some(volume) = volume.filter(|_| !is_made) else { return Ok(()) };
            let source = b.locate(&volume).await?;
            images::forget_backup(&source.place, &source.image, &member.backup).await?;
            Ok::<(), Error>(())
        };
        if let Err(error) = tidied.await {
            warn!(
                backup.id = member.backup, volume.id = member.volume, %error,
                "the snapshot for a backup that is not there stays on its volume until the backup is deleted"
            );
        }
    }
}

/// The operations of the backups of an order, for whoever cancels it; none before they are ordered.
pub(super) async fn children(b: &Backups, order: i64) -> Result<Vec<i64>> {
    let (mut looked_at, mut found) = (vec![order], Vec::new());
    while let Some(order) = looked_at.pop() {
        let items = b.journal.items_of(order).await?;
        let Some(own) = items.into_iter().find(|item| item.step.resource_id.is_empty()) else { continue };
        match own.step.name.as_str() {
            SENT => {
                found.extend(own.step.parse::<Set>()?.members.into_iter().map(|member| member.operation));
            }
            // Orders themselves.
            of_type::ROUND => {
                let sent = own.step.parse::<of_type::Round>()?.sent.into_iter().map(|(_, number)| number);
                looked_at.extend(sent.clone());
                found.extend(sent);
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The context of work on a backup that nobody has sent: an administrator's, in the backup's project, so that messages
/// reach its users.
pub(super) fn context_of(backup: &Backup, order: Option<&Operation>) -> RequestContext {
    let mut fields = RequestContext::admin().to_fields();
    fields.insert("project_id".to_owned(), json!(backup.project_id));
    fields.insert("user_id".to_owned(), json!(backup.user_id));
    let of_order = order.and_then(|order| Request::<super::orders::Order>::parse(order.request()).ok());
    if let Some(order) = of_order {
        fields.insert("request_id".to_owned(), order.request_id.into());
    }
    RequestContext::from_fields(fields)
}

/// Writes a request about a backup down for this service, inside the caller's transaction; its number.
pub(super) async fn submit(
    conn: &mut Conn,
    b: &Backups,
    context: &RequestContext,
    asked: BackupRequest,
    backup: &Backup,
) -> Result<i64> {
    let unique_id = Uuid::new_v4().simple().to_string();
    let method = match asked {
        BackupRequest::Create => "create_backup",
        BackupRequest::Delete => "delete_backup",
    };
    let new = NewOperation {
        request: b.peers.backups.request(context, &unique_id, asked, backup)?,
        unique_id,
        method: method.to_owned(),
        backend_host: b.journal_host(),
        resource: Some(("Backup".to_owned(), backup.id.clone())),
        ..NewOperation::default()
    };
    Journal::submit_in(conn, &new).await
}

/// Waits until all these operations have ended; how.
pub(super) async fn wait(b: &Backups, numbers: &[i64]) -> Result<Vec<Ended>> {
    let mut ended = Vec::with_capacity(numbers.len());
    for number in numbers {
        ended.push(loop {
            match b.journal.find(*number).await? {
                Some(row) if row.is_closed() => {
                    let outcome = row.outcome.unwrap_or_default();
                    break Ended { number: *number, outcome, detail: row.outcome_detail.unwrap_or_default() };
                }
                Some(_) => b.pause(PERIOD).await?,
                None => {
                    let (outcome, detail) =
                        ("unknown".to_owned(), "it was purged from the journal".to_owned());
                    break Ended { number: *number, outcome, detail };
                }
            }
        });
    }
    Ok(ended)
}
