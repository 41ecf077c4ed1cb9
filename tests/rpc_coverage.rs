//! `docs/rpc-coverage.md`: every method of cinder-volume's RPC API, and of cinder-backup's, with a test that exercises it.
//!
//! The table is made from the dispatch table, so a method cannot be forgotten; and a test that is renamed or
//! removed is noticed. `SCORIA_WRITE_DOCS=1 cargo nextest run --test rpc_coverage` writes the page anew.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use scoria::rpc::dispatch::{Kind, METHODS, Spec};
use scoria::rpc::namespace::BACKUP;

/// Method, file under `tests/` and name of the test.
const TESTS: &[(&str, &str, &str)] = &[
    ("create_volume", "lifecycle/basics", "create_and_delete_leave_the_rows_and_quota_that_stock_leaves"),
    ("delete_volume", "lifecycle/basics", "create_and_delete_leave_the_rows_and_quota_that_stock_leaves"),
    ("create_snapshot", "lifecycle/copies", "snapshots_come_and_go"),
    ("delete_snapshot", "lifecycle/copies", "snapshots_come_and_go"),
    ("revert_to_snapshot", "lifecycle/manage", "a_revert_brings_back_the_content_on_both_sites"),
    ("attach_volume", "lifecycle/attach", "the_older_actions_attach_and_detach"),
    ("detach_volume", "lifecycle/attach", "the_older_actions_attach_and_detach"),
    ("initialize_connection", "lifecycle/attach", "the_older_actions_attach_and_detach"),
    ("terminate_connection", "lifecycle/attach", "the_older_actions_attach_and_detach"),
    ("remove_export", "lifecycle/service", "calls_that_change_nothing_are_answered"),
    ("attachment_update", "lifecycle/attach", "an_attachment_is_reserved_connected_completed_and_deleted"),
    ("attachment_delete", "lifecycle/attach", "an_attachment_is_reserved_connected_completed_and_deleted"),
    ("initialize_connection_snapshot", "lifecycle/service", "a_snapshot_cannot_be_attached"),
    ("terminate_connection_snapshot", "lifecycle/service", "a_snapshot_cannot_be_attached"),
    ("remove_export_snapshot", "lifecycle/service", "a_snapshot_cannot_be_attached"),
    ("extend_volume", "lifecycle/basics", "extend_changes_size_quota_and_image"),
    ("extend_volume_completion", "lifecycle/extend", "an_extension_that_nova_has_done_is_recorded"),
    ("migrate_volume", "lifecycle/moving", "a_volume_migrates_by_ceph_and_by_copying_and_stays_the_same"),
    ("migrate_volume_completion", "db/migrates", "nova_completes_the_migration_of_an_attached_volume"),
    (
        "update_migrated_volume",
        "db/migrates",
        "a_peers_copy_gets_the_volumes_name_unless_it_is_open_or_the_name_is_taken",
    ),
    ("retype", "lifecycle/moving", "replication_comes_and_goes_with_the_type"),
    (
        "manage_existing",
        "lifecycle/manage",
        "a_volume_is_let_go_and_taken_over_with_its_data_and_its_snapshot",
    ),
    (
        "manage_existing_snapshot",
        "lifecycle/manage",
        "a_volume_is_let_go_and_taken_over_with_its_data_and_its_snapshot",
    ),
    ("get_manageable_volumes", "lifecycle/manage", "lists_say_what_may_be_managed_and_why_not"),
    ("get_manageable_snapshots", "lifecycle/manage", "lists_say_what_may_be_managed_and_why_not"),
    (
        "copy_volume_to_image",
        "images/upload",
        "what_a_volume_holds_becomes_an_image_in_the_format_that_was_asked_for",
    ),
    ("reimage", "images/from_image", "a_volume_is_reimaged"),
    ("accept_transfer", "db/requests", "a_transfer_is_accepted_for_any_volume_that_exists"),
    (
        "get_backup_device",
        "backup/life",
        "what_is_attached_and_mirrored_is_backed_up_as_it_is_and_a_snapshot_by_a_copy",
    ),
    ("secure_file_operations_enabled", "lifecycle/service", "calls_that_change_nothing_are_answered"),
    ("get_capabilities", "lifecycle/service", "capabilities_are_those_of_stock"),
    ("create_group", "lifecycle/groups", "a_group_lives_and_its_copies_outlive_it"),
    ("delete_group", "lifecycle/groups", "a_group_lives_and_its_copies_outlive_it"),
    ("update_group", "lifecycle/groups", "a_group_lives_and_its_copies_outlive_it"),
    ("create_group_from_src", "lifecycle/groups", "a_group_lives_and_its_copies_outlive_it"),
    ("create_group_snapshot", "lifecycle/groups", "a_group_lives_and_its_copies_outlive_it"),
    ("delete_group_snapshot", "lifecycle/groups", "a_group_lives_and_its_copies_outlive_it"),
    (
        "enable_replication",
        "replication/group",
        "a_group_of_both_modes_goes_to_b_and_back_without_the_rest_of_its_backend",
    ),
    (
        "disable_replication",
        "replication/group",
        "a_group_of_both_modes_goes_to_b_and_back_without_the_rest_of_its_backend",
    ),
    (
        "failover_replication",
        "replication/group",
        "a_group_of_both_modes_goes_to_b_and_back_without_the_rest_of_its_backend",
    ),
    (
        "list_replication_targets",
        "replication/group",
        "a_group_of_both_modes_goes_to_b_and_back_without_the_rest_of_its_backend",
    ),
    ("freeze_host", "lifecycle/service", "a_frozen_backend_gets_no_new_volumes_and_thaws"),
    ("thaw_host", "lifecycle/service", "a_frozen_backend_gets_no_new_volumes_and_thaws"),
    (
        "failover",
        "replication/planned",
        "volumes_of_both_modes_go_to_b_and_back_with_what_was_written_just_before_the_orders",
    ),
    ("failover_host", "rpc_wire", "a_failover_is_understood_by_both_names"),
    ("failover_completed", "db/standing", "a_member_that_cannot_follow_serves_nothing"),
    ("publish_service_capabilities", "lifecycle/service", "the_scheduler_knows_both_pools"),
    ("do_cleanup", "db/cleanup", "a_request_cleans_only_what_it_names"),
    ("set_log_levels", "lifecycle/service", "log_levels_are_set_and_read_through_the_api"),
    ("get_log_levels", "lifecycle/service", "log_levels_are_set_and_read_through_the_api"),
];

/// The same of cinder-backup's.
const BACKUP_TESTS: &[(&str, &str, &str)] = &[
    ("create_backup", "backup/life", "a_volume_comes_back_from_backups_of_ours"),
    ("continue_backup", "rpc_wire", "every_captured_request_is_decoded_and_survives_the_journal"),
    ("restore_backup", "backup/life", "a_volume_comes_back_from_backups_of_ours"),
    ("delete_backup", "backup/life", "a_volume_comes_back_from_backups_of_ours"),
    ("export_record", "backup/ours", "records_go_out_and_come_in_again_and_statuses_are_set"),
    ("import_record", "backup/ours", "records_go_out_and_come_in_again_and_statuses_are_set"),
    ("reset_status", "backup/ours", "records_go_out_and_come_in_again_and_statuses_are_set"),
    ("check_support_to_force_delete", "backup/ours", "a_backup_that_is_being_made_can_be_deleted_by_force"),
    (
        "publish_service_capabilities",
        "rpc_wire",
        "every_captured_request_is_decoded_and_survives_the_journal",
    ),
    ("set_log_levels", "backup/ours", "records_go_out_and_come_in_again_and_statuses_are_set"),
    ("get_log_levels", "backup/ours", "records_go_out_and_come_in_again_and_statuses_are_set"),
];

type Tests = [(&'static str, &'static str, &'static str)];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

const HEADS: &str =
    "| method | since | sent as | journalled | a test of it |\n| --- | --- | --- | --- | --- |\n";

fn page() -> String {
    let mut text = String::from(
        "# The methods of cinder-volume's RPC API 3.20\n\n\
         Made from the dispatch table by `tests/rpc_coverage.rs`: do not edit. All are served.\n\n",
    );
    list(&mut text, METHODS, TESTS);
    text.push_str("\n# The methods of cinder-backup's RPC API 2.4\n\nBy `scoria-backup`.\n\n");
    list(&mut text, BACKUP, BACKUP_TESTS);
    text
}

fn list(text: &mut String, methods: &[Spec], tests: &Tests) {
    text.push_str(HEADS);
    for method in methods {
        let (_, file, test) =
            tests.iter().find(|t| t.0 == method.name).unwrap_or_else(|| panic!("no test of {}", method.name));
        let sent = match method.kind {
            Kind::Call => "call",
            Kind::Cast => "cast",
            Kind::CallOrCast => "call or cast",
            Kind::Fanout => "fanout",
        };
        let journalled = match (method.journaled(), method.kind) {
            (true, _) => "yes",
            (false, Kind::CallOrCast) => "casts",
            (false, _) => "no",
        };
        let (major, minor) = method.since;
        writeln!(
            text,
            "| `{}` | {major}.{minor} | {sent} | {journalled} | `{file}`: `{test}` |",
            method.name
        )
        .unwrap();
    }
}

#[test]
fn every_method_is_listed_with_a_test_that_exists() {
    for (methods, tests) in [(METHODS, TESTS), (BACKUP, BACKUP_TESTS)] {
        all_are_there(methods, tests);
    }
    let (path, page) = (root().join("docs/rpc-coverage.md"), page());
    if std::env::var_os("SCORIA_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), page, "SCORIA_WRITE_DOCS=1 writes it anew");
}

fn all_are_there(methods: &[Spec], tests: &Tests) {
    for (method, file, test) in tests {
        assert_eq!(methods.iter().filter(|m| m.name == *method).count(), 1, "{method} is no method");
        assert_eq!(tests.iter().filter(|t| t.0 == *method).count(), 1, "{method} is listed twice");
        let path = root().join(format!("tests/{file}.rs"));
        let source = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(source.contains(&format!("fn {test}(")), "{method}: no test {test} in {}", path.display());
    }
}
