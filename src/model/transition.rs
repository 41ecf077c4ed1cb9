//! The only legal ways a status changes.
//!
//! Every status column is written by a conditional UPDATE rendered from these tables (`db::volume`,
//! `db::snapshot`): the row must be in one of `from`, or nothing is changed and the caller gets a
//! `Conflict`. So a reset by an administrator, a delete that came in between, or a second worker can
//! never be overwritten by a late answer.

/// Statuses of a volume or snapshot that is being made or deleted: a failover leaves it to that request.
pub const BEING_MADE_OR_DELETED: &[&str] = &["creating", "downloading", "deleting"];

/// Statuses of a volume that somebody was working on when a failover interrupted him, and that he has done
/// no harm to: when the volume comes back, its attachments say what it is. `in-use` is among them because
/// an attachment may have ended meanwhile.
pub const INTERRUPTED_WHOLE: &[&str] = &[
    "in-use",
    "extending",
    "attaching",
    "detaching",
    "retyping",
    "uploading",
    "backing-up",
    "maintenance",
    "unmanaging",
];

/// The same where nobody can tell what the content is: such a volume comes back in `error`.
pub const INTERRUPTED_BROKEN: &[&str] =
    &["creating", "downloading", "managing", "deleting", "reverting", "restoring-backup"];

/// Statuses of a snapshot that was whole when a failover interrupted somebody: it is `available` again.
pub const SNAPSHOT_INTERRUPTED_WHOLE: &[&str] = &["backing-up", "restoring", "unmanaging", "updating"];

/// What happened to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeEvent {
    /// The image exists: `creating` (or `downloading`) becomes `available`.
    Created,
    /// The destination row of a migration exists.
    MigrationTargetCreated,
    /// The content of an image is on its way into it.
    Downloading,
    /// Creation failed for good.
    CreateFailed,
    /// Creation will be tried on another backend: the row stays `creating`.
    CreateRescheduled,
    /// A copy of an image is not kept any longer.
    Evicted,
    /// Deletion could not be done because the image is in use: back to `available`.
    DeleteBusy,
    /// Deletion failed.
    DeleteFailed,
    /// Deletion was refused, because the volume is attached. Only a status that says that it is being
    /// deleted changes: any other is the truth.
    DeleteRefused,
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
    /// An image that was there before is a volume now.
    Managed,
    /// Managing failed.
    ManageFailed,
    /// Retype refused or failed: back to what it was.
    RetypeAborted,
    /// It has the new type: back to what it was.
    Retyped,
    /// It is where it was to be moved: back to what it was.
    Migrated,
    /// The row of a migration that holds what is left at the source, or at a destination that nobody wants.
    MigrationLeftover,
    /// Who attached or detached it has stopped waiting, and the service had died meanwhile: its status
    /// follows from the attachments that it has.
    AttachmentAbandoned,
    /// The volume has the content of a snapshot again.
    Reverted,
    /// Reverting to a snapshot failed.
    RevertFailed,
    /// It was refused before anything was written.
    RevertRefused,
    /// Upload to an image ended, well or not: the status follows from the attachments.
    UploadEnded,
    /// It has the content of an image: back to what it was.
    Reimaged,
    /// Overwriting with an image failed.
    ReimageFailed,
    /// It was refused before anything was written: back to what it was.
    ReimageRefused,
    /// Migration failed: a volume that was locked for it gets its status back.
    MigrationFailed,
    /// Deletion of its group failed.
    GroupDeleteFailed,
    /// Adding it to a group, or removing it, failed.
    GroupUpdateFailed,
    /// A backup of it is ordered, and it waits for that.
    BackupOrdered,
    /// A backup of the volume failed: back to what it was.
    BackupFailed,
    /// It is a copy of another volume, made for a backup of that.
    CopiedForBackup,
    /// It is made and empty, and cinder-backup fills it: the row stays `creating`.
    HandedOver,
    /// A backup of the volume is made, or given up by its orderer: back to what it was.
    BackedUp,
    /// It has the content of a backup.
    RestoredFromBackup,
    /// The restoration was called off, and nobody knows how far it came.
    RestoreCancelled,
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
        Evicted => (&["available"], Some("deleting")),
        Downloading => (&["creating", "downloading"], Some("downloading")),
        CreateRescheduled => (&["creating", "downloading"], Some("creating")),
        DeleteBusy => (&["deleting", "error_managing_deleting", "available"], Some("available")),
        // `cinder-manage volume delete` casts without changing the status first (reference admin.md
        // 7.4), so any status may be found here. The caller names the one that it found.
        DeleteFailed => (&[], Some("error_deleting")),
        DeleteRefused => (&["deleting", "error_managing_deleting"], Some("error_deleting")),
        // The API has set one of these; any other is the truth, as for a refused deletion.
        UnmanageFailed => (&["unmanaging", "error_managing_deleting"], Some("error_unmanaging")),
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
        AttachmentAbandoned => (&["attaching", "detaching"], None),
        DetachFailed => (&["detaching", "in-use"], Some("error_detaching")),
        LostByFailover => (&[], Some("error")),
        FailoverFailed => (&[], Some("error")),
        Recovered => (&["error"], None),
        RestoreFailed => (&["restoring-backup", "creating"], Some("error_restoring")),
        Managed => (&["creating", "managing"], Some("available")),
        ManageFailed => (&["creating", "managing"], Some("error_managing")),
        Reverted | RevertRefused => (&["reverting"], Some("available")),
        RetypeAborted | Retyped => (&["retyping"], None),
        // Nova may have begun or ended an attachment while it copied the content of an attached volume.
        Migrated => {
            (&["maintenance", "retyping", "available", "in-use", "reserved", "attaching", "detaching"], None)
        }
        MigrationLeftover => (&[], Some("deleting")),
        RevertFailed => (&["reverting"], Some("error")),
        UploadEnded => (&["uploading"], None),
        Reimaged | ReimageRefused => (&["downloading"], None),
        ReimageFailed => (&["downloading"], Some("error")),
        MigrationFailed => (&["maintenance", "retyping"], None),
        GroupDeleteFailed => (&["deleting"], Some("error")),
        // Those that the API lets into a group or out of it.
        GroupUpdateFailed => (&["available", "in-use", "error", "error_deleting"], Some("error")),
        BackupOrdered => (&["available", "in-use"], Some("backing-up")),
        BackupFailed => (&["backing-up"], None),
        CopiedForBackup => (&["creating", "backing-up"], Some("backing-up")),
        HandedOver => (&["creating"], None),
        BackedUp => (&["backing-up"], None),
        RestoredFromBackup => (&["restoring-backup", "creating"], Some("available")),
        RestoreCancelled => (&["restoring-backup", "creating"], Some("error")),
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
    /// The volume was, or could not be, reverted to it.
    RevertEnded,
    /// A backup of it ended.
    BackupEnded,
    /// Deletion of the group snapshot that it belongs to failed.
    GroupDeleteFailed,
}

/// The table of snapshots.
pub fn snapshot(event: SnapshotEvent) -> Transition {
    use SnapshotEvent::*;
    let (from, to): (&'static [&'static str], Option<&'static str>) = match event {
        Created => (&["creating", "backing-up", "available"], Some("available")),
        CreateFailed => (&["creating", "backing-up", "error"], Some("error")),
        DeleteBusy => (&["deleting", "unmanaging", "available"], Some("available")),
        // The caller names the status that it found.
        DeleteFailed => (&[], Some("error_deleting")),
        LostByFailover => (&[], Some("error")),
        Recovered => (&["error"], Some("available")),
        RevertEnded => (&["restoring"], Some("available")),
        BackupEnded => (&["backing-up"], Some("available")),
        GroupDeleteFailed => (&["deleting"], Some("error")),
    };
    Transition { from, to }
}

/// What happened to a generic volume group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupEvent {
    /// It exists, with all its volumes.
    Created,
    /// Its volumes are as asked.
    Updated,
    /// An update was refused before anything changed.
    UpdateRefused,
    /// Creation, also from a source, failed.
    CreateFailed,
    /// Deletion failed.
    DeleteFailed,
    /// Adding or removing volumes failed.
    UpdateFailed,
    /// Its replication is as asked, or as it was.
    ReplicationSettled,
    /// Enabling, disabling or failing over its replication failed.
    ReplicationFailed,
}

/// The table of groups.
pub fn group(event: GroupEvent) -> Transition {
    use GroupEvent::*;
    let (from, to): (&'static [&'static str], Option<&'static str>) = match event {
        Created => (&["creating"], Some("available")),
        Updated | UpdateRefused => (&["updating"], Some("available")),
        CreateFailed => (&["creating"], Some("error")),
        DeleteFailed => (&["deleting"], Some("error")),
        UpdateFailed => (&["updating"], Some("error")),
        // The caller names the replication status that the group must be in instead.
        ReplicationSettled => (&[], None),
        ReplicationFailed => (&[], Some("error")),
    };
    Transition { from, to }
}

/// What happened to a snapshot of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupSnapshotEvent {
    /// Its snapshots are there.
    Created,
    /// Taking it failed.
    CreateFailed,
    /// Deletion failed.
    DeleteFailed,
}

/// The table of group snapshots.
pub fn group_snapshot(event: GroupSnapshotEvent) -> Transition {
    use GroupSnapshotEvent::*;
    let (from, to): (&'static [&'static str], Option<&'static str>) = match event {
        Created => (&["creating"], Some("available")),
        CreateFailed => (&["creating"], Some("error")),
        DeleteFailed => (&["deleting"], Some("error")),
    };
    Transition { from, to }
}

/// What happened to a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackupEvent {
    /// There is no device to back up from.
    DeviceFailed,
    /// A new volume is being filled from it; several may be at once.
    RestorationBegun,
    /// It is made.
    Created,
    /// It could not be made.
    CreateFailed,
    /// A volume was filled from it, or could not be.
    RestoreEnded,
    /// It is to be deleted: retention lets go of it, or its site is parted from the others.
    DeleteOrdered,
    /// It could not be deleted: Ceph refused or failed.
    DeleteFailed,
    /// It was not tried: the backup service does not work, or the backup is of another driver.
    DeleteRefused,
    /// A record of it was taken in.
    Imported,
}

/// The table of backups.
pub fn backup(event: BackupEvent) -> Transition {
    match event {
        BackupEvent::DeviceFailed => Transition { from: &["creating"], to: Some("error") },
        BackupEvent::RestorationBegun => {
            Transition { from: &["available", "restoring"], to: Some("restoring") }
        }
        BackupEvent::Created | BackupEvent::Imported => {
            Transition { from: &["creating"], to: Some("available") }
        }
        BackupEvent::CreateFailed => Transition { from: &["creating"], to: Some("error") },
        BackupEvent::DeleteOrdered => {
            Transition { from: &["available", "error", "error_deleting"], to: Some("deleting") }
        }
        BackupEvent::RestoreEnded => Transition { from: &["restoring"], to: Some("available") },
        BackupEvent::DeleteFailed => Transition { from: &["deleting"], to: Some("error") },
        BackupEvent::DeleteRefused => Transition { from: &["deleting"], to: Some("error_deleting") },
    }
}
