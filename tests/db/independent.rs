//! A site that survives becomes a data centre of its own, over the simulator.

use scoria::rbd::protocol::{ImageClone, MirrorInfo, MirrorPoolMode, SnapCreate, SnapProtect};
use scoria::rbd::sim::{Health, When};
use scoria::rbd::types::{MirrorMode, MirrorState, PoolMirrorMode};
use scoria::site::Order;
use scoria::site::independent::IndependentOrder;
use serde_json::{Value, json};

use crate::link_scene::{POOL, Scene, bare, connect, ordered};

fn independent(name: &str) -> IndependentOrder {
    IndependentOrder { name: name.into(), unplanned: true, admin: None, dry_run: false }
}

/// `b` has copies of an image and of a clone of it, and `a` is dead.
async fn survivor() -> Scene {
    let scene = Scene::of(bare()).await;
    scene.run(ordered(connect())).await.unwrap();
    scene.image("a", "b", "z-parent", MirrorMode::Journal).await;
    let a = scene.sim.site("a");
    let (pool, image, snap) = (POOL.to_owned(), "z-parent".to_owned(), "s".to_owned());
    a.call(SnapCreate { pool: pool.clone(), image: image.clone(), snap: snap.clone() }).await.unwrap();
    a.call(SnapProtect { pool: pool.clone(), image: image.clone(), snap: snap.clone() }).await.unwrap();
    let (dest_pool, dest) = (pool.clone(), "child".to_owned());
    a.call(ImageClone { pool, image, snap, dest_pool, dest, features: 125, order: 22 }).await.unwrap();
    let enable = scoria::rbd::protocol::MirrorEnable {
        pool: POOL.into(),
        image: "child".into(),
        mode: MirrorMode::Journal,
    };
    a.call(enable).await.unwrap();
    for _ in 0..200 {
        if scene.sim.image("b", POOL, "child").is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    scene.sim.set_health("a", Health::Dead);
    scene
}

/// It has both images, as its own, and nothing that points elsewhere.
async fn is_alone(scene: &Scene) {
    let b = scene.sim.site("b");
    for image in ["child", "z-parent"] {
        let info = b.call(MirrorInfo { pool: POOL.into(), image: image.into() }).await.unwrap();
        assert_eq!(info.state, MirrorState::Disabled, "{image}: {}", scene.sim.log_text());
    }
    assert_eq!(b.call(MirrorPoolMode { pool: POOL.into() }).await.unwrap(), PoolMirrorMode::Disabled);
    assert!(scene.sim.is_stranger("b") && scene.links().await.is_empty());
    assert_eq!(scene.test.rows("SELECT name FROM scoria_sites").await, [["b"]]);
}

#[tokio::test]
async fn the_survivor_is_nobodys_copy_any_more() {
    let scene = survivor().await;
    let dry =
        scene.run(Order::Independent(IndependentOrder { dry_run: true, ..independent("b") })).await.unwrap();
    assert_eq!(dry["images"][0]["fate"], json!({"step": "planned", "way": "force"}), "{dry:#}");
    assert!(!scene.sim.is_stranger("b"), "nothing happened");

    let done = scene.run(Order::Independent(independent("b"))).await.unwrap();
    assert_eq!((&done["given_up"], &done["forgotten"]), (&json!(["a"]), &json!(["a"])), "{done:#}");
    assert_eq!(done["images"][0]["fate"], json!({"step": "moved", "forced": true}), "{done:#}");
    is_alone(&scene).await;
    // Once more is no harm.
    let again = scene.run(Order::Independent(independent("b"))).await.unwrap();
    assert_eq!(again["given_up"], json!([]), "{again:#}");
}

#[tokio::test]
async fn one_that_answers_is_parted_properly_and_force_has_to_be_said() {
    let scene = survivor().await;
    let planned = IndependentOrder { unplanned: false, ..independent("b") };
    let refused = scene.run(Order::Independent(planned)).await.unwrap_err();
    assert!(refused.contains("--unplanned"), "{refused}");
    scene.sim.set_health("a", Health::Alive);
    let refused = scene.run(Order::Independent(independent("b"))).await.unwrap_err();
    assert!(
        refused.contains("Site a answers") && refused.contains("site disconnect b a --force"),
        "{refused}"
    );
    assert!(!scene.sim.is_stranger("b"), "no peer went");
}

#[tokio::test]
async fn a_site_that_a_backend_names_is_given_up_and_not_forgotten() {
    let scene = survivor().await;
    scene.sim.set_health("a", Health::Alive);
    scene.backend().await;
    scene.sim.set_health("a", Health::Dead);
    scene.test.sql("DELETE FROM scoria_site_uses WHERE site = 'b'").await;
    let done = scene.run(Order::Independent(independent("b"))).await.unwrap();
    assert_eq!((&done["given_up"], &done["forgotten"]), (&json!(["a"]), &json!([])), "{done:#}");
    assert!(done["left"].to_string().contains("Site a is in use by"), "{done:#}");
}

/// Killed at any call (of which CI tries some), the order ends as it would have.
#[tokio::test]
async fn it_survives_a_kill_at_any_call() {
    let calls = {
        let scene = survivor().await;
        scene.sim.clear_log();
        scene.run(Order::Independent(independent("b"))).await.unwrap();
        scene.sim.log().len()
    };
    for k in (1..=calls).step_by(if crate::stage::full() { 1 } else { 7 }) {
        let mut scene = survivor().await;
        let when = if k % 2 == 0 { When::Before } else { When::After };
        let ended: Result<Value, String> = scene.killed(Order::Independent(independent("b")), k, when).await;
        let done = ended.unwrap_or_else(|e| panic!("killed at call {k}: {e}"));
        assert_eq!(done["given_up"], json!(["a"]), "killed at call {k}: {done:#}");
        is_alone(&scene).await;
    }
}
