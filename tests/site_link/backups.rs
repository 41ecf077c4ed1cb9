//! Backups on the site that goes, which scoria-backup has made there by its option.

use serde_json::json;

use crate::common::wait_until;
use crate::scene::Bare;

const VOLUME: &str = "457eb676-33da-42ec-9a8c-9293d545c337";

/// scoria-backup, whose backups go to site rome.
struct Service<'a>(&'a Bare);

impl Service<'_> {
    fn of(lab: &Bare) -> Service<'_> {
        let conf = lab.root.join("conf/backups-to-rome.conf");
        std::fs::write(&conf, "[DEFAULT]\nbackup_site = rome\nbackup_ceph_pool = backups\n").unwrap();
        lab.tool(&["start", "scoria-backup", "--", "--config-file", conf.to_str().unwrap()]);
        Service(lab)
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        crate::common::tool_at(&self.0.root, &["stop", "scoria-backup"], &[]);
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_chain_on_the_site_that_goes_is_deleted_by_its_service_though_ours_is_killed() {
    let lab = Bare::get();
    lab.start(&[]);
    lab.register("admin");
    lab.tool(&["start", "rbd-mirror-a", "rbd-mirror-b"]);
    lab.good(&["site", "connect", "paris", "rome", "--pool", "volumes", "--create-pools"]);
    lab.tool(&["ceph", "b", "osd", "pool", "create", "backups"]);
    lab.rbd("b", &["pool", "init", "backups"]);
    let image = format!("volume-{VOLUME}");
    lab.rbd("a", &["create", &format!("volumes/{image}"), "--size", "1G"]);
    let write = |seed: u64, offset: u64| {
        lab.ceph
            .call("write", json!({"site": "a", "image": image, "seed": seed, "offset": offset}))
            .unwrap_or_else(|e| panic!("{e}"));
    };
    write(1, 0);
    lab.sql(
        "INSERT INTO volumes (id, size, status, attach_status, host, project_id, user_id, display_name, \
         availability_zone, bootable, multiattach, created_at, deleted, volume_type_id, use_quota) \
         VALUES (%s, 1, 'available', 'detached', 'lab@ceph#ceph', 'p', 'u', 'v', 'nova', 0, 0, UTC_TIMESTAMP(), 0, \
         (SELECT id FROM volume_types LIMIT 1), 0)",
        &[json!(VOLUME)],
    );
    let service = Service::of(&lab);
    wait_until("it has written down where backups go", 120, || {
        let uses = lab.rows("SELECT site FROM scoria_site_uses WHERE backend = 'lab#backup'", &[]);
        uses.first().is_some_and(|row| row["site"] == "backup_site")
    });
    lab.good(&["backup", "create", VOLUME]);
    write(2, 8 << 20);
    lab.good(&["backup", "create", VOLUME, "--incremental"]);
    assert_eq!(lab.images("b", "backups").len(), 1, "one base has both");

    let part = ["site", "disconnect", "paris", "rome", "--yes"];
    let said = lab.refused(&part);
    assert!(said.contains("2 backups of 2 GiB are stored on rome"), "{said}");
    // One that has not begun yet is headed there by the option alone.
    lab.sql(
        "INSERT INTO backups (id, volume_id, host, status, deleted) VALUES ('new', %s, 'lab', 'creating', 0)",
        &[json!(VOLUME)],
    );
    let said = lab.refused(&[&part[..], &["--flatten-backups"]].concat());
    assert!(said.contains("new (creating)"), "{said}");
    lab.sql("DELETE FROM backups WHERE id = 'new'", &[]);

    lab.start_to_die_at("link:backups-asked");
    let ordered = lab.manage(&[&part[..], &["--delete-backups", "--no-wait"]].concat());
    assert!(ordered.status.success(), "{}", String::from_utf8_lossy(&ordered.stderr));
    lab.wait_dead("link:backups-asked");
    lab.start(&[]);
    let last = || {
        let query = "SELECT outcome, outcome_detail FROM scoria_operations WHERE method = 'scoria.site.disconnect' \
                     ORDER BY id DESC LIMIT 1";
        lab.rows(query, &[]).remove(0)
    };
    wait_until("the next service finishes it", 180, || last()["outcome"].is_string());
    assert_eq!(last()["outcome"], "succeeded", "{}", last());
    let rows = lab.rows("SELECT status, deleted FROM backups", &[]);
    assert!(rows.len() == 2 && rows.iter().all(|row| row["status"] == "deleted"), "{rows:?}");
    assert_eq!(lab.images("b", "backups"), Vec::<String>::new());
    let objects = lab.tool(&["rados", "b", "-p", "backups", "ls"]);
    assert!(!objects.lines().any(|name| name.starts_with("backup.")), "{objects}");
    assert_eq!(lab.rbd("a", &["snap", "ls", &format!("volumes/{image}")]).trim(), "");
    lab.assert_strangers();
    let said = lab.refused(&["site", "delete", "rome", "--yes"]);
    assert!(said.contains("Site rome is in use by: lab#backup (as backup_site)"), "{said}");
    drop(service);
}
