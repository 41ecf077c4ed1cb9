//! The arguments of every method of cinder-volume's RPC API 3.20, and of cinder-backup's 2.4, one file per family.
//!
//! These files only translate: wire arguments in, typed arguments out, nothing decided. Methods that
//! Scoria does not serve yet are decoded all the same, so that the resource they name can be put into the
//! status that Cinder defines for failure, and its quota given back.

mod args;
mod attachment;
mod backend;
mod backup;
mod backup_policy;
mod backup_service;
mod connection;
mod group;
mod image;
mod manage;
mod migrate;
mod orders;
mod replication;
mod service;
mod site;
mod snapshot;
mod volume;

pub use args::Args;
pub use attachment::{AttachVolume, AttachmentDelete, AttachmentUpdate, DetachVolume};
pub use backend::{BackendCall, LabelCall};
pub use backup::GetBackupDevice;
pub use backup_policy::PolicyCall;
pub use backup_service::BackupCall;
pub use connection::{
    InitializeConnection, InitializeConnectionSnapshot, TerminateConnection, TerminateConnectionSnapshot,
};
pub use group::{CreateGroupFromSource, UpdateGroup};
pub use image::{CopyVolumeToImage, Reimage};
pub use manage::{ManageExisting, ManageExistingSnapshot, Page};
pub use migrate::{Destination, MigrateVolume, MigrateVolumeCompletion, Retype, UpdateMigratedVolume};
pub use replication::FailoverReplication;
pub use site::{AdminKeys, SiteCall};
pub use snapshot::{CreateSnapshot, DeleteSnapshot, RevertToSnapshot};
pub use volume::{AcceptTransfer, CreateVolume, DeleteVolume, ExtendVolume, ExtendVolumeCompletion};

pub(crate) mod decode {
    //! One function per method, as named on the wire.
    pub(crate) use super::attachment::{attach_volume, attachment_delete, attachment_update, detach_volume};
    pub(crate) use super::backend::{
        backend_cancel_operation, backend_create, backend_delete, backend_disable, backend_enable,
        backend_get_operation, backend_list, backend_list_operations, backend_rename, backend_show,
        backend_start, backend_stop, backend_update, backend_validate, cluster_create, cluster_delete,
        cluster_list, cluster_show, cluster_update,
    };
    pub(crate) use super::backup::get_backup_device;
    pub(crate) use super::backup_policy::{
        backup_apply_retention, backup_audit, backup_cancel_operation, backup_clear_retention, backup_create,
        backup_create_schedule, backup_delete_schedule, backup_get_operation, backup_get_retention,
        backup_list_operations, backup_list_schedules, backup_pause_schedule, backup_preview_retention,
        backup_run_schedule, backup_set_retention, backup_show_schedule, backup_update_schedule,
    };
    pub(crate) use super::backup_service::{
        check_support_to_force_delete, continue_backup, create_backup, delete_backup, export_record,
        import_record, reset_status, restore_backup,
    };
    pub(crate) use super::connection::{
        initialize_connection, initialize_connection_snapshot, remove_export, remove_export_snapshot,
        terminate_connection, terminate_connection_snapshot,
    };
    pub(crate) use super::group::{
        create_group, create_group_from_src, create_group_snapshot, delete_group, delete_group_snapshot,
        update_group,
    };
    pub(crate) use super::image::{copy_volume_to_image, reimage};
    pub(crate) use super::manage::{
        get_manageable_snapshots, get_manageable_volumes, manage_existing, manage_existing_snapshot,
    };
    pub(crate) use super::migrate::{
        migrate_volume, migrate_volume_completion, retype, update_migrated_volume,
    };
    pub(crate) use super::orders::{
        ask_plan, ask_preflight, order_adopt, order_failover, order_resync, order_retry, replication_status,
    };
    pub(crate) use super::replication::{
        disable_replication, enable_replication, failover, failover_completed, failover_replication,
        freeze_host, list_replication_targets, thaw_host,
    };
    pub(crate) use super::service::{
        do_cleanup, get_capabilities, get_log_levels, publish_service_capabilities,
        secure_file_operations_enabled, set_log_levels,
    };
    pub(crate) use super::site::{
        site_cancel_operation, site_connect, site_daemon_restart, site_daemon_start, site_daemon_status,
        site_daemon_stop, site_delete, site_disconnect, site_get_operation, site_half_deleted,
        site_independent, site_list, site_list_links, site_list_operations, site_move, site_register,
        site_replicate, site_revert, site_schedule_add, site_schedule_list, site_schedule_remove,
        site_schedule_status, site_show, site_switch, site_update, site_which_volume,
    };
    pub(crate) use super::snapshot::{create_snapshot, delete_snapshot, revert_to_snapshot};
    pub(crate) use super::volume::{
        accept_transfer, create_volume, delete_volume, extend_volume, extend_volume_completion,
    };
}
