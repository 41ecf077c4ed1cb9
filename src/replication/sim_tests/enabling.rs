//! Mirroring turned on and off: killed anywhere, repeated, and nothing of the image is changed for good.

use super::*;
use crate::model::DriverData;
use crate::rbd::RbdError;
use crate::rbd::sim::crash::{Killed, for_every_crash_point};
use crate::rbd::types::features;
use crate::replication::enable::{disable, enable};

/// As a volume has them by default, with journaling already, and nothing but layering.
const SETS: [u64; 3] = [61, 125, features::LAYERING];

async fn image(bits: u64) -> Sim {
    let sim = Sim::new(SimConfig::default());
    let create =
        ImageCreate { pool: POOL.into(), image: "v".into(), size: 1 << 30, order: 22, features: bits };
    sim.site("a").call(create).await.unwrap();
    sim.site("b").call(ProbeMon {}).await.unwrap();
    sim
}

fn remembered(bits: u64) -> DriverData {
    DriverData {
        had_exclusive_lock: bits & features::EXCLUSIVE_LOCK != 0,
        had_journaling: bits & features::JOURNALING != 0,
    }
}

#[tokio::test(start_paused = true)]
async fn enabling_survives_every_crash() {
    for (bits, mode) in SETS.iter().flat_map(|s| MODES.map(|m| (*s, m))) {
        for killed in [Killed::Service, Killed::Worker] {
            let build = async || (image(bits).await, ());
            let run = async |sim: Sim, (), _| -> Result<(), RbdError> {
                let data = enable(&sim.site("a"), POOL, "v", mode, bits).await?;
                assert_eq!(data, remembered(bits));
                Ok(())
            };
            let check = async |sim: Sim, ()| {
                assert_eq!(sim.image("a", POOL, "v").unwrap().mirror, Some(mode));
                sim.advance(secs(90)).await;
                sim.assert_sides_agree();
            };
            assert!(for_every_crash_point(killed, build, run, check).await > 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn disabling_survives_every_crash_and_gives_the_features_back() {
    for (bits, mode) in SETS.iter().flat_map(|s| MODES.map(|m| (*s, m))) {
        for killed in [Killed::Service, Killed::Worker] {
            let build = async || {
                let sim = image(bits).await;
                let data = enable(&sim.site("a"), POOL, "v", mode, bits).await.unwrap();
                sim.advance(secs(60)).await;
                (sim, data)
            };
            let run = async |sim: Sim, data, _| disable(&sim.site("a"), POOL, "v", data).await;
            let check = async |sim: Sim, _| {
                let image = sim.image("a", POOL, "v").unwrap();
                assert_eq!((image.mirror, image.features), (None, bits));
                sim.advance(secs(60)).await;
                assert_eq!(sim.image("b", POOL, "v"), None, "the replica goes too");
            };
            assert!(for_every_crash_point(killed, build, run, check).await > 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_mirrored_in_the_other_mode_is_refused() {
    let sim = image(61).await;
    let site = sim.site("a");
    enable(&site, POOL, "v", MODES[0], 61).await.unwrap();
    enable(&site, POOL, "v", MODES[0], 61).await.unwrap();
    enable(&site, POOL, "v", MODES[1], 61).await.unwrap_err();
    assert_eq!(sim.image("a", POOL, "v").unwrap().mirror, Some(MODES[0]));
}
