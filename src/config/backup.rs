//! Options of the backup service: those of cinder-backup and its driver for Ceph, in `[DEFAULT]`.

use std::path::PathBuf;
use std::time::Duration;

use super::build::size;
use super::options::Group;
use super::reader::{Reader, Scope};

/// Where backups go, and how.
#[derive(Debug, Clone)]
pub struct BackupConfig {
    /// `backup_ceph_conf` (`/etc/ceph/ceph.conf`).
    pub ceph_conf: PathBuf,
    /// `backup_ceph_user` (`cinder`).
    pub ceph_user: Option<String>,
    /// `backup_ceph_pool` (`backups`).
    pub ceph_pool: String,
    /// `backup_ceph_image_journals` (false).
    pub ceph_image_journals: bool,
    /// `backup_ceph_max_snapshots` (0: all).
    pub ceph_max_snapshots: usize,
    /// `backup_site`: name or fsid of the registered site that backups go to; none: the cluster of `ceph_conf`.
    pub site: Option<String>,
    /// `scoria_backup_bandwidth`: MiB a second that an operation reads at most (0: no limit).
    pub bandwidth_mib: u64,
    /// `scoria_backup_verify_on_restore` (true): what is restored is compared with its checksums.
    pub verify_on_restore: bool,
    /// `backup_max_operations` (15; 0: no limit).
    pub max_operations: usize,
    /// `backup_timer_interval` (120 s).
    pub timer_interval: Duration,
    /// `backup_driver_stats_polling_interval` (60 s).
    pub report_interval: Duration,
}

/// Reads them.
pub(super) fn backup(reader: &Reader<'_>) -> BackupConfig {
    let scope = Scope::Global(Group::Default);
    BackupConfig {
        ceph_conf: PathBuf::from(reader.text(scope, "backup_ceph_conf")),
        ceph_user: reader.optional(scope, "backup_ceph_user"),
        ceph_pool: super::build::required(reader, "backup_ceph_pool"),
        ceph_image_journals: reader.boolean(scope, "backup_ceph_image_journals"),
        ceph_max_snapshots: size(reader.integer(scope, "backup_ceph_max_snapshots")),
        site: reader.optional(scope, "backup_site").filter(|name| !name.is_empty()),
        bandwidth_mib: u64::try_from(reader.integer(Scope::Global(Group::Scoria), "scoria_backup_bandwidth"))
            .unwrap_or(0),
        verify_on_restore: reader.boolean(Scope::Global(Group::Scoria), "scoria_backup_verify_on_restore"),
        max_operations: size(reader.integer(scope, "backup_max_operations")),
        timer_interval: reader.seconds(scope, "backup_timer_interval"),
        report_interval: reader.seconds(scope, "backup_driver_stats_polling_interval"),
    }
}
