//! The same life by the `cinder` command, as an operator types it.

use crate::common::{Lab, wait_until};

/// The value of a row of cinder's tables.
fn field(table: &str, name: &str) -> String {
    let row = table.lines().find_map(|line| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        (cells.next() == Some(name)).then(|| cells.next().unwrap_or_default().to_owned())
    });
    row.unwrap_or_else(|| panic!("no {name} in:\n{table}"))
}

#[test]
fn the_cinder_command_works() {
    let lab = Lab::get();
    let cinder = |args: &[&str]| lab.tool(&[&["cinder"], args].concat());
    let id = field(&cinder(&["create", "--name", "by-hand", "--volume-type", "replicated", "1"]), "id");
    wait_until("available", 60, || field(&cinder(&["show", &id]), "status") == "available");
    assert_eq!(field(&cinder(&["show", &id]), "replication_status"), "enabled");
    let snapshot = field(&cinder(&["snapshot-create", "--name", "of-it", &id]), "id");
    wait_until("snapshot", 60, || field(&cinder(&["snapshot-show", &snapshot]), "status") == "available");
    cinder(&["snapshot-delete", &snapshot]);
    wait_until("no snapshot", 60, || !lab.try_tool(&["cinder", "snapshot-show", &snapshot]).status.success());
    cinder(&["extend", &id, "2"]);
    wait_until("2 GiB", 60, || field(&cinder(&["show", &id]), "size") == "2");
    lab.wait_status(&id, "available");
    assert!(cinder(&["service-list", "--withreplication"]).contains("lab@ceph"));
    cinder(&["delete", &id]);
    wait_until("deleted", 60, || !lab.try_tool(&["cinder", "show", &id]).status.success());
}
