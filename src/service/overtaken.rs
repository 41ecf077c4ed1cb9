//! Requests in the journal that the world has overtaken: they are closed instead of being run again.
//!
//! The problem: while Scoria was stopped, a stock cinder-volume may have served the same volumes, or an
//! administrator may have reset a status. Stock's clean-up has put a half-made volume into `error`, a deletion
//! that Scoria had accepted is called off and the volume is in use again: to run the old request then would
//! destroy what somebody works with. So a request that is taken up again must find its resource in a status
//! that the request itself has put it in. Any other is somebody else's, and the truth.

use crate::backend::Backend;
use crate::db;
use crate::error::Result;
use crate::journal::{Operation, Outcome};
use crate::rpc::Method;
use crate::volume::delete::is_ours;

/// Where the status is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Volume,
    Snapshot,
    Group,
    GroupSnapshot,
}

/// In which status an open request finds its resource, unless somebody else has been at work.
#[derive(Debug, PartialEq, Eq)]
struct Expected<'a> {
    table: Table,
    id: &'a str,
    /// What the API, or whoever asked, had put it in.
    sent: &'a str,
    /// What the request itself puts it in.
    during: &'static [&'static str],
}

impl Expected<'_> {
    fn allows(&self, status: &str) -> bool {
        status == self.sent || self.during.contains(&status)
    }
}

/// `None`: the request tells by itself what is left to do (attachments, migrations), or is about no one resource.
fn expected(method: &Method) -> Option<Expected<'_>> {
    let (table, id, sent, during): (_, &String, &str, &'static [&'static str]) = match method {
        Method::CreateVolume(a) => {
            let v = &a.volume.volume;
            (Table::Volume, &v.id, &v.status, &["creating", "downloading"])
        }
        Method::DeleteVolume(a) => {
            let v = &a.volume.volume;
            (Table::Volume, &v.id, &v.status, &["deleting"])
        }
        Method::ExtendVolume(a) => {
            let v = &a.volume.volume;
            (Table::Volume, &v.id, &v.status, &["extending"])
        }
        Method::RevertToSnapshot(a) => {
            let v = &a.volume.volume;
            (Table::Volume, &v.id, &v.status, &["reverting"])
        }
        Method::Retype(a) => {
            let v = &a.volume.volume;
            (Table::Volume, &v.id, &v.status, &["retyping"])
        }
        Method::ManageExisting(a) => {
            let v = &a.volume.volume;
            (Table::Volume, &v.id, &v.status, &["creating", "managing"])
        }
        Method::CopyVolumeToImage(a) => (Table::Volume, &a.volume_id, "uploading", &[]),
        Method::CreateSnapshot(a) => {
            let s = &a.snapshot.snapshot;
            (Table::Snapshot, &s.id, &s.status, &["creating"])
        }
        Method::DeleteSnapshot(a) => {
            let s = &a.snapshot.snapshot;
            (Table::Snapshot, &s.id, &s.status, &["deleting"])
        }
        Method::ManageExistingSnapshot(a) => {
            let s = &a.snapshot.snapshot;
            (Table::Snapshot, &s.id, &s.status, &["creating", "managing"])
        }
        Method::CreateGroup { group } => (Table::Group, &group.group.id, "creating", &[]),
        Method::CreateGroupFromSource(a) => (Table::Group, &a.group.group.id, "creating", &[]),
        Method::UpdateGroup(a) => (Table::Group, &a.group.group.id, "updating", &[]),
        Method::DeleteGroup { group } => (Table::Group, &group.group.id, "deleting", &[]),
        Method::CreateGroupSnapshot { group_snapshot: s } => {
            (Table::GroupSnapshot, &s.group_snapshot.id, "creating", &[])
        }
        Method::DeleteGroupSnapshot { group_snapshot: s } => {
            (Table::GroupSnapshot, &s.group_snapshot.id, "deleting", &[])
        }
        _ => return None,
    };
    Some(Expected { table, id, sent, during })
}

/// Ends an adopted request that somebody has overtaken; says why. `None`: it is to be run again.
///
/// # Errors
/// `Cancelled` when it has another owner meanwhile; `Database`.
pub(super) async fn close(
    backend: &Backend,
    operation: &Operation,
    method: &Method,
) -> Result<Option<String>> {
    let Some(reason) = reason(backend, operation, method).await? else { return Ok(None) };
    let reservations = match method {
        Method::ExtendVolume(a) => a.reservations.as_slice(),
        Method::Retype(a) => a.reservations.as_slice(),
        _ => &[],
    };
    // Nothing else: a row of `workers` belongs to whoever has changed the status.
    backend
        .journal
        .complete(operation, &Outcome::abandoned(&reason), async |conn| {
            db::quota::roll_back_of_anybody(conn, reservations).await
        })
        .await?;
    Ok(Some(reason))
}

async fn reason(backend: &Backend, operation: &Operation, method: &Method) -> Result<Option<String>> {
    let Some(expected) = expected(method) else { return Ok(None) };
    // The row is as it should be already, and only nova is told; or the retype has become a migration.
    let may_be_past = matches!(method, Method::ExtendVolume(_) | Method::Retype(_));
    if may_be_past && operation.last_step().await?.is_some() {
        return Ok(None);
    }
    let id = expected.id;
    // What is gone is seen to by the request itself: it may have something to give back.
    let found = backend
        .db
        .read("status of a request's resource", async |conn| {
            Ok(match expected.table {
                Table::Volume => db::volume::find(conn, id).await?.map(|v| {
                    // A request that has no backend yet, or that says itself whose volume it is.
                    let elsewhere = v.host.is_some()
                        && !is_ours(backend, &v)
                        && !matches!(method, Method::DeleteVolume(_));
                    (v.status, elsewhere)
                }),
                Table::Snapshot => db::snapshot::find(conn, id).await?.map(|s| (s.status, false)),
                Table::Group => db::group::find(conn, id).await?.map(|g| (g.status, false)),
                Table::GroupSnapshot => db::group_snapshot::find(conn, id).await?.map(|s| (s.status, false)),
            })
        })
        .await?;
    Ok(match found {
        Some((_, true)) => Some("its volume belongs to another backend meanwhile".to_owned()),
        Some((status, _)) if !expected.allows(&status) => Some(format!(
            "its resource is in status {status} meanwhile, which another service or an administrator has set"
        )),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_on_with_what_it_was_sent_for_and_with_nothing_else() {
        let deletion = Expected { table: Table::Volume, id: "v", sent: "deleting", during: &["deleting"] };
        assert!(deletion.allows("deleting"));
        for status in ["available", "in-use", "error", "error_deleting", ""] {
            assert!(!deletion.allows(status), "{status}");
        }
        // `cinder-manage volume delete` does not change the status.
        let by_hand = Expected { sent: "error", ..deletion };
        assert!(by_hand.allows("error") && by_hand.allows("deleting") && !by_hand.allows("available"));
    }

    #[test]
    fn what_tells_by_itself_is_not_judged_by_a_status() {
        assert_eq!(expected(&Method::FreezeHost), None);
        assert_eq!(expected(&Method::Failover { secondary_backend_id: None }), None);
        assert_eq!(expected(&Method::RemoveExport { volume_id: "v".into() }), None);
    }
}
