//! Links over the simulator: two bare clusters become peers, mirror an image, and become strangers again; what is
//! refused, and what a crash leaves.

use scoria::rbd::link::Way;
use scoria::rbd::protocol::MirrorModeSet;
use scoria::rbd::sim::crash::explored;
use scoria::rbd::sim::{PoolSpec, SimConfig, When, osds_on};
use scoria::rbd::types::PoolMirrorMode;
use scoria::rpc::{Call, Handler, envelope};
use scoria::service::sites::SiteHandler;
use scoria::site::{self, Connect, Delete, Disconnect, Files, LinkMode, Make, Order, Register};
use serde_json::{Value, json};

use crate::link_scene::{
    KEY, POOL, Scene, bare, connect, disconnect, erasure, ordered, parted, quick, strangers, verified,
};
use crate::stage::full;

#[tokio::test]
async fn two_bare_clusters_mirror_an_image_and_become_strangers_again() {
    let scene = Scene::of(bare()).await;
    let order = Connect { make: erasure(2, 1, "host"), ..connect() };
    let dry = scene.run(ordered(Connect { dry_run: true, ..order.clone() })).await.unwrap();
    let acts: Vec<&str> = dry["acts"].as_array().unwrap().iter().map(|act| act.as_str().unwrap()).collect();
    assert!(acts[0].starts_with("a: make erasure-code profile ec (k=2 m=1 plugin=jerasure"), "{acts:#?}");
    assert!(
        acts.contains(&"b: initialise pool volumes for images with their data in volumes-data"),
        "{acts:#?}"
    );
    assert!(acts.contains(&"b: connect pool volumes with a, both ways"), "{acts:#?}");
    assert!(scene.sim.pool("a", POOL).is_none() && scene.links().await.is_empty(), "nothing happened");

    let answer = scene.run(ordered(order.clone())).await.unwrap();
    assert!(verified(&answer), "{answer:#}");
    assert!(
        answer["proofs"][0]["text"].as_str().unwrap().contains("verified from a to b; verified from b to a")
    );
    for site in ["a", "b"] {
        assert_eq!(scene.sim.pool(site, "volumes-data"), Some((true, 2, None)), "{site}");
        let pool = scene.sim.pool(site, POOL).unwrap();
        assert_eq!((pool.0, pool.2.as_deref()), (false, Some("volumes-data")), "{site}");
        assert!(scene.sim.images(site, POOL).is_empty(), "the canary is gone from {site}");
        assert!(!scene.sim.is_stranger(site));
    }
    assert_eq!(scene.links().await, [["volumes", "rx-tx", "bootstrap", "connected"]]);
    assert_eq!(
        scene.heard.events()[4..6],
        ["scoria.site.connect.start ".to_owned(), "scoria.site.connect.end ".to_owned()]
    );
    // Once more is no harm, and changes nothing.
    let again = scene.run(ordered(order)).await.unwrap();
    assert!(verified(&again) && again["found"] == json!([POOL]), "{again:#}");
    assert_eq!(scene.links().await, [["volumes", "rx-tx", "bootstrap", "connected"]]);
    let refused = scene.run(Order::Delete(Delete { name: "b".into(), dry_run: false })).await.unwrap_err();
    assert!(refused.contains("connected by 1 pools (a with b: pool volumes)"), "{refused}");

    let dry = scene.run(parted(Disconnect { dry_run: true, ..disconnect() })).await.unwrap();
    assert_eq!((&dry["refused"], &dry["pools"]), (&Value::Null, &json!([POOL])));
    assert!(!strangers(&scene));
    let answer = scene.run(parted(disconnect())).await.unwrap();
    assert_eq!(answer["strangers"], json!(["no pool of a knows b", "no pool of b knows a"]), "{answer:#}");
    assert!(strangers(&scene) && scene.links().await.is_empty());
    let again = scene.run(parted(disconnect())).await.unwrap_err();
    assert!(again.contains("strangers already"), "{again}");
    scene.run(Order::Delete(Delete { name: "b".into(), dry_run: false })).await.unwrap();
}

#[tokio::test]
async fn a_user_of_its_own_one_way_and_pool_mode() {
    let scene = Scene::of(bare()).await;
    let order = Connect { manual: true, way: Way::RxOnly, mode: LinkMode::Pool, ..connect() };
    let answer = scene.run(ordered(order)).await.unwrap();
    assert!(verified(&answer), "{answer:#}");
    assert_eq!(answer["proofs"][0]["text"], "verified from a to b");
    assert_eq!(scene.links().await, [["volumes", "rx-only", "manual", "connected"]]);
    let users = scene.test.row("SELECT client_a, COALESCE(client_b, '-') FROM scoria_peer_links").await;
    assert_eq!(users, ["scoria-link-51e00000", "-"]);
    let wrong = scene.run(ordered(connect())).await.unwrap_err();
    assert!(
        wrong.contains("mirrored in the other mode") || wrong.contains("is connected rx-only"),
        "{wrong}"
    );
    let back = Connect { a: "b".into(), b: "a".into(), mode: LinkMode::Pool, way: Way::RxOnly, ..connect() };
    let wrong = scene.run(ordered(back)).await.unwrap_err();
    assert!(
        wrong.contains("Pool volumes is connected the other way, from a to b; disconnect it first"),
        "{wrong}"
    );
    scene.run(parted(disconnect())).await.unwrap();
    assert!(strangers(&scene), "{}", scene.sim.log_text());
}

#[tokio::test]
async fn what_cannot_be_connected_is_refused_before_anything_changes() {
    let one_host = SimConfig { osds: osds_on(&["h1", "h1", "h1"]), ..bare() };
    let scene = Scene::of(one_host).await;
    for (order, said) in [
        (Connect { make: None, ..connect() }, "Site a has no pool volumes"),
        (Connect { make: erasure(2, 1, "host"), ..connect() }, "has 1; it has: 3 osd, 1 host"),
        (Connect { make: erasure(2, 2, "osd"), ..connect() }, "needs k+m = 4 buckets of type osd"),
        (Connect { make: Some(Make { size: Some(5), ..Make::default() }), ..connect() }, "has 3"),
        (Connect { b: "a".into(), ..connect() }, "these are one"),
        (Connect { pools: vec![], ..connect() }, "Name the pools"),
        (Connect { pools: vec!["a b".into()], ..connect() }, "no name of a pool"),
        (Connect { pools: vec![POOL.into(), POOL.into()], ..connect() }, "named twice"),
        (Connect { b: "rome".into(), ..connect() }, "There is no site rome"),
    ] {
        let refused = scene.run(ordered(order.clone())).await.unwrap_err();
        assert!(refused.contains(said), "{order:?}: {refused}");
        assert!(strangers(&scene) && scene.sim.pool("a", POOL).is_none() && scene.links().await.is_empty());
    }
    // The profile that fits.
    let fits = Connect { make: erasure(2, 1, "osd"), ..connect() };
    assert!(verified(&scene.run(ordered(fits)).await.unwrap()));
}

#[tokio::test]
async fn a_data_pool_of_another_type_has_to_be_meant() {
    let mut config = bare();
    config.sites[1].pools = vec![PoolSpec::plain("volumes-data")];
    let scene = Scene::of(config).await;
    let order = Connect { make: erasure(2, 1, "host"), ..connect() };
    let refused = scene.run(ordered(order.clone())).await.unwrap_err();
    assert!(
        refused.contains("volumes-data is replicated on site b, and is to be erasure-coded on site a"),
        "{refused}"
    );
    let answer = scene.run(ordered(Connect { accept_pool_type: true, ..order })).await.unwrap();
    assert!(verified(&answer) && answer["remarks"].as_array().unwrap().len() == 1, "{answer:#}");
    let is_erasure = |site: &str| scene.sim.pool(site, "volumes-data").unwrap().0;
    assert!(is_erasure("a") && !is_erasure("b"));
}

#[tokio::test]
async fn a_pool_has_one_peer_that_it_receives_from() {
    let mut config = quick(SimConfig::default());
    config.sites.push(config.sites[1].clone());
    config.sites[2].name = "c".into();
    config.sites[2].pools = vec![PoolSpec::plain("volumes2")];
    config.sites[0].pools.retain(|pool| pool.name != "backups");
    let scene = Scene::of(config).await;
    let conf = scene.dir.path().join("c.conf");
    std::fs::write(&conf, "[global]\n").unwrap();
    let files = Files { conf, keyring: None, user: "admin".into(), draft: false };
    scene
        .run(Order::Register(Register { name: "c".into(), files, pools: vec![], dry_run: false }))
        .await
        .unwrap();
    // Pool `volumes` of a and b has peers that somebody else has made.
    let third = Connect { b: "c".into(), make: Some(Make::default()), ..connect() };
    let refused = scene.run(ordered(third)).await.unwrap_err();
    assert!(refused.contains("Pool volumes of site a receives from b already"), "{refused}");
    let answer = scene.run(ordered(connect())).await.unwrap();
    assert_eq!((&answer["found"], verified(&answer)), (&json!([POOL]), true), "{answer:#}");
    assert_eq!(scene.links().await, [["volumes", "rx-tx", "found", "connected"]]);
    let other = scene.run(ordered(Connect { mode: LinkMode::Pool, ..connect() })).await.unwrap_err();
    assert!(other.contains("mirrored in the other mode"), "{other}");
    // What is there is left as it is, and parted like any other.
    scene.run(parted(disconnect())).await.unwrap();
    assert!(strangers(&scene));
}

#[tokio::test]
async fn where_no_daemon_runs_that_is_said_at_once() {
    let scene = Scene::of(bare()).await;
    scene.sim.stop_daemon("b");
    let order = Connect { way: Way::RxOnly, ..connect() };
    let answer = scene.run(ordered(order.clone())).await.unwrap();
    let text = answer["proofs"][0]["text"].as_str().unwrap();
    assert!(!verified(&answer) && text.contains("no rbd-mirror daemon runs on site b"), "{text}");
    assert!(scene.sim.images("a", POOL).is_empty(), "no canary was left");
    let note = scene.test.row("SELECT note FROM scoria_peer_links").await;
    assert!(note[0].contains("no rbd-mirror daemon"), "{note:?}");
    scene.sim.start_daemon("b");
    assert!(verified(&scene.run(ordered(order)).await.unwrap()));
}

#[tokio::test]
async fn an_administrators_key_is_for_one_order() {
    let mut scene = Scene::by("cinder", bare()).await;
    let refused = scene.run(ordered(connect())).await.unwrap_err();
    assert!(
        refused.contains("does not let client.cinder do this") && refused.contains("--admin-keyring"),
        "{refused}"
    );
    assert_eq!(scene.drafts(), 0);
    let with = async |scene: &Scene| Connect {
        admin_a: Some(scene.admin("a").await),
        admin_b: Some(scene.admin("b").await),
        ..connect()
    };
    // The conf is a draft, by which a connection finds the simulator's site by its name.
    let order = with(&scene).await;
    assert_eq!(scene.drafts(), 4);
    assert!(verified(&scene.run(ordered(order)).await.unwrap()));
    assert_eq!(scene.drafts(), 0, "they go with the order");
    let parting = Disconnect {
        admin_a: Some(scene.admin("a").await),
        admin_b: Some(scene.admin("b").await),
        ..disconnect()
    };
    scene.run(parted(parting)).await.unwrap();
    assert!(strangers(&scene) && scene.drafts() == 0);

    // Killed in the middle: the key is gone, the next order goes on.
    let order = with(&scene).await;
    let refused = scene.killed(ordered(order), 25, When::After).await.unwrap_err();
    assert!(refused.contains("give the same order again with the keyrings"), "{refused}");
    assert_eq!(scene.drafts(), 0);
    assert_eq!(scene.links().await[0][3], "connecting");
    let order = with(&scene).await;
    assert!(verified(&scene.run(ordered(order)).await.unwrap()));
    for table in ["scoria_operations", "scoria_operation_steps", "scoria_peer_links"] {
        for row in scene.test.rows(&format!("SELECT * FROM {table}")).await {
            assert!(!row.join(" ").contains("AQBT"), "{table}: {row:?}");
        }
    }
}

/// Killed at the calls of a connection and of a disconnection, before and after their effect, and taken up by the next
/// instance.
#[tokio::test]
async fn both_survive_a_kill_at_every_call() {
    let mut scene = Scene::of(bare()).await;
    let order = Connect { make: erasure(2, 1, "host"), manual: false, ..connect() };
    scene.sim.clear_log();
    scene.run(ordered(order.clone())).await.unwrap();
    let making = scene.sim.log().len();
    scene.sim.clear_log();
    scene.run(parted(disconnect())).await.unwrap();
    let parting = scene.sim.log().len();
    assert!(making > 30 && parting > 20, "{making} {parting}");
    let step = if full() { 1 } else { 3 };
    let mut schedules = 0;
    for k in (1..=making.max(parting)).step_by(step) {
        for manual in [false, true].into_iter().take(if full() { 2 } else { 1 }) {
            let order = Connect { manual, ..order.clone() };
            let when = if k % 2 == 0 { When::Before } else { When::After };
            let answer = scene.killed(ordered(order), k, when).await;
            let answer =
                answer.unwrap_or_else(|e| panic!("connecting, killed at {k}: {e}\n{}", scene.sim.log_text()));
            assert!(verified(&answer), "killed at {k}: {answer:#}");
            assert_eq!(scene.links().await[0][3], "connected", "killed at {k}");
            assert!(
                scene.sim.images("a", POOL).is_empty() && scene.sim.images("b", POOL).is_empty(),
                "killed at {k}"
            );
            assert_eq!(scene.sim.pool("b", "volumes-data"), Some((true, 2, None)), "killed at {k}");
            let answer = scene.killed(parted(disconnect()), k, when).await;
            answer.unwrap_or_else(|e| panic!("disconnecting, killed at {k}: {e}\n{}", scene.sim.log_text()));
            assert!(strangers(&scene), "killed at {k}\n{}", scene.sim.log_text());
            assert!(scene.links().await.is_empty(), "killed at {k}");
            schedules += 2;
        }
    }
    explored(schedules);
}

#[tokio::test]
async fn a_mode_that_is_there_is_not_changed_in_passing() {
    let mut config = bare();
    for site in &mut config.sites {
        site.pools = vec![PoolSpec::plain(POOL)];
    }
    let scene = Scene::of(config).await;
    let mode = MirrorModeSet { pool: POOL.into(), mode: PoolMirrorMode::Pool };
    scene.sim.site("b").call(mode).await.unwrap();
    let refused = scene.run(ordered(connect())).await.unwrap_err();
    assert!(refused.contains("Pool volumes of site b is mirrored in the other mode"), "{refused}");
    assert!(verified(&scene.run(ordered(Connect { mode: LinkMode::Pool, ..connect() })).await.unwrap()));
}

fn call(method: &str, args: Value) -> Call {
    let message = json!({"method": method, "args": args, "version": "1.1", "namespace": "site",
        "_unique_id": "u", "_msg_id": "i", "_reply_q": "q", "_context_request_id": "req-7"});
    let Value::Object(message) = message else { unreachable!() };
    Call::from_delivery(&envelope::seal(&message), None).unwrap()
}

#[tokio::test]
async fn namespace_site_connects_and_disconnects() {
    let scene = Scene::by("cinder", bare()).await;
    let handler = SiteHandler { sites: scene.sites.clone() };
    let asked = async |method: &str, args: Value| handler.run(&call(method, args), None).await;
    let args = json!({"a": "a", "b": "b", "pools": [POOL], "create_pools": true, "k": 2, "m": 1, "pg_num": 8,
        "admin_key_a": KEY, "admin_key_b": KEY, "order": "mine"});
    assert!(!format!("{:?}", call("connect", args.clone()).method).contains("AQBT"));
    let first = asked("connect", args.clone()).await.unwrap();
    let again = asked("connect", args).await.unwrap();
    assert_eq!((&first["new"], &again["new"]), (&json!(true), &json!(false)));
    assert_eq!(scene.drafts(), 4, "a conf and a keyring for each site");
    site::run(&scene.sites, &scene.adopt().await).await;
    let told = asked("get_operation", json!({"operation": first["operation"]})).await.unwrap();
    assert_eq!((&told["outcome"], &told["method"]), (&json!("succeeded"), &json!("connect")), "{told:#}");
    let links = asked("list_links", json!({"site": "b"})).await.unwrap();
    assert_eq!((&links[0]["a"], &links[0]["data_pool"]), (&json!("a"), &json!("volumes-data")));
    let args = json!({"a": "a", "b": "b", "admin_key_a": KEY, "admin_key_b": KEY});
    asked("disconnect", args).await.unwrap();
    site::run(&scene.sites, &scene.adopt().await).await;
    assert!(strangers(&scene) && scene.drafts() == 0);
    let wrong = |args: Value| {
        let message = json!({"method": "connect", "args": args, "version": "1.1", "namespace": "site",
            "_unique_id": "u", "_msg_id": "i", "_reply_q": "q"});
        Call::from_delivery(&envelope::seal(message.as_object().unwrap()), None).unwrap_err().error
    };
    for (args, said) in [
        (json!({"a": "a", "b": "b", "pools": [POOL], "k": 2, "m": 1}), "without create_pools"),
        (json!({"a": "a", "b": "b", "pools": [POOL], "create_pools": true, "k": 2}), "takes both k and m"),
        (json!({"a": "a", "b": "b", "pools": [POOL], "way": "tx"}), "one of rx-only, rx-tx"),
        (json!({"a": "a", "b": "b", "pools": [POOL], "admin_key_a": "x"}), "no cephx key"),
    ] {
        let refused = wrong(args);
        assert!(refused.user().contains(said), "{said}: {refused}");
    }
}
