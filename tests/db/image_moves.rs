//! Images that Cinder does not know move to another pool, over the simulator.

use scoria::rbd::protocol::{ImageCreate, ImageMoveBegin, ImageRead, ImageStat, ImageWrite, MirrorEnable};
use scoria::rbd::sim::{SimConfig, When};
use scoria::rbd::types::MirrorMode;
use scoria::site::moving::MoveOrder;
use scoria::site::{self, Order};
use serde_json::json;

use crate::mirror_daemons::Scene;
use crate::seed;
use crate::stage::full;

const TO: &str = "volumes2";

fn order(image: &str) -> MoveOrder {
    MoveOrder {
        name: "a".into(),
        pool: "volumes".into(),
        image: image.into(),
        to: TO.into(),
        undo: false,
        dry_run: false,
    }
}

/// Pool `volumes` of `a` has an image with something in it.
async fn scene() -> Scene {
    let scene = Scene::new(SimConfig::default()).await;
    image(&scene, "volumes", "disk").await;
    let (pool, image) = ("volumes".to_owned(), "disk".to_owned());
    let write = ImageWrite { pool, image, offset: 1 << 20, data: vec![7; 4096] };
    scene.sim.site("a").call(write).await.unwrap();
    scene
}

async fn image(scene: &Scene, pool: &str, image: &str) {
    let (pool, image) = (pool.to_owned(), image.to_owned());
    let create = ImageCreate { pool, image, size: 8 << 20, order: 22, features: 61 };
    scene.sim.site("a").call(create).await.unwrap();
}

/// In which pools the image is, with what was written to it.
async fn places(scene: &Scene) -> Vec<&'static str> {
    let mut found = Vec::new();
    for pool in ["volumes", TO] {
        let (of, image) = (pool.to_owned(), "disk".to_owned());
        let read = ImageRead { pool: of, image, snap: None, offset: 1 << 20, length: 1 };
        if scene.sim.site("a").call(read).await.is_ok_and(|data| data == [7]) {
            found.push(pool);
        }
    }
    found
}

#[tokio::test]
async fn an_image_that_is_closed_moves_and_can_be_brought_back_on_its_way() {
    let scene = scene().await;
    let dry = scene.run(Order::Move(MoveOrder { dry_run: true, ..order("disk") })).await.unwrap();
    assert_eq!((&dry["what"], places(&scene).await), (&json!("to be moved"), vec!["volumes"]));
    let (pool, image) = ("volumes".to_owned(), "disk".to_owned());
    let begin = ImageMoveBegin { pool, image, dest_pool: TO.into(), dest: "disk".into() };
    scene.sim.site("a").call(begin.clone()).await.unwrap();
    let undone = scene.run(Order::Move(MoveOrder { undo: true, ..order("disk") })).await.unwrap();
    assert_eq!((&undone["what"], places(&scene).await), (&json!("brought back"), vec!["volumes"]));

    // One that somebody has begun is finished.
    scene.sim.site("a").call(begin).await.unwrap();
    let moved = scene.run(Order::Move(order("disk"))).await.unwrap();
    assert_eq!((&moved["what"], places(&scene).await), (&json!("moved"), vec![TO]));
    let gone = scene.run(Order::Move(order("disk"))).await.unwrap_err();
    assert!(gone.contains("There is no volumes/disk on site a"), "{gone}");
    let back = MoveOrder { pool: TO.into(), to: "volumes".into(), ..order("disk") };
    scene.run(Order::Move(back)).await.unwrap();
    assert_eq!(places(&scene).await, ["volumes"]);
}

#[tokio::test]
async fn what_cannot_be_moved_is_refused_and_stays() {
    let scene = scene().await;
    let volume = seed::volume(&scene.test, 1, "available", "").await;
    let of_cinder = format!("volume-{volume}");
    for name in [of_cinder.as_str(), "open", "mirrored", "twice"] {
        image(&scene, "volumes", name).await;
    }
    image(&scene, TO, "twice").await;
    scene.sim.watch("a", "volumes", "open").unwrap();
    let (pool, name) = ("volumes".to_owned(), "mirrored".to_owned());
    let enable = MirrorEnable { pool, image: name, mode: MirrorMode::Journal };
    scene.sim.site("a").call(enable).await.unwrap();
    for (name, to, said) in [
        (of_cinder.as_str(), TO, "cinder migrate"),
        ("open", TO, "close it first"),
        ("mirrored", TO, "is mirrored"),
        ("twice", TO, "has an image twice already"),
        ("none", TO, "There is no volumes/none"),
        ("disk", "volumes", "is in pool volumes already"),
        ("disk", "nowhere", "has no pool"),
    ] {
        let refused = scene.run(Order::Move(MoveOrder { to: to.into(), ..order(name) })).await.unwrap_err();
        assert!(refused.contains(said), "{name}: {refused}");
        if name != "none" {
            let stat = ImageStat { pool: "volumes".into(), image: name.into() };
            scene.sim.site("a").call(stat).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_move_survives_a_kill_at_every_call() {
    let calls = {
        let scene = scene().await;
        scene.sim.clear_log();
        scene.run(Order::Move(order("disk"))).await.unwrap();
        scene.sim.log().len()
    };
    for k in (1..=calls).step_by(if full() { 1 } else { 3 }) {
        for when in [When::Before, When::After] {
            let mut scene = scene().await;
            let operation = scene.order(Order::Move(order("disk"))).await;
            scene.sim.kill_at(k, when);
            tokio::select! {
                biased;
                () = scene.sim.crashed() => {}
                () = site::run(&scene.sites, &operation) => panic!("it was not killed at call {k}"),
            }
            scene.restart();
            let operation = scene.adopt().await;
            site::run(&scene.sites, &operation).await;
            let done = scene.ended(&operation).await.unwrap_or_else(|e| panic!("killed at call {k}: {e}"));
            assert_eq!((&done["what"], places(&scene).await), (&json!("moved"), vec![TO]), "at call {k}");
        }
    }
}
