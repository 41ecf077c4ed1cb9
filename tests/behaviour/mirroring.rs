//! Mirroring in both modes, without a change of sides.

use super::*;

pub async fn unmirrored_image(env: &Env) -> Case {
    let image = env.image("i").await?;
    let info = env.a.call(env.info(&image)).await?;
    ensure!(info.state == MirrorState::Disabled && !info.primary && info.global_id.is_empty(), "{info:?}");
    env.a.call(env.disable(&image, false)).await.context("disabling what is not enabled")?;
    refused(Kind::NotFound, env.a.call(env.promote(&image, false)).await)?;
    refused(Kind::NotFound, env.a.call(env.promote(&image, true)).await)?;
    refused(Kind::Invalid, env.a.call(env.demote(&image)).await)?;
    refused(Kind::NotFound, env.a.call(env.resync(&image)).await)?;
    refused(Kind::Invalid, env.a.call(env.mirror_snapshot(&image)).await)
}

pub async fn pool_modes(env: &Env) -> Case {
    let mode = |pool: &str| MirrorPoolMode { pool: pool.to_owned() };
    ensure!(env.a.call(mode(&env.pool)).await? == PoolMirrorMode::Image, "mirrored pool");
    ensure!(env.a.call(mode(&env.plain_pool)).await? == PoolMirrorMode::Disabled, "plain pool");
    let (pool, image) = (env.plain_pool.clone(), env.name("i"));
    env.a.call(ImageCreate { pool: pool.clone(), ..env.create(&image) }).await?;
    for mode in [MirrorMode::Journal, MirrorMode::Snapshot] {
        let enable = MirrorEnable { pool: pool.clone(), image: image.clone(), mode };
        refused(Kind::Invalid, env.a.call(enable).await)?;
    }
    Ok(())
}

fn other(mode: MirrorMode) -> MirrorMode {
    match mode {
        MirrorMode::Journal => MirrorMode::Snapshot,
        MirrorMode::Snapshot => MirrorMode::Journal,
    }
}

pub async fn enable_disable(env: &Env, mode: MirrorMode) -> Case {
    let image = env.name("i");
    env.a.call(ImageCreate { features: features::LAYERING, ..env.create(&image) }).await?;
    env.a.call(env.enable(&image, mode)).await?;
    env.a.call(env.enable(&image, mode)).await.context("enabled twice")?;
    refused(Kind::Invalid, env.a.call(env.enable(&image, other(mode))).await)?;
    let info = env.a.call(env.info(&image)).await?;
    ensure!(info.state == MirrorState::Enabled && info.primary && info.mode == mode, "{info:?}");
    ensure!(info.global_id.len() == 36, "{info:?}");
    if mode == MirrorMode::Journal {
        let features = env.a.call(env.stat(&image)).await?.features;
        let added = features::EXCLUSIVE_LOCK | features::JOURNALING;
        ensure!(features == features::LAYERING | added, "enabling adds what it needs: {features}");
    }
    env.eventually("the replica", async || {
        let there = env.b.call(env.info(&image)).await?;
        Ok::<_, RbdError>((there.state == MirrorState::Enabled).then_some(there))
    })
    .await
    .and_then(|there| {
        ensure!(!there.primary && there.mode == mode && there.global_id == info.global_id, "{there:?}");
        Ok(())
    })?;
    env.a.call(env.disable(&image, false)).await?;
    let info = env.a.call(env.info(&image)).await?;
    ensure!(info.state == MirrorState::Disabled, "{info:?}");
    let features = env.a.call(env.stat(&image)).await?.features;
    // Snapshot mode: the refused enabling above, by journal, has switched journaling on and left it so.
    let left = mode == MirrorMode::Snapshot;
    ensure!((features & features::JOURNALING != 0) == left, "disabling takes journaling away: {features}");
    gone_from_b(env).await
}

async fn gone_from_b(env: &Env) -> Case {
    env.eventually("the replica's removal", async || {
        Ok::<_, RbdError>(env.names(&env.b).await?.is_empty().then_some(()))
    })
    .await
}

pub async fn primary_refusals(env: &Env, mode: MirrorMode) -> Case {
    let image = env.image("i").await?;
    env.a.call(env.enable(&image, mode)).await?;
    refused(Kind::Invalid, env.a.call(env.promote(&image, false)).await)?;
    refused(Kind::Invalid, env.a.call(env.promote(&image, true)).await)?;
    refused(Kind::Invalid, env.a.call(env.resync(&image)).await)?;
    match mode {
        MirrorMode::Journal => {
            refused(Kind::Invalid, env.a.call(env.mirror_snapshot(&image)).await)?;
            let off = ImageFeatures {
                pool: env.pool.clone(),
                image: image.clone(),
                features: features::JOURNALING,
                enable: false,
            };
            refused(Kind::Invalid, env.a.call(off).await)?;
        }
        MirrorMode::Snapshot => {
            let (one, two) = (
                env.a.call(env.mirror_snapshot(&image)).await?,
                env.a.call(env.mirror_snapshot(&image)).await?,
            );
            ensure!(two > one, "ids grow: {one}, {two}");
            ensure!(env.snaps(&env.a, &image).await?.is_empty(), "mirror snapshots are not user snapshots");
        }
    }
    env.a.call(env.check_writable(&image)).await?;
    env.a.call(env.snap_create(&image, "s")).await?;
    refused(Kind::HasSnapshots, env.a.call(env.remove(&image)).await)?;
    ensure!(env.primary(&env.a, &image).await?, "a refused removal leaves mirroring on");
    Ok(())
}

/// What the daemon works with is not taken from it.
pub async fn sync_points_of_a_copy_that_runs(env: &Env) -> Case {
    let image = env.image("i").await?;
    let data = vec![7; 1 << 20];
    for n in 0..SIZE / (1 << 20) {
        env.write(&env.a, &image, n << 20, &data).await?;
    }
    env.a.call(env.enable(&image, MirrorMode::Journal)).await?;
    let sweep = SyncPointsRemove { pool: env.pool.clone(), image: image.clone() };
    env.eventually("the copy", async || {
        ensure!(env.a.call(sweep.clone()).await? == 0, "a sync point was taken for a stale one");
        Ok::<_, anyhow::Error>(env.names(&env.b).await?.contains(&image).then_some(()))
    })
    .await?;
    env.replays(&env.b, &image).await?;
    env.write(&env.a, &image, 0, b"end").await?;
    env.replicated(&env.b, &image, b"end").await
}

pub async fn secondary_refusals(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"data").await?;
    let (b, p, i) = (&env.b, || env.pool.clone(), || image.clone());
    ensure!(env.read(b, &image, None, 4).await? == b"data", "reading works");
    ensure!(b.call(env.stat(&image)).await?.size == SIZE, "stat works");
    refused(Kind::ReadOnly, b.call(env.check_writable(&image)).await)?;
    refused(Kind::ReadOnly, env.write(b, &image, 0, b"x").await)?;
    refused(Kind::ReadOnly, b.call(env.snap_create(&image, "s")).await)?;
    refused(Kind::ReadOnly, b.call(ImageResize { pool: p(), image: i(), size: 2 * SIZE }).await)?;
    refused(Kind::ReadOnly, b.call(ImageRename { pool: p(), from: i(), to: env.name("other") }).await)?;
    let set = MetadataSet { pool: p(), image: i(), key: "k".into(), value: "v".into() };
    refused(Kind::ReadOnly, b.call(set).await)?;
    let map_off = ImageFeatures {
        pool: p(),
        image: i(),
        features: features::OBJECT_MAP | features::FAST_DIFF,
        enable: false,
    };
    refused(Kind::ReadOnly, b.call(map_off).await)?;
    refused(Kind::Invalid, b.call(env.demote(&image)).await)?;
    refused(Kind::Invalid, b.call(env.disable(&image, false)).await)?;
    refused(Kind::Invalid, b.call(env.mirror_snapshot(&image)).await)?;
    b.call(env.enable(&image, mode)).await.context("enabling a secondary changes nothing")?;
    ensure!(!env.primary(b, &image).await? && env.primary(&env.a, &image).await?, "still as before");
    Ok(())
}

pub async fn journal_secondary_cannot_go(env: &Env) -> Case {
    let image = env.mirrored("i", MirrorMode::Journal, b"data").await?;
    refused(Kind::Busy, env.b.call(env.remove(&image)).await)?;
    let bin = TrashMove { pool: env.pool.clone(), image: image.clone(), delay: 0 };
    refused(Kind::Busy, env.b.call(bin).await)?;
    env.a.call(env.demote(&image)).await?;
    refused(Kind::Invalid, env.a.call(env.remove(&image)).await)?;
    env.promotes(&env.a, &image, false).await
}

pub async fn snapshot_mode_secondary_cannot_go(env: &Env) -> Case {
    let image = env.mirrored("i", MirrorMode::Snapshot, b"data").await?;
    refused(Kind::Invalid, env.b.call(env.remove(&image)).await)?;
    let bin = TrashMove { pool: env.pool.clone(), image: image.clone(), delay: 0 };
    refused(Kind::Invalid, env.b.call(bin).await)?;
    env.a.call(env.snap_create(&image, "s")).await?;
    env.publish(&env.a, &image, MirrorMode::Snapshot).await?;
    env.eventually("the snapshot", async || Ok::<_, RbdError>(env.snaps(&env.b, &image).await?.pop()))
        .await?;
    refused(Kind::HasSnapshots, env.b.call(env.remove(&image)).await)
}

pub async fn removal_takes_the_replica(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"data").await?;
    env.a.call(env.remove(&image)).await?;
    refused(Kind::NotFound, env.a.call(env.info(&image)).await)?;
    gone_from_b(env).await?;
    env.eventually("an empty trash", async || {
        Ok::<_, RbdError>(env.trash(&env.b).await?.is_empty().then_some(()))
    })
    .await
}

pub async fn snapshots_replicate(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"before").await?;
    env.a.call(env.snap_create(&image, "s")).await?;
    let of = || (env.pool.clone(), image.clone(), "s".to_owned());
    let (pool, i, snap) = of();
    env.a.call(SnapProtect { pool, image: i, snap }).await?;
    env.write(&env.a, &image, 0, b"after!").await?;
    env.publish(&env.a, &image, mode).await?;
    env.replicated(&env.b, &image, b"after!").await?;
    let there = env
        .eventually("the protected snapshot", async || {
            let all = env.snaps(&env.b, &image).await?;
            Ok::<_, RbdError>(all.into_iter().find(|s| s.protected))
        })
        .await?;
    ensure!(there.name == "s" && there.size == SIZE, "{there:?}");
    env.eventually("the snapshot's data", async || {
        let seen = env.read(&env.b, &image, Some("s"), 6).await?;
        Ok::<_, RbdError>((seen == b"before").then_some(()))
    })
    .await?;
    let (pool, i, snap) = of();
    refused(Kind::ReadOnly, env.b.call(SnapRemove { pool, image: i, snap }).await)?;
    let (pool, i, snap) = of();
    refused(Kind::ReadOnly, env.b.call(SnapUnprotect { pool, image: i, snap }).await)?;
    let (pool, i, snap) = of();
    let kind = if mode == MirrorMode::Journal { Kind::Busy } else { Kind::ReadOnly };
    refused(kind, env.b.call(SnapProtect { pool, image: i, snap }).await)?;
    let (pool, i, snap) = of();
    env.a.call(SnapUnprotect { pool, image: i, snap }).await?;
    let (pool, i, snap) = of();
    env.a.call(SnapRemove { pool, image: i, snap }).await?;
    env.publish(&env.a, &image, mode).await?;
    env.eventually("the snapshot's removal", async || {
        Ok::<_, RbdError>(env.snaps(&env.b, &image).await?.is_empty().then_some(()))
    })
    .await
}

pub async fn data_waits_for_a_mirror_snapshot(env: &Env) -> Case {
    let image = env.mirrored("i", MirrorMode::Snapshot, b"one").await?;
    env.write(&env.a, &image, 0, b"two").await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(env.read(&env.b, &image, None, 3).await? == b"one", "nothing goes by itself");
    env.publish(&env.a, &image, MirrorMode::Snapshot).await?;
    env.replicated(&env.b, &image, b"two").await
}

pub async fn resize_replicates(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"data").await?;
    env.a.call(ImageResize { pool: env.pool.clone(), image: image.clone(), size: 2 * SIZE }).await?;
    env.publish(&env.a, &image, mode).await?;
    env.eventually("the new size", async || {
        let size = env.b.call(env.stat(&image)).await?.size;
        Ok::<_, RbdError>((size == 2 * SIZE).then_some(()))
    })
    .await
}

pub async fn child_needs_mirrored_parent(env: &Env, mode: MirrorMode) -> Case {
    let (parent, child) = (env.parent("parent", b"x").await?, env.name("child"));
    env.a.call(env.clone_of(&parent, &child)).await?;
    refused(Kind::Invalid, env.a.call(env.enable(&child, mode)).await)?;
    ensure!(env.a.call(env.info(&child)).await?.state == MirrorState::Disabled, "nothing is left");
    env.a.call(env.enable(&parent, mode)).await?;
    env.a.call(env.enable(&child, mode)).await?;
    refused(Kind::Busy, env.a.call(env.disable(&parent, false)).await)
}

pub async fn child_replicates_as_clone(env: &Env, mode: MirrorMode) -> Case {
    let (parent, child) = (env.parent("parent", b"parent").await?, env.name("child"));
    env.a.call(env.enable(&parent, mode)).await?;
    env.a.call(env.clone_of(&parent, &child)).await?;
    env.a.call(env.enable(&child, mode)).await?;
    env.replays(&env.b, &child).await?;
    env.replicated(&env.b, &child, b"parent").await?;
    let there = env.b.call(env.stat(&child)).await?.parent.context("a clone there, too")?;
    ensure!(there.image == parent && there.snap == "s", "{there:?}");
    ensure!(there.pool == env.pool, "{there:?}");
    Ok(())
}

/// A mirrored clone whose replica is flattened as well.
async fn flattened(env: &Env, mode: MirrorMode) -> anyhow::Result<String> {
    let (parent, child) = (env.parent("parent", b"parent").await?, env.name("child"));
    env.a.call(env.enable(&parent, mode)).await?;
    env.a.call(env.clone_of(&parent, &child)).await?;
    env.a.call(env.enable(&child, mode)).await?;
    env.replays(&env.b, &child).await?;
    env.replicated(&env.b, &child, b"parent").await?;
    env.a.call(ImageFlatten { pool: env.pool.clone(), image: child.clone() }).await?;
    env.publish(&env.a, &child, mode).await?;
    env.eventually("the replica flattened", async || {
        let parent = env.b.call(env.stat(&child)).await?.parent;
        Ok::<_, RbdError>(parent.is_none().then_some(()))
    })
    .await?;
    Ok(child)
}

pub async fn journal_flatten_replicates(env: &Env) -> Case {
    let child = flattened(env, MirrorMode::Journal).await?;
    env.replicated(&env.b, &child, b"parent").await
}

/// Ceph 16.2.15 loses data here, and says nothing: what flattening copies from the parent counts as already there in
/// the mirror snapshots before it, so it is in no difference, and the replica, which has lost
/// its parent, reads as zeros. Only a full copy repairs it.
pub async fn snapshot_mode_flatten_ruins_the_replica(env: &Env) -> Case {
    let child = flattened(env, MirrorMode::Snapshot).await?;
    ensure!(env.read(&env.a, &child, None, 6).await? == b"parent", "the primary is well");
    env.write(&env.a, &child, 4096, b"later").await?;
    env.publish(&env.a, &child, MirrorMode::Snapshot).await?;
    env.eventually("the later write", async || {
        let seen = env.read(&env.b, &child, None, 4101).await?;
        Ok::<_, RbdError>(seen.ends_with(b"later").then_some(()))
    })
    .await?;
    ensure!(
        env.read(&env.b, &child, None, 6).await? == [0; 6],
        "the replica is well: Ceph has been repaired"
    );

    let id = env.b.call(env.stat(&child)).await?.id;
    env.b.call(env.resync(&child)).await?;
    env.eventually("a new replica", async || {
        let now = env.b.call(env.stat(&child)).await?.id;
        Ok::<_, RbdError>((now != id).then_some(()))
    })
    .await?;
    env.replicated(&env.b, &child, b"parent").await
}

/// The way around it: mirroring is enabled after the flattening, or anew.
pub async fn snapshot_mode_flatten_between_disable_and_enable(env: &Env) -> Case {
    let mode = MirrorMode::Snapshot;
    let (parent, child) = (env.parent("parent", b"parent").await?, env.name("child"));
    env.a.call(env.enable(&parent, mode)).await?;
    env.a.call(env.clone_of(&parent, &child)).await?;
    env.a.call(env.enable(&child, mode)).await?;
    env.replicated(&env.b, &child, b"parent").await?;
    env.a.call(env.disable(&child, false)).await?;
    env.a.call(ImageFlatten { pool: env.pool.clone(), image: child.clone() }).await?;
    env.eventually("the old replica's removal", async || {
        Ok::<_, RbdError>((!env.names(&env.b).await?.contains(&child)).then_some(()))
    })
    .await?;
    env.a.call(env.enable(&child, mode)).await?;
    env.replicated(&env.b, &child, b"parent").await?;
    ensure!(env.b.call(env.stat(&child)).await?.parent.is_none(), "flat on both sides");
    Ok(())
}

pub async fn clone_of_a_replica(env: &Env, mode: MirrorMode) -> Case {
    let (image, clone) = (env.parent("i", b"pinned").await?, env.name("clone"));
    env.a.call(env.enable(&image, mode)).await?;
    env.replays(&env.b, &image).await?;
    env.eventually("the protected snapshot with its data", async || {
        let protected = env.snaps(&env.b, &image).await?.into_iter().any(|s| s.protected);
        let data = env.read(&env.b, &image, Some("s"), 6).await?;
        Ok::<_, RbdError>((protected && data == b"pinned").then_some(()))
    })
    .await?;
    env.b.call(ImageClone { dest_pool: env.plain_pool.clone(), ..env.clone_of(&image, &clone) }).await?;
    let (pool, dest) = (env.plain_pool.clone(), clone.clone());
    let read =
        move || ImageRead { pool: pool.clone(), image: dest.clone(), snap: None, offset: 0, length: 6 };
    ensure!(env.b.call(read()).await? == b"pinned", "read through");
    let write = ImageWrite { pool: env.plain_pool.clone(), image: clone, offset: 0, data: b"X".into() };
    env.b.call(write).await.context("the clone of a replica is writable")?;
    ensure!(env.b.call(read()).await? == b"Xinned", "written");
    Ok(())
}

pub async fn info_many(env: &Env) -> Case {
    let (plain, journal, snapshot) =
        (env.image("plain").await?, env.image("journal").await?, env.image("snapshot").await?);
    env.a.call(env.enable(&journal, MirrorMode::Journal)).await?;
    env.a.call(env.enable(&snapshot, MirrorMode::Snapshot)).await?;
    let images = vec![snapshot.clone(), env.name("missing"), plain, journal.clone()];
    let all = env.a.call(MirrorInfoMany { pool: env.pool.clone(), images: images.clone() }).await?;
    let [Some(s), None, Some(p), Some(j)] = all.as_slice() else { bail!("{all:?}") };
    let reports = env.a.call(MirrorStatusMany { pool: env.pool.clone(), images }).await?;
    let infos: Vec<_> = reports.iter().map(|report| report.as_ref().map(|r| r.info.clone())).collect();
    ensure!(infos == all, "{reports:?}");
    let unmirrored = MirrorReport::without_reports(p.clone());
    ensure!(reports.get(2) == Some(&Some(unmirrored)), "{reports:?}");
    ensure!(*s == env.a.call(env.info(&snapshot)).await?, "{s:?}");
    ensure!(*j == env.a.call(env.info(&journal)).await?, "{j:?}");
    ensure!(p.state == MirrorState::Disabled, "{p:?}");
    Ok(())
}

pub async fn status(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"data").await?;
    let report = |site: &Site| {
        let site = site.clone();
        let request = MirrorStatus { pool: env.pool.clone(), image: image.clone() };
        async move { site.call(request).await }
    };
    let there = report(&env.b).await?;
    let local = there.local.context("a local report on B")?;
    ensure!(local.description.starts_with("replaying, {"), "{local:?}");
    ensure!(local.mirror_uuid.is_empty() && local.last_update > 0, "{local:?}");
    env.eventually("the primary's report", async || {
        let here = report(&env.a).await?;
        let stopped = here.local.filter(|l| l.up && l.state == "stopped");
        let primary = stopped.filter(|l| l.description == "local image is primary");
        let peer = here.peers.into_iter().find(|p| p.up && p.state == "replaying");
        Ok::<_, RbdError>(primary.zip(peer.filter(|p| !p.mirror_uuid.is_empty())))
    })
    .await?;
    // The same of all images of the pool, without opening any.
    let id = env.a.call(env.stat(&image)).await?.id;
    let global_id = env.a.call(env.info(&image)).await?.global_id;
    let (uuid, here) = listed(env, &env.a, &image).await?;
    let (uuid_there, there) = listed(env, &env.b, &image).await?;
    ensure!(
        here.id == id && here.global_id == global_id && there.global_id == global_id,
        "{here:?} {there:?}"
    );
    ensure!(!uuid.is_empty() && uuid != uuid_there, "{uuid} {uuid_there}");
    ensure!(
        here.local.as_ref().is_some_and(|l| l.state == "stopped" && l.mirror_uuid.is_empty()),
        "{here:?}"
    );
    let peer =
        here.peers.iter().find(|p| p.mirror_uuid == uuid_there).context("the peer, by its signature")?;
    ensure!(peer.up && peer.state == "replaying" && peer.last_update > 0, "{peer:?}");
    ensure!(there.local.is_some_and(|l| l.up && l.state == "replaying"), "the copy's own report");
    Ok(())
}

/// A site's signature and one image of its list, which is read in pages of one.
async fn listed(env: &Env, site: &Site, image: &str) -> anyhow::Result<(String, MirrorListed)> {
    let (mut after, mut found, mut seen) = (String::new(), None, 0);
    loop {
        let ask = MirrorStatusPage { pool: env.pool.clone(), after: after.clone(), limit: 1 };
        let page = site.call(ask).await?;
        ensure!(page.images.len() <= 1, "more than asked for: {page:?}");
        let Some(one) = page.images.into_iter().next() else {
            let found: MirrorListed = found.with_context(|| format!("not among {seen} images"))?;
            return Ok((page.mirror_uuid, found));
        };
        ensure!(one.id > after, "ids grow: {after}, {}", one.id);
        after.clone_from(&one.id);
        seen += 1;
        if one.name == image {
            found = Some(one);
        }
    }
}

pub async fn journal_replica_lock_is_the_daemons(env: &Env) -> Case {
    let image = env.mirrored("i", MirrorMode::Journal, b"data").await?;
    let daemons = env.b.call(MirrorDaemons { pool: env.pool.clone() }).await?;
    ensure!(!daemons.is_empty(), "no daemons");
    env.eventually("the daemon's lock", async || {
        let owners = env.b.call(LockOwners { pool: env.pool.clone(), image: image.clone() }).await?;
        ensure!(
            owners.iter().all(|o| daemons.contains(o)),
            "owned by {owners:?}, the daemons are {daemons:?}"
        );
        Ok(owners.first().map(|_| ()))
    })
    .await?;
    ensure!(env.a.call(MirrorDaemons { pool: env.pool.clone() }).await? != daemons, "each site has its own");
    Ok(())
}

pub async fn trashing_ends_mirroring(env: &Env, mode: MirrorMode) -> Case {
    let image = env.mirrored("i", mode, b"data").await?;
    env.a.call(TrashMove { pool: env.pool.clone(), image: image.clone(), delay: 0 }).await?;
    let trash = env.trash(&env.a).await?;
    ensure!(trash.len() == 1 && !trash[0].mirroring, "in the trash of A: {trash:?}");
    gone_from_b(env).await
}

/// A mirrored image that has `data` on both sides, a snapshot from before, and its copy.
async fn with_snapshot_and_later_data(env: &Env, mode: MirrorMode) -> anyhow::Result<String> {
    let image = env.mirrored("i", mode, b"before").await?;
    env.a.call(env.snap_create(&image, "s")).await?;
    env.write(&env.a, &image, 0, b"after!").await?;
    env.write(&env.a, &image, SIZE - 4, b"tail").await?;
    env.publish(&env.a, &image, mode).await?;
    env.replicated(&env.b, &image, b"after!").await?;
    Ok(image)
}

async fn went_back(env: &Env, image: &str, mode: MirrorMode) -> Case {
    env.publish(&env.a, image, mode).await?;
    env.replicated(&env.b, image, b"before").await?;
    env.eventually("the end of the replica as it was", async || {
        let seen = env.read(&env.b, image, None, SIZE).await?;
        Ok::<_, RbdError>(seen.ends_with(&[0; 4]).then_some(()))
    })
    .await?;
    ensure!(env.a.call(env.stat(image)).await?.size == SIZE, "the size");
    // It goes on as before.
    env.write(&env.a, image, 0, b"later!").await?;
    env.publish(&env.a, image, mode).await?;
    env.replicated(&env.b, image, b"later!").await
}

pub async fn journal_rollback_replicates(env: &Env) -> Case {
    let image = with_snapshot_and_later_data(env, MirrorMode::Journal).await?;
    let back = || SnapRollback { pool: env.pool.clone(), image: image.clone(), snap: "s".into() };
    refused(Kind::ReadOnly, env.b.call(back()).await)?;
    env.a.call(back()).await?;
    went_back(env, &image, MirrorMode::Journal).await
}

pub async fn restoration_replicates(env: &Env, mode: MirrorMode) -> Case {
    let image = with_snapshot_and_later_data(env, mode).await?;
    let back = || SnapRestore { pool: env.pool.clone(), image: image.clone(), snap: "s".into() };
    env.eventually("the snapshot on the other side", async || {
        let all = env.snaps(&env.b, &image).await?;
        Ok::<_, RbdError>(all.into_iter().find(|s| s.name == "s"))
    })
    .await?;
    refused(Kind::ReadOnly, env.b.call(back()).await)?;
    env.a.call(back()).await?;
    went_back(env, &image, mode).await
}
