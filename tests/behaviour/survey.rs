//! What is asked before a failover: the pool's mirroring, and that of many images at once.

use super::*;
use scoria::rbd::mirror_survey::{Looked, PeerDirection};

pub async fn pool_view(env: &Env) -> Case {
    let looked = MirrorPoolView { pool: env.pool.clone() };
    for site in [&env.a, &env.b] {
        let seen = site.call(looked.clone()).await?;
        ensure!(seen.mode == PoolMirrorMode::Image, "{seen:?}");
        // A link that the peer's daemon has made by itself may stand beside the one that was configured.
        let receiving = |d: &PeerDirection| matches!(d, PeerDirection::Receives | PeerDirection::Both);
        ensure!(seen.peers.iter().any(|p| receiving(&p.direction)), "{seen:?}");
        ensure!(!seen.daemons.is_empty(), "{seen:?}");
        ensure!(seen.leader.as_ref().is_some_and(|l| seen.daemons.contains(l)), "{seen:?}");
        ensure!(!seen.scheduled, "{seen:?}");
    }
    let plain = env.a.call(MirrorPoolView { pool: env.plain_pool.clone() }).await?;
    ensure!(plain.mode == PoolMirrorMode::Disabled && plain.peers.is_empty(), "{plain:?}");
    refused_as_one_of(
        &[Kind::NoPool, Kind::NotFound],
        env.a.call(MirrorPoolView { pool: "bt-no-such-pool".into() }).await,
    )
}

pub async fn may_fence(env: &Env) -> Case {
    let before = env.a.call(BlocklistList {}).await?;
    ensure!(env.a.call(MayFence {}).await?, "profile rbd may");
    let after = env.a.call(BlocklistList {}).await?;
    let new: Vec<_> = after.iter().filter(|a| !before.contains(a)).collect();
    ensure!(!new.iter().any(|a| a.contains("may-fence") || a.starts_with("0.0.0.0")), "{new:?}");
    Ok(())
}

pub async fn many_images(env: &Env) -> Case {
    let mirrored = env.mirrored("mirrored", MirrorMode::Journal, b"data").await?;
    let parent = env.parent("parent", b"x").await?;
    let child = env.name("child");
    env.a.call(env.clone_of(&parent, &child)).await?;
    let images = vec![child.clone(), env.name("absent"), mirrored.clone()];
    let ask = MirrorSurvey { pool: env.pool.clone(), images };
    let seen = env.a.call(ask.clone()).await?;
    ensure!(seen.len() == 3 && seen[1] == Looked::Absent, "{seen:?}");
    let plain = seen[0].seen().context("the child")?;
    ensure!(plain.report.info.state == MirrorState::Disabled && plain.report.local.is_none(), "{plain:?}");
    ensure!(plain.parent.as_ref().is_some_and(|p| p.image == parent && p.snap == "s"), "{plain:?}");
    ensure!(plain.features & features::JOURNALING == 0, "{plain:?}");
    let primary = seen[2].seen().context("the primary")?;
    ensure!(primary.report.info.primary && primary.report.info.mode == MirrorMode::Journal, "{primary:?}");
    ensure!(primary.features & features::JOURNALING != 0, "{primary:?}");
    ensure!(primary.id == env.a.call(env.stat(&mirrored)).await?.id, "{primary:?}");
    // The copy: replayed, open by the daemon that holds its lock, and the other side's daemon knows it.
    let daemons = env.b.call(MirrorDaemons { pool: env.pool.clone() }).await?;
    env.eventually("a copy that is looked after", async || {
        let seen = env.b.call(ask.clone()).await?;
        let copy = seen[2].seen().context("the copy")?;
        let local = copy.report.local.as_ref();
        let replays = local.is_some_and(|l| l.up && l.state == "replaying");
        let open = copy.watchers.iter().any(|w| daemons.contains(&w.address));
        let fine = replays && open && !copy.report.info.primary && !copy.report.registered.is_empty();
        ensure!(seen[0] == Looked::Absent, "{seen:?}");
        if fine { Ok(Some(())) } else { Err(anyhow::anyhow!("{copy:?}, daemons {daemons:?}")) }
    })
    .await
}
