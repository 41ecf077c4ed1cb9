//! What parting two sites costs volumes, and how it goes with a site that is dead.

use scoria::rbd::protocol::{ImageCreate, SnapCreate};
use scoria::rbd::sim::crash::explored;
use scoria::rbd::sim::{Health, SimConfig, When};
use scoria::rbd::types::MirrorMode;
use scoria::site::replicate::ReplicateOrder;
use scoria::site::{self, Connect, Disconnect, LinkMode, Order, Purge};
use serde_json::json;

use crate::link_scene::{POOL, Scene, bare, connect, disconnect, ordered, parted, strangers};
use crate::seed;

#[tokio::test]
async fn volumes_stop_being_replicated_and_their_copies_go_when_that_was_agreed() {
    let scene = Scene::of(bare()).await;
    scene.run(ordered(connect())).await.unwrap();
    scene.backend().await;
    let data = r#", replication_status='enabled', replication_driver_data='{"had_exclusive_lock":true,"had_journaling":false}'"#;
    let journaled = seed::volume(&scene.test, 1, "available", data).await;
    let by_snapshots = seed::volume(&scene.test, 2, "in-use", ", replication_status='enabled'").await;
    let plain = seed::volume(&scene.test, 3, "available", "").await;
    scene.image("a", "b", &format!("volume-{journaled}"), MirrorMode::Journal).await;
    scene.image("a", "b", &format!("volume-{by_snapshots}"), MirrorMode::Snapshot).await;
    scene.image("b", "a", "nobodys", MirrorMode::Journal).await;
    // A clone of a copy, as a backup makes it.
    let snap = SnapCreate { pool: POOL.into(), image: format!("volume-{journaled}"), snap: "s".into() };
    scene.sim.site("a").call(snap).await.unwrap();

    let refused = scene.run(parted(disconnect())).await.unwrap_err();
    for said in
        ["3 images of 24 MiB are mirrored", &journaled, "(8 MiB)", "backends work with both: node1@ceph"]
    {
        assert!(refused.contains(said), "{said}: {refused}");
    }
    scene.test.sql("UPDATE services SET active_backend_id='b'").await;
    let forced = Disconnect { force: true, ..disconnect() };
    let refused = scene.run(parted(forced.clone())).await.unwrap_err();
    assert!(refused.contains("Site b serves backends: node1@ceph"), "{refused}");
    scene.test.sql("UPDATE services SET active_backend_id=NULL").await;
    scene
        .test
        .sql(&format!(
            "INSERT INTO backups (id, volume_id, status, deleted) VALUES ('bk', '{journaled}', 'creating', 0)"
        ))
        .await;
    let refused = scene.run(parted(forced.clone())).await.unwrap_err();
    assert!(refused.contains("Backups of 1 volumes"), "{refused}");
    scene.test.sql("DELETE FROM backups").await;
    let of =
        |status: &str| format!("UPDATE volumes SET replication_status='{status}' WHERE id='{journaled}'");
    scene.test.sql(&of("disabling")).await;
    let refused = scene.run(parted(forced.clone())).await.unwrap_err();
    assert!(
        refused.contains(&format!(
            "The replication of 1 volumes ({journaled}) is being changed: wait for its end"
        )),
        "{refused}"
    );
    scene.test.sql(&of("enabled")).await;
    // From the other end a volume would be left with the copy alone.
    let other_way = Disconnect { a: "b".into(), b: "a".into(), ..forced.clone() };
    let refused = scene.run(parted(other_way)).await.unwrap_err();
    assert!(
        refused.contains("Site a serves backends") || refused.contains("are not primary on site b"),
        "{refused}"
    );

    let dry = scene.run(parted(Disconnect { dry_run: true, ..forced.clone() })).await.unwrap();
    assert_eq!(dry["shared"]["copies"].as_array().unwrap().len(), 2, "{dry:#}");
    assert_eq!(dry["shared"]["copies_bytes"], 16 << 20);
    let few = Purge { copies: 1, bytes: 1 << 30 };
    let refused = scene.run(parted(Disconnect { purge: Some(few), ..forced.clone() })).await.unwrap_err();
    assert!(refused.contains("There are 2 copies of 16 MiB by now"), "{refused}");
    let agreed = Purge { copies: 2, bytes: 16 << 20 };
    let answer = scene.run(parted(Disconnect { purge: Some(agreed), ..forced })).await.unwrap();
    assert_eq!(answer["removed"].as_array().unwrap().len(), 2, "{answer:#}");
    assert_eq!(scene.sim.images("b", POOL), ["nobodys"]);
    for id in [&journaled, &by_snapshots] {
        let row = scene
            .test
            .row(&format!("SELECT replication_status, COALESCE(replication_driver_data, '-') FROM volumes WHERE id='{id}'"))
            .await;
        assert_eq!(row, ["disabled", "-"], "{id}");
        let image = scene.sim.image("a", POOL, &format!("volume-{id}")).unwrap();
        assert_eq!(image.mirror, None);
    }
    let image = scene.sim.image("a", POOL, &format!("volume-{journaled}")).unwrap();
    assert_eq!(image.features & 4, 4, "the lock was there before");
    assert_eq!(image.features & 64, 0, "journaling was added, and is gone");
    let row = scene
        .test
        .row(&format!("SELECT COALESCE(replication_status, '-') FROM volumes WHERE id='{plain}'"))
        .await;
    assert_ne!(row, ["disabled"]);
    assert!(strangers(&scene) && scene.links().await.is_empty());
}

#[tokio::test]
async fn a_pool_is_parted_while_another_stays_and_the_user_goes_with_the_last() {
    for manual in [false, true] {
        let scene = Scene::of(bare()).await;
        let pools = vec![POOL.to_owned(), "others".to_owned()];
        scene.run(ordered(Connect { pools, manual, ..connect() })).await.unwrap();
        scene.image("a", "b", "kept", MirrorMode::Snapshot).await;
        // What is mirrored in the one does not stand in the way of the other.
        let one = Disconnect { pools: vec!["others".into()], ..disconnect() };
        let done = scene.run(parted(one.clone())).await.unwrap();
        let user = if manual { "client.scoria-link-" } else { "client.rbd-mirror-peer" };
        let left = done["left"].to_string();
        for site in ["a", "b"] {
            assert!(left.contains(user) && left.contains(&format!("of site {site} stays")), "{left}");
        }
        for site in ["a", "b"] {
            let allowed = if manual { vec![POOL.to_owned()] } else { vec![] };
            let users = scene.sim.link_users(site);
            assert_eq!(users.iter().map(|(_, pools)| pools).collect::<Vec<_>>(), [&allowed], "{site}");
        }
        assert_eq!(done["strangers"], json!(["a knows b by 1 other pools", "b knows a by 1 other pools"]));
        assert_eq!(scene.links().await.iter().map(|l| l[0].as_str()).collect::<Vec<_>>(), [POOL]);
        assert!(!scene.sim.is_stranger("a") && scene.sim.image("a", POOL, "kept").unwrap().mirror.is_some());
        let again = scene.run(parted(one)).await.unwrap_err();
        assert!(again.contains("Pool others does not connect a and b; these do: volumes"), "{again}");
        let done = scene.run(parted(Disconnect { force: true, ..disconnect() })).await.unwrap();
        assert!(!done["left"].to_string().contains("client."), "{done:#}");
        assert!(strangers(&scene) && scene.links().await.is_empty());
    }
}

#[tokio::test]
async fn a_dead_site_is_parted_from_the_living_one() {
    let scene = Scene::of(bare()).await;
    scene.run(ordered(connect())).await.unwrap();
    scene.image("a", "b", "x", MirrorMode::Snapshot).await;
    scene.sim.set_health("b", Health::Dead);
    let refused =
        scene.run(parted(Disconnect { a: "b".into(), b: "a".into(), ..disconnect() })).await.unwrap_err();
    assert!(refused.contains("Site b, which is to stay, does not answer"), "{refused}");
    let answer = scene.run(parted(Disconnect { force: true, ..disconnect() })).await.unwrap();
    assert_eq!(answer["alive"], false);
    assert!(answer["left"].to_string().contains("disconnect again when it is back"), "{answer:#}");
    assert!(scene.sim.is_stranger("a") && !scene.sim.is_stranger("b"));
    assert_eq!(scene.links().await[0][3], "disconnecting");
    scene.sim.set_health("b", Health::Alive);
    let refused = scene.run(ordered(connect())).await.unwrap_err();
    assert!(refused.contains("half disconnected"), "{refused}");
    scene.run(parted(Disconnect { force: true, ..disconnect() })).await.unwrap();
    assert!(strangers(&scene) && scene.links().await.is_empty());
}

#[tokio::test]
async fn a_daemon_that_was_cut_off_is_not_waited_for_when_its_site_is_back() {
    // Those of both sites hang in their connections for as long as anybody looks.
    let scene = Scene::of(SimConfig { daemon_lingers: true, ..bare() }).await;
    scene.run(ordered(connect())).await.unwrap();
    scene.image("a", "b", "x", MirrorMode::Snapshot).await;
    scene.sim.set_health("b", Health::Dead);
    scene.run(parted(Disconnect { force: true, ..disconnect() })).await.unwrap();
    scene.sim.set_health("b", Health::Alive);
    scene.sim.clear_log();
    let done = scene.run(parted(Disconnect { force: true, ..disconnect() })).await.unwrap();
    assert!(scene.links().await.is_empty(), "{done:#}");
    let looks = scene.sim.count("MirrorPoolView");
    assert!(looks < 30, "{looks} looks: one was waited for\n{}", scene.sim.log_text());
}

/// Connected in pool mode: `own` is journaled by its owner, `added` by Scoria.
async fn whole_pool() -> Scene {
    let scene = Scene::of(bare()).await;
    scene.run(ordered(Connect { mode: LinkMode::Pool, ..connect() })).await.unwrap();
    let a = scene.sim.site("a");
    for (image, features) in [("own", 61 | 64), ("added", 1)] {
        let image = image.to_owned();
        let made = ImageCreate { pool: POOL.into(), image, size: 8 << 20, order: 22, features };
        a.call(made).await.unwrap();
    }
    let order = ReplicateOrder {
        name: "a".into(),
        pool: POOL.into(),
        image: Some("added".into()),
        mode: MirrorMode::Journal,
        dry_run: false,
    };
    scene.run(Order::Replicate(order)).await.unwrap();
    for image in ["own", "added"] {
        assert_eq!(scene.sim.image("a", POOL, image).unwrap().features & 68, 68, "{image}");
    }
    scene
}

/// Each image has what its owner gave it, and nothing that was added.
async fn as_they_were(scene: &Scene, why: &str) {
    let features = |image: &str| scene.sim.image("a", POOL, image).unwrap().features;
    assert_eq!(features("own") & 68, 68, "{why}: journaling was its owner's\n{}", scene.sim.log_text());
    assert_eq!(features("added") & 68, 0, "{why}: both were added\n{}", scene.sim.log_text());
    for image in ["own", "added"] {
        assert_eq!(scene.sim.image("a", POOL, image).unwrap().mirror, None, "{why}");
        let marks = scoria::rbd::protocol::MetadataList { pool: POOL.into(), image: image.into() };
        assert_eq!(scene.sim.site("a").call(marks).await.unwrap(), [], "{why}: {image} is marked");
    }
    assert!(strangers(scene), "{why}");
}

#[tokio::test]
async fn the_end_of_pool_mode_takes_away_what_was_added_and_no_more() {
    let forced = || parted(Disconnect { force: true, ..disconnect() });
    let calls = {
        let scene = whole_pool().await;
        scene.sim.clear_log();
        scene.run(forced()).await.unwrap();
        as_they_were(&scene, "undisturbed").await;
        scene.sim.log().len()
    };
    let mut schedules = 0;
    for k in (1..=calls).step_by(if crate::stage::full() { 1 } else { 9 }) {
        let mut scene = whole_pool().await;
        let when = if k % 2 == 0 { When::Before } else { When::After };
        let ended = scene.killed(forced(), k, when).await;
        ended.unwrap_or_else(|e| panic!("killed at {k}: {e}\n{}", scene.sim.log_text()));
        as_they_were(&scene, &format!("killed at {k}")).await;
        schedules += 1;
    }
    explored(schedules);
}

#[tokio::test]
async fn two_orders_do_not_work_on_one_link() {
    let scene = Scene::of(bare()).await;
    scene.run(ordered(connect())).await.unwrap();
    let held = scene.order(ordered(Connect { canary: false, ..connect() })).await;
    scene.test.sql(&format!("UPDATE scoria_peer_links SET operation_id={}", held.id())).await;
    let refused = scene.run(parted(disconnect())).await.unwrap_err();
    assert!(refused.contains(&format!("Operation {} is working on links", held.id())), "{refused}");
    site::run(&scene.sites, &held).await;
    scene.run(parted(disconnect())).await.unwrap();
}
