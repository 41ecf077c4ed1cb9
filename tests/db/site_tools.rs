//! Tools for images over the simulator: schedules, replication of what Cinder does not know, whose an image is, and
//! halves of images.

use std::time::Duration;

use scoria::rbd::protocol::{
    ImageClone, ImageCreate, ImageRead, ImageWrite, MirrorInfo, SnapCreate, SnapProtect,
};
use scoria::rbd::sim::{Health, PoolSpec, SimConfig, SiteSpec, When};
use scoria::rbd::types::{Level, MirrorMode, MirrorState};
use scoria::site::detective::{HalfOrder, WhichOrder};
use scoria::site::replicate::ReplicateOrder;
use scoria::site::revert::RevertOrder;
use scoria::site::schedule::{ScheduleAct, ScheduleOrder};
use scoria::site::switch::SwitchOrder;
use scoria::site::{self, Order, Patience};
use serde_json::{Value, json};

use crate::mirror_daemons::Scene;
use crate::seed;
use crate::stage::full;

const FEATURES: u64 = 61;

async fn image(scene: &Scene, site: &str, pool: &str, image: &str) {
    let (pool, image) = (pool.to_owned(), image.to_owned());
    let create = ImageCreate { pool, image, size: 64 << 20, order: 22, features: FEATURES };
    scene.sim.site(site).call(create).await.unwrap();
}

async fn mirrored(scene: &Scene, name: &str) -> bool {
    let info = MirrorInfo { pool: "volumes".into(), image: name.into() };
    scene.sim.site("a").call(info).await.unwrap().state == MirrorState::Enabled
}

fn replicate(image: Option<&str>) -> ReplicateOrder {
    ReplicateOrder {
        name: "a".into(),
        pool: "volumes".into(),
        image: image.map(str::to_owned),
        mode: MirrorMode::Journal,
        dry_run: false,
    }
}

/// The fate of each image, in the order in which they were taken.
fn fates(answer: &Value) -> Vec<(String, String)> {
    let all = answer["images"].as_array().unwrap().iter();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    all.map(|i| (text(&i["image"]), text(&i["fate"]["step"]))).collect()
}

#[tokio::test]
async fn images_that_cinder_does_not_know_are_replicated_parents_first() {
    let scene = Scene::new(SimConfig::default()).await;
    let volume = seed::volume(&scene.test, 1, "available", "").await;
    let of_cinder = format!("volume-{}", volume);
    for name in [of_cinder.as_str(), "z-parent", "disk"] {
        image(&scene, "a", "volumes", name).await;
    }
    let a = scene.sim.site("a");
    let (pool, parent, snap) = ("volumes".to_owned(), "z-parent".to_owned(), "s".to_owned());
    a.call(SnapCreate { pool: pool.clone(), image: parent.clone(), snap: snap.clone() }).await.unwrap();
    a.call(SnapProtect { pool: pool.clone(), image: parent.clone(), snap: snap.clone() }).await.unwrap();
    let (dest_pool, dest) = (pool.clone(), "clone".to_owned());
    let clone = ImageClone { pool, image: parent, snap, dest_pool, dest, features: FEATURES, order: 22 };
    a.call(clone).await.unwrap();

    let refused = scene.run(Order::Replicate(replicate(Some(&of_cinder)))).await.unwrap_err();
    assert!(refused.contains("cinder retype") && refused.contains(&volume), "{refused}");
    assert!(!mirrored(&scene, &of_cinder).await);
    let dry = ReplicateOrder { dry_run: true, ..replicate(None) };
    let would = scene.run(Order::Replicate(dry)).await.unwrap();
    let named = |name: &str, step: &str| (name.to_owned(), step.to_owned());
    assert_eq!(
        fates(&would),
        [
            named("disk", "pending"),
            named(&of_cinder, "skipped"),
            named("z-parent", "pending"),
            named("clone", "pending")
        ]
    );
    assert!(!mirrored(&scene, "disk").await, "nothing was done");

    let one = scene.run(Order::Replicate(replicate(Some("disk")))).await.unwrap();
    assert_eq!((fates(&one), &one["to"]), (vec![named("disk", "replaying")], &json!(["b"])));
    let all = scene.run(Order::Replicate(replicate(None))).await.unwrap();
    assert_eq!(fates(&all).into_iter().filter(|(_, step)| step == "replaying").count(), 3, "{all}");
    assert!(mirrored(&scene, "clone").await && !mirrored(&scene, &of_cinder).await);
    // From the other side they are copies.
    let files = scene.files("b", "cinder");
    let register = site::Register { name: "b".into(), files, pools: vec![], dry_run: false };
    scene.run(Order::Register(register)).await.unwrap();
    let back =
        scene.run(Order::Replicate(ReplicateOrder { name: "b".into(), ..replicate(None) })).await.unwrap();
    assert!(fates(&back).iter().all(|(_, step)| step == "skipped"), "{back}");
}

#[tokio::test]
async fn a_pool_that_cannot_be_mirrored_says_why() {
    let lonely = PoolSpec { name: "lonely".into(), mirrored: true, peers: false };
    let pools = vec![PoolSpec::mirrored("volumes"), PoolSpec::plain("plain"), lonely];
    let sites = ["a", "b"].map(|name| SiteSpec { name: name.into(), aliases: vec![], pools: pools.clone() });
    let scene = Scene::new(SimConfig { sites: sites.to_vec(), ..SimConfig::default() }).await;
    for (pool, said) in
        [("plain", "Mirroring of pool plain is off"), ("lonely", "has no peer"), ("none", "it has: ")]
    {
        let order = ReplicateOrder { pool: pool.into(), ..replicate(None) };
        let refused = scene.run(Order::Replicate(order)).await.unwrap_err();
        assert!(refused.contains(said), "{pool}: {refused}");
    }
    let refused = scene.run(Order::Replicate(replicate(Some("nothing")))).await.unwrap_err();
    assert!(refused.contains("nothing: there is no such image"), "{refused}");
}

#[tokio::test]
async fn a_replication_survives_a_kill_at_every_call() {
    let calls = {
        let scene = Scene::new(SimConfig::default()).await;
        image(&scene, "a", "volumes", "disk").await;
        scene.sim.clear_log();
        scene.run(Order::Replicate(replicate(None))).await.unwrap();
        scene.sim.log().len()
    };
    // Following asks again and again: the first few looks tell as much as the last.
    for k in (1..=calls.min(9)).step_by(if full() { 1 } else { 3 }) {
        let mut scene = Scene::new(SimConfig::default()).await;
        image(&scene, "a", "volumes", "disk").await;
        scene.sim.clear_log();
        let operation = scene.order(Order::Replicate(replicate(None))).await;
        scene.sim.kill_at(k, if k % 2 == 0 { When::Before } else { When::After });
        tokio::select! {
            biased;
            () = scene.sim.crashed() => {}
            () = site::run(&scene.sites, &operation) => panic!("it was not killed at call {k}"),
        }
        scene.restart();
        let operation = scene.adopt().await;
        site::run(&scene.sites, &operation).await;
        let answer = scene.ended(&operation).await.unwrap();
        assert_eq!(fates(&answer), [("disk".to_owned(), "replaying".to_owned())], "killed at call {k}");
    }
}

fn schedule(act: ScheduleAct, pool: Option<&str>, image: Option<&str>, text: Option<&str>) -> Order {
    Order::Schedule(ScheduleOrder {
        name: "a".into(),
        act,
        level: Level { pool: pool.map(str::to_owned), image: image.map(str::to_owned) },
        schedule: text.map(str::to_owned),
        recursive: matches!(act, ScheduleAct::Status),
    })
}

#[tokio::test]
async fn schedules_are_set_and_taken_back_at_each_level() {
    let scene = Scene::new(SimConfig::default()).await;
    for name in ["disk", "journaled"] {
        image(&scene, "a", "volumes", name).await;
    }
    let by_snapshots = ReplicateOrder { mode: MirrorMode::Snapshot, ..replicate(Some("disk")) };
    scene.run(Order::Replicate(by_snapshots)).await.unwrap();
    let mut levels = Vec::new();
    for (pool, image, text) in [
        (None, None, "1d"),
        (Some("volumes"), None, "60m"),
        (Some("volumes"), Some("disk"), "5m@00:30"),
        (Some("volumes"), Some("disk"), "5m@00:30"),
    ] {
        let added = scene.run(schedule(ScheduleAct::Add, pool, image, Some(text))).await.unwrap();
        levels.push(added["levels"][0]["schedules"].clone());
    }
    assert_eq!(levels, [json!(["1d"]), json!(["1h"]), json!(["5m@00:30"]), json!(["5m@00:30"])]);
    let Order::Schedule(mut all) = schedule(ScheduleAct::List, None, None, None) else { unreachable!() };
    let own = scene.run(Order::Schedule(all.clone())).await.unwrap();
    assert_eq!(own["levels"].as_array().unwrap().len(), 1, "{own}");
    all.recursive = true;
    let below = scene.run(Order::Schedule(all)).await.unwrap();
    let kinds: Vec<&str> =
        below["levels"].as_array().unwrap().iter().map(|l| l["level"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["global", "pool", "image"]);
    let due = scene.run(schedule(ScheduleAct::Status, Some("volumes"), None, None)).await.unwrap();
    assert_eq!(due["due"][0]["image"], "volumes/disk", "{due}");

    let refused = scene
        .run(schedule(ScheduleAct::Add, Some("volumes"), Some("journaled"), Some("5m")))
        .await
        .unwrap_err();
    assert!(refused.contains("not mirrored by snapshots"), "{refused}");
    let refused = scene.run(schedule(ScheduleAct::Add, Some("none"), None, Some("5m"))).await.unwrap_err();
    assert!(refused.contains("is the pool there?"), "{refused}");
    for (pool, image, text) in
        [(Some("volumes"), Some("disk"), Some("5m@00:30")), (Some("volumes"), None, None), (None, None, None)]
    {
        let removed = scene.run(schedule(ScheduleAct::Remove, pool, image, text)).await.unwrap();
        assert_eq!(removed["levels"], json!([]), "{removed}");
    }
}

async fn which(scene: &Scene, what: &str) -> Result<Value, String> {
    scene.run(Order::Which(WhichOrder { what: what.into(), site: None, pool: None })).await
}

#[tokio::test]
async fn an_object_leads_to_its_volume_and_servers() {
    let scene = Scene::new(SimConfig::default()).await;
    let volume = seed::volume(&scene.test, 1, "in-use", ", display_name='data'").await;
    let name = format!("volume-{}", volume);
    image(&scene, "a", "volumes", &name).await;
    image(&scene, "a", "backups", "stranger").await;
    scene
        .test
        .sql(&format!(
            "INSERT INTO volume_attachment (id, volume_id, instance_uuid, attached_host, mountpoint, attach_status, deleted)
             VALUES ('a-1', '{}', 's-1', 'node1', '/dev/vdb', 'attached', 0)",
            volume
        ))
        .await;
    let stat = scoria::rbd::protocol::ImageStat { pool: "volumes".into(), image: name.clone() };
    let id = scene.sim.site("a").call(stat).await.unwrap().id;
    let objects = [
        format!("rbd_data.{id}.0000000000000002"),
        format!("rbd_data.7.{id}"),
        format!("rbd_header.{id}"),
        id.clone(),
        name.clone(),
        format!("volumes/{name}"),
        volume.clone(),
    ];
    for what in &objects {
        let answer = which(&scene, what).await.unwrap();
        let found = &answer["found"][0];
        assert_eq!((&found["image"], &found["pool"]), (&json!(name), &json!("volumes")), "{what}: {answer}");
        assert_eq!(
            (&found["volume"]["id"], &found["volume"]["name"]),
            (&json!(volume), &json!("data")),
            "{what}"
        );
        assert_eq!(found["volume"]["attachments"][0]["server"], "s-1", "{what}");
    }
    let bytes = &which(&scene, &objects[0]).await.unwrap()["found"][0]["about"]["bytes"];
    assert_eq!(*bytes, json!([8 << 20, 12 << 20]));
    let stranger = which(&scene, "stranger").await.unwrap();
    assert_eq!(
        (&stranger["found"][0]["pool"], &stranger["found"][0]["volume"]),
        (&json!("backups"), &Value::Null)
    );
    let nobody = which(&scene, "rbd_header.ffff").await.unwrap_err();
    assert!(nobody.contains("No image has to do with"), "{nobody}");
    // One that was deleted and waits in the trash.
    let trash = scoria::rbd::protocol::TrashMove { pool: "volumes".into(), image: name.clone(), delay: 0 };
    scene.sim.site("a").call(trash).await.unwrap();
    let answer = which(&scene, &format!("rbd_header.{id}")).await.unwrap();
    assert_eq!(answer["found"][0]["trash"], true, "{answer}");
}

#[tokio::test]
async fn halves_of_images_are_found_and_finished_but_not_those_of_volumes() {
    let mut scene = Scene::new(SimConfig::default()).await;
    scene.patient(Patience { settled: Duration::from_millis(10), ..Patience::default() });
    let volume = seed::volume(&scene.test, 1, "available", "").await;
    let of_cinder = format!("volume-{}", volume);
    image(&scene, "a", "volumes", "whole").await;
    for name in [of_cinder.as_str(), "half"] {
        // The client dies in the midst of making it.
        scene.sim.kill_at(1, When::Midway);
        let making = image(&scene, "a", "volumes", name);
        tokio::select! {
            biased;
            () = scene.sim.crashed() => {}
            () = making => panic!("it was not killed"),
        }
        scene.sim.restart();
    }
    let order = |finish| Order::Half(HalfOrder { name: "a".into(), pool: "volumes".into(), finish });
    let found = scene.run(order(false)).await.unwrap();
    let names = |answer: &Value| -> Vec<(String, String)> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        answer["images"].as_array().unwrap().iter().map(|i| (text(&i["image"]), text(&i["fate"]))).collect()
    };
    let named = |name: &str, fate: &str| (name.to_owned(), fate.to_owned());
    assert_eq!(names(&found), [named("half", "found"), named(&of_cinder, "kept")]);
    assert!(found["images"][1]["advice"].as_str().unwrap().contains("has lost its image"), "{found}");
    let done = scene.run(order(true)).await.unwrap();
    assert_eq!(names(&done), [named("half", "removed"), named(&of_cinder, "kept")]);
    let again = scene.run(order(true)).await.unwrap();
    assert_eq!(names(&again), [named(&of_cinder, "kept")]);
    let refused = scene
        .run(Order::Half(HalfOrder { name: "a".into(), pool: "none".into(), finish: false }))
        .await
        .unwrap_err();
    assert!(refused.contains("There is no pool none"), "{refused}");
}

fn switch(name: &str, image: Option<&str>) -> SwitchOrder {
    SwitchOrder {
        name: name.into(),
        pool: Some("volumes".into()),
        image: image.map(str::to_owned),
        unplanned: false,
        dry_run: false,
    }
}

/// Both sites are registered, and images of `a` are mirrored.
async fn pairs(names: &[&str]) -> Scene {
    let scene = Scene::new(SimConfig::default()).await;
    let register =
        site::Register { name: "b".into(), files: scene.files("b", "cinder"), pools: vec![], dry_run: false };
    scene.run(Order::Register(register)).await.unwrap();
    for name in names {
        image(&scene, "a", "volumes", name).await;
    }
    scene.run(Order::Replicate(replicate(None))).await.unwrap();
    scene
}

/// On which sites an image is primary.
async fn primary(scene: &Scene, name: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    for site in ["a", "b"] {
        let info = MirrorInfo { pool: "volumes".into(), image: name.into() };
        if scene.sim.site(site).call(info).await.is_ok_and(|info| info.primary) {
            found.push(site);
        }
    }
    found
}

#[tokio::test]
async fn roles_change_when_both_sides_agree() {
    let scene = pairs(&["one", "two"]).await;
    let volume = seed::volume(&scene.test, 1, "available", "").await;
    let of_cinder = format!("volume-{volume}");
    image(&scene, "a", "volumes", &of_cinder).await;
    let refused = scene.run(Order::Switch(switch("b", Some(&of_cinder)))).await.unwrap_err();
    assert!(refused.contains("replication failover --backend"), "{refused}");
    let dry = SwitchOrder { dry_run: true, ..switch("b", None) };
    let would = scene.run(Order::Switch(dry)).await.unwrap();
    assert_eq!(would["images"][0]["fate"], json!({"step": "planned", "way": "hand-over"}), "{would}");
    assert_eq!(primary(&scene, "one").await, ["a"]);

    let moved = scene.run(Order::Switch(switch("b", Some("one")))).await.unwrap();
    assert_eq!(moved["images"][0]["fate"], json!({"step": "moved", "forced": false}), "{moved}");
    assert_eq!((primary(&scene, "one").await, primary(&scene, "two").await), (vec!["b"], vec!["a"]));
    let all = SwitchOrder { pool: None, ..switch("b", None) };
    let rest = scene.run(Order::Switch(all)).await.unwrap();
    assert_eq!(rest["images"][0]["fate"]["step"], "already", "{rest}");
    assert_eq!(primary(&scene, "two").await, ["b"]);
    let missing = scene.run(Order::Switch(switch("b", Some("none")))).await.unwrap_err();
    assert!(missing.contains("there is no such image"), "{missing}");
}

#[tokio::test]
async fn a_dead_side_is_overruled_by_order_only_and_two_primaries_by_nobody() {
    let scene = pairs(&["disk"]).await;
    scene.sim.set_health("a", Health::Dead);
    let refused = scene.run(Order::Switch(switch("b", Some("disk")))).await.unwrap_err();
    assert!(refused.contains("--unplanned"), "{refused}");
    let order = SwitchOrder { unplanned: true, ..switch("b", Some("disk")) };
    let forced = scene.run(Order::Switch(order.clone())).await.unwrap();
    assert_eq!(forced["images"][0]["fate"], json!({"step": "moved", "forced": true}), "{forced}");
    scene.sim.set_health("a", Health::Alive);
    assert_eq!(primary(&scene, "disk").await, ["a", "b"]);
    for name in ["a", "b"] {
        let order = SwitchOrder { name: name.into(), ..order.clone() };
        let split = scene.run(Order::Switch(order)).await.unwrap_err();
        assert!(split.contains("primary on both sides") && split.contains("resync"), "{split}");
    }
}

/// Killed at every call, the switch is finished, and the image is primary on one side, the one that was named.
#[tokio::test]
async fn a_switch_survives_a_kill_at_every_call() {
    let mut scene = pairs(&["disk"]).await;
    let (mut here, mut there) = ("b", "a");
    scene.sim.clear_log();
    scene.run(Order::Switch(switch(here, None))).await.unwrap();
    let calls = scene.sim.log().iter().filter(|call| call.request != "MirrorPromote").count() + 1;
    for k in (1..=calls).step_by(if full() { 1 } else { 3 }) {
        std::mem::swap(&mut here, &mut there);
        // The copy must replay first.
        for _ in 0..100 {
            let dry = SwitchOrder { dry_run: true, ..switch(here, None) };
            if scene.run(Order::Switch(dry)).await.unwrap()["images"][0]["fate"]["step"] == "planned" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let operation = scene.order(Order::Switch(switch(here, None))).await;
        scene.sim.kill_at(k, if k % 2 == 0 { When::Before } else { When::After });
        tokio::select! {
            biased;
            () = scene.sim.crashed() => {
                scene.restart();
                let operation = scene.adopt().await;
                site::run(&scene.sites, &operation).await;
                scene.ended(&operation).await.unwrap();
            }
            () = site::run(&scene.sites, &operation) => {
                scene.sim.restart();
                scene.ended(&operation).await.unwrap();
            }
        }
        assert_eq!(primary(&scene, "disk").await, [here], "killed at call {k}: {}", scene.sim.log_text());
    }
}

#[tokio::test]
async fn only_what_has_changed_is_written_back() {
    let scene = Scene::new(SimConfig::default()).await;
    let volume = seed::volume(&scene.test, 1, "available", "").await;
    image(&scene, "a", "volumes", "disk").await;
    let a = scene.sim.site("a");
    let write = async |offset: u64, byte: u8| {
        let write =
            ImageWrite { pool: "volumes".into(), image: "disk".into(), offset, data: vec![byte; 4096] };
        a.call(write).await.unwrap();
    };
    let read = async |offset: u64| {
        let (pool, image) = ("volumes".to_owned(), "disk".to_owned());
        a.call(ImageRead { pool, image, snap: None, offset, length: 1 }).await.unwrap()[0]
    };
    write(0, 1).await;
    write(1 << 20, 1).await;
    a.call(SnapCreate { pool: "volumes".into(), image: "disk".into(), snap: "s".into() }).await.unwrap();
    write(1 << 20, 2).await;
    write(2 << 20, 3).await;
    let order = |image: &str, snap: &str| {
        let (name, pool) = ("a".to_owned(), "volumes".to_owned());
        Order::Revert(RevertOrder { name, pool, image: image.to_owned(), snap: snap.to_owned() })
    };
    // An order that nobody has had before is refused at once.
    let watcher = scene.sim.watch("a", "volumes", "disk").unwrap();
    let refused = scene.run(order("disk", "s")).await.unwrap_err();
    assert!(refused.contains("close it first"), "{refused}");
    scene.sim.release("a", "volumes", "disk", &watcher);
    let done = scene.run(order("disk", "s")).await.unwrap();
    assert_eq!(done["bytes"], json!(2 * 4096), "{done}");
    assert_eq!((read(0).await, read(1 << 20).await, read(2 << 20).await), (1, 1, 0));
    let again = scene.run(order("disk", "s")).await.unwrap();
    assert_eq!(again["bytes"], json!(0), "{again}");
    for (name, snap, said) in [
        (format!("volume-{volume}"), "s", "cinder revert-to-snapshot"),
        ("disk".to_owned(), "t", "There is no volumes/disk@t"),
    ] {
        let refused = scene.run(order(&name, snap)).await.unwrap_err();
        assert!(refused.contains(said), "{refused}");
    }
}

#[tokio::test]
async fn how_much_is_done_is_counted_by_the_database() {
    let scene = Scene::new(SimConfig::default()).await;
    let operation = scene.order(Order::Replicate(replicate(None))).await;
    let ends = ["replaying", "failed"];
    let percent = async || scene.sites.journal.percent_of(operation.id(), &ends).await.unwrap();
    operation.step("running", &json!({"percent": 7})).await.unwrap();
    assert_eq!(percent().await, None, "its own step is no item");
    for (image, step) in [
        ("a", json!({"step": "replaying"})),
        ("b", json!({"step": "enabled", "percent": 40})),
        ("c", json!({"step": "pending"})),
        ("d", json!({"step": "enabled", "percent": null})),
    ] {
        operation.item_step(image, "image", &step).await.unwrap();
    }
    assert_eq!(percent().await, Some(35));
    for image in ["b", "c", "d"] {
        operation.item_step(image, "image", &json!({"step": "enabled", "percent": 100})).await.unwrap();
    }
    assert_eq!(percent().await, Some(99), "what has not ended is never whole");
}
