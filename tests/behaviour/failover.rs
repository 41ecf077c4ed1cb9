//! Changes of sides: planned, forced, and back. No site dies here; the lab's drills do that.

use super::*;

pub async fn unforced_promotion_is_refused(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"data").await?;
    refused_as_one_of(&[Kind::Busy, Kind::ReadOnly], env.b.call(env.promote(&image, false)).await)?;
    ensure!(env.primary(&env.a, &image).await? && !env.primary(&env.b, &image).await?, "as before");
    env.a.call(env.check_writable(&image)).await?;
    Ok(())
}

pub async fn demotion_can_be_taken_back(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"data").await?;
    env.a.call(env.demote(&image)).await?;
    refused(Kind::Invalid, env.a.call(env.demote(&image)).await)?;
    ensure!(!env.primary(&env.a, &image).await? && !env.primary(&env.b, &image).await?, "primary nowhere");
    refused(Kind::ReadOnly, env.a.call(env.check_writable(&image)).await)?;
    env.promotes(&env.a, &image, false).await?;
    env.a.call(env.check_writable(&image)).await?;
    env.write(&env.a, &image, 0, b"DATA").await?;
    env.publish(&env.a, &image, mode).await?;
    env.replays(&env.b, &image).await?;
    env.replicated(&env.b, &image, b"DATA").await
}

pub async fn planned_failover_and_back(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"first").await?;
    // Not covered by a mirror snapshot of ours: the demotion itself must carry it over.
    env.write(&env.a, &image, 0, b"FIRST").await?;
    env.a.call(env.demote(&image)).await?;
    env.promotes(&env.b, &image, false).await?;
    ensure!(!env.primary(&env.a, &image).await?, "A is secondary");
    ensure!(env.read(&env.b, &image, None, 5).await? == b"FIRST", "nothing is lost");
    env.b.call(env.check_writable(&image)).await?;
    env.write(&env.b, &image, 0, b"there").await?;
    env.publish(&env.b, &image, mode).await?;
    env.replays(&env.a, &image).await?;
    env.replicated(&env.a, &image, b"there").await?;
    refused(Kind::ReadOnly, env.write(&env.a, &image, 0, b"x").await)?;

    env.b.call(env.demote(&image)).await?;
    env.promotes(&env.a, &image, false).await?;
    ensure!(env.read(&env.a, &image, None, 5).await? == b"there", "nothing is lost on the way back");
    env.a.call(env.check_writable(&image)).await?;
    env.replays(&env.b, &image).await
}

pub async fn forced_failover_split_brain_resync(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"common").await?;
    env.promotes(&env.b, &image, true).await?;
    ensure!(env.primary(&env.a, &image).await?, "a forced promotion does not ask the other side");
    refused(Kind::Invalid, env.b.call(env.promote(&image, true)).await)?;
    env.eventually("B writable", async || env.b.call(env.check_writable(&image)).await.map(Some)).await?;
    env.write(&env.b, &image, 0, b"winner").await?;
    env.write(&env.a, &image, 0, b"loser!").await?;
    refused(Kind::Invalid, env.a.call(env.resync(&image)).await)?;

    env.a.call(env.demote(&image)).await?;
    env.publish(&env.b, &image, mode).await?;
    env.eventually("the split-brain", async || {
        let report = env.a.call(MirrorStatus { pool: env.pool.clone(), image: image.clone() }).await?;
        Ok::<_, RbdError>(
            report.local.filter(|l| l.state == "error" && l.description.contains("split-brain")).map(|_| ()),
        )
    })
    .await?;
    ensure!(env.read(&env.a, &image, None, 6).await? == b"loser!", "nothing is discarded by itself");

    env.a.call(env.resync(&image)).await?;
    env.eventually("the winner's data on A", async || {
        let seen = env.read(&env.a, &image, None, 6).await?;
        Ok::<_, RbdError>((seen == b"winner").then_some(()))
    })
    .await?;
    env.replays(&env.a, &image).await?;
    ensure!(env.primary(&env.b, &image).await? && !env.primary(&env.a, &image).await?, "B won");
    Ok(())
}

pub async fn secondary_cut_loose(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"data").await?;
    env.promotes(&env.b, &image, true).await?;
    env.a.call(env.demote(&image)).await?;
    refused(Kind::Invalid, env.a.call(env.disable(&image, false)).await)?;
    env.a.call(env.disable(&image, true)).await?;
    ensure!(env.a.call(env.info(&image)).await?.state == MirrorState::Disabled, "cut loose");
    env.a.call(env.check_writable(&image)).await?;
    ensure!(env.read(&env.a, &image, None, 4).await? == b"data", "data is kept");
    env.b.call(env.disable(&image, false)).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(env.names(&env.a).await?.len() == 1, "no longer a replica: it does not go with its former peer");
    Ok(())
}

pub async fn resync_of_a_healthy_replica(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"data").await?;
    let id = env.b.call(env.stat(&image)).await?.id;
    env.b.call(env.resync(&image)).await?;
    env.eventually("a new replica", async || {
        let now = env.b.call(env.stat(&image)).await?.id;
        Ok::<_, RbdError>((now != id).then_some(()))
    })
    .await?;
    env.replays(&env.b, &image).await?;
    env.replicated(&env.b, &image, b"data").await
}
