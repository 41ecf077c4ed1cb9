//! Tools for images, killed at every call to Ceph (of which CI tries some), and taken up by the next instance.

use std::time::Duration;

use scoria::rbd::protocol::{ImageCreate, ImageRead, ImageWrite, MirrorEnable, SnapCreate};
use scoria::rbd::sim::crash::explored;
use scoria::rbd::sim::{SimConfig, When};
use scoria::rbd::types::{Level, MirrorMode};
use scoria::site::daemon::{Action, DaemonOrder, Means};
use scoria::site::detective::HalfOrder;
use scoria::site::revert::RevertOrder;
use scoria::site::schedule::{ScheduleAct, ScheduleOrder};
use scoria::site::{self, Order, Patience, Update};
use serde_json::json;

use crate::mirror_daemons::Scene;
use crate::stage::full;

const POOL: &str = "volumes";

async fn scene() -> Scene {
    let mut scene =
        Scene::new(SimConfig { orchestrated: true, lost_worker_leaves_watch: false, ..SimConfig::default() })
            .await;
    scene.patient(Patience { settled: Duration::from_millis(10), ..Patience::default() });
    image(&scene, "disk").await;
    scene
}

async fn image(scene: &Scene, name: &str) {
    let (pool, image) = (POOL.to_owned(), name.to_owned());
    let create = ImageCreate { pool, image, size: 8 << 20, order: 22, features: 61 };
    scene.sim.site("a").call(create).await.unwrap();
}

async fn write(scene: &Scene, offset: u64, byte: u8) {
    let (pool, image) = (POOL.to_owned(), "disk".to_owned());
    scene.sim.site("a").call(ImageWrite { pool, image, offset, data: vec![byte; 4096] }).await.unwrap();
}

async fn read(scene: &Scene, offset: u64) -> u8 {
    let (pool, image) = (POOL.to_owned(), "disk".to_owned());
    scene.sim.site("a").call(ImageRead { pool, image, snap: None, offset, length: 1 }).await.unwrap()[0]
}

/// What is ordered, of which world, and what has to be true afterwards.
struct Case {
    name: &'static str,
    before: fn(&Scene) -> futures::future::LocalBoxFuture<'_, ()>,
    order: fn(&Scene) -> Order,
    after: fn(&Scene) -> futures::future::LocalBoxFuture<'_, bool>,
}

fn schedule(act: ScheduleAct, schedule: Option<&str>) -> Order {
    let level = Level { pool: Some(POOL.into()), image: Some("disk".into()) };
    let schedule = schedule.map(str::to_owned);
    Order::Schedule(ScheduleOrder { name: "a".into(), act, level, schedule, recursive: false })
}

async fn schedules(scene: &Scene) -> serde_json::Value {
    scene.run(schedule(ScheduleAct::List, None)).await.unwrap()["levels"].clone()
}

async fn by_snapshots(scene: &Scene) {
    let enable = MirrorEnable { pool: POOL.into(), image: "disk".into(), mode: MirrorMode::Snapshot };
    scene.sim.site("a").call(enable).await.unwrap();
}

fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "a schedule is added",
            before: |scene| Box::pin(by_snapshots(scene)),
            order: |_| schedule(ScheduleAct::Add, Some("5m")),
            after: |scene| Box::pin(async move { schedules(scene).await[0]["schedules"] == json!(["5m"]) }),
        },
        Case {
            name: "all schedules of an image are removed",
            before: |scene| {
                Box::pin(async move {
                    by_snapshots(scene).await;
                    for text in ["5m", "1h"] {
                        scene.run(schedule(ScheduleAct::Add, Some(text))).await.unwrap();
                    }
                })
            },
            order: |_| schedule(ScheduleAct::Remove, None),
            after: |scene| Box::pin(async move { schedules(scene).await == json!([]) }),
        },
        Case {
            name: "halves of images are finished",
            before: |scene| {
                Box::pin(async move {
                    for name in ["half", "other"] {
                        scene.sim.kill_at(1, When::Midway);
                        tokio::select! {
                            biased;
                            () = scene.sim.crashed() => {}
                            () = image(scene, name) => panic!("it was not killed"),
                        }
                        scene.sim.restart();
                    }
                })
            },
            order: |_| Order::Half(HalfOrder { name: "a".into(), pool: POOL.into(), finish: true }),
            after: |scene| {
                Box::pin(async move {
                    let look = Order::Half(HalfOrder { name: "a".into(), pool: POOL.into(), finish: false });
                    let left = scene.run(look).await.unwrap();
                    left["images"] == json!([]) && scene.sim.images("a", POOL) == ["disk"]
                })
            },
        },
        Case {
            name: "an image is reverted",
            before: |scene| {
                Box::pin(async move {
                    write(scene, 0, 1).await;
                    let (pool, image) = (POOL.to_owned(), "disk".to_owned());
                    scene.sim.site("a").call(SnapCreate { pool, image, snap: "s".into() }).await.unwrap();
                    write(scene, 0, 2).await;
                    write(scene, 4 << 20, 3).await;
                })
            },
            order: |_| {
                let (name, pool, image) = ("a".to_owned(), POOL.to_owned(), "disk".to_owned());
                Order::Revert(RevertOrder { name, pool, image, snap: "s".into() })
            },
            after: |scene| {
                Box::pin(async move { (read(scene, 0).await, read(scene, 4 << 20).await) == (1, 0) })
            },
        },
        Case {
            name: "an orchestrator is told",
            before: |_| Box::pin(async move {}),
            order: |_| {
                Order::Daemon(DaemonOrder {
                    name: "a".into(),
                    action: Action::Start,
                    by: Some(Means::Orchestrator),
                    files: None,
                    placement: None,
                    dry_run: false,
                })
            },
            after: |scene| {
                Box::pin(async move {
                    let row = scene.test.row("SELECT means, wanted, state FROM scoria_mirror_daemons").await;
                    scene.sim.count("OrchestratorApply") > 0 && row == ["orchestrator", "running", "told"]
                })
            },
        },
        Case {
            name: "a site is renamed, with other files",
            before: |_| Box::pin(async move {}),
            order: |scene| {
                Order::Update(Update {
                    name: "a".into(),
                    new_name: Some("paris".into()),
                    files: Some(scene.files("a", "nova")),
                    pools: vec![],
                    dry_run: false,
                })
            },
            after: |scene| {
                Box::pin(async move {
                    let row = scene
                        .test
                        .row("SELECT s.name, h.client FROM scoria_sites s JOIN scoria_site_hosts h USING (fsid)")
                        .await;
                    row == ["paris", "nova"]
                })
            },
        },
    ]
}

#[tokio::test]
async fn tools_that_are_killed_at_a_call_are_finished_by_the_next_instance() {
    let mut schedules = 0;
    for Case { name, before, order, after } in cases() {
        let calls = {
            let scene = scene().await;
            before(&scene).await;
            scene.sim.clear_log();
            scene.run(order(&scene)).await.unwrap();
            let calls = scene.sim.log().len();
            assert!(after(&scene).await, "{name}: undisturbed");
            calls
        };
        assert!(calls > 0, "{name}");
        for k in (1..=calls).step_by(if full() { 1 } else { 5 }) {
            let whens = [When::After, When::Before];
            for when in whens.into_iter().take(if full() { 2 } else { 1 }) {
                let mut scene = scene().await;
                before(&scene).await;
                let operation = scene.order(order(&scene)).await;
                scene.sim.kill_at(k, when);
                tokio::select! {
                    biased;
                    () = scene.sim.crashed() => {}
                    () = site::run(&scene.sites, &operation) => panic!("{name}: it was not killed at call {k}"),
                }
                scene.restart();
                let operation = scene.adopt().await;
                site::run(&scene.sites, &operation).await;
                let ended = scene.ended(&operation).await;
                ended.unwrap_or_else(|e| panic!("{name}: killed at call {k}, {when:?}: {e}"));
                assert!(
                    after(&scene).await,
                    "{name}: killed at call {k}, {when:?}\n{}",
                    scene.sim.log_text()
                );
                schedules += 1;
            }
        }
    }
    explored(schedules);
}
