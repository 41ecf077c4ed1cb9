//! What is refused of schedules, reverts and moves, with its words, where no other test comes by.

use std::time::Duration;

use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{
    ImageCreate, ImageMoveBegin, ImageMoveState, ImageStat, MirrorEnable, MirrorSnapshot, SnapCreate,
};
use scoria::rbd::sim::{Fault, SimConfig, When};
use scoria::rbd::types::{Level, MirrorMode};
use scoria::site::daemon::{Action, DaemonOrder, Means};
use scoria::site::detective::WhichOrder;
use scoria::site::moving::MoveOrder;
use scoria::site::revert::RevertOrder;
use scoria::site::schedule::{ScheduleAct, ScheduleOrder};
use scoria::site::{Order, Register};
use serde_json::json;

use crate::mirror_daemons::Scene;

const POOL: &str = "volumes";

async fn image(scene: &Scene, name: &str) {
    let (pool, image) = (POOL.to_owned(), name.to_owned());
    let create = ImageCreate { pool, image, size: 8 << 20, order: 22, features: 61 };
    scene.sim.site("a").call(create).await.unwrap();
}

#[tokio::test]
async fn a_schedule_that_cannot_be_set_says_why() {
    let scene = Scene::new(SimConfig::default()).await;
    let order = |act, pool: Option<&str>, image: Option<&str>, text: Option<&str>| {
        Order::Schedule(ScheduleOrder {
            name: "a".into(),
            act,
            level: Level { pool: pool.map(str::to_owned), image: image.map(str::to_owned) },
            schedule: text.map(str::to_owned),
            recursive: false,
        })
    };
    let add = |pool, image, text| order(ScheduleAct::Add, pool, image, text);
    for (order, said) in [
        (add(Some("volumes/disk"), None, Some("5m")), "The names of pool and image are plain, without '/'"),
        (add(Some(POOL), Some(""), Some("5m")), "The names of pool and image are plain, without '/'"),
        (add(None, Some("disk"), Some("5m")), "Say in which pool the image is"),
        (add(Some(POOL), None, None), "Say which schedule, like 5m or 1h@00:30"),
        (add(Some(POOL), None, Some("5w")), "'5w' is no schedule of mirror snapshots: it must be like 5m"),
        (
            add(Some(POOL), Some("none"), Some("5m")),
            "image none of pool volumes is not there, or is not mirrored by snapshots",
        ),
        (order(ScheduleAct::Status, Some("none"), None, None), "is the pool there?"),
    ] {
        let refused = scene.run(order.clone()).await.unwrap_err();
        assert!(refused.contains(said), "{order:?}: {refused}");
    }
    for (kind, said) in [
        (RbdErrorKind::Busy, "The manager's module is not ready"),
        (RbdErrorKind::Permission, "it needs mgr 'profile rbd'"),
    ] {
        scene.sim.inject(Fault::on("LevelScheduleAdd").fails(When::Before, kind));
        let refused = scene.run(add(Some(POOL), None, Some("5m"))).await.unwrap_err();
        assert!(refused.contains(said), "{said}: {refused}");
    }
    let done = scene.run(add(Some(POOL), None, Some("5m"))).await.unwrap();
    assert_eq!(done["levels"][0]["schedules"], json!(["5m"]), "a minute later: {done}");
}

#[tokio::test]
async fn a_copy_is_not_reverted_and_a_primary_that_its_peer_follows_is() {
    let scene = Scene::new(SimConfig::default()).await;
    let files = scene.files("b", "cinder");
    let register = Register { name: "b".into(), files, pools: vec![], dry_run: false };
    scene.run(Order::Register(register)).await.unwrap();
    image(&scene, "disk").await;
    let a = scene.sim.site("a");
    let (pool, disk) = (POOL.to_owned(), "disk".to_owned());
    let enable = MirrorEnable { pool: pool.clone(), image: disk.clone(), mode: MirrorMode::Snapshot };
    a.call(enable).await.unwrap();
    a.call(SnapCreate { pool: pool.clone(), image: disk.clone(), snap: "s".into() }).await.unwrap();
    a.call(MirrorSnapshot { pool: pool.clone(), image: disk.clone() }).await.unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(120);
    while !scene.sim.image("b", POOL, "disk").is_some_and(|i| i.snaps.contains(&"s".to_owned())) {
        assert!(std::time::Instant::now() < end, "no copy: {}", scene.sim.log_text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let revert = |name: &str| {
        let (name, pool, image) = (name.to_owned(), POOL.to_owned(), "disk".to_owned());
        Order::Revert(RevertOrder { name, pool, image, snap: "s".into() })
    };
    // Each site's daemon has it open: that of b the primary and the copy.
    let daemon = scene.sim.watch("a", POOL, "disk").unwrap();
    scene.sim.watch("b", POOL, "disk").unwrap();
    let refused = scene.run(revert("b")).await.unwrap_err();
    assert!(
        refused.contains("volumes/disk is not primary here: it is a copy") && !refused.contains("close it"),
        "{refused}"
    );
    scene.run(revert("a")).await.unwrap();
    let user = scene.sim.watch("a", POOL, "disk").unwrap();
    let refused = scene.run(revert("a")).await.unwrap_err();
    assert!(refused.contains("close it first"), "{refused}");
    for address in [&daemon, &user] {
        scene.sim.release("a", POOL, "disk", address);
    }
}

#[tokio::test]
async fn a_move_that_somebody_else_has_begun_is_neither_finished_nor_taken_back() {
    let scene = Scene::new(SimConfig::default()).await;
    image(&scene, "disk").await;
    let a = scene.sim.site("a");
    let begin = ImageMoveBegin {
        pool: POOL.into(),
        image: "disk".into(),
        dest_pool: "volumes2".into(),
        dest: "other".into(),
    };
    a.call(begin).await.unwrap();
    let order = MoveOrder {
        name: "a".into(),
        pool: POOL.into(),
        image: "disk".into(),
        to: "volumes2".into(),
        undo: false,
        dry_run: false,
    };
    for (undo, dry_run) in [(false, false), (false, true), (true, false), (true, true)] {
        let order = MoveOrder { undo, dry_run, ..order.clone() };
        let refused = scene.run(Order::Move(order)).await.unwrap_err();
        assert!(
            refused.contains(
                "volumes/disk is being moved, and not to volumes2/disk: somebody else has begun that"
            ),
            "{undo} {dry_run}: {refused}"
        );
    }
    let there = ImageMoveState { pool: "volumes2".into(), image: "other".into() };
    assert!(a.call(there).await.unwrap().is_some(), "it is on its way as before");
    a.call(ImageStat { pool: "volumes2".into(), image: "other".into() }).await.unwrap();
}

#[tokio::test]
async fn files_that_lead_elsewhere_by_now_and_a_site_that_is_away_are_named() {
    let scene = Scene::new(SimConfig::default()).await;
    image(&scene, "disk").await;
    let which = || {
        let (what, site, pool) = ("disk".to_owned(), None, None);
        Order::Which(WhichOrder { what, site, pool })
    };
    let files = scene.files("b", "cinder");
    let register = Register { name: "b".into(), files, pools: vec![], dry_run: false };
    scene.run(Order::Register(register)).await.unwrap();
    scene.sim.inject(Fault::any().site("b").always().fails(When::Before, RbdErrorKind::Unreachable));
    let found = scene.run(which()).await.unwrap();
    assert_eq!(found["found"][0]["image"], "disk", "{found:#}");
    assert!(found.to_string().contains("b: "), "the one that does not answer is named: {found:#}");
    let (what, site, pool) = ("none".to_owned(), None, None);
    let none = Order::Which(WhichOrder { what, site, pool });
    let refused = scene.run(none).await.unwrap_err();
    assert!(
        refused.contains("No image has to do with") && refused.contains("not all sites answer: b"),
        "{refused}"
    );
    scene.sim.clear_faults();

    let order = DaemonOrder {
        name: "a".into(),
        action: Action::Start,
        by: Some(Means::Orchestrator),
        files: Some(scene.files("b", "admin")),
        placement: None,
        dry_run: false,
    };
    let refused = scene.run(Order::Daemon(order)).await.unwrap_err();
    assert!(
        refused.contains("b.conf leads to another cluster") && refused.contains("not to site a"),
        "{refused}"
    );
}
