//! The only legal ways a status changes.
//!
//! Every status column is written by a conditional UPDATE rendered from these tables (`db::volume`,
//! `db::snapshot`): the row must be in one of `from`, or nothing is changed and the caller gets a
//! `Conflict`. So a reset by an administrator, a delete that came in between, or a second worker can
//! never be overwritten by a late answer.

/// What happened to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeEvent {
    /// The image exists: `creating` (or `downloading`) becomes `available`.
    Created,
    /// The destination row of a migration exists.
    MigrationTargetCreated,
    /// Creation failed for good.
    CreateFailed,
    /// Creation will be tried on another backend: the row stays `creating`.
    CreateRescheduled,
    /// Deletion could not be done because the image is in use: back to `available`.
    DeleteBusy,
    /// Deletion failed.
    DeleteFailed,
    /// Unmanaging failed.
    UnmanageFailed,
    /// The resize is done and nobody is attached.
    Extended,
    /// The resize is done and somebody is attached.
    ExtendedInUse,
    /// The resize failed.
    ExtendFailed,
    /// `os-attach` or `attachment_update` began.
    Attaching,
    /// Attached.
    Attached,
    /// Nobody is attached any more.
    Detached,
    /// Somebody is attaching or detaching or has reserved it still (status named by the attachment).
    StillReserved,
    /// Detaching failed.
    DetachFailed,
    /// Failover: a volume that is not replicated is out of reach.
    LostByFailover,
    /// Failover of this volume failed.
    FailoverFailed,
    /// Failback or retry brought a volume back that an earlier failover had set to `error`.
    Recovered,
    /// An operation that Scoria does not serve yet gave the resource back.
    RestoreFailed,
    /// Managing failed.
    ManageFailed,
    /// Retype refused or failed: back to what it was.
    RetypeAborted,
}

/// One arrow of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Statuses the row may be in; empty: any.
    pub from: &'static [&'static str],
    /// The status it gets; `None`: unchanged.
    pub to: Option<&'static str>,
}

/// The table of volumes (`cinder/volume/manager.py`, one arrow per outcome).
pub fn volume(event: VolumeEvent) -> Transition {
    use VolumeEvent::*;
    let (from, to): (&'static [&'static str], Option<&'static str>) = match event {
        Created => (&["creating", "downloading", "available"], Some("available")),
        MigrationTargetCreated => (&["creating", "migration_target_creating"], Some("migration_target")),
        CreateFailed => (&["creating", "downloading", "error"], Some("error")),
        CreateRescheduled => (&["creating", "downloading"], None),
        DeleteBusy => (&["deleting", "available"], Some("available")),
        // `cinder-manage volume delete` casts without changing the status first (reference admin.md
        // 7.4), so any status may be found here.
        DeleteFailed => (&[], Some("error_deleting")),
        UnmanageFailed => (&[], Some("error_unmanaging")),
        Extended => (&["extending"], Some("available")),
        ExtendedInUse => (&["extending"], Some("in-use")),
        ExtendFailed => (&["extending"], Some("error_extending")),
        Attaching => {
            (&["attaching", "reserved", "available", "in-use", "downloading", "detaching"], Some("attaching"))
        }
        Attached => (&["attaching", "reserved", "available", "in-use", "downloading"], Some("in-use")),
        Detached => (
            &[
                "detaching",
                "in-use",
                "attaching",
                "reserved",
                "error_detaching",
                "available",
                "error_attaching",
            ],
            Some("available"),
        ),
        StillReserved => (&["detaching", "in-use", "attaching", "reserved", "error_detaching"], None),
        DetachFailed => (&["detaching", "in-use"], Some("error_detaching")),
        LostByFailover => (&[], Some("error")),
        FailoverFailed => (&[], Some("error")),
        Recovered => (&["error"], None),
        RestoreFailed => (&["restoring-backup", "creating"], Some("error_restoring")),
        ManageFailed => (&["creating", "managing"], Some("error_managing")),
        RetypeAborted => (&["retyping"], None),
    };
    Transition { from, to }
}

/// What happened to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotEvent {
    /// Taken.
    Created,
    /// Taking it failed.
    CreateFailed,
    /// It has children that could not be flattened.
    DeleteBusy,
    /// Deletion failed.
    DeleteFailed,
    /// Its volume is out of reach after a failover.
    LostByFailover,
    /// Its volume came back.
    Recovered,
}

/// The table of snapshots.
pub fn snapshot(event: SnapshotEvent) -> Transition {
    use SnapshotEvent::*;
    let (from, to): (&'static [&'static str], Option<&'static str>) = match event {
        Created => (&["creating", "backing-up", "available"], Some("available")),
        CreateFailed => (&["creating", "backing-up", "error"], Some("error")),
        DeleteBusy => (&["deleting", "available"], Some("available")),
        DeleteFailed => (&[], Some("error_deleting")),
        LostByFailover => (&[], Some("error")),
        Recovered => (&["error"], Some("available")),
    };
    Transition { from, to }
}
