//! Backups on the site that goes: what keeps two sites from being parted because of them, with its words.

use std::time::{Duration, Instant};

use scoria::site::{self, Delete, Disconnect, Order, Patience};
use serde_json::Value;

use crate::link_scene::{disconnect, parted};
use crate::parting_backups::{OPTIONS, World, deleting};
use crate::seed::{self, TYPE};

async fn connected(world: &World) {
    assert_eq!(world.scene.links().await[0][3], "connected", "nothing was parted");
}

async fn statuses(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for id in &world.backups {
        found.push(world.status(id).await);
    }
    found
}

#[tokio::test]
async fn a_chain_that_leads_back_to_itself_has_no_first_one_to_delete() {
    let world = World::new().await;
    let (one, two) = (&world.backups[0], &world.backups[1]);
    world.scene.test.sql(&format!("UPDATE backups SET parent_id='{two}' WHERE id='{one}'")).await;
    let refused = world.part(deleting()).await.unwrap_err();
    assert!(
        refused.contains("leads back to itself by parent_id")
            && refused.contains(one)
            && refused.contains(two)
            && !refused.contains(&world.backups[2]),
        "{refused}"
    );
    assert_eq!(statuses(&world).await, ["available"; 3], "none was deleted");
    connected(&world).await;
}

#[tokio::test]
async fn a_backup_that_changes_before_its_deletion_stops_it() {
    let world = World::new().await;
    // Somebody restores it in the instant between the look and the order.
    let id = &world.backups[1];
    world
        .scene
        .test
        .sql(&format!(
            "CREATE TRIGGER meanwhile BEFORE INSERT ON scoria_operation_steps FOR EACH ROW UPDATE backups SET \
             status = IF(NEW.step = 'deleting backups', 'restoring', status) WHERE id = '{id}'"
        ))
        .await;
    let refused = world.part(deleting()).await.unwrap_err();
    assert!(
        refused.contains(&format!("Backup {id} is not available any more, and was not deleted")),
        "{refused}"
    );
    world.scene.test.sql("DROP TRIGGER meanwhile").await;
    assert_eq!(statuses(&world).await, ["available", "restoring", "available"], "nor was any other");
    connected(&world).await;
    world.scene.test.sql(&format!("UPDATE backups SET status = 'available' WHERE id = '{id}'")).await;
    world.part(deleting()).await.unwrap();
    world.assert_gone("the second time").await;
}

#[tokio::test]
async fn a_backup_that_comes_while_others_are_deleted_stops_the_parting() {
    let world = World::new().await;
    let fsid = world.scene.fsid("b").await;
    let volume = seed::id(1, 2);
    world
        .scene
        .test
        .sql(&format!(
            "CREATE TRIGGER meanwhile BEFORE INSERT ON scoria_operation_steps FOR EACH ROW INSERT IGNORE INTO backups \
             (id, volume_id, status, size, container, service_metadata, deleted) SELECT 'late', '{volume}', 'available', 3, \
             'backups', '{{\"base\": \"x\", \"site\": \"{fsid}\"}}', 0 FROM DUAL WHERE NEW.step = 'deleting backups'"
        ))
        .await;
    let refused = world.part(deleting()).await.unwrap_err();
    assert!(
        refused
            .contains("1 backups of 3 GiB are stored on b: late (3 GiB). They are new; nothing was parted"),
        "{refused}"
    );
    world.scene.test.sql("DROP TRIGGER meanwhile").await;
    assert_eq!(statuses(&world).await, ["deleted"; 3]);
    connected(&world).await;
}

#[tokio::test]
async fn a_backup_service_that_stays_down_is_not_waited_for_without_end() {
    let mut world = World::new().await;
    world.scene.patient(Patience { silent: Duration::from_secs(1), ..Patience::default() });
    world.service.abort();
    let up = async |at: &str| {
        world.scene.test.sql(&format!("UPDATE services SET updated_at='{at}' WHERE host='node1'")).await;
    };
    let operation = world.scene.order(parted(deleting())).await;
    let goes_down = async {
        while world.status(&world.backups[1]).await != "deleting" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        up("2020-01-01").await;
    };
    tokio::join!(site::run(&world.scene.sites, &operation), goes_down);
    let refused = world.scene.ended(&operation).await.unwrap_err();
    assert!(
        refused.contains("2 backups are being deleted")
            && refused.contains("(node1) has been down for 1 s: it goes on when it is started"),
        "{refused}"
    );
    connected(&world).await;
    let refused = world.part(deleting()).await.unwrap_err();
    assert!(refused.contains("are being worked on") && refused.contains("(deleting)"), "{refused}");

    up("2100-01-01").await;
    world.restart().await;
    let end = Instant::now() + Duration::from_secs(120);
    while statuses(&world).await != ["available", "deleted", "deleted"] {
        assert!(Instant::now() < end, "{:?}", statuses(&world).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.part(deleting()).await.unwrap();
    world.assert_gone("when it was back").await;
}

/// One that has not said where it goes: by the backup that it continues, by the type, by the service.
#[tokio::test]
async fn a_backup_on_its_way_to_the_site_keeps_it() {
    let world = World::new().await;
    let scene = &world.scene;
    let refused = async || {
        let order = Disconnect { dry_run: true, flatten_backups: true, ..disconnect() };
        world.part(order).await.unwrap()["refused"].as_str().map(str::to_owned)
    };
    assert_eq!(refused().await, None);
    let volume = seed::id(1, 2);
    let rows = format!(
        "INSERT INTO services (host, `binary`, topic, report_count, disabled, uuid, deleted, updated_at)
           VALUES ('node3', 'cinder-backup', 'cinder-backup', 0, 0, '{}', 0, '2100-01-01');
         INSERT INTO backups (id, volume_id, host, status, deleted) VALUES ('new', '{volume}', 'node1', 'creating', 0)",
        seed::id(9, 8)
    );
    scene.test.sql(&rows).await;
    assert_eq!(refused().await, None, "nobody knows the service's option");
    let arrives = |said: Option<String>| said.is_some_and(|said| said.contains("new (creating)"));
    for options in [OPTIONS, ""] {
        // By the option, and by `backup_ceph_conf`, which leads there, too.
        world.writes_down(options).await;
        let uses = scene.test.rows("SELECT site FROM scoria_site_uses WHERE backend='node1#backup'").await;
        let named = if options.is_empty() { "backup_ceph_conf" } else { "backup_site" };
        assert_eq!(uses, [[named]]);
        for (change, comes) in [("host='node1'", true), ("host=NULL", true), ("host='node3'", false)] {
            scene.test.sql(&format!("UPDATE backups SET {change} WHERE id='new'")).await;
            assert_eq!(arrives(refused().await), comes, "{options}: {change}");
        }
    }
    // One that continues a backup on the cluster of `backup_ceph_conf` stays there, whatever the option says.
    let third = &world.backups[2];
    scene.test.sql(&format!("UPDATE backups SET host='node1', parent_id='{third}' WHERE id='new'")).await;
    assert!(arrives(refused().await), "the rows say that it leads to b");
    world.writes_down(OPTIONS).await;
    assert!(!arrives(refused().await), "nobody knows where it leads");
    scene.test.sql("UPDATE backups SET parent_id=NULL WHERE id='new'").await;
    let typed = |site: &str| {
        format!(
            "DELETE FROM volume_type_extra_specs WHERE `key`='backup:site';
             INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
               VALUES ('{TYPE}', 'backup:site', '{site}', 0)"
        )
    };
    scene.test.sql("UPDATE backups SET host='node1' WHERE id='new'").await;
    scene.test.sql(&typed("a")).await;
    assert!(!arrives(refused().await), "the type comes before the option");
    scene.test.sql(&typed("b")).await;
    assert!(arrives(refused().await));
    scene.test.sql(&typed("a")).await;
    let chained = format!("UPDATE backups SET parent_id='{}' WHERE id='new'", world.backups[1]);
    scene.test.sql(&chained).await;
    assert!(arrives(refused().await), "a chain stays where it is, whatever the type says by now");
    scene.test.sql("UPDATE backups SET container='elsewhere' WHERE id='new'").await;
    let order = Disconnect {
        dry_run: true,
        flatten_backups: true,
        pools: vec![crate::link_scene::POOL.into()],
        ..disconnect()
    };
    assert_eq!(world.part(order).await.unwrap()["refused"], Value::Null, "that pool stays connected");
}

#[tokio::test]
async fn a_site_where_backups_go_is_in_use() {
    let world = World::new().await;
    world.writes_down(OPTIONS).await;
    world.part(Disconnect { flatten_backups: true, ..disconnect() }).await.unwrap();
    let test = &world.scene.test;
    test.sql("UPDATE backups SET deleted=1, status='deleted'").await;
    let delete = || Order::Delete(Delete { name: "b".into(), dry_run: false });
    let refused = world.scene.run(delete()).await.unwrap_err();
    assert!(refused.contains("Site b is in use by: node1#backup (as backup_site)"), "{refused}");
    test.sql("UPDATE services SET deleted=1 WHERE `binary`='cinder-backup'").await;
    world.scene.run(delete()).await.unwrap();
}
