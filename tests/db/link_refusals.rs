//! What is refused of links and of images, with its words, where no other test comes by.

use std::time::Duration;

use scoria::rbd::RbdErrorKind;
use scoria::rbd::link::Way;
use scoria::rbd::protocol::{ImageRemove, PeerAdd, SiteNameSet};
use scoria::rbd::sim::{Fault, SimConfig, When};
use scoria::rbd::types::MirrorMode;
use scoria::site::moving::MoveOrder;
use scoria::site::replicate::ReplicateOrder;
use scoria::site::{Connect, Disconnect, Order, Patience, Purge};

use crate::link_scene::{POOL, Scene, bare, connect, disconnect, erasure, ordered, parted, strangers};

#[tokio::test]
async fn a_link_that_makes_no_sense_is_refused_in_words() {
    let scene = Scene::of(bare()).await;
    let named = |name: &str, pools: &[&str]| {
        let mut make = erasure(2, 1, "host");
        make.as_mut().unwrap().data.as_mut().unwrap().name = Some(name.to_owned());
        Connect { make, pools: pools.iter().map(|p| (*p).to_owned()).collect(), ..connect() }
    };
    for (order, said) in [
        (named("data", &["one", "two"]), "One data pool is for one pool; leave its name out"),
        (named("one", &["one"]), "The data pool is another pool than that of the images"),
    ] {
        let refused = scene.run(ordered(order)).await.unwrap_err();
        assert!(refused.contains(said), "{said}: {refused}");
    }
    for site in ["a", "b"] {
        let mut admin = scene.sim.connection(site);
        admin.user = Some("admin".into());
        let admin = scoria::rbd::Site::new(scene.sim.ceph(), admin);
        admin.call(SiteNameSet { name: "ceph".into() }).await.unwrap();
    }
    let refused = scene.run(ordered(connect())).await.unwrap_err();
    assert!(refused.contains("Both clusters call themselves ceph towards their peers"), "{refused}");
    assert!(strangers(&scene) && scene.links().await.is_empty());
}

#[tokio::test]
async fn a_parting_that_makes_no_sense_is_refused_in_words() {
    let scene = Scene::of(bare()).await;
    scene.run(ordered(connect())).await.unwrap();
    let purge = Some(Purge { copies: 1, bytes: 1 });
    for (order, said) in [
        (
            Disconnect { pools: vec!["nope".into()], ..disconnect() },
            "Pool nope does not connect a and b; these do: volumes",
        ),
        (Disconnect { purge, ..disconnect() }, "purge_replicas needs force"),
        (Disconnect { b: "a".into(), ..disconnect() }, "A link is between two sites"),
        (Disconnect { b: "rome".into(), ..disconnect() }, "There is no site rome; the sites are: a, b"),
    ] {
        let refused = scene.run(parted(order)).await.unwrap_err();
        assert!(refused.contains(said), "{said}: {refused}");
    }
    assert_eq!(scene.links().await[0][3], "connected");
}

#[tokio::test]
async fn the_last_copy_of_an_image_is_never_purged() {
    let scene = Scene::of(bare()).await;
    scene.run(ordered(connect())).await.unwrap();
    for image in ["lost", "there"] {
        scene.image("a", "b", image, MirrorMode::Snapshot).await;
    }
    scene.sim.stop_daemon("b");
    let lost = scoria::rbd::protocol::MirrorDisable { pool: POOL.into(), image: "lost".into(), force: false };
    scene.sim.site("a").call(lost).await.unwrap();
    scene.sim.site("a").call(ImageRemove { pool: POOL.into(), image: "lost".into() }).await.unwrap();
    let purge = Some(Purge { copies: 2, bytes: 16 << 20 });
    let done = scene.run(parted(Disconnect { force: true, purge, ..disconnect() })).await.unwrap();
    assert!(
        done["kept"].to_string().contains("volumes/lost: its original is gone, it is the only one left"),
        "{done:#}"
    );
    assert_eq!(scene.sim.images("b", POOL), ["lost"]);
}

#[tokio::test]
async fn a_canary_that_cannot_be_removed_is_named_with_its_place() {
    let mut config = bare();
    // The daemon does not remove copies while anybody looks.
    config.timing.remove = Duration::from_secs(3600);
    let mut scene = Scene::of(config).await;
    scene.patient(Patience { gone: Duration::from_millis(300), ..Patience::default() });
    let order = Connect { way: Way::RxOnly, ..connect() };
    for site in ["b", "a"] {
        scene.sim.inject(Fault::on("ImageRemove").site(site).fails(When::Before, RbdErrorKind::Permission));
        let operation = scene.order(ordered(order.clone())).await;
        scoria::site::run(&scene.sites, &operation).await;
        let refused = scene.ended(&operation).await.unwrap_err();
        let name = format!("scoria-canary-{}-a", operation.id());
        assert!(
            refused.contains(&format!("The canary volumes/{name} is left on site {site}"))
                && refused.contains(&format!("rbd rm volumes/{name}")),
            "{refused}"
        );
        assert!(scene.sim.images(site, POOL).contains(&name), "{site}: {:?}", scene.sim.images(site, POOL));
        assert_eq!(
            scene.links().await[0][3],
            "connecting",
            "what was made stays, and connecting again goes on"
        );
    }
    let answer = scene.run(ordered(order)).await.unwrap();
    assert!(crate::link_scene::verified(&answer), "{answer:#}");
    assert_eq!(scene.links().await[0][3], "connected");
}

#[tokio::test]
async fn a_copy_that_does_not_arrive_is_said() {
    let mut config = bare();
    config.timing.appear = Duration::from_secs(3600);
    let mut scene = Scene::of(config).await;
    let second = Duration::from_secs(1);
    scene.patient(Patience { arrived: second, gone: second, ..Patience::default() });
    let order = Connect { way: Way::RxOnly, ..connect() };
    let answer = scene.run(ordered(order)).await.unwrap();
    let text = answer["proofs"][0]["text"].as_str().unwrap();
    assert!(
        text.contains("not verified from a to b: the image has not appeared there after 1 s"),
        "{answer:#}"
    );
    assert_eq!(scene.links().await[0][3], "connected");
}

#[tokio::test]
async fn a_daemon_that_does_not_let_go_or_comes_back_stops_a_parting() {
    let mut scene = Scene::of(SimConfig { daemon_lingers: true, ..bare() }).await;
    scene.run(ordered(connect())).await.unwrap();
    scene.image("a", "b", "x", MirrorMode::Snapshot).await;
    scene.patient(Patience { let_go: Duration::from_secs(1), ..Patience::default() });
    let forced = Disconnect { force: true, ..disconnect() };
    let refused = scene.run(parted(forced.clone())).await.unwrap_err();
    assert!(
        refused.contains("rbd-mirror of site b still works on pool volumes 1 s after its peer was removed"),
        "{refused}"
    );
    assert!(scene.sim.image("a", POOL, "x").unwrap().mirror.is_some(), "its mirroring has not ended");
    assert_eq!(scene.links().await[0][3], "disconnecting");

    let mut scene = Scene::of(bare()).await;
    scene.run(ordered(connect())).await.unwrap();
    scene.image("a", "b", "x", MirrorMode::Snapshot).await;
    scene.patient(Patience::default());
    // It makes itself known at the last moment.
    scene.sim.inject(Fault::on("ClientRemove").always().delays(Duration::from_millis(500)));
    scene.sim.clear_log();
    let operation = scene.order(parted(forced.clone())).await;
    let comes_back = async {
        while scene.sim.count("ClientRemove") == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut admin = scene.sim.connection("b");
        admin.user = Some("admin".into());
        let ask = PeerAdd {
            pool: POOL.into(),
            source: scene.sim.connection("a"),
            source_name: "a".into(),
            user: "rbd-mirror-peer".into(),
            pools: vec![POOL.into()],
        };
        scoria::rbd::Site::new(scene.sim.ceph(), admin).call(ask).await.unwrap();
    };
    tokio::join!(scoria::site::run(&scene.sites, &operation), comes_back);
    scene.sim.clear_faults();
    let refused = scene.ended(&operation).await.unwrap_err();
    assert!(refused.contains("Pool volumes of site a knows b again"), "{refused}");
    scene.run(parted(forced)).await.unwrap();
    assert!(strangers(&scene) && scene.links().await.is_empty());
}

#[tokio::test]
async fn who_only_receives_replicates_nothing() {
    let scene = Scene::of(bare()).await;
    scene.run(ordered(Connect { way: Way::RxOnly, ..connect() })).await.unwrap();
    let order = ReplicateOrder {
        name: "b".into(),
        pool: POOL.into(),
        image: None,
        mode: MirrorMode::Journal,
        dry_run: false,
    };
    let refused = scene.run(Order::Replicate(order)).await.unwrap_err();
    assert!(
        refused.contains("Pool volumes of site b only receives: give the order for the site"),
        "{refused}"
    );
    let scene = Scene::of(bare()).await;
    let order = Connect { make: erasure(2, 1, "osd"), canary: false, ..connect() };
    scene.run(ordered(order)).await.unwrap();
    let order = ReplicateOrder {
        name: "a".into(),
        pool: "volumes-data".into(),
        image: None,
        mode: MirrorMode::Journal,
        dry_run: false,
    };
    let refused = scene.run(Order::Replicate(order)).await.unwrap_err();
    assert!(refused.contains("Pool volumes-data is erasure-coded: it holds data of images"), "{refused}");
}

#[tokio::test]
async fn an_image_that_is_not_there_or_is_there_already_is_not_moved() {
    let scene = Scene::of(SimConfig::default()).await;
    let moving = |image: &str, to: &str, undo: bool| MoveOrder {
        name: "a".into(),
        pool: POOL.into(),
        image: image.into(),
        to: to.into(),
        undo,
        dry_run: false,
    };
    for (order, said) in [
        (moving("disk", POOL, false), "volumes/disk is in pool volumes already"),
        (moving("disk", "volumes2", false), "There is no volumes/disk on site a"),
        (moving("disk", "volumes2", true), "There is no volumes/disk on site a that is being moved"),
    ] {
        let refused = scene.run(Order::Move(order)).await.unwrap_err();
        assert!(refused.contains(said), "{said}: {refused}");
    }
}
