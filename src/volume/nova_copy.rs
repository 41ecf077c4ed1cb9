//! Moving a volume that servers have: they copy it themselves.
//!
//! While a guest writes, only its hypervisor knows what has changed. So nova is asked to let each server exchange its
//! volume for the one that the destination's service has made; that may take hours, and nova reports its end to
//! Cinder's API, which calls `migrate_volume_completion` ([`super::migrated::complete`]). Our part ends when nova has
//! said that it begins (reference volume_rpc.md 2.2; `cinder/volume/manager.py`, `_migrate_volume_generic`).
//!
//! If we die while we ask, or the answer is lost, nova may have begun: to ask again would begin a second time, to
//! give up would take the destination from under a guest. But nova leaves its mark on the destination before it
//! answers, an attachment or a reservation, and that is what is looked for.
//!
//! What a retype has reserved counts from here on, as upstream; when nova fails it is counted back by the completion.

use std::collections::HashSet;

use tracing::{info, warn};

use super::crash;
use super::migrate::{ASKED, Copy, Job};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::model::{Attachment, Volume};
use crate::openstack::nova::Exchange;

/// The servers that have the volume, which must be all who have it.
///
/// # Errors
/// `VolumeMigration`: a host has it, and nobody can ask that.
pub(super) fn servers(volume: &Volume, attachments: &[Attachment]) -> Result<Vec<String>> {
    let servers: Option<HashSet<String>> =
        attachments.iter().map(|a| a.instance_uuid.clone().filter(|id| !id.is_empty())).collect();
    let Some(servers) = servers else {
        return Err(Error::new(
            Code::VolumeMigration,
            format!("Volume {} is attached to a host, and only servers can copy a volume in use", volume.id),
        ));
    };
    let mut servers: Vec<String> = servers.into_iter().collect();
    servers.sort();
    Ok(servers)
}

/// Has the servers copy into a destination that is made.
pub(super) async fn begin(job: &Job<'_>, copy: Copy) -> Result<()> {
    job.operation.step(ASKED, &copy).await?;
    crash::point("migrate_volume:asking");
    go_on(job, copy).await
}

/// What nova has to do with a migration.
enum Standing {
    /// It has ended, or nova has begun with all servers.
    HandedOver,
    /// Some servers are to be asked.
    Asks {
        /// These.
        servers: Vec<String>,
        /// Others have begun.
        begun: bool,
    },
}

/// Asks for the servers for which nova was not asked yet, and ends the operation.
pub(super) async fn go_on(job: &Job<'_>, copy: Copy) -> Result<()> {
    let new_id = &copy.new_id;
    let nova = &job.backend.globals.openstack.nova;
    if let Standing::Asks { servers, mut begun } = standing(job, new_id).await? {
        for server in servers {
            let asked = Box::pin(nova.exchange_volume(job.context, &server, job.volume_id, new_id)).await;
            match asked {
                Ok(()) => {
                    info!(volume.id = job.volume_id, server.id = server, "nova copies the volume");
                    begun = true;
                }
                Err(Exchange::Refused(failure)) => refused(job, &server, failure, begun)?,
                Err(Exchange::Unknown(failure)) => {
                    let others = begun;
                    begun = match standing(job, new_id).await? {
                        Standing::HandedOver => true,
                        Standing::Asks { servers: left, .. } => !left.contains(&server),
                    };
                    if begun {
                        warn!(
                            volume.id = job.volume_id, server.id = server, error = %failure,
                            "nova copies the volume, to judge by its attachment of the copy"
                        );
                    } else {
                        refused(job, &server, failure, others)?;
                        begun = others;
                    }
                }
            }
            crash::point("migrate_volume:asked_nova");
        }
    }
    hand_over(job).await
}

/// Where another server copies already, its destination is not taken from under it: nova's report decides.
fn refused(job: &Job<'_>, server: &str, failure: Error, begun: bool) -> Result<()> {
    if !begun {
        return Err(failure);
    }
    warn!(
        volume.id = job.volume_id, server.id = server, error = %failure,
        "nova does not copy the volume for this server, but does for another"
    );
    Ok(())
}

async fn standing(job: &Job<'_>, new_id: &str) -> Result<Standing> {
    let id = job.volume_id;
    let (volume, attachments, target, marks) = job
        .backend
        .db
        .read("standing of a migration", async |conn| {
            Ok((
                db::volume::get(conn, id).await?,
                db::attachment::list_for_volume(conn, id).await?,
                db::volume::find(conn, new_id).await?,
                db::attachment::list_for_volume(conn, new_id).await?,
            ))
        })
        .await?;
    judge(&volume, &attachments, target.as_ref(), &marks)
}

fn judge(
    volume: &Volume,
    attachments: &[Attachment],
    target: Option<&Volume>,
    marks: &[Attachment],
) -> Result<Standing> {
    let expected = format!("target:{}", volume.id);
    let Some(target) = target.filter(|t| t.migration_status.as_deref() == Some(expected.as_str())) else {
        return Ok(Standing::HandedOver);
    };
    if target.status == "deleting" {
        return Ok(Standing::HandedOver);
    }
    let marked: HashSet<&str> = marks.iter().filter_map(|a| a.instance_uuid.as_deref()).collect();
    // Nova's older way reserves it, and attaches it later.
    if marked.is_empty() && target.status != "available" {
        return Ok(Standing::HandedOver);
    }
    if !matches!(volume.migration_status.as_deref(), Some("migrating" | "completing")) && marked.is_empty() {
        return Err(Error::new(
            Code::VolumeMigration,
            format!("The migration of volume {} was ended by somebody else", volume.id),
        ));
    }
    let left: Vec<String> =
        servers(volume, attachments)?.into_iter().filter(|s| !marked.contains(s.as_str())).collect();
    match left.is_empty() {
        // Nobody has it any more, and nobody will copy it.
        true if marked.is_empty() => Err(Error::new(
            Code::VolumeMigration,
            format!("Volume {} was detached before it was copied", volume.id),
        )),
        true => Ok(Standing::HandedOver),
        false => Ok(Standing::Asks { servers: left, begun: !marked.is_empty() }),
    }
}

/// The rest is nova's. What a retype has reserved counts, unless nova has failed already: as long as this operation
/// is open, nothing was counted that [`super::migrated::complete`] could count back.
async fn hand_over(job: &Job<'_>) -> Result<()> {
    let backend = job.backend;
    let id = job.volume_id;
    let goes_on = backend
        .journal
        .complete(job.operation, &backend.done(), async |conn| {
            let volume = match db::volume::lock(conn, id).await {
                Err(e) if e.code() == Code::VolumeNotFound => return Ok(false),
                found => found?,
            };
            let failed = volume.migration_status.as_deref() == Some("error");
            match failed {
                true => job.roll_back(conn, Some(&volume)).await?,
                false => job.commit(conn, &volume).await?,
            }
            Ok(!failed)
        })
        .await?;
    if goes_on {
        info!(volume.id = id, to = job.destination.host, "volume is copied by its servers");
        job.tell_of_retype().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(server: Option<&str>) -> Attachment {
        Attachment { instance_uuid: server.map(str::to_owned), ..Attachment::default() }
    }

    fn asks(
        migration: &str,
        target: Option<(&str, &str)>,
        had: &[&str],
        marks: &[&str],
    ) -> Result<Vec<String>> {
        let row = |id: &str, status: &str, migration: &str| Volume {
            id: id.to_owned(),
            status: status.to_owned(),
            migration_status: Some(migration.to_owned()),
            ..Volume::default()
        };
        let target = target.map(|(status, migration)| row("t", status, migration));
        let list = |servers: &[&str]| servers.iter().map(|s| of(Some(s))).collect::<Vec<_>>();
        match judge(&row("v", "in-use", migration), &list(had), target.as_ref(), &list(marks))? {
            Standing::HandedOver => Ok(Vec::new()),
            Standing::Asks { servers, begun } => {
                assert_eq!(begun, !marks.is_empty());
                Ok(servers)
            }
        }
    }

    #[test]
    fn nova_is_asked_once_for_each_server_that_has_left_no_mark() {
        let ready = Some(("available", "target:v"));
        assert_eq!(asks("migrating", ready, &["b", "a", "a"], &[]).unwrap(), ["a", "b"]);
        assert_eq!(asks("migrating", Some(("reserved", "target:v")), &["a", "b"], &["a"]).unwrap(), ["b"]);
        for (migration, target, had, marks) in [
            ("migrating", Some(("reserved", "target:v")), &["a"][..], &["a"][..]),
            // Without attachments of the new kind.
            ("migrating", Some(("attaching", "target:v")), &["a"], &[]),
            // The old attachment is gone already.
            ("migrating", Some(("in-use", "target:v")), &[], &["a"]),
            // Nova has completed it, well or not.
            ("success", Some(("deleting", "deleting")), &["a"], &[]),
            ("error", Some(("deleting", "target:v")), &["a"], &[]),
            ("success", None, &["a"], &[]),
        ] {
            let asked = asks(migration, target, had, marks).unwrap();
            assert!(asked.is_empty(), "{migration} {target:?}: {asked:?}");
        }
    }

    #[test]
    fn what_cannot_be_copied_by_a_server_is_not_waited_for() {
        let ready = Some(("available", "target:v"));
        assert_eq!(asks("migrating", ready, &[], &[]).unwrap_err().code(), Code::VolumeMigration);
        assert_eq!(asks("error", ready, &["a"], &[]).unwrap_err().code(), Code::VolumeMigration);
        let volume = Volume::default();
        for host in [None, Some("")] {
            assert!(servers(&volume, &[of(Some("a")), of(host)]).is_err());
        }
    }
}
