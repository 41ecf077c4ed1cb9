#![allow(clippy::unwrap_used, clippy::expect_used)]
//! Copies to other pools and other clusters, killed at every call to Ceph and made again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::Shape;
use super::*;
use crate::rbd::sim::crash::{Attempt as Run, Killed, for_every_crash_point};
use crate::rbd::sim::{Fault, Health, Sim, SimConfig, When};

const POOL: &str = "volumes";
const OTHER: &str = "volumes2";
const MIB: u64 = 1 << 20;
const SHAPE: Shape = Shape { order: 22, features: 61 };

fn place(sim: &Sim, site: &str, pool: &str) -> Place {
    Place { site: sim.site(site), pool: pool.to_owned() }
}

async fn write(sim: &Sim, image: &str, offset: u64, text: &str) {
    let (pool, image, data) = (POOL.to_owned(), image.to_owned(), text.as_bytes().to_vec());
    sim.site("a").call(ImageWrite { pool, image, offset, data }).await.unwrap();
}

/// A volume `v` of 8 MiB that is a clone, with content of its own and of its parent, and a limit.
async fn world() -> Sim {
    let sim = Sim::new(SimConfig::default());
    let p = place(&sim, "a", POOL);
    p.create("base", 8 * MIB, SHAPE, Attempt::First).await.unwrap();
    write(&sim, "base", 5 * MIB, "of the parent").await;
    p.snapshot("base", "s", Attempt::First).await.unwrap();
    p.clone_from("base", "s", "v", 8 * MIB, Shape { features: 1, ..SHAPE }, Attempt::First).await.unwrap();
    write(&sim, "v", MIB - 3, "its own").await;
    let (key, value) = ("conf_rbd_qos_iops_limit".to_owned(), "500".to_owned());
    p.site.call(MetadataSet { pool: POOL.into(), image: "v".into(), key, value }).await.unwrap();
    sim
}

fn attempt(run: Run) -> Attempt {
    match run {
        Run::First => Attempt::First,
        Run::Resumed => Attempt::Again,
    }
}

/// The dead service's client is fenced, as recovery does it, on both sites.
async fn fence(sim: &Sim, dead: &str) {
    for site in ["a", "b"] {
        let fence = BlocklistAdd { address: dead.to_owned(), seconds: 60 };
        sim.site(site).call(fence).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_to_another_pool_is_whole_or_not_there() {
    for killed in [Killed::Service, Killed::Worker] {
        let build = async || {
            let sim = world().await;
            let dead = sim.client_address();
            (sim, dead)
        };
        let run = async |sim: Sim, dead: String, run: Run| {
            if run == Run::Resumed {
                fence(&sim, &dead).await;
            }
            place(&sim, "a", POOL).copy_to(&place(&sim, "a", OTHER), "v", attempt(run)).await
        };
        let check = async |sim: Sim, _| {
            let (original, copy) =
                (sim.image("a", POOL, "v").unwrap(), sim.image("a", OTHER, "v").expect("a whole copy"));
            assert_eq!((copy.checksum, copy.size), (original.checksum, original.size));
            assert_eq!(copy.features, 1, "as the original");
            let parent = place(&sim, "a", OTHER).stat("v").await.unwrap().parent;
            assert_eq!(parent, None, "it depends on nobody");
            let list = MetadataList { pool: OTHER.into(), image: "v".into() };
            assert_eq!(sim.site("a").call(list).await.unwrap().len(), 1, "its limits go with it");
        };
        assert!(for_every_crash_point(killed, build, run, check).await > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_image_is_neither_overwritten_nor_removed() {
    let sim = world().await;
    let (from, to) = (place(&sim, "a", POOL), place(&sim, "a", OTHER));
    to.create("v", MIB, SHAPE, Attempt::First).await.unwrap();
    let before = sim.image("a", OTHER, "v");
    assert_eq!(from.copy_to(&to, "v", Attempt::First).await.unwrap_err().kind, RbdErrorKind::Exists);
    assert_eq!(sim.image("a", OTHER, "v"), before);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_fails_leaves_nothing() {
    let sim = world().await;
    sim.inject(Fault::on("ImageCopy").fails(When::After, RbdErrorKind::Other));
    let (from, to) = (place(&sim, "a", POOL), place(&sim, "a", OTHER));
    assert_eq!(from.copy_to(&to, "v", Attempt::First).await.unwrap_err().kind, RbdErrorKind::Other);
    assert_eq!(sim.images("a", OTHER), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_transfer_to_another_cluster_can_be_repeated_from_anywhere() {
    for killed in [Killed::Service, Killed::Worker] {
        let build = async || {
            let sim = world().await;
            let dest = place(&sim, "b", OTHER);
            dest.create("w", 8 * MIB, SHAPE, Attempt::First).await.unwrap();
            let dead = sim.client_address();
            (sim, (dead, Arc::new(AtomicBool::new(false))))
        };
        // Renamed is only what the journal says is copied.
        let run = async |sim: Sim, (dead, copied): (String, Arc<AtomicBool>), run: Run| {
            if run == Run::Resumed {
                fence(&sim, &dead).await;
            }
            let (from, to) = (place(&sim, "a", POOL), place(&sim, "b", OTHER));
            if copied.load(Ordering::Relaxed) {
                return to.take_name("w", "v", Attempt::Again).await.map(|taken| assert!(taken));
            }
            let mut written = 0;
            for offset in [0, 3 * MIB, 6 * MIB] {
                written += from.transfer("v", &to, "w", offset, 3 * MIB).await?;
            }
            assert!((1..=3 * 4096).contains(&written), "only what is not zero: {written}");
            copied.store(true, Ordering::Relaxed);
            to.take_name("w", "v", Attempt::First).await.map(|taken| assert!(taken))
        };
        let check = async |sim: Sim, _| {
            let (original, copy) = (
                sim.image("a", POOL, "v").unwrap(),
                sim.image("b", OTHER, "v").expect("named as it is to be"),
            );
            assert_eq!(copy.checksum, original.checksum, "{}", sim.log_text());
            assert_eq!(sim.images("b", OTHER), ["v"]);
        };
        assert!(for_every_crash_point(killed, build, run, check).await > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_away_or_a_name_that_is_taken_is_said() {
    let sim = world().await;
    let (from, to) = (place(&sim, "a", POOL), place(&sim, "b", OTHER));
    to.create("w", 8 * MIB, SHAPE, Attempt::First).await.unwrap();
    to.create("v", MIB, SHAPE, Attempt::First).await.unwrap();
    for attempt in [Attempt::First, Attempt::Again] {
        assert!(!to.take_name("w", "v", attempt).await.unwrap(), "it keeps its own");
    }
    assert_eq!(sim.images("b", OTHER), ["v", "w"]);
    let missing = from.transfer("v", &to, "nothing", 0, MIB).await.unwrap_err();
    assert_eq!(missing.kind, RbdErrorKind::NotFound);
    sim.set_health("b", Health::Dead);
    assert!(from.transfer("v", &to, "w", 0, MIB).await.is_err());
}
