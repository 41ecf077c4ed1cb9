//! Replication of a generic volume group: switched on and off, and failed over without the rest of its backend.
//!
//! Ceph mirrors images one by one and knows nothing of groups, and upstream's RBD driver does not implement any
//! of this: the group would wait in `enabling` for ever. Here a group is the set of volumes that an order is
//! about. The statuses are those of upstream's manager; a member that could not be served says so in its own row,
//! and the status of a volume that nothing happened to is left alone.
//!
//! Where a member is primary afterwards is a row of its own (`db::stray`) as long as that is not where its
//! backend works; every operation asks [`Backend::place`] for it.

mod failover;
mod mirroring;

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};
use tracing::{error, warn};

use super::standing::settled;
use crate::backend::Backend;
use crate::backend::locks::NamedGuard;
use crate::context::RequestContext;
use crate::db::message::{Action, Detail, Message, ResourceType};
use crate::db::volume::VolumeChanges;
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::{Group, GroupEvent, ReplicationStatus, Volume};
use crate::volume::group::tell;

pub use failover::{Failover, failover};
pub(super) use failover::{hold as hold_volumes, write_volumes};
pub(super) use mirroring::take_back;
pub use mirroring::{disable, enable};

/// What was asked of a group's replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Wish {
    Enable,
    Disable,
    Failover,
}

impl Wish {
    /// The replication status that the API gives the group and its volumes while it waits.
    fn waiting(self) -> ReplicationStatus {
        match self {
            Wish::Enable => ReplicationStatus::Enabling,
            Wish::Disable => ReplicationStatus::Disabling,
            Wish::Failover => ReplicationStatus::FailingOver,
        }
    }

    /// What its notifications are called.
    fn event(self, end: bool) -> &'static str {
        match (self, end) {
            (Wish::Enable, false) => "enable_replication.start",
            (Wish::Enable, true) => "enable_replication.end",
            (Wish::Disable, false) => "disable_replication.start",
            (Wish::Disable, true) => "disable_replication.end",
            (Wish::Failover, false) => "failover_replication.start",
            (Wish::Failover, true) => "failover_replication.end",
        }
    }
}

/// A group, its members that wait for the request, and where each of them is served.
struct Set {
    group: Group,
    volumes: Vec<Volume>,
    /// Members that are not in the status that the API puts them into: somebody has changed them.
    changed: Vec<Volume>,
    /// Site by volume id, of those that are not where the backend works.
    strays: HashMap<String, String>,
    /// Where the backend works.
    active: String,
}

impl Set {
    /// `None` when the group is gone.
    async fn read(backend: &Backend, id: &str, wish: Wish) -> Result<Option<Set>> {
        let read = backend
            .db
            .read("group to replicate", async |conn| {
                let Some(group) = db::group::find(conn, id).await? else { return Ok(None) };
                let volumes = db::group::volumes(conn, id).await?;
                let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
                let strays = db::stray::list(conn, &ids).await?;
                Ok(Some((group, volumes, strays)))
            })
            .await?;
        let waiting = Some(wish.waiting().as_str());
        Ok(read.map(|(group, volumes, strays)| {
            let (volumes, changed) =
                volumes.into_iter().partition(|v| v.replication_status.as_deref() == waiting);
            let strays = strays.into_iter().collect();
            Set { group, volumes, changed, strays, active: backend.active_name() }
        }))
    }

    /// The site that serves a member.
    fn site_of(&self, volume: &Volume) -> &str {
        self.strays.get(&volume.id).unwrap_or(&self.active)
    }

    /// Refuses what upstream's manager refuses before anything is done.
    fn check(&self, wish: Wish) -> Result<()> {
        let waiting = wish.waiting().as_str();
        if self.group.replication_status.as_deref() != Some(waiting) {
            return Err(Error::new(
                Code::Invalid,
                format!("Replication status in group {} is not {waiting}.", self.group.id),
            ));
        }
        match self.changed.first() {
            Some(volume) => Err(Error::new(
                Code::InvalidVolume,
                format!("Replication status in volume {} is not {waiting}.", volume.id),
            )),
            None => Ok(()),
        }
    }

    /// The replication status that a member, or the whole group, had before the request: what is true of it.
    fn before(&self, wish: Wish, volume: Option<&Volume>) -> ReplicationStatus {
        let volume_or_first = volume.or_else(|| self.volumes.first());
        let site = volume_or_first.map_or(self.active.as_str(), |v| self.site_of(v));
        let mirrored = match volume {
            Some(volume) => wish != Wish::Enable || volume.replication_driver_data.is_some(),
            None => wish != Wish::Enable,
        };
        if mirrored { settled(site) } else { ReplicationStatus::Disabled }
    }
}

/// Holds named locks, taken in one order so that two groups never wait for each other.
pub(super) async fn hold(backend: &Backend, names: BTreeSet<String>) -> Vec<NamedGuard> {
    let mut held = Vec::with_capacity(names.len());
    for name in names {
        held.push(backend.locks.lock(&name).await);
    }
    held
}

fn ids(volumes: &[Volume]) -> Vec<String> {
    volumes.iter().map(|v| v.id.clone()).collect()
}

fn replication(status: ReplicationStatus) -> VolumeChanges {
    VolumeChanges { replication_status: Some(Some(status.as_str().to_owned())), ..VolumeChanges::default() }
}

fn message(group_id: &str, failure: &Error) -> Message {
    let detail = Detail::of(failure.code(), Detail::UnknownError);
    Message::about(ResourceType::Group, group_id, Action::Unnamed, detail)
}

/// Ends the request with everything as it was: nothing has been touched. Upstream leaves group and members
/// waiting in this case.
async fn refuse(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    set: &Set,
    wish: Wish,
    refusal: Error,
) -> Result<()> {
    let id = &set.group.id;
    error!(group.id = id, error = %refusal, "{} refused, nothing was changed", operation.method());
    let (message, waiting) = (message(id, &refusal), wish.waiting());
    let ttl = backend.globals.message_ttl;
    backend
        .journal
        .complete(operation, &Outcome::failed(&refusal), async |conn| {
            for volume in &set.volumes {
                let changes = replication(set.before(wish, Some(volume)));
                let ids = [volume.id.clone()];
                db::group_replication::settle_volumes(conn, &ids, waiting, &changes).await?;
            }
            let (event, before) = (GroupEvent::ReplicationSettled, set.before(wish, None));
            if db::group_replication::settle_group(conn, id, waiting, event, before).await? {
                db::message::create(conn, context, &message, ttl).await?;
            }
            Ok(())
        })
        .await
}

/// Ends the request as failed, as upstream's manager does when its driver fails: the group becomes `error`, and
/// so does the replication status of the members that still wait. Their own status stays: upstream makes it
/// `error`, also of those that are in use and well.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    group_id: &str,
    wish: Wish,
    failure: Error,
) -> Result<()> {
    error!(group.id = group_id, error = %failure, "{} failed", operation.method());
    let message = message(group_id, &failure);
    let ttl = backend.globals.message_ttl;
    let members =
        backend.db.read("members to give up", async |conn| db::group::volumes(conn, group_id).await).await?;
    let ids = ids(&members);
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            let changes = replication(ReplicationStatus::Error);
            db::group_replication::settle_volumes(conn, &ids, wish.waiting(), &changes).await?;
            if group_failed(conn, group_id, wish).await? {
                db::message::create(conn, context, &message, ttl).await?;
            }
            Ok(())
        })
        .await
}

async fn group_failed(conn: &mut Conn, group_id: &str, wish: Wish) -> Result<bool> {
    let (event, error) = (GroupEvent::ReplicationFailed, ReplicationStatus::Error);
    db::group_replication::settle_group(conn, group_id, wish.waiting(), event, error).await
}

/// The `.end` notifications of a group whose request succeeded, with the rows as they are now.
async fn tell_end(backend: &Backend, context: &RequestContext, id: &str, wish: Wish) {
    let read = backend
        .db
        .read("group after its request", async |conn| {
            let group = db::group::find(conn, id).await?;
            Ok((group, db::group::volumes(conn, id).await?))
        })
        .await;
    match read {
        Ok((Some(group), volumes)) => tell(backend, context, wish.event(true), &group, &volumes).await,
        Ok((None, _)) => {}
        Err(error) => warn!(group.id = id, %error, "could not read what notifications tell"),
    }
}

/// `list_replication_targets`: the configured `replication_device`s, for an administrator with all that was
/// written of them.
///
/// # Errors
/// `VolumeBackend` when the group is gone; `Database`.
pub async fn targets(backend: &Backend, context: &RequestContext, group_id: &str) -> Result<Value> {
    let group =
        backend.db.read("group of targets", async |conn| db::group::find(conn, group_id).await).await?;
    if group.is_none() {
        let text = format!("Get replication targets failed. Group {group_id} not found.");
        return Err(Error::new(Code::VolumeBackend, text));
    }
    let target = |device: &crate::config::ReplicationDevice| {
        if !context.is_admin {
            return json!({ "backend_id": device.backend_id });
        }
        Value::Object(device.written.0.iter().map(|(key, value)| (key.clone(), json!(value))).collect())
    };
    let targets: Vec<Value> = backend.sites().options().replication_devices.iter().map(target).collect();
    Ok(json!({ "replication_targets": targets }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn volume(id: &str, data: Option<&str>) -> Volume {
        Volume { id: id.into(), replication_driver_data: data.map(str::to_owned), ..Volume::default() }
    }

    #[test]
    fn what_was_refused_is_what_it_was_before() {
        let set = Set {
            group: Group { replication_status: Some("enabling".into()), ..Group::default() },
            volumes: vec![volume("away", Some("{}")), volume("plain", None)],
            changed: vec![],
            strays: HashMap::from([("away".to_owned(), "b".to_owned())]),
            active: "default".into(),
        };
        let before = |wish, n: usize| set.before(wish, Some(&set.volumes[n])).as_str();
        assert_eq!((before(Wish::Enable, 0), before(Wish::Enable, 1)), ("failed-over", "disabled"));
        assert_eq!((before(Wish::Disable, 0), before(Wish::Disable, 1)), ("failed-over", "enabled"));
        assert_eq!(set.before(Wish::Enable, None), ReplicationStatus::Disabled);
        assert_eq!(set.before(Wish::Failover, None), ReplicationStatus::FailedOver);
        set.check(Wish::Enable).unwrap();
        assert_eq!(set.check(Wish::Failover).unwrap_err().code(), Code::Invalid);
    }

    #[test]
    fn a_member_that_somebody_changed_is_a_refusal() {
        let set = Set {
            group: Group { replication_status: Some("disabling".into()), ..Group::default() },
            volumes: vec![],
            changed: vec![volume("v", None)],
            strays: HashMap::new(),
            active: "default".into(),
        };
        assert_eq!(set.check(Wish::Disable).unwrap_err().code(), Code::InvalidVolume);
    }
}
