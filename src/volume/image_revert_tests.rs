//! Reverting an image to a snapshot, killed at every step.

use super::*;

/// A volume mirrored as said, with a snapshot, that has been written to and has grown since.
async fn to_revert(sim: &Sim, mode: Option<MirrorMode>) {
    let p = place(sim);
    if let Some(mode) = mode {
        let (pool, image) = (POOL.to_owned(), "base".to_owned());
        sim.site("a").call(MirrorEnable { pool, image, mode }).await.unwrap();
    }
    p.snapshot("base", REVERTED, Attempt::First).await.unwrap();
    write(sim, "base", "later").await;
    p.grow("base", 3 * MIB).await.unwrap();
    sim.advance(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn reverting_to_a_snapshot() {
    for mode in [None, Some(MirrorMode::Journal), Some(MirrorMode::Snapshot)] {
        let prepare = async |sim: &Sim| to_revert(sim, mode).await;
        let operation = async |p: Place, _, _: &Journal| p.revert("base", REVERTED, 3 * MIB).await;
        same_end(plain, prepare, operation).await;

        let sim = with_bystanders(plain()).await;
        let before = sim.image("a", POOL, "base").unwrap();
        to_revert(&sim, mode).await;
        place(&sim).revert("base", REVERTED, 3 * MIB).await.unwrap();
        let after = sim.image("a", POOL, "base").unwrap();
        assert_eq!((after.checksum, after.size), (before.checksum, 3 * MIB), "{mode:?}");
        // What rbd-mirror copies between two mirror snapshots does not show a rollback.
        let restored = usize::from(mode == Some(MirrorMode::Snapshot));
        assert_eq!(
            (sim.count("SnapRestore"), sim.count("SnapRollback")),
            (restored, 1 - restored),
            "{mode:?}"
        );
        sim.advance(Duration::from_secs(60)).await;
        if mode.is_some() {
            sim.assert_sides_agree();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_secondary_is_not_reverted_and_neither_is_what_somebody_holds() {
    for mode in [MirrorMode::Journal, MirrorMode::Snapshot] {
        let sim = with_bystanders(plain()).await;
        to_revert(&sim, Some(mode)).await;
        let held = sim.occupy("a", POOL, "base").unwrap();
        let refusal = place(&sim).revert("base", REVERTED, 0).await.unwrap_err();
        assert_eq!(refusal.kind, RbdErrorKind::ReadOnly);
        sim.release("a", POOL, "base", &held);
        let (pool, image) = (POOL.to_owned(), "base".to_owned());
        sim.site("a").call(MirrorDemote { pool, image }).await.unwrap();
        let refusal = place(&sim).revert("base", REVERTED, 0).await.unwrap_err();
        assert_eq!(refusal.kind, RbdErrorKind::ReadOnly);
    }
}
