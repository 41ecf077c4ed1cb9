//! Snapshots and clones (clone format 1, the default of a new Ceph 16 cluster).

use super::*;

fn snap(env: &Env, image: &str, snap: &str) -> (String, String, String) {
    (env.pool.clone(), image.to_owned(), snap.to_owned())
}

async fn protect(env: &Env, i: &str, s: &str) -> Result<(), RbdError> {
    let (pool, image, snap) = snap(env, i, s);
    env.a.call(SnapProtect { pool, image, snap }).await
}

async fn unprotect(env: &Env, i: &str, s: &str) -> Result<(), RbdError> {
    let (pool, image, snap) = snap(env, i, s);
    env.a.call(SnapUnprotect { pool, image, snap }).await
}

async fn remove(env: &Env, i: &str, s: &str) -> Result<(), RbdError> {
    let (pool, image, snap) = snap(env, i, s);
    env.a.call(SnapRemove { pool, image, snap }).await
}

async fn children(env: &Env, i: &str, s: Option<&str>) -> Result<Vec<ImageName>, RbdError> {
    let (pool, image, snap) = (env.pool.clone(), i.to_owned(), s.map(str::to_owned));
    let mut all = env.a.call(ImageChildren { pool, image, snap }).await?;
    all.sort_by(|a, b| a.image.cmp(&b.image));
    Ok(all)
}

pub async fn create_list_remove(env: &Env) -> Case {
    let image = env.image("i").await?;
    env.a.call(env.snap_create(&image, "one")).await?;
    env.a.call(ImageResize { pool: env.pool.clone(), image: image.clone(), size: 2 * SIZE }).await?;
    env.a.call(env.snap_create(&image, "two")).await?;
    let snaps = env.snaps(&env.a, &image).await?;
    let seen: Vec<_> = snaps.iter().map(|s| (s.name.as_str(), s.size, s.protected)).collect();
    ensure!(seen == [("one", SIZE, false), ("two", 2 * SIZE, false)], "{seen:?}");
    ensure!(snaps[0].id < snaps[1].id, "ids grow");
    remove(env, &image, "one").await?;
    remove(env, &image, "two").await?;
    ensure!(env.snaps(&env.a, &image).await?.is_empty(), "none left");
    env.a.call(env.remove(&image)).await?;
    Ok(())
}

pub async fn twice_and_missing(env: &Env) -> Case {
    let image = env.image("i").await?;
    env.a.call(env.snap_create(&image, "s")).await?;
    refused(Kind::Exists, env.a.call(env.snap_create(&image, "s")).await)?;
    refused(Kind::NotFound, remove(env, &image, "none").await)?;
    refused(Kind::NotFound, protect(env, &image, "none").await)?;
    refused(Kind::NotFound, unprotect(env, &image, "none").await)?;
    refused(Kind::NotFound, env.read(&env.a, &image, Some("none"), 1).await)?;
    refused(Kind::NotFound, children(env, &image, Some("none")).await)
}

pub async fn protection(env: &Env) -> Case {
    let image = env.image("i").await?;
    env.a.call(env.snap_create(&image, "s")).await?;
    refused(Kind::Invalid, unprotect(env, &image, "s").await)?;
    protect(env, &image, "s").await?;
    refused(Kind::Busy, protect(env, &image, "s").await)?;
    ensure!(env.snaps(&env.a, &image).await?[0].protected, "listed as protected");
    refused(Kind::Busy, remove(env, &image, "s").await)?;
    unprotect(env, &image, "s").await?;
    remove(env, &image, "s").await?;
    Ok(())
}

pub async fn rename(env: &Env) -> Case {
    let image = env.parent("i", b"x").await?;
    env.a.call(env.snap_create(&image, "other")).await?;
    let rename = |from: &str, to: &str| SnapRename {
        pool: env.pool.clone(),
        image: image.clone(),
        from: from.into(),
        to: to.into(),
    };
    refused(Kind::Exists, env.a.call(rename("s", "other")).await)?;
    refused(Kind::Exists, env.a.call(rename("s", "s")).await)?;
    refused(Kind::NotFound, env.a.call(rename("none", "new")).await)?;
    env.a.call(rename("s", "new")).await.context("a protected one")?;
    let mut names: Vec<_> = env.snaps(&env.a, &image).await?.into_iter().map(|s| s.name).collect();
    names.sort();
    ensure!(names == ["new", "other"], "{names:?}");
    Ok(())
}

pub async fn keeps_data(env: &Env) -> Case {
    let image = env.parent("i", b"before").await?;
    env.write(&env.a, &image, 0, b"after!").await?;
    ensure!(env.read(&env.a, &image, None, 6).await? == b"after!", "head");
    ensure!(env.read(&env.a, &image, Some("s"), 6).await? == b"before", "snapshot");
    Ok(())
}

pub async fn keeps_image(env: &Env) -> Case {
    let image = env.parent("i", b"x").await?;
    refused(Kind::HasSnapshots, env.a.call(env.remove(&image)).await)?;
    unprotect(env, &image, "s").await?;
    refused(Kind::HasSnapshots, env.a.call(env.remove(&image)).await)?;
    remove(env, &image, "s").await?;
    env.a.call(env.remove(&image)).await?;
    Ok(())
}

pub async fn clone_refusals(env: &Env) -> Case {
    let image = env.parent("i", b"x").await?;
    let taken = env.image("taken").await?;
    let clone = env.name("clone");
    refused(Kind::Exists, env.a.call(env.clone_of(&image, &taken)).await)?;
    refused(
        Kind::NotFound,
        env.a.call(ImageClone { snap: "none".into(), ..env.clone_of(&image, &clone) }).await,
    )?;
    let bare = ImageClone { features: features::EXCLUSIVE_LOCK, ..env.clone_of(&image, &clone) };
    refused(Kind::NotSupported, env.a.call(bare).await)?;
    unprotect(env, &image, "s").await?;
    refused(Kind::Invalid, env.a.call(env.clone_of(&image, &clone)).await)?;
    ensure!(!env.names(&env.a).await?.contains(&clone), "nothing is left of a refused clone");
    Ok(())
}

pub async fn clone_reads_through_and_flattens(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"parent").await?, env.name("clone"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    let info = env.a.call(env.stat(&clone)).await?;
    let parent = Parent { pool: env.pool.clone(), image: image.clone(), snap: "s".into() };
    ensure!(info.parent == Some(parent) && info.size == SIZE && info.features == FEATURES, "{info:?}");
    ensure!(env.read(&env.a, &clone, None, 6).await? == b"parent", "read through");
    env.write(&env.a, &clone, 2, b"X").await?;
    ensure!(env.read(&env.a, &clone, None, 6).await? == b"paXent", "copied up");
    ensure!(env.read(&env.a, &image, None, 6).await? == b"parent", "the parent is untouched");
    env.a.call(env.snap_create(&clone, "of-clone")).await?;
    env.a.call(ImageFlatten { pool: env.pool.clone(), image: clone.clone() }).await?;
    ensure!(env.a.call(env.stat(&clone)).await?.parent.is_none(), "no parent left");
    ensure!(env.read(&env.a, &clone, None, 6).await? == b"paXent", "data is kept");
    ensure!(env.read(&env.a, &clone, Some("of-clone"), 6).await? == b"paXent", "the snapshot's too");
    ensure!(children(env, &image, None).await?.is_empty(), "no children left");
    unprotect(env, &image, "s").await?;
    Ok(())
}

pub async fn inspection_is_stat_and_list(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"parent").await?, env.name("clone"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    env.a.call(env.snap_create(&clone, "one")).await?;
    env.a.call(env.snap_create(&clone, "two")).await?;
    for (name, snaps) in [(&image, 1), (&clone, 2)] {
        let found = env.a.call(env.inspect(name)).await?;
        ensure!(found.info == env.a.call(env.stat(name)).await?, "{found:?}");
        ensure!(found.snaps == env.snaps(&env.a, name).await? && found.snaps.len() == snaps, "{found:?}");
    }
    Ok(())
}

pub async fn clone_keeps_parent(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"x").await?, env.name("clone"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    let child = ImageName { pool: env.pool.clone(), image: clone.clone(), trash: false };
    ensure!(children(env, &image, None).await? == [child.clone()], "child of the image");
    ensure!(children(env, &image, Some("s")).await? == [child], "child of the snapshot");
    refused(Kind::Busy, unprotect(env, &image, "s").await)?;
    refused(Kind::Busy, remove(env, &image, "s").await)?;
    refused(Kind::HasSnapshots, env.a.call(env.remove(&image)).await)?;
    env.a.call(env.remove(&clone)).await?;
    unprotect(env, &image, "s").await?;
    remove(env, &image, "s").await?;
    env.a.call(env.remove(&image)).await?;
    Ok(())
}

/// `<volume>.deleted`: a deleted volume with a dependent clone lives on under another name.
pub async fn clone_follows_renamed_parent(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"kept").await?, env.name("clone"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    let deleted = format!("{image}.deleted");
    env.a.call(ImageRename { pool: env.pool.clone(), from: image, to: deleted.clone() }).await?;
    let parent = env.a.call(env.stat(&clone)).await?.parent.context("a parent")?;
    ensure!(parent.image == deleted, "{parent:?}");
    ensure!(env.read(&env.a, &clone, None, 4).await? == b"kept", "read through");
    Ok(())
}

pub async fn clone_across_pools(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"x-pool").await?, env.name("clone"));
    env.a.call(ImageClone { dest_pool: env.plain_pool.clone(), ..env.clone_of(&image, &clone) }).await?;
    let child = ImageName { pool: env.plain_pool.clone(), image: clone.clone(), trash: false };
    ensure!(children(env, &image, None).await? == [child], "found in the other pool");
    refused(Kind::Busy, unprotect(env, &image, "s").await)?;
    let read = ImageRead { pool: env.plain_pool.clone(), image: clone, snap: None, offset: 0, length: 6 };
    ensure!(env.a.call(read).await? == b"x-pool", "read through");
    Ok(())
}

pub async fn clone_of_a_clone(env: &Env) -> Case {
    let (image, clone, grandchild) = (env.parent("i", b"gen0 gen1").await?, env.name("c"), env.name("g"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    env.write(&env.a, &clone, 5, b"GEN1").await?;
    env.a.call(env.snap_create(&clone, "s")).await?;
    protect(env, &clone, "s").await?;
    env.a.call(env.clone_of(&clone, &grandchild)).await?;
    ensure!(env.read(&env.a, &grandchild, None, 9).await? == b"gen0 GEN1", "through two layers");
    refused(Kind::Busy, unprotect(env, &clone, "s").await)?;
    env.a.call(ImageFlatten { pool: env.pool.clone(), image: grandchild.clone() }).await?;
    ensure!(env.read(&env.a, &grandchild, None, 9).await? == b"gen0 GEN1", "flattened");
    unprotect(env, &clone, "s").await?;
    Ok(())
}

/// The helper snapshot of a volume clone: `<new volume>.clone_snap` on the source.
pub async fn clone_helper_snapshot_life(env: &Env) -> Case {
    let (source, dest) = (env.image("source").await?, env.name("dest"));
    let helper = format!("{dest}.clone_snap");
    env.a.call(env.snap_create(&source, &helper)).await?;
    protect(env, &source, &helper).await?;
    env.a.call(ImageClone { snap: helper.clone(), ..env.clone_of(&source, &dest) }).await?;
    ensure!(env.a.call(env.stat(&dest)).await?.parent.is_some_and(|p| p.snap == helper), "parent");
    refused(Kind::HasSnapshots, env.a.call(env.remove(&source)).await)?;
    env.a.call(env.remove(&dest)).await?;
    unprotect(env, &source, &helper).await?;
    remove(env, &source, &helper).await?;
    env.a.call(env.remove(&source)).await?;
    Ok(())
}

pub async fn flatten_refusals(env: &Env) -> Case {
    let image = env.image("i").await?;
    refused(Kind::Invalid, env.a.call(ImageFlatten { pool: env.pool.clone(), image }).await)
}

async fn together(env: &Env, images: &[&str], snap: &str) -> Result<(), RbdError> {
    let members = images.iter().map(|i| SnapOf { image: (*i).to_owned(), snap: snap.to_owned() }).collect();
    env.a.call(SnapCreateTogether { pool: env.pool.clone(), members }).await
}

pub async fn together_all_or_none(env: &Env) -> Case {
    let (one, two) = (env.image("one").await?, env.image("two").await?);
    env.write(&env.a, &one, 0, b"before").await?;
    together(env, &[&one, &two], "s").await?;
    env.write(&env.a, &one, 0, b"after!").await?;
    ensure!(env.read(&env.a, &one, Some("s"), 6).await? == b"before", "content of a member");
    for image in [&one, &two] {
        let seen = env.snaps(&env.a, image).await?;
        ensure!(seen.len() == 1 && !seen[0].protected, "an ordinary snapshot: {seen:?}");
    }
    protect(env, &one, "s").await?;

    remove(env, &two, "s").await?;
    refused(Kind::Exists, together(env, &[&two, &one], "s").await)?;
    refused(Kind::NotFound, together(env, &[&two, &env.name("none")], "s").await)?;
    let shared = env.name("shared");
    env.a.call(ImageCreate { features: features::LAYERING, ..env.create(&shared) }).await?;
    refused(Kind::NotSupported, together(env, &[&two, &shared], "s").await)?;
    ensure!(env.snaps(&env.a, &two).await?.is_empty(), "none of a set that was refused");
    ensure!(env.snaps(&env.a, &shared).await?.is_empty(), "none of a set that was refused");
    Ok(())
}

/// A writer changes one image after the other: what the snapshots show must have been there at one instant,
/// and none of the writes may fail.
pub async fn together_while_written(env: &Env) -> Case {
    let (one, two) = (env.image("one").await?, env.image("two").await?);
    for image in [&one, &two] {
        env.write(&env.a, image, 0, &[0]).await?;
    }
    let writer = async {
        for n in 1..=20u8 {
            env.write(&env.a, &one, 0, &[n]).await.context("a writer of the first")?;
            env.write(&env.a, &two, 0, &[n]).await.context("a writer of the second")?;
        }
        anyhow::Ok(())
    };
    let snapshots = async {
        for snap in ["s1", "s2", "s3"] {
            // A writer that is always faster is a reason to refuse, and not to lie.
            match together(env, &[&two, &one], snap).await {
                Err(e) if e.kind == Kind::Busy => {}
                other => other.context("snapshots")?,
            }
        }
        anyhow::Ok(())
    };
    let (written, taken) = tokio::join!(writer, snapshots);
    written?;
    taken?;
    for snap in env.snaps(&env.a, &one).await? {
        let first = env.read(&env.a, &one, Some(&snap.name), 1).await?[0];
        let second = env.read(&env.a, &two, Some(&snap.name), 1).await?[0];
        ensure!(first == second || first == second + 1, "{}: {first} and {second}", snap.name);
    }
    Ok(())
}

fn roll_back(env: &Env, i: &str, s: &str) -> SnapRollback {
    let (pool, image, snap) = snap(env, i, s);
    SnapRollback { pool, image, snap }
}

fn restore(env: &Env, i: &str, s: &str) -> SnapRestore {
    let (pool, image, snap) = snap(env, i, s);
    SnapRestore { pool, image, snap }
}

pub async fn rollback(env: &Env) -> Case {
    let image = env.parent("i", b"before").await?;
    env.write(&env.a, &image, 0, b"after!").await?;
    env.write(&env.a, &image, SIZE - 4, b"tail").await?;
    env.a.call(ImageResize { pool: env.pool.clone(), image: image.clone(), size: 2 * SIZE }).await?;
    for time in ["once", "twice"] {
        env.a.call(roll_back(env, &image, "s")).await.context(time)?;
        ensure!(env.a.call(env.stat(&image)).await?.size == SIZE, "{time}: the size goes back too");
        let all = env.read(&env.a, &image, None, SIZE).await?;
        ensure!(all.starts_with(b"before") && all.iter().skip(6).all(|b| *b == 0), "{time}: the data");
    }
    ensure!(env.read(&env.a, &image, Some("s"), 6).await? == b"before", "the snapshot stays");
    refused(Kind::NotFound, env.a.call(roll_back(env, &image, "none")).await)?;
    refused(Kind::NotFound, env.a.call(roll_back(env, &env.name("none"), "s")).await)
}

pub async fn restoration(env: &Env) -> Case {
    let image = env.parent("i", b"before").await?;
    env.write(&env.a, &image, 0, b"after!").await?;
    env.write(&env.a, &image, SIZE - 4, b"tail").await?;
    env.a.call(ImageResize { pool: env.pool.clone(), image: image.clone(), size: 2 * SIZE }).await?;
    env.write(&env.a, &image, SIZE, b"grown").await?;
    for time in ["once", "twice"] {
        env.a.call(restore(env, &image, "s")).await.context(time)?;
        ensure!(env.a.call(env.stat(&image)).await?.size == 2 * SIZE, "{time}: the size stays");
        let mut all = env.read(&env.a, &image, None, SIZE).await?;
        let (pool, image) = (env.pool.clone(), image.clone());
        all.extend(env.a.call(ImageRead { pool, image, snap: None, offset: SIZE, length: SIZE }).await?);
        ensure!(all.starts_with(b"before") && all.iter().skip(6).all(|b| *b == 0), "{time}: the data");
    }
    ensure!(env.read(&env.a, &image, Some("s"), 6).await? == b"before", "the snapshot stays");
    refused(Kind::NotFound, env.a.call(restore(env, &image, "none")).await)?;
    refused(Kind::NotFound, env.a.call(restore(env, &env.name("none"), "s")).await)
}

/// Both ways back, of a clone whose data comes from its parent in part.
pub async fn clone_goes_back(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"parent").await?, env.name("clone"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    env.a.call(env.snap_create(&clone, "of-clone")).await?;
    for way in ["rollback", "restoration"] {
        env.write(&env.a, &clone, 0, b"child!").await?;
        match way {
            "rollback" => env.a.call(roll_back(env, &clone, "of-clone")).await?,
            _ => env.a.call(restore(env, &clone, "of-clone")).await?,
        }
        ensure!(env.read(&env.a, &clone, None, 6).await? == b"parent", "{way}");
        ensure!(env.a.call(env.stat(&clone)).await?.parent.is_some(), "{way}: still a clone");
    }
    ensure!(env.read(&env.a, &image, None, 6).await? == b"parent", "the parent is untouched");
    Ok(())
}

pub async fn stale_sync_points(env: &Env) -> Case {
    let image = env.image("i").await?;
    for snap in ["mine", ".rbd-mirror.1304fa5a-c85d.8307d1f3-891d"] {
        env.a.call(env.snap_create(&image, snap)).await?;
    }
    let names = |snaps: Vec<Snap>| snaps.into_iter().map(|s| s.name).collect::<Vec<_>>();
    ensure!(names(env.snaps(&env.a, &image).await?) == ["mine"], "rbd-mirror's is shown to nobody");
    let sweep = SyncPointsRemove { pool: env.pool.clone(), image: image.clone() };
    ensure!(env.a.call(sweep.clone()).await? == 1, "the stale one");
    ensure!(env.a.call(sweep).await? == 0, "and only once");
    remove(env, &image, "mine").await?;
    env.a.call(ImageRemove { pool: env.pool.clone(), image }).await?;
    refused(
        Kind::NotFound,
        env.a.call(SyncPointsRemove { pool: env.pool.clone(), image: env.name("none") }).await,
    )
}
