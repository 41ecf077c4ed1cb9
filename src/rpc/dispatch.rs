//! Which methods exist, in which versions, and what becomes of their arguments.
//!
//! One table holds every method of cinder-volume's RPC API 3.20 (reference volume_rpc.md 2.1). A request
//! leaves here as a [`Method`] with typed arguments, or as the error that oslo.messaging or Python would
//! have raised at this point.

use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};
use crate::replication::foresight::Inquiry;
use crate::replication::orders::Order;
use crate::rpc::envelope::Inner;
use crate::rpc::fault;
use crate::rpc::method::{self as m, Args, decode as d};
use crate::rpc::namespace::Namespace;
use crate::rpc::objects::{self, CleanupRequest, LogLevel, WireGroup, WireGroupSnapshot, WireVolume};

/// The newest version served: `services.rpc_current_version`.
pub const VERSION: (u32, u32) = (3, 20);

/// A request with typed arguments. Variants are named as the methods on the wire.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Method {
    CreateVolume(m::CreateVolume),
    DeleteVolume(m::DeleteVolume),
    ExtendVolume(m::ExtendVolume),
    ExtendVolumeCompletion(m::ExtendVolumeCompletion),
    AcceptTransfer(m::AcceptTransfer),
    CreateSnapshot(m::CreateSnapshot),
    DeleteSnapshot(m::DeleteSnapshot),
    RevertToSnapshot(m::RevertToSnapshot),
    AttachVolume(m::AttachVolume),
    DetachVolume(m::DetachVolume),
    AttachmentUpdate(m::AttachmentUpdate),
    AttachmentDelete(m::AttachmentDelete),
    InitializeConnection(m::InitializeConnection),
    TerminateConnection(m::TerminateConnection),
    RemoveExport {
        volume_id: String,
    },
    InitializeConnectionSnapshot(m::InitializeConnectionSnapshot),
    TerminateConnectionSnapshot(m::TerminateConnectionSnapshot),
    RemoveExportSnapshot {
        snapshot_id: String,
    },
    Failover {
        secondary_backend_id: Option<String>,
    },
    FailoverCompleted {
        updates: Map<String, Value>,
    },
    FreezeHost,
    ThawHost,
    EnableReplication {
        group: Box<WireGroup>,
    },
    DisableReplication {
        group: Box<WireGroup>,
    },
    FailoverReplication(m::FailoverReplication),
    ListReplicationTargets {
        group: Box<WireGroup>,
    },
    PublishServiceCapabilities,
    GetCapabilities {
        discover: bool,
    },
    DoCleanup(Box<CleanupRequest>),
    SetLogLevels(LogLevel),
    GetLogLevels(LogLevel),
    SecureFileOperationsEnabled {
        volume: Option<Box<WireVolume>>,
    },
    CreateGroup {
        group: Box<WireGroup>,
    },
    DeleteGroup {
        group: Box<WireGroup>,
    },
    UpdateGroup(m::UpdateGroup),
    CreateGroupFromSource(m::CreateGroupFromSource),
    CreateGroupSnapshot {
        group_snapshot: Box<WireGroupSnapshot>,
    },
    DeleteGroupSnapshot {
        group_snapshot: Box<WireGroupSnapshot>,
    },
    CopyVolumeToImage(m::CopyVolumeToImage),
    Reimage(m::Reimage),
    MigrateVolume(m::MigrateVolume),
    MigrateVolumeCompletion(m::MigrateVolumeCompletion),
    UpdateMigratedVolume(m::UpdateMigratedVolume),
    Retype(m::Retype),
    ManageExisting(m::ManageExisting),
    ManageExistingSnapshot(m::ManageExistingSnapshot),
    GetManageableVolumes(m::Page),
    GetManageableSnapshots(m::Page),
    GetBackupDevice(m::GetBackupDevice),
    /// Of namespace `replication`.
    Order(Box<Order>),
    ReplicationStatus {
        operation: Option<i64>,
    },
    Question(Inquiry),
    /// Of namespace `site`.
    Site(Box<m::SiteCall>),
    /// Of cinder-backup's RPC API.
    Backup(Box<m::BackupCall>),
    /// Of namespace `backup`.
    BackupPolicy(Box<m::PolicyCall>),
    /// Of namespace `backend`.
    Backend(Box<m::BackendCall>),
    /// Of namespace `cluster`.
    Label(Box<m::LabelCall>),
}

/// What a request is about, in the words of `workers.resource_type` and of user messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Resource<'a> {
    Volume(&'a str),
    Snapshot(&'a str),
    Group(&'a str),
    GroupSnapshot(&'a str),
    Backup(&'a str),
}

impl<'a> Resource<'a> {
    /// Class name, as in `workers.resource_type`.
    pub fn kind(self) -> &'static str {
        match self {
            Resource::Volume(_) => "Volume",
            Resource::Snapshot(_) => "Snapshot",
            Resource::Group(_) => "Group",
            Resource::GroupSnapshot(_) => "GroupSnapshot",
            Resource::Backup(_) => "Backup",
        }
    }

    /// Its id.
    pub fn id(self) -> &'a str {
        match self {
            Resource::Volume(id)
            | Resource::Snapshot(id)
            | Resource::Group(id)
            | Resource::GroupSnapshot(id)
            | Resource::Backup(id) => id,
        }
    }
}

impl Method {
    /// The resource whose status the request changes, if it is about one.
    pub fn resource(&self) -> Option<Resource<'_>> {
        use Method::*;
        Some(match self {
            CreateVolume(a) => Resource::Volume(&a.volume.volume.id),
            DeleteVolume(a) => Resource::Volume(&a.volume.volume.id),
            ExtendVolume(a) => Resource::Volume(&a.volume.volume.id),
            ExtendVolumeCompletion(a) => Resource::Volume(&a.volume.volume.id),
            AcceptTransfer(a) => Resource::Volume(&a.volume_id),
            CreateSnapshot(a) => Resource::Snapshot(&a.snapshot.snapshot.id),
            DeleteSnapshot(a) => Resource::Snapshot(&a.snapshot.snapshot.id),
            RevertToSnapshot(a) => Resource::Volume(&a.volume.volume.id),
            AttachVolume(a) => Resource::Volume(&a.volume_id),
            DetachVolume(a) => Resource::Volume(&a.volume_id),
            AttachmentUpdate(a) => Resource::Volume(&a.volume.volume.id),
            AttachmentDelete(a) => Resource::Volume(&a.volume.volume.id),
            InitializeConnection(a) => Resource::Volume(&a.volume.volume.id),
            TerminateConnection(a) => Resource::Volume(&a.volume_id),
            RemoveExport { volume_id } => Resource::Volume(volume_id),
            InitializeConnectionSnapshot(a) => Resource::Snapshot(&a.snapshot_id),
            TerminateConnectionSnapshot(a) => Resource::Snapshot(&a.snapshot_id),
            RemoveExportSnapshot { snapshot_id } => Resource::Snapshot(snapshot_id),
            EnableReplication { group }
            | DisableReplication { group }
            | ListReplicationTargets { group }
            | CreateGroup { group }
            | DeleteGroup { group } => Resource::Group(&group.group.id),
            FailoverReplication(a) => Resource::Group(&a.group.group.id),
            UpdateGroup(a) => Resource::Group(&a.group.group.id),
            CreateGroupFromSource(a) => Resource::Group(&a.group.group.id),
            CreateGroupSnapshot { group_snapshot } | DeleteGroupSnapshot { group_snapshot } => {
                Resource::GroupSnapshot(&group_snapshot.group_snapshot.id)
            }
            CopyVolumeToImage(a) => Resource::Volume(&a.volume_id),
            Reimage(a) => Resource::Volume(&a.volume.volume.id),
            MigrateVolume(a) => Resource::Volume(&a.volume.volume.id),
            MigrateVolumeCompletion(a) => Resource::Volume(&a.volume.volume.id),
            UpdateMigratedVolume(a) => Resource::Volume(&a.volume.volume.id),
            Retype(a) => Resource::Volume(&a.volume.volume.id),
            ManageExisting(a) => Resource::Volume(&a.volume.volume.id),
            ManageExistingSnapshot(a) => Resource::Snapshot(&a.snapshot.snapshot.id),
            GetBackupDevice(a) => Resource::Backup(&a.backup.id),
            Backup(call) => Resource::Backup(call.backup_id()?),
            Failover { .. }
            | FailoverCompleted { .. }
            | FreezeHost
            | ThawHost
            | PublishServiceCapabilities
            | GetCapabilities { .. }
            | DoCleanup(_)
            | SetLogLevels(_)
            | GetLogLevels(_)
            | SecureFileOperationsEnabled { .. }
            | GetManageableVolumes(_)
            | GetManageableSnapshots(_)
            | Order(_)
            | ReplicationStatus { .. }
            | Question(_)
            | Site(_)
            | BackupPolicy(_)
            | Backend(_)
            | Label(_) => return None,
        })
    }

    /// Quota that the API has reserved for the request, to be committed or rolled back: new, and old
    /// (retype gives back what the former type used).
    pub fn reservations(&self) -> (&[String], &[String]) {
        match self {
            Method::ExtendVolume(a) => (&a.reservations, &[]),
            Method::ExtendVolumeCompletion(a) => (&a.reservations, &[]),
            Method::Retype(a) => (&a.reservations, &a.old_reservations),
            _ => (&[], &[]),
        }
    }
}

/// How clients send a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Cast,
    Call,
    /// Older clients, or a `sync` argument, make it a call.
    CallOrCast,
    Fanout,
}

/// Whether a request is journalled before it is acknowledged (design invariant 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Journal {
    /// It changes state: it must survive a crash.
    Yes,
    /// It only reads, or concerns this process alone.
    No,
}

/// One row of the table.
#[derive(Debug)]
pub struct Spec {
    /// Name on the wire.
    pub name: &'static str,
    /// The version that introduced the method, or the arguments it has now. Clients check it; a server
    /// of oslo.messaging does not, and neither does Scoria.
    pub since: (u32, u32),
    /// How clients send it.
    pub kind: Kind,
    journal: Journal,
    decode: fn(&mut Args) -> Result<Method>,
}

impl Spec {
    /// True when the request must be in the journal before it is acknowledged.
    pub fn journaled(&self) -> bool {
        self.journal == Journal::Yes
    }
}

pub(super) const fn spec(
    name: &'static str,
    since: (u32, u32),
    kind: Kind,
    journal: Journal,
    decode: fn(&mut Args) -> Result<Method>,
) -> Spec {
    Spec { name, since, kind, journal, decode }
}

/// Every method. `initialize_connection`, `terminate_connection` and `remove_export` change nothing on
/// RBD (there is no target to export), so they are not journalled when somebody waits for the answer;
/// [`journaled`] adds the casts.
pub static METHODS: &[Spec] = &[
    spec("create_volume", (3, 0), Kind::Cast, Journal::Yes, d::create_volume),
    spec("delete_volume", (3, 0), Kind::Cast, Journal::Yes, d::delete_volume),
    spec("create_snapshot", (3, 0), Kind::Cast, Journal::Yes, d::create_snapshot),
    spec("delete_snapshot", (3, 0), Kind::Cast, Journal::Yes, d::delete_snapshot),
    spec("revert_to_snapshot", (3, 15), Kind::Cast, Journal::Yes, d::revert_to_snapshot),
    spec("attach_volume", (3, 3), Kind::Call, Journal::Yes, d::attach_volume),
    spec("detach_volume", (3, 4), Kind::Call, Journal::Yes, d::detach_volume),
    spec("initialize_connection", (3, 0), Kind::Call, Journal::No, d::initialize_connection),
    spec("terminate_connection", (3, 0), Kind::Call, Journal::No, d::terminate_connection),
    spec("remove_export", (3, 0), Kind::CallOrCast, Journal::No, d::remove_export),
    spec("attachment_update", (3, 9), Kind::Call, Journal::Yes, d::attachment_update),
    spec("attachment_delete", (3, 9), Kind::Call, Journal::Yes, d::attachment_delete),
    spec(
        "initialize_connection_snapshot",
        (3, 13),
        Kind::Call,
        Journal::No,
        d::initialize_connection_snapshot,
    ),
    spec("terminate_connection_snapshot", (3, 13), Kind::Call, Journal::No, d::terminate_connection_snapshot),
    spec("remove_export_snapshot", (3, 13), Kind::CallOrCast, Journal::No, d::remove_export_snapshot),
    spec("extend_volume", (3, 0), Kind::Cast, Journal::Yes, d::extend_volume),
    spec("extend_volume_completion", (3, 19), Kind::Cast, Journal::Yes, d::extend_volume_completion),
    spec("migrate_volume", (3, 5), Kind::Cast, Journal::Yes, d::migrate_volume),
    spec("migrate_volume_completion", (3, 0), Kind::Call, Journal::Yes, d::migrate_volume_completion),
    spec("update_migrated_volume", (3, 0), Kind::Call, Journal::Yes, d::update_migrated_volume),
    spec("retype", (3, 5), Kind::Cast, Journal::Yes, d::retype),
    spec("manage_existing", (3, 0), Kind::Cast, Journal::Yes, d::manage_existing),
    spec("manage_existing_snapshot", (3, 0), Kind::Cast, Journal::Yes, d::manage_existing_snapshot),
    spec("get_manageable_volumes", (3, 10), Kind::Call, Journal::No, d::get_manageable_volumes),
    spec("get_manageable_snapshots", (3, 10), Kind::Call, Journal::No, d::get_manageable_snapshots),
    spec("copy_volume_to_image", (3, 0), Kind::Cast, Journal::Yes, d::copy_volume_to_image),
    spec("reimage", (3, 18), Kind::Cast, Journal::Yes, d::reimage),
    spec("accept_transfer", (3, 16), Kind::Call, Journal::No, d::accept_transfer),
    spec("get_backup_device", (3, 17), Kind::CallOrCast, Journal::Yes, d::get_backup_device),
    spec(
        "secure_file_operations_enabled",
        (3, 0),
        Kind::Call,
        Journal::No,
        d::secure_file_operations_enabled,
    ),
    spec("get_capabilities", (3, 0), Kind::Call, Journal::No, d::get_capabilities),
    spec("create_group", (3, 0), Kind::Cast, Journal::Yes, d::create_group),
    spec("delete_group", (3, 0), Kind::Cast, Journal::Yes, d::delete_group),
    spec("update_group", (3, 0), Kind::Cast, Journal::Yes, d::update_group),
    spec("create_group_from_src", (3, 0), Kind::Cast, Journal::Yes, d::create_group_from_src),
    spec("create_group_snapshot", (3, 0), Kind::Cast, Journal::Yes, d::create_group_snapshot),
    spec("delete_group_snapshot", (3, 0), Kind::Cast, Journal::Yes, d::delete_group_snapshot),
    spec("enable_replication", (3, 14), Kind::Cast, Journal::Yes, d::enable_replication),
    spec("disable_replication", (3, 14), Kind::Cast, Journal::Yes, d::disable_replication),
    spec("failover_replication", (3, 14), Kind::Cast, Journal::Yes, d::failover_replication),
    spec("list_replication_targets", (3, 14), Kind::Call, Journal::No, d::list_replication_targets),
    spec("freeze_host", (3, 0), Kind::Call, Journal::Yes, d::freeze_host),
    spec("thaw_host", (3, 0), Kind::Call, Journal::Yes, d::thaw_host),
    spec("failover", (3, 8), Kind::Cast, Journal::Yes, d::failover),
    // The name that clients pinned below 3.8 use.
    spec("failover_host", (3, 0), Kind::Cast, Journal::Yes, d::failover),
    spec("failover_completed", (3, 8), Kind::Fanout, Journal::No, d::failover_completed),
    spec("publish_service_capabilities", (3, 0), Kind::Fanout, Journal::No, d::publish_service_capabilities),
    spec("do_cleanup", (3, 7), Kind::Cast, Journal::Yes, d::do_cleanup),
    spec("set_log_levels", (3, 12), Kind::Cast, Journal::No, d::set_log_levels),
    spec("get_log_levels", (3, 12), Kind::Call, Journal::No, d::get_log_levels),
];

/// Whether this request is journalled: what the table says, and every cast of a method that is otherwise
/// only answered, since nobody would repeat it.
pub fn journaled(spec: &Spec, is_call: bool) -> bool {
    spec.journaled() || (spec.kind == Kind::CallOrCast && !is_call)
}

/// Finds the method and judges version and namespace, in oslo.messaging's order: an endpoint of another
/// namespace or version is as good as none, and only then is the name looked up.
pub fn find(inner: &Inner) -> Result<(&'static Spec, (u32, u32))> {
    let text = inner.version.as_deref().unwrap_or("1.0");
    let name = match &inner.namespace {
        None => Some(None),
        Some(Value::String(name)) => Some(Some(name.as_str())),
        Some(_) => None,
    };
    let found = parse_version(text).zip(name).and_then(|(version, name)| {
        // cinder-volume's methods and cinder-backup's have no namespace, and versions of their own.
        let namespace = Namespace::of(name, version.0)?;
        (version.1 <= namespace.version.1).then_some((namespace, version))
    });
    let (namespace, version) = found.ok_or_else(|| fault::unsupported_version(text, &inner.method))?;
    let method = namespace.method(&inner.method).map(|s| (s, version));
    method.ok_or_else(|| fault::no_such_method(&inner.method))
}

/// Decodes the arguments.
///
/// # Errors
/// [`Code::BadArguments`], [`Code::InvalidValue`] or [`Code::IncompatibleObject`].
pub fn decode(spec: &Spec, args: Value) -> Result<Method> {
    objects::check(&args)?;
    let mut args = Args::new(spec.name, args)?;
    let method = (spec.decode)(&mut args)?;
    args.finish()?;
    Ok(method)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The error of a handler for a method that Scoria knows but does not serve.
pub fn not_supported(method: &str) -> Error {
    Error::new(Code::NotSupported, method.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::rpc::envelope;
    use serde_json::json;

    fn inner(value: Value) -> Inner {
        envelope::read(value.as_object().unwrap().clone())
    }

    fn code(value: Value) -> Code {
        find(&inner(value)).unwrap_err().code()
    }

    #[test]
    fn versions_methods_and_namespaces_are_judged_as_oslo_does() {
        for version in ["3.0", "3.8", "3.20"] {
            let found = find(&inner(json!({"method": "failover", "version": version}))).unwrap();
            assert_eq!(found.0.name, "failover");
        }
        for version in ["3.21", "4.0", "2.5", "1.0", "", "x", "3"] {
            assert_eq!(
                code(json!({"method": "failover", "version": version})),
                Code::UnsupportedVersion,
                "{version}"
            );
        }
        assert_eq!(code(json!({"method": "failover"})), Code::UnsupportedVersion, "a missing one is 1.0");
        assert_eq!(
            code(json!({"method": "failover", "version": "3.0", "namespace": "x"})),
            Code::UnsupportedVersion
        );
        for method in ["_do_cleanup", "", "nonsense", "init_host", "__class__"] {
            assert_eq!(code(json!({"method": method, "version": "3.0"})), Code::NoSuchMethod, "{method}");
        }
    }

    #[test]
    fn casts_and_changes_are_journalled_and_reads_fanouts_and_log_levels_are_not() {
        let by_name = |name: &str| METHODS.iter().find(|s| s.name == name).unwrap();
        for spec in METHODS.iter().filter(|s| s.kind == Kind::Cast && s.name != "set_log_levels") {
            assert!(journaled(spec, false), "{}", spec.name);
        }
        for spec in METHODS.iter().filter(|s| s.kind == Kind::Fanout) {
            assert!(!journaled(spec, false), "{}", spec.name);
        }
        assert!(journaled(by_name("remove_export"), false));
        assert!(!journaled(by_name("remove_export"), true));
        assert!(journaled(by_name("attachment_update"), true));
        assert!(!journaled(by_name("get_capabilities"), true));
        assert!(!journaled(by_name("set_log_levels"), false));
    }

    #[test]
    fn every_name_stands_once() {
        let mut names: Vec<_> = METHODS.iter().map(|s| s.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn wrong_arguments_are_a_type_error_and_new_objects_refused() {
        let spec = METHODS.iter().find(|s| s.name == "extend_volume").unwrap();
        let volume = |v: &str| {
            json!({"versioned_object.name": "Volume", "versioned_object.namespace": "cinder",
                "versioned_object.version": v, "versioned_object.data": {"id": "v1"}})
        };
        let try_with = |args: Value| decode(spec, args).map_err(|e| e.code());
        assert!(try_with(json!({"volume": volume("1.9"), "new_size": 2, "reservations": null})).is_ok());
        assert_eq!(try_with(json!({"volume": volume("1.9")})), Err(Code::BadArguments));
        assert_eq!(try_with(json!({"volume": volume("1.9"), "new_size": "2"})), Err(Code::BadArguments));
        assert_eq!(
            try_with(json!({"volume": volume("1.9"), "new_size": 2, "more": 1})),
            Err(Code::BadArguments)
        );
        assert_eq!(try_with(json!({"volume": volume("1.10"), "new_size": 2})), Err(Code::IncompatibleObject));
    }
}
