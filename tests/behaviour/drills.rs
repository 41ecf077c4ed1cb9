//! What a drill of a failover, and mirroring by snapshots at all, rest on: clones of copies, what tells that a copy is
//! complete, and the schedules of the manager.

use super::*;

fn replica_clone(env: &Env, image: &str, dest: &str) -> ReplicaClone {
    ReplicaClone {
        pool: env.pool.clone(),
        image: image.into(),
        snap: "s".into(),
        dest_pool: env.pool.clone(),
        dest: dest.into(),
        features: FEATURES,
        order: 22,
    }
}

async fn has_snap(env: &Env, site: &Site, image: &str) -> Result<bool, RbdError> {
    Ok(env.snaps(site, image).await?.iter().any(|s| s.name == "s"))
}

/// A clone of a copy's unprotected snapshot is written to, and gone again, and nobody has noticed.
pub async fn clone_of_an_unprotected_snapshot(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"before").await?;
    env.a.call(env.snap_create(&image, "s")).await?;
    env.publish(&env.a, &image, mode).await?;
    env.eventually("the snapshot on the other side", async || {
        Ok::<_, RbdError>(has_snap(env, &env.b, &image).await?.then_some(()))
    })
    .await?;
    env.eventually("its data", async || {
        let seen = env.read(&env.b, &image, Some("s"), 6).await?;
        Ok::<_, RbdError>((seen == b"before").then_some(()))
    })
    .await?;
    let clone = env.name("clone");
    refused(Kind::NotFound, env.b.call(replica_clone(env, &env.name("none"), &clone)).await)?;
    env.b.call(replica_clone(env, &image, &clone)).await?;
    refused(Kind::Exists, env.b.call(replica_clone(env, &image, &clone)).await)?;
    env.b.call(env.check_writable(&clone)).await?;
    env.write(&env.b, &clone, 0, b"drill!").await?;
    ensure!(env.read(&env.b, &clone, None, 6).await? == b"drill!");
    ensure!(env.read(&env.b, &image, Some("s"), 6).await? == b"before", "the copy is as it was");

    // It goes on beneath the clone.
    env.write(&env.a, &image, 0, b"after!").await?;
    env.publish(&env.a, &image, mode).await?;
    env.replicated(&env.b, &image, b"after!").await?;
    ensure!(env.read(&env.b, &clone, None, 6).await? == b"drill!");

    env.b.call(env.remove(&clone)).await?;
    env.a.call(SnapRemove { pool: env.pool.clone(), image: image.clone(), snap: "s".into() }).await?;
    env.publish(&env.a, &image, mode).await?;
    env.eventually("the snapshot gone on the other side", async || {
        Ok::<_, RbdError>((!has_snap(env, &env.b, &image).await?).then_some(()))
    })
    .await?;
    env.a.call(env.remove(&image)).await?;
    env.eventually("the copy gone, and nothing of it in the trash", async || {
        Ok::<_, RbdError>(
            (env.names(&env.b).await?.is_empty() && env.trash(&env.b).await?.is_empty()).then_some(()),
        )
    })
    .await
}

/// The volume goes while a drill is on, and its copy outlives it beneath the clone.
pub async fn clone_outlives_its_volume(env: &Env) -> Case {
    let image = env.mirrored("i", MirrorMode::Snapshot, b"before").await?;
    env.a.call(env.snap_create(&image, "s")).await?;
    let covering = env.a.call(env.mirror_snapshot(&image)).await?;
    arrived(env, &image, covering).await?;
    let clone = env.name("clone");
    env.b.call(replica_clone(env, &image, &clone)).await?;
    env.a.call(SnapRemove { pool: env.pool.clone(), image: image.clone(), snap: "s".into() }).await?;
    env.a.call(env.remove(&image)).await?;
    env.eventually("the copy's name gone", async || {
        Ok::<_, RbdError>((env.names(&env.b).await? == [clone.clone()]).then_some(()))
    })
    .await?;
    ensure!(env.read(&env.b, &clone, None, 6).await? == b"before");
    let trash = env.trash(&env.b).await?;
    ensure!(trash.iter().all(|t| t.mirroring), "it is rbd-mirror's: {trash:?}");
    env.write(&env.b, &clone, 0, b"drill!").await?;
    env.b.call(env.remove(&clone)).await?;
    env.eventually("nothing left", async || {
        Ok::<_, RbdError>(
            (env.names(&env.b).await?.is_empty() && env.trash(&env.b).await?.is_empty()).then_some(()),
        )
    })
    .await
}

async fn arrived(env: &Env, image: &str, covering: u64) -> Case {
    env.eventually("a complete copy of the mirror snapshot", async || {
        let ask = MirrorSnaps { pool: env.pool.clone(), image: image.into() };
        let copies = env.b.call(ask).await?;
        Ok::<_, RbdError>(copies.iter().any(|s| !s.primary && s.complete && s.of >= covering).then_some(()))
    })
    .await
}

/// When a copy says that it has a mirror snapshot, it has all its data, and the user snapshots of before.
pub async fn mirror_snapshots_tell_what_has_arrived(env: &Env) -> Case {
    let image = env.mirrored("i", MirrorMode::Snapshot, b"before").await?;
    env.write(&env.a, &image, 0, b"after!").await?;
    env.a.call(env.snap_create(&image, "s")).await?;
    let covering = env.a.call(env.mirror_snapshot(&image)).await?;
    let own = env.a.call(MirrorSnaps { pool: env.pool.clone(), image: image.clone() }).await?;
    ensure!(own.iter().any(|s| s.primary && s.id == covering && s.of == 0), "{own:?}");
    ensure!(own.is_sorted_by_key(|s| s.id), "{own:?}");
    arrived(env, &image, covering).await?;
    ensure!(env.read(&env.b, &image, Some("s"), 6).await? == b"after!");
    let snap = env.snaps(&env.b, &image).await?.into_iter().map(|s| s.id).max();
    let copies = env.b.call(MirrorSnaps { pool: env.pool.clone(), image: image.clone() }).await?;
    let whole = copies.iter().filter(|s| s.complete).map(|s| s.id).max();
    ensure!(snap < whole, "rbd-mirror's own is made after those that come with it: {snap:?} {copies:?}");

    let journaled = env.mirrored("j", MirrorMode::Journal, b"x").await?;
    for site in [&env.a, &env.b] {
        let none = site.call(MirrorSnaps { pool: env.pool.clone(), image: journaled.clone() }).await?;
        ensure!(none.is_empty(), "{none:?}");
    }
    refused(Kind::NotFound, env.a.call(MirrorSnaps { pool: env.pool.clone(), image: env.name("none") }).await)
}

/// Schedules: added, listed as they were written, removed; all of it twice.
pub async fn schedules(env: &Env) -> Case {
    let image = env.image("i").await?;
    let one: Schedule = "120m@0:30".parse()?;
    let other: Schedule = "1d".parse()?;
    let add = |image: &str, schedule: &Schedule| ScheduleAdd {
        pool: env.pool.clone(),
        image: image.into(),
        schedule: schedule.clone(),
    };
    let remove = |image: &str, schedule: &Schedule| ScheduleRemove {
        pool: env.pool.clone(),
        image: image.into(),
        schedule: schedule.clone(),
    };
    let list = async || -> anyhow::Result<Vec<Schedule>> {
        let all = env.a.call(ScheduleList { pool: env.pool.clone() }).await?;
        let of = all.into_iter().find(|s| s.image.as_deref() == Some(&image));
        let mut found = of.map(|s| s.schedules).unwrap_or_default();
        found.sort();
        Ok(found)
    };
    env.eventually("the module is ready", async || {
        Ok::<_, RbdError>(Some(env.a.call(ScheduleList { pool: env.pool.clone() }).await?))
    })
    .await?;
    refused(Kind::Invalid, env.a.call(add(&image, &one)).await)?;
    refused(Kind::Invalid, env.a.call(add(&env.name("none"), &one)).await)?;
    env.a.call(env.enable(&image, MirrorMode::Snapshot)).await?;
    ensure!(list().await?.is_empty());
    for _ in 0..2 {
        env.a.call(add(&image, &one)).await?;
        ensure!(list().await? == std::slice::from_ref(&one));
    }
    env.a.call(add(&image, &other)).await?;
    ensure!(list().await? == [other.clone(), one.clone()]);
    for _ in 0..2 {
        env.a.call(remove(&image, &one)).await?;
        ensure!(list().await? == std::slice::from_ref(&other));
    }
    env.a.call(remove(&image, &other)).await?;
    ensure!(list().await?.is_empty());
    Ok(())
}
