//! Options of the backup service: those of cinder-backup and its driver for Ceph, in `[DEFAULT]`.

use std::path::PathBuf;
use std::time::Duration;

use super::build::size;
use super::options::Group;
use super::reader::{Reader, Scope};

/// `backup_method`: how backups are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackupMethod {
    /// `diff`: what has changed is read and written, as stock does.
    #[default]
    Diff,
    /// `mirror`: a point of the copy that RBD mirroring keeps is pinned; a volume that is not mirrored to the site
    /// of the backups is refused.
    Mirror,
    /// `auto`: mirror for such a volume, diff for any other.
    Auto,
}

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
    /// `backup_method` (diff).
    pub method: BackupMethod,
    /// `scoria_backup_mirror_timeout`: how long a snapshot may be on its way to the copy (6 h).
    pub mirror_timeout: Duration,
    /// `scoria_backup_flatten_pool`: pool of backups by mirroring that are to be independent of the copy.
    pub flatten_pool: Option<String>,
    /// `scoria_backup_checksum_bandwidth`: MiB a second that are read for the checksums of backups by mirroring (64;
    /// 0: no limit).
    pub checksum_mib: u64,
    /// `scoria_backup_bandwidth`: MiB a second that an operation reads at most (0: no limit).
    pub bandwidth_mib: u64,
    /// `scoria_backup_verify_on_restore` (true): what is restored is compared with its checksums.
    pub verify_on_restore: bool,
    /// `scoria_backup_restore_by_clone` (true): a backup by mirroring that is on the volume's own site is restored by a
    /// clone that takes the place of its image.
    pub restore_by_clone: bool,
    /// `scoria_backup_site_timeout`: how long work goes on with a site that answers nothing (120 s).
    pub site_timeout: Duration,
    /// `backup_max_operations` (15; 0: no limit).
    pub max_operations: usize,
    /// `backup_timer_interval` (120 s).
    pub timer_interval: Duration,
    /// `backup_driver_stats_polling_interval` (60 s).
    pub report_interval: Duration,
}

/// Reads them.
pub(super) fn backup(reader: &Reader<'_>) -> BackupConfig {
    let (scope, own) = (Scope::Global(Group::Default), Scope::Global(Group::Scoria));
    BackupConfig {
        ceph_conf: PathBuf::from(reader.text(scope, "backup_ceph_conf")),
        ceph_user: reader.optional(scope, "backup_ceph_user"),
        ceph_pool: super::build::required(reader, "backup_ceph_pool"),
        ceph_image_journals: reader.boolean(scope, "backup_ceph_image_journals"),
        ceph_max_snapshots: size(reader.integer(scope, "backup_ceph_max_snapshots")),
        site: reader.optional(scope, "backup_site").filter(|name| !name.is_empty()),
        method: match reader.choice(scope, "backup_method").as_str() {
            "mirror" => BackupMethod::Mirror,
            "auto" => BackupMethod::Auto,
            _ => BackupMethod::Diff,
        },
        mirror_timeout: reader.seconds(own, "scoria_backup_mirror_timeout"),
        flatten_pool: reader.optional(own, "scoria_backup_flatten_pool").filter(|pool| !pool.is_empty()),
        checksum_mib: u64::try_from(reader.integer(own, "scoria_backup_checksum_bandwidth")).unwrap_or(0),
        bandwidth_mib: u64::try_from(reader.integer(own, "scoria_backup_bandwidth")).unwrap_or(0),
        verify_on_restore: reader.boolean(own, "scoria_backup_verify_on_restore"),
        restore_by_clone: reader.boolean(own, "scoria_backup_restore_by_clone"),
        site_timeout: reader.seconds(own, "scoria_backup_site_timeout"),
        max_operations: size(reader.integer(scope, "backup_max_operations")),
        timer_interval: reader.seconds(scope, "backup_timer_interval"),
        report_interval: reader.seconds(scope, "backup_driver_stats_polling_interval"),
    }
}
